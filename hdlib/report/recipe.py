"""What a share of the critical beta is worth: its loss beside that of the best beta, on grids that were run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from hdlib.report import frames, paper
from hdlib.report.style import LABELS, Noted, Table, counted, power_of_ten, rounded, scientific
from hdlib.runs import BASELINE, Record

SHARES = {3: "a third", 10: "a tenth", 30: "a thirtieth", 100: "a hundredth"}  # of the critical beta
TAKEN = {"adam_hd": 10, "sgd_hd": 3}  # the share that is recommended
HIGHEST = 1e-2  # initial learning rate that is looked at
FAR = 1.3  # factor by which the share that is run may differ from the one that is meant without a word

Grids = Sequence[tuple[str, Sequence[Record]]]  # models, and their runs on a grid of alpha_0 and beta


def worth(grids: Grids, measured: pd.DataFrame, highest: float = HIGHEST) -> pd.DataFrame:
    """Return a row for each grid, method with a measured critical beta, share, and alpha_0 up to `highest`.

    Columns: `model`; `length` of the runs, in words; `method`; `seeds`; `critical`, median over seeds; `share`;
    `alpha0`; `beta`, that of the grid that is nearest to the share; `over`, its loss over that of the best beta from
    the same alpha_0, in medians over seeds; `fixed`, the same over that without HD, NaN where that is unknown. The last
    three are NaN where the grid ends before the share. There is no row where all betas diverged.
    """
    rows = []
    for model, records in grids:
        runs, spec = frames.outcomes(records), records[0].spec
        length = frames.run_length(spec)
        for method in TAKEN:
            critical = measured.loc[(measured["model"] == model) & (measured["method"] == method), "critical"].median()
            own = runs[(runs["method"] == method) & (runs["alpha0"] <= highest)]
            plain = runs[runs["method"] == BASELINE[method]].groupby("alpha0")["loss"].median()
            if own.empty or not 0 < critical < np.inf:
                continue
            losses = own.groupby(["alpha0", "beta"])["loss"].median().unstack()
            losses = losses[np.isfinite(losses).any(axis=1)]
            of_all = dict(model=model, length=length, method=method, seeds=own["seed"].nunique(), critical=critical)
            for share in SHARES:
                beta = _nearest(losses.columns.to_numpy(), critical / share)
                ends = losses[beta] if beta else losses.min(axis=1) * np.nan
                ratios = pd.DataFrame({"over": ends / losses.min(axis=1), "fixed": ends / plain.reindex(ends.index)})
                rows += [
                    dict(**of_all, share=share, beta=beta or np.nan, **row)
                    for row in ratios.reset_index().to_dict("records")
                ]
    columns = ["model", "length", "method", "seeds", "critical", "share", "alpha0", "beta", "over", "fixed"]
    return pd.DataFrame(rows, columns=columns)


def _nearest(grid: np.ndarray, beta: float) -> float | None:
    """Return the nearest beta of a grid, or none where it is more than half a step of the grid away."""
    off = np.abs(np.log(grid / beta))
    return float(grid[off.argmin()]) if off.min() <= np.diff(np.log(grid)).max(initial=0) / 2 + 1e-6 else None


def table(found: pd.DataFrame, grids: Grids) -> Table:
    """Return the worst over alpha_0 of each share, a row for each method and grid."""
    rows = []
    for method in TAKEN:
        for (model, length), own in found[found["method"] == method].groupby(["model", "length"], sort=False):
            row = {"method": LABELS[method], "model": model, "length": length}
            row |= {"critical β": scientific(own["critical"].iloc[0])}
            rows.append(row | {f"÷ {share}": _worst(part, share) for share, part in own.groupby("share")})
    made = frames.note([record for _, records in grids for record in records])
    note = (
        "The final training loss with the critical β divided by a number, over that with the best β of the grid from "
        f"the same α₀, in medians over seeds: the worst over α₀ up to {power_of_ten(HIGHEST)}. The β is the "
        "grid's nearest one, with the real divisor in small print where that is far off; a dash where the grid ends "
        f"before it. {made}"
    )
    return Table(pd.DataFrame(rows), note)


def _worst(part: pd.DataFrame, share: float) -> str | Noted:
    over, taken = part["over"].max(), (part["critical"] / part["beta"]).iloc[0]
    if part["over"].isna().any():
        return "–"
    text = "diverged" if np.isinf(over) else scientific(over)
    return text if abs(np.log(taken / share)) < np.log(FAR) else Noted(text, f"÷ {rounded(taken)}")


def sentences(found: pd.DataFrame) -> str:
    """Say what the recommended share costs at worst in each model, and how far apart their critical betas are."""
    lines = []
    for method, own in _recommended(found):
        share, worst = SHARES[TAKEN[method]], own.groupby("model", sort=False)["over"].max()
        reached = worst.dropna().sort_values(ascending=False)
        if reached.empty:
            continue
        text = f"- {LABELS[method]} with {share} of it ends at most at {_times(reached.iloc[0])} the loss of its best β"
        if len(reached) > 1:
            others = "the other model" if len(reached) == 2 else f"the {len(reached) - 1} other models"
            text += f" ({reached.index[0]}; in {others} at most at {_times(reached.iloc[1])})"
            critical = own.groupby("model")["critical"].first()[reached.index]
            text += f", though the critical β span a factor of {rounded(critical.max() / critical.min())}"
        lines.append(
            f"{text}{_grid_ends(own, f'{share} of it')}{_above_fixed(own, f'With {share} of the critical β')}."
        )
    return "\n".join(lines)


def beyond(grids: Grids, measured: pd.DataFrame) -> str:
    """Say what the recommended share comes to from the alpha_0 above HIGHEST, which are not counted."""
    found, told = worth(grids, measured, np.inf), []
    for method, own in _recommended(found[found["alpha0"] > HIGHEST].dropna(subset="over")):
        worst = own.groupby("model", sort=False)["over"].max()
        lost, kept = worst[np.isinf(worst)], worst[np.isfinite(worst)]
        parts = [f"diverges in {counted(len(lost), 'model')} ({'; '.join(lost.index)})"] if len(lost) else []
        if len(kept):
            where = f" in the other{'s' if len(kept) > 1 else ''}" if len(lost) else ""
            parts += [f"ends at up to {_times(kept.max())} the loss of its best β{where}"]
        if parts:
            told.append(f"{LABELS[method]} with {SHARES[TAKEN[method]]} of it {' and '.join(parts)}")
    return f"From α₀ above {power_of_ten(HIGHEST)}, which are not counted, {'; '.join(told)}." if told else ""


def _above_fixed(own: pd.DataFrame, lead: str) -> str:
    """Say, after a lead, from how many starts runs with a share end above those without HD."""
    known = own.dropna(subset="fixed")
    above = known[known["fixed"] > 1]
    if known.empty:
        return ""
    method = own["method"].iloc[0]
    where = f", by a factor of up to {scientific(above['fixed'].max())}" if len(above) else ""
    return (
        f". {lead} {LABELS[method]} ends above {LABELS[BASELINE[method]]} from {len(above) or 'none'} of {len(known)} "
        f"starts{where}"
    )


def in_practice(iterations: int) -> str:
    """Say how beta is found and which share of it is taken."""
    first, *others = (f"{SHARES[share]} with {LABELS[method]}" for method, share in TAKEN.items())
    return (
        f"**In practice:** find the largest β at which the loss does not rise in {iterations} iterations, and take "
        f"{', '.join([first.replace(' with', ' of it with'), *others])}. It is no guarantee: the shares were chosen on "
        "the runs of this page, in longer ones less can be better, and from α₀ above "
        f"{power_of_ten(HIGHEST)} it can be too much. [What that is worth](#what-to-do-with-it) says more."
    )


def longer_sentences(found: pd.DataFrame) -> str:
    """Say the same of whole epochs, by their number, and whether a smaller share would have been better."""
    lines, least = [], max(SHARES)
    for length, runs in found.groupby("length", sort=False):
        for method, own in _recommended(runs):
            without = _grid_ends(own, SHARES[TAKEN[method]])
            own = own.dropna(subset="over")
            if own.empty:
                continue
            worst, taken = own.loc[own["over"].idxmax()], own["critical"] / own["beta"]
            here = " to ".join(dict.fromkeys((rounded(taken.min()), rounded(taken.max()))))
            text = (
                f"- {LABELS[method]}, {length}: {SHARES[TAKEN[method]]} (here {here} times below the critical β) ends "
            )
            text += f"at most at {_times(worst['over'])} the loss of the best β, in {worst['model']}"
            smaller = runs[(runs["method"] == method) & (runs["share"] == least)]
            less = smaller.set_index(["model", "alpha0"])["over"]
            ratio = (own.set_index(["model", "alpha0"])["over"] / less).dropna()
            for told, by in (("lower", ratio[ratio > 1]), ("higher", 1 / ratio[ratio < 1])):
                if len(by):
                    text += f". {SHARES[least].capitalize()} ends {told} from {len(by)} of {len(ratio)} starts, by a "
                    text += f"factor of up to {scientific(by.max())}"
            text += without + _grid_ends(smaller, SHARES[least])
            text += _above_fixed(own, f"With {SHARES[TAKEN[method]]}")
            lines.append(f"{text}.")
    return "\n".join(lines)


def _grid_ends(found: pd.DataFrame, share: str) -> str:
    """Name the models whose grid ends before a share; nothing where there are none."""
    short = found.loc[found["over"].isna(), "model"].unique()
    return f". The grid ends before {share} in {' and '.join(short)}" if len(short) else ""


def papers(measured: pd.DataFrame, models: Sequence[str]) -> str:
    """Say how far below the critical beta of some models the paper's own are."""
    told = []
    for method in reversed(TAKEN):
        beta = paper.tuned_beta(method, "mlp")
        own = measured[(measured["method"] == method) & measured["model"].isin(models)]
        over = own.groupby("model", sort=False)["critical"].median() / beta
        over = over[np.isfinite(over) & (over > 0)]
        if len(over):
            named = " and ".join(f"{_below(ratio)} the one of {model}" for model, ratio in over.items())
            told.append(f"{power_of_ten(beta)} for {LABELS[method]} is {named}")
    return f"Of the β of the paper's Figure 3, beside these critical ones, {'; '.join(told)}." if told else ""


def _below(ratio: float) -> str:
    return f"{rounded(ratio)} times below" if ratio >= 1 else f"{rounded(1 / ratio)} times above"


def _recommended(found: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    return [(m, found[(found["method"] == m) & (found["share"] == share)]) for m, share in TAKEN.items()]


def _times(ratio: float) -> str:
    return f"{scientific(ratio)} times" if np.isfinite(ratio) else "without bound"
