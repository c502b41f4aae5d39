"""What stands in the messages: pydantic models, where bytes come in only, and how clients write them.

Unknown fields are ignored, so that additions need no new version; types are strict. A change that an older
reader would misunderstand gets the next `schema_version`, and this reader refuses it.

    python -m stream.messages      writes stream/schemas again
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import quote

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from core.attributes import SCHEMA as ATTRIBUTES
from core.errors import Refused, first_fault
from core.filters import MOST_ITEMS
from core.filters import SCHEMA as FILTER
from core.records import Coordinates
from core.types import Floats
from stream.letters import short
from stream.states import canonical

Headers = list[tuple[str, bytes]]
SCHEMAS = Path(__file__).with_name("schemas")
NAME_CHARACTERS = 256
"""Longest query id, tenant, topic (Kafka: 249) or label."""
FRAMES = 32
"""Most pictures or vectors of one sequence."""
ITEM_LABELS, TITLE_CHARACTERS = 64, 2000
_LAST = 2**63 - 1
T = TypeVar("T")

Name = Annotated[str, Field(max_length=NAME_CHARACTERS)]
Offset = Annotated[int, Field(ge=0, le=_LAST)]
# Base64 although it takes a third more: two parts and their metadata stay one value under one schema.
Picture = Annotated[str, Field(min_length=1, json_schema_extra={"contentEncoding": "base64"})]
Label = Annotated[str, Field(min_length=1, max_length=NAME_CHARACTERS)]
Vector = Annotated[list[float], FailFast(), Field(min_length=1)]


class Message(BaseModel):
    """Root of every message."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, allow_inf_nan=False)

    # Not Literal[1]: that takes true and 1.0 for 1.
    schema_version: Annotated[int, Field(ge=1, le=1)] = 1


class QueryMessage(Message):
    """Root of every query: its name, and what it wants of its answer.

    A query that wants something says version 2: a reader of version 1 would answer as if it did not, so that
    it has to refuse. This one takes the fields of either.
    """

    schema_version: Annotated[int, Field(ge=1, le=2)] = 1
    query_id: Name = ""
    top: Annotated[int, Field(ge=1, le=MOST_ITEMS)] | None = None
    filter: Annotated[dict[str, Any] | None, WithJsonSchema({"anyOf": [FILTER, {"type": "null"}]})] = None
    threshold: Annotated[float, Field(ge=0, le=1)] | None = None


class TextQuery(QueryMessage):
    """A query in words."""

    modality: Literal["text"]
    text: str = Field(min_length=1)


class VectorQuery(QueryMessage):
    """A query that the client has encoded itself."""

    modality: Literal["vector"]
    # Fail fast: a megabyte of wrong elements must not become a million error objects.
    vector: Annotated[list[float], FailFast()] = Field(min_length=1)


class ReferenceQuery(QueryMessage):
    """A picture that lies in a folder the service may read."""

    modality: Literal["reference"]
    uri: str = Field(pattern="^file:", max_length=4096)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size: int = Field(ge=1, le=_LAST)


class ComposedQuery(QueryMessage):
    """A picture and words about it ("this one, in red"). The picture is a PNG, JPEG or WEBP file."""

    modality: Literal["composed"]
    image: Picture
    text: str = Field(min_length=1)


class SequenceQuery(QueryMessage):
    """A short clip: either pictures (PNG, JPEG or WEBP files) or vectors of one width, in order."""

    modality: Literal["sequence"]
    # Lists that may be empty and not None: FailFast cannot be part of a union.
    frames: Annotated[list[Picture], FailFast()] = Field([], max_length=FRAMES)
    vectors: Annotated[list[Vector], FailFast()] = Field([], max_length=FRAMES)

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if bool(self.frames) == bool(self.vectors):
            raise ValueError(f"expected 1 to {FRAMES} frames, or as many vectors, and not both")
        return self


class Place(BaseModel):
    """Coordinates of a query in the log."""

    model_config = Message.model_config

    topic: Annotated[str, Field(min_length=1, max_length=NAME_CHARACTERS)]
    partition: Annotated[int, Field(ge=0, le=2**31 - 1)]
    offset: Offset

    def coordinates(self) -> Coordinates:
        return Coordinates(self.topic, self.partition, self.offset)


class LabelMessage(Message):
    """The relevance class of an earlier query."""

    query: Place
    label: Label


class Item(Message):
    """What items of every kind may say of themselves."""

    labels: Annotated[list[Label], FailFast()] = Field([], max_length=ITEM_LABELS)
    title: Annotated[str, Field(max_length=TITLE_CHARACTERS)] = ""
    attributes: Annotated[dict[str, Any], WithJsonSchema(ATTRIBUTES)] = Field({})


class TextItem(Item):
    """A text for the gallery, under its name as the record's key. A null value takes an item out."""

    modality: Literal["text"]
    text: str = Field(min_length=1)


class VectorItem(Item):
    """A vector for the gallery, which its client has encoded itself; key and null value as of a text."""

    modality: Literal["vector"]
    vector: Vector


class ImageItem(Item):
    """A picture (a PNG, JPEG or WEBP file) for the gallery; key and null value as of a text."""

    modality: Literal["image"]
    image: Picture


AnyQuery = TextQuery | VectorQuery | ReferenceQuery | ComposedQuery | SequenceQuery
queries: TypeAdapter[AnyQuery] = TypeAdapter(Annotated[AnyQuery, Field(discriminator="modality")])
labels: TypeAdapter[LabelMessage] = TypeAdapter(LabelMessage)
AnyItem = TextItem | VectorItem | ImageItem
items: TypeAdapter[AnyItem] = TypeAdapter(Annotated[AnyItem, Field(discriminator="modality")])


def validated(model: TypeAdapter[T], value: bytes) -> T:
    """The message in these bytes. Raises Refused when it is not one."""
    try:
        return model.validate_json(value)
    except ValidationError as error:
        reason, kind = first_fault(error)
        raise Refused("decode" if kind == "json_invalid" else "validate", short(reason)) from None


# -- the producer's side --------------------------------------------------------------------------------


def text_query(text: str, query_id: str = "", tenant: str = "") -> tuple[bytes, Headers]:
    """(value, headers) of a query in words."""
    return _envelope({"modality": "text", "text": text}, query_id, tenant)


def vector_query(vector: Floats, query_id: str = "", tenant: str = "") -> tuple[bytes, Headers]:
    """(value, headers) of a query by its feature vector [D]; float32 survives the way there exactly."""
    values = [float(x) for x in np.asarray(vector, dtype=np.float32)]
    return _envelope({"modality": "vector", "vector": values}, query_id, tenant)


def image_query(
    picture: bytes, query_id: str = "", tenant: str = "", content_type: str = "image/png"
) -> tuple[bytes, Headers]:
    """(value, headers) of an inline picture; `content_type` is image/png, image/jpeg or image/webp."""
    named = [("x-query-id", query_id)] if query_id else []
    headers = [("content-type", content_type), *named, *([("x-tenant", tenant)] if tenant else [])]
    return picture, [(name, text.encode()) for name, text in headers]


def reference_query(
    path: Path | str, sha256: str, size: int, query_id: str = "", tenant: str = ""
) -> tuple[bytes, Headers]:
    """(value, headers) of a picture under the service's reference root.

    Args:
        path: absolute, or relative to the root.
        sha256: hexadecimal; with `size` (bytes) it pins the content, so that a replay sees the same.
    """
    document = {"modality": "reference", "uri": f"file:{quote(str(path))}", "sha256": sha256, "size": size}
    return _envelope(document, query_id, tenant)


def composed_query(picture: bytes, text: str, query_id: str = "", tenant: str = "") -> tuple[bytes, Headers]:
    """(value, headers) of a picture (PNG, JPEG or WEBP) with words about it."""
    return _envelope({"modality": "composed", "image": _base64(picture), "text": text}, query_id, tenant)


def sequence_query(
    frames: Sequence[bytes] | Floats, query_id: str = "", tenant: str = ""
) -> tuple[bytes, Headers]:
    """(value, headers) of a clip: 1 to 32 pictures (PNG, JPEG or WEBP), or vectors [n, D]."""
    if isinstance(frames, np.ndarray):
        rows = np.asarray(frames, dtype=np.float32)
        content: dict[str, object] = {"vectors": [[float(x) for x in row] for row in rows]}
    else:
        content = {"frames": [_base64(frame) for frame in frames]}
    return _envelope({"modality": "sequence", **content}, query_id, tenant)


def label(query: Coordinates, name: str) -> bytes:
    """A late label for the query at these coordinates."""
    return canonical({"schema_version": 1, "query": place(query), "label": name})


def item(
    content: str | bytes | Floats, labels: Sequence[str] = (), title: str = "",
    attributes: Mapping[str, Any] | None = None,
) -> bytes:  # fmt: skip
    """The value of a gallery item: a text, an encoded picture or a vector [D]; the key is its name."""
    if isinstance(content, str):
        document: dict[str, object] = {"modality": "text", "text": content}
    elif isinstance(content, bytes):
        document = {"modality": "image", "image": _base64(content)}
    else:
        values = [float(x) for x in np.asarray(content, dtype=np.float32)]
        document = {"modality": "vector", "vector": values}
    document |= {"attributes": dict(attributes)} if attributes else {}
    return canonical({"schema_version": 1, **document, "labels": list(labels), "title": title})


def _envelope(document: dict[str, object], query_id: str, tenant: str) -> tuple[bytes, Headers]:
    named = {"query_id": query_id} if query_id else {}
    headers = [("x-tenant", tenant.encode())] if tenant else []
    return canonical({"schema_version": 1, **document, **named}), headers


def _base64(picture: bytes) -> str:
    return base64.b64encode(picture).decode()


def place(at: Coordinates) -> dict[str, object]:
    """Coordinates as they stand in messages."""
    return {"topic": at.topic, "partition": at.partition, "offset": at.offset}


# -- schemas -------------------------------------------------------------------------------------------


def schemas() -> dict[str, str]:
    """File name -> JSON Schema of every message."""
    from stream.answer import AnswerMessage, FirstAnswerMessage  # they are made of what stands here
    from stream.command_messages import MODELS as COMMANDS

    models: dict[str, type[Message]] = {
        "query-text.v2": TextQuery,
        "query-vector.v2": VectorQuery,
        "query-reference.v2": ReferenceQuery,
        "query-composed.v2": ComposedQuery,
        "query-sequence.v2": SequenceQuery,
        "label.v1": LabelMessage,
        "item-text.v1": TextItem,
        "item-vector.v1": VectorItem,
        "item-image.v1": ImageItem,
        "answer.v1": FirstAnswerMessage,
        "answer.v2": AnswerMessage,
    }
    models |= COMMANDS
    return {
        f"{name}.json": json.dumps(model.model_json_schema(), indent=2, sort_keys=True) + "\n"
        for name, model in models.items()
    }


def write_schemas(folder: Path = SCHEMAS) -> None:
    """Writes every schema file."""
    folder.mkdir(exist_ok=True)
    for name, text in schemas().items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    write_schemas()
