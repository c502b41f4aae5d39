"""Sentence-level shifts of text, which take models to make: read from a file that someone else made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from core.errors import ConfigError
from core.readers.lines import BadLine, document, lines
from core.readers.places import broken

FORM = '{"key": "sample-7", "text": "Seven cats are sitting there."}'


def load_rewrites(path: Path) -> Mapping[str, str]:
    """Texts by key of the sample they replace, from a JSONL file of {"key", "text"}.

    Other fields are ignored and empty lines skipped.

    Raises:
        ConfigError: no such file, not UTF-8, or a line that is no such object, has an empty text or repeats
            a key; names the line.
    """
    try:
        numbered = list(lines(path))
    except ConfigError as error:
        raise ConfigError(f"rewrites: {error}; expected JSONL in UTF-8") from error
    found: dict[str, str] = {}
    for number, line in numbered:
        key, text = _parsed(line, f"{path}:{number}")
        if key in found:
            raise ConfigError(f"{path}:{number}: key {key!r} was given before: keep one line per sample")
        found[key] = text
    if not found:
        raise ConfigError(f"rewrites {path} hold no line: expected lines like {FORM}")
    return MappingProxyType(found)


def rewritten(rewrites: Mapping[str, str], key: str) -> str:
    """The text that replaces a sample's.

    Raises:
        ConfigError: the file had no line for this sample.
    """
    if key not in rewrites:
        raise ConfigError(
            f"no rewrite for sample {key!r} among {len(rewrites)}: add its line, or leave the sample out"
        )
    return rewrites[key]


def _parsed(line: bytes, where: str) -> tuple[str, str]:
    try:
        row = document(line)
    except BadLine as error:
        raise ConfigError(f"{where}: {error}: expected a line like {FORM}") from error
    if not isinstance(row, dict):
        raise ConfigError(f"{where}: expected an object like {FORM}, got {type(row).__name__}")
    key, text = row.get("key"), row.get("text")
    if not isinstance(key, str) or not isinstance(text, str) or not key or not text.strip() or broken(text):
        raise ConfigError(f"{where}: key and text must be strings that are not empty: write it like {FORM}")
    return key, text
