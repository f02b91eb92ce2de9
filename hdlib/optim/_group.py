"""What a parameter group holds beside its parameters: alpha, how it moves, and what it remembers of the last step."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from hdlib.optim import control
from hdlib.optim.control import KEYS, Control

Group: TypeAlias = dict[str, Any]
Number: TypeAlias = float | Tensor


def options_of(group: Group) -> Control:
    """Return how the group's alpha moves. The automatic rule's overshoot depends on how the direction averages."""
    momentum = group["betas"][0] if "betas" in group else group["momentum"]
    values = [group[key] for key in KEYS.values()]
    make = _options if torch.compiler.is_compiling() else _known_options  # of whose cache the compiler would warn
    try:
        return make(momentum, bool(group.get("nesterov")), *values)
    except TypeError:  # a list, say, of which Control says what is wrong
        return Control(*values)


def _options(momentum: float | Tensor, nesterov: bool, *values: Any) -> Control:
    options = dict(zip(control.OPTIONS, values, strict=True))
    if options["overshoot"] is None and options["rule"] == "auto":
        momentum = float(momentum)
        known = momentum if 0 <= momentum < 1 else 0.0  # otherwise no average; Adam refuses it
        options["overshoot"] = control.default_overshoot("auto", known, nesterov)
    return Control(**options)


_known_options = functools.lru_cache(maxsize=256)(_options)


def needs_norms(group: Group) -> bool:
    """Whether alpha's update needs |g_t| and |D_{t-1}| beside h_t."""
    return options_of(group).needs_norms


def needs_slope(group: Group) -> bool:
    """Whether alpha's next update needs g_t . D_t."""
    return options_of(group).needs_slope


def remember(groups: list[Group], values: dict[str, Number]) -> None:
    """Put values into groups, into the tensors that are there already where there are any.

    All at once, and not by `copy_`: compiled by torch 2.11, that leaves a 0-dim float64 tensor as it was. What is
    compiled would compute the values one after the other as it copies, and from tensors that it has written to already,
    so there they are computed before, as one vector.
    """
    if torch.compiler.is_compiling():
        computed = {name: value.reshape(()) for name, value in values.items() if isinstance(value, Tensor)}
        if computed:
            values = values | dict(zip(computed, torch.stack([*computed.values()]).unbind(), strict=True))
    kept: list[Tensor] = []
    new: list[Tensor] = []
    for group in groups:
        for name, value in values.items():
            if not isinstance(group[name], Tensor):
                group[name] = float(value)
                continue
            tensor = value if isinstance(value, Tensor) else torch.full_like(group[name], value)
            if group["differentiable"]:
                group[name] = tensor
            else:
                kept.append(group[name])
                new.append(tensor)
    if kept:
        torch._foreach_copy_(kept, new)


def in_graph(group: Group) -> bool:
    """Whether autograd follows alpha, which then has to be a tensor."""
    return bool(group["differentiable"] and group["hypergrad_lr"] != 0)


def place_alpha(group: Group) -> None:
    """Give a group whose alpha is or has to be a tensor, or belongs on an accelerator, 0-dim tensors of its own there.

    What a step changes is then a tensor from the first: torch's distributed checkpoints are read into what is there.
    """
    state = control.initial_state(options_of(group))
    for name, zero in state.items():
        group.setdefault(name, zero)
    device = group["params"][0].device if group["params"] else torch.device("cpu")
    tensors = isinstance(group["lr"], Tensor) or isinstance(group["slope"], Tensor)
    if tensors or in_graph(group) or group["capturable"] or device.type not in ("cpu", "meta"):
        dtype = torch.float32 if device.type == "mps" else torch.float64
        for name in ("lr", "hypergrad", "slope", *state):
            value = torch.as_tensor(group[name], dtype=dtype, device=device).reshape(())
            group[name] = value if group["differentiable"] else value.detach().clone()


def check_shared(groups: list[Group]) -> None:
    """Refuse groups that are to share one alpha and start from different ones."""
    first = groups[0]
    for group in groups[1:]:
        for name in ("shared_alpha", *KEYS.values(), "hypergrad_lr", "lr"):
            if not (first["shared_alpha"] or group["shared_alpha"]):
                continue
            values = first[name], group[name]
            if any(isinstance(value, Tensor) and value.device.type != "cpu" for value in values):
                continue  # to look would wait for the device
            if values[0] != values[1] and any(value == value for value in values):  # not both NaN
                raise ValueError(
                    f"{name} is {values[0]} in one group and {values[1]} in another: with shared_alpha it must be the "
                    "same in all groups."
                )


def in_range(alpha: float, group: Group, tensors: Sequence[Tensor]) -> float:
    """Return alpha, infinite where it is beyond what the tensors hold.

    torch refuses to multiply by such a number. It is where a run that is lost comes by, and that should end in losses
    that are not finite, for which training loops look, and not in an error in the middle of a step. A learning rate
    that does not adapt was somebody's choice, and is left to torch.
    """
    if abs(alpha) < 1.0 or group["hypergrad_lr"] == 0:
        return alpha
    first = 1 - group["betas"][0] if "betas" in group else 1.0  # Adam divides alpha by 1 - b1^t
    largest = min(torch.finfo(dtype).max for dtype in {tensor.dtype for tensor in tensors}) * first
    return math.copysign(math.inf, alpha) if abs(alpha) > largest else alpha


def l2_of(group: Group) -> float:
    """Return the factor of the L2 term in the gradient: none with decoupled weight decay."""
    return 0.0 if group.get("decoupled_weight_decay") else float(group["weight_decay"])


def gradient(group: Group, g: Tensor, p: Tensor, decay: float) -> Tensor:
    """Return g_t, the gradient of what is minimised, its L2 term included."""
    if group["maximize"]:
        g = g.neg()
    return g.add(p, alpha=decay) if decay != 0 else g


def kept(group: Group, p: Tensor) -> Tensor:
    """Return a parameter as autograd may keep it: a differentiable step changes the tensor itself."""
    return p.clone() if group["differentiable"] else p
