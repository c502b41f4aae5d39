"""Where statistics are taken: at some places of a layer's input, evenly spread."""

from __future__ import annotations

from torch import Tensor

GRID = 7
"""Rows and columns of places that are looked at: the statistics of a batch do not need more. To measure all
places of all layers costs as much as the forward itself."""


def places(inputs: Tensor, grid: int = GRID) -> Tensor:
    """Inputs [B, C], [B, C, T] or [B, C, H, W] -> [B, P, C] at places in an even grid, about `grid` a side.

    Channels last, as convolutions and tokens lie in memory: sums then run along whole rows.
    """
    if inputs.ndim == 2:
        return inputs[:, None]
    if inputs.ndim == 3:
        step = max(1, inputs.shape[2] // grid**2)
        return inputs[:, :, step // 2 :: step].transpose(1, 2)
    step = max(1, min(inputs.shape[2:]) // grid)
    return inputs[:, :, step // 2 :: step, step // 2 :: step].permute(0, 2, 3, 1).flatten(1, 2)
