"""What the runs of VGG say: at which scale they are, what agrees with the published ones, and how long they took."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from hdlib.report import frames, paper, relapse
from hdlib.report.critical import critical_beta
from hdlib.report.style import (
    LABELS,
    Noted,
    Table,
    counted,
    fraction,
    power_of_ten,
    rounded,
    scientific,
    several,
    significant,
    spread,
)
from hdlib.runs import BASELINE, METHODS, Record
from hdlib.runs.critical import PREDICTORS

IMAGES, EPOCHS = 50_000, paper.tuning_epochs("vgg")  # of the paper's experiment
STEPS = -(-IMAGES // 128)  # of an epoch of it
STILL = 0.05  # relative change of alpha over a run up to which it has hardly moved
_STARTS = {"ones": "a start at ones", "uniform": "a uniform start"}  # of batch normalisation
VARIANTS = {"authors": "the authors' code", "paper": "the paper's text", "blog": "the blog post"}
SOURCES = {"paper": "paper, Figure 3", "authors": "authors' repository"}
LAST = 0.05  # share of the epochs whose mean is a loss at the end: one epoch alone can be an outlier
CLASSES = 10
GUESSING = 0.99  # of the training loss of guessing, from which on a run has hardly learnt anything
ORDERINGS = (  # quantity, the method that ends lower, the other
    ("train_end", "sgd_hd", "sgd"),
    ("valid_end", "sgd_hd", "sgd"),
    ("valid_best", "sgd_hd", "sgd"),
    ("train_end", "sgdn_hd", "sgdn"),
    ("valid_end", "sgdn_hd", "sgdn"),
    ("valid_best", "sgdn_hd", "sgdn"),
    ("train_end", "adam_hd", "adam"),
    ("valid_best", "adam", "adam_hd"),
    ("valid_end", "adam", "adam_hd"),
)
ENDS = {
    "train_end": "training loss at the end",
    "valid_end": "validation loss at the end",
    "valid_best": "best validation loss",
}


def complete(records: Sequence[Record]) -> bool:
    """Say whether these are the paper's experiment: the whole network, all images, 200 epochs, six methods."""
    return {record.spec.method for record in whole(records) if record.spec.epochs >= EPOCHS} == set(METHODS)


def whole(records: Sequence[Record]) -> list[Record]:
    """Return the runs of the whole network on all images, however long."""
    return [record for record in records if _scale(record) == (1.0, IMAGES)]


def scale(records: Sequence[Record], known: Sequence[Record] = ()) -> str:
    """Say what was run where, and whether it is the paper's experiment, or where that is.

    Args:
        records: runs of the page.
        known: all that there are.
    """
    specs = [record.spec for record in records]
    networks = several([name for (name,), _ in _groups(records, "network")])
    widths = several(sorted({spec.width_factor for spec in specs}), fraction)
    images = sorted({_scale(record)[1] for record in records})
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
        return (
            text + "That is the paper's experiment at its full length and size; the network is one of two, see below."
        )
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


def steps(records: Sequence[Record]) -> int:
    """Return how many iterations an epoch has."""
    spec = records[0].spec
    return -(-_scale(records[0])[1] // spec.batch_size)


def levels(records: Sequence[Record]) -> Table:
    """Return losses and accuracy of each method: ours beside the published ones.

    Of a longer curve of the paper there is a row at the end of ours too, and of ours at the end of a shorter one.
    """
    rows, ours = [], _ours(records)
    for (method, name), whole_group in _groups(records, "method", "network"):
        for group in (whole_group, *_shortened(whole_group)):
            finals = frames.finals(group, LAST)
            rows.append(
                {
                    "method": method,
                    "source": ours[name],
                    "epochs": several(sorted({min(r.spec.epochs, int(r.epochs["epoch"].max())) for r in group})),
                    "training loss, end": spread(finals["train_loss"]),
                    "validation loss, end": spread(finals["valid_loss"]),
                    "validation loss, best": spread(finals["best_valid_loss"]),
                    "accuracy, end": _accuracy(finals["valid_accuracy"], group),
                }
            )
    for row in paper.published("vgg", "cifar10", (r.spec.epochs for r in records)).itertuples():
        rows.append(
            {
                "method": row.method,
                "source": SOURCES[row.source],
                "epochs": row.epochs,
                "training loss, end": significant(row.train_end),
                "validation loss, end": significant(row.valid_end),
                "validation loss, best": significant(row.valid_best),
                "accuracy, end": "",
            }
        )
    table = pd.DataFrame(rows).sort_values("method", key=lambda names: names.map(METHODS.index), kind="stable")
    table = table.assign(method=table["method"].map(LABELS))
    epoch = steps(records)
    lengths = "" if epoch == STEPS else f" An epoch of theirs has {STEPS} iterations, of ours {epoch}."
    return Table(
        table,
        f"Ours: {frames.note(records)}{frames.spread_note(records)} The published runs have one seed each.{lengths} "
        f"{_at_the_end(records)}",
    )


def agreement(records: Sequence[Record]) -> Table:
    """Return, for each ordering of two methods that the paper shows, whether the published runs and ours have it."""
    published = _published().set_index(["source", "method"])
    groups, ours = dict(_groups(records, "network")), _ours(records)
    rows = []
    for quantity, lower, higher in ORDERINGS:
        row = {"is it so?": f"{LABELS[lower]} has a lower {ENDS[quantity]} than {LABELS[higher]}"}
        for source, label in SOURCES.items():
            pair = [published.loc[(source, method), quantity] for method in (lower, higher)]
            row[label] = _verdict([pair])
        for (name,), whole_group in groups.items():
            row[ours[name]] = _verdict(_pairs(whole_group, quantity, lower, higher))
            for group in _shortened(whole_group):
                label = f"{ours[name]}, after {counted(int(group[0].epochs['epoch'].max()), 'epoch')}"
                row[label] = _verdict(_pairs(group, quantity, lower, higher))
        rows.append(row)
    note = f"In small print the two losses, means over the seeds that both methods have. {_at_the_end(records)}"
    return Table(pd.DataFrame(rows), note)


def _at_the_end(records: Sequence[Record]) -> str:
    """Say what a loss at the end is."""
    last = {round(LAST * r.spec.epochs) for r in records}
    return (
        f"At the end: of our runs the mean over the last {100 * LAST:g} % of the epochs, so that no single one "
        "decides; of the published ones the last value that they show."
        if max(last) > 1
        else "At the end: after the last epoch."
    )


def agreement_sentence(records: Sequence[Record]) -> str:
    """Say which orderings of the published runs hold in ours, for each network, which do not, and which are chance."""
    lines = []
    for (name,), group in _groups(records, "network"):
        lines.append(f"As in {name}:")
        lines += [f"- {said}" for said in (*_lost(group), *_guessing(group), *relapse.sentences(group))]
        lines += [f"- {said}" for said in _precedent(relapse.relapsed(group))]
        lines += [f"- {said}" for said in _beside_published(group)]
        lines.append(
            "- An ordering that does not hold in every seed is not decided, though it may be the same in the means."
            if max(len(_pairs(group, *ordering)) for ordering in ORDERINGS) > 1
            else "- With one seed, a small difference may be chance."
        )
        lines.append("")
    return "\n".join(lines)


def in_short(records: Sequence[Record]) -> str:
    """Say in a line which orderings of the published runs hold in ours, and which do not, for each network."""
    networks = _groups(records, "network")
    told = [
        f"{'' if len(networks) == 1 else f'As in {name}, {said[0].lower()}'}{said[len(networks) > 1 :]}"
        for (name,), group in networks
        for said in _beside_published(group)
    ]
    return f"**In short.** Which of two methods has the lower loss? {' '.join(told)}"


def _beside_published(records: Sequence[Record]) -> list[str]:
    """Return a sentence on the orderings for each of the published experiments, one where it is the same for both."""
    published = _published().set_index(["source", "method"])
    alike: dict[str, list[str]] = {}
    for source, label in SOURCES.items():
        length, by_then = _by_the_end(records, source)
        told = _orderings(by_then, published.loc[source])
        alike.setdefault(told, []).append(
            f"the {label}{f' after its {length} epochs' if by_then is not records else ''}"
        )
    return [f"Beside {', and '.join(labels)}: {said}." for said, labels in alike.items()]


def bottom_line(records: Sequence[Record]) -> str:
    """Say what the runs that come nearest to the paper's experiment show of its orderings; nothing if there are none.

    Nearest are those of six methods on all images, and of these the longest.
    """
    nearest = _longest(r for r in records if _scale(r)[1] == IMAGES)
    if not nearest:
        return ""
    same, spec = _same(nearest), nearest[0].spec
    (in_paper, _, total), (in_authors, _, _) = same["paper"], same["authors"]
    length, by_then = _by_the_end(nearest, "authors")
    after = "" if by_then is nearest else f" after their {length} epochs"
    where = f"as in the paper's figure, and {in_authors} as in the authors' published runs{after}"
    text = (
        f"With {fraction(spec.width_factor)} of the channels, {counted(spec.epochs, 'epoch')} of all images and "
        f"{_seeds(nearest)}, {in_paper} of {total} comparisons between methods come out "
        f"{where if after or in_paper != in_authors else 'as in both published experiments'}."
    )
    return " ".join([text, *map(_relapse, relapse.relapsed(nearest))])


def _relapse(record: Record) -> str:
    """Say that a run fell back, when, and how far it came again."""
    return f"{LABELS[record.spec.method]} fell back in epoch {relapse.began(record)}{relapse.recovered(record)}."


def bottom_line_of_fewer_images(records: Sequence[Record]) -> str:
    """Say the same of the longest runs on fewer images, and which of them lost what they had learnt."""
    longest = _longest(r for r in records if _scale(r)[1] < IMAGES)
    if not longest:
        return ""
    same, everywhere, total = _same(longest)["paper"]
    spec, many = longest[0].spec, frames.seeds(longest)[1] > 1
    text = (
        f"With [{_seeds(longest)}](vgg-epochs), {fraction(spec.width_factor)} of the channels, "
        f"{counted(spec.epochs, 'epoch')} of {_scale(longest[0])[1]:,} images, {same} of {total} come out as in the "
        "paper's figure"
        f"{f' in the means over seeds, {everywhere} of them in every seed' if many else ''}"
    )
    lost = [
        f"{counted(len(own), 'run')} of {LABELS[method]} fell back"
        + (relapse.recovered(own[0]) if len(own) == 1 else "")
        for (method,), own in _groups(relapse.relapsed(longest), "method")
    ]
    return f"{text}. With the paper's β {several(lost)}." if lost else f"{text}."


def _longest(records: Iterable[Record]) -> list[Record]:
    """Return the longest runs of all six methods as in the paper's experiment, of one network and precision."""
    kinds: dict[tuple, list[Record]] = {}
    for r in records:
        as_stated = r.spec.alpha0 == paper.TUNED_FROM and r.spec.beta == paper.tuned_beta(r.spec.method, "vgg")
        if as_stated and (r.spec.rule, r.spec.decay, r.spec.max_iterations) == ("additive", "none", None):
            kind = (r.spec.epochs, r.spec.width_factor, _scale(r)[1], network(r), r.spec.precision)
            kinds.setdefault(kind, []).append(r)
    kinds = {kind: own for kind, own in kinds.items() if {r.spec.method for r in own} == set(METHODS)}
    return kinds[max(kinds)] if kinds else []


def _same(records: Sequence[Record]) -> dict[str, tuple[int, int, int]]:
    """Return how many orderings are those of each published experiment, of how many in every seed, of how many."""
    published, found = _published().set_index(["source", "method"]), {}
    for source in SOURCES:
        compared = _compared(_by_the_end(records, source)[1], published.loc[source]).values()
        same = [row for row in compared if row["same"]]
        found[source] = len(same), sum(row["everywhere"] for row in same), len(compared)
    return found


def _compared(records: Sequence[Record], published: pd.DataFrame) -> dict[tuple[str, str, str], dict]:
    """Return, for each ordering that our runs have, which method is `lower` in published runs, and `higher`.

    Whether our means have them the `same` way, and `everywhere`, in every seed; how many `seeds` there are, and the
    method that `adapts`.
    """
    found = {}
    for quantity, first, second in ORDERINGS:
        pairs = _pairs(records, quantity, first, second)
        if pairs:
            theirs = bool(published.loc[first, quantity] < published.loc[second, quantity])
            a, b = np.mean(pairs, axis=0)
            lower, higher = (first, second) if theirs else (second, first)
            found[quantity, first, second] = dict(
                lower=lower,
                higher=higher,
                same=(a < b) == theirs,
                everywhere=all((x < y) == theirs for x, y in pairs),
                seeds=len(pairs),
                adapts=first if first in BASELINE else second,
            )
    return found


def _orderings(records: Sequence[Record], published: pd.DataFrame) -> str:
    """Say how many orderings of published runs ours have, which not, and of which methods they are undecided."""
    still, compared = _still(records), _compared(records, published)
    counts = {method: sum(row["adapts"] == method for row in compared.values()) for method in BASELINE}
    decided = {key: row for key, row in compared.items() if row["adapts"] not in still}
    told = []
    if decided:
        lost = [(row["adapts"], quantity) for (quantity, *_), row in decided.items() if not row["same"]]
        of = several([LABELS[BASELINE[method]] for method, n in counts.items() if n and method not in still])
        everywhere = sum(row["everywhere"] for row in decided.values() if row["same"])
        several_seeds = max(row["seeds"] for row in decided.values()) > 1
        told.append(
            f"{f'{len(decided) - len(lost)} of' if lost else 'all'} {len(decided)} orderings"
            f"{f' of {of}' if still else ''} are the same"
            f"{f' in the means over seeds, {everywhere} of them in every seed' if several_seeds else ''}"
        )
        told += [f"not the same: {_differ(lost)}"] if lost else []
    told += [
        f"the {counts[method]} of {LABELS[method]} are undecided, since its α is at most "
        f"{significant(100 * moved, 2)} % from α₀ in the last epoch"
        for method, moved in still.items()
        if counts[method]
    ]
    return "; ".join(told)


def _differ(orderings: Sequence[tuple[str, str]]) -> str:
    """Say of which methods, and in which quantities, orderings differ.

    >>> _differ([("sgdn_hd", "train_end"), ("sgdn_hd", "valid_end"), ("adam_hd", "valid_best")])
    'SGDN-HD against SGDN in training loss and validation loss at the end; Adam-HD against Adam in best validation loss'
    """
    told = []
    for method in dict.fromkeys(method for method, _ in orderings):
        own = {quantity for of, quantity in orderings if of == method}
        ends = [ENDS[q].removesuffix(" at the end") for q in ("train_end", "valid_end") if q in own]
        parts = [f"in {several(ends)} at the end"] if ends else []
        parts += [f"in {ENDS['valid_best']}"] if "valid_best" in own else []
        told.append(f"{LABELS[method]} against {LABELS[BASELINE[method]]} {' and '.join(parts)}")
    return "; ".join(told)


def caption(records: Sequence[Record]) -> str:
    """Return the caption of the figure of a network's runs."""
    epoch = "" if steps(records) == STEPS else f", of ours {steps(records)}"
    lines = (
        "Lines are medians over seeds, after a divergence over those that are left; bands reach from the lowest to "
        "the highest seed. "
    )
    return (
        f"VGG-16 as in {network(records[0])}, all methods from α₀ = {records[0].spec.alpha0:g}; baselines dashed, "
        f"hypergradient methods solid. The axes of α are linear between −10⁻³ and 10⁻³. "
        f"{lines if frames.seeds(records)[1] > 1 else ''}The pale lines are the paper's "
        f"curves, digitised; an epoch of theirs is of all images and has {STEPS} iterations{epoch}."
    )


def published() -> str:
    """Say how far the paper's and the authors' published runs are from each other."""
    frame = _published().set_index(["source", "method"])
    lengths = [int(frame.loc[source, "epochs"].iloc[0]) for source in SOURCES]
    ratios = frame.loc["paper", ["train_end", "valid_end"]] / frame.loc["authors", ["train_end", "valid_end"]]
    told = ", ".join(f"{LABELS[method]} {significant(ratios.loc[method, 'valid_end'], 2)}" for method in METHODS)
    return (
        f"The published runs disagree, too. The paper's are of {lengths[0]} epochs, the authors' of {lengths[1]}, "
        f"and still the paper's end at training losses that are {significant(ratios['train_end'].min(), 2)} to "
        f"{significant(ratios['train_end'].max(), 2)} times as large, and at validation losses larger by these "
        f"factors: {told}."
    )


def variant(records: Sequence[Record]) -> str:
    """Say which network the published runs trained, and, of the whole experiment, how far ours ends from theirs."""
    where = "at full size" if whole(records) else "at this scale"
    text = (
        "Which network the published runs trained: [two different ones, it seems](vgg-network). "
        f"{_speaks_for(records, where)}"
    ).strip()
    if not complete(records):
        return text
    theirs = paper.published("vgg", "cifar10", set(_published()["epochs"]))
    lines = []
    for (length, source), ends in theirs.set_index("method").groupby(["epochs", "source"]):
        for (name,), group in _groups(records, "network"):
            ours = frames.finals(_until(group, length), LAST).groupby("method")[["train_loss", "valid_loss"]].mean()
            apart = [
                significant(np.exp(np.abs(np.log(ours[own] / ends[of][ours.index])).mean()), 2)
                for own, of in (("train_loss", "train_end"), ("valid_loss", "valid_end"))
            ]
            lines.append(
                f"- After {counted(length, 'epoch')} training losses differ from those of the {SOURCES[source]} by a "
                f"factor of {apart[0]}, validation losses by one of {apart[1]} (as in {name}; geometric means over the "
                "methods)."
            )
    return f"{text}\n\n" + "\n".join(lines)


def _by_the_end(records: Sequence[Record], source: str) -> tuple[int, Sequence[Record]]:
    """Return how many epochs a published experiment has, and runs as they were by then, if their epochs are as long."""
    published = _published()
    length = int(published.loc[published["source"] == source, "epochs"].iloc[0])
    if all(_scale(r)[1] != IMAGES or r.epochs["epoch"].max() <= length for r in records):
        return length, records
    return length, _until(records, length)


def _until(records: Sequence[Record], epoch: int) -> list[Record]:
    """Return runs as they were at the end of an epoch."""
    return [replace(r, epochs=r.epochs[r.epochs["epoch"] <= epoch]) for r in records]


def _shortened(records: Sequence[Record]) -> list[Sequence[Record]]:
    """Return runs as they were at the end of each published experiment that is shorter."""
    found = [_by_the_end(records, source)[1] for source in SOURCES]
    return [by_then for by_then in found if by_then is not records]


def _speaks_for(records: Sequence[Record], where: str) -> str:
    """Say of which network methods diverge that diverge in no published run, where those of the other do not."""
    lost = {
        name: {r.spec.method for r in group if r.outcome == "diverged"}
        for (name,), group in _groups(records, "network")
    }
    for name, other in itertools.permutations(lost, 2):
        if lost[name] and not lost[other]:
            methods = several([m for m in METHODS if m in lost[name]], LABELS.get)
            return (
                f"With the network of {name} {methods} diverged; with that of {other} no run did, with the same β, "
                f"and neither published run did. {where.capitalize()} that speaks against {name}."
            )
    return ""


def rates(records: Sequence[Record]) -> Table:
    """Return how far each method's alpha goes, and how often it is negative, beside the published runs."""
    published, ours, rows = _published().set_index(["source", "method"]), _ours(records), []
    for (method,), own in _groups(records, "method"):
        if method not in BASELINE:
            continue
        for (name,), group in _groups(own, "network"):
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
                row["below zero"] = _share(np.mean([_negative(r) for r in kept]))
            if 0 < len(kept) < len(group):
                row["largest α"] += f"; {len(group) - len(kept)} of {len(group)} runs diverged"
            rows.append(row)
        for source, label in SOURCES.items():
            theirs = published.loc[(source, method)]
            row = {"method": LABELS[method], "source": label, "largest α": significant(theirs["alpha_max"], 4)}
            row["of the first"], row["α of the last epoch"] = f"{paper.VGG_SHOWN:,}", significant(theirs["alpha_end"])
            if source == "authors":
                row["of the first"] = f"{theirs['epochs'] * STEPS:,}"
                row |= {"at iteration": f"{theirs['alpha_max_at']:,.0f}", "below zero": _share(theirs["negative"])}
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


def _share(value: float) -> str:
    """Return a share in per cent, or "never"."""
    return f"{significant(100 * value, 2)} %" if value else "never"


def times(records: Sequence[Record]) -> Table:
    """Return the time of an epoch and a run, and what a hypergradient method costs over its baseline on a GPU."""
    published = _published()
    theirs = published[published["source"] == "authors"].set_index("method")
    per_epoch = theirs["seconds"] / theirs["epochs"]
    groups = dict(_groups(records, "network", "method"))
    ours = {  # a run that diverges in its first epoch has no time of one
        key: np.median([r.provenance["epoch_seconds"] for r in group if "epoch_seconds" in r.provenance] or [np.nan])
        for key, group in groups.items()
    }
    gpu = not any(record.provenance["device"].endswith("cores)") for record in records)
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
                        "images a second": f"{_scale(group[0])[1] / ours[name, method]:,.0f}",
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
    alike = {(network(record), *_scale(record)) for record in records}
    for record in known:
        if record.spec.model == "vgg" and (network(record), *_scale(record)) in alike:
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
                    "run": f"{fraction(spec.width_factor)} of the channels, {_scale(exact[seeds[0]])[1]:,} images, "
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
        "it is widest. "
    )
    return Table(pd.DataFrame(rows), note + frames.note(compared)) if rows else None


def automatic(records: Sequence[Record], fixed: Sequence[Record]) -> str:
    """Say where each method ends with an automatic beta, beside its baseline, and with the experiment's beta.

    Args:
        records: runs with an automatic beta and their baselines, from several alpha_0.
        fixed: runs of the experiment.
    """
    lines = []
    for method, base in BASELINE.items():
        ours, theirs = ([r for r in records if r.spec.method == m] for m in (method, base))
        networks = {network(r) for r in ours}
        known = [r for r in fixed if r.spec.method == method and network(r) in networks]
        rates = several(sorted({r.spec.alpha0 for r in ours}, reverse=True), power_of_ten)
        lines.append(
            f"- {LABELS[method]} with an automatic β, from α₀ = {rates} ({_seeds(ours)}): {_ends(ours)}. "
            f"{LABELS[base]} from there: {_ends(theirs)}. {_ahead(ours, theirs)} {LABELS[method]} with the "
            f"experiment's β, from {power_of_ten(known[0].spec.alpha0)} alone ({_seeds(known)}): {_ends(known)}."
        )
    lost = sum(r.outcome == "diverged" for r in records if r.spec.method in BASELINE)
    ran = sum(r.spec.method in BASELINE for r in records)
    return "\n".join(lines) + f"\n\nOf {counted(ran, 'run')} with an automatic β, {lost or 'none'} diverged."


def _ahead(ours: Sequence[Record], theirs: Sequence[Record]) -> str:
    """Say from which alpha_0 runs end below the best of their baselines', by the mean training loss over seeds."""
    ends, fixed = (frames.finals(runs).groupby("alpha0")["train_loss"].mean() for runs in (ours, theirs))
    rates = [power_of_ten(rate) for rate in sorted(ends.index, reverse=True) if ends[rate] < fixed.min()]
    best = f"the best of these fixed rates, {power_of_ten(fixed.idxmin())}"
    return f"It ends below {best}, from α₀ = {several(rates)}." if rates else f"From none it ends below {best}."


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
                PREDICTORS["at_start"]: f"{scientific(runs['at_start'].median())}{_of_seeds(runs['at_start'])}",
            }
        )
    return Table(
        pd.DataFrame(rows),
        f"From α₀ = 0.001, {iterations} iterations; critical β from the lowest to the highest seed, predictions in "
        "medians over seeds; where κ is negative in the first step, it predicts nothing. A run fails if it "
        "diverges, or if its loss at the end is a fifth above that of the first minibatch. The "
        "curvatures on the way, from which the page on the critical β predicts better, were not measured here.",
    )


def _from_to(values: pd.Series, told: Callable[[float], str] = scientific) -> str:
    """Return the lowest and the highest value as text, or the only one."""
    low, high = told(values.min()), told(values.max())
    return low if low == high else f"{low} to {high}"


def critical_sentence(measured: pd.DataFrame, betas: dict[str, float], iterations: int) -> str:
    """Say how far the experiment's beta is from the critical one of the widest network."""
    widest = measured[measured["model"] == max(measured["model"], key=lambda model: float(model.split()[1]))]
    told = []
    for method, runs in widest.groupby("method", sort=False):
        middle = runs["critical"].median()
        if not 0 < middle < np.inf:
            told.append(f"not comparable for {LABELS[method]}, whose was not found ({critical_beta(runs)})")
            continue
        over = middle / betas[method]
        how = f"{rounded(over)} times below it" if over >= 1 else f"{rounded(1 / over)} times above it"
        told.append(f"{how} for {LABELS[method]}")
    return (
        f"For VGG as in {_network(widest['model'].iloc[0])}, and beside the critical β of {iterations} iterations, the "
        f"experiment's β is {several(told)}."
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
        for (start, precision), own in _groups(longer, "norm_start", "precision"):
            at = sorted(r.iterations for r in own if r.outcome == "diverged")
            forgot = sorted(relapse.began(r) for r in relapse.relapsed(own))
            if not (at or forgot) or not 1 < over.min() <= over.max() < np.inf:
                continue
            how = []
            if at:
                came = [r for r in own if r.outcome == "diverged" or r.iterations >= at[0]]
                how += [f"diverged in {_which(at, came)}, at iteration {several(at, '{:,}'.format)}"]
            if forgot:
                came = [r for r in own if r.outcome != "diverged" and r.epochs["epoch"].iloc[-1] >= forgot[0]]
                so_far = " that lasted so long" if len(came) < len(own) else ""
                how += [f"fell back in {_which(forgot, came)}{so_far}, in epoch {several(forgot)}"]
            ours = f"{_STARTS[start]} in {precision}"
            text = f"- {LABELS[method]} as in {_network(model)}, with {ours}, {' and '.join(how)}."
            text += f" The β is {_from_to(over, rounded)} times below the critical one"
            told.append(f"{text}." if ours == limits else f"{text} of {limits}; that of these runs was not measured.")
    if not told:
        return ""
    return "\n".join(
        ["That is no bound for longer runs. Of all that are recorded, with the experiment's β:", "", *told]
    )


def _of_seeds(values: pd.Series) -> str:
    """Say of how many seeds numbers are known, where not of all."""
    return "" if values.notna().all() else f" ({values.count()} of {len(values)} seeds)"


def _network(model: str) -> str:
    variant, factor = model.split()
    return f"{VARIANTS[variant]}, {fraction(float(factor))} of the channels"


def _scale(record: Record) -> tuple[float, int]:
    return record.spec.width_factor, record.spec.train_images or IMAGES


def _published() -> pd.DataFrame:
    frame = paper.tuning()
    return frame[frame["model"] == "vgg"]


def _ours(records: Sequence[Record]) -> dict[str, str]:
    """Return what each network's runs are called: "ours" where there is one alone."""
    names = [name for (name,), _ in _groups(records, "network")]
    return {name: "ours" if len(names) == 1 else f"ours, as in {name}" for name in names}


def _groups(records: Sequence[Record], *fields: str) -> list[tuple[tuple, list[Record]]]:
    """Return the records by their network or fields of their specs, in the order of networks and methods."""
    groups: dict[tuple, list[Record]] = {}
    order = list(VARIANTS)
    for record in sorted(
        records, key=lambda r: (order.index(r.spec.variant), r.spec.norm_start, METHODS.index(r.spec.method))
    ):
        key = tuple(network(record) if name == "network" else getattr(record.spec, name) for name in fields)
        groups.setdefault(key, []).append(record)
    return list(groups.items())


def _pairs(records: Sequence[Record], quantity: str, first: str, second: str) -> list[list[float]]:
    """Return two methods' values of a quantity, a pair for each seed that both have."""
    column = {"train_end": "train_loss", "valid_end": "valid_loss", "valid_best": "best_valid_loss"}[quantity]
    finals = frames.finals(records, LAST).set_index(["method", "seed"])[column]
    seeds = [seed for method, seed in finals.index if method == first and (second, seed) in finals.index]
    return [[finals[first, seed], finals[second, seed]] for seed in seeds]


def _verdict(pairs: list[list[float]]) -> str | Noted:
    """Return whether the first is lower, with the two means below it."""
    if not pairs:
        return "not run"
    lower = sum(a < b for a, b in pairs)
    word = ("yes" if lower else "no") if len(pairs) == 1 else f"in {lower} of {len(pairs)} seeds"
    a, b = (significant(mean) if np.isfinite(mean) else "diverged" for mean in np.mean(pairs, axis=0))
    return Noted(word, f"{a}, {b}")


def _lost(records: Sequence[Record]) -> list[str]:
    """Return a sentence for each method of which a run diverged."""
    told = []
    for (method,), group in _groups(records, "method"):
        at = sorted(r.iterations for r in group if r.outcome == "diverged")
        if at:
            told.append(f"{LABELS[method]} diverged in {_which(at, group)}, at iteration {several(at, '{:,}'.format)}.")
    return told


def _precedent(fell: Sequence[Record]) -> list[str]:
    """Return a sentence on the authors' own run of a method whose run of the whole network fell back."""
    published = _published().set_index(["source", "method"]).loc["authors"]
    told = []
    for method in sorted({r.spec.method for r in whole(fell)}):
        theirs, base = published.loc[method], published.loc[BASELINE[method]]
        told.append(
            f"The authors' published run of {LABELS[method]} made such a leap, too: its α is largest, "
            f"{significant(theirs['alpha_max'])}, at iteration {theirs['alpha_max_at']:,.0f} of "
            f"{theirs['epochs'] * STEPS:,}, and below zero in {_share(theirs['negative'])} of all. It ended at a "
            f"validation loss of {significant(theirs['valid_end'])}, their {LABELS[BASELINE[method]]} at "
            f"{significant(base['valid_end'])}."
        )
    return told


def _guessing(records: Sequence[Record]) -> list[str]:
    """Return a sentence for each method of which a run's training loss still is that of guessing, or near it."""
    told = []
    for (method,), group in _groups(records, "method"):
        losses = [r.epochs["train_loss"].iloc[-1] for r in group if r.outcome != "diverged"]
        still = [loss for loss in losses if loss > GUESSING * np.log(CLASSES)]
        if still:
            told.append(
                f"{LABELS[method]} hardly learnt anything in {_which(still, group)}: {several(still, significant)}, "
                f"where guessing has a training loss of ln {CLASSES} = {significant(np.log(CLASSES))}."
            )
    return told


def _which(some: Sequence, records: Sequence[Record]) -> str:
    """Return "2 of its 3 runs"."""
    return "its one run" if len(records) == 1 else f"{len(some)} of its {len(records)} runs"


def _still(records: Sequence[Record]) -> dict[str, float]:
    """Return the hypergradient methods whose alpha hardly moved, each with the most by which it did, relative."""
    found = {}
    for (method,), group in _groups(records, "method"):
        moved = [abs(r.epochs["alpha"].iloc[-1] / r.spec.alpha0 - 1) for r in group if r.outcome != "diverged"]
        if method in BASELINE and moved and max(moved) < STILL:
            found[method] = max(moved)
    return found


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


def _accuracy(ends: pd.Series, records: Sequence[Record]) -> str:
    """Return the mean validation accuracy at the end in per cent, or that a run diverged."""
    lost = [r.outcome == "diverged" for r in records]
    return spread(np.where(lost, np.nan, 100 * ends)) if any(lost) else f"{100 * ends.mean():.1f} %"


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


def _seeds(records: Sequence[Record]) -> str:
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
