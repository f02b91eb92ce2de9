"""What happened in runs that go on side by side: when each ends and why, its epochs and its trace."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from hdlib.runs.record import EPOCH_COLUMNS, TRACE_COLUMNS, Record
from hdlib.runs.spec import RunSpec

CHUNK = 64  # iterations between looks at the history: the device is not waited for in between
PER_DECADE = 200  # log-spaced trace points after the early iterations
SMOOTH = 100  # minibatches in the mean that `target_of="smoothed"` looks at


class History:
    """The histories of K runs that have taken the same number of iterations.

    Attributes:
        specs: of the runs.
        live: which of them go on, [K].
        seconds: of wall time that each has taken, its share where runs were trained together, [K].
        iteration: iterations that are noted.
    """

    def __init__(self, specs: Sequence[RunSpec], size: int) -> None:
        self.specs = list(specs)
        k = len(self.specs)
        self.live = np.ones(k, bool)
        self.seconds = np.zeros(k)
        self.iteration = 0
        self._totals = np.array([spec.iterations(size) for spec in specs])
        self._targets = np.array([-math.inf if s.target_loss is None else s.target_loss for s in specs])
        self._of = np.array([s.target_of for s in specs])
        self._traced = [traced_iterations(total, s.early) for s, total in zip(specs, self._totals, strict=True)]
        self._outcomes = np.array(["finished"] * k, dtype=object)
        self._at = np.zeros(k, int)  # the iteration of the outcome
        self._told = np.zeros(k, bool)
        self._sums = np.zeros((2, k))  # loss and alpha, over the epoch's iterations
        self._count = 0
        self._recent = np.full((SMOOTH - 1, k), np.inf)  # losses before the current chunk
        self._epochs: list[list[list[float]]] = [[] for _ in specs]
        self._traces: list[list[np.ndarray]] = [[] for _ in specs]

    def start(self, valid_loss: np.ndarray, accuracy: np.ndarray) -> None:
        """Note the state before training, each [K]; the first minibatch's loss joins it when it is known."""
        for i, spec in enumerate(self.specs):
            self._epochs[i].append([0, 0, math.nan, spec.alpha0, valid_loss[i], accuracy[i]])

    def add(self, rows: np.ndarray) -> None:
        """Note iterations: loss before the step, alpha of the step and h_t, [n, 3, K]; find the runs that end there."""
        n = len(rows)
        loss, alpha = rows[:, 0], rows[:, 1]
        iterations = np.arange(self.iteration + 1, self.iteration + n + 1)
        if self.iteration == 0:
            for i, epochs in enumerate(self._epochs):
                if epochs:
                    epochs[0][2] = loss[0, i]
        diverged = ~(np.isfinite(loss) & np.isfinite(alpha))
        reached = (self._watched(loss) <= self._targets) & ~diverged
        stops = (diverged | reached) & self.live
        stopping = stops.any(0)
        last = np.where(stopping, stops.argmax(0), n - 1)  # row of the last iteration that counts
        for i in np.flatnonzero(self.live):
            end = last[i]
            kept = np.isin(iterations, self._traced[i], assume_unique=True)
            kept[end] |= bool(stopping[i] and self.specs[i].early)
            kept[end + 1 :] = False
            if kept.any():
                self._traces[i].append(np.column_stack([iterations[kept], rows[kept, :, i]]))
        for i in np.flatnonzero(stopping):
            self._stop(i, "diverged" if diverged[last[i], i] else "reached", iterations[last[i]])
        self._sums += rows[:, :2].sum(0)
        self._count += n
        self.iteration += n

    def _watched(self, loss: np.ndarray) -> np.ndarray:
        """Return the loss that each run's target is compared with, iteration by iteration, [n, K]."""
        watched = np.where(self._of == "minibatch", loss, np.inf)
        if (self._of == "smoothed").any():
            past = np.concatenate([self._recent, loss])
            self._recent = past[-(SMOOTH - 1) :]
            means = np.lib.stride_tricks.sliding_window_view(past, SMOOTH, axis=0).mean(-1)
            watched = np.where(self._of == "smoothed", means, watched)
        return watched

    def wants_validation(self, epoch: int) -> bool:
        """Say whether any run that goes on is validated after an epoch."""
        return any(self._validated(i, epoch) for i in np.flatnonzero(self.live))

    def wants_training_loss(self) -> bool:
        """Say whether any run that goes on looks for its target in the loss over all training data."""
        return bool((self.live & (self._of == "epoch")).any())

    def end_epoch(
        self, epoch: int, valid_loss: np.ndarray, accuracy: np.ndarray, training_loss: np.ndarray | None = None
    ) -> None:
        """Close an epoch: means over its iterations, and what was evaluated after it, each [K]."""
        loss, alpha = self._sums / self._count
        self._sums[:], self._count = 0, 0
        for i in np.flatnonzero(self.live):
            if self._validated(i, epoch):
                self._epochs[i].append([epoch, self.iteration, loss[i], alpha[i], valid_loss[i], accuracy[i]])
            if self._of[i] == "epoch" and training_loss[i] <= self._targets[i]:
                self._stop(i, "reached", self.iteration)

    def taken(self, i: int) -> int:
        """Return how many iterations a run has taken."""
        return self.iteration if self.live[i] else int(self._at[i])

    def finish(self) -> list[int]:
        """End the runs that have taken all their iterations; return which have ended since the last call."""
        for i in np.flatnonzero(self.live & (self._totals <= self.iteration)):
            self._stop(i, "finished", self._totals[i])
        ended = np.flatnonzero(~self.live & ~self._told)
        self._told[ended] = True
        return ended.tolist()

    def record(self, i: int, made: dict) -> Record:
        """Return the record of a run that has ended, and forget its rows."""
        epochs = _table(self._epochs[i], EPOCH_COLUMNS)
        trace = _table(np.concatenate(self._traces[i]) if self._traces[i] else [], TRACE_COLUMNS)
        self._epochs[i], self._traces[i] = [], []
        return Record(self.specs[i], self._outcomes[i], int(self._at[i]), epochs, trace, made)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps at an epoch's end, while all runs go on: tensors and a number."""
        return {
            "iteration": self.iteration,
            "recent": torch.from_numpy(self._recent),
            "epochs": [torch.tensor(rows, dtype=torch.float64) for rows in self._epochs],
            "traces": [torch.from_numpy(np.concatenate(rows)) if rows else None for rows in self._traces],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a state."""
        self.iteration, self._recent = state["iteration"], state["recent"].cpu().numpy()
        self._epochs = [rows.tolist() for rows in state["epochs"]]
        self._traces = [[] if rows is None else [rows.cpu().numpy()] for rows in state["traces"]]

    def keep(self, index: np.ndarray) -> None:
        """Go on with some of the runs only."""
        for name in ("specs", "_traced", "_epochs", "_traces"):
            setattr(self, name, [getattr(self, name)[i] for i in index])
        for name in ("live", "seconds", "_totals", "_targets", "_of", "_outcomes", "_at", "_told"):
            setattr(self, name, getattr(self, name)[index])
        self._sums, self._recent = self._sums[:, index], self._recent[:, index]

    def _validated(self, i: int, epoch: int) -> bool:
        every = self.specs[i].validate_every
        return bool(every) and (epoch % every == 0 or epoch == self.specs[i].epochs)

    def _stop(self, i: int, outcome: str, iteration: int) -> None:
        self.live[i], self._outcomes[i], self._at[i] = False, outcome, iteration


def traced_iterations(total: int, early: int) -> np.ndarray:
    """Return the iterations that a trace keeps: each of the first `early`, then log-spaced ones to `total`."""
    first = np.arange(1, min(early, total) + 1)
    if early == 0 or total <= early:
        return first
    points = int(math.log10(total / early) * PER_DECADE) + 1
    later = np.round(early * 10 ** (np.arange(1, points + 1) / PER_DECADE)).astype(np.int64)
    return np.unique(np.concatenate([first, later[later <= total], [total]]))


def _table(rows: Sequence[Sequence[float]] | np.ndarray, columns: Sequence[str]) -> pd.DataFrame:
    """Return rows of numbers as a record keeps them, made column by column: to cast a frame takes ten times as long."""
    values = np.asarray(rows, dtype=float).reshape(-1, len(columns))
    kinds = [int if name in ("epoch", "iteration") else float for name in columns]
    return pd.DataFrame({name: own.astype(kind) for name, own, kind in zip(columns, values.T, kinds, strict=True)})
