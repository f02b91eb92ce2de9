"""Processes beside this one: how they start, that they end with it, and that they train in turn."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from multiprocessing import resource_tracker
from multiprocessing.context import BaseContext

from filelock import FileLock

TURN = "HDLIB_TURN"  # environment variable: the lock file of processes that are to train one after the other
# what a process imports that trains; torch asks for its compiler when an optimiser is made
TRAINING = ["pandas", "psutil", "pyarrow.parquet", "pydantic.main", "torch", "torch._dynamo", "tqdm"]


def process_context(imported: Sequence[str] = TRAINING) -> BaseContext:
    """Return the context in which processes start: on Linux forked from one that has imported what they need.

    That one is there from the first to the end of this process; it imports nothing of hdlib, and trains nothing.
    Elsewhere libraries may not survive a fork, and processes start anew.

    Args:
        imported: the modules; those count that are asked for first.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    forked = multiprocessing.get_context("forkserver")
    forked.set_forkserver_preload(list(imported))
    return forked


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back a terminal's interruption until the end, where the system can.

    A process that starts meanwhile goes on holding it back: it may come while that imports.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # or else it starts with the first process, and lets interruptions through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def in_turn() -> Iterator[None]:
    """Wait until no other process trains whose environment names the same lock file, and keep others waiting."""
    with FileLock(os.environ[TURN]) if os.environ.get(TURN) else nullcontext():
        yield


def end_with_parent() -> None:
    """Wait for the end of the process that asked for this one, however it comes, and end too."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
