"""Lloyd's loop against plain Python, for arrays of NumPy and of torch."""

from typing import Any

import numpy as np
import pytest
import torch

from adapters.lloyd import lloyd


def plain(points: list[float], centres: list[float], rounds: int) -> tuple[list[int], list[float]]:
    """Of numbers on a line; a centre without any keeps its place."""

    def near() -> list[int]:
        return [min(range(len(centres)), key=lambda c: (abs(p - centres[c]), c)) for p in points]

    for _ in range(rounds):
        labels = near()
        for c in range(len(centres)):
            own = [p for p, label in zip(points, labels) if label == c]
            centres[c] = sum(own) / len(own) if own else centres[c]
    return near(), centres


def steps(points: Any) -> tuple[Any, Any]:
    def near(centres: Any) -> Any:
        return abs(points[:, None] - centres).argmin(1)

    def means(labels: Any, centres: Any) -> Any:
        moved = [
            points[labels == c].mean() if (labels == c).any() else centre for c, centre in enumerate(centres)
        ]
        return torch.stack(moved) if isinstance(points, torch.Tensor) else np.array(moved)

    return near, means


@pytest.mark.parametrize("made", [np.array, torch.tensor])
@pytest.mark.parametrize("rounds", [0, 1, 2, 100])
def test_it_is_a_loop_in_plain_python(made: Any, rounds: int) -> None:
    points = np.random.default_rng(1).permutation(np.arange(0.0, 24.0) ** 1.5).tolist()
    start = [0.0, 1.0, 2.0, 999.0]  # the last one is near nothing
    labels, centres = lloyd(made(start), *steps(made(points)), rounds)
    expected = plain(points, list(start), rounds)
    assert labels.tolist() == expected[0] and centres.tolist() == pytest.approx(expected[1], abs=1e-4)


def test_it_stops_where_nothing_moves() -> None:
    calls: list[int] = []

    def near(centres: np.ndarray) -> np.ndarray:
        calls.append(len(calls))
        return np.array([0, 0, 1])

    labels, centres = lloyd(np.zeros(2), near, lambda labels, centres: centres + 1, 100)
    assert len(calls) == 2 and labels.tolist() == [0, 0, 1] and centres.tolist() == [1, 1]
