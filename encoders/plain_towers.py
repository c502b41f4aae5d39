"""Image towers of torchvision and timm by name, without their classifiers: pictures -> pooled features.

Names are `torchvision:resnet18` and `timm:convnext_tiny`. Pictures are prepared as the library says of its
own weights of that name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from core.errors import ArtifactError, ConfigError
from encoders.images import Preprocess
from encoders.near_names import near

TORCHVISION, TIMM = "torchvision:", "timm:"
CLASSES = 1000
"""Of ImageNet: a linear layer that gives as many is the classifier."""


def is_plain(name: str) -> bool:
    """Whether a name is one of these."""
    return name.startswith((TORCHVISION, TIMM))


def plain_tower(name: str, seed: int = 0) -> tuple[nn.Module, tuple[str, ...]]:
    """The tower with random weights of this seed, and where its classifiers were: their weights are left out.

    Raises:
        ConfigError: an unknown name.
        ArtifactError: a model without a linear classifier that could be taken off.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name.startswith(TIMM):
            import timm

            module: nn.Module = timm.create_model(_of_timm(name), pretrained=False, num_classes=0)
            said = timm.get_pretrained_cfg(_of_timm(name))
            heads = said.classifier if said is not None and said.classifier else "head"
            return module, (heads,) if isinstance(heads, str) else tuple(heads)
        import torchvision

        module = torchvision.models.get_model(_of_torchvision(name), weights=None)
    linear = [path for path, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    classes = [path for path in linear if module.get_parameter(f"{path}.weight").shape[0] == CLASSES]
    if not classes:
        raise ArtifactError(f"{name} has no linear classifier that could be taken off: take another model")
    *above, last = classes[-1].split(".")
    setattr(module.get_submodule(".".join(above)), last, nn.Identity())
    return module, (classes[-1],)


def plain_preprocess(name: str) -> Preprocess:
    """How the library prepares pictures for it.

    Raises:
        ConfigError: an unknown name.
        ArtifactError: a way of preparing that is not known here.
    """
    said = _said_by_timm(name) if name.startswith(TIMM) else _said_by_torchvision(name)
    if said["interpolation"] not in ("bicubic", "bilinear") or len(said["mean"]) != 3:
        raise ArtifactError(
            f"{name} takes {len(said['mean'])} channels resized by {said['interpolation']}: only three, "
            "bicubic or bilinear, are prepared here"
        )
    return Preprocess.of(said)


def _of_timm(name: str) -> str:
    import timm

    model = name.removeprefix(TIMM)
    if not timm.is_model(model):
        raise ConfigError(f"timm has no model {model!r}; {near(model, timm.list_models())}")
    return model


def _of_torchvision(name: str) -> str:
    import torchvision

    model, names = name.removeprefix(TORCHVISION), torchvision.models.list_models(torchvision.models)
    if model not in names:
        raise ConfigError(f"torchvision has no classifier {model!r}; {near(model, names)}")
    return model


def _said_by_torchvision(name: str) -> Mapping[str, Any]:
    import torchvision

    own = torchvision.models.get_model_weights(_of_torchvision(name)).DEFAULT.transforms()
    return {
        "size": own.crop_size[0], "resize": own.resize_size[0], "mean": own.mean, "std": own.std,
        "interpolation": own.interpolation.value,
    }  # fmt: skip


def _said_by_timm(name: str) -> Mapping[str, Any]:
    import timm

    own = timm.get_pretrained_cfg(_of_timm(name))
    if own is None:
        raise ArtifactError(f"timm does not say how pictures are prepared for {name}: take another model")
    _, height, width = own.input_size
    squash = own.crop_mode == "squash"
    if height != width or own.crop_mode not in ("center", "squash") or (squash and own.crop_pct < 1):
        raise ArtifactError(f"{name} prepares pictures in a way that is not known here: take another model")
    return {
        "size": height, "mean": own.mean, "std": own.std, "interpolation": own.interpolation,
        "resize_mode": "squash" if squash else "shortest",
        "resize": None if squash else math.floor(height / own.crop_pct),
    }  # fmt: skip
