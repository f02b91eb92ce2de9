"""The grid search counts what did not arrive, and compares cells as it says."""

import numpy as np
import pandas as pd
import pytest

from hdlib.report import grid, paper
from hdlib.runs import Record, RunSpec
from hdlib.runs.record import EPOCH_COLUMNS, TRACE_COLUMNS

CAP = 1000


def record(method, iterations, seed, alpha0=0.1, beta=0.0, decay="none", of="minibatch"):
    """A run that arrived after so many iterations, or was given up at the cap."""
    spec = RunSpec(method=method, alpha0=alpha0, beta=beta, decay=decay, seed=seed, epochs=3, max_iterations=CAP,
                   target_loss=0.29, target_of=of, early=0, validate_every=0)  # fmt: skip
    outcome = "finished" if iterations is None else "reached"
    empty = pd.DataFrame(columns=EPOCH_COLUMNS), pd.DataFrame(columns=TRACE_COLUMNS)
    made = {"device": "a processor", "data": "MNIST", "seconds": 1.0}
    return Record(spec, outcome, iterations or CAP, *empty, made)


def runs(method, values, **fields):
    return [record(method, value, seed, **fields) for seed, value in enumerate(values)]


@pytest.fixture
def records():
    """Two initial learning rates, three seeds: SGD-HD is faster from the one and slower from the other."""
    found = []
    for alpha0, base, adapted in ((0.1, (30, 40, 50), (60, 80, 45)), (1e-6, (None, None, None), (100, None, 120))):
        found += runs("sgd", base, alpha0=alpha0) + runs("sgd_hd", adapted, alpha0=alpha0, beta=1e-3)
        found += runs("sgdn", base, alpha0=alpha0) + runs("sgdn_hd", base, alpha0=alpha0, beta=1e-3)
        found += runs("adam", base, alpha0=alpha0) + runs("adam", (90, 95, 99), alpha0=alpha0, decay="inv_sqrt")
        found += runs("adam_hd", (45, 50, 55), alpha0=alpha0, beta=1e-3)
    return found


def test_the_papers_numbers_are_all_there():
    theirs = paper.figure4()
    assert len(theirs) == 126 and int(np.isinf(theirs["iterations"]).sum()) == 3
    assert grid._paper_slower() == {"sgd_hd": 4, "sgdn_hd": 5, "adam_hd": 13}  # the cells of its red outline


def test_a_run_that_did_not_arrive_counts_as_infinitely_long(records):
    table = grid.cells(grid.reached(records)).set_index(["method", "decay", "alpha0", "beta"])
    assert table.loc[("sgd_hd", "none", 1e-6, 1e-3), ["median", "low", "high"]].tolist() == [120, 100, np.inf]
    assert np.isinf(table.loc[("sgd", "none", 1e-6, 0.0), "median"])
    assert table.loc[("sgd", "none", 1e-6, 0.0), "unreached"] == 3


def test_half_the_seeds_are_not_a_median():
    assert np.isinf(grid._median(pd.Series([1.0, np.inf])))
    assert grid._median(pd.Series([1.0, 3.0, np.inf])) == 3.0
    assert grid._median(pd.Series([1.0, 3.0])) == 2.0


def test_slower_cells_are_counted_against_each_baseline(records):
    text = grid.where_slower(records)
    assert "SGD-HD against SGD**: slower in the median in 1 of 2 cells, with every seed in 0" in text
    assert "(the paper's numbers: 4)" in text
    assert "SGDN-HD against SGDN**: slower in the median in 0 of 2 cells" in text
    assert "Adam-HD against Adam, α/√t**: slower in the median in 0 of 2 cells" in text
    assert "Adam-HD against Adam**: slower in the median in 1 of 2 cells" in text


def test_the_papers_place_in_our_spread_is_named(records):
    table = grid.full_table(records).data
    own = table[(table["method"] == "SGD") & (table["α₀"] == "10⁻¹")].iloc[0]
    assert own["paper"] == "33" and own["paper's place"] == "within" and own["lowest to highest"] == "30 to 50"
    unreached = table[(table["method"] == "SGD") & (table["α₀"] == "10⁻⁶")].iloc[0]
    assert unreached["seeds that arrived"] == "0 of 3" and unreached["paper's place"] == "within"
    text = grid.beside_the_paper(records)
    assert text.startswith("The paper prints 12 numbers")  # of our 14 cells: its Adam decays, and has no twin


def test_criteria_are_compared_over_the_seeds_and_the_cap_that_all_have(records):
    few = [r for r in records if r.spec.seed < 2]
    table = grid.criteria({"minibatch": records, "smoothed": few, "epoch": few})
    assert table.note == "All three with 2 seeds and a cap of 1,000 iterations."
    rows = table.data.set_index("arrival: the loss of")
    columns = [column for column in rows.columns]
    assert len(columns) == 3 and (rows[columns[0]] == rows[columns[1]]).all()


def test_figures_say_what_they_show(records):
    for figure in (grid.heatmap(records, "g"), grid.sensitivity(records, "s")):
        assert "SGD" in figure.alt and len(figure.data) == 14
        html = figure._repr_html_()
        assert html.count("<img") == 2


def test_what_is_left_of_adam_hds_advantage_has_an_interval(records):
    row = grid.alike(records).data.iloc[0]
    assert row["α₀ from which Adam-HD is faster than Adam, α/√t"] == "2 of 2"
    assert "(" in row.iloc[2] and "to" in row.iloc[2]
    assert "slows Adam down from 1 of 2" in grid.advantage(records)
