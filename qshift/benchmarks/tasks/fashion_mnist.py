"""FashionMNIST: 70,000 pictures of ten kinds of clothes, 28 x 28, light on black; idx files like MNIST's.

Reference: Xiao, Rasul and Vollgraf, Fashion-MNIST, arXiv 1708.07747, 2017; names as in its table 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.errors import ConfigError
from core.seeds import generator
from qshift.benchmarks.tasks.digits import Part, read_labelled
from qshift.benchmarks.tasks.types import Sample

NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
SIDE = 28
FIT_SHARE = 0.9
GALLERY, CLEAN = 3000, 512  # pictures; clean: eight batches
PURPOSE = "fashion-mnist"


@dataclass(frozen=True, slots=True)
class Clothes:
    """The training half in parts. No picture of `clean` or `held` is in another part.

    Args:
        fit: what the towers learn from, nine tenths.
        gallery: those of `fit` that are searched, as a catalogue that the towers know.
        clean: what clean queries are measured on.
        held: queries for choosing settings: seen by no one.
    """

    fit: tuple[Sample, ...]
    gallery: tuple[Sample, ...]
    clean: tuple[Sample, ...]
    held: tuple[Sample, ...]


def read_clothes(raw: Path, gallery: int = GALLERY, clean: int = CLEAN) -> Clothes:
    """The training half, always drawn alike.

    Args:
        raw: folder of the idx files.
        gallery, clean: pictures of these parts.

    Raises:
        ConfigError: files missing or damaged, or too few pictures.
    """
    samples = read_fashion_mnist(raw, "train")
    fitted = round(FIT_SHARE * len(samples))
    if gallery >= fitted or fitted + clean >= len(samples):
        raise ConfigError(
            f"{raw} holds {len(samples)} training pictures, too few for a gallery of {gallery} and {clean} "
            "clean ones: see docs/reference/data.md"
        )
    order = generator(0, "parts", PURPOSE).permutation(len(samples)).tolist()
    drawn = tuple(samples[place] for place in order)
    fit, left = drawn[:fitted], drawn[fitted:]
    return Clothes(fit, fit[:gallery], left[:clean], left[clean:])


def read_fashion_mnist(raw: Path, part: Part) -> list[Sample]:
    """60,000 or 10,000 pictures in file order; key `fashion-mnist/<part>/<place>`. Raises ConfigError."""
    pictures, labels = read_labelled(raw, part)
    if pictures.shape[1:] != (SIDE, SIDE) or labels.max(initial=0) >= len(NAMES):
        raise ConfigError(
            f"{raw} holds pictures {list(pictures.shape)} and labels up to {labels.max(initial=0)}: expected "
            f"[n, {SIDE}, {SIDE}] and up to {len(NAMES) - 1}"
        )
    colour = np.broadcast_to(pictures[..., None], (*pictures.shape, 3))
    names = [NAMES[label] for label in labels.tolist()]
    return [
        Sample(f"{PURPOSE}/{part}/{place}", picture, name, name, name)
        for place, (picture, name) in enumerate(zip(colour, names, strict=True))
    ]
