"""Train one run, serially: the definition that faster ways of training are compared with."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hdlib.optim import SGDHD, AdamHD
from hdlib.optim._base import HypergradientOptimizer
from hdlib.runs.history import CHUNK, History
from hdlib.runs.record import Record, provenance
from hdlib.runs.spec import RunSpec
from hdlib.tasks import build_model, load_data


def train(spec: RunSpec, device: str = "cpu", tick: Callable[[int], None] | None = None) -> Record:
    """Train a run to its end, its target loss or its divergence, and return its record.

    Args:
        spec: the run.
        device: a torch device.
        tick: called with the number of iterations done since the last call.

    Raises:
        DataNotFoundError: the task's data is not at hand.
    """
    started = time.perf_counter()
    dtype = getattr(torch, spec.precision)
    data = load_data(spec.task, device, dtype).scaled(spec.input_scale)
    model = build_model(
        spec.model, data.features, data.classes, spec.seed, width=spec.width, depth=spec.depth, dtype=dtype
    ).to(device)
    optimizer = make_optimizer(spec, model)
    group = optimizer.param_groups[0]
    size = len(data.train_y)
    history = History([spec], size)
    history.start(*evaluate(model, data.valid_x, data.valid_y, history.wants_validation(0)))
    pending: list[tuple] = []
    for epoch in itertools.count(1):
        batches = minibatches(spec, epoch, size, device)
        for i, batch in enumerate(batches[: spec.iterations(size) - history.iteration], start=1):
            if spec.decay == "inv_sqrt":
                group["lr"] = spec.alpha0 / math.sqrt(history.iteration + len(pending) + 1)
            loss = F.cross_entropy(model(data.train_x[batch]), data.train_y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            alpha = group["lr"].clone() if isinstance(group["lr"], Tensor) else group["lr"]
            pending.append((loss.detach(), alpha, group["hypergrad"]))
            if i % CHUNK == 0 or i == len(batches):
                _note(pending, history, tick)
                if not history.live.all():
                    break
        else:
            _note(pending, history, tick)
            if history.iteration == epoch * len(batches):
                validation = evaluate(model, data.valid_x, data.valid_y, history.wants_validation(epoch))
                training = evaluate(model, data.train_x, data.train_y, history.wants_training_loss())
                history.end_epoch(epoch, *validation, training[0])
        if history.finish():
            break
    seconds = time.perf_counter() - started
    return history.record(0, provenance(device, torch.get_num_threads(), seconds, data.source))


def make_optimizer(spec: RunSpec, model: nn.Module) -> HypergradientOptimizer:
    """Return the spec's optimiser; a baseline is its hypergradient method with beta 0, bit for bit."""
    common = dict(lr=spec.alpha0, weight_decay=spec.weight_decay, hypergrad_lr=spec.beta, **asdict(spec.control()))
    if spec.method.startswith("adam"):
        return AdamHD(model.parameters(), **common)
    if spec.method.startswith("sgdn"):
        return SGDHD(model.parameters(), momentum=spec.momentum, nesterov=True, **common)
    return SGDHD(model.parameters(), **common)


def permutation(seed: int, epoch: int, size: int) -> Tensor:
    """Return the order in which an epoch goes through the training data, on the CPU."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))


def minibatches(spec: RunSpec, epoch: int, size: int, device: str) -> tuple[Tensor, ...]:
    """Return the indices of an epoch's minibatches, a fresh shuffle that depends on the seed and the epoch."""
    return permutation(spec.seed, epoch, size).to(device).split(spec.batch_size)


@torch.no_grad()
def evaluate(model: nn.Module, x: Tensor, y: Tensor, wanted: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Return mean cross-entropy and accuracy, each [1]; NaN where they are not wanted."""
    if not wanted:
        return np.full(1, np.nan), np.full(1, np.nan)
    logits = model(x)
    return np.array([F.cross_entropy(logits, y).item()]), np.array([(logits.argmax(1) == y).double().mean().item()])


def _note(pending: list[tuple], history: History, tick: Callable[[int], None] | None) -> None:
    """Fetch the iterations that are pending."""
    if not pending:
        return
    if tick:
        tick(len(pending))
    columns = [_fetch(column) for column in zip(*pending, strict=True)]
    history.add(np.array(columns).T[:, :, None])
    pending.clear()


def _fetch(column: tuple) -> list[float]:
    tensors = [value for value in column if isinstance(value, Tensor)]
    if not tensors:
        return list(column)
    device = tensors[0].device
    return torch.stack([torch.as_tensor(value, dtype=torch.float64, device=device) for value in column]).tolist()
