"""What leaves: the answers of a batch, and what became of commands."""

from __future__ import annotations

from collections.abc import Callable

from core.commands import Obeyed
from core.errors import Refused
from core.protocols import Sink
from core.records import Partition, Record, Refusal
from stream.codec import Codec
from stream.command_messages import acknowledged, refused
from stream.intake import Intake
from stream.pipeline import BatchPass


class Sending:
    """Writes and sends; what its topic does not take becomes a dead letter.

    Args:
        generation: of the group, for the headers.
    """

    def __init__(self, codec: Codec, sink: Sink, intake: Intake, generation: Callable[[], int]) -> None:
        self._codec, self._sink, self._intake, self._generation = codec, sink, intake, generation

    def answers(self, answered: BatchPass) -> None:
        """The answers of a batch, in its order."""
        generation = self._header()
        answers = self._codec.answers(answered)
        for query, (value, key, headers) in zip(answered.batch.queries, answers, strict=True):
            try:
                self._sink.send("answers", value, key, [*headers, generation])
            except Refused as refused:  # too large for its topic: it would be for ever
                record = Record(query.at, None)
                self._intake.refuse(Refusal(record, refused.stage, "Refused", refused.reason))

    def acknowledged(self, partition: Partition, obeyed: Obeyed, lanes: int) -> None:
        """What became of a command in one lane, of so many of the partition that it is for."""
        value, key = acknowledged(partition, obeyed)
        self._sink.send("audit", value, key, [self._header(), ("x-lanes", b"%d" % lanes)])

    def refused(self, partition: Partition, refusal: Refusal) -> None:
        """That a record of the control topic is no command."""
        value, key = refused(partition, refusal)
        self._sink.send("audit", value, key, [self._header(), ("x-lanes", b"1")])

    def _header(self) -> tuple[str, bytes]:
        return "x-generation", str(self._generation()).encode()
