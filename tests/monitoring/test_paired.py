"""What compares the twins looks at the rows that both have read: the others say nothing of the frozen one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from core.references import DriftReference
from core.types import Encoded, Hits, Outcome
from monitoring.cards import chosen
from monitoring.drift import DriftMonitor
from monitoring.judged import JudgedQuality, included
from monitoring.lane_rows import LaneRows

ROWS, WIDTH = 24, 4
ASKED = np.arange(ROWS) % 3 > 0


@pytest.fixture
def both(outcome: Callable[..., Outcome]) -> tuple[Outcome, Outcome]:
    """A batch whose frozen twin was asked for two rows of three; and again with other values in the rest."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (2, ROWS, 2), dtype=np.uint8)
    part = outcome(
        lane="0:image", offsets=range(ROWS), frozen_codes=codes[0], adapted_codes=codes[1],
        features=rng.normal(size=(ROWS, WIDTH)).astype(np.float32),
        keys=rng.integers(0, 50, (ROWS, 5)), distances=rng.integers(0, 9, (ROWS, 5)).astype(np.int32),
    )  # fmt: skip
    twin, rest = part.frozen, ~ASKED
    features, code = twin.features.copy(), twin.codes.copy()
    keys, distances = twin.hits.keys.copy(), twin.hits.distances.copy()
    features[rest], code[rest], keys[rest], distances[rest] = 7.0, ~code[rest], 99, 77
    hits = Hits(keys, distances)
    other = replace(part, frozen=replace(twin, encoded=Encoded(features, code), hits=hits, answer=hits))
    return replace(part, asked=ASKED), replace(other, asked=ASKED)


def everywhere(outcome: Outcome) -> Outcome:
    return replace(outcome, asked=None)


def drifts(outcome: Outcome) -> Any:
    rng = np.random.default_rng(1)
    clean = rng.normal(size=(100, WIDTH)).astype(np.float32)
    zeros = np.zeros(len(clean), np.float32)
    monitor = DriftMonitor({"image": DriftReference(clean, zeros, zeros)}, window=16, null_windows=200)
    monitor.observe(outcome)
    return monitor.panels()["0:image"]


def rows(outcome: Outcome) -> Any:
    shown = LaneRows()
    shown.add(outcome)
    return shown.shown()


def remembered(outcome: Outcome) -> Any:
    quality = JudgedQuality("key", 0.9, 100, lambda *_: None, keep_features=True)
    quality.observe(outcome)
    return [(at, kept.frozen_code.tobytes()) for at, kept in quality._memory.items()]


def cards(outcome: Outcome) -> Any:
    return [(card.query.at, card.keys["frozen"]) for card in chosen(outcome, 0, lambda at: True)]


@pytest.mark.parametrize("seen", [drifts, rows, remembered, cards])
def test_rows_that_were_not_asked_for_change_nothing(
    both: tuple[Outcome, Outcome], seen: Callable[[Outcome], Any]
) -> None:
    one, other = map(seen, both)
    assert repr(one) == repr(other)
    assert repr(seen(everywhere(both[0]))) != repr(seen(everywhere(both[1])))  # it would be noticed


def test_a_labelled_row_that_was_asked_for_is_measured_as_ever(both: tuple[Outcome, Outcome]) -> None:
    found = [at for at, _ in remembered(both[0])]
    asked = [query.at for query, known in zip(both[0].batch.queries, ASKED) if known]
    assert found == [at for at in asked if included(at, "key", 0.9)] and found
