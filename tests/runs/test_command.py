"""What a person at the command line sees of runs: a bar while they train, and a sentence when they are refused."""

import fcntl
import os
import pty
import struct
import sys
import termios
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hdlib.cli import app
from hdlib.report.parameters import (
    ParameterError,
    assignments,
    read_as,
    refusal,
    refuse_fewer,
    refuse_more,
    refuse_text,
    refuse_unknown,
)
from hdlib.runs import Store, grid, train

NOTEBOOK = """---
kernelspec: {display_name: Python 3, language: python, name: python3}
---
```{code-cell}
:tags: [parameters]
store = "store"
```

```{code-cell}
from hdlib.runs import grid, sweep
len(sweep(grid(seeds=3, task="digits", method="sgd", alpha0=0.1, epochs=300), store, device="cpu", jobs=1))
```
"""


def test_a_run_in_a_terminal_shows_its_bar_there_and_not_in_the_notebook(tmp_path):
    for folder in ("book", "notebooks"):
        (tmp_path / folder).mkdir()
    (tmp_path / "book" / "pages.yml").write_text("page: {notebook: note}")
    (tmp_path / "notebooks" / "note.md").write_text(NOTEBOOK)
    command = [str(Path(sys.executable).with_name("hdlib")), "run", "notebooks/note.md", "-o", "out.ipynb"]
    command += ["-p", "store=misspelt"]
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        os.execv(command[0], command)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    shown = b""
    while True:
        try:
            shown += os.read(terminal, 65536)
        except OSError:  # its other end is closed
            break
    assert os.waitpid(child, 0)[1] == 0, shown
    assert b"store is 'misspelt', a new folder: no run is recorded in it." in shown
    assert b"3 runs" in shown and b"it/s" in shown
    text = (tmp_path / "out.ipynb").read_text()
    assert "it/s" not in text and "stderr" not in text


@pytest.fixture
def recorded(tmp_path):
    """A store with four runs of two rules, and a function that gives `hdlib forget` arguments and keys to it."""
    specs = grid(task="digits", method="sgd_hd", alpha0=0.01, beta=["auto", 1e-3], epochs=1, seeds=2)
    by = [{"commit": "0123456789ab", "date": f"2026-01-0{1 + spec.seed}T03:04:05+00:00"} for spec in specs]
    Store(tmp_path).put([replace(train(spec), provenance=own) for spec, own in zip(specs, by, strict=True)])

    def forget(*arguments, keys=""):
        arguments = ["forget", "--store", str(tmp_path), *arguments]
        return CliRunner().invoke(app, arguments, input=keys)

    return Store(tmp_path), forget


def test_forgetting_runs_says_how_many_and_whose_and_asks(recorded):
    store, forget = recorded
    refused = forget("-p", "rule=auto", keys="n\n")
    assert refused.exit_code == 1 and len(store.keys()) == 4
    assert "They are of logreg with sgd_hd, beta auto (2)." in refused.output
    assert "2 of 4 records" in refused.output and "0123456789ab: 2, the last of 2026-01-02" in refused.output
    done = forget("-p", "rule=auto", "-p", "commit=0123456789ab", keys="y\n")
    assert done.exit_code == 0 and done.output.endswith("Forgotten: 2 records.\n")
    assert [record.spec.rule for record in store.all()] == ["additive", "additive"]
    assert forget("-p", "seed=1", "-p", "beta=1e-3", "--yes").exit_code == 0
    assert [record.spec.seed for record in store.all()] == [0]


def test_runs_are_forgotten_by_what_their_pages_call_them(recorded):
    store, forget = recorded
    unknown = replace(store.all()[0], provenance={"commit": None}, outcome="diverged")
    store.forget([unknown.spec.key])
    store.put([unknown])
    digits = replace(store.all()[1], provenance={"commit": "123456789012", "date": "2025-06-07"})
    store.put([replace(digits, spec=digits.spec.with_(seed=7))])
    asked = forget("-p", "task=digits", keys="n\n").output
    assert "0123456789ab: 3, the last of 2026-01-02" in asked and "123456789012: 1, the last of 2025-06-07" in asked
    assert "Forgotten: 1 records" in forget("-p", "commit=123456789012", "--yes").output

    done = forget("-p", "commit=unknown", "-p", "outcome=diverged", "--yes")
    assert "unknown: 1, the last of an unknown date" in done.output and len(store.keys()) == 3
    left = sum(record.spec.rule == "auto" for record in store.all())
    assert left and f"Forgotten: {left} records" in forget("-p", "beta=auto", "--yes").output
    assert {record.spec.rule for record in store.all()} == {"additive"}


def test_a_store_in_the_home_folder_may_be_named_by_a_tilde(recorded, monkeypatch):
    store, _ = recorded
    monkeypatch.setenv("HOME", str(store.folder.parent))
    given = ["forget", f"--store=~/{store.folder.name}", "-p", "beta=auto", "--yes"]
    assert "Forgotten: 2 records" in CliRunner().invoke(app, given).output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-p", "rule"], "-p 'rule' has no value: write -p rule=VALUE."),
        (
            ["-p", "lr=0.1"],
            "is not a field of a run or of what made it: did you mean alpha0? The fields are task, model",
        ),
        (["-p", "zz=0.1"], "zz is not a field of a run or of what made it: the fields are task, model, width"),
        (["-p", "beta=1"], "has beta=1."),  # which is how the automatic rule's is recorded
        (["-p", "seed=1", "-p", "seed=2"], "seed is given twice, as '1' and '2': give one of them."),
        (["-p", "rule=auto", "-p", "seed=7"], "has rule=auto and seed=7."),
        (["-p", "rule=auto", "--store", "nope"], "store is 'nope', and there is no such folder"),
        (["-p", "rule=auto", "--store", "/"], "store is '/': name a folder."),
    ],
)
def test_a_selection_that_cannot_be_is_refused_in_one_sentence(recorded, arguments, sentence):
    store, forget = recorded
    result = forget("--yes", *arguments)
    assert result.exit_code == 2 and sentence in result.stderr and len(result.output.splitlines()) == 1
    assert len(store.keys()) == 4


KNOWN = assignments(
    """title = "a page"
model = "mlp"  # model: logreg, mlp or vgg
epochs: int = 20  # passes
beta = 1e-4  # hypergradient learning rate, or "auto"
alphas = [1e-1, 1e-2]
flag = False
computed = 2 * 3
rows = [
    1,
    2]
"""
)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("epochs", [1, 2], "epochs is the list [1, 2]: give a number, such as 20."),
        ("epochs", "ten", "epochs is the string 'ten': give a number, such as 20."),
        ("epochs", True, "epochs is the truth value True: give a number, such as 20."),
        ("epochs", None, "epochs is the value None: give a number, such as 20."),
        ("beta", "automatic", "beta is the string 'automatic': give a number, such as 1e-4, or \"auto\"."),
        ("alphas", 0.1, "alphas is the number 0.1: give a list, such as [1e-1, 1e-2]."),
        ("alphas", "0.1", "alphas is the string '0.1': give a list, such as [1e-1, 1e-2]."),
        ("rows", 3, "rows is the number 3: give a list, such as [ 1, 2]."),
        ("title", 2018, 'title is the number 2018: give a string, such as "a page".'),
        ("model", "vit", "model is 'vit': give logreg, mlp or vgg."),
        ("model", "vgg", ""),
        ("flag", 1, "flag is the number 1: give a truth value, such as False."),
        (
            "alpha",
            0.1,
            "note.md has no parameter 'alpha': did you mean alphas? Its parameters are " + ", ".join(KNOWN) + ".",
        ),
        ("beta", float("inf"), "beta is inf: give finite numbers, such as 1e-4."),
        ("alphas", [0.1, float("nan")], "alphas is [0.1, nan]: give finite numbers, such as [1e-1, 1e-2]."),
        ("computed", {"a": -float("inf")}, "computed is {'a': -inf}: give finite numbers, such as 2 * 3."),
        ("beta", "auto", ""),
        ("beta", 1, ""),
        ("epochs", 3.0, "epochs is 3.0: give a whole number, without a point, such as 20."),
        ("epochs", 2.5, "epochs is 2.5: give a whole number, without a point, such as 20."),
        ("alphas", (0.1,), ""),
        ("computed", "anything", ""),
    ],
)
def test_a_parameter_of_another_type_is_refused_in_one_sentence(name, value, sentence):
    assert refusal("note.md", name, value, KNOWN) == sentence


def test_what_is_given_for_a_string_is_one():
    assert [read_as(text, KNOWN["title"]) for text in ("2024", '"2024"', "1e-3", "a")] == ["2024", "2024", "1e-3", "a"]
    assert (read_as("3", KNOWN["epochs"]), read_as("auto", KNOWN["beta"]), read_as("3", None)) == (3, "auto", 3)


def test_what_a_cell_gives_to_one_name_is_a_parameter_and_nothing_else():
    cell = "a = b = 1\nc, d = 1, 2\ne: int\nf.g = 3\nsteps = 2  # β, how many\nsteps += 1\nprint(steps)\nh: int = 4"
    found = assignments(cell)
    assert {name: (p.text, p.value, p.comment) for name, p in found.items()} == {
        "steps": ("2", 2, "# β, how many"),
        "h": ("4", 4, ""),
    }


@pytest.mark.parametrize("count", [-1, 10.5, "3", float("inf"), None])
def test_what_is_no_count_is_refused_by_its_name(count):
    refuse_fewer(0, other_seeds=0, cap=1e5)
    with pytest.raises(ParameterError) as refused:
        refuse_fewer(0, other_seeds=count)
    assert str(refused.value) == f"other_seeds is {count!r}: it must be a whole number of at least 0."


def test_more_than_there_are_is_refused_by_its_name():
    refuse_more(14, models=14)
    with pytest.raises(ParameterError, match=r"models is 99, but there are 14: give no more\."):
        refuse_more(14, models=99)


def test_a_list_without_values_is_refused_by_its_name():
    refuse_fewer(1, alphas=[0.1])
    with pytest.raises(ParameterError, match=r"alphas is \[\]: give at least 1\."):
        refuse_fewer(1, alphas=[])


def test_a_string_among_numbers_is_refused_by_its_name():
    refuse_text(alphas=[0.1, 1], betas=[])
    with pytest.raises(ParameterError, match="betas has the string 'auto', which this page cannot show: give numbers"):
        refuse_text(alphas=[0.1], betas=[1e-3, "auto"])


def test_what_papermill_injects_is_checked_too():
    cells = ["", "rows = [1]  # computed before", 'beta = 1e-4  # or "auto"\nsteps = 2']
    refuse_unknown([*cells, '# Parameters\nbeta = "auto"\nsteps = float("nan")\n', "print(steps)"])
    with pytest.raises(ParameterError, match=r"steps is the list \[3\]: give a number, such as 2"):
        refuse_unknown([*cells, "# Parameters\nsteps = [3]\n"])
    with pytest.raises(ParameterError, match="no parameter 'rows'"):
        refuse_unknown([*cells, "# Parameters\nrows = [3]\n"])
    refuse_unknown([*cells, "rows = [3]  # Parameters\n"])  # a cell of the user's own
    with pytest.raises(ParameterError, match="no parameter 'steps'"):
        refuse_unknown(["%matplotlib inline", "# Parameters\nsteps = 3\n"])
    typed = 'steps: int = 2\ntitle = (\n    "in two "\n    "lines"\n)'
    refuse_unknown([typed, '# Parameters\nsteps = 3\ntitle = "other"\n'])
    with pytest.raises(ParameterError, match="title is the number 3: give a string"):
        refuse_unknown([typed, "# Parameters\ntitle = 3\n"])
