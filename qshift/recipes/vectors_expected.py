"""What a base of vectors learns of the answers to expect: its clean queries, shifted, and judged.

Right are the items of a query's label, where labels are given. Where they are not, right is the item that
the clean query finds first: then the figure says how surely a query still finds what it would find unshifted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.types import Codes, Floats
from encoders.base_model import Base
from index.gallery import Label, VersionedGallery
from qshift.recipes.asked import CleanQueries
from qshift.recipes.expected import Curves, curves_of, first_found


@dataclass(frozen=True, slots=True)
class Searched:
    """Items that answers are judged among: unit features [N, D], codes [N, L/8], labels where there are."""

    features: Floats
    codes: Codes
    labels: Sequence[str] | None


@dataclass(frozen=True, slots=True)
class Asking:
    """Clean queries: unit vectors [n, D], labels if there are, places [n] of the items that they are."""

    vectors: Floats
    labels: Sequence[str] | None
    own: NDArray[np.int64] | None


def vector_curves(base: Base, items: Searched, asking: Asking, seed: int = 0) -> Curves:
    """Measures them; {} where not one answer can be judged."""
    names = [str(place) for place in range(len(items.features))]
    labels: list[Label] = list(names)
    # An item alone under its label has no other one that would be right.
    alone = asking.own is not None and items.labels is not None and len(set(items.labels)) == len(names)
    if items.labels is not None and asking.labels is not None and not alone:
        labels = [(label,) if label else () for label in items.labels]
        right = list(asking.labels)
    else:
        right = [names[place] for place in first_found(asking.vectors, items.features, asking.own).tolist()]
    gallery = VersionedGallery(
        base.bits, names, items.codes, labels, items.features, base_version=base.version
    )
    clean = CleanQueries([*asking.vectors], right, asking.own, "vector")
    return curves_of(base, gallery, [clean], seed)
