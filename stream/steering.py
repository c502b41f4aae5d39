"""How late labels of one lane wait until a batch boundary, and up to where in their log they have steered.

Labels of a topic fall between queries of another wherever the network puts them. So a label waits until the
next batch is formed, whose journal entry names the position: exactly the labels below it steer that batch,
live, after a crash and in a replay. What was seen of the labels is part of the lane's state, so that a label
that is read again does nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from core.records import Coordinates, Judgement
from core.types import Outcome


class Correction(Protocol):
    """What labels have taught a lane about the weights of its adapted twin."""

    def correct(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Weights [B] by the evidence of a batch -> the weights to serve with. Changes nothing."""

    def observe(self, outcome: Outcome) -> bool:
        """Remembers what labels may be about. Returns whether anything was changed."""

    def judge(self, judgement: Judgement) -> bool:
        """Learns from a label of what is remembered. Returns whether anything was changed."""

    def samples(self, at: Coordinates) -> bool:
        """Whether a label of this query may steer: keyed, known before its answer."""

    def remembers(self, at: Coordinates) -> bool:
        """Whether a label of this query would teach anything now."""

    def snapshot(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]: ...

    def restore(self, tensors: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None: ...

    def go_back(self, tensors: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        """Unlearns down to a snapshot. What is forgotten by now stays so."""

    def drop(self, at: Coordinates) -> None:
        """Forgets a query: its label has come, and was passed over."""


class Steering:
    """The labels of one lane.

    Args:
        correction: that they are for.
    """

    def __init__(self, correction: Correction) -> None:
        self.correction = correction
        self.offsets: dict[str, int] = {}
        """Topic/partition -> where the labels that have steered end."""
        self._seen: dict[str, int] = {}
        self._held: dict[tuple[Coordinates, str], Judgement] = {}

    def take(self, judgement: Judgement, again: Mapping[str, int] | None = None) -> None:
        """Holds a label for the next boundary, the first one behind its query's answer; others do nothing.

        Args:
            again: label positions of the batch in which the journal wants its query answered again; None: in
                no batch.
        """
        place, query = place_of(judgement), judgement.query
        if judgement.at.offset < self._seen.get(place, 0) or not self.correction.samples(query):
            return
        self._seen[place] = judgement.at.offset + 1
        late = (
            self.correction.remembers(query) if again is None else judgement.at.offset >= again.get(place, 0)
        )
        if late:
            self._held.setdefault((query, place), judgement)

    def apply(self, planned: Mapping[str, int] | None = None, teach: bool = True) -> bool:
        """Learns at a boundary from what was held.

        Args:
            planned: the positions that the journal names for it; None: all that was seen.
            teach: without it the labels are passed over, and nothing is learned.

        Returns:
            Whether the state was changed.
        """
        # What the journal names was seen, if not by us: positions never go back.
        for place, end in (planned or {}).items():
            self._seen[place] = max(end, self._seen.get(place, 0))
        ends = dict(self._seen if planned is None else planned)
        due = {key: one for key, one in self._held.items() if one.at.offset < ends.get(key[1], 0)}
        self._held = {key: one for key, one in self._held.items() if key not in due}
        # In one order, whatever order several partitions were read in.
        ordered = sorted(due.values(), key=lambda one: one.at) if teach else []
        learned = [self.correction.judge(one) for one in ordered]
        if not teach:  # else a second label would teach who reads it alone, not who reads both at once
            for one in due.values():
                self.correction.drop(one.query)
        changed = any(learned) or ends != self.offsets
        self.offsets = ends
        return changed

    def unapplied(self) -> dict[str, int]:
        """Topic/partition -> the first label that is held: a restart has to read it again."""
        first: dict[str, int] = {}
        for (_, place), one in self._held.items():
            first[place] = min(one.at.offset, first.get(place, one.at.offset))
        return first

    def snapshot(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """The correction's state, and up to where labels have made it."""
        tensors, meta = self.correction.snapshot()
        return tensors, {**meta, "label_offsets": dict(self.offsets)}

    def restore(self, tensors: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        """Returns to a snapshot; labels that it covers and are read again are passed over."""
        self.correction.restore(tensors, meta)
        self.offsets = {str(place): int(offset) for place, offset in meta["label_offsets"].items()}
        self._seen, self._held = dict(self.offsets), {}


def place_of(judgement: Judgement) -> str:
    """Topic/partition of a label."""
    return f"{judgement.at.topic}/{judgement.at.partition}"
