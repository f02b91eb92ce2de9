"""The versions that a page was built with."""

from __future__ import annotations

import platform
from importlib.metadata import version

import pandas as pd

from hdlib.report.style import Table

PACKAGES = ("hdlib", "torch", "torchvision", "numpy", "pandas", "pyarrow", "matplotlib", "seaborn", "papermill",
            "jupytext", "jupyter-book", "sphinx")  # fmt: skip


def table() -> Table:
    """Return Python's and the main packages' versions."""
    rows = [("Python", platform.python_version()), *((name, version(name)) for name in PACKAGES)]
    return Table(pd.DataFrame(rows, columns=["package", "version"]))
