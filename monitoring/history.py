"""What the live page shows, kept while it happens: bounded series, phases, lanes and the latest queries."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from core.commands import Obeyed
from core.records import Coordinates, Judgement, Refusal
from core.types import Outcome
from monitoring.cards import Card, Item, chosen, plain
from monitoring.drift import DriftMonitor
from monitoring.expected import ExpectedMonitor
from monitoring.judged import JudgedQuality
from monitoring.lane_rows import LaneRows
from monitoring.quality import Quality
from monitoring.snapshot import (
    clean,
    drift_columns,
    expected_points,
    headline,
    latency,
    phase_row,
    quality_columns,
    quality_point,
)

MARKS = 64
COMMANDS = 64
LETTERS = 20


@dataclass(slots=True)
class _Mark:
    text: str
    first: int
    end: int | None = None
    quality: Quality = field(default_factory=Quality)


class History:
    """Observer: a thread-safe picture of the run. List it after `judged`, `drift` and `expected`.

    The x of every series is the number of queries answered.

    Args:
        item: key -> what people see.
        relevant_keys: (gallery version, label) -> keys that are right; None leaves answers unmarked.
        title, subtitle, attribution: texts of the page.
        abstained: answers of a batch that name nothing.
        points: length of the series.
        cards: queries kept for late labels; `shown` of them are on the page.
    """

    def __init__(
        self,
        judged: JudgedQuality | None = None,
        drift: DriftMonitor | None = None,
        item: Callable[[int], Item] = plain,
        relevant_keys: Callable[[str, str], Collection[int]] | None = None,
        title: str = "qshift",
        subtitle: str = "",
        attribution: str = "",
        points: int = 720,
        cards: int = 48,
        shown: int = 8,
        expected: ExpectedMonitor | None = None,
        abstained: Callable[[Outcome], int] = lambda _: 0,
    ) -> None:
        self._abstaining, self._abstained = abstained, 0
        self._judged, self._drift, self._item, self._relevant = judged, drift, item, relevant_keys
        self._expected = expected
        self._texts = {"title": title, "subtitle": subtitle, "attribution": attribution}
        self._shown = shown
        self._lock = threading.RLock()
        self._version = 0
        self._cached: tuple[int, dict[str, Any]] | None = None
        self._quality: deque[dict[str, float]] = deque(maxlen=points)
        self._drifts: deque[tuple[int, str, dict[str, float]]] = deque(maxlen=points)
        self._seconds: deque[Mapping[str, float]] = deque(maxlen=128)
        self._cards: deque[Card] = deque(maxlen=cards)
        self._lanes = LaneRows()
        self._marks: deque[_Mark] = deque(maxlen=MARKS)
        self._stages: dict[str, int] = {}
        self._letters: deque[dict[str, str]] = deque(maxlen=LETTERS)
        self._queries = self._repeated = self._told = 0
        self._commands: deque[dict[str, Any]] = deque(maxlen=COMMANDS)

    # -- Observer ---------------------------------------------------------------------------------------

    def observe(self, outcome: Outcome) -> None:
        """Takes a batch in; batches answered again after a restart only count."""
        with self._lock:
            self._version += 1
            if outcome.repeated:
                self._repeated += len(outcome.batch)
            else:
                self._abstained += self._abstaining(outcome)
            if outcome.seconds:
                self._seconds.append(outcome.seconds)
            self._cards.extend(chosen(outcome, self._queries, self._asked))
            self._queries += len(outcome.batch)
            self._lanes.add(outcome)
            if self._drift is not None:
                panel = self._drift.panels().get(outcome.batch.lane)
                if panel is not None:
                    scaled = {n: v / panel.thresholds[n] for n, v in panel.values.items()}
                    self._drifts.append((self._queries, outcome.batch.lane, scaled))
            self._point()

    def judge(self, judgement: Judgement) -> None:
        """Marks the right answers of a shown query."""
        with self._lock:
            self._version += 1
            card = next((c for c in self._cards if c.query.at == judgement.query and c.asked), None)
            if card is not None:
                card.label = judgement.label
                if self._relevant is not None:
                    card.right = frozenset(self._relevant(card.version, judgement.label))
            self._point(moved=False)

    def refuse(self, refusal: Refusal) -> None:
        """Counts a dead letter by stage."""
        with self._lock:
            self._version += 1
            self._stages[refusal.stage] = self._stages.get(refusal.stage, 0) + 1
            letter = {"at": str(refusal.record.at), "stage": refusal.stage, "reason": refusal.reason[:200]}
            self._letters.append(letter)

    def lacks(self, name: str) -> None:
        """Says under the title that an observer was switched off: what it showed stands still."""
        with self._lock:
            self._version += 1
            self._texts["subtitle"] += f" · {name} failed and was switched off"

    def commanded(self, obeyed: Obeyed) -> None:
        """Shows what became of a command. For one thread, which waits for no lock here."""
        one = obeyed.command
        what = (one.method or one.gallery or one.state) if one.action != "w" else f"{one.weight}"
        self._commands.append(
            {
                "x": self._queries, "action": one.action, "what": what, "author": one.author[:64],
                "lane": obeyed.lane, "batch": obeyed.seq, "result": obeyed.result,
                "reason": obeyed.reason[:200],
            }
        )  # fmt: skip
        self._told += 1

    def entitle(self, subtitle: str) -> None:
        """Another subtitle from now on: the gallery is another one."""
        with self._lock:
            self._version += 1
            self._texts["subtitle"] = subtitle

    def mark(self, text: str) -> None:
        """Starts a named phase here: a line in the charts, a row of the phase table."""
        with self._lock:
            self._version += 1
            if self._marks:
                self._marks[-1].end = self._queries
            self._marks.append(_Mark(text, self._queries))

    # -- Readers ----------------------------------------------------------------------------------------

    @property
    def queries(self) -> int:
        """Queries observed so far, the last batch completely."""
        with self._lock:
            return self._queries

    @property
    def version(self) -> int:
        """Grows with every change."""
        return self._version + self._told

    def picture(self, at: str) -> bytes | None:
        """The image of a recent query by its coordinates."""
        with self._lock:
            for card in self._cards:
                if str(card.query.at) == at and card.picture is not None:
                    return card.picture
        return None

    def snapshot(self) -> dict[str, Any]:
        """Everything the page shows, JSON-able; quality in points, seconds as milliseconds, NaN as None."""
        with self._lock:
            version = self.version
            if self._cached is None or self._cached[0] != version:
                self._cached = (version, clean(self._draw(version)))
            return self._cached[1]

    # -- Parts ------------------------------------------------------------------------------------------

    def _asked(self, at: Coordinates) -> bool:
        return self._judged is not None and self._judged.sampled(at)

    def _point(self, moved: bool = True) -> None:
        """Adds the present estimates; a label between two batches replaces the newest point."""
        if self._judged is None:
            return
        point = quality_point(self._queries, self._judged.live())
        if self._quality and not moved and self._quality[-1]["x"] == self._queries:
            self._quality.pop()
        self._quality.append(point)

    def _draw(self, version: int) -> dict[str, Any]:
        return {
            **self._texts,
            "version": version,
            "queries": self._queries,
            "repeated": self._repeated,
            "abstained": self._abstained,
            "headline": self._headline(),
            "expected": expected_points(None if self._expected is None else self._expected.over_lanes()),
            "quality": quality_columns(self._quality),
            "phases": [self._phase(mark) for mark in self._marks],
            "commands": list(self._commands),
            "drift": drift_columns(self._drifts),
            "latency": latency(self._seconds),
            "lanes": self._lanes.shown(),
            "latest": [card.shown(self._item) for card in list(self._cards)[: -self._shown - 1 : -1]],
            "dead_letters": {
                "stages": dict(sorted(self._stages.items())),
                "latest": list(self._letters)[::-1],
            },
        }

    def _headline(self) -> dict[str, Any]:
        return headline(self._judged.live(), self._judged.labels()) if self._judged is not None else {}

    def _phase(self, mark: _Mark) -> dict[str, Any]:
        if self._judged is not None:
            mark.quality = self._judged.between(mark.first, mark.end)
        return phase_row(mark.text, mark.first, mark.end, mark.quality)
