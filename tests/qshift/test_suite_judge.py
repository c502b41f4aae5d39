"""R@k with ties against all orders, and the judge against the service's own measures."""

from itertools import permutations

import numpy as np
import pytest

from monitoring.ranking import average_precision, levels, recall_at_1
from qshift.benchmarks.suite.judge import hit_at, score


def slow(distances: list[float], relevant: list[bool], k: int) -> float:
    """Share of the orders that agree with the distances in which one of the first k is relevant."""
    hits = []
    for order in permutations(range(len(distances))):
        ordered = [distances[i] for i in order]
        if ordered == sorted(ordered):
            hits.append(any(relevant[i] for i in order[:k]))
    return float(np.mean(hits))


@pytest.mark.parametrize("seed", range(8))
def test_hits_among_the_first_k_are_averaged_over_ties(seed: int) -> None:
    rng = np.random.default_rng(seed)
    distances = rng.integers(0, 3, 6).astype(float).tolist()
    relevant = (rng.random(6) < 0.4).tolist()
    counts = levels(np.array(distances), np.array(relevant))
    for k in (1, 2, 3, 5, 10):
        assert hit_at(counts, k) == pytest.approx(slow(distances, relevant, k))


def test_scores_are_those_of_the_live_measures() -> None:
    rng = np.random.default_rng(0)
    distances, relevant = rng.integers(0, 9, 40).astype(float), rng.random(40) < 0.2
    ap, one, five, ten = score(levels(distances, relevant))
    assert ap == average_precision(distances, relevant)
    assert one == pytest.approx(recall_at_1(distances, relevant))
    assert one <= five <= ten <= 1.0


def test_nothing_relevant_is_no_hit_and_more_places_than_items_find_everything() -> None:
    nothing = levels(np.arange(4.0), np.zeros(4, bool))
    assert hit_at(nothing, 1) == 0.0
    last = levels(np.arange(4.0), np.arange(4) == 3)
    assert [hit_at(last, k) for k in (1, 3, 4, 10)] == [0.0, 0.0, 1.0, 1.0]
