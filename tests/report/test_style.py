"""Tables show what they hold, whatever it is; sentences and axes stay readable at the edges of what they say."""

import doctest

import matplotlib.pyplot as plt
import pandas as pd

from hdlib.report import figures, findings
from hdlib.report.style import LONG, Table, spread


def test_text_is_escaped_and_a_sentence_broken_into_lines():
    sentence = "α < β & " * LONG
    shown = Table(pd.DataFrame({"a < b": ["<b>", sentence], "n": [1.5, 2.5]}), "a < b")._repr_html_()
    assert "<b>" not in shown and "&lt;b&gt;" in shown and "a < b" not in shown
    assert shown.count("hd-long") == 1 and "α &lt; β &amp; " * LONG in shown
    assert "<td>1.5</td>" in shown


def test_numbers_that_are_nearly_equal_are_told_apart():
    assert doctest.testmod(findings) == (0, 3)


def test_zero_has_no_label_beside_it_on_an_axis_of_learning_rates():
    axis = plt.subplots()[1]
    data = pd.DataFrame({"epoch": [0, 1], "quantity": "alpha", "mean": [-1e-2, 1e-1]})
    figures._scales(axis, "alpha", data, figures.ALPHA_FLOOR)
    ticks = abs(axis.get_yticks())
    assert 0 in ticks and 1e-1 in ticks.round(9) and min(ticks[ticks > 0]) > 2 * figures.ALPHA_FLOOR
    plt.close()


def test_a_small_spread_over_seeds_is_not_rounded_to_none():
    assert spread([0.2731, 0.2729]) == "0.273 ± 0.0001"
    assert spread([0.278, 0.268]) == "0.273 ± 0.005"
    assert spread([0.5, 0.5]) == "0.500 ± 0"
