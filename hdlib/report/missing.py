"""What of the paper's experiments, and of the book's own, no record has."""

from __future__ import annotations

from collections.abc import Sequence

from hdlib.optim.control import Control
from hdlib.report import vgg
from hdlib.report.style import counted
from hdlib.runs import BASELINE, PAPER_FIELDS, RECORDING_FIELDS, Record
from hdlib.runs.divergence import PAPER_RATES

TUNING_EPOCHS, ONLINE_EPOCHS = 100, 50  # of the paper's perceptron
SEEDS = 3  # from which on an interval says something


def on_gpu(records: Sequence[Record]) -> bool:
    """Say whether any run was made on a GPU."""
    return any(not record.provenance["device"].endswith("cores)") for record in records)


def sentences(records: Sequence[Record]) -> str:
    """Return a list of what was not run, derived from what was.

    Args:
        records: all that there are.
    """
    mlp = [r for r in records if (r.spec.task, r.spec.model, r.spec.width, r.spec.depth) == ("mnist", "mlp", 1000, 2)]
    return "\n".join(
        f"- {said}"
        for said in (
            *_vgg([r for r in records if r.spec.model == "vgg" and r.spec.max_iterations is None]),
            *_online_tuning([r for r in mlp if _of_the_paper(r)]),
            *_tuning([r for r in mlp if _of_the_paper(r)]),
            *_grid_search([r for r in mlp if r.spec.target_loss is not None]),
            *_guards([r for r in mlp if _guarded(r)]),
            *([] if on_gpu(records) else ["Anything on a GPU: every record says its device."]),
        )
    )


def _vgg(records: Sequence[Record]) -> list[str]:
    if vgg.complete(records):
        return []
    kinds: dict[tuple, set[int]] = {}
    for record in records:
        spec = record.spec
        images = spec.train_images or vgg.IMAGES
        kinds.setdefault((spec.width_factor, images, spec.epochs, spec.precision), set()).add(spec.seed)
    ran = [
        f"{vgg.fraction(width)} of the channels and {images:,} images over {counted(epochs, 'epoch')} in {precision}, "
        f"{counted(len(seeds), 'seed')}"
        for (width, images, epochs, precision), seeds in sorted(kinds.items(), reverse=True)
    ]
    text = f"VGG on CIFAR-10 at its full size: the whole network on all images, {vgg.EPOCHS} epochs of six methods."
    return [f"{text} What was run has {'; '.join(ran)}." if ran else text]


def _online_tuning(records: Sequence[Record]) -> list[str]:
    longest = max((r.spec.epochs for r in records if r.spec.alpha0 == min(PAPER_RATES)), default=0)
    if longest >= ONLINE_EPOCHS:
        return []
    return [f"Online tuning of the perceptron for the paper's {ONLINE_EPOCHS} epochs: here it has {longest}."]


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


def _guards(records: Sequence[Record]) -> list[str]:
    longest = max((r.iterations for r in records), default=0)
    seeds = {r.spec.seed for r in records}
    return [
        f"Guards other than the automatic β on the paper's perceptron beyond {longest:,} iterations, or with more than "
        f"{counted(len(seeds), 'seed')}."
    ]


def _of_the_paper(record: Record) -> bool:
    """Say whether a run differs from the defaults only in what the paper's own runs differ in."""
    spec = record.spec
    return spec.max_iterations is None and spec.decay != "cosine" and spec.changed <= PAPER_FIELDS | RECORDING_FIELDS


def _guarded(record: Record) -> bool:
    spec = record.spec
    return spec.method in BASELINE and spec.rule != "auto" and spec.control() != Control(rule=spec.rule)
