"""Data sets, whole, as tensors on the device: minibatches are slices, not a pipeline of images.

MNIST comes through torchvision into `data/`, or the folder that the environment variable HDLIB_DATA names;
a folder that already holds it is used as it is and never written to. scikit-learn's bundled handwritten
digits need no download and serve tests and first tries.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

TASKS = ("mnist", "digits")
SIZES = {"mnist": (60_000, 784, 10), "digits": (1_500, 64, 10)}  # training examples, features, classes


class DataNotFoundError(ValueError):
    """A data set is neither on this machine nor could be downloaded."""


@dataclass(frozen=True)
class Data:
    """A classification data set on one device.

    Inputs are normalised float tensors, labels int64. What the paper calls validation is the test set.
    """

    train_x: Tensor  # [N, features]
    train_y: Tensor  # [N]
    valid_x: Tensor  # [M, features]
    valid_y: Tensor  # [M]
    classes: int
    source: str  # what exactly was read, for the record

    @property
    def features(self) -> int:
        return self.train_x[0].numel()

    def scaled(self, factor: float) -> Data:
        """Return the data with its inputs multiplied."""
        if factor == 1:
            return self
        return replace(self, train_x=self.train_x * factor, valid_x=self.valid_x * factor)


def data_folder() -> Path:
    """Return HDLIB_DATA, which must exist, or `data` below the working directory."""
    named = os.environ.get("HDLIB_DATA")
    if named and not Path(named).is_dir():
        raise DataNotFoundError(
            f"HDLIB_DATA names {named!r}, which is not a folder: unset it, or name a folder that holds MNIST/raw "
            "or that torchvision may download into."
        )
    return Path(named or "data")


@lru_cache(maxsize=2)
def load_data(task: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Data:
    """Return a data set whole, normalised as in the authors' code, on a device.

    Raises:
        DataNotFoundError: it is not there and cannot be downloaded.
    """
    if task == "digits":
        return _digits(device, dtype)
    if task == "mnist":
        return _mnist(device, dtype)
    raise ValueError(f"task is {task!r}: it must be one of {', '.join(map(repr, TASKS))}.")


def require_data(task: str) -> None:
    """Raise DataNotFoundError if a task's data is not at hand; download it where it may be."""
    if task == "mnist":
        _mnist_sets()


def _mnist_sets():
    from torchvision.datasets import MNIST

    folder = data_folder()
    try:
        return [MNIST(folder, train=train, download=False) for train in (True, False)]
    except RuntimeError:
        pass
    try:
        return [MNIST(folder, train=train, download=True) for train in (True, False)]
    except Exception as error:
        raise DataNotFoundError(
            f"MNIST is not in {str(folder)!r} and could not be downloaded ({type(error).__name__}): "
            "set HDLIB_DATA to a folder that holds MNIST/raw, or connect to a network."
        ) from error


def _mnist(device: str, dtype: torch.dtype) -> Data:
    tensors = []
    for part in _mnist_sets():
        x = part.data.to(device).flatten(1).to(dtype).div_(255).sub_(0.1307).div_(0.3081)
        tensors += [x, part.targets.to(device)]
    return Data(*tensors, classes=10, source="MNIST, original IDX files, 60,000 + 10,000 images")


def _digits(device: str, dtype: torch.dtype) -> Data:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(x, dtype=dtype)[order].div_(8).sub_(1).to(device)
    y = torch.tensor(y)[order].to(device)
    cut = 1500
    source = "scikit-learn's handwritten digits, 1,500 + 297 images"
    return Data(x[:cut], y[:cut], x[cut:], y[cut:], classes=10, source=source)
