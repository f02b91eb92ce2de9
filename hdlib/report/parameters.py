"""Refuse misspelt and mistyped notebook parameters, whoever injects them: papermill itself accepts any."""

from __future__ import annotations

import ast
import difflib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

KINDS = {bool: "truth value", int: "number", float: "number", str: "string", list: "list", tuple: "list"}


class ParameterError(ValueError):
    """A notebook was given a parameter that it cannot have; the message is one sentence."""


def refusal(source: str, name: str, value: Any, known: Mapping[str, tuple[str, str]]) -> str:
    """Return the sentence that refuses a parameter, or nothing.

    Args:
        source: the notebook's name.
        name: of the parameter.
        value: that it is given.
        known: the notebook's parameters: each one's default as written, and the comment behind it. A value has the
            default's type; a number may be a string that the comment quotes, such as "auto".
    """
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}? Its" if close else "its"
        return f"{source} has no parameter {name!r}: {hint} parameters are {', '.join(known)}."
    text, comment = known[name]
    wanted, given = KINDS.get(type(_plain(text))), KINDS.get(type(value), "value")
    if wanted in (None, given) or value is ... or (wanted == "number" and f'"{value}"' in comment):
        return ""
    return f"{name} is the {given} {value!r}: give a {wanted}, such as {' '.join(text.split())}."


def refuse_unknown(cells: Sequence[str]) -> None:
    """Raise ParameterError if papermill injected what the parameters cell does not have, or has with another type.

    Args:
        cells: the sources of the cells executed so far, which a notebook knows as `In`. papermill's cell begins
            with "# Parameters" and follows the cell that is tagged `parameters`.
    """
    for before, cell in itertools.pairwise(cells):
        if cell.startswith("# Parameters"):
            known = _assigned(before)
            for name, (text, _) in _assigned(cell).items():
                if sentence := refusal("The notebook", name, _plain(text), known):
                    raise ParameterError(sentence)


def _plain(text: str) -> Any:
    """Return the value that a text writes out, or an ellipsis where it has to be computed."""
    try:
        return ast.literal_eval(text)
    except ValueError:
        return ...


def _assigned(cell: str) -> dict[str, tuple[str, str]]:
    """Return the values that a cell assigns to names, as they are written, and the comments behind them."""
    try:
        body = ast.parse(cell).body
    except SyntaxError:  # a cell with IPython's magics
        return {}
    lines = cell.splitlines()
    return {
        target.id: (ast.get_source_segment(cell, node.value) or "", lines[(node.end_lineno or 0) - 1])
        for node in body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
