"""A user's own queries: every form, every refusal by its line, and the run that they end in."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from vector_world import write_world

from core.checkpoints import JournalEntry
from core.config import Config
from core.errors import ArtifactError, ConfigError, GalleryError
from core.records import Coordinates, Record
from core.references import DriftReference
from core.types import Encoded, Hits
from encoders.base_model import Base
from encoders.composed import Composed
from encoders.images import decode
from encoders.sequence import FrameSequence
from encoders.vector import VectorEncoder
from index.gallery import VersionedGallery
from qshift.replay.own import replay_own
from qshift.replay.own_queries import BadLine, OwnQueries, own_parts, own_queries
from qshift.replay.own_run import OwnRow, own_json, own_table, run_records
from stream import codec
from stream.states import entry_to_bytes

WIDTH, BITS, ITEMS, CLASSES = 16, 32, 60, 6


def items() -> np.ndarray:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(CLASSES, WIDTH))[np.arange(ITEMS) % CLASSES] + 0.5 * rng.normal(
        size=(ITEMS, WIDTH)
    )
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and a gallery of vectors."""
    rng, features = np.random.default_rng(3), items()
    weight = rng.normal(size=(BITS, WIDTH)).astype(np.float32)
    clean = features[:32]
    drift = DriftReference(clean, rng.uniform(0.5, 1.5, 32).astype(np.float32), np.zeros(32, np.float32), 16)
    labels = [f"class {i % CLASSES}" for i in range(ITEMS)]
    return write_world(tmp_path_factory.mktemp("world"), weight, features, labels, drift)


@pytest.fixture(scope="module")
def parts(world: Path) -> tuple[VersionedGallery, Base]:
    return own_parts(world / "gallery", world / "base")


class Dots:
    """Pictures without a tower: the mean colour, repeated."""

    modality, width = "image", WIDTH

    def prepare(self, content: Any) -> np.ndarray:
        return np.resize(np.asarray(decode(content)).mean((0, 1)) + 1.0, WIDTH).astype(np.float32)


@pytest.fixture(scope="module")
def seeing(parts: tuple[VersionedGallery, Base]) -> tuple[VersionedGallery, Base]:
    """The same, and the base takes pictures and clips, too."""
    from dataclasses import replace

    encoders: Any = {**parts[1].encoders, "image": Dots(), "sequence": FrameSequence(Dots())}  # type: ignore[arg-type]
    return parts[0], replace(parts[1], encoders=encoders)


def config(world: Path, **sections: object) -> Config:
    document = {
        "base": world / "base", "gallery": world / "gallery", "device": "cpu",
        "batch": {"size": 16, "floor": 8}, **sections,
    }  # fmt: skip
    return Config.model_validate(document)


def png(side: int, seed: int = 0, noisy: bool = False) -> bytes:
    rng, buffer = np.random.default_rng(seed), io.BytesIO()
    pixels = rng.integers(0, 256, (side, side, 3)) if noisy else np.full((side, side, 3), seed % 256)
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def jsonl(folder: Path, *lines: object) -> Path:
    path = folder / "queries.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def read(path: Path, parts: tuple[VersionedGallery, Base], **limits: object) -> OwnQueries:
    return own_queries(path, *parts, Config.model_validate({"limits": limits}))


# -- reading --------------------------------------------------------------------------------------------


def test_every_kind_of_line_becomes_what_a_client_would_send(
    tmp_path: Path, seeing: tuple[VersionedGallery, Base]
) -> None:
    (tmp_path / "a.png").write_bytes(png(4, 1))
    (tmp_path / "b.png").write_bytes(png(4, 2))
    vector = items()[0].tolist()
    path = jsonl(
        tmp_path,
        {"vector": vector, "label": "class 0", "id": "first"},
        {"image": "a.png", "id": 7},
        "",
        {"frames": ["a.png", "b.png"], "label": "class 1"},
        {"frames": [vector, vector], "label": None},
        {"vector": vector, "label": "no such class"},
    )
    found = read(path, seeing)
    assert found.refused == () and [r.at.offset for r in found.records] == [0, 1, 2, 3, 4]
    reader = codec.Codec(Config().limits, Config().kafka)
    queries = [reader.decode(record) for record in found.records]
    assert [q.modality for q in queries] == ["vector", "image", "sequence", "vector", "vector"]  # type: ignore[union-attr]
    assert [q.query_id for q in queries] == ["first", "7", "", "", ""]  # type: ignore[union-attr]
    assert queries[1].content == png(4, 1)  # type: ignore[union-attr]
    assert queries[2].content == (png(4, 1), png(4, 2))  # type: ignore[union-attr]
    np.testing.assert_allclose(queries[3].content, items()[0], atol=1e-6)  # type: ignore[union-attr]
    at = [record.at for record in found.records]
    assert found.labels == {at[0]: "class 0", at[2]: "class 1"}
    assert found.unknown == {"no such class": 1}
    assert found.notes() == [
        "1 label of no item in the gallery, not used: no such class; labels there look like 'class 0'"
    ]


def test_composed_lines(tmp_path: Path, parts: tuple[VersionedGallery, Base]) -> None:
    from dataclasses import replace

    class Words(Dots):
        modality = "text"

        def prepare(self, content: Any) -> np.ndarray:
            assert content == "but red"
            return np.ones(WIDTH, np.float32)

    encoders: Any = {"composed": Composed(Dots(), Words())}  # type: ignore[arg-type]
    (tmp_path / "a.png").write_bytes(png(4))
    path = jsonl(tmp_path, {"image": "a.png", "text": "but red"}, {"text": "alone"})
    found = read(path, (parts[0], replace(parts[1], encoders=encoders)))
    assert len(found.records) == 1
    assert found.refused == (BadLine("line 2", "the base model serves composed, not text queries"),)


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("\udcff", "not JSON"),
        ("7", "expected an object"),
        ({}, "got no query"),
        ({"text": 7}, "got text"),
        ({"text": "a"}, "serves vector, image, sequence, not text"),
        ({"vector": [1.0], "text": "a"}, "got text, vector"),
        ({"vector": [1.0] * (WIDTH + 1)}, f"expected a vector of {WIDTH}"),
        ({"vector": [0.0] * WIDTH}, "zero"),
        ({"vector": "words"}, "list of finite numbers"),
        ({"vector": [[1.0]]}, "list of finite numbers"),
        ('{"vector": [1, NaN]}', "finite"),
        ({"vector": [1e300]}, "finite"),
        ({"image": "missing.png"}, "no picture"),
        ({"image": "."}, "no picture"),
        ({"image": "a\0b"}, "path of a picture"),
        ({"image": "\ud800"}, "no picture"),
        ({"image": "n" * 5000}, "no picture"),
        ({"image": 7}, "path of a picture"),
        ({"image": "broken.png"}, "not a whole"),
        ({"frames": []}, "got frames"),
        ({"frames": "a.png"}, "got frames"),
        ({"frames": ["a.png", "missing.png"]}, "no picture"),
        ({"frames": ["a.png", "broken.png"]}, "frame 2 of 2"),
        ({"frames": ["a.png"] * 33}, "at most 32"),
        ({"frames": [[1.0] * WIDTH, [1.0]]}, "different widths"),
        ({"frames": ["a.png", [1.0]]}, "finite numbers"),
        ({"frames": [[1.0], [1.0]]}, f"expected a vector of {WIDTH}"),
        ({"image": "a.png", "label": ["x"]}, "the label is"),
        ({"image": "a.png", "id": True}, "the id is"),
        ({"image": "a.png", "id": "\ud800"}, "surrogate"),
        ({"image": "a.png", "id": "x" * 257}, "257 characters"),
    ],
)
def test_a_bad_line_is_named_and_costs_nothing_else(
    tmp_path: Path, seeing: tuple[VersionedGallery, Base], line: object, word: str
) -> None:
    (tmp_path / "a.png").write_bytes(png(4))
    (tmp_path / "broken.png").write_bytes(png(4)[:45])
    good = json.dumps({"image": "a.png", "label": "class 2"})
    text = line if isinstance(line, str) else json.dumps(line)
    path = tmp_path / "queries.jsonl"
    path.write_bytes(f"{good}\n{text}\n{good}\n".encode(errors="surrogateescape"))
    found = read(path, seeing)
    assert [r.at.offset for r in found.records] == [0, 2] and len(found.labels) == 2
    (bad,) = found.refused
    assert bad.where == "line 2" and word in bad.reason
    assert found.notes()[0].startswith("1 query refused: line 2: ")


def test_files_that_give_nothing(tmp_path: Path, parts: tuple[VersionedGallery, Base]) -> None:
    with pytest.raises(ConfigError, match="name a file that is there"):
        read(tmp_path / "missing.jsonl", parts)
    with pytest.raises(ConfigError, match="it is empty"):
        read(jsonl(tmp_path), parts)
    with pytest.raises(ConfigError, match="line 2: the base model serves vector"):
        read(jsonl(tmp_path, "", {"text": "a"}), parts)
    (tmp_path / "a.png").write_bytes(png(4))
    with pytest.raises(ConfigError, match="is one picture"):
        read(tmp_path / "a.png", parts)


def test_large_pictures_are_scaled_to_the_services_limit(
    tmp_path: Path, seeing: tuple[VersionedGallery, Base]
) -> None:
    (tmp_path / "big.png").write_bytes(png(700, noisy=True))
    assert (tmp_path / "big.png").stat().st_size > 1_400_000
    path = jsonl(tmp_path, {"image": "big.png"}, {"frames": ["big.png"] * 6})
    found = read(path, seeing)
    assert found.refused == () and len(found.records[0].value or b"") <= 512 << 10
    assert len(found.records[1].value or b"") <= 1 << 20
    assert decode(found.records[0].value or b"").size[0] >= 512
    path = jsonl(tmp_path, {"image": "big.png"}, {"vector": items()[0].tolist()})
    assert "does not fit" in read(path, seeing, image_bytes=500).refused[0].reason


def test_folders(tmp_path: Path, seeing: tuple[VersionedGallery, Base]) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for number, name in enumerate(("b.png", "a.png", "class-3.png", "c.png")):
        (folder / name).write_bytes(png(4, number))
    found = read(folder, seeing)
    names = ["a.png", "b.png", "c.png", "class-3.png"]
    assert [dict(r.headers)["x-query-id"].decode() for r in found.records] == names
    assert {at.offset: name for at, name in found.labels.items()} == {3: "class 3"} and found.unknown == {}
    (folder / "a.txt").write_text("something\nclass 5\n")
    assert {at.offset: name for at, name in read(folder, seeing).labels.items()} == {
        0: "class 5",
        3: "class 3",
    }
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["file", "label"], ["b.png", "class 1"], ["gone.png", "x"], ["c.png", "odd"]]
        )
    found = read(folder, seeing)
    assert {at.offset: name for at, name in found.labels.items()} == {1: "class 1"}
    assert found.unknown == {"odd": 1} and found.refused[0].where == "labels.csv, line 3"
    assert "no picture gone.png" in found.refused[0].reason
    (folder / "labels.csv").write_text("name,class\na.png,x\n")
    with pytest.raises(ConfigError, match="columns file and label"):
        read(folder, seeing)


def test_gallery_and_base_must_belong_together(
    world: Path, tmp_path: Path, parts: tuple[VersionedGallery, Base]
) -> None:
    base = parts[1]
    stranger = VersionedGallery(
        BITS,
        ["x"],
        np.zeros((1, BITS // 8), np.uint8),
        ["x"],
        items()[:1],
        backend="exact",
        base_version="other",
    )
    with pytest.raises(GalleryError, match="built with base model 'other'"):
        read(jsonl(tmp_path, {"vector": items()[0].tolist()}), (stranger, base))
    stranger.save(tmp_path / "stranger")
    with pytest.raises(ArtifactError, match="built with base model 'other'"):
        own_parts(tmp_path / "stranger", world / "base")


# -- running --------------------------------------------------------------------------------------------


def lines(count: int, labelled: bool) -> list[dict[str, object]]:
    rng = np.random.default_rng(1)
    chosen = rng.integers(ITEMS, size=count)
    rows = items()[chosen] + 0.5 * rng.normal(size=(count, WIDTH)) / WIDTH**0.5 + 0.1
    label = {"label": ""} if not labelled else {}
    return [
        {"vector": row.tolist(), **(label or {"label": f"class {item % CLASSES}"})}
        for row, item in zip(rows, chosen)
    ]


def test_labelled_queries_give_a_table_with_frozen_at_zero(
    tmp_path: Path, world: Path, parts: tuple[VersionedGallery, Base]
) -> None:
    own = read(jsonl(tmp_path, *lines(70, True)), parts)
    settings = config(world, labels={"rate": 0.1})
    rows = run_records(own.records, own.labels, settings, ["frozen", "centring", "default"])
    assert [(r.method, r.queries, r.labels, r.refused) for r in rows] == [
        (name, 70, 70, 0) for name in ("frozen", "centring", "default")
    ]
    frozen, centring, default = rows
    assert (frozen.map_minus_frozen, frozen.low, frozen.high) == (0, 0, 0)
    assert (frozen.same_first, frozen.same_items) == (100, 100)
    for row in rows:
        assert 0 < row.map < 100 and row.low <= row.map_minus_frozen <= row.high
        np.testing.assert_allclose(row.map - row.map_minus_frozen, frozen.map, atol=1e-9)
    assert centring.same_items < 100
    assert run_records(own.records, own.labels, settings, ["default"]) == [default], "not deterministic"
    keys = {"task", "stream", "seed", "method", "queries", "map", "r1", "map_minus_frozen", "low", "high"}
    document = own_json(rows, "own", "mine", 3)
    assert keys | {"forwards", "backwards"} <= document[0].keys()
    assert [entry["method"] for entry in document] == ["frozen", "centring", "default"]
    assert (frozen.forwards, frozen.backwards) == (1, 0) and default.backwards > 0
    # The frozen row by hand: mean average precision of the re-ranked shortlist, here the whole gallery.
    gallery, head = parts[0], parts[1].head
    unit = [VectorEncoder(WIDTH).prepare(line["vector"]) for line in lines(70, True)]
    precisions = []
    for vector, line in zip(unit, lines(70, True)):
        order = np.argsort(-(gallery.features(gallery.keys()) @ vector), kind="stable")
        hits = gallery.relevant(str(line["label"]))[order]
        ranks = np.flatnonzero(hits) + 1
        precisions.append(np.mean(np.arange(1, len(ranks) + 1) / ranks))
    assert head.bits == BITS
    np.testing.assert_allclose(frozen.map, 100 * np.mean(precisions), atol=0.05)


def test_unlabelled_queries_give_agreement(
    tmp_path: Path, world: Path, parts: tuple[VersionedGallery, Base]
) -> None:
    own = read(jsonl(tmp_path, *lines(40, False)), parts)
    assert own.labels == {} and "agreement" in own.notes()[-1]
    rows = run_records(own.records, own.labels, config(world), ["frozen", "centring"])
    assert rows[0].same_first == 100 and rows[1].labels == 0
    document = own_json(rows, "own", "mine", 0)
    assert document[0]["map"] is None and document[1]["same_first"] == round(rows[1].same_first, 3)
    json.dumps(document, allow_nan=False)
    console = Console(width=120, record=True, file=io.StringIO())
    own_table(rows, "own").print(console)
    text = console.export_text()
    assert "mAP" not in text and "100.0, 100.0" in text and "nan" not in text


def test_agreement_counts_answers(world: Path) -> None:
    from core.types import Outcome, Query, QueryBatch, Twin
    from qshift.replay.own_run import _Watch

    watch = _Watch()
    served, frozen = (
        np.array([[1, 2, 3], [4, 5, 6], [-1, -1, -1]]),
        np.array([[1, 3, 9], [5, 4, -1], [-1, -1, -1]]),
    )
    nothing = Encoded(np.zeros((3, 1), np.float32), np.zeros((3, 1), np.uint8))
    hits = [Hits(keys, np.zeros((3, 3), np.int32)) for keys in (served, frozen)]
    queries = tuple(Query(Coordinates("t", 0, n), "vector", "") for n in range(3))
    batch = QueryBatch("0:vector", 0, "vector", queries)
    watch.observe(
        Outcome(
            batch,
            Twin(nothing, hits[1], hits[1]),
            Twin(nothing, hits[0], hits[0]),
            hits[0],
            np.ones(3, np.float32),
            "g",
            "s",
            np.zeros(3, np.float32),
        )
    )
    assert (watch.queries, watch.first) == (3, 2)
    np.testing.assert_allclose(watch.items, 2 / 3 + 1 + 1)


def test_boundaries_of_the_journal_are_obeyed(
    tmp_path: Path, world: Path, parts: tuple[VersionedGallery, Base]
) -> None:
    own = read(jsonl(tmp_path, *lines(40, True)), parts)
    settings = config(world)
    plain = run_records(own.records, own.labels, settings, ["default"])
    cuts = [(0, 16), (16, 32), (32, 40)]
    same = [
        JournalEntry(settings.kafka.queries, 0, "0:vector", n, tuple(range(a, b)), "", 0, 0)
        for n, (a, b) in enumerate(cuts)
    ]
    assert entry_to_bytes(same[0])
    assert run_records(own.records, own.labels, settings, ["default"], same) == plain
    later = [replace(entry, seq=entry.seq + 5) for entry in same]  # a stretch from the middle of a recording
    assert run_records(own.records, own.labels, settings, ["default"], later) == plain
    other = [JournalEntry(settings.kafka.queries, 0, "0:vector", 0, tuple(range(9)), "", 0, 0)]
    assert run_records(own.records, own.labels, settings, ["default"], other) != plain


def test_labels_that_steered_are_given_where_the_journal_says(
    tmp_path: Path, world: Path, parts: tuple[VersionedGallery, Base], caplog: pytest.LogCaptureFixture
) -> None:
    own, settings = read(jsonl(tmp_path, *lines(40, True)), parts), config(world)
    topics = settings.kafka
    late = [
        Record(Coordinates(topics.labels, 0, number), codec.label(at, label))
        for number, (at, label) in enumerate(own.labels.items())
    ]
    steered = [
        JournalEntry(topics.queries, 0, "0:vector", 0, tuple(range(16)), "", 0, 0),
        JournalEntry(
            topics.queries,
            0,
            "0:vector",
            1,
            tuple(range(16, 40)),
            "",
            0,
            0,
            label_offsets={f"{topics.labels}/0": len(late)},
        ),
    ]
    steer = settings.labels.model_copy(update={"steer": True, "rate": 1.0})
    steering = settings.model_copy(update={"labels": steer})

    def missing(settings: Config, late: list[Record]) -> bool:
        caplog.clear()
        rows = run_records(own.records, own.labels, settings, ["default"], steered, late=late)
        assert rows[0].queries == 40 and rows[0].labels == len(own.labels), "figures are made of all labels"
        return any("labels that an answered batch" in record.message for record in caplog.records)

    assert not missing(steering, late) and missing(steering, [])
    assert not missing(settings, []), "labels that only measure are not waited for"


def test_the_command_prints_notes_and_writes_rows(tmp_path: Path, world: Path) -> None:
    path = jsonl(tmp_path, *lines(20, True), "{")
    console = Console(width=160, record=True, file=io.StringIO())
    settings = config(world).model_copy(update={"base": Path("elsewhere"), "gallery": Path("elsewhere")})
    rows = replay_own(
        path, world / "gallery", world / "base", settings, ["centring"], console, tmp_path / "rows.json"
    )
    assert [row.method for row in rows] == ["frozen", "centring"], "frozen is what all are compared with"
    assert json.loads((tmp_path / "rows.json").read_text()) == own_json(rows, "own", "queries.jsonl", 0)
    text = " ".join(console.export_text().split())
    assert "1 query refused: line 21: not JSON" in text and "centring" in text and "mAP" in text
    first = (tmp_path / "rows.json").read_bytes()
    replay_own(
        path, world / "gallery", world / "base", settings, ["centring"], console, tmp_path / "rows.json"
    )
    assert (tmp_path / "rows.json").read_bytes() == first
    with pytest.raises(ConfigError, match="not known"):
        replay_own(path, world / "gallery", world / "base", settings, ["magic"], console)


def test_what_cannot_be_run_is_said(world: Path) -> None:
    record = Record(Coordinates("t", 0, 0), *codec.text_query("a")[:1])
    with pytest.raises(ConfigError, match="method 'magic' is not known: one of frozen"):
        run_records([record], {}, config(world), ["frozen", "magic"])
    with pytest.raises(ConfigError, match="none"):
        run_records([], {}, config(world), ["frozen"])
    other = Record(Coordinates("u", 0, 0), b"")
    with pytest.raises(ConfigError, match=r"\['t', 'u'\]"):
        run_records([record, other], {}, config(world), ["frozen"])
    (row,) = run_records([record], {}, config(world), ["frozen"])
    assert isinstance(row, OwnRow) and (row.queries, row.refused) == (0, 1) and np.isnan(row.same_first)
