"""The executed pages of the book: which there are, running them, and refusing stale or failed ones.

`book/pages.yml` names each page, the notebook it comes from and the parameters it is run with. Notebooks are
MyST markdown; jupytext converts, papermill executes, and the result is stamped with what made it.
"""

from __future__ import annotations

import ast
import hashlib
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import papermill
import yaml
from papermill.exceptions import PapermillExecutionError

from hdlib.report.parameters import unknown_name

CELL_TIMEOUT = 24 * 3600  # seconds; a cell may train


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


def find_root(start: Path | None = None) -> Path:
    """Return the folder with `book/pages.yml`, here or above."""
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / "book" / "pages.yml").is_file():
            return folder
    raise PageError("There is no book/pages.yml here or above: change into the project's folder first.")


def read_pages(root: Path) -> list[Page]:
    """Return the pages that book/pages.yml lists."""
    listed = yaml.safe_load((root / "book" / "pages.yml").read_text())
    pages = []
    for name, entry in listed.items():
        unknown = set(entry) - {"notebook", "parameters"}
        if unknown:
            raise PageError(
                f"book/pages.yml gives page {name} the entry {unknown.pop()!r}: use notebook or parameters."
            )
        parameters = {key: number(value) for key, value in (entry.get("parameters") or {}).items()}
        pages.append(Page(name, entry["notebook"], parameters))
    return pages


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


def parameters_of(source: Path) -> dict[str, str]:
    """Return a notebook's parameters with their defaults as written and their explanation.

    Raises:
        PageError: the notebook has no cell tagged `parameters`.
    """
    for cell in jupytext.read(source).cells:
        if "parameters" in cell.metadata.get("tags", []):
            found = {}
            for line in cell.source.splitlines():
                name, equals, rest = line.partition("=")
                if equals:
                    found[name.partition(":")[0].strip()] = rest.strip()
            return found
    raise PageError(f"{source.name} has no cell tagged 'parameters': tag one.")


def check_parameters(source: Path, parameters: dict[str, Any]) -> None:
    """Refuse names that the notebook does not have."""
    known = parameters_of(source)
    for name in parameters:
        if name not in known:
            raise PageError(unknown_name(source.name, name, list(known)))


def execute(source: Path, output: Path, parameters: dict[str, Any], root: Path) -> None:
    """Run a notebook with parameters and write the executed notebook whole or not at all.

    A failed run leaves what there is beside the output, as `<name>.failed.ipynb`.

    Raises:
        PageError: the notebook is missing, a parameter is unknown, or a cell failed.
    """
    if not source.is_file():
        raise PageError(f"There is no notebook {source.name} in {source.parent.name}/.")
    check_parameters(source, parameters)
    output.parent.mkdir(parents=True, exist_ok=True)
    failed = output.with_suffix(".failed.ipynb")
    failed.unlink(missing_ok=True)
    started = time.time()
    notebook = jupytext.read(source)
    effective = {name: number(text.partition("#")[0].strip()) for name, text in parameters_of(source).items()}
    effective |= parameters
    _fill_in(notebook, effective)
    nbformat.write(notebook, failed)
    try:
        papermill.execute_notebook(
            failed,
            failed,
            parameters=parameters,
            kernel_name="python3",
            cwd=root,
            execution_timeout=CELL_TIMEOUT,
            progress_bar=False,
            log_output=False,
            extra_arguments=["--log-level=40"],  # no word about the kernel's transport on every page
        )
    except PapermillExecutionError as error:
        if refuses_input(error.ename):
            raise PageError(error.evalue) from None
        trace = "\n".join(error.traceback)
        raise PageError(f"{source.name} failed with {error.ename}: {error.evalue}\n{trace}") from None
    executed = nbformat.read(failed, as_version=4)
    _clean(executed)
    executed.metadata["hdlib"] = {
        "source": f"notebooks/{source.name}",
        "sha256": _sha256(source),
        "parameters": parameters,
        "effective": effective,
        "executed": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "seconds": round(time.time() - started, 1),
        "commit": _git(root, "rev-parse", "--short=12", "HEAD"),
        "versions": {name: version(name) for name in ("hdlib", "torch", "papermill", "jupyter-book")},
    }
    nbformat.write(executed, failed)
    failed.replace(output)


def check(pages: list[Page], root: Path) -> None:
    """Refuse pages that are missing, stale, failed or not executed to the end.

    Raises:
        PageError: with one line for each such page.
    """
    faults = [fault for page in pages if (fault := _fault(page, root))]
    if faults:
        raise PageError("\n".join(faults))


def build(root: Path, say=print) -> Path:
    """Execute every page, check them, and build the site from nothing; return its first page."""
    pages = read_pages(root)
    for page in pages:
        started = time.time()
        say(f"{page.name} ...", end=" ", flush=True)
        execute(page.source(root), page.output(root), page.parameters, root)
        say(f"{time.time() - started:.0f} s", flush=True)
    check(pages, root)
    shutil.rmtree(root / "_build", ignore_errors=True)
    command = [Path(sys.executable).with_name("jupyter-book"), "build", ".", "-W", "-n", "--keep-going", "-q"]
    done = subprocess.run(command, cwd=root, check=False)
    index = root / "_build" / "html" / "index.html"
    if done.returncode or not index.is_file():
        raise PageError("The site did not build without warnings: see the lines above.")
    return index


def refuses_input(name: str) -> bool:
    """Say whether an exception is one of those by which hdlib refuses bad input."""
    return name in {"ValueError", "SpecError", "DataNotFoundError", "PageError"}


def _fault(page: Page, root: Path) -> str:
    output = page.output(root)
    if not output.is_file():
        return f"{page.name} was not executed: run `hdlib book`."
    notebook = nbformat.read(output, as_version=4)
    stamp = notebook.metadata.get("hdlib", {})
    if stamp.get("sha256") != _sha256(page.source(root)):
        return f"{page.name} is stale, {page.notebook}.md has changed since: run `hdlib book`."
    if stamp.get("parameters") != page.parameters:
        return f"{page.name} was run with other parameters than book/pages.yml says: run `hdlib book`."
    cells = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    for cell in cells:
        if any(output.output_type == "error" for output in cell.outputs):
            return f"{page.name} has a cell that failed: mend {page.notebook}.md and run `hdlib book`."
    if [cell.execution_count for cell in cells] != list(range(1, len(cells) + 1)):
        return f"{page.name} was not executed from beginning to end: run `hdlib book`."
    return ""


def _fill_in(notebook: nbformat.NotebookNode, values: dict[str, Any]) -> None:
    """Replace {{ name }} in the prose by the parameter's value, so that one notebook can title several pages."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"{{ (\w+) }}", lambda match: str(values[match[1]]), cell.source)


def _clean(notebook: nbformat.NotebookNode) -> None:
    """Drop timings and paths, and fold the injected parameters."""
    for cell in notebook.cells:
        for noise in ("papermill", "execution"):
            cell.metadata.pop(noise, None)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.metadata.tags.append("hide-input")
    notebook.metadata.pop("papermill", None)
    notebook.metadata.get("language_info", {}).pop("version", None)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
