"""The method's picture: paths of an optimiser on two parameters."""

from __future__ import annotations

from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from hdlib.report.style import Figure, Theme, significant


def paths(table: pd.DataFrame, loss: Callable, name: str, caption: str = "") -> Figure:
    """Draw paths over the contour lines of the loss, a panel for each method, and the learning rates of the last one.

    Args:
        table: a row per step: method, alpha0 (at most three), step, alpha, x, y, loss.
        loss: of x and y.
        name: of the figure.
    """
    methods = list(table["method"].unique())

    def draw(theme: Theme) -> plt.Figure:
        figure, axes = plt.subplots(1, len(methods) + 1, figsize=(9, 3.2))
        x, y = np.meshgrid(np.linspace(-4.6, 1.6, 120), np.linspace(-1.9, 1.9, 120))
        for axis, method in zip(axes, methods, strict=False):
            axis.contour(x, y, loss(x, y), levels=np.geomspace(0.1, 30, 9), colors=[theme.grid], linewidths=0.8)
            for color, (rate, path) in zip(theme.palette, _of(table, method), strict=False):
                axis.plot(path["x"], path["y"], "o-", color=color, markersize=2.5, linewidth=1, label=f"α₀ = {rate:g}")
            axis.set(title=method, xlabel="x", ylabel="y")
            axis.grid(False)
        for color, (_, path) in zip(theme.palette, _of(table, methods[-1]), strict=False):
            axes[-1].plot(path["step"], path["alpha"], color=color)
        axes[-1].set(title=f"{methods[-1]}'s α", xlabel="step", yscale="log")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        return figure

    steps = table["step"].max()
    ends = table[table["step"] == steps].groupby("alpha0", sort=False)
    told = "; ".join(
        f"from α₀ = {rate:g} "
        + ", ".join(f"{row.method} ends at a loss of {significant(row.loss, 2)}" for row in rows.itertuples())
        for rate, rows in ends
    )
    alt = f"Paths over the contour lines of a loss: {told}."
    return Figure(draw, name, alt, table, f"{steps} steps; {told}.", caption)


def _of(table: pd.DataFrame, method: str):
    return table[table["method"] == method].groupby("alpha0", sort=False)
