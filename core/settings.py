"""What a setting may hold: addresses, topics, names, paths, spans; and what every section refuses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    StringConstraints,
    ValidationInfo,
    field_validator,
)

ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")


def addresses(text: str) -> str:
    """host:port[,host:port], as Kafka's clients take it; raises ValueError for anything else."""
    for part in text.split(",") if text else ():
        found = ADDRESS.fullmatch(part.strip())
        if found is None or not 0 < int(found[2]) < 65536:
            raise ValueError(
                f"{part!r} is no address of Kafka: expected host:port, several parted by commas, such as "
                "127.0.0.1:9092; nothing before the host or behind the port"
            )
    return ",".join(part.strip() for part in text.split(","))


def topic(name: str) -> str:
    """A name that Kafka takes for a topic; raises ValueError for any other."""
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,249}", name) or name in (".", ".."):
        raise ValueError(f"{name!r} is no topic: Kafka takes 1 to 249 letters a-z, digits, dots, _ and -")
    return name


def ascending(pair: tuple[float, float]) -> tuple[float, float]:
    """Where something begins, and where it is full."""
    if not pair[0] < pair[1]:
        raise ValueError(f"expected two ascending numbers, got {pair[0]} and {pair[1]}")
    return pair


def counted(numbers: tuple[int, ...]) -> tuple[int, ...]:
    """Numbers of layers, counted from 0, each once and in order."""
    if not numbers or numbers[0] < 0 or list(numbers) != sorted(set(numbers)):
        raise ValueError(f"expected ascending numbers of layers from 0 on, got {list(numbers)}")
    return numbers


def named(path: object) -> object:
    """Refuses "", which would be the working directory."""
    if path == "":
        raise ValueError("expected a path, got an empty text")
    return path


Name = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]*[^\s\x00-\x1f\x7f][^\x00-\x1f\x7f]*$")]
Location = Annotated[Path, BeforeValidator(named)]
Topic = Annotated[str, AfterValidator(topic)]
Layers = Annotated[tuple[int, ...], AfterValidator(counted)]
Span = Annotated[tuple[float, float], AfterValidator(ascending)]


class Section(BaseModel):
    """A frozen part of the tree; nan and inf are no numbers here."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth(cls, value: object, info: ValidationInfo) -> object:
        """True is no number: in TOML it is a word of its own."""
        kind = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and kind in (int, float, float | None):
            raise ValueError(f"expected a number, got {str(value).lower()}")
        return value
