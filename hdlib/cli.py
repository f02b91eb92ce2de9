"""The command line: run a notebook, forget records, build the book, check its pages."""

from __future__ import annotations

import itertools
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from hdlib.runs import Record

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Run the notebooks of the book and build it. Training in your own code needs no command: import hdlib.",
)


def print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(version("hdlib"))
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="print the version and stop")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    notebook: Annotated[Path, typer.Argument(help="a notebook as MyST markdown, such as notebooks/tuning.md")],
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", "--parameter", metavar="NAME=VALUE", help="set a parameter; may be given many times"),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="executed notebook; without it _build/runs/NAME.ipynb")
    ] = None,
    show: Annotated[bool, typer.Option("--parameters", help="list the notebook's parameters and stop")] = False,
) -> None:
    """Execute a notebook with parameters; unknown ones are refused.

    Runs that are recorded already are read from the store, others are trained and recorded.

    \b
    hdlib run notebooks/tuning.md --parameters
    hdlib run notebooks/tuning.md -p model=mlp -p epochs=2 -p seeds=1 -o mlp.ipynb
    hdlib run notebooks/online_tuning.md -p task=digits -p epochs=3 -p seeds=2
    """
    from hdlib.report import notebooks, pages
    from hdlib.report.parameters import read_as

    show_bars()
    with one_sentence_errors():
        known = notebooks.parameters_of(notebook)
        if show:
            for name, default in known.items():
                typer.echo(f"{name} = {default.text}  {default.comment}".rstrip())
            return
        values = {name: read_as(text, known.get(name)) for name, text in named(parameter or []).items()}
        notebooks.accepted(notebook, values)
        root = pages.find_root()
        target = output or root / "_build" / "runs" / f"{notebook.stem}.ipynb"
        if "store" in values and not (root / Path(str(values["store"])).expanduser()).is_dir():
            typer.echo(f"store is {values['store']!r}, a new folder: no run is recorded in it.", err=True)
        warnings = notebooks.execute(notebook, target, values, root)
    tell_warnings(warnings)
    typer.echo(f"Executed notebook: {target}")


@app.command()
def forget(
    parameter: Annotated[
        list[str],
        typer.Option("-p", "--parameter", metavar="NAME=VALUE", help="which runs; of several, all must hold"),
    ],
    store: Annotated[str, typer.Option(help="folder of recorded runs")] = "results",
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
) -> None:
    """Remove the records of some runs, after asking, so that they are trained anew where they are asked for.

    A run is named by its fields, by its outcome, or by what made its record, such as the commit of the code.

    \b
    hdlib forget -p beta=auto
    hdlib forget -p outcome=diverged -p commit=unknown
    hdlib forget -p model=mlp -p width=30 -p commit=0123456789ab --store my-results
    """
    from hdlib.report.parameters import number
    from hdlib.runs import RunSpec, SpecError, Store
    from hdlib.runs.spec import meant

    with one_sentence_errors():
        asked, folder = named(parameter), Store(store)
        if not folder.folder.is_dir():
            raise SpecError(f"store is {store!r}, and there is no such folder: name one that holds records.")
        fields = {record.spec.key: named_by(record) for record in folder.all()}
        known = dict.fromkeys(itertools.chain(RunSpec.model_fields, *fields.values()))
        for name in asked:
            if name not in known:
                hint = meant(name, known)
                raise SpecError(f"{name} is not a field of a run or of what made it: {hint} are {', '.join(known)}.")
        found = {
            key: own
            for key, own in fields.items()
            if all(own.get(name) == number(text) or str(own.get(name)) == text for name, text in asked.items())
        }
        if not found:
            raise SpecError(f"No record in {store!r} has {' and '.join(parameter)}.")
        typer.echo(f"{len(found):,} of {len(fields):,} records in {store!r}, by the commit of the code that trained:")
        for commit, count in Counter(own["commit"] for own in found.values()).items():
            last = max(own.get("date", "") for own in found.values() if own["commit"] == commit)
            typer.echo(f"{commit:>12}: {count:,}, the last of {last[:10] or 'an unknown date'}")
        typer.echo("They are of " + "; ".join(kinds_of(found.values())) + ".")
        if not yes:
            typer.confirm("Forget them?", abort=True)
        folder.forget(found)
    typer.echo(f"Forgotten: {len(found):,} records.")


@app.command()
def book(
    only: Annotated[str | None, typer.Option(help="execute this page alone and build nothing")] = None,
    jobs: Annotated[
        int | None,
        typer.Option("-j", "--jobs", help="pages at one time, of which one trains; by default one per core, at most 4"),
    ] = None,
) -> None:
    """Execute every page and build the site into _build/html.

    \b
    hdlib book
    hdlib book --jobs 1
    hdlib book --only tuning-logreg
    """
    from hdlib.report import notebooks, pages

    show_bars()
    with one_sentence_errors():
        root = pages.find_root()
        if only is None:
            index = pages.build(root, echo_above_bar, jobs)
            typer.echo(f"\nThe book is in {index.relative_to(root)}: open it, or run `make serve`.")
            return
        listed = {page.name: page for page in pages.read_pages(root)}
        if only not in listed:
            raise pages.PageError(f"There is no page {only!r}: the pages are {', '.join(listed)}.")
        page = listed[only]
        warnings = notebooks.execute(page.source(root), page.output(root), page.parameters, root)
    tell_warnings(warnings)
    typer.echo(f"Executed page: {page.output(root).relative_to(root)}. The site is as it was: `hdlib book` builds it.")


@app.command()
def check() -> None:
    """Refuse pages that are missing, stale, failed or partly executed."""
    from hdlib.report import pages

    with one_sentence_errors():
        root = pages.find_root()
        listed = pages.read_pages(root)
        pages.check(listed, root)
    typer.echo(f"{len(listed)} pages are as their notebooks say.")


def named_by(record: Record) -> dict[str, Any]:
    """Return everything by which a record can be named; the automatic rule's beta is what it is asked for by."""
    made = record.provenance | {"commit": record.provenance.get("commit") or "unknown"}
    beta = {"beta": "auto"} if record.spec.rule == "auto" else {}
    return record.spec.model_dump() | beta | {"outcome": record.outcome} | made


def kinds_of(records: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Return "logreg with sgd_hd, beta auto (3)" for each kind of records, as `named_by` returns them."""
    for (model, method, auto), count in Counter(
        (r["model"], r["method"], r["beta"] == "auto") for r in records
    ).items():
        yield f"{model} with {method}{', beta auto' if auto else ''} ({count:,})"


def named(texts: list[str]) -> dict[str, str]:
    """Return what is given as NAME=VALUE."""
    from hdlib.report.parameters import ParameterError

    values: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ParameterError(f"-p {text!r} has no value: write -p {text}=VALUE.")
        if name in values:
            raise ParameterError(f"{name} is given twice, as {values[name]!r} and {value!r}: give one of them.")
        values[name] = value
    return values


@contextmanager
def one_sentence_errors() -> Iterator[None]:
    """Print refused input, and an interruption, as a sentence without a traceback, and leave with status 2 or 130."""
    from hdlib.report.notebooks import is_told_in_a_sentence

    try:
        yield
    except Exception as error:
        if not is_told_in_a_sentence(type(error).__name__):
            raise
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # the cell's own traceback, when its task is dropped
        typer.echo("\nInterrupted: the runs that had ended are recorded; the same command trains the others.", err=True)
        raise typer.Exit(130) from None


def tell_warnings(warnings: list[str]) -> None:
    """Print what a notebook warned of, where nobody would look for it."""
    for warning in warnings:
        typer.echo(f"Warning: {warning}", err=True)


def show_bars() -> None:
    """Let the kernels that this process starts tell their progress where it has its standard error."""
    own = f"/proc/{os.getpid()}/fd/2"
    os.environ["HDLIB_TERMINAL"] = own if os.path.exists(own) else ""
    if os.path.isfile(own):  # a log, to whose end all have to write: each has a place of its own in it otherwise
        import fcntl

        fcntl.fcntl(2, fcntl.F_SETFL, fcntl.fcntl(2, fcntl.F_GETFL) | os.O_APPEND)
    if sys.stderr.isatty():
        with suppress(OSError, AttributeError):  # a container's terminal, and Windows', has no name
            os.environ["HDLIB_TERMINAL"] = os.ttyname(sys.stderr.fileno())


def echo_above_bar(text: str) -> None:
    """Print a line in place of a bar that may be there, and is drawn anew below."""
    typer.echo(f"\r\x1b[K{text}" if sys.stdout.isatty() else text)
