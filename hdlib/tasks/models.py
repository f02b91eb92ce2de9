"""The models, with initial weights that depend on the seed alone."""

from __future__ import annotations

import itertools

import torch
from torch import nn


def build_model(
    model: str,
    features: int,
    classes: int,
    seed: int,
    *,
    width: int = 1000,
    depth: int = 2,
    variant: str = "authors",
    width_factor: float = 1.0,
    norm_start: str = "ones",
    dtype=torch.float32,
) -> nn.Module:
    """Return logistic regression (one linear layer), an MLP of `depth` hidden ReLU layers of `width` units, VGG or ViT.

    Weights are torch's default for linear layers (uniform in +-1/sqrt(fan in)), drawn on the CPU in float32, so
    that one seed gives one start on every device and in every precision; see `vgg16` and `vision_transformer` for
    theirs. Input: [batch, features], or images, [batch, 3, 32, 32]; output: logits, [batch, classes].
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if model == "vgg":
            return vgg16(classes, variant, width_factor, norm_start).to(dtype)
        if model == "vit":
            return vision_transformer(classes).to(dtype)
        sizes = [features, *([width] * depth if model == "mlp" else []), classes]
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(sizes):
            layers += [nn.Linear(fan_in, fan_out, dtype=torch.float32), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).to(dtype)


def vgg16(classes: int, variant: str = "authors", width_factor: float = 1.0, norm_start: str = "ones") -> nn.Sequential:
    """Return VGG-16 for images of 32 x 32 pixels, in channels-last memory.

    All variants have 13 convolutions of 3 x 3, (64)x2, (128)x2, (256)x3, (512)x3, (512)x3, a 2 x 2 max-pool after
    each group, ReLU after each layer, convolutions from He's normal distribution (fan out) with biases of zero,
    and torch's default linear layers:

    - "paper": the text's fc512 and fc10 and nothing else. The text does not say how weights start.
    - "authors": as their code, batch normalisation after each convolution, and a dropout of 0.5 before each of two
      fc512, then fc10.
    - "blog": as the code of the blog post that the paper says it follows (torch.ch/blog/2015/07/30/cifar.html, the
      repository szagoruyko/cifar.torch, models/vgg_bn_drop.lua): batch normalisation after each convolution and after
      fc512, a dropout of 0.3 after the first convolution and of 0.4 after each other that no pooling follows, and of
      0.5 before fc512 and before fc10.

    A convolution that batch normalisation follows has no bias: it would be taken away again, its gradient is zero but
    for rounding, and it would start at zero.

    Args:
        width_factor: multiplies all channels and units (rounded, at least 1), for a machine that is not a GPU.
        norm_start: of the scales of batch normalisation: "ones", torch's default, or "uniform" in [0, 1], torch's
            default up to 1.1 and Lua Torch's, with which the published runs were made.
    """
    from torchvision.models.vgg import cfgs, make_layers

    def scaled(units: int) -> int:
        return max(1, round(units * width_factor))

    units = scaled(512)
    layers = make_layers([n if n == "M" else scaled(n) for n in cfgs["D"]], batch_norm=variant != "paper")
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            layer.bias = nn.init.zeros_(layer.bias) if variant == "paper" else None
    head: list[nn.Module] = [nn.Linear(units, units), nn.ReLU(inplace=True)]
    if variant == "authors":
        head = [nn.Dropout(), *head, nn.Dropout(), nn.Linear(units, units), nn.ReLU(inplace=True)]
    elif variant == "blog":
        layers = _with_dropout(layers)
        head = [nn.Dropout(), head[0], nn.BatchNorm1d(units), head[1], nn.Dropout()]
    model = nn.Sequential(layers, nn.Flatten(), *head, nn.Linear(units, classes))
    if norm_start == "uniform":
        for layer in model.modules():
            if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
                nn.init.uniform_(layer.weight)
    return model.to(memory_format=torch.channels_last)


def vision_transformer(classes: int) -> nn.Module:
    """Return a small vision transformer (Dosovitskiy et al., ICLR 2021) for images of 32 x 32 pixels.

    It sees 16 patches of 8 x 8 pixels and has 4 layers of 64 units with 4 heads and perceptrons of 128 units: some
    148,000 parameters. The rest, and how its weights start, is torchvision's: layer normalisation before each part,
    GELU, learnt positions, no dropout, and an output layer that starts at zero.
    """
    from torchvision.models import VisionTransformer

    return VisionTransformer(
        image_size=32, patch_size=8, num_layers=4, num_heads=4, hidden_dim=64, mlp_dim=128, num_classes=classes
    )


def _with_dropout(layers: nn.Sequential) -> nn.Sequential:
    """Return the layers with the blog post's dropout, and its batch normalisation's eps."""
    result: list[nn.Module] = []
    for layer, following in itertools.pairwise([*layers, None]):
        result.append(layer)
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = 1e-3
        if isinstance(layer, nn.ReLU) and not isinstance(following, nn.MaxPool2d):
            result.append(nn.Dropout(0.4 if len(result) > 3 else 0.3))
    return nn.Sequential(*result)
