"""The GPU kernels of `fused=True`: what hypergradients add to a step, in one pass over the memory.

torch's own operations would write what they find and read it again, several times over. Written in Triton, which comes
with torch where torch comes with CUDA; imported when it is first needed, because that takes a while.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from hdlib.optim import rules

BLOCK = 4096  # elements that a program adds up, in float32, before the programs' sums are added in float64
PLAIN, HEAVY_BALL, NESTEROV = range(3)  # what SGD's direction is: the gradient, the velocity, or both


@triton.jit
def keep_sums(sums, program, gradient, direction):  # type: ignore[no-untyped-def]
    """Write a program's g_t . -D_{t-1}, |g_t|^2 and |D_{t-1}|^2."""
    tl.store(sums + 3 * program, tl.sum(gradient * direction))
    tl.store(sums + 3 * program + 1, tl.sum(gradient * gradient))
    tl.store(sums + 3 * program + 2, tl.sum(direction * direction))


@triton.jit(do_not_specialize=["begin"])  # type: ignore[untyped-decorator]
def sgd_kernel(  # type: ignore[no-untyped-def]
    g, p, v, d, sums, n, begin, sign, l2, momentum, share,
    MODE: tl.constexpr, READ_P: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write one program's sums, and go from the velocity and direction of t-1 to those of t."""
    program = tl.program_id(0)
    i = program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = i < n
    gradient = sign * tl.load(g + i, mask=there, other=0.0).to(tl.float32)
    direction = tl.load(d + i, mask=there, other=0.0).to(tl.float32)
    if READ_P:
        gradient += l2 * tl.load(p + i, mask=there, other=0.0).to(tl.float32)
    keep_sums(sums, begin + program, gradient, direction)
    if MODE == 0:
        tl.store(d + i, gradient, mask=there)
    else:
        velocity = momentum * tl.load(v + i, mask=there, other=0.0).to(tl.float32) + share * gradient
        tl.store(v + i, velocity, mask=there)
        if MODE == 2:
            tl.store(d + i, gradient + momentum * velocity, mask=there)


@triton.jit(do_not_specialize=["begin"], do_not_specialize_on_alignment=["floor", "scale"])  # type: ignore[untyped-decorator]
def adam_kernel(  # type: ignore[no-untyped-def]
    g, p, m, v, floor, scale, sums, n, begin, sign, l2, decay,
    EACH: tl.constexpr, READ_P: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write one program's sums; `EACH` element has its own floor and scale, or all have one."""
    program = tl.program_id(0)
    i = program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = i < n
    gradient = sign * tl.load(g + i, mask=there, other=0.0).to(tl.float32)
    first = tl.load(m + i, mask=there, other=0.0).to(tl.float32)
    second = tl.load(v + i, mask=there, other=0.0).to(tl.float32)
    if EACH:
        least = tl.load(floor + i, mask=there, other=1.0)
        factor = tl.load(scale + i, mask=there, other=0.0)
    else:
        least = tl.load(floor)
        factor = tl.load(scale)
    direction = tl.where(there, first / (tl.sqrt(second) + least) * factor, 0.0)
    if READ_P:
        theta = tl.load(p + i, mask=there, other=0.0).to(tl.float32)
        gradient += l2 * theta
        direction += decay * theta
    keep_sums(sums, begin + program, gradient, direction)


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

    def start(programs: int, begin: int, sums: Tensor, row: Sequence[Tensor]) -> None:
        p, g, v, d = rules.flat(*row)
        sgd_kernel[(programs,)](
            g, p, v, d, sums, g.numel(), begin, sign, l2, momentum, share, mode, l2 != 0, BLOCK, num_warps=8
        )

    return _over(rows, start)


def adam_sums(rows: Sequence[Sequence[Tensor]], sign: float, l2: float, decay: float) -> list[Tensor]:
    """Return g_t . -D_{t-1}, |g_t|^2 and |D_{t-1}|^2.

    Args:
        rows: of parameter, gradient, both moments, and `rules.adam_corrections` of the last step in float32: one
            number each, or as many as the parameter has. All on one GPU, in float32 or half precision.
        sign: -1 to maximise.
        l2: factor of the L2 term in the gradient.
        decay: AdamW's decoupled decay in the direction, but for its factor (1 - alpha lambda).
    """

    def start(programs: int, begin: int, sums: Tensor, row: Sequence[Tensor]) -> None:
        *tensors, floor, scale = row
        p, g, m, v = rules.flat(*tensors)
        each, read_p = floor.numel() > 1, l2 != 0 or decay != 0
        adam_kernel[(programs,)](
            g, p, m, v, floor, scale, sums, g.numel(), begin, sign, l2, decay, each, read_p, BLOCK, num_warps=8
        )

    return _over(rows, start)


def _over(
    rows: Sequence[Sequence[Tensor]], start: Callable[[int, int, Tensor, Sequence[Tensor]], None]
) -> list[Tensor]:
    """Start a kernel for each row; return the three sums, 0-dim float64 tensors, always added in the same order."""
    programs = [triton.cdiv(row[0].numel(), BLOCK) for row in rows]
    device = rows[0][0].device
    sums = torch.empty(sum(programs), 3, dtype=torch.float32, device=device)
    begin = 0
    with torch.cuda.device(device if device.type == "cuda" else -1):
        for row, count in zip(rows, programs, strict=True):
            start(count, begin, sums, row)
            begin += count
    return list(sums.sum(0, dtype=torch.float64).unbind())
