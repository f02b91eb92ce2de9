"""What is measured of single steps: slope and curvature along the last direction."""

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from hdlib.runs import RunSpec, SpecError, experiments, probe, train
from hdlib.tasks.data import SIZES

SPECS = [
    RunSpec(task="digits", model="mlp", width=12, method=method, alpha0=alpha0, beta=1e-5, epochs=1, input_scale=0.5)
    for method, alpha0 in (("sgd_hd", 0.1), ("sgdn_hd", 0.02), ("adam_hd", 0.01))
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.method)
def test_slope_and_curvature_are_those_of_the_measured_loss(spec):
    """Of the loss along the last direction: its derivative where the run stepped to is h, its second one kappa."""
    rows = probe.steps(spec, 5)
    step = rows.iloc[4]
    taken, small = rows["alpha"].iloc[3], 1e-4 * rows["alpha"].iloc[3]
    below, at, above = probe.line(spec, 5, [taken - small, taken, taken + small])["loss"]
    assert (above - below) / (2 * small) == pytest.approx(step["hypergrad"], rel=1e-5)
    assert (above - 2 * at + below) / small**2 == pytest.approx(step["kappa"], rel=1e-2)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.method)
def test_the_probe_sees_the_run_that_is_trained(spec):
    seen, trained = probe.steps(spec, 6), train(spec.with_(precision="float64")).trace[:6]
    for column, name in (("loss", "loss"), ("alpha", "alpha"), ("hypergrad", "hypergrad")):
        np.testing.assert_allclose(seen[column], trained[name], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.method)
def test_a_run_that_starts_with_a_step_of_length_zero_is_seen_too(spec):
    still = spec.with_(alpha0=0.0)
    seen, trained = probe.steps(still, 5), train(still.with_(precision="float64")).trace[:5]
    for column in ("loss", "alpha", "hypergrad"):
        np.testing.assert_allclose(seen[column], trained[column], rtol=1e-6, atol=1e-12)
    assert seen["kappa"].isna().to_list() == seen["kappa_secant"].isna().to_list() == [True, True, False, False, False]
    assert seen["slope"].isna().to_list() == [True, False, False, False, False]


def test_the_first_hypergradient_of_adam_is_near_the_gradients_1_norm():
    rows = probe.steps(SPECS[2], 1)
    assert -rows["slope"].iloc[0] == pytest.approx(rows["grad_l1"].iloc[0], rel=1e-2)
    sgd = probe.steps(SPECS[0], 1)
    assert -sgd["slope"].iloc[0] == pytest.approx(sgd["grad_l2"].iloc[0] ** 2, rel=1e-6)


def test_decades_have_three_significant_digits():
    assert probe.decades(-3, -1, 3) == [0.001, 0.01, 0.1] and probe.decades(-1, 0, 3) == [0.1, 0.316, 1.0]


@pytest.mark.parametrize("beta", [1e-5, 300.0])
def test_the_secant_is_the_slopes_change_over_the_length_of_the_step(beta):
    rows = probe.steps(SPECS[0].with_(beta=beta), 5)
    assert (rows["alpha"].min() < 0) == (beta > 1)  # a step uphill has a curvature, too
    expected = (rows["hypergrad"] - rows["slope"].shift()) / rows["alpha"].shift()
    np.testing.assert_allclose(rows["kappa_secant"], expected, rtol=1e-12)


def test_what_is_measured_ends_with_the_first_number_that_is_not_finite():
    rows = probe.steps(SPECS[0].with_(alpha0=1e200), 5)
    finite = np.isfinite(rows[["loss", "alpha", "hypergrad"]].iloc[:, :2]).all(axis=1)
    assert len(rows) < 5 and finite.iloc[:-1].all()


def test_a_recorded_line_goes_through_its_lowest_loss_and_says_which_step_was_taken(tmp_path):
    line, near = probe.recorded_line(SPECS[0], 3, 10, tmp_path), probe.steps(SPECS[0], 3)
    assert line["length"].iloc[0] < 0 < near["slope"].iloc[1] / -near["kappa"].iloc[2]
    best = line["length"].iloc[line["loss"].argmin()]
    assert best > 0 and 2 * best < line["length"].iloc[-1] < 8 * best
    assert (line["taken"] == near["alpha"].iloc[1]).all()
    assert len(line) == 10 and len(probe.recorded_line(SPECS[0], 3, 4, tmp_path)) == 4


def test_runs_that_are_measured_together_are_told_apart_by_their_keys(tmp_path):
    rows = probe.recorded(SPECS[:2], 2, tmp_path)
    assert rows["key"].tolist() == [SPECS[0].key] * 2 + [SPECS[1].key] * 2
    assert rows["alpha"].iloc[[0, 2]].tolist() == [0.1, 0.02]


def test_what_is_recorded_is_not_measured_again(tmp_path, monkeypatch):
    first = probe.recorded(SPECS[:1], 3, tmp_path)
    assert (len(first), len(probe.recorded(SPECS[:1], 4, tmp_path))) == (3, 4)
    line = probe.recorded_line(SPECS[0], 2, 5, tmp_path)
    monkeypatch.setattr(probe, "steps", None)
    monkeypatch.setattr(probe, "line", None)
    again = probe.recorded(SPECS[:1], 3, tmp_path)
    assert again.equals(first) and again.attrs["made"] == first.attrs["made"]
    assert {"device", "threads", "seconds", "date", "data", "code"} <= again.attrs["made"].keys()
    assert again.attrs["made"]["seconds"] > 0 and "digits" in again.attrs["made"]["data"]
    assert probe.recorded_line(SPECS[0], 2, 5, tmp_path).equals(line)
    assert len(list((tmp_path / "probes").iterdir())) == 3


@pytest.mark.parametrize(
    ("fields", "epochs"),
    [({}, 1), (dict(batch_size=1024), 2), (dict(task="digits"), 9), (dict(task="digits", batch_size=1500), 100)],
)
def test_a_short_run_takes_all_the_iterations_that_are_asked_for(fields, epochs):
    spec = RunSpec(method="sgd", alpha0=0.1, **experiments.short(100, **fields))
    assert spec.epochs == epochs
    assert spec.iterations(SIZES[spec.task][0]) == 100
    assert (spec.validate_every, spec.early) == (0, 100)


def test_a_short_run_in_batches_of_1024_is_traced_to_its_end():
    spec = experiments.varied(1e-3, 30, "sgd_hd", beta=0.0, task="digits")["2 layers of 100, batches of 1024"]
    assert train(spec).trace["iteration"].to_list() == list(range(1, 31))


def test_a_short_run_of_an_unknown_task_is_refused():
    with pytest.raises(SpecError, match="task is 'imagenet'"):
        experiments.short(100, task="imagenet")


@pytest.mark.parametrize("damage", ["truncated", "flipped", "foreign"])
def test_a_damaged_probe_is_named_and_measured_again(tmp_path, damage):
    first = probe.recorded(SPECS[:1], 3, tmp_path)
    [path] = (tmp_path / "probes").iterdir()
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    elif damage == "foreign":
        pd.DataFrame({"loss": [0.0]}).to_parquet(path)
        content = path.read_bytes()
    else:
        column = pq.read_metadata(path).row_group(0).column(0)
        begin = column.dictionary_page_offset or column.data_page_offset
        content[begin + column.total_compressed_size - 1] ^= 1  # its last number
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=rf"{path.name} is damaged .* it is measured again"):
        assert probe.recorded(SPECS[:1], 3, tmp_path).equals(first)


def test_what_cannot_be_kept_is_not_measured_at_all(tmp_path, monkeypatch):
    (tmp_path / "probes").touch()
    monkeypatch.setattr(probe, "steps", lambda *_: pytest.fail("measured"))
    with pytest.raises(SpecError, match=r"store is '.*/probes', which is a file: name a folder"):
        probe.recorded(SPECS[:1], 3, tmp_path)


def test_what_could_not_be_kept_after_all_is_shown(tmp_path):
    kept = probe.recorded(SPECS[:1], 3, tmp_path)
    [path] = (tmp_path / "probes").iterdir()
    path.unlink()
    (path / "in the way").mkdir(parents=True)
    unreadable = pytest.warns(UserWarning, match=f"{path.name} is damaged")
    with unreadable, pytest.warns(UserWarning, match=f"{path.name} could not be written .* what was measured is shown"):
        assert probe.recorded(SPECS[:1], 3, tmp_path).equals(kept)


@pytest.mark.parametrize("variant", ["authors", "paper"])
def test_the_probe_sees_a_vgg_with_its_crops_and_dropout_into_the_second_epoch(tiny_vgg, variant):
    spec = tiny_vgg.with_(variant=variant, method="sgd_hd", alpha0=0.01, beta=1e-3, train_images=200, epochs=2)
    torch.manual_seed(3)
    seen = probe.steps(spec, 6)
    assert torch.equal(torch.rand(1), torch.rand(1, generator=torch.Generator().manual_seed(3)))  # nothing disturbed
    trained = train(spec.with_(precision="float64")).trace[:6]
    for column in ("loss", "alpha", "hypergrad"):
        np.testing.assert_allclose(seen[column], trained[column], rtol=1e-6, atol=1e-12)
    taken, small = seen["alpha"].iloc[4], 1e-7 * seen["alpha"].iloc[4]  # between two kinks
    below, above = probe.line(spec, 6, [taken - small, taken + small])["loss"]
    assert (above - below) / (2 * small) == pytest.approx(seen["hypergrad"].iloc[5], rel=1e-4)
