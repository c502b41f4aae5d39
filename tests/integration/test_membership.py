"""Workers and their group, and Kafka that is away: who may answer, and how a service waits and ends."""

from __future__ import annotations

import os
import signal
import time
from contextlib import closing
from typing import Any

import pytest

from core.errors import NameTaken, PartitionsLost
from qshift.service import Service
from stream.broker import Broker
from stream.kafka import KafkaSource

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


def joined(source: KafkaSource) -> KafkaSource:
    deadline = time.monotonic() + 20
    while not source.assignment():
        assert time.monotonic() < deadline, "did not join"
        source.poll(0.1)
    return source


def test_a_commit_by_no_member_is_told_so(broker: Any, make_site: Any, vector_world: Any) -> None:
    """The group gives the partition to another while this one sleeps; its commit changes nothing."""
    site = make_site(broker, vector_world)
    place = (site.kafka.queries, 0)
    with (
        closing(KafkaSource(site.servers, site.kafka, "one", session_seconds=6.0)) as one,
        closing(KafkaSource(site.servers, site.kafka, "two", session_seconds=6.0)) as two,
    ):
        joined(one)
        one.confirm({place: None})
        one.commit({place: 0}, "a note")
        assert two.committed(place) == (0, "a note")
        # As good as asleep: without heartbeats, the group takes it for dead.
        one._queries._coordinator._disable_heartbeat()
        joined(two)
        for attempt in (one.confirm, one.commit):
            with pytest.raises(PartitionsLost, match="does not count this worker"):
                attempt({place: 5}, "a lie")
        assert two.committed(place) == (0, "a note")
        two.confirm({place: 0}, "a note")


def test_a_name_that_is_taken_is_said(broker: Any, make_site: Any, vector_world: Any) -> None:
    site = make_site(broker, vector_world)
    place = (site.kafka.queries, 0)
    with closing(KafkaSource(site.servers, site.kafka, "one")) as older:
        joined(older)
        with closing(KafkaSource(site.servers, site.kafka, "one")) as newer:
            joined(newer)
            for attempt in (older.confirm, older.commit):
                with pytest.raises(
                    NameTaken, match=f"another worker is called one in group {site.kafka.group}: give each"
                ):
                    attempt({place: 0})
            newer.confirm({place: None})


def test_a_second_worker_of_one_name_is_refused_and_the_first_goes_on(
    broker: Any, make_site: Any, vector_world: Any, messages: Any
) -> None:
    site = make_site(broker, vector_world)
    first = site.worker()
    site.send(messages(32)[0])
    site.wait(lambda: len(site.answers()) == 32)
    second = site.worker()
    site.wait(lambda: second.code is not None, 30)
    site.started.remove(second)  # of which nobody waits to hear any more
    assert second.code == 2
    said = " ".join(second.output().split())
    assert f"error: another worker is called worker-0 in group {site.kafka.group}: give each its own" in said
    assert "Traceback" not in said
    site.send(messages(32, seed=2)[0])
    site.wait(lambda: len(site.answers()) == 64)
    assert first.code is None
    first.kill()  # and a name of a dead one is free
    site.started.remove(first)
    third = site.worker()
    site.send(messages(32, seed=3)[0])
    site.wait(lambda: len(site.distinct()) == 96)
    third.terminate()


def test_a_clean_stop_gives_the_partitions_away_within_two_seconds(
    broker: Any, make_site: Any, vector_world: Any
) -> None:
    site = make_site(broker, vector_world)
    owner = joined(KafkaSource(site.servers, site.kafka, "one"))
    with closing(KafkaSource(site.servers, site.kafka, "two")) as other:
        for _ in range(20):  # both have come to rest
            other.poll(0.1)
            owner.poll(0.1)
        assert owner.assignment() and not other.assignment()
        owner.close()
        began = time.monotonic()
        joined(other)
        took = time.monotonic() - began
    assert took < 2.0, took
    print(f"partitions of a worker that was stopped: {took:.2f} s")


def test_lost_state_is_said_by_the_service(
    broker: Any, make_site: Any, vector_world: Any, messages: Any
) -> None:
    """The journal and the group remember more than the state topic."""
    from kafka.admin import KafkaAdminClient

    site = make_site(broker, vector_world)
    site.send(messages(64)[0])
    worker = site.worker()
    site.wait(lambda: len(site.answers()) == 64)
    worker.terminate()
    admin = KafkaAdminClient(bootstrap_servers=site.servers)
    admin.delete_topics([site.kafka.state])
    admin.close()
    site.create()
    site.send(messages(64, seed=2)[0])
    again = site.worker()
    deadline = time.monotonic() + 30
    while again.code is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert again.code == 2, again.output()
    assert f"the state of {site.kafka.queries}/0 is gone: the group has committed offset 64" in again.output()
    assert len(site.answers()) == 64


def test_an_outage_is_shown_and_waited_out(
    own_broker: Broker, make_site: Any, vector_world: Any, messages: Any
) -> None:
    site = make_site(own_broker, vector_world)
    site.send(messages(32)[0])
    service = Service(site.config)
    service.start()
    try:
        site.wait(lambda: len(site.answers()) == 32)
        assert service.ready()["delivering"]
        own_broker.kill()
        site.wait(lambda: not service.ready()["delivering"], 30)
        own_broker.restart()
        site.send(messages(32, seed=2)[0])
        site.wait(lambda: len(site.distinct()) >= 64, 90)  # what was answered before may come again
        site.wait(lambda: service.ready()["delivering"], 60)
        service.check()
    finally:
        report = service.stop()
    assert report.recoveries > 0 and report.unsaved == ""
    assert {len(values) for values in site.distinct().values()} == {1} and len(site.distinct()) == 64


@pytest.mark.parametrize("busy", [True, False])
def test_sigterm_in_an_outage_ends_within_seconds(
    own_broker: Broker, make_site: Any, vector_world: Any, messages: Any, busy: bool
) -> None:
    site = make_site(own_broker, vector_world)
    worker = site.worker()
    site.send(messages(1600 if busy else 32)[0])
    site.wait(lambda: len(site.answers()) >= 32)
    own_broker.kill()
    time.sleep(8.0)
    took = worker.terminate()
    assert took < 10, took
    said = " ".join(worker.output().split())
    assert "without a last checkpoint, because it could not be delivered: the next start continues" in said
    print(f"SIGTERM in an outage, busy={busy}: {took:.1f} s")


def test_sigterm_while_loading_ends_at_once(broker: Any, make_site: Any, vector_world: Any) -> None:
    """No Kafka at the address: the service would wait for 30 s."""
    site = make_site(broker, vector_world)
    site.file.write_text(site.file.read_text().replace(site.servers, "127.0.0.1:9"))
    worker = site.worker()
    time.sleep(3.0)
    assert worker.code is None, worker.output()
    assert worker.terminate() < 3
    assert "stopped while loading: nothing was read or answered" in worker.output()


def test_a_second_signal_ends_at_once(
    own_broker: Broker, make_site: Any, vector_world: Any, messages: Any
) -> None:
    site = make_site(own_broker, vector_world)
    worker = site.worker()
    site.send(messages(32)[0])
    site.wait(lambda: len(site.answers()) >= 32)
    own_broker.kill()
    time.sleep(5.0)
    os.kill(worker.pid, signal.SIGTERM)
    time.sleep(0.3)
    if worker.code is not None:  # it noticed the outage before the signal, and had nothing left to wait for
        assert worker.code == 0, worker.output()
        return
    os.kill(worker.pid, signal.SIGTERM)
    deadline = time.monotonic() + 2.0
    while worker.code is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert worker.code == 128 + signal.SIGTERM
