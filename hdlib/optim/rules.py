"""The update rules of hypergradient descent: the definition that the fast ways of computing them are tested against.

Notation of the paper (Baydin et al., "Online Learning Rate Adaptation with Hypergradient Descent",
ICLR 2018, arXiv 1703.04782, Algorithms 4 to 6). One step at time t, in this order::

    g_t     = gradient at theta_{t-1}, L2 term included
    h_t     = g_t . D_{t-1}                        hypergradient, D = d(increment)/d(alpha)
    alpha_t = alpha_{t-1} - beta h_t               additive rule
    alpha_t = alpha_{t-1} (1 - beta h_t / (norm(g_t) norm(D_{t-1})))    multiplicative rule, Eq. 8
    theta_t = theta_{t-1} + alpha_t D_t

D_0 = 0, so the first step never changes alpha. In code a *direction* is -D, what alpha is multiplied
with and subtracted. Functions whose name ends in an underscore change their first argument in place.
Everything is elementwise or a sum, so a leading axis of many models works as well as none: alpha, beta
and h are then vectors along that axis, shaped to broadcast.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def next_alpha(
    alpha: Any, h: Any, beta: Any, rule: str = "additive", grad_norm: Any = None, direction_norm: Any = None
) -> Any:
    """Return alpha_t from alpha_{t-1} and the hypergradient h_t.

    All arguments are floats or tensors that broadcast. `grad_norm` and `direction_norm`, of g_t and
    D_{t-1}, are needed by the multiplicative rule only; where their product is zero alpha stays.
    """
    if rule == "additive":
        return alpha - beta * h
    scale = grad_norm * direction_norm
    return alpha * (1 - beta * h / (scale + (scale == 0)))


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of two tensors of one shape as a 0-dim tensor, summed in float32 or wider."""
    a, b = precise(a), precise(b)
    if a.dtype != b.dtype:  # of a model that was converted after a step, say
        dtype = torch.promote_types(a.dtype, b.dtype)
        a, b = a.to(dtype), b.to(dtype)
    return torch.dot(*flat(a, b))


def precise(tensor: Tensor) -> Tensor:
    """Return half precision numbers in float32, others as they are."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def flat(first: Tensor, *others: Tensor) -> list[Tensor]:
    """Return tensors as vectors, all in the first one's order in memory, and so without a copy where they lie alike.

    The others have the first one's shape, or none: a 0-dim tensor is repeated.
    """
    tensors = [first, *(t.expand(first.shape) for t in others)]
    if not all(t.is_contiguous() for t in tensors):
        order = sorted(range(first.dim()), key=first.stride, reverse=True)
        tensors = [t.permute(order) for t in tensors]
    return [t.reshape(-1) for t in tensors]


def sgd_velocity_(v: Tensor, g: Tensor, momentum: float, dampening: float = 0.0) -> None:
    """v_t = mu v_{t-1} + (1 - dampening) g_t (Algorithms 2 and 5; dampening as in torch.optim.SGD)."""
    v.mul_(momentum).add_(g, alpha=1 - dampening)


def sgd_direction(g: Tensor, v: Tensor | None, momentum: float, nesterov: bool) -> Tensor:
    """-D_t of SGD: g_t without momentum, v_t with, g_t + mu v_t with Nesterov's."""
    if v is None:
        return g
    return g.add(v, alpha=momentum) if nesterov else v


def descend_(theta: Tensor, direction: Tensor, alpha: float | Tensor) -> None:
    """theta_t = theta_{t-1} - alpha_t direction_t; alpha a float, or a tensor that broadcasts."""
    if isinstance(alpha, Tensor):
        theta.sub_(alpha.to(theta.dtype) * direction)
    else:
        theta.add_(direction, alpha=-alpha)


def adam_moments_(m: Tensor, v: Tensor, g: Tensor, beta1: float, beta2: float) -> None:
    """m_t = b1 m_{t-1} + (1 - b1) g_t and v_t = b2 v_{t-1} + (1 - b2) g_t^2, both in place."""
    m.lerp_(g, 1 - beta1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)


def amsgrad_(x: Tensor, v: Tensor) -> None:
    """x_t = max(x_{t-1}, v_t), which takes v_t's place in AMSGrad's direction."""
    before = x.clone() if torch.is_grad_enabled() else x  # autograd keeps what is overwritten here
    x.copy_(torch.maximum(before, v))


def adam_denominator(v: Tensor, t: float | Tensor, beta2: float, eps: float) -> Tensor:
    """sqrt(v_t / (1 - b2^t)) + eps."""
    return (v.sqrt() / (1 - beta2**t) ** 0.5).add_(eps)


def adam_direction(m: Tensor, v: Tensor, t: float | Tensor, beta1: float, beta2: float, eps: float) -> Tensor:
    """-D_t of Adam (Algorithm 6): mhat_t / (sqrt(vhat_t) + eps), rebuilt from the moments at step t."""
    return (m / adam_denominator(v, t, beta2, eps)).div_(1 - beta1**t)


def adam_corrections(t: Any, beta1: float, beta2: float, eps: float) -> tuple[Any, Any]:
    """Return what is left of eps and of the bias corrections once they are taken out of the elementwise division.

    With c = sqrt(1 - b2^t) they are eps c and c / (1 - b1^t): mhat_t / (sqrt(vhat_t) + eps) is
    m_t / (sqrt(v_t) + eps c) times c / (1 - b1^t).
    """
    c = (1 - beta2**t) ** 0.5
    return eps * c, c / (1 - beta1**t)


def adam_corrected_direction(m: Tensor, v: Tensor, floor: float | Tensor, scale: float | Tensor) -> Tensor:
    """`adam_direction` from the moments and the `adam_corrections` of step t: one division for every element."""
    root = v.sqrt()
    root = root + floor if root.requires_grad else root.add_(floor)  # autograd keeps a square root
    return (m / root).mul_(scale)


def adam_descend_(
    theta: Tensor,
    m: Tensor,
    v: Tensor,
    t: float | Tensor,
    alpha: float | Tensor,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    """theta_t = theta_{t-1} - alpha_t mhat_t / (sqrt(vhat_t) + eps), in the order of torch.optim.Adam."""
    if isinstance(alpha, Tensor) or isinstance(t, Tensor):
        descend_(theta, adam_direction(m, v, t, beta1, beta2, eps), alpha)
    else:
        theta.addcdiv_(m, adam_denominator(v, t, beta2, eps), value=-alpha / (1 - beta1**t))


def adamw_decay_(theta: Tensor, alpha: float | Tensor, decay: float) -> None:
    """theta_{t-1} (1 - alpha_t lambda), before Adam's descent: AdamW's decoupled weight decay."""
    if isinstance(alpha, Tensor):
        theta.mul_((1 - alpha * decay).to(theta.dtype))
    else:
        theta.mul_(1 - alpha * decay)


def adamw_direction_(direction: Tensor, theta: Tensor, decay: float) -> Tensor:
    """-D_{t-1} (1 - alpha_{t-1} lambda) of AdamW, from Adam's direction at t-1 and theta_{t-1}.

    AdamW's increment is -alpha (direction + lambda theta_{t-2}). theta_{t-2} is not kept; but theta_{t-1} =
    (1 - alpha lambda) theta_{t-2} - alpha direction gives it, and so -D_{t-1} = (direction + lambda theta_{t-1}) /
    (1 - alpha lambda). The caller divides its sums by the scalar instead of every element.
    """
    return direction.add_(theta, alpha=decay)
