"""How far the labels were read, where a restart has to read them again, and what waits for them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from core.records import Coordinates

log = logging.getLogger("qshift.runner")
PATIENCE_SECONDS = 30.0
"""Without a label so long, a batch that is to be repeated is repeated without those that are missing."""
TURNS = 1000
"""The same where no query can be read either; for runs whose clock stands still. A live turn takes longer."""
LOST = (
    "labels that an answered batch depends on cannot be read: it is answered again without them and may "
    "differ; keep the labels as long as the queries"
)


class LabelPositions:
    """Topic/partition -> the offset behind the last label that was read.

    Args:
        clock: seconds.
        full: whether so many queries wait that no more are read: a log that is not live may hold its labels
            behind them.
        lost: what to say where they cannot be read.
    """

    def __init__(self, clock: Callable[[], float], full: Callable[[], bool], lost: str = LOST) -> None:
        self._clock, self._full, self._lost = clock, full, lost
        self.read: dict[str, int] = {}
        self._first: dict[str, int] = {}
        self._whole = False
        """Whether a state was loaded that wants all labels it has not met, from where they begin."""
        self._waiting_since: float | None = None
        self._asked = 0
        self._said = False

    def note(self, at: Coordinates) -> None:
        """A label, good or bad, was read."""
        place = f"{at.topic}/{at.partition}"
        self.read[place] = at.offset + 1
        self._first.setdefault(place, at.offset)
        self._waiting_since, self._asked, self._said = None, 0, False

    def again(self, saved: Mapping[str, int], all_: bool) -> dict[str, int]:
        """Where to read from for a state that covers labels up to `saved`; never skips what others wait for.

        Args:
            all_: also what the state had not met, although this process has: from where that began.
        """
        places = {**saved, **self.read} if all_ else saved
        starts = {place: saved.get(place, self._first.get(place, 0)) for place in places}
        for place, offset in starts.items():
            # Of what was not read yet an earlier state may want all: it could not name the place.
            known = self._first.get(place, 0) if self._whole else offset
            self.read[place] = min(offset, self.read.get(place, known))
            # Not where this seek goes: another partition's state may not have met what lies before.
            self._first[place] = min(offset, self._first.get(place, 0))
        self._whole = self._whole or all_
        return {place: self.read[place] for place in sorted(starts)}

    def reached(self, wanted: Mapping[str, int], drain: bool) -> bool:
        """Whether labels were read up to `wanted`, or there is no use in waiting: no more will come."""
        missing = [f"{place} up to {end}" for place, end in wanted.items() if self.read.get(place, 0) < end]
        if not missing:
            return True
        now = self._clock()
        self._waiting_since = now if self._waiting_since is None else self._waiting_since
        self._asked += 1
        stuck = self._asked >= TURNS and self._full()
        if not (drain or stuck or now - self._waiting_since >= PATIENCE_SECONDS):
            return False
        if not self._said:
            log.error(self._lost, extra={"missing": missing})
        self._said = True
        return True


def earliest(positions: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The smallest offset of each topic/partition."""
    least: dict[str, int] = {}
    for position in positions:
        for place, offset in position.items():
            least[place] = min(offset, least.get(place, offset))
    return least


def shared(positions: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """The same of those that all name: who has not met one needs it from where it begins."""
    return {place: at for place, at in earliest(positions).items() if all(place in one for one in positions)}
