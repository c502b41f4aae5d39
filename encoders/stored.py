"""Features of a large set on disk, written as they come: an interrupted run goes on where it was.

Two files beside each other: the rows, and a line of JSON for each chunk of contents that is done, with the
sha256 of what it was made of. A later run reads and hashes the contents again, which costs little beside
encoding them, and encodes from the first chunk on that has changed. Nothing is held in memory but a chunk.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from core.errors import Refused
from core.protocols import Encoder
from core.types import Floats

CHUNK = 256
"""Contents of which an interruption loses the work at most."""
BATCH = 64

Contents = Iterable[Callable[[], Any]]
"""Each gives the bytes of a picture, or a text, when it is called; it may refuse."""


@dataclass(slots=True)
class Stored:
    """What has been encoded: `features` [n, D] float32 in a file, of the contents `items` [n]."""

    features: Floats
    items: NDArray[np.int64]
    left: list[tuple[int, str]] = field(default_factory=list)
    """(item, reason) of what was refused."""

    def __len__(self) -> int:
        return len(self.items)


@dataclass(slots=True)
class _Chunk:
    """One line beside the rows."""

    sha: str
    count: int
    left: list[tuple[int, str]]

    @property
    def rows(self) -> int:
        return self.count - len(self.left)


def stored(
    contents: Contents, encoder: Encoder, path: Path, fingerprint: str, done: Callable[[int], None]
) -> Stored:
    """Unit features by the frozen encoder, of every content that it takes.

    Args:
        contents: of pictures or texts, in order, read one at a time.
        encoder: gives [n, D] of them.
        path: where rows go; the lines beside it are called `.jsonl`.
        fingerprint: of the encoder: rows of another one are not taken up.
        done: called with how many contents a chunk had, as each is done.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lines, known = path.with_suffix(".jsonl"), list[_Chunk]()
    before = _chunks(lines, fingerprint)
    waiting, start, fresh = iter(contents), 0, False
    with path.open("r+b" if path.exists() else "w+b") as rows:
        while chunk := list(islice(waiting, CHUNK)):
            read = [_read(content) for content in chunk]
            sha = _sha(read)
            found = None if fresh else next(before, None)
            if found is None or found.sha != sha or not _holds(rows, known, found, encoder.width):
                found = _encoded(read, encoder, rows, start, sha, _count(known))
                _log(lines, known, found, fingerprint, fresh)
                fresh = True
            known.append(found)
            start += len(chunk)
            done(len(chunk))
        _cut(rows, lines, known, encoder.width, fingerprint)
    left = [one for chunk in known for one in chunk.left]
    items = np.delete(np.arange(start, dtype=np.int64), [item for item, _ in left])
    return Stored(_mapped(path, len(items), encoder.width), items, left)


def _read(content: Callable[[], Any]) -> Any:
    """A content, or why there is none."""
    try:
        return content()
    except Refused as refused:
        return refused


def _sha(read: list[Any]) -> str:
    sha = hashlib.sha256()
    for content in read:
        text = content.reason if isinstance(content, Refused) else content
        plain = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else bytes(text)
        sha.update(f"{type(content).__name__}|{len(plain)}|".encode() + plain)
    return sha.hexdigest()


def _encoded(read: list[Any], encoder: Encoder, rows: BinaryIO, start: int, sha: str, place: int) -> _Chunk:
    """Rows of a chunk go behind those that are there."""
    found, prepared = _Chunk(sha, len(read), []), []
    for number, content in enumerate(read, start):
        try:
            if isinstance(content, Refused):
                raise content
            prepared.append(encoder.prepare(content))
        except Refused as refused:
            found.left.append((number, refused.reason))
    rows.seek(place * encoder.width * 4)
    rows.truncate()
    for first in range(0, len(prepared), BATCH):
        batch = prepared[first : first + BATCH]
        features = encoder.encode(encoder.collate(batch, len(batch))).cpu().numpy()
        rows.write(np.ascontiguousarray(features, np.float32).tobytes())
    rows.flush()
    return found


def _chunks(lines: Path, fingerprint: str) -> Iterator[_Chunk]:
    """Of an earlier run; what cannot be read ends them."""
    try:
        written = lines.read_text().splitlines()
        if not written or json.loads(written[0]) != {"encoder": fingerprint}:
            return
        for line in written[1:]:
            value = json.loads(line)
            yield _Chunk(value["sha"], value["count"], [(one, why) for one, why in value["left"]])
    except (OSError, ValueError, KeyError, TypeError):
        return


def _log(lines: Path, known: list[_Chunk], chunk: _Chunk, fingerprint: str, fresh: bool) -> None:
    """A line behind those that hold; the first new one drops what an earlier run had behind them."""
    if not fresh:
        text = [json.dumps({"encoder": fingerprint}), *map(_line, known)]
        lines.write_text("".join(f"{one}\n" for one in text))
    with lines.open("a") as file:
        file.write(f"{_line(chunk)}\n")


def _line(chunk: _Chunk) -> str:
    return json.dumps({"sha": chunk.sha, "count": chunk.count, "left": chunk.left})


def _cut(rows: BinaryIO, lines: Path, known: list[_Chunk], width: int, fingerprint: str) -> None:
    """Nothing behind the last chunk: fewer contents than an earlier run had."""
    end = _count(known) * width * 4
    if rows.seek(0, 2) > end:
        rows.truncate(end)
        text = [json.dumps({"encoder": fingerprint}), *map(_line, known)]
        lines.write_text("".join(f"{one}\n" for one in text))


def _holds(rows: BinaryIO, known: list[_Chunk], chunk: _Chunk, width: int) -> bool:
    """Whether the rows of a chunk are all in the file."""
    return rows.seek(0, 2) >= (_count(known) + chunk.rows) * width * 4


def _count(known: list[_Chunk]) -> int:
    return sum(chunk.rows for chunk in known)


def _mapped(path: Path, count: int, width: int) -> Floats:
    """Copied on write: torch takes no memory that may not be written."""
    if not count:
        return np.empty((0, width), np.float32)
    found: Floats = np.memmap(path, np.float32, "c", shape=(count, width))
    return found
