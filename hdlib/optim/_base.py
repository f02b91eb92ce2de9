"""What the hypergradient optimisers share: validation and the order of a step."""

from __future__ import annotations

import functools
import importlib
import math
import numbers
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import Any, TypeAlias, TypeVar, cast, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from hdlib.optim import _kernels, control, rules
from hdlib.optim._group import (
    Group,
    Number,
    check_shared,
    gradient,
    in_graph,
    in_range,
    kept,
    l2_of,
    needs_norms,
    options_of,
    place_alpha,
    remember,
)
from hdlib.optim._part import PLAIN, Part, State, channels_last, mesh_of, plain
from hdlib.optim._sums import over_meshes, sum_up, total
from hdlib.optim.control import KEYS, Control, Guards

MEASURED = ("hypergrad", "slope")  # what a group remembers of the last step; nobody gives it
FOREIGN = ("betas", "decoupled_weight_decay", "nesterov")  # settings that decide here, where another's group has them
ParamsT: TypeAlias = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]
StepT = TypeVar("StepT", bound=Callable[..., Any])
LossT = TypeVar("LossT")


def with_grad_if_differentiable(step: StepT) -> StepT:
    """Run a step without recording gradients, unless `differentiable` asks for them."""
    # torch's own also breaks torch.compile's graph around the step, which keeps the compiled step in place
    native = getattr(importlib.import_module("torch.optim.optimizer"), "_use_grad_for_differentiable", None)
    if native is not None:
        return cast(StepT, native(step))

    @functools.wraps(step)
    def with_grad(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return step(self, *args, **kwargs)

    return cast(StepT, with_grad)


def check_number(name: str, value: Any, high: float = math.inf) -> None:
    """Refuse anything but a finite number in [0, high), in one sentence."""
    if isinstance(value, str) and is_number(value):
        raise ValueError(f"{name} must be a number, not the string {value!r}: write {name}={value} without quotes.")
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"Tensor {name} must be 1-element, not of shape {tuple(value.shape)}.")
        if value.requires_grad and name not in ("lr", "hypergrad_lr"):
            raise ValueError(f"{name} requires a gradient, which a step does not give it: take its detach().")
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        auto = ' or "auto"' if name == "hypergrad_lr" else ""
        raise ValueError(f"{name} must be a number{auto}, not {value!r}.")
    if not 0 <= float(value) < high or not math.isfinite(value):
        upper = "" if high == math.inf else f" and less than {high:g}"
        raise ValueError(f"{name} is {value}: it must be a finite number of at least 0{upper}.")


def check_factor(group: Group) -> None:
    """Refuse a beta with which the multiplicative rule could change alpha's sign."""
    beta = group["hypergrad_lr"]
    if isinstance(beta, Tensor) and (beta.device.type != "cpu" or torch.compiler.is_compiling()):
        return  # to look would wait for the device, or break the graph
    if group["rule"] == "multiplicative" and beta >= 1:
        raise ValueError(
            f"hypergrad_lr is {beta}: the multiplicative rule needs a value below 1, beyond which alpha can change its "
            "sign."
        )


def is_number(text: str) -> bool:
    """Whether a text is a number in quotes."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _bounded_unless_zero(alpha: Number, options: Control) -> Number:
    """Return alpha within its bounds, or 0: a step that goes nowhere is one of torch's distributed checkpoints."""
    bounded = options.bounded(alpha)
    if isinstance(alpha, Tensor):
        return torch.where(alpha == 0, alpha, cast(Tensor, bounded))
    return alpha if alpha == 0 else bounded


class HypergradientOptimizer(Optimizer):
    """Base of the optimisers that adapt `group["lr"]` (the paper's alpha) once per step.

    A group's `lr` stays a Python float where its parameters are on the CPU and `lr` was given as a float.
    On an accelerator, or where a tensor was given or `capturable` is set, it is a 0-dim tensor (float64, or float32
    where the device has no float64) that belongs to that group alone and is updated in place, so that no step waits
    for the device. With `differentiable` it is one, too, where it adapts, and part of the graph: each step makes a new
    one. `group["hypergrad"]`, in the same form, holds h_t of the last step that adapted, and 0 before the
    second. With `hypergrad_lr=0` no dot product is computed, and it stays as it is.

    Between steps a group's values may be changed, `hypergrad_lr` to "auto" too. The bounds of alpha are
    `group["hypergrad_min_lr"]` and `group["hypergrad_max_lr"]`, which no scheduler of torch writes to.

    A step has two passes, because alpha_t needs the whole gradient before any parameter moves: `_observe` sums
    g_t . D_{t-1} and updates the state, `_adapt` moves alpha, `_descend` moves the parameters.

    A parameter without a gradient has zeros in g_t, and is not moved, so it has zeros in D_t too: its state
    then says `rested`.
    """

    buffers: tuple[str, ...] = ()  # names of the states that have the parameter's shape
    additive_beta: float  # of the additive rule where no `hypergrad_lr` is given

    def __init__(self, params: ParamsT, defaults: dict[str, Any], given: Guards) -> None:
        names = {key: name for name, key in KEYS.items()}  # an optimiser may be made with another one's defaults
        guards = {names.get(key, key): v for key, v in given.items() if key not in MEASURED or v != 0}
        unknown = ", ".join(sorted(set(guards) - set(control.OPTIONS)))
        if unknown:
            known = ", ".join(name for name in control.OPTIONS if name != "rule")
            raise TypeError(
                f"{type(self).__name__} has no argument {unknown}: beside torch's it has hypergrad_lr (beta), rule, "
                f"shared_alpha, {known}."
            )
        values = asdict(Control()) | defaults | guards
        defaults = {KEYS.get(name, name): value for name, value in values.items()}
        resolved = self._resolved(defaults)
        self._check(resolved)
        self._check_start(resolved)
        super().__init__(params, {**defaults, **dict.fromkeys(MEASURED, 0.0)})

    def _resolved(self, group: Group) -> Group:
        """Return the group's values with the rule and the beta that the two leave to each other."""
        rule, beta = group["rule"], group["hypergrad_lr"]
        if beta == "auto":
            if rule not in (None, "auto"):
                raise ValueError(
                    f"hypergrad_lr is 'auto' with rule={rule!r}: leave the rule out, or give hypergrad_lr a number."
                )
            rule, beta = "auto", None
        rule = "additive" if rule is None else rule
        if beta is None and rule in control.RULES:
            beta = self.additive_beta if rule == "additive" else control.BETAS.get(rule)
            if beta is None:
                raise ValueError(
                    f"hypergrad_lr is None with rule={rule!r}, which has no default: give a number whose product with "
                    "h is about 0.01."
                )
            if group["scaling"] != "none":
                raise ValueError(
                    f"hypergrad_lr is None with scaling={group['scaling']!r}, which has no default: give a number that "
                    "lr may change by in a step, such as a hundredth of it."
                )
        return {**group, "rule": rule, "hypergrad_lr": beta}

    def _check(self, group: Group) -> None:
        """Refuse values that no group can have; alpha is looked at by `_check_start`."""
        Control(*[group[key] for key in KEYS.values()])
        check_number("hypergrad_lr", group["hypergrad_lr"])
        check_number("weight_decay", group["weight_decay"])
        check_factor(group)
        if group["fused"] and group["foreach"]:
            raise RuntimeError("`fused` and `foreach` cannot be `True` together.")
        if group["fused"] and group["differentiable"]:
            raise RuntimeError("`fused` does not support `differentiable`.")

    def _check_start(self, group: Group) -> None:
        """Refuse an alpha that nobody can start from."""
        check_number("lr", group["lr"])
        options_of(group).check_start(group["lr"])

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; its values are checked like the constructor's.

        Args:
            param_group: `params` and the values in which the group differs from the constructor's. A number for
                `hypergrad_lr` alone is the beta of the constructor's `rule`, or of "additive" where that came from
                "auto". With `shared_alpha` the default of `lr` is the alpha of the other groups. Beside an
                `initial_lr`, `min_lr` and `max_lr` together are OneCycleLR's own numbers, and no bounds.

        Raises:
            TypeError: the group is not a dict.
            ValueError: a value is outside its range, or `shared_alpha` is set and the group's `lr`, `hypergrad_lr` or
                `rule` is not that of the other groups. The group is then not added.
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group is a {type(param_group).__name__}: give a dict, such as {{'params': [...]}}.")
        group = dict(param_group)  # what is learnt does not go into the caller's, who may use it again
        if text := next((name for name in MEASURED if isinstance(group.get(name), str)), None):
            raise ValueError(
                f"{text} is {group[text]!r}: a group has it for what is measured; did you mean hypergrad_lr?"
            )
        self._drop_foreign(group)
        inherits = self._take_over(group)
        super().add_param_group(group)
        param_group["params"] = group["params"]  # as torch: an iterator is at its end now
        try:
            group |= self._resolved(group)
            self._check(group)
            if not inherits:
                self._check_start(group)
            check_shared(self.param_groups)
        except Exception:
            self.param_groups.pop()
            raise
        for name, value in group.items():
            if isinstance(value, numbers.Real) and not isinstance(value, (bool, int)):
                group[name] = float(value)  # NumPy's, which a checkpoint cannot hold
        place_alpha(group)

    def _take_over(self, group: Group) -> bool:
        """Fill in what a new group takes neither from the constructor nor as it is given; say if alpha is of that."""
        scheduled = {"initial_lr", "min_lr", "max_lr"} <= group.keys()  # the bounds are OneCycleLR's own numbers
        for name, key in KEYS.items():
            if name in group and key not in group and not scheduled:
                group[key] = group.pop(name)
        rule, automatic = group.get("rule"), "auto" in (self.defaults["rule"], self.defaults["hypergrad_lr"])
        if rule is None and group.get("hypergrad_lr") == "auto":
            group["rule"] = "auto"
        elif rule is not None and (rule == "auto") != automatic:
            group.setdefault("hypergrad_lr", None)  # the automatic rule's beta is no other's, nor the reverse
        inherits = bool(self.param_groups) and "lr" not in group
        inherits = inherits and group.get("shared_alpha", self.defaults["shared_alpha"])
        if inherits:
            group["lr"] = self.param_groups[0]["lr"]
        return inherits

    def __setstate__(self, state: dict[str, Any]) -> None:
        before = self.__dict__.get("param_groups", [])
        super().__setstate__(state)
        for values in (self.defaults, *self.param_groups):
            if "rule" in values:  # not torch's own
                for name, key in KEYS.items():
                    if name in values:
                        values.setdefault(key, values[name])
        for i, group in enumerate(self.param_groups):
            own = before[i] if i < len(before) else {}
            for name, value in self.defaults.items():
                group.setdefault(name, value if name in MEASURED else own.get(name, value))
            self._resolve_auto(group)
            self._drop_foreign(group)
            group |= self._resolved(group)
            place_alpha(group)

    def _drop_foreign(self, group: Group) -> None:
        """Remove what only a group of another optimiser has, and would be taken here for this one's."""
        for name in set(FOREIGN) - self.defaults.keys():
            group.pop(name, None)

    def learning_rates(self) -> list[float]:
        """Return alpha of every group as floats.

        On an accelerator this waits for the device, and is the only thing here that does: call it when you log, not
        every step. With `final_lr` the parameters move by `group["step_size"]`, which passes from alpha to that.
        """
        rates = [group["lr"] for group in self.param_groups]
        return [float(rate.detach() if isinstance(rate, Tensor) else rate) for rate in rates]

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], LossT]) -> LossT: ...

    @with_grad_if_differentiable
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step: gradients, hypergradient, alpha, then the parameters.

        Args:
            closure: re-evaluates the model with gradients and returns the loss.

        Returns:
            The closure's loss, or None.

        Raises:
            RuntimeError: a gradient is sparse; AdamHD is to adapt alpha for float16 parameters; a CUDA graph is being
                captured without `capturable`.
            ValueError: somebody wrote a guard, a rule or a text into a group that it cannot have; `shared_alpha` is set
                and somebody gave the groups different learning rates. Numbers that are written are not checked, as
                in torch.
        """
        self._accelerator_graph_capture_health_check()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        if not groups:
            return loss
        for group in groups:
            self._settle(group)
        gathered = [self._gather(group) for group in groups]
        if groups[0]["shared_alpha"]:
            check_shared(groups)
            together = [list(range(len(groups)))]
        else:
            together = [[i] for i in range(len(groups))]
        for indices in together:
            self._step([groups[i] for i in indices], [gathered[i] for i in indices])
        return loss

    def _settle(self, group: Group) -> None:
        """Take in what was written into a group since its last step."""
        beta = group["hypergrad_lr"]
        if isinstance(beta, str):
            self._resolve_auto(group)
        elif beta is None:
            group |= self._resolved(group)
        elif isinstance(beta, bool) or not isinstance(beta, (int, float, Tensor)):
            check_number("hypergrad_lr", beta)
            group["hypergrad_lr"] = float(beta)  # single precision would round alpha, NumPy's and torch's
        elif isinstance(beta, Tensor) and not (
            beta.requires_grad or beta.device.type != "cpu" or torch.compiler.is_compiling()
        ):
            group["hypergrad_lr"] = float(beta)
        check_factor(group)  # "auto" leaves a beta of 1 to the rule that is written in its place
        alpha, slope = group["lr"], group["slope"]
        if not isinstance(alpha, (float, Tensor)) or (isinstance(alpha, Tensor) and alpha.numel() != 1):
            check_number("lr", alpha)
        if not isinstance(alpha, Tensor):
            alpha = group["lr"] = float(alpha)  # NumPy's float32 would lose what a small beta adds
        replaced = isinstance(slope, Tensor) and (not isinstance(alpha, Tensor) or alpha.dtype != slope.dtype)
        if isinstance(alpha, Tensor):  # perhaps somebody's own, or another group's, which a step must not change
            replaced |= not isinstance(slope, Tensor) or any(
                alpha is other["lr"] for other in self.param_groups if other is not group
            )
        else:
            replaced = replaced or in_graph(group)
        device = group["params"][0].device if group["params"] else None
        if device is not None and device.type not in ("cpu", "meta"):  # perhaps the model was moved there since
            replaced = replaced or not isinstance(alpha, Tensor) or alpha.device != device
        if replaced or not control.initial_state(options_of(group)).keys() <= group.keys():
            place_alpha(group)

    def _resolve_auto(self, group: Group) -> None:
        """Give a group into which "auto" was written the rule and the beta of that."""
        if isinstance(group["hypergrad_lr"], str):
            changed = self._resolved({**group, "rule": None})
            self._check(changed)
            self._check_start({**changed, KEYS["min_lr"]: None, KEYS["max_lr"]: None})  # the next step keeps to these
            group |= changed

    def _step(self, groups: list[Group], gathered: list[tuple[list[Part], list[tuple[Tensor, State]]]]) -> None:
        """Take a step of groups that have one alpha."""
        first, options = groups[0], options_of(groups[0])
        adapts = first["hypergrad_lr"] != 0
        parts = [parts for parts, _ in gathered]
        if options.skip_nonfinite == "step" and self._overflows(groups, parts):
            return
        for some, resting in gathered:
            for part in some:
                for state in part.states if not all(part.moved) else []:
                    state["rested"] = False
            for _, state in resting:
                state["rested"] = True
        if adapts:
            moved = any(any(part.moved) for some in parts for part in some)
            if options.rule == "auto" and self._stands(groups):
                self._limit_first(groups, parts)
            sums = [self._sums(group, *found) for group, found in zip(groups, gathered, strict=True)]
            if moved:
                self._adapt(groups, [sum_up(values) for values in zip(*sums, strict=True)])
            else:  # a first step, whose alpha somebody, such as a scheduler, may have written
                remember(groups, {"lr": _bounded_unless_zero(first["lr"], options), "hypergrad": 0.0})
        else:
            for group, some in zip(groups, parts, strict=True):
                for part in some:
                    self._observe(group, part)
        gamma, state = control.step_size(first["lr"], options, first)
        for group, some in zip(groups, parts, strict=True):
            alpha = group["lr"]
            try:
                for part in some:
                    group["lr"] = gamma if isinstance(gamma, Tensor) else in_range(gamma, group, part.params)
                    self._descend(group, part)
                    if part.way in ("torch", "kernels") and not torch.compiler.is_compiling():
                        # kernels write to memory, so that a later backward pass would not see that weights changed
                        torch.autograd.graph.increment_version(part.owners)
            finally:
                group["lr"] = alpha
        remember(groups, {name: state[name] for name in control.initial_state(options)})
        if options.needs_slope:
            pairs = zip(groups, parts, strict=True) if adapts else ()  # while alpha rests nobody looks at slopes
            slopes = [self._slope(group, some, gamma) for group, some in pairs]
            remember(groups, {"slope": sum_up(slopes) if slopes else 0.0})

    def _accelerator_graph_capture_health_check(self) -> None:
        check = getattr(
            Optimizer,
            "_accelerator_graph_capture_health_check",
            getattr(Optimizer, "_cuda_graph_capture_health_check", None),
        )
        if check is not None:
            check(self)

    def _gather(self, group: Group) -> tuple[list[Part], list[tuple[Tensor, State]]]:
        """Return the group's tensors that have a gradient, and the parameters that moved last but have none now."""
        way, asked = self._way(group)
        parts: dict[Any, Part] = {}
        resting: list[tuple[Tensor, State]] = []
        for p in group["params"]:
            g = p.grad
            if g is None:
                state = self.state.get(p)
                if state and not state.get("rested"):
                    resting.append((p, state))
                continue
            if g.layout != torch.strided:
                raise RuntimeError(
                    f"{type(self).__name__} does not support sparse gradients, and {self._name(group, p)} has one: "
                    "build the embedding with sparse=False."
                )
            if p.is_conj() or p.is_neg():
                raise RuntimeError(
                    f"{type(self).__name__} does not support {self._name(group, p)}, a view that shows its numbers "
                    "conjugated or negated: make the parameter of a copy, with resolve_conj() or resolve_neg()."
                )
            if group["hypergrad_lr"] != 0:
                self._check_adaptable(group, p)
            state = self.state[p]
            mesh = mesh_of(p)
            if mesh is not None and getattr(g, "placements", None) != mesh[1]:
                g = cast(Any, g).redistribute(placements=mesh[1])
            x, y = plain(p), plain(g)
            if y.is_neg():  # of a part of a complex number: its memory holds the negative
                y = y.resolve_neg()
            how = "torch" if way == "kernels" and x.device.type != "cpu" else way
            if (how in ("torch", "kernels") and not self._fits(how, x, y, state)) or (
                how == "foreach" and not asked and type(x) not in PLAIN
            ):
                how = "loop"
            if how == "torch" and x.dtype == torch.float64 and x.device.type != "cpu":
                how = "foreach"  # an accelerator's fused kernels read a learning rate there as float32
            if how == "kernels" and x.dtype not in _kernels.DTYPES:
                how = "loop" if not x.dtype.is_floating_point else self._without_kernels
            key = (how, x.dtype if how == "kernels" else None, mesh, x.device)
            if key not in parts:
                parts[key] = Part(how, mesh)
            part = parts[key]
            part.owners.append(p)
            part.params.append(x)
            part.grads.append(y)
            part.states.append(state)
            part.moved.append(not state.get("rested") and self._has_direction(group, state))
        return list(parts.values()), resting

    def _name(self, group: Group, p: Tensor) -> str:
        """Return what a parameter is called in a sentence."""
        i = next(i for i, other in enumerate(group["params"]) if other is p)
        return f"{group['param_names'][i]!r}" if "param_names" in group else f"a parameter of shape {tuple(p.shape)}"

    def _check_adaptable(self, group: Group, p: Tensor) -> None:
        """Refuse a parameter with which h cannot be known."""

    _without_kernels = "loop"  # the fastest way on the CPU that needs no compiler

    def _way(self, group: Group) -> tuple[str, bool]:
        """Return how the group is computed where its tensors allow it, and whether the user asked for that."""
        on_cpu = not group["params"] or group["params"][0].device.type == "cpu"
        fused, foreach = group["fused"], group["foreach"]
        if group["differentiable"]:
            return "loop", True
        if foreach:
            return "foreach", True
        if fused and torch.compiler.is_compiling() and on_cpu:
            return "loop", True  # the compiler fuses
        if fused:
            if not on_cpu or group["hypergrad_lr"] == 0:
                return "torch", True
            return ("kernels" if _kernels.library() is not None else self._without_kernels), True
        if fused is None and foreach is None:
            if not on_cpu:
                return "foreach", False
            if group["hypergrad_lr"] != 0 and not torch.compiler.is_compiling():
                return self._without_kernels, False
        return "loop", True

    def _fits(self, how: str, p: Tensor, g: Tensor, state: State) -> bool:
        """Whether a fused kernel, which walks through memory, may take these tensors together."""
        tensors = [p, g] + [plain(state[name]) for name in self.buffers if state.get(name) is not None]
        dtype, ours = p.dtype, how == "kernels"  # which look for a plain tensor's numbers in memory
        shape = p.shape
        if any([t.shape != shape for t in tensors]):
            other = next(tuple(t.shape) for t in tensors if t.shape != shape)
            raise RuntimeError(
                f"A parameter of shape {tuple(shape)} has a gradient or a state of shape {other}: load a checkpoint of "
                "this model, or make the optimiser anew after resizing a parameter."
            )
        return (
            dtype.is_floating_point
            and all([t.dtype == dtype and (type(t) in PLAIN or not ours) for t in tensors])
            and (all(map(Tensor.is_contiguous, tensors)) or all(map(channels_last, tensors)))
        )

    def _sums(self, group: Group, parts: list[Part], resting: list[tuple[Tensor, State]]) -> list[Number]:
        """Observe a group: return -h_t and, if alpha's update needs them, |g_t|^2 and |D_{t-1}|^2."""
        norms = needs_norms(group)
        found = [(part.mesh, self._observe(group, part)[: 3 if norms else 1]) for part in parts]
        for p, state in resting:
            if norms:
                d = self._direction(group, plain(p), state)
                found.append((mesh_of(p), [0.0, 0.0, 0.0 if d is None else total([rules.dot(d, d)])]))
        return self._rescaled(group, over_meshes(found, 3 if norms else 1))

    def _overflows(self, groups: list[Group], parts: list[list[Part]]) -> bool:
        """Say whether g_t or h_t is not a finite number, before the state is touched. Waits for the device."""
        found = []
        adapts = groups[0]["hypergrad_lr"] != 0
        for group, some in zip(groups, parts, strict=True):
            for part in some:
                for p, g, state, moved in zip(part.params, part.grads, part.states, part.moved, strict=True):
                    g = gradient(group, g, p, l2_of(group))
                    d = self._direction(group, p, state) if adapts and moved else None
                    found.append((part.mesh, [rules.dot(g, g), 0.0 if d is None else rules.dot(g, d)]))
        size, h = (float(value) for value in over_meshes(found, 2))
        if math.isfinite(size) and math.isfinite(h):
            return False
        if adapts:
            remember(groups, {"hypergrad": math.nan if math.isfinite(h) else -h})
        return True

    def _stands(self, groups: list[Group]) -> bool:
        """Whether no step of these groups has gone anywhere: none was taken, or their gradients or alpha were zero.

        The latter are not looked for on an accelerator, which would have to be waited for, and with `capturable`.
        """
        slope, capturable = groups[0]["slope"], groups[0]["capturable"]
        at_hand = not isinstance(slope, Tensor) or (slope.device.type == "cpu" and not capturable)
        at_hand = at_hand and not torch.compiler.is_compiling()
        if at_hand and slope != 0:
            return bool(groups[0]["step_size"] == 0)
        states = [(group, p, self.state[p]) for group in groups for p in group["params"] if self.state.get(p)]
        if not any(self._has_direction(group, state) for group, _, state in states):
            return True
        if not at_hand:
            return False
        found: list[tuple[Any, list[Number]]] = []
        for _, p, state in states:
            kept = [plain(state[name]) for name in self.buffers if state.get(name) is not None]
            found.append((mesh_of(p), [total([rules.dot(t, t)]) for t in kept] or [0.0]))
        return all(float(size) == 0 for size in over_meshes([(mesh, [sum_up(row)]) for mesh, row in found], 1))

    def _limit_first(self, groups: list[Group], parts: list[list[Part]]) -> None:
        """Keep the first step of these groups within a share of the parameters' size: `control.first_alpha`."""
        found: list[tuple[Any, list[Number]]] = []
        for group, some in zip(groups, parts, strict=True):
            for part in some:
                for p, g, state in zip(part.params, part.grads, part.states, strict=True):
                    g, p = rules.precise(gradient(group, g, p, l2_of(group))), rules.precise(kept(group, p))
                    d = self._first_direction(group, g, p, state)
                    found.append((part.mesh, [total([rules.dot(p, p)]), total([rules.dot(d, d)])]))
        alpha = groups[0]["lr"]
        sizes = over_meshes(found, 2)
        if isinstance(alpha, Tensor):
            sizes = [torch.as_tensor(value, dtype=alpha.dtype, device=alpha.device) for value in sizes]
        else:
            sizes = [float(value) for value in sizes]
        remember(groups, {"lr": control.first_alpha(alpha, options_of(groups[0]), *sizes)})

    def _first_direction(self, group: Group, g: Tensor, p: Tensor, state: State) -> Tensor:
        """Return -D_t of one tensor from the gradient g_t of the first step that goes anywhere."""
        raise NotImplementedError

    def _slope(self, group: Group, parts: list[Part], gamma: Number) -> Number:
        """Return s_t = g_t . D_t after the step; the L2 term of g_t is at theta_{t-1} = theta_t - gamma_t D_t."""
        found: list[tuple[Any, list[Number]]] = []
        ready: list[tuple[Any, list[Number]]] = []
        l2 = l2_of(group)
        for part in parts:
            if part.along is not None:
                ready.append((part.mesh, [part.along]))
                continue
            part.moved = [True] * len(part.params)
            if (sums := self._gpu_sums(group, part)) is not None:
                found.append((part.mesh, [sums[0] + l2 * gamma * sums[2]]))
                continue
            for p, g, d in self._rows(group, part):
                d = cast(Tensor, d)
                along: Number = -rules.dot(g, d) if group["maximize"] else rules.dot(g, d)
                if l2 != 0:
                    along = along + l2 * (rules.dot(kept(group, p), d) + gamma * rules.dot(d, d))
                found.append((part.mesh, [along]))
        return 0.0 - sum_up([self._rescaled(group, over_meshes(found, 1))[0], over_meshes(ready, 1)[0]])

    def _adapt(self, groups: list[Group], sums: list[Number]) -> None:
        """Move the alpha of these groups, which is one number, given -h_t and, if needed, |g_t|^2 and |D_{t-1}|^2."""
        first, options = groups[0], options_of(groups[0])
        alpha = first["lr"]
        if isinstance(alpha, Tensor):
            sums = [s.to(alpha.device, alpha.dtype) if isinstance(s, Tensor) else alpha.new_tensor(s) for s in sums]
        else:
            sums = [float(s) for s in sums]
        h = 0.0 - sums[0]
        state = {name: first[name] for name in control.initial_state(options)}
        norms = dict(zip(("grad_sq", "direction_sq"), sums[1:], strict=False))
        following, state = control.next_alpha(
            alpha, h, first["hypergrad_lr"], options, state, slope=first["slope"], **norms
        )
        remember(groups, {"lr": following, "hypergrad": h, **state})

    def _has_direction(self, group: Group, state: State) -> bool:
        """Whether the state knows D_{t-1}."""
        raise NotImplementedError

    def _direction(self, group: Group, p: Tensor, state: State) -> Tensor | None:
        """Return -D_{t-1} of one tensor, None before its first step."""
        raise NotImplementedError

    def _rows(self, group: Group, part: Part) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Return rows of parameter, gradient and -D_{t-1}, None where the last step did not move; see `Part.rows`."""
        raise NotImplementedError

    def _observe(self, group: Group, part: Part) -> list[Number]:
        """Return the sums over g_t . -D_{t-1}, g_t^2 and D_{t-1}^2, and go from the state of t-1 to that of t.

        With `hypergrad_lr=0` the sums are zeros. Only the first is needed by the additive rule.
        """
        raise NotImplementedError

    def _gpu_sums(self, group: Group, part: Part) -> list[Number] | None:
        """Return the sums that `_observe` returns, by a GPU's kernel and with the state as it is, None without one."""
        return None

    def _rescaled(self, group: Group, sums: list[Number]) -> list[Number]:
        """Return the sums times what `_observe` left out of the direction."""
        return sums

    def _descend(self, group: Group, part: Part) -> None:
        """Move the parameters with the group's alpha."""
        raise NotImplementedError
