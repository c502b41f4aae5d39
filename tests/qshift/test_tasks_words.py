"""Tasks with words: readers on made-up files, and the compositional digits against their definition."""

import csv
import gzip
import io
import json
import sys
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.errors import ConfigError
from qshift.benchmarks.tasks import coco, composition, fashion, published

KINDS = ("Shirts", "Belts", "Caps")


def jpeg(colour: tuple[int, int, int], size: tuple[int, int] = (60, 80)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def write_fashion(folder: Path, n: int = 60, backwards: bool = False) -> Path:
    """n products; every third shares its title with the product before it."""
    folder.mkdir(parents=True, exist_ok=True)
    titles = [f"Puma  Shirt {i - (i % 3 == 2)}" if i % 3 != 2 else f"puma shirt {i - 1}" for i in range(n)]
    rows = [(f"{1000 + i}.jpg", titles[i], KINDS[i % 3]) for i in range(n)]
    with (folder / fashion.TABLE).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("file", "text", "articleType"))
        writer.writerows(rows[::-1] if backwards else rows)
    with zipfile.ZipFile(folder / fashion.ARCHIVE, "w") as archive:
        for i, (name, _, _) in enumerate(rows):
            archive.writestr(name, jpeg((i * 4 % 256, 10, 200), (40, 20) if i % 2 else (60, 80)))
    return folder


def test_fashion_parts_share_no_product_and_no_title(tmp_path: Path) -> None:
    data = fashion.read_products(write_fashion(tmp_path), gallery=8, queries=4)
    parts = (data.fit, data.gallery, data.queries, data.clean)
    everyone = [p for part in parts for p in part]
    assert [len(part) for part in parts] == [24, 8, 4, 4]
    assert len({p.key for p in everyone}) == 40
    assert len({" ".join(p.text.lower().split()) for p in everyone}) == 40
    again = fashion.read_products(write_fashion(tmp_path, backwards=True), gallery=8, queries=4)
    assert (again.fit, again.gallery) == (data.fit, data.gallery)
    assert again.again == data.again
    other = fashion.read_products(tmp_path, gallery=8, queries=4, seed=1)
    assert other.fit != data.fit


def test_fashion_trains_on_every_picture_of_its_titles_and_on_no_other(tmp_path: Path) -> None:
    data = fashion.read_products(write_fashion(tmp_path), gallery=8, queries=4)
    titles = [{" ".join(p.text.lower().split()) for p in part} for part in (data.fit, data.again)]
    assert titles[1] <= titles[0]
    assert not {p.key for p in data.again} & {p.key for p in data.fit}
    with (tmp_path / fashion.TABLE).open(newline="") as file:
        rows = [" ".join(row["text"].lower().split()) for row in csv.DictReader(file)]
    assert len(data.fit) + len(data.again) == sum(row in titles[0] for row in rows)


def test_fashion_samples(tmp_path: Path) -> None:
    data = fashion.read_products(write_fashion(tmp_path), gallery=8, queries=4)
    words, looks = fashion.texts(data.gallery), fashion.pictures(data, data.gallery)
    assert [s.label for s in words] == [s.label for s in looks] == [p.key for p in data.gallery]
    kinds = fashion.pictures(data, data.gallery, by_kind=True)
    assert [s.label for s in kinds] == [s.group for s in kinds] == [p.kind for p in data.gallery]
    for sample in looks:
        item = int(sample.key) - 1000
        # 60 x 80 stays as it is, 40 x 20 becomes 80 x 40: without a margin, which the base adds if it wants.
        assert sample.content.shape == ((40, 80, 3) if item % 2 else (80, 60, 3))
        assert sample.content.dtype == np.uint8
        assert (np.abs(sample.content.astype(int) - (item * 4 % 256, 10, 200)).max(2) < 12).all()


def test_kinds_that_are_rare_in_the_gallery_are_not_asked_for() -> None:
    def product(i: int, kind: str) -> fashion.Product:
        return fashion.Product(str(i), f"t{i}", kind)

    gallery = [product(i, "Caps") for i in range(5)] + [product(i, "Belts") for i in range(5, 9)]
    queries = [product(20, "Caps"), product(21, "Belts"), product(22, "Shirts")]
    assert [p.key for p in fashion.answerable(queries, gallery)] == ["20"]


def test_fashion_errors_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"pairs\.csv"):
        fashion.read_products(tmp_path / "nothing")
    folder = write_fashion(tmp_path)
    with pytest.raises(ConfigError, match="40 distinct titles: expected more than 1524"):
        fashion.read_products(folder, queries=0)
    data = fashion.read_products(folder, gallery=8, queries=4)
    with zipfile.ZipFile(folder / fashion.ARCHIVE, "w") as archive:
        archive.writestr(f"{data.fit[0].key}.jpg", b"no picture")
    for product in data.fit[:2]:
        with pytest.raises(ConfigError, match=r"images\.zip"):
            data.pictures([product])
    (folder / fashion.TABLE).write_text("file,title\n1.jpg,a\n")
    with pytest.raises(ConfigError, match="columns"):
        fashion.read_products(folder)


def write_coco(folder: Path, n: int = 12) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pairs = [
        {"image_id": 900 + i, "captions": [f"pair {i}  caption {c}" for c in range(5)]} for i in range(2)
    ]
    (folder / coco.PAIRS).write_text(json.dumps({"pairs": pairs}))
    with gzip.open(folder / coco.TEXTS, "wt") as file:
        for i in range(n):
            for c in range(6 if i == 0 else 5):
                caption = "The same everywhere." if c == 4 and i in (3, 4) else f"picture {i} caption {c}"
                caption = caption.lower().rstrip(".") if i == 4 else caption
                file.write(json.dumps({"image_id": i, "caption": caption}) + "\n")
        file.write(json.dumps({"image_id": 77, "caption": "a picture with one caption"}) + "\n")
        # Also in the first file: its captions are there once.
        for c in range(5):
            file.write(json.dumps({"image_id": 900, "caption": f"pair 0 caption {c}"}) + "\n")
    return folder


def test_one_caption_asks_and_the_other_four_answer(tmp_path: Path) -> None:
    data = coco.read_captions(write_coco(tmp_path), pictures=7, clean=5)
    keys = [c.key for c in (*data.asked, *data.clean)]
    # 12 pictures and 2 pairs, without the two that share a caption and the one that has a single caption
    assert sorted(keys) == sorted([str(i) for i in range(12) if i not in (3, 4)] + ["900", "901"])
    questions, items = coco.queries(data.asked), coco.gallery(data.asked)
    assert len(questions) == 7 and len(items) == 28
    assert len({s.key for s in items}) == 28
    found = Counter(s.label for s in items)
    for question in questions:
        assert found[question.label] == 4
        assert question.content not in [s.content for s in items]
        own = {s.content for s in items if s.label == question.label} | {question.content}
        prefix = (
            f"pair {int(question.label) - 900}" if len(question.label) > 2 else f"picture {question.label}"
        )
        assert own == {f"{prefix} caption {c}" for c in range(5)}
    assert len({question.content[-1] for question in questions}) > 1  # not always the first
    assert coco.read_captions(tmp_path, 7, 5) == data
    assert coco.read_captions(tmp_path, 7, 5, seed=1) != data


def test_coco_errors_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the captions"):
        coco.read_captions(tmp_path)
    write_coco(tmp_path)
    with pytest.raises(ConfigError, match=r"12 pictures .* at least 13"):
        coco.read_captions(tmp_path, 7, 6)
    whole = (tmp_path / coco.TEXTS).read_bytes()
    (tmp_path / coco.TEXTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match="damaged"):
        coco.read_captions(tmp_path, 2, 2)
    (tmp_path / coco.PAIRS).write_text("[]")
    with pytest.raises(ConfigError, match="damaged"):
        coco.read_captions(tmp_path, 2, 2)


@pytest.fixture(scope="module")
def made() -> composition.Composition:
    return composition.make_composition()


def test_there_are_240_scenes_in_four_parts(made: composition.Composition) -> None:
    assert len(set(composition.SCENES)) == 240 == len({scene.label for scene in composition.SCENES})
    for part, each in ((made.fit, 20), (made.clean, 4), (made.gallery, 6), (made.queries, 6)):
        assert set(Counter(shown.scene for shown in part).values()) == {each}
        assert len({shown.key for shown in part}) == len(part) == 240 * each
    captions = composition.captions()
    assert len(captions) == 720 == len({sample.content for sample in captions})
    assert len(composition.captions(templates=1)) == 240
    seven = composition.Scene(7, "red", "top left")
    assert seven.captions()[0] == "a photo of a red seven in the top left"


def test_parts_use_different_scans() -> None:
    # Every scan has its own amount of ink in one pixel, so that it can be told from the picture.
    n = 20
    scans = []
    for _ in range(10):
        own = np.zeros((n, 8, 8), np.uint8)
        own[:, 2:6, 2:6] = 16
        own[:, 0, :] = np.arange(n)[:, None] * 16 // n
        own[:, 7, :] = np.arange(n)[:, None] % 2 * 7 + 1
        assert len({scan.tobytes() for scan in own}) == n
        scans.append(own)
    made = composition.make_composition(scans)
    corner = composition.Scene(3, "black", "bottom right")
    seen: dict[str, set[bytes]] = {part: set() for part in composition.PARTS}
    for part in composition.PARTS:
        for shown in getattr(made, part):
            if shown.scene == corner:
                ink = 255 - shown.picture.min(2)
                rows, columns = np.nonzero(ink)
                window = ink[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
                seen[part].add(window.tobytes())
    for part in seen:
        for other in seen:
            assert part == other or not seen[part] & seen[other]
    assert [len(seen[part]) for part in composition.PARTS] == [10, 2, 4, 4]


def test_a_picture_is_its_scan_in_colour_at_its_place() -> None:
    scan = np.zeros((8, 8), np.uint8)
    scan[2:6, 2:6] = 16
    corners = set()
    for scene in composition.SCENES[:24]:
        draw = np.random.default_rng(len(corners) + 5)
        picture = composition.paint(scan, scene, draw)
        assert picture.shape == (32, 32, 3) and picture.dtype == np.uint8
        solid = np.argwhere((picture == composition.COLOURS[scene.colour]).all(2))
        top, left = solid.min(0)
        rows, columns = composition.PLACES[scene.place]
        # Ink in the middle of the quarter, which itself is off by at most a pixel and never outside.
        assert abs(top - (16 * rows + 5)) <= 1 and abs(left - (16 * columns + 5)) <= 1
        middle = picture[16 * rows + 6 : 16 * rows + 10, 16 * columns + 6 : 16 * columns + 10]
        assert (middle == composition.COLOURS[scene.colour]).all()
        others = np.ones((32, 32), bool)
        others[max(16 * rows - 1, 0) : 16 * rows + 17, max(16 * columns - 1, 0) : 16 * columns + 17] = False
        assert (picture[others] == 255).all()
        corners.add((scene.place, int(top - 16 * rows), int(left - 16 * columns)))
    assert len(corners) > 4  # it does move


def test_one_seed_gives_the_same_pixels(made: composition.Composition) -> None:
    again, other = composition.make_composition(), composition.make_composition(seed=1)
    same = [bool((a.picture == b.picture).all()) for a, b in zip(made.gallery, again.gallery)]
    assert all(same)
    assert not all(bool((a.picture == b.picture).all()) for a, b in zip(made.gallery, other.gallery))


def test_a_composed_query_changes_one_attribute(made: composition.Composition) -> None:
    asked = composition.composed(made.queries)
    shown = {item.picture.tobytes(): item.scene for item in made.queries}
    scenes = {scene.label: scene for scene in composition.SCENES}
    assert len(asked) == 720 == len({sample.key for sample in asked})
    changes = Counter()
    for sample in asked:
        picture, text = sample.content
        before, after = shown[picture.tobytes()], scenes[sample.label]
        differing = [i for i in range(3) if before.phrases()[i] != after.phrases()[i]]
        assert len(differing) == 1 and text == after.phrases()[differing[0]]
        assert sample.group == composition.WORDS[after.digit]
        changes[differing[0]] += 1
    assert changes == {0: 240, 1: 240, 2: 240}


def test_a_clip_is_one_picture_taken_four_times(made: composition.Composition) -> None:
    clips = composition.sequences(made.queries)
    assert set(Counter(clip.label for clip in clips).values()) == {4} and len(clips) == 960
    assert len({clip.key for clip in clips}) == 960
    for clip in clips[::97]:
        assert len(clip.content) == 4 and len({frame.tobytes() for frame in clip.content}) == 4
        assert all(frame.shape == (32, 32, 3) for frame in clip.content)
        item = next(shown for shown in made.queries if f"{shown.key} clip" == clip.key)
        assert item.scene.label == clip.label
        for frame in clip.content:  # as much ink as the picture, within the drawn scale
            ink = (255.0 - frame).sum() / (255.0 - item.picture).sum()
            assert 0.6 < ink < 1.5


def test_missing_digits_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ConfigError, match="scikit-learn"):
        composition.read_scans()


def write_corrupted(root: Path) -> Path:
    images = [
        {
            "filename": f"{i}.png",
            "split": "test" if i else "train",
            "sentences": [{"raw": f" dog {i} {c} "} for c in range(6)] + [{"raw": " "}],
        }
        for i in range(4)
    ]
    root.mkdir(parents=True, exist_ok=True)
    (root / published.CAPTIONS).write_text(json.dumps({"images": images, "dataset": "made up"}))
    for images_of in images:
        images_of["sentences"] = [{"raw": "a formal dog"}]
    (root / "captions-formal.json").write_text(json.dumps({"images": images}))
    for level, folder in enumerate(("clean/0", "fog/1", "fog/5")):
        path = root / "images" / folder
        path.mkdir(parents=True)
        for i in range(1, 4):
            Image.new("RGB", (9, 7), (level, i, 0)).save(path / f"{i}.png")
    return root


def test_corrupted_sets_become_domains(tmp_path: Path) -> None:
    task = published.PUBLISHED["coco-c/picture-text"](write_corrupted(tmp_path))
    assert list(task.pools) == ["clean", "fog-1", "fog-5"]
    assert (task.modality, task.gallery_modality, task.name) == ("image", "text", "coco-c/picture-text")
    assert [s.content for s in task.gallery if s.label == "2"] == [f"dog 2 {c}" for c in range(5)]
    assert len(task.gallery) == 15
    for level, pool in enumerate(task.pools.values()):
        assert [sample.label for sample in pool] == ["1", "2", "3"]
        assert [sample.content[0, 0].tolist() for sample in pool] == [[level, i, 0] for i in (1, 2, 3)]
        assert [sample.key for sample in pool[1:]] == ["2", "3"] and pool[-1].key == "3"

    turned = published.PUBLISHED["flickr-c/text-picture"](tmp_path)
    assert (turned.name, turned.modality, turned.gallery_modality) == (
        "flickr-c/text-picture",
        "text",
        "image",
    )
    assert len(turned.pools["clean"]) == 15 and len(turned.gallery) == 3
    assert {s.content for s in turned.pools["formal"]} == {"a formal dog"}
    assert [s.label for s in turned.pools["formal"]] == ["1", "2", "3"]


def test_corrupted_sets_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"captions\.json"):
        published.corrupted(tmp_path, "coco-c")
    write_corrupted(tmp_path)
    with pytest.raises(ConfigError, match="no picture of the split 'val'"):
        published.corrupted(tmp_path, "coco-c", "val")
    (tmp_path / "images/fog/5/2.png").unlink()
    with pytest.raises(ConfigError, match=r"1 of 3 pictures are missing, the first is .*2\.png"):
        published.corrupted(tmp_path, "coco-c")
    (tmp_path / "images/fog/5/2.png").write_bytes(b"\x89PNG broken")
    task = published.corrupted(tmp_path, "coco-c")  # found only when it is asked for
    with pytest.raises(ConfigError, match=r"2\.png is no whole picture"):
        task.pools["fog-5"][1]
    (tmp_path / "captions-formal.json").write_text(json.dumps({"images": []}))
    with pytest.raises(ConfigError, match="0 of the 3 pictures"):
        published.corrupted_texts(tmp_path, "coco-c")
    for document in ("{", '{"images": [{"filename": "1.png"}]}', "[]"):
        (tmp_path / published.CAPTIONS).write_text(document)
        with pytest.raises(ConfigError, match=r"captions\.json"):
            published.corrupted(tmp_path, "coco-c")


def test_products_with_several_views(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    lines = []
    for item, view in ((1, 0), (1, 1), (2, 0)):
        Image.new("RGB", (4, 4), (item, view, 0)).save(tmp_path / "images" / f"{item}_{view}.png")
        caption = "" if (item, view) == (1, 0) else f"dress\u2028{item}"  # a separator splitlines() would cut
        row = {"id": item, "file": f"{item}_{view}.png", "caption": caption, "category": "DRESSES"}
        lines.append(json.dumps(row, ensure_ascii=False))
    (tmp_path / published.ITEMS).write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    task = published.fashion_gen(tmp_path)
    assert [s.label for s in task.gallery] == ["1", "1", "2"]
    assert [s.content[0, 0].tolist() for s in task.gallery] == [[1, 0, 0], [1, 1, 0], [2, 0, 0]]
    assert [(s.label, s.content, s.group) for s in task.pools["clean"]] == [
        ("1", "dress\u20281", "DRESSES"),
        ("2", "dress\u20282", "DRESSES"),
    ]
    (tmp_path / published.ITEMS).write_text(lines[1] + '\n\n{"id": 3}\n', encoding="utf-8")
    with pytest.raises(ConfigError, match="line 3"):
        published.fashion_gen(tmp_path)
    outside = json.dumps({"id": 1, "file": "../../etc/passwd", "caption": "x"})
    (tmp_path / published.ITEMS).write_text(outside)
    with pytest.raises(ConfigError, match="leads out"):
        published.fashion_gen(tmp_path)
    (tmp_path / published.ITEMS).write_text("")
    with pytest.raises(ConfigError, match="lists no picture"):
        published.fashion_gen(tmp_path)


def test_persons_are_labels(tmp_path: Path) -> None:
    rows = []
    for number, (person, split) in enumerate(((5, "test"), (5, "test"), (6, "test"), (7, "train"))):
        path = tmp_path / "imgs" / f"{person}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 8), (person, number, 0)).save(path)
        captions = [f"person {person} in {number}", "a coat"]
        rows.append(
            {"id": person, "file_path": f"{person}/{number}.png", "captions": captions, "split": split}
        )
    (tmp_path / published.PERSONS).write_text(json.dumps(rows))
    task = published.persons(tmp_path)
    assert [s.label for s in task.gallery] == ["5", "5", "6"]
    assert [s.label for s in task.pools["clean"]] == ["5", "5", "5", "5", "6", "6"]
    assert len({s.key for s in task.pools["clean"]}) == 6
    with pytest.raises(ConfigError, match="lists no picture"):
        published.persons(tmp_path, "val")
    (tmp_path / published.PERSONS).write_text('{"a": 1}')
    with pytest.raises(ConfigError, match="expected a list"):
        published.persons(tmp_path)
