"""Adam with hypergradient descent: the paper's Algorithm 6 (Adam-HD).

Paper: Baydin et al., ICLR 2018, arXiv 1703.04782. The authors' PyTorch code (hypergrad/adam_hd.py) changes
the learning rate inside its loop over tensors, so that each tensor moves with another partial sum of the
hypergradient; here alpha is updated once, from the dot product over all tensors, before any of them moves.
Epsilon stands outside the bias correction, as in the algorithm.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Unpack, cast

import torch
from torch import Tensor
from torch.optim.adam import adam

from hdlib.optim import _kernels, rules
from hdlib.optim._base import HypergradientOptimizer, ParamsT, check_number
from hdlib.optim._group import Group, Number, gradient, in_range, needs_slope
from hdlib.optim._part import Part, State, chunks, plain, precision
from hdlib.optim._sums import Sums
from hdlib.optim.control import Guards, Rule

HALF_ROOT = 2.0**-12  # of float16's smallest number: a second moment that is rounded to zero has a smaller one


class AdamHD(HypergradientOptimizer):
    r"""Adam that learns its learning rate.

    .. math::
        D_t = -\hat m_t / (\sqrt{\hat v_t} + \epsilon), \quad h_t = g_t \cdot D_{t-1}, \quad
        \alpha_t = \alpha_{t-1} - \beta h_t, \quad \theta_t = \theta_{t-1} + \alpha_t D_t

    Adam's direction has entries near 1 whatever the gradient's size, so h grows like the 1-norm of the
    gradient, and a beta that suits SGDHD is too large by orders of magnitude here. With the beta that is taken
    where none is given alpha hardly moves: give one, or `hypergrad_lr="auto"`.

    Args:
        params: tensors, or dicts that define parameter groups; each group has its own alpha.
        lr: alpha_0, the learning rate to start from; at least 0. A tensor is copied: to change alpha later, write
            into `param_groups`.
        betas: decay rates of the two moments, each in [0, 1).
        eps: added to the root of the second moment.
        weight_decay: L2 regularisation, added to the gradient and so part of the hypergradient.
        amsgrad: divide by the largest second moment so far.
        hypergrad_lr: beta, the learning rate of the learning rate. 0 gives torch.optim.Adam, bit for bit.
            "auto" finds it from the curvature along each step, at the cost of one more dot product: the setting to
            try first without tuning, from any lr above 0: the first step is at most 0.3 of the parameters' norm,
            unless they are all zero. With full batches, or a loss that can go to zero, `max_lr=0.1` makes it safer.
            Default: 1e-8 with the rule "additive", which changes little on most tasks, 0.02 with "multiplicative", 0.5
            with "curvature", that of "auto" with "auto"; "log" has none.
        rule: "additive", or "multiplicative", with which alpha changes by at most the factor
            1 +- hypergrad_lr in a step and cannot change its sign (the paper's Eq. 8). Others, and what they are good
            for, are in `hdlib.optim.control.Control`. Default: "auto" with `hypergrad_lr="auto"`, else "additive".
        shared_alpha: one alpha for all groups, moved by the dot product over all parameters, instead of one per group.
            The groups then need the same `lr`, `hypergrad_lr`, `rule` and guards; one that gives no `lr` takes theirs.
        maximize: ascend instead of descend.
        foreach: compute all tensors at a time. Default: on accelerators.
        capturable: keep alpha and the step on the device even where that is not the default, and allow CUDA graphs to
            capture a step.
        differentiable: let autograd go through the step, alpha included. `group["lr"]` and what else the group
            measures are then part of the graph: detach them to cut it, or save a `state_dict` to a file to load it.
        fused: the fastest way. On the CPU it compiles two kernels when it is first used, where there is a C++
            compiler; without one, on accelerators and with `hypergrad_lr=0` it uses torch's fused kernels where it
            can. On a GPU kernels in Triton, where torch comes with it, do what hypergradients add, each for up to 32
            tensors. Tensors of another layout or precision are computed one by one.
        decoupled_weight_decay: what AdamWHD sets.
        guards: keep alpha from running away: `min_lr`, `max_lr`, `max_change`, `scaling`, `skip_nonfinite`,
            `overshoot`, `final_lr`, `transition`; all off by default. `hdlib.optim.control.Control` says what each
            does. In `param_groups` the bounds are `hypergrad_min_lr` and `hypergrad_max_lr`.

    Raises:
        ValueError: a value is outside its range; the message names it.
        RuntimeError: `fused` is combined with `foreach` or `differentiable`; later, in `step`, a parameter is in
            float16, in which second moments underflow, and `eps` is below 2^-12.

    State per parameter: `step` (0-dim float32), `exp_avg` and `exp_avg_sq` (the parameter's shape and precision), with
    `amsgrad` `max_exp_avg_sq`, as torch.optim.Adam's and no more. :math:`D_{t-1}` is rebuilt from them, with the
    `betas` and the `eps` of now: change these while training and one h is slightly off.

    References:
        Baydin, Cornish, Martinez Rubio, Schmidt and Wood, "Online Learning Rate Adaptation with Hypergradient
        Descent", ICLR 2018, arXiv 1703.04782, Algorithm 6.

    Example:
        >>> optimizer = AdamHD(model.parameters(), lr=1e-3, hypergrad_lr="auto")
        >>> loss(model(x), y).backward()
        >>> optimizer.step()
    """

    buffers = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    additive_beta = 1e-8
    _without_kernels = "torch"

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        hypergrad_lr: float | Literal["auto"] | None = None,
        rule: Rule | None = None,
        shared_alpha: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        **guards: Unpack[Guards],
    ) -> None:
        super().__init__(
            params,
            dict(
                lr=lr,
                betas=betas,
                eps=eps,
                weight_decay=weight_decay,
                amsgrad=amsgrad,
                hypergrad_lr=hypergrad_lr,
                rule=rule,
                shared_alpha=shared_alpha,
                foreach=foreach,
                maximize=maximize,
                capturable=capturable,
                differentiable=differentiable,
                fused=fused,
                decoupled_weight_decay=decoupled_weight_decay,
            ),
            guards,
        )

    def _check(self, group: Group) -> None:
        super()._check(group)
        check_number("eps", group["eps"])
        if not isinstance(group["betas"], (tuple, list)) or len(group["betas"]) != 2:
            raise ValueError(f"betas is {group['betas']!r}: it must be a pair of numbers in [0, 1).")
        for i in (0, 1):
            check_number(f"betas[{i}]", group["betas"][i], high=1.0)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        group["betas"] = tuple(float(b) for b in group["betas"])

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for p in group["params"]:
                if "step" in self.state.get(p, ()):
                    self.state[p]["step"] = _place_step(self.state[p]["step"], p)

    def _has_direction(self, group: Group, state: State) -> bool:
        return "exp_avg" in state

    def _direction(self, group: Group, p: Tensor, state: State) -> Tensor | None:
        """Return -D_{t-1} of one tensor, None before its first step; with decoupled decay times (1 - alpha lambda)."""
        if "exp_avg" not in state:
            return None
        v = plain(state["max_exp_avg_sq" if group["amsgrad"] and "max_exp_avg_sq" in state else "exp_avg_sq"])
        return _direction(group, p, plain(state["exp_avg"]), v, *_corrections(group, _time(group, state["step"])))

    def _rows(self, group: Group, part: Part) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        for moved, (*tensors, floor, scale) in _joined(group, part):
            for p, g, m, v in chunks(tensors):
                yield p, g, _direction(group, p, m, v, floor, scale) if moved else None

    def _first_direction(self, group: Group, g: Tensor, p: Tensor, state: State) -> Tensor:
        decay = _decays(group)[1]
        (beta1, beta2), t = group["betas"], 1.0
        if "exp_avg" in state and _at_hand(group, state["step"]):
            t += state["step"].item()  # of steps without any gradient, which leave the corrections of step t
        mean, root = (1 - beta1) / (1 - beta1**t), ((1 - beta2) / (1 - beta2**t)) ** 0.5
        direction: Tensor = g * mean / (g.abs() * root + group["eps"])
        return direction.add(p, alpha=decay) if decay != 0 else direction

    def _check_adaptable(self, group: Group, p: Tensor) -> None:
        if p.dtype == torch.float16 and group["eps"] < HALF_ROOT:
            raise RuntimeError(  # torch's fused step divides by the moment before it is rounded, perhaps to zero
                f"{type(self).__name__} cannot adapt the learning rate of {self._name(group, p)} in float16, in which "
                f"second moments underflow beside an eps of {group['eps']:g}: keep it in float32 under autocast, use "
                "bfloat16, or eps=1e-3."
            )

    def _observe(self, group: Group, part: Part) -> list[Number]:
        for p, state in zip(part.owners, part.states, strict=True):
            if "step" not in state or "exp_avg" not in state:  # RMSprop's, say, counts steps but has no first moment
                state["step"] = _place_step(0.0, p)
            elif group["amsgrad"] and "max_exp_avg_sq" not in state and "exp_avg_sq" in state:  # not from the start
                state["max_exp_avg_sq"] = state["exp_avg_sq"].clone()
        names = self.buffers if group["amsgrad"] else self.buffers[:2]
        for name in names:
            part.zeros(name)
            if group["differentiable"]:
                for state in part.states:
                    state[name] = state[name].clone()
        if group["hypergrad_lr"] == 0:
            return [0.0, 0.0, 0.0]  # torch's own step does the rest
        if part.way == "kernels":
            return _kernels_observe(group, part)
        if part.way == "loop":
            return _loop_observe(group, part)
        found = self._gpu_sums(group, part)
        if found is not None:
            return found
        sums = Sums(group)  # torch's multi-tensor or fused step does the rest
        for p, g, d in self._rows(group, part):
            sums.add(gradient(group, g, p, _decays(group)[0]), d)
        return sums.values()

    def _gpu_sums(self, group: Group, part: Part) -> list[Number] | None:
        gpu = part.gpu_kernels()
        if gpu is None:
            return None
        ms, vs, xs, steps = _columns(group, part)
        rows = list(zip(part.params, part.grads, ms, vs if xs[0] is None else xs, strict=True))
        numbers = -1.0 if group["maximize"] else 1.0, *map(float, _decays(group))
        return list(gpu.adam_sums(rows, steps, group["betas"], float(group["eps"]), *numbers))

    def _rescaled(self, group: Group, sums: list[Number]) -> list[Number]:
        if not group["decoupled_weight_decay"] or group["weight_decay"] == 0:
            return sums
        kept = 1 - group["lr" if group["final_lr"] is None else "step_size"] * group["weight_decay"]
        # nothing of theta_{t-2} may be left, and then D_{t-1} cannot be known
        left_out = (1 / kept).nan_to_num(math.nan, 1.0) if isinstance(kept, Tensor) else 1 / (kept or 1.0)
        if len(sums) == 1:
            return [sums[0] * left_out]
        return [sums[0] * left_out, sums[1], sums[2] * left_out**2]

    def _way(self, group: Group) -> tuple[str, bool]:
        if group["params"] and group["params"][0].device.type == "mps":
            return "loop", True  # torch's multi-tensor step does not take an alpha that is a tensor there
        return super()._way(group)

    def _descend(self, group: Group, part: Part) -> None:
        if group["hypergrad_lr"] == 0 or part.way in ("torch", "foreach"):
            _torch_step(group, part)
        elif part.way == "kernels":
            _kernels_descend(group, part)
        else:
            _loop_descend(group, part)


class AdamWHD(AdamHD):
    r"""AdamHD with decoupled weight decay: AdamW that learns its learning rate.

    .. math::
        \theta_t = (1 - \alpha_t \lambda)\, \theta_{t-1} - \alpha_t\, \hat m_t / (\sqrt{\hat v_t} + \epsilon)

    The decay moves with alpha, so it is part of the derivative in alpha:
    :math:`D_t = -\hat m_t / (\sqrt{\hat v_t} + \epsilon) - \lambda \theta_{t-1}`, and
    :math:`h_t = g_t \cdot D_{t-1}` with the gradient of the loss alone.

    Needs no memory beyond AdamW's: :math:`\theta_{t-2}`, which is in :math:`D_{t-1}`, follows from
    :math:`\theta_{t-1}` and the moments. That supposes that nobody else moved the parameters, and that the learning
    rate in the group is the one of the last step; a scheduler's change shifts h by about its change of
    :math:`\alpha \lambda`.

    Args:
        params: tensors, or dicts that define parameter groups; each group has its own alpha.
        lr: alpha_0.
        weight_decay: lambda, the decoupled decay.

    All other arguments, the state and the errors are AdamHD's.

    References:
        Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, arXiv 1711.05101. The paper of
        hypergradient descent does not treat it.

    Example:
        >>> optimizer = AdamWHD(model.parameters(), lr=1e-3, weight_decay=0.01, hypergrad_lr="auto")
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        amsgrad: bool = False,
        *,
        hypergrad_lr: float | Literal["auto"] | None = None,
        rule: Rule | None = None,
        shared_alpha: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        **guards: Unpack[Guards],
    ) -> None:
        decoupled = cast(dict[str, Any], guards).pop("decoupled_weight_decay", True)  # of another one's defaults
        if decoupled is not True:
            raise ValueError(f"decoupled_weight_decay is {decoupled!r}: AdamWHD decouples it, so take AdamHD.")
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            hypergrad_lr=hypergrad_lr,
            rule=rule,
            shared_alpha=shared_alpha,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=True,
            **guards,
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # as torch.optim.AdamW: a checkpoint of Adam goes on with decoupled decay
            group["decoupled_weight_decay"] = True


def _place_step(step: float | Tensor, p: Tensor) -> Tensor:
    """Return a step count as a 0-dim float32 tensor beside its parameter, where alpha is too: no step waits for it."""
    device = "cpu" if p.device.type in ("mps", "meta") else p.device
    if not isinstance(step, Tensor) and device != "cpu":  # a copy from the host would be waited for
        return torch.full((), step, dtype=torch.float32, device=device)
    return torch.as_tensor(step, dtype=torch.float32, device=device).reshape(())


def _at_hand(group: Group, step: Tensor) -> bool:
    """Whether to look at a count costs no wait for a device and no break of a graph."""
    if torch.compiler.is_compiling():  # by itself: the compiler cannot return its negation
        return False
    return step.device.type == "cpu" and not group["capturable"]


def _time(group: Group, step: Tensor) -> float | Tensor:
    """Return t as a number where that is at hand, else as a tensor."""
    if _at_hand(group, step):
        return float(step.item())
    return step if step.device.type == "mps" else step.double()


def _decays(group: Group) -> tuple[float, float]:
    """Return the L2 term's factor and the decoupled decay, one of which is zero."""
    return (0.0, group["weight_decay"]) if group["decoupled_weight_decay"] else (group["weight_decay"], 0.0)


def _corrections(group: Group, t: float | Tensor) -> tuple[Any, Any]:
    """Return the group's `rules.adam_corrections`; at step 0, of a checkpoint say, moments are zero and any will do."""
    beta1, beta2 = group["betas"]
    t = t.clamp(min=1.0) if isinstance(t, Tensor) else max(t, 1.0)
    return rules.adam_corrections(t, beta1, beta2, group["eps"])


def _all_corrections(
    group: Group, steps: Sequence[Tensor], moved: Sequence[bool], dtype: torch.dtype
) -> tuple[list[Any], list[Any]]:
    """Return the corrections of every count, those that are not at hand in one go as 0-dim tensors of a precision."""
    found: list[Any] = [(0.0, 0.0)] * len(steps)
    places: dict[torch.device, list[int]] = {}
    for i, step in enumerate(steps):
        if not _at_hand(group, step):
            places.setdefault(step.device, []).append(i)
        elif moved[i]:
            found[i] = _corrections(group, _time(group, step))
    for which in places.values():
        floors, scales = _corrections(group, _time(group, torch.stack([steps[i] for i in which])))
        for i, *pair in zip(which, floors.to(dtype).unbind(), scales.to(dtype).unbind(), strict=True):
            found[i] = pair
    return [floor for floor, _ in found], [scale for _, scale in found]


def _direction(group: Group, p: Tensor, m: Tensor, v: Tensor, floor: float | Tensor, scale: float | Tensor) -> Tensor:
    """Return -D_{t-1} from the moments and corrections of the last step, but for AdamW's factor (1 - alpha lambda)."""
    m = rules.precise(m)
    # a float64 t would take a 0-dim parameter's direction with it
    direction = rules.adam_corrected_direction(m, rules.precise(v), floor, scale).to(m.dtype)
    decay = _decays(group)[1]
    return direction if decay == 0 else rules.adamw_direction_(direction, rules.precise(p), decay)


def _columns(group: Group, part: Part) -> tuple[list[Tensor], list[Tensor], list[Tensor] | list[None], list[Tensor]]:
    """Return both moments, AMSGrad's maximum or None, and the step counts."""
    largest = part.real("max_exp_avg_sq") if group["amsgrad"] else [None] * len(part.states)
    return part.real("exp_avg"), part.real("exp_avg_sq"), largest, [state["step"] for state in part.states]


def _joined(group: Group, part: Part) -> Iterator[tuple[bool, Sequence[Any]]]:
    """Return `Part.rows` of parameter, gradient, both moments (AMSGrad's maximum) and the corrections of step t-1."""
    ms, vs, xs, steps = _columns(group, part)
    floors, scales = _all_corrections(group, steps, part.moved, precision(ms))
    return part.rows(part.params, part.grads, ms, vs if xs[0] is None else xs, floors, scales)


def _loop_observe(group: Group, part: Part) -> list[Number]:
    """The definition: tensor by tensor, piece by piece."""
    sums = Sums(group)
    beta1, beta2 = group["betas"]
    rows = zip(part.params, part.grads, *_columns(group, part), part.moved, strict=True)
    for *tensors, step, moved in rows:
        corrections = _corrections(group, _time(group, step)) if moved else (0.0, 0.0)
        for p, g, m, v, x in chunks(tensors):
            g = gradient(group, g, p, _decays(group)[0])
            old_p, old_m, old_v = p, m, v if x is None else x
            if group["differentiable"]:  # autograd keeps what the updates below overwrite
                old_p, old_m, old_v = old_p.clone(), old_m.clone(), old_v.clone()
            sums.add(g, _direction(group, old_p, old_m, old_v, *corrections) if moved else None)
            rules.adam_moments_(m, v, g, beta1, beta2)
            if x is not None:
                rules.amsgrad_(x, v)
        step += 1
    return sums.values()


def _loop_descend(group: Group, part: Part) -> None:
    """The definition of the descent, tensor by tensor."""
    decay = _decays(group)[1]
    beta1, beta2 = group["betas"]
    for p, m, v, x, step in zip(part.params, *_columns(group, part), strict=True):
        alpha = group["lr"].to(p.device) if isinstance(group["lr"], Tensor) else group["lr"]
        if decay != 0:
            rules.adamw_decay_(p, alpha, decay)
        second = v if x is None else x
        rules.adam_descend_(p, m, second, _time(group, step), alpha, beta1, beta2, group["eps"])


def _torch_step(group: Group, part: Part) -> None:
    """Take torch.optim.Adam's own step with the group's alpha."""
    ms, vs, xs, steps = _columns(group, part)
    on_cpu = part.params[0].device.type == "cpu"
    alpha = group["lr"]
    if isinstance(alpha, Tensor):
        if on_cpu and not group["differentiable"] and not torch.compiler.is_compiling():
            alpha = in_range(alpha.item(), group, part.params)
        elif not group["differentiable"] and not any(p.dtype == torch.float64 for p in part.params):
            alpha = alpha.float()
    if isinstance(alpha, Tensor):
        alpha = alpha.to(part.params[0].device)
    adam(
        part.params,
        part.grads,
        ms,
        vs,
        [] if xs[0] is None else xs,
        steps,
        foreach=part.way == "foreach",
        fused=part.way == "torch",
        capturable=not on_cpu and steps[0].device == part.params[0].device,
        differentiable=group["differentiable"],
        decoupled_weight_decay=group["decoupled_weight_decay"],
        amsgrad=group["amsgrad"],
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=alpha,
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=group["maximize"],
    )


def _kernels_corrections(group: Group, counts: list[float]) -> list[list[float]]:
    """Return 1/(1 - b1^t) and 1/sqrt(1 - b2^t) of every tensor."""
    beta1, beta2 = group["betas"]
    return [[1 / (1 - beta1**t) for t in counts], [(1 - beta2**t) ** -0.5 for t in counts]]


def _kernels_observe(group: Group, part: Part) -> list[Number]:
    """The first pass of kernels.cpp: the sums, and the moments."""
    ms, vs, xs, steps = _columns(group, part)
    counts = [step.item() for step in steps]
    first, second = _kernels_corrections(group, [max(t, 1.0) for t in counts])
    sums = _kernels.four()
    _kernels.call(
        "adam_observe",
        part.params,
        _kernels.addresses(part.grads),
        _kernels.addresses(ms),
        _kernels.addresses(vs),
        None if xs[0] is None else _kernels.addresses(xs),
        _kernels.doubles([c if moved else 0.0 for c, moved in zip(first, part.moved, strict=True)]),
        _kernels.doubles(second),
        -1.0 if group["maximize"] else 1.0,
        *map(float, _decays(group)),
        *map(float, group["betas"]),
        float(group["eps"]),
        torch.get_num_threads(),
        sums,
    )
    torch._foreach_add_(steps, 1)
    return list(sums)[:3]


def _kernels_descend(group: Group, part: Part) -> None:
    """The second pass of kernels.cpp: the parameters, and the slope where the rule needs it."""
    ms, vs, xs, steps = _columns(group, part)
    along = _kernels.doubles([0.0])
    _kernels.call(
        "adam_descend",
        part.params,
        _kernels.addresses(part.grads) if needs_slope(group) else None,
        _kernels.addresses(ms),
        _kernels.addresses(vs if xs[0] is None else xs),
        *map(_kernels.doubles, _kernels_corrections(group, [step.item() for step in steps])),
        float(group["lr"]),
        -1.0 if group["maximize"] else 1.0,
        *map(float, _decays(group)),
        float(group["eps"]),
        torch.get_num_threads(),
        along,
    )
    [part.along] = along
