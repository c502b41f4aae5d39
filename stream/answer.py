"""An answer: as it stands in the topic, in either version, and as a client reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag, TypeAdapter

from core.records import Coordinates
from stream.messages import Message, Offset, Place, validated

DecidedBy = Literal["frozen", "adapted", "mixture"]


class ResultMessage(BaseModel):
    """One gallery item that was found; distance in bits."""

    model_config = Message.model_config

    id: str
    distance: int


class ScoredMessage(BaseModel):
    """One gallery item that was found; distance in bits.

    The score is what the order is by, the larger the better: a cosine where one twin decides, a belief of 0
    to 1 in a mixture, null where distances decide (`answer.rerank = false`).
    """

    model_config = Message.model_config

    id: str
    distance: int
    score: float | None


class _Answer(Message):
    source: Place
    query_id: str
    lane: str
    batch_seq: Offset
    state: str
    gallery_version: str
    label_wanted: bool


class FirstAnswerMessage(_Answer):
    """The answer to one query as qshift 0.2 gave it; still read."""

    results: list[ResultMessage]


class AnswerMessage(_Answer):
    """The answer to one query. The same query always gets the same bytes.

    `weight` is the adapted twin's beside the frozen one's 1: 0 where the frozen one decides, null where the
    adapted one does. `confidence` is the average precision to expect, null where the base cannot say. An
    answer that abstained, because that is below the threshold of the query, has no results.
    """

    schema_version: Annotated[int, Field(ge=2, le=2)]
    weight: Annotated[float, Field(ge=0)] | None
    decided_by: DecidedBy
    confidence: Annotated[float, Field(ge=0, le=1)] | None
    abstained: bool
    results: list[ScoredMessage]


def _version(document: Any) -> str:
    first = isinstance(document, dict) and document.get("schema_version", 1) == 1
    return "first" if first else "second"


answers: TypeAdapter[FirstAnswerMessage | AnswerMessage] = TypeAdapter(
    Annotated[
        Annotated[FirstAnswerMessage, Tag("first")] | Annotated[AnswerMessage, Tag("second")],
        Discriminator(_version),
    ]
)


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
    scores: tuple[float | None, ...] = ()
    """Of the results; () in an answer of version 1, as all below is unsaid there."""
    weight: float | None = None
    decided_by: DecidedBy | None = None
    confidence: float | None = None
    abstained: bool = False


def decode_answer(value: bytes) -> Answer:
    """Reads an answer of either version. Raises Refused when the bytes are not one."""
    message = validated(answers, value)
    read = (
        message.source.coordinates(), message.query_id, message.lane, message.batch_seq, message.state,
        message.gallery_version, message.label_wanted,
        tuple((result.id, result.distance) for result in message.results),
    )  # fmt: skip
    if isinstance(message, FirstAnswerMessage):
        return Answer(*read)
    scores = tuple(result.score for result in message.results)
    return Answer(
        *read, scores, message.weight, message.decided_by, message.confidence, message.abstained
    )  # fmt: skip
