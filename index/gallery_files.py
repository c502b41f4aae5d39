"""The folder of a gallery version: arrays, what items are called, and a manifest that vouches for both."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from core.artifacts import writing
from core.errors import ArtifactError, GalleryError
from core.types import Codes, Keys

TENSORS, ITEMS = "gallery.safetensors", "items.json"


class Columns(NamedTuple):
    """Of N items: keys, codes, features as float16, names, labels, (title, picture), and attributes."""

    keys: Keys
    codes: Codes
    features: NDArray[np.float16] | None
    ids: Sequence[str]
    labels: Sequence[Sequence[str]]
    displays: Sequence[Sequence[str]] | None
    attributes: Sequence[Mapping[str, Any]] | None = None

    @property
    def tensors(self) -> dict[str, NDArray[Any]]:
        found: dict[str, NDArray[Any]] = {"keys": self.keys, "codes": self.codes}
        return found if self.features is None else {**found, "features": self.features}


def write(folder: Path, manifest: Mapping[str, Any], columns: Columns) -> None:
    """Writes a version over an earlier one, in one step."""
    with writing(folder, "gallery", dict(manifest)) as draft:
        save_file(columns.tensors, draft / TENSORS)
        items: dict[str, Any] = {
            "ids": columns.ids, "labels": columns.labels, "displays": columns.displays,
        }  # fmt: skip
        if columns.attributes is not None:
            items["attributes"] = columns.attributes
        (draft / ITEMS).write_text(json.dumps(items, ensure_ascii=False), encoding="utf-8")


def read(folder: Path, manifest: Mapping[str, Any]) -> Columns:
    """What `write` wrote. Use it inside `reading`: a damaged file may raise anything."""
    if {TENSORS, ITEMS} - manifest["files"].keys():
        raise ArtifactError(f"{folder} does not list {TENSORS} and {ITEMS}: rebuild the gallery")
    tensors = load_file(folder / TENSORS)
    items = json.loads((folder / ITEMS).read_text(encoding="utf-8"))
    return Columns(
        tensors["keys"], tensors["codes"], tensors.get("features"),
        items["ids"], items["labels"], items["displays"], items.get("attributes"),
    )  # fmt: skip


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Says ArtifactError for whatever damaged files raise, and what is built of them."""
    try:
        yield
    except (SafetensorError, GalleryError, KeyError, TypeError, ValueError, OSError) as error:
        raise ArtifactError(f"gallery {folder} cannot be read: {error!r}; rebuild the gallery") from error
