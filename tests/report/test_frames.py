"""Tables of runs hold what their columns say, and statistics over seeds are the ones that captions name."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from hdlib.report import figures, frames
from hdlib.report.style import LIGHT
from hdlib.runs import Record, RunSpec
from hdlib.runs.record import EPOCH_COLUMNS, TRACE_COLUMNS

MADE = dict(device="a processor", data="made up")


def run(loss, seed=0, outcome="finished", trace=True):
    """Return a made-up run of two epochs whose numbers follow from a loss."""
    spec = RunSpec(task="digits", method="sgd_hd", alpha0=0.01, beta=1e-3, epochs=2, seed=seed)
    epochs = dict(epoch=[0, 1, 2], iteration=[0, 5, 10], train_loss=[9.0, 2 * loss, loss], alpha=[0.01, loss, loss])
    epochs |= dict(valid_loss=[0.0, 3 * loss, 4 * loss], valid_accuracy=[0.1, 0.5, 1 - loss])
    rows = dict(iteration=range(1, 11), loss=[7.0] * 8 + [loss, 3 * loss], alpha=[0.01, -loss] * 5, hypergrad=0.0)
    return Record(spec, outcome, 10, pd.DataFrame(epochs), pd.DataFrame(rows)[: 10 if trace else 0], MADE)


def test_the_best_validation_loss_is_one_of_training_and_a_diverged_run_has_none():
    kept, lost = frames.finals([run(0.2), run(0.2, outcome="diverged")]).to_dict("records")
    columns = ["train_loss", "valid_loss", "valid_accuracy", "best_valid_loss"]
    assert [kept[name] for name in columns] == pytest.approx([0.2, 0.8, 0.8, 0.6])
    assert [lost[name] for name in columns] == [np.inf, np.inf, 0.0, np.inf]


def test_the_outcome_of_a_short_run_is_the_mean_of_its_last_fifth():
    traced, whole, lost = frames.outcomes([run(0.2), run(0.2, trace=False), run(0.2, outcome="diverged")]).itertuples()
    assert (traced.loss, traced.lowest) == pytest.approx((0.4, -0.2))
    assert whole.loss == 0.2 and np.isnan(whole.lowest)
    assert lost.loss == np.inf and lost.diverged


def capped(*losses, alpha0, seed=0, outcome="finished"):
    """Return a made-up run that ends within its first epoch: only its trace has what it did."""
    spec = RunSpec(task="digits", method="sgd_hd", alpha0=alpha0, beta="auto", epochs=1, max_iterations=3, seed=seed)
    epochs = pd.DataFrame([[0, 0, 2.3, alpha0, 2.3, 0.1]], columns=EPOCH_COLUMNS)
    rows = [[i, loss, alpha0, 0.0] for i, loss in enumerate(losses, 1)]
    return Record(spec, outcome, 3, epochs, pd.DataFrame(rows, columns=TRACE_COLUMNS), MADE)


def test_runs_that_end_within_an_epoch_coincide_where_all_their_iterations_do():
    same = [capped(2.3, 1.0, 0.5, alpha0=0.1), capped(2.3, 1.0, 0.5, alpha0=0.01)]
    apart = [capped(2.3, 1.0, 0.6, alpha0=0.001), capped(2.3, 1.1, 0.5, alpha0=1e-4)]
    lost = [capped(2.3, 9.0, alpha0=rate, outcome="diverged") for rate in (1e-5, 1e-6)]
    untold = [capped(alpha0=rate) for rate in (0.2, 0.3)]
    told = "SGD-HD from α₀ = 10⁻¹ and 10⁻² ends at the same losses"
    assert frames.coinciding([*same, *apart, *lost, *untold]) == told
    assert frames.coinciding(apart) == frames.coinciding(lost) == frames.coinciding([]) == ""
    other = [capped(2.3, 1.0, loss, alpha0=rate, seed=1) for loss, rate in ((0.5, 0.1), (0.4, 0.01))]
    assert frames.coinciding([*same, *other]) == ""  # the other seed tells them apart


def test_runs_of_whole_epochs_that_nothing_traced_coincide_where_their_epochs_do():
    def whole(loss, alpha0):
        made = run(loss, trace=False)
        return replace(made, spec=made.spec.with_(alpha0=alpha0))

    assert frames.coinciding([whole(0.2, 0.1), whole(0.2, 0.01), whole(0.3, 0.001)]).startswith(
        "SGD-HD from α₀ = 10⁻¹ and 10⁻² ends"
    )


def test_lines_are_medians_over_seeds_and_bands_reach_from_the_lowest_to_the_highest():
    runs = [run(loss, seed) for seed, loss in enumerate((0.1, 0.2, 0.6))]
    last = frames.across_seeds(frames.epochs(runs), "epoch", ["train_loss", "alpha"]).query("epoch == 2")
    for row in last.itertuples():
        assert (row.median, row.low, row.high, row.seeds) == (0.2, 0.1, 0.6, 3)
    panels = figures.tuning(runs, "name").draw(LIGHT).axes
    [loss, error] = (
        next(a for a in panels if a.get_ylabel() == name) for name in ("training loss", "validation error")
    )
    assert loss.lines[0].get_ydata().tolist() == [9.0, 0.4, 0.2]
    assert error.lines[0].get_ydata().tolist() == pytest.approx([0.9, 0.5, 0.2])
    band = loss.collections[0].get_paths()[0].vertices
    assert band[:, 1][band[:, 0] == 2].min() == 0.1 and band[:, 1][band[:, 0] == 2].max() == 0.6
