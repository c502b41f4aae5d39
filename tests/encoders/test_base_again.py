"""A base that is written again with other measurements: what changes, and that nothing else does."""

import json
from pathlib import Path

import numpy as np
import pytest

from core.artifacts import MANIFEST
from core.errors import ArtifactError
from core.references import DriftReference, SourceConstants
from encoders.base_again import Measured, write_again
from encoders.base_model import Parts, load_base, write_base
from encoders.head import HashHead

WIDTH = 16
ROWS = np.random.default_rng(0).standard_normal((8, WIDTH)).astype(np.float32)
ROWS /= np.linalg.norm(ROWS, axis=1, keepdims=True)


def clean(rows: np.ndarray, own: np.ndarray | None = None) -> DriftReference:
    return DriftReference(rows, np.zeros(len(rows), np.float32), np.ones(len(rows), np.float32), 4, own)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    head = HashHead(ROWS, np.zeros(8, np.float32), {"vector": ROWS.mean(0)})
    parts = Parts(
        name="old", towers=None, head=head,
        provenance={"items": 8}, constants={"vector": SourceConstants(0.5, 0.25, 0.1, 1e-3)},
        reference={"vector": clean(ROWS)}, extras={"kept": {"x": ROWS}},
    )  # fmt: skip
    write_base(tmp_path / "old", parts)
    return tmp_path / "old"


def files_of(folder: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((folder / MANIFEST).read_text())["files"]
    return found


def test_what_is_measured_takes_the_place_of_what_was(old: Path, tmp_path: Path) -> None:
    before, found = load_base(old), Measured(
        constants={"vector": SourceConstants(0.75, 0.5, 0.2, 1e-2, method="rest")},
        reference={"vector": clean(ROWS[::-1], ROWS)}, extras={"more": {"x": ROWS[:2]}},
        provenance={"again": 1},
    )  # fmt: skip
    write_again(old, tmp_path / "new", found)
    new = load_base(tmp_path / "new")
    assert new.constants == dict(found.constants) and new.provenance == {"items": 8, "again": 1}
    assert (new.reference["vector"].features == ROWS[::-1]).all()
    assert (new.reference["vector"].own == ROWS).all() and before.reference["vector"].own is None  # type: ignore[union-attr]
    assert set(new.extras) == {"kept", "more"} and new.version != before.version
    changed = {name for name, sha in files_of(tmp_path / "new").items() if files_of(old).get(name) != sha}
    assert changed == {"reference-vector.safetensors", "more.safetensors"}
    assert load_base(old).version == before.version


def test_nothing_measured_is_the_same_base_and_its_own_place_will_do(old: Path) -> None:
    before = (old / MANIFEST).read_bytes()
    write_again(old, old, Measured())
    assert (old / MANIFEST).read_bytes() == before
    write_again(old, old, Measured(provenance={"again": 1}))
    assert load_base(old).provenance["again"] == 1
    assert [one.name for one in old.parent.iterdir()] == ["old"]


def test_what_does_not_fit_leaves_the_old_base(old: Path) -> None:
    before = (old / MANIFEST).read_bytes()
    with pytest.raises(ArtifactError, match=r"expected \[n, 16\]"):
        write_again(old, old, Measured(reference={"vector": clean(ROWS[:, :4])}))
    with pytest.raises(ArtifactError, match=r"expected \[n, 16\]"):
        write_again(old, old, Measured(reference={"vector": clean(ROWS, ROWS[:, :4])}))
    assert (old / MANIFEST).read_bytes() == before and load_base(old).name == "old"
    assert [one.name for one in old.parent.iterdir()] == ["old"]
