"""Train runs one by one: the definition that faster ways of training are compared with.

Nothing in an epoch waits for an accelerator: the history stays on it and is fetched at the epoch's end, and on a CUDA
device a step is captured as a graph and replayed, which costs one launch instead of hundreds. Several runs may take
their steps in turn there, each on a stream of its own, so that they fill what one alone leaves idle.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hdlib.optim import SGDHD, AdamHD
from hdlib.runs.checkpoint import Checkpoints
from hdlib.runs.history import CHUNK, History
from hdlib.runs.record import Record, device_name, provenance
from hdlib.runs.spec import BASELINE, RunSpec, SpecError
from hdlib.tasks import Data, build_model, load_data
from hdlib.tasks.images import draw_moves, epoch_seed, move, normalise

WARM_UP = 3  # eager steps before a capture: the optimiser's state and the libraries' choices must be there
EVALUATE = 1000  # images at a time


def train(
    spec: RunSpec,
    device: str = "cpu",
    tick: Callable[[int], None] | None = None,
    checkpoints: Checkpoints | None = None,
) -> Record:
    """Train a run to its end, its target loss or its divergence, and return its record.

    Args:
        spec: the run.
        device: a torch device.
        tick: called with the number of iterations done since the last call.
        checkpoints: where the run's state is kept from time to time, and where it goes on from if it is there. The
            finished run's is left for the caller to discard once the record is safe.

    Raises:
        DataNotFoundError: the task's data is not at hand, or has fewer images than asked for.
        SpecError: the precision is not the device's.
    """
    [record] = train_each([spec], device, tick, checkpoints)
    return record


def train_each(
    specs: Sequence[RunSpec],
    device: str = "cpu",
    tick: Callable[[int], None] | None = None,
    checkpoints: Checkpoints | None = None,
    compiled: bool = False,
) -> Iterator[Record]:
    """Train runs, on a CUDA device side by side and elsewhere one after the other; yield each record as a run ends.

    A run gives the same, bit for bit where the device is deterministic, with others beside it and alone.

    Args:
        specs: runs of one precision.
        device: a torch device.
        tick: called with the number of iterations done since the last call.
        checkpoints: see `train`.
        compiled: compile the network, on a CUDA device, which takes half a minute.

    Raises:
        DataNotFoundError: a task's data is not at hand, or has fewer images than asked for.
        SpecError: the precision is not the device's, or the runs' precisions differ.
    """
    if len({spec.precision for spec in specs}) > 1:
        raise SpecError(f"precision is {specs[0].precision!r} and {specs[-1].precision!r}: give runs of one precision.")
    for spec in specs:
        require_precision(spec, device)
    data = [data_of(spec, device, spec.dtype) for spec in specs]
    gpu = device.startswith("cuda")
    with settings(specs[0], device):
        lanes = [Lane() if gpu and len(specs) > 1 else nullcontext() for _ in specs]
        going = [
            (lane, _training(*each, device, tick, checkpoints, compiled and gpu, lanes if gpu else [lane]))
            for lane, *each in zip(lanes, specs, data, strict=True)
        ]
        while going:
            for lane, run in list(going) if gpu else going[:1]:
                try:
                    with lane:
                        next(run)
                except StopIteration as ended:
                    going.remove((lane, run))
                    lanes.remove(lane)
                    yield ended.value


def _training(
    spec: RunSpec,
    data: Data,
    device: str,
    tick: Callable[[int], None] | None,
    checkpoints: Checkpoints | None,
    compiled: bool,
    lanes: Sequence[object],
) -> Generator[None, None, Record]:
    """Train a run, step by step; return its record. `lanes` are those of all runs that share the device now."""
    counted, most, seconds = time.perf_counter(), len(lanes), 0.0
    training = Training(spec, data, device, spec.dtype, compiled)
    visits = [{"from_epoch": 0, "device": device_name(device), "date": _now()}]
    saved = checkpoints.load(spec, device) if checkpoints else None
    if saved:
        training.restore(saved)
        seconds = saved["seconds"]
        visits = [*saved["visits"], visits[0] | {"from_epoch": training.epoch}]
        if tick:
            tick(training.history.iteration)
    else:
        training.start()
    last_saved = counted
    while not training.history.finish():
        begun = time.perf_counter()
        yield from training.steps(tick)
        now = time.perf_counter()
        seconds += (now - counted) / len(lanes)
        counted = now
        if training.whole:
            training.epoch_seconds.append((now - begun) / len(lanes))
        if checkpoints and training.goes_on and checkpoints.due(training.epoch, now - last_saved):
            checkpoints.save(spec, training.state() | {"seconds": seconds, "visits": visits})
            last_saved = time.perf_counter()
    made = provenance(device, torch.get_num_threads(), seconds, data.source)
    if training.epoch_seconds:
        made["epoch_seconds"] = round(float(np.median(training.epoch_seconds)), 4)
    if device.startswith("cuda"):
        made |= {"captured": training.take != training.step, "compiled": compiled, "together": most}
    if len(visits) > 1:
        made["visits"] = visits
    return training.history.record(0, made)


class Lane(AbstractContextManager):
    """A CUDA stream and a state of the random generator of a run's own, current inside the context."""

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()
        self.generator = torch.cuda.default_generators[torch.cuda.current_device()]
        self.state = self.generator.clone_state()

    def __enter__(self) -> None:
        self._outer = self.generator.graphsafe_get_state()
        self.generator.graphsafe_set_state(self.state)
        self._on_stream = torch.cuda.stream(self.stream)
        self._on_stream.__enter__()

    def __exit__(self, *error: object) -> None:
        self._on_stream.__exit__(*error)
        self.generator.graphsafe_set_state(self._outer)


def data_of(spec: RunSpec, device: str, dtype: torch.dtype) -> Data:
    """Return what a run is trained on.

    Raises:
        DataNotFoundError: it is not at hand, or has fewer images than asked for.
    """
    data = load_data(spec.task, device, dtype).scaled(spec.input_scale)
    return data if spec.train_images is None else data.part(spec.train_images)


def model_of(spec: RunSpec, features: int, classes: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return a run's model with its initial weights, on the CPU."""
    fields = {name: getattr(spec, name) for name in ("width", "depth", "variant", "width_factor", "norm_start")}
    return build_model(spec.model, features, classes, spec.seed, dtype=dtype, **fields)


def require_precision(spec: RunSpec, device: str) -> None:
    """Raise SpecError if a device does not have a run's precision."""
    if spec.precision == "tf32" and not device.startswith("cuda"):
        raise SpecError(f"precision is 'tf32' but the device is {device!r}: use float32 or bf16 there.")


class Training:
    """A run in progress: model, optimiser, history, and how a step is taken."""

    def __init__(self, spec: RunSpec, data: Data, device: str, dtype: torch.dtype, compiled: bool = False) -> None:
        self.spec, self.data, self.device, self.dtype = spec, data, device, dtype
        self.model = model_of(spec, data.features, data.classes, dtype).to(device)
        # compiled with eager's random numbers: a dropout is the same either way
        options = {"fallback_random": True}
        self.network = torch.compile(self.model, dynamic=False, options=options) if compiled else self.model
        self.optimizer = make_optimizer(spec, self.model)
        self.group = self.optimizer.param_groups[0]
        self.history = History([spec], len(data.train_y))
        self.pending: list[Tensor | tuple[float, float, float]] = []
        self.moves = torch.zeros(len(data.train_y), 3, dtype=torch.int64, device=device) if data.images else None
        self.on_host = device == "cpu"
        self.take: Callable[[Tensor], Any] = self.step
        self.validate: Callable[[], Tensor] | None = None  # a captured evaluation of the test data
        self.warm_up = 0 if self.on_host else WARM_UP
        self.epoch = 0
        self.epoch_seconds: list[float] = []

    @property
    def whole(self) -> bool:
        """Whether an epoch has just ended."""
        return self.history.iteration == self.epoch * self.spec.steps_per_epoch(len(self.data.train_y))

    @property
    def goes_on(self) -> bool:
        """Whether an epoch has just ended and another one follows."""
        more = self.history.iteration < self.spec.iterations(len(self.data.train_y))
        return bool(self.history.live[0]) and self.whole and more

    def start(self) -> None:
        """Note the state before training."""
        validation = self.evaluate(self.data.valid_x, self.data.valid_y, self.history.wants_validation(0))
        self.history.start(*self._fetch(validation))

    def run_epoch(self, tick: Callable[[int], None] | None = None) -> None:
        """Train for an epoch, or what of it the run may take, and validate."""
        for _ in self.steps(tick):
            pass

    def steps(self, tick: Callable[[int], None] | None = None) -> Iterator[None]:
        """Run an epoch; hand back after every step, which an accelerator may not have finished yet."""
        self.epoch += 1
        size = len(self.data.train_y)
        batches = self.begin_epoch(self.epoch)
        looks = self.on_host or self.spec.target_loss is not None
        first, left = self.history.iteration, self.spec.iterations(size) - self.history.iteration
        for i, batch in enumerate(batches[:left], start=1):
            if self.spec.decay != "none":
                self._decay(first + i, size)
            self.pending.append(self._next(batch))
            if looks and (i % CHUNK == 0 or i == len(batches)):
                self._note(tick)
                if not self.history.live[0]:
                    return
            yield
        if left < len(batches):
            self._note(tick)
            return
        # asked for before the history is fetched, so that the device is waited for once
        validation = self._validated()
        training = self.evaluate(self.data.train_x, self.data.train_y, self.history.wants_training_loss())
        self._note(tick)
        self.history.end_epoch(self.epoch, *self._fetch(validation), self._fetch(training)[0])

    def begin_epoch(self, epoch: int) -> tuple[Tensor, ...]:
        """Seed the epoch's dropout, draw its flips and crops, and return the indices of its minibatches."""
        size = len(self.data.train_y)
        torch.manual_seed(epoch_seed(self.spec.seed, epoch))
        if self.moves is not None:
            self.moves.copy_(draw_moves(self.spec.seed, epoch, size))
        return minibatches(self.spec, epoch, size, self.device)

    def step(self, batch: Tensor) -> Tensor | tuple[float, float, float]:
        """Take one step; return the loss before it, alpha and h: numbers on the CPU, a tensor on an accelerator."""
        loss = self.loss(batch)
        self.optimizer.zero_grad()
        loss.backward()
        estimate = self.group.get("d")  # Prodigy's, which its step takes and then replaces
        self.optimizer.step()
        alpha = self.group["lr"] if estimate is None else self.group["lr"] * estimate
        row = loss.detach(), alpha, self.group.get("hypergrad", 0.0)
        if self.on_host:
            return tuple(map(float, row))
        return torch.stack([_scalar(value, self.device) for value in row])

    @torch.no_grad()
    def evaluate(self, x: Tensor, y: Tensor, wanted: bool) -> Tensor | None:
        """Return mean cross-entropy and accuracy, [2] in float64, without waiting for them; None if not wanted."""
        if not wanted:
            return None
        if not self.data.images:
            logits = self.model(x)
            return torch.stack([F.cross_entropy(logits, y).double(), (logits.argmax(1) == y).double().mean()])
        self.model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        for images, labels in zip(x.split(EVALUATE), y.split(EVALUATE), strict=True):
            with self._autocast():
                logits = self.model(normalise(images, self.dtype))
                loss = F.cross_entropy(logits, labels, reduction="sum")
            sums += torch.stack([loss.double(), (logits.argmax(1) == labels).sum().double()])
        self.model.train()
        return sums / len(y)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, after an epoch."""
        return {
            "epoch": self.epoch,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": self.history.state(),
            "epoch_seconds": self.epoch_seconds,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a state."""
        self.epoch = state["epoch"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.group = self.optimizer.param_groups[0]
        self.history.restore(state["history"])
        self.epoch_seconds = state["epoch_seconds"]

    def loss(self, batch: Tensor) -> Tensor:
        """Return the mean cross-entropy of a minibatch, given as indices into the training data."""
        # a compiled network is for minibatches of one size
        network = self.network if len(batch) == self.spec.batch_size else self.model
        with self._autocast():
            return F.cross_entropy(network(self.inputs(batch)), self.data.train_y[batch])

    def inputs(self, batch: Tensor) -> Tensor:
        """Return what the model sees of a minibatch: images mirrored, cropped and normalised, other data as it is."""
        x = self.data.train_x[batch]
        return x if self.moves is None else normalise(move(x, self.moves[batch]), self.dtype)

    def _autocast(self) -> AbstractContextManager:
        if self.spec.precision != "bf16":
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, torch.bfloat16)

    def _validated(self) -> Tensor | None:
        """Evaluate the test data, where that is wanted after this epoch; captured images, by one launch."""
        if not self.history.wants_validation(self.epoch):
            return None
        evaluate = partial(self.evaluate, self.data.valid_x, self.data.valid_y, True)
        if self.validate is None:
            result = evaluate()  # before the capture, so that the libraries' choices are there
            if self.data.images and self.take != self.step:
                self.validate = replayed(evaluate) or evaluate
            return result
        return self.validate()

    def _next(self, batch: Tensor) -> Tensor | tuple[float, float, float]:
        """Take a step, eagerly or by replaying the captured one; on a CUDA device, capture it after the warm-up."""
        if self.warm_up and len(batch) == self.spec.batch_size:
            self.warm_up -= 1
            if not self.warm_up and self.device.startswith("cuda"):
                row = self.step(batch)
                self.take = captured(self.step, batch, self.optimizer) or self.step
                return row
        return self.take(batch) if len(batch) == self.spec.batch_size else self.step(batch)

    def _note(self, tick: Callable[[int], None] | None) -> None:
        """Fetch the iterations that are pending."""
        if not self.pending:
            return
        before = self.history.taken(0)
        rows = self.pending if self.on_host else torch.stack(self.pending).tolist()
        self.history.add(np.array(rows)[:, :, None])
        self.pending = []
        if tick:
            tick(self.history.taken(0) - before)

    @staticmethod
    def _fetch(evaluated: Tensor | None) -> np.ndarray:
        """Return an evaluation as [2, 1], NaN where there was none."""
        return np.full((2, 1), np.nan) if evaluated is None else evaluated.cpu().numpy()[:, None]

    def _decay(self, t: int, size: int) -> None:
        """Let alpha follow the schedule in iteration t; one that adapts is multiplied by what that changes."""
        alpha, now = self.group["lr"], self.spec.schedule(t, size)
        if self.spec.method == "prodigy":
            new = now
        elif self.spec.method not in BASELINE:
            new = self.spec.alpha0 * now
        else:
            new = alpha * (now / self.spec.schedule(t - 1, size) if t > 1 else 1.0)
        if isinstance(alpha, Tensor):
            alpha.fill_(new)
        else:
            self.group["lr"] = new


def captured(
    step: Callable[[Tensor], Tensor], batch: Tensor, optimizer: torch.optim.Optimizer
) -> Callable[[Tensor], Tensor] | None:
    """Return a step that replays a CUDA graph of `step`, or None where it cannot be captured; what failed is warned of.

    The capture itself runs nothing. Steps must have been taken before it, on the current stream.
    """
    if any(group.get("skip_nonfinite") == "step" or "d" in group for group in optimizer.param_groups):
        return None  # whether a step is taken, or how long Prodigy's is, is decided on the host
    states = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    if any(not value.is_cuda for value in states):  # would be captured as the numbers that they are now
        warnings.warn("A step that counts on the host cannot be captured, so each is launched by itself.", stacklevel=2)
        return None
    held = batch.clone()
    replay = replayed(lambda: step(held))
    if replay is None:
        return None

    def take(batch: Tensor) -> Tensor:
        held.copy_(batch)
        return replay()

    return take


def replayed(function: Callable[[], Tensor]) -> Callable[[], Tensor] | None:
    """Return a function that replays a CUDA graph of `function`, or None where it cannot be captured."""
    results: list[Tensor] = []
    graph = capture(lambda: results.append(function()))
    if graph is None:
        return None

    def replay() -> Tensor:
        graph.replay()
        return results[0].clone()

    return replay


def capture(step: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
    """Record a step as a CUDA graph, on the current stream, without executing it; warn and return None if that fails.

    The stream must not be the device's default one, which cannot be captured: see `settings`.
    """
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            step()
    except Exception as error:
        warnings.warn(f"A step could not be captured, so each is launched by itself: {error}", stacklevel=3)
        return None
    return graph


def make_optimizer(spec: RunSpec, model: nn.Module) -> torch.optim.Optimizer:
    """Return the spec's optimiser; a baseline is its hypergradient method with beta 0, bit for bit.

    Prodigy is its authors' own, as they set it, but for a weight decay that is added to the gradient as the others'.
    """
    if spec.method == "prodigy":
        from prodigyopt import Prodigy

        return Prodigy(model.parameters(), d0=spec.alpha0, weight_decay=spec.weight_decay, decouple=False)
    common = dict(lr=spec.alpha0, weight_decay=spec.weight_decay, hypergrad_lr=spec.beta, **asdict(spec.control()))
    common["capturable"] = common["fused"] = next(model.parameters()).is_cuda
    if spec.method.startswith("adam"):
        return AdamHD(model.parameters(), **common)
    if spec.method.startswith("sgdn"):
        return SGDHD(model.parameters(), momentum=spec.momentum, nesterov=True, **common)
    return SGDHD(model.parameters(), **common)


def permutation(seed: int, epoch: int, size: int) -> Tensor:
    """Return the order in which an epoch goes through the training data, on the CPU."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(epoch_seed(seed, epoch)))


def minibatches(spec: RunSpec, epoch: int, size: int, device: str) -> tuple[Tensor, ...]:
    """Return the indices of an epoch's minibatches, a fresh shuffle that depends on the seed and the epoch."""
    return permutation(spec.seed, epoch, size).to(device).split(spec.batch_size)


@contextmanager
def settings(spec: RunSpec, device: str) -> Iterator[None]:
    """Set what a run's arithmetic depends on, and put it back: generators, TF32, cuDNN's choice, the stream."""
    if not device.startswith("cuda"):
        with torch.random.fork_rng(devices=[]):
            yield
        return
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    torch.cuda.synchronize(device)  # the data is there before another stream reads it
    with torch.cuda.device(device), torch.random.fork_rng(devices=[torch.cuda.current_device()]):
        try:
            matmul.allow_tf32 = cudnn.allow_tf32 = spec.precision == "tf32"
            cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
            with torch.cuda.stream(torch.cuda.Stream()):  # one that can be captured
                yield
        finally:
            torch.cuda.synchronize()
            matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


def _scalar(value: float | Tensor, device: str) -> Tensor:
    """Return a number as a 0-dim float64 tensor, without a copy from the host."""
    if isinstance(value, Tensor):
        return value.double()
    return torch.full((), value, dtype=torch.float64, device=device)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
