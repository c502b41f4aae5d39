"""The journal's topic is mended: what is damaged is named by its offset, and gone from then on."""

from __future__ import annotations

import pytest

from core.checkpoints import JournalEntry
from core.config import Config
from core.errors import ArtifactError
from stream.broker import Broker
from stream.changelog import ChangelogStore
from stream.client import QueryClient, read_all
from stream.cluster import ensure_topics
from stream.kafka import KafkaSource
from stream.repair import repair
from stream.states import entry_to_bytes
from stream.topic_log import TopicLog
from stream.topics import topic_settings

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


def test_a_topic_is_mended(broker: Broker, topics: object) -> None:
    names = {
        name: topics(name)
        for name in ("queries", "answers", "labels", "state", "journal", "dead_letters", "group")
    }  # type: ignore[operator]
    config = Config.model_validate({"kafka": {"bootstrap_servers": broker.bootstrap_servers, **names}})
    kafka = config.kafka
    ensure_topics(broker.bootstrap_servers, topic_settings(kafka))
    client = QueryClient(broker.bootstrap_servers, kafka)
    for number in range(24):
        client.send(b"%d" % number)
    client.flush()
    client.close()
    entries = [
        JournalEntry(kafka.queries, 0, "0:vector", seq, tuple(range(4 * seq, 4 * seq + 4)), f"h{seq}")
        for seq in range(6)
    ]
    far = JournalEntry(kafka.queries, 0, "0:vector", 6, (10**9,), "forged")
    values = [entry_to_bytes(one) for one in [*entries, far]]
    values[2] = b"damaged"
    log = TopicLog(broker.bootstrap_servers, 10, 10)
    log.append(kafka.journal, 0, [(b"key", value) for value in values])
    log.close()
    (found,) = repair(config, write=False)
    assert f"{kafka.journal}/0/2: not a journal entry" in found.notes[0] and len(found.notes) == 3
    running = KafkaSource(broker.bootstrap_servers, kafka, "one")
    while not running.assignment():
        running.poll(0.1)
    with pytest.raises(ArtifactError, match="are running: stop them"):
        next(repair(config, write=True))
    running.close()
    assert len(next(repair(config, write=True)).entries) == 6
    assert next(repair(config, write=False)).notes == []
    assert len(read_all(broker.bootstrap_servers, kafka.journal)) == 6
    store = ChangelogStore(broker.bootstrap_servers, kafka)
    assert [entry.offsets for entry in store.journalled((kafka.queries, 0), {})] == [
        one.offsets for one in entries
    ]
    store.close()


def test_a_missing_topic_is_said_within_seconds(broker: Broker, topics: object) -> None:
    """60 s of attempts before, although the brokers say at once that they do not have it."""
    import time

    from core.errors import DeliveryError

    kafka = Config().kafka.model_copy(update={"state": "never-made", "journal": "never-made-either"})
    store = ChangelogStore(broker.bootstrap_servers, kafka)
    for call in (
        lambda: store.load(("q", 0)),
        lambda: store.journal(JournalEntry("q", 0, "0:vector", 0, (0,), "")),
    ):
        began = time.monotonic()
        with pytest.raises(DeliveryError, match="does the topic exist"):
            call()
        assert time.monotonic() - began < 20
        print(f"a missing topic: {time.monotonic() - began:.1f} s")
    store.close()
