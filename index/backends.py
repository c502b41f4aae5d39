"""Which index is searched: FAISS, or brute force."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from core.errors import GalleryError
from index.exact import ExactIndex

if TYPE_CHECKING:
    from index.binary import FaissIndex

Backend = Literal["faiss", "exact"]
Device = Literal["auto", "cpu", "cuda"]


def index_of(backend: Backend, bits: int, device: Device, threads: int | None) -> ExactIndex | FaissIndex:
    """An empty index. Raises GalleryError for an unknown backend."""
    if backend == "exact":
        return ExactIndex(bits)
    if backend == "faiss":
        from index.binary import FaissIndex  # a second of import that the exact backend need not wait for

        return FaissIndex(bits, device, threads)
    raise GalleryError(f'expected backend "faiss" or "exact", got {backend!r}')
