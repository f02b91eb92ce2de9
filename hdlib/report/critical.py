"""Critical betas, above which training fails: measured beside predicted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from hdlib.report.style import LABELS, Figure, Table, Theme, between, counted, rounded, scientific
from hdlib.runs import BASELINE, RunSpec
from hdlib.runs.critical import ALPHA0, GROWTHS, PREDICTORS

CLEARLY = 0.1  # share of the runs by which a prediction has to be better
SCALED = {column: f"{PREDICTORS[column]}, times a constant" for column in ("at_start", "largest")}
SHORT = {"at_start": "first", "largest": "largest", "growth": "growth"}  # the predictors, as heads of a table


class Boundary(NamedTuple):
    """A critical beta: as measured, in so many iterations, and as predicted, and by what."""

    measured: float
    iterations: int
    predicted: float
    by: str


Boundaries = dict[str, dict[str, Boundary]]  # by model and method


def prediction(measured: pd.DataFrame, name: str, caption: str) -> Figure:
    """Draw measured against predicted critical betas, a panel for each predictor.

    Args:
        measured: a row per model, method and seed, with `critical` and a column for each of PREDICTORS.
    """

    def draw(theme: Theme) -> plt.Figure:
        figure, axes = plt.subplots(1, len(PREDICTORS), figsize=(9, 3.9), sharey=True, squeeze=False)
        values = measured[["critical", *PREDICTORS]].to_numpy()
        values = values[np.isfinite(values) & (values > 0)]
        low, high = values.min() / 2, values.max() * 2
        span = np.array([low, high])
        markers = dict(zip(BASELINE, ("o", "s", "^"), strict=True))
        for axis, (column, title) in zip(axes[0], PREDICTORS.items(), strict=True):
            axis.fill_between(span, span / 2, span * 2, color=theme.grid, alpha=0.6, lw=0, label="within a factor of 2")
            axis.plot(span, span, color=theme.paper, lw=1)
            for method, rows in measured.groupby("method"):
                axis.plot(
                    rows[column], rows["critical"], markers[method], color=theme.color(method), markersize=4,
                    alpha=0.75, label=LABELS[method],
                )  # fmt: skip
            axis.set(xscale="log", yscale="log", xlim=span, ylim=span, title=title, xlabel="predicted β")
        axes[0, 0].set_ylabel("measured critical β")
        axes[0, 0].legend()
        return figure

    shares = {
        LABELS[method]: max(within_two(measured, method, column) for column in PREDICTORS)
        for method in dict.fromkeys(measured["method"])
    }
    within = " and ".join(f"{100 * share:.0f} % of the runs of {label}" for label, share in shares.items())
    alt = (
        "Measured against predicted critical beta, a panel for each of three predictions. The best one is within a "
        f"factor of two for {within}."
    )
    return Figure(draw, name, alt, measured, measured_note(measured), caption)


def measured_note(measured: pd.DataFrame) -> str:
    """Return what made measured critical betas: the runs that were bisected, and the single steps."""
    runs = measured.attrs["runs"]
    each = measured.groupby(["model", "method"])["seed"].nunique().max()
    return (
        f"{len(measured)} critical β, {counted(each, 'seed')}, bisected with {runs['count']:,} runs of at most "
        f"{measured['iterations'].max():,} iterations, {' and '.join(runs['precision'])}, {', '.join(runs['device'])}. "
        f"Curvatures: {_probed(measured.attrs['steps'])}. Data: {'; '.join(runs['data'])}."
    )


def probe_note(table: pd.DataFrame, spec: RunSpec) -> str:
    """Return what made a table of `hdlib.runs.probe` that looks into one run."""
    made = table.attrs["made"]
    return f"One run, seed {spec.seed}, {_probed([made['device']])}. Data: {made['data']}."


def _probed(devices: Sequence[str]) -> str:
    return f"single steps, float64, {', '.join(devices)}"


def boundaries(measured: pd.DataFrame) -> Boundaries:
    """Return, by model and method, medians: of what was measured, and of the predictor that suits the method best.

    Args:
        measured: what `hdlib.runs.critical.measured_boundaries` returns.
    """
    found: Boundaries = {}
    for (model, method), rows in measured.groupby(["model", "method"]):
        best = max(PREDICTORS, key=lambda column: within_two(measured, method, column))
        middle = rows["critical"].median(), int(rows["iterations"].max()), rows[best].median()
        found.setdefault(model, {})[method] = Boundary(*middle, PREDICTORS[best])
    return found


def span(measured: pd.DataFrame) -> str:
    """Say between which values the critical betas lie."""
    count = measured["model"].nunique()
    parts = []
    for method, rows in measured.groupby("method", sort=False):
        middles = rows.groupby("model")["critical"].median()
        found = middles[np.isfinite(middles) & (middles > 0)]
        if len(found):
            parts.append(f"{between(found)} for {LABELS[method]}")
    where = "one model" if count == 1 else f"{count} models"
    return (
        f"In {where} the critical β is {' and '.join(parts)}, by medians over seeds."
        if parts
        else "No critical β was found."
    )


def prediction_lead(measured: pd.DataFrame) -> str:
    """Say what was measured."""
    names = list(dict.fromkeys(measured["model"]))
    methods = " and ".join(LABELS[method] for method in dict.fromkeys(measured["method"]))
    left_out = {
        LABELS[method]: [name for name in names if name not in set(rows["model"])]
        for method, rows in measured.groupby("method")
    }
    missing = "".join(f"; {method} was not measured with {' and '.join(m)}" for method, m in left_out.items() if m)
    chosen = "One model was" if len(names) == 1 else f"{len(names)} models were"
    return (
        f"{chosen} chosen before the critical β was looked at: {'; '.join(names)}. For {methods} "
        f"from α₀ = {ALPHA0:g}, {measured['iterations'].max()} iterations, that makes {len(measured)} critical β, one "
        f"for each seed{missing}."
    )


def scaled(measured: pd.DataFrame) -> pd.DataFrame:
    """Return the same with 2 / kappa, for each model and method times the median by which it is off in other models."""
    frame = measured.copy()
    for column in SCALED:
        ratio = measured["critical"] / measured[column]
        known = measured.assign(ratio=ratio)[np.isfinite(ratio) & (ratio > 0)]
        for model, method in measured[["model", "method"]].drop_duplicates().itertuples(index=False):
            others = known.loc[(known["method"] == method) & (known["model"] != model), "ratio"]
            own = (frame["model"] == model) & (frame["method"] == method)
            frame.loc[own, column] *= others.median()
    return frame


def predictors_table(measured: pd.DataFrame) -> Table:
    """Return how far each predictor is off: the share within a factor of two, the median factor, and its spread."""
    table = []
    fitted = scaled(measured)
    tried = [(measured, PREDICTORS), (fitted, SCALED)]
    for method in sorted(measured["method"].unique()):
        for frame, column, title in ((frame, *item) for frame, named in tried for item in named.items()):
            rows = frame[frame["method"] == method]
            ratio = (rows["critical"] / rows[column]).to_numpy()
            ratio = ratio[np.isfinite(ratio) & (ratio > 0)]
            if not len(ratio):
                continue
            low, middle, high = (scientific(value) for value in np.quantile(ratio, [0.1, 0.5, 0.9]))
            row = {"method": LABELS[method], "prediction": title}
            row["within a factor of two"] = f"{100 * within_two(frame, method, column):.0f} % of {len(rows)} runs"
            row["models, by their medians"] = "{} of {}".format(*models_within_two(frame, method, column))
            table.append(row | {"median": middle, "10 % to 90 %": f"{low} to {high}"})
    note = "The median and the last column are of the measured over the predicted β."
    if any(row["prediction"] in SCALED.values() for row in table):
        note += (
            " Times a constant: the median of this in the other models, as the growth is fitted to the other models."
        )
    return Table(pd.DataFrame(table), note)


def models_within_two(measured: pd.DataFrame, method: str, column: str) -> tuple[int, int]:
    """Return of how many models the median over seeds is within a factor of two of a prediction, and how many are."""
    rows = measured[measured["method"] == method]
    ratio = (rows["critical"] / rows[column]).groupby(rows["model"]).median()
    return int(((ratio > 0.5) & (ratio < 2)).sum()), len(ratio)


def within_two(measured: pd.DataFrame, method: str, column: str) -> float:
    """Return the share of a method's runs whose critical beta is within a factor of two of a prediction."""
    rows = measured[measured["method"] == method]
    ratio = rows["critical"] / rows[column]
    return float(((ratio > 0.5) & (ratio < 2)).mean())


def best_predictor(measured: pd.DataFrame) -> str:
    """Say which predictor is within a factor of two most often, for each method, and which models it misses."""
    lines = []
    for method in dict.fromkeys(measured["method"]):
        shares = {column: within_two(measured, method, column) for column in PREDICTORS}
        best = max(shares, key=shares.__getitem__)
        equal = [title for column, title in PREDICTORS.items() if shares[column] == shares[best] and column != best]
        rows = measured[measured["method"] == method]
        ratio = (rows["critical"] / rows[best]).groupby(rows["model"], sort=False).median()
        missed = ratio[~((ratio > 0.5) & (ratio < 2))]
        text = (
            f"For {LABELS[method]} the best of the three is {PREDICTORS[best]}: within a factor of two in "
            f"{100 * shares[best]:.0f} % of the runs" + (f", as is {' and '.join(equal)}" if equal else "")
        )
        deep = measured[~measured["model"].str.startswith("logistic")]
        if len(deep) < len(measured) and (deep["method"] == method).any():
            text += f", and in {100 * within_two(deep, method, best):.0f} % of those of networks with hidden layers"
        if len(missed):
            named = "; ".join(f"{model} ({against(value)})" for model, value in missed.items())
            text += f". By the median over seeds it misses {named}"
        early = missed[missed < 0.5].index
        if len(early):
            learnt = rows[rows["model"].isin(early)].groupby("model", sort=False)["learnt"].median()
            named = "; ".join(f"{model}: by {100 * share:.0f} %" for model, share in learnt.items())
            text += (
                ". Where training fails at a smaller β than predicted, the greedy run that the curvatures are from "
                f"had not got far in its {measured['iterations'].max()} steps (its loss fell in {named}): it may never "
                "have been where the other one fails"
            )
        lines.append(text + ".")
    return "\n\n".join(lines)


def answer(measured: pd.DataFrame) -> str:
    """Say for each method how often the growth of deviations predicts the critical beta, and how often 2 / kappa."""
    lines = []
    fitted = scaled(measured)
    for method in dict.fromkeys(measured["method"]):
        growth = within_two(measured, method, "growth")
        simple, title = max(
            (within_two(frame, method, column), title)
            for frame, named in ((measured, PREDICTORS), (fitted, SCALED))
            for column, title in named.items()
            if column != "growth"
        )
        if growth > simple + CLEARLY:
            lines.append(
                f"For {LABELS[method]} it is predicted within a factor of two in {100 * growth:.0f} % of the runs by "
                "[how deviations grow over a stretch of steps](#predicted-and-measured), with a growth factor that is "
                f"fitted to other models and not explained; {title}, does it in {100 * simple:.0f} %."
            )
        else:
            beats = "hardly beats" if growth > simple else "does not beat"
            lines.append(
                f"For {LABELS[method]} the growth of deviations {beats} {title} "
                f"({100 * growth:.0f} % against {100 * simple:.0f} %)."
            )
    return " ".join(lines)


def growths(measured: pd.DataFrame) -> str:
    """Say which growth of a deviation suits each method, where there are models to tell it from."""
    if measured["model"].nunique() == 1:
        return ""
    parts = []
    for method in dict.fromkeys(measured["method"]):
        factors = measured.loc[measured["method"] == method, "factor"]
        low, high = (f"{value:,.0f}" for value in (factors.min(), factors.max()))
        least = ", the smallest that was tried," if factors.max() == GROWTHS[0] else ""
        parts.append(f"{low if low == high else f'{low} to {high}'}{least} for {LABELS[method]}")
    return f"The growth that suits the other models best is {' and '.join(parts)}."


def critical_beta(runs: pd.DataFrame) -> str:
    """Return the median critical beta, or on which side of all that were tried it lies."""
    middle = runs["critical"].median()
    if np.isinf(middle):
        return f"above {scientific(runs['works'].max())}"
    return f"below {scientific(runs['fails'].min())}" if middle == 0 else scientific(middle)


def prediction_table(measured: pd.DataFrame) -> Table:
    """Return a row per model and method: the measured critical beta, alone and over each prediction; medians."""
    rows = []
    for (model, method), runs in measured.groupby(["model", "method"], sort=False):
        row = {"model": model, "method": LABELS[method], "measured": critical_beta(runs)}
        row |= {f"÷ {SHORT[c]}": scientific((runs["critical"] / runs[c]).median()) for c in PREDICTORS}
        rows.append(row)
    told = "; ".join(f"÷ {SHORT[column]}, over {title}" for column, title in PREDICTORS.items())
    seeds = measured.groupby(["model", "method"])["seed"].nunique()
    several = f"{seeds.min()} to {seeds.max()} seeds" if seeds.min() < seeds.max() else counted(seeds.max(), "seed")
    note = f"The measured critical β, and the same over the predicted ones: {told}. Medians, {several}."
    return Table(pd.DataFrame(rows), note)


def curvature_growth(measured: pd.DataFrame) -> str:
    """Say for each method in how many models the largest curvature on the way exceeds the first, and by how much."""
    parts = []
    for method, rows in measured.groupby("method", sort=False):
        growth = (rows["at_start"] / rows["largest"]).groupby(rows["model"], sort=False).median().dropna()
        grown, others = growth[growth > 1], growth.index[growth <= 1]
        text = f"with {LABELS[method]} in {len(grown)} of {len(growth)} model{'s' if len(growth) > 1 else ''}"
        text += f", by a factor of {between(grown)}" if len(grown) else ""
        parts.append(text + (f" (not in {'; '.join(others)})" if len(others) else ""))
    return f"The largest κ on the way exceeds the first one: {'; '.join(parts)}. Medians over seeds."


def limits_of_adam(measured: pd.DataFrame, models: Sequence[str]) -> str:
    """Say at which beta Adam-HD fails with two of the models, and how far apart the two betas are."""
    rows = measured[(measured["method"] == "adam_hd") & measured["model"].isin(models)]
    limits = rows.groupby("model", sort=False)["critical"].median()
    limits = limits[np.isfinite(limits) & (limits > 0)]
    if limits.empty:
        return "For Adam-HD no critical β was measured."
    told = " and ".join(f"{scientific(limit)} for {model}" for model, limit in limits.items())
    text = f"For Adam-HD the measured critical β is {told}"
    return text + (f", a factor of {rounded(limits.max() / limits.min())} between them." if len(limits) > 1 else ".")


def against(ratio: float, what: str = "the prediction") -> str:
    """Say how many times something it is, or how many times below it where it is less than half.

    A critical beta is infinite where no beta that was tried failed, and 0 where none worked.
    """
    if ratio == 0 or np.isinf(ratio):
        return f"{'below' if ratio == 0 else 'above'} every β that was tried"
    if ratio < 0.5:
        return f"{rounded(1 / ratio)} times below {what}"
    return f"{rounded(ratio)} times {what}"
