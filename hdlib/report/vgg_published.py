"""VGG beside the published runs: levels of loss, which of two methods ends lower, and which network fits."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from hdlib.report import frames, paper, relapse, vgg
from hdlib.report.style import (
    LABELS,
    Noted,
    Table,
    counted,
    fraction,
    several,
    significant,
    spread,
)
from hdlib.runs import BASELINE, METHODS, Record

STILL = 0.05  # relative change of alpha over a run up to which it has hardly moved
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


def levels(records: Sequence[Record]) -> Table:
    """Return losses and accuracy of each method: ours beside the published ones.

    Of a longer curve of the paper there is a row at the end of ours too, and of ours at the end of a shorter one.
    """
    rows, ours = [], vgg.called(records)
    for (method, name), whole_group in vgg.grouped(records, "method", "network"):
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
                "source": vgg.SOURCES[row.source],
                "epochs": row.epochs,
                "training loss, end": significant(row.train_end),
                "validation loss, end": significant(row.valid_end),
                "validation loss, best": significant(row.valid_best),
                "accuracy, end": "",
            }
        )
    table = pd.DataFrame(rows).sort_values("method", key=lambda names: names.map(METHODS.index), kind="stable")
    table = table.assign(method=table["method"].map(LABELS))
    epoch = vgg.steps(records)
    lengths = "" if epoch == vgg.STEPS else f" An epoch of theirs has {vgg.STEPS} iterations, of ours {epoch}."
    return Table(
        table,
        f"Ours: {frames.note(records)}{frames.spread_note(records)} The published runs have one seed each.{lengths} "
        f"{_at_the_end(records)}",
    )


def agreement(records: Sequence[Record]) -> Table:
    """Return, for each ordering of two methods that the paper shows, whether the published runs and ours have it."""
    published = vgg.published_ends().set_index(["source", "method"])
    groups, ours = dict(vgg.grouped(records, "network")), vgg.called(records)
    rows = []
    for quantity, lower, higher in ORDERINGS:
        row = {"is it so?": f"{LABELS[lower]} has a lower {ENDS[quantity]} than {LABELS[higher]}"}
        for source, label in vgg.SOURCES.items():
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
    for (name,), group in vgg.grouped(records, "network"):
        lines.append(f"As in {name}:")
        lines += [f"- {said}" for said in (*_lost(group), *_guessing(group), *relapse.sentences(group))]
        lines += [f"- {said}" for said in _precedent(relapse.relapsed(group))]
        lines += [f"- {said}" for said in _beside_published(group)]
        lines.append(
            "- An ordering that is not that of every seed is not decided: other seeds could turn it."
            if max(len(_pairs(group, *ordering)) for ordering in ORDERINGS) > 1
            else "- With one seed, a small difference may be chance."
        )
        lines.append("")
    return "\n".join(lines)


def in_short(records: Sequence[Record]) -> str:
    """Say in a line which orderings of the published runs hold in ours, and which do not, for each network."""
    networks = vgg.grouped(records, "network")
    told = [
        f"{'' if len(networks) == 1 else f'As in {name}, {said[0].lower()}'}{said[len(networks) > 1 :]}"
        for (name,), group in networks
        for said in _beside_published(group)
    ]
    return f"**In short.** Which of two methods has the lower loss? {' '.join(told)}"


def _beside_published(records: Sequence[Record]) -> list[str]:
    """Return a sentence on the orderings for each of the published experiments, one where it is the same for both."""
    published = vgg.published_ends().set_index(["source", "method"])
    alike: dict[str, list[str]] = {}
    for source, label in vgg.SOURCES.items():
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
    nearest = _longest(r for r in records if vgg.extent(r)[1] == vgg.IMAGES)
    if not nearest:
        return ""
    same, spec = _same(nearest), nearest[0].spec
    (in_paper, _, total), (in_authors, _, _) = same["paper"], same["authors"]
    length, by_then = _by_the_end(nearest, "authors")
    after = "" if by_then is nearest else f" after their {length} epochs"
    where = f"as in the paper's figure, and {in_authors} as in the authors' published runs{after}"
    text = (
        f"With {fraction(spec.width_factor)} of the channels, {counted(spec.epochs, 'epoch')} of all images and "
        f"{vgg.seeds_of(nearest)}, {in_paper} of {total} comparisons between methods come out "
        f"{where if after or in_paper != in_authors else 'as in both published experiments'}."
    )
    return " ".join([text, *map(_relapse, relapse.relapsed(nearest))])


def _relapse(record: Record) -> str:
    """Say that a run fell back, when, and how far it came again."""
    return f"{LABELS[record.spec.method]} fell back in epoch {relapse.began(record)}{relapse.recovered(record)}."


def bottom_line_of_fewer_images(records: Sequence[Record]) -> str:
    """Say the same of the longest runs on fewer images, and which of them lost what they had learnt."""
    longest = _longest(r for r in records if vgg.extent(r)[1] < vgg.IMAGES)
    if not longest:
        return ""
    same, everywhere, total = _same(longest)["paper"]
    spec, many = longest[0].spec, frames.seeds(longest)[1] > 1
    seeds = " in every seed" if many else ""
    seeds += f", {same - everywhere} more in the means alone" if same > everywhere else ""
    text = (
        f"With [{vgg.seeds_of(longest)}](vgg-epochs), {fraction(spec.width_factor)} of the channels, "
        f"{counted(spec.epochs, 'epoch')} of {vgg.extent(longest[0])[1]:,} images, {everywhere} of {total} come out as "
        f"in the paper's figure{seeds}"
    )
    lost = [
        f"{counted(len(own), 'run')} of {LABELS[method]} fell back"
        for (method,), own in vgg.grouped(relapse.relapsed(longest), "method")
    ]
    return f"{text}; {several(lost)}." if lost else f"{text}."


def _longest(records: Iterable[Record]) -> list[Record]:
    """Return the longest runs of all six methods as in the paper's experiment, of one network and precision."""
    kinds: dict[tuple, list[Record]] = {}
    for r in records:
        as_stated = r.spec.alpha0 == paper.TUNED_FROM and r.spec.beta == paper.tuned_beta(r.spec.method, "vgg")
        if as_stated and (r.spec.rule, r.spec.decay, r.spec.max_iterations) == ("additive", "none", None):
            kind = (r.spec.epochs, r.spec.width_factor, vgg.extent(r)[1], vgg.network(r), r.spec.precision)
            kinds.setdefault(kind, []).append(r)
    kinds = {kind: own for kind, own in kinds.items() if {r.spec.method for r in own} == set(METHODS)}
    return kinds[max(kinds)] if kinds else []


def _same(records: Sequence[Record]) -> dict[str, tuple[int, int, int]]:
    """Return how many orderings are those of each published experiment, of how many in every seed, of how many."""
    published, found = vgg.published_ends().set_index(["source", "method"]), {}
    for source in vgg.SOURCES:
        compared = _compared(_by_the_end(records, source)[1], published.loc[source]).values()
        same = [row for row in compared if row["same"]]
        found[source] = len(same), sum(row["everywhere"] for row in same), len(compared)
    return found


def _compared(records: Sequence[Record], published: pd.DataFrame) -> dict[tuple[str, str, str], dict]:
    """Return, for each ordering that our runs have, which method is `lower` in published runs, and `higher`.

    Whether our means have them the `same` way, and `everywhere`, in every seed, or the other way round in every seed,
    `reversed`; how many `seeds` there are, and the method that `adapts`.
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
                reversed=not any((x < y) == theirs for x, y in pairs),
                seeds=len(pairs),
                adapts=first if first in BASELINE else second,
            )
    return found


def _orderings(records: Sequence[Record], published: pd.DataFrame) -> str:
    """Say how many orderings of published runs ours have, in every seed or in the means alone, and which not."""
    still, compared = _still(records), _compared(records, published)
    counts = {method: sum(row["adapts"] == method for row in compared.values()) for method in BASELINE}
    decided = {key: row for key, row in compared.items() if row["adapts"] not in still}
    told = []
    if decided:
        alike, in_means, against, lost = (
            [(row["adapts"], quantity) for (quantity, *_), row in decided.items() if holds(row)]
            for holds in (
                lambda row: row["everywhere"],
                lambda row: row["same"] and not row["everywhere"],
                lambda row: not row["same"] and not row["reversed"],
                lambda row: row["reversed"],
            )
        )
        of = several([LABELS[BASELINE[method]] for method, n in counts.items() if n and method not in still])
        several_seeds = max(row["seeds"] for row in decided.values()) > 1
        told.append(
            f"{f'{len(alike)} of' if len(alike) < len(decided) else 'all'} {len(decided)} orderings"
            f"{f' of {of}' if still else ''} are the same{' in every seed' if several_seeds else ''}"
        )
        told += [f"the same in the means alone: {_differ(in_means)}"] if in_means else []
        told += [f"the other way round in the means, though not in every seed: {_differ(against)}"] if against else []
        told += [f"the other way round{' in every seed' if several_seeds else ''}: {_differ(lost)}"] if lost else []
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


def published() -> str:
    """Say how far the paper's and the authors' published runs are from each other."""
    frame = vgg.published_ends().set_index(["source", "method"])
    lengths = [int(frame.loc[source, "epochs"].iloc[0]) for source in vgg.SOURCES]
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
    where = "at full size" if vgg.whole(records) else "at this scale"
    text = (
        "Which network the published runs trained: [the authors' that of their code; of the paper's figure it is not "
        "known](vgg-network). "
        f"{_speaks_for(records, where)}"
    ).strip()
    if not vgg.complete(records):
        return text
    theirs = paper.published("vgg", "cifar10", set(vgg.published_ends()["epochs"]))
    lines = []
    for (length, source), ends in theirs.set_index("method").groupby(["epochs", "source"]):
        for (name,), group in vgg.grouped(records, "network"):
            ours = frames.finals(_until(group, length), LAST).groupby("method")[["train_loss", "valid_loss"]].mean()
            apart = [
                significant(np.exp(np.abs(np.log(ours[own] / ends[of][ours.index])).mean()), 2)
                for own, of in (("train_loss", "train_end"), ("valid_loss", "valid_end"))
            ]
            lines.append(
                f"- After {counted(length, 'epoch')} training losses differ from those of the {vgg.SOURCES[source]} by "
                f"a factor of {apart[0]}, validation losses by one of {apart[1]} (as in {name}; geometric means over "
                "the methods)."
            )
    return f"{text}\n\n" + "\n".join(lines)


def _by_the_end(records: Sequence[Record], source: str) -> tuple[int, Sequence[Record]]:
    """Return how many epochs a published experiment has, and runs as they were by then, if their epochs are as long."""
    published = vgg.published_ends()
    length = int(published.loc[published["source"] == source, "epochs"].iloc[0])
    if all(vgg.extent(r)[1] != vgg.IMAGES or r.epochs["epoch"].max() <= length for r in records):
        return length, records
    return length, _until(records, length)


def _until(records: Sequence[Record], epoch: int) -> list[Record]:
    """Return runs as they were at the end of an epoch."""
    return [replace(r, epochs=r.epochs[r.epochs["epoch"] <= epoch]) for r in records]


def _shortened(records: Sequence[Record]) -> list[Sequence[Record]]:
    """Return runs as they were at the end of each published experiment that is shorter."""
    found = [_by_the_end(records, source)[1] for source in vgg.SOURCES]
    return [by_then for by_then in found if by_then is not records]


def _speaks_for(records: Sequence[Record], where: str) -> str:
    """Say of which network methods diverge that diverge in no published run, where those of the other do not."""
    lost = {
        name: {r.spec.method for r in group if r.outcome == "diverged"}
        for (name,), group in vgg.grouped(records, "network")
    }
    for name, other in itertools.permutations(lost, 2):
        if lost[name] and not lost[other]:
            methods = several([m for m in METHODS if m in lost[name]], LABELS.get)
            return (
                f"With the network of {name} {methods} diverged; with that of {other} no run did, with the same β, "
                f"and neither published run did. {where.capitalize()} that speaks against {name}."
            )
    return ""


def _verdict(pairs: list[list[float]]) -> str | Noted:
    """Return whether the first is lower, with the two means below it."""
    if not pairs:
        return "not run"
    lower = sum(a < b for a, b in pairs)
    word = ("yes" if lower else "no") if len(pairs) == 1 else f"in {lower} of {len(pairs)} seeds"
    a, b = (significant(mean) if np.isfinite(mean) else "diverged" for mean in np.mean(pairs, axis=0))
    return Noted(word, f"{a}, {b}")


def _pairs(records: Sequence[Record], quantity: str, first: str, second: str) -> list[list[float]]:
    """Return two methods' values of a quantity, a pair for each seed that both have."""
    column = {"train_end": "train_loss", "valid_end": "valid_loss", "valid_best": "best_valid_loss"}[quantity]
    finals = frames.finals(records, LAST).set_index(["method", "seed"])[column]
    seeds = [seed for method, seed in finals.index if method == first and (second, seed) in finals.index]
    return [[finals[first, seed], finals[second, seed]] for seed in seeds]


def _precedent(fell: Sequence[Record]) -> list[str]:
    """Return a sentence on the authors' own run of a method whose run of the whole network fell back."""
    published = vgg.published_ends().set_index(["source", "method"]).loc["authors"]
    told = []
    for method in sorted({r.spec.method for r in vgg.whole(fell)}):
        theirs, base = published.loc[method], published.loc[BASELINE[method]]
        told.append(
            f"The authors' published run of {LABELS[method]} made such a leap, too: its α is largest, "
            f"{significant(theirs['alpha_max'])}, at iteration {theirs['alpha_max_at']:,.0f} of "
            f"{theirs['epochs'] * vgg.STEPS:,}, and below zero in {vgg.share_of(theirs['negative'])} of all. It ended "
            f"at a validation loss of {significant(theirs['valid_end'])}, their {LABELS[BASELINE[method]]} at "
            f"{significant(base['valid_end'])}."
        )
    return told


def _guessing(records: Sequence[Record]) -> list[str]:
    """Return a sentence for each method of which a run's training loss still is that of guessing, or near it."""
    told = []
    for (method,), group in vgg.grouped(records, "method"):
        losses = [r.epochs["train_loss"].iloc[-1] for r in group if r.outcome != "diverged"]
        still = [loss for loss in losses if loss > GUESSING * np.log(CLASSES)]
        if still:
            little = f"; its orderings against {LABELS[BASELINE[method]]} say little" if method in BASELINE else ""
            told.append(
                f"{LABELS[method]} hardly learnt anything in {vgg.which_runs(still, group)}: "
                f"{several(still, significant)}, where guessing has a training loss of ln {CLASSES} = "
                f"{significant(np.log(CLASSES))}{little}."
            )
    return told


def _lost(records: Sequence[Record]) -> list[str]:
    """Return a sentence for each method of which a run diverged."""
    told = []
    for (method,), group in vgg.grouped(records, "method"):
        at = sorted(r.iterations for r in group if r.outcome == "diverged")
        if at:
            told.append(
                f"{LABELS[method]} diverged in {vgg.which_runs(at, group)}, at iteration {several(at, '{:,}'.format)}."
            )
    return told


def _still(records: Sequence[Record]) -> dict[str, float]:
    """Return the hypergradient methods whose alpha hardly moved, each with the most by which it did, relative."""
    found = {}
    for (method,), group in vgg.grouped(records, "method"):
        moved = [abs(r.epochs["alpha"].iloc[-1] / r.spec.alpha0 - 1) for r in group if r.outcome != "diverged"]
        if method in BASELINE and moved and max(moved) < STILL:
            found[method] = max(moved)
    return found


def _accuracy(ends: pd.Series, records: Sequence[Record]) -> str:
    """Return the mean validation accuracy at the end in per cent, or that a run diverged."""
    lost = [r.outcome == "diverged" for r in records]
    return spread(np.where(lost, np.nan, 100 * ends)) if any(lost) else f"{100 * ends.mean():.1f} %"
