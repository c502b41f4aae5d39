"""`qshift labels`: the labels of a file, to a running service."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError
from rich.console import Console

from core.config_file import load_connected
from core.errors import ConfigError
from core.readers.lines import BadLine, document, lines
from core.readers.places import broken, shown
from core.records import Coordinates
from qshift.terminal.counts import counted
from stream import codec
from stream.client import QueryClient
from stream.messages import LabelMessage

LABEL_LINE = 'a line is {"offset": 7, "label": "cat"}, with "topic" and "partition" where they differ'
LABEL_FIELDS = ("offset", "label", "topic", "partition")


def send_labels(file: Path, config_file: Path | None, console: Console) -> int:
    """Sends the labels of a JSONL file.

    Raises:
        ConfigError: no Kafka named, or a line that cannot be used, by its number.
    """
    config = load_connected(config_file)
    parsed = read_labels(file, config.kafka.queries)
    client = QueryClient(config.kafka.bootstrap_servers, config.kafka)
    try:
        for at, label in parsed:
            client.label(codec.label(at, label), str(at).encode())
        client.flush()
    finally:
        client.close()
    console.print(f"{counted(len(parsed), 'label')} sent")
    return 0


def read_labels(file: Path, topic: str) -> list[tuple[Coordinates, str]]:
    """The labels of a JSONL file, each as the service takes it. Raises ConfigError, with the line."""
    found = []
    for number, line in lines(file):
        try:
            found.append(_label(line, topic))
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False, include_context=False)[0]
            where = str(first["loc"][-1]) if first["loc"] else "it"
            raise ConfigError(
                f"{shown(file)}, line {number}: {where}: {first['msg']}; {LABEL_LINE}"
            ) from error
        except BadLine as error:
            raise ConfigError(f"{shown(file)}, line {number}: {error}; {LABEL_LINE}") from error
    if not found:
        raise ConfigError(f"{shown(file)} holds no label; {LABEL_LINE}")
    return found


def _label(line: bytes, topic: str) -> tuple[Coordinates, str]:
    entry = document(line)
    if not isinstance(entry, dict):
        raise BadLine("it is no object")
    if strange := [name for name in entry if name not in LABEL_FIELDS]:
        raise BadLine(f"the field {shown(strange[0])} is not known")
    place = {"topic": entry.get("topic", topic), "partition": entry.get("partition", 0)}
    place["offset"] = entry.get("offset")
    if any(isinstance(word, str) and broken(word) for word in entry.values()):
        raise BadLine("it holds half of a surrogate pair: write valid Unicode")
    message = LabelMessage.model_validate({"query": place, "label": entry.get("label")})
    return message.query.coordinates(), message.label
