"""Bytes <-> values: the service's serde. Whatever comes in, `Codec.decode` gives a value and never raises.

A query is a JSON envelope (text, vector, reference, composed, sequence), or a picture's raw bytes with its
metadata in headers. The width of a vector and the picture itself are the encoder's to judge
(`Encoder.prepare`).
"""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import stat
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

import numpy as np
from pydantic import TypeAdapter, ValidationError

from core.config import KafkaConfig, LimitConfig
from core.errors import Refused, first_fault, plain
from core.types import Coordinates, Floats, Judgement, Modality, Outcome, Query, Record, Refusal
from stream import messages
from stream.letters import HEADER_BYTES, HEADROOM_BYTES, OURS, fitted
from stream.messages import composed_query as composed_query
from stream.messages import image_query as image_query
from stream.messages import label as label
from stream.messages import reference_query as reference_query
from stream.messages import sequence_query as sequence_query
from stream.messages import text_query as text_query
from stream.messages import vector_query as vector_query
from stream.records import CORRUPT, content_bytes, unreadable
from stream.states import canonical

if TYPE_CHECKING:
    from stream.pipeline import BatchPass

log = logging.getLogger("qshift.codec")
Headers = list[tuple[str, bytes]]
T = TypeVar("T")

PICTURES = frozenset({"image/png", "image/jpeg", "image/jpg", "image/webp"})
STARTS = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"GIF8")
"""First bytes of pictures, none of which starts a JSON text: such a value needs no header to be known."""
UNSAID = frozenset({"", "application/octet-stream"})
MODALITIES = ("image", "text", "vector", "reference", "composed", "sequence")
"""What the header `x-modality` may say."""
SHORTEST = 1e-3
"""Length of a mean of unit vectors below which it points nowhere in particular."""
REASON_CHARACTERS = 500


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


def _number(_version: str, key: int) -> str:
    return str(key)


def _never(_query: Coordinates) -> bool:
    return False


class Codec:
    """Reads and writes every message of the service.

    Args:
        limits: what is refused.
        kafka: names of the topics; a record is decoded by the topic it came from.
        identify: (gallery version, key) -> the user's name of an item; the key itself by default.
        label_wanted: whether a label of this query is asked for; must not depend on anything but the
            coordinates, or duplicates would differ.
        now_ms: clock of the `x-answered-at-ms` header, which is not part of the compared bytes.
    """

    def __init__(
        self,
        limits: LimitConfig,
        kafka: KafkaConfig,
        identify: Callable[[str, int], str] = _number,
        label_wanted: Callable[[Coordinates], bool] = _never,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._limits, self._kafka = limits, kafka
        self._identify, self._label_wanted, self._now_ms = identify, label_wanted, now_ms
        # `Query` carries no headers: traces of waiting queries are kept here until they are answered.
        self._traces: OrderedDict[Coordinates, bytes] = OrderedDict()

    # -- in ---------------------------------------------------------------------------------------------

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
                return Refusal(record, "decode", CORRUPT, _short(reason.decode(errors="replace")))
            return Refusal(record, refused.stage, type(refused).__name__, refused.reason)
        except Exception as error:  # the last net: a bug here must cost one dead letter, not the service
            log.exception("decoding failed unexpectedly", extra={"at": str(record.at)})
            return Refusal(record, "decode", type(error).__name__, _short(plain(error)))

    def _judgement(self, record: Record) -> Judgement:
        message = _validated(messages.labels, self._value(record))
        return Judgement(record.at, message.query.coordinates(), message.label)

    def _query(self, record: Record) -> Query:
        value = self._value(record)
        query_id, tenant = _header(record, "x-query-id"), _header(record, "x-tenant")
        modality: Modality
        content: Any  # what `Encoder.prepare` of the modality takes
        if _is_picture(record, value):
            modality, content = "image", self._picture(value)
        else:
            message = _validated(messages.queries, value)
            query_id = message.query_id or query_id
            match message:
                case messages.TextQuery():
                    modality, content = "text", self._text(message.text)
                case messages.VectorQuery():
                    modality, content = "vector", _vector(message.vector)
                case messages.ReferenceQuery():
                    modality, content = "image", _fetched(message, self._limits)
                case messages.ComposedQuery():
                    picture = self._picture(_plain(message.image, "the picture"))
                    modality, content = "composed", (picture, self._text(message.text))
                case messages.SequenceQuery(frames=[]):
                    # Nothing is left for a tower to do: from here on it is a vector query like any other.
                    modality, content = "vector", _pooled(message.vectors)
                case messages.SequenceQuery():
                    modality, content = "sequence", self._frames(message.frames)
        trace = next((v for name, v in record.headers if name == "traceparent" and v), None)
        if trace is not None and len(trace) <= HEADER_BYTES:
            self._traces[record.at] = trace
            while len(self._traces) > 4 * self._limits.pending_queries:
                self._traces.popitem(last=False)
        return Query(record.at, modality, content, query_id, tenant, record.timestamp_ms)

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

    def _frames(self, frames: Sequence[str]) -> tuple[bytes, ...]:
        names = [f"frame {number} of {len(frames)}" for number in range(1, len(frames) + 1)]
        return tuple(self._picture(_plain(frame, name), name) for frame, name in zip(frames, names))

    def _picture(self, value: bytes, name: str = "the picture") -> bytes:
        if not value:
            raise Refused("validate", f"{name} is empty: send its bytes as the value")
        if len(value) > self._limits.image_bytes:
            raise Refused(
                "validate",
                f"{name} has {len(value)} bytes, at most {self._limits.image_bytes} are taken inline: "
                "scale it down",
            )
        return value

    def _text(self, text: str) -> str:
        if not text.strip():  # what cannot be seen, the tower refuses
            raise Refused("validate", "the text is empty: send at least one word")
        if len(text) > self._limits.text_characters:
            raise Refused(
                "validate",
                f"the text has {len(text)} characters, at most {self._limits.text_characters} are taken",
            )
        return text

    # -- out --------------------------------------------------------------------------------------------

    def answers(self, answered: BatchPass | Outcome) -> list[tuple[bytes, bytes, Headers]]:
        """(value, key, headers) of every query of a batch, in its order."""
        batch, served, version = answered.batch, answered.served, answered.gallery_version
        found = []
        for row, query in enumerate(batch.queries):
            results = [
                (self._identify(version, int(key)), int(distance))
                for key, distance in zip(served.keys[row], served.distances[row])
                if key >= 0
            ]
            value = self.encode_answer(query, batch.lane, batch.seq, answered.state_hash, version, results)
            found.append((value, str(query.at).encode(), self.answer_headers(query)))
        return found

    def encode_answer(
        self,
        query: Query,
        lane: str,
        batch_seq: int,
        state_hash: str,
        gallery_version: str,
        results: Sequence[tuple[str, int]],
    ) -> bytes:
        """Canonical JSON without clocks or host names: a duplicate is byte-identical."""
        return canonical(
            {
                "schema_version": 1,
                "source": messages.place(query.at),
                "query_id": query.query_id,
                "lane": lane,
                "batch_seq": batch_seq,
                "state": state_hash,
                "gallery_version": gallery_version,
                "label_wanted": self._label_wanted(query.at),
                "results": [{"id": name, "distance": distance} for name, distance in results],
            }
        )

    def answer_headers(self, query: Query) -> Headers:
        """What may differ between duplicates, and the trace of the query."""
        headers = [("x-answered-at-ms", b"%d" % self._now_ms())]
        trace = self._traces.pop(query.at, None)
        return headers if trace is None else [*headers, ("traceparent", trace)]

    def dead_letter(self, refusal: Refusal) -> tuple[bytes, bytes | None, Headers]:
        """(value, key, headers): the original bytes, and what went wrong where.

        A record over `message_bytes` is cut to that, see `fitted`; the sink cuts further where the topic
        takes less.
        """
        record, at = refusal.record, refusal.record.at
        self._traces.pop(at, None)
        value, key = record.value, record.key
        kept = [(name, v or b"") for name, v in record.headers if not name.startswith(OURS)]  # null is legal
        headers = [
            ("x-error-stage", refusal.stage.encode()),
            ("x-error-class", _utf8(refusal.error)),
            ("x-error-message", _utf8(_short(refusal.reason))),
            ("x-source-topic", at.topic.encode()),
            ("x-source-partition", b"%d" % at.partition),
            ("x-source-offset", b"%d" % at.offset),
            ("x-source-timestamp", b"%d" % record.timestamp_ms),
            ("x-attempt", b"%d" % _attempt(record)),
        ]
        if value is None:
            headers.append(("x-source-null", b"true"))
        letter = (value or b"", key, headers + kept)
        whole = content_bytes(record) <= self._limits.message_bytes
        return fitted(letter, self._limits.message_bytes + (HEADROOM_BYTES if whole else 0))


def decode_answer(value: bytes) -> Answer:
    """Reads an answer. Raises Refused when the bytes are not one."""
    message = _validated(messages.answers, value)
    return Answer(
        message.source.coordinates(), message.query_id, message.lane, message.batch_seq, message.state,
        message.gallery_version, message.label_wanted,
        tuple((result.id, result.distance) for result in message.results),
    )  # fmt: skip


# -- pieces ---------------------------------------------------------------------------------------------


def _validated(model: TypeAdapter[T], value: bytes) -> T:
    try:
        return model.validate_json(value)
    except ValidationError as error:
        reason, kind = first_fault(error)
        raise Refused("decode" if kind == "json_invalid" else "validate", _short(reason)) from None


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


def _vector(values: Sequence[float]) -> Floats:
    with np.errstate(over="ignore"):  # 1e300 is a finite double and an infinite float32
        vector = np.array(values, dtype=np.float32)
    if not np.isfinite(vector).all():
        raise Refused("validate", "the vector leaves the range of float32")
    return vector


def _plain(text: str, name: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:  # binascii.Error, or letters that are not ASCII
        raise Refused("decode", f"{name} is not base64: {_short(str(error))}") from None


def _pooled(vectors: Sequence[Sequence[float]]) -> Floats:
    """Mean [D] of the unit vectors of a clip, at unit length again."""
    rows = [_vector(values) for values in vectors]
    widths = sorted({len(row) for row in rows})
    if len(widths) > 1:
        raise Refused(
            "validate", f"the vectors have {widths[0]} to {widths[-1]} numbers: all need the same width"
        )
    block = np.stack(rows).astype(np.float64)
    largest = np.abs(block).max(axis=1, keepdims=True)
    if (largest < 1e-30).any():
        number = int(np.argmin(largest)) + 1
        raise Refused("validate", f"vector {number} of {len(rows)} is zero: it has no direction")
    block /= largest  # squares of very large and very small numbers leave the range
    mean = (block / np.linalg.norm(block, axis=1, keepdims=True)).mean(axis=0)
    length = float(np.linalg.norm(mean))
    if length < SHORTEST:
        raise Refused("validate", "the vectors cancel out: their mean has no direction to search in")
    pooled: Floats = (mean / length).astype(np.float32)
    return pooled


def _fetched(message: messages.ReferenceQuery, limits: LimitConfig) -> bytes:
    """The bytes behind a reference: inside the root, a plain file, of the size and sha256 it names."""
    if limits.reference_root is None:
        raise Refused("fetch", "references are not taken: limits.reference_root is not set")
    if message.size > limits.image_bytes:
        raise Refused(
            "fetch", f"the reference names {message.size} bytes, at most {limits.image_bytes} are read"
        )
    try:
        address = urlsplit(message.uri)
        if address.scheme != "file" or address.netloc or address.query or address.fragment:
            raise Refused("fetch", "a reference is file: and a path, without host, query or fragment")
        root = limits.reference_root.resolve()
        path = (root / unquote(address.path)).resolve()
        if not path.is_relative_to(root):
            raise Refused("fetch", "the reference leads out of limits.reference_root")
        # Resolved once, so a link put there since must not be followed; a FIFO must not block.
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as file:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise Refused("fetch", "the reference is not a plain file")
            content = file.read(message.size + 1)
    except (OSError, ValueError, RuntimeError) as error:
        raise Refused("fetch", f"the reference cannot be read: {type(error).__name__}") from error
    if len(content) != message.size or hashlib.sha256(content).hexdigest() != message.sha256:
        raise Refused("fetch", "size or sha256 of the file is not what the reference names")
    return content


def _header(record: Record, name: str) -> str:
    """The last header of that name, as Kafka's own clients read it; '' if there is none."""
    value = next((v for key, v in reversed(record.headers) if key.lower() == name), b"") or b""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        raise Refused("decode", f"header {name} is not UTF-8") from None
    if len(text) > messages.NAME_CHARACTERS:
        raise Refused(
            "validate", f"header {name} has {len(text)} characters, at most {messages.NAME_CHARACTERS}"
        )
    return text


def _attempt(record: Record) -> int:
    """Which attempt this record was; `qshift redrive` counts on from here."""
    value = next((v for key, v in reversed(record.headers) if key == "x-attempt"), b"") or b""
    return int(value) if value.isdigit() and len(value) < 10 else 1


def _short(text: str) -> str:
    return text if len(text) <= REASON_CHARACTERS else text[: REASON_CHARACTERS - 1] + "…"


def _utf8(text: str) -> bytes:
    return text.encode(errors="replace")
