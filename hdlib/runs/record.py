"""What is kept of a run: its history, its outcome, and what made it."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from hdlib.runs.spec import RunSpec

EPOCH_COLUMNS = ("epoch", "iteration", "train_loss", "alpha", "valid_loss", "valid_accuracy")
SOURCES = ("optim", "tasks", "runs")  # folders of the package whose files decide a run
TRACE_COLUMNS = ("iteration", "loss", "alpha", "hypergrad")
CORES = " cores)"  # ends what provenance calls a processor


@dataclass(frozen=True, eq=False)
class Record:
    """One run's history with its outcome and provenance.

    Attributes:
        spec: what was asked.
        outcome: "finished", "reached" (its target loss) or "diverged".
        iterations: optimiser steps up to the outcome. Of a diverged run, the first iteration at which the
            minibatch loss or alpha was not a finite number; of one that reached its target, the iteration
            with which it did.
        epochs: a row per finished epoch: `train_loss` and `alpha`, means over the epoch's iterations, and
            `valid_loss` and `valid_accuracy` after it. Row 0 is the state before training, its `train_loss`
            that of the first minibatch.
        trace: a row per traced iteration: the minibatch `loss` before the step, `alpha` of the step, and the
            paper's h_t in `hypergrad` (0 where it is not computed).
        provenance: code, library versions, device, threads, seconds, date.
    """

    spec: RunSpec
    outcome: str
    iterations: int
    epochs: pd.DataFrame
    trace: pd.DataFrame
    provenance: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, later: Mapping[str, Callable[[], Any]], **fields: Any) -> Self:
        """Return a record of which some attributes, such as frames, are made when they are first asked for."""
        record = cls.__new__(cls)
        record.__dict__.update(fields, _later=later)
        return record

    def __getattr__(self, name: str) -> Any:
        later = self.__dict__.get("_later", {})
        if name not in later:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        self.__dict__[name] = later[name]()
        return self.__dict__[name]

    @property
    def on_gpu(self) -> bool:
        """Whether it was trained on a GPU: only a processor's name ends with its number of cores."""
        return not self.provenance["device"].endswith(CORES)

    @cached_property
    def final_loss(self) -> float:
        """The mean over the last fifth of the traced iterations, or the last epoch's; infinite of a diverged run."""
        if self.outcome == "diverged":
            return np.inf
        if self.trace.empty:
            return self.epochs["train_loss"].iloc[-1]
        last = self.trace["iteration"].to_numpy() > 0.8 * self.iterations
        return self.trace["loss"].to_numpy()[last].mean(dtype=float)

    @cached_property
    def lowest_alpha(self) -> float:
        """The lowest of the traced iterations, NaN where there are none."""
        return np.fmin.reduce(self.trace["alpha"].to_numpy(), initial=np.nan)


def provenance(device: str, threads: int, seconds: float, data: str) -> dict[str, Any]:
    """Return what made a record, as plain JSON values. `seconds` is the run's wall time."""
    return {
        **ENVIRONMENT,
        "device": device_name(device),
        "threads": threads,
        "seconds": round(seconds, 3),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": data,
    }


def _environment() -> dict[str, Any]:
    import hdlib

    return {
        "hdlib": hdlib.__version__,
        "code": code_version(),
        "commit": _commit(),
        "torch": version("torch"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


@lru_cache(maxsize=1)
def code_version() -> str:
    """Return twelve hexadecimal digits over SOURCES."""
    package = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for folder in SOURCES:
        for path in sorted((package / folder).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _commit() -> str | None:
    """Return the commit that HDLIB_COMMIT names, or else the one that git says this file is of.

    It ends in -dirty, as git itself says it, where the sources that decide a run are not those of the commit.
    """
    if named := os.environ.get("HDLIB_COMMIT"):
        return named
    here = Path(__file__)  # it may be installed in a folder of another repository, which does not hold it
    git = ["git", "--no-optional-locks", "-C", str(here.parent)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "HEAD", f"HEAD:./{here.name}"], capture_output=True, text=True, check=False
        )
        folders = [f"../{name}" for name in SOURCES]
        edits = subprocess.run(
            [*git, "status", "--porcelain", "--", *folders], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return head.stdout[:12] + ("-dirty" if edits.stdout else "") if head.returncode == 0 else None


@lru_cache(maxsize=4)
def device_name(device: str) -> str:
    """Return the processor's or the GPU's name as its maker gives it."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    model = ""
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return f"{model or platform.processor() or platform.machine()} ({os.cpu_count()}{CORES}"


# What was imported is what trains: the files may be edited, or another commit checked out, before a long run ends.
ENVIRONMENT = _environment()
