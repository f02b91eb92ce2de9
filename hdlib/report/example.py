"""Hypergradient descent on two parameters, small enough to be seen whole."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from hdlib import SGDHD
from hdlib.report.style import Figure, Theme, significant

CURVATURES = (1.0, 10.0)  # of the loss along the two parameters
START = (-4.0, 1.5)


def bowl(name: str, rates: Sequence[float], beta: float, steps: int, caption: str = "") -> Figure:
    """Draw the paths of SGD and SGD-HD from several alpha_0 down the loss (x^2 + 10 y^2) / 2, and SGD-HD's alpha.

    Args:
        name: of the figure.
        rates: the initial learning rates, at most three.
        beta: of SGD-HD.
        steps: of each path.
    """
    betas = {"SGD": 0.0, "SGD-HD": beta}
    table = pd.concat([_path(rate, betas[m], steps).assign(method=m) for m in betas for rate in rates])

    def draw(theme: Theme) -> plt.Figure:
        figure, axes = plt.subplots(1, 3, figsize=(9, 3.2))
        x, y = np.meshgrid(np.linspace(-4.6, 1.6, 120), np.linspace(-1.9, 1.9, 120))
        for axis, method in zip(axes, ("SGD", "SGD-HD"), strict=False):
            axis.contour(x, y, _loss(x, y), levels=np.geomspace(0.1, 30, 9), colors=[theme.grid], linewidths=0.8)
            for color, (rate, path) in zip(theme.palette, _of(table, method), strict=False):
                axis.plot(path["x"], path["y"], "o-", color=color, markersize=2.5, linewidth=1, label=f"α₀ = {rate:g}")
            axis.set(title=method, xlabel="x", ylabel="y")
            axis.grid(False)
        for color, (_, path) in zip(theme.palette, _of(table, "SGD-HD"), strict=False):
            axes[2].plot(path["step"], path["alpha"], color=color)
        axes[2].set(title="SGD-HD's α", xlabel="step", yscale="log")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        return figure

    ends = table[table["step"] == steps].set_index(["method", "alpha0"])["loss"]
    told = "; ".join(
        f"from α₀ = {rate:g} SGD ends at a loss of {significant(ends['SGD', rate], 2)}, SGD-HD at "
        f"{significant(ends['SGD-HD', rate], 2)}"
        for rate in rates
    )
    alt = f"Paths over the contour lines of a bowl that is steep in y and flat in x, {steps} steps: {told}."
    note = f"{steps} steps, β = {beta:g}; {told}."
    return Figure(draw, name, alt, table, note, caption)


def _loss(x, y):
    return (CURVATURES[0] * x**2 + CURVATURES[1] * y**2) / 2


def _path(alpha0: float, beta: float, steps: int) -> pd.DataFrame:
    """Return step, alpha, x, y and the loss, from the start to after the last step."""
    theta = torch.tensor(START, dtype=torch.float64, requires_grad=True)
    optimizer = SGDHD([theta], lr=alpha0, hypergrad_lr=beta)
    rows = []
    for step in range(steps + 1):
        loss = _loss(*theta)
        rows.append([step, optimizer.learning_rates()[0], *theta.tolist(), loss.item()])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return pd.DataFrame(rows, columns=["step", "alpha", "x", "y", "loss"]).assign(alpha0=alpha0)


def _of(table: pd.DataFrame, method: str):
    return table[table["method"] == method].groupby("alpha0", sort=False)
