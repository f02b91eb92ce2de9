"""Get many runs: those that are recorded from the store, the others by training them."""

from __future__ import annotations

import itertools
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TextIO, TypeVar

import psutil
import torch
from tqdm import tqdm

from hdlib.runs.checkpoint import Checkpoints
from hdlib.runs.processes import end_with_parent, in_turn, process_context, uninterrupted
from hdlib.runs.record import Record
from hdlib.runs.spec import IMAGE_MODELS, RunSpec, SpecError
from hdlib.runs.stack import bytes_per_run, can_compile, layer_sizes, stack_key, stackable, train_stack
from hdlib.runs.store import Store
from hdlib.runs.train import require_precision, train_each
from hdlib.tasks.data import SIZES, require_data

CACHE_BYTES = 50_000_000  # of a stack on a CPU, whatever memory is free
COMPILE_FROM = {"cpu": 4e9, "cuda": 1e12}  # weights that a process moves in all, from which compiling pays
BESIDE = 3  # runs of VGG side by side on a GPU: more gain little, and are all unfinished where they are stopped
BESIDE_KEY = ("task", "model", "variant", "width_factor", "train_images", "batch_size", "precision", "epochs")
IMAGE_BYTES = 3e9  # that a run of VGG takes on a GPU, with minibatches of 128; a vision transformer takes less
PRODUCTS = {"vgg": 3.1e8, "vit": 2.4e6}  # of weights and activations, in an image's way through the network
PROCESSES_FROM = 4e8  # weights that are moved in all, from which starting processes pays
TERMINAL = "HDLIB_TERMINAL"  # environment variable: where kernels tell their progress, or empty for nowhere
TELL_EVERY = 60.0  # seconds between lines of progress, where there is no terminal for a bar
RECORD_EVERY = 5.0  # seconds between the writing of records
AXES = (list, tuple, range)  # what a grid combines the values of
PATIENCE = 5.0  # seconds that a process that is to end has for recording what it finished
Name = TypeVar("Name", bound=Hashable)  # of a group of runs


class SweepError(RuntimeError):
    """Not all runs of a sweep could be trained, or their records were removed meanwhile; the others are recorded."""


def grid(seeds: int | None = None, **fields: Any) -> list[RunSpec]:
    """Return the specs of a grid: every combination of the fields that are given as lists, tuples, ranges or arrays.

    Args:
        seeds: how many seeds each combination runs with: 0, 1, ..., seeds - 1.
        fields: those of RunSpec.

    Raises:
        SpecError: a list is empty or has a value twice, seeds is no count or comes with seed, or a combination is no
            run.

    >>> len(grid(method=["sgd", "adam"], alpha0=[0.1, 0.01], epochs=1, seeds=3))
    12
    """
    fields, seeds = {name: _plain(value) for name, value in fields.items()}, _plain(seeds)
    for name, value in fields.items():
        if isinstance(value, (set, frozenset, dict)):
            raise SpecError(f"{name} is {value!r}: give a list, whose order is that of the runs.")
        if isinstance(value, AXES):
            if not value:
                raise SpecError(f"{name} is {value!r}: give at least one value.")
            twice = [one for i, one in enumerate(value) if one in value[:i]]
            if twice:
                raise SpecError(f"{name} is {value!r}, which has {twice[0]!r} twice: give each value once.")
    if seeds is not None:
        if not isinstance(seeds, int) or isinstance(seeds, bool) or seeds < 1:
            raise SpecError(f"seeds is {seeds!r}: it must be a whole number of at least 1.")
        if "seed" in fields:
            raise SpecError(f"seeds is {seeds} and seed is {fields['seed']!r}: give one of them.")
        fields["seed"] = range(seeds)
    axes = {name: value for name, value in fields.items() if isinstance(value, AXES)}
    fixed = {name: value for name, value in fields.items() if name not in axes}
    return [RunSpec(**fixed, **dict(zip(axes, values, strict=True))) for values in itertools.product(*axes.values())]


def sweep(
    specs: Iterable[RunSpec] | RunSpec,
    store: Store | str = "results",
    *,
    device: str = "auto",
    jobs: int | None = None,
    progress: bool | None = None,
) -> list[Record]:
    """Return the records of the specs, in their order; train and record what the store does not have.

    Missing runs are grouped into stacks that are trained as one program (`plan`): on a CPU in single-threaded
    processes (see `process_context`), on a GPU one after the other, or, of networks that are not stacked, a few side
    by side. A run's record is stored within seconds of its end, and a long run that is not stacked keeps a checkpoint
    in the folder `<store>.checkpoints`, so an interrupted sweep resumes where it was.

    Args:
        specs: the runs, or a single one; duplicates are trained once.
        store: where records are looked up and kept.
        device: "auto" (a GPU where there is one), "cpu", or a CUDA device such as "cuda".
        jobs: processes on a CPU; by default one per core that this process may use, or none but this one for
            little work.
        progress: show a bar with the time left; by default where standard error is a terminal or a Jupyter notebook
            that somebody sees: of one that `hdlib run` executes, the bar is on the terminal of that command. Where
            there is no terminal, as in a log, there is a line a minute by default.

    Raises:
        SpecError: the device is not on this machine or lacks a run's precision, or the store cannot be written, found
            out before any training.
        DataNotFoundError: a data set is missing, found out before any training.
        SweepError: a training process was killed, or could not start, or something else removed records meanwhile.
    """
    store = store if isinstance(store, Store) else Store(store)
    device = resolve_device(str(device))
    if jobs is not None and not (isinstance(jobs, int) and jobs >= 1):
        raise SpecError(f"jobs is {jobs!r}: it must be a whole number of at least 1.")
    specs = [specs] if isinstance(specs, RunSpec) else list(specs)
    if missing := _missing(specs, store):
        for spec in missing:
            require_precision(spec, device)
        for task in {spec.task for spec in missing}:
            require_data(task)
        store.require_writable()
        if jobs is None:
            jobs = usable_cores() if sum(map(_work, missing)) > PROCESSES_FROM else 1
        with in_turn():
            if missing := _missing(missing, store):
                _train_missing(missing, store, device, jobs, progress)
    records = store.get(specs)
    if len(records) < len(specs):
        raise SweepError(
            f"{len(specs) - len(records)} of {len(specs)} runs were recorded in {str(store.folder)!r} and are not "
            "there any more: something else removed their files. The same sweep trains them again."
        )
    return records


def _missing(specs: Iterable[RunSpec], store: Store) -> list[RunSpec]:
    """Return the specs that the store does not have, each once."""
    recorded = store.keys()
    return list({spec.key: spec for spec in specs if spec.key not in recorded}.values())


def sweep_groups(
    groups: Mapping[Name, Sequence[RunSpec]], store: Store | str = "results", **how: Any
) -> dict[Name, list[Record]]:
    """Return the records of several groups of runs, by the groups' names, from one sweep: one bar and one plan.

    Args:
        groups: the runs by name; one that is in several groups is trained once.
        store: where records are looked up and kept.
        how: passed to `sweep`.
    """
    records = sweep([spec for specs in groups.values() for spec in specs], store, **how)
    by_key = {record.spec.key: record for record in records}
    return {name: [by_key[spec.key] for spec in specs] for name, specs in groups.items()}


def steps_per_epoch(task: str = "mnist", batch_size: int = 128, train_images: int | None = None) -> int:
    """Return how many iterations an epoch of a task has, on all its data or a part; its last minibatch may be smaller.

    Raises:
        SpecError: there is no such task or minibatch.
    """
    if task not in SIZES:
        raise SpecError(f"task is {task!r}: it must be one of {', '.join(map(repr, SIZES))}.")
    if batch_size < 1:
        raise SpecError(f"batch_size is {batch_size}: it must be at least 1.")
    return -(-(train_images or SIZES[task][0]) // batch_size)


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resolve_device(device: str) -> str:
    """Return the torch device that "auto", "cpu" or "cuda..." means here; raise SpecError where there is none."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        return device
    kind, colon, index = device.partition(":")
    if kind != "cuda" or (colon and not index.isdecimal()):
        raise SpecError(f"device is {device!r}: it must be 'auto', 'cpu' or a CUDA device such as 'cuda'.")
    if not torch.cuda.is_available():
        raise SpecError(f"device is {device!r} but torch finds no GPU on this machine: use device='auto' or 'cpu'.")
    count = torch.cuda.device_count()
    if index and int(index) >= count:
        raise SpecError(f"device is {device!r} but the last GPU is cuda:{count - 1}: name one that is there.")
    return device


def plan(specs: Sequence[RunSpec], device: str, jobs: int = 1, memory: int | None = None) -> list[list[RunSpec]]:
    """Group runs into stacks, each to be trained as one program, the longest first.

    On a GPU all runs of one task and model make a stack, and BESIDE runs of VGG that differ in nothing but what their
    optimiser does. On a CPU a stack holds one seed, whose runs share their
    minibatches, and is no larger than the cache: models of a million weights are bound by arithmetic, and gain
    nothing by sharing a program with others. There are at least as many stacks as processes, where runs are enough.

    Args:
        specs: runs, each once.
        device: a torch device.
        jobs: processes on a CPU.
        memory: bytes that all stacks that are trained at one time may take.
    """
    groups: dict[tuple, list[RunSpec]] = {}
    for spec in specs:
        key: tuple = (spec.key,)
        if stackable(spec):
            key = stack_key(spec) + ((spec.seed,) if device == "cpu" else ())
        elif device != "cpu":
            key = tuple(getattr(spec, name) for name in BESIDE_KEY)
        groups.setdefault(key, []).append(spec)
    limit = max(1, (memory or free_memory(device) // 2) // jobs)
    if device == "cpu":
        limit = min(limit, CACHE_BYTES)
    stacks = []
    for group in groups.values():
        largest = max(map(_bytes, group)) if len(group) > 1 else limit
        most = max(1, limit // largest)
        parts = -(-len(group) // (most if stackable(group[0]) else min(most, BESIDE)))
        stacks += [group[i::parts] for i in range(parts)]
    while len(stacks) < jobs and max(map(len, stacks)) > 1:
        largest = max(stacks, key=len)
        stacks.remove(largest)
        stacks += [largest[::2], largest[1::2]]
    return sorted(stacks, key=lambda stack: sum(_work(spec) for spec in stack), reverse=True)


def free_memory(device: str) -> int:
    """Return how many bytes are free on a device."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


class _Recorder:
    """Puts the records of ended runs into the store, some seconds' worth at a time."""

    def __init__(self, store: Store, tell: Callable[[Path, int, int], None]) -> None:
        self.store, self.tell = store, tell
        self.checkpoints = Checkpoints.beside(store.folder)
        self.pending: list[Record] = []
        self.last = time.monotonic()

    def __call__(self, records: list[Record]) -> None:
        self.pending += records
        if time.monotonic() - self.last > RECORD_EVERY:
            self.flush()

    def flush(self) -> None:
        if self.pending:
            unused = sum(_iterations(record.spec) - record.iterations for record in self.pending)
            ended = len(self.pending)
            for path in self.store.put(self.pending):
                self.tell(path, ended, unused)
                ended = unused = 0  # of all files, told with the first
            for record in self.pending:
                self.checkpoints.discard(record.spec)
            self.pending = []
        self.last = time.monotonic()


def _train(stack: list[RunSpec], device: str, compiled: bool, tick: Callable[[int], None], emit: _Recorder) -> None:
    """Train a stack, and record what has ended whatever happens."""
    try:
        if stackable(stack[0]):
            train_stack(stack, device, tick, emit, compiled)
        else:
            for record in train_each(stack, device, tick, emit.checkpoints, compiled):
                emit([record])
    finally:
        emit.flush()


def _train_missing(specs: list[RunSpec], store: Store, device: str, jobs: int, progress: bool | None) -> None:
    processes = min(jobs, len(specs)) if device == "cpu" else 1
    stacks = plan(specs, device, processes)
    compiled = sum(map(_work, specs)) / processes > COMPILE_FROM[device.partition(":")[0]] and can_compile(device)
    written: list[Path] = []
    left = len(specs)
    how = dict(desc=f"{left} runs", total=sum(map(_iterations, specs)), unit="it", unit_scale=True)
    with progress_bar(progress, **how) as bar:

        def tell(path: Path, runs: int, unused: int) -> None:
            nonlocal left
            written.append(path)
            left -= runs
            bar.total -= unused
            bar.set_description_str(f"{left} runs left", refresh=False)

        try:
            if processes == 1:
                for stack in stacks:
                    _train(stack, device, compiled, bar.update, _Recorder(store, tell))
            else:
                _in_processes(stacks, processes, compiled, store.folder, bar, tell)
        finally:
            store.compact(written)


def progress_bar(progress: bool | None, **options: Any) -> tqdm:
    """Return a bar where somebody sees it, or lines in a log; see `sweep`."""
    kind, file = tqdm, sys.stderr
    if type(sys.stderr).__module__.startswith("ipykernel"):
        terminal = os.environ.get(TERMINAL)
        file = None if terminal is None else _opened(terminal)
        if terminal is None:
            with warnings.catch_warnings(action="ignore"):  # without widgets it is a line of text
                from tqdm.auto import tqdm as kind
        elif file is None:
            progress = False
    if file is not None and progress is None and not file.isatty():
        kind = _Lines
        options |= dict(delay=TELL_EVERY, mininterval=TELL_EVERY, maxinterval=TELL_EVERY)
        options["bar_format"] = "{desc}: {percentage:.0f} % after {elapsed}, {remaining} left"
    return kind(file=file, disable=progress is False, leave=False, dynamic_ncols=True, smoothing=0.05, **options)


class _Lines(tqdm):
    """Progress in a log: a line now and then."""

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Write a line, unless it is empty, as at the end; a log that is gone is no reason to stop."""
        text = str(self) if msg is None else msg
        if text:
            with suppress(OSError):
                self.fp.write(f"{text}\n")
                self.fp.flush()
        return bool(text)


@lru_cache(maxsize=1)
def _opened(terminal: str) -> TextIO | None:
    """Return a terminal or a log to write on, which does not become this process's own; None where there is none."""
    try:
        return os.fdopen(os.open(terminal, os.O_WRONLY | os.O_NOCTTY | os.O_APPEND), "w")
    except OSError:
        return None


def _in_processes(
    stacks: list[list[RunSpec]],
    count: int,
    compiled: bool,
    folder: Path,
    bar: tqdm,
    tell: Callable[[Path, int, int], None],
) -> None:
    """Train stacks in processes, each of which is given another one as soon as it has trained one.

    A process has a pipe of its own, which closes with it, however it ends: what several of them share could be held
    by one that is killed.
    """
    context = process_context()
    workers: dict[Connection, BaseProcess] = {}

    def hear(pipe: Connection) -> bool:
        """Take in what a process says; return whether it has trained its stack."""
        match pipe.recv():
            case int(iterations):
                bar.update(iterations)
            case path, runs, unused:
                tell(path, runs, unused)
            case Exception() as error:
                raise error
            case None:
                return True
        return False

    try:
        for _ in range(min(count, len(stacks))):
            pipe, end = context.Pipe()
            worker = context.Process(target=_train_in_process, args=(end, folder, compiled, dict(os.environ)))
            with uninterrupted():
                worker.start()
                workers[pipe] = worker
                end.close()
        _share_out(stacks, workers, hear)
    finally:
        for pipe in workers:
            with suppress(ConnectionError):  # it has ended
                pipe.send(None)
        until = time.monotonic() + PATIENCE
        for pipe, worker in workers.items():
            worker.join(max(0.0, until - time.monotonic()))
            worker.kill()  # one that has not looked since
            with suppress(Exception):  # of the end of what it says; an error of its own comes second
                while pipe.poll():
                    hear(pipe)


def _share_out(
    stacks: Iterable[list[RunSpec]], workers: dict[Connection, BaseProcess], hear: Callable[[Connection], bool]
) -> None:
    """Give the stacks to processes as these are free, until all are trained."""
    waiting = iter(stacks)
    try:
        for pipe in workers:
            pipe.send(next(waiting))
        busy = set(workers)
        while busy:
            for pipe in multiprocessing.connection.wait(busy):
                if hear(pipe):
                    if stack := next(waiting, None):
                        pipe.send(stack)
                    else:
                        busy.remove(pipe)
    except (EOFError, ConnectionError) as error:
        workers[pipe].join(PATIENCE)
        if workers[pipe].exitcode == 1:
            raise SweepError(
                "A training process was ended by the error that it printed: where that is of its start, call sweep "
                "from a script's file, below `if __name__ == '__main__':`, or with jobs=1."
            ) from error
        raise SweepError(
            "A training process was killed, perhaps for want of memory: what was finished is recorded, and the same "
            "sweep goes on from there; where memory is short, let it have fewer cores or jobs."
        ) from error


def _train_in_process(pipe: Connection, folder: Path, compiled: bool, environment: dict[str, str]) -> None:
    """Train the stacks that come through a pipe, and tell of them through it, until None comes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the process that asked hears it, too
    threading.Thread(target=end_with_parent, daemon=True).start()
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    recorder = _Recorder(Store(folder), lambda *news: pipe.send(news))

    def tick(iterations: int) -> None:
        pipe.send(iterations)
        if pipe.poll():  # it is to end; what has ended is recorded on the way
            sys.exit()

    while stack := pipe.recv():
        try:
            _train(stack, "cpu", compiled, tick, recorder)
            pipe.send(None)
        except Exception as error:
            error.add_note(f"It came in a training process:\n{traceback.format_exc()}")
            pipe.send(error)


def _plain(value: Any) -> Any:
    """Return an array of numpy's or torch's, or a number of theirs, as Python's own."""
    return value.tolist() if hasattr(value, "tolist") else value


def _iterations(spec: RunSpec) -> int:
    return spec.iterations(spec.train_images or SIZES[spec.task][0])


def _bytes(spec: RunSpec) -> int:
    """Return about how much memory a run takes beside others."""
    if spec.model in IMAGE_MODELS:
        return round(IMAGE_BYTES * spec.batch_size / 128)
    return bytes_per_run(spec, *SIZES[spec.task][1:])


def _work(spec: RunSpec) -> int:
    """Return how many weights a run moves in all its iterations; on images they count wherever they are used."""
    if spec.model in IMAGE_MODELS:
        return round(_iterations(spec) * PRODUCTS[spec.model] * spec.width_factor**2)
    _, features, classes = SIZES[spec.task]
    return _iterations(spec) * sum(out * fan_in for out, fan_in in layer_sizes(spec, features, classes))
