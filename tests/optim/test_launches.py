"""On an accelerator, where a small kernel takes longer to start than to run, a step starts few of them.

On fake CUDA tensors, which have shapes and no values, so that every machine can count.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from hdlib import SGDHD, AdamHD, AdamWHD

NATIVE = {AdamHD: torch.optim.Adam, AdamWHD: torch.optim.AdamW}
VIEWS = {"view", "reshape", "detach", "unbind", "permute", "as_strided", "expand", "select", "alias", "device"}
EMPTY = {"empty", "empty_like", "empty_strided", "new_empty"}


class Launches(TorchDispatchMode):
    """Counts the kernels that CUDA would start, as far as the operations tell."""

    def __init__(self):
        super().__init__()
        self.count = 0
        self.rates = []  # the precisions of the learning rates that fused kernels are given

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name.startswith("_foreach"):
            lists = [arg for arg in args if isinstance(arg, (list, tuple)) and isinstance(arg[0], torch.Tensor)]
            alike = all(len({(t.shape, t.dtype) for t in row}) == 1 for row in zip(*lists, strict=True))
            self.count += 1 if alike else len(lists[0])  # otherwise tensor by tensor
        elif not name.startswith("_record") and name not in VIEWS | EMPTY:
            self.count += 2 if name == "dot" else 1
        if name.startswith("_fused"):  # has no fake version, and returns nothing
            self.rates += [arg.dtype for arg in [*args, *(kwargs or {}).values()] if isinstance(arg, torch.Tensor)]
            return None
        return function(*args, **(kwargs or {}))


def watched(make, shapes, dtype=torch.float32):
    """Return what a step starts once there is a state."""
    with FakeTensorMode():
        params = [torch.empty(shape, dtype=dtype, device="cuda", requires_grad=True) for shape in shapes]
        optimizer = make(params)
        for _ in range(3):
            for p in params:
                p.grad = torch.empty_like(p)
            with Launches() as launches:
                optimizer.step()
    return launches


@pytest.mark.parametrize("way", [{"foreach": True}, {"fused": True}])
@pytest.mark.parametrize("beta", [0.0, 1e-8, "auto"])
@pytest.mark.parametrize(
    ("cls", "values"),
    [
        (SGDHD, {}),
        (SGDHD, {"momentum": 0.9}),
        (SGDHD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
        (AdamHD, {"weight_decay": 0.1}),
        (AdamHD, {"amsgrad": True}),
        (AdamWHD, {}),
    ],
)
def test_hypergradients_cost_as_many_kernels_for_many_small_tensors_as_for_few(cls, values, beta, way):
    more = []
    for n in (3, 9):
        shapes = [(30, 20), (30,), (16, 8, 3, 3)] * n
        ours = watched(lambda params: cls(params, hypergrad_lr=beta, **values, **way), shapes).count
        if cls is not SGDHD:  # torch's multi-tensor step corrects the bias of Adam tensor by tensor
            ours -= watched(lambda params: NATIVE[cls](params, capturable=True, **values, **way), shapes).count
        more.append(ours)
    assert more[0] == more[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("beta", [0.0, 1e-8])
@pytest.mark.parametrize("cls", [SGDHD, AdamHD])
def test_fused_kernels_are_given_a_float32_alpha_or_none_at_all(cls, beta, dtype):
    """They read a tensor as float32, whatever the parameters are; float64 ones keep a float64 alpha in other ways."""
    launches = watched(lambda params: cls(params, hypergrad_lr=beta, fused=True), [(30, 20), (30,)], dtype)
    assert launches.rates == ([] if dtype == torch.float64 else [torch.float32])
