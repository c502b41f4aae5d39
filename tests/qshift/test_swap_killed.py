"""`qshift gallery swap`, ended by kill -9 at each of its steps: the old gallery or the new one, never less.

A step is, from the first write on, a file that is opened, written, flushed, renamed or removed, or a folder
that is listed: as Python's audit hooks and its profiler have it. One process loads what is needed and forks
for each kill, so that all of them together take seconds.
"""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from core.artifacts import read_manifest
from index.gallery import VersionedGallery

ROOT = Path(__file__).parents[2]
BITS, WIDTH = 64, 8
DRIVER = """
import io, os, signal, sys
from pathlib import Path

from rich.console import Console

from qshift.demo.galleries import swap

STEPS = {"open", "os.rename", "os.remove", "os.listdir", "os.scandir", "os.mkdir", "os.rmdir", "os.truncate"}
WITHIN = {"flush", "fsync", "serialize_file", "write"}


def swapped(source, folder, kill_at):
    taken, begun = 0, False

    def step():
        nonlocal taken
        taken += begun
        if begun and taken == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def heard(event, told):
        nonlocal begun
        if event in STEPS and str(folder.parent) in str(told[0]):
            begun = begun or event != "open" or told[1] == "w"
            step()

    def called(frame, event, function):
        nonlocal begun
        if event == "c_call" and function.__name__ in WITHIN and "json" not in frame.f_code.co_filename:
            begun = True
            step()

    sys.addaudithook(heard)
    sys.setprofile(called)
    swap(source, folder, Console(file=io.StringIO()))
    sys.setprofile(None)
    return taken


def forked(work):
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        os.write(writes, str(work()).encode())
        os._exit(0)
    os.close(writes)
    with os.fdopen(reads, "rb") as pipe:
        told = pipe.read().decode()
    return told, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


for line in sys.stdin:
    source, folder, kill_at = line.rstrip("\\n").split("\\t")
    print(*forked(lambda: swapped(Path(source), Path(folder), int(kill_at))), sep="\\t", flush=True)
"""


def made(count: int, seed: int) -> VersionedGallery:
    draw = np.random.default_rng(seed)
    codes = draw.integers(0, 256, (count, BITS // 8), dtype=np.uint8)
    names = [f"{seed}-{number}" for number in range(count)]
    rows = draw.normal(size=(count, WIDTH))
    return VersionedGallery(BITS, names, codes, [()] * count, rows, backend="exact", base_version="b" * 64)


def galleries(folder: Path, changed: bool) -> tuple[VersionedGallery, VersionedGallery]:
    """In `folder`/gallery and `folder`/new; changed ones have several segments and items that are gone."""
    old, new = made(20, 1), made(30, 2)
    old.save(folder / "gallery")
    if changed:
        more, other = made(5, 3), made(5, 4)
        for place, number in enumerate((more, other)):
            keys = number.keys()
            columns = (
                [f"{place}x{key}" for key in keys],
                number.codes_of(keys),
                [()] * 5,
                number.features(keys),
            )
            if place:
                new = new.add(*columns).remove(["2-3"])
            else:
                old = old.add(*columns).remove(["1-3"])
        old.save(folder / "gallery")
    new.save(folder / "new")
    return old, new


def content(gallery: VersionedGallery) -> dict[str, tuple[bytes, bytes]]:
    keys = gallery.keys()
    rows = zip(gallery.codes_of(keys), gallery.features(keys), keys.tolist(), strict=True)
    return {gallery.identifier(key): (code.tobytes(), row.tobytes()) for code, row, key in rows}


@pytest.mark.slow
@pytest.mark.parametrize("changed", [False, True], ids=["as built", "changed since"])
def test_a_swap_that_is_killed_at_any_step_leaves_one_of_both(tmp_path: Path, changed: bool) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as driver:
        assert driver.stdin is not None and driver.stdout is not None
        seen, kill_at = [], 0
        while True:
            kill_at += 1
            place = tmp_path / str(kill_at)
            place.mkdir()
            old, new = galleries(place, changed)
            told = []
            for at in (kill_at, 0):
                driver.stdin.write(f"{place / 'new'}\t{place / 'gallery'}\t{at}\n")
                driver.stdin.flush()
                told.append(driver.stdout.readline().rstrip("\n").split("\t"))
                found = VersionedGallery.load(place / "gallery", old.base_version, backend="exact")
                seen.append(found.version)
                wanted = new if found.version == new.version else old
                assert found.version in (old.version, new.version), kill_at
                assert content(found) == content(wanted), kill_at
                before = VersionedGallery.load(place / "gallery", backend="exact", version=old.version)
                assert content(before) == content(old), "what answered is still there"
            assert told[1][1] == "0" and seen[-1] == new.version, "the command may be given again"
            assert VersionedGallery.load(place / "new", backend="exact").version == new.version
            named = {name for path in (place / "gallery").glob("manifest*.json")
                     for name in read_manifest(place / "gallery", "gallery", path.name)["files"]}  # fmt: skip
            left = {path.name for path in (place / "gallery").iterdir()} - named
            assert all(name.startswith("manifest") for name in left), f"left behind: {left}"
            if told[0][1] == "0":
                break
            assert int(told[0][1]) == -signal.SIGKILL
        driver.stdin.close()
    killed = seen[:-2:2]
    assert kill_at > 15 and len(killed) == kill_at - 1
    assert killed == sorted(killed, key=[old.version, new.version].index), "from the old one to the new one"
    assert len(set(killed)) == 2, "kills fell before and behind the step that counts"
