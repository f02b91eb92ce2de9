"""Pages are executed by real kernels, and stale, failed or unexecuted ones are refused."""

import errno
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from unittest.mock import Mock

import gpu_queue
import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from jupyter_client import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config
from typer.testing import CliRunner

from hdlib.cli import app
from hdlib.report import notebooks, pages
from hdlib.report.kernels import ForkedKernelManager
from hdlib.report.notebooks import NotebookError

ROOT = Path(__file__).parent.parent
NOTEBOOK = """---
jupytext:
  formats: md:myst
  text_representation: {extension: .md, format_name: myst}
kernelspec: {display_name: Python 3, language: python, name: python3}
---
# A page about {{ name }}

```{code-cell}
:tags: [parameters]
name = "nothing"  # what the page is about
steps = 2  # how many
```

```{code-cell}
from hdlib.report.parameters import ParameterError

if steps < 0:
    raise ParameterError(f"steps is {steps}: it must be at least 0.")
print(steps * 2, 1 // steps)
```
"""
NOTEBOOKS = sorted(path.name for path in (ROOT / "notebooks").glob("*.md"))
TINY = {
    "automatic.md": {
        "task": "digits",
        "epochs": 1,
        "seeds": 1,
        "width": 8,
        "noiseless_epochs": 3,
        "noiseless_seeds": 1,
        "factorised_seeds": 1,
        "factorised_steps": 9,
    },
    "claims.md": {},
    "critical_beta.md": gpu_queue.TINY_CRITICAL,
    "divergence.md": gpu_queue.TINY_DIVERGENCE,
    "grid_search.md": {"task": "digits", "cap": 30, "seeds": 2, "other_cap": 24, "other_seeds": 2, "betas": [1e-3]},
    "guards.md": gpu_queue.TINY_GUARDS,
    "introduction.md": {},
    "method.md": {"steps": 3},
    "online_tuning.md": {"task": "digits", "epochs": 2, "seeds": 2},
    "papers_beta.md": {"task": "digits", "width": 8, "epochs": 1, "mlp_epochs": 1},
    "performance.md": {},
    "schedules.md": dict(task="digits", logreg_epochs=2, logreg_seeds=2, mlp_epochs=1, mlp_seeds=1, mlp_width=50),
    "status.md": {},
    "transformer.md": {"epochs": 1, "train_images": 240, "seeds": 1, "rates": [1e-2, 1e-3]},
    "tuning.md": {"task": "digits", "epochs": 2, "seeds": 2},
    "vgg.md": {
        "width_factor": 1 / 32,
        "train_images": 240,
        "epochs": 1,
        "seeds_of": {"sgdn_hd": 2},
        "batch_size": 64,
        "precision": "float32",
        "critical_factors": [1 / 32],
        "critical_seeds": 1,
        "critical_iterations": 3,
        "automatic_rates": [1e-1, 1e-3],
    },
    "vgg_network.md": {
        "width_factor": 1 / 32,
        "batch_size": 64,
        "precision": "float32",
        "experiments": [["authors", "uniform", 2, 2, ["sgd", "adam_hd"]], ["blog", "uniform", 1, 1, ["sgd"]]],
    },
}


def one_page(folder):
    """Make a folder a project with one page, and return it."""
    (folder / "book").mkdir()
    (folder / "notebooks").mkdir()
    (folder / "notebooks" / "note.md").write_text(NOTEBOOK)
    (folder / "book" / "pages.yml").write_text("page: {notebook: note, parameters: {steps: 1e-0, name: tests}}")
    return folder


@pytest.fixture
def project(tmp_path):
    return one_page(tmp_path)


@pytest.fixture(scope="module")
def executed_once(tmp_path_factory):
    project = one_page(tmp_path_factory.mktemp("executed"))
    [page] = pages.read_pages(project)
    notebooks.execute(page.source(project), page.output(project), page.parameters, project)
    return project


@pytest.fixture
def executed(executed_once, tmp_path):
    """A project with one page that was executed, of the test's own."""
    return shutil.copytree(executed_once, tmp_path, dirs_exist_ok=True)


def edit(project, change):
    path = project / "book" / "page.ipynb"
    notebook = nbformat.read(path, as_version=4)
    change(notebook)
    nbformat.write(notebook, path)


def last_cell(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"][-1]


def test_an_executed_page_passes_and_says_what_made_it(executed, monkeypatch):
    monkeypatch.chdir(executed / "notebooks")
    assert hdlib("check").output == "1 pages are as their notebooks say.\n"
    notebook = nbformat.read(executed / "book" / "page.ipynb", as_version=4)
    assert notebook.metadata.hdlib.effective == {"name": "tests", "steps": 1}
    assert notebook.cells[0].source == "# A page about tests"
    assert last_cell(notebook).outputs[0].text == "2 1\n"
    assert notebook.metadata.hdlib.source == "notebooks/note.md"
    assert "version" not in notebook.metadata.language_info
    assert not [
        d for d in (notebook.metadata, *(c.metadata for c in notebook.cells)) if {"papermill", "execution"} & set(d)
    ]


def test_a_page_shows_the_parameters_it_was_run_with_and_no_others(project):
    source = project / "notebooks" / "note.md"
    lines = 'name: str = "β"; steps = int(\n    2\n)  # β = 2'
    source.write_text(
        source.read_text().replace('name = "nothing"  # what the page is about\nsteps = 2  # how many', lines)
    )
    git = ["git", "-C", str(project), "-c", "user.name=n", "-c", "user.email=e"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "a page"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
    given = {"steps": 3, "name": 'the paper\'s "β"'}
    notebooks.execute(source, project / "out.ipynb", given, project)
    notebook = nbformat.read(project / "out.ipynb", as_version=4)
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) == 2
    assert code[0] == "name: str = 'the paper\\'s \"β\"'; steps = 3  # β = 2"
    stamp = notebook.metadata.hdlib
    assert stamp.effective == stamp.parameters == given
    assert (stamp.commit, stamp.dirty) == (head[:12], False)


def test_an_executed_page_names_no_folder_of_this_machine(project):
    source = project / "notebooks" / "note.md"
    shown = "import os, warnings, IPython; warnings.warn(os.getcwd() + '/x'); print(IPython.__file__)"
    source.write_text(source.read_text().replace("if steps < 0", f"{shown}\nif steps < 0"))
    [page] = pages.read_pages(project)
    notebooks.execute(page.source(project), page.output(project), page.parameters, project)
    text = page.output(project).read_text()
    assert "UserWarning: x" in text and "IPython/__init__.py" in text
    assert not [folder for folder in (project, sys.prefix, Path.home()) if f"{folder}/" in text]


def test_a_stamp_has_all_values_and_says_where_there_is_more_than_its_commit(project, monkeypatch):
    monkeypatch.setattr(notebooks.papermill, "execute_notebook", lambda *_, **__: None)
    git = ["git", "-C", str(project), "-c", "user.name=n", "-c", "user.email=e"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "a page"]):
        subprocess.run([*git, *command], check=True)
    stamps = []
    for _ in range(2):  # the output of the first is a file that is in no commit
        notebooks.execute(project / "notebooks" / "note.md", project / "out.ipynb", {"steps": 3}, project)
        stamps.append(nbformat.read(project / "out.ipynb", as_version=4).metadata.hdlib)
    assert [stamp.dirty for stamp in stamps] == [False, True] and stamps[0].commit == stamps[1].commit
    assert stamps[0].parameters == {"steps": 3} and stamps[0].effective == {"name": "nothing", "steps": 3}


def test_what_is_stored_for_other_pages_is_not_shown_on_its_own():
    storing = [
        (name, cell.metadata.get("tags"))
        for name in NOTEBOOKS
        for cell in notebooks.read_notebook(ROOT / "notebooks" / name).cells
        if cell.cell_type == "code" and "findings.glue(" in cell.source
    ]
    assert storing and [tags for _, tags in storing] == [["remove-cell"]] * len(storing), storing


def test_sections_whose_code_shows_nothing_are_left_out(project):
    source = project / "notebooks" / "note.md"
    shown = "## Shown\n\nProse.\n\n```{code-cell}\nsteps\n```\n"
    silent = "## Silent\n\nProse.\n\n```{code-cell}\nif steps > 5:\n    print(steps)\n```\n\nMore.\n"
    source.write_text(f"{source.read_text()}\n{shown}\n{silent}\n## Prose alone\n\nProse.\n")
    [page] = pages.read_pages(project)
    for steps, left_out in ((1, ["## Silent", "if steps > 5", "More."]), (6, [])):
        notebooks.execute(page.source(project), page.output(project), {"steps": steps}, project)
        cells = nbformat.read(page.output(project), as_version=4).cells
        removed = [cell.source for cell in cells if "remove-cell" in cell.metadata.get("tags", [])]
        assert len(removed) == len(left_out)
        assert all(text.startswith(start) for text, start in zip(removed, left_out, strict=True))


def test_a_page_whose_notebook_is_gone_is_refused(executed):
    listed = pages.read_pages(executed)
    (executed / "notebooks" / "note.md").unlink()
    with pytest.raises(pages.PageError, match=r"no notebook note\.md"):
        pages.check(listed, executed)


def test_a_damaged_page_is_refused(executed):
    path = executed / "book" / "page.ipynb"
    path.write_text(path.read_text()[:200])
    with pytest.raises(pages.PageError, match="page cannot be read"):
        pages.check(pages.read_pages(executed), executed)


def test_every_page_that_is_not_as_it_should_be_is_named(project):
    (project / "book" / "pages.yml").write_text("first: {notebook: note}\nlast: {notebook: note}")
    with pytest.raises(pages.PageError) as refused:
        pages.check(pages.read_pages(project), project)
    assert str(refused.value).splitlines() == [
        f"{name} was not executed: run `hdlib book`." for name in ("first", "last")
    ]


def test_a_page_that_cannot_be_made_is_named_when_the_book_is_built(project, monkeypatch):
    source = project / "notebooks" / "note.md"
    source.write_text(source.read_text() + "\n{{ model }}\n")
    monkeypatch.chdir(project)
    result = hdlib("book")
    assert result.exit_code == 2
    assert "The page page was not made: The prose of note.md names {{ model }}" in result.output


def test_a_kernel_that_dies_is_told_in_a_sentence(project, monkeypatch):
    def die(*_, **__):  # a real one is missed only after a while
        raise DeadKernelError("Kernel died")

    monkeypatch.setattr(notebooks.papermill, "execute_notebook", die)
    source = project / "notebooks" / "note.md"
    with pytest.raises(NotebookError, match=r"^note\.md was not finished, its kernel died, perhaps for want of mem"):
        notebooks.execute(source, project / "book" / "page.ipynb", {}, project)
    assert [path.name for path in (project / "book").glob("*.ipynb")] == ["page.failed.ipynb"]


def test_a_notebook_is_not_replaced_by_its_execution(project):
    source = project / "notebooks" / "note.md"
    with pytest.raises(NotebookError, match=r"would replace note\.md: name another output"):
        notebooks.execute(source, project / "notebooks" / ".." / "notebooks" / "note.md", {}, project)
    assert source.read_text() == NOTEBOOK


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("note.ipynb", "{", "note.ipynb cannot be read as a notebook"),
        ("note.md", NOTEBOOK.replace("steps = 2", "steps = = 2"), "The parameters cell of note.md is not Python"),
        ("note.md", NOTEBOOK.replace("[parameters]", "[]"), "note.md has no cell tagged 'parameters': tag one."),
    ],
)
def test_a_notebook_without_parameters_that_can_be_read_is_refused(tmp_path, name, text, sentence):
    (tmp_path / name).write_text(text)
    with pytest.raises(NotebookError) as refused:
        notebooks.parameters_of(tmp_path / name)
    assert sentence in str(refused.value) and "\n" not in str(refused.value)


def test_the_project_is_found_from_any_folder_in_it_and_only_there(project, monkeypatch):
    monkeypatch.chdir(project / "notebooks")
    assert pages.find_root() == project.resolve()
    (project / "book" / "pages.yml").unlink()
    with pytest.raises(pages.PageError, match=r"There is no book/pages\.yml here or above"):
        pages.find_root()


def test_the_way_to_a_project_in_the_systems_root_is_not_cut_out_of_addresses():
    assert notebooks._without_folders("see https://example.org/a", Path("/")) == "see https://example.org/a"


def test_a_file_of_a_project_in_the_home_folder_is_named_without_the_projects_folder():
    root = Path.home() / "project"
    assert notebooks._without_folders(f"{root}/a and {Path.home()}/b", root) == "a and b"


@pytest.mark.parametrize("kernels", [AsyncKernelManager, ForkedKernelManager])
def test_a_cell_that_takes_too_long_is_stopped(project, kernels):
    source = project / "notebooks" / "note.md"
    source.write_text(source.read_text().replace("if steps < 0", "import time; time.sleep(60)\nif steps < 0"))
    with pytest.raises(NotebookError, match="longer than 2 seconds"):
        notebooks.execute(source, project / "book" / "page.ipynb", {}, project, cell_timeout=2, kernels=kernels)


def test_parameters_are_read_as_python_reads_them(project):
    source = project / "notebooks" / "note.md"
    lines = "# a = b\nname: str = 'a # b = c'  # with = signs\nsteps = [\n    1,\n    2,\n]  # many"
    source.write_text(
        source.read_text().replace('name = "nothing"  # what the page is about\nsteps = 2  # how many', lines)
    )
    assert {name: (p.text, p.comment) for name, p in notebooks.parameters_of(source).items()} == {
        "name": ("'a # b = c'", "# with = signs"),
        "steps": ("[\n    1,\n    2,\n]", "# many"),
    }


def test_a_number_without_a_fraction_is_whole_where_the_default_is(project):
    source = project / "notebooks" / "note.md"
    source.write_text(source.read_text().replace("steps = 2  # how many", "steps = 2\nrate = 0.5"))
    taken = notebooks.accepted(source, {"steps": 1e5, "rate": 1.0})
    assert {name: repr(value) for name, value in taken.items()} == {"steps": "100000", "rate": "1.0"}


def test_prose_that_names_no_parameter_is_refused(project):
    source = project / "notebooks" / "note.md"
    source.write_text(source.read_text() + "\n{{ model }}\n")
    with pytest.raises(NotebookError, match=r"names {{ model }}"):
        notebooks.execute(source, project / "book" / "page.ipynb", {}, project)


def test_a_page_that_was_never_executed_is_refused(project):
    with pytest.raises(pages.PageError, match="page was not executed"):
        pages.check(pages.read_pages(project), project)


def test_a_changed_notebook_makes_its_page_stale(executed):
    source = executed / "notebooks" / "note.md"
    source.write_text(source.read_text() + "\nMore.\n")
    with pytest.raises(pages.PageError, match="page is stale"):
        pages.check(pages.read_pages(executed), executed)


def test_a_page_that_does_not_say_what_made_it_is_stale(project):
    [page] = pages.read_pages(project)
    nbformat.write(notebooks.read_notebook(page.source(project)), page.output(project))
    with pytest.raises(pages.PageError, match="page is stale"):
        pages.check([page], project)


def test_other_parameters_make_a_page_stale(executed):
    (executed / "book" / "pages.yml").write_text("page: {notebook: note, parameters: {steps: 3}}")
    with pytest.raises(pages.PageError, match="other parameters"):
        pages.check(pages.read_pages(executed), executed)


def test_a_page_that_shows_other_parameters_is_refused(executed):
    def show_the_defaults(notebook):
        notebook.cells[1].source = notebook.cells[1].source.replace("steps = 1", "steps = 2")

    edit(executed, show_the_defaults)
    with pytest.raises(pages.PageError, match="other parameters"):
        pages.check(pages.read_pages(executed), executed)


def test_a_failed_cell_is_refused(executed):
    fail = nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])
    edit(executed, lambda notebook: last_cell(notebook).outputs.append(fail))
    with pytest.raises(pages.PageError, match="a cell that failed"):
        pages.check(pages.read_pages(executed), executed)


def test_an_empty_cell_is_nothing_that_was_not_executed(executed):
    edit(executed, lambda notebook: notebook.cells.insert(2, nbformat.v4.new_code_cell("\n")))
    pages.check(pages.read_pages(executed), executed)


@pytest.mark.parametrize("count", [None, 7])
def test_a_cell_that_was_not_executed_in_turn_is_refused(executed, count):
    edit(executed, lambda notebook: last_cell(notebook).update(execution_count=count))
    with pytest.raises(pages.PageError, match="not executed from beginning to end"):
        pages.check(pages.read_pages(executed), executed)


def test_a_failing_notebook_replaces_nothing(executed):
    before = (executed / "book" / "page.ipynb").read_bytes()
    with pytest.raises(NotebookError, match="ZeroDivisionError"):
        notebooks.execute(executed / "notebooks" / "note.md", executed / "book" / "page.ipynb", {"steps": 0}, executed)
    assert (executed / "book" / "page.ipynb").read_bytes() == before
    left = executed / "book" / "page.failed.ipynb"
    assert last_cell(nbformat.read(left, as_version=4)).outputs[0].ename == "ZeroDivisionError"
    notebooks.execute(executed / "notebooks" / "note.md", executed / "book" / "page.ipynb", {"steps": 1}, executed)
    assert [path.name for path in (executed / "book").glob("*.ipynb")] == ["page.ipynb"]


def test_what_a_failing_notebook_left_is_named_and_what_killed_processes_left_is_removed(executed):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    orphan, living = (executed / "book" / f".page.{process}.ipynb" for process in (ended.pid, os.getppid()))
    for path in (orphan, living):
        path.write_text("{")
    with pytest.raises(NotebookError) as failed:
        notebooks.execute(executed / "notebooks" / "note.md", executed / "book" / "page.ipynb", {"steps": 0}, executed)
    assert str(failed.value).endswith(f"What was executed of it is in {executed.resolve()}/book/page.failed.ipynb.")
    assert living.exists() and not orphan.exists()


def test_what_a_notebook_warns_of_is_told_at_the_end(project, monkeypatch):
    source = project / "notebooks" / "note.md"
    warning = "import warnings\nfor _ in range(2):\n    warnings.warn('a file is damaged')\nif steps < 0"
    source.write_text(source.read_text().replace("if steps < 0", warning))
    monkeypatch.chdir(project)
    result = hdlib("run", "notebooks/note.md", "-o", "out.ipynb")
    assert result.exit_code == 0 and result.stderr.count("Warning: a file is damaged\n") == 1


def test_a_warning_that_is_printed_again_is_told_once():
    lines = [f"/a/cell.py:{i}: UserWarning: a file is damaged\n  warn()\n" for i in range(2)]
    outputs = [nbformat.v4.new_output("stream", name="stderr", text=line) for line in lines]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(outputs=outputs)])
    assert notebooks._warnings(notebook) == ["a file is damaged"]


def test_two_processes_may_make_the_same_page(project):
    source = project / "notebooks" / "note.md"
    source.write_text(source.read_text().replace("if steps < 0", "import time; time.sleep(3)\nif steps < 0"))
    command = [sys.executable, "-m", "hdlib", "run", "notebooks/note.md", "-o", "out.ipynb", "-p"]
    both = [
        subprocess.Popen([*command, f"steps={steps}"], cwd=project, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for steps in (1, 2)
    ]
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert last_cell(nbformat.read(project / "out.ipynb", as_version=4)).outputs[0].text in ("2 1\n", "4 0\n")
    assert {path.name for path in project.glob("*")} == {"book", "notebooks", "out.ipynb"}


def test_a_disk_that_fills_up_is_told_in_a_sentence(project):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    source = project / "notebooks" / "note.md"
    source.write_text(source.read_text().replace("if steps < 0", "print('x' * 30_000)\nif steps < 0"))
    command = [sys.executable, "-m", "hdlib", "run", "notebooks/note.md", "-o", "out.ipynb"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False, preexec_fn=limit)
    assert done.returncode == 2, done.stderr
    told = done.stderr.strip().splitlines()[-1]
    assert (
        told
        == f"{project.resolve() / 'out.ipynb'} cannot be written (File too large): make room, or name another output."
    )
    assert not list(project.glob("*.ipynb"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_an_output_that_cannot_be_written_is_told_in_a_sentence(project, monkeypatch, number):
    def refuse(code):
        monkeypatch.setattr(notebooks.nbformat, "write", Mock(side_effect=OSError(code, os.strerror(code))))

    source, output = project / "notebooks" / "note.md", project / "out.ipynb"
    refuse(number)
    with pytest.raises(NotebookError, match=rf"out.ipynb cannot be written \({os.strerror(number)}\): make room, or"):
        notebooks.execute(source, output, {}, project)
    refuse(errno.EIO)  # a fault of the machine, which is nobody's mistake
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        notebooks.execute(source, output, {}, project)


def test_the_site_is_built_from_nothing_and_of_pages_that_are_checked(project, monkeypatch):
    index, old = (project / "_build" / "html" / name for name in ("index.html", "old.html"))
    trees = project / "_build" / ".doctrees" / "old"
    trees.mkdir(parents=True)
    outcome = 0

    def sphinx(*_, **__):
        assert not old.exists() and not trees.exists()
        index.parent.mkdir()
        index.touch()
        return subprocess.CompletedProcess([], outcome)

    monkeypatch.setattr(notebooks, "execute", lambda *_, **__: [])
    monkeypatch.setattr(pages.subprocess, "run", sphinx)
    with pytest.raises(pages.PageError, match="page was not executed"):
        pages.build(project)
    assert not index.exists()
    monkeypatch.setattr(pages, "check", lambda *_: None)
    assert pages.build(project) == index
    old.touch()
    outcome = 1
    with pytest.raises(pages.PageError, match="did not build without warnings"):
        pages.build(project)


def test_the_list_that_has_a_value_which_a_run_refuses_is_named():
    given = {"alphas": [0.1, -1.0], "sgd_beta": 1e-3, "seeds": 5}
    assert notebooks._whose("alpha0 is -1.0: alpha0 should be at least 0.", given) == " Here that is alphas."
    assert notebooks._whose("beta is 0.001 but the rule is 'auto'.", given) == " Here that is sgd_beta."
    assert notebooks._whose("seeds is 5: it must be less.", given) == ""
    others = {"seeds": 5, "cosine_seeds": 0}
    assert notebooks._whose("seeds is 0: it must be at least 1.", others) == " Here that is cosine_seeds."


def hdlib(*arguments):
    return CliRunner().invoke(app, list(arguments))


def test_the_command_line_runs_a_notebook(project, monkeypatch):
    monkeypatch.chdir(project)
    result = hdlib("run", "notebooks/note.md", "-p", "steps=4", "-o", "out.ipynb")
    assert result.exit_code == 0, result.output
    assert last_cell(nbformat.read(project / "out.ipynb", as_version=4)).outputs[0].text == "8 0\n"


def test_a_notebooks_parameters_are_listed_and_nothing_is_run(project, monkeypatch):
    monkeypatch.chdir(project)
    result = hdlib("run", "notebooks/note.md", "--parameters")
    assert result.output.splitlines() == ['name = "nothing"  # what the page is about', "steps = 2  # how many"]
    assert not list(project.rglob("*.ipynb"))


def test_what_is_executed_where_no_output_is_named(project, monkeypatch):
    """A notebook goes below _build, and a page that is asked for alone to its place, with its own parameters."""
    executed = []
    monkeypatch.setattr(notebooks, "execute", lambda *arguments: executed.append(arguments) or [])
    monkeypatch.chdir(project)
    root = project.resolve()
    told = hdlib("run", "notebooks/note.md", "-p", "steps=3").output
    assert told.split() == ["Executed", "notebook:", str(root / "_build" / "runs" / "note.ipynb")]
    assert hdlib("book", "--only", "page").output.startswith("Executed page: book/page.ipynb. The site is as it was")
    (_, target, values, _), alone = executed
    assert (target, values) == (root / "_build" / "runs" / "note.ipynb", {"steps": 3})
    assert alone == (root / "notebooks" / "note.md", root / "book" / "page.ipynb", {"steps": 1, "name": "tests"}, root)
    unknown = hdlib("book", "--only", "pag")
    assert unknown.exit_code == 2 and unknown.output == "There is no page 'pag': the pages are page.\n"
    assert len(executed) == 2


def test_a_folder_of_records_may_be_named_by_a_number(project, monkeypatch):
    """And that it is new is said of a command that runs alone."""
    source = project / "notebooks" / "note.md"
    source.write_text(source.read_text().replace("steps = 2", 'store = "results"\nsteps = 2'))
    executed = []
    monkeypatch.setattr(notebooks, "execute", lambda *arguments: executed.append(arguments[2]) or [])
    monkeypatch.chdir(project)
    done = hdlib("run", "notebooks/note.md", "-p", "store=20240501")
    assert executed == [{"store": "20240501"}] and "store is '20240501', a new folder" in done.output
    refused = hdlib("run", "notebooks/note.md", "-p", "store=20240501", "-p", "stps=1")
    assert refused.exit_code == 2 and len(refused.output.splitlines()) == 1 and "did you mean steps?" in refused.output


def test_an_interruption_is_told_in_a_sentence(project, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(notebooks, "execute", interrupt)
    monkeypatch.chdir(project)
    result = hdlib("run", "notebooks/note.md")
    assert result.exit_code == 130
    assert result.output == "\nInterrupted: the runs that had ended are recorded; the same command trains the others.\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-p", "step=3"], "note.md has no parameter 'step': did you mean steps? Its parameters are name, steps."),
        (["-p", "steps"], "-p 'steps' has no value: write -p steps=VALUE."),
        (["-p", "steps=1", "-p", "steps=2"], "steps is given twice, as '1' and '2': give one of them."),
        (["-p", "steps=-1"], "steps is -1: it must be at least 0."),
        (["-p", "steps=1e999"], "steps is inf: give finite numbers, such as 2."),
    ],
)
def test_wrong_parameters_are_refused_in_one_sentence(project, monkeypatch, arguments, sentence):
    monkeypatch.chdir(project)
    result = hdlib("run", "notebooks/note.md", "-o", "out.ipynb", *arguments)
    assert result.exit_code == 2
    assert result.output.strip().splitlines()[-1] == sentence
    assert not (project / "out.ipynb").exists()


@pytest.mark.parametrize("output", ["notebooks/note.md", "notebooks/other.md", "out"])
def test_nothing_but_a_notebook_is_written_over(project, monkeypatch, output):
    monkeypatch.chdir(project)
    (project / "notebooks" / "other.md").write_text("mine")
    result = hdlib("run", "notebooks/note.md", "-o", output)
    assert result.exit_code == 2 and ("ends in .ipynb" in result.output or "would replace note.md" in result.output)
    assert (project / "notebooks" / "other.md").read_text() == "mine" and not (project / "out").exists()


def test_a_page_that_no_reader_would_find_is_refused_before_any_execution(executed, monkeypatch):
    monkeypatch.chdir(executed)
    contents = executed / "_toc.yml"
    contents.write_text("root: book/other\nparts: [{chapters: [{file: book/more, sections: [{file: book/page}]}]}]")
    assert hdlib("check").exit_code == 0
    contents.write_text("root: book/other\nparts: [{chapters: [{file: book/pages}]}]")
    monkeypatch.setattr(notebooks, "execute", None)
    for command in ("check", "book"):
        result = hdlib(command)
        assert result.exit_code == 2
        assert result.output == "page is not in the table of contents: add `- file: book/page` to _toc.yml.\n"


def test_a_missing_notebook_is_named(project, monkeypatch):
    monkeypatch.chdir(project)
    result = hdlib("run", "notebooks/not.md")
    there = ", ".join(sorted(path.name for path in Path("notebooks").glob("*.md")))
    assert result.exit_code == 2
    assert result.output.strip() == f"There is no notebook not.md in notebooks/: there are {there}."
    assert f"only the folder notebooks/: there are {there}." in hdlib("run", "notebooks").output


def test_the_version_is_that_of_the_package():
    result = hdlib("--version")
    assert (result.exit_code, result.output) == (0, f"{metadata.version('hdlib')}\n")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "book/pages.yml lists no pages"),
        ("page: [", "book/pages.yml is not YAML"),
        ("page: note", "page page no notebook"),
        ("page: {notebook: not}", "no notebook not.md"),
        ("page: {notebook: note, parameter: {steps: 1}}", "the entry 'parameter'"),
        ("page: {notebook: note, parameters: [steps]}", "the parameters ['steps']"),
        ("page: {notebook: note}\npage: {notebook: note, parameters: {steps: 2}}", "lists page page 2 times"),
        ("first: {notebook: note}\nlast: {notebook: note, parameters: {step: 1}}", "no parameter 'step'"),
    ],
)
def test_a_wrong_list_of_pages_is_refused_before_any_execution(project, monkeypatch, text, sentence):
    (project / "book" / "pages.yml").write_text(text)
    monkeypatch.chdir(project)
    result = hdlib("book")
    assert result.exit_code == 2 and sentence in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert not list(project.rglob("*.ipynb"))


@pytest.mark.parametrize("name", [name for name in NOTEBOOKS if TINY[name]])  # the others are as the site has them
def test_every_notebook_that_trains_does_so_with_tiny_parameters(name, tmp_path, image_folder, monkeypatch):
    monkeypatch.setenv("HDLIB_DATA", str(image_folder))
    parameters = dict(TINY[name])
    known = notebooks.parameters_of(ROOT / "notebooks" / name)
    if "store" in known:
        parameters["store"] = str(tmp_path / "store")
    notebooks.execute(ROOT / "notebooks" / name, tmp_path / "out.ipynb", parameters, ROOT, kernels=ForkedKernelManager)
    if "store" in known:
        assert list((tmp_path / "store").glob(f"{parameters.get('task', 'cifar10')}-*.parquet"))
    assert no_numbers(tmp_path / "out.ipynb") == []


def no_numbers(path):
    """Return what an executed page shows of NaN and infinity, with what stands around it."""
    return re.findall(r"(?i).{0,40}\b(?:nan|inf)\b.{0,40}", shown(path))


def shown(path):
    """Return what the code of an executed page shows, without the figures and tables that it carries as data."""
    parts = []
    for cell in nbformat.read(path, as_version=4).cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            parts += [output.get("text", ""), data.get("text/html", ""), data.get("text/markdown", "")]
    return re.sub(r'data:[^"]*', "", "\n".join(parts))


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"sgd_beta": -1e-4}, r"beta is -0.0001: .* Here that is sgd_beta\.$"),
        ({"device": "cuda"}, "no GPU"),
    ],
)
def test_a_notebook_refuses_bad_parameters_before_training(parameters, sentence, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    values = {"task": "digits", "epochs": 1, "seeds": 1, "store": str(tmp_path / "store")} | parameters
    with pytest.raises(NotebookError, match=sentence) as refused:
        notebooks.execute(ROOT / "notebooks" / "tuning.md", tmp_path / "out.ipynb", values, ROOT)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "store").exists() or not list((tmp_path / "store").iterdir())


@pytest.fixture
def without_kernel(monkeypatch):
    """Let notebooks run in this process, up to a cell that raises: for what they refuse, no kernel has to start."""

    def execute(path, *_, **__):
        shell = InteractiveShell(config=Config(HistoryManager={"enabled": False}))
        cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        for i, cell in enumerate(cells):
            error = shell.run_cell(cell.source, store_history=True).error_in_exec
            if error:
                raise PapermillExecutionError(i, i, cell.source, type(error).__name__, str(error), [])

    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])  # a shell puts its own there
    monkeypatch.setattr(notebooks.papermill, "execute_notebook", execute)


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"sgd_beta": "1e-4x"}, "sgd_beta is the string"),
        ({"task": "imagenet"}, "task is 'imagenet'"),
        ({"seeds": 0}, "seeds is 0"),
    ],
)
@pytest.mark.usefixtures("without_kernel")
def test_tuning_refuses_what_is_no_run_before_training(parameters, sentence, tmp_path):
    values = {"task": "digits", "epochs": 1, "seeds": 1, "store": str(tmp_path / "store")} | parameters
    with pytest.raises(NotebookError, match=sentence) as refused:
        notebooks.execute(ROOT / "notebooks" / "tuning.md", tmp_path / "out.ipynb", values, ROOT)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "store").exists() or not list((tmp_path / "store").iterdir())


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"betas": [1e-3, "auto"]}, "betas has the string 'auto', which this page cannot show: give numbers."),
        ({"other_cap": 0}, "other_cap is 0: it must be a whole number of at least 1."),
        ({"cap": float("nan")}, "cap is nan: give finite numbers, such as 468_750."),
        ({"alphas": []}, "alphas is []: give at least 1."),
    ],
)
@pytest.mark.usefixtures("without_kernel")
def test_the_grid_refuses_what_it_cannot_show_before_training(parameters, sentence, tmp_path):
    values = {"task": "digits", "cap": 9, "seeds": 1, "store": str(tmp_path / "store")} | parameters
    with pytest.raises(NotebookError) as refused:
        notebooks.execute(ROOT / "notebooks" / "grid_search.md", tmp_path / "out.ipynb", values, ROOT)
    assert str(refused.value) == sentence and not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("name", "parameter", "value"),
    [
        ("guards", "long_epochs", 0),
        ("divergence", "critical_iterations", 1),
        ("critical_beta", "phase_models", 99),
        ("vgg", "automatic_seeds", 0),
    ],
)
@pytest.mark.usefixtures("without_kernel")
def test_counts_of_what_comes_late_on_a_page_are_refused_before_training(name, parameter, value, tmp_path):
    values = {parameter: value, "store": str(tmp_path / "store")}
    with pytest.raises(NotebookError) as refused:
        notebooks.execute(ROOT / "notebooks" / f"{name}.md", tmp_path / "out.ipynb", values, ROOT)
    reason = rf": it must be a whole number of at least {value + 1}|, but there are \d+: give no more"
    assert re.fullmatch(rf"{parameter} is {value}({reason})\.", str(refused.value))
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("experiments", "sentence"),
    [
        ([], "experiments is []: give rows of a network"),
        ([[]], "experiments is [[]]: give rows of a network"),
        (["authors"], "experiments is ['authors']: give rows of a network"),
        ([["authors", "ones", 1, 1]], "experiments is [['authors', 'ones', 1, 1]]: give rows of a network"),
        ([["authors", "ones", 1, 1, "sgd"]], "'sgd']]: give rows of a network"),
        ([["authors", "ones", 1, 1, ["sgd"]], ["authors", "ones", 1, 2, ["sgd"]]], "experiments asks twice for sgd in"),
        ([["author", "ones", 1, 1, ["sgd"]]], "variant is 'author'"),
    ],
)
@pytest.mark.usefixtures("without_kernel")
def test_experiments_that_cannot_be_are_refused_before_training(experiments, sentence, tmp_path):
    values = {"experiments": experiments, "store": str(tmp_path / "store")}
    with pytest.raises(NotebookError) as refused:
        notebooks.execute(ROOT / "notebooks" / "vgg_network.md", tmp_path / "out.ipynb", values, ROOT)
    assert sentence in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(("steps", "sentence"), [(0, "steps is 0: it must be"), (2.5, "steps is 2.5: give a whole")])
@pytest.mark.usefixtures("without_kernel")
def test_the_check_of_the_method_refuses_what_is_no_step(steps, sentence, tmp_path):
    with pytest.raises(NotebookError, match=sentence):
        notebooks.execute(ROOT / "notebooks" / "method.md", tmp_path / "out.ipynb", {"steps": steps}, ROOT)


@pytest.mark.parametrize(
    ("parameter", "value", "sentence"),
    [
        ("critical_factors", [-1], "width_factor is -1"),
        ("critical_iterations", 0, "max_iterations is 0"),
        ("automatic_rates", [-0.1], "alpha0 is -0.1"),
        ("variants", [], "variants is []: give at least 1."),
    ],
)
@pytest.mark.usefixtures("without_kernel")
def test_runs_that_vgg_asks_for_late_are_refused_before_training(parameter, value, sentence, tmp_path):
    values = TINY["vgg.md"] | {parameter: value, "store": str(tmp_path / "store")}
    with pytest.raises(NotebookError) as refused:
        notebooks.execute(ROOT / "notebooks" / "vgg.md", tmp_path / "out.ipynb", values, ROOT)
    assert sentence in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "store").exists()


def test_an_output_that_is_a_folder_is_refused_before_training(tmp_path):
    values = {"task": "digits", "epochs": 1, "seeds": 1, "store": str(tmp_path / "store")}
    (tmp_path / "out").mkdir()
    with pytest.raises(NotebookError, match=r"output is '.*/out', which is a folder: name a file in it"):
        notebooks.execute(ROOT / "notebooks" / "tuning.md", tmp_path / "out", values, ROOT)
    assert not (tmp_path / "store").exists()


def test_papermills_own_command_line_works_as_documented(tmp_path):
    binaries = Path(sys.executable).parent
    shutil.copy(ROOT / "notebooks" / "tuning.md", tmp_path)
    subprocess.run([binaries / "jupytext", "--to", "ipynb", tmp_path / "tuning.md"], check=True, capture_output=True)
    command = [binaries / "papermill", tmp_path / "tuning.ipynb", tmp_path / "out.ipynb", "-p", "task", "digits"]
    command += ["-p", "epochs", "1", "-p", "seeds", "1", "-p", "alpha0", "1e-3", "-p", "store", tmp_path / "store"]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    assert len(list((tmp_path / "store").iterdir())) >= 1
    misspelt = [*command[:3], "-p", "epoch", "1", "-p", "store", tmp_path / "other"]
    done = subprocess.run(misspelt, check=False, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode != 0
    assert "The notebook has no parameter 'epoch': did you mean epochs?" in done.stderr
    assert not (tmp_path / "other").exists()
