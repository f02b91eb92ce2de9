"""Refuse misspelt notebook parameters, whoever injects them: papermill itself accepts any name."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Sequence


def unknown_name(source: str, name: str, known: Sequence[str]) -> str:
    """Return the sentence that refuses a parameter."""
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}? Its" if close else "its"
    return f"{source} has no parameter {name!r}: {hint} parameters are {', '.join(known)}."


def refuse_unknown(cells: Sequence[str]) -> None:
    """Raise ValueError if papermill injected a name that the parameters cell does not have.

    Args:
        cells: the sources of the cells executed so far, which a notebook knows as `In`. papermill's cell begins
            with "# Parameters" and follows the cell that is tagged `parameters`.
    """
    known: list[str] = []
    for cell in cells:
        names = _assigned(cell)
        if cell.startswith("# Parameters"):
            for name in names:
                if name not in known:
                    raise ValueError(unknown_name("The notebook", name, known))
        elif names and not known:
            known = names


def _assigned(cell: str) -> list[str]:
    try:
        body = ast.parse(cell).body
    except SyntaxError:  # a cell with IPython's magics
        return []
    targets = [target for node in body if isinstance(node, ast.Assign) for target in node.targets]
    return [target.id for target in targets if isinstance(target, ast.Name)]
