"""What all tests share: one thread a process, and specs that train in a moment."""

import gc
import os

import numpy as np
import pytest
import torch
from PIL import Image

from hdlib.runs import RunSpec

torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # of kernels and other processes, whose threads would wait for each other's cores
gc.set_threshold(100_000)  # processes hold the book's records, among which there is no garbage to look for


LONGEST = ("test_site.py", "test_pages.py")  # to begin with: a file is one process's, and the last one's would be alone


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture
def tiny() -> RunSpec:
    """Logistic regression on the digits, 24 iterations."""
    return RunSpec(task="digits", method="sgd_hd", alpha0=0.01, beta=1e-3, epochs=2)


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """A data folder with a tiny CIFAR-10 as images: ten classes of one colour each, 24 + 4 images, noisy."""
    root = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    colours = generator.integers(0, 256, (10, 1, 1, 3))
    for part, count in (("train", 24), ("test", 4)):
        for label, colour in enumerate(colours):
            folder = root / "cifar10" / part / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(colour + generator.normal(0, 40, (32, 32, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i:04}.png")
    return root


@pytest.fixture
def tiny_vgg(image_folder, monkeypatch) -> RunSpec:
    """A narrow VGG on those images, 4 iterations of 64 an epoch, the last one of 48."""
    monkeypatch.setenv("HDLIB_DATA", str(image_folder))
    return RunSpec(
        task="cifar10",
        model="vgg",
        method="adam_hd",
        alpha0=1e-3,
        beta=1e-8,
        epochs=3,
        batch_size=64,
        width_factor=1 / 32,
    )
