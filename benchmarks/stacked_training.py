"""Stacked training against the floor, a plain loop and the authors' way, everything in one run.

As many single-threaded processes as there are cores measure the same thing at the same time, because that is how the
sweep trains; what is reported is the sum of their rates, median of several rounds. The floor of an iteration is its
matrix products at the rate that this machine reaches on the same shapes, and the fewest bytes that the optimiser must
move at the measured bandwidth of a copy (read and written bytes counted).

    python benchmarks/stacked_training.py [--rounds 5] [--figure4 2]

writes results/benchmarks/stacked_training.json, which the book's Performance page shows. Needs MNIST (HDLIB_DATA or
data/) and a C++ compiler.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing.synchronize import Barrier
from pathlib import Path

import torch
from authors_way import make_optimizer
from torch.nn import functional as F

from hdlib.runs import BASELINE, METHODS, RunSpec, grid, sweep
from hdlib.runs.files import write_json
from hdlib.runs.record import provenance
from hdlib.runs.stack import Stack, layer_sizes
from hdlib.runs.sweep import usable_cores
from hdlib.runs.train import minibatches
from hdlib.tasks import DataNotFoundError, build_model, load_data
from hdlib.tasks.data import require_data

HERE = Path(__file__).parent
OUTPUT = HERE.parent / "results" / "benchmarks" / "stacked_training.json"
RATES = [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6]
BYTES = {"sgd": 12, "sgd_hd": 20, "sgdn": 20, "sgdn_hd": 32, "adam": 28, "adam_hd": 36}
"""The fewest bytes a float32 parameter costs in a step: alpha_t needs the whole gradient before anything moves, so the
hypergradient methods go over the data twice, and SGD-HD keeps the last gradient without copying it."""
KS = [2**i for i in range(13)]  # stack sizes for cost and memory
PATIENCE = 600  # seconds until a process gives up the others
WIDTHS = {30: (1, 4, 16), 100: (1, 4, 16), 300: (1, 4), 1000: (1, 4)}  # stack sizes for MLPs of several widths


def cells(iterations: int) -> list[RunSpec]:
    """The 126 cells of Figure 4, without a target, so that none ends early."""
    common = dict(alpha0=RATES, epochs=100, max_iterations=iterations, early=0, validate_every=0)
    baselines = grid(method=["sgd", "sgdn"], **common) + grid(method="adam", decay="inv_sqrt", **common)
    return baselines + grid(method=list(BASELINE), beta=RATES, **common)


def mixed_mlps(iterations: int) -> list[RunSpec]:
    """24 perceptrons: six methods from four initial learning rates, with betas at which none diverges."""
    common = dict(model="mlp", alpha0=RATES[2:], epochs=100, max_iterations=iterations, early=0, validate_every=0)
    return [
        *grid(method=["sgd", "sgdn", "adam"], **common),
        *grid(method=["sgd_hd", "sgdn_hd"], beta=1e-5, **common),
        *grid(method="adam_hd", beta=1e-8, **common),
    ]


# -- what a process measures, each in seconds


def median_time(call: Callable[[], object], seconds: float = 0.5) -> float:
    """Return the median duration of a call, over about so many seconds."""
    for _ in range(3):
        call()
    times: list[float] = []
    while sum(times) < seconds or len(times) < 5:
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def copy_bandwidth() -> float:
    """Return bytes per second of a large copy, read and written ones counted."""
    source = torch.randn(20_000_000)
    target = torch.empty_like(source)
    return 2 * source.nbytes / median_time(lambda: target.copy_(source))


def product_time(spec: RunSpec, k: int) -> float:
    """Return the duration of the matrix products of one iteration of k runs that share their minibatch."""
    total, batch = 0.0, spec.batch_size
    for i, (out, fan_in) in enumerate(layer_sizes(spec, 784, 10)):
        shared = i == 0
        theta = torch.randn(k * out, fan_in) if shared else torch.randn(k, out, fan_in)
        below = torch.randn(batch, fan_in)
        d, grad = torch.randn(*theta.shape[:-1], batch), torch.empty_like(theta)
        result = torch.empty_like(d)
        if shared or k == 1:
            weights, flat, gradient, forward = (t.view(-1, t.shape[-1]) for t in (theta, d, grad, result))
            total += median_time(lambda w=weights, b=below, f=forward: torch.mm(w, b.t(), out=f))
            total += median_time(lambda d=flat, b=below, g=gradient: torch.mm(d, b, out=g))
            if not shared:
                down = torch.empty(fan_in, batch)
                total += median_time(lambda w=weights, d=flat, o=down: torch.mm(w.t(), d, out=o))
            continue
        columns = torch.randn(k, fan_in, batch)
        total += median_time(lambda w=theta, b=columns, f=result: torch.bmm(w, b, out=f))
        total += median_time(lambda d=d, b=columns, g=grad: torch.bmm(d, b.mT, out=g))
        down = torch.empty(k, fan_in, batch)
        total += median_time(lambda w=theta, d=d, o=down: torch.bmm(w.mT, d, out=o))
    return total


def bytes_moved(specs: list[RunSpec]) -> int:
    """Return the fewest bytes that the optimisers of these runs must move in one step."""
    weights = {spec.key: sum((out * fan_in) for out, fan_in in layer_sizes(spec, 784, 10)) for spec in specs}
    return sum(BYTES[spec.method] * weights[spec.key] for spec in specs)


def stack_time(specs: list[RunSpec], warm: int = 2) -> tuple[float, dict[str, float]]:
    """Return seconds per iteration of a stack, after compiling, and the seconds of its parts."""
    stack = Stack(specs, "cpu", compiled=True)
    for _ in range(warm):
        stack.advance()
    first, started, steps = stack.iteration, time.perf_counter(), 0
    while stack.cohorts:
        done, _ = stack.advance()
        assert done % len(specs) == 0, "a run ended early"
        steps += done // len(specs)
    seconds = (time.perf_counter() - started) / steps
    assert steps == specs[0].max_iterations - first
    return seconds, parts(specs)


def parts(specs: list[RunSpec]) -> dict[str, float]:
    """Return what the pieces of one iteration of such a stack take, measured one by one."""
    stack = Stack([spec.with_(max_iterations=64) for spec in specs], "cpu", compiled=True)
    [cohort] = stack.cohorts
    cohort.shuffle(1)
    cohort.load(0, 64)
    x = cohort.x.index_select(0, cohort.chunk_order[0])
    onehot = stack.onehot.index_select(0, cohort.chunk_order[0]).t().contiguous()

    def updates() -> None:
        for arguments, options in cohort.updates:
            stack.functions.update(*arguments, stack.t + 9, stack.floor + 1e-8, stack.scale + 1, **options)

    def gather() -> None:
        i = int(torch.randint(64, ()))
        cohort.x.index_select(0, cohort.chunk_order[i])

    return {
        "matrix products and activations": median_time(lambda: (cohort.forward(x.t(), cohort.out, cohort.hidden),
                                                                cohort.backward(x))),
        "updates": median_time(updates),
        "cross-entropy": median_time(
            lambda: stack.functions.cross_entropy(cohort.whole[0], onehot, cohort.weight[0], cohort.whole[1])
        ),
        "gathering the minibatch": median_time(gather),
    }  # fmt: skip


def loop_time(spec: RunSpec, iterations: int) -> float:
    """Return seconds per iteration of a plain loop over preloaded tensors, one model at a time."""
    data = load_data("mnist")
    model = build_model(spec.model, 784, 10, spec.seed)
    optimizer = make_optimizer(spec.method, model.parameters(), spec.alpha0, spec.beta)
    batches = minibatches(spec, 1, 60_000, "cpu")[:iterations]
    started = time.perf_counter()
    for batch in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(data.train_x[batch]), data.train_y[batch]).backward()
        optimizer.step()
    return (time.perf_counter() - started) / len(batches)


def loop_times(model: str, iterations: int) -> dict[str, float]:
    common = dict(model=model, alpha0=1e-3, epochs=1)
    specs = grid(method=["sgd", "sgdn", "adam"], **common) + grid(method=list(BASELINE), beta=1e-8, **common)
    return {spec.method: loop_time(spec, iterations) for spec in specs}


def authors_rate(method: str) -> float:
    """Return iterations per second of one process of authors_way.py."""
    command = [sys.executable, HERE / "authors_way.py", "--method", method, "--threads", "1", "--iterations-cap", "150"]
    command += ["--beta", "1e-4"] if method.endswith("_hd") else []
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)["iterations_per_second"]


# -- all of it, in every process at the same time


barrier: Barrier  # where the processes wait for each other


def meet_at(place: Barrier) -> None:
    """Tell a process where it waits for the others."""
    global barrier
    barrier = place


def measure(index: int, processes: int, rounds: int) -> tuple:
    torch.set_num_threads(1)
    load_data("mnist")
    logreg, mlps = cells(2000)[index::processes], mixed_mlps(128 + 64)[index::processes]
    serial = {"logreg": 400, "mlp": 30}
    found: dict[str, list] = {}

    def together(name: str, call: Callable[[], object]) -> None:
        barrier.wait(PATIENCE)
        found.setdefault(name, []).append(call())

    for number in range(rounds):
        together("bandwidth", copy_bandwidth)
        together("logreg products", lambda: product_time(logreg[0], len(logreg)))
        together("mlp products", lambda: product_time(mlps[0], 1))
        together("logreg stack", lambda: stack_time(logreg))
        together("mlp stacks", lambda: [stack_time([spec]) for spec in mlps])
        for model, iterations in serial.items():
            together(f"{model} loop", lambda m=model, i=iterations: loop_times(m, i))
        together("authors", lambda: {method: authors_rate(method) for method in METHODS})
        if index == 0:
            print(f"{number + 1} of {rounds} rounds", flush=True)
    return found, bytes_moved(logreg), len(logreg), [(spec.method, bytes_moved([spec])) for spec in mlps]


def summarise(results: list, rounds: int) -> dict:
    """Return model-iterations per second of the machine, and shares of the floor, medians over the rounds."""
    counts = {spec.method: 0 for spec in cells(1)}
    for spec in cells(1):
        counts[spec.method] += 1
    rows: dict[str, list[float]] = {}

    def add(name: str, value: float) -> None:
        rows.setdefault(name, []).append(value)

    parts_logreg: dict[str, list[float]] = {}
    for i in range(rounds):
        ways = ("logreg", "logreg floor", "logreg loop", "logreg authors", "mlp", "mlp floor", "mlp loop")
        sums = dict.fromkeys(ways, 0.0)
        for found, moved, k, mlps in results:
            bandwidth = found["bandwidth"][i]
            seconds, pieces = found["logreg stack"][i]
            sums["logreg"] += k / seconds
            sums["logreg floor"] += k / (found["logreg products"][i] + moved / bandwidth)
            for name, value in pieces.items():
                parts_logreg.setdefault(name, []).append(value / seconds)
            total = sum(counts.values())
            loop = found["logreg loop"][i]
            sums["logreg loop"] += total / sum(counts[m] * loop[m] for m in counts)
            sums["logreg authors"] += total / sum(counts[m] / found["authors"][i][m] for m in counts)
            times = [seconds for seconds, _ in found["mlp stacks"][i]]
            sums["mlp"] += len(times) / sum(times)
            sums["mlp floor"] += len(mlps) / sum(found["mlp products"][i] + b / bandwidth for _, b in mlps)
            loop = found["mlp loop"][i]
            sums["mlp loop"] += len(mlps) / sum(loop[m] for m, _ in mlps)
        for name, value in sums.items():
            add(f"{name} per second", value)
        add("logreg share of floor", sums["logreg"] / sums["logreg floor"])
        add("logreg over loop", sums["logreg"] / sums["logreg loop"])
        add("logreg over authors", sums["logreg"] / sums["logreg authors"])
        add("mlp share of floor", sums["mlp"] / sums["mlp floor"])
        add("mlp over loop", sums["mlp"] / sums["mlp loop"])
        add("bandwidth", sum(found["bandwidth"][i] for found, *_ in results))
    summary = {name: statistics.median(values) for name, values in rows.items()}
    summary["range"] = {name: [min(values), max(values)] for name, values in rows.items()}
    summary["logreg parts"] = {name: statistics.median(values) for name, values in parts_logreg.items()}
    pieces = [p for found, *_ in results for stacks in found["mlp stacks"] for s, p in stacks]
    totals = [s for found, *_ in results for stacks in found["mlp stacks"] for s, p in stacks]
    summary["mlp parts"] = {
        name: statistics.median(p[name] / s for p, s in zip(pieces, totals, strict=True)) for name in pieces[0]
    }
    return summary


def against_k() -> list[dict]:
    """Return seconds and peak memory against the number of runs in a stack, smallest first, in this one process."""
    torch.set_num_threads(1)
    rows = []
    for k in KS:
        iterations = 64 * 4 if k < 256 else max(4, 2**14 // k)
        common = dict(alpha0=1e-3, epochs=10, max_iterations=iterations, early=0, validate_every=0)
        each = {method: -(-(k - i) // 3) for i, method in enumerate(("adam_hd", "sgd_hd", "sgdn_hd"))}
        specs = [spec for method, n in each.items() if n
                 for spec in grid(method=method, beta=[1e-8 * (1 + i / 1e4) for i in range(n)], **common)]  # fmt: skip
        stack = Stack(specs, "cpu", compiled=True)
        if k < 256:  # with more, what was compiled for fewer serves
            stack.advance()
        seconds = []
        while stack.cohorts:
            started = time.perf_counter()
            done, _ = stack.advance()
            seconds.append((time.perf_counter() - started) / (done / k))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        rows.append({"k": k, "seconds": statistics.median(seconds), "peak_bytes": peak})
        print(f"K = {k}: {1e3 * rows[-1]['seconds']:.2f} ms an iteration, peak {peak / 1e6:.0f} MB", flush=True)
    return rows


def against_width() -> list[dict]:
    """Return seconds per run and iteration of perceptrons of several widths in stacks of several sizes."""
    torch.set_num_threads(1)
    rows = []
    for width, sizes in WIDTHS.items():
        for k in sizes:
            common = dict(model="mlp", width=width, alpha0=1e-3, epochs=1, max_iterations=64 * 4)
            betas = [1e-8 * (1 + i / 1e4) for i in range(k)]
            specs = grid(method="adam_hd", beta=betas, early=0, validate_every=0, **common)
            seconds, _ = stack_time(specs, warm=1)
            rows.append({"width": width, "k": k, "seconds": seconds / k})
    return rows


def alone(call: Callable[[], list]) -> list:
    """Return what a call returns in a process of its own, whose peak memory is its own too."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(call).result()


def figure4(seeds: int) -> dict:
    """Train so many seeds of the whole grid search from nothing, and return how long it took."""
    common = dict(alpha0=RATES, epochs=1000, max_iterations=468_750, target_loss=0.29, early=0, validate_every=0)
    specs = [
        *grid(method=["sgd", "sgdn", "adam"], seeds=seeds, **common),
        *grid(method="adam", decay="inv_sqrt", seeds=seeds, **common),
        *grid(method=list(BASELINE), beta=RATES, seeds=seeds, **common),
    ]
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        records = sweep(specs, folder, progress=True)
        seconds = time.perf_counter() - started
    return {"seeds": seeds, "seconds": seconds, "model_iterations": sum(record.iterations for record in records)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--figure4", type=int, default=0, metavar="SEEDS", help="time so many seeds of Figure 4 too")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    args = parser.parse_args()
    try:
        require_data("mnist")  # before any process waits for another
    except DataNotFoundError as error:
        sys.exit(str(error))
    started = time.perf_counter()
    processes = usable_cores()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, meet_at, (context.Barrier(processes),)) as pool:
        results = list(pool.map(partial(measure, processes=processes, rounds=args.rounds), range(processes)))
    result = summarise(results, args.rounds) | {"rounds": args.rounds, "processes": processes}
    result["against_k"] = alone(against_k)
    result["against_width"] = alone(against_width)
    if args.figure4:
        result["figure4"] = figure4(args.figure4)
    elif args.output.is_file():
        result["figure4"] = json.loads(args.output.read_text()).get("figure4")
    result["made"] = provenance("cpu", 1, time.perf_counter() - started, "MNIST")
    write_json(args.output, result)
    print(
        f"Logistic regression: {result['logreg per second']:,.0f} model-iterations a second, "
        f"{100 * result['logreg share of floor']:.0f} % of the floor, {result['logreg over loop']:.1f} times a plain "
        f"loop, {result['logreg over authors']:.0f} times the authors' way.\n"
        f"Perceptron: {result['mlp per second']:.1f}, {100 * result['mlp share of floor']:.0f} % of the floor, "
        f"{result['mlp over loop']:.2f} times a plain loop."
    )


if __name__ == "__main__":
    main()
