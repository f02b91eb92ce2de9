"""The critical beta of VGG, the betas of the experiment beside it, and the longer runs that failed below it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from hdlib.report import relapse, vgg
from hdlib.report.critical import critical_beta
from hdlib.report.style import (
    LABELS,
    Table,
    fraction,
    rounded,
    scientific,
    several,
)
from hdlib.runs import Record
from hdlib.runs.critical import ALPHA0, PREDICTORS


def critical(measured: pd.DataFrame, betas: dict[str, float], iterations: int) -> Table:
    """Return the beta from which training fails, measured and predicted, beside the one of the experiment.

    Args:
        measured: what `critical.measured_boundaries` returns for `critical.vgg_boundaries`.
        betas: of the experiment, by method.
        iterations: of each run.
    """
    rows = []
    for (model, method), runs in measured.groupby(["model", "method"], sort=False):
        ends = runs["critical"].agg(["min", "max"])
        known = 0 < ends["min"] <= ends["max"] < np.inf
        rows.append(
            {
                "model as in": _network(model),
                "method": LABELS[method],
                "seeds": len(runs),
                f"critical β of {iterations} iterations": _from_to(ends) if known else critical_beta(runs),
                "β of the experiment": scientific(betas[method]),
                "critical over that": _from_to(ends / betas[method], rounded) if known else "",
                PREDICTORS["at_start"]: _predicted(runs["at_start"]),
            }
        )
    return Table(
        pd.DataFrame(rows),
        f"From α₀ = {ALPHA0:g}, {iterations} iterations; critical β from the lowest to the highest seed, predictions "
        "in medians over seeds; where κ is negative in the first step, it predicts nothing. A run fails if it "
        "diverges, or if its loss at the end, the mean over the last tenth of the iterations, is more than a fifth "
        "above that of the first minibatch. The "
        "curvatures on the way, from which the page on the critical β predicts better, were not measured here.",
    )


def critical_sentence(measured: pd.DataFrame, betas: dict[str, float], iterations: int) -> str:
    """Say how far the experiment's beta is from the critical one of the widest network."""
    widest = measured[measured["model"] == max(measured["model"], key=lambda model: float(model.split()[1]))]
    told = []
    for method, runs in widest.groupby("method", sort=False):
        middle = runs["critical"].median()
        if not 0 < middle < np.inf:
            told.append(f"not known for {LABELS[method]}, whose was not found ({critical_beta(runs)})")
            continue
        told.append(f"{rounded(middle / betas[method])} for {LABELS[method]}")
    variant, factor = widest["model"].iloc[0].split()
    return (
        f"With {fraction(float(factor))} of the channels, as in {vgg.VARIANTS[variant]}, the critical β of "
        f"{iterations} iterations over the experiment's β is {several(told)}."
    )


def later_failures(measured: pd.DataFrame, betas: dict[str, float], known: Sequence[Record]) -> str:
    """Say in which networks longer runs failed with the experiment's beta, though it is below the critical one.

    A run fails if it diverges, or falls back (`relapse.relapsed`). Where its network starts otherwise, or its numbers
    are of another precision, than when the critical beta was measured, that is said.

    Args:
        measured: what `critical.measured_boundaries` returns for `critical.vgg_boundaries`: of networks whose batch
            normalisation starts at ones.
        betas: of the experiment, by method.
        known: all runs that there are.
    """
    told = []
    limits = f"a start at ones in {several(measured.attrs['runs']['precision'])}"
    for (model, method), runs in measured.groupby(["model", "method"], sort=False):
        variant, factor = model.split()
        same = dict(model="vgg", variant=variant, width_factor=float(factor), method=method, beta=betas[method])
        same |= dict(rule="additive", alpha0=1e-3, max_iterations=None)
        longer = [r for r in known if all(getattr(r.spec, name) == value for name, value in same.items())]
        over = runs["critical"] / betas[method]
        for (start, precision), own in vgg.grouped(longer, "norm_start", "precision"):
            at = sorted(r.iterations for r in own if r.outcome == "diverged")
            forgot = sorted(relapse.began(r) for r in relapse.relapsed(own))
            if not (at or forgot) or not 1 < over.min() <= over.max() < np.inf:
                continue
            how = []
            if at:
                came = [r for r in own if r.outcome == "diverged" or r.iterations >= at[0]]
                how += [f"diverged in {vgg.which_runs(at, came)}, at iteration {several(at, '{:,}'.format)}"]
            if forgot:
                came = [r for r in own if r.outcome != "diverged" and r.epochs["epoch"].iloc[-1] >= forgot[0]]
                so_far = " that lasted so long" if len(came) < len(own) else ""
                how += [f"fell back in {vgg.which_runs(forgot, came)}{so_far}, in epoch {several(forgot)}"]
            ours = f"{vgg.STARTS[start]} in {precision}"
            text = f"- {LABELS[method]} as in {_network(model)}, with {ours}, {' and '.join(how)}."
            text += f" The β is {_from_to(over, rounded)} times below the critical one"
            told.append(f"{text}." if ours == limits else f"{text} of {limits}; that of these runs was not measured.")
    if not told:
        return ""
    return "\n".join(
        ["That is no bound for longer runs. Of all that are recorded, with the experiment's β:", "", *told]
    )


def _from_to(values: pd.Series, told: Callable[[float], str] = scientific) -> str:
    """Return the lowest and the highest value as text, or the only one."""
    low, high = told(values.min()), told(values.max())
    return low if low == high else f"{low} to {high}"


def _predicted(values: pd.Series) -> str:
    """Return the median of what is known, with the number of seeds of which it is, where that is not all."""
    if values.isna().all():
        return "none"
    seeds = "" if values.notna().all() else f" ({values.count()} of {len(values)} seeds)"
    return f"{scientific(values.median())}{seeds}"


def _network(model: str) -> str:
    variant, factor = model.split()
    return f"{vgg.VARIANTS[variant]}, {fraction(float(factor))} of the channels"
