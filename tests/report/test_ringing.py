"""Where ringing begins follows from the runs of the phase diagrams and the critical betas."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from test_guard_comparison import run

from hdlib.report import ringing
from hdlib.report.style import LIGHT
from hdlib.runs.record import TRACE_COLUMNS

BETAS = [1e-5, 1e-4, 1e-3, 1e-2]


def critical(*rows):
    """Return measured critical betas: model, method, beta, 2 over the largest kappa."""
    return pd.DataFrame(rows, columns=["model", "method", "critical", "largest"])


def negative(record):
    """Return a run in which alpha was negative once."""
    trace = pd.DataFrame([[468, 2.3, 1e-3, 0.0], [469, 2.3, -1e-3, 1.0]], columns=TRACE_COLUMNS)
    return dataclasses.replace(record, trace=trace)


def diagram(rings, diverges, method="adam_hd", alpha0=1e-3):
    """Return runs of one method that rings from a beta on and diverges from another, with the baselines."""
    found = [run(1.0, baseline, alpha0) for baseline in ("sgd", "sgdn", "adam")]
    for beta in BETAS:
        record = run(0.5, method, alpha0, beta=beta, outcome="diverged" if beta >= diverges else "finished")
        found.append(negative(record) if beta >= rings else record)
    return found


@pytest.fixture
def rings():
    """One model rings a grid step above 2 over the largest kappa, one far below it, and one not at all."""
    diagrams = {"a": diagram(1e-3, 1e-2), "b": diagram(1e-4, 1e-4), "c": diagram(1.0, 1.0)}
    rows = [(model, "adam_hd", 5e-3, limit) for model, limit in (("a", 5e-4), ("b", 1e-2), ("c", 1e-1))]
    return ringing.begin(diagrams, critical(*rows))


def test_ringing_begins_at_the_smallest_beta_at_which_alpha_is_negative_or_the_run_lost(rings):
    found = rings.set_index("model")
    assert found["rings"].to_list()[:2] == [1e-3, 1e-4] and np.isnan(found["rings"]["c"])
    assert found["before"].to_list()[:2] == [1e-4, 1e-5]
    assert found["how"].to_list() == ["ringing", "diverged", ""]


def test_ringing_is_read_from_the_learning_rate_of_the_critical_betas():
    both = diagram(1e-4, 1e-2, alpha0=1e-1) + diagram(1e-3, 1e-2, alpha0=2e-3)
    found = ringing.begin({"a": both}, critical(("a", "adam_hd", 5e-3, 5e-4)))
    assert (found["alpha0"].item(), found["rings"].item()) == (2e-3, 1e-3)


def test_the_law_is_said_to_hold_within_a_step_of_the_grid_and_exceptions_are_named(rings):
    said = ringing.sentences(rings)
    assert "one step of the grid is a factor of 10.0." in said
    assert "in 1 of 2 models, 2.00 times it; not in b (100 times below it)" in said
    assert "Training fails at 5.00 to 50.0 times the β at which ringing begins (50.0: b)" in said
    assert "In 1 of them half of the seeds diverged there already" in said
    assert "does α turn negative from there in c: 2 / largest κ lies above the grid" in said


def test_the_figure_of_ringing_is_drawn_and_says_what_was_run(rings):
    figure = ringing.figure(rings, diagram(1e-3, 1e-2), "name", "Caption.")
    assert figure.svg(LIGHT) and figure.note.startswith("7 runs, 1 seed")


def test_a_bar_reaches_from_the_last_beta_that_does_not_ring_to_the_first_that_does(rings):
    [axis] = ringing.figure(rings, diagram(1e-3, 1e-2), "name", "Caption.").draw(LIGHT).axes
    beyond, begins = ([segment.tolist() for segment in lines.get_segments()] for lines in axis.collections)
    assert np.allclose(begins[0], [[0.2, 0], [2, 0]]) and np.allclose(begins[1], [[1e-3, 1], [1e-2, 1]])
    assert np.allclose(beyond[0], [[2, 0], [10, 0]])
