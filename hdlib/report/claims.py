"""What the paper and the student report claim, and the scores that our runs come to."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd

from hdlib.report import fits, paper, performance, vgg
from hdlib.report.style import LABELS, MODELS, counted, power_of_ten
from hdlib.report.verdicts import Cases, Claim, Verdict, judge
from hdlib.runs import BASELINE, VGG_FIELDS, Record
from hdlib.runs.experiments import PAPER_RATES

NETWORKS = [  # the whole VGG, as it was described and computed; a smaller one tests nothing
    dict(task="cifar10", model="vgg", variant=variant, norm_start=start, precision=precision, width_factor=1.0,
         train_images=None)
    for variant, start, precision in itertools.product(vgg.VARIANTS, ("ones", "uniform"), ("float32", "tf32", "bf16"))
]  # fmt: skip


def judged(records: Sequence[Record], store: str = "results") -> list[Verdict]:
    """Return the verdicts on all claims; that of the cost is judged by what `store` has of the benchmarks."""
    return [judge(claim, records) for claim in (*CLAIMS, cost(store))]


def select(records: Iterable[Record], **fields) -> list[Record]:
    """Return the records whose specs have these values, and are otherwise as in the paper.

    The rule is the additive one and the precision float32 unless others are named; of VGG, any size and variant. Runs
    that kept no epochs are left out.
    """
    wanted = {"rule": "additive"} | fields
    return [
        record
        for record in records
        if record.spec.validate_every
        and record.spec.as_in_the_paper(*VGG_FIELDS, *fields)
        and all(getattr(record.spec, name) == value for name, value in wanted.items())
    ]


def by_seed(records: Sequence[Record], value: Callable[[Record], float]) -> pd.Series:
    """Return what the run of each seed comes to, the longest where there are several."""
    ordered = sorted(records, key=lambda r: (r.spec.epochs, r.spec.max_iterations or np.inf, r.spec.key))
    return pd.Series({r.spec.seed: value(r) for r in ordered}, dtype=float).sort_index()


def finals(records: Sequence[Record], column: str = "train_loss", epochs: int = 1) -> pd.Series:
    """Return the mean of the last epochs' values by seed, infinite for a diverged run."""
    return by_seed(records, lambda r: np.inf if r.outcome == "diverged" else r.epochs[column].iloc[-epochs:].mean())


def bests(records: Sequence[Record]) -> pd.Series:
    """Return the lowest validation loss after an epoch by seed, infinite for a diverged run."""
    return by_seed(records, lambda r: np.inf if r.outcome == "diverged" else r.epochs["valid_loss"].iloc[1:].min())


def firsts(records: Sequence[Record]) -> pd.Series:
    """Return the first epoch's training loss by seed, infinite where nothing was finite at its end."""
    known = [record for record in records if record.spec.validate_every == 1]  # of the others it is not recorded
    return by_seed(known, lambda r: r.epochs["train_loss"].iloc[1] if len(r.epochs) > 1 else np.inf)


def by_rate(
    records: Sequence[Record], value: Callable[[Sequence[Record]], pd.Series] = finals
) -> dict[float, pd.Series]:
    """Return what runs come to by their alpha_0, of the paper's six, from the largest."""
    runs = {rate: [r for r in records if r.spec.alpha0 == rate] for rate in PAPER_RATES}
    return {rate: value(own) for rate, own in runs.items() if own}


def _lengths(records: Sequence[Record], traced: bool = False, **fields) -> list[list[Record]]:
    """Return the runs with these fields by their number of epochs: the longest, and shorter ones with more seeds.

    Runs shorter than half of the paper's say nothing about it, however many seeds they have, unless one diverged. With
    `traced`, runs of which no iteration was traced are left out.
    """
    groups: dict[int, list[Record]] = {}
    for record in select(records, **fields):
        if traced and not len(record.trace):
            continue
        groups.setdefault(record.spec.epochs, []).append(record)
    found: list[list[Record]] = []
    for epochs, runs in sorted(groups.items(), reverse=True):
        long_enough = epochs >= paper.tuning_epochs(runs[0].spec.model) / 2
        if not long_enough and all(r.outcome != "diverged" for r in runs):
            continue
        if not found or len(_seeds(runs)) > len(_seeds(found[-1])):
            found.append(runs)
    return found


def _by_model(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Return the runs of each model: a ledger looks for many kinds of them."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record.spec.model, []).append(record)
    return found


def _seeds(runs: Sequence[Record]) -> set[int]:
    return {r.spec.seed for r in runs}


def log_ratio(ours: pd.Series, theirs: pd.Series) -> pd.Series:
    """Return log(ours / theirs) for the seeds that both have, without those in which both are infinite."""
    both = pd.concat([ours, theirs], axis=1, join="inner")
    both = both[~np.isinf(both).all(axis=1)]
    with np.errstate(divide="ignore"):
        return np.log(both.iloc[:, 0] / both.iloc[:, 1])


def untuned(ours: dict[float, pd.Series], theirs: dict[float, pd.Series], fixed: dict[float, pd.Series]) -> Cases:
    """Compare from each alpha_0 that both have, except the best of the `fixed` ones."""
    best = min(fixed, key=lambda rate: fixed[rate].mean(), default=None)
    rates = [rate for rate in ours if rate in theirs and rate != best]
    return {f"α₀ = {power_of_ten(rate)}": log_ratio(ours[rate], theirs[rate]) for rate in rates}


def closer(model: str, method: str, beta: float) -> Callable[[Sequence[Record]], Cases]:
    """HD's training loss after online tuning over its baseline's, from each alpha_0 but the baseline's best."""

    def cases(records: Sequence[Record]) -> Cases:
        same = dict(task="mnist", model=model, epochs=paper.ONLINE_EPOCHS)
        fixed = by_rate(select(records, method=BASELINE[method], decay="none", **same))
        return untuned(by_rate(select(records, method=method, beta=beta, **same)), fixed, fixed)

    return cases


def outperforms(
    value: Callable[[Sequence[Record]], pd.Series],
    models: Sequence[dict],
    methods: Sequence[str] = tuple(BASELINE),
    at_least: int = 1,
) -> Callable[[Sequence[Record]], Cases]:
    """What HD's runs come to over what its baseline's do from alpha_0 = 0.001, of `at_least` so many epochs."""

    def cases(records: Sequence[Record]) -> Cases:
        found = {}
        of = _by_model(records)
        for method, model in itertools.product(methods, models):
            known, same = of.get(model["model"], []), model | dict(alpha0=1e-3)
            for ours in _lengths(known, method=method, beta=paper.tuned_beta(method, model["model"]), **same):
                epochs = ours[0].spec.epochs
                if epochs >= at_least:
                    theirs = select(known, method=BASELINE[method], decay="none", epochs=epochs, **same)
                    found[f"{LABELS[method]} on {_setting(ours)}"] = log_ratio(value(ours), value(theirs))
        return found

    return cases


def rises(
    low: float,
    high: float,
    models: Sequence[dict],
    methods: Sequence[str],
    decays: float | None = None,
    first: int | None = None,
) -> Callable[[Sequence[Record]], Cases]:
    """The largest alpha lies between two values, and the last epoch's is at most a fraction of it, if one is given.

    It is that of the `first` iterations, if they are given. A run that ends, or whose first iterations do, while alpha
    still rises towards the lower value says nothing.
    """

    def cases(records: Sequence[Record]) -> Cases:
        found = {}
        of = _by_model(records)
        for model, method in itertools.product(models, methods):
            own = dict(method=method, alpha0=1e-3, beta=paper.tuned_beta(method, model["model"]))
            for asked in _lengths(of.get(model["model"], []), traced=True, **own, **model):
                runs = [replace(r, trace=r.trace[r.trace["iteration"] <= (first or np.inf)]) for r in asked]
                runs = [r for r in runs if not (_rising(r) and r.trace["alpha"].max() < low)]
                if not runs:
                    continue
                peak = by_seed(runs, lambda r: r.trace["alpha"].max())
                name = f"{LABELS[method]} on {_setting(runs)}"
                found[f"{name}: the peak" if decays else name] = outside(peak, low, high)
                if decays:
                    last = by_seed(runs, lambda r: abs(r.epochs["alpha"].iloc[-1]))
                    found[f"{name}: the decay"] = np.log(last / (decays * peak))
        return found

    return cases


def _rising(record: Record) -> bool:
    """Whether alpha was never larger than at the end of a run."""
    alphas = record.trace["alpha"]
    return bool(alphas.idxmax() == alphas.index[-1])


def outside(values: pd.Series, low: float, high: float) -> pd.Series:
    """Return a score that is above zero for values that do not lie between two others."""
    return (np.log(values / (low * high) ** 0.5)).abs() - np.log((high / low) ** 0.5)


def earlier(records: Sequence[Record]) -> Cases:
    """The iteration of SGDN-HD's largest alpha over SGD-HD's."""
    found = {}
    of = _by_model(records)
    for model in ("logreg", "mlp"):
        at = {}
        for method in ("sgd_hd", "sgdn_hd"):
            own = dict(task="mnist", model=model, method=method, alpha0=1e-3, beta=1e-3)
            lengths = _lengths(of.get(model, []), traced=True, **own)
            runs = lengths[-1] if lengths else []  # those with the most seeds
            at[method] = by_seed(runs, lambda r: r.trace["iteration"][r.trace["alpha"].idxmax()])
        found[MODELS[model]] = log_ratio(at["sgdn_hd"], at["sgd_hd"])
    return found


def insensitive(records: Sequence[Record]) -> Cases:
    """The spread of final losses over alpha_0, with the paper's beta, in the longest runs from several."""
    found = {}
    for (model, method), beta in paper.IMPLIED.items():
        runs = select(records, task="mnist", model=model, method=method, beta=beta)
        lengths = {n: by_rate([r for r in runs if r.spec.epochs == n]) for n in {r.spec.epochs for r in runs}}
        epochs = max((n for n, rates in lengths.items() if len(rates) > 2), default=0)
        if epochs:
            table = pd.concat(lengths[epochs].values(), axis=1)
            name = f"{LABELS[method]} on {MODELS[model]}, {counted(epochs, 'epoch')}"
            found[name] = np.log(table.max(axis=1) / table.min(axis=1))
    return found


def grid_search(inside: Callable[[str, float, float], bool], decay: str, model: str = "logreg"):
    """Iterations to a minibatch loss of 0.29 over the baseline's, in cells of the grid of the paper's Figure 4.

    A run that does not arrive counts with the iterations after which it was given up. A seed with which neither
    arrives does not count, nor one whose other run was given up before this one arrived. A diverged run takes for ever.
    """

    def cases(records: Sequence[Record]) -> Cases:
        aimed = [
            r
            for r in records
            if (r.spec.task, r.spec.model, r.spec.rule) == ("mnist", model, "additive")
            and r.spec.target_loss == paper.TARGET
            and r.spec.as_in_the_paper("target_loss", "max_iterations")
        ]  # fmt: skip

        def took(runs: list[Record]) -> pd.DataFrame:
            ends = by_seed(runs, lambda r: np.inf if r.outcome == "diverged" else r.iterations)
            return pd.DataFrame({"end": ends, "arrived": by_seed(runs, lambda r: r.outcome == "reached")})

        groups: dict[tuple, list[Record]] = {}
        for r in aimed:
            groups.setdefault((r.spec.method, r.spec.decay, r.spec.alpha0, r.spec.beta), []).append(r)
        found = {}
        for (method, _, alpha0, beta), runs in sorted(groups.items()):
            if method not in BASELINE or not inside(method, alpha0, beta):
                continue
            base = groups.get((BASELINE[method], decay if method == "adam_hd" else "none", alpha0, 0.0))
            if not base:
                continue
            ours, theirs = took(runs).align(took(base), join="inner", axis=0)
            compared = (ours["arrived"] == 1) & ((theirs["arrived"] == 1) | (theirs["end"] >= ours["end"]))
            compared |= (theirs["arrived"] == 1) & (ours["end"] >= theirs["end"])
            compared |= np.isinf(ours["end"]) | np.isinf(theirs["end"])
            found[f"{LABELS[method]}, β = {power_of_ten(beta)}, α₀ = {power_of_ten(alpha0)}"] = log_ratio(
                ours["end"][compared], theirs["end"][compared]
            )
        return found

    return cases


def transition(records: Sequence[Record]) -> Cases:
    """How many cells of the grid of alpha_0 and beta the plain rule trains, over how many it does with a transition.

    A seed with which it loses none of them says nothing.
    """
    moves = dict(final_lr=1e-3, transition=10.0)
    kept: dict[tuple, dict[bool, dict[tuple, bool]]] = {}
    for r in records:
        s = r.spec
        moved = all(getattr(s, name) == value for name, value in moves.items())
        if (
            s.as_in_the_paper("width", "max_iterations", *(moves if moved else ()))
            and (s.task, s.rule) == ("mnist", "additive")
            and s.alpha0 in PAPER_RATES
            and s.beta in PAPER_RATES
        ):
            runs = kept.setdefault((s.method, s.model, s.width, s.epochs, s.max_iterations or 0), {})
            runs.setdefault(moved, {})[s.seed, s.alpha0, s.beta] = r.outcome != "diverged"
    found = {}
    for (method, model, width, epochs, cap), runs in sorted(kept.items()):
        cells = pd.DataFrame({moved: pd.Series(runs.get(moved, {}), dtype=object) for moved in (False, True)}).dropna()
        of_seed = [(seed, own.astype(bool)) for seed, own in cells.groupby(level=0) if not own[False].all()]
        length = f"{cap:,} iterations" if cap else counted(epochs, "epoch")
        of = MODELS[model] + (f" with layers of {width}" if model == "mlp" else "")
        found[f"{LABELS[method]} on {of}, {length}"] = pd.Series(
            {seed: np.log(own[False].sum() / own[True].sum()) for seed, own in of_seed}, dtype=float
        )
    return found


def from_zero(records: Sequence[Record]) -> Cases:
    """HD's final loss from alpha_0 = 0 over that from 0.001."""
    found = {}
    for method in ("sgd_hd", "adam_hd"):
        same = dict(task="mnist", model="logreg", method=method)
        for beta in sorted({r.spec.beta for r in select(records, alpha0=0.0, **same)}):
            for ours in _lengths(records, alpha0=0.0, beta=beta, **same):
                theirs = select(records, alpha0=1e-3, beta=beta, epochs=ours[0].spec.epochs, **same)
                name = f"{LABELS[method]}, β = {power_of_ten(beta)}, {_told(ours)}"
                found[name] = log_ratio(finals(ours), finals(theirs))
    return found


def all_diverge(records: Sequence[Record]) -> Cases:
    """-1 for a run that diverged, 1 for one that did not in all of the paper's epochs."""
    found: dict[str, pd.Series] = {}
    for rate in PAPER_RATES:
        runs = [
            r
            for r in records
            if (r.spec.task, r.spec.model, r.spec.rule) == ("mnist", "mlp", "additive")
            and (r.spec.method, r.spec.beta, r.spec.alpha0) == ("adam_hd", paper.STATED, rate)
            and r.spec.as_in_the_paper("max_iterations")
            and (r.outcome == "diverged" or (r.spec.epochs >= paper.ONLINE_EPOCHS and not r.spec.max_iterations))
        ]  # fmt: skip
        found[f"α₀ = {power_of_ten(rate)}"] = by_seed(runs, lambda r: -1.0 if r.outcome == "diverged" else 1.0)
    return found


def faster_when_multiplicative(records: Sequence[Record]) -> Cases:
    """The first epoch's training loss with the multiplicative rule over the additive one's, from untuned alpha_0."""
    found = {}
    for (model, method), beta in paper.IMPLIED.items():
        same = dict(task="mnist", model=model)
        fixed, ours, theirs = (
            by_rate(select(records, **same, **runs), firsts)
            for runs in (
                dict(method=BASELINE[method], decay="none"),
                dict(method=method, rule="multiplicative", beta=0.02),
                dict(method=method, beta=beta),
            )
        )
        for name, scores in untuned(ours, theirs, fixed).items():
            found[f"{LABELS[method]} on {MODELS[model]}, {name}"] = scores
    return found


def same_beta(records: Sequence[Record]) -> Cases:
    """By which factor alpha is off the paper's curves of Figure 2 with the beta that it states."""
    theirs = paper.figure2()
    theirs = theirs[(theirs["quantity"] == "alpha") & (theirs["rule"] == "additive")]
    found = {}
    for model in ("logreg", "mlp"):
        for method in ("sgd_hd", "adam_hd"):
            scores: dict[int, list[float]] = {}
            longest = _lengths(records, task="mnist", model=model, method=method, beta=paper.STATED)[:1]
            for r in itertools.chain.from_iterable(longest):
                own = theirs[(theirs["model"] == model) & (theirs["method"] == method)]
                own = own[np.isclose(own["alpha0"], r.spec.alpha0)]
                if len(own):
                    off = np.inf if r.outcome == "diverged" else fits.error(r, own)[0]
                    scores.setdefault(r.spec.seed, []).append(np.log(off))
            found[f"{LABELS[method]} on {MODELS[model]}"] = pd.Series({s: np.median(v) for s, v in scores.items()})
    return found


def cost(store: str) -> Claim:
    """The time of a whole training iteration with HD over that without; rounds stand for seeds."""
    measured = (performance.read(store, "optimizer_step") or {}).get("iterations", {})
    on_gpu = performance.read(store, "vgg") or {}

    def cases(records: Sequence[Record]) -> Cases:
        found = {}
        for name, ratios in measured.items():
            method, model = name.split(", ")
            found[f"{method} on {MODELS[model]}, CPU"] = np.log(pd.Series(ratios, dtype=float))
        for how, more in on_gpu.get("overhead", {}).items():
            for method, share in more.items():
                found[f"{LABELS[method]} on VGG, {on_gpu['made']['device']}, {how}"] = np.log1p(pd.Series([share]))
        return found

    return Claim(
        "HD costs little time.",
        f"{PAPER}, Section 2",
        "time of a training iteration, HD over no HD, below 1.1; rounds of a benchmark for seeds, on a GPU the median",
        cases,
        found="time × {}",
        at_most=1.1,
        repeats="rounds",
    )


def _told(runs: Sequence[Record]) -> str:
    """Say how long the runs of a case are, and whether there is one seed alone."""
    epochs = runs[0].spec.epochs
    return f"{epochs} epoch{'' if epochs == 1 else 's'}{', one seed' if len(_seeds(runs)) == 1 else ''}"


def _setting(runs: Sequence[Record]) -> str:
    """Say on which model the runs of a case are, and how long."""
    spec = runs[0].spec
    network = f" as in {vgg.network(runs[0])}, {spec.precision}" if spec.model == "vgg" else ""
    return f"{MODELS[spec.model]}{network}, {_told(runs)}"


SMALL = [dict(task="mnist", model=model) for model in ("logreg", "mlp")]
PAPER, REPORT, README = "paper", "student report", "authors' repository"
CLAIMS = (
    *(
        Claim(
            f"{LABELS[method]} brings the loss closer to the tuned curve from every α₀: {MODELS[model]}, "
            f"β = {power_of_ten(beta)}.",
            source,
            f"training loss after {paper.ONLINE_EPOCHS} epochs, HD over no HD, below 1 from each α₀ but the best fixed "
            "one",
            closer(model, method, beta),
        )
        for model, method, beta, source in (
            ("logreg", "sgd_hd", paper.STATED, f"{PAPER}, Figure 2; {REPORT}"),
            ("logreg", "adam_hd", paper.STATED, f"{PAPER}, Figure 2; {REPORT}"),
            ("mlp", "sgd_hd", paper.IMPLIED["mlp", "sgd_hd"], f"{PAPER}, Figure 2 as its curves imply"),
            ("mlp", "sgd_hd", paper.STATED, f"{PAPER}, Figure 2 as stated; {REPORT}"),
            ("mlp", "adam_hd", paper.IMPLIED["mlp", "adam_hd"], f"{PAPER}, Figure 2 as its curves imply; {REPORT}"),
            ("mlp", "adam_hd", paper.STATED, f"{PAPER}, Figure 2 as stated"),
        )
    ),
    Claim(
        "Each panel of Figure 2 was made with β = 10⁻⁴.",
        f"{PAPER}, Section 4.1",
        "α within a factor of 1.5 of the digitised curves, root mean square over all epochs of the longest runs, of "
        "each seed the median over α₀ (another page compares several β, over the first epochs alone)",
        same_beta,
        found="α off by a factor of {}",
        at_most=1.5,
    ),
    Claim(
        "With β = 10⁻⁴ every learning rate of Adam-HD on the perceptron leaves the floating-point numbers.",
        REPORT,
        "every run diverges",
        all_diverge,
        found="",
    ),
    Claim(
        "HD ends with a lower training loss than its baseline on logistic regression and the perceptron.",
        f"{PAPER}, Figure 3; {REPORT}",
        "final training loss, HD over no HD, below 1",
        outperforms(finals, SMALL),
    ),
    Claim(
        "HD ends with a lower validation loss than its baseline on logistic regression and the perceptron.",
        f"{PAPER}, Figure 3; {REPORT}",
        "final validation loss, HD over no HD, below 1",
        outperforms(partial(finals, column="valid_loss"), SMALL),
        found="validation loss × {}",
    ),
    Claim(
        "On the perceptron Adam-HD's training loss is about ten times lower than Adam's.",
        f"{PAPER}, Section 4.3",
        "training loss, mean of the last ten of 100 epochs, Adam-HD's over Adam's, below 0.2",
        outperforms(partial(finals, epochs=10), SMALL[1:], ("adam_hd",), at_least=100),
        at_most=0.2,
    ),
    Claim(
        "On the perceptron Adam-HD reaches a validation loss that Adam does not.",
        f"{PAPER}, Section 4.3",
        "lowest validation loss after any of 100 epochs, Adam-HD's over Adam's, below 1",
        outperforms(bests, SMALL[1:], ("adam_hd",), at_least=100),
        found="lowest validation loss × {}",
    ),
    Claim(
        "α rises to about 0.05 and then decays (SGD-HD, SGDN-HD).",
        f"{PAPER}, Sections 4.2 and 4.3",
        "largest α between 0.025 and 0.1, and the last epoch's mean below a fifth of it",
        rises(0.025, 0.1, SMALL, ("sgd_hd", "sgdn_hd"), decays=0.2),
        found="",
    ),
    Claim(
        "Adam-HD's α rises by a few to twenty per cent and then decays.",
        f"{PAPER}, Sections 4.2 and 4.3",
        "largest α two to thirty per cent above α₀ = 0.001, and the last epoch's mean below 0.9 times that",
        rises(0.00102, 0.0013, SMALL, ("adam_hd",), decays=0.9),
        found="",
    ),
    Claim(
        "SGDN-HD's α rises earlier than SGD-HD's.",
        f"{PAPER}, Section 4.3",
        "iteration of the largest α, SGDN-HD over SGD-HD, below 1",
        earlier,
        found="iteration × {}",
    ),
    Claim(
        "With a good β it hardly matters where α starts.",
        f"{PAPER}, Section 4.4; {REPORT}",
        "largest over smallest final training loss over α₀, below 1.1",
        insensitive,
        found="largest ÷ smallest {}",
        at_most=1.1,
    ),
    Claim(
        "Outside the region that Figure 4 marks, HD is at least as fast as the paper's baseline.",
        f"{PAPER}, Figure 4",
        "iterations to 0.29, HD over no HD, at most 1 (the baseline of Adam-HD decays)",
        grid_search(lambda *cell: cell not in paper.outlined(), "inv_sqrt"),
        found="iterations × {}",
    ),
    Claim(
        "The same against a baseline of Adam that does not decay.",
        f"{PAPER}, Figure 4, with like compared to like",
        "iterations to 0.29, Adam-HD over Adam, at most 1",
        grid_search(lambda *cell: cell[0] == "adam_hd" and cell not in paper.outlined(), "none"),
        found="iterations × {}",
    ),
    Claim(
        "What Figure 4 shows for logistic regression holds for other models too.",
        f"{PAPER}, Section 4.4",
        "iterations to a minibatch loss of 0.29 on the perceptron within an epoch, HD over no HD, at most 1 outside "
        "the region that Figure 4 marks for logistic regression",
        grid_search(lambda *cell: cell not in paper.outlined(), "none", "mlp"),
        found="iterations × {}",
    ),
    Claim(
        "A small β still improves on no HD.",
        f"{PAPER}, Section 4.4",
        "iterations to 0.29 with β = 10⁻⁶, HD over no HD, below 1 (with no Adam decayed)",
        grid_search(lambda method, alpha0, beta: beta == 1e-6, "none"),
        found="iterations × {}",
        at_most=np.nextafter(1, 0),  # where both need the same iterations nothing is improved
    ),
    Claim(
        "The multiplicative rule usually adapts faster.",
        f"{PAPER}, Section 2.1",
        "first epoch's training loss, β′ = 0.02 multiplicative over Figure 2's additive, below 1 from each α₀ but the "
        "best fixed one",
        faster_when_multiplicative,
    ),
    Claim(
        "α₀ = 0 works.",
        README,
        "final training loss from α₀ = 0 over that from 0.001, below 1.1, logistic regression",
        from_zero,
        at_most=1.1,
    ),
    Claim(
        "With a transition to a fixed rate HD works for a larger range of β.",
        f"{PAPER}, Section 5.1",
        "pairs of α₀ and β of Figure 4's grid with which training does not diverge, without the transition over with "
        "it, below 1, where any diverges without it (to 0.001, over some ten iterations; the paper's example is "
        "shorter)",
        transition,
        found="pairs × {}",
        at_most=np.nextafter(1, 0),
    ),
    Claim(
        "On VGG α rises to about 0.025 (SGD-HD, SGDN-HD).",
        f"{PAPER}, Section 4.3",
        f"largest α of the whole network between 0.0125 and 0.05 in the first {paper.VGG_SHOWN:,} iterations, which "
        "the paper shows, for each description of the network",
        rises(0.0125, 0.05, NETWORKS, ("sgd_hd", "sgdn_hd"), first=paper.VGG_SHOWN),
        found="",
    ),
    Claim(
        "On VGG Adam-HD's α rises by 0.2 per cent.",
        f"{PAPER}, Section 4.3",
        "largest α of the whole network between 0.1 and 0.4 per cent above α₀, otherwise as before",
        rises(0.001001, 0.001004, NETWORKS, ("adam_hd",), first=paper.VGG_SHOWN),
        found="",
    ),
    Claim(
        "On VGG, SGD-HD and SGDN-HD end with a lower validation loss than their baselines.",
        f"{PAPER}, Section 4.3",
        "validation loss, mean of the last ten of 200 epochs of the whole network, HD over no HD, below 1",
        outperforms(
            partial(finals, column="valid_loss", epochs=10), NETWORKS, ("sgd_hd", "sgdn_hd"), at_least=vgg.EPOCHS
        ),
        found="validation loss × {}",
    ),
    Claim(
        "On VGG, Adam-HD ends with a lower training loss than Adam.",
        f"{PAPER}, Section 4.3",
        "training loss, mean of the last ten of 200 epochs of the whole network, HD over no HD, below 1",
        outperforms(partial(finals, epochs=10), NETWORKS, ("adam_hd",), at_least=vgg.EPOCHS),
    ),
)
