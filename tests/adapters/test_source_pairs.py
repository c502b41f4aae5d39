"""The queue of source-like pairs against a list that is sorted in plain Python."""

import copy
import json
import math

import pytest
import torch
from torch import Tensor

from adapters.online.source_pairs import SourceQueue, entropy_scale, source_constants
from core.references import SourceConstants


def drawn(rows: int, seed: int, padding: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q = torch.nn.functional.normalize(torch.randn(rows, 6, generator=generator), dim=1)
    gp = torch.nn.functional.normalize(q + 0.5 * torch.randn(rows, 6, generator=generator), dim=1)
    entropy = torch.rand(rows, generator=generator)
    mask = torch.arange(rows) < rows - padding
    return q, gp, entropy, mask


def indicators(q: Tensor, gp: Tensor) -> list[float]:
    rows, items = q.double().tolist(), gp.double().tolist()
    q_mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    g_mean = [sum(column) / len(items) for column in zip(*items, strict=True)]
    return [
        2 * math.dist(row, item) - math.dist(row, q_mean) - math.dist(item, g_mean)
        for row, item in zip(rows, items, strict=True)
    ]


def test_fill_at_64() -> None:
    queue, sizes = SourceQueue(), []
    assert queue.constants(64) is None
    for seed in range(4):
        queue.offer(*drawn(64, seed))
        sizes.append(len(queue))
    assert sizes == [19, 38, 57, 64]


def test_fill_at_16_is_40_after_ten() -> None:
    queue = SourceQueue()
    for seed in range(12):
        queue.offer(*drawn(16, seed))
    assert len(queue) == 40


def test_keeps_the_smallest_indicators_and_freezes() -> None:
    queue, everything = SourceQueue(), []
    for seed in range(15):
        q, gp, entropy, mask = drawn(64, seed)
        queue.offer(q, gp, entropy, mask)
        if seed < 10:
            scored = list(zip(indicators(q, gp), q.tolist(), gp.tolist(), entropy.tolist(), strict=True))
            everything += sorted(scored)[:19]
    best = sorted(everything)[:64]
    held, meta = queue.snapshot()
    assert meta == {"batches": 10}
    assert held["indicator"].tolist() == pytest.approx([row[0] for row in best], abs=1e-5)
    assert held["query"].tolist() == [row[1] for row in best]
    assert held["item"].tolist() == [row[2] for row in best]

    found = queue.constants(64)
    assert found is not None
    q_mean = [sum(column) / 64 for column in zip(*(row[1] for row in best), strict=True)]
    g_mean = [sum(column) / 64 for column in zip(*(row[2] for row in best), strict=True)]
    assert found[0] == pytest.approx(math.dist(q_mean, g_mean), abs=1e-6)
    assert found[1] == max(row[3] for row in best)  # to the last bit: the row that set it must pass


def test_padding_is_never_taken() -> None:
    q, gp, entropy, _ = drawn(16, 5)
    padded = [torch.cat((part, torch.full_like(part, math.nan))) for part in (q, gp, entropy)]
    one, two = SourceQueue(), SourceQueue()
    one.offer(q, gp, entropy, torch.ones(16, dtype=torch.bool))
    two.offer(padded[0], padded[1], padded[2], torch.arange(32) < 16)
    for a, b in zip(one.snapshot()[0].values(), two.snapshot()[0].values(), strict=True):
        assert a.tobytes() == b.tobytes()


def test_too_few_rows_leave_it_empty() -> None:
    queue = SourceQueue()
    queue.offer(*drawn(3, 0))
    assert len(queue) == 0 and queue.constants(3) is None


def test_ceiling_follows_the_number_of_columns() -> None:
    queue = SourceQueue()
    queue.offer(*drawn(64, 1))
    at_64, at_16 = queue.constants(64), queue.constants(16)
    assert at_64 is not None and at_16 is not None
    assert at_16[1] == pytest.approx(at_64[1] * math.log(16) / math.log(64))
    assert entropy_scale(1, 64) == 0 and entropy_scale(7, 7) == 1


def test_snapshot_is_exact_and_json() -> None:
    queue = SourceQueue()
    for seed in range(3):
        queue.offer(*drawn(32, seed))
    tensors, meta = queue.snapshot()
    other = SourceQueue()
    other.restore(tensors, json.loads(json.dumps(meta)), torch.device("cpu"))
    for adapter in (queue, other):
        adapter.offer(*drawn(32, 9))
    for name, array in queue.snapshot()[0].items():
        assert other.snapshot()[0][name].tobytes() == array.tobytes()
    assert other.constants(20) == queue.constants(20)


def test_source_constants_from_the_base_model_or_the_queue() -> None:
    known, queue = SourceConstants(0.2, 1.5, 0.1, 1e-3, batch=32), SourceQueue()
    assert source_constants("source", known, queue, 32) == (0.2, 1.5)
    at_16 = source_constants("source", known, queue, 16)
    assert at_16 == pytest.approx((0.2, 1.5 * math.log(16) / math.log(32)))
    assert source_constants("queue", known, queue, 32) is None
    queue.offer(*drawn(32, 1))
    assert source_constants("queue", known, queue, 32) == queue.constants(32)


def test_a_shallow_copy_keeps_its_content_and_a_frozen_queue_takes_nothing() -> None:
    queue = SourceQueue(update_batches=2)
    queue.offer(*drawn(32, 1))
    kept = copy.copy(queue)
    before = {name: array.copy() for name, array in kept.snapshot()[0].items()}
    queue.offer(*drawn(32, 2))
    assert queue.frozen and not kept.frozen and len(queue) > len(kept)
    for name, array in kept.snapshot()[0].items():
        assert array.tobytes() == before[name].tobytes()
    size = len(queue)
    queue.offer(*drawn(32, 3))
    assert len(queue) == size and queue.snapshot()[1] == {"batches": 2}
