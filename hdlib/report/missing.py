"""What of the paper's experiments, and of the book's own, no record has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from hdlib.optim.control import OPTIONS, Control
from hdlib.report import frames, paper, vgg
from hdlib.report.style import Table, counted, fraction
from hdlib.runs import BASELINE, Record
from hdlib.runs.experiments import GUARDS, PAPER_RATES

TUNING_EPOCHS = paper.tuning_epochs("mlp")
SEEDS = 3  # from which on an interval says something


def sentences(records: Sequence[Record]) -> str:
    """Return a list of what was not run, derived from what was.

    Args:
        records: all that there are.
    """
    mlp = _paper_mlp(records)
    papers = [r for r in mlp if r.spec.as_in_the_paper()]
    return "\n".join(
        f"- {said}"
        for said in (
            *_vgg(_vgg_runs(records)),
            *_whole_vgg(_vgg_runs(records)),
            *_online_tuning(papers),
            *_tuning(papers),
            *_grid_search([r for r in mlp if r.spec.target_loss is not None]),
            guards(records),
            *_on_gpu(records),
        )
    )


def vgg_scales(records: Sequence[Record]) -> Table:
    """Return at which scales VGG was run, the widest first."""
    kinds: dict[tuple, set[int]] = {}
    for spec in (record.spec for record in _vgg_runs(records)):
        images = spec.train_images or vgg.IMAGES
        kinds.setdefault((spec.width_factor, images, spec.epochs, spec.precision), set()).add(spec.seed)
    rows = [
        {
            "channels, over the paper's": fraction(width),
            "images": f"{images:,}",
            "epochs": epochs,
            "precision": precision,
            "seeds": len(seeds),
        }
        for (width, images, epochs, precision), seeds in sorted(kinds.items(), reverse=True)
    ]
    return Table(pd.DataFrame(rows), "Not every method has all seeds.")


def _on_gpu(records: Sequence[Record]) -> list[str]:
    trained = [record for record in records if record.on_gpu]
    if any("stack" in record.provenance for record in trained):
        return []
    what = "Anything but VGG" if trained else "Anything"
    return [f"{what} on a GPU: every record says its device."]


def _vgg_runs(records: Sequence[Record]) -> list[Record]:
    return [r for r in records if r.spec.model == "vgg" and r.spec.max_iterations is None]


def _vgg(records: Sequence[Record]) -> list[str]:
    if vgg.complete(records):
        whole = [r for r in vgg.whole(records) if r.spec.epochs >= vgg.EPOCHS and r.spec.rule == "additive"]
        seeds = frames.seeds(whole)[1]
        return [f"VGG on CIFAR-10 at its full size with more than {counted(seeds, 'seed')}."] if seeds < SEEDS else []
    text = f"VGG on CIFAR-10 at its full size: the whole network on all images, {vgg.EPOCHS} epochs of six methods."
    return [f"{text} What was run is narrower, shorter, or on fewer images." if records else text]


def _whole_vgg(records: Sequence[Record]) -> list[str]:
    """Say what of the book's own questions was not asked of the whole network."""
    whole, told = [r.spec for r in vgg.whole(records)], []
    if not any(spec.variant == "blog" and spec.epochs >= vgg.EPOCHS for spec in whole):
        told.append(f"[The blog post's network](vgg-network) on CIFAR-10 at its full size for {vgg.EPOCHS} epochs.")
    if not any(spec.rule == "auto" for spec in whole):
        told.append("The automatic β on VGG at its full size.")
    return told


def _online_tuning(records: Sequence[Record]) -> list[str]:
    longest = max((r.spec.epochs for r in records if r.spec.alpha0 == min(PAPER_RATES)), default=0)
    if longest >= paper.ONLINE_EPOCHS:
        return []
    ours = counted(longest, "epoch") if longest else "none"
    return [f"Online tuning of the perceptron for the paper's {paper.ONLINE_EPOCHS} epochs: here it has {ours}."]


def _tuning(records: Sequence[Record]) -> list[str]:
    seeds = {r.spec.seed for r in records if r.spec.epochs >= TUNING_EPOCHS}
    if len(seeds) >= SEEDS:
        return []
    return [
        f"Tuning of the perceptron for the paper's {TUNING_EPOCHS} epochs with more than {counted(len(seeds), 'seed')}."
    ]


def _grid_search(records: Sequence[Record]) -> list[str]:
    longest = max((r.spec.max_iterations or 0 for r in records), default=0)
    return [f"The grid search for the perceptron beyond {longest:,} iterations."]


def guards(records: Sequence[Record]) -> str:
    """Say how far the guards were run on the paper's perceptron, those that went no further than the others together.

    Args:
        records: all that there are.
    """
    mlp, ran = _paper_mlp(records), {}
    by_options: dict[tuple, list[Record]] = {}
    for record in mlp:
        if record.spec.method in BASELINE:
            by_options.setdefault(tuple(getattr(record.spec, name) for name in OPTIONS), []).append(record)
    for name, guard in GUARDS.items():
        if name not in ("plain", "automatic"):
            own = by_options.get(_options(guard), [])
            ran[name] = (max((r.iterations for r in own), default=0), len({r.spec.seed for r in own}))
    least, fewest = (min(column) for column in zip(*ran.values(), strict=True))
    beyond = f" beyond {least:,} iterations or with more than {counted(fewest, 'seed')}" if least else ""
    further = [
        f"*{name}*, {iterations:,} iterations and {counted(seeds, 'seed')}"
        for name, (iterations, seeds) in ran.items()
        if iterations > least or seeds > fewest
    ]
    run = (["the automatic β"] if any(r.spec.rule == "auto" for r in mlp) else []) + further
    which, exceptions = ("Most guards", f" (not so: {'; '.join(run)})") if run else ("Guards", "")
    return f"{which} on the paper's perceptron{beyond}{exceptions}."


def _paper_mlp(records: Sequence[Record]) -> list[Record]:
    return [r for r in records if (r.spec.task, r.spec.model, r.spec.width, r.spec.depth) == ("mnist", "mlp", 1000, 2)]


def _options(guard: dict[str, Any]) -> tuple:
    """Return the options of runs with a guard of the comparison, with whatever beta."""
    rule = {"rule": "auto"} if guard.get("beta") == "auto" else {}
    own = {name: value for name, value in guard.items() if name != "beta"}
    options = asdict(Control(**own)) | rule
    return tuple(options[name] for name in OPTIONS)
