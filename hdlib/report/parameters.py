"""A notebook's parameters: reading their cell, and refusing misspelt and mistyped ones, which papermill accepts."""

from __future__ import annotations

import ast
import difflib
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

CHOICES = re.compile(r"# [\w ]+: ((?:\w+, )*\w+ or \w+)")  # a comment that ends in all strings there are
KINDS = {
    bool: "truth value",
    int: "number",
    float: "number",
    str: "string",
    list: "list",
    tuple: "list",
    dict: "mapping",
}


class ParameterError(ValueError):
    """A notebook was given a parameter that it cannot have; the message is one sentence."""


class Parameter(NamedTuple):
    """A line of a parameters cell: `name = value` or `name: type = value`, and the comment behind it.

    `text` is the value as it is written, `place` its first line and column and its last, as in Python's syntax trees,
    and `value` what it means, an ellipsis where it has to be computed.
    """

    text: str
    comment: str
    value: Any
    place: tuple[int, int, int, int]


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


def read_as(text: str, default: Parameter | None) -> Any:
    """Return the value that a text on a command line means for a parameter: one that is a string stays a string."""
    value = number(text)
    return text if default is not None and isinstance(default.value, str) and not isinstance(value, str) else value


def assignments(cell: str) -> dict[str, Parameter]:
    """Return what a cell assigns to names, in its order.

    Raises:
        SyntaxError: it is not Python.
    """
    lines = [line.encode() for line in cell.splitlines()]  # Python counts columns in bytes
    found = {}
    for node in ast.parse(cell).body:
        if not isinstance(node, (ast.Assign, ast.AnnAssign)):  # such as `name += value`, which computes with it
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        value = node.value
        if value is None or len(targets) != 1 or not isinstance(targets[0], ast.Name):
            continue
        found[targets[0].id] = Parameter(
            ast.get_source_segment(cell, value) or "",
            lines[node.end_lineno - 1][node.end_col_offset :].decode().strip(),
            _plain(value),
            (value.lineno, value.col_offset, value.end_lineno, value.end_col_offset),
        )
    return found


def refusal(source: str, name: str, value: Any, known: Mapping[str, Parameter]) -> str:
    """Return the sentence that refuses a parameter, or nothing.

    Args:
        source: the notebook's name.
        name: of the parameter.
        value: that it is given.
        known: the notebook's parameters. A value has the default's type, and is whole where that is; a number may be
            a string that the comment quotes, such as "auto", and a string is one of those that it lists, if it does.
    """
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}? Its" if close else "its"
        return f"{source} has no parameter {name!r}: {hint} parameters are {', '.join(known)}."
    default = known[name]
    wanted, given = KINDS.get(type(default.value)), KINDS.get(type(value), "value")
    example = " ".join(default.text.split())
    if value is ... or (wanted == "number" and f'"{value}"' in default.comment):
        return ""
    if wanted not in (None, given):
        quoted = re.search(r', or "\w+"', default.comment) if wanted == "number" else None
        remedy = f"give a {wanted}, such as {example}{quoted[0] if quoted else ''}"
        return f"{name} is the {given} {value!r}: {remedy}."
    if type(default.value) is int and isinstance(value, float) and math.isfinite(value):
        return f"{name} is {value!r}: give a whole number, without a point, such as {example}."
    if _plain(ast.parse(repr(value), mode="eval").body) is ...:  # Python writes inf and nan as names that it lacks
        return f"{name} is {value!r}: give finite numbers, such as {example}."
    choices = CHOICES.fullmatch(default.comment) if wanted == "string" else None
    if choices and value not in re.split(", | or ", choices[1]):
        return f"{name} is {value!r}: give {choices[1]}."
    return ""


def refuse_unknown(cells: Sequence[str]) -> None:
    """Raise ParameterError if papermill injected what the parameters cell does not have, or has with another type.

    Args:
        cells: the sources of the cells executed so far, which a notebook knows as `In`. papermill's cell begins
            with "# Parameters" and follows the cell that is tagged `parameters`.
    """
    for before, cell in itertools.pairwise(cells):
        if cell.startswith("# Parameters"):
            known = _assigned(before)
            for name, given in _assigned(cell).items():
                if sentence := refusal("The notebook", name, given.value, known):
                    raise ParameterError(sentence)


def refuse_text(**lists: Sequence[Any]) -> None:
    """Raise ParameterError if a list of numbers, given by its name, has something else, such as a string."""
    for name, values in lists.items():
        for value in values:
            if KINDS.get(type(value)) != "number":
                kind = KINDS.get(type(value), "value")
                raise ParameterError(f"{name} has the {kind} {value!r}, which this page cannot show: give numbers.")


def refuse_fewer(least: int, **counts: Any) -> None:
    """Raise ParameterError if a count, given by its name, is no whole number of at least `least`, or a list shorter."""
    for name, value in counts.items():
        if isinstance(value, (list, tuple)):
            if len(value) < least:
                raise ParameterError(f"{name} is {value!r}: give at least {least}.")
            continue
        if not (isinstance(value, (int, float)) and value >= least and value % 1 == 0):
            raise ParameterError(f"{name} is {value!r}: it must be a whole number of at least {least}.")


def refuse_more(most: int, **counts: Any) -> None:
    """Raise ParameterError if a count, given by its name, is above `most`, which is all that there are."""
    for name, value in counts.items():
        if value > most:
            raise ParameterError(f"{name} is {value!r}, but there are {most}: give no more.")


def _plain(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ...


def _assigned(cell: str) -> dict[str, Parameter]:
    try:
        return assignments(cell)
    except SyntaxError:  # a cell with IPython's magics
        return {}
