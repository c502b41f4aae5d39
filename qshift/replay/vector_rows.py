"""Queries of a .npy, .npz or .parquet file, a row each, as the lines of a JSONL file would say them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from heapq import merge
from operator import itemgetter
from pathlib import Path
from typing import Any

from core.readers.lines import BadLine
from core.readers.vectors import read_vectors

log = logging.getLogger("qshift.vectors")


def vector_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | BadLine]]:
    """(row from 0, query) of a file; a row that has no direction comes as the reason. Raises ConfigError."""
    file = read_vectors(path)
    for note in file.lengths():
        log.warning("%s", note)
    ids, labels = (file.columns.get(name, ("",) * file.count) for name in ("ids", "labels"))
    good = (
        (row, {"vector": vector, "id": ids[row] or None, "label": labels[row] or None})
        for rows, vectors in file.blocks()
        for row, vector in zip(rows.tolist(), vectors)
    )
    bad = ((row, BadLine(f"the vector holds {why}")) for row, why in file.left_out.items())
    return merge(good, bad, key=itemgetter(0))
