"""Centring and residual centring against plain loops, on a toy gallery."""

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from toy_pass import ToyPass

from adapters.online.centring import Centring, ResidualCentring
from adapters.online.frozen import Frozen
from core.artifacts import tensors_hash
from core.errors import ArtifactError, ConfigError
from core.protocols import Adapter

WIDTH, NEAR = 8, 6
SHIFT = torch.tensor([0.6, -0.4, 0.3, 0.0, 0.0, 0.2, -0.5, 0.1])


def draw(rows: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(rows, WIDTH, generator=generator), dim=1)


GALLERY = draw(200, 100)


def near(q: Tensor) -> Tensor:
    return GALLERY[(q @ GALLERY.T).topk(NEAR, dim=1).indices]


def clean(rows: int, seed: int) -> Tensor:
    """Clean queries: gallery items with a little noise."""
    picked = torch.randint(len(GALLERY), (rows,), generator=torch.Generator().manual_seed(seed))
    return normalize(GALLERY[picked] + 0.1 * draw(rows, seed + 1000), dim=1)


def view(features: Tensor, mask: Tensor | None = None) -> ToyPass:
    real = torch.ones(len(features), dtype=torch.bool) if mask is None else mask
    return ToyPass(real, features, lambda params: features, near)


def shifted(rows: int, seed: int) -> Tensor:
    return normalize(clean(rows, seed) + SHIFT, dim=1)


REFERENCE = clean(300, 7)
MAKERS: list[Callable[[], Adapter]] = [
    lambda: Centring(REFERENCE.mean(0)),
    lambda: ResidualCentring(REFERENCE),
    Frozen,
]


def state(adapter: Adapter) -> str:
    return tensors_hash(*adapter.snapshot())


def test_centring_matches_a_loop() -> None:
    adapter = Centring(REFERENCE.mean(0))
    clean_mean = REFERENCE.double().mean(0).tolist()
    total, sums = 64.0, [64.0 * x for x in clean_mean]
    for seed, rows in enumerate((64, 20, 64, 33)):
        q = shifted(rows, seed)
        decay = 0.9 ** (rows / 64)
        total = decay * total + rows
        for d in range(WIDTH):
            sums[d] = decay * sums[d] + sum(q[i, d].item() for i in range(rows))
        transformed = adapter.transform(q, view(q))
        for i in range(rows):
            moved = [q[i, d].item() - sums[d] / total + clean_mean[d] for d in range(WIDTH)]
            length = math.hypot(*moved)
            assert transformed[i].tolist() == pytest.approx([x / length for x in moved], abs=1e-5)
        step, features = adapter.update(view(q))
        assert step.updated and features is not None and torch.equal(features, q)
        assert adapter.snapshot()[0]["mean"].tolist() == pytest.approx([s / total for s in sums], abs=1e-5)
    assert adapter.version == 4


def slow_residual(q: list[float]) -> list[float]:
    """q minus the softmax mean of its five nearest gallery items."""
    items = GALLERY.double().tolist()
    cosine = [sum(a * b for a, b in zip(q, item, strict=True)) for item in items]
    best = sorted(range(len(items)), key=lambda j: -cosine[j])[:5]
    weights = [math.exp((cosine[j] - cosine[best[0]]) / 0.05) for j in best]
    soft = [
        sum(w * items[j][d] for w, j in zip(weights, best, strict=True)) / sum(weights) for d in range(WIDTH)
    ]
    return [a - b for a, b in zip(q, soft, strict=True)]


def test_residual_centring_matches_a_loop() -> None:
    adapter = ResidualCentring(REFERENCE)
    found = np.array([slow_residual(row) for row in REFERENCE.double().tolist()]).mean(0)
    mean, total = found.copy(), 64.0
    for seed in range(3):
        q = shifted(24, seed)
        rows = q.double().numpy()
        decay = 0.9 ** (24 / 64)
        now = mean
        for _ in range(2):
            moved = rows - (now - found)
            moved /= np.linalg.norm(moved, axis=1, keepdims=True)
            # residual of the raw query, neighbours of the corrected one
            soft = moved - np.array([slow_residual(row) for row in moved.tolist()])
            now = (decay * total * mean + (rows - soft).sum(0)) / (decay * total + 24)
        expected = rows - (now - found)
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        transformed = adapter.transform(q, view(q))
        np.testing.assert_allclose(transformed.numpy(), expected, atol=2e-5)
        adapter.update(view(q))
        mean, total = now, decay * total + 24
        np.testing.assert_allclose(adapter.snapshot()[0]["mean"], mean, atol=2e-5)


def hits(features: Tensor, truth: Tensor) -> float:
    return float(((features @ GALLERY.T).argmax(1) == (truth @ GALLERY.T).argmax(1)).float().mean())


@pytest.mark.parametrize("maker", MAKERS[:2])
def test_a_common_shift_is_removed(maker: Callable[[], Adapter]) -> None:
    adapter, before, after = maker(), 0.0, 0.0
    for seed in range(12):
        truth, q = clean(64, seed), shifted(64, seed)
        before, after = hits(q, truth), hits(adapter.transform(q, view(q)), truth)
        adapter.update(view(q))
    assert after > before + 0.2


def test_a_class_mix_is_not_a_shift_for_residual_centring() -> None:
    """Clean queries of one corner of the gallery only: plain centring loses, residual centring does not."""
    corner = GALLERY[(GALLERY @ normalize(SHIFT, dim=0)).topk(25).indices]
    plain, residual = Centring(REFERENCE.mean(0)), ResidualCentring(REFERENCE)
    lost_plain = lost_residual = 0.0
    for seed in range(10):
        picked = torch.randint(25, (64,), generator=torch.Generator().manual_seed(seed))
        q = normalize(corner[picked] + 0.1 * draw(64, seed + 500), dim=1)
        lost_plain = 1 - hits(plain.transform(q, view(q)), q)
        lost_residual = 1 - hits(residual.transform(q, view(q)), q)
        plain.update(view(q))
        residual.update(view(q))
    assert lost_plain > 0.2 and lost_residual < 0.1


@pytest.mark.parametrize("maker", MAKERS)
def test_answering_changes_nothing(maker: Callable[[], Adapter]) -> None:
    adapter = maker()
    q = shifted(32, 1)
    for _ in range(2):
        before = state(adapter)
        once, twice = adapter.transform(q, view(q)), adapter.transform(q, view(q))
        assert torch.equal(once, twice) and state(adapter) == before
        adapter.update(view(q))


def test_frozen_changes_nothing() -> None:
    source = {"norm.weight": torch.ones(3)}
    adapter, q = Frozen(source), shifted(32, 1)
    before = state(adapter)
    step, features = adapter.update(view(q))
    assert not step.updated and features is None and state(adapter) == before and adapter.version == 0
    assert adapter.transform(q, view(q)) is q and torch.equal(
        adapter.parameters()["norm.weight"], torch.ones(3)
    )
    assert Frozen().parameters() == {}


@pytest.mark.parametrize("maker", MAKERS[:2])
@pytest.mark.parametrize("rows", [0, 1, 3, 15])
def test_below_the_floor_only_answers(maker: Callable[[], Adapter], rows: int) -> None:
    adapter = maker()
    adapter.update(view(shifted(64, 3)))
    before = state(adapter)
    q, mask = shifted(16, 4), torch.arange(16) < rows
    transformed = adapter.transform(q, view(q, mask))
    step, _ = adapter.update(view(q, mask))
    assert (step.updated, step.reason) == (False, "too-small") and state(adapter) == before
    assert torch.isfinite(transformed).all() and not torch.equal(
        transformed, q
    )  # what is known already is used


@pytest.mark.parametrize("maker", MAKERS[:2])
def test_nan_stays_with_its_row_and_is_not_learned(maker: Callable[[], Adapter]) -> None:
    adapter = maker()
    adapter.update(view(shifted(64, 3)))
    before, q = state(adapter), shifted(32, 4)
    q[5, 2] = math.nan
    transformed = adapter.transform(q, view(q))
    assert torch.isfinite(transformed[[i for i in range(32) if i != 5]]).all()
    step, _ = adapter.update(view(q))
    assert (step.updated, step.reason) == (False, "non-finite-features") and state(adapter) == before


@pytest.mark.parametrize("maker", MAKERS[:2])
def test_padding_and_order_do_not_matter(maker: Callable[[], Adapter]) -> None:
    plain, padded, permuted = maker(), maker(), maker()
    q = shifted(24, 5)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    more = torch.cat((q, torch.full((8, WIDTH), 0.3)))
    mask = torch.arange(32) < 24
    expected = plain.transform(q, view(q))
    torch.testing.assert_close(padded.transform(more, view(more, mask))[:24], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        permuted.transform(q[order], view(q[order])), expected[order], atol=1e-6, rtol=0
    )
    plain.update(view(q))
    padded.update(view(more, mask))
    permuted.update(view(q[order]))
    for other in (padded, permuted):
        np.testing.assert_allclose(other.snapshot()[0]["mean"], plain.snapshot()[0]["mean"], atol=1e-6)


@pytest.mark.parametrize("maker", MAKERS[:2])
@pytest.mark.parametrize("learned", [0, 3])
def test_a_restored_lane_continues_byte_identically(maker: Callable[[], Adapter], learned: int) -> None:
    adapter = maker()
    for seed in range(learned):
        adapter.update(view(shifted(32, seed)))
    tensors, meta = adapter.snapshot()
    other = maker()
    other.update(view(shifted(32, 77)))  # restoring must undo this
    other.restore(tensors, json.loads(json.dumps(meta)))
    for seed in range(10, 13):
        q = shifted(20, seed)
        assert torch.equal(adapter.transform(q, view(q)), other.transform(q, view(q)))
        adapter.update(view(q))
        other.update(view(q))
        assert state(adapter) == state(other)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match="pass the features"):
        ResidualCentring(REFERENCE.mean(0))
    with pytest.raises(ConfigError, match="mean"):
        Centring(REFERENCE)
    with pytest.raises(ArtifactError, match="residual_centring"):
        Centring(REFERENCE.mean(0)).restore(*ResidualCentring(REFERENCE).snapshot())
