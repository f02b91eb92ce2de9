"""Optimisers that adapt their learning rate by hypergradient descent (Baydin et al., ICLR 2018).

`SGDHD`, `AdamHD` and `AdamWHD` stand where `torch.optim.SGD`, `Adam` and `AdamW` stood; `rules` holds the
update rules themselves, once, for every way of executing them. Needs torch and nothing else.
"""

from hdlib.optim.adamhd import AdamHD, AdamWHD
from hdlib.optim.sgdhd import SGDHD

__all__ = ["SGDHD", "AdamHD", "AdamWHD"]
