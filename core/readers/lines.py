"""Text and JSON lines: UTF-8 with or without a byte order mark, lines that end at a line feed alone.

`str.splitlines` and `bytes.splitlines` would end lines at other places, too: U+2028 and U+0085 are legal
inside a JSON string.
"""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.errors import ConfigError
from core.readers.places import broken, bytes_of, shown

WIDE = ((codecs.BOM_UTF32_LE, "UTF-32"), (codecs.BOM_UTF16_LE, "UTF-16"), (codecs.BOM_UTF16_BE, "UTF-16"))


DIGITS = 308
"""Of a whole number: as many as a float can stand for."""


class BadLine(ValueError):
    """What a line holds cannot be used; its text is one sentence."""


def content(path: Path) -> bytes:
    """A whole file, without its byte order mark. Raises ConfigError."""
    found = bytes_of(path)
    for mark, name in WIDE:
        if found.startswith(mark):
            raise ConfigError(f"{shown(path)} cannot be read: it is written in {name}, save it as UTF-8")
    return found.removeprefix(codecs.BOM_UTF8)


def text(path: Path) -> str:
    """A whole file as text. Raises ConfigError, with the line that is not UTF-8."""
    found = content(path)
    try:
        return found.decode()
    except UnicodeDecodeError as error:
        line = found.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{shown(path)}, line {line} cannot be read: not UTF-8, save it as UTF-8"
        ) from error


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line) of every line that is not blank. Raises ConfigError."""
    for number, line in enumerate(content(path).split(b"\n"), 1):
        if line.strip():
            yield number, line.removesuffix(b"\r")


def document(line: bytes | str) -> Any:
    """What JSON says, and nothing that is only nearly JSON. Raises BadLine."""
    try:
        return json.loads(
            line.decode() if isinstance(line, bytes) else line,
            parse_constant=_no_number, parse_float=_finite, parse_int=_whole, object_pairs_hook=_each_once,
        )  # fmt: skip
    except UnicodeDecodeError:
        raise BadLine("not JSON, nor UTF-8: save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise BadLine(f"not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise BadLine("not JSON: nested too deeply") from None


def word(value: Any) -> str:
    """A text that can be written. Raises BadLine for anything else."""
    if not isinstance(value, str) or broken(value):
        raise BadLine(f"expected a text, got {kind_of(value)}")
    return value


def name(value: Any) -> str:
    """An identifier, written as a text or as a whole number. Raises BadLine."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return word(value)


def listed(value: Any) -> list[Any]:
    """A list. Raises BadLine for anything else: a text or an object could be gone through, too."""
    if not isinstance(value, list):
        raise BadLine(f"expected a list, got {kind_of(value)}")
    return value


def kind_of(value: Any) -> str:
    """What JSON would call a value; not the value, which may be long or deep."""
    if isinstance(value, bool | None):
        return json.dumps(value)
    if isinstance(value, str):
        return "half of a surrogate pair" if broken(value) else "a text"
    if isinstance(value, int | float):
        return "a number"
    return "a list" if isinstance(value, list) else "an object"


def _no_number(name: str) -> Any:
    raise BadLine(f"not JSON: {name} is no finite number")


def _finite(digits: str) -> float:
    found = float(digits)
    if math.isinf(found):
        raise BadLine(f"not JSON: {digits:.40} is no finite number")
    return found


def _whole(digits: str) -> int:
    # Python refuses to read more than 4,300 digits, because that takes quadratic time.
    if len(digits) > DIGITS:
        raise BadLine(f"a number of {len(digits)} digits: at most {DIGITS} are read")
    return int(digits)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadLine(f"{twice!r} stands there twice")
    return found
