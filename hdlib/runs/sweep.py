"""Get many runs: those that are recorded from the store, the others by training them."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch
from tqdm import tqdm

from hdlib.runs.checkpoint import Checkpoints
from hdlib.runs.record import Record
from hdlib.runs.spec import RunSpec, SpecError
from hdlib.runs.store import Store
from hdlib.runs.train import train
from hdlib.tasks.data import require_data


def grid(seeds: int | None = None, **fields: Any) -> list[RunSpec]:
    """Return the specs of a grid: every combination of the fields that are given as lists, tuples or ranges.

    Args:
        seeds: how many seeds each combination runs with: 0, 1, ..., seeds - 1.
        fields: those of RunSpec.

    >>> len(grid(method=["sgd", "adam"], alpha0=[0.1, 0.01], epochs=1, seeds=3))
    12
    """
    if seeds is not None:
        if not isinstance(seeds, int) or isinstance(seeds, bool) or seeds < 1:
            raise SpecError(f"seeds is {seeds!r}: it must be a whole number of at least 1.")
        fields["seed"] = range(seeds)
    axes = {name: value for name, value in fields.items() if isinstance(value, (list, tuple, range))}
    fixed = {name: value for name, value in fields.items() if name not in axes}
    return [RunSpec(**fixed, **dict(zip(axes, values, strict=True))) for values in itertools.product(*axes.values())]


def sweep(
    specs: Sequence[RunSpec],
    store: Store | str = "results",
    *,
    device: str = "auto",
    jobs: int | None = None,
    progress: bool | None = None,
) -> list[Record]:
    """Return the records of the specs, in their order; train and record what the store does not have.

    On a CPU the missing runs are trained in parallel, one single-threaded process each; on a GPU one after
    the other. Each record is stored when its run ends, and a long run's checkpoint is kept in the folder
    `<store>.checkpoints`, so an interrupted sweep resumes where it was.

    Args:
        specs: the runs; duplicates are trained once.
        store: where records are looked up and kept.
        device: "auto" (a GPU where there is one), "cpu", or a CUDA device such as "cuda".
        jobs: processes on a CPU; by default one per core that this process may use.
        progress: show a bar with the time left; by default where standard error is a terminal.

    Raises:
        ValueError: the device is not on this machine.
        DataNotFoundError: a data set is missing, found out before any training.
    """
    store = store if isinstance(store, Store) else Store(store)
    device = resolve_device(device)
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs is {jobs}: it must be at least 1.")
    recorded = store.keys()
    missing = list({spec.key: spec for spec in specs if spec.key not in recorded}.values())
    if missing:
        for task in {spec.task for spec in missing}:
            require_data(task)
        _train_missing(missing, store, device, jobs or usable_cores(), progress)
    return store.get(specs)


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resolve_device(device: str) -> str:
    """Return the torch device that "auto", "cpu" or "cuda..." means here; raise ValueError where there is none."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        return device
    if not device.startswith("cuda"):
        raise ValueError(f"device is {device!r}: it must be 'auto', 'cpu' or a CUDA device such as 'cuda'.")
    if not torch.cuda.is_available():
        raise ValueError(f"device is {device!r} but torch finds no GPU on this machine: use device='auto' or 'cpu'.")
    return device


def _train_missing(specs: list[RunSpec], store: Store, device: str, jobs: int, progress: bool | None) -> None:
    specs = sorted(specs, key=_work, reverse=True)  # long runs first, so that no core idles at the end
    steps = sum(_iterations(spec) for spec in specs)
    written = []
    checkpoints = Checkpoints.beside(store.folder)
    disable = not (sys.stderr.isatty() if progress is None else progress)
    with tqdm(total=steps, unit="it", unit_scale=True, disable=disable, smoothing=0.05) as bar:
        bar.set_description(f"{len(specs)} runs")
        in_process = device != "cpu" or min(jobs, len(specs)) == 1
        results = (
            _serially(specs, device, bar, checkpoints) if in_process else _in_processes(specs, jobs, bar, checkpoints)
        )
        try:
            for left, record in results:
                written += store.put([record])
                checkpoints.discard(record.spec)
                bar.set_description(f"{left} runs left")
        finally:
            store.compact(written)


def _serially(specs: list[RunSpec], device: str, bar: tqdm, checkpoints: Checkpoints) -> Iterator[tuple[int, Record]]:
    for i, spec in enumerate(specs, start=1):
        yield len(specs) - i, train(spec, device, bar.update, checkpoints)


def _in_processes(specs: list[RunSpec], jobs: int, bar: tqdm, checkpoints: Checkpoints) -> Iterator[tuple[int, Record]]:
    context = multiprocessing.get_context("spawn")
    done_steps = context.Value("q", 0)
    pool = ProcessPoolExecutor(min(jobs, len(specs)), context, _start_worker, (done_steps,))
    try:
        waiting = {pool.submit(_train_on_cpu, spec, checkpoints) for spec in specs}
        while waiting:
            done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
            bar.update(done_steps.value - bar.n)
            for i, future in enumerate(done, start=1):
                yield len(waiting) + len(done) - i, future.result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "A training process was killed, perhaps for want of memory: what was finished is recorded; "
            "run the same sweep again, with fewer jobs if memory is short."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_tick: Callable[[int], None] | None = None


def _start_worker(done_steps) -> None:
    global _tick
    torch.set_num_threads(1)

    def tick(iterations: int) -> None:
        with done_steps.get_lock():
            done_steps.value += iterations

    _tick = tick


def _train_on_cpu(spec: RunSpec, checkpoints: Checkpoints) -> Record:
    return train(spec, "cpu", _tick, checkpoints)


def _iterations(spec: RunSpec) -> int:
    size = spec.train_images or {"mnist": 60_000, "digits": 1_500, "cifar10": 50_000}[spec.task]
    return spec.epochs * -(-size // spec.batch_size)


def _work(spec: RunSpec) -> tuple[bool, int]:
    return spec.model != "logreg", _iterations(spec)
