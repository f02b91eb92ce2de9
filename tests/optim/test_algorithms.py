"""The optimisers are the paper's algorithms: against autograd, and against their restatement in numpy."""

import copy

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problem import ALPHA, BETA, METHODS, flat, loss_of, make, tensors, train, unflat

from hdlib.optim import rules

PAPER = {
    "sgd": reference.SgdHd,
    "heavy_ball": reference.HeavyBallHd,
    "nesterov": reference.SgdnHd,
    "adam": reference.AdamHd,
}
RULES = ("additive", "multiplicative")


def gradient(theta, t):
    """Return the gradient on minibatch t at a numpy vector of all parameters."""
    params = [p.requires_grad_() for p in unflat(torch.tensor(theta), tensors())]
    return flat(torch.autograd.grad(loss_of(params, t), params)).numpy()


@pytest.mark.parametrize("l2", [0.0, 0.1])
@pytest.mark.parametrize("name", METHODS)
def test_the_hypergradient_is_the_derivative_that_autograd_finds_through_the_last_step(name, l2):
    params = tensors()
    optimizer = make(name, params, weight_decay=l2)
    paper = PAPER[name](flat(params), ALPHA[name], BETA[name], l2=l2)
    for t in range(8):
        before = flat(params)
        paper.step(gradient(before.numpy(), t))
        optimizer.zero_grad()
        loss_of(params, t).backward()
        optimizer.step()
        # theta_t as a function of alpha, judged by the next minibatch
        alpha = torch.tensor(paper.alpha, dtype=torch.float64, requires_grad=True)
        moved = unflat(before + alpha * torch.tensor(paper.D), params)
        (expected,) = torch.autograd.grad(loss_of(moved, t + 1, l2), alpha)
        following = copy.deepcopy((params, optimizer))
        following[1].zero_grad()
        loss_of(following[0], t + 1).backward()
        following[1].step()
        assert following[1].param_groups[0]["hypergrad"] == pytest.approx(expected.item(), rel=1e-10, abs=0)
        # the parameters are where autograd had them, so both speak of the same step
        torch.testing.assert_close(flat(params), flat(moved), rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", METHODS)
def test_the_hypergradient_is_torchs_own_derivative_through_a_differentiable_step(name):
    """torch.optim's differentiable step takes the place of the restated one: heavy ball, Nesterov and Adam by torch."""
    params = tensors()
    optimizer = make(name, params, weight_decay=0.1, hypergrad_lr=0.0)
    train(optimizer, params, 5)
    alpha = torch.tensor(ALPHA[name], dtype=torch.float64, requires_grad=True)
    options = dict(METHODS[name][1], weight_decay=0.1, differentiable=True)
    native = torch.optim.Adam if name == "adam" else torch.optim.SGD
    moved = [p.detach().clone().requires_grad_() for p in params]
    stepped = [p.clone() for p in moved]
    twin = native(stepped, lr=alpha, **options)
    for p, q in zip(params, stepped, strict=True):
        state = copy.deepcopy(optimizer.state[p])
        if "step" in state:
            state["step"] = state["step"].double()  # a differentiable Adam reckons in the precision of its step
        twin.state[q] = state
    for p, g in zip(stepped, torch.autograd.grad(loss_of(moved, 5), moved), strict=True):
        p.grad = g
    twin.step()
    (expected,) = torch.autograd.grad(loss_of(stepped, 6, 0.1), alpha)
    optimizer.param_groups[0]["hypergrad_lr"] = 1e-30
    train(optimizer, params, 2, start=5)
    assert optimizer.param_groups[0]["hypergrad"] == pytest.approx(expected.item(), rel=1e-10, abs=0)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("l2", [0.0, 0.01])
@pytest.mark.parametrize("name", METHODS)
def test_a_hundred_steps_follow_the_paper(name, l2, rule):
    beta = BETA[name] if rule == "additive" else 0.02
    params = tensors()
    optimizer = make(name, params, weight_decay=l2, rule=rule, hypergrad_lr=beta)
    multiplicative = rule == "multiplicative"
    paper = PAPER[name](flat(params), ALPHA[name], beta, l2=l2, multiplicative=multiplicative)
    for t in range(100):
        (alpha,) = train(optimizer, params, 1, start=t)
        paper.step(gradient(paper.theta, t))
        assert alpha == pytest.approx(paper.alpha, rel=1e-12)
        np.testing.assert_allclose(flat(params).numpy(), paper.theta, rtol=0, atol=1e-12)
    assert abs(alpha / ALPHA[name] - 1) > 0.02  # alpha has moved, so that there was something to follow


@pytest.mark.parametrize("name", METHODS)
def test_each_group_follows_the_paper_with_its_own_alpha_and_beta(name):
    params = tensors()
    cut = params[0].numel() + params[1].numel()
    alphas, betas = (ALPHA[name], ALPHA[name] / 3), (BETA[name], BETA[name] / 2)
    start = flat(params).numpy()
    papers = [PAPER[name](start[:cut], alphas[0], betas[0]), PAPER[name](start[cut:], alphas[1], betas[1], l2=0.01)]
    optimizer = make(
        name,
        [
            {"params": params[:2], "lr": alphas[0], "hypergrad_lr": betas[0]},
            {"params": params[2:], "lr": alphas[1], "hypergrad_lr": betas[1], "weight_decay": 0.01},
        ],
    )
    for t in range(100):
        train(optimizer, params, 1, start=t)
        g = gradient(np.concatenate([paper.theta for paper in papers]), t)
        papers[0].step(g[:cut])
        papers[1].step(g[cut:])
    assert optimizer.learning_rates() == pytest.approx([paper.alpha for paper in papers], rel=1e-12)
    np.testing.assert_allclose(flat(params[:2]).numpy(), papers[0].theta, rtol=0, atol=1e-12)
    np.testing.assert_allclose(flat(params[2:]).numpy(), papers[1].theta, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", METHODS)
def test_alpha_does_not_depend_on_how_parameters_are_cut_into_tensors(name, rule):
    """In the authors' AdamHD it does: alpha changes from tensor to tensor within a step."""
    g = torch.Generator().manual_seed(3)
    start = torch.randn(24, generator=g, dtype=torch.float64)
    noise = [torch.randn(24, generator=g, dtype=torch.float64) for _ in range(40)]
    outcomes = []
    for sizes in ([24], [1, 23], [10, 0, 7, 7], [1] * 24):
        params = [part.clone().requires_grad_() for part in start.split(sizes)]
        optimizer = make(name, params, rule=rule)
        for e in noise:
            optimizer.zero_grad()
            whole = torch.cat([p.reshape(-1) for p in params])
            (whole.cosh() + whole * e).sum().mul(0.1).backward()
            optimizer.step()
        outcomes.append((optimizer.param_groups[0]["lr"], flat(params)))
    for alpha, theta in outcomes[1:]:
        assert alpha == pytest.approx(outcomes[0][0], rel=1e-13)
        torch.testing.assert_close(theta, outcomes[0][1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", METHODS)
def test_the_first_step_never_changes_alpha_and_the_second_does(name, rule):
    params = tensors()
    optimizer = make(name, params, rule=rule)
    first, second = train(optimizer, params, 1), train(optimizer, params, 1, start=1)
    assert first == [ALPHA[name]] != second


@pytest.mark.parametrize("name", METHODS)
def test_alpha_is_updated_before_the_parameters_move(name):
    params = tensors()
    optimizer = make(name, params, lr=0.0)
    start = flat(params)
    assert train(optimizer, params, 1) == [0.0]
    assert torch.equal(flat(params), start)
    (alpha,) = train(optimizer, params, 1, start=1)
    assert alpha != 0.0
    assert not torch.equal(flat(params), start)


@pytest.mark.parametrize("name", METHODS)
def test_from_alpha_zero_training_takes_off(name):
    params = tensors()
    optimizer = make(name, params, lr=0.0, hypergrad_lr=1e-4)
    start = loss_of(params, 999).item()
    alphas = train(optimizer, params, 200)
    assert max(alphas) > 1e-4
    assert loss_of(params, 999).item() < 0.8 * start


@pytest.mark.parametrize("options", [{}, {"hypergrad_lr": "auto"}], ids=str)
def test_maximising_a_loss_is_minimising_its_negative(options):
    outcomes = []
    for sign in (1, -1):
        params = tensors()
        optimizer = make("adam", params, maximize=sign == -1, weight_decay=0.01, **options)
        for t in range(20):
            optimizer.zero_grad()
            (sign * loss_of(params, t)).backward()
            optimizer.step()
        outcomes.append((flat(params), optimizer.learning_rates()))
    assert torch.equal(outcomes[0][0], outcomes[1][0])
    assert outcomes[0][1] == outcomes[1][1]


class TestMultiplicativeRule:
    @settings(max_examples=40, deadline=None)
    @given(
        name=st.sampled_from(list(METHODS)),
        beta=st.floats(1e-6, 0.999),
        alpha=st.floats(1e-8, 1e3),
        seed=st.integers(0, 2**16),
        size=st.floats(1e-6, 1e6),
    )
    def test_alpha_keeps_its_sign_and_changes_by_at_most_the_factor_one_plus_or_minus_beta(
        self, name, beta, alpha, seed, size
    ):
        g = torch.Generator().manual_seed(seed)
        params = [torch.randn(s, generator=g, dtype=torch.float64).requires_grad_() for s in ((3, 2), (4,))]
        optimizer = make(name, params, lr=alpha, hypergrad_lr=beta, rule="multiplicative")
        last = alpha
        for _ in range(5):
            for p in params:
                p.grad = size * torch.randn(p.shape, generator=g, dtype=torch.float64)
            optimizer.step()
            (now,) = optimizer.learning_rates()
            assert now > 0
            assert abs(now / last - 1) <= beta * (1 + 1e-9) + 1e-15
            last = now

    @pytest.mark.parametrize("scale", [1e-3, 1e4])
    @pytest.mark.parametrize("name", METHODS)
    def test_alphas_relative_change_does_not_depend_on_the_losss_scale(self, name, scale):
        """SGD moves with alpha times the gradient, so its alpha_0 is divided by the scale; Adam's is not."""
        paths = []
        for factor in (1.0, scale):
            params = tensors()
            alpha = ALPHA[name] if name == "adam" else ALPHA[name] / factor
            extra = {"eps": 0.0} if name == "adam" else {}
            optimizer = make(name, params, lr=alpha, hypergrad_lr=0.05, rule="multiplicative", **extra)
            path = []
            for t in range(30):
                optimizer.zero_grad()
                (factor * loss_of(params, t)).backward()
                optimizer.step()
                path.append(optimizer.param_groups[0]["lr"] / alpha)
            paths.append(path)
        assert paths[1] == pytest.approx(paths[0], rel=1e-9)
        assert max(abs(a - 1) for a in paths[0]) > 0.05

    def test_a_gradient_of_one_direction_changes_alpha_by_exactly_the_factor(self):
        p = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        optimizer = make("sgd", [p], lr=1.0, hypergrad_lr=0.25, rule="multiplicative")
        for size in (1.0, 5.0, -2.0):
            p.grad = torch.tensor([0.0, 3.0, 4.0], dtype=torch.float64) * size
            optimizer.step()
        assert optimizer.learning_rates() == [pytest.approx(1.25 * 0.75, rel=1e-14)]

    @pytest.mark.parametrize("name", METHODS)
    def test_a_gradient_of_zero_leaves_alpha_as_it_is(self, name):
        params = tensors()
        optimizer = make(name, params, rule="multiplicative", hypergrad_lr=0.02)
        for _ in range(3):
            for p in params:
                p.grad = torch.zeros_like(p)
            optimizer.step()
        assert optimizer.learning_rates() == [ALPHA[name]]


class TestMissingGradients:
    @pytest.mark.parametrize("rule", RULES)
    def test_plain_sgd_treats_a_missing_gradient_like_a_gradient_of_zero(self, rule):
        """Late parameters, parameters that come and go, and steps without any gradient."""
        present = [(1, 0), (1, 0), (1, 1), (0, 1), (1, 1), (1, 1), (0, 0), (1, 1), (1, 0), (1, 1)]
        outcomes = []
        for missing in (None, 0.0):
            g = torch.Generator().manual_seed(4)
            params = [torch.zeros(4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
            optimizer = make("sgd", params, rule=rule, hypergrad_lr=0.01)
            alphas = []
            for here in present:
                for p, on in zip(params, here, strict=True):
                    grad = torch.randn(4, generator=g, dtype=torch.float64) + 1
                    p.grad = grad if on else None if missing is None else missing * grad
                optimizer.step()
                alphas.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["hypergrad"]))
            outcomes.append((alphas, flat(params)))
        np.testing.assert_allclose(outcomes[0][0], outcomes[1][0], rtol=1e-13, atol=0)
        torch.testing.assert_close(outcomes[0][1], outcomes[1][1], rtol=1e-13, atol=0)

    @pytest.mark.parametrize("name", METHODS)
    def test_the_hypergradient_counts_only_parameters_that_the_last_step_moved(self, name):
        """The derivative in alpha, by central differences of the next minibatch's loss."""
        used = [(0, 1, 2, 3), (0, 1, 2), (0, 2, 3), (0, 1, 2, 3)]

        def step(params, optimizer, t, which):
            optimizer.zero_grad()
            loss_of(params, t).backward()
            for i, p in enumerate(params):
                if i not in which:
                    p.grad = None
            optimizer.step()

        for t in range(1, 4):
            params = tensors()
            optimizer = make(name, params, hypergrad_lr=1e-15)
            for s in range(t):
                start = [p.detach().clone() for p in params]
                step(params, optimizer, s, used[s])
            losses = []
            for sign in (1, -1):
                factor = 1 + sign * 1e-4
                moved = [a + factor * (p.detach() - a) for a, p in zip(start, params, strict=True)]
                moved = [
                    m.requires_grad_() if i in used[t] else p.detach()
                    for i, (m, p) in enumerate(zip(moved, params, strict=True))
                ]
                losses.append(loss_of(moved, t).item())
            expected = (losses[0] - losses[1]) / (2e-4 * ALPHA[name])
            step(params, optimizer, t, used[t])
            assert optimizer.param_groups[0]["hypergrad"] == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize("name", METHODS)
    def test_a_late_parameter_joins_without_a_jump_of_alpha(self, name):
        params = tensors()
        late = torch.zeros(1000, dtype=torch.float64, requires_grad=True)
        twins = [copy.deepcopy(params) for _ in range(2)]
        optimizers = [make(name, twins[0]), make(name, [*twins[1], late])]
        for optimizer, twin in zip(optimizers, twins, strict=True):
            train(optimizer, twin, 3)
        for optimizer, twin in zip(optimizers, twins, strict=True):
            for p, g in zip(twin, torch.autograd.grad(loss_of(twin, 3), twin), strict=True):
                p.grad = g
            if optimizer is optimizers[1]:
                late.grad = torch.full_like(late, 100.0)
            optimizer.step()
        assert optimizers[0].learning_rates() == optimizers[1].learning_rates()
        assert late.abs().max() > 0

    @pytest.mark.parametrize("name", METHODS)
    def test_without_any_gradient_nothing_happens(self, name):
        params = tensors()
        optimizer = make(name, params)
        start = flat(params)
        optimizer.step()
        assert torch.equal(flat(params), start)
        assert optimizer.learning_rates() == [ALPHA[name]]
        assert not optimizer.state_dict()["state"]


class TestKindsOfTensors:
    @pytest.mark.parametrize("rule", RULES)
    @pytest.mark.parametrize("name", METHODS)
    def test_a_complex_problem_is_the_same_problem_in_real_and_imaginary_parts(self, name, rule):
        g = torch.Generator().manual_seed(5)
        z = torch.randn(4, 2, generator=g, dtype=torch.complex128).requires_grad_()
        w = torch.view_as_real(z.detach()).clone().requires_grad_()
        targets = [torch.randn(4, 2, generator=g, dtype=torch.complex128) for _ in range(30)]
        optimizers = [make(name, [p], weight_decay=0.01, rule=rule) for p in (z, w)]
        for target in targets:
            for optimizer, value in zip(optimizers, (lambda: z, lambda: torch.view_as_complex(w)), strict=True):
                optimizer.zero_grad()
                error = (value() - target).conj() * (value() - target)
                (error.real.sum() + (value() ** 2 * target).real.sum() * 0.1).backward()
                optimizer.step()
        assert optimizers[0].learning_rates() == pytest.approx(optimizers[1].learning_rates(), rel=1e-13)
        torch.testing.assert_close(torch.view_as_real(z.detach()), w.detach(), rtol=0, atol=1e-13)

    @pytest.mark.parametrize("name", METHODS)
    def test_a_lazily_conjugated_gradient_is_taken_by_its_value(self, name):
        outcomes = []
        for lazy in (True, False):
            z = torch.zeros(3, dtype=torch.complex64, requires_grad=True)
            optimizer = make(name, [z])
            for t in range(3):
                grad = torch.tensor([1 + 2j, 3 - 1j, 1j], dtype=torch.complex64) * (t + 1)
                z.grad = grad.conj() if lazy else grad.conj().resolve_conj()
                assert z.grad.is_conj() == lazy
                optimizer.step()
            outcomes.append(z.detach())
        assert torch.equal(*outcomes)

    @pytest.mark.parametrize("name", METHODS)
    def test_strides_make_no_difference(self, name):
        outcomes = []
        for strided in (False, True):
            params = tensors()
            if strided:
                base = torch.zeros(12, 10, dtype=torch.float64)
                base[::2, ::2] = params[0].detach()
                params[0] = base[::2, ::2].requires_grad_()
                params[2] = params[2].detach().t().contiguous().t().requires_grad_()
                assert not params[0].is_contiguous() and not params[2].is_contiguous()
            alphas = train(make(name, params), params, 20)
            outcomes.append((alphas, flat(params)))
        assert outcomes[0][0] == pytest.approx(outcomes[1][0], rel=1e-13)
        torch.testing.assert_close(outcomes[0][1], outcomes[1][1], rtol=0, atol=1e-13)
        assert torch.count_nonzero(base[1::2]) == 0  # what lies between the elements is left alone

    @pytest.mark.parametrize("rule", RULES)
    @pytest.mark.parametrize("name", METHODS)
    def test_scalars_and_empty_tensors_are_parameters_too(self, name, rule):
        scalar = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
        empty = torch.zeros(0, 3, dtype=torch.float64, requires_grad=True)
        optimizer = make(name, [empty, scalar], rule=rule, hypergrad_lr=1e-3)
        for _ in range(5):
            optimizer.zero_grad()
            (scalar**2 + empty.sum()).backward()
            optimizer.step()
        assert scalar.item() < 2.0
        assert optimizer.learning_rates()[0] > ALPHA[name]

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("name", METHODS)
    def test_half_precision_parameters_keep_alpha_and_h_in_full_precision(self, name, dtype):
        """h is the dot product of the rounded numbers, not a rounded dot product; alpha keeps tiny steps."""
        g = torch.Generator().manual_seed(6)
        p = torch.randn(300, generator=g).to(dtype).requires_grad_()
        extra = {"eps": 1e-3} if name == "adam" else {}
        optimizer = make(name, [p], lr=1e-3, hypergrad_lr=1e-12, **extra)
        for _ in range(2):
            p.grad = (torch.randn(300, generator=g) + 0.3).to(dtype)
            optimizer.step()
        p.grad = (torch.randn(300, generator=g) + 0.3).to(dtype)
        state, group = optimizer.state[p], optimizer.param_groups[0]
        if name == "adam":
            m, v = state["exp_avg"].double(), state["exp_avg_sq"].double()
            d = m / (1 - 0.9**2) / ((v / (1 - 0.999**2)).sqrt() + 1e-3)
            close = 3e-2  # the direction is rebuilt in the parameter's precision
        else:
            d, close = state["momentum_buffer" if name == "heavy_ball" else "direction"].double(), 1e-5
        alpha, expected = group["lr"], -(p.grad.double() @ d).item()
        optimizer.step()
        assert p.dtype == dtype
        assert group["hypergrad"] == pytest.approx(expected, rel=close)
        assert group["lr"] == alpha - 1e-12 * group["hypergrad"] != alpha

    def test_one_group_may_mix_precisions(self):
        params = [torch.ones(3, dtype=d, requires_grad=True) for d in (torch.float32, torch.float64, torch.bfloat16)]
        optimizer = make("sgd", params, lr=0.125, hypergrad_lr=0.5)
        for _ in range(2):
            for p in params:
                p.grad = torch.full_like(p, 0.5)
            optimizer.step()
        assert optimizer.param_groups[0]["hypergrad"] == -9 * 0.25
        assert optimizer.learning_rates() == [0.125 + 0.5 * 9 * 0.25]

    def test_the_parts_of_h_are_added_in_float64(self):
        params = [torch.zeros(1, requires_grad=True) for _ in range(3)]
        optimizer = make("sgd", params, lr=0.0, hypergrad_lr=1e-9)
        for grads in ((2.0**30, 1.0, -(2.0**30)), (1.0, 1.0, 1.0)):
            for p, g in zip(params, grads, strict=True):
                p.grad = torch.full_like(p, g)
            optimizer.step()
        assert optimizer.param_groups[0]["hypergrad"] == -1.0

    def test_adam_counts_its_steps_whatever_the_default_precision(self):
        torch.set_default_dtype(torch.bfloat16)
        try:
            p = torch.ones(2, requires_grad=True)
            optimizer = make("adam", [p])
            p.grad = torch.ones_like(p)
            for _ in range(300):
                optimizer.step()
        finally:
            torch.set_default_dtype(torch.float32)
        assert optimizer.state[p]["step"].item() == 300


def test_adams_direction_does_not_depend_on_where_its_corrections_are_taken():
    m, v = torch.randn(50, dtype=torch.float64), torch.rand(50, dtype=torch.float64)
    for t in (1.0, 2.0, 1000.0):
        plain = rules.adam_direction(m, v, t, 0.9, 0.999, 1e-3)
        corrected = rules.adam_corrected_direction(m, v, *rules.adam_corrections(t, 0.9, 0.999, 1e-3))
        torch.testing.assert_close(corrected, plain, rtol=1e-13, atol=0)
