"""The guide's numbers, written by hand, are what the records and the code say."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from hdlib import SGDHD, AdamHD
from hdlib.optim import control
from hdlib.report import automatic, automatic_compared, recipe, relapse
from hdlib.report.performance import read
from hdlib.runs import RunSpec, Store, branch, experiments
from hdlib.runs.critical import boundaries, measured_boundaries

ROOT = Path(__file__).parents[2]
NARROW = dict(model="vgg", variant="authors", norm_start="ones", width_factor=0.125, train_images=10_000, epochs=20,
              precision="float32")  # fmt: skip
METHODS = {"sgd_hd": "sgd", "sgdn_hd": "sgdn", "adam_hd": "adam"}


@pytest.fixture(scope="module")
def guide() -> str:
    return re.sub(r"\s+", " ", (ROOT / "book" / "guide.md").read_text())


@pytest.fixture(scope="module")
def records() -> list:
    return [record for record in Store(ROOT / "results").all() if not record.spec.max_iterations]


def last_losses(records, quantity, **fields):
    """Return the mean loss of the last epoch over seeds, by method, whether beta is automatic, and alpha_0."""
    groups = {}
    for record in records:
        spec = record.spec
        if all(getattr(spec, name) == value for name, value in fields.items()):
            loss = record.epochs[quantity].dropna().iloc[-1]
            groups.setdefault((spec.method, spec.rule == "auto", spec.alpha0), []).append(loss)
    return {key: sum(losses) / len(losses) for key, losses in groups.items()}


def over_best_fixed(records, quantity, method, **fields):
    """Return by how much the automatic beta ends above the best fixed learning rate, by alpha_0."""
    losses = last_losses(records, quantity, **fields)
    best = min(loss for (name, _, _), loss in losses.items() if name == METHODS[method])
    return {a: loss / best - 1 for (name, auto, a), loss in losses.items() if name == method and auto}


def automatic_ends(losses, method):
    """Return a method's losses with the automatic beta, by alpha_0."""
    return {alpha0: loss for (name, auto, alpha0), loss in losses.items() if name == method and auto}


@pytest.mark.parametrize("method", ["sgd_hd", "adam_hd"])
def test_how_good_auto_was_on_the_papers_perceptron(guide, records, method):
    percent = re.search(r"from all six `lr` that were tried, the validation loss ended within (\d+) %", guide)[1]
    papers = dict(model="mlp", task="mnist", width=1000, epochs=50)
    above = over_best_fixed(records, "valid_loss", method, **papers)
    assert len(above) == 6
    assert max(above.values()) <= int(percent) / 100
    over = [1 + more for more in over_best_fixed(records, "train_loss", method, **papers).values()]
    told = " to ".join(f"{ratio:.2g}" for ratio in (min(over), max(over)))
    assert told == ("1.5 to 15" if method == "sgd_hd" else "0.32 to 3.4") and f"at {told} times" in guide
    fixed = last_losses(records, "train_loss", method="sgd", decay="none", **papers)
    assert min(fixed, key=fixed.get)[2] == max(experiments.PAPER_RATES)


def test_the_percentage_is_no_larger_than_it_must_be(guide, records):
    percent = int(re.search(r"ended within (\d+) %", guide)[1])
    papers = dict(model="mlp", task="mnist", width=1000, epochs=50)
    worst = max(max(over_best_fixed(records, "valid_loss", m, **papers).values()) for m in ("sgd_hd", "adam_hd"))
    assert percent == math.ceil(100 * worst)


def test_how_good_auto_was_on_a_transformer(guide, records):
    common = dict(model="vit", decay="none", epochs=10, train_images=10_000)
    losses = last_losses(records, "train_loss", **common)
    fixed = {alpha0: loss for (name, _, alpha0), loss in losses.items() if name == "adam"}
    ours = automatic_ends(losses, "adam_hd")
    assert fixed.keys() == ours.keys() == {1e-1, 1e-2, 1e-3, 1e-4, 1e-5}
    best = min(fixed, key=fixed.get)
    others = [loss for alpha0, loss in fixed.items() if alpha0 != best]
    told = (f"{min(them) / fixed[best]:.2f} to {max(them) / fixed[best]:.2f} times" for them in (ours.values(), others))
    assert f"ended at {next(told)} the training loss of the best of these as a fixed one" in guide
    assert f"from the others a fixed one ended at {next(told)} it." in guide
    assert not any(r.outcome == "diverged" for r in records if r.spec.model == "vit")


def test_which_fixed_rate_is_best_beyond_the_papers_six(records):
    """The page on guards says that SGD on a perceptron fares best with a rate that is not among them."""
    best = {}
    for spec, width in ((dict(model="logreg"), 1000), (dict(model="mlp"), 100), (dict(model="mlp"), 1000)):
        for method in ("sgd", "sgdn", "adam"):
            fields = dict(task="mnist", epochs=2, decay="none", width=width, method=method) | spec
            losses = last_losses(records, "train_loss", **fields)
            best[spec["model"], width, method] = min(losses, key=losses.get)[2]
    beyond = {run for run, rate in best.items() if rate not in experiments.PAPER_RATES}
    assert beyond == {("mlp", 100, "sgd"), ("mlp", 1000, "sgd")} and best["mlp", 1000, "sgd"] == experiments.LARGER[0]


def test_how_large_the_networks_are_on_which_auto_was_tried(guide):
    common = dict(method="sgd", alpha0=0.1, epochs=1)
    sizes = {
        "(1.8 million parameters)": RunSpec(model="mlp", **common),
        "[a narrow VGG](vgg-variants) (0.24 million)": RunSpec(
            task="cifar10", model="vgg", width_factor=0.125, **common
        ),
        "[a small transformer](transformer) (0.15 million)": RunSpec(task="cifar10", model="vit", **common),
    }
    for told, spec in sizes.items():
        millions = f"{experiments.parameter_count(spec) / 1e6:.2g}"
        assert told in guide and f"({millions} million" in told


def test_how_long_the_longest_runs_were(guide, records):
    longest = max(record.iterations for record in records if record.spec.rule == "auto")
    whole = max(r.iterations for r in records if r.spec.model == "vgg" and r.spec.width_factor == 1)
    assert guide.count(f"some {longest // 1000},000 steps") == 2
    assert f"trained [VGG](vgg) for {whole:,} steps" in guide


def test_adam_hd_is_recommended_for_what_it_did(guide, records):
    assert "from all six `lr` it ended at a lower validation loss than plain `SGDHD`" in guide
    losses = last_losses(records, "valid_loss", model="mlp", task="mnist", width=1000, epochs=50)
    sgd, adam = (
        {a: loss for (name, auto, a), loss in losses.items() if name == method and auto}
        for method in ("sgd_hd", "adam_hd")
    )
    assert len(adam) == 6 and all(adam[alpha0] < sgd[alpha0] for alpha0 in sgd)


def test_on_vgg_the_recommendation_was_the_other_way_round(guide, records):
    assert "With Nesterov momentum `SGDHD` was ahead on [a narrow VGG](vgg-variants), in the means over three" in guide
    assert "from 10⁻¹ and 10⁻³ it ended lower than `AdamHD`, in training and validation loss, from 10⁻⁵" in guide
    for quantity in ("train_loss", "valid_loss"):
        losses = last_losses(records, quantity, **NARROW)
        sgdn, adam = automatic_ends(losses, "sgdn_hd"), automatic_ends(losses, "adam_hd")
        assert {alpha0: sgdn[alpha0] < adam[alpha0] for alpha0 in adam} == {1e-1: True, 1e-3: True, 1e-5: False}
        told = f"from 10⁻⁵ it did not (training loss {sgdn[1e-5]:.2f} against {adam[1e-5]:.2f})"
        assert quantity != "train_loss" or told in guide


def test_how_good_auto_was_on_vgg(guide, records):
    """Of each method, in the mean over three seeds; beside the best fixed rate, run by run."""
    runs = [r for r in records if all(getattr(r.spec, name) == value for name, value in NARROW.items())]
    without_beta = [r.spec for r in runs if r.spec.rule == "auto"]
    assert {spec.seed for spec in without_beta} == {0, 1, 2} and len(without_beta) == 27
    lower, ran = re.search(r"in (\w+) of (\d+) runs", automatic_compared.on_vgg(runs)).groups()
    assert 2 * int(lower) < int(ran) == 27 and "it was behind the best of three fixed rates in most runs" in guide
    ends = automatic_compared.vgg_ends(runs)
    behind = (ends["loss"] >= ends["best"]).groupby(ends["method"]).sum().to_dict()
    assert behind == {"adam_hd": 8, "sgdn_hd": 5, "sgd_hd": 2}
    assert "`AdamHD` in 8 of 9, `SGDHD` with Nesterov momentum in 5 of 9, without momentum in 2 of 9." in guide
    losses = last_losses(records, "train_loss", decay="none", **NARROW)
    assert "on [a narrow VGG](vgg-variants) 10⁻¹ was the worst of three" in guide
    for method in METHODS:
        ends = automatic_ends(losses, method)
        assert len(ends) == 3 and max(ends, key=ends.get) == 1e-1
    assert "`AdamHD` was behind `Adam` at 10⁻³ from all three `lr` that were tried, in the means over three" in guide
    assert min(automatic_ends(losses, "adam_hd").values()) > losses["adam", False, 1e-3]


@pytest.mark.parametrize("quantity", ["train_loss", "valid_loss"])
def test_what_auto_did_beside_prodigy(guide, records, quantity):
    """Its mean loss from its own start, alone and along a cosine, and all that Adam-HD with "auto" reached."""
    papers = [dict(model="logreg", task="mnist", epochs=50), dict(model="mlp", task="mnist", width=1000, epochs=10)]
    ends = {}
    for where in (*papers, NARROW):
        for decay in ("none", "cosine"):
            prodigy = last_losses(records, quantity, decay=decay, **where)["prodigy", False, 1e-6]
            ends[where["model"], decay] = prodigy
        ends[where["model"], "auto"] = automatic_ends(last_losses(records, quantity, decay="none", **where), "adam_hd")
    assert "a lower validation loss on logistic regression and the perceptron, whatever the `lr`; along" in guide
    for model in ("logreg", "mlp"):
        if quantity == "valid_loss":
            assert max(ends[model, "auto"].values()) < ends[model, "none"]
        else:
            assert "along a cosine Prodigy trained further than it on both" in guide
            assert ends[model, "cosine"] < min(ends[model, "auto"].values())
    assert "Prodigy alone ended lower than `AdamHD` from an `lr` of 10⁻¹ and of 10⁻³, and about where it" in guide
    over = {alpha0: loss / ends["vgg", "none"] for alpha0, loss in ends["vgg", "auto"].items()}
    assert min(over[1e-1], over[1e-3]) > 1.05 and over[1e-5] == pytest.approx(1, abs=0.01)


def test_what_is_lost_without_noise(guide):
    store, lost = Store(ROOT / "results"), {}
    for specs in experiments.noiseless(400, 4, 100).values():
        for record in (r for r in store.get(specs) if r.spec.rule == "auto"):
            key = record.spec.method, record.spec.max_lr
            lost[key] = lost.get(key, 0) + (record.epochs["valid_accuracy"].iloc[-1] < automatic.HALF)
    ruined = lost.pop(("sgdn_hd", None))
    assert f"{ruined} of 4 runs with Nesterov momentum were ruined without a bound, and none of 4 with" in guide
    bounds = [("sgd_hd", None), ("sgd_hd", 1.0), ("sgdn_hd", 0.1), ("adam_hd", None), ("adam_hd", 0.1)]
    assert sorted(lost, key=str) == sorted(bounds, key=str) and not any(lost.values())
    assert "`max_lr=0.1`; plain `SGDHD` and `AdamHD` lost none either way (their bounds were 1 and 0.1)." in guide


@pytest.mark.parametrize(
    ("width_factor", "method", "sentence"),
    [
        (0.125, "sgdn_hd", "a run of SGDN-HD was lost in epoch {}"),
        (1.0, "sgd_hd", "a run of SGD-HD fell back in epoch {}"),
    ],
)
def test_when_runs_of_vgg_were_lost(guide, records, width_factor, method, sentence):
    runs = [
        r for r in records if r.spec.model == "vgg" and r.spec.width_factor == width_factor and r.spec.epochs == 200
    ]
    lost = [record for record in relapse.relapsed(runs) if record.spec.method == method]
    limits = re.sub(r"\s+", " ", (ROOT / "notebooks" / "critical_beta.md").read_text())
    told = [sentence.format(relapse.began(record)) for record in lost]
    assert [(said in guide, said in limits) for said in told] == [(True, True)]


def test_a_lower_bound_brings_a_run_of_vgg_back(guide, records):
    assert "comes back within ten epochs" in guide
    runs = [r for r in records if r.spec.model == "vgg" and r.spec.width_factor == 0.125 and r.spec.epochs == 200]
    [lost] = [record for record in relapse.relapsed(runs) if record.spec.method == "sgdn_hd"]
    before = relapse.epoch_of(lost) - 1
    ways = branch.recorded_branches(lost, before, 10, ROOT / "results", "cpu")
    own = ways[(ways["way"] == "α of at least 0") & (ways["epoch"] == before + 10)]
    assert own["loss"].mean() < relapse.FACTOR * lost.epochs.set_index("epoch")["train_loss"][before]


def test_what_auto_costs(guide):
    costs = read(str(ROOT / "results"), "optimizer_step")["guards"]["automatic"]
    assert (
        f"takes, with `AdamHD`, {costs['Adam-HD']:.1f} times as long as with the paper's rule, and with `SGDHD` "
        f"{costs['SGD-HD']:.1f} times" in guide
    )
    adam, sgd = (f"{costs[f'{method}, fused']:.1f}" for method in ("Adam-HD", "SGD-HD"))
    assert f"With `fused=True`, the fastest way, it is {adam} and {sgd} times on a CPU" in guide


def accuracy(cls, seed, **settings):
    """Return where the guide's first example ends."""
    torch.manual_seed(seed)
    x, y = (torch.as_tensor(column) for column in load_digits(return_X_y=True))
    x = x.float() / 16
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    optimizer = cls(model.parameters(), hypergrad_lr="auto", **settings)
    for _ in range(600):
        batch = torch.randint(len(x), (64,))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    return (model(x).argmax(1) == y).float().mean().item()


def test_from_which_learning_rates_auto_may_start(guide):
    assert (
        "It goes on from any up to 0.1, with `AdamHD` also from a larger one" in guide
        and "with `SGDHD` from 1 or more some runs of the example" in guide
    )
    nesterov = dict(momentum=0.9, nesterov=True)
    assert min(accuracy(AdamHD, seed, lr=10.0) for seed in range(3)) > 0.95
    assert min(accuracy(SGDHD, seed, lr=0.1, **nesterov) for seed in range(3)) > 0.95
    assert min(accuracy(SGDHD, seed, lr=10.0, **nesterov) for seed in range(5)) < 0.8


def test_the_constants_and_what_they_mean(guide):
    up, down = (math.ceil(math.log(10) / abs(math.log1p(change))) for change in (0.02, -0.02))
    assert f"at least {up} steps to raise α tenfold, and {down} to lower it" in guide
    assert control.AUTO_FIRST == 0.3 and "at most three tenths of their norm" in guide
    told = f"begins at {control.AUTO_OVERSHOOT:g} (less with momentum) and has fallen to a half after "
    told += f"{control.AUTO_STEPS:g} steps and to a quarter after {3 * control.AUTO_STEPS:g},"
    assert told in guide and f"a sum of squares grows that begins at {control.AUTO_START:g}." in guide


def test_what_the_recommended_share_of_the_critical_beta_is_worth(guide):
    store, models = Store(ROOT / "results"), experiments.MAPPED
    measured = measured_boundaries(boundaries(14, 3, 100, task="mnist"), store, rounds=8, device="cpu")
    lengths = {name: 300 if name == "logistic regression" else 100 for name in models}
    asked = {n: experiments.phase(13, lengths[n], 3, task="mnist", **experiments.VARIED[n]) for n in models}
    found = recipe.worth([(name, store.get(specs)) for name, specs in asked.items()], measured, np.inf)
    taken = found[found["share"] == found["method"].map(recipe.TAKEN)].dropna(subset="over")
    small, large = taken[taken["alpha0"] <= recipe.HIGHEST], taken[taken["alpha0"] > recipe.HIGHEST]
    assert small.groupby("method")["model"].nunique().to_dict() == {"adam_hd": 10, "sgd_hd": 9}
    assert "[On ten models]" in guide and "a tenth of the exact limit with Adam, and a third with SGD on nine" in guide
    assert 1.2 < small["over"].max() <= 1.3 and "no more than 1.3 times the loss of the best β" in guide
    lost = large[np.isinf(large["over"])].groupby("method")["model"].nunique().to_dict()
    assert lost == {"adam_hd": 3} and "from 10⁻¹ Adam's diverged on three of them" in guide


def test_the_keys_of_a_group_that_the_api_lists_are_those_that_there_are():
    listed = (ROOT / "book" / "api.md").read_text().partition("## What a parameter group holds")[2].partition("## ")[0]
    keys = set(re.findall(r'`"(\w+)"`', "".join(line.split("|")[1] for line in listed.splitlines() if "|" in line)))
    model = torch.nn.Linear(2, 1)
    optimizer = SGDHD(model.parameters(), lr=0.1, hypergrad_lr="auto", final_lr=0.01)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    torchs = set(torch.optim.SGD(model.parameters()).param_groups[0]) | {"capturable"}  # of other optimisers of torch
    own = set(optimizer.param_groups[0]) - torchs
    memory = set(control.initial_state(control.Control(rule="auto", final_lr=0.01)))
    assert keys - {"lr"} == own - (memory - {"step_size"}) - {"shared_alpha"}
