"""What the page on the rule with no beta says follows from the runs and from the rule's constants."""

import re
from dataclasses import replace

import pandas as pd
import pytest
from test_guard_comparison import MADE, run

from hdlib.optim.control import AUTO_OVERSHOOT
from hdlib.report import automatic
from hdlib.report.style import LABELS, LIGHT
from hdlib.runs import BASELINE, Record, RunSpec
from hdlib.runs.record import TRACE_COLUMNS


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
    table = automatic.noiseless(groups).data.set_index("method")
    assert table["runs lost"].tolist() == ["0 of 1", "1 of 2", "0 of 2", "0 of 1", "1 of 2", "0 of 1", "1 of 2"]
    assert table.loc["SGD-HD, automatic", "largest α"] == "0.0500 to 0.900"
    assert "SGD, α = 10⁻¹" in table.index and "accuracy below 50 %" in automatic.noiseless(groups).note
    said = automatic.noiseless_sentence(groups)
    assert "automatic β 3 of 6 end" in said and "below 50 % (1 of 2 with SGD-HD, 1 of 2 with SGDN-HD and 1 of" in said
    assert said.endswith("with an upper bound on α, 1 for SGD-HD, none of 2.")


def test_each_run_without_noise_is_a_line_in_the_panels_of_its_method():
    def traced(method, level, **fields):
        made = run(0.1, method, task="digits", beta="auto", **fields)
        rows = [[i, 2 * level, level, 0.0] for i in (1, 2)]
        return replace(made, trace=pd.DataFrame(rows, columns=TRACE_COLUMNS))

    groups = {
        "no HD": [run(0.1, "sgd", task="digits")],
        "automatic": [traced("sgd_hd", 1.0), traced("adam_hd", 2.0, seed=1), traced("adam_hd", 3.0)],
        "automatic, α at most 0.1": [traced("adam_hd", 0.1, max_lr=0.1)],
    }
    axes = automatic.noiseless_figure(groups, "name", "").draw(LIGHT).axes
    levels = [sorted(float(line.get_ydata()[0]) for line in axis.lines) for axis in axes]
    assert levels == [[1], [], [0.1, 2, 3], [2], [], [0.2, 4, 6]]
    assert [axis.get_title() for axis in axes[:3]] == ["SGD-HD", "SGDN-HD", "Adam-HD"]


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
    common = dict(method="sgd", alpha0=0.01, epochs=2)
    specs = [RunSpec(**common, **model, seed=i) for i in range(2) for model in ({}, dict(model="mlp", width=100))]
    assert automatic.slope_ratios(measured, specs) == (
        "For SGD the mean *r*, before training and after 2 epochs at α = 10⁻², is 0.60 and 0.10 for logistic "
        "regression; 0.50 and 0.20 for the perceptron of 100 (2 seeds, 6 pairs of successive minibatches, float32)."
    )


def test_the_scope_of_the_automatic_beta_is_what_was_run():
    longer = Record(RunSpec(method="sgd_hd", beta="auto", alpha0=0.1, epochs=3), "finished", 1407, *[None] * 2, MADE)
    others = [
        run(0.1, beta=1e-4, batch_size=16),
        replace(longer, spec=longer.spec.with_(beta=1e-4, rule="additive"), iterations=9999),
    ]
    said = automatic.scope([run(0.1, beta="auto"), *others, longer])
    assert "minibatches of 128, " in said and "at most 1,407 iterations, those of logistic regression" in said
    assert "have batches of 16 and 1024, too; none of them has a tolerance" in said and "(vgg-epochs)" in said
    assert "constants, 10, 300 steps, 0.3 and 0.3 of the norm" in said
    assert automatic.scope([run(0.1, beta=1e-4)]) == ""


def test_no_formula_is_written_where_none_is_rendered():
    assert "$" not in automatic.tolerances()


def test_one_number_stands_behind_the_overshoots_of_all_methods():
    said = re.fullmatch(r"The factor is (.*), and so \*c\* is (.*)\. The one number .*", automatic.tolerances())
    factors, chosen = (
        {name: float(n) for n, name in re.findall(r"([\d.]+) for (\S+?)(?:,|$)", part)} for part in said.groups()
    )
    assert list(factors) == list(chosen) == [LABELS[method] for method in BASELINE]
    assert factors["SGD-HD"] == 1 and min(factors["SGDN-HD"], factors["Adam-HD"]) > 1.5
    assert [factors[name] * chosen[name] for name in factors] == pytest.approx([AUTO_OVERSHOOT] * 3, rel=0.03)


def test_a_factorisation_is_lost_where_its_loss_is_not_below_the_first():
    table = automatic.factorisations(
        {("SGD-HD", 1e-2): [0.5, float("nan"), 0.25], ("Adam-HD", 100.0): [1.0, 7.0, float("inf")]}
    )
    assert table.data.to_numpy().tolist() == [
        ["SGD-HD", "10⁻²", "1 of 3", "0.250 to 0.500"],
        ["Adam-HD", "10²", "3 of 3", ""],
    ]
    assert table.note.startswith("3 seeds; ") and "are the same" not in table.note
    ends = {("Adam-HD", 1e-2): [0.5, 0.3], ("Adam-HD", 1.0): [0.5, 0.2], ("Adam-HD", 100.0): [0.5, 0.2]}
    said = "The runs of Adam-HD from 10⁰ and 10² are the same: their first step is limited."
    assert said in automatic.factorisations(ends).note
