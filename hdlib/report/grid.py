"""The grid search over alpha_0 and beta, the paper's Figure 4: how long until a loss is reached, and what follows.

Every function takes records of runs with a target loss. A run that did not reach it, because it was capped or
diverged, counts as infinitely long: it is never averaged away, and medians over seeds stay meaningful. Divergence is
told apart from not arriving by the cap: a cell has diverged if at least half of its seeds have.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from decimal import ROUND_DOWN, Context

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import LogNorm
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from scipy import stats

from hdlib.report import frames, paper
from hdlib.report.style import LABELS, MODELS, Figure, Table, Theme, counted, label, power_of_ten, significant
from hdlib.runs import BASELINE, Record, steps_per_epoch

CELL = ["method", "decay", "alpha0", "beta"]
PAPERS_BASELINE = {"sgd_hd": ("sgd", "none"), "sgdn_hd": ("sgdn", "none"), "adam_hd": ("adam", "inv_sqrt")}
PLAIN_BASELINE = {method: (baseline, "none") for method, baseline in BASELINE.items()}
ALIKE = 1.05  # factor within which the medians of two neighbouring cells are nearly the same
MARKS = {"above": "▲", "below": "▼"}
CRITERIA = {
    "minibatch": "one minibatch",
    "smoothed": "mean of 100 minibatches",
    "epoch": "all training data, at an epoch's end",
}


def reached(records: Sequence[Record], seeds: int | None = None, cap: float = np.inf) -> pd.DataFrame:
    """Return a row per run: its cell, its seed, its outcome, and iterations, infinite where it did not arrive.

    Args:
        seeds: of which runs are taken, 0 to seeds - 1; by default all.
        cap: runs that arrived later count as not arrived.
    """
    rows = [
        {name: getattr(r.spec, name) for name in (*CELL, "seed")}
        | {"outcome": r.outcome, "iterations": float(r.iterations) if r.outcome == "reached" else np.inf}
        | {"ended": r.iterations}
        for r in records
        if seeds is None or r.spec.seed < seeds
    ]
    frame = pd.DataFrame(rows)
    frame["iterations"] = frame["iterations"].where(frame["iterations"] <= cap, np.inf)
    return frame


def cells(frame: pd.DataFrame) -> pd.DataFrame:
    """Return, of what `reached` returns, a row per cell: median and range over seeds, the paper's number or NaN.

    `unreached` counts the seeds that did not arrive, `lost` those of them that diverged.
    """
    marked = frame.assign(unreached=np.isinf(frame["iterations"]), lost=frame["outcome"] == "diverged")
    grouped = marked.groupby(CELL)
    table = grouped["iterations"].agg(median="median", low="min", high="max", seeds="count")
    table = table.join(grouped[["unreached", "lost"]].sum().astype(int)).reset_index()
    table["diverged"] = 2 * table["lost"] >= table["seeds"]
    theirs = paper.figure4().rename(columns={"iterations": "paper"})
    theirs["decay"] = np.where(theirs["method"] == "adam", "inv_sqrt", "none")  # as its curves show
    return table.merge(theirs, on=CELL, how="left")


def printed(records: Sequence[Record]) -> bool:
    """Say whether the paper prints numbers for these runs: it does for logistic regression and a minibatch's loss."""
    spec = records[0].spec
    return (spec.task, spec.model, spec.target_of, spec.target_loss) == ("mnist", "logreg", "minibatch", paper.TARGET)


def opening(records: Sequence[Record], others: Mapping[str, Sequence[Record]]) -> str:
    """Say what the paper prints and says of these runs' grid, whose loss it most likely means, and what was run.

    Args:
        others: runs with other criteria of arrival by `target_of`; there may be none.
    """
    spec, seeds, cap = records[0].spec, counted(frames.seeds(records)[1], "seed"), _cap(records)
    if not printed(records):
        told = f"The paper prints numbers for a minibatch's loss of {paper.TARGET} on MNIST, and none for these runs."
        if spec.model == "mlp":
            told = (
                "The paper says that what its Figure 4 finds for logistic regression holds for other models, too, and "
            )
            told += "prints no number of them."
        steps = steps_per_epoch(spec.task)
        length = f"{cap:,} iterations" if cap % steps else counted(cap // steps, "epoch")
        model = MODELS.get(spec.model, spec.model)
        return (
            f"{told} Here is the grid for {model}: {length} at most, {seeds}, until the loss of "
            f"{CRITERIA[spec.target_of]} is at {spec.target_loss:g}."
        )
    theirs = paper.figure4()
    betas = sorted(theirs.loc[theirs["beta"] > 0, "beta"])
    text = (
        f"For logistic regression and a loss of {spec.target_loss:g} the paper prints {len(theirs)} numbers of "
        f"iterations, with β from {power_of_ten(betas[0])} to {power_of_ten(betas[-1])}, one run each. Its reading is "
        "that a hypergradient method is no slower than its baseline except where α₀ and β are large, and that it "
        f"hardly minds α₀ once β is good.\n\nThe paper does not say whose loss has to be {spec.target_loss:g}. Most "
        f"likely that of a single *minibatch* of {spec.batch_size} images: the authors' code stops on it, and "
        f"{within(records)} of the paper's {len(theirs)} numbers lie within our {seeds} with this criterion"
    )
    if others:
        most = max(map(within, others.values()))
        fewer = {r.spec.seed for own in others.values() for r in own}
        some = [r for r in records if r.spec.seed in fewer]
        text += f", {within(some)} within {len(fewer)} of them" if len(some) < len(records) else ""
        text += f"; with the other criteria of this page, {counted(len(fewer), 'seed')} each, "
        text += f"at most {most} do" if most else "none does"
    return (
        f"{text}. The lowest loss among many noisy ones comes down long before the loss over the whole training set "
        f"does, and one lucky minibatch ends the run. So the grid is run with {seeds}"
        + (", and with other criteria, too." if others else ".")
    )


def within(records: Sequence[Record]) -> int:
    """Return how many of the paper's numbers lie within our seeds."""
    return sum(_place(row, _cap(records)) == "within" for row in cells(reached(records)).itertuples())


def own_within(records: Sequence[Record]) -> tuple[int, int]:
    """Return in how many of the paper's cells a seed of ours lies within the others': the fewest and the most of any.

    That is how many another run of the same program would have.
    """
    frame = reached(records)
    theirs = cells(frame).set_index(CELL)["paper"].dropna().index
    runs = frame.pivot(index=CELL, columns="seed", values="iterations").loc[theirs]
    counts = [
        int(runs[seed].between(others.min(axis=1), others.max(axis=1)).sum())
        for seed, others in ((seed, runs.drop(columns=seed)) for seed in runs)
    ]
    return min(counts), max(counts)


def heatmap(records: Sequence[Record], name: str) -> Figure:
    """Draw the grid as the paper does: the median of each cell, how it failed, and where the paper's number lies.

    A red frame marks the cells in which the hypergradient method takes longer, in the median, than its baseline at the
    same alpha_0: the paper's where the paper prints numbers, the one without decay elsewhere.
    """
    table = cells(reached(records))
    cap = _cap(records)
    slower = _slower(records, PAPERS_BASELINE if printed(records) else PLAIN_BASELINE)
    places = [_place(row, cap) if printed(records) else "" for row in table.itertuples()]
    table["mark"] = [MARKS.get(place, "") for place in places]
    norm, colours = LogNorm(min(10, cap / 10), cap), plt.get_cmap("viridis_r")

    def draw(theme: Theme) -> plt.Figure:
        figure, axes = plt.subplots(3, 1, figsize=(9, 8))
        for axis, method in zip(axes, BASELINE, strict=True):
            own = table.merge(_columns(method), on=["method", "decay"])
            own["column"] = [
                _beta_label(row.beta) if row.method in BASELINE else label(row.method, row.decay)
                for row in own.itertuples()
            ]
            order = [*dict.fromkeys(own.sort_values(["order", "beta"])["column"])]
            values = own.pivot(index="alpha0", columns="column", values="median")[order].sort_index(ascending=False)
            sns.heatmap(
                values.clip(upper=cap),
                ax=axis,
                cmap=colours,
                norm=norm,
                cbar=False,
                linewidths=0.6,
                linecolor=theme.grid,
            )
            for row in own.itertuples():
                x, y = order.index(row.column), values.index.get_loc(row.alpha0)
                ink = theme.text
                if row.diverged:
                    axis.add_patch(Rectangle((x, y), 1, 1, fc=theme.grid, ec=theme.background, lw=0.6))
                elif np.isinf(row.median):
                    axis.add_patch(Rectangle((x, y), 1, 1, fc=theme.background, ec=theme.grid, lw=0.6, hatch="///"))
                else:
                    ink = _ink(colours(norm(row.median)))
                text = f"{_count(row.median, cap, row.diverged)} {row.mark}".strip()
                axis.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=9, color=ink)
                if (row.method, row.alpha0, row.beta) in slower:
                    axis.add_patch(Rectangle((x, y), 1, 1, fill=False, ec="#d62728", lw=2, clip_on=False, zorder=3))
            axis.set_yticklabels([power_of_ten(value) for value in values.index], rotation=0)
            axis.set_xticklabels(order, rotation=0)
            axis.set(title=LABELS[method], xlabel="", ylabel="α₀")
        figure.colorbar(axes[0].collections[0], ax=axes, label=f"iterations, up to the cap of {cap:,}", aspect=40)
        return figure

    total = int(table["method"].isin(BASELINE).sum())
    lost = int(table.loc[table["method"].isin(BASELINE), "diverged"].sum())
    alt = (
        "Three grids of iterations until the target loss, one each for SGD, SGD with Nesterov momentum and Adam: rows "
        "are initial learning rates, the first columns the baselines, the others the hypergradient method with "
        f"increasing beta. {len(slower)} of {total} hypergradient cells are slower than their baseline"
        + (f", {lost} diverged." if lost else ".")
    )
    return Figure(draw, name, alt, table.drop(columns="mark"), frames.note(records), _legend(records, table, slower))


def _legend(records: Sequence[Record], table: pd.DataFrame, slower: set) -> str:
    """Return the heat map's caption, which explains the marks that it has and no others."""
    spec, seeds, cap = records[0].spec, int(table["seeds"].max()), _cap(records)
    middle = " in the median" if seeds > 1 else ""
    text = (
        f"Iterations until the loss of {CRITERIA[spec.target_of]} first falls to {spec.target_loss:g}"
        + (f", median over {seeds} seeds" if seeds > 1 else "")
        + ". Baselines come first, then the hypergradient method for each β."
    )
    if (np.isinf(table["median"]) & ~table["diverged"]).any():
        text += f" Hatched: not arrived{middle} by the cap of {cap:,} iterations."
    if table["diverged"].any():
        text += " Grey: diverged" + (", at least half of the seeds." if seeds > 1 else ".")
    if slower:
        text += f" Red frame: slower{middle} than its baseline at the same α₀"
        text += f"; Adam-HD's is Adam {'with the decay, as in the paper' if printed(records) else 'without decay'}."
    places = {mark: word for word, mark in MARKS.items() if (table["mark"] == mark).any()}
    if places:
        text += f" {', '.join(places)}: the paper's number lies {' or '.join(places.values())} "
        text += "those of all our seeds." if seeds > 1 else "ours."
    return text


def beside_the_paper(records: Sequence[Record]) -> str:
    """Say how the paper's printed numbers lie in our spread over seeds."""
    table, cap = cells(reached(records)), _cap(records)
    table = table[table["paper"].notna()]
    if table.empty:
        return "The paper prints no number for these cells."
    places = pd.Series([_place(row, cap) for row in table.itertuples()], table.index)
    count = {place: int((places == place).sum()) for place in ("within", "below", "above", "not decided")}
    seeds = int(table["seeds"].min())
    parts = []
    for method in ("sgd", "sgdn", "adam", *BASELINE):
        own = places[table["method"] == method]
        if len(own):
            name = label(method, "inv_sqrt" if method == "adam" else "none")
            parts.append(f"{name} {int((own == 'within').sum())} of {len(own)}")
    ours = f"lie between the fastest and the slowest of our {seeds} seeds" if seeds > 1 else "agree with our one seed"
    text = (
        f"The paper prints {len(table)} numbers, each from one run. **{count['within']} of them {ours}**, "
        f"{count['below']} below and {count['above']} above ({', '.join(parts)})."
    )
    own = table[table["method"].isin(BASELINE)].sort_values("alpha0")
    beside = own["median"] / own.groupby(["method", "beta"])["median"].shift(-1)
    alike = int(beside.between(1 / ALIKE, ALIKE).sum())
    if alike:
        text += (
            f" They are not as many independent checks: in {alike} of the {len(own)} cells of hypergradient methods "
            f"our median is within a factor of {ALIKE:g} of that from the next larger α₀ with the same β."
        )
    if seeds > 2 and printed(records):
        least, most = own_within(records)
        text += f" Each of our seeds lies between the other {seeds - 1} in {least} to {most} of these cells"
        text += ": the paper's run is like one more of ours." if least <= count["within"] <= most else "."
    if count["not decided"]:
        text += f" {count['not decided']} cannot be placed, since the runs were given up before."

    close = table[np.isfinite(table["paper"]) & np.isfinite(table["median"])]
    if len(close):
        factor = np.exp(np.abs(np.log(close["paper"] / close["median"])))
        text += (
            f" Where both are finite, the paper's number and {'our median' if seeds > 1 else 'ours'} differ by a "
            f"factor of {significant(float(factor.median()), 3)} in the median and of at most "
            f"{significant(float(factor.max()), 3)}."
        )
    alone = table[np.isfinite(table["paper"]) != np.isfinite(table["median"])]
    if len(alone):
        bound = (cap / alone["paper"]).where(np.isfinite(alone["paper"]), paper.CAP / alone["median"]).max()
        which = "one of the two" if len(close) else "the paper's number or ours"
        text += f" In {len(alone)} cell{'s' if len(alone) > 1 else ''} only {which} "
        text += f"is finite; the largest factor there is more than {_down(bound)}." if bound > 1 else "is finite."
    return text


def holds(records: Sequence[Record]) -> str:
    """Say where the paper's finding for logistic regression, no slower outside its outlined region, holds."""
    frame, outlined = reached(records), paper.outlined()
    seeds = frame["seed"].nunique()
    half = "; a cell has diverged where at least half of its seeds have" if seeds > 1 else ""
    lines = [f"With {counted(seeds, 'seed')} and up to {_cap(records):,} iterations{half}:\n"]
    for method, baseline in PLAIN_BASELINE.items():
        pairs = _pairs(frame, method, baseline)
        pairs["bad"] = pairs["kind"].isin(["slower", "diverged"])
        pairs["lost"] = pairs["kind"] == "diverged"
        outside = pairs[[(method, *cell) not in outlined for cell in zip(pairs["alpha0"], pairs["beta"], strict=True)]]
        by_beta = pairs.groupby("beta")[["bad", "lost"]].mean()
        good, lost = by_beta.index[by_beta["bad"] == 0], by_beta.index[by_beta["lost"] == 1]
        own = pairs[pairs["beta"].isin(good)]
        slower = int((outside["kind"] == "slower").sum())
        neither = int((own["kind"] == "neither arrived").sum())
        text = f"- **{LABELS[method]}** is "
        if len(outside):
            text += (
                f"slower than {LABELS[baseline[0]]} in {slower} and diverged in {int(outside['lost'].sum())} of the "
                f"{len(outside)} cells outside the region that the paper's Figure 4 outlines as slower. "
            )
        else:
            text += (
                f"compared with {LABELS[baseline[0]]} only inside the region that the paper's Figure 4 outlines as "
                "slower. "
            )
        if len(good):
            text += f"It is nowhere seen to be slower with {_betas(good)}"
        else:
            best, total = by_beta["bad"].idxmin(), pairs["alpha0"].nunique()
            count = round(total * (1 - by_beta["bad"].min()))
            text += "There is no β with which it is nowhere slower"
            text += f"; the best is {power_of_ten(best)}, with {count} of {total} α₀" if count else ""
        undecided = f"; in {neither} of these {len(own)} cells neither arrived, which decides nothing"
        text += f"{undecided if neither else ''}."
        if len(lost):
            last = frame[(frame["method"] == method) & frame["beta"].isin(lost)]["ended"].max()
            text += f" With {_betas(lost)} it diverged from every α₀, by iteration {last:,}."
        lines.append(text)
    return "\n".join(lines)


def overview(records: Sequence[Record]) -> dict[str, str]:
    """Return what was run, and in how many of the hypergradient cells how many failed, for the page on both grids.

    "cells" is how many have a beta, "diverged" in how many of them at least half of the seeds have, "slower" how many
    are slower than the baseline, as `where_slower` counts them, of Adam the undecayed, and "neither" in how many
    neither arrived. Where the paper prints numbers "within" is how many of them lie within our seeds, and "printed" how
    many there are.
    """
    frame = reached(records)
    kinds = pd.concat([_pairs(frame, method, baseline)["kind"] for method, baseline in PLAIN_BASELINE.items()])
    found = {"seeds": counted(frame["seed"].nunique(), "seed"), "cells": f"{len(kinds)}"}
    names = {"slower": "slower", "diverged": "diverged", "neither": "neither arrived"}
    found |= {name: f"{int((kinds == kind).sum())}" for name, kind in names.items()}
    if printed(records):
        numbers = cells(frame)["paper"].notna().sum()
        found |= {"within": f"{within(records)}", "printed": f"{numbers}"}
    return found


def where_slower(records: Sequence[Record]) -> str:
    """Say in how many cells each hypergradient method is slower than its baselines, diverged, or cannot be compared."""
    lines = []
    frame = reached(records)
    for method in BASELINE:
        for name, baseline in _baselines(method):
            pairs = _pairs(frame, method, baseline)
            found = {kind: pairs[pairs["kind"] == kind] for kind in ("slower", "diverged", "neither arrived")}
            worse = found["slower"]
            text = f"- **{LABELS[method]} against {name}**: "
            if pairs["seeds"].max() > 1:
                always = worse[worse["seeds_slower"] == worse["seeds"]]
                text += f"slower in {len(worse)} of {len(pairs)} cells by the median{_by_beta(worse)}"
                text += f", in {len(always) or 'none'} of them with every seed" if len(worse) else ""
            else:
                text += f"slower in {len(worse)} of {len(pairs)} cells{_by_beta(worse)}"
            if baseline == PAPERS_BASELINE[method] and printed(records):
                theirs = paper.outlined() & {(method, row.alpha0, row.beta) for row in pairs.itertuples()}
                text += f"; by the paper's numbers in {len(theirs)}"
            text += "."
            if len(found["diverged"]):
                most = "At least half of the seeds diverged in" if pairs["seeds"].max() > 1 else "Diverged in"
                text += f" {most} {len(found['diverged'])}{_by_beta(found['diverged'])}."
            if len(found["neither arrived"]):
                text += f" In {len(found['neither arrived'])} neither arrived{_by_beta(found['neither arrived'])}."
            lines.append(text)
    return "\n".join(lines)


def alike(records: Sequence[Record]) -> Table:
    """Return what is left of Adam-HD's advantage when its baseline decays as in the paper, and when neither does."""
    rows = []
    frame = reached(records)
    own = frame[frame["method"] == "adam_hd"]
    column = f"α₀ from which {'a seed of ' if frame['seed'].nunique() > 1 else ''}Adam-HD diverged"
    for beta in sorted(own["beta"].unique()):
        row = {"β": power_of_ten(beta)}
        if (own["outcome"] == "diverged").any():
            lost = own[(own["beta"] == beta) & (own["outcome"] == "diverged")]["alpha0"].nunique()
            row[column] = f"{lost} of {own['alpha0'].nunique()}"
        for name, baseline in _baselines("adam_hd"):
            pairs = _pairs(frame, "adam_hd", baseline)
            pairs = pairs[pairs["beta"] == beta]
            faster = int((pairs["ratio"] < 1).sum())
            row[f"α₀ from which Adam-HD is faster than {name}"] = f"{faster} of {len(pairs)}"
            row[f"time against {name}, mean of α₀"] = _ratio(records, beta, baseline)
        rows.append(row)
    table = pd.DataFrame(rows)
    unknown = "a run of Adam-HD diverged, or runs of both did not arrive"
    times = [name for name in table if name.startswith("time against")]
    if table[times].eq("–").all(axis=None):
        note = f"Times cannot be compared: with every β {unknown}."
        return Table(table.drop(columns=times), note)
    intervals = [name for name in table if table[name].str.contains("(", regex=False).any()]
    note = (
        "Time: iterations of Adam-HD over iterations of the baseline with the same seed and α₀, geometric mean over "
        "initial learning rates; below 1 Adam-HD is faster."
    )
    note += " The interval is Student's, over seeds, on the logarithms." if intervals else ""
    note += f" Where runs did not arrive they count with the cap, and the ratio is a bound. A dash: {unknown}."
    return Table(table.rename(columns={name: f"{name} (95 % interval)" for name in intervals}), note)


def sensitivity(records: Sequence[Record], name: str) -> Figure:
    """Draw the iterations against alpha_0, a line for each beta beside the baseline: flat is insensitive."""
    table = cells(reached(records))
    cap = _cap(records)
    known = sorted(table.loc[table["method"].isin(BASELINE), "beta"].unique())
    betas = dict(zip(known, np.linspace(0.45, 1, len(known)), strict=True))  # and how strong their lines are
    shapes = zip(known, itertools.cycle("osD^vP"), strict=False)
    marks = {beta: dict(marker=shape, markersize=4) for beta, shape in shapes}

    def draw(theme: Theme) -> plt.Figure:
        figure, axes = plt.subplots(1, 3, figsize=(9, 4.2), sharey=True)
        for axis, method in zip(axes, BASELINE, strict=True):
            for i, (beta, strength) in enumerate(betas.items()):
                own = table[(table["method"] == method) & (table["beta"] == beta)]
                style = theme.line(method, strength=strength)
                _spread(axis, own, cap, style | marks[beta])
                lost = own.loc[own["diverged"], "alpha0"]
                axis.scatter(lost, np.full(len(lost), cap * 1.2 ** (i + 1)), marker="x", s=14, color=style["color"])
            for of, decay in [(b, d) for _, (b, d) in _baselines(method)]:  # last, where a line may lie on another
                own = table[(table["method"] == of) & (table["decay"] == decay)]
                _spread(axis, own, cap, theme.line(of, "additive", decay) | {"color": theme.text})
            axis.set(xscale="log", yscale="log", xlabel="initial learning rate α₀", title=LABELS[method])
            axis.axhline(cap, color=theme.grid, linewidth=1, zorder=0)
            axis.update_datalim([(table["alpha0"].min(), cap / 10)])  # a scale, even where nothing arrives
        axes[0].set_ylabel("iterations")
        handles = [
            Line2D([], [], label=f"β = {power_of_ten(beta)}", color=theme.text, alpha=s, **marks[beta])
            for beta, s in betas.items()
        ]
        handles += [
            Line2D([], [], label=name, **theme.line("adam", "additive", decay) | {"color": theme.text})
            for name, decay in (("no HD", "none"), ("no HD, α₀/√t", "inv_sqrt"))
            if (table["decay"] == decay).any()
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles) // 2)
        return figure

    alt = (
        "Iterations until the target against the initial learning rate, for SGD, SGDN and Adam: dashed lines are the "
        f"baselines, coloured lines the hypergradient method, one for each beta. {_told_apart(records)}"
    )
    caption = (
        "The same numbers against the initial learning rate. Dashed: the baselines (dotted: Adam with α₀/√t); "
        "solid: the hypergradient method, one line and one mark for each β, stronger for larger β."
    )
    if table["seeds"].max() > 1:
        caption += " Points are medians over seeds, bands reach from the fastest to the slowest."
    if (table["unreached"] > table["lost"]).any():
        caption += " What did not arrive is drawn at the cap."
    if table["diverged"].any():
        caption += " Crosses above the cap: diverged, a row for each β."
    return Figure(draw, name, alt, table, frames.note(records), caption)


def insensitivity(records: Sequence[Record]) -> Table | None:
    """Return by what factor the slowest alpha_0 is slower than the fastest, without and with hypergradients.

    With hypergradients this is said of the betas with which every alpha_0 arrives; the others are named. Of one
    alpha_0 there is nothing to say.
    """
    table = cells(reached(records))
    if table["alpha0"].nunique() == 1:
        return None
    cap, rows = _cap(records), []
    for method in BASELINE:
        plain = [
            _apart(name, table[(table["method"] == base) & (table["decay"] == decay)], cap)
            for name, (base, decay) in _baselines(method)
        ]
        by_beta = dict(list(table[table["method"] == method].groupby("beta")))
        factors = {
            beta: group["median"].max() / group["median"].min()
            for beta, group in by_beta.items()
            if np.isfinite(group["median"]).all()
        }
        told = [f"{_factor(factors[beta])} ({_betas([beta])})" for beta in sorted(factors, key=factors.get)]
        missing = {beta: _failed(group) for beta, group in by_beta.items() if beta not in factors}
        failed = [f"{_betas(list(betas))}: {words}" for words, betas in itertools.groupby(missing, missing.get)]
        rows.append(
            {
                "method": LABELS[method],
                "without HD": "; ".join(plain),
                "with the best β": told[0] if told else "–",
                "with the worst β": told[-1] if len(told) > 1 else "–",
                "β not counted": "; ".join(failed) or "–",
            }
        )
    note = (
        f"The iterations that the slowest of {table['alpha0'].nunique()} initial learning rates needs, over those of "
        "the fastest. Not counted: a β with which not every α₀ arrives."
    )
    return Table(pd.DataFrame(rows), note)


def _apart(name: str, plain: pd.DataFrame, cap: int) -> str:
    """Say how many times the iterations of its fastest alpha_0 a baseline's slowest needs."""
    if np.isinf(plain["median"]).all():
        return f"{name}: {_failed(plain)}"
    lost = int(plain["diverged"].sum())
    without = f", without the {lost} from which it diverged" if lost else ""
    return f"{_times(plain[~plain['diverged']], cap)} ({name}{without})"


def _told_apart(records: Sequence[Record]) -> str:
    """Say in words what `insensitivity` has."""
    table = insensitivity(records)
    rows = [] if table is None else table.data.to_dict("records")
    return " ".join(
        f"{row['method']}, slowest over fastest: without hypergradients {row['without HD']}, with the best beta "
        f"{row['with the best β']}."
        for row in rows
    )


def criteria(groups: dict[str, Sequence[Record]]) -> Table:
    """Return, for each criterion of arrival, how much of a lottery it is and where hypergradients are slower.

    Args:
        groups: records by `target_of`, over the same grid. They are compared over the seeds and up to the cap that
            all of them have.
    """
    frames_, seeds, cap = _comparable(groups)
    rows = []
    for of, frame in frames_.items():
        table = cells(frame)
        row = {"the loss of": CRITERIA[of]}
        if seeds > 1:
            row["slowest over fastest seed, median of the cells"] = _lottery(frame) or "no cell that every seed reached"
        name = "cells that not every seed reached" if seeds > 1 else "cells not reached"
        row[name] = f"{int((table['unreached'] > 0).sum())} of {len(table)}"
        for method in BASELINE:
            for name, baseline in _baselines(method):
                pairs = _pairs(frame, method, baseline)
                row[f"{LABELS[method]} slower than {name}"] = f"{int((pairs['ratio'] > 1).sum())} of {len(pairs)}"
        rows.append(row)
    table = pd.DataFrame(rows).set_index("the loss of").T.reset_index(names="arrival: the loss of")
    table.columns.name = None
    return Table(table, f"All three with {seeds} seed{'s' if seeds > 1 else ''} and a cap of {cap:,} iterations.")


def lottery(groups: dict[str, Sequence[Record]]) -> str:
    """Say what the steadier criteria change."""
    frames_, seeds, _ = _comparable(groups)
    spread = {of: _lottery(frame) for of, frame in frames_.items()}
    slower = {
        of: sum(int((_pairs(frame, m, b)["ratio"] > 1).sum()) for m, b in PAPERS_BASELINE.items())
        for of, frame in frames_.items()
    }
    middle = {of: cells(frame).set_index(CELL)["median"] for of, frame in frames_.items()}
    finite = np.isfinite(middle["minibatch"]) & np.isfinite(middle["epoch"])
    later = (middle["epoch"] / middle["minibatch"])[finite]
    total = len(cells(frames_["minibatch"]).query("method in @BASELINE"))
    text = ""
    if seeds > 1 and all(spread.values()):
        text = (
            f"Over {seeds} seeds the slowest takes {spread['minibatch']} times as long as the fastest to a first lucky "
            f"minibatch (median of the cells), {spread['smoothed']} times to a mean of 100 minibatches and "
            f"{spread['epoch']} times to the loss over all training data. "
        )
    if len(later):
        last = "The last" if text else "The loss over all training data"
        text += (
            f"{last} takes {_factor(float(later.median()))} times as long as a first lucky minibatch, in the median "
            "of the cells that reach both. "
        )
    return (
        f"{text}Against the paper's baselines {slower['minibatch']}, {slower['smoothed']} and {slower['epoch']} of "
        f"{total} hypergradient cells are slower."
    )


def _comparable(groups: dict[str, Sequence[Record]]) -> tuple[dict[str, pd.DataFrame], int, int]:
    seeds = min(len({r.spec.seed for r in records}) for records in groups.values())
    cap = min(map(_cap, groups.values()))
    return {of: reached(records, seeds, cap) for of, records in groups.items()}, seeds, cap


def _lottery(frame: pd.DataFrame) -> str:
    """Return the slowest over the fastest seed in the median of the cells that every seed reached, if there are any."""
    table = cells(frame)
    finite = table[table["unreached"] == 0]
    return significant(float((finite["high"] / finite["low"]).median()), 3) if len(finite) else ""


def advantage(records: Sequence[Record]) -> str:
    """Say what the decay of the baseline does to Adam-HD's advantage, from each alpha_0."""
    table = cells(reached(records))
    cap = _cap(records)
    base = {decay: table[(table["method"] == "adam") & (table["decay"] == decay)].set_index("alpha0")["median"]
            for decay in ("inv_sqrt", "none")}  # fmt: skip
    decayed, plain = base.values()
    slowed = sorted(decayed.index[decayed > plain], reverse=True)
    helped = sorted(decayed.index[decayed < plain], reverse=True)
    neither = sorted(decayed.index[np.isinf(decayed) & np.isinf(plain)], reverse=True)
    text = f"The decay slows Adam down from {len(slowed)} of {counted(len(decayed), 'initial learning rate')}"
    text += f" ({', '.join(map(power_of_ten, slowed))})" if slowed else ""
    text += f" and speeds it up from {', '.join(map(power_of_ten, helped))}" if helped else ""
    text += f"; from {', '.join(map(power_of_ten, neither))} neither arrived." if neither else "."

    own = table[table["method"] == "adam_hd"]
    own = own.assign(log=np.log(own["median"].clip(upper=cap)))
    best = own.groupby("beta").agg({"diverged": "sum", "log": "mean"}).sort_values(["diverged", "log"]).index[0]
    ours = own[own["beta"] == best].set_index("alpha0")["median"]
    compared = [alpha0 for alpha0 in slowed if np.isfinite(ours[alpha0])]
    if compared:
        there = {decay: (values[compared].clip(upper=cap) / ours[compared]) for decay, values in base.items()}

        def ends(decay: str) -> str:
            times, arrived = there[decay], np.isfinite(base[decay])
            low, high = (
                _factor(times[alpha0]) if arrived[alpha0] else f"more than {_down(times[alpha0])}"
                for alpha0 in (times.idxmin(), times.idxmax())
            )
            return f"{low} to {high}" if low != high else low

        text += (
            f" From {', '.join(map(power_of_ten, compared))} the decayed Adam needs {ends('inv_sqrt')} times the "
            f"iterations of Adam-HD with β = {power_of_ten(best)}, and Adam without the decay {ends('none')} times."
        )
    return text


def full_table(records: Sequence[Record]) -> Table:
    """Return every cell: our median and range over seeds beside the paper's number; of one seed its iterations."""
    table = cells(reached(records))
    cap = _cap(records)
    order = {label: i for i, label in enumerate(LABELS)}
    table["order"] = [order[_name(m, d)] for m, d in zip(table["method"], table["decay"], strict=True)]
    several, lost = table["seeds"].max() > 1, table["lost"].any()
    rows = []
    for row in table.sort_values(["order", "alpha0", "beta"], ascending=[True, False, True]).itertuples():
        shown = {
            "method": label(row.method, row.decay),
            "α₀": power_of_ten(row.alpha0),
            "β": power_of_ten(row.beta) if row.beta else "",
            "median" if several else "iterations": _count(row.median, cap, row.diverged),
        }
        if several:
            low, high = _count(row.low, cap, row.lost == row.seeds), _count(row.high, cap, row.lost > 0)
            shown["lowest to highest"] = f"{low} to {high}" if low != high else low
            shown["seeds that arrived"] = f"{row.seeds - row.unreached} of {row.seeds}"
            if lost:
                shown["seeds that diverged"] = f"{row.lost} of {row.seeds}"
        if printed(records):
            shown["paper"] = "" if np.isnan(row.paper) else _count(row.paper, paper.CAP)
            shown["paper's place"] = _place(row, cap)
        rows.append(shown)
    return Table(pd.DataFrame(rows), frames.note(records))


# -- cells and pairs


def _cap(records: Sequence[Record]) -> int:
    """Return after how many iterations a run was given up."""
    return max(r.spec.max_iterations for r in records)


def _baselines(method: str) -> list[tuple[str, tuple[str, str]]]:
    """Return the names and (method, decay) of what a hypergradient method is compared with, the paper's first."""
    baseline = BASELINE[method]
    found = [(LABELS[baseline], (baseline, "none"))]
    if baseline == "adam":
        found.insert(0, (LABELS["adam_decayed"], ("adam", "inv_sqrt")))
    return found


def _pairs(frame: pd.DataFrame, method: str, baseline: tuple[str, str]) -> pd.DataFrame:
    """Return a row per cell of a method: the ratio of medians to its baseline at the same alpha_0, seeds slower.

    `kind` is "diverged", "neither arrived", "slower" or "no slower".
    """
    ours = frame[frame["method"] == method]
    theirs = frame[(frame["method"] == baseline[0]) & (frame["decay"] == baseline[1])]
    pairs = ours.merge(theirs[["alpha0", "seed", "iterations"]], on=["alpha0", "seed"], suffixes=("", "_baseline"))
    rows = []
    for (alpha0, beta), group in pairs.groupby(["alpha0", "beta"]):
        mine, other = group["iterations"].median(), group["iterations_baseline"].median()
        ratio = 1.0 if np.isinf(mine) and np.isinf(other) else min(mine, 1e12) / min(other, 1e12)
        slower = int((group["iterations"] > group["iterations_baseline"]).sum())
        if (group["outcome"] == "diverged").mean() >= 0.5:
            kind = "diverged"
        elif np.isinf(mine) and np.isinf(other):
            kind = "neither arrived"
        else:
            kind = "slower" if ratio > 1 else "no slower"
        rows.append((alpha0, beta, ratio, slower, len(group), kind))
    return pd.DataFrame(rows, columns=["alpha0", "beta", "ratio", "seeds_slower", "seeds", "kind"])


def _slower(records: Sequence[Record], baselines: dict[str, tuple[str, str]]) -> set[tuple[str, float, float]]:
    found = set()
    for method, baseline in baselines.items():
        pairs = _pairs(reached(records), method, baseline)
        found |= {(method, row.alpha0, row.beta) for row in pairs[pairs["kind"] == "slower"].itertuples()}
    return found


def _compared(records: Sequence[Record], beta: float, baseline: tuple[str, str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the iterations of Adam-HD and of a baseline by seed and alpha_0, infinite where a run did not arrive."""
    frame = reached(records)
    ours = frame[(frame["method"] == "adam_hd") & (frame["beta"] == beta)]
    base = frame[(frame["method"] == baseline[0]) & (frame["decay"] == baseline[1])]
    wide, other = (part.pivot(index="seed", columns="alpha0", values="iterations") for part in (ours, base))
    return wide.align(other, join="inner")


def _log_ratios(ours: pd.DataFrame, base: pd.DataFrame, cap: int) -> np.ndarray:
    """Return, per seed, the log of Adam-HD's iterations over the baseline's, mean over alpha_0."""
    return np.log(ours.clip(upper=cap) / base.clip(upper=cap)).mean(axis=1).to_numpy()


def _ratio(records: Sequence[Record], beta: float, baseline: tuple[str, str]) -> str:
    """Return that ratio with its interval, or a bound where runs were given up; nothing where a run diverged."""
    if any(r.outcome == "diverged" for r in records if (r.spec.method, r.spec.beta) == ("adam_hd", beta)):
        return "–"
    ours, base = _compared(records, beta, baseline)
    per_seed = _log_ratios(ours, base, _cap(records))
    mean = _factor(np.exp(per_seed.mean()))
    late, unknown = np.isinf(ours).any(axis=None), np.isinf(base).any(axis=None)
    if late or unknown:
        return "–" if late and unknown else f"{'at least' if late else 'at most'} {mean}"
    if len(per_seed) < 2 or np.ptp(per_seed) == 0:
        return mean
    low, high = np.exp(stats.ttest_1samp(per_seed, 0).confidence_interval(0.95))
    return f"{mean} ({_factor(low)} to {_factor(high)})"


# -- words


def _name(method: str, decay: str) -> str:
    return method if decay == "none" else f"{method}_decayed"


def _beta_label(beta: float) -> str:
    return f"β = {power_of_ten(beta)}"


def _columns(method: str) -> pd.DataFrame:
    rows = [(b, d, i) for i, (_, (b, d)) in enumerate(_baselines(method))] + [(method, "none", 9)]
    return pd.DataFrame(rows, columns=["method", "decay", "order"])


def _betas(betas: Sequence[float]) -> str:
    return f"β = {', '.join(map(power_of_ten, betas))}"


def _failed(own: pd.DataFrame) -> str:
    """Say how many cells diverged or did not arrive by the cap."""
    lost, missing = int(own["diverged"].sum()), int(np.isinf(own["median"]).sum())
    parts = {"diverged": lost, "not by the cap": missing - lost}
    return ", ".join(f"{count} of {len(own)} {words}" for words, count in parts.items() if count)


def _by_beta(pairs: pd.DataFrame) -> str:
    """Say how many cells there are at each beta, in brackets; nothing where there is none."""
    named = ", ".join(f"{count} at β = {power_of_ten(beta)}" for beta, count in pairs.groupby("beta").size().items())
    return f" ({named})" if named else ""


def _place(row, cap: int) -> str:
    """Say where the paper's number lies in our range over seeds; what was given up is only known to take longer."""
    if np.isnan(row.paper):
        return ""
    given_up = row.unreached > row.lost
    if row.paper < row.low and (row.paper <= cap or not given_up):
        return "below"
    if row.paper > row.high:
        return "above" if row.high <= paper.CAP else "not decided"
    neither = np.isinf(row.paper) and cap >= paper.CAP
    return "not decided" if np.isinf(row.low) and given_up and not neither else "within"


def _count(value: float, cap: int, diverged: bool = False) -> str:
    return f"{value:,.0f}" if np.isfinite(value) else "diverged" if diverged else f">{cap:,}"


def _factor(value: float) -> str:
    """Return three significant digits, with thousands separated."""
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 999.5 else significant(value, 3)


def _down(value: float) -> str:
    """Return what `_factor` does, rounded down: what is more than the value is more than this."""
    return _factor(float(Context(prec=3, rounding=ROUND_DOWN).create_decimal(f"{value:.9g}")))


def _times(own: pd.DataFrame, cap: int) -> str:
    """Return the slowest over the fastest alpha_0, or what it exceeds where some did not arrive."""
    slowest, fastest = own["median"].max(), own["median"].min()
    return f"more than {_down(cap / fastest)}" if np.isinf(slowest) else _factor(slowest / fastest)


def _ink(ground: tuple) -> str:
    """Return black or white, whichever stands out more from a colour: the contrast is at least 4.5."""
    luminance = sns.utils.relative_luminance(ground)
    return "#ffffff" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "#000000"


def _spread(axis: plt.Axes, own: pd.DataFrame, cap: int, style: dict) -> None:
    own = own.sort_values("alpha0")
    middle, low, high = (own[name].clip(upper=cap).mask(own["diverged"]) for name in ("median", "low", "high"))
    axis.plot(own["alpha0"], middle, **dict(marker="o", markersize=3) | style)
    axis.fill_between(own["alpha0"], low, high, color=style["color"], alpha=0.1, lw=0)
