"""`qshift fit clip --train heads`: linear maps behind frozen towers, learnt from the user's captions.

Captions are encoded into a file as pictures are. A tenth of the pictures is kept aside to choose the epoch
by, another tenth to report; both with all captions that are equal to one of theirs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from core.errors import ConfigError
from core.seeds import generator
from core.types import Floats
from encoders.linear_heads import HeadsConfig, Pairs, fit_heads
from encoders.projection import Projection
from encoders.stored import Stored
from qshift.data.emoji import EmojiSet
from qshift.recipes.brought import PURPOSE, Brought, in_a_file
from qshift.recipes.brought_towers import behind
from qshift.recipes.encode import Count, batches_of
from qshift.recipes.measure import first_hits

ASIDE = 10
"""One picture of so many is kept aside to choose by, and one to report."""
MOST_ASIDE = 2000
FEWEST = 100
"""Pictures with a caption of their own: a tenth of less says nothing."""
BLOCK = 8192

Places = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Trained:
    """Towers with their maps, features behind them, and what to say of it."""

    brought: Brought
    found: Stored
    note: str


def captions_of(data: EmojiSet) -> int:
    """How many captions are encoded."""
    return sum(len(dict.fromkeys(data.captions(item))) for item in range(len(data)))


def steps(data: EmojiSet) -> int:
    """That `with_heads` counts."""
    return batches_of(captions_of(data)) + HeadsConfig().epochs


def with_heads(
    brought: Brought, data: EmojiSet, found: Stored, cache: Path, seed: int, count: Count
) -> Trained:
    """Learns both maps.

    Args:
        brought: with a text tower, whose features are as wide as those of pictures.
        data: captioned pictures.
        found: their features.
        cache: folder of the features; epochs are kept there, too.
        seed: of split and batches.
        count: takes `steps(data)`.

    Raises:
        ConfigError: towers or captions that there is nothing to learn from.
    """
    text = brought.text
    if text is None or text.width != brought.image.width:
        raise ConfigError(
            "--train heads needs towers for pictures and texts that share a space: give an open_clip model"
        )
    pairs, identity = _pairs(brought, data, found, cache, count)
    train, choose, report = split(pairs, seed)
    config = HeadsConfig(seed=seed)
    heads = fit_heads(
        pairs, train, choose, config, cache / "heads", f"{identity} {seed}",
        lambda: count.step("training the heads"),
    )  # fmt: skip
    before, after = recall(pairs, report, None), recall(pairs, report, (heads.image, heads.text))
    told = _told(before, after, heads.epoch, len(np.unique(pairs.picture[report])))
    about: dict[str, Any] = {"epoch": heads.epoch, "held_out_before": before, "held_out_after": after}
    known = replace(brought, about={**brought.about, "heads": about})
    if not heads.epoch:
        return Trained(known, found, told)
    projections: Mapping[Any, Projection] = {"image": heads.image, "text": heads.text}
    towers = behind(brought, projections)
    through = Stored(
        _through(found.features, heads.image, cache / "image-heads.f32"), found.items, found.left
    )
    known = replace(known, image=towers.image, text=towers.text, projections=projections)
    return Trained(known, through, told)


def split(pairs: Pairs, seed: int) -> tuple[Places, Places, Places]:
    """Captions to learn from, to choose by and to report: no caption of one part is equal to one of another.

    Raises:
        ConfigError: too few pictures with a caption of their own.
    """
    first = np.unique(pairs.picture, return_index=True)[1]
    groups = np.unique(pairs.same[first])  # pictures whose first captions are equal stay together
    if len(groups) < FEWEST:
        raise ConfigError(
            f"--train heads learns from captions that tell pictures apart: {len(groups)} different ones "
            f"found, at least {FEWEST} are needed"
        )
    aside = min(MOST_ASIDE, len(groups) // ASIDE)
    order = generator(seed, "heads", PURPOSE).permutation(groups)
    group = pairs.same[first][np.searchsorted(pairs.picture[first], pairs.picture)]
    choosing, reporting = np.isin(group, order[:aside]), np.isin(group, order[aside : 2 * aside])
    kept = np.isin(pairs.same, pairs.same[choosing | reporting])
    also = np.isin(pairs.same, pairs.same[choosing]) & reporting
    return tuple(np.flatnonzero(part) for part in (~kept, choosing, reporting & ~also))  # type: ignore[return-value]


def recall(pairs: Pairs, rows: Places, maps: tuple[Projection, Projection] | None) -> dict[str, float]:
    """R@1 among the pictures of these captions: captions ask for pictures, and pictures for captions."""
    pictures, own = np.unique(pairs.picture[rows], return_inverse=True)
    images, texts = np.asarray(pairs.images[pictures]), np.asarray(pairs.texts[rows])
    if maps is not None:
        images, texts = _mapped(images, maps[0]), _mapped(texts, maps[1])
    numbers, wanted = [str(n) for n in range(len(pictures))], [str(n) for n in own.tolist()]
    return {
        "text_to_image_r1": first_hits(texts, images, numbers, wanted),
        "image_to_text_r1": first_hits(images, texts, wanted, numbers),
    }


def _pairs(brought: Brought, data: EmojiSet, found: Stored, cache: Path, count: Count) -> tuple[Pairs, str]:
    """Captions of the pictures that were taken, encoded; and what tells them from others."""
    assert brought.text is not None
    said: list[tuple[int, str]] = []
    for place, item in enumerate(found.items.tolist()):
        said += [(place, caption) for caption in dict.fromkeys(data.captions(item))]
    contents: list[Callable[[], Any]] = [partial(str, caption) for _, caption in said]
    read = in_a_file(brought.text, contents, cache, count)
    rows = read.items.tolist()
    numbers: dict[str, int] = {}
    same = [numbers.setdefault(said[row][1], len(numbers)) for row in rows]
    sha = hashlib.sha256()
    for row in rows:
        sha.update(f"{said[row][0]}|{len(said[row][1])}|{said[row][1]}".encode("utf-8", "surrogatepass"))
    for features in (found.features, read.features):
        for start in range(0, len(features), BLOCK):
            sha.update(np.ascontiguousarray(features[start : start + BLOCK]).data)
    places = np.array([said[row][0] for row in rows], np.int64)
    return Pairs(found.features, read.features, places, np.array(same, np.int64)), sha.hexdigest()[:32]


def _mapped(rows: Floats, head: Projection) -> Floats:
    with torch.no_grad():
        unit: Floats = head(torch.from_numpy(np.ascontiguousarray(rows))).numpy()
    return unit


def _through(features: Floats, head: Projection, path: Path) -> Floats:
    """Features [n, D] behind a map, into a file as they come."""
    with path.open("wb") as file:
        for start in range(0, len(features), BLOCK):
            file.write(_mapped(features[start : start + BLOCK], head).tobytes())
    found: Floats = np.memmap(path, np.float32, "c", shape=(len(features), head.width))
    return found


def _told(before: Mapping[str, float], after: Mapping[str, float], epoch: int, pictures: int) -> str:
    if not epoch:
        return "heads: no epoch ranked pictures that were kept aside better than the model as it is: left out"
    parts = []
    for key, name in (("text_to_image_r1", "captions"), ("image_to_text_r1", "pictures")):
        parts.append(f"{100 * before[key]:.1f} -> {100 * after[key]:.1f} % of {name}")
    return f"heads, R@1 among {pictures:,} pictures that were held out: {', '.join(parts)}"
