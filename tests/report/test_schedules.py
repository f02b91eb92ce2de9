"""A learning rate that adapts is set beside a schedule and a fixed one as the records have it."""

from dataclasses import replace

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from hdlib.report import schedules
from hdlib.report.style import DARK, LIGHT
from hdlib.runs import Record, RunSpec
from hdlib.runs.record import EPOCH_COLUMNS, TRACE_COLUMNS

RATES = (0.1, 0.001)
# training losses from these alpha_0; validation losses are twice as high
BOTH = ("auto", "cosine")
MADE = dict(device="a processor (2 cores)", data="MNIST")
LOSSES = {"none": (0.2, 0.9), "cosine": (0.1, 0.8), 1e-4: (0.3, 0.31), "auto": (0.22, 0.215), BOTH: (0.12, 0.25)}


def record(family, way, rate, loss, seed=0):
    adapts = way not in ("none", "cosine")
    fields = dict(method=f"{family}_hd", beta=way) if adapts else dict(method=family, decay=way)
    if way == BOTH:
        fields |= dict(zip(("beta", "decay"), way, strict=True))
    spec = RunSpec(model="logreg", alpha0=rate, epochs=1, seed=seed, **fields)
    rows = [[0, 0, 2.3, rate, 2.3, 0.1], [1, 469, loss, rate, 2 * loss, 0.9]]
    epochs = pd.DataFrame(rows, columns=EPOCH_COLUMNS)
    outcome = "finished" if loss < float("inf") else "diverged"
    return Record(spec, outcome, 469, epochs, pd.DataFrame(columns=TRACE_COLUMNS), MADE)


@pytest.fixture
def records():
    """Three seeds whose mean is as above, and whose median is lower."""
    return [
        record(family, way, rate, loss * factor, seed)
        for family in schedules.FAMILIES
        for way, losses in LOSSES.items()
        for rate, loss in zip(RATES, losses, strict=True)
        for seed, factor in enumerate((0.9, 0.9, 1.2))
    ]


def test_the_best_cosine_and_the_best_fixed_rate_stand_beside_what_adapts(records):
    sgd, adam = schedules.sentences(records).splitlines()
    assert sgd.startswith(
        "- SGD, training loss: 0.100 with the best cosine, from α₀ = 10⁻¹; 0.200 with the best fixed α"
    )
    assert (
        "0.215 to 0.220 from all α₀ with the automatic β, which is below the cosine from the same α₀ in 1 of 2" in sgd
    )
    assert "; 0.120 to 0.250 from all α₀ with both; 0.300 to 0.310 with the given β." in sgd
    assert adam.startswith("- Adam, ") and adam.endswith("A cosine from a larger α₀ than was tried may end lower.")


def test_who_ends_lower_is_counted_from_the_same_start_near_the_best_one_and_with_the_best(records):
    said = schedules.overall({"logistic regression": records})
    assert "in 2 of 4 cases: in 0 of 2 where α₀ is the cosine's best" in said
    assert "and in 2 of 2 where it is further away" in said
    assert "With the best of 2 α₀ for each, the cosine's is lower in 2 of 2, by a factor of 2.15." in said
    assert said.endswith("So on this model the automatic β is safer where α₀ may be wrong by more than a decade, and a "
                         "cosine is better where a good α₀ is known.")  # fmt: skip
    ahead = [replace(r, epochs=r.epochs.assign(train_loss=0.05)) if r.spec.method == "adam_hd" else r for r in records]
    said = schedules.overall({"logistic regression": ahead})
    assert (
        "the cosine's is lower in 1 of 2, by a factor of 2.15; not for Adam, logistic regression, where that of the "
        "automatic β is 0.500 times the cosine's (whose best α₀ is the largest that was tried)." in said
    )
    assert "So on" not in said  # where the cosine is better in a half alone
    other = {rate: RATES[1 - i] for i, rate in enumerate(RATES)}
    exchanged = [replace(r, spec=r.spec.with_(alpha0=other[r.spec.alpha0])) for r in ahead]
    assert "0.500 times the cosine's." in schedules.overall({"logistic regression": exchanged})
    assert "A cosine from a larger α₀" not in schedules.sentences(exchanged)
    worse = [r for r in records if r.spec.rule != "auto"]
    worse += [record(f, "auto", rate, 0.95, seed) for f in schedules.FAMILIES for rate in RATES for seed in range(3)]
    assert "So on" not in schedules.overall({"logistic regression": worse})


def test_both_together_stand_beside_each_alone(records):
    """Of two alpha_0 both are below the automatic beta from one, and below the cosine from the other; of 2 families."""
    ahead = [
        r
        for r in records
        if (r.spec.method, r.spec.alpha0, schedules._way(r)) == ("adam_hd", 0.001, schedules.TOGETHER)
    ]
    records = [r for r in records if r not in ahead] + [record("adam", BOTH, 0.001, 0.05, r.spec.seed) for r in ahead]
    assert schedules.together({"logistic regression": records}) == (
        "With both, the training loss is lower than with the automatic β alone in 3 of 4 cases (validation loss: 3), "
        "and lower than with the cosine alone from the same α₀ in 2 of 4 cases (validation loss: 2)."
    )
    worse = [replace(r, epochs=r.epochs.assign(train_loss=0.9)) if r.spec.decay == "cosine" else r for r in records]
    assert schedules.together({"one": worse}).endswith("hardly ever gained from a schedule.")
    table = schedules.together_table({"logistic regression": records}).data.set_index("family")
    assert table.loc["Adam"].tolist() == ["logistic regression", "0.233 to 0.545", "0.233 to 0.545", "0.0625 to 1.20",
                                          "0.0625 to 1.20", "100 %"]  # fmt: skip
    falling = [r for r in records if schedules._way(r) == schedules.AUTOMATIC]
    later = pd.DataFrame([[i, 469 * i, 0.2, alpha, 0.4, 0.9] for i, alpha in enumerate((9.0, 0.4, 0.1))])
    fallen = [replace(r, epochs=later.set_axis(EPOCH_COLUMNS, axis=1)) for r in falling]
    table = schedules.together_table({"logistic regression": [r for r in records if r not in falling] + fallen}).data
    assert table["α at the end, automatic β alone"].tolist() == ["25 %", "25 %"]


def test_a_schedule_that_gains_in_a_quarter_of_the_cases_is_not_said_to_gain_hardly_ever(records):
    worse = [replace(r, epochs=r.epochs.assign(train_loss=0.9)) if r.spec.method == "sgd_hd" else r for r in records]
    said = schedules.together({"logistic regression": worse})
    assert "than with the automatic β alone in 1 of 4 cases" in said and "hardly ever" not in said


def test_a_start_a_decade_from_the_best_one_counts_as_near(records):
    records = [replace(r, spec=r.spec.with_(alpha0=0.01)) if r.spec.alpha0 == 0.001 else r for r in records]
    assert "in 2 of 4 where α₀ is the cosine's best or within a decade of it, and in 0 of 0" in schedules.overall(
        {"logistic regression": records}
    )


def test_what_counts_as_near_is_near_the_lowest_of_the_family(records):
    table = schedules.table({"logistic regression": records}).data
    sgd = table[table["family"] == "SGD"].set_index("learning rate")
    assert sgd["near"].tolist() == sgd["near "].tolist() == ["0 of 2", "1 of 2", "0 of 2", "0 of 2", "0 of 2"]
    assert sgd.loc["fixed", ["validation loss, best α₀", "worst α₀ "]].tolist() == ["0.400", "1.80"]
    assert sgd.loc["fixed", ["training loss, best α₀", "worst α₀"]].tolist() == ["0.200", "0.900"]
    note = schedules.table({"logistic regression": records}).note
    assert "3 seeds" in note and "the same α" not in note
    alike = [replace(r, epochs=r.epochs.assign(train_loss=0.2)) if r.spec.rule == "auto" else r for r in records]
    note = schedules.table({"logistic regression": alike}).note
    assert "With the automatic β SGD-HD from α₀ = 10⁻¹ and 10⁻³ ends at the same losses" in note
    both = schedules.table({"one": alike, "another": alike, "a third": records}).note
    assert both.count("ends at the same losses") == note.count("ends at the same losses")
    assert "(one and another): the limit on the first step" in both


def with_prodigy(records, ends, found=2e-3):
    """Return the records beside those of Prodigy: training losses by d_0, of a cosine a tenth less."""
    beside = []
    for first, loss in ends.items():
        for decay, factor in (("none", 1.0), ("cosine", 0.9)):
            spec = RunSpec(model="logreg", method="prodigy", alpha0=first, decay=decay, epochs=1)
            rows = [[0, 0, 2.3, first, 2.3, 0.1], [1, 469, factor * loss, max(first, found), 2 * factor * loss, 0.9]]
            epochs = pd.DataFrame(rows, columns=EPOCH_COLUMNS)
            beside.append(Record(spec, "finished", 469, epochs, pd.DataFrame(columns=TRACE_COLUMNS), MADE))
    return records + beside


def test_prodigy_from_its_own_start_stands_beside_what_adam_reaches(records):
    models = {"logistic regression": with_prodigy(records, {1e-6: 0.15, 1e-3: 0.16, 1e-1: 0.7})}
    table = schedules.beside_prodigy(models).data.set_index("learning rate")
    assert table["training loss"].to_dict() == {
        "Adam, fixed α, best α₀": "0.200",
        "Adam, cosine, best α₀": "0.100",
        "Adam-HD, automatic β, best α₀": "0.215",
        "Adam-HD, automatic β, worst α₀": "0.220",
        "Prodigy, d₀ = 10⁻⁶": "0.150",
        "Prodigy, cosine, d₀ = 10⁻⁶": "0.135",
    }
    assert table["validation loss"].tolist() == ["0.400", "0.200", "0.430", "0.440", "0.300", "0.270"]
    assert schedules.estimates(models) == (
        "- Logistic regression: from d₀ = 10⁻⁶ its α came to 0.00200 in the last epoch; the best fixed one is 10⁻¹. "
        "From d₀ = 10⁻¹ it stayed where it began."
    )
    assert schedules.prodigy_in_short(models) == (
        "In 2 losses Prodigy is set beside Adam-HD with the automatic β from all α₀. Without a schedule it ends below "
        "all in 2; along a cosine below all in 2."
    )
    between = {"one": with_prodigy(records, {1e-6: 0.2345})}  # a cosine's is a tenth lower, and below 0.215
    assert schedules.prodigy_in_short(between).endswith(
        "Without a schedule it ends above all in 2; along a cosine below all in 2."
    )
    within = {"one": with_prodigy(records, {1e-6: 0.2175})}
    assert "it ends between the best and the worst in 2; along" in schedules.prodigy_in_short(within)
    assert schedules.beside_prodigy({"one": records}).data.empty and schedules.estimates({"one": records}) == ""


def test_prodigy_is_of_adams_family_in_tables_and_figures(records):
    runs = with_prodigy(records, {1e-6: 0.15, 1e-3: 0.09})
    table = schedules.table({"logistic regression": runs}).data.set_index(["family", "learning rate"])
    assert table.loc[("Adam", "Prodigy"), ["training loss, best α₀", "worst α₀", "near"]].tolist() == [
        "0.0900", "0.150", "0 of 2"]  # fmt: skip
    assert table.loc[("Adam", "Prodigy, cosine"), "near"] == "1 of 2" and ("SGD", "Prodigy") not in table.index
    figure = schedules.figure(runs, "schedules").draw(LIGHT)
    sgd, adam, *below = figure.axes
    assert [axis.get_xlabel() for axis in below] == [
        "initial learning rate α₀",
        "initial learning rate α₀, Prodigy's d₀",
    ]
    lines = {line.get_label(): line for line in adam.lines}
    assert lines["Prodigy"].get_xdata().tolist() == [1e-6, 1e-3]
    assert lines["Prodigy"].get_ydata().tolist() == pytest.approx([0.15, 0.09])
    assert lines["Prodigy, cosine"].get_ydata().tolist() == pytest.approx([0.135, 0.081])
    assert not any("Prodigy" in line.get_label() for line in sgd.lines)
    plt.close("all")


def test_one_family_alone_without_a_given_beta_has_a_figure_and_sentences(records):
    runs = [r for r in records if r.spec.method.startswith("adam") and r.spec.rule != "additive"]
    runs += [r for r in records if r.spec.method == "adam"]
    [said] = schedules.sentences(runs).splitlines()
    assert said.startswith("- Adam, training loss: ") and " from all α₀ with both. " in said and "given" not in said
    assert "the cosine's is lower, by a factor of 2.15." in schedules.overall({"one": runs})
    drawn = schedules.figure(runs, "one family").draw(LIGHT)
    above, below = drawn.axes
    assert [text.get_text() for text in drawn.legends[0].texts] == schedules._ways(schedules.ends(runs))
    assert above.get_title() == "Adam" and below.get_xlabel() == "initial learning rate α₀"
    plt.close("all")
    few = [replace(r, spec=r.spec.with_(validate_every=2)) for r in runs]
    table = schedules.together_table({"one": few})
    assert not any("at the end" in column for column in table.data) and "at the end" not in table.note
    assert "α at the end, automatic β alone" in schedules.together_table({"one": runs}).data


def test_a_divergence_is_told_and_drawn(records):
    lost = [
        record("sgd", 1e-4, 0.1, float("inf"), r.spec.seed)
        if (r.spec.method, r.spec.beta, r.spec.rule, r.spec.alpha0) == ("sgd_hd", 1e-4, "additive", 0.1)
        else r
        for r in records
    ]
    assert "0.310 to diverged" in schedules.sentences(lost).splitlines()[0]
    figure = schedules.figure(lost, "schedules", "A caption.")
    assert figure.data["mean"].max() == float("inf")
    assert figure.caption == (
        "A caption. Lines are means over seeds, bands reach from the lowest to the highest. A cross at the top: a run "
        "diverged."
    )
    kept = schedules.figure(records, "schedules", "A caption.")
    assert "cross" not in kept.caption
    assert (kept.data["low"] < kept.data["mean"]).all() and (kept.data["mean"] < kept.data["high"]).all()
    sgd, adam, valid, _ = kept.draw(LIGHT).axes
    assert (sgd.get_title(), adam.get_title(), valid.get_ylabel()) == ("SGD", "Adam", "validation loss")
    lines = {line.get_label(): line.get_ydata().tolist() for line in sgd.lines}
    assert lines["fixed"] == pytest.approx([0.9, 0.2]) and lines["HD, automatic β"] == pytest.approx([0.215, 0.22])
    band = sgd.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((0.2 * 0.9, 0.9 * 1.2))
    plt.close("all")
    assert all("HD, automatic" in figure.svg(theme) for theme in (LIGHT, DARK))
