"""A small noisy problem for the optimisers' tests, and the optimisers by name."""

import torch
from torch.nn import functional as F

from hdlib import SGDHD, AdamHD

METHODS = {
    "sgd": (SGDHD, {}),
    "heavy_ball": (SGDHD, {"momentum": 0.9}),
    "nesterov": (SGDHD, {"momentum": 0.9, "nesterov": True}),
    "adam": (AdamHD, {}),
}

# learning rates and betas with which alpha moves visibly within a hundred steps, and does not diverge
ALPHA = {"sgd": 0.05, "heavy_ball": 0.01, "nesterov": 0.01, "adam": 0.01}
BETA = {"sgd": 1e-3, "heavy_ball": 1e-5, "nesterov": 1e-5, "adam": 1e-5}


def make(name, params, **changes):
    """Build an optimiser by its name in METHODS."""
    cls, fixed = METHODS[name]
    return cls(params, **({"lr": ALPHA[name], "hypergrad_lr": BETA[name]} | fixed | changes))


def tensors(seed=0, dtype=torch.float64):
    """Parameters of different shapes: a matrix, a vector, a matrix and a 0-dim tensor."""
    g = torch.Generator().manual_seed(seed)
    shapes = [(6, 5), (5,), (5, 3), ()]
    return [(0.5 * torch.randn(s, generator=g, dtype=torch.float64)).to(dtype).requires_grad_() for s in shapes]


def minibatch(t, dtype=torch.float64):
    """Return the inputs and noisy targets of step t."""
    g = torch.Generator().manual_seed(1000 + t)
    x = torch.randn(16, 6, generator=g, dtype=torch.float64)
    y = torch.stack([x[:, 0], x[:, 1] * x[:, 2], x[:, 3].sin()], 1)
    return x.to(dtype), (y + 0.3 * torch.randn(16, 3, generator=g, dtype=torch.float64)).to(dtype)


def loss_of(params, t, l2=0.0):
    """Return the loss of a two-layer network on minibatch t, with its L2 term if asked for."""
    w1, b, w2, shift = params
    x, y = minibatch(t, w1.dtype)
    loss = F.mse_loss(torch.tanh(x @ w1 + b) @ w2 + shift, y)
    return loss + 0.5 * l2 * sum((p**2).sum() for p in params) if l2 else loss


def train(optimizer, params, steps, start=0):
    """Take steps and return alpha after each of them."""
    alphas = []
    for t in range(start, start + steps):
        optimizer.zero_grad()
        loss_of(params, t).backward()
        optimizer.step()
        alphas.append(float(optimizer.param_groups[0]["lr"]))
    return alphas


def flat(params):
    """Return parameters as one detached vector."""
    return torch.cat([p.detach().reshape(-1) for p in params])


def unflat(vector, like):
    """Cut a vector into tensors of the shapes of others."""
    parts = vector.split([p.numel() for p in like])
    return [part.reshape(p.shape) for part, p in zip(parts, like, strict=True)]
