"""A run goes on from an epoch in several ways: as it did, if nothing is changed, and otherwise from the same state."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from hdlib.runs import RunSpec, train
from hdlib.runs.branch import WAYS, branches, recorded_branches

SPEC = RunSpec(
    task="digits", model="mlp", width=12, method="sgdn_hd", alpha0=0.02, beta=1e-3, epochs=6, batch_size=256, early=1000
)
STEPS = 6  # of an epoch of 1,500 images


@pytest.fixture(scope="module")
def record():
    return train(SPEC)


@pytest.fixture(scope="module")
def found(record):
    return branches(record, 3, 2, WAYS).groupby("way", sort=False)


def test_the_way_that_changes_nothing_is_the_recorded_run(record, found):
    ours = found.get_group("as it was")
    theirs = record.trace[record.trace["iteration"].between(2 * STEPS + 1, 5 * STEPS)]
    for column in ("iteration", "loss", "alpha", "hypergrad"):
        assert np.array_equal(ours[column], theirs[column]), column
    assert ours["epoch"].tolist() == np.repeat([3, 4, 5], STEPS).tolist()


def test_all_ways_share_the_state_that_they_branch_from(found):
    firsts = [rows.iloc[: STEPS + 1][["loss", "hypergrad"]].to_numpy() for _, rows in found]
    assert len(firsts) == len(WAYS)
    assert all(np.array_equal(first, firsts[0]) for first in firsts)  # the first loss and h after it, too


def test_each_way_moves_alpha_by_its_own_rule(record):
    ways = {"low": dict(max_lr=0.021), "slow": dict(max_change=1e-3), "fixed": dict(beta=0.0)}
    ways |= {"soon": dict(final_lr=1e-3, transition=1.0), "late": dict(final_lr=1e-3, transition=1e3)}
    found = branches(record, 3, 2, ways).groupby("way")
    alpha = {way: rows["alpha"].to_numpy()[STEPS - 1 :] for way, rows in found}  # from the last common one on
    assert alpha["low"][0] > 0.021 and (alpha["low"][1:] <= 0.021).all()
    assert 0 < np.abs(np.diff(alpha["slow"]) / alpha["slow"][:-1]).max() <= 1.001e-3
    assert len(set(alpha["fixed"])) == 1
    assert alpha["soon"][-1] < alpha["late"][-1]


def test_a_run_that_does_not_repeat_itself_has_no_branches(record):
    epochs = record.epochs.copy()
    epochs.loc[2, "train_loss"] *= 1 + 1e-15
    assert branches(replace(record, epochs=epochs), 3, 2).empty


def test_every_iteration_of_a_branch_is_there_whatever_of_the_run_was_traced():
    record = train(SPEC.with_(batch_size=32, early=2))
    rows = branches(record, 5, 1, {"as it was": {}})
    assert rows["iteration"].tolist() == list(range(4 * 47 + 1, 6 * 47 + 1))
    assert len(record.trace) < 6 * 47


def test_a_branch_is_computed_with_as_many_threads_as_its_run(record, monkeypatch):
    threads = []
    more = replace(record, provenance=record.provenance | {"threads": 2})
    with monkeypatch.context() as patch:
        patch.setattr("hdlib.runs.branch._same", lambda *_: threads.append(torch.get_num_threads()))
        assert branches(more, 1, 1).empty
    assert threads == [2] and torch.get_num_threads() == 1


def test_branches_say_how_far_they_are(record):
    done = []
    branches(record, 3, 2, {"one": {}, "another": dict(beta=0.0)}, tick=done.append)
    assert sum(done) == STEPS * (3 + 2 * 2)


def test_branches_end_with_the_run(record):
    assert branches(record, 5, 10, {"as it was": {}})["epoch"].max() == SPEC.epochs


def test_branches_are_kept(record, tmp_path, monkeypatch):
    first = recorded_branches(record, 2, 1, tmp_path, "cpu", {"as it was": {}})
    assert recorded_branches(record, 2, 2, tmp_path, "cpu", {"as it was": {}})["epoch"].tolist()[-1] == 4
    assert set(recorded_branches(record, 2, 1, tmp_path, "cpu", {"fixed": dict(beta=0.0)})["way"]) == {"fixed"}
    monkeypatch.setattr("hdlib.runs.branch.branches", None)
    assert recorded_branches(record, 2, 1, tmp_path, "cpu", {"as it was": {}}).equals(first)


def test_a_run_of_another_machine_is_not_trained_again_and_nothing_is_kept_of_it(record, tmp_path, monkeypatch):
    monkeypatch.setattr("hdlib.runs.branch.branches", None)
    other = replace(record, provenance=record.provenance | {"device": "NVIDIA H200"})
    assert recorded_branches(other, 2, 1, tmp_path, "cpu").empty
    assert not list(tmp_path.rglob("*.parquet"))
