"""How fast training is: what the benchmarks wrote, as tables, figures and sentences.

Every function reads a file of `results/benchmarks/`, and says so where the benchmark was not run.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from hdlib.report import paper
from hdlib.report.style import LABELS, Figure, Table, Theme, fraction, several, significant
from hdlib.runs import Record
from hdlib.runs.history import CHUNK

MODELS = {"logreg": "logistic regression, 126 cells of the grid", "mlp": "perceptron, 24 runs of six methods"}

STEP_GOALS = [
    ("AdamHD as it comes against Adam as it comes, perceptron", "mlp", "AdamHD default", "to_default", 1.25),
    ("AdamHD as it comes against Adam as it comes, VGG-16", "vgg", "AdamHD default", "to_default", 1.25),
    ("AdamHD's fused step against Adam's fastest, perceptron", "mlp", "AdamHD fused", "to_fastest", 1.15),
    ("AdamHD's fused step against Adam's fastest, VGG-16", "vgg", "AdamHD fused", "to_fastest", 1.5),
    ("SGDHD's fused step against SGD's fastest, perceptron", "mlp", "SGDHD fused", "to_fastest", 2.1),
    ("SGDHD's fused step against SGD's fastest, VGG-16", "vgg", "SGDHD fused", "to_fastest", 2.1),
]
"""What a step may cost: the memory's floor is 1.29 times Adam's and 2.0 times SGD's, two passes against one."""


def read(store: str, name: str) -> dict | None:
    """Return what a benchmark wrote, or None."""
    path = Path(store).expanduser() / "benchmarks" / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def of_benchmark(name: str) -> Callable:
    """Hand a function, in the place of a store, what a benchmark wrote there; without that, say so for it."""

    def decorate(show: Callable) -> Callable:
        @functools.wraps(show)
        def shown(store: str, *arguments: str) -> Any:
            r = read(store, name)
            return f"`benchmarks/{name}.py` was not run." if r is None else show(r, *arguments)

        return shown

    return decorate


@of_benchmark("stacked_training")
def stacked(r: dict) -> Table | str:
    """Return the throughput of stacked training as shares of the floor and ratios to other ways."""
    rows = []
    for model, label in MODELS.items():
        rows.append(
            {
                "what": label,
                "model-iterations a second": f"{r[f'{model} per second']:,.0f}",
                "rate at the floor": f"{r[f'{model} floor per second']:,.0f}",
                "share of the floor": _percent(r, f"{model} share of floor"),
                "against a plain loop": _ratio(r, f"{model} over loop"),
                "against the authors' way": _ratio(r, f"{model} over authors") if f"{model} over authors" in r else "",
            }
        )
    rounds = "One round." if r["rounds"] == 1 else f"Medians of {r['rounds']} rounds, in brackets lowest and highest."
    return Table(pd.DataFrame(rows), f"{rounds} {made(r)}")


@of_benchmark("stacked_training")
def parts(r: dict) -> Table | str:
    """Return where the time of an iteration goes."""
    names = list(r["logreg parts"])
    rows = [{"part": name} | {label: f"{100 * r[f'{model} parts'][name]:.0f} %" for model, label in MODELS.items()}
            for name in names]  # fmt: skip
    rest = {label: f"{100 * (1 - sum(r[f'{model} parts'].values())):.0f} %" for model, label in MODELS.items()}
    rows.append({"part": "everything else: drawing minibatches, history, dispatch"} | rest)
    return Table(pd.DataFrame(rows), "Shares of an iteration; the parts are measured one by one, medians.")


@of_benchmark("stacked_training")
def against_k(r: dict, name: str, caption: str = "") -> Figure | str:
    """Draw time and memory against the number of runs in a stack, beside serial training."""
    table = pd.DataFrame(r["against_k"])
    serial = r["processes"] / r["logreg loop per second"]
    table["serial_seconds"] = serial * table["k"]

    def draw(theme: Theme) -> plt.Figure:
        figure, (time, memory) = plt.subplots(1, 2, figsize=(9, 3.8))
        time.plot(table["k"], 1e3 * table["seconds"], "o-", markersize=4, color=theme.palette[0], label="one stack")
        time.plot(table["k"], 1e3 * table["serial_seconds"], "--", color=theme.paper, label="one after the other")
        time.set(xscale="log", yscale="log", xlabel="runs K", ylabel="ms for an iteration of all K")
        time.legend()
        memory.plot(table["k"], table["peak_bytes"] / 1e9, "o-", markersize=4, color=theme.palette[1])
        memory.set(xscale="log", xlabel="runs K", ylabel="peak memory of the process, GB", ylim=(0, None))
        return figure

    largest = table.iloc[-1]
    alt = (
        f"Time of an iteration and peak memory against the number of runs K in a stack, up to {int(largest['k'])}. "
        f"At K = {int(largest['k'])} an iteration takes {1e3 * largest['seconds']:.0f} ms, one after the other it "
        f"would take {1e3 * largest['serial_seconds']:.0f} ms; the process holds {largest['peak_bytes'] / 1e9:.1f} GB."
    )
    note = f"One single-threaded process; SGD-HD, SGDN-HD and Adam-HD in equal parts. {made(r)}"
    return Figure(draw, name, alt, table, note, caption)


@of_benchmark("stacked_training")
def scaling(r: dict) -> str:
    """Say from how many runs on a stack's cost grows in proportion, and what a run costs there."""
    table = pd.DataFrame(r["against_k"])
    table["each"] = table["seconds"] / table["k"]
    best = table.loc[table["each"].idxmin()]
    last = table.iloc[-1]
    serial = r["processes"] / r["logreg loop per second"]
    return (
        f"A run alone in a stack costs {1e6 * table['each'].iloc[0]:.0f} µs an iteration, a run of the plain loop "
        f"{1e6 * serial:.0f} µs. In a stack the cost of each falls to {1e6 * best['each']:.0f} µs at K = "
        f"{int(best['k'])}, and rises again to {1e6 * last['each']:.0f} µs at K = {int(last['k'])}, where a stack no "
        "longer fits the cache."
    )


@of_benchmark("stacked_training")
def widths(r: dict) -> Table | str:
    """Return what a perceptron's iteration costs in stacks of several sizes, by its width."""
    table = pd.DataFrame(r["against_width"])
    rows = []
    for width, group in table.groupby("width"):
        row = {"units in each hidden layer": str(width)}
        for k in sorted(table["k"].unique()):
            own = group[group["k"] == k]
            row[f"K = {k}"] = f"{1e3 * own['seconds'].iloc[0]:.2f} ms" if len(own) else ""
        rows.append(row)
    return Table(
        pd.DataFrame(rows),
        "Milliseconds per run and iteration, Adam-HD, one single-threaded process. Blank: not measured.",
    )


def figure4(store: str) -> str:
    """Say how long the whole grid search takes."""
    r = read(store, "stacked_training")
    if r is None or not r.get("figure4"):
        return "The grid search as a whole was not timed."
    f = r["figure4"]
    minutes = f["seconds"] / 60
    text = (
        f"{f['seeds']} seeds of the whole grid search, 132 runs each with a cap of {paper.CAP:,} iterations, "
        f"{f['model_iterations'] / 1e6:.1f} million model-iterations in all, took {significant(minutes, 2)} minutes "
        f"from nothing on {r['processes']} cores"
    )
    if f["seeds"] != 10:
        text += f"; ten seeds take {significant(minutes * 10 / f['seeds'], 2)} minutes at that rate"
    return text + "."


@of_benchmark("online_tuning")
def online_tuning(r: dict) -> str:
    """Return one sentence: how long the runs of Figure 2 take, beside the authors' way."""
    return (
        f"Logistic regression, {r['runs']} online-tuning runs of {r['epochs']} epochs, validation included: the sweep "
        f"takes {r['sweep_seconds']:.0f} seconds from nothing; the authors' way, one process a run with a DataLoader "
        f"over PIL images, takes {r['authors_seconds'] / 60:.0f} minutes, **{r['ratio']:.0f} times** as long. Both on "
        f"{r['made']['device']}, {r['cores']} single-threaded processes at a time, medians of {r['repeats']} "
        f"measurements taken in turn; the authors' way is extrapolated from processes of 1 and 2 epochs. Measured "
        f"{r['made']['date'][:10]} with torch {r['made']['torch']} by `make bench`."
    )


def on_gpu(records: Sequence[Record], store: str) -> str:
    """Say how fast stacks of the paper's perceptron were trained on a GPU, from what the runs took."""
    told = []
    runs = [r for r in records if r.spec.model == "mlp" and (r.spec.width, r.spec.depth) == (1000, 2)]
    measured = read(store, "stacked_training")
    for device in sorted({r.provenance["device"] for r in runs if r.on_gpu}):
        own = [r for r in runs if r.provenance["device"] == device]
        rate = sum(r.iterations for r in own) / sum(r.provenance["seconds"] for r in own)
        times = ""
        if measured:
            where = f"{measured['processes']} processes on {measured['made']['device']}"
            times = f", {significant(rate / measured['mlp per second'])} times what {where} take"
        told.append(
            f"On one {device}, {len(own):,} runs of the paper's perceptron, in stacks of up to "
            f"{max(r.provenance.get('stack', 1) for r in own):,}, took {rate:,.0f} iterations a second in all"
            f"{times}. There an iteration of a stack is one captured graph, and the device is waited for once in "
            f"{CHUNK} of them."
        )
    return " ".join(told) or "No stack was timed on a GPU."


def vgg_throughput(store: str) -> str:
    """Say what benchmarks/vgg.py measured, or that it was not run."""
    r = read(store, "vgg")
    if r is None:
        return (
            "How much of a GPU's speed a step of VGG reaches was not measured, for want of one (`benchmarks/vgg.py`)."
        )
    best = max(r["steps"], key=lambda step: step["images_per_second"])
    return (
        f"On {r['made']['device']}, a training step of VGG-16 with {fraction(r['width_factor'])} of the channels "
        f"({r['gigaflop_per_image']:.2f} GFLOP an image, forward and backward) handles "
        f"{best['images_per_second']:,.0f} images a second ({best['precision']}, {best['how']}, one run alone), "
        f"{100 * best['share']:.0f} % of the {r['matrix_teraflops'][best['precision']]:.3g} TFLOP/s that a large "
        f"matrix product reaches there.{_side_by_side(r)}{_kernels_of_a_step(r)}{_overhead(r)} Measured "
        f"{r['made']['date'][:10]} with torch {r['made']['torch']} by `benchmarks/vgg.py`."
    )


def _side_by_side(measured: dict) -> str:
    """Say how much faster several runs are side by side."""
    fastest = max(measured.get("together", []), key=lambda row: row["images_per_second"], default=None)
    if fastest is None:
        return ""
    share = fastest["images_per_second"] * measured["gigaflop_per_image"] / 1000
    share /= measured["matrix_teraflops"][fastest["precision"]]
    return (
        f" {fastest['runs']} runs side by side, each on a stream of its own, handle "
        f"{fastest['images_per_second']:,.0f} together ({fastest['how']}), {100 * share:.0f} %."
    )


def _kernels_of_a_step(measured: dict) -> str:
    """Say where the time of a launched step goes."""
    if not measured.get("kernels"):
        return ""
    total = sum(measured["kernels"].values())
    told = [
        f"{name} {100 * value / total:.0f} %"
        for name, value in sorted(measured["kernels"].items(), key=lambda item: (item[0] == "other", -item[1]))
    ]
    return f" Of a step's kernels, launched one by one ({total:.2f} ms), {several(told)}."


def _overhead(measured: dict) -> str:
    """Say how much longer a step of each hypergradient method takes than one of its baseline."""
    told = [
        f"{how}, by "
        + several([f"{100 * more:.1f} %".replace("-", "−") + f" for {LABELS[name]}" for name, more in overhead.items()])
        for how, overhead in measured.get("overhead", {}).items()
    ]
    return f" Hypergradients make a step of one run alone longer: {'; '.join(told)}." if told else ""


@of_benchmark("optimizer_step")
def optimizer_step(r: dict) -> Table | str:
    """Return what a step costs, beside torch's fastest of the same base optimiser, and the bandwidth it reaches."""
    labels = {"mlp": "perceptron", "vgg": "VGG-16"}
    rows = []
    for name in next(iter(r["models"].values()))["steps"]:
        row = {"step": name}
        for model, found in r["models"].items():
            step, label = found["steps"][name], labels[model]
            row[f"{label}, ms"] = significant(step["milliseconds"])
            row[f"{label}, to torch's fastest"] = significant(step["to_fastest"])
            row[f"{label}, to torch's default"] = significant(step["to_default"])
            row[f"{label}, bandwidth over a copy's"] = significant(step["floor_milliseconds"] / step["milliseconds"], 2)
        rows.append(row)
    sizes = " and ".join(
        f"{found['parameters']:,} parameters in {found['tensors']} tensors (a copy moves "
        f"{found['copy_gigabytes_per_second']} GB/s)"
        for found in r["models"].values()
    )
    return Table(pd.DataFrame(rows), f"{sizes}; {r['threads']} threads, medians of {r['rounds']} rounds. {made(r)}")


@of_benchmark("optimizer_step")
def iterations(r: dict) -> Table | str:
    """Return what a whole training iteration costs with hypergradients, over one without."""
    rows = []
    for name, ratios in r["iterations"].items():
        method, model = name.split(", ")
        low, middle, high = np.quantile(ratios, (0.1, 0.5, 0.9))
        rows.append(
            {
                "method": method,
                "model": {"logreg": "logistic regression", "mlp": "perceptron", "vgg": "VGG-16"}[model],
                "time of an iteration, over no hypergradients": f"{middle:.2f}",
                "10 % to 90 % of the rounds": f"{low:.2f} to {high:.2f}",
                "rounds": len(ratios),
            }
        )
    return Table(pd.DataFrame(rows), f"Minibatches of 128, {r['threads']} threads, optimisers as they come. {made(r)}")


def targets(store: str) -> str:
    """Say which of the goals for the cost of a step are met."""
    r = read(store, "optimizer_step")
    if r is None:
        return ""
    lines = []
    for what, model, step, against, goal in STEP_GOALS:
        reached = r["models"][model]["steps"][step][against]
        verdict = "met" if reached <= goal else "**missed**"
        shown = significant(reached, 4 if float(significant(reached)) == goal else 3)
        lines.append(f"- {what}: {shown} times, the goal is {goal:g}: {verdict}.")
    return "\n".join(lines)


def made(r: dict) -> str:
    """Return one sentence: where and with what a benchmark was run."""
    m = r["made"]
    return f"Measured {m['date'][:10]} on {m['device']} with torch {m['torch']}, commit {m['commit']}."


def _percent(r: dict, name: str) -> str:
    low, high = r["range"][name]
    share = f"{100 * r[name]:.0f} %"
    return share if r["rounds"] == 1 else f"{share} ({100 * low:.0f} to {100 * high:.0f})"


def _ratio(r: dict, name: str) -> str:
    low, high = (significant(value) for value in r["range"][name])
    times = f"{significant(r[name])} times"
    return times if r["rounds"] == 1 else f"{times} ({low} to {high})"
