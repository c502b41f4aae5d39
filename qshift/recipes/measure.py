"""What a base model says about its own clean queries: constants of the objectives, reference of drift."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from adapters.online.objectives import gap, refined
from core.errors import ArtifactError
from core.protocols import Encoder
from core.references import DriftReference, SourceConstants
from core.seeds import generator
from core.types import Floats, Modality
from encoders.head import HashHead
from qshift.data.emoji import EmojiSet
from qshift.shifts.images import Picture, jitter

Progress = Callable[[int, int, str], None]
BATCH = 64  # of the service; the constants hold for it
SHORTLIST = 100
NEVER = 1 << 30  # bits: further than any code
QUANTILE = 0.9


@dataclass(frozen=True, slots=True)
class Step:
    """What a modality's adapter starts from."""

    learning_rate: float
    temperature: float


class Count:
    """Turns finished pieces of work into calls of a progress function."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._done, self._total, self._progress = 0, total, progress

    def step(self, text: str) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total, text)


def measure(
    queries: Floats,
    gallery: Floats,
    hashing: HashHead,
    modality: Modality,
    step: Step,
    gallery_modality: Modality = "image",
    own: NDArray[np.int64] | None = None,
) -> tuple[SourceConstants, DriftReference]:
    """What clean queries look like to the service, in batches of 64.

    The neighbour of a query is the most similar of the 100 items nearest by code, as in the service.

    Args:
        queries: unit features [n, D], n a multiple of 64, in random order.
        gallery: unit features [N, D] of the items, N at least 2.
        hashing: gives the codes of both.
        modality: of the queries.
        step: temperature and learning rate.
        gallery_modality: of the items.
        own: [n] positions of the items that the queries are copies of, left out as their neighbours: for
            services whose clean queries are no copies of gallery items.
    """
    q, items = torch.from_numpy(queries), torch.from_numpy(gallery)
    ours, theirs = hashing.codes(q, modality), hashing.codes(items, gallery_modality)
    distances = np.stack([np.bitwise_count(code ^ theirs).sum(1, dtype=np.int32) for code in ours])
    if own is not None:
        distances[np.arange(len(own)), own] = NEVER
    shortlist = torch.from_numpy(np.argsort(distances, axis=1, kind="stable")[:, :SHORTLIST])
    cosine = torch.einsum("bkd,bd->bk", items[shortlist], q)
    if own is not None:  # a gallery of less than a hundred has it in the shortlist
        cosine[shortlist == torch.from_numpy(own)[:, None]] = -2.0
    near = items[shortlist.gather(1, cosine.argmax(1, keepdim=True)).flatten()]
    mask, shape = torch.ones(BATCH, dtype=torch.bool), (-1, BATCH, q.shape[1])
    batches = list(zip(q.reshape(shape), near.reshape(shape)))
    entropy = torch.cat([refined(a, b, step.temperature, mask)[1] for a, b in batches]).numpy()
    gaps = [float(gap(a, b, mask)) for a, b in batches]
    constants = SourceConstants(
        source_gap=float(np.mean(gaps)),
        entropy_ceiling=float(np.quantile(entropy, QUANTILE)),
        temperature=step.temperature,
        learning_rate=step.learning_rate,
        batch=BATCH,
    )
    return constants, DriftReference(queries, entropy, distances.min(1).astype(np.float32), BATCH)


def jittered(data: EmojiSet, items: Iterable[int], seed: int, purpose: str) -> list[Picture]:
    """Pictures as taken again, each at its own aspect ratio; draws are keyed by seed, item and purpose."""
    return [jitter(data.colour[i], 1.0, generator(seed, data.hexcodes[i], purpose)) for i in items]


def collated(tower: Encoder, contents: Iterable[object], count: Count) -> Iterable[torch.Tensor]:
    """Inputs of a tower as the service prepares them, 64 rows at a time without padding."""
    waiting = iter(contents)
    while batch := list(islice(waiting, BATCH)):
        prepared = [tower.prepare(content) for content in batch]
        yield tower.collate(prepared, len(prepared))
        count.step("encoding names" if isinstance(batch[0], str) else "encoding pictures")


def prepared_pictures(tower: Encoder, contents: Iterable[object]) -> tuple[Picture, ...]:
    """Pictures [H, W, 3] of one size, which the tower takes as they are: prepared once, the same for ever."""
    prepared = (tower.prepare(content) for content in contents)
    return tuple(np.ascontiguousarray(pixels.transpose(1, 2, 0)) for pixels in prepared)


def resize_input(towers: Path, side: int) -> None:
    """Makes an open_clip folder take pictures of another side, in pixels: its pooling is global.

    Raises:
        ArtifactError: the folder's description cannot be read.
    """
    path = towers / "open_clip_config.json"
    try:
        config = json.loads(path.read_text())
        config["model_cfg"]["vision_cfg"]["image_size"] = side
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}; write the towers again") from error
    path.write_text(json.dumps(config, indent=1, sort_keys=True))
