"""What `core.protocols.Fusion` promises, of every fusion."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_vectors import unit

from core.config import AnswerConfig
from core.protocols import Fusion
from core.references import DriftReference
from core.types import Encoded, Hits, Twin
from encoders.head import HashHead
from index.codes import NO_DISTANCE, NO_KEY
from index.evidence import Evidence
from index.fusion import TwinFusion
from index.gallery import VersionedGallery

WIDTH, BITS, ITEMS, ROWS, SHORTLIST, TOP = 8, 32, 30, 16, 12, 5


RNG = np.random.default_rng(0)
FEATURES = unit(RNG.normal(size=(ITEMS, WIDTH)))
HEAD = HashHead(
    RNG.normal(size=(BITS, WIDTH)).astype(np.float32), np.zeros(BITS, np.float32), {"vector": np.zeros(WIDTH)}
)
CLEAN = unit(FEATURES + 0.1 * RNG.normal(size=(ITEMS, WIDTH)))


def coded(features: np.ndarray) -> np.ndarray:
    return HEAD.codes(torch.from_numpy(features), "vector")


def small(count: int = ITEMS) -> VersionedGallery:
    names = [f"item {number}" for number in range(count)]
    return VersionedGallery(BITS, names, coded(FEATURES[:count]), names, FEATURES[:count], backend="exact")


def twins(**changes: object) -> TwinFusion:
    config = AnswerConfig.model_validate({"shortlist": SHORTLIST, "top": TOP, **changes})
    zeros = np.zeros(ITEMS, np.float32)
    return TwinFusion(config, Evidence(config, {"vector": DriftReference(CLEAN, zeros, zeros)}, HEAD.codes))


BATTERY: dict[str, Callable[[], Fusion]] = {
    "TwinFusion": twins,
    **{f"TwinFusion {mode}": lambda mode=mode: twins(fuse=mode) for mode in ("none", "max", "sum")},
    "TwinFusion by codes": lambda: twins(rerank=False),
    "TwinFusion without evidence": lambda: twins(evidence=None),
}  # fmt: skip


@pytest.fixture(params=BATTERY)
def fusion(request: pytest.FixtureRequest) -> Fusion:
    made_one = BATTERY[request.param]()
    assert type(made_one).__name__ == request.param.split()[0]
    return made_one


def queries(seed: int, shift: float, rows: int = ROWS) -> np.ndarray:
    rng = np.random.default_rng(seed)
    near = FEATURES[rng.integers(ITEMS, size=rows)] + 0.1 * rng.normal(size=(rows, WIDTH))
    return unit(near + shift * np.eye(WIDTH)[0])


def seen(fusion: Fusion, gallery: VersionedGallery, features: np.ndarray) -> Twin:
    encoded = Encoded(features, coded(features))
    hits = gallery.search(encoded.codes, SHORTLIST)
    return fusion.twin(gallery, encoded, hits)


def lists(hits: Hits) -> list[list[int]]:
    """Keys of each row; checks that no item comes twice and that unused places come last."""
    assert hits.keys.dtype == np.int64 and hits.distances.shape == hits.keys.shape
    for row, far in zip(hits.keys.tolist(), hits.distances.tolist()):
        used = [key for key in row if key != NO_KEY]
        assert row == used + [NO_KEY] * (len(row) - len(used)) and len(set(used)) == len(used)
        assert all(d == NO_DISTANCE for key, d in zip(row, far) if key == NO_KEY)
    return hits.keys.tolist()


def test_a_twin_alone_answers_from_its_shortlist(fusion: Fusion) -> None:
    gallery = small()
    twin = seen(fusion, gallery, queries(1, 0.5))
    assert twin.answer.keys.shape == (ROWS, TOP)
    for row, answer in enumerate(lists(twin.answer)):
        assert set(answer) <= set(twin.hits.keys[row].tolist())


def test_a_longer_answer_begins_with_the_usual_one(fusion: Fusion) -> None:
    """Of one twin, and of both: as wide as what each answers alone."""
    gallery, none = small(), np.zeros(ROWS, bool)
    longer = []
    for twin in (seen(fusion, gallery, queries(1, 1.0)), seen(fusion, gallery, queries(2, 0.5))):
        alone = fusion.twin(gallery, twin.encoded, twin.hits, top=SHORTLIST).answer
        assert alone.keys.shape == (ROWS, SHORTLIST)
        assert np.array_equal(alone.keys[:, :TOP], twin.answer.keys)
        longer.append((twin, replace(twin, answer=alone)))
    (frozen, wide_frozen), (adapted, wide_adapted) = longer
    served, weights = fusion.together(gallery, "vector", frozen, adapted, none)
    wide, same = fusion.together(gallery, "vector", wide_frozen, wide_adapted, none)
    assert wide.keys.shape == (ROWS, SHORTLIST) and np.array_equal(weights, same)
    assert np.array_equal(wide.keys[:, :TOP], served.keys)


def test_answers_are_taken_from_what_a_filter_lets_through(fusion: Fusion) -> None:
    gallery, none = small(), np.zeros(ROWS, bool)
    limited, plain = [], []
    for twin in (seen(fusion, gallery, queries(1, 1.0)), seen(fusion, gallery, queries(2, 0.5))):
        among = gallery.search(twin.codes, SHORTLIST, np.arange(0, ITEMS, 3))
        alone = fusion.twin(gallery, twin.encoded, twin.hits, among).answer
        assert {key % 3 for row in lists(alone) for key in row if key >= 0} == {0}
        limited.append(replace(twin, answer=alone, among=among))
        plain.append(twin)
    served, weights = fusion.together(gallery, "vector", limited[0], limited[1], none)
    assert {key % 3 for row in lists(served) for key in row if key >= 0} == {0}
    assert np.array_equal(weights, fusion.together(gallery, "vector", plain[0], plain[1], none)[1])


@pytest.mark.parametrize("shift", [0.0, 1.0, 4.0])
def test_what_is_served_comes_from_either_shortlist(fusion: Fusion, shift: float) -> None:
    gallery = small()
    frozen, adapted = seen(fusion, gallery, queries(1, shift)), seen(fusion, gallery, queries(2, shift / 2))
    served, weights = fusion.together(gallery, "vector", frozen, adapted, np.zeros(ROWS, bool))
    assert served.keys.shape == (ROWS, TOP) and weights.shape == (ROWS,) and weights.dtype == np.float32
    assert bool((weights >= 0).all())
    for row, answer in enumerate(lists(served)):
        either = {*frozen.hits.keys[row].tolist(), *adapted.hits.keys[row].tolist()}
        assert set(answer) <= either
        if weights[row] == 0:
            assert answer == frozen.answer.keys[row].tolist()
    if fusion.quiet(gallery, "vector", frozen, np.zeros(ROWS, bool)):
        assert not weights.any(), "a quiet batch is the frozen twin's"


def test_a_severe_shift_is_never_quiet(fusion: Fusion) -> None:
    gallery, features = small(), unit(CLEAN + 4 * np.eye(WIDTH)[0])
    assert not fusion.quiet(gallery, "vector", seen(fusion, gallery, features), np.zeros(ITEMS, bool))


def test_repaired_rows_are_the_adapted_twins(fusion: Fusion) -> None:
    gallery, mended = small(), np.arange(ROWS) % 3 == 0
    frozen, adapted = seen(fusion, gallery, queries(1, 1.0)), seen(fusion, gallery, queries(2, 0.2))
    served, weights = fusion.together(gallery, "vector", frozen, adapted, mended)
    if not np.isinf(weights).any():
        assert weights.tolist() == [1.0] * ROWS, "without fusion every row is the adapted twin's"
    assert np.array_equal(served.keys[mended], adapted.answer.keys[mended])
    assert np.array_equal(served.distances[mended], adapted.answer.distances[mended])


def test_a_correction_has_the_last_word_on_what_was_not_mended(fusion: Fusion) -> None:
    gallery, mended = small(), np.arange(ROWS) % 4 == 0
    frozen, adapted = seen(fusion, gallery, queries(1, 1.0)), seen(fusion, gallery, queries(2, 0.2))
    asked: list[np.ndarray] = []

    def correct(weights: np.ndarray) -> np.ndarray:
        asked.append(weights.copy())
        return np.where(np.arange(ROWS) % 2 == 0, 0.0, np.inf)

    served, weights = fusion.together(gallery, "vector", frozen, adapted, mended, correct)
    if not asked:
        assert weights.tolist() == [1.0] * ROWS, "without fusion there is nothing to correct"
        return
    for row in range(ROWS):
        own = frozen if row % 2 == 0 and not mended[row] else adapted
        assert served.keys[row].tolist() == own.answer.keys[row].tolist()
        assert weights[row] == (0.0 if own is frozen else np.inf)
    plain = fusion.together(gallery, "vector", frozen, adapted, mended)
    same = fusion.together(gallery, "vector", frozen, adapted, mended, lambda weights: weights)
    assert np.array_equal(plain[0].keys, same[0].keys) and np.array_equal(plain[1], same[1])


def test_of_one_twin_it_is_the_answer(fusion: Fusion) -> None:
    """A quiet batch: the frozen twin stands for both."""
    gallery = small()
    frozen = seen(fusion, gallery, queries(1, 1.0))
    served, weights = fusion.together(gallery, "vector", frozen, frozen, np.zeros(ROWS, bool))
    assert np.array_equal(served.keys, frozen.answer.keys) and not weights.any()


@pytest.mark.parametrize("rows", [0, 1])
def test_no_query_and_one(fusion: Fusion, rows: int) -> None:
    gallery, none = small(), np.zeros(rows, bool)
    frozen = seen(fusion, gallery, queries(1, 1.0, rows))
    adapted = seen(fusion, gallery, queries(2, 1.0, rows))
    served, weights = fusion.together(gallery, "vector", frozen, adapted, none)
    assert served.keys.shape == (rows, TOP) and weights.shape == (rows,)
    assert fusion.quiet(gallery, "vector", frozen, none) in (True, False)


def test_fewer_items_than_places_and_queries_that_are_no_numbers(fusion: Fusion) -> None:
    gallery, features = small(3), queries(1, 1.0)
    features[2] = np.nan
    frozen = seen(fusion, gallery, np.nan_to_num(features))
    code = Encoded(features, frozen.codes)
    adapted = fusion.twin(gallery, code, frozen.hits)
    served, weights = fusion.together(gallery, "vector", frozen, adapted, np.zeros(ROWS, bool))
    for row in lists(served):
        assert set(row) <= {0, 1, 2, NO_KEY} and row.count(NO_KEY) >= TOP - 3
    assert not np.isnan(weights).any()


def test_asking_changes_nothing(fusion: Fusion) -> None:
    gallery, none = small(), np.zeros(ROWS, bool)
    frozen, adapted = seen(fusion, gallery, queries(1, 1.5)), seen(fusion, gallery, queries(2, 0.5))
    arrays = [
        array
        for twin in (frozen, adapted)
        for array in (twin.features, twin.codes, twin.hits.keys, twin.hits.distances, twin.answer.keys)
    ]
    kept = [array.copy() for array in arrays]
    first, second = (fusion.together(gallery, "vector", frozen, adapted, none) for _ in range(2))
    assert np.array_equal(first[0].keys, second[0].keys) and np.array_equal(first[1], second[1])
    assert all(map(np.array_equal, arrays, kept))
