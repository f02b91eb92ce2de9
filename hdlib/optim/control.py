"""How alpha moves: the paper's two rules, others that need less tuning, and guards against divergence.

Pure functions. Every quantity is a Python float, a 0-dim tensor, or a vector over models [K] (float64 where the
device has it), so one definition serves an optimiser's parameter group, a compiled step and a stack of models.
Nothing branches on a tensor's value.

In the notation of `hdlib.optim.rules`, with s_{t-1} = g_{t-1} . D_{t-1}, the slope of the loss in alpha at the
*start* of the last step. It is negative for a descent direction. The hypergradient h_t = g_t . D_{t-1} is the slope
at its *end*. To second order the loss along the last direction is a parabola in alpha with the curvature
kappa = D' H D, so h_t = s_{t-1} + alpha_{t-1} kappa, and two numbers that the optimiser has anyway measure kappa.

Sources:
    additive, multiplicative, final_lr: Baydin et al., ICLR 2018 (arXiv 1703.04782), Eq. 6, Eq. 8 and Section 5.1.
    log: the exponentiated-gradient step size of Amid et al., 2022 (arXiv 2202.00145).
    scaling: Duchi et al., JMLR 12 (2011), and Kingma and Ba, ICLR 2015 (arXiv 1412.6980), applied to h.
    auto, curvature, overshoot: this project; the page on guards measures them. That a greedily chosen alpha is
    too small in the long run is Wu et al., ICLR 2018 (arXiv 1803.02021).
"""

from __future__ import annotations

import math
import numbers
import operator
from dataclasses import dataclass, fields
from typing import Any, Literal, TypedDict, cast, get_args

import torch
from torch import Tensor

from hdlib.optim import rules

Rule = Literal["additive", "multiplicative", "log", "curvature", "auto"]
RULES = get_args(Rule)
Scaling = Literal["none", "adagrad", "adam"]
SCALINGS = get_args(Scaling)
Skip = Literal["none", "alpha", "step"]
SKIPS = get_args(Skip)

AUTO_GAIN = 1.0  # beta of the rule "auto"
BETAS = {"multiplicative": 0.02, "curvature": 0.5, "auto": AUTO_GAIN}  # where none is given; a beta without a unit
AUTO_START = 10.0  # what its sum of squares begins with: no step raises alpha by 1.5 with its own beta and overshoot
AUTO_OVERSHOOT = 0.3  # of a method whose direction is the gradient; `default_overshoot` says what of others
AUTO_STEPS = 300.0  # after which its overshoot has halved
AUTO_FIRST = 0.3  # of their norm, by which its first step moves the parameters at most
AUTO_MEMORY = 0.9  # of the fading mean of what its steps gain
AUTO_JUMP = 10.0  # times that, which a gain counts at most: after a loss the next one is only recovery
AUTO_DROP = 0.1  # of alpha, to which one step that lost lowers it at most
AUTO_WORTH = 1e-3  # of what a step usually gains; one that had less to gain or lose moves alpha in proportion
RATIO_RANGE = (-1.0, 1.0)  # of the slope ratio; without noise 1: the slope did not change, -1: the edge of stability
CURVATURE_MEMORY = 0.9
SCALING_BETAS = (0.9, 0.999)

Scalar = float | Tensor
State = dict[str, Scalar]


@dataclass(frozen=True)
class Control:
    """What decides the next alpha beside alpha, beta and h. Everything is off by default: the paper's algorithm.

    Attributes:
        rule: how alpha follows h. With a_t = alpha_t, the slope ``s_t = g_t . D_t`` at the start of a step, and
            the ratio ``r_t = -h_t / |s_{t-1}|``::

                "additive"        a_t = a_{t-1} - beta h_t
                "multiplicative"  a_t = a_{t-1} (1 - beta h_t / (|g_t| |D_{t-1}|))
                "log"             log a_t = log a_{t-1} - beta h_t
                "curvature"       a_t = a_{t-1} - (beta / kappa) h_t, kappa from successive hypergradients:
                                  the sums of gamma (h - s) and gamma^2, fading by 0.9 a step, divided, with the
                                  size of the step that was taken, gamma = a without a `final_lr`
                "auto"            log a_t = log a_{t-1} + beta x_t / sqrt(10 + x_1^2 + ... + x_t^2),
                                  x_t = w_t (clip(r_t, -1, 1) + overshoot / (1 + t / 300)),
                                  w_t = min(1, 1000 max(p_t, -f_t) / F_t); and after a step that lost more than
                                  others gain, f_t < -F_t, at most a_{t-1} d_t,
                                  d_t = max(1/10, max(p_t, 2 F_t) / (a_{t-1} (|s_{t-1}| + |h_t|)))^min(beta, 1)

            There t counts the steps whose slope was not zero: where s_{t-1} is, as with a loss that is switched off,
            nothing is known and alpha stays. ``p_t = a_{t-1} |s_{t-1}|`` is what the slope at its start promised of
            the last step, ``f_t = a_{t-1} (|s_{t-1}| - h_t) / 2`` what it gained by the trapezoid rule, and F_t what
            steps usually gain: with ``g_t = clip(f_t, 0, 10 F_{t-1})``, where F is still zero p_t in place of its
            tenfold, the mean of g_1 to g_t or the fading mean ``m_t = 0.9 m_{t-1} + 0.1 g_t``, whichever is more. In
            p, f and d, a_{t-1} is the size of the step that was taken, also if alpha was written to since. So where
            gradients have no noise and the loss goes to zero alpha does not grow without end, and after a step that
            lost much the next one goes to the bottom of its parabola.
            "auto" is beta = c_t / kappa with the curvature ``|s| / alpha`` that would make the last step exactly
            right, and c_t shrinking as AdaGrad's steps do. It has no unit, so its beta is 1 for every model. Its
            first alpha is at most ``0.3 |theta_0| / |D_1|`` (`first_alpha`), unless theta_0 is zero.
        min_lr: lower bound of alpha.
        max_lr: upper bound of alpha, above 0.
        max_change: bound on ``|alpha_t - alpha_{t-1}| / |alpha_{t-1}|``. Below 1 alpha keeps its sign; from 1 on it
            can come to 0, and has no room to leave it again.
        scaling: divide h by a running size of it: "adagrad", sqrt of the sum of h^2, or "adam", its moving
            averages with 0.9 and 0.999. beta then has the unit of alpha.
        skip_nonfinite: where h is not a finite number keep alpha ("alpha"), or leave alpha and the parameters as
            they are ("step", also where the gradient is not finite): in each parameter group by itself, unless they
            share one alpha. A sum of squares that overflows is not finite either, in float32 that of gradients of
            about 1e19.
        overshoot: how far the slope after a step may point uphill, as a fraction of the slope before it, before
            alpha shrinks: h_t is replaced by ``h_t - overshoot |s_{t-1}|``, with the rule "multiplicative" by no more
            than ``|g_t| |D_{t-1}|``, so that its bound holds. 0 is the paper's greedy choice. None is 0;
            with the rule "auto", where it fades, it is 0.3 at first, and the optimisers make less of it with momentum
            (`default_overshoot`).
        final_lr: alpha_inf, the learning rate to end with: the parameters move by gamma_t D_t with
            ``gamma_t = delta_t alpha_t + (1 - delta_t) alpha_inf``, ``delta_t = 1 / (1 + (t - 1) / transition)^2``.
            It ends there for certain with the additive rule alone: with those that multiply, alpha_t can grow faster
            than delta_t falls.
        transition: steps after which delta is a quarter; 1 gives the paper's 1 / t^2. Without `final_lr` it does
            nothing.

    Raises:
        ValueError: a value is outside its range; the message names it.
    """

    rule: str = "additive"
    min_lr: float | None = None
    max_lr: float | None = None
    max_change: float | None = None
    scaling: str = "none"
    skip_nonfinite: str = "none"
    overshoot: float | None = None
    final_lr: float | None = None
    transition: float = 1.0

    def __post_init__(self) -> None:
        for name, known in (("rule", RULES), ("scaling", SCALINGS), ("skip_nonfinite", SKIPS)):
            if getattr(self, name) not in known:
                choices = ", ".join(map(repr, known))
                raise ValueError(f"{name} is {getattr(self, name)!r}: it must be one of {choices}.")
        for name in ("min_lr", "max_lr", "max_change", "overshoot", "final_lr", "transition"):
            value = getattr(self, name)
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value)
            ):
                quoted = " (write it without quotes)" if isinstance(value, str) else ""
                raise ValueError(f"{name} is {value!r}: it must be a finite number{quoted}, or None for no such guard.")
        for name in ("max_lr", "max_change", "transition"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} is {value}: it must be above 0.")
        for name in ("overshoot", "final_lr"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name} is {value}: it must be at least 0.")
        if self.transition is None:
            raise ValueError("transition is None: it must be above 0.")
        if self.overshoot is not None and self.overshoot >= 1:
            raise ValueError(f"overshoot is {self.overshoot}: at 1 a step no longer lowers the loss, so take less.")
        if self.min_lr is not None and self.max_lr is not None and self.min_lr > self.max_lr:
            raise ValueError(f"min_lr is {self.min_lr}, above max_lr, which is {self.max_lr}: exchange them.")
        if self.scaling != "none" and self.rule not in ("additive", "log"):
            raise ValueError(
                f"scaling is {self.scaling!r} with the rule {self.rule!r}, which scales h itself: leave scaling out."
            )

    def check_start(self, lr: float, name: str = "lr") -> None:
        """Refuse an alpha_0 that is out of bounds, or that factors would leave at 0.

        Raises:
            ValueError: it is; the message calls it `name`.
        """
        for bound, outside in (("min_lr", operator.lt), ("max_lr", operator.gt)):
            limit = getattr(self, bound)
            if limit is not None and outside(lr, limit):
                raise ValueError(f"{name} is {float(lr)}, outside of {bound}={limit}: start within the bounds.")
        factors = [f"rule={self.rule!r}"] if self.rule != "additive" else []
        factors += [f"max_change={self.max_change}"] if self.max_change is not None else []
        if lr == 0 and factors:
            raise ValueError(
                f"{name} is 0 with {' and '.join(factors)}: alpha would be changed by factors and stay at 0, so start "
                f"from a small positive {name}, such as 1e-6."
            )

    def bounded(self, alpha: Scalar) -> Scalar:
        """Return alpha, or the bound that is nearest to it."""
        return _clip(alpha, self.min_lr, self.max_lr)

    @property
    def tolerance(self) -> float:
        """The overshoot that is in force, with the rule "auto" that of the start."""
        if self.overshoot is None:
            return AUTO_OVERSHOOT if self.rule == "auto" else 0.0
        return self.overshoot

    @property
    def needs_slope(self) -> bool:
        """Whether `next_alpha` needs s_{t-1}."""
        return self.rule in ("curvature", "auto") or self.tolerance > 0

    @property
    def needs_norms(self) -> bool:
        """Whether `next_alpha` needs |g_t|^2 and |D_{t-1}|^2."""
        return self.rule == "multiplicative"


class Guards(TypedDict, total=False):
    """What the optimisers take beside their named arguments: `Control`'s attributes, which say what each does."""

    min_lr: float | None
    max_lr: float | None
    max_change: float | None
    scaling: Scaling
    skip_nonfinite: Skip
    overshoot: float | None
    final_lr: float | None
    transition: float


OPTIONS = tuple(field.name for field in fields(Control))
# where a parameter group keeps each: torch's OneCycleLR writes values of its own to "min_lr" and "max_lr"
KEYS = {name: f"hypergrad_{name}" if name in ("min_lr", "max_lr") else name for name in OPTIONS}


def default_overshoot(rule: str, momentum: float = 0.0, nesterov: bool = False) -> float | None:
    """Return the overshoot of a rule where none is asked for: None but for the rule "auto".

    Where noise outweighs the gradient, the tolerance alone decides how long the steps are. For a direction that sums
    past gradients with the weights c_0, c_1, ..., the slope at the start of a step is c_0 times that of SGD, the
    curvature along it is sum(c_k^2) times SGD's, and a gradient moves the parameters by alpha sum(c_k) in all. So
    the tolerance is divided by ``c_0 sum(c_k) / sum(c_k^2)``, which makes it worth the same to every method.

    Args:
        rule: that of `Control`.
        momentum: mu of the velocity, or Adam's beta_1; the weights are its powers.
        nesterov: whether the direction is the gradient plus mu times the velocity.
    """
    if rule != "auto":
        return None
    first, squares = 1.0, 1 / (1 - momentum**2)
    if nesterov:
        first, squares = 1 + momentum, (1 + momentum) ** 2 + momentum**4 / (1 - momentum**2)
    return AUTO_OVERSHOOT * squares * (1 - momentum) / first


def initial_state(control: Control) -> State:
    """Return what the options remember between steps, before the first: names and zeros. Empty for the paper's rules.

    For a stack of models the zeros become vectors [K] in the first update.
    """
    names: list[str] = []
    if control.scaling != "none":
        names += ["hypergrad_sq"]
    if control.scaling == "adam":
        names += ["hypergrad_mean", "hypergrad_count"]
    if control.rule == "curvature":
        names += ["curvature_rise", "curvature_run"]
    if control.rule == "auto":
        names += ["ratio_sq", "ratio_count", "gain_sum", "gain_mean", "step_size"]
    if control.final_lr is not None:
        names += ["transition_step", "step_size"]
    return dict.fromkeys(names, 0.0)


def next_alpha(
    alpha: Scalar,
    h: Scalar,
    beta: Scalar,
    control: Control = Control(),
    state: State | None = None,
    *,
    grad_sq: Scalar | None = None,
    direction_sq: Scalar | None = None,
    slope: Scalar | None = None,
) -> tuple[Scalar, State]:
    """Return alpha_t and the new state, from alpha_{t-1} and the hypergradient h_t = g_t . D_{t-1}.

    Args:
        alpha: alpha_{t-1}.
        h: the paper's h_t.
        beta: hypergradient learning rate; what it means depends on the rule.
        control: the rule and its guards.
        state: what `step_size` returned for the last step, or `initial_state(control)` before it; not changed.
        grad_sq: |g_t|^2, where `control.needs_norms`.
        direction_sq: |D_{t-1}|^2, where `control.needs_norms`.
        slope: s_{t-1} = g_{t-1} . D_{t-1}, where `control.needs_slope`.

    All arguments are floats or tensors that broadcast.
    """
    state = dict(initial_state(control) if state is None else state)
    downhill = abs(cast(Any, slope)) if control.needs_slope else None
    proposed = _propose(alpha, h, beta, control, state, downhill, slope, grad_sq, direction_sq)
    if control.skip_nonfinite != "none":
        proposed = _where(_finite(h), proposed, alpha)
    if control.max_change is not None:
        room: Any = control.max_change * cast(Any, abs(alpha))
        proposed = _clip(proposed, alpha - room, alpha + room)
    return control.bounded(proposed), state


def first_alpha(alpha: Scalar, control: Control, params_sq: Scalar, direction_sq: Scalar) -> Scalar:
    """Return alpha_1 of the rule "auto": alpha_0, or less if the first step would move the parameters too far.

    Nothing is known of the curvature then, and what a first step of ten times the weights' size destroys is not
    made good later. Parameters that are all zero have no size, and no bound. What is less stays within the bounds.

    Args:
        alpha: alpha_0.
        control: the bounds of alpha.
        params_sq: |theta_0|^2.
        direction_sq: |D_1|^2.
    """
    size, length = _root(params_sq), _root(direction_sq)
    far = (size > 0) & _finite(length) & (alpha * length > AUTO_FIRST * size)
    less = _clip(AUTO_FIRST * size / (length + (length == 0)), control.min_lr, control.max_lr)
    return _where(far, less, alpha)


def step_size(alpha: Scalar, control: Control, state: State) -> tuple[Scalar, State]:
    """Return gamma_t, what the parameters move by, and the new state: alpha_t itself without a `final_lr`.

    The rule "auto" remembers it: before the next step somebody, such as a scheduler, may write another alpha.
    """
    if control.final_lr is None:
        return alpha, state | {"step_size": alpha} if control.rule == "auto" else state
    t = state["transition_step"] + 1.0
    delta = 1.0 / (1.0 + (t - 1.0) / control.transition) ** 2
    gamma = delta * alpha + (1.0 - delta) * control.final_lr
    return gamma, state | {"transition_step": t, "step_size": gamma}


def _propose(
    alpha: Any,
    h: Any,
    beta: Any,
    control: Control,
    state: State,
    downhill: Any,
    slope: Any,
    grad_sq: Any,
    direction_sq: Any,
) -> Any:
    """Return alpha by the rule alone, and update the state in place."""
    if control.rule == "auto":
        return _automatic(alpha, h, beta, control, state, downhill)
    target = h - control.tolerance * downhill if control.tolerance > 0 else h
    if control.rule == "curvature":
        size = abs(h) + downhill  # zero where the gradients were, which tells nothing
        measured = (size > 0) & (size < math.inf)
        taken: Any = alpha if control.final_lr is None else state["step_size"]
        rise: Any = CURVATURE_MEMORY * state["curvature_rise"] + _where(measured, taken * (h - slope), 0.0)
        run: Any = CURVATURE_MEMORY * state["curvature_run"] + _where(measured, taken * taken, 0.0)
        state["curvature_rise"], state["curvature_run"] = rise, run
        return alpha - beta * target * run / (abs(rise) + (rise == 0))
    target = _scaled(target, control, state)
    if control.rule == "log":
        return alpha * _exp(-beta * target)
    if control.rule == "multiplicative":
        grad_norm, direction_norm = _root(grad_sq), _root(direction_sq)
        if control.tolerance > 0:  # of the last step's slope, which may have been far larger than this one's can be
            largest = grad_norm * direction_norm
            target = _clip(target, -largest, largest)
        return rules.next_alpha(alpha, target, beta, "multiplicative", grad_norm, direction_norm)
    return rules.next_alpha(alpha, target, beta)


def _automatic(alpha: Any, h: Any, beta: Any, control: Control, state: State, downhill: Any) -> Any:
    """Return alpha by the rule "auto", and update the state in place."""
    known = downhill != 0  # a gradient of zero tells nothing
    if isinstance(known, Tensor):
        known = known.to(downhill.dtype)
    taken: Any = state["step_size"]
    promised = abs(taken) * downhill  # by the slope at the start of the last step
    gained = known * taken * (downhill - h) / 2
    gained = _where(_finite(gained), gained, 0.0)
    usual = _usual_gain(state)
    limit = _where(usual > 0, AUTO_JUMP * usual, promised)
    gain: Any = _where(gained > limit, limit, _clip(gained, 0.0, None))
    state["ratio_count"] = count = cast(Any, state["ratio_count"]) + known
    state["gain_sum"] = state["gain_sum"] + gain
    state["gain_mean"] = state["gain_mean"] + known * (1 - AUTO_MEMORY) * (gain - state["gain_mean"])
    usual = _usual_gain(state)

    ratio: Any = _where(_finite(h - downhill), -h / (downhill + (downhill == 0)), RATIO_RANGE[0])
    x = known * (_clip(ratio, *RATIO_RANGE) + control.tolerance / (1.0 + count / AUTO_STEPS))
    stake = _larger(-gained, promised)
    x = x * _where(stake < AUTO_WORTH * usual, stake / (usual + (usual == 0)) / AUTO_WORTH, 1.0)
    state["ratio_sq"] = total = cast(Any, state["ratio_sq"]) + x * x
    proposed = alpha * _exp(beta * x / (AUTO_START + total) ** 0.5)

    length = abs(taken) * (downhill + abs(h))
    share = _larger(promised, 2 * usual) / (length + (length == 0))  # of the last step, that ends at the bottom
    share = _larger(share, AUTO_DROP) ** _clip(beta, None, 1.0)
    lost = (gained < -usual) | (h == math.inf)
    return _where(lost & (share * alpha < proposed), share * alpha, proposed)


def _usual_gain(state: State) -> Any:
    """Return F of the rule "auto": a mean of the gains since the start, or of the last ones where that is more."""
    count: Any = state["ratio_count"]
    mean: Any = state["gain_sum"] / (count + (count == 0))
    return _larger(state["gain_mean"], mean)


def _scaled(h: Any, control: Control, state: State) -> Any:
    if control.scaling == "none":
        return h
    seen = h if control.skip_nonfinite == "none" else _where(_finite(h), h, 0.0)
    if control.scaling == "adagrad":
        state["hypergrad_sq"] = size_sq = state["hypergrad_sq"] + seen * seen
        return h / (size_sq + (size_sq == 0)) ** 0.5
    b1, b2 = SCALING_BETAS
    state["hypergrad_count"] = t = state["hypergrad_count"] + 1.0
    state["hypergrad_mean"] = mean = b1 * state["hypergrad_mean"] + (1 - b1) * seen
    state["hypergrad_sq"] = square = b2 * state["hypergrad_sq"] + (1 - b2) * seen * seen
    size_sq = square / (1 - b2**t)
    return mean / (1 - b1**t) / (size_sq + (size_sq == 0)) ** 0.5


def _finite(x: Scalar) -> Any:
    return torch.isfinite(x) if isinstance(x, Tensor) else math.isfinite(x)


def _where(condition: Any, x: Scalar, y: Scalar) -> Scalar:
    """Choose x or y; of two tensors' values at most one may be given as a float."""
    if not isinstance(condition, Tensor):
        return x if condition else y
    dtype = cast(Tensor, x if isinstance(x, Tensor) else y).dtype
    x, y = (v if isinstance(v, Tensor) else torch.full_like(condition, v, dtype=dtype) for v in (x, y))
    return torch.where(condition, x, y)


def _larger(x: Any, y: Any) -> Any:
    """Return the larger one, y where x is no number; of two tensors' values y may be given as a float."""
    return _where(x > y, x, y)


def _exp(x: Scalar) -> Scalar:
    if isinstance(x, Tensor):
        return x.exp()
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


def _root(x: Any) -> Any:
    """Return the square root, whose gradient at 0 is 0."""
    return _where(x > 0, (x + (x == 0)) ** 0.5, 0.0)


def _clip(x: Scalar, low: Scalar | None, high: Scalar | None) -> Scalar:
    """Bring x into [low, high]; NaN stays NaN."""
    if low is None and high is None:
        return x
    if isinstance(x, Tensor):
        bounds = [b if b is None or isinstance(b, Tensor) else torch.full_like(x, b) for b in (low, high)]
        return x.clamp(*bounds)
    if x != x:
        return x
    if low is not None and x < low:
        x = low
    return high if high is not None and x > high else x
