"""Queries of a picture and a text: a weighted mean of the two towers' unit features, at unit length.

q = normalise(w image + (1 - w) text). Late fusion without training of its own, the usual baseline of composed
retrieval; the weight and the estimates below are ours (docs/reference/queries.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from core.errors import ArtifactError, ConfigError, Refused
from core.hooks import HookPoints
from core.protocols import Encoder
from core.references import Calibration
from core.types import Floats, Modality

if TYPE_CHECKING:
    from core.protocols import Hook, Params

SHORTEST = 1e-3
"""Length of a mean of unit features below which it points nowhere in particular."""
PARTS = ("image.", "text.")


class Pair(NamedTuple):
    """One input: what each tower's `collate` made, row by row."""

    image: Any
    text: Any


class Composed:
    """(picture, text) -> unit features. Adapts both towers; the hook is in front of the image tower's norms.

    Args:
        image, text: encoders into one shared space.
        weight: w, of the picture, 0 to 1.

    Raises:
        ArtifactError: encoders of different widths.
        ConfigError: a weight out of range.
    """

    def __init__(self, image: Encoder, text: Encoder, weight: float = 0.5) -> None:
        if image.width != text.width:
            raise ArtifactError(
                f"pictures have {image.width} features and texts {text.width}: composed queries need towers "
                "into one space"
            )
        if not 0 <= weight <= 1:
            raise ConfigError(f"the picture's weight is {weight}: expected 0 to 1")
        self._image, self._text, self._weight = image, text, weight

    @property
    def modality(self) -> Modality:
        return "composed"

    @property
    def width(self) -> int:
        return self._image.width

    def prepare(self, content: Any) -> tuple[Any, Any]:
        """(picture, text), each as its own encoder takes it. Raises Refused, naming the part."""
        if not isinstance(content, tuple | list) or len(content) != 2:
            raise Refused("validate", f"expected a picture and a text, got {type(content).__name__}")
        picture, text = content
        return self._image.prepare(picture), self._text.prepare(text)

    def collate(self, prepared: Sequence[tuple[Any, Any]], rows: int) -> Pair:
        pictures, texts = [one[0] for one in prepared], [one[1] for one in prepared]
        return Pair(self._image.collate(pictures, rows), self._text.collate(texts, rows))

    def encode(self, inputs: Pair, params: Params | None = None, hook: Hook | None = None) -> Tensor:
        """Unit float32 features [rows, D]; `params` under the prefixes "image." and "text.".

        Raises:
            ArtifactError: a parameter of neither tower.
        """
        of_image, of_text = (None, None) if params is None else _routed(params)
        image = self._image.encode(inputs.image, of_image, hook)
        text = self._text.encode(inputs.text, of_text)
        return united(self._weight * image + (1 - self._weight) * text, image)

    def adaptable(self) -> dict[str, Tensor]:
        towers = zip(PARTS, (self._image, self._text))
        return {part + name: t for part, tower in towers for name, t in tower.adaptable().items()}

    def hook_points(self) -> HookPoints:
        """Of the image tower."""
        return self._image.hook_points()


def _routed(params: Params) -> tuple[Params, Params]:
    strangers = [name for name in params if not name.startswith(PARTS)]
    if strangers:
        raise ArtifactError(f"parameter {strangers[0]} belongs neither to the image nor to the text tower")
    image, text = (
        {name.removeprefix(part): tensor for name, tensor in params.items() if name.startswith(part)}
        for part in PARTS
    )
    return image, text


def united(mean: Tensor, first: Tensor) -> Tensor:
    """Means [B, D] of unit features, at unit length.

    Where the parts cancel out (hostile: a picture and its opposite) the mean has no direction and a gradient
    without bound: there the feature of the first part stands for all.
    """
    short = torch.linalg.vector_norm(mean.detach(), dim=-1, keepdim=True) < SHORTEST
    return normalize(torch.where(short, first, mean), dim=-1)


def composed_mean(image: Floats, text: Floats, weight: float = 0.5) -> Floats:
    """Mean [D] of composed features, estimated from the means of both modalities.

    E[q] = (w m_i + (1-w) m_t) / |w v + (1-w) u|, and the expected square of that length is
    w^2 + (1-w)^2 + 2w(1-w) m_i.m_t when picture and text are drawn independently, which is what "this one,
    but ..." comes nearest to. Reconstructed; a base that has measured its own mean does not need it.
    """
    square = weight**2 + (1 - weight) ** 2 + 2 * weight * (1 - weight) * float(np.dot(image, text))
    mean: Floats = ((weight * image + (1 - weight) * text) / max(square, SHORTEST**2) ** 0.5).astype(
        np.float32
    )
    return mean


def composed_calibration(image: Calibration, text: Floats, weight: float = 0.5) -> Calibration:
    """The image tower's calibration with its features where composed queries lie; statistics unchanged.

    Each calibration picture is composed with the mean text [D], so that content is matched as for pictures
    and a constant text moves nothing. Reconstructed.
    """
    return replace(image, features=composed_features(image.features, text, weight))


def composed_features(image: Floats, text: Floats, weight: float = 0.5) -> Floats:
    """Unit features [n, D] of composed queries, from those of pictures [n, D] and of texts [n, D] or [D]."""
    mean = weight * image + (1 - weight) * text
    features: Floats = mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), SHORTEST)
    return features.astype(np.float32)
