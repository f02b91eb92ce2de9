"""What is said of VGG follows from the records: the scale, the orderings, the precisions."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from hdlib.report import figures, paper, vgg, vgg_limits, vgg_published
from hdlib.report.notebooks import read_notebook
from hdlib.report.pages import read_pages
from hdlib.report.style import Noted, significant
from hdlib.runs import BASELINE, METHODS, Record, RunSpec
from hdlib.runs.record import EPOCH_COLUMNS, TRACE_COLUMNS

ROOT = Path(__file__).parents[2]
ENDS = dict(sgd=1.4, sgd_hd=0.8, sgdn=0.3, sgdn_hd=0.1, adam=0.2, adam_hd=0.05)  # in the order of the paper's


def record(method, train=None, valid=0.5, **fields):
    """Return a made-up run of one epoch."""
    beta = paper.tuned_beta(method, "vgg")
    spec = RunSpec(task="cifar10", model="vgg", method=method, **(dict(alpha0=1e-3, beta=beta, epochs=1) | fields))
    train = ENDS[method] if train is None else train
    alpha = 2e-4 if beta else spec.alpha0
    epochs = pd.DataFrame([[0, 0, 2.3, 1e-3, 2.3, 0.1], [1, 391, train, alpha, valid, 0.8]], columns=EPOCH_COLUMNS)
    trace = pd.DataFrame([[1, 2.3, 1e-3, 0.0], [2, 2.2, 0.02, 0.1]], columns=TRACE_COLUMNS)
    made = dict(device="a device", data="CIFAR-10", epoch_seconds=0.5, seconds=100.0)
    return Record(spec, "finished", 391, epochs, trace, made)


ALL = [record(method) for method in METHODS]
RELAPSE = pd.DataFrame([[i, i, loss, 1e-3, 2.3, 0.1] for i, loss in enumerate((2.3, 1, 2))], columns=EPOCH_COLUMNS)


def limits(row):
    """Return a measured critical beta, as `measured_boundaries` gives it."""
    measured = pd.DataFrame([row])
    measured.attrs["runs"] = dict(precision=["float32"])
    return measured


def test_a_smaller_experiment_says_that_the_papers_was_not_run():
    small = [record(method, width_factor=1 / 8, train_images=10_000, epochs=20) for method in METHODS]
    text = vgg.scale(small)
    assert "1/8 of the channels, 10,000 of CIFAR-10's 50,000 training images, 20 epochs of these" in text
    assert "was not run" in text and "79 iterations" in text and "as many as 4 of its epochs" in text
    as_many = [record("sgd", train_images=10_000, epochs=200)]  # but shorter ones
    assert "An epoch of theirs has 391 iterations, of ours 79." in vgg_published.levels(as_many).note
    assert "200 epochs of these" in vgg.scale(as_many) and "all 200 epochs" not in vgg.scale(as_many)
    longer = [record(method, width_factor=1 / 8, train_images=10_000, epochs=30) for method in METHODS]
    assert "all 2,370 are as many as 6.1 of its epochs" in vgg.scale(longer)
    assert "of the paper's figure it is not known](vgg-network)" in vgg_published.variant(small)


def test_runs_that_hardly_learn_are_named_since_their_orderings_say_little():
    runs = [*ALL[1:], record("sgd", 2.29), record("sgd", 2.25, seed=1), record("sgd", 2.31, seed=2)]
    said = vgg_published.agreement_sentence(runs)
    assert (
        "- SGD hardly learnt anything in 2 of its 3 runs: 2.29 and 2.31, where guessing has a training loss of "
        "ln 10 = 2.30." in said
    )
    assert said.count("hardly learnt") == 1 and "say little" not in said
    said = vgg_published.agreement_sentence([record("sgd_hd", 2.31), *runs[1:]])
    assert "ln 10 = 2.30; its orderings against SGD say little." in said


def test_the_share_below_zero_counts_a_rate_until_the_next_one_that_is_known_and_the_last_to_the_end():
    trace = pd.DataFrame([[1, 2.3, 1e-3, 0.0], [2, 2.2, -0.02, 0.1], [5, 2.2, 0.02, 0.1]], columns=TRACE_COLUMNS)
    assert vgg._negative(replace(ALL[1], iterations=10, trace=trace)) == 0.3
    assert vgg._negative(replace(ALL[1], iterations=10, trace=trace[:2])) == 0.9


def test_a_few_epochs_of_the_whole_network_are_not_the_whole_experiment():
    few = [record(method, epochs=20) for method in METHODS]
    assert not vgg.complete(few) and vgg.complete([record(method, epochs=200) for method in METHODS])
    assert "was not run" in vgg.scale(few) and "at its full length" not in vgg.scale(few)


def test_the_whole_experiment_says_so_and_only_then():
    whole = [record(method, epochs=200) for method in METHODS]
    assert "at its full length and size" in vgg.scale(whole) and "was not run" not in vgg.scale(whole)
    assert "was not run" in vgg.scale(whole[:-1])
    narrow = [record(method, epochs=200, width_factor=0.125) for method in METHODS]
    assert "was not run" in vgg.scale(narrow) and "was not run" in vgg.scale(narrow, [*narrow, *whole[:-1]])
    said = vgg.scale(narrow, [*narrow, *whole])
    assert (
        "The paper's experiment, " in said
        and "is on [the page of the whole network](vgg)" in said
        and "was not run" not in said
    )
    theirs = paper.tuning().query("model == 'vgg' and source == 'authors'").set_index("method")["train_end"]
    whole[0] = record("sgd", train=1e-4, epochs=200)  # below theirs, the others above
    apart = np.exp(np.mean([abs(np.log(loss / theirs[m])) for m, loss in (ENDS | {"sgd": 1e-4}).items()]))
    said = vgg_published.variant(whole)
    assert f"training losses differ from those of the authors' repository by a factor of {apart:.2g}, valid" in said
    assert "of the paper's figure it is not known](vgg-network)" in said


def long_run(method, losses, **fields):
    """Return a made-up run of all images, of 200 epochs, some of whose training losses are given."""
    run = record(method, epochs=200, **fields)
    alpha = run.epochs["alpha"].iloc[-1]
    rows = [[e, 391 * e, loss, alpha, 2 * loss, 0.5] for e, loss in losses.items()]
    return replace(run, iterations=78_200, epochs=pd.DataFrame(rows, columns=EPOCH_COLUMNS))


def test_longer_runs_are_held_against_shorter_published_ones_at_their_end():
    at_100 = {m: long_run(m, {0: 2.3, 100: loss, 200: loss / 2}) for m, loss in ENDS.items()}
    at_100["sgd_hd"] = long_run("sgd_hd", {0: 2.3, 100: 0.8, 199: 0.8, 200: 1.7})  # lost since
    runs = list(at_100.values())
    table = vgg_published.levels(runs).data
    ours = table[(table["method"] == "SGD-HD") & (table["source"] == "ours")]
    assert ours[["epochs", "training loss, end"]].to_numpy().tolist() == [["200", "1.70"], ["100", "0.800"]]
    row = vgg_published.agreement(runs).data.iloc[0]
    assert row["ours"].text == "no" and row["ours, after 100 epochs"] == Noted("yes", "0.800, 1.40")
    said = vgg_published.agreement_sentence(runs)
    assert "Beside the paper, Figure 3: " in said and "SGD-HD against SGD in training loss" in said
    after = said.partition("- Beside the authors' repository after its 100 epochs: ")[2].splitlines()[0]
    assert after and "SGD-HD against SGD" not in after
    theirs = paper.tuning().query("model == 'vgg' and source == 'authors'").set_index("method")
    apart = np.exp(np.mean([abs(np.log(loss / theirs.loc[m, "train_end"])) for m, loss in ENDS.items()]))
    told = [line for line in vgg_published.variant(runs).splitlines() if line.startswith("- ")]
    assert [(" 100 " in line, "the paper" in line) for line in told] == [(True, False), (True, True), (False, True)]
    assert f"from those of the authors' repository by a factor of {apart:.2g}," in told[0]
    few = [replace(run, spec=run.spec.with_(train_images=10_000)) for run in runs]  # whose epochs are shorter
    assert (
        "after its" not in vgg_published.agreement_sentence(few) and len(vgg_published.agreement(few).data.columns) == 4
    )
    assert vgg_published.bottom_line(runs).partition(" (")[0].endswith("SGD-HD fell back in epoch 200")


def test_the_largest_rate_is_told_of_as_many_iterations_as_the_paper_shows_too():
    run = replace(
        long_run("sgd_hd", {0: 2.3, 200: 1.0}),
        trace=pd.DataFrame([[1, 2.3, 0.02, 0.0], [9_000, 1, 0.03, 0], [9_001, 1, 0.5, 0]], columns=TRACE_COLUMNS),
    )
    told = vgg.rates([run]).data
    own = told.loc[told["source"] == "ours", ["largest α", "of the first"]].to_numpy().tolist()
    assert own == [["0.03000", "9,000"], ["0.5000", "78,200"]]
    means = run.epochs.assign(alpha=[1e-3, 0.7])  # between the recorded iterations it was larger still
    told = vgg.rates([replace(run, epochs=means)]).data
    assert told.loc[told["of the first"] == "9,000", "largest α"].iloc[0] == "0.03000"
    [[most, at]] = told.loc[told["of the first"] == "78,200", ["largest α", "at iteration"]].to_numpy()[:1].tolist()
    assert (most, at) == ("0.7000", "77,810 to 78,200")


def test_what_runs_side_by_side_took_says_nothing_of_what_hypergradients_cost():
    runs = [record("adam"), record("adam_hd")]
    for run in runs:
        run.provenance.update(together=2, device="a card")
    times = vgg.times(runs)
    assert "over its baseline" not in times.data and times.data["runs side by side, at most"].tolist() == ["2", "2"]
    assert times.data["images a second"].tolist() == ["100,000"] * 2 and "say nothing of what" in times.note
    for run in runs:
        run.provenance["together"] = 1
    assert "over its baseline" in vgg.times(runs).data and "say nothing of what" not in vgg.times(runs).note


def test_each_number_stands_in_its_column_and_a_longer_curve_of_the_papers_is_read_at_the_end_of_ours():
    run = record("sgd", epochs=2)
    rows = [[0, 0, 2.3, 1e-3, 0.1, 0.1], [1, 391, 0.6, 1e-3, 0.4, 0.7], [2, 782, 0.2, 1e-3, 0.5, 0.8]]
    run = replace(run, epochs=pd.DataFrame(rows, columns=EPOCH_COLUMNS))
    table = vgg_published.levels([run]).data
    columns = ["training loss, end", "validation loss, end", "validation loss, best", "accuracy, end"]
    assert table.loc[table["source"] == "ours", columns].to_numpy().tolist() == [["0.200", "0.500", "0.400", "80.0 %"]]
    published = paper.published("vgg", "cifar10", [2]).query("method == 'sgd' and source == 'paper'")
    told = table[(table["method"] == "SGD") & table["source"].str.startswith("paper")]
    assert told["epochs"].tolist() == published["epochs"].tolist() == [2, 200]
    expected = published[["train_end", "valid_end", "valid_best"]].map(significant)
    assert told[columns[:3]].to_numpy().tolist() == expected.to_numpy().tolist() and len(told) == 2


def test_orderings_are_compared_with_the_published_ones():
    valid = dict(sgd=1.0, sgd_hd=0.9, sgdn=0.8, sgdn_hd=0.7, adam=0.5, adam_hd=0.6)
    alike = [record(method, valid=valid[method]) for method in METHODS]
    said = vgg_published.agreement_sentence(alike)
    assert "- Beside the paper, Figure 3, and the authors' repository: all 9 orderings are the same." in said
    table = vgg_published.agreement(alike).data
    assert {cell.text for cell in table.iloc[:, 3]} == {"yes"}
    again = [record(m, valid=0.95 if m == "sgd" else 0.99 if m == "sgd_hd" else valid[m], seed=1) for m in METHODS]
    said = vgg_published.agreement_sentence(alike + again)
    assert (
        "7 of 9 orderings are the same in every seed; the same in the means alone: SGD-HD against SGD in validation "
        "loss at the end and in best validation loss." in said
    )
    assert "An ordering that is not that of every seed is not decided" in said
    once = [r if r.spec.method != "adam_hd" else replace(r, epochs=r.epochs.assign(valid_loss=0.1)) for r in alike]
    second = [record(m, valid=valid[m], seed=1) for m in METHODS]
    said = vgg_published.agreement_sentence([*once, *second])  # lower in the mean, and in one seed of two alone
    assert (
        "7 of 9 orderings are the same in every seed; the other way round in the means, though not in every seed: "
        "Adam-HD" in said
    )
    assert "alone" not in said and "round in every seed" not in said
    other = [record(method, valid=0.4 if method == "adam_hd" else valid[method]) for method in METHODS]
    said = vgg_published.agreement_sentence(other)
    assert (
        "7 of 9 orderings are the same; " in said
        and "the other way round: Adam-HD against Adam in validation loss at the end and in best validation loss."
        in said
    )


def test_the_bottom_line_is_that_of_the_longest_runs_of_six_methods_on_all_images():
    valid = dict(sgd=1.0, sgd_hd=0.9, sgdn=0.8, sgdn_hd=0.7, adam=0.5, adam_hd=0.6)

    def six(**fields):
        return [record(method, valid=valid[method], **fields) for method in METHODS]

    longest, narrow = six(width_factor=1 / 8, epochs=20), dict(width_factor=1 / 8, epochs=20, seed=1)
    others = [
        *six(epochs=10),
        *six(epochs=30)[:-1],  # not all methods
        *six(train_images=10_000, epochs=200),
        *[record(method, beta="auto", **narrow) for method in BASELINE],
        *[record(method, decay="cosine", **narrow) for method in BASELINE.values()],
    ]
    assert vgg_published.bottom_line(others + longest) == (
        "With 1/8 of the channels, 20 epochs of all images and one seed, 9 of 9 comparisons between methods come out "
        "as in both published experiments."
    )
    worse = [*longest[:-1], record("adam_hd", valid=0.4, width_factor=1 / 8, epochs=20)]
    assert "one seed, 7 of 9 comparisons" in vgg_published.bottom_line(worse)
    assert vgg_published.bottom_line([*six()[:-1], *six(train_images=10_000, epochs=200)]) == ""


def test_jpegs_are_said_to_be_lossy_where_they_were_trained_on():
    runs = [record(method) for method in METHODS]
    assert "JPEG" not in vgg.scale(runs)
    runs[0].provenance["data"] = "CIFAR-10, image folder, jpg files, 50,000 + 10,000 images"
    assert "JPEG is lossy, so losses may differ" in vgg.scale(runs)


def test_what_agrees_is_told_in_short_for_each_network():
    valid = dict(sgd=1.0, sgd_hd=0.9, sgdn=0.8, sgdn_hd=0.7, adam=0.5, adam_hd=0.6)
    alike = [record(method, valid=valid[method]) for method in METHODS]
    beside = "eside the paper, Figure 3, and the authors' repository:"
    same = f"{beside} all 9 orderings are the same."
    lead = "**In short.** Which of two methods has the lower loss?"
    assert vgg_published.in_short(alike) == f"{lead} B{same}"
    other = [record(m, ENDS["sgdn" if m == "sgd_hd" else m] * 9, valid[m], variant="paper") for m in METHODS]
    other[1] = replace(other[1], epochs=other[1].epochs.assign(train_loss=99.0, valid_loss=9.0))
    assert vgg_published.in_short([*alike, *other]) == (
        f"{lead} As in the authors' code, b{same} As in the paper's text, b{beside} 6 of 9 orderings are the same; the "
        "other way round: SGD-HD against SGD in training loss and validation loss at the end and in best validation "
        "loss."
    )


def test_the_longest_runs_on_fewer_images_are_told_with_what_they_lost():
    valid = dict(sgd=1.0, sgd_hd=0.9, sgdn=0.8, sgdn_hd=0.7, adam=0.5, adam_hd=0.6)
    kept = dict(train_images=10_000, norm_start="uniform", precision="bf16")
    runs = [
        record(m, valid=0.5 if (m, seed) == ("sgd", 1) else valid[m], seed=seed, epochs=9, **kept)
        for m in METHODS
        for seed in (0, 1, 2)
    ]
    shorter = [r.spec.with_(epochs=8) for r in runs]
    other = [replace(r, spec=r.spec.with_(alpha0=0.1)) for r in runs]
    known = [*runs, *other, *(replace(r, spec=s) for r, s in zip(runs, shorter, strict=True))]
    said = vgg_published.bottom_line_of_fewer_images(known)
    assert said == (
        "With [3 seeds](vgg-epochs), all of the channels, 9 epochs of 10,000 images, 7 of 9 come out as in the "
        "paper's figure in every seed."
    )
    mild = [
        record("sgd", valid=0.85, seed=1, epochs=9, **kept) if (r.spec.method, r.spec.seed) == ("sgd", 1) else r
        for r in runs
    ]
    assert vgg_published.bottom_line_of_fewer_images(mild).endswith(
        "7 of 9 come out as in the paper's figure in every seed, 2 more in the means alone."
    )
    forgot = [replace(r, epochs=RELAPSE) if (r.spec.method, r.spec.seed) == ("sgdn_hd", 1) else r for r in runs]
    assert vgg_published.bottom_line_of_fewer_images(forgot).endswith(
        "4 of 9 come out as in the paper's figure in every seed; one run of SGDN-HD fell back."
    )
    assert vgg_published.bottom_line(known) == "" and vgg_published.bottom_line_of_fewer_images(ALL) == ""


def test_an_epoch_of_the_papers_length_is_said_to_be_one():
    assert "An epoch has 391 iterations, as in the paper" in vgg.scale([record("adam", width_factor=1 / 8)])


def test_a_diverged_seed_is_told_and_not_averaged_away():
    runs = [record(method, seed=seed) for method in METHODS for seed in range(2)]
    lost = [i for i, r in enumerate(runs) if (r.spec.method, r.spec.seed) == ("sgdn_hd", 1)]
    runs[lost[0]] = replace(runs[lost[0]], outcome="diverged", iterations=1060)
    said = vgg_published.agreement_sentence(runs)
    assert "SGDN-HD diverged in 1 of its 2 runs, at iteration 1,060." in said
    assert "; the other way round in the means, though not in every seed: SGDN-HD against SGDN in training" in said
    table = vgg_published.levels(runs).data
    ours = table[(table["method"] == "SGDN-HD") & table["source"].str.startswith("ours")].iloc[0]
    assert ours["training loss, end"] == ours["accuracy, end"] == "1 of 2 diverged"
    told = vgg.rates(runs).data.set_index(["method", "source"])
    assert told.loc[("SGDN-HD", "ours"), "largest α"] == "0.02000; 1 of 2 runs diverged"
    columns = ["at iteration", "of the first", "below zero"]
    assert told.loc[("SGDN-HD", "ours"), columns].tolist() == ["2", "391", "never"]
    assert told.loc[("SGD-HD", "authors' repository"), "largest α"] == "0.1333"
    assert told.loc[("Adam-HD", "authors' repository"), "α of the last epoch"] == "0.000160"
    assert vgg_published.agreement(runs).data.iloc[3, 3] == Noted("in 1 of 2 seeds", "diverged, 0.300")
    best = table.loc[(table["method"] == "SGDN-HD") & table["source"].str.startswith("ours"), "validation loss, best"]
    assert best.tolist() == ["1 of 2 diverged"]


def test_the_share_of_negative_rates_is_one_of_training_and_not_of_what_was_recorded():
    run = record("sgd_hd")
    rows = [[i, 2.0, alpha, 0.0] for i, alpha in ((1, 1e-3), (2, -1e-3), (3, 1e-3), (193, -1e-3))]
    run = replace(run, trace=pd.DataFrame(rows, columns=TRACE_COLUMNS))  # 391 iterations, of which 1 + 199 are negative
    told = vgg.rates([run]).data.set_index("source")
    assert told.loc["ours", "below zero"] == "51 %"
    columns = ["at iteration", "of the first", "below zero"]
    assert told.loc["authors' repository", columns].tolist() == ["13,568", "39,100", "15 %"]
    assert told.loc["paper, Figure 3", columns].tolist() == ["", "9,000", ""]


def test_where_rates_are_largest_is_told_of_the_seeds_that_went_on():
    def traced(*alphas, iterations=391, **fields):
        rows = [[i, 2.0, alpha, 0.0] for i, alpha in enumerate(alphas, 1)]
        return replace(
            record("sgd_hd", **fields), iterations=iterations, trace=pd.DataFrame(rows, columns=TRACE_COLUMNS)
        )

    def told(*runs):
        columns = ["largest α", "at iteration", "of the first"]
        return vgg.rates(runs).data.set_index("source").loc["ours", columns].tolist()

    first, later = traced(1e-3, 0.02), traced(1e-3, 0.01, 0.04, iterations=782, seed=1)
    assert told(first, later)[1:] == ["2 to 3", "782"]
    assert told(first) == ["0.02000", "2", "391"]
    assert told(traced(1e-3, 1e-4)) == ["does not rise above α₀", "", "391"]
    assert told(replace(first, outcome="diverged")) == ["grows until nothing is finite", "", ""]


def test_every_column_of_the_learning_rates_that_needs_it_is_explained():
    table = vgg.rates([record("sgd_hd"), record("sgd_hd", seed=1)])
    for column in ("Of the first", "largest α", "α of the last epoch", "Below zero"):
        assert column in table.note
    assert "a mean over seeds" in table.note and "over seeds" not in vgg.rates([record("sgd_hd")]).note


def test_a_figure_says_that_it_cuts_the_papers_curves_off_and_whose_epochs_are_longer():
    runs = [record(method, train_images=10_000, epochs=200) for method in METHODS]
    said = vgg.caption(runs)
    assert "an epoch of theirs is of all images and has 391 iterations, of ours 79." in said
    caption = figures.tuning(runs, "name", said).caption
    assert (
        caption.startswith(said)
        and "cut the paper's off where they go further: its validation losses rise to" in caption
    )
    assert "training" not in caption.removeprefix(said)
    further = [replace(r, epochs=r.epochs.assign(train_loss=[9, 0.01], valid_loss=[9, 0.01])) for r in runs]
    assert figures.tuning(further, "name", said).caption == said
    assert "Lines are medians" not in said and "Lines are medians" in vgg.caption([*ALL, record("sgd", seed=1)])


def test_orderings_of_a_method_whose_rate_hardly_moved_are_undecided_and_not_counted():
    valid = dict(sgd=1.0, sgd_hd=0.9, sgdn=0.8, sgdn_hd=0.7, adam=0.5, adam_hd=0.6)
    runs = [record(method, valid=valid[method]) for method in METHODS]
    assert "undecided" not in vgg_published.agreement_sentence(runs)
    runs[-1] = replace(runs[-1], epochs=runs[-1].epochs.assign(alpha=0.972e-3))
    assert (
        "all 6 orderings of SGD and SGDN are the same; the 3 of Adam-HD are undecided, since its α is at most 2.8 % "
        "from α₀ in the last epoch." in vgg_published.agreement_sentence(runs)
    )
    moved = replace(runs[-1], spec=runs[-1].spec.with_(seed=1), epochs=runs[-1].epochs.assign(alpha=2e-4))
    assert "undecided" not in vgg_published.agreement_sentence([*runs, moved])  # where it moved with another seed
    still = [replace(r, epochs=r.epochs.assign(alpha=1e-3)) for r in runs]
    assert "are the same" not in vgg_published.agreement_sentence(still)


def test_a_run_that_diverges_ends_and_is_at_best_above_any_other():
    runs = [record(method, valid=0.9) for method in METHODS]
    runs[-1] = replace(runs[-1], outcome="diverged")
    rows = vgg_published.agreement(runs).data.set_index("is it so?").iloc[:, -1]
    assert rows["Adam has a lower best validation loss than Adam-HD"] == Noted("yes", "0.900, diverged")


def test_a_variant_that_diverges_where_nobody_else_did_speaks_against_it():
    runs = [record(method, variant=variant, epochs=20) for method in METHODS for variant in ("authors", "paper")]
    assert "speaks against" not in vgg_published.variant(runs)
    runs[-1] = replace(runs[-1], outcome="diverged")
    assert (
        "With the network of the paper's text Adam-HD diverged; with that of the authors' code no run did"
        in vgg_published.variant(runs)
    )
    assert "At full size that speaks against the paper's text" in vgg_published.variant(runs)
    narrow = [replace(r, spec=r.spec.with_(width_factor=1 / 8)) for r in runs]
    assert "At this scale that speaks against the paper's text" in vgg_published.variant(narrow)
    both = [replace(r, outcome="diverged") if r.spec.method == "adam_hd" else r for r in runs]
    assert "speaks against" not in vgg_published.variant(both)


def test_an_automatic_beta_is_set_beside_the_baseline_and_the_experiments_beta():
    fixed = [record(method) for method in METHODS]
    found = [record(method, 1.5, alpha0=rate) for method in BASELINE.values() for rate in (0.1, 1e-5)]
    found += [record(method, 0.5 + rate, alpha0=rate, beta="auto") for method in BASELINE for rate in (0.1, 1e-5)]
    said = vgg.automatic(found, fixed)
    first = said.splitlines()[0]
    assert "from α₀ = 10⁻¹ and 10⁻⁵ (one seed): training loss 0.500 to 0.600, accuracy 80.0 %." in first
    assert "SGD from there: training loss 1.50" in first and "from 10⁻³ alone (one seed): training loss 0.800" in first
    assert "Of 6 runs with an automatic β, none diverged." in said and "Prodigy" not in said
    beside = [
        record("prodigy", loss, alpha0=1e-6, decay=decay, seed=seed)
        for decay, loss in (("none", 1.2), ("cosine", 1.1))
        for seed in range(2)
    ]
    assert vgg.automatic(found + beside, fixed) == said.replace(
        "\n\nOf", "\n- Prodigy (2 seeds): training loss 1.20, accuracy 80.0 %; along a cosine: training loss 1.10, "
        "accuracy 80.0 %.\n\nOf"
    )  # fmt: skip
    lost = [replace(r, outcome="diverged") if r.spec.rule == "auto" else r for r in found]
    assert "all diverged" in vgg.automatic(lost, fixed) and "6 diverged." in vgg.automatic(lost, fixed)


def test_an_automatic_beta_ends_below_the_best_of_its_fixed_rates_where_it_does():
    ends = {0.1: (1.0, 0.9), 1e-5: (2.0, 1.4)}
    runs = [record(m, fixed, alpha0=rate) for m in BASELINE.values() for rate, (fixed, _) in ends.items()]
    runs += [record(m, ours, alpha0=rate, beta="auto") for m in BASELINE for rate, (_, ours) in ends.items()]
    said = vgg.automatic(runs, ALL)
    assert said.count("It ends below the best of these fixed rates, 10⁻¹, from α₀ = 10⁻¹.") == 3


def test_what_a_hypergradient_costs_is_over_its_own_baseline():
    times = vgg.times([record("adam"), record("adam_hd")]).data.set_index("method")
    assert times.loc["Adam-HD", "over its baseline"] == "+0.0 %"
    assert times.loc["Adam-HD", "authors: over its baseline"] == "+4.9 %"
    assert times.loc["Adam", "authors: seconds an epoch"] == "32.4"
    assert times.loc["Adam", ["seconds an epoch", "minutes a run"]].tolist() == ["0.500", "1.67"]
    runs = [record("adam"), record("adam_hd")]
    for seed, (epoch, whole) in enumerate(((0.4, 60.0), (9.0, 900.0)), 1):
        runs.append(record("adam_hd", seed=seed))
        runs[-1].provenance.update(epoch_seconds=epoch, seconds=whole)
    runs[1].provenance.update(epoch_seconds=0.45)
    shown = vgg.times(runs).data.set_index("method").loc["Adam-HD"]
    assert shown[["seconds an epoch", "minutes a run", "over its baseline"]].tolist() == ["0.450", "1.67", "−10.0 %"]
    lost = replace(runs[1], provenance={k: v for k, v in runs[1].provenance.items() if k != "epoch_seconds"})
    shown = vgg.times([runs[0], lost]).data.set_index("method").loc["Adam-HD"]
    assert (shown["seconds an epoch"], shown["over its baseline"]) == ("", "")
    for run in runs:
        run.provenance["device"] = "a processor (2 cores)"
    assert not [name for name in vgg.times(runs).data.columns if "baseline" in name or "authors" in name]


def test_seeds_of_one_method_alone_make_no_comparison_of_several():
    runs = [record(method) for method in METHODS] + [record("sgdn_hd", seed=1)]
    said = vgg_published.agreement_sentence(runs)
    assert "in every seed" not in said and "With one seed, a small difference may be chance." in said


def test_what_the_pages_have_in_common_is_told_on_one_of_them():
    pages = [page for page in read_pages(ROOT) if page.notebook == "vgg"]
    assert [page.name for page in pages if not page.parameters.get("told_on")] == ["vgg"]
    assert {page.parameters.get("told_on", "vgg") for page in pages} == {"vgg"}
    cells = read_notebook(ROOT / "notebooks" / "vgg.md").cells
    told = [i for i, cell in enumerate(cells) if cell.source.startswith("if not told_on:")]
    assert len(told) == 2
    for i in told:  # a section is left out whose code shows nothing: it begins with its heading, and has no other code
        assert cells[i - 1].source.startswith("## ")
        assert i + 1 == len(cells) or cells[i + 1].source.startswith("## ")


def test_the_published_runs_are_compared_with_each_other():
    said = vgg_published.published()
    assert "of 200 epochs, the authors' of 100" in said and "1.3 to 2.7 times as large" in said
    assert "at validation losses larger by these factors: SGD 5.3, SGD-HD 4.0, " in said


def test_precisions_are_compared_seed_by_seed():
    exact = [record("adam", train, seed=seed) for seed, train in enumerate((0.50, 0.54))]
    near = [record("adam", train, seed=seed, precision="bf16") for seed, train in enumerate((0.51, 0.55))]
    far = [record("adam", train, seed=seed, precision="bf16") for seed, train in enumerate((0.7, 0.8))]
    assert vgg.precisions(near, exact + near).data.iloc[0, -1] == "yes"
    assert vgg.precisions(near, exact + far).data.iloc[0, -1] == "no"
    assert vgg.precisions(near, exact + near[:1]) is None
    assert vgg.precisions([record("adam", width_factor=1 / 8)], exact + near) is None
    wide = [record("adam", train, seed=seed, precision="tf32") for seed, train in enumerate((0.4, 0.8))]
    [row] = vgg.precisions(near, exact + wide).data.to_dict("records")
    assert (row["precisions"], row["within the spread of seeds"]) == ("float32, tf32", "no")
    assert float(row["largest distance of the means"]) == 0.08 and float(row["largest range over seeds"]) == 0.04
    third = [record("adam", seed=2), record("adam", seed=2, precision="bf16")]
    third[1] = replace(third[1], outcome="diverged", epochs=third[1].epochs[:1])
    assert "2 seeds, 1 more diverged" in vgg.precisions(near, exact + near + third).data.loc[0, "run"]


def test_the_experiments_beta_is_set_against_the_critical_one_of_the_widest_network():
    def row(model, method, seed, critical):
        return dict(model=model, method=method, seed=seed, critical=critical, at_start=1.0, largest=2.0, growth=3.0)

    measured = pd.DataFrame(
        [row("paper 0.125", "adam_hd", seed, 1e-3) for seed in range(2)]
        + [row("authors 1", "adam_hd", 0, 5e-7), row("authors 1", "sgd_hd", 0, 1e-4)]
    )
    betas = dict(adam_hd=1e-8, sgd_hd=1e-3)
    said = vgg_limits.critical_sentence(measured, betas, 100)
    assert said.startswith("With all of the channels, as in the authors' code, the critical β of 100 iterations over")
    assert said.endswith(" over the experiment's β is 50 for Adam-HD and 0.10 for SGD-HD.")
    table = vgg_limits.critical(measured, betas, 100).data
    assert table["seeds"].tolist() == [2, 1, 1]
    assert table["model as in"][0] == "the paper's text, 1/8 of the channels"
    assert table["critical over that"][1] == "50"
    assert "seeds)" not in table.iloc[0, -1]
    measured.loc[1, "at_start"] = np.nan
    assert vgg_limits.critical(measured, betas, 100).data.iloc[0, -1].endswith(" (1 of 2 seeds)")
    measured.loc[:1, "at_start"] = np.nan
    assert vgg_limits.critical(measured, betas, 100).data.iloc[0, -1] == "none"


def test_longer_runs_that_diverge_below_the_critical_beta_are_told():
    measured = limits(dict(model="paper 0.125", method="sgdn_hd", critical=0.05))
    same = dict(variant="paper", width_factor=0.125, epochs=20)
    runs = [record("sgdn_hd", seed=seed, **same) for seed in range(3)]
    assert vgg_limits.later_failures(measured, dict(sgdn_hd=1e-3), runs) == ""
    lost = [replace(run, outcome="diverged", iterations=240 + run.spec.seed) for run in runs[:2]]
    said = vgg_limits.later_failures(measured, dict(sgdn_hd=1e-3), lost + runs[2:])
    assert said.splitlines()[2:] == [
        "- SGDN-HD as in the paper's text, 1/8 of the channels, with a start at ones in float32, diverged in 2 of its "
        "3 runs, at iteration 240 and 241. The β is 50 times below the critical one."
    ]
    brief = replace(runs[2], iterations=100)  # which tells nothing of what came later
    assert "diverged in 2 of its 2 runs" in vgg_limits.later_failures(measured, dict(sgdn_hd=1e-3), [*lost, brief])
    shorter = [replace(run, spec=run.spec.with_(max_iterations=300)) for run in lost]  # and from another start
    shorter += [replace(run, spec=run.spec.with_(alpha0=1e-2)) for run in lost]
    assert vgg_limits.later_failures(measured, dict(sgdn_hd=1e-3), shorter + runs[2:]) == ""
    forgot = [replace(runs[0], epochs=RELAPSE), *runs[1:]]
    said = vgg_limits.later_failures(measured, dict(sgdn_hd=1e-3), forgot)
    assert "fell back in its one run that lasted so long, in epoch 2." in said
    both = [forgot[0], replace(lost[1], epochs=RELAPSE), runs[2]]
    said = vgg_limits.later_failures(measured, dict(sgdn_hd=1e-3), both)
    assert "diverged in 1 of its 3 runs, at iteration 241 and fell back in its one run that lasted so long" in said
    assert vgg_limits.later_failures(measured.assign(critical=1e-4), dict(sgdn_hd=1e-3), lost) == ""


def test_a_lost_run_that_started_otherwise_than_the_critical_beta_was_measured_is_said_to_have():
    measured = limits(dict(model="authors 0.125", method="sgdn_hd", critical=0.72))
    runs = [record("sgdn_hd", seed=seed, width_factor=0.125, epochs=200) for seed in range(2)]
    other = runs[0].spec.with_(norm_start="uniform", precision="bf16")
    said = vgg_limits.later_failures(
        measured, dict(sgdn_hd=1e-3), [*runs, replace(runs[0], spec=other, epochs=RELAPSE)]
    )
    assert said.splitlines()[2:] == [
        "- SGDN-HD as in the authors' code, 1/8 of the channels, with a uniform start in bf16, fell back "
        "in its one run, in epoch 2. The β is 720 times below the critical one of a start at ones in float32; that of "
        "these runs was not measured."
    ]


def test_a_critical_beta_that_was_not_found_is_no_measurement():
    row = dict(model="authors 1", method="adam_hd", seed=0, critical=float("inf"), works=937.0, at_start=1.0)
    measured, betas = pd.DataFrame([row]), dict(adam_hd=1e-8)
    [told] = vgg_limits.critical(measured, betas, 100).data.to_dict("records")
    assert told["critical β of 100 iterations"] == "above 937" and told["critical over that"] == ""
    below = measured.assign(critical=0.0, fails=1e-9)
    [told] = vgg_limits.critical(below, betas, 100).data.to_dict("records")
    assert told["critical β of 100 iterations"].startswith("below ") and told["critical over that"] == ""
    assert "is not known for Adam-HD, whose was not found (above 937)." in vgg_limits.critical_sentence(
        measured, betas, 100
    )
