"""Why a hypergradient method diverges, when, and what keeps it from doing so: figures, tables and sentences.

Functions of recorded runs and recorded probes (`hdlib.runs.probe`) alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from hdlib.report import frames
from hdlib.report.performance import read
from hdlib.report.style import LABELS, Figure, Table, Theme, power_of_ten, scientific
from hdlib.runs import BASELINE, Record, RunSpec
from hdlib.runs.divergence import GROWTHS

HD = tuple(BASELINE)
KINDS = ("better", "worse", "ringing", "diverged")
KIND_COLORS = {"better": "#2a9d8f", "worse": "#e9c46a", "ringing": "#e07a3f", "diverged": "#6c5b7b"}
KIND_NAMES = {
    "better": "lower loss than the baseline",
    "worse": "not lower",
    "ringing": "rang: α negative at times",
    "diverged": "diverged",
}
Boundaries = dict[str, dict[str, tuple[float, str]]]  # a predicted beta and by what, by model and method
SHORT = {"at_start": "first", "largest": "largest", "growth": "growth"}  # the predictors, as heads of a table


def outcomes(records: Sequence[Record]) -> pd.DataFrame:
    """Return a row per run: method, alpha0, beta, seed, diverged, iterations, the lowest alpha, the final loss.

    The final loss is the mean over the last fifth of the traced iterations, or the last epoch's where nothing was
    traced; that of a diverged run is infinite.
    """
    rows = []
    for record in records:
        spec, diverged = record.spec, record.outcome == "diverged"
        iterations, losses, alphas = (record.trace[name].to_numpy() for name in ("iteration", "loss", "alpha"))
        if diverged:
            loss = np.inf
        elif len(losses):
            loss = losses[iterations > 0.8 * record.iterations].mean(dtype=float)
        else:
            loss = record.epochs["train_loss"].iloc[-1]
        rows.append(
            dict(
                method=spec.method,
                alpha0=spec.alpha0,
                beta=spec.beta,
                seed=spec.seed,
                diverged=diverged,
                iterations=record.iterations,
                lowest=np.fmin.reduce(alphas, initial=np.nan),
                loss=loss,
            )
        )
    return pd.DataFrame(rows)


# -- what happens


def blow_ups(records: Sequence[Record]) -> Table:
    """Return, for each initial learning rate, how many runs diverged and at which iteration."""
    rows = []
    for alpha0, runs in sorted(outcomes(records).groupby("alpha0"), reverse=True):
        lost = runs[runs["diverged"]]
        rows.append(
            {
                "α₀": power_of_ten(alpha0),
                "runs": len(runs),
                "diverged": len(lost),
                "at iteration": _span(lost["iterations"]),
                "lowest α before the end": scientific(runs["lowest"].min()),
            }
        )
    return Table(pd.DataFrame(rows), frames.note(records))


def blow_up_sentence(records: Sequence[Record]) -> str:
    """Say how many runs diverged and when."""
    runs = outcomes(records)
    lost = runs[runs["diverged"]]
    model = "the perceptron" if records[0].spec.model == "mlp" else "logistic regression"
    text = f"Of {len(runs)} Adam-HD runs of {model} with β = {power_of_ten(records[0].spec.beta)}, "
    text += f"{len(lost) or 'none'} left the finite numbers"
    return f"{text}, at iteration {_span(lost['iterations'])}." if len(lost) else f"{text}."


def first_steps(steps: pd.DataFrame) -> Table:
    """Return the first steps of a run, a row each, as far as the numbers are finite."""
    columns = {"step": "step", "loss": "loss", "grad_l2": "‖g‖", "direction_l2": "‖D‖", "hypergrad": "h", "alpha": "α"}
    shown = _finite(steps)[list(columns)].rename(columns=columns)
    for name in shown.columns[1:]:
        shown[name] = [scientific(value) for value in shown[name]]
    return Table(shown)


def explosion(steps: pd.DataFrame) -> str:
    """Say from which step on loss, gradient and alpha grow at every step, and between which lengths D stays."""
    finite = _finite(steps)
    last = finite["step"].iloc[-1]
    grow = (finite[["loss", "grad_l2", "alpha"]].abs().diff() > 0).all(axis=1)
    start = finite.loc[~grow, "step"].max() + 1
    if len(finite) == len(steps) or start > last:
        return f"The numbers are finite for all of its {last} steps."
    lengths = finite.loc[finite["step"] >= start, "direction_l2"]
    return (
        f"The numbers are finite until step {last}. From step {start} on, the loss, the gradient and the size of α "
        f"grow at every step, while the length of D stays between {scientific(lengths.min())} and "
        f"{scientific(lengths.max())}."
    )


def first_steps_figure(steps: pd.DataFrame, name: str, caption: str) -> Figure:
    """Draw loss, the lengths of g and D, and |alpha| of the first steps on logarithmic axes."""
    finite = _finite(steps)

    def draw(theme: Theme) -> plt.Figure:
        figure, axes = plt.subplots(1, 3, figsize=(9, 3), sharex=True)
        color = theme.color("adam_hd")
        other = theme.color("sgd_hd")
        axes[0].plot(finite["step"], finite["loss"], "o-", color=color, markersize=4)
        axes[1].plot(finite["step"], finite["grad_l2"], "s-", color=other, markersize=4, label="‖g‖")
        axes[1].plot(finite["step"], finite["direction_l2"], "^:", color=theme.paper, markersize=4, label="‖D‖")
        axes[1].legend()
        for sign, marker in ((1, "o"), (-1, "X")):
            some = finite[np.sign(finite["alpha"]) == sign]
            label = "positive" if sign > 0 else "negative"
            axes[2].plot(some["step"], some["alpha"].abs(), marker, color=color, markersize=5, label=label)
        axes[2].plot(finite["step"], finite["alpha"].abs(), "-", color=color, lw=0.8)
        axes[2].legend()
        for axis, title in zip(axes, ("minibatch loss", "size of g and D", "|α|"), strict=True):
            axis.set(yscale="log", xlabel="step", title=title)
            _round_decades(axis)
        return figure

    last = finite.iloc[-1]
    alt = (
        f"Loss, size of gradient and direction, and learning rate over {len(finite)} steps: the loss goes from "
        f"{finite['loss'].iloc[0]:.3g} to {last['loss']:.3g}, "
        f"the size of alpha from {finite['alpha'].iloc[0]:.3g} to {abs(last['alpha']):.3g}."
    )
    return Figure(draw, name, alt, finite, caption=caption)


# -- why


def parabola(line: pd.DataFrame, steps: pd.DataFrame, name: str, caption: str, factors=(0.8, 2.2)) -> Figure:
    """Draw the measured loss along the last direction, and how alpha moves on it with two betas.

    Args:
        line: `hdlib.runs.probe.line` at step 2.
        steps: the same run's first steps, which say slope and curvature there.
        factors: the two betas in units of 1 / kappa.
    """
    second = steps[steps["step"] == 2].iloc[0]
    fit = fitted_parabola(line)
    paths = {factor: _descend(fit, 0.0, factor / (2 * fit[0])) for factor in factors}

    def draw(theme: Theme) -> plt.Figure:
        figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), sharex=True, sharey=True)
        span = line["length"]
        for axis, (factor, path) in zip(axes, paths.items(), strict=True):
            stable = factor < 2
            color = theme.color("adam_hd") if stable else theme.color("sgdn_hd")
            axis.plot(span, line["loss"], color=theme.text, lw=1.6, label="measured loss along D")
            axis.plot(span, np.polyval(fit, span), color=theme.paper, lw=1.2, ls=(0, (4, 2)), label="parabola")
            inside = path[(path >= span.min()) & (path <= span.max())]
            axis.plot(inside, np.polyval(fit, inside), "o-", color=color, lw=0.9, markersize=4, label="α, step by step")
            verdict = "it settles" if stable else "each step overshoots further"
            axis.set(title=f"β = {factor:g} / κ: {verdict}", xlabel="length α of the last step")
            axis.legend(loc="upper center")
        margin = np.ptp(line["loss"])
        axes[0].set_ylim(line["loss"].min() - 0.1 * margin, line["loss"].max() + 0.05 * margin)
        axes[0].set_ylabel("loss of the next minibatch")
        return figure

    data = pd.concat([line.assign(what="loss along D")] + [
        pd.DataFrame({"length": path, "loss": np.polyval(fit, path), "what": f"alpha, beta = {factor:g} / kappa"})
        for factor, path in paths.items()
    ])  # fmt: skip
    alt = (
        f"The loss as a function of the length of the last step is close to a parabola. With beta {factors[0]:g} over "
        f"its curvature alpha settles at the bottom; with {factors[1]:g} it jumps from side to side, ever further. "
        f"Its curvature is {2 * fit[0]:.3g}, that of a Hessian-vector product at the step's end {second['kappa']:.3g}."
    )
    caption += (
        f" The κ of the titles is that of the parabola, {scientific(2 * fit[0])}; a Hessian-vector product at the end "
        f"of the step gives {scientific(second['kappa'])}."
    )
    return Figure(draw, name, alt, data, caption=caption)


def fitted_parabola(line: pd.DataFrame) -> np.ndarray:
    """Return the coefficients, highest first, of the parabola through the loss near its lowest measured point."""
    lowest = line["length"].iloc[line["loss"].to_numpy().argmin()]
    near = line[(line["length"] - lowest).abs() <= 0.35 * np.ptp(line["length"])]
    return np.polyfit(near["length"], near["loss"], 2)


def _descend(fit: np.ndarray, alpha: float, beta: float, count: int = 9) -> np.ndarray:
    path = [alpha]
    for _ in range(count):
        path.append(path[-1] - beta * np.polyval(np.polyder(fit), path[-1]))
    return np.array(path)


def sizes_sentences(adam: pd.DataFrame, sgd: pd.DataFrame, parameters: int, beta: float) -> str:
    """Compare Adam's first direction, slope and curvature with SGD's on the same minibatches, and β with 2 / κ."""
    first, second = (frame[frame["step"] == 1].iloc[0] for frame in (adam, sgd))
    a, s = _first_kappa(adam), _first_kappa(sgd)
    return (
        f"In the first step of the same run, ‖D‖² is {scientific(first['direction_l2'] ** 2)} for Adam, against "
        f"{parameters:,} parameters, and {scientific(second['direction_l2'] ** 2)} for SGD. On its own minibatch the "
        f"slope at its start is {scientific(-first['slope'])} for Adam, the sum of the gradient's absolute entries "
        f"({scientific(first['grad_l1'])}), and {scientific(-second['slope'])} for SGD, the sum of their squares. The "
        f"curvature along it is {scientific(a)} for Adam and {scientific(s)} for SGD, {scientific(a / s)} times less."
        f"\n\nFor Adam 2/κ is {scientific(2 / a)}, and β = {power_of_ten(beta)} {_condition(beta * a / 2)}. "
        f"For SGD 2/κ is {scientific(2 / s)}, and the same β {_condition(beta * s / 2)}."
    )


def _condition(ratio: float) -> str:
    return f"{'breaks' if ratio > 1 else 'meets'} the condition: it is {_against(ratio, 'that')}"


def summary(
    adam: pd.DataFrame, sgd: pd.DataFrame, parameters: int, measured: pd.DataFrame, model: str, fitted: pd.DataFrame
) -> str:
    """Say how large Adam's curvature is, from which beta on Adam-HD fails, and which beta the paper's curves fit.

    Args:
        adam, sgd: first steps of the perceptron.
        parameters: how many it has.
        measured: critical betas, of which those of the perceptron, named `model`, count.
        fitted: what `fits` returns.
    """
    times = scientific(_first_kappa(adam) / _first_kappa(sgd))
    text = (
        f"On the perceptron, Adam's first direction has {parameters:,} entries of a size of about 1, and its κ is "
        f"{times} times that of SGD."
    )
    limit = measured.loc[(measured["model"] == model) & (measured["method"] == "adam_hd"), "critical"].median()
    if 0 < limit < np.inf:
        text += " From α₀ = 0.001 training with Adam-HD fails there, within 100 iterations, from a β of about "
        text += f"{scientific(limit)} on; [the phase diagram](#where-the-phase-diagram) shows other α₀."
    best = fitted.loc[(fitted["model"] == "mlp") & (fitted["method"] == "adam_hd"), "candidate"]
    if len(best):
        text += f" The learning rates that the paper shows for it fit {best.iloc[0]} best."
    return text


def _first_kappa(steps: pd.DataFrame) -> float:
    return float(steps.loc[steps["step"] == 2, "kappa"].iloc[0])


# -- where


def phases(records: Sequence[Record]) -> pd.DataFrame:
    """Return a row per method, alpha_0 and beta: what the median seed did, and when it diverged.

    `kind` is "diverged" where at least half of the seeds did, "ringing" where alpha was negative in at least half,
    otherwise "better" or "worse" than the baseline from the same alpha_0 in the median final loss.
    """
    runs = outcomes(records)
    adapts = runs["method"].isin(HD)
    base = runs[~adapts].groupby(["method", "alpha0"])["loss"].median()
    runs["negative"] = runs["lowest"] < 0
    runs["lost_at"] = runs["iterations"].where(runs["diverged"])
    cells = runs[adapts].groupby(["method", "alpha0", "beta"], as_index=False)
    cells = cells.agg(
        seeds=("seed", "size"),
        loss=("loss", "median"),
        diverged=("diverged", "mean"),
        negative=("negative", "mean"),
        iteration=("lost_at", "median"),
    )
    cells["baseline"] = base.loc[pd.MultiIndex.from_arrays([cells["method"].map(BASELINE), cells["alpha0"]])].to_numpy()
    happened = [cells["diverged"] >= 0.5, cells["negative"] >= 0.5, cells["loss"] < cells["baseline"]]
    cells["kind"] = np.select(happened, ["diverged", "ringing", "better"], "worse")
    return cells[["method", "alpha0", "beta", "kind", "seeds", "loss", "baseline", "iteration"]]


def phase_diagrams(diagrams: dict[str, Sequence[Record]], boundaries: Boundaries, name: str, caption: str) -> Figure:
    """Draw what happened on a grid of alpha_0 and beta, a row a model, with the predicted critical betas over it.

    Args:
        diagrams: records by model.
        boundaries: what `boundary_lines` returns.
    """
    cells = {model: phases(records) for model, records in diagrams.items()}
    shown = pd.concat(cells.values())
    span = shown["iteration"].min(), shown["iteration"].max()  # of the divergences

    def draw(theme: Theme) -> plt.Figure:
        rows = len(cells)
        size = (9, (3.1 if rows == 1 else 2.1) * rows + 0.8)
        figure, axes = plt.subplots(rows, len(HD), figsize=size, sharex=True, sharey=True, squeeze=False)
        for row, (model, own) in zip(axes, cells.items(), strict=True):
            for axis, method in zip(row, HD, strict=True):
                _phase_panel(axis, own[own["method"] == method], boundaries.get(model, {}).get(method), theme, span)
            row[0].set_ylabel(model.replace(", ", ",\n") + "\n\nβ")
        for axis, method in zip(axes[0], HD, strict=True):
            axis.set_title(LABELS[method])
        for axis in axes[-1]:
            axis.set_xlabel("initial learning rate α₀")
        _phase_legend(figure, theme, shown, bool(boundaries.keys() & cells.keys()))
        return figure

    told = " ".join(f"{model}: {_told(own)}." for model, own in cells.items())
    records = [record for own in diagrams.values() for record in own]
    data = pd.concat([own.assign(model=model) for model, own in cells.items()])
    alt = f"Outcome by alpha_0 and beta, a row a model. {told}"
    return Figure(draw, name, alt, data, frames.note(records), f"{caption} {_lines_note(cells, boundaries)}")


def _lines_note(cells: dict[str, pd.DataFrame], boundaries: Boundaries) -> str:
    """Say which prediction the dashed lines are, which methods have none, and which lines are not seen."""
    drawn = {method: [model for model in cells if method in boundaries.get(model, {})] for method in HD}
    named = " and ".join(
        f"for {LABELS[method]} by {boundaries[models[0]][method][1]}" for method, models in drawn.items() if models
    )
    if not named:
        return "No critical β was predicted here."
    text = f"Dashed: the critical β that is predicted below, {named}"
    missing = [LABELS[method] for method, models in drawn.items() if not models]
    text += f"; none was predicted for {' and '.join(missing)}" if missing else ""
    top = {model: _ends(sorted(own["beta"].unique()))[1] for model, own in cells.items()}
    for method, models in drawn.items():
        above = [model for model in models if boundaries[model][method][0] > top[model]]
        if above:
            text += f"; that of {LABELS[method]} with {' and with '.join(above)} lies above the diagram"
    return f"{text}."


def _diverged_color(iteration: float, span: tuple[float, float], theme: Theme) -> np.ndarray:
    """Return the colour of a divergence: full for the earliest, palest for the latest iteration of a span."""
    early, late = np.log(span)
    fade = 0.7 * (np.log(iteration) - early) / max(late - early, 1e-9)
    return (1 - fade) * np.array(to_rgb(KIND_COLORS["diverged"])) + fade * np.array(to_rgb(theme.background))


def _phase_panel(
    axis: plt.Axes, own: pd.DataFrame, boundary: tuple[float, str] | None, theme: Theme, span: tuple[float, float]
) -> None:
    """Draw one method's cells; a divergence is the paler the later it was in the span of iterations."""
    ground = np.array(to_rgb(theme.background))
    rates, betas = sorted(own["alpha0"].unique()), sorted(own["beta"].unique())
    image = np.ones((len(betas), len(rates), 3)) * ground
    for cell in own.itertuples():
        lost = cell.kind == "diverged"
        color = _diverged_color(cell.iteration, span, theme) if lost else np.array(to_rgb(KIND_COLORS[cell.kind]))
        image[betas.index(cell.beta), rates.index(cell.alpha0)] = color
    axis.pcolormesh(_edges(rates), _edges(betas), image, edgecolors=theme.background, linewidth=0.3)
    ringing = own[own["kind"] == "ringing"]
    axis.plot(ringing["alpha0"], ringing["beta"], ".", color=theme.background, markersize=2.5)
    if boundary is not None:
        axis.axhline(boundary[0], color=theme.text, lw=1.6, ls=(0, (4, 2)))
    axis.set(xscale="log", yscale="log", xlim=_ends(rates), ylim=_ends(betas))
    axis.grid(False)


def _phase_legend(figure: plt.Figure, theme: Theme, cells: pd.DataFrame, predicted: bool) -> None:
    """Name what occurs, in the colours of the cells."""
    handles: list[Any] = []
    labels = []
    for kind in KINDS[:3]:
        if (cells["kind"] == kind).any():
            handles.append(Patch(color=KIND_COLORS[kind]))
            labels.append(KIND_NAMES[kind])
            if kind == "ringing":
                dot = Line2D([], [], color=theme.background, marker=".", linestyle="", markersize=4)
                handles[-1] = (handles[-1], dot)
    lost = cells.loc[cells["kind"] == "diverged", "iteration"]
    for iteration in dict.fromkeys([lost.min(), lost.max()] if len(lost) else []):
        handles.append(Patch(color=_diverged_color(iteration, (lost.min(), lost.max()), theme)))
        labels.append(f"diverged at iteration {iteration:.0f}")
    if predicted:
        handles.append(Line2D([], [], color=theme.text, ls=(0, (4, 2))))
        labels.append("predicted critical β")
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small")


def _told(cells: pd.DataFrame) -> str:
    counts = cells.groupby(["method", "kind"]).size()
    return "; ".join(
        f"{LABELS[method]}: " + ", ".join(f"{counts.get((method, kind), 0)} {KIND_NAMES[kind]}" for kind in KINDS)
        for method in HD
    )


def phase_sentences(records: Sequence[Record]) -> str:
    """Say for each method how the cells of its grid fared."""
    lines = []
    for method, cells in phases(records).groupby("method"):
        lost, ringing = cells[cells["kind"] == "diverged"], cells[cells["kind"] == "ringing"]
        text = (
            f"- {LABELS[method]}: of {len(cells)} pairs of α₀ and β, {len(lost) or 'none'} diverged"
            + (f" (β from {scientific(lost['beta'].min())})" if len(lost) else "")
            + f" and {len(ringing) or 'none'} rang; {int((cells['loss'] < cells['baseline']).sum())} ended below the "
            "baseline from the same α₀, ringing or not."
        )
        lines.append(text)
    return "\n".join(lines)


def first_divergences(diagrams: dict[str, Sequence[Record]]) -> Table:
    """Return, for each model and method, the smallest beta of the grid at which a cell diverged, and how many did."""
    rows = []
    for model, records in diagrams.items():
        row = {"model": model}
        cells = phases(records)
        for method in HD:
            lost = cells[(cells["method"] == method) & (cells["kind"] == "diverged")]
            total = int((cells["method"] == method).sum())
            first = f"β from {scientific(lost['beta'].min())}" if len(lost) else "none"
            row[LABELS[method]] = f"{first}; {len(lost)} of {total}"
        rows.append(row)
    return Table(pd.DataFrame(rows), "The smallest β of the grid at which a pair diverged, and how many pairs did.")


# -- predicted


def prediction(measured: pd.DataFrame, predictors: dict[str, str], name: str, caption: str) -> Figure:
    """Draw measured against predicted critical betas, a panel for each predictor.

    Args:
        measured: a row per model, method and seed, with `critical` and a column per predictor.
        predictors: column and title of each.
    """

    def draw(theme: Theme) -> plt.Figure:
        figure, axes = plt.subplots(1, len(predictors), figsize=(9, 3.9), sharey=True, squeeze=False)
        values = measured[["critical", *predictors]].to_numpy()
        values = values[np.isfinite(values) & (values > 0)]
        low, high = values.min() / 2, values.max() * 2
        span = np.array([low, high])
        markers = dict(zip(HD, ("o", "s", "^"), strict=True))
        for axis, (column, title) in zip(axes[0], predictors.items(), strict=True):
            axis.fill_between(span, span / 2, span * 2, color=theme.grid, alpha=0.6, lw=0, label="within a factor of 2")
            axis.plot(span, span, color=theme.paper, lw=1)
            for method, rows in measured.groupby("method"):
                axis.plot(
                    rows[column], rows["critical"], markers[method], color=theme.color(method), markersize=4,
                    alpha=0.75, label=LABELS[method],
                )  # fmt: skip
            axis.set(xscale="log", yscale="log", xlim=span, ylim=span, title=title, xlabel="predicted β")
        axes[0, 0].set_ylabel("measured critical β")
        axes[0, 0].legend()
        return figure

    alt = f"Measured against predicted critical beta. {prediction_sentence(measured, predictors)}"
    return Figure(draw, name, alt, measured, caption=caption)


def boundary_lines(measured: pd.DataFrame, predictors: dict[str, str]) -> Boundaries:
    """Return, by model and method, the median of the predictor that suits the method best, and its title."""
    lines: Boundaries = {}
    for (model, method), rows in measured.groupby(["model", "method"]):
        best = max(predictors, key=lambda column: within_two(measured, method, column))
        lines.setdefault(model, {})[method] = float(rows[best].median()), predictors[best]
    return lines


def prediction_lead(measured: pd.DataFrame) -> str:
    """Say what was measured."""
    names = list(dict.fromkeys(measured["model"]))
    methods = " and ".join(LABELS[method] for method in dict.fromkeys(measured["method"]))
    left_out = {
        LABELS[method]: [name for name in names if name not in set(rows["model"])]
        for method, rows in measured.groupby("method")
    }
    missing = "".join(f"; {method} was not measured with {' and '.join(m)}" for method, m in left_out.items() if m)
    return (
        f"{len(names)} models were chosen before their critical β was looked at: {'; '.join(names)}. For {methods} "
        f"from α₀ = 0.001, 100 iterations, that makes {len(measured)} critical β, one for each seed{missing}."
    )


def prediction_sentence(measured: pd.DataFrame, predictors: dict[str, str]) -> str:
    """Say how far each predictor is off: the median factor, its spread, and the share within a factor of two."""
    parts = []
    for method, rows in measured.groupby("method"):
        for column, title in predictors.items():
            ratio = (rows["critical"] / rows[column]).to_numpy()
            ratio = ratio[np.isfinite(ratio) & (ratio > 0)]
            if not len(ratio):
                continue
            low, middle, high = np.quantile(ratio, [0.1, 0.5, 0.9])
            within = within_two(measured, method, column)
            parts.append(
                f"- {LABELS[method]}, {title}: {100 * within:.0f} % of {len(rows)} runs are within a factor of two. "
                f"The measured β is {_against(middle)} in the median, from {_against(low, 'it')} to "
                f"{_against(high, 'it')} (10 % to 90 %)."
            )
    return "\n".join(parts)


def within_two(measured: pd.DataFrame, method: str, column: str) -> float:
    """Return the share of a method's runs whose critical beta is within a factor of two of a prediction."""
    rows = measured[measured["method"] == method]
    ratio = rows["critical"] / rows[column]
    return float(((ratio > 0.5) & (ratio < 2)).mean())


def best_predictor(measured: pd.DataFrame, predictors: dict[str, str]) -> str:
    """Say which predictor is within a factor of two most often, for each method, and which models it misses."""
    lines = []
    for method in dict.fromkeys(measured["method"]):
        shares = {column: within_two(measured, method, column) for column in predictors}
        best = max(shares, key=shares.__getitem__)
        equal = [title for column, title in predictors.items() if shares[column] == shares[best] and column != best]
        rows = measured[measured["method"] == method]
        ratio = (rows["critical"] / rows[best]).groupby(rows["model"], sort=False).median()
        missed = ratio[~((ratio > 0.5) & (ratio < 2))]
        text = (
            f"For {LABELS[method]} the best of the three is {predictors[best]}: within a factor of two in "
            f"{100 * shares[best]:.0f} % of the runs" + (f", as is {' and '.join(equal)}" if equal else "")
        )
        deep = measured[~measured["model"].str.startswith("logistic")]
        if len(deep) < len(measured) and (deep["method"] == method).any():
            text += f", and in {100 * within_two(deep, method, best):.0f} % of those of networks with hidden layers"
        if len(missed):
            named = "; ".join(f"{model} ({_against(value)})" for model, value in missed.items())
            text += f". By the median over seeds it misses {named}"
        early = missed[missed < 0.5].index
        if len(early):
            learnt = rows[rows["model"].isin(early)].groupby("model", sort=False)["learnt"].median()
            named = "; ".join(f"{model}: by {100 * share:.0f} %" for model, share in learnt.items())
            text += (
                ". Where training fails at a smaller β than predicted, the cautious run that the curvatures are from "
                f"had not got far in its 100 steps (its loss fell in {named}): it may never have been where the other "
                "one fails"
            )
        lines.append(text + ".")
    return "\n\n".join(lines)


def growths(measured: pd.DataFrame) -> str:
    """Say which growth of a deviation suits each method."""
    parts = []
    for method in dict.fromkeys(measured["method"]):
        factors = measured.loc[measured["method"] == method, "factor"]
        low, high = (f"{value:,.0f}" for value in (factors.min(), factors.max()))
        least = ", the smallest that was tried," if factors.max() == GROWTHS[0] else ""
        parts.append(f"{low if low == high else f'{low} to {high}'}{least} for {LABELS[method]}")
    return f"The growth that suits the other models best is {' and '.join(parts)}."


def critical_beta(runs: pd.DataFrame) -> str:
    """Return the median critical beta, or on which side of all that were tried it lies."""
    middle = runs["critical"].median()
    if np.isinf(middle):
        return f"above {scientific(runs['works'].max())}"
    return f"below {scientific(runs['fails'].min())}" if middle == 0 else scientific(middle)


def prediction_table(measured: pd.DataFrame, predictors: dict[str, str]) -> Table:
    """Return a row per model and method: the measured critical beta, alone and over each prediction; medians."""
    rows = []
    for (model, method), runs in measured.groupby(["model", "method"], sort=False):
        row = {"model": model, "method": LABELS[method], "measured": critical_beta(runs)}
        row |= {f"÷ {SHORT[c]}": scientific((runs["critical"] / runs[c]).median()) for c in predictors}
        rows.append(row)
    told = "; ".join(f"÷ {SHORT[column]}, over {title}" for column, title in predictors.items())
    seeds = measured.groupby(["model", "method"])["seed"].nunique()
    several = f"{seeds.min()} to {seeds.max()}" if seeds.min() < seeds.max() else f"{seeds.max()}"
    note = f"The measured critical β, and the same over the predicted ones: {told}. Medians, {several} seeds."
    return Table(pd.DataFrame(rows), note)


def curvature_growth(measured: pd.DataFrame) -> str:
    """Say for each method in how many models the largest curvature on the way exceeds the first, and by how much."""
    parts = []
    for method, rows in measured.groupby("method", sort=False):
        growth = (rows["at_start"] / rows["largest"]).groupby(rows["model"], sort=False).median().dropna()
        grown, others = growth[growth > 1], growth.index[growth <= 1]
        text = f"with {LABELS[method]} in {len(grown)} of {len(growth)} models"
        text += f", by a factor of {_range(grown)}" if len(grown) else ""
        parts.append(text + (f" (not in {'; '.join(others)})" if len(others) else ""))
    return f"The largest κ on the way exceeds the first one: {'; '.join(parts)}. Medians over seeds."


def limits_of_adam(measured: pd.DataFrame, models: Sequence[str]) -> str:
    """Say at which beta Adam-HD fails with two of the models, and how far apart the two betas are."""
    rows = measured[(measured["method"] == "adam_hd") & measured["model"].isin(models)]
    limits = rows.groupby("model", sort=False)["critical"].median()
    limits = limits[np.isfinite(limits) & (limits > 0)]
    if limits.empty:
        return "For Adam-HD no critical β was measured."
    told = " and ".join(f"{scientific(limit)} for {model}" for model, limit in limits.items())
    text = f"For Adam-HD the measured critical β is {told}"
    return text + (f", a factor of {scientific(limits.max() / limits.min())} between them." if len(limits) > 1 else ".")


# -- guarded


def guard_cells(guarded: dict[str, Sequence[Record]], unguarded: Sequence[Record]) -> pd.DataFrame:
    """Return a row per guard, method and cell, which is a pair of alpha_0 and beta, with medians over seeds.

    Columns beside these: `runs` and `diverged` ones; `loss`; `no_hd`, the loss of the fixed rate alpha_0; `over_best`,
    the loss over that of the best fixed rate.
    """
    base = outcomes(unguarded).groupby(["method", "alpha0"])["loss"].median()
    runs = pd.concat([outcomes(records).assign(guard=name) for name, records in guarded.items()])
    cells = runs.groupby(["guard", "method", "alpha0", "beta"], sort=False, as_index=False).agg(
        runs=("loss", "size"), diverged=("diverged", "sum"), loss=("loss", "median")
    )
    fixed = cells["method"].map(BASELINE)
    cells["no_hd"] = base.loc[pd.MultiIndex.from_arrays([fixed, cells["alpha0"]])].to_numpy()
    cells["over_best"] = cells["loss"] / fixed.map(base.groupby("method").min())
    return cells


def guard_table(guarded: dict[str, Sequence[Record]], unguarded: Sequence[Record]) -> Table:
    """Return how each guard fares over the grid: divergence, against no HD, and against the best fixed rate."""
    cells = guard_cells(guarded, unguarded)
    best = cells.groupby(["guard", "method", "alpha0"])["loss"].min()
    rows = []
    for name in guarded:
        for method in HD:
            own = cells[(cells["guard"] == name) & (cells["method"] == method)]
            if own.empty:
                continue
            plain = best["plain", method].replace(np.inf, np.nan)  # not where none converges
            rows.append(
                {
                    "guard": name,
                    "method": LABELS[method],
                    "diverged": f"{own['diverged'].sum()} of {own['runs'].sum()}",
                    "below the fixed rate": f"{int((own['loss'] < own['no_hd']).sum())} of {len(own)}",
                    "best β ÷ plain": _range(best[name, method] / plain),
                    "all ÷ best fixed": _range(own["over_best"]),
                }
            )
    return Table(pd.DataFrame(rows), frames.note([r for records in guarded.values() for r in records]))


def worst_cells(guarded: dict[str, Sequence[Record]], unguarded: Sequence[Record]) -> pd.DataFrame:
    """Return each guard's worst loss over the best fixed rate's: a column a method, infinite where a run diverged."""
    cells = guard_cells(guarded, unguarded)
    cells["worst"] = cells["over_best"].mask(cells["diverged"] > 0, np.inf)
    return cells.groupby(["guard", "method"])["worst"].max().unstack().reindex(index=list(guarded), columns=list(HD))


def guard_figure(guarded: dict[str, Sequence[Record]], unguarded: Sequence[Record], name: str, caption: str) -> Figure:
    """Draw each guard's worst cell, a panel a method; a cross at the right edge where a run diverged."""
    worst = worst_cells(guarded, unguarded)

    def draw(theme: Theme) -> plt.Figure:
        figure, axes = plt.subplots(1, 3, figsize=(9, 1.4 + 0.22 * len(worst)), sharex=True, sharey=True)
        finite = worst.to_numpy()[np.isfinite(worst)]
        low, high = min([0.8, *finite]) / 1.3, max([1.25, *finite])
        edge = high * (high / low) ** 0.12
        for axis, method in zip(axes, HD, strict=True):
            own = worst[method].to_numpy()
            kept, lost = np.flatnonzero(np.isfinite(own)), np.flatnonzero(np.isinf(own))
            axis.axvline(1, color=theme.text, lw=1)
            axis.hlines(kept, 1, own[kept], color=theme.color(method), lw=1.2)
            axis.plot(own[kept], kept, "o", color=theme.color(method), markersize=5)
            axis.plot([edge] * len(lost), lost, "X", color=theme.text, markersize=6, clip_on=False)
            axis.set(xscale="log", xlim=(low, edge), title=LABELS[method], xlabel="worst loss ÷ best fixed")
        axes[0].set_yticks(range(len(worst)), worst.index)
        axes[0].invert_yaxis()
        return figure

    alt = f"Worst loss of each guard over that of the best fixed learning rate. {guard_sentence(guarded, unguarded)}"
    records = [r for own in guarded.values() for r in own]
    return Figure(draw, name, alt, worst.reset_index(), frames.note(records), caption)


def guard_sentence(guarded: dict[str, Sequence[Record]], unguarded: Sequence[Record]) -> str:
    """Say which guards lost no run, and which two of them have the smallest worst loss over the three methods."""
    worst = worst_cells(guarded, unguarded).max(axis=1)
    safe = worst[np.isfinite(worst)].sort_values(kind="stable")
    lost = worst.index[np.isinf(worst)]
    if len(lost) < len(safe):
        told = f"only *{'*; *'.join(lost)}* lost runs" if len(lost) else "none lost a run"
    else:
        kept = [f"*{name}*" for name in worst.index if name in safe.index]
        told = f"{len(kept)} lost no run: {'; '.join(kept)}" if kept else "each lost runs"
    text = f"Of the {len(worst)} rules, {told}."
    if len(safe):
        text += f" Over the three methods the worst loss of *{safe.index[0]}* is the smallest, "
        text += f"{scientific(safe.iloc[0])} times that of the best fixed rate"
        text += f"; then comes *{safe.index[1]}* with {scientific(safe.iloc[1])}." if len(safe) > 1 else "."
    return text


def recommendation(automatic: Sequence[Record], plain: Sequence[Record], unguarded: Sequence[Record], name: str,
                   caption: str) -> Figure:  # fmt: skip
    """Draw the final loss against alpha_0: no HD, the plain rule over all its betas, and the automatic beta."""
    auto, rule, base = outcomes(automatic), outcomes(plain), outcomes(unguarded)

    def draw(theme: Theme) -> plt.Figure:
        figure, axes = plt.subplots(1, 3, figsize=(9, 3.9), sharey=True)
        for axis, method in zip(axes, HD, strict=True):
            fixed = base[base["method"] == BASELINE[method]].groupby("alpha0")["loss"].median()
            axis.plot(fixed.index, fixed, marker="o", markersize=4, **theme.line(BASELINE[method]))
            cells = rule[rule["method"] == method].groupby(["alpha0", "beta"])["loss"].median().unstack("beta")
            for beta in cells:
                axis.plot(cells.index, cells[beta], ".", color=theme.paper, markersize=5)
            own = auto[auto["method"] == method].groupby("alpha0")["loss"]
            style = theme.line(method)
            axis.plot(own.median().index, own.median(), marker="D", markersize=5, **style)
            axis.fill_between(own.median().index, own.min(), own.max(), color=style["color"], alpha=0.2, lw=0)
            axis.set(xscale="log", yscale="log", title=LABELS[method], xlabel="initial learning rate α₀")
        handles = [
            Line2D([], [], color=theme.text, linestyle="--", marker="o", markersize=4, label="no HD"),
            Line2D([], [], color=theme.paper, linestyle="", marker=".", markersize=5, label="plain rule, a dot a β"),
            Line2D([], [], color=theme.text, marker="D", markersize=5, label="automatic β"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
        shown = np.concatenate([frame["loss"][np.isfinite(frame["loss"])] for frame in (auto, rule, base)])
        axes[0].set_ylim(0.8 * shown.min(), 1.2 * min(20, shown.max()))
        axes[0].set_ylabel("final training loss")
        return figure

    data = pd.concat([auto.assign(what="automatic"), rule.assign(what="plain"), base.assign(what="no HD")])
    alt = f"Final training loss against alpha_0. {bar(automatic, plain, unguarded)}"
    records = [*automatic, *plain, *unguarded]
    return Figure(draw, name, alt, data, frames.note(records), caption)


def bar(automatic: Sequence[Record], plain: Sequence[Record], unguarded: Sequence[Record]) -> str:
    """Say how often the automatic beta diverges, and where it beats every beta of the plain rule, and no HD."""
    lines = []
    for method, n in _counted(automatic, plain, unguarded).items():
        lines.append(
            f"- {LABELS[method]} with the automatic β: {n['lost'] or 'none'} of {n['runs']} runs diverged. The loss is "
            f"at or below the plain rule's in {n['beaten']} of the {n['pairs']} pairs of α₀ and β where that one "
            f"converges, below that of the fixed rate α₀ from {n['lower']} of {n['rates']} initial learning rates, and "
            f"{_range(n['over_best'])} times that of the best fixed rate, α = {power_of_ten(n['best'])}."
        )
    return "\n".join(lines)


def bar_in_all(comparisons: Sequence[tuple[Sequence[Record], Sequence[Record], Sequence[Record]]]) -> str:
    """Say the same of several models together; each comparison is what `bar` takes."""
    counts = [n for comparison in comparisons for n in _counted(*comparison).values()]
    total = {name: sum(n[name] for n in counts) for name in ("lost", "runs", "beaten", "pairs", "lower", "rates")}
    over = pd.concat([n["over_best"] for n in counts])
    return (
        f"In the comparisons over whole epochs below, {total['lost'] or 'none'} of {total['runs']} runs with the "
        f"automatic β diverged. It ended at or below the plain rule in {total['beaten']} of the {total['pairs']} pairs "
        f"of α₀ and β where that one converges, and below the fixed rate α₀ from {total['lower']} of {total['rates']} "
        f"initial learning rates. Its loss is {scientific(over.median())} times that of the best of six fixed rates in "
        f"the median, from {_range(over)}.{_coinciding(comparisons)}"
    )


def _coinciding(comparisons: Sequence[tuple[Sequence[Record], Sequence[Record], Sequence[Record]]]) -> str:
    """Say which runs with the automatic beta are the same run, because their first step is limited alike."""
    told = {frames.coinciding(automatic) for automatic, _, _ in comparisons} - {""}
    return f" {'; '.join(sorted(told))}: a first step that is limited alike makes one run of them." if told else ""


def _counted(
    automatic: Sequence[Record], plain: Sequence[Record], unguarded: Sequence[Record]
) -> dict[str, dict[str, Any]]:
    """Return for each method: runs and lost ones; pairs and beaten ones; rates and lower ones; over the best rate."""
    auto, rule, base = outcomes(automatic), outcomes(plain), outcomes(unguarded)
    found = {}
    for method in HD:
        own = auto[auto["method"] == method]
        if own.empty:
            continue
        ours = own.groupby("alpha0")["loss"].median()
        fixed = base[base["method"] == BASELINE[method]].groupby("alpha0")["loss"].median()
        cells = rule[rule["method"] == method].groupby(["alpha0", "beta"])["loss"].median()
        cells = cells[np.isfinite(cells)]
        found[method] = dict(
            runs=len(own),
            lost=int(own["diverged"].sum()),
            pairs=len(cells),
            beaten=sum(ours[alpha0] <= loss for (alpha0, _), loss in cells.items()),
            rates=len(ours),
            lower=int((ours < fixed.reindex(ours.index)).sum()),
            over_best=ours / fixed.min(),
            best=fixed.idxmin(),
        )
    return found


def tolerances() -> str:
    """Say which overshoot the automatic rule tolerates with each method."""
    common = dict(alpha0=1e-3, beta=1.0, rule="auto", epochs=1)
    of = {method: RunSpec(method=method, **common).control().tolerance for method in HD}
    worth = {method: f"{of['sgd_hd'] / value:.1f} for {LABELS[method]}" for method, value in of.items()}
    chosen = ", ".join(f"{value:.2g} for {LABELS[method]}" for method, value in of.items())
    return (
        f"The factor is {', '.join(worth.values())}, and so *c* is {chosen}. The one number behind the three, that of "
        "SGD-HD, was chosen: on the runs of logistic regression and of the small perceptron."
    )


def guard_costs(store: str) -> Table | Markdown:
    """Return what a step takes with each guard over a step of the plain rule, as the benchmark measured it."""
    found = (read(store, "optimizer_step") or {}).get("guards")
    if not found:
        return Markdown("Not measured: `make bench` does it.")
    rows = [{"guard": name} | {method: f"{ratio:.2f}" for method, ratio in row.items()} for name, row in found.items()]
    return Table(
        pd.DataFrame(rows),
        "The time of the optimiser's step alone, without the forward and backward pass, over that of the plain rule in "
        "the same round, median; the parameters of the paper's perceptron, on a CPU, steps as they come.",
    )


# -- what the paper ran


def fit_error(record: Record, curve: pd.DataFrame, epochs: int | None = None) -> tuple[float, int]:
    """Return by which factor, root mean square over epochs, a run's alpha is off the paper's curve, and the epochs.

    Args:
        curve: epoch and value of the digitised mean alpha per epoch.
        epochs: how many are compared at most.
    """
    ours = record.epochs.set_index("epoch")["alpha"].loc[:epochs]
    theirs = curve.groupby("epoch")["value"].mean()
    common = ours.index.intersection(theirs.index).drop(0, errors="ignore")
    ratio = np.log((ours[common].abs() + 1e-9) / (theirs[common].abs() + 1e-9))
    return float(np.exp(np.sqrt((ratio**2).mean()))), len(common)


def fit_table(records: Sequence[Record], theirs: pd.DataFrame) -> Table:
    """Return, for each candidate beta, how far its learning rates are off the paper's, over all alpha_0 and seeds."""
    table = fits(records, theirs)
    table["model"] = table["model"].map({"logreg": "logistic regression", "mlp": "perceptron"})
    table["method"] = table["method"].map(LABELS)
    table["off by a factor of"] = [scientific(value) for value in table["factor"]]
    return Table(table.drop(columns="factor"))


def fits(records: Sequence[Record], theirs: pd.DataFrame) -> pd.DataFrame:
    """Return a row per model, method and candidate, with the median factor over alpha_0 and seeds, best first.

    All candidates of a model and method are compared over as many epochs as the shortest of them has.
    """
    rows = []
    lengths: dict[tuple[str, str], int] = {}
    for record in records:
        if record.outcome != "diverged":
            panel = record.spec.model, record.spec.method
            lengths[panel] = min(record.spec.epochs, lengths.get(panel, record.spec.epochs))
    for record in records:
        spec = record.spec
        own = theirs[
            (theirs["model"] == spec.model)
            & (theirs["method"] == spec.method)
            & np.isclose(theirs["alpha0"], spec.alpha0)
            & (theirs["rule"] == spec.rule)
            & (theirs["quantity"] == "alpha")
        ]
        if record.outcome == "diverged":
            rows.append((spec.model, spec.method, _candidate(spec), np.inf, 0))
        elif len(own):
            epochs = lengths[spec.model, spec.method]
            rows.append((spec.model, spec.method, _candidate(spec), *fit_error(record, own, epochs)))
    frame = pd.DataFrame(rows, columns=["model", "method", "candidate", "factor", "epochs"])
    grouped = frame.groupby(["model", "method", "candidate"])
    table = grouped.agg(runs=("factor", "size"), epochs=("epochs", "max"), factor=("factor", "median")).reset_index()
    return table.sort_values(["model", "method", "factor"]).reset_index(drop=True)


def fit_sentences(records: Sequence[Record], theirs: pd.DataFrame) -> str:
    """Say for each panel which candidate fits best, and how much worse the next one does."""
    lines = []
    for (model, method), rows in fits(records, theirs).groupby(["model", "method"]):
        best, others = rows.iloc[0], rows.iloc[1:]
        text = (
            f"- {'The perceptron' if model == 'mlp' else 'Logistic regression'}, {LABELS[method]}: {best['candidate']} "
            f"fits best, α is off by a factor of {scientific(best['factor'])} over {best['epochs']} epochs"
        )
        if len(others):
            second = others.iloc[0]
            how = "diverges" if np.isinf(second["factor"]) else f"is off by {scientific(second['factor'])}"
            text += f"; the next of {len(rows)} candidates, {second['candidate']}, {how}"
        lines.append(text + ".")
    return "\n".join(lines)


def _candidate(spec: Any) -> str:
    if spec.method in BASELINE:
        return f"β = {power_of_ten(spec.beta)}"
    return "α₀ / √t" if spec.decay == "inv_sqrt" else "α₀ throughout"


# -- small things


def _finite(steps: pd.DataFrame) -> pd.DataFrame:
    """Return the steps before the first number that is not finite."""
    return steps[np.isfinite(steps[["loss", "alpha", "hypergrad"]]).all(axis=1)]


def _against(ratio: float, what: str = "the prediction") -> str:
    """Say how many times something it is, or how many times below it where it is less than half.

    A critical beta is infinite where no beta that was tried failed, and 0 where none worked.
    """
    if ratio == 0 or np.isinf(ratio):
        return f"{'below' if ratio == 0 else 'above'} every β that was tried"
    if ratio < 0.5:
        return f"{scientific(1 / ratio)} times below {what}"
    return f"{scientific(ratio)} times {what}"


def _round_decades(axis: plt.Axes) -> None:
    """Put a logarithmic axis's ticks at a handful of round exponents."""
    low, high = np.log10(axis.get_ylim())
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100) if (high - low) / step <= 6)
    axis.set_yticks(10.0 ** np.arange(np.ceil(low / step) * step, high, step))
    axis.minorticks_off()


def _span(values: pd.Series) -> str:
    if values.empty:
        return ""
    low, high = int(values.min()), int(values.max())
    return str(low) if low == high else f"{low} to {high}"


def _range(values: pd.Series) -> str:
    finite = values[np.isfinite(values)]
    if finite.empty:
        return "no finite value"
    return f"{scientific(finite.min())} to {scientific(finite.max())}"


def _edges(values: Sequence[float]) -> np.ndarray:
    logs = np.log10(values)
    if len(logs) == 1:
        return 10 ** np.array([logs[0] - 0.5, logs[0] + 0.5])
    middles = (logs[1:] + logs[:-1]) / 2
    return 10 ** np.concatenate([[2 * logs[0] - middles[0]], middles, [2 * logs[-1] - middles[-1]]])


def _ends(values: Sequence[float]) -> tuple[float, float]:
    edges = _edges(values)
    return edges[0], edges[-1]
