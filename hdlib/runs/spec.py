"""How a run is described: a validated, immutable value with a stable key."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Iterable
from functools import cache, cached_property, lru_cache
from typing import Any, Literal, Self, get_args

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hdlib.optim.control import AUTO_GAIN, OPTIONS, Control, Rule, Scaling, Skip, default_overshoot
from hdlib.tasks.data import SIZES

METHODS = ("sgd", "sgd_hd", "sgdn", "sgdn_hd", "adam", "adam_hd")  # the paper's
Method = Literal["sgd", "sgd_hd", "sgdn", "sgdn_hd", "adam", "adam_hd", "prodigy"]
BASELINE = {"sgd_hd": "sgd", "sgdn_hd": "sgdn", "adam_hd": "adam"}

# In what the paper's runs with logistic regression and the perceptron differ, and what only says how much is recorded.
PAPER_FIELDS = frozenset(("task", "model", "method", "alpha0", "beta", "rule", "decay", "epochs", "seed"))
RECORDING_FIELDS = frozenset(("early", "validate_every"))
VGG_FIELDS = ("variant", "norm_start", "width_factor", "train_images")
IMAGE_MODELS = ("vgg", "vit")  # which see images with their height and width, and are trained on CIFAR-10

# Fields that only some runs have, by which field and values: of others they would make one run two, with two keys.
ONLY_OF = {
    **dict.fromkeys(VGG_FIELDS, ("model", ("vgg",))),
    "train_images": ("model", IMAGE_MODELS),
    **dict.fromkeys(("width", "depth"), ("model", ("mlp",))),
    "input_scale": ("model", ("logreg", "mlp")),
    "momentum": ("method", ("sgdn", "sgdn_hd")),
}


# what the optimisers call them, and what is asked of a grid
SYNONYMS = {"lr": "alpha0", "hypergrad_lr": "beta", "seeds": "seed", "optimizer": "method", "dataset": "task"}


class SpecError(ValueError):
    """What is asked of runs cannot be; the message is one sentence that names the field, the value and the remedy."""


class RunSpec(BaseModel):
    """One training run: everything that decides its outcome up to rounding, and nothing else.

    Two specs that are equal have the same `key`. Adding a field with a default to this class leaves the keys
    of all recorded runs as they are.

    Raises:
        SpecError: a value is outside what a run can have.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Literal["mnist", "digits", "cifar10"] = Field("mnist", description="data set")
    model: Literal["logreg", "mlp", "vgg", "vit"] = Field("logreg", description="model")
    width: int = Field(1000, ge=1, description="units of a hidden layer of the MLP")
    depth: int = Field(2, ge=1, description="hidden layers of the MLP")
    method: Method = Field(description="optimiser")
    alpha0: float = Field(
        ge=0, allow_inf_nan=False, description="initial learning rate alpha_0; of prodigy its first estimate d_0"
    )
    beta: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="hypergradient learning rate, which baselines lack and others need; 'auto' for that rule",
    )
    rule: Rule = Field("additive", description="how alpha is updated")
    decay: Literal["none", "inv_sqrt", "cosine"] = Field(
        "none",
        description="schedule that multiplies alpha, 1 / sqrt(t) or (1 + cos(pi (t-1) / T)) / 2 over all T iterations; "
        "where alpha adapts, with the rule 'auto' alone",
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="mu of sgdn and sgdn_hd")
    weight_decay: float = Field(1e-4, ge=0, allow_inf_nan=False, description="L2, added to the gradient")
    batch_size: int = Field(128, ge=1, description="minibatch size; an epoch's last minibatch may be smaller")
    epochs: int = Field(ge=1, description="passes over the training data, at most")
    max_iterations: int | None = Field(None, ge=1, description="stop after so many, within an epoch if need be")
    target_loss: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="stop at the first loss at or below this"
    )
    target_of: Literal["minibatch", "smoothed", "epoch"] = Field(
        "minibatch",
        description="whose loss the target is: a minibatch's, the mean of the last 100, or that of all training data "
        "at the end of an epoch",
    )
    validate_every: int = Field(1, ge=0, description="epochs between validations; 0 for none, and no epochs are kept")
    seed: int = Field(0, ge=0, lt=2**32, description="of the initial weights and the order of the minibatches")
    precision: Literal["float32", "float64", "tf32", "bf16"] = Field(
        "float32", description="of the arithmetic; parameters and hypergradients are float32 with tf32 and bf16"
    )
    min_lr: float | None = Field(None, description="lower bound of alpha")
    max_lr: float | None = Field(None, description="upper bound of alpha")
    max_change: float | None = Field(None, description="bound on the relative change of alpha in a step")
    scaling: Scaling = Field("none", description="running size that h is divided by")
    skip_nonfinite: Skip = Field("none", description="what a non-finite h leaves alone")
    overshoot: float | None = Field(None, description="slope after a step that is tolerated, relative to before it")
    final_lr: float | None = Field(None, description="learning rate to pass over to")
    transition: float = Field(1.0, description="steps that the passing over takes")
    input_scale: float = Field(1.0, gt=0, allow_inf_nan=False, description="factor on the normalised inputs")
    early: int = Field(1000, ge=0, description="iterations of which every one is traced; later ones log-spaced")
    variant: Literal["authors", "paper", "blog"] = Field(
        "authors", description="VGG as the authors' code, the paper's text, or the blog post that it follows has it"
    )
    norm_start: Literal["ones", "uniform"] = Field(
        "ones", description="how VGG's batch normalisation starts: at ones, or uniform in [0, 1] as in old versions"
    )
    width_factor: float = Field(1.0, gt=0, allow_inf_nan=False, description="VGG's channels and units over the paper's")
    train_images: int | None = Field(
        None, ge=1, le=50_000, description="of CIFAR-10: a fixed part of the images; None for all"
    )

    def __init__(self, **fields: Any) -> None:
        if isinstance(fields.get("beta"), str) and fields["beta"] == "auto":  # as the optimisers' hypergrad_lr
            if fields.get("rule") not in (None, "additive", "auto"):
                raise SpecError(f"rule is {fields['rule']!r} but beta is 'auto': leave the rule out, or give a number.")
            fields |= {"rule": "auto", "beta": AUTO_GAIN}
        if fields.get("method") in BASELINE and "beta" not in fields:
            raise SpecError(f"beta is missing, and {fields['method']} adapts with it: give a number, or 'auto'.")
        fields = {name: value + 0.0 if isinstance(value, float) else value for name, value in fields.items()}  # no -0.0
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise SpecError(_sentence(error)) from None

    @classmethod
    def read(cls, text: str, key: str) -> Self:
        """Return the spec that `canonical` wrote, validated, with its `key` computed only where the given may be wrong.

        Raises:
            SpecError: this version has no such run.
        """
        fields = json.loads(text)
        spec = cls(**{"beta": 0.0} | fields)
        defaults = _defaults()
        if _key(text) == key and all(value != defaults[name] for name, value in fields.items()):
            spec.__dict__["key"] = key  # to write thousands of specs again takes as long as to read them
        return spec

    @model_validator(mode="before")
    @classmethod
    def _numbers_not_text(cls, fields: Any) -> Any:
        for name, value in fields.items():
            if isinstance(value, str) and name in _numbers():
                raise ValueError(f"{name} is the string {value!r}: give a number, without quotes.")
        return fields

    @model_validator(mode="after")
    def _consistent(self) -> RunSpec:
        adapts = self.method in BASELINE
        if not adapts and self.beta != 0:
            raise ValueError(f"beta is {self.beta} but {self.method} does not adapt its learning rate: leave beta out.")
        bounded = not (self.min_lr is self.max_lr is self.final_lr is None)
        if adapts and self.decay != "none" and (self.rule != "auto" or bounded):
            raise ValueError(
                f"decay is {self.decay!r} but {self.method} adapts its learning rate: leave decay out, or take "
                "beta='auto' without min_lr, max_lr and final_lr."
            )
        if self.method == "prodigy" and self.alpha0 == 0:
            raise ValueError("alpha0 is 0.0 but prodigy multiplies its first estimate: give a small one, such as 1e-6.")
        if self.rule == "multiplicative" and self.beta >= 1:
            raise ValueError(f"beta is {self.beta} but the rule is 'multiplicative': give a beta below 1.")
        control = self.control()
        if not adapts and control != Control():
            changed = next(name for name in OPTIONS if getattr(control, name) != getattr(Control(), name))
            raise ValueError(f"{changed} is {getattr(self, changed)!r} but {self.method} does not adapt: leave it out.")
        control.check_start(self.alpha0, "alpha0")
        if self.target_of != "minibatch" and self.target_loss is None:
            raise ValueError(f"target_of is {self.target_of!r} but there is no target_loss: give one.")
        if (self.model in IMAGE_MODELS) != (self.task == "cifar10"):
            raise ValueError(
                f"model is {self.model!r} with task {self.task!r}: {' and '.join(IMAGE_MODELS)} go with cifar10, and "
                "only with it."
            )
        examples = self.train_images or SIZES[self.task][0]
        if self.batch_size > examples:
            remedy = "take no more" + (", or more train_images" if self.train_images else "")
            raise ValueError(f"batch_size is {self.batch_size} but a run trains on {examples} examples: {remedy}.")
        if self.variant == "paper" and self.norm_start != "ones":
            raise ValueError(
                f"norm_start is {self.norm_start!r} but variant 'paper' has no batch normalisation: leave it out."
            )
        if self.model not in IMAGE_MODELS and self.precision in ("tf32", "bf16"):
            those = " and ".join(IMAGE_MODELS)
            raise ValueError(f"precision is {self.precision!r} but the model is {self.model}: it is for {those}.")
        for name, (kind, those) in ONLY_OF.items():
            value, has = getattr(self, name), getattr(self, kind)
            if has not in those and value != _defaults()[name]:
                raise ValueError(f"{name} is {value!r} but the {kind} is {has}: it is for {' and '.join(those)}.")
        return self

    def control(self) -> Control:
        """Return how alpha moves."""
        options = {name: getattr(self, name) for name in OPTIONS}
        if self.overshoot is None:
            momentum = dict(sgd_hd=0.0, sgdn_hd=self.momentum, adam_hd=0.9).get(self.method, 0.0)
            options["overshoot"] = default_overshoot(self.rule, momentum, nesterov=self.method == "sgdn_hd")
        return _control(**options)

    @cached_property
    def changed(self) -> frozenset[str]:
        """The names of the fields that do not have their default value."""
        return frozenset(self.model_dump(exclude_defaults=True))

    def as_in_the_paper(self, *besides: str) -> bool:
        """Say whether the run has a method, a schedule and a model of the paper, and all else as its runs have it.

        Args:
            besides: fields that may differ, beside those in which the paper's runs do and RECORDING_FIELDS.
        """
        may_differ = PAPER_FIELDS | RECORDING_FIELDS | {*besides}
        of_the_paper = self.method in METHODS and self.decay != "cosine" and self.model != "vit"
        return of_the_paper and self.changed <= may_differ

    @cached_property
    def key(self) -> str:
        """Sixteen hexadecimal digits that stand for the spec: equal specs, equal keys."""
        return _key(self.canonical())

    def canonical(self) -> str:
        """Return the spec as JSON with sorted names and without the fields that have their default value."""
        return json.dumps(self.model_dump(exclude_defaults=True), sort_keys=True)

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return torch.float64 if self.precision == "float64" else torch.float32

    def steps_per_epoch(self, size: int) -> int:
        """Return how many iterations an epoch has, on `size` training examples."""
        return -(-size // self.batch_size)

    def schedule(self, t: int, size: int) -> float:
        """Return what the decay multiplies alpha with in iteration t, from 1, on `size` training examples."""
        if self.decay == "inv_sqrt":
            return 1 / math.sqrt(t)
        if self.decay == "cosine":
            return (1 + math.cos(math.pi * (t - 1) / self.iterations(size))) / 2
        return 1.0

    def iterations(self, size: int) -> int:
        """Return how many iterations the run takes at most, on `size` training examples."""
        return min(self.epochs * self.steps_per_epoch(size), self.max_iterations or math.inf)

    def with_(self, **changes: Any) -> RunSpec:
        """Return a copy with some fields changed, validated again; a number for beta is none of the rule "auto"."""
        fields = self.model_dump()
        if self.rule == "auto" and changes.get("beta", "auto") != "auto":
            del fields["rule"]
        return RunSpec(**(fields | changes))


def meant(name: str, known: Iterable[str]) -> str:
    """Return "did you mean beta? The fields" where a name that is not known is close to one, or else "the fields"."""
    close = SYNONYMS.get(name) or next(iter(difflib.get_close_matches(name, known, n=1)), None)
    return f"did you mean {close}? The fields" if close else "the fields"


def _key(canonical: str) -> str:
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


_control = lru_cache(maxsize=1024)(Control)  # few differ, of the thousands of runs in a store


@cache  # pydantic looks fields up anew each time, and a store has thousands of runs
def _defaults() -> dict[str, Any]:
    return {name: field.default for name, field in RunSpec.model_fields.items()}


@cache
def _numbers() -> frozenset[str]:
    """Return the names of the fields that take no text."""
    options = {name: get_args(field.annotation) for name, field in RunSpec.model_fields.items()}
    return frozenset(name for name, those in options.items() if not any(isinstance(one, str) for one in those))


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    name = ".".join(map(str, first["loc"]))
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    if first["type"] == "extra_forbidden":
        known = RunSpec.model_fields
        return f"{name} is not a field of a run: {meant(name, known)} are {', '.join(known)}."
    if first["type"] == "missing":
        return f"{name} is missing ({RunSpec.model_fields[name].description}): every run needs it."
    value = first["input"]
    reason = first["msg"][0].lower() + first["msg"][1:]
    if isinstance(value, float) and not math.isfinite(value):
        reason = "input should be a finite number"
    return f"{name} is {value!r}: {reason.replace('input', name)}."
