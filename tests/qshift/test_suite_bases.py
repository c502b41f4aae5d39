"""Tasks from made-up data, and what is made of a task: base and gallery, once."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.errors import ArtifactError, ConfigError, GalleryError
from encoders.base_model import load_base
from encoders.head import HashHead
from encoders.scratch import ScratchConfig
from index.gallery import VersionedGallery
from qshift.benchmarks.suite.bases import RECIPES, contents_hash, prepare, stamp
from qshift.benchmarks.suite.fingerprint import Fingerprints
from qshift.benchmarks.suite.picture_base import _clean_queries, cropped, fit_picture_base
from qshift.benchmarks.suite.tasks import DEVELOP, TASKS, _matched, balanced, drawn, load_task, squares
from qshift.benchmarks.suite.word_tasks import BASE_OF_FASHION
from qshift.benchmarks.tasks.types import Picture, Sample, Task
from qshift.data.emoji import EmojiSet
from qshift.recipes.encode import BATCH, Progress
from qshift.recipes.gallery import build_gallery
from qshift.recipes.measure import Step, measure
from qshift.recipes.open_clip_base import fit_open_clip_base
from qshift.recipes.packaged import resize_input

QUICK = ScratchConfig(
    image_size=16, patch=8, width=16, heads=2, image_layers=1, text_layers=1, embed=16, context=16, steps=2,
    batch=16, warm_up=1,
)  # fmt: skip
COLOURS = ("red", "green", "blue", "white")


def picture(seed: int, side: int = 16) -> Picture:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def samples(n: int, labels: int = 4) -> list[Sample]:
    return [
        Sample(
            f"item {i}", picture(i), COLOURS[i % labels], COLOURS[i % labels], f"{COLOURS[i % labels]} {i}"
        )
        for i in range(n)
    ]


def task(n: int = 24) -> Task:
    gallery = samples(n)
    return Task("made/up", "image", "image", gallery, {"clean": gallery}, "tiny", True)


class Recipes:
    """A recipe that trains a tiny model from scratch, and counts."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def __call__(self, task: Task, folder: Path, bits: int, progress: Progress | None) -> None:
        self.calls.append((task.name, bits))
        colour = np.stack([sample.content for sample in task.gallery])
        names = tuple(sample.title for sample in task.gallery)
        data = EmojiSet(colour, colour, names, names, names, names, "drawn by a test")
        fit_open_clip_base(folder, data, bits, 0, progress, QUICK)


def test_base_and_gallery_are_made_once(tmp_path: Path) -> None:
    recipe, made = Recipes(), task()
    first = prepare(made, tmp_path, bits=8, recipes={"tiny": recipe})
    assert first.base == tmp_path / "base-tiny-8-v1"
    assert first.gallery.name.startswith("gallery-made-up-")
    base = load_base(first.base)
    gallery = VersionedGallery.load(first.gallery, base_version=base.version)
    assert [gallery.identifier(key) for key in range(24)] == [sample.key for sample in made.gallery]
    assert [gallery.labels_of(key) for key in range(24)] == [(sample.label,) for sample in made.gallery]
    assert gallery.display(3).title == "white 3"
    image = base.encoders["image"]
    expected = image.encode(image.collate([image.prepare(s.content) for s in made.gallery], 24)).numpy()
    assert gallery.features(gallery.keys()) == pytest.approx(expected, abs=2e-3)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert prepare(made, tmp_path, bits=8, recipes={"tiny": recipe}) == first
    assert recipe.calls == [("made/up", 8)]
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}

    # Other data give another gallery; a damaged base is fitted again and the gallery with it.
    other = replace(made, gallery=samples(25))
    assert prepare(other, tmp_path, bits=8, recipes={"tiny": recipe}).gallery != first.gallery
    assert len(recipe.calls) == 1
    (first.base / "head.safetensors").write_bytes(b"torn")
    again = prepare(made, tmp_path, bits=8, recipes={"tiny": recipe})
    assert len(recipe.calls) == 2 and again == first
    VersionedGallery.load(again.gallery, base_version=load_base(again.base).version)


def test_bases_of_off_line_adapters_are_made_again_when_their_code_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert stamp("pictures-usps") == "v1"
    assert stamp("emoji") == "v3"  # composed queries were not measured, and texts learned
    assert stamp(BASE_OF_FASHION) == "v4"  # nor here; its pictures had a margin in 0.2.0
    assert stamp("captions") == "v2"  # texts learned
    before = stamp("chain-couple")
    assert before == stamp("chain-psca") != "v1"
    followed = Fingerprints()
    followed.of(("qshift.recipes.domains.base",), ())
    parts = {
        "qshift.recipes.domains.couple", "qshift.recipes.finish", "qshift.recipes.measure",
        "adapters.offline.couple_config", "adapters.offline.couple_trust", "adapters.offline.relation_flow",
        "adapters.diffusion", "adapters.lloyd", "encoders.base_writing",
    }  # fmt: skip
    assert parts <= {name for name, known in followed._known.items() if known is not None}
    monkeypatch.setattr("qshift.benchmarks.suite.fingerprint.PACKAGES", frozenset(("qshift", "encoders")))
    assert stamp("chain-couple") != before


def test_text_galleries(tmp_path: Path) -> None:
    made = task()
    texts = [replace(sample, content=sample.title) for sample in made.gallery]
    words = replace(made, name="made/words", gallery=texts, gallery_modality="text")
    recipe = Recipes()
    prepare(made, tmp_path, bits=8, recipes={"tiny": recipe})
    ready = prepare(words, tmp_path, bits=8, recipes={"tiny": recipe})
    assert len(recipe.calls) == 1
    base, gallery = load_base(ready.base), VersionedGallery.load(ready.gallery)
    text = base.encoders["text"]
    expected = text.encode(text.collate([text.prepare(s.content) for s in texts], 24)).numpy()
    assert gallery.features(gallery.keys()) == pytest.approx(expected, abs=2e-3)
    with pytest.raises(GalleryError, match="not vector items"):
        build_gallery(base, [], [], [], [], modality="vector")


def test_a_failing_recipe_leaves_nothing(tmp_path: Path) -> None:
    def fails(task: Task, folder: Path, bits: int, progress: Progress | None) -> None:
        raise ConfigError("too few")

    with pytest.raises(ConfigError, match="too few"):
        prepare(task(), tmp_path, recipes={"tiny": fails})
    with pytest.raises(ConfigError, match="'tiny': expected one of emoji, noto"):
        prepare(task(), tmp_path, recipes={"noto": fails, "emoji": fails})
    assert list(tmp_path.iterdir()) == []


def test_hash_of_the_contents_sees_all_of_them() -> None:
    made = task()
    assert contents_hash(made) == contents_hash(task())
    first = made.gallery[0]
    changes = ({"key": "x"}, {"label": "x"}, {"title": "x"}, {"content": picture(99)}, {"content": "text"})
    hashes = {contents_hash(replace(made, gallery=[replace(first, **change)])) for change in changes}
    assert len(hashes | {contents_hash(replace(made, gallery=[first]))}) == 6
    pair = replace(made, gallery=[replace(first, content=(picture(1), "text"))])
    assert contents_hash(pair) != contents_hash(replace(made, gallery=[replace(first, content=picture(1))]))


def test_a_copy_leaves_its_own_item_out() -> None:
    """Against a loop, in a gallery smaller than the shortlist."""
    rng = np.random.default_rng(3)
    gallery = rng.standard_normal((80, 16)).astype(np.float32)
    gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    own = np.arange(BATCH)[::-1].copy()
    weight = rng.standard_normal((24, 16)).astype(np.float32)
    hashing = HashHead(weight, np.zeros(24, np.float32), {"image": gallery.mean(0)})
    constants, reference = measure(gallery[own], gallery, hashing, "image", Step(1e-3, 0.1), own=own)
    codes = [(weight @ (g - gallery.mean(0)) >= 0).tolist() for g in gallery]
    near, nearest = [], []
    for item in own.tolist():
        others = [i for i in range(80) if i != item]
        nearest.append(min(sum(a != b for a, b in zip(codes[item], codes[i])) for i in others))
        near.append(gallery[max(others, key=lambda i: float(gallery[i] @ gallery[item]))])
    assert reference.nearest.tolist() == nearest
    gap = np.linalg.norm(gallery[own].mean(0) - np.mean(near, 0))
    assert constants.source_gap == pytest.approx(float(gap), abs=1e-5)
    with_itself, _ = measure(gallery[own], gallery, hashing, "image", Step(1e-3, 0.1))
    assert with_itself.source_gap == pytest.approx(0, abs=1e-5)


def test_texts_as_the_gallery() -> None:
    rng = np.random.default_rng(4)
    items = rng.standard_normal((BATCH, 8)).astype(np.float32)
    means = {"image": items.mean(0), "text": items.mean(0) + 1}
    hashing = HashHead(np.eye(8, dtype=np.float32), np.zeros(8, np.float32), means)  # type: ignore[arg-type]
    found = [
        measure(items, items, hashing, "image", Step(1, 1), gallery_modality=modality)[1].nearest
        for modality in ("image", "text")
    ]
    assert found[0].tolist() == [0] * BATCH and found[1].max() > 0


def test_clean_queries_are_gallery_pictures_and_then_crops() -> None:
    pictures = [picture(i, 24) for i in range(300)]
    items, queries = _clean_queries(pictures)
    assert len(items) == len(queries) == 384 and len(set(items[:300])) == 300
    assert all((queries[row] == pictures[items[row]]).all() for row in range(300))
    equal = sum((queries[row] == pictures[items[row]]).all() for row in range(300, 384))
    assert equal <= 2  # a crop may keep all but a thousandth of a side
    assert items == _clean_queries(pictures)[0]


def test_crops_keep_the_size_and_need_no_margin() -> None:
    flat = np.full((30, 30, 3), 77, np.uint8)
    assert (cropped(flat, np.random.default_rng(0)) == 77).all()
    ramp = np.repeat(np.linspace(0, 255, 60, dtype=np.uint8)[None, :, None], 60, 0).repeat(3, 2)
    for seed in range(20):
        row = cropped(ramp, np.random.default_rng(seed))[0, :, 0].astype(int)
        assert 0.85 * 255 - 12 <= row[-1] - row[0] <= 255 and (np.diff(row) >= 0).all()


def test_too_few_or_uneven_pictures_are_refused(tmp_path: Path) -> None:
    for gallery, match in (
        (samples(63), "63 gallery pictures, too few for 64 bits"),
        ([*samples(64), Sample("x", picture(1, 20), "red")], "squares of one size"),
        ([Sample(str(i), picture(i)[:12], "red") for i in range(64)], "squares of one size"),
    ):
        with pytest.raises(ConfigError, match=match):
            fit_picture_base(replace(task(), gallery=gallery), tmp_path / "base")
    assert list(tmp_path.iterdir()) == []


def test_resized_input_needs_a_description(tmp_path: Path) -> None:
    for text in (None, "{", '{"model_cfg": 3}', "[]"):
        if text is not None:
            (tmp_path / "open_clip_config.json").write_text(text)
        with pytest.raises(ArtifactError, match=r"open_clip_config.json cannot be read"):
            resize_input(tmp_path, 80)


def test_draws_are_keyed_and_whole() -> None:
    everything = samples(40)
    taken, rest = drawn(everything, 15, "a")
    assert len(taken) == 15 and sorted(taken + rest, key=everything.index) == everything
    assert taken == drawn(everything, 15, "a")[0] != drawn(everything, 15, "b")[0]
    taken, rest = balanced(everything[:-1], 9, "a")
    assert [sum(s.label == colour for s in taken) for colour in COLOURS] == [9] * 4 and len(rest) == 3
    with pytest.raises(ConfigError, match="10 samples are to be drawn, there are 9"):
        balanced(everything[:-1], 10, "a")


def test_squares_stretch() -> None:
    wide = np.zeros((2, 4, 3), np.uint8)
    wide[:, 2:] = 200
    (found,) = squares([Sample("x", wide, "red")], 4)
    assert found.content.shape == (4, 4, 3) and found.content[:, 0].max() < 100 < found.content[:, 3].min()


def test_queries_of_another_vendor_take_the_gallery_s_labels() -> None:
    gallery = [Sample("2764-FE0F", "ours", "heart", "g"), Sample("1F600", "ours", "1F5FF", "g")]
    queries = [Sample("2764", "theirs", "2764", "h"), Sample("1F4A9", "theirs", "x", "h")]
    assert _matched(queries, gallery) == [Sample("2764-FE0F", "theirs", "heart", "g")]


def archive(path: Path, classes: tuple[str, ...], each: int, side: int) -> None:
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as opened:
        for number in range(each * len(classes)):
            buffer = io.BytesIO()
            Image.fromarray(picture(number, side)).save(buffer, "PNG")
            opened.writestr(f"{classes[number % len(classes)]}/{number:03}.png", buffer.getvalue())


@pytest.mark.parametrize("name", ["pacs/photo-art", "pacs/art-photo", "office/dslr-webcam"])
def test_domains_from_a_data_folder(tmp_path: Path, name: str) -> None:
    each = 104 if name.startswith("pacs") else 20
    for stem in ("pacs/photo", "pacs/art_painting", "office_caltech10/dslr", "office_caltech10/webcam"):
        archive(tmp_path / f"{stem}.zip", ("dog", "house"), each, 8)
    found = load_task(name, tmp_path, tmp_path / "cache")
    shift = {"pacs/photo-art": "art", "pacs/art-photo": "photo", "office/dslr-webcam": "shift"}[name]
    gallery, clean = found.gallery, found.pools["clean"]
    assert list(found.pools) == ["clean", shift] and found.name == name and not found.retaken
    assert len(gallery) + len(clean) == len(found.pools[shift]) == 2 * each
    assert len(gallery) == (200 if name.startswith("pacs") else 32)
    assert not {sample.key for sample in gallery} & {sample.key for sample in clean}
    assert all(sample.content.shape == (80, 80, 3) for sample in [*gallery, *clean, *found.pools[shift]])
    assert found.base in RECIPES and not (tmp_path / "cache").exists()
    again = load_task(name, tmp_path, tmp_path / "cache")
    assert [sample.key for sample in again.gallery] == [sample.key for sample in gallery]


def test_missing_data_are_named(tmp_path: Path) -> None:
    expected = r"needs DATA/pacs/photo.zip, .*: pass --data, see docs/reference/data.md"
    with pytest.raises(ConfigError, match=expected):
        load_task("pacs/photo-art", None, tmp_path)
    archive(tmp_path / "pacs/photo.zip", ("dog",), 1, 8)
    with pytest.raises(ConfigError, match=r"pacs/art-photo needs DATA/pacs/art_painting.zip: pass"):
        load_task("pacs/art-photo", tmp_path, tmp_path)
    for name in ("office/amazon-webcam", "digits/mnist-usps", "emoji/noto-twemoji", "emoji/openmoji-noto"):
        expected = rf"{name} needs DATA/.*: pass --data, see docs/reference/data.md"
        with pytest.raises(ConfigError, match=expected):
            load_task(name, tmp_path, tmp_path)
    with pytest.raises(ConfigError, match="no task 'pacs': expected one of emoji/picture-picture"):
        load_task("pacs", tmp_path, tmp_path)


def test_names_and_splits() -> None:
    pairs = [name for name in TASKS if name.startswith("office/")]
    assert len(pairs) == len(set(pairs)) == 12
    assert set(TASKS) >= DEVELOP
    assert {"emoji/picture-picture", "emoji/text-picture", "digits/mnist-usps", "pacs/art-photo"} <= set(
        TASKS
    )


@pytest.mark.slow
def test_a_picture_base_of_the_packaged_tower(tmp_path: Path) -> None:
    gallery = [Sample(str(i), picture(i, 48), COLOURS[i % 4]) for i in range(70)]
    made = replace(task(), gallery=gallery, base="pictures-mnist")
    calls: list[tuple[int, int, str]] = []
    ready = prepare(made, tmp_path, lambda *call: calls.append(call))
    base = load_base(ready.base)
    assert (base.bits, base.width, set(base.encoders)) == (64, 1280, {"image", "sequence"})
    image = base.encoders["image"]
    assert image.prepare(gallery[0].content).shape == (3, 48, 48)
    rows = image.encode(image.collate([image.prepare(s.content) for s in gallery], 70)).numpy()
    assert base.head.means["image"].numpy() == pytest.approx(rows.mean(0), abs=1e-4)
    assert len(base.reference["image"].features) == len(base.calibration["image"].features) == 384
    assert base.memory["image"].targets.shape == (70, 1280)
    for content, target in zip(base.memory["image"].contents[:5], base.memory["image"].targets):
        place = int((rows @ target).argmax())
        assert rows[place] == pytest.approx(target, abs=1e-4)
        assert not (np.asarray(content) == gallery[place].content).all()
    fitted = [call for call in calls if call[2] != "gallery"]
    assert [call[0] for call in fitted] == list(range(1, fitted[0][1] + 1))


@pytest.mark.slow
def test_a_base_of_named_pictures(tmp_path: Path) -> None:
    gallery = [Sample(str(i), picture(i, 32), str(i), "g", f"{COLOURS[i % 4]} thing {i}") for i in range(130)]
    made = replace(task(), gallery=gallery, base="noto", extra={"attribution": "drawn by a test"})
    base = load_base(prepare(made, tmp_path).base)
    assert (base.name, base.width, base.provenance["pictures"]) == ("noto", 128, "drawn by a test")
    image, text = base.encoders["image"], base.encoders["text"]
    assert image.prepare(gallery[0].content).shape == (3, 32, 32)
    rows = image.encode(image.collate([image.prepare(s.content) for s in gallery], 130)).numpy()
    assert set(base.memory) == {"image", "text"}
    titles = [sample.title for sample in gallery]
    for content, target in zip(base.memory["text"].contents, base.memory["text"].targets, strict=True):
        assert rows[titles.index(content)] == pytest.approx(target, abs=1e-4)
    assert (base.memory["image"].targets == base.memory["text"].targets).all()
    assert base.memory["image"].contents[0].shape == (32, 32, 3)
    assert len(base.memory["text"].contents) == 128 and text.width == 128
    assert base.vocabulary["thing"] == 3 * 130 and base.vocabulary["red"] == 3 * 33
    assert base.vocabulary["emoji"] == base.vocabulary["picture"] == 130
