"""What the hypergradient optimisers share: validation, where alpha lives, and the order of a step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from hdlib.optim import control, rules
from hdlib.optim.control import Control


def check_number(name: str, value: Any, low: float = 0.0, high: float = math.inf) -> None:
    """Refuse anything but a finite number in [low, high), in one sentence."""
    if isinstance(value, str):
        raise ValueError(f"{name} must be a number, not the string {value!r}: write {name}={value} without quotes.")
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"{name} must be one number, not a tensor of shape {tuple(value.shape)}.")
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} must be a number, not {value!r}.")
    if not (low <= value < high and math.isfinite(value)):
        upper = "" if high == math.inf else f" and less than {high:g}"
        raise ValueError(f"{name} is {value}: it must be a finite number of at least {low:g}{upper}.")


class HypergradientOptimizer(Optimizer):
    """Base of the optimisers that adapt `group["lr"]` (the paper's alpha) once per step.

    A group's `lr` stays a Python float where its parameters are on the CPU and `lr` was given as a float.
    On an accelerator, or where a tensor was given, it is a 0-dim tensor (float64, or float32 where the
    device has no float64) that belongs to that group alone and is updated in place, so that no step waits
    for the device. `group["hypergrad"]` holds h_t of the last step: 0 before the second, and always 0 with
    `hypergrad_lr=0`, for which no dot product is computed.

    A parameter without a gradient has zeros in g_t, and is not moved, so it has zeros in D_t too: its state
    then says `rested`.
    """

    def __init__(self, params, defaults: dict[str, Any]) -> None:
        unknown = set(defaults.get("guards", {})) - set(control.OPTIONS)
        if unknown:
            raise TypeError(f"{type(self).__name__} has no argument {', '.join(sorted(unknown))}.")
        defaults = asdict(Control()) | defaults | defaults.pop("guards", {})
        _resolve_auto(defaults)
        self._check(defaults)
        super().__init__(params, {**defaults, "hypergrad": 0.0, "slope": 0.0})

    def _check(self, group: dict[str, Any]) -> None:
        check_number("lr", group["lr"])
        check_number("hypergrad_lr", group["hypergrad_lr"])
        check_number("weight_decay", group["weight_decay"])
        options = _control(group)
        if float(group["lr"]) == 0 and (options.rule not in ("additive",) or options.max_change is not None):
            raise ValueError(
                f"lr is 0 with rule={options.rule!r} and max_change={options.max_change}, which change alpha by "
                "factors and would leave it at 0: start from a small positive lr, such as 1e-6."
            )
        if group["rule"] == "multiplicative" and group["hypergrad_lr"] >= 1:
            raise ValueError(
                f"hypergrad_lr is {group['hypergrad_lr']}: the multiplicative rule needs a value below 1, "
                "beyond which alpha can change its sign."
            )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group with its own alpha; its values are checked like the constructor's."""
        _resolve_auto(param_group)
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self._check(group)
        except ValueError:
            self.param_groups.pop()
            raise
        _place_alpha(group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)
            _place_alpha(group)

    def learning_rates(self) -> list[float]:
        """Return alpha of every group as floats. On an accelerator this waits for the device."""
        return [float(group["lr"]) for group in self.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step: gradients, hypergradient, alpha, then the parameters.

        Args:
            closure: re-evaluates the model with gradients and returns the loss.

        Returns:
            The closure's loss, or None.

        Raises:
            RuntimeError: a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params, grads, resting = [], [], []
            for p in group["params"]:
                if p.grad is None:
                    if self.state.get(p) and "rested" not in self.state[p]:
                        resting.append(self.state[p])
                    continue
                if p.grad.is_sparse:
                    raise RuntimeError(f"{type(self).__name__} does not support sparse gradients.")
                g = p.grad.neg() if group["maximize"] else p.grad
                if group["weight_decay"] != 0:
                    g = g.add(p, alpha=group["weight_decay"])
                params.append(as_real(p))
                grads.append(as_real(g.resolve_conj()))
            states = [self.state[p] for p in group["params"] if p.grad is not None]
            options = _control(group)
            if group["hypergrad_lr"] != 0:
                self._adapt(group, grads, states, resting, options)
                if options.skip_nonfinite == "step" and not math.isfinite(group["hypergrad"]):
                    continue
            alpha = group["lr"]
            group["lr"], state = control.step_size(alpha, options, group)
            self._descend(group, params, grads, states)
            group["lr"] = alpha
            _remember(group, {name: state[name] for name in control.initial_state(options)})
            if group["hypergrad_lr"] != 0 and options.needs_slope and grads:
                directions = [self._direction(group, state) for state in states]
                slope = -total(rules.dot(g, d) for g, d in zip(grads, directions, strict=True))
                _remember(group, {"slope": slope if isinstance(alpha, Tensor) else slope.item()})
        return loss

    def _adapt(
        self,
        group: dict[str, Any],
        grads: list[Tensor],
        states: list[dict[str, Any]],
        resting: list[dict[str, Any]],
        options: Control,
    ) -> None:
        """Move the group's alpha by the dot product over all of its tensors; `resting` have no gradient now."""
        previous = [None if state.pop("rested", False) else self._direction(group, state) for state in states]
        rested = [self._direction(group, state) for state in resting]
        for state in resting:
            state["rested"] = True
        pairs = [(g, d) for g, d in zip(grads, previous, strict=True) if d is not None]
        if not pairs:
            group["hypergrad"] = 0.0
            return
        h = -total(rules.dot(g, d) for g, d in pairs)
        needs: dict[str, Tensor | float] = {"slope": group["slope"]}
        if options.needs_norms:
            needs["grad_sq"] = total(rules.dot(g, g) for g in grads)
            needs["direction_sq"] = total(rules.dot(d, d) for d in previous + rested if d is not None)
        if isinstance(group["lr"], Tensor):
            group["hypergrad"] = h
        else:
            group["hypergrad"] = h = h.item()
            needs = {name: float(value) for name, value in needs.items()}
        state = {name: group[name] for name in control.initial_state(options)}
        alpha, state = control.next_alpha(group["lr"], h, group["hypergrad_lr"], options, state, **needs)
        _remember(group, {"lr": alpha, **state})

    def _direction(self, group: dict[str, Any], state: dict[str, Any]) -> Tensor | None:
        """Return -D_{t-1} of one tensor, None before its first step."""
        raise NotImplementedError

    def _descend(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], states: list[dict[str, Any]]
    ) -> None:
        """Update the state and the parameters with the group's alpha."""
        raise NotImplementedError


def _resolve_auto(group: dict[str, Any]) -> None:
    """Turn hypergrad_lr="auto" into the rule of that name with its gain."""
    if isinstance(group.get("hypergrad_lr"), str) and group["hypergrad_lr"] == "auto":
        group |= {"hypergrad_lr": control.AUTO_GAIN, "rule": "auto"}


def _control(group: dict[str, Any]) -> Control:
    """Return the group's options of control, checked."""
    return Control(**{name: group[name] for name in control.OPTIONS})


def _remember(group: dict[str, Any], values: dict[str, Tensor | float]) -> None:
    """Put values into the group, into the tensors that are there already where there are any."""
    for name, value in values.items():
        if isinstance(group[name], Tensor):
            group[name].copy_(torch.as_tensor(value))
        else:
            group[name] = value


def _place_alpha(group: dict[str, Any]) -> None:
    """Give a group whose alpha is a tensor, or belongs on an accelerator, a 0-dim tensor of its own there."""
    state = control.initial_state(_control(group))
    for name, zero in state.items():
        group.setdefault(name, zero)
    device = group["params"][0].device if group["params"] else torch.device("cpu")
    if isinstance(group["lr"], Tensor) or device.type != "cpu":
        dtype = torch.float32 if device.type == "mps" else torch.float64
        for name in ("lr", "slope", *state):
            group[name] = torch.as_tensor(group[name], dtype=dtype, device=device).detach().clone().reshape(())


def as_real(tensor: Tensor) -> Tensor:
    """View a complex tensor as its real and imaginary parts; a real one as it is."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def total(terms) -> Tensor:
    """Sum 0-dim tensors in float64 (float32 where the device has no float64)."""
    stacked = torch.stack(list(terms))
    return stacked.sum() if stacked.device.type == "mps" else stacked.sum(dtype=torch.float64)
