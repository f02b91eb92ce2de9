"""Tables show what they hold, whatever it is; sentences and axes stay readable at the edges of what they say."""

import doctest
import importlib
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from hdlib.report import figures, findings, frames, relapse, style
from hdlib.report.style import DARK, LIGHT, LONG, Figure, Table, scientific, significant, spread
from hdlib.runs import Record, RunSpec, branch, train
from hdlib.runs.record import EPOCH_COLUMNS, TRACE_COLUMNS


def test_text_is_escaped_and_a_sentence_broken_into_lines():
    sentence = "α < β & " * LONG
    shown = Table(pd.DataFrame({"a < b": ["<b>", sentence], "n": [1.5, 2.5]}), "a < b")._repr_html_()
    assert "<b>" not in shown and "&lt;b&gt;" in shown and "a < b" not in shown
    assert shown.count("hd-long") == 1 and "α &lt; β &amp; " * LONG in shown
    assert "<td>1.5</td>" in shown


@pytest.mark.parametrize(
    "module",
    [
        *("runs.sweep", "report.findings", "report.notebooks", "report.parameters", "report.paper", "report.style"),
        *("report.verdicts", "report.vgg_published"),
    ],
)
def test_the_examples_of_docstrings_hold(module):
    failed, tried = doctest.testmod(importlib.import_module(f"hdlib.{module}"))
    assert not failed and tried


def luminance(color):
    """Return the relative luminance of a colour, as WCAG defines it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


@pytest.mark.parametrize(("theme", "page"), [(LIGHT, "#ffffff"), (DARK, "#121212")], ids=["light", "dark"])
def test_every_line_stands_out_from_the_page(theme, page):
    rates = figures._rate_colors([10.0**-n for n in range(6)], theme).values()
    for color in (*map(theme.color, style.FAMILIES), *rates, relapse.OTHER[theme.name]):
        dark, light = sorted((luminance(color) + 0.05, luminance(page) + 0.05))
        assert light / dark >= 3, color  # what WCAG asks of graphics
    assert theme.background == page


def test_families_and_ways_are_told_apart_without_colour():
    kinds = [*((family, "none") for family in style.FAMILIES), ("adam", "cosine"), ("adam", "inv_sqrt")]
    assert len({figures._marks(*kind, 100)["marker"] for kind in kinds}) == len(kinds)
    assert len(set(relapse.DASHES)) == len(relapse.DASHES) == len(branch.WAYS) - 1


def test_zero_has_no_label_beside_it_on_an_axis_of_learning_rates():
    axis = plt.subplots()[1]
    data = pd.DataFrame({"epoch": [0, 1], "quantity": "alpha", "low": [-1e-2, 1e-1], "high": [-1e-2, 1e-1]})
    figures._scales(axis, "alpha", data, figures.ALPHA_FLOOR)
    ticks = abs(axis.get_yticks())
    assert 0 in ticks and 1e-1 in ticks.round(9) and min(ticks[ticks > 0]) > 2 * figures.ALPHA_FLOOR
    plt.close()


def test_a_small_spread_over_seeds_is_not_rounded_to_none():
    assert spread([0.2731, 0.2729]) == "0.273 ± 0.0001"
    assert spread([0.278, 0.268]) == "0.273 ± 0.005"
    assert spread([0.5, 0.5]) == "0.500 ± 0"


def test_a_wide_spread_over_seeds_is_given_whole():
    """Half the range around the mean would reach to where no seed is."""
    assert spread([0.403, 0.076, 0.0498]) == "0.176 (0.0498 to 0.403)"


def test_capped_runs_are_said_to_have_so_many_iterations(tiny):
    specs = [tiny.with_(early=0, validate_every=0, max_iterations=3, seed=seed) for seed in (0, 1)]
    note = frames.note([train(spec) for spec in specs])
    assert "2 runs, 2 seeds, at most 3 iterations," in note and "epoch" not in note


def test_runs_on_a_part_of_the_images_are_said_to_be(tiny):
    record = train(tiny.with_(epochs=1))
    images = dict(task="cifar10", model="vgg", method="sgd", alpha0=0.1, epochs=1)
    some, all_of_them = (replace(record, spec=RunSpec(**images, train_images=n)) for n in (10_000, None))
    assert frames.note([some]).endswith(", trained on 10,000 of the first.")
    assert frames.note([some, all_of_them]).endswith(", trained on 10,000 or all of the first.")
    assert "trained on" not in frames.note([all_of_them]) + frames.note([record])


def test_seeds_are_those_of_one_configuration(tiny):
    runs = [train(tiny), train(tiny.with_(seed=1)), train(tiny.with_(alpha0=0.02))]
    assert frames.seeds(runs) == (1, 2) and "up to 2 seeds" in frames.note(runs)


def test_a_very_large_number_is_a_power_of_ten():
    assert significant(999_999) == "999999" and significant(-1.26e9) == "−1.3 × 10⁹"
    assert spread([1.25e6]) == "1.2 × 10⁶" and spread([1.0e12, 1.2e12]) == "1.1 × 10¹² ± 1.0 × 10¹¹"


def test_negative_numbers_have_a_minus_sign():
    assert [significant(value) for value in (-0.0123, -1.5e-9, 0.0)] == ["−0.0123", "−1.5 × 10⁻⁹", "0"]
    assert [scientific(value) for value in (-2.5, -12345.0, -1.5e-9)] == ["−2.50", "−12,345", "−1.5 × 10⁻⁹"]
    assert spread([-1.0, -1.0]) == "−1.00 ± 0"


def test_the_plain_text_of_what_a_page_shows_is_the_same_in_every_build():
    data = pd.DataFrame({"loss": [0.1]})
    shown = Figure(lambda theme: plt.figure(), "name", "A line.", data, "2 runs", "The loss.")
    assert repr(shown) == "The loss. A line." and repr(Figure(print, "name", "A line.", data)) == "A line."
    assert [repr(Table(data, "2 runs")), repr(Table(data))] == ["2 runs", "a table"]


def made(epochs, *alphas):
    """A run of SGD-HD from 0.001 with these learning rates."""
    spec = RunSpec(method="sgd_hd", alpha0=1e-3, beta=1e-3, epochs=epochs)
    trace = pd.DataFrame([[i + 1, 2.3, alpha, 0.1] for i, alpha in enumerate(alphas)], columns=TRACE_COLUMNS)
    rows = pd.DataFrame([[i, i, 2.3, 1e-3, 2.3, 0.1] for i in range(epochs + 1)], columns=EPOCH_COLUMNS)
    return Record(spec, "finished", len(alphas), rows, trace, dict(device="a", data="b"))


def test_a_learning_rate_that_only_falls_does_not_rise():
    assert findings.tuning([made(1, 1e-3, 5e-4)]) == "- The learning rate of SGD-HD does not rise above α₀."
    told = "- The learning rate of SGD-HD rises to 0.00200, and is negative at times."
    assert findings.tuning([made(1, 1e-3, 2e-3, -1e-4)]) == told


def test_one_epoch_is_the_singular():
    assert [findings.overview([made(n, 1e-3)])["runs"] for n in (1, 2)] == ["1 epoch, one seed", "2 epochs, one seed"]


def test_runs_that_diverge_are_counted_by_their_method():
    made = dict(task="digits", alpha0=1e30, epochs=1)
    epochs = pd.DataFrame([[0, 0, 2.3, 1e30, 2.3, 0.1]], columns=EPOCH_COLUMNS)
    trace = pd.DataFrame([[1, 2.3, 1e30, 0.0]], columns=TRACE_COLUMNS)
    runs = [
        Record(RunSpec(method=method, seed=seed, **made), "diverged", 2, epochs, trace, dict(device="a", data="b"))
        for method, seed in (("sgd", 0), ("sgdn", 0), ("sgdn", 1))
    ]
    assert "✕ 1 SGD, 2 SGDN runs diverged, iteration 2" in figures.tuning(runs, "lost").svg(LIGHT)


def test_the_papers_numbers_stand_only_beside_runs_on_its_data(tiny):
    digits = train(tiny)
    mnist = replace(digits, spec=tiny.with_(task="mnist"))
    assert "epoch, paper" in set(figures.tuning([mnist], "x").data["axis"])
    assert "epoch, paper" not in set(figures.tuning([digits], "x").data["axis"])
    assert "authors' repository" in set(findings.tuning_table([mnist]).data["source"])
    table = findings.tuning_table([digits])
    assert set(table.data["source"]) == {"ours"} and "no runs of this model on digits" in table.note


def test_a_share_of_the_channels_is_a_fraction_where_it_is_one():
    assert [style.fraction(factor) for factor in (1.0, 0.125, 1 / 3, 0.3, 2.0)] == ["all", "1/8", "1/3", "0.3", "2"]
