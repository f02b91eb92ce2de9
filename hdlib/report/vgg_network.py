"""Which VGG network the published runs trained: first epochs of several, whole and on all images, beside theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from hdlib.report import frames, paper
from hdlib.report.parameters import ParameterError
from hdlib.report.style import LABELS, QUANTITIES, Table, counted, several, significant, spread
from hdlib.report.vgg import SOURCES, network
from hdlib.runs import METHODS, Record, RunSpec, grid

GUESSING = float(np.log(10))  # the loss of one who gives each of ten classes the same probability
LAST = 2  # epochs that are set beside the published ones one by one


def asked(experiments: Sequence[Sequence], betas: Mapping[str, float], **common: Any) -> list[RunSpec]:
    """Return the runs of the page.

    Args:
        experiments: rows of variant, norm_start, epochs, seeds and a list of methods.
        betas: of the methods that adapt alpha.
        common: other fields of RunSpec.

    Raises:
        ParameterError: there is no row, one is made otherwise, or two ask for the same run.
        SpecError: a run cannot be.
    """
    specs = []
    for row in experiments or [()]:
        if not (isinstance(row, (list, tuple)) and len(row) == 5 and isinstance(row[4], (list, tuple)) and row[4]):
            raise ParameterError(
                f"experiments is {experiments!r}: give rows of a network, a start, epochs, seeds and a list of "
                f"methods, such as {['blog', 'uniform', 1, 2, ['sgd', 'adam_hd']]}."
            )
        variant, norm_start, epochs, seeds, methods = row
        fields = common | dict(variant=variant, norm_start=norm_start, epochs=epochs)
        for method in methods:
            for spec in grid(method=method, seeds=seeds, beta=betas.get(method, 0.0), **fields):
                if spec in specs:
                    raise ParameterError(f"experiments asks twice for {method} in {row!r}: ask for it once.")
                specs.append(spec)
    return specs


def beside(records: Sequence[Record], quantity: str) -> Table:
    """Return losses at the start and after each of the first epochs, ours beside the published ones.

    Args:
        records: runs of the whole network on all images.
        quantity: "train_loss", at epoch 0 that of the first minibatch, or "valid_loss".
    """
    frame = losses(records, quantity)
    columns = [name for name in (*map(network, records), *SOURCES.values()) if (frame["network"] == name).any()]
    columns = list(dict.fromkeys(columns))
    rows = []
    for (epoch, method), group in frame.groupby(["epoch", "method"], sort=False):
        told = {column: spread(values) for column, values in group.groupby("network")["loss"]}
        rows.append({"epoch": epoch, "method": LABELS[method]} | {column: told.get(column, "") for column in columns})
    note = f"{QUANTITIES[quantity].capitalize()}. Ours: {frames.note(records)} Theirs have one seed each. "
    note += "Blank: not run, or not published."
    return Table(pd.DataFrame(rows), note)


def distances(records: Sequence[Record]) -> Table:
    """Return how far each network's losses after the first epoch are from the published ones."""
    rows = []
    for (source, quantity), apart in _apart(records).groupby(["source", "quantity"], sort=False):
        row = {"from": f"{source}, {QUANTITIES[quantity]}"}
        for name, values in apart.groupby("network", sort=False)["apart"]:
            kept = values[np.isfinite(values)]
            told = [f"{significant(kept.mean(), 2)} ({counted(len(kept), 'method')})"] if len(kept) else []
            told += [f"{len(values) - len(kept)} diverged"] if len(kept) < len(values) else []
            row[name] = "; ".join(told)
        rows.append(row)
    return Table(
        pd.DataFrame(rows).fillna(""),
        "Mean absolute difference of the losses after one epoch, over the methods that the network was run with.",
    )


def nearest(records: Sequence[Record]) -> str:
    """Say which network is nearest to each published experiment, in the methods that all networks were run with."""
    lines = []
    for (source, quantity), apart in _apart(records).groupby(["source", "quantity"], sort=False):
        networks = apart.groupby("method")["network"].nunique()
        common = apart[apart["method"].isin(networks.index[networks == apart["network"].nunique()])]
        means = common.groupby("network", sort=False)["apart"].mean().sort_values(kind="stable")
        if len(means) < 2:
            continue
        first, *others = (
            f"{name}, {significant(value, 2) + ' away' if np.isfinite(value) else 'which diverges'}"
            for name, value in means.items()
        )
        methods = several([m for m in METHODS if (common["method"] == m).any()], LABELS.get)
        told = f"{first}; then {'; '.join(others)}"
        lines.append(f"- {QUANTITIES[quantity].capitalize()} of {methods}, nearest to the {source}: {told}.")
    return "\n".join(lines)


def guessing(records: Sequence[Record]) -> str:
    """Say which methods' validation losses lie above that of guessing after an epoch, in every seed, and where."""
    frame = losses(records, "valid_loss")
    frame = frame[frame["epoch"] > 0].groupby(["network", "method", "epoch"], sort=False)["loss"].min().reset_index()
    frame = frame[(frame["loss"] > 1.01 * GUESSING) & np.isfinite(frame["loss"])]
    told = [
        f"{name}: {several([m for m in METHODS if (group['method'] == m).any()], LABELS.get)}"
        for name, group in frame.groupby("network", sort=False)
    ]
    if not told:
        return f"None is above the loss of guessing, ln 10 = {GUESSING:.3f}, by more than a hundredth of it."
    return (
        f"More than a hundredth above the loss of guessing, ln 10 = {GUESSING:.3f}, after an epoch and in every seed – "
        f"{'; '.join(told)}."
    )


def lost(records: Sequence[Record]) -> str:
    """Say which runs diverged, and when."""
    told = [
        f"{LABELS[r.spec.method]} as in {network(r)} diverged at iteration {r.iterations}"
        for r in records
        if r.outcome == "diverged"
    ]
    return f"{'; '.join(told)}." if told else "No run diverged."


def losses(records: Sequence[Record], quantity: str) -> pd.DataFrame:
    """Return losses of the first epochs, ours and theirs: epoch, method, network or source, seed, loss.

    What diverged has infinite losses from the epoch on in which it did.
    """
    rows = []
    for record in records:
        known = dict(zip(record.epochs["epoch"], record.epochs[quantity], strict=True))
        for epoch in range(min(LAST, record.spec.epochs) + 1):
            row = dict(epoch=epoch, method=record.spec.method, network=network(record), seed=record.spec.seed)
            rows.append(row | dict(loss=known.get(epoch, np.inf)))
    figure = paper.figure3()
    figure = figure[(figure["model"] == "vgg") & (figure["quantity"] == quantity) & (figure["epoch"] <= LAST)]
    theirs = [figure.assign(network=SOURCES["paper"], loss=figure["value"])]
    runs = paper.tuning()
    runs = runs[(runs["model"] == "vgg") & (runs["source"] == "authors")].assign(network=SOURCES["authors"])
    of = quantity.removesuffix("_loss")
    theirs += [runs.assign(epoch=epoch, loss=runs[f"{of}_{when}"]) for epoch, when in enumerate(("start", "first"))]
    frame = pd.concat([pd.DataFrame(rows), *theirs])[["epoch", "method", "network", "seed", "loss"]]
    place = frame["epoch"] * len(METHODS) + frame["method"].map(METHODS.index)
    return frame.assign(place=place).sort_values("place", kind="stable").drop(columns="place")


def _apart(records: Sequence[Record]) -> pd.DataFrame:
    """Return how far losses after the first epoch, means over seeds, are from each source's."""
    found = []
    for quantity in ("train_loss", "valid_loss"):
        frame = losses(records, quantity)
        after = frame[frame["epoch"] == 1].groupby(["network", "method"], sort=False)["loss"].mean().reset_index()
        ours = after[~after["network"].isin(SOURCES.values())]
        for source in SOURCES.values():
            theirs = after[after["network"] == source].set_index("method")["loss"]
            apart = (ours["loss"] - ours["method"].map(theirs)).abs()
            found.append(ours.assign(source=source, quantity=quantity, apart=apart).dropna(subset="apart"))
    return pd.concat(found)
