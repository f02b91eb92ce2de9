"""Bad values are refused before anything is changed, in one sentence that names the value."""

import copy
import math
import re

import numpy as np
import pytest
import torch
from problem import flat, make, tensors, train

from hdlib import SGDHD, AdamHD, AdamWHD
from hdlib.optim._group import options_of
from hdlib.optim.control import OPTIONS, Control, Guards

BAD = [
    (SGDHD, {"lr": -0.1}, "lr is -0.1"),
    (SGDHD, {"lr": math.nan}, "lr is nan"),
    (SGDHD, {"lr": math.inf}, "lr is inf"),
    (SGDHD, {"lr": "1e-3"}, "lr must be a number, not the string '1e-3'"),
    (SGDHD, {"lr": None}, "lr must be a number, not None"),
    (SGDHD, {"lr": True}, "lr must be a number, not True"),
    (SGDHD, {"lr": torch.tensor([0.1, 0.2])}, "Tensor lr must be 1-element, not of shape (2,)"),
    (SGDHD, {"lr": torch.tensor(-1.0)}, "lr is -1.0"),
    (SGDHD, {"hypergrad_lr": -1e-4}, "hypergrad_lr is -0.0001"),
    (SGDHD, {"hypergrad_lr": math.nan}, "hypergrad_lr is nan"),
    (SGDHD, {"hypergrad_lr": "1e-4"}, "hypergrad_lr must be a number, not the string '1e-4'"),
    (SGDHD, {"momentum": -0.9}, "momentum is -0.9"),
    (SGDHD, {"momentum": math.nan}, "momentum is nan"),
    (SGDHD, {"dampening": -1}, "dampening is -1"),
    (SGDHD, {"weight_decay": -1e-4}, "weight_decay is -0.0001"),
    (SGDHD, {"nesterov": True}, "nesterov needs momentum above 0"),
    (SGDHD, {"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "dampening=0.1"),
    (SGDHD, {"hypergrad_lr": "Auto"}, "hypergrad_lr must be a number or \"auto\", not 'Auto'"),
    (SGDHD, {"hypergrad_lr": "auto", "rule": "additive"}, "hypergrad_lr is 'auto' with rule='additive'"),
    (SGDHD, {"hypergrad_lr": "auto", "rule": "log"}, "hypergrad_lr is 'auto' with rule='log'"),
    (SGDHD, {"rule": "log"}, "hypergrad_lr is None with rule='log'"),
    (SGDHD, {"scaling": "adagrad"}, "hypergrad_lr is None with scaling='adagrad'"),
    (SGDHD, {"rule": "multiplicative", "hypergrad_lr": torch.tensor(5.0)}, "hypergrad_lr is 5.0"),
    (SGDHD, {"weight_decay": torch.tensor(0.1, requires_grad=True)}, "weight_decay requires a gradient"),
    (AdamHD, {"betas": (torch.tensor(0.9, requires_grad=True), 0.999)}, "betas[0] requires a gradient"),
    (SGDHD, {"rule": "geometric"}, "rule is 'geometric'"),
    (SGDHD, {"rule": ["auto"]}, "rule is ['auto']"),
    (SGDHD, {"lr": 0.5, "max_lr": 0.1}, "lr is 0.5, outside of max_lr=0.1"),
    (SGDHD, {"lr": 1e-6, "min_lr": 1e-4}, "lr is 1e-06, outside of min_lr=0.0001"),
    (SGDHD, {"max_lr": 0.0}, "max_lr is 0.0: it must be above 0"),
    (SGDHD, {"max_change": [1.0]}, "max_change is [1.0]"),
    (SGDHD, {"rule": "multiplicative", "hypergrad_lr": 1.0}, "hypergrad_lr is 1.0"),
    (AdamHD, {"lr": -0.1}, "lr is -0.1"),
    (AdamHD, {"lr": "1e-3"}, "lr must be a number, not the string '1e-3'"),
    (AdamHD, {"betas": (1.0, 0.999)}, "betas[0] is 1.0"),
    (AdamHD, {"betas": (0.9, -0.1)}, "betas[1] is -0.1"),
    (AdamHD, {"betas": (0.9, math.nan)}, "betas[1] is nan"),
    (AdamHD, {"betas": (0.9, "0.999")}, "betas[1] must be a number, not the string '0.999'"),
    (AdamHD, {"betas": 0.9}, "betas is 0.9"),
    (AdamHD, {"betas": (0.9,)}, "betas is (0.9,)"),
    (AdamHD, {"eps": -1e-8}, "eps is -1e-08"),
    (AdamHD, {"weight_decay": math.inf}, "weight_decay is inf"),
    (AdamHD, {"hypergrad_lr": -1}, "hypergrad_lr is -1"),
    (AdamHD, {"rule": "Additive"}, "rule is 'Additive'"),
]


@pytest.mark.parametrize(("cls", "values", "says"), BAD)
def test_a_bad_value_is_refused_in_one_sentence_that_names_it(cls, values, says):
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        cls(tensors(), **values)
    message = str(caught.value)
    assert message.endswith(".") and "\n" not in message
    assert not re.search(r"\. [A-Z]", message)


@pytest.mark.parametrize(("cls", "values", "says"), BAD)
def test_a_group_is_checked_like_the_constructor_and_not_added(cls, values, says):
    params = tensors()
    with pytest.raises(ValueError, match=re.escape(says)):
        cls([{"params": params, **values}])
    optimizer = cls(params[:2])
    with pytest.raises(ValueError, match=re.escape(says)):
        optimizer.add_param_group({"params": params[2:], **values})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": params[2:]})


@pytest.mark.parametrize("values", [{"lr": 0}, {"lr": 0.0}, {"lr": 1}, {"hypergrad_lr": 0}, {"weight_decay": 0}])
@pytest.mark.parametrize("cls", [SGDHD, AdamHD])
def test_zero_and_whole_numbers_are_values_like_others(cls, values):
    params = tensors()
    train(cls(params, **values), params, 2)


@pytest.mark.parametrize("cls", [SGDHD, AdamHD])
def test_a_sparse_gradient_is_refused(cls):
    """Before anything has changed: also that the tensor before it rested in the step before."""
    table, first = torch.nn.Embedding(5, 2, sparse=True), torch.ones(3, requires_grad=True)
    optimizer = cls([first, table.weight])
    for grads in ((torch.ones(3), torch.ones(5, 2)), (None, torch.ones(5, 2))):
        first.grad, table.weight.grad = grads
        optimizer.step()
    first.grad, table.weight.grad = torch.ones(3), None
    table(torch.tensor([1, 3])).sum().backward()
    before = copy.deepcopy((first, table.weight, optimizer.state_dict()))
    with pytest.raises(
        RuntimeError, match=rf"{cls.__name__} does not support sparse gradients, .* shape \(5, 2\) .* sparse=False\."
    ):
        optimizer.step()
    for now, then in zip((first, table.weight), before, strict=False):
        assert torch.equal(now, then)
    torch.testing.assert_close(optimizer.state_dict()["state"], before[2]["state"], rtol=0, atol=0)


PLAIN = {SGDHD: 1e-6, AdamHD: 1e-8}
MEANT = [  # the constructor's values, the group's, and the rule and beta that they mean; None is the class's own
    ({}, {}, ("additive", None)),
    ({"rule": "multiplicative"}, {}, ("multiplicative", 0.02)),
    ({"rule": "curvature"}, {}, ("curvature", 0.5)),
    ({"rule": "auto"}, {}, ("auto", 1.0)),
    ({"rule": "auto", "hypergrad_lr": 0.5}, {}, ("auto", 0.5)),
    ({"hypergrad_lr": "auto"}, {}, ("auto", 1.0)),
    ({"hypergrad_lr": "auto", "rule": "auto"}, {}, ("auto", 1.0)),
    ({"hypergrad_lr": "auto"}, {"hypergrad_lr": 1e-4}, ("additive", 1e-4)),
    ({"hypergrad_lr": "auto"}, {"hypergrad_lr": 0.0}, ("additive", 0.0)),
    ({"hypergrad_lr": "auto"}, {"rule": "additive"}, ("additive", None)),
    ({"hypergrad_lr": "auto"}, {"rule": "multiplicative"}, ("multiplicative", 0.02)),
    ({"hypergrad_lr": 1e-4}, {"hypergrad_lr": "auto"}, ("auto", 1.0)),
    ({"hypergrad_lr": 1e-4}, {"rule": "auto"}, ("auto", 1.0)),
    ({"hypergrad_lr": 1e-4}, {"rule": "multiplicative"}, ("multiplicative", 1e-4)),
    ({"rule": "multiplicative", "hypergrad_lr": 0.05}, {"hypergrad_lr": "auto"}, ("auto", 1.0)),
    ({"rule": "multiplicative"}, {"hypergrad_lr": 0.05}, ("multiplicative", 0.05)),
]


@pytest.mark.parametrize("cls", PLAIN)
@pytest.mark.parametrize(("given", "of_group", "means"), MEANT, ids=str)
def test_the_rule_and_its_beta_follow_from_what_is_given(cls, given, of_group, means):
    params = tensors()
    optimizer = cls([{"params": params[:2], **of_group}], **given)
    optimizer.add_param_group({"params": params[2:], **of_group})
    for _ in range(2):
        for group in optimizer.param_groups:
            assert (group["rule"], group["hypergrad_lr"]) == (means[0], PLAIN[cls] if means[1] is None else means[1])
        optimizer = copy.deepcopy(optimizer)


@pytest.mark.parametrize("cls", PLAIN)
def test_numpys_numbers_are_numbers(cls):
    params = tensors()
    values = {"lr": 0.01, "hypergrad_lr": 1e-4, "weight_decay": 0.1, "max_lr": 0.5, "overshoot": 0.1, "max_change": 0.3}
    values |= {"momentum": 0.9, "dampening": 0.1} if cls is SGDHD else {"eps": 1e-6, "betas": (0.9, 0.99)}
    exact = {name: np.float32(value) for name, value in values.items() if name != "betas"}
    optimizer = cls(params, **(values | exact), fused=True)
    group = optimizer.param_groups[0]
    assert not any(isinstance(value, np.generic) for value in group.values())
    alphas = train(optimizer, params, 3)
    assert alphas[0] == float(exact["lr"]) != alphas[-1]


class TestValuesWrittenIntoAGroup:
    @pytest.mark.parametrize("lr", [0.01, torch.tensor(0.01)], ids=["float", "tensor"])
    @pytest.mark.parametrize(
        "values", [{"hypergrad_lr": "auto"}, {"rule": "auto", "hypergrad_lr": 1.0}, {"rule": "curvature"}], ids=str
    )
    @pytest.mark.parametrize("name", ["nesterov", "adam"])
    def test_a_rule_may_be_chosen_between_steps(self, name, values, lr):
        params = tensors()
        optimizer = make(name, params, lr=lr, scaling="none", hypergrad_lr=0.1, rule="multiplicative")
        (group,) = optimizer.param_groups
        train(optimizer, params, 3)
        group |= values
        train(optimizer, params, 10, start=3)
        chosen = values.get("rule", "auto")
        fresh = make(name, tensors(), **{"hypergrad_lr": 0.1} | values).param_groups[0]
        assert group["rule"] == chosen and options_of(group) == options_of(fresh)
        state = "curvature_run" if chosen == "curvature" else "ratio_sq"
        assert isinstance(group[state], torch.Tensor) == isinstance(lr, torch.Tensor) and group[state] > 0

    def test_the_automatic_rule_leaves_nothing_to_the_one_that_follows_it(self):
        params = tensors()
        optimizer = make("sgd", params, hypergrad_lr="auto")
        train(optimizer, params, 3)
        (group,) = optimizer.param_groups
        group |= {"rule": "additive", "hypergrad_lr": 1e-3}
        train(optimizer, params, 3, start=3)
        assert options_of(group) == Control()

    def test_a_beta_in_single_precision_does_not_round_alpha(self):
        given, written = (make("sgd", tensors(), lr=1e-3, hypergrad_lr=beta) for beta in (torch.tensor(1e-12), 1.0))
        written.param_groups[0]["hypergrad_lr"] = torch.tensor(1e-12)
        for optimizer in (given, written):
            train(optimizer, optimizer.param_groups[0]["params"], 1)
            [alpha] = train(optimizer, optimizer.param_groups[0]["params"], 1, start=1)
            (group,) = optimizer.param_groups
            assert alpha == 1e-3 - group["hypergrad_lr"] * group["hypergrad"] != 1e-3

    @pytest.mark.parametrize("rule", ["additive", "curvature", "auto"])
    def test_a_learning_rate_stays_a_tensor_where_it_was_one(self, rule):
        params, others = tensors(), tensors()
        changed = make("sgd", params, lr=torch.tensor(0.01), rule=rule, hypergrad_lr=0.1)
        floats = make("sgd", others, lr=0.01, rule=rule, hypergrad_lr=0.1)
        for optimizer, its in ((changed, params), (floats, others)):
            train(optimizer, its, 3)
            optimizer.param_groups[0]["lr"] = 1e-3
        assert train(changed, params, 5, start=3) == pytest.approx(train(floats, others, 5, start=3), rel=1e-6)
        assert isinstance(changed.param_groups[0]["lr"], torch.Tensor)

    @pytest.mark.parametrize(
        ("values", "says"),
        [
            ({"hypergrad_lr": "Auto"}, 'hypergrad_lr must be a number or "auto"'),
            ({"rule": "newton"}, "rule is 'newton'"),
            ({"rule": ["auto"]}, r"rule is \['auto'\]"),
            ({"lr": 0.0, "hypergrad_lr": "auto"}, "lr is 0"),
            ({"hypergrad_max_lr": 0.0}, "max_lr is 0"),
        ],
        ids=str,
    )
    def test_a_bad_one_is_refused_before_anything_has_changed(self, values, says):
        params = tensors()
        optimizer = make("nesterov", [{"params": params[:2]}, {"params": params[2:]}])
        train(optimizer, params, 3)
        optimizer.param_groups[1] |= values
        before = copy.deepcopy((params, optimizer.state_dict()))
        with pytest.raises(ValueError, match=says):
            train(optimizer, params, 1, start=3)
        assert all(torch.equal(p, q) for p, q in zip(params, before[0], strict=True))
        after = optimizer.state_dict()
        assert after["param_groups"] == before[1]["param_groups"]
        torch.testing.assert_close(after["state"], before[1]["state"], rtol=0, atol=0)


@pytest.mark.parametrize("lr", [0.5, torch.tensor(0.5)], ids=["float", "tensor"])
@pytest.mark.parametrize("rule", ["additive", "multiplicative", "auto"])
def test_a_decay_that_forgets_the_parameters_is_no_error(rule, lr):
    """With alpha lambda = 1 AdamW's step keeps nothing of theta, so D_{t-1} cannot be rebuilt."""
    params = tensors()
    optimizer = AdamWHD(params, lr=lr, weight_decay=2.0, hypergrad_lr=0.1, rule=rule)
    alphas = [0.5, *train(optimizer, params, 2)]
    assert all(math.isfinite(alpha) for alpha in alphas)
    optimizer.param_groups[0]["lr"] = lr
    assert all(math.isfinite(alpha) for alpha in train(optimizer, params, 5, start=2))
    assert flat(params).isfinite().all()


def test_a_learning_rate_that_training_made_negative_is_no_error():
    """The additive rule may cross zero, as in the paper's runs; copies and checkpoints then still work."""
    params = tensors()
    optimizer = make("sgd", params, lr=0.0, hypergrad_lr=1e-12)
    train(optimizer, params, 2)
    optimizer.param_groups[0]["lr"] = -1e-6
    again = copy.deepcopy(optimizer)
    again.load_state_dict(optimizer.state_dict())
    assert again.learning_rates() == [-1e-6]
    start = flat(params)
    train(optimizer, params, 1, start=2)
    assert not torch.equal(flat(params), start)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("hypergrad_lr", True, 'hypergrad_lr must be a number or "auto", not True'),
        ("lr", torch.tensor([0.1, 0.2]), "Tensor lr must be 1-element, not of shape (2,)"),
        ("rule", "multiplicative", "hypergrad_lr is 1.0: the multiplicative rule needs a value below 1"),
    ],
)
@pytest.mark.parametrize("cls", [SGDHD, AdamHD, AdamWHD])
def test_what_is_written_into_a_group_and_cannot_be_is_refused_before_the_step(cls, name, value, says):
    p = torch.ones(3, requires_grad=True)
    p.grad = torch.ones(3)
    optimizer = cls([p], lr=0.01, hypergrad_lr="auto")
    optimizer.param_groups[0][name] = value
    with pytest.raises(ValueError, match=re.escape(says)):
        optimizer.step()
    assert torch.equal(p, torch.ones(3)) and not optimizer.state


def test_an_argument_that_there_is_not_is_answered_with_those_that_there_are():
    with pytest.raises(TypeError, match=r"AdamHD has no argument beta: .* hypergrad_lr \(beta\), .*, max_lr, "):
        AdamHD([torch.ones(1)], beta=1e-4)


def test_the_guards_that_type_checkers_know_are_those_that_there_are():
    assert set(Guards.__annotations__) == set(OPTIONS) - {"rule"}


@pytest.mark.parametrize("cls", [AdamHD, AdamWHD])
def test_float16_in_which_the_last_direction_cannot_be_rebuilt_is_refused_by_name(cls):
    """torch's fused step divides by a second moment that is rounded to zero when it is stored."""
    p = torch.ones(3, dtype=torch.float16, requires_grad=True)
    p.grad = torch.ones_like(p)
    optimizer = cls([("head.weight", p)])
    with pytest.raises(RuntimeError, match=r"cannot adapt the learning rate of 'head\.weight' in float16"):
        optimizer.step()
    assert torch.equal(p, torch.ones_like(p)) and not optimizer.state
    for name, value in (("hypergrad_lr", 0.0), ("eps", 1e-3)):
        optimizer = cls([p])
        optimizer.param_groups[0][name] = value
        before = p.detach().clone()
        optimizer.step()
        assert not torch.equal(p, before)


@pytest.mark.parametrize("cls", [SGDHD, AdamHD])
@pytest.mark.parametrize("lr", [5.0, torch.tensor(5.0)])
def test_a_first_step_keeps_to_the_bounds_whoever_wrote_alpha(cls, lr):
    p = torch.zeros(3, requires_grad=True)
    p.grad = torch.ones(3)
    optimizer = cls([p], lr=0.01, max_lr=0.02)
    optimizer.param_groups[0]["lr"] = lr
    optimizer.step()
    assert optimizer.learning_rates() == [0.02] and torch.allclose(p, torch.full((3,), -0.02))


def test_counts_of_steps_without_moments_begin_anew():
    p = torch.zeros(3, requires_grad=True)
    p.grad = torch.ones(3)
    other = torch.optim.RMSprop([p], lr=0.0)
    for _ in range(20):
        other.step()
    optimizer = AdamHD([p], hypergrad_lr=0.0)
    optimizer.load_state_dict(other.state_dict())
    optimizer.param_groups[0]["lr"] = 0.01
    optimizer.step()
    assert torch.allclose(p, torch.full((3,), -0.01))  # as the first step of Adam
