"""Checkpoints and journal entries <-> bytes, and which entries of a journal count. Shared by every store.

A checkpoint is one safetensors blob (tensors named `<lane index>/<name>`, everything else as JSON in its
metadata) behind a magic and a sha256, so that a truncation at any byte and any flipped bit are noticed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from core.checkpoints import Checkpoint, JournalEntry, KeptState, LaneRecord, LaneState
from core.errors import ArtifactError, first_fault

MAGIC, KEY = b"qshcut1\n", "cut"
"""Names of the format since version 0.2: states saved then are read now."""
_HEAD = len(MAGIC) + hashlib.sha256().digest_size
DIGEST = slice(len(MAGIC), _HEAD)
"""Where a checkpoint's bytes hold the sha256 of what follows."""


Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
Generation = Annotated[int, Field(ge=-1, le=2**63 - 1)]
Place = Annotated[str, Field(pattern=r"/[0-9]{1,10}$")]
"""topic/partition."""


class _Strict(BaseModel):
    """True is no number, 7.0 and "7" are none either, and nothing else may stand there."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class _Entry(_Strict):
    topic: str
    partition: Count
    lane: str
    seq: Count
    offsets: Annotated[list[Count], FailFast()]
    state_hash: str
    label_offset: Count
    generation: Generation
    gallery: str = ""
    label_offsets: dict[Place, Count] = {}
    control_offset: Count = 0
    learns: bool = True


class _KeptHead(_Strict):
    seq: Count
    state_hash: str
    meta: dict[str, Any]
    tensors: list[str]


class _LaneHead(_Strict):
    lane: str
    next_seq: Count
    next_offset: Count
    meta: dict[str, Any]
    state_hash: str
    tensors: list[str]
    control_offset: Count = 0
    kept: list[_KeptHead] = []


class _Resting(_Strict):
    """A column for each field of a `LaneRecord`: there may be thousands."""

    lane: list[str] = []
    next_seq: list[Count] = []
    next_offset: list[Count] = []
    state_hash: list[str] = []
    control_offset: list[Count] = []
    record: list[Annotated[str, Field(pattern="^[0-9a-f]{64}$")]] = []

    def records(self) -> tuple[LaneRecord, ...]:
        columns = (getattr(self, name) for name in LaneRecord.__slots__)
        return tuple(LaneRecord(*row) for row in zip(*columns, strict=True))


class _CheckpointHead(_Strict):
    topic: str
    partition: Count
    seq: Count
    parent_hash: str
    next_offset: Count
    config_hash: str
    label_offsets: dict[Place, Count]
    generation: Generation
    log_id: str = ""
    control_offset: Count = 0
    lanes: list[_LaneHead]
    resting: _Resting = _Resting()


class CheckpointManifest(_Strict):
    """What stands behind the chunks of a checkpoint in a topic."""

    class Chunk(_Strict):
        """One of them."""

        bytes: Count
        sha256: str

    seq: Count
    generation: Generation
    journal_offset: Count
    chunks: list[Chunk]


def manifest_from_bytes(value: bytes) -> CheckpointManifest:
    """Reads a manifest. Raises ArtifactError when the bytes are not one."""
    try:
        return CheckpointManifest.model_validate_json(value)
    except ValidationError as error:
        raise ArtifactError(f"not a manifest: {first_fault(error)[0]}") from error


def canonical(document: Mapping[str, Any]) -> bytes:
    """The one JSON spelling of a document: sorted keys, no spaces, ASCII."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def checkpoint_to_bytes(checkpoint: Checkpoint) -> bytes:
    """Serialises a checkpoint; equal checkpoints give equal bytes.

    Raises:
        ArtifactError: a tensor has a dtype that safetensors cannot hold, or meta is not JSON-able.
    """
    tensors = {
        # asarray and not ascontiguousarray: that would turn a 0-d array into one of one element.
        f"{place}/{name}": np.asarray(array, order="C")
        for number, lane in enumerate(checkpoint.lanes)
        for place, state in [(str(number), lane), *_places(number, lane.kept)]
        for name, array in state.tensors.items()
    }
    header = {
        "topic": checkpoint.topic,
        "partition": checkpoint.partition,
        "seq": checkpoint.seq,
        "parent_hash": checkpoint.parent_hash,
        "next_offset": checkpoint.next_offset,
        "config_hash": checkpoint.identity,  # the name that version 0.2.0 gave it
        "label_offsets": dict(checkpoint.label_offsets),
        "generation": checkpoint.generation,
        "log_id": checkpoint.log_id,
        "lanes": [_lane_head(lane) for lane in checkpoint.lanes],
        **_said("control_offset", checkpoint.control_offset),
        **_said("resting", _columns(checkpoint.resting)),
    }
    try:
        # NaN is allowed here: meta keeps figures such as an entropy that was never measured.
        body: bytes = save(tensors, {KEY: json.dumps(header, sort_keys=True, allow_nan=True)})
    except (SafetensorError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"the state of {checkpoint.topic}/{checkpoint.partition} cannot be written: {error}; tensors "
            "must be plain numeric arrays and meta must be JSON-able"
        ) from error
    return MAGIC + hashlib.sha256(body).digest() + body


def _lane_head(lane: LaneState) -> dict[str, Any]:
    """What is not there is not written: without commands it is what version 0.3 wrote."""
    kept = [
        {"seq": k.seq, "state_hash": k.state_hash, "meta": dict(k.meta), "tensors": list(k.tensors)}
        for k in lane.kept
    ]
    return {
        "lane": lane.lane,
        "next_seq": lane.next_seq,
        "next_offset": lane.next_offset,
        "meta": dict(lane.meta),
        "state_hash": lane.state_hash,
        "tensors": list(lane.tensors),
        **_said("control_offset", lane.control_offset),
        **_said("kept", kept),
    }


def _columns(records: Sequence[LaneRecord]) -> dict[str, list[Any]]:
    return {name: [getattr(one, name) for one in records] for name in LaneRecord.__slots__ if records}


def _said(name: str, value: Any) -> dict[str, Any]:
    return {name: value} if value else {}


def _places(number: int, kept: Sequence[Any]) -> list[tuple[str, Any]]:
    """Where the tensors of kept states lie beside those of their lane."""
    return [(f"kept{number}.{place}", state) for place, state in enumerate(kept)]


def checkpoint_from_bytes(blob: bytes) -> Checkpoint:
    """Reads a checkpoint back, arrays byte-exact.

    Raises:
        ArtifactError: truncated, altered, or not a checkpoint.
    """
    body = blob[_HEAD:]
    if blob[: len(MAGIC)] != MAGIC or blob[len(MAGIC) : _HEAD] != hashlib.sha256(body).digest():
        raise ArtifactError(
            f"{len(blob)} bytes are not a whole checkpoint: magic or sha256 does not match; the write was "
            "torn or the bytes were altered"
        )
    size = int.from_bytes(body[:8], "little")
    try:
        # Not by pydantic's own parser: floats of `meta` have to come back to the last bit.
        head = _CheckpointHead.model_validate(json.loads(json.loads(body[8 : 8 + size])["__metadata__"][KEY]))
        tensors = load(body)
        lanes = tuple(
            LaneState(
                lane.lane, lane.next_seq, lane.next_offset,
                {name: tensors[f"{number}/{name}"] for name in lane.tensors}, lane.meta, lane.state_hash,
                lane.control_offset,
                tuple(
                    KeptState(
                        kept.seq, kept.state_hash,
                        {name: tensors[f"{place}/{name}"] for name in kept.tensors}, kept.meta,
                    )
                    for place, kept in _places(number, lane.kept)
                ),
            )
            for number, lane in enumerate(head.lanes)
        )  # fmt: skip
        resting = head.resting.records()
    except ValidationError as error:
        raise ArtifactError(f"not a checkpoint: {first_fault(error)[0]}") from error
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactError(f"not a checkpoint: {type(error).__name__}: {error}") from error
    return Checkpoint(
        head.topic, head.partition, head.seq, head.parent_hash, head.next_offset, lanes, head.config_hash,
        head.label_offsets, head.generation, head.log_id, head.control_offset, resting,
    )  # fmt: skip


def entry_to_bytes(entry: JournalEntry) -> bytes:
    """Canonical JSON of a journal entry. Without gallery, labels, commands and haste it is what 0.2 wrote."""
    more: dict[str, Any] = {"gallery": entry.gallery} if entry.gallery else {}
    more |= {"label_offsets": dict(entry.label_offsets)} if entry.label_offsets else {}
    more |= _said("control_offset", entry.control_offset)
    more |= {} if entry.learns else {"learns": False}
    return canonical(
        {
            "topic": entry.topic,
            "partition": entry.partition,
            "lane": entry.lane,
            "seq": entry.seq,
            "offsets": list(entry.offsets),
            "state_hash": entry.state_hash,
            "label_offset": entry.label_offset,
            "generation": entry.generation,
            **more,
        }
    )


def entry_from_bytes(value: bytes) -> JournalEntry:
    """Reads a journal entry. Raises ArtifactError when the bytes are not one."""
    try:
        found = _Entry.model_validate_json(value)
    except ValidationError as error:
        raise ArtifactError(f"not a journal entry: {first_fault(error)[0]}") from error
    entry = JournalEntry(
        found.topic, found.partition, found.lane, found.seq, tuple(found.offsets), found.state_hash,
        found.label_offset, found.generation, found.gallery, found.label_offsets, found.control_offset,
        found.learns,
    )  # fmt: skip
    if entry_to_bytes(entry) != value:
        raise ArtifactError("not a journal entry: the JSON is not in its canonical spelling")
    return entry


def settled(entries: Iterable[JournalEntry], since: Mapping[str, int]) -> list[JournalEntry]:
    """The entries that count, in the order written, one per (lane, seq), from `since[lane]` on.

    A generation that wrote batch s had read a journal that ended before s: whatever an older generation
    wrote at s or later comes from a zombie, and is void. Within a generation the first one written counts,
    because its answers may already have left.

    Args:
        entries: in the order written.
        since: first wanted seq by lane; 0 for lanes not named.
    """
    written = list(entries)
    starts: dict[str, dict[int, int]] = {}
    """lane -> generation -> its lowest seq."""
    for entry in written:
        lane = starts.setdefault(entry.lane, {})
        lane[entry.generation] = min(entry.seq, lane.get(entry.generation, entry.seq))
    kept: dict[tuple[str, int], JournalEntry] = {}
    for entry in written:
        fenced = any(
            generation > entry.generation and start <= entry.seq
            for generation, start in starts[entry.lane].items()
        )
        if not fenced and entry.seq >= since.get(entry.lane, 0):
            kept.setdefault((entry.lane, entry.seq), entry)
    return list(kept.values())
