"""What the figures of online tuning show can be told apart."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from hdlib.report import figures
from hdlib.report.style import DARK, LIGHT
from hdlib.runs import Record, RunSpec


def run(losses, outcome="finished", **fields):
    """Return a made-up run with a loss for each epoch, from 0."""
    table = pd.DataFrame(dict(train_loss=losses, valid_loss=losses, valid_accuracy=0.9, alpha=0.01))
    table = table.assign(epoch=table.index, iteration=469 * table.index)
    trace = pd.DataFrame(dict(iteration=[1, 2], loss=[2.3, 2.0], alpha=0.01))
    spec = RunSpec(**(dict(task="digits", epochs=2) | fields))
    return Record(spec, outcome, 938, table, trace, dict(device="a machine", data="digits"))


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_the_losses_of_hypergradients_begin_with_the_first_epoch_on_axes_of_their_own(theme):
    records = [
        run([2.3, 2.2, 2.1], method="sgd", alpha0=1e-3),
        run([2.3, 0.26, 0.25], method="sgd_hd", alpha0=1e-3, beta=1e-4),
        run([2.3, 0.25, 0.24], method="sgd_hd", alpha0=1e-3, beta=0.02, rule="multiplicative"),
    ]
    axes = figures.online_tuning(records, "sgd", "name").draw(theme).axes
    for left, right in (axes[2:4], axes[4:6]):
        assert left.get_ylim()[1] > 2.3 and 0.2 < right.get_ylim()[0] < 0.24 and 0.26 < right.get_ylim()[1] < 0.3
        assert {tuple(line.get_xdata()) for line in right.lines} == {(1, 2)}
        multiplicative, additive = sorted(right.lines, key=lambda line: line.get_ydata()[0])
        assert multiplicative.get_linewidth() < additive.get_linewidth()
        assert not np.allclose(multiplicative.get_color()[:3], additive.get_color()[:3])
    plt.close("all")


def test_what_diverged_before_the_first_epoch_leaves_a_figure():
    records = [
        run([2.3, 2.2, 2.1], method="sgd", alpha0=1e-3),
        run([2.3], "diverged", method="sgd_hd", alpha0=1e-3, beta=1e-1),
    ]
    assert figures.online_tuning(records, "sgd", "name").svg(LIGHT)
