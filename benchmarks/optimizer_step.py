"""What an optimiser's step costs, as a ratio to torch's fastest step of the same base optimiser.

CPU, two threads, float32; the parameters of the 784-1000-1000-10 multilayer perceptron and of VGG-16 as in the
authors' code. Every way of taking a step is timed in every round, in a random order, so that a slow moment of the
machine meets all of them; a ratio is the median over rounds of the two times of one round. Beside each stands the
memory-traffic floor: the fewest bytes that the step must move, at the bandwidth of a copy measured in the same rounds.
Two more tables: what each guard of alpha adds to a step, and a whole training iteration, forward and backward passes
included, with hypergradients and without. Medians and ratios go to results/benchmarks/optimizer_step.json.

    python benchmarks/optimizer_step.py [--rounds 100] [--threads 2]
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from hdlib import SGDHD, AdamHD, AdamWHD
from hdlib.optim import _kernels
from hdlib.runs.experiments import GUARDS
from hdlib.runs.files import write_json
from hdlib.runs.record import provenance
from hdlib.tasks import build_model

OUTPUT = Path(__file__).parent.parent / "results" / "benchmarks" / "optimizer_step.json"

# bytes that must move per float32 parameter: every array that is needed is read once, every changed one written once,
# in each of the two passes that a hypergradient step has
FLOORS = {
    "SGD": 12,  # read g, p; write p
    "SGD, Nesterov": 20,  # and v both ways
    "Adam": 28,  # and m, v both ways
    "AdamW": 28,
    "SGDHD": 24,  # g, d read, d written; d, p read, p written
    "SGDHD, Nesterov": 32,
    "AdamHD": 36,  # g, m, v read, m, v written; m, v, p read, p written
    "AdamWHD": 40,  # and p read in the first pass
}


def ways() -> dict[str, tuple[str, bool, Callable]]:
    """Return every step to time: its name, the floor that applies, whether it is torch's own, and what makes it."""
    sgd, adam, adamw = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW
    nesterov = dict(momentum=0.9, nesterov=True)
    found = {}
    native = (("SGD", sgd, {}), ("SGD, Nesterov", sgd, nesterov), ("Adam", adam, {}), ("AdamW", adamw, {}))
    for base, cls, options in native:
        for name, how in (("default", {}), ("foreach", {"foreach": True}), ("fused", {"fused": True})):
            found[f"torch {base} {name}"] = (base, True, lambda p, c=cls, o={**options, **how}: c(p, lr=1e-4, **o))
    for base, cls, options in (
        ("SGD", SGDHD, {}),
        ("SGD, Nesterov", SGDHD, nesterov),
        ("Adam", AdamHD, {}),
        ("AdamW", AdamWHD, {}),
    ):
        name = base.replace("SGD", "SGDHD").replace("Adam", "AdamHD").replace("AdamHDW", "AdamWHD")
        hows = [("default", {}), ("fused", {"fused": True})]
        hows += [("default, beta 0", {"hypergrad_lr": 0.0}), ("fused, beta 0", {"hypergrad_lr": 0.0, "fused": True})]
        for way, how in hows:
            settings = {"lr": 1e-4, "hypergrad_lr": 1e-12, **options, **how}
            found[f"{name} {way}"] = (base if "beta 0" in way else name, False, lambda p, c=cls, o=settings: c(p, **o))
    return found


def parameters(model: str) -> list[Tensor]:
    """Return a model's parameters with gradients, in torch's usual order of dimensions, not channels last."""
    found = [p.detach().contiguous().requires_grad_() for p in build_model(model, 784, 10, seed=0).parameters()]
    for p in found:
        p.grad = 0.01 * torch.randn_like(p)
    return found


def seconds(action: Callable[[], object]) -> float:
    """Return the time of one call."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def measure(model: str, rounds: int) -> dict:
    """Time all ways in every round; return the medians, the ratios and the floors."""
    sizes = [p.numel() for p in parameters(model)]
    size = sum(sizes)
    source, target = torch.randn(2, size)
    actions: dict[str, Callable[[], object]] = {"copy": lambda: target.copy_(source)}
    made = ways()
    for name, (_, _, make) in made.items():
        actions[name] = make(parameters(model)).step
    times = in_turn(actions, rounds)
    bandwidth = 8 * size / statistics.median(times["copy"])
    fastest = {}
    for base in ("SGD", "SGD, Nesterov", "Adam", "AdamW"):
        candidates = [name for name, (b, native, _) in made.items() if b == base and native]
        fastest[base] = min(candidates, key=lambda name: statistics.median(times[name]))
    rows = {}
    for name, (kind, _, _) in made.items():
        base = kind.replace("HD", "")
        default = f"torch {base} default"
        rows[name] = {
            "milliseconds": round(1e3 * statistics.median(times[name]), 4),
            "to_fastest": ratio(times[name], times[fastest[base]]),
            "to_default": ratio(times[name], times[default]),
            "floor_bytes": FLOORS[kind],
            "floor_milliseconds": round(1e3 * FLOORS[kind] * size / bandwidth, 4),
        }
    return {
        "parameters": size,
        "tensors": len(sizes),
        "copy_gigabytes_per_second": round(bandwidth / 1e9, 1),
        "fastest": fastest,
        "steps": rows,
    }


def in_turn(actions: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds that each action took in each round."""
    for action in actions.values():
        for _ in range(3):
            action()
    times: dict[str, list[float]] = {name: [] for name in actions}
    order = list(actions)
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            actions[name]()  # its data comes into the cache as far as it fits, as in a training loop
            times[name].append(seconds(actions[name]))
    return times


def guards(rounds: int) -> dict[str, dict[str, float]]:
    """Return, for each guard and method, a step's time over the plain rule's; the perceptron's parameters."""
    found: dict[str, dict[str, float]] = {name: {} for name in GUARDS}
    ways = {"SGD-HD": SGDHD, "Adam-HD": AdamHD}
    ways |= {f"{name}, fused": partial(make, fused=True) for name, make in ways.items()}
    for method, make in ways.items():
        actions = {}
        for name, guard in GUARDS.items():
            options = {key: value for key, value in guard.items() if key != "beta"}
            actions[name] = make(parameters("mlp"), lr=1e-4, hypergrad_lr=guard.get("beta", 1e-12), **options).step
        times = in_turn(actions, rounds)
        for name in GUARDS:
            found[name][method] = ratio(times[name], times["plain"])
    return found


def iterations(rounds: int) -> dict[str, list[float]]:
    """Return, for each model and method, a whole training iteration's time with hypergradients over without, by round.

    Minibatches of 128 random images of MNIST's size, of CIFAR-10's for VGG, which has a fifth of the rounds;
    optimisers as they come.
    """
    found = {}
    y = torch.randint(10, (128,))
    digits, images = torch.randn(128, 784), torch.randn(128, 3, 32, 32).to(memory_format=torch.channels_last)
    for model, x, count in (("logreg", digits, rounds), ("mlp", digits, rounds), ("vgg", images, -(-rounds // 5))):
        actions = {}
        for name, make in (
            ("SGD", partial(torch.optim.SGD, lr=1e-4)),
            ("SGD-HD", partial(SGDHD, lr=1e-4, hypergrad_lr=1e-12)),
            ("SGDN", partial(torch.optim.SGD, lr=1e-4, momentum=0.9, nesterov=True)),
            ("SGDN-HD", partial(SGDHD, lr=1e-4, momentum=0.9, nesterov=True, hypergrad_lr=1e-12)),
            ("Adam", partial(torch.optim.Adam, lr=1e-4)),
            ("Adam-HD", partial(AdamHD, lr=1e-4, hypergrad_lr=1e-12)),
        ):
            actions[name] = partial(iterate, net := build_model(model, 784, 10, 0), make(net.parameters()), x, y)
        times = in_turn(actions, count)
        for name in ("SGD", "SGDN", "Adam"):
            ratios = [a / b for a, b in zip(times[f"{name}-HD"], times[name], strict=True)]
            found[f"{name}-HD, {model}"] = [round(value, 3) for value in ratios]
    return found


def iterate(net: torch.nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    """Take one training step."""
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(net(x), y).backward()
    optimizer.step()


def ratio(ours: list[float], theirs: list[float]) -> float:
    """Return the median over rounds of one round's two times."""
    return round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dry", action="store_true", help="print only")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    random.seed(0)
    started = time.perf_counter()
    models = {}
    for model in ("mlp", "vgg"):
        models[model] = measure(model, arguments.rounds)
        print(f"{model}: {models[model]['parameters']:,} parameters, copy "
              f"{models[model]['copy_gigabytes_per_second']} GB/s")  # fmt: skip
        for name, row in models[model]["steps"].items():
            print(f"  {name:32} {row['milliseconds']:9.3f} ms  {row['to_fastest']:6.2f} x fastest  "
                  f"{row['to_default']:6.2f} x default  floor {row['floor_milliseconds']:8.3f} ms")  # fmt: skip
    result = {
        "rounds": arguments.rounds,
        "threads": arguments.threads,
        "kernels": _kernels.library() is not None,
        "models": models,
        "guards": guards(arguments.rounds),
        "iterations": iterations(arguments.rounds),
        "made": provenance("cpu", arguments.threads, time.perf_counter() - started, "none"),
    }
    if not arguments.dry:
        write_json(OUTPUT, result)


if __name__ == "__main__":
    main()
