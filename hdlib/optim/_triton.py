"""The GPU kernels of `fused=True`: what hypergradients add to a step, in one pass over the memory.

torch's own operations would write what they find and read it again, several times over. A kernel goes through up to
TENSORS tensors: one for each of them would mostly start and end. Written in Triton, which comes with torch where torch
comes with CUDA; imported when it is first needed, because that takes a while.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hdlib.optim import rules

BLOCK = 4096  # elements that a program adds up, in float32, before the programs' sums are added in float64
WARPS = 8  # of a program
TENSORS = 32  # that a kernel goes through: the arguments of one are limited
UNIT = 16  # elements, and bytes, by which a tensor's length and address divide where threads load several at a time
PLAIN, HEAVY_BALL, NESTEROV = range(3)  # what SGD's direction is: the gradient, the velocity, or both


@triton.jit  # type: ignore[untyped-decorator]
def pick(values, begins, program, UNIT: tl.constexpr = 1):  # type: ignore[no-untyped-def]
    """Return the value of the tensor that is a program's, which UNIT divides."""
    value = values[0]
    for j in tl.static_range(1, len(values)):
        value = tl.where(2 * program + 3 >= begins[j], values[j], value)
    return tl.multiple_of(value, UNIT)


@triton.jit
def number(values, begins, program):  # type: ignore[no-untyped-def]
    """Return the number of the tensor that is a program's, from numbers as `_plain` writes them."""
    return (pick(values, begins, program) - 3) // 2


@triton.jit
def keep_sums(sums, program, gradient, direction):  # type: ignore[no-untyped-def]
    """Write a program's g_t . -D_{t-1}, |g_t|^2 and |D_{t-1}|^2."""
    tl.store(sums + 3 * program, tl.sum(gradient * direction))
    tl.store(sums + 3 * program + 1, tl.sum(gradient * gradient))
    tl.store(sums + 3 * program + 2, tl.sum(direction * direction))


@triton.jit(do_not_specialize=["before"])  # type: ignore[untyped-decorator]
def sgd_kernel(  # type: ignore[no-untyped-def]
    begins, units, which, p, g, v, d, sums, before, sign, l2, momentum, share,
    MODE: tl.constexpr, READ_P: tl.constexpr, UNIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write one program's sums, and go from the velocity and direction of t-1 to those of t.

    p, g, v and d are tuples of tensors. Tensor j has `units[j]` times UNIT elements, and the programs from `begins[j]`
    on.
    """
    program = tl.program_id(0)
    i = (program - number(begins, begins, program)).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = i < number(units, begins, program).to(tl.int64) * UNIT
    g, v, d = pick(g, begins, program, UNIT), pick(v, begins, program, UNIT), pick(d, begins, program, UNIT)
    gradient = sign * tl.load(g + i, mask=there, other=0.0).to(tl.float32)
    direction = tl.load(d + i, mask=there, other=0.0).to(tl.float32)
    if READ_P:
        gradient += l2 * tl.load(pick(p, begins, program, UNIT) + i, mask=there, other=0.0).to(tl.float32)
    keep_sums(sums, before + program, gradient, direction)
    if MODE == 0:
        tl.store(d + i, gradient, mask=there)
    else:
        velocity = momentum * tl.load(v + i, mask=there, other=0.0).to(tl.float32) + share * gradient
        tl.store(v + i, velocity, mask=there)
        if MODE == 2:
            tl.store(d + i, gradient + momentum * velocity, mask=there)


@triton.jit(do_not_specialize=["before"])  # type: ignore[untyped-decorator]
def adam_kernel(  # type: ignore[no-untyped-def]
    begins, units, which, p, g, m, v, sums, before, floors, scales, sign, l2, decay,
    READ_P: tl.constexpr, UNIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write one program's sums; see `sgd_kernel`. Tensor j has the corrections that are at `which[j]`."""
    program = tl.program_id(0)
    i = (program - number(begins, begins, program)).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = i < number(units, begins, program).to(tl.int64) * UNIT
    gradient = sign * tl.load(pick(g, begins, program, UNIT) + i, mask=there, other=0.0).to(tl.float32)
    first = tl.load(pick(m, begins, program, UNIT) + i, mask=there, other=0.0).to(tl.float32)
    second = tl.load(pick(v, begins, program, UNIT) + i, mask=there, other=0.0).to(tl.float32)
    j = number(which, begins, program)
    least, factor = tl.load(floors + j), tl.load(scales + j)
    direction = tl.where(there, first / (tl.sqrt(second) + least) * factor, 0.0)
    if READ_P:
        theta = tl.load(pick(p, begins, program, UNIT) + i, mask=there, other=0.0).to(tl.float32)
        gradient += l2 * theta
        direction += decay * theta
    keep_sums(sums, before + program, gradient, direction)


@triton.jit(do_not_specialize=["before"])  # type: ignore[untyped-decorator]
def corrections_kernel(steps, floors, scales, before, eps, log_1: tl.float64, log_2: tl.float64):  # type: ignore[no-untyped-def]
    """Write `rules.adam_corrections` of one tensor from the logarithms of Adam's betas.

    These are no constants, since some schedulers change a beta at every step, and each would be compiled for.
    """
    program = tl.program_id(0)
    step = steps[0]
    for j in tl.static_range(1, len(steps)):
        step = tl.where(program == j, steps[j], step)
    t = tl.maximum(tl.load(step).to(tl.float64), 1.0)
    root = tl.sqrt(1 - tl.exp(t * log_2))
    tl.store(floors + before + program, (eps * root).to(tl.float32))
    tl.store(scales + before + program, (root / (1 - tl.exp(t * log_1))).to(tl.float32))


def sgd_observe(
    rows: Sequence[Sequence[Tensor]], sign: float, l2: float, momentum: float, share: float, nesterov: bool
) -> list[Tensor]:
    """Return g_t . -D_{t-1}, |g_t|^2 and |D_{t-1}|^2; bring velocities and directions from t-1 to t.

    Args:
        rows: of parameter, gradient, velocity (without momentum anything), and -D_{t-1}: with heavy-ball momentum the
            velocity itself. All on one GPU, in float32 or half precision, and alike in memory.
        sign: -1 to maximise.
        l2: factor of the L2 term in the gradient.
        momentum: mu.
        share: of the gradient in the velocity, 1 - dampening.
        nesterov: whether the direction is Nesterov's.
    """
    mode = PLAIN if momentum == 0 else NESTEROV if nesterov else HEAVY_BALL

    return _over(sgd_kernel, rows, sign, l2, momentum, share, mode, l2 != 0)


def adam_sums(
    rows: Sequence[Sequence[Tensor]],
    steps: Sequence[Tensor],
    betas: tuple[float, float],
    eps: float,
    sign: float,
    l2: float,
    decay: float,
) -> list[Tensor]:
    """Return g_t . -D_{t-1}, |g_t|^2 and |D_{t-1}|^2.

    Args:
        rows: of parameter, gradient and both moments. All on one GPU, in float32 or half precision.
        steps: how many steps each parameter has taken, 0-dim float32 tensors on that GPU.
        betas, eps: Adam's.
        sign: -1 to maximise.
        l2: factor of the L2 term in the gradient.
        decay: AdamW's decoupled decay in the direction, but for its factor (1 - alpha lambda).
    """
    corrections = torch.empty(2, len(rows), dtype=torch.float32, device=rows[0][0].device)
    logs = [math.log(beta) if beta else -math.inf for beta in betas]
    with _on(corrections.device):
        for i in range(0, len(steps), TENSORS):
            own = steps[i : i + TENSORS]
            corrections_kernel[(len(own),)](_filled(own), *corrections, i, eps, *logs, num_warps=1)
    return _over(adam_kernel, rows, *corrections, sign, l2, decay, l2 != 0 or decay != 0)


def _over(kernel: Any, rows: Sequence[Sequence[Tensor]], *arguments: Any) -> list[Tensor]:
    """Start a kernel for each so many rows of tensors; return its three sums, 0-dim float64 tensors.

    They are always added in the same order.
    """
    alike: dict[tuple[int, torch.dtype], list[int]] = {}  # a kernel goes through tensors of one kind
    flat = [rules.flat(*row) for row in rows]
    for j, row in enumerate(flat):
        divides = row[0].numel() % UNIT == 0 and all(tensor.data_ptr() % UNIT == 0 for tensor in row)
        alike.setdefault((UNIT if divides else 1, row[0].dtype), []).append(j)
    device, before = rows[0][0].device, 0
    total = sum(triton.cdiv(row[0].numel(), BLOCK) for row in rows)
    sums = torch.empty(total, 3, dtype=torch.float32, device=device)
    with _on(device):
        for (unit, _), some in alike.items():
            for i in range(0, len(some), TENSORS):
                own = some[i : i + TENSORS]
                *begins, programs = accumulate((triton.cdiv(rows[j][0].numel(), BLOCK) for j in own), initial=0)
                begins += [programs] * (TENSORS - len(own))
                units = [rows[j][0].numel() // unit for j in own]
                columns = map(_filled, zip(*[flat[j] for j in own], strict=True))
                if programs:
                    kernel[(programs,)](
                        _plain(begins), _plain(units), _plain(own), *columns, sums, before, *arguments, unit, BLOCK,
                        num_warps=WARPS,
                    )  # fmt: skip
                before += programs
    return list(sums.sum(0, dtype=torch.float64).unbind())


def _filled(values: Sequence[Any]) -> tuple[Any, ...]:
    """Return as many values as a kernel goes through tensors, so that any number of tensors is one kernel's."""
    return (*values, *[values[-1]] * (TENSORS - len(values)))


def _plain(values: Sequence[int]) -> tuple[int, ...]:
    """Return numbers as a kernel takes them: for 1, and for what 16 divides, Triton would compile another one."""
    return _filled([2 * value + 3 for value in values])


def _on(device: torch.device) -> torch.cuda.device:
    """Let kernels be started on a device; interpreted they run on the CPU."""
    return torch.cuda.device(device if device.type == "cuda" else -1)
