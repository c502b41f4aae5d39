from pathlib import Path

import numpy as np
import pytest

from core.errors import ArtifactError, Refused
from encoders.features import features
from encoders.vector import VectorEncoder


class Counting(VectorEncoder):
    calls = 0

    def encode(self, inputs, params=None, hook=None):
        self.calls += 1
        return super().encode(inputs, params, hook)


def rows(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).standard_normal((count, 4)).astype(np.float32))


def test_features_are_encoded_once(tmp_path: Path) -> None:
    encoder, items, seen = Counting(4), rows(10), []
    first = features(items, encoder, tmp_path, batch=4, progress=lambda done, of: seen.append((done, of)))
    assert seen == [(4, 10), (8, 10), (10, 10)]
    assert encoder.calls == 3
    for got, item in zip(first, items):
        np.testing.assert_allclose(got, item / np.sqrt((item**2).sum()), rtol=1e-6)
    again = features(items, encoder, tmp_path, batch=4)
    assert encoder.calls == 3
    assert isinstance(again, np.memmap)
    np.testing.assert_array_equal(first, again)
    assert [path.suffix for path in tmp_path.iterdir()] == [".npy"]


def test_the_key_covers_data_and_encoder(tmp_path: Path) -> None:
    class Other(Counting):
        fingerprint = "other"

    encoder, items = Counting(4), rows(3)
    for wanted in (items, items[:2], items[::-1], [items[0] + 1, *items[1:]]):
        before = encoder.calls
        features(wanted, encoder, tmp_path)
        assert encoder.calls == before + 1
    other = Other(4)
    features(items, other, tmp_path)
    assert other.calls == 1


def test_lengths_keep_texts_apart(tmp_path: Path) -> None:
    class Letters(Counting):
        def prepare(self, content):
            return super().prepare([len(content), 1, 0, 0])

    encoder = Letters(4)
    features(["ab", "c"], encoder, tmp_path)
    features(["a", "bc"], encoder, tmp_path)
    assert encoder.calls == 2


def test_files_are_keyed_by_their_bytes(tmp_path: Path) -> None:
    class Bytes(Counting):
        def prepare(self, content):
            return super().prepare([content[0], 1, 1, 1])

    file, encoder = tmp_path / "item", Bytes(4)
    file.write_bytes(b"a")
    first = np.array(features([file], encoder, tmp_path / "cache"))
    file.write_bytes(b"z")
    assert not np.array_equal(first, features([file], encoder, tmp_path / "cache"))


def test_nothing_and_broken_items(tmp_path: Path) -> None:
    assert features([], VectorEncoder(4), tmp_path).shape == (0, 4)
    with pytest.raises(Refused):
        features([*rows(2), np.zeros(4, np.float32)], VectorEncoder(4), tmp_path / "broken")
    assert list((tmp_path / "broken").iterdir()) == []


def test_a_damaged_cache_is_an_error(tmp_path: Path) -> None:
    features(rows(2), VectorEncoder(4), tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"junk")
    with pytest.raises(ArtifactError, match="delete it"):
        features(rows(2), VectorEncoder(4), tmp_path)
