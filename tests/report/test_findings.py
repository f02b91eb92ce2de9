"""What the pages on online tuning and tuning say in words follows from the runs that they are given."""

import re

import numpy as np
import pandas as pd
import pytest

from hdlib.report import findings
from hdlib.runs import Record, RunSpec


def run(losses, alphas, **fields):
    """Return a made-up run with a training loss and a mean alpha for each epoch, from 0."""
    table = pd.DataFrame(dict(train_loss=losses, alpha=alphas))
    table = table.assign(epoch=table.index, iteration=469 * table.index, valid_loss=0.5, valid_accuracy=0.9)
    trace = pd.DataFrame(dict(iteration=table["iteration"], loss=losses, alpha=alphas))
    spec = RunSpec(**(dict(model="mlp", epochs=len(losses) - 1) | fields))
    return Record(spec, "finished", 469 * spec.epochs, table, trace)


@pytest.fixture
def online():
    """SGD is best from 0.1; SGD-HD rises from below and falls again, and stays where it is from 0.1."""
    fixed = [run([2, loss], [rate] * 2, method="sgd", alpha0=rate) for rate, loss in ((0.1, 0.01), (1e-3, 1.0))]
    low = run([2, 0.3, 0.2], [1e-3, 0.02, 0.004], method="sgd_hd", beta=1e-5, alpha0=1e-3)
    return [*fixed, low, run([2, 0.3, 0.01], [0.1, 0.1, 0.096], method="sgd_hd", beta=1e-5, alpha0=0.1)]


def test_the_page_says_where_alpha_goes_beside_the_best_fixed_rate(online):
    told = findings.online_tuning(online, "sgd").split("\n\n")[-1]
    assert told == (
        "The best fixed rate is 10⁻¹. Started below it, α rises to at most 0.0200 and averages 0.00400 in the last "
        "epoch; started at it, α averages 0.0960 there (means over seeds)."
    )


def test_the_overview_has_validation_losses_too(online):
    assert findings.overview(online[1:]) == {
        "runs": "1 epoch, one seed",
        "sgd": "between 0.0100 and 0.200 (1.00)",
        "sgd_valid": "at 0.500 (0.500)",
    }


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
    assert findings.beside_paper([run([2, 1], [0.1] * 2, method="sgd", alpha0=0.1, task="digits")]) == ""


def test_what_the_paper_shows_twice_is_told_from_both_figures_at_one_epoch():
    losses = [2.3, *np.linspace(0.5, 0.345, 50)]
    said = findings.beside_paper([run(losses, [1e-3] * 51, model="logreg", method="sgd", alpha0=1e-3)])
    [after] = re.findall(r"After 20 epochs its training loss is ([\d.]+) in Figure 2, ([\d.]+) in Figure 3 and", said)
    assert np.allclose([float(loss) for loss in after], [0.345, 0.349], atol=0.001)
    assert f" and {losses[20]:.3f} here; its validation loss 0.354, 0.330 and 0.500. How the two figures differ" in said
    perceptron = findings.beside_paper([run(losses[:11], [1e-3] * 11, method="sgd", alpha0=1e-3)])
    assert "After 10 epochs" in perceptron and "How the two" not in perceptron  # where both have the same


def test_the_multiplicative_rule_is_told_beside_the_other_one_and_the_best_fixed_rate(online):
    grown = run([2, 1, 0.5], [0.1] * 3, method="sgd_hd", rule="multiplicative", beta=0.02, alpha0=0.1)
    assert findings.multiplicative([*online, grown]) == (
        "SGD-HD, multiplicative from α₀ = 10⁻¹ ends at a training loss of 0.500, where SGD-HD with the β of this page "
        "ends at 0.0100 from there, and the best fixed SGD at 0.0100 (means over seeds)."
    )
    assert findings.multiplicative(online) == ""


def test_the_overview_names_the_best_decayed_adam(online):
    falling = [
        run([2, end], [1e-3, 1e-4], method="adam", decay="inv_sqrt", alpha0=a) for end, a in ((0.3, 0.1), (0.4, 1))
    ]
    assert findings.overview([*online[1:], *falling])["decayed"] == "0.300"


def test_a_learning_rate_that_falls_from_the_start_is_told_as_a_schedule():
    common = dict(alpha0=1e-3)
    adam = run([2, 0.5, 0.4], [1e-3] * 3, method="adam", **common)
    falling = run([2, 0.3, 0.1], [1e-3, 8e-4, 1e-7], method="adam_hd", beta=1e-7, **common)
    told = findings.tuning([adam, falling])
    assert "schedule: α averages 0.000800 in epoch 1, about 0 in epoch 2." in told
    assert "After epoch 2 its training loss is 0.100, that of Adam 0.400." in told
    rising = run([2, 0.3, 0.1], [1e-3, 2e-2, 1e-7], method="adam_hd", beta=1e-7, **common)
    assert "schedule" not in findings.tuning([adam, rising])
    keeping = run([2, 0.3, 0.1], [1e-3, 9e-4, 8e-4], method="adam_hd", beta=1e-7, **common)
    assert "schedule" not in findings.tuning([adam, keeping])


def test_a_small_rise_of_alpha_is_told_in_per_cent():
    runs = [run([2, 1], [1e-3, 1.05e-3], method="adam_hd", beta=1e-7, alpha0=1e-3, seed=seed) for seed in (0, 1)]
    assert "Adam-HD rises by no more than 5.0 %" in findings.tuning(runs)
