"""The summary on the first page follows from the recorded runs, and from like runs alone."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from hdlib.report import claims, frames, summary, verdicts
from hdlib.runs import Record, RunSpec, Store
from hdlib.runs.record import EPOCH_COLUMNS, TRACE_COLUMNS

RESULTS = Path(__file__).parents[2] / "results"


@pytest.fixture(scope="module")
def recorded():
    return Store(RESULTS).all()


def told(records):
    """Return the summary's lines."""
    models = (summary.online_tuning(records, *runs) for runs in (("logreg", 50), ("mlp", 10)))
    return summary.one_minute(*models, records).splitlines()


def test_the_summary_says_what_holds_what_does_not_what_is_new_and_what_was_not_run(recorded):
    lines = told(recorded)
    leads = [line.split("**")[1] for line in lines]
    assert leads == [
        "Reproduced.",
        "Not reproduced.",
        "Only in part.",
        "An uneven comparison.",
        "New.",
        "Not tested.",
    ]
    assert "all 18 runs diverge, after 5 to 7 iterations" in lines[1]
    assert "Adam-HD ends at 0.247, such an Adam at 0.335, and one that does not decay at 0.249" in lines[3]
    assert "In validation SGD-HD ends at 0.268 to 0.269, beside the 0.268 of the best fixed SGD; " in lines[0]
    assert "Adam-HD ends at 0.277 to 0.290, above the 0.264 of the best fixed Adam" in lines[0]
    assert "SGD-HD, started at the best fixed rate of SGD, 10⁻¹, hardly moves α and ends at 1.1 times" in lines[2]
    assert "from the other 5 starts it ends at 12 to 19 times that" in lines[2]
    assert "none of its 96 runs diverged" in lines[4]
    assert "1/8 of the channels, 100 epochs of all images and one seed, 7 of the 9 orderings" in lines[5]


def test_a_users_own_runs_do_not_change_what_the_book_says_of_the_papers(recorded):
    [one] = [
        r
        for r in recorded
        if (r.spec.alpha0, r.spec.epochs, r.spec.method, r.spec.decay, r.spec.seed) == (0.1, 50, "sgd", "none", 0)
    ]
    assert "cosine" not in {r.spec.decay for r in summary.online_tuning(recorded, "logreg", 50)}
    extra = replace(one, spec=one.spec.with_(alpha0=0.5))
    assert told([*recorded, extra]) == told(recorded)
    assert verdicts.tally(claims.judged([*recorded, extra])) == verdicts.tally(claims.judged(recorded))


def test_both_sides_of_a_comparison_have_the_same_seeds(recorded):
    mlp = summary.online_tuning(recorded, "mlp", 10)
    first = [r for r in mlp if r.spec.seed == 0]
    few = [r for r in mlp if r.spec.seed == 0 or r.spec.method != "adam_hd"]
    ours, theirs = summary._ends(few, "adam_hd", 1e-7)
    alone = summary._ends(first, "adam_hd", 1e-7)
    assert ours.equals(alone[0]) and theirs.equals(alone[1])


def test_runs_that_are_the_same_from_two_learning_rates_are_named(recorded):
    automatic = [r for r in summary.online_tuning(recorded, "mlp", 10) if r.spec.rule == "auto"]
    assert frames.coinciding(automatic) == "Adam-HD from α₀ = 10⁻¹ and 10⁻² ends at the same losses"
    assert frames.coinciding([r for r in automatic if r.spec.alpha0 < 0.05]) == ""


def ended(loss, alpha0, model, method="sgd", alpha=None, **fields):
    """Return a made-up run whose validation loss is twice its training loss."""
    spec = RunSpec(model=model, method=method, alpha0=alpha0, epochs=1, **fields)
    rows = [[0, 0, 2.3, alpha0, 2.3, 0.1], [1, 469, loss, alpha or alpha0, 2 * loss, 0.9]]
    epochs, trace = pd.DataFrame(rows, columns=EPOCH_COLUMNS), pd.DataFrame(columns=TRACE_COLUMNS)
    return Record(spec, "finished", 469, epochs, trace, {})


@pytest.fixture
def made_up():
    """Each method from two rates: fixed, with the beta that suits it, and automatic; on the perceptron 1e-4 is lost."""
    logreg, mlp = [], []
    for family in ("sgd", "adam"):
        hd = f"{family}_hd"
        for rate, fixed, ours, automatic in ((1e-1, 0.1, 0.11, 0.2), (1e-3, 0.4, 0.3, 0.35)):
            for model, found, beta in (("logreg", logreg, 1e-4), ("mlp", mlp, summary.IMPLIED[hd])):
                found.append(ended(fixed, rate, model, family))
                found.append(ended(ours, rate, model, hd, beta=beta, alpha=0.05))
                found.append(ended(automatic if model == "logreg" else 0.05, rate, model, hd, beta="auto", alpha=0.05))
    lost = [ended(9.0, rate, "mlp", "adam_hd", beta=1e-4) for rate in (1e-1, 1e-3)]
    mlp += [replace(r, outcome="diverged", iterations=n) for r, n in zip(lost, (5, 7), strict=True)]
    return logreg, mlp


def test_each_loss_of_the_summary_is_that_of_the_runs_that_it_names(made_up):
    reproduced, failed, partly, new, *_ = summary.one_minute(*made_up, []).splitlines()
    assert (
        "From 2 starts between 10⁻³ and 10⁻¹, SGD-HD ends at training losses of 0.110 to 0.300, where SGD without "
        in (reproduced)
    )
    assert "it ends at 0.100 to 0.400; Adam-HD ends at" in reproduced and "(one epoch, one seed)" in reproduced
    assert reproduced.endswith(
        "In validation SGD-HD ends at 0.220 to 0.600, above the 0.200 of the best fixed SGD; Adam-HD ends at 0.220 to "
        "0.600, above the 0.200 of the best fixed Adam."
    )
    assert "all 2 runs diverge, after 5 to 7 iterations" in failed
    assert "SGD-HD ends at 1.1 to 3.0 times the training loss of the best SGD; Adam-HD ends at 1.1 to 3.0" in partly
    assert "none of its 8 runs diverged" in new
    assert "in 6 of 8 cases; the paper's rule does in 4 (β = 10⁻⁴, on the perceptron those that the curves" in new
    assert "On the perceptron SGD-HD ends at 0.50 to 0.50 times the training loss of the best SGD; Adam-HD" in new


def test_a_store_without_the_runs_is_said_to_lack_them():
    [said] = told([])
    assert said.endswith("not enough is recorded in this store.")
