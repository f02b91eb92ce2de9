"""The book in one minute: what of the paper was reproduced, what was not, and what is new."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from hdlib.report import frames, vgg
from hdlib.report.style import LABELS, counted, power_of_ten, significant
from hdlib.runs import BASELINE, PAPER_FIELDS, Record
from hdlib.runs.divergence import PAPER_RATES

METHODS = ("sgd_hd", "adam_hd")
STATED = 1e-4  # the paper's beta of its Figure 2
IMPLIED = {"sgd_hd": 1e-5, "adam_hd": 1e-7}  # what its curves of the perceptron imply


def online_tuning(records: Sequence[Record], model: str, epochs: int) -> list[Record]:
    """Return the recorded runs from the paper's six alpha_0, of both rules and the automatic beta."""
    return [
        r
        for r in records
        if (r.spec.task, r.spec.model, r.spec.epochs) == ("mnist", model, epochs)
        and r.spec.alpha0 in PAPER_RATES
        and r.spec.changed <= PAPER_FIELDS
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
    whole = [r for r in vgg.whole([r for r in everything if r.spec.model == "vgg"]) if r.spec.epochs >= vgg.EPOCHS]
    fixed = [[r for r in records if r.spec.rule != "auto"] for records in (logreg, mlp)]
    lines = [
        f"**Reproduced.** On logistic regression it hardly matters where α starts. From {_rates(logreg)}, "
        f"{_levels(logreg, dict.fromkeys(METHODS, STATED))} ({_scale(fixed[0])}).",
        "**Only in part.** On the perceptron it still matters where α starts. With the β that the paper's curves "
        f"imply, {_levels(mlp, IMPLIED, of_best=True)} ({_scale(fixed[1])}).",
        f"**Not reproduced.** With the β that the paper states, {power_of_ten(STATED)}, Adam-HD does not train the "
        f"perceptron at all: {number} {len(stated)} runs diverge"
        + (f", after {min(lost)} to {max(lost)} iterations." if lost else "."),
        f"**New.** Why that is so, from which β on, and a rule that needs no β: {_automatic(logreg, mlp)}.",
    ]
    if not whole:
        lines.append(
            f"**Not tested.** The paper's VGG on CIFAR-10 over its {vgg.EPOCHS} epochs, for want of a GPU; what was "
            "run of it is smaller or shorter, and says so."
        )
    return "\n".join(f"- {line}" for line in lines)


def _ends(records: Sequence[Record], method: str, beta: float | str) -> tuple[pd.Series, pd.Series]:
    """Return mean final training losses by alpha_0, with HD and without, over the seeds that both have."""
    finals = frames.finals([r for r in records if r.spec.rule != "multiplicative" and r.spec.decay == "none"])
    automatic = finals["rule"] == "auto"
    ours = finals[
        (finals["method"] == method) & (automatic if beta == "auto" else ~automatic & (finals["beta"] == beta))
    ]
    theirs = finals[(finals["method"] == BASELINE[method]) & finals["seed"].isin(ours["seed"])]
    ended, fixed = (runs.groupby("alpha0")["train_loss"].mean() for runs in (ours, theirs))
    return ended, fixed


def _levels(records: Sequence[Record], betas: dict[str, float], of_best: bool = False) -> str:
    """Say between which losses each method ends, and its baseline; or how many times the loss of the best baseline."""
    told = []
    for method, beta in betas.items():
        (ours, theirs), base = _ends(records, method, beta), LABELS[BASELINE[method]]
        told.append(
            f"{LABELS[method]} ends at {_range(ours / theirs.min(), 2)} times the training loss of the best {base}"
            if of_best
            else f"{LABELS[method]} ends at training losses of {_range(ours)}, where {base} without it ends at "
            f"{_range(theirs)}"
        )
    return "; ".join(told)


def _automatic(logreg: Sequence[Record], mlp: Sequence[Record]) -> str:
    """Say how the rule without a beta fares, beside the paper's rule with the beta that suits it."""
    runs, scales, best, lower, total, plain, plain_total = [], [], "", 0, 0, 0, 0
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
            plain, plain_total = plain + int((ours < theirs[ours.index]).sum()), plain_total + len(ours)
        if records is mlp:
            best = f". On the perceptron {_levels(records, dict.fromkeys(METHODS, 'auto'), of_best=True)}"
    if not runs:
        return "which was not run into this store"
    ends = frames.finals(runs)
    lost = int((ends["outcome"] == "diverged").sum())
    kept = ends[ends["outcome"] != "diverged"]
    twins = len(kept) - len(kept.drop_duplicates(["model", "method", "seed", "train_loss"]))
    same = f", {twins} of which repeat another since both first steps are limited," if twins else ""
    return (
        f"from the paper's six α₀, {lost or 'none'} of its {len(ends)} runs{same} diverged, and in {lower} of {total} "
        f"cases it ends at a lower training loss than the plain method from that α₀, where the paper's rule with the "
        f"β above does in {plain} of {plain_total}{best} ({'; '.join(scales)})"
    )


def _rates(records: Sequence[Record]) -> str:
    rates = {r.spec.alpha0 for r in records}
    return f"{len(rates)} starts between {power_of_ten(min(rates))} and {power_of_ten(max(rates))}"


def _scale(records: Sequence[Record]) -> str:
    return f"{counted(records[0].spec.epochs, 'epoch')}, {counted(frames.seeds(records)[1], 'seed')}"


def _range(values: pd.Series, digits: int = 3) -> str:
    return f"{significant(values.min(), digits)} to {significant(values.max(), digits)}"
