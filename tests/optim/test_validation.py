"""Bad values are refused before anything is changed, in one sentence that names the value."""

import copy
import math
import re

import pytest
import torch
from problem import flat, make, tensors, train

from hdlib import SGDHD, AdamHD

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
    (SGDHD, {"rule": "geometric"}, "rule is 'geometric'"),
    (SGDHD, {"rule": None}, "rule is None"),
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
    table = torch.nn.Embedding(5, 2, sparse=True)
    start = table.weight.detach().clone()
    optimizer = cls(table.parameters())
    table(torch.tensor([1, 3])).sum().backward()
    with pytest.raises(RuntimeError, match=f"{cls.__name__} does not support sparse gradients"):
        optimizer.step()
    assert torch.equal(table.weight, start)


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
