"""What `core.protocols.Aligner` promises, of every alignment: under a real tower with BatchNorm."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_towers import pictures, towers

from adapters.online.alignment import CleanSide, ContentAlignment
from core.artifacts import tensors_hash
from core.config import AlignSettings
from core.hooks import Watch
from core.protocols import Aligner
from encoders.norms import calibrate

BATCH = 16
TOWER = towers()[0]
CLEAN = [TOWER.prepare(picture) for picture in pictures(96)]
CALIBRATION = calibrate(TOWER, [TOWER.collate(CLEAN[top : top + 32], 32) for top in (0, 32, 64)])
CLUSTERS = {"layers": (0,), "founding": 2, "quantile": 0.5}


def content(**changes: Any) -> Callable[[], Aligner]:
    config = AlignSettings.model_validate(changes)
    return lambda: ContentAlignment(CleanSide(CALIBRATION, config), config, BATCH)


BATTERY: dict[str, Callable[[], Aligner]] = {
    "ContentAlignment plain": content(matched=False, clusters={"enabled": False}),
    "ContentAlignment matched": content(clusters={"enabled": False}),
    "ContentAlignment by style": content(clusters=CLUSTERS),
}


@pytest.fixture(params=BATTERY)
def make(request: pytest.FixtureRequest) -> Callable[[], Aligner]:
    assert type(BATTERY[request.param]()).__name__ == request.param.split()[0]
    return BATTERY[request.param]


def inputs(seed: int, rows: int = BATCH, padded: int = BATCH) -> Tensor:
    """Pictures of which every other one is darker, and rows of padding."""
    taken = [picture // (1 + row % 2) for row, picture in enumerate(pictures(rows, 100 + seed))]
    return TOWER.collate([TOWER.prepare(picture) for picture in taken], padded)


def begun(aligner: Aligner, seen: Tensor, rows: int = BATCH) -> Any:
    watch = Watch(aligner.early)
    source = TOWER.encode(seen, None, watch)
    return aligner.begin(source, torch.arange(len(seen)) < rows, watch.inputs())


def learned(make: Callable[[], Aligner], batches: int = 3) -> Aligner:
    aligner = make()
    for seed in range(batches):
        hook = begun(aligner, inputs(seed))
        TOWER.encode(inputs(seed), None, hook)
        assert aligner.commit(hook)
    return aligner


def state(aligner: Aligner) -> str:
    return tensors_hash(*aligner.snapshot())


def test_it_asks_for_layers_that_there_are(make: Callable[[], Aligner]) -> None:
    assert set(make().early) <= set(range(len(TOWER.hook_points().widths)))
    assert make().styles() == 1 and state(make()) == state(make())


def test_beginning_changes_nothing_and_moves_by_a_positive_scale(make: Callable[[], Aligner]) -> None:
    aligner = learned(make)
    before, hook = state(aligner), begun(aligner, inputs(7))
    entered = torch.randn(BATCH, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    scale, shift = hook(0, entered)
    assert scale.shape == shift.shape and scale.shape in ((4,), (BATCH, 4))
    assert bool((scale > 0).all()) and bool(torch.isfinite(shift).all())
    again = hook(0, entered + 1)
    assert torch.equal(again[0], scale) and torch.equal(again[1], shift), "the first forward measures"
    assert state(aligner) == before


def test_aligned_features_move_and_stay_unit(make: Callable[[], Aligner]) -> None:
    aligner, seen = learned(make), inputs(7)
    plain, aligned = TOWER.encode(seen), TOWER.encode(seen, None, begun(aligner, seen))
    torch.testing.assert_close(aligned.norm(dim=1), torch.ones(BATCH))
    assert not torch.allclose(plain, aligned, atol=1e-3)
    assert torch.equal(TOWER.encode(seen), plain)


def test_a_second_pass_starts_from_the_first_ones_features(make: Callable[[], Aligner]) -> None:
    aligner, seen = learned(make), inputs(7)
    before, hook, mask = state(aligner), begun(aligner, seen), torch.ones(BATCH, dtype=torch.bool)
    first = TOWER.encode(seen, None, hook)
    anew = aligner.again(hook, first, mask)
    assert anew is not hook and bool(torch.isfinite(TOWER.encode(seen, None, anew)).all())
    assert state(aligner) == before
    assert aligner.commit(anew) and state(aligner) != before


def test_a_batch_is_remembered_once_it_is_committed(make: Callable[[], Aligner]) -> None:
    aligner = make()
    for seed in range(4):
        before, hook = state(aligner), begun(aligner, inputs(seed))
        TOWER.encode(inputs(seed), None, hook)
        assert state(aligner) == before
        assert aligner.commit(hook) and state(aligner) != before and aligner.styles() >= 1


def test_statistics_that_are_no_numbers_are_not_remembered(make: Callable[[], Aligner]) -> None:
    aligner = learned(make)
    before, styles, hook = state(aligner), aligner.styles(), begun(aligner, inputs(7))
    TOWER.encode(torch.full_like(inputs(7), torch.inf), None, hook)
    assert not aligner.commit(hook)
    assert state(aligner) == before and aligner.styles() == styles


@pytest.mark.parametrize("rows", [1, 5])
def test_padding_is_harmless(make: Callable[[], Aligner], rows: int) -> None:
    plain, padded = learned(make), learned(make)
    found = []
    for aligner, wide in ((plain, rows), (padded, BATCH)):
        seen = inputs(7, rows, wide)
        hook = begun(aligner, seen, rows)
        found.append(TOWER.encode(seen, None, hook)[:rows])
        assert aligner.commit(hook)
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=0)
    one, other = plain.snapshot()[0], padded.snapshot()[0]
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_allclose(other[name], array, atol=1e-5, err_msg=name)


def test_a_batch_without_a_query_moves_nothing(make: Callable[[], Aligner]) -> None:
    aligner, seen = learned(make), inputs(7)
    hook = begun(aligner, seen, 0)
    assert torch.equal(TOWER.encode(seen, None, hook), TOWER.encode(seen))
    before = state(aligner)
    aligner.commit(hook)
    assert state(aligner) == before


@pytest.mark.parametrize("batches", [0, 1, 4])
def test_a_restored_one_continues_like_the_original(make: Callable[[], Aligner], batches: int) -> None:
    aligner, other = learned(make, batches), learned(make, 2)
    tensors, meta = aligner.snapshot()
    kept = {name: np.array(array) for name, array in tensors.items()}
    for array in kept.values():
        array.flags.writeable = False
    other.restore(kept, json.loads(json.dumps(meta)))
    assert state(other) == state(aligner) and other.styles() == aligner.styles()
    for seed in range(10, 13):
        found = []
        for one in (aligner, other):
            hook = begun(one, inputs(seed))
            found.append(TOWER.encode(inputs(seed), None, hook))
            assert one.commit(hook)
        assert torch.equal(*found) and state(other) == state(aligner)


def test_a_snapshot_is_a_copy(make: Callable[[], Aligner]) -> None:
    aligner = learned(make)
    tensors, meta = aligner.snapshot()
    before = tensors_hash(tensors, meta)
    hook = begun(aligner, inputs(7))
    TOWER.encode(inputs(7), None, hook)
    aligner.commit(hook)
    assert tensors_hash(tensors, meta) == before and state(aligner) != before
    aligner.restore(tensors, meta)
    for array in tensors.values():
        array.fill(1)
    assert state(aligner) == before, "a state lives on in the arrays that it was restored from"
