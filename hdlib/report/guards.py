"""What keeps alpha from running away, compared: the guards, and the automatic beta."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown

from hdlib.optim.control import BETAS
from hdlib.report import frames
from hdlib.report.performance import read
from hdlib.report.style import LABELS, LARGE, Figure, Table, Theme, between, counted, power_of_ten, scientific
from hdlib.runs import BASELINE, Record
from hdlib.runs.experiments import BETAS_TRIED, GUARDS, PAPER_RATES

HD = tuple(BASELINE)
MULTIPLICATIVE = "multiplicative"
DOES = {
    "plain": "the paper's rule, with no guard",
    "bounds 0 and 0.1": "keeps α between two bounds",
    "change of at most 10 %": "bounds the relative change of α in a step",
    "multiplicative": "the paper's Equation 8: only the angle between g and D counts",
    "log space": "the paper's rule on log α, so that α cannot become negative",
    "α kept where h is not finite": "ignores an h that is not a finite number",
    "step skipped where h is not finite": "leaves such a step out, too",
    "AdaGrad on h": "divides h by the root of the sum of all h² so far",
    "Adam on h": "replaces h by its running mean over its running size",
    "transition to 0.001": "moves gradually to a fixed learning rate: the paper's Section 5.1",
    "overshoot 0.1": "tolerates that a step goes too far, by this fraction of the slope at its start",
    "β = 0.5 / κ, at most × 2": "divides β by κ, which it finds from slopes; a step at most doubles α",
    "automatic": "needs no β, and tolerates at first that a step goes too far",
    "automatic, greedy": "the same without that tolerance",
}
SHOWN = {"plain": "the paper's rule"}  # guards that readers meet under another name
Comparisons = Sequence[tuple[Mapping[str, Sequence[Record]], Sequence[Record]]]  # runs by guard, no hypergradients


def shown(guard: str) -> str:
    """Return how a guard is called in figures, tables and sentences."""
    return SHOWN.get(guard, guard)


def arguments() -> Table:
    """Return the guards by their names in figures and tables, with the arguments of `SGDHD` and `AdamHD` that set each.

    The arguments are those of the runs; where none says what beta is, it was varied.
    """
    rows = []
    for name, guard in GUARDS.items():
        given = {"hypergrad_lr" if option == "beta" else option: value for option, value in guard.items()}
        told = (f'{option}="{value}"' if isinstance(value, str) else f"{option}={value:g}"
                for option, value in given.items())  # fmt: skip
        rows.append({"in the figures": shown(name), "arguments": ", ".join(told), "what it does": DOES[name]})
    low, high = power_of_ten(min(PAPER_RATES)), power_of_ten(max(PAPER_RATES))
    return Table(
        pd.DataFrame(rows),
        f"Where no hypergrad_lr is given there is a β to choose: {low} to {high} were tried, and with Adam-HD "
        f"{power_of_ten(min(BETAS_TRIED['adam_hd']))} to {high}.",
    )


def without_beta(comparisons: Comparisons) -> str:
    """Say which of the guards without a beta to choose has the smallest worst loss over the methods, and how often.

    Args:
        comparisons: of all guards.
    """
    worst = _worst_without_beta(comparisons)
    wins = pd.Series([losses.idxmin() for losses in worst.values() if np.isfinite(losses).any()]).value_counts()
    best = " and ".join(f"*{name}* in {n}" for name, n in wins.items()) or "none in any"
    count = len(next(iter(worst.values())))
    return (
        f"Of the {count} settings without a β to choose, the one with the smallest worst loss over methods and α₀ is "
        f"{best} of the {len(worst)} comparisons of all guards."
    )


def without_beta_table(comparisons: Comparisons) -> Table:
    """Return the worst loss of each guard without a beta to choose, a column a comparison."""
    worst = _worst_without_beta(comparisons)
    names = sorted(next(iter(worst.values())).index, key=lambda name: not name.startswith("automatic"))
    rows = [{"setting": name} | {run: _worst_told(losses[name]) for run, losses in worst.items()} for name in names]
    return Table(
        pd.DataFrame(rows),
        "The final training loss from the worst α₀ and with the worst method, over that of the best fixed rate of the "
        "same method; by medians over seeds.",
    )


def _worst_without_beta(comparisons: Comparisons) -> dict[str, pd.Series]:
    """Return, by comparison, the worst loss over methods and alpha_0 of the guards that leave no beta to choose."""
    names = [name for name, guard in GUARDS.items() if "beta" in guard]
    return {
        frames.compared_on(next(iter(guarded.values()))[0].spec): worst_losses(by_cell(guarded, base)).max(axis=1)[
            names
        ]
        for guarded, base in comparisons
    }


def by_cell(guarded: dict[str, Sequence[Record]], unguarded: Sequence[Record]) -> pd.DataFrame:
    """Return a row per guard, method and cell, which is a pair of alpha_0 and beta, with medians over seeds.

    A guard is compared with the runs of its own seeds alone.

    Columns beside these: `runs` and `diverged` ones; `loss`; `no_hd`, the loss of the fixed rate alpha_0; `over_best`,
    the loss over that of the best fixed rate; `plain`, that of the paper's rule from alpha_0 with its best beta.
    """
    base = frames.outcomes(unguarded)
    runs = pd.concat([frames.outcomes(records).assign(guard=name) for name, records in guarded.items()])
    plain = runs[runs["guard"] == "plain"]
    cells = runs.groupby(["guard", "method", "alpha0", "beta"], sort=False, as_index=False).agg(
        runs=("loss", "size"), diverged=("diverged", "sum"), loss=("loss", "median")
    )
    seeds = cells["guard"].map(runs.groupby("guard")["seed"].agg(frozenset))
    found = []
    for those, own in cells.groupby(seeds, sort=False):
        rates, rules = (frame[frame["seed"].isin(those)] for frame in (base, plain))
        no_hd = rates.groupby(["method", "alpha0"])["loss"].median()
        best = rules.groupby(["method", "alpha0", "beta"])["loss"].median().groupby(["method", "alpha0"]).min()
        fixed = own["method"].map(BASELINE)
        found.append(
            own.assign(
                no_hd=no_hd.loc[pd.MultiIndex.from_arrays([fixed, own["alpha0"]])].to_numpy(),
                over_best=own["loss"] / fixed.map(no_hd.groupby("method").min()),
                plain=best.loc[pd.MultiIndex.from_frame(own[["method", "alpha0"]])].to_numpy(),
            )
        )
    return pd.concat(found).sort_index()


def table(guarded: dict[str, Sequence[Record]], unguarded: Sequence[Record]) -> Table:
    """Return how each guard fares over the grid: divergence, against no HD, and against the best fixed rate."""
    cells = by_cell(guarded, unguarded)
    single = best_single_beta(cells).set_index(["guard", "method"])
    rows = []
    for name in guarded:
        for method in HD:
            own = cells[(cells["guard"] == name) & (cells["method"] == method)]
            if own.empty:
                continue
            by_rate = own.groupby("alpha0")[["loss", "plain"]].min().replace(np.inf, np.nan)  # not where none converges
            rows.append(
                {
                    "guard": shown(name),
                    "method": LABELS[method],
                    "diverged": f"{own['diverged'].sum()} of {own['runs'].sum()}",
                    "below the fixed rate": f"{int((own['loss'] < own['no_hd']).sum())} of {len(own)}",
                    "best β ÷ paper's rule": between(by_rate["loss"] / by_rate["plain"]),
                    "all ÷ best fixed": between(own["over_best"]),
                    "worst, best single β": _worst_told(
                        *single.loc[(name, method), ["worst", "beta"]], len(set(own["beta"]))
                    ),
                }
            )
    note = frames.note([r for records in guarded.values() for r in records])
    return Table(pd.DataFrame(rows), f"{note} A guard with fewer seeds than others is compared over its own.")


def best_single_beta(cells: pd.DataFrame) -> pd.DataFrame:
    """Return, for each guard and method, the one beta that suits all alpha_0 best, chosen when all had been run.

    That is the beta with which runs diverge from the fewest alpha_0, and of these the one with the smallest worst loss.

    Args:
        cells: what `by_cell` returns.

    Returns:
        A row each with `guard`, `method`, `beta`, and `worst`: the worst loss with it over that of the best fixed rate,
        infinite where a run diverged.
    """
    worst = cells.assign(
        lost=cells["diverged"] > 0,
        worst=_worst(cells),
        kept=_worst(cells).replace(np.inf, np.nan),
    )
    by_beta = worst.groupby(["guard", "method", "beta"], sort=False, as_index=False).agg(
        lost=("lost", "sum"), worst=("worst", "max"), kept=("kept", "max")
    )
    best = by_beta.sort_values(["lost", "kept"], kind="stable").groupby(["guard", "method"], sort=False).head(1)
    return best[["guard", "method", "beta", "worst"]]


def _worst(cells: pd.DataFrame) -> pd.Series:
    """Return each cell's loss over that of the best fixed rate, infinite where any of its runs diverged."""
    return cells["over_best"].mask(cells["diverged"] > 0, np.inf)


def worst_losses(cells: pd.DataFrame) -> pd.DataFrame:
    """Return each guard's worst loss over the best fixed rate's: a column a method, infinite where a run diverged."""
    return _by_method(
        cells.assign(worst=_worst(cells)).groupby(["guard", "method"], as_index=False)["worst"].max(), cells
    )


def _by_method(worst: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """Return a row a guard, in their order, and a column a method."""
    return worst.pivot(index="guard", columns="method", values="worst").reindex(
        cells["guard"].unique(), columns=list(HD)
    )


def settings(comparisons: Comparisons, recorded: Sequence[Record] = ()) -> str:
    """Say which guards' settings are what turned out best, and which may lack the beta that suits them.

    Args:
        comparisons: of all guards.
        recorded: all runs that there are, of which those of online tuning may have that beta.
    """
    best: dict[str, list[float]] = {}
    largest: dict[str, list[bool]] = {}
    betas: set[float] = set()
    for guarded, unguarded in comparisons:
        losses = frames.outcomes(unguarded).groupby(["method", "alpha0"])["loss"].median()
        for method, own in losses.groupby("method"):
            best.setdefault(method, []).append(own.idxmin()[1])
        cells = by_cell(guarded, unguarded)
        tried = cells.groupby("guard")["beta"].agg(["nunique", "max"])
        betas |= set(cells.loc[cells["guard"] == MULTIPLICATIVE, "beta"])
        for row in best_single_beta(cells).itertuples():
            if tried.loc[row.guard, "nunique"] > 1:
                largest.setdefault(row.guard, []).append(row.beta == tried.loc[row.guard, "max"])

    def hits(method: str, rate: float) -> str:
        return f"{best[method].count(rate)} of {len(best[method])}"

    bound, final = GUARDS["bounds 0 and 0.1"]["max_lr"], GUARDS["transition to 0.001"]["final_lr"]
    edge, count = largest.pop(MULTIPLICATIVE), sum(map(len, largest.values()))
    default = BETAS[MULTIPLICATIVE]
    missing = f"; the paper's β, {default:g}, was not tried" if default not in betas else ""
    rates: dict[tuple, set[float]] = {}
    for spec in (r.spec for r in recorded if r.spec.rule == MULTIPLICATIVE and r.spec.epochs > 1):
        if spec.beta == default and spec.as_in_the_paper():
            rates.setdefault((spec.model, spec.epochs, spec.method), set()).add(spec.alpha0)
    if missing and rates:
        missing += f" here: [online tuning](online-tuning) has it, from {counted(max(map(len, rates.values())), 'α₀')} "
        missing += "a method"
    return (
        f"The upper bound, {bound:g}, is the best of the fixed rates of SGD in {hits('sgd', bound)} comparisons of all "
        f"guards, and the rate that *transition* passes over to, {final:g}, that of Adam in {hits('adam', final)}: "
        f"settings that know the result. With *{MULTIPLICATIVE}* the single β that suits best is the largest that was "
        f"tried, {power_of_ten(max(betas))}, for {sum(edge)} of {len(edge)} pairs of a method and a comparison (with "
        f"the other guards for {sum(map(sum, largest.values()))} of {count}), so a larger one may be better{missing}."
    )


def figure(guarded: dict[str, Sequence[Record]], unguarded: Sequence[Record], name: str, caption: str) -> Figure:
    """Draw each guard's worst cell above, and below that of its best single beta, on a logarithmic axis each.

    A cross at the edge is a run that diverged; a loss of more than a million times the best fixed rate's is drawn
    like one. The symbols are added to the caption.
    """
    cells = by_cell(guarded, unguarded)
    rows = {"any β": worst_losses(cells), "best single β": _by_method(best_single_beta(cells), cells)}
    rows = {betas: worst.rename(index=shown) for betas, worst in rows.items()}
    guards = list(rows["any β"].index)

    def draw(theme: Theme) -> plt.Figure:
        figure, panels = plt.subplots(
            2, 3, figsize=(9, 2.6 + 0.4 * len(guards)), sharex="row", sharey=True, gridspec_kw=dict(hspace=0.1)
        )
        for axes, (betas, worst), fill in zip(panels, rows.items(), ("full", "none"), strict=True):
            finite = worst.to_numpy()[worst < LARGE]
            low, high = min([0.8, *finite]) / 1.1, max([1.25, *finite])
            edge = high * (high / low) ** 0.12
            ticks = [tick for tick in ((1, 2, 5, 10, 20) if edge < 50 else 10.0 ** np.arange(7)) if tick < edge]
            names = [f"{tick:g}" if tick < 1e4 else power_of_ten(tick) for tick in ticks]
            for axis, method in zip(axes, HD, strict=True):
                own = worst[method].to_numpy()
                kept, lost = np.flatnonzero(own < LARGE), np.flatnonzero(own >= LARGE)
                axis.axvline(1, color=theme.text, lw=1)
                axis.plot(own[kept], kept, "o", color=theme.color(method), markersize=5, fillstyle=fill)
                if len(lost):  # no points that are not clipped make the layout leave room for them
                    axis.plot([edge] * len(lost), lost, "X", color=theme.text, markersize=6, clip_on=False)
                axis.set(xscale="log", xlim=(low, edge), title=f"{LABELS[method]}, {betas}")
                axis.set(xticks=ticks, xticklabels=names, xlabel="worst loss ÷ best fixed")
                axis.minorticks_off()
            axes[0].set_yticks(range(len(guards)), guards)
        panels[0][0].invert_yaxis()
        return figure

    symbols = "Dots, above: the worst cell with any β. Rings, below: the worst α₀ with the best single β."
    crosses = [(worst >= LARGE).to_numpy().any() for worst in rows.values()]
    if any(crosses):
        symbols += " A cross in place of a dot: a run diverged"
        symbols += "; in place of a ring: with every β one did" if crosses[1] else ""
        beyond = any(((worst >= LARGE) & np.isfinite(worst)).to_numpy().any() for worst in rows.values())
        symbols += f", or ended above {power_of_ten(LARGE)} times the best fixed rate's loss." if beyond else "."
    alt = f"Worst loss of each guard over that of the best fixed rate, a panel a method, {_described(rows['any β'])}"
    records = [r for own in guarded.values() for r in own]
    data = pd.concat([worst.assign(betas=betas) for betas, worst in rows.items()]).reset_index()
    return Figure(draw, name, alt, data, frames.note(records), f"{caption} {symbols}")


def _sentence(losses: pd.DataFrame) -> str:
    """Say with which guards no run diverged, and which two of them have the smallest worst loss over the methods."""
    worst = losses.max(axis=1).rename(index=shown)
    safe = worst[np.isfinite(worst)].sort_values(kind="stable")
    diverging = worst.index[np.isinf(worst)]
    if len(diverging) < len(safe):
        told = f"only *{'*; *'.join(diverging)}* had runs that diverged" if len(diverging) else "none had a run diverge"
    else:
        kept = [f"*{name}*" for name in worst.index if name in safe.index]
        told = f"{len(kept)} had no run diverge: {'; '.join(kept)}" if kept else "all had runs that diverged"
    text = f"Of the {len(worst)} rules, {told}."
    if len(safe):
        text += f" Over the three methods the worst loss of *{safe.index[0]}* is the smallest, "
        text += f"{scientific(safe.iloc[0])} times that of the best fixed rate"
        text += f"; then comes *{safe.index[1]}* with {scientific(safe.iloc[1])}." if len(safe) > 1 else "."
    return text


def _described(losses: pd.DataFrame) -> str:
    """Return the rest of a figure's description, without markup: how many rules diverged, and which is the best."""
    worst = losses.max(axis=1)
    diverged = int(np.isinf(worst).sum())
    text = "with any beta and with the best single one. With any, "
    text += f"{diverged or 'none'} of the {len(worst)} rules had runs that diverged"
    if diverged < len(worst):
        text += f", and the worst loss of {worst.idxmin()} is the smallest, {scientific(worst.min())} times that rate's"
    return f"{text}."


def verdict(guarded: dict[str, Sequence[Record]], unguarded: Sequence[Record]) -> str:
    """Say what `_sentence` does, and which rule is best for each method where each has the beta that suits it best."""
    cells = by_cell(guarded, unguarded)
    return f"{_sentence(worst_losses(cells))} {_single_beta_sentence(_by_method(best_single_beta(cells), cells))}"


def _single_beta_sentence(single: pd.DataFrame) -> str:
    told = []
    for method in HD:
        own = single[method].dropna().sort_values(kind="stable")
        if own.empty:
            continue
        if np.isinf(own.iloc[0]):
            told.append(f"of none for {LABELS[method]}, where runs diverge with every rule")
            continue
        first = [name for name in own.index if scientific(own[name]) == scientific(own.iloc[0])]
        also = f" and {counted(len(first) - 1, 'other')} alike" if len(first) > 1 else ""
        less = "automatic" in own.index and "automatic" not in first
        than = f"; *automatic*: {_worst_told(own['automatic'])}" if less else ""
        told.append(f"of *{shown(first[0])}*{also} for {LABELS[method]} ({scientific(own.iloc[0])}{than})")
    return f"With the best single β of each, the smallest worst loss is that {', '.join(told)}."


def _worst_told(worst: float, beta: float = 1.0, betas: int = 1) -> str:
    """Return a worst loss, and where there was a choice, the beta."""
    told = "diverges" if np.isinf(worst) else scientific(worst)
    return f"{told}, β = {power_of_ten(beta)}" if betas > 1 else told


def unbounded(guarded: dict[str, Sequence[Record]], traced: Sequence[Record]) -> str:
    """Say why runs diverge in log space and not with the multiplicative rule; nothing where it is not so.

    Args:
        guarded: the runs by guard.
        traced: runs of the perceptron with "log space", of which iterations are kept: the one among those that
            diverged whose largest factor is the smallest is the example.
    """
    counts = {}
    for name in ("log space", "multiplicative"):
        runs = frames.outcomes(guarded[name])
        counts[name] = runs.groupby("method", sort=False)["diverged"].agg(["sum", "size"])
    most = counts["log space"]["sum"].idxmax()
    diverged, runs = counts["log space"].loc[most]
    if not diverged or counts["multiplicative"]["sum"].any():
        return ""
    largest = {}
    for record in traced:
        if record.outcome == "diverged" and len(record.trace):
            largest[np.nanmax(-record.spec.beta * record.trace["hypergrad"].to_numpy(float))] = record.spec
    text = (
        f"*Log space* keeps α positive, and yet {diverged} of its {runs} runs of {LABELS[most]} diverged, "
        "where none did with *multiplicative*. Its factor exp(−βh) has no bound"
    )
    if largest and 0 < min(largest) < np.log(np.finfo(float).max):
        exponent, spec = min(largest), largest[min(largest)]
        text += (
            f": of the {len(largest)} runs that diverged with it on {frames.model_name(spec)} over "
            f"{frames.run_length(spec)}, further down, the mildest, of {LABELS[spec.method]}, met an *h* of "
            f"{scientific(-exponent / spec.beta)} at β = {power_of_ten(spec.beta)}, which multiplied α by "
            f"{scientific(np.exp(exponent))}"
        )
    return f"{text}. That of the multiplicative rule is 1 − β times a cosine, and so between 1 − β and 1 + β."


def costs(store: str) -> Table | Markdown:
    """Return what a step takes with each guard over a step of the paper's rule, as the benchmark measured it."""
    found = (read(store, "optimizer_step") or {}).get("guards")
    if not found:
        return Markdown("Not measured: `make bench` does it.")
    rows = [
        {"guard": shown(name)} | {method: f"{ratio:.2f}" for method, ratio in row.items()}
        for name, row in found.items()
    ]
    return Table(
        pd.DataFrame(rows),
        "The time of the optimiser's step alone, without the forward and backward pass, over that of the paper's rule "
        "in the same round, median; the parameters of the paper's perceptron, on a CPU, steps as they come and fused.",
    )
