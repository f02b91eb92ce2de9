"""The summary on the first page follows from the recorded runs, and from like runs alone."""

from dataclasses import replace
from pathlib import Path

import pytest

from hdlib.report import claims, frames, summary, verdicts
from hdlib.runs import Store

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


def test_a_store_without_the_runs_is_said_to_lack_them():
    [said] = told([])
    assert said.endswith("not enough is recorded in this store.")
