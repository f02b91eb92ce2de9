"""The kernels of `fused=True`: kernels.cpp on the CPU, _triton.py on a GPU, each made when it is first needed.

Compiling the first takes about two seconds, once per machine; the library is kept in the user's cache folder. Where
there is no C++ compiler, or no folder to write to, `library()` is None and the optimisers compute with torch's own
kernels; so they do where `gpu()` is None.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from ctypes import c_double, c_int, c_int64, c_uint8, c_uint64
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("kernels.cpp")
FLAGS = ["-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC"]
DTYPES = {torch.float32: "float32", torch.float64: "float64"}


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the compiled kernels, or None where they can't be had."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return None
    try:
        # openmp=simd still vectorises the loops where the compiler has no threads
        for openmp in ("-fopenmp", "-fopenmp-simd"):
            path = _cached([*compiler.split(), *FLAGS, openmp])
            if isinstance(path, Path):
                return ctypes.CDLL(str(path))
        reason = path
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # no home, a full disk, one that hangs
        reason = str(error)
    warnings.warn(
        f"{compiler} cannot compile hdlib's kernels ({reason}), so fused=True computes with torch's own operations, "
        "which go through the memory more often: name a C++ compiler in CXX.",
        stacklevel=2,
    )
    return None


@functools.cache
def gpu(device: torch.device) -> Any:
    """Return the module of a GPU's kernels, tried there once, or None where they can't be had."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    try:
        kernels = importlib.import_module("hdlib.optim._triton")
        one = torch.ones(1, device=device)
        kernels.adam_sums([[one] * 4], [one], (0.9, 0.999), 1e-8, 1.0, 0.0, 0.0)
    except ImportError:  # torch has no Triton on this system
        return None
    except Exception as error:  # Triton needs a C compiler
        reason = str(error).strip().splitlines()
        warnings.warn(
            f"Triton cannot run here ({reason[0] if reason else type(error).__name__}), so hypergradients are computed "
            "by torch's operations, which go through the memory more often.",
            stacklevel=2,
        )
        return None
    return kernels


def _cached(command: list[str]) -> Path | str:
    """Return the library that the command makes, from the cache or new, or the last that it says where it fails."""
    source = SOURCE.read_bytes()
    key = hashlib.sha256(source + "\0".join([*command, platform.machine(), _cpu(), torch.__version__]).encode())
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hdlib"
    path = folder / f"kernels-{key.hexdigest()[:16]}.so"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    # several processes may compile at the same time: each writes its own file and moves it into place whole
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made = Path(scratch) / path.name
        done = subprocess.run(
            [*command, str(SOURCE), "-o", str(made)], capture_output=True, text=True, timeout=120, check=False
        )
        if done.returncode != 0 or not made.exists():
            return next(iter(done.stderr.strip().splitlines()[-1:]), "it fails")
        made.replace(path)
    return path


def _cpu() -> str:
    """Return what tells processors apart that run different instructions: a home folder may serve many machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


def addresses(tensors: Sequence[Tensor]) -> ctypes.Array[c_uint64]:
    """Return where the tensors' elements begin."""
    return (c_uint64 * len(tensors))(*[t.data_ptr() for t in tensors])


def lengths(tensors: Sequence[Tensor]) -> ctypes.Array[c_int64]:
    """Return how many elements the tensors have."""
    return (c_int64 * len(tensors))(*[t.numel() for t in tensors])


def doubles(values: Sequence[float]) -> ctypes.Array[c_double]:
    """Return numbers, one per tensor."""
    return (c_double * len(values))(*values)


def booleans(values: Sequence[bool]) -> ctypes.Array[c_uint8]:
    """Return flags, one per tensor."""
    return (c_uint8 * len(values))(*values)


def call(name: str, tensors: Sequence[Tensor], *arguments: object) -> None:
    """Call a kernel for the precision of the tensors, which it gets first."""
    function = getattr(library(), f"{name}_{DTYPES[tensors[0].dtype]}")
    converted = [c_int(a) if isinstance(a, int) else c_double(a) if isinstance(a, float) else a for a in arguments]
    function(c_int64(len(tensors)), lengths(tensors), addresses(tensors), *converted)


def four() -> ctypes.Array[c_double]:
    """Return room for the sums of a pass: g.d, |g|^2 and |d|^2 with the last step's d, and g.d with this step's."""
    return (c_double * 4)()
