"""An answer as a client reads it."""

from __future__ import annotations

from dataclasses import dataclass

from core.records import Coordinates
from stream import messages
from stream.messages import validated


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as a client reads it; results are (item, distance in bits), best first."""

    source: Coordinates
    query_id: str
    lane: str
    batch_seq: int
    state: str
    gallery_version: str
    label_wanted: bool
    results: tuple[tuple[str, int], ...]


def decode_answer(value: bytes) -> Answer:
    """Reads an answer. Raises Refused when the bytes are not one."""
    message = validated(messages.answers, value)
    return Answer(
        message.source.coordinates(), message.query_id, message.lane, message.batch_seq, message.state,
        message.gallery_version, message.label_wanted,
        tuple((result.id, result.distance) for result in message.results),
    )  # fmt: skip
