"""Which beta the paper ran is asked of runs that can be compared: once each, from equal starts, over equal lengths."""

from dataclasses import replace

import numpy as np
import pandas as pd

from hdlib.report import fits
from hdlib.report.paper import figure2, figure3
from hdlib.runs import Record, RunSpec
from hdlib.runs.record import EPOCH_COLUMNS, TRACE_COLUMNS

CURVES = pd.DataFrame(
    [("logreg", "sgd_hd", alpha0, "additive", "alpha", epoch, 0.01) for alpha0 in (0.1, 1e-3) for epoch in range(6)],
    columns=["model", "method", "alpha0", "rule", "quantity", "epoch", "value"],
)


def run(alpha, beta, alpha0=1e-3, epochs=2, seed=0, method="sgd_hd", decay="none", model="logreg"):
    """Return a made-up run whose alpha is always the same."""
    spec = RunSpec(method=method, alpha0=alpha0, beta=beta, epochs=epochs, seed=seed, decay=decay, model=model)
    table = pd.DataFrame([[i, i, 1.0, alpha, 1.0, 0.5] for i in range(epochs + 1)], columns=EPOCH_COLUMNS)
    return Record(spec, "finished", epochs, table, pd.DataFrame([], columns=TRACE_COLUMNS), {})


def test_a_run_is_off_a_curve_by_the_root_mean_square_over_the_epochs_after_the_start():
    record = run(0.01, 1e-4)
    record.epochs["alpha"] = [9.0, 0.01, 0.04]
    factor, epochs = fits.error(record, CURVES[CURVES["alpha0"] == 1e-3])
    assert np.isclose(factor, np.exp(np.log(4) / 2**0.5), rtol=1e-6) and epochs == 2


def test_a_run_is_set_against_the_curve_of_its_own_rule():
    other = CURVES.assign(rule="multiplicative", value=9.0)
    [row] = fits.candidates([run(0.02, 1e-4)], pd.concat([CURVES, other])).itertuples()
    assert np.isclose(row.factor, 2.0)


def test_a_run_counts_once_however_often_and_long_it_was_recorded():
    runs = [run(0.02, 1e-4), run(0.04, 1e-4, alpha0=0.1)]
    [row] = fits.candidates([*runs, runs[0], run(0.02, 1e-4, epochs=5)], CURVES).itertuples()
    assert (row.runs, row.epochs) == (2, 2) and np.isclose(row.factor, 3.0)


def test_a_longer_candidate_is_compared_over_the_epochs_of_the_shortest():
    longer = run(0.02, 1e-5, epochs=5)
    longer.epochs.loc[3:, "alpha"] = 9.0
    table = fits.candidates([run(0.03, 1e-4), longer], CURVES)
    assert table["candidate"].tolist() == ["β = 10⁻⁵", "β = 10⁻⁴"] and table["epochs"].tolist() == [2, 2]
    assert np.allclose(table["factor"], [2, 3])


def test_candidates_are_compared_over_the_starts_and_seeds_that_they_share():
    """The second candidate has another seed, a good one, which the first lacks; the third has one start alone."""
    first = [run(0.02, 1e-4), run(0.02, 1e-4, alpha0=0.1)]
    second = [run(0.03, 1e-5), run(0.03, 1e-5, alpha0=0.1), *[run(0.01, 1e-5, seed=seed) for seed in (1, 2, 3)]]
    table = fits.candidates([*first, *second, run(0.01, 1e-6)], CURVES)
    assert table["candidate"].tolist() == ["β = 10⁻⁴", "β = 10⁻⁵", "β = 10⁻⁶"]
    assert table["rates"].tolist() == [2, 2, 1] and table["runs"].tolist() == [2, 2, 1]
    assert "β = 10⁻⁴, but not clearly; α is off by a factor of 2.00, and of 3.00 with β = 10⁻⁵" in fits.in_short(table)


def test_the_training_loss_is_compared_beside_alpha():
    losses = CURVES.assign(quantity="train_loss", value=0.5)
    both = pd.concat([CURVES, losses])
    near, far = run(0.02, 1e-4), run(0.03, 1e-5)
    far.epochs["train_loss"] = 4.0
    table = fits.candidates([near, far], both)
    assert np.allclose(table["factor"], [2, 3]) and np.allclose(table["loss"], [2, 8])
    assert fits.told_of_losses(table) == {"logreg_sgd_hd": "2.00, and by 8.00 with β = 10⁻⁵, the closest other"}
    assert list(fits.table(table, "").data["training loss off by"]) == ["2.00", "8.00"]
    lossless = fits.candidates([near], CURVES)
    assert lossless["loss"].isna().all() and "loss" not in fits.in_short(lossless)


def short(first, second, losses=None):
    """Return what is said in short of beta 1e-4 and 1e-5 with these alphas, 0.01 at best, and losses, 1 at best."""
    runs = [run(alpha, beta) for alpha, beta in ((first, 1e-4), (second, 1e-5))]
    for record, loss in zip(runs, losses or (), strict=False):
        record.epochs["train_loss"] = loss
    curves = pd.concat([CURVES, CURVES.assign(quantity="train_loss", value=1.0)]) if losses else CURVES
    return fits.in_short(fits.candidates(runs, curves))


def test_in_short_the_best_beta_is_told_with_how_clearly_alpha_or_else_the_loss_says_so():
    assert short(0.02, 0.06) == (
        "**In short.**\n\n- SGD-HD on logistic regression: β = 10⁻⁴, clearly; α is off by a factor of 2.00, and of "
        "6.00 with β = 10⁻⁵, the next."
    )
    close = (
        "SGD-HD on logistic regression: β = 10⁻⁴, but not clearly; α is off by a factor of 2.00, and of 2.50 with "
        "β = 10⁻⁵, the next"
    )
    assert short(0.02, 0.025).endswith(f"{close}.")
    assert short(0.02, 0.025, (1.1, 2)).endswith(
        f"{close}, and the training loss says the same (off by 1.10 against 2.00)."
    )
    assert short(0.02, 0.025, (3, 2)).endswith("the training loss says the opposite (off by 3.00 against 2.00).")
    assert short(0.02, 0.025, (2.02, 2)).endswith("loss does not tell the two apart (off by 2.02 against 2.00).")
    lost = fits.candidates([run(0.02, 1e-4), replace(run(0.01, 1e-5), outcome="diverged")], CURVES)
    assert fits.in_short(lost).endswith("clearly; with all others it diverges.")
    assert fits.in_short(fits.candidates([run(0.02, 1e-4)], CURVES)) == ""


def test_in_short_the_papers_adam_decays_where_that_fits_best():
    curves = CURVES.assign(method="adam")
    found = [run(alpha, 0.0, method="adam", decay=decay) for alpha, decay in ((0.02, "inv_sqrt"), (0.5, "none"))]
    assert fits.in_short(fits.candidates(found, curves)) == (
        "**In short.**\n\n- The paper's Adam on logistic regression decays as α₀ / √t: α is off by a factor of 2.00 "
        "with this decay, and of 50.0 with α₀ throughout."
    )
    assert fits.in_short(fits.candidates(found, curves.assign(value=0.5))) == ""


def test_the_table_says_over_how_many_seeds_each_panel_is_compared():
    alone = [run(0.02, beta, seed=seed) for beta in (1e-4, 1e-5) for seed in (0, 1)]
    adam = run(0.02, 0.0, method="adam")
    curves = pd.concat([CURVES, CURVES.assign(method="adam")])
    assert fits.table(fits.candidates([*alone, adam, run(0.02, 1e-4, seed=2)], curves), "6 runs.").note == (
        "Candidates with all initial learning rates are compared over one seed for Adam; 2 seeds for SGD-HD. 6 runs."
    )
    other = [run(0.02, beta, model="mlp") for beta in (1e-4, 1e-5)]
    curves = pd.concat([curves, CURVES.assign(model="mlp")])
    assert fits.table(fits.candidates([*alone, adam, *other], curves), "").note.endswith(
        "over one seed for Adam and SGD-HD on the perceptron; 2 seeds for SGD-HD on logistic regression."
    )


def test_what_the_paper_shows_twice_is_set_beside_each_other():
    said = fits.shown_twice()
    assert "from α₀ = 10⁻³ again in its Figure 3, for which it states β = 10⁻⁷." in said
    second, third = (f[(f["quantity"] == "alpha") & (f["method"] == "adam_hd")] for f in (figure2(), figure3()))
    second = second[np.isclose(second["alpha0"], 1e-3) & (second["rule"] == "additive")]
    for model, told in (
        ("mlp", "differs by {:.2g} % at most"),
        ("logreg", "a factor of up to {:.2g}: the perceptron's"),
    ):
        both = (
            f[(f["model"] == model) & f["epoch"].isin(range(1, 11))].set_index("epoch")["value"]
            for f in (second, third)
        )
        ratio = np.divide(*both)
        worst = max(ratio.max(), 1 / ratio.min())
        assert len(ratio) == 10 and told.format(100 * (worst - 1) if model == "mlp" else worst) in said
