"""The wall time of a set of runs as the sweep does them, and as the paper's authors would.

The set: logistic regression on MNIST, SGD, SGD-HD, Adam and Adam-HD from six initial learning rates, 24 runs of 10
epochs. The sweep trains the whole set, validation, records and the start of its processes included. The authors' way
(authors_way.py) is one process a run, as many at a time as there are cores; a sample of its processes is timed for 1
and for 2 epochs, and the time of 24 runs of 10 epochs follows from the line through the two. Both in turn, several
times; the medians and their ratio go to results/benchmarks/online_tuning.json.

    python benchmarks/online_tuning.py [--repeats 3]
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hdlib.runs import grid, sweep
from hdlib.runs.files import write_json
from hdlib.runs.record import provenance
from hdlib.runs.sweep import usable_cores

HERE = Path(__file__).parent
OUTPUT = HERE.parent / "results" / "benchmarks" / "online_tuning.json"
RUNS, EPOCHS = 24, 10


def sweep_seconds() -> float:
    """Train the whole set into an empty store."""
    alphas = [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6]
    specs = grid(method=["sgd", "adam"], alpha0=alphas, epochs=EPOCHS)
    specs += grid(method=["sgd_hd", "adam_hd"], beta=1e-4, alpha0=alphas, epochs=EPOCHS)
    assert len(specs) == RUNS
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        sweep(specs, folder)
        return time.perf_counter() - started


def authors_seconds(cores: int) -> float:
    """Time one process of each method for 1 and for 2 epochs, `cores` at a time, and extend to the set."""

    def process(job: tuple[str, int]) -> float:
        method, epochs = job
        command = [
            sys.executable,
            HERE / "authors_way.py",
            "--method",
            method,
            "--epochs",
            str(epochs),
            "--threads",
            "1",
        ]
        command += ["--beta", "1e-4"] if method.endswith("_hd") else []
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - started

    jobs = [(method, epochs) for epochs in (1, 2) for method in ("sgd", "sgd_hd", "adam", "adam_hd")]
    with ThreadPoolExecutor(cores) as pool:
        seconds = list(pool.map(process, jobs))
    one, two = statistics.mean(seconds[:4]), statistics.mean(seconds[4:])
    return RUNS * (one + (EPOCHS - 1) * (two - one)) / cores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    cores = usable_cores()
    ours, theirs = [], []
    for i in range(repeats):
        ours.append(sweep_seconds())
        theirs.append(authors_seconds(cores))
        print(f"{i + 1} of {repeats}: sweep {ours[-1]:.1f} s, authors' way {theirs[-1]:.0f} s", flush=True)
    result = {
        "runs": RUNS,
        "epochs": EPOCHS,
        "cores": cores,
        "repeats": repeats,
        "sweep_seconds": round(statistics.median(ours), 1),
        "authors_seconds": round(statistics.median(theirs)),
        "ratio": round(statistics.median(t / o for o, t in zip(ours, theirs, strict=True)), 1),
        "made": provenance("cpu", 1, sum(ours), "MNIST"),
    }
    write_json(OUTPUT, result)
    print(f"The sweep takes {result['sweep_seconds']} s, the authors' way {result['authors_seconds']} s: "
          f"{result['ratio']} times as long.")  # fmt: skip


if __name__ == "__main__":
    main()
