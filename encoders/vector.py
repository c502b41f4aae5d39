"""Queries that are feature vectors already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from core.errors import ArtifactError, Refused
from core.hooks import HookPoints
from core.types import Floats, Modality
from encoders.rows import check_rows

if TYPE_CHECKING:
    from core.protocols import Hook, Params


class VectorEncoder:
    """Passes vectors [D] through, at unit length. What adapts is a scale and a bias per feature.

    Args:
        width: D of the space that the vectors must already live in.
        device: where features go.
    """

    def __init__(self, width: int, device: str = "cpu") -> None:
        self._width, self.device = width, device

    @property
    def modality(self) -> Modality:
        return "vector"

    @property
    def width(self) -> int:
        return self._width

    def prepare(self, content: Any) -> Floats:
        """One vector -> unit float32 [D]. Raises Refused for another width, NaN, infinity or zero."""
        try:
            vector = np.asarray(content, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise Refused("validate", f"expected {self._width} numbers: {error}") from error
        if vector.shape != (self._width,):
            raise Refused("validate", f"expected a vector of {self._width} numbers, got shape {vector.shape}")
        if not np.isfinite(vector).all():
            raise Refused("validate", "the vector holds NaN or infinity")
        largest = float(np.abs(vector).max())
        if largest < 1e-30:
            raise Refused("validate", "the vector is zero: it has no direction to search in")
        vector /= largest  # squares of very large and very small numbers leave the range
        unit: Floats = (vector / np.linalg.norm(vector)).astype(np.float32)
        return unit

    def collate(self, prepared: Sequence[Floats], rows: int) -> Tensor:
        """[rows, D] float32; added rows repeat the last vector."""
        check_rows(len(prepared), rows, "vectors")
        last = prepared[-1] if len(prepared) else np.eye(1, self._width, dtype=np.float32)[0]
        block = np.empty((rows, self._width), dtype=np.float32)
        block[: len(prepared)] = prepared if len(prepared) else 0
        block[len(prepared) :] = last
        return torch.from_numpy(block).to(self.device)

    def encode(self, inputs: Any, params: Params | None = None, hook: Hook | None = None) -> Tensor:
        """Unit float32 features [rows, D]. The hook is never called.

        Raises:
            ArtifactError: parameters of another encoder.
        """
        if not params:
            rows: Tensor = inputs
            return rows
        expected = {"affine.weight", "affine.bias"}
        if not set(params) <= expected or any(t.shape != (self._width,) for t in params.values()):
            raise ArtifactError(
                f"parameters {sorted(params)} do not belong to vectors of width {self._width}"
            )
        moved = inputs * params.get("affine.weight", 1.0) + params.get("affine.bias", 0.0)
        return normalize(moved, dim=-1)

    def adaptable(self) -> dict[str, Tensor]:
        return {
            "affine.weight": torch.ones(self._width, device=self.device),
            "affine.bias": torch.zeros(self._width, device=self.device),
        }

    def hook_points(self) -> HookPoints:
        return HookPoints()

    @property
    def fingerprint(self) -> str:
        return f"vector-{self._width}"
