"""Published data sets for those who have them on disk; docs/lab/published.md says what lies where.

Pictures are decoded when they are asked for: the corrupted sets hold hundreds of thousands. The layouts of
folders are ours; of the captions, those the sets are distributed with.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, overload

import numpy as np
from PIL import Image, UnidentifiedImageError

from core.errors import ConfigError
from core.readers.lines import BadLine, content, document, lines, listed, name, word
from core.readers.places import is_file
from qshift.benchmarks.tasks.types import Picture, Sample, Task

CAPTIONS, ITEMS, PERSONS = "captions.json", "items.jsonl", "reid_raw.json"
EACH = 5  # captions of a picture that are used, as the published figures do
BASE = "your own"
"""No recipe makes the base of these tasks: give one with --base."""


@dataclass(frozen=True, slots=True)
class Pictured:
    """A picture that is still on disk."""

    key: str
    path: Path
    label: str
    group: str = ""
    title: str = ""


class PictureFiles(Sequence[Sample]):
    """Samples whose pictures are read when they are asked for; nothing is kept."""

    def __init__(self, items: Sequence[Pictured]) -> None:
        self._items = tuple(items)

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(index, slice):
            return PictureFiles(self._items[index])
        item = self._items[index]
        return Sample(item.key, _picture(item.path), item.label, item.group, item.title)


def corrupted(root: Path, name: str, split: str = "test") -> Task:
    """COCO-C, Flickr-C and the like: pictures, clean and corrupted, ask for captions.

    Domains of the task: "clean" and, as far as their folders exist, "<corruption>-<severity>".

    Args:
        root: holds captions.json in the Karpathy form and images/clean/0/<file>,
            images/<corruption>/<severity>/<file>, each with every picture of the split.
        name: first part of the task's name, "coco-c".
        split: of the captions.

    Raises:
        ConfigError: a file is missing or of another form.
    """
    rows = [row for row in _karpathy(root / CAPTIONS) if row.split == split]
    if not rows:
        raise ConfigError(f"{root / CAPTIONS} has no picture of the split {split!r}")
    folders = {"clean": root / "images" / "clean" / "0"}
    for folder in sorted(root.glob("images/*/*")):
        if folder.is_dir() and folder.parent.name != "clean":
            folders[f"{folder.parent.name}-{folder.name}"] = folder
    pools = {domain: _files(folder, rows) for domain, folder in folders.items()}
    gallery = [
        Sample(f"{row.key}-{i}", text, row.key, title=text)
        for row in rows
        for i, text in enumerate(row.texts[:EACH])
    ]
    return Task(f"{name}/picture-text", "image", "text", gallery, pools, BASE)


def corrupted_texts(root: Path, name: str, split: str = "test") -> Task:
    """The same the other way round: captions ask for clean pictures.

    Rewritten captions (of sentence-level shifts) are further domains: captions-<shift>.json beside
    captions.json, in the same form, with the same pictures.
    """
    rows = [row for row in _karpathy(root / CAPTIONS) if row.split == split]
    if not rows:
        raise ConfigError(f"{root / CAPTIONS} has no picture of the split {split!r}")
    known = {row.key for row in rows}
    pools = {"clean": _asking(rows)}
    for path in sorted(root.glob("captions-*.json")):
        rewritten = [row for row in _karpathy(path) if row.key in known]
        if len(rewritten) < len(rows):
            raise ConfigError(f"{path} has {len(rewritten)} of the {len(rows)} pictures of {split!r}")
        pools[path.stem.removeprefix("captions-")] = _asking(rewritten)
    gallery = _files(root / "images" / "clean" / "0", rows)
    return Task(f"{name}/text-picture", "text", "image", gallery, pools, BASE)


def fashion_gen(root: Path) -> Task:
    """Descriptions ask for pictures of products: items.jsonl and images/<file>.

    Each line: {"id", "file", "caption", "category"}; several lines (views) may share an id, of which every
    picture is an item and the first caption asks.

    Raises:
        ConfigError: a file is missing or of another form.
    """
    path = root / ITEMS
    items: list[Pictured] = []
    queries: dict[str, Sample] = {}
    for number, line in lines(path):
        try:
            row = document(line)
            key, file, caption = name(row["id"]), word(row["file"]), word(row["caption"]).strip()
            group = name(row.get("category", ""))
        except (BadLine, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path}, line {number}: expected id, file and caption: {error!r}") from error
        items.append(Pictured(f"{key}-{file}", _inside(root / "images", file), key, group, caption))
        if caption:
            queries.setdefault(key, Sample(key, caption, key, group, caption))
    _present(items, path)
    if not queries:
        raise ConfigError(f"{path} has no caption")
    clean = list(queries.values())
    return Task("fashion-gen/text-picture", "text", "image", PictureFiles(items), {"clean": clean}, BASE)


def persons(root: Path, split: str = "test") -> Task:
    """CUHK-PEDES and the like: descriptions ask for pictures of the same person.

    reid_raw.json is a list of {"id", "file_path", "captions", "split"}; pictures lie in imgs/<file_path>.

    Raises:
        ConfigError: a file is missing or of another form.
    """
    path = root / PERSONS
    items: list[Pictured] = []
    queries: list[Sample] = []
    try:
        for row in listed(_document(path)):
            if row["split"] != split:
                continue
            key, file = name(row["id"]), word(row["file_path"])
            items.append(Pictured(file, _inside(root / "imgs", file), key, key, file))
            captions = [word(caption).strip() for caption in listed(row["captions"])]
            queries += [Sample(f"{file}-{i}", c, key, key, c) for i, c in enumerate(captions) if c]
    except (BadLine, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: expected a list of id, file_path, captions, split: {error!r}") from error
    _present(items, path)
    if not queries:
        raise ConfigError(f"{path} has no caption in the split {split!r}")
    return Task("cuhk-pedes/text-picture", "text", "image", PictureFiles(items), {"clean": queries}, BASE)


PUBLISHED: Mapping[str, Callable[[Path], Task]] = MappingProxyType(
    {
        "coco-c/picture-text": lambda root: corrupted(root, "coco-c"),
        "coco-c/text-picture": lambda root: corrupted_texts(root, "coco-c"),
        "flickr-c/picture-text": lambda root: corrupted(root, "flickr-c"),
        "flickr-c/text-picture": lambda root: corrupted_texts(root, "flickr-c"),
        "fashion-gen/text-picture": fashion_gen,
        "cuhk-pedes/text-picture": persons,
    }
)
"""Name of a task -> its loader, which takes the folder of the set."""


@dataclass(frozen=True, slots=True)
class _Row:
    key: str
    file: str
    split: str
    texts: tuple[str, ...]


def _karpathy(path: Path) -> list[_Row]:
    """{"images": [{"filename", "split", "sentences": [{"raw"}]}]}; the file name is a picture's identity."""
    whole = _document(path)
    rows = []
    try:
        for image in listed(whole["images"]):
            raw = (word(sentence["raw"]).strip() for sentence in listed(image["sentences"]))
            texts, file = tuple(text for text in raw if text), word(image["filename"])
            rows.append(_Row(Path(file).stem, file, word(image["split"]), texts))
    except (BadLine, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: expected images with filename, split and sentences of raw texts: {error!r}"
        ) from error
    return rows


def _asking(rows: Sequence[_Row]) -> list[Sample]:
    return [
        Sample(f"{row.key}-{i}", text, row.key, title=text)
        for row in rows
        for i, text in enumerate(row.texts[:EACH])
    ]


def _files(folder: Path, rows: Sequence[_Row]) -> PictureFiles:
    items = [
        Pictured(row.key, _inside(folder, row.file), row.key, title=row.texts[0] if row.texts else "")
        for row in rows
    ]
    _present(items, folder)
    return PictureFiles(items)


def _present(items: Sequence[Pictured], source: Path) -> None:
    if not items:
        raise ConfigError(f"{source} lists no picture; see docs/lab/published.md")
    missing = [item.path for item in items if not is_file(item.path)]
    if missing:
        raise ConfigError(
            f"{source}: {len(missing)} of {len(items)} pictures are missing, the first is {missing[0]}; see "
            "docs/lab/published.md"
        )


def _inside(folder: Path, file: str) -> Path:
    """A list of files from elsewhere must not lead out of its folder."""
    path = folder / file
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"{file} leads out of {folder}")
    return path


def _document(path: Path) -> Any:
    try:
        return document(content(path))
    except ConfigError as error:
        raise ConfigError(f"{error}; see docs/lab/published.md") from error
    except BadLine as error:
        raise ConfigError(f"{path} is {error}") from error


def _picture(path: Path) -> Picture:
    try:
        with Image.open(io.BytesIO(path.read_bytes())) as opened:
            return np.asarray(opened.convert("RGB"), dtype=np.uint8)
    except (OSError, UnidentifiedImageError) as error:
        raise ConfigError(f"{path} is no whole picture: {error}") from error
