"""Run notebooks in a fixed order within a time limit, and pack the records that they add.

Called by run_on_gpu.sh. Each job is a notebook with parameters, the tests that need a GPU, or the benchmark of VGG.
What is recorded already is not trained again; a job is stopped when its time is up and goes on in another visit from
its records and checkpoints.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import psutil

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "_build" / "gpu"  # kept from visit to visit, as long as the machine is the same
TAR_BYTES = 15_000_000
PACK_EVERY = 60.0  # seconds between packing what is there, so that a lost machine costs no more
GPU_TESTS = (
    "optim/test_gpu_kernel.py",
    "optim/test_dropin.py",
    "optim/test_compiled.py",
    "runs/test_stack.py",
    "runs/test_vgg.py",
)
GRACE = 20.0  # seconds that a stopped job has to record what is finished
VISIT, REHEARSAL = 540.0, 3600.0  # seconds for everything, unless others are asked for


@dataclass
class Job:
    """A notebook to run with parameters, for at most `seconds`; `tiny` replaces parameters in a rehearsal.

    It is not begun with less than `least` seconds left: runs of a stack are all lost that have not ended.
    """

    name: str
    notebook: str  # of notebooks/, without .md; a program of benchmarks/, with .py; or "tests"
    parameters: dict = field(default_factory=dict)
    tiny: dict = field(default_factory=dict)
    seconds: float = 600.0
    least: float = 15.0


TINY_VGG = dict(
    width_factor=0.03125, train_images=128, epochs=1, precision="float32", critical_factors=[], automatic_rates=[]
)
ALONE = dict(critical_factors=[], automatic_rates=[], relapse_epochs=0)
AUTHORS, BLOG = (
    dict(variants=[variant], norm_start="uniform", relapse_epochs=0)  # no run is to be trained twice
    for variant in ("authors", "blog")
)
SHORT_VGG = AUTHORS | ALONE | dict(seeds=2, epochs=5)  # in float32 an epoch takes 3.5 s of an H200
TINY_MNIST = dict(task="digits", epochs=1, seeds=1)
TINY_GRID = dict(task="digits", cap=30, seeds=2, betas=[1e-3])
TINY_DIVERGENCE = dict(
    task="digits",
    width=8,
    seeds=1,
    points=3,
    logreg_points=3,
    phase_seeds=1,
    models=3,
    critical_seeds=1,
    critical_iterations=20,
    critical_rounds=5,
    logreg_iterations=10,
    mlp_iterations=10,
)
TINY_CRITICAL = {
    name: value for name, value in TINY_DIVERGENCE.items() if name not in ("width", "seeds", "logreg_points")
} | dict(phase_models=3, longer=[["logistic regression", 1, 1]])
TINY_GUARDS = dict(
    task="digits",
    epochs=1,
    seeds=1,
    width=8,
    wide_width=9,
    wide_seeds=1,
    iterations=10,
    long_epochs=2,
    alphas=[1e-3],
)
JOBS = [
    Job("checks", "tests", seconds=75),
    Job("vgg-speed", "vgg.py", {"compile": True}, {"quick": True, "width-factor": 0.03125}, 130),
    Job("vgg", "vgg", AUTHORS | dict(seeds=1, automatic_rates=[]), TINY_VGG),
    Job("vgg-blog", "vgg", BLOG | ALONE | dict(seeds=1), TINY_VGG),
    Job("online-tuning-paper", "online_tuning",
        dict(model="mlp", epochs=50, seeds=5, sgd_beta=1e-4, adam_beta=1e-4), TINY_MNIST, least=180),
    Job("online-tuning-report", "online_tuning",
        dict(model="mlp", epochs=50, seeds=5, sgd_beta=1e-4, adam_beta=1e-7), TINY_MNIST, least=180),
    Job("online-tuning-implied", "online_tuning",
        dict(model="mlp", epochs=50, seeds=5, sgd_beta=1e-5, adam_beta=1e-7), TINY_MNIST, least=180),
    Job("online-tuning-automatic", "online_tuning",
        dict(model="mlp", epochs=50, seeds=5, sgd_beta="auto", adam_beta="auto"), TINY_MNIST, least=180),
    Job("tuning", "tuning", dict(model="mlp", epochs=100, seeds=5, cosine_seeds=3), TINY_MNIST, least=180),
    Job("divergence", "divergence", {}, TINY_DIVERGENCE),
    Job("critical-beta", "critical_beta", dict(points=25), TINY_CRITICAL),
    Job("figure-4-mlp", "grid_search", dict(model="mlp", cap=46_900, seeds=5, other_seeds=0), TINY_GRID),
    Job("guards", "guards", dict(wide_seeds=3, other_wide_seeds=3, long_seeds=3), TINY_GUARDS),
    Job("vgg-seeds", "vgg", AUTHORS | ALONE | dict(seeds=3), TINY_VGG | dict(seeds=2)),
    Job("vgg-paper", "vgg", ALONE | dict(variants=["paper"], seeds=1), TINY_VGG),
    Job("vgg-automatic", "vgg", AUTHORS | dict(seeds=1, critical_factors=[]), TINY_VGG | dict(automatic_rates=[1e-3])),
    Job("vgg-float32", "vgg", SHORT_VGG | dict(precision="float32"), TINY_VGG),
    Job("vgg-bf16", "vgg", SHORT_VGG | dict(precision="bf16"), TINY_VGG),
]  # fmt: skip


def main() -> int:
    """Run the jobs; return 1 where one failed or a rehearsal is not whole, 2 where none can begin, 130 at Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="folder for what comes back")
    parser.add_argument("--seconds", type=float, help=f"for everything; {VISIT:g}, of a rehearsal {REHEARSAL:g}")
    parser.add_argument("--data", type=Path, action="append", default=[], help="data folder, or archives that make one")
    parser.add_argument("--given", type=Path, action="append", default=[], help="records of an earlier visit, a .tar")
    parser.add_argument("--only", action="append", default=[], help="run this job alone")
    parser.add_argument("--list", action="store_true", help="list the jobs and stop")
    parser.add_argument("--rehearse", action="store_true", help="tiny settings")
    options = parser.parse_args()
    deadline = time.monotonic() + (options.seconds or (REHEARSAL if options.rehearse else VISIT))
    names = [job.name for job in JOBS]
    if options.list:
        print("\n".join(f"{job.name:24} {job.notebook} {job.parameters}" for job in JOBS))
        return 0
    if sentence := refusal(options, names):
        print(sentence, file=sys.stderr)
        return 2

    work = WORK / "rehearsal" if options.rehearse else WORK
    left = sorted(options.output.glob(f"{stem_of(options.rehearse)}*.tar"))  # of an earlier visit: they are packed anew
    store = prepare_store(work, [*options.given, *left])
    environment = os.environ | {"HDLIB_DATA": str(prepare_data(options.data, work)), "PYTHONUNBUFFERED": "1"}
    options.output.mkdir(parents=True, exist_ok=True)
    rows: list[tuple] = []
    try:
        run_jobs(rows, store, work, deadline, environment, options)
    finally:
        finish(rows, store, work, options)
    outcomes = {outcome for _, outcome, _, _ in rows}
    if "interrupted" in outcomes:
        return 130
    return int("failed" in outcomes or (options.rehearse and not outcomes <= {"done", "done before"}))


def finish(rows: list[tuple], store: Path, work: Path, options: argparse.Namespace) -> None:
    """Pack what there is, and print what ran."""
    pack(store, options.output, options.rehearse)
    with tarfile.open(options.output / "logs.tar.gz", "w:gz") as tar:  # with the warnings of what a GPU refused
        for folder in ("logs", "executed"):
            if (work / folder).is_dir():
                for path in sorted((work / folder).glob("[!.]*")):
                    tar.add(path, arcname=f"{folder}/{path.name}")
    print("\n" + table(rows, work))


def refusal(options: argparse.Namespace, names: list[str]) -> str:
    """Return the sentence that refuses what is asked for, or nothing."""
    if unknown := [name for name in options.only if name not in names]:
        return f"There is no job {unknown[0]!r}: the jobs are {', '.join(names)}."
    if options.output is None:
        return "Name an --output."
    if options.output.exists() and not options.output.is_dir():
        return f"--output is {str(options.output)!r}, which is no folder: name one."
    if options.seconds is not None and not options.seconds > 0:
        return f"--seconds is {options.seconds:g}: give a positive number."
    folders = [path for path in options.data if path.is_dir()]
    if folders and len(options.data) > 1:
        return f"--data is given {len(options.data)} times, as {str(folders[0])!r} too: give one folder, or archives."
    for name, paths in (("--data", [path for path in options.data if path not in folders]), ("--given", options.given)):
        for path in paths:
            if not path.exists():
                return f"{name} is {str(path)!r}, and there is no such file: name one that is there."
            if path.is_dir() or not tarfile.is_tarfile(path):
                return f"{name} is {str(path)!r}, which is no archive that tar can read: name one."
    return ""


def run_jobs(
    rows: list[tuple], store: Path, work: Path, deadline: float, environment: dict, options: argparse.Namespace
) -> None:
    """Run the jobs that are missing and fit into the time, adding a row for each to the table."""
    for job in JOBS:
        if options.only and job.name not in options.only:
            continue
        source, output = source_of(job), output_of(job, store, work)
        left = deadline - time.monotonic() - GRACE
        if not source.exists():
            rows.append((job.name, "not there", "", 0))
            print(f"{job.name}: there is no {source.name}, skipped", flush=True)
        elif done_marker(output).exists() and not options.only:
            rows.append((job.name, "done before", "", 0))
        elif left < (15 if options.rehearse else job.least):
            rows.append((job.name, "no time left", "", 0))
        else:
            rows.append(run(job, store, work, min(left, job.seconds), environment, options))
        (options.output / "table.txt").write_text(table(rows, work))
        if rows[-1][1] == "interrupted":
            return


def prepare_store(work: Path, given: list[Path]) -> Path:
    """Return the store to run with: what the project has recorded, what is given, and what an earlier visit left."""
    store = work / "results"
    store.mkdir(parents=True, exist_ok=True)
    shutil.copytree(ROOT / "results", store, dirs_exist_ok=True, ignore=shutil.ignore_patterns("benchmarks"))
    for archive in given:
        with tarfile.open(archive) as tar:
            tar.extractall(work, filter="data")
    return store


def prepare_data(given: list[Path], work: Path) -> Path:
    """Return the folder of the data sets: the given one, or one made of archives.

    An archive holds MNIST/ or cifar10/, or train/ and test/, which are taken for those of CIFAR-10 as images.
    """
    if not given:
        return Path(os.environ.get("HDLIB_DATA", ROOT / "data"))
    if given[0].is_dir():
        return given[0].resolve()
    folder = work / "data"
    for archive in given:
        done = folder / f".{archive.name}"
        if done.exists():
            continue
        with tarfile.open(archive) as tar:
            parts = (PurePosixPath(member.name).parts for member in tar)
            top = next((own[0] for own in parts if own), "")  # "." has no part
            place = folder / "cifar10" if top in ("train", "test") else folder
            place.mkdir(parents=True, exist_ok=True)
            tar.extractall(place, filter="data")
        done.touch()
    return folder.resolve()


def source_of(job: Job) -> Path:
    if job.notebook == "tests":
        return ROOT / "tests"
    if job.notebook.endswith(".py"):
        return ROOT / "benchmarks" / job.notebook
    return ROOT / "notebooks" / f"{job.notebook}.md"


def output_of(job: Job, store: Path, work: Path) -> Path:
    """Return what a job writes: of a program or the tests a file beside the records, which comes back with them."""
    if job.notebook == "tests":
        return store / "benchmarks" / "gpu_tests.xml"
    if job.notebook.endswith(".py"):
        return (store / "benchmarks" / job.notebook).with_suffix(".json")
    return work / "executed" / f"{job.name}.ipynb"


def done_marker(output: Path) -> Path:
    """Return the file that says that a job which is no notebook was done: what it wrote may be a part."""
    return output.with_name(f"{output.name}.done")


def command_of(job: Job, store: Path, work: Path, rehearse: bool) -> list[str]:
    parameters, output = job.parameters | (job.tiny if rehearse else {}), output_of(job, store, work)
    if job.notebook == "tests":
        files = [str(ROOT / "tests" / name) for name in GPU_TESTS]
        return [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-m",
            "gpu",
            f"--junitxml={output}",
            *files,
        ]
    if job.notebook.endswith(".py"):
        flags = [
            text
            for name, value in parameters.items()
            if value is not False
            for text in ([f"--{name}"] if value is True else [f"--{name}", str(value)])
        ]
        return [sys.executable, str(source_of(job)), *flags, "--output", str(output)]
    flags = [text for name, value in parameters.items() for text in ("-p", f"{name}={value!r}")]
    flags += ["-o", str(output), "-p", f"store={str(store)!r}"]
    return [sys.executable, "-m", "hdlib", "run", str(source_of(job)), *flags]


def run(job: Job, store: Path, work: Path, seconds: float, environment: dict, options) -> tuple:
    """Run a job within its time; return its name, what became of it, its last line and how long it took."""
    log = work / "logs" / f"{job.name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"{job.name}: up to {seconds:.0f} s", flush=True)
    started = packed = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(
            command_of(job, store, work, options.rehearse),
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        outcome, alone = "", source_of(job).suffix == ".md"
        try:
            while process.poll() is None:
                time.sleep(0.2)
                now = time.monotonic()
                if now - started > seconds:
                    outcome = "stopped"
                    stop(process, alone)
                elif now - packed > PACK_EVERY:
                    pack(store, options.output, options.rehearse)
                    packed = now
        except KeyboardInterrupt:
            print(f"\n{job.name}: interrupted, has {GRACE / 2:g} s to record what is finished", flush=True)
            outcome = "interrupted"
            stop(process, alone)
    took = time.monotonic() - started
    outcome = outcome or ("done" if process.returncode == 0 else "failed")
    output = output_of(job, store, work)
    if outcome == "done" and output.is_relative_to(store):
        done_marker(output).touch()
    lines = log.read_text(errors="replace").strip().splitlines()
    if outcome == "failed":
        print("\n".join(lines[-25:]), flush=True)
    pack(store, options.output, options.rehearse)
    print(f"{job.name}: {outcome} after {took:.0f} s", flush=True)
    return job.name, outcome, lines[-1][:90] if lines else "", took


def stop(process: subprocess.Popen, alone: bool) -> None:
    """Interrupt a job's kernel alone, or a program, so that it records what is finished; kill what stays."""
    job = psutil.Process(process.pid)
    family = job.children(recursive=True)
    for member in (family or [job]) if alone else [job, *family]:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.send_signal(signal.SIGINT)
    psutil.wait_procs([job, *family], timeout=GRACE / 2)
    with contextlib.suppress(psutil.NoSuchProcess):  # it may have ended
        family += job.children(recursive=True)
    for member in [*family, job]:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()


def pack(store: Path, output: Path, rehearse: bool) -> None:
    """Write what the project does not have yet as records.tar, records-2.tar, ... each below TAR_BYTES.

    What a rehearsal made, which is not for the project, is rehearsal.tar.
    """
    stem = stem_of(rehearse)
    own = {path.relative_to(ROOT / "results") for path in (ROOT / "results").rglob("*.parquet")}
    new = [path for path in sorted(store.rglob("*.parquet")) if path.relative_to(store) not in own]
    new += sorted((store / "benchmarks").glob("*.*"))
    groups: list[list[tuple[str, bytes]]] = [[]]
    for path in new:
        try:
            content = path.read_bytes()
        except FileNotFoundError:  # merged meanwhile
            continue
        if tar_size([*(len(other) for _, other in groups[-1]), len(content)]) > TAR_BYTES and groups[-1]:
            groups.append([])
        groups[-1].append((f"results/{path.relative_to(store)}", content))
    paths = [output / (f"{stem}.tar" if i == 1 else f"{stem}-{i}.tar") for i in range(1, len(groups) + 1)]
    for path, group in zip(paths, groups, strict=True):
        temporary = path.with_suffix(".tmp")
        with tarfile.open(temporary, "w") as tar:
            for name, content in group:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        temporary.replace(path)
    for path in set(output.glob(f"{stem}*.tar")) - set(paths):  # of an earlier visit with more files
        path.unlink()


def stem_of(rehearse: bool) -> str:
    """Return how the names of the archives of records begin."""
    return "rehearsal" if rehearse else "records"


def tar_size(sizes: list[int]) -> int:
    """Return the size of a tar of files: each in blocks of 512 bytes with a header, and two blocks at the end."""
    blocks = sum(1 + -(-size // tarfile.BLOCKSIZE) for size in sizes) + 2
    return -(-blocks * tarfile.BLOCKSIZE // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def table(rows: list[tuple], work: Path) -> str:
    """Return what ran and how long, then the throughput against the measured matrix rate."""
    lines = [f"{'job':24} {'outcome':13} {'seconds':>8}"]
    for name, outcome, last, took in rows:
        lines.append(f"{name:24} {outcome:13} {took:8.0f}  {'' if outcome == 'done' else last}".rstrip())
    measured = work / "results" / "benchmarks" / "vgg.json"
    if measured.is_file():
        result = json.loads(measured.read_text())
        lines.append(f"\n{result['made']['device']}, torch {result['made']['torch']}")
        lines += [f"matrix product, {name}: {rate:.4g} TFLOP/s" for name, rate in result["matrix_teraflops"].items()]
        lines += [
            f"VGG, {s['precision']}, {s['how']}: {s['images_per_second']:,.0f} images/s, {100 * s['share']:.1f} % of it"
            for s in result["steps"]
        ]
        parts = result.get("parts", {})
        lines.append("a step's parts, ms: " + ", ".join(f"{name} {value:.3f}" for name, value in parts.items()))
        for how, overhead in result.get("overhead", {}).items():
            told = ", ".join(f"{name} {100 * x:+.1f} %" for name, x in overhead.items())
            lines.append(f"hypergradients cost, {how}: {told}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
