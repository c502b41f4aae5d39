"""What a benchmark task is: samples, a gallery, and a pool of queries for every domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from core.types import Modality

Picture = NDArray[np.uint8]
"""[H, W, 3], RGB."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture, text, pair or clip.

    `content` is a Picture, a str, a (Picture, str) pair (composed) or a tuple of Pictures (sequence), as the
    modality of its task says. A gallery item is relevant for a query when their `label`s are equal. `group`
    orders class-sorted and class-skewed streams. `key` is unique within its pool and keys every draw.
    """

    key: str
    content: Any
    label: str
    group: str = ""
    title: str = ""


@dataclass(frozen=True, slots=True)
class Task:
    """One retrieval problem on real data.

    Args:
        name: permanent id, `<data>/<query>-<gallery>` (`emoji/picture-picture`).
        modality, gallery_modality: of the queries and of the gallery.
        gallery: what is searched.
        pools: queries by domain; "clean" is always there, others are domain shifts ("sketch", "twemoji").
            No pool holds a sample that the base was fitted on, unless `retaken`.
        base: name of the recipe its base model is fitted by (qshift/benchmarks/suite/bases.py).
        retaken: True where queries are gallery items taken again (freshly rotated, scaled and shifted).
        split: "develop" for choosing settings, "report" for what is reported.
    """

    name: str
    modality: Modality
    gallery_modality: Modality
    gallery: Sequence[Sample]
    pools: Mapping[str, Sequence[Sample]]
    base: str
    retaken: bool = False
    split: Literal["develop", "report"] = "report"
    extra: Mapping[str, Any] = field(default_factory=dict)
