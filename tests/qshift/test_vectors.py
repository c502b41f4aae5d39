"""Vectors of any model: from a file to a base, a gallery, answers, and what adaptation gains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from toy_embeddings import World, unit, write
from typer.testing import CliRunner

from core.config import Config
from core.errors import ConfigError, GalleryError
from core.filters import filter_of
from core.readers.vectors import read_vectors
from core.types import Floats
from encoders.base_model import load_base
from index.gallery import VersionedGallery
from qshift.cli import app
from qshift.demo.file_queries import read_queries
from qshift.recipes.vectors import build_vector_gallery, fit_vector_base
from qshift.replay.own_queries import OwnQueries, own_parts, own_queries
from qshift.replay.own_run import OwnRow, run_records
from qshift.session import Session
from stream.codec import Codec, vector_query

ROOT = Path(__file__).parents[2]
ITEMS, QUERIES, SEED = 1200, 256, 7
"""A seed on which nothing was chosen: those were 100 and more."""


def invoked(*words: str | Path) -> str:
    """What a command prints, whatever comes of it."""
    result = CliRunner().invoke(app, list(map(str, words)))
    return f"{result.output} {result.exception or ''}".replace("\n", " ")


@pytest.fixture(scope="module")
def world() -> World:
    return World(SEED, width=64, clusters=40)


@pytest.fixture(scope="module")
def made(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with items.npy, and the base and the gallery that the commands make of it."""
    folder = tmp_path_factory.mktemp("made")
    items = write(folder / "items.npy", *world.drawn(ITEMS, 0))
    said = invoked("fit", "vectors", items, "--base", folder / "base")
    assert "qshift gallery build" in said
    said = invoked("gallery", "build", items, "--base", folder / "base", "--out", folder / "gallery")
    assert f"{ITEMS:,} items with 128-bit codes" in said
    return folder


def asked(made: Path, path: Path, count: int | None = None) -> tuple[OwnQueries, Config]:
    config = Config(device="cpu").model_copy(update={"base": made / "base", "gallery": made / "gallery"})
    return own_queries(path, *own_parts(made / "gallery", made / "base"), config, count), config


def replayed(made: Path, path: Path) -> OwnRow:
    """The default method on a file of queries."""
    own, config = asked(made, path)
    (row,) = run_records(own.records, own.labels, config, ["default"])
    return row


def test_vectors_of_the_gallery_find_themselves(made: Path) -> None:
    rows = np.load(made / "items.npy").astype(np.float64)
    session = Session(made / "base", made / "gallery", config=Config(device="cpu"))
    for length in (1.0, 37.0):  # whatever their length
        answer = session.answer(list(length * rows))
        assert [found[0] for found in answer.served.items] == [str(row) for row in range(ITEMS)]
        assert answer.quiet


@pytest.mark.parametrize("shift", ["offset of 1", "times 3, offset of 1, noise of .7 sd"])
def test_what_a_shift_takes_is_won_back(world: World, made: Path, tmp_path: Path, shift: str) -> None:
    clean, labels = world.drawn(QUERIES, 1)
    row = replayed(made, write(tmp_path / "q.npy", world.shifted(clean, shift), labels))
    assert (row.labels, row.refused) == (QUERIES, 0)
    assert row.map_minus_frozen > 3 and row.low > 0, row


@pytest.mark.parametrize("queue", ["shuffled", "sorted"])
def test_clean_queries_lose_nothing(world: World, made: Path, tmp_path: Path, queue: str) -> None:
    rows, labels = world.drawn(QUERIES, 1)
    if queue == "sorted":
        order = np.argsort(labels, kind="stable").tolist()
        rows, labels = rows[order], [labels[place] for place in order]
    row = replayed(made, write(tmp_path / "q.npy", rows, labels))
    assert row.map > 60 and row.map_minus_frozen == 0.0 and row.same_items == 100.0, row


def test_one_file_one_base(made: Path, tmp_path: Path) -> None:
    """Equal vectors give equal bytes, whatever the type of their numbers."""
    rows = np.load(made / "items.npy")
    versions = set()
    for name, array in (("again", rows), ("double", rows.astype(np.float64))):
        fit_vector_base(tmp_path / name, read_vectors(write_as(tmp_path / "items.npy", array)), name="items")
        versions.add(load_base(tmp_path / name).version)
    assert len(versions) == 1
    head, again = (load_base(folder).head.weight for folder in (made / "base", tmp_path / "again"))
    assert (head == again).all(), "labels beside the items decide what quality is expected, and nothing else"


def write_as(path: Path, array: Any) -> Path:
    np.save(path, array)
    return path


def test_queries_of_another_kind_have_a_mean_and_a_reference_of_their_own(tmp_path: Path) -> None:
    """Texts lie in a cone of their own beside pictures: the gap between the modalities of CLIP."""
    world = World(SEED + 1, width=64, clusters=40)
    gap = 1.5 * unit(np.random.default_rng(0).standard_normal((1, 64)))
    pictures, (texts, _) = world.drawn(ITEMS, 0), world.drawn(512, 2)
    (rows, labels) = world.drawn(QUERIES, 1)
    items = write(tmp_path / "pictures.npy", *pictures)
    typical = write(tmp_path / "texts.npy", unit(texts + gap))
    asking = write(tmp_path / "asking.npy", unit(rows + gap), labels)
    found = {}
    for name, words in (("one", []), ("two", ["--queries", typical])):
        folder = tmp_path / name
        invoked("fit", "vectors", items, *words, "--base", folder / "base")
        invoked("gallery", "build", items, "--base", folder / "base", "--out", folder / "gallery")
        found[name] = replayed(folder, asking)
    one, two = (load_base(tmp_path / name / "base") for name in ("one", "two"))
    of_items = two.extras["items"]["mean."]
    assert np.allclose(of_items, pictures[0].mean(0), atol=1e-5)
    assert np.allclose(two.head.means["vector"], unit(texts + gap).mean(0), atol=1e-5)
    assert np.allclose(one.head.means["vector"], of_items)
    galleries = [VersionedGallery.load(tmp_path / name / "gallery") for name in ("one", "two")]
    assert (galleries[0].codes_of(galleries[0].keys()) == galleries[1].codes_of(galleries[1].keys())).all()
    # What is usual for texts is no shift for a base that has seen texts.
    assert found["two"].same_items == 100.0 and found["one"].same_items < 90.0
    assert found["two"].map > found["one"].map - found["one"].map_minus_frozen + 5


def test_items_of_two_kinds_are_centred_by_kind(tmp_path: Path) -> None:
    rows, labels = World(SEED, width=64, clusters=40).drawn(400, 0)
    gap = np.eye(64)[:1]
    both = unit(np.concatenate([rows, rows + gap]))
    kinds = np.array(["image"] * 400 + ["text"] * 400)
    np.savez(tmp_path / "both.npz", vectors=both, modality=kinds, labels=np.array(labels * 2))
    fit_vector_base(tmp_path / "base", read_vectors(tmp_path / "both.npz"))
    base = load_base(tmp_path / "base")
    for kind in ("image", "text"):
        assert np.allclose(base.extras["items"][f"mean.{kind}"], both[kinds == kind].mean(0), atol=1e-5)
    assert np.allclose(base.head.means["vector"], both.mean(0), atol=1e-5)
    gallery = build_vector_gallery(base, read_vectors(tmp_path / "both.npz"))
    codes = gallery.codes_of(gallery.keys())
    apart = np.bitwise_count(codes[:400] ^ codes[400:]).sum(1).mean()
    assert apart < 16  # of 128: the same thing as a picture and as a text
    np.savez(tmp_path / "sound.npz", vectors=rows, modality=np.array(["sound"] * 400))
    with pytest.raises(GalleryError, match="modality 'sound', base vectors knows 'image', 'text'"):
        build_vector_gallery(base, read_vectors(tmp_path / "sound.npz"))
    np.savez(tmp_path / "none.npz", vectors=rows)
    with pytest.raises(GalleryError, match="modality '', base vectors knows 'image', 'text'"):
        build_vector_gallery(base, read_vectors(tmp_path / "none.npz"))


def test_names_labels_and_titles_are_in_the_gallery(made: Path, tmp_path: Path) -> None:
    rows = np.load(made / "items.npy")[:3].astype(np.float64)
    np.save(tmp_path / "few.npy", np.concatenate([rows, np.zeros((1, 64))]))
    for name, lines in (("ids", "abcd"), ("labels", ["x", "", "y", "z"]), ("titles", ["A", "B", "", "D"])):
        (tmp_path / f"{name}.txt").write_text("\n".join(lines) + "\n")
    options = [
        word for name in ("ids", "labels", "titles") for word in (f"--{name}", tmp_path / f"{name}.txt")
    ]
    place = ("--base", made / "base", "--out", tmp_path / "gallery")
    said = invoked("gallery", "build", tmp_path / "few.npy", *options, *place)
    assert "1 of 4 rows left out: row 3 holds only zeros" in said and "3 items" in said
    gallery = VersionedGallery.load(tmp_path / "gallery")
    assert [gallery.identifier(key) for key in range(3)] == ["a", "b", "c"]
    assert [gallery.labels_of(key) for key in range(3)] == [("x",), (), ("y",)]
    assert gallery.titles() == ["A", "B", ""]


def test_attributes_of_vectors_come_from_a_file_and_a_kind_of_index_is_measured(
    made: Path, tmp_path: Path
) -> None:
    rows = np.load(made / "items.npy")[:20]
    np.save(tmp_path / "some.npy", rows)
    (tmp_path / "some.ids.txt").write_text("".join(f"v{row}\n" for row in range(20)))
    told = [{"id": f"v{row}", "attributes": {"year": 2000 + row}} for row in range(3)]
    (tmp_path / "some.attributes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in told))
    (tmp_path / "other.csv").write_text("id,colour\nv4,red\n")
    build = ("gallery", "build", tmp_path / "some.npy", "--base", made / "base", "--out", tmp_path / "g")
    for more, name, wanted in (
        ((), "year", {"year": {"to": 2001}}),
        (("--attributes", tmp_path / "other.csv"), "colour", {"colour": "red"}),
    ):  # fmt: skip
        said = invoked(*build, *more, "--index", "ivf")
        assert f"attributes: {name}" in said and "index ivf, effort 64: recall@10 1.000" in said, said
        gallery = VersionedGallery.load(tmp_path / "g")
        names = [gallery.identifier(key) for key in gallery.allowed(filter_of(wanted)).tolist()]
        assert names == (["v0", "v1"] if name == "year" else ["v4"])
    (tmp_path / "other.csv").write_text("id,colour\nv40,red\n")
    (tmp_path / "other.txt").write_text("v1")
    for more, words in (
        (("--attributes", tmp_path / "other.csv"), "of 1 items that are not there: v40"),
        (("--attributes", tmp_path / "other.txt"), "is no file of attributes"),
        (("--effort", "3"), "name it with --index"), (("--index", "lsh"), "expected one of flat, ivf"),
    ):  # fmt: skip
        assert words in invoked(*build, *more), words
    (tmp_path / "some.attributes.csv").write_text("id,colour\nv4,red\n")
    assert "keep one of them" in invoked(*build)


def test_rows_without_a_direction_are_refused_one_by_one(made: Path, tmp_path: Path, caplog: Any) -> None:
    rows = np.load(made / "items.npy")[:5]
    rows[1], rows[3, 0], rows[4] = 0, np.nan, 2 * rows[4]
    own, _ = asked(made, write(tmp_path / "q.npy", rows, ["cluster 1", "", "nobody's", "", ""]))
    assert [record.at.offset for record in own.records] == [0, 2, 4]
    assert [(bad.where, bad.reason) for bad in own.refused] == [
        ("row 1", "the vector holds only zeros, which have no direction"),
        ("row 3", "the vector holds NaN, infinity or a number beyond float32"),
    ]
    assert "1 of 3 vectors are not of unit length: normalised" in caplog.text
    assert list(own.labels.values()) == ["cluster 1"] and dict(own.unknown) == {"nobody's": 1}
    assert len(asked(made, tmp_path / "q.npy", 3)[0].records) == 2  # of the first three rows
    sent = read_queries(tmp_path / "q.npy", Config())
    assert [item.label for item in sent.items] == ["cluster 1", "nobody's", ""] and len(sent.refused) == 2
    assert sent.items[2].value == vector_query(rows[4], "4")[0]  # as a client writes it
    console = Console(record=True, width=200)
    sent.say(console)
    assert "row 1 is refused: the vector holds only zeros" in console.export_text()
    np.save(tmp_path / "wide.npy", np.ones((3, 65), np.float32))
    with pytest.raises(ConfigError, match="row 0: expected a vector of 64 numbers, got shape"):
        asked(made, tmp_path / "wide.npy")


def test_a_query_of_a_file_is_one_of_a_json_line(made: Path, tmp_path: Path) -> None:
    rows = np.load(made / "items.npy")[:4]
    np.savez(tmp_path / "q.npz", vectors=rows, ids=np.array([*"abcd"]))
    lines = [f'{{"vector": {row.tolist()}, "id": "{name}"}}' for row, name in zip(rows, "abcd")]
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    one, other = (asked(made, tmp_path / name)[0].records for name in ("q.npz", "q.jsonl"))
    assert [record.value for record in one] == [record.value for record in other]
    config = Config()
    query = Codec(config.limits, config.kafka).decode(one[3])
    assert query.query_id == "d" and (query.content == rows[3]).all()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("fit vectors", "vectors needs a file (.npy, .npz, .parquet)"),
        ("fit vectors few.npy", "few.npy holds 20 vectors: expected 64 or more"),
        ("fit vectors {made}/items.npy --queries few.npy", "few.npy holds 20 vectors: expected 64"),
        ("fit vectors {made}/items.npy --queries wide.npy", "width 65, {made}/items.npy of width 64"),
        ("fit vectors some.npy --bits 128", "some.npy holds 100 vectors, too few for 128 bits"),
        ("fit vectors {made}/items.npy --bits 12", "divisible by 8, got 12"),
        ("fit vectors {made}/items.npy --steps 3", "vectors takes --base, --queries, --bits, --seed only"),
        ("fit vectors no.npy", "no file no.npy"),
        ("fit few.npy", "few.npy holds 20 vectors: expected 64 or more"),
        ("fit my.vectors", "no method 'my.vectors': expected one of"),
        ("fit two-tower --queries few.npy", "--queries is of vectors: leave it out with two-tower"),
        ("gallery build wide.npy --base {made}/base", "takes vectors of width 64, wide.npy holds vectors"),
        ("gallery build --labels few.npy --base {made}/base", "--labels is for a file of vectors"),
        ("gallery build few.npy --base {made}/base --ids no.txt", "no.txt cannot be read"),
    ],
)
def test_what_does_not_fit_is_a_sentence(
    made: Path, tmp_path: Path, monkeypatch: Any, words: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = np.random.default_rng(0).standard_normal((100, 65)).astype(np.float32)
    for name, array in (("few", rows[:20, :64]), ("wide", rows), ("some", np.resize(rows, (100, 256)))):
        np.save(f"{name}.npy", array)
    found = invoked(*words.format(made=made).split())
    assert said.format(made=made) in found and "Traceback" not in found, found
    assert not (tmp_path / "qshift-data").exists()


# -- large files ----------------------------------------------------------------------------------------

PROBE = """
import runpy, sys, time
sys.argv, began = ["qshift", *sys.argv[1:]], time.process_time()
try:
    runpy.run_module("qshift.cli", run_name="__main__")
except SystemExit as ended:
    assert not ended.code, ended.code
(peak,) = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(peak, time.process_time() - began)
"""
"""The peak is that of this program alone: `ru_maxrss` would begin with the peak of who started it."""


def measured(folder: Path, *words: str) -> tuple[int, float]:
    """Peak kilobytes and processor seconds of a command in a process of its own, on one thread."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    peak, seconds = done.stdout.split()[-2:]
    return int(peak), float(seconds)


def save_parquet(path: Path, rows: Floats) -> None:
    """A column of lists, all in one group of rows."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    numbers = arrow.FixedSizeListArray.from_arrays(arrow.array(rows.ravel()), rows.shape[1])
    parquet.write_table(arrow.table({"vectors": numbers}), path, row_group_size=len(rows))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("kind", ["npy", "parquet"])
def test_a_hundred_thousand_vectors_take_a_minute_and_twice_their_bytes(tmp_path: Path, kind: str) -> None:
    """Of a .parquet all rows are one group, as its writers have it."""
    width, count = 512, 100_000
    draw = np.random.default_rng(0)
    rows = draw.standard_normal((count, width), dtype=np.float32)
    rows += 3 * draw.standard_normal((500, width), dtype=np.float32)[np.arange(count) % 500]
    for name, some in (("large", rows), ("small", rows[:256])):
        if kind == "npy":
            np.save(tmp_path / f"{name}.npy", some)
        else:
            save_parquet(tmp_path / f"{name}.parquet", some)
    began, seconds = time.monotonic(), 0.0
    for words in (
        f"fit vectors {{}}.{kind} --base base",
        f"gallery build {{}}.{kind} --base base --out {{}}",
    ):
        (least, _), (most, spent) = (
            measured(tmp_path, *words.format(name, kind, name).split()) for name in ("small", "large")
        )
        seconds += spent
        print(f"{words}: {spent:.1f} s, {(most - least) / 1024:.0f} MB beyond a small file's")
        assert 0 < (most - least) * 1024 < 2 * rows.nbytes
    assert seconds < 60, seconds
    assert time.monotonic() - began < 600
