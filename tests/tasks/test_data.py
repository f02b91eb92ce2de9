"""Data is read as it is, moved the same way for every method, and never written to."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets
from torchvision.transforms import v2

from hdlib.tasks import DataNotFoundError, load_data
from hdlib.tasks.data import MNIST_BYTES, require_data
from hdlib.tasks.images import MEAN, PADDING, STD, draw_moves, move, normalise


def test_an_image_folder_is_cifar10_and_stays_as_it_is(image_folder, monkeypatch):
    monkeypatch.setenv("HDLIB_DATA", str(image_folder))
    before = sorted(image_folder.rglob("*"))
    with pytest.warns(UserWarning, match=r"holds 240 \+ 40 images and CIFAR-10 has 50,000 \+ 10,000"):
        require_data("cifar10")
    data = load_data("cifar10")
    assert data.train_x.dtype == torch.uint8 and data.train_x.shape == (240, 32, 32, 3)
    assert data.valid_x.shape == (40, 32, 32, 3)
    assert data.train_y.tolist() == [label for label in range(10) for _ in range(24)]
    assert data.source == "CIFAR-10, image folder, png files, 240 + 40 images"
    with Image.open(image_folder / "cifar10" / "train" / "class1" / "0002.png") as image:
        np.testing.assert_array_equal(data.train_x[26], np.asarray(image))
    assert sorted(image_folder.rglob("*")) == before
    assert load_data("cifar10") is data  # decoded once


def test_a_part_of_the_images_is_the_same_whenever_it_is_asked_for(image_folder, monkeypatch):
    monkeypatch.setenv("HDLIB_DATA", str(image_folder))
    data = load_data("cifar10")
    part, more = data.part(60), data.part(90)
    assert len(part.train_y) == 60 and torch.equal(part.train_x, more.train_x[:60])
    assert len(set(part.train_y.tolist())) == 10
    assert torch.equal(part.valid_x, data.valid_x)
    with pytest.raises(ValueError, match="train_images is 241 but there are 240"):
        data.part(241)


@pytest.mark.parametrize("damage", ["empty", "classes", "sizes"])
def test_an_image_folder_that_cannot_be_used_is_named(tmp_path, monkeypatch, damage):
    monkeypatch.setenv("HDLIB_DATA", str(tmp_path))
    for part in ("train", "test"):
        for i, name in enumerate(("cat", "dog")):
            folder = tmp_path / "cifar10" / part / (name + ("s" if damage == "classes" and part == "test" else ""))
            folder.mkdir(parents=True)
            if damage != "empty":
                side = 32 + (i if damage == "sizes" else 0)
                Image.new("RGB", (side, side)).save(folder / "a.png")
    with pytest.raises(DataNotFoundError, match=r"cifar10|CIFAR-10") as refused:
        load_data("cifar10")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("size", "fault"),
    [(None, "t10k-labels-idx1-ubyte is missing"), (9, "t10k-labels-idx1-ubyte has 9 bytes of 10,008")],
)
def test_a_file_of_mnist_that_is_missing_or_too_short_is_named(tmp_path, monkeypatch, size, fault):
    monkeypatch.setenv("HDLIB_DATA", str(tmp_path))
    monkeypatch.setattr(datasets.MNIST, "mirrors", [])
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, whole in MNIST_BYTES.items():
        if not name.startswith("t10k-labels"):
            with (raw / name).open("wb") as file:
                file.truncate(whole)
        elif size is not None:
            (raw / name).write_bytes(bytes(size))
    with pytest.raises(DataNotFoundError, match=fault) as refused:
        require_data("mnist")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        (["data_batch_2"], "data_batch_1 is missing"),
        (["data_batch_1", "data_batch_2"], "data_batch_1, of 9 bytes, has another checksum than the original"),
        ([], "is not in .* could not be downloaded"),
    ],
)
def test_a_file_of_cifar10_that_is_missing_or_damaged_is_named(tmp_path, monkeypatch, files, fault):
    monkeypatch.setenv("HDLIB_DATA", str(tmp_path))
    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:9/none")
    (tmp_path / "cifar-10-batches-py").mkdir()
    for name in files:
        (tmp_path / "cifar-10-batches-py" / name).write_bytes(bytes(9))
    with pytest.raises(DataNotFoundError, match=fault) as refused:
        require_data("cifar10")
    assert "\n" not in str(refused.value)


def test_moves_depend_on_the_seed_and_the_epoch_alone():
    moves = draw_moves(0, 1, 5000)
    assert torch.equal(moves, draw_moves(0, 1, 5000))
    assert not torch.equal(moves, draw_moves(0, 2, 5000))
    assert not torch.equal(moves, draw_moves(1, 1, 5000))
    assert 0.45 < moves[:, 0].double().mean() < 0.55
    assert set(moves[:, 1].tolist()) == set(moves[:, 2].tolist()) == set(range(2 * PADDING + 1))


def test_a_moved_image_is_torchvisions_mirrored_and_cropped_one():
    images = torch.randint(256, (40, 32, 32, 3), dtype=torch.uint8)
    moves = draw_moves(3, 1, 40)
    moved = move(images, moves)
    assert moved.shape == images.shape and moved.dtype == torch.uint8
    for image, (flip, down, right), result in zip(images, moves.tolist(), moved, strict=True):
        padded = v2.functional.pad(image.permute(2, 0, 1), [PADDING] * 4)
        expected = v2.functional.crop(padded, down, right, 32, 32)
        expected = v2.functional.horizontal_flip(expected) if flip else expected
        assert torch.equal(result.permute(2, 0, 1), expected)


def test_normalised_images_are_torchvisions_in_channels_last_memory():
    images = torch.randint(256, (5, 32, 32, 3), dtype=torch.uint8)
    expected = v2.functional.normalize(images.permute(0, 3, 1, 2) / 255, MEAN, STD)
    ours = normalise(images)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    assert ours.is_contiguous(memory_format=torch.channels_last)
