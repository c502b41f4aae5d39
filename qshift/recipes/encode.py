"""Contents through a tower as the service takes them: prepared one by one, encoded 64 at a time, counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice

import numpy as np
import torch

from core.protocols import Encoder
from core.seeds import generator
from core.types import Floats
from encoders.text import TextTower
from encoders.vision import ImageTower
from qshift.data.emoji import EmojiSet
from qshift.shifts.images import Picture, jitter

Progress = Callable[[int, int, str], None]
"""Called with (done, total, text)."""
BATCH = 64  # of the service; the constants hold for it


class Count:
    """Turns finished pieces of work into calls of a progress function."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._done, self._total, self._progress = 0, total, progress

    def step(self, text: str) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total, text)


def batches_of(*sizes: int) -> int:
    """How many steps `collated` counts for contents of these numbers."""
    return sum(-(-size // BATCH) for size in sizes)


def collated(tower: Encoder, contents: Iterable[object], count: Count) -> Iterable[torch.Tensor]:
    """Inputs of a tower as the service prepares them, 64 rows at a time without padding."""
    waiting = iter(contents)
    while batch := list(islice(waiting, BATCH)):
        prepared = [tower.prepare(content) for content in batch]
        yield tower.collate(prepared, len(prepared))
        count.step("encoding names" if isinstance(batch[0], str) else "encoding pictures")


def encoded(tower: Encoder, contents: Iterable[object], count: Count) -> Floats:
    """Unit features [n, D]."""
    rows = [tower.encode(inputs) for inputs in collated(tower, contents, count)]
    found: Floats = torch.cat(rows).cpu().numpy()
    return found


def encoded_raw(tower: ImageTower | TextTower, contents: Iterable[object], count: Count) -> Floats:
    """Features [n, raw width] of a tower before any projection, of any length."""
    with torch.no_grad():
        rows = [tower.raw(inputs).float().numpy() for inputs in collated(tower, contents, count)]
    return np.concatenate(rows)


def prepared_pictures(tower: Encoder, contents: Iterable[object]) -> tuple[Picture, ...]:
    """Pictures [H, W, 3] of one size, which the tower takes as they are: prepared once, the same for ever."""
    prepared = (tower.prepare(content) for content in contents)
    return tuple(np.ascontiguousarray(pixels.transpose(1, 2, 0)) for pixels in prepared)


def jittered(data: EmojiSet, items: Iterable[int], seed: int, purpose: str) -> list[Picture]:
    """Pictures as taken again, each at its own aspect ratio; draws are keyed by seed, item and purpose."""
    return [jitter(data.colour[i], 1.0, generator(seed, data.hexcodes[i], purpose)) for i in items]
