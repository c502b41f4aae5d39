"""What recipes for captioned pictures measure of towers that they have just trained: the same for each."""

from __future__ import annotations

from dataclasses import dataclass

from core.errors import ConfigError
from core.references import Calibration
from core.seeds import generator
from core.types import Floats, Modality
from encoders.base_model import Base
from encoders.clip import Towers
from encoders.head import HashHead
from encoders.norms import calibrate
from qshift.data.emoji import EmojiSet
from qshift.recipes.asked import CleanQueries, batches_asked
from qshift.recipes.composed import composed_clean, composed_pairs
from qshift.recipes.encode import BATCH, Count, batches_of, collated, encoded, jittered
from qshift.recipes.expected import Curve, Curves, curves_of, gallery_of
from qshift.recipes.finish import Clean, hash_head
from qshift.recipes.measure import Step, first_hits
from qshift.shifts.images import Picture

CLEAN_QUERIES = 448  # seven batches
FEWEST_QUERIES = 2 * BATCH
ASKED: tuple[Modality, ...] = ("image", "text", "composed")
"""Of which the quality to expect is measured."""
ONCE_MORE = 1000
"""Number of a copy that no clean query is: the reference lies nearer to what it was measured with."""


@dataclass(frozen=True, slots=True)
class Captioned:
    """Pictures and first captions of a set by its own towers, and clean queries for them.

    `gallery` and `texts` are unit features [n, D]; `calibration` and `words` are of clean queries, which ask
    for `items`: pictures taken again, and captions in turn.
    """

    gallery: Floats
    texts: Floats
    items: tuple[int, ...]
    calibration: Calibration
    words: Floats

    def head(self, bits: int, seed: int) -> HashHead:
        """Fitted to the pictures. Raises ArtifactError: see `hash_head`."""
        return hash_head({"image": self.gallery, "text": self.texts}, bits, seed)

    def clean(self, looks: Step, words: Step) -> dict[Modality, Clean]:
        """Of pictures, texts and both together, for `finish_base`, with what each starts from."""
        return {
            "image": Clean(self.calibration.features, self.gallery, looks),
            "text": Clean(self.words, self.gallery, words),
            "composed": composed_clean(self.calibration.features, self.words, self.gallery, looks),
        }

    def curve(self, data: EmojiSet, seed: int, purpose: str, count: Count) -> Curve:
        """Measures the quality to expect by pictures taken once more, captions, and both composed."""

        def measured(base: Base) -> Curves:
            asked = [(item, ONCE_MORE) for item, _ in drawn(len(data), seed, f"{purpose} expected")]
            looks, labels = retaken(data, asked, seed, purpose), [data.labels[item] for item, _ in asked]
            items = gallery_of(base, self.gallery, data.labels)
            words = in_turn(data, asked)
            clean = [
                CleanQueries(looks, labels),
                CleanQueries(words, labels, modality="text"),
                composed_pairs(looks, words, labels),
            ]
            return curves_of(base, items, clean, seed, count)

        return measured

    def found(self, data: EmojiSet) -> dict[str, float]:
        """R@1 of clean pictures taken again, and of first captions, among the pictures, in floats."""
        labels = [data.labels[item] for item in self.items]
        return {
            "image_to_image_r1": first_hits(self.calibration.features, self.gallery, data.labels, labels),
            "text_to_image_r1": first_hits(self.texts, self.gallery, data.labels),
        }


def captioned(towers: Towers, data: EmojiSet, seed: int, purpose: str, count: Count) -> Captioned:
    """Encodes a set, and queries for it that no stream asks.

    Args:
        towers: just trained.
        data: what they were trained on.
        seed: of the clean queries.
        purpose: part of the key of every draw, the recipe's own.
        count: takes `encodings(len(data))` steps.
    """
    gallery = encoded(towers.image, map(data.content, range(len(data))), count)
    texts = encoded(towers.text, [data.captions(item)[0] for item in range(len(data))], count)
    asked = drawn(len(data), seed, purpose)
    looks, words = retaken(data, asked, seed, purpose), in_turn(data, asked)
    calibration = calibrate(towers.image, collated(towers.image, looks, count))
    items = tuple(item for item, _ in asked)
    return Captioned(gallery, texts, items, calibration, encoded(towers.text, words, count))


def encodings(n: int) -> int:
    """How many steps `captioned` and its curve count for n pictures."""
    return 2 * batches_of(n) + 2 * batches_of(_size(n)) + batches_asked(*ASKED)


def drawn(n: int, seed: int, purpose: str) -> list[tuple[int, int]]:
    """(item, copy) of each clean query: whole batches, small sets in several copies."""
    size = _size(n)
    found: list[tuple[int, int]] = []
    for copy in range(-(-size // n)):
        order = generator(seed, f"clean queries {copy}", purpose).permutation(n)
        found += [(int(item), copy) for item in order]
    return found[:size]


def retaken(data: EmojiSet, asked: list[tuple[int, int]], seed: int, purpose: str) -> list[Picture]:
    """Pictures taken again, each copy anew."""
    return [jittered(data, [item], seed, f"{purpose} {copy}")[0] for item, copy in asked]


def in_turn(data: EmojiSet, asked: list[tuple[int, int]]) -> list[str]:
    """Captions, of each copy the next one."""
    return [data.captions(item)[copy % len(data.captions(item))] for item, copy in asked]


def check_bits(n: int, bits: int, width: int) -> None:
    """Before minutes of training, what the hash head would refuse after them.

    Raises:
        ConfigError: bits no multiple of 8, or too few pictures (n) for codes of features of this width.
    """
    if bits <= 0 or bits % 8:
        raise ConfigError(f"expected a number of bits divisible by 8, got {bits}")
    least = bits if bits <= width else 2
    if n < least:
        raise ConfigError(f"{n} pictures are too few for {bits} bits: expected at least {least}")


def _size(n: int) -> int:
    return min(CLEAN_QUERIES, max(FEWEST_QUERIES, n // BATCH * BATCH))
