"""Colour images as bytes on the device: reading an image folder, random crops and flips, normalisation.

Images are uint8, [N, height, width, channels], black where a crop reaches over the edge. What a model sees is
[N, channels, height, width] in channels-last memory, normalised as in the authors' code.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, which the authors use for CIFAR-10
PADDING = 4  # pixels on each side, before a random crop of the image's own size
SUFFIXES = (".png", ".jpg", ".jpeg")


def read_folder(folder: Path) -> tuple[Tensor, Tensor, list[str]]:
    """Read `folder/<class>/*.png|jpg`, in sorted order.

    Returns:
        Images [N, height, width, 3] as uint8, labels [N] as int64, and the names of the classes.

    Raises:
        ValueError: there are no images, or they differ in size.
    """
    files = image_files(folder)
    if not files:
        raise ValueError(f"{str(folder)!r} holds no images: give it a folder of .png or .jpg files for each class.")
    classes = class_names(folder)
    labels = [classes.index(path.parent.name) for path in files]
    with ThreadPoolExecutor() as pool:  # PIL decodes outside the interpreter's lock
        images = list(pool.map(_decode, files))
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        raise ValueError(f"{str(folder)!r} holds images of {len(shapes)} sizes: they must all have one.")
    return torch.from_numpy(np.stack(images)), torch.tensor(labels), classes


def class_names(folder: Path) -> list[str]:
    """Return the names of a folder's folders, sorted."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def image_files(folder: Path) -> list[Path]:
    """Return `folder/<class>/*.png|jpg`, class by class, sorted."""
    paths = (path for name in class_names(folder) for path in sorted((folder / name).iterdir()))
    return [path for path in paths if path.suffix.lower() in SUFFIXES]


def _decode(path: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def epoch_seed(seed: int, epoch: int) -> int:
    """Return what the generators of a run's epoch start from: another number for each seed and epoch."""
    return seed * 1_000_003 + epoch


def draw_moves(seed: int, epoch: int, size: int) -> Tensor:
    """Return each image's flip and crop of an epoch, [size, 3] on the CPU: mirrored or not, rows and columns down.

    They depend on the seed and the epoch alone, so that every method, device and precision sees the same images.
    """
    generator = torch.Generator().manual_seed(epoch_seed(seed, epoch) * 2 + 1)
    flips = torch.randint(2, (size, 1), generator=generator)
    offsets = torch.randint(2 * PADDING + 1, (size, 2), generator=generator)
    return torch.cat([flips, offsets], dim=1)


def move(images: Tensor, moves: Tensor) -> Tensor:
    """Mirror and crop a batch, each image as its row of `moves` says: [B, height, width, channels], uint8."""
    _, height, width, _ = images.shape
    padded = F.pad(images, (0, 0, PADDING, PADDING, PADDING, PADDING))
    flip, down, right = moves.unbind(1)
    column = torch.arange(width, device=images.device)
    rows = down[:, None] + torch.arange(height, device=images.device)
    columns = right[:, None] + torch.where(flip[:, None] == 1, width - 1 - column, column)
    image = torch.arange(len(images), device=images.device)
    return padded[image[:, None, None], rows[:, :, None], columns[:, None, :]]


def normalise(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return what a model sees of bytes: [B, channels, height, width], channels-last in memory."""
    scale, shift = _affine(images.device, dtype)
    return (images.to(dtype) * scale + shift).permute(0, 3, 1, 2)


@lru_cache(maxsize=4)
def _affine(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    mean, std = torch.tensor(MEAN, dtype=torch.float64), torch.tensor(STD, dtype=torch.float64)
    return (1 / (255 * std)).to(device, dtype), (-mean / std).to(device, dtype)
