"""How commands and their acknowledgements stand in the control and the audit topic.

Unlike on queries, a field that is not known is refused: what it was to mean must not be passed over.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter

from core.commands import Action, Command, Obeyed, Result
from core.records import Coordinates, Partition, Refusal
from stream.messages import Message, Name, Offset, Place, place, validated
from stream.states import canonical

MOST_WEIGHT = 1e6
Hash = Annotated[str, Field(pattern="^[0-9a-f]{8,64}$")]
Author = Annotated[str, Field(min_length=1, max_length=256)]


class CommandMessage(Message):
    """Root of every command: who asks, and of which lanes; of all without `lane` and `tenant`."""

    model_config = ConfigDict(**{**Message.model_config, "extra": "forbid"})

    author: Author
    lane: Name = ""
    tenant: Name = ""
    base: Annotated[str, Field(pattern="^([0-9a-f]{8,64})?$")] = ""


class PlainCommand(CommandMessage):
    """Serve frozen and learn nothing; no longer; back to the source; keep the state now."""

    action: Literal["freeze", "unfreeze", "reset", "checkpoint"]


class RollbackCommand(CommandMessage):
    """Back to a kept state: `steps` of them back, or the one whose hash begins with `state`."""

    action: Literal["rollback"]
    steps: Annotated[int, Field(ge=1, le=64)] = 1
    state: Hash | None = None


class MethodCommand(CommandMessage):
    """Learn by another method from here on, from the source; "default" is that of the configuration."""

    action: Literal["method"]
    method: Annotated[str, Field(min_length=1, max_length=64)]


class WeightCommand(CommandMessage):
    """Bound the adapted twin's weight in the mixture; null lets go."""

    action: Literal["w"]
    weight: Annotated[float, Field(ge=0, le=MOST_WEIGHT)] | None


class GalleryCommand(CommandMessage):
    """Answer from a version of the gallery that is followed, "" for the newest again."""

    action: Literal["swap-gallery"]
    gallery: Name


AnyCommand = PlainCommand | RollbackCommand | MethodCommand | WeightCommand | GalleryCommand
commands: TypeAdapter[AnyCommand] = TypeAdapter(Annotated[AnyCommand, Field(discriminator="action")])


class Acknowledgement(Message):
    """What became of a command in one lane; `lane` is "" where a partition has none that it is for."""

    command: Place
    action: str
    author: str
    topic: str
    partition: Offset
    lane: str
    result: Result
    batch_seq: Offset
    state: str
    reason: str


acknowledgements: TypeAdapter[Acknowledgement] = TypeAdapter(Acknowledgement)


def read_command(at: Coordinates, value: bytes) -> Command:
    """The command in these bytes. Raises Refused when it is none."""
    found = validated(commands, value)
    said = found.model_dump(exclude={"schema_version"}, exclude_none=True)
    return Command(at, **said)


def command(action: Action, author: str, **said: Any) -> bytes:
    """The value of a command; what is None or "" is left out, but for a weight and a gallery.

    Raises:
        Refused: it would be refused by the service.
    """
    kept = {
        key: value
        for key, value in said.items()
        if value not in (None, "") or (action, key) in (("w", "weight"), ("swap-gallery", "gallery"))
    }
    value = canonical({"schema_version": 1, "action": action, "author": author, **kept})
    validated(commands, value)
    return value


def acknowledged(partition: Partition, obeyed: Obeyed) -> tuple[bytes, bytes]:
    """(value, key) of an acknowledgement: without clocks or host names, a duplicate is byte-identical."""
    one = obeyed.command
    return _acknowledgement(
        one.at, one.action, one.author, partition, obeyed.lane, obeyed.result, obeyed.seq, obeyed.state,
        obeyed.reason,
    )  # fmt: skip


def refused(partition: Partition, refusal: Refusal) -> tuple[bytes, bytes]:
    """(value, key) of the acknowledgement of what is no command."""
    return _acknowledgement(refusal.record.at, "", "", partition, "", "refused", 0, "", refusal.reason)


def _acknowledgement(
    at: Coordinates, action: str, author: str, partition: Partition, lane: str, result: Result, seq: int,
    state: str, reason: str,
) -> tuple[bytes, bytes]:  # fmt: skip
    document = {
        "schema_version": 1,
        "command": place(at),
        "action": action,
        "author": author,
        "topic": partition[0],
        "partition": partition[1],
        "lane": lane,
        "result": result,
        "batch_seq": seq,
        "state": state,
        "reason": reason,
    }
    return canonical(document), f"{at}/{partition[1]}/{lane}".encode()


MODELS: dict[str, type[Message]] = {
    "command.v1": PlainCommand,
    "command-rollback.v1": RollbackCommand,
    "command-method.v1": MethodCommand,
    "command-w.v1": WeightCommand,
    "command-swap-gallery.v1": GalleryCommand,
    "acknowledgement.v1": Acknowledgement,
}
"""By the names of their schemas."""
