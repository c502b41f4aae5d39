import numpy as np
import pytest
import torch

from core.errors import ArtifactError, QshiftError, Refused
from encoders.vector import VectorEncoder


def test_vectors_pass_through_at_unit_length() -> None:
    encoder = VectorEncoder(3)
    rows = [encoder.prepare([3.0, 0.0, 4.0]), encoder.prepare(np.array([0, -2, 0], dtype=np.float32))]
    inputs = encoder.collate(rows, 4)
    expected = [[0.6, 0, 0.8], [0, -1, 0], [0, -1, 0], [0, -1, 0]]
    np.testing.assert_allclose(encoder.encode(inputs).numpy(), expected, atol=1e-7)
    assert encoder.hook_points().widths == ()
    assert encoder.encode(encoder.collate([], 0)).shape == (0, 3)


def test_extreme_lengths_survive() -> None:
    encoder = VectorEncoder(2)
    for scale in (1e-25, 1.0, 1e300):
        np.testing.assert_allclose(encoder.prepare([3 * scale, 4 * scale]), [0.6, 0.8], rtol=1e-6)


@pytest.mark.parametrize(
    "content",
    [[1.0, 2], [1.0, 2, 3, 4], [[1.0, 2, 3]], [0.0, 0, 0], [1e-40, 0, 0], [1, float("nan"), 0],
     [float("inf"), 0, 0], "abc", ["a", "b", "c"], None],
)  # fmt: skip
def test_what_has_no_direction_is_refused(content: object) -> None:
    with pytest.raises(Refused):
        VectorEncoder(3).prepare(content)


def test_the_affine_moves_vectors() -> None:
    encoder = VectorEncoder(3)
    rows = torch.eye(3)
    source = encoder.adaptable()
    torch.testing.assert_close(encoder.encode(rows, source), rows)
    scale, bias = torch.tensor([1.0, 2, 3], requires_grad=True), torch.tensor([0.5, 0, 0])
    got = encoder.encode(rows, {"affine.weight": scale, "affine.bias": bias})
    torch.testing.assert_close(got[1], torch.tensor([0.5, 2, 0]) / 4.25**0.5)
    assert got.requires_grad
    for wrong in ({"affine.weight": torch.ones(2)}, {"other": torch.ones(3)}):
        with pytest.raises(ArtifactError):
            encoder.encode(rows, wrong)
    with pytest.raises(QshiftError):
        encoder.collate([np.ones(3, np.float32)] * 2, 1)
