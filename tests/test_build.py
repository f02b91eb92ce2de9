"""The pages of a book are executed several at a time; one trains at a time, and what ends one ends all."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from processes import alive

from hdlib.report import pages
from hdlib.runs import Store, grid, sweep
from hdlib.runs.processes import in_turn
from hdlib.runs.train import train

PAGE = """---
kernelspec: {display_name: Python 3, language: python, name: python3}
---
```{code-cell}
:tags: [parameters]
name = ""
waits_for = ""
fails = False
```

```{code-cell}
import os, time
from pathlib import Path
from hdlib.report.parameters import ParameterError

Path(f"{name}.begun").write_text(str(os.getpid()))
until = time.monotonic() + 100
while waits_for and not (Path(f"{waits_for}.begun").exists() and Path(f"{waits_for}.begun").read_text()):
    assert time.monotonic() < until, f"{waits_for} does not begin"
    time.sleep(0.05)
if fails:
    raise ParameterError("fails is True: it must be False.")
```
"""
PROGRAM = """
from pathlib import Path
from hdlib.report import pages

if __name__ == "__main__":
    pages.build(Path(), jobs=2)
"""


@pytest.fixture
def book(tmp_path):
    """Return what makes a project whose pages have these parameters."""
    for folder in ("book", "notebooks"):
        (tmp_path / folder).mkdir()
    (tmp_path / "notebooks" / "note.md").write_text(PAGE)

    def make(**listed):
        entries = [f"{name}: {{notebook: note, parameters: {{name: {name}, {own}}}}}" for name, own in listed.items()]
        (tmp_path / "book" / "pages.yml").write_text("\n".join(entries))
        return tmp_path

    return make


@pytest.fixture
def sphinx(monkeypatch):
    """Leave out what assembles the pages; return the folders in which it was to."""
    folders, run = [], subprocess.run

    def instead(command, **options):
        if "jupyter-book" not in str(command[0]):
            return run(command, **options)
        folders.append(options["cwd"])
        (options["cwd"] / "_build" / "html").mkdir(parents=True)
        (options["cwd"] / "_build" / "html" / "index.html").touch()
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(pages.subprocess, "run", instead)
    return folders


def test_pages_are_executed_at_one_time_and_told_of_when_they_are_made(book, sphinx, monkeypatch):
    root, said = book(first="waits_for: second", second="waits_for: first", third=""), []
    monkeypatch.chdir(root / "book")
    pages.build(root, said.append, jobs=2)
    assert [line.partition(":")[0] for line in said] == ["1 of 3", "2 of 3", "3 of 3"]
    assert {line.split()[3] for line in said} == {"first,", "second,", "third,"}
    assert sphinx == [root] and Path.cwd() == root / "book" and "HDLIB_TURN" not in os.environ


def test_one_page_at_a_time_where_one_is_asked_for(book, sphinx):
    said = []
    pages.build(book(third="", first="", second=""), said.append, jobs=1)
    assert [line.split()[3] for line in said] == ["third,", "first,", "second,"]
    with pytest.raises(pages.PageError, match=r"jobs is 0: it must be at least 1\."):
        pages.build(book(first=""), jobs=0)


def test_a_page_that_cannot_be_made_ends_the_others(book, sphinx):
    root = book(first="waits_for: nobody", second="waits_for: first, fails: true", third="")
    began = time.monotonic()
    with pytest.raises(pages.PageError, match=r"The page second was not made: fails is True: it must be False\."):
        pages.build(root, jobs=2)
    assert time.monotonic() - began < 90  # the first would wait for longer
    assert {path.name for path in (root / "book").glob("*.ipynb")} == {"first.failed.ipynb", "second.failed.ipynb"}
    assert not (root / "third.begun").exists() and not sphinx


def test_an_interruption_ends_all_pages(book):
    root = book(first="waits_for: nobody", second="waits_for: nobody", third="")
    (root / "program.py").write_text(PROGRAM)
    process = subprocess.Popen([sys.executable, "program.py"], cwd=root, stderr=subprocess.PIPE, text=True)
    begun = [root / "first.begun", root / "second.begun"]
    while not all(path.exists() and path.read_text() for path in begun):
        assert process.poll() is None
        time.sleep(0.1)
    kernels = [psutil.Process(int(path.read_text())) for path in begun]
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert told.endswith("KeyboardInterrupt\n") and not alive(kernels)
    assert {path.name for path in (root / "book").glob("*.ipynb")} == {"first.failed.ipynb", "second.failed.ipynb"}
    assert not (root / "third.begun").exists()


def test_processes_with_one_lock_file_train_in_turn(tmp_path, monkeypatch):
    monkeypatch.setenv("HDLIB_TURN", str(tmp_path / "turn"))
    code = "from hdlib.runs.processes import in_turn\nprint(1, flush=True)\nwith in_turn(): print(2, flush=True)"
    with in_turn():
        other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert other.stdout.readline() == "1\n"
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(timeout=1)
    assert other.communicate(timeout=60)[0] == "2\n"


def test_what_another_process_trained_meanwhile_is_not_trained_again(tmp_path, monkeypatch):
    specs = grid(seeds=2, task="digits", method="sgd", alpha0=0.01, epochs=1)

    @contextmanager
    def after_another():
        Store(tmp_path).put([train(spec) for spec in specs])
        yield

    of_sweep = sys.modules["hdlib.runs.sweep"]
    monkeypatch.setattr(of_sweep, "in_turn", after_another)
    monkeypatch.setattr(of_sweep, "_train_missing", None)
    assert [record.spec for record in sweep(specs, tmp_path, jobs=1)] == specs
