"""Which beta the paper ran: how well the learning rates of candidates fit those that its Figure 2 shows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from operator import attrgetter

import numpy as np
import pandas as pd

from hdlib.report import paper
from hdlib.report.style import LABELS, Table, counted, power_of_ten, scientific, several, significant
from hdlib.runs import BASELINE, Record, RunSpec

CLEAR = 1.5  # from here on, of the next candidate's factor over the best one's, alpha says clearly which fits best
SAME = 1.05  # up to here, of two candidates' factors of the training loss, it does not tell them apart
FIRST = 10  # epochs over which the paper's Figures 2 and 3 are set beside each other
DECAYED = "α₀ / √t"
NAMES = {"logreg": "logistic regression", "mlp": "the perceptron"}

panel_of = attrgetter("model", "method")


def error(record: Record, curve: pd.DataFrame, epochs: int | None = None, column: str = "alpha") -> tuple[float, int]:
    """Return by which factor, root mean square over epochs, a run is off the paper's curve, and the epochs.

    Args:
        curve: epoch and value of the digitised mean per epoch.
        epochs: how many are compared at most.
        column: of the run's epochs, what is compared.
    """
    theirs = curve.groupby("epoch")["value"].mean()
    numbers, ours = record.epochs["epoch"].to_numpy(), record.epochs[column].to_numpy()
    common = (numbers > 0) & np.isin(numbers, theirs.index) & (numbers <= (np.inf if epochs is None else epochs))
    ratio = np.log((np.abs(ours[common]) + 1e-9) / (np.abs(theirs.loc[numbers[common]].to_numpy()) + 1e-9))
    return float(np.exp(np.sqrt((ratio**2).mean()))), len(ratio)


def shown_twice() -> str:
    """Say how near the paper's Figures 2 and 3 are in the alpha of Adam-HD: of its Figure 3 it states beta."""
    figures = paper.figure2(), paper.figure3()
    second, third = (f[(f["quantity"] == "alpha") & (f["method"] == "adam_hd")] for f in figures)
    second = second[np.isclose(second["alpha0"], paper.TUNED_FROM) & (second["rule"] == "additive")]
    apart = {}
    for model in NAMES:
        both = (f[(f["model"] == model) & f["epoch"].between(1, FIRST)] for f in (second, third))
        ours, theirs = (f.groupby("epoch")["value"].mean() for f in both)
        apart[model] = float(np.exp(np.log(ours / theirs).abs().max()))
    start, stated = paper.TUNED_FROM, paper.tuned_beta("adam_hd", "mlp")
    return (
        f"The paper shows Adam-HD from α₀ = {power_of_ten(start)} again in its Figure 3, for which it states β = "
        f"{power_of_ten(stated)}. In the first {FIRST} epochs the perceptron's α of the two figures differs by "
        f"{significant(100 * (apart['mlp'] - 1), 2)} % at most, that of logistic regression by a factor of up to "
        f"{significant(apart['logreg'], 2)}: the perceptron's β seems to be the same in both, and that of logistic "
        "regression is not."
    )


def table(fitted: pd.DataFrame, ran: str) -> Table:
    """Return, for each of the `candidates`, how far its learning rates and training losses are off the paper's.

    Args:
        fitted: of `candidates`.
        ran: a sentence on what was run, for the note below.
    """
    table, note = fitted.copy(), f"{_seeds(fitted)} {ran}".strip()
    table["model"] = table["model"].map({"logreg": "logistic regression", "mlp": "perceptron"})
    table["method"] = table["method"].map(LABELS)
    table["α off by a factor of"] = [scientific(value) for value in table["factor"]]
    table["training loss off by"] = [scientific(value) for value in table["loss"]]
    table = table.drop(columns=["factor", "loss", "seeds"]).rename(columns={"rates": "initial learning rates"})
    return Table(table, note)


def _seeds(table: pd.DataFrame) -> str:
    """Say how many seeds the candidates of each panel are compared over."""
    panels = {panel: int(rows["seeds"].iloc[0]) for panel, rows in _panels(table)}
    of_method: dict[str, set[int]] = {}
    for (_, method), seeds in panels.items():
        of_method.setdefault(method, set()).add(seeds)
    found: dict[int, dict[str, None]] = {}
    for (model, method), seeds in panels.items():
        where = "" if len(of_method[method]) == 1 else f" on {NAMES[model]}"
        found.setdefault(seeds, {})[f"{LABELS[method]}{where}"] = None
    told = [f"{counted(seeds, 'seed')} for {several([*names])}" for seeds, names in sorted(found.items())]
    return f"Candidates with all initial learning rates are compared over {'; '.join(told)}." if told else ""


def _panels(table: pd.DataFrame) -> list[tuple[tuple[str, str], pd.DataFrame]]:
    """Return each panel's candidates with the most alpha_0, best first."""
    panels = table.groupby(["model", "method"])
    return [(panel, rows[rows["rates"] == rows["rates"].max()]) for panel, rows in panels]


def candidates(records: Sequence[Record], theirs: pd.DataFrame) -> pd.DataFrame:
    """Return a row per model, method and candidate, with the median factors over alpha_0 and seeds, best first.

    `factor` is that of alpha, `loss` that of the training loss, NaN where the paper's figure has none.

    All candidates of a model and method are compared over as many epochs as the shortest of them has, and over the
    pairs of alpha_0 and seed that all have of those with the most alpha_0; the others, with a part of them, come last.
    """
    rows = []
    lengths: dict[tuple[str, str], int] = {}
    for record in records:
        if record.outcome != "diverged":
            panel = panel_of(record.spec)
            lengths[panel] = min(record.spec.epochs, lengths.get(panel, record.spec.epochs))

    @cache
    def curves(model: str, method: str, alpha0: float, rule: str) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return the paper's alphas and losses."""
        same = (theirs["model"] == model) & (theirs["method"] == method) & (theirs["rule"] == rule)
        own = theirs[same & np.isclose(theirs["alpha0"], alpha0)]
        return own[own["quantity"] == "alpha"], own[own["quantity"] == "train_loss"]

    for record in records:
        spec = record.spec
        alphas, losses = curves(*panel_of(spec), spec.alpha0, spec.rule)
        if record.outcome == "diverged":
            rows.append((*panel_of(spec), _candidate(spec), spec.alpha0, spec.seed, np.inf, 0, np.inf))
        elif len(alphas):
            most = lengths[panel_of(spec)]
            loss = error(record, losses, most, "train_loss")[0] if len(losses) else np.nan
            rows.append((*panel_of(spec), _candidate(spec), spec.alpha0, spec.seed, *error(record, alphas, most), loss))
    run = ["model", "method", "candidate", "alpha0", "seed"]
    frame = pd.DataFrame(rows, columns=[*run, "factor", "epochs", "loss"])
    frame = frame.drop_duplicates(run)  # a longer run is the same run over these epochs
    found = [_alike(panel) for _, panel in frame.groupby(["model", "method"])]
    table = pd.concat(found, ignore_index=True) if found else frame.assign(rates=0)
    grouped = table.groupby(["model", "method", "candidate", "rates"])
    medians = dict(factor=("factor", "median"), loss=("loss", "median"))
    table = grouped.agg(
        runs=("factor", "size"), seeds=("seed", "nunique"), epochs=("epochs", "max"), **medians
    ).reset_index()
    order = table.assign(rates=-table["rates"]).sort_values(["model", "method", "rates", "factor"]).index
    return table.loc[order].reset_index(drop=True)


def _alike(panel: pd.DataFrame) -> pd.DataFrame:
    """Return a panel's rows that can be compared, and from how many alpha_0 each candidate's are."""
    panel = panel.assign(pair=[*zip(panel["alpha0"], panel["seed"], strict=True)])
    panel["rates"] = panel.groupby("candidate")["alpha0"].transform("nunique")
    most = panel["rates"] == panel["rates"].max()
    shared = set.intersection(*[set(own["pair"]) for _, own in panel[most].groupby("candidate")])
    return panel[~most | panel["pair"].isin(shared)]


def in_short(fitted: pd.DataFrame) -> str:
    """Say which beta fits best, how clearly, and what the loss says where alpha is close; and whether Adam decays.

    Args:
        fitted: of `candidates`, as for the functions below.
    """
    panels = _panels(fitted)
    told = [
        _which(rows)
        for (_, method), rows in panels
        if method in BASELINE and len(rows) > 1 and np.isfinite(rows["factor"].iloc[0])
    ]
    adam = dict(panels).get(("logreg", "adam"))
    if adam is not None and len(adam) > 1 and adam["candidate"].iloc[0] == DECAYED:
        best, other = adam.iloc[0], adam.iloc[1]
        told.append(
            f"The paper's Adam on logistic regression decays as {DECAYED}: α is off by a "
            f"factor of {scientific(best['factor'])} with this decay, and of {scientific(other['factor'])} with "
            f"{other['candidate']}."
        )
    return "\n- ".join(["**In short.**\n", *told]) if told else ""


def _which(rows: pd.DataFrame) -> str:
    """Say which candidate of a panel fits best, and whether alpha, or else the loss, tells it from the next one."""
    best, second = rows.iloc[0], rows.iloc[1]
    ratio = second["factor"] / best["factor"]
    text = f"{LABELS[best['method']]} on {NAMES[best['model']]}: {best['candidate']}, "
    text += "clearly" if ratio >= CLEAR else "but not clearly"
    if np.isinf(ratio):
        return f"{text}; with all others it diverges."
    factors = (scientific(row["factor"]) for row in (best, second))
    text += "; α is off by a factor of {}, and of {} with {}, the next".format(*factors, second["candidate"])
    losses = best["loss"], second["loss"]
    if ratio >= CLEAR or not np.isfinite(losses).all():
        return f"{text}."
    shown = f"(off by {' against '.join(map(scientific, losses))})"
    if max(losses) / min(losses) <= SAME:
        return f"{text}, and the training loss does not tell the two apart {shown}."
    return f"{text}, and the training loss says {'the same' if losses[0] < losses[1] else 'the opposite'} {shown}."


def by_loss(rows: pd.DataFrame) -> str:
    """Say by which factor the first candidate's training loss is off, and which of the others' is closest.

    Args:
        rows: of one panel of `candidates`.
    """
    best, others = rows.iloc[0], rows.iloc[1:][np.isfinite(rows["loss"].iloc[1:])]
    text = scientific(best["loss"])
    if len(others):
        closest = others.loc[others["loss"].idxmin()]
        text += f", and by {scientific(closest['loss'])} with {closest['candidate']}, the closest other"
    return text


def told_of_losses(fitted: pd.DataFrame) -> dict[str, str]:
    """Return, by model and method as in "mlp_adam_hd", what `by_loss` says of the candidates with the most alpha_0."""
    return {"_".join(panel): by_loss(rows) for panel, rows in _panels(fitted)}


def _candidate(spec: RunSpec) -> str:
    if spec.method in BASELINE:
        return f"β = {power_of_ten(spec.beta)}"
    return DECAYED if spec.decay == "inv_sqrt" else "α₀ throughout"
