"""`qshift fit clip` of texts alone: they are items, and what is asked. Nothing is trained here."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from core.errors import ConfigError
from core.seeds import generator
from encoders.base_model import Base, Parts
from encoders.repair import count_words
from qshift.data.texts import TextSet
from qshift.recipes.asked import CleanQueries, batches_asked
from qshift.recipes.brought import PURPOSE, STEPS, Brought, in_a_file, left_out
from qshift.recipes.captioned import check_bits, drawn
from qshift.recipes.encode import Count, Progress, batches_of
from qshift.recipes.expected import JUDGED, Curves, curves_of, first_found, gallery_of
from qshift.recipes.finish import Clean, finish_base, hash_head
from qshift.recipes.measure import BLOCK


def fit_brought_texts(
    folder: Path,
    brought: Brought,
    data: TextSet,
    cache: Path,
    bits: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
    name: str = "clip",
) -> list[str]:
    """Measures the text tower on the user's texts and writes a base model that serves texts.

    Clean queries are the texts themselves, each without itself among the items: whoever asks will write
    another one.

    Args:
        folder, brought, cache, bits, seed, progress, name: see `fit_brought_base`.
        data: at least two texts.

    Returns:
        What the user should know, a sentence each.

    Raises:
        ConfigError: no text tower, bits no multiple of 8, or too few texts.
    """
    if brought.text is None:
        raise ConfigError("this model has no text tower: give pictures, or an open_clip model")
    check_bits(len(data), bits, brought.text.width)
    count = Count(batches_of(len(data)) + batches_asked("text"), progress)
    found = in_a_file(brought.text, (partial(str, one) for one in data.texts), cache, count)
    check_bits(len(found), bits, brought.text.width)
    rows = np.sort(generator(seed, "head", PURPOSE).permutation(len(found))[:BLOCK])
    places = np.array([place for place, _ in drawn(len(found), seed, PURPOSE)], np.int64)
    parts = Parts(
        name=name,
        towers=brought.folder,
        head=hash_head({"text": found.features[rows]}, bits, seed, items="text"),
        provenance={
            "texts": data.attribution, "items": len(found), "seed": seed, "left_out": len(found.left),
            "towers": dict(brought.about),
        },
        vocabulary=count_words(data.texts[item] for item in found.items.tolist()),
        preprocess=brought.image.preprocess,
    )  # fmt: skip
    clean = Clean(found.features[places], found.features, STEPS["text"], "text", places)

    def curves(base: Base) -> Curves:
        order = generator(seed, "judged", PURPOSE).permutation(len(found))
        rows = np.sort(order[:JUDGED])
        items = found.features[rows]
        own = np.array([place for place, _ in drawn(len(rows), seed, f"{PURPOSE} expected")], np.int64)
        words = [str(data.texts[item]) for item in found.items[rows[own]].tolist()]
        names = [str(place) for place in range(len(rows))]
        # Nobody says which text belongs to which: right is what the clean one finds.
        right = [names[place] for place in first_found(items[own], items, own).tolist()]
        asked = CleanQueries(words, right, own, "text")
        return curves_of(base, gallery_of(base, items, names, "text"), [asked], seed, count)

    finish_base(folder, parts, {"text": clean}, curves)
    return left_out(found, data.ids)
