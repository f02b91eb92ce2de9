"""What a recorded run would have become: its training again up to an epoch, and from there on in several ways."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from hdlib.optim.control import KEYS
from hdlib.runs.record import Record, device_name
from hdlib.runs.spec import RunSpec
from hdlib.runs.sweep import progress_bar, resolve_device, steps_per_epoch
from hdlib.runs.tables import measured
from hdlib.runs.train import Training, data_of, settings

# How alpha moves from the branching on, in fields of a spec.
WAYS: dict[str, dict[str, Any]] = {
    "as it was": {},
    "α of at least 0": dict(min_lr=0.0),
    "α of at most 0.1": dict(max_lr=0.1),
    "change of at most 10 %": dict(max_change=0.1),
    "multiplicative, β = 0.02": dict(rule="multiplicative", beta=0.02),
    "automatic": dict(beta="auto"),
}
NO_BRANCHES = pd.DataFrame(columns=["way", "epoch", "iteration", "loss", "alpha", "hypergrad"])


def branches(
    record: Record,
    epoch: int,
    epochs: int,
    ways: Mapping[str, dict[str, Any]] = WAYS,
    device: str = "cpu",
    tick: Callable[[int], None] | None = None,
) -> pd.DataFrame:
    """Train a run again to the end of an epoch, and go on from there in several ways.

    The way back is checked: on the same kind of machine, with as many threads, a run repeats itself bit for bit.

    Args:
        record: of a run of a hypergradient method.
        epoch: the last one that all ways have in common.
        epochs: how many follow.
        ways: fields in which a way's spec differs from the run's.
        device: a torch device.
        tick: called with the number of iterations done since the last call.

    Returns:
        A row for each way and iteration, from the common epoch's first on, with `way`, `epoch`, and the columns of a
        trace. No row where the run does not repeat itself.
    """
    data = data_of(record.spec, device, record.spec.dtype)
    spec = record.spec.with_(early=record.spec.iterations(len(data.train_y)))  # every iteration is traced
    found = []
    with _threads(record.provenance.get("threads")), settings(spec, device):
        training = Training(spec, data, device, spec.dtype)
        training.start()
        while training.epoch < epoch and training.history.live[0]:
            training.run_epoch(tick)
        state = copy.deepcopy(training.state())
        if not _same(training.history.record(0, {}), record):
            return NO_BRANCHES
        per_epoch = spec.steps_per_epoch(len(data.train_y))
        for name, changes in ways.items():
            branch = _branched(spec.with_(**changes), training, state)
            while branch.epoch < min(epoch + epochs, spec.epochs) and branch.history.live[0]:
                branch.run_epoch(tick)
            trace = branch.history.record(0, {}).trace
            rows = trace[trace["iteration"] > (epoch - 1) * per_epoch]
            found.append(rows.assign(way=name, epoch=-(-rows["iteration"] // per_epoch)))
    return pd.concat(found, ignore_index=True)


def recorded_branches(
    record: Record,
    epoch: int,
    epochs: int,
    folder: str | Path = "results",
    device: str = "auto",
    ways: Mapping[str, dict[str, Any]] = WAYS,
) -> pd.DataFrame:
    """Return `branches`, trained where they are not kept; a bar shows how far that is.

    A run of another kind of machine, which would not repeat itself here, is not trained again: it has no row.
    """
    device = resolve_device(device)

    def measure() -> pd.DataFrame:
        spec = record.spec
        if record.provenance["device"] != device_name(device):
            return NO_BRANCHES
        total = steps_per_epoch(spec.task, spec.batch_size, spec.train_images) * (epoch + epochs * len(ways))
        how = dict(desc=f"{len(ways)} branches of a run", total=total, unit="it", unit_scale=True)
        with progress_bar(None, **how) as bar:
            return branches(record, epoch, epochs, ways, device, bar.update)

    asked = [epoch, epochs, dict(ways), record.spec.canonical()]
    return measured("branches", asked, record.spec.task, folder, measure, device)


def _branched(spec: RunSpec, trunk: Training, state: dict[str, Any]) -> Training:
    """Return a training that goes on from a state with the alpha of another spec."""
    branch = Training(spec, trunk.data, trunk.device, trunk.dtype)
    own = {name: branch.group[name] for name in ("hypergrad_lr", *KEYS.values())}
    branch.restore(copy.deepcopy(state))
    branch.group |= own
    return branch


def _same(again: Record, record: Record) -> bool:
    """Say whether a run repeated itself, so far as it went."""
    ours, theirs = (r.epochs["train_loss"].to_numpy() for r in (again, record))
    return np.array_equal(ours, theirs[: len(ours)], equal_nan=True)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Compute with so many threads: sums are split among them."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
