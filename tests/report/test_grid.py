"""The grid search counts what did not arrive, and compares cells as it says."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex, to_rgb

from hdlib.report import grid, paper
from hdlib.report.style import DARK, LIGHT
from hdlib.runs import Record, RunSpec
from hdlib.runs.record import EPOCH_COLUMNS, TRACE_COLUMNS

CAP = 1000


LOST = "diverged"


def record(method, iterations, seed, alpha0=0.1, beta=0.0, decay="none", of="minibatch", model="logreg"):
    """A run that arrived after so many iterations, or was given up at the cap, or diverged."""
    spec = RunSpec(model=model, method=method, alpha0=alpha0, beta=beta, decay=decay, seed=seed, epochs=3,
                   max_iterations=CAP, target_loss=0.29, target_of=of, early=0, validate_every=0)  # fmt: skip
    outcome = "finished" if iterations is None else LOST if iterations == LOST else "reached"
    empty = pd.DataFrame(columns=EPOCH_COLUMNS), pd.DataFrame(columns=TRACE_COLUMNS)
    made = {"device": "a processor", "data": "MNIST", "seconds": 1.0}
    return Record(spec, outcome, 7 if iterations == LOST else iterations or CAP, *empty, made)


def runs(method, values, **fields):
    return [record(method, value, seed, **fields) for seed, value in enumerate(values)]


def everywhere(values, alphas=(0.1, 0.01), **fields):
    """Every cell of a grid with two β ends alike."""
    found = []
    for alpha0 in alphas:
        common = dict(alpha0=alpha0, **fields)
        found += runs("adam", values, decay="inv_sqrt", **common)
        for method in ("sgd", "sgdn", "adam"):
            found += runs(method, values, **common)
            found += [run for beta in (1e-3, 1e-2) for run in runs(f"{method}_hd", values, beta=beta, **common)]
    return found


@pytest.fixture
def records():
    """Two initial learning rates, three seeds: SGD-HD is faster from the one and slower from the other."""
    found = []
    for alpha0, base, adapted in ((0.1, (30, 40, 50), (60, 80, 45)), (1e-6, (None, None, None), (100, None, 120))):
        found += runs("sgd", base, alpha0=alpha0) + runs("sgd_hd", adapted, alpha0=alpha0, beta=1e-3)
        found += runs("sgdn", base, alpha0=alpha0) + runs("sgdn_hd", base, alpha0=alpha0, beta=1e-3)
        found += runs("adam", base, alpha0=alpha0) + runs("adam", (90, 95, 99), alpha0=alpha0, decay="inv_sqrt")
        found += runs("adam_hd", (45, 50, 55), alpha0=alpha0, beta=1e-3)
    return found


@pytest.fixture
def once():
    """A perceptron, one seed: each method arrives from both rates with the small beta, from none with the large one."""
    found = []
    for alpha0, base in ((0.1, 40), (1e-6, None)):
        common = dict(alpha0=alpha0, model="mlp")
        found += runs("adam", [base], decay="inv_sqrt", **common)
        for method in ("sgd", "sgdn", "adam"):
            found += runs(method, [base], **common) + runs(f"{method}_hd", [30], beta=1e-6, **common)
        found += runs("sgd_hd", [None], beta=1e-1, **common) + runs("sgdn_hd", [60], beta=1e-1, **common)
        found += runs("adam_hd", [LOST], beta=1e-1, **common)
    return found


def test_the_papers_numbers_are_all_there():
    theirs = paper.figure4()
    assert len(theirs) == 126 and int(np.isinf(theirs["iterations"]).sum()) == 3
    outlined = [method for method, _, _ in paper.outlined()]
    assert {method: outlined.count(method) for method in outlined} == {"sgd_hd": 4, "sgdn_hd": 5, "adam_hd": 13}


def test_a_run_that_did_not_arrive_counts_as_infinitely_long(records):
    table = grid.cells(grid.reached(records)).set_index(["method", "decay", "alpha0", "beta"])
    assert table.loc[("sgd_hd", "none", 1e-6, 1e-3), ["median", "low", "high"]].tolist() == [120, 100, np.inf]
    assert np.isinf(table.loc[("sgd", "none", 1e-6, 0.0), "median"])
    assert table.loc[("sgd", "none", 1e-6, 0.0), "unreached"] == 3


def test_half_the_seeds_are_not_a_median():
    for took, median in (([10, None], np.inf), ([10, 30, None], 30), ([10, 30], 20)):
        assert grid.cells(grid.reached(runs("sgd", took)))["median"].tolist() == [median]


def test_slower_cells_are_counted_against_each_baseline(records):
    text = grid.where_slower(records)
    assert "SGD-HD against SGD**: slower in 1 of 2 cells by the median (1 at β = 10⁻³), in none of them" in text
    assert "in none of them with every seed; by the paper's numbers in 1." in text  # of these cells, not of its grid
    assert "SGDN-HD against SGDN**: slower in 0 of 2 cells by the median" in text
    assert "Adam-HD against Adam, α/√t**: slower in 0 of 2 cells by the median" in text
    assert "Adam-HD against Adam**: slower in 1 of 2 cells by the median" in text


def test_the_papers_place_in_our_spread_is_named(records):
    table = grid.full_table(records).data
    own = table[(table["method"] == "SGD") & (table["α₀"] == "10⁻¹")].iloc[0]
    assert own["paper"] == "33" and own["paper's place"] == "within" and own["lowest to highest"] == "30 to 50"
    unreached = table[(table["method"] == "SGD") & (table["α₀"] == "10⁻⁶")].iloc[0]
    assert unreached["seeds that arrived"] == "0 of 3" and unreached["paper's place"] == "not decided"
    text = grid.beside_the_paper(records)
    assert text.startswith("The paper prints 12 numbers")  # of our 14 cells: its Adam decays, and has no twin
    assert "2 cannot be placed, since the runs were given up before. Where both are finite" in text
    assert "in 1 of the 6 cells of hypergradient methods our median is within a factor of 1.05 of that from" in text


@pytest.mark.parametrize(
    ("theirs", "ours", "cap", "place"),
    [
        (33, (34, 40), 100, "below"),
        (41, (34, 40), 100, "above"),
        (34, (34, 40), 100, "within"),
        (33, (34, None), 100, "below"),
        (99, (34, None), 100, "within"),
        (500, (34, None), 100, "within"),
        (99, (None, None), 100, "below"),
        (101, (None, None), 100, "not decided"),
        (101, (None, LOST), 100, "not decided"),
        (101, (LOST, LOST), 100, "below"),
        (np.inf, (None, None), 100, "not decided"),
        (np.inf, (None, None), 468_750, "within"),
        (np.inf, (LOST, LOST), 100, "within"),
        (np.inf, (34, 40), 100, "above"),
        (np.inf, (500_000, 600_000), 10**6, "not decided"),
        (np.nan, (34, 40), 100, ""),
    ],
)
def test_a_run_that_was_given_up_is_only_known_to_take_longer(theirs, ours, cap, place):
    frame = grid.reached([replace(r, spec=r.spec.with_(max_iterations=cap)) for r in runs("sgd", ours)])
    row = next(grid.cells(frame).assign(paper=theirs).itertuples())
    assert grid._place(row, cap) == place


def test_what_cannot_be_placed_has_no_mark():
    given_up = everywhere([None], alphas=(1e-4,))
    assert set(grid.heatmap(given_up, "g").draw(LIGHT).axes[0].texts[0].get_text()) == set(">1,000")
    plt.close()
    text = grid.beside_the_paper(given_up)
    assert "**0 of them agree with our one seed**, 5 below and 0 above (SGD 0 of 1," in text
    assert "4 cannot be placed, since the runs were given up before. In 9 cells" in text and "nan" not in text
    assert "The paper prints no number" in grid.beside_the_paper(everywhere([40], alphas=(0.5,)))


def test_cells_in_which_one_of_the_two_did_not_arrive_are_counted_with_the_largest_bound(records):
    text = grid.beside_the_paper(records)  # SGDN, SGDN-HD and the paper's Adam, which it gave up and ours took 95
    assert text.endswith("In 3 cells only one of the two is finite; the largest factor there is more than 4,930.")


@pytest.mark.parametrize(
    "changes", [{"task": "digits"}, {"model": "mlp"}, {"target_of": "epoch"}, {"target_loss": 0.5}], ids=str
)
def test_the_papers_numbers_stand_beside_the_runs_that_it_made_alone(records, changes):
    assert grid.printed(records)
    others = [replace(r, spec=r.spec.with_(**changes)) for r in records]
    assert not grid.printed(others) and "paper" not in grid.full_table(others).data
    told = "holds for other models, too, and prints no number" if "model" in changes else "none for these runs"
    assert told in grid.opening(others, {})


def test_a_page_opens_with_what_the_paper_prints_for_its_model_and_with_the_evidence_for_a_minibatch(records, once):
    said = grid.opening(records, {})
    assert "a loss of 0.29 the paper prints 126 numbers of iterations, with β from 10⁻⁶ to 10⁻¹" in said
    within = grid.beside_the_paper(records).partition("**")[2].partition(" ")[0]
    assert f"single *minibatch* of 128 images: the authors' code stops on it, and {within} of the paper's 126 " in said
    assert "lie within our 3 seeds with this criterion." in said and "other criteria" not in said
    slow = [replace(r, iterations=999) for r in records]
    said = grid.opening(records, {"epoch": slow})
    assert "; with the other criteria of this page, 3 seeds each, none does. The lowest loss" in said
    said = grid.opening(records, {"epoch": [r for r in slow if r.spec.seed < 2]})
    fewer = grid.beside_the_paper([r for r in records if r.spec.seed < 2]).partition("**")[2].partition(" ")[0]
    assert f"with this criterion, {fewer} within 2 of them; with the other criteria of this page, 2 seeds each" in said
    assert f"this page, 3 seeds each, at most {within} do." in grid.opening(
        records, {"epoch": slow, "smoothed": records}
    )
    assert said.endswith("So the grid is run with 3 seeds, and with other criteria, too.")
    assert grid.opening(once, {}).endswith(
        "Here is the grid for the perceptron: 1,000 iterations at most, one seed, until the loss of one minibatch is "
        "at 0.29."
    )
    epoch = [replace(r, spec=r.spec.with_(max_iterations=469)) for r in once]
    assert "logistic regression: one epoch" not in grid.opening(epoch, {})
    assert "the perceptron: one epoch at most" in grid.opening(epoch, {})


def test_criteria_are_compared_over_the_seeds_and_the_cap_that_all_have(records):
    few = [r for r in records if r.spec.seed < 2]
    table = grid.criteria({"minibatch": records, "smoothed": few, "epoch": few})
    assert table.note == "All three with 2 seeds and a cap of 1,000 iterations."
    rows = table.data.set_index("arrival: the loss of")
    columns = [column for column in rows.columns]
    assert len(columns) == 3 and (rows[columns[0]] == rows[columns[1]]).all()


def test_what_no_cell_arrived_for_is_left_out():
    lost = everywhere([None, None])
    groups = dict.fromkeys(grid.CRITERIA, lost)
    assert grid.lottery(groups) == "Against the paper's baselines 0, 0 and 0 of 12 hypergradient cells are slower."
    table = grid.criteria(groups).data
    assert "nan" not in table.to_string() and set(table.iloc[0, 1:]) == {"no cell that every seed reached"}


def test_one_seed_has_no_spread_and_the_singular(once):
    groups = dict.fromkeys(grid.CRITERIA, once)
    text, table = grid.lottery(groups), grid.criteria(groups)
    assert text.startswith("The loss over all training data takes 1.00 times as long as a first lucky minibatch")
    assert table.note == "All three with 1 seed and a cap of 1,000 iterations."
    assert table.data.iloc[0].tolist() == ["cells not reached"] + ["8 of 20"] * 3


@pytest.mark.parametrize("iterations", [None, CAP])
def test_a_scale_is_drawn_even_where_nothing_arrives(iterations, recwarn):
    grid.sensitivity(everywhere([iterations]), "s")._repr_html_()
    assert not [warning.message for warning in recwarn]


def test_figures_say_what_they_show(records):
    for figure in (grid.heatmap(records, "g"), grid.sensitivity(records, "s")):
        assert "SGD" in figure.alt and len(figure.data) == 14
        html = figure._repr_html_()
        assert html.count("<img") == 2


def test_a_red_frame_is_around_the_cells_that_are_slower_and_the_largest_rate_is_on_top(records):
    drawn = grid.heatmap(records, "g").draw(LIGHT)
    framed = [
        (axis.get_title(), patch.get_xy())
        for axis in drawn.axes
        for patch in axis.patches
        if to_hex(patch.get_edgecolor()) == "#d62728"
    ]
    assert framed == [("SGD-HD", (1, 0))]  # β = 10⁻³, from α₀ = 0.1
    assert [label.get_text() for label in drawn.axes[0].get_yticklabels()] == ["10⁻¹", "10⁻⁶"]
    plt.close(drawn)


def test_what_takes_as_long_is_neither_faster_nor_slower():
    alike = everywhere([40])
    table = grid.criteria(dict.fromkeys(grid.CRITERIA, alike)).data.set_index("arrival: the loss of")
    assert set(table.loc["SGD-HD slower than SGD"]) == {"0 of 4"}
    assert set(grid.alike(alike).data["α₀ from which Adam-HD is faster than Adam"]) == {"0 of 2"}


def test_how_much_of_a_lottery_a_criterion_is_is_the_slowest_seed_over_the_fastest():
    assert grid.lottery(dict.fromkeys(grid.CRITERIA, everywhere([10, 20, 40]))).startswith(
        "Over 3 seeds the slowest takes 4.00 times as long as the fastest to a first lucky minibatch (median of the "
        "cells), 4.00 times to a mean of 100 minibatches and 4.00 times to the loss over all training data."
    )


def test_the_papers_numbers_are_off_ours_by_their_median_factor(records):
    table = grid.cells(grid.reached(records)).replace(np.inf, np.nan).dropna(subset=["paper", "median"])
    factor = np.exp(np.abs(np.log(table["paper"] / table["median"])))
    told = f"differ by a factor of {factor.median():.3g} in the median and of at most {factor.max():.3g}"
    assert told in grid.beside_the_paper(records) and len(table) > 2


def test_the_beta_with_which_most_rates_are_as_fast_is_named_where_none_is_with_all():
    found = [record("adam", 40, 0, alpha0=rate, model="mlp") for rate in (0.1, 0.01)]
    found += [r for m in ("sgd", "sgdn") for rate in (0.1, 0.01) for r in runs(m, [40], alpha0=rate, model="mlp")]
    for method in ("sgd_hd", "sgdn_hd", "adam_hd"):
        for rate, beta, took in ((0.1, 1e-3, 30), (0.01, 1e-3, 50), (0.1, 1e-2, 50), (0.01, 1e-2, 50)):
            found += runs(method, [took], alpha0=rate, beta=beta, model="mlp")
    assert grid.holds(found).count("is nowhere slower; the best is 10⁻³, with 1 of 2 α₀.") == 3


def test_what_is_left_of_adam_hds_advantage_has_an_interval(records):
    row = grid.alike(records).data.iloc[0]
    assert row["α₀ from which Adam-HD is faster than Adam, α/√t"] == "2 of 2"
    [name] = [name for name in grid.alike(records).data if "time against Adam, mean" in name]
    assert grid.alike(records).data[name].tolist() == ["at most 0.252"]  # from 10⁻⁶ no Adam arrived
    per_seed = grid._log_ratios(*grid._compared(records, 1e-3, ("adam", "inv_sqrt")), grid._cap(records))
    ends = np.exp(per_seed.mean() + np.array([0, -1, 1]) * 4.302653 * per_seed.std(ddof=1) / 3**0.5)
    assert row.iloc[2] == "{} ({} to {})".format(*map(grid._factor, ends))  # 4.30: Student's t, two degrees of freedom
    assert grid.alike(records).note.count("The interval is Student's, over seeds, on the logarithms.") == 1
    assert grid.advantage(records) == (
        "The decay slows Adam down from 1 of 2 initial learning rates (10⁻¹) and speeds it up from 10⁻⁶. From 10⁻¹ the "
        "decayed Adam needs 1.90 times the iterations of Adam-HD with β = 10⁻³, and Adam without the decay 0.800 times."
    )


def test_a_run_that_diverged_is_told_apart_from_one_that_did_not_arrive(once):
    table = grid.full_table(once).data.set_index(["method", "α₀", "β"])["iterations"]
    assert table["Adam-HD", "10⁻¹", "10⁻¹"] == "diverged" and table["SGD-HD", "10⁻¹", "10⁻¹"] == ">1,000"
    text = grid.where_slower(once)
    assert (
        "**SGD-HD against SGD**: slower in 1 of 4 cells (1 at β = 10⁻¹). In 1 neither arrived (1 at β = 10⁻¹)." in text
    )
    assert "**Adam-HD against Adam**: slower in 0 of 4 cells. Diverged in 2 (2 at β = 10⁻¹)." in text
    assert "β = 10⁻¹: 2 of 2 diverged" in apart(once)["β not counted"]["Adam-HD"]


def test_a_cell_has_diverged_if_half_of_its_seeds_have(records):
    more = [*records, *runs("sgd_hd", (LOST, LOST, 9), beta=0.1), *runs("sgdn_hd", (LOST, 8, 9), beta=0.1)]
    cells = grid.cells(grid.reached(more)).set_index(["method", "beta"])
    assert cells.loc[("sgd_hd", 0.1), "diverged"] and not cells.loc[("sgdn_hd", 0.1), "diverged"]
    table = grid.full_table(more).data.set_index(["method", "β"])
    assert table.loc[("SGD-HD", "10⁻¹"), ["median", "lowest to highest"]].tolist() == ["diverged", "9 to diverged"]
    assert table.loc[("SGDN-HD", "10⁻¹"), ["median", "seeds that diverged"]].tolist() == ["9", "1 of 3"]
    assert "At least half of the seeds diverged in 1 (1 at β = 10⁻¹)." in grid.where_slower(more)
    assert "iterations; a cell has diverged where at least half of its seeds have:" in grid.holds(more)
    assert grid.overview(more)["diverged"] == "1"  # and not 2


def test_a_rate_from_which_one_seed_diverged_is_named_so(records):
    rest = [r for r in records if (r.spec.method, r.spec.alpha0) != ("adam_hd", 0.1)]
    table = grid.alike([*rest, *runs("adam_hd", (LOST, 50, 55), beta=1e-3)])
    assert table.data["α₀ from which a seed of Adam-HD diverged"].tolist() == ["1 of 2"]
    assert not [name for name in table.data if name.startswith("time")] and "cannot be compared" in table.note
    some = grid.alike([*records, *runs("adam_hd", (LOST, 50, 55), beta=1e-1)])
    [times] = [some.data[name] for name in some.data if name.startswith("time against Adam, mean of α₀")]
    assert times[some.data["β"] == "10⁻¹"].tolist() == ["–"] and (times != "–").any()


def test_the_overview_counts_what_the_pages_say(records, once):
    assert grid.overview(once) == dict(seeds="one seed", cells="12", slower="2", diverged="2", neither="1")
    found, said = grid.overview(records), grid.beside_the_paper(records)
    assert found.pop("within") == said.partition("**")[2].partition(" ")[0]
    assert found == dict(seeds="3 seeds", cells="6", slower="2", diverged="0", neither="1", printed="12")


def test_a_mean_time_with_runs_that_were_given_up_is_a_bound_and_one_with_diverged_runs_is_none(once):
    rows = grid.alike(once).data.set_index("β")
    assert rows.loc["10⁻¹", "time against Adam, mean of α₀"] == "–"
    assert rows.loc["10⁻⁶", "time against Adam, mean of α₀"] == "at most 0.150"  # of 30 over 40 and 30 over the cap
    assert rows["α₀ from which Adam-HD diverged"].tolist() == ["0 of 2", "2 of 2"]
    assert not any("95 %" in name for name in rows) and "Student" not in grid.alike(once).note


def apart(records):
    """Return the table of how much slower the slowest initial learning rate is, by method."""
    return grid.insensitivity(records).data.set_index("method")


def test_nothing_is_said_of_the_sensitivity_to_one_rate(records):
    assert grid.insensitivity([r for r in records if r.spec.alpha0 == records[0].spec.alpha0]) is None


def test_insensitivity_counts_only_the_betas_with_which_every_rate_arrives(records):
    slow = runs("sgd_hd", (900, 900, 900), beta=0.1) + runs("sgd_hd", (None,) * 3, alpha0=1e-6, beta=0.1)
    row = apart(records + slow).loc["SGD-HD"]  # the cap is only 1.11 times 900
    assert row["with the best β"] == "2.00 (β = 10⁻³)" and row["with the worst β"] == "–"
    assert row["β not counted"] == "β = 10⁻¹: 1 of 2 not by the cap"
    alt = grid.sensitivity(records, "s").alt
    assert (
        "SGD-HD, slowest over fastest: without hypergradients" in alt and "with the best beta 2.00 (β = 10⁻³)." in alt
    )


def test_a_baseline_that_arrives_from_nowhere_has_no_factor(once):
    nowhere = [*runs("sgd", [None], alpha0=1e-6), *runs("sgd", [LOST])]
    rest = [r for r in once if r.spec.method != "sgd"]
    row = apart(rest + nowhere).loc["SGD-HD"]
    assert row["without HD"] == "SGD: 1 of 2 diverged, 1 of 2 not by the cap"
    assert row["with the best β"] == "1.00 (β = 10⁻⁶)"
    row = apart(everywhere([None])).loc["SGD-HD"]
    assert row.iloc[1:].tolist() == ["–", "–", "β = 10⁻³, 10⁻²: 2 of 2 not by the cap"]
    partly = [*runs("sgd", [50], alpha0=1e-6), *runs("sgd", [LOST])]
    said = apart(rest + partly)["without HD"]["SGD-HD"]
    assert said == "1.00 (SGD, without the 1 from which it diverged)"


def test_what_there_is_nothing_to_say_of_is_left_out():
    text = grid.holds(everywhere([LOST], model="mlp"))
    assert "There is no β with which it is nowhere slower. With β = 10⁻³, 10⁻² it diverged from every α₀" in text
    assert (
        "**Adam-HD** is compared with Adam only inside the region that the paper's Figure 4 outlines as slower. There"
        in text
    )


def test_a_page_without_printed_numbers_says_where_the_finding_holds(once):
    text = grid.holds(once)
    assert text.startswith("With one seed and up to 1,000 iterations:")
    assert "**SGD-HD** is slower than SGD in 0 and diverged in 0 of the 3 cells outside the region that the" in text
    assert "It is nowhere seen to be slower with β = 10⁻⁶" in text
    assert "**Adam-HD** is slower than Adam in 0 and diverged in 1 of the 2 cells" in text
    assert "With β = 10⁻¹ it diverged from every α₀, by iteration 7." in text


def test_a_caption_explains_the_marks_that_occur_and_no_others(records, once):
    ours, theirs = grid.heatmap(once, "g").caption, grid.heatmap(records, "g").caption
    assert "Hatched: not arrived by the cap of 1,000 iterations. Grey: diverged. Red frame" in ours
    assert "Baselines come first, then" in ours and "Dashed: the baselines" in grid.sensitivity(once, "s").caption
    assert "median" not in ours and "paper" not in ours
    assert "median over 3 seeds" in theirs and "Grey" not in theirs and "▲" in theirs
    assert "Crosses" in grid.sensitivity(once, "s").caption and "medians" not in grid.sensitivity(once, "s").caption
    assert "Crosses" not in grid.sensitivity(records, "s").caption


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=lambda theme: theme.name)
def test_a_heat_map_can_be_read(once, theme):
    drawn = grid.heatmap(once, "g").draw(theme)
    axis = drawn.axes[0]
    assert axis.collections[0].norm.vmax == CAP
    shown = {text.get_text(): text for text in axis.texts}
    assert {">1,000", "40", "30"} <= set(shown) and all(text.get_fontsize() == 9 for text in axis.texts)
    assert "diverged" in [text.get_text() for text in drawn.axes[2].texts]
    plt.close(drawn)


def test_ink_stands_out_from_every_colour_of_the_scale():
    def luminance(color):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
        return np.dot(linear, (0.2126, 0.7152, 0.0722)) + 0.05

    for ground in plt.get_cmap("viridis_r")(np.linspace(0, 1, 99)):
        dark, light = sorted((luminance(ground), luminance(grid._ink(ground))))
        assert light / dark >= 4.5


def test_a_bound_is_rounded_down(once):
    assert [grid._down(value) for value in (1.0, 8296.4, 1.289, 0.29, 270.99)] == [
        "1.00", "8,290", "1.28", "0.290", "270"]  # fmt: skip
    bound = runs("sgd", [36]) + [r for r in once if (r.spec.method, r.spec.alpha0) != ("sgd", 0.1)]
    assert apart(bound)["without HD"]["SGD-HD"] == "more than 27.7 (SGD)"  # 27.78


def test_factors_have_three_digits_and_separated_thousands():
    assert [grid._factor(value) for value in (1.0, 1.284, 270.49, 999.7, 11719)] == [
        "1.00", "1.28", "270", "1,000", "11,700"]  # fmt: skip


def test_a_cell_of_two_seeds_has_diverged_if_one_of_them_has():
    frame = grid.reached(runs("sgd", (40, 40)) + runs("sgd_hd", (LOST, 30), beta=0.1))
    assert grid.cells(frame).set_index("method")["diverged"].to_dict() == {"sgd": False, "sgd_hd": True}
    assert grid._pairs(frame, "sgd_hd", ("sgd", "none"))["kind"].tolist() == ["diverged"]


def test_a_seed_is_compared_with_the_same_seed_of_its_baseline():
    frame = grid.reached(runs("sgd", (10, 20, 30)) + runs("sgd_hd", (11, 21, 31), beta=0.1))
    [pair] = grid._pairs(frame, "sgd_hd", ("sgd", "none")).itertuples()
    assert (pair.seeds_slower, pair.seeds, pair.kind) == (3, 3, "slower")


def test_a_seed_lies_within_the_others_and_not_within_itself():
    assert grid.own_within(runs("sgd", (10, 20, 30))) == (0, 1)


def test_what_arrived_after_a_smaller_cap_did_not_arrive():
    took = grid.reached(runs("sgd", (40, 50, 80)), cap=50)
    assert took["iterations"].tolist() == [40, 50, np.inf]
    assert grid.reached(runs("sgd", (40, 50, 80)), seeds=2)["iterations"].tolist() == [40, 50]


def test_each_panel_shows_its_own_method_against_the_initial_learning_rate(records):
    drawn = grid.sensitivity(records, "s").draw(LIGHT)
    lines = [[line.get_ydata().tolist() for line in axis.lines[:2]] for axis in drawn.axes]
    assert lines == [[[120, 60], [CAP, 40]], [[CAP, 40], [CAP, 40]], [[50, 50], [95, 95]]]
    plt.close(drawn)


def test_baselines_come_first_in_a_heat_map_and_then_the_betas_from_the_smallest(once):
    drawn = grid.heatmap(once, "g").draw(LIGHT)
    columns = [[label.get_text() for label in axis.get_xticklabels()] for axis in drawn.axes[:3]]
    betas = ["β = 10⁻⁶", "β = 10⁻¹"]
    assert columns == [["SGD", *betas], ["SGDN", *betas], ["Adam, α/√t", "Adam", *betas]]
    plt.close(drawn)
