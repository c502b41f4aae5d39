"""What stands in a state or a journal has its types: a program that is not ours may have written it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from core.checkpoints import Checkpoint, JournalEntry, LaneState
from core.config import KafkaConfig
from core.errors import ArtifactError
from stream.changelog import ChangelogStore
from stream.directory import DirectoryStore
from stream.states import (
    MAGIC,
    canonical,
    checkpoint_from_bytes,
    checkpoint_to_bytes,
    entry_from_bytes,
    entry_to_bytes,
)
from stream.topic_log import TopicLog

HERE = ("q", 0)
HEAD = len(MAGIC) + 32
Keyed = tuple[int, bytes | None, bytes | None]


def checkpoint(seq: int) -> Checkpoint:
    lane = LaneState("0:text", seq, 10 * seq, {"w": np.ones(3, np.float32)}, {"tenth": 0.1}, "hash")
    return Checkpoint(*HERE, seq, "parent", 10 * seq, (lane,), "config", {"labels/0": seq}, 1)


def entry(seq: int) -> JournalEntry:
    return JournalEntry(*HERE, "0:text", seq, (10, 11, 12), f"hash{seq}", seq, 0)


GOOD_ENTRY = json.loads(entry_to_bytes(entry(1)))


def test_a_gallery_is_named_where_it_may_change_and_only_there() -> None:
    named = replace(entry(1), gallery="0123456789abcdef")
    assert entry_from_bytes(entry_to_bytes(named)) == named
    assert "gallery" not in GOOD_ENTRY, "where it cannot change, entries are those of version 0.2"
    for wrong in ("", None, 1, ["0"]):
        with pytest.raises(ArtifactError):
            entry_from_bytes(canonical({**GOOD_ENTRY, "gallery": wrong}))


@pytest.mark.parametrize("field", sorted(GOOD_ENTRY))
@pytest.mark.parametrize("wrong", [None, True, 1.0, "1", 1, [], {}, [True], [None], ["1"], -5, 2**70])
def test_fields_of_an_entry_have_their_types(field: str, wrong: object) -> None:
    """In canonical spelling, so that nothing but the type can give it away."""
    names, counts = ("lane", "state_hash", "topic"), ("generation", "label_offset", "partition", "seq")
    fits = (
        (field in names and isinstance(wrong, str))
        or (field in counts and type(wrong) is int and 0 <= wrong < 2**63)
        or (field == "offsets" and wrong == [])
    )
    value = canonical({**GOOD_ENTRY, field: wrong})
    if fits:
        assert entry_to_bytes(entry_from_bytes(value)) == value
        return
    with pytest.raises(ArtifactError, match="not a journal entry") as error:
        entry_from_bytes(value)
    assert "\n" not in str(error.value) and field in str(error.value)


@pytest.mark.parametrize(
    "value",
    [
        b"[" * 100_000,
        canonical(GOOD_ENTRY).replace(b'"seq":1', b'"seq":' + b"9" * 5000),
        canonical(GOOD_ENTRY).replace(b'"seq":1', b'"seq":1,"seq":1'),
        canonical(GOOD_ENTRY).replace(b"hash1", b"\\ud800"),
        canonical({**GOOD_ENTRY, "more": 1}),
    ],
    ids=["nested", "digits", "twice", "surrogate", "more"],
)
def test_entries_that_no_parser_may_fall_over(value: bytes) -> None:
    with pytest.raises(ArtifactError, match="not a journal entry"):
        entry_from_bytes(value)


@pytest.mark.parametrize(
    ("field", "wrong"),
    [("seq", True), ("partition", None), ("next_offset", "7"), ("topic", 3), ("label_offsets", {"x": 1}),
     ("label_offsets", {"labels/0": True}), ("lanes", None), ("lanes", [None]), ("generation", 1.5),
     ("config_hash", None)],
)  # fmt: skip
def test_a_whole_cut_with_wrong_types_is_none(field: str, wrong: object) -> None:
    """Its checksum fits: a program wrote it that was not ours."""
    body = checkpoint_to_bytes(checkpoint(1))[HEAD:]
    size = int.from_bytes(body[:8], "little")
    head = json.loads(json.loads(body[8 : 8 + size])["__metadata__"]["cut"])
    other: bytes = save({}, {"cut": json.dumps({**head, "lanes": [], field: wrong})})
    blob = MAGIC + hashlib.sha256(other).digest() + other
    with pytest.raises(ArtifactError, match="not a checkpoint"):
        checkpoint_from_bytes(blob)


def test_a_cut_without_its_header_is_none() -> None:
    for body in (save({}), save({}, {"cut": "[" * 100_000}), save({}, {"cut": "[]"}), b"", b"\xff" * 99):
        with pytest.raises(ArtifactError, match="not a checkpoint"):
            checkpoint_from_bytes(MAGIC + hashlib.sha256(body).digest() + body)


def test_what_else_lies_in_the_folder_of_a_state(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    store.save(checkpoint(1))
    (home,) = tmp_path.iterdir()
    for name in ("checkpoint-x-0", "checkpoint-1-2-0", "checkpoint--0"):
        (home / name).write_bytes(b"no checkpoint")
    os.mkfifo(home / "checkpoint-99-1")
    (home / "checkpoint-98-1").mkdir()
    found = store.load(HERE)
    assert found is not None and found.seq == 1
    os.mkfifo(home / "journal.jsonl")
    with pytest.raises(ArtifactError, match="named pipe"):
        store.journalled(HERE, {})


class Held(TopicLog):
    """Reads a list where a cluster would be."""

    def __init__(self, records: Sequence[tuple[bytes, bytes]]) -> None:
        super().__init__("nowhere:1", 1.0, 1.0)
        self.records = records

    def read(self, topic: str, partition: int, start: int) -> Iterator[Keyed]:
        yield from ((offset, *record) for offset, record in enumerate(self.records))


def held(records: Sequence[tuple[bytes, bytes]]) -> ChangelogStore:
    store = ChangelogStore("nowhere:1", KafkaConfig())
    store._log = Held(records)
    return store


def in_topic(number: int, **changed: object) -> list[tuple[bytes, bytes]]:
    blob = checkpoint_to_bytes(checkpoint(number))
    chunk = {"bytes": len(blob), "sha256": hashlib.sha256(blob).hexdigest()}
    manifest = {"seq": number, "generation": 1, "journal_offset": 0, "chunks": [chunk], **changed}
    place = f"q/0/1/{number % 2}"
    return [(f"{place}/0".encode(), blob), (f"{place}/manifest".encode(), json.dumps(manifest).encode())]


@pytest.mark.parametrize(
    "changed",
    [{"chunks": None}, {"chunks": [None]}, {"chunks": [{"bytes": True, "sha256": "x"}]},
     {"journal_offset": "7"}, {"journal_offset": True}, {"journal_offset": 1.5}, {"seq": None}],
)  # fmt: skip
def test_a_manifest_with_wrong_types_costs_one_slot(changed: dict[str, object]) -> None:
    found = held([*in_topic(2), *in_topic(3, **changed)]).load(HERE)
    assert found is not None and found.seq == 2


@pytest.mark.parametrize("value", [b"[" * 100_000, b"9" * 5000, b"null", b"\xff"])
def test_a_manifest_that_no_parser_may_fall_over(value: bytes) -> None:
    broken = [(key, value if key.endswith(b"manifest") else blob) for key, blob in in_topic(3)]
    found = held([*in_topic(2), *broken]).load(HERE)
    assert found is not None and found.seq == 2


def test_keys_that_are_none_of_ours_are_passed_over() -> None:
    strangers = [
        (b"q/0/x/y/z", b""),
        (b"q/0/manifest", b"{}"),
        (b"q/0/1/7/manifest", b"{}"),
        (b"q/0//0/0", b""),
    ]
    found = held([*strangers, *in_topic(2)]).load(HERE)
    assert found is not None and found.seq == 2
