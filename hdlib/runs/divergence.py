"""Which runs the pages on divergence and on guards are made of, and what they ask of single steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from hdlib.runs.probe import critical_betas, decades, recorded
from hdlib.runs.spec import METHODS, PAPER_FIELDS, RunSpec
from hdlib.runs.store import Store
from hdlib.runs.sweep import grid, steps_per_epoch
from hdlib.runs.train import model_of
from hdlib.tasks.data import SIZES

HD = [method for method in METHODS if method.endswith("_hd")]
PAPER_RATES = [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6]

# The models whose critical beta is predicted and measured, chosen before either was looked at.
VARIED: dict[str, dict[str, Any]] = {
    "logistic regression": dict(model="logreg"),
    "logistic regression, inputs × 0.3": dict(model="logreg", input_scale=0.3),
    "1 layer of 100": dict(model="mlp", depth=1, width=100),
    "1 layer of 1000": dict(model="mlp", depth=1, width=1000),
    "2 layers of 30": dict(model="mlp", depth=2, width=30),
    "2 layers of 100": dict(model="mlp", depth=2, width=100),
    "2 layers of 300": dict(model="mlp", depth=2, width=300),
    "2 layers of 1000 (the paper's)": dict(model="mlp", depth=2, width=1000),
    "3 layers of 100": dict(model="mlp", depth=3, width=100),
    "5 layers of 100": dict(model="mlp", depth=5, width=100),
    "2 layers of 100, batches of 16": dict(model="mlp", depth=2, width=100, batch_size=16),
    "2 layers of 100, batches of 1024": dict(model="mlp", depth=2, width=100, batch_size=1024),
    "2 layers of 100, inputs × 0.3": dict(model="mlp", depth=2, width=100, input_scale=0.3),
    "2 layers of 100, inputs × 3": dict(model="mlp", depth=2, width=100, input_scale=3.0),
}

# Those that differ from a narrow perceptron in one thing, for phase diagrams; batches of 1024 take too long for one.
OTHERS = [
    "2 layers of 30",
    "1 layer of 100",
    "3 layers of 100",
    "5 layers of 100",
    "2 layers of 100, batches of 16",
    "2 layers of 100, inputs × 0.3",
    "2 layers of 100, inputs × 3",
]

# The guards that are compared: what each adds to the plain rule, and the beta of those that have one of their own.
GUARDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bounds 0 and 0.1": dict(min_lr=0.0, max_lr=0.1),
    "change of at most 10 %": dict(max_change=0.1),
    "multiplicative": dict(rule="multiplicative"),
    "log space": dict(rule="log"),
    "α kept where h is not finite": dict(skip_nonfinite="alpha"),
    "step skipped where h is not finite": dict(skip_nonfinite="step"),
    "AdaGrad on h": dict(scaling="adagrad"),
    "Adam on h": dict(scaling="adam"),
    "transition to 0.001": dict(final_lr=1e-3, transition=10.0),
    "overshoot 0.1": dict(overshoot=0.1),
    "β = 0.5 / κ, at most × 2": dict(rule="curvature", beta=0.5, max_change=1.0),
    "automatic": dict(beta="auto"),
    "automatic, greedy": dict(beta="auto", overshoot=0.0),
}


def short(iterations: int, **fields: Any) -> dict[str, Any]:
    """Return the fields of runs that are traced at every one of a few iterations and nowhere validated."""
    sizes = {name: fields[name] for name in ("task", "batch_size", "train_images") if name in fields}
    epochs = max(1, -(-iterations // steps_per_epoch(**sizes)))
    return dict(epochs=epochs, max_iterations=iterations, validate_every=0, early=iterations) | fields


def blow_ups(beta: float, iterations: int, seeds: int, **fields: Any) -> list[RunSpec]:
    """Adam-HD with one beta from the paper's initial learning rates."""
    return grid(method="adam_hd", alpha0=PAPER_RATES, beta=beta, seeds=seeds, **short(iterations, **fields))


def phase(points: int, iterations: int, seeds: int, **fields: Any) -> list[RunSpec]:
    """All hypergradient methods on a grid of alpha_0 and beta, each from 1e-6 to 1e-1, and their baselines."""
    rates = decades(-6, -1, points)
    common = dict(alpha0=rates, seeds=seeds, **short(iterations, **fields))
    return grid(method=["sgd", "sgdn", "adam"], **common) + grid(method=HD, beta=rates, **common)


def varied(alpha0: float, iterations: int, method: str, **fields: Any) -> dict[str, RunSpec]:
    """The models whose critical beta is measured, with one method; beta is to be found."""
    return {
        name: RunSpec(method=method, alpha0=alpha0, **short(iterations, **(model | fields)))
        for name, model in VARIED.items()
    }


def guarded(epochs: int, seeds: int, **fields: Any) -> dict[str, list[RunSpec]]:
    """The guards on the paper's grid of alpha_0 and beta; those with a beta of their own only over alpha_0."""
    common = dict(method=HD, alpha0=PAPER_RATES, epochs=epochs, seeds=seeds, validate_every=epochs, early=0) | fields
    return {name: grid(**({"beta": PAPER_RATES} | common | guard)) for name, guard in GUARDS.items()}


def unguarded(epochs: int, seeds: int, **fields: Any) -> list[RunSpec]:
    """The baselines of `guarded`."""
    common = dict(alpha0=PAPER_RATES, epochs=epochs, seeds=seeds, validate_every=epochs, early=0) | fields
    return grid(method=["sgd", "sgdn", "adam"], **common)


# -- critical betas, measured and predicted

PREDICTORS = {
    "at_start": "2 / κ at the first step",
    "largest": "2 / largest κ on the way",
    "growth": "growth of a deviation on the way",
}
# How far a deviation may grow, tried by `with_growth`.
GROWTHS = (2.0, 5.0, 10.0, 30.0, 100.0, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8)


def beta_of_growth(kappa: np.ndarray, factor: float) -> float:
    """Return the beta from which alpha's deviation from the bottom of the parabola grows by a factor on the way.

    A step with the curvature kappa_t multiplies the deviation by ``1 - beta kappa_t``, so a stretch of steps by the
    product; the stretch on which it grows most counts.

    Args:
        kappa: curvatures met on the way [steps].
        factor: growth that is asked for, above 1.
    """
    betas = np.logspace(-12, 6, 1801)
    grown, most = np.zeros_like(betas), np.zeros_like(betas)
    for k in kappa:
        grown = np.maximum(grown, 0.0) + np.log(np.maximum(np.abs(1 - betas * k), 1e-12))
        most = np.maximum(most, grown)
    beyond = most > np.log(factor)
    return float(betas[np.argmax(beyond)]) if beyond.any() else float("nan")


def with_growth(measured: pd.DataFrame) -> pd.DataFrame:
    """Add `growth`, the prediction by `beta_of_growth`, and `factor`, the growth that it allows.

    The factor of a model is the one that suits the *other* models of the same method best: the model itself has no
    say in its prediction. Where there is no other, it is the smallest.

    Args:
        measured: a row per run with `model`, `method`, `critical` and a column for each of GROWTHS.
    """
    measured = measured.assign(growth=np.nan, factor=np.nan)
    for (model, method), own in measured.groupby(["model", "method"]):
        others = measured[(measured["method"] == method) & (measured["model"] != model)]
        off = {f: np.log(others["critical"] / others[f]).abs().median() for f in GROWTHS}
        factor = min(GROWTHS, key=lambda f: (off[f] if off[f] == off[f] else 0.0, f))
        measured.loc[own.index, "growth"] = own[factor]
        measured.loc[own.index, "factor"] = factor
    return measured.drop(columns=list(GROWTHS))


def boundaries(models: int, **fields: Any) -> dict[str, list[RunSpec]]:
    """The runs, by model, whose critical beta is asked for: three seeds a method."""
    return {
        name: [
            spec.with_(seed=seed)
            for method in ("adam_hd", "sgd_hd")
            for spec in [varied(1e-3, 100, method, **fields)[name]]
            for seed in range(3)
        ]
        for name in list(VARIED)[:models]
    }


def vgg_boundaries(factors: Sequence[float], seeds: int, **fields: Any) -> dict[str, list[RunSpec]]:
    """The same for VGG, named "authors 0.125": both variants at some widths; of whole ones the authors', Adam-HD, once.

    Args:
        factors: channels over the paper's.
        seeds: of the narrower networks.
    """
    asked = {}
    for factor in factors:
        whole = factor >= 1
        for variant in ("authors",) if whole else ("authors", "paper"):
            common = dict(task="cifar10", model="vgg", variant=variant, width_factor=factor, alpha0=1e-3)
            method = ["adam_hd"] if whole else ["adam_hd", "sgd_hd", "sgdn_hd"]
            asked[f"{variant} {factor:g}"] = grid(
                method=method, seeds=1 if whole else seeds, **short(100, **(common | fields))
            )
    return asked


def measured_boundaries(asked: dict[str, list[RunSpec]], store: Store | str, **how: Any) -> pd.DataFrame:
    """Return a row per run: model, method, seed, `critical` beta (the middle of its bracket), and `PREDICTORS`.

    Where no beta that was tried failed, `critical` is infinite, and where none worked, 0: it lies above `works` or
    below `fails`, the largest that worked and the smallest that failed, and was not measured.
    `learnt` is the share of its first loss that the run lost from which the curvatures on the way are taken.
    """
    names, specs = zip(*((name, spec) for name, own in asked.items() for spec in own), strict=True)
    brackets = critical_betas(specs, store, **how)
    rows = []
    for name, spec, (works, fails, _) in zip(names, specs, brackets, strict=True):
        bracket = dict(critical=(works * fails) ** 0.5, works=works, fails=fails)
        rows.append(dict(model=name, method=spec.method, seed=spec.seed, **bracket, key=spec.key))
    frame = pd.DataFrame(rows).set_index("key").assign(**dict.fromkeys(("largest", "learnt"), np.nan))
    frame[list(GROWTHS)] = np.nan
    folder = store.folder if isinstance(store, Store) else store
    for own in asked.values():
        for method in dict.fromkeys(spec.method for spec in own):
            asked_for = {safe(spec).key: spec.key for spec in own if spec.method == method}
            specs = [safe(spec) for spec in own if spec.method == method]
            for key, steps in recorded(specs, steps_looked_into(specs[0]), folder).groupby("key"):
                kappa = steps["kappa"].dropna()
                frame.loc[asked_for[key], "at_start"] = 2 / kappa.iloc[0] if kappa.iloc[0] > 0 else float("nan")
                if len(kappa) == 1:
                    continue
                frame.loc[asked_for[key], "largest"] = 2 / kappa.max()
                losses = steps["loss"].to_numpy()
                frame.loc[asked_for[key], "learnt"] = 1 - losses[-10:].mean() / losses[0]
                for factor in GROWTHS:
                    frame.loc[asked_for[key], factor] = beta_of_growth(kappa.to_numpy(), factor)
    return with_growth(frame.reset_index(drop=True))


def safe(spec: RunSpec) -> RunSpec:
    """Return the run that keeps to the bottom of each parabola: an automatic beta, and greedy as the plain rule is."""
    return spec.with_(beta="auto", overshoot=0.0)


def steps_looked_into(spec: RunSpec) -> int:
    """Return how many steps are looked into: all, but of a VGG, which takes long, two, and so one curvature."""
    return 2 if spec.model == "vgg" else spec.max_iterations or 100


def name_of(width: int) -> str:
    """Return the name in `VARIED` of the perceptron with two hidden layers of a width."""
    named = [name for name, model in VARIED.items() if model == dict(model="mlp", depth=2, width=width)]
    return named[0] if named else ""


# -- what the paper ran


def candidates(epochs: int, **fields: Any) -> list[RunSpec]:
    """Logistic regression with betas that the paper may have used in its Figure 2."""
    betas = [1e-6, 1e-5, 1e-4, 1e-3]
    return grid(
        method=["sgd_hd", "adam_hd"],
        model="logreg",
        alpha0=PAPER_RATES,
        beta=betas,
        epochs=epochs,
        early=0,
        seed=0,
        **fields,
    )


def mlp_candidates(epochs: int, **fields: Any) -> list[RunSpec]:
    """The same for the perceptron, beside the betas of the pages on online tuning."""
    common = dict(model="mlp", alpha0=PAPER_RATES, epochs=epochs, early=0, seed=0) | fields
    return [
        *grid(method="sgd_hd", beta=[1e-6, 1e-3], **common),
        *grid(method="adam_hd", beta=[1e-8, 1e-6, 1e-5], **common),
    ]


def is_online_tuning(spec: RunSpec, task: str) -> bool:
    """Say whether a recorded run is one whose learning rates the paper's Figure 2 shows too."""
    informative = spec.method in ("sgd_hd", "adam_hd", "adam") and spec.epochs >= 3 and spec.alpha0 in PAPER_RATES
    return informative and spec.task == task and spec.changed <= (PAPER_FIELDS | {"early"}) - {"rule"}


def parameter_count(spec: RunSpec) -> int:
    """Return how many parameters a run's model has."""
    _, features, classes = SIZES[spec.task]
    return sum(p.numel() for p in model_of(spec, features, classes).parameters())
