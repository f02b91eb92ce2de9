"""Why a hypergradient method diverges, and where: figures, tables and sentences.

Functions of recorded runs and recorded probes (`hdlib.runs.probe`) alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from hdlib.report import frames
from hdlib.report.critical import Boundaries, Boundary, against, probe_note
from hdlib.report.style import LABELS, Figure, Table, Theme, counted, power_of_ten, rounded, scientific
from hdlib.runs import BASELINE, Record, RunSpec
from hdlib.runs.critical import ALPHA0

HD = tuple(BASELINE)
KINDS = ("better", "worse", "ringing", "diverged")
MARKS = ("measured", "predicted")  # of a critical beta, over a phase diagram
KIND_COLORS = {"better": "#2a9d8f", "worse": "#e9c46a", "ringing": "#e07a3f", "diverged": "#6c5b7b"}
KIND_NAMES = {
    "better": "lower loss than the baseline",
    "worse": "not lower",
    "ringing": "rang: α negative at times",
    "diverged": "diverged",
}


# -- what happens


def blow_ups(records: Sequence[Record]) -> Table:
    """Return, for each initial learning rate, how many runs diverged and at which iteration."""
    rows = []
    for alpha0, runs in sorted(frames.outcomes(records).groupby("alpha0"), reverse=True):
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
    runs = frames.outcomes(records)
    lost = runs[runs["diverged"]]
    model = "the perceptron" if records[0].spec.model == "mlp" else "logistic regression"
    which = f"{model} with β = {power_of_ten(records[0].spec.beta)}, of {records[0].spec.max_iterations:,} iterations,"
    if 1 < len(lost) == len(runs):
        text = f"All {len(runs)} Adam-HD runs of {which} diverged"
    else:
        text = f"Of {counted(len(runs), 'Adam-HD run')} of {which} {len(lost) or 'none'} diverged"
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


def first_steps_figure(steps: pd.DataFrame, spec: RunSpec, name: str, caption: str, last: int = 6) -> Figure:
    """Draw loss, the lengths of g and D, and alpha with its sign, of a run's first steps; the axes are logarithmic.

    Args:
        steps: what `hdlib.runs.probe.recorded` returns for the run.
        spec: of the run.
        last: step that is drawn; a few more, and those that matter are one flat line.
    """
    finite = _finite(steps)
    shown = finite[finite["step"] <= last]

    def draw(theme: Theme) -> plt.Figure:
        figure, axes = plt.subplots(1, 3, figsize=(9, 3), sharex=True)
        color = theme.color("adam_hd")
        axes[0].plot(shown["step"], shown["loss"], "o-", color=color, markersize=4)
        axes[1].plot(shown["step"], shown["grad_l2"], "s-", color=theme.color("sgd_hd"), markersize=4, label="‖g‖")
        axes[1].plot(shown["step"], shown["direction_l2"], "^:", color=theme.paper, markersize=4, label="‖D‖")
        axes[1].legend()
        axes[2].plot(shown["step"], shown["alpha"], "o-", color=color, markersize=4)
        axes[2].axhline(0, color=theme.text, lw=0.8)
        for axis, title in zip(axes, ("minibatch loss", "size of g and D", "learning rate α"), strict=True):
            axis.set(xlabel="step", title=title, xticks=shown["step"])
        for axis in axes[:2]:
            axis.set_yscale("log")
            _round_decades(axis)
        _symmetric_decades(axes[2], shown["alpha"])
        return figure

    end = shown.iloc[-1]
    signed = ", ".join(scientific(alpha) for alpha in shown["alpha"])
    alt = (
        f"Loss, size of gradient and direction, and learning rate over {len(shown)} steps. The loss goes from "
        f"{scientific(shown['loss'].iloc[0])} to {scientific(end['loss'])}, and alpha through {signed}."
    )
    return Figure(draw, name, alt, finite, probe_note(steps, spec), caption)


# -- why


def parabola(
    line: pd.DataFrame, steps: pd.DataFrame, spec: RunSpec, name: str, caption: str, factors=(0.8, 2.2)
) -> Figure:
    """Draw the measured loss along the last direction, and how alpha moves on it with two betas.

    Args:
        line: `hdlib.runs.probe.line` at step 2.
        steps: the same run's first steps, which say slope and curvature there.
        spec: of the run.
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
        f"its curvature alpha settles at the bottom; with {factors[1]:g} it jumps from side to side, ever further."
    )
    caption += (
        f" The κ of the titles is that of the parabola, {scientific(2 * fit[0])}; a Hessian-vector product at the end "
        f"of the step gives {scientific(second['kappa'])}."
    )
    return Figure(draw, name, alt, data, probe_note(line, spec), caption)


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
        f"{parameters:,} parameters, and {scientific(second['direction_l2'] ** 2)} for SGD. The curvature along it is "
        f"{scientific(a)} for Adam and {scientific(s)} for SGD, {rounded(a / s)} times less."
        f"\n\nFor Adam 2/κ is {scientific(2 / a)}, and β = {power_of_ten(beta)} {_condition(beta * a / 2)}. "
        f"For SGD 2/κ is {scientific(2 / s)}, and the same β {_condition(beta * s / 2)}."
    )


def _condition(ratio: float) -> str:
    return f"{'breaks' if ratio > 1 else 'meets'} the condition: it is {against(ratio, 'that')}"


def summary(adam: pd.DataFrame, sgd: pd.DataFrame, parameters: int, measured: pd.DataFrame, model: str) -> str:
    """Say how large Adam's curvature is, and above which beta Adam-HD fails.

    Args:
        adam, sgd: first steps of the perceptron.
        parameters: how many it has.
        measured: critical betas, of which those of the perceptron, named `model`, count.
    """
    times = _first_kappa(adam) / _first_kappa(sgd)
    text = (
        f"On the perceptron, Adam's first direction has {parameters:,} entries of a size of about 1, and its κ is "
        f"{rounded(times)} times that of SGD."
    )
    limits = measured[measured["model"] == model].groupby("method")["critical"].median()
    limit, other = limits.get("adam_hd", np.nan), limits.get("sgd_hd", np.nan)
    if limit > 0 and 1 < other / limit < times:
        text += f" Their measured limits are only {rounded(other / limit)} times apart, since SGD's κ grows on the way."
    if 0 < limit < np.inf:
        text += (
            f" From α₀ = {ALPHA0:g} training with Adam-HD fails there, within {measured['iterations'].max()} "
            f"iterations, above a β of about {scientific(limit)}; [the phase diagram](#where-the-phase-diagram) shows "
            "other α₀."
        )
    return text


def _first_kappa(steps: pd.DataFrame) -> float:
    return float(steps.loc[steps["step"] == 2, "kappa"].iloc[0])


# -- where


def phases(records: Sequence[Record]) -> pd.DataFrame:
    """Return a row per method, alpha_0 and beta: what the median seed did, and when it diverged.

    `kind` is "diverged" where at least half of the seeds did, "ringing" where alpha was negative in at least half,
    otherwise "better" or "worse" than the baseline from the same alpha_0 in the median final loss.
    """
    runs = frames.outcomes(records)
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
    """Draw what happened on a grid of alpha_0 and beta, a row a model, with the critical betas over it.

    Args:
        diagrams: records by model.
        boundaries: what `critical.boundaries` returns.
    """
    cells = {model: phases(records) for model, records in diagrams.items()}
    shown = pd.concat(cells.values())
    lost = shown.loc[shown["kind"] == "diverged", "iteration"]  # not where only a few of the seeds did
    span = lost.min(), lost.max()

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
        _phase_legend(figure, theme, shown, span, MARKS if any(boundaries.get(model) for model in cells) else ())
        return figure

    records = [record for own in diagrams.values() for record in own]
    data = pd.concat([own.assign(model=model) for model, own in cells.items()])
    which = next(iter(cells)) if len(cells) == 1 else f"{len(cells)} models"
    alt = f"What became of runs by alpha_0 and beta, a map for each method, of {which}. {_told(cells)}"
    return Figure(draw, name, alt, data, frames.note(records), f"{caption} {_boundary_note(cells, boundaries)}")


def _boundary_note(cells: dict[str, pd.DataFrame], boundaries: Boundaries) -> str:
    """Say what the marks are, which methods have none, and which are not seen."""
    drawn = {method: [model for model in cells if method in boundaries.get(model, {})] for method in HD}
    firsts = {method: boundaries[models[0]][method] for method, models in drawn.items() if models}
    if not firsts:
        return "No critical β was measured here."
    iterations = max(mark.iterations for mark in firsts.values())
    text = (
        f"A dot is the measured critical β from α₀ = {ALPHA0:g}: above it a run of {iterations:,} iterations diverges "
        "or ends with a loss a fifth above its first one"
    )
    if any((own["kind"] == "diverged").any() for own in cells.values()):
        text += ", so the dot can lie below the cells that diverged"
    by: dict[str, list[str]] = {}
    for method, mark in firsts.items():
        by.setdefault(mark.by, []).append(LABELS[method])
    named = " and ".join(f"for {' and '.join(methods)} by {predictor}" for predictor, methods in by.items())
    text += f". A tick is the predicted one, {named}"
    missing = [LABELS[method] for method in HD if method not in firsts]
    text += f". {' and '.join(missing)} {'has' if len(missing) == 1 else 'have'} no marks" if missing else ""
    out: dict[str, list[str]] = {}
    for model, own in cells.items():
        ends = _ends(sorted(own["beta"].unique()))
        for method, marks in boundaries.get(model, {}).items():
            unseen = [what for what in MARKS if not _seen(getattr(marks, what), ends)]
            if unseen:
                out.setdefault(f"the {' and the '.join(unseen)} one of {LABELS[method]}", []).append(model)
    text += "".join(f". Not in sight: {what} with {' and with '.join(models)}" for what, models in out.items())
    return f"{text}."


def _seen(beta: float, ends: tuple[float, float]) -> bool:
    return ends[0] <= beta <= ends[1]


def _diverged_color(iteration: float, span: tuple[float, float], theme: Theme) -> np.ndarray:
    """Return the colour of a divergence: full for the earliest, palest for the latest iteration of a span."""
    early, late = np.log(span)
    fade = 0.7 * (np.log(iteration) - early) / max(late - early, 1e-9)
    return (1 - fade) * np.array(to_rgb(KIND_COLORS["diverged"])) + fade * np.array(to_rgb(theme.background))


def _phase_panel(
    axis: plt.Axes, own: pd.DataFrame, boundary: Boundary | None, theme: Theme, span: tuple[float, float]
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
        for what in ("predicted", "measured"):
            beta = getattr(boundary, what)
            if _seen(beta, _ends(betas)):
                axis.plot(ALPHA0, beta, **_mark(what, theme), clip_on=False)  # whole at the edge, too
    axis.set(xscale="log", yscale="log", xlim=_ends(rates), ylim=_ends(betas))
    axis.grid(False)


def _mark(what: str, theme: Theme) -> dict[str, Any]:
    """Return how a critical beta is marked: a tick where it was predicted, a dot where it was measured."""
    shape = dict(marker="_", markersize=13, markeredgewidth=2.2, color=theme.text)
    if what == "measured":
        shape = dict(marker="o", markersize=6, markerfacecolor=theme.text, markeredgecolor=theme.background)
    return dict(linestyle="", **shape)


def _phase_legend(
    figure: plt.Figure, theme: Theme, cells: pd.DataFrame, span: tuple[float, float], marked: Sequence[str]
) -> None:
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
    first, last = span
    for iteration in dict.fromkeys(span if (cells["kind"] == "diverged").any() else ()):
        handles.append(Patch(color=_diverged_color(iteration, span, theme)))
        which = " at" if first == last else ", earliest:" if iteration == first else ", latest:"
        labels.append(f"diverged{which} iteration {iteration:.0f}")
    for what in marked:
        handles.append(Line2D([], [], **_mark(what, theme)))
        labels.append(f"{what} critical β")
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small")


def _told(cells: dict[str, pd.DataFrame]) -> str:
    """Say in a sentence what a phase diagram shows, for those who do not see it."""
    if len(cells) > 1:
        first = {
            model: own[own["kind"] == "diverged"].groupby("method")["beta"].min().reindex(HD, fill_value=np.inf)
            for model, own in cells.items()
        }
        earlier = sum(betas["adam_hd"] < betas["sgd_hd"] for betas in first.values())
        return f"Adam-HD diverges at a smaller beta than SGD-HD in {earlier} of {len(cells)} models."
    [own] = cells.values()
    counts = own.groupby(["method", "kind"]).size()
    parts = [
        f"{counts.get((method, 'diverged'), 0)} diverged and {counts.get((method, 'ringing'), 0)} rang "
        f"with {LABELS[method]}"
        for method in HD
    ]
    return f"Of {counted(len(own) // len(HD), 'pair')} each, {', '.join(parts[:-1])} and {parts[-1]}."


def phase_lead(diagrams: dict[str, Sequence[Record]]) -> str:
    """Say for each model where its methods first diverge, near the critical betas' alpha_0 and over all, or nowhere.

    Args:
        diagrams: records by model, as a sentence names it.
    """
    return " ".join(_first_told(model, phases(records)) for model, records in diagrams.items())


def _first_told(model: str, cells: pd.DataFrame) -> str:
    """Say with which beta of its grid a model first diverges, or that it only rings."""
    lost, rung = (cells[cells["kind"] == kind] for kind in ("diverged", "ringing"))
    if lost.empty:
        rings = f"α rings, that is, it is negative at times, at {len(rung)}" if len(rung) else "α rings at none"
        return f"On {model} {rings} of {len(cells):,} pairs of α₀ and β, and none diverged."
    far = np.log(cells["alpha0"] / ALPHA0).abs()
    near = cells.loc[far.idxmin(), "alpha0"]
    methods = [method for method in HD if (cells["method"] == method).any()]
    firsts = [lost[lost["alpha0"] == near].groupby("method")["beta"].min(), lost.groupby("method")["beta"].min()]
    there, anywhere = (_listed({m: first.get(m, np.nan) for m in methods}, cells["beta"].min()) for first in firsts)
    return (
        f"On {model}, from α₀ = {scientific(near)}, the smallest β of the grid at which training diverges is {there}; "
        f"from any α₀, {anywhere}."
    )


def _listed(betas: dict[str, float], smallest: float) -> str:
    """Return the beta of each method, and whether it is the smallest that was tried."""
    told = []
    for method, beta in betas.items():
        number = "none" if np.isnan(beta) else scientific(beta)
        told.append(f"{number}{', the smallest that was tried,' if beta == smallest else ''} with {LABELS[method]}")
    return " and ".join(filter(None, (", ".join(told[:-1]), told[-1])))


def phase_sentences(records: Sequence[Record]) -> str:
    """Say for each method how the cells of its grid fared."""
    lines = []
    for method, cells in phases(records).groupby("method"):
        lost, ringing = cells[cells["kind"] == "diverged"], cells[cells["kind"] == "ringing"]
        text = (
            f"- {LABELS[method]}: of {counted(len(cells), 'pair')} of α₀ and β, {len(lost) or 'none'} diverged"
            + (f" (the smallest β is {scientific(lost['beta'].min())})" if len(lost) else "")
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
    note = "The smallest β of the grid at which a pair of α₀ and β diverged, and how many pairs did."
    return Table(pd.DataFrame(rows), f"{note} {_lengths(diagrams)}")


def _lengths(diagrams: dict[str, Sequence[Record]]) -> str:
    """Say how long the runs are, and those of which models are of another length."""
    models: dict[str, list[str]] = {}
    for model, records in diagrams.items():
        models.setdefault(frames.run_length(records[0].spec), []).append(model)
    most, *others = sorted(models, key=lambda length: -len(models[length]))
    apart = "".join(f"; those of {' and '.join(models[length])}, of {length}" for length in others)
    return f"Runs are of {most}{apart}."


# -- small things


def _finite(steps: pd.DataFrame) -> pd.DataFrame:
    """Return the steps before the first number that is not finite."""
    return steps[np.isfinite(steps[["loss", "alpha", "hypergrad"]]).all(axis=1)]


def _round_decades(axis: plt.Axes) -> None:
    """Put a logarithmic axis's ticks at a handful of round exponents."""
    low, high = np.log10(axis.get_ylim())
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100) if (high - low) / step <= 6)
    axis.set_yticks(10.0 ** np.arange(np.ceil(low / step) * step, high, step))
    axis.minorticks_off()


def _symmetric_decades(axis: plt.Axes, values: pd.Series) -> None:
    """Make an axis logarithmic on both sides of zero, linear below the smallest value, and tick few decades beyond."""
    sizes = values.abs()[values != 0]
    low, high = np.floor(np.log10(sizes.min())), np.ceil(np.log10(sizes.max()))
    axis.set_yscale("symlog", linthresh=10.0**low, linscale=0.5)
    step = max(1, int(np.ceil((high - low) / 4)))
    ticks = 10.0 ** np.arange(low + step, high + 1, step)
    axis.set_yticks([*-ticks[::-1], 0, *ticks])
    axis.minorticks_off()


def _span(values: pd.Series) -> str:
    if values.empty:
        return ""
    low, high = int(values.min()), int(values.max())
    return str(low) if low == high else f"{low} to {high}"


def _edges(values: Sequence[float]) -> np.ndarray:
    logs = np.log10(values)
    if len(logs) == 1:
        return 10 ** np.array([logs[0] - 0.5, logs[0] + 0.5])
    middles = (logs[1:] + logs[:-1]) / 2
    return 10 ** np.concatenate([[2 * logs[0] - middles[0]], middles, [2 * logs[-1] - middles[-1]]])


def _ends(values: Sequence[float]) -> tuple[float, float]:
    edges = _edges(values)
    return edges[0], edges[-1]
