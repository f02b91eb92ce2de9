"""A run's history says what happened, the same on every repetition."""

import math
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from prodigyopt import Prodigy
from torch.nn import functional as F

from hdlib.runs import METHODS, RunSpec, train
from hdlib.runs.history import History, traced_iterations
from hdlib.runs.stack import stackable
from hdlib.runs.train import Training, minibatches
from hdlib.tasks import build_model, load_data


def test_a_run_repeats_itself_exactly(tiny):
    first, second = train(tiny), train(tiny)
    pd.testing.assert_frame_equal(first.epochs, second.epochs)
    pd.testing.assert_frame_equal(first.trace, second.trace)


def test_a_baseline_is_a_plain_training_loop_with_torch_optim():
    spec = RunSpec(task="digits", model="mlp", width=16, method="adam", alpha0=0.01, epochs=2, seed=3)
    data = load_data("digits")
    model = build_model("mlp", data.features, data.classes, seed=3, width=16)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=1e-4)
    losses = []
    for epoch in (1, 2):
        for batch in minibatches(spec, epoch, len(data.train_y), "cpu"):
            loss = F.cross_entropy(model(data.train_x[batch]), data.train_y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    record = train(spec)
    np.testing.assert_array_equal(record.trace["loss"], losses)
    np.testing.assert_allclose(record.epochs["train_loss"][1:], [np.mean(losses[:12]), np.mean(losses[12:])])
    with torch.no_grad():
        logits = model(data.valid_x)
    assert record.epochs["valid_loss"].iloc[-1] == pytest.approx(F.cross_entropy(logits, data.valid_y).item())
    assert record.epochs["valid_accuracy"].iloc[-1] == (logits.argmax(1) == data.valid_y).double().mean()


def test_every_method_sees_the_same_start_and_the_same_minibatches():
    firsts = {
        train(RunSpec(task="digits", method=m, alpha0=0.0, beta=0.0, epochs=1, seed=5)).trace["loss"].iloc[0]
        for m in METHODS
    }
    assert len(firsts) == 1
    spec = RunSpec(task="digits", method="sgd", alpha0=0.1, epochs=1)
    order = torch.cat(minibatches(spec, 1, 1500, "cpu"))
    assert sorted(order.tolist()) == list(range(1500))
    assert not torch.equal(order, torch.cat(minibatches(spec, 2, 1500, "cpu")))
    assert not torch.equal(order, torch.cat(minibatches(spec.with_(seed=1), 1, 1500, "cpu")))


def test_alpha_follows_the_recorded_hypergradient(tiny):
    trace = train(tiny.with_(precision="float64")).trace
    np.testing.assert_allclose(np.diff(trace["alpha"]), -tiny.beta * trace["hypergrad"][1:], atol=1e-15)
    assert trace["alpha"].iloc[0] == tiny.alpha0


def test_decay_divides_alpha_by_the_root_of_the_iteration():
    trace = train(RunSpec(task="digits", method="adam", alpha0=0.1, decay="inv_sqrt", epochs=1)).trace
    np.testing.assert_allclose(trace["alpha"], 0.1 / np.sqrt(trace["iteration"]))


@pytest.mark.parametrize("cap", [None, 9])
def test_a_cosine_falls_from_alpha0_to_almost_zero_over_the_iterations_that_a_run_has(cap):
    spec = RunSpec(task="digits", method="sgd", alpha0=0.1, decay="cosine", epochs=2, max_iterations=cap)
    trace = train(spec).trace
    np.testing.assert_allclose(trace["alpha"], _cosine(0.1, cap or 24), rtol=1e-6)


def test_an_alpha_that_adapts_is_multiplied_along_a_schedule_as_torchs_scheduler_does_it(tiny):
    spec = tiny.with_(beta="auto", decay="cosine")
    data = load_data("digits")
    training = Training(spec, data, "cpu", torch.float32)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(training.optimizer, 24)
    alphas = []
    for epoch in (1, 2):
        for batch in minibatches(spec, epoch, len(data.train_y), "cpu"):
            training.step(batch)
            alphas.append(training.group["lr"])
            schedule.step()
    trace = train(spec).trace
    np.testing.assert_allclose(trace["alpha"], alphas, rtol=1e-6)
    free = train(spec.with_(decay="none")).trace
    assert trace["alpha"].iloc[0] == free["alpha"].iloc[0] and trace["alpha"].iloc[-1] < 0.05 * free["alpha"].iloc[-1]


@pytest.mark.parametrize("decay", ["none", "cosine"])
def test_a_run_of_prodigy_is_a_plain_training_loop_with_its_authors_optimiser(decay):
    """Its alpha is what multiplies a step: the schedule, times the estimate before that step."""
    spec = RunSpec(task="digits", model="mlp", width=16, method="prodigy", alpha0=1e-5, decay=decay, epochs=2, seed=3)
    data = load_data("digits")
    model = build_model("mlp", data.features, data.classes, seed=3, width=16)
    optimizer = Prodigy(model.parameters(), d0=1e-5, weight_decay=1e-4, decouple=False)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 24) if decay == "cosine" else None
    [group] = optimizer.param_groups
    rows = []
    for epoch in (1, 2):
        for batch in minibatches(spec, epoch, len(data.train_y), "cpu"):
            loss = F.cross_entropy(model(data.train_x[batch]), data.train_y[batch])
            optimizer.zero_grad()
            loss.backward()
            rows.append((loss.item(), group["lr"] * group["d"], 0.0))
            optimizer.step()
            if scheduler:
                scheduler.step()
    assert not stackable(spec)
    trace = train(spec).trace
    np.testing.assert_allclose(trace[["loss", "alpha", "hypergrad"]], rows, rtol=1e-5)
    assert trace["alpha"].iloc[0] == 1e-5 and trace["alpha"].max() > 100 * 1e-5


def _cosine(alpha0, iterations):
    """Return torch's own schedule: the alpha of each iteration."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=alpha0)
    schedule, alphas = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations), []
    for _ in range(iterations):
        alphas.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return alphas


def test_a_diverged_run_is_a_result():
    record = train(RunSpec(task="digits", model="mlp", width=64, method="adam_hd", alpha0=0.1, beta=1.0, epochs=3))
    assert record.outcome == "diverged"
    last = record.trace.iloc[-1]
    assert last["iteration"] == record.iterations < 3 * 12
    assert not (math.isfinite(last["loss"]) and math.isfinite(last["alpha"]))
    assert np.isfinite(record.trace[["loss", "alpha"]].iloc[:-1]).all(axis=None)
    assert len(record.epochs) >= 1  # the state before training, at least


def test_a_run_stops_at_the_first_minibatch_that_reaches_its_target():
    spec = RunSpec(task="digits", method="sgd", alpha0=0.1, epochs=50)
    losses = train(spec).trace["loss"]
    first = losses[losses <= 0.5].index[0]
    for target in (0.5, losses[first]):  # at it is as good as below it
        record = train(spec.with_(target_loss=target))
        assert (record.outcome, record.iterations) == ("reached", first + 1)
        assert record.trace["loss"].iloc[-1] <= target


def test_a_run_that_is_seldom_validated_is_validated_at_its_end(tiny):
    record = train(tiny.with_(epochs=5, validate_every=2))
    assert record.epochs["epoch"].tolist() == [0, 2, 4, 5]


def test_a_history_goes_on_from_its_state_with_the_losses_of_its_last_minibatches():
    spec = RunSpec(task="digits", method="sgd", alpha0=0.1, epochs=50, target_loss=1.0, target_of="smoothed")
    rows = np.stack([np.geomspace(9, 0.1, 128), np.full(128, 0.1), np.zeros(128)], 1)[:, :, None]
    whole, resumed = History([spec], 1437), History([spec], 1437)
    whole.add(rows[:64])
    resumed.restore(whole.state())
    for history in (whole, resumed):
        history.add(rows[64:])
        assert history.finish() == [0]
    ends = [(r.outcome, r.iterations, len(r.trace)) for r in (whole.record(0, {}), resumed.record(0, {}))]
    first = 100 + np.flatnonzero(np.convolve(rows[:, 0, 0], np.full(100, 0.01), "valid") <= 1.0)[0]
    assert ends == [("reached", first, first)] * 2 and 100 < first < 128


def test_early_iterations_are_all_traced_and_later_ones_log_spaced():
    kept = traced_iterations(100_000, 1000)
    assert kept[:1000].tolist() == list(range(1, 1001))
    assert kept[-1] == 100_000
    steps = np.diff(np.log10(kept[1000:-1]))
    assert steps.max() < 0.006 and steps.min() > 0.004
    assert traced_iterations(10, 1000).tolist() == list(range(1, 11))
    assert len(traced_iterations(100, 0)) == 0


def test_a_run_has_diverged_at_the_first_loss_or_alpha_that_is_not_finite(tiny):
    for column in (0, 1):
        history = History([tiny], 1500)
        rows = np.ones((5, 3, 1))
        rows[3, column] = np.inf
        history.add(rows)
        [ended] = history.finish()
        record = history.record(ended, {})
        assert (record.outcome, record.iterations, len(record.trace)) == ("diverged", 4, 4)


def test_a_run_that_ends_early_tells_of_no_iteration_that_it_did_not_take(tiny):
    told = []
    record = train(tiny.with_(alpha0=1e30), tick=told.append)
    assert record.outcome == "diverged" and sum(told) == record.iterations


def test_a_loss_over_all_training_data_that_is_the_target_has_reached_it(tiny):
    history = History([tiny.with_(target_loss=0.5, target_of="epoch")], 1500)
    for epoch, loss in enumerate((0.6, 0.5), start=1):
        assert history.finish() == []
        history.add(np.ones((12, 3, 1)))
        history.end_epoch(epoch, np.ones(1), np.ones(1), np.array([loss]))
    assert history.finish() == [0] and history.record(0, {}).outcome == "reached"


@pytest.mark.parametrize("total", [1000, 1001, 1500, 46_900])
def test_the_last_iteration_is_traced_wherever_it_lies(total):
    assert traced_iterations(total, 1000)[-1] == total


def test_another_optimiser_is_trained_by_itself(tiny, monkeypatch):
    spec = RunSpec.model_construct(**(tiny.model_dump() | dict(method="rmsprop", beta=0.0)))
    made = lambda spec, model: torch.optim.RMSprop(model.parameters(), lr=spec.alpha0)  # noqa: E731
    monkeypatch.setattr(sys.modules["hdlib.runs.train"], "make_optimizer", made)
    assert not stackable(spec)
    record = train(spec)
    assert record.outcome == "finished" and record.epochs["train_loss"].iloc[-1] < record.epochs["train_loss"].iloc[0]
    assert (record.trace["alpha"] == spec.alpha0).all() and (record.trace["hypergrad"] == 0).all()
