"""The GPU's kernels, without a GPU: interpreted they step as the plain loop does, and they compile for GPUs."""

import functools
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_launches import watched

from hdlib import SGDHD, AdamHD, AdamWHD
from hdlib.optim import _kernels

pytest.importorskip("triton", reason="torch comes without Triton here")

CASES = {
    f"{cls.__name__} {settings} {layout}": (cls, settings, layout)
    for (cls, settings), layout in itertools.product(
        [
            (SGDHD, {"weight_decay": 0.2}),
            (SGDHD, {"momentum": 0.9, "dampening": 0.3, "rule": "multiplicative", "hypergrad_lr": 0.1}),
            (SGDHD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.2, "maximize": True}),
            (SGDHD, {"momentum": 0.9, "nesterov": True, "rule": "auto", "hypergrad_lr": 1.0}),
            (AdamHD, {}),
            (AdamHD, {"weight_decay": 0.2, "maximize": True, "rule": "multiplicative", "hypergrad_lr": 0.1}),
            (AdamHD, {"amsgrad": True, "rule": "auto", "hypergrad_lr": 1.0}),
            (AdamHD, {"weight_decay": 0.2, "maximize": True, "rule": "auto", "hypergrad_lr": 1.0}),
            (AdamWHD, {"weight_decay": 0.1, "betas": (0.0, 0.99)}),
            (AdamWHD, {"weight_decay": 0.1, "rule": "auto", "hypergrad_lr": 1.0}),
        ],
        ["contiguous", "channels_last"],
    )
}


def alone(function, **environment):
    """Run a function of this file in a process of its own: Triton asks the environment when it is imported."""
    code = f"import test_gpu_kernel; test_gpu_kernel.{function}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def steps(cls, settings, layout, dtype=torch.float32, device="cpu", large=(20, 24, 3, 3), **more):
    """Step on random gradients, one of which is missing once; return the parameters, and alpha and h of every step."""
    generator = torch.Generator().manual_seed(1)

    def random(shape):
        x = torch.randn(shape, generator=generator).to(device, dtype)
        return x.to(memory_format=torch.channels_last) if layout == "channels_last" and len(shape) == 4 else x

    shapes = [(90, 70), (17,), (), (0, 3), large]
    params = [random(shape).requires_grad_() for shape in shapes]
    optimizer = cls(params, **({"lr": 0.01, "hypergrad_lr": 1e-7} | settings | more))
    told = []
    for t in range(5):
        for p in params:
            p.grad = random(p.shape)
        if t == 2:
            params[1].grad = None
        optimizer.step()
        told.append([float(optimizer.param_groups[0][name]) for name in ("lr", "hypergrad")])
    return [p.detach() for p in params], torch.tensor(told)


def compare():
    """Step by the kernel, interpreted, and by the loop, or in half precision, where ways round apart, by torch's."""
    from hdlib.optim import _triton

    _triton.TENSORS = 4  # fewer than there are, and quicker to interpret
    asked = []

    class Kernels:
        """The module, its calls counted."""

        def __getattr__(self, name):
            def call(rows, *arguments):
                asked.append(len(rows))
                return getattr(_triton, name)(rows, *arguments)

            return call

    torch_way = lambda self, group: ("torch" if group["foreach"] is None else "loop", True)  # noqa: E731
    SGDHD._way = AdamHD._way = torch_way
    for name, (cls, settings, layout) in CASES.items():
        kinds = [(torch.float32, 1e-5, False), (torch.bfloat16, 1e-2, None)]
        for dtype, tolerance, foreach in kinds if layout == "channels_last" else kinds[:1]:
            _kernels.gpu = lambda device: None
            expected, numbers = steps(cls, settings, layout, dtype, capturable=True, foreach=foreach)
            _kernels.gpu = lambda device: Kernels()
            asked.clear()
            found, others = steps(cls, settings, layout, dtype, capturable=True)
            slopes = cls is not SGDHD and settings.get("rule") == "auto"  # after every step, by the same kernel
            # before it not in the first one, nor after a rest
            assert asked == ([5, 5, 5, 4, 4, 5, 5, 5] if slopes else [5, 4, 5]), name
            torch.testing.assert_close(others, numbers, rtol=tolerance, atol=1e-7, msg=lambda m, name=name: name + m)
            for a, b in zip(found, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def compile_for(capability, precisions):
    """Compile every form of the kernels for some precisions to a GPU's machine code."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from hdlib.optim._triton import BLOCK, TENSORS, UNIT, adam_kernel, corrections_kernel, sgd_kernel

    numbers = {"sums": "*fp32", "before": "i32"} | dict.fromkeys(("begins", "units", "which"), ("i32",) * TENSORS)
    numbers |= {"steps": ("*fp32",) * TENSORS} | dict.fromkeys(("floors", "scales"), "*fp32")
    numbers |= dict.fromkeys(("sign", "l2", "decay", "momentum", "share", "eps"), "fp32")

    def made(kernel, constants, types, warps):
        types = types | numbers | dict.fromkeys(constants, "constexpr")
        source = ASTSource(kernel, {name: types[name] for name in kernel.arg_names}, constants)
        return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps}).asm

    corrections = made(corrections_kernel, {}, {"log_1": "fp64", "log_2": "fp64"}, 1)
    assert corrections["cubin"] and corrections["ptx"].count(".param .f64") == 2  # no constants: schedulers move them
    for kernel, modes in ((sgd_kernel, [{"MODE": mode} for mode in range(3)]), (adam_kernel, [{}])):
        kinds = itertools.product(precisions, modes, (False, True), (UNIT, 1))
        for precision, mode, read_p, unit in kinds:
            constants = mode | {"READ_P": read_p, "UNIT": unit, "BLOCK": BLOCK}
            code = made(kernel, constants, dict.fromkeys("gpmvd", (f"*{precision}",) * TENSORS), 8)
            several = re.search(r"ld\.global\S*\.v[48]", code["ptx"])  # loads of several elements at a time
            assert code["cubin"] and bool(several) == (unit > 1)


def many():
    """Sum over more tensors than a kernel goes through, of lengths and in places that fit its loads and that do not."""
    from hdlib.optim import _triton

    class Counted:
        """A kernel, its launches counted."""

        def __init__(self, kernel):
            self.kernel, self.units = kernel, []

        def __getitem__(self, grid):
            def launch(*arguments, **options):
                for numbers in arguments[:3]:  # for which Triton would compile other kernels
                    assert not any(number == 1 or number % 16 == 0 for number in numbers)
                self.units.append(arguments[-2])
                return self.kernel[grid](*arguments, **options)

            return launch

    _triton.sgd_kernel = kernel = Counted(_triton.sgd_kernel)
    generator = torch.Generator().manual_seed(0)
    memory = torch.randn(5000 + 1000 * 75, generator=generator)  # of which an odd start is aligned to 4 bytes alone
    tensors = [memory[i * 1000 :][: 16 * i + 16] for i in range(70)] + [memory[70_001:70_065], memory[71_000:75_999]]
    rows = [[torch.zeros_like(g), g, torch.zeros_like(g), 2 * g] for g in tensors]
    found = _triton.sgd_observe(rows, 1.0, 0.0, 0.9, 1.0, True)
    expected = sum(float(g.double() @ g.double()) for g in tensors)
    torch.testing.assert_close(torch.stack(found), torch.tensor([2.0, 1.0, 4.0]).double() * expected, rtol=1e-6, atol=0)
    for _, g, v, d in rows:
        assert torch.equal(v, g)
        torch.testing.assert_close(d, 1.9 * g)
    assert kernel.units == [16, 16, 16, 1]

    zero = torch.zeros(5)  # moments at step 0: of a checkpoint whose only step was skipped
    h, squared, length = _triton.adam_sums(
        [[zero, zero + 2, zero, zero]], [torch.tensor(0.0)], (0.9, 0.999), 1e-8, 1.0, 0.0, 0.0
    )
    assert (h, squared, length) == (0, 20, 0)


def test_interpreted_the_kernels_step_as_the_loop_does():
    alone("compare()", TRITON_INTERPRET="1")


def test_a_kernel_goes_through_many_tensors():
    alone("many()", TRITON_INTERPRET="1")


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_on_a_gpu_the_kernels_step_as_the_loop_does(name):
    """With a tensor that is large enough for a kernel of its own."""
    cls, settings, layout = CASES[name]
    assert _kernels.gpu(torch.device("cuda", 0)) is not None
    there = dict(device="cuda", large=(256, 130, 3, 3), capturable=True)
    expected, numbers = steps(cls, settings, layout, foreach=False, **there)
    found, others = steps(cls, settings, layout, fused=True, **there)
    torch.testing.assert_close(others, numbers, rtol=1e-4, atol=1e-7)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("capability", "precisions"), [(80, ["bf16"]), (90, ["fp32", "bf16", "fp16"])])
def test_the_kernels_compile_for_gpus_that_are_not_here(capability, precisions, tmp_path):
    """For the first GPUs that compute in bfloat16 in that alone: each form takes a second."""
    alone(f"compile_for({capability}, {precisions})", TRITON_CACHE_DIR=str(tmp_path))


@pytest.mark.parametrize(
    "make", [SGDHD, functools.partial(SGDHD, momentum=0.9, nesterov=True, weight_decay=0.1), AdamHD]
)
def test_all_tensors_are_given_to_the_kernels_and_nothing_else_is_started_for_each(make, monkeypatch):
    class Kernels:
        """Counts the tensors that the kernels would go through."""

        def __getattr__(self, name):
            def call(rows, *arguments):
                given.append(len(rows))
                return [torch.zeros((), dtype=torch.float64, device=rows[0][0].device)] * 3

            return call

    given, counts = [], []
    monkeypatch.setattr(_kernels, "gpu", lambda device: Kernels())
    for large in (4, 8):
        shapes = [(1024, 1024)] * large + [(30, 20), (30,)] * 5
        counts.append(watched(functools.partial(make, fused=True), shapes).count)
    assert counts[0] == counts[1] and given == [14, 14, 18, 18]


def test_where_triton_cannot_run_the_operations_are_torchs_and_a_warning_says_why(monkeypatch):
    from hdlib.optim import _triton

    def fail(*_):
        raise RuntimeError("Failed to find C compiler.\nPlease specify it.")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", lambda *_, **__: None)
    monkeypatch.setattr(_triton, "adam_sums", fail)
    with pytest.warns(UserWarning, match="Triton cannot run here .Failed to find C compiler"):
        assert _kernels.gpu.__wrapped__(torch.device("cuda")) is None
