"""Items that come and go in a topic, and what any gallery made of them has to answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from encoders.base_model import Base
from index.gallery import VersionedGallery
from qshift.recipes.gallery import encoded_prepared
from stream.codec import Answer
from stream.messages import item

BROKEN = b"{"


class Changes:
    """Random changes: half of them new items, the others replace or remove, one in fifty cannot be read.

    Args:
        built: names of the gallery as it was built, one for each of `centres`.
        centres: [n, D] what new items lie near, so that queries find them.
    """

    def __init__(self, built: Sequence[str], centres: np.ndarray, seed: int = 0) -> None:
        self._built, self._centres = list(built), centres
        self._rng = np.random.default_rng(seed)
        self._alive = list(built)
        self.sent: list[tuple[str, bytes | None]] = []
        """By offset: (name, value)."""
        self.vectors: dict[int, np.ndarray] = {}
        """By offset, of those that put an item in."""

    def next(self, count: int) -> list[tuple[str, bytes | None]]:
        """So many changes more."""
        made = [self._one(len(self.sent) + number) for number in range(count)]
        self.sent += made
        return made

    def _one(self, offset: int) -> tuple[str, bytes | None]:
        draw = self._rng.random()
        if draw < 0.02:
            return f"broken {offset}", BROKEN
        if draw < 0.5 and len(self._alive) > len(self._built) // 2:
            place = int(self._rng.integers(len(self._alive)))
            self._alive[place], self._alive[-1] = self._alive[-1], self._alive[place]
            return self._alive.pop(), None
        if draw < 0.6:
            name = self._alive[int(self._rng.integers(len(self._alive)))]
        else:
            name = f"new {offset}"
            self._alive.append(name)
        near = self._centres[int(self._rng.integers(len(self._centres)))]
        self.vectors[offset] = (near + 0.1 * self._rng.normal(size=near.shape)).astype(np.float32)
        return name, item(self.vectors[offset], [f"label {offset % 7}"])

    def held(self, offsets: Iterable[int]) -> dict[int, dict[str, int]]:
        """By place in the topic: the names that are there, and where each was put in, -1 as built."""
        wanted, holds = set(offsets), dict.fromkeys(self._built, -1)
        found = {0: dict(holds)} if 0 in wanted else {}
        for offset, (name, value) in enumerate(self.sent):
            if value is None:
                holds.pop(name, None)
            elif value != BROKEN:
                holds.pop(name, None)
                holds[name] = offset
            if offset + 1 in wanted:
                found[offset + 1] = dict(holds)
        return found


def check_answers(changes: Changes, answers: Iterable[Answer], places: Mapping[str, int]) -> int:
    """Every item named was there in the version that answered; how many versions did.

    Args:
        places: where in the topic each version stands.
    """
    named: dict[str, set[str]] = {}
    for answer in answers:
        named.setdefault(answer.gallery_version, set()).update(name for name, _ in answer.results)
    held = changes.held(places[version] for version in named)
    wrong = {version: names - held[places[version]].keys() for version, names in named.items()}
    assert not any(wrong.values()), f"items that were not there: {wrong}"
    return len(named)


def check_from_scratch(
    changes: Changes, gallery: VersionedGallery, built: VersionedGallery, base: Base, queries: np.ndarray
) -> None:
    """A gallery built from nothing of what the topic ends with answers the same.

    Args:
        built: the gallery before any change.
        queries: codes [B, L/8].
    """
    end = len(changes.sent)
    holds = changes.held([end])[end]
    assert [gallery.identifier(key) for key in gallery.keys().tolist()] == list(holds)
    codes, features = [], []
    encoder = base.encoders["vector"]
    for name, offset in holds.items():
        if offset < 0:
            key = np.array(built.key_of(name))
            codes.append(built.codes_of(key))
            features.append(built.features(key))
        else:
            prepared = [encoder.prepare(changes.vectors[offset])]
            code, feature = encoded_prepared(base, prepared, 1, modality="vector")
            codes.append(code[0])
            features.append(feature[0])
    names, labels = list(holds), [gallery.labels_of(gallery.key_of(name)) for name in holds]
    whole = VersionedGallery(
        gallery.bits, names, np.array(codes), labels, np.array(features), keys=gallery.keys(), backend="exact"
    )
    for k in (1, 10, len(names)):
        ours, theirs = gallery.search(queries, k), whole.search(queries, k)
        assert np.array_equal(ours.keys, theirs.keys) and np.array_equal(ours.distances, theirs.distances)
    assert np.array_equal(gallery.features(gallery.keys()), whole.features(whole.keys()))
