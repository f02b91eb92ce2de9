"""Adam with hypergradient descent: the paper's Algorithm 6 (Adam-HD).

Paper: Baydin et al., ICLR 2018, arXiv 1703.04782. The authors' PyTorch code (hypergrad/adam_hd.py) changes
the learning rate inside its loop over tensors, so that each tensor moves with another partial sum of the
hypergradient; here alpha is updated once, from the dot product over all tensors, before any of them moves.
Epsilon stands outside the bias correction, as in the algorithm.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hdlib.optim import rules
from hdlib.optim._base import HypergradientOptimizer, as_real, check_number


class AdamHD(HypergradientOptimizer):
    r"""Adam that learns its learning rate.

    .. math::
        D_t = -\hat m_t / (\sqrt{\hat v_t} + \epsilon), \quad h_t = g_t \cdot D_{t-1}, \quad
        \alpha_t = \alpha_{t-1} - \beta h_t, \quad \theta_t = \theta_{t-1} + \alpha_t D_t

    Adam's direction has entries near 1 whatever the gradient's size, so h grows like the 1-norm of the
    gradient, and a beta that suits SGDHD is too large by orders of magnitude here.

    Args:
        params: tensors, or dicts that define parameter groups; each group has its own alpha.
        lr: alpha_0, the learning rate to start from; at least 0.
        betas: decay rates of the two moments, each in [0, 1).
        eps: added to the root of the second moment.
        weight_decay: L2 regularisation, added to the gradient and so part of the hypergradient.
        hypergrad_lr: beta, the learning rate of the learning rate. 0 gives torch.optim.Adam, bit for bit.
        rule: "additive", or "multiplicative", with which alpha changes by at most the factor
            1 +- hypergrad_lr in a step and cannot change its sign (the paper's Eq. 8).
        maximize: ascend instead of descend.

    Raises:
        ValueError: a value is outside its range; the message names it.

    State per parameter: `step` (0-dim float32), `exp_avg` and `exp_avg_sq` as torch.optim.Adam's, no more.

    Example:
        >>> optimizer = AdamHD(model.parameters(), lr=1e-3, hypergrad_lr=1e-8)
        >>> loss(model(x), y).backward()
        >>> optimizer.step()
    """

    def __init__(
        self,
        params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        hypergrad_lr: float = 1e-8,
        rule: str = "additive",
        maximize: bool = False,
    ) -> None:
        super().__init__(
            params,
            dict(
                lr=lr,
                betas=betas,
                eps=eps,
                weight_decay=weight_decay,
                hypergrad_lr=hypergrad_lr,
                rule=rule,
                maximize=maximize,
            ),
        )

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        check_number("eps", group["eps"])
        if not isinstance(group["betas"], (tuple, list)) or len(group["betas"]) != 2:
            raise ValueError(f"betas is {group['betas']!r}: it must be a pair of numbers in [0, 1).")
        for i in (0, 1):
            check_number(f"betas[{i}]", group["betas"][i], high=1.0)

    def _direction(self, group: dict[str, Any], state: dict[str, Any]) -> Tensor | None:
        if not state:
            return None
        corrections = rules.adam_corrections(state["step"].item(), *group["betas"], group["eps"])
        return rules.adam_direction(as_real(state["exp_avg"]), as_real(state["exp_avg_sq"]), *corrections)

    def _descend(self, group, params, grads, states) -> None:
        for p, g, state in zip(params, grads, states, strict=True):
            if not state:
                state["step"] = torch.tensor(0.0, dtype=torch.float32)
                state["exp_avg"] = torch.zeros_like(g, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros_like(g, memory_format=torch.preserve_format)
            m, v = as_real(state["exp_avg"]), as_real(state["exp_avg_sq"])
            state["step"] += 1
            t = state["step"].item()
            rules.adam_moments_(m, v, g, *group["betas"])
            rules.adam_descend_(p, m, v, t, group["lr"], *group["betas"], group["eps"])
