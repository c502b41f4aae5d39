"""Finished cells on disk: an evaluation that was interrupted goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from app.evaluate.methods import Method
from app.evaluate.run import Cell, Done, Score
from app.suite.fingerprint import Fingerprints

PATH = ("app.evaluate.run", "app.evaluate.methods", "monitoring.hashing", "benchmarks.hashing.splits")
"""Modules through which every result passes."""


class Cells:
    """One JSON file per cell, named by everything that decides it.

    Args:
        folder: created when something is saved.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._prints = folder, Fingerprints()

    def key(self, cell: Cell, method: Method, data_hash: str) -> str:
        code = self._prints.of(method.modules, PATH)
        document = json.dumps({**asdict(cell), "data": data_hash, "code": code}, sort_keys=True)
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
        path = self._folder / f"{key}.json"
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        draft.write_text(json.dumps(asdict(done)))
        draft.replace(path)


def _score(one: Mapping[str, Any]) -> Score:
    curve = tuple((float(recall), float(precision)) for recall, precision in one["curve"])
    return Score(
        **{**one, "precision": tuple(one["precision"]), "recall": tuple(one["recall"]), "curve": curve}
    )
