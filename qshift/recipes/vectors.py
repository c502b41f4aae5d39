"""`qshift fit vectors`: a base model of vectors that another model or an API has made, and its gallery.

There is no tower: a hash head (ITQ), and what clean queries look like. What adapts is an affine map of the
features and their centring. Where queries are of another kind than the items (vectors of texts that ask
vectors of pictures), each kind has a mean of its own in front of the head. Vectors stream through in blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import from_numpy

from core.errors import ConfigError, GalleryError
from core.readers.places import shown
from core.readers.vectors import VectorFile
from core.seeds import generator
from core.types import Codes, Floats
from encoders.base_model import Base, Parts, write_base
from encoders.head import HashHead, itq
from encoders.vector import VectorEncoder
from index.gallery import Display, VersionedGallery
from qshift.recipes.encode import BATCH, Progress
from qshift.recipes.expected import Curve, Curves
from qshift.recipes.finish import with_curves
from qshift.recipes.measure import Step, measure_among
from qshift.recipes.vectors_expected import Asking, Searched, vector_curves

BITS = 128
STEP = Step(1e-2, 0.05, "rest", "an affine map mends what centring cannot: numbers that are scaled apart")
"""Chosen on made-up vectors of other seeds and on development tasks: docs/lab/log.md."""
SAMPLE, SAMPLE_NUMBERS = 20_000, 20_000 * 512
"""Vectors that the bits are learnt from, at most, and numbers in them: wider ones are fewer, for memory.
Made-up vectors of 1,536 numbers were found as well by bits of 3,000 as of 20,000."""
CLEAN_QUERIES = 448  # seven batches, as of captioned pictures
ITEMS = "items"
"""Name of the tensors that hold the mean of each kind of item; "" is the kind of those that say none."""
PURPOSE = "vector base"
"""Part of the key of every draw."""

Means = Mapping[str, Floats]


def fit_vector_base(
    folder: Path,
    items: VectorFile,
    queries: VectorFile | None = None,
    bits: int = BITS,
    seed: int = 0,
    progress: Progress | None = None,
    name: str = "vectors",
) -> None:
    """Fits the head to items, measures clean queries and writes the base model, all or nothing.

    Args:
        folder: where the base goes.
        items: what is searched, or a sample of it.
        queries: what clean queries look like, 64 or more; None: like the items.
        bits: width of the codes, a multiple of 8.
        seed: of the hash head, and of which vectors it is learnt from and which ones ask.
        progress: called with (done, total, text).
        name: of the base.

    Raises:
        ConfigError: too few vectors, bits no multiple of 8, or queries of another width.
    """
    _check(items, queries, bits)
    asking = items if queries is None else queries
    means = _means(items, _kinds(items), progress, "reading items")
    whole = [*means.values()] if queries is None else []
    if len(whole) != 1:
        whole = [*_means(asking, np.zeros(len(asking), "U1"), progress, "reading queries").values()]
    head = HashHead(_weight(items, means, bits, seed), np.zeros(bits, np.float32), {"vector": whole[0]})
    codes = np.concatenate([found for _, found in _encoded(items, head, means, progress, "encoding items")])
    places = _drawn(len(asking), CLEAN_QUERIES // BATCH * BATCH, seed, "clean queries")
    places = places[: len(places) // BATCH * BATCH]
    constants, reference = measure_among(
        _unit(asking, places), codes, lambda at: _unit(items, at), head, "vector", STEP,
        places if queries is None else None,
    )  # fmt: skip
    parts = Parts(
        name=name,
        towers=None,
        head=head,
        provenance={"items": len(items), "queries": None if queries is None else len(queries), "seed": seed},
        constants={"vector": constants},
        reference={"vector": reference},
        extras={ITEMS: {f"mean.{kind}": mean for kind, mean in means.items()}},
    )

    asked = places if queries is None else None
    write_base(folder, with_curves(parts, _curve(items, codes, asking, places, asked, bits, seed)))


def build_vector_gallery(
    base: Base, items: VectorFile, progress: Progress | None = None,
    attributes: Sequence[Mapping[str, Any]] | None = None,
) -> VersionedGallery:  # fmt: skip
    """Items by their codes and features; the label of one that says none is its own name.

    Args:
        base: of vectors.
        items: vectors of the space that the base was fitted to.
        progress: called with (done, total, text).
        attributes: of the items, for filters; None: nothing is said.

    Raises:
        GalleryError: the base takes no vectors, or none of this width, or knows no such kind of item.
    """
    means = _known_means(base, items)
    features = np.empty((len(items), items.width), np.float16)
    codes: list[Codes] = []
    start = 0
    for rows, found in _encoded(items, base.head, means, progress, "gallery"):
        features[start : start + len(rows)] = rows
        start += len(rows)
        codes.append(found)
    ids, labels, titles = items.ids(), items.column("labels"), items.column("titles")
    return VersionedGallery(
        base.bits,
        ids,
        np.concatenate(codes),
        ids if labels is None else [(label,) if label else () for label in labels],
        features,
        None if titles is None else [Display(title) for title in titles],
        base_version=base.version,
        attributes=attributes,
    )


def _curve(
    items: VectorFile, codes: Codes, asking: VectorFile, places: NDArray[np.int64],
    own: NDArray[np.int64] | None, bits: int, seed: int,
) -> Curve:  # fmt: skip
    """Measures the quality to expect among some items, those that ask among them.

    Args:
        items, codes: [N] what is searched.
        asking, places: clean queries, and which of them ask.
        own: the places of the items that these are; None: they are none.
    """
    rows = np.sort(_drawn(len(items), _most(items, bits), seed, "judged"))
    rows = rows if own is None else np.union1d(rows, own)

    def labels(file: VectorFile, at: NDArray[np.int64]) -> list[str] | None:
        said = file.column("labels")
        return None if said is None else [said[place] for place in at.tolist()]

    def measured(base: Base) -> Curves:
        searched = Searched(_unit(items, rows), codes[rows], labels(items, rows))
        themselves = None if own is None else np.searchsorted(rows, own)
        asked = Asking(_unit(asking, places), labels(asking, places), themselves)
        return vector_curves(base, searched, asked, seed)

    return measured


def _known_means(base: Base, items: VectorFile) -> Means:
    encoder = base.encoders.get("vector")
    if encoder is None or encoder.width != items.width:
        takes = f"vectors of width {base.width}" if encoder is not None else ", ".join(base.encoders)
        raise GalleryError(
            f"base {base.name} takes {takes}, {shown(items.path)} holds vectors of width {items.width}: name "
            "the base that was fitted to such vectors"
        )
    extras = base.extras.get(ITEMS, {"mean.": base.head.means["vector"].cpu().numpy()})
    means = {name.removeprefix("mean."): mean for name, mean in extras.items()}
    unknown = sorted(set(_kinds(items).tolist()) - set(means))
    if unknown:
        raise GalleryError(
            f"{shown(items.path)} has items of modality {shown(unknown[0])!r}, base {base.name} knows "
            f"{', '.join(map(repr, sorted(means)))}: fit it to a file that has such, too"
        )
    return means


def _check(items: VectorFile, queries: VectorFile | None, bits: int) -> None:
    if bits <= 0 or bits % 8:
        raise ConfigError(f"expected a number of bits divisible by 8, got {bits}")
    for file in (items, *(() if queries is None else (queries,))):
        if len(file) < BATCH:
            raise ConfigError(f"{shown(file.path)} holds {len(file)} vectors: expected {BATCH} or more")
    if len(items) < bits <= items.width:
        raise ConfigError(
            f"{shown(items.path)} holds {len(items)} vectors, too few for {bits} bits: give more, or --bits "
            f"{len(items) // 8 * 8}"
        )
    if queries is not None and queries.width != items.width:
        raise ConfigError(
            f"{shown(queries.path)} holds vectors of width {queries.width}, {shown(items.path)} of width "
            f"{items.width}: both have to come from one space"
        )


def _kinds(file: VectorFile) -> NDArray[np.str_]:
    """What kind each usable row is, "" where that is not said."""
    found = file.column("modality")
    return np.zeros(len(file), "U1") if found is None else np.array(found)


def _means(
    file: VectorFile, kinds: NDArray[np.str_], progress: Progress | None, text: str
) -> dict[str, Floats]:
    """Mean [D] of the unit vectors of each kind."""
    sums = {str(kind): np.zeros(file.width) for kind in np.unique(kinds)}
    start = 0
    for rows in _unit_blocks(file, progress, text):
        here = kinds[start : start + len(rows)]
        for kind in np.unique(here):
            sums[str(kind)] += rows[here == kind].sum(0, dtype=np.float64)
        start += len(rows)
    return {kind: (total / (kinds == kind).sum()).astype(np.float32) for kind, total in sums.items()}


def _weight(file: VectorFile, means: Means, bits: int, seed: int) -> Floats:
    """Bits from a sample of the items, each kind around its own mean."""
    places = np.sort(_drawn(len(file), _most(file, bits), seed, "sample of the items"))
    rows, kinds = _unit(file, places), _kinds(file)[places]
    for kind, mean in means.items():
        rows[kinds == kind] -= mean
    return itq(rows, np.zeros(file.width, np.float32), bits, seed=seed)


def _most(file: VectorFile, bits: int) -> int:
    """Vectors that are looked at together."""
    return min(SAMPLE, max(SAMPLE_NUMBERS // file.width, 2 * bits))


def _encoded(
    file: VectorFile, head: HashHead, means: Means, progress: Progress | None, text: str
) -> Iterator[tuple[Floats, Codes]]:
    """Unit vectors [n, D] of items and their codes [n, L/8], block by block."""
    heads = {kind: HashHead(head.weight, head.bias, {"vector": mean}) for kind, mean in means.items()}
    kinds, start = _kinds(file), 0
    for rows in _unit_blocks(file, progress, text):
        here = kinds[start : start + len(rows)]
        codes = np.empty((len(rows), head.bits // 8), np.uint8)
        for kind in np.unique(here):
            codes[here == kind] = heads[str(kind)].codes(from_numpy(rows[here == kind]), "vector")
        start += len(rows)
        yield rows, codes


def _drawn(count: int, most: int, seed: int, what: str) -> NDArray[np.int64]:
    """So many places of `count`, in random order."""
    return generator(seed, what, PURPOSE).permutation(count)[:most]


def _unit_blocks(file: VectorFile, progress: Progress | None, text: str) -> Iterator[Floats]:
    encoder, done = VectorEncoder(file.width), 0
    for _, rows in file.blocks():
        yield _prepared(encoder, rows)
        done += len(rows)
        if progress is not None:
            progress(done, len(file), text)


def _unit(file: VectorFile, places: NDArray[np.int64]) -> Floats:
    """Unit vectors [..., D] in some places of the usable rows."""
    rows = _prepared(VectorEncoder(file.width), file.at(file.rows[places.ravel()]))
    return rows.reshape(*places.shape, file.width)


def _prepared(encoder: VectorEncoder, rows: Floats) -> Floats:
    """As a query is: one that is an item finds itself."""
    for place, row in enumerate(rows):
        rows[place] = encoder.prepare(row)
    return rows
