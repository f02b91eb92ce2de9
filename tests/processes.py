"""Other processes as tests see them: one may end between two looks, and is then a zombie until its parent asks."""

from collections.abc import Iterable
from contextlib import suppress

import psutil


def alive(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    found = []
    for one in processes:
        with suppress(psutil.NoSuchProcess):
            if one.status() != psutil.STATUS_ZOMBIE:
                found.append(one)
    return found


def kernels(process: psutil.Process) -> list[psutil.Process]:
    """Return the Jupyter kernels that a process or one of its children started."""
    found = []
    for one in process.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "ipykernel_launcher" in one.cmdline():
                found.append(one)
    return found
