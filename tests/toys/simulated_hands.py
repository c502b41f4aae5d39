"""Who works on a simulated service from outside: clients, a labeller, an operator, a gallery's keeper."""

from __future__ import annotations

from typing import Any

import numpy as np

from core.records import Coordinates
from stream.codec import label
from stream.command_messages import command
from tests.toys.simulated_cluster import Cluster
from tests.toys.simulated_world import SimulatedWorld

LABEL_PARTITIONS, COMMANDS, AT_ONCE = 2, 8, 15
LAST = command("checkpoint", "last")
"""When every lane has obeyed it, it has obeyed all that was said before."""


class Hands:
    """Draws what is sent next. Labels are of answers that were read; they come late, twice, or of nothing.

    Args:
        queries: how many are sent in all.
        commands: how many at most.
    """

    def __init__(
        self, cluster: Cluster, world: SimulatedWorld, rng: np.random.Generator, queries: int,
        commands: int = COMMANDS,
    ) -> None:  # fmt: skip
        self._cluster, self._world, self._rng, self._left = cluster, world, rng, queries
        self._read, self._commands = 0, commands
        self._known: list[Coordinates] = []
        """Answered, and not labelled yet."""
        self.sent = 0

    @property
    def done(self) -> bool:
        """Whether all queries were sent."""
        return self._left == 0

    def move(self) -> None:
        """One of them does something."""
        draw = self._rng.random()
        if draw < 0.5:
            self._ask()
        elif draw < 0.8:
            self._label()
        elif draw < 0.9:
            self._world.shelf.change(self._rng)
            self._cluster.seen["gallery"] += 1
        elif self._commands:
            self._commands -= 1
            self._say(self._command())

    def end(self) -> None:
        """Nothing is sent after this."""
        self._say(LAST)

    def _ask(self) -> None:
        count = min(int(self._rng.integers(1, AT_ONCE)), self._left)
        self._left -= count
        for _ in range(count):
            place = self._cluster.kafka.queries, int(self._rng.integers(self._cluster.partitions))
            value, headers = self._world.query(self._rng)
            self._cluster.write(place, None, value, headers)
            self.sent += 1

    def _label(self) -> None:
        answers = self._cluster.topics[self._cluster.kafka.answers, 0]
        keys = [(record.key or b"").decode().rsplit("/", 2) for record in answers[self._read :]]
        new = [Coordinates(topic, int(partition), int(offset)) for topic, partition, offset in keys]
        self._known += [at for at in dict.fromkeys(new) if self._rng.random() < 0.8]
        self._read = len(answers)
        for _ in range(min(len(self._known), int(self._rng.integers(1, AT_ONCE)))):
            # Seldom the oldest: labels come in no order.
            about = self._known.pop(int(self._rng.integers(len(self._known)) * self._rng.random()))
            if self._rng.random() < 0.05:
                about = Coordinates(about.topic, about.partition, about.offset + 10_000)
            for _ in range(1 + int(self._rng.random() < 0.1)):
                name = str(self._rng.choice(self._world.shelf.names))
                place = self._cluster.kafka.labels, int(self._rng.integers(LABEL_PARTITIONS))
                self._cluster.write(place, None, label(about, name))
                self._cluster.seen["label"] += 1

    def _say(self, value: bytes) -> None:
        self._cluster.write((self._cluster.kafka.control, 0), None, value)
        self._cluster.seen["command"] += 1

    def _command(self) -> bytes:
        rng = self._rng
        said: list[tuple[Any, dict[str, Any]]] = [
            ("freeze", {}), ("unfreeze", {}), ("unfreeze", {}), ("reset", {}), ("checkpoint", {}),
            ("rollback", {"steps": int(rng.integers(1, 4))}),
            ("method", {"method": str(rng.choice(["frozen", "eager", "default", "none such"]))}),
            ("w", {"weight": (0.5, 0.25, 0.0, None)[rng.integers(4)]}),
            ("swap-gallery", {"gallery": self._version()}),
        ]  # fmt: skip
        action, more = said[rng.integers(len(said))]
        draw = rng.random()
        if draw < 0.05:
            return b"{"
        if draw < 0.2:
            more["tenant"] = str(rng.choice(["acme", "nobody"]))
        elif draw < 0.4:
            more["lane"] = f"{rng.integers(3)}:vector{rng.choice(['', ':acme'])}"
        return command(action, "ann", **more)

    def _version(self) -> str:
        held = [*self._world.shelf.versions, "", "", "none such"]
        return held[int(self._rng.integers(len(held)))]
