"""The commands of an operator: a record of the control topic becomes one, and lanes find theirs.

The topic has one partition, so that all commands have one order, and every worker reads all of it from the
beginning: what holds for lanes to come has to be known, however old it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from core.commands import STANDING, Command
from core.errors import Refused
from core.records import Record, Refusal
from stream.command_messages import read_command
from stream.label_positions import LabelPositions
from stream.records import unreadable

log = logging.getLogger("qshift.runner")
MESSAGE_BYTES = 16 << 10
"""Of one command; a longer one is none."""
LOST = (
    "commands that an answered batch depends on cannot be read: it is answered again without them and may "
    "differ; keep the control topic for ever"
)


class Commands:
    """What was read of the control topic, by offset.

    Args:
        clock: seconds.
        full: whether so many queries wait that no more are read.
    """

    def __init__(self, clock: Callable[[], float], full: Callable[[], bool]) -> None:
        self._read: dict[int, Command | Refusal] = {}
        self._positions = LabelPositions(clock, full, LOST)
        self.end = 0
        """The offset behind the last that was read."""

    def take(self, record: Record) -> None:
        """Reads one record; one that was read before does nothing."""
        self._positions.note(record.at)
        self.end = max(self.end, record.at.offset + 1)
        if record.at.offset not in self._read:
            self._read[record.at.offset] = decoded(record)

    def reached(self, end: int, drain: bool) -> bool:
        """Whether all before `end` was read, or there is no use in waiting for it."""
        return self.end >= end or self._positions.reached({"the control topic": end}, drain)

    def get(self, offset: int) -> Command | Refusal | None:
        """What stands there; None where nothing was read."""
        return self._read.get(offset)

    def since(self, start: int) -> list[Command | Refusal]:
        """What was read from there on, in order."""
        return [self._read[offset] for offset in sorted(self._read) if offset >= start]

    def of(self, lane: str, start: int) -> list[Command]:
        """The commands for a lane from there on, in order."""
        return [one for one in self.since(start) if isinstance(one, Command) and one.concerns(lane)]

    def standing(self, lane: str, end: int) -> list[Command]:
        """Of what was said of all lanes, or a tenant's, before `end`: the last of what holds on, in order.

        What named a lane that was not there was refused.
        """
        last: dict[str, Command] = {}
        for one in self.of(lane, 0):
            if one.at.offset < end and not one.lane and one.action in STANDING:
                last[STANDING[one.action]] = one
        return sorted(last.values(), key=lambda one: one.at)


def decoded(record: Record) -> Command | Refusal:
    """A command, or why there is none. Never raises."""
    try:
        if unreadable(record):
            raise Refused("decode", "the record cannot be read")
        if record.value is None:
            raise Refused("validate", "the value is null: nothing is deleted here, send another command")
        if len(record.value) > MESSAGE_BYTES:
            raise Refused(
                "validate", f"a command of {len(record.value)} bytes, at most {MESSAGE_BYTES} are taken"
            )
        return read_command(record.at, record.value)
    except Refused as refused:
        return Refusal(record, refused.stage, type(refused).__name__, refused.reason)
