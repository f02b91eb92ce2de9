"""Hypergradient descent for PyTorch: optimisers that adapt their learning rate while they train.

`hdlib.optim` holds the optimisers and needs torch alone. The rest of the package runs and reports
the experiments of the book: `tasks` (what is trained), `runs` (how), `report` (what came of it).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hdlib import optim as optim
    from hdlib.optim import SGDHD, AdamHD, AdamWHD
else:

    def __getattr__(name: str) -> Any:
        """Import the optimisers, and torch with them, when they are asked for: the command's help needs neither."""
        if name not in {"optim", *__all__}:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        optim = import_module("hdlib.optim")
        return optim if name == "optim" else getattr(optim, name)

    def __dir__() -> list[str]:
        return sorted({*globals(), "optim", *__all__})


__all__ = ["SGDHD", "AdamHD", "AdamWHD"]
__version__ = "0.1.0"
