"""One contract for every state store; what belongs to a medium (torn files, flipped bits) comes after it."""

import hashlib
import json
import math
import random
import resource
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from core.artifacts import tensors_hash
from core.checkpoints import Checkpoint, JournalEntry, KeptState, LaneRecord, LaneState
from core.config import KafkaConfig
from core.errors import ArtifactError, ConfigError, DeliveryError
from core.protocols import StateStore
from stream.changelog import ChangelogStore
from stream.chunks import split
from stream.directory import DirectoryStore
from stream.memory_store import MemoryStore
from stream.states import (
    checkpoint_from_bytes,
    checkpoint_to_bytes,
    entry_from_bytes,
    entry_to_bytes,
    settled,
)
from tests.toys.simulated_cluster import Client, Cluster, Faults, SimulatedTopicLog

HERE = ("qshift.queries", 0)
Opener = Callable[[], StateStore]


def lane(name: str, next_seq: int, seed: int = 0) -> LaneState:
    draw = np.random.default_rng(seed)
    tensors = {
        "weight": draw.normal(size=(3, 4)).astype(np.float32),
        "turned": draw.normal(size=(3, 4)).astype(np.float32).T,
        "every_other": np.arange(10, dtype=np.int64)[::2],
        "codes": draw.integers(0, 256, (5, 2), dtype=np.uint8),
        "count": np.int64(7) + np.zeros((), dtype=np.int64),
        "empty": np.zeros((0, 8), dtype=np.float32),
        "flags": np.array([True, False]),
        "halves": np.array([1.5, -0.0], dtype=np.float16),
        "odd": np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45], dtype=np.float32),
        "wide": np.array([math.pi], dtype=np.float64),
    }
    meta = {
        "method": "rest",
        "entropy": float("nan"),
        "bound": float("inf"),
        "tenth": 0.1,
        "generator": {"state": 2**127 + 3, "has_uint32": 0},
        "none": None,
        "text": "żółw\n\u0000",
        "list": [1, [2.5, {}]],
    }
    kept = tuple(
        KeptState(number, f"hash{number}", {"weight": np.full(3, seed + number)}, {"n": number})
        for number in range(2)
    )
    return LaneState(
        name, next_seq, 10 * next_seq, tensors, meta, tensors_hash(tensors, meta), next_seq, kept
    )


def checkpoint(
    seq: int, generation: int = 0, partition: tuple[str, int] = HERE, next_seq: int | None = None
) -> Checkpoint:
    after = seq if next_seq is None else next_seq
    lanes = (lane(f"{partition[1]}:image", after, seq), lane(f"{partition[1]}:text", after, seq + 1000))
    return Checkpoint(
        *partition, seq, f"parent{seq}", 10 * seq, lanes, "config", {"qshift.labels/0": seq}, generation,
        control_offset=seq,
    )  # fmt: skip


def entry(seq: int, name: str = "0:text", generation: int = 0, first: int | None = None) -> JournalEntry:
    start = 10 * seq if first is None else first
    offsets = tuple(range(start, start + 3))
    return JournalEntry(*HERE, name, seq, offsets, f"hash{seq}", seq, generation)


def same(found: Checkpoint | None, expected: Checkpoint) -> None:
    """Compares byte by byte, NaN included."""
    assert found is not None
    assert replace(found, lanes=()) == replace(expected, lanes=())
    assert [one.lane for one in found.lanes] == [one.lane for one in expected.lanes]
    for one, other in zip(found.lanes, expected.lanes, strict=True):
        same_lane(one, other)


def same_lane(one: LaneState, other: LaneState) -> None:
    assert (one.next_seq, one.next_offset, one.state_hash) == (
        other.next_seq,
        other.next_offset,
        other.state_hash,
    )
    assert json.dumps(one.meta, sort_keys=True) == json.dumps(other.meta, sort_keys=True)
    assert list(one.tensors) == list(other.tensors)
    for name, array in other.tensors.items():
        assert one.tensors[name].dtype == array.dtype, name
        assert one.tensors[name].shape == array.shape, name
        assert one.tensors[name].tobytes() == array.tobytes(), name
    assert tensors_hash(one.tensors, one.meta) == other.state_hash
    assert one.control_offset == other.control_offset
    for kept, was in zip(one.kept, other.kept, strict=True):
        assert (kept.seq, kept.state_hash, kept.meta) == (was.seq, was.state_hash, was.meta)
        assert kept.tensors["weight"].tobytes() == was.tensors["weight"].tobytes()


# -- the contract ---------------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "directory"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    """A handle on the same storage each time it is called, as after a restart."""
    handles: list[StateStore] = []
    kept = MemoryStore()

    def opener() -> StateStore:
        handles.append(DirectoryStore(tmp_path / "state") if request.param == "directory" else kept)
        return handles[-1]

    yield opener
    for handle in handles:
        handle.close()


def test_new_store_is_empty(opened: Opener) -> None:
    store = opened()
    assert store.load(HERE) is None
    assert store.journalled(HERE, {}) == []
    store.close()
    store.close()


def test_cut_comes_back_byte_for_byte(opened: Opener) -> None:
    opened().save(checkpoint(1))
    same(opened().load(HERE), checkpoint(1))


def test_cut_without_lanes(opened: Opener) -> None:
    bare = replace(checkpoint(0), lanes=(), label_offsets={})
    opened().save(bare)
    assert opened().load(HERE) == bare


def test_newest_cut_wins(opened: Opener) -> None:
    for seq in range(5):
        opened().save(checkpoint(seq))
        same(opened().load(HERE), checkpoint(seq))


def test_partitions_and_topics_are_apart(opened: Opener) -> None:
    places = [HERE, ("qshift.queries", 1), ("qshift.queries-1", 0), ("other/../topic", 0), ("..", 0)]
    for number, place in enumerate(places):
        opened().save(checkpoint(number, partition=place))
        opened().journal(replace(entry(number), topic=place[0], partition=place[1]))
    for number, place in enumerate(places):
        same(opened().load(place), checkpoint(number, partition=place))
        assert [e.seq for e in opened().journalled(place, {})] == [number]
    assert opened().load(("qshift.queries", 2)) is None


def test_zombie_with_lower_generation_is_ignored(opened: Opener) -> None:
    zombie, owner = opened(), opened()
    zombie.save(checkpoint(1, generation=1))
    owner.save(checkpoint(2, generation=2))
    zombie.save(checkpoint(2, generation=1))
    zombie.save(checkpoint(3, generation=1))
    same(opened().load(HERE), checkpoint(2, generation=2))
    owner.save(checkpoint(3, generation=2))
    owner.save(checkpoint(4, generation=2))
    same(opened().load(HERE), checkpoint(4, generation=2))


def test_lanes_come_back_byte_for_byte_whatever_they_are_called(opened: Opener) -> None:
    names = ["0:image:acme", "0:image:../../etc/passwd", "0:image:ä\n\u0000", "0:text:" + "x" * 256]
    states = [lane(name, number, number) for number, name in enumerate(names)]
    kept = opened().keep(HERE, 3, states)
    later = opened()
    later.load(HERE)
    for state, record in zip(states, kept, strict=True):
        assert record.lane == state.lane and record.next_seq == state.next_seq
        same_lane(later.fetch(HERE, record), state)
    other = opened().keep((HERE[0], 1), 3, states[:1])
    with pytest.raises(ArtifactError, match="is gone"):
        opened().fetch(HERE, other[0])


def test_a_lane_is_kept_until_two_checkpoints_do_not_name_it(opened: Opener) -> None:
    store = opened()
    old, new = (store.keep(HERE, 0, [lane("0:image:a", number)])[0] for number in (1, 2))

    def names(seq: int, *records: LaneRecord) -> None:
        store.save(replace(checkpoint(seq), lanes=(), resting=records))

    names(0, old)
    names(1, new)
    same_lane(store.fetch(HERE, old), lane("0:image:a", 1))
    names(2, new)
    with pytest.raises(ArtifactError, match="is gone"):
        store.fetch(HERE, old)
    found = opened().load(HERE)
    assert found is not None and found.resting == (new,) and found.covered == {"0:image:a": 2}
    same_lane(opened().fetch(HERE, new), lane("0:image:a", 2))


def test_a_zombie_writes_beside_the_lanes_of_its_successor(opened: Opener) -> None:
    zombie, owner = opened(), opened()
    state = lane("0:image:a", 1)
    (first,) = zombie.keep(HERE, 1, [state])
    (second,) = owner.keep(HERE, 2, [state])
    assert first.record != second.record, "neither erases the other's"
    same_lane(opened().fetch(HERE, second), state)


def test_journal_in_order_from_since(opened: Opener) -> None:
    written = [entry(0), entry(0, "0:image"), entry(1), entry(2), entry(1, "0:image")]
    store = opened()
    for one in written:
        store.journal(one)
    assert opened().journalled(HERE, {}) == written
    assert opened().journalled(HERE, {"0:text": 1}) == written[1:]
    assert opened().journalled(HERE, {"0:text": 3, "0:image": 1}) == [written[4]]
    assert opened().journalled(HERE, {"0:text": 3, "0:image": 2}) == []


def test_journal_goes_on_after_reopening(opened: Opener) -> None:
    opened().journal(entry(0))
    opened().journal(entry(1))
    assert opened().journalled(HERE, {}) == [entry(0), entry(1)]


def test_first_of_a_generation_counts(opened: Opener) -> None:
    store = opened()
    for one in (entry(0), entry(1), entry(1, first=500)):
        store.journal(one)
    assert opened().journalled(HERE, {}) == [entry(0), entry(1)]


def test_highest_generation_counts_and_voids_what_follows(opened: Opener) -> None:
    store = opened()
    zombies = [entry(0, generation=1), entry(1, generation=1), entry(2, generation=1)]
    for one in [*zombies, entry(1, generation=2, first=11), entry(3, generation=1)]:
        store.journal(one)
    assert opened().journalled(HERE, {}) == [zombies[0], entry(1, generation=2, first=11)]


def test_journal_of_an_uncovered_lane_survives_checkpoints(opened: Opener) -> None:
    store = opened()
    store.journal(entry(0, "0:vector"))
    for seq in range(4):
        store.journal(entry(seq))
        store.save(checkpoint(seq, next_seq=seq + 1))
    since = {"0:text": 4, "0:image": 4}
    assert opened().journalled(HERE, since) == [entry(0, "0:vector")]


# -- bytes ----------------------------------------------------------------------------------------------


def late(first: Checkpoint, second: Checkpoint) -> ChangelogStore:
    """A topic where the first attempt at a checkpoint arrives when the second was acknowledged."""
    kafka = KafkaConfig()
    cluster = Cluster(1, np.random.default_rng(0), kafka, Faults(0.0, 0.0, 0.0))
    store = ChangelogStore("nowhere:1", kafka)
    store._log = SimulatedTopicLog(cluster, Client(0))
    store.load(HERE)
    store.save(second)
    chunks, _ = split(first, 0)
    for key, value in chunks:
        cluster.write((kafka.state, 0), key, value)
    return store


def test_chunks_that_were_given_up_and_come_late_tear_nothing() -> None:
    first, second = checkpoint(0), replace(checkpoint(0), next_offset=7)
    same(late(first, second).load(HERE), second)


def test_chunks_that_nobody_needs_are_erased() -> None:
    store = late(checkpoint(0), replace(checkpoint(0), next_offset=7))
    store.load(HERE)
    for seq in range(1, 6):
        store.save(checkpoint(seq))
    keys = set(store._records(HERE))
    assert len(keys) == 4, "two slots: a chunk and a manifest each"
    same(store.load(HERE), checkpoint(5))


def small() -> Checkpoint:
    state = LaneState("0:text", 1, 2, {"w": np.arange(3, dtype=np.float32)}, {"x": 1}, "h")
    return Checkpoint(*HERE, 1, "", 2, (state,), "c")


def test_equal_cuts_give_equal_bytes() -> None:
    assert checkpoint_to_bytes(checkpoint(3)) == checkpoint_to_bytes(checkpoint(3))
    assert checkpoint_to_bytes(checkpoint(3)) != checkpoint_to_bytes(checkpoint(4))


def test_truncation_at_every_byte_is_noticed() -> None:
    blob = checkpoint_to_bytes(small())
    for size in range(len(blob)):
        with pytest.raises(ArtifactError):
            checkpoint_from_bytes(blob[:size])
    with pytest.raises(ArtifactError):
        checkpoint_from_bytes(blob + b"\0")


def test_every_flipped_bit_is_noticed() -> None:
    blob = bytearray(checkpoint_to_bytes(small()))
    for position in range(len(blob)):
        for bit in range(8):
            blob[position] ^= 1 << bit
            with pytest.raises(ArtifactError):
                checkpoint_from_bytes(bytes(blob))
            blob[position] ^= 1 << bit
    assert checkpoint_from_bytes(bytes(blob)).seq == 1


@pytest.mark.parametrize(
    ("tensors", "meta"),
    [
        ({"a": np.array(["text"])}, {}),
        ({"a": np.array([None])}, {}),
        ({}, {"a": b"bytes"}),
        ({}, {"a": {1, 2}}),
    ],
)
def test_what_cannot_be_written_is_refused(tensors: dict[str, np.ndarray], meta: dict[str, object]) -> None:
    bad = replace(small(), lanes=(LaneState("0:text", 1, 2, tensors, meta, "h"),))
    with pytest.raises(ArtifactError, match="cannot be written"):
        checkpoint_to_bytes(bad)


def test_entry_is_canonical_and_strict() -> None:
    text = entry_to_bytes(entry(1))
    assert text == (
        b'{"generation":0,"label_offset":1,"lane":"0:text","offsets":[10,11,12],"partition":0,"seq":1,'
        b'"state_hash":"hash1","topic":"qshift.queries"}'
    )
    assert entry_from_bytes(text) == entry(1)
    for bad in (b"", b"{}", b"[]", b"null", b"\xff", text[:-1], text + b" ", text.replace(b"1", b"1.0")):
        with pytest.raises(ArtifactError):
            entry_from_bytes(bad)
    steered = replace(entry(1), label_offsets={"labels/1": 7, "labels/0": 3})
    text = entry_to_bytes(steered)
    assert b'"label_offset":1,"label_offsets":{"labels/0":3,"labels/1":7},"lane"' in text
    assert entry_from_bytes(text) == steered
    for other in (b"{}", b'{"labels":3}', b'{"labels/0":-1}', b'{"labels/0":true}', b"[]"):
        with pytest.raises(ArtifactError):
            entry_from_bytes(text.replace(b'{"labels/0":3,"labels/1":7}', other))


def test_settled_equals_a_slow_oracle() -> None:
    draw = random.Random(5)
    for _ in range(300):
        written = [
            entry(draw.randrange(6), draw.choice("ab"), draw.randrange(3), first=draw.randrange(3))
            for _ in range(draw.randrange(12))
        ]
        since = {"a": draw.randrange(4)} if draw.random() < 0.5 else {}
        expected = []
        for number, one in enumerate(written):
            mine = [e for e in written if e.lane == one.lane]
            fenced = any(e.generation > one.generation and e.seq <= one.seq for e in mine)
            earlier = [e for e in written[:number] if e.lane == one.lane and e.seq == one.seq]
            beaten = any(e.generation == one.generation for e in earlier)
            if not fenced and not beaten and one.seq >= since.get(one.lane, 0):
                expected.append(one)
        assert settled(written, since) == expected


# -- files ----------------------------------------------------------------------------------------------


def slots(folder: Path) -> list[Path]:
    return sorted(folder.rglob("checkpoint-*"))


def test_a_torn_slot_never_hides_the_other(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    store.save(small())
    store.save(replace(small(), seq=2))
    path = next(p for p in slots(tmp_path) if p.name.endswith("-0"))
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        found = DirectoryStore(tmp_path).load(HERE)
        assert found is not None and found.seq == 1
    for other in slots(tmp_path):
        other.write_bytes(whole[:100])
    with pytest.raises(ArtifactError, match="none of the 2 checkpoints"):
        DirectoryStore(tmp_path).load(HERE)


def test_states_of_version_0_2_are_read_and_replaced(tmp_path: Path) -> None:
    """Their bytes are those of now; their files have another name."""
    saved = (Path(__file__).parent / "golden" / "checkpoint.v0.2.bin").read_bytes()
    assert checkpoint_to_bytes(small()) == saved
    store = DirectoryStore(tmp_path)
    store.save(small())
    slots(tmp_path)[0].rename(slots(tmp_path)[0].with_name("cut-0-1"))
    store = DirectoryStore(tmp_path)
    found = store.load(HERE)
    assert found is not None and found.seq == 1
    for seq in (2, 3):
        store.save(replace(small(), seq=seq))
    found = DirectoryStore(tmp_path).load(HERE)
    assert found is not None and found.seq == 3
    assert not list(tmp_path.rglob("cut-*"))


def test_only_two_slots_and_no_drafts_stay(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    for seq in range(6):
        store.save(replace(small(), seq=seq, generation=seq // 3))
    assert [p.name for p in slots(tmp_path)] == ["checkpoint-1-0", "checkpoint-1-1"]
    assert not list(tmp_path.rglob(".*"))


def test_torn_last_line_is_ignored_at_every_byte(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    for seq in range(3):
        store.journal(entry(seq))
    store.close()
    (path,) = tmp_path.rglob("journal.jsonl")
    whole = path.read_bytes()
    start = whole[:-1].rfind(b"\n") + 1
    for size in [*range(start, len(whole), 9), len(whole) - 1]:
        path.write_bytes(whole[:size])
        again = DirectoryStore(tmp_path)
        assert again.journalled(HERE, {}) == [entry(0), entry(1)]
        again.journal(entry(2, first=77))
        again.close()
        assert DirectoryStore(tmp_path).journalled(HERE, {}) == [entry(0), entry(1), entry(2, first=77)]


def test_flipped_bits_in_the_journal_are_never_accepted(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    written = [entry(seq) for seq in range(4)]
    for one in written:
        store.journal(one)
    store.close()
    (path,) = tmp_path.rglob("journal.jsonl")
    whole, draw, raised = path.read_bytes(), random.Random(3), 0
    for _ in range(300):
        bad = bytearray(whole)
        bad[draw.randrange(len(bad))] ^= 1 << draw.randrange(8)
        path.write_bytes(bytes(bad))
        try:
            found = DirectoryStore(tmp_path).journalled(HERE, {})
        except ArtifactError:
            raised += 1
        else:
            assert found == written[: len(found)] and len(found) < len(written)
    assert raised > 180


def test_pruning_keeps_what_the_older_cut_needs(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path, prune_lines=8)
    for seq in range(40):
        store.journal(entry(seq))
        store.journal(entry(seq, "0:image"))
        if seq % 4 == 3:
            store.save(checkpoint(seq // 4, next_seq=seq + 1))
    store.close()
    (path,) = tmp_path.rglob("journal.jsonl")
    assert len(path.read_bytes().splitlines()) == 8  # batches 36..39 of two lanes
    newest = next(p for p in slots(tmp_path) if p.name == "checkpoint-0-1")
    newest.write_bytes(b"")
    again = DirectoryStore(tmp_path)
    older = again.load(HERE)
    assert older is not None and older.seq == 8
    since = {one.lane: one.next_seq for one in older.lanes}
    assert [e.seq for e in again.journalled(HERE, since) if e.lane == "0:text"] == [36, 37, 38, 39]


def test_a_full_disk_is_a_delivery_error_and_leaves_nothing(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    store.journal(entry(0))
    (path,) = tmp_path.rglob("journal.jsonl")
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, hard))
    try:
        with pytest.raises(DeliveryError):
            store.journal(entry(1))
        with pytest.raises(DeliveryError):
            store.save(checkpoint(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert store.load(HERE) is None
    store.journal(entry(1, first=50))
    assert store.journalled(HERE, {}) == [entry(0), entry(1, first=50)]
    store.close()


def test_meta_hash_is_stable_through_bytes() -> None:
    blob = checkpoint_to_bytes(checkpoint(2))
    again = checkpoint_to_bytes(checkpoint_from_bytes(blob))
    assert hashlib.sha256(again).hexdigest() == hashlib.sha256(blob).hexdigest()


def test_a_folder_that_cannot_be_written_to_is_said_at_the_start(tmp_path: Path) -> None:
    """A file stands in its way: not even root can write there."""
    DirectoryStore(tmp_path / "state").check()
    assert list((tmp_path / "state").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"the state cannot be written to .*file/state: .*name another"):
        DirectoryStore(tmp_path / "file" / "state").check()
