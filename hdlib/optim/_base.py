"""What the hypergradient optimisers share: validation, where alpha lives, and the order of a step."""

from __future__ import annotations

import functools
import importlib
import math
import numbers
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, TypeAlias, TypeVar, cast, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from hdlib.optim import _kernels, control, rules
from hdlib.optim.control import Control

ParamsT: TypeAlias = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]
State: TypeAlias = dict[str, Any]
Group: TypeAlias = dict[str, Any]
Number: TypeAlias = float | Tensor
StepT = TypeVar("StepT", bound=Callable[..., Any])
LossT = TypeVar("LossT")

CHUNK = 1 << 18  # elements whose tensors stay in the processor's cache between the operations of a pass
SMALL = 1 << 18  # elements of an accelerator's tensor whose kernels take about as long to start as to run
PLAIN = (Tensor, torch.nn.Parameter)

# where a group keeps each option: torch's OneCycleLR writes values of its own to "min_lr" and "max_lr"
KEYS = {name: f"hypergrad_{name}" if name in ("min_lr", "max_lr") else name for name in control.OPTIONS}


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


def check_number(name: str, value: Any, low: float = 0.0, high: float = math.inf) -> None:
    """Refuse anything but a finite number in [low, high), in one sentence."""
    if isinstance(value, str) and is_number(value):
        raise ValueError(f"{name} must be a number, not the string {value!r}: write {name}={value} without quotes.")
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"Tensor {name} must be 1-element, not of shape {tuple(value.shape)}.")
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        auto = ' or "auto"' if name == "hypergrad_lr" else ""
        raise ValueError(f"{name} must be a number{auto}, not {value!r}.")
    if not low <= float(value) < high or not math.isfinite(value):
        upper = "" if high == math.inf else f" and less than {high:g}"
        raise ValueError(f"{name} is {value}: it must be a finite number of at least {low:g}{upper}.")


def is_number(text: str) -> bool:
    """Whether a text is a number in quotes."""
    try:
        float(text)
    except ValueError:
        return False
    return True


class Part:
    """The tensors of one group that are computed together, in one way.

    Attributes:
        way: "loop" (rules.py, tensor by tensor), "foreach" (torch's multi-tensor operations), "torch" (torch's
            fused kernels) or "kernels" (kernels.cpp).
        mesh: the device mesh and the placements of DTensors, None for ordinary tensors.
        owners: the parameters as the user knows them.
        params: their real numbers on this process: a DTensor's shard, a complex tensor's real view.
        grads: the gradients' real numbers, as backward left them.
        states: the parameters' states.
        moved: whether the last step moved the parameter; D_{t-1} is zero where it did not.
    """

    def __init__(self, way: str, mesh: Any) -> None:
        self.way = way
        self.mesh = mesh
        self.owners: list[Tensor] = []
        self.params: list[Tensor] = []
        self.grads: list[Tensor] = []
        self.states: list[State] = []
        self.moved: list[bool] = []

    def real(self, name: str) -> list[Tensor]:
        """Return one tensor of every state, as real numbers on this process."""
        return [plain(state[name]) for state in self.states]

    def rows(self, *columns: Sequence[Any]) -> Iterator[tuple[bool, Sequence[Any]]]:
        """Return, for each tensor, whether it moved and its entry in every column, the first of which is a tensor.

        On an accelerator small tensors are joined into one row, of vectors, in which a column's 0-dim tensors are
        repeated: what is computed from a row is for sums alone.
        """
        small: dict[Any, list[Sequence[Any]]] = {}
        for moved, row in zip(self.moved, zip(*columns, strict=True), strict=True):
            first = row[0]
            if is_small(first):
                small.setdefault((moved, first.device, first.dtype), []).append(row)
            else:
                yield moved, row
        for (moved, *_), rows in small.items():
            yield moved, [torch.cat(column) for column in zip(*[rules.flat(*row) for row in rows], strict=True)]

    def gpu_kernels(self) -> Any:
        """Return the kernels for these tensors, if all are on one GPU that can run them and each has a direction."""
        devices = {p.device for p in self.params}
        if self.way != "torch" or not all(self.moved) or len(devices) > 1 or torch.compiler.is_compiling():
            return None
        return _kernels.gpu(devices.pop())

    def some(self, which: Sequence[int]) -> Part:
        """Return a part of these tensors alone."""
        part = Part(self.way, self.mesh)
        for name in ("owners", "params", "grads", "states", "moved"):
            setattr(part, name, [getattr(self, name)[i] for i in which])
        return part

    def zeros(self, name: str) -> None:
        """Give every state that lacks it a tensor of zeros like its parameter."""
        for p, state in zip(self.owners, self.states, strict=True):
            if state.get(name) is None:
                state[name] = torch.zeros_like(p, memory_format=torch.preserve_format)


class HypergradientOptimizer(Optimizer):
    """Base of the optimisers that adapt `group["lr"]` (the paper's alpha) once per step.

    A group's `lr` stays a Python float where its parameters are on the CPU and `lr` was given as a float.
    On an accelerator, or where a tensor was given or `capturable` is set, it is a 0-dim tensor (float64, or float32
    where the device has no float64) that belongs to that group alone and is updated in place, so that no step waits
    for the device. `group["hypergrad"]`, in the same form, holds h_t of the last step that adapted, and 0 before the
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

    def __init__(self, params: ParamsT, defaults: dict[str, Any], guards: dict[str, Any]) -> None:
        unknown = ", ".join(sorted(set(guards) - set(control.OPTIONS)))
        if unknown:
            raise TypeError(f"{type(self).__name__} has no argument {unknown}.")
        values = asdict(Control()) | defaults | guards
        defaults = {KEYS.get(name, name): value for name, value in values.items()}
        self._check(self._resolved(defaults))
        super().__init__(params, {**defaults, "hypergrad": 0.0, "slope": 0.0})

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
        return {**group, "rule": rule, "hypergrad_lr": beta}

    def _check(self, group: Group) -> None:
        options = Control(*[group[key] for key in KEYS.values()])
        check_number("lr", group["lr"])
        check_number("hypergrad_lr", group["hypergrad_lr"])
        check_number("weight_decay", group["weight_decay"])
        options.check_start(group["lr"])
        if group["rule"] == "multiplicative" and group["hypergrad_lr"] >= 1:
            raise ValueError(
                f"hypergrad_lr is {group['hypergrad_lr']}: the multiplicative rule needs a value below 1, "
                "beyond which alpha can change its sign."
            )
        if group["fused"] and group["foreach"]:
            raise RuntimeError("`fused` and `foreach` cannot be `True` together.")
        if group["fused"] and group["differentiable"]:
            raise RuntimeError("`fused` does not support `differentiable`.")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; its values are checked like the constructor's.

        Args:
            param_group: `params` and the values in which the group differs from the constructor's. A number for
                `hypergrad_lr` alone is the beta of the constructor's `rule`, or of "additive" where that came from
                "auto". With `shared_alpha` the default of `lr` is the alpha of the other groups.

        Raises:
            ValueError: a value is outside its range, or `shared_alpha` is set and the group's `lr`, `hypergrad_lr` or
                `rule` is not that of the other groups. The group is then not added.
        """
        self._take_over(param_group)
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            group |= self._resolved(group)
            self._check(group)
            _check_shared(self.param_groups)
        except Exception:
            self.param_groups.pop()
            raise
        for name, value in group.items():
            if isinstance(value, numbers.Real) and not isinstance(value, (bool, int, float)):
                group[name] = float(value)  # NumPy's, which a checkpoint cannot hold
        _place_alpha(group)

    def _take_over(self, group: Group) -> None:
        """Fill in what a new group takes neither from the constructor nor as it is given."""
        for name, key in KEYS.items():
            if name in group and key not in group:
                group[key] = group.pop(name)
        rule, automatic = group.get("rule"), "auto" in (self.defaults["rule"], self.defaults["hypergrad_lr"])
        if rule is None and group.get("hypergrad_lr") == "auto":
            group["rule"] = "auto"
        elif rule is not None and (rule == "auto") != automatic:
            group.setdefault("hypergrad_lr", None)  # the automatic rule's beta is no other's, nor the reverse
        if self.param_groups and group.get("shared_alpha", self.defaults["shared_alpha"]):
            group.setdefault("lr", self.param_groups[0]["lr"])

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
                group.setdefault(name, value if name in ("hypergrad", "slope") else own.get(name, value))
            group |= self._resolved(group)
            _place_alpha(group)

    def learning_rates(self) -> list[float]:
        """Return alpha of every group as floats.

        On an accelerator this waits for the device, and is the only thing here that does: call it when you log, not
        every step.
        """
        return [float(group["lr"]) for group in self.param_groups]

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
            RuntimeError: a gradient is sparse; a CUDA graph is being captured without `capturable`.
            ValueError: somebody wrote a value outside its range into a group; `shared_alpha` is set and somebody gave
                the groups different learning rates.
        """
        self._accelerator_graph_capture_health_check()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        for group in groups:
            self._settle(group)
        gathered = [self._gather(group) for group in groups]
        if groups[0]["shared_alpha"]:
            _check_shared(groups)
            together = [list(range(len(groups)))]
        else:
            together = [[i] for i in range(len(groups))]
        for indices in together:
            self._step([groups[i] for i in indices], [gathered[i] for i in indices])
        return loss

    def _settle(self, group: Group) -> None:
        """Take in what was written into a group since its last step."""
        if isinstance(group["hypergrad_lr"], str):
            changed = self._resolved({**group, "rule": None})
            self._check(changed)
            group |= changed
        replaced = isinstance(group["slope"], Tensor) and not isinstance(group["lr"], Tensor)
        if replaced or not control.initial_state(options_of(group)).keys() <= group.keys():
            _place_alpha(group)

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
            if options.rule == "auto" and not moved:
                self._limit_first(groups, parts)
            sums = [self._sums(group, *found) for group, found in zip(groups, gathered, strict=True)]
            if moved:
                self._adapt(groups, [sum_up(values) for values in zip(*sums, strict=True)])
            else:
                remember(groups, {"hypergrad": 0.0})
        else:
            for group, some in zip(groups, parts, strict=True):
                for part in some:
                    self._observe(group, part)
        gamma, state = control.step_size(first["lr"], options, first)
        for group, some in zip(groups, parts, strict=True):
            alpha = group["lr"]
            for part in some:
                group["lr"] = gamma if isinstance(gamma, Tensor) else in_range(gamma, group, part.params)
                self._descend(group, part)
            group["lr"] = alpha
        remember(groups, {name: state[name] for name in control.initial_state(options)})
        if adapts and options.needs_slope:
            slopes = [self._slope(group, some, gamma) for group, some in zip(groups, parts, strict=True)]
            remember(groups, {"slope": sum_up(slopes)})

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
                    f"{type(self).__name__} does not support sparse gradients: build the embedding with sparse=False."
                )
            state = self.state[p]
            mesh = mesh_of(p)
            if mesh is not None and getattr(g, "placements", None) != mesh[1]:
                g = cast(Any, g).redistribute(placements=mesh[1])
            x, y = plain(p), plain(g)
            how = way
            if (how in ("torch", "kernels") and not self._fits(how, x, y, state)) or (
                how == "foreach" and not asked and type(x) not in PLAIN
            ):
                how = "loop"
            if how == "torch" and x.dtype == torch.float64 and x.device.type != "cpu":
                how = "foreach"  # an accelerator's fused kernels read a learning rate there as float32
            if how == "kernels" and x.dtype not in _kernels.DTYPES:
                how = "loop" if not x.dtype.is_floating_point else self._without_kernels
            key = (how, x.dtype if how == "kernels" else None, mesh)
            if key not in parts:
                parts[key] = Part(how, mesh)
            part = parts[key]
            part.owners.append(p)
            part.params.append(x)
            part.grads.append(y)
            part.states.append(state)
            part.moved.append(not state.get("rested") and self._has_direction(group, state))
        return list(parts.values()), resting

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
                    g = precise(gradient(group, g, p, l2_of(group)))
                    d = self._direction(group, p, state) if adapts and moved else None
                    found.append((part.mesh, [rules.dot(g, g), 0.0 if d is None else rules.dot(g, precise(d))]))
        size, h = (float(value) for value in over_meshes(found, 2))
        if math.isfinite(size) and math.isfinite(h):
            return False
        if adapts:
            remember(groups, {"hypergrad": math.nan if math.isfinite(h) else -h})
        return True

    def _limit_first(self, groups: list[Group], parts: list[list[Part]]) -> None:
        """Keep the very first step of these groups within a share of the parameters' size: `control.first_alpha`."""
        for group in groups:
            states = [self.state[p] for p in group["params"] if p in self.state]
            if any(self._has_direction(group, state) for state in states):
                return
        found: list[tuple[Any, list[Number]]] = []
        for group, some in zip(groups, parts, strict=True):
            for part in some:
                for p, g in zip(part.params, part.grads, strict=True):
                    g, p = precise(gradient(group, g, p, l2_of(group))), precise(p)
                    d = self._first_direction(group, g, p)
                    found.append((part.mesh, [total([rules.dot(p, p)]), total([rules.dot(d, d)])]))
        alpha = groups[0]["lr"]
        sizes = over_meshes(found, 2)
        if isinstance(alpha, Tensor):
            sizes = [torch.as_tensor(value, dtype=alpha.dtype, device=alpha.device) for value in sizes]
        else:
            sizes = [float(value) for value in sizes]
        remember(groups, {"lr": control.first_alpha(alpha, options_of(groups[0]), *sizes)})

    def _first_direction(self, group: Group, g: Tensor, p: Tensor) -> Tensor:
        """Return -D_1 of one tensor from its gradient g_1."""
        raise NotImplementedError

    def _slope(self, group: Group, parts: list[Part], gamma: Number) -> Number:
        """Return s_t = g_t . D_t after the step; the L2 term of g_t is at theta_{t-1} = theta_t - gamma_t D_t."""
        found, l2 = [], l2_of(group)
        for part in parts:
            part.moved = [True] * len(part.params)
            for p, g, d in self._rows(group, part):
                d, p, g = precise(cast(Tensor, d)), precise(p), precise(g)
                along: Number = -rules.dot(g, d) if group["maximize"] else rules.dot(g, d)
                if l2 != 0:
                    along = along + l2 * (rules.dot(p, d) + gamma * rules.dot(d, d))
                found.append((part.mesh, [along]))
        return 0.0 - self._rescaled(group, over_meshes(found, 1))[0]

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

    def _rescaled(self, group: Group, sums: list[Number]) -> list[Number]:
        """Return the sums times what `_observe` left out of the direction."""
        return sums

    def _descend(self, group: Group, part: Part) -> None:
        """Move the parameters with the group's alpha."""
        raise NotImplementedError


def _check_shared(groups: list[Group]) -> None:
    """Refuse groups that are to share one alpha and start from different ones."""
    first = groups[0]
    for group in groups[1:]:
        for name in ("shared_alpha", *KEYS.values(), "hypergrad_lr", "lr"):
            if not (first["shared_alpha"] or group["shared_alpha"]):
                continue
            values = first[name], group[name]
            if any(isinstance(value, Tensor) and value.device.type != "cpu" for value in values):
                continue  # to look would wait for the device
            if values[0] != values[1]:
                raise ValueError(
                    f"{name} is {values[0]} in one group and {values[1]} in another: with shared_alpha it must be the "
                    "same in all groups."
                )


def options_of(group: Group) -> Control:
    """Return how the group's alpha moves. The automatic rule's overshoot depends on how the direction averages."""
    momentum = group["betas"][0] if "betas" in group else group["momentum"]
    values = [group[key] for key in KEYS.values()]
    try:
        return _options(momentum, bool(group.get("nesterov")), *values)
    except TypeError:  # a list, say, of which Control says what is wrong
        return Control(*values)


@functools.lru_cache(maxsize=256)
def _options(momentum: float | Tensor, nesterov: bool, *values: Any) -> Control:
    options = dict(zip(control.OPTIONS, values, strict=True))
    if options["overshoot"] is None and options["rule"] == "auto":
        momentum = float(momentum)
        known = momentum if 0 <= momentum < 1 else 0.0  # otherwise no average; Adam refuses it
        options["overshoot"] = control.default_overshoot("auto", known, nesterov)
    return Control(**options)


def remember(groups: list[Group], values: dict[str, Number]) -> None:
    """Put values into groups, into the tensors that are there already where there are any.

    All at once, and not by `copy_`: compiled by torch 2.11, that leaves a 0-dim float64 tensor as it was.
    """
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


def _place_alpha(group: Group) -> None:
    """Give a group whose alpha is a tensor, or belongs on an accelerator, 0-dim tensors of its own there.

    What a step changes is then a tensor from the first: torch's distributed checkpoints are read into what is there.
    """
    state = control.initial_state(options_of(group))
    for name, zero in state.items():
        group.setdefault(name, zero)
    device = group["params"][0].device if group["params"] else torch.device("cpu")
    tensors = isinstance(group["lr"], Tensor) or isinstance(group["slope"], Tensor)
    if tensors or group["capturable"] or device.type not in ("cpu", "meta"):
        dtype = torch.float32 if device.type == "mps" else torch.float64
        for name in ("lr", "hypergrad", "slope", *state):
            value = torch.as_tensor(group[name], dtype=dtype, device=device).reshape(())
            group[name] = value if group["differentiable"] else value.detach().clone()


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


def plain(tensor: Tensor) -> Tensor:
    """Return a tensor's real numbers on this process, in its own memory: a DTensor's shard, a complex one's view."""
    if type(tensor) not in PLAIN and hasattr(tensor, "to_local"):
        tensor = cast(Tensor, tensor.to_local())
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def mesh_of(p: Any) -> Any:
    """Return a DTensor's device mesh and placements, None for another tensor."""
    return None if type(p) in PLAIN or not hasattr(p, "device_mesh") else (p.device_mesh, p.placements)


def channels_last(tensor: Tensor) -> bool:
    """Whether a batch of images lies in memory with its channels innermost, without gaps."""
    return tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)


def chunks(tensors: Sequence[Tensor | None]) -> Iterator[Sequence[Any]]:
    """Cut tensors of one shape into pieces that fit the processor's cache, where that is to any use.

    Working through all operations of a pass piece by piece reads the memory once instead of once an operation.
    """
    there = [t for t in tensors if t is not None]
    first = there[0]
    if first.device.type != "cpu" or first.numel() <= CHUNK or torch.compiler.is_compiling():
        return iter([tensors])
    if not all(map(Tensor.is_contiguous, there)):
        if not all(map(channels_last, there)):
            return iter([tensors])
        tensors = [None if t is None else t.permute(0, 2, 3, 1) for t in tensors]
    count = -(-first.numel() // CHUNK)
    return zip(*[[None] * count if t is None else torch.split(t.view(-1), CHUNK) for t in tensors], strict=True)


def needs_norms(group: Group) -> bool:
    """Whether alpha's update needs |g_t| and |D_{t-1}| beside h_t."""
    return options_of(group).needs_norms


def l2_of(group: Group) -> float:
    """Return the factor of the L2 term in the gradient: none with decoupled weight decay."""
    return 0.0 if group.get("decoupled_weight_decay") else float(group["weight_decay"])


def gradient(group: Group, g: Tensor, p: Tensor, decay: float) -> Tensor:
    """Return g_t, the gradient of what is minimised, its L2 term included."""
    if group["maximize"]:
        g = g.neg()
    return g.add(p, alpha=decay) if decay != 0 else g


def is_small(tensor: Tensor) -> bool:
    """Whether an accelerator takes about as long to start a kernel as to run it on this tensor."""
    return tensor.device.type != "cpu" and tensor.numel() <= SMALL


def precision(tensors: Iterable[Tensor]) -> torch.dtype:
    """Return the precision of a number that is multiplied with these tensors."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def precise(tensor: Tensor) -> Tensor:
    """Return half precision numbers in float32."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


class Sums:
    """Adds up g.d, |g|^2 and |d|^2 tensor by tensor."""

    def __init__(self, group: Group) -> None:
        self.norms = needs_norms(group)
        self.terms: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])

    def add(self, g: Tensor, d: Tensor | None) -> None:
        """Count a tensor; d is None where the last step did not move it."""
        gd, gg, dd = self.terms
        if d is not None:
            gd.append(rules.dot(precise(g), precise(d)))
        if self.norms:
            gg.append(rules.dot(g, g))
            if d is not None:
                dd.append(rules.dot(d, d))

    def values(self) -> list[Number]:
        """Return the three sums, 0-dim float64 tensors or zeros."""
        return [total(terms) if terms else 0.0 for terms in self.terms]


def total(terms: Iterable[Tensor]) -> Tensor:
    """Sum 0-dim tensors of one device in float64 (float32 where the device has no float64)."""
    terms = list(terms)
    if len({t.device for t in terms}) > 1:
        terms = [t.to(terms[0].device, non_blocking=True) for t in terms]
    if len({t.dtype for t in terms}) > 1:
        terms = [t.to(torch.float32 if t.device.type == "mps" else torch.float64) for t in terms]
    stacked = torch.stack(terms)
    return stacked.sum() if stacked.device.type == "mps" else stacked.sum(dtype=torch.float64)


def sum_up(values: Sequence[Number]) -> Number:
    """Add numbers and 0-dim tensors, which may lie on several devices."""
    result = values[0]
    for value in values[1:]:
        if isinstance(value, Tensor) and isinstance(result, Tensor):
            value = value.to(result.device, non_blocking=True)
        result = result + value
    return result


def over_meshes(found: list[tuple[Any, list[Number]]], length: int) -> list[Number]:
    """Add up rows of so many numbers, over the processes too, one all-reduce for each device mesh."""
    rows: dict[Any, list[list[Number]]] = {}
    for mesh, row in found:
        rows.setdefault(mesh, []).append(row)
    sums = [over_mesh([sum_up(column) for column in zip(*some, strict=True)], mesh) for mesh, some in rows.items()]
    return [sum_up(column) for column in zip(*sums, strict=True)] if sums else [0.0] * length


def over_mesh(values: list[Number], mesh: Any) -> list[Number]:
    """Add the processes' sums in one all-reduce; a dimension on which tensors are replicated counts once."""
    if mesh is None:
        return values
    from torch.distributed.tensor import DTensor, Partial, Replicate

    device_mesh, placements = mesh
    local = torch.stack(
        [torch.as_tensor(value, dtype=torch.float64, device=device_mesh.device_type) for value in values]
    )
    how = [Replicate() if placement.is_replicate() else Partial() for placement in placements]
    return list(DTensor.from_local(local, device_mesh, how, run_check=False).full_tensor().unbind())
