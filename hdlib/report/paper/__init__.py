"""The paper's own numbers, to stand beside ours.

`figure2.csv` and `figure3.csv` are digitised from the vector figures of Baydin et al., ICLR 2018 (arXiv 1703.04782
v3), epoch values good to about 1 %. `tuning.csv` holds the largest alpha of Figure 3, over its first 9,000 iterations,
and of the runs that the authors published with their PyTorch code (gbaydin/hypergradient-descent) their final and best
losses, the largest alpha, the training losses at the start and of the first epoch, and the seconds that they took; of
VGG also the validation losses, the iteration of the largest alpha and the share of iterations with a negative one;
the training losses of the MLP's Adam-HD are read from their plot. `figure4.csv` holds the numbers that are printed in
Figure 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, wraps
from importlib.resources import files

import numpy as np
import pandas as pd

from hdlib.runs import BASELINE

TASKS = {"logreg": "mnist", "mlp": "mnist", "vgg": "cifar10"}  # on what the paper trained each model
VGG_SHOWN = 9_000  # iterations of which its Figure 3 shows the learning rates of VGG
ONLINE_EPOCHS = 50  # of its Figure 2
STATED = 1e-4  # the beta that it states for all of it
IMPLIED = {  # those that its curves imply, by model and method
    ("logreg", "sgd_hd"): 1e-4,
    ("logreg", "adam_hd"): 1e-4,
    ("mlp", "sgd_hd"): 1e-5,
    ("mlp", "adam_hd"): 1e-7,
}
TUNED_FROM = 1e-3  # the initial learning rate of its Figure 3
TARGET, CAP = 0.29, 468_750  # the loss that runs of its Figure 4 aim at, and the iterations after which it gave one up
MULTIPLICATIVE = {  # the alpha_0 of its multiplicative runs, by model and method, as the legend of its Figure 2 has it
    ("logreg", "sgd_hd"): 1e-1,
    ("logreg", "adam_hd"): 1e-2,
    ("mlp", "sgd_hd"): 1e-1,
    ("mlp", "adam_hd"): 1e-3,
}
COLUMNS = {"loss": "train_loss", "val": "valid_loss", "alpha": "alpha"}


def _read_once(table: Callable[[], pd.DataFrame]) -> Callable[[], pd.DataFrame]:
    """Make a table once a process, and return a copy of it: pages ask for one hundreds of times."""
    made = cache(table)
    return wraps(table)(lambda: made().copy())


@_read_once
def figure2() -> pd.DataFrame:
    """Return the online-tuning curves: model, method, alpha0, rule, quantity, epoch, value."""
    frame = _read("figure2.csv")
    multiplicative = frame["alpha0"] == "HDM"
    named = [MULTIPLICATIVE.get(pair) for pair in zip(frame["model"], frame["method"], strict=True)]
    frame["rule"] = multiplicative.map({True: "multiplicative", False: "additive"})
    frame["alpha0"] = frame["alpha0"].where(~multiplicative, pd.Series(named, index=frame.index)).astype(float)
    return frame[frame["epoch"] <= ONLINE_EPOCHS]


@_read_once
def figure3() -> pd.DataFrame:
    """Return the tuning curves: model, method, quantity, epoch, value."""
    frame = _read("figure3.csv")
    return frame[
        (frame["quantity"] != "alpha") | (frame["epoch"] > 0) | (frame["value"] > 0)
    ]  # two of VGG's start at 0


def figure3_at(model: str, epoch: int) -> pd.DataFrame:
    """Return losses of Figure 3 at an epoch, before the end: a row per method as `tuning` has them, without others.

    Where the figure's line has no point at an epoch, for it leaves out those on a straight one, it is interpolated.
    """
    curves = figure3()
    curves = curves[(curves["model"] == model) & (curves["epoch"] > 0)].sort_values("epoch")
    rows = []
    for method, own in curves.groupby("method"):
        train, valid = (own[own["quantity"] == quantity] for quantity in ("train_loss", "valid_loss"))
        row = dict(model=model, method=method, source="paper", epochs=epoch, alpha_max=np.nan, alpha_end=np.nan)
        row["train_end"], row["valid_end"] = (float(np.interp(epoch, c["epoch"], c["value"])) for c in (train, valid))
        row["valid_best"] = min(row["valid_end"], valid.loc[valid["epoch"] <= epoch, "value"].min())
        rows.append(row)
    return pd.DataFrame(rows)


def published(model: str, task: str, lengths: Iterable[int]) -> pd.DataFrame:
    """Return the rows of `tuning` beside runs of some lengths, and where Figure 3 is longer, its losses there."""
    known = beside(tuning(), model, task)
    longest = known.loc[known["source"] == "paper", "epochs"].max()
    earlier = [beside(figure3_at(model, n), model, task) for n in sorted(set(lengths)) if n < longest]
    return pd.concat([*earlier, known]) if earlier else known


@_read_once
def figure4() -> pd.DataFrame:
    """Return the grid search: method, alpha0, beta (0 for baselines), iterations (infinite where not reached)."""
    frame = pd.read_csv(files(__package__) / "figure4.csv")
    unreached = frame["iterations"].str.startswith(">")
    frame["iterations"] = frame["iterations"].where(~unreached, "inf").astype(float)
    return frame


@cache
def outlined() -> frozenset[tuple[str, float, float]]:
    """Return the cells of Figure 4 that it outlines in red, as method, alpha0 and beta: slower than their baseline."""
    table = figure4()
    base = table[table["beta"] == 0].set_index(["method", "alpha0"])["iterations"]
    return frozenset(
        (row.method, row.alpha0, row.beta)
        for row in table[table["method"].isin(BASELINE)].itertuples()
        if row.iterations > base[BASELINE[row.method], row.alpha0]
    )


@_read_once
def tuning() -> pd.DataFrame:
    """Return first, final and best losses, the largest and last alpha, the time: a row per model, method and source.

    The paper's final and best losses and last alphas are those of its curves, after the first epoch at the earliest.
    """
    frame = pd.read_csv(files(__package__) / "tuning.csv").set_index(["model", "method", "source"])
    curves = figure3()
    decayed = (curves["model"] == "logreg") & (curves["method"] == "adam")
    curves = curves.assign(source="paper", method=curves["method"].mask(decayed, "adam_decayed"))
    losses = curves[curves["epoch"] > 0].sort_values("epoch").groupby(["quantity", *frame.index.names])["value"]
    ends = losses.last().unstack("quantity")
    ends = ends.rename(columns=dict(train_loss="train_end", valid_loss="valid_end", alpha="alpha_end"))
    frame.update(ends.assign(valid_best=losses.min()["valid_loss"]))
    return frame.reset_index()


@cache
def tuning_epochs(model: str) -> int:
    """Return of how many epochs a model's runs in Figure 3 are.

    >>> [tuning_epochs(model) for model in TASKS]
    [20, 100, 200]
    """
    frame = tuning()
    return int(frame.loc[(frame["model"] == model) & (frame["source"] == "paper"), "epochs"].max())


def tuned_beta(method: str, model: str) -> float:
    """Return the beta of a method's runs in Figure 3, 0 for a baseline.

    >>> [tuned_beta("adam_hd", model) for model in TASKS]
    [1e-07, 1e-07, 1e-08]
    """
    if method not in BASELINE:
        return 0.0
    return 1e-3 if method != "adam_hd" else 1e-8 if model == "vgg" else 1e-7


def beside(frame: pd.DataFrame, model: str, task: str) -> pd.DataFrame:
    """Return the rows that belong beside runs of a model on a task: none where the paper trained it on another."""
    return frame[(frame["model"] == model) & (TASKS.get(model) == task)]


def _read(name: str) -> pd.DataFrame:
    frame = pd.read_csv(files(__package__) / name)
    frame["quantity"] = frame["quantity"].map(COLUMNS)
    keys = [column for column in frame.columns if column != "value"]
    return frame.groupby(keys, sort=False, as_index=False)["value"].mean()
