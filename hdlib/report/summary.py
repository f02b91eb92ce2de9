"""The book in short: what of the paper was reproduced, what was not, and what is new."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pandas as pd

from hdlib.report import automatic_compared, frames, grid, paper, vgg
from hdlib.report.paper import STATED, TUNED_FROM, tuning_epochs
from hdlib.report.style import LABELS, counted, power_of_ten, scientific, several, significant
from hdlib.runs import BASELINE, PAPER_FIELDS, RECORDING_FIELDS, Record
from hdlib.runs.divergence import PAPER_RATES

METHODS = ("sgd_hd", "adam_hd")
ARRIVAL_FIELDS = frozenset(("target_loss", "target_of", "max_iterations"))  # in which runs of its Figure 4 differ
APART = 2.0  # factor between the losses of a configuration's seeds from which on they are told
IMPLIED = {method: beta for (model, method), beta in paper.IMPLIED.items() if model == "mlp"}


def online_tuning(records: Sequence[Record], model: str, epochs: int) -> list[Record]:
    """Return the recorded runs from the paper's six alpha_0, of both rules and the automatic beta."""
    return [
        r
        for r in records
        if (r.spec.task, r.spec.model, r.spec.epochs) == ("mnist", model, epochs)
        and r.spec.alpha0 in PAPER_RATES
        and r.spec.changed <= PAPER_FIELDS
        and r.spec.decay != "cosine"  # which the paper has not
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
        f"**Reproduced.** On logistic regression it hardly matters where α starts. From {_rates(logreg)} training "
        f"losses end at {_levels(logreg, as_stated)} ({_scale(fixed[0])}), validation losses at "
        f"{_beside_best(logreg, as_stated)}.",
        *_tuned(everything),
        *_grid_search(everything),
        f"**Not reproduced.** The paper states β = {power_of_ten(STATED)} for all of its Figure 2. With it Adam-HD "
        f"does not train the perceptron at all: {number} {len(stated)} runs diverge"
        + (f", after {min(lost)} to {max(lost)} iterations" if lost else "")
        + f". The paper's own curves of the perceptron are [fitted better](papers-beta) by "
        f"{power_of_ten(IMPLIED['adam_hd'])} (Adam-HD) and {power_of_ten(IMPLIED['sgd_hd'])} (SGD-HD).",
        f"**Only in part.** On the perceptron, with the two β that the curves imply and without tuning α₀, "
        f"{_below_baseline(mlp, IMPLIED)}. But it still matters where α starts: {_over_best(mlp, IMPLIED)} "
        f"({_scale(fixed[1])}).",
        *_handicap(everything),
        "**New.** [Why Adam-HD diverges](divergence) there, [above which β](critical-beta) it does, and "
        f"[a rule that needs none](automatic). {_automatic(logreg, mlp, everything)}",
    ]
    told = [*filter(None, (vgg.bottom_line(pictures), vgg.bottom_line_of_fewer_images(pictures)))]
    if vgg.complete(pictures):
        longest = max(pictures, key=lambda r: (r.spec.width_factor, r.spec.epochs))
        said = (
            f"**Run at the paper's length.** [VGG on CIFAR-10](vgg), the whole network as in {vgg.network(longest)}, "
            f"all {vgg.EPOCHS} epochs."
        )
    else:
        lead = "Tested only small" if told else "Not tested"
        said = f"**{lead}.** The paper's {vgg.EPOCHS} epochs of [VGG on CIFAR-10](vgg) were not run, for want of a GPU."
    network = (
        "The authors' published runs fit their code; the paper's figure shows [another network, perhaps the blog "
        "post's](vgg-network)."
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
    falls = (
        f" What it finds is a falling learning rate: α averages {scientific(first)} in the first epoch and "
        f"{'about 0' if abs(last) < first / 1e3 else scientific(last)} in the last."
        if last < first
        else ""
    )
    if cosine:
        ends = frames.finals(cosine)[["train_loss", "valid_loss"]].mean()
        falls += (
            f" An Adam whose learning rate follows a cosine from α₀ to zero ends at {significant(ends['train_loss'])} "
            f"and {significant(ends['valid_loss'])} ({counted(len(cosine), 'seed')})."
        )
    return [
        f"**{'Reproduced' if lower else 'Only in part'}.** With a β that was tuned, as in the paper's Figure 3, the "
        f"perceptron's Adam-HD ends after {adapted[0].spec.epochs} epochs at {significant(train / base_train, 2)} "
        f"times Adam's training loss ({significant(train)} against {significant(base_train)}), and at a validation "
        f"loss of {significant(valid)} against {significant(base_valid)}, {how} "
        f"(α₀ = {power_of_ten(TUNED_FROM)}, β = {power_of_ten(adapted[0].spec.beta)}, "
        f"{counted(len(shared), 'seed')})."
        f"{falls} [The other methods](tuning-mlp)."
    ]


def _figure_4(records: Sequence[Record], model: str) -> list[Record]:
    """Return the runs of the paper's Figure 4 for a model, those with the largest cap."""
    betas = {0.0, *paper.figure4()["beta"]}
    own = [
        r
        for r in records
        if (r.spec.task, r.spec.model, r.spec.target_of, r.spec.target_loss) == ("mnist", model, "minibatch", 0.29)
        and r.spec.changed <= PAPER_FIELDS | RECORDING_FIELDS | ARRIVAL_FIELDS
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
    total, within, several = int(cells["paper"].notna().sum()), grid.within(logreg), frames.seeds(logreg)[1] > 2
    text = (
        f"**{'Mostly reproduced' if 2 * within > total else 'Mostly not reproduced'}.** Of the {total} numbers of "
        f"iterations that the paper's Figure 4 prints for logistic regression, {within} lie within the range of our "
        f"{counted(frames.seeds(logreg)[1], 'seed')}"
        + (" (each of these within the others: {} to {})".format(*grid.own_within(logreg)) if several else "")
        + "."
    )
    if any(r.spec.method == "adam_hd" for r in mlp):
        here, there = (grid.cells(grid.reached(own)).query("method == 'adam_hd'") for own in (logreg, mlp))
        lost, lost_there = int(here["diverged"].sum()), int(there["diverged"].sum())
        lead = "The picture does not carry over to" if lost_there > lost else "With"
        text += (
            f" {lead} Adam-HD on the perceptron: of its cells {lost_there or 'none'} of {len(there)} diverged there "
            f"({counted(frames.seeds(mlp)[1], 'seed')}, at most {mlp[0].spec.max_iterations:,} iterations), and "
            f"{lost or 'none'} of {len(here)} on logistic regression."
        )
    return [f"{text} [Every cell](grid-search)."]


def _handicap(records: Sequence[Record]) -> list[str]:
    """Say what the decay of the paper's Adam is worth, where runs of its Figure 3 say so."""
    adapted, fixed, decayed, _ = _figure_3(records, "logreg")
    if not (adapted and decayed and fixed):
        return []
    ends = [significant(frames.finals(runs)["train_loss"].mean()) for runs in (adapted, decayed, fixed)]
    return [
        "**An uneven comparison.** On logistic regression the paper's Adam decays as α₀/√t, by its own curves, and its "
        f"Adam-HD does not. From α₀ = {power_of_ten(TUNED_FROM)}, after {adapted[0].spec.epochs} epochs, Adam-HD ends "
        f"at {ends[0]}, such an Adam at {ends[1]}, and one that does not decay at {ends[2]} "
        f"({counted(frames.seeds(adapted)[1], 'seed')})."
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
    runs = _runs(records, method, beta)
    seeds = {r.spec.seed for r in runs}
    fixed = [r for r in records if (r.spec.method, r.spec.decay) == (BASELINE[method], "none") and r.spec.seed in seeds]
    ended, stayed = (frames.finals(own).groupby("alpha0")[column].mean() for own in (runs, fixed))
    return ended, stayed


def _levels(records: Sequence[Record], betas: dict[str, float]) -> str:
    """Say between which training losses each method ends, and its baseline."""
    told = []
    for method, beta in betas.items():
        ours, theirs = _ends(records, method, beta)
        told.append(f"{_range(ours)} with {LABELS[method]} ({LABELS[BASELINE[method]]} {_range(theirs)})")
    return " and ".join(told)


def _below_baseline(records: Sequence[Record], betas: dict[str, float]) -> str:
    """Say from how many starts each method ends at a lower training loss than its baseline from the same alpha_0."""
    told = []
    for method, beta in betas.items():
        ours, theirs = _ends(records, method, beta)
        lower = int((ours < theirs.reindex(ours.index)).sum())
        told.append(f"in {lower or 'none'} of {counted(len(ours), 'start')} with {LABELS[method]}")
    return f"training losses end below those without HD from the same α₀ {' and '.join(told)}"


def _over_best(records: Sequence[Record], betas: dict[str, float | str]) -> str:
    """Say how many times the training loss of the best baseline each method ends at."""
    told = []
    for method, beta in betas.items():
        ours, theirs = _ends(records, method, beta)
        ratios = ours / theirs.min()
        best = [r for r in records if (r.spec.method, r.spec.decay) == (BASELINE[method], "none")]
        best = frames.finals([r for r in best if r.spec.alpha0 == theirs.idxmin()])["train_loss"]
        apart = f" (whose own seeds end at {_range(best)})" if best.max() > APART * best.min() else ""
        told.append(
            f"{_range(ratios, 2)} times that of the best fixed {LABELS[BASELINE[method]]}{apart} with {LABELS[method]}"
        )
    return f"they end at {' and '.join(told)}"


def _automatic(logreg: Sequence[Record], mlp: Sequence[Record], everything: Sequence[Record]) -> str:
    """Say how the rule without a beta fares: from its worst start, in validation, and on VGG."""
    names = {"logistic regression": logreg, "the perceptron": mlp}
    runs = {name: [r for r in own if r.spec.rule == "auto"] for name, own in names.items()}
    runs = {name: own for name, own in runs.items() if own}
    if not runs:
        return "That rule was not run into this store."
    lost = sum(r.outcome == "diverged" for own in runs.values() for r in own)
    scales: dict[str, list[str]] = {}
    for name, own in runs.items():
        scales.setdefault(_scale(own), []).append(name)
    told = [
        f"From the paper's six α₀, {lost or 'none'} of its {sum(map(len, runs.values()))} runs diverged "
        f"({'; '.join(f'{scale} on {several(on)}' for scale, on in scales.items())})."
    ]
    if "the perceptron" in runs:
        told.append(_worst_start(mlp))
    told += [_on_vgg(everything), "[The guide](guide.md#should-i-use-it) says where not to use it."]
    return " ".join(filter(None, told))


def _worst_start(records: Sequence[Record]) -> str:
    """Say how the automatic rule's worst start ends on the perceptron, and that of the paper's rule."""
    auto, ruled = (
        [_worst_over_best(records, method, betas[method]) for method in METHODS]
        for betas in (dict.fromkeys(METHODS, "auto"), IMPLIED)
    )
    lower: dict[str, list[str]] = {}
    for column, (method, beta) in itertools.product(("train_loss", "valid_loss"), IMPLIED.items()):
        ours, theirs = (_ends(records, method, which, column)[0] for which in ("auto", beta))
        lower.setdefault(column, []).append(str(int((theirs.reindex(ours.index) < ours).sum())))
    sgd, adam = (LABELS[BASELINE[method]] for method in METHODS)
    starts = counted(len(_ends(records, METHODS[0], "auto")[0]), "start")
    train, valid = lower["train_loss"], lower["valid_loss"]
    return (
        f"On the perceptron, from the worst of {starts}, it ends at {auto[0]} times the training loss of the best "
        f"fixed {sgd} and {auto[1]} times that of the best {adam}; the paper's rule, with the β that the curves imply, "
        f"at {ruled[0]} and {ruled[1]} times. It is safer, and not always better: start by start, the paper's rule "
        f"with that β ends lower in training from {train[0]} (SGD-HD) and {train[1]} (Adam-HD) of {starts}, and in "
        f"validation from {' and '.join(valid)}."
    )


def _worst_over_best(records: Sequence[Record], method: str, beta: float | str) -> str:
    """Return the highest training loss over starts, over that of the best fixed rate, as text."""
    ours, theirs = _ends(records, method, beta)
    return significant(ours.max() / theirs.min(), 2)


def _beside_best(records: Sequence[Record], betas: dict[str, float]) -> str:
    """Say between which validation losses each method ends, beside the best fixed rate's."""
    told = []
    for method, beta in betas.items():
        ours, theirs = _ends(records, method, beta, "valid_loss")
        told.append(
            f"{_range(ours)} with {LABELS[method]} (best fixed {LABELS[BASELINE[method]]} {significant(theirs.min())})"
        )
    return " and ".join(told)


def _on_vgg(records: Sequence[Record]) -> str:
    """Say in how many runs of VGG the automatic rule ends below the best fixed rate, and in how many with Adam-HD."""
    adam = [r for r in records if r.spec.method in ("adam", "adam_hd")]
    every, own = automatic_compared.on_vgg(records), automatic_compared.on_vgg(adam)
    return f"{every.removesuffix('.')}, with Adam-HD in {own.rpartition(' in ')[2]}" if own else every


def _rates(records: Sequence[Record]) -> str:
    rates = {r.spec.alpha0 for r in records}
    return f"{len(rates)} starts between {power_of_ten(min(rates))} and {power_of_ten(max(rates))}"


def _scale(records: Sequence[Record]) -> str:
    return f"{counted(records[0].spec.epochs, 'epoch')}, {counted(frames.seeds(records)[1], 'seed')}"


def _range(values: pd.Series, digits: int = 3) -> str:
    return f"{significant(values.min(), digits)} to {significant(values.max(), digits)}"
