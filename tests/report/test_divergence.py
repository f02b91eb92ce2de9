"""What the chapter on divergence says follows from the steps, critical betas and runs that it is given."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from test_guard_comparison import run

from hdlib.report import critical, divergence, guards
from hdlib.report.style import LIGHT
from hdlib.runs import RunSpec
from hdlib.runs.critical import PREDICTORS
from hdlib.runs.record import TRACE_COLUMNS

MADE = {"device": "another processor", "data": "made up"}
FIRST = RunSpec(model="mlp", method="adam_hd", alpha0=1e-3, beta=1e-4, epochs=1, seed=7)
PAGE = (Path(__file__).parents[2] / "notebooks" / "guards.md").read_text()


@pytest.fixture
def steps():
    """A run that explodes from its third step on and overflows in its sixth, with a direction of wandering length."""
    frame = pd.DataFrame(
        dict(
            step=range(1, 7),
            loss=[2.3, 2.1, 2.4, 1e60, 1e155, np.nan],
            grad_l1=[800.0, 900, 3e3, 1e40, 1e100, np.nan],
            grad_l2=[1.0, 2, 10, 1e30, 1e90, np.nan],
            direction_l2=[1339.0, 700, 650, 720, 600, np.nan],
            slope=[-800.0, 1, 1, 1, 1, np.nan],
            hypergrad=[0.0, -40, 500, -1e20, 1e90, np.nan],
            kappa=[np.nan, 2e5, 1e5, 1e6, 1e7, np.nan],
            alpha=[1e-3, 5e-3, -0.05, 6.0, -1e130, np.nan],
        )
    )
    frame.attrs = {"made": MADE}
    return frame


@pytest.fixture
def measured():
    """Two models: one whose curvature is largest at once and one where it grows tenfold; SGD-HD fails early."""
    rows = [
        ("logistic regression", "adam_hd", 0, 8e-4, 4e-5, 4e-5, 5e-4),
        ("2 layers of 1000 (the paper's)", "adam_hd", 0, 1e-5, 2e-5, 2e-6, 1e-5),
        ("2 layers of 1000 (the paper's)", "sgd_hd", 0, 0.1, 400.0, 40.0, 500.0),
    ]
    frame = pd.DataFrame(rows, columns=["model", "method", "seed", "critical", *PREDICTORS])
    frame = frame.assign(learnt=0.1, factor=2.0, iterations=100)
    runs = dict(count=24, precision=["float32"], device=["a processor"], data=["made up"])
    frame.attrs = {"steps": [MADE["device"]], "runs": runs}
    return frame


def test_the_first_steps_end_with_the_last_finite_one_and_only_what_grows_is_said_to(steps):
    shown = divergence.first_steps(steps).data
    assert list(shown["step"]) == [1, 2, 3, 4, 5] and not (shown == "").to_numpy().any()
    said = divergence.explosion(steps)
    assert "until step 5. From step 3 on, the loss, the gradient and the size of α grow" in said
    assert "the length of D stays between 600 and 720" in said
    assert divergence.explosion(steps[:5]) == "The numbers are finite for all of its 5 steps."


def test_the_axes_of_the_first_steps_have_round_exponents(steps):
    axes = divergence.first_steps_figure(steps, FIRST, "name", "").draw(LIGHT).axes
    assert np.all(np.round(np.log10(axes[1].get_yticks())) % 10 == 0)
    assert all(2 < len(axis.get_yticks()) < 7 for axis in axes[:2])
    ticks = axes[2].get_yticks()
    assert np.allclose(ticks, -ticks[::-1]) and 0 in ticks and len(ticks) < 11


def test_the_first_steps_are_drawn_as_far_as_one_sees_them_and_alpha_with_its_sign(steps):
    figure = divergence.first_steps_figure(steps, FIRST, "name", "", last=4)
    axes = figure.draw(LIGHT).axes
    assert axes[2].lines[0].get_ydata().tolist() == [1e-3, 5e-3, -0.05, 6.0]
    assert "alpha through 0.00100, 0.00500, −0.0500, 6.00" in figure.alt and len(figure.data) == 5


def test_each_figure_of_single_steps_says_what_was_run(steps, measured):
    line = pd.DataFrame({"length": np.linspace(-1, 3, 9), "loss": np.linspace(-1, 3, 9) ** 2, "taken": 1e-3})
    line.attrs = {"made": MADE}
    one = "One run, seed 7, single steps, float64, another processor. Data: made up."
    assert divergence.first_steps_figure(steps, FIRST, "name", "").note == one
    assert divergence.parabola(line, steps, FIRST, "name", "").note == one
    assert critical.prediction(measured, "name", "").note == (
        "3 critical β, one seed, bisected with 24 runs of at most 100 iterations, float32, a processor. "
        "Curvatures: single steps, float64, another processor. Data: made up."
    )


def test_beta_is_set_against_the_limit_of_each_method(steps):
    sgd = steps.assign(kappa=[np.nan, 1.0, 1, 1, 1, np.nan], slope=-4.0, direction_l2=2.0)
    said = divergence.sizes_sentences(steps, sgd, 1_796_010, 1e-4)
    assert "‖D‖² is 1.8 × 10⁶ for Adam, against 1,796,010 parameters, and 4.00 for SGD." in said
    assert "is 200,000 for Adam and 1.00 for SGD, 200,000 times less." in said
    assert "For Adam 2/κ is 1.0 × 10⁻⁵, and β = 10⁻⁴ breaks the condition: it is 10 times that." in said
    assert "For SGD 2/κ is 2.00, and the same β meets the condition: it is 20,000 times below that." in said


def test_the_page_is_summed_up_in_numbers(steps, measured):
    sgd = steps.assign(kappa=1.0)
    said = divergence.summary(steps, sgd, 1_796_010, measured, "2 layers of 1000 (the paper's)")
    assert "1,796,010 entries" in said and "200,000 times that of SGD" in said
    assert "limits are only 10,000 times apart" in said
    assert "fails there, within 100 iterations, above a β of about 1.0 × 10⁻⁵;" in said


def test_alpha_descends_on_the_parabola_that_was_measured(steps):
    """Of the curvature 50, lowest at 0.04: 0.8 / kappa leaves a fifth of the distance, 2.2 / kappa 1.2 times it."""
    length = np.linspace(-0.04, 0.16, 21)
    line = pd.DataFrame({"length": length, "loss": 25 * (length - 0.04) ** 2, "taken": 1e-3})
    line.attrs = {"made": MADE}
    figure = divergence.parabola(line, steps, FIRST, "name", "")
    paths = figure.data.groupby("what")["length"].apply(list)
    assert paths["alpha, beta = 0.8 / kappa"][:3] == pytest.approx([0, 0.032, 0.0384])
    assert paths["alpha, beta = 2.2 / kappa"][:3] == pytest.approx([0, 0.088, -0.0176])
    assert "The κ of the titles is that of the parabola, 50.0; a Hessian-vector product" in figure.caption


def test_runs_that_diverged_are_counted_with_their_iterations():
    def runs(*ends, alpha0=1e-3):
        return [
            run(0.5, alpha0=alpha0, beta=1e-4, seed=seed, max_iterations=30, model="mlp", iterations=at or 30,
                outcome="diverged" if at else "finished")
            for seed, at in enumerate(ends)
        ]  # fmt: skip

    some = runs(5, None, 7) + runs(None, alpha0=1e-1)
    told = "the perceptron with β = 10⁻⁴, of 30 iterations,"
    assert divergence.blow_up_sentence(some) == (f"Of 4 Adam-HD runs of {told} 2 diverged, at iteration 5 to 7.")
    assert divergence.blow_up_sentence(runs(5, 5)) == f"All 2 Adam-HD runs of {told} diverged, at iteration 5."
    assert divergence.blow_up_sentence(runs(None)) == f"Of one Adam-HD run of {told} none diverged."
    table = divergence.blow_ups(some).data
    assert table[["α₀", "runs", "diverged", "at iteration"]].to_numpy().tolist() == [
        ["10⁻¹", 1, 0, ""],
        ["10⁻³", 3, 2, "5 to 7"],
    ]


def test_it_is_counted_where_the_first_curvature_is_not_the_largest(measured):
    said = critical.curvature_growth(measured)
    assert "with Adam-HD in 1 of 2 models, by a factor of 10.0 (not in logistic regression)" in said
    assert "with SGD-HD in 1 of 1 model, by a factor of 10.0." in said


def test_the_limits_of_two_models_are_set_side_by_side(measured):
    said = critical.limits_of_adam(measured, ["logistic regression", "2 layers of 1000 (the paper's)"])
    assert "0.000800 for logistic regression and 1.0 × 10⁻⁵ for 2 layers" in said and "a factor of 80 between" in said


def test_a_model_that_the_best_predictor_misses_does_not_count_for_the_networks_with_hidden_layers(measured):
    measured.loc[measured["model"] == "logistic regression", "growth"] = 5e-6
    adam, sgd = critical.best_predictor(measured).split("\n\n")
    assert adam == (
        f"For Adam-HD the best of the three is {PREDICTORS['growth']}: within a factor of two in 50 % of the runs, and "
        "in 100 % of those of networks with hidden layers. By the median over seeds it misses logistic regression (160 "
        "times the prediction)."
    )
    assert "had not got far in its 100 steps (its loss fell in 2 layers of 1000 (the paper's): by 10 %)" in sgd


def test_a_boundary_is_the_prediction_that_suits_its_method_best_and_what_was_measured(measured):
    more = pd.concat([measured, measured.assign(seed=1, critical=3 * measured["critical"])])
    found = critical.boundaries(more)["2 layers of 1000 (the paper's)"]
    assert found["adam_hd"] == critical.Boundary(pytest.approx(2e-5), 100, 1e-5, PREDICTORS["growth"])


def test_it_is_said_at_once_how_well_the_critical_beta_is_predicted_and_by_what(measured):
    more = measured.assign(growth=measured["critical"]).assign(largest=[1.0, 1.0, 0.1], at_start=[8e-4, 1.0, 1.0])
    assert critical.answer(more) == (
        "For Adam-HD it is predicted within a factor of two in 100 % of the runs by [how deviations grow over a "
        "stretch of steps](#predicted-and-measured), with a growth factor that is fitted to other models and not "
        f"explained; {PREDICTORS['at_start']}, does it in 50 %. For SGD-HD the growth of deviations does not beat "
        f"{PREDICTORS['largest']} (100 % against 100 %)."
    )


def test_two_over_kappa_is_given_a_constant_of_the_other_models_too():
    rows = [("a", 1.0, 4.0), ("b", 2.0, 8.0), ("c", 3.0, 30.0)]
    known = pd.DataFrame(rows, columns=["model", "largest", "critical"]).assign(method="adam_hd", at_start=np.nan)
    assert critical.scaled(known)["largest"].tolist() == [1.0 * 7, 2.0 * 7, 3.0 * 4]
    assert critical.models_within_two(critical.scaled(known), "adam_hd", "largest") == (2, 3)


def test_the_growth_that_suits_each_method_is_told_with_its_range(measured):
    told = "The growth that suits the other models best is 2 to 100 for Adam-HD and 1,000 for SGD-HD."
    assert critical.growths(measured.assign(factor=[100.0, 2.0, 1e3])) == told
    assert "best is 2, the smallest that was tried, for Adam-HD" in critical.growths(measured)
    assert critical.growths(measured[1:]) == ""


def test_predictors_that_are_equally_good_are_all_named(measured):
    alike = measured.assign(at_start=measured["growth"])
    titles = f"{PREDICTORS['at_start']}: within a factor of two in 100 % of the runs, as is {PREDICTORS['growth']}"
    assert f"For Adam-HD the best of the three is {titles}" in critical.best_predictor(alike)


def test_the_page_on_the_critical_beta_begins_with_its_range(measured):
    assert critical.span(measured) == (
        "In 2 models the critical β is 1.0 × 10⁻⁵ to 0.000800 for Adam-HD and 0.100 for SGD-HD, by medians over seeds."
    )
    assert "no finite value" not in critical.span(measured.assign(critical=np.inf))


def test_a_model_that_a_method_was_not_measured_with_is_named(measured):
    assert "; SGD-HD was not measured with logistic regression." in critical.prediction_lead(measured)


def test_a_measured_beta_far_below_the_predicted_one_is_said_to_be_times_below_it(measured):
    said = critical.best_predictor(measured)
    assert "2 layers of 1000 (the paper's) (4,000 times below the prediction)" in said and "0.00" not in said


def test_a_critical_beta_that_was_not_met_counts_as_one_that_was_not_predicted(measured):
    [row] = measured.index[measured["method"] == "sgd_hd"]
    lost = pd.concat([measured, measured.loc[[row]].assign(critical=np.inf)])
    share = critical.within_two(lost, "sgd_hd", "at_start")
    table = critical.predictors_table(lost).data.set_index(["method", "prediction"])
    within = table.loc[("SGD-HD", PREDICTORS["at_start"]), "within a factor of two"]
    assert share <= 0.5 and within == f"{100 * share:.0f} % of 2 runs"


def test_the_table_of_predictors_has_the_measured_over_the_predicted_beta(measured):
    table = critical.predictors_table(measured).data.set_index(["method", "prediction"])
    assert list(table.loc[("SGD-HD", PREDICTORS["largest"]), ["median", "10 % to 90 %"]]) == [
        "0.00250",
        "0.00250 to 0.00250",
    ]


@pytest.mark.parametrize("beta, said", [(np.inf, "above every β"), (0.0, "below every β")])
def test_a_critical_beta_that_was_not_met_is_no_number(measured, beta, said):
    sought = measured.assign(critical=beta)
    assert f"{said} that was tried" in critical.best_predictor(sought)
    assert critical.limits_of_adam(sought, list(measured["model"])) == "For Adam-HD no critical β was measured."
    assert critical.prediction(sought, "name", "").svg(LIGHT)
    bracket = pd.DataFrame(dict(critical=beta, works=[0.0, 900.0], fails=[1e-5, 1e-4]))
    assert critical.critical_beta(bracket) == ("above 900" if beta else "below 1.0 × 10⁻⁵")


def test_the_table_of_predictions_has_one_short_column_for_each_and_a_note_that_explains_it(measured):
    table = critical.prediction_table(measured)
    assert list(table.data) == ["model", "method", "measured", "÷ first", "÷ largest", "÷ growth"]
    assert all(title in table.note for title in PREDICTORS.values())


def test_measured_critical_betas_are_drawn_over_predicted_ones(measured):
    drawn = critical.prediction(measured, "name", "").draw(LIGHT)
    for axis, column in zip(drawn.axes, PREDICTORS, strict=True):
        points = {(x, y) for line in axis.lines[1:] for x, y in zip(*line.get_data(), strict=True)}
        assert points == set(zip(measured[column], measured["critical"], strict=True))


def test_a_prediction_that_is_little_better_hardly_beats_the_other(measured):
    many = pd.concat([measured[1:2]] * 20).assign(critical=1.0, at_start=9.0, growth=1.0, largest=[9.0, *[1.0] * 19])
    said = critical.answer(many)
    assert said.startswith(
        f"For Adam-HD the growth of deviations hardly beats {PREDICTORS['largest']} (100 % against 9"
    )


def test_a_prediction_is_off_by_the_middle_and_the_ends_of_its_ratios(measured):
    many = pd.concat([measured[1:2]] * 11).assign(critical=[float(i) for i in range(1, 12)], largest=1.0)
    table = critical.predictors_table(many).data.set_index("prediction")
    assert table.loc[PREDICTORS["largest"], ["median", "10 % to 90 %"]].tolist() == ["6.00", "2.00 to 10.0"]


# -- phase diagrams


def phase(**fields):
    """Return a run of each method, and the baselines with a loss of 1."""
    baselines = [run(1.0, method) for method in ("sgd", "sgdn", "adam")]
    return baselines + [run(0.5, method, **fields) for method in guards.HD]


def test_what_became_of_a_grid_is_counted_and_told_from_which_beta_on_training_diverges():
    lost = [r for beta in (1e-3, 1e-2) for r in phase(beta=beta, outcome="diverged", iterations=9)[3:]]
    cells = [*phase(beta=1e-4), *lost]
    assert divergence.phase_sentences(cells).splitlines()[0] == (
        "- Adam-HD: of 3 pairs of α₀ and β, 2 diverged (the smallest β is 0.00100) and none rang; 1 ended below the "
        "baseline from the same α₀, ringing or not."
    )
    row = divergence.first_divergences({"a": cells, "b": phase(beta=1e-4)}).data.set_index("model")["Adam-HD"]
    assert row.to_dict() == {"a": "β from 0.00100; 2 of 3", "b": "none; 0 of 1"}


def test_where_models_first_diverge_is_told_for_each_method_near_a_thousandth_and_from_any_start():
    lost = dict(outcome="diverged", iterations=9)
    rung = [replace(record, trace=pd.DataFrame([[469, 0.5, -1.0, 0.0]], columns=TRACE_COLUMNS))
            for record in phase(beta=1e-4)[3:]]  # fmt: skip
    calm = [*phase(beta=1e-4)[:3], *rung]
    far = [run(1.0, "adam", alpha0=0.1), run(0.5, alpha0=0.1, beta=1e-4, **lost)]
    cells = [*phase(beta=1e-4), *phase(beta=1e-3)[3:], *far, *phase(beta=1e-2, **lost)[4:]]
    assert divergence.phase_lead({"a network": cells, "a line": calm}) == (
        "On a network, from α₀ = 0.00100, the smallest β of the grid at which training diverges is none with SGD-HD, "
        "0.0100 with SGDN-HD and 0.0100 with Adam-HD; from any α₀, none with SGD-HD, 0.0100 with SGDN-HD and 0.000100, "
        "the smallest that was tried, with Adam-HD. On a line α rings, that is, it is negative at times, at 3 of 3 "
        "pairs of α₀ and β, and none diverged."
    )


def test_the_table_of_first_divergences_says_how_long_runs_are_and_which_are_longer():
    baselines = ("sgd", "sgdn", "adam")
    short, longer = (
        [run(1.0, method, max_iterations=most) for method in baselines] + phase(beta=1e-4, max_iterations=most)[3:]
        for most in (100, 300)
    )
    note = divergence.first_divergences({"a": short, "b": longer, "c": short}).note
    assert note.endswith("Runs are of 100 iterations; those of b, of 300 iterations.")


def test_a_cell_is_what_half_of_its_seeds_did_and_is_set_against_the_median_of_its_baseline():
    base = [run(loss, "adam", seed=seed) for seed, loss in enumerate((0.1, 0.4, 2.0))]
    cells = {1e-4: ("finished",) * 2, 1e-3: ("finished", "diverged")}
    ours = [run(0.5, beta=b, seed=s, outcome=o) for b, outcomes in cells.items() for s, o in enumerate(outcomes)]
    found = divergence.phases(base + ours).set_index("beta")
    assert found["kind"].to_dict() == {1e-4: "worse", 1e-3: "diverged"} and set(found["baseline"]) == {0.4}


def test_a_cell_rings_if_half_of_its_seeds_do_and_is_better_only_below_its_baseline():
    base = [run(0.5, "adam", seed=seed) for seed in range(2)]
    ours = [run(0.5, beta=beta, seed=seed) for beta in (1e-4, 1e-3) for seed in range(2)]
    low = pd.DataFrame([[469, 0.5, -1e-3, 0.0]], columns=TRACE_COLUMNS)
    ours[-1] = replace(ours[-1], trace=low)
    assert divergence.phases(base + ours).set_index("beta")["kind"].to_dict() == {1e-4: "worse", 1e-3: "ringing"}


def legend(figure):
    [found] = figure.legends
    return {text.get_text(): handle for text, handle in zip(found.get_texts(), found.legend_handles, strict=True)}


def test_the_legend_of_a_phase_diagram_shows_the_colours_that_occur_and_no_others():
    marks = {"a": {"adam_hd": critical.Boundary(2e-3, 100, 3e-3, "2 / κ")}}
    late = phase(beta=1e-3, outcome="diverged", iterations=60)
    lost = late + phase(beta=1e-2, outcome="diverged", iterations=5)[3:]
    diverged = divergence.phase_diagrams({"a": lost}, marks, "name", "Caption.")
    figure = diverged.draw(LIGHT)
    swatches = legend(figure)
    assert list(swatches) == [
        "diverged, earliest: iteration 5",
        "diverged, latest: iteration 60",
        "measured critical β",
        "predicted critical β",
    ]
    cells = figure.axes[0].collections[0].get_array().reshape(-1, 3)
    assert np.allclose(cells, [to_rgb(swatches[name].get_facecolor()) for name in list(swatches)[1::-1]])
    learnt = divergence.phase_diagrams({"a": phase(beta=1e-3)}, {}, "name", "Caption.")
    assert list(legend(learnt.draw(LIGHT))) == ["lower loss than the baseline"]


def test_a_cell_in_which_few_seeds_diverged_does_not_shade_the_others():
    lost = phase(beta=1e-3, outcome="diverged", iterations=60) + phase(beta=1e-2, outcome="diverged", iterations=5)[3:]
    minority = [run(0.5, "adam_hd", beta=1e-4, seed=seed) for seed in (1, 2)]
    minority += [run(0.5, "adam_hd", beta=1e-4, outcome="diverged", iterations=2)]
    figure = divergence.phase_diagrams({"a": lost + minority}, {}, "name", "Caption.").draw(LIGHT)
    swatches = legend(figure)
    cells = figure.axes[2].collections[0].get_array().reshape(-1, 3)
    learnt, earliest, latest = (to_rgb(handle.get_facecolor()) for handle in swatches.values())
    assert [name.partition(":")[0] for name in swatches][1:] == ["diverged, earliest", "diverged, latest"]
    assert np.allclose(cells, [learnt, latest, earliest])


def test_a_phase_diagram_marks_critical_betas_where_they_were_measured_and_says_which_are_missing_or_out_of_sight():
    marks = {
        "a": {
            "sgd_hd": critical.Boundary(np.inf, 100, 9.0, "largest κ"),
            "adam_hd": critical.Boundary(1e-3, 100, 3e-3, "growth"),
        }
    }
    drawn = divergence.phase_diagrams({"a": phase(beta=1e-3)}, marks, "name", "Caption.")
    assert "for SGD-HD by largest κ and for Adam-HD by growth. SGDN-HD has no marks" in drawn.caption
    assert "Not in sight: the measured and the predicted one of SGD-HD with a." in drawn.caption
    panels = drawn.draw(LIGHT).axes
    found = [[(*line.get_xdata(), *line.get_ydata()) for line in panel.lines[1:]] for panel in panels]
    assert found == [[], [], [(1e-3, 3e-3), (1e-3, 1e-3)]]


def test_the_text_of_a_phase_diagram_says_in_two_sentences_what_is_seen(measured):
    lost = phase(beta=1e-3) + phase(beta=1e-2, outcome="diverged", iterations=5)[3:]
    one = divergence.phase_diagrams({"a": lost}, {}, "name", "").alt
    each = "1 diverged and 0 rang with"
    counts = f"{each} SGD-HD, {each} SGDN-HD and {each} Adam-HD"
    assert one == f"What became of runs by alpha_0 and beta, a map for each method, of a. Of 2 pairs each, {counts}."
    early = [*phase(beta=1e-3), run(0.5, "adam_hd", beta=1e-4, outcome="diverged", iterations=5)]
    two = divergence.phase_diagrams({"a": lost, "b": early}, {}, "name", "").alt
    assert two.endswith("of 2 models. Adam-HD diverges at a smaller beta than SGD-HD in 1 of 2 models.")


def test_a_phase_diagram_says_what_a_critical_beta_is_and_marks_it(measured):
    marks = critical.boundaries(measured)
    drawn = divergence.phase_diagrams({"logistic regression": phase(beta=1e-3)}, marks, "name", "Caption.")
    assert "above it a run of 100 iterations diverges or ends with a loss a fifth above" in drawn.caption
    lost = [*phase(beta=1e-3), run(0.5, "adam_hd", beta=1e-4, outcome="diverged", iterations=5)]
    other = divergence.phase_diagrams({"logistic regression": lost}, marks, "name", "Caption.").caption
    assert "below the cells that diverged" in other and "that diverged" not in drawn.caption
    figure = drawn.draw(LIGHT)
    assert [line.get_ydata() for line in figure.axes[2].lines[-1:]] == [[8e-4]]
    assert list(legend(figure))[-2:] == ["measured critical β", "predicted critical β"]


def test_critical_betas_that_are_predicted_alike_are_named_together():
    marks = {"a": {method: critical.Boundary(1e-3, 100, 1e-3, "growth") for method in ("sgd_hd", "adam_hd")}}
    caption = divergence.phase_diagrams({"a": phase(beta=1e-3)}, marks, "name", "Caption.").caption
    assert "for SGD-HD and Adam-HD by growth" in caption


# -- guards


@pytest.fixture
def compared():
    """Three rules with Adam-HD: one loses a run, one ends at worst at ten times the best fixed rate, one at twice."""
    guarded = {
        "plain": [run(0.3, beta=1e-4), run(0.3, beta=1e-3, outcome="diverged")],
        "bounds": [run(0.3, beta=1e-4), run(3.0, beta=1e-3)],
        "automatic": [run(0.6, beta="auto")],
    }
    return guarded, [run(0.3, "adam"), run(0.5, "adam", alpha0=1e-2)]


def test_each_guard_has_its_worst_cell_in_its_own_row_and_a_cross_where_a_run_diverged(compared):
    axis = guards.figure(*compared, "name", "").draw(LIGHT).axes[list(guards.HD).index("adam_hd")]
    names = [label.get_text() for label in axis.figure.axes[0].get_yticklabels()]
    dots, crosses = (next(line for line in axis.lines if line.get_marker() == marker) for marker in "oX")
    found = {names[int(y)]: x for x, y in zip(*dots.get_data(), strict=True)}
    assert found == pytest.approx({"bounds": 10, "automatic": 2})
    assert [names[int(y)] for y in crosses.get_ydata()] == ["the paper's rule"]
    assert guards.verdict(*compared).startswith(
        "Of the 3 rules, only *the paper's rule* had runs that diverged. Over the three methods the worst loss of "
        "*automatic* is the smallest, 2.00 times that of the best fixed rate; then comes *bounds* with 10.0."
    )


def test_the_table_of_guards_counts_cells_and_names_their_range(compared):
    table = guards.table(*compared).data.set_index("guard")
    assert table.loc["the paper's rule", "diverged"] == "1 of 2"
    assert table.loc["bounds", ["below the fixed rate", "all ÷ best fixed"]].tolist() == ["0 of 2", "1.00 to 10.0"]


def test_the_page_says_what_a_cell_is_and_which_guard_to_take_before_the_first_table_of_them():
    first = PAGE.index("guards.table")
    assert PAGE.index("## Which to take") < first and PAGE.index("A *cell* is one pair of α₀ and β") < first
