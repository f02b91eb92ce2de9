"""VGG's training speed as a share of what the device's matrix unit reaches, and where the rest of a step goes.

The ceiling is a large matrix product on random data, in each precision. Steps are those of the trainer, on random
images: batch from the bytes on the device, crop and flip, forward, backward, update; each launched by itself, or
captured as a CUDA graph, or compiled and captured; and of several runs side by side. The cost of hypergradients is the
time of each method's step over its baseline's, on one network and timed in turn. Results go to
results/benchmarks/vgg.json.

    python benchmarks/vgg.py [--device auto] [--width-factor 1] [--quick] [--compile] [--output FILE]
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from hdlib.report.paper import tuned_beta
from hdlib.runs import BASELINE, METHODS, RunSpec
from hdlib.runs.files import write_json
from hdlib.runs.record import provenance
from hdlib.runs.sweep import BESIDE, resolve_device
from hdlib.runs.train import Lane, Training, captured, make_optimizer, settings
from hdlib.tasks import Data

OUTPUT = Path(__file__).parent.parent / "results" / "benchmarks" / "vgg.json"
IMAGES, BATCH = 4096, 128
KERNELS = {  # what of a kernel's name says what it is for
    "convolution": ("xmma", "cudnn", "implicit_gemm", "implicit_convolve", "cask", "ReduceSplitK", "nhwcAddPadding"),
    "batch normalisation": ("batch_norm", "unrolled_elementwise_kernel_for_multi_outputs"),
    "pooling": ("max_pool",),
    "conversion between precisions": ("direct_copy_kernel", "bfloat16_copy"),
    "ReLU": ("clamp_scalar", "BinaryFunctor<c10::BFloat16"),
    "optimiser": ("sgd_kernel", "adam_kernel", "multi_tensor_apply", "CatArray", "ReduceOp<double"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--width-factor", type=float, default=1.0)
    parser.add_argument("--quick", action="store_true", help="few repeats and small sizes, to try it")
    parser.add_argument("--compile", action="store_true", help="time a compiled network too")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    device = resolve_device(options.device)
    clock = Clock(device, seconds=0.02 if options.quick else 0.2, repeats=3 if options.quick else 5)
    gpu = device != "cpu"
    precisions = ["float32", "tf32", "bf16"] if gpu else ["float32"]
    data = random_data(device, 4 * BATCH if options.quick else IMAGES)
    spec = spec_of("sgdn_hd", "float32", options.width_factor)
    result = {
        "width_factor": options.width_factor,
        "gigaflop_per_image": gigaflop_per_image(Training(spec, data, device, torch.float32)),
        "matrix_teraflops": {},
        "steps": [],
        "made": provenance(device, torch.get_num_threads(), 0.0, "random images"),
    }

    def keep(line: str) -> None:
        """What is measured is written at once: the time may be up before the rest."""
        print(line, flush=True)
        write_json(options.output, result)

    size = 8192 if gpu else 512 if options.quick else 2048
    for precision in precisions:
        rate = result["matrix_teraflops"][precision] = matrix_teraflops(precision, size, device, clock)
        keep(f"matrix product, {precision}: {rate:.3g} TFLOP/s")

    def keep_step(precision: str, how: str, seconds: float) -> None:
        teraflops = result["gigaflop_per_image"] * BATCH / seconds / 1000
        step = {
            "precision": precision,
            "how": how,
            "milliseconds": 1e3 * seconds,
            "images_per_second": BATCH / seconds,
            "share": teraflops / result["matrix_teraflops"][precision],
        }
        result["steps"].append(step)
        keep(f"{precision}, {how}: {BATCH / seconds:,.0f} images/s, {100 * step['share']:.1f} % of the product")

    for precision, how in itertools.product(reversed(precisions), ("launched", "captured")[: 1 + gpu]):
        seconds = step_seconds(spec.with_(precision=precision), data, device, clock, how)
        if seconds is None:
            keep(f"{precision}, {how}: not possible here")
        else:
            keep_step(precision, how, seconds)
    precision = result["parts_precision"] = precisions[-1]
    parts = part_seconds(spec.with_(precision=precision), data, device, clock)
    result["parts"] = {name: 1e3 * seconds for name, seconds in parts.items()}
    keep(f"{precision}, ms: " + ", ".join(f"{name} {value:.3f}" for name, value in result["parts"].items()))
    if gpu:
        result["kernels"] = kernel_milliseconds(spec.with_(precision=precision), data, device)
        keep(f"{precision}, ms: " + ", ".join(f"{name} {value:.3f}" for name, value in result["kernels"].items()))
    result["methods"], result["overhead"], result["together"] = {}, {}, []
    ways = ("captured", "compiled")[: 1 + options.compile] if gpu else ("launched",)
    for how in ways:
        with settings(spec.with_(precision=precision), device):
            lanes = prepared_lanes(spec.with_(precision=precision), data, device, how)
            rates = together_rates(lanes, clock) if gpu else {}
            methods = method_seconds(lanes[0], how, precision, options.width_factor, clock)
        result["methods"][how] = {name: 1e3 * seconds for name, seconds in methods.items()}
        result["overhead"][how] = {method: methods[method] / methods[base] - 1 for method, base in BASELINE.items()}
        for name in ("methods", "overhead"):
            told = ", ".join(f"{method} {value:.4f}" for method, value in result[name][how].items())
            keep(f"{precision}, {how}, {name}: {told}")
        for runs, rate in rates.items():
            result["together"].append({"precision": precision, "how": how, "runs": runs, "images_per_second": rate})
            keep(f"{precision}, {how}, {runs} side by side: {rate:,.0f} images/s")
        if how == "compiled":
            keep_step(precision, how, BATCH / rates[1])


class Clock:
    """Times a function by repeating it: the median of several times `seconds`' worth, the device waited for."""

    def __init__(self, device: str, seconds: float, repeats: int) -> None:
        self.device, self.seconds, self.repeats = device, seconds, repeats

    def wait(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize()

    def once(self, function: Callable[[], object], count: int) -> float:
        self.wait()
        started = time.perf_counter()
        for _ in range(count):
            function()
        self.wait()
        return (time.perf_counter() - started) / count

    def count(self, function: Callable[[], object]) -> int:
        """Warm up; return how often the function fits into `seconds`."""
        self.once(function, 2)
        return max(1, int(self.seconds / self.once(function, 2)))

    def __call__(self, function: Callable[[], object]) -> float:
        count = self.count(function)
        return statistics.median(self.once(function, count) for _ in range(self.repeats))


def random_data(device: str, images: int) -> Data:
    """Return random images as bytes."""
    x = torch.randint(256, (images, 32, 32, 3), dtype=torch.uint8).to(device)
    y = torch.randint(10, (images,)).to(device)
    return Data(x, y, x[:BATCH], y[:BATCH], classes=10, source="random images")


def spec_of(method: str, precision: str, width_factor: float) -> RunSpec:
    beta = tuned_beta(method, "vgg")
    model = dict(task="cifar10", model="vgg", width_factor=width_factor, precision=precision)
    return RunSpec(**model, method=method, alpha0=1e-3, beta=beta, epochs=1, batch_size=BATCH)


def matrix_teraflops(precision: str, size: int, device: str, clock: Clock) -> float:
    """Return the rate of a product of two square matrices of random numbers."""
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    if precision == "bf16":
        a, b = a.bfloat16(), b.bfloat16()
    with settings(spec_of("sgd", precision, 1.0), device):
        return 2 * size**3 / clock(lambda: a @ b) / 1e12


def gigaflop_per_image(training: Training) -> float:
    """Count the floating-point operations of forward and backward, 2 for a multiplication with its addition."""
    batch = torch.arange(8, device=training.device)
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(training.model(training.inputs(batch)), training.data.train_y[batch]).backward()
    return counter.get_total_flops() / 8 / 1e9


def prepared(spec: RunSpec, data: Data, device: str, how: str) -> tuple[Training, Callable[[], object]] | None:
    """Return a run and a function that takes a step of it, or None where it cannot be made so."""
    training = Training(spec, data, device, torch.float32, compiled=how == "compiled")
    step = stepper(training, how)
    return None if step is None else (training, step)


def stepper(training: Training, how: str) -> Callable[[], object] | None:
    """Return a function that takes a step of a run, after a few, or None where it cannot be made so."""
    batch = torch.arange(BATCH, device=training.device)
    for _ in range(4):
        training.step(batch)
    step = training.step if how == "launched" else captured(training.step, batch, training.optimizer)
    return None if step is None else lambda: step(batch)


def step_seconds(spec: RunSpec, data: Data, device: str, clock: Clock, how: str) -> float | None:
    with settings(spec, device):
        made = prepared(spec, data, device, how)
        return None if made is None else clock(made[1])


def part_seconds(spec: RunSpec, data: Data, device: str, clock: Clock) -> dict[str, float]:
    """Return the time of a step's parts, each captured by itself on a GPU: images, network, update."""
    with settings(spec, device):
        training, _ = prepared(spec, data, device, "launched")
        batch = torch.arange(BATCH, device=device)

        def network() -> torch.Tensor:
            training.optimizer.zero_grad()
            loss = training.loss(batch)
            loss.backward()
            return loss.detach()

        def update() -> torch.Tensor:
            training.optimizer.step()
            return training.group["lr"]

        def images() -> torch.Tensor:
            return training.inputs(batch)

        parts = {}
        for name, function in (("images", images), ("images, forward, backward", network), ("update", update)):
            function()
            chosen = function
            if device != "cpu":
                replay = captured(lambda _, function=function: function(), batch, training.optimizer)
                chosen = function if replay is None else lambda replay=replay: replay(batch)
            parts[name] = clock(chosen)
        return parts


def kernel_milliseconds(spec: RunSpec, data: Data, device: str, steps: int = 5) -> dict[str, float]:
    """Return the time of a launched step's kernels on a GPU, by what they are for."""
    from torch.profiler import ProfilerActivity, profile

    with settings(spec, device):
        _, step = prepared(spec, data, device, "launched")
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as profiled:
            for _ in range(steps):
                step()
            torch.cuda.synchronize()
    found = dict.fromkeys((*KERNELS, "other"), 0.0)
    for event in profiled.key_averages():
        purpose = next((name for name, parts in KERNELS.items() if any(part in event.key for part in parts)), "other")
        found[purpose] += event.self_device_time_total / steps / 1e3
    return found


def prepared_lanes(
    spec: RunSpec, data: Data, device: str, how: str
) -> list[tuple[AbstractContextManager, Training, Callable[[], object]]]:
    """Return as many runs as a sweep puts side by side on a GPU, each with its lane and what takes a step of it."""
    lanes: list[AbstractContextManager] = [Lane() for _ in range(BESIDE)] if device != "cpu" else [nullcontext()]
    made = []
    for lane in lanes:
        with lane:
            run = prepared(spec, data, device, how) or prepared(spec, data, device, "launched")
        made.append((lane, *run))
    return made


def together_rates(lanes: Sequence[tuple], clock: Clock) -> dict[int, float]:
    """Return how many images a second runs train on, by how many are side by side."""

    def round_of(count: int) -> Callable[[], None]:
        def steps() -> None:
            for lane, _, step in lanes[:count]:
                with lane:
                    step()

        return steps

    return {count: count * BATCH / clock(round_of(count)) for count in range(1, len(lanes) + 1)}


def method_seconds(run: tuple, how: str, precision: str, width_factor: float, clock: Clock) -> dict[str, float]:
    """Return the time of each method's step of one network, all timed in turn; the run's own step is then lost."""
    lane, training, _ = run

    def made(method: str) -> Callable[[], object]:
        optimizer = make_optimizer(spec_of(method, precision, width_factor), training.model)

        def use() -> None:
            training.optimizer, training.group = optimizer, optimizer.param_groups[0]

        use()
        step = stepper(training, how) or stepper(training, "launched")
        return lambda: (use(), step())

    with lane:
        functions = {method: made(method) for method in METHODS}
        counts = {method: clock.count(function) for method, function in functions.items()}
        times: dict[str, list[float]] = {method: [] for method in METHODS}
        for _ in range(clock.repeats):
            for method, function in functions.items():
                times[method].append(clock.once(function, counts[method]))
    return {method: statistics.median(values) for method, values in times.items()}


if __name__ == "__main__":
    main()
