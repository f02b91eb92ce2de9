"""How the automatic beta is set against the paper's rule and no hypergradients follows from the runs."""

import json
from dataclasses import asdict, replace

import pandas as pd
import pytest
import torch

from hdlib.optim import SGDHD
from hdlib.optim.control import KEYS
from hdlib.report import automatic_compared, guards
from hdlib.report.style import LIGHT
from hdlib.runs import Record, RunSpec, experiments
from hdlib.runs.record import EPOCH_COLUMNS, TRACE_COLUMNS

MADE = {"device": "cpu", "data": "made up"}


def run(loss, method="adam_hd", alpha0=1e-3, outcome="finished", iterations=469, **fields):
    """Return a made-up run of one epoch that ends at a loss."""
    spec = RunSpec(method=method, alpha0=alpha0, epochs=1, early=0, **fields)
    epochs = pd.DataFrame([[0, 0, 2.3, alpha0, 2.3, 0.1], [1, 469, loss, alpha0, loss, 0.8]], columns=EPOCH_COLUMNS)
    return Record(spec, outcome, iterations, epochs, pd.DataFrame([], columns=TRACE_COLUMNS), MADE)


@pytest.fixture
def comparison():
    """Two initial learning rates; of the paper's two betas the larger is better from one and diverges from one."""
    automatic = [run(0.2, alpha0=1e-3, beta="auto"), run(0.3, alpha0=1e-2, beta="auto")]
    plain = [
        run(0.25, alpha0=1e-3, beta=1e-6),
        run(0.10, alpha0=1e-3, beta=1e-5),
        run(0.30, alpha0=1e-2, beta=1e-6),
        run(0.01, alpha0=1e-2, beta=1e-5, outcome="diverged"),
    ]
    return automatic, plain, [run(0.4, "adam", alpha0=1e-3), run(0.3, "adam", alpha0=1e-2)]


def test_the_automatic_beta_is_held_against_the_betas_that_suit_the_plain_rule_best(comparison):
    few = [[run(0.2, method, beta=beta, model="mlp", width=30, max_iterations=9)] for method, beta in
           (("adam_hd", "auto"), ("adam_hd", 1e-3), ("adam", 0.0))]  # fmt: skip
    table = automatic_compared.table([comparison, few])
    whole, short = table.data.to_dict("records")
    assert whole == {
        "comparison": "logistic regression, one epoch",
        "method": "Adam-HD",
        "diverged": "0 of 2",
        "≤ paper's rule, best single β": "2 of 2, β = 10⁻⁶",
        "≤ paper's rule, best β for each α₀": "1 of 2",
        "< fixed α₀": "1 of 2",
        "≤ best fixed rate": "2 of 2, α = 10⁻²",
        "loss ÷ best fixed": "0.667 to 1.00",
    }
    assert (short["comparison"], short["< fixed α₀"]) == ("perceptron of 30, 9 iterations", "0 of 1")
    same = [run(0.2, alpha0=rate, beta="auto") for rate in (1e-3, 1e-2)], *comparison[1:]
    because = "ends at the same losses, because the limit on the first step gives them the same α."
    assert automatic_compared.table([same]).note.endswith(because) and because not in table.note
    lost = [run(0.2, beta="auto", outcome="diverged")], *comparison[1:]
    assert automatic_compared.table([lost]).data.loc[0, ["diverged", "≤ best fixed rate"]].str[:6].tolist() == [
        "1 of 1",
        "0 of 1",
    ]


def test_the_best_fixed_rate_is_matched_by_what_ends_no_higher_than_the_best_and_not_than_any(comparison):
    _, plain, base = comparison
    between = [run(0.35, alpha0=1e-3, beta="auto"), run(0.30, alpha0=1e-2, beta="auto")]
    assert automatic_compared.table([(between, plain, base)]).data["≤ best fixed rate"].tolist() == ["1 of 2, α = 10⁻²"]


def test_the_figure_of_the_automatic_beta_has_each_methods_runs_in_its_panel(comparison):
    automatic, plain, base = comparison
    others = [run(0.9, "sgd_hd", alpha0=1e-3, beta=1e-4)], [run(0.8, "sgd", alpha0=1e-3)]
    figure = automatic_compared.figure([*automatic, run(0.7, "sgd_hd", beta="auto")], plain + others[0],
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


def test_a_guards_step_is_told_over_a_step_of_the_plain_rule(tmp_path):
    assert "Not measured" in guards.costs(str(tmp_path)).data
    (tmp_path / "benchmarks").mkdir()
    found = {"guards": {"automatic": {"SGDHD": 1.257, "AdamHD": 1.1}}}
    (tmp_path / "benchmarks" / "optimizer_step.json").write_text(json.dumps(found))
    assert guards.costs(str(tmp_path)).data.to_numpy().tolist() == [["automatic", "1.26", "1.10"]]


def test_the_figure_of_the_automatic_beta_is_described_in_plain_sentences(comparison):
    assert automatic_compared.figure(*comparison, "name", "").alt.endswith(
        "over that of the best fixed rate, 0.667 to 1.00 with Adam-HD."
    )


def test_every_name_of_a_guard_is_told_as_the_arguments_that_set_it():
    """What is told is given to an optimiser, which has as its options what the runs had."""
    table = guards.arguments().data.set_index("in the figures")
    assert list(table.index) == list(map(guards.shown, experiments.GUARDS)) and set(guards.DOES) == set(
        experiments.GUARDS
    )
    for name, told in zip(experiments.GUARDS, table["arguments"], strict=True):
        given = dict(hypergrad_lr=0.1) | eval(f"dict({told})")
        [group] = SGDHD([torch.nn.Parameter(torch.ones(1))], lr=0.1, **given).param_groups
        run = RunSpec(**dict(method="sgd_hd", alpha0=0.1, beta=0.1, epochs=1) | experiments.GUARDS[name])
        assert {option: group[key] for option, key in KEYS.items()} == asdict(run.control()) | {
            "overshoot": run.overshoot
        }
        assert group["hypergrad_lr"] == run.beta
    assert table.loc["the paper's rule", "arguments"] == ""
    assert table.loc["change of at most 10 %", "arguments"] == "max_change=0.1"
    assert table.loc["automatic, greedy", "arguments"] == 'hypergrad_lr="auto", overshoot=0'


def test_of_the_settings_without_a_beta_the_best_is_counted_over_comparisons():
    names = ("β = 0.5 / κ, at most × 2", "automatic", "automatic, greedy")

    def comparison(*losses):
        return {"plain": [run(0.1, beta=1e-4)]} | {
            name: [run(loss, beta=0.5, outcome="finished" if loss else "diverged")]
            for name, loss in zip(names, losses, strict=True)
        }, [run(0.2, "adam")]

    all_three = [comparison(0.3, 0.2, 0.4), comparison(0, 0.8, 0.6), comparison(0, 0.2, 0.4)]
    for i, (guarded, _) in enumerate(all_three):
        for records in guarded.values():
            records[0] = replace(records[0], spec=records[0].spec.with_(epochs=i + 1))
    assert guards.without_beta(all_three) == (
        "Of the 3 settings without a β to choose, the one with the smallest worst loss over methods and α₀ is "
        "*automatic* in 2 and *automatic, greedy* in 1 of the 3 comparisons of all guards."
    )
    assert guards.without_beta_table(all_three).data.set_index("setting").T.to_dict("list") == {
        "automatic": ["1.00", "4.00", "1.00"],
        "automatic, greedy": ["2.00", "3.00", "2.00"],
        "β = 0.5 / κ, at most × 2": ["1.50", "diverges", "diverges"],
    }
    assert list(guards.without_beta_table(all_three).data)[1:3] == [
        "logistic regression, one epoch",
        "logistic regression, 2 epochs",
    ]


def test_the_models_that_the_constants_were_chosen_on_are_counted_apart_from_the_one_that_tests_them(comparison):
    lost = ([run(0.1, "sgd_hd", beta="auto", outcome="diverged")], [run(0.5, "sgd_hd", beta=1e-6)], [run(0.6, "sgd")])
    same = ([run(0.2, alpha0=rate, beta="auto") for rate in (1e-3, 1e-2)], *comparison[1:])
    rows = [("logistic regression", 1, "adam_hd", 1e-2, 9.0), ("logistic regression", 50, "sgd_hd", 1e-6, 3.0)]
    worst = pd.DataFrame(rows, columns=["model", "epochs", "method", "alpha0", "worst"])
    said = automatic_compared.in_all({"Chosen on": [comparison, lost], "Test": [same]}, worst)
    chosen, test = (line for line in said.splitlines() if line.startswith("- "))
    assert chosen.startswith("- **Chosen on**: 1 of 3 runs diverged. Of 3 starts")
    assert "its best single β from 2, and at or below the best fixed rate from 2" in chosen
    assert chosen.endswith("it is up to 3.00 times (logistic regression, SGD-HD, 50 epochs).")
    assert "longer runs" not in automatic_compared.in_all({"Test": [same]}, worst[:1])
    assert test.startswith("- **Test**: none of 2 runs diverged. Of 2 starts")


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
        ("sgd_hd", 1e-6, 9.0, auto | dict(decay="cosine")),
        ("adam", 1e-3, 0.1, {}),
    ]
    wide = dict(model="mlp", width=1000)
    records = runs(short, 2, **wide) + runs(long, 10, **wide) + runs(others, 10, **wide)
    worst = automatic_compared.worst_starts([*records, *runs(long, 3, task="digits")], "mnist")
    assert worst.to_numpy().tolist() == [
        ["the perceptron of 1000", 2, "sgd_hd", 1e-6, pytest.approx(1.5)],
        ["the perceptron of 1000", 10, "sgd_hd", 1e-6, pytest.approx(4)],
    ]
    table = automatic_compared.worst_start_table(worst).data
    assert table["SGD-HD"].tolist() == ["1.50, α₀ = 10⁻⁶", "4.00, α₀ = 10⁻⁶"] and set(table["Adam-HD"]) == {""}


def test_the_worst_start_is_one_of_medians_over_the_seeds_that_both_have():
    fixed = [run(loss, "sgd", alpha0=0.1, seed=seed) for seed, loss in enumerate((0.1, 0.2, 0.3, 0.001, 0.001))]
    ours = [run(loss, "sgd_hd", alpha0=0.1, beta="auto", seed=seed) for seed, loss in enumerate((0.1, 0.3, 0.9))]
    [row] = automatic_compared.worst_starts([*fixed, *ours], "mnist").itertuples()
    assert row.worst == pytest.approx(0.3 / 0.2)


def test_a_line_of_the_automatic_beta_is_the_median_of_its_seeds_in_a_band_of_all():
    runs = [run(loss, beta="auto", seed=seed) for seed, loss in enumerate((0.1, 0.3, 0.4))]
    figure = automatic_compared.figure(runs, [run(0.2, beta=1e-4)], [run(0.2, "adam")], "name", "").draw(LIGHT)
    [axis] = [axis for axis in figure.axes if axis.get_title() == "Adam-HD"]
    assert [line.get_ydata().tolist() for line in axis.lines if line.get_marker() == "D"] == [[0.3]]
    [band] = axis.collections
    assert band.get_datalim(axis.transData).intervaly.tolist() == [0.1, 0.4]


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
    tuning = run(0.2, "sgd_hd", alpha0=0.1, beta=0.02, rule="multiplicative")
    assert guards.settings([(guarded, base)], [tuning]) == said  # one epoch is no online tuning
    longer = replace(tuning, spec=tuning.spec.with_(epochs=10))
    assert guards.settings([(guarded, base)], [tuning, longer]).endswith(
        "0.02, was not tried here: [online tuning](online-tuning) has it, from one α₀ a method."
    )


def test_on_vgg_the_automatic_beta_is_held_against_fixed_rates_of_the_same_network_and_seed():
    def vgg(loss, method="sgd", **fields):
        return run(loss, method, task="cifar10", model="vgg", **fields)

    fixed = [
        vgg(0.3, alpha0=0.1),
        vgg(0.5, alpha0=0.001),
        vgg(0.1, seed=1),
        vgg(0.1, width_factor=0.5),
        vgg(0.1, "adam"),
    ]
    ours = [vgg(0.2, "sgd_hd", alpha0=0.1, beta="auto"), vgg(0.4, "sgd_hd", alpha0=1e-5, beta="auto")]
    others = [vgg(0.2, "sgdn_hd", beta="auto"), vgg(0.2, "sgd_hd", beta=1e-3), run(0.1, "sgd_hd", beta="auto")]
    assert automatic_compared.on_vgg([*fixed, *ours, *others]) == (
        "On [a narrow VGG](vgg-variants), with one seed, it ends below the best of 2 fixed rates in 1 of 2 runs."
    )
    assert automatic_compared.on_vgg([*fixed, *others]) == ""


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


def test_one_seed_that_diverged_is_a_cell_that_did():
    base = [run(0.4, "adam", seed=seed) for seed in range(3)]
    ours = [run(0.3, beta=1e-4, seed=seed, outcome="diverged" if seed == 2 else "finished") for seed in range(3)]
    assert guards.worst_losses(guards.by_cell({"plain": ours}, base)).loc["plain", "adam_hd"] == float("inf")


def test_the_figure_of_the_guards_is_described_in_two_plain_sentences(comparison):
    _, plain, base = comparison
    alt = guards.figure({"plain": plain[:3], "log space": plain}, base, "name", "").alt
    assert alt == (
        "Worst loss of each guard over that of the best fixed rate, a panel a method, with any beta and with the best "
        "single one. With any, 1 of the 2 rules had runs that diverged, and the worst loss of the paper's rule is the "
        "smallest, 1.00 times that rate's."
    )
    alone = guards.figure({"plain": plain}, base, "name", "").alt
    assert alone.endswith("With any, 1 of the 1 rules had runs that diverged.")


def test_the_verdict_names_a_winner_for_each_method_and_owns_up_where_it_is_not_the_automatic_beta():
    base = [run(0.2, "sgd"), run(0.2, "adam")]
    guarded = {
        "plain": [run(0.4, "sgd_hd", beta=1e-4), run(0.4, beta=1e-4)],
        "same": [run(0.4, "sgd_hd", beta=1e-4), run(0.9, beta=1e-4)],
        "automatic": [run(0.5, "sgd_hd", beta="auto"), run(0.1, beta="auto")],
    }
    assert guards.verdict(guarded, base).endswith(
        "that of *the paper's rule* and one other alike for SGD-HD (2.00; *automatic*: 2.50), of *automatic* for "
        "Adam-HD (0.500)."
    )


def test_log_space_is_explained_by_the_mildest_of_its_runs_that_diverged():
    def traced(h):
        record = run(1.0, beta=0.1, rule="log", outcome="diverged", model="mlp", width=1000, max_iterations=100)
        rows = [[1, 2.3, 1e-3, -0.0], [2, 2.2, 1e-3, h], [3, float("nan"), float("inf"), float("nan")]]
        return Record(record.spec, "diverged", 3, record.epochs, pd.DataFrame(rows, columns=TRACE_COLUMNS), MADE)

    guarded = {"log space": [run(0.3, beta=1e-4, rule="log"), traced(-500.0)], "multiplicative": [run(0.3, beta=0.1)]}
    said = guards.unbounded(guarded, [traced(-9000.0), traced(-500.0), guarded["log space"][0]])
    assert "yet 1 of its 2 runs of Adam-HD diverged, where none did" in said
    assert (
        "of the 2 runs that diverged with it on the perceptron of 1000 over 100 iterations, further down, the "
        "mildest, of Adam-HD, met an *h* of −500 at β = 10⁻¹, which multiplied α by 5.2 × 10²¹" in said
    )
    assert guards.unbounded(guarded | {"multiplicative": [traced(-1.0)]}, []) == ""
    assert guards.unbounded(guarded | {"log space": guarded["multiplicative"]}, []) == ""


def test_a_guard_with_fewer_seeds_is_compared_with_the_runs_of_its_own(comparison):
    """Seed 1 is twice as hard for every rule: beside both seeds' median, seed 0 of a guard would look better."""
    _, plain, base = comparison
    hard = [[run(2 * r.epochs["train_loss"].iloc[-1], **r.spec.model_dump(include=FIELDS), seed=1) for r in own]
            for own in (plain, base)]  # fmt: skip
    guarded = {"plain": [*plain, *hard[0]], "alike": [run(0.25, alpha0=1e-3, beta=1e-6, max_change=0.1)]}
    cell = guards.by_cell(guarded, [*base, *hard[1]]).set_index("guard").loc["alike"]
    assert (cell["no_hd"], cell["plain"], cell["over_best"]) == (0.4, 0.1, pytest.approx(0.25 / 0.3))
    shown = guards.table(guarded, [*base, *hard[1]]).data.set_index("guard")
    assert shown.loc["alike", "best β ÷ paper's rule"] == "2.50"


FIELDS = {"method", "alpha0", "beta"}
