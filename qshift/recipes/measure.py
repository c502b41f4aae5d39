"""What a base model says about its own clean queries: constants of the objectives, reference of drift."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapters.online.objectives import gap, refined
from core.references import DriftReference, SourceConstants
from core.types import Codes, Floats, Modality
from encoders.head import HashHead
from index.evidence import COPY
from qshift.recipes.encode import BATCH

SHORTLIST = 100
BLOCK = 1 << 16
"""Items that are looked at together: of larger galleries no second copy is made."""
PAIRS = 1 << 24
"""Similarities that are held at a time."""
NEVER = 1 << 30  # bits: further than any code
QUANTILE = 0.9


@dataclass(frozen=True, slots=True)
class Step:
    """What a modality's adapter starts from, and whether it learns or only aligns, and why."""

    learning_rate: float
    temperature: float
    method: str = "rest"
    why: str = "nothing else adapts such queries"


ALIGNED = "alignment alone gains as much, within .3 points, at half the cost"
"""Development tasks, towers with BatchNorm and with LayerNorm: docs/lab/log.md."""
MENDED = "the objective adds less than a point to mended texts, at twice the cost"
"""Development tasks of texts, MiniLM with and without a head and a small CLIP: docs/lab/log.md."""


def forward_only(learning_rate: float, temperature: float, why: str = ALIGNED) -> Step:
    """The step of a modality that learns nothing: its tower is aligned, or its texts are mended."""
    return Step(learning_rate, temperature, "frozen", why)


def measure(
    queries: Floats,
    gallery: Floats,
    hashing: HashHead,
    modality: Modality,
    step: Step,
    gallery_modality: Modality = "image",
    own: NDArray[np.int64] | None = None,
    codes: Codes | None = None,
) -> tuple[SourceConstants, DriftReference]:
    """What clean queries look like to the service, in batches of 64.

    The neighbour of a query is the most similar of the 100 items nearest by code, as in the service.

    Args:
        queries: unit features [n, D], n a multiple of 64, in random order.
        gallery: unit features [N, D] of the items, N at least 2.
        hashing: gives the codes of both.
        modality: of the queries.
        step: temperature and learning rate.
        gallery_modality: of the items.
        own: [n] positions of the items that the queries are copies of, left out as their neighbours: for
            services whose clean queries are no copies of gallery items.
        codes: of the items [N, L/8]; None: those of the head.
    """
    if codes is None:
        items = torch.from_numpy(gallery)
        blocks = (items[start : start + BLOCK] for start in range(0, len(items), BLOCK))
        codes = np.concatenate([hashing.codes(block, gallery_modality) for block in blocks])
    constants, reference = measure_among(queries, codes, lambda at: gallery[at], hashing, modality, step, own)
    if own is not None and modality == gallery_modality:
        reference = replace(reference, own=_made_of(queries, gallery[own]))
    return constants, reference


def _made_of(queries: Floats, items: Floats) -> Floats | None:
    """The items [n, D] that queries were made of; None where all are exact copies, which tell themselves."""
    return None if (np.einsum("nd,nd->n", queries, items) > COPY).all() else items


def measure_among(
    queries: Floats,
    codes: Codes,
    items: Callable[[NDArray[np.int64]], Floats],
    hashing: HashHead,
    modality: Modality,
    step: Step,
    own: NDArray[np.int64] | None = None,
) -> tuple[SourceConstants, DriftReference]:
    """As `measure`, of items that need not lie in memory: a batch after the other.

    Args:
        queries, hashing, modality, step, own: see `measure`.
        codes: of the items [N, L/8].
        items: gives the unit features [..., D] of the items in these places.
    """
    q, mask = torch.from_numpy(queries), torch.ones(BATCH, dtype=torch.bool)
    asked = hashing.codes(q, modality)
    gaps: list[float] = []
    entropies, nearest = [], []
    for top in range(0, len(queries), BATCH):
        rows = slice(top, top + BATCH)
        itself = None if own is None else own[rows]
        shortlist, least = _shortlists(asked[rows], codes, itself)
        near = _most_similar(q[rows], items, shortlist, itself)
        entropies.append(refined(q[rows], near, step.temperature, mask)[1])
        gaps.append(float(gap(q[rows], near, mask)))
        nearest.append(least)
    entropy = torch.cat(entropies).numpy()
    constants = SourceConstants(
        source_gap=float(np.mean(gaps)),
        entropy_ceiling=float(np.quantile(entropy, QUANTILE)),
        temperature=step.temperature,
        learning_rate=step.learning_rate,
        batch=BATCH,
        method=step.method,
        why=step.why,
    )
    return constants, DriftReference(queries, entropy, np.concatenate(nearest), BATCH)


def _shortlists(
    ours: Codes, theirs: Codes, own: NDArray[np.int64] | None
) -> tuple[NDArray[np.int64], Floats]:
    """The places [n, K] of the nearest by code, and the least distance [n]; a row of N at a time."""
    found, least = [], []
    for row, code in enumerate(ours):
        distances = np.bitwise_count(code ^ theirs).sum(1, dtype=np.int32)
        if own is not None:
            distances[own[row]] = NEVER
        found.append(np.argsort(distances, kind="stable")[:SHORTLIST])
        least.append(distances.min())
    return np.stack(found), np.array(least, np.float32)


def _most_similar(
    q: Tensor,
    items: Callable[[NDArray[np.int64]], Floats],
    shortlist: NDArray[np.int64],
    own: NDArray[np.int64] | None,
) -> Tensor:
    """[n, D] of the items: the most similar one of each shortlist by code."""
    candidates = torch.from_numpy(items(shortlist))
    cosine = torch.einsum("bkd,bd->bk", candidates, q)
    if own is not None:  # a gallery of less than a hundred has it in the shortlist
        cosine[torch.from_numpy(shortlist == own[:, None])] = -2.0
    return candidates[torch.arange(len(q)), cosine.argmax(1)]


def first_hits(
    queries: Floats,
    gallery: Floats,
    names: Sequence[object] | None = None,
    asked: Sequence[object] | None = None,
) -> float:
    """Share of queries whose most similar item is right.

    Args:
        queries: unit features [n, D].
        gallery: unit features [N, D].
        names: of the items; without them an item is right for the query in its place.
        asked: names of the queries; without them those of the items.
    """
    names = range(len(gallery)) if names is None else names
    asked = names if asked is None else asked
    rows = max(1, PAIRS // len(gallery))
    blocks = (queries[start : start + rows] for start in range(0, len(queries), rows))
    nearest = np.concatenate([(block @ gallery.T).argmax(1) for block in blocks]).tolist()
    return float(np.mean([names[found] == asked[row] for row, found in enumerate(nearest)]))
