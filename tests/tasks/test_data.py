"""Data is read as it is, moved the same way for every method, and never written to."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import datasets
from torchvision.transforms import v2

from hdlib.tasks import Data, DataNotFoundError, load_data
from hdlib.tasks.data import MNIST_BYTES, data_folder, require_data
from hdlib.tasks.images import PADDING, draw_moves, move, normalise, read_folder


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
    assert data.part(240).train_y.bincount().tolist() == [24] * 10
    numbered = Data(torch.arange(240)[:, None], torch.arange(240), torch.zeros(1), torch.zeros(1), 240, "numbers")
    assert numbered.part(5).train_y.tolist() == [44, 78, 65, 162, 239]  # every record of a part so far is of these
    with pytest.raises(ValueError, match="train_images is 241 but there are 240"):
        data.part(241)


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        ("empty", "train' holds no images: give it a folder of .png or .jpg files for each class."),
        ("classes", "cifar10/test has the classes ['cats', 'dogs']: it must have those of train, ['cat', 'dog']."),
        ("sizes", "train' holds images of 2 sizes: they must all have one."),
    ],
)
def test_an_image_folder_that_cannot_be_used_is_named(tmp_path, monkeypatch, damage, fault):
    monkeypatch.setenv("HDLIB_DATA", str(tmp_path))
    for part in ("train", "test"):
        for i, name in enumerate(("cat", "dog")):
            folder = tmp_path / "cifar10" / part / (name + ("s" if damage == "classes" and part == "test" else ""))
            folder.mkdir(parents=True)
            if damage != "empty":
                side = 32 + (i if damage == "sizes" else 0)
                Image.new("RGB", (side, side)).save(folder / "a.png")
    with pytest.raises(DataNotFoundError) as refused:
        load_data("cifar10")
    assert str(refused.value).endswith(fault) and "\n" not in str(refused.value)


def test_an_image_folder_may_hold_jpegs_and_grey_images_and_other_files(tmp_path):
    (tmp_path / "cat").mkdir()
    for name in ("a.JPG", "b.jpeg", "c.png"):
        Image.new("L", (32, 32), 200).save(tmp_path / "cat" / name)
    (tmp_path / "cat" / "labels.txt").touch()
    (tmp_path / "notes.png").touch()
    x, y, classes = read_folder(tmp_path)
    assert x.shape == (3, 32, 32, 3) and (x == 200).all()
    assert y.tolist() == [0, 0, 0] and classes == ["cat"]


def test_mnist_is_normalised_and_its_test_set_validates(tmp_path, monkeypatch):
    monkeypatch.setenv("HDLIB_DATA", str(tmp_path))
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(256, size=(5, 28, 28)).astype(np.uint8)
    labels = np.array([3, 1, 4, 1, 5], dtype=np.uint8)
    for name, values in zip(MNIST_BYTES, (pixels[:3], labels[:3], pixels[3:], labels[3:]), strict=True):
        shape = b"".join(size.to_bytes(4, "big") for size in values.shape)
        (raw / name).write_bytes(bytes([0, 0, 8, values.ndim]) + shape + values.tobytes())
    data = load_data("mnist", dtype=torch.float64)
    expected = (pixels.reshape(5, 784) / 255 - 0.1307) / 0.3081
    np.testing.assert_allclose(data.train_x, expected[:3], rtol=1e-12)
    np.testing.assert_allclose(data.valid_x, expected[3:], rtol=1e-12)
    assert (data.train_y.tolist(), data.valid_y.tolist()) == ([3, 1, 4], [1, 5])
    assert data.train_x.dtype == torch.float64 and data.features == 784 and data.classes == 10


def test_cifar10_is_read_from_its_own_batches_where_these_are_there_too(image_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HDLIB_DATA", str(tmp_path))
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setitem(datasets.CIFAR10.meta, "md5", None)
    (tmp_path / "cifar10").symlink_to(image_folder / "cifar10")
    folder = tmp_path / datasets.CIFAR10.base_folder
    folder.mkdir()
    names = [name for name, _ in [*datasets.CIFAR10.train_list, *datasets.CIFAR10.test_list]]
    for i, name in enumerate(names):
        batch = {"data": np.full((1, 3072), 10 * i, dtype=np.uint8), "labels": [i]}
        (folder / name).write_bytes(pickle.dumps(batch))
    classes = {"label_names": [f"class {i}" for i in range(10)]}
    (folder / datasets.CIFAR10.meta["filename"]).write_bytes(pickle.dumps(classes))
    data = load_data("cifar10")
    assert data.train_x.shape == (5, 32, 32, 3) and data.train_x[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 40]
    assert (data.train_y.tolist(), data.valid_y.tolist(), data.classes) == ([0, 1, 2, 3, 4], [5], 10)
    assert (data.valid_x == 50).all() and data.source == "CIFAR-10, original Python batches, 5 + 1 images"


def test_the_digits_are_scikit_learns_each_once_in_an_order_that_stays():
    data = load_data("digits", dtype=torch.float64)
    assert (len(data.train_y), len(data.valid_y)) == (1500, 297)
    known = {image.tobytes(): label for image, label in zip(*load_digits(return_X_y=True), strict=True)}
    images = (torch.cat([data.train_x, data.valid_x]) + 1) * 8  # between -1 and 1
    assert [known.pop(image.tobytes()) for image in images.numpy()] == [*data.train_y, *data.valid_y]
    assert data.train_y[:6].tolist() == [6, 5, 5, 7, 9, 9]  # every record of them so far is of these


def test_scaled_inputs_are_scaled_to_train_and_to_validate_with():
    data = load_data("digits")
    scaled = data.scaled(0.5)
    assert torch.equal(scaled.train_x, data.train_x / 2) and torch.equal(scaled.valid_x, data.valid_x / 2)
    assert torch.equal(scaled.train_y, data.train_y) and data.scaled(1.0) is data


def test_data_is_looked_for_below_the_working_directory_unless_told_otherwise(tmp_path, monkeypatch):
    monkeypatch.delenv("HDLIB_DATA", raising=False)
    assert str(data_folder()) == "data"
    monkeypatch.setenv("HDLIB_DATA", str(tmp_path))
    assert data_folder() == tmp_path


def test_an_unknown_task_is_named():
    with pytest.raises(ValueError, match="task is 'imagenet': it must be one of 'mnist', 'digits', 'cifar10'"):
        load_data("imagenet")


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
    assert not torch.equal(draw_moves(0, 2, 5000), draw_moves(1, 1, 5000))
    assert draw_moves(2, 3, 2).tolist() == [[1, 4, 5], [1, 6, 2]]  # every record of images so far is of these
    assert 0.45 < moves[:, 0].double().mean() < 0.55
    assert set(moves[:, 1].tolist()) == set(moves[:, 2].tolist()) == set(range(9))  # four pixels on each side


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
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the authors' code
    expected = v2.functional.normalize(images.permute(0, 3, 1, 2) / 255, mean, std)
    ours = normalise(images)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    assert ours.is_contiguous(memory_format=torch.channels_last)
