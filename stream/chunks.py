"""A checkpoint as records of a compacted topic: chunks, and after them a manifest that vouches for them.

A reader that finds no manifest, or one that does not fit its chunks, has met a torn write and takes the other
slot. Keys are `topic/partition/generation/slot/chunk`. Compaction keeps the last record of a key, so
whatever a late write could destroy is in the key. The generation: a zombie would otherwise erase the
checkpoint of the partition's new owner. The beginning of a chunk's own hash: a chunk that was given up, and
arrives when the attempt after it has been acknowledged, would tear that one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from core.checkpoints import Checkpoint
from core.errors import ArtifactError
from stream.states import canonical, checkpoint_from_bytes, checkpoint_to_bytes, manifest_from_bytes

CHUNK_BYTES = 900_000
"""Kafka and its clients take about 1 MiB per message unless told otherwise."""
MANIFEST = "manifest"
OURS = re.compile(rf".+/[0-9]+/(-?[0-9]{{1,19}})/[01]/(?:[0-9]+(?:-[0-9a-f]{{8}})?|{MANIFEST})", re.DOTALL)
"""Keys of the state topic: topic, partition, generation, slot, and which chunk or the manifest."""

Keyed = tuple[bytes, bytes]
"""Key and value."""


def split(checkpoint: Checkpoint, journal_offset: int) -> tuple[list[Keyed], Keyed]:
    """The chunks, and the manifest that is sent when they are acknowledged.

    Args:
        journal_offset: where reading the journal begins for whoever has this checkpoint.
    """
    place, blob = _place(checkpoint), checkpoint_to_bytes(checkpoint)
    chunks = [blob[at : at + CHUNK_BYTES] for at in range(0, len(blob), CHUNK_BYTES)]
    manifest = {
        "seq": checkpoint.seq,
        "generation": checkpoint.generation,
        "journal_offset": journal_offset,
        "chunks": [{"bytes": len(c), "sha256": _hash(c)} for c in chunks],
    }
    keyed = [(_name(place, number, _hash(chunk)).encode(), chunk) for number, chunk in enumerate(chunks)]
    return keyed, (f"{place}{MANIFEST}".encode(), canonical(manifest))


def manifests(records: Mapping[str, bytes]) -> list[str]:
    """Keys of the manifests, one for each finished checkpoint."""
    return [name for name in records if OURS.fullmatch(name) and name.endswith(f"/{MANIFEST}")]


def generations(records: Mapping[str, bytes]) -> list[tuple[int, bytes]]:
    """(generation, key) of every record; a key that is none of ours is nobody's to erase."""
    return [(int(found[1]), name.encode()) for name in records if (found := OURS.fullmatch(name))]


def join(records: Mapping[str, bytes], manifest_key: str) -> tuple[Checkpoint, int]:
    """The checkpoint of a manifest, and where its journal begins. Raises ArtifactError if it is not whole."""
    place = manifest_key.removesuffix(MANIFEST)
    manifest = manifest_from_bytes(records[manifest_key])
    chunks = []
    for number, expected in enumerate(manifest.chunks):
        named = records.get(_name(place, number, expected.sha256))
        chunk = records.get(f"{place}{number}", b"") if named is None else named  # so until version 0.3
        if len(chunk) != expected.bytes or _hash(chunk) != expected.sha256:
            raise ArtifactError(
                f"chunk {number} of {place} is missing or of another checkpoint: the write was torn"
            )
        chunks.append(chunk)
    checkpoint = checkpoint_from_bytes(b"".join(chunks))
    if _place(checkpoint) != place:
        raise ArtifactError(f"the checkpoint at {place} says that it belongs elsewhere")
    return checkpoint, manifest.journal_offset


def _place(checkpoint: Checkpoint) -> str:
    return f"{checkpoint.topic}/{checkpoint.partition}/{checkpoint.generation}/{checkpoint.seq % 2}/"


def _name(place: str, number: int, sha256: str) -> str:
    return f"{place}{number}-{sha256[:8]}"


def _hash(chunk: bytes) -> str:
    return hashlib.sha256(chunk).hexdigest()
