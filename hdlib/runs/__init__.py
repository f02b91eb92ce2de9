"""How a run is described (`RunSpec`), trained (`train`), recorded (`Record`, `Store`) and swept (`sweep`).

A sweep asks the store which specs are recorded already and trains only the others, so that asking again
costs nothing and a changed parameter trains exactly what it needs.
"""

from hdlib.runs.record import Record
from hdlib.runs.spec import BASELINE, METHODS, PAPER_FIELDS, RECORDING_FIELDS, VGG_FIELDS, RunSpec, SpecError
from hdlib.runs.store import Store
from hdlib.runs.sweep import grid, steps_per_epoch, sweep, sweep_groups
from hdlib.runs.train import train

__all__ = [
    "BASELINE",
    "METHODS",
    "PAPER_FIELDS",
    "RECORDING_FIELDS",
    "VGG_FIELDS",
    "Record",
    "RunSpec",
    "SpecError",
    "Store",
    "grid",
    "steps_per_epoch",
    "sweep",
    "sweep_groups",
    "train",
]
