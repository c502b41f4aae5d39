"""Ports of this machine that a broker of ours may listen on."""

from __future__ import annotations

import os
import socket

from core.errors import BrokerError

HOST = "127.0.0.1"
# Below Linux's ephemeral range: a client that retries a dead ephemeral port can connect to itself.
PORTS = range(20000, 32000)


def free(port: int) -> bool:
    """Whether nobody listens there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def free_port(taken: int = 0) -> int:
    """A free port; the search starts at a place of this process's own, so that two rarely meet."""
    start = os.getpid() * 16 % len(PORTS)
    for step in range(len(PORTS)):
        port = PORTS[(start + step) % len(PORTS)]
        if port != taken and free(port):
            return port
    raise BrokerError(f"no free port between {PORTS.start} and {PORTS.stop}: close something")


def listens(port: int) -> bool:
    """Whether somebody takes connections there."""
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex((HOST, port)) == 0
