"""Which beta the paper ran: how well the learning rates of candidates fit those that its Figure 2 shows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from hdlib.report.style import LABELS, Table, power_of_ten, scientific
from hdlib.runs import BASELINE, Record, RunSpec


def error(record: Record, curve: pd.DataFrame, epochs: int | None = None) -> tuple[float, int]:
    """Return by which factor, root mean square over epochs, a run's alpha is off the paper's curve, and the epochs.

    Args:
        curve: epoch and value of the digitised mean alpha per epoch.
        epochs: how many are compared at most.
    """
    ours = record.epochs.set_index("epoch")["alpha"].loc[:epochs]
    theirs = curve.groupby("epoch")["value"].mean()
    common = ours.index.intersection(theirs.index).drop(0, errors="ignore")
    ratio = np.log((ours[common].abs() + 1e-9) / (theirs[common].abs() + 1e-9))
    return float(np.exp(np.sqrt((ratio**2).mean()))), len(common)


def table(records: Sequence[Record], theirs: pd.DataFrame) -> Table:
    """Return, for each candidate beta, how far its learning rates are off the paper's, over all alpha_0 and seeds."""
    table = candidates(records, theirs)
    table["model"] = table["model"].map({"logreg": "logistic regression", "mlp": "perceptron"})
    table["method"] = table["method"].map(LABELS)
    table["off by a factor of"] = [scientific(value) for value in table["factor"]]
    return Table(table.drop(columns="factor"))


def candidates(records: Sequence[Record], theirs: pd.DataFrame) -> pd.DataFrame:
    """Return a row per model, method and candidate, with the median factor over alpha_0 and seeds, best first.

    All candidates of a model and method are compared over as many epochs as the shortest of them has.
    """
    rows = []
    lengths: dict[tuple[str, str], int] = {}
    for record in records:
        if record.outcome != "diverged":
            panel = record.spec.model, record.spec.method
            lengths[panel] = min(record.spec.epochs, lengths.get(panel, record.spec.epochs))
    for record in records:
        spec = record.spec
        own = theirs[
            (theirs["model"] == spec.model)
            & (theirs["method"] == spec.method)
            & np.isclose(theirs["alpha0"], spec.alpha0)
            & (theirs["rule"] == spec.rule)
            & (theirs["quantity"] == "alpha")
        ]
        if record.outcome == "diverged":
            rows.append((spec.model, spec.method, _candidate(spec), np.inf, 0))
        elif len(own):
            epochs = lengths[spec.model, spec.method]
            rows.append((spec.model, spec.method, _candidate(spec), *error(record, own, epochs)))
    frame = pd.DataFrame(rows, columns=["model", "method", "candidate", "factor", "epochs"])
    grouped = frame.groupby(["model", "method", "candidate"])
    table = grouped.agg(runs=("factor", "size"), epochs=("epochs", "max"), factor=("factor", "median")).reset_index()
    return table.sort_values(["model", "method", "factor"]).reset_index(drop=True)


def sentences(records: Sequence[Record], theirs: pd.DataFrame) -> str:
    """Say for each panel which candidate fits best, and how much worse the next one does."""
    lines = []
    for (model, method), rows in candidates(records, theirs).groupby(["model", "method"]):
        best, others = rows.iloc[0], rows.iloc[1:]
        text = (
            f"- {'The perceptron' if model == 'mlp' else 'Logistic regression'}, {LABELS[method]}: {best['candidate']} "
            f"fits best, α is off by a factor of {scientific(best['factor'])} over {best['epochs']} epochs"
        )
        if len(others):
            second = others.iloc[0]
            how = "diverges" if np.isinf(second["factor"]) else f"is off by {scientific(second['factor'])}"
            text += f"; the next of {len(rows)} candidates, {second['candidate']}, {how}"
        lines.append(text + ".")
    return "\n".join(lines)


def _candidate(spec: RunSpec) -> str:
    if spec.method in BASELINE:
        return f"β = {power_of_ten(spec.beta)}"
    return "α₀ / √t" if spec.decay == "inv_sqrt" else "α₀ throughout"
