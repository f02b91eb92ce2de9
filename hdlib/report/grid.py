"""The grid search over alpha_0 and beta, the paper's Figure 4: how long until a loss is reached, and what follows.

Every function takes records of runs with a target loss. A run that did not reach it, because it was capped or
diverged, counts as infinitely long: it is never averaged away, and medians over seeds stay meaningful.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import LogNorm
from matplotlib.patches import Rectangle
from scipy import stats

from hdlib.report import frames, paper
from hdlib.report.style import LABELS, Figure, Table, Theme, power_of_ten, significant
from hdlib.runs import BASELINE, Record

CELL = ["method", "decay", "alpha0", "beta"]
PAPERS_BASELINE = {"sgd_hd": ("sgd", "none"), "sgdn_hd": ("sgdn", "none"), "adam_hd": ("adam", "inv_sqrt")}
PLAIN_BASELINE = {method: (baseline, "none") for method, baseline in BASELINE.items()}
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
        for r in records
        if seeds is None or r.spec.seed < seeds
    ]
    frame = pd.DataFrame(rows)
    frame["iterations"] = frame["iterations"].where(frame["iterations"] <= cap, np.inf)
    return frame


def cells(frame: pd.DataFrame) -> pd.DataFrame:
    """Return, of what `reached` returns, a row per cell: median and range over seeds, the paper's number or NaN."""
    grouped = frame.groupby(CELL)["iterations"]
    table = grouped.agg(median=_median, low="min", high="max", seeds="count").reset_index()
    table["unreached"] = grouped.agg(lambda values: int(np.isinf(values).sum())).to_numpy()
    theirs = paper.figure4().rename(columns={"iterations": "paper"})
    theirs["decay"] = np.where(theirs["method"] == "adam", "inv_sqrt", "none")  # as its curves show
    return table.merge(theirs, on=CELL, how="left")


def heatmap(records: Sequence[Record], name: str, caption: str = "") -> Figure:
    """Draw the grid as the paper does, ours with its spread over seeds, the paper's number below where it has one.

    A red frame marks the cells in which the hypergradient method takes longer, in the median, than its baseline at the
    same alpha_0: the paper's where the paper prints numbers, the plain method elsewhere.
    """
    table = cells(reached(records))
    cap = max(r.iterations for r in records)
    beside = _printed(records)
    slower = _slower(records, PAPERS_BASELINE if beside else PLAIN_BASELINE)

    def draw(theme: Theme) -> plt.Figure:
        figure, axes = plt.subplots(3, 1, figsize=(9, 12 if beside else 9))
        for axis, method in zip(axes, BASELINE, strict=True):
            columns = _columns(method)
            own = table.merge(columns, on=["method", "decay"])
            own["column"] = [
                _beta_label(row.beta) if row.method in BASELINE else LABELS[_name(row.method, row.decay)]
                for row in own.itertuples()
            ]
            order = [*dict.fromkeys(own.sort_values(["order", "beta"])["column"])]
            values = own.pivot(index="alpha0", columns="column", values="median")[order].sort_index(ascending=False)
            own["text"] = [_cell_text(row, cap, beside) for row in own.itertuples()]
            texts = own.pivot(index="alpha0", columns="column", values="text")[order].sort_index(ascending=False)
            sns.heatmap(
                values.clip(upper=cap),
                annot=texts,
                fmt="",
                ax=axis,
                cmap="viridis_r",
                norm=LogNorm(10, 468_750),
                annot_kws={"fontsize": 6.5, "linespacing": 1.15},
                cbar_kws={"label": "iterations, median"},
                linewidths=0.6,
                linecolor=theme.grid,
            )
            framed = {(alpha0, _beta_label(beta)) for name, alpha0, beta in slower if name == method}
            for i, alpha0 in enumerate(values.index):
                for j, column in enumerate(order):
                    if (alpha0, column) in framed:
                        axis.add_patch(Rectangle((j, i), 1, 1, fill=False, ec="#d62728", lw=1.8, clip_on=False))
            axis.set_yticklabels([power_of_ten(value) for value in values.index], rotation=0)
            axis.set_xticklabels(order, rotation=0)
            axis.set(title=LABELS[method], xlabel="", ylabel="α₀")
        return figure

    alt = (
        "Three grids of iterations until the target loss, one each for SGD, SGD with Nesterov momentum and Adam: rows "
        "are initial learning rates, the first columns the plain methods, the others the hypergradient method with "
        f"increasing beta. {len(slower)} of {len(table[table['method'].isin(BASELINE)])} hypergradient cells are "
        "slower than their baseline."
    )
    return Figure(draw, name, alt, table, frames.note(records), caption)


def beside_the_paper(records: Sequence[Record]) -> str:
    """Say how the paper's printed numbers lie in our spread over seeds."""
    table = cells(reached(records))
    table = table[table["paper"].notna()]
    inside = (table["paper"] >= table["low"]) & (table["paper"] <= table["high"])
    below, above = table["paper"] < table["low"], table["paper"] > table["high"]
    close = table[np.isfinite(table["paper"]) & np.isfinite(table["median"])]
    factor = np.exp(np.abs(np.log(close["paper"] / close["median"])))
    seeds = int(table["seeds"].min())
    parts = []
    for method in ("sgd", "sgdn", "adam", *BASELINE):
        own = table["method"] == method
        parts.append(f"{LABELS[_name(method, 'inv_sqrt' if method == 'adam' else 'none')]} {int((inside & own).sum())} "
                     f"of {int(own.sum())}")  # fmt: skip
    return (
        f"The paper prints {len(table)} numbers, each from one run. **{int(inside.sum())} of them lie between the "
        f"fastest and the slowest of our {seeds} seeds**, {int(below.sum())} below and {int(above.sum())} above "
        f"({', '.join(parts)}). Where both are finite, the paper's number and our median differ by a factor of "
        f"{significant(float(factor.median()), 3)} in the median and of at most {significant(float(factor.max()), 3)}."
    )


def where_slower(records: Sequence[Record]) -> str:
    """Say in how many cells each hypergradient method is slower than its baseline, with both of Adam's baselines."""
    lines = []
    theirs = _paper_slower()
    for method in BASELINE:
        for name, baseline in _baselines(method):
            pairs = _pairs(reached(records), method, baseline)
            worse = pairs[pairs["ratio"] > 1]
            always = pairs[pairs["seeds_slower"] == pairs["seeds"]]
            text = (
                f"- **{LABELS[method]} against {name}**: slower in the median in {len(worse)} of {len(pairs)} cells, "
                f"with every seed in {len(always)}"
            )
            if baseline == PAPERS_BASELINE[method] and _printed(records):
                text += f" (the paper's numbers: {theirs[method]})"
            if len(worse):
                betas = worse.groupby("beta").size()
                named = ", ".join(f"{count} at β = {power_of_ten(beta)}" for beta, count in betas.items())
                text += f": {named}"
            lines.append(text + ".")
    return "\n".join(lines)


def alike(records: Sequence[Record]) -> Table:
    """Return what is left of Adam-HD's advantage when its baseline decays as in the paper, and when neither does."""
    rows = []
    ours = reached(records)
    for beta in sorted(ours.loc[ours["method"] == "adam_hd", "beta"].unique()):
        row = {"β": power_of_ten(beta)}
        for name, baseline in _baselines("adam_hd"):
            pairs = _pairs(reached(records), "adam_hd", baseline)
            pairs = pairs[pairs["beta"] == beta]
            faster = int((pairs["ratio"] < 1).sum())
            row[f"α₀ from which Adam-HD is faster than {name}"] = f"{faster} of {len(pairs)}"
            row[f"time against {name}, mean of α₀ (95 % interval)"] = _ratio(records, beta, baseline)
        rows.append(row)
    return Table(
        pd.DataFrame(rows),
        "Time: iterations of Adam-HD over iterations of the baseline with the same seed and α₀, geometric mean over "
        "initial learning rates; below 1 Adam-HD is faster. The interval is a bootstrap over seeds. A run that did not "
        "arrive counts with the cap, so a ratio against such a baseline is an upper bound, and one of Adam-HD's own a "
        "lower bound.",
    )


def sensitivity(records: Sequence[Record], name: str, caption: str = "") -> Figure:
    """Draw the iterations against alpha_0, a line for each beta beside the baseline: flat is insensitive."""
    table = cells(reached(records))
    cap = max(r.iterations for r in records)

    def draw(theme: Theme) -> plt.Figure:
        figure, axes = plt.subplots(1, 3, figsize=(9, 4.2), sharey=True)
        for axis, method in zip(axes, BASELINE, strict=True):
            for baseline, decay in [(b, d) for _, (b, d) in _baselines(method)]:
                own = table[(table["method"] == baseline) & (table["decay"] == decay)]
                _spread(axis, own, cap, theme.line(baseline, "additive", decay) | {"color": theme.text})
            betas = sorted(table.loc[table["method"] == method, "beta"].unique())
            for i, beta in enumerate(betas):
                own = table[(table["method"] == method) & (table["beta"] == beta)]
                strength = 0.3 + 0.7 * i / max(1, len(betas) - 1)
                style = theme.line(method, strength=strength) | {"label": f"β = {power_of_ten(beta)}"}
                _spread(axis, own, cap, style)
            axis.set(xscale="log", yscale="log", xlabel="initial learning rate α₀", title=LABELS[method])
            axis.axhline(cap, color=theme.grid, linewidth=1, zorder=0)
        axes[0].set_ylabel("iterations, median and range")
        handles, labels = axes[2].get_legend_handles_labels()
        handles = [handle for handle, label in zip(handles, labels, strict=True) if label.startswith("β")]
        figure.legend(handles=handles, loc="outside lower center", ncols=6)
        return figure

    alt = (
        "Iterations until the target against the initial learning rate, for SGD, SGDN and Adam: dashed lines, the "
        f"plain methods, are steep; coloured lines, one for each beta, are flatter. {insensitivity(records)}"
    )
    return Figure(draw, name, alt.replace("**", ""), table, frames.note(records), caption)


def insensitivity(records: Sequence[Record]) -> str:
    """Say by what factor the slowest alpha_0 is slower than the fastest, without and with hypergradients."""
    table = cells(reached(records))
    cap = max(r.iterations for r in records)
    table["shown"] = table["median"].clip(upper=cap)
    sentences = []
    for method in BASELINE:
        base = [
            f"{_times(table[(table['method'] == b) & (table['decay'] == d)], cap)} ({name})"
            for name, (b, d) in _baselines(method)
        ]
        own = table[table["method"] == method]
        arrived = own.groupby("beta").filter(lambda cells: np.isfinite(cells["median"]).any())
        dead = sorted(set(own["beta"]) - set(arrived["beta"]))
        factors = arrived.groupby("beta")["shown"].agg(lambda values: values.max() / values.min())
        if factors.empty:
            sentences.append(f"With {LABELS[method]} no run arrived.")
            continue
        low, high = (
            f"{_times(own[own['beta'] == beta], cap)} (β = {power_of_ten(beta)})"
            for beta in (factors.idxmin(), factors.idxmax())
        )
        sentences.append(
            f"The slowest of {own['alpha0'].nunique()} initial learning rates needs {' or '.join(base)} times the "
            f"iterations of the fastest; with {LABELS[method]} between {low} and {high} times."
            + (f" With β = {', '.join(map(power_of_ten, dead))} none arrived." if dead else "")
        )
    return " ".join(sentences)


def criteria(groups: dict[str, Sequence[Record]]) -> Table:
    """Return, for each criterion of arrival, how much of a lottery it is and where hypergradients are slower.

    Args:
        groups: records by `target_of`, over the same grid. They are compared over the seeds and up to the cap that
            all of them have.
    """
    frames_, seeds, cap = _comparable(groups)
    rows = []
    for of, frame in frames_.items():
        row = {
            "the loss of": CRITERIA[of],
            "slowest over fastest seed, median of the cells": significant(_lottery(frame), 3),
            "cells that not every seed reached": f"{int((cells(frame)['unreached'] > 0).sum())} of {len(cells(frame))}",
        }
        for method in BASELINE:
            for name, baseline in _baselines(method):
                pairs = _pairs(frame, method, baseline)
                row[f"{LABELS[method]} slower than {name}"] = f"{int((pairs['ratio'] > 1).sum())} of {len(pairs)}"
        rows.append(row)
    table = pd.DataFrame(rows).set_index("the loss of").T.reset_index(names="arrival: the loss of")
    table.columns.name = None
    return Table(table, f"All three with {seeds} seeds and a cap of {cap:,} iterations.")


def lottery(groups: dict[str, Sequence[Record]]) -> str:
    """Say what the steadier criteria change."""
    frames_, seeds, _ = _comparable(groups)
    spread = {of: significant(_lottery(frame), 3) for of, frame in frames_.items()}
    slower = {
        of: sum(int((_pairs(frame, m, b)["ratio"] > 1).sum()) for m, b in PAPERS_BASELINE.items())
        for of, frame in frames_.items()
    }
    middle = {of: cells(frame).set_index(CELL)["median"] for of, frame in frames_.items()}
    finite = np.isfinite(middle["minibatch"]) & np.isfinite(middle["epoch"])
    later = float((middle["epoch"] / middle["minibatch"])[finite].median())
    total = len(cells(frames_["minibatch"]).query("method in @BASELINE"))
    return (
        f"Over {seeds} seeds the slowest takes {spread['minibatch']} times as long as the fastest to a first lucky "
        f"minibatch (median of the cells), {spread['smoothed']} times to a mean of 100 minibatches and "
        f"{spread['epoch']} times to the loss over all training data. That loss is reached "
        f"{significant(later, 2)} times later, in the median of the cells that reach both. Against the paper's "
        f"baselines {slower['minibatch']}, {slower['smoothed']} and {slower['epoch']} of {total} hypergradient cells "
        "are slower."
    )


def _comparable(groups: dict[str, Sequence[Record]]) -> tuple[dict[str, pd.DataFrame], int, int]:
    seeds = min(len({r.spec.seed for r in records}) for records in groups.values())
    cap = min(max(r.iterations for r in records) for records in groups.values())
    return {of: reached(records, seeds, cap) for of, records in groups.items()}, seeds, cap


def _lottery(frame: pd.DataFrame) -> float:
    """Return the slowest over the fastest seed in the median of the cells that every seed reached."""
    table = cells(frame)
    finite = table[table["unreached"] == 0]
    return float((finite["high"] / finite["low"]).median())


def advantage(records: Sequence[Record]) -> str:
    """Say what the decay of the baseline does to Adam-HD's advantage, from each alpha_0."""
    (_, decayed), (_, plain) = _baselines("adam_hd")
    betas = sorted({r.spec.beta for r in records if r.spec.method == "adam_hd"})
    best = min(betas, key=lambda beta: _log_ratios(records, beta, plain).mean())
    cap = float(max(r.iterations for r in records))
    table = cells(reached(records))
    table["shown"] = table["median"].clip(upper=cap)
    base = {decay: table[(table["method"] == "adam") & (table["decay"] == decay)].set_index("alpha0")["shown"]
            for _, decay in (decayed, plain)}  # fmt: skip
    ours = table[(table["method"] == "adam_hd") & (table["beta"] == best)].set_index("alpha0")["shown"]
    slowed = sorted(ours.index[base["inv_sqrt"] > base["none"]], reverse=True)
    text = (
        f"The decay slows Adam down from {len(slowed)} of {len(ours)} initial learning rates "
        f"({', '.join(map(power_of_ten, slowed))})"
    )
    helped = sorted(ours.index[base["inv_sqrt"] < base["none"]], reverse=True)
    text += f" and speeds it up from {', '.join(map(power_of_ten, helped))}. " if helped else ". "
    factors = {decay: base[decay][slowed] / ours[slowed] for decay in base}
    if slowed:
        low, high = ({d: significant(float(f), 2) for d, f in ((d, getattr(factors[d], k)()) for d in factors)}
                     for k in ("min", "max"))  # fmt: skip
        text += (
            f"There, Adam-HD with β = {power_of_ten(best)} is faster than the decayed Adam by factors of "
            f"{low['inv_sqrt']} to {high['inv_sqrt']}, and faster than Adam without the decay by "
            f"{low['none']} to {high['none']}."
        )
    return text + " A baseline that never arrived counts with the cap."


def full_table(records: Sequence[Record]) -> Table:
    """Return every cell: our median and range over seeds beside the paper's number."""
    table = cells(reached(records))
    cap = max(r.iterations for r in records)
    order = {label: i for i, label in enumerate(LABELS)}
    table["order"] = [order[_name(m, d)] for m, d in zip(table["method"], table["decay"], strict=True)]
    rows = []
    for row in table.sort_values(["order", "alpha0", "beta"], ascending=[True, False, True]).itertuples():
        rows.append(
            {
                "method": LABELS[_name(row.method, row.decay)],
                "α₀": power_of_ten(row.alpha0),
                "β": power_of_ten(row.beta) if row.beta else "",
                "median": _count(row.median, cap),
                "lowest to highest": f"{_count(row.low, cap)} to {_count(row.high, cap)}",
                "seeds that arrived": f"{row.seeds - row.unreached} of {row.seeds}",
                "paper": "" if np.isnan(row.paper) else _count(row.paper, 468_750),
                "paper's place": _place(row),
            }
        )
        if not _printed(records):
            del rows[-1]["paper"], rows[-1]["paper's place"]
    return Table(pd.DataFrame(rows), frames.note(records))


# -- cells and pairs


def _printed(records: Sequence[Record]) -> bool:
    """Say whether the paper prints numbers for these runs: it does for logistic regression."""
    spec = records[0].spec
    return (spec.task, spec.model, spec.target_of) == ("mnist", "logreg", "minibatch")


def _median(values: pd.Series) -> float:
    """The median, infinite where half the seeds did not arrive."""
    ordered = np.sort(values.to_numpy())
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return high if np.isinf(high) else (low + high) / 2


def _baselines(method: str) -> list[tuple[str, tuple[str, str]]]:
    """Return the names and (method, decay) of what a hypergradient method is compared with, the paper's first."""
    baseline = BASELINE[method]
    found = [(LABELS[baseline], (baseline, "none"))]
    if baseline == "adam":
        found.insert(0, (LABELS["adam_decayed"], ("adam", "inv_sqrt")))
    return found


def _pairs(frame: pd.DataFrame, method: str, baseline: tuple[str, str]) -> pd.DataFrame:
    """Return a row per cell of a method: the ratio of medians to its baseline at the same alpha_0, seeds slower."""
    ours = frame[frame["method"] == method]
    theirs = frame[(frame["method"] == baseline[0]) & (frame["decay"] == baseline[1])]
    pairs = ours.merge(theirs[["alpha0", "seed", "iterations"]], on=["alpha0", "seed"], suffixes=("", "_baseline"))
    rows = []
    for (alpha0, beta), group in pairs.groupby(["alpha0", "beta"]):
        mine, other = _median(group["iterations"]), _median(group["iterations_baseline"])
        ratio = 1.0 if np.isinf(mine) and np.isinf(other) else min(mine, 1e12) / min(other, 1e12)
        slower = int((group["iterations"] > group["iterations_baseline"]).sum())
        rows.append((alpha0, beta, ratio, slower, len(group)))
    return pd.DataFrame(rows, columns=["alpha0", "beta", "ratio", "seeds_slower", "seeds"])


def _slower(records: Sequence[Record], baselines: dict[str, tuple[str, str]]) -> set[tuple[str, float, float]]:
    found = set()
    for method, baseline in baselines.items():
        pairs = _pairs(reached(records), method, baseline)
        found |= {(method, row.alpha0, row.beta) for row in pairs[pairs["ratio"] > 1].itertuples()}
    return found


def _paper_slower() -> dict[str, int]:
    theirs = paper.figure4()
    counts = {}
    for method, baseline in BASELINE.items():
        base = theirs[theirs["method"] == baseline].set_index("alpha0")["iterations"]
        own = theirs[theirs["method"] == method]
        counts[method] = int((own["iterations"].to_numpy() > base[own["alpha0"]].to_numpy()).sum())
    return counts


def _log_ratios(records: Sequence[Record], beta: float, baseline: tuple[str, str]) -> np.ndarray:
    """Return, per seed, the log of Adam-HD's iterations over the baseline's, mean over alpha_0."""
    frame = reached(records)
    frame["log"] = np.log(frame["iterations"].clip(upper=float(max(r.iterations for r in records))))
    ours = frame[(frame["method"] == "adam_hd") & (frame["beta"] == beta)]
    base = frame[(frame["method"] == baseline[0]) & (frame["decay"] == baseline[1])]
    ours, base = (part.pivot(index="seed", columns="alpha0", values="log") for part in (ours, base))
    return (ours - base).mean(axis=1).to_numpy()


def _ratio(records: Sequence[Record], beta: float, baseline: tuple[str, str]) -> str:
    per_seed = _log_ratios(records, beta, baseline)
    mean = significant(np.exp(per_seed.mean()), 2)
    if len(per_seed) < 2 or np.ptp(per_seed) == 0:
        return mean
    found = stats.bootstrap((per_seed,), np.mean, rng=np.random.default_rng(0)).confidence_interval
    return f"{mean} ({significant(np.exp(found.low), 2)} to {significant(np.exp(found.high), 2)})"


# -- words


def _name(method: str, decay: str) -> str:
    return method if decay == "none" else f"{method}_decayed"


def _beta_label(beta: float) -> str:
    return f"β = {power_of_ten(beta)}"


def _columns(method: str) -> pd.DataFrame:
    rows = [(b, d, i) for i, (_, (b, d)) in enumerate(_baselines(method))] + [(method, "none", 9)]
    return pd.DataFrame(rows, columns=["method", "decay", "order"])


def _cell_text(row, cap: int, beside: bool) -> str:
    text = _count(row.median, cap)
    if row.low != row.high:
        text += f"\n{_count(row.low, cap)}–{_count(row.high, cap)}"
    if beside and not np.isnan(row.paper):
        text += f"\npaper {_count(row.paper, cap)} {_place(row, short=True)}"
    return text


def _place(row, short: bool = False) -> str:
    if np.isnan(row.paper):
        return ""
    if row.paper < row.low:
        return "▼" if short else "below"
    if row.paper > row.high:
        return "▲" if short else "above"
    return "✓" if short else "within"


def _count(value: float, cap: int) -> str:
    return f">{cap:,}" if np.isinf(value) else f"{value:,.0f}"


def _times(own: pd.DataFrame, cap: int) -> str:
    factor = significant(own["shown"].max() / own["shown"].min(), 2)
    return f"more than {factor}" if np.isinf(own["median"]).any() else factor


def _spread(axis: plt.Axes, own: pd.DataFrame, cap: int, style: dict) -> None:
    own = own.sort_values("alpha0")
    middle, low, high = (own[name].clip(upper=cap) for name in ("median", "low", "high"))
    axis.plot(own["alpha0"], middle, marker="o", markersize=3, **style)
    axis.fill_between(own["alpha0"], low, high, color=style["color"], alpha=0.15, lw=0)
