"""Pictures cut into patches and shuffled: what DeYO asks an encoder about, to see whether shape mattered."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

PATCHES = 4  # a side, DeYO


def shuffle_patches(pictures: Tensor, keys: Sequence[str], seed: int) -> Tensor:
    """Pictures [B, C, H, W] cut into 4 x 4 patches in an order drawn for each key; padding rows keep theirs.

    Pixels that do not fill a patch are cut off at the right and the bottom.
    """
    height, width = (side // PATCHES * PATCHES for side in pictures.shape[2:])
    rows, channels = pictures.shape[:2]
    cut = pictures[:, :, :height, :width].reshape(
        rows, channels, PATCHES, height // PATCHES, PATCHES, width // PATCHES
    )
    patches = cut.permute(0, 2, 4, 1, 3, 5).reshape(rows, PATCHES**2, channels, height // PATCHES, -1)
    orders = np.tile(np.arange(PATCHES**2), (rows, 1))
    for row, key in enumerate(keys):
        digest = hashlib.sha256(f"patches|{seed}|{key}".encode()).digest()
        orders[row] = np.random.default_rng(int.from_bytes(digest[:8], "little")).permutation(PATCHES**2)
    mixed = patches[torch.arange(rows)[:, None], torch.from_numpy(orders)]
    back = mixed.reshape(rows, PATCHES, PATCHES, channels, height // PATCHES, width // PATCHES)
    joined = back.permute(0, 3, 1, 4, 2, 5).reshape(rows, channels, height, width)
    return joined.contiguous(memory_format=torch.channels_last)
