"""Train one run, serially: the definition that faster ways of training are compared with."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hdlib.optim import SGDHD, AdamHD
from hdlib.optim._base import HypergradientOptimizer
from hdlib.runs.record import EPOCH_COLUMNS, TRACE_COLUMNS, Record, provenance
from hdlib.runs.spec import RunSpec
from hdlib.tasks import build_model, load_data

CHECK_EVERY = 64  # iterations between looks at the history: the device is not waited for in between
PER_DECADE = 200  # log-spaced trace points after the early iterations


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
    data = load_data(spec.task, device, dtype)
    if spec.input_scale != 1:
        data = replace(data, train_x=data.train_x * spec.input_scale, valid_x=data.valid_x * spec.input_scale)
    model = build_model(
        spec.model, data.features, data.classes, spec.seed, width=spec.width, depth=spec.depth, dtype=dtype
    ).to(device)
    optimizer = make_optimizer(spec, model)
    group = optimizer.param_groups[0]
    history = History(spec, len(data.train_y))
    history.start(*validate(model, data.valid_x, data.valid_y))
    outcome = ""
    iteration = 0
    for epoch in range(1, spec.epochs + 1):
        batches = minibatches(spec, epoch, len(data.train_y), device)
        for i, batch in enumerate(batches, start=1):
            iteration += 1
            if spec.decay == "inv_sqrt":
                group["lr"] = spec.alpha0 / math.sqrt(iteration)
            loss = F.cross_entropy(model(data.train_x[batch]), data.train_y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.add(loss.detach(), group["lr"], group["hypergrad"])
            if i % CHECK_EVERY == 0 or i == len(batches):
                if tick:
                    tick(len(history.pending))
                outcome = history.flush()
                if outcome:
                    break
        if outcome:
            break
        history.end_epoch(iteration, *validate(model, data.valid_x, data.valid_y))
    seconds = time.perf_counter() - started
    made = provenance(device, torch.get_num_threads(), seconds, data.source)
    return history.record(outcome or "finished", made)


def make_optimizer(spec: RunSpec, model: nn.Module) -> HypergradientOptimizer:
    """Return the spec's optimiser; a baseline is its hypergradient method with beta 0, bit for bit."""
    common = dict(lr=spec.alpha0, weight_decay=spec.weight_decay, hypergrad_lr=spec.beta, **asdict(spec.control()))
    if spec.method.startswith("adam"):
        return AdamHD(model.parameters(), **common)
    if spec.method.startswith("sgdn"):
        return SGDHD(model.parameters(), momentum=spec.momentum, nesterov=True, **common)
    return SGDHD(model.parameters(), **common)


def minibatches(spec: RunSpec, epoch: int, size: int, device: str) -> tuple[Tensor, ...]:
    """Return the indices of an epoch's minibatches, a fresh shuffle that depends on the seed and the epoch."""
    generator = torch.Generator().manual_seed(spec.seed * 1_000_003 + epoch)
    return torch.randperm(size, generator=generator).to(device).split(spec.batch_size)


@torch.no_grad()
def validate(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Return mean cross-entropy and accuracy."""
    logits = model(x)
    return F.cross_entropy(logits, y).item(), (logits.argmax(1) == y).double().mean().item()


def traced_iterations(total: int, early: int) -> np.ndarray:
    """Return the iterations that a trace keeps: each of the first `early`, then log-spaced ones to `total`."""
    first = np.arange(1, min(early, total) + 1)
    if early == 0 or total <= early:
        return first
    points = int(math.log10(total / early) * PER_DECADE) + 1
    later = np.round(early * 10 ** (np.arange(1, points + 1) / PER_DECADE)).astype(np.int64)
    return np.unique(np.concatenate([first, later[later <= total], [total]]))


class History:
    """Collects a run's iterations on the device and fetches them in chunks."""

    def __init__(self, spec: RunSpec, size: int) -> None:
        self.spec = spec
        self.traced = set(traced_iterations(spec.epochs * math.ceil(size / spec.batch_size), spec.early).tolist())
        self.pending: list[tuple] = []
        self.iteration = 0
        self.sums = np.zeros(2)
        self.count = 0
        self.epochs: list[list[float]] = []
        self.trace: list[tuple] = []

    def add(self, loss: Tensor, alpha: float | Tensor, hypergrad: float | Tensor) -> None:
        """Note an iteration without waiting for the device."""
        alpha = alpha.clone() if isinstance(alpha, Tensor) else alpha
        self.pending.append((loss, alpha, hypergrad))

    def flush(self) -> str:
        """Fetch what is pending; return "diverged" or "reached" at the first iteration that is, else ""."""
        columns = [_fetch(column) for column in zip(*self.pending, strict=True)]
        self.pending.clear()
        for loss, alpha, h in zip(*columns, strict=True):
            self.iteration += 1
            if self.iteration == 1:
                self.epochs[0][2] = loss
            diverged = not (math.isfinite(loss) and math.isfinite(alpha))
            reached = self.spec.target_loss is not None and loss <= self.spec.target_loss
            if self.iteration in self.traced or (self.spec.early and (diverged or reached)):
                self.trace.append((self.iteration, loss, alpha, h))
            if diverged or reached:
                return "diverged" if diverged else "reached"
            self.sums += (loss, alpha)
            self.count += 1
        return ""

    def start(self, valid_loss: float, accuracy: float) -> None:
        """Note the state before training; the first minibatch's loss joins it when it is known."""
        self.epochs.append([0, 0, math.nan, self.spec.alpha0, valid_loss, accuracy])

    def end_epoch(self, iteration: int, valid_loss: float, accuracy: float) -> None:
        """Close an epoch: means over its iterations, and the validation after it."""
        loss, alpha = self.sums / self.count
        self.epochs.append([len(self.epochs), iteration, loss, alpha, valid_loss, accuracy])
        self.sums[:], self.count = 0, 0

    def record(self, outcome: str, made: dict) -> Record:
        epochs = pd.DataFrame(self.epochs, columns=EPOCH_COLUMNS)
        trace = pd.DataFrame(self.trace, columns=TRACE_COLUMNS)
        return Record(self.spec, outcome, self.iteration, epochs, trace, made)


def _fetch(column: tuple) -> list[float]:
    tensors = [value for value in column if isinstance(value, Tensor)]
    if not tensors:
        return list(column)
    device = tensors[0].device
    return torch.stack([torch.as_tensor(value, dtype=torch.float64, device=device) for value in column]).tolist()
