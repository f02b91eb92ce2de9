"""On an accelerator, where a small kernel takes longer to start than to run, a step starts few of them.

On fake CUDA tensors, which have shapes and no values, so that every machine can count.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from hdlib import SGDHD, AdamHD, AdamWHD

NATIVE = {SGDHD: torch.optim.SGD, AdamHD: torch.optim.Adam, AdamWHD: torch.optim.AdamW}
VIEWS = {"view", "reshape", "detach", "unbind", "permute", "as_strided", "expand", "select", "alias", "device"}
EMPTY = {"empty", "empty_like", "empty_strided", "new_empty"}


class Launches(TorchDispatchMode):
    """Counts the kernels that CUDA would start, as far as the operations tell."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name.startswith("_foreach"):
            lists = [arg for arg in args if isinstance(arg, (list, tuple)) and isinstance(arg[0], torch.Tensor)]
            alike = all(len({(t.shape, t.dtype) for t in row}) == 1 for row in zip(*lists, strict=True))
            self.count += 1 if alike else len(lists[0])  # otherwise tensor by tensor
        elif not name.startswith("_record") and name not in VIEWS | EMPTY:
            self.count += 2 if name == "dot" else 1
        if name.startswith("_fused"):  # has no fake version, and returns nothing
            return None
        return function(*args, **(kwargs or {}))


def launches(make, shapes):
    """Return how many kernels a step starts once there is a state."""
    with FakeTensorMode():
        params = [torch.empty(shape, device="cuda", requires_grad=True) for shape in shapes]
        optimizer = make(params)
        for _ in range(3):
            for p in params:
                p.grad = torch.empty_like(p)
            with Launches() as counted:
                optimizer.step()
    return counted.count


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
    for n in (10, 40):
        shapes = [(30, 20), (30,), (16, 8, 3, 3)] * n
        ours = launches(lambda params: cls(params, capturable=True, hypergrad_lr=beta, **values, **way), shapes)
        native = dict(values, **way) | ({} if cls is SGDHD else {"capturable": True})
        theirs = 0 if cls is SGDHD else launches(lambda params: NATIVE[cls](params, **native), shapes)  # noqa: B023
        more.append(ours - theirs)
    assert more[0] == more[1]
