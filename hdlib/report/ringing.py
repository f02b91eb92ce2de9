"""Where alpha first turns negative on the grids of the phase diagrams, beside where training fails."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from hdlib.report import frames
from hdlib.report.critical import against
from hdlib.report.divergence import phases
from hdlib.report.style import LABELS, Figure, Theme, between, scientific
from hdlib.runs import Record
from hdlib.runs.critical import ALPHA0


def begin(diagrams: dict[str, Sequence[Record]], measured: pd.DataFrame) -> pd.DataFrame:
    """Return, for each model and method with a measured critical beta, above which beta of its grid alpha rings.

    Columns: `model`; `method`; `alpha0`, that of the grid that is nearest to that of the critical betas; `rings`, the
    smallest beta from there at which alpha was negative, or the run diverged, in half of the seeds, and `how`, which
    of the two; `before` and `top`, the grid's next smaller beta and its largest; `limit`, 2 over the largest kappa on
    the way, and `critical`, medians over seeds. Where no cell rang, `rings` is NaN and `how` empty.

    Args:
        diagrams: records by model.
        measured: what `hdlib.runs.critical.measured_boundaries` returns.
    """
    rows = []
    for model, records in diagrams.items():
        cells = phases(records)
        for method, own in measured[measured["model"] == model].groupby("method"):
            grid = cells[cells["method"] == method].sort_values("beta", ignore_index=True)
            far = np.log(grid["alpha0"] / ALPHA0).abs()
            grid = grid[far == far.min()].reset_index(drop=True)
            rung = grid.index[grid["kind"].isin(("ringing", "diverged"))]
            first = rung[0] if len(rung) else None
            rows.append(
                dict(
                    model=model,
                    method=method,
                    alpha0=grid["alpha0"].iloc[0],
                    rings=np.nan if first is None else grid["beta"][first],
                    how="" if first is None else grid["kind"][first],
                    before=grid["beta"][first - 1] if first else np.nan,
                    top=grid["beta"].max(),
                    limit=own["largest"].median(),
                    critical=own["critical"].median(),
                )
            )
    return pd.DataFrame(rows)


def sentences(rings: pd.DataFrame) -> str:
    """Set the beta above which alpha rings against 2 over the largest kappa, and that above which training fails."""
    step = (rings["rings"] / rings["before"]).max()
    if not np.isfinite(step):
        return "On these grids no β at which α turns negative has a smaller one before it."
    lines = [f"From the α₀ nearest to {ALPHA0:g}; one step of the grid is a factor of {scientific(step)}.", ""]
    for method, own in rings.groupby("method", sort=False):
        found = own.dropna(subset="rings").set_index("model")
        over, beyond = found["rings"] / found["limit"], found["critical"] / found["rings"]
        near = (over < 1.001 * step) & (over > 0.999 / step)
        text = f"- {LABELS[method]}: the β is within one step of 2 / largest κ in {near.sum()} of {len(found)} models"
        text += f", {between(over[near])} times it" if near.any() else ""
        missed = [f"{model} ({against(ratio, 'it')})" for model, ratio in over[~near].items()]
        text += f"; not in {' and '.join(missed)}" if missed else ""
        if len(found):
            text += f". Training fails at {between(beyond)} times the β at which ringing begins"
            text += f" ({scientific(beyond.max())}: {beyond.idxmax()})" if len(found) > 1 else ""
        at_once = int((found["how"] == "diverged").sum())
        if at_once:
            text += (
                f". In {at_once} of them half of the seeds diverged there already: the grid does not tell the two apart"
            )
        silent = own[own["rings"].isna()]
        for above, where in ((True, "above the grid too"), (False, "on the grid")):
            models = silent.loc[(silent["limit"] > silent["top"]) == above, "model"]
            if len(models):
                named = " and ".join(models)
                text += f". At no β of the grid does α turn negative from there in {named}: 2 / largest κ lies {where}"
        lines.append(f"{text}.")
    return "\n".join(lines)


def figure(rings: pd.DataFrame, records: Sequence[Record], name: str, caption: str) -> Figure:
    """Draw, a row a model and a panel a method, where ringing begins and where training fails, over 2 / largest kappa.

    Args:
        rings: what `begin` returns.
        records: of the phase diagrams.
    """
    methods, models = (list(dict.fromkeys(rings[name])) for name in ("method", "model"))

    def draw(theme: Theme) -> plt.Figure:
        size = (9, 1.5 + 0.28 * len(models))
        drawn, axes = plt.subplots(1, len(methods), figsize=size, sharex=True, sharey=True, squeeze=False)
        for axis, method in zip(axes[0], methods, strict=True):
            own = rings[rings["method"] == method]
            rows = [models.index(model) for model in own["model"]]
            before, rung, failed = (own[column] / own["limit"] for column in ("before", "rings", "critical"))
            axis.axvline(1, color=theme.text, lw=1)
            axis.hlines(rows, rung, failed, color=theme.paper, lw=0.8)
            axis.hlines(rows, before, rung, color=theme.color(method), lw=5, label="α first turns negative")
            axis.plot(failed, rows, "X", color=theme.text, markersize=6, label="training fails")
            axis.set(xscale="log", title=LABELS[method], xlabel="β over 2 / largest κ")
        axes[0, 0].set_yticks(range(len(models)), models)
        axes[0, 0].set_ylim(len(models) - 0.5, -0.5)
        drawn.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        return drawn

    ratio = (rings["rings"] / rings["limit"]).dropna()
    alt = (
        "Where alpha first turns negative and where training fails, over 2 / largest kappa, a row for each model. "
        f"In {int(((ratio > 1 / 3) & (ratio < 3)).sum())} of {len(ratio)} cases alpha first turns negative within a "
        "factor of three of it."
    )
    return Figure(draw, name, alt, rings, frames.note(records), caption)
