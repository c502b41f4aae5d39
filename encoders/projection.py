"""Behind a tower: a trained MLP into the shared space, or an affine that gives adaptation a hold."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn, ones, zeros
from torch.nn.functional import normalize

from core.errors import ArtifactError


class Projection(nn.Module):
    """LayerNorm, Linear, LayerNorm, GELU, Linear, normalise: raw features [B, inputs] -> unit [B, width].

    Trained on features of frozen towers; always float32.

    Args:
        inputs, hidden, width: of the layers; without `hidden` they are one Linear.
        mean: [inputs]; if given, rows are scaled to length 1 and lose it before everything else.
    """

    mean: Tensor | None

    def __init__(self, inputs: int, hidden: int | None, width: int, mean: Tensor | None = None) -> None:
        super().__init__()
        self.inputs, self.hidden, self.width = inputs, hidden, width
        self.register_buffer("mean", mean)
        self.layers: nn.Module
        if hidden is None:
            self.layers = nn.Linear(inputs, width)
            return
        self.layers = nn.Sequential(
            nn.LayerNorm(inputs),
            nn.Linear(inputs, hidden),
            nn.LayerNorm(hidden),
            nn.GELU(),
            nn.Linear(hidden, width),
        )

    def forward(self, features: Tensor) -> Tensor:
        rows = features if self.mean is None else normalize(features, dim=-1) - self.mean
        unit: Tensor = normalize(self.layers(rows), dim=-1)
        return unit

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Projection:
        """Rebuilds one from its state dict; the sizes follow from the shapes.

        Raises:
            ArtifactError: names or shapes are not those of a projection.
        """
        try:
            hidden: int | None = None
            if "layers.weight" in tensors:
                width, inputs = tensors["layers.weight"].shape
            else:
                hidden, inputs = tensors["layers.1.weight"].shape
                width = tensors["layers.4.weight"].shape[0]
            made = cls(inputs, hidden, width, zeros(inputs) if "mean" in tensors else None)
            made.load_state_dict(dict(tensors))
        except (KeyError, ValueError, RuntimeError) as error:
            raise ArtifactError(f"not the tensors of a projection: {error}; build the base again") from error
        return made


class Affine(nn.Module):
    """Scale and bias per feature, identity at the start: for towers without any normalisation layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(ones(width))
        self.bias = nn.Parameter(zeros(width))

    def forward(self, features: Tensor) -> Tensor:
        return features * self.weight + self.bias
