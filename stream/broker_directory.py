"""What we write into a broker's directory: its state, and the settings of Kafka and of its log."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from core.errors import BrokerError
from stream.jvm import started
from stream.ports import HOST

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


@dataclass(frozen=True, slots=True)
class BrokerState:
    """`broker.json`. `pid` and `started` name a process: a pid alone may have been used again."""

    cluster: str
    port: int
    controller: int
    pid: int = 0
    started: str = ""

    @property
    def alive(self) -> bool:
        return bool(self.pid) and started(self.pid) == self.started


def read_state(data_dir: Path) -> BrokerState | None:
    """None where no broker was ever started. Raises BrokerError for a file that is damaged."""
    try:
        return BrokerState(**json.loads((data_dir / "broker.json").read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise BrokerError(
            f"{data_dir / 'broker.json'} cannot be read: {error}; delete the directory"
        ) from error


def write_state(data_dir: Path, state: BrokerState) -> None:
    """In one step: whoever reads meets the old state or the new one."""
    draft = data_dir / ".broker.json"
    draft.write_text(json.dumps(asdict(state)))
    draft.rename(data_dir / "broker.json")


def write_settings(data_dir: Path, state: BrokerState, properties: Mapping[str, str]) -> None:
    """`server.properties`, where those that are given win over ours, and `log4j2.properties`."""
    settings = dict(line.split("=", 1) for line in PROPERTIES.splitlines()) | dict(properties)
    lines = "".join(f"{name}={value}\n" for name, value in settings.items())
    filled = lines.format(host=HOST, port=state.port, controller=state.controller)
    (data_dir / "server.properties").write_text(filled)
    (data_dir / "log4j2.properties").write_text(LOG4J)


def new_cluster_id() -> str:
    """22 characters of base64; Kafka's tools take one that starts with '-' for an option."""
    return "q" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode()[1:22]
