"""What the live page shows: bounded series, phases, lanes and the latest queries with their answers."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from core.types import Coordinates, Hits, Judgement, Outcome, Query, Refusal
from monitoring.drift import STATISTICS, DriftMonitor
from monitoring.estimates import Estimate
from monitoring.judged import ANSWERS, JudgedQuality, Quality

TOP = 5
LANES = 64
MARKS = 64
LETTERS = 20


@dataclass(frozen=True, slots=True)
class Item:
    """A gallery item as people see it; `picture` is an address, '' where there is none."""

    identifier: str
    title: str = ""
    picture: str = ""


def plain(key: int) -> Item:
    """An item nothing is known of but its key."""
    return Item(str(key))


@dataclass(slots=True)
class _Card:
    """One query and the first keys of its three answers; `right` holds the relevant keys once known."""

    query: Query
    order: int
    lane: str
    version: str
    keys: dict[str, list[int]]
    asked: bool
    label: str | None = None
    right: Collection[int] = ()


@dataclass(slots=True)
class _LaneRow:
    modality: str
    queries: int = 0
    updates: int = 0
    refused: int = 0
    resets: int = 0
    reason: str = ""
    source_distance: float = 0.0
    flip_share: float = math.nan
    state_hash: str = ""
    seq: int = 0


@dataclass(slots=True)
class _Mark:
    text: str
    first: int
    end: int | None = None
    quality: Quality = field(default_factory=Quality)


class History:
    """Observer: a thread-safe picture of the run. List it after `judged` and `drift`.

    The x of every series is the number of queries answered.

    Args:
        item: key -> what people see.
        relevant_keys: (gallery version, label) -> keys that are right; None leaves answers unmarked.
        title, subtitle, attribution: texts of the page.
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
    ) -> None:
        self._judged, self._drift, self._item, self._relevant = judged, drift, item, relevant_keys
        self._texts = {"title": title, "subtitle": subtitle, "attribution": attribution}
        self._shown = shown
        self._lock = threading.RLock()
        self._version = 0
        self._cached: tuple[int, dict[str, Any]] | None = None
        self._quality: deque[dict[str, float]] = deque(maxlen=points)
        self._drifts: deque[tuple[int, str, dict[str, float]]] = deque(maxlen=points)
        self._seconds: deque[Mapping[str, float]] = deque(maxlen=128)
        self._cards: deque[_Card] = deque(maxlen=cards)
        self._lanes: dict[str, _LaneRow] = {}
        self._marks: deque[_Mark] = deque(maxlen=MARKS)
        self._stages: dict[str, int] = {}
        self._letters: deque[dict[str, str]] = deque(maxlen=LETTERS)
        self._queries = self._repeated = 0

    # -- Observer ---------------------------------------------------------------------------------------

    def observe(self, outcome: Outcome) -> None:
        """Takes a batch in; batches answered again after a restart only count."""
        with self._lock:
            self._version += 1
            if outcome.repeated:
                self._repeated += len(outcome.batch)
            if outcome.seconds:
                self._seconds.append(outcome.seconds)
            self._choose_cards(outcome)
            self._queries += len(outcome.batch)
            self._lane(outcome)
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
        return self._version

    def picture(self, at: str) -> bytes | None:
        """The image of a recent query by its coordinates."""
        with self._lock:
            for card in self._cards:
                if str(card.query.at) == at and isinstance(card.query.content, bytes):
                    return card.query.content
        return None

    def snapshot(self) -> dict[str, Any]:
        """Everything the page shows, JSON-able; quality in points, seconds as milliseconds, NaN as None."""
        with self._lock:
            if self._cached is None or self._cached[0] != self._version:
                self._cached = (self._version, _clean(self._draw()))
            return self._cached[1]

    # -- Parts ------------------------------------------------------------------------------------------

    def _choose_cards(self, outcome: Outcome) -> None:
        """Three queries per batch, evenly spread; of those whose label was asked for, if there are any."""
        rows = list(range(len(outcome.batch)))
        asked = [r for r in rows if self._asked(outcome.batch.queries[r].at)]
        pool = asked or rows
        for row in sorted({pool[i * len(pool) // 3] for i in range(3)} if pool else ()):
            keys = {
                "frozen": _first(outcome.frozen.answer, row),
                "adapted": _first(outcome.adapted.answer, row),
                "served": _first(outcome.served, row),
            }
            query = outcome.batch.queries[row]
            self._cards.append(
                _Card(
                    query, self._queries + row, outcome.batch.lane, outcome.gallery_version, keys, bool(asked)
                )
            )

    def _asked(self, at: Coordinates) -> bool:
        return self._judged is not None and self._judged.sampled(at)

    def _lane(self, outcome: Outcome) -> None:
        name = outcome.batch.lane
        row = self._lanes.pop(name, None) or _LaneRow(outcome.batch.modality)
        self._lanes[name] = row
        while len(self._lanes) > LANES:
            del self._lanes[next(iter(self._lanes))]
        row.queries += len(outcome.batch)
        row.seq, row.state_hash = outcome.batch.seq, outcome.state_hash
        if len(outcome.batch):
            row.flip_share = float(np.unpackbits(outcome.adapted.codes ^ outcome.frozen.codes).mean())
        step = outcome.step
        if step is not None:
            row.updates += step.updated
            row.refused += not step.updated
            row.resets += step.rolled_back
            row.reason = step.reason or row.reason  # the newest refusal stays readable
            row.source_distance = step.diagnostics.get("source_distance", 0.0)

    def _point(self, moved: bool = True) -> None:
        """Adds the present estimates; a label between two batches replaces the newest point."""
        if self._judged is None:
            return
        live = self._judged.live()
        point: dict[str, float] = {"x": self._queries}
        for name in ANSWERS:
            point.update(_points(name, live.quality[name]))
        point.update(_points("gain", live.gain["served"]))
        if self._quality and not moved and self._quality[-1]["x"] == self._queries:
            self._quality.pop()
        self._quality.append(point)

    def _draw(self) -> dict[str, Any]:
        return {
            **self._texts,
            "version": self._version,
            "queries": self._queries,
            "repeated": self._repeated,
            "headline": self._headline(),
            "quality": _columns(self._quality),
            "phases": self._phases(),
            "drift": self._drift_columns(),
            "latency": self._latency(),
            "lanes": [
                {"lane": name, **{slot: getattr(row, slot) for slot in _LaneRow.__slots__}}
                for name, row in sorted(self._lanes.items())
            ],
            "latest": [self._show(card) for card in list(self._cards)[: -self._shown - 1 : -1]],
            "dead_letters": {
                "stages": dict(sorted(self._stages.items())),
                "latest": list(self._letters)[::-1],
            },
        }

    def _headline(self) -> dict[str, Any]:
        if self._judged is None:
            return {}
        live, labels = self._judged.live(), self._judged.labels()
        gain = live.gain["served"]
        low, high = live.anytime["served"]
        verdict = "waiting" if math.isnan(gain.low) else "neutral"
        if gain.low > 0:
            verdict = "helps"
        elif gain.high < 0:
            verdict = "harms"
        return {
            "gain": 100 * gain.value,
            "low": 100 * gain.low,
            "high": 100 * gain.high,
            "n_eff": gain.n_eff,
            "verdict": verdict,
            "anytime_low": 100 * low,
            "anytime_high": 100 * high,
            "block": live.block,
            "block_labels": live.block_labels,
            "steady": live.steady,
            "requested": labels.requested,
            "arrived": labels.arrived,
            "pending": labels.pending,
            "expired": labels.expired,
            "ignored": sum(labels.ignored.values()),
        }

    def _phases(self) -> list[dict[str, Any]]:
        rows = []
        for mark in self._marks:
            if self._judged is not None:
                mark.quality = self._judged.between(mark.first, mark.end)
            q = mark.quality
            numbers = {
                "n": q.n, "frozen": q.map_frozen, "adapted": q.map_adapted, "served": q.map_served,
                "diff": q.diff, "low": q.low, "high": q.high,
            }  # fmt: skip
            rows.append({"text": mark.text, "first": mark.first, "end": mark.end, **numbers})
        return rows

    def _drift_columns(self) -> dict[str, Any]:
        return {
            "x": [x for x, _, _ in self._drifts],
            "lane": [lane for _, lane, _ in self._drifts],
            "statistics": {name: [scaled[name] for _, _, scaled in self._drifts] for name in STATISTICS},
        }

    def _latency(self) -> dict[str, Any]:
        stages = list(dict.fromkeys(stage for seconds in self._seconds for stage in seconds))
        columns = [[1e3 * s[stage] for s in self._seconds if stage in s] for stage in stages]
        totals = [1e3 * sum(s.values()) for s in self._seconds]
        both = [_percentiles(column) for column in columns]
        whole = _percentiles(totals) if totals else (math.nan, math.nan)
        return {
            "stages": stages,
            "p50": [p50 for p50, _ in both],
            "p95": [p95 for _, p95 in both],
            "total": {"p50": whole[0], "p95": whole[1]},
            "batches": len(self._seconds),
        }

    def _show(self, card: _Card) -> dict[str, Any]:
        query = card.query
        text = query.content if isinstance(query.content, str) else ""
        answers = {}
        for name, keys in card.keys.items():
            rows = []
            for key in keys:
                item = self._item(key)
                rows.append(
                    {
                        "id": item.identifier,
                        "title": item.title or item.identifier,
                        "picture": item.picture,
                        "right": key in card.right,
                    }
                )
            answers[name] = rows
        return {
            "at": str(query.at),
            "lane": card.lane,
            "modality": query.modality,
            "text": text,
            "picture": f"/picture/query/{query.at}" if isinstance(query.content, bytes) else "",
            "asked": card.asked,
            "labelled": card.label is not None,
            "answers": answers,
        }


def _first(hits: Hits, row: int) -> list[int]:
    return [int(key) for key in hits.keys[row, :TOP] if key >= 0]


def _points(name: str, estimate: Estimate) -> dict[str, float]:
    return {
        name: 100 * estimate.value,
        f"{name}_low": 100 * estimate.low,
        f"{name}_high": 100 * estimate.high,
    }


def _columns(points: Collection[dict[str, float]]) -> dict[str, list[float]]:
    names = ["x", *(f"{name}{end}" for name in (*ANSWERS, "gain") for end in ("", "_low", "_high"))]
    return {name: [point[name] for point in points] for name in names}


def _percentiles(values: list[float]) -> tuple[float, float]:
    p50, p95 = np.percentile(values, (50, 95))
    return float(p50), float(p95)


def _clean(value: Any) -> Any:
    """Numbers to three decimals, NaN and infinity to None: what JSON can carry."""
    if isinstance(value, float):
        return round(value, 3) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _clean(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(entry) for entry in value]
    return value
