"""The executed pages of the book: which there are, running them, and refusing stale or failed ones.

`book/pages.yml` names each page, the notebook it comes from and the parameters it is run with. Notebooks are
MyST markdown; jupytext converts, papermill executes, and the result is stamped with what made it.
"""

from __future__ import annotations

import ast
import errno
import glob
import hashlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import chdir, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import papermill
import psutil
import yaml
from jupyter_client import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from hdlib.report.kernels import ForkedKernelManager
from hdlib.report.parameters import Parameter, assignments, refusal

CELL_TIMEOUT = 24 * 3600  # seconds; a cell may train
KERNEL = [
    "--log-level=50",  # no word about the kernel's transport, or its end, on every page
    # A page makes many objects and drops few, and at its end all go: looking for garbage took up to a fifth of it.
    "--IPKernelApp.exec_lines=__import__('gc').set_threshold(100_000)",
    "--IPKernelApp.exec_lines=__import__('atexit').register(__import__('gc').freeze)",
]
UNWRITABLE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,
)
AT_ONCE = 4  # pages: each has a process that holds the records
# signals to kernels that are to end, and seconds until the next: what ends a sweep records what was finished
ENDING = ((signal.SIGINT, 20.0), (signal.SIGINT, 5.0), (signal.SIGTERM, 5.0))  # between cells none hears the first
SPHINX_FOLDERS = ("html", ".doctrees", "jupyter_execute")  # below _build


class PageError(ValueError):
    """A page cannot be made or must not be published; the message is one sentence a page."""


@dataclass(frozen=True)
class Page:
    """A page of the book: `book/<name>.ipynb`, made from `notebooks/<notebook>.md` with `parameters`."""

    name: str
    notebook: str
    parameters: dict[str, Any] = field(default_factory=dict)

    def source(self, root: Path) -> Path:
        return root / "notebooks" / f"{self.notebook}.md"

    def output(self, root: Path) -> Path:
        return root / "book" / f"{self.name}.ipynb"


def find_root() -> Path:
    """Return the folder with `book/pages.yml`, here or above."""
    start = Path.cwd().resolve()
    for folder in (start, *start.parents):
        if (folder / "book" / "pages.yml").is_file():
            return folder
    raise PageError("There is no book/pages.yml here or above: change into the project's folder first.")


def read_pages(root: Path) -> list[Page]:
    """Return the pages that book/pages.yml lists.

    Raises:
        PageError: the file is not what it should be, or a notebook is missing or lacks a parameter.
    """
    text = (root / "book" / "pages.yml").read_text(encoding="utf-8")
    try:
        listed, parsed = yaml.safe_load(text), yaml.compose(text)
    except yaml.YAMLError as error:
        raise PageError(f"book/pages.yml is not YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(listed, dict) or not listed:
        raise PageError("book/pages.yml lists no pages: give each a name and its notebook.")
    names = [key.value for key, _ in parsed.value]  # YAML would keep the last of two silently
    for name in names:
        if names.count(name) > 1:
            raise PageError(f"book/pages.yml lists page {name} {names.count(name)} times: give each page its own name.")
    pages = [_page(str(name), entry) for name, entry in listed.items()]
    return [replace(page, parameters=accepted(page.source(root), page.parameters)) for page in pages]


def number(value: Any) -> Any:
    """Return the Python value that a text means, as papermill's command line reads it; other text as it is.

    >>> number("1e-3"), number("True"), number("mlp")
    (0.001, True, 'mlp')
    """
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


def parameters_of(source: Path) -> dict[str, Parameter]:
    """Return a notebook's parameters.

    Raises:
        PageError: the notebook cannot be read, or has no cell tagged `parameters`.
    """
    return _parameters(read_notebook(source), source.name)


def accepted(source: Path, parameters: dict[str, Any]) -> dict[str, Any]:
    """Return parameters as the notebook takes them: 1e5 is whole where its default is.

    Raises:
        PageError: the notebook does not have a name, or a value is of another type than the default's.
    """
    known, taken = parameters_of(source), {}
    for name, value in parameters.items():
        whole = isinstance(value, float) and value.is_integer() and name in known and type(known[name].value) is int
        taken[name] = int(value) if whole else value
        if sentence := refusal(source.name, name, taken[name], known):
            raise PageError(sentence)
    return taken


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """Return a notebook that is written as markdown or as JSON.

    Raises:
        PageError: there is none, or it cannot be read.
    """
    if not path.is_file():
        folder = path if path.is_dir() else path.parent
        there = ", ".join(sorted(found.name for found in folder.glob("*.md"))) or "none"
        what = f"There is no notebook {path.name} in" if folder != path else "No notebook is named, only the folder"
        raise PageError(f"{what} {folder.name or '.'}/: there are {there}.")
    try:
        return jupytext.read(path)
    except Exception as error:  # whatever the reader of its format raises
        raise PageError(f"{path.name} cannot be read as a notebook: {' '.join(str(error).split())[:200]}.") from None


def execute(
    source: Path,
    output: Path,
    parameters: dict[str, Any],
    root: Path,
    cell_timeout: float = CELL_TIMEOUT,
    kernels: type[AsyncKernelManager] = AsyncKernelManager,
) -> list[str]:
    """Run a notebook with parameters, write the executed notebook whole or not at all, and return its warnings.

    A run that failed or was interrupted leaves what there is beside the output, as `<name>.failed.ipynb`.
    `kernels` says how its kernel starts.

    Raises:
        PageError: the notebook is missing, a parameter is refused, the output cannot be written, a cell failed or took
            too many seconds, or the kernel died.
    """
    parameters = accepted(source, parameters)
    source, output = source.resolve(), output.resolve()
    if output == source:
        raise PageError(f"The executed notebook would replace {source.name}: name another output.")
    if output.is_dir():
        raise PageError(f"output is {str(output)!r}, which is a folder: name a file in it.")
    if output.suffix != ".ipynb":
        raise PageError(f"output is {str(output)!r}: name a notebook, which ends in .ipynb.")
    notebook = read_notebook(source)
    _set_parameters(notebook, parameters, source.name)
    effective = _values(notebook, source.name)
    _fill_in(notebook, effective, source.name)
    stamp = {
        "source": source.relative_to(root).as_posix() if source.is_relative_to(root) else source.name,
        "sha256": _sha256(source),
        "parameters": parameters,
        "effective": effective,
        "executed": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git(root, "rev-parse", "--short=12", "HEAD"),
        "dirty": bool(_git(root, "status", "--porcelain")),
        "versions": {"python": platform.python_version()}
        | {name: _version(name) for name in ("hdlib", "torch", "papermill", "jupyter-book")},
    }
    working = output.with_name(f".{output.stem}.{os.getpid()}.ipynb")  # another process may make the same page
    failed = output.with_suffix(".failed.ipynb")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        _remove_orphans(output)
        nbformat.write(notebook, working)
        started = time.perf_counter()
        _run(working, source.name, root, cell_timeout, parameters, failed, kernels)
        executed = nbformat.read(working, as_version=4)
        _clean(executed, root)
        executed.metadata["hdlib"] = stamp | {"seconds": round(time.perf_counter() - started, 1)}
        nbformat.write(executed, working)
        working.replace(output)
        failed.unlink(missing_ok=True)
        return _warnings(executed)
    except OSError as error:
        working.unlink(missing_ok=True)  # a part of a notebook cannot be read
        if error.errno not in UNWRITABLE:
            raise
        raise PageError(f"{output} cannot be written ({error.strerror}): make room, or name another output.") from None
    finally:
        with suppress(OSError):  # it is the output already, or there never was one
            working.replace(failed)


def _remove_orphans(output: Path) -> None:
    """Remove what processes that were killed had of an output."""
    for path in output.parent.glob(f".{glob.escape(output.stem)}.*.ipynb"):
        process = path.stem.rpartition(".")[2]
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            path.unlink(missing_ok=True)


def _warnings(notebook: nbformat.NotebookNode) -> list[str]:
    """Return the texts of the Python warnings that a notebook printed, each once."""
    printed = [
        output.text
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "stream" and output.name == "stderr"
    ]
    return list(dict.fromkeys(re.findall(r"^\S+:\d+: \w*Warning: (.+)$", "\n".join(printed), re.MULTILINE)))


def _whose(sentence: str, parameters: dict[str, Any]) -> str:
    """Say which parameters gave the value that a sentence refuses by the name of a run's field, such as beta.

    >>> _whose("beta is -1.0: beta should be at least 0.", {"sgd_beta": -1, "seeds": 5})
    ' Here that is sgd_beta.'
    """
    refused = re.match(r"(\w+) is (.+?)(?:[:,]| but| with) ", sentence)
    if not refused or refused[1] in parameters:
        return ""
    value = number(refused[2])
    names = [
        name
        for name, given in parameters.items()
        if value == given or (isinstance(given, (list, tuple)) and any(value == one for one in given))
    ]
    return f" Here that is {' or '.join(names)}." if names else ""


def _run(
    notebook: Path,
    name: str,
    root: Path,
    cell_timeout: float,
    parameters: dict[str, Any],
    failed: Path,
    kernels: type[AsyncKernelManager],
) -> None:
    """Execute a notebook in its place; whatever stops it leaves what there is, which is to become `failed`."""
    try:
        papermill.execute_notebook(
            notebook,
            notebook,
            kernel_name="python3",
            kernel_manager_class=kernels,
            cwd=root,
            execution_timeout=cell_timeout,
            progress_bar=False,
            log_output=False,
            extra_arguments=KERNEL,
        )
    except PapermillExecutionError as error:
        if is_told_in_a_sentence(error.ename):
            raise PageError(error.evalue + _whose(error.evalue, parameters)) from None
        trace = "\n".join(error.traceback)
        raise PageError(
            f"{name} failed with {error.ename}: {error.evalue}\n{trace}\nWhat was executed of it is in {failed}."
        ) from None
    except DeadKernelError:
        raise PageError(
            f"{name} was not finished, its kernel died, perhaps for want of memory: the runs that had ended are "
            f"recorded, and the same command trains the others. What was executed of it is in {failed}."
        ) from None
    except TimeoutError:
        raise PageError(
            f"{name} has a cell that took longer than {cell_timeout:g} seconds: what was executed of it is in {failed}."
        ) from None


def check(pages: list[Page], root: Path) -> None:
    """Refuse pages that are missing, stale, failed or not executed to the end.

    Raises:
        PageError: with one line for each such page.
    """
    faults = [fault for page in pages if (fault := _unlisted(page, root) or _fault(page, root))]
    if faults:
        raise PageError("\n".join(faults))


def build(root: Path, say: Callable[[str], Any] = print, jobs: int | None = None) -> Path:
    """Execute every page, check them, and build the site from nothing; return its first page.

    Args:
        root: the project's folder.
        say: told what was made.
        jobs: pages that are executed at one time, of which one trains; by default one per core, AT_ONCE at most.

    Raises:
        PageError: a page was not made, or the site has faults; the first ends the other pages.
    """
    from hdlib.runs.sweep import usable_cores

    jobs = min(usable_cores(), AT_ONCE) if jobs is None else jobs
    if jobs < 1:
        raise PageError(f"jobs is {jobs}: it must be at least 1.")
    pages = read_pages(root)
    if unlisted := [fault for page in pages if (fault := _unlisted(page, root))]:
        raise PageError("\n".join(unlisted))
    _execute_all(pages, root, say, jobs)
    check(pages, root)
    for folder in SPHINX_FOLDERS:  # what an earlier build left would satisfy references that lead nowhere now
        shutil.rmtree(root / "_build" / folder, ignore_errors=True)
    command = [Path(sys.executable).with_name("jupyter-book"), "build", ".", "-W", "-n", "--keep-going", "-q"]
    done = subprocess.run(command, cwd=root, check=False)
    index = root / "_build" / "html" / "index.html"
    if done.returncode or not index.is_file():
        raise PageError("The site did not build without warnings: see the lines above.")
    return index


def _execute_all(pages: list[Page], root: Path, say: Callable[[str], Any], jobs: int) -> None:
    """Execute pages in threads, each of which waits for its kernel; what makes one fail, or interrupts, ends all."""
    from hdlib.runs.processes import TURN

    with tempfile.TemporaryDirectory() as folder, chdir(root):  # papermill changes it, and back, for all threads
        os.environ[TURN] = str(Path(folder) / "turn")
        with ThreadPoolExecutor(jobs) as threads:
            waiting, running, made = list(pages), {}, 0
            try:
                while waiting or running:
                    while waiting and len(running) < jobs:
                        page = waiting.pop(0)
                        running[threads.submit(_timed, page, root)] = page
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        page = running.pop(future)
                        try:
                            seconds, warnings = future.result()
                        except PageError as error:
                            raise PageError(f"The page {page.name} was not made: {error}") from None
                        made += 1
                        say(f"{made} of {len(pages)}: {page.name}, {seconds:.0f} s")
                        for warning in warnings:
                            say(f"Warning: {warning}")
            except BaseException:
                for number, seconds in ENDING:
                    ForkedKernelManager.signal_all(number)
                    if not wait(running, timeout=seconds).not_done:
                        break
                raise
            finally:
                del os.environ[TURN]


def _timed(page: Page, root: Path) -> tuple[float, list[str]]:
    """Execute a page; return the seconds that it took, and its warnings."""
    started = time.perf_counter()
    warnings = execute(page.source(root), page.output(root), page.parameters, root, kernels=ForkedKernelManager)
    return time.perf_counter() - started, warnings


def is_told_in_a_sentence(name: str) -> bool:
    """Say whether an exception is one of hdlib's own, whose message needs no traceback."""
    return name in {"SpecError", "DataNotFoundError", "ParameterError", "PageError", "SweepError"}


def _page(name: str, entry: Any) -> Page:
    """Return the page that an entry of book/pages.yml describes."""
    if not isinstance(entry, dict) or not isinstance(entry.get("notebook"), str):
        raise PageError(f"book/pages.yml gives page {name} no notebook: name one of notebooks/.")
    unknown = set(entry) - {"notebook", "parameters"}
    if unknown:
        raise PageError(f"book/pages.yml gives page {name} the entry {unknown.pop()!r}: use notebook or parameters.")
    parameters = entry.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise PageError(f"book/pages.yml gives page {name} the parameters {parameters!r}: write {{name: value}}.")
    return Page(name, entry["notebook"], {key: number(value) for key, value in parameters.items()})


def _unlisted(page: Page, root: Path) -> str:
    """Return the sentence that refuses a page which no reader would find."""
    contents = root / "_toc.yml"
    if not contents.is_file() or page.output(root).relative_to(root).with_suffix("").as_posix() in _files_in(
        yaml.safe_load(contents.read_text(encoding="utf-8"))
    ):
        return ""
    return f"{page.name} is not in the table of contents: add `- file: book/{page.name}` to _toc.yml."


def _files_in(contents: Any) -> set[str]:
    """Return the files that a table of contents names, at any depth."""
    if isinstance(contents, list):
        return set().union(*map(_files_in, contents))
    if not isinstance(contents, dict):
        return set()
    own = {str(contents[name]).removesuffix(".ipynb") for name in ("root", "file") if name in contents}
    return own.union(*map(_files_in, contents.values()))


def _fault(page: Page, root: Path) -> str:
    output = page.output(root)
    if not page.source(root).is_file():
        return f"{page.name} has no notebook {page.notebook}.md: mend book/pages.yml."
    if not output.is_file():
        return f"{page.name} was not executed: run `hdlib book`."
    try:
        notebook = nbformat.read(output, as_version=4)
    except Exception:  # whatever a damaged file makes the reader raise
        return f"{page.name} cannot be read, its file is damaged: run `hdlib book`."
    stamp = notebook.metadata.get("hdlib", {})
    if stamp.get("sha256") != _sha256(page.source(root)):
        return f"{page.name} is stale, {page.notebook}.md has changed since: run `hdlib book`."
    if _values(notebook, page.name) != _values(read_notebook(page.source(root)), page.notebook) | page.parameters:
        return f"{page.name} was run with other parameters than book/pages.yml says: run `hdlib book`."
    cells = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    for cell in cells:
        if any(output.output_type == "error" for output in cell.outputs):
            return f"{page.name} has a cell that failed: mend {page.notebook}.md and run `hdlib book`."
    if [cell.execution_count for cell in cells] != list(range(1, len(cells) + 1)):
        return f"{page.name} was not executed from beginning to end: run `hdlib book`."
    return ""


def _parameters_cell(notebook: nbformat.NotebookNode, name: str) -> nbformat.NotebookNode:
    """Return the cell that is tagged `parameters`."""
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            return cell
    raise PageError(f"{name} has no cell tagged 'parameters': tag one.")


def _parameters(notebook: nbformat.NotebookNode, name: str) -> dict[str, Parameter]:
    """Return a notebook's parameters as they are written."""
    try:
        return assignments(_parameters_cell(notebook, name).source)
    except SyntaxError as error:
        raise PageError(f"The parameters cell of {name} is not Python: {error}.") from None


def _values(notebook: nbformat.NotebookNode, name: str) -> dict[str, Any]:
    """Return the values of a notebook's parameters, as written where they have to be computed."""
    return {
        parameter: default.text if default.value is ... else default.value
        for parameter, default in _parameters(notebook, name).items()
    }


def _set_parameters(notebook: nbformat.NotebookNode, values: dict[str, Any], name: str) -> None:
    """Write values into the parameters cell in place of its defaults, so that a page shows what it was run with."""
    cell = _parameters_cell(notebook, name)
    text = cell.source.encode()  # Python counts columns in bytes
    starts = [0, *(end.end() for end in re.finditer(b"\n", text))]
    for parameter, default in reversed(_parameters(notebook, name).items()):
        if parameter in values:
            line, column, last_line, last_column = default.place
            start, end = starts[line - 1] + column, starts[last_line - 1] + last_column
            text = text[:start] + _literal(values[parameter]).encode() + text[end:]
    cell.source = text.decode()


def _literal(value: Any) -> str:
    """Return a value as Python, in double quotes as the notebooks write them."""
    text = repr(value)
    return text if '"' in text else text.replace("'", '"')


def _fill_in(notebook: nbformat.NotebookNode, values: dict[str, Any], name: str) -> None:
    """Replace {{ name }} in the prose by the parameter's value, so that one notebook can title several pages."""

    def value(match: re.Match) -> str:
        if match[1] not in values:
            raise PageError(f"The prose of {name} names {match[0]}, which is no parameter of it.")
        return str(values[match[1]])

    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"{{ (\w+) }}", value, cell.source)


def _clean(notebook: nbformat.NotebookNode, root: Path) -> None:
    """Drop timings and this machine's folders, and leave out what shows nothing."""
    for cells in _silent_sections(notebook):
        for cell in cells:
            cell.metadata["tags"] = [*cell.metadata.get("tags", []), "remove-cell"]
    for cell in notebook.cells:
        for noise in ("papermill", "execution"):
            cell.metadata.pop(noise, None)
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                output.text = _without_folders(output.text, root)
            for kind, content in output.get("data", {}).items():
                if isinstance(content, str):
                    output.data[kind] = _without_folders(content, root)
    notebook.metadata.pop("papermill", None)
    notebook.metadata.get("language_info", {}).pop("version", None)


def _silent_sections(notebook: nbformat.NotebookNode) -> list[list[nbformat.NotebookNode]]:
    """Return the sections, from one `## ` to the next, whose code shows nothing with the page's parameters."""
    sections: list[list[nbformat.NotebookNode]] = [[]]
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and cell.source.startswith("## "):
            sections.append([])
        sections[-1].append(cell)
    outputs = [[cell.outputs for cell in cells if cell.cell_type == "code"] for cells in sections]
    return [cells for cells, found in zip(sections[1:], outputs[1:], strict=True) if found and not any(found)]


def _without_folders(text: str, root: Path) -> str:
    """Name files below the project, Python's packages and the home folder without the way to them."""
    packages = Path(yaml.__file__).parent.parent
    for folder in (packages, Path(sys.prefix), root, Path.home()):
        if folder != Path(folder.anchor):
            text = text.replace(f"{folder}/", "")
    return text


def _version(name: str) -> str | None:
    """Return an installed package's version; a page can be executed where the book cannot be built."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
