"""Made-up embeddings in clusters, as a model might give them, and what a changed model or source does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from core.types import Floats

Rows = np.ndarray[Any, np.dtype[np.float64]]


class World:
    """Clusters around a common mean; few directions carry most of the variance, as in real embeddings.

    Args:
        seed: of everything drawn.
        width: D.
        clusters: how many; items and queries of one cluster are relevant to each other.
    """

    def __init__(self, seed: int, width: int = 128, clusters: int = 100) -> None:
        draw = np.random.default_rng([seed, 1])
        self._seed, self.width, self._clusters = seed, width, clusters
        self._mix = draw.standard_normal((width, width)) * np.linspace(2, 0.2, width) / np.sqrt(width)
        self._centres = draw.standard_normal((clusters, width)) @ self._mix
        self._mean = 0.5 * draw.standard_normal(width)

    def drawn(self, count: int, part: int) -> tuple[Rows, list[str]]:
        """Unit vectors [count, D] and the label of each; parts have nothing in common."""
        draw = np.random.default_rng([self._seed, 2, part])
        chosen = draw.integers(0, self._clusters, count)
        rows = self._centres[chosen] + 0.9 * draw.standard_normal((count, self.width)) @ self._mix
        return unit(rows + self._mean), [f"cluster {number}" for number in chosen]

    def shifted(self, rows: Rows, shift: str) -> Rows:
        """Unit vectors as they come after a shift of `SHIFTS`: the same for all, but for noise."""
        return SHIFTS[shift](rows, np.random.default_rng([self._seed, 3]))


def unit(rows: Rows) -> Rows:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _offset(length: float) -> Callable[[Rows, np.random.Generator], Rows]:
    def offset(rows: Rows, draw: np.random.Generator) -> Rows:
        return rows + length * unit(draw.standard_normal((1, rows.shape[1])))

    return offset


def _scaled(factor: float) -> Callable[[Rows, np.random.Generator], Rows]:
    def scaled(rows: Rows, draw: np.random.Generator) -> Rows:
        chosen = draw.permutation(rows.shape[1])[: rows.shape[1] // 4]
        scale = np.ones(rows.shape[1])
        scale[chosen] = factor
        return rows * scale

    return scaled


def _noisy(sd: float) -> Callable[[Rows, np.random.Generator], Rows]:
    """Noise of so many sd of the numbers themselves."""
    return lambda rows, draw: rows + sd * rows.std() * draw.standard_normal(rows.shape)


def _both(rows: Rows, draw: np.random.Generator) -> Rows:
    return _noisy(0.7)(_offset(1.0)(_scaled(3.0)(rows, draw), draw), draw)


SHIFTS: Mapping[str, Callable[[Rows, np.random.Generator], Rows]] = MappingProxyType(
    {
        "none": lambda rows, _: rows,
        "offset of .5": _offset(0.5),
        "offset of 1": _offset(1.0),
        "offset of 2": _offset(2.0),
        "a quarter of the numbers times 3": _scaled(3.0),
        "a quarter of the numbers times .1": _scaled(0.1),
        "noise of .7 sd": _noisy(0.7),
        "noise of 1.5 sd": _noisy(1.5),
        "times 3, offset of 1, noise of .7 sd": _both,
    }
)


def write(path: Path, rows: Rows | Floats, labels: list[str] | None = None) -> Path:
    """A .npy file in float32, with labels beside it."""
    np.save(path, rows.astype(np.float32))
    if labels is not None:
        path.with_suffix(".labels.txt").write_text("\n".join(labels) + "\n")
    return path
