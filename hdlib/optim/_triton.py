"""The GPU kernel of `AdamHD(fused=True)`: the sums of g_t . -D_{t-1} and of both squares, read from memory once.

torch's own operations would write the direction and read it again, four times over. Written in Triton, which comes
with torch where torch comes with CUDA; imported when it is first needed, because that takes a while.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from hdlib.optim import rules

BLOCK = 4096  # elements that a program adds up, in float32, before the programs' sums are added in float64


@triton.jit(do_not_specialize=["begin"], do_not_specialize_on_alignment=["floor", "scale"])  # type: ignore[untyped-decorator]
def adam_sums_kernel(  # type: ignore[no-untyped-def]
    g, p, m, v, floor, scale, sums, n, begin, sign, l2, decay,
    EACH: tl.constexpr, READ_P: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write one program's three sums; `EACH` element has its own floor and scale, or all have one."""
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
    place = sums + 3 * (begin + program)
    tl.store(place, tl.sum(gradient * direction))
    tl.store(place + 1, tl.sum(gradient * gradient))
    tl.store(place + 2, tl.sum(direction * direction))


def adam_sums(rows: Sequence[Sequence[Tensor]], sign: float, l2: float, decay: float) -> list[Tensor]:
    """Return g_t . -D_{t-1}, |g_t|^2 and |D_{t-1}|^2 as 0-dim float64 tensors, always summed in the same order.

    Args:
        rows: of parameter, gradient, both moments, and `rules.adam_corrections` of the last step in float32: one
            number each, or as many as the parameter has. All on one GPU, in float32 or half precision.
        sign: -1 to maximise.
        l2: factor of the L2 term in the gradient.
        decay: AdamW's decoupled decay in the direction, but for its factor (1 - alpha lambda).
    """
    programs = [triton.cdiv(row[0].numel(), BLOCK) for row in rows]
    device = rows[0][0].device
    sums = torch.empty(sum(programs), 3, dtype=torch.float32, device=device)
    begin = 0
    with torch.cuda.device(device if device.type == "cuda" else -1):
        for (p, g, m, v, floor, scale), count in zip(rows, programs, strict=True):
            g, p, m, v = rules.flat(g, p, m, v)
            each, read_p = floor.numel() > 1, l2 != 0 or decay != 0
            adam_sums_kernel[(count,)](
                g, p, m, v, floor, scale, sums, g.numel(), begin, sign, l2, decay, each, read_p, BLOCK, num_warps=8
            )
            begin += count
    return list(sums.sum(0, dtype=torch.float64).unbind())
