"""The two files of some items of a gallery: arrays, and what the items are called."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from core.errors import ArtifactError, GalleryError
from core.types import Codes, Keys
from index.mapped import mapped

PLAIN = ("gallery.safetensors", "items.json")
"""Names of the files where one segment is all there is."""


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


def write(folder: Path, names: tuple[str, str], columns: Columns) -> None:
    """Writes the two files of some items."""
    save_file(columns.tensors, folder / names[0])
    items: dict[str, Any] = {"ids": columns.ids, "labels": columns.labels, "displays": columns.displays}
    if columns.attributes is not None:
        items["attributes"] = columns.attributes
    (folder / names[1]).write_text(json.dumps(items, ensure_ascii=False), encoding="utf-8")


def read(folder: Path, names: tuple[str, str], manifest: Mapping[str, Any]) -> Columns:
    """What `write` wrote. Use it inside `reading`: a damaged file may raise anything."""
    if set(names) - manifest["files"].keys():
        raise ArtifactError(f"{folder} does not list {names[0]} and {names[1]}: rebuild the gallery")
    with safe_open(folder / names[0], "numpy") as file:
        keys, codes, held = file.get_tensor("keys"), file.get_tensor("codes"), set(file.keys())
        features = mapped(file, "features", folder) if "features" in held else None
    items = json.loads((folder / names[1]).read_text(encoding="utf-8"))
    return Columns(
        keys, codes, features, items["ids"], items["labels"], items["displays"], items.get("attributes")
    )  # fmt: skip


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Says ArtifactError for whatever damaged files raise, and what is built of them."""
    try:
        yield
    except (SafetensorError, GalleryError, KeyError, TypeError, ValueError, OSError) as error:
        raise ArtifactError(f"gallery {folder} cannot be read: {error!r}; rebuild the gallery") from error
