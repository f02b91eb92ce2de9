"""The executed pages of the book: which there are, making all of them, and refusing stale or failed ones.

`book/pages.yml` names each page, the notebook it comes from and the parameters it is run with.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import chdir
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nbformat
import yaml

from hdlib.report import notebooks
from hdlib.report.kernels import ForkedKernelManager
from hdlib.report.notebooks import NotebookError
from hdlib.report.parameters import number

AT_ONCE = 4  # pages: each has a process that holds the records
ENDING = 20.0  # seconds for kernels that were interrupted: a sweep records what was finished
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
        PageError: the file is not what it should be.
        NotebookError: a notebook is missing, or lacks a parameter.
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
    return [replace(page, parameters=notebooks.accepted(page.source(root), page.parameters)) for page in pages]


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

    waiting, running = list(pages), {}
    # papermill changes the folder, and back, for all threads: here it is that of all pages
    with tempfile.TemporaryDirectory() as folder, chdir(root), ThreadPoolExecutor(jobs) as threads:
        os.environ[TURN] = str(Path(folder) / "turn")
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    page = waiting.pop(0)
                    running[threads.submit(_execute, page, root)] = page
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    page = running.pop(future)
                    seconds, warnings = future.result()
                    say(f"{len(pages) - len(waiting) - len(running)} of {len(pages)}: {page.name}, {seconds:.0f} s")
                    for warning in warnings:
                        say(f"Warning: {warning}")
        except BaseException:
            _end(running)
            raise
        finally:
            del os.environ[TURN]


def _execute(page: Page, root: Path) -> tuple[float, list[str]]:
    """Execute a page; return the seconds that it took, and its warnings."""
    started = time.perf_counter()
    source, output = page.source(root), page.output(root)
    try:
        warnings = notebooks.execute(source, output, page.parameters, root, kernels=ForkedKernelManager)
    except NotebookError as error:
        raise PageError(f"The page {page.name} was not made: {error}") from None
    return time.perf_counter() - started, warnings


def _end(running: Iterable[Future]) -> None:
    """Interrupt the kernels of pages, those too that start meanwhile; end what stays, such as one between two cells."""
    told: set[ForkedKernelManager] = set()
    until = time.monotonic() + ENDING
    while wait(running, timeout=0.5).not_done and time.monotonic() < until:
        told |= ForkedKernelManager.signal_all(signal.SIGINT, besides=told)
    ForkedKernelManager.signal_all(signal.SIGTERM)


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
    if stamp.get("sha256") != notebooks.sha256(page.source(root)):
        return f"{page.name} is stale, {page.notebook}.md has changed since: run `hdlib book`."
    defaults = notebooks.values_of(notebooks.read_notebook(page.source(root)), page.notebook)
    if notebooks.values_of(notebook, page.name) != defaults | page.parameters:
        return f"{page.name} was run with other parameters than book/pages.yml says: run `hdlib book`."
    cells = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    for cell in cells:
        if any(output.output_type == "error" for output in cell.outputs):
            return f"{page.name} has a cell that failed: mend {page.notebook}.md and run `hdlib book`."
    if [cell.execution_count for cell in cells] != list(range(1, len(cells) + 1)):
        return f"{page.name} was not executed from beginning to end: run `hdlib book`."
    return ""
