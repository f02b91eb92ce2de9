"""What the automatic beta sees of steps that are too short to matter: its slope ratio, minibatch after minibatch.

The ratio r_t = -h_t / |s_{t-1}| of SGD is g_t . g_{t-1} / |g_{t-1}|^2. Where the parameters do not move, it would be 1
if both gradients were of one loss; they are of two minibatches.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from hdlib.runs.spec import RunSpec
from hdlib.runs.tables import measured
from hdlib.runs.train import Training, data_of


def ratios(spec: RunSpec, count: int) -> pd.DataFrame:
    """Train a run of SGD; before it and after each of its epochs, hold the parameters and return ratios of slopes.

    Args:
        spec: the run, of an unchanging learning rate.
        count: ratios that are taken at one time, on the first minibatches of the epoch that would follow.

    Returns:
        A row for each ratio: `epochs` that were trained, and `ratio`.
    """
    training = Training(spec, data_of(spec, "cpu", torch.float32), "cpu", torch.float32)
    training.start()
    found = []
    for epoch in range(spec.epochs + 1):
        if epoch:
            training.run_epoch()
        batches = training.begin_epoch(epoch + 1)[: count + 1]
        gradients = [_gradient(training, batch) for batch in batches]
        found += [dict(epochs=epoch, ratio=float(g @ d / (d @ d))) for d, g in itertools.pairwise(gradients)]
    return pd.DataFrame(found)


def recorded(specs: Sequence[RunSpec], count: int, folder: str | Path = "results") -> pd.DataFrame:
    """Return `ratios` of several runs in one table with each run's `model`, measured where they are not recorded."""
    asked = [count, *(spec.canonical() for spec in specs)]
    return measured(
        "ratios", asked, specs[0].task, folder,
        lambda: pd.concat([ratios(spec, count).assign(model=spec.model) for spec in specs], ignore_index=True),
    )  # fmt: skip


def _gradient(training: Training, batch: torch.Tensor) -> torch.Tensor:
    """Return a minibatch's gradient as one vector, the L2 term included."""
    params = list(training.model.parameters())
    grads = torch.autograd.grad(training.loss(batch), params)
    return torch.cat(
        [(g + training.spec.weight_decay * p.detach()).flatten() for g, p in zip(grads, params, strict=True)]
    )
