"""The folder of a gallery: two files for each segment, one for what is gone, and a manifest of the version.

A change writes the files of what is new beside those that are there, and then one manifest over the old one:
a reader sees the old version or the new one. The old manifest stays for an hour under the name of its
version, with the files it names: a service that starts again finds what its last answers were given from.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from core.artifacts import MANIFEST, digest, read_manifest, writing
from core.errors import ArtifactError, ConfigError
from core.readers.places import bytes_of, shown
from index.columns import Display, Features, half
from index.gallery_files import PLAIN, read, reading, write
from index.lineage import Lineage
from index.living import Living
from index.segment import Searched, Segment

SEGMENT, GONE = "segment", "gone"
VERSION = re.compile("[0-9a-f]{16}")
KEPT_SECONDS = 3600.0
"""How long a version stays in its folder after another one took its place."""


class Saved(NamedTuple):
    """What a gallery version is made of."""

    parts: tuple[Living, ...]
    lineage: Lineage
    next_key: int
    base_version: str


def save(folder: Path, made: Saved, items_offset: int = 0) -> None:
    """Writes a version into a folder, over an earlier one, in one step.

    Args:
        items_offset: where reading of the items topic goes on from this version; 0: it holds nothing of it.
    """
    manifest: dict[str, Any] = {
        "version": made.lineage.version,
        "bits": made.parts[0].segment.bits,
        "items": sum(map(len, made.parts)),
        "base_version": made.base_version,
        "next_key": made.next_key,
    }
    before = _document(folder / MANIFEST)
    if items_offset:
        manifest["items_offset"] = items_offset
    if all(before.get(name) == manifest[name] for name in ("base_version", "bits")):
        held = {value: name for name, value in before["files"].items() if (folder / name).is_file()}
        manifest |= _parts(folder, made, held)
        _replace(folder, manifest, made, before)
        return
    with writing(folder, "gallery", manifest) as draft:
        if _plain(made):
            write(draft, PLAIN, made.parts[0].segment.columns())
            made.parts[0].segment.stored = (digest(draft / PLAIN[0]), digest(draft / PLAIN[1]))
        else:
            manifest |= _parts(draft, made, {})


def load(
    folder: Path, base_version: str | None, searched: Searched, threads: int | None, version: str = "",
    beside: Iterable[Living] = (),
) -> Saved:  # fmt: skip
    """Reads a version back.

    Args:
        version: "" for the newest; else one that may still be kept.
        beside: segments of other versions: what is among them is not read again.

    Raises:
        ArtifactError: missing, damaged, or of another base model.
    """
    known = {part.segment.stored: part.segment for part in beside if part.segment.stored is not None}
    checked = {value for pair in known for value in pair}
    name = MANIFEST if version in ("", newest(folder)) else _former(version)
    manifest = read_manifest(folder, "gallery", name, checked)
    with reading(folder):
        built = manifest["base_version"]
        if base_version is not None and built != base_version:
            raise ArtifactError(
                f"gallery {folder} was built with base model {built!r}, in use is {base_version!r}: "
                f"rebuild the gallery"
            )
        after = int(manifest["next_key"])
        segments = []
        for first, second in manifest.get("segments", [PLAIN]):
            stored = (manifest["files"][first], manifest["files"][second])
            made = known.get(stored)
            if made is None:
                made = _segment(folder, (first, second), manifest, searched, threads)
                made.stored = stored
            segments.append(made)
        gone = load_file(folder / manifest["gone"]) if manifest.get("gone") else {}
        parts = tuple(_living(segment, gone.get(str(n))) for n, segment in enumerate(segments))
        lineage = _lineage(manifest, parts, after)
        _check(folder, manifest, parts, lineage.version)
    return Saved(parts, lineage, after, built)


def newest(folder: Path) -> str:
    """The version that a folder holds, without a look at its files; "" where there is none."""
    return str(_document(folder / MANIFEST).get("version", ""))


def items_offset(folder: Path) -> int:
    """Where reading of the items topic goes on from the version that a folder holds."""
    return int(_document(folder / MANIFEST).get("items_offset", 0))


def measured(folder: Path) -> Mapping[str, Any]:
    """What was noted of the version that a folder holds; {} where nothing was."""
    found = _document(folder / MANIFEST).get("measured", {})
    return found if isinstance(found, dict) else {}


def note(folder: Path, version: str, found: Mapping[str, Any]) -> None:
    """Writes what was measured of a version into its manifest; the next version has not been measured.

    Raises:
        ArtifactError: the folder holds another version by now.
    """
    manifest = _document(folder / MANIFEST)
    if manifest.get("version") != version:
        raise ArtifactError(f"{shown(folder)} was changed while version {version} was measured: build again")
    _write(folder, MANIFEST, {**manifest, "measured": dict(found)})


@contextmanager
def changing(folder: Path, wait: bool = False) -> Iterator[None]:
    """While a folder is read, changed and written no other process does so.

    Raises ArtifactError: there is none, or another process is at it and we do not `wait`.
    """
    try:
        held = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise ArtifactError(f"no gallery in {shown(folder)}: build it first") from error
    try:
        fcntl.flock(held, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise ArtifactError(f"{shown(folder)} is being changed by another process: wait for it") from None
    finally:
        os.close(held)


# -- pieces ---------------------------------------------------------------------------------------------


def _plain(made: Saved) -> bool:
    """Whether it is as it was built: then its files are those of a gallery that was never changed."""
    first = made.parts[0]
    return len(made.parts) == 1 and not first.gone and made.lineage.version == first.segment.identity[:16]


def _parts(folder: Path, made: Saved, held: Mapping[str, str]) -> dict[str, Any]:
    """Writes what is not held yet; returns what the manifest says of it.

    Args:
        held: sha256 -> name of the files that are there.
    """
    names: list[tuple[str, str]] = []
    for part in made.parts:
        stored = part.segment.stored
        if stored is None or not set(stored) <= held.keys():
            drafts = (".segment.safetensors", ".segment.json")
            write(folder, drafts, part.segment.columns())
            names.append((_named(folder, drafts[0], SEGMENT), _named(folder, drafts[1], SEGMENT)))
            part.segment.stored = (digest(folder / names[-1][0]), digest(folder / names[-1][1]))
        else:
            names.append((held[stored[0]], held[stored[1]]))
    gone = {str(n): np.packbits(part.dead) for n, part in enumerate(made.parts) if part.dead is not None}
    if gone:
        save_file(gone, folder / ".gone.safetensors")
    sums = {"added": f"{made.lineage.added:x}", "removed": f"{made.lineage.removed:x}"}
    return {
        "format": 2,
        "segments": names,
        "gone": _named(folder, ".gone.safetensors", GONE) if gone else "",
        "lineage": {"origin": made.lineage.origin, "first_key": made.lineage.first_key, **sums},
    }


def _named(folder: Path, draft: str, what: str) -> str:
    """A durable file under a name of its content."""
    path = folder / draft
    with path.open("rb") as file:
        os.fsync(file.fileno())
    name = f"{what}-{digest(path)[:16]}{path.suffix}"
    path.replace(folder / name)
    return name


def _replace(folder: Path, manifest: dict[str, Any], made: Saved, before: Mapping[str, Any]) -> None:
    """Puts a manifest over the old one, which stays for a while, and removes what no manifest names."""
    names = [name for pair in manifest["segments"] for name in pair]
    stored = [value for part in made.parts for value in part.segment.stored or ()]
    files = dict(zip(names, stored, strict=True))
    if manifest["gone"]:
        files[manifest["gone"]] = digest(folder / manifest["gone"])
    if before["version"] != manifest["version"]:
        _write(folder, _former(before["version"]), before)
    _write(folder, MANIFEST, {"kind": "gallery", **manifest, "files": files})
    with suppress(OSError):  # the version is there; what could not be removed is looked at again
        _forget(folder)


def _write(folder: Path, name: str, document: Mapping[str, Any]) -> None:
    """A durable manifest, in one step."""
    draft = folder / ".manifest.json"
    with draft.open("w", encoding="utf-8") as file:
        json.dump(document, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(folder / name)


def _forget(folder: Path) -> None:
    """Removes manifests that were replaced long ago, and files that none is left of."""
    named: set[str] = set()
    for path in folder.glob("manifest*.json"):
        if path.name != MANIFEST and time.time() - path.stat().st_mtime > KEPT_SECONDS:
            path.unlink(missing_ok=True)
        else:
            named |= _document(path).get("files", {}).keys()
    for path in folder.iterdir():
        ours = path.name in PLAIN or path.name.startswith((f"{SEGMENT}-", f"{GONE}-"))
        if ours and path.name not in named:
            path.unlink(missing_ok=True)


def _former(version: str) -> str:
    """The name of a manifest that another one has replaced. Raises ArtifactError for what is no version."""
    if VERSION.fullmatch(version) is None:
        raise ArtifactError(f"expected a gallery version of 16 hex digits, got {version!r:.80}")
    return f"manifest-{version}.json"


def _document(path: Path) -> dict[str, Any]:
    """A manifest of a gallery as it stands there; {} where there is none that can be read."""
    try:
        found = json.loads(bytes_of(path))
        named = VERSION.fullmatch(str(found["version"])) is not None
        return (
            dict(found) if named and found["kind"] == "gallery" and isinstance(found["files"], dict) else {}
        )
    except (ConfigError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def _lineage(manifest: Mapping[str, Any], parts: tuple[Living, ...], after: int) -> Lineage:
    if "segments" not in manifest:
        return Lineage(parts[0].segment.identity[:16], after)
    told = manifest["lineage"]
    sums = (int(told[name], 16) for name in ("added", "removed"))
    return Lineage(str(told["origin"]), int(told["first_key"]), *sums)


def _segment(
    folder: Path, names: tuple[str, str], manifest: Mapping[str, Any], searched: Searched, threads: int | None
) -> Segment:
    kept = read(folder, names, manifest)
    displays = None if kept.displays is None else [Display(*both) for both in kept.displays]
    ascending = bool((np.diff(kept.keys) > 0).all())  # so we write them: then nothing of them is copied
    features = Features(half(kept.features)) if ascending and kept.features is not None else kept.features
    return Segment(
        manifest["bits"], kept.ids, kept.codes, kept.labels, features, displays, kept.keys,
        searched, threads, kept.attributes,
    )  # fmt: skip


def _living(segment: Segment, packed: NDArray[np.uint8] | None) -> Living:
    return Living(segment, None if packed is None else np.unpackbits(packed, count=len(segment)) > 0)


def _check(folder: Path, manifest: Mapping[str, Any], parts: tuple[Living, ...], version: str) -> None:
    """Raises ArtifactError where files and manifest tell of different galleries."""
    if version != manifest["version"]:
        raise ArtifactError(
            f"{folder} holds version {version}, its manifest says {manifest['version']}: rebuild the gallery"
        )
    spans = [(int(p.segment.keys[0]), int(p.segment.keys[-1])) for p in parts if len(p.segment)]
    ascending = all(last < first for (_, last), (first, _) in pairwise(spans))
    widths = {p.segment.features and p.segment.features.width for p in parts}
    if not ascending or len(widths) != 1 or sum(map(len, parts)) != manifest["items"]:
        raise ArtifactError(f"{folder} holds segments that do not fit each other: rebuild the gallery")
