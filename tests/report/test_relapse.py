"""What is said of a run that lost again what it had learnt follows from its record and its branches."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from hdlib.report import relapse, vgg_published
from hdlib.report.style import LABELS, LIGHT
from hdlib.runs import Record, RunSpec
from hdlib.runs.record import EPOCH_COLUMNS, TRACE_COLUMNS

LOSSES, RATES = [2.3, 1.0, 0.8, 2.5, 2.2], [1e-3, 2e-3, 3e-3, 0.4, 0.3]


def made_up(losses, rates=None, **fields):
    """Return a record with these training losses, and mean alphas, of its epochs."""
    fields = dict(alpha0=1e-3, beta=1e-3, epochs=len(losses) - 1) | fields
    spec = RunSpec(task="cifar10", model="vgg", method="sgdn_hd", **fields)
    rates = [1e-3] * len(losses) if rates is None else rates
    rows = [[i, 6 * i, loss, alpha, 1.0, 0.5] for i, (loss, alpha) in enumerate(zip(losses, rates, strict=True))]
    trace = pd.DataFrame([[1, 2.3, 1e-3, 0.0]], columns=TRACE_COLUMNS)
    epochs = pd.DataFrame(rows, columns=EPOCH_COLUMNS)
    return Record(spec, "finished", 6 * (len(losses) - 1), epochs, trace, dict(device="a device", data="CIFAR-10"))


RUN = made_up(LOSSES, RATES)


@pytest.fixture
def branches():
    """Epochs 2 to 4 of six iterations: as it was, and with a lower bound."""
    went = [3e-3] * 6 + [0.02, -0.1, -0.06, 0.4, 0.4, 0.4] + [0.4] * 6
    kept = [3e-3] * 6 + [0.02, 0.0] + [3e-3] * 10
    h = np.full(18, 0.02)
    h[[6, 7, 9]] = -17, 119, -479
    found = []
    for way, alpha, loss in (
        ("as it was", went, [0.8] * 7 + [2.6, 3.3, 38.0] + [2.2] * 8),
        ("bound", kept, [0.8] * 18),
    ):
        rows = dict(way=way, iteration=range(7, 25), loss=loss, alpha=alpha, epoch=np.repeat([2, 3, 4], 6))
        found.append(pd.DataFrame(rows).assign(hypergrad=h if way == "as it was" else 0.02))
    return pd.concat(found, ignore_index=True)


def test_a_run_that_loses_what_it_had_learnt_is_told():
    said = vgg_published.agreement_sentence([RUN])
    assert "0.800 in epoch 2, is 2.20 in the last (from 1.5 times the lowest on a run counts as fallen back)." in said
    assert "It began in epoch 3 (accuracy: 50.0 % after epoch 2, 50.0 % after epoch 3, 50.0 % at the end)." in said
    assert "rose most in epoch 3, in which the mean α went from 0.00300 to 0.400." in said
    assert "fell back" not in vgg_published.agreement_sentence([made_up(LOSSES[:3])])
    more = [made_up([2.3, 0.5, 0.5, 0.5, 0.5], seed=seed) for seed in (1, 2)]
    assert "With the 2 other seeds it ends at 0.500 ± 0." in vgg_published.agreement_sentence([RUN, *more])


def test_a_run_fell_back_in_the_epoch_at_whose_end_validation_shows_it_first():
    seen = RUN.epochs.assign(valid_loss=[2.3, 1.0, 4.0, 3.0, 2.0], valid_accuracy=[0.1, 0.8, 0.2, 0.3, 0.4])
    early = replace(RUN, epochs=seen)
    assert (relapse.epoch_of(early), relapse.began(early), relapse.began(RUN)) == (3, 2, 3)
    assert relapse.recovered(early) == " (accuracy: 80.0 % after epoch 1, 20.0 % after epoch 2, 40.0 % at the end)"
    unseen = replace(early, epochs=seen.assign(valid_loss=np.nan, valid_accuracy=np.nan))
    assert relapse.began(unseen) == 3 and relapse.recovered(unseen) == ""


def test_where_the_harm_was_done_before_the_ways_part_the_table_says_so(branches):
    early = replace(RUN, epochs=RUN.epochs.assign(valid_loss=[2.3, 1.0, 4.0, 3.0, 2.0]))
    assert "before the ways part" in relapse.note(branches, early)
    assert "before the ways part" not in relapse.note(branches, RUN)


def test_a_run_that_diverged_or_ends_low_is_no_relapse():
    assert relapse.relapsed([RUN]) == [RUN] and relapse.epoch_of(RUN) == 3
    assert (
        relapse.epoch_of(made_up([2.3, 1.0, 0.5, 2.0, 2.2])) == 3
    )  # that of the largest rise, not of the largest loss
    assert relapse.relapsed([made_up([2.3, 1.0, 0.8, 2.5, 1.1]), replace(RUN, outcome="diverged")]) == []


def test_the_story_goes_from_the_harmful_step_over_negative_rates_to_the_large_one(branches):
    said = relapse.story(branches, RUN)
    assert "At iteration 14 of SGDN-HD with seed 0, after a step with α = 0.0200" in said
    assert "the minibatch loss is 2.60, 0.800 one step earlier, and h = 119. That takes α to −0.100" in said
    assert "after 2 it is 38.0. There h = −479, the largest in size of these epochs, takes α to 0.400." in said
    assert (
        "|h| is 0.020 in the median, so that a step changes α by 2.0 × 10⁻⁵, and in the last epoch α still is" in said
    )


def test_without_a_negative_rate_none_is_told(branches):
    said = relapse.story(branches.assign(alpha=branches["alpha"].abs()), RUN)
    assert "below zero" not in said and said.startswith("At iteration 16 of SGDN-HD with seed 0 h = −479")


@pytest.mark.parametrize("method", ["sgd_hd", "sgdn_hd", "adam_hd"])
def test_the_story_can_begin_below_zero_and_end_with_the_largest_step(branches, method):
    run = replace(RUN, spec=RUN.spec.with_(method=method))
    went = branches[branches["way"] == "as it was"]
    for rows in (went.assign(alpha=-went["alpha"].abs()), went[went["hypergrad"].abs().cummax() < 479], went[9:]):
        said = relapse.story(rows.reset_index(drop=True), run)
        assert f"of {LABELS[method]} with seed 0" in said and "nan" not in said


def test_the_ways_are_told_apart_by_where_they_end(branches):
    table = relapse.ways(branches, RUN)
    assert table.data.iloc[:, 0].tolist() == ["as it was", "bound"]
    assert table.data.iloc[:, 1:3].to_numpy().tolist() == [["−0.100", "0.400"], ["0", "0.0200"]]
    assert table.data["epoch 4"].tolist() == ["2.20", "0.800"]
    said = relapse.note(branches, RUN)
    assert "end of epoch 2" in said
    assert "its training loss was 0.800 and its validation loss 1.00 (1.00 one epoch earlier), in 2 ways" in said
    unseen = replace(RUN, epochs=RUN.epochs.assign(valid_loss=[np.nan, np.nan, 1.5, np.nan, np.nan]))
    assert "its training loss was 0.800 and its validation loss 1.50, in 2" in relapse.note(branches, unseen)
    assert " with: bound. It is higher with: as it was." in relapse.ways_sentence(branches, RUN)


def test_accuracies_are_told_from_before_a_relapse_from_after_it_and_from_the_end():
    seen = replace(RUN, epochs=RUN.epochs.assign(valid_accuracy=[0.1, 0.6, 0.7, 0.2, 0.5]))
    assert relapse.recovered(seen) == " (accuracy: 70.0 % after epoch 2, 20.0 % after epoch 3, 50.0 % at the end)"


def test_a_way_that_ends_a_little_above_where_it_began_is_no_relapse(branches):
    higher = branches.assign(loss=branches["loss"].mask(branches["way"] == "bound", 1.5 * 0.79))
    assert " with: bound. It is higher with: as it was." in relapse.ways_sentence(higher, RUN)


def test_the_figure_shows_both_ways_around_the_jump(branches):
    figure = relapse.figure(branches, RUN, "relapse")
    assert set(figure.data["way"]) == {"as it was", "bound"} and "around iteration 16" in figure.alt
    assert "as it was" in figure.svg(LIGHT)


def test_a_run_that_did_not_repeat_itself_is_said_to_be_not_looked_into(branches):
    assert "did not repeat itself" in relapse.story(branches[:0], RUN)
