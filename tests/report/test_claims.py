"""A verdict follows from the records: from all cases, some, none, or from nothing at all."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hdlib.report import claims, paper, verdicts
from hdlib.report.claims import CLAIMS
from hdlib.report.style import Noted
from hdlib.report.verdicts import VERDICTS, Claim, judge
from hdlib.runs import Record, RunSpec, Store

RESULTS = Path(__file__).parents[2] / "results"
GOOD = pd.Series([-0.5, -0.4, -0.6], index=[0, 1, 2])
UNSURE = pd.Series([-0.5, 0.6, 0.1], index=[0, 1, 2])


@pytest.mark.parametrize(
    ("cases", "verdict"),
    [
        ({"a": GOOD, "b": GOOD}, "reproduced"),
        ({"a": GOOD, "b": UNSURE}, "nothing against"),
        ({"a": GOOD, "b": -GOOD}, "partly"),
        ({"a": GOOD, "b": UNSURE, "c": -GOOD}, "partly"),
        ({"a": UNSURE}, "not reproduced"),
        ({"a": pd.Series([np.inf, -1.0, -1.0])}, "not reproduced"),
        ({"a": pd.Series([-np.inf, 0.1, 0.2])}, "not reproduced"),
        ({"a": pd.Series([-np.inf, -0.1, -2.0])}, "reproduced"),
        ({"a": pd.Series([-np.inf, np.inf, -1.0])}, "not reproduced"),
        ({"a": GOOD, "b": pd.Series([-np.inf, 0.1, -2.0])}, "nothing against"),
        ({"a": GOOD, "b": pd.Series([np.inf, -1.0, -1.0])}, "partly"),
        ({"a": pd.Series([-0.1])}, "reproduced"),
        ({"a": pd.Series([-0.1, -2.0])}, "reproduced"),
        ({"a": pd.Series([0.1, -2.0])}, "not reproduced"),
        ({"a": pd.Series([-0.1, -0.2, -2.0])}, "reproduced"),
        ({"a": pd.Series([-0.1, -0.2, 0.3])}, "not reproduced"),
        ({"a": GOOD, "b": -GOOD, "c": pd.Series([0.1, 0.2, 2.0])}, "mostly not"),
        ({"a": pd.Series(dtype=float)}, "not tested"),
        ({}, "not tested"),
    ],
)
def test_the_verdict_follows_from_the_cases(cases, verdict):
    assert judge(Claim("It is so.", "somebody", "below 1", lambda records: cases), []).verdict == verdict


def test_the_effect_is_the_geometric_mean_and_lies_in_its_interval():
    found = judge(Claim("It is so.", "somebody", "below 1", lambda records: {"a": GOOD, "b": 3 * GOOD}), [])
    assert found.effect == pytest.approx(np.exp(-1.0))
    assert found.low < found.effect < found.high


def test_a_case_holds_up_to_what_its_claim_allows():
    scores = {"a": np.log(pd.Series([1.05, 1.06, 1.07]))}
    allowed = [judge(Claim("So.", "x", "y", lambda r: scores, at_most=most), []).verdict for most in (1.0, 1.06, 1.2)]
    assert allowed == ["not reproduced", "not reproduced", "reproduced"]  # 1.06 lies within the interval
    assert judge(Claim("So.", "x", "y", lambda r: {"a": pd.Series([0.0, 0.0])}), []).verdict == "reproduced"


def test_the_interval_covers_the_mean_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(size=(2000, 3))
    inside = np.mean([low < 0 < high for low, high in map(verdicts.interval, map(pd.Series, draws))])
    assert inside == pytest.approx(0.95, abs=0.015)


def test_the_ledger_shows_the_ratio_itself_and_what_it_is():
    def told(scores, **how):
        claim = Claim("It is so.", "somebody", "below 1", lambda records: scores, **how)
        return verdicts.ledger([judge(claim, [])]).data.iloc[0]

    several = told({"a": np.log(pd.Series([1.1, 1.1, 1.1]))}, found="time × {}", at_most=1.2, repeats="rounds")
    assert (several["what was found"], several["seeds"]) == (Noted("time × 1.10", "seeds 1.10 to 1.10"), "3 rounds")
    assert several["claim"].text == "It is so." and several["claim"].remark == "somebody. Criterion: below 1."
    assert told({"a": np.log(pd.Series([0.5]))})["what was found"] == "training loss × 0.500"
    assert told({"a": GOOD}, found="")["what was found"] == ""
    two = told({"a": np.log(pd.Series([0.25])), "b": np.log(pd.Series([1.0]))})
    assert two["what was found"] == Noted("training loss × 0.500", "cases 0.250 to 1.00")
    partly_lost = told({"a": np.log(pd.Series([0.5])), "b": pd.Series([np.inf, -1.0])})
    assert partly_lost["what was found"] == Noted("training loss × 0.500", "diverged in 1 of 2")
    assert told({"a": pd.Series([-np.inf])})["what was found"] == ""  # what diverged is what HD is compared with
    row = told({"a": GOOD, "b": -GOOD[:2], "c": -GOOD[:1]})
    assert (row["verdict"], row["holds in"], row["seeds"]) == ("mostly not", "1 of 3", "3")


def test_a_seed_with_which_both_diverge_is_left_out():
    ours, theirs = pd.Series([np.inf, 1.0, np.inf]), pd.Series([np.inf, np.inf, 1.0])
    assert claims.log_ratio(ours, theirs).to_dict() == {1: -np.inf, 2: np.inf}


def test_what_is_undecided_is_not_said_to_fail():
    worse = pd.Series([0.5, 0.4, 0.6], index=[0, 1, 2])
    verdict = judge(Claim("It is so.", "x", "y", lambda records: {"a": GOOD, "b": UNSURE, "c": worse}), [])
    assert (verdict.fails, verdict.undecided) == (("b", "c"), ("b",))
    assert verdicts.exceptions([verdict]) == "- It is so. Not: c. Undecided: b."


def test_a_case_with_a_seed_just_at_the_limit_is_undecided():
    scores = {"a": GOOD, "b": pd.Series([0.0, 0.5])}
    found = judge(Claim("It is so.", "x", "y", lambda records: scores), [])
    assert (found.verdict, found.undecided) == ("nothing against", ("b",))


def test_a_case_in_which_nothing_differs_is_no_refutation():
    cases = {"a": GOOD, "b": pd.Series([0.0, 0.0]), "c": pd.Series([0.2, 0.21])}
    claim = Claim("It is so.", "x", "y", lambda records: cases, at_most=np.nextafter(1, 0))
    found = judge(claim, [])
    assert (found.verdict, found.holds, found.equal) == ("partly", ("a",), ("b",))
    assert verdicts.exceptions([found]) == "- It is so. Not: c. Equal: b."
    without = judge(replace(claim, cases=lambda records: {name: cases[name] for name in "ab"}), [])
    assert (without.verdict, without.equal) == ("nothing against", ("b",))
    assert verdicts.exceptions([without]) == "- It is so. Equal: b."


@pytest.mark.parametrize("table", [paper.figure2, paper.figure3, paper.figure4, paper.tuning])
def test_who_changes_a_table_of_the_paper_changes_it_for_nobody_else(table):
    before, mine = table().copy(), table()
    mine["of mine"] = 0
    pd.testing.assert_frame_equal(table(), before)


def test_the_papers_losses_at_an_epoch_stand_beside_shorter_runs_alone():
    curve = paper.figure3()
    curve = curve[(curve["model"] == "vgg") & (curve["method"] == "sgd") & (curve["quantity"] == "train_loss")]
    before, after = curve[curve["epoch"].between(1, 199)].sort_values("epoch").iloc[[5, 6]].itertuples()
    at = {n: paper.figure3_at("vgg", n).set_index("method").loc["sgd"] for n in (before.epoch, after.epoch)}
    assert [at[row.epoch]["train_end"] for row in (before, after)] == [before.value, after.value]
    between = paper.figure3_at("vgg", before.epoch + 1).set_index("method").loc["sgd", "train_end"]
    assert min(before.value, after.value) <= between <= max(before.value, after.value)
    at_the_end = paper.figure3_at("vgg", 200).set_index("method")
    whole = paper.tuning().query("model == 'vgg' and source == 'paper'").set_index("method")
    columns = ["train_end", "valid_end", "valid_best"]
    pd.testing.assert_frame_equal(at_the_end[columns].sort_index(), whole[columns].sort_index())
    rows = {n: len(paper.published("vgg", "cifar10", [n])) for n in (20, 200)}
    assert rows == {20: 18, 200: 12} and paper.published("mlp", "digits", [20]).empty


def test_an_improvement_is_more_than_none():
    [claim] = [c for c in CLAIMS if c.text.startswith("A small β")]
    base = arrived(100, method="sgd", alpha0=1e-1)
    assert judge(claim, [base, arrived(100, method="sgd_hd", alpha0=1e-1, beta=1e-6)]).verdict == "not reproduced"
    assert judge(claim, [base, arrived(99, method="sgd_hd", alpha0=1e-1, beta=1e-6)]).verdict == "reproduced"


def test_cases_with_different_seeds_do_not_widen_the_interval_by_what_they_differ_in():
    cases = {"a": pd.Series([-1.0, -1.0, -1.0]), "b": pd.Series([-3.0])}
    found = judge(Claim("It is so.", "somebody", "below 1", lambda records: cases), [])
    assert [np.log(value) for value in (found.low, found.effect, found.high)] == pytest.approx([-2.0] * 3)


def run(loss, **fields):
    fields = dict(epochs=200, seed=0) | fields  # no shorter than any of the paper's
    table = pd.DataFrame(
        dict(epoch=[0, 1], iteration=[0, 469], train_loss=[2.3, loss], alpha=1e-3, valid_loss=loss, valid_accuracy=0.9)
    )
    trace = pd.DataFrame(dict(iteration=[1], loss=[2.3], alpha=[1e-3]))
    return Record(RunSpec(**fields), "finished", 469, table, trace)


def arrived(iterations, outcome="reached", **fields):
    spec = RunSpec(epochs=1000, target_loss=0.29, **fields)
    return Record(spec, outcome, iterations, pd.DataFrame(), pd.DataFrame(), {})


def test_seeds_that_a_case_alone_has_do_not_narrow_the_interval():
    """Cases with the same seeds may all be off the same way: their mean is then as unsure as they are."""
    noise, quiet = pd.Series([-0.3, 0.0, 0.3]), pd.Series(np.full(10, -1.0))
    width = np.ptp(verdicts.interval(noise))
    for cases, expected in (([noise] * 3, width), ([noise, noise, quiet], 2 / 3 * width), ([noise, quiet[:1]], width)):
        found = judge(Claim("So.", "x", "y", lambda records, cases=cases: dict(enumerate(cases))), [])
        assert np.log(found.effect) == pytest.approx(np.mean([scores.mean() for scores in cases]))
        assert np.log(found.high / found.low) == pytest.approx(expected)


def test_the_range_of_two_seeds_is_no_interval_beside_cases_that_have_one():
    noise, pair = pd.Series([-0.3, 0.0, 0.3]), pd.Series([-5.0, 5.0])
    for cases, width in (([noise, pair], np.ptp(verdicts.interval(noise))), ([pair, pair], 10.0)):
        found = judge(Claim("So.", "x", "y", lambda records, cases=cases: dict(enumerate(cases))), [])
        assert np.log(found.high / found.low) == pytest.approx(width)


def test_of_several_runs_with_a_seed_the_longest_counts():
    common = dict(method="sgd", alpha0=1e-3)
    assert claims.finals([run(0.4, **common), run(0.9, **common, epochs=5)]).to_dict() == {0: 0.4}


def test_the_first_epoch_is_the_first_one():
    common = dict(method="sgd", alpha0=1e-3)
    runs = [run(0.9, **common, epochs=1), run(0.5, **common, validate_every=2), run(0.4, **common, seed=1)]
    assert claims.firsts(runs).to_dict() == {0: 0.9, 1: 0.4}


def test_a_claim_comes_alive_with_its_runs():
    records = [run(loss, method="sgd", alpha0=1e-3, seed=s) for s, loss in enumerate((0.50, 0.52))]
    [claim] = [c for c in CLAIMS if "lower training loss than its baseline on log" in c.text]
    assert judge(claim, records).verdict == "not tested"
    records += [run(loss, method="sgd_hd", beta=1e-3, alpha0=1e-3, seed=s) for s, loss in enumerate((0.25, 0.26))]
    assert judge(claim, records).verdict == "reproduced"
    assert judge(claim, records).effect == pytest.approx(0.5)


def test_a_loss_below_the_best_fixed_rates_is_no_failure():
    [claim] = [
        c for c in CLAIMS if c.text.startswith("Adam-HD brings") and c.text.endswith("logistic regression, β = 10⁻⁴.")
    ]
    fixed = {1e-2: 0.20, 1e-3: 0.25, 1e-4: 0.9}
    records = [run(loss, method="adam", alpha0=rate, epochs=50) for rate, loss in fixed.items()]
    records += [run(0.01, method="adam", decay="inv_sqrt", alpha0=1e-5, epochs=50)]  # which is no fixed rate
    records += [run(0.15, method="adam_hd", beta=1e-4, alpha0=rate, epochs=50) for rate in fixed]
    verdict = judge(claim, records)
    assert (verdict.verdict, verdict.holds) == ("reproduced", ("α₀ = 10⁻³", "α₀ = 10⁻⁴"))  # the best one is no case
    assert verdict.effect == pytest.approx((0.15 / 0.25 * 0.15 / 0.9) ** 0.5)


def test_the_multiplicative_rule_is_judged_where_the_learning_rate_has_to_be_found():
    [claim] = [c for c in CLAIMS if c.text.startswith("The multiplicative rule")]
    records = [run(loss, method="sgd", alpha0=rate) for rate, loss in ((1e-1, 0.3), (1e-3, 0.9))]
    for rate in (1e-1, 1e-3):
        records += [run(0.5, method="sgd_hd", beta=1e-4, alpha0=rate, epochs=50)]
        records += [run(0.4, method="sgd_hd", beta=0.02, rule="multiplicative", alpha0=rate)]
    verdict = judge(claim, records)
    assert verdict.holds == ("SGD-HD on logistic regression, α₀ = 10⁻³",) and not verdict.fails


def test_long_runs_of_one_seed_stand_beside_shorter_ones_of_more():
    [claim] = [c for c in CLAIMS if "lower training loss than its baseline on log" in c.text]
    records = [run(0.5, method="sgd", alpha0=1e-3, seed=s, epochs=20) for s in range(3)]
    records += [run(0.4, method="sgd_hd", beta=1e-3, alpha0=1e-3, seed=s, epochs=20) for s in range(3)]
    records += [run(0.1, method="sgd", alpha0=1e-3, epochs=100), run(0.2, method="sgd", alpha0=1e-3, epochs=9)]
    records += [run(0.2, method="sgd_hd", beta=1e-3, alpha0=1e-3, epochs=n) for n in (100, 9)]
    verdict = judge(claim, records)
    assert verdict.holds == ("SGD-HD on logistic regression, 20 epochs",)
    assert verdict.fails == ("SGD-HD on logistic regression, 100 epochs, one seed",)


def test_runs_much_shorter_than_the_papers_decide_nothing_but_where_one_diverged():
    [claim] = [c for c in CLAIMS if "lower training loss than its baseline on log" in c.text]
    base, ours = dict(method="sgd", alpha0=1e-3), dict(method="sgd_hd", beta=1e-3, alpha0=1e-3)
    whole = [run(loss, **how, epochs=20, seed=s) for s, loss in enumerate((0.5, 0.4, 0.6)) for how in (base, ours)]
    short = [run(loss, **how, epochs=9, seed=s) for s in range(9) for loss, how in ((0.5, base), (0.6, ours))]
    assert judge(claim, short).verdict == "not tested"
    assert judge(claim, [*whole, *short]) == judge(claim, whole)
    lost = [replace(r, outcome="diverged") if r.spec.method == "sgd_hd" and r.spec.seed == 8 else r for r in short]
    assert judge(claim, [*whole, *lost]).fails == ("SGD-HD on logistic regression, 9 epochs",)
    [diverges] = [c for c in CLAIMS if c.criterion == "every run diverges"]
    adam = dict(model="mlp", method="adam_hd", beta=1e-4, alpha0=1e-3)
    stopped = [run(1.0, **adam, epochs=1), run(1.0, **adam, max_iterations=30)]
    assert judge(diverges, stopped).verdict == "not tested"
    lost = replace(run(1.0, **adam, epochs=1, max_iterations=30), outcome="diverged")
    assert judge(diverges, [*stopped, lost]).verdict == "reproduced"


def test_a_long_run_from_one_learning_rate_does_not_hide_that_others_end_elsewhere():
    [claim] = [c for c in CLAIMS if c.text.startswith("With a good β it hardly matters")]
    adam = dict(model="mlp", method="adam_hd", beta=1e-7)
    records = [run(loss, alpha0=rate, epochs=10, **adam) for rate, loss in ((1e-2, 0.1), (1e-3, 0.2), (1e-4, 0.5))]
    assert judge(claim, records).verdict == "not reproduced"
    assert judge(claim, [*records, run(0.2, alpha0=1e-3, epochs=100, **adam)]).verdict == "not reproduced"
    longer = [run(0.2, alpha0=rate, epochs=20, **adam) for rate in (1e-2, 1e-3, 1e-4)]
    assert judge(claim, [*records, *longer]).holds == ("Adam-HD on the perceptron, 20 epochs",)


def test_the_spread_over_rates_is_one_of_runs_of_one_length():
    [claim] = [c for c in CLAIMS if c.text.startswith("With a good β it hardly matters")]
    adam = dict(model="mlp", method="adam_hd", beta=1e-7)
    records = [run(0.2, alpha0=rate, epochs=10, **adam) for rate in (1e-2, 1e-3, 1e-4)]
    assert judge(claim, [*records, run(0.1, alpha0=1e-3, epochs=100, **adam)]).verdict == "reproduced"


def test_the_grid_search_is_judged_outside_the_papers_red_region_alone():
    [claim] = [c for c in CLAIMS if c.text.startswith("Outside the region")]
    base = [arrived(100, method="sgd", alpha0=1e-1)]
    red = arrived(900, method="sgd_hd", alpha0=1e-1, beta=1e-1)
    assert ("sgd_hd", 1e-1, 1e-1) in paper.outlined() and ("sgd_hd", 1e-1, 1e-6) not in paper.outlined()
    assert judge(claim, [*base, red]).verdict == "not tested"
    same = arrived(100, method="sgd_hd", alpha0=1e-1, beta=1e-6)
    assert judge(claim, [*base, red, same]).verdict == "reproduced"
    never = arrived(468_750, "finished", method="sgd_hd", alpha0=1e-1, beta=1e-5)
    verdict = judge(claim, [*base, red, same, never])
    assert verdict.verdict == "partly" and verdict.effect == pytest.approx(4687.5**0.5)  # given up after the cap
    early, late = (arrived(n, "finished", max_iterations=n, method="sgd_hd", alpha0=1e-1, beta=1e-5) for n in (30, 200))
    assert judge(claim, [*base, red, same, early]).holds == verdict.holds  # what was to come of it nobody knows
    assert judge(claim, [*base, red, same, early]).verdict == "reproduced"
    assert judge(claim, [*base, red, same, early, late]).effect == pytest.approx(2**0.5)


def test_a_run_that_diverges_in_the_grid_search_is_slower_than_one_that_is_given_up():
    [claim] = [c for c in CLAIMS if c.text.startswith("What Figure 4 shows")]
    mlp = dict(model="mlp", alpha0=1e-6)
    base = [arrived(469, "finished", method="adam", seed=seed, **mlp) for seed in range(3)]
    assert judge(claim, [arrived(469, "finished", method="adam_hd", beta=1e-6, **mlp), *base]).verdict == "not tested"
    faster = [arrived(50, method="adam_hd", beta=1e-6, seed=seed, **mlp) for seed in range(3)]
    lost = [arrived(5, "diverged", method="adam_hd", beta=1e-4, seed=seed, **mlp) for seed in range(3)]
    verdict = judge(claim, [*base, *faster, *lost])
    assert (verdict.verdict, verdict.lost) == ("partly", 1)
    assert verdicts.exceptions([verdict]).endswith("Not: Adam-HD, β = 10⁻⁴, α₀ = 10⁻⁶.")


def test_cases_that_differ_in_their_last_value_alone_are_told_together():
    names = ["SGD-HD, β = 1, α₀ = 1", "SGD-HD, β = 1, α₀ = 2", "Adam-HD, 3 epochs", "β = 1, 5 epochs"]
    assert verdicts._together(names) == "SGD-HD, β = 1, α₀ = 1, 2; Adam-HD, 3 epochs; β = 1, 5 epochs"


def test_a_transition_widens_the_range_where_more_cells_train_with_it_than_without():
    [claim] = [c for c in CLAIMS if "transition" in c.text]
    cells = [dict(model="mlp", alpha0=1e-3, beta=beta, validate_every=0) for beta in (1e-4, 1e-2)]

    def trained(methods, survives, **how):
        return [
            replace(
                run(0.5, method=method, **cell, **how), outcome="finished" if cell["beta"] < survives else "diverged"
            )
            for method in methods
            for cell in cells
        ]

    both = ("sgd_hd", "adam_hd")
    plain = trained(both, 1e-3)
    assert judge(claim, plain).verdict == "not tested"
    moved = trained(["sgd_hd"], 1, final_lr=1e-3, transition=10) + trained(
        ["adam_hd"], 1e-3, final_lr=1e-3, transition=10
    )
    verdict = judge(claim, [*plain, *moved])
    assert verdict.verdict == "nothing against" and verdict.equal == verdict.fails and "Adam-HD" in verdict.fails[0]
    assert verdict.effect == pytest.approx(0.5**0.5)
    assert (
        judge(claim, [*trained(both, 1), *moved]).verdict == "not tested"
    )  # where no run is lost nothing is to be won


def test_the_lowest_validation_loss_is_that_of_any_epoch():
    [claim] = [c for c in CLAIMS if "reaches a validation loss" in c.text]
    common = dict(model="mlp", alpha0=1e-3, epochs=100)
    pair = run(0.1, method="adam", **common), run(0.2, method="adam_hd", beta=1e-7, **common)
    pair[0].epochs.loc[0, "valid_loss"] = 0.01  # before training
    middle = pair[1].epochs[1:].assign(valid_loss=0.05)
    better = replace(pair[1], epochs=pd.concat([pair[1].epochs[:1], middle, pair[1].epochs[1:]]))
    assert judge(claim, [pair[0], better]).effect == pytest.approx(0.5)


def test_the_learning_rates_of_the_whole_vgg_are_judged_for_each_description():
    [sgd] = [c for c in CLAIMS if c.text.startswith("On VGG α")]
    [adam] = [c for c in CLAIMS if c.text.startswith("On VGG Adam-HD's α")]
    whole = dict(task="cifar10", model="vgg", alpha0=1e-3)

    def peaked(peak, last=1e-4, **fields):
        trace = pd.DataFrame(dict(iteration=[1, 2], loss=[2.3, 2.2], alpha=[peak, last]))
        return replace(run(1.0, **whole, **fields), trace=trace)

    records = [peaked(0.02, method="sgd_hd", beta=1e-3), peaked(0.003, method="sgd_hd", beta=1e-3, variant="paper")]
    records += [
        peaked(1.002e-3, method="adam_hd", beta=1e-8),
        peaked(0.02, method="sgdn_hd", beta=1e-3, width_factor=0.5),
    ]
    verdict = judge(sgd, records)
    assert (len(verdict.holds), len(verdict.fails)) == (1, 1) and "the paper's text" in verdict.fails[0]
    rising = peaked(0.003, 0.004, method="sgd_hd", beta=1e-3, variant="paper")  # which says nothing of the peak to come
    assert judge(sgd, [records[0], rising]).fails == ()
    trace = pd.DataFrame(dict(iteration=[1, 2, 9_001], loss=[2.3, 2.2, 2.1], alpha=[0.02, 0.01, 0.2]))
    assert judge(sgd, [replace(records[0], trace=trace)]).verdict == "reproduced"  # later than the paper shows
    assert judge(adam, records).verdict == "reproduced"
    assert judge(adam, [peaked(1e-3, method="adam_hd", beta=1e-8)]).verdict == "not reproduced"


def test_runs_that_were_not_traced_say_nothing_of_the_learning_rates_course():
    claimed = [c for c in CLAIMS if "largest α" in c.criterion]
    runs = [run(0.1, method=method, alpha0=1e-3, beta=1e-3, early=0) for method in ("sgd_hd", "sgdn_hd")]
    runs = [replace(r, trace=r.trace[:0]) for r in runs]
    assert claimed and {judge(claim, runs).verdict for claim in claimed} == {"not tested"}


def test_an_alpha_of_zero_is_judged_for_each_length():
    [claim] = [c for c in CLAIMS if c.text == "α₀ = 0 works."]
    records = [
        run(loss * worse, method="sgd_hd", alpha0=rate, beta=1e-4, epochs=epochs, seed=seed)
        for epochs, seeds, loss, from_zero in ((50, 1, 0.2, 1.05), (20, 3, 0.3, 1.2), (5, 9, 0.3, 1.2))
        for seed in range(seeds)
        for rate, worse in ((0.0, from_zero), (1e-3, 1.0))
    ]
    verdict = judge(claim, records)
    assert verdict.holds == ("SGD-HD, β = 10⁻⁴, 50 epochs, one seed",)
    assert verdict.fails == ("SGD-HD, β = 10⁻⁴, 20 epochs",)


def test_only_the_papers_own_settings_are_selected():
    plain = run(0.3, method="sgd_hd", alpha0=1e-3, beta=1e-3, validate_every=2, early=0)
    others = dict(max_lr=0.1), dict(scaling="adam"), dict(batch_size=64), dict(weight_decay=0.0), dict(rule="log")
    records = [run(0.3, method="sgd_hd", alpha0=1e-3, beta=1e-3, **other) for other in others]
    records += [run(0.3, model="mlp", width=100, method="sgd", alpha0=1e-3), plain]
    records += [run(0.3, method="sgd_hd", alpha0=1e-3, beta=1e-3, validate_every=0)]  # that kept no epochs
    assert claims.select(records) == [plain]
    assert claims.select(records, rule="log") == [records[4]]


def test_variants_and_precisions_of_vgg_are_judged_apart():
    [claim] = [c for c in CLAIMS if c.text.startswith("On VGG, Adam-HD")]
    vgg = dict(task="cifar10", model="vgg", alpha0=1e-3, epochs=200)
    records = [run(0.2, method="adam", **vgg), run(0.1, method="adam_hd", beta=1e-8, **vgg)]
    assert judge(claim, records).verdict == "reproduced"
    as_told = vgg | {"variant": "paper"}
    records += [run(0.2, method="adam", **as_told), run(0.4, method="adam_hd", beta=1e-8, **as_told)]
    verdict = judge(claim, records)
    assert verdict.verdict == "partly" and "the paper's text" in verdict.fails[0]
    half = vgg | {"precision": "bf16"}  # of the same seeds as the first two
    records += [run(0.2, method="adam", **half), run(0.5, method="adam_hd", beta=1e-8, **half)]
    assert sum("bf16" in name for name in judge(claim, records).fails) == 1
    assert len(judge(claim, records).holds) == 1


@pytest.mark.parametrize("claim", [c for c in (*CLAIMS, claims.cost("")) if c.found], ids=lambda c: c.text)
def test_a_claim_is_judged_by_the_number_that_its_criterion_states(claim):
    stated = re.search(r"(?:below|at most|within a factor of) ([0-9.]*[0-9])", claim.criterion)[1]
    assert claim.at_most == pytest.approx(float(stated))


@pytest.mark.parametrize(
    ("start", "method", "beta", "peak", "last", "holds"),
    [
        ("α rises to about 0.05", "sgd_hd", 1e-3, 0.05, 0.009, (True, True)),
        ("α rises to about 0.05", "sgd_hd", 1e-3, 0.05, 0.011, (True, False)),
        ("α rises to about 0.05", "sgd_hd", 1e-3, 0.024, 0.004, (False, True)),
        ("α rises to about 0.05", "sgd_hd", 1e-3, 0.11, -0.02, (False, True)),
        ("Adam-HD's α rises by a few", "adam_hd", 1e-7, 1.2e-3, 1.0e-3, (True, True)),
        ("Adam-HD's α rises by a few", "adam_hd", 1e-7, 1.01e-3, 1.0e-3, (False, False)),
        ("Adam-HD's α rises by a few", "adam_hd", 1e-7, 1.4e-3, 1.5e-3, (False, False)),
    ],
)
def test_the_largest_alpha_and_its_decay_are_judged_apart(start, method, beta, peak, last, holds):
    [claim] = [c for c in CLAIMS if c.text.startswith(start)]
    record = run(0.1, method=method, alpha0=1e-3, beta=beta)
    trace = pd.DataFrame(dict(iteration=[1, 2], loss=[2.3, 2.2], alpha=[peak, peak / 2]))
    record = replace(record, trace=trace, epochs=record.epochs.assign(alpha=last))
    found = judge(claim, [record]).holds
    assert tuple(any(name.endswith(what) for name in found) for what in ("the peak", "the decay")) == holds


def test_whose_alpha_is_largest_earlier_is_read_from_the_traces():
    [claim] = [c for c in CLAIMS if c.text.startswith("SGDN-HD's α rises earlier")]
    records = []
    for method, at in (("sgd_hd", 30), ("sgdn_hd", 10)):
        trace = pd.DataFrame(dict(iteration=[1, at, 99], loss=1.0, alpha=[1e-3, 0.05, 0.04]))
        records.append(replace(run(0.1, method=method, alpha0=1e-3, beta=1e-3), trace=trace))
    verdict = judge(claim, records)
    assert verdict.verdict == "reproduced" and verdict.effect == pytest.approx(1 / 3)


@pytest.mark.parametrize(("epochs", "verdict"), [(100, "reproduced"), (50, "not tested")])
def test_a_loss_that_jumps_is_judged_by_the_mean_of_the_last_ten_of_a_hundred_epochs(epochs, verdict):
    [claim] = [c for c in CLAIMS if "about ten times lower" in c.text]
    records = []
    for method, beta, losses in (("adam", 0.0, [1.0] * 10), ("adam_hd", 1e-7, [*[0.05] * 9, 0.55])):
        record = run(9.0, model="mlp", method=method, beta=beta, alpha0=1e-3, epochs=epochs)
        last = [record.epochs[1:].assign(train_loss=loss) for loss in losses]
        records.append(replace(record, epochs=pd.concat([record.epochs, *last])))
    found = judge(claim, records)
    assert found.verdict == verdict and (verdict == "not tested" or found.effect == pytest.approx(0.1))


def test_a_run_with_hypergradients_that_diverges_decides_its_case():
    [claim] = [c for c in CLAIMS if "lower training loss than its baseline on log" in c.text]
    base, lost = (run(0.5, method=m, alpha0=1e-3, beta=b) for m, b in (("sgd", 0.0), ("sgd_hd", 1e-3)))
    verdict = judge(claim, [base, replace(lost, outcome="diverged")])
    assert (verdict.verdict, verdict.lost) == ("not reproduced", 1)
    [diverges] = [c for c in CLAIMS if c.criterion == "every run diverges"]
    adam = dict(model="mlp", method="adam_hd", beta=1e-4)
    records = [replace(run(9.0, alpha0=rate, **adam), outcome="diverged") for rate in (1e-1, 1e-3)]
    assert judge(diverges, records).verdict == "reproduced"
    assert judge(diverges, [*records, run(9.0, alpha0=1e-6, **adam)]).fails == ("α₀ = 10⁻⁶",)


def test_training_and_validation_losses_are_judged_apart():
    base, ours = (run(0.5, method=m, alpha0=1e-3, beta=b) for m, b in (("sgd", 0.0), ("sgd_hd", 1e-3)))
    ours = replace(ours, epochs=ours.epochs.assign(train_loss=0.25, valid_loss=0.75))
    for loss, effect in (("training", 0.5), ("validation", 1.5)):
        [claim] = [c for c in CLAIMS if f"lower {loss} loss than its baseline on log" in c.text]
        assert judge(claim, [base, ours]).effect == pytest.approx(effect)


def test_adam_hd_is_set_against_the_adam_that_each_claim_names():
    cell = dict(alpha0=1e-6)
    records = [arrived(200, method="adam", decay="inv_sqrt", **cell), arrived(50, method="adam", **cell)]
    records.append(arrived(100, method="adam_hd", beta=1e-6, **cell))
    assert ("adam_hd", 1e-6, 1e-6) not in paper.outlined()
    for start, effect in (("Outside the region", 0.5), ("The same against", 2.0)):
        [claim] = [c for c in CLAIMS if c.text.startswith(start)]
        assert judge(claim, records).effect == pytest.approx(effect)


def test_alpha_is_set_against_the_papers_curves_by_the_median_over_its_starts(monkeypatch):
    curves = pd.DataFrame(
        [("logreg", "sgd_hd", rate, "additive", "alpha", 1, 0.01) for rate in (1e-1, 1e-2, 1e-3)]
        + [("logreg", "sgd_hd", 1e-2, "multiplicative", "alpha", 1, 1.0)],
        columns=["model", "method", "alpha0", "rule", "quantity", "epoch", "value"],
    )
    monkeypatch.setattr(paper, "figure2", lambda: curves)
    [claim] = [c for c in CLAIMS if c.text.startswith("Each panel of Figure 2")]
    records = []
    for rate, alpha in ((1e-1, 0.012), (1e-2, 0.014), (1e-3, 0.03)):
        record = run(0.5, method="sgd_hd", alpha0=rate, beta=1e-4)
        records.append(replace(record, epochs=record.epochs.assign(alpha=alpha)))
    verdict = judge(claim, records)
    assert verdict.verdict == "reproduced" and verdict.effect == pytest.approx(1.4, rel=1e-6)


def test_every_claim_has_a_verdict_from_the_recorded_runs_and_the_tally_counts_them():
    found = claims.judged(Store(RESULTS).all())
    assert {v.verdict for v in found} <= set(VERDICTS) and len({v.claim.text for v in found}) == len(found)
    told = [int(number) for number in re.findall(r"\d+", verdicts.tally(found))]
    counts = Counter(v.verdict for v in found)
    once = sum(v.verdict == "reproduced" and v.seeds == 1 for v in found)
    total, reproduced, *others = (counts[verdict] for verdict in ("", *VERDICTS[:-1]))
    assert told == [len(found), reproduced, once, *others] and once and not total
    more = [replace(v, seeds=3) for v in found]
    assert "with one seed" in verdicts.tally(found) and "with one seed" not in verdicts.tally(more)
    assert "none was left untested" in verdicts.tally(found)
    assert "0 not reproduced; 1 not tested yet." in verdicts.tally([judge(claims.cost("nowhere"), [])])
    assert len(verdicts.ledger(found).data) == len(found)


def test_the_cost_is_judged_by_the_benchmark(tmp_path):
    assert judge(claims.cost(str(tmp_path)), []).verdict == "not tested"
    (tmp_path / "benchmarks").mkdir()
    rounds = {"SGD-HD, mlp": [1.02, 1.04, 1.03], "Adam-HD, logreg": [1.3, 1.35, 1.25]}
    (tmp_path / "benchmarks" / "optimizer_step.json").write_text(json.dumps({"iterations": rounds}))
    verdict = judge(claims.cost(str(tmp_path)), [])
    assert verdict.verdict == "partly" and verdict.fails == ("Adam-HD on logistic regression, CPU",)
    measured = {"made": {"device": "a GPU"}, "overhead": {"captured": {"sgd_hd": 0.05, "adam_hd": 0.2}}}
    (tmp_path / "benchmarks" / "vgg.json").write_text(json.dumps(measured))
    verdict = judge(claims.cost(str(tmp_path)), [])
    assert "SGD-HD on VGG, a GPU, captured" in verdict.holds and "Adam-HD on VGG, a GPU, captured" in verdict.fails
