"""A small open_clip model from nothing but captioned pictures: two transformers, full BPE vocabulary.

    logits = s F_img F_txt^T                                         [B, U]
    T_ij = 1 if caption j is one of picture i's, rows (columns) summing to 1
    loss = -1/2 (mean_i sum_j T_ij log_softmax(logits)_ij + the same with logits^T)

A batch has one caption a picture; equal captions are encoded once. With captions that pictures share, plain
InfoNCE would push true pairs apart; where none is shared this is InfoNCE (CLIP, Radford et al. 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip import SimpleTokenizer
from torch import Tensor
from torch.nn import functional as F

from core.errors import ConfigError
from encoders.contrast import multi_positive
from encoders.images import Content
from encoders.small_clip import Looks, Progress, ScratchConfig, fresh, optimised, write_clip
from encoders.threads import one_thread

__all__ = ["ScratchConfig", "train_clip"]


def train_clip(
    folder: Path,
    pictures: Sequence[Content],
    captions: Sequence[tuple[str, ...]],
    config: ScratchConfig | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[float, ...]:
    """Trains a model and writes it in open_clip's `local-dir:` format; one seed gives the same bytes.

    Args:
        folder: created if missing; gets open_clip_config.json and open_clip_model.safetensors.
        pictures: n files, or RGB [H, W, 3], on white where they are no full frames.
        captions: of each picture, at least one; pictures may share captions.
        config: sizes and training.
        seed: of weights, batches, captions and augmentation.
        progress: called with (done, total, text) after every step.

    Returns:
        The loss of every step.

    Raises:
        ConfigError: fewer than two pictures, or pictures and captions that do not fit each other.
        ArtifactError: the loss left the finite numbers.
    """
    config = config or ScratchConfig()
    _check(pictures, captions)
    looks, draw = Looks(pictures, config), torch.Generator().manual_seed(seed)
    with one_thread():
        model = fresh(config, seed)
        contrast = _Contrast(model, looks, captions, config, draw)
        losses = optimised(model, len(looks), contrast.loss, config, draw, progress)
    write_clip(folder, model, config, looks.preprocess)
    return losses


class _Contrast:
    """The loss of a batch of pictures against one caption of each."""

    def __init__(
        self,
        model: Any,
        looks: Looks,
        captions: Sequence[tuple[str, ...]],
        config: ScratchConfig,
        draw: torch.Generator,
    ) -> None:
        ids, self._owned = _caption_ids(captions)
        self._tokens = SimpleTokenizer(context_length=config.context)(list(ids))
        self._model, self._looks, self._draw = model, looks, draw

    def loss(self, items: Tensor) -> Tensor:
        own = self._owned[items]
        # Rows are filled up by repetition: only the first places of a row are distinct captions.
        counts = torch.tensor([len(set(row)) for row in own.tolist()])
        place = (torch.rand(len(items), generator=self._draw) * counts).long()
        drawn = torch.from_numpy(np.unique(own.gather(1, place[:, None]).numpy()))
        positive = (own[:, :, None] == drawn).any(1)
        seen = F.normalize(self._model.visual(self._looks.drawn(items, self._draw)), dim=-1)
        read = F.normalize(self._model.text(self._tokens[drawn]), dim=-1)
        return multi_positive(self._model.logit_scale.exp() * seen @ read.T, positive)


def _caption_ids(captions: Sequence[tuple[str, ...]]) -> tuple[dict[str, int], Tensor]:
    """Every caption once with its number, and the numbers of each picture's own [n, M], repeated to fill."""
    ids: dict[str, int] = {}
    own = [
        [ids.setdefault(text, len(ids)) for text in dict.fromkeys(texts) if text.strip()]
        for texts in captions
    ]
    widest = max(map(len, own))
    return ids, torch.tensor([(row * widest)[:widest] for row in own])


def _check(pictures: Sequence[Content], captions: Sequence[tuple[str, ...]]) -> None:
    if len(pictures) < 2:
        raise ConfigError(f"expected at least two pictures, got {len(pictures)}")
    if len(captions) != len(pictures):
        raise ConfigError(f"{len(pictures)} pictures have {len(captions)} sets of captions: expected equal")
    bare = next((i for i, texts in enumerate(captions) if not any(text.strip() for text in texts)), None)
    if bare is not None:
        raise ConfigError(f"picture {bare} has no caption: expected at least one text that is not empty")
