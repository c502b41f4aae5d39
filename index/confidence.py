"""How sure an answer is, before any label: the average precision to expect of it, by the base's own curve.

Each twin's nearest cosine says how far its query has moved away from the gallery, in sd of clean queries; the
curve says how well such queries were answered when the base was fitted (docs/methods/expected.md). What is
served of both twins is expected to be as good as they are, each by its weight.

Under a filter the nearest item is the nearest that is allowed. The curve was measured without one, so that
the confidence errs to the low side there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.expected import EXPECTED, precision_at, read
from core.protocols import Gallery
from core.references import ExpectedQuality
from core.types import Floats, Modality, Twin
from index.evidence import Evidence


class Confidence:
    """Expected average precision of served answers.

    Args:
        evidence: knows what clean queries look like in a gallery.
        extras: tensors of the base, by name; without the curve among them nothing is said.
        version: a gallery that is still kept, by its version.
    """

    def __init__(
        self, evidence: Evidence, extras: Mapping[str, Mapping[str, NDArray[Any]]],
        version: Callable[[str], Gallery | None],
    ) -> None:  # fmt: skip
        self._evidence, self._version = evidence, version
        self._curves: dict[Modality, ExpectedQuality] = {}
        if EXPECTED in extras and evidence.knows("image"):
            self._curves["image"] = read(extras[EXPECTED])

    def __call__(
        self, version: str, modality: Modality, frozen: Twin, adapted: Twin, weights: Floats
    ) -> NDArray[np.float64] | None:
        """[B], 0 to 1; None where the base has no curve for such queries, or answers are ranked by codes."""
        curve, gallery = self._curves.get(modality), self._version(version)
        if curve is None or gallery is None or frozen.answer.scores is None or adapted.answer.scores is None:
            return None

        def expected(scores: NDArray[np.float64]) -> NDArray[np.float64]:
            # A twin's answer is ordered by its cosines: the first one is its nearest.
            nearest = np.maximum(scores[:, 0], -1.0)
            return precision_at(curve, self._evidence.below(gallery, modality, nearest))

        alone = expected(frozen.answer.scores)
        if adapted is frozen:
            return alone
        share = 1.0 - 1.0 / (1.0 + weights.astype(np.float64))  # 1 where the weight is infinite
        return (1.0 - share) * alone + share * expected(adapted.answer.scores)
