"""Finished cells on disk: an evaluation that was interrupted goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qshift.benchmarks.hashing.run import Cell, Done, Score
from qshift.benchmarks.suite.fingerprint import Fingerprints
from qshift.benchmarks.suite.results import write_whole

CODE = ("qshift.benchmarks.hashing.run",)
"""What results depend on, with all that it imports: every method, too."""


class Cells:
    """One JSON file per cell, named by everything that decides it.

    Args:
        folder: created when something is saved.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._code = folder, Fingerprints().of(CODE, ())

    def key(self, cell: Cell, data_hash: str) -> str:
        document = json.dumps({**asdict(cell), "data": data_hash, "code": self._code}, sort_keys=True)
        return hashlib.sha256(document.encode()).hexdigest()[:32]

    def load(self, key: str) -> Done | None:
        """None where there is nothing, or only a part of it."""
        try:
            found: dict[str, Any] = json.loads((self._folder / f"{key}.json").read_text())
            return Done(tuple(_score(one) for one in found["scores"]), found["seconds"], found["gauges"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def save(self, key: str, done: Done) -> None:
        """Written beside its place and renamed."""
        self._folder.mkdir(parents=True, exist_ok=True)
        write_whole(self._folder / f"{key}.json", json.dumps(asdict(done)))


def _score(one: Mapping[str, Any]) -> Score:
    curve = tuple((float(recall), float(precision)) for recall, precision in one["curve"])
    return Score(
        **{**one, "precision": tuple(one["precision"]), "recall": tuple(one["recall"]), "curve": curve}
    )
