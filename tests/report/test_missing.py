"""What was not run is derived from what was: a record that is there takes its line away."""

import pytest
from pandas import DataFrame

from hdlib.report import missing
from hdlib.runs import METHODS, Record, RunSpec
from hdlib.runs.record import EPOCH_COLUMNS, TRACE_COLUMNS

SMALL = dict(alpha0=1e-6, model="mlp", method="sgd", epochs=10)


def record(device="a processor (2 cores)", iterations=10, **fields):
    trace, epochs = DataFrame(columns=TRACE_COLUMNS), DataFrame(columns=EPOCH_COLUMNS)
    return Record(RunSpec(**fields), "finished", iterations, epochs, trace, dict(device=device))


def vgg(**fields):
    return [record(task="cifar10", model="vgg", method=method, alpha0=1e-3, **fields) for method in METHODS]


@pytest.mark.parametrize(
    ("some", "line", "all_of_it"),
    [
        (vgg(epochs=20, width_factor=0.125), "1/8 of the channels and 50,000 images over 20 epochs", vgg(epochs=200)),
        ([record(**SMALL)], "50 epochs: here it has 10.", [record(**SMALL | dict(epochs=50))]),
        (
            [record(**SMALL | dict(epochs=100, alpha0=1e-3))],
            "100 epochs with more than one seed.",
            [record(**SMALL | dict(epochs=100, alpha0=1e-3, seed=seed)) for seed in (1, 2)],
        ),
        ([record(**SMALL)], "Anything on a GPU", [record("a card", **SMALL)]),
    ],
)
def test_what_is_not_there_is_named_until_it_is(some, line, all_of_it):
    assert line in missing.sentences(some)
    assert line not in missing.sentences(some + all_of_it)


def test_how_far_the_grid_search_and_the_guards_went_is_told():
    guard = dict(model="mlp", method="adam_hd", alpha0=0.1, beta=1e-3, epochs=1)
    runs = [record(**SMALL, max_iterations=469, target_loss=0.3), record(iterations=100, **guard, min_lr=0.0)]
    said = missing.sentences(runs)
    assert "beyond 469 iterations" in said and "beyond 100 iterations, or with more than one seed" in said
    unguarded = [record(iterations=900, **guard), record(iterations=900, **guard | dict(beta="auto"))]
    assert missing.sentences(runs + unguarded) == said
