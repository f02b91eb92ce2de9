"""What torch's own generic suite asks of every optimiser, restated: each check on each of these configurations.

The suite is TestOptimRenewed and TestDifferentiableOptimizer of pytorch's test/optim/test_optim.py, which the wheel
does not hold. Left out: checks that need several GPUs, and sparse gradients, which are refused.
"""

import copy
import io

import pytest
import torch
from torch.optim.lr_scheduler import ExponentialLR, LinearLR, ReduceLROnPlateau, StepLR
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from hdlib import SGDHD, AdamHD, AdamWHD

CONFIGURATIONS = [
    (SGDHD, {"lr": 1e-2}),
    (SGDHD, {"lr": 1e-2, "weight_decay": 0.1}),
    (SGDHD, {"lr": 1e-2, "momentum": 0.9, "dampening": 0.5}),
    (SGDHD, {"lr": 1e-3, "momentum": 0.9, "nesterov": True, "maximize": True, "hypergrad_lr": 1e-9}),
    (SGDHD, {"lr": 1e-2, "rule": "multiplicative", "hypergrad_lr": 0.02}),
    (SGDHD, {"lr": torch.tensor(1e-2)}),
    (AdamHD, {"lr": 1e-2}),
    (AdamHD, {"lr": 1e-2, "weight_decay": 0.1, "maximize": True}),
    (AdamHD, {"lr": 1e-2, "weight_decay": 0.1, "amsgrad": True}),
    (AdamHD, {"lr": torch.tensor(1e-2), "betas": (torch.tensor([[0.9]]), torch.tensor(0.99)), "capturable": True}),
    (AdamWHD, {"lr": 1e-2, "weight_decay": 0.1}),
    (AdamWHD, {"lr": 1e-2, "weight_decay": 0.1, "amsgrad": True, "rule": "multiplicative", "hypergrad_lr": 0.02}),
]
each = pytest.mark.parametrize(("cls", "values"), CONFIGURATIONS)
ways = pytest.mark.parametrize("way", [{"foreach": False}, {"foreach": True}, {"fused": True}])


def problem(strided=False, dtype=torch.float32):
    """Return a weight, a bias and the closure of a small least squares problem."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(10, 5, generator=generator).to(dtype)
    weight = torch.stack([weight, weight], -1)[..., 0] if strided else weight
    weight, bias = weight.detach().requires_grad_(), torch.randn(10, generator=generator).to(dtype).requires_grad_()
    x = torch.randn(5, generator=generator).to(dtype)

    def loss():
        return (weight.mv(x) + bias).pow(2).sum()

    return weight, bias, loss


def go(optimizer, loss, steps):
    """Take steps; return the loss before and after them."""
    first = loss().item()
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    return first, loss().item()


@ways
@each
@pytest.mark.parametrize("strided", [False, True])
def test_it_goes_in_the_right_direction(cls, values, way, strided):
    weight, bias, loss = problem(strided)
    before, after = go(cls([weight, bias], **values, **way), loss, 20)
    assert (after > before) == values.get("maximize", False)


@each
def test_it_goes_in_the_right_direction_with_groups_and_schedulers(cls, values):
    weight, bias, loss = problem()
    optimizer = cls([{"params": [weight]}, {"params": [bias], "lr": 0.001}], **values)
    schedulers = [StepLR(optimizer, 5, 0.9), ExponentialLR(optimizer, 0.99), LinearLR(optimizer)]
    schedulers.append(ReduceLROnPlateau(optimizer))
    before = loss().item()
    for _ in range(20):
        _, after = go(optimizer, loss, 1)
        for scheduler in schedulers:
            scheduler.step(after) if isinstance(scheduler, ReduceLROnPlateau) else scheduler.step()
    assert (after > before) == values.get("maximize", False)


@ways
@each
def test_without_gradients_and_for_gradients_of_zero_it_does_nothing(cls, values, way):
    weight, bias, _ = problem()
    optimizer = cls([weight, bias], **{**values, "weight_decay": 0.0}, **way)
    start = weight.detach().clone()
    alphas = optimizer.learning_rates()
    for grad in (None, 0.0):
        for p in (weight, bias):
            p.grad = None if grad is None else torch.zeros_like(p)
        optimizer.step()
    assert torch.equal(weight, start)
    assert optimizer.learning_rates() == alphas


@each
def test_complex_parameters_go_like_their_real_and_imaginary_parts(cls, values):
    z = torch.tensor([[1 + 2j, 3 - 1j], [0.5j, -2]], dtype=torch.complex128, requires_grad=True)
    w = torch.view_as_real(z.detach()).clone().requires_grad_()
    optimizers = [cls([p], **values) for p in (z, w)]
    for _ in range(5):
        for optimizer, value in zip(optimizers, (lambda: z, lambda: torch.view_as_complex(w)), strict=True):
            optimizer.zero_grad()
            (value().abs() ** 4 + value().real).sum().backward()
            optimizer.step()
    torch.testing.assert_close(torch.view_as_real(z), w)
    assert optimizers[0].learning_rates() == pytest.approx(optimizers[1].learning_rates())


@each
def test_it_can_be_printed_copied_pickled_saved_and_loaded(cls, values):
    weight, bias, loss = problem()
    optimizer = cls([("weight", weight), ("bias", bias)], **values)
    go(optimizer, loss, 3)
    assert cls.__name__ in repr(optimizer) and "hypergrad_lr" in repr(optimizer)
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    copies = [copy.deepcopy((weight, bias, optimizer)) for _ in range(2)]
    again = cls([*copies[1][:2]], **values)
    again.load_state_dict(saved)
    for twin in (copies[0][2], again):
        torch.testing.assert_close(twin.state_dict()["state"], optimizer.state_dict()["state"], rtol=0, atol=0)
    public = {name for name in vars(optimizer) if not name.startswith("_")}
    assert public <= set(vars(copies[0][2]))


@each
def test_a_checkpoint_from_before_an_option_existed_is_completed(cls, values):
    """Flags that were added later, and a step count that was a number."""
    weight, bias, loss = problem()
    optimizer = cls([weight, bias], **values)
    go(optimizer, loss, 3)
    old = copy.deepcopy(optimizer.state_dict())
    added = ("foreach", "fused", "maximize", "capturable", "differentiable", "amsgrad", "shared_alpha", "hypergrad")
    for flag in added:
        old["param_groups"][0].pop(flag, None)
    for state in old["state"].values():
        if "step" in state:
            state["step"] = 3
    optimizer.load_state_dict(old)
    optimizer.load_state_dict(optimizer.state_dict())
    go(optimizer, loss, 2)
    assert all(state["step"].item() == 5 for state in optimizer.state.values() if "step" in state)


@each
def test_hooks_are_called_once_and_in_order(cls, values):
    weight, bias, loss = problem()
    optimizer = cls([weight, bias], **values)
    calls = []
    handles = [
        register_optimizer_step_pre_hook(lambda *_: calls.append(0)),
        optimizer.register_step_pre_hook(lambda *_: calls.append(1)),
        optimizer.register_step_post_hook(lambda *_: calls.append(2)),
        register_optimizer_step_post_hook(lambda *_: calls.append(5)),
        optimizer.register_state_dict_pre_hook(lambda _: calls.append(6)),
        optimizer.register_state_dict_post_hook(lambda _, __: calls.append(7)),
        optimizer.register_load_state_dict_pre_hook(lambda _, __: calls.append(8)),
        optimizer.register_load_state_dict_post_hook(lambda _: calls.append(9)),
    ]
    go(optimizer, loss, 1)
    optimizer.load_state_dict(optimizer.state_dict())
    for handle in handles:
        handle.remove()
    go(optimizer, loss, 1)
    assert calls == [0, 1, 2, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("cls", [SGDHD, AdamHD, AdamWHD])
def test_parameters_are_refused_as_torch_refuses_them(cls):
    p, q = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    for params, error, says in (
        (p, TypeError, "iterable of Tensors or dicts"),
        ([], ValueError, "empty parameter list"),
        ([{"params": p}, {"params": p}], ValueError, "more than one parameter group"),
        ([("weight", p), q], ValueError, "with/without names"),
        ([p * 2], ValueError, "non-leaf"),
    ):
        with pytest.raises(error, match=says):
            cls(params)
    with pytest.warns(UserWarning, match="duplicate parameters"):
        cls([p, p])
    for flags in ({"fused": True, "foreach": True}, {"fused": True, "differentiable": True}):
        with pytest.raises(RuntimeError, match="`fused`"):
            cls([p], **flags)


@pytest.mark.parametrize("cls", [SGDHD, AdamHD, AdamWHD])
def test_a_profile_shows_one_step_by_its_name(cls):
    weight, bias, loss = problem()
    optimizer = cls([weight, bias])
    go(optimizer, loss, 1)
    with torch.profiler.profile() as profile:
        optimizer.step()
    names = [event.name for event in profile.events() if event.name.startswith("Optimizer.step#")]
    assert names == [f"Optimizer.step#{cls.__name__}.step"]


class TestDifferentiable:
    @pytest.mark.parametrize(
        ("cls", "values", "names"),
        [
            (SGDHD, {}, ["direction"]),
            (SGDHD, {"weight_decay": 0.1, "maximize": True}, ["direction"]),
            (SGDHD, {"momentum": 0.9}, ["momentum_buffer"]),
            (SGDHD, {"momentum": 0.9, "nesterov": True}, ["momentum_buffer", "direction"]),
            (SGDHD, {"rule": "multiplicative"}, ["direction"]),
            (AdamHD, {"weight_decay": 0.1}, ["exp_avg", "exp_avg_sq"]),
            (AdamHD, {"amsgrad": True}, ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"]),
            (AdamWHD, {"weight_decay": 0.1}, ["exp_avg", "exp_avg_sq"]),
        ],
    )
    def test_autograd_goes_through_the_step_and_through_alpha(self, cls, values, names):
        """Checked by finite differences: parameter, gradient, state and alpha_0 to the new parameter and alpha."""
        generator = torch.Generator().manual_seed(0)
        p, g, *state = torch.rand(2 + len(names), 4, generator=generator, dtype=torch.float64) + 0.5
        lr = torch.tensor(0.1, dtype=torch.float64)
        inputs = [x.clone().requires_grad_() for x in (p, g, lr, *state)]

        def step(p, g, lr, *state):
            p = p.clone()
            p.grad = g
            optimizer = cls([p], lr=lr, hypergrad_lr=0.05, differentiable=True, **values)
            optimizer.state[p].update(zip(names, [x.clone() for x in state], strict=True))
            if cls is not SGDHD:
                optimizer.state[p]["step"] = torch.tensor(5.0)
            optimizer.step()
            return p, optimizer.param_groups[0]["lr"]

        assert torch.autograd.gradcheck(step, inputs)

    @pytest.mark.parametrize("cls", [SGDHD, AdamHD, AdamWHD])
    @pytest.mark.parametrize(
        "options",
        [
            {"hypergrad_lr": 1e-3},
            {"hypergrad_lr": 1e-3, "overshoot": 0.1, "weight_decay": 0.1},
            {"hypergrad_lr": 0.1, "rule": "curvature"},
            {"hypergrad_lr": 0.02, "rule": "multiplicative"},
            {"hypergrad_lr": "auto"},
            {"hypergrad_lr": "auto", "weight_decay": 0.1},
        ],
        ids=str,
    )
    @pytest.mark.parametrize("start", [0.0, 1.0])
    def test_the_learning_rate_gets_a_gradient_through_several_steps(self, cls, options, start):
        lr = torch.tensor(0.01, requires_grad=True)
        p = torch.full((3,), start, requires_grad=True)
        moving = p.clone()
        optimizer = cls([moving], lr=lr, differentiable=True, **options)
        for _ in range(3):
            now = moving.clone()  # the step changes `moving` in place, as torch's differentiable steps do
            moving.grad = torch.autograd.grad(((now - 2) ** 2).sum(), now, create_graph=True)[0]
            optimizer.step()
        (gradient,) = torch.autograd.grad(((moving - 2) ** 2).sum(), lr)
        assert gradient < 0

    @pytest.mark.parametrize("cls", [SGDHD, AdamHD])
    def test_a_gradient_of_zero_leaves_that_of_the_learning_rate_finite(self, cls):
        lr = torch.tensor(0.01, requires_grad=True)
        moving = torch.zeros(3, requires_grad=True).clone()
        optimizer = cls([moving], lr=lr, differentiable=True, rule="multiplicative")
        for factor in (1.0, 0.0, 1.0):
            now = moving.clone()
            moving.grad = torch.autograd.grad(factor * ((now - 2) ** 2).sum(), now, create_graph=True)[0]
            optimizer.step()
        (gradient,) = torch.autograd.grad(((moving - 2) ** 2).sum(), lr)
        assert gradient < 0

    @pytest.mark.parametrize("beta", [1e-3, "auto"])
    @pytest.mark.parametrize("cls", [SGDHD, AdamHD, AdamWHD])
    def test_what_alpha_learnt_is_part_of_the_graph_also_where_a_float_was_given(self, cls, beta):
        gradients = []
        for lr in (0.01, torch.tensor(0.01)):
            p = torch.ones(3, requires_grad=True)
            moving = p.clone()
            optimizer = cls([moving], lr=lr, hypergrad_lr=0.0, differentiable=True)
            optimizer.param_groups[0]["hypergrad_lr"] = beta
            for _ in range(4):
                now = moving.clone()
                moving.grad = torch.autograd.grad(((now - 2) ** 4).sum(), now, create_graph=True)[0]
                optimizer.step()
            assert optimizer.param_groups[0]["lr"].grad_fn is not None
            gradients += torch.autograd.grad(((moving - 2) ** 2).sum(), p)
        torch.testing.assert_close(*gradients)
