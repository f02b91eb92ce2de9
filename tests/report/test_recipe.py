"""What a share of the critical beta is worth follows from the runs and critical betas."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from test_guard_comparison import run

from hdlib.report import recipe
from hdlib.report.style import Noted


def critical(*rows):
    """Return measured critical betas: model, method, beta."""
    return pd.DataFrame(rows, columns=["model", "method", "critical"])


def losses(by_beta, method="adam_hd", **fields):
    return [run(loss, method, beta=beta, **fields) for beta, loss in by_beta.items()]


@pytest.fixture
def shares():
    """Two models: a tenth of the critical beta is best in one, and from one start 1.5 times as bad in the other."""
    good = losses({1e-5: 0.4, 1e-4: 0.2, 1e-3: 0.3, 1e-2: 9.0})
    poor = losses({1e-5: 0.2, 1e-4: 0.3, 1e-3: 0.4, 1e-2: 9.0})
    poor += losses({1e-5: 0.3, 1e-4: 0.3, 1e-3: 0.6}, alpha0=1e-2)
    poor += losses({1e-5: 0.1, 1e-4: 0.9, 1e-3: 0.9}, alpha0=1e-1)
    sgd = losses({1e-5: 0.5, 1e-4: 0.4}, "sgd_hd")
    rows = [("good", "adam_hd", 1e-3), ("poor", "adam_hd", 1.2e-3), ("good", "sgd_hd", 5.0)]
    return recipe.worth([("good", good + sgd), ("poor", poor)], critical(*rows))


def test_a_share_is_set_against_the_best_beta_from_the_same_start(shares):
    tenth = shares[(shares["method"] == "adam_hd") & (shares["share"] == 10)].set_index(["model", "alpha0"])
    assert tenth["over"].to_dict() == pytest.approx({("good", 1e-3): 1, ("poor", 1e-3): 1.5, ("poor", 1e-2): 1})
    assert set(tenth["beta"]) == {1e-4}


def test_the_worst_start_counts_and_a_grid_that_ends_before_the_share_is_said_to(shares):
    said = recipe.sentences(shares)
    assert "a tenth of it ends at most at 1.50 times the loss of its best β (poor; in the other model" in said
    assert "the critical β span a factor of 1.2" in said and "SGD-HD" not in said
    rows = recipe.table(shares, [("good", losses({1e-5: 0.4}))]).data.set_index(["method", "model"])
    assert rows.loc[("Adam-HD", "poor"), ["÷ 3", "÷ 10", "÷ 30", "÷ 100"]].to_list() == [
        Noted("2.00", "÷ 1.2"), "1.50", Noted("1.50", "÷ 12"), "1.00"
    ]  # fmt: skip
    assert rows.loc[("SGD-HD", "good"), "÷ 3"] == "–"


def test_a_share_is_set_against_no_hypergradients_and_what_larger_starts_come_to_is_said_apart():
    grid = losses({1e-4: 0.5, 1e-3: 0.4}) + losses({1e-4: 0.5, 1e-3: 0.4}, alpha0=1e-2) + [run(0.25, "adam")]
    kept = losses({1e-4: 0.3, 1e-3: 0.1}, alpha0=1e-1)
    lost = [replace(r, outcome="diverged") if r.spec.beta == 1e-4 else r for r in kept]
    measured = critical(("a", "adam_hd", 1e-3), ("b", "adam_hd", 1e-3))
    said = recipe.sentences(recipe.worth([("a", grid)], measured))
    assert said.endswith(
        "With a tenth of the critical β Adam-HD ends above Adam from 1 of 1 starts, by a factor of up to 2.00."
    )
    assert recipe.beyond([("a", grid + lost), ("b", grid + kept)], measured) == (
        "From α₀ above 10⁻², which are not counted, Adam-HD with a tenth of it diverges in one model (a) and ends at "
        "up to 3.00 times the loss of its best β in the other."
    )
    less = losses({1e-4: 0.2, 1e-3: 0.1}, alpha0=1e-1)
    several = recipe.beyond([("a", grid + kept), ("b", grid + less)], measured)
    assert "Adam-HD with a tenth of it ends at up to 3.00 times the loss of its best β." in several
    alike = [("a", [*losses({1e-4: 0.5, 1e-3: 0.4}), run(0.5, "adam")])]
    assert "from none of 1 starts." in recipe.sentences(recipe.worth(alike, measured))
    assert recipe.beyond([("a", grid)], measured) == ""


def test_losses_and_critical_betas_are_medians_over_seeds():
    runs = [r for seed, worse in enumerate((1, 1, 9)) for r in losses({1e-4: 0.3 * worse, 1e-3: 0.2}, seed=seed)]
    found = recipe.worth([("a", runs)], critical(*(("a", "adam_hd", beta) for beta in (1e-3, 1e-3, 1e-1))))
    tenth = found[found["share"] == 10].iloc[0]
    assert (tenth["critical"], tenth["seeds"], tenth["beta"]) == (1e-3, 3, 1e-4)
    assert tenth["over"] == pytest.approx(1.5)


def test_longer_runs_are_told_by_their_length_and_with_what_less_would_have_brought(shares):
    said = recipe.longer_sentences(shares)
    assert "Adam-HD, one epoch: a tenth (here 10 to 12 times below the critical β) ends at most at 1.50 times" in said
    assert "A hundredth ends lower from 1 of 3 starts, by a factor of up to 1.50." in said
    assert "A hundredth ends higher from 1 of 3 starts, by a factor of up to 2.00." in said
    assert "The grid ends" not in said


def test_models_whose_grid_ends_before_a_share_are_named_where_longer_runs_are_told():
    grids = [("a", losses({1e-5: 0.4, 1e-4: 0.2})), ("b", losses({1e-4: 0.4, 1e-3: 0.2})), ("c", losses({1e-2: 0.1}))]
    found = recipe.worth(grids, critical(*((model, "adam_hd", 1e-3) for model in "abc")))
    said = recipe.longer_sentences(found)
    assert said.endswith(". The grid ends before a tenth in c. The grid ends before a hundredth in b and c.")


def test_what_to_do_is_said_with_its_limits():
    assert recipe.in_practice(100) == (
        "**In practice:** find the largest β at which the loss does not rise in 100 iterations, and take a tenth of it "
        "with Adam-HD, a third with SGD-HD. It is no guarantee: the shares were chosen on the runs of this page, in "
        "longer ones less can be better, and from α₀ above 10⁻² it can be too much. [What that is "
        "worth](#what-to-do-with-it) says more."
    )


def test_a_share_that_diverges_has_no_loss():
    runs = losses({1e-5: 0.4, 1e-4: 0.2}) + losses({1e-3: 0.1}, outcome="diverged")
    found = recipe.worth([("a", runs)], critical(("a", "adam_hd", 3e-3)))
    assert recipe.table(found, [("a", runs)]).data["÷ 3"].to_list() == ["diverged"]


def test_a_critical_beta_that_was_not_found_has_no_shares():
    found = recipe.worth([("a", losses({1e-5: 0.4}))], critical(("a", "adam_hd", np.inf)))
    assert found.empty and recipe.sentences(found) == recipe.longer_sentences(found) == ""
    assert recipe.papers(critical(("a", "adam_hd", np.inf)), ["a"]) == ""


def test_the_papers_betas_are_set_beside_the_critical_ones():
    said = recipe.papers(critical(("a", "adam_hd", 2e-5), ("b", "sgd_hd", 5e-4)), ["a", "b"])
    assert "10⁻³ for SGD-HD is 2.0 times above the one of b; 10⁻⁷ for Adam-HD is 200 times below the one of a." in said
