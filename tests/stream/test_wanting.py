"""What queries want, in messages and headers; and what answers say of themselves."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from core.config import KafkaConfig, LimitConfig
from core.filters import ANYTHING, Wanted, wanted
from core.records import Coordinates, Record, Refusal
from core.types import Encoded, Hits, Outcome, Query, QueryBatch, Twin
from stream import codec
from stream.codec import Codec
from stream.decision import Decisions
from stream.wanting import FILTER_CHARACTERS

TOPICS = KafkaConfig()
AT = Coordinates(TOPICS.queries, 0, 7)
PNG = b"\x89PNG\r\n\x1a\nnot really"
WANT = wanted(5, {"colour": ["red", "żółty"], "year": {"from": 2019}}, 0.5)
VECTORS = np.array([[0.1, 0.2], [1.0, 3.0]], np.float32)


def decoded(value: bytes, headers: codec.Headers | None = None) -> Query | Refusal:
    found = Codec(LimitConfig(), TOPICS).decode(Record(AT, value, None, tuple(headers or ())))
    assert isinstance(found, Query | Refusal)
    return found


def reason(value: bytes, headers: codec.Headers | None = None) -> str:
    found = decoded(value, headers)
    assert isinstance(found, Refusal) and found.stage in ("decode", "validate"), found
    assert "\n" not in found.reason
    return found.reason


@pytest.mark.parametrize(
    "message",
    [
        codec.text_query("a turtle", "q", "zoo"), codec.vector_query(VECTORS[0], "q", "zoo"),
        codec.image_query(PNG, "q", "zoo"), codec.composed_query(PNG, "in red", "q", "zoo"),
        codec.sequence_query(VECTORS, "q", "zoo"), codec.sequence_query([PNG, PNG], "q", "zoo"),
    ],
    ids=["text", "vector", "image", "composed", "vectors", "frames"],
)  # fmt: skip
@pytest.mark.parametrize("want", [WANT, wanted(3), wanted(filter={"a": 1.5}), wanted(threshold=0.0)])
def test_there_and_back(message: tuple[bytes, codec.Headers], want: Wanted) -> None:
    plain, found = decoded(*message), decoded(*codec.wanting(message, want))
    assert isinstance(plain, Query) and isinstance(found, Query)
    assert plain.wanted is ANYTHING and found.wanted == want
    assert str(plain.content) == str(found.content) and found.query_id == "q" and found.tenant == "zoo"
    assert codec.wanting(message, ANYTHING) == message


def test_what_an_older_reader_would_pass_over_says_version_2() -> None:
    assert json.loads(codec.wanting(codec.text_query("a"), wanted(3))[0])["schema_version"] == 2
    assert json.loads(codec.text_query("a")[0])["schema_version"] == 1


def test_version_1_wants_the_same() -> None:
    """By clients that add the fields and not the version, or say nothing where there is nothing to say."""
    said = {"modality": "text", "text": "a", "top": 3, "filter": None, "threshold": None}
    found = decoded(json.dumps(said).encode())
    assert isinstance(found, Query) and found.wanted == wanted(3)
    nothing = decoded(json.dumps({**said, "top": None, "filter": {}}).encode())
    assert isinstance(nothing, Query) and nothing.wanted == ANYTHING


def test_a_field_counts_more_than_a_header() -> None:
    value = json.dumps({"modality": "text", "text": "a", "top": 3}).encode()
    found = decoded(value, [("x-top", b"7"), ("x-threshold", b"0.25"), ("x-filter", b'{"a": "b"}')])
    assert isinstance(found, Query) and found.wanted == wanted(3, {"a": "b"}, 0.25)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"top": 0}, "top"), ({"top": 1.0}, "top"), ({"top": True}, "top"), ({"top": "3"}, "top"),
        ({"top": 10_001}, "top"), ({"threshold": 1.5}, "threshold"), ({"threshold": "high"}, "threshold"),
        ({"threshold": True}, "threshold"), ({"filter": []}, "filter"), ({"filter": {"a": []}}, "no value"),
        ({"filter": {"a": {"min": 1}}}, '{"from": ..., "to": ...}'), ({"filter": {"a": None}}, "'a' is null"),
        ({"filter": {"a": {"from": 3, "to": 1}}}, "before its start"),
        ({"filter": {"a\n": {"from": 3, "to": 1}}}, "before its start"),
    ],
)  # fmt: skip
def test_what_cannot_be_wanted_is_one_sentence(fields: dict[str, Any], word: str) -> None:
    value = json.dumps({"modality": "text", "text": "a", **fields}).encode()
    assert word in reason(value)
    headers = [("content-type", b"image/png")]
    headers += [(f"x-{name}", json.dumps(one).encode()) for name, one in fields.items()]
    assert word in reason(PNG, headers)


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("x-filter", b"{", "header x-filter is not JSON"), ("x-top", b"many", "header x-top is not JSON"),
        ("x-filter", b'{"a": 1, "a": 2}', "stands there twice"), ("x-threshold", b"NaN", "no finite number"),
        ("x-filter", b"[" * 50_000, "nested too deeply"), ("x-filter", b"\xff", "not UTF-8"),
        ("x-filter", b"x" * (FILTER_CHARACTERS + 1), f"at most {FILTER_CHARACTERS}"),
    ],
)  # fmt: skip
def test_headers_that_say_nothing(name: str, value: bytes, word: str) -> None:
    assert word in reason(PNG, [("content-type", b"image/png"), (name, value)])
    assert word in reason(codec.text_query("a")[0], [(name, value)])


def test_a_number_that_is_none_is_refused_wherever_it_stands() -> None:
    for text in ("NaN", "1e999", "-Infinity", "9" * 400):
        assert reason(b'{"modality":"text","text":"a","filter":{"a":' + text.encode() + b"}}")


# -- what answers say -----------------------------------------------------------------------------------


def outcome(weights: list[float], thresholds: list[float | None]) -> Outcome:
    count = len(weights)
    hits = Hits(np.zeros((count, 1), np.int64), np.zeros((count, 1), np.int32), np.ones((count, 1)))
    twin = Twin(Encoded(np.zeros((count, 4), np.float32), np.zeros((count, 1), np.uint8)), hits, hits)
    queries = tuple(
        Query(Coordinates(TOPICS.queries, 0, row), "text", "a", wanted=wanted(threshold=threshold))
        for row, threshold in enumerate(thresholds)
    )
    batch = QueryBatch("0:text", 0, "text", queries)
    served = np.array(weights, np.float32)
    return Outcome(batch, twin, twin, hits, served, "g", "s", np.zeros(count, np.float32))


def test_who_decided() -> None:
    weights = [0.0, 0.25, 1.0, np.inf]
    assert Decisions()(outcome(weights, [None] * 4)).by == ("frozen", "mixture", "mixture", "adapted")
    assert Decisions(fused=False)(outcome([0.0, 1.0], [None] * 2)).by == ("frozen", "adapted")


def test_below_the_threshold_nothing_is_named() -> None:
    sure = np.array([0.5, 0.49996, 0.49994, 0.1, np.nan, 0.0])
    decisions = Decisions(lambda *_: sure)
    one = outcome([1.0] * 6, [0.5, 0.5, 0.5, None, 0.9, 0.0])
    found = decisions(one)
    assert found.confidence == (0.5, 0.5, 0.4999, 0.1, None, 0.0)
    assert found.abstained.tolist() == [False, False, True, False, False, False]
    answers = [codec.decode_answer(value) for value, _, _ in Codec(
        LimitConfig(), TOPICS, decisions=decisions
    ).answers(one)]  # fmt: skip
    assert [len(answer.results) for answer in answers] == [1, 1, 0, 1, 1, 1]
    assert [answer.abstained for answer in answers] == found.abstained.tolist()
    assert [answer.confidence for answer in answers] == list(found.confidence)


def test_an_adapted_answer_has_no_weight_that_json_could_say() -> None:
    one = outcome([np.inf, 0.25], [None, None])
    answers = [json.loads(value) for value, _, _ in Codec(LimitConfig(), TOPICS).answers(one)]
    assert [(answer["weight"], answer["decided_by"]) for answer in answers] == [
        (None, "adapted"), (0.25, "mixture")
    ]  # fmt: skip
