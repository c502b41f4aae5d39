"""Bytes in, values out, never an exception; and the same bytes in every version."""

import base64
import hashlib
import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from core.config import KafkaConfig, LimitConfig
from core.errors import Refused
from core.filters import wanted
from core.records import Coordinates, Judgement, Record, Refusal
from core.types import Encoded, Hits, Outcome, Query, QueryBatch, Twin
from stream import codec, letters, messages
from stream.codec import Codec
from stream.decision import Decisions
from stream.letters import LEAST_BYTES, fitted

GOLDEN = Path(__file__).with_name("golden")
TOPICS = KafkaConfig()
AT = Coordinates(TOPICS.queries, 0, 7)
WANTED = wanted(3, {"year": {"from": 2019, "to": 2024.5}, "colour": ["red", "green"], "kind": "żółw"}, 0.25)
PNG = b"\x89PNG\r\n\x1a\nnot really"


def made(**limits: object) -> Codec:
    return Codec(
        LimitConfig.model_validate(limits),
        TOPICS,
        identify=lambda version, key: f"{version}:{key}",
        label_wanted=lambda at: at.offset % 2 == 1,
        now_ms=lambda: 1234,
    )


def record(value: bytes | None, headers: codec.Headers | None = None, topic: str = TOPICS.queries) -> Record:
    return Record(Coordinates(topic, 0, 7), value, b"key", tuple(headers or ()), 99)


def refused(value: bytes | None, headers: codec.Headers | None = None, **limits: object) -> tuple[str, str]:
    found = made(**limits).decode(record(value, headers))
    assert isinstance(found, Refusal), found
    assert found.error == "Refused"
    return found.stage, found.reason


def accepted(value: bytes, headers: codec.Headers | None = None, **limits: object) -> Query:
    found = made(**limits).decode(record(value, headers))
    assert isinstance(found, Query), found
    return found


# -- queries --------------------------------------------------------------------------------------------


def test_text_there_and_back() -> None:
    value, headers = codec.text_query("a turtle 🐢", "q-1", "zoo")
    assert accepted(value, headers) == Query(AT, "text", "a turtle 🐢", "q-1", "zoo", 99)
    value, headers = codec.text_query("bare")
    assert accepted(value, headers) == Query(AT, "text", "bare", "", "", 99)


def test_vector_there_and_back_is_exact() -> None:
    vector = np.random.default_rng(0).normal(size=64).astype(np.float32)
    vector[:3] = (0.1, -0.0, 1e-45)
    found = accepted(*codec.vector_query(vector, "q", "t"))
    assert isinstance(found.content, np.ndarray)
    assert found.modality == "vector" and found.content.dtype == np.float32
    assert found.content.tobytes() == vector.tobytes()


def test_picture_there_and_back() -> None:
    found = accepted(*codec.image_query(PNG, "q-3", "zoo", "image/webp"))
    assert found == Query(AT, "image", PNG, "q-3", "zoo", 99)


def test_composed_there_and_back() -> None:
    value, headers = codec.composed_query(PNG, "the same in red 🐢", "q-4", "zoo")
    assert accepted(value, headers) == Query(AT, "composed", (PNG, "the same in red 🐢"), "q-4", "zoo", 99)


def test_sequence_there_and_back() -> None:
    frames = [PNG, b"\0", PNG[::-1]]
    value, headers = codec.sequence_query(frames, "q-5", "zoo")
    assert accepted(value, headers) == Query(AT, "sequence", tuple(frames), "q-5", "zoo", 99)
    assert accepted(codec.sequence_query([PNG] * 32)[0]).content == (PNG,) * 32


def test_a_sequence_of_vectors_becomes_the_vector_of_its_mean_direction() -> None:
    rows = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32) * [[1], [1e-20], [1e20], [3], [9]]
    found = accepted(*codec.sequence_query(rows.astype(np.float32), "q", "t"))
    expected = np.zeros(8)
    for row in rows.astype(np.float32).astype(np.float64):
        expected += row / np.sqrt(sum(x * x for x in row.tolist()))
    expected /= np.sqrt((expected**2).sum())
    assert found.modality == "vector" and isinstance(found.content, np.ndarray)
    assert found.content.dtype == np.float32
    np.testing.assert_allclose(found.content, expected, atol=1e-7)


def plain(picture: bytes) -> str:
    return base64.b64encode(picture).decode()


@pytest.mark.parametrize(
    ("document", "stage", "word"),
    [
        ({"modality": "composed", "text": "a"}, "validate", "composed.image"),
        ({"modality": "composed", "image": plain(PNG)}, "validate", "composed.text"),
        ({"modality": "composed", "image": plain(PNG), "text": ""}, "validate", "composed.text"),
        ({"modality": "composed", "image": plain(PNG), "text": "  "}, "validate", "the text is empty"),
        ({"modality": "composed", "image": plain(PNG), "text": 7}, "validate", "string"),
        ({"modality": "composed", "image": "", "text": "a"}, "validate", "composed.image"),
        ({"modality": "composed", "image": 7, "text": "a"}, "validate", "string"),
        (
            {"modality": "composed", "image": "not base64!", "text": "a"},
            "decode",
            "the picture is not base64",
        ),
        ({"modality": "composed", "image": "żółw", "text": "a"}, "decode", "the picture is not base64"),
        ({"modality": "composed", "image": "YQ", "text": "a"}, "decode", "padding"),
        ({"modality": "composed", "image": plain(PNG) + "\n", "text": "a"}, "decode", "the picture"),
        ({"modality": "sequence"}, "validate", "1 to 32 frames"),
        ({"modality": "sequence", "frames": []}, "validate", "1 to 32 frames"),
        ({"modality": "sequence", "frames": [plain(PNG)], "vectors": [[1.0]]}, "validate", "not both"),
        ({"modality": "sequence", "frames": [plain(PNG)] * 33}, "validate", "at most 32"),
        ({"modality": "sequence", "vectors": [[1.0]] * 33}, "validate", "at most 32"),
        ({"modality": "sequence", "frames": [plain(PNG), ""]}, "validate", "sequence.frames.1"),
        ({"modality": "sequence", "frames": [plain(PNG), 7]}, "validate", "sequence.frames.1"),
        ({"modality": "sequence", "frames": [plain(PNG), "?"]}, "decode", "frame 2 of 2 is not base64"),
        ({"modality": "sequence", "frames": plain(PNG)}, "validate", "array"),
        ({"modality": "sequence", "vectors": [[1.0, 0.0], []]}, "validate", "sequence.vectors.1"),
        ({"modality": "sequence", "vectors": [[1.0, 0.0], [1.0]]}, "validate", "same width"),
        ({"modality": "sequence", "vectors": [[1.0], [0.0]]}, "validate", "vector 2 of 2 is zero"),
        ({"modality": "sequence", "vectors": [[2.0], [-3.0]]}, "validate", "cancel out"),
        ({"modality": "sequence", "vectors": [[1e300]]}, "validate", "float32"),
        ({"modality": "sequence", "vectors": [[1.0, "2"]]}, "validate", "number"),
        ({"modality": "sequence", "vectors": [1.0, 2.0]}, "validate", "array"),
    ],
)
def test_refused_composed_and_sequence_queries(document: dict[str, object], stage: str, word: str) -> None:
    found, reason = refused(json.dumps(document).encode())
    assert found == stage
    assert word in reason


def test_limits_hold_for_every_part() -> None:
    nine, ten = b"x" * 9, b"x" * 10
    assert accepted(codec.composed_query(nine, "a" * 5)[0], image_bytes=9, text_characters=5)
    reason = refused(codec.composed_query(ten, "a")[0], image_bytes=9)[1]
    assert "the picture has 10 bytes, at most 9" in reason
    assert "6 characters" in refused(codec.composed_query(nine, "a" * 6)[0], text_characters=5)[1]
    assert accepted(codec.sequence_query([nine, nine])[0], image_bytes=9)
    reason = refused(codec.sequence_query([nine, ten, nine])[0], image_bytes=9)[1]
    assert "frame 2 of 3 has 10 bytes" in reason
    value = codec.sequence_query([nine] * 3)[0]
    assert accepted(value, message_bytes=len(value) + 3)
    assert "at most" in refused(value, message_bytes=len(value) + 2)[1]


def test_headers_may_name_the_new_modalities_but_not_contradict_them() -> None:
    value = codec.composed_query(PNG, "a")[0]
    assert accepted(value, [("x-modality", b"composed")]).modality == "composed"
    assert "contradicts" in refused(value, [("x-modality", b"composed"), ("content-type", b"image/png")])[1]
    value = codec.sequence_query([PNG])[0]
    assert accepted(value, [("x-modality", b"Sequence")]).modality == "sequence"


@pytest.mark.parametrize(
    "headers",
    [
        [("x-modality", b"image")],
        [("content-type", b"image/jpeg")],
        [("content-type", b"image/jpg")],
        [("Content-Type", b"Image/JPEG; q=1")],
        [("content-type", b"text/plain"), ("content-type", b"image/png")],
        [("content-type", b"application/octet-stream"), ("x-modality", b"IMAGE")],
    ],
)
def test_headers_that_mean_a_picture(headers: codec.Headers) -> None:
    assert accepted(PNG, headers).modality == "image"


@pytest.mark.parametrize("start", [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF....WEBPVP8 ", b"GIF89a"])
@pytest.mark.parametrize("headers", [[], [("content-type", b"application/octet-stream")]])
def test_bytes_of_a_picture_need_no_header(start: bytes, headers: codec.Headers) -> None:
    """What no tower takes (GIF) is refused by its name when it is decoded, not as "Invalid JSON"."""
    found = accepted(start + b"\0" * 20, headers)
    assert (found.modality, found.content) == ("image", start + b"\0" * 20)
    said = [("content-type", b"application/json")]
    assert "JSON" in refused(start + b"\0" * 20, said)[1]  # the header says what the bytes are not
    assert refused(start + b"\0" * 20, [("x-modality", b"text")])[0] == "decode"


def test_header_names_the_query_where_the_envelope_does_not() -> None:
    value, _ = codec.text_query("a")
    assert accepted(value, [("x-query-id", b"from-header")]).query_id == "from-header"
    value, _ = codec.text_query("a", "from-envelope")
    assert accepted(value, [("x-query-id", b"from-header")]).query_id == "from-envelope"


@pytest.mark.parametrize(
    ("value", "stage", "word"),
    [
        (None, "validate", "null"),
        (b"", "decode", "JSON"),
        (b"{", "decode", "JSON"),
        (b"\xff\xfe", "decode", "JSON"),
        (b"[" * 100_000, "decode", "recursion"),
        (b'{"modality":"text","text":"\\ud800"}', "decode", "JSON"),
        (b"null", "validate", "object"),
        (b"[]", "validate", "object"),
        (b'"text"', "validate", "object"),
        (b"{}", "validate", "modality"),
        (b'{"modality":"audio"}', "validate", "audio"),
        (b'{"modality":["text"]}', "validate", "modality"),
        (b'{"modality":"text"}', "validate", "text.text"),
        (b'{"modality":"text","text":""}', "validate", "text.text"),
        (b'{"modality":"text","text":" \\t\\n\\u00a0\\u3000"}', "validate", "empty"),
        (b'{"modality":"text","text":7}', "validate", "string"),
        (b'{"modality":"text","text":"a","query_id":7}', "validate", "query_id"),
        (b'{"modality":"text","text":"a","query_id":"' + b"x" * 257 + b'"}', "validate", "query_id"),
        (b'{"modality":"text","text":"a","schema_version":3}', "validate", "schema_version"),
        (b'{"modality":"text","text":"a","schema_version":0}', "validate", "schema_version"),
        (b'{"modality":"text","text":"a","schema_version":true}', "validate", "schema_version"),
        (b'{"modality":"text","text":"a","schema_version":"1"}', "validate", "schema_version"),
        (b'{"modality":"vector","vector":[]}', "validate", "vector"),
        (b'{"modality":"vector","vector":[1,NaN]}', "validate", "finite"),
        (b'{"modality":"vector","vector":[1,-Infinity]}', "validate", "finite"),
        (b'{"modality":"vector","vector":[1,1e999]}', "validate", "finite"),
        (b'{"modality":"vector","vector":[1,1e300]}', "validate", "float32"),
        (b'{"modality":"vector","vector":[1,"2"]}', "validate", "number"),
        (b'{"modality":"vector","vector":[1,true]}', "validate", "number"),
        (b'{"modality":"vector","vector":[[1,2]]}', "validate", "number"),
        (b'{"modality":"vector","vector":"1,2"}', "validate", "array"),
    ],
)
def test_refused_queries(value: bytes | None, stage: str, word: str) -> None:
    found, reason = refused(value)
    assert found == stage
    assert word in reason


@pytest.mark.parametrize(
    ("value", "headers", "stage", "word"),
    [
        (b"", [("x-modality", b"image")], "validate", "empty"),
        (PNG, [("content-type", b"image/gif")], "validate", "image/gif"),
        (PNG, [("content-type", b"image/png"), ("x-modality", b"text")], "validate", "contradicts"),
        (b'{"modality":"text","text":"a"}', [("x-modality", b"audio")], "validate", "audio"),
        (b'{"modality":"text","text":"a"}', [("x-tenant", b"\xff")], "decode", "UTF-8"),
        (b'{"modality":"text","text":"a"}', [("x-tenant", b"t" * 257)], "validate", "x-tenant"),
    ],
)
def test_refused_headers(value: bytes, headers: codec.Headers, stage: str, word: str) -> None:
    found, reason = refused(value, headers)
    assert found == stage
    assert word in reason


def test_limits_hold_at_their_edge() -> None:
    assert accepted(codec.text_query("ż" * 5)[0], text_characters=5).content == "ż" * 5
    assert "6 characters" in refused(codec.text_query("ż" * 6)[0], text_characters=5)[1]
    picture = [("x-modality", b"image")]
    assert accepted(b"x" * 9, picture, image_bytes=9).content == b"x" * 9
    assert refused(b"x" * 10, picture, image_bytes=9)[0] == "validate"
    value = codec.text_query("a")[0]
    assert accepted(value, message_bytes=len(value) + 3).content == "a"
    assert refused(value, message_bytes=len(value) + 2)[0] == "validate"


def test_a_megabyte_of_wrong_elements_is_cheap_and_its_reason_short() -> None:
    value = b'{"modality":"vector","vector":[' + b'"a",' * 250_000 + b'"a"]}'
    assert len(refused(value)[1]) <= letters.REASON_CHARACTERS
    value = b'{"modality":"' + b"x" * 900_000 + b'"}'
    assert len(refused(value)[1]) <= letters.REASON_CHARACTERS


def test_null_headers_are_legal() -> None:
    odd = Record(AT, codec.text_query("a")[0], None, (("x-tenant", None), ("content-type", None)))  # type: ignore[arg-type]
    found = made().decode(odd)
    assert isinstance(found, Query) and found.tenant == ""


def test_record_that_failed_its_checksum_says_so() -> None:
    headers = [("x-error-class", b"CorruptRecord"), ("x-error-message", b"the checksum does not fit")]
    for topic in (TOPICS.queries, TOPICS.labels):
        found = made().decode(record(None, headers, topic))
        assert isinstance(found, Refusal) and (found.stage, found.error) == ("decode", "CorruptRecord")
        assert found.reason == "the checksum does not fit"
    assert dict(made().dead_letter(found)[2])["x-error-class"] == b"CorruptRecord"
    assert accepted(codec.text_query("a")[0], headers).content == "a"


def test_other_topics_are_refused() -> None:
    found = made().decode(record(codec.text_query("a")[0], topic="elsewhere"))
    assert isinstance(found, Refusal) and found.stage == "decode"


# -- references -----------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "100% a#b?.png").write_bytes(PNG)
    (tmp_path / "secret.png").write_bytes(PNG)
    (folder / "out").symlink_to(tmp_path / "secret.png")
    (folder / "within").symlink_to(folder / "deep" / "100% a#b?.png")
    os.mkfifo(folder / "pipe")
    return folder


def reference(path: Path | str, content: bytes = PNG) -> bytes:
    return codec.reference_query(path, hashlib.sha256(content).hexdigest(), len(content), "q")[0]


def test_reference_there_and_back(root: Path) -> None:
    for path in ("deep/100% a#b?.png", root / "deep" / "100% a#b?.png", "deep/../within"):
        assert accepted(reference(path), reference_root=root) == Query(AT, "image", PNG, "q", "", 99)


@pytest.mark.parametrize(
    "path",
    [
        *("../secret.png", "out", "/etc/passwd", "deep/../../secret.png"),
        *("missing", "deep", "", "pipe", "a\0b", "a" * 3000),
    ],
)
def test_references_out_of_bounds(root: Path, path: str) -> None:
    assert refused(reference(path), reference_root=root)[0] == "fetch"


@pytest.mark.parametrize(
    "uri",
    ["file://host/x", "file:within?x", "file:within#x", "file://[/x", "file:%2e%2e/secret.png", "file:%00"],
)
def test_odd_addresses(root: Path, uri: str) -> None:
    document = json.loads(reference("within")) | {"uri": uri}
    assert refused(json.dumps(document).encode(), reference_root=root)[0] == "fetch"


@pytest.mark.parametrize(
    "change",
    [
        *({"uri": "http://x/y"}, {"sha256": "A" * 64}),
        *({"size": 0}, {"size": -1}, {"size": 1.5}, {"size": 2**70}),
    ],
)
def test_odd_references(root: Path, change: dict[str, object]) -> None:
    document = json.loads(reference("within")) | change
    assert refused(json.dumps(document).encode(), reference_root=root)[0] == "validate"


def test_reference_must_match_size_and_sum_and_be_allowed(root: Path) -> None:
    assert "size or sha256" in refused(reference("within", PNG[:-1]), reference_root=root)[1]
    assert "size or sha256" in refused(reference("within", PNG + b"x"), reference_root=root)[1]
    assert "size or sha256" in refused(reference("within", PNG[:-1] + b"x"), reference_root=root)[1]
    assert "reference_root is not set" in refused(reference("within"))[1]
    assert "at most 5" in refused(reference("within"), reference_root=root, image_bytes=5)[1]
    assert refused(reference("within"))[0] == "fetch"


# -- labels ---------------------------------------------------------------------------------------------


def test_label_there_and_back() -> None:
    about = Coordinates(TOPICS.queries, 3, 12)
    at = Coordinates(TOPICS.labels, 0, 7)
    found = made().decode(record(codec.label(about, "turtle"), topic=TOPICS.labels))
    assert found == Judgement(at, about, "turtle")


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"{}",
        codec.text_query("a query on the wrong topic")[0],
        codec.label(Coordinates("t", -1, 0), "x"),
        codec.label(Coordinates("t", 0, -1), "x"),
        codec.label(Coordinates("t", 0, 2**63), "x"),
        codec.label(Coordinates("", 0, 0), "x"),
        codec.label(Coordinates("t", 0, 0), ""),
        codec.label(Coordinates("t", 0, 0), "x" * 257),
    ],
)
def test_refused_labels(value: bytes | None) -> None:
    found = made().decode(record(value, topic=TOPICS.labels))
    assert isinstance(found, Refusal) and found.error == "Refused"
    assert isinstance(made().decode(record(codec.label(AT, "x"))), Refusal)


# -- answers --------------------------------------------------------------------------------------------


def outcome() -> Outcome:
    queries = tuple(
        Query(Coordinates(TOPICS.queries, 0, offset), "text", "a", f"q-{offset}") for offset in (7, 8)
    )
    hits = Hits(
        np.array([[4, 2, -1], [-1, -1, -1]]),
        np.array([[3, 9, 2147483647], [2147483647] * 3], dtype=np.int32),
        np.array([[0.75, 1 / 3, -4.0], [-4.0] * 3]),
    )
    encoded = Encoded(np.zeros((2, 4), np.float32), np.zeros((2, 1), np.uint8))
    batch = QueryBatch("0:text", 3, "text", queries)
    return Outcome(
        batch,
        Twin(encoded, hits, hits),
        Twin(encoded, hits, hits),
        hits,
        np.ones(2, np.float32),
        "g1",
        "abc",
        np.zeros(2, np.float32),
    )


def test_answers_of_a_batch() -> None:
    found = made().answers(outcome())
    assert [key for _, key, _ in found] == [b"qshift.queries/0/7", b"qshift.queries/0/8"]
    assert [headers for _, _, headers in found] == [[("x-answered-at-ms", b"1234")]] * 2
    assert found[0][0] == (
        b'{"abstained":false,"batch_seq":3,"confidence":null,"decided_by":"mixture","gallery_version":"g1",'
        b'"label_wanted":true,"lane":"0:text","query_id":"q-7","results":[{"distance":3,"id":"g1:4",'
        b'"score":0.75},{"distance":9,"id":"g1:2","score":0.333333}],"schema_version":2,'
        b'"source":{"offset":7,"partition":0,"topic":"qshift.queries"},"state":"abc","weight":1.0}'
    )
    second = codec.decode_answer(found[1][0])
    assert second.source.offset == 8 and not second.label_wanted and second.results == ()


def test_duplicates_are_equal_whatever_the_clock() -> None:
    early = Codec(LimitConfig(), TOPICS, now_ms=lambda: 1).answers(outcome())
    late = Codec(LimitConfig(), TOPICS, now_ms=lambda: 2).answers(outcome())
    assert [value for value, _, _ in early] == [value for value, _, _ in late]
    assert early[0][2] != late[0][2]


def test_empty_batch_has_no_answers() -> None:
    none = Hits(np.zeros((0, 3), np.int64), np.zeros((0, 3), np.int32))
    encoded = Encoded(np.zeros((0, 4), np.float32), np.zeros((0, 1), np.uint8))
    batch = QueryBatch("0:text", 0, "text", ())
    empty = Outcome(
        batch,
        Twin(encoded, none, none),
        Twin(encoded, none, none),
        none,
        np.ones(0, np.float32),
        "g",
        "s",
        np.zeros(0, np.float32),
    )
    assert made().answers(empty) == []


def test_traces_pass_through_and_do_not_pile_up() -> None:
    one = made(pending_queries=64)
    value, _ = codec.text_query("a")
    for offset in range(1000):
        at = Coordinates(TOPICS.queries, 0, offset)
        one.decode(Record(at, value, None, (("traceparent", b"00-%d" % offset),)))
    query = Query(Coordinates(TOPICS.queries, 0, 999), "text", "a")
    assert one.answer_headers(query) == [("x-answered-at-ms", b"1234"), ("traceparent", b"00-999")]
    assert one.answer_headers(query) == [("x-answered-at-ms", b"1234")]
    assert len(one._traces) == 255


@pytest.mark.parametrize("value", [b"", b"{}", b"[]", codec.text_query("a")[0]])
def test_what_is_not_an_answer(value: bytes) -> None:
    with pytest.raises(Refused):
        codec.decode_answer(value)


# -- dead letters ---------------------------------------------------------------------------------------


def test_dead_letter_keeps_the_bytes_and_says_why() -> None:
    headers = (("traceparent", b"00-ab"), ("x-tenant", b"zoo"), ("null", None))
    source = Record(Coordinates(TOPICS.queries, 2, 41), b"\xff\x00", b"\x01", headers, 99)  # type: ignore[arg-type]
    value, key, found = made().dead_letter(Refusal(source, "image", "DecompressionBomb", "too big: ż"))
    assert (value, key) == (b"\xff\x00", b"\x01")
    assert found == [
        ("x-error-stage", b"image"),
        ("x-error-class", b"DecompressionBomb"),
        ("x-error-message", "too big: ż".encode()),
        ("x-source-topic", b"qshift.queries"),
        ("x-source-partition", b"2"),
        ("x-source-offset", b"41"),
        ("x-source-timestamp", b"99"),
        ("x-attempt", b"1"),
        ("traceparent", b"00-ab"),
        ("x-tenant", b"zoo"),
        ("null", b""),
    ]


def test_dead_letter_of_a_repeated_attempt_replaces_our_headers() -> None:
    first = made().dead_letter(Refusal(record(b"{"), "decode", "Refused", "first"))
    again = [(name, b"3" if name == "x-attempt" else value) for name, value in first[2]]
    _, _, found = made().dead_letter(Refusal(record(b"{", again), "search", "Other", "second"))
    assert Counter(name for name, _ in found).most_common(1)[0][1] == 1
    assert dict(found)["x-error-message"] == b"second"
    assert dict(found)["x-attempt"] == b"3"


@pytest.mark.parametrize("attempt", [b"", b"x", b"-1", b"9" * 5000, "²".encode()])
def test_odd_attempts_count_as_the_first(attempt: bytes) -> None:
    refusal = Refusal(record(b"{", [("x-attempt", attempt)]), "decode", "Refused", "r")
    assert dict(made().dead_letter(refusal)[2])["x-attempt"] == b"1"


def test_dead_letter_of_null_and_of_odd_text() -> None:
    value, _, found = made().dead_letter(Refusal(record(None), "validate", "Refused", "a\ud800b" * 1000))
    assert value == b""
    assert dict(found)["x-source-null"] == b"true"
    assert len(dict(found)["x-error-message"]) <= 2 * letters.REASON_CHARACTERS


def test_dead_letter_of_an_oversize_record_fits() -> None:
    headers = [("traceparent", b"00"), *[(f"h{n}", b"x" * 100_000) for n in range(10)]]
    big = Record(AT, b"v" * (2 << 20), b"k" * 100_000, tuple(headers))
    one = made(message_bytes=1 << 20)
    refusal = one.decode(big)
    assert isinstance(refusal, Refusal)
    value, key, found = one.dead_letter(refusal)
    size = len(value) + len(key or b"") + sum(len(n) + len(v) for n, v in found)
    assert size <= 1 << 20
    assert dict(found)["x-source-truncated"] == b"%d" % (2 << 20)
    assert dict(found)["traceparent"] == b"00"
    assert big.value is not None and big.value.startswith(value) and len(value) > 900_000


def letter_bytes(letter: tuple[bytes, bytes | None, codec.Headers]) -> int:
    """As Kafka's format v2 has it: header of the batch, the record's numbers, each part behind its length."""
    value, key, headers = letter
    lengths = [len(value), len(key or b""), len(headers)]
    lengths += [part for name, content in headers for part in (len(name.encode()), len(content))]
    content = sum(lengths) - len(headers)
    return 61 + 21 + content + sum(1 + (n > 63) + (n > 8191) + (n > (1 << 20) - 1) for n in lengths)


def test_headers_are_counted_as_kafka_encodes_them() -> None:
    """380,000 headers of one letter are 1.14 MB, though names and values are a third of it."""
    many = Record(AT, codec.text_query("a")[0], b"key", tuple([("h", b"")] * 380_000))
    refusal = made().decode(many)
    assert isinstance(refusal, Refusal) and "1140" in refusal.reason and "at most 1048576" in refusal.reason
    letter = made().dead_letter(refusal)
    assert letter_bytes(letter) <= 1 << 20
    assert letter[:2] == (many.value, b"key")
    assert ("h", b"") not in letter[2] and dict(letter[2])["x-source-offset"] == b"7"


@pytest.mark.parametrize("limit", [*range(800, 3000, 37), 10_000, 40_000, 70_000, 150_000])
def test_a_letter_is_cut_until_it_fits(limit: int) -> None:
    """Value first, then the client's headers and the key, then our own long ones; never the place."""
    headers = [("traceparent", b"00-ab"), ("x-tenant", b"t" * 3000), ("other", b"o" * 60_000)]
    refusal = Refusal(record(b"v" * 100_000, headers), "decode", "E" * 300, "ż" * 2000)
    whole = made().dead_letter(refusal)
    cut = fitted(whole, limit)
    found = dict(cut[2])
    assert letter_bytes(cut) <= limit and b"v" * len(cut[0]) == cut[0]
    assert found["x-source-truncated"] == b"100000" and found["x-source-topic"] == b"qshift.queries"
    assert found["x-source-offset"] == b"7" and found["x-error-message"].startswith("ż".encode())
    if limit >= 10_000:
        assert cut[1] == b"key" and found["traceparent"] == b"00-ab"
        assert len(cut[0]) == 100_000 or limit - letter_bytes(cut) <= 32
    if limit >= LEAST_BYTES:
        assert len(found["x-error-class"]) == 300
    assert fitted(whole, letter_bytes(whole)) == whole


def test_the_shortest_letter_is_within_what_every_topic_must_take() -> None:
    at = Coordinates("t" * 249, 2**31 - 1, 2**62)
    refusal = Refusal(Record(at, b"v" * 100, b"k" * 9000, (), 2**62), "validate", "E" * 900, "r" * 5000)
    assert letter_bytes(fitted(made().dead_letter(refusal), LEAST_BYTES)) <= LEAST_BYTES


# -- versions -------------------------------------------------------------------------------------------


def golden(name: str) -> bytes:
    return (GOLDEN / name).read_bytes()


def test_golden_messages_are_still_written() -> None:
    vector = np.array([0.1, -1.5, 0], dtype=np.float32)
    sha256 = json.loads(golden("query-reference.v1.json"))["sha256"]
    assert codec.text_query("żółw, a turtle", "q-1")[0] == golden("query-text.v1.json")
    assert codec.vector_query(vector, "q-2")[0] == golden("query-vector.v1.json")
    assert codec.reference_query("folder/a picture.png", sha256, 4, "q-3")[0] == golden(
        "query-reference.v1.json"
    )
    assert codec.composed_query(PNG, "the same in red, żółw", "q-4")[0] == golden("query-composed.v1.json")
    assert codec.sequence_query([PNG, b"second"], "q-5")[0] == golden("query-sequence.v1.json")
    rows = np.array([[3, 0], [0, 0.5]], dtype=np.float32)
    assert codec.sequence_query(rows, "q-6")[0] == golden("query-sequence.v1-vectors.json")
    assert codec.label(Coordinates(TOPICS.queries, 2, 41), "turtle") == golden("label.v1.json")
    assert codec.wanting(codec.text_query("żółw, a turtle", "q-1"), WANTED)[0] == golden("query-text.v2.json")
    names = {4: "1F422", 2: "1F40A"}
    one = Codec(
        LimitConfig(), TOPICS, lambda version, key: names[key], lambda at: True,
        decisions=Decisions(lambda *_: np.array([0.43216, 0.2])),
    )  # fmt: skip
    assert one.answers(outcome())[0][0] == golden("answer.v2.json")


def test_golden_messages_are_still_read() -> None:
    assert accepted(golden("query-text.v1.json")).content == "żółw, a turtle"
    content = accepted(golden("query-vector.v1.json")).content
    assert isinstance(content, np.ndarray)
    assert content.tolist() == np.array([0.1, -1.5, 0], np.float32).tolist()
    assert refused(golden("query-reference.v1.json"))[0] == "fetch"
    assert accepted(golden("query-composed.v1.json")).content == (PNG, "the same in red, żółw")
    assert accepted(golden("query-sequence.v1.json")).content == (PNG, b"second")
    content = accepted(golden("query-sequence.v1-vectors.json")).content
    assert isinstance(content, np.ndarray)
    assert content.tolist() == np.array([0.5**0.5, 0.5**0.5], np.float32).tolist()
    found = made().decode(record(golden("label.v1.json"), topic=TOPICS.labels))
    assert isinstance(found, Judgement) and found.query == Coordinates(TOPICS.queries, 2, 41)
    assert accepted(golden("query-text.v2.json")).wanted == WANTED
    answer = codec.decode_answer(golden("answer.v2.json"))
    found = (("1F422", 3), ("1F40A", 9))
    said = (AT, "q-7", "0:text", 3, "abc", "g1", True, found, (0.75, 0.333333), 1.0, "mixture", 0.4322, False)
    assert answer == codec.Answer(*said)
    answer = codec.decode_answer(golden("answer.v1.json"))
    assert answer == codec.Answer(AT, "q-1", "0:text", 3, "abc", "g1", True, (("1F422", 3), ("1F40A", 9)))


def test_additions_are_ignored_and_new_versions_refused() -> None:
    assert accepted(golden("query-text.v1-added-field.json")).content == "a turtle"
    stage, reason = refused(golden("query-text.v3-unknown.json"))
    assert stage == "validate" and "schema_version" in reason
    later = json.loads(golden("answer.v1.json")) | {"added_later": 1}
    later["results"][0]["score"] = 0.5
    assert codec.decode_answer(json.dumps(later).encode()) == codec.decode_answer(golden("answer.v1.json"))


def test_who_reads_version_1_finds_all_of_it_in_version_2() -> None:
    """By name and by type: fields were added, none was renamed."""
    first, second = (json.loads(golden(f"answer.v{number}.json")) for number in (1, 2))
    assert first.keys() <= second.keys() and first["results"][0].keys() <= second["results"][0].keys()
    read = codec.decode_answer(json.dumps(second | {"schema_version": 1}).encode())
    assert read.results == codec.decode_answer(golden("answer.v2.json")).results and read.decided_by is None


@pytest.mark.parametrize(
    "change", [{"schema_version": 3}, {"decided_by": "nobody"}, {"weight": -1}, {"results": 1}]
)
def test_answers_that_are_none_of_either_version(change: dict[str, object]) -> None:
    with pytest.raises(Refused, match=next(iter(change))):
        codec.decode_answer(json.dumps(json.loads(golden("answer.v2.json")) | change).encode())


def test_schema_files_are_up_to_date() -> None:
    expected = messages.schemas()
    assert {path.name for path in messages.SCHEMAS.iterdir()} == set(expected)
    for name, text in expected.items():
        assert (messages.SCHEMAS / name).read_text() == text, "run: python -m stream.messages"


# -- hostile input --------------------------------------------------------------------------------------


def mutated(value: bytes, draw: random.Random) -> bytes:
    data = bytearray(value)
    for _ in range(draw.choice((1, 1, 2, 5))):
        where = draw.randrange(len(data) + 1)
        match draw.randrange(6):
            case 0:
                data[where : where + 1] = bytes([draw.randrange(256)])
            case 1:
                del data[where : where + draw.randrange(1, 9)]
            case 2:
                data[where:where] = draw.randbytes(draw.randrange(1, 5))
            case 3:
                odd = [
                    b"null",
                    b"NaN",
                    b"1e999",
                    b"-0",
                    b"[[[",
                    b'"\\ud800"',
                    b"9" * 30,
                    b"{}",
                    b"\0",
                    b"true",
                ]
                data[where:where] = draw.choice(odd)
            case 4:
                start = draw.randrange(len(data) + 1)
                data[where:where] = data[start : start + draw.randrange(20)]
            case _:
                words = [
                    b"text",
                    b"vector",
                    b"reference",
                    b"composed",
                    b"sequence",
                    b"frames",
                    b"modality",
                    b"file:",
                    b"size",
                    b"offset",
                    b"label",
                ]
                old = draw.choice(words)
                data = bytearray(bytes(data).replace(old, draw.choice(words), 1))
    return bytes(data)


def mutants(count: int, seed: int) -> Iterator[Record]:
    """Records of the query and the label topic that are, or once were, messages."""
    draw = random.Random(seed)
    seeds = [path.read_bytes() for path in sorted(GOLDEN.iterdir())]
    seeds += [reference("within"), reference("pipe"), reference("../secret.png"), PNG]
    names = ["content-type", "x-modality", "x-query-id", "x-tenant", "traceparent", "x-attempt", "other"]
    texts = [b"image/png", b"image", b"text", b"", b"\xff", b"1", b"a" * 300]
    for number in range(count):
        headers = [(draw.choice(names), draw.choice(texts)) for _ in range(draw.choice((0, 0, 0, 1, 2)))]
        topic = draw.choice((TOPICS.queries, TOPICS.queries, TOPICS.labels))
        at = Coordinates(topic, draw.randrange(3), number)
        yield Record(at, mutated(draw.choice(seeds), draw), None, tuple(headers), 5)


def mutants_never_raise(root: Path, count: int, seed: int = 20260) -> None:
    """R5; in its long form in tests/nightly/test_damage.py."""
    one = made(reference_root=root)
    seen: Counter[str] = Counter()
    for number, given in enumerate(mutants(count, seed)):
        found = one.decode(given)
        if isinstance(found, Refusal):
            # Anything else would be a bug that the codec's last net caught.
            assert found.error == "Refused", found
            value, key, out = one.dead_letter(found)
            assert (value, key) == (given.value, given.key)
            assert dict(out)["x-source-offset"] == b"%d" % number
            seen[found.stage] += 1
        else:
            assert found.at == given.at
            seen[type(found).__name__] += 1
            if isinstance(found, Query) and found.modality == "vector":
                assert isinstance(found.content, np.ndarray) and np.isfinite(found.content).all()
    assert seen["decode"] > 1000 and seen["validate"] > 1000 and seen["fetch"] > 50, seen
    assert seen["Query"] > 500 and seen["Judgement"] > 50, seen


def test_twenty_thousand_mutants_never_raise(root: Path) -> None:
    mutants_never_raise(root, 20_000)


def test_the_last_net_turns_a_bug_into_a_dead_letter() -> None:
    broken = Record(AT, "not bytes at all: a bug", None, ((None, b""),))  # type: ignore[arg-type]
    found = made().decode(broken)
    assert isinstance(found, Refusal) and found.stage == "decode" and found.error != "Refused"


def test_models_are_frozen_and_strict() -> None:
    with pytest.raises(ValidationError):
        messages.TextQuery.model_validate({"modality": "text", "text": 1})
