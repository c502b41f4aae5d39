"""Encodes a data set once into a memory-mapped cache."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from core.errors import ArtifactError
from core.protocols import Encoder
from core.types import Floats

Item = Path | bytes | str | NDArray[Any]
"""A file to read, the bytes of a picture, a text, or an array."""


class Fingerprinted(Encoder, Protocol):
    """An encoder whose weights and preprocessing have one identity."""

    @property
    def fingerprint(self) -> str: ...


def features(
    items: Sequence[Item],
    encoder: Fingerprinted,
    cache: Path,
    *,
    batch: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Floats:
    """Unit features of every item by the frozen encoder, from the cache if they are there.

    The key covers weights, preprocessing and the data itself: there is nothing to invalidate.

    Args:
        items: n pictures or texts, in the order of the result.
        encoder: gives [n, D].
        cache: a folder; one .npy per key.
        batch: rows of one forward.
        progress: called with (done, n) after each batch.

    Returns:
        Read-only memory map [n, D] float32.

    Raises:
        Refused: an item that cannot be decoded; nothing is cached then.
        ArtifactError: a damaged cache file.
    """
    path = cache / f"{_key(items, encoder.fingerprint)[:32]}.npy"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}.draft")
        try:
            _encode(items, encoder, draft, batch, progress)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}; delete it") from error
    if loaded.shape != (len(items), encoder.width) or loaded.dtype != np.float32:
        raise ArtifactError(f"{path} holds {loaded.dtype} {loaded.shape}, not these features: delete it")
    found: Floats = loaded
    return found


def _encode(
    items: Sequence[Item],
    encoder: Encoder,
    path: Path,
    batch: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    shape = (len(items), encoder.width)
    if not items:  # an empty file cannot be mapped for writing
        with path.open("wb") as file:
            np.save(file, np.empty(shape, np.float32))
        return
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    for start in range(0, len(items), batch):
        part = [encoder.prepare(_content(item)) for item in items[start : start + batch]]
        # The same rows every time: features of an item then do not depend on how many came with it.
        rows = encoder.encode(encoder.collate(part, min(batch, len(items))))[: len(part)]
        out[start : start + len(part)] = rows.cpu().numpy()
        if progress is not None:
            progress(start + len(part), len(items))
    out.flush()


def _content(item: Item) -> Any:
    return item.read_bytes() if isinstance(item, Path) else item


def _key(items: Sequence[Item], fingerprint: str) -> str:
    sha = hashlib.sha256(fingerprint.encode())
    for item in items:
        content = _content(item)
        if isinstance(content, np.ndarray):
            head = f"{content.dtype.str}{content.shape}"
            content = np.ascontiguousarray(content).tobytes()
        else:
            head = type(content).__name__
            content = content.encode() if isinstance(content, str) else content
        # Lengths keep ("ab", "c") and ("a", "bc") apart.
        sha.update(f"{head}|{len(content)}|".encode())
        sha.update(content)
    return sha.hexdigest()
