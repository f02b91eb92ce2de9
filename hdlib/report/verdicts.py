"""How a claim is judged, and how verdicts are told.

A claim has a source, a criterion, and a function that turns records into *cases*: for each configuration a score per
seed, the logarithm of a ratio. A case holds if no seed's score passes the logarithm of what the claim allows, or if the
95 % interval of their mean does not; it is against the claim if all scores pass it, or the interval does; else it is
undecided. The verdict follows: reproduced if every case holds, not reproduced if none does. Otherwise "nothing against"
where the other cases are undecided or equal, "partly" where no more are against than hold, and "mostly not" where more
are. And not tested where there are no runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from hdlib.report.style import Noted, Table, significant
from hdlib.runs import Record

Cases = dict[str, pd.Series]  # of scores, indexed by seed
VERDICTS = ("reproduced", "nothing against", "partly", "mostly not", "not reproduced", "not tested")


@dataclass(frozen=True)
class Claim:
    """What somebody says, and how it is judged.

    Attributes:
        text: the claim.
        source: who says so, and where.
        criterion: what it would take to agree.
        cases: the scores that runs come to.
        found: what the ratio is, with a place for it; empty where scores only say on which side runs are.
        at_most: the ratio with which the claim just holds.
        repeats: what the scores of a case are, besides seeds.
    """

    text: str
    source: str
    criterion: str
    cases: Callable[[Sequence[Record]], Cases]
    found: str = "training loss × {}"
    at_most: float = 1.0
    repeats: str = ""


@dataclass(frozen=True)
class Verdict:
    """What the runs say to a claim.

    Attributes:
        effect: the geometric mean of the claim's ratio over cases that are finite.
        low: the lower end of its 95 % interval over seeds, NaN where no case has two.
        high: the upper end.
        holds: the cases that hold.
        fails: all others.
        seeds: the most that a case has.
        least: the lowest geometric mean of a case's own ratios that is finite, NaN where there is one case.
        most: the highest.
        lost: the cases in which a run diverged that the claim speaks for.
        undecided: those of `fails` that are not against the claim either.
        equal: those of the others with a ratio of exactly one.
    """

    claim: Claim
    verdict: str
    effect: float
    low: float
    high: float
    holds: tuple[str, ...]
    fails: tuple[str, ...]
    seeds: int
    lost: int = 0
    undecided: tuple[str, ...] = ()
    equal: tuple[str, ...] = ()
    least: float = np.nan
    most: float = np.nan


def judge(claim: Claim, records: Sequence[Record]) -> Verdict:
    """Return the verdict on a claim."""
    cases = {name: scores for name, scores in claim.cases(records).items() if len(scores)}
    if not cases:
        return Verdict(claim, "not tested", np.nan, np.nan, np.nan, (), (), 0)
    limit = np.log(claim.at_most)
    holds = tuple(n for n, scores in cases.items() if min(scores.max(), interval(scores)[1]) <= limit)
    fails = tuple(name for name in cases if name not in holds)
    undecided = tuple(n for n in fails if max(cases[n].min(), interval(cases[n])[0]) <= limit)
    more_than_none = claim.at_most == np.nextafter(1, 0)
    equal = tuple(n for n in fails if n not in undecided and (cases[n] == 0).all() and more_than_none)
    finite = [scores for scores in cases.values() if np.isfinite(scores).all()]
    mean = np.mean([scores.mean() for scores in finite]) if finite else np.nan
    # the mean of the cases' own: wide enough however they depend on each other, and whatever their seeds
    several = [scores for scores in finite if len(scores) > 2] or [scores for scores in finite if len(scores) > 1]
    halves = [np.ptp(interval(scores)) / 2 for scores in several]
    half = np.mean(halves) if halves else np.nan
    against = len(fails) - len(undecided) - len(equal)
    mixed = "mostly not" if against > len(holds) else "partly" if against else "nothing against"
    verdict = "not reproduced" if not holds else mixed if fails else "reproduced"
    seeds = max(len(scores) for scores in cases.values())
    lost = sum(bool(np.isposinf(scores).any()) for scores in cases.values())
    effect = (float(np.exp(v)) for v in (mean, mean - half, mean + half))
    own = [float(np.exp(scores.mean())) for scores in finite]
    apart = (min(own), max(own)) if len(own) > 1 else (np.nan, np.nan)
    return Verdict(claim, verdict, *effect, holds, fails, seeds, lost, undecided, equal, *apart)


def interval(scores: pd.Series) -> tuple[float, float]:
    """Return Student's 95 % interval of the mean over seeds, or where that cannot be had, the range.

    That is of one or two seeds, and where a run diverged with which HD is compared, so that a score is minus infinity.
    A diverged run of HD itself decides alone.
    """
    values = scores.to_numpy(dtype=float)
    low, high = float(values.min()), float(values.max())
    if not high < np.inf:
        return high, high
    if len(values) < 3 or low == -np.inf:
        return low, high
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return float(values.mean()) - half, float(values.mean()) + half


def tally(found: Sequence[Verdict]) -> str:
    """Return one sentence: how many claims got each verdict."""
    counts = {verdict: sum(v.verdict == verdict for v in found) for verdict in VERDICTS}
    once = sum(v.verdict == "reproduced" and v.seeds == 1 and not v.claim.repeats for v in found)
    untested = f"{counts['not tested']} not tested yet." if counts["not tested"] else "none was left untested."
    return (
        f"Of {len(found)} claims of the paper, its authors' code and the report: {counts['reproduced']} reproduced"
        f"{f', {once} of them with one seed' if once else ''}; "
        f"{counts['nothing against']} with some cases for them and none against; {counts['partly']} in part, with "
        f"cases against them; {counts['mostly not']} mostly not; {counts['not reproduced']} not reproduced; "
        f"{untested}"
    )


def ledger(found: Sequence[Verdict]) -> Table:
    """Return the claims with their sources, criteria, effects and verdicts."""
    rows = [
        {
            "claim": Noted(v.claim.text, f"{v.claim.source}. Criterion: {v.claim.criterion}."),
            "verdict": v.verdict,
            "what was found": _effect(v),
            "holds in": f"{len(v.holds)} of {len(v.holds) + len(v.fails)}" if v.seeds else "",
            "seeds": f"{v.seeds} {v.claim.repeats}".strip() if v.seeds else "",
        }
        for v in found
    ]
    return Table(
        pd.DataFrame(rows),
        "What was found: where the criterion names a ratio, its geometric mean over the cases. In small print, "
        "“cases” are the smallest and the largest ratio of a single case, “seeds” a 95 % interval of the mean over "
        "seeds. The mean depends on which cases there are, such as the α₀ that were tried; the interval speaks of "
        "other seeds alone. Its width, on the logarithmic scale, is the mean width of Student's intervals of the cases "
        "with three seeds or more; that is wide enough however the cases correlate. Where no case has more than two "
        "seeds, their range is shown instead. A run that did not arrive counts with the iterations after which it was "
        "given up. Cases may have fewer seeds than stated, down to one, which has no interval.",
    )


def exceptions(found: Sequence[Verdict]) -> str:
    """Say where the claims that hold only in part do not hold, and where that is undecided."""
    lines = []
    for v in (v for v in found if v.verdict in ("nothing against", "partly", "mostly not")):
        refuted = [name for name in v.fails if name not in v.undecided + v.equal]
        text = "".join(
            f" {word}: {_together(names)}."
            for word, names in (("Not", refuted), ("Equal", v.equal), ("Undecided", v.undecided))
            if names
        )
        lines.append(f"- {v.claim.text}{text}")
    return "\n".join(lines) or "There are none."


def _together(names: Sequence[str]) -> str:
    """Return cases' names, those that differ in the value at their end alone as one.

    >>> _together(["SGD-HD, α₀ = 1", "SGD-HD, α₀ = 2", "Adam-HD, 3 epochs"])
    'SGD-HD, α₀ = 1, 2; Adam-HD, 3 epochs'
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        stem, equals, value = name.rpartition(" = ")
        whole = not equals or "," in value
        groups.setdefault(name if whole else stem + equals, []).extend([] if whole else [value])
    return "; ".join(stem + ", ".join(values) for stem, values in groups.items())


def _effect(v: Verdict) -> str | Noted:
    """Return the ratio that was found, with its interval and in how many cases nothing finite was below it."""
    lost = f"diverged in {v.lost} of {len(v.holds) + len(v.fails)}" if v.lost else ""
    if not (np.isfinite(v.effect) and v.claim.found):
        return lost
    text = v.claim.found.format(significant(v.effect))
    cases, seeds = (
        f"{word} {significant(low)} to {significant(high)}" if np.isfinite([low, high]).all() else ""
        for word, low, high in (("cases", v.least, v.most), ("seeds", v.low, v.high))
    )
    remark = "; ".join(filter(None, (cases, seeds, lost)))
    return Noted(text, remark) if remark else text
