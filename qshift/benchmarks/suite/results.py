"""What one method did on one stream with one seed: the unit that is cached, and never computed twice."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from core.errors import ArtifactError
from qshift.benchmarks.streams import Stream

RESULTS = 2
"""Raise it when what a result means, or how it is measured, changes: older files are then not used."""


@dataclass(frozen=True, slots=True)
class Result:
    """Per judged query, in the order of the stream: AP and R@1, 5, 10 (0-1) of three answers.

    `offsets` are the places of the judged queries in the stream, `segments` index `segment_names`, per
    judged query. `batch_*` are per batch, in order. `forwards` and `backwards` are passes per query.
    `adapts` is False where method and base have nothing that could change an answer to such queries.
    """

    task: str
    stream: str
    method: str
    seed: int
    segment_names: tuple[str, ...]
    offsets: tuple[int, ...]
    segments: tuple[int, ...]
    frozen: tuple[tuple[float, ...], ...]
    adapted: tuple[tuple[float, ...], ...]
    served: tuple[tuple[float, ...], ...]
    batch_queries: tuple[int, ...]
    batch_forwards: tuple[int, ...]
    batch_backwards: tuple[int, ...]
    batch_updated: tuple[bool, ...]
    batch_resets: tuple[int, ...]
    adapts: bool = True

    @property
    def forwards(self) -> float:
        return _per_query(self.batch_forwards, self.batch_queries)

    @property
    def backwards(self) -> float:
        return _per_query(self.batch_backwards, self.batch_queries)


def _per_query(passes: Sequence[int], sizes: Sequence[int]) -> float:
    """A pass of a batch is one pass of each of its queries."""
    return sum(p * n for p, n in zip(passes, sizes)) / max(1, sum(sizes))


@dataclass(frozen=True, slots=True)
class Identity:
    """Everything that decides a result.

    Args:
        data: hash of the queries' pools.
        config: of the method, `Config.decision_hash`; its seed is the stream's.
        code: of the method and of the path, `fingerprint`.
    """

    stream: Stream
    seed: int
    data: str
    base: str
    gallery: str
    config: str
    code: str

    def key(self) -> str:
        document = json.dumps({"results": RESULTS, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(document.encode()).hexdigest()[:32]


class ResultFiles:
    """`<key>.json` holds a result, `<key>.ms.json` its time: milliseconds per query, never part of a table.

    Args:
        folder: created when something is saved.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, key: str) -> Result | None:
        """A result; None when there is none, or only a part of one."""
        try:
            found: dict[str, Any] = json.loads(self._path(key).read_text())
        except (OSError, ValueError):
            return None
        if set(found) != set(Result.__dataclass_fields__):
            return None
        return Result(**{name: _tuples(value) for name, value in found.items()})

    def milliseconds(self, key: str) -> float:
        """Per query; NaN where it is not known."""
        try:
            return float(json.loads(self._path(key, ".ms").read_text()))
        except (OSError, ValueError):
            return float("nan")

    def save(self, key: str, result: Result, milliseconds: float) -> None:
        """Written beside its place and renamed: an interruption leaves no half of it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        write_whole(self._path(key, ".ms"), json.dumps(round(milliseconds, 4)))
        write_whole(self._path(key), json.dumps(asdict(result)))

    def holds(self, key: str) -> bool:
        return self._path(key).exists()

    def drop(self, key: str) -> None:
        """Forgets a damaged result."""
        self._path(key).unlink(missing_ok=True)

    def _path(self, key: str, kind: str = "") -> Path:
        return self._folder / f"{key}{kind}.json"


def write_whole(path: Path, text: str) -> None:
    """Written beside its place and renamed. Raises ArtifactError."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text)
        draft.replace(path)
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {error.strerror}; make room or name --cache") from error


def _tuples(value: Any) -> Any:
    return tuple(_tuples(one) for one in value) if isinstance(value, list) else value


def rounded(scores: Mapping[int, tuple[float, ...]], offsets: Sequence[int]) -> tuple[tuple[float, ...], ...]:
    """Scores by offset -> rows in order; nine digits are far below what a table shows."""
    return tuple(tuple(round(value, 9) for value in scores[offset]) for offset in offsets)
