"""Nothing is lost: records are whole or absent, a killed sweep resumes, writers do not collide."""

import dataclasses
import hashlib
import itertools
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from processes import alive

import hdlib
from hdlib.report.notebooks import is_told_in_a_sentence
from hdlib.runs import SpecError, Store, grid, sweep, train
from hdlib.runs.files import write_whole
from hdlib.runs.processes import process_context
from hdlib.runs.record import _commit, code_version
from hdlib.runs.sweep import SweepError, _Recorder, resolve_device, steps_per_epoch
from hdlib.runs.train import train_each
from hdlib.tasks.data import DataNotFoundError

LONG = 300_000  # epochs on the digits: minutes, and not yet enough for compiling to pay, which takes half of one


def specs(n=4, **fields):
    return grid(seeds=n, **(dict(task="digits", method="sgd_hd", alpha0=0.01, beta=1e-3, epochs=1) | fields))


def test_records_come_back_from_one_file_as_they_went_in(tmp_path, tiny):
    others = dict(epochs=3), dict(beta=0.0), dict(validate_every=0), dict(early=0, max_iterations=5), dict(alpha0=1e30)
    records = [train(tiny), *(train(tiny.with_(**fields)) for fields in others)]
    assert len(Store(tmp_path).put(records)) == 1
    for record, back in zip(records, Store(tmp_path).get([r.spec for r in records]), strict=True):
        assert (back.spec, back.outcome, back.iterations) == (record.spec, record.outcome, record.iterations)
        assert back.provenance == record.provenance
        pd.testing.assert_frame_equal(back.epochs, record.epochs, check_dtype=False, check_exact=True)
        pd.testing.assert_frame_equal(back.trace, record.trace, check_dtype=False, rtol=1e-6)


def test_histories_take_less_room_than_their_numbers(tmp_path):
    """Losses and learning rates of one run are alike in their first bytes, and hardly ever the same."""
    records = sweep(specs(10, epochs=100), tmp_path, jobs=1)
    numbers = sum(4 * 3 * len(record.trace) + 8 * 4 * len(record.epochs) for record in records)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 0.9 * numbers


def test_a_record_says_what_made_it(tiny):
    made = train(tiny).provenance
    assert {"code", "torch", "device", "threads", "seconds", "date", "data", "python", "hdlib"} <= set(made)
    assert "digits" in made["data"] and made["seconds"] > 0


def test_a_record_does_not_name_the_commit_of_a_repository_that_hdlib_is_only_installed_in(tmp_path, monkeypatch):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
    package = tmp_path / ".venv" / "runs"
    package.mkdir(parents=True)
    (package / "record.py").touch()
    monkeypatch.setattr(sys.modules["hdlib.runs.record"], "__file__", str(package / "record.py"))
    monkeypatch.setenv("HDLIB_COMMIT", "as told")
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "of the user's own"], check=True)
    assert _commit() == "as told"
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "with hdlib"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
    assert _commit() == "as told"  # as of a copy whose repository is older than its files
    monkeypatch.delenv("HDLIB_COMMIT")
    assert _commit() == head[:12]
    (package.parent / "notes.md").touch()
    assert _commit() == head[:12]  # which no run depends on
    (package / "more.py").touch()
    assert _commit() == f"{head[:12]}-dirty"


def test_a_record_names_the_code_that_trained_and_not_what_its_files_have_become(tmp_path):
    shutil.copytree(Path(hdlib.__file__).parent, tmp_path / "hdlib")
    code = (
        "from pathlib import Path; from hdlib.runs import record, stack\n"
        "Path(stack.__file__).write_text('edited while it trains')\n"
        "print(record.provenance('cpu', 1, 0.0, '')['code'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == code_version()


def test_a_second_sweep_trains_nothing(tmp_path):
    first = sweep(specs(), tmp_path, jobs=1)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    second = sweep(specs(), tmp_path, jobs=1)
    assert [r.provenance["date"] for r in first] == [r.provenance["date"] for r in second]
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert [r.spec for r in second] == specs()


def test_a_sweep_whose_records_are_removed_meanwhile_does_not_return_without_them(tmp_path, monkeypatch):
    def put_and_remove(self, records):
        paths = put(self, records)
        shutil.rmtree(tmp_path / "store")
        return paths

    put = Store.put
    monkeypatch.setattr(Store, "put", put_and_remove)
    with (
        pytest.warns(UserWarning, match="could not be merged"),
        pytest.raises(SweepError, match=r"^2 of 2 runs were recorded in '.*store' and are not there any more"),
    ):
        sweep(specs(2), tmp_path / "store", jobs=1)


def test_files_that_a_sweep_wrote_one_by_one_are_merged_at_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["hdlib.runs.sweep"], "RECORD_EVERY", 0.0)
    sweep(specs(3), tmp_path, jobs=1)  # each seed is a stack
    assert len(list(tmp_path.iterdir())) == 1 and len(Store(tmp_path).all()) == 3


def test_a_run_that_is_asked_for_twice_is_trained_once(tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(
        sys.modules["hdlib.runs.sweep"],
        "train_each",
        lambda specs, *how: trained.extend(specs) or train_each(specs, *how),
    )
    [alone] = specs(1, skip_nonfinite="step")  # in no stack
    assert [r.spec for r in sweep([alone, alone], tmp_path, jobs=1)] == [alone, alone] and trained == [alone]


def test_a_sweep_takes_its_runs_from_whatever_gives_them(tmp_path):
    assert [r.spec for r in sweep(iter(specs()), tmp_path, jobs=1)] == specs()


def test_runs_that_take_several_files_are_told_of_once(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["hdlib.runs.store"], "MAX_FILE_BYTES", 1)
    told = []
    recorder = _Recorder(Store(tmp_path), lambda *news: told.append(news))
    recorder([train(spec) for spec in specs(3, epochs=5, target_loss=2.0)])
    recorder.flush()
    paths, runs, unused = zip(*told, strict=True)
    assert sorted(paths) == sorted(tmp_path.iterdir()) and len(paths) == 3
    assert sum(runs) == 3 and sum(unused) == sum(60 - record.iterations for record in Store(tmp_path).all()) > 0


def test_processes_give_the_same_records_as_one_process(tmp_path):
    alone, together = sweep(specs(), tmp_path / "a", jobs=1), sweep(specs(), tmp_path / "b", jobs=2)
    for a, b in zip(alone, together, strict=True):
        pd.testing.assert_frame_equal(a.trace, b.trace)
    assert len(list((tmp_path / "b").iterdir())) == 1  # merged into one file


def test_a_killed_sweep_keeps_what_was_finished_and_resumes(tmp_path):
    code = (
        "from hdlib.runs import grid, sweep\n"
        "sweep(grid(seeds=400, task='digits', method='sgd_hd', alpha0=0.01, beta=1e-3, epochs=3),"
        f" {str(tmp_path)!r}, jobs=1)"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    while len(list(tmp_path.glob("*.parquet"))) < 3:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = Store(tmp_path).keys()
    assert 3 <= len(kept) < 400
    dates = {r.spec.key: r.provenance["date"] for r in Store(tmp_path).all()}
    wanted = specs(len(kept) + 2, epochs=3)
    records = sweep(wanted, tmp_path, jobs=1)
    assert [r.spec for r in records] == wanted
    assert dates == {r.spec.key: r.provenance["date"] for r in Store(tmp_path).all() if r.spec.key in kept}


def test_a_file_that_many_write_is_whole_whenever_it_is_read(tmp_path):
    """As if in containers that share a folder: all writers have the same process number."""
    path = tmp_path / "file"
    contents = [bytes([i]) * 100_000 for i in range(3)]
    write_whole(path, contents[0])
    with ThreadPoolExecutor() as pool:
        writers = [pool.submit(lambda c: [write_whole(path, c) for _ in range(50)], content) for content in contents]
        while not all(writer.done() for writer in writers):
            assert path.read_bytes() in contents
    assert [writer.exception() for writer in writers] == [None] * 3
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("dates", [("2026-01-01", "2026-01-02"), ("2026-01-02", "2026-01-01")])
def test_of_two_records_of_a_run_the_later_one_counts(tmp_path, tiny, dates):
    made = train(tiny)
    for name, date in zip("ab", dates, strict=True):
        Store(tmp_path / name).put([dataclasses.replace(made, provenance=made.provenance | {"date": date})])
        shutil.copy(next((tmp_path / name).iterdir()), tmp_path)
    [record] = Store(tmp_path).all()
    assert record.provenance["date"] == "2026-01-02"


def test_the_records_of_one_model_are_read_from_its_files_alone(tmp_path):
    mlp, logreg = (train(specs(1, model=model)[0]) for model in ("mlp", "logreg"))
    store = Store(tmp_path)
    store.put([mlp])
    [other] = store.put([logreg])
    assert len(store.all()) == 2
    other.write_bytes(b"damaged")
    with warnings.catch_warnings(action="error"):
        assert [record.spec for record in store.all("mlp")] == [mlp.spec]
        assert store.all("vgg") == []
    with pytest.raises(SpecError, match=r"model is 'mpl': it must be one of 'logreg', 'mlp', "):
        store.all("mpl")


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_record_is_named_and_trained_again(tmp_path, tiny, damage):
    sweep([tiny], tmp_path, jobs=1)
    [path] = tmp_path.glob("*.parquet")
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    else:
        content[len(content) // 3] ^= 0xFF
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=path.name):
        assert Store(tmp_path).all() == []
    with pytest.warns(UserWarning, match=path.name):
        records = sweep([tiny], tmp_path, jobs=1)
    assert len(records) == 1


def test_a_record_whose_file_has_another_name_is_not_only_called_damaged(tmp_path, tiny):
    [path] = Store(tmp_path).put([train(tiny)])
    path.rename(tmp_path / "mine.parquet")
    with pytest.warns(UserWarning, match=r"mine.parquet cannot be used .*not what its name says: damaged, or renamed"):
        assert Store(tmp_path).all() == []


def test_a_record_that_may_not_be_read_is_not_called_damaged(tmp_path, tiny, monkeypatch):
    [path] = Store(tmp_path).put([train(tiny)])

    def refused(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(sys.modules["hdlib.runs.store"], "_keys", refused)  # root may read everything
    with pytest.warns(UserWarning, match=f"{path.name} may not be read by you: make it readable"):
        assert Store(tmp_path).all() == []


def test_an_interrupted_write_leaves_no_record(tmp_path, tiny, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(SpecError, match=r"nothing can be written \(disk full\)"):
        Store(tmp_path).put([train(tiny)])
    assert not list(tmp_path.iterdir())


@contextmanager
def files_of_at_most(size):
    """Let the system refuse to write larger files, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_store_that_cannot_be_written_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["hdlib.runs.sweep"], "_train_missing", lambda *_: pytest.fail("it was trained"))
    (tmp_path / "file").touch()
    with pytest.raises(SpecError, match=r"store is '.*/file/store', where nothing can be written \(Not a directory\)"):
        sweep(specs(), tmp_path / "file" / "store")
    with files_of_at_most(50_000), pytest.raises(SpecError, match=r"\(File too large\): name another folder"):
        sweep(specs(), tmp_path / "full")
    assert not list((tmp_path / "full").iterdir())


def test_records_that_cannot_be_merged_are_kept_as_they_are(tmp_path):
    store = Store(tmp_path)
    paths = [path for spec in specs(2) for path in store.put([train(spec)])]
    with files_of_at_most(1000), pytest.warns(UserWarning, match="The records are safe, but"):
        store.compact(paths)
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_records_are_shared_out_among_files_below_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["hdlib.runs.store"], "MAX_FILE_BYTES", 15_000)
    paths = Store(tmp_path).put([train(spec) for spec in specs(7)])
    assert len(paths) > 2 and max(path.stat().st_size for path in paths) < 15_000
    assert len(Store(tmp_path).all()) == 7


def test_a_files_name_says_of_which_task_and_model_its_records_are(tmp_path):
    records = [train(spec) for spec in (*specs(2), *specs(2, model="mlp", width=4))]
    Store(tmp_path / "together").put(records)
    merged = Store(tmp_path / "merged")
    merged.compact([path for record in records for path in merged.put([record])])
    for folder in ("together", "merged"):
        found = {path.name.rpartition("-")[0]: path for path in (tmp_path / folder).iterdir()}
        assert set(found) == {"digits-logreg", "digits-mlp"}
        for name, path in found.items():
            keys = pq.read_table(path).column("key").to_pylist()
            assert sorted(keys) == sorted(r.spec.key for r in records if name.endswith(r.spec.model))


def test_a_record_under_another_runs_key_is_left_out(tmp_path):
    [spec] = specs(1)
    Store(tmp_path).put([train(spec)])
    path = rewritten(next(tmp_path.iterdir()), weight_decay=spec.weight_decay)  # which the key leaves out
    with pytest.warns(UserWarning, match=rf"{path.name} holds 1 records .* the run's key is {spec.key} and not"):
        assert Store(tmp_path).all() == []


def test_forgotten_records_are_trained_again_and_the_others_stay_as_they_are(tmp_path):
    store, gone = Store(tmp_path), specs(5)[:3]
    store.put([train(spec) for spec in specs(4)])
    [untouched] = store.put([train(spec) for spec in specs(5)[4:]])
    others = {record.spec.key: record for record in store.get(specs(5)[3:])}
    store.forget(spec.key for spec in gone)
    assert store.keys() == set(others) and len(list(tmp_path.iterdir())) == 2 and untouched.exists()
    for record in Store(tmp_path).all():
        assert record.provenance == others[record.spec.key].provenance
        pd.testing.assert_frame_equal(record.trace, others[record.spec.key].trace)
    assert [record.spec for record in sweep(specs(5), tmp_path, jobs=1)] == specs(5)
    store.forget(store.keys())
    assert not list(tmp_path.iterdir())


def test_forgetting_leaves_the_records_of_another_version(tmp_path):
    Store(tmp_path).put([train(spec) for spec in specs(2)])
    path = rewritten(next(tmp_path.iterdir()), method="lion_hd")
    kept = pq.read_table(path).to_pylist()[:1]
    with pytest.warns(UserWarning, match="another version"):
        [known] = Store(tmp_path).all()
    Store(tmp_path).forget([known.spec.key])
    [path] = tmp_path.iterdir()
    assert pq.read_table(path).to_pylist() == kept


def test_what_cannot_be_written_is_not_forgotten(tmp_path):
    store = Store(tmp_path)
    store.put([train(spec) for spec in specs(2)])
    with files_of_at_most(1000), pytest.raises(SpecError, match="nothing can be written"):
        store.forget([specs()[0].key])
    assert len(Store(tmp_path).all()) == 2


@pytest.mark.parametrize("name", ["", "/"])
def test_a_store_without_a_name_is_refused(name):
    with pytest.raises(SpecError, match=f"store is '{name}': name a folder"):
        Store(name)


def test_a_store_may_be_this_folder_or_in_the_home_folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(sweep(specs(1), ".", jobs=1)) == len(sweep(specs(1), "~/here", jobs=1)) == 1
    assert len(list((tmp_path / "here").iterdir())) == 1


def rewritten(path, **fields):
    """Change a file's first run into one that has other fields, as another version may have written it."""
    table = pq.read_table(path)
    rows = table.to_pylist()
    text = json.dumps(json.loads(rows[0]["spec"]) | fields, sort_keys=True)
    rows[0] |= {"spec": text, "key": hashlib.sha256(text.encode()).hexdigest()[:16]}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, table.schema), sink)
    content = sink.getvalue().to_pybytes()
    path.unlink()
    path = path.with_name(f"digits-logreg-{hashlib.sha256(content).hexdigest()[:16]}.parquet")
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("fields", [dict(label_smoothing=0.1), dict(method="lion_hd")])
def test_a_record_of_another_version_is_named_and_the_others_are_read(tmp_path, fields):
    sweep(specs(3), tmp_path, jobs=1)
    [path] = tmp_path.iterdir()
    path = rewritten(path, **fields)
    with pytest.warns(UserWarning, match=rf"{path.name} holds 1 records of another version .*{next(iter(fields))}"):
        assert len(Store(tmp_path).all()) == 2


def test_a_file_that_lacks_a_column_is_named_and_its_runs_are_trained_again(tmp_path):
    sweep(specs(1), tmp_path, jobs=1)
    [path] = tmp_path.iterdir()
    sink = pa.BufferOutputStream()
    pq.write_table(pq.read_table(path).drop_columns(["trace.hypergrad"]), sink)
    content = sink.getvalue().to_pybytes()
    path.unlink()
    path = tmp_path / f"digits-logreg-{hashlib.sha256(content).hexdigest()[:16]}.parquet"
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=path.name):
        assert len(sweep(specs(1), tmp_path, jobs=1)) == 1


def _put_and_merge(folder):
    """Write records one by one and merge them, over and over: at any time each is in some file."""
    store = Store(folder)
    records = [train(spec) for spec in specs(5)]
    old = []
    for turn in itertools.count():
        paths = [path for r in records for path in store.put([dataclasses.replace(r, provenance={"turn": turn})])]
        for path in old:
            path.unlink()
        store.compact(paths)
        old = list(store.folder.glob("*.parquet"))


def test_nothing_is_missed_while_another_process_writes_and_merges(tmp_path):
    writer = multiprocessing.get_context("spawn").Process(target=_put_and_merge, args=(str(tmp_path),))
    writer.start()
    try:
        while len(Store(tmp_path).keys()) < 5:
            assert writer.is_alive()
            time.sleep(0.05)
        until = time.monotonic() + 5
        while time.monotonic() < until:
            assert len(Store(tmp_path).keys()) == len(Store(tmp_path).all()) == len(Store(tmp_path).get(specs(5))) == 5
        assert writer.is_alive()
    finally:
        writer.kill()
        writer.join()


def training(process):
    """Return the processes that train for one: what they are forked from is its child, or they themselves are."""
    children = process.children()
    if sys.platform != "linux":
        return children[1:]  # the first one keeps track of what they share
    started = []
    for child in children:
        with suppress(psutil.NoSuchProcess):
            started += child.children()
    return started


def interrupt_all(process, started):
    """Interrupt a process and those that it started, as a terminal does."""
    for one in [*process.children(), *started, process]:
        with suppress(psutil.NoSuchProcess):
            one.send_signal(signal.SIGINT)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere processes start anew")
def test_a_process_that_is_to_train_has_torch_when_it_starts_and_reads_hdlib_itself():
    found = "import sys; sys.exit(10 * ('torch' in sys.modules) + ('hdlib' in sys.modules))"
    process = process_context().Process(target=exec, args=(found,))
    process.start()
    process.join()
    assert process.exitcode == 10


@pytest.fixture
def long_sweep(tmp_path, request):
    """Return a process that trains two runs in two others, and these; one run is short and recorded, unless told."""
    epochs = getattr(request, "param", [1, LONG])
    code = (
        "import sys\n"
        "from hdlib.runs import grid, sweep\n"
        "sys.modules['hdlib.runs.sweep'].RECORD_EVERY = 0.2  # in the processes that it starts, too\n"
        "if __name__ == '__main__':\n"
        "    import faulthandler; faulthandler.dump_traceback_later(100, exit=True)  # one that hangs says where\n"
        f"    sweep(grid(seeds=2, task='digits', method='sgd_hd', alpha0=0.01, beta=1e-3, epochs={epochs}),"
        f" {str(tmp_path / 'store')!r}, jobs=2)"
    )
    (tmp_path / "long.py").write_text(code)
    process = psutil.Popen([sys.executable, tmp_path / "long.py"], stderr=subprocess.PIPE, text=True)
    while len(started := training(process)) < 2 or (1 in epochs and not list(tmp_path.glob("store/*.parquet"))):
        assert process.poll() is None
        time.sleep(0.1)
    yield process, started
    for one in [process, *started]:
        with suppress(psutil.NoSuchProcess):
            one.kill()


def test_training_ends_with_the_process_that_asked_for_it(long_sweep):
    process, started = long_sweep
    process.kill()
    process.wait()
    _, left = psutil.wait_procs(started, timeout=10)
    assert not left


@pytest.mark.parametrize("long_sweep", [[1, LONG], [LONG, LONG + 1]], indirect=True, ids=["later", "at once"])
def test_a_sweep_whose_worker_is_killed_says_what_to_do_and_keeps_what_was_finished(tmp_path, long_sweep):
    process, started = long_sweep
    kept = Store(tmp_path / "store").keys()
    started[-1].kill()
    _, told = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "\nhdlib.runs.sweep.SweepError: A training process was killed, perhaps for want of memory" in told
    assert is_told_in_a_sentence("SweepError")
    assert kept <= Store(tmp_path / "store").keys()
    assert not alive(started)


def test_a_run_is_recorded_while_the_others_of_its_stack_go_on(tmp_path, monkeypatch):
    train(specs(1)[0])  # so that what follows starts at once
    monkeypatch.setattr(sys.modules["hdlib.runs.sweep"], "RECORD_EVERY", 1.0)
    wanted = specs(1, epochs=[1, 1500])
    training = threading.Thread(target=sweep, args=(wanted, tmp_path), kwargs=dict(jobs=1))
    training.start()
    while not (kept := Store(tmp_path).keys()):
        time.sleep(0.1)
    assert training.is_alive() and kept == {wanted[0].key}
    training.join()


def test_an_error_in_a_training_process_is_told_as_it_is_here(tmp_path, monkeypatch, tiny_vgg):
    (tmp_path / "cifar10" / "train").mkdir(parents=True)
    monkeypatch.setenv("HDLIB_DATA", str(tmp_path))
    told = []
    for jobs in 1, 2:
        with pytest.raises(DataNotFoundError, match="The image folder of CIFAR-10 cannot be read") as error:
            sweep([tiny_vgg.with_(seed=seed) for seed in range(2)], tmp_path / "store", jobs=jobs)
        told.append(str(error.value))
    assert told[0] == told[1]
    assert "in _cifar10" in error.value.__notes__[0]  # where it came


def test_a_script_that_starts_itself_again_is_told_what_it_lacks(tmp_path):
    (tmp_path / "script.py").write_text(
        "from hdlib.runs import grid, sweep\n"
        f"sweep(grid(seeds=2, task='digits', method='sgd', alpha0=0.01, epochs=1), {str(tmp_path / 'store')!r}, jobs=2)"
    )
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("or with jobs=1.") and "below `if __name__ == '__main__':`" in done.stderr


@pytest.mark.parametrize("long_sweep", [[1, LONG]], indirect=True)
def test_an_interrupted_sweep_ends_its_processes_and_keeps_what_was_finished(tmp_path, long_sweep):
    """As a notebook does, which interrupts its kernel alone, and a terminal, which interrupts all its processes."""
    process, started = long_sweep
    store = Store(tmp_path / "store")
    while len(store.keys()) < 2:
        time.sleep(0.1)
    interrupt_all(process, started)
    _, told = process.communicate(timeout=60)
    assert told.endswith("KeyboardInterrupt\n") and told.count("Traceback") == 1
    assert len(store.keys()) == 2
    assert len(list(store.folder.iterdir())) == 1
    assert not alive(started)


@pytest.mark.parametrize("when", [1, 2])
def test_an_interruption_that_comes_with_a_start_leaves_no_process(tmp_path, when):
    code = (
        "import os, signal\n"
        "from hdlib.runs import grid, sweep\n"
        "from hdlib.runs.processes import process_context\n"
        "if __name__ == '__main__':\n"
        "    import faulthandler; faulthandler.dump_traceback_later(100, exit=True)\n"
        "    kind, started = process_context().Process, []\n"
        "    real = kind.start\n"
        "    def start(self):\n"
        "        real(self)\n"
        "        started.append(self)\n"
        f"        if len(started) == {when}: os.kill(os.getpid(), signal.SIGINT)\n"
        "    kind.start = start\n"
        "    specs = grid(seeds=2, task='digits', method='sgd_hd', alpha0=0.01, beta=1e-3, epochs=10**6)\n"
        "    try:\n"
        f"        sweep(specs, {str(tmp_path / 'store')!r}, jobs=2)\n"
        "    except KeyboardInterrupt:\n"
        "        [one.join(5) for one in started]\n"
        "        print('interrupted', any(one.is_alive() for one in started))\n"
    )
    (tmp_path / "start.py").write_text(code)
    done = subprocess.run([sys.executable, tmp_path / "start.py"], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("interrupted False\n", "", 0)


@pytest.mark.parametrize("long_sweep", [[LONG, LONG + 1]], indirect=True, ids=["at once"])
def test_an_interruption_while_processes_still_start_is_told_once(long_sweep):
    process, started = long_sweep
    interrupt_all(process, started)
    _, told = process.communicate(timeout=60)
    assert told.endswith("KeyboardInterrupt\n") and told.count("Traceback") == 1
    assert not alive(started)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(device="cuda"), "no GPU"),
        (dict(device="tpu"), "must be 'auto', 'cpu' or"),
        (dict(device="cudaxyz"), "must be 'auto', 'cpu' or"),
        (dict(device=None), "device is 'None': it must be 'auto', 'cpu' or"),
        (dict(device="cuda:first"), "must be 'auto', 'cpu' or"),
        (dict(jobs=0), "jobs is 0"),
        (dict(jobs="2"), "jobs is '2': it must be a whole number"),
    ],
)
def test_what_cannot_run_is_refused_before_training(tmp_path, arguments, message, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match=message):
        sweep(specs(), tmp_path, **arguments)
    assert not list(tmp_path.iterdir())
    assert resolve_device("auto") == "cpu"


def test_one_run_is_a_sweep_too(tmp_path):
    [spec] = specs(1)
    assert [record.spec for record in sweep(spec, tmp_path, jobs=1)] == [spec]


def test_a_device_may_be_torchs_own(tmp_path):
    assert len(sweep(specs(1), tmp_path, device=torch.device("cpu"), jobs=1)) == 1


def test_a_gpu_beyond_the_last_is_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert resolve_device("cuda:0") == "cuda:0"
    with pytest.raises(SpecError, match="device is 'cuda:1' but the last GPU is cuda:0"):
        resolve_device("cuda:1")


def test_a_precision_that_the_device_lacks_is_refused_before_other_runs_are_trained(tmp_path, tiny_vgg):
    runs = [*specs(), tiny_vgg.with_(precision="tf32")]
    with pytest.raises(SpecError, match="precision is 'tf32' but the device is 'cpu'"):
        sweep(runs, tmp_path / "store", device="cpu")
    assert not (tmp_path / "store").exists()


def test_a_missing_data_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HDLIB_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"HDLIB_DATA names .*nowhere"):
        sweep(specs(task="mnist"), tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_store_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="name a folder"):
        Store(tmp_path / "file")


def test_no_bar_where_there_is_no_terminal(tmp_path, capfd):
    sweep(specs(1), tmp_path, jobs=1)
    assert capfd.readouterr().err == ""
    sweep(specs(2), tmp_path, jobs=1, progress=True)  # unless it is asked for
    assert "1 runs" in capfd.readouterr().err


def test_a_bar_counts_the_runs_that_are_left_and_no_iterations_that_diverged_ones_did_not_take(tmp_path, monkeypatch):
    module, bars = sys.modules["hdlib.runs.sweep"], []
    make = module.progress_bar
    monkeypatch.setattr(module, "progress_bar", lambda *given, **how: bars.append(make(*given, **how)) or bars[-1])
    records = sweep([*specs(2), *specs(2, alpha0=1e30, epochs=9)], tmp_path, jobs=1, progress=True)
    assert [record.outcome for record in records] == ["finished"] * 2 + ["diverged"] * 2
    taken = sum(record.iterations for record in records)
    assert (bars[0].n, bars[0].total, bars[0].desc) == (taken, taken, "0 runs left")


def test_where_there_is_no_terminal_a_line_now_and_then_says_how_far_a_sweep_is(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(sys.modules["hdlib.runs.sweep"], "TELL_EVERY", 0.01)
    sweep(specs(3, epochs=200), tmp_path, jobs=1)
    lines = capfd.readouterr().err.splitlines()
    told = re.compile(r"\d runs(?: left)?: \d+ % after [\d:]+, [\d:?]+ left")
    assert lines and [line for line in lines if not told.fullmatch(line)] == []
    sweep(specs(4, epochs=200), tmp_path, jobs=1, progress=False)
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="this system does not name other processes' files")
def test_a_notebooks_kernel_tells_its_progress_in_the_log_of_the_command_that_executes_it(tmp_path):
    kernel = tmp_path / "kernel.py"
    kernel.write_text(
        "import sys\n"
        "from hdlib.runs import sweep as _\n"
        "module = sys.modules['hdlib.runs.sweep']\n"
        "module.TELL_EVERY = 0\n"
        "class Stream:\n    __module__ = 'ipykernel.iostream'\n    flush = lambda self: None\n"
        "sys.stderr = Stream()\n"
        "with module.progress_bar(None, total=4, desc='2 runs') as bar:\n    bar.update(3)\n"
    )
    command = (
        "import subprocess, sys; from hdlib import cli; cli.show_bars(); print('first', flush=True); "
        f"subprocess.run([sys.executable, {str(kernel)!r}], check=True); print('last')"
    )
    with (tmp_path / "log").open("w") as log:
        done = subprocess.run([sys.executable, "-c", command], stdout=log, stderr=log, check=False)
    lines = (tmp_path / "log").read_text().splitlines()
    assert done.returncode == 0, lines
    assert (lines[0], lines[-1]) == ("first", "last") and "2 runs: 75 % after 00:00" in lines[-2]


def test_processes_are_started_for_much_work_alone(tmp_path, monkeypatch):
    module, asked = sys.modules["hdlib.runs.sweep"], []
    monkeypatch.setattr(module, "usable_cores", lambda: 7)
    monkeypatch.setattr(module, "_train_missing", lambda specs, store, device, jobs, *_: asked.append(jobs))
    for wanted in (specs(), specs(epochs=100_000)):
        with pytest.raises(SweepError):
            sweep(wanted, tmp_path, device="cpu")
    assert asked == [1, 7]


def test_an_epochs_last_minibatch_may_be_smaller_and_no_minibatch_is_empty():
    assert steps_per_epoch() == 469 and steps_per_epoch("digits", 500) == 3
    assert steps_per_epoch("cifar10", 64, train_images=129) == 3
    with pytest.raises(SpecError, match="batch_size is 0: it must be at least 1"):
        steps_per_epoch("digits", 0)
