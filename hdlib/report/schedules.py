"""Learning rates that adapt, beside a fixed one, one that follows a cosine to zero, and Prodigy's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from hdlib.report import frames
from hdlib.report.figures import log_y
from hdlib.report.style import (
    COSINE_LINE,
    LABELS,
    MARKERS,
    QUANTITIES,
    Figure,
    Table,
    Theme,
    power_of_ten,
    several,
    significant,
)
from hdlib.runs import BASELINE, Record

FAMILIES = ("sgd", "adam")
LOSSES = ("train_loss", "valid_loss")
NEAR = 1.1  # times the lowest loss, up to which a loss counts as near it
GIVEN, AUTOMATIC, TOGETHER = "HD, given β", "HD, automatic β", "HD, automatic β, cosine"
PRODIGY, PRODIGY_COSINE = "Prodigy", "Prodigy, cosine"
# how a learning rate moves, in the order of tables; Prodigy scales Adam's step, so it is of that family alone
WAYS = ("fixed", "cosine", GIVEN, AUTOMATIC, TOGETHER, PRODIGY, PRODIGY_COSINE)
KEPT = 1.1  # times d_0, below which an estimate counts as never raised


def ends(records: Sequence[Record]) -> pd.DataFrame:
    """Return a row per family, way and alpha_0: mean, lowest and highest of each loss over seeds.

    Columns: `family`, `way` (of WAYS), `alpha0`, `quantity` (of LOSSES), `mean`, `low`, `high`. A diverged run's losses
    are infinite, and so is a mean with one.
    """
    rows = frames.finals(records).assign(way=[_way(record) for record in records])
    rows["family"] = [(BASELINE | {"prodigy": "adam"}).get(method, method) for method in rows["method"]]
    tidy = rows.melt(["family", "way", "alpha0", "seed"], list(LOSSES), var_name="quantity")
    grouped = tidy.groupby(["family", "way", "alpha0", "quantity"], sort=False)["value"]
    return grouped.agg(mean="mean", low="min", high="max").reset_index()


def figure(records: Sequence[Record], name: str, caption: str = "") -> Figure:
    """Draw the last epoch's losses against alpha_0: training above, validation below, a column for each family.

    The caption is told what lines, bands and crosses are.
    """
    data = ends(records)
    families = _families(data)

    def draw(theme: Theme) -> plt.Figure:
        width = 9 if len(families) > 1 else 6
        figure, axes = plt.subplots(2, len(families), figsize=(width, 6.4), sharex=True, sharey="row", squeeze=False)
        for row, quantity in zip(axes, LOSSES, strict=True):
            for axis, family in zip(row, families, strict=True):
                own = data[(data["family"] == family) & (data["quantity"] == quantity)]
                for way in _ways(own):
                    _line(axis, own[(own["way"] == way)], way, _style(theme, family, way))
                axis.set(xscale="log")
                log_y(axis)
            row[0].set_ylabel(QUANTITIES[quantity])
        for axis, family in zip(axes[0], families, strict=True):
            axis.set_title(LABELS[family])
        for axis, family in zip(axes[1], families, strict=True):
            prodigy = PRODIGY in _ways(data[data["family"] == family])
            axis.set_xlabel("initial learning rate α₀" + (", Prodigy's d₀" if prodigy else ""))
            if len(families) > 1:
                axis.legend(*axis.get_legend_handles_labels(), loc="best")
        if len(families) == 1:  # in so narrow a figure the lines leave no room for it
            figure.legend(*axes[1, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        return figure

    caption = f"{caption} Lines are means over seeds, bands reach from the lowest to the highest."
    if np.isinf(data["mean"]).any():
        caption += " A cross at the top: a run diverged."
    told = " ".join(line.removeprefix("- ") for line in sentences(records).splitlines())
    alt = f"Losses of the last epoch against the initial learning rate. {told}"
    return Figure(draw, name, alt, data, frames.note(records), caption)


def table(models: Mapping[str, Sequence[Record]]) -> Table:
    """Return, for each model, family and way, the lowest and the highest loss over alpha_0, and how many are near.

    Args:
        models: records by a model's name.
    """
    rows = []
    for model, family, data in _settings(models):
        lowest = data.groupby("quantity")["mean"].min()
        for way in _ways(data):
            row = {"model": model, "family": LABELS[family], "learning rate": way}
            for quantity in LOSSES:
                own = _of(data, family, way, quantity)
                row[f"{QUANTITIES[quantity]}, best α₀"] = significant(own.min())
                row["worst α₀" if quantity == "train_loss" else "worst α₀ "] = _loss(own.max())
                near = f"{(own <= NEAR * lowest[quantity]).sum()} of {len(own)}"
                row["near" if quantity == "train_loss" else "near "] = near
            rows.append(row)
    return Table(
        pd.DataFrame(rows),
        "Means over seeds, as in online tuning. Near: from how many α₀ the loss is at most a tenth above the lowest of "
        "the family, whichever way it was reached. "
        + " ".join(f"{model.capitalize()}: {frames.note(runs)}" for model, runs in models.items())
        + _coinciding(models),
    )


def _coinciding(models: Mapping[str, Sequence[Record]]) -> str:
    """Say from which alpha_0 runs with the automatic beta are the same run, since their first step is limited alike."""
    alike: dict[str, list[str]] = {}
    for model, records in models.items():
        if told := frames.coinciding([record for record in records if _way(record) == AUTOMATIC]):
            alike.setdefault(told, []).append(model)
    return "".join(
        f" With the automatic β {told} ({several(names)}): the limit on the first step gives them the same α."
        for told, names in alike.items()
    )


def sentences(records: Sequence[Record]) -> str:
    """Say for each family how an adapting learning rate ends beside the best cosine and the best fixed one."""
    data, lines = ends(records), []
    for family in _families(data):
        own = {way: _of(data, family, way, "train_loss") for way in _ways(data)}
        best = {way: power_of_ten(own[way].idxmin()) for way in ("fixed", "cosine")}
        automatic, same, both = own[AUTOMATIC], own["cosine"], own[TOGETHER]
        lines.append(
            f"- {LABELS[family]}, training loss: {significant(same.min())} with the best cosine, from α₀ = "
            f"{best['cosine']}; {significant(own['fixed'].min())} with the best fixed α, {best['fixed']}; "
            f"{_range(automatic)} from all α₀ with the automatic β, which is below the cosine from the same α₀ in "
            f"{(automatic < same).sum()} of {len(same)} cases; {_range(both)} from all α₀ with both"
            + (f"; {_range(own[GIVEN])} with the given β." if GIVEN in own else ".")
            + (" A cosine from a larger α₀ than was tried may end lower." if same.idxmin() == same.index.max() else "")
        )
    return "\n".join(lines)


def overall(models: Mapping[str, Sequence[Record]]) -> str:
    """Say over all models and families who ends lower, from the same alpha_0 and with the best one each.

    Args:
        models: records by a model's name.
    """
    near, far, ahead, edge = [], [], {}, set()
    for model, family, data in _settings(models):
        cosine, automatic = (_of(data, family, way, "train_loss") for way in ("cosine", AUTOMATIC))
        decades = np.abs(np.log10(cosine.index / cosine.idxmin()))
        for distance, lower in zip(decades, automatic < cosine, strict=True):
            (near if distance < 1 + 1e-6 else far).append(lower)
        setting = f"{LABELS[family]}, {model}"
        ahead[setting] = automatic.min() / cosine.min()
        if cosine.idxmin() == cosine.index.max():
            edge.add(setting)
    better = pd.Series([ratio for ratio in ahead.values() if ratio > 1])
    other = [
        f"{name}, where that of the automatic β is {significant(ratio)} times the cosine's"
        + (" (whose best α₀ is the largest that was tried)" if name in edge else "")
        for name, ratio in ahead.items()
        if ratio <= 1
    ]
    text = (
        f"From the same α₀ the automatic β ends at a lower training loss than the cosine in {sum(near + far)} of "
        f"{len(near + far)} cases: in {sum(near)} of {len(near)} where α₀ is the cosine's best or within a decade of "
        f"it, and in {sum(far)} of {len(far)} where it is further away. With the best of {len(cosine)} α₀ for each, "
        f"the cosine's is {'lower' if len(better) or len(ahead) > 1 else 'no lower'}"
    )
    text += f" in {len(better)} of {len(ahead)}" if len(ahead) > 1 else ""
    text += f", by a factor of {_range(better)}" if len(better) else ""
    text += f"; not for {' and '.join(other)}." if other and len(better) else "."
    if 2 * sum(far) > len(far) and 2 * len(better) > len(ahead):
        text += (
            f" So on {'this model' if len(models) == 1 else f'these {len(models)} models'} the automatic β is safer "
            "where α₀ may be wrong by more than a decade, and a cosine is better "
            f"{'in most cases ' if other else ''}where a good α₀ is known."
        )
    return text


def together(models: Mapping[str, Sequence[Record]]) -> str:
    """Say in how many cases the automatic beta along a cosine ends lower than each of the two alone.

    Args:
        models: records by a model's name.
    """
    lower = {(way, quantity): [] for way in ("cosine", AUTOMATIC) for quantity in LOSSES}
    for _, family, data in _settings(models):
        for (way, quantity), cases in lower.items():
            cases += list(_of(data, family, TOGETHER, quantity) < _of(data, family, way, quantity))

    def count(way: str) -> str:
        train, valid = (sum(lower[way, quantity]) for quantity in LOSSES)
        return f"in {train} of {len(lower[way, 'train_loss'])} cases (validation loss: {valid})"

    text = (
        f"With both, the training loss is lower than with the automatic β alone {count(AUTOMATIC)}, and lower than "
        f"with the cosine alone from the same α₀ {count('cosine')}."
    )
    gained = lower[AUTOMATIC, "train_loss"]
    if 4 * sum(gained) < len(gained):
        text += " So in training the automatic β, which lets α fall by itself, hardly ever gained from a schedule."
    return text


def together_table(models: Mapping[str, Sequence[Record]]) -> Table:
    """Return, for each model and family, the losses with both over those of each alone, and how far alpha falls alone.

    How far it falls is left out where not every epoch is recorded.

    Args:
        models: records by a model's name.
    """
    rows = []
    for model, family, data in _settings(models):
        row = {"model": model, "family": LABELS[family]}
        for way, other in ((AUTOMATIC, "the automatic β alone"), ("cosine", "the cosine alone")):
            for quantity in LOSSES:
                ratio = _of(data, family, TOGETHER, quantity) / _of(data, family, way, quantity)
                row[f"{QUANTITIES[quantity]}, over {other}"] = _range(ratio)
        alone = [r for r in models[model] if (r.spec.method, _way(r)) == (f"{family}_hd", AUTOMATIC)]
        fall = [
            r.epochs["alpha"].iloc[-1] / r.epochs["alpha"].iloc[1:].max() for r in alone if r.spec.validate_every == 1
        ]
        if fall:
            row["α at the end, automatic β alone"] = f"{significant(100 * float(np.median(fall)), 2)} %"
        rows.append(row)
    note = (
        "Losses with both over those with one alone, from the same α₀: from the least to the most over α₀, of means "
        "over seeds."
    )
    if any("α at the end, automatic β alone" in row for row in rows):
        note += " α at the end: the mean of the last epoch over the largest mean of an epoch, median over all runs."
    return Table(pd.DataFrame(rows), note)


def beside_prodigy(models: Mapping[str, Sequence[Record]]) -> Table:
    """Return, for each model, how Prodigy from its smallest start ends beside what Adam and Adam-HD reach.

    Args:
        models: records by a model's name.
    """
    rows = []
    for model, family, data in _settings(models, PRODIGY):
        fixed, cosine, automatic, *ours = (
            {quantity: _of(data, family, way, quantity) for quantity in LOSSES}
            for way in ("fixed", "cosine", AUTOMATIC, PRODIGY, PRODIGY_COSINE)
        )
        first = _smallest_start(data)
        cases = [
            *((f"Adam, {way}, best α₀", losses, min) for way, losses in (("fixed α", fixed), ("cosine", cosine))),
            *((f"Adam-HD, automatic β, {end} α₀", automatic, pick) for end, pick in (("best", min), ("worst", max))),
            *(
                (f"{way}, d₀ = {power_of_ten(first)}", losses, lambda ends, first=first: ends[first])
                for way, losses in zip((PRODIGY, PRODIGY_COSINE), ours, strict=True)
            ),
        ]
        for name, losses, pick in cases:
            ends = {QUANTITIES[quantity]: _loss(pick(losses[quantity])) for quantity in LOSSES}
            rows.append({"model": model, "learning rate": name} | ends)
    note = "Means over seeds. The best and the worst α₀ are each loss's own. Seeds, epochs, devices: below the figures."
    return Table(pd.DataFrame(rows), note)


def prodigy_in_short(models: Mapping[str, Sequence[Record]]) -> str:
    """Say in how many losses Prodigy from its smallest start ends above or below all that the automatic beta reaches.

    Args:
        models: records by a model's name.
    """
    told = []
    for way in (PRODIGY, PRODIGY_COSINE):
        above, below = [], []
        for _, family, data in _settings(models, way):
            for quantity in LOSSES:
                end = _of(data, family, way, quantity)[_smallest_start(data)]
                automatic = _of(data, family, AUTOMATIC, quantity)
                above.append(end > automatic.max())
                below.append(end < automatic.min())
        among = len(above) - sum(above) - sum(below)
        counts = {"above all": sum(above), "below all": sum(below), "between the best and the worst": among}
        told.append(several([f"{where} in {count}" for where, count in counts.items() if count]))
    alone, along = told
    return (
        f"In {len(above)} losses Prodigy is set beside Adam-HD with the automatic β from all α₀. Without a schedule it "
        f"ends {alone}; along a cosine {along}."
    )


def estimates(models: Mapping[str, Sequence[Record]]) -> str:
    """Say for each model which alpha Prodigy found, and from where it stayed where it began.

    Args:
        models: records by a model's name.
    """
    lines = []
    for model, family, data in _settings(models, PRODIGY):
        runs = [r for r in models[model] if _way(r) == PRODIGY]
        ends = pd.DataFrame([(r.spec.alpha0, r.epochs["alpha"].iloc[-1]) for r in runs], columns=["first", "last"])
        first = _smallest_start(data)
        found = ends.loc[ends["first"] == first, "last"]
        kept = sorted(set(ends.loc[ends["last"] < KEPT * ends["first"], "first"]))
        best = power_of_ten(_of(data, family, "fixed", "train_loss").idxmin())
        lines.append(
            f"- {model.capitalize()}: from d₀ = {power_of_ten(first)} its α came to {_range(found)} in the "
            f"last epoch; the best fixed one is {best}."
            + (f" From d₀ = {several(kept, power_of_ten)} it stayed where it began." if kept else "")
        )
    return "\n".join(lines)


def _smallest_start(data: pd.DataFrame) -> float:
    return data.loc[data["way"] == PRODIGY, "alpha0"].min()


def _families(data: pd.DataFrame) -> list[str]:
    """Return those of FAMILIES that rows of `ends` are of."""
    return [family for family in FAMILIES if (data["family"] == family).any()]


def _ways(data: pd.DataFrame) -> list[str]:
    """Return those of WAYS that rows of `ends` are of."""
    return [way for way in WAYS if (data["way"] == way).any()]


def _settings(
    models: Mapping[str, Sequence[Record]], way: str | None = None
) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yield each model's name with each family, or those run in a way, and the rows of `ends` that are the family's."""
    for model, records in models.items():
        data = ends(records)
        for family in _families(data):
            own = data[data["family"] == family]
            if way is None or way in _ways(own):
                yield model, family, own


def _way(record: Record) -> str:
    spec = record.spec
    cosine = spec.decay == "cosine"
    if spec.method == "prodigy":
        return PRODIGY_COSINE if cosine else PRODIGY
    if spec.rule == "auto":
        return TOGETHER if cosine else AUTOMATIC
    if spec.method in BASELINE:
        return GIVEN
    return "cosine" if cosine else "fixed"


def _of(data: pd.DataFrame, family: str, way: str, quantity: str) -> pd.Series:
    """Return the mean loss by alpha_0."""
    own = data[(data["family"] == family) & (data["way"] == way) & (data["quantity"] == quantity)]
    return own.set_index("alpha0")["mean"].sort_index()


def _range(losses: pd.Series) -> str:
    low, high = _loss(losses.min()), _loss(losses.max())
    return low if low == high else f"{low} to {high}"


def _loss(value: float) -> str:
    return significant(value) if np.isfinite(value) else "diverged"


def _style(theme: Theme, family: str, way: str) -> dict:
    if way == "cosine":
        return dict(color=theme.text, linestyle=COSINE_LINE, linewidth=1.3, marker="s", markersize=3.5)
    if way in (PRODIGY, PRODIGY_COSINE):
        style = theme.line("prodigy") | dict(marker=MARKERS["prodigy"], markersize=5)
        hollow = dict(linestyle=COSINE_LINE, markerfacecolor=theme.background)
        return style | hollow if way == PRODIGY_COSINE else style
    method = family if way == "fixed" else f"{family}_hd"
    strength, marker = (0.55, "o") if way == GIVEN else (1.0, "D" if way in WAYS[2:] else "o")
    style = theme.line(method, strength=strength) | dict(marker=marker, markersize=4)
    return style | dict(linestyle=COSINE_LINE, markerfacecolor=theme.background) if way == TOGETHER else style


def _line(axis: plt.Axes, own: pd.DataFrame, way: str, style: dict) -> None:
    own = own.sort_values("alpha0")
    finite, lost = own[np.isfinite(own["mean"])], own[~np.isfinite(own["mean"])]
    axis.plot(finite["alpha0"], finite["mean"], label=way, **style)
    axis.fill_between(finite["alpha0"], finite["low"], finite["high"], color=style["color"], alpha=0.15, lw=0)
    top = np.full(len(lost), 0.97)
    axis.plot(lost["alpha0"], top, "x", color=style["color"], transform=axis.get_xaxis_transform())
