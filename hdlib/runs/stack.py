"""Train many runs as one program: K models along a leading axis, one forward, one backward, one step for all.

A *cohort* holds the runs of one seed: they see the same minibatch, so the first layer of all of them is one wide
product. Within it the runs are ordered by *family* (method, momentum, weight decay, how alpha moves), and each family
is one call of the update rules of `hdlib.optim`, which broadcast over the leading axis. Initial learning rate, beta
and decay differ from run to run. A run that reached its target, diverged or finished leaves its cohort, and the rest
goes on smaller.

A layer is one matrix [out, in + 1], its bias the last column, padded with zeros to whole cache lines; inputs carry
the matching column of ones. Activations are kept as columns, [units, batch], so that the softmax runs along
contiguous minibatches. The last minibatch of an epoch is filled up with examples of weight zero, so that every
iteration has the same shapes, as a captured graph needs.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hdlib.optim import rules
from hdlib.optim.control import Control, first_alpha, initial_state, next_alpha, step_size
from hdlib.runs.history import CHUNK, History
from hdlib.runs.record import Record, provenance
from hdlib.runs.spec import RunSpec
from hdlib.runs.train import capture, data_of, model_of, permutation, settings
from hdlib.tasks import Data

MODELS = ("logreg", "mlp")  # what can be stacked
STATES = {"sgd": 1, "sgdn": 2, "adam": 3}  # tensors that a method remembers, the last direction among them
ADAM = (0.9, 0.999, 1e-8)  # beta_1, beta_2, epsilon of every Adam run, the defaults of AdamHD
EVALUATE = 1000  # examples that are evaluated at a time
SHARED = ("task", "model", "width", "depth", "batch_size", "precision", "input_scale")  # by all runs of a stack


def stackable(spec: RunSpec) -> bool:
    """Say whether a run can be trained in a stack."""
    known = spec.model in MODELS and spec.method.removesuffix("_hd") in STATES
    return known and spec.skip_nonfinite != "step"


def stack_key(spec: RunSpec) -> tuple:
    """Runs with equal keys can be trained in one stack."""
    return tuple(getattr(spec, name) for name in SHARED)


def layer_sizes(spec: RunSpec, features: int, classes: int) -> list[tuple[int, int]]:
    """Return (out, padded in + 1) of every layer."""
    sizes = [features, *([spec.width] * spec.depth if spec.model == "mlp" else []), classes]
    return [(fan_out, padded(fan_in + 1)) for fan_in, fan_out in itertools.pairwise(sizes)]


def padded(size: int) -> int:
    """Round up to a whole cache line of 16 float32."""
    return -(-size // 16) * 16


def bytes_per_run(spec: RunSpec, features: int, classes: int) -> int:
    """Return how much memory a run takes in a stack: parameters, gradients, optimiser state, activations, history."""
    sizes = layer_sizes(spec, features, classes)
    weights = sum(fan_out * fan_in for fan_out, fan_in in sizes)
    units = sum(fan_out for fan_out, _ in sizes)
    states = STATES[spec.method.removesuffix("_hd")]
    return spec.dtype.itemsize * ((2 + states) * weights + 3 * units * max(spec.batch_size, EVALUATE)) + 24 * CHUNK


def train_stack(
    specs: Sequence[RunSpec],
    device: str = "cpu",
    tick: Callable[[int], None] | None = None,
    emit: Callable[[list[Record]], None] | None = None,
    compiled: bool = False,
) -> list[Record]:
    """Train runs together, each to its end, its target loss or its divergence.

    Args:
        specs: runs with one `stack_key`; seeds, methods, learning rates and lengths may differ.
        device: a torch device.
        tick: called with the number of runs' iterations done since the last call.
        emit: called as often with the records of the runs that have ended since, if any.
        compiled: compile the update rules: several times faster on long sweeps, for half a minute at the start.

    Returns:
        The records, in the order of the specs.

    Raises:
        ValueError: the specs cannot be stacked.
        DataNotFoundError: the task's data is not at hand.
    """
    if len({stack_key(spec) for spec in specs}) != 1 or not stackable(specs[0]):
        raise ValueError(f"These runs cannot be stacked: they must be of {MODELS} and share {', '.join(SHARED)}.")
    records: dict[str, Record] = {}
    with settings(specs[0], device):
        stack = Stack(specs, device, compiled)
        while stack.cohorts:
            steps, ended = stack.advance()
            records |= {record.spec.key: record for record in ended}
            if emit:
                emit(ended)
            if tick:
                tick(steps)
    return [records[spec.key] for spec in specs]


class Stack:
    """Runs of one task and model, trained together; see the module.

    Attributes:
        cohorts: of the runs that go on, one for each seed.
        x: training inputs, [N, padded features + 1].
        onehot: their labels, [N, classes].
        iteration: iterations that are taken; `t` is the same on the device, 0-dim float64.
        row: of the current iteration in its chunk, [1].
        floor: like `scale`, Adam's correction of this step, 0-dim float64.
        graph: the captured step, for as long as all tensors stay where they are.
    """

    def __init__(self, specs: Sequence[RunSpec], device: str, compiled: bool) -> None:
        self.spec = specs[0]
        self.device = device
        self.dtype = self.spec.dtype
        self.data = data_of(self.spec, device, self.dtype)
        self.functions = Functions(compiled)
        self.x = with_ones(self.data.train_x.flatten(1))
        self.onehot = torch.nn.functional.one_hot(self.data.train_y, self.data.classes).to(self.dtype)
        self.iteration = 0
        self.t = torch.zeros((), dtype=torch.float64, device=device)
        self.floor, self.scale = torch.zeros_like(self.t), torch.zeros_like(self.t)  # Adam's corrections of this step
        self.row = torch.zeros(1, dtype=torch.int64, device=device)  # iteration within the chunk
        by_seed: dict[int, list[RunSpec]] = {}
        for spec in {spec.key: spec for spec in specs}.values():
            by_seed.setdefault(spec.seed, []).append(spec)
        self.cohorts = [Cohort(group, self.data, self.x, device, self.dtype, compiled) for group in by_seed.values()]
        self.steps_per_epoch = self.spec.steps_per_epoch(len(self.x))
        self.graph: torch.cuda.CUDAGraph | None = None
        self.captures = device.startswith("cuda")
        self.warm = self.begun = False
        for cohort in self.cohorts:
            cohort.start()

    def advance(self) -> tuple[int, list[Record]]:
        """Train a chunk of iterations; return how many runs' iterations it took, and the records of ended runs."""
        started = time.perf_counter()
        position = self.iteration % self.steps_per_epoch
        if position == 0:
            for cohort in self.cohorts:
                cohort.shuffle(self.iteration // self.steps_per_epoch + 1)
        end = min(cohort.next_end for cohort in self.cohorts)
        count = min(CHUNK, self.steps_per_epoch - position, end - self.iteration)
        for cohort in self.cohorts:
            cohort.load(position, count)
        self.row.zero_()
        for _ in range(count):
            self._iterate()
        self.iteration += count
        epoch_ended = self.iteration % self.steps_per_epoch == 0
        trained = [cohort.history.live.copy() for cohort in self.cohorts]
        live = int(sum(runs.sum() for runs in trained))
        ended = [cohort.finish_chunk(self, count, epoch_ended) for cohort in self.cohorts]
        seconds = (time.perf_counter() - started) / live
        records = []
        for cohort, runs, over in zip(self.cohorts, trained, ended, strict=True):
            cohort.history.seconds[runs] += seconds
            records += cohort.retire(self, over)
        before = self.cohorts
        self.cohorts = [cohort for cohort in self.cohorts if cohort.live]
        if len(self.cohorts) < len(before) or any([cohort.compact() for cohort in self.cohorts]):
            self.graph, self.warm = None, False
        beyond = sum(self.iteration - record.iterations for record in records)  # what ended runs did not take of it
        return live * count - beyond, records

    def _iterate(self) -> None:
        """Take one step of every run; on a GPU from a captured graph, after one like it that is not.

        The very first step is not like the others: of the rule "auto" it is another function, and compiling one within
        a capture is not possible. Where a step cannot be captured, each is launched by itself.
        """
        if self.warm and self.graph is None:
            self.graph = capture(self._step)
            self.captures = self.graph is not None
        if self.graph is not None:
            self.graph.replay()
        else:
            self.warm = self.captures and self.begun
            self._step()

    def _step(self) -> None:
        self.t += 1
        floor, scale = rules.adam_corrections(self.t, *ADAM)
        self.floor.copy_(floor)
        self.scale.copy_(scale)
        for cohort in self.cohorts:
            cohort.step(self)
        self.row += 1
        self.begun = True


class Family(NamedTuple):
    """What the consecutive runs of a cohort that one call of the update moves have in common."""

    name: str  # "sgd", "sgdn" or "adam"
    momentum: float
    weight_decay: float
    control: Control

    @classmethod
    def of(cls, spec: RunSpec) -> Family:
        name = spec.method.removesuffix("_hd")
        return cls(name, spec.momentum if name == "sgdn" else 0.0, spec.weight_decay, spec.control())


class Cohort:
    """The runs of one seed. Tensors lead with an axis over its K runs, ordered by family.

    Attributes:
        theta: a matrix for each layer, [K, out, padded in + 1]; `grad`, and each kind of `state`, are like it.
        alpha: [K], float64, like beta, exponent, decay, hypergrad and each entry of `memory`.
        loss: of the minibatch, [K].
        out: the layers' outputs, [K, out, batch]; of the last layer also d loss / d out.
        hidden: inputs of the layers above the first, [K, padded in + 1, batch].
        order: the epoch's minibatches as indices into the training data, [steps, batch].
        weight: what each of these examples counts for, [steps, batch].
        chunk_order: like `chunk_weight`, the part of the chunk, [CHUNK, batch].
        trail: loss before the step, alpha of the step and h_t of the chunk's iterations, [CHUNK, 3, K], float64.
        updates: for each family the arguments and options of `update`, views of the above.
        ends: after how many iterations each run has taken all of its own, [K].
    """

    def __init__(
        self, specs: list[RunSpec], data: Data, x: Tensor, device: str, dtype: torch.dtype, compiled: bool
    ) -> None:
        specs = sorted(specs, key=lambda spec: (str(Family.of(spec)), spec.canonical()))
        spec = specs[0]
        self.specs, self.device, self.data, self.x, self.compiled = specs, device, data, x, compiled
        self.seed, self.batch_size = spec.seed, spec.batch_size
        k = len(specs)
        model = model_of(spec, data.features, data.classes, dtype)
        linear = [layer for layer in model if isinstance(layer, torch.nn.Linear)]
        self.theta = []
        for layer in linear:
            matrix = torch.zeros(layer.out_features, padded(layer.in_features + 1), dtype=dtype)
            matrix[:, : layer.in_features] = layer.weight.detach()
            matrix[:, layer.in_features] = layer.bias.detach()
            self.theta.append(matrix.to(device).repeat(k, 1, 1))
        self.fan_in = [layer.in_features for layer in linear]
        self.grad = [torch.zeros_like(theta) for theta in self.theta]
        kinds = max(STATES[spec.method.removesuffix("_hd")] for spec in specs)
        self.state = [[torch.zeros_like(theta) for theta in self.theta] for _ in range(kinds)]
        vector = functools.partial(torch.tensor, dtype=torch.float64, device=device)
        self.alpha = vector([s.alpha0 for s in specs])
        self.beta = vector([s.beta for s in specs])
        self.exponent = vector([-0.5 if s.decay == "inv_sqrt" else 0.0 for s in specs])
        size = len(data.train_y)
        self.angle = vector([math.pi / s.iterations(size) if s.decay == "cosine" else 0.0 for s in specs])
        self.decay = torch.ones_like(self.alpha)  # what alpha is multiplied with in this step
        self.hypergrad = vector([0.0] * k)
        names = {"slope"}.union(*(initial_state(s.control()) for s in specs))
        self.memory = {name: vector([0.0] * k) for name in sorted(names)}
        self.loss = torch.zeros(k, dtype=dtype, device=device)
        self.chunk_order = torch.zeros(CHUNK, self.batch_size, dtype=torch.int64, device=device)
        self.chunk_weight = torch.zeros(CHUNK, self.batch_size, dtype=dtype, device=device)
        self.weight = self._weights(size, dtype)
        self.history = History(specs, size)
        self.ends = [s.iterations(size) for s in specs]
        self._allocate(dtype)

    @property
    def live(self) -> int:
        return int(self.history.live.sum())

    @property
    def next_end(self) -> int:
        """The iteration at which the first of the runs that go on has taken all of its own."""
        return min(end for end, live in zip(self.ends, self.history.live, strict=True) if live)

    def _weights(self, size: int, dtype: torch.dtype) -> Tensor:
        """Return [steps, batch]: what each example of a minibatch counts for, 0 for those that fill up the last."""
        steps = self.specs[0].steps_per_epoch(size)
        weights = torch.full((steps, self.batch_size), 1 / self.batch_size, dtype=dtype)
        last = size - (steps - 1) * self.batch_size
        weights[-1, :last], weights[-1, last:] = 1 / last, 0.0
        return weights.to(self.device)

    def _allocate(self, dtype: torch.dtype) -> None:
        """Make the buffers and views that depend on the number of runs."""
        k, batch = len(self.specs), self.batch_size
        self.cosine = any(spec.decay == "cosine" for spec in self.specs)
        new = functools.partial(torch.empty, dtype=dtype, device=self.device)
        self.out = [new(k, theta.shape[1], batch) for theta in self.theta]
        self.hidden = [columns_with_ones(new(k, theta.shape[2], batch), n)
                       for theta, n in zip(self.theta[1:], self.fan_in[1:], strict=True)]  # fmt: skip
        self.trail = torch.zeros(CHUNK, 3, k, dtype=torch.float64, device=self.device)
        dynamic = outer_dynamic if self.compiled else lambda tensor: tensor  # the compiler is slow to import
        self.whole = [dynamic(self.out[-1]), dynamic(self.loss)]
        self.updates = []
        for family, group in itertools.groupby(range(k), lambda i: Family.of(self.specs[i])):
            members = list(group)
            runs = slice(members[0], members[-1] + 1)
            adapts = any(spec.beta for spec in self.specs[runs])
            part = lambda tensors, runs=runs: [dynamic(tensor[runs]) for tensor in tensors]  # noqa: E731
            state = [part(kind) for kind in self.state[: STATES[family.name]]]
            vectors = part([self.alpha, self.beta, self.decay, self.hypergrad])
            kept = ["slope", *initial_state(family.control)]
            memory = dict(zip(kept, part([self.memory[name] for name in kept]), strict=True))
            arguments = (part(self.theta), part(self.grad), state, *vectors, memory)
            self.updates.append((arguments, family._asdict() | {"adapts": adapts}))

    # -- an epoch, a chunk, an iteration

    def start(self) -> None:
        """Note the state before training."""
        wanted = self.history.wants_validation(0)
        self.history.start(*self.evaluate(self.data.valid_x, self.data.valid_y, wanted))

    def shuffle(self, epoch: int) -> None:
        """Draw the epoch's minibatches: the same as the serial trainer's."""
        order = permutation(self.seed, epoch, len(self.x))
        filled = torch.arange(self.weight.numel()) % len(order)
        self.order = order[filled].view_as(self.weight).to(self.device)

    def load(self, position: int, count: int) -> None:
        """Put a chunk's minibatches where the iterations look for them."""
        self.chunk_order[:count] = self.order[position : position + count]
        self.chunk_weight[:count] = self.weight[position : position + count]

    def step(self, stack: Stack) -> None:
        """Gradients of all runs on their minibatch, then each family's update."""
        batch = self.chunk_order.index_select(0, stack.row)[0]
        weight = self.chunk_weight.index_select(0, stack.row)[0]
        x, onehot = self.x.index_select(0, batch), stack.onehot.index_select(0, batch).t().contiguous()
        self.forward(x.t(), self.out, self.hidden)
        stack.functions.cross_entropy(self.whole[0], onehot, weight, self.whole[1])
        self.backward(x)
        torch.pow(stack.t, self.exponent, out=self.decay)
        if self.cosine:
            self.decay.mul_(((stack.t - 1) * self.angle).cos_().add_(1).div_(2))  # by exactly 1 where the angle is 0
        for arguments, options in self.updates:
            first = options["adapts"] and options["control"].rule == "auto" and not stack.begun
            stack.functions.update(*arguments, stack.t, stack.floor, stack.scale, first=first, **options)
        values = torch.stack([self.loss.double(), self.alpha * self.decay, self.hypergrad])
        self.trail.index_copy_(0, stack.row, values[None])

    def forward(self, columns: Tensor, out: list[Tensor], hidden: list[Tensor]) -> None:
        """Fill `out`, the layers' outputs [K, out, batch], and `hidden`, their ReLU with its row of ones."""
        k = len(self.theta[0])
        torch.mm(self.theta[0].flatten(0, 1), columns, out=out[0].flatten(0, 1))
        for i, above in enumerate(hidden):
            units = self.fan_in[i + 1]
            torch.clamp_min(out[i], 0, out=above[:, :units])
            if k == 1:
                torch.mm(self.theta[i + 1][0], above[0], out=out[i + 1][0])
            else:
                torch.bmm(self.theta[i + 1], above, out=out[i + 1])

    def backward(self, x: Tensor) -> None:
        """Turn d loss / d out, which the cross-entropy left in the last `out`, into the gradients of all layers."""
        k = len(self.theta[0])
        for i in range(len(self.theta) - 1, 0, -1):
            d, below, units = self.out[i], self.hidden[i - 1], self.fan_in[i]
            down = self.out[i - 1]
            if k == 1:
                torch.mm(d[0], below[0].t(), out=self.grad[i][0])
                torch.mm(self.theta[i][0, :, :units].t(), d[0], out=down[0])
            else:
                torch.bmm(d, below.mT, out=self.grad[i])
                torch.bmm(self.theta[i][:, :, :units].mT, d, out=down)
            torch.ops.aten.threshold_backward.grad_input(down, below[:, :units], 0, grad_input=down)
        torch.mm(self.out[0].flatten(0, 1), x, out=self.grad[0].flatten(0, 1))

    @torch.no_grad()
    def evaluate(self, x: Tensor, y: Tensor, wanted: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Return cross-entropy and accuracy of every run, NaN where they are not wanted."""
        k = len(self.specs)
        if not wanted:
            return np.full(k, np.nan), np.full(k, np.nan)
        total = torch.zeros(2, k, dtype=torch.float64, device=self.device)
        for xs, ys in zip(x.flatten(1).split(EVALUATE), y.split(EVALUATE), strict=True):
            columns = with_ones(xs).t()
            out = [theta.new_empty(k, theta.shape[1], len(ys)) for theta in self.theta]
            hidden = [columns_with_ones(theta.new_empty(k, theta.shape[2], len(ys)), n)
                      for theta, n in zip(self.theta[1:], self.fan_in[1:], strict=True)]  # fmt: skip
            self.forward(columns, out, hidden)
            logits = out[-1]
            picked = logits.gather(1, ys.expand(k, 1, -1)).squeeze(1)
            total[0] += (logits.logsumexp(1) - picked).sum(1)
            total[1] += (logits.argmax(1) == ys).sum(1)
        loss, accuracy = (total / len(y)).cpu().numpy()
        return loss, accuracy

    # -- what came of it

    def finish_chunk(self, stack: Stack, count: int, epoch_ended: bool) -> list[int]:
        """Fetch the chunk's history; return which runs have ended."""
        history = self.history
        history.add(self.trail[:count].cpu().numpy())
        if epoch_ended and history.live.any():
            epoch = stack.iteration // stack.steps_per_epoch
            validation = self.evaluate(self.data.valid_x, self.data.valid_y, history.wants_validation(epoch))
            training = self.evaluate(self.data.train_x, self.data.train_y, history.wants_training_loss())
            history.end_epoch(epoch, *validation, training[0])
        return history.finish()

    def retire(self, stack: Stack, runs: list[int]) -> list[Record]:
        """Return the records of ended runs, which from now on are dead weight until the cohort is compacted."""
        records = []
        for i in runs:
            made = provenance(
                stack.device, torch.get_num_threads(), float(self.history.seconds[i]), self.data.source
            ) | {"stack": len(self.specs), "compiled": stack.functions.compiled}
            records.append(self.history.record(i, made))
        return records

    def compact(self) -> bool:
        """Drop dead runs once they are an eighth of the cohort; say whether tensors changed their place."""
        k, live = len(self.specs), self.live
        if live > k - max(1, k // 8):
            return False
        keep = np.flatnonzero(self.history.live)
        index = torch.as_tensor(keep, device=self.device)
        take = lambda tensors: [tensor.index_select(0, index) for tensor in tensors]  # noqa: E731
        self.theta, self.grad = take(self.theta), take(self.grad)
        self.state = [take(kind) for kind in self.state]
        for name in ("alpha", "beta", "exponent", "angle", "decay", "hypergrad", "loss"):
            setattr(self, name, getattr(self, name).index_select(0, index))
        self.memory = dict(zip(self.memory, take(self.memory.values()), strict=True))
        self.specs = [self.specs[i] for i in keep]
        self.ends = [self.ends[i] for i in keep]
        self.history.keep(keep)
        self._allocate(self.theta[0].dtype)
        return True


# -- what a step is made of


def cross_entropy(logits: Tensor, onehot: Tensor, weight: Tensor, loss: Tensor) -> None:
    """Turn logits [K, classes, batch] into d loss / d logits in place, and fill `loss` [K].

    Args:
        onehot: the labels, [classes, batch].
        weight: what each example counts for, [batch].
    """
    shifted = logits - logits.amax(1, keepdim=True)
    exponential = shifted.exp()
    total = exponential.sum(1, keepdim=True)
    loss.copy_(((total.squeeze(1).log() - (shifted * onehot).sum(1)) * weight).sum(1))
    logits.copy_((exponential / total - onehot) * weight)


def update(
    theta: list[Tensor],
    grad: list[Tensor],
    state: list[list[Tensor]],
    alpha: Tensor,
    beta: Tensor,
    decay: Tensor,
    hypergrad: Tensor,
    memory: dict[str, Tensor],
    t: Tensor,
    floor: Tensor,
    scale: Tensor,
    *,
    name: str,
    momentum: float,
    weight_decay: float,
    control: Control,
    adapts: bool,
    first: bool = False,
) -> None:
    """Take one step of k runs of a family: hypergradient, alpha, then the parameters.

    Args:
        theta: per layer [k, out, in]; changed in place, like `state`, `alpha` and `hypergrad`.
        grad: of the loss, like theta.
        state: the moments or the velocity, and last the direction -D_{t-1}; each per layer like theta.
        alpha: [k], like beta, the factor that alpha decays with, and h_t.
        memory: what `control` remembers, and the slope g_{t-1} . D_{t-1}, each [k]; changed in place.
        t: iteration, from 1.
        floor, scale: Adam's corrections of this step, 0-dim: powers of t must not be taken element by element.
        adapts: whether any of the runs has a beta.
        first: whether this is the first step of a rule that limits it, with `adapts`.
    """
    g = [gradient + weight_decay * weights for gradient, weights in zip(grad, theta, strict=True)]
    previous = state[-1]
    if adapts:
        h = -per_run(g, previous)
        needs = {"slope": memory["slope"]}
        if control.needs_norms:
            needs |= {"grad_sq": per_run(g, g), "direction_sq": per_run(previous, previous)}
        still = (beta == 0) | (t == 1)  # D_0 = 0: the first step never changes alpha
        moved, kept = next_alpha(alpha, h, beta, control, memory, **needs)
        alpha.copy_(torch.where(still, alpha, moved))
        hypergrad.copy_(torch.where(beta == 0, 0.0, h))
        for key, value in kept.items():
            memory[key].copy_(torch.where(still, memory[key], value))
    used = None if first else _moves_by(alpha, decay, control, memory)
    for i, weights in enumerate(theta):
        if name == "adam":
            m, v = state[0][i], state[1][i]
            rules.adam_moments_(m, v, g[i], *ADAM[:2])
            direction = rules.adam_corrected_direction(m, v, floor, scale)
        elif name == "sgdn":
            rules.sgd_velocity_(state[0][i], g[i], momentum)
            direction = rules.sgd_direction(g[i], state[0][i], momentum, nesterov=True)
        else:
            direction = g[i]
        if adapts:
            previous[i].copy_(direction)
        if used is not None:
            rules.descend_(weights, direction, used)
    if used is None:
        limited = first_alpha(alpha, control, per_run(theta, theta), per_run(previous, previous))
        alpha.copy_(torch.where(beta == 0, alpha, limited))
        used = _moves_by(alpha, decay, control, memory)
        for weights, direction in zip(theta, previous, strict=True):
            rules.descend_(weights, direction, used)
    if adapts and control.needs_slope:
        memory["slope"].copy_(-per_run(g, previous))


def _moves_by(alpha: Tensor, decay: Tensor, control: Control, memory: dict[str, Tensor]) -> Tensor:
    """Return what the directions are multiplied with in this step, [k, 1, 1], and remember what belongs to it."""
    gamma, kept = step_size(alpha, control, memory)
    for key in initial_state(control):
        memory[key].copy_(kept[key])
    if control.rule == "auto":
        memory["step_size"].mul_(decay)
    return (gamma * decay).view(-1, 1, 1)


def per_run(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """Return each run's inner product over all layers, [k], float64."""
    return sum((x * y).sum((1, 2)).double() for x, y in zip(a, b, strict=True))


class Functions:
    """`cross_entropy` and `update`, as they are or compiled."""

    def __init__(self, compiled: bool = False) -> None:
        self.compiled = compiled
        self.cross_entropy, self.update = _compiled() if compiled else (cross_entropy, update)


def can_compile(device: str) -> bool:
    """Say whether torch.compile finds what it needs on this machine: a C++ compiler, or Triton on a GPU."""
    if device.startswith("cuda"):
        from torch.utils._triton import has_triton

        return bool(has_triton())
    from torch._inductor import cpp_builder, exc

    try:
        return bool(cpp_builder.get_cpp_compiler())
    except exc.InvalidCxxCompiler:
        return False


@functools.lru_cache(maxsize=1)
def _compiled() -> tuple[Callable, Callable]:
    """Compile once a process; sizes along the leading axis may change without compiling again."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # a machine without a GPU is no news
    torch._dynamo.config.recompile_limit = 256  # families, layers and dtypes each have their own version
    torch._dynamo.config.accumulated_recompile_limit = 1024
    return torch.compile(cross_entropy, fullgraph=True), torch.compile(update, fullgraph=True)


def outer_dynamic(tensor: Tensor) -> Tensor:
    """Tell the compiler that the leading axis changes from stack to stack; a single run is a case of its own."""
    if len(tensor) > 1:
        torch._dynamo.mark_dynamic(tensor, 0)
    return tensor


def with_ones(x: Tensor) -> Tensor:
    """Return inputs [n, features] with the column that the bias is multiplied with, padded with zeros."""
    wide = x.new_zeros(len(x), padded(x.shape[1] + 1))
    wide[:, : x.shape[1]] = x
    wide[:, x.shape[1]] = 1
    return wide


def columns_with_ones(columns: Tensor, units: int) -> Tensor:
    """Prepare hidden activations [K, padded units + 1, batch]: a row of ones behind the units, then zeros."""
    columns[:, units] = 1
    columns[:, units + 1 :] = 0
    return columns
