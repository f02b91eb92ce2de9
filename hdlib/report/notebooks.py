"""A notebook: reading it, its parameters, and executing it.

Notebooks are MyST markdown; jupytext converts, papermill executes, and the result is stamped with what made it.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import platform
import re
import subprocess
import sys
import time
from contextlib import suppress
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

from hdlib.report.parameters import Parameter, assignments, number, refusal

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


class NotebookError(ValueError):
    """A notebook cannot be read, or executed as it is asked; the message is one sentence."""


def parameters_of(source: Path) -> dict[str, Parameter]:
    """Return a notebook's parameters.

    Raises:
        NotebookError: the notebook cannot be read, or has no cell tagged `parameters`.
    """
    return _parameters(read_notebook(source), source.name)


def values_of(notebook: nbformat.NotebookNode, name: str) -> dict[str, Any]:
    """Return the values of a notebook's parameters, as written where they have to be computed."""
    return {
        parameter: default.text if default.value is ... else default.value
        for parameter, default in _parameters(notebook, name).items()
    }


def accepted(source: Path, parameters: dict[str, Any]) -> dict[str, Any]:
    """Return parameters as the notebook takes them: 1e5 is whole where its default is.

    Raises:
        NotebookError: the notebook does not have a name, or a value is of another type than the default's.
    """
    known, taken = parameters_of(source), {}
    for name, value in parameters.items():
        whole = isinstance(value, float) and value.is_integer() and name in known and type(known[name].value) is int
        taken[name] = int(value) if whole else value
        if sentence := refusal(source.name, name, taken[name], known):
            raise NotebookError(sentence)
    return taken


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """Return a notebook that is written as markdown or as JSON.

    Raises:
        NotebookError: there is none, or it cannot be read.
    """
    if not path.is_file():
        folder = path if path.is_dir() else path.parent
        there = ", ".join(sorted(found.name for found in folder.glob("*.md"))) or "none"
        what = f"There is no notebook {path.name} in" if folder != path else "No notebook is named, only the folder"
        raise NotebookError(f"{what} {folder.name or '.'}/: there are {there}.")
    try:
        return jupytext.read(path)
    except Exception as error:  # whatever the reader of its format raises
        told = " ".join(str(error).split())[:200]
        raise NotebookError(f"{path.name} cannot be read as a notebook: {told}.") from None


def sha256(path: Path) -> str:
    """Return the checksum of a notebook as it is written, in hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


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
        NotebookError: the notebook is missing, a parameter is refused, the output cannot be written, a cell failed or
            took too many seconds, or the kernel died.
    """
    parameters = accepted(source, parameters)
    source, output = source.resolve(), output.resolve()
    if output == source:
        raise NotebookError(f"The executed notebook would replace {source.name}: name another output.")
    if output.is_dir():
        raise NotebookError(f"output is {str(output)!r}, which is a folder: name a file in it.")
    if output.suffix != ".ipynb":
        raise NotebookError(f"output is {str(output)!r}: name a notebook, which ends in .ipynb.")
    notebook = read_notebook(source)
    _set_parameters(notebook, parameters, source.name)
    effective = values_of(notebook, source.name)
    _fill_in(notebook, effective, source.name)
    stamp = {
        "source": source.relative_to(root).as_posix() if source.is_relative_to(root) else source.name,
        "sha256": sha256(source),
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
        told = f"{output} cannot be written ({error.strerror}): make room, or name another output."
        raise NotebookError(told) from None
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
    >>> _whose("seeds is -1: it must be a whole number.", {"cosine_seeds": -1, "seeds": 5})
    ' Here that is cosine_seeds.'
    """
    refused = re.match(r"(\w+) is (.+?)(?:[:,]| but| with) ", sentence)
    if not refused:
        return ""
    value = number(refused[2])
    names = [
        name
        for name, given in parameters.items()
        if value == given or (isinstance(given, (list, tuple)) and any(value == one for one in given))
    ]
    if refused[1] in names:
        return ""
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
            raise NotebookError(error.evalue + _whose(error.evalue, parameters)) from None
        trace = "\n".join(error.traceback)
        raise NotebookError(
            f"{name} failed with {error.ename}: {error.evalue}\n{trace}\nWhat was executed of it is in {failed}."
        ) from None
    except DeadKernelError:
        raise NotebookError(
            f"{name} was not finished, its kernel died, perhaps for want of memory: the runs that had ended are "
            f"recorded, and the same command trains the others. What was executed of it is in {failed}."
        ) from None
    except TimeoutError:
        raise NotebookError(
            f"{name} has a cell that took longer than {cell_timeout:g} seconds: what was executed of it is in {failed}."
        ) from None


def is_told_in_a_sentence(name: str) -> bool:
    """Say whether an exception is one of hdlib's own, whose message needs no traceback."""
    return name in {"SpecError", "DataNotFoundError", "ParameterError", "NotebookError", "PageError", "SweepError"}


def _parameters_cell(notebook: nbformat.NotebookNode, name: str) -> nbformat.NotebookNode:
    """Return the cell that is tagged `parameters`."""
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            return cell
    raise NotebookError(f"{name} has no cell tagged 'parameters': tag one.")


def _parameters(notebook: nbformat.NotebookNode, name: str) -> dict[str, Parameter]:
    """Return a notebook's parameters as they are written."""
    try:
        return assignments(_parameters_cell(notebook, name).source)
    except SyntaxError as error:
        raise NotebookError(f"The parameters cell of {name} is not Python: {error}.") from None


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
            raise NotebookError(f"The prose of {name} names {match[0]}, which is no parameter of it.")
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


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
