"""Hostile input costs one dead letter each, with the reason and the place, and nothing else is lost."""

from __future__ import annotations

import io
import json
import zlib
from typing import Any

import numpy as np
import pytest
from kafka import KafkaProducer
from kafka.admin import ConfigResource, KafkaAdminClient
from PIL import Image

from core.records import Coordinates, Record
from stream.codec import image_query, text_query, vector_query
from stream.records import CORRUPT

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

Message = tuple[bytes | None, list[tuple[str, bytes]]]
WIDTH = 32


class Latin(str):
    """A header name whose bytes are not UTF-8, as a producer in another language may send it."""

    def encode(self, *_: Any) -> bytes:
        return b"caf\xe9"


def picture(seed: int, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")


def bomb() -> bytes:
    """A PNG of a few hundred kilobytes that announces, and holds, 100 megapixels."""
    side = 10_000
    header = side.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])  # 1 bit of grey
    rows = zlib.compress(bytes((side // 8 + 1) * side), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def vector(row: Any) -> Message:
    return vector_query(np.asarray(row, dtype=np.float32))


def bad() -> dict[str, tuple[Message, str, str]]:
    """Name -> (message, stage, a word of the reason)."""
    with_nan = json.dumps({"modality": "vector", "vector": [1.0] * (WIDTH - 1) + [float("nan")]}).encode()
    jpeg = picture(1, "JPEG")
    return {
        "truncated jpeg": (image_query(jpeg[: len(jpeg) // 2], content_type="image/jpeg"), "image", ""),
        "bomb": (image_query(bomb()), "image", "pixels"),
        "not json": ((b'{"modality": "text", "text": ', []), "decode", "JSON"),
        "not an envelope": ((b"[1, 2]", []), "validate", ""),
        "unknown modality": ((b'{"modality": "smell", "text": "rose"}', []), "validate", "modality"),
        "empty text": (text_query("  "), "validate", "empty"),
        "wrong width": (vector([1.0] * (WIDTH + 1)), "validate", f"{WIDTH} numbers"),
        "nan": ((with_nan, []), "validate", "finite"),
        "zero": (vector([0.0] * WIDTH), "validate", "zero"),
        "5 MiB": ((b"x" * (5 << 20), []), "validate", "bytes"),
        # 1.14 MB on the wire, though names and values are a third of it: whole it fits no topic of ours.
        "380,000 headers": ((b"{", [("h", b"")] * 380_000), "validate", "at most 1048576"),
        "header name": ((b"{", [(Latin("cafe"), b"x")]), "decode", "utf-8"),
        "null": ((None, []), "validate", "null"),
        "empty picture": (image_query(b""), "validate", "empty"),
    }


def produce(site: Any, messages: list[Message], topic: str = "") -> list[Coordinates]:
    """Past our own client and its limits, as a foreign producer would."""
    producer = KafkaProducer(bootstrap_servers=site.servers, max_request_size=8 << 20)
    try:
        sent = [
            producer.send(topic or site.kafka.queries, value, b"key", headers) for value, headers in messages
        ]
        stored = [one.get(30) for one in sent]
        return [Coordinates(one.topic, one.partition, one.offset) for one in stored]
    finally:
        producer.close()


def header(record: Record, name: str) -> str:
    (value,) = [value for key, value in record.headers if key == name]
    return value.decode()


def source_of(record: Record) -> Coordinates:
    return Coordinates(
        header(record, "x-source-topic"),
        int(header(record, "x-source-partition")),
        int(header(record, "x-source-offset")),
    )


def test_each_bad_input_is_one_dead_letter_and_every_good_query_is_answered(
    broker: Any, make_site: Any, clip_world: Any, messages: Any, serving: Any
) -> None:
    site = make_site(broker, clip_world, batch={"linger_seconds": 0.3})
    good: list[Message] = [
        *messages(40)[0],
        *(text_query(f"a good word {number}") for number in range(20)),
        *(image_query(picture(10 + number)) for number in range(20)),
    ]
    rng, cases = np.random.default_rng(5), bad()
    order = rng.permutation(len(good) + len(cases))
    mixed: list[Message] = [*good, *(message for message, _, _ in cases.values())]
    places = dict(zip(order.tolist(), produce(site, [mixed[number] for number in order]), strict=True))

    service = serving(site)
    site.wait(lambda: len(site.decoded()) >= len(good) and len(site.dead_letters()) >= len(cases))
    service.stop()

    assert set(site.decoded()) == {places[number] for number in range(len(good))}
    letters = site.dead_letters()
    assert len(letters) == len(cases)
    by_source = {source_of(letter): letter for letter in letters}
    for number, (name, ((value, _), stage, word)) in enumerate(cases.items(), len(good)):
        letter = by_source[places[number]]
        reason = header(letter, "x-error-message")
        assert header(letter, "x-error-stage") == stage, name
        assert reason and word.lower() in reason.lower(), (name, reason)
        if name == "header name":  # nothing of it could be read
            assert header(letter, "x-error-class") == CORRUPT and header(letter, "x-source-null") == "true"
            continue
        assert letter.key == b"key", name
        if name == "5 MiB":
            assert header(letter, "x-source-truncated") == str(5 << 20)
            assert letter.value and (value or b"").startswith(letter.value)
        else:
            assert letter.value == (value or b""), name


def test_a_picture_for_a_base_without_pictures(
    broker: Any, make_site: Any, vector_world: Any, messages: Any, serving: Any
) -> None:
    site = make_site(broker, vector_world, batch={"linger_seconds": 0.2})
    first, second = messages(2)[0]
    sent = produce(site, [first, image_query(picture(1)), text_query("rose"), second])
    service = serving(site)
    site.wait(lambda: len(site.decoded()) == 2 and len(site.dead_letters()) == 2)
    service.stop()
    assert set(site.decoded()) == {sent[0], sent[3]}
    assert [source_of(letter) for letter in site.dead_letters()] == [sent[1], sent[2]]
    for letter, modality in zip(site.dead_letters(), ("image", "text"), strict=True):
        assert header(letter, "x-error-stage") == "validate"
        assert f"serves vector, not {modality} queries" in header(letter, "x-error-message")


def test_a_stream_of_nothing_but_bad_input_moves_on(
    broker: Any, make_site: Any, vector_world: Any, messages: Any, serving: Any
) -> None:
    """Refused records are done with: a restart after a clean stop does not refuse them again."""
    site = make_site(broker, vector_world, batch={"linger_seconds": 0.2})
    sent: list[Coordinates] = []
    for count in (30, 5):  # the first checkpoint of all, and one after another
        sent += produce(site, [(b"{", [])] * count)
        service = serving(site)
        site.wait(lambda wanted=len(sent): len(site.dead_letters()) == wanted)
        service.stop()
    sent += produce(site, [(b"{", []), *messages(1)[0]])
    service = serving(site)
    site.wait(lambda: len(site.decoded()) == 1)
    service.stop()
    assert [source_of(letter) for letter in site.dead_letters()] == sent[:-1]


def test_poison_is_passed_by_at_every_start(
    broker: Any, make_site: Any, vector_world: Any, messages: Any, serving: Any
) -> None:
    """Labels are read from their beginning and refused records again until a checkpoint."""
    site = make_site(broker, vector_world, batch={"linger_seconds": 0.2})
    limited(site, site.kafka.dead_letters, 3000)
    poison: list[Message] = [
        (b"{", [(Latin("cafe"), b"x")]),
        (b"{", [("h", b"")] * 380_000),
        (b"x" * 2_000_000, []),
        (b"{" * 9_000, []),
    ]
    produce(site, poison[:1], site.kafka.labels)
    good = messages(6)[0]
    sent = produce(site, [*poison, *good[:2]])
    for start in range(3):
        service = serving(site)
        wanted = len(good[: 2 + start])
        site.wait(lambda count=wanted: len(site.decoded()) == count)
        assert service.ready()["running"] and max(service._source.lag().values()) == 0
        service.stop()
        sent += produce(site, good[2 + start : 3 + start])
    letters = {source_of(letter): letter for letter in site.dead_letters()}
    assert set(letters) == {*sent[:4], Coordinates(site.kafka.labels, 0, 0)}
    for letter in letters.values():
        assert len(letter.value or b"") < 3000 and header(letter, "x-error-message")


def test_an_answer_too_large_for_its_topic_is_a_dead_letter(
    broker: Any, make_site: Any, vector_world: Any, messages: Any, serving: Any
) -> None:
    """Sent again it would be too large again."""
    site = make_site(broker, vector_world, batch={"linger_seconds": 0.2}, answer={"top": 100})
    values = messages(4)[0]
    sent = produce(site, values[:2])
    service = serving(site)
    site.wait(lambda: len(site.decoded()) == 2)
    size = max(len(answer.value or b"") for answer in site.answers())
    service.stop()
    limited(site, site.kafka.answers, size // 2)
    sent += produce(site, values[2:])
    service = serving(site)
    site.wait(lambda: len(site.dead_letters()) == 2)
    service.stop()
    assert [source_of(letter) for letter in site.dead_letters()] == sent[2:]
    assert f"expected at most {size // 2}" in header(site.dead_letters()[0], "x-error-message")


def limited(site: Any, topic: str, size: int) -> None:
    admin = KafkaAdminClient(bootstrap_servers=site.servers)
    admin.alter_configs([ConfigResource("topic", topic, {"max.message.bytes": str(size)})])
    admin.close()
