"""What the runs of online tuning and of tuning say, as sentences and tables, and the table of what was run."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd
from IPython.display import display

from hdlib.report import frames, paper
from hdlib.report.style import (
    LABELS,
    Noted,
    Table,
    between,
    label,
    power_of_ten,
    relative,
    scientific,
    significant,
    spread,
)
from hdlib.runs import BASELINE, METHODS, Record, RunSpec

APART = 0.03  # relative difference from which on two readings of the paper's curves are not the same
# times the best fixed rate's training loss; book/online-tuning.md says these two in words
ALMOST = 1.1  # up to here a method almost repairs a bad alpha_0
MOSTLY = 1.5  # up to here it mostly does, if it beats the same fixed rate from more than half of the alpha_0
STILL = 2  # times the highest alpha of the smaller alpha_0: an alpha from there on is still higher than those
FALLS = 0.9  # of its peak: an alpha that averages less than that in the last epoch has fallen


def online_tuning(records: Sequence[Record], family: str) -> str:
    """Say whether a hypergradient method repairs a bad alpha_0, how it and its baseline end, and where alpha goes."""
    finals = frames.finals(records)
    finals = finals[finals["rule"] != "multiplicative"]
    adapted = finals[finals["method"] == f"{family}_hd"]
    told = [_repairs(finals[(finals["method"] == family) & (finals["decay"] == "none")], adapted, family)]
    told += [
        _compare(finals[(finals["method"] == family) & (finals["decay"] == decay)], adapted, family, decay)
        for decay in ("none", "inv_sqrt")
        if ((finals["method"] == family) & (finals["decay"] == decay)).any()
    ]
    fixed = finals[(finals["method"] == family) & (finals["decay"] == "none")]
    if len(fixed):
        best = fixed.groupby("alpha0")["train_loss"].mean().idxmin()
        told.append(_where_alpha_goes([r for r in records if r.spec.method == f"{family}_hd"], best))
    return "\n\n".join(filter(None, told))


def _repairs(baseline: pd.DataFrame, adapted: pd.DataFrame, family: str) -> str:
    """Return the verdict: does the method end near the best fixed rate wherever it starts? One alpha_0 has none.

    It is by the mean training loss over seeds; the validation loss stands beside it.
    """
    name, hd = LABELS[family], LABELS[f"{family}_hd"]
    ours, theirs = (f.groupby("alpha0")["train_loss"].mean() for f in (adapted, baseline))
    if len(ours) < 2 or not np.isfinite(theirs.min()):
        return ""
    ratios, total = ours / theirs.min(), len(ours)
    kept = ratios[np.isfinite(ratios)]
    if kept.empty:
        return f"**No: {hd} diverged from every initial learning rate.**"
    better = int((ours < theirs.reindex(ours.index)).sum())
    worst, ends = kept.max(), f"the training loss of {hd} ends"
    above = f"{significant(100 * (worst - 1), 2)} % above"
    if len(kept) < total or worst > MOSTLY or (worst > ALMOST and 2 * better <= total):
        answer = "Only in part" if better else "No"
        text = f"{answer}: {hd} ends below {name} from {better or 'none'} of {total} α₀"
        if worst > 1:
            end = f"{significant(worst, 2)} times" if worst > MOSTLY else above
            joined = "but" if better else "and"
            text += f", {joined} from {power_of_ten(kept.idxmax())} at {end} the training loss of the best fixed one"
        if len(kept) < total:
            lost = sorted(ratios.index.difference(kept.index), reverse=True)
            text += f"; from {', '.join(map(power_of_ten, lost))} it diverged"
    elif worst > ALMOST:
        text = (
            f"Mostly: {ends} below that of {name} from {better} of {total} α₀, and at most {above} the best fixed one's"
        )
    elif worst > 1:
        text = f"Almost: from every α₀ {ends} at most {above} that of the best fixed {name}"
    else:
        text = f"Yes: from every α₀ {ends} no higher than that of the best fixed {name}"
    return f"**{text}.**{_validation(baseline, adapted, name)}"


def _validation(baseline: pd.DataFrame, adapted: pd.DataFrame, name: str) -> str:
    """Say where the validation losses end, beside the lowest one of a fixed rate."""
    ours, theirs = (f.groupby("alpha0")["valid_loss"].mean() for f in (adapted, baseline))
    ratios = ours[np.isfinite(ours)] / theirs.min()
    if ratios.empty or not np.isfinite(theirs.min()):
        return ""
    where = " where it does not diverge" if len(ratios) < len(ours) else ""
    return f" Its validation loss ends {relative(ratios.min(), ratios.max())} the lowest of a fixed {name}{where}."


def _compare(baseline: pd.DataFrame, adapted: pd.DataFrame, family: str, decay: str) -> str:
    name, hd = label(family, decay), LABELS[f"{family}_hd"]
    ours, theirs = (f.groupby("alpha0")["train_loss"].mean() for f in (adapted, baseline))
    lost = adapted[adapted["outcome"] == "diverged"]
    rates = sorted(ours.index, reverse=True)
    if len(lost) == len(adapted):
        first, last = lost["iterations"].min(), lost["iterations"].max()
        return (
            f"Against {name}: all {len(lost)} runs of {hd} diverged, the first at iteration {first}, "
            f"the last at iteration {last}. {name} itself {_range(theirs)}."
        )
    better = [rate for rate in rates if ours[rate] < theirs[rate]]
    worse = [rate for rate in rates if not ours[rate] < theirs[rate]]
    text = (
        f"Against {name}: after the last epoch the mean training loss of {name} {_range(theirs)}; that of {hd} "
        f"{_range(ours)}. {hd} ends lower from {len(better)} of {len(rates)} initial learning rates"
    )
    if worse and better:
        named = (f"{power_of_ten(rate)} ({' against '.join(_apart(ours[rate], theirs[rate]))})" for rate in worse)
        text += f"; not from {', '.join(named)}"
    best = theirs.idxmin()
    edge = ", the largest that was tried," if len(rates) > 1 and best == max(rates) else ""
    text += f". The best {name}, α₀ = {power_of_ten(best)}{edge or ','} reaches {_loss(theirs[best])}"
    ratios = ours[np.isfinite(ours)] / theirs[best]
    text += f": {hd} ends {relative(ratios.min(), ratios.max())} that." if len(ratios) else "."
    if len(lost):
        where = ", ".join(power_of_ten(rate) for rate in sorted(set(lost["alpha0"]), reverse=True))
        text += f" {len(lost)} {hd} run{'s' if len(lost) > 1 else ''} diverged, from α₀ = {where}."
    return text


def _where_alpha_goes(records: Sequence[Record], best: float) -> str:
    """Say how alpha moves from the smaller alpha_0, the best fixed one and the larger ones, where no run diverges."""
    ends: dict[float, list[float]] = {}
    peaks: dict[float, list[float]] = {}
    lost = {r.spec.alpha0 for r in records if r.outcome == "diverged"}
    for r in records:
        if r.spec.rule != "multiplicative" and r.spec.alpha0 not in lost:
            ends.setdefault(r.spec.alpha0, []).append(r.epochs["alpha"].iloc[-1])
            peaks.setdefault(r.spec.alpha0, []).append(np.fmax(r.trace["alpha"].max(), r.epochs["alpha"].max()))
    last = pd.Series({rate: np.mean(values) for rate, values in ends.items()}, dtype=float)
    top = pd.Series({rate: np.mean(values) for rate, values in peaks.items()}, dtype=float)
    told = []
    if len(smaller := last[last.index < best]):
        fell = (smaller <= FALLS * top[smaller.index]).all()
        ends = f"falls to {_alphas(smaller)} by the last epoch" if fell else f"is {_alphas(smaller)} in the last epoch"
        told.append(f"from smaller α₀, α peaks at {_alphas(top[smaller.index])} and {ends}")
    starts = {power_of_ten(best): last[last.index == best], "larger α₀": last[last.index > best]}
    if all(map(len, starts.values())) and len(set(map(_alphas, starts.values()))) == 1:
        starts = {" and ".join(starts): last[last.index >= best]}
    for start, there in starts.items():
        if len(there):
            still = "still " if "larger" not in start and len(smaller) and there.min() > STILL * smaller.max() else ""
            told.append(
                f"from {start} it {still}is {_alphas(there)}" if told else f"from {start}, α is {_alphas(there)}"
            )
            told[-1] += " then" if len(smaller) else " in the last epoch" if len(told) == 1 else ""
    if not told:
        return ""
    told[0] = told[0][0].upper() + told[0][1:]
    return f"The best fixed rate is {power_of_ten(best)}. {'; '.join(told)} (means over seeds and over that epoch)."


def _alphas(values: pd.Series) -> str:
    """Return the lowest and the highest alpha with two digits, or one where these do not tell them apart."""
    shown = (scientific(v) if abs(v) < 1e-4 else significant(v, 2) for v in (values.min(), values.max()))
    return " to ".join(dict.fromkeys(shown))


def overview(records: Sequence[Record]) -> dict[str, str]:
    """Return what was run, and where each hypergradient method ends with its best baseline in brackets.

    That is the training loss under the name of the baseline, "sgd", and the validation loss under "sgd_valid". Under
    "sgd_reached" is from how many alpha_0 the training loss ends no higher than that of the best baseline, and under
    "sgd_worst" how many times that it is at most, of the alpha_0 from which no run diverges, and from which; "sgd_lost"
    is from how many alpha_0 a run diverged. Under "decayed" is the best training loss of an Adam that decays, as the
    paper's does.
    """
    finals = frames.finals(records)
    decayed = finals[(finals["method"] == "adam") & (finals["decay"] == "inv_sqrt")].groupby("alpha0")["train_loss"]
    finals = finals[(finals["rule"] != "multiplicative") & (finals["decay"] == "none")]
    epochs = records[0].spec.epochs
    found = {"runs": f"{epochs} epoch{'s' if epochs > 1 else ''}, {_seeds(finals)}"}
    for method, base in BASELINE.items():
        for column, name in (("train_loss", base), ("valid_loss", f"{base}_valid")):
            ours, theirs = (finals[finals["method"] == m].groupby("alpha0")[column].mean() for m in (method, base))
            if len(ours):
                found[name] = f"{_between(ours)} ({_loss(theirs.min())})"
            if column == "train_loss" and len(ours):
                found[f"{base}_lost"] = f"{int(np.isinf(ours).sum())} of {len(ours)}"
            if column == "train_loss" and len(kept := ours[np.isfinite(ours)]) and len(theirs):
                worst = significant(kept.max() / theirs.min(), 2)
                found[f"{base}_reached"] = f"{int((ours <= theirs.min()).sum())} of {len(ours)}"
                found[f"{base}_worst"] = (
                    f"{worst} times that of the best fixed {LABELS[base]}, from α₀ = {power_of_ten(kept.idxmax())}"
                )
    if len(decayed):
        found["decayed"] = _loss(decayed.mean().min())
    return found


def beside_paper(records: Sequence[Record]) -> str:
    """Say how many times our losses of the last epoch those of the paper's curves are, over the alpha_0 of both.

    Adam of logistic regression is the one that decays, as the paper's does. Empty for another data set than the
    paper's.
    """
    lines = [
        f"- {label(*run)}: {' and '.join(f'{name} losses {between(r)} times ours' for name, r in ratios.items())}."
        for run, ratios in _theirs_over_ours(records).items()
    ]
    spec = records[0].spec
    intro = f"In epoch {spec.epochs} the paper's curves, digitised, are at:"
    note = "Each is a range over α₀, without runs of ours that diverged."
    return "\n".join([intro, "", *lines, "", f"{note}{_shown_twice(records)}{_turns(spec)}"]) if lines else ""


def overview_beside_paper(records: Sequence[Record]) -> dict[str, str]:
    """Return how many times our training losses those of the paper's additive runs are: "sgd_theirs", "adam_theirs"."""
    found = _theirs_over_ours(records)
    return {
        f"{BASELINE[method]}_theirs": between(ratios["training"])
        for (method, _, rule), ratios in found.items()
        if method in BASELINE and rule == "additive" and "training" in ratios
    }


def _theirs_over_ours(records: Sequence[Record]) -> dict[tuple[str, str, str], dict[str, pd.Series]]:
    """Return the paper's losses of our last epoch over ours, by method, decay and rule, then by kind of loss."""
    spec = records[0].spec
    finals = frames.finals(records)
    if spec.task != paper.TASKS.get(spec.model):
        return {}
    curves = paper.figure2()
    curves = curves[(curves["model"] == spec.model) & (curves["epoch"] == spec.epochs)]
    found = {}
    for method, rule in itertools.product(METHODS, ("additive", "multiplicative")):
        own = finals[(finals["method"] == method) & (finals["rule"] == rule)]
        decay = "inv_sqrt" if (own["decay"] == "inv_sqrt").any() else "none"
        own = own[(own["decay"] == decay) & np.isfinite(own["train_loss"])]
        same = curves[(curves["method"] == method) & (curves["rule"] == rule)]
        ratios = {}
        for column, name in (("train_loss", "training"), ("valid_loss", "validation")):
            theirs = same[same["quantity"] == column].set_index("alpha0")["value"]
            both = (theirs / own.groupby("alpha0")[column].mean()).dropna()
            if len(both):
                ratios[name] = both
        if ratios:
            found[method, decay, rule] = ratios
    return found


def _turns(spec: RunSpec) -> str:
    """Say from which alpha_0 the paper's own curves with and without HD change their order after our last epoch."""
    curves = paper.figure2()
    curves = curves[(curves["model"] == spec.model) & (curves["quantity"] == "train_loss")]
    curves = curves[curves["rule"] == "additive"].pivot(index=["method", "alpha0"], columns="epoch", values="value")
    last, told = curves.columns.max(), []
    for hd, base in BASELINE.items():
        if not {hd, base} <= set(curves.index.get_level_values("method")):
            continue
        ratios = (curves.loc[hd] / curves.loc[base])[[spec.epochs, last]].dropna()
        turned = ratios[(ratios[spec.epochs] < 1) != (ratios[last] < 1)]
        told += [
            f"{LABELS[hd]}'s from α₀ = {power_of_ten(rate)} goes from {significant(now)} to {significant(end)} times "
            f"{LABELS[base]}'s"
            for rate, (now, end) in zip(turned.index, turned.to_numpy(), strict=True)
        ]
    if spec.epochs >= last or not told:
        return ""
    return (
        f"\n\n**What runs of this length cannot show**: between epoch {spec.epochs} and {last} the paper's own "
        f"training losses change their order. {'; '.join(told)}."
    )


def _shown_twice(records: Sequence[Record]) -> str:
    """Say what the paper's Figures 2 and 3 have for the same run of SGD, and what ours has."""
    own = [r for r in records if (r.spec.method, r.spec.decay, r.spec.alpha0) == ("sgd", "none", paper.TUNED_FROM)]
    if not own or own[0].spec.epochs < 2:
        return ""
    model, third = own[0].spec.model, paper.figure3()
    epoch = min(own[0].spec.epochs, int(third.loc[third["model"] == model, "epoch"].max()))
    second = paper.figure2()
    second = second[(second["model"] == model) & (second["method"] == "sgd") & (second["epoch"] == epoch)]
    second = second[np.isclose(second["alpha0"], paper.TUNED_FROM)].set_index("quantity")["value"]
    [third] = [row for row in paper.figure3_at(model, epoch).itertuples() if row.method == "sgd"]
    ours = pd.concat([r.epochs[r.epochs["epoch"] == epoch] for r in own])
    if not {"train_loss", "valid_loss"} <= set(second.index) or ours.empty:
        return ""
    apart = abs(np.log(second["valid_loss"] / third.valid_end))
    return (
        f"\n\nThe paper shows SGD from α₀ = {power_of_ten(paper.TUNED_FROM)} twice. After {epoch} epochs its training "
        f"loss is {significant(second['train_loss'])} in Figure 2, {significant(third.train_end)} in Figure 3 and "
        f"{significant(ours['train_loss'].mean())} here; its validation loss {significant(second['valid_loss'])}, "
        f"{significant(third.valid_end)} and {significant(ours['valid_loss'].mean())}."
        + (" How the two figures differ in validation is not known." if apart > APART else "")
    )


def multiplicative(records: Sequence[Record]) -> str:
    """Say where the multiplicative rule ends, beside the additive or automatic one and the best fixed rate."""
    finals = frames.finals([r for r in records if r.spec.decay == "none"])
    lines = []
    for method, base in BASELINE.items():
        own = finals[(finals["method"] == method) & (finals["rule"] == "multiplicative")]
        if own.empty:
            continue
        start, end = own["alpha0"].iloc[0], own["train_loss"].mean()
        best = finals[finals["method"] == base].groupby("alpha0")["train_loss"].mean().min()
        other = finals[(finals["method"] == method) & (finals["rule"] != "multiplicative")]
        same = other.loc[np.isclose(other["alpha0"], start), "train_loss"].mean()
        beta = "the automatic β" if (other["rule"] == "auto").any() else "the β of this page"
        lines.append(
            f"{label(method, 'none', 'multiplicative')} from α₀ = {power_of_ten(start)} ends at a training loss of "
            f"{_loss(end)}, where {LABELS[method]} with {beta} "
            f"{f'ends at {_loss(same)}' if np.isfinite(same) else 'diverges'} from there, and the "
            f"best fixed {LABELS[base]} at {_loss(best)}"
        )
    return f"{'; '.join(lines)} (means over seeds)." if lines else ""


def glue(texts: dict[str, str]) -> None:
    """Store texts in a notebook by name, for `{glue:text}` of Jupyter Book, which need not be there to run it."""
    for name, text in texts.items():
        display({"text/plain": repr(text)}, raw=True, metadata={"scrapbook": {"name": name, "mime_prefix": ""}})


def final_table(records: Sequence[Record]) -> Table:
    """Return the last epoch's losses of every configuration, over seeds."""
    finals = frames.finals(records)
    rows = []
    for (method, rule, decay, beta), group in _in_order(finals):
        for alpha0, runs in group.groupby("alpha0"):
            rows.append(
                {
                    "method": label(method, decay, rule),
                    "β": "" if method not in BASELINE else "automatic" if rule == "auto" else power_of_ten(beta),
                    "α₀": power_of_ten(alpha0),
                    "training loss": spread(runs["train_loss"]),
                    "validation loss": spread(runs["valid_loss"]),
                    "validation accuracy": _accuracy(runs),
                    "diverged at iteration": _divergence(runs),
                }
            )
    return Table(pd.DataFrame(rows), f"{frames.note(records)}{frames.spread_note(records)}")


def tuning(records: Sequence[Record]) -> str:
    """Say for each hypergradient method whether it got further than its baseline from the same alpha_0.

    Losses are over the seeds that both have.
    """
    finals = frames.finals(records)
    lines = []
    for method, baseline in BASELINE.items():
        own = finals[finals["method"] == method]
        for decay in ("inv_sqrt", "cosine", "none"):
            fixed = finals[(finals["method"] == baseline) & (finals["decay"] == decay)]
            ours, theirs = frames.shared_seeds(own, fixed)
            if theirs.empty or (baseline != "adam" and decay != "none"):
                continue
            name = label(baseline, decay)
            if len(ours) < len(own):
                name += f" (the {'one' if len(ours) == 1 else len(ours)} of {len(own)} seeds that both have)"
            verdicts = [
                f"{kind} loss {spread(ours[column])} against {spread(theirs[column])}, {_verdict(ours, theirs, column)}"
                for kind, column in (("training", "train_loss"), ("validation", "valid_loss"))
            ]
            lines.append(f"- {LABELS[method]} against {name}: {'; '.join(verdicts)}.")
    annealing = [f"- {told}" for told in (_annealing(records, method) for method in BASELINE) if told]
    return "\n".join([*annealing, *lines, f"- The learning rate of {_peaks(records)}."])


def tuning_overview(records: Sequence[Record]) -> dict[str, str]:
    """Return what was run, and by baseline, as in "sgd" and "sgd_valid", its loss at the end and that with HD.

    The Adam that decays, as the paper's does on logistic regression, is "adam_decayed", that along a cosine
    "adam_cosine". Means are over the seeds that both have.
    """
    finals, spec = frames.finals(records), records[0].spec
    found = {"runs": f"{spec.epochs} epoch{'s' if spec.epochs > 1 else ''}, {_seeds(finals)}"}
    for method, base in BASELINE.items():
        for decay, name in (("none", base), ("inv_sqrt", f"{base}_decayed"), ("cosine", f"{base}_cosine")):
            fixed = finals[(finals["method"] == base) & (finals["decay"] == decay)]
            ours, theirs = frames.shared_seeds(finals[finals["method"] == method], fixed)
            if len(ours):
                for column, key in (("train_loss", name), ("valid_loss", f"{name}_valid")):
                    found[key] = " → ".join(_loss(runs[column].mean()) for runs in (theirs, ours))
    return found


def tuning_table(records: Sequence[Record]) -> Table:
    """Return our final and best losses beside the paper's and the authors' published ones."""
    finals = frames.finals(records)
    spec = records[0].spec
    rows = []
    for (method, _, decay, _), runs in _in_order(finals):
        rows.append(
            {
                "method": label(method, decay),
                "source": "ours",
                "epochs": spec.epochs,
                "training loss, end": spread(runs["train_loss"]),
                "validation loss, end": spread(runs["valid_loss"]),
                "validation loss, best": spread(runs["best_valid_loss"]),
            }
        )
    published = paper.published(spec.model, spec.task, [spec.epochs])
    for row in published.itertuples():
        rows.append(
            {
                "method": LABELS[row.method],
                "source": {"paper": "paper, Figure 3", "authors": "authors' repository"}[row.source],
                "epochs": row.epochs,
                "training loss, end": significant(row.train_end),
                "validation loss, end": significant(row.valid_end),
                "validation loss, best": significant(row.valid_best),
            }
        )
    order = {label: i for i, label in enumerate(LABELS.values())}
    table = pd.DataFrame(rows).sort_values("method", key=lambda column: column.map(order), kind="stable")
    note = f"Ours: {frames.note(records)}{frames.spread_note(records)}"
    if published.empty:
        note += f" The paper and its authors published no runs of this model on {spec.task}."
    return Table(table, note)


def status(records: Sequence[Record]) -> Table:
    """Return what ran: runs, seeds, outcomes, where, with which versions, when and how long."""
    rows = []
    keys: dict[tuple, list[Record]] = {}
    for record in records:
        p = record.provenance
        spec = record.spec
        key = (spec.task, spec.model, spec.epochs, spec.max_iterations or 0, p["device"], p["torch"], p["commit"] or "")
        keys.setdefault(key, []).append(record)
    for (task, model, length, cap, device, torch, commit), group in sorted(keys.items()):
        outcomes = pd.Series([record.outcome for record in group]).value_counts()
        dates = sorted(record.provenance["date"] for record in group)
        rows.append(
            {
                "task": task,
                "model": model,
                "length": f"{cap:,} iterations" if cap else f"{length} epoch{'s' if length > 1 else ''}",
                "runs": len(group),
                "seeds": len({record.spec.seed for record in group}),
                "outcomes": ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items()),
                "made by": Noted(device, ", ".join(filter(None, (f"torch {torch}", commit, dates[-1][:10])))),
                "training time": _duration(sum(record.provenance["seconds"] for record in group)),
            }
        )
    hours = sum(record.provenance["seconds"] for record in records) / 3600
    return Table(
        pd.DataFrame(rows),
        f"{len(records):,} runs in all, {hours:,.0f} hours of training. Dates are those of the last run.",
    )


def _seeds(finals: pd.DataFrame) -> str:
    seeds = finals["seed"].nunique()
    return f"{seeds} seeds" if seeds > 1 else "one seed"


def _range(losses: pd.Series) -> str:
    return _between(losses) if np.isinf(losses).all() else f"ends {_between(losses)}"


def _between(losses: pd.Series) -> str:
    """Return the lowest and the highest loss, or one where three digits do not tell them apart."""
    if np.isinf(losses).all():
        return "diverges everywhere"
    finite = losses[np.isfinite(losses)]
    low, high = _loss(finite.min()), _loss(finite.max())
    text = f"at {low}" if low == high else f"between {low} and {high}"
    return text if len(finite) == len(losses) else f"{text} where it does not diverge"


def _apart(one: float, other: float) -> tuple[str, str]:
    """Return two losses, with more than three digits where it takes more to tell them apart.

    >>> _apart(0.25601, 0.25583), _apart(0.238, 0.233)
    (('0.2560', '0.2558'), ('0.238', '0.233'))
    """
    for digits in (3, 4, 5, 6):
        shown = _loss(one, digits), _loss(other, digits)
        if shown[0] != shown[1]:
            break
    return shown


def _loss(value: float, digits: int = 3) -> str:
    return "no finite value" if not np.isfinite(value) else significant(value, digits)


def _verdict(ours: pd.DataFrame, theirs: pd.DataFrame, column: str) -> str:
    ends = {"ours": ours, "theirs": theirs}
    pair = pd.concat({name: rows.set_index("seed")[column] for name, rows in ends.items()}, axis=1, join="inner")
    lower = int((pair["ours"] < pair["theirs"]).sum())
    if len(pair) == 1:
        return "lower with the one seed" if lower else "not lower with the one seed"
    return f"lower in {lower} of {len(pair)} seeds"


def _peaks(records: Sequence[Record]) -> str:
    parts = []
    for method in BASELINE:
        runs = [r for r in records if r.spec.method == method]
        if runs:
            peaks = [r.trace["alpha"].max() for r in runs]
            lowest = min(r.trace["alpha"].min() for r in runs)
            sign = ", and is negative at times" if lowest < 0 else ""
            rises = any(peak > r.spec.alpha0 for peak, r in zip(peaks, runs, strict=True))
            told = f"rises to {spread(peaks)}" if rises else "does not rise above α₀"
            start = runs[0].spec.alpha0
            rise = 100 * (max(peaks) / start - 1) if start else np.inf
            if rises and rise < 50:
                told = f"rises by no more than {significant(rise, 2)} %"
            parts.append(f"{LABELS[method]} {told}{sign}")
    return "; that of ".join(parts)


def _annealing(records: Sequence[Record], method: str) -> str:
    """Say how alpha falls and where that leads; nothing if it rises at first or keeps more than half."""
    groups: dict[tuple[str, str], list[pd.DataFrame]] = {}
    for r in records:
        if r.outcome != "diverged":
            groups.setdefault((r.spec.method, r.spec.decay), []).append(r.epochs.set_index("epoch"))
    means = {kind: sum(runs) / len(runs) for kind, runs in groups.items()}
    ours, fixed = means.get((method, "none")), means.get((BASELINE[method], "none"))
    decayed = means.get((BASELINE[method], "inv_sqrt"))
    if ours is None or fixed is None:
        return ""
    alpha, last = ours["alpha"], ours.index[-1]
    if alpha[1] > alpha[0] or alpha[last] > alpha[0] / 2:
        return ""
    shown = [n for n in (1, 10, 20, 50, 75) if n < last] + [last]
    told = [f"{'about 0' if abs(alpha[n]) < alpha[0] / 1e3 else scientific(alpha[n])} in epoch {n}" for n in shown]
    by = min(20, last)
    text = (
        f"What {LABELS[method]} finds is an annealing schedule: α averages {', '.join(told)}. After epoch {by} its "
        f"training loss is {_loss(ours['train_loss'][by])}, that of {LABELS[BASELINE[method]]} "
        f"{_loss(fixed['train_loss'][by])}."
    )
    if decayed is not None:
        text += (
            f" With the decay α₀/√t from the same start, α averages {scientific(decayed['alpha'][1])} in the first "
            f"epoch already, and the training loss ends at {_loss(decayed['train_loss'][last])}."
        )
    return f"{text} All are means over seeds."


def _in_order(finals: pd.DataFrame):
    grouped = finals.groupby(["method", "rule", "decay", "beta"])
    return sorted(grouped, key=lambda item: (list(LABELS).index(item[0][0]), item[0][1:]))


def _accuracy(runs: pd.DataFrame) -> str:
    kept = runs[runs["outcome"] != "diverged"]
    return f"{100 * kept['valid_accuracy'].mean():.2f} %" if len(kept) else ""


def _divergence(runs: pd.DataFrame) -> str:
    lost = runs.loc[runs["outcome"] == "diverged", "iterations"]
    return ", ".join(map(str, sorted(lost)))


def _duration(seconds: float) -> str:
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"
