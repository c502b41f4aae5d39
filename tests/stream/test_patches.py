"""Pictures cut into patches and shuffled."""

import pytest
import torch

from stream.patches import PATCHES, shuffle_patches


def pictures(rows: int = 5, height: int = 12, width: int = 16) -> torch.Tensor:
    """Every pixel of a picture once: [B, 3, H, W]."""
    each = 3 * height * width
    return torch.arange(rows * each, dtype=torch.float32).reshape(rows, 3, height, width)


def patches(picture: torch.Tensor) -> list[tuple[float, ...]]:
    """The 16 patches of one picture, row by row, by a loop."""
    _, height, width = picture.shape
    high, wide = height // PATCHES, width // PATCHES
    return [
        tuple(picture[:, i * high : (i + 1) * high, j * wide : (j + 1) * wide].flatten().tolist())
        for i in range(PATCHES)
        for j in range(PATCHES)
    ]


def test_patches_change_places_and_nothing_else() -> None:
    before = pictures()
    after = shuffle_patches(before, list("abcde"), 0)
    assert after.shape == before.shape
    for one, other in zip(before, after):
        assert sorted(patches(one)) == sorted(patches(other))  # whole, and each once
        assert patches(one) != patches(other)
        assert sorted(one.flatten().tolist()) == sorted(other.flatten().tolist())
    assert torch.equal(before, pictures())


def test_the_order_is_keyed() -> None:
    before = pictures(1).expand(4, -1, -1, -1)
    after = shuffle_patches(before, ["a", "b", "a", "c"], 0)
    assert torch.equal(after[0], after[2])
    assert not torch.equal(after[0], after[1]) and not torch.equal(after[1], after[3])
    # A row does not depend on its batch mates.
    assert torch.equal(shuffle_patches(before[:2], ["c", "b"], 0), after[[3, 1]])
    assert not torch.equal(shuffle_patches(before, ["a", "b", "a", "c"], 1), after)


def test_padding_rows_keep_their_order() -> None:
    before = pictures()
    after = shuffle_patches(before, ["a", "b"], 0)
    assert torch.equal(after[2:], before[2:])
    assert not torch.equal(after[:2], before[:2])
    assert torch.equal(shuffle_patches(before, [], 0), before)


@pytest.mark.parametrize(("height", "width"), [(13, 16), (12, 19), (15, 18)])
def test_pixels_that_fill_no_patch_are_cut_off(height: int, width: int) -> None:
    before = pictures(2, height, width)
    after = shuffle_patches(before, ["a"], 3)
    assert after.shape == (2, 3, 12, 16)
    assert torch.equal(after, shuffle_patches(before[:, :, :12, :16], ["a"], 3))
