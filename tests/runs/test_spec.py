"""A spec is validated, immutable, and has a stable key."""

import numpy as np
import pytest
import torch

from hdlib.optim import SGDHD, AdamHD
from hdlib.optim._group import options_of
from hdlib.runs import RunSpec, SpecError, grid

GOOD = dict(method="sgd_hd", alpha0=0.001, beta=1e-4, epochs=1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("alpha0", -0.1),
        ("alpha0", "1e-3"),
        ("alpha0", float("nan")),
        ("beta", -1e-4),
        ("beta", float("inf")),
        ("beta", "1e-4"),
        ("method", "adm"),
        ("task", "imagenet"),
        ("model", "vgg"),
        ("epochs", 0),
        ("epochs", 1.5),
        ("seed", -1),
        ("seed", 2**32),
        ("decay", "steps"),
        ("precision", "float8"),
        ("momentum", 1.0),
        ("target_loss", -0.1),
        ("target_loss", float("inf")),
        ("width", 20),
        ("depth", 1),
        ("bta", 1e-4),
    ],
)
def test_a_wrong_value_is_refused_in_one_sentence_that_names_it(field, value):
    with pytest.raises(SpecError) as refused:
        RunSpec(**(GOOD | {field: value}))
    message = str(refused.value)
    assert field in message
    assert str(value) in message or field == "bta"
    assert message.endswith(".") and "\n" not in message


def test_a_missing_field_is_named():
    with pytest.raises(SpecError, match="alpha0 is missing"):
        RunSpec(method="sgd", epochs=1)


@pytest.mark.parametrize(
    "fields",
    [
        dict(method="sgd", beta=1e-4),
        dict(method="adam_hd", decay="inv_sqrt"),
        dict(decay="cosine"),
        dict(decay="cosine", beta="auto", max_lr=1.0),
        dict(method="sgd_hd", rule="multiplicative", beta=1.5),
        dict(method="sgd", rule="multiplicative", beta=0.0),
        dict(rule="multiplicative", beta="auto"),
        dict(rule="curvature", beta="auto"),
        dict(rule="log", max_lr=1e-4),
        dict(min_lr=0.5),
        dict(alpha0=0, max_change=0.1),
        dict(method="prodigy", beta=0.0, alpha0=0.0),
        dict(method="prodigy", beta=1e-4),
        dict(method="prodigy", beta=0.0, min_lr=0.0),
    ],
)
def test_values_that_contradict_one_another_are_refused(fields):
    with pytest.raises(SpecError):
        RunSpec(**(GOOD | fields))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (dict(width=20), "width is 20 but the model is logreg: it is for mlp."),
        (dict(task="digits", batch_size=1501), "batch_size is 1501 but a run trains on 1500 examples: take no more."),
        (dict(momentum=0.5), "momentum is 0.5 but the method is sgd_hd: it is for sgdn and sgdn_hd."),
        (dict(model="mlp", variant="paper"), "variant is 'paper' but the model is mlp: it is for vgg."),
        (dict(model="vit", task="cifar10", width_factor=2), "width_factor is 2.0 but the model is vit: it is for vgg."),
        (dict(train_images=1000), "train_images is 1000 but the model is logreg: it is for vgg and vit."),
        (dict(rule="multiplicative", beta=2), "beta is 2.0 but the rule is 'multiplicative': give a beta below 1."),
        (dict(model="vgg", task="cifar10", depth=3), "depth is 3 but the model is vgg: it is for mlp."),
        (dict(model="vgg", task="cifar10", input_scale=2), "input_scale is 2.0 but the model is vgg: it is for logreg "
         "and mlp."),
    ],
)  # fmt: skip
def test_what_would_change_nothing_but_the_key_is_refused(fields, sentence):
    with pytest.raises(SpecError) as refused:
        RunSpec(**(GOOD | fields))
    assert str(refused.value) == sentence


@pytest.mark.parametrize(
    ("name", "meant"),
    [("lr", "alpha0"), ("hypergrad_lr", "beta"), ("optimizer", "method"), ("bta", "beta"), ("seeds", "seed")],
)
def test_a_field_by_another_name_is_refused_with_its_own(name, meant):
    with pytest.raises(
        SpecError, match=f"^{name} is not a field of a run: did you mean {meant}. The fields are task, "
    ):
        RunSpec(**GOOD, **{name: 1})
    with pytest.raises(SpecError, match=r"^zz is not a field of a run: the fields are task, "):
        RunSpec(**GOOD, zz=1)


def test_a_method_that_adapts_is_not_taken_for_its_baseline_where_beta_was_forgotten():
    fields = {name: value for name, value in GOOD.items() if name != "beta"}
    with pytest.raises(SpecError, match=r"^beta is missing, and sgd_hd adapts with it: give a number, or 'auto'\.$"):
        RunSpec(**fields)
    assert RunSpec(**fields, beta=0).beta == 0.0


def test_a_spec_cannot_be_changed():
    with pytest.raises(Exception, match="frozen"):
        RunSpec(**GOOD).alpha0 = 1.0


def test_keys_are_equal_for_equal_specs_and_differ_otherwise():
    assert RunSpec(**GOOD).key == RunSpec(**GOOD, momentum=0.9).key
    assert RunSpec(**GOOD, min_lr=-0.0).key == RunSpec(**GOOD, min_lr=0.0).key
    assert RunSpec(**GOOD | {"alpha0": -0.0}).key == RunSpec(**GOOD | {"alpha0": 0}).key
    assert len({spec.key for spec in grid(seeds=3, alpha0=[0.1, 0.01], method="sgd", epochs=[1, 2])}) == 12


def test_what_a_spec_changes_is_what_differs_from_the_defaults():
    spec = RunSpec(method="sgd", alpha0=0.1, epochs=1, momentum=0.9, width=1000)
    assert spec.changed == {"method", "alpha0", "epochs"}
    assert "width" in RunSpec(method="sgd", alpha0=0.1, epochs=1, model="mlp", width=100).changed


def test_the_key_of_a_recorded_run_never_changes():
    """Every record in results/ is found by this key: a changed default or name would lose them all."""
    spec = RunSpec(method="sgd", alpha0=0.1, epochs=1)
    assert spec.canonical() == '{"alpha0": 0.1, "epochs": 1, "method": "sgd"}'
    assert spec.key == "ad0685afb51d86c9"


def test_a_grid_has_a_seed_or_many():
    with pytest.raises(SpecError, match="seeds is 2 and seed is 7: give one of them"):
        grid(seeds=2, seed=7, **GOOD)


@pytest.mark.parametrize("seeds", [0, "3", 1.5, True])
def test_a_wrong_number_of_seeds_is_refused(seeds):
    with pytest.raises(SpecError, match="seeds is"):
        grid(seeds=seeds, method="sgd", alpha0=0.1, epochs=1)


@pytest.mark.parametrize(
    ("rates", "sentence"),
    [
        ([], r"alpha0 is \[\]: give at least one value"),
        (range(1, 1), r"alpha0 is range\(1, 1\): give at least one value"),
        ([0.1, 1e-2, 1e-1], r"has 0\.1 twice: give each value once"),
    ],
)
def test_a_grid_without_values_or_with_one_twice_is_refused(rates, sentence):
    with pytest.raises(SpecError, match=sentence):
        grid(method="sgd", alpha0=rates, epochs=1)


def test_a_grid_takes_arrays_as_it_takes_lists():
    fields = dict(method="sgd", epochs=1)
    made = grid(alpha0=np.array([0.1, 0.5]), batch_size=torch.tensor([16, 32]), seeds=np.int64(2), **fields)
    assert made == grid(alpha0=[0.1, 0.5], batch_size=[16, 32], seeds=2, **fields)
    with pytest.raises(SpecError, match=r"has 0\.1 twice"):
        grid(alpha0=np.array([0.1, 0.1]), **fields)
    with pytest.raises(SpecError, match=r"alpha0 is \{0\.1\}: give a list"):
        grid(alpha0={0.1}, **fields)


def test_an_automatic_beta_is_asked_for_as_of_the_optimisers():
    spec = RunSpec(method="adam_hd", alpha0=0.1, beta="auto", epochs=1)
    assert spec == RunSpec(method="adam_hd", alpha0=0.1, beta=1.0, rule="auto", epochs=1)
    assert spec.control().rule == "auto"
    assert spec.with_(beta=1e-3) == RunSpec(method="adam_hd", alpha0=0.1, beta=1e-3, epochs=1)
    assert spec.with_(beta=0.5, rule="auto").rule == spec.with_(seed=1).rule == "auto"
    assert spec.with_(method="adam", beta=0.0).rule == "additive"
    with pytest.raises(SpecError, match="does not adapt"):
        RunSpec(method="adam", alpha0=0.1, beta="auto", epochs=1)


def test_a_minibatch_is_no_larger_than_the_part_of_the_images_that_a_run_has():
    fields = dict(task="cifar10", model="vit", method="sgd", alpha0=0.1, epochs=1, train_images=100)
    with pytest.raises(
        SpecError, match=r"batch_size is 128 but a run trains on 100 examples: take no more, or more train_images\."
    ):
        RunSpec(**fields)
    assert RunSpec(**fields, batch_size=100).steps_per_epoch(100) == 1


@pytest.mark.parametrize("rule", ["auto", "additive"])
def test_alpha_moves_as_the_optimisers_have_it(rule):
    params = [torch.nn.Parameter(torch.ones(2))]
    common = dict(lr=0.1, rule=rule, hypergrad_lr=0.5)
    made = {
        "sgd_hd": SGDHD(params, **common),
        "sgdn_hd": SGDHD(params, momentum=0.7, nesterov=True, **common),
        "adam_hd": AdamHD(params, **common),
    }
    for method, optimizer in made.items():
        momentum = dict(momentum=0.7) if method == "sgdn_hd" else {}
        spec = RunSpec(method=method, alpha0=0.1, beta=0.5, rule=rule, epochs=1, **momentum)
        assert spec.control() == options_of(optimizer.param_groups[0]), method
