"""What the figures of online tuning show can be told apart."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from hdlib.report import figures, paper
from hdlib.report.style import DARK, LABELS, LIGHT, QUANTITIES
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


def test_the_learning_rates_are_drawn_over_the_first_iterations_on_the_left_and_over_epochs_on_the_right():
    records = [
        run([2.3, 1.0], method=m, alpha0=1e-3, epochs=1, **b) for m, b in (("sgd", {}), ("sgd_hd", dict(beta=1.0)))
    ]
    last = figures.online_tuning(records, "sgd", "name").draw(LIGHT).axes[6:8]
    assert [axis.get_xlabel() for axis in last] == ["iteration", "epoch"]
    plt.close("all")


def test_final_losses_are_means_with_the_range_over_seeds_and_a_decaying_adam_is_named():
    ends = {"none": (0.1, 0.2, 0.6), "inv_sqrt": (0.5, 0.5, 0.5)}
    records = [
        run([2.3, loss], method="adam", decay=decay, alpha0=0.01, epochs=1, seed=seed)
        for decay, losses in ends.items()
        for seed, loss in enumerate(losses)
    ]
    records += [run([2.3, 0.4], method="adam_hd", beta=1e-7, alpha0=0.01, epochs=1, seed=seed) for seed in range(3)]
    figure = figures.final_loss(records, "name")
    assert figure.caption == "Lines are means over seeds, bands reach from the lowest to the highest."
    assert figures.final_loss([records[0]], "name", "One.").caption == "One."
    [axis] = figure.draw(LIGHT).axes
    drawn = {line.get_label(): line.get_ydata().tolist() for line in axis.lines if line.get_marker() == "o"}
    assert drawn == {"Adam": [pytest.approx(0.3)], LABELS["adam_decayed"]: [0.5], "Adam-HD": [pytest.approx(0.4)]}
    assert axis.get_ylabel() == "final training loss, mean"
    assert "Adam, α/√t: 0.500 from 10⁻². Adam: 0.300 from 10⁻². Adam-HD: 0.400 from 10⁻²." in figure.alt
    plt.close("all")


def test_alternative_texts_say_where_methods_end():
    records = [
        run([2.3, loss], method="sgd", alpha0=a, epochs=1) for a, loss in ((1e-3, 2.0), (1e-2, 0.5), (1e-1, 1.0))
    ]
    records += [run([2.3, 0.3], method="sgd_hd", beta=1e-4, alpha0=a, epochs=1) for a in (1e-3, 1e-1)]
    records += [run([2.3], "diverged", method="sgd_hd", beta=1e-4, alpha0=1.0, epochs=1)]
    assert figures.final_loss(records, "name").alt.endswith(
        "One run diverged. SGD: 2.00 from 10⁻³, 0.500 from 10⁻², 1.00 from 10⁻¹. SGD-HD: 0.300 from 10⁻³, diverged "
        "from 10⁰."
    )
    said = "Training loss at the end: SGD 0.500 to 2.00, SGD-HD 0.300. Validation loss at the end: SGD 0.500 to 2.00,"
    assert said in figures.online_tuning(records[:-1], "sgd", "name").alt
    assert said in figures.tuning(records[:-1], "name").alt


def test_the_papers_curves_of_figure_3_are_drawn_in_the_panel_of_their_quantity():
    record = run([2.3, 1.0], task="mnist", method="sgd", alpha0=1e-3, epochs=1)
    axes = figures.tuning([record], "name").draw(LIGHT).axes
    theirs = paper.beside(paper.figure3(), "logreg", "mnist").query("epoch <= 1")
    for quantity, label in QUANTITIES.items():
        own = theirs[theirs["quantity"] == quantity]
        for axis in (a for a in axes if a.get_ylabel() == label and a.get_xlabel() == "epoch"):
            broad = [line for line in axis.lines if line.get_linewidth() == 3.0]
            assert len(broad) == own["method"].nunique()
            assert sorted(y for line in broad for y in line.get_ydata()) == sorted(own["value"])
    plt.close("all")


def test_each_panel_of_online_tuning_draws_its_method_and_quantity():
    """The losses, from 1 to 9, and alpha tell the runs apart."""
    records = [
        run([2.3, 3.0, 2.0], method="sgd", alpha0=1e-3),
        run([2.3, 5.0, 4.0], method="sgd", alpha0=1e-2),
        run([2.3, 7.0, 6.0], method="sgd_hd", alpha0=1e-3, beta=1e-4),
        run([2.3, 9.0, 8.0], method="sgd_hd", alpha0=1e-2, beta=1e-4),
        run([2.3, 1.0, 1.0], method="adam", alpha0=1e-2),  # of another family
    ]
    for record in records[:2]:
        record.epochs["alpha"] = record.trace["alpha"] = 0.5
    axes = figures.online_tuning(records, "sgd", "name").draw(LIGHT).axes
    drawn = [sorted(line.get_ydata().tolist() for line in axis.lines) for axis in axes]
    base, adapted = [[2.3, 3.0, 2.0], [2.3, 5.0, 4.0]], [[7.0, 6.0], [9.0, 8.0]]
    assert drawn[:2] == [[[2.3, 2.0]] * 2] * 2
    assert drawn[2:6] == [base, adapted] * 2
    assert drawn[6:8] == [[[0.01] * 2] * 2, [[0.01] * 3] * 2]
    plt.close("all")


def test_a_divergence_is_marked_where_it_was_and_in_final_losses_at_the_top_of_its_rate():
    lost = run([2.3], "diverged", method="sgd_hd", alpha0=1e-1, beta=1e-4)
    kept = run([2.3, 1.0, 0.5], method="sgd_hd", alpha0=1e-3, beta=1e-4)
    base = run([2.3, 1.0, 0.5], method="sgd", alpha0=1e-3)
    other = run([2.3, 1.0, 0.4], method="adam", alpha0=1e-2)
    early = figures.online_tuning([base, kept, lost], "sgd", "name").draw(LIGHT).axes[1]
    assert [line.get_xdata() for line in early.lines if line.get_marker() == "X"] == [[938]]
    axes = figures.final_loss([base, kept, lost, other], "name").draw(LIGHT).axes
    crosses = [[line.get_xdata().tolist() for line in axis.lines if line.get_marker() == "x"] for axis in axes]
    assert crosses == [[[], [0.1]], [[]]]
    points = [[line.get_xdata().tolist() for line in axis.lines if line.get_marker() == "o"] for axis in axes]
    assert points == [[[1e-3], [1e-3]], [[1e-2]]]
    plt.close("all")


def test_a_validation_error_is_what_is_not_right():
    data = figures.tuning([run([2.3, 1.0, 0.5], method="sgd", alpha0=1e-3)], "name").data
    assert data.loc[data["quantity"] == "valid_error", "median"].tolist() == [pytest.approx(0.1)] * 3


def test_the_papers_curves_end_where_ours_do_and_early_iterations_at_a_thousand():
    record = run([2.3, 1.0], task="mnist", method="sgd", alpha0=1e-3, epochs=1)
    trace = pd.DataFrame(dict(iteration=range(1, 1501), loss=1.0, alpha=0.01))
    record = Record(record.spec, "finished", 1500, record.epochs, trace, record.provenance)
    data = figures.online_tuning([record], "sgd", "name").data
    assert data.loc[data["axis"] == "epoch, paper", "x"].max() == 1
    assert data.loc[data["axis"] == "iteration", "x"].max() == 1000
