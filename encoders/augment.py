"""Random turns, sizes and shifts of whole batches of pictures, for training."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def moved(pictures: Tensor, angle: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Rotates, scales and shifts each picture on white.

    Args:
        pictures: [B, 3, S, S] in [0, 1].
        angle: [B] radians, clockwise as seen.
        scale: [B], 2 is twice as large.
        shift: [B, 2] to the right and down, in units of half a side.
    """
    cos, sin = angle.cos() / scale, angle.sin() / scale
    # The grid asks where each output pixel comes from: the inverse map.
    x = torch.stack((cos, sin, -(cos * shift[:, 0] + sin * shift[:, 1])), 1)
    y = torch.stack((-sin, cos, -(cos * shift[:, 1] - sin * shift[:, 0])), 1)
    grid = F.affine_grid(torch.stack((x, y), 1), list(pictures.shape), align_corners=False)
    # grid_sample fills with zeros: fill the negative.
    return 1.0 - F.grid_sample(1.0 - pictures, grid, align_corners=False)


def shaken(pictures: Tensor, rotation: float, scale: float, shift: float, draw: torch.Generator) -> Tensor:
    """Each picture [B, 3, S, S] moved by its own draw, even within +-rotation, 1 +-scale and +-shift."""
    angle, size, right, down = (torch.rand(4, len(pictures), generator=draw) * 2 - 1).to(pictures.device)
    return moved(pictures, angle * rotation, 1 + size * scale, torch.stack((right, down), 1) * shift)
