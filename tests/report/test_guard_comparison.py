"""How the automatic beta is set against the plain rule and no hypergradients follows from the runs."""

import json
import re
from dataclasses import replace

import pandas as pd
import pytest

from hdlib.optim.control import AUTO_OVERSHOOT
from hdlib.report import guards
from hdlib.report.style import LABELS, LIGHT
from hdlib.runs import Record, RunSpec
from hdlib.runs.record import EPOCH_COLUMNS, TRACE_COLUMNS

MADE = {"device": "cpu", "data": "made up"}


def run(loss, method="adam_hd", alpha0=1e-3, outcome="finished", iterations=469, **fields):
    """Return a made-up run of one epoch that ends at a loss."""
    spec = RunSpec(method=method, alpha0=alpha0, epochs=1, early=0, **fields)
    epochs = pd.DataFrame([[0, 0, 2.3, alpha0, 2.3, 0.1], [1, 469, loss, alpha0, loss, 0.8]], columns=EPOCH_COLUMNS)
    return Record(spec, outcome, iterations, epochs, pd.DataFrame([], columns=TRACE_COLUMNS), MADE)


@pytest.fixture
def comparison():
    """Two initial learning rates; of the plain rule's two betas the larger is better from one and diverges from one."""
    automatic = [run(0.2, alpha0=1e-3, beta="auto"), run(0.3, alpha0=1e-2, beta="auto")]
    plain = [
        run(0.25, alpha0=1e-3, beta=1e-6),
        run(0.10, alpha0=1e-3, beta=1e-5),
        run(0.30, alpha0=1e-2, beta=1e-6),
        run(0.01, alpha0=1e-2, beta=1e-5, outcome="diverged"),
    ]
    return automatic, plain, [run(0.4, "adam", alpha0=1e-3), run(0.3, "adam", alpha0=1e-2)]


def test_the_automatic_beta_is_held_against_the_betas_that_suit_the_plain_rule_best(comparison):
    [said] = guards.automatic_sentences(*comparison).splitlines()
    assert said.startswith("- Adam-HD with the automatic β: none of 2 runs diverged. Of 2 initial learning rates")
    assert "at or below the plain rule with the best single β, 10⁻⁶, from 2" in said
    assert "at or below the plain rule with the best β for each from 1" in said
    assert "below the fixed rate α₀ from 1" in said
    assert "0.667 to 1.00 times that of the best fixed rate, α = 10⁻²" in said
    automatic, plain, base = comparison
    between = [run(0.35, alpha0=1e-3, beta="auto"), automatic[1]]  # below its own fixed rate, above the best one
    assert "below the fixed rate α₀ from 1. " in guards.automatic_sentences(between, plain, base)
    assert guards.table({"plain": plain}, base).data["below the fixed rate"].tolist() == ["2 of 4"]


def test_the_figure_of_the_automatic_beta_has_each_methods_runs_in_its_panel(comparison):
    automatic, plain, base = comparison
    others = [run(0.9, "sgd_hd", alpha0=1e-3, beta=1e-4)], [run(0.8, "sgd", alpha0=1e-3)]
    figure = guards.automatic_figure([*automatic, run(0.7, "sgd_hd", beta="auto")], plain + others[0],
                                     base + others[1], "name", "")  # fmt: skip
    panels = {axis.get_title(): axis for axis in figure.draw(LIGHT).axes}
    drawn = {
        name: {
            marker: sorted(y for line in axis.lines if line.get_marker() == marker for y in line.get_ydata() if y < 9)
            for marker in "o.D"
        }
        for name, axis in panels.items()
    }
    assert drawn["SGD-HD"] == {"o": [0.8], ".": [0.9], "D": [0.7]}
    assert drawn["Adam-HD"] == {"o": [0.3, 0.4], ".": [0.1, 0.25, 0.3], "D": [0.2, 0.3]}


def test_one_number_stands_behind_the_overshoots_of_all_methods():
    said = re.fullmatch(r"The factor is (.*), and so \*c\* is (.*)\. The one number .*", guards.tolerances())
    factors, chosen = (
        {name: float(n) for n, name in re.findall(r"([\d.]+) for (\S+?)(?:,|$)", part)} for part in said.groups()
    )
    assert list(factors) == list(chosen) == [LABELS[method] for method in guards.HD]
    assert factors["SGD-HD"] == 1 and min(factors["SGDN-HD"], factors["Adam-HD"]) > 1.5
    assert [factors[name] * chosen[name] for name in factors] == pytest.approx([AUTO_OVERSHOOT] * 3, rel=0.03)


def test_a_guards_step_is_told_over_a_step_of_the_plain_rule(tmp_path):
    assert "Not measured" in guards.costs(str(tmp_path)).data
    (tmp_path / "benchmarks").mkdir()
    found = {"guards": {"automatic": {"SGDHD": 1.257, "AdamHD": 1.1}}}
    (tmp_path / "benchmarks" / "optimizer_step.json").write_text(json.dumps(found))
    assert guards.costs(str(tmp_path)).data.to_numpy().tolist() == [["automatic", "1.26", "1.10"]]


def test_what_is_lost_without_noise_is_counted_with_and_without_a_bound():
    def runs(method, *accuracies, **fields):
        made = [run(1 - accuracy, method, task="digits", seed=i, **fields) for i, accuracy in enumerate(accuracies)]
        for record, accuracy in zip(made, accuracies, strict=True):
            record.epochs["valid_accuracy"] = accuracy
            record.trace.loc[0] = dict.fromkeys(TRACE_COLUMNS, 1) | {"alpha": 1 - accuracy}
        return made

    groups = {"no HD": [], "automatic": [], "automatic, α at most 1": []}
    for base in ("sgd", "sgdn", "adam"):
        groups["no HD"] += runs(base, 0.9, alpha0=0.1) + runs(base, 0.5, alpha0=0.01)
        groups["automatic"] += runs(f"{base}_hd", 0.1, 0.95, beta="auto")
    groups["automatic, α at most 1"] += runs("sgd_hd", 0.95, 0.9, beta="auto", max_lr=1.0)
    table = guards.noiseless(groups).data.set_index("method")
    assert table["runs lost"].tolist() == ["0 of 1", "1 of 2", "0 of 2", "0 of 1", "1 of 2", "0 of 1", "1 of 2"]
    assert table.loc["SGD-HD, automatic", "largest α"] == "0.0500 to 0.900"
    assert "SGD, α = 10⁻¹" in table.index and "accuracy below 50 %" in guards.noiseless(groups).note
    said = guards.noiseless_sentence(groups)
    assert "automatic β 3 of 6 end" in said and said.endswith("with an upper bound on α, 1 for SGD-HD, none of 2.")


def test_the_models_that_the_constants_were_chosen_on_are_counted_apart_from_the_one_that_tests_them(comparison):
    lost = ([run(0.1, "sgd_hd", beta="auto", outcome="diverged")], [run(0.5, "sgd_hd", beta=1e-6)], [run(0.6, "sgd")])
    same = ([run(0.2, alpha0=rate, beta="auto") for rate in (1e-3, 1e-2)], *comparison[1:])
    said = guards.automatic_in_all({"Chosen on": [comparison, lost], "Test": [same]})
    chosen, test = (line for line in said.splitlines() if line.startswith("- "))
    assert chosen.startswith("- **Chosen on**: 1 of 3 runs diverged. Of 3 starts")
    assert "its best single β from 2" in chosen and "its best β for each start from 1" in chosen
    assert "at or below the best fixed rate from 2" in chosen
    assert test.startswith("- **Test**: none of 2 runs diverged. Of 2 starts")
    assert said.endswith("ends at the same losses, because the limit on the first step gives them the same α.")


def test_the_worst_start_is_named_for_each_method_and_length():
    def runs(ends, epochs, **fields):
        made = [run(loss, method, alpha0=rate, **fields | how) for method, rate, loss, how in ends]
        return [replace(r, spec=r.spec.with_(epochs=epochs)) for r in made]

    auto = dict(beta="auto")
    short = [("sgd", 1e-1, 0.2, {}), ("sgd", 1e-2, 0.3, {}), ("sgd_hd", 1e-1, 0.1, auto), ("sgd_hd", 1e-6, 0.3, auto)]
    long = [("sgd", 1e-1, 0.1, {}), ("sgd_hd", 1e-1, 0.05, auto), ("sgd_hd", 1e-6, 0.4, auto)]
    others = [
        ("sgd_hd", 1e-6, 9.0, auto | dict(overshoot=0.0)),
        ("sgd_hd", 1e-6, 9.0, dict(beta=1e-3)),
        ("sgd", 1e-1, 0.001, dict(decay="cosine")),
        ("adam", 1e-3, 0.1, {}),
    ]
    wide = dict(model="mlp", width=1000)
    records = runs(short, 2, **wide) + runs(long, 10, **wide) + runs(others, 10, **wide)
    worst = guards.worst_starts([*records, *runs(long, 3, task="digits")], "mnist")
    assert worst.to_numpy().tolist() == [
        ["the perceptron with hidden layers of 1000", 2, "sgd_hd", 1e-6, pytest.approx(1.5)],
        ["the perceptron with hidden layers of 1000", 10, "sgd_hd", 1e-6, pytest.approx(4)],
    ]
    assert guards.worst_start_sentences(worst) == (
        "- SGD-HD: 4.00 times the loss of the best fixed rate, on the perceptron with hidden layers of 1000 after 10 "
        "epochs from α₀ = 10⁻⁶, 1.50 times after 2; the longest runs were worse than the shortest on 1 of one model."
    )
    table = guards.worst_start_table(worst).data
    assert table["SGD-HD"].tolist() == ["1.50, α₀ = 10⁻⁶", "4.00, α₀ = 10⁻⁶"] and set(table["Adam-HD"]) == {""}


def test_settings_that_know_the_result_or_lie_at_the_edge_are_owned_up_to():
    base = [run(0.2, "sgd", alpha0=0.1), run(0.3, "sgd", alpha0=0.01), run(0.2, "adam", alpha0=0.1)]
    guarded = {
        "plain": [run(0.3, "sgd_hd", alpha0=0.1, beta=1e-3), run(0.4, "sgd_hd", alpha0=0.1, beta=1e-1)],
        "multiplicative": [
            run(0.4, "sgd_hd", alpha0=0.1, beta=1e-3, rule="multiplicative"),
            run(0.3, "sgd_hd", alpha0=0.1, beta=1e-1, rule="multiplicative"),
        ],
        "automatic": [run(0.2, "sgd_hd", alpha0=0.1, beta="auto")],
    }
    said = guards.settings([(guarded, base)])
    assert "0.1, is the best of the fixed rates of SGD in 1 of 1 comparisons" in said
    assert "0.001, that of Adam in 0 of 1" in said
    assert "the largest that was tried, 10⁻¹, for 1 of 1 pairs" in said and "other guards for 0 of 1)" in said
    assert said.endswith("the paper's β, 0.02, was not tried.")


def test_the_best_single_beta_loses_runs_from_the_fewest_starts_and_then_has_the_smallest_worst_loss(comparison):
    """Of three betas one is better at its worst, and one better yet where it does not diverge."""
    _, plain, base = comparison
    guarded = {
        "plain": plain,
        "three": [
            *(run(loss, alpha0=alpha0, beta=1e-6) for alpha0, loss in ((1e-3, 0.9), (1e-2, 0.2))),
            *(run(loss, alpha0=alpha0, beta=1e-5) for alpha0, loss in ((1e-3, 0.6), (1e-2, 0.6))),
            run(0.1, alpha0=1e-3, beta=1e-4),
            run(0.1, alpha0=1e-2, beta=1e-4, outcome="diverged"),
        ],
        "lost": [run(0.1, alpha0=1e-3, beta=1e-4, outcome="diverged")],
    }
    best = guards.best_single_beta(guards.by_cell(guarded, base)).set_index("guard")
    assert best["beta"].to_dict() == {"plain": 1e-6, "three": 1e-5, "lost": 1e-4}
    assert best["worst"].tolist() == pytest.approx([1.0, 2.0, float("inf")])
    shown = guards.table(guarded, base).data.set_index("guard")["worst, best single β"]
    assert shown.tolist() == ["1.00, β = 10⁻⁶", "2.00, β = 10⁻⁵", "diverges"]
    figure = guards.figure(guarded, base, "name", "Caption.")
    dots, rings = (figure.draw(LIGHT).axes[row + guards.HD.index("adam_hd")] for row in (0, 3))
    ring, cross = (next(line for line in rings.lines if line.get_marker() == marker) for marker in "oX")
    assert ring.get_fillstyle() == "none" and all(line.get_fillstyle() != "none" for line in dots.lines)
    assert list(zip(*ring.get_data(), strict=True)) == [(pytest.approx(1.0), 0), (pytest.approx(2.0), 1)]
    assert cross.get_ydata().tolist() == [2] and rings.get_xlim()[1] < 3
    assert figure.caption == (
        "Caption. Dots, above: the worst cell with any β. Rings, below: the worst α₀ with the best single β. A cross "
        "in place of a dot: a run diverged; in place of a ring: with every β one did."
    )


def test_the_verdict_names_a_winner_for_each_method_and_owns_up_where_it_is_not_the_automatic_beta():
    base = [run(0.2, "sgd"), run(0.2, "adam")]
    guarded = {
        "plain": [run(0.4, "sgd_hd", beta=1e-4), run(0.4, beta=1e-4)],
        "same": [run(0.4, "sgd_hd", beta=1e-4), run(0.9, beta=1e-4)],
        "automatic": [run(0.5, "sgd_hd", beta="auto"), run(0.1, beta="auto")],
    }
    assert guards.verdict(guarded, base).endswith(
        "that of *plain* and one other alike for SGD-HD (2.00; *automatic*: 2.50), of *automatic* for Adam-HD (0.500)."
    )


def test_log_space_is_explained_by_the_mildest_of_the_runs_that_it_lost():
    def traced(h):
        record = run(1.0, beta=0.1, rule="log", outcome="diverged")
        rows = [[1, 2.3, 1e-3, -0.0], [2, 2.2, 1e-3, h], [3, float("nan"), float("inf"), float("nan")]]
        return Record(record.spec, "diverged", 3, record.epochs, pd.DataFrame(rows, columns=TRACE_COLUMNS), MADE)

    guarded = {"log space": [run(0.3, beta=1e-4, rule="log"), traced(-500.0)], "multiplicative": [run(0.3, beta=0.1)]}
    said = guards.unbounded(guarded, [traced(-9000.0), traced(-500.0), guarded["log space"][0]])
    assert "lost 1 of 2 runs of Adam-HD" in said
    assert (
        "the 2 lost runs of the perceptron below, of Adam-HD, an *h* of −500 at β = 10⁻¹ multiplied α by 5.2 × 10²¹"
        in said
    )
    assert guards.unbounded(guarded | {"multiplicative": [traced(-1.0)]}, []) == ""
    assert guards.unbounded(guarded | {"log space": guarded["multiplicative"]}, []) == ""


def test_the_ratios_of_slopes_are_told_from_before_training_and_from_its_end():
    measured = pd.DataFrame(
        [
            ("logreg", 0, 0.7),
            ("logreg", 0, 0.5),
            ("logreg", 1, 0.3),
            ("logreg", 2, 0.1),
            ("mlp", 0, 0.5),
            ("mlp", 2, 0.2),
        ],
        columns=["model", "epochs", "ratio"],
    )
    specs = [RunSpec(method="sgd", alpha0=0.01, epochs=2, seed=seed) for seed in range(2)]
    assert guards.slope_ratios(measured, specs) == (
        "For SGD the mean *r*, before training and after 2 epochs at α = 10⁻², is 0.60 and 0.10 for logistic "
        "regression; 0.50 and 0.20 for the perceptron (2 seeds, 6 pairs of successive minibatches, float32)."
    )


def test_the_scope_of_the_automatic_beta_is_what_was_run():
    longer = Record(RunSpec(method="sgd_hd", beta="auto", alpha0=0.1, epochs=3), "finished", 1407, *[None] * 2, MADE)
    said = guards.scope([run(0.1, beta="auto"), run(0.1, beta=1e-4, batch_size=16), longer])
    assert "minibatches of 128, " in said and "at most 1,407 iterations, those of logistic regression" in said
    assert "constants, 10, 300 steps, 0.3 and 0.3 of the norm" in said
    assert guards.scope([run(0.1, beta=1e-4)]) == ""


def test_a_guard_with_fewer_seeds_is_compared_with_the_runs_of_its_own(comparison):
    """Seed 1 is twice as hard for every rule: beside both seeds' median, seed 0 of a guard would look better."""
    _, plain, base = comparison
    hard = [[run(2 * r.epochs["train_loss"].iloc[-1], **r.spec.model_dump(include=FIELDS), seed=1) for r in own]
            for own in (plain, base)]  # fmt: skip
    guarded = {"plain": [*plain, *hard[0]], "alike": [run(0.25, alpha0=1e-3, beta=1e-6, max_change=0.1)]}
    cell = guards.by_cell(guarded, [*base, *hard[1]]).set_index("guard").loc["alike"]
    assert (cell["no_hd"], cell["plain"], cell["over_best"]) == (0.4, 0.1, pytest.approx(0.25 / 0.3))
    shown = guards.table(guarded, [*base, *hard[1]]).data.set_index("guard")
    assert shown.loc["alike", "best β ÷ plain"] == "2.50"


FIELDS = {"method", "alpha0", "beta"}
