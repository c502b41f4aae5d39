"""A small open_clip model that learns the features of a teacher: pictures and texts, by one loss.

    s_i = student's unit feature of item i, moved anew in every step; t_i = teacher's of the same item, fixed
    p_i = softmax_j(t_i . b_j / T),  q_i = softmax_j(s_i . b_j / T),  b_j = teacher's features of the pictures
    loss = mean_i (1 - s_i . t_i) + w mean_i KL(p_i || q_i),  summed over pictures and texts

The second term is relational: whom an item is near to, and how near. It is that of SEED (Fang et al., ICLR
2021), with all pictures of the fit instead of a queue of past ones, and one temperature for both sides.
Both sides stand in the teacher's shared space, so that a text finds its picture without having met it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from open_clip import SimpleTokenizer
from torch import Tensor
from torch.nn import functional as F

from core.errors import ConfigError
from core.types import Floats
from encoders.images import Content
from encoders.small_clip import Looks, Progress, ScratchConfig, fresh, optimised, write_clip
from encoders.threads import one_thread

BANK = 4096
"""Most pictures that the relational term compares with."""


@dataclass(frozen=True, slots=True)
class DistilConfig:
    """Sizes and training of the student, and the relational term: its temperature T and weight w."""

    student: ScratchConfig
    temperature: float = 0.05
    relation: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature <= 0 or self.relation < 0:
            raise ConfigError(
                f"temperature {self.temperature}, relation {self.relation}: expected a temperature above 0, "
                "no negative weight"
            )


@dataclass(frozen=True, slots=True)
class Taught:
    """What the teacher says of n pictures and of their texts, in P phrasings.

    Args:
        images: unit features [n, D] of the pictures.
        phrases: P times n texts.
        texts: P times the unit features [n, D] of those texts.
    """

    images: Floats
    phrases: Sequence[Sequence[str]]
    texts: Sequence[Floats]


def distil_clip(
    folder: Path,
    pictures: Sequence[Content],
    taught: Taught,
    config: DistilConfig,
    seed: int = 0,
    progress: Progress | None = None,
    device: str = "cpu",
) -> tuple[float, ...]:
    """Trains a student and writes it in open_clip's `local-dir:` format.

    Args:
        folder: created if missing; gets open_clip_config.json and open_clip_model.safetensors.
        pictures: n files, or RGB [H, W, 3], on white where they are no full frames.
        taught: of these pictures.
        config: `student.embed` is the teacher's width D.
        seed: of weights, batches, phrasings and augmentation; on the CPU equal seeds write equal bytes.
        progress: called with (done, total, text) after every step.
        device: where it is trained.

    Returns:
        The loss of every step.

    Raises:
        ConfigError: fewer than two pictures, a teacher of other items, or of another width than the student.
        ArtifactError: the loss left the finite numbers.
    """
    student = config.student
    _check(len(pictures), taught, student)
    looks, draw = Looks(pictures, student, device), torch.Generator().manual_seed(seed)
    with one_thread():
        model = fresh(student, seed).to(device)
        lesson = _Lesson(model, looks, taught, config, draw, device)
        losses = optimised(model, len(looks), lesson.loss, student, draw, progress)
    write_clip(folder, model, student, looks.preprocess)
    return losses


class _Lesson:
    """The loss of a batch: a moved picture and one phrasing of each item."""

    def __init__(
        self,
        model: Any,
        looks: Looks,
        taught: Taught,
        config: DistilConfig,
        draw: torch.Generator,
        device: str,
    ) -> None:
        self._model, self._looks, self._config, self._draw, self._device = model, looks, config, draw, device
        tokenize = SimpleTokenizer(context_length=config.student.context)
        self._tokens = torch.stack([tokenize(list(texts)) for texts in taught.phrases]).to(device)
        self._images = torch.from_numpy(taught.images).to(device)
        self._texts = torch.stack([torch.from_numpy(rows) for rows in taught.texts]).to(device)
        self._bank = self._images[torch.randperm(len(self._images), generator=draw)[:BANK].to(device)]

    def loss(self, items: Tensor) -> Tensor:
        phrase = torch.randint(len(self._tokens), (len(items),), generator=self._draw).to(self._device)
        look, items = self._looks.drawn(items, self._draw), items.to(self._device)
        seen = F.normalize(self._model.visual(look), dim=-1)
        read = F.normalize(self._model.text(self._tokens[phrase, items]), dim=-1)
        return self._apart(seen, self._images[items]) + self._apart(read, self._texts[phrase, items])

    def _apart(self, student: Tensor, teacher: Tensor) -> Tensor:
        far = distance(student, teacher)
        if not self._config.relation:
            return far
        return far + self._config.relation * relational(
            student, teacher, self._bank, self._config.temperature
        )


def distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of 1 - cosine of matched unit rows [B, D]."""
    return 1 - (student * teacher).sum(1).mean()


def relational(student: Tensor, teacher: Tensor, bank: Tensor, temperature: float) -> Tensor:
    """Mean KL(teacher || student) of how unit rows [B, D] are distributed over a bank [N, D]."""
    ours, theirs = (F.log_softmax(rows @ bank.T / temperature, 1) for rows in (student, teacher))
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


def _check(n: int, taught: Taught, student: ScratchConfig) -> None:
    if n < 2:
        raise ConfigError(f"expected at least two pictures, got {n}")
    if not taught.phrases or len(taught.phrases) != len(taught.texts):
        raise ConfigError(
            f"{len(taught.phrases)} phrasings have {len(taught.texts)} sets of features: expected equal, >= 1"
        )
    for what, rows in (("pictures", taught.images), *(("texts", rows) for rows in taught.texts)):
        if rows.shape != (n, student.embed):
            raise ConfigError(
                f"the teacher's features of the {what} are {list(rows.shape)}, expected [{n}, "
                f"{student.embed}]: one row a picture, as wide as the student's"
            )
    if any(len(texts) != n for texts in taught.phrases):
        raise ConfigError(f"{sorted({len(texts) for texts in taught.phrases})} texts for {n} pictures")
