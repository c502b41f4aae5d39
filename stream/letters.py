"""Dead letters: the original and what went wrong where, cut until the topic takes it."""

from __future__ import annotations

from collections.abc import Iterator

from core.records import Record, Refusal
from stream.records import content_bytes, encoded_bytes

Headers = list[tuple[str, bytes]]
Letter = tuple[bytes, bytes | None, Headers]
"""Value, key and headers."""

OURS = ("x-error-", "x-source-", "x-attempt")
"""Headers of dead letters; those of an earlier attempt are replaced."""
CARRIED = frozenset({"traceparent", "x-query-id", "x-tenant", "content-type"})
"""The client's headers that a cut letter still carries, the last of each name."""
HEADROOM_BYTES = 64 << 10
"""What a record may have beyond `limits.message_bytes`: a dead letter is the original and its headers."""
HEADER_BYTES = 4096
"""Longest of those, and longest key of a cut letter."""
SHORT_BYTES = 64
"""Longest header of the shortest letter."""
LEAST_BYTES = 2048
"""What a topic of dead letters has to take: coordinates, and what went wrong."""
REASON_CHARACTERS = 500
"""Longest reason that a letter gives."""


def dead_letter(refusal: Refusal, message_bytes: int) -> Letter:
    """(value, key, headers): the original bytes, and what went wrong where.

    A record over `message_bytes` is cut to that, see `fitted`; the sink cuts further where the topic
    takes less.
    """
    record, at = refusal.record, refusal.record.at
    value, key = record.value, record.key
    kept = [(name, v or b"") for name, v in record.headers if not name.startswith(OURS)]  # null is legal
    headers = [
        ("x-error-stage", refusal.stage.encode()),
        ("x-error-class", _utf8(refusal.error)),
        ("x-error-message", _utf8(short(refusal.reason))),
        ("x-source-topic", at.topic.encode()),
        ("x-source-partition", b"%d" % at.partition),
        ("x-source-offset", b"%d" % at.offset),
        ("x-source-timestamp", b"%d" % record.timestamp_ms),
        ("x-attempt", b"%d" % _attempt(record)),
    ]
    if value is None:
        headers.append(("x-source-null", b"true"))
    letter = (value or b"", key, headers + kept)
    whole = content_bytes(record) <= message_bytes
    return fitted(letter, message_bytes + (HEADROOM_BYTES if whole else 0))


def fitted(letter: Letter, limit_bytes: int) -> Letter:
    """The letter as it is where its topic takes it; else cut, at last to coordinates and error.

    `x-source-truncated` gives the whole size of a value that was cut: it still lies in the log at its source.
    What is returned may be over a limit below LEAST_BYTES.
    """
    value, key, headers = letter
    if encoded_bytes(value, key, headers) <= limit_bytes:
        return letter
    found: Letter = (b"", None, [])
    for key, kept in _shorter(letter):
        room = limit_bytes - encoded_bytes(b"", key, kept) - 4  # the length of a value takes up to 5 bytes
        found = (value[: max(0, room)], key, kept)
        if room >= 0:
            break
    return found


def least(letter: Letter) -> Letter:
    """Coordinates and error alone, with a key, for a topic that does not take the letter as it is."""
    *_, (_, kept) = _shorter(letter)
    last = dict(kept)
    places = (last.get(f"x-source-{name}", b"") for name in ("topic", "partition", "offset"))
    return b"", b"/".join(places), kept


def _shorter(letter: Letter) -> Iterator[tuple[bytes | None, Headers]]:
    """Key and headers to try, each time fewer."""
    value, key, headers = letter
    last = dict(headers)  # of equal names the last counts, as for Kafka's own clients
    ours = [(name, content) for name, content in last.items() if name.startswith(OURS)]
    ours.append(("x-source-truncated", b"%d" % len(value)))
    carried = [(n, content) for n, content in last.items() if n in CARRIED and len(content) <= HEADER_BYTES]
    yield key[:HEADER_BYTES] if key is not None else None, ours + carried
    yield None, ours
    known = ("x-source-topic", "x-source-partition", "x-source-offset", "x-source-truncated")
    yield None, [(n, v if n in known else v[:SHORT_BYTES]) for n, v in ours]


def _attempt(record: Record) -> int:
    """Which attempt this record was; who sends it again counts on from here."""
    value = next((v for key, v in reversed(record.headers) if key == "x-attempt"), b"") or b""
    return int(value) if value.isdigit() and len(value) < 10 else 1


def short(text: str) -> str:
    """A reason, so long as a letter gives it."""
    return text if len(text) <= REASON_CHARACTERS else text[: REASON_CHARACTERS - 1] + "…"


def _utf8(text: str) -> bytes:
    return text.encode(errors="replace")
