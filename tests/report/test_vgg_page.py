"""What is said of VGG follows from the records: the scale, the orderings, the precisions."""

import pandas as pd

from hdlib.report import vgg
from hdlib.runs import BASELINE, METHODS, Record, RunSpec
from hdlib.runs.record import EPOCH_COLUMNS, TRACE_COLUMNS

ENDS = dict(sgd=1.4, sgd_hd=0.8, sgdn=0.3, sgdn_hd=0.1, adam=0.2, adam_hd=0.05)  # in the order of the paper's


def record(method, train=None, valid=0.5, **fields):
    """Return a made-up run of one epoch."""
    beta = 0.0 if method not in BASELINE else 1e-3
    spec = RunSpec(task="cifar10", model="vgg", method=method, alpha0=1e-3, beta=beta, **({"epochs": 1} | fields))
    train = ENDS[method] if train is None else train
    epochs = pd.DataFrame([[0, 0, 2.3, 1e-3, 2.3, 0.1], [1, 391, train, 1e-3, valid, 0.8]], columns=EPOCH_COLUMNS)
    trace = pd.DataFrame([[1, 2.3, 1e-3, 0.0], [2, 2.2, 0.02, 0.1]], columns=TRACE_COLUMNS)
    made = dict(device="a device", data="CIFAR-10", epoch_seconds=0.5, seconds=100.0)
    return Record(spec, "finished", 391, epochs, trace, made)


def test_a_smaller_experiment_says_that_the_papers_was_not_run():
    small = [record(method, width_factor=1 / 8, train_images=10_000, epochs=20) for method in METHODS]
    text = vgg.scale(small)
    assert "1/8 of the channels, 10,000 of CIFAR-10's 50,000 training images, 20 of the paper's 200 epochs" in text
    assert "was not run" in text and "79 iterations" in text
    assert "left open" in vgg.variant(small)


def test_the_whole_experiment_says_so_and_only_then():
    whole = [record(method, epochs=200) for method in METHODS]
    assert "at its full size" in vgg.scale(whole) and "was not run" not in vgg.scale(whole)
    assert "was not run" in vgg.scale(whole[:-1])
    assert "geometric mean" in vgg.variant(whole)


def test_orderings_are_compared_with_the_published_ones():
    valid = dict(sgd=1.0, sgd_hd=0.9, sgdn=0.8, sgdn_hd=0.7, adam=0.5, adam_hd=0.6)
    alike = [record(method, valid=valid[method]) for method in METHODS]
    assert "7 of 7 orderings are the same" in vgg.agreement_sentence(alike)
    table = vgg.agreement(alike).data
    assert table.iloc[:, 3].str.startswith("yes").all()
    other = [record(method, valid=0.4 if method == "adam_hd" else valid[method]) for method in METHODS]
    said = vgg.agreement_sentence(other)
    assert "5 of 7" in said and "Adam below Adam-HD in validation loss at the end" in said


def test_what_a_hypergradient_costs_is_over_its_own_baseline():
    times = vgg.times([record("adam"), record("adam_hd")]).data.set_index("method")
    assert times.loc["Adam-HD", "over its baseline"] == "+0.0 %"
    assert times.loc["Adam-HD", "authors: over its baseline"] == "+4.9 %"
    assert times.loc["Adam", "authors: seconds an epoch"] == "32.4"
    runs = [record("adam"), record("adam_hd")]
    for run in runs:
        run.provenance["device"] = "a processor (2 cores)"
    assert vgg.times(runs).data.set_index("method").loc["Adam-HD", "over its baseline"] == ""


def test_precisions_are_compared_seed_by_seed():
    exact = [record("adam", train, seed=seed) for seed, train in enumerate((0.50, 0.54))]
    near = [record("adam", train, seed=seed, precision="bf16") for seed, train in enumerate((0.51, 0.55))]
    far = [record("adam", train, seed=seed, precision="bf16") for seed, train in enumerate((0.7, 0.8))]
    assert vgg.precisions(exact + near).data.iloc[0, -1] == "yes"
    assert vgg.precisions(exact + far).data.iloc[0, -1] == "no"
    assert "No run is recorded in two precisions" in vgg.precisions(exact + near[:1])


def test_the_experiments_beta_is_set_against_the_critical_one_of_the_widest_network():
    def row(model, method, seed, critical):
        return dict(model=model, method=method, seed=seed, critical=critical, at_start=1.0, largest=2.0, growth=3.0)

    measured = pd.DataFrame(
        [row("paper 0.125", "adam_hd", seed, 1e-3) for seed in range(2)]
        + [row("authors 1", "adam_hd", 0, 5e-7), row("authors 1", "sgd_hd", 0, 1e-4)]
    )
    betas = dict(adam_hd=1e-8, sgd_hd=1e-3)
    said = vgg.critical_sentence(measured, betas)
    assert "the authors' code, all of the channels" in said
    assert "for Adam-HD 50.0 times below" in said and "for SGD-HD 10.0 times above" in said
    table = vgg.critical(measured, betas).data
    assert table["seeds"].tolist() == [2, 1, 1]
    assert table["model as in"][0] == "the paper's text, 1/8 of the channels"
