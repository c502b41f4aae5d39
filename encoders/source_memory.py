"""Source pairs that a base kept, drawn anew for each step: what gradients may be decoupled from."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from core.types import Modality
from encoders.base_model import Base

if TYPE_CHECKING:
    from core.protocols import Params


def source_memory(
    base: Base, modality: Modality, rows: int, seed: int
) -> Callable[[Params, int], tuple[Tensor, Tensor]] | None:
    """Draws at most `rows` source pairs that the base kept; None where it kept none for this modality."""
    kept, encoder = base.memory.get(modality), base.encoders[modality]
    if kept is None:
        return None
    prepared = [encoder.prepare(content) for content in kept.contents]
    targets = torch.from_numpy(np.array(kept.targets, dtype=np.float32))
    count = min(rows, len(prepared))

    def draw(params: Params, step: int) -> tuple[Tensor, Tensor]:
        chosen = np.random.default_rng((seed, step)).permutation(len(prepared))[:count]
        inputs = encoder.collate([prepared[row] for row in chosen.tolist()], count)
        features = encoder.encode(inputs, params)
        return features, targets[torch.from_numpy(chosen)].to(features.device)

    return draw
