"""Filters of every kind of index against brute force: the same items, in the same order."""

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from core.config import IndexKind
from core.filters import filter_of
from core.milvus import MilvusConfig
from index.approximate import FEWEST
from index.codes import hamming
from index.gallery import VersionedGallery

BITS, ITEMS, K, FILTERS = 64, FEWEST + 500, 20, 1000
EMBEDDED = pytest.mark.skipif(
    find_spec("milvus_lite") is None, reason="no embedded Milvus: pip install 'qshift[milvus-embedded]'"
)
KINDS = ["flat", "ivf", "hnsw", "multi-hash", pytest.param("milvus", marks=[EMBEDDED, pytest.mark.slow])]
DRAW = np.random.default_rng(3)
GROUP = DRAW.integers(12, size=ITEMS)
NUMBER = DRAW.integers(100, size=ITEMS)
COLOURS = np.array(["red", "green", "blue", "grey"])
COLOUR = COLOURS[GROUP % 4]  # goes with the codes: the nearest of a query are all red, or none is
TAGS = DRAW.random((ITEMS, 3)) < 0.4
CENTRES = DRAW.integers(0, 256, (12, BITS // 8), dtype=np.uint8)


def codes(groups: NDArray[np.int64], seed: int) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).random((len(groups), BITS)) < 0.08
    return CENTRES[groups] ^ np.packbits(noise, axis=1)


CODES, QUERIES = codes(GROUP, 1), codes(np.arange(120) % 12, 2)


def said(item: int) -> Mapping[str, Any]:
    tags = [name for name, has in zip("abc", TAGS[item].tolist()) if has]
    found = {"n": int(NUMBER[item]), "colour": str(COLOUR[item])}
    return {**found, "tags": tags} if tags else found


def wanted(draw: np.random.Generator) -> tuple[Mapping[str, Any], NDArray[np.bool_]]:
    """A filter, and the items that it lets through, by its definition."""
    asked: dict[str, Any] = {}
    passes = np.ones(ITEMS, np.bool_)
    for name in draw.permutation(["n", "colour", "tags"])[: draw.integers(1, 4)]:
        if name == "n":
            low, high = sorted(draw.integers(-5, 110, 2).tolist())
            asked["n"] = {"from": low, "to": high}
            passes &= (low <= NUMBER) & (high >= NUMBER)
        elif name == "colour":
            some = draw.permutation(COLOURS)[: draw.integers(1, 4)].tolist()
            asked["colour"] = some
            passes &= np.isin(COLOUR, some)
        else:
            tag = int(draw.integers(3))
            asked["tags"] = "abc"[tag]
            passes &= TAGS[:, tag]
    return asked, passes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("filters")
    names = [f"item {number}" for number in range(ITEMS)]
    attributes = [said(item) for item in range(ITEMS)]
    made = VersionedGallery(BITS, names, CODES, [()] * ITEMS, attributes=attributes, backend="exact")
    made.save(folder / "gallery")
    return folder


@pytest.fixture(params=KINDS)
def gallery(request: pytest.FixtureRequest, folder: Path) -> Iterator[VersionedGallery]:
    kind: IndexKind = request.param
    server = None
    if kind == "milvus":
        from index.milvus import Milvus

        server = Milvus(MilvusConfig(address=str(folder / "milvus.db"), timeout_seconds=60))
    yield VersionedGallery.load(folder / "gallery", kind=kind, server=server)


def test_a_thousand_filters_find_what_brute_force_finds(gallery: VersionedGallery) -> None:
    """Half of them when every seventh item is gone."""
    draw, left = np.random.default_rng(4), np.ones(ITEMS, np.bool_)
    distances = hamming(QUERIES, CODES)
    for number in range(FILTERS):
        if number == FILTERS // 2:
            left[::7] = False
            gallery = gallery.remove([f"item {item}" for item in range(0, ITEMS, 7)])
        asked, passes = wanted(draw)
        rows = draw.integers(len(QUERIES), size=1 if number % 4 else 12)
        allowed = gallery.allowed(filter_of(asked))
        items = np.flatnonzero(passes & left)
        assert np.array_equal(allowed, items), asked
        hits = gallery.search(QUERIES[rows], K, allowed)
        few = min(K, len(items))
        near = np.argsort(distances[rows][:, items].astype(np.uint16), axis=1, kind="stable")[:, :few]
        assert np.array_equal(hits.keys[:, :few], items[near]), asked
        assert (hits.keys[:, few:] == -1).all(), asked
