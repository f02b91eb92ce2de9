"""How the automatic beta works: the slopes that it reads, its constants, and what it does without noise."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.lines import Line2D

from hdlib.optim.control import (
    AUTO_DROP,
    AUTO_FIRST,
    AUTO_JUMP,
    AUTO_MEMORY,
    AUTO_OVERSHOOT,
    AUTO_START,
    AUTO_STEPS,
    AUTO_WORTH,
)
from hdlib.report import frames
from hdlib.report.style import LABELS, MODELS, Figure, Table, Theme, between, counted, power_of_ten, several
from hdlib.runs import BASELINE, Record, RunSpec
from hdlib.runs.experiments import VARIED

HALF = 0.5  # accuracy below which a run on the digits is lost


def slope_ratios(measured: pd.DataFrame, specs: Sequence[RunSpec]) -> str:
    """Say what the ratio of slopes is where the parameters do not move.

    Args:
        measured: a row for each ratio, with the `model`, the `epochs` that it was trained and the `ratio`.
        specs: the runs of SGD that it was measured on.
    """
    mean = measured.groupby(["model", "epochs"])["ratio"].mean().unstack()
    seeds, trained = counted(len({spec.seed for spec in specs}), "seed"), counted(specs[0].epochs, "epoch")
    names = MODELS | {spec.model: frames.model_name(spec) for spec in specs}
    told = [f"{mean.loc[model, 0]:.2f} and {mean.loc[model].iloc[-1]:.2f} for {names[model]}" for model in mean.index]
    return (
        f"For SGD the mean *r*, before training and after {trained} at α = {power_of_ten(specs[0].alpha0)}, is "
        f"{'; '.join(told)} ({seeds}, {len(measured):,} pairs of successive minibatches, {specs[0].precision})."
    )


def scope(records: Sequence[Record]) -> str:
    """Say on which runs the constants of the automatic beta rest: minibatches, and the longest of them."""
    runs = [r for r in records if r.spec.rule == "auto"]
    if not runs:
        return ""
    batches = " and ".join(map(str, sorted({r.spec.batch_size for r in runs})))
    probed = " and ".join(map(str, sorted({m["batch_size"] for m in VARIED.values() if "batch_size" in m})))
    most = max(r.iterations for r in runs)
    longest = dict.fromkeys(MODELS.get(r.spec.model, r.spec.model) for r in runs if r.iterations == most)
    return (
        f"All recorded runs with the automatic β have minibatches of {batches}, start from new weights, and take at "
        f"most {most:,} iterations, those of {' and '.join(sorted(longest))}. Two "
        "things are not counted. The short runs [from whose κ the critical β is predicted]"
        f"(critical-beta.ipynb#predicted-and-measured) have batches of {probed}, too; none of them has a tolerance. "
        "And [a run of VGG](vgg-epochs) that was lost is continued for a few epochs, so from trained weights. The "
        f"constants, {AUTO_START:g}, {AUTO_STEPS:g} steps, {AUTO_OVERSHOOT:g} and {AUTO_FIRST:g} of the norm, are "
        "absolute, and the noise in *r* depends on the minibatch. Whether they suit other minibatches, longer runs, or "
        "weights that are trained already, was not tested beyond that. Those of [what a step is "
        f"worth](#what-a-step-is-worth), a factor of {1 / AUTO_WORTH:g}, gains of {AUTO_JUMP:g} F at most, a mean of "
        f"about {round(1 / (1 - AUTO_MEMORY))} gains and a fall to {AUTO_DROP:g}, were chosen on the digits, in "
        "batches of 16 to all of them, and on small models of other kinds that are not shown, and kept because they "
        "changed next to nothing on logistic regression and the perceptron of 100 with batches of 128."
    )


def tolerances() -> str:
    """Say which overshoot the automatic rule tolerates with each method."""
    common = dict(alpha0=1e-3, beta=1.0, rule="auto", epochs=1)
    of = {method: RunSpec(method=method, **common).control().tolerance for method in BASELINE}
    worth = {method: f"{of['sgd_hd'] / value:.1f} for {LABELS[method]}" for method, value in of.items()}
    chosen = ", ".join(f"{value:.2g} for {LABELS[method]}" for method, value in of.items())
    return (
        f"The factor is {', '.join(worth.values())}, and so *c* is {chosen}. The one number behind the three, that of "
        "SGD-HD, was chosen: on the runs of logistic regression and of the perceptron of 100."
    )


def noiseless(groups: Mapping[str, Sequence[Record]]) -> Table:
    """Return how the automatic beta ends where gradients have no noise, beside the best fixed rate of each method.

    Args:
        groups: the records of `experiments.noiseless`, by how their learning rate moves.
    """
    rows = []
    for method, base in BASELINE.items():
        fixed = frames.finals([r for r in groups["no HD"] if r.spec.method == base])
        best = fixed.groupby("alpha0")["train_loss"].median().idxmin()
        found = {f"{LABELS[base]}, α = {power_of_ten(best)}": fixed[fixed["alpha0"] == best].assign(largest=best)}
        for way, records in groups.items():
            own = [r for r in records if r.spec.method == method]
            if own:
                largest = [r.trace["alpha"].max() for r in own]
                found[f"{LABELS[method]}, {way}"] = frames.finals(own).assign(largest=largest)
        for name, runs in found.items():
            accuracy = 100 * runs["valid_accuracy"]
            rows.append(
                {
                    "method": name,
                    "runs lost": f"{(accuracy < 100 * HALF).sum()} of {len(runs)}",
                    "training loss": between(runs["train_loss"]),
                    "accuracy": " to ".join(dict.fromkeys(f"{a:.0f}" for a in (accuracy.min(), accuracy.max()))) + " %",
                    "largest α": between(runs["largest"]),
                }
            )
    note = frames.note([record for records in groups.values() for record in records])
    note = f"The fixed rate is the best of those that were tried, whose runs count in what follows. {note}"
    return Table(pd.DataFrame(rows), f"A run is lost that ends at an accuracy below {100 * HALF:.0f} %. {note}")


def noiseless_figure(groups: Mapping[str, Sequence[Record]], name: str, caption: str) -> Figure:
    """Draw alpha and the loss over the steps without noise, a column for each method and a line for each run.

    Args:
        groups: the records of `experiments.noiseless`, by how their learning rate moves.
    """
    adapted = [r for records in groups.values() for r in records if r.spec.method in BASELINE]
    columns = ["iteration", "alpha", "loss"]
    data = pd.concat(
        [
            r.trace[columns].assign(method=r.spec.method, bounded=r.spec.max_lr is not None, seed=r.spec.seed)
            for r in adapted
        ],
        ignore_index=True,
    )

    def draw(theme: Theme) -> plt.Figure:
        figure, axes = plt.subplots(2, 3, figsize=(9, 5), sharex=True, sharey="row")
        styles = {True: dict(color=theme.paper, linewidth=0.9), False: dict(linewidth=0.9)}
        for column, method in zip(axes.T, BASELINE, strict=True):
            own = data[data["method"] == method]
            for axis, quantity in zip(column, ("alpha", "loss"), strict=True):
                for (bounded, _), run in own.groupby(["bounded", "seed"]):
                    style = dict(color=theme.color(method)) | styles[bounded]
                    axis.plot(run["iteration"], run[quantity], **style, zorder=2 - bounded)
                axis.set_yscale("log")
            column[0].set_title(LABELS[method])
            column[1].set_xlabel("step")
        axes[0, 0].set_ylabel("learning rate α")
        axes[1, 0].set_ylabel("training loss")
        handles = [
            Line2D([], [], color=theme.text, label="automatic"),
            Line2D([], [], label="with a bound", **styles[True]),
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=2)
        return figure

    alt = (
        "Two rows of three panels, for SGD-HD, SGDN-HD and Adam-HD: the learning rate and the training loss over the "
        "steps, a line for each run. Without a bound alpha rises and falls in waves, and the loss has peaks where it "
        "falls."
    )
    return Figure(draw, name, alt, data, frames.note(adapted), caption)


def noiseless_sentence(groups: Mapping[str, Sequence[Record]]) -> str:
    """Say how many runs with the automatic beta are lost without noise, without a bound on alpha and with one."""

    def lost(records: Sequence[Record]) -> str:
        accuracy = frames.finals(records)["valid_accuracy"]
        return f"{(accuracy < HALF).sum() or 'none'} of {len(accuracy)}"

    own = {m: [r for r in groups["automatic"] if r.spec.method == m] for m in BASELINE}
    ruined = {m: (frames.finals(runs)["valid_accuracy"] < HALF).any() for m, runs in own.items() if runs}
    which = [f"{lost(own[m])} with {LABELS[m]}" for m, any_lost in ruined.items() if any_lost]
    others = [m for m, any_lost in ruined.items() if not any_lost]
    which += [f"none with {several(others, LABELS.get)}"] if which and others else []
    bounded = [record for records in groups.values() for record in records if record.spec.max_lr is not None]
    bounds: dict[float, list[str]] = {}
    for spec in (record.spec for record in bounded):
        names = bounds.setdefault(spec.max_lr or 0.0, [])
        names += [LABELS[spec.method]] if LABELS[spec.method] not in names else []
    told = " and ".join(f"{bound:g} for {' and '.join(names)}" for bound, names in bounds.items())
    return (
        f"Of the runs with the automatic β {lost(groups['automatic'])} end at an accuracy below {100 * HALF:.0f} %"
        f"{f' ({several(which)})' if which else ''}; with an upper bound on α, {told}, {lost(bounded)}."
    )


def factorisations(ends: Mapping[tuple[str, float], Sequence[float]]) -> Table:
    """Return how runs of a matrix factorisation end.

    Args:
        ends: the last loss over the first, of each seed, by method and initial learning rate.
    """
    rows = []
    for (method, alpha0), found in ends.items():
        kept = [ratio for ratio in found if ratio < 1]
        rows.append(
            {
                "method": method,
                "α₀": power_of_ten(alpha0),
                "runs lost": f"{len(found) - len(kept)} of {len(found)}",
                "loss, end over start": between(pd.Series(kept)) if kept else "",
            }
        )
    seeds = counted(len(next(iter(ends.values()))), "seed")
    alike = [
        f"{method} from {power_of_ten(one)} and {power_of_ten(other)}"
        for (method, one), (same, other) in itertools.combinations(ends, 2)
        if method == same and min(ends[method, one]) < 1 and list(ends[method, one]) == list(ends[method, other])
    ]
    told = f" The runs of {several(alike)} are the same: their first step is limited." if alike else ""
    return Table(
        pd.DataFrame(rows),
        f"{seeds.capitalize()}; automatic β, no bound on α. A run is lost whose loss is not below that of its start; "
        f"the last column is of the others.{told}",
    )
