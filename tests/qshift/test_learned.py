"""Learned codes go to the pictures that they were learned for, and to no others."""

from __future__ import annotations

import numpy as np
import pytest

from core.errors import ArtifactError
from qshift.recipes.learned import LEARNED, digest, read, replaced, written

RNG = np.random.default_rng(0)
PICTURES = [RNG.integers(0, 256, (3, 4, 5), dtype=np.uint8) for _ in range(4)]
CODES = RNG.integers(0, 256, (4, 2), dtype=np.uint8)


def test_each_picture_finds_its_own_code_and_others_keep_theirs() -> None:
    learned = read({LEARNED: written(PICTURES, CODES)}, 16)
    other, turned = PICTURES[0] ^ 1, PICTURES[1].reshape(3, 5, 4)
    asked = [PICTURES[2], other, PICTURES[0], turned]
    mapped = np.zeros((4, 2), np.uint8)
    found = replaced(mapped, [digest(one) for one in asked], learned)
    assert np.array_equal(found, [CODES[2], mapped[1], CODES[0], mapped[3]])
    assert not mapped.any(), "what was given stays as it is"


def test_one_picture_under_two_classes_has_no_code_of_its_own() -> None:
    twice = [PICTURES[0], PICTURES[1], PICTURES[0], PICTURES[1]]
    codes = CODES[[0, 1, 2, 1]]
    learned = read({LEARNED: written(twice, codes)}, 16)
    assert learned.keys() == {digest(PICTURES[1])}
    assert np.array_equal(learned[digest(PICTURES[1])], CODES[1])


def test_a_base_without_them_has_none_and_a_damaged_one_is_refused() -> None:
    assert read({}, 16) == {}
    whole = written(PICTURES, CODES)
    for broken in (
        {**whole, "codes": whole["codes"][:3]},
        {**whole, "pictures": whole["pictures"][:, :5]},
        {"codes": whole["codes"]},
    ):
        with pytest.raises(ArtifactError, match="build the base again"):
            read({LEARNED: broken}, 16)
    with pytest.raises(ArtifactError, match=r"expected \[n, 16\] and \[n, 4\]"):
        read({LEARNED: whole}, 32)
