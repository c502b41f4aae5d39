"""Records on the wire: how large one is, and what to do with one that cannot be read.

kafka-python stops for ever at a record that it cannot decode: a header name that is not UTF-8, a codec that
is not there, bytes that do not unpack, a checksum that does not fit. The error leaves `poll` without a place,
and the next `poll` may not return at all. Here such a record comes out of `poll` as one with null for its
value and two headers that say so, so it costs one dead letter and nothing after it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError
from kafka.record.default_records import DefaultRecord, DefaultRecordBatchBuilder
from kafka.record.util import decode_varint

from core.records import Record

log = logging.getLogger("qshift.kafka")

CORRUPT = "CorruptRecord"
"""Value of the header `x-error-class` of a record that could not be read; its value is null."""

REASON_CHARACTERS = 300
"""An error of decoding quotes what it met, which may be a megabyte."""


def encoded_bytes(value: bytes | None, key: bytes | None, headers: Sequence[tuple[str, bytes]]) -> int:
    """Most that a record takes alone in a batch of Kafka's format v2: what limits of size are applied to.

    A header costs two lengths besides its name and value: 380,000 empty ones are 1.1 MB.
    """
    return int(DefaultRecordBatchBuilder.estimate_size_in_bytes(key, value, headers))


def content_bytes(record: Record) -> int:
    """Value, key and headers of a record, its headers as the format encodes them."""
    headers = encoded_bytes(None, None, record.headers) - encoded_bytes(None, None, ())
    return len(record.value or b"") + len(record.key or b"") + headers


def unreadable(record: Record) -> bool:
    """Whether this stands for a record that could not be read."""
    return record.value is None and ("x-error-class", CORRUPT.encode()) in record.headers


def tolerant(consumer: Any) -> Any:
    """The same consumer; records that it cannot read come marked instead of ending it."""
    consumer._fetcher.PartitionRecords = _PartitionRecords  # the client has no public place for this
    return consumer


class _PartitionRecords(Fetcher.PartitionRecords):  # type: ignore[misc]
    """What was fetched of one partition."""

    def _unpack_records(self, part: Any, records: Any, *deserializers: Any) -> Any:
        return super()._unpack_records(part, _Batches(self, part, records), *deserializers)


class _Batches:
    def __init__(self, fetched: Any, part: Any, records: Any) -> None:
        self._fetched, self._part, self._records = fetched, part, records
        self._ahead: Any = None

    def next_batch(self) -> _Batch | None:
        batch, self._ahead = self._ahead or self._records.next_batch(), None
        if batch is None:
            return None
        whole = not self._fetched.check_crcs or batch.validate_crc()
        last = batch.last_offset if batch.magic == 2 else batch.base_offset
        if not whole and batch.magic == 2 and batch.last_offset_delta + 1 != batch.records_count:
            # Its header is altered and says nothing of its end. Up to the next batch, or, at the end of what
            # was fetched, one record further: the next fetch begins with this batch again.
            self._ahead = self._records.next_batch()
            last = max(batch.base_offset, self._fetched.fetch_offset)
            last = last if self._ahead is None else self._ahead.base_offset - 1
        return _Batch(batch, self._part, whole, last)


class _Batch:
    """A batch whose iteration never raises; whatever else it is asked is the client's own batch's to say."""

    def __init__(self, batch: Any, part: Any, whole: bool, last_offset: int) -> None:
        self._batch, self._part, self._whole = batch, part, whole
        self.last_offset, self.next_offset = last_offset, last_offset + 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def validate_crc(self) -> bool:
        """Judged in the iteration, where the answer costs only this batch."""
        return True

    def __next__(self) -> Any:
        """The client looks into batches of transaction markers this way; None says: nothing to see."""
        try:
            return next(self._batch) if self._whole else None
        except Exception as error:  # noqa: BLE001  said below
            self._say(self._batch.base_offset, self.last_offset, error)
            return None

    def __iter__(self) -> Iterator[Any]:
        batch, offset = self._batch, self._batch.base_offset
        try:
            if not self._whole:
                raise CorruptRecordError("the checksum does not fit")
            records = iter(batch)  # unpacks what is compressed
        except Exception as error:  # noqa: BLE001  each codec has errors of its own; all are said
            yield from self._lost(offset, self.last_offset, error)
            return
        while True:
            try:
                record = next(records)
            except StopIteration:
                return
            except Exception as error:  # noqa: BLE001  as above
                bad = _step_over(batch, offset, self.last_offset)
                if bad is None:
                    yield from self._lost(offset, self.last_offset, error)
                    return
                yield from self._lost(bad, bad, error)
                offset = bad + 1
                continue
            offset = record.offset + 1
            yield record

    def _lost(self, first: int, last: int, error: Exception) -> Iterator[DefaultRecord]:
        self._say(first, last, error)
        batch, reason = self._batch, f"the record cannot be read: {error}"[:REASON_CHARACTERS]
        headers = [("x-error-class", CORRUPT.encode()), ("x-error-message", reason.encode(errors="replace"))]
        stamp = batch.max_timestamp if batch.magic == 2 else -1
        for offset in range(first, last + 1):
            yield DefaultRecord(0, offset, stamp, batch.timestamp_type, None, None, headers)

    def _say(self, first: int, last: int, error: Exception) -> None:
        place = f"{self._part.topic}/{self._part.partition}"
        log.error(
            "records cannot be read",
            extra={
                "partition": place,
                "first": first,
                "last": last,
                "error": repr(error)[:REASON_CHARACTERS],
            },
        )


def _step_over(batch: Any, first: int, last: int) -> int | None:
    """Moves a batch behind the record at which its reader stopped; None where even its frame is broken.

    Returns:
        The record's offset.
    """
    if batch.magic != 2:
        return None
    try:
        length, start = decode_varint(batch._buffer, batch._pos)
        _, at = decode_varint(batch._buffer, start)  # attributes
        _, at = decode_varint(batch._buffer, at)  # timestamp
        delta, at = decode_varint(batch._buffer, at)
    except (ValueError, IndexError):
        return None
    offset = int(batch.base_offset + delta)
    if not (start < at <= start + length <= len(batch._buffer) and first <= offset <= last):
        return None
    batch._pos = start + length
    batch._next_record_index += 1
    return offset
