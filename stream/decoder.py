"""A record of the query or label topic becomes a query, a judgement or a refusal; nothing is raised.

A query is a JSON envelope (text, vector, reference, composed, sequence), or a picture's raw bytes with its
metadata in headers. The width of a vector and the picture itself are the encoder's to judge
(`Encoder.prepare`).
"""

from __future__ import annotations

import logging
from typing import Any

from core.config import KafkaConfig, LimitConfig
from core.errors import Refused, plain
from core.records import Judgement, Record, Refusal
from core.types import Modality, Query
from stream import messages
from stream.contents import Contents
from stream.letters import short
from stream.messages import validated
from stream.records import CORRUPT, content_bytes, unreadable
from stream.wanting import FILTER_CHARACTERS, HEADERS, read_wanted

log = logging.getLogger("qshift.codec")

PICTURES = frozenset({"image/png", "image/jpeg", "image/jpg", "image/webp"})
STARTS = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"GIF8")
"""First bytes of pictures, none of which starts a JSON text: such a value needs no header to be known."""
UNSAID = frozenset({"", "application/octet-stream"})
MODALITIES = ("image", "text", "vector", "reference", "composed", "sequence")
"""What the header `x-modality` may say."""


class Decoder:
    """Reads what comes in.

    Args:
        limits: what is refused.
        kafka: names of the topics; a record is decoded by the topic it came from.
    """

    def __init__(self, limits: LimitConfig, kafka: KafkaConfig) -> None:
        self._limits, self._kafka, self._contents = limits, kafka, Contents(limits)

    def decode(self, record: Record) -> Query | Judgement | Refusal:
        """Decodes one record of the query or label topic. Never raises."""
        try:
            if record.at.topic == self._kafka.labels:
                return self._judgement(record)
            if record.at.topic == self._kafka.queries:
                return self._query(record)
            raise Refused("decode", f"topic {record.at.topic!r} is neither the query nor the label topic")
        except Refused as refused:
            if unreadable(record):
                reason = dict(record.headers).get("x-error-message", b"the record cannot be read")
                return Refusal(record, "decode", CORRUPT, short(reason.decode(errors="replace")))
            return Refusal(record, refused.stage, type(refused).__name__, refused.reason)
        except Exception as error:  # the last net: a bug here must cost one dead letter, not the service
            log.exception("decoding failed unexpectedly", extra={"at": str(record.at)})
            return Refusal(record, "decode", type(error).__name__, short(plain(error)))

    def _judgement(self, record: Record) -> Judgement:
        message = validated(messages.labels, self._value(record))
        return Judgement(record.at, message.query.coordinates(), message.label)

    def _query(self, record: Record) -> Query:
        value = self._value(record)
        query_id, tenant = _header(record, "x-query-id"), _header(record, "x-tenant")
        message: messages.AnyQuery | None = None
        modality: Modality
        content: Any  # what `Encoder.prepare` of the modality takes
        if _is_picture(record, value):
            modality, content = "image", self._contents.picture(value)
        else:
            message = validated(messages.queries, value)
            query_id = message.query_id or query_id
            modality, content = self._contents.of(message)
        want = read_wanted(
            message, {name: _header(record, name, FILTER_CHARACTERS) for name in HEADERS.values()}
        )
        return Query(record.at, modality, content, query_id, tenant, record.timestamp_ms, wanted=want)

    def _value(self, record: Record) -> bytes:
        if record.value is None:
            raise Refused("validate", "the value is null: send a query, nothing is deleted here")
        size = content_bytes(record)
        if size > self._limits.message_bytes:
            raise Refused(
                "validate",
                f"the record has {size} bytes, at most {self._limits.message_bytes} are taken: "
                "send a smaller picture, or a reference",
            )
        return record.value


def _is_picture(record: Record, value: bytes) -> bool:
    kind = _header(record, "content-type").partition(";")[0].strip().lower()
    modality = _header(record, "x-modality").strip().lower()
    if kind.startswith("image/") and kind not in PICTURES:
        raise Refused("validate", f"content-type {kind!r}: pictures are taken as {sorted(PICTURES)}")
    if modality and modality not in MODALITIES:
        raise Refused("validate", f"x-modality {modality!r}: expected one of {', '.join(MODALITIES)}")
    if kind in PICTURES and modality not in ("", "image"):
        raise Refused("validate", f"content-type {kind!r} contradicts x-modality {modality!r}")
    unsaid = kind in UNSAID and not modality and value.startswith(STARTS)
    return kind in PICTURES or modality == "image" or unsaid


def _header(record: Record, name: str, most: int = messages.NAME_CHARACTERS) -> str:
    """The last header of that name, as Kafka's own clients read it; '' if there is none."""
    value = next((v for key, v in reversed(record.headers) if key.lower() == name), b"") or b""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        raise Refused("decode", f"header {name} is not UTF-8") from None
    if len(text) > most:
        raise Refused("validate", f"header {name} has {len(text)} characters, at most {most}")
    return text
