"""Expected mAP on toy outcomes: a loop of faded means, lanes apart, and what is not looked at."""

import math

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from monitoring.expected import LANES, ExpectedMonitor
from monitoring.history import History
from monitoring.metrics import Metrics


def monitor(drops, memory=10):
    """Drops of both twins by batch number; precision is 1 - drop / 2."""
    return ExpectedMonitor(
        lambda outcome: (
            drops.get(outcome.batch.seq)
            and tuple(1 - np.array(of_twin) / 2 for of_twin in drops[outcome.batch.seq])
        ),
        memory,
    )


def test_means_fade_by_query(outcome):
    seen = monitor({0: ([0.0, 1.0], [0.0, 0.5]), 1: ([2.0, 2.0, 2.0], [1.0, 1.0, 1.0])})
    assert seen.over_lanes() is None and seen.of_lane("0:image") is None
    seen.observe(outcome([0, 1], seq=0))
    first = seen.of_lane("0:image")
    assert (first.frozen, first.adapted, first.weight) == pytest.approx((0.75, 0.875, 2))
    seen.observe(outcome([2, 3, 4], seq=1))
    kept = math.exp(-3 / 10)
    found = seen.of_lane("0:image")
    assert found.weight == pytest.approx(3 + 2 * kept)
    assert found.frozen == pytest.approx((0 + kept * 1.5) / (3 + 2 * kept))
    assert found.adapted == pytest.approx((1.5 + kept * 1.75) / (3 + 2 * kept))


def test_lanes_are_apart_and_together_by_their_queries(outcome):
    seen = monitor({0: ([0.0], [0.0]), 1: ([2.0] * 3, [1.0] * 3)})
    seen.observe(outcome([0], seq=0, lane="0:image"))
    seen.observe(outcome([1, 2, 3], seq=1, lane="1:image"))
    assert seen.of_lane("0:image").frozen == 1.0 and seen.of_lane("1:image").frozen == 0.0
    assert seen.over_lanes().frozen == pytest.approx(0.25) and seen.over_lanes().weight == 4


def test_what_is_not_known_changes_nothing(outcome):
    seen = monitor({0: ([0.0, 1.0], [0.0, np.nan]), 1: ([2.0], [2.0]), 3: ([np.nan], [np.nan])})
    seen.observe(outcome([0, 1], seq=0))
    before = seen.of_lane("0:image")
    assert (before.frozen, before.weight) == (1.0, 1)  # the second row is no number
    seen.observe(outcome([2], seq=1, repeated=True))
    seen.observe(outcome([3], seq=2))  # no drops
    seen.observe(outcome([4], seq=3))
    assert seen.of_lane("0:image") == before


def test_memory_is_bounded(outcome):
    seen = monitor({0: ([0.0], [0.0])})
    for lane in [*range(LANES), 0, LANES]:
        seen.observe(outcome([0], lane=f"{lane}:image"))
    assert seen.of_lane("1:image") is None and seen.of_lane("0:image") is not None


def test_the_page_shows_all_lanes_together_in_points(outcome):
    seen = monitor({0: ([0.5], [0.0]), 1: ([1.0] * 3, [1.0] * 3)})
    page = History(expected=seen)
    assert page.snapshot()["expected"] == History().snapshot()["expected"] == {}
    for batch in (outcome([0]), outcome([1, 2, 3], seq=1, lane="1:image")):
        for observer in (seen, page):
            observer.observe(batch)
    assert page.snapshot()["expected"] == {"frozen": 56.25, "adapted": 62.5}


def test_gauges_of_both_twins(outcome):
    seen = monitor({0: ([0.5], [0.0])})
    registry = CollectorRegistry()
    metrics = Metrics(registry, expected=seen)
    for observer in (seen, metrics):
        observer.observe(outcome([0]))
        observer.observe(outcome([1], lane="0:text", seq=7))

    def value(lane, twin):
        return registry.get_sample_value("qshift_expected_map", {"lane": lane, "twin": twin})

    assert (value("0:image", "frozen"), value("0:image", "adapted")) == (0.75, 1.0)
    assert value("0:text", "frozen") is None
