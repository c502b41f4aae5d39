"""Gallery items, queries and clean references are prepared alike: a gallery's own files find themselves."""

import io
import json
import struct
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from core.artifacts import MANIFEST
from core.config import Config
from core.errors import ArtifactError
from core.seeds import generator
from encoders.base_model import load_base
from encoders.images import Preprocess, prepare
from encoders.scratch import ScratchConfig
from qshift.benchmarks.suite.picture_base import fit_picture_base
from qshift.benchmarks.tasks.types import Sample, Task
from qshift.data.emoji import EmojiSet, png
from qshift.data.pictures import load_pictures
from qshift.demo.catalogue import SIDE, FolderSet, load_folder, make_query
from qshift.demo.fit import build
from qshift.recipes.captioned import drawn as drawn_queries
from qshift.recipes.encode import jittered
from qshift.recipes.open_clip_base import PURPOSE, fit_open_clip_base
from qshift.replay.own_queries import own_parts, own_queries
from qshift.replay.own_run import run_records
from qshift.replay.schedule import Phase
from qshift.shifts.images import PICTURE_SHIFTS, jitter

SHAPES = ((96, 96), (400, 300), (300, 400), (60, 80), (1, 200), (2000, 100), (33, 7))
QUICK = ScratchConfig(
    image_size=16, patch=8, width=16, heads=2, image_layers=1, text_layers=1, embed=16, context=16, steps=3,
    batch=16, warm_up=1,
)  # fmt: skip


def drawn(seed: int, size: tuple[int, int] = (96, 96)) -> Image.Image:
    """Blocks of colour, different in each picture and everywhere in it."""
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST)


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def clear_grey(seed: int) -> bytes:
    """A 16-bit grey PNG whose darkest value is transparent: Pillow writes none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    values = np.asarray(drawn(seed).convert("L")).astype(">u2") * 257
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 96, 96, 16, 0, 0, 0, 0))
    clear = chunk(b"tRNS", struct.pack(">H", int(values.min())))
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    return b"\x89PNG\r\n\x1a\n" + head + clear + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@cache
def files() -> dict[str, bytes]:
    """Every shape, mode and EXIF turn, each a picture of its own."""
    found = {f"shape {w}x{h}.png": encoded(drawn(i, (w, h))) for i, (w, h) in enumerate(SHAPES)}
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        found[f"turn {turn}.jpg"] = encoded(drawn(20 + turn, (120, 90)), "JPEG", exif=exif.tobytes())
    noise = Image.fromarray(np.random.default_rng(48).integers(0, 256, (500, 400, 3), np.uint8))
    half = drawn(40).convert("RGBA")
    half.putalpha(drawn(41).convert("L"))
    grey = np.asarray(drawn(42).convert("L")).astype(np.uint16)
    found |= {
        "L.png": encoded(drawn(43).convert("L")),
        "LA.png": encoded(half.convert("LA")),
        "P.png": encoded(drawn(44).convert("P", palette=Image.Palette.ADAPTIVE), transparency=0),
        "RGBA.png": encoded(half), "RGBA.webp": encoded(half.rotate(90), "WEBP"),
        "16.png": encoded(Image.fromarray(grey * 257)), "16 clear.png": clear_grey(45),
        "CMYK.jpg": encoded(drawn(46).convert("CMYK"), "JPEG"), "1.png": encoded(drawn(47).convert("1")),
        "large.png": encoded(noise),
    }  # fmt: skip
    return found | {f"more {i}.png": encoded(drawn(100 + i, (80, 50))) for i in range(70 - len(found))}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same pictures with captions, and sorted into classes of one."""
    captioned, sorted_in = (tmp_path_factory.mktemp(name) for name in ("captioned", "classes"))
    for number, (name, content) in enumerate(files().items()):
        (captioned / name).write_bytes(content)
        (sorted_in / f"{number}").mkdir()
        (sorted_in / f"{number}" / name).write_bytes(content)
    (captioned / "captions.json").write_text(json.dumps({name: f"picture {name}" for name in files()}))
    return captioned, sorted_in


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packaged tower at 48 pixels, with 64 bits fitted to other pictures."""
    samples = [Sample(f"{i}", np.asarray(drawn(500 + i, (48, 48))), f"{i}") for i in range(96)]
    folder = tmp_path_factory.mktemp("bases") / "base"
    fit_picture_base(Task("drawn", "image", "image", samples, {"clean": samples}, "drawn"), folder)
    return folder


@pytest.mark.parametrize(
    "kind", [pytest.param(0, id="captioned"), pytest.param(1, id="classes", marks=pytest.mark.slow)]
)
def test_own_files_find_themselves(folders: tuple[Path, Path], base: Path, tmp_path: Path, kind: int) -> None:
    folder, gallery = folders[kind], tmp_path / "gallery"
    build(folder, base, gallery, Console(quiet=True))
    found, model = own_parts(gallery, base)
    queries = tmp_path / "queries.jsonl"
    pictures = load_pictures(folder)
    labels = pictures.classes or [pictures.identifier(item) for item in range(len(pictures))]
    lines = [{"image": str(path), "label": label} for path, label in zip(pictures.paths, labels)]
    queries.write_text("\n".join(map(json.dumps, lines)))
    config = Config.model_validate({"base": base, "gallery": gallery, "device": "cpu"})
    own = own_queries(queries, found, model, config)
    assert len(own.records) == len(files()) and not own.refused
    image = model.encoders["image"]
    prepared = [image.prepare(record.value) for record in own.records]
    seen = image.encode(image.collate(prepared, len(prepared))).numpy()
    assert np.abs(seen - found.features(np.arange(len(found)))).max() < 1e-3  # stored in half precision
    row = run_records(own.records, own.labels, config, ["frozen"])[0]
    assert (row.labels, row.r1, row.map) == (len(files()), 100.0, 100.0)


def test_a_folder_keeps_files_shapes_and_sketches(folders: tuple[Path, Path]) -> None:
    data = load_folder(folders[0])
    assert (data.noun, data.side) == ("pictures", SIDE)
    sizes = {}
    for item in range(len(data)):
        name, height, width = data.hexcodes[item], *data.colour[item].shape[:2]
        sizes[name] = (width, height)
        assert data.sketch(item).shape == data.colour[item].shape
        if name != "large.png":  # over the limit of a query: scaled as a client's would be
            assert data.content(item) == files()[name]
    assert len(files()["large.png"]) > 512 << 10 >= len(data.content(data.hexcodes.index("large.png")))
    assert [sizes[f"shape {w}x{h}.png"] for w, h in SHAPES] == [
        (96, 96), (149, 112), (112, 149), (60, 80), (1, 200), (1735, 87), (33, 7),
    ]  # fmt: skip
    assert sizes["turn 1.jpg"] == (120, 90) and sizes["turn 6.jpg"] == (90, 120)


@pytest.mark.parametrize("mode", ["squash", "shortest", "longest"])
def test_what_shifts_start_from_is_prepared_like_its_file(folders: tuple[Path, Path], mode: str) -> None:
    data, to = load_folder(folders[0]), Preprocess((64, 64), resize_mode=mode, fill_color=255)  # type: ignore[arg-type]
    for item in range(len(data)):
        small, whole = prepare(data.colour[item], to).astype(int), prepare(data.content(item), to).astype(int)
        assert np.abs(small - whole).mean() < 6, data.hexcodes[item]


def test_a_query_is_the_shifted_picture_at_its_own_shape(folders: tuple[Path, Path]) -> None:
    data = load_folder(folders[0])
    for shift in ("clean", "noise", "sketch", "blur", "pixelate", "jpeg"):
        for index in range(12):
            item = make_query(data, 3, Phase(shift, "image", (shift,), 12), index)
            place = data.labels.index(item.label)
            assert np.asarray(Image.open(io.BytesIO(item.value))).shape == data.colour[place].shape


def squares(n: int, side: int = SIDE) -> EmojiSet:
    rng = np.random.default_rng(0)
    colour, line = (rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8) for _ in range(2))
    names = tuple(f"thing {item}" for item in range(n))
    return EmojiSet(colour, line, names, names, names, names, "drawn by a test")


def test_nothing_changes_for_emoji() -> None:
    """Squares of the tower's side: a file, its pixels and the tower's input are one; queries are as ever."""
    data, to = squares(6), Preprocess((SIDE, SIDE), resize_mode="squash")
    assert (data.noun, data.side) == ("emoji", SIDE)
    for item in range(6):
        wanted = data.colour[item].transpose(2, 0, 1)
        for content in (data.content(item), png(data.colour[item])):
            np.testing.assert_array_equal(prepare(content, to), wanted)
    for shift in ("clean", "sketch", "noise"):
        phase = Phase(shift, "image", (shift,), 6)
        for index in range(6):
            found, sample = make_query(data, 5, phase, index), f"{shift}/{index}"
            item = data.labels.index(found.label)
            look = (data.line if shift == "sketch" else data.colour)[item]
            picture = jitter(look, 1.0, generator(5, sample, "jitter"))
            if shift == "noise":
                noise = PICTURE_SHIFTS[shift]
                picture = noise.apply(picture, noise.amount, generator(5, sample, shift))
            assert found.value == png(picture)


@pytest.fixture(scope="module")
def fitted(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FolderSet]:
    data, folder = load_folder(folders[0]), tmp_path_factory.mktemp("fitted") / "base"
    fit_open_clip_base(folder, data, 16, 5, config=QUICK)
    return folder, data


def test_a_base_is_fitted_and_measured_with_what_it_serves(fitted: tuple[Path, FolderSet]) -> None:
    """Means and the clean reference of drift and evidence come from `prepare` of files and shifts."""
    found, data = load_base(fitted[0]), fitted[1]
    image = found.encoders["image"]

    def seen(contents: list[bytes] | list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        rows = [image.prepare(content) for content in contents]
        return image.encode(image.collate(rows, len(rows))).numpy()  # type: ignore[no-any-return]

    gallery = seen([data.content(item) for item in range(len(data))])
    assert found.head.means["image"].numpy() == pytest.approx(gallery.mean(0), abs=1e-5)
    queries = [
        jittered(data, [item], 5, f"{PURPOSE} {copy}")[0]
        for item, copy in drawn_queries(len(data), 5, PURPOSE)
    ]
    assert found.reference["image"].features == pytest.approx(seen(queries), abs=1e-5)


def rewritten(base: Path, folder: Path, **changes: object) -> Path:
    """The base with another manifest: None takes a key out of `preprocess`, or the whole of it."""
    folder.mkdir()
    for path in base.rglob("*"):
        if path.is_file():
            (folder / path.relative_to(base)).parent.mkdir(parents=True, exist_ok=True)
            (folder / path.relative_to(base)).write_bytes(path.read_bytes())
    document = json.loads((folder / MANIFEST).read_text())
    document["preprocess"] = {**document["preprocess"], **changes} if changes else None
    if document["preprocess"] is None:
        del document["preprocess"]
    (folder / MANIFEST).write_text(json.dumps(document))
    return folder


def test_the_manifest_says_how_pictures_are_prepared(fitted: tuple[Path, FolderSet], tmp_path: Path) -> None:
    base = fitted[0]
    written = json.loads((base / MANIFEST).read_text())["preprocess"]
    own = load_base(base).encoders["image"].preprocess  # type: ignore[attr-defined]
    assert written == json.loads(json.dumps(own.document()))
    other = load_base(rewritten(base, tmp_path / "other", resize_mode="squash")).encoders["image"]
    picture = np.asarray(drawn(1, (40, 20)))
    wanted = prepare(picture, Preprocess((16, 16), resize_mode="squash"))
    np.testing.assert_array_equal(other.prepare(picture), wanted)
    older = load_base(rewritten(base, tmp_path / "older")).encoders["image"]
    np.testing.assert_array_equal(older.prepare(picture), load_base(base).encoders["image"].prepare(picture))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resize_mode": "stretch"}, "'stretch'.*which this version cannot do: build the base again"),
        ({"interpolation": "lanczos"}, "cannot do"),
        ({"size": [16, 16, 16]}, "cannot do"),
        ({"size": ["a", 16]}, "cannot do"),
        ({"mean": 3}, "cannot do"),
        ({"crop": 0.9}, "cannot do"),
        ({"size": [24, 24]}, r"prepares pictures of \(24, 24\), its tower takes \(16, 16\)"),
    ],
)
def test_a_preparation_that_is_not_known_is_refused(
    fitted: tuple[Path, FolderSet], tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ArtifactError, match=message):
        load_base(rewritten(fitted[0], tmp_path / "changed", **changes))
