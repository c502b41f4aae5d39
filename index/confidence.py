"""How sure an answer is, before any label: the average precision to expect of it, by the base's own curves.

Each twin's nearest cosine says how far its query has moved away from the gallery, in sd of clean queries, and
in a gallery of classes its nearest items say how far they agree; curves say how well such queries were
answered when the base was fitted (docs/methods/expected.md). What is served of both twins is expected to be
as good as they are, each by its weight.

Under a filter the nearest item is the nearest that is allowed. The curve was measured without one, so that
the confidence errs to the low side there. Whether neighbours agree, and whether those of the whole batch have
gathered, is asked of the whole gallery: those that a filter leaves may share a label because it names it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.expected import PARTS, precision_at, read
from core.protocols import Gallery
from core.references import ExpectedQuality
from core.types import Floats, Modality, Twin
from index.evidence import Evidence

Numbers = NDArray[np.float64]


class Expectations:
    """Expected average precision of a twin's answers, of every kind of query that the base has a curve of.

    Args:
        evidence: knows what clean queries look like in a gallery.
        extras: tensors of the base, by name; without a curve among them nothing is said.
    """

    def __init__(self, evidence: Evidence, extras: Mapping[str, Mapping[str, NDArray[Any]]]) -> None:
        self._evidence = evidence
        self._curves: dict[Modality, ExpectedQuality] = {
            modality: read(extras[part])
            for modality, part in PARTS.items()
            if part in extras and evidence.knows(modality)
        }

    @property
    def modalities(self) -> Collection[Modality]:
        """Kinds of query of which something is known."""
        return self._curves.keys()

    def of(
        self, gallery: Gallery, modality: Modality, twin: Twin, nearest: Numbers | None = None,
        adapted: bool = False,
    ) -> Numbers | None:  # fmt: skip
        """[B] of a twin's answers, 0 to 1; None: nothing is known of such queries.

        Args:
            nearest: cosines [B] to the nearest item that is allowed; None: of the whole gallery.
            adapted: whether it is the adapted twin.
        """
        curve = self._curves.get(modality)
        if curve is None:
            return None
        evidence = self._evidence
        drops = (
            evidence.drops(gallery, modality, twin)
            if nearest is None
            else evidence.below(gallery, modality, nearest)
        )
        if drops is None:
            return None
        if curve.agreed is None or not evidence.classes(gallery, modality):
            return precision_at(curve, drops)
        around = evidence.agreed(gallery, twin).around
        gathered = None
        if curve.agreed[adapted].gathered is not None:
            gathered = evidence.gathered(gallery, modality, twin)
        return precision_at(curve, drops, around, adapted, gathered)


class Confidence:
    """Expected average precision of served answers.

    Args:
        evidence, extras: see `Expectations`.
        version: a gallery that is still kept, by its version.
    """

    def __init__(
        self, evidence: Evidence, extras: Mapping[str, Mapping[str, NDArray[Any]]],
        version: Callable[[str], Gallery | None],
    ) -> None:  # fmt: skip
        self._expected, self._version = Expectations(evidence, extras), version

    def __call__(
        self, version: str, modality: Modality, frozen: Twin, adapted: Twin, weights: Floats
    ) -> Numbers | None:
        """[B], 0 to 1; None where the base has no curve for such queries, or answers are ranked by codes."""
        gallery, near, moved = self._version(version), frozen.answer.scores, adapted.answer.scores
        if gallery is None or near is None or moved is None:
            return None
        # A twin's answer is ordered by its cosines: the first one is its nearest.
        alone = self._expected.of(gallery, modality, frozen, np.maximum(near[:, 0], -1.0))
        if alone is None or adapted is frozen:
            return alone
        other = self._expected.of(gallery, modality, adapted, np.maximum(moved[:, 0], -1.0), adapted=True)
        share = 1.0 - 1.0 / (1.0 + weights.astype(np.float64))  # 1 where the weight is infinite
        return None if other is None else (1.0 - share) * alone + share * other
