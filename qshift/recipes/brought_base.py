"""`qshift fit clip`: a base model around towers that somebody else has trained.

Towers are never trained, and nothing else is unless the user asks for heads (`brought_heads.py`).

The user's pictures, as these towers see them, give the hash head and all that is measured: clean statistics
of the normalisation layers, constants, the reference of drift, the quality to expect. They are encoded into
a file (`encoders/stored.py`) and never held together; what needs many at once takes a draw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from core.errors import ConfigError, Refused
from core.references import Calibration, SourcePairs
from core.seeds import generator
from core.types import Floats, Modality
from encoders.base_model import Base, Parts
from encoders.images import Content
from encoders.norms import calibrate
from encoders.repair import count_words
from encoders.stored import Stored
from encoders.text import TextTower
from qshift.data.emoji import EmojiSet
from qshift.recipes.asked import CleanQueries, batches_asked
from qshift.recipes.brought import PLAIN, PURPOSE, STEPS, Brought, in_a_file, left_out, taken
from qshift.recipes.brought_heads import steps, with_heads
from qshift.recipes.captioned import check_bits, drawn
from qshift.recipes.encode import (
    BATCH,
    Count,
    Progress,
    batches_of,
    collated,
    encoded,
    jittered,
    prepared_pictures,
)
from qshift.recipes.expected import JUDGED, Curves, curves_of, gallery_of
from qshift.recipes.finish import Clean, finish_base, hash_head
from qshift.recipes.measure import BLOCK, first_hits
from qshift.shifts.images import Picture

MEANS = 4096
"""Captions that the mean of texts is taken of."""
MEMORY = 128


def fit_brought_base(
    folder: Path,
    brought: Brought,
    data: EmojiSet,
    cache: Path,
    bits: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
    name: str = "clip",
    heads: bool = False,
) -> list[str]:
    """Measures the towers on the user's pictures and writes the base model.

    Args:
        folder: where the base goes.
        brought: the towers.
        data: pictures, with captions or with classes as their labels.
        cache: folder of the features, where an interrupted fit goes on.
        bits: width of the codes, a multiple of 8.
        seed: of every draw and of the hash head.
        progress: called with (done, total, text).
        name: of the base.
        heads: learns a linear map behind each tower first.

    Returns:
        What the user should know, a sentence each.

    Raises:
        ConfigError: bits no multiple of 8, or too few pictures that can be read.
        ArtifactError: towers that give no numbers.
    """
    check_bits(len(data), bits, brought.image.width)
    asking = len(drawn(len(data), seed, PURPOSE))
    learning = steps(data) if heads else 0
    count = Count(OwnPictures.steps(data, asking, brought.text is not None) + learning, progress)
    found = in_a_file(brought.image, contents_of(data), cache, count)
    check_bits(len(found), bits, brought.image.width)
    learnt = []
    if heads:
        trained = with_heads(brought, data, found, cache, seed, count)
        brought, found, learnt = trained.brought, trained.found, [trained.note]
    own = OwnPictures(brought, data, found, seed, count)
    parts, clean, hits = own.measured(bits, name)
    finish_base(folder, parts, clean, own.expected)
    return [*left_out(found, data.hexcodes), *learnt, *filter(None, [hits])]


class OwnPictures:
    """The pictures that were taken, by place: their items lie at `found.items` of the set.

    Args:
        brought: the towers that see them.
        data: the set.
        found: features of what was taken, in order.
        seed: of every draw.
        count: takes `OwnPictures.steps` steps.
    """

    def __init__(self, brought: Brought, data: EmojiSet, found: Stored, seed: int, count: Count) -> None:
        self._brought, self._data, self._found = brought, data, found
        self._seed, self._count = seed, count
        self._items: list[int] = found.items.tolist()
        self._labels = [data.labels[item] for item in self._items]
        self._asked = drawn(len(found), seed, PURPOSE)
        shared = 2 * len(set(self._labels)) <= len(self._labels)
        # Whoever asks by class has other pictures of it: a copy must not find itself.
        places = np.array([place for place, _ in self._asked], np.int64)
        self._copies: NDArray[np.int64] | None = places if shared else None

    @staticmethod
    def steps(data: EmojiSet, asking: int, texts: bool) -> int:
        """Steps of a count for a set of which so many pictures ask, the encoding of the set among them."""
        words = batches_of(asking, min(MEANS, len(data))) if texts else 0
        asked = batches_asked("image", "text") if texts else batches_asked("image")
        return batches_of(len(data), asking) + words + asked

    def clean(self) -> tuple[dict[Modality, Calibration], dict[Modality, Clean], dict[str, float]]:
        """Statistics of clean pictures, clean queries, and how often these find what they ask for."""
        image, text, gallery = self._brought.image, self._brought.text, self._found.features
        looks = self._taken_again(self._asked, "")
        calibration: dict[Modality, Calibration] = {}
        if image.hook_points().widths:
            calibration["image"] = calibrate(image, collated(image, looks, self._count))
            queries = calibration["image"].features
        else:
            queries = encoded(image, looks, self._count)
        step = STEPS["image"] if calibration else PLAIN
        clean: dict[Modality, Clean] = {"image": Clean(queries, gallery, step, own=self._copies)}
        first: dict[str, float] = {}
        if self._copies is None:
            asked = [self._labels[place] for place, _ in self._asked]
            first["image_to_image_r1"] = first_hits(queries, gallery, self._labels, asked)
        if text is not None:
            words, first["text_to_image_r1"] = self._words(text)
            clean["text"] = Clean(words, gallery, STEPS["text"])
        return calibration, clean, first

    def measured(self, bits: int, name: str) -> tuple[Parts, dict[Modality, Clean], str]:
        """All but what `finish_base` measures; and how often clean queries find what they ask for."""
        text, gallery = self._brought.text, self._found.features
        calibration, clean, first = self.clean()
        seen = {"image": gallery[self._draw(BLOCK, "head")]}
        if text is not None:
            seen["text"] = self._captions(text)
        parts = Parts(
            name=name,
            towers=self._brought.folder,
            head=hash_head(seen, bits, self._seed),  # type: ignore[arg-type]
            projections=self._brought.projections,
            calibration=calibration,
            provenance={
                "pictures": self._data.attribution, "items": len(self._found), "seed": self._seed,
                "left_out": len(self._found.left), "towers": dict(self._brought.about), **first,
            },
            memory=self._memory(),
            vocabulary={} if text is None else count_words(self._all_captions()),
            preprocess=self._brought.image.preprocess,
        )  # fmt: skip
        return parts, clean, said_of(first, len(self._found))

    def expected(self, base: Base) -> Curves:
        """Of pictures taken once more and of captions, among items drawn where there are too many."""
        rows = self._draw(JUDGED, "judged")
        asked = drawn(len(rows), self._seed, f"{PURPOSE} expected")
        chosen = [(int(rows[place]), copy) for place, copy in asked]
        own = None if self._copies is None else np.array([place for place, _ in asked], np.int64)
        labels = [self._labels[place] for place, _ in chosen]
        clean = [CleanQueries(list(self._taken_again(chosen, " expected")), labels, own)]
        if (text := self._brought.text) is not None:
            pairs = self._captioned(text, chosen)
            words, wanted = [caption for _, caption in pairs], [self._labels[place] for place, _ in pairs]
            clean.append(CleanQueries(words, wanted, modality="text"))
        gallery = gallery_of(base, self._found.features[rows], [self._labels[row] for row in rows])
        return curves_of(base, gallery, clean, self._seed, self._count)

    def _draw(self, most: int, what: str) -> NDArray[np.int64]:
        """Places in order: all of them, or as many as these."""
        n = len(self._found)
        if n <= most:
            return np.arange(n, dtype=np.int64)
        return np.sort(generator(self._seed, what, PURPOSE).choice(n, most, replace=False)).astype(np.int64)

    def _taken_again(self, asked: list[tuple[int, int]], what: str) -> Iterator[Picture]:
        for place, copy in asked:
            yield jittered(self._data, [self._items[place]], self._seed, f"{PURPOSE}{what} {copy}")[0]

    def _words(self, text: TextTower) -> tuple[Floats, float]:
        """Unit features of captions that ask, in whole batches, and how many find a picture of theirs."""
        pairs = self._captioned(text, self._asked)
        if not pairs:
            raise ConfigError(
                "the text tower takes not one caption: write captions, or try another tokenizer"
            )
        size = max(2 * BATCH, len(pairs) // BATCH * BATCH)
        pairs = (pairs * -(-size // len(pairs)))[:size]
        words = encoded(text, [caption for _, caption in pairs], self._count)
        wanted = [self._labels[place] for place, _ in pairs]
        return words, first_hits(words, self._found.features, self._labels, wanted)

    def _captioned(self, text: TextTower, asked: list[tuple[int, int]]) -> list[tuple[int, str]]:
        """Places, each with a caption that the tower takes: of each copy the next one."""
        pairs = []
        for place, copy in asked:
            captions = self._data.captions(self._items[place])
            turned = captions[copy % len(captions) :] + captions
            if (caption := taken(text, turned)) is not None:
                pairs.append((place, caption))
        return pairs

    def _captions(self, text: TextTower) -> Floats:
        """Unit features of first captions, for the mean of texts."""
        drawn_items = (self._items[place] for place in self._draw(MEANS, "means").tolist())
        found = (taken(text, self._data.captions(item)) for item in drawn_items)
        return encoded(text, [caption for caption in found if caption is not None], self._count)

    def _all_captions(self) -> Iterator[str]:
        return (one for item in self._items for one in dict.fromkeys(self._data.captions(item)))

    def _memory(self) -> dict[Modality, SourcePairs]:
        """Pictures taken again, and captions, each with the features [D] of its own item."""
        n = len(self._found)
        places = generator(self._seed, "memory", PURPOSE).permutation(n)[:MEMORY].tolist()
        looks = self._taken_again([(place, 0) for place in places], " memory")
        targets = self._found.features[places]
        pairs: dict[Modality, SourcePairs] = {
            "image": SourcePairs(prepared_pictures(self._brought.image, looks), targets)
        }
        if (text := self._brought.text) is not None:
            said = [taken(text, self._data.captions(self._items[place])) for place in places]
            kept = [row for row, one in enumerate(said) if one is not None]
            pairs["text"] = SourcePairs(tuple(one for one in said if one is not None), targets[kept])
        return pairs


def contents_of(data: EmojiSet) -> Iterator[Callable[[], Content]]:
    """What gives each picture of a set; a file that cannot be opened raises Refused."""
    return (partial(_content, data, item) for item in range(len(data)))


def _content(data: EmojiSet, item: int) -> Content:
    try:
        return data.content(item)
    except ConfigError as error:  # a file that cannot be opened
        raise Refused("image", str(error)) from error


def said_of(first: dict[str, float], items: int) -> str:
    """How often clean queries find what they ask for first, as a sentence; "" where none was measured."""
    names = {"image_to_image_r1": "pictures taken again", "text_to_image_r1": "captions"}
    shares = ", ".join(f"{100 * share:.1f} % of {names[key]}" for key, share in first.items())
    return f"in floats, what they ask for comes first among {items:,} items for {shares}" if shares else ""
