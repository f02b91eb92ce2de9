"""How the automatic beta fares beside the paper's rule and fixed learning rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from hdlib.report import frames, guards
from hdlib.report.style import LABELS, Figure, Table, Theme, between, counted, power_of_ten, scientific
from hdlib.runs import BASELINE, RECORDING_FIELDS, Record
from hdlib.runs.experiments import PAPER_RATES

HD = tuple(BASELINE)
Compared = tuple[
    Sequence[Record], Sequence[Record], Sequence[Record]
]  # automatic beta, paper's rule, no hypergradients


def figure(
    automatic: Sequence[Record], plain: Sequence[Record], unguarded: Sequence[Record], name: str, caption: str
) -> Figure:
    """Draw the final loss against alpha_0: no HD, the paper's rule over all its betas, and the automatic beta."""
    auto, rule, base = frames.outcomes(automatic), frames.outcomes(plain), frames.outcomes(unguarded)
    losses = np.concatenate([frame["loss"][np.isfinite(frame["loss"])] for frame in (auto, rule, base)])
    top = 1.2 * min(20, losses.max())

    def draw(theme: Theme) -> plt.Figure:
        figure, axes = plt.subplots(1, 3, figsize=(9, 3.9), sharey=True)
        for axis, method in zip(axes, HD, strict=True):
            fixed = base[base["method"] == BASELINE[method]].groupby("alpha0")["loss"].median()
            axis.plot(fixed.index, fixed, marker="o", markersize=4, **theme.line(BASELINE[method]))
            cells = rule[rule["method"] == method].groupby(["alpha0", "beta"])["loss"].median().unstack("beta")
            for beta in cells:
                axis.plot(cells.index, cells[beta], ".", color=theme.paper, markersize=5)
            beyond = cells.index[(cells[np.isfinite(cells)] > top).any(axis=1)]
            axis.plot(beyond, [0.94 * top] * len(beyond), "^", color=theme.paper, markersize=4)
            own = auto[auto["method"] == method].groupby("alpha0")["loss"]
            style = theme.line(method)
            axis.plot(own.median().index, own.median(), marker="D", markersize=5, **style)
            axis.fill_between(own.median().index, own.min(), own.max(), color=style["color"], alpha=0.2, lw=0)
            axis.set(xscale="log", yscale="log", title=LABELS[method], xlabel="initial learning rate α₀")
        handles = [
            Line2D([], [], color=theme.text, linestyle="--", marker="o", markersize=4, label="no HD"),
            Line2D(
                [],
                [],
                color=theme.paper,
                linestyle="",
                marker=".",
                markersize=5,
                label="the paper's rule, a dot a β (▲: more β end above the axis)",
            ),
            Line2D([], [], color=theme.text, marker="D", markersize=5, label="automatic β"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
        axes[0].set_ylim(0.8 * losses.min(), top)
        axes[0].set_ylabel("final training loss")
        return figure

    data = pd.concat(
        [auto.assign(what="automatic"), rule.assign(what=guards.shown("plain")), base.assign(what="no HD")]
    )
    over = {LABELS[method]: between(n["over_best"]) for method, n in _counted(automatic, plain, unguarded).items()}
    alt = (
        "Final training loss against alpha_0, without hypergradients, with the paper's rule and with the automatic "
        "beta. With the latter it is, over that of the best fixed rate, "
        f"{'; '.join(f'{ratios} with {method}' for method, ratios in over.items())}."
    )
    records = [*automatic, *plain, *unguarded]
    return Figure(draw, name, alt, data, frames.note(records), caption)


def table(comparisons: Sequence[Compared]) -> Table:
    """Return how the automatic beta fares against the paper's rule and fixed rates: a row a comparison and method."""
    rows = []
    for comparison in comparisons:
        spec = comparison[0][0].spec
        for method, n in _counted(*comparison).items():
            single, best = f"β = {power_of_ten(n['beta'])}", f"α = {power_of_ten(n['best'])}"
            rows.append(
                {
                    "comparison": frames.compared_on(spec),
                    "method": LABELS[method],
                    "diverged": f"{n['lost']} of {n['runs']}",
                    "≤ paper's rule, best single β": f"{n['single']} of {n['rates']}, {single}",
                    "≤ paper's rule, best β for each α₀": f"{n['each']} of {n['rates']}",
                    "< fixed α₀": f"{n['lower']} of {n['rates']}",
                    "≤ best fixed rate": f"{n['matched']} of {n['rates']}, {best}",
                    "loss ÷ best fixed": between(n["over_best"]),
                }
            )
    return Table(
        pd.DataFrame(rows),
        "Columns with ≤ and < count the α₀ from which the automatic β ends with such a loss, by medians over seeds. "
        f"Fixed α₀: no hypergradients, from the same α₀.{_coinciding(comparisons)}",
    )


def in_all(kinds: Mapping[str, Sequence[Compared]], worst: pd.DataFrame) -> str:
    """Say how the automatic beta fares in several comparisons together, in a line for each kind of model.

    Args:
        kinds: comparisons by the models that they are on.
        worst: what `worst_starts` returns, of which longer runs than these are told.
    """
    lines = []
    for models, comparisons in kinds.items():
        counts = [n for comparison in comparisons for n in _counted(*comparison).values()]
        total = {name: sum(n[name] for n in counts) for name in ("lost", "runs", "single", "matched", "rates")}
        over = pd.concat([n["over_best"] for n in counts])
        lines.append(
            f"- **{models}**: {total['lost'] or 'none'} of {total['runs']} runs diverged. Of {total['rates']} starts "
            f"it ended at or below the paper's rule with its best single β from {total['single']}, and at or below the "
            f"best fixed rate from {total['matched']}. Its loss is {scientific(over.median())} times that of the best "
            f"fixed rate in the median, from {between(over)}.{_in_longer_runs(comparisons, worst)}"
        )
    return (
        "How the automatic β fares over whole epochs, where a start is a method and an α₀ in one of the comparisons "
        "below:\n\n" + "\n".join(lines) + "\n\nThe best β of the paper's rule and the best fixed rate were chosen when "
        "everything had been run; the automatic β had nothing to choose."
    )


def _in_longer_runs(comparisons: Sequence[Compared], worst: pd.DataFrame) -> str:
    """Say how the automatic beta's worst start ends in longer runs of the same models; nothing without any."""
    lengths: dict[str, int] = {}
    for (first, *_), _, _ in comparisons:
        name = frames.model_name(first.spec)
        lengths[name] = max(first.spec.epochs, lengths.get(name, 0))
    longer = worst[worst["epochs"] > worst["model"].map(lengths).fillna(np.inf)]
    told = [
        f"{scientific(row['worst'])} times ({row['model']}, {LABELS[row['method']]}, {row['epochs']} epochs)"
        for _, own in longer.groupby("model", sort=False)
        for row in [own.loc[own["worst"].idxmax()]]
    ]
    return f" In longer runs, which are not counted here, it is up to {' and '.join(told)}." if told else ""


def on_vgg(records: Sequence[Record]) -> str:
    """Say in how many runs of VGG the automatic beta ends below the best of the fixed rates; nothing without any.

    Args:
        records: of any runs, such as all that there are.
    """
    ends = vgg_ends(records)
    if ends.empty:
        return ""
    rates = " or ".join(map(str, sorted(ends["rates"].unique())))
    return (
        f"On [a narrow VGG](vgg-variants), with {counted(ends['seed'].nunique(), 'seed')}, it ends below the best of "
        f"{rates} fixed rates in {told_of(ends)}."
    )


def told_of(ends: pd.DataFrame) -> str:
    """Return "12 of 27 runs" of rows of `vgg_ends`."""
    return f"{(ends['loss'] < ends['best']).sum() or 'none'} of {counted(len(ends), 'run')}"


def vgg_ends(records: Sequence[Record]) -> pd.DataFrame:
    """Return the runs of VGG with the automatic beta: `method`, `seed`, final training `loss`, and what fixed rates do.

    That is the `best` final loss of the fixed `rates`, so many, with which its baseline ran with the same seed.

    Args:
        records: of any runs, such as all that there are.
    """
    apart = {"method", "alpha0", "beta", "rule"} | RECORDING_FIELDS
    fixed: dict[tuple, dict[float, float]] = {}
    ours = []
    whole = (r for r in records if (r.spec.model, r.spec.max_iterations, r.spec.decay) == ("vgg", None, "none"))
    for record in whole:
        spec = record.spec
        automatic = spec.rule == "auto" and spec.overshoot is None and spec.max_lr is None
        if automatic or spec.method not in HD:
            rest = spec.model_dump(exclude=apart)
            key = (BASELINE.get(spec.method, spec.method), *rest.items())
            loss = frames.finals([record])["train_loss"][0]
            if automatic:
                ours.append((key, spec.method, spec.seed, loss))
            else:
                fixed.setdefault(key, {})[spec.alpha0] = loss
    rows = [(*run, min(fixed[key].values()), len(fixed[key])) for key, *run in ours if key in fixed]
    return pd.DataFrame(rows, columns=["method", "seed", "loss", "best", "rates"])


def _coinciding(comparisons: Sequence[Compared]) -> str:
    """Say which runs with the automatic beta are the same run, because their first step is limited alike."""
    told = {frames.coinciding(automatic) for automatic, _, _ in comparisons} - {""}
    because = ", because the limit on the first step gives them the same α."
    return f" {'; '.join(sorted(told))}{because}" if told else ""


def worst_starts(records: Sequence[Record], task: str) -> pd.DataFrame:
    """Return the automatic beta's worst start on each model after each number of epochs.

    Args:
        records: of any runs, such as all that there are; those with the automatic rule as it is from the paper's
            initial learning rates count, and those without hypergradients, over whole epochs.
        task: of which the runs are taken.

    Returns:
        A row for each `model`, `epochs` and `method` that has both: the `alpha0` whose loss after the last epoch is
        highest, by the median over seeds, and `worst`, that over the loss of the best fixed rate.
    """
    groups: dict[tuple, list[Record]] = {}
    for record in records:
        spec = record.spec
        same = spec.as_in_the_paper("width") and spec.decay == "none"
        base = BASELINE.get(spec.method, spec.method)
        counts = spec.method not in HD or (spec.rule == "auto" and spec.alpha0 in PAPER_RATES)
        if same and spec.task == task and counts:
            width = spec.width if spec.model == "mlp" else 0
            groups.setdefault((spec.model, width, spec.epochs, base), []).append(record)
    rows = []
    for (_, _, epochs, base), own in sorted(groups.items(), key=lambda item: item[0][:3]):
        ends = frames.finals(own)
        ours = ends[ends["method"] != base]
        fixed = ends[(ends["method"] == base) & ends["seed"].isin(ours["seed"])].groupby("alpha0")["train_loss"]
        if ours.empty or not len(fixed):
            continue
        over = ours.groupby("alpha0")["train_loss"].median() / fixed.median().min()
        rows.append((frames.model_name(own[0].spec), epochs, ours["method"].iloc[0], over.idxmax(), over.max()))
    return pd.DataFrame(rows, columns=["model", "epochs", "method", "alpha0", "worst"])


def worst_start_table(worst: pd.DataFrame) -> Table:
    """Return what `worst_starts` does, a row a model and a number of epochs."""
    rows = []
    for (model, epochs), own in worst.groupby(["model", "epochs"], sort=False):
        told = {r.method: f"{scientific(r.worst)}, α₀ = {power_of_ten(r.alpha0)}" for r in own.itertuples()}
        row = {"model": model.removeprefix("the "), "epochs": epochs}
        rows.append(row | {LABELS[method]: told.get(method, "") for method in HD})
    return Table(
        pd.DataFrame(rows),
        "The automatic β's training loss in the last epoch, from the worst α₀, over that of the best fixed rate; by "
        "medians over seeds, as all numbers of this page, where the pages on online tuning give means.",
    )


def _counted(
    automatic: Sequence[Record], plain: Sequence[Record], unguarded: Sequence[Record]
) -> dict[str, dict[str, Any]]:
    """Return for each method what is counted of the automatic beta.

    `runs` and `lost` ones, which diverged; `rates`, and from how many of them the loss is at or below that of the
    paper's rule with its best `single` beta and with its best for `each`, `lower` than the fixed rate's, or has
    `matched` the best fixed rate's; `over_best`, the loss over that one's; `beta` and `best`, the best single beta and
    the best fixed rate.
    """
    auto, base = frames.outcomes(automatic), frames.outcomes(unguarded)
    cells = guards.by_cell({"plain": plain}, unguarded)
    single = guards.best_single_beta(cells).set_index("method")["beta"]
    found = {}
    for method in HD:
        own, stayed = frames.shared_seeds(auto[auto["method"] == method], base[base["method"] == BASELINE[method]])
        if own.empty:
            continue
        ours, fixed = (runs.groupby("alpha0")["loss"].median() for runs in (own, stayed))
        losses = cells[cells["method"] == method].pivot(index="alpha0", columns="beta", values="loss").loc[ours.index]
        found[method] = dict(
            runs=len(own),
            lost=int(own["diverged"].sum()),
            rates=len(ours),
            single=int((ours <= losses[single[method]]).sum()),
            each=int((ours <= losses.min(axis=1)).sum()),
            lower=int((ours < fixed.reindex(ours.index)).sum()),
            matched=int((ours <= fixed.min()).sum()),
            over_best=ours / fixed.min(),
            best=fixed.idxmin(),
            beta=single[method],
        )
    return found
