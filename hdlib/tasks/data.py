"""Data sets, whole, as tensors on the device: minibatches are slices, not a pipeline of images.

MNIST and CIFAR-10 come through torchvision into `data/`, or the folder that the environment variable HDLIB_DATA
names; a folder that already holds them is used as it is and never written to. CIFAR-10 may also be an image folder
there, `cifar10/{train,test}/<class>/*.png|jpg`. scikit-learn's bundled handwritten digits need no download and serve
tests and first tries.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from hdlib.tasks import images

# training examples, features, classes
SIZES = {"mnist": (60_000, 784, 10), "digits": (1_500, 64, 10), "cifar10": (50_000, 3072, 10)}
MNIST_PLACE = "MNIST/raw"
MNIST_BYTES = {
    "train-images-idx3-ubyte": 47_040_016,
    "train-labels-idx1-ubyte": 60_008,
    "t10k-images-idx3-ubyte": 7_840_016,
    "t10k-labels-idx1-ubyte": 10_008,
}
CIFAR10_PLACE = "cifar-10-batches-py or cifar10/train"
CIFAR10_IMAGES = [50_000, 10_000]  # to train and to test with


class DataNotFoundError(ValueError):
    """A data set is not on this machine as it is asked for, nor could be downloaded."""


@dataclass(frozen=True)
class Data:
    """A classification data set on one device.

    Inputs are normalised float tensors, or colour images as bytes (hdlib.tasks.images), labels int64. What the
    paper calls validation is the test set.
    """

    train_x: Tensor  # [N, features], or images: uint8, [N, height, width, 3]
    train_y: Tensor  # [N]
    valid_x: Tensor  # [M, features], or images
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

    @property
    def images(self) -> bool:
        """Whether inputs are bytes, to be moved and normalised batch by batch."""
        return self.train_x.dtype == torch.uint8

    def part(self, size: int) -> Data:
        """Return the same data with `size` training images of a fixed shuffle, the same for every seed.

        Raises:
            DataNotFoundError: there are not so many.
        """
        total = len(self.train_y)
        if size > total:
            raise DataNotFoundError(f"train_images is {size} but there are {total}: ask for that many at most.")
        kept = torch.randperm(total, generator=torch.Generator().manual_seed(0))[:size].to(self.train_y.device)
        return replace(self, train_x=self.train_x[kept], train_y=self.train_y[kept])


def data_folder() -> Path:
    """Return HDLIB_DATA, which must exist, or `data` below the working directory."""
    named = os.environ.get("HDLIB_DATA")
    if named and not Path(named).is_dir():
        raise DataNotFoundError(
            f"HDLIB_DATA names {named!r}, which is not a folder: unset it, or name a folder that holds the data sets "
            "or that torchvision may download into."
        )
    return Path(named or "data")


def load_data(task: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Data:
    """Return a data set whole, normalised as in the authors' code, on a device.

    Raises:
        DataNotFoundError: it is not there and cannot be downloaded.
    """
    if task not in SIZES:
        raise ValueError(f"task is {task!r}: it must be one of {', '.join(map(repr, SIZES))}.")
    return _load(task, device, dtype, None if task == "digits" else data_folder().absolute())


@lru_cache(maxsize=2)
def _load(task: str, device: str, dtype: torch.dtype, folder: Path | None) -> Data:
    if task == "digits":
        return _digits(device, dtype)
    if task == "mnist":
        return _mnist(folder, device, dtype)
    tensors, classes, source = _cifar10(folder)
    return Data(*(tensor.to(device) for tensor in tensors), classes=classes, source=source)


def require_data(task: str) -> None:
    """Raise DataNotFoundError if a task's data is not at hand; download it where it may be.

    An image folder that has not as many images as CIFAR-10, perhaps unpacked in part, is used with a warning.
    """
    if task == "mnist":
        _sets("MNIST", data_folder(), MNIST_PLACE)
    if task == "cifar10":
        folder = _cifar10_folder(data_folder())
        if folder is None:
            _sets("CIFAR10", data_folder(), CIFAR10_PLACE)
            return
        there = [len(images.image_files(folder / part)) for part in ("train", "test") if (folder / part).is_dir()]
        if there != CIFAR10_IMAGES:
            warnings.warn(
                f"{str(folder)!r} holds {' + '.join(f'{n:,}' for n in there)} images and CIFAR-10 has "
                f"{' + '.join(f'{n:,}' for n in CIFAR10_IMAGES)}: if that is not meant, unpack it again and forget the "
                "records made from it, whose source says how many there were.",
                stacklevel=3,
            )


def _sets(name: str, folder: Path, place: str):
    """Return torchvision's training and test set of a name, downloaded where they are not at hand."""
    from torchvision import datasets

    made = getattr(datasets, name)
    try:
        return [made(folder, train=train, download=False) for train in (True, False)]
    except Exception:  # whatever missing and damaged files make it raise
        pass
    try:
        return [made(folder, train=train, download=True) for train in (True, False)]
    except Exception as error:
        where, fault = _fault(name, folder)
        if fault:
            raise DataNotFoundError(
                f"{name} in {str(folder)!r} is not whole, {fault}: replace that file, or delete {where} and connect to "
                "a network."
            ) from error
        raise DataNotFoundError(
            f"{name} is not in {str(folder)!r} and could not be downloaded ({type(error).__name__}): "
            f"set HDLIB_DATA to a folder that holds {place}, or connect to a network."
        ) from error


def _fault(name: str, folder: Path) -> tuple[str, str]:
    """Return a data set's place, and which of its files is missing or damaged; nothing where all are there, or none."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    if name == "MNIST":
        place, names = MNIST_PLACE, list(MNIST_BYTES)
    else:
        place, sums = CIFAR10.base_folder, dict([*CIFAR10.train_list, *CIFAR10.test_list])
        sums[CIFAR10.meta["filename"]] = CIFAR10.meta["md5"]
        names = list(sums)
    sizes = {file: path.stat().st_size for file in names if (path := folder / place / file).is_file()}
    for file in names if sizes else ():
        if file not in sizes:
            return place, f"{file} is missing"
        if name == "MNIST" and sizes[file] < MNIST_BYTES[file]:
            return place, f"{file} has {sizes[file]:,} bytes of {MNIST_BYTES[file]:,}"
        if name == "CIFAR10" and not check_integrity(folder / place / file, sums[file]):
            return place, f"{file}, of {sizes[file]:,} bytes, has another checksum than the original"
    return place, ""


def _mnist(folder: Path, device: str, dtype: torch.dtype) -> Data:
    tensors = []
    for part in _sets("MNIST", folder, MNIST_PLACE):
        x = part.data.to(device).flatten(1).to(dtype).div_(255).sub_(0.1307).div_(0.3081)
        tensors += [x, part.targets.to(device)]
    return Data(*tensors, classes=10, source="MNIST, original IDX files, 60,000 + 10,000 images")


def _cifar10_folder(folder: Path) -> Path | None:
    """Return the image folder that stands for CIFAR-10, unless torchvision's own files are there."""
    images_folder = folder / "cifar10"
    chosen = (images_folder / "train").is_dir() and not (folder / "cifar-10-batches-py").is_dir()
    return images_folder if chosen else None


@lru_cache(maxsize=1)
def _cifar10(folder: Path) -> tuple[list[Tensor], int, str]:
    """Return training images and labels, test images and labels, the number of classes, and what was read."""
    images_folder = _cifar10_folder(folder)
    if images_folder is None:
        sets = _sets("CIFAR10", folder, CIFAR10_PLACE)
        tensors = [torch.as_tensor(column) for part in sets for column in (part.data, part.targets)]
        classes, kind = len(sets[0].classes), "original Python batches"
    else:
        try:
            train_x, train_y, names = images.read_folder(images_folder / "train")
            test_x, test_y, test_names = images.read_folder(images_folder / "test")
        except (OSError, ValueError) as error:
            raise DataNotFoundError(f"The image folder of CIFAR-10 cannot be read: {error}") from error
        if test_names != names:
            raise DataNotFoundError(f"cifar10/test has the classes {test_names}: it must have those of train, {names}.")
        tensors, classes = [train_x, train_y, test_x, test_y], len(names)
        suffixes = {path.suffix.lower() for path in (images_folder / "train" / names[0]).iterdir()}
        kind = f"image folder, {' and '.join(sorted(suffixes & set(images.SUFFIXES))).replace('.', '')} files"
    return tensors, classes, f"CIFAR-10, {kind}, {len(tensors[1]):,} + {len(tensors[3]):,} images"


def _digits(device: str, dtype: torch.dtype) -> Data:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(x, dtype=dtype)[order].div_(8).sub_(1).to(device)
    y = torch.tensor(y)[order].to(device)
    cut = 1500
    source = "scikit-learn's handwritten digits, 1,500 + 297 images"
    return Data(x[:cut], y[:cut], x[cut:], y[cut:], classes=10, source=source)
