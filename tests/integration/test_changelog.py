"""The state store on Kafka: the contract of every store, and what only a broker can do to it."""

from __future__ import annotations

import gc
import importlib.util
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kafka.admin import KafkaAdminClient

from core.artifacts import tensors_hash
from core.checkpoints import Checkpoint, JournalEntry, LaneState
from core.config import KafkaConfig
from core.errors import ArtifactError, DeliveryError
from core.records import Coordinates, Record
from stream.broker import Broker
from stream.changelog import ChangelogStore
from stream.chunks import split
from stream.client import read_all
from stream.cluster import ensure_topics
from stream.sink import KafkaSink
from stream.states import checkpoint_to_bytes

# kafka-python leaves the sockets of refused connections to the garbage collector.
pytestmark = [pytest.mark.kafka, pytest.mark.filterwarnings("ignore:unclosed .socket:ResourceWarning")]


def _contract() -> Any:
    path = Path(__file__).parents[1] / "stream" / "test_stores.py"
    spec = importlib.util.spec_from_file_location("store_contract", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


contract = _contract()
HERE = contract.HERE
globals().update(
    {name: test for name, test in vars(contract).items() if "opened" in getattr(test, "__annotations__", {})}
)
"""Every test of the contract, on the `opened` below."""


@pytest.fixture
def config(broker: Broker, topics: Callable[[str], str]) -> KafkaConfig:
    made = KafkaConfig(state=topics("state"), journal=topics("journal"), partitions=3)
    settings = ChangelogStore.topic_configs(made)
    ensure_topics(broker.bootstrap_servers, {name: (3, settings[name]) for name in settings})
    return made


@pytest.fixture
def opened(broker: Broker, config: KafkaConfig) -> Iterator[Callable[..., ChangelogStore]]:
    handles: list[ChangelogStore] = []

    def opener(retry_seconds: float = 60.0) -> ChangelogStore:
        handles.append(ChangelogStore(broker.bootstrap_servers, config, retry_seconds))
        return handles[-1]

    yield opener
    for handle in handles:
        handle.close()


@pytest.fixture
def written(broker: Broker, config: KafkaConfig) -> Callable[[str], list[Record]]:
    return lambda topic: read_all(broker.bootstrap_servers, topic)


@pytest.fixture
def raw(broker: Broker, config: KafkaConfig) -> Iterator[Callable[[bytes, bytes | None], Coordinates]]:
    """Writes one record into the state topic behind the store's back."""
    sink = KafkaSink(broker.bootstrap_servers, config)
    yield lambda key, value: sink.emit_to(config.state, value, key, partition=0).coordinates()
    sink.close()


def big(seq: int, generation: int = 0, size: int = 2_500_000) -> Checkpoint:
    noise = np.random.default_rng(seq).integers(0, 256, size, dtype=np.uint8)
    state_hash = tensors_hash({"noise": noise}, {})
    lane = LaneState("0:image", seq + 1, 10 * seq, {"noise": noise}, {}, state_hash)
    return Checkpoint(*HERE, seq, "", 10 * seq, (lane,), "c", {}, generation)


def seq_of(checkpoint: Checkpoint | None) -> int | None:
    return None if checkpoint is None else checkpoint.seq


# -- torn, corrupt, fenced ------------------------------------------------------------------------------


def keys_of(checkpoint: Checkpoint) -> list[bytes]:
    """Of its chunks and its manifest, in the order of writing."""
    chunks, manifest = split(checkpoint, 0)
    return [key for key, _ in (*chunks, manifest)]


def test_big_cuts_travel_in_chunks(
    opened: Callable[..., ChangelogStore], config: KafkaConfig, written: Callable[[str], list[Record]]
) -> None:
    store = opened()
    store.save(big(0))
    contract.same(opened().load(HERE), big(0))
    keys = [record.key for record in written(config.state)]
    assert keys == keys_of(big(0)) and len(keys) == 4
    store.save(big(2, size=10))  # fewer chunks in the same slot: the old ones stay and do no harm
    contract.same(opened().load(HERE), big(2, size=10))


@pytest.mark.parametrize("chunks", [1, 2, 3])
def test_a_torn_cut_never_hides_the_other_slot(
    opened: Callable[..., ChangelogStore], raw: Callable[[bytes, bytes | None], Any], chunks: int
) -> None:
    store = opened()
    store.save(big(0))
    store.save(big(1))
    for key, chunk in split(big(2), 0)[0][:chunks]:  # slot 0 again, and no manifest
        raw(key, chunk)
    contract.same(opened().load(HERE), big(1))


def test_a_torn_first_cut_counts_as_never_written(
    opened: Callable[..., ChangelogStore], raw: Callable[[bytes, bytes | None], Any]
) -> None:
    raw(keys_of(big(0, size=10))[0], checkpoint_to_bytes(big(0, size=10)))
    assert opened().load(HERE) is None


@pytest.mark.parametrize("bad", [b"", b"{}", b"[]", b"null", b"\xff", b'{"chunks":[{}]}', None])
def test_damage_in_one_slot_falls_back_and_in_both_is_an_error(
    opened: Callable[..., ChangelogStore], raw: Callable[[bytes, bytes | None], Any], bad: bytes | None
) -> None:
    store = opened()
    store.save(big(1, size=10))
    store.save(big(2, size=10))
    raw(b"not a key of ours", b"x")
    raw(b"qshift.queries/0/0/0/manifest", bad)
    assert seq_of(opened().load(HERE)) == 1
    raw(keys_of(big(1, size=10))[0], b"flipped")
    left = 2 if bad is not None else 1  # a tombstone is no checkpoint
    with pytest.raises(ArtifactError, match=f"none of the {left} checkpoints"):
        opened().load(HERE)


def test_a_new_owner_erases_older_generations_after_two_checkpoints(
    opened: Callable[..., ChangelogStore], config: KafkaConfig, written: Callable[[str], list[Record]]
) -> None:
    old = opened()
    old.save(big(0, 1, 10))
    old.save(big(1, 1, 10))
    owner = opened()
    assert seq_of(owner.load(HERE)) == 1
    owner.save(big(2, 2, 10))
    assert not [record for record in written(config.state) if record.value is None]
    owner.save(big(3, 2, 10))
    erased = {record.key for record in written(config.state) if record.value is None}
    assert erased == {*keys_of(big(0, 1, 10)), *keys_of(big(1, 1, 10))}
    old.save(big(4, 1, 10))
    assert seq_of(opened().load(HERE)) == 3


# -- the journal ----------------------------------------------------------------------------------------


def entry(seq: int, generation: int = 0, first: int = 0) -> JournalEntry:
    return JournalEntry(*HERE, "0:image", seq, (first, first + 1), "h", 0, generation)


def test_a_boundary_behind_another_one_is_not_reported_as_ours(opened: Callable[..., ChangelogStore]) -> None:
    ours, late = opened(), opened()
    ours.journal(entry(0))
    assert ours.journalled(HERE, {}) == late.journalled(HERE, {}) == [entry(0)]
    late.journal(entry(1, first=50))
    with pytest.raises(DeliveryError, match="another boundary"):
        ours.journal(entry(1, first=60))
    assert ours.journalled(HERE, {}) == [entry(0), entry(1, first=50)]
    ours.journal(entry(2))
    late.journal(entry(2))  # the same boundary twice: nothing differs
    assert late.journalled(HERE, {"0:image": 2}) == [entry(2)]


def test_a_higher_generation_may_draw_its_own_boundary(opened: Callable[..., ChangelogStore]) -> None:
    owner, zombie = opened(), opened()
    assert owner.journalled(HERE, {}) == zombie.journalled(HERE, {}) == []
    zombie.journal(entry(0, 1))
    owner.journal(entry(0, 2, first=9))
    with pytest.raises(DeliveryError, match="generation 2"):
        zombie.journal(entry(0, 1, first=5))
    assert opened().journalled(HERE, {}) == [entry(0, 2, first=9)]


def test_a_restart_reads_the_journal_from_where_its_cut_needs_it(
    opened: Callable[..., ChangelogStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opened()
    assert first.journalled(HERE, {}) == []
    for seq in range(6):
        first.journal(entry(seq))
    first.save(replace(big(0, size=10), lanes=(replace(big(0).lanes[0], next_seq=4, tensors={}),)))

    second = opened()
    checkpoint = second.load(HERE)
    assert checkpoint is not None
    since = {lane.lane: lane.next_seq for lane in checkpoint.lanes}
    assert second.journalled(HERE, since) == [entry(4), entry(5)]
    assert second._journal._known[HERE].start == 4
    # Who asks for more than the checkpoint needs gets it all the same.
    assert second.journalled(HERE, {}) == [entry(seq) for seq in range(6)]
    # Planned batches that are not repeated yet stay needed, however many checkpoints there are.
    assert second.journalled(HERE, since) == [entry(4), entry(5)]
    second.save(replace(checkpoint, seq=1, lanes=(replace(checkpoint.lanes[0], next_seq=5),)))
    second.journal(entry(6))
    third = opened()
    checkpoint = third.load(HERE)
    assert checkpoint is not None
    assert third.journalled(HERE, {"0:image": 5}) == [entry(5), entry(6)]
    assert third._journal._known[HERE].start == 5


# -- the broker dies ------------------------------------------------------------------------------------


@pytest.fixture
def mortal(broker: Broker) -> Iterator[Broker]:
    """The broker, for tests that hurt it: what they leave to the collector is collected here."""
    yield broker
    gc.collect()


def test_kill_and_restart_in_mid_use(mortal: Broker, opened: Callable[..., ChangelogStore]) -> None:
    store, stop, kills = opened(), threading.Event(), 3
    assert store.load(HERE) is None and store.journalled(HERE, {}) == []
    journalled: list[JournalEntry] = []
    saved: list[int] = []
    failures: list[BaseException] = []

    def work() -> None:
        try:
            seq = 0
            while not stop.is_set():
                store.journal(entry(seq, first=seq))
                journalled.append(entry(seq, first=seq))
                if seq % 5 == 4:
                    store.save(big(seq, size=1_000_000))
                    saved.append(seq)
                seq += 1
        except BaseException as error:  # noqa: BLE001  shown by the test's own thread
            failures.append(error)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        for number in range(kills):
            reached = len(journalled) + 20
            deadline = time.monotonic() + 60
            while len(journalled) < reached and not failures and time.monotonic() < deadline:
                time.sleep(0.003 * (number + 1))
            mortal.kill()
            mortal.restart()
            mortal.ready()
        reached = len(journalled) + 10
        deadline = time.monotonic() + 60
        while len(journalled) < reached and not failures and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        stop.set()
        worker.join(120)
    assert not failures, failures
    assert not worker.is_alive() and len(journalled) >= kills * 20
    assert opened().journalled(HERE, {}) == journalled
    contract.same(opened().load(HERE), big(saved[-1], size=1_000_000))


def sooner_or_later(call: Callable[[], Any], seconds: float = 30.0) -> Any:
    deadline = time.monotonic() + seconds
    while True:
        try:
            return call()
        except DeliveryError:
            if time.monotonic() > deadline:
                raise


def test_a_silent_broker_is_a_delivery_error_and_leaves_no_threads(
    mortal: Broker, opened: Callable[..., ChangelogStore]
) -> None:
    store = opened(3.0)
    store.journal(entry(0))
    threads = threading.active_count()
    mortal.pause()
    try:
        for call in (
            lambda: store.journal(entry(1, first=70)),
            lambda: store.save(big(0, size=10)),
            lambda: store.load(HERE),
            lambda: store.journalled(HERE, {}),
        ):
            began = time.monotonic()
            with pytest.raises(DeliveryError):
                call()
            assert time.monotonic() - began < 60
    finally:
        mortal.resume()
    mortal.ready()  # its port is; the client finds its way back in its own time
    # In doubt, as it was reported: what the silent broker had been sent may be stored now, or later.
    assert [one.seq for one in sooner_or_later(lambda: store.journalled(HERE, {}))] in ([0], [0, 1])
    sooner_or_later(lambda: store.journal(entry(2)))
    after = sooner_or_later(lambda: store.journalled(HERE, {}))
    assert sorted(after, key=lambda one: one.seq) in (
        [entry(0), entry(2)],
        [entry(0), entry(1, first=70), entry(2)],
    )
    deadline = time.monotonic() + 30
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.1)
    assert threading.active_count() <= threads


def test_missing_topic_is_a_delivery_error(broker: Broker) -> None:
    store = ChangelogStore(broker.bootstrap_servers, KafkaConfig(state="no-state", journal="no-journal"), 2.0)
    try:
        for call in (
            lambda: store.journal(entry(0)),
            lambda: store.save(big(0, size=10)),
            lambda: store.load(HERE),
        ):
            with pytest.raises(DeliveryError, match="does the topic exist"):
                call()
    finally:
        store.close()


def test_a_journal_that_ends_before_the_cut_was_made_anew(
    broker: Broker, opened: Callable[..., ChangelogStore], config: KafkaConfig
) -> None:
    """What was journalled behind the checkpoint is gone: other boundaries would give other answers."""
    store = opened()
    store.journalled(HERE, {})
    for seq in range(3):
        store.journal(JournalEntry(*HERE, "0:image", seq, (seq,), "h", 0, 0))
    store.save(big(2, size=10))
    client = KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    client.delete_topics([config.journal])
    until = time.monotonic() + 10
    while config.journal in client.list_topics() and time.monotonic() < until:
        time.sleep(0.05)
    client.close()
    ensure_topics(broker.bootstrap_servers, {config.journal: (1, {})})
    again = opened()
    checkpoint = again.load(HERE)
    assert checkpoint is not None
    with pytest.raises(
        ArtifactError, match=r"journal was made anew: it ends at 0, .* at 3 .* kafka\.journal"
    ):
        again.journalled(HERE, {lane.lane: lane.next_seq for lane in checkpoint.lanes})
