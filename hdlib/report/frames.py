"""Recorded runs as tidy tables, and their statistics over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

import numpy as np
import pandas as pd

from hdlib.report.style import LABELS, MODELS, counted, power_of_ten
from hdlib.runs import Record, RunSpec

SPEC_COLUMNS = ["model", "method", "alpha0", "beta", "rule", "decay", "seed"]


def epochs(records: Sequence[Record]) -> pd.DataFrame:
    """Return a row per run and epoch: the spec's columns and those of `Record.epochs`."""
    return _stack(records, "epochs")


def trace(records: Sequence[Record]) -> pd.DataFrame:
    """Return a row per run and traced iteration: the spec's columns and those of `Record.trace`."""
    return _stack(records, "trace")


def finals(records: Sequence[Record], share: float = 0.0) -> pd.DataFrame:
    """Return a row per run: outcome, iterations, losses and accuracy at the end and the best validation loss.

    At the end: of the last epoch, or the mean over the last `share` of all. A diverged run has infinite losses, so
    that it is counted and never averaged away.
    """
    rows = []
    for record in records:
        row = _spec_columns(record) | {"outcome": record.outcome, "iterations": record.iterations}
        diverged = record.outcome == "diverged"
        for column in ("train_loss", "valid_loss", "valid_accuracy"):
            worst = 0.0 if column == "valid_accuracy" else float("inf")
            last = max(1, round(share * (len(record.epochs) - 1)))
            row[column] = worst if diverged else record.epochs[column].iloc[-last:].mean()
        row["best_valid_loss"] = float("inf") if diverged else record.epochs["valid_loss"].iloc[1:].min()
        rows.append(row)
    return pd.DataFrame(rows)


def outcomes(records: Sequence[Record]) -> pd.DataFrame:
    """Return a row per run: method, alpha0, beta, seed, diverged, iterations, the lowest alpha, the final loss.

    The last two are `Record.lowest_alpha` and `Record.final_loss`.
    """
    rows = [
        dict(
            method=record.spec.method,
            alpha0=record.spec.alpha0,
            beta=record.spec.beta,
            seed=record.spec.seed,
            diverged=record.outcome == "diverged",
            iterations=record.iterations,
            lowest=record.lowest_alpha,
            loss=record.final_loss,
        )
        for record in records
    ]
    return pd.DataFrame(rows)


def shared_seeds(ours: pd.DataFrame, theirs: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return of two tables with a `seed` the rows whose seeds both have, so that what is compared met the same data."""
    return ours[ours["seed"].isin(theirs["seed"])], theirs[theirs["seed"].isin(ours["seed"])]


def across_seeds(frame: pd.DataFrame, x: str, values: Sequence[str]) -> pd.DataFrame:
    """Return median, lowest and highest value over seeds, long: a row per configuration, x and quantity."""
    keys = [column for column in SPEC_COLUMNS if column != "seed"]
    tidy = frame.melt([*keys, "seed", x], list(values), var_name="quantity")
    grouped = tidy.groupby([*keys, "quantity", x], sort=False)["value"]
    return grouped.agg(median="median", low="min", high="max", seeds="count").reset_index()


def coinciding(records: Sequence[Record]) -> str:
    """Say which methods' runs from several alpha_0 have the same losses, seed by seed: they are the same runs."""
    told = []
    rows = [(LABELS[r.spec.method], r.spec.seed, r.spec.alpha0, _losses(r)) for r in records]
    for method, runs in pd.DataFrame(rows, columns=["method", "seed", "alpha0", "losses"]).groupby(
        "method", sort=False
    ):
        ran = runs.pivot(index="seed", columns="alpha0", values="losses")
        alike: dict[tuple, list[float]] = {}
        for rate in ran.columns[ran.notna().all()]:
            alike.setdefault(tuple(ran[rate]), []).append(rate)
        for rates in alike.values():
            if len(rates) > 1:
                named = " and ".join(map(power_of_ten, reversed(rates)))
                told.append(f"{method} from α₀ = {named} ends at the same losses")
    return "; ".join(told)


def _losses(record: Record) -> bytes | None:
    """Return all losses of training that a run recorded, to compare them; nothing of a diverged or untold run."""
    losses = [record.trace["loss"].to_numpy(float), record.epochs["train_loss"].to_numpy(float)[1:]]
    return None if record.outcome == "diverged" else np.concatenate(losses).tobytes() or None


def note(records: Sequence[Record]) -> str:
    """Return one sentence that says what was run: seeds, epochs or iterations, precision, device, data."""
    if not records:
        return "No runs."
    specs = [record.spec for record in records]
    least, most = seeds(records)
    devices = sorted({record.provenance["device"] for record in records})
    precisions = sorted({spec.precision for spec in specs})
    return (
        f"{len(records):,} run{'s' if len(records) > 1 else ''}, "
        f"{'' if least == most else 'up to '}{most} seed{'s' if most > 1 else ''}, "
        f"{_lengths(specs)}, "
        f"{' and '.join(precisions)}, {', '.join(devices)}. Data: {'; '.join(sources(records))}{_part(specs)}."
    )


def spread_note(records: Sequence[Record]) -> str:
    """Return the sentence that explains what `style.spread` returns, where there are several seeds."""
    return " ± is half the range over seeds; where it is wide, its two ends are given." if seeds(records)[1] > 1 else ""


def sources(records: Sequence[Record]) -> list[str]:
    """Return the data sets that runs were trained on, in one wording: the first records of VGG have another."""
    return sorted({record.provenance["data"].replace("folder of jpg files", "folder, jpg files") for record in records})


def seeds(records: Sequence[Record]) -> tuple[int, int]:
    """Return the fewest and the most seeds of a configuration."""
    others = attrgetter(*(name for name in RunSpec.model_fields if name != "seed"))
    groups: dict[tuple, set[int]] = {}
    for spec in (record.spec for record in records):
        groups.setdefault(others(spec), set()).add(spec.seed)
    return min(map(len, groups.values())), max(map(len, groups.values()))


def model_name(spec: RunSpec) -> str:
    """Return what a run trains, with the size of a perceptron's layers: "the perceptron of 1000"."""
    return f"{MODELS[spec.model]} of {spec.width}" if spec.model == "mlp" else MODELS[spec.model]


def run_length(spec: RunSpec) -> str:
    """Return how long a run is: "100 iterations", or "2 epochs" where no iteration is the last."""
    return counted(spec.max_iterations, "iteration") if spec.max_iterations else counted(spec.epochs, "epoch")


def compared_on(spec: RunSpec) -> str:
    """Return what a comparison is of: "perceptron of 100, 2 epochs"."""
    return f"{model_name(spec).removeprefix('the ')}, {run_length(spec)}"


def _part(specs: Sequence[RunSpec]) -> str:
    """Say on how many of the training images runs were trained, where that is not all of them."""
    images = {spec.train_images for spec in specs}
    if images == {None}:
        return ""
    counts = [*map("{:,}".format, sorted(images - {None})), *(["all"] if None in images else [])]
    return f", trained on {' or '.join(counts)} of the first"


def _lengths(specs: Sequence[RunSpec]) -> str:
    """Say how long runs are: in epochs, or in iterations where they are capped."""
    epochs = sorted({spec.epochs for spec in specs if spec.max_iterations is None})
    caps = sorted({spec.max_iterations for spec in specs if spec.max_iterations is not None})
    told = [f"{' and '.join(map(str, epochs))} epoch{'s' if epochs != [1] else ''}"] if epochs else []
    told += [f"at most {' and '.join(map('{:,}'.format, caps))} iterations"] if caps else []
    return ", ".join(told)


def _spec_columns(record: Record) -> dict:
    return {name: getattr(record.spec, name) for name in SPEC_COLUMNS}


def _stack(records: Sequence[Record], kind: str) -> pd.DataFrame:
    return pd.concat([getattr(r, kind).assign(**_spec_columns(r)) for r in records], ignore_index=True)
