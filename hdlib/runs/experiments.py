"""Which runs the pages on divergence, the critical beta, guards and the paper's own beta are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hdlib.runs.probe import decades
from hdlib.runs.spec import METHODS, RunSpec, SpecError
from hdlib.runs.sweep import grid, steps_per_epoch
from hdlib.runs.train import model_of
from hdlib.tasks.data import SIZES

HD = [method for method in METHODS if method.endswith("_hd")]
PAPER_RATES = [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6]
LARGER = [0.3, 1.0]  # fixed learning rates beyond those: on a perceptron SGD's best one is not among the paper's
# Those that guards are compared with: the paper's grid, which is too high for Adam-HD on a perceptron.
BETAS_TRIED = {method: [*PAPER_RATES, 1e-7, 1e-8] if method == "adam_hd" else PAPER_RATES for method in HD}

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

# Those that have a phase diagram: logistic regression, the paper's perceptron, a narrow one, and those that differ from
# the narrow one in one thing; batches of 1024 take too long for one.
MAPPED = [
    "logistic regression",
    "1 layer of 100",
    "2 layers of 30",
    "2 layers of 100",
    "2 layers of 1000 (the paper's)",
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
    """The guards on the paper's grid of alpha_0 and `BETAS_TRIED`; those with a beta of their own only over alpha_0."""
    common = dict(alpha0=PAPER_RATES, epochs=epochs, seeds=seeds, validate_every=epochs, early=0) | fields
    return {
        name: [
            spec
            for method, betas in BETAS_TRIED.items()
            for spec in grid(**{"beta": betas} | common | guard, method=method)
        ]
        for name, guard in GUARDS.items()
    }


def longer(asked: Sequence[Sequence[Any]], **fields: Any) -> list[tuple[str, list[RunSpec]]]:
    """Those of `guarded` by the plain rule and of `unguarded`, with the methods whose critical beta is measured.

    Args:
        asked: rows of a model of `VARIED`, epochs and seeds.

    Returns:
        The model and its runs, for each row.

    Raises:
        SpecError: a row is something else.
    """
    found = []
    for row in asked:
        if len(row) != 3 or row[0] not in VARIED:
            raise SpecError(f"longer has {row!r}: give a model, epochs and seeds. The models are {'; '.join(VARIED)}.")
        name, epochs, seeds = row
        own = VARIED[name] | fields
        asked_for = [*guarded(epochs, seeds, **own)["plain"], *unguarded(epochs, seeds, **own)]
        found.append((name, [spec for spec in asked_for if spec.method.split("_")[0] in ("adam", "sgd")]))
    return found


def noiseless(epochs: int, seeds: int, width: int) -> dict[str, list[RunSpec]]:
    """All digits in one batch, whose gradients have no noise: the automatic beta without and with an upper bound."""
    common = dict(task="digits", model="mlp", width=width, batch_size=1500, epochs=epochs, seeds=seeds)
    common |= dict(validate_every=epochs, early=epochs)
    automatic = dict(beta="auto", alpha0=1e-2) | common
    return {
        "no HD": grid(method=["sgd", "sgdn", "adam"], alpha0=[*PAPER_RATES, *LARGER], **common),
        "automatic": grid(method=HD, **automatic),
        "automatic, α at most 1": grid(method="sgd_hd", max_lr=1.0, **automatic),
        "automatic, α at most 0.1": grid(method=["sgdn_hd", "adam_hd"], max_lr=0.1, **automatic),
    }


def unguarded(epochs: int, seeds: int, **fields: Any) -> list[RunSpec]:
    """The baselines of `guarded`."""
    common = dict(alpha0=PAPER_RATES, epochs=epochs, seeds=seeds, validate_every=epochs, early=0) | fields
    return grid(method=["sgd", "sgdn", "adam"], **common)


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
    shown = spec.method in ("sgd_hd", "adam_hd", "adam") and spec.rule == "additive" and spec.alpha0 in PAPER_RATES
    return shown and spec.as_in_the_paper() and spec.validate_every == 1 and spec.epochs >= 3 and spec.task == task


def parameter_count(spec: RunSpec) -> int:
    """Return how many parameters a run's model has."""
    _, features, classes = SIZES[spec.task]
    return sum(p.numel() for p in model_of(spec, features, classes).parameters())
