"""A run with guards is the same run whether it is trained alone or in a stack."""

import numpy as np
import pytest

from hdlib.runs import RunSpec, SpecError, grid, probe, slopes, sweep_groups, train
from hdlib.runs.stack import stackable, train_stack

COMMON = dict(task="digits", model="mlp", width=16, epochs=1, precision="float64", alpha0=1e-3)
GUARDS = [
    dict(rule="auto", beta=1.0),
    dict(rule="curvature", beta=0.5, max_change=1.0),
    dict(rule="log", beta=0.01, max_lr=0.01),
    dict(scaling="adam", beta=1e-4, skip_nonfinite="alpha", min_lr=0.0),
    dict(beta=1e-4, final_lr=0.01, transition=3.0, overshoot=0.2),
]


@pytest.mark.parametrize("method", ["sgd_hd", "sgdn_hd", "adam_hd"])
def test_stacked_and_alone_a_guarded_run_is_the_same(method):
    specs = [RunSpec(method=method, **COMMON, **guards) for guards in GUARDS]
    specs.append(RunSpec(method=method, **COMMON, beta=1e-3))
    specs.append(RunSpec(method=method, **(COMMON | dict(alpha0=30.0, rule="auto", beta=1.0))))  # its first is less
    stack = train_stack(specs)
    assert stack[-1].trace["alpha"][0] < 30.0
    for spec, stacked in zip(specs, stack, strict=True):
        alone = train(spec)
        assert stacked.outcome == alone.outcome == "finished"
        for column in ("loss", "alpha", "hypergrad"):
            np.testing.assert_allclose(stacked.trace[column], alone.trace[column], rtol=1e-6, atol=1e-12)


def test_inputs_are_scaled_the_same_way_in_a_stack_and_alone():
    spec = RunSpec(method="sgd", **COMMON, input_scale=0.3)
    [stacked], alone, plain = train_stack([spec]), train(spec), train(spec.with_(input_scale=1.0))
    np.testing.assert_allclose(stacked.trace["loss"], alone.trace["loss"], rtol=1e-9)
    assert abs(alone.trace["loss"][0] - plain.trace["loss"][0]) > 1e-3


def test_a_run_that_may_skip_steps_is_trained_alone():
    spec = RunSpec(method="adam_hd", **COMMON, beta=1e-4, skip_nonfinite="step")
    assert not stackable(spec) and stackable(spec.with_(skip_nonfinite="alpha"))


def test_a_guard_of_a_baseline_and_a_wrong_guard_are_refused():
    with pytest.raises(SpecError, match=r"max_lr is 1\.0 but sgd does not adapt"):
        RunSpec(method="sgd", **COMMON, max_lr=1.0)
    with pytest.raises(SpecError, match="max_change is 0"):
        RunSpec(method="sgd_hd", **COMMON, beta=1e-4, max_change=0.0)


def test_groups_of_runs_are_swept_as_one_and_come_back_by_name(tmp_path):
    common = dict(task="digits", alpha0=[1e-2, 1e-3], epochs=1, max_iterations=2, validate_every=0)
    groups = {
        ("logistic", "plain"): grid(method="sgd_hd", beta=1e-4, **common),
        ("perceptron", "plain"): grid(method="sgd_hd", beta=1e-4, model="mlp", width=4, **common),
    }
    groups["of both"] = [spec for own in groups.values() for spec in own][::-1]
    found = sweep_groups(groups, str(tmp_path), device="cpu", progress=False)
    assert {name: [r.spec for r in own] for name, own in found.items()} == groups


def test_the_ratio_of_slopes_is_what_the_automatic_rule_sees_of_steps_that_change_nothing():
    spec = RunSpec(task="digits", method="sgd_hd", beta=1e-12, alpha0=1e-12, epochs=1)
    seen = probe.steps(spec, 9)
    of_rule = -seen["hypergrad"].to_numpy()[1:] / np.abs(seen["slope"].to_numpy()[:-1])
    held = slopes.ratios(RunSpec(task="digits", method="sgd", alpha0=0.1, epochs=1, validate_every=0), 8)
    np.testing.assert_allclose(held["ratio"][held["epochs"] == 0], of_rule, rtol=1e-4)
    assert held["epochs"].value_counts().to_dict() == {0: 8, 1: 8}


def test_the_noisier_the_minibatches_the_smaller_is_the_ratio_of_slopes():
    common = dict(task="digits", method="sgd", alpha0=0.1, epochs=3, validate_every=0)
    small, large = (slopes.ratios(RunSpec(batch_size=size, **common), 40) for size in (8, 375))
    assert 0.8 < large.groupby("epochs")["ratio"].mean().iloc[-1] < 1.2
    assert small.groupby("epochs")["ratio"].mean().iloc[-1] < 0.4


def test_ratios_of_slopes_are_taken_on_the_minibatches_of_the_epoch_that_would_follow(monkeypatch):
    begun, begin = [], slopes.Training.begin_epoch
    monkeypatch.setattr(slopes.Training, "begin_epoch", lambda self, epoch: begun.append(epoch) or begin(self, epoch))
    slopes.ratios(RunSpec(task="digits", method="sgd", alpha0=0.01, epochs=1), 2)
    assert begun == [1, 1, 2]  # to look, to train, to look


def test_ratios_of_slopes_are_of_gradients_with_their_l2_term():
    common = dict(task="digits", weight_decay=0.5, alpha0=1e-12, epochs=1, validate_every=0)
    seen = probe.steps(RunSpec(method="sgd_hd", beta=1e-12, **common), 5)
    of_rule = -seen["hypergrad"].to_numpy()[1:] / np.abs(seen["slope"].to_numpy()[:-1])
    held = slopes.ratios(RunSpec(method="sgd", **common), 4)
    np.testing.assert_allclose(held["ratio"][held["epochs"] == 0], of_rule, rtol=1e-4)
