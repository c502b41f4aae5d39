"""What of a dead letter may be cut so that its topic takes it, and in which order."""

from __future__ import annotations

from collections.abc import Iterator

from stream.records import encoded_bytes

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


def fitted(letter: Letter, limit_bytes: int) -> Letter:
    """The letter as it is where its topic takes it; else cut, at last to coordinates and error.

    `x-source-truncated` gives the whole size of a value that was cut: it still lies in the log at its source.
    What is returned may be over a limit below LEAST_BYTES.
    """
    value, key, headers = letter
    if encoded_bytes(value, key, headers) <= limit_bytes:
        return letter
    short: Letter = (b"", None, [])
    for key, kept in _shorter(letter):
        room = limit_bytes - encoded_bytes(b"", key, kept) - 4  # the length of a value takes up to 5 bytes
        short = (value[: max(0, room)], key, kept)
        if room >= 0:
            break
    return short


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
