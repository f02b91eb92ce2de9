"""The book in one minute: what of the paper was reproduced, what was not, and what is new."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from hdlib.report import frames, vgg
from hdlib.report.style import LABELS, counted, power_of_ten, relative, significant
from hdlib.runs import BASELINE, PAPER_FIELDS, Record
from hdlib.runs.divergence import PAPER_RATES

METHODS = ("sgd_hd", "adam_hd")
STATED = 1e-4  # the paper's beta of its Figure 2
STAYS = 0.1  # relative change of alpha below which it hardly moves
NEAR = 1.01  # factor up to which losses lie beside each other
TUNED, TUNED_BETA = (20, 1e-3), 1e-7  # epochs and alpha_0 of its Figure 3 for logistic regression; beta of Adam-HD
IMPLIED = {"sgd_hd": 1e-5, "adam_hd": 1e-7}  # what its curves of the perceptron imply


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


def one_minute(logreg: Sequence[Record], mlp: Sequence[Record], everything: Sequence[Record]) -> str:
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
    whole = [r for r in vgg.whole(pictures) if r.spec.epochs >= vgg.EPOCHS]
    fixed = [[r for r in records if r.spec.rule != "auto"] for records in (logreg, mlp)]
    as_stated = dict.fromkeys(METHODS, STATED)
    lines = [
        f"**Reproduced.** On logistic regression it hardly matters where α starts. From {_rates(logreg)}, "
        f"{_levels(logreg, as_stated)} ({_scale(fixed[0])}). {_validation(logreg, as_stated)}",
        f"**Not reproduced.** The paper states β = {power_of_ten(STATED)} for all of its Figure 2. With it Adam-HD "
        f"does not train the perceptron at all: {number} {len(stated)} runs diverge"
        + (f", after {min(lost)} to {max(lost)} iterations" if lost else "")
        + f". The paper's own curves of it fit {power_of_ten(IMPLIED['adam_hd'])} better, and those of SGD-HD "
        f"{power_of_ten(IMPLIED['sgd_hd'])}.",
        "**Only in part.** On the perceptron it still matters where α starts. With the two β that the curves imply, "
        f"{_over_best(mlp, IMPLIED)} ({_scale(fixed[1])}).",
        *_handicap(everything),
        f"**New.** Why Adam-HD diverges there, above which β it does, and a rule that needs none. "
        f"{_automatic(logreg, mlp)}",
    ]
    if not whole:
        lines.append(
            f"**Not tested.** The paper's [VGG on CIFAR-10](vgg) over its {vgg.EPOCHS} epochs, for want of a GPU. "
            f"{vgg.bottom_line(pictures)} [Which network](vgg-network) the published runs trained is not settled."
        )
    return "\n".join(f"- {line}" for line in lines)


def _handicap(records: Sequence[Record]) -> list[str]:
    """Say what the decay of the paper's Adam is worth, where runs of its Figure 3 say so."""
    same = [
        r
        for r in records
        if (r.spec.task, r.spec.model, r.spec.epochs, r.spec.alpha0) == ("mnist", "logreg", *TUNED)
        and r.spec.changed <= PAPER_FIELDS
    ]
    adapted = [r for r in same if (r.spec.method, r.spec.rule, r.spec.beta) == ("adam_hd", "additive", TUNED_BETA)]
    decayed, plain = ([r for r in same if (r.spec.method, r.spec.decay) == ("adam", d)] for d in ("inv_sqrt", "none"))
    if not (adapted and decayed and plain):
        return []
    ends = [significant(frames.finals(runs)["train_loss"].mean()) for runs in (adapted, decayed, plain)]
    epochs, alpha0 = TUNED
    return [
        "**An uneven comparison.** On logistic regression the paper's Adam decays as α₀/√t, by its own curves, and its "
        f"Adam-HD does not. From α₀ = {power_of_ten(alpha0)}, after {epochs} epochs, Adam-HD ends at {ends[0]}, such "
        f"an Adam at {ends[1]}, and one that does not decay at {ends[2]} "
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
        told.append(
            f"{LABELS[method]} ends at training losses of {_range(ours)}, where {LABELS[BASELINE[method]]} without it "
            f"ends at {_range(theirs)}"
        )
    return "; ".join(told)


def _over_best(records: Sequence[Record], betas: dict[str, float | str]) -> str:
    """Say how many times the training loss of the best baseline each method ends at.

    Where alpha hardly moves from the baseline's best rate, that one start is told apart from the others.
    """
    told = []
    for method, beta in betas.items():
        ours, theirs = _ends(records, method, beta)
        best, base = theirs.idxmin(), LABELS[BASELINE[method]]
        ratios = ours / theirs[best]
        ends = [r.epochs["alpha"].iloc[-1] for r in _runs(records, method, beta) if r.spec.alpha0 == best]
        stays = len(ratios) > 1 and len(ends) and all(abs(alpha / best - 1) < STAYS for alpha in ends)
        told.append(
            f"{LABELS[method]}, started at the best fixed rate of {base}, {power_of_ten(best)}, hardly moves α and "
            f"ends {relative(ratios[best], ratios[best])} that rate's training loss; from the other "
            f"{len(ratios) - 1} starts it ends at {_range(ratios.drop(best), 2)} times that"
            if stays
            else f"{LABELS[method]} ends at {_range(ratios, 2)} times the training loss of the best {base}"
        )
    return "; ".join(told)


def _validation(records: Sequence[Record], betas: dict[str, float | str]) -> str:
    """Say at which validation losses each method ends, and whether above what is best of its baseline."""
    told = []
    for method, beta in betas.items():
        ours, theirs = _ends(records, method, beta, "valid_loss")
        best = theirs.min()
        where = "above" if ours.min() > NEAR * best else "below" if ours.max() < best / NEAR else "beside"
        told.append(
            f"{LABELS[method]} ends at {_range(ours)}, {where} the {significant(best)} of the best fixed "
            f"{LABELS[BASELINE[method]]}"
        )
    return f"In validation {'; '.join(told)}."


def _automatic(logreg: Sequence[Record], mlp: Sequence[Record]) -> str:
    """Say how the rule without a beta fares, beside the paper's rule with the beta that suits it."""
    runs, scales, best, lower, total, plain = [], [], "", 0, 0, 0
    for name, records, betas in (
        ("logistic regression", logreg, dict.fromkeys(METHODS, STATED)),
        ("the perceptron", mlp, IMPLIED),
    ):
        automatic = [r for r in records if r.spec.rule == "auto"]
        if not automatic:
            continue
        runs += automatic
        scales.append(f"{name} {_scale(automatic)}")
        for method in METHODS:
            ours, theirs = _ends(records, method, "auto")
            lower, total = lower + int((ours < theirs[ours.index]).sum()), total + len(ours)
            ours, theirs = _ends(records, method, betas[method])
            plain += int((ours < theirs[ours.index]).sum())
        if records is mlp:
            best = f" On the perceptron {_over_best(records, dict.fromkeys(METHODS, 'auto'))}."
    if not runs:
        return "That rule was not run into this store."
    lost = sum(r.outcome == "diverged" for r in runs)
    alike = {frames.coinciding([r for r in own if r.spec.rule == "auto"]) for own in (logreg, mlp)} - {""}
    same = f" Of the automatic ones {'; '.join(sorted(alike))}, so these are the same runs." if alike else ""
    return (
        f"From the paper's six α₀, {lost or 'none'} of its {len(runs)} runs diverged ({'; '.join(scales)}). It ends at "
        f"a lower training loss than the plain method from the same α₀ in {lower} of {total} cases; the paper's rule "
        f"does in {plain} (β = {power_of_ten(STATED)}, on the perceptron those that the curves imply).{same}{best} "
        "Where gradients carry no noise an [upper bound on α](automatic.ipynb#gradients-without-noise) makes it safer."
    )


def _rates(records: Sequence[Record]) -> str:
    rates = {r.spec.alpha0 for r in records}
    return f"{len(rates)} starts between {power_of_ten(min(rates))} and {power_of_ten(max(rates))}"


def _scale(records: Sequence[Record]) -> str:
    return f"{counted(records[0].spec.epochs, 'epoch')}, {counted(frames.seeds(records)[1], 'seed')}"


def _range(values: pd.Series, digits: int = 3) -> str:
    return f"{significant(values.min(), digits)} to {significant(values.max(), digits)}"
