"""The frozen twin asked for a sample: a lane under a strong shift that has lasted knows what it would say.

Where the adapted twin outvotes the frozen one in batch after batch, so that the frozen vote hardly changes an
answer, the frozen forward runs for the queries whose label is asked for, and for as many others as fill its
rows. They give the evidence of the batch, and all figures that compare the twins; the other rows are the
adapted twin's. A sample that does not say the same again has the frozen twin asked for the rest before
anything is answered, so that the end of a shift is met by both twins. How long a shift has lasted is part of
a lane's state.

Ours; docs/methods/fusion.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from core.records import Coordinates
from core.types import Floats, QueryBatch

if TYPE_CHECKING:
    from stream.session import Session

STRONG, MOST = 4.0, 0.75
"""The adapted twin's largest finite weight (`index.weighing.MORE`), and the share of rows that have it."""
DIFFER, SLACK = 0.06, 1.5
"""Share of rows in which the frozen twin's vote may still change the first item, and rows more by chance. In
blur it does so in one row of eight, and without its vote two points are lost: docs/lab/log.md."""
LASTING = 3
"""Batches in a row that show a strong shift before the frozen twin is asked for a sample."""
STEP, FEWEST = 8, 16
"""Rows of a sample come in steps, so that shapes are few; fewer than `FEWEST` are no evidence."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which rows the frozen twin is asked for.

    Args:
        chosen: whether a query is in the sample; keyed, and true of all whose label is asked for. None: every
            one is.
    """

    chosen: Callable[[Coordinates], bool] | None = None

    def lasted(self, session: Session, strong: bool) -> int:
        """For how many batches a lane's shift has been strong, this one included; no more than matter."""
        return min(session.lasting + 1, LASTING) if strong and self.chosen is not None else 0

    def rows(self, session: Session, batch: QueryBatch) -> NDArray[np.bool_]:
        """[B] True where the frozen twin is asked before the batch's evidence is known."""
        every = np.ones(len(batch), np.bool_)
        # What learns by gradients looks at the frozen features of all rows; of mended texts there are two.
        if self.chosen is None or session.lasting < LASTING or session.orders.frozen:
            return every
        if not session.aligner or session.adapter.parameters() or any(q.repaired for q in batch.queries):
            return every
        drawn = np.array([self.chosen(query.at) for query in batch.queries], np.bool_)
        size = padded(max(int(drawn.sum()), FEWEST))
        if 4 * size > 3 * len(batch):
            return every
        drawn[np.flatnonzero(~drawn)[: size - int(drawn.sum())]] = True
        return drawn


EVERY = Sampling()


def padded(count: int) -> int:
    """Rows of a forward of `count` rows of a batch."""
    return -(-count // STEP) * STEP


def strong(weights: Floats, alike: NDArray[np.bool_]) -> bool:
    """Whether the adapted twin can do without the frozen one in a batch like this.

    Args:
        weights: [n] of the adapted twin, in rows that both have read.
        alike: [n] where what is served begins with what the adapted twin would answer alone.
    """
    most = len(weights) >= FEWEST and float((weights >= STRONG).mean()) >= MOST
    return most and int((~alike).sum()) <= DIFFER * len(alike) + SLACK
