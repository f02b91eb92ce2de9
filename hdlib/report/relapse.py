"""Runs that fell back far behind what they had reached: which did, how, and what would have kept them from it."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from hdlib.report import frames
from hdlib.report.figures import log_y
from hdlib.report.style import LABELS, Figure, Table, Theme, scientific, significant, spread
from hdlib.runs import Record

FACTOR = 1.5  # a training loss at the end that many times the lowest one is a relapse
OTHER = {"light": "#b03a2e", "dark": "#ff8f6b"}  # a colour beside a theme's
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)), (0, (9, 2)))  # the ways are told apart without colour
SHOWN = (15, 45)  # iterations before and after the largest hypergradient that a figure shows


def relapsed(records: Sequence[Record]) -> list[Record]:
    """Return the runs that end far above their lowest training loss."""
    found = []
    for record in (r for r in records if r.outcome != "diverged"):
        loss = _losses(record)
        if loss.iloc[-1] > FACTOR * loss.min():
            found.append(record)
    return found


def epoch_of(record: Record) -> int:
    """Return the epoch whose training loss is the most above that of the epoch before."""
    return int(_losses(record).diff().idxmax())


def began(record: Record) -> int:
    """Return the epoch in which a run fell back: that before `epoch_of` if at its end validation shows it already."""
    jump, loss = epoch_of(record), record.epochs.set_index("epoch")["valid_loss"]
    before, after = (loss.get(epoch, np.nan) for epoch in (jump - 2, jump - 1))
    return jump - 1 if after > FACTOR * before else jump


def sentences(records: Sequence[Record]) -> list[str]:
    """Return a sentence for each run that relapsed, and where the other seeds of its method end."""
    told = []
    for record in relapsed(records):
        loss, alpha = _losses(record), record.epochs.set_index("epoch")["alpha"]
        jump, method = epoch_of(record), record.spec.method
        text = (
            f"{LABELS[method]} with seed {record.spec.seed} fell back: its training loss, {significant(loss.min())} in "
            f"epoch {loss.idxmin()}, is {significant(loss.iloc[-1])} in the last (from {FACTOR} times the lowest on a "
            f"run counts as fallen back). It began in epoch {began(record)}{recovered(record)}. The training loss, a "
            f"mean over an epoch, rose most in epoch {jump}, in which the mean α went from "
            f"{significant(alpha[jump - 1])} to {significant(alpha[jump])}."
        )
        others = [r for r in records if r.spec.method == method and r is not record]
        if others:
            ends = frames.finals(others)["train_loss"]
            text += f" With {'the other seed' if len(ends) == 1 else f'the {len(ends)} other seeds'} it ends at "
            text += f"{spread(ends)}."
        told.append(text)
    return told


def recovered(record: Record) -> str:
    """Return the validation accuracy before and after a run fell back and at its end, to follow that it did."""
    accuracy = 100 * record.epochs.set_index("epoch")["valid_accuracy"].dropna()
    before, after = accuracy[accuracy.index < began(record)], accuracy[accuracy.index >= began(record)]
    if before.empty or after.empty:
        return ""
    return (
        f" (accuracy: {before.iloc[-1]:.1f} % after epoch {before.index[-1]}, {after.iloc[0]:.1f} % after epoch "
        f"{after.index[0]}, {after.iloc[-1]:.1f} % at the end)"
    )


def story(branches: pd.DataFrame, record: Record) -> str:
    """Say what happened around the largest hypergradient, iteration by iteration.

    Args:
        branches: what `branch.branches` returns, from the epoch before `epoch_of` on.
        record: of the run.
    """
    who = f"{LABELS[record.spec.method]} with seed {record.spec.seed}"
    if branches.empty:
        return (
            f"The run of {who} is of another kind of machine, or did not repeat itself bit for bit here, so it was not "
            "looked into."
        )
    rows = _as_it_was(branches)
    top = int(rows["hypergrad"].abs().idxmax())
    first = top
    while first and rows["alpha"][first - 1] < 0:
        first -= 1
    at = rows.loc[top]
    if 0 < first < top:
        before, start, steps = rows.loc[first - 1], rows.loc[first], top - first
        text = (
            f"At iteration {start['iteration']:,.0f} of {who}, after a step with α = {significant(before['alpha'])}, "
            f"the minibatch loss is {significant(start['loss'])}, {significant(before['loss'])} one step earlier, and "
            f"h = {significant(start['hypergrad'])}. That takes α to {significant(start['alpha'])}, below zero, so "
            f"that steps go up the loss: after {'one' if steps == 1 else steps} it is {significant(at['loss'])}. There "
        )
    else:
        text = f"At iteration {at['iteration']:,.0f} of {who} "
    text += f"h = {significant(at['hypergrad'])}, the largest in size of these epochs, takes α to "
    text += f"{significant(at['alpha'])}. "
    after = rows.loc[top + 1 :, "hypergrad"].abs()
    if len(after):
        text += (
            f"In what follows of these epochs |h| is {significant(after.median(), 2)} in the median, so that a step "
            f"changes α by {scientific(record.spec.beta * after.median())}, and "
        )
    last = significant(record.epochs["alpha"].iloc[-1])
    return f"{text}{'in' if len(after) else 'In'} the last epoch α still is {last}."


def ways(branches: pd.DataFrame, record: Record) -> Table:
    """Return how far alpha goes, and which training loss is reached, in each way."""
    jump = epoch_of(record)
    rows = []
    for way, own in branches[branches["epoch"] >= jump].groupby("way", sort=False):
        loss = own.groupby("epoch")["loss"].mean()
        ended = int(loss.index[-1])
        rows.append(
            {
                f"from epoch {jump} on": _named(way),
                "lowest α": significant(own["alpha"].min()),
                "highest α": significant(own["alpha"].max()),
                f"training loss, epoch {jump}": significant(loss[jump]),
                f"epoch {ended}": significant(loss[ended]),
            }
        )
    return Table(pd.DataFrame(rows))


def note(branches: pd.DataFrame, record: Record) -> str:
    """Say from where the ways go on, and what had happened before."""
    jump = epoch_of(record)
    validation = record.epochs.set_index("epoch")["valid_loss"].reindex([jump - 2, jump - 1])
    seen = f" and its validation loss {significant(validation.iloc[1])}" if np.isfinite(validation.iloc[1]) else ""
    seen += f" ({significant(validation.iloc[0])} one epoch earlier)" if np.isfinite(validation).all() else ""
    text = (
        f"One run, continued from the end of epoch {jump - 1}, where its training loss was "
        f"{significant(_losses(record)[jump - 1])}{seen}, in {branches['way'].nunique()} ways."
    )
    if began(record) < jump:
        text += (
            f" The step that harmed it first is one of the last of epoch {jump - 1}, before the ways part: what is "
            "compared is how each goes on from it, not whether it would have come to it."
        )
    return text


def ways_sentence(branches: pd.DataFrame, record: Record) -> str:
    """Say in which ways the last training loss is a relapse from that before `epoch_of`, and in which it is not."""
    jump = epoch_of(record)
    known = _losses(record)[jump - 1]
    ends = {
        way: own[own["epoch"] == own["epoch"].max()]["loss"].mean() for way, own in branches.groupby("way", sort=False)
    }
    kept = [way for way, loss in ends.items() if loss <= FACTOR * known]
    lost = [way for way in ends if way not in kept]

    def told(some: list[str]) -> str:
        return "; ".join(map(_named, some)) if some else "none"

    return (
        f"In the last of these epochs the training loss is at most {FACTOR:g} times that of epoch {jump - 1} with: "
        f"{told(kept)}. It is higher with: {told(lost)}."
    )


def figure(branches: pd.DataFrame, record: Record, name: str, caption: str = "") -> Figure:
    """Draw alpha and the minibatch loss around the largest hypergradient, a line for each way."""
    rows = _as_it_was(branches)
    top = rows["iteration"][rows["hypergrad"].abs().idxmax()]
    data = branches[branches["iteration"].between(top - SHOWN[0], top + SHOWN[1])]
    names = list(dict.fromkeys(data["way"]))

    def draw(theme: Theme) -> plt.Figure:
        figure, axes = plt.subplots(1, 2, figsize=(9, 3.8))
        colors = (*theme.palette, OTHER[theme.name])
        for axis, column, label in zip(axes, ("alpha", "loss"), ("learning rate α", "minibatch loss"), strict=True):
            for i, way in reversed(list(enumerate(names))):
                own = data[data["way"] == way]
                style = dict(color=colors[(i - 1) % len(colors)], lw=1.5, linestyle=DASHES[(i - 1) % len(DASHES)])
                style = style if i else dict(color=theme.text, lw=2.0)
                axis.plot(own["iteration"], own[column], label=_named(way), zorder=3 - i / 10, **style)
            axis.set(xlabel="iteration", ylabel=label)
            axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axis.xaxis.set_major_formatter("{x:,.0f}")
        axes[0].set_yscale("symlog", linthresh=1e-2)
        log_y(axes[1])
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], loc="outside upper center", ncols=3)
        return figure

    alt = (
        f"Two panels around iteration {top:,.0f}: the learning rate and the minibatch loss of one run, as it was and "
        f"in {len(names) - 1} other ways. {story(branches, record)} {ways_sentence(branches, record)}"
    )
    return Figure(draw, name, alt, data, note(branches, record), caption)


def _named(way: str) -> str:
    """Return what a way is called: the β of the multiplicative rule is the paper's β′."""
    return way.replace("multiplicative, β =", "multiplicative, β′ =")


def _losses(record: Record) -> pd.Series:
    """Return the training loss of each epoch."""
    after = record.epochs[record.epochs["epoch"] > 0]
    return after.set_index("epoch")["train_loss"]


def _as_it_was(branches: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the way that changes nothing, which comes first."""
    return branches[branches["way"] == branches["way"].iloc[0]].reset_index(drop=True)
