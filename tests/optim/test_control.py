"""How alpha moves: each rule and guard keeps its promise, for floats, tensors and stacks alike."""

import math
import random
from functools import partial

import pytest
import torch
from problem import METHODS, flat, loss_of, make, tensors, train

from hdlib import SGDHD, AdamHD, AdamWHD
from hdlib.optim import control
from hdlib.optim._group import options_of
from hdlib.optim.control import Control, next_alpha, step_size

INF, NAN = math.inf, math.nan


def follow(hypergradients, slopes, options, alpha=0.01, beta=0.1):
    """Return alpha after each of several hypergradients."""
    state, alphas = control.initial_state(options), []
    for h, s in zip(hypergradients, slopes, strict=True):
        alpha, state = step_size(alpha, options, state)
        alpha, state = next_alpha(alpha, h, beta, options, state, grad_sq=4.0 + h * h, direction_sq=9.0, slope=s)
        alphas.append(alpha)
    return alphas


def parabola(options, beta, alpha=1e-3, steps=60, slope=-2.0, kappa=50.0):
    """Follow alpha where every step meets the same parabola: h = slope + kappa alpha, best alpha slope / kappa."""
    state, alphas = control.initial_state(options), [alpha]
    for _ in range(steps):
        h = slope + kappa * alpha
        alpha, state = step_size(alpha, options, state)
        alpha, state = next_alpha(
            alpha, h, beta, options, state, grad_sq=1.0, direction_sq=1.0, slope=slope + 0 * alpha
        )
        alphas.append(alpha)
    return alphas


def test_without_options_alpha_moves_as_the_paper_says():
    assert next_alpha(0.5, 2.0, 0.1) == (0.5 - 0.1 * 2.0, {})
    [moved] = follow([1.5], [-1.0], Control(rule="multiplicative"), alpha=0.5)
    assert moved == pytest.approx(0.5 * (1 - 0.1 * 1.5 / (2.5 * 3)), rel=1e-15)


def test_the_plain_rule_is_stable_up_to_two_over_kappa_and_not_beyond():
    assert parabola(Control(), 1.9 / 50, steps=300)[-1] == pytest.approx(2 / 50, rel=1e-6)
    assert abs(parabola(Control(), 2.1 / 50, steps=300)[-1]) > 1e3


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("alpha", [1e-6, 1e-1, 10.0])
@pytest.mark.parametrize(
    ("options", "beta"), [(Control(rule="auto", overshoot=0.0), 1.0), (Control(rule="curvature", max_change=1), 0.5)]
)
def test_an_automatic_beta_finds_the_minimum_whatever_the_scale_of_the_loss(options, beta, alpha, scale):
    found = parabola(options, beta, alpha, slope=-2.0 * scale, kappa=50.0 * scale, steps=150)
    assert found[-1] == pytest.approx(2 / 50, rel=0.05)
    assert min(found) > 0


def test_the_curvature_rule_measures_the_curvature():
    """With beta 1 it is Newton's method: one measured step, and alpha is at the minimum."""
    assert parabola(Control(rule="curvature"), 1.0, steps=1)[-1] == pytest.approx(2 / 50, rel=1e-12)


def test_overshoot_lets_the_slope_after_a_step_point_uphill_by_its_fraction():
    alpha = parabola(Control(overshoot=0.25), 0.5 / 50, steps=400)[-1]
    assert -2.0 + 50 * alpha == pytest.approx(0.25 * 2.0, rel=1e-6)


def test_the_automatic_rule_tolerates_an_overshoot_that_fades():
    alphas = parabola(Control(rule="auto"), 1.0, steps=10_000)
    for t in (400, 10_000):
        fraction = control.AUTO_OVERSHOOT / (1 + t / control.AUTO_STEPS)
        assert -2.0 + 50 * alphas[t] == pytest.approx(fraction * 2.0, rel=0.3)


def automatic(hypergradients, slopes):
    """Return alpha after each step of the rule "auto" without an overshoot, from 1."""
    return follow(hypergradients, slopes, Control(rule="auto", overshoot=0.0), alpha=1.0, beta=1.0)


def as_documented(hypergradients, slopes, overshoot, beta, alpha):
    """Return alpha after each step of the rule "auto", by the formulas that `Control` documents."""
    alphas, gains, squares, fading, usual = [], [], 0.0, 0.0, 0.0
    for h, slope in zip(hypergradients, slopes, strict=True):
        s = abs(slope)
        if s > 0:
            r, p, f = -h / s, alpha * s, alpha * (s - h) / 2
            g = min(max(f, 0.0), 10 * usual if usual > 0 else p)
            gains.append(g)
            fading = 0.9 * fading + 0.1 * g
            usual = max(sum(gains) / len(gains), fading)
            w = min(1.0, 1000 * max(p, -f) / usual) if usual > 0 else 1.0
            x = w * (min(max(r, -1.0), 1.0) + overshoot / (1 + len(gains) / 300))
            squares += x * x
            moved = alpha * math.exp(beta * x / math.sqrt(10 + squares))
            drop = max(1 / 10, max(p, 2 * usual) / (alpha * (s + abs(h)))) ** min(beta, 1.0)
            alpha = min(moved, alpha * drop) if f < -usual else moved
        alphas.append(alpha)
    return alphas


@pytest.mark.parametrize(("overshoot", "beta"), [(0.0, 1.0), (0.3, 1.0), (0.3, 0.5), (0.1, 2.0)])
@pytest.mark.parametrize("seed", range(5))
def test_the_automatic_rule_is_what_is_documented(overshoot, beta, seed):
    """Over slopes of many sizes, with zeros among them, and steps that lost more than all before had gained."""
    draw = random.Random(seed)
    slopes = [-(10 ** draw.uniform(-6, 2)) * (draw.random() > 0.1) for _ in range(400)]
    h = [s * draw.uniform(-0.5, 1.0) if draw.random() > 0.05 else abs(s) * 10 ** draw.uniform(0, 4) for s in slopes]
    found = follow(h, slopes, Control(rule="auto", overshoot=overshoot), alpha=0.01, beta=beta)
    assert found == pytest.approx(as_documented(h, slopes, overshoot, beta, 0.01), rel=1e-9)


def test_the_automatic_rule_lengthens_steps_only_while_they_are_worth_it():
    """Without noise a slope does not change over a short step, whether there is still something to gain or not."""
    downhill = [-1.0] * 1000
    assert automatic(downhill, downhill)[-1] > 1e20
    vanishing = [-(0.8**t) for t in range(1000)]
    alphas = automatic(vanishing, vanishing)
    assert alphas[-1] < 1e8
    assert alphas[-1] == pytest.approx(alphas[200], rel=1e-3)


def test_noise_does_not_lower_alpha_alone_where_steps_gain_little():
    """After a first step that gained more than all others, thousands that gain and lose a little leave alpha be."""
    rng = random.Random(0)
    noise = [rng.uniform(-1.5, 1.5) for _ in range(3000)]
    alphas = automatic([-1e8, *noise], [-1e8, *[-1.0] * 3000])
    assert 0.2 * alphas[0] < alphas[-1] < 5 * alphas[0]


@pytest.mark.parametrize("scale", [1e-150, 1e-20, 1e20, 1e150])
def test_the_automatic_rule_does_not_see_the_scale_of_the_loss(scale):
    rng = random.Random(1)
    h, s = ([rng.uniform(-2.0, high) for _ in range(300)] for high in (3.0, 0.0))
    alphas = automatic(h, s)
    assert automatic([scale * x for x in h], [scale * x for x in s]) == pytest.approx(alphas, rel=1e-9)
    assert min(alphas) < 0.5 * max(alphas)


def test_what_steps_gain_of_late_counts_where_it_is_more_than_their_mean():
    options = Control(rule="auto")
    common = {"step_size": 5e-5, "ratio_count": 1000.0, "gain_sum": 1.0}

    def growth(late):
        state = control.initial_state(options) | common | {"gain_mean": late}
        return math.log(next_alpha(0.1, 0.0, 1.0, options, state, slope=-2.0)[0] / 0.1)

    assert growth(1.0) == pytest.approx(growth(1e-3) / 9, rel=0.01)  # the stake is a 9,000th of the gain of late
    assert growth(1e-9) == pytest.approx(growth(1e-3), rel=1e-9)


def test_a_first_gain_counts_at_most_as_what_its_slope_promised():
    options = Control(rule="auto")
    state = control.initial_state(options) | {"step_size": 0.1}
    assert next_alpha(0.1, -90.0, 1.0, options, state, slope=-2.0)[1]["gain_sum"] == pytest.approx(0.2)


def test_a_small_beta_softens_what_a_step_that_lost_does():
    soft = follow([*[0.0] * 20, 7.0], [-1.0] * 21, Control(rule="auto", overshoot=0.0), alpha=1.0, beta=0.5)
    assert soft[-1] == pytest.approx((1 / 8) ** 0.5)


def test_the_gain_of_a_step_that_passed_over_to_a_fixed_rate_is_that_of_the_rate_it_took():
    """Of alpha and the final rate, the one that does not move the parameters does not count."""
    options = Control(rule="auto", overshoot=0.0, final_lr=0.01, transition=1.0)
    state, alpha = control.initial_state(options), 1.0
    for _ in range(3):
        gamma, state = step_size(alpha, options, state)
        alpha, state = next_alpha(alpha, 0.0, 1.0, options, state, slope=-2.0)
    assert gamma < 0.5 * alpha
    before = state["gain_sum"]
    gamma, state = step_size(alpha, options, state)
    _, state = next_alpha(alpha, 0.0, 1.0, options, state, slope=-2.0)
    assert state["gain_sum"] - before == pytest.approx(gamma * 2.0 / 2)


def test_what_a_step_gained_is_told_from_the_learning_rate_that_it_took():
    """A scheduler that writes another one before the next step changes nothing about the last one."""
    params, others = tensors(), tensors()
    optimizer, scheduled = (make("sgd", own, lr=0.01, hypergrad_lr="auto") for own in (params, others))
    train(optimizer, params, 6)
    train(scheduled, others, 6)
    scheduled.param_groups[0]["lr"] *= 100
    train(optimizer, params, 1, start=6)
    train(scheduled, others, 1, start=6)
    names = ("gain_sum", "gain_mean", "ratio_sq", "slope", "hypergrad")
    assert [scheduled.param_groups[0][name] for name in names] == [optimizer.param_groups[0][name] for name in names]
    assert scheduled.param_groups[0]["lr"] == pytest.approx(100 * optimizer.param_groups[0]["lr"], rel=1e-12)


@pytest.mark.parametrize("usual", [0.0, 1e-3, 10.0])
@pytest.mark.parametrize("h", [-3.0, -1.0, 0.5, 3.0, 90.0])
def test_the_automatic_rule_multiplies_whatever_alpha_was_written_by_what_the_step_that_was_taken_tells(h, usual):
    options = Control(rule="auto")
    known = {"step_size": 0.1, "ratio_count": 5.0, "gain_sum": 5 * usual, "gain_mean": usual}
    state = control.initial_state(options) | known
    found = [next_alpha(alpha, h, 1.0, options, state, slope=-2.0) for alpha in (0.1, 1e-5)]
    assert found[0][0] / 0.1 == pytest.approx(found[1][0] / 1e-5, rel=1e-12)
    assert found[0][1] == found[1][1]


def test_after_a_step_that_lost_more_than_steps_gain_the_automatic_rule_goes_to_the_bottom_of_its_parabola():
    flat = [0.0] * 20  # each step ends at a bottom: it gains half of alpha |s|, and alpha is right
    assert automatic([*flat, 7.0], [-1.0] * 21)[-1] == pytest.approx(1 / (1 + 7))
    small = automatic([*flat, 1.9], [-1.0] * 21)[-1]  # lost less than others gain: noise, perhaps
    assert small == pytest.approx(math.exp(-1 / math.sqrt(11)))
    for far in (1e9, INF):
        assert automatic([*flat, far], [-1.0] * 21)[-1] == pytest.approx(control.AUTO_DROP)
    # where a slope is small by chance, that of a step with the usual gain says where the bottom is
    usual = 20 * 0.5 / 21
    assert automatic([*flat, 7.0], [*[-1.0] * 20, -1e-3])[-1] == pytest.approx(2 * usual / (1e-3 + 7))


def test_what_a_step_gains_after_a_great_loss_hardly_counts_for_the_automatic_rule():
    """It only makes good what was lost: the next loss of some size is met as the first was."""
    before = [0.0] * 20
    recovery = automatic([*before, 1e6, 0.0, 50.0], [*[-1.0] * 21, -1e6, -1.0])
    assert recovery[-1] < 0.5 * recovery[-2]


@pytest.mark.parametrize("name", ["sgd", "nesterov", "adam"])
def test_full_batches_are_not_lost_with_the_automatic_rule(name):
    """Their gradients have no noise, and classes that can be told apart let the loss go to zero."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(200, 20, generator=rng, dtype=torch.float64)
    y = (x @ torch.randn(20, 5, generator=rng, dtype=torch.float64)).argmax(1)
    w = torch.zeros(20, 5, dtype=torch.float64, requires_grad=True)
    optimizer = make(name, [w], lr=0.1, hypergrad_lr="auto")
    for _ in range(500):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(x @ w, y)
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    assert optimizer.param_groups[0]["lr"] < 1e5


@pytest.mark.parametrize("number", [float, torch.tensor], ids=["float", "tensor"])
def test_the_first_alpha_is_limited_by_the_size_of_the_parameters(number):
    limited = partial(control.first_alpha, number(0.5), Control(rule="auto"))
    assert float(limited(number(4.0), number(100.0))) == pytest.approx(control.AUTO_FIRST * 2.0 / 10.0)
    assert float(limited(number(1e6), number(1.0))) == 0.5
    for nothing_known in ((0.0, 1.0), (1.0, 0.0), (1.0, INF), (1.0, NAN)):
        assert float(limited(*map(number, nothing_known))) == 0.5
    bounded = control.first_alpha(number(0.5), Control(rule="auto", min_lr=0.1), number(4.0), number(100.0))
    assert float(bounded) == pytest.approx(0.1)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("way", [{}, {"foreach": True}, {"fused": True}, {"capturable": True}], ids=str)
@pytest.mark.parametrize("lr", [10.0, torch.tensor(10.0, dtype=torch.float64)], ids=["float", "tensor"])
def test_the_first_automatic_step_moves_the_parameters_by_a_share_of_their_size(name, way, lr):
    params = tensors()
    before = flat(params)
    optimizer = make(name, params, lr=lr, hypergrad_lr="auto", **way)
    [alpha] = train(optimizer, params, 1)
    assert (flat(params) - before).norm() == pytest.approx(control.AUTO_FIRST * before.norm().item(), rel=1e-9)
    assert alpha < 10.0
    small = tensors()
    assert train(make(name, small, lr=1e-4, hypergrad_lr="auto", **way), small, 1) == [1e-4]


@pytest.mark.parametrize("way", [dict(foreach=False), dict(foreach=True), dict(fused=True)])
def test_an_l2_term_counts_in_the_first_automatic_step(way):
    p = torch.nn.Parameter(torch.ones(4))
    optimizer = SGDHD([p], lr=10.0, weight_decay=1.0, hypergrad_lr="auto", **way)
    p.grad = torch.full_like(p, 1e-3)
    optimizer.step()
    assert (p.detach() - 1).norm().item() == pytest.approx(0.3 * 2, rel=1e-5)


def test_decoupled_decay_counts_in_the_first_automatic_step():
    params = tensors()
    before = flat(params)
    optimizer = AdamWHD(params, lr=10.0, weight_decay=0.5, hypergrad_lr="auto")
    train(optimizer, params, 1)
    assert (flat(params) - before).norm() == pytest.approx(control.AUTO_FIRST * before.norm().item(), rel=1e-9)


def test_parameters_that_begin_to_be_trained_later_do_not_make_a_first_step_of_it():
    params = tensors()
    optimizer = make("sgd", params, lr=0.05, hypergrad_lr="auto")
    train(optimizer, params, 3)
    optimizer.zero_grad()
    optimizer.step()  # rests: the next step has no direction to compare with, but is not the first
    optimizer.param_groups[0]["lr"] = 10.0
    assert train(optimizer, params, 1, start=3) == [10.0]


@pytest.mark.parametrize(
    ("make", "weights"),
    [
        (SGDHD, [1.0] + [0.0] * 999),
        (partial(SGDHD, momentum=0.9), [0.9**k for k in range(1000)]),
        (partial(SGDHD, momentum=0.9, nesterov=True), [1.9] + [0.9 ** (k + 1) for k in range(1, 1000)]),
        (AdamHD, [0.1 * 0.9**k for k in range(1000)]),
        (partial(AdamHD, betas=(0.5, 0.999)), [0.5 ** (k + 1) for k in range(1000)]),
    ],
    ids=["gradient", "velocity", "Nesterov", "Adam", "Adam, 0.5"],
)
def test_the_automatic_overshoot_is_worth_the_same_to_every_average(make, weights):
    """It is divided by what the weights of past gradients make of a tolerance in pure noise."""
    p = torch.nn.Parameter(torch.ones(3))
    worth = weights[0] * sum(weights) / sum(w * w for w in weights)

    def overshoot(**options):
        return options_of(make([p], lr=0.01, **options).param_groups[0]).overshoot

    assert overshoot(hypergrad_lr="auto") == pytest.approx(control.AUTO_OVERSHOOT / worth, rel=1e-9)
    assert overshoot(hypergrad_lr="auto", overshoot=0.3) == 0.3
    assert overshoot() is None


def test_groups_of_one_alpha_may_average_differently():
    p, q = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    groups = [{"params": [p], "momentum": 0.9}, {"params": [q]}]
    optimizer = SGDHD(groups, lr=0.01, hypergrad_lr="auto", shared_alpha=True)
    for _ in range(3):
        (p.square().sum() + q.square().sum()).backward()
        optimizer.step()
    assert optimizer.param_groups[0]["lr"] == optimizer.param_groups[1]["lr"] != 0.01


@pytest.mark.parametrize("rule", ["additive", "auto"])
def test_decoupled_decay_is_left_out_of_the_direction_also_on_the_way_to_a_final_learning_rate(rule):
    p = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
    options = dict(weight_decay=0.5, rule=rule, hypergrad_lr=0.01, final_lr=0.01)
    optimizer = AdamWHD([p], lr=0.5, **options)
    (group,) = optimizer.param_groups
    direction = torch.zeros(3, dtype=torch.float64)
    for t in range(1, 8):
        optimizer.zero_grad()
        ((p - 1) ** 4).sum().backward()
        before, h = p.detach().clone(), float(p.grad @ direction)
        optimizer.step()
        assert group["hypergrad"] == pytest.approx(h, rel=1e-9, abs=1e-12)
        share = 1 / t**2  # of alpha in the step, the paper's way to the final learning rate
        direction = (p.detach() - before) / (share * group["lr"] + (1 - share) * 0.01)


def test_decoupled_decay_counts_in_the_length_that_the_multiplicative_rule_divides_by():
    p = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
    optimizer = AdamWHD([p], lr=0.5, weight_decay=0.5, rule="multiplicative", hypergrad_lr=0.1)
    alpha, direction = 0.5, None
    for _ in range(5):
        optimizer.zero_grad()
        ((p - 1) ** 4).sum().backward()
        before, g = p.detach().clone(), p.grad.clone()
        optimizer.step()
        if direction is not None:
            alpha *= 1 - 0.1 * float(g @ direction / (g.norm() * direction.norm()))
        assert optimizer.learning_rates() == [pytest.approx(alpha, rel=1e-12)]
        direction = (p.detach() - before) / alpha


HOSTILE = [-1.0, 1e30, -1e30, INF, NAN, -INF, 3.0, 0.0, 1e-300]
BOUNDED = [
    Control(min_lr=1e-5, max_lr=0.1, skip_nonfinite="alpha"),
    Control(rule="log", min_lr=1e-5, max_lr=0.1, skip_nonfinite="alpha"),
    Control(max_change=0.5, skip_nonfinite="alpha"),
    Control(rule="multiplicative", skip_nonfinite="alpha"),
    Control(rule="curvature", max_change=0.5, skip_nonfinite="alpha"),
    Control(rule="auto"),
    Control(scaling="adagrad", max_change=0.5, skip_nonfinite="alpha"),
    Control(scaling="adam", min_lr=0.0, max_lr=1.0, skip_nonfinite="alpha"),
]


@pytest.mark.parametrize("options", BOUNDED, ids=str)
def test_guarded_alpha_stays_finite_and_positive_whatever_it_meets(options):
    alphas = follow(HOSTILE, [-1.0, -2.0, -1e20, -1.0, -INF, -1.0, 0.0, 0.0, -1.0], options)
    if options.rule == "auto":  # that looks at more than h
        alphas += follow(HOSTILE, [-1e-300, NAN, -1.0, -1e300, 1.0, 0.0, -INF, NAN, -1e-320], options)
    assert all(math.isfinite(a) and a >= 0 for a in alphas), alphas


@pytest.mark.parametrize("number", [float, torch.tensor], ids=["float", "tensor"])
@pytest.mark.parametrize(("h", "slope"), [(NAN, NAN), (1.0, NAN), (NAN, -INF), (-INF, INF)])
def test_a_first_slope_that_is_no_number_is_no_gain_for_ever(h, slope, number):
    """As after weights that are loaded again because the first gradient was not finite."""
    options = Control(rule="auto")
    alpha, state = step_size(number(0.01), options, control.initial_state(options))
    alpha, state = next_alpha(alpha, number(h), 1.0, options, state, slope=number(slope))
    alpha, state = step_size(alpha, options, state)
    _, state = next_alpha(alpha, number(-0.5), 1.0, options, state, slope=number(-1.0))
    assert state["gain_sum"] == pytest.approx(float(alpha) * 1.5 / 2)
    assert state["gain_mean"] == pytest.approx(0.1 * float(alpha) * 1.5 / 2)


FINDERS = [
    dict(),
    dict(rule="multiplicative", hypergrad_lr=0.02),
    dict(rule="log", hypergrad_lr=0.01, overshoot=0.1),
    dict(rule="log", scaling="adagrad", hypergrad_lr=0.01),
    dict(rule="curvature", hypergrad_lr=0.5, max_change=1.0),
    dict(scaling="adam", hypergrad_lr=1e-4),
    dict(hypergrad_lr="auto"),
]


@pytest.mark.parametrize("way", [{}, {"foreach": True}, {"fused": True}, {"capturable": True}], ids=str)
@pytest.mark.parametrize("lr", [0.01, torch.tensor(0.01, dtype=torch.float64)], ids=["float", "tensor"])
@pytest.mark.parametrize("options", FINDERS, ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_gradients_of_zero_leave_alpha_and_a_loss_that_is_switched_on_then_trains(name, options, lr, way):
    params = tensors()
    optimizer = make(name, params, lr=lr, **options, **way)
    for _ in range(100):
        for p in params:
            p.grad = torch.zeros_like(p)
        optimizer.step()
        assert optimizer.learning_rates() == [0.01]
    before = sum(loss_of(params, t).item() for t in range(20))
    train(optimizer, params, 40)
    assert sum(loss_of(params, t).item() for t in range(20)) < 0.9 * before
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()  # the slope before was not zero, and this gradient may be the bottom of a parabola
    alpha = optimizer.learning_rates()
    for _ in range(50):
        optimizer.step()
    coasts = options.get("scaling") == "adam"
    assert optimizer.learning_rates() == pytest.approx(alpha, rel=0.5 if coasts else 1e-12)


@pytest.mark.parametrize("rule", ["curvature", "auto"])
def test_what_is_known_of_a_parabola_outlasts_gradients_of_zero(rule):
    """Between two real hypergradients any number of zeros makes no difference."""
    options, h, s = Control(rule=rule), [-1.0, -0.5], [-2.0, -1.5]
    straight = follow(h, s, options)
    interrupted = follow([h[0], *[0.0] * 200, h[1]], [s[0], *[0.0] * 200, s[1]], options)
    assert interrupted[0] == interrupted[200] == straight[0]
    if rule == "auto":
        assert interrupted[-1] == straight[-1]
    else:  # the older measurement has faded, and the newer one alone counts: kappa = (h - s) / alpha
        newton = 0.1 * 0.5 / (1.0 / straight[0])
        assert interrupted[-1] == pytest.approx(straight[0] + newton, rel=1e-6)


@pytest.mark.parametrize("h", [INF, -INF])
def test_a_hypergradient_that_is_not_finite_is_no_curvature_for_ever(h):
    options = Control(rule="curvature", skip_nonfinite="alpha")
    before, skipped, after = follow([-1.0, h, -0.5], [-2.0, -2.0, -1.5], options)
    assert before == skipped < after


@pytest.mark.parametrize("options", [*BOUNDED, Control(), Control(rule="log")], ids=str)
def test_a_stack_moves_each_model_as_if_it_were_alone(options):
    rng = torch.Generator().manual_seed(0)
    h = torch.randn(6, 4, generator=rng, dtype=torch.float64)
    s = -torch.rand(6, 4, generator=rng, dtype=torch.float64)
    h[3, 1] = NAN
    h[0, 2] = s[0, 2] = h[4, 3] = s[4, 3] = 0.0
    beta = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    alone = [follow(h[:, k].tolist(), s[:, k].tolist(), options, 0.01, float(beta[k])) for k in range(4)]
    stacked = follow(h.unbind(), s.unbind(), options, torch.full((4,), 0.01, dtype=torch.float64), beta)
    torch.testing.assert_close(
        torch.stack(stacked).T, torch.tensor(alone, dtype=torch.float64), rtol=1e-12, atol=0, equal_nan=True
    )


def test_one_compiled_graph_serves_every_value():
    options = Control(rule="auto", min_lr=1e-8, max_lr=1.0)
    compiled = torch.compile(
        lambda a, h, s, state: next_alpha(a, h, 1.0, options, state, slope=s), backend="eager", fullgraph=True
    )
    state = {name: torch.zeros((), dtype=torch.float64) for name in control.initial_state(options)}
    state["step_size"] = torch.tensor(0.01, dtype=torch.float64)
    a, h, s = (torch.tensor(v, dtype=torch.float64) for v in (0.01, 0.5, -1.0))
    got, state = compiled(a, h, s, state)
    assert (
        got == next_alpha(0.01, 0.5, 1.0, options, control.initial_state(options) | {"step_size": 0.01}, slope=-1.0)[0]
    )


def test_the_learning_rate_passes_over_to_the_final_one():
    options = Control(final_lr=0.5)
    state, gammas = control.initial_state(options), []
    for _ in range(4):
        gamma, state = step_size(2.0, options, state)
        gammas.append(gamma)
    assert gammas == pytest.approx([2.0 / t**2 + 0.5 * (1 - 1 / t**2) for t in (1, 2, 3, 4)])
    assert step_size(2.0, Control(), {}) == (2.0, {})


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (dict(rule="newton"), "rule is 'newton'"),
        (dict(scaling="sgd"), "scaling is 'sgd'"),
        (dict(skip_nonfinite=True), "skip_nonfinite is True"),
        (dict(max_lr="1"), "max_lr is '1'"),
        (dict(min_lr=NAN), "min_lr is nan"),
        (dict(max_change=0), "max_change is 0"),
        (dict(overshoot=1.0), "overshoot is 1.0"),
        (dict(overshoot=-0.1), "overshoot is -0.1"),
        (dict(transition=0.0), "transition is 0.0"),
        (dict(final_lr=-1.0), "final_lr is -1.0"),
        (dict(min_lr=0.1, max_lr=0.01), "min_lr is 0.1"),
        (dict(scaling="adam", rule="auto"), "scaling is 'adam'"),
    ],
)
def test_a_wrong_option_is_refused_in_one_sentence(options, name):
    with pytest.raises(ValueError, match=name) as refused:
        Control(**options)
    assert str(refused.value).endswith(".") and "\n" not in str(refused.value)
    with pytest.raises(ValueError, match=name):
        make("sgd", tensors(), **options)


def test_a_misspelt_guard_and_a_zero_that_cannot_grow_are_refused():
    with pytest.raises(TypeError, match="no argument max_lrr"):
        make("adam", tensors(), max_lrr=1.0)
    with pytest.raises(TypeError, match="no argument hypergrad:"):
        make("adam", tensors(), hypergrad="auto")
    with pytest.raises(TypeError, match="no argument slope:"):
        make("adam", tensors(), slope=0.1)
    with pytest.raises(ValueError, match=r"hypergrad is 'auto': .* did you mean hypergrad_lr\?"):
        SGDHD([{"params": tensors(), "hypergrad": "auto"}], lr=0.01)
    with pytest.raises(ValueError, match="lr is 0"):
        make("adam", tensors(), lr=0.0, hypergrad_lr="auto")


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("alpha", [1e-6, 1e-4])
def test_hypergrad_lr_auto_trains_from_a_learning_rate_far_too_small(name, alpha):
    params = tensors()
    train(make(name, params, lr=alpha, hypergrad_lr="auto"), params, 150)
    reached = sum(loss_of(params, t).item() for t in range(500, 520)) / 20
    fixed = tensors()
    train(make(name, fixed, lr=alpha, hypergrad_lr=0.0), fixed, 150)
    assert reached < 0.8 * sum(loss_of(fixed, t).item() for t in range(500, 520)) / 20
    assert reached < 0.8


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("options", [dict(hypergrad_lr="auto"), dict(scaling="adam", final_lr=0.01, hypergrad_lr=1e-3)])
def test_guards_survive_a_checkpoint(name, options):
    params, copies = tensors(), tensors()
    optimizer, other = make(name, params, **options), make(name, copies, **options)
    train(optimizer, params, 7)
    train(other, copies, 7)
    resumed = make(name, copies, lr=0.5, **options)
    resumed.load_state_dict(other.state_dict())
    assert train(optimizer, params, 7, start=7) == train(resumed, copies, 7, start=7)
    torch.testing.assert_close(flat(params), flat(copies), rtol=0, atol=0)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("options", [dict(hypergrad_lr="auto"), dict(rule="curvature", hypergrad_lr=0.3, max_change=1)])
def test_a_tensor_learning_rate_moves_like_a_float(name, options):
    params, others = tensors(), tensors()
    floats = train(make(name, params, lr=0.01, **options), params, 12)
    lr = torch.tensor(0.01, dtype=torch.float64)
    torch.testing.assert_close(floats, train(make(name, others, lr=lr, **options), others, 12), rtol=1e-9, atol=0)


@pytest.mark.parametrize("l2", [0.0, 0.1])
@pytest.mark.parametrize("name", METHODS)
def test_the_slope_that_is_remembered_is_that_of_the_last_steps_start(name, l2):
    """s_{t-1} = g_{t-1} . D_{t-1}, recovered here from the parameters' last move: D = move / alpha."""
    params = tensors()
    optimizer = make(name, params, hypergrad_lr="auto", weight_decay=l2)
    train(optimizer, params, 4)
    before = flat(params).clone()
    [alpha] = train(optimizer, params, 1, start=4)
    g = torch.cat([p.grad.reshape(-1) for p in params]) + l2 * before
    assert optimizer.param_groups[0]["slope"] == pytest.approx(float(g @ (flat(params) - before)) / alpha, rel=1e-6)


@pytest.mark.parametrize("second", [1e-3, 0.0])
def test_the_multiplicative_rule_keeps_its_bound_with_a_tolerance_too(second):
    """The tolerated slope is the last step's: beside a far smaller gradient it would move alpha by any factor."""
    p = torch.zeros(1, requires_grad=True)
    optimizer = SGDHD([p], lr=1e-2, rule="multiplicative", hypergrad_lr=0.02, overshoot=0.3)
    for g in (1e3, second):
        p.grad = torch.full((1,), g)
        optimizer.step()
    assert optimizer.learning_rates() == [pytest.approx(1e-2 * (1.02 if second else 1.0))]


def test_the_curvature_is_measured_along_the_step_that_was_taken():
    """On a parabola it is exact, also where the step passes over to another learning rate than alpha."""
    options, slope, kappa, alpha = Control(rule="curvature", final_lr=0.03, transition=3.0), -2.0, 50.0, 0.001
    state = control.initial_state(options)
    for _ in range(5):
        gamma, state = step_size(alpha, options, state)
        alpha, state = next_alpha(alpha, slope + kappa * gamma, 0.5, options, state, slope=slope)
        assert state["curvature_rise"] / state["curvature_run"] == pytest.approx(kappa)
