"""What happens in a training loop that nobody planned: values written into groups, lost runs, odd gradients."""

import copy
import io
import math

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

from hdlib import SGDHD, AdamHD, AdamWHD

METHODS = [
    (SGDHD, {}),
    (SGDHD, dict(momentum=0.9)),
    (SGDHD, dict(momentum=0.9, nesterov=True)),
    (AdamHD, {}),
    (AdamWHD, dict(weight_decay=0.01)),
]
WAYS = [dict(foreach=False), dict(foreach=True), dict(fused=True)]


def ones(*shape):
    return torch.ones(*shape, requires_grad=True)


def step(optimizer, *gradients):
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for p, gradient in zip(params, gradients, strict=True):
        p.grad = torch.full_like(p, gradient)
    optimizer.step()


@pytest.mark.parametrize("way", WAYS)
def test_nesterov_without_momentum_is_plain_descent(way):
    """A scheduler may take the momentum to zero, and torch then descends along the gradient."""
    p, q = ones(1000), ones(1000)
    ours = SGDHD([p], lr=0.01, momentum=0.9, nesterov=True, hypergrad_lr=1e-30, **way)
    theirs = torch.optim.SGD([q], lr=0.01, momentum=0.9, nesterov=True)
    for t in range(4):
        ours.param_groups[0]["momentum"] = theirs.param_groups[0]["momentum"] = 0.9 if t < 2 else 0.0
        step(ours, 1.0)
        step(theirs, 1.0)
    torch.testing.assert_close(p, q)


@pytest.mark.parametrize(("before", "after"), [(10, 1000), (1000, 10)])
@pytest.mark.parametrize(("cls", "settings"), METHODS)
def test_a_state_of_another_shape_is_refused(cls, settings, before, after):
    trained, other = (cls([ones(size)], **settings, fused=True) for size in (before, after))
    step(trained, 1.0)
    other.load_state_dict(trained.state_dict())
    with pytest.raises(RuntimeError, match=rf"shape \({after},\) has a gradient or a state of shape \({before},\)"):
        step(other, 1.0)


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize(("cls", "settings"), METHODS)
def test_a_shared_alpha_that_is_lost_ends_in_numbers_and_not_in_an_error(cls, settings, capturable):
    groups = [{"params": [ones(3)]}, {"params": [ones(3)]}]
    optimizer = cls(groups, **settings, hypergrad_lr=1e-3, shared_alpha=True, capturable=capturable)
    for t in range(4):
        step(optimizer, *[math.nan if t == 1 else 1.0] * 2)
    assert all(map(math.isnan, optimizer.learning_rates()))


@pytest.mark.parametrize("way", [{}, *WAYS])
def test_an_alpha_that_the_bias_correction_lifts_beyond_single_precision_is_no_error(way):
    """Adam's step is alpha / (1 - b1^t) long, here 5e38, where alpha itself is still a float32."""
    p = ones(300)
    optimizer = AdamHD([p], hypergrad_lr=1e-30, **way)
    step(optimizer, 1.0)
    optimizer.param_groups[0]["lr"] = 1e38
    step(optimizer, 1.0)
    assert not torch.isfinite(p).any()


@pytest.mark.parametrize("way", [{}, *WAYS])
@pytest.mark.parametrize(("cls", "settings"), METHODS)
def test_the_first_step_that_goes_anywhere_is_limited(cls, settings, way):
    """A loss whose weight rises from zero, or a first minibatch that is masked, takes steps of length zero."""
    p = ones(100)
    settings = settings | dict(weight_decay=0.0)
    optimizer = cls([p], lr=10.0, hypergrad_lr="auto", **way, **settings)
    for gradient, most in (*[(0.0, 0.0)] * 300, (1.0, 0.301)):  # of which Adam's corrections are no longer those of 1
        before = p.detach().clone()
        step(optimizer, gradient)
        assert (p - before).norm() <= most * before.norm()


@pytest.mark.parametrize("way", [{}, *WAYS])
def test_the_first_step_that_goes_anywhere_counts_the_velocity_of_a_checkpoint(way):
    p = ones(100)
    native = torch.optim.SGD([p], lr=1e-6, momentum=0.9, nesterov=True)
    for _ in range(9):
        step(native, 1.0)
    optimizer = SGDHD([p], hypergrad_lr="auto", nesterov=True, momentum=0.9, **way)
    optimizer.load_state_dict(native.state_dict())
    optimizer.param_groups[0]["lr"] = 10.0
    before = p.detach().clone()
    step(optimizer, 1.0)
    assert (p - before).norm().item() == pytest.approx(0.3 * before.norm().item(), rel=1e-4)


@pytest.mark.parametrize("tensor", [False, True])
@pytest.mark.parametrize(("cls", "settings"), METHODS)
def test_a_distributed_checkpoint_of_an_optimiser_that_has_not_stepped_changes_nothing(cls, settings, tensor):
    """torch takes a step with zero gradients and a learning rate of 0 there, to see what the state is made of."""
    outcomes = []
    for asked in (False, True):
        torch.manual_seed(0)
        net = torch.nn.Linear(8, 8)
        start = net.weight.detach().clone()
        lr = torch.tensor(9.0) if tensor else 9.0
        settings = settings | dict(weight_decay=0.01, min_lr=1e-3, hypergrad_lr="auto")
        optimizer = cls(net.parameters(), lr=lr, **settings)
        if asked:
            get_optimizer_state_dict(net, optimizer)
            assert torch.equal(net.weight, start)
        (5 * net(torch.ones(8))).sum().backward()
        optimizer.step()
        outcomes.append((net.weight - start).norm() / start.norm())
    assert outcomes[0] < 0.301 and outcomes[1] < 0.301


@pytest.mark.parametrize("way", [{}, *WAYS, dict(foreach=False, capturable=True), dict(lr=torch.tensor(1e-3))])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_a_checkpoint_of_a_step_that_was_skipped_has_no_direction(way, amsgrad):
    """torch.optim.Adam leaves counts and moments of zero where GradScaler skips its first step, if it is fused."""
    p, q = ones(3), ones(3)
    native = torch.optim.Adam([q], amsgrad=amsgrad, fused=True)
    native.found_inf, native.grad_scale = torch.ones(()), None
    step(native, 1.0)
    [state] = native.state.values()
    assert state["step"] == 0
    native.found_inf = None
    optimizer = AdamHD([p], amsgrad=amsgrad, **way)
    loaded = native.state_dict()
    loaded["param_groups"][0]["fused"] = way.get("fused", False)
    loaded["param_groups"][0] |= {name: value for name, value in way.items() if name != "lr"}
    optimizer.load_state_dict(loaded)
    for _ in range(3):
        step(optimizer, 1.0)
        step(native, 1.0)
        assert optimizer.param_groups[0]["hypergrad"] <= 0
    torch.testing.assert_close(p, q, rtol=1e-5, atol=0)


def test_a_step_in_the_middle_is_not_limited_because_a_gradient_was_zero():
    p = ones(100)
    optimizer = SGDHD([p], lr=1e-3, momentum=0.9, hypergrad_lr="auto")
    for gradient in (1.0, 1.0, 0.0):
        step(optimizer, gradient)
    optimizer.param_groups[0]["lr"] = 10.0
    step(optimizer, 1.0)
    assert optimizer.learning_rates()[0] > 9


@pytest.mark.parametrize("way", [{}, *WAYS])
@pytest.mark.parametrize(("cls", "settings"), METHODS)
def test_the_parts_of_a_complex_number_go_down_their_gradient(cls, settings, way):
    """Autograd leaves a gradient negated in memory there."""
    a, b = torch.tensor(1.0, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    (torch.complex(a, b).conj() * torch.tensor(2 + 3j)).imag.sum().backward()
    assert b.grad.is_neg() and b.grad == -2
    cls([a, b], lr=0.1, **settings, **way).step()
    assert b > 1 and a < 1


@pytest.mark.parametrize("cls", [SGDHD, AdamHD])
def test_a_slope_of_before_a_pause_is_not_taken_for_that_of_the_last_step(cls):
    p = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = cls([p], lr=1e-2, hypergrad_lr="auto")

    def step(target):
        optimizer.zero_grad()
        ((p - target) ** 2).sum().backward()
        optimizer.step()

    step(100.0)
    step(100.0)
    [group] = optimizer.param_groups
    group["hypergrad_lr"] = 0.0
    step(100.0)
    group["hypergrad_lr"] = "auto"
    before = group["lr"]
    step(0.0)
    assert group["lr"] == before  # nothing is known yet of the step in between
    step(0.0)
    assert group["lr"] != before


@pytest.mark.parametrize(
    ("beta", "kept"), [(None, 1e-8), (np.float32(1e-4), float(np.float32(1e-4))), (np.int64(0), 0.0)]
)
def test_a_beta_that_is_written_is_a_number_in_full_precision(beta, kept):
    optimizer = AdamHD([p := torch.nn.Parameter(torch.ones(3))], lr=1e-3)
    optimizer.param_groups[0]["hypergrad_lr"] = beta
    for _ in range(3):
        p.grad = torch.ones(3)
        optimizer.step()
    assert optimizer.param_groups[0]["hypergrad_lr"] == kept
    assert type(optimizer.param_groups[0]["lr"]) is float


@pytest.mark.parametrize("lr", [5e-324, 1e-322, 1e-320])
def test_auto_trains_from_the_smallest_numbers_that_there_are(lr):
    p = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = SGDHD([p], lr=lr, hypergrad_lr="auto")
    for _ in range(20):
        optimizer.zero_grad()
        (p**2).sum().backward()
        optimizer.step()
    assert lr <= optimizer.param_groups[0]["lr"] < 1e-300


def test_auto_that_was_written_survives_a_copy_and_a_checkpoint():
    p = ones(3)
    optimizer = SGDHD([p])
    step(optimizer, 1.0)
    optimizer.param_groups[0]["hypergrad_lr"] = "auto"
    loaded = SGDHD([p])
    loaded.load_state_dict(optimizer.state_dict())
    for found in (copy.deepcopy(optimizer), loaded):
        assert found.param_groups[0]["rule"] == "auto"


def test_auto_may_be_written_beside_an_alpha_below_its_bound_but_not_at_zero():
    optimizer = SGDHD([ones(3)], lr=0.01, min_lr=1e-3)
    optimizer.param_groups[0] |= {"lr": 1e-4, "hypergrad_lr": "auto"}
    step(optimizer, 1.0)
    optimizer = SGDHD([ones(3)], lr=0.01)
    optimizer.param_groups[0] |= {"lr": 0.0, "hypergrad_lr": "auto"}
    with pytest.raises(ValueError, match="lr is 0 with rule='auto'"):
        step(optimizer, 1.0)


@pytest.mark.parametrize("number", [np.float32, np.float64])
def test_numbers_of_numpy_make_a_checkpoint_that_can_be_read(number):
    optimizer = SGDHD([ones(3)], lr=number(0.1), hypergrad_lr=number(1e-4), weight_decay=number(1e-4))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    assert torch.load(file, weights_only=True)["param_groups"][0]["hypergrad_lr"] == pytest.approx(1e-4)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("nesterov", [False, True])
def test_h_never_comes_from_a_direction_of_earlier(way, nesterov):
    """The momentum goes to zero and comes back, or the kind of momentum changes: h is right, or zero where unknown."""
    p = torch.ones(3, dtype=torch.float64, requires_grad=True)
    optimizer = SGDHD([p], lr=0.1, momentum=0.9, hypergrad_lr=1e-12, **way)
    known, direction = [], torch.zeros_like(p)
    for t in range(12):
        group = optimizer.param_groups[0]
        if nesterov:
            group["nesterov"] = t // 3 % 2 == 1
        else:
            group["momentum"] = 0.9 if t // 3 % 2 == 0 else 0.0
        before, gradient = p.detach().clone(), t + 1.0
        step(optimizer, gradient)
        known.append(group["hypergrad"] == pytest.approx(gradient * float(direction.sum()), rel=1e-9))
        assert known[-1] or group["hypergrad"] == 0
        direction = (p.detach() - before) / group["lr"]
    assert known.count(False) == 3  # at the changes


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("momentum", [dict(), dict(momentum=0.9, nesterov=True)], ids=["plain", "nesterov"])
def test_h_is_of_no_direction_from_before_alpha_rested(way, momentum):
    optimizer, told = SGDHD([ones(2)], lr=0.1, **momentum, **way), []
    for t, beta in enumerate((1e-3, 0.0, 1e-3, 1e-3)):
        optimizer.param_groups[0]["hypergrad_lr"] = beta
        step(optimizer, t + 1.0)
        told.append(optimizer.param_groups[0]["hypergrad"] != 0)
    assert told == [False, False, False, True]


@pytest.mark.parametrize("way", [{}, *WAYS])
def test_amsgrad_may_begin_later(way):
    optimizer = AdamHD([ones(3)], lr=0.01, hypergrad_lr=1e-6, **way)
    for t in range(6):
        optimizer.param_groups[0]["amsgrad"] = t >= 3
        step(optimizer, 1.0)
    assert optimizer.learning_rates()[0] == pytest.approx(0.01, rel=0.01)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_an_h_that_is_skipped_is_told_with_its_sign(sign):
    """Downhill twice is an h below zero."""
    p = torch.nn.Parameter(torch.ones(1))
    optimizer = SGDHD([p], lr=1e-3, hypergrad_lr=1e-3, skip_nonfinite="step")
    for size in (1e18, sign * 1e30):
        p.grad = torch.full_like(p, size)
        optimizer.step()
    assert optimizer.param_groups[0]["hypergrad"] == -sign * float("inf")


@pytest.mark.parametrize("cls", [SGDHD, AdamHD])
def test_a_step_is_left_out_whose_gradient_is_not_finite_by_its_l2_term_alone(cls):
    p = torch.nn.Parameter(torch.full((2,), 1e200, dtype=torch.float64))
    optimizer = cls([p], weight_decay=0.1, skip_nonfinite="step")
    step(optimizer, 1.0)
    assert (p == 1e200).all() and not optimizer.state[p]


def test_a_group_takes_over_a_shared_alpha_wherever_that_has_gone():
    optimizer = SGDHD([ones(3)], lr=0.01, hypergrad_lr=1e-3, shared_alpha=True, min_lr=1e-3)
    optimizer.param_groups[0]["lr"] = 0.0  # a scheduler's
    optimizer.add_param_group({"params": [ones(3)]})
    assert optimizer.learning_rates() == [0.0, 0.0]
    with pytest.raises(ValueError, match="outside of min_lr"):
        optimizer.add_param_group({"params": [ones(3)], "lr": 0.0})


def test_an_alpha_that_is_no_number_is_named():
    optimizer = SGDHD([ones(3)], lr=0.01)
    optimizer.param_groups[0]["lr"] = "0.1"
    with pytest.raises(ValueError, match=r"lr must be a number, not the string '0\.1'"):
        step(optimizer, 1.0)


@pytest.mark.parametrize("beta", [1e-3, "auto"])
@pytest.mark.parametrize(("cls", "settings"), METHODS)
def test_groups_may_be_used_again_for_an_optimiser_that_knows_nothing_yet(cls, settings, beta):
    groups = [{"params": iter([ones(3)])}, {"params": [ones(3)], "lr": 0.2}]
    for _ in range(2):
        optimizer = cls(groups, lr=0.1, hypergrad_lr=beta, **settings)
        assert optimizer.learning_rates() == [0.1, 0.2] and len(optimizer.param_groups[0]["params"]) == 1
        assert {(group["hypergrad"], group["slope"]) for group in optimizer.param_groups} == {(0.0, 0.0)}
        for _ in range(3):
            step(optimizer, 1.0, 1.0)
        assert optimizer.learning_rates() != [0.1, 0.2]
    assert cls(groups, lr=0.3, hypergrad_lr=1e-4, **settings).learning_rates() == [0.3, 0.2]


@pytest.mark.parametrize("cls", [SGDHD, AdamHD])
def test_an_optimiser_is_made_with_the_defaults_of_another(cls):
    first = cls([ones(3)], lr=0.2, hypergrad_lr=1e-3, max_lr=0.5)
    again = cls([ones(3)], **first.defaults)
    assert again.defaults == first.defaults and again.param_groups[0]["hypergrad_max_lr"] == 0.5


@pytest.mark.parametrize("cls", [SGDHD, AdamHD])
def test_alpha_survives_an_error_in_the_middle_of_a_step(cls, monkeypatch):
    optimizer = cls([ones(3)], lr=0.5, hypergrad_lr=1e-3, final_lr=0.01)
    for _ in range(3):
        step(optimizer, 1.0)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(optimizer, "_descend", interrupted)
    optimizer.param_groups[0]["hypergrad_lr"] = 0.0  # alpha does not move any more
    before = optimizer.learning_rates()
    with pytest.raises(KeyboardInterrupt):
        step(optimizer, 1.0)
    assert optimizer.learning_rates() == before


def test_a_small_beta_is_not_lost_in_the_precision_of_what_somebody_wrote():
    start = np.float32(0.01)
    optimizer = SGDHD([ones(3)], lr=1.0, hypergrad_lr=1e-11)
    optimizer.param_groups[0]["lr"] = start
    for _ in range(20):
        step(optimizer, 1.0)
    assert optimizer.learning_rates() == [pytest.approx(float(start) + 19 * 3e-11, rel=1e-13)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_goes_on_when_the_model_is_converted_to_double_precision(way, momentum):
    """As torch's does; Adam's moments have to be converted there, too."""
    p, q = ones(5), ones(5)
    optimizer = SGDHD([p], lr=0.1, hypergrad_lr=1e-3, momentum=momentum, **way)
    reference = SGDHD([q], lr=0.1, hypergrad_lr=1e-3, momentum=momentum, foreach=False)
    step(optimizer, 0.5)
    step(reference, 0.5)
    p.data, p.grad = p.data.double(), None
    for _ in range(2):
        step(optimizer, 0.25)
        step(reference, 0.25)
    assert p.dtype == torch.float64
    torch.testing.assert_close(p.float(), q)
    assert optimizer.learning_rates() == pytest.approx(reference.learning_rates())


@pytest.mark.parametrize("cls", [SGDHD, AdamHD])
def test_without_groups_a_step_goes_nowhere(cls):
    optimizer = cls([ones(3)], lr=0.1)
    optimizer.param_groups.clear()
    assert optimizer.step(lambda: 2.0) == 2.0


@pytest.mark.parametrize(("cls", "settings"), METHODS)
def test_a_tensor_written_into_groups_stays_the_users_own(cls, settings):
    """As with a number, each group goes on with an alpha of its own, in double precision."""
    outcomes = []
    for lr in (0.05, torch.tensor(0.05)):
        optimizer = cls([{"params": [ones(3)]}, {"params": [ones(2)]}], **settings, hypergrad_lr=1e-9)
        for group in optimizer.param_groups:
            group["lr"] = lr
        for _ in range(3):
            step(optimizer, 1.0, 2.0)
        assert float(lr) == pytest.approx(0.05)
        outcomes.append([alpha - float(lr) for alpha in optimizer.learning_rates()])
    assert outcomes[0] == pytest.approx(outcomes[1], rel=1e-6) and 0 not in outcomes[0]
    assert outcomes[0][0] != outcomes[0][1]


@pytest.mark.parametrize("group", [ones(2), [ones(2)]])
def test_a_group_that_is_no_dict_is_refused(group):
    with pytest.raises(TypeError, match="give a dict, such as"):
        SGDHD([ones(2)]).add_param_group(group)


@pytest.mark.parametrize("way", [{}, *WAYS])
@pytest.mark.parametrize(("cls", "settings"), METHODS)
def test_a_backward_pass_that_would_mix_weights_of_two_steps_is_refused(cls, settings, way):
    """Which autograd can only do where it is told that the step wrote into the weights."""
    w = torch.nn.Parameter(torch.eye(3))
    optimizer = cls([w], lr=0.1, hypergrad_lr=1e-3, **settings, **way)
    outputs = (torch.ones(2, 3) @ w) @ w
    outputs.sum().backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        outputs.square().sum().backward()


@pytest.mark.parametrize("way", [{}, *WAYS])
@pytest.mark.parametrize(("cls", "settings"), METHODS)
def test_a_parameter_that_shows_other_numbers_than_its_memory_holds_is_refused(cls, settings, way):
    numbers = torch.tensor([1 + 2j, 3 - 1j])
    for view, named in ((numbers.conj(), "resolve_conj"), (numbers.conj().imag, "resolve_neg")):
        w = torch.nn.Parameter(view)
        w.grad = torch.ones_like(w)
        optimizer = cls([w], lr=0.1, hypergrad_lr=1e-3, **settings, **way)
        with pytest.raises(RuntimeError, match=named):
            optimizer.step()
        assert optimizer.state_dict()["state"] == {}


@pytest.mark.parametrize(("cls", "settings"), METHODS)
def test_an_optimiser_is_made_again_from_anothers_defaults(cls, settings):
    first = cls([ones(3)], lr=0.02, hypergrad_lr="auto", max_lr=0.5, **settings)
    assert cls([ones(3)], **first.defaults).defaults == first.defaults


def test_adamws_decay_is_decoupled_though_it_goes_on_from_a_checkpoint_of_adam():
    adam, adamw = AdamHD([ones(2)], weight_decay=0.1), AdamWHD([ones(2)])
    adamw.load_state_dict(adam.state_dict())
    assert (adamw.param_groups[0]["decoupled_weight_decay"], adamw.param_groups[0]["weight_decay"]) == (True, 0.1)


def test_decay_that_is_not_decoupled_is_adams():
    with pytest.raises(ValueError, match="take AdamHD"):
        AdamWHD([ones(3)], decoupled_weight_decay=False)


def test_numbers_of_a_scheduler_in_torchs_groups_are_no_guards():
    native = torch.optim.Adam([ones(3)], lr=0.01)
    torch.optim.lr_scheduler.OneCycleLR(native, 0.02, total_steps=60)
    (group,) = AdamHD(native.param_groups, hypergrad_lr="auto").param_groups
    assert group["hypergrad_min_lr"] is group["hypergrad_max_lr"] is None and group["max_lr"] == 0.02


def test_a_bound_beside_the_start_of_a_schedule_is_a_bound():
    """`initial_lr` is what a run that resumes its scheduler has in its groups."""
    group = {"params": [ones(3)], "lr": 0.01, "initial_lr": 0.01, "max_lr": 0.02}
    optimizer = SGDHD([group], hypergrad_lr=0.1)
    for _ in range(4):
        step(optimizer, 1.0)
    assert optimizer.learning_rates() == [0.02]
