"""Splits of a source and a target domain for hashing. Not stratified: target labels are not even asked for.

| scheme | queries | target | source |
|---|---|---|---|
| target10 | 10 % of the target | the rest is trained on, and is a gallery | trained on, and is a gallery |
| fixed500 | 500 target samples | the same | the same |
| out_of_sample | 10 % of the target | 60 % trained on, 30 % gallery | 70 % trained on, 30 % gallery |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from core.errors import ConfigError

Scheme = Literal["target10", "fixed500", "out_of_sample"]
Rows = NDArray[np.int64]
FIXED = 500
"""Queries of fixed500: the public code of PWCF, GTH and DCS-LSG."""


@dataclass(frozen=True, slots=True, eq=False)
class Splits:
    """Rows of the source [n_s] and of the target [n_t]. Queries are in no other part."""

    source_train: Rows
    target_train: Rows
    query: Rows
    """Of the target."""
    source_db: Rows
    target_db: Rows


def make_splits(source: int, target: int, seed: int, scheme: Scheme) -> Splits:
    """The same sizes, seed and scheme give the same split.

    Args:
        source: n_s.
        target: n_t.
        seed: of the one generator that draws.
        scheme: see the table above.

    Raises:
        ConfigError: an unknown scheme, or so few rows that a part is empty.

    Reference: target10 PSCA (AAAI 2026); out_of_sample VPDS (NeurIPS 2025).
    """
    if scheme not in get_args(Scheme):
        raise ConfigError(f"one of {', '.join(get_args(Scheme))} expected, got {scheme!r}")
    least = {"target10": (1, 10), "fixed500": (1, FIXED + 1), "out_of_sample": (4, 10)}[scheme]
    if source < least[0] or target < least[1]:
        raise ConfigError(
            f"{scheme}: at least {least[0]} source and {least[1]} target rows expected, got {source} and "
            f"{target}: take a larger task or another scheme"
        )
    draw = np.random.default_rng(seed)
    order = draw.permutation(target)
    asked = FIXED if scheme == "fixed500" else target // 10
    query, rest = order[:asked], order[asked:]
    if scheme == "out_of_sample":
        stored, own = 3 * target // 10, draw.permutation(source)
        held = 3 * source // 10
        return Splits(own[held:], rest[stored:], query, own[:held], rest[:stored])
    every = np.arange(source)
    return Splits(every, rest, query, every, rest)


def gallery(splits: Splits, direction: Literal["cross", "single"]) -> Rows:
    """What the queries ask: rows of the source (cross) or of the target (single)."""
    return splits.source_db if direction == "cross" else splits.target_db
