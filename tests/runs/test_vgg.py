"""A network for images learns, the same on every repetition, and goes on from where it was stopped."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from hdlib.runs import METHODS, SpecError, Store, sweep, train
from hdlib.runs.checkpoint import Checkpoints
from hdlib.runs.train import Training, data_of, train_each
from hdlib.tasks.images import draw_moves


def same(first, second):
    pd.testing.assert_frame_equal(first.epochs, second.epochs, check_exact=True)
    pd.testing.assert_frame_equal(first.trace, second.trace, check_exact=True)
    assert (first.outcome, first.iterations) == (second.outcome, second.iterations)


def test_a_narrow_vgg_learns_coloured_images(tiny_vgg):
    spec = tiny_vgg.with_(epochs=12, alpha0=3e-3, width_factor=1 / 16)
    record = train(spec)
    assert record.epochs["train_loss"].iloc[-1] < 0.75 * record.epochs["train_loss"].iloc[0]
    assert record.iterations == 12 * 4
    assert len(record.trace) == 48 and len(record.epochs) == 13
    assert record.provenance["data"].startswith("CIFAR-10, image folder")
    assert record.provenance["epoch_seconds"] > 0


def test_a_vision_transformer_learns_them_and_repeats_itself_exactly(tiny_vgg):
    spec = tiny_vgg.with_(model="vit", width_factor=1.0, epochs=4, beta="auto", rule="auto")
    record = train(spec)
    assert record.epochs["train_loss"].iloc[-1] < 0.75 * record.epochs["train_loss"].iloc[0]
    assert record.epochs["alpha"].iloc[-1] != spec.alpha0
    same(record, train(spec))


@pytest.mark.parametrize("variant", ["authors", "paper", "blog"])
def test_a_vgg_run_repeats_itself_exactly(tiny_vgg, variant):
    spec = tiny_vgg.with_(variant=variant, epochs=2)
    torch.manual_seed(1)
    first = train(spec)
    torch.manual_seed(2)
    same(first, train(spec))


def test_every_method_sees_the_same_images_and_dropout(tiny_vgg):
    still = dict(alpha0=0.0, beta=0.0, weight_decay=0.0, epochs=1)
    losses = {train(tiny_vgg.with_(method=m, **still)).trace["loss"].round(6).tolist()[1] for m in METHODS}
    assert len(losses) == 1


def test_training_does_not_disturb_the_callers_random_numbers(tiny_vgg):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(tiny_vgg.with_(epochs=1))
    assert torch.equal(torch.rand(3), expected)


def test_runs_one_after_the_other_equal_each_alone(tiny_vgg):
    specs = [tiny_vgg.with_(method=method, beta=0.0, epochs=2) for method in ("adam", "sgd")]
    for spec, record in zip(specs, train_each(specs), strict=True):
        same(record, train(spec))


def test_runs_of_two_precisions_are_not_trained_together(tiny_vgg):
    with pytest.raises(SpecError, match="precision is 'float32' and 'bf16': give runs of one precision"):
        list(train_each([tiny_vgg, tiny_vgg.with_(precision="bf16")]))


def test_a_part_of_the_images_is_trained_on_and_all_test_images_validate(tiny_vgg):
    record = train(tiny_vgg.with_(train_images=100, epochs=2))
    assert record.iterations == 2 * 2
    assert (record.epochs["valid_accuracy"] * 40 % 1 == 0).all()
    with pytest.raises(ValueError, match="train_images is 241"):
        train(tiny_vgg.with_(train_images=241))


@pytest.mark.parametrize("precision", ["bf16", "float64"])
def test_other_precisions_stay_near_float32(tiny_vgg, precision):
    exact, other = train(tiny_vgg), train(tiny_vgg.with_(precision=precision))
    np.testing.assert_allclose(other.trace["loss"], exact.trace["loss"], rtol=0.05)
    assert not np.array_equal(other.trace["loss"], exact.trace["loss"])


def test_bf16_keeps_parameters_and_hypergradients_in_float32(tiny_vgg, tmp_path):
    spec = tiny_vgg.with_(precision="bf16", method="sgd_hd", beta=1e-3)
    train(spec, checkpoints=Checkpoints(tmp_path, epochs=1))
    state = Checkpoints(tmp_path).load(spec)
    kinds = {value.dtype for value in state["model"].values()} | {
        value.dtype
        for entry in state["optimizer"]["state"].values()
        for value in entry.values()
        if torch.is_tensor(value)
    }
    assert kinds == {torch.float32, torch.int64}


def test_bf16_is_the_precision_of_the_training_and_of_the_evaluation(tiny_vgg):
    spec = tiny_vgg.with_(precision="bf16", epochs=1)
    training = Training(spec, data_of(spec, "cpu", torch.float32), "cpu", torch.float32)
    found = set()
    training.model.register_forward_hook(lambda model, _, logits: found.add((model.training, logits.dtype)))
    training.start()
    training.run_epoch()
    assert found == {(True, torch.bfloat16), (False, torch.bfloat16)}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (dict(task="mnist"), "vgg and vit go with cifar10"),
        (dict(model="mlp"), "vgg and vit go with cifar10"),
        (dict(width_factor=0), "width_factor is 0"),
        (dict(train_images=0), "train_images is 0"),
        (dict(variant="vgg19"), "variant is 'vgg19'"),
        (dict(variant="paper", norm_start="uniform"), "norm_start is 'uniform' but variant 'paper' has no batch"),
        (
            dict(task="mnist", model="mlp", precision="bf16", width_factor=1.0),
            "precision is 'bf16' but the model is mlp",
        ),
        (dict(task="mnist", model="mlp"), "width_factor is 0.03125 but the model is mlp"),
    ],
)
def test_what_a_vgg_cannot_be_is_refused(tiny_vgg, fields, sentence):
    with pytest.raises(SpecError, match=sentence) as refused:
        tiny_vgg.with_(**fields)
    assert "\n" not in str(refused.value)


def test_tf32_needs_a_gpu(tiny_vgg):
    with pytest.raises(ValueError, match="precision is 'tf32' but the device is 'cpu'"):
        train(tiny_vgg.with_(precision="tf32"))


@pytest.mark.parametrize(("method", "beta"), [("sgdn_hd", 1e-3), ("adam_hd", 1e-8), ("prodigy", 0.0)])
def test_a_killed_run_goes_on_as_if_it_had_not_been(tiny_vgg, tmp_path, method, beta):
    spec = tiny_vgg.with_(method=method, beta=beta, epochs=10)
    code = (
        "import torch; torch.set_num_threads(1)\n"
        "from pathlib import Path\n"
        "from hdlib.runs import RunSpec, train\n"
        "from hdlib.runs.checkpoint import Checkpoints\n"
        f"kept = Checkpoints(Path({str(tmp_path)!r}), seconds=1e9, epochs=3)\n"
        f"train(RunSpec(**{spec.model_dump()!r}), checkpoints=kept)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ)
    while not list(tmp_path.glob("*.pt")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reached = Checkpoints(tmp_path).load(spec)["epoch"]
    assert 3 <= reached < 10 and reached % 3 == 0
    resumed = train(spec, checkpoints=Checkpoints(tmp_path))
    assert [visit["from_epoch"] for visit in resumed.provenance["visits"]] == [0, reached]
    same(train(spec), resumed)


def test_each_epoch_has_flips_and_crops_of_its_own(tiny_vgg):
    training = Training(tiny_vgg, data_of(tiny_vgg, "cpu", torch.float32), "cpu", torch.float32)
    for epoch in (1, 2):
        training.begin_epoch(epoch)
        assert torch.equal(training.moves, draw_moves(tiny_vgg.seed, epoch, len(training.data.train_y)))


def test_a_run_that_goes_on_adds_to_the_time_that_it_has_taken(tiny_vgg, tmp_path):
    checkpoints = Checkpoints(tmp_path, epochs=1)
    train(tiny_vgg, checkpoints=checkpoints)
    state = checkpoints.load(tiny_vgg)
    assert state["epoch"] == 2 and len(state["epoch_seconds"]) == 2 and state["seconds"] >= sum(state["epoch_seconds"])
    checkpoints.save(tiny_vgg, state | {"seconds": 1000.0, "epoch_seconds": [400.0, 600.0]})
    made = train(tiny_vgg, checkpoints=checkpoints).provenance
    assert 1000 < made["seconds"] < 1100 and made["epoch_seconds"] == 400


def test_a_sweep_goes_on_from_checkpoints_beside_its_store_and_discards_them(tiny_vgg, tmp_path):
    store = tmp_path / "store"
    checkpoints = Checkpoints.beside(store, epochs=2)
    train(tiny_vgg, checkpoints=checkpoints)
    assert [path.name for path in (tmp_path / "store.checkpoints").iterdir()] == [f"{tiny_vgg.key}.pt"]
    [record] = sweep([tiny_vgg], store, device="cpu", jobs=1)
    assert [visit["from_epoch"] for visit in record.provenance["visits"]] == [0, 2]
    assert not checkpoints.folder.exists()
    [kept] = Store(store).get([tiny_vgg])
    assert kept.provenance["visits"] == record.provenance["visits"]


def test_a_diverged_run_and_a_finished_one_leave_no_checkpoint_to_go_on_from(tiny_vgg, tmp_path):
    record = train(tiny_vgg.with_(method="sgd", beta=0.0, alpha0=1e30), checkpoints=Checkpoints(tmp_path, epochs=1))
    assert record.outcome == "diverged"
    train(tiny_vgg.with_(epochs=1), checkpoints=Checkpoints(tmp_path, epochs=1))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["truncated", "flipped", "other code", "other run", "foreign", "folder"])
def test_a_checkpoint_that_cannot_be_trusted_is_named_and_not_used(tiny_vgg, tmp_path, damage, monkeypatch):
    checkpoints = Checkpoints(tmp_path, epochs=2)
    train(tiny_vgg, checkpoints=checkpoints)
    [path] = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
    elif damage == "foreign":
        path.write_bytes(hashlib.sha256(b"a letter").digest() + b"a letter")
    elif damage == "folder":
        path.unlink()
        path.mkdir()
    elif damage == "other code":
        monkeypatch.setattr("hdlib.runs.checkpoint.code_version", lambda: "another")
    asked = tiny_vgg
    if damage == "other run":
        asked = tiny_vgg.with_(seed=1)
        path.rename(path.with_name(f"{asked.key}.pt"))
    with pytest.warns(UserWarning, match=f"{asked.key}.pt .* its run starts anew"):
        assert checkpoints.load(asked) is None


def test_a_checkpoint_is_due_after_so_many_seconds_or_epochs(tmp_path):
    by_time = Checkpoints(tmp_path, seconds=30.0)
    assert [by_time.due(4, seconds) for seconds in (0.0, 29.9, 30.0, 99.0)] == [False, False, True, True]
    by_epoch = Checkpoints(tmp_path, seconds=30.0, epochs=3)
    assert [by_epoch.due(epoch, 0.0) for epoch in (1, 2, 3, 4, 6)] == [False, False, True, False, True]
    assert by_epoch.due(1, 30.0)


def test_checkpoints_are_beside_the_store_whatever_it_is_called(tmp_path, monkeypatch):
    (tmp_path / "of.2026").mkdir()
    monkeypatch.chdir(tmp_path / "of.2026")
    for store in (Path("."), Path("../of.2026"), tmp_path / "of.2026"):
        assert Checkpoints.beside(store).folder == tmp_path.resolve() / "of.2026.checkpoints"


def test_a_discarded_checkpoint_leaves_those_of_other_runs(tiny_vgg, tmp_path):
    checkpoints, other = Checkpoints(tmp_path / "kept"), tiny_vgg.with_(seed=1)
    for spec in (tiny_vgg, other):
        checkpoints.save(spec, {"epoch": 1})
    checkpoints.discard(tiny_vgg)
    checkpoints.discard(tiny_vgg)  # there is none any more
    assert checkpoints.load(tiny_vgg) is None and checkpoints.load(other) == {"epoch": 1}
    (checkpoints.folder / f".{other.key}.pt.0123.tmp").touch()  # of a process that was killed as it wrote
    checkpoints.discard(other)
    assert not checkpoints.folder.exists()


def test_a_device_without_room_for_a_checkpoint_is_no_damage_to_it(tiny_vgg, tmp_path, monkeypatch):
    """A run that started anew there would be given its checkpoint's place, and lose hours."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(tiny_vgg, {"epoch": 1})

    def full(*_, **__):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(torch, "load", full)
    with pytest.raises(torch.OutOfMemoryError):
        checkpoints.load(tiny_vgg)


def test_an_interrupted_save_keeps_the_last_checkpoint(tiny_vgg, tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(tiny_vgg, {"epoch": 1})

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.warns(UserWarning, match=f"{tiny_vgg.key}.pt could not be written .disk full.: the run goes on"):
        checkpoints.save(tiny_vgg, {"epoch": 2})
    assert checkpoints.load(tiny_vgg) == {"epoch": 1}


@pytest.mark.parametrize("where", ["store.checkpoints", "store.checkpoints/{}.pt/kept"])
def test_a_run_whose_checkpoints_cannot_be_written_is_trained_all_the_same(tiny_vgg, tmp_path, where):
    in_the_way = tmp_path / where.format(tiny_vgg.key)
    in_the_way.parent.mkdir(parents=True, exist_ok=True)
    in_the_way.touch()
    checkpoints = Checkpoints.beside(tmp_path / "store", epochs=1)
    with pytest.warns(UserWarning, match="could not be written .*: the run goes on"):
        same(train(tiny_vgg, checkpoints=checkpoints), train(tiny_vgg))
    assert in_the_way.is_file()


@pytest.fixture
def deterministic(monkeypatch):
    """A GPU in deterministic mode."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["sgdn_hd", "adam_hd"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_on_a_gpu_a_resumed_run_and_one_of_single_launches_equal_an_unbroken_captured_one(
    tiny_vgg, tmp_path, deterministic, monkeypatch, method, precision
):
    beta = 1e-3 if method == "sgdn_hd" else 1e-8
    spec = tiny_vgg.with_(method=method, beta=beta, precision=precision, epochs=4, batch_size=32)
    unbroken = train(spec, "cuda")
    train(spec, "cuda", checkpoints=Checkpoints(tmp_path, epochs=3))
    resumed = train(spec, "cuda", checkpoints=Checkpoints(tmp_path))
    assert [visit["from_epoch"] for visit in resumed.provenance["visits"]] == [0, 3]
    assert unbroken.provenance["captured"] and resumed.provenance["captured"]
    same(unbroken, resumed)
    monkeypatch.setattr(sys.modules["hdlib.runs.train"], "captured", lambda *_: None)
    same(unbroken, train(spec, "cuda"))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_on_a_gpu_runs_side_by_side_equal_each_alone(tiny_vgg, deterministic, precision):
    """With dropout, whose numbers come from one generator, and of different lengths."""
    betas = {"sgdn_hd": 1e-3, "adam_hd": 1e-8}
    specs = [
        tiny_vgg.with_(method=m, beta=betas.get(m, 0.0), precision=precision, epochs=3 + i, batch_size=32)
        for i, m in enumerate(("adam_hd", "sgd", "sgdn_hd"))
    ]
    together = list(train_each(specs, "cuda"))
    assert [record.spec for record in together] == specs
    assert all(record.provenance["together"] == 3 and record.provenance["captured"] for record in together)
    for spec, record in zip(specs, together, strict=True):
        same(record, train(spec, "cuda"))


@pytest.mark.gpu
def test_a_compiled_network_trains_as_the_launched_one_to_rounding_with_the_same_dropout(tiny_vgg):
    spec = tiny_vgg.with_(epochs=3, batch_size=32)
    [compiled] = train_each([spec], "cuda", compiled=True)
    assert compiled.provenance["compiled"] and compiled.provenance["captured"]
    np.testing.assert_allclose(compiled.trace["loss"], train(spec, "cuda").trace["loss"], rtol=1e-3)


@pytest.mark.gpu
def test_a_gpu_gives_the_cpus_curves_to_rounding(tiny_vgg):
    spec = tiny_vgg.with_(variant="paper")  # without dropout, whose numbers are the device's
    for precision, near in (("float32", 1e-3), ("tf32", 1e-2), ("bf16", 5e-2)):
        gpu = train(spec.with_(precision=precision), "cuda")
        np.testing.assert_allclose(gpu.trace["loss"], train(spec).trace["loss"], rtol=near)
