"""What was not run is derived from what was: a record that is there takes its line away."""

from dataclasses import replace

import pytest
from pandas import DataFrame

from hdlib.report import missing
from hdlib.runs import METHODS, Record, RunSpec
from hdlib.runs.experiments import GUARDS
from hdlib.runs.record import EPOCH_COLUMNS, TRACE_COLUMNS

SMALL = dict(alpha0=1e-6, model="mlp", method="sgd", epochs=10)


def record(device="a processor (2 cores)", iterations=10, **fields):
    trace, epochs = DataFrame(columns=TRACE_COLUMNS), DataFrame(columns=EPOCH_COLUMNS)
    return Record(RunSpec(**fields), "finished", iterations, epochs, trace, dict(device=device))


def stacked(device):
    run = record(device, **SMALL)
    return replace(run, provenance=run.provenance | dict(stack=2))


def vgg(**fields):
    return [record(task="cifar10", model="vgg", method=method, alpha0=1e-3, beta=0.0, **fields) for method in METHODS]


def automatic(**fields):
    return [record(task="cifar10", model="vgg", method="sgd_hd", alpha0=1e-3, beta="auto", epochs=20, **fields)]


@pytest.mark.parametrize(
    ("some", "line", "all_of_it"),
    [
        (vgg(epochs=20, width_factor=0.125), "VGG on CIFAR-10 at its full size: the whole", vgg(epochs=200)),
        (
            vgg(epochs=200),
            "VGG on CIFAR-10 at its full size with more than one seed.",
            [run for seed in (1, 2) for run in vgg(epochs=200, seed=seed)],
        ),
        (
            [run for seed in (0, 1) for run in vgg(epochs=200, seed=seed)],
            "VGG on CIFAR-10 at its full size with more than 2 seeds.",
            vgg(epochs=200, seed=2),
        ),
        (
            [*vgg(epochs=200), *vgg(epochs=1, variant="blog"), *vgg(epochs=200, variant="blog", width_factor=0.125)],
            "[The blog post's network](vgg-network) on CIFAR-10 at its full size for 200 epochs.",
            vgg(epochs=200, variant="blog"),
        ),
        (
            [*vgg(epochs=200), *automatic(width_factor=0.125)],
            "The automatic β on VGG at its full size.",
            automatic(),
        ),
        ([record(**SMALL)], "50 epochs: here it has 10 epochs.", [record(**SMALL | dict(epochs=50))]),
        (
            [record(**SMALL | dict(epochs=100, alpha0=1e-3))],
            "100 epochs with more than one seed.",
            [record(**SMALL | dict(epochs=100, alpha0=1e-3, seed=seed)) for seed in (1, 2)],
        ),
        ([record(**SMALL)], "Anything on a GPU", [record("a card", **SMALL)]),
        ([record("a card", **SMALL)], "Anything but VGG on a GPU", [stacked("a card")]),
    ],
)
def test_what_is_not_there_is_named_until_it_is(some, line, all_of_it):
    assert line in missing.sentences(some)
    assert line not in missing.sentences(some + all_of_it)


@pytest.mark.parametrize(
    "other",
    [
        dict(task="digits"),
        dict(width=100),
        dict(decay="cosine"),
        dict(max_iterations=9),
        dict(batch_size=64),
        dict(weight_decay=0.0),
    ],
)
def test_a_run_that_is_not_the_papers_takes_no_line_away(other):
    runs = [record(**SMALL | dict(epochs=100, seed=seed) | other) for seed in range(3)]
    said = missing.sentences([*runs, record(**SMALL)])
    assert "50 epochs: here it has 10 epochs." in said and "100 epochs with more than 0 seeds." in said


def test_online_tuning_reached_as_far_as_from_its_smallest_rate():
    assert "here it has 10 epochs" in missing.sentences(
        [record(**SMALL), record(**SMALL | dict(alpha0=0.1, epochs=50))]
    )


def test_seeds_of_the_whole_experiment_are_those_of_the_papers_rule():
    automatic = [record(task="cifar10", model="vgg", method="adam_hd", alpha0=1e-3, beta="auto", epochs=200, seed=seed)
                 for seed in (1, 2)]  # fmt: skip
    assert "with more than one seed." in missing.sentences([*vgg(epochs=200), *automatic])


def test_vgg_runs_of_another_scale_are_named_where_there_are_some():
    assert "narrower, shorter, or on fewer images" in missing.sentences(vgg(epochs=20, width_factor=0.125))
    assert "narrower" not in missing.sentences([record(**SMALL)])


def test_the_scales_at_which_vgg_was_run_are_counted_by_their_seeds():
    narrow = [*vgg(epochs=20, width_factor=0.125), *vgg(epochs=20, width_factor=0.125, seed=1)]
    runs = [*narrow, *vgg(epochs=1, train_images=200, precision="bf16"), *vgg(epochs=9, max_iterations=3)]
    table = missing.vgg_scales([*runs, record(**SMALL)]).data
    assert table.to_numpy().tolist() == [["all", "200", 1, "bf16", 1], ["1/8", "50,000", 20, "float32", 2]]


def test_how_far_the_grid_search_went_is_told():
    runs = [record(**SMALL, max_iterations=cap, target_loss=0.3) for cap in (469, 9)]
    untargeted = record(**SMALL, max_iterations=900)
    assert "beyond 469 iterations" in missing.sentences([*runs, untargeted])


def test_guards_that_went_further_than_the_others_are_named():
    """Of each guard there is a run of 100 iterations; the multiplicative rule has longer ones, the greedy one seeds."""
    common = dict(model="mlp", method="adam_hd", alpha0=0.1, epochs=1)
    runs = [
        record(iterations=100, **common | {"beta": 1e-3} | guard)
        for name, guard in GUARDS.items()
        if name not in ("plain", "automatic")
    ]
    others = [
        record(iterations=900, **common, beta=1e-3),
        record(iterations=900, **common, beta="auto"),
        record(iterations=900, **common, beta=1e-3, max_lr=0.1),
        record(iterations=900, **common | dict(beta=0.02, rule="multiplicative", width=10)),
        record(iterations=100, **common, beta=0.02, rule="multiplicative"),
    ]
    start = (
        "Most guards on the paper's perceptron beyond 100 iterations or with more than one seed (not so: the automatic"
    )
    start += " β"
    assert missing.guards(runs + others) == f"{start})."
    further = [
        record(iterations=900, **common, beta=0.02, rule="multiplicative"),
        record(iterations=100, **common, beta="auto", overshoot=0.0, seed=1),
    ]
    said = missing.guards(runs + others + further)
    assert said == (
        f"{start}; *multiplicative*, 900 iterations and one seed; *automatic, greedy*, 100 iterations and 2 seeds)."
    )
    assert f"- {said}" in missing.sentences(runs + others + further).splitlines()
    bounded = "*bounds 0 and 0.1*, 100 iterations and one seed"
    assert missing.guards(runs[:1]) == f"Most guards on the paper's perceptron (not so: {bounded})."
    assert missing.guards(others[:1]) == "Guards on the paper's perceptron."
