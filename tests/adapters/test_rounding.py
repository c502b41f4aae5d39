"""The last digits of a sum decide nothing: hashes and clusters of inputs that differ by 1e-12 are the same.

Another processor, or another kernel of the linear algebra library, adds in another order. `make rounding`
runs these under several.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from adapters.offline import density, graph_hash, spectral
from adapters.online.alignment import CleanSide, ContentAlignment
from core.config import AlignSettings, ClusterConfig
from core.references import Calibration
from encoders.head import itq

pytestmark = pytest.mark.rounding
HASHES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "itq": lambda x: x @ itq(x, x.mean(0), 16).T >= 0,
    "spectral": lambda x: spectral.fit(x, 16, 0).relaxed(x) >= 0,
    "density": lambda x: density.fit(x, 8, 0).relaxed(x) >= 0,
    "graph": lambda x: graph_hash.fit(x, 16, 0).relaxed(x) >= 0,
}


def rows(seed: int, rank: int) -> np.ndarray:
    """[160, 24] of a rank, unit."""
    draw = np.random.default_rng(seed)
    found = draw.normal(size=(160, rank)) @ draw.normal(size=(rank, 24))
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def hamming(bits: np.ndarray) -> np.ndarray:
    return (bits[:, None] != bits[None]).sum(2)


@pytest.mark.parametrize("rank", [24, 17])
@pytest.mark.parametrize("name", HASHES)
def test_hashes(name: str, rank: int) -> None:
    """Distances between codes, for a direction has no sign of its own."""
    for seed in range(3):
        x = rows(seed, rank)
        moved = x + 1e-12 * np.random.default_rng(seed).normal(size=x.shape)
        one, other = (hamming(HASHES[name](given)) for given in (x, moved))
        assert np.array_equal(one, other)


def test_clusters_and_alignment() -> None:
    draw = np.random.default_rng(0)
    mean, sd = draw.normal(size=(200, 12)), draw.uniform(0.5, 2.0, size=(200, 12))
    config = AlignSettings(clusters=ClusterConfig(layers=(0, 1)))
    states: list[dict[str, Any]] = []
    for noise in (0.0, 1e-12):
        moved = [part + noise * draw.normal(size=part.shape) for part in (rows(5, 24)[:200], mean, sd)]
        features = np.concatenate((moved[0], moved[0][:40])).astype(np.float32)
        given = Calibration(features, moved[1].astype(np.float32), moved[2].astype(np.float32), (8, 4))
        lane = ContentAlignment(CleanSide(given, config), config, 32)
        inputs = np.random.default_rng(1)
        for _ in range(4):
            early = [
                torch.from_numpy(5 + 3 * inputs.normal(size=(32, width, 6, 6))).float() for width in (8, 4)
            ]
            queries = torch.from_numpy(inputs.normal(size=(32, 24))).float()
            done = lane.begin(
                torch.nn.functional.normalize(queries, dim=1), torch.ones(32, dtype=torch.bool), early
            )
            for layer, entering in enumerate(early):
                done(layer, entering)
            assert lane.commit(done)
        states.append(lane.snapshot()[0])
        assert lane.styles() > 1
    assert states[0].keys() == states[1].keys()
    for name, array in states[0].items():
        np.testing.assert_allclose(array, states[1][name], rtol=1e-4, atol=1e-5)
