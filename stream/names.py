"""Names of workers in their consumer group: each has its own, and one that is taken is refused at the start.

To Kafka a second member of one name is the first one come back, and it turns the first one out. So whoever
joins looks before: the client id of a member says which process it is. On this machine it is known at once
whether that lives; of another machine's the group is watched until it would have forgotten a dead one.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.errors import NameTaken

MOST_CHARACTERS = 249
"""Of a name that Kafka takes."""
LOOK_SECONDS = 0.5
MARGIN_SECONDS = 2.0
"""What the group may take to forget a member beyond its session."""
PROCESS = re.compile(r"qshift-(.+)-([0-9]+)-([0-9]+)")

Members = Callable[[], Sequence[Mapping[str, Any]]]
"""Asks the group for its members, as Kafka describes them."""


def own_name() -> str:
    """A name that no other process has: host and process."""
    return f"{_plain(socket.gethostname())}-{os.getpid()}"[-MOST_CHARACTERS:]


def process_id() -> str:
    """The client id of this process: machine, number, and when it began."""
    return f"qshift-{_machine()}-{os.getpid()}-{_began(os.getpid())}"


def lives(client_id: str) -> bool | None:
    """Whether the process of a client id lives; None where that cannot be seen from here."""
    found = PROCESS.fullmatch(client_id)
    if found is None or found[1] != _machine():
        return None
    return _began(int(found[2])) == int(found[3])


def check_free(
    worker: str, group: str, members: Members, session_seconds: float,
    pause: Callable[[float], None] = time.sleep, clock: Callable[[], float] = time.monotonic,
) -> None:  # fmt: skip
    """Returns when no living member has the name.

    Args:
        session_seconds: silence after which the group forgets a member.

    Raises:
        NameTaken: one has it: at once for a process of this machine, else when the session is over.
    """
    deadline = clock() + session_seconds + MARGIN_SECONDS
    while True:
        held = [str(one["client_id"]) for one in members() if one.get("group_instance_id") == worker]
        alive = [lives(client) for client in held]
        if True in alive or (None in alive and clock() >= deadline):
            raise NameTaken(
                f"another worker is called {worker} in group {group}: give each its own --worker, or none"
            )
        if None not in alive:
            return
        pause(LOOK_SECONDS)


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", text)


def _machine() -> str:
    """Where process numbers mean the same: a container counts its own."""
    try:
        space = re.sub(r"[^0-9]", "", str(Path("/proc/self/ns/pid").readlink()))
    except OSError:
        space = "0"
    return f"{_plain(socket.gethostname())[:100]}-{space}"


def _began(number: int) -> int:
    """Ticks from the start of the machine to that of a process; 0: nobody says, -1: there is none."""
    try:
        text = Path(f"/proc/{number}/stat").read_text(errors="replace")
    except OSError:
        if Path("/proc/self/stat").exists():
            return -1
        try:
            os.kill(number, 0)
        except ProcessLookupError:
            return -1
        except OSError:
            return 0
        return 0
    state, *fields = text.rpartition(")")[2].split()
    return -1 if state in "ZX" else int(fields[18])
