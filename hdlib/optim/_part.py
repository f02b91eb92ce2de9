"""The tensors of a parameter group that are computed together, as they lie in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from hdlib.optim import _kernels, rules

State: TypeAlias = dict[str, Any]

CHUNK = 1 << 18  # elements whose tensors stay in the processor's cache between the operations of a pass
SMALL = 1 << 18  # elements of an accelerator's tensor whose kernels take about as long to start as to run
PLAIN = (Tensor, torch.nn.Parameter)


class Part:
    """The tensors of one group that are computed together, in one way.

    Attributes:
        way: "loop" (rules.py, tensor by tensor), "foreach" (torch's multi-tensor operations), "torch" (torch's
            fused kernels) or "kernels" (kernels.cpp).
        mesh: the device mesh and the placements of DTensors, None for ordinary tensors.
        owners: the parameters as the user knows them.
        params: their real numbers on this process: a DTensor's shard, a complex tensor's real view.
        grads: the gradients' real numbers, as backward left them.
        states: the parameters' states.
        moved: whether the last step moved the parameter; D_{t-1} is zero where it did not.
        along: g_t . -D_t, where kernels.cpp has summed it on its way.
    """

    def __init__(self, way: str, mesh: Any) -> None:
        self.way = way
        self.mesh = mesh
        self.owners: list[Tensor] = []
        self.params: list[Tensor] = []
        self.grads: list[Tensor] = []
        self.states: list[State] = []
        self.moved: list[bool] = []
        self.along: float | None = None

    def real(self, name: str) -> list[Tensor]:
        """Return one tensor of every state, as real numbers on this process."""
        return [plain(state[name]) for state in self.states]

    def rows(self, *columns: Sequence[Any]) -> Iterator[tuple[bool, Sequence[Any]]]:
        """Return, for each tensor, whether it moved and its entry in every column, the first of which is a tensor.

        On an accelerator small tensors are joined into one row, of vectors, in which a column's 0-dim tensors are
        repeated: what is computed from a row is for sums alone.
        """
        small: dict[Any, list[Sequence[Any]]] = {}
        for moved, row in zip(self.moved, zip(*columns, strict=True), strict=True):
            first = row[0]
            if is_small(first):
                there = [x if isinstance(x, Tensor) else first.new_full((), x, dtype=precision([first])) for x in row]
                small.setdefault((moved, first.device, first.dtype), []).append(there)
            else:
                yield moved, row
        for (moved, *_), rows in small.items():
            yield moved, [torch.cat(column) for column in zip(*[rules.flat(*row) for row in rows], strict=True)]

    def gpu_kernels(self) -> Any:
        """Return the kernels for these tensors, if all are on one GPU that can run them and each has a direction."""
        devices = {p.device for p in self.params}
        if self.way != "torch" or not all(self.moved) or len(devices) > 1 or torch.compiler.is_compiling():
            return None
        return _kernels.gpu(devices.pop())

    def zeros(self, name: str) -> None:
        """Give every state that lacks it a tensor of zeros like its parameter."""
        for p, state in zip(self.owners, self.states, strict=True):
            if state.get(name) is None:
                state[name] = torch.zeros_like(p, memory_format=torch.preserve_format)


def plain(tensor: Tensor) -> Tensor:
    """Return a tensor's real numbers on this process, in its own memory: a DTensor's shard, a complex one's view."""
    if type(tensor) not in PLAIN and hasattr(tensor, "to_local"):
        tensor = cast(Tensor, tensor.to_local())
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def mesh_of(p: Any) -> Any:
    """Return a DTensor's device mesh and placements, None for another tensor."""
    return None if type(p) in PLAIN or not hasattr(p, "device_mesh") else (p.device_mesh, p.placements)


def channels_last(tensor: Tensor) -> bool:
    """Whether a batch of images lies in memory with its channels innermost, without gaps."""
    return tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)


def chunks(tensors: Sequence[Tensor | None]) -> Iterator[Sequence[Any]]:
    """Cut tensors of one shape into pieces that fit the processor's cache, where that is to any use.

    Working through all operations of a pass piece by piece reads the memory once instead of once an operation.
    """
    there = [t for t in tensors if t is not None]
    first = there[0]
    if first.device.type != "cpu" or first.numel() <= CHUNK or torch.compiler.is_compiling():
        return iter([tensors])
    if not all(map(Tensor.is_contiguous, there)):
        if not all(map(channels_last, there)):
            return iter([tensors])
        tensors = [None if t is None else t.permute(0, 2, 3, 1) for t in tensors]
    count = -(-first.numel() // CHUNK)
    return zip(*[[None] * count if t is None else torch.split(t.view(-1), CHUNK) for t in tensors], strict=True)


def is_small(tensor: Tensor) -> bool:
    """Whether an accelerator takes about as long to start a kernel as to run it on this tensor."""
    return tensor.device.type != "cpu" and tensor.numel() <= SMALL


def precision(tensors: Iterable[Tensor]) -> torch.dtype:
    """Return the precision of a number that is multiplied with these tensors."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
