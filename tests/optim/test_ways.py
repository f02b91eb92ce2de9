"""Every way of computing a step gives what the plain loop gives, and the plain loop with beta 0 what torch gives."""

import shutil
import subprocess
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode

from hdlib import SGDHD, AdamHD, AdamWHD
from hdlib.optim import _kernels, _part

NATIVE = {SGDHD: torch.optim.SGD, AdamHD: torch.optim.Adam, AdamWHD: torch.optim.AdamW}

SETTINGS = [
    (SGDHD, {}),
    (SGDHD, {"momentum": 0.9, "dampening": 0.3}),
    (SGDHD, {"momentum": 0.9, "nesterov": True}),
    (AdamHD, {}),
    (AdamHD, {"amsgrad": True, "betas": (0.7, 0.9)}),
    (AdamWHD, {"weight_decay": 0.1}),
    (AdamWHD, {"amsgrad": True, "weight_decay": 0.1}),
]
EXTRAS = [{}, {"weight_decay": 0.2, "maximize": True}]
WAYS = {
    "default": {},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "capturable": {"capturable": True},
    "capturable foreach": {"capturable": True, "foreach": True},
    "tensor lr": {"lr": torch.tensor(0.01, dtype=torch.float64)},
    "tensor lr, fused": {"lr": torch.tensor(0.01, dtype=torch.float64), "fused": True},
}
SHAPES = [(300, 250), (17,), (), (0, 3), (5, 1), (4, 3, 2, 2)]


@pytest.fixture(params=["compiler", "no compiler"])
def compiler(request, monkeypatch):
    """With kernels.cpp compiled, and as if there were no compiler."""
    if request.param == "no compiler":
        monkeypatch.setattr(_kernels, "library", lambda: None)
    elif _kernels.library() is None:
        pytest.skip("this machine has no C++ compiler")
    return request.param


def run(cls, settings, dtype=torch.float64, steps=6, prepare=lambda p: p, kind=None, turn_at=None, **more):
    """Step on random gradients, one of which is missing once; return the parameters and every alpha.

    Before the step `turn_at` images' channels become innermost in memory, as by `model.to(memory_format=...)`.
    """
    generator = torch.Generator().manual_seed(1)

    def random(shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    params = [prepare(random(shape).to(dtype)).requires_grad_() for shape in SHAPES]
    beta = {"multiplicative": 0.1, "auto": 0.5}.get(settings.get("rule"), 1e-7)
    values = {"lr": 0.01} if kind else {"lr": 0.01, "hypergrad_lr": beta}
    optimizer = (kind or cls)(params, **(values | settings | more))
    alphas = []
    for t in range(steps):
        for i, p in enumerate(params):
            if t == turn_at and p.dim() == 4:
                p.data = p.data.contiguous(memory_format=torch.channels_last)
            grad = (random(p.shape) + 0.3).to(dtype)
            p.grad = None if (t, i) == (2, 1) else torch.empty_like(p).copy_(grad)
        optimizer.step()
        alphas.append(float(optimizer.param_groups[0]["lr"]))
    return [p.detach() for p in params], torch.tensor(alphas, dtype=torch.float64)


@pytest.mark.parametrize("rule", ["additive", "multiplicative", "auto"])
@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize(("cls", "settings"), SETTINGS)
def test_all_ways_agree_with_the_plain_loop(cls, settings, extra, rule, compiler):
    settings = {**settings, **extra, "rule": rule}
    expected = run(cls, settings, foreach=False)
    assert expected[1][-1] != expected[1][0]
    for name, way in WAYS.items():
        params, alphas = run(cls, settings, **way)
        for p, q in zip(params, expected[0], strict=True):
            torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")
        torch.testing.assert_close(alphas, expected[1], rtol=1e-12, atol=0, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("cls", "settings"), SETTINGS)
def test_all_ways_agree_in_the_precision_of_the_parameters(cls, settings, dtype, compiler):
    if cls is not SGDHD:  # half precision has few numbers near torch's eps and (1 - 0.999) g^2
        settings = {**settings, "eps": 1e-3, "betas": (0.7, 0.9)}
    exact = run(cls, settings, foreach=False)
    close = {torch.float32: 1e-5, torch.bfloat16: 0.1, torch.float16: 0.02}[dtype]
    for way in WAYS.values():
        params, alphas = run(cls, settings, dtype=dtype, **way)
        assert all(p.dtype == dtype for p in params)
        for p, q in zip(params, exact[0], strict=True):
            torch.testing.assert_close(p.double(), q, rtol=0, atol=close)
        # alpha's whole movement, which is far smaller than alpha, survives the parameters' precision
        torch.testing.assert_close(alphas - 0.01, exact[1] - 0.01, rtol=2 * close, atol=1e-9 if close < 1 else 0)


@pytest.mark.parametrize("beta2", [0.999, 0.99999])
@pytest.mark.parametrize("way", WAYS)
def test_a_second_moment_has_all_the_digits_of_its_precision(way, beta2, compiler):
    """1 - beta2 has few of them where it is subtracted in single precision."""
    w = torch.nn.Parameter(torch.zeros(100))
    w.grad = torch.linspace(-1, 1, 100)
    optimizer = AdamHD([w], **({"lr": 0.01, "betas": (0.9, beta2), "hypergrad_lr": 1e-12} | WAYS[way]))
    optimizer.step()
    expected = (1 - beta2) * w.grad.double().square()
    torch.testing.assert_close(optimizer.state[w]["exp_avg_sq"].double(), expected, rtol=3e-7, atol=0)


@pytest.mark.parametrize("layout", ["strided", "transposed", "channels last"])
@pytest.mark.parametrize(("cls", "settings"), SETTINGS)
def test_layouts_in_memory_make_no_difference(cls, settings, layout, compiler):
    """torch's own fused kernels write to the wrong places where a parameter is strided."""

    def prepare(p):
        if layout == "strided":
            p = torch.stack([p, p], -1)[..., 0]
        elif layout == "transposed":
            p = p.mT.contiguous().mT if p.dim() > 1 else p
        elif p.dim() == 4:
            p = p.contiguous(memory_format=torch.channels_last)
        return p

    expected = run(cls, settings, foreach=False)
    for way in WAYS.values():
        params, alphas = run(cls, settings, prepare=prepare, **way)
        for p, q in zip(params, expected[0], strict=True):
            torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(alphas, expected[1], rtol=1e-12, atol=0)


@pytest.mark.parametrize("beta", [0.0, 1e-7])
@pytest.mark.parametrize(("cls", "settings"), SETTINGS)
def test_a_model_may_change_its_layout_between_steps(cls, settings, beta, compiler):
    """Its optimiser's state then lies in the old order, which a kernel that walks through memory would mix up."""
    settings = {**settings, "hypergrad_lr": beta}
    expected = run(cls, settings, foreach=False)
    for way in WAYS.values():
        params, alphas = run(cls, settings, turn_at=3, **way)
        for p, q in zip(params, expected[0], strict=True):
            torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(alphas, expected[1], rtol=1e-12, atol=0)


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "channels last"])
@pytest.mark.parametrize("rule", ["multiplicative", "auto"])
@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize(("cls", "settings"), SETTINGS)
def test_small_tensors_that_an_accelerator_joins_give_the_same_sums(cls, settings, extra, rule, layout, monkeypatch):
    """Alpha moves as in the plain loop, with the joining switched on for the CPU's tensors, but for the largest."""

    def prepare(p):
        if layout == "transposed" and p.dim() > 1:
            return p.mT.contiguous().mT
        return p.contiguous(memory_format=torch.channels_last) if layout != "contiguous" and p.dim() == 4 else p

    settings = {**settings, **extra, "rule": rule}
    expected = run(cls, settings, foreach=False)
    lengths = []
    monkeypatch.setattr(_part, "is_small", lambda t: t.numel() < 1000)
    monkeypatch.setattr(torch, "cat", lambda column, cat=torch.cat: (lengths.append(len(column)), cat(column))[1])
    params, alphas = run(cls, settings, prepare=prepare, capturable=True, foreach=True)
    assert max(lengths) == len(SHAPES) - 1
    torch.testing.assert_close(alphas, expected[1], rtol=1e-12, atol=0)
    for p, q in zip(params, expected[0], strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("beta", [0.0, 1e-30])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cls", NATIVE)
def test_tensors_that_hold_others_are_never_looked_for_in_memory(cls, way, beta, compiler):
    """Such a tensor has no memory of its own; a kernel that walks through it would crash."""
    ends = []
    for kind, values in ((cls, {"hypergrad_lr": beta, **WAYS[way]}), (NATIVE[cls], {})):
        p = torch.nn.Parameter(TwoTensor(torch.ones(3), torch.full((3,), 2.0)))
        optimizer = kind([p], **{"lr": 0.01} | values)
        for _ in range(2):
            p.grad = TwoTensor(torch.ones(3), torch.full((3,), 0.5))
            optimizer.step()
        ends.append(torch.cat([p.a, p.b]).detach())
    torch.testing.assert_close(*ends)
    assert not torch.equal(ends[0], torch.tensor([1.0, 1, 1, 2, 2, 2]))


@pytest.mark.parametrize("way", [{}, {"foreach": False}, {"foreach": True}, {"fused": True}])
@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize(("cls", "settings"), SETTINGS)
def test_with_beta_zero_every_way_is_torchs_bit_for_bit(cls, settings, extra, way):
    settings = {**settings, **extra}
    ours, _ = run(cls, settings, dtype=torch.float32, hypergrad_lr=0.0, **way)
    theirs, _ = run(cls, settings, dtype=torch.float32, kind=NATIVE[cls], **way)
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(("cls", "settings"), SETTINGS)
def test_the_plain_loops_parameter_update_is_torchs_bit_for_bit(cls, settings):
    """A beta that moves alpha by less than its last digit: rules.py itself against torch.optim."""
    ours, _ = run(cls, settings, dtype=torch.float32, hypergrad_lr=1e-30, foreach=False)
    theirs, _ = run(cls, settings, dtype=torch.float32, kind=NATIVE[cls], foreach=False)
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))


class Watch(TorchDispatchMode):
    """Notes the operations that torch runs, and the sizes of the tensors that they allocate."""

    def __init__(self, known=()):
        super().__init__()
        self.known = {t.untyped_storage().data_ptr() for t in known}
        self.operations, self.sizes = set(), [0]

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.operations.add(function.overloadpacket.__name__)
        outputs = result if isinstance(result, (tuple, list)) else [result]
        self.sizes += [
            t.untyped_storage().nbytes()
            for t in outputs
            if isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in self.known
        ]
        return result


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cls", NATIVE)
def test_beta_zero_costs_no_dot_product(cls, way):
    for beta in (0.0, 1e-7):
        with Watch() as watch:
            run(cls, {}, hypergrad_lr=beta, **WAYS[way])
        assert bool({"dot", "sum", "_foreach_norm"} & watch.operations) == (beta > 0 and "fused" not in way)


class TestMemory:
    @pytest.mark.parametrize(
        ("cls", "settings", "buffers"),
        [
            (SGDHD, {}, 1),
            (SGDHD, {"momentum": 0.9}, 1),
            (SGDHD, {"momentum": 0.9, "nesterov": True}, 2),
            (AdamHD, {}, 2),
            (AdamHD, {"amsgrad": True}, 3),
            (AdamWHD, {}, 2),
        ],
    )
    @pytest.mark.parametrize("way", WAYS)
    def test_state_is_torchs_plus_at_most_one_buffer_for_sgd_and_none_for_adam(self, cls, settings, buffers, way):
        sizes = []
        for kind, more in ((cls, WAYS[way]), (NATIVE[cls], {})):
            p = torch.zeros(1000, requires_grad=True)
            optimizer = kind([p], **settings, **more)
            for _ in range(3):
                p.grad = torch.ones_like(p)
                optimizer.step()
            state = [x for x in optimizer.state[p].values() if isinstance(x, torch.Tensor) and x.numel() > 1]
            sizes.append(len(state))
            assert all(x.numel() == 1000 and x.dtype == p.dtype for x in state)
            own = {x.untyped_storage().data_ptr() for x in [*state, p, p.grad]}
            assert len(own) == len(state) + 2  # nothing shares memory with the parameter or its gradient
        assert sizes[0] == buffers
        assert sizes[0] - sizes[1] <= (1 if cls is SGDHD else 0)

    @pytest.mark.parametrize("way", ["default", "fused"])
    @pytest.mark.parametrize(("cls", "settings"), SETTINGS)
    def test_a_step_allocates_no_temporary_of_the_parameters_size(self, cls, settings, way, compiler):
        p = torch.zeros(20 * _part.CHUNK, requires_grad=True)
        p.grad = torch.ones_like(p)
        optimizer = cls([p], **settings, **WAYS[way])
        optimizer.step()
        state = [x for x in optimizer.state[p].values() if isinstance(x, torch.Tensor)]
        with Watch([p, p.grad, *state]) as watch:
            optimizer.step()
        assert max(watch.sizes) <= _part.CHUNK * p.element_size()


class TestKernels:
    def test_the_result_does_not_depend_on_the_number_of_threads(self):
        if _kernels.library() is None:
            pytest.skip("this machine has no C++ compiler")
        outcomes = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            try:
                outcomes.append(run(AdamHD, {}, dtype=torch.float32, fused=True))
            finally:
                torch.set_num_threads(1)
        for params, alphas in outcomes[1:]:
            assert all(torch.equal(p, q) for p, q in zip(params, outcomes[0][0], strict=True))
            assert torch.equal(alphas, outcomes[0][1])

    def test_they_are_what_fused_uses_where_there_is_a_compiler(self, compiler, monkeypatch):
        calls = []
        call = _kernels.call
        monkeypatch.setattr(_kernels, "call", lambda name, *rest: (calls.append(name), call(name, *rest))[1])
        run(AdamHD, {}, fused=True)
        run(SGDHD, {}, fused=True)
        assert set(calls) == (
            {"adam_observe", "adam_descend", "sgd_observe", "sgd_descend"} if compiler == "compiler" else set()
        )

    @pytest.mark.parametrize("broken", ["no compiler", "a compiler that fails", "no folder", "no home"])
    def test_where_they_cannot_be_compiled_there_are_none(self, broken, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        if broken == "no compiler":
            monkeypatch.delenv("CXX", raising=False)
            monkeypatch.setenv("PATH", "")
        elif broken == "a compiler that fails":
            monkeypatch.setenv("CXX", "false")
        elif broken == "no folder":
            (tmp_path / "file").touch()
            monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        else:
            monkeypatch.delenv("XDG_CACHE_HOME")
            monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
        message = r"cannot compile hdlib's kernels .*: name a C\+\+ compiler in CXX"
        with nullcontext() if broken == "no compiler" else pytest.warns(UserWarning, match=message):
            assert _kernels.library.__wrapped__() is None

    def test_a_compiler_without_threads_is_asked_for_vectors_alone(self, tmp_path, monkeypatch):
        real = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
        if real is None:
            pytest.skip("this machine has no C++ compiler")
        script = tmp_path / "compiler"
        script.write_text(f'case " $* " in *" -fopenmp "*) exit 1;; esac\nexec {real} "$@"\n')
        monkeypatch.setenv("CXX", f"sh {script}")  # a command and its argument
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr(_kernels, "SOURCE", tmp_path / "kernels.cpp")
        _kernels.SOURCE.write_text('extern "C" int answer() { return 42; }')
        assert _kernels.library.__wrapped__().answer() == 42

    def test_a_library_serves_its_source_its_command_and_its_processor_alone(self, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr(_kernels, "SOURCE", tmp_path / "kernels.cpp")
        monkeypatch.setattr(subprocess, "run", lambda command, **_: made(Path(command[-1])))

        def made(path):
            path.touch()
            return subprocess.CompletedProcess([], 0)

        _kernels.SOURCE.write_text("int one;")
        first = _kernels._cached(["c++", "-O3"])
        assert first == _kernels._cached(["c++", "-O3"])
        found = {first, _kernels._cached(["c++", "-O2"])}
        with monkeypatch.context() as patch:
            patch.setattr(_kernels, "_cpu", lambda: "another")
            found.add(_kernels._cached(["c++", "-O3"]))
        with monkeypatch.context() as patch:
            patch.setattr(torch, "__version__", "another")
            found.add(_kernels._cached(["c++", "-O3"]))
        _kernels.SOURCE.write_text("int two;")
        found.add(_kernels._cached(["c++", "-O3"]))
        assert len(found) == 5 and set((tmp_path / "hdlib").iterdir()) == found

    def test_a_library_that_another_process_made_meanwhile_stays_whole_for_it(self, tmp_path, monkeypatch):
        opened = []

        def make(command, **_):
            made = Path(command[-1])
            made.write_bytes(b"ours")
            theirs = tmp_path / "hdlib" / made.name
            theirs.write_bytes(b"theirs")
            opened.append(theirs.open("rb"))
            return subprocess.CompletedProcess(command, 0)

        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr(subprocess, "run", make)
        assert _kernels._cached(["c++"]).read_bytes() == b"ours"
        with opened[0] as theirs:
            assert theirs.read() == b"theirs"

    def test_a_compiler_that_hangs_is_given_up(self, tmp_path, monkeypatch):
        def hang(command, **how):
            raise subprocess.TimeoutExpired(command, how["timeout"])

        monkeypatch.setenv("CXX", "c++")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr(subprocess, "run", hang)
        message = r"cannot compile hdlib's kernels .*: name a C\+\+ compiler in CXX"
        with pytest.warns(UserWarning, match=message):
            assert _kernels.library.__wrapped__() is None
        assert not list((tmp_path / "hdlib").iterdir())

    def test_a_library_is_compiled_once_and_kept(self, tmp_path, monkeypatch):
        if _kernels.library() is None:
            pytest.skip("this machine has no C++ compiler")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        made = _kernels.library.__wrapped__()
        (kept,) = (tmp_path / "hdlib").iterdir()
        assert made is not None and str(kept) == made._name
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("compiled again"))
        assert _kernels.library.__wrapped__() is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.complex64])
@pytest.mark.parametrize(("cls", "settings"), SETTINGS)
def test_a_lost_run_ends_in_numbers_that_are_not_finite_not_in_an_error(cls, settings, dtype, compiler):
    """torch refuses a learning rate beyond float32; here nobody chose it, and users look for NaN in their losses."""
    if cls is not SGDHD and dtype == torch.float16:
        settings = {**settings, "eps": 1e-3}  # with a smaller one they do not adapt
    for way in WAYS.values():
        p = torch.ones(300, dtype=dtype, requires_grad=True)
        optimizer = cls([p], **({"lr": 0.01, "hypergrad_lr": 1e38} | settings | way))
        for sign in (1, 1, -1, -1):
            p.grad = torch.full_like(p, 100.0 * sign)
            optimizer.step()
        assert not torch.isfinite(p).any()


def test_a_large_learning_rate_that_does_not_adapt_is_taken_as_torch_takes_it():
    ends = []
    for make in (torch.optim.Adam, partial(AdamHD, hypergrad_lr=0.0)):
        p = torch.ones(3, dtype=torch.float16, requires_grad=True)
        p.grad = torch.full_like(p, 0.5)
        make([p], lr=1e4, foreach=False).step()
        ends.append(p.detach())
    assert torch.equal(*ends) and torch.isfinite(ends[0]).all()
