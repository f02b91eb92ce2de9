"""The networks that may have been the paper's are compared with it by their runs' first epochs."""

import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from hdlib.report import notebooks, paper, vgg, vgg_network
from hdlib.report.parameters import ParameterError
from hdlib.runs import BASELINE, METHODS, Record, RunSpec, Store
from hdlib.runs.record import EPOCH_COLUMNS, TRACE_COLUMNS

ROOT = Path(__file__).parents[2]


def begun(method, train, valid=2.0, outcome="finished", **fields):
    """Return a made-up run with these training losses at the start and after each epoch."""
    beta = 1e-3 if method in BASELINE else 0.0
    spec = RunSpec(task="cifar10", model="vgg", method=method, alpha0=1e-3, beta=beta, epochs=2, **fields)
    rows = [[i, 391 * i, loss, 1e-3, valid, 0.3] for i, loss in enumerate(train)]
    trace = pd.DataFrame([[1, 2.3, 1e-3, 0.0]], columns=TRACE_COLUMNS)
    made = dict(device="a device", data="CIFAR-10", seconds=100.0)
    return Record(spec, outcome, 190, pd.DataFrame(rows, columns=EPOCH_COLUMNS), trace, made)


AUTHORS = [begun("adam", (2.31, 1.85, 1.40), 1.7), begun("sgdn_hd", (2.31, 1.79, 1.42), 1.4)]
BLOG = [begun(r.spec.method, (2.38, loss, 1.9), valid, variant="blog", norm_start="uniform")
        for r, loss, valid in zip(AUTHORS, (1.9, 2.0), (1.8, 3.3), strict=True)]  # fmt: skip
PAPER = [begun("sgdn_hd", (2.3,), outcome="diverged", variant="paper")]


def test_losses_stand_beside_the_published_ones_epoch_by_epoch():
    table = vgg_network.beside(AUTHORS + BLOG + PAPER, "train_loss").data.set_index(["epoch", "method"])
    assert table.columns.tolist() == [
        "the authors' code", "the blog post (uniform start)", "the paper's text", "paper, Figure 3",
        "authors' repository",
    ]  # fmt: skip
    assert table.loc[(0, "Adam")].tolist() == ["2.31", "2.38", "", "2.30", "2.31"]
    assert table.loc[(1, "Adam")].tolist() == ["1.85", "1.90", "", "1.81", "1.85"]
    assert table.loc[(1, "SGDN-HD")].tolist() == ["1.79", "2.00", "diverged", "2.00", "1.79"]
    assert table.loc[(2, "Adam")].tolist() == ["1.40", "1.90", "", "1.32", ""]
    valid = vgg_network.beside(AUTHORS, "valid_loss").data.set_index(["epoch", "method"])
    assert valid.loc[(1, "Adam"), "authors' repository"] == "1.61"
    assert valid.index.get_level_values("epoch").max() == vgg_network.LAST


def test_an_epoch_that_a_run_was_not_asked_for_is_blank():
    short = [replace(r, spec=r.spec.with_(epochs=1), epochs=r.epochs[:2]) for r in AUTHORS]
    table = vgg_network.beside(short, "train_loss").data.set_index(["epoch", "method"])["the authors' code"]
    assert (table[(1, "Adam")], table[(2, "Adam")]) == ("1.85", "")


def test_each_row_of_experiments_asks_for_its_methods_with_their_own_beta():
    rows = [["blog", "uniform", 2, 2, ["sgd", "adam_hd"]], ["paper", "ones", 1, 1, ["sgdn_hd"]]]
    specs = vgg_network.asked(
        rows, {"adam_hd": 1e-8, "sgdn_hd": 1e-3}, task="cifar10", model="vgg", alpha0=1e-3, batch_size=64
    )
    assert [(s.method, s.seed, s.beta, s.epochs, s.variant, s.norm_start) for s in specs] == [
        *[("sgd", seed, 0.0, 2, "blog", "uniform") for seed in (0, 1)],
        *[("adam_hd", seed, 1e-8, 2, "blog", "uniform") for seed in (0, 1)],
        ("sgdn_hd", 0, 1e-3, 1, "paper", "ones"),
    ]
    assert {s.batch_size for s in specs} == {64}


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([], "experiments is []: give rows of a network"),
        ([["blog", "uniform", 1, 1, ["sgd"], 64]], "64]]: give rows of a network"),
        ([["blog", "uniform", 1, 1, []]], "[]]]: give rows of a network"),
        ([["blog", "uniform", 1, seeds, ["sgd"]] for seeds in (1, 2)], "experiments asks twice for sgd in ['blog'"),
    ],
)
def test_rows_that_are_no_experiments_are_refused(rows, sentence):
    with pytest.raises(ParameterError) as refused:
        vgg_network.asked(rows, {}, task="cifar10", model="vgg", alpha0=1e-3)
    assert sentence in str(refused.value)


def test_the_nearest_network_is_named_for_each_source():
    said = vgg_network.nearest(AUTHORS + BLOG).splitlines()
    assert said[1] == (
        "- Training loss of SGDN-HD and Adam, nearest to the authors' repository: the authors' code, 0.0016 away; "
        "then the blog post (uniform start), 0.13 away."
    )
    assert "nearest to the paper, Figure 3: the blog post (uniform start), 0.031 away; then" in said[2]
    with_paper = vgg_network.nearest(AUTHORS + BLOG + PAPER)  # which was run with one method alone, and was lost
    assert "then the blog post (uniform start), 0.21 away; the paper's text, which diverges." in with_paper
    table = vgg_network.distances(AUTHORS + BLOG + PAPER).data.set_index("from")
    row = table.loc["authors' repository, training loss"]
    assert row.tolist() == ["0.0016 (2 methods)", "0.13 (2 methods)", "1 diverged"]


def test_losses_above_guessing_and_divergence_are_told():
    said = vgg_network.guessing(AUTHORS + BLOG + PAPER)
    assert "the blog post (uniform start): SGDN-HD." in said and "paper, Figure 3: SGD-HD, SGDN and SGDN-HD" in said
    assert "authors" not in said
    assert "the paper's text" not in said  # what is lost is not above, it is nowhere
    near = begun("sgd", (2.31, 2.0, 1.9), 2.31)  # ln 10 is 2.303
    untrained = replace(AUTHORS[0], epochs=AUTHORS[0].epochs.assign(valid_loss=[2.5, 1.8, 1.7]))
    assert "authors" not in vgg_network.guessing([near, untrained])
    assert "the authors' code: SGD;" in vgg_network.guessing([begun("sgd", (2.31, 2.0, 1.9), 2.33)])
    good = [begun("sgdn_hd", (2.38, 2.0, 1.9), 1.9, variant="blog", norm_start="uniform", seed=1)]
    assert "blog" not in vgg_network.guessing(BLOG + good)  # not in every seed
    assert vgg_network.lost(PAPER) == "SGDN-HD as in the paper's text diverged at iteration 190."
    assert vgg_network.lost(AUTHORS) == "No run diverged."


def test_a_network_with_fewer_seeds_than_another_is_not_said_to_have_as_many():
    more = [begun("adam", (2.31, 1.87, 1.41), 1.7, seed=1)]
    assert "2 methods, one seed each" in vgg.scale(AUTHORS)
    assert "up to 2 seeds each" in vgg.scale(AUTHORS + more)
    assert "3 runs, up to 2 seeds, " in vgg_network.beside(AUTHORS + more, "train_loss").note


@pytest.fixture(scope="module")
def shown():
    """The records that the page shows, with the parameters it has."""
    known = notebooks.parameters_of(ROOT / "notebooks/vgg_network.md")
    parameters = {name: parameter.value for name, parameter in known.items()}
    common = {name: parameters[name] for name in ("task", "width_factor", "batch_size", "precision")}
    betas = {method: paper.tuned_beta(method, "vgg") for method in BASELINE}
    asked = vgg_network.asked(parameters["experiments"], betas, model="vgg", alpha0=paper.TUNED_FROM, **common)
    records = Store(ROOT / "results").get(asked)
    assert len(records) == len(asked) == 39
    return records


def test_what_the_page_says_of_the_networks_follows_from_the_records(shown):
    """The section "What it says" is prose: these are its statements, in its order."""
    of = {}
    for quantity in ("train_loss", "valid_loss"):
        after = vgg_network.losses(shown, quantity).query("epoch == 1")
        of[quantity] = after.groupby(["network", "method"])["loss"].agg(["min", "mean", "max"])
    train, valid = of["train_loss"], of["valid_loss"]
    figure, theirs = vgg.SOURCES["paper"], vgg.SOURCES["authors"]
    ones, uniform, blog = "the authors' code", "the authors' code (uniform start)", "the blog post (uniform start)"

    def off(losses, network, source, method):
        return abs(losses.loc[(network, method), "mean"] - losses.loc[(source, method), "mean"])

    assert {m for m in METHODS if off(train, uniform, theirs, m) > off(train, ones, theirs, m)} == {"adam_hd"}
    faster = {m for m in METHODS if train.loc[(ones, m), "max"] < train.loc[(theirs, m), "min"]}
    assert faster == {"sgd_hd", "sgdn", "sgdn_hd"}
    assert valid.loc[(theirs, "adam_hd"), "mean"] < valid.xs("adam_hd", level="method").drop(theirs)["min"].min()
    above = vgg_network.guessing(shown)
    assert "authors" not in above and "text" not in above
    assert f"{blog}: SGD-HD, SGDN and SGDN-HD" in above and f"{figure}: SGD-HD, SGDN and SGDN-HD" in above
    page = re.sub(r"\s+", " ", (ROOT / "notebooks/vgg_network.md").read_text())
    began = vgg_network.losses(shown, "train_loss").query("epoch == 0 and method == 'sgd'").groupby("network")["loss"]
    starts, low, high = began.agg(["min", "max"]), *train.loc[(blog, "sgd"), ["min", "max"]]
    assert low < train.loc[(figure, "sgd"), "mean"] < high < starts.loc[blog, "min"]
    assert starts.loc[figure, "max"] < train.loc[(figure, "sgd"), "mean"]
    assert (
        f"SGD's training loss rises in the figure, from {starts.loc[figure, 'min']:.3f} at the start to "
        f"{train.loc[(figure, 'sgd'), 'mean']:.3f} in the first epoch" in page
    )
    start = starts.loc[blog].map("{:.3f}".format).unique().tolist()
    assert [f"as high, {low:.3f} to {high:.3f}, but comes down from {value}, and" in page for value in start] == [True]
    assert max(train.loc[(name, "sgd"), "max"] for name in (ones, uniform)) < low
    assert off(train, uniform, theirs, "sgd") < 0.002 < 0.02 < off(train, uniform, figure, "sgd")
    assert {m for m in METHODS if off(train, uniform, figure, m) < off(train, blog, figure, m)} == {"sgd_hd", "adam"}
    told = [m for m in METHODS if (figure, m) in valid.index]
    assert len(told) == 5
    for method in told:
        low, high = valid.loc[(blog, method), ["min", "max"]]
        assert not low <= valid.loc[(figure, method), "mean"] <= high
    nearer = [
        m for m in told if 2 * off(valid, blog, figure, m) < min(off(valid, n, figure, m) for n in (ones, uniform))
    ]
    assert nearer == ["sgd_hd", "sgdn", "sgdn_hd", "adam_hd"]
    for method in ("sgd_hd", "sgdn", "sgdn_hd"):
        low, high = valid.loc[(blog, method), ["min", "max"]]
        others = valid.loc[[(ones, method), (uniform, method)]]
        assert low - others["max"].max() > max(high - low, (others["max"] - others["min"]).max())
