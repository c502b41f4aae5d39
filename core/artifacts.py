"""Folders of safetensors and a manifest.json: base models, galleries, checkpoints. Never pickle.

A folder is written beside its target and renamed over it, so that a reader sees the old one or the new
one. The manifest lists the sha256 of every other file and is checked on load.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import ArtifactError, ConfigError
from core.readers.places import bytes_of, is_file, shown, there

MANIFEST = "manifest.json"


def digest(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors_hash(tensors: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> str:
    """sha256 over names, dtypes, shapes, bytes and canonical JSON: the identity of a state."""
    sha = hashlib.sha256(json.dumps(meta, sort_keys=True, allow_nan=True).encode())
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        sha.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        as_bytes: NDArray[np.uint8] = array.reshape(-1).view(np.uint8)
        sha.update(as_bytes.data)  # not `tobytes`: that would copy a large gallery
    return sha.hexdigest()


def part(tensors: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    """The entries whose name starts with the prefix, without it."""
    return {name[len(prefix) :]: array for name, array in tensors.items() if name.startswith(prefix)}


@contextmanager
def writing(folder: Path, kind: str, manifest: Mapping[str, Any]) -> Iterator[Path]:
    """Yields an empty folder to fill; on a clean exit adds the manifest and swaps it in."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield draft
        files = {
            str(path.relative_to(draft)): digest(path) for path in sorted(draft.rglob("*")) if path.is_file()
        }
        document = {"kind": kind, "format": 1, **manifest, "files": files}
        (draft / MANIFEST).write_text(json.dumps(document, indent=1, sort_keys=True))
        old = folder.with_name(f".{folder.name}-old-{os.getpid()}")
        if folder.exists():
            folder.rename(old)
        draft.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def read_manifest(
    folder: Path, kind: str, name: str = MANIFEST, known: Collection[str] = ()
) -> dict[str, Any]:
    """Manifest of a folder, after checking kind and the sha256 of every file.

    Args:
        name: of the manifest, where a folder has several.
        known: sha256 of files that need no check, because what is in them was read before.

    Raises:
        ArtifactError: missing, of another kind, or a file does not match.
    """
    path = folder / name
    if not there(path):
        raise ArtifactError(f"no {kind} in {shown(folder)}: {name} is missing; build it first")
    try:
        document = json.loads(bytes_of(path))
    except (ConfigError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{shown(path)} cannot be read: {error}") from error
    if not isinstance(document, dict) or document.get("kind") != kind:
        found = document.get("kind") if isinstance(document, dict) else None
        raise ArtifactError(f"{shown(folder)} holds a {found!r:.80}, expected a {kind!r}")
    files = document.get("files")
    if not isinstance(files, dict):
        raise ArtifactError(f"{shown(path)} cannot be read: it lists no files; build the {kind} again")
    for listed, expected in files.items():
        file = folder / listed
        try:
            whole = is_file(file) and (expected in known or digest(file) == expected)
        except OSError as error:
            raise ArtifactError(f"{shown(file)} cannot be read: {error.strerror}") from error
        if not whole:
            raise ArtifactError(
                f"{shown(file)} is missing or does not match its sha256: build the {kind} again"
            )
    return document
