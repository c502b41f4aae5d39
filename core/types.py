"""The values that travel through qshift. Frozen; arrays inside are never written to.

Shape letters: B batch rows, D feature width, L code bits, K candidates, N gallery items.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from core.filters import ANYTHING, Wanted
from core.records import Coordinates

Modality = Literal["text", "image", "vector", "composed", "sequence"]
"""A composed query is a picture and a text, a sequence a short clip of pictures or vectors."""
Floats = NDArray[np.float32]
Codes = NDArray[np.uint8]
Keys = NDArray[np.int64]
Distances = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Query:
    """One accepted query.

    `content` is text, picture bytes, a vector [D], a picture with a text (composed) or frames (sequence);
    `prepared` is what `Encoder.prepare` made of it: whatever can be refused is refused before batching.
    """

    at: Coordinates
    modality: Modality
    content: str | bytes | Floats | tuple[bytes, str] | tuple[bytes, ...]
    query_id: str = ""
    tenant: str = ""
    timestamp_ms: int = 0
    prepared: Any = None
    repaired: str = ""
    """What query repair made of a text; "" where it changed nothing or is off."""
    repaired_prepared: Any = None
    wanted: Wanted = ANYTHING

    @property
    def meant(self) -> Any:
        """What an encoder takes of the text as it was meant; of all else, as it was asked."""
        return self.prepared if self.repaired_prepared is None else self.repaired_prepared


@dataclass(frozen=True, slots=True)
class QueryBatch:
    """Queries of one lane and one modality that are answered and learned from together."""

    lane: str
    seq: int
    modality: Modality
    queries: tuple[Query, ...]

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def offsets(self) -> tuple[int, ...]:
        return tuple(query.at.offset for query in self.queries)


@dataclass(frozen=True, slots=True)
class Encoded:
    """Unit features [B, D] float32 and their packed codes [B, L/8] uint8."""

    features: Floats
    codes: Codes


@dataclass(frozen=True, slots=True)
class Hits:
    """Nearest gallery items, best first: keys [B, K] int64 and distances [B, K] int32.

    Unused places (K > N, or everything filtered out) hold key -1 and distance 2147483647.
    """

    keys: Keys
    distances: Distances
    scores: NDArray[np.float64] | None = None  # [B, K], descending; None: by distance alone


@dataclass(frozen=True, slots=True)
class Twin:
    """How one encoder, the frozen or the adapted one, sees a batch and what it answers alone."""

    encoded: Encoded
    hits: Hits
    """Shortlist of its code, by Hamming distance, of the whole gallery."""
    answer: Hits
    """What it would answer alone, under the filters of the queries."""
    among: Hits | None = None  # the shortlist of its answer where a query has a filter; None: `hits`
    cosines: NDArray[np.float64] | None = None  # [B, K] to the items of `hits`, -1: no item; None: not taken

    @property
    def features(self) -> Floats:
        """Unit features [B, D]."""
        return self.encoded.features

    @property
    def codes(self) -> Codes:
        """Packed codes [B, L/8]."""
        return self.encoded.codes


@dataclass(frozen=True, slots=True)
class AdaptationStep:
    """What one call of `Adapter.update` did. `reason` says why nothing was learned, else ''."""

    updated: bool
    reason: str = ""
    losses: Mapping[str, float] = field(default_factory=dict)
    diagnostics: Mapping[str, float] = field(default_factory=dict)
    """The method's own figures by name. Known to monitoring: kept_share, entropy, uniformity, gap,
    conflict_degrees, realised_degrees, removed_energy, source_distance."""
    rolled_back: bool = False
    backwards: int = 0
    """Backward passes through the encoder that this update took."""
    resets: int = 0
    """How often a guard has returned the lane to the source so far."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything known about one answered batch; padding rows are already dropped."""

    batch: QueryBatch
    frozen: Twin
    adapted: Twin
    served: Hits
    weights: Floats
    """[B] of the adapted twin in the served answer: 0 is the frozen answer, inf the adapted one."""
    gallery_version: str
    state_hash: str
    frozen_entropy: Floats
    step: AdaptationStep | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    forwards: int = 0
    """Passes of the batch, or of a part of it, through the encoder, the frozen one included."""
    quiet: bool = False
    """True where nothing showed a shift: the adapted twin was not asked, and what stands for it is frozen."""
    repeated: bool = False
    """True while a restart answers again what an earlier run had journalled."""
    asked: NDArray[np.bool_] | None = None
    """[B] of which the frozen twin was asked; in other rows the adapted one stands for it. None: of all."""

    @property
    def paired(self) -> NDArray[np.bool_]:
        """[B] True where both twins have answers of their own: what compares them looks at these rows."""
        return np.ones(len(self.batch), np.bool_) if self.asked is None else self.asked
