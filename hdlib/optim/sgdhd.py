"""SGD with hypergradient descent: the paper's Algorithms 4 (SGD-HD) and 5 (SGDN-HD).

Paper: Baydin et al., ICLR 2018, arXiv 1703.04782. The authors' PyTorch code (hypergrad/sgd_hd.py) keeps
all tensors in one flat vector, knows one parameter group and adds weight decay into p.grad; this one
keeps one alpha per group and leaves p.grad alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Unpack

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from hdlib.optim import _kernels, rules
from hdlib.optim._base import HypergradientOptimizer, ParamsT, check_number
from hdlib.optim._group import Group, Number, gradient, in_range
from hdlib.optim._part import Part, State, chunks, plain, precision
from hdlib.optim._sums import Sums
from hdlib.optim.control import Guards, Rule


class SGDHD(HypergradientOptimizer):
    r"""SGD, with heavy-ball or Nesterov momentum or none, that learns its learning rate.

    .. math::
        h_t = g_t \cdot D_{t-1}, \quad \alpha_t = \alpha_{t-1} - \beta h_t, \quad
        \theta_t = \theta_{t-1} + \alpha_t D_t

    with :math:`D_t = -g_t`; with momentum :math:`v_t = \mu v_{t-1} + g_t` and :math:`D_t = -v_t`, or
    Nesterov's :math:`D_t = -g_t - \mu v_t`. With the beta that is taken where none is given alpha hardly moves on
    most tasks: give one, or `hypergrad_lr="auto"`.

    Args:
        params: tensors, or dicts that define parameter groups; each group has its own alpha.
        lr: alpha_0, the learning rate to start from; at least 0. A tensor is copied: to change alpha later, write
            into `param_groups`.
        momentum: mu.
        dampening: of the momentum, as in torch.optim.SGD.
        weight_decay: L2 regularisation, added to the gradient and so part of the hypergradient.
        nesterov: Nesterov momentum; needs a momentum and no dampening.
        hypergrad_lr: beta, the learning rate of the learning rate. 0 gives torch.optim.SGD, bit for bit.
            "auto" finds it from the curvature along each step, at the cost of one more dot product: the setting to
            try first without tuning, from an lr of at most 0.1: the first step is at most 0.3 of the parameters' norm,
            unless they are all zero, and from 1 on even that ruins some runs. With full batches, or a loss that can
            go to zero, `max_lr=1`, with momentum 0.1, makes it safer.
            Default: 1e-6 with the rule "additive", which changes little on most tasks, 0.02 with "multiplicative", 0.5
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
        guards: keep alpha from running away: `min_lr`, `max_lr`, `max_change`, `scaling`, `skip_nonfinite`,
            `overshoot`, `final_lr`, `transition`; all off by default. `hdlib.optim.control.Control` says what each
            does. In `param_groups` the bounds are `hypergrad_min_lr` and `hypergrad_max_lr`.

    Raises:
        ValueError: a value is outside its range; the message names it.
        RuntimeError: `fused` is combined with `foreach` or `differentiable`.

    State per parameter (of its shape and precision): `momentum_buffer` with momentum, and `direction` except with
    heavy-ball momentum, whose buffer is the direction already.

    References:
        Baydin, Cornish, Martinez Rubio, Schmidt and Wood, "Online Learning Rate Adaptation with Hypergradient
        Descent", ICLR 2018, arXiv 1703.04782, Algorithms 4 and 5.

    Example:
        >>> optimizer = SGDHD(model.parameters(), lr=0.01, hypergrad_lr="auto")
        >>> loss(model(x), y).backward()
        >>> optimizer.step()
    """

    buffers = ("momentum_buffer", "direction")
    additive_beta = 1e-6

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        hypergrad_lr: float | Literal["auto"] | None = None,
        rule: Rule | None = None,
        shared_alpha: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        **guards: Unpack[Guards],
    ) -> None:
        super().__init__(
            params,
            dict(
                lr=lr,
                momentum=momentum,
                dampening=dampening,
                weight_decay=weight_decay,
                nesterov=nesterov,
                hypergrad_lr=hypergrad_lr,
                rule=rule,
                shared_alpha=shared_alpha,
                maximize=maximize,
                foreach=foreach,
                capturable=capturable,
                differentiable=differentiable,
                fused=fused,
            ),
            guards,
        )

    def _check(self, group: Group) -> None:
        super()._check(group)
        check_number("momentum", group["momentum"])
        check_number("dampening", group["dampening"])
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise ValueError(
                f"nesterov needs momentum above 0 and no dampening, not momentum={group['momentum']} "
                f"and dampening={group['dampening']}."
            )

    def _has_direction(self, group: Group, state: State) -> bool:
        # with a "direction" beside it, a velocity that is to be one was not when the last step was taken
        return state.get(_kept(group)) is not None and (_kept(group) == "direction" or "direction" not in state)

    def _direction(self, group: Group, p: Tensor, state: State) -> Tensor | None:
        return plain(state[_kept(group)]) if self._has_direction(group, state) else None

    def _rows(self, group: Group, part: Part) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        for moved, (p, g, d) in part.rows(part.params, part.grads, part.real(_kept(group))):
            yield p, g, d if moved else None

    def _first_direction(self, group: Group, g: Tensor, p: Tensor, state: State) -> Tensor:
        v = state.get("momentum_buffer") if group["momentum"] != 0 else None
        if v is None:
            return g * (1 + group["momentum"]) if group["nesterov"] else g
        velocity: Tensor = rules.precise(plain(v)) * group["momentum"] + g * (1 - group["dampening"])
        return g + group["momentum"] * velocity if group["nesterov"] else velocity

    def _observe(self, group: Group, part: Part) -> list[Number]:
        if group["hypergrad_lr"] == 0:
            for state in part.states:
                state.pop("direction", None)
            return [0.0, 0.0, 0.0]
        started = [state.get("momentum_buffer") is not None for state in part.states]
        for p, state in zip(part.owners, part.states, strict=True):
            for name in {_kept(group), "momentum_buffer"} if group["momentum"] != 0 else {"direction"}:
                if state.get(name) is None:
                    state[name] = torch.zeros_like(p, memory_format=torch.preserve_format)
                elif group["differentiable"]:
                    state[name] = state[name].clone()
        if _kept(group) != "direction":
            for state in part.states:
                state.pop("direction", None)
        d = part.real(_kept(group))
        v = part.real("momentum_buffer") if group["momentum"] != 0 else []
        if part.way == "kernels":
            return _kernels_observe(group, part, d, v, started)
        gpu = part.gpu_kernels() if all(started) or not v else None
        if gpu is not None:
            numbers = -1.0 if group["maximize"] else 1.0, group["weight_decay"], group["momentum"]
            rows = list(zip(part.params, part.grads, v or d, d, strict=True))
            return list(gpu.sgd_observe(rows, *map(float, numbers), 1.0 - group["dampening"], bool(group["nesterov"])))
        if part.way in ("foreach", "torch"):
            return _foreach_observe(group, part, d, v, started)
        return _loop_observe(group, part, d, v, started)

    def _descend(self, group: Group, part: Part) -> None:
        if group["hypergrad_lr"] == 0:
            _without_hypergradient(group, part)
            return
        alpha, directions = group["lr"], part.real(_kept(group))
        if part.way == "kernels":
            _kernels.call(
                "sgd_descend", part.params, _kernels.addresses(directions), float(alpha), torch.get_num_threads()
            )
        elif part.way == "torch":  # a step of plain SGD whose gradients are the directions
            sgd(
                part.params,
                directions,
                [None] * len(directions),
                fused=True,
                lr=alpha.to(part.params[0].device, precision(part.params)) if isinstance(alpha, Tensor) else alpha,
                weight_decay=0.0,
                momentum=0.0,
                dampening=0.0,
                nesterov=False,
                maximize=False,
            )
        elif part.way == "foreach":
            _foreach_descend(group, part, directions)
        else:
            for p, direction in zip(part.params, directions, strict=True):
                rules.descend_(p, direction, alpha.to(p.device) if isinstance(alpha, Tensor) else alpha)


def _kept(group: Group) -> str:
    """Return the name of the state that holds -D_{t-1}: with heavy-ball momentum the velocity is the direction."""
    return "momentum_buffer" if group["momentum"] != 0 and not group["nesterov"] else "direction"


def _loop_observe(
    group: Group, part: Part, directions: list[Tensor], velocities: list[Tensor], started: list[bool]
) -> list[Number]:
    """The definition: tensor by tensor, piece by piece."""
    momentum, nesterov, sums = group["momentum"], group["nesterov"], Sums(group)
    none: list[None] = [None] * len(directions)
    rows = zip(part.params, part.grads, directions, velocities or none, part.moved, started, strict=True)
    temporaries = group["maximize"] or group["weight_decay"] != 0 or nesterov
    for *tensors, moved, old in rows:
        for p, g, d, v in chunks(tensors) if temporaries else [tensors]:
            g = gradient(group, g, p, group["weight_decay"])
            if moved:
                sums.add(g, d.clone() if group["differentiable"] else d)
            else:
                sums.add(g, None)
            if v is not None and old:
                rules.sgd_velocity_(v, g, momentum, group["dampening"])
            elif v is not None:
                v.copy_(g)
            if v is None or nesterov:
                d.copy_(rules.sgd_direction(g, v, momentum, nesterov))
    return sums.values()


def _foreach_observe(
    group: Group, part: Part, directions: list[Tensor], velocities: list[Tensor], started: list[bool]
) -> list[Number]:
    """The same, all tensors at a time."""
    grads, sums = _foreach_gradients(group, part), Sums(group)
    for moved, (g, d) in part.rows(grads, directions):  # torch has no multi-tensor dot product
        sums.add(g, d if moved else None)
    values = sums.values()
    if group["momentum"] == 0:
        torch._foreach_copy_(directions, grads)
        return values
    _foreach_velocities(group, grads, velocities, started)
    if group["nesterov"]:
        torch._foreach_copy_(directions, grads)
        torch._foreach_add_(directions, velocities, alpha=group["momentum"])
    return values


def _foreach_gradients(group: Group, part: Part) -> list[Tensor]:
    """Return g_t of all tensors, the L2 term included."""
    grads = part.grads
    if group["maximize"]:
        grads = list(torch._foreach_neg(grads))
    if group["weight_decay"] != 0:
        grads = list(torch._foreach_add(grads, part.params, alpha=group["weight_decay"]))
    return grads


def _foreach_velocities(group: Group, grads: list[Tensor], velocities: list[Tensor], started: list[bool]) -> None:
    """Bring all velocities from t-1 to t; the first is the gradient."""
    for old in {*started}:
        which = [i for i, s in enumerate(started) if s == old]
        some, theirs = [velocities[i] for i in which], [grads[i] for i in which]
        if old:
            torch._foreach_mul_(some, group["momentum"])
            torch._foreach_add_(some, theirs, alpha=1 - group["dampening"])
        else:
            torch._foreach_copy_(some, theirs)


def _foreach_descend(group: Group, part: Part, directions: list[Tensor]) -> None:
    """Move all parameters; an alpha on an accelerator is not waited for."""
    alpha = group["lr"]
    if isinstance(alpha, Tensor) and alpha.device.type != "cpu":
        alpha = alpha.to(part.params[0].device, precision(part.params))
        torch._foreach_sub_(part.params, torch._foreach_mul(directions, alpha))
    else:
        torch._foreach_add_(part.params, directions, alpha=-in_range(float(alpha), group, part.params))


def _kernels_observe(
    group: Group, part: Part, directions: list[Tensor], velocities: list[Tensor], started: list[bool]
) -> list[Number]:
    """The same, in one pass over the memory."""
    sums = _kernels.four()
    mode = 0 if group["momentum"] == 0 else 2 if group["nesterov"] else 1
    _kernels.call(
        "sgd_observe",
        part.params,
        _kernels.addresses(part.grads),
        _kernels.addresses(velocities) if mode else None,
        _kernels.addresses(directions),
        _kernels.booleans(part.moved),
        _kernels.booleans(started),
        mode,
        -1.0 if group["maximize"] else 1.0,
        float(group["weight_decay"]),
        float(group["momentum"]),
        float(1.0 - group["dampening"]),
        torch.get_num_threads(),
        sums,
    )
    part.along = sums[3]
    return list(sums)[:3]


def _without_hypergradient(group: Group, part: Part) -> None:
    """Take torch.optim.SGD's step, in its order of operations."""
    momentum, alpha = group["momentum"], group["lr"]
    buffers: list[Tensor | None] = [state.get("momentum_buffer") for state in part.states] if momentum != 0 else []
    velocities = [plain(b) for b in buffers if b is not None]
    if part.way == "torch" and len(velocities) == len(buffers):
        sgd(
            part.params,
            part.grads,
            [*velocities] or [None] * len(part.params),
            fused=True,
            lr=alpha.to(part.params[0].device, precision(part.params)) if isinstance(alpha, Tensor) else alpha,
            weight_decay=group["weight_decay"],
            momentum=momentum,
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            maximize=group["maximize"],
        )
        return
    if part.way == "foreach":
        started = [buffer is not None for buffer in buffers]
        if momentum != 0:
            part.zeros("momentum_buffer")
            velocities = part.real("momentum_buffer")
        directions = _foreach_gradients(group, part)
        if momentum != 0:
            _foreach_velocities(group, directions, velocities, started)
            nesterov = group["nesterov"]
            directions = list(torch._foreach_add(directions, velocities, alpha=momentum)) if nesterov else velocities
        _foreach_descend(group, part, directions)
        return
    for owner, p, g, state in zip(part.owners, part.params, part.grads, part.states, strict=True):
        g = gradient(group, g, p, group["weight_decay"])
        v = None
        if momentum != 0:
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(owner, memory_format=torch.preserve_format)
                v = plain(state["momentum_buffer"]).copy_(g)
            else:
                if group["differentiable"]:
                    state["momentum_buffer"] = state["momentum_buffer"].clone()
                v = plain(state["momentum_buffer"])
                rules.sgd_velocity_(v, g, momentum, group["dampening"])
        direction = rules.sgd_direction(g, v, momentum, group["nesterov"])
        rules.descend_(p, direction, alpha.to(p.device) if isinstance(alpha, Tensor) else alpha)
