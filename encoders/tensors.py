"""Pictures as the user's own preprocessing gives them: tensors, not files."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import ConfigError, Refused
from core.types import Modality
from encoders.rows import check_rows
from encoders.tower import Tower


class TensorTower(Tower):
    """Prepared pictures [3, H, W] -> unit features, by a float32 copy: the module given stays as it is.

    Args:
        tower: pictures [B, 3, H, W] -> [B, D]: a trunk without its classifier.
        size: (H, W) of every picture.
        device: see `Tower`.

    Raises:
        ConfigError: a module that does not take such pictures, or gives something else than rows.
    """

    def __init__(self, tower: nn.Module, size: tuple[int, int], device: str = "cpu") -> None:
        self._size = size
        example = torch.zeros(1, 3, *size)
        # What adapts are small steps of norm layers: halves would lose them.
        own = copy.deepcopy(tower).to(device).float().eval()
        try:
            with torch.no_grad():
                found = own(example.to(device))
        except (RuntimeError, TypeError, ValueError, AssertionError) as error:
            raise ConfigError(
                f"the model does not take pictures [B, 3, {size[0]}, {size[1]}]: {error}"
            ) from error
        if not isinstance(found, Tensor) or found.ndim != 2:
            what = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ConfigError(
                f"the model gives {what} for one picture, expected features [1, D]: take the trunk without "
                "its classifier, such as model.visual of open_clip, or set fc = torch.nn.Identity()"
            )
        super().__init__(own, example, device=device)

    @property
    def modality(self) -> Modality:
        return "image"

    def prepare(self, content: Any) -> Tensor:
        """A tensor float [3, H, W], taken as it is. Raises Refused."""
        if not isinstance(content, Tensor) or tuple(content.shape) != (3, *self._size):
            got = list(content.shape) if hasattr(content, "shape") else type(content).__name__
            raise Refused(
                "image",
                f"expected a tensor [3, {self._size[0]}, {self._size[1]}] as the clean ones, got {got}",
            )
        if not content.is_floating_point():
            raise Refused("image", f"expected floats, as the model takes them, got {content.dtype}")
        if not bool(torch.isfinite(content).all()):
            raise Refused("image", "the picture holds NaN or infinity")
        return content.detach().float()

    def collate(self, prepared: Sequence[Tensor], rows: int) -> Tensor:
        """[rows, 3, H, W] float32; added rows repeat the last picture."""
        check_rows(len(prepared), rows, "pictures")
        last = prepared[-1] if len(prepared) else torch.zeros(3, *self._size)
        filled = [*prepared, *[last] * (rows - len(prepared))]
        pixels = torch.stack(filled).to(self.device) if filled else torch.zeros(0, 3, *self._size)
        return pixels.contiguous(memory_format=torch.channels_last) if self.channels_last else pixels

    def settings(self) -> str:
        return json.dumps({"modality": "image", "tensors": self._size})
