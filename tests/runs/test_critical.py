"""A critical beta lies where training begins to fail, and its predictions follow from curvatures."""

import itertools
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from hdlib.runs import METHODS, Record, RunSpec, SpecError, critical, experiments, probe
from hdlib.runs.record import TRACE_COLUMNS


def test_the_critical_beta_lies_between_one_that_works_and_one_that_fails(tmp_path):
    spec = RunSpec(
        method="sgd_hd", alpha0=1e-3, beta=0.0, **experiments.short(12, task="digits", model="mlp", width=12)
    )
    [(works, fails, runs)] = critical.critical_betas([spec], tmp_path, low=-3, high=3, rounds=4)
    assert fails / works == pytest.approx(10 ** (6 / 2**4), rel=1e-6)
    by_beta = {record.spec.beta: critical.failed(record) for record in runs}
    assert all(fail == (beta > works * 1.01) for beta, fail in by_beta.items())
    assert set(by_beta.values()) == {True, False}
    assert all(beta == float(f"{beta:.3g}") for beta in by_beta)  # so that their records are found again


def test_a_critical_beta_beyond_those_that_were_tried_is_not_made_up(tmp_path):
    fields = experiments.short(12, task="digits", model="mlp", width=12)
    spec = RunSpec(method="sgd_hd", alpha0=1e-3, beta=0.0, **fields)
    [(works, fails, runs)] = critical.critical_betas([spec], tmp_path, low=-12, high=-8, rounds=2)
    assert fails == np.inf and works == pytest.approx(max(record.spec.beta for record in runs))
    [(works, fails, runs)] = critical.critical_betas([spec], tmp_path, low=4, high=8, rounds=2)
    assert works == 0 and fails == pytest.approx(min(record.spec.beta for record in runs))


def test_a_deviation_grows_by_the_product_of_its_factors():
    kappa = np.array([1.0, 100.0, 1.0, 2.0, 1.0])
    single, never = critical.betas_of_growth(kappa, [50.0, np.inf])
    assert abs(1 - single * 100.0) == pytest.approx(50.0, rel=0.05)  # the later ones shrink it
    assert np.isnan(never)
    [series] = critical.betas_of_growth(np.full(5, 10.0), [2.0**5])
    assert abs(1 - series * 10.0) == pytest.approx(2.0, rel=0.05)
    assert critical.betas_of_growth(kappa[:1], [1.001]) == [pytest.approx(2.0, rel=0.05)]


def test_a_models_growth_is_chosen_by_the_other_models():
    right = {"a": 5.0, "b": 100.0, "c": 100.0}  # the growth that would predict each model exactly
    rows = [
        dict(model=model, method="adam_hd", seed=0, critical=1.0)
        | {growth: 1.0 if growth == own else 1e-3 for growth in critical.GROWTHS}
        for model, own in right.items()
    ]
    found = critical.with_growth(pd.DataFrame(rows)).set_index("model")
    assert found["factor"]["a"] == 100.0 and found["growth"]["a"] == 1e-3
    alone = critical.with_growth(pd.DataFrame(rows[:1]))
    assert alone["factor"].to_list() == [min(critical.GROWTHS)]


def test_the_critical_beta_is_asked_for_with_as_many_seeds_and_iterations_as_one_says():
    asked = critical.boundaries(2, 2, 30, task="digits")
    assert list(asked) == list(experiments.VARIED)[:2]
    for specs in asked.values():
        assert [(spec.method, spec.seed) for spec in specs] == [(m, s) for m in ("adam_hd", "sgd_hd") for s in (0, 1)]
        assert {(spec.max_iterations, spec.alpha0) for spec in specs} == {(30, critical.ALPHA0)}


def test_measured_critical_betas_say_what_made_them(tmp_path):
    asked = critical.boundaries(1, 1, 8, task="digits")
    measured = critical.measured_boundaries(asked, tmp_path, rounds=2)
    assert measured["iterations"].to_list() == [8, 8]
    runs = measured.attrs["runs"]
    assert (runs["count"], runs["precision"]) == (4, ["float32"])
    assert measured.attrs["steps"] == runs["device"]


def test_a_critical_beta_stands_beside_what_the_curvatures_of_its_cautious_run_predict(tmp_path):
    asked = critical.boundaries(1, 1, 8, task="digits")
    measured = critical.measured_boundaries(asked, tmp_path, rounds=3)
    for row, spec in zip(measured.itertuples(), asked["logistic regression"], strict=True):
        cautious = critical.safe(spec)
        assert (cautious.rule, cautious.control().tolerance, cautious.seed) == ("auto", 0, spec.seed)
        steps = probe.recorded([cautious], 8, tmp_path)
        assert row.works < row.critical < row.fails
        assert row.critical / row.works == pytest.approx(row.fails / row.critical)
        assert row.at_start * steps["kappa"].iloc[1] == pytest.approx(2)
        assert row.largest * steps["kappa"].max() == pytest.approx(2) and row.largest <= row.at_start
        assert row.learnt == pytest.approx(1 - steps["loss"].mean() / steps["loss"].iloc[0])


def test_a_run_of_one_step_has_no_curvature_and_predicts_nothing(tmp_path):
    measured = critical.measured_boundaries(critical.boundaries(1, 1, 1, task="digits"), tmp_path, rounds=1)
    assert measured[["at_start", "largest", "growth"]].isna().all(axis=None) and len(measured) == 2


def test_a_first_curvature_that_is_negative_predicts_no_critical_beta(tmp_path, monkeypatch):
    def recorded(specs, *_):
        steps = pd.concat([pd.DataFrame({"loss": 1.0, "kappa": [np.nan, -1.0, 4.0], "key": s.key}) for s in specs])
        steps.attrs["made"] = {"device": "a processor"}
        return steps

    monkeypatch.setattr(critical, "recorded", recorded)
    measured = critical.measured_boundaries(critical.boundaries(1, 1, 3, task="digits"), tmp_path, rounds=1)
    assert measured["at_start"].isna().all() and measured["largest"].tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("losses", "failed"),
    [
        ([1.0] * 18 + [1.1, 1.2], False),
        ([1.0] * 18 + [1.2, 1.3], True),
        ([1.0, 0.1] + [0.1] * 16 + [1.1, 1.1], False),  # a fifth above the first minibatch's, not above the lowest
        ([1.0] + [9.0] * 17 + [1.0, 1.0], False),
        ([1.0] * 18 + [1.0, float("nan")], True),
    ],
)
def test_a_run_has_failed_whose_loss_ends_a_fifth_above_the_first_one(losses, failed):
    trace = pd.DataFrame([[i + 1, loss, 1e-3, 0.0] for i, loss in enumerate(losses)], columns=TRACE_COLUMNS)
    spec = RunSpec(method="sgd_hd", alpha0=1e-3, beta=1e-3, epochs=1)
    assert critical.failed(Record(spec, "finished", 20, pd.DataFrame(), trace)) == failed
    assert critical.failed(Record(spec, "diverged", 20, pd.DataFrame(), trace[:1]))


def test_of_whole_vggs_one_seed_is_asked_for_and_of_narrow_ones_both_variants_and_all_seeds():
    asked = critical.vgg_boundaries([0.125, 1.0], 2)
    found = {name: sorted((s.method, s.seed) for s in specs) for name, specs in asked.items()}
    narrow = sorted(itertools.product(("adam_hd", "sgd_hd", "sgdn_hd"), (0, 1)))
    assert found == {
        "authors 0.125": narrow,
        "paper 0.125": narrow,
        "authors 1": [pair for pair in narrow if pair[1] == 0],
    }


def test_every_guard_is_run_on_the_papers_grid_and_those_with_a_beta_of_their_own_from_all_its_rates():
    rates = experiments.PAPER_RATES
    for name, specs in experiments.guarded(1, 1).items():
        cells = {(s.method, s.alpha0, s.beta) for s in specs}
        assert len(cells) == len(specs)
        for method in experiments.HD:
            own = {s.beta for s in specs} if {"beta"} <= experiments.GUARDS[name].keys() else set(rates)
            own |= {1e-7, 1e-8} if method == "adam_hd" and len(own) > 1 else set()
            assert {cell for cell in cells if cell[0] == method} == set(itertools.product([method], rates, own))


def test_curves_of_figure_2_are_compared_with_runs_of_the_plain_rule_from_its_rates_alone():
    run = RunSpec(method="sgd_hd", alpha0=1e-3, beta=1e-4, epochs=3)
    assert experiments.is_online_tuning(run, "mnist") and not experiments.is_online_tuning(run, "digits")
    assert not experiments.is_online_tuning(RunSpec(method="sgd", alpha0=1e-3, epochs=3), "mnist")
    for other in (dict(rule="multiplicative"), dict(alpha0=0.02), dict(epochs=2), dict(max_lr=0.1)):
        assert not experiments.is_online_tuning(run.with_(**other), "mnist")


def test_a_phase_diagram_is_of_all_methods_from_a_millionth_to_a_tenth():
    specs = experiments.phase(6, 10, 2, task="digits")
    assert Counter(s.method for s in specs) == {m: 72 if m in experiments.HD else 12 for m in METHODS}
    assert {s.alpha0 for s in specs} == {s.beta for s in specs} - {0.0} == set(experiments.PAPER_RATES)


def test_candidates_for_the_papers_beta_are_run_from_its_rates_as_they_are_asked_for():
    logreg, mlp = experiments.candidates(2, task="digits"), experiments.mlp_candidates(2, task="digits", width=8)
    assert (len(logreg), len(mlp)) == (48, 30)
    for specs, model in ((logreg, "logreg"), (mlp, "mlp")):
        assert {(s.task, s.model, s.epochs, s.seed) for s in specs} == {("digits", model, 2, 0)}
        assert {s.alpha0 for s in specs} == set(experiments.PAPER_RATES)


def test_longer_runs_are_those_of_the_plain_rule_among_the_guards():
    [(name, specs)] = experiments.longer([["2 layers of 100", 2, 3]], task="digits")
    model = dict(task="digits", model="mlp", width=100)
    asked = experiments.guarded(2, 3, **model)["plain"] + experiments.unguarded(2, 3, **model)
    assert name == "2 layers of 100"
    assert {spec.key for spec in specs} == {spec.key for spec in asked if spec.method not in ("sgdn", "sgdn_hd")}


@pytest.mark.parametrize("row", [["2 layers of 99", 2, 3], ["2 layers of 100", 2]])
def test_longer_runs_of_an_unknown_model_are_refused(row):
    with pytest.raises(SpecError, match="give a model, epochs and seeds"):
        experiments.longer([row])
