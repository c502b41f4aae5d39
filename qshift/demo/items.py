"""Items of a user's for a gallery: a folder of pictures, or lines of pictures, texts and vectors."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.attributes import Attributes, attributes_of
from core.config import LimitConfig
from core.errors import ConfigError, GalleryError, Refused
from core.identity import DIGITS
from core.readers.lines import BadLine, document, kind_of, lines, listed, word
from core.readers.places import is_folder, shown
from core.types import Codes, Floats, Modality
from encoders.base_model import Base
from qshift.data.attributes import picture_attributes
from qshift.data.pictures import PictureSet, load_pictures
from qshift.demo.catalogue import picture_bytes
from qshift.recipes.encode import Progress
from qshift.recipes.gallery import encoded_items
from qshift.replay.own_message import picture, vector, word_of

KINDS: Mapping[str, Modality] = {"image": "image", "text": "text", "vector": "vector"}
FIELDS = ("id", *KINDS, "labels", "title", "attributes")
EXPORTED = ("key", "code", "base")
"""What lines of `qshift gallery export` have besides: keys are given out anew, codes taken as they are."""
FORM = (
    'expected {"id", "image": path | "text" | "vector": [...]}, with optional "labels": [...], "title" and '
    '"attributes": {...}'
)


@dataclass(frozen=True, slots=True)
class Item:
    """One item: its name, what is encoded, its labels, what pages call it, and what filters look at.

    One that was exported has its code [L/8] uint8, and the base that made it; its content is its features.
    """

    identifier: str
    modality: Modality
    content: Any
    labels: tuple[str, ...]
    title: str
    attributes: Attributes
    code: bytes = b""
    base: str = ""


def load_items(path: Path) -> list[Item]:
    """Items of a folder of captioned pictures, or of pictures sorted by class; or of the lines of a file.

    Raises:
        ConfigError: nothing there, a line that is no item (named by its number), or a name twice.
    """
    if is_folder(path):
        return picture_items(load_pictures(path), path)
    found = [_item(path, number, line) for number, line in lines(path)]
    if not found:
        raise ConfigError(f"{shown(path)} holds no item: {FORM}")
    (name, times), *_ = Counter(item.identifier for item in found).most_common(1)
    if times > 1:
        raise ConfigError(f"{shown(path)} names {shown(name)} {times} times: keep one line of it")
    return found


def picture_items(own: PictureSet, folder: Path) -> list[Item]:
    """Pictures of a folder as items. Their labels are their classes, else their own names."""
    ids = [own.identifier(item) for item in range(len(own))]
    labels = own.classes or ids
    titles = own.classes or ["\n".join(captions) for captions in own.captions]
    contents = (picture_bytes(own, item) for item in range(len(own)))
    said = picture_attributes(folder, ids) or [{}] * len(ids)
    return [
        Item(name, "image", content, (label,), title, attributes)
        for name, content, label, title, attributes in zip(ids, contents, labels, titles, said, strict=True)
    ]


def encoded(base: Base, items: list[Item], progress: Progress | None = None) -> tuple[Codes, Floats]:
    """Codes [N, L/8] and features [N, D], each item by the frozen tower of its modality.

    Raises:
        GalleryError: an item cannot be read, and names it; or the base has no tower for it, or has not made
            the code that it was exported with.
    """
    rows: dict[Modality, list[int]] = {}
    order: list[int] = [number for number, item in enumerate(items) if item.code]
    codes, features = [], []
    if order:
        made, found = _exported(base, [items[number] for number in order])
        codes.append(made)
        features.append(found)
    for number, item in enumerate(items):
        if not item.code:
            rows.setdefault(item.modality, []).append(number)
    for modality, numbers in rows.items():
        contents, names = [items[n].content for n in numbers], [items[n].identifier for n in numbers]
        some = encoded_items(base, contents, names, progress, modality)
        order += numbers
        codes.append(some[0])
        features.append(some[1])
    back = np.argsort(order)
    return np.concatenate(codes)[back], np.concatenate(features)[back]


def _exported(base: Base, items: list[Item]) -> tuple[Codes, Floats]:
    """Codes and features as the lines have them."""
    for item in items:
        if item.base != base.version[:DIGITS] or 8 * len(item.code) != base.bits:
            raise GalleryError(
                f"item {shown(item.identifier)} was exported from a gallery of base {shown(item.base)}, in "
                f"use is {base.version[:DIGITS]}: leave key, code and base out to encode its vector anew"
            )
        if np.shape(item.content) != (base.width,):
            raise GalleryError(
                f"item {shown(item.identifier)} has a vector of width {len(item.content)}, features of base "
                f"{base.name} have {base.width}: export it again"
            )
    codes = np.frombuffer(b"".join(item.code for item in items), np.uint8).reshape(len(items), -1)
    return codes, np.array([item.content for item in items], np.float32)


def _item(path: Path, number: int, line: bytes) -> Item:
    try:
        entry = document(line)
        if not isinstance(entry, dict):
            raise BadLine(FORM)
        exported = entry.get("code") is not None
        strange = [shown(name) for name in entry if name not in FIELDS + EXPORTED * exported]
        kinds = [kind for kind in KINDS if entry.get(kind) is not None]
        if strange or len(kinds) != 1:
            raise BadLine(f"got {', '.join(strange or kinds) or 'nothing to encode'}: {FORM}")
        name, title = word_of(entry, "id"), entry.get("title", "")
        if not name:
            raise BadLine(f'no "id": {FORM}')
        labels = tuple(word(label) for label in listed(entry.get("labels", [])))
        said, content = _attributes(entry), _content(entry, kinds[0], path.parent)
        code, base = _code(entry, kinds[0]) if exported else (b"", "")
        return Item(name, KINDS[kinds[0]], content, labels, word(title), said, code, base)
    except (BadLine, Refused) as error:
        reason = error.reason if isinstance(error, Refused) else str(error)
        raise ConfigError(f"{shown(path)}, line {number}: {reason}") from error


def _attributes(entry: Mapping[str, Any]) -> Attributes:
    try:
        return attributes_of(entry.get("attributes", {}))
    except ValueError as error:
        raise BadLine(str(error)) from None


def _code(entry: Mapping[str, Any], kind: str) -> tuple[bytes, str]:
    if kind != "vector":
        raise BadLine(f'"code" stands beside {kind}: expected the "vector" that it was exported with')
    try:
        code = base64.b64decode(word(entry["code"]), validate=True)
    except ValueError:
        raise BadLine("the code is no base64: export the item again") from None
    if not code:
        raise BadLine("the code is empty: export the item again")
    return code, word_of(entry, "base")


def _content(entry: Mapping[str, Any], kind: str, folder: Path) -> Any:
    match kind:
        case "image":
            return picture(entry[kind], folder, LimitConfig().image_bytes)
        case "vector":
            return vector(entry[kind])
    if not isinstance(entry[kind], str):
        raise BadLine(f"the text is {kind_of(entry[kind])}: {FORM}")
    return word(entry[kind])
