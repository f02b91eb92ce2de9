"""The models are what the paper's text, the authors' code and the blog post describe, and a vision transformer."""

import pytest
import torch
from torch import nn

from hdlib.tasks import build_model


def vgg(**fields):
    return build_model("vgg", 3072, 10, seed=fields.pop("seed", 0), **fields)


def layers(model, kind):
    return [module for module in model.modules() if isinstance(module, kind)]


@pytest.mark.parametrize("variant", ["paper", "authors", "blog"])
def test_all_variants_have_the_papers_convolutions(variant):
    model = vgg(variant=variant)
    sizes = [convolution.out_channels for convolution in layers(model, nn.Conv2d)]
    assert sizes == [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
    assert all(c.kernel_size == (3, 3) and c.padding == (1, 1) for c in layers(model, nn.Conv2d))
    assert [pool.kernel_size for pool in layers(model, nn.MaxPool2d)] == [2] * 5
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_the_variants_differ_in_what_the_text_does_not_mention():
    paper, authors = vgg(variant="paper"), vgg(variant="authors")
    assert not layers(paper, nn.BatchNorm2d) and not layers(paper, nn.Dropout)
    assert len(layers(authors, nn.BatchNorm2d)) == 13
    assert [layer.p for layer in layers(authors, nn.Dropout)] == [0.5, 0.5]
    shapes = [[(layer.in_features, layer.out_features) for layer in layers(m, nn.Linear)] for m in (paper, authors)]
    assert shapes == [[(512, 512), (512, 10)], [(512, 512), (512, 512), (512, 10)]]


def test_the_blog_posts_network_normalises_and_drops_where_its_code_does():
    model = vgg(variant="blog")
    body = [type(layer).__name__ for layer in model[0]]
    block, dropped = ["Conv2d", "BatchNorm2d", "ReLU"], ["Conv2d", "BatchNorm2d", "ReLU", "Dropout"]
    two, three = [*dropped, *block, "MaxPool2d"], [*dropped, *dropped, *block, "MaxPool2d"]
    assert body == [*two, *two, *three, *three, *three]
    assert [layer.p for layer in layers(model, nn.Dropout)] == [0.3] + [0.4] * 7 + [0.5, 0.5]
    assert {layer.eps for layer in layers(model, nn.BatchNorm2d)} == {1e-3}
    assert [type(layer).__name__ for layer in model[1:]] == [
        "Flatten", "Dropout", "Linear", "BatchNorm1d", "ReLU", "Dropout", "Linear"
    ]  # fmt: skip
    assert [(layer.in_features, layer.out_features) for layer in layers(model, nn.Linear)] == [(512, 512), (512, 10)]


@pytest.mark.parametrize("variant", ["authors", "blog"])
def test_batch_normalisation_starts_at_ones_or_uniform_and_the_rest_alike(variant):
    ones, uniform = (vgg(variant=variant, width_factor=1 / 4, norm_start=start) for start in ("ones", "uniform"))
    scales = torch.cat([layer.weight for layer in layers(uniform, nn.BatchNorm2d)])
    assert 0 <= scales.min() < 0.01 and 0.99 < scales.max() <= 1 and abs(scales.mean() - 0.5) < 0.03
    assert all((layer.weight == 1).all() for layer in layers(ones, (nn.BatchNorm2d, nn.BatchNorm1d)))
    assert not any((layer.weight == 1).any() for layer in layers(uniform, nn.BatchNorm1d))
    for a, b in zip(layers(ones, (nn.Conv2d, nn.Linear)), layers(uniform, (nn.Conv2d, nn.Linear)), strict=True):
        assert torch.equal(a.weight, b.weight)


def test_convolutions_start_from_hes_normal_distribution():
    for convolution in layers(vgg(), nn.Conv2d)[4:]:
        expected = (2 / (9 * convolution.out_channels)) ** 0.5
        assert convolution.weight.std().item() == pytest.approx(expected, rel=0.02)
        assert convolution.bias is None
    assert all((convolution.bias == 0).all() for convolution in layers(vgg(variant="paper"), nn.Conv2d))


def test_the_start_depends_on_the_seed_alone():
    first, again, other = vgg(width_factor=0.1), vgg(width_factor=0.1), vgg(width_factor=0.1, seed=1)
    for a, b, c in zip(first.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.dim() < 4 or not torch.equal(a, c)


def test_a_width_factor_scales_channels_and_units():
    model = vgg(width_factor=1 / 8)
    assert [c.out_channels for c in layers(model, nn.Conv2d)] == [8] * 2 + [16] * 2 + [32] * 3 + [64] * 6
    assert [layer.in_features for layer in layers(model, nn.Linear)] == [64, 64, 64]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in model.parameters() if p.dim() == 4)
    assert {c.out_channels for c in layers(vgg(width_factor=1e-3), nn.Conv2d)} == {1}  # and leaves one at least
    assert [c.out_channels for c in layers(vgg(width_factor=0.03), nn.Conv2d)][::4] == [2, 8, 15, 15]  # rounded


def test_a_perceptron_has_its_hidden_layers_and_logistic_regression_has_none():
    layers_of = {"mlp": [(12, 6), nn.ReLU, (6, 6), nn.ReLU, (6, 3)], "logreg": [(12, 3)]}
    for name, expected in layers_of.items():
        model = build_model(name, 12, 3, seed=0, width=6)
        found = [(m.in_features, m.out_features) if isinstance(m, nn.Linear) else type(m) for m in model]
        assert found == expected
    for depth in (1, 5):
        model = build_model("mlp", 12, 3, seed=0, width=6, depth=depth)
        assert [m.in_features for m in layers(model, nn.Linear)] == [12, *[6] * depth]


def test_a_vision_transformer_sees_patches_in_their_places():
    model = build_model("vit", 3072, 10, seed=0)
    assert 147_000 < sum(p.numel() for p in model.parameters()) < 149_000
    assert [len(layers(model, kind)) for kind in (nn.MultiheadAttention, nn.LayerNorm, nn.Dropout)] == [4, 9, 13]
    assert {layer.p for layer in layers(model, nn.Dropout)} == {0}
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert (model(images) == 0).all() and model(images).shape == (2, 10)  # its output layer starts at zero
    nn.init.normal_(layers(model, nn.Linear)[-1].weight)
    assert not torch.allclose(model(images), model(images.roll(8, dims=3)), atol=1e-3)


@pytest.mark.parametrize(
    ("name", "fields"), [("logreg", {}), ("mlp", dict(width=6)), ("vgg", dict(width_factor=0.01)), ("vit", {})]
)
def test_one_seed_gives_one_start_in_every_precision_and_leaves_the_callers_numbers_alone(name, fields):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    single, double = (build_model(name, 12, 3, seed=1, dtype=d, **fields) for d in (torch.float32, torch.float64))
    other = build_model(name, 12, 3, seed=2, **fields)
    assert torch.equal(torch.rand(3), expected)
    for a, b in zip(single.parameters(), double.parameters(), strict=True):
        assert a.dtype == torch.float32 and b.dtype == torch.float64 and torch.equal(a.double(), b)
    assert not all(map(torch.equal, single.parameters(), other.parameters()))
