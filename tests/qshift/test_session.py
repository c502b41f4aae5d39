"""qshift in a loop of one's own: what is answered, learned, kept and undone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vector_world import write_world

import qshift
from core.config import Config
from core.errors import ConfigError, QshiftError, Refused
from core.references import DriftReference
from index.gallery import VersionedGallery
from qshift.session import Session

WIDTH, BITS, ITEMS, ROWS = 16, 32, 60, 32


def unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


FEATURES = unit(np.random.default_rng(0).normal(size=(ITEMS, WIDTH)))


def asked(seed: int, shift: float = 1.0) -> list[np.ndarray]:
    """Vectors near items, all moved the same way."""
    rng = np.random.default_rng(seed)
    rows = FEATURES[rng.integers(0, ITEMS, ROWS)] + 0.1 * rng.normal(size=(ROWS, WIDTH))
    return list(unit(rows + shift * np.eye(WIDTH)[0]))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(3)
    weight = rng.normal(size=(BITS, WIDTH)).astype(np.float32)
    clean = unit(FEATURES[:32] + 0.1 * rng.normal(size=(32, WIDTH)))
    drift = DriftReference(clean, np.ones(32, np.float32), np.zeros(32, np.float32), 16)
    names = [f"item-{i}" for i in range(ITEMS)]
    said = [{"n": i, "parity": ("even", "odd")[i % 2]} for i in range(ITEMS)]
    return write_world(tmp_path_factory.mktemp("session"), weight, FEATURES, names, drift, said)


@pytest.fixture
def session(world: Path) -> Session:
    return Session(world / "base", world / "gallery", config=Config(device="cpu"))


def test_answers_have_names_and_change_nothing(session: Session) -> None:
    before = session.state_hash("vector")
    answer = session.answer(list(FEATURES[:3]))
    assert [row[0] for row in answer.served.items] == ["item-0", "item-1", "item-2"]
    assert answer.quiet and answer.served.items == answer.frozen.items and not answer.weights.any()
    assert answer.served.distances[:, 0].tolist() == [0, 0, 0]
    assert session.state_hash("vector") == before


def test_learning_is_kept_undone_and_repeated_to_the_bit(session: Session, world: Path) -> None:
    def learned(through: Session, *seeds: int) -> list[str]:
        hashes = []
        for seed in seeds:
            assert through.learn(through.answer(asked(seed))).updated
            hashes.append(through.state_hash("vector"))
        return hashes

    start = session.state_hash("vector")
    first = learned(session, 1, 2)
    kept = session.snapshot()
    later = learned(session, 3)
    assert len({start, *first, *later}) == 4
    session.restore(kept)
    assert session.state_hash("vector") == first[-1] and learned(session, 3) == later
    session.reset()
    assert session.state_hash("vector") == start and learned(session, 1, 2, 3) == first + later
    other = Session(world / "base", world / "gallery", config=Config(device="cpu"))
    other.restore(kept)
    assert learned(other, 3) == later


def test_what_was_answered_by_another_state_is_not_learned_from(session: Session) -> None:
    old, new = session.answer(asked(1)), session.answer(asked(2))
    session.learn(new)
    with pytest.raises(QshiftError, match="another state"):
        session.learn(old)


def test_a_quiet_batch_teaches_nothing(session: Session) -> None:
    step = session.learn(session.answer(list(FEATURES[:16])))
    assert (step.updated, step.reason) == (False, "no-shift")


def test_frozen_never_learns(world: Path) -> None:
    session = Session(world / "base", world / "gallery", method="frozen", config=Config(device="cpu"))
    answer = session.answer(asked(1))
    assert answer.served.items == answer.frozen.items and not session.learn(answer).updated


def test_what_cannot_be_asked_is_one_sentence(session: Session, world: Path) -> None:
    with pytest.raises(Refused, match="query 1: the vector is zero"):
        session.answer([FEATURES[0], np.zeros(WIDTH, np.float32)])
    for queries in ([], ["a cat", FEATURES[0]]):
        with pytest.raises(ConfigError, match="one modality"):
            session.answer(queries)
    with pytest.raises(Refused, match="query 0: the base model serves vector, not text"):
        session.answer(["a cat"])
    with pytest.raises(ConfigError, match="no method 'tenet'"):
        Session(world / "base", world / "gallery", method="tenet")


def test_a_filter_for_all_and_for_each(session: Session) -> None:
    """Three queries that are items 0, 1 and 2."""
    queries = list(FEATURES[:3])
    odd = session.answer(queries, filter={"parity": "odd"})
    for ranking in (odd.served, odd.frozen, odd.adapted):
        assert all(int(name.removeprefix("item-")) % 2 for row in ranking.items for name in row)
    assert odd.served.items[1][0] == "item-1"
    each = session.answer(queries, filter=[{"n": {"from": 30}}, None, {"n": [7]}])
    assert all(int(name.removeprefix("item-")) >= 30 for name in each.served.items[0])
    assert each.served.items[1] == session.answer(queries).served.items[1]
    assert each.served.items[2] == ("item-7", *[""] * 9) and each.served.keys[2].tolist() == [7, *[-1] * 9]
    scores = odd.served.scores
    assert scores is not None and scores[1, 0] == pytest.approx(1.0, abs=1e-3)


def test_top_and_who_decided(session: Session) -> None:
    assert [len(row) for row in session.answer(list(FEATURES[:3]), top=25).served.items] == [25] * 3
    few = session.answer(list(FEATURES[:3]), top=2)
    assert [[name for name in row if name] for row in few.served.items] == [
        list(row[:2]) for row in session.answer(list(FEATURES[:3])).served.items
    ]
    assert few.decided_by == ("frozen",) * 3
    assert set(session.answer(asked(1)).decided_by) <= {"frozen", "mixture"}


def test_without_a_curve_there_is_no_confidence_to_fall_short(session: Session) -> None:
    answer = session.answer(list(FEATURES[:3]), threshold=1.0)
    assert answer.confidence == (None,) * 3 and not answer.abstained.any() and answer.served.items[0][0]


@pytest.mark.parametrize(
    ("want", "word"),
    [
        ({"top": 0}, "query 0: top"), ({"top": 101}, "query 0: top: 101 items, at most 100"),
        ({"threshold": 2}, "query 0: threshold"), ({"filter": {"n": []}}, "query 0: filter: 'n' lists no"),
        ({"filter": [None, {"n": None}, None]}, "query 1: filter: 'n' is null"),
    ],
)  # fmt: skip
def test_what_cannot_be_wanted_is_one_sentence(session: Session, want: dict[str, Any], word: str) -> None:
    with pytest.raises(Refused, match=word):
        session.answer(list(FEATURES[:3]), **want)


def test_as_many_filters_as_queries(session: Session) -> None:
    with pytest.raises(ConfigError, match="2 filters for 3 queries"):
        session.answer(list(FEATURES[:3]), filter=[None, None])


def test_the_face_is_light() -> None:
    code = "import sys, qshift; print(*({'torch', 'numpy', 'kafka', 'faiss'} & set(sys.modules)))"
    root = Path(qshift.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=root, capture_output=True, text=True)
    assert not done.stdout.split()
    assert all(getattr(qshift, name) is not None for name in qshift.__all__)


@pytest.mark.slow
def test_the_face_is_light_and_whole() -> None:
    code = (
        "import sys, qshift; heavy = {'torch', 'numpy', 'kafka', 'faiss'} & set(sys.modules);"
        "assert not heavy, heavy;"
        "assert all(getattr(qshift, name) is not None for name in qshift.__all__);"
        "assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(qshift.__file__).parents[1])
    with pytest.raises(AttributeError, match="nothing"):
        _ = qshift.nothing


# -- a gallery that changes -----------------------------------------------------------------------------


def firsts(session: Session, rows: list[np.ndarray]) -> list[str]:
    return [found[0] for found in session.answer(rows).served.items]


def test_items_come_and_go_between_batches_and_what_was_learned_stays(session: Session) -> None:
    new = list(unit(np.random.default_rng(5).normal(size=(2, WIDTH))))
    session.learn(session.answer(asked(1)))
    learned, first = session.state_hash("vector"), session.gallery
    said = [{"year": 2019}, {}]
    session.upsert(["new", "item-1"], new, [["fresh"], ["moved"]], ["New", "Moved"], said)
    assert session.state_hash("vector") == learned and len(session.gallery) == ITEMS + 1
    # The frozen twin alone: what was learned is of a shift that these queries do not have.
    found = session.answer([*new, FEATURES[2]]).frozen.items
    assert [row[0] for row in found] == ["new", "item-1", "item-2"]
    found = session.answer(new, filter={"year": 2019}).served.items
    assert [[name for name in row if name] for row in found] == [["new"]] * 2
    key = session.gallery.key_of("item-1")
    assert session.gallery.labels_of(key) == ("moved",) and session.gallery.display(key).title == "Moved"
    session.remove(["new"])
    assert "new" not in session.answer(new).frozen.items[0]
    with pytest.raises(QshiftError, match="no item is called 'new'"):
        session.remove(["new"])
    version = session.gallery.version
    with pytest.raises(QshiftError, match="vector b: expected a vector of 16 numbers"):
        session.upsert(["a", "b"], [new[0], np.ones(3)])
    with pytest.raises(QshiftError, match="'a' 2 times"):
        session.upsert(["a", "a"], new)
    assert session.gallery.version == version != first.version and len(first) == ITEMS


def test_an_answer_is_learned_from_as_it_was_given(session: Session, world: Path) -> None:
    """A swap between answer and step: neither is torn."""
    other = Session(world / "base", world / "gallery", config=Config(device="cpu"))
    batches = [asked(seed) for seed in range(3)]
    for batch in batches:
        answer = session.answer(batch)
        session.remove([name for name in ("item-3", "item-4") if session.gallery.holds(name)])
        session.learn(answer)
        session.swap(world / "gallery")
        other.learn(other.answer(batch))
    assert session.state_hash("vector") == other.state_hash("vector")
    assert firsts(session, list(FEATURES[:5])) == firsts(other, list(FEATURES[:5]))


def test_another_gallery_takes_the_place_of_the_whole(session: Session, world: Path, tmp_path: Path) -> None:
    codes = session.gallery.codes_of(session.gallery.keys())
    base_version = session.gallery.base_version
    names = [f"other-{number}" for number in range(ITEMS)]
    VersionedGallery(BITS, names, codes, names, FEATURES, base_version=base_version).save(tmp_path / "whole")
    VersionedGallery(BITS, names, codes, names, FEATURES, base_version="other").save(tmp_path / "strange")
    session.swap(tmp_path / "whole")
    assert firsts(session, list(FEATURES[:2])) == ["other-0", "other-1"]
    for wrong, said in (("strange", "built with base model"), ("none", "build it first")):
        with pytest.raises(QshiftError, match=said):
            session.swap(tmp_path / wrong)
    with pytest.raises(QshiftError, match="features of width 16, got 0"):
        session.swap(VersionedGallery(BITS, names, codes, names, base_version=base_version))
    assert firsts(session, list(FEATURES[:2])) == ["other-0", "other-1"]
