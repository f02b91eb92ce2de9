"""What keeps alpha from running away, compared: the guards, and the automatic beta."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown
from matplotlib.lines import Line2D

from hdlib.report import frames
from hdlib.report.performance import read
from hdlib.report.style import LABELS, Figure, Table, Theme, between, power_of_ten, scientific
from hdlib.runs import BASELINE, Record, RunSpec

HD = tuple(BASELINE)


def by_cell(guarded: dict[str, Sequence[Record]], unguarded: Sequence[Record]) -> pd.DataFrame:
    """Return a row per guard, method and cell, which is a pair of alpha_0 and beta, with medians over seeds.

    A guard is compared with the runs of its own seeds alone.

    Columns beside these: `runs` and `diverged` ones; `loss`; `no_hd`, the loss of the fixed rate alpha_0; `over_best`,
    the loss over that of the best fixed rate; `plain`, that of the plain rule from alpha_0 with its best beta.
    """
    plain, base = frames.outcomes(guarded["plain"]), frames.outcomes(unguarded)
    found = []
    for name, records in guarded.items():
        runs = frames.outcomes(records)
        cells = runs.groupby(["method", "alpha0", "beta"], sort=False, as_index=False).agg(
            runs=("loss", "size"), diverged=("diverged", "sum"), loss=("loss", "median")
        )
        rates, rules = (frame[frame["seed"].isin(runs["seed"])] for frame in (base, plain))
        no_hd = rates.groupby(["method", "alpha0"])["loss"].median()
        best = rules.groupby(["method", "alpha0", "beta"])["loss"].median().groupby(["method", "alpha0"]).min()
        fixed = cells["method"].map(BASELINE)
        cells["no_hd"] = no_hd.loc[pd.MultiIndex.from_arrays([fixed, cells["alpha0"]])].to_numpy()
        cells["over_best"] = cells["loss"] / fixed.map(no_hd.groupby("method").min())
        cells["plain"] = best.loc[pd.MultiIndex.from_frame(cells[["method", "alpha0"]])].to_numpy()
        found.append(cells.assign(guard=name))
    return pd.concat(found, ignore_index=True)


def table(guarded: dict[str, Sequence[Record]], unguarded: Sequence[Record]) -> Table:
    """Return how each guard fares over the grid: divergence, against no HD, and against the best fixed rate."""
    cells = by_cell(guarded, unguarded)
    rows = []
    for name in guarded:
        for method in HD:
            own = cells[(cells["guard"] == name) & (cells["method"] == method)]
            if own.empty:
                continue
            by_rate = own.groupby("alpha0")[["loss", "plain"]].min().replace(np.inf, np.nan)  # not where none converges
            rows.append(
                {
                    "guard": name,
                    "method": LABELS[method],
                    "diverged": f"{own['diverged'].sum()} of {own['runs'].sum()}",
                    "below the fixed rate": f"{int((own['loss'] < own['no_hd']).sum())} of {len(own)}",
                    "best β ÷ plain": between(by_rate["loss"] / by_rate["plain"]),
                    "all ÷ best fixed": between(own["over_best"]),
                }
            )
    note = frames.note([r for records in guarded.values() for r in records])
    return Table(pd.DataFrame(rows), f"{note} A guard with fewer seeds than others is compared over its own.")


def worst_losses(guarded: dict[str, Sequence[Record]], unguarded: Sequence[Record]) -> pd.DataFrame:
    """Return each guard's worst loss over the best fixed rate's: a column a method, infinite where a run diverged."""
    cells = by_cell(guarded, unguarded)
    cells["worst"] = cells["over_best"].mask(cells["diverged"] > 0, np.inf)
    return cells.groupby(["guard", "method"])["worst"].max().unstack().reindex(index=list(guarded), columns=list(HD))


def figure(guarded: dict[str, Sequence[Record]], unguarded: Sequence[Record], name: str, caption: str) -> Figure:
    """Draw each guard's worst cell, a panel a method; a cross at the right edge where a run diverged."""
    worst = worst_losses(guarded, unguarded)

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

    alt = f"Worst loss of each guard over that of the best fixed learning rate. {sentence(guarded, unguarded)}"
    records = [r for own in guarded.values() for r in own]
    return Figure(draw, name, alt, worst.reset_index(), frames.note(records), caption)


def sentence(guarded: dict[str, Sequence[Record]], unguarded: Sequence[Record]) -> str:
    """Say which guards lost no run, and which two of them have the smallest worst loss over the three methods."""
    worst = worst_losses(guarded, unguarded).max(axis=1)
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


def automatic_figure(automatic: Sequence[Record], plain: Sequence[Record], unguarded: Sequence[Record], name: str,
                   caption: str) -> Figure:  # fmt: skip
    """Draw the final loss against alpha_0: no HD, the plain rule over all its betas, and the automatic beta."""
    auto, rule, base = frames.outcomes(automatic), frames.outcomes(plain), frames.outcomes(unguarded)
    shown = np.concatenate([frame["loss"][np.isfinite(frame["loss"])] for frame in (auto, rule, base)])
    top = 1.2 * min(20, shown.max())

    def draw(theme: Theme) -> plt.Figure:
        figure, axes = plt.subplots(1, 3, figsize=(9, 3.9), sharey=True)
        for axis, method in zip(axes, HD, strict=True):
            fixed = base[base["method"] == BASELINE[method]].groupby("alpha0")["loss"].median()
            axis.plot(fixed.index, fixed, marker="o", markersize=4, **theme.line(BASELINE[method]))
            cells = rule[rule["method"] == method].groupby(["alpha0", "beta"])["loss"].median().unstack("beta")
            for beta in cells:
                axis.plot(cells.index, cells[beta], ".", color=theme.paper, markersize=5)
            beyond = cells.index[(cells[np.isfinite(cells)] > top).any(axis=1)]
            axis.plot(beyond, [0.94 * top] * len(beyond), "^", color=theme.paper, markersize=4)
            own = auto[auto["method"] == method].groupby("alpha0")["loss"]
            style = theme.line(method)
            axis.plot(own.median().index, own.median(), marker="D", markersize=5, **style)
            axis.fill_between(own.median().index, own.min(), own.max(), color=style["color"], alpha=0.2, lw=0)
            axis.set(xscale="log", yscale="log", title=LABELS[method], xlabel="initial learning rate α₀")
        handles = [
            Line2D([], [], color=theme.text, linestyle="--", marker="o", markersize=4, label="no HD"),
            Line2D(
                [],
                [],
                color=theme.paper,
                linestyle="",
                marker=".",
                markersize=5,
                label="plain rule, a dot a β (▲: also above)",
            ),
            Line2D([], [], color=theme.text, marker="D", markersize=5, label="automatic β"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
        axes[0].set_ylim(0.8 * shown.min(), top)
        axes[0].set_ylabel("final training loss")
        return figure

    data = pd.concat([auto.assign(what="automatic"), rule.assign(what="plain"), base.assign(what="no HD")])
    alt = f"Final training loss against alpha_0. {automatic_sentences(automatic, plain, unguarded)}"
    records = [*automatic, *plain, *unguarded]
    return Figure(draw, name, alt, data, frames.note(records), caption)


def automatic_sentences(automatic: Sequence[Record], plain: Sequence[Record], unguarded: Sequence[Record]) -> str:
    """Say how often the automatic beta diverges, and where it beats every beta of the plain rule, and no HD."""
    lines = []
    for method, n in _counted(automatic, plain, unguarded).items():
        lines.append(
            f"- {LABELS[method]} with the automatic β: {n['lost'] or 'none'} of {n['runs']} runs diverged. The loss is "
            f"at or below the plain rule's in {n['beaten']} of the {n['pairs']} pairs of α₀ and β where that one "
            f"converges, below that of the fixed rate α₀ from {n['lower']} of {n['rates']} initial learning rates, and "
            f"{between(n['over_best'])} times that of the best fixed rate, α = {power_of_ten(n['best'])}."
        )
    return "\n".join(lines)


def automatic_in_all(comparisons: Sequence[tuple[Sequence[Record], Sequence[Record], Sequence[Record]]]) -> str:
    """Say the same of several models together; each comparison is what `automatic_sentences` takes."""
    counts = [n for comparison in comparisons for n in _counted(*comparison).values()]
    total = {name: sum(n[name] for n in counts) for name in ("lost", "runs", "beaten", "pairs", "lower", "rates")}
    over = pd.concat([n["over_best"] for n in counts])
    return (
        f"In the comparisons over whole epochs below, {total['lost'] or 'none'} of {total['runs']} runs with the "
        f"automatic β diverged. It ended at or below the plain rule in {total['beaten']} of the {total['pairs']} pairs "
        f"of α₀ and β where that one converges, and below the fixed rate α₀ from {total['lower']} of {total['rates']} "
        f"initial learning rates. Its loss is {scientific(over.median())} times that of the best of six fixed rates in "
        f"the median, from {between(over)}.{_coinciding(comparisons)}"
    )


def _coinciding(comparisons: Sequence[tuple[Sequence[Record], Sequence[Record], Sequence[Record]]]) -> str:
    """Say which runs with the automatic beta are the same run, because their first step is limited alike."""
    told = {frames.coinciding(automatic) for automatic, _, _ in comparisons} - {""}
    return f" {'; '.join(sorted(told))}: a first step that is limited alike makes one run of them." if told else ""


def _counted(
    automatic: Sequence[Record], plain: Sequence[Record], unguarded: Sequence[Record]
) -> dict[str, dict[str, Any]]:
    """Return for each method: runs and lost ones; pairs and beaten ones; rates and lower ones; over the best rate."""
    auto, rule, base = frames.outcomes(automatic), frames.outcomes(plain), frames.outcomes(unguarded)
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


def costs(store: str) -> Table | Markdown:
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
