"""The runs of VGG: at which scale they are, how their learning rates move, how long they took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from hdlib.report import frames, paper
from hdlib.report.style import (
    LABELS,
    Table,
    counted,
    fraction,
    power_of_ten,
    several,
    significant,
    spread,
)
from hdlib.runs import BASELINE, METHODS, Record

IMAGES, EPOCHS = 50_000, paper.tuning_epochs("vgg")  # of the paper's experiment
STEPS = -(-IMAGES // 128)  # of an epoch of it
STARTS = {"ones": "a start at ones", "uniform": "a uniform start"}  # of batch normalisation
VARIANTS = {"authors": "the authors' code", "paper": "the paper's text", "blog": "the blog post"}
SOURCES = {"paper": "paper, Figure 3", "authors": "authors' repository"}


def complete(records: Sequence[Record]) -> bool:
    """Say whether these are the paper's experiment: the whole network, all images, 200 epochs, six methods."""
    return {record.spec.method for record in whole(records) if record.spec.epochs >= EPOCHS} == set(METHODS)


def whole(records: Sequence[Record]) -> list[Record]:
    """Return the runs of the whole network on all images, however long."""
    return [record for record in records if extent(record) == (1.0, IMAGES)]


def scale(records: Sequence[Record], known: Sequence[Record] = ()) -> str:
    """Say what was run where, and whether it is the paper's experiment, or where that is.

    Args:
        records: runs of the page.
        known: all that there are.
    """
    specs = [record.spec for record in records]
    networks = several([name for (name,), _ in grouped(records, "network")])
    widths = several(sorted({spec.width_factor for spec in specs}), fraction)
    images = sorted({extent(record)[1] for record in records})
    some = f"{several(images, '{:,}'.format)} of CIFAR-10's {IMAGES:,}" if images != [IMAGES] else f"all {IMAGES:,}"
    shorter = sorted({spec.epochs for spec in specs})
    lengths = f"{several(shorter)} of the paper's {EPOCHS} epochs"
    if images != [IMAGES]:
        lengths = f"{several(shorter)} epochs of these"
    elif shorter == [EPOCHS]:
        lengths = f"all {EPOCHS} epochs of the paper"
    least, most = frames.seeds(records)
    methods = len({spec.method for spec in specs})
    text = (
        f"**Run here:** VGG-16 as in {networks}, {widths} of the channels, {some} training images, "
        f"{lengths}, {counted(methods, 'method')}, "
        f"{'' if least == most else 'up to '}{counted(most, 'seed')} each, "
        f"in {several(sorted({spec.precision for spec in specs}))}, on "
        f"{several(sorted({r.provenance['device'] for r in records}))}. "
        f"Data: {several(frames.sources(records))}. "
    )
    if any("jpg" in source for source in frames.sources(records)):
        text += "JPEG is lossy, so losses may differ a little from those on the original images. "
    if complete(records):
        return text + "That is the paper's experiment at its full length and size; which network it had is asked below."
    told = (
        "levels of loss can be compared with the published ones epoch by epoch"
        if whole(records) == list(records)
        else "levels of loss cannot be compared with those of the whole network on all images; orderings of the "
        "methods and early learning rates can, with care"
    )
    papers = f"the whole network on all images for {EPOCHS} epochs with six methods"
    return (
        text
        + (
            f"The paper's experiment, {papers}, is on [the page of the whole network](vgg). "
            if complete(known)
            else f"**The paper's experiment, {papers}, was not run.** "
        )
        + f"{_lengths(steps(records), shorter[-1])}; {told}."
    )


def network_name(variant: str, norm_start: str) -> str:
    """Return what a network is like: "the authors' code", or "the blog post (uniform start)"."""
    return VARIANTS[variant] + (" (uniform start)" if norm_start == "uniform" else "")


def network(record: Record) -> str:
    """Return what a run's network is like."""
    return network_name(record.spec.variant, record.spec.norm_start)


def pictured(record: Record) -> str:
    """Return what a figure's caption calls a run's network: "VGG-16 as in the authors' code, 1/8 of the channels"."""
    width = record.spec.width_factor
    return f"VGG-16 as in {network(record)}" + ("" if width == 1 else f", {fraction(width)} of the channels")


def steps(records: Sequence[Record]) -> int:
    """Return how many iterations an epoch has."""
    spec = records[0].spec
    return -(-extent(records[0])[1] // spec.batch_size)


def caption(records: Sequence[Record]) -> str:
    """Return the caption of the figure of a network's runs."""
    epoch = "" if steps(records) == STEPS else f", of ours {steps(records)}"
    lines = (
        "Lines are medians over seeds, after a divergence over those that are left; bands reach from the lowest to "
        "the highest seed. "
    )
    return (
        f"{pictured(records[0])}, all methods from α₀ = {records[0].spec.alpha0:g}; baselines dashed, "
        f"hypergradient methods solid. The axes of α are linear between −10⁻³ and 10⁻³. "
        f"{lines if frames.seeds(records)[1] > 1 else ''}The pale lines are the paper's "
        f"curves, digitised; an epoch of theirs is of all images and has {STEPS} iterations{epoch}."
    )


def rates(records: Sequence[Record]) -> Table:
    """Return how far each method's alpha goes, and how often it is negative, beside the published runs."""
    published, ours, rows = published_ends().set_index(["source", "method"]), called(records), []
    for (method,), own in grouped(records, "method"):
        if method not in BASELINE:
            continue
        for (name,), group in grouped(own, "network"):
            row = {"method": LABELS[method], "source": ours[name]}
            if longer := [_first(r) for r in group if r.outcome != "diverged" and r.iterations > paper.VGG_SHOWN]:
                first = {"largest α": spread([_peak(r) for r in longer], 4), "of the first": f"{paper.VGG_SHOWN:,}"}
                rows.append(row | first)
            kept = [r for r in group if r.outcome != "diverged"]
            row = {"method": LABELS[method], "source": ours[name], "largest α": "grows until nothing is finite"}
            if kept:
                rise = [r for r in kept if _peak(r) > r.spec.alpha0]
                row["largest α"] = spread([_peak(r) for r in kept], 4) if rise else "does not rise above α₀"
                row["at iteration"] = _where_it_is_largest(rise)
                row["of the first"] = f"{max(r.iterations for r in kept):,}"
                row["α of the last epoch"] = spread([r.epochs["alpha"].iloc[-1] for r in kept])
                row["below zero"] = share_of(np.mean([_negative(r) for r in kept]))
            if 0 < len(kept) < len(group):
                row["largest α"] += f"; {len(group) - len(kept)} of {len(group)} runs diverged"
            rows.append(row)
        for source, label in SOURCES.items():
            theirs = published.loc[(source, method)]
            row = {"method": LABELS[method], "source": label, "largest α": significant(theirs["alpha_max"], 4)}
            row["of the first"], row["α of the last epoch"] = f"{paper.VGG_SHOWN:,}", significant(theirs["alpha_end"])
            if source == "authors":
                row["of the first"] = f"{theirs['epochs'] * STEPS:,}"
                row |= {"at iteration": f"{theirs['alpha_max_at']:,.0f}", "below zero": share_of(theirs["negative"])}
            rows.append(row)
    columns = ["method", "source", "largest α", "at iteration", "of the first", "α of the last epoch", "below zero"]
    many = frames.seeds(records)[1] > 1
    early = several(sorted({r.spec.early for r in records}), "{:,}".format)
    return Table(
        pd.DataFrame(rows, columns=columns).fillna(""),
        "Of the first: among how many iterations the largest α is sought; in our runs and the authors' among all, in "
        f"the paper's among those that it shows. Our α is recorded in each of the first {early} iterations and then "
        "ever more rarely, and as the mean over each epoch: the largest is that of all these, and may be larger "
        "between. α of the last epoch: the mean over it; of the published runs the last value that they show. Below "
        "zero: in which share of a run's iterations α is negative; ours is taken for constant from one record to the "
        f"next{', and the share is a mean over seeds' if many else ''}. Blank: not "
        f"published, or in the row of the whole run.{frames.spread_note(records)}",
    )


def _first(record: Record) -> Record:
    """Return a run's first iterations, as many as the paper shows."""
    tables = {name: getattr(record, name) for name in ("trace", "epochs")}
    return replace(record, **{name: own[own["iteration"] <= paper.VGG_SHOWN] for name, own in tables.items()})


def _negative(record: Record) -> float:
    """Return in which share of a run's iterations alpha is negative; it counts as constant between traced ones."""
    until = np.append(record.trace["iteration"].iloc[1:], record.iterations + 1)
    return float(np.average(record.trace["alpha"] < 0, weights=until - record.trace["iteration"]))


def share_of(value: float) -> str:
    """Return a share in per cent, or "never"."""
    return f"{significant(100 * value, 2)} %" if value else "never"


def times(records: Sequence[Record]) -> Table:
    """Return the time of an epoch and a run, and what a hypergradient method costs over its baseline on a GPU."""
    published = published_ends()
    theirs = published[published["source"] == "authors"].set_index("method")
    per_epoch = theirs["seconds"] / theirs["epochs"]
    groups = dict(grouped(records, "network", "method"))
    ours = {  # a run that diverges in its first epoch has no time of one
        key: np.median([r.provenance["epoch_seconds"] for r in group if "epoch_seconds" in r.provenance] or [np.nan])
        for key, group in groups.items()
    }
    gpu = all(record.on_gpu for record in records)
    together = {record.provenance.get("together", 1) for record in records}
    apart = gpu and together == {1}
    rows = []
    for (name, method), group in groups.items():
        base = BASELINE.get(method)
        rows.append(
            {
                "method": LABELS[method],
                "model as in": name,
                "seconds an epoch": "" if np.isnan(ours[name, method]) else significant(ours[name, method]),
                "minutes a run": significant(np.median([r.provenance["seconds"] for r in group]) / 60),
                **(
                    {"over its baseline": _more(ours[name, method], ours.get((name, base))) if base else ""}
                    if apart
                    else {}
                ),
                **(
                    {
                        "images a second": f"{extent(group[0])[1] / ours[name, method]:,.0f}",
                        "runs side by side, at most": several(sorted({r.provenance.get("together", 1) for r in group})),
                    }
                    if gpu
                    else {}
                ),
                **(
                    {
                        "authors: seconds an epoch": significant(per_epoch[method]),
                        "authors: over its baseline": _more(per_epoch[method], per_epoch[base]) if base else "",
                    }
                    if gpu
                    else {}
                ),
            }
        )
    note = "Seconds are those of the median epoch, validation included, minutes those of the whole run."
    if not gpu:
        note += " A processor is shared with whatever else it does, so methods are not compared."
    else:
        note += " The authors' runs trained the whole network on all images, on one GPU of 2017."
    if gpu and not apart:
        note += (
            " Where runs were trained side by side, seconds and minutes are the shares of a run, and the same for all "
            "of them: they say nothing of what hypergradients cost."
        )
    return Table(pd.DataFrame(rows), f"Ours: {frames.note(records)} {note}")


def precisions(records: Sequence[Record], known: Sequence[Record]) -> Table | None:
    """Return, for runs in float32 and in another precision, how far their curves are apart; None if there are none.

    The distance of two precisions is the largest difference of their mean training losses over the epochs; the spread
    of seeds is the largest range of the float32 losses of an epoch.

    Args:
        records: runs of the experiment.
        known: all that there are, of which those of the same networks on as many images are compared.
    """
    groups: dict[str, dict[str, list[Record]]] = {}
    alike = {(network(record), *extent(record)) for record in records}
    for record in known:
        if record.spec.model == "vgg" and (network(record), *extent(record)) in alike:
            same = record.spec.with_(precision="float32", seed=0)
            groups.setdefault(same.key, {}).setdefault(record.spec.precision, []).append(record)
    rows = []
    compared: list[Record] = []
    for by_precision in groups.values():
        exact = {r.spec.seed: r for r in by_precision.get("float32", [])}
        for precision in ("tf32", "bf16"):
            other = {r.spec.seed: r for r in by_precision.get(precision, [])}
            both = sorted(set(exact) & set(other))
            seeds = [s for s in both if "diverged" not in (exact[s].outcome, other[s].outcome)]
            if len(seeds) < 2:
                continue
            lost = f", {len(both) - len(seeds)} more diverged" if len(seeds) < len(both) else ""
            a, b = (np.array([runs[s].epochs["train_loss"] for s in seeds]) for runs in (exact, other))
            distance, between = np.abs(a.mean(0) - b.mean(0)).max(), np.ptp(a, axis=0).max()
            spec = exact[seeds[0]].spec
            compared += [runs[seed] for runs in (exact, other) for seed in seeds]
            rows.append(
                {
                    "method": LABELS[spec.method],
                    "run": f"{fraction(spec.width_factor)} of the channels, {extent(exact[seeds[0]])[1]:,} images, "
                    f"{counted(spec.epochs, 'epoch')}, {counted(len(seeds), 'seed')}{lost}",
                    "precisions": f"float32, {precision}",
                    "training loss, end": f"{spread(a[:, -1])}, {spread(b[:, -1])}",
                    "largest distance of the means": significant(distance),
                    "largest range over seeds": significant(between),
                    "within the spread of seeds": "yes" if distance <= between else "no",
                }
            )
    note = (
        "Distance of the means: between the mean training losses of the two precisions, in the epoch in which it is "
        "largest. Range over seeds: between the highest and the lowest training loss in float32, in the epoch in which "
        "it is widest. Within the spread is a weak test: it sets means of a few seeds beside the range of single runs. "
    )
    return Table(pd.DataFrame(rows), note + frames.note(compared)) if rows else None


def automatic(records: Sequence[Record], fixed: Sequence[Record]) -> str:
    """Say where each method ends with an automatic beta, beside its baseline, with the experiment's beta, and Prodigy.

    Args:
        records: runs with an automatic beta and their baselines, from several alpha_0, and Prodigy's.
        fixed: runs of the experiment.
    """
    lines = []
    for method, base in BASELINE.items():
        ours, theirs = ([r for r in records if r.spec.method == m] for m in (method, base))
        networks = {network(r) for r in ours}
        known = [r for r in fixed if r.spec.method == method and network(r) in networks]
        rates = several(sorted({r.spec.alpha0 for r in ours}, reverse=True), power_of_ten)
        lines.append(
            f"- {LABELS[method]} with an automatic β, from α₀ = {rates} ({seeds_of(ours)}): {_ends(ours)}. "
            f"{LABELS[base]} from there: {_ends(theirs)}. {_ahead(ours, theirs)} {LABELS[method]} with the "
            f"experiment's β, from {power_of_ten(known[0].spec.alpha0)} alone ({seeds_of(known)}): {_ends(known)}."
        )
    if other := [r for r in records if r.spec.method == "prodigy"]:
        plain, cosine = ([r for r in other if r.spec.decay == decay] for decay in ("none", "cosine"))
        lines.append(f"- Prodigy ({seeds_of(plain)}): {_ends(plain)}; along a cosine: {_ends(cosine)}.")
    lost = sum(r.outcome == "diverged" for r in records if r.spec.method in BASELINE)
    ran = sum(r.spec.method in BASELINE for r in records)
    return "\n".join(lines) + f"\n\nOf {counted(ran, 'run')} with an automatic β, {lost or 'none'} diverged."


def _ahead(ours: Sequence[Record], theirs: Sequence[Record]) -> str:
    """Say from which alpha_0 runs end below the best of their baselines', by the mean training loss over seeds."""
    ends, fixed = (frames.finals(runs).groupby("alpha0")["train_loss"].mean() for runs in (ours, theirs))
    rates = [power_of_ten(rate) for rate in sorted(ends.index, reverse=True) if ends[rate] < fixed.min()]
    best = f"the best of these fixed rates, {power_of_ten(fixed.idxmin())}"
    return f"It ends below {best}, from α₀ = {several(rates)}." if rates else f"From none it ends below {best}."


def extent(record: Record) -> tuple[float, int]:
    return record.spec.width_factor, record.spec.train_images or IMAGES


def published_ends() -> pd.DataFrame:
    frame = paper.tuning()
    return frame[frame["model"] == "vgg"]


def called(records: Sequence[Record]) -> dict[str, str]:
    """Return what each network's runs are called: "ours" where there is one alone."""
    names = [name for (name,), _ in grouped(records, "network")]
    return {name: "ours" if len(names) == 1 else f"ours, as in {name}" for name in names}


def grouped(records: Sequence[Record], *fields: str) -> list[tuple[tuple, list[Record]]]:
    """Return the records by their network or fields of their specs, in the order of networks and methods."""
    groups: dict[tuple, list[Record]] = {}
    order = list(VARIANTS)
    for record in sorted(
        records, key=lambda r: (order.index(r.spec.variant), r.spec.norm_start, METHODS.index(r.spec.method))
    ):
        key = tuple(network(record) if name == "network" else getattr(record.spec, name) for name in fields)
        groups.setdefault(key, []).append(record)
    return list(groups.items())


def which_runs(some: Sequence, records: Sequence[Record]) -> str:
    """Return "2 of its 3 runs"."""
    return "its one run" if len(records) == 1 else f"{len(some)} of its {len(records)} runs"


def _peak(record: Record) -> float:
    """Return the largest alpha of a run, of one iteration or in the mean of an epoch; NaN where it diverged."""
    if record.outcome == "diverged":
        return np.nan
    return max(record.trace["alpha"].max(), record.epochs["alpha"].max())


def _where_it_is_largest(records: Sequence[Record]) -> str:
    """Return in which iterations alpha is at its `_peak`: "2,345", or "2,345 to 6,789", those of a whole epoch, say."""
    at: list[int] = []
    for r in records:
        alpha, means = r.trace.set_index("iteration")["alpha"], r.epochs.set_index("epoch")["alpha"]
        if alpha.max() >= means.max():
            at.append(int(alpha.idxmax()))
        else:
            at += [(means.idxmax() - 1) * steps([r]) + 1, means.idxmax() * steps([r])]
    if not at:
        return ""
    return f"{min(at):,}" + (f" to {max(at):,}" if max(at) > min(at) else "")


def _lengths(steps: int, epochs: int) -> str:
    """Say how many iterations an epoch has, here and in the paper, and what all make in its epochs."""
    if steps == STEPS:
        return f"An epoch has {steps} iterations, as in the paper"
    theirs = significant(steps * epochs / STEPS, 2).removesuffix(".0")
    return (
        f"An epoch here has {counted(steps, 'iteration')}, in the paper {STEPS}: "
        f"all {steps * epochs:,} are as many as {theirs} of its epochs"
    )


def _more(value: float, base: float | None) -> str:
    return "" if base is None or np.isnan(value / base) else f"{100 * (value / base - 1):+.1f} %".replace("-", "−")


def seeds_of(records: Sequence[Record]) -> str:
    return counted(len({r.spec.seed for r in records}), "seed")


def _ends(records: Sequence[Record]) -> str:
    """Return between which training losses runs end, and at which validation accuracies."""
    ended = [r.epochs.iloc[-1] for r in records if r.outcome != "diverged"]
    if not ended:
        return "all diverged"
    losses, accuracies = ([row[name] for row in ended] for name in ("train_loss", "valid_accuracy"))
    told = [
        write(min(v)) if write(min(v)) == write(max(v)) else f"{write(min(v))} to {write(max(v))}"
        for v, write in ((losses, significant), ([100 * a for a in accuracies], "{:.1f}".format))
    ]
    lost = f", {len(records) - len(ended)} diverged" if len(ended) < len(records) else ""
    return f"training loss {told[0]}, accuracy {told[1]} %{lost}"
