"""Records of the items topic: what is taken, what is refused, and golden messages."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from core.config import LimitConfig
from core.records import Coordinates, Record, Refusal
from stream.items import ItemChange, decoded
from stream.messages import item

GOLDEN = Path(__file__).with_name("golden")
LIMITS = LimitConfig(text_characters=50, image_bytes=100, message_bytes=4000)


def record(value: bytes | None, key: bytes | None = b"a name") -> Record:
    return Record(Coordinates("qshift.items", 0, 3), value, key)


def taken(value: bytes | None, key: bytes | None = b"a name") -> ItemChange:
    found = decoded(record(value, key), LIMITS)
    assert isinstance(found, ItemChange), found
    return found


def test_golden_items_are_still_written_and_read() -> None:
    vector = np.array([0.1, -1.5, 0], dtype=np.float32)
    for name, content in (("text", "żółw, a turtle"), ("image", b"\x89PNG..."), ("vector", vector)):
        value = (GOLDEN / f"item-{name}.v1.json").read_bytes()
        assert item(content, ["turtle", "green"], "A turtle") == value
        found = taken(value, "żółw".encode())
        assert (found.identifier, found.modality) == ("żółw", name)
        assert (found.labels, found.title) == (("turtle", "green"), "A turtle")
        assert np.array_equal(found.content, content)


def test_labels_and_title_may_be_left_out_and_additions_are_ignored() -> None:
    found = taken(b'{"modality": "text", "text": "a", "price": 3}')
    assert found.labels == () and found.title == "" and found.attributes == {}


def test_attributes_are_taken_and_written() -> None:
    said = {"colour": "red", "year": 2019, "tags": ["new", "sale"]}
    found = taken(item("a", ["b"], "c", said))
    assert found.attributes == {"colour": "red", "year": 2019, "tags": ("new", "sale")}
    assert item("a", ["b"], "c", {}) == item("a", ["b"], "c")


def test_a_null_value_takes_an_item_out() -> None:
    found = taken(None)
    assert found.modality is None and found.identifier == "a name"


@pytest.mark.parametrize(
    ("value", "key", "stage", "said"),
    [
        (b"{", b"a", "decode", "JSON"),
        (b"{}", b"a", "validate", "modality"),
        (item("a"), None, "validate", "no key"),
        (item("a"), b"", "validate", "no key"),
        (None, None, "validate", "no key"),
        (item("a"), b"\xff", "decode", "not UTF-8"),
        (item("a"), b"k" * 257, "validate", "257 characters"),
        (item(" "), b"a", "validate", "empty"),
        (item("a" * 51), b"a", "validate", "51 characters"),
        (item(b"p" * 101), b"a", "validate", "101 bytes"),
        (item(b"p" * 5000), b"a", "validate", "at most 4000"),
        (b'{"modality": "image", "image": "?"}', b"a", "decode", "base64"),
        (b'{"modality": "vector", "vector": [1e300]}', b"a", "validate", "float32"),
        (b'{"modality": "vector", "vector": [true]}', b"a", "validate", "vector"),
        (b'{"modality": "sequence", "frames": []}', b"a", "validate", "modality"),
        (item("a", ["b"] * 65), b"a", "validate", "labels"),
        (item("a", [""]), b"a", "validate", "labels"),
        (item("a", [], "t" * 2001), b"a", "validate", "title"),
        (item("a", attributes={"x": True}), b"a", "validate", "attributes: 'x' is true"),
        (b'{"modality": "text", "text": "a", "attributes": [1]}', b"a", "validate", "attributes"),
        (b'{"modality": "text", "text": "a", "attributes": null}', b"a", "validate", "attributes"),
        (b'{"schema_version": 2, "modality": "text", "text": "a"}', b"a", "validate", "schema_version"),
    ],
)
def test_what_is_no_item_is_refused(value: bytes | None, key: bytes | None, stage: str, said: str) -> None:
    found = decoded(record(value, key), LIMITS)
    assert isinstance(found, Refusal) and found.stage == stage and said in found.reason, found
    json.dumps(found.reason)
