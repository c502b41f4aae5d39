"""NEO and FOA's activation shifting against plain loops in float64."""

import json
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from toy_pass import ToyPass

from adapters.online.centring import Centring
from adapters.online.foa_shift import FoaShift
from adapters.online.mean_shift import MeanShift
from adapters.online.neo import Neo
from core.artifacts import tensors_hash
from core.errors import ArtifactError, ConfigError

WIDTH = 6
SHIFT = torch.tensor([0.6, -0.4, 0.3, 0.0, 0.2, -0.5])


def queries(rows: int, seed: int) -> Tensor:
    drawn = torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed))
    return normalize(normalize(drawn, dim=1) + SHIFT, dim=1)


SOURCE = queries(200, 99).mean(0) - 0.5 * SHIFT
MAKERS: list[Callable[[], MeanShift]] = [Neo, lambda: FoaShift(SOURCE)]


def view(features: Tensor, mask: Tensor | None = None) -> ToyPass:
    real = torch.ones(len(features), dtype=torch.bool) if mask is None else mask
    return ToyPass(real, features, lambda params: features)


def moved(rows: Sequence[Sequence[float]], offset: Sequence[float]) -> list[list[float]]:
    out = []
    for row in rows:
        sums = [a + b for a, b in zip(row, offset, strict=True)]
        length = math.sqrt(math.fsum(value * value for value in sums))
        out.append([value / length for value in sums])
    return out


def flat(rows: Sequence[Sequence[float]]) -> list[float]:
    return [value for row in rows for value in row]


def mean(rows: Sequence[Sequence[float]]) -> list[float]:
    return [math.fsum(row[d] for row in rows) / len(rows) for d in range(WIDTH)]


def test_neo_subtracts_the_mean_of_all_queries_so_far() -> None:
    method, every = Neo(), list[list[float]]()
    for seed, rows in enumerate((64, 20, 33, 64)):
        q = queries(rows, seed)
        every += q.double().tolist()
        expected = moved(q.double().tolist(), [-value for value in mean(every)])
        assert flat(method.transform(q, view(q)).tolist()) == pytest.approx(flat(expected), abs=1e-5)
        step, features = method.update(view(q))
        assert step.updated and features is not None and torch.equal(features, q)
        assert method.snapshot()[0]["mean"].tolist() == pytest.approx(mean(every), abs=1e-6)
        assert step.diagnostics["mean_length"] == pytest.approx(math.hypot(*mean(every)), abs=1e-6)
    assert method.version == 4 and method.snapshot()[1]["seen"] == len(every)


def test_foa_shifts_by_what_earlier_batches_have_left() -> None:
    method, source = FoaShift(SOURCE), SOURCE.double().tolist()
    running: list[float] | None = None
    for seed, rows in enumerate((64, 20, 33, 64)):
        q = queries(rows, seed)
        transformed = method.transform(q, view(q))
        if running is None:
            assert transformed is q  # nothing is known yet
        else:
            offset = [a - b for a, b in zip(source, running, strict=True)]
            expected = moved(q.double().tolist(), offset)
            assert flat(transformed.tolist()) == pytest.approx(flat(expected), abs=1e-5)
        step, _ = method.update(view(q))
        now, kept = mean(q.double().tolist()), 0.9 ** (rows / 64)
        running = (
            now if running is None else [kept * a + (1 - kept) * b for a, b in zip(running, now, strict=True)]
        )
        gap = math.dist(running, source)
        assert step.diagnostics["source_distance"] == pytest.approx(gap, abs=1e-6) and gap > 0.1
    assert method.snapshot()[0]["mean"].tolist() == pytest.approx(running, abs=1e-6)


def test_neo_is_no_centring() -> None:
    """With a clean mean that is not 0 they move to different places."""
    q = queries(64, 1)
    neo, centring = Neo(), Centring(SOURCE)
    for method in (neo, centring):
        method.update(view(q))
    apart = neo.transform(q, view(q)) - centring.transform(q, view(q))
    assert float(apart.norm(dim=1).min()) > 0.1
    centred = q - q.mean(0)
    torch.testing.assert_close(Neo().transform(q, view(q)), normalize(centred, dim=1))


@pytest.mark.parametrize("make", MAKERS)
def test_below_the_floor_what_is_known_is_used(make: Callable[[], MeanShift]) -> None:
    method, few = make(), queries(5, 3)
    assert torch.equal(method.transform(few, view(few)), few)  # nothing is known
    assert method.update(view(few))[0].reason == "too-small"
    q = queries(64, 1)
    method.update(view(q))
    offset = SOURCE - q.mean(0) if isinstance(method, FoaShift) else -q.mean(0)
    torch.testing.assert_close(method.transform(few, view(few)), normalize(few + offset, dim=1))


@pytest.mark.parametrize("make", MAKERS)
def test_broken_and_padding_rows_stay_out_of_the_mean(make: Callable[[], MeanShift]) -> None:
    method, plain = make(), make()
    q = queries(40, 1)
    padded = torch.cat((q, 100 * torch.ones(8, WIDTH)))
    mask = torch.arange(48) < 40
    plain.update(view(q))
    method.update(view(padded, mask))
    torch.testing.assert_close(method.transform(padded, view(padded, mask))[:40], plain.transform(q, view(q)))
    broken = padded.clone()
    broken[3] = torch.nan
    kept = torch.arange(48) != 3
    others = method.transform(broken, view(broken, mask))[kept & mask]
    held = view(broken[kept], mask[kept])
    torch.testing.assert_close(others, method.transform(broken[kept], held)[mask[kept]])
    before = tensors_hash(*method.snapshot())
    assert method.update(view(broken, mask))[0].reason == "non-finite-features"
    assert tensors_hash(*method.snapshot()) == before


def test_a_row_that_is_the_mean_stays_as_it_is() -> None:
    q = queries(1, 1).expand(32, WIDTH).clone()
    assert torch.equal(Neo().transform(q, view(q)), q)


@pytest.mark.parametrize("make", MAKERS)
def test_a_restored_one_continues(make: Callable[[], MeanShift]) -> None:
    method, other = make(), make()
    other.update(view(queries(64, 50)))
    for learned in range(3):
        tensors, meta = method.snapshot()
        other.restore(tensors, json.loads(json.dumps(meta)))
        q = queries(64, learned)
        for each in (method, other):
            each.update(view(q))
        assert tensors_hash(*method.snapshot()) == tensors_hash(*other.snapshot())
        assert torch.equal(method.transform(q, view(q)), other.transform(q, view(q)))
    with pytest.raises(ArtifactError, match="method"):
        method.restore({}, {"method": "centring", "version": 1, "seen": 0})


def test_a_mean_that_is_no_vector_is_refused() -> None:
    with pytest.raises(ConfigError, match="mean"):
        FoaShift(torch.zeros(3, WIDTH))
