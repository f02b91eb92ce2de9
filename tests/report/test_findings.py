"""What the pages on online tuning and tuning say in words follows from the runs that they are given."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hdlib.report import findings, paper
from hdlib.report.style import Noted
from hdlib.runs import Record, RunSpec

ROOT = Path(__file__).parents[2]
MADE = dict(
    device="a processor", data="made up", torch="2.15.0", commit="abc", seconds=60.0, date="2026-01-02T03:04:05"
)


def run(losses, alphas, outcome="finished", valid=0.5, accuracy=0.9, iterations=None, made=MADE, **fields):
    """Return a made-up run with a training loss and a mean alpha for each epoch, from 0."""
    table = pd.DataFrame(dict(train_loss=losses, alpha=alphas))
    table = table.assign(epoch=table.index, iteration=469 * table.index, valid_loss=valid, valid_accuracy=accuracy)
    trace = pd.DataFrame(dict(iteration=table["iteration"], loss=losses, alpha=alphas))
    spec = RunSpec(**(dict(model="mlp", epochs=len(losses) - 1) | fields))
    return Record(spec, outcome, iterations or 469 * spec.epochs, table, trace, made)


@pytest.fixture
def online():
    """SGD is best from 0.1; SGD-HD rises from below and falls again, and stays where it is from 0.1."""
    fixed = [run([2, loss], [rate] * 2, method="sgd", alpha0=rate) for rate, loss in ((0.1, 0.01), (1e-3, 1.0))]
    low = run([2, 0.3, 0.2], [1e-3, 0.02, 0.004], method="sgd_hd", beta=1e-5, alpha0=1e-3)
    return [*fixed, low, run([2, 0.3, 0.01], [0.1, 0.1, 0.096], method="sgd_hd", beta=1e-5, alpha0=0.1)]


def test_the_page_says_where_alpha_goes_beside_the_best_fixed_rate(online):
    told = findings.online_tuning(online, "sgd").split("\n\n")[-1]
    assert told == (
        "The best fixed rate is 10⁻¹. From smaller α₀, α peaks at 0.020 and falls to 0.0040 by the last epoch; from "
        "10⁻¹ it still is 0.096 then (means over seeds and over that epoch)."
    )
    near = run([2, 0.3, 0.2], [1e-2, 0.0203, 0.0199], method="sgd_hd", beta=1e-5, alpha0=1e-2)
    fixed = run([2, 0.5], [1e-2] * 2, method="sgd", alpha0=1e-2)
    told = findings.online_tuning([*online, fixed, near], "sgd").split("\n\n")[-1]  # 0.0200 is 0.0203 in two digits
    assert "α peaks at 0.020 and is 0.0040 to 0.020 in the last epoch; from 10⁻¹ it still is 0.096 then" in told
    more = [run([2, 0.5], [rate] * 2, method="sgd", alpha0=rate) for rate in (0.5, 1)]
    larger = [
        run([2, 0.3, 0.1], [rate, 0.1, end], method="sgd_hd", beta=1e-5, alpha0=rate)
        for rate, end in ((0.5, 0.0962), (1, 0.05))
    ]
    told = findings.online_tuning([*online, more[0], larger[0]], "sgd")
    assert "; from 10⁻¹ and larger α₀ it is 0.096 then (" in told
    told = findings.online_tuning([*online, *more, *larger], "sgd")
    assert "; from 10⁻¹ it still is 0.096 then; from larger α₀ it is 0.050 to 0.096 then (" in told
    below = run([2, 0.3, 0.01], [0.1, 0.1, 0.0050], method="sgd_hd", beta=1e-5, alpha0=0.1)
    assert "; from 10⁻¹ it is 0.0050 then (" in findings.online_tuning([*online[:-1], below], "sgd")


def ended(loss, alpha0, outcome="finished", **fields):
    """Return a run of one epoch that ends at a loss."""
    return run([2, loss], [alpha0] * 2, outcome, alpha0=alpha0, **fields)


@pytest.fixture
def rates():
    """From three rates SGD-HD ends lower, higher, and diverges once; the best fixed rate is the middle one."""
    losses = {0.1: (0.2, 0.1), 0.01: (0.1, 0.2), 1e-3: (0.8, 0.4)}
    found = [ended(fixed, rate, method="sgd", seed=seed) for rate, (fixed, _) in losses.items() for seed in (0, 1)]
    hd = dict(method="sgd_hd", beta=1e-5)
    found += [ended(ours, rate, seed=seed, **hd) for rate, (_, ours) in losses.items() for seed in (0, 1)]
    found[-1] = ended(0.4, 1e-3, "diverged", seed=1, iterations=7, **hd)
    return found


def test_a_best_rate_at_the_edge_of_those_that_were_tried_is_told(rates):
    said = findings.online_tuning([r for r in rates if r.spec.alpha0 < 0.1], "sgd")
    assert "The best SGD, α₀ = 10⁻², the largest that was tried, reaches 0.100:" in said
    alone = findings.online_tuning([r for r in rates if r.spec.alpha0 == 0.01], "sgd")
    assert "The best SGD, α₀ = 10⁻², reaches 0.100:" in alone


def test_who_ends_lower_from_which_rate_is_told_with_what_diverged(rates):
    verdict, compared, course = findings.online_tuning(rates, "sgd").split("\n\n")
    assert compared == (
        "Against SGD: after the last epoch the mean training loss of SGD ends between 0.100 and 0.800; that of SGD-HD "
        "ends between 0.100 and 0.200 where it does not diverge. SGD-HD ends lower from 1 of 3 initial learning rates; "
        "not from 10⁻² (0.200 against 0.100), 10⁻³ (no finite value against 0.800). The best SGD, α₀ = 10⁻², reaches "
        "0.100: SGD-HD ends at 1.0 to 2.0 times that. 1 SGD-HD run diverged, from α₀ = 10⁻³."
    )
    assert course == (
        "The best fixed rate is 10⁻². From 10⁻², α is 0.010 in the last epoch; from larger α₀ it is 0.10 (means over "
        "seeds and over that epoch)."
    )
    assert verdict == (
        "**Only in part: SGD-HD ends below SGD from 1 of 3 α₀, but from 10⁻² at 2.0 times the training loss of the "
        "best fixed one; from 10⁻³ it diverged.** Its validation loss ends 0 % above the lowest of a fixed SGD "
        "where it does not diverge."
    )
    lost = [replace(r, outcome="diverged", iterations=5 + i) for i, r in enumerate(rates) if r.spec.method == "sgd_hd"]
    told = findings.online_tuning([r for r in rates if r.spec.method == "sgd"] + lost, "sgd")
    assert told == (
        "**No: SGD-HD diverged from every initial learning rate.**\n\nAgainst SGD: all 6 runs of SGD-HD diverged, "
        "the first at iteration 11, the last at iteration 16. SGD itself ends between 0.100 and 0.800."
    )


@pytest.mark.parametrize(
    ("ends", "verdict"),
    [
        ((0.1, 0.09), "Yes: from every α₀ the training loss of SGD-HD ends no higher than that of the best fixed SGD."),
        (
            (0.101, 0.105),
            "Almost: from every α₀ the training loss of SGD-HD ends at most 5.0 % above that of the best fixed SGD.",
        ),
        (
            (0.09, 0.13),
            "Mostly: the training loss of SGD-HD ends below that of SGD from 2 of 2 α₀, and at most 30 % above the "
            "best fixed one's.",
        ),
        (
            (0.11, 0.13),
            "Only in part: SGD-HD ends below SGD from 1 of 2 α₀, but from 10⁻² at 30 % above the training loss of the "
            "best fixed one.",
        ),
        (
            (0.2, 0.9),
            "No: SGD-HD ends below SGD from none of 2 α₀, and from 10⁻² at 9.0 times the training loss of the best "
            "fixed one.",
        ),
    ],
)
def test_the_verdict_is_by_the_worst_end_and_by_how_often_the_same_rate_is_beaten(ends, verdict):
    fixed = [ended(loss, rate, method="sgd", valid=0.5) for rate, loss in ((0.1, 0.1), (0.01, 0.8))]
    ours = [
        ended(loss, rate, method="sgd_hd", beta=1e-5, valid=valid)
        for rate, loss, valid in zip((0.1, 0.01), ends, (0.4, 0.6), strict=True)
    ]
    assert findings.online_tuning([*fixed, *ours], "sgd").partition("\n\n")[0] == (
        f"**{verdict}** Its validation loss ends between 20 % below and 20 % above the lowest of a fixed SGD."
    )
    assert findings.online_tuning([fixed[0], ours[0]], "sgd").startswith("Against SGD")  # from one rate there is none


def test_the_table_of_ends_has_each_loss_in_its_column_and_leaves_diverged_runs_out_of_the_accuracy(rates):
    rates[-2] = ended(0.4, 1e-3, seed=0, method="sgd_hd", beta=1e-5, valid=0.7, accuracy=0.8)
    table = findings.final_table(rates).data.set_index(["method", "α₀"])
    row = table.loc[("SGD-HD", "10⁻³")]
    assert row.tolist() == ["10⁻⁵", "1 of 2 diverged", "1 of 2 diverged", "80.00 %", "7"]
    row = findings.final_table([rates[-2]]).data.iloc[0]
    assert row.tolist() == ["SGD-HD", "10⁻⁵", "10⁻³", "0.400", "0.700", "80.00 %", ""]
    automatic = ended(0.4, 1e-3, method="sgd_hd", beta="auto")
    assert findings.final_table([automatic]).data["β"].tolist() == ["automatic"]


def test_the_overview_has_validation_losses_too(online):
    worse = ended(3.0, 1e-2, method="sgd", valid=0.9)  # not the best baseline
    assert findings.overview([*online[1:], worse]) == {
        "runs": "1 epoch, one seed",
        "sgd": "between 0.0100 and 0.200 (1.00)",
        "sgd_valid": "at 0.500 (0.500)",
        "sgd_lost": "0 of 2",
        "sgd_reached": "2 of 2",
        "sgd_worst": "0.20 times that of the best fixed SGD, from α₀ = 10⁻³",
    }
    assert findings.overview(online)["sgd_reached"] == "1 of 2"  # the best fixed one is at 0.01


def test_the_overview_tells_the_worst_end_of_the_rates_from_which_no_run_diverged(rates):
    found = findings.overview(rates)
    assert (found["sgd_reached"], found["sgd_worst"]) == (
        "1 of 3",
        "2.0 times that of the best fixed SGD, from α₀ = 10⁻²",
    )
    assert found["sgd_lost"] == "1 of 3"


def test_the_papers_losses_are_told_over_ours(monkeypatch):
    columns = ["model", "method", "alpha0", "quantity", "epoch", "value", "rule"]
    rows = [
        ("mlp", "sgd", 0.1, "train_loss", 1, 0.02, "additive"),
        ("mlp", "sgd", 1e-3, "train_loss", 1, 0.9, "additive"),
        ("mlp", "sgd", 0.1, "train_loss", 2, 9.0, "additive"),
        ("mlp", "sgd", 0.1, "valid_loss", 1, 0.55, "additive"),
        ("mlp", "sgd_hd", 0.1, "train_loss", 1, 9.0, "multiplicative"),
        ("logreg", "sgd", 0.1, "train_loss", 1, 9.0, "additive"),
    ]
    monkeypatch.setattr(findings.paper, "figure2", lambda: pd.DataFrame(rows, columns=columns))
    fixed = [run([2, loss], [rate] * 2, method="sgd", alpha0=rate) for rate, loss in ((0.1, 0.01), (1e-3, 1.0))]
    assert findings.beside_paper(fixed) == (
        "In epoch 1 the paper's curves, digitised, are at:\n\n"
        "- SGD: training losses 0.900 to 2.00 times ours and validation losses 1.10 times ours.\n\n"
        "Each is a range over α₀, without runs of ours that diverged."
    )
    growing = run([2, 3], [0.1] * 2, method="sgd_hd", rule="multiplicative", beta=0.02, alpha0=0.1)
    assert "- SGD-HD, multiplicative: training losses 3.00 times ours." in findings.beside_paper([*fixed, growing])
    assert findings.overview_beside_paper([*fixed, growing]) == {}  # that of the additive rule alone
    rows.append(("mlp", "sgd_hd", 0.1, "train_loss", 1, 0.4, "additive"))
    adapting = run([2, 0.1], [0.1] * 2, method="sgd_hd", beta=1e-5, alpha0=0.1)
    assert findings.overview_beside_paper([*fixed, growing, adapting]) == {"sgd_theirs": "4.00"}
    adams = [ended(loss, 0.1, method="adam", decay=decay) for decay, loss in (("none", 0.5), ("inv_sqrt", 0.1))]
    rows.append(("mlp", "adam", 0.1, "train_loss", 1, 0.2, "additive"))  # which decays, where ours does too
    assert "\n- Adam, α/√t: training losses 2.00 times ours.\n" in findings.beside_paper(adams)
    assert findings.beside_paper([run([2, 1], [0.1] * 2, method="sgd", alpha0=0.1, task="digits")]) == ""


def test_how_far_apart_the_papers_own_curves_end_is_what_the_book_says():
    said = re.sub(r"\s+", " ", (ROOT / "book" / "online-tuning.md").read_text())
    curves = paper.figure2().query("quantity == 'train_loss' and rule == 'additive' and epoch == @paper.ONLINE_EPOCHS")
    ends = curves.groupby(["model", "method"])["value"].agg(["min", "max", "count"])
    assert (ends.loc[(slice(None), ["sgd_hd", "adam_hd"]), "count"] == 6).all()
    apart = ends["max"] / ends["min"]
    assert "end within 8 % of one another" in said
    assert 1.07 < max(apart["logreg", "sgd_hd"], apart["logreg", "adam_hd"]) < 1.08
    assert f"SGD-HD end a factor of {apart['mlp', 'sgd_hd']:.0f} apart" in said
    assert f"those of Adam-HD a factor of {round(apart['mlp', 'adam_hd'], -3):,.0f}." in said


def test_what_the_paper_shows_twice_is_told_from_both_figures_at_one_epoch():
    losses = [2.3, *np.linspace(0.5, 0.345, 50)]
    said = findings.beside_paper([run(losses, [1e-3] * 51, model="logreg", method="sgd", alpha0=1e-3)])
    [after] = re.findall(r"After 20 epochs its training loss is ([\d.]+) in Figure 2, ([\d.]+) in Figure 3 and", said)
    assert np.allclose([float(loss) for loss in after], [0.345, 0.349], atol=0.001)
    assert f" and {losses[20]:.3f} here; its validation loss 0.354, 0.330 and 0.500. How the two figures differ" in said
    perceptron = findings.beside_paper([run(losses[:11], [1e-3] * 11, method="sgd", alpha0=1e-3)])
    assert "After 10 epochs" in perceptron and "How the two" not in perceptron  # where both have the same


def test_where_the_papers_own_curves_change_their_order_later_is_said_of_shorter_runs():
    def said(epochs, model="mlp"):
        losses = np.linspace(0.5, 0.3, epochs + 1)
        return findings.beside_paper([run(losses, [1e-2] * len(losses), model=model, method="sgd", alpha0=1e-2)])

    assert said(10).endswith(
        "**What runs of this length cannot show**: between epoch 10 and 50 the paper's own training losses change "
        "their order. SGD-HD's from α₀ = 10⁻² goes from 0.979 to 1.36 times SGD's."
    )
    assert "change" not in said(50) + said(10, "logreg")


def test_the_multiplicative_rule_is_told_beside_the_other_one_and_the_best_fixed_rate(online):
    grown = run([2, 1, 0.5], [0.1] * 3, method="sgd_hd", rule="multiplicative", beta=0.02, alpha0=0.1)
    assert findings.multiplicative([*online, grown]) == (
        "SGD-HD, multiplicative from α₀ = 10⁻¹ ends at a training loss of 0.500, where SGD-HD with the β of this page "
        "ends at 0.0100 from there, and the best fixed SGD at 0.0100 (means over seeds)."
    )
    assert findings.multiplicative(online) == ""
    lost = [replace(r, outcome="diverged") if r.spec.method == "sgd_hd" else r for r in online]
    assert "SGD-HD with the β of this page diverges from there, and the best" in findings.multiplicative([*lost, grown])


def test_the_overview_names_the_best_decayed_adam(online):
    falling = [
        run([2, end], [1e-3, 1e-4], method="adam", decay="inv_sqrt", alpha0=a) for end, a in ((0.3, 0.1), (0.4, 1))
    ]
    assert findings.overview([*online[1:], *falling])["decayed"] == "0.300"


def test_losses_stand_against_those_of_the_baseline_seed_by_seed():
    ends = {("sgd", 0): (0.2, 0.5), ("sgd", 1): (0.3, 0.6), ("sgd_hd", 0): (0.1, 0.55), ("sgd_hd", 1): (0.2, 0.55)}
    beta = dict(sgd=0.0, sgd_hd=1e-3)
    runs = [
        ended(train, 1e-3, method=method, beta=beta[method], seed=seed, valid=valid)
        for (method, seed), (train, valid) in ends.items()
    ]
    assert findings.tuning(runs).splitlines()[0] == (
        "- SGD-HD against SGD: training loss 0.150 (0.100 to 0.200) against 0.250 ± 0.050, lower in 2 of 2 seeds; "
        "validation loss 0.550 ± 0 against 0.550 ± 0.050, lower in 1 of 2 seeds."
    )
    single = findings.tuning([r for r in runs if r.spec.seed == 0]).splitlines()[0]
    assert "0.100 against 0.200, lower with the one seed; " in single
    assert single.endswith("0.550 against 0.500, not lower with the one seed.")


def test_the_overview_of_tuning_has_what_the_baseline_and_hypergradients_end_at():
    runs = [
        ended(train, 1e-3, method=method, decay=decay, beta=beta, seed=seed, valid=valid)
        for method, decay, beta, train, valid in (
            ("adam", "none", 0.0, 0.4, 0.5),
            ("adam", "inv_sqrt", 0.0, 0.6, 0.7),
            ("adam_hd", "none", 1e-7, 0.1, 0.2),
        )
        for seed in (0, 1)
    ]
    runs[-1] = ended(0.3, 1e-3, method="adam_hd", beta=1e-7, seed=1, valid=0.4)
    assert findings.tuning_overview(runs) == {
        "runs": "1 epoch, 2 seeds",
        "adam": "0.400 → 0.200",
        "adam_valid": "0.500 → 0.300",
        "adam_decayed": "0.600 → 0.200",
        "adam_decayed_valid": "0.700 → 0.300",
    }
    runs[1] = ended(0.8, 1e-3, method="adam", seed=1)
    fewer = [r for r in runs if r.spec.seed == 1 or r.spec.method != "adam_hd"]
    assert findings.tuning_overview(fewer)["adam"] == "0.800 → 0.300"  # of the seed that both have
    along = ended(0.15, 1e-3, method="adam", decay="cosine")
    assert findings.tuning_overview([*runs, along])["adam_cosine"] == "0.150 → 0.100"


def test_seeds_that_the_baseline_lacks_are_not_counted_as_lost():
    ours = [ended(0.1, 1e-3, method="sgd_hd", beta=1e-3, seed=seed) for seed in range(3)]
    said = findings.tuning([ended(0.2, 1e-3, method="sgd"), *ours])
    assert said.startswith("- SGD-HD against SGD (the one of 3 seeds that both have): training loss 0.100 against")
    assert "against 0.200, lower with the one seed" in said
    ours[2] = ended(0.9, 1e-3, method="sgd_hd", beta=1e-3, seed=2)
    assert findings.tuning([ended(0.2, 1e-3, method="sgd"), *ours]) == said


def test_our_losses_and_the_published_ones_stand_in_their_own_columns(monkeypatch):
    published = dict(method="sgd", source="paper", epochs=1, train_end=1.0, valid_end=2.0, valid_best=3.0)
    monkeypatch.setattr(findings.paper, "published", lambda *_: pd.DataFrame([published]))
    ours = run([2, 0.2, 0.3], [1e-3] * 3, method="sgd", alpha0=1e-3)
    ours.epochs["valid_loss"] = [0.1, 0.4, 0.5]  # the best one is after training has begun
    table = findings.tuning_table([ours]).data
    columns = ["source", "training loss, end", "validation loss, end", "validation loss, best"]
    assert table[columns].to_numpy().tolist() == [
        ["ours", "0.300", "0.500", "0.400"],
        ["paper, Figure 3", "1.00", "2.00", "3.00"],
    ]


def test_the_status_says_how_many_runs_took_how_long_and_when_the_last_one_was_made():
    later = MADE | dict(date="2026-03-04T00:00:00", seconds=7200.0)
    runs = [ended(0.1, 1e-3, method="sgd"), ended(0.1, 1e-3, "diverged", method="sgd", seed=1, made=later)]
    runs.append(ended(0.1, 1e-3, method="sgd", max_iterations=1000))
    table = findings.status(runs)
    assert table.note == "3 runs in all, 2 hours of training. Dates are those of the last run."
    whole, capped = table.data.to_dict("records")
    assert (whole["length"], capped["length"]) == ("1 epoch", "1,000 iterations")
    assert (whole["runs"], whole["seeds"], whole["training time"]) == (2, 2, "2.0 h")
    assert whole["outcomes"] == "1 finished, 1 diverged"
    assert whole["made by"] == Noted("a processor", "torch 2.15.0, abc, 2026-03-04")


def test_a_learning_rate_that_falls_from_the_start_is_told_as_a_schedule():
    common = dict(alpha0=1e-3)
    adam = run([2, 0.5, 0.4], [1e-3] * 3, method="adam", **common)
    falling = run([2, 0.3, 0.1], [1e-3, 8e-4, 1e-7], method="adam_hd", beta=1e-7, **common)
    told = findings.tuning([adam, falling])
    assert told.startswith("- What Adam-HD finds is an annealing schedule: α averages 0.000800 in epoch 1, about 0 in ")
    assert "After epoch 2 its training loss is 0.100, that of Adam 0.400." in told
    decayed = run([2, 0.25, 0.2], [1e-3, 5e-5, 3e-5], method="adam", decay="inv_sqrt", **common)
    assert (
        "With the decay α₀/√t from the same start, α averages 5.0 × 10⁻⁵ in the first epoch already, and the training "
        "loss ends at 0.200." in findings.tuning([adam, decayed, falling])
    )
    rising = run([2, 0.3, 0.1], [1e-3, 2e-2, 1e-7], method="adam_hd", beta=1e-7, **common)
    assert "schedule" not in findings.tuning([adam, rising])
    keeping = run([2, 0.3, 0.1], [1e-3, 9e-4, 8e-4], method="adam_hd", beta=1e-7, **common)
    assert "schedule" not in findings.tuning([adam, keeping])


def test_what_ends_alike_does_not_end_lower():
    runs = [
        ended(0.2, 1e-3, method=method, beta=beta, seed=seed)
        for method, beta in (("sgd", 0.0), ("sgd_hd", 1e-3))
        for seed in (0, 1)
    ]
    assert "against 0.200 ± 0, lower in 0 of 2 seeds" in findings.tuning(runs)
    assert "against 0.200, not lower with the one seed" in findings.tuning(runs[::2])


def test_a_learning_rate_that_was_negative_with_one_seed_was_negative_at_times():
    common = dict(method="sgd_hd", beta=1e-3, alpha0=1e-3)
    runs = [run([2, 1, 1], [1e-3, low, 2e-3], seed=seed, **common) for seed, low in enumerate((1e-3, -1e-3))]
    assert findings.tuning(runs).endswith("The learning rate of SGD-HD rises to 0.00200 ± 0, and is negative at times.")
    assert "negative" not in findings.tuning(runs[:1])


def test_a_small_rise_of_alpha_is_told_in_per_cent():
    peaks = (1.05e-3, 1.01e-3)
    runs = [
        run([2, 1], [1e-3, peak], method="adam_hd", beta=1e-7, alpha0=1e-3, seed=seed)
        for seed, peak in enumerate(peaks)
    ]
    assert "Adam-HD rises by no more than 5.0 %" in findings.tuning(runs)


@pytest.mark.filterwarnings("error")
def test_a_rise_from_zero_is_none_in_per_cent():
    runs = [run([2, 1], [0.0, 1e-3], method="adam_hd", beta=1e-7, alpha0=0.0)]
    assert findings.tuning(runs).endswith("The learning rate of Adam-HD rises to 0.00100.")
