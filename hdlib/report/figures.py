"""The figures of online tuning and of tuning, each a function of recorded runs alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from hdlib.report import frames, paper
from hdlib.report.style import (
    FAMILIES,
    LABELS,
    MARKERS,
    QUANTITIES,
    Figure,
    Theme,
    between,
    counted,
    label,
    power_of_ten,
    scientific,
    several,
    significant,
)
from hdlib.runs import Record, RunSpec

LINE_KEYS = ["method", "rule", "decay", "alpha0"]
ALPHA_FLOOR = 1e-6  # below this an axis of learning rates is linear, so that zero and negative values have a place
PAPER_POINTS = dict(linestyle="none", marker="o", markersize=3.5, markerfacecolor="none", markeredgewidth=0.9)
MARK = 4  # size of the marks that tell families apart
DECAY_MARKERS = {"inv_sqrt": "v", "cosine": "D"}  # of baselines whose learning rate falls
PALE = 0.5  # strength of the colours of the paper's curves in Figure 3
EARLY_POINTS = 100  # points drawn of the early iterations, log-spaced


def online_tuning(records: Sequence[Record], family: str, name: str, caption: str = "") -> Figure:
    """Draw how a method and its hypergradient version fare from each alpha_0 (the paper's Figure 2).

    Args:
        records: runs of one model; those of other families are left out.
        family: the baseline, "sgd", "sgdn" or "adam".
        name: of the figure.

    The left column shows the baseline, the right one its hypergradient version, the last row the learning rates of the
    latter. A colour is an alpha_0, a line the median over seeds, a band the range over seeds, and circles are
    the paper's curves. The multiplicative rule, with one alpha_0, is a thin green line, and has no circles
    among the losses, for they would hide others. Over epochs, the losses of the hypergradient version begin with the
    first one and have axes of their own.
    """
    adapted = f"{family}_hd"
    records = [r for r in records if r.spec.method in (family, adapted)]
    per_epoch, early = _per_epoch(records), _early(records)
    theirs = paper.figure2()
    theirs = _same_epochs(theirs[theirs["method"].isin([family, adapted])], records, per_epoch)
    rates = sorted({r.spec.alpha0 for r in records})
    losses = ((early, "loss"), (per_epoch, "train_loss"), (per_epoch, "valid_loss"))
    panels = [(method, data, quantity) for data, quantity in losses for method in (family, adapted)]
    panels += [(adapted, early, "alpha"), (adapted, per_epoch, "alpha")]

    def draw(theme: Theme) -> plt.Figure:
        colors = _rate_colors(rates, theme)
        contrast = dict(color=theme.color("adam"), linewidth=1.2, zorder=3)
        figure, axes = plt.subplots(4, 2, figsize=(9, 11.5))
        for axis, (method, data, quantity) in zip(axes.flat, panels, strict=True):
            drawn = data[(data["quantity"] == quantity) & (data["method"] == method)]
            points = theirs[(theirs["quantity"] == quantity) & (theirs["method"] == method)]
            if data is not per_epoch:
                points = points[:0]
            alone = False
            if data is per_epoch and method == adapted and quantity != "alpha":
                trained = drawn[drawn["epoch"] > 0]
                alone = bool(np.isfinite(trained["median"]).any())
            if alone:
                drawn = trained
                points = points[(points["epoch"] > 0) & (points["rule"] != "multiplicative")]
            for (rule, decay, alpha0), line in drawn.groupby(LINE_KEYS[1:]):
                style = theme.line(method, rule, decay) | dict(color=colors[alpha0])
                _line(axis, line, _x(data), **style | (contrast if rule == "multiplicative" else {}))
            for (rule, alpha0), line in points.groupby(["rule", "alpha0"]):
                color = contrast["color"] if rule == "multiplicative" else colors[alpha0]
                axis.plot(line["epoch"], line["value"], color=color, **PAPER_POINTS)
            if alone:
                seen = pd.concat([drawn, points.rename(columns={"value": "median"})])
                _scales(axis, quantity, seen, ALPHA_FLOOR, close=True)
            else:
                _scales(axis, quantity, data[data["method"] == adapted] if quantity == "alpha" else data, ALPHA_FLOOR)
            if data is early or quantity == "alpha":
                axis.set_title(LABELS[method])
        _mark_divergence(axes[0, 1], axes[1, 1], records, lambda spec: colors[spec.alpha0])
        handles = [
            Line2D([], [], label=label, **style | (contrast if "multiplicative" in label else dict(color=theme.text)))
            for label, style, _ in _methods(records, theme)
        ]
        if len(theirs):
            handles.append(Line2D([], [], color=theme.text, label="the paper's curves", **PAPER_POINTS))
        handles += [
            Line2D([], [], color=colors[rate], linewidth=4, label=f"α₀ = {power_of_ten(rate)}")
            for rate in reversed(rates)
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=5)
        return figure

    alt = (
        f"Eight panels, {LABELS[family]} on the left, {LABELS[adapted]} on the right, from {len(rates)} initial "
        "learning rates: minibatch loss over the first iterations, training and validation loss over epochs, and below "
        f"the learning rate of {LABELS[adapted]}, over the first iterations and over epochs. {_outcomes(records)} "
        f"{_ends(per_epoch)}"
    )
    return Figure(draw, name, alt, _table(per_epoch, early, theirs), frames.note(records), caption)


def tuning(records: Sequence[Record], name: str, caption: str = "") -> Figure:
    """Draw all methods from one alpha_0 (the paper's Figure 3), beside the paper's curves, broad and pale."""
    per_epoch, early = _per_epoch(records), _early(records)
    theirs = _same_epochs(paper.figure3(), records, per_epoch)
    panels = [(early, "loss"), (per_epoch, "train_loss"), (per_epoch, "valid_error"), (per_epoch, "valid_loss")]
    panels += [(early, "alpha"), (per_epoch, "alpha")]
    broad = dict(linewidth=3.0)

    def draw(theme: Theme) -> plt.Figure:
        figure, axes = plt.subplots(3, 2, figsize=(9, 9), width_ratios=[1, 1.25])
        for axis, (data, quantity) in zip(axes.flat, panels, strict=True):
            if data is per_epoch:
                for method, line in theirs[theirs["quantity"] == quantity].groupby("method"):
                    axis.plot(line["epoch"], line["value"], **theme.line(method, strength=PALE) | broad, zorder=1)
            for (method, rule, decay, _), line in data[data["quantity"] == quantity].groupby(LINE_KEYS):
                _line(axis, line, _x(data), **theme.line(method, rule, decay), **_marks(method, decay, len(line)))
            _scales(axis, quantity, data, linear_below=1e-3)
        _mark_divergence(axes[0, 0], axes[0, 1], records, lambda spec: theme.color(spec.method))
        handles = [
            Line2D([], [], label=label, marker=marker, markersize=MARK, **style)
            for label, style, marker in _methods(records, theme)
        ]
        if len(theirs):
            handles.append(Line2D([], [], color=theme.paper, label="the paper's curves, pale", **broad))
        figure.legend(handles=handles, loc="outside upper center", ncols=4 if len(handles) > 6 else len(handles))
        return figure

    alt = (
        "Six panels for SGD, SGD with Nesterov momentum and Adam (dashed) and their hypergradient versions (solid): "
        "training loss, validation loss and error, and learning rate, over the first iterations and over epochs. "
        f"{_outcomes(records)} {_ends(per_epoch)}"
    )
    caption = f"{caption} {_cut_off(per_epoch, theirs)}".strip()
    return Figure(draw, name, alt, _table(per_epoch, early, theirs), frames.note(records), caption)


def _cut_off(ours: pd.DataFrame, theirs: pd.DataFrame) -> str:
    """Say where the paper's curves leave axes that are made for our losses; nothing where they do not."""
    told = []
    for quantity in ("train_loss", "valid_loss"):
        values, (low, high) = theirs.loc[theirs["quantity"] == quantity, "value"], _limits(ours, quantity)
        parts = [f"fall to {significant(values.min(), 2)}"] if values.min() < low else []
        parts += [f"rise to {significant(values.max(), 2)}"] if values.max() > high else []
        told += [f"its {QUANTITIES[quantity]}es {' and '.join(parts)}"] if parts else []
    cut = "The axes are made for our losses and cut the paper's off where they go further"
    return f"{cut}: {', and '.join(told)}." if told else ""


def final_loss(records: Sequence[Record], name: str, caption: str = "") -> Figure:
    """Draw the last epoch's training loss against alpha_0: a flat line is a method that does not mind its start."""
    finals = frames.finals(records)
    finals = finals[finals["rule"] != "multiplicative"]
    families = [f for f in FAMILIES if (finals["method"] == f).any()]
    keys = ["method", "rule", "decay", "alpha0"]
    data = finals.groupby(keys)["train_loss"].agg(mean="mean", low="min", high="max", seeds="count").reset_index()

    def draw(theme: Theme) -> plt.Figure:
        figure, axes = plt.subplots(1, len(families), figsize=(9, 3.6), sharey=True, squeeze=False)
        for axis, family in zip(axes[0], families, strict=True):
            own = data[data["method"].isin([family, f"{family}_hd"])]
            for (method, rule, decay), line in own.groupby(["method", "rule", "decay"]):
                finite = line[np.isfinite(line["mean"])]
                style = theme.line(method, rule, decay)
                axis.plot(
                    finite["alpha0"], finite["mean"], marker="o", markersize=4, label=label(method, decay), **style
                )
                axis.fill_between(
                    finite["alpha0"], finite["low"], finite["high"], color=style["color"], alpha=0.2, lw=0
                )
                lost = line[~np.isfinite(line["mean"])]
                top = axis.get_xaxis_transform()
                axis.plot(lost["alpha0"], np.full(len(lost), 0.97), "x", color=style["color"], transform=top)
            axis.set(xscale="log", xlabel="initial learning rate α₀", title=LABELS[family])
            log_y(axis)
            axis.legend()
        axes[0, 0].set_ylabel("final training loss" + (", mean" if data["seeds"].max() > 1 else ""))
        return figure

    if data["seeds"].max() > 1:
        caption = f"{caption} Lines are means over seeds, bands reach from the lowest to the highest.".strip()
    alt = (
        f"Final training loss against the initial learning rate for {several([LABELS[f] for f in families])} (dashed) "
        f"and their hypergradient versions (solid). {_outcomes(records)} {_by_start(data)}"
    )
    return Figure(draw, name, alt, data, frames.note(records), caption)


def _ends(per_epoch: pd.DataFrame) -> str:
    """Say at which losses the methods end: medians over seeds, the lowest and highest over alpha_0."""
    told = []
    for quantity in ("train_loss", "valid_loss"):
        own = per_epoch[(per_epoch["quantity"] == quantity) & per_epoch["median"].notna()]
        last = own.loc[own.groupby(LINE_KEYS)["epoch"].idxmax()]
        ends = [
            f"{label(method, decay, rule)} {between(group['median'])}"
            for (method, rule, decay), group in last.groupby(LINE_KEYS[:3], sort=False)
        ]
        told.append(f"{QUANTITIES[quantity].capitalize()} at the end: {', '.join(ends)}.")
    return " ".join(told)


def _by_start(data: pd.DataFrame) -> str:
    """Say at which mean loss each method ends from its lowest, its best and its highest alpha_0."""
    told = []
    for (method, rule, decay), line in data.groupby(LINE_KEYS[:3], sort=False):
        line = line.sort_values("alpha0")
        points = line.iloc[0], line.loc[line["mean"].idxmin()], line.iloc[-1]
        losses = [scientific(point["mean"]) if np.isfinite(point["mean"]) else "diverged" for point in points]
        starts = [power_of_ten(point["alpha0"]) for point in points]
        ends = dict.fromkeys(f"{loss} from {start}" for loss, start in zip(losses, starts, strict=True))
        told.append(f"{label(method, decay, rule)}: {', '.join(ends)}.")
    return " ".join(told)


def _per_epoch(records: Sequence[Record]) -> pd.DataFrame:
    frame = frames.epochs(records)
    frame["valid_error"] = 1 - frame["valid_accuracy"]
    return frames.across_seeds(frame, "epoch", ["train_loss", "valid_loss", "valid_error", "alpha"])


def _early(records: Sequence[Record]) -> pd.DataFrame:
    frame = frames.trace(records)
    last = min(1000, int(frame["iteration"].max()))
    shown = np.unique(np.geomspace(1, last, EARLY_POINTS).astype(int))
    frame = frame[frame["iteration"].isin(shown) & np.isfinite(frame["loss"])]
    return frames.across_seeds(frame, "iteration", ["loss", "alpha"])


def _line(axis: plt.Axes, line: pd.DataFrame, x: str, **style) -> None:
    axis.plot(line[x], line["median"], **style)
    if line["seeds"].max() > 1:
        axis.fill_between(line[x], line["low"], line["high"], color=style["color"], alpha=0.18, lw=0)


def _x(data: pd.DataFrame) -> str:
    return "iteration" if "iteration" in data else "epoch"


def _same_epochs(theirs: pd.DataFrame, records: Sequence[Record], per_epoch: pd.DataFrame) -> pd.DataFrame:
    """Return those of the paper's curves that belong beside our runs, as far as ours go."""
    theirs = paper.beside(theirs, records[0].spec.model, records[0].spec.task)
    return theirs[theirs["epoch"] <= per_epoch["epoch"].max()]


def _table(per_epoch: pd.DataFrame, early: pd.DataFrame, theirs: pd.DataFrame) -> pd.DataFrame:
    """Return what a figure shows as one table, for its readers."""
    return pd.concat(
        [
            per_epoch.rename(columns={"epoch": "x"}).assign(axis="epoch"),
            early.rename(columns={"iteration": "x"}).assign(axis="iteration"),
            theirs.rename(columns={"epoch": "x", "value": "median"}).assign(axis="epoch, paper"),
        ]
    )


def _rate_colors(rates: Sequence[float], theme: Theme) -> dict[float, tuple]:
    """Return a colour for each alpha_0, in their order, of the part of a map that is readable on the page."""
    part = (0.4, 1.0) if theme.name == "dark" else (0.0, 0.62)
    return dict(zip(rates, plt.colormaps["plasma"](np.linspace(*part, len(rates))), strict=True))


def _scales(axis: plt.Axes, quantity: str, data: pd.DataFrame, linear_below: float, close: bool = False) -> None:
    axis.set_xlabel(_x(data))
    axis.set_ylabel(QUANTITIES[quantity])
    if _x(data) == "iteration":
        axis.set_xscale("log")
    else:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if quantity == "alpha":
        narrow = linear_below < 1e-4
        axis.set_yscale("symlog", linthresh=linear_below, linscale=0.4 if narrow else 1)
        ticks = linear_below * 10.0 ** np.arange(narrow, 8)  # zero has no room for another beside it
        axis.yaxis.set_major_locator(FixedLocator([*-ticks[::-1], 0, *ticks]))
        shown = data.loc[data["quantity"] == "alpha", ["low", "high"]].clip(-0.05, 1)
        low = min(0.0, float(shown["low"].min()))
        axis.set_ylim(low * 3 if low < -ALPHA_FLOOR else -ALPHA_FLOOR / 2, max(0.15, float(shown["high"].max()) * 1.5))
        return
    axis.set_ylim(*_limits(data, quantity, close))
    log_y(axis)


def _limits(data: pd.DataFrame, quantity: str, close: bool = False) -> tuple[float, float]:
    """Return the ends of an axis of losses or errors."""
    values = data.loc[data["quantity"] == quantity, "median"]
    values = values[np.isfinite(values) & (values > 0)]
    low, high = values.min(), min(values.max(), 20.0)
    margin = (high / low) ** 0.06 if close and high > low else 1.25
    return low / margin, high * margin


def log_y(axis: plt.Axes) -> None:
    """A logarithmic axis that names 1, 2 and 5 of each decade, and more of a shorter axis, in plain digits."""
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    subs = (1, 2, 5) if high > 50 * low else (1, 2, 3, 5) if high > 10 * low else (1, 1.5, 2, 3, 4, 5, 7)
    axis.yaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def _mark_divergence(
    early: plt.Axes, late: plt.Axes, records: Sequence[Record], color: Callable[[RunSpec], tuple]
) -> None:
    """Mark where runs diverge with a cross at the top of the early iterations, and count them beside the epochs."""
    lost = [r for r in records if r.outcome == "diverged"]
    for record in lost:
        style = dict(color=color(record.spec), marker="X", clip_on=False, markersize=6)
        early.plot([record.iterations], [0.98], transform=early.get_xaxis_transform(), linestyle="none", **style)
    if lost:
        first, last = min(r.iterations for r in lost), max(r.iterations for r in lost)
        span = f"iteration {first}" if first == last else f"iterations {first} to {last}"
        runs = "run" if len(lost) == 1 else "runs"
        counts = Counter(LABELS[r.spec.method] for r in lost)
        named = ", ".join(f"{count} {label}" for label, count in counts.items())
        text = f"✕ {named} {runs} diverged, {span}"
        late.text(0.98, 0.96, text, transform=late.transAxes, ha="right", va="top", fontsize="small")


def _marks(method: str, decay: str, points: int) -> dict:
    """Return a few marks along a line that tell its family, and how its learning rate falls, without colour."""
    first = FAMILIES.index(_family(method)) + 1
    return dict(marker=_marker(method, decay), markersize=MARK, markevery=(first * points // 24, max(1, points // 6)))


def _marker(method: str, decay: str) -> str:
    return MARKERS[_family(method)] if decay == "none" else DECAY_MARKERS[decay]


def _methods(records: Sequence[Record], theme: Theme) -> list[tuple[str, dict, str]]:
    """Return a legend's label, line and mark for each method that ran."""
    kinds = sorted(
        {(r.spec.method, r.spec.rule, r.spec.decay) for r in records},
        key=lambda kind: (list(LABELS).index(kind[0]), kind[1], kind[2]),
    )
    found = []
    for method, rule, decay in kinds:
        found.append((label(method, decay, rule), theme.line(method, rule, decay), _marker(method, decay)))
    return found


def _family(method: str) -> str:
    return method.removesuffix("_hd")


def _outcomes(records: Iterable[Record]) -> str:
    lost = [r for r in records if r.outcome == "diverged"]
    return f"{counted(len(lost), 'run').capitalize()} diverged." if lost else "No run diverged."
