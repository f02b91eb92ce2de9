"""The models, with initial weights that depend on the seed alone."""

from __future__ import annotations

import itertools

import torch
from torch import nn

MODELS = ("logreg", "mlp")


def build_model(
    model: str,
    features: int,
    classes: int,
    seed: int,
    *,
    width: int = 1000,
    depth: int = 2,
    dtype=torch.float32,
) -> nn.Module:
    """Return logistic regression (one linear layer) or an MLP of `depth` hidden ReLU layers of `width` units.

    Weights are torch's default for linear layers (uniform in +-1/sqrt(fan in)), drawn on the CPU in float32, so
    that one seed gives one start on every device and in every precision. Input: [batch, features]; output:
    logits, [batch, classes].
    """
    sizes = [features, *([width] * depth if model == "mlp" else []), classes]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(sizes):
            layers += [nn.Linear(fan_in, fan_out, dtype=torch.float32), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).to(dtype)
