"""Kernels whose imports are done when they start: each is forked from one process that imported what notebooks need.

To import torch and seaborn takes longer than to show what is recorded, and a book has many pages. hdlib itself, the
environment and the folder are each kernel's own.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import weakref
from collections.abc import Set
from contextlib import suppress
from multiprocessing.process import BaseProcess
from typing import Any, ClassVar

from jupyter_client import AsyncKernelManager
from jupyter_client.provisioning import LocalProvisioner

SHOWING = ["ipykernel.kernelapp", "scipy.stats", "seaborn"]  # what a notebook imports beside those that train


class ForkedKernelManager(AsyncKernelManager):
    """Jupyter's manager of kernels, whose kernels are forked on Linux; elsewhere libraries may not survive a fork.

    The first kernel that a process asks for waits for the imports, as any kernel does; the others do not. They look
    for modules where that process does, and end with it.
    """

    _known: ClassVar[weakref.WeakSet[ForkedKernelManager]] = weakref.WeakSet()

    @classmethod
    def signal_all(cls, number: int, besides: Set[ForkedKernelManager] = frozenset()) -> set[ForkedKernelManager]:
        """Send a signal to the kernels that this process started and that have not ended; return their managers.

        Args:
            number: the signal's.
            besides: managers whose kernels are left alone.
        """
        told = set()
        for manager in set(cls._known) - besides:
            process = getattr(manager.provisioner, "process", None)
            if process is not None:
                told.add(manager)
                with suppress(OSError):  # it has ended meanwhile
                    process.send_signal(number)
        return told

    async def _async_pre_start_kernel(self, **options: Any) -> tuple[list[str], dict[str, Any]]:
        if self.provisioner is None and sys.platform == "linux":
            self.provisioner = _Provisioner(kernel_spec=self.kernel_spec, parent=self)
        self._known.add(self)
        return await super()._async_pre_start_kernel(**options)


class _Provisioner(LocalProvisioner):
    async def launch_kernel(self, cmd: list[str], **options: Any) -> dict[str, Any]:
        from hdlib.runs.processes import TRAINING, process_context, uninterrupted

        self.cwd = options.get("cwd") or os.getcwd()
        process = process_context([*TRAINING, *SHOWING]).Process(target=_run, args=(cmd, self.cwd, options["env"]))
        with uninterrupted():
            process.start()
        self.process = _Popen(process)
        self.pid = self.pgid = process.pid  # it begins a session
        return self.connection_info


class _Popen:
    """A process of multiprocessing, with what Jupyter asks of one of subprocess."""

    stdin = stdout = stderr = None

    def __init__(self, process: BaseProcess) -> None:
        self.process = process

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self) -> int | None:
        self.process.join()
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.process.pid, number)


def _run(command: list[str], folder: str, environment: dict[str, str]) -> None:
    """Be the kernel that a command would have started."""
    os.setsid()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    import matplotlib
    from ipykernel.kernelapp import launch_new_instance

    from hdlib.runs.processes import end_with_parent

    threading.Thread(target=end_with_parent, daemon=True).start()
    matplotlib.rcParams["backend"] = environment.get("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    launch_new_instance(argv=command[command.index("-m") + 2 :])
