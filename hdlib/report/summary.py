"""The book in short: what of the paper was reproduced, what was not, and what is new."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from hdlib.report import automatic_compared, frames, grid, paper, vgg, vgg_published
from hdlib.report.paper import STATED, TUNED_FROM, tuning_epochs
from hdlib.report.style import LABELS, counted, power_of_ten, relative, scientific, several, significant
from hdlib.runs import BASELINE, PAPER_FIELDS, RECORDING_FIELDS, Record
from hdlib.runs.experiments import PAPER_RATES

METHODS = ("sgd_hd", "adam_hd")
ARRIVAL_FIELDS = frozenset(("target_loss", "target_of", "max_iterations"))  # in which runs of its Figure 4 differ
IMPLIED = {method: beta for (model, method), beta in paper.IMPLIED.items() if model == "mlp"}


def online_tuning(records: Sequence[Record], model: str, epochs: int) -> list[Record]:
    """Return the recorded runs from the paper's six alpha_0, of both rules and the automatic beta."""
    return [
        r
        for r in records
        if (r.spec.task, r.spec.model, r.spec.epochs) == ("mnist", model, epochs)
        and r.spec.alpha0 in PAPER_RATES
        and r.spec.as_in_the_paper()
        and not r.spec.changed & RECORDING_FIELDS  # or a run that was recorded twice would count twice
    ]


def in_short(logreg: Sequence[Record], mlp: Sequence[Record], everything: Sequence[Record]) -> str:
    """Return the summary as a list.

    Args:
        logreg: online tuning of logistic regression.
        mlp: that of the perceptron.
        everything: all recorded runs.
    """
    if not logreg or not mlp:
        return "Of [online tuning](online-tuning), from which this page draws, not enough is recorded in this store."
    stated = [r for r in mlp if r.spec.method == "adam_hd" and r.spec.rule == "additive" and r.spec.beta == STATED]
    lost = [r.iterations for r in stated if r.outcome == "diverged"]
    number = "all" if len(lost) == len(stated) else f"{len(lost)} of"
    pictures = [r for r in everything if (r.spec.model, r.spec.task) == ("vgg", "cifar10")]
    fixed = [[r for r in records if r.spec.rule != "auto"] for records in (logreg, mlp)]
    as_stated = dict.fromkeys(METHODS, STATED)
    lines = [
        f"**Reproduced.** On [logistic regression](online-tuning-logreg) it hardly matters where α starts. From "
        f"{_rates(logreg)} final training losses differ by a factor of {_apart(logreg, as_stated)}; validation losses "
        f"end {_validation(logreg, as_stated)} that of the best fixed rate ({_scale(fixed[0])}).",
        *_tuned(everything),
        *_grid_search(everything),
        f"**Not reproduced.** With the β that the paper states, {power_of_ten(STATED)}, Adam-HD does not train the "
        f"perceptron at all: {number} {len(stated)} runs diverge"
        + (f", within {counted(max(lost), 'iteration')}" if lost else "")
        + f". The paper's own curves are [fitted better](papers-beta) by {power_of_ten(IMPLIED['adam_hd'])} (Adam-HD) "
        f"and {power_of_ten(IMPLIED['sgd_hd'])} (SGD-HD).",
        "**Only in part.** With these two β [the perceptron](online-tuning-mlp-implied) ends at a lower training loss "
        f"than without HD {_below_baseline(mlp, IMPLIED)}. But it still matters where α starts: from the worst one it "
        f"ends at {' and '.join(_worst_over_best(mlp, IMPLIED))} times the training loss of the best fixed SGD and "
        f"Adam ({_scale(fixed[1])}).",
        *_handicap(everything),
        "**New.** [Why Adam-HD diverges](divergence) on the perceptron, [above which β](critical-beta), and "
        f"[a rule that needs none](automatic). {_automatic(logreg, mlp, everything)}",
    ]
    told = [*filter(None, (vgg_published.bottom_line(pictures), vgg_published.bottom_line_of_fewer_images(pictures)))]
    if vgg.complete(pictures):
        longest = max(pictures, key=lambda r: (r.spec.width_factor, r.spec.epochs))
        said = f"**Run at the paper's length.** [VGG on CIFAR-10](vgg), as in {vgg.VARIANTS[longest.spec.variant]}."
    else:
        lead = "Tested only small" if told else "Not tested"
        said = f"**{lead}.** The paper's {vgg.EPOCHS} epochs of [VGG on CIFAR-10](vgg) were not run, for want of a GPU."
    network = (
        "The losses of the paper's figure fit neither that code nor [what else describes its network](vgg-network)."
    )
    lines.append(" ".join([said, *told, network]))
    return "\n".join(f"- {line}" for line in lines)


def _figure_3(records: Sequence[Record], model: str) -> list[list[Record]]:
    """Return the runs of the paper's Figure 3 for a model: of Adam-HD, of Adam, and of two whose rates fall."""
    same = [
        r
        for r in records
        if (r.spec.task, r.spec.model, r.spec.alpha0) == ("mnist", model, TUNED_FROM)
        and r.spec.epochs == tuning_epochs(model)
        and r.spec.changed <= PAPER_FIELDS
    ]
    beta = paper.tuned_beta("adam_hd", model)
    adapted = [r for r in same if (r.spec.method, r.spec.rule, r.spec.beta) == ("adam_hd", "additive", beta)]
    return [
        adapted,
        *(
            [r for r in same if (r.spec.method, r.spec.decay) == ("adam", decay)]
            for decay in ("none", "inv_sqrt", "cosine")
        ),
    ]


def _tuned(records: Sequence[Record]) -> list[str]:
    """Say where Adam-HD ends on the perceptron with the beta of the paper's Figure 3, and how its alpha moves."""
    adapted, fixed, _, cosine = _figure_3(records, "mlp")
    shared = {r.spec.seed for r in adapted} & {r.spec.seed for r in fixed}
    adapted, fixed = ([r for r in runs if r.spec.seed in shared] for runs in (adapted, fixed))
    if not shared or any(r.outcome == "diverged" for r in (*adapted, *fixed)):
        return []
    ours, theirs = (frames.finals(own).set_index("seed")[["train_loss", "valid_loss"]] for own in (adapted, fixed))
    lower = (ours < theirs).all().all()
    how = "both lower in every seed" if lower else "in the mean"
    first, last = (sum(r.epochs["alpha"].iloc[i] for r in adapted) / len(adapted) for i in (1, -1))
    (train, valid), (base_train, base_valid) = ours.mean(), theirs.mean()
    told = (
        f" Its α falls, to {'about 0' if abs(last) < first / 1e3 else scientific(last)} in the last epoch."
        if last < first
        else ""
    )
    if cosine:
        ends = frames.finals(cosine)[["train_loss", "valid_loss"]].mean().map(significant)
        told += (
            f" An Adam whose α follows a cosine to zero ends at {' and '.join(ends)} ({counted(len(cosine), 'seed')})."
        )
    return [
        f"**{'Reproduced' if lower else 'Only in part'}.** With a β that was tuned, as in the paper's Figure 3, [the "
        f"perceptron's](tuning-mlp) Adam-HD ends at a training loss of {significant(train)} (Adam: "
        f"{significant(base_train)}) and a validation loss of {significant(valid)} (Adam: {significant(base_valid)}), "
        f"{how} ({_scale(adapted)}).{told}"
    ]


def _figure_4(records: Sequence[Record], model: str) -> list[Record]:
    """Return the runs of the paper's Figure 4 for a model, those with the largest cap."""
    betas = {0.0, *paper.figure4()["beta"]}
    own = [
        r
        for r in records
        if (r.spec.task, r.spec.model, r.spec.target_of, r.spec.target_loss)
        == ("mnist", model, "minibatch", paper.TARGET)
        and r.spec.as_in_the_paper(*ARRIVAL_FIELDS)
        and (r.spec.rule, r.spec.alpha0 in PAPER_RATES, r.spec.beta in betas) == ("additive", True, True)
    ]
    cap = max((r.spec.max_iterations or 0 for r in own), default=0)
    return [r for r in own if r.spec.max_iterations == cap]


def _grid_search(records: Sequence[Record]) -> list[str]:
    """Say how many of the numbers of the paper's Figure 4 lie within our seeds, and what the perceptron does there."""
    logreg, mlp = (_figure_4(records, model) for model in ("logreg", "mlp"))
    if not logreg:
        return []
    cells = grid.cells(grid.reached(logreg))
    total, within = int(cells["paper"].notna().sum()), grid.within(logreg)
    text = (
        f"**{'Mostly reproduced' if 2 * within > total else 'Mostly not reproduced'}.** Of the {total} numbers of "
        f"iterations that the paper's [Figure 4](grid-search) prints for logistic regression, {within} lie within the "
        f"range of our {counted(frames.seeds(logreg)[1], 'seed')}."
    )
    if any(r.spec.method == "adam_hd" for r in mlp):
        here, there = (grid.cells(grid.reached(own)).query("method == 'adam_hd'") for own in (logreg, mlp))
        lost, lost_there = int(here["diverged"].sum()), int(there["diverged"].sum())
        text += (
            f" Adam-HD diverges in {lost or 'none'} of its {len(here)} cells there, and on the perceptron in "
            f"{lost_there or 'none'} of {len(there)} ({counted(frames.seeds(mlp)[1], 'seed')}, at most "
            f"{mlp[0].spec.max_iterations:,} iterations)."
        )
    return [text]


def _handicap(records: Sequence[Record]) -> list[str]:
    """Say what the decay of the paper's Adam is worth, where runs of its Figure 3 say so."""
    adapted, fixed, decayed, _ = _figure_3(records, "logreg")
    if not (adapted and decayed and fixed):
        return []
    ends = [significant(frames.finals(runs)["train_loss"].mean()) for runs in (adapted, decayed, fixed)]
    return [
        "**An uneven comparison.** On logistic regression the paper's Adam decays as α₀/√t, by its own curves, and its "
        f"Adam-HD does not. [From one α₀](tuning-logreg) Adam-HD ends at a training loss of {ends[0]}, such an Adam at "
        f"{ends[1]}, and one that does not decay at {ends[2]} ({_scale(adapted)})."
    ]


def _runs(records: Sequence[Record], method: str, beta: float | str) -> list[Record]:
    """Return the runs of a method with a beta, or with the rule that needs none."""
    rule = "auto" if beta == "auto" else "additive"
    own = [r for r in records if (r.spec.method, r.spec.rule) == (method, rule)]
    return [r for r in own if beta == "auto" or r.spec.beta == beta]


def _ends(
    records: Sequence[Record], method: str, beta: float | str, column: str = "train_loss"
) -> tuple[pd.Series, pd.Series]:
    """Return mean final losses by alpha_0, with HD and without, over the seeds that both have."""
    fixed = [r for r in records if (r.spec.method, r.spec.decay) == (BASELINE[method], "none")]
    ours, theirs = frames.shared_seeds(*(frames.finals(own) for own in (_runs(records, method, beta), fixed)))
    return ours.groupby("alpha0")[column].mean(), theirs.groupby("alpha0")[column].mean()


def _apart(records: Sequence[Record], betas: dict[str, float]) -> str:
    """Say how many times the lowest training loss over starts the highest is, with each method and its baseline."""
    told = []
    for method, beta in betas.items():
        ours, theirs = (significant(ends.max() / ends.min(), 3) for ends in _ends(records, method, beta))
        told.append(f"{ours} with {LABELS[method]} ({LABELS[BASELINE[method]]}: {theirs})")
    return " and ".join(told)


def _validation(records: Sequence[Record], betas: dict[str, float]) -> str:
    """Say where validation losses end, to be followed by the best baseline's."""
    pairs = (_ends(records, method, beta, "valid_loss") for method, beta in betas.items())
    ratios = pd.concat([ours / theirs.min() for ours, theirs in pairs])
    return relative(ratios.min(), ratios.max())


def _below_baseline(records: Sequence[Record], betas: dict[str, float]) -> str:
    """Say from how many starts each method ends at a lower training loss than its baseline from the same alpha_0."""
    told = []
    for method, beta in betas.items():
        ours, theirs = _ends(records, method, beta)
        lower = int((ours < theirs.reindex(ours.index)).sum())
        told.append(f"{lower or 'none'} of {counted(len(ours), 'start')} ({LABELS[method]})")
    return f"from {' and '.join(told)}"


def _automatic(logreg: Sequence[Record], mlp: Sequence[Record], everything: Sequence[Record]) -> str:
    """Say how the rule without a beta fares: from its worst start, in validation, and on VGG."""
    names = {"logistic regression": logreg, "the perceptron": mlp}
    runs = {name: [r for r in own if r.spec.rule == "auto"] for name, own in names.items()}
    runs = {name: own for name, own in runs.items() if own}
    if not runs:
        return "That rule was not run into this store."
    lost = sum(r.outcome == "diverged" for own in runs.values() for r in own)
    told = [
        f"Of its {sum(map(len, runs.values()))} runs from the paper's six α₀ on {several(list(runs))}, "
        f"{lost or 'none'} diverged."
    ]
    if "the perceptron" in runs:
        told.append(_worst_start(mlp))
    told += [_on_vgg(everything), "[The guide](guide.md#should-i-use-it) says where not to use it."]
    return " ".join(filter(None, told))


def _worst_start(records: Sequence[Record]) -> str:
    """Say how the automatic rule ends on the perceptron from its worst start, and beside the paper's, by start."""
    auto, ruled = (_worst_over_best(records, betas) for betas in (dict.fromkeys(METHODS, "auto"), IMPLIED))
    lower = []
    for method, beta in IMPLIED.items():
        ours, theirs = (_ends(records, method, which)[0] for which in ("auto", beta))
        lower.append(f"{int((theirs.reindex(ours.index) < ours).sum()) or 'none'} ({LABELS[method]})")
    sgd, adam = (LABELS[BASELINE[method]] for method in METHODS)
    starts = counted(len(ours), "start")
    return (
        f"From its worst start on the perceptron it ends at {auto[0]} and {auto[1]} times the training loss of the "
        f"best fixed {sgd} and {adam}, the paper's rule with the two β at {ruled[0]} and {ruled[1]} times; but from "
        f"{' and '.join(lower)} of {starts} the paper's rule ends lower."
    )


def _worst_over_best(records: Sequence[Record], betas: Mapping[str, float | str]) -> list[str]:
    """Return each method's highest final training loss over starts, over that of its best fixed rate, as text."""
    both = (_ends(records, method, beta) for method, beta in betas.items())
    return [significant(ours.max() / theirs.min(), 2) for ours, theirs in both]


def _on_vgg(records: Sequence[Record]) -> str:
    """Say in how many runs of VGG the automatic rule ends below the best fixed rate, and in how many with Adam-HD."""
    ends, told = automatic_compared.vgg_ends(records), automatic_compared.on_vgg(records)
    own = ends[ends["method"] == "adam_hd"]
    return f"{told.removesuffix('.')}, with Adam-HD in {automatic_compared.told_of(own)}." if len(own) else told


def _rates(records: Sequence[Record]) -> str:
    rates = {r.spec.alpha0 for r in records}
    return f"{len(rates)} starts between {power_of_ten(min(rates))} and {power_of_ten(max(rates))}"


def _scale(records: Sequence[Record]) -> str:
    return f"{counted(records[0].spec.epochs, 'epoch')}, {counted(frames.seeds(records)[1], 'seed')}"
