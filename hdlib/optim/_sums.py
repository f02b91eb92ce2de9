"""Sums over the tensors of a step: in float64, over devices and processes, without waiting for any."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from hdlib.optim import rules
from hdlib.optim._group import Group, Number, needs_norms


class Sums:
    """Adds up g.d, |g|^2 and |d|^2 tensor by tensor."""

    def __init__(self, group: Group) -> None:
        self.norms = needs_norms(group)
        self.terms: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])

    def add(self, g: Tensor, d: Tensor | None) -> None:
        """Count a tensor; d is None where the last step did not move it."""
        gd, gg, dd = self.terms
        if d is not None:
            gd.append(rules.dot(g, d))
        if self.norms:
            gg.append(rules.dot(g, g))
            if d is not None:
                dd.append(rules.dot(d, d))

    def values(self) -> list[Number]:
        """Return the three sums, 0-dim float64 tensors or zeros."""
        return [total(terms) if terms else 0.0 for terms in self.terms]


def total(terms: Iterable[Tensor]) -> Tensor:
    """Sum 0-dim tensors of one device in float64 (float32 where the device has no float64)."""
    terms = list(terms)
    if len({t.device for t in terms}) > 1:
        terms = [t.to(terms[0].device, non_blocking=True) for t in terms]
    if len({t.dtype for t in terms}) > 1:
        terms = [t.to(torch.float32 if t.device.type == "mps" else torch.float64) for t in terms]
    stacked = torch.stack(terms)
    return stacked.sum() if stacked.device.type == "mps" else stacked.sum(dtype=torch.float64)


def sum_up(values: Sequence[Number]) -> Number:
    """Add numbers and 0-dim tensors, which may lie on several devices."""
    result = values[0]
    for value in values[1:]:
        if isinstance(value, Tensor) and isinstance(result, Tensor):
            value = value.to(result.device, non_blocking=True)
        result = result + value
    return result


def over_meshes(found: list[tuple[Any, list[Number]]], length: int) -> list[Number]:
    """Add up rows of so many numbers, over the processes too, one all-reduce for each device mesh."""
    rows: dict[Any, list[list[Number]]] = {}
    for mesh, row in found:
        rows.setdefault(mesh, []).append(row)
    sums = [over_mesh([sum_up(column) for column in zip(*some, strict=True)], mesh) for mesh, some in rows.items()]
    return [sum_up(column) for column in zip(*sums, strict=True)] if sums else [0.0] * length


def over_mesh(values: list[Number], mesh: Any) -> list[Number]:
    """Add the processes' sums in one all-reduce; a dimension on which tensors are replicated counts once."""
    if mesh is None:
        return values
    from torch.distributed.tensor import DTensor, Partial, Replicate

    device_mesh, placements = mesh
    local = torch.stack(
        [torch.as_tensor(value, dtype=torch.float64, device=device_mesh.device_type) for value in values]
    )
    how = [Replicate() if placement.is_replicate() else Partial() for placement in placements]
    return list(DTensor.from_local(local, device_mesh, how, run_check=False).full_tensor().unbind())
