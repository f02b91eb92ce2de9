"""The figures of the book, each a function of recorded runs alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from hdlib.report import frames, paper
from hdlib.report.style import LABELS, QUANTITIES, Figure, Theme, power_of_ten
from hdlib.runs import BASELINE, Record

LINE_KEYS = ["method", "rule", "decay", "alpha0"]
ALPHA_FLOOR = 1e-6  # below this an axis of learning rates is linear, so that zero and negative values have a place
EARLY_POINTS = 100  # points drawn of the early iterations, log-spaced


def online_tuning(records: Sequence[Record], family: str, name: str, caption: str = "") -> Figure:
    """Draw how a method and its hypergradient version fare from each alpha_0 (the paper's Figure 2).

    Args:
        records: runs of one model; those of other families are left out.
        family: the baseline, "sgd", "sgdn" or "adam".
        name: of the figure.

    Curves are means over seeds, bands reach from the lowest to the highest seed, a stronger line is a larger
    alpha_0. The left column shows the early iterations, the right one epochs. The paper's curves are grey.
    """
    records = [r for r in records if BASELINE.get(r.spec.method, r.spec.method) == family]
    theirs = paper.figure2()
    theirs = theirs[theirs["method"].isin([family, f"{family}_hd"])]
    rates = {r.spec.alpha0 for r in records}
    shown = f"{LABELS[family]} (dashed) and {LABELS[family]}-HD (solid) from {len(rates)} initial learning rates"
    return _six_panels(records, theirs, name, shown, caption, ALPHA_FLOOR)


def tuning(records: Sequence[Record], name: str, caption: str = "") -> Figure:
    """Draw all methods from one alpha_0 (the paper's Figure 3), beside the paper's curves in grey."""
    shown = "SGD, SGD with Nesterov momentum and Adam (dashed) and their hypergradient versions (solid)"
    return _six_panels(records, paper.figure3(), name, shown, caption, linear_below=1e-3)


def _six_panels(
    records: Sequence[Record], theirs: pd.DataFrame, name: str, shown: str, caption: str, linear_below: float
) -> Figure:
    """Draw losses, error and learning rate, early and by epoch; `theirs` are the paper's curves."""
    per_epoch, early = _per_epoch(records), _early(records)
    theirs = theirs[(theirs["model"] == records[0].spec.model) & (theirs["epoch"] <= per_epoch["epoch"].max())]
    rates = sorted({r.spec.alpha0 for r in records})

    def draw(theme: Theme) -> plt.Figure:
        figure, axes = plt.subplots(3, 2, figsize=(9, 9), width_ratios=[1, 1.25])
        panels = [
            (axes[0, 0], early, "loss"),
            (axes[0, 1], per_epoch, "train_loss"),
            (axes[1, 0], per_epoch, "valid_error"),
            (axes[1, 1], per_epoch, "valid_loss"),
            (axes[2, 0], early, "alpha"),
            (axes[2, 1], per_epoch, "alpha"),
        ]
        for axis, data, quantity in panels:
            x = "iteration" if data is early else "epoch"
            if data is per_epoch:
                _paper_lines(axis, theirs[theirs["quantity"] == quantity], theme)
            for (method, rule, decay, alpha0), line in data[data["quantity"] == quantity].groupby(LINE_KEYS):
                _line(axis, line, x, **theme.line(method, rule, decay, _strength(alpha0, rates)))
            _scales(axis, x, quantity, data, linear_below)
        _mark_divergence(axes[0, 0], axes[0, 1], records, theme, rates)
        _legend(figure, records, theme, theirs)
        return figure

    alt = (
        f"Six panels for {shown}: training loss, validation loss and error, and learning rate, over the first "
        f"iterations and over epochs. {_outcomes(records)}"
    )
    data = pd.concat(
        [
            per_epoch.rename(columns={"epoch": "x"}).assign(axis="epoch"),
            early.rename(columns={"iteration": "x"}).assign(axis="iteration"),
            theirs.rename(columns={"epoch": "x", "value": "mean"}).assign(axis="epoch, paper"),
        ]
    )
    return Figure(draw, name, alt, data, frames.note(records), caption)


def _strength(alpha0: float, rates: Sequence[float]) -> float:
    """Return how strongly a line from alpha_0 is coloured: the largest of several rates fully, the smallest least."""
    return 1.0 if len(rates) == 1 else 0.45 + 0.55 * rates.index(alpha0) / (len(rates) - 1)


def final_loss(records: Sequence[Record], name: str, quantity: str = "train_loss", caption: str = "") -> Figure:
    """Draw the last epoch's loss against alpha_0: a flat line is a method that does not mind where it starts."""
    finals = frames.finals(records)
    finals = finals[finals["rule"] != "multiplicative"]
    families = [f for f in ("sgd", "sgdn", "adam") if (finals["method"] == f).any()]
    keys = ["method", "rule", "decay", "alpha0"]
    data = finals.groupby(keys)[quantity].agg(mean="mean", low="min", high="max", seeds="count").reset_index()

    def draw(theme: Theme) -> plt.Figure:
        figure, axes = plt.subplots(1, len(families), figsize=(9, 3.6), sharey=True, squeeze=False)
        for axis, family in zip(axes[0], families, strict=True):
            own = data[data["method"].isin([family, f"{family}_hd"])]
            for (method, rule, decay), line in own.groupby(["method", "rule", "decay"]):
                finite = line[np.isfinite(line["mean"])]
                style = theme.line(method, rule, decay)
                label = LABELS[method if decay == "none" else f"{method}_decayed"]
                axis.plot(finite["alpha0"], finite["mean"], marker="o", markersize=4, label=label, **style)
                axis.fill_between(
                    finite["alpha0"], finite["low"], finite["high"], color=style["color"], alpha=0.2, lw=0
                )
                lost = line[~np.isfinite(line["mean"])]
                top = axis.get_xaxis_transform()
                axis.plot(lost["alpha0"], np.full(len(lost), 0.97), "x", color=style["color"], transform=top)
            axis.set(xscale="log", xlabel="initial learning rate α₀", title=LABELS[family])
            _log_y(axis)
            axis.legend()
        axes[0, 0].set_ylabel(f"final {QUANTITIES[quantity]}")
        return figure

    names = " and ".join(LABELS[f] for f in families)
    alt = (
        f"Final {QUANTITIES[quantity]} against the initial learning rate for {names} (dashed) and their hypergradient "
        f"versions (solid). {_outcomes(records)}"
    )
    return Figure(draw, name, alt, data, frames.note(records), caption)


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
    axis.plot(line[x], line["mean"], **style)
    if line["seeds"].max() > 1:
        axis.fill_between(line[x], line["low"], line["high"], color=style["color"], alpha=0.18, lw=0)


def _paper_lines(axis: plt.Axes, theirs: pd.DataFrame, theme: Theme) -> None:
    keys = [key for key in ("method", "rule", "alpha0") if key in theirs]
    for key, line in theirs.groupby(keys):
        style = theme.line(key[0]) | dict(color=theme.paper, linewidth=2.4, alpha=0.35)
        axis.plot(line["epoch"], line["value"], **style, zorder=1)


def _scales(axis: plt.Axes, x: str, quantity: str, data: pd.DataFrame, linear_below: float) -> None:
    axis.set_xlabel(x)
    axis.set_ylabel(QUANTITIES[quantity])
    if x == "iteration":
        axis.set_xscale("log")
    if quantity == "alpha":
        axis.set_yscale("symlog", linthresh=linear_below, linscale=0.4 if linear_below < 1e-4 else 1)
        shown = data.loc[data["quantity"] == "alpha", "mean"].clip(-0.05, 1)
        low = min(0.0, float(shown.min()))
        axis.set_ylim(low * 3 if low < -ALPHA_FLOOR else -ALPHA_FLOOR / 2, max(0.15, float(shown.max()) * 1.5))
        return
    _log_y(axis)
    values = data.loc[data["quantity"] == quantity, "mean"]
    values = values[np.isfinite(values) & (values > 0)]
    axis.set_ylim(values.min() * 0.8, min(values.max(), 20.0) * 1.25)


def _log_y(axis: plt.Axes) -> None:
    """A logarithmic axis that names 1, 2 and 5 of each decade, in plain digits."""
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def _mark_divergence(early: plt.Axes, late: plt.Axes, records: Sequence[Record], theme: Theme, rates: list) -> None:
    lost = [r for r in records if r.outcome == "diverged"]
    for record in lost:
        color = theme.color(record.spec.method, _strength(record.spec.alpha0, rates))
        style = dict(color=color, marker="X", clip_on=False, markersize=6)
        early.plot([record.iterations], [0.98], transform=early.get_xaxis_transform(), linestyle="none", **style)
    if lost:
        first, last = min(r.iterations for r in lost), max(r.iterations for r in lost)
        span = f"iteration {first}" if first == last else f"iterations {first} to {last}"
        runs = "run" if len(lost) == 1 else "runs"
        text = f"✕ {len(lost)} {LABELS[lost[0].spec.method]} {runs} diverged, {span}"
        late.text(0.98, 0.96, text, transform=late.transAxes, ha="right", va="top", fontsize="small")


def _legend(figure: plt.Figure, records: Sequence[Record], theme: Theme, theirs: pd.DataFrame) -> None:
    kinds = sorted(
        {(r.spec.method, r.spec.rule, r.spec.decay) for r in records},
        key=lambda kind: (list(LABELS).index(kind[0]), kind[1], kind[2]),
    )
    handles = []
    for method, rule, decay in kinds:
        label = LABELS[method if decay == "none" else f"{method}_decayed"]
        label += ", multiplicative" if rule == "multiplicative" else ""
        handles.append(Line2D([], [], label=label, **theme.line(method, rule, decay)))
    if len(theirs):
        handles.append(Line2D([], [], color=theme.paper, linewidth=2.4, alpha=0.5, label="the paper's curves"))
    rates = sorted({r.spec.alpha0 for r in records}, reverse=True)
    if len(rates) > 1:
        method = records[0].spec.method
        for rate in rates:
            color = theme.color(method, _strength(rate, sorted(rates)))
            handles.append(Line2D([], [], color=color, linewidth=4, label=f"α₀ = {power_of_ten(rate)}"))
    figure.legend(handles=handles, loc="outside upper center", ncols=4 if len(handles) > 6 else len(handles))


def _outcomes(records: Iterable[Record]) -> str:
    lost = [r for r in records if r.outcome == "diverged"]
    return f"{len(lost)} runs diverged." if lost else "No run diverged."
