"""`qshift gallery add`, `remove`, `swap`, `info` and `export`: a gallery in a folder, changed in place."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from core.errors import ConfigError, GalleryError
from core.identity import DIGITS
from core.readers.places import shown
from encoders.base_model import load_base
from index.folder import changing, items_offset, measured
from index.gallery import Display, VersionedGallery
from index.merging import tidied
from qshift.build import put_in_place
from qshift.demo.compare_indexes import told
from qshift.demo.items import encoded, load_items
from qshift.terminal.bars import bars, reporter

FORMS = (".jsonl", ".npz")
SHOWN = 3


def add(data: Path, folder: Path, base: Path, replace: bool, console: Console) -> None:
    """Encodes items and puts them into a gallery; writes what is new alone, in one step.

    Args:
        data: pictures in a folder, or lines of items.
        folder: of the gallery.
        base: the base model that it was built with.
        replace: whether items of names that are there take their place; else they are refused.

    Raises:
        ConfigError, GalleryError: items that cannot be read or are there already: nothing is changed.
        ArtifactError: no such gallery or base, or one of another base.
    """
    model, items = load_base(base), load_items(data)
    with changing(folder):
        gallery = VersionedGallery.load(folder, base_version=model.version)
        names = [item.identifier for item in items]
        known = [name for name in names if gallery.holds(name)]
        if known and not replace:
            raise GalleryError(
                f"{shown(folder)} holds {_some(known)} already: --replace puts the new ones in their place"
            )
        with bars(console) as progress:
            codes, features = encoded(model, items, reporter(progress))
        labels = [item.labels for item in items]
        displays = [Display(item.title or item.identifier) for item in items]
        said = [item.attributes for item in items]
        after = tidied(gallery.upsert(names, codes, labels, features, displays, said))
        after.save(folder, items_offset(folder))
    _say(console, folder, after, f"{_items(len(items))} added, {len(known):,} of them replaced")


def remove(ids: Sequence[str], folder: Path, console: Console) -> None:
    """Takes items out of a gallery. Raises GalleryError where one is not there: nothing is changed."""
    with changing(folder):
        gallery = VersionedGallery.load(folder, backend="exact")
        strange = [name for name in ids if not gallery.holds(name)]
        if strange:
            raise GalleryError(f"{shown(folder)} holds no {_some(strange)}: nothing was removed")
        after = tidied(gallery.remove(ids))
        after.save(folder, items_offset(folder))
    _say(console, folder, after, f"{_items(len(gallery) - len(after))} removed")


def swap(source: Path, folder: Path, console: Console) -> str:
    """Puts a whole new gallery in the place of one that may be followed meanwhile; returns its version.

    Raises:
        ArtifactError, ConfigError, GalleryError: no such gallery, or of another base: nothing is changed.
    """
    new = put_in_place(source, folder)
    _say(console, folder, new, f"{shown(source)} put in place")
    return new.version


def info(folder: Path, console: Console) -> None:
    """Says what a gallery holds, and in which segments."""
    gallery = VersionedGallery.load(folder, backend="exact")
    keys = gallery.keys().tolist()
    labels = Counter(label for key in keys for label in gallery.labels_of(key))
    said = Counter(name for key in keys for name in gallery.attributes_of(key))
    width = f"features of width {gallery.width}" if gallery.width else "no features"
    lines = [
        f"{_items(len(gallery))} with {gallery.bits}-bit codes and {width}",
        f"version {gallery.version}, of base model {gallery.base_version[:16] or 'unknown'}",
        f"{len(labels):,} labels: {_some([name for name, _ in labels.most_common()])}",
        *([f"{len(said):,} attributes: {_some([name for name, _ in said.most_common()])}"] if said else []),
        *([told(noted)] if (noted := measured(folder)) else []),
        *(
            f"segment {number}: {len(part):,} of {len(part.segment):,} items are left"
            for number, part in enumerate(gallery.parts, 1)
        ),
    ]
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def export(out: Path, folder: Path, console: Console) -> None:
    """Writes what a gallery holds into one file, in one step.

    Args:
        out: `.jsonl`: a line for each item, `id`, `key`, `labels`, `title`, `code` (base64), `base` (the
            beginning of its version), `attributes` where something is said of the item and `vector` where
            there are features: `add` takes such lines; `.npz`: the same as
            arrays `ids` [N], `keys` [N], `labels` [N] (JSON lists), `titles` [N], `codes` [N, L/8],
            `attributes` [N] (JSON objects) and `features` [N, D] float32.
        folder: of the gallery.

    Raises:
        ConfigError: another kind of file.
    """
    if out.suffix not in FORMS:
        raise ConfigError(f"{shown(out)} is neither {' nor '.join(FORMS)}: name one of these")
    gallery = VersionedGallery.load(folder, backend="exact")
    with NamedTemporaryFile(dir=out.parent, prefix=".export-", delete=False) as file:
        draft = Path(file.name)
        try:
            if out.suffix == ".npz":
                np.savez(file, allow_pickle=False, **_arrays(gallery))
            else:
                with bars(console) as progress:
                    for line in _lines(gallery, progress):
                        file.write(line)
            file.flush()
            draft.chmod(0o644)
            draft.replace(out)
        finally:
            draft.unlink(missing_ok=True)
    _say(console, out, gallery, "written")


def _lines(gallery: VersionedGallery, progress: Progress) -> Iterator[bytes]:
    task = progress.add_task("items", total=len(gallery))
    for key in gallery.keys().tolist():
        line: dict[str, Any] = {
            "id": gallery.identifier(key), "key": key, "labels": list(gallery.labels_of(key)),
            "title": gallery.display(key).title,
            "code": base64.b64encode(gallery.codes_of(np.array(key)).tobytes()).decode(),
            "base": gallery.base_version[:DIGITS],
        }  # fmt: skip
        if said := gallery.attributes_of(key):
            line["attributes"] = said
        if gallery.width:
            line["vector"] = [float(x) for x in gallery.features(np.array(key))]
        yield json.dumps(line, ensure_ascii=False).encode() + b"\n"
        progress.advance(task)


def _arrays(gallery: VersionedGallery) -> dict[str, Any]:
    keys = gallery.keys()
    found: dict[str, Any] = {
        "ids": np.array([gallery.identifier(key) for key in keys.tolist()], dtype=np.str_),
        "keys": keys,
        "labels": np.array([json.dumps(gallery.labels_of(key)) for key in keys.tolist()], dtype=np.str_),
        "titles": np.array([gallery.display(key).title for key in keys.tolist()], dtype=np.str_),
        "codes": gallery.codes_of(keys),
    }
    said = [gallery.attributes_of(key) for key in keys.tolist()]
    found |= {"attributes": np.array(list(map(json.dumps, said)), dtype=np.str_)} if any(said) else {}
    return {**found, "features": gallery.features(keys)} if gallery.width else found


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(shown(name) for name in names[:SHOWN]) + more


def _items(count: int) -> str:
    return f"{count:,} {'item' if count == 1 else 'items'}"


def _say(console: Console, place: Path, gallery: VersionedGallery, done: str) -> None:
    text = f"{done}: {_items(len(gallery))} in {shown(place)}, version {gallery.version}"
    console.print(text, highlight=False, markup=False, soft_wrap=True)
