"""Look at single steps of a run: gradients, the hypergradient, and the loss along the last direction.

Along the direction D_{t-1} of the last step the loss of minibatch t is a function of that step's length alpha. Its
slope at the length that was taken is the hypergradient h_t, and its curvature is kappa_t = D' H D. `steps` measures
both; `line` measures the function itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from hdlib.runs.spec import RunSpec
from hdlib.runs.tables import measured
from hdlib.runs.train import Training, data_of


def decades(low: float, high: float, points: int) -> list[float]:
    """Return log-spaced numbers from 10**low to 10**high, with three significant digits, as specs are keyed by them."""
    return [float(f"{10**exponent:.3g}") for exponent in np.linspace(low, high, points)]


def steps(spec: RunSpec, count: int) -> pd.DataFrame:
    """Take the first steps of a run in float64 and return a row for each.

    Columns, for step t: `loss` of the minibatch before the step; `grad_l1` and `grad_l2` of its gradient g_t, the L2
    term included; `alpha` of the step; `direction_l2` of D_t; `slope`, s_t = g_t . D_t; `hypergrad`, h_t =
    g_t . D_{t-1}; `kappa`, D_{t-1}' H_t D_{t-1} by a Hessian-vector product on minibatch t; `kappa_secant`,
    (h_t - s_{t-1}) / alpha_{t-1}. The rows end with the first number that is not finite. A step of length alpha = 0
    moves nothing and so hides its direction: what needs D_t is NaN after it, but h_t is the optimiser's own.
    """
    run, rows = _Run(spec), []
    before: dict = {"slope": np.nan, "alpha": np.nan}
    for t in range(1, count + 1):
        row, grads = run.gradient(t, True)
        h = _dot(grads, run.direction) if run.direction else None
        run.step(grads)
        alpha = float(run.group["lr"])
        h = float(run.group["hypergrad"]) if h is None else h
        secant = (h - before["slope"]) / before["alpha"] if before["alpha"] else np.nan
        row |= {"step": t, "alpha": alpha, "hypergrad": h, "kappa_secant": secant}
        length, slope = (_dot(v, run.direction) if run.direction else np.nan for v in (run.direction, grads))
        row |= {"direction_l2": length**0.5, "slope": slope}
        rows.append(row)
        before = row
        if not np.isfinite([row["loss"], alpha, h]).all():
            break
    return pd.DataFrame(rows)


def line(spec: RunSpec, t: int, lengths: Sequence[float]) -> pd.DataFrame:
    """Return the loss of minibatch t >= 2, L2 term included, at theta_{t-2} + length D_{t-1} for each length.

    The columns are `length` and `loss`; `taken` says which length the run took.
    """
    run = _Run(spec)
    for i in range(1, t):
        start = [p.detach().clone() for p in run.params]
        run.step(run.gradient(i, False)[1])
    losses = []
    for length in lengths:
        with torch.no_grad():
            for p, origin, d in zip(run.params, start, run.direction, strict=True):
                p.copy_(origin + length * d)
            losses.append(float(run.loss(t)[1]))
    return pd.DataFrame({"length": lengths, "loss": losses, "taken": float(run.group["lr"])})


class _Run:
    """A run that can be looked into, in float64 so that D = (theta_t - theta_{t-1}) / alpha_t is exact enough."""

    def __init__(self, spec: RunSpec) -> None:
        self.spec = spec = spec.with_(precision="float64")
        self.training = Training(spec, data_of(spec, "cpu", torch.float64), "cpu", torch.float64)
        self.params = list(self.training.model.parameters())
        self.group = self.training.group
        self.direction: list[Tensor] = []  # none before the first step, and after one of length zero
        self.epoch = 0
        self.batches: tuple[Tensor, ...] = ()  # of that epoch
        self.dropout = self.dropout_next = torch.get_rng_state()  # the generator before this minibatch, and after it

    def loss(self, t: int) -> tuple[Tensor, Tensor]:
        """Return minibatch t's cross-entropy, and the same with the L2 term; asked again, with the same dropout."""
        size = len(self.training.data.train_y)
        epoch, i = divmod(t - 1, -(-size // self.spec.batch_size))
        with torch.random.fork_rng(devices=[]):
            if epoch + 1 != self.epoch:
                self.epoch, self.batches = epoch + 1, self.training.begin_epoch(epoch + 1)
                self.dropout = torch.get_rng_state()
            torch.set_rng_state(self.dropout)
            loss = self.training.loss(self.batches[i])
            self.dropout_next = torch.get_rng_state()
        return loss, loss + self.spec.weight_decay / 2 * sum((p**2).sum() for p in self.params)

    def gradient(self, t: int, curvature: bool) -> tuple[dict, list[Tensor]]:
        plain, loss = self.loss(t)
        curvature = curvature and bool(self.direction)
        grads = torch.autograd.grad(loss, self.params, create_graph=curvature)
        kappa = np.nan
        if curvature:
            along = sum((g * d).sum() for g, d in zip(grads, self.direction, strict=True))
            kappa = _dot(torch.autograd.grad(along, self.params), self.direction)
        grads = [g.detach() for g in grads]
        l1 = float(sum(g.abs().sum() for g in grads))
        return {"loss": plain.item(), "grad_l1": l1, "grad_l2": _dot(grads, grads) ** 0.5, "kappa": kappa}, grads

    def step(self, grads: list[Tensor]) -> None:
        before = [p.detach().clone() for p in self.params]
        for p, g in zip(self.params, grads, strict=True):
            p.grad = g - self.spec.weight_decay * p.detach()  # the optimiser adds its L2 term itself
        self.training.optimizer.step()
        self.dropout = self.dropout_next
        alpha = float(self.group["lr"])
        moved = zip(self.params, before, strict=True) if alpha else ()
        self.direction = [(p.detach() - b) / alpha for p, b in moved]


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    return float(sum((x * y).sum() for x, y in zip(a, b, strict=True)))


def recorded(specs: Sequence[RunSpec], count: int, folder: str | Path = "results") -> pd.DataFrame:
    """Return `steps` of several runs in one table with each run's `key`, measured where they are not recorded.

    They are kept in `probes/` below the folder, one file for each list of specs, with what made it.
    """
    asked = [count, *(spec.canonical() for spec in specs)]
    return measured(
        "steps", asked, specs[0].task, folder,
        lambda: pd.concat([steps(spec, count).assign(key=spec.key) for spec in specs], ignore_index=True),
    )  # fmt: skip


def recorded_line(spec: RunSpec, t: int, points: int, folder: str | Path = "results") -> pd.DataFrame:
    """Return `line` at lengths around the lowest loss, measured where it is not recorded.

    The lengths reach from below zero to twice the length that slope and curvature call best, and more.
    """

    def measure() -> pd.DataFrame:
        near = steps(spec, t)
        slope, kappa = near["slope"].iloc[t - 2], near["kappa"].iloc[t - 1]
        best = -slope / max(kappa, near["kappa_secant"].iloc[t - 1])
        return line(spec, t, np.linspace(-1.0, 3.5, points) * best)

    return measured("line", [t, points, spec.canonical()], spec.task, folder, measure)
