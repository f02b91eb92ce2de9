"""The critical beta, from which on training fails: bisected, and predicted from the curvatures of a cautious run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from hdlib.runs.experiments import VARIED, short, varied
from hdlib.runs.probe import recorded
from hdlib.runs.record import Record
from hdlib.runs.spec import RunSpec
from hdlib.runs.store import Store
from hdlib.runs.sweep import grid, sweep

ALPHA0 = 1e-3  # of every run whose critical beta is asked for
RISEN = 1.2  # times the first loss, above which a run that ends has failed; pages say "a fifth above" in words
PREDICTORS = {
    "at_start": "2 / κ at the first step",
    "largest": "2 / largest κ on the way",
    "growth": "growth of a deviation on the way",
}
# How far a deviation may grow, tried by `with_growth`.
GROWTHS = (2.0, 5.0, 10.0, 30.0, 100.0, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8)


# -- what is asked


def boundaries(models: int, seeds: int, iterations: int, **fields: Any) -> dict[str, list[RunSpec]]:
    """The runs, by model, whose critical beta is asked for, with Adam-HD and with SGD-HD."""
    return {
        name: [
            spec.with_(seed=seed)
            for method in ("adam_hd", "sgd_hd")
            for spec in [varied(ALPHA0, iterations, method, beta=0.0, **fields)[name]]
            for seed in range(seeds)
        ]
        for name in list(VARIED)[:models]
    }


def vgg_boundaries(factors: Sequence[float], seeds: int, **fields: Any) -> dict[str, list[RunSpec]]:
    """The same for VGG and all three methods, named "authors 0.125": both variants; of whole ones the authors', once.

    Args:
        factors: channels over the paper's.
        seeds: of the narrower networks.
    """
    asked = {}
    for factor in factors:
        whole = factor >= 1
        for variant in ("authors",) if whole else ("authors", "paper"):
            common = dict(task="cifar10", model="vgg", variant=variant, width_factor=factor, alpha0=ALPHA0, beta=0.0)
            asked[f"{variant} {factor:g}"] = grid(
                method=["adam_hd", "sgd_hd", "sgdn_hd"], seeds=1 if whole else seeds, **short(100, **(common | fields))
            )
    return asked


# -- measured


def failed(record: Record) -> bool:
    """Say whether training failed: a number was not finite, or the loss ended more than a fifth above the first.

    The end is the last tenth of the traced iterations. A run that learns nothing has not failed.
    """
    losses = record.trace["loss"].to_numpy()
    return record.outcome == "diverged" or not losses[-max(1, len(losses) // 10) :].mean() <= RISEN * losses[0]


def critical_betas(
    specs: Sequence[RunSpec],
    store: Store | str = "results",
    low: float = -9.0,
    high: float = 3.0,
    rounds: int = 8,
    **how,
) -> list[tuple[float, float, list[Record]]]:
    """Bisect, for each spec, the beta from which training fails; its own beta does not matter.

    Args:
        specs: hypergradient runs; every one needs its early iterations traced.
        store: where the runs are recorded.
        low: decimal logarithm of a beta below all that are tried.
        high: of one above them.
        rounds: bisections; the bracket ends 2**rounds times narrower.
        how: passed to `sweep`.

    Returns:
        For each spec the largest beta that worked and the smallest that failed, next to each other, and all runs.
        Where none of those that were tried worked, the first is 0; where none failed, the second is infinite.
    """
    store = store if isinstance(store, Store) else Store(store)  # one, which knows its files in each round
    brackets = [[low, high] for _ in specs]
    runs: list[list[Record]] = [[] for _ in specs]
    for _ in range(rounds):
        middle = [sum(bracket) / 2 for bracket in brackets]
        tried = [spec.with_(beta=float(f"{10**m:.3g}")) for spec, m in zip(specs, middle, strict=True)]
        for i, record in enumerate(sweep(tried, store, **how)):
            brackets[i][failed(record)] = middle[i]
            runs[i].append(record)
    return [
        (10**a if a > low else 0.0, 10**b if b < high else math.inf, records)
        for (a, b), records in zip(brackets, runs, strict=True)
    ]


def measured_boundaries(asked: dict[str, list[RunSpec]], store: Store | str, **how: Any) -> pd.DataFrame:
    """Return a row per run: model, method, seed, iterations, `critical` beta (middle of its bracket), and `PREDICTORS`.

    Where no beta that was tried failed, `critical` is infinite, and where none worked, 0: it lies above `works` or
    below `fails`, the largest that worked and the smallest that failed, and was not measured.
    `learnt` is the share of its first loss that the run lost from which the curvatures on the way are taken. The
    `attrs` say what made it: `runs`, the count, precision, devices and data of those that were bisected, and `steps`,
    the devices of the single steps.
    """
    names, specs = zip(*((name, spec) for name, own in asked.items() for spec in own), strict=True)
    brackets = critical_betas(specs, store, **how)
    rows = []
    for name, spec, (works, fails, _) in zip(names, specs, brackets, strict=True):
        bracket = dict(critical=(works * fails) ** 0.5, works=works, fails=fails)
        asked_of = dict(model=name, method=spec.method, seed=spec.seed, iterations=spec.max_iterations)
        rows.append(dict(**asked_of, **bracket, key=spec.key))
    frame = pd.DataFrame(rows).set_index("key").assign(**dict.fromkeys(("at_start", "largest", "learnt"), np.nan))
    frame[list(GROWTHS)] = np.nan
    folder = store.folder if isinstance(store, Store) else store
    devices = set()
    for own in asked.values():
        for method in dict.fromkeys(spec.method for spec in own):
            asked_for = {safe(spec).key: spec.key for spec in own if spec.method == method}
            specs = [safe(spec) for spec in own if spec.method == method]
            looked_into = recorded(specs, steps_looked_into(specs[0]), folder)
            devices.add(looked_into.attrs["made"]["device"])
            for key, steps in looked_into.groupby("key"):
                kappa = steps["kappa"].dropna()
                if kappa.empty:  # a run that ended with its first step has no curvature along one
                    continue
                frame.loc[asked_for[key], "at_start"] = 2 / kappa.iloc[0] if kappa.iloc[0] > 0 else float("nan")
                if len(kappa) == 1:
                    continue
                frame.loc[asked_for[key], "largest"] = 2 / kappa.max()
                losses = steps["loss"].to_numpy()
                frame.loc[asked_for[key], "learnt"] = 1 - losses[-10:].mean() / losses[0]
                frame.loc[asked_for[key], list(GROWTHS)] = betas_of_growth(kappa.to_numpy(), GROWTHS)
    frame = with_growth(frame.reset_index(drop=True))
    runs = [record for _, _, tried in brackets for record in tried]
    ran = {"count": len(runs), "precision": sorted({r.spec.precision for r in runs})}
    ran |= {name: sorted({r.provenance[name] for r in runs}) for name in ("device", "data")}
    frame.attrs = {"runs": ran, "steps": sorted(devices)}  # small: pandas copies them, deep, in whatever it does
    return frame


def safe(spec: RunSpec) -> RunSpec:
    """Return the run that keeps to the bottom of each parabola: an automatic beta, and greedy as the plain rule is."""
    return spec.with_(beta="auto", overshoot=0.0)


def steps_looked_into(spec: RunSpec) -> int:
    """Return how many steps are looked into: all, but of a VGG, which takes long, two, and so one curvature."""
    return 2 if spec.model == "vgg" else spec.max_iterations or 100


# -- predicted


def betas_of_growth(kappa: np.ndarray, factors: Sequence[float]) -> list[float]:
    """Return the betas from which alpha's deviation from the bottom of the parabola grows by factors on the way.

    A step with the curvature kappa_t multiplies the deviation by ``1 - beta kappa_t``, so a stretch of steps by the
    product; the stretch on which it grows most counts.

    Args:
        kappa: curvatures met on the way [steps].
        factors: growths that are asked for, above 1; one that no beta reaches has NaN.
    """
    betas = np.logspace(-12, 6, 1801)
    grown, most = np.zeros_like(betas), np.zeros_like(betas)
    for k in kappa:
        grown = np.maximum(grown, 0.0) + np.log(np.maximum(np.abs(1 - betas * k), 1e-12))
        most = np.maximum(most, grown)
    beyond = [most > np.log(factor) for factor in factors]
    return [float(betas[np.argmax(those)]) if those.any() else float("nan") for those in beyond]


def with_growth(measured: pd.DataFrame) -> pd.DataFrame:
    """Add `growth`, the prediction by `betas_of_growth`, and `factor`, the growth that it allows.

    The factor of a model is the one that suits the *other* models of the same method best: the model itself has no
    say in its prediction. Where there is no other, it is the smallest.

    Args:
        measured: a row per run with `model`, `method`, `critical` and a column for each of GROWTHS.
    """
    measured = measured.assign(growth=np.nan, factor=np.nan)
    for (model, method), own in measured.groupby(["model", "method"]):
        others = measured[(measured["method"] == method) & (measured["model"] != model)]
        off = {f: np.log(others["critical"] / others[f]).abs().median() for f in GROWTHS}
        factor = min(GROWTHS, key=lambda f: (off[f] if off[f] == off[f] else np.inf, f))
        measured.loc[own.index, "growth"] = own[factor]
        measured.loc[own.index, "factor"] = factor
    return measured.drop(columns=list(GROWTHS))
