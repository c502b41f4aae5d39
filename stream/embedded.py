"""The embedded broker as the command line sees it: by its data directory, without an object."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stream.broker import Broker
from stream.broker_directory import read_state
from stream.jars import Progress
from stream.ports import HOST


@dataclass(frozen=True, slots=True)
class BrokerStatus:
    """What is known of the broker in a directory. `bootstrap_servers` is '' when none was ever started."""

    data_dir: Path
    running: bool
    pid: int | None = None
    bootstrap_servers: str = ""


def status(data_dir: Path) -> BrokerStatus:
    """Whether a broker runs in a directory, and where it listens."""
    state = read_state(data_dir)
    if state is None:
        return BrokerStatus(data_dir, False)
    return BrokerStatus(data_dir, state.alive, state.pid if state.alive else None, f"{HOST}:{state.port}")


def up(data_dir: Path, port: int | None = None, on_progress: Progress | None = None) -> BrokerStatus:
    """Starts a broker that outlives this process, or finds it running; returns when it answers."""
    broker = Broker(data_dir, port)
    if broker.pid is None:
        broker.start(on_progress)
    broker.ready()
    return status(data_dir)


def down(data_dir: Path) -> BrokerStatus:
    """Stops the broker of a directory cleanly, if one runs. Its data stays."""
    Broker(data_dir).stop()
    return status(data_dir)


def logs(data_dir: Path, lines: int = 50) -> list[str]:
    """The last lines of the log of the broker of a directory."""
    return Broker(data_dir).logs(lines)
