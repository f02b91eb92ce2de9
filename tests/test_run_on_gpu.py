"""The script for a borrowed GPU runs what is there, packs what is new, and stops in time; rehearsed without a GPU."""

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import gpu_queue
import psutil
import pytest
from processes import alive, kernels

from hdlib.runs import RunSpec, Store, train

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "run_on_gpu.sh"


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """The queue, working below a folder of its own."""
    monkeypatch.setattr(gpu_queue, "WORK", tmp_path / "work")
    return gpu_queue


def main(queue, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["gpu_queue.py", *map(str, arguments)])
    return queue.main()


def test_every_job_has_parameters_that_its_notebook_knows(queue):
    from hdlib.report import notebooks

    for job in queue.JOBS:
        source = queue.source_of(job)
        if source.suffix == ".md" and source.is_file():
            notebooks.accepted(source, job.parameters | job.tiny)


def test_the_perceptrons_jobs_are_those_of_its_pages(queue):
    from hdlib.report import pages

    told = {page.name: page.parameters for page in pages.read_pages(ROOT)}
    names = {f"online-tuning-{which}": f"online-tuning-mlp-{which}" for which in ("paper", "report", "implied")}
    names |= {"online-tuning-automatic": "online-tuning-mlp-automatic", "tuning": "tuning-mlp"}
    jobs = {job.name: job.parameters for job in queue.JOBS}
    for job, page in names.items():
        said = {name: text for name, text in told[page].items() if name in ("title", "note")}
        assert said | jobs[job] == told[page]


def test_a_rehearsal_trains_packs_and_resumes(queue, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        queue,
        "JOBS",
        [queue.Job("tuning", "tuning", dict(epochs=900), queue.TINY_MNIST), queue.Job("none", "nowhere")],
    )
    assert main(queue, monkeypatch, "--rehearse", "--output", tmp_path / "out") == 1  # it was not whole
    said = capsys.readouterr().out
    assert "tuning: done after" in said and "none: there is no nowhere.md, skipped" in said
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"rehearsal.tar", "logs.tar.gz", "table.txt"}
    with tarfile.open(tmp_path / "out" / "logs.tar.gz") as tar:
        assert {"logs/tuning.txt", "executed/tuning.ipynb"} <= set(tar.getnames())
    with tarfile.open(tmp_path / "out" / "rehearsal.tar") as tar:
        names = tar.getnames()
        tar.extractall(tmp_path / "back", filter="data")
    assert names and all(name.startswith("results/digits-logreg-") for name in names)
    assert len(Store(tmp_path / "back" / "results").all()) == 8
    monkeypatch.setattr(queue, "WORK", tmp_path / "another machine")
    given = queue.prepare_store(tmp_path / "another machine", [tmp_path / "out" / "rehearsal.tar"])
    assert {Path(name).name for name in names} <= {path.name for path in Path(given).rglob("*.parquet")}


def test_a_job_whose_time_is_up_is_stopped_and_keeps_its_finished_runs(queue, tmp_path, monkeypatch):
    job = queue.Job("tuning", "tuning", dict(task="digits", model="mlp", epochs=100_000, seeds=1))
    store = queue.prepare_store(tmp_path / "work", [])
    finished = train(RunSpec(task="digits", method="sgd", alpha0=0.1, epochs=1))
    Store(store).put([finished])
    options = SimpleNamespace(rehearse=False, output=tmp_path)
    started = time.monotonic()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    name, outcome, _, took = queue.run(job, store, tmp_path / "work", 12, environment, options)
    assert (name, outcome) == ("tuning", "stopped")
    assert took < 12 + queue.GRACE and time.monotonic() - started < 12 + 2 * queue.GRACE
    assert not kernels(psutil.Process())
    with tarfile.open(tmp_path / "records.tar") as tar:
        tar.extractall(tmp_path / "back", filter="data")
    [kept] = Store(tmp_path / "back" / "results").all()
    assert kept.spec == finished.spec


def test_checks_and_benchmarks_come_back_and_are_not_repeated_in_another_visit(queue, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(queue, "JOBS", [queue.Job("checks", "tests"), queue.JOBS[1]])
    monkeypatch.setattr(queue, "GPU_TESTS", ("optim/test_gpu_kernel.py", "runs/test_stack.py"))
    assert main(queue, monkeypatch, "--rehearse", "--output", tmp_path / "out") == 0
    assert "checks: done after" in capsys.readouterr().out
    monkeypatch.setattr(queue, "WORK", tmp_path / "another machine")
    given = tmp_path / "out" / "rehearsal.tar"
    with tarfile.open(given) as tar:
        written = ("gpu_tests.xml", "vgg.json")
        names = {f"results/benchmarks/{name}{end}" for name in written for end in ("", ".done")}
        assert names == set(tar.getnames())
        assert b"on_a_gpu" in tar.extractfile("results/benchmarks/gpu_tests.xml").read()
    monkeypatch.setattr(queue, "run", None)
    monkeypatch.setattr(queue, "WORK", tmp_path / "another machine" / "work")
    shutil.copy(given, tmp_path / "given.tar")
    queue.prepare_store(tmp_path / "another machine" / "work" / "rehearsal", [tmp_path / "given.tar"])
    assert main(queue, monkeypatch, "--rehearse", "--output", tmp_path / "again", "--given", given) == 0
    assert capsys.readouterr().out.count("done before") == 2


def test_a_job_that_is_interrupted_records_what_ended_and_nothing_of_it_goes_on(tmp_path):
    """As Ctrl-C does it in a terminal: the script and its program hear of it, the job is told."""
    with tarfile.open(tmp_path / "nothing.tar", "w"):
        pass
    script = (
        "import sys, gpu_queue as q\nfrom pathlib import Path\n"
        f"q.WORK = Path({str(tmp_path / 'work')!r})\n"
        "q.JOBS = [q.Job('tuning', 'tuning', dict(task='digits', epochs=100_000, seeds=1)), q.Job('next', 'tuning')]\n"
        "sys.exit(q.main())"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parent)}
    process = subprocess.Popen(
        [sys.executable, "-c", script, "--output", tmp_path / "out", "--data", tmp_path / "nothing.tar"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 120
    script = psutil.Process(process.pid)
    while time.monotonic() < until and not kernels(script):
        time.sleep(0.2)
    family = script.children(recursive=True)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 130
    assert "tuning: interrupted after" in said and "next" not in said
    assert family and not alive(family)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"records.tar", "logs.tar.gz", "table.txt"}


def test_a_program_that_was_stopped_is_begun_anew_in_another_visit(queue, tmp_path, monkeypatch, capsys):
    (tmp_path / "slow.py").write_text("import sys, time\nopen(sys.argv[-1], 'w').write('{}')\ntime.sleep(60)\n")
    monkeypatch.setattr(queue, "source_of", lambda job: tmp_path / "slow.py")
    monkeypatch.setattr(queue, "JOBS", [queue.Job("slow", "slow.py", seconds=3)])
    for _ in range(2):
        (queue.WORK / "results" / "benchmarks").mkdir(parents=True, exist_ok=True)
        main(queue, monkeypatch, "--output", tmp_path / "out", "--data", tmp_path)
        said = capsys.readouterr().out
        assert "slow: stopped after" in said and "done before" not in said


@pytest.mark.parametrize(("only", "outcome"), [([], "done before"), (["slow"], "done")])
def test_a_job_that_was_done_is_run_again_where_it_is_named_alone(queue, tmp_path, monkeypatch, only, outcome):
    job = queue.Job("slow", "slow.py")
    monkeypatch.setattr(queue, "JOBS", [job])
    monkeypatch.setattr(queue, "source_of", lambda job: tmp_path)
    monkeypatch.setattr(queue, "run", lambda *_: ("slow", "done", "", 1.0))
    marker = queue.done_marker(queue.output_of(job, tmp_path, tmp_path))
    marker.parent.mkdir(parents=True)
    marker.touch()
    options, rows = SimpleNamespace(only=only, rehearse=False, output=tmp_path), []
    queue.run_jobs(rows, tmp_path, tmp_path, time.monotonic() + 1000, {}, options)
    assert [row[1] for row in rows] == [outcome]


def test_a_job_that_could_not_end_in_time_is_left_for_another_visit(queue, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(queue, "JOBS", [queue.Job("tuning", "tuning", dict(epochs=900), queue.TINY_MNIST, least=1e4)])
    assert main(queue, monkeypatch, "--output", tmp_path / "out", "--seconds", "60", "--data", tmp_path) == 0
    assert "no time left" in capsys.readouterr().out


def test_a_job_ends_in_time_for_the_visit_to_be_packed(queue, tmp_path, monkeypatch, capsys):
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(queue, "source_of", lambda job: tmp_path / "slow.py")
    monkeypatch.setattr(queue, "JOBS", [queue.Job("slow", "slow.py", seconds=600, least=1)])
    main(queue, monkeypatch, "--output", tmp_path / "out", "--seconds", queue.GRACE + 4, "--data", tmp_path)
    [row] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("slow  ")]
    assert row.split()[1] == "stopped" and float(row.split()[2]) < 10


def test_a_rehearsal_alone_has_tiny_settings(queue, tmp_path):
    job = queue.Job("tuning", "tuning", dict(epochs=900, seeds=5), dict(epochs=1))
    given = [" ".join(queue.command_of(job, tmp_path, tmp_path, rehearse)) for rehearse in (False, True)]
    assert "-p epochs=900 -p seeds=5 " in given[0] and "-p epochs=1 -p seeds=5 " in given[1]


def test_many_records_are_packed_into_files_below_the_limit(queue, tmp_path, monkeypatch):
    monkeypatch.setattr(queue, "TAR_BYTES", 100_000)
    store = tmp_path / "results"
    store.mkdir()
    for i, size in enumerate((40_000, 40_000, 49_000, 49_000, 40_000, 40_000)):
        (store / f"digits-logreg-{i}.parquet").write_bytes(os.urandom(size))
    (store / "digits-logreg-merged.parquet").symlink_to("away")  # as a file that is gone when it is read
    queue.pack(store, tmp_path, rehearse=False)
    packed = sorted(tmp_path.glob("records*.tar"))
    assert len(packed) == 4 and all(path.stat().st_size <= 100_000 for path in packed)
    assert [queue.tar_size([0] * n) for n in (1, 18, 19)] == [10_240, 10_240, 20_480]
    contents = []
    for path in packed:
        with tarfile.open(path) as tar:
            contents += tar.getnames()
    assert sorted(contents) == [f"results/digits-logreg-{i}.parquet" for i in range(6)]
    for i in range(5):
        (store / f"digits-logreg-{i}.parquet").unlink()
    queue.pack(store, tmp_path, rehearse=False)  # what was packed before is not unpacked again
    assert [path.name for path in tmp_path.glob("records*.tar")] == ["records.tar"]


def names_in(archive):
    with tarfile.open(archive) as tar:
        return tar.getnames()


def test_a_visit_packs_again_what_an_earlier_one_left_in_its_folder(queue, tmp_path, monkeypatch):
    earlier, out = tmp_path / "earlier", tmp_path / "out"
    Store(earlier).put([train(RunSpec(task="digits", method="sgd", alpha0=0.1, epochs=1))])
    out.mkdir()
    queue.pack(earlier, out, rehearse=False)
    packed = names_in(out / "records.tar")
    monkeypatch.setattr(queue, "WORK", tmp_path / "another machine")
    monkeypatch.setattr(queue, "JOBS", [])
    main(queue, monkeypatch, "--output", out, "--data", tmp_path)
    assert packed and names_in(out / "records.tar") == packed


def test_archives_of_data_sets_become_a_data_folder(queue, tmp_path, image_folder):
    first, second = tmp_path / "cifar.tar.xz", tmp_path / "mnist.tar.xz"
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    with tarfile.open(first, "w:xz") as tar:
        for part in ("train", "test"):
            tar.add(image_folder / "cifar10" / part, arcname=part)
    with tarfile.open(second, "w:xz") as tar:
        tar.add(tmp_path / "MNIST", arcname="MNIST")
    folder = queue.prepare_data([first, second], tmp_path / "work")
    assert (folder / "cifar10" / "train" / "class0" / "0000.png").is_file() and (folder / "MNIST" / "raw").is_dir()
    assert queue.prepare_data([image_folder], tmp_path / "work") == image_folder.resolve()
    whole = tmp_path / "whole.tar"
    for place, inside in (("cifar10", "train"), ("", "cifar10")):  # as `tar -C FOLDER .` makes them
        with tarfile.open(whole, "w") as tar:
            tar.add(image_folder / place, arcname=".")
        folder = queue.prepare_data([whole], tmp_path / f"in {inside}")
        assert (folder / "cifar10" / "train" / "class0" / "0000.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--output", "out", "--only", "vg"], "There is no job 'vg': the jobs are"),
        ([], "Name an --output."),
        (["--output", "README.md"], "--output is 'README.md', which is no folder: name one."),
        (["--output", "out", "--seconds", "0"], "--seconds is 0: give a positive number."),
        (["--output", "out", "--data", "no.tar"], "--data is 'no.tar', and there is no such file: name one that is"),
        (["--output", "out", "--data", "README.md"], "--data is 'README.md', which is no archive that tar can read"),
        (["--output", "out", "--data", "hdlib", "--data", "book"], "--data is given 2 times, as 'hdlib' too: give one"),
        (["--output", "out", "--given", "hdlib"], "--given is 'hdlib', which is no archive that tar can read: name"),
        (["--output", "out", "--wheels", "hdlib"], "--wheels is 'hdlib', where there are no .whl files: name the"),
        (["--wheels"], "name a folder: --wheels FOLDER"),
    ],
)
def test_the_script_refuses_what_it_cannot_run(arguments, sentence):
    environment = os.environ | {"PYTHON": sys.executable}
    done = subprocess.run(["bash", SCRIPT, *arguments], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode in (1, 2) and sentence in done.stderr and len(done.stderr.splitlines()) == 1
