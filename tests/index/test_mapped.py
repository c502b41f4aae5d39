"""Features that are mapped: the same answers in less memory, whatever happens to the files."""

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from index.gallery import VersionedGallery
from index.mapped import MAPPED_BYTES, mapped

BITS, WIDTH = 64, 4096
ITEMS = MAPPED_BYTES // (2 * WIDTH) + 10
ROOT = Path(__file__).parents[2]
MEASURED = """
import sys
from pathlib import Path
from index.gallery import VersionedGallery

def held():  # anonymous memory: what the kernel cannot drop and read again
    told = Path("/proc/self/status").read_text()
    return int(told.split("RssAnon:")[1].split()[0]) * 1024

before = held()
gallery = VersionedGallery.load(Path(sys.argv[1]), backend="exact")
print(held() - before)
"""


def made() -> VersionedGallery:
    draw = np.random.default_rng(0)
    codes = draw.integers(0, 256, (ITEMS, BITS // 8), dtype=np.uint8)
    names = [f"item {number}" for number in range(ITEMS)]
    rows = draw.normal(size=(ITEMS, WIDTH)).astype(np.float16)
    return VersionedGallery(BITS, names, codes, [()] * ITEMS, rows, backend="exact")


@pytest.fixture(scope="module")
def gallery() -> VersionedGallery:
    return made()


@pytest.fixture
def folder(gallery: VersionedGallery, tmp_path: Path) -> Path:
    gallery.save(tmp_path / "gallery")
    return tmp_path / "gallery"


def rows(gallery: VersionedGallery) -> np.ndarray:
    part = gallery.parts[0].segment.features
    assert part is not None
    return part.rows


@pytest.mark.parametrize("harm", ["written over", "cut", "removed"])
def test_what_happens_to_the_file_later_changes_nothing(
    gallery: VersionedGallery, folder: Path, harm: str
) -> None:
    files = sorted(folder.iterdir())
    loaded = VersionedGallery.load(folder, backend="exact")
    assert sorted(folder.iterdir()) == files, "the copy has a name"
    assert not rows(loaded).flags.owndata and not rows(loaded).flags.writeable
    file = folder / "gallery.safetensors"
    if harm == "written over":
        with file.open("r+b") as target:  # as `cp` does
            target.write(bytes(file.stat().st_size))
    elif harm == "cut":
        file.write_bytes(b"")
    else:
        file.unlink()
    keys = gallery.keys()[::7]
    assert np.array_equal(rows(loaded), rows(gallery))
    assert np.array_equal(loaded.features(keys), gallery.features(keys))
    assert loaded.version == gallery.version


def test_a_changed_gallery_is_saved_and_loaded_with_what_is_mapped(folder: Path, tmp_path: Path) -> None:
    loaded = VersionedGallery.load(folder, backend="exact")
    changed = loaded.remove(["item 3"]).add(
        ["more"], loaded.codes_of(loaded.keys()[:1]), [()], rows(loaded)[:1]
    )
    changed.save(folder)
    changed.save(tmp_path / "elsewhere")
    for place in (folder, tmp_path / "elsewhere"):
        again = VersionedGallery.load(place, backend="exact")
        assert again.version == changed.version
        assert np.array_equal(again.features(again.keys()), changed.features(changed.keys()))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
def test_features_are_not_held(folder: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-c", MEASURED, str(folder)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert int(found.stdout) < MAPPED_BYTES // 2, "features are in memory"


def test_small_ones_and_those_that_cannot_be_copied_are_held(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = np.arange(12, dtype=np.float16).reshape(4, 3)
    save_file({"features": wanted}, tmp_path / "file")
    with safe_open(tmp_path / "file", "numpy") as file, caplog.at_level(logging.INFO):
        held = mapped(file, "features", tmp_path)
        assert np.array_equal(held, wanted) and held.flags.writeable
        copied = mapped(file, "features", tmp_path, least_bytes=0)
        assert np.array_equal(copied, wanted) and not copied.flags.writeable and not caplog.records
        nowhere = mapped(file, "features", tmp_path / "nowhere", least_bytes=0)
        assert np.array_equal(nowhere, wanted) and len(caplog.records) == 1
