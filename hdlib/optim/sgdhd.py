"""SGD with hypergradient descent: the paper's Algorithms 4 (SGD-HD) and 5 (SGDN-HD).

Paper: Baydin et al., ICLR 2018, arXiv 1703.04782. The authors' PyTorch code (hypergrad/sgd_hd.py) keeps
all tensors in one flat vector, knows one parameter group and adds weight decay into p.grad; this one
keeps one alpha per group and leaves p.grad alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hdlib.optim import rules
from hdlib.optim._base import HypergradientOptimizer, as_real, check_number


class SGDHD(HypergradientOptimizer):
    r"""SGD, with heavy-ball or Nesterov momentum or none, that learns its learning rate.

    .. math::
        h_t = g_t \cdot D_{t-1}, \quad \alpha_t = \alpha_{t-1} - \beta h_t, \quad
        \theta_t = \theta_{t-1} + \alpha_t D_t

    with :math:`D_t = -g_t`; with momentum :math:`v_t = \mu v_{t-1} + g_t` and :math:`D_t = -v_t`, or
    Nesterov's :math:`D_t = -g_t - \mu v_t`.

    Args:
        params: tensors, or dicts that define parameter groups; each group has its own alpha.
        lr: alpha_0, the learning rate to start from; at least 0.
        momentum: mu.
        dampening: of the momentum, as in torch.optim.SGD.
        weight_decay: L2 regularisation, added to the gradient and so part of the hypergradient.
        nesterov: Nesterov momentum; needs a momentum and no dampening.
        hypergrad_lr: beta, the learning rate of the learning rate. 0 gives torch.optim.SGD, bit for bit.
            "auto" finds it from the curvature along each step, at the cost of one more dot product: the
            setting to use without tuning, from any small lr above 0.
        rule: "additive", or "multiplicative", with which alpha changes by at most the factor
            1 +- hypergrad_lr in a step and cannot change its sign (the paper's Eq. 8). Others, and what
            they are good for, are in `hdlib.optim.control.Control`.
        maximize: ascend instead of descend.
        guards: keep alpha from running away: min_lr, max_lr, max_change, scaling, skip_nonfinite, overshoot,
            final_lr, transition; all off by default. `hdlib.optim.control.Control` says what each does.

    Raises:
        ValueError: a value is outside its range; the message names it.

    State per parameter: `momentum_buffer` with momentum, and `direction`, the size of the gradient, except
    with heavy-ball momentum, whose buffer is the direction already.

    Example:
        >>> optimizer = SGDHD(model.parameters(), lr=0.01, hypergrad_lr=1e-4)
        >>> loss(model(x), y).backward()
        >>> optimizer.step()
    """

    def __init__(
        self,
        params,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        hypergrad_lr: float | str = 1e-6,
        rule: str = "additive",
        maximize: bool = False,
        **guards: Any,
    ) -> None:
        super().__init__(
            params,
            dict(
                lr=lr,
                momentum=momentum,
                dampening=dampening,
                weight_decay=weight_decay,
                nesterov=nesterov,
                hypergrad_lr=hypergrad_lr,
                rule=rule,
                maximize=maximize,
                guards=guards,
            ),
        )

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        check_number("momentum", group["momentum"])
        check_number("dampening", group["dampening"])
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise ValueError(
                f"nesterov needs momentum above 0 and no dampening, not momentum={group['momentum']} "
                f"and dampening={group['dampening']}."
            )

    def _direction(self, group: dict[str, Any], state: dict[str, Any]) -> Tensor | None:
        heavy_ball = group["momentum"] != 0 and not group["nesterov"]
        direction = state.get("momentum_buffer" if heavy_ball else "direction")
        return None if direction is None else as_real(direction)

    def _descend(self, group, params, grads, states) -> None:
        momentum, nesterov = group["momentum"], group["nesterov"]
        for p, g, state in zip(params, grads, states, strict=True):
            v = None
            if momentum != 0:
                v = state.get("momentum_buffer")
                if v is None:
                    v = state["momentum_buffer"] = g.clone(memory_format=torch.preserve_format)
                else:
                    v = as_real(v)
                    rules.sgd_velocity_(v, g, momentum, group["dampening"])
            direction = rules.sgd_direction(g, v, momentum, nesterov)
            if group["hypergrad_lr"] == 0:
                state.pop("direction", None)
            elif direction is not v:
                if "direction" in state:
                    state["direction"].copy_(direction)
                else:
                    state["direction"] = direction.clone(memory_format=torch.preserve_format)
            rules.descend_(p, direction, group["lr"])
