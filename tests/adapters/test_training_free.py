"""Training-free TCR: the gap it promises, its floor, its queue."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from toy_pass import ToyPass

from adapters.online.objectives import refined
from adapters.online.source_pairs import SourceQueue
from adapters.online.training_free import NO_GAP, TrainingFree, respread
from core.artifacts import tensors_hash
from core.config import AdaptConfig
from core.errors import ArtifactError, ConfigError
from core.references import SourceConstants

CONSTANTS = SourceConstants(0.2, 1.5, temperature=0.1, learning_rate=1e-3, batch=32)


def unit(seed: int, rows: int, width: int = 8) -> Tensor:
    drawn = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    return normalize(drawn + 0.4, dim=1)


GALLERY = unit(99, 60)


def near(q: Tensor) -> Tensor:
    found: Tensor = GALLERY[(q @ GALLERY.T).topk(4, dim=1).indices]
    return found


def batch(q: Tensor, real: int | None = None) -> ToyPass:
    mask = torch.arange(len(q)) < (len(q) if real is None else real)
    return ToyPass(mask, q, lambda params: q, near)


def method(floor: int = 16, known: SourceConstants = CONSTANTS, **values: Any) -> TrainingFree:
    return TrainingFree(known, AdaptConfig.model_validate(values), floor)


def state(adapter: TrainingFree) -> str:
    return tensors_hash(*adapter.snapshot())


def plain(q: Tensor, gp: Tensor, delta_s: float) -> np.ndarray:
    """The formula in float64 loops, normalised."""
    rows, items = q.double().tolist(), gp.double().tolist()
    width = range(len(rows[0]))
    centre = [sum(row[d] for row in rows) / len(rows) for d in width]
    item_centre = [sum(row[d] for row in items) / len(items) for d in width]
    delta_t = math.dist(centre, item_centre)
    out = []
    for row in rows:
        spread = [2 * (row[d] - centre[d]) + centre[d] for d in width]
        moved = [spread[d] + (1 - delta_s / delta_t) * (item_centre[d] - centre[d]) for d in width]
        length = math.hypot(*moved)
        out.append([value / length for value in moved])
    return np.array(out)


@pytest.mark.parametrize("delta_s", [0.0, 0.2, 0.9])
@pytest.mark.parametrize("stretch", [1.0, 2.0, 10.0])
def test_before_normalisation_the_gap_is_the_sources(delta_s: float, stretch: float) -> None:
    q = unit(1, 24).double()
    gp, mask = near(q.float())[:, 0].double(), torch.arange(24) < 20
    out = respread(q, gp, mask, delta_s, stretch)
    after = float((out[mask].mean(0) - gp[mask].mean(0)).norm())
    assert after == pytest.approx(delta_s, abs=1e-12)
    centre = q[mask].mean(0)
    spread = (out - out[mask].mean(0)) - stretch * (q - centre)
    assert float(spread.abs().max()) < 1e-12


def test_transformed_features_are_the_formula() -> None:
    q = unit(1, 32)
    view = batch(q)
    got = method().transform(q, view)
    np.testing.assert_allclose(got.numpy(), plain(q, near(q)[:, 0], 0.2), atol=1e-6)
    assert float((got - q).abs().max()) > 0.05


def test_without_a_gap_nothing_is_moved() -> None:
    q = unit(2, 20)
    mask = torch.ones(20, dtype=torch.bool)
    only = respread(q, q.clone(), mask, 0.2)
    torch.testing.assert_close(only, 2 * (q - q.mean(0)) + q.mean(0))
    assert torch.equal(only, respread(q, q + 0.3 * NO_GAP / math.sqrt(8), mask, 0.2))
    assert torch.equal(only, respread(q, near(q)[:, 0], mask, None))
    same = unit(3, 1).expand(20, 8).clone()
    assert torch.isfinite(method().transform(same, batch(same))).all()


@pytest.mark.parametrize("real", [0, 1, 15])
def test_below_the_floor_nothing_is_touched(real: int) -> None:
    q, adapter = unit(1, 32), method(constants="queue")
    view = batch(q, real)
    assert adapter.transform(q, view) is q
    before = state(adapter)
    step, _ = adapter.update(view)
    assert (step.updated, step.reason) == (False, "too-small") and state(adapter) == before


def test_padding_and_broken_rows_reach_nobody() -> None:
    q, adapter = unit(1, 24), method()
    alone = adapter.transform(q, batch(q))
    padded = torch.cat((q, unit(7, 8)))
    torch.testing.assert_close(adapter.transform(padded, batch(padded, 24))[:24], alone)
    broken = torch.cat((q, torch.full((1, 8), math.nan)))
    torch.testing.assert_close(adapter.transform(broken, batch(broken))[:24], alone)
    step, features = adapter.update(batch(broken))
    assert (step.reason, features) == ("non-finite-features", None)


def test_with_source_constants_there_is_no_state() -> None:
    adapter, q = method(), unit(1, 32)
    before = state(adapter)
    step, features = adapter.update(batch(q))
    assert (step.updated, step.reason, features is q) == (False, "nothing-to-learn", True)
    gp = near(q)[:, 0]
    assert step.diagnostics["gap"] == pytest.approx(float((q.mean(0) - gp.mean(0)).norm()), abs=1e-6)
    assert state(adapter) == before and adapter.version == 0 and adapter.parameters() == {}
    assert not adapter.learns_first


def test_the_queue_holds_the_batch_that_is_answered_and_keeps_it_when_learned() -> None:
    adapter, queue = method(preset="tcr-paper"), SourceQueue()
    for seed in range(12):
        q = unit(seed, 32)
        gp, mask = near(q)[:, 0], torch.ones(32, dtype=torch.bool)
        queue.offer(q, gp, refined(q, gp, 0.02, mask)[1], mask)
        known = queue.constants(32)
        assert known is not None
        before = state(adapter)
        transformed = adapter.transform(q, batch(q))
        assert state(adapter) == before  # answering changes nothing
        np.testing.assert_allclose(transformed.numpy(), plain(q, gp, known[0]), atol=2e-6)
        step, _ = adapter.update(batch(q))
        assert step.updated == (seed < 10) and adapter.version == min(seed + 1, 10)
        tensors, meta = adapter.snapshot()
        fresh = method(preset="tcr-paper")
        fresh.restore(tensors, json.loads(json.dumps(meta)))
        assert state(fresh) == state(adapter)
        assert torch.equal(fresh.transform(q, batch(q)), adapter.transform(q, batch(q)))


def test_an_empty_queue_only_spreads() -> None:
    q = unit(1, 3)
    adapter = method(floor=1, constants="queue")  # three rows offer nothing to a queue
    torch.testing.assert_close(
        adapter.transform(q, batch(q)), normalize(2 * (q - q.mean(0)) + q.mean(0), dim=1)
    )
    step, _ = adapter.update(batch(q))
    assert (step.updated, step.reason) == (False, "no-constants")


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ConfigError, match="finite source constants"):
        method(known=SourceConstants(math.nan, 1.0, 0.1, 1e-3))
    with pytest.raises(ArtifactError, match="training_free"):
        method().restore({}, {"method": "tcr"})
