"""Clean queries of each kind, and the ways in which they are shifted to learn what answers are worth.

Ways are those for choosing settings, or kin of these; none is a corruption that reports ask at that strength
(docs/methods/expected.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.seeds import generator
from core.types import Floats, Modality
from index.gallery import Label
from qshift.shifts.images import PICTURE_SHIFTS, Draw, Picture
from qshift.shifts.wording import TEXT_CORRUPTIONS

Way = Callable[[Any, Draw], Any]
"""(content, generator) -> shifted content."""
KINDS = ("blur", "brightness", "impulse", "pixelate", "invert", "jitter")
"""Of `PICTURE_SHIFTS`, as for choosing settings. "core" asks kin of three: impulse, brightness, pixelate."""
LEVELS = (0, 2, 4)
HIDDEN = (0.1, 0.25, 0.5)
"""Shares of a picture that are hidden: like no corruption that is reported, and what makes queries gather."""
FEWER = (("jitter", 0), ("blur", 2), ("brightness", 4), ("impulse", 2), ("pixelate", 4), ("invert", 4))
"""For what is made of several pictures, or of a picture and a text: each costs as much as all its parts."""
TYPED, TYPED_LEVELS = ("typos", "char_swap", "ocr", "char_delete"), (2, 6)
WORDS, WORDS_LEVEL = ("synonym", "word_swap", "word_delete"), 6
STRENGTHS = (0.25, 0.5, 1.0, 2.0)
"""Length of what is added to a unit vector; of `scaled`, the sd of the logarithms of its factors."""
PURPOSE = "expected quality"
"""Part of the key of every draw: query streams use other purposes, so no draw is shared."""


@dataclass(frozen=True, slots=True)
class CleanQueries:
    """Queries as they will come, but without any shift.

    Args:
        contents: n of what the encoder of their kind prepares, at least a batch.
        labels: of each; items that carry it, or one of several, are right.
        own: [n] positions of the items that they are copies of, where those that will come are none: left
            out of ranking and cosine.
        modality: their kind.
    """

    contents: Sequence[Any]
    labels: Sequence[Label]
    own: NDArray[np.int64] | None = None
    modality: Modality = "image"


def shown(picture: Picture, draw: Draw, kind: str, level: int) -> Picture:
    """A picture shifted."""
    shift = PICTURE_SHIFTS[kind]
    return shift.apply(picture, shift.levels[level], draw)


def covered(picture: Picture, draw: Draw, share: float) -> Picture:
    """A picture behind a plain rectangle of its own shape, anywhere in it, of any colour."""
    sides = [int(side * share**0.5) for side in picture.shape[:2]]
    top, left = (int(draw.integers(whole - side + 1)) for whole, side in zip(picture.shape, sides))
    found = picture.copy()
    found[top : top + sides[0], left : left + sides[1]] = draw.integers(0, 256, 3)
    return found


def striped(picture: Picture, draw: Draw, share: float) -> Picture:
    """A picture of which some rows are lost, each replaced by a colour."""
    rows = draw.random(len(picture)) < share
    found = picture.copy()
    found[rows] = draw.integers(0, 256, (int(rows.sum()), 1, 3))
    return found


def typed(text: str, draw: Draw, kind: str, level: int) -> str:
    """A text shifted; one of which nothing would be left stays as it is."""
    found = TEXT_CORRUPTIONS[kind].apply(text, level, draw)
    return found if found.strip() else text


def changed(content: tuple[Picture, str], draw: Draw, kind: str, level: int) -> tuple[Picture, str]:
    """A composed query whose picture is shifted."""
    return shown(content[0], draw, kind, level), content[1]


def changed_in_words(content: tuple[Picture, str], draw: Draw, kind: str, level: int) -> tuple[Picture, str]:
    """A composed query whose text is shifted."""
    return content[0], typed(content[1], draw, kind, level)


def played(frames: Sequence[Picture], draw: Draw, kind: str, level: int) -> tuple[Picture, ...]:
    """A clip whose frames are shifted, each by its own draw."""
    return tuple(shown(frame, draw, kind, level) for frame in frames)


def same(content: Any, draw: Draw) -> Any:
    """What was clean."""
    return content


def noisy(vector: Floats, draw: Draw, strength: float) -> Floats:
    """Noise in every number; `strength` is its length where that of the vector is 1."""
    return _moved(vector, draw.standard_normal(len(vector)), strength)


def offset(vector: Floats, draw: Draw, strength: float) -> Floats:
    """The same direction added to all."""
    return _moved(vector, _common(len(vector), "offset"), strength)


def scaled(vector: Floats, draw: Draw, strength: float) -> Floats:
    """Each number by a factor that is the same for all vectors."""
    factors = np.exp(min(strength, 1.0) * _common(len(vector), "scaled"))
    found: Floats = (vector * factors).astype(np.float32)
    return found


def _common(width: int, what: str) -> NDArray[np.float64]:
    return generator(0, what, PURPOSE).standard_normal(width)


def _moved(vector: Floats, by: NDArray[np.float64], strength: float) -> Floats:
    length = np.linalg.norm(vector) / np.linalg.norm(by)
    found: Floats = (vector + strength * length * by).astype(np.float32)
    return found


def _hiding() -> dict[str, Way]:
    hidden = {"covered": covered, "striped": striped}
    return {f"{name}/{share}": partial(way, share=share) for name, way in hidden.items() for share in HIDDEN}


def _ways() -> dict[Modality, Mapping[str, Way]]:
    few = {f"{kind}/{level}": (kind, level) for kind, level in FEWER}
    words = [(kind, level) for kind in TYPED for level in TYPED_LEVELS] + [(k, WORDS_LEVEL) for k in WORDS]
    vectors = {"noise": noisy, "offset": offset, "scaled": scaled}
    last = partial(changed_in_words, kind=TYPED[0], level=TYPED_LEVELS[-1])
    return {
        "image": {
            **{f"{k}/{level}": partial(shown, kind=k, level=level) for k in KINDS for level in LEVELS},
            **_hiding(),
        },
        "text": {
            "clean": same,
            **{f"{k}/{level}": partial(typed, kind=k, level=level) for k, level in words},
        },
        "composed": {
            "clean": same,
            **{name: partial(changed, kind=kind, level=level) for name, (kind, level) in few.items()},
            f"{TYPED[0]}/{TYPED_LEVELS[-1]}": last,
        },
        "sequence": {
            "clean": same,
            **{name: partial(played, kind=kind, level=level) for name, (kind, level) in few.items()},
        },
        "vector": {
            "clean": same,
            **{
                f"{name}/{strength}": partial(way, strength=strength)
                for name, way in vectors.items()
                for strength in STRENGTHS
            },
        },
    }


WAYS: Mapping[Modality, Mapping[str, Way]] = MappingProxyType(_ways())
"""By kind of query: name -> way. Each is asked by one batch."""
OF_CLASSES = frozenset(_hiding())
"""Ways that are asked only where items share labels: there they show what gathers."""


def batches_asked(*modalities: Modality) -> int:
    """Batches, and steps of a count, that measuring such queries takes."""
    return sum(len(WAYS[modality]) for modality in modalities)
