"""SGDHD and AdamHD stand where torch.optim.SGD and Adam stood."""

import copy
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from problem import ALPHA, METHODS, flat, loss_of, make, tensors, train
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import hdlib
from hdlib import SGDHD, AdamHD, AdamWHD
from hdlib.optim._base import FOREIGN
from hdlib.optim._group import options_of

NATIVE = {SGDHD: torch.optim.SGD, AdamHD: torch.optim.Adam}

SETTINGS = [
    (SGDHD, {}),
    (SGDHD, {"weight_decay": 0.01}),
    (SGDHD, {"maximize": True, "weight_decay": 0.01}),
    (SGDHD, {"momentum": 0.9}),
    (SGDHD, {"momentum": 0.9, "dampening": 0.5, "weight_decay": 0.01}),
    (SGDHD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    (SGDHD, {"momentum": 0.8, "nesterov": True, "maximize": True}),
    (AdamHD, {}),
    (AdamHD, {"weight_decay": 0.01}),
    (AdamHD, {"betas": (0.7, 0.9), "eps": 1e-3}),
    (AdamHD, {"betas": (0.0, 0.99), "maximize": True, "weight_decay": 0.01}),
]


def network(dtype=torch.float32):
    """A model of many tensors: convolution, batch norm and linear layers."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 7), nn.Linear(7, 4)]
    return nn.Sequential(*layers).to(dtype)


def fit(model, optimizer, steps=30, start=0):
    """Train a network on noise that depends on the step alone."""
    dtype = next(model.parameters()).dtype
    for t in range(start, start + steps):
        g = torch.Generator().manual_seed(t)
        x = torch.randn(8, 1, 6, 6, generator=g, dtype=torch.float64).to(dtype)
        y = torch.randint(4, (8,), generator=g)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def same(a, b):
    """Whether two models or lists of parameters agree bit for bit."""
    a, b = (list(x.parameters()) if isinstance(x, nn.Module) else x for x in (a, b))
    return all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


class TestWithBetaZero:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize(("cls", "settings"), SETTINGS)
    def test_training_is_torchs_bit_for_bit(self, cls, settings, dtype):
        ours, theirs = network(dtype), network(dtype)
        fit(ours, cls(ours.parameters(), lr=0.02, hypergrad_lr=0.0, **settings))
        fit(theirs, NATIVE[cls](theirs.parameters(), lr=0.02, **settings))
        assert same(ours, theirs)
        assert not same(ours, network(dtype))

    @pytest.mark.parametrize("cls", NATIVE)
    def test_a_schedule_of_the_learning_rate_gives_what_it_gives_torch(self, cls):
        models = [network() for _ in range(2)]
        optimizers = [
            cls(models[0].parameters(), lr=0.02, hypergrad_lr=0),
            NATIVE[cls](models[1].parameters(), lr=0.02),
        ]
        for model, optimizer in zip(models, optimizers, strict=True):
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20, cycle_momentum=False)
            for t in range(20):
                fit(model, optimizer, 1, start=t)
                schedule.step() if t < 19 else None
        assert same(*models)

    @pytest.mark.parametrize("cls", NATIVE)
    def test_hypergrad_is_never_computed_and_no_direction_is_kept(self, cls):
        model = network()
        optimizer = cls(model.parameters(), hypergrad_lr=0.0)
        fit(model, optimizer, 3)
        assert optimizer.param_groups[0]["hypergrad"] == 0.0
        assert not any("direction" in state for state in optimizer.state.values())


class TestAlphaInItsGroup:
    def test_alpha_is_a_python_float_where_a_float_was_given(self):
        params = tensors()
        optimizer = make("adam", params)
        train(optimizer, params, 3)
        assert type(optimizer.param_groups[0]["lr"]) is float
        assert type(optimizer.param_groups[0]["hypergrad"]) is float

    @pytest.mark.parametrize("given", [torch.tensor(0.01, dtype=torch.float64), torch.tensor([0.01])])
    @pytest.mark.parametrize("name", METHODS)
    def test_a_tensor_is_copied_for_each_group_and_updated_in_place(self, name, given):
        params = tensors()
        optimizer = make(name, [{"params": params[:2]}, {"params": params[2:]}], lr=given, hypergrad_lr=1e-4)
        alphas = [group["lr"] for group in optimizer.param_groups]
        hypergrads = [group["hypergrad"] for group in optimizer.param_groups]
        train(optimizer, params, 5)
        assert all(group["hypergrad"] is h != 0 for group, h in zip(optimizer.param_groups, hypergrads, strict=True))
        assert [group["lr"] for group in optimizer.param_groups] == alphas
        assert all(group["lr"] is alpha for group, alpha in zip(optimizer.param_groups, alphas, strict=True))
        assert all(alpha.shape == () and alpha.dtype == torch.float64 for alpha in alphas)
        assert alphas[0] != alphas[1]
        assert given.item() == pytest.approx(0.01)

    @pytest.mark.parametrize("rule", ["additive", "multiplicative"])
    @pytest.mark.parametrize("name", METHODS)
    def test_a_tensor_gives_what_a_float_gives(self, name, rule):
        outcomes = []
        for lr in (0.01, torch.tensor(0.01, dtype=torch.float64)):
            params = tensors()
            alphas = train(make(name, params, lr=lr, rule=rule), params, 50)
            outcomes.append((alphas, flat(params)))
        assert outcomes[0][0] == pytest.approx(outcomes[1][0], rel=1e-12)
        torch.testing.assert_close(outcomes[0][1], outcomes[1][1], rtol=0, atol=1e-12)

    def test_alpha_keeps_steps_that_float32_would_lose(self):
        p = torch.zeros(1, requires_grad=True)
        optimizer = SGDHD([p], lr=1e-3, hypergrad_lr=1e-12)
        for _ in range(101):
            p.grad = torch.ones(1)
            optimizer.step()
        assert optimizer.learning_rates() == [pytest.approx(1e-3 + 1e-10, rel=1e-14)]

    def test_a_schedule_multiplies_the_alpha_that_was_learnt(self):
        params = tensors()
        optimizer = make("sgd", params)
        train(optimizer, params, 5)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        train(optimizer, params, 1, start=5)
        (learnt,) = optimizer.learning_rates()
        schedule.step()
        assert optimizer.learning_rates() == [learnt / 2]
        assert train(optimizer, params, 1, start=6) != [learnt / 2]

    def test_a_learning_rate_that_the_user_sets_is_the_one_that_is_adapted(self):
        params = tensors()
        optimizer = make("sgd", params)
        train(optimizer, params, 3)
        optimizer.param_groups[0]["lr"] = 0.125
        (alpha,) = train(optimizer, params, 1, start=3)
        assert alpha == 0.125 - optimizer.param_groups[0]["hypergrad_lr"] * optimizer.param_groups[0]["hypergrad"]

    @pytest.mark.parametrize("name", ["sgd", "nesterov"])
    def test_adaptation_that_was_switched_off_forgets_the_direction_of_then(self, name):
        params = tensors()
        optimizer = make(name, params)
        train(optimizer, params, 3)
        beta, optimizer.param_groups[0]["hypergrad_lr"] = optimizer.param_groups[0]["hypergrad_lr"], 0.0
        (alpha,) = train(optimizer, params, 1, start=3)
        optimizer.param_groups[0]["hypergrad_lr"] = beta
        assert train(optimizer, params, 1, start=4) == [alpha]
        assert train(optimizer, params, 1, start=5) != [alpha]

    @pytest.mark.parametrize("name", METHODS)
    def test_an_added_group_has_its_own_alpha(self, name):
        params = tensors()
        optimizer = make(name, params[:2])
        train(optimizer, params, 3)
        optimizer.add_param_group({"params": params[2:], "lr": 0.5, "hypergrad_lr": 0.0})
        train(optimizer, params, 3, start=3)
        alpha, fixed = optimizer.learning_rates()
        assert fixed == 0.5
        assert alpha != ALPHA[name]


class TestStep:
    @pytest.mark.parametrize("name", METHODS)
    def test_gradients_are_left_as_they_were(self, name):
        params = tensors()
        optimizer = make(name, params, weight_decay=0.1, maximize=True)
        for t in range(3):
            optimizer.zero_grad()
            loss_of(params, t).backward()
            before = [p.grad.clone() for p in params]
            optimizer.step()
            assert same([p.grad for p in params], before)

    @pytest.mark.parametrize("name", METHODS)
    def test_gradients_zeroed_in_place_are_not_the_direction_that_is_remembered(self, name):
        outcomes = []
        for set_to_none in (True, False):
            params = tensors()
            optimizer = make(name, params)
            for t in range(10):
                optimizer.zero_grad(set_to_none=set_to_none)
                loss_of(params, t).backward()
                optimizer.step()
            outcomes.append((optimizer.learning_rates(), flat(params)))
        assert outcomes[0][0] == outcomes[1][0]
        assert torch.equal(outcomes[0][1], outcomes[1][1])

    @pytest.mark.parametrize("name", METHODS)
    def test_a_closure_is_called_once_with_gradients_and_its_loss_returned(self, name):
        params, twin = tensors(), tensors()
        optimizer, other = make(name, params), make(name, twin)
        losses = []
        for t in range(5):

            def closure(t=t):
                assert torch.is_grad_enabled()
                optimizer.zero_grad()
                loss = loss_of(params, t)
                loss.backward()
                losses.append(loss)
                return loss

            assert optimizer.step(closure) is losses[-1]
        assert len(losses) == 5
        train(other, twin, 5)
        assert same(params, twin)

    def test_hooks_run_around_a_step(self):
        params = tensors()
        optimizer = make("adam", params)
        calls = []
        optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
        optimizer.register_step_post_hook(lambda *_: calls.append("after"))
        train(optimizer, params, 2)
        assert calls == ["before", "after"] * 2


class TestCheckpoints:
    @pytest.mark.parametrize("tensor_lr", [False, True])
    @pytest.mark.parametrize("name", METHODS)
    def test_a_saved_run_resumes_bit_for_bit(self, name, tensor_lr, tmp_path):
        lr = torch.tensor(ALPHA[name]) if tensor_lr else ALPHA[name]
        params = tensors(dtype=torch.float32)
        optimizer = make(name, params, lr=lr, weight_decay=0.01, hypergrad_lr=1e-5)
        train(optimizer, params, 7)
        torch.save({"params": params, "optimizer": optimizer.state_dict()}, tmp_path / "at7.pt")
        whole = train(optimizer, params, 7, start=7)

        saved = torch.load(tmp_path / "at7.pt", weights_only=True)
        again = [p.detach().requires_grad_() for p in saved["params"]]
        resumed = make(name, again)
        resumed.load_state_dict(saved["optimizer"])
        assert train(resumed, again, 7, start=7) == whole
        assert same(again, params)
        assert resumed.param_groups[0]["hypergrad"] == optimizer.param_groups[0]["hypergrad"]

    @pytest.mark.parametrize("how", ["deepcopy", "pickle"])
    @pytest.mark.parametrize("name", METHODS)
    def test_a_copy_goes_on_by_itself(self, name, how):
        params = tensors()
        optimizer = make(name, params)
        train(optimizer, params, 4)
        both = (params, optimizer)
        params2, optimizer2 = copy.deepcopy(both) if how == "deepcopy" else pickle.loads(pickle.dumps(both))
        there = flat(params)
        alphas = train(optimizer2, params2, 4, start=4)
        assert torch.equal(flat(params), there)
        assert train(optimizer, params, 4, start=4) == alphas
        assert same(params, params2)

    @pytest.mark.parametrize("name", METHODS)
    def test_torchs_checkpoint_is_taken_up_where_it_stopped(self, name):
        """With beta 0 it goes on bit for bit; with beta it starts from torch's learning rate."""
        cls, fixed = METHODS[name]
        params = tensors(dtype=torch.float32)
        native = NATIVE[cls](params, lr=0.02, **fixed)
        train(native, params, 5)
        state = copy.deepcopy(native.state_dict())
        start = [p.detach().clone() for p in params]
        train(native, params, 5, start=5)
        for beta in (0.0, 1e-5):
            again = [p.clone().requires_grad_() for p in start]
            optimizer = make(name, again, hypergrad_lr=beta)
            optimizer.load_state_dict(state)
            assert optimizer.learning_rates() == [0.02]
            assert optimizer.param_groups[0]["hypergrad_lr"] == beta
            alphas = train(optimizer, again, 5, start=5)
            assert (same(again, params), alphas == [0.02] * 5) == ((True, True) if beta == 0 else (False, False))

    @pytest.mark.parametrize("cls", NATIVE)
    def test_what_torchs_checkpoint_does_not_say_stays_as_each_group_has_it(self, cls):
        params = tensors()
        native = NATIVE[cls]([{"params": params[:2]}, {"params": params[2:]}], lr=0.02)
        train(native, params, 3)
        groups = [
            {"params": params[:2], "hypergrad_lr": "auto"},
            {"params": params[2:], "hypergrad_lr": 0.05, "rule": "multiplicative", "max_lr": 0.5},
        ]
        optimizer = cls(groups, lr=0.01)
        train(optimizer, params, 3)
        own = ("rule", "hypergrad_lr", "hypergrad_max_lr", "overshoot")
        before = [{name: group[name] for name in own} for group in optimizer.param_groups]
        optimizer.load_state_dict(native.state_dict())
        assert [{name: group[name] for name in own} for group in optimizer.param_groups] == before
        assert optimizer.learning_rates() == [0.02, 0.02]
        assert [group["slope"] for group in optimizer.param_groups] == [0.0, 0.0]  # of steps that were not these

    @pytest.mark.parametrize(
        ("native", "cls"),
        [
            (partial(torch.optim.AdamW, weight_decay=0.3), SGDHD),
            (torch.optim.RAdam, SGDHD),
            (partial(torch.optim.SGD, momentum=0.9, nesterov=True), AdamHD),
        ],
    )
    def test_what_only_another_optimisers_groups_have_does_not_count(self, native, cls):
        params, others = tensors(), tensors()
        theirs = native(params, lr=0.02)
        train(theirs, params, 3)
        optimizer = cls(others, lr=0.02, weight_decay=theirs.param_groups[0]["weight_decay"], hypergrad_lr="auto")
        fresh = options_of(optimizer.param_groups[0])
        optimizer.load_state_dict(theirs.state_dict())
        (group,) = optimizer.param_groups
        assert options_of(group) == fresh  # the tolerated overshoot depends on how the direction averages
        assert not set(FOREIGN) & (group.keys() - optimizer.defaults.keys())
        before = flat(others).clone()
        train(optimizer, others, 1)
        if cls is SGDHD:
            g = torch.cat([p.grad.reshape(-1) for p in others]) + group["weight_decay"] * before
            assert group["slope"] == pytest.approx(-float(g @ g), rel=1e-9)

    @pytest.mark.parametrize("name", METHODS)
    def test_torchs_checkpoint_of_complex_parameters_is_taken_up_too(self, name):
        def go(optimizer, z, steps):
            for _ in range(steps):
                optimizer.zero_grad()
                (z.abs() ** 2 + z.real).sum().backward()
                optimizer.step()

        cls, fixed = METHODS[name]
        z = torch.randn(3, dtype=torch.complex128, generator=torch.Generator().manual_seed(1)).requires_grad_()
        native = NATIVE[cls]([z], lr=0.02, foreach=False, **fixed)
        go(native, z, 3)
        w = z.detach().clone().requires_grad_()
        optimizer = make(name, [w], hypergrad_lr=0.0)
        optimizer.load_state_dict(copy.deepcopy(native.state_dict()))
        go(native, z, 3)
        go(optimizer, w, 3)
        torch.testing.assert_close(w, z, rtol=1e-14, atol=0)
        optimizer.param_groups[0]["hypergrad_lr"] = 1e-3
        go(optimizer, w, 3)
        assert optimizer.learning_rates() != [0.02]

    def test_with_heavy_ball_momentum_torchs_checkpoint_already_holds_the_direction(self):
        params = tensors()
        native = torch.optim.SGD(params, lr=0.01, momentum=0.9)
        train(native, params, 5)
        optimizer = make("heavy_ball", params)
        optimizer.load_state_dict(native.state_dict())
        velocity = flat([native.state[p]["momentum_buffer"] for p in params])
        gradient = flat(torch.autograd.grad(loss_of(params, 5), params))
        train(optimizer, params, 1, start=5)
        assert optimizer.param_groups[0]["hypergrad"] == pytest.approx(-(gradient @ velocity).item(), rel=1e-12)

    def test_loading_puts_alpha_where_the_group_keeps_it(self):
        """A checkpoint's tensor stays a tensor, in float64 and the group's own."""
        params = tensors()
        optimizer = make("adam", params)
        state = optimizer.state_dict()
        state["param_groups"][0]["lr"] = torch.tensor(0.5, dtype=torch.float32)
        optimizer.load_state_dict(state)
        alpha = optimizer.param_groups[0]["lr"]
        assert alpha.dtype == torch.float64
        assert alpha.data_ptr() != state["param_groups"][0]["lr"].data_ptr()


@pytest.mark.gpu
class TestOnAnAccelerator:
    @pytest.mark.parametrize("rule", ["additive", "multiplicative"])
    @pytest.mark.parametrize("name", METHODS)
    def test_it_follows_the_cpu_and_never_waits_for_the_device(self, name, rule):
        # on a device torch's Adam takes its bias corrections from counts in single precision
        close, near = (1e-4, 1e-6) if name == "adam" else (1e-9, 1e-12)
        here = tensors()
        there = [p.detach().cuda().requires_grad_() for p in here]
        optimizers = [make(name, here, rule=rule), make(name, there, rule=rule)]
        for t in range(20):
            grads = torch.autograd.grad(loss_of(here, t), here)
            for params, optimizer in zip((here, there), optimizers, strict=True):
                for p, g in zip(params, grads, strict=True):
                    p.grad = g.to(p.device)
                torch.cuda.synchronize()
                torch.cuda.set_sync_debug_mode("error")
                try:
                    optimizer.step()
                finally:
                    torch.cuda.set_sync_debug_mode("default")
            torch.testing.assert_close(flat(there).cpu(), flat(here), rtol=close, atol=near)
        alphas = [optimizer.learning_rates()[0] for optimizer in optimizers]
        assert alphas[0] == pytest.approx(alphas[1], rel=close)

    def test_torchs_checkpoint_gives_an_alpha_on_the_device(self):
        params = [torch.ones(3, device="cuda", requires_grad=True)]
        native = torch.optim.Adam(params, lr=0.02)
        optimizer = AdamHD(params)
        optimizer.load_state_dict(native.state_dict())
        assert optimizer.param_groups[0]["lr"].is_cuda


@pytest.mark.parametrize("cls", [SGDHD, AdamHD, AdamWHD])
def test_memory_can_be_estimated_on_fake_tensors(cls):
    with FakeTensorMode():
        model = torch.nn.Linear(4, 4)
        optimizer = cls(model.parameters(), hypergrad_lr="auto", capturable=True)
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.randn(3, 4)).sum().backward()
            optimizer.step()
    state = [value for value in optimizer.state[model.weight].values() if isinstance(value, torch.Tensor)]
    assert {value.shape for value in state if value.ndim} == {model.weight.shape}


def test_importing_hdlib_loads_itself_and_torch_alone():
    """In a fresh process: whatever `import torch` did not load and the standard library does not hold is hdlib's."""
    books = ["pandas", "sklearn", "pydantic", "torchvision", "matplotlib", "seaborn", "pyarrow", "scipy"]
    code = f"""
import sys, time
import torch
loaded, started = set(sys.modules), time.perf_counter()
from hdlib import AdamHD
seconds = time.perf_counter() - started
import hdlib
new = {{name.split(".")[0] for name in set(sys.modules) - loaded}}
p = torch.ones(3, requires_grad=True)
for cls in (hdlib.SGDHD, hdlib.AdamHD, hdlib.AdamWHD):
    for way in ({{}}, {{"foreach": True}}, {{"fused": True}}):
        optimizer = cls([p], **way)
        for _ in range(2):
            p.grad = torch.ones(3)
            optimizer.step()
print(new - set(sys.stdlib_module_names) - {{"torch"}}, [name for name in {books} if name in sys.modules], seconds < 2)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "{'hdlib'} [] True"


def test_hdlib_says_that_it_is_typed():
    assert (Path(hdlib.__file__).parent / "py.typed").exists()
    assert (Path(hdlib.optim.__file__).parent / "kernels.cpp").exists()
