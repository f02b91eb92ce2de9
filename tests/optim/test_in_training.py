"""The optimisers among the rest of a training loop: scaler, clipping, schedules, and the guide's examples."""

import copy
import inspect
import math
import re
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from problem import ALPHA, METHODS, flat, loss_of, make, tensors, train
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR

from hdlib import SGDHD, AdamHD, AdamWHD
from hdlib.optim._group import options_of
from hdlib.optim.control import OPTIONS

GUIDE = Path(__file__).parents[2] / "book" / "guide.md"


class TestGradScaler:
    @pytest.mark.parametrize("way", [{}, {"fused": True}])
    @pytest.mark.parametrize("name", METHODS)
    def test_alpha_sees_the_unscaled_gradient_and_sleeps_through_skipped_steps(self, name, way):
        params, twin = tensors(dtype=torch.float32), tensors(dtype=torch.float32)
        optimizer, plain = make(name, params, **way), make(name, twin, **way)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        for t in range(8):
            optimizer.zero_grad()
            scaler.scale(loss_of(params, t)).backward()
            overflow = t in (2, 5)
            if overflow:
                params[0].grad[0, 0] = math.inf
            before = copy.deepcopy(optimizer.state_dict()["state"]), optimizer.learning_rates()
            scaler.step(optimizer)
            scaler.update()
            if overflow:
                torch.testing.assert_close(optimizer.state_dict()["state"], before[0], rtol=0, atol=0)
                assert optimizer.learning_rates() == before[1]
            else:
                train(plain, twin, 1, start=t)
        torch.testing.assert_close(flat(params), flat(twin), rtol=1e-5, atol=1e-6)
        assert optimizer.learning_rates() == pytest.approx(plain.learning_rates(), rel=1e-4)
        assert optimizer.learning_rates() != [ALPHA[name]]


@pytest.mark.parametrize("name", METHODS)
def test_the_hypergradient_is_that_of_the_clipped_gradient(name):
    """What is clipped is what moved the parameters, so it is what alpha is judged by: h = g_t . move / alpha."""
    params = tensors()
    optimizer = make(name, params)
    direction = torch.zeros_like(flat(params))
    for t in range(4):
        optimizer.zero_grad()
        loss_of(params, t).backward()
        whole = flat([p.grad for p in params])
        nn.utils.clip_grad_norm_(params, 0.1)
        clipped, before = flat([p.grad for p in params]), flat(params)
        assert whole.norm() > 0.2
        optimizer.step()
        assert optimizer.param_groups[0]["hypergrad"] == pytest.approx((clipped @ direction).item(), rel=1e-8)
        direction = (flat(params) - before) / optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize("name", METHODS)
def test_accumulated_gradients_count_as_one_minibatch(name):
    outcomes = []
    for pieces in (1, 4):
        params = tensors()
        optimizer = make(name, params)
        for t in range(6):
            optimizer.zero_grad()
            for _ in range(pieces):
                (loss_of(params, t) / pieces).backward()
            optimizer.step()
        outcomes.append((flat(params), optimizer.learning_rates()))
    torch.testing.assert_close(outcomes[0][0], outcomes[1][0], rtol=1e-12, atol=1e-12)
    assert outcomes[0][1] == pytest.approx(outcomes[1][1], rel=1e-12)


class TestSchedules:
    """A scheduler and the hypergradient write to the same alpha: the scheduler's factor applies to what was learnt."""

    RELATIVE: ClassVar = {
        "StepLR": lambda o: lr_scheduler.StepLR(o, 3, 0.5),
        "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 5], 0.5),
        "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 4),
        "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
        "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda t: 0.95),
        "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.5, 1.0, 5),
        "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 20),
        "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 20),
        "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=1),
        "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
            [lr_scheduler.LinearLR(o, 0.5, 1.0, 5), lr_scheduler.CosineAnnealingLR(o, 20)], optimizer=o
        ),
    }
    ABSOLUTE: ClassVar = {
        "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda t: 0.9**t),
        "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.02, total_steps=20, cycle_momentum=False),
        "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.05, 4, cycle_momentum=False),
        "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 8),
        "SWALR": lambda o: SWALR(o, 0.01, anneal_epochs=0),
    }
    MIXED: ClassVar = {
        "SequentialLR": lambda o: lr_scheduler.SequentialLR(
            o, [lr_scheduler.LinearLR(o, 0.5, 1.0, 5), lr_scheduler.ExponentialLR(o, 0.9)], [5]
        ),
    }

    @staticmethod
    def advance(*schedules):
        for schedule in schedules:
            schedule.step(*[1.0] if isinstance(schedule, lr_scheduler.ReduceLROnPlateau) else [])

    @pytest.mark.parametrize("tensor_lr", [False, True])
    @pytest.mark.parametrize("scheduler", RELATIVE)
    def test_a_schedule_that_multiplies_keeps_what_was_learnt(self, scheduler, tensor_lr):
        """Its factors are those that it gives torch.optim.SGD."""
        lr = torch.tensor(0.05, dtype=torch.float64) if tensor_lr else 0.05
        params = tensors()
        optimizer = SGDHD(params, lr=lr, hypergrad_lr=1e-3)
        native = torch.optim.SGD(tensors(), lr=0.05)
        schedule, fixed = self.RELATIVE[scheduler](optimizer), self.RELATIVE[scheduler](native)
        for t in range(10):
            (learnt,), before = train(optimizer, params, 1, start=t), native.param_groups[0]["lr"]
            native.step()
            self.advance(schedule, fixed)
            factor = native.param_groups[0]["lr"] / before
            assert optimizer.learning_rates() == [pytest.approx(learnt * factor, rel=1e-6)]
        assert optimizer.learning_rates()[0] != pytest.approx(native.param_groups[0]["lr"], rel=1e-3)

    @pytest.mark.parametrize("scheduler", ABSOLUTE)
    def test_a_schedule_that_sets_alpha_overwrites_what_was_learnt(self, scheduler):
        params = tensors()
        optimizer, native = SGDHD(params, lr=0.05, hypergrad_lr=1e-3), torch.optim.SGD(tensors(), lr=0.05)
        schedule, fixed = self.ABSOLUTE[scheduler](optimizer), self.ABSOLUTE[scheduler](native)
        for t in range(5):
            assert train(optimizer, params, 1, start=t) != [native.param_groups[0]["lr"]] or t == 0
            native.step()
            self.advance(schedule, fixed)
            assert optimizer.learning_rates() == [native.param_groups[0]["lr"]]

    def test_a_sequence_of_schedules_overwrites_what_was_learnt_at_its_milestone_alone(self):
        params = tensors()
        optimizer, native = SGDHD(params, lr=0.05, hypergrad_lr=1e-3), torch.optim.SGD(tensors(), lr=0.05)
        schedule, fixed = self.MIXED["SequentialLR"](optimizer), self.MIXED["SequentialLR"](native)
        kept = []
        for t in range(8):
            train(optimizer, params, 1, start=t)
            native.step()
            self.advance(schedule, fixed)
            kept.append(optimizer.learning_rates() != [native.param_groups[0]["lr"]])
        assert kept == [t not in (0, 4) for t in range(8)]  # nothing is learnt before the second step

    def test_a_sequence_that_goes_on_with_factors_keeps_what_was_learnt(self):
        def sequence(optimizer):
            parts = [
                lr_scheduler.ExponentialLR(optimizer, 0.9),
                lr_scheduler.MultiplicativeLR(optimizer, lambda t: 0.8),
            ]
            return lr_scheduler.SequentialLR(optimizer, parts, [5])

        params = tensors()
        optimizer, native = SGDHD(params, lr=0.05, hypergrad_lr=1e-3), torch.optim.SGD(tensors(), lr=0.05)
        schedule, fixed = sequence(optimizer), sequence(native)
        for t in range(8):
            (learnt,), before = train(optimizer, params, 1, start=t), native.param_groups[0]["lr"]
            native.step()
            self.advance(schedule, fixed)
            assert optimizer.learning_rates() == [pytest.approx(learnt * native.param_groups[0]["lr"] / before)]
        assert "unless what follows there is a\n`MultiplicativeLR`" in GUIDE.read_text()

    def test_the_guide_says_of_every_scheduler_what_it_does_to_alpha(self):
        rows = re.findall(r"^\| ([^|]*α[^|]*) \|([^|]*)\|$", GUIDE.read_text(), re.M)
        places = {what: set(re.findall(r"`(\w*(?:LR|Scheduler|Plateau|Restarts))`", names)) for what, names in rows}
        assert places["multiply α"] == set(self.RELATIVE)
        assert places["overwrite α"] == set(self.ABSOLUTE)
        assert places["multiply α, but overwrite it at each milestone"] == set(self.MIXED)
        known = {n for n in lr_scheduler.__all__ if n not in ("LRScheduler", "_LRScheduler")} | {"SWALR"}
        assert known == {*self.RELATIVE, *self.ABSOLUTE, *self.MIXED}

    @pytest.mark.parametrize("number", [float, np.float32])
    @pytest.mark.parametrize("scheduler", [*RELATIVE, *ABSOLUTE, *MIXED])
    def test_no_scheduler_touches_the_bounds_of_alpha(self, scheduler, number):
        params = tensors()
        groups = [{"params": params[:2], "max_lr": 0.3}, {"params": params[2:], "min_lr": 1e-6}]
        optimizer = SGDHD(groups, lr=number(0.05), hypergrad_lr=1e-3)
        before = [options_of(group) for group in optimizer.param_groups]
        assert [(options.min_lr, options.max_lr) for options in before] == [(None, 0.3), (1e-6, None)]
        schedule = {**self.RELATIVE, **self.ABSOLUTE, **self.MIXED}[scheduler](optimizer)
        for t in range(6):
            train(optimizer, params, 1, start=t)
            self.advance(schedule)
        assert [options_of(group) for group in optimizer.param_groups] == before

    def test_a_checkpoint_that_has_the_bounds_under_their_older_names_keeps_them(self):
        params = tensors()
        optimizer = SGDHD(params, max_lr=0.25)
        old = optimizer.state_dict()
        old["param_groups"][0]["max_lr"] = old["param_groups"][0].pop("hypergrad_max_lr")
        again = SGDHD(params)
        again.load_state_dict(old)
        assert options_of(again.param_groups[0]).max_lr == 0.25
        native = torch.optim.SGD(params, lr=0.01)
        lr_scheduler.OneCycleLR(native, 0.02, total_steps=20, cycle_momentum=False)
        again.load_state_dict(native.state_dict())  # whose max_lr is the schedule's
        assert options_of(again.param_groups[0]).max_lr == 0.25

    def test_any_schedule_can_be_written_as_one_that_multiplies(self):
        """The guide's recipe for warm-up and cosine: the ratio of two consecutive values."""

        def shape(t):
            return min(1.0, (t + 1) / 5) * 0.5 * (1 + math.cos(math.pi * t / 20))

        params, twin = tensors(), tensors()
        optimizer, fixed = (SGDHD(p, lr=0.05, hypergrad_lr=b) for p, b in ((params, 1e-3), (twin, 0.0)))
        schedules = [
            lr_scheduler.MultiplicativeLR(optimizer, lambda t: shape(t) / shape(t - 1)),
            lr_scheduler.LambdaLR(fixed, lambda t: shape(t) / shape(0)),
        ]
        learnt = 1.0
        for t in range(19):
            before = optimizer.learning_rates()[0]
            train(optimizer, params, 1, start=t)
            train(fixed, twin, 1, start=t)
            learnt *= optimizer.learning_rates()[0] / before
            for schedule in schedules:
                schedule.step()
            assert optimizer.learning_rates()[0] == pytest.approx(learnt * fixed.learning_rates()[0], rel=1e-9)
        assert abs(learnt - 1) > 0.01


class TestSharedAlpha:
    @pytest.mark.parametrize("rule", ["additive", "multiplicative", "curvature", "auto"])
    @pytest.mark.parametrize("name", METHODS)
    def test_groups_with_one_alpha_are_one_group(self, name, rule):
        outcomes = []
        for cut in (None, 2):
            params = tensors()
            groups = params if cut is None else [{"params": params[:cut]}, {"params": params[cut:]}]
            optimizer = make(name, groups, rule=rule, shared_alpha=True)
            alphas = train(optimizer, params, 20)
            assert len(set(optimizer.learning_rates())) == 1
            assert len({group["hypergrad"] for group in optimizer.param_groups}) == 1
            outcomes.append((alphas, flat(params)))
        assert outcomes[0][0] == pytest.approx(outcomes[1][0], rel=1e-12)
        torch.testing.assert_close(outcomes[0][1], outcomes[1][1], rtol=1e-12, atol=1e-12)

    def test_each_group_keeps_its_own_weight_decay_and_a_schedule_reaches_all(self):
        params = tensors()
        groups = [{"params": params[:2], "weight_decay": 0.1}, {"params": params[2:], "weight_decay": 0.0}]
        optimizer = AdamWHD(groups, lr=torch.tensor(0.01), hypergrad_lr=1e-5, shared_alpha=True)
        schedule = lr_scheduler.ExponentialLR(optimizer, 0.9)
        for t in range(4):
            train(optimizer, params, 1, start=t)
            schedule.step()
        alphas = optimizer.learning_rates()
        assert alphas[0] == alphas[1] != pytest.approx(0.01 * 0.9**4)
        again = AdamWHD(groups, lr=0.01, shared_alpha=True)
        again.load_state_dict(optimizer.state_dict())
        assert again.learning_rates() == alphas

    @pytest.mark.parametrize("differs", [{"lr": 0.5}, {"hypergrad_lr": 0.5}, {"rule": "multiplicative"}])
    def test_groups_that_start_apart_are_refused(self, differs):
        params = tensors()
        with pytest.raises(ValueError, match=rf"{next(iter(differs))} is .* with shared_alpha it must be the same"):
            SGDHD([{"params": params[:2]}, {"params": params[2:], **differs}], shared_alpha=True)
        optimizer = SGDHD(params[:2], shared_alpha=True)
        with pytest.raises(ValueError, match="must be the same"):
            optimizer.add_param_group({"params": params[2:], **differs})
        assert len(optimizer.param_groups) == 1

    @pytest.mark.parametrize("lr", [0.05, torch.tensor(0.05)])
    def test_a_group_that_is_added_later_takes_the_alpha_of_the_others(self, lr):
        params = tensors()
        optimizer = SGDHD(params[:2], lr=lr, hypergrad_lr=1e-3, shared_alpha=True)
        train(optimizer, params, 5)
        (alpha,) = optimizer.learning_rates()
        optimizer.add_param_group({"params": params[2:]})
        assert optimizer.learning_rates() == [alpha, alpha] != [0.05, 0.05]
        train(optimizer, params, 5, start=5)
        assert len(set(optimizer.learning_rates())) == 1

    def test_a_learning_rate_set_for_one_group_only_is_refused_at_the_step(self):
        params = tensors()
        optimizer = SGDHD([{"params": params[:2]}, {"params": params[2:]}], shared_alpha=True)
        train(optimizer, params, 2)
        optimizer.param_groups[1]["lr"] = 0.5
        with pytest.raises(ValueError, match=r"lr is .* and 0\.5 in another"):
            train(optimizer, params, 1)


class TestComplaints:
    """What users of existing implementations report, each answered."""

    @pytest.mark.parametrize("name", METHODS)
    def test_a_negative_learning_rate_cannot_come_from_the_multiplicative_rule(self, name):
        """On gradients that turn round at every step, which drive the additive rule below zero."""
        lowest = {}
        for rule, beta in (("additive", 1.0), ("multiplicative", 0.5)):
            p = torch.zeros(3, dtype=torch.float64, requires_grad=True)
            optimizer = make(name, [p], lr=0.01, rule=rule, hypergrad_lr=beta)
            lowest[rule] = math.inf
            for t in range(30):
                p.grad = torch.full_like(p, (-1.0) ** t)
                optimizer.step()
                lowest[rule] = min(lowest[rule], *optimizer.learning_rates())
        assert lowest["additive"] < 0 < lowest["multiplicative"]

    @pytest.mark.parametrize("way", [{}, {"foreach": True}, {"fused": True}, {"capturable": True}])
    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    @pytest.mark.parametrize("rule", ["additive", "multiplicative"])
    @pytest.mark.parametrize("name", METHODS)
    def test_a_gradient_that_is_not_finite_does_not_reach_alpha_where_it_is_to_be_skipped(self, name, rule, bad, way):
        params = tensors()
        optimizer = make(name, params, rule=rule, skip_nonfinite="alpha", **way)
        train(optimizer, params, 3)
        alphas = optimizer.learning_rates()
        for p in params:
            p.grad = torch.full_like(p, bad)
        optimizer.step()
        assert optimizer.learning_rates() == alphas

    @pytest.mark.parametrize("beta", [{}, {"hypergrad_lr": 0.0}], ids=["adapting", "beta 0"])
    @pytest.mark.parametrize("way", [{}, {"foreach": True}, {"fused": True}, {"capturable": True}])
    @pytest.mark.parametrize("name", METHODS)
    def test_a_step_with_a_gradient_that_is_not_finite_can_be_left_out_as_if_it_had_not_been(self, name, way, beta):
        outcomes = []
        for bad in (False, True):
            params = tensors()
            optimizer = make(name, params, skip_nonfinite="step", weight_decay=0.01, **way, **beta)
            train(optimizer, params, 3)
            if bad:
                for p in params[1:]:
                    p.grad = torch.full_like(p, math.inf)
                optimizer.step()
            train(optimizer, params, 3, start=3)
            outcomes.append([*optimizer.learning_rates(), *flat(params).tolist()])
        assert outcomes[0] == outcomes[1]

    @pytest.mark.parametrize("shared", [False, True])
    def test_a_step_is_left_out_in_the_group_whose_gradient_is_not_finite(self, shared):
        params = tensors()
        groups = [{"params": params[:2]}, {"params": params[2:]}]
        optimizer = make("sgd", groups, skip_nonfinite="step", shared_alpha=shared)
        train(optimizer, params, 3)
        before = [p.detach().clone() for p in params]
        params[0].grad.fill_(math.nan)
        optimizer.step()
        assert [torch.equal(p, q) for p, q in zip(params, before, strict=True)] == [True, True, shared, shared]

    def test_a_beta_of_the_multiplicative_rule_means_the_same_for_every_loss(self):
        """The additive beta that suits one loss explodes where the loss is a thousand times as large."""
        moved = {}
        for rule, beta in (("additive", 1e-3), ("multiplicative", 0.02)):
            for scale in (1.0, 1000.0):
                params = tensors()
                optimizer = AdamHD(params, lr=0.01, hypergrad_lr=beta, rule=rule, eps=1e-16)
                for t in range(5):
                    optimizer.zero_grad()
                    (scale * loss_of(params, t)).backward()
                    optimizer.step()
                moved[rule, scale] = abs(optimizer.learning_rates()[0] / 0.01 - 1)
        assert moved["multiplicative", 1.0] == pytest.approx(moved["multiplicative", 1000.0], rel=1e-6)
        assert moved["additive", 1000.0] > 100 * moved["additive", 1.0]

    def test_alpha_is_read_as_a_float_on_the_cpu_and_without_a_wait_elsewhere(self):
        """On an accelerator group["lr"] is the tensor itself, so that a logger may fetch it when it likes."""
        params = tensors()
        optimizer = make("adam", params)
        train(optimizer, params, 2)
        assert optimizer.learning_rates() == [optimizer.param_groups[0]["lr"]]
        assert type(optimizer.param_groups[0]["lr"]) is float
        capturable = make("adam", params, capturable=True)
        assert capturable.param_groups[0]["lr"].shape == () and type(capturable.learning_rates()[0]) is float

    @pytest.mark.parametrize("name", METHODS)
    def test_a_small_beta_acts_however_small_and_says_how_little(self, name):
        """Ten float32 steps of alpha that float32 would not see, and `hypergrad`, which tells what beta makes of it."""
        params = tensors(dtype=torch.float32)
        optimizer = make(name, params, lr=1e-3, hypergrad_lr=1e-13)
        expected = 1e-3
        for t in range(10):
            train(optimizer, params, 1, start=t)
            expected -= 1e-13 * optimizer.param_groups[0]["hypergrad"]
        (alpha,) = optimizer.learning_rates()
        assert alpha == pytest.approx(expected, rel=1e-15) and alpha != 1e-3
        assert torch.tensor(alpha, dtype=torch.float32) == torch.tensor(1e-3, dtype=torch.float32)


class TestGuide:
    def test_its_examples_run_in_order(self, capsys):
        blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.S)
        assert len(blocks) >= 3
        names = {}
        for block in blocks:
            exec(compile(block, str(GUIDE), "exec"), names)
            right = names["model"](names["x"]).argmax(1) == names["y"]
            assert right.float().mean() > 0.95
            assert all(math.isfinite(alpha) for alpha in names["optimizer"].learning_rates())

    def test_it_names_the_optimisers_and_every_option_exists(self):
        text = GUIDE.read_text()
        assert {"SGDHD", "AdamHD", "AdamWHD"} <= set(re.findall(r"\w+HD", text))
        known = {name for cls in (SGDHD, AdamHD, AdamWHD) for name in inspect.signature(cls).parameters}
        assert set(re.findall(r"`(\w+)=", text)) <= known | set(OPTIONS)
