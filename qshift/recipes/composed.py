"""Clean composed queries of a base that has pictures and texts, and no changes that anybody asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from core.types import Floats
from encoders.composed import composed_features
from qshift.recipes.asked import CleanQueries
from qshift.recipes.finish import Clean
from qshift.recipes.measure import Step
from qshift.shifts.images import Picture


def composed_clean(
    looks: Floats, words: Floats, items: Floats, step: Step, own: NDArray[np.int64] | None = None
) -> Clean:
    """Each picture with the text of another one, half-way round: "this one, but ..." of no relation.

    Texts that belong to their picture would lie nearer to the gallery than changes do, so that clean changes
    would pass for shifted; of texts that come nearer than these only a part of the gain is lost.

    Args:
        looks, words: unit features [n, D] of clean pictures and texts, n a multiple of 64, in random order.
        items: unit features [N, D] of pictures.
        step: what the lane starts from.
        own: [n] positions of the items that the pictures are copies of, where those that will come are none.
    """
    others = np.roll(words, len(words) // 2, axis=0)
    return Clean(composed_features(looks, others), items, step, own=own)


def composed_pairs(
    looks: Sequence[Picture], words: Sequence[str], labels: Sequence[str],
    own: NDArray[np.int64] | None = None,
) -> CleanQueries:  # fmt: skip
    """The same queries as contents. Nobody asked for a change: right are the items of either part.

    Args:
        looks, words, labels: n pictures, with a text and the label of each.
        own: as of `composed_clean`.
    """
    half = len(words) // 2
    others = [*range(len(words) - half, len(words)), *range(len(words) - half)]
    pairs = [(look, words[other]) for look, other in zip(looks, others, strict=True)]
    right = [
        tuple(dict.fromkeys((label, labels[other]))) for label, other in zip(labels, others, strict=True)
    ]
    return CleanQueries(pairs, right, own, "composed")
