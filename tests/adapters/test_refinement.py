"""Neighbour refinement against a slow loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from toy_pass import ToyPass

from adapters.online.refinement import Refinement, soft_mean
from core.errors import ArtifactError, ConfigError


def unit(seed: int, rows: int, width: int = 6) -> Tensor:
    return normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=1)


GALLERY = unit(9, 40)


def batch(q: Tensor, offered: int = 16, gallery: Tensor = GALLERY) -> ToyPass:
    def near(rows: Tensor) -> Tensor:
        best = (rows @ gallery.T).topk(min(offered, len(gallery)), dim=1).indices
        return torch.cat((gallery[best], torch.zeros(len(rows), offered - best.shape[1], 6)), dim=1)

    return ToyPass(torch.ones(len(q), dtype=torch.bool), q, lambda params: q, near)


def slow(q: Tensor, gallery: Tensor, strength: float, tau: float, k: int) -> np.ndarray:
    out = []
    for row in q.double().tolist():
        scored = sorted(
            (
                (sum(a * b for a, b in zip(row, item, strict=True)), item)
                for item in gallery.double().tolist()
            ),
            reverse=True,
        )[:k]
        weights = [math.exp((s - scored[0][0]) / tau) for s, _ in scored]
        mean = [
            sum(w * item[d] for w, (_, item) in zip(weights, scored, strict=True)) / sum(weights)
            for d in range(len(row))
        ]
        moved = [a + strength * b for a, b in zip(row, mean, strict=True)]
        out.append([value / math.hypot(*moved) for value in moved])
    return np.array(out)


@pytest.mark.parametrize(("strength", "tau", "k"), [(0.3, 0.05, 10), (1.0, 0.5, 3), (0.0, 0.05, 1)])
def test_transformed_features_match_a_slow_loop(strength: float, tau: float, k: int) -> None:
    q = unit(1, 7)
    got = Refinement(strength, tau, k).transform(q, batch(q))
    np.testing.assert_allclose(got.numpy(), slow(q, GALLERY, strength, tau, k), atol=1e-6)


def test_places_of_a_small_gallery_get_no_weight() -> None:
    q, few = unit(1, 5), GALLERY[:3]
    got = Refinement().transform(q, batch(q, gallery=few))
    np.testing.assert_allclose(got.numpy(), slow(q, few, 0.3, 0.05, 10), atol=1e-6)
    assert torch.equal(soft_mean(q, torch.zeros(5, 4, 6), 0.05), torch.zeros(5, 6))


def test_rows_do_not_touch_each_other_and_duplicates_count_twice() -> None:
    q = unit(1, 6)
    q[2] = math.nan
    got = Refinement().transform(q, batch(q))
    np.testing.assert_allclose(got[[0, 1, 3]].numpy(), slow(q[[0, 1, 3]], GALLERY, 0.3, 0.05, 10), atol=1e-6)
    empty = unit(1, 6)[:0]
    assert Refinement().transform(empty, batch(empty)).shape == (0, 6)
    twice = torch.stack((GALLERY[0], GALLERY[0], GALLERY[1]))[None]
    weights = [2 * math.exp(float(GALLERY[0] @ GALLERY[0]) / 1.0), math.exp(float(GALLERY[0] @ GALLERY[1]))]
    expected = (weights[0] * GALLERY[0] + weights[1] * GALLERY[1]) / sum(weights)
    torch.testing.assert_close(soft_mean(GALLERY[:1], twice, 1.0)[0], expected)


def test_it_has_no_state() -> None:
    adapter, q = Refinement(), unit(1, 20)
    step, features = adapter.update(batch(q))
    assert (step.updated, step.reason, features) == (False, "nothing-to-learn", None)
    assert adapter.snapshot() == ({}, {"method": "refinement"}) and adapter.parameters() == {}
    assert adapter.version == 0 and not adapter.learns_first
    adapter.restore(*adapter.snapshot())
    with pytest.raises(ArtifactError, match="refinement"):
        adapter.restore({}, {"method": "tcr"})


@pytest.mark.parametrize("values", [(-0.1, 0.05, 10), (math.nan, 0.05, 10), (0.3, 0.0, 10), (0.3, 0.05, 0)])
def test_settings_out_of_range_are_refused(values: tuple[float, float, int]) -> None:
    with pytest.raises(ConfigError, match="strength"):
        Refinement(*values)
