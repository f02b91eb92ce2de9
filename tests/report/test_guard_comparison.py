"""How the automatic beta is set against the plain rule and no hypergradients follows from the runs."""

import pandas as pd
import pytest

from hdlib.report import guards
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
    """Two initial learning rates; the plain rule converges at three of four pairs and is beaten at two of them."""
    automatic = [run(0.2, alpha0=1e-3, beta="auto"), run(0.3, alpha0=1e-2, beta="auto")]
    plain = [
        run(0.25, alpha0=1e-3, beta=1e-6),
        run(0.10, alpha0=1e-3, beta=1e-5),
        run(0.30, alpha0=1e-2, beta=1e-6),
        run(0.01, alpha0=1e-2, beta=1e-5, outcome="diverged"),
    ]
    return automatic, plain, [run(0.4, "adam", alpha0=1e-3), run(0.3, "adam", alpha0=1e-2)]


def test_the_automatic_beta_is_counted_against_every_pair_that_converges(comparison):
    [said] = guards.automatic_sentences(*comparison).splitlines()
    assert said.startswith("- Adam-HD with the automatic β: none of 2 runs diverged.")
    assert "in 2 of the 3 pairs" in said
    assert "below that of the fixed rate α₀ from 1 of 2 initial learning rates" in said
    assert "0.667 to 1.00 times that of the best fixed rate, α = 10⁻²" in said


def test_several_comparisons_are_counted_together(comparison):
    lost = ([run(0.1, "sgd_hd", beta="auto", outcome="diverged")], [run(0.5, "sgd_hd", beta=1e-6)], [run(0.6, "sgd")])
    said = guards.automatic_in_all([comparison, lost])
    assert "1 of 3 runs with the automatic β diverged" in said
    assert "in 2 of the 4 pairs" in said and "from 1 of 3 initial learning rates" in said


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
