"""Hypergradient descent for PyTorch: optimisers that adapt their learning rate while they train.

`hdlib.optim` holds the optimisers and needs torch alone. The rest of the package runs and reports
the experiments of the book: `tasks` (what is trained), `runs` (how), `report` (what came of it).
"""

from hdlib.optim import SGDHD, AdamHD, AdamWHD

__all__ = ["SGDHD", "AdamHD", "AdamWHD"]
__version__ = "0.1.0"
