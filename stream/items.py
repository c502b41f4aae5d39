"""Records of the items topic: what comes into the gallery, and what goes.

The record's key is the item's name, UTF-8, so that Kafka's compaction keeps the last word on each item.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from core.attributes import Attributes, attributes_of
from core.config import KafkaConfig, LimitConfig
from core.errors import Refused, plain
from core.records import Record, Refusal
from core.types import Modality
from stream import messages
from stream.contents import Contents, plain_bytes
from stream.letters import short
from stream.messages import NAME_CHARACTERS, ImageItem, TextItem, VectorItem, validated
from stream.records import CORRUPT, content_bytes, unreadable

log = logging.getLogger("qshift.items")


@dataclass(frozen=True, slots=True)
class ItemChange:
    """One change of the gallery: an item in the place of the one of its name, or, without modality, none."""

    record: Record
    identifier: str
    modality: Modality | None = None
    content: Any = None
    labels: tuple[str, ...] = ()
    title: str = ""
    attributes: Attributes = field(default_factory=dict)


def items_settings(kafka: KafkaConfig) -> dict[str, tuple[int, dict[str, str]]]:
    """The items topic as `ensure_topics` takes it: one partition, because changes have one order."""
    return {kafka.items: (1, {"cleanup.policy": "compact", "max.message.bytes": str(2 << 20)})}


def decoded(record: Record, limits: LimitConfig) -> ItemChange | Refusal:
    """Decodes one record. Never raises."""
    try:
        return _change(record, limits)
    except Refused as refused:
        if unreadable(record):
            reason = dict(record.headers).get("x-error-message", b"the record cannot be read")
            return Refusal(record, "decode", CORRUPT, short(reason.decode(errors="replace")))
        return Refusal(record, refused.stage, type(refused).__name__, refused.reason)
    except Exception as error:  # the last net: a bug here must cost one dead letter
        log.exception("decoding failed unexpectedly", extra={"at": str(record.at)})
        return Refusal(record, "decode", type(error).__name__, short(plain(error)))


def _change(record: Record, limits: LimitConfig) -> ItemChange:
    if unreadable(record):
        raise Refused("decode", "the record cannot be read")
    name = _name(record.key)
    if record.value is None:
        return ItemChange(record, name)
    if (size := content_bytes(record)) > limits.message_bytes:
        raise Refused("validate", f"the record has {size} bytes, at most {limits.message_bytes} are taken")
    message, contents = validated(messages.items, record.value), Contents(limits)
    modality: Modality
    match message:
        case TextItem():
            modality, content = contents.of(messages.TextQuery(modality="text", text=message.text))
        case VectorItem():
            modality, content = contents.of(messages.VectorQuery(modality="vector", vector=message.vector))
        case ImageItem():
            modality, content = "image", contents.picture(plain_bytes(message.image, "the picture"))
    said = _attributes(message.attributes)
    return ItemChange(record, name, modality, content, tuple(message.labels), message.title, said)


def _attributes(document: dict[str, Any]) -> Attributes:
    try:
        return attributes_of(document)
    except ValueError as error:
        raise Refused("validate", short(f"attributes: {error}")) from None


def _name(key: bytes | None) -> str:
    if not key:
        raise Refused("validate", "the record has no key: the key is the item's name")
    try:
        name = key.decode()
    except UnicodeDecodeError:
        raise Refused("decode", "the key is not UTF-8: it is the item's name") from None
    if len(name) > NAME_CHARACTERS:
        raise Refused("validate", f"the key has {len(name)} characters, at most {NAME_CHARACTERS} are taken")
    return name
