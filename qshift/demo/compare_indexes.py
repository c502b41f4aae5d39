"""`qshift gallery compare`: what each kind of index finds in a gallery, and how long it takes."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from core.errors import GalleryError
from core.readers.places import shown
from core.types import Codes, Distances
from encoders.base_model import load_base
from index.approximate import EFFORT, FEWEST, KINDS, recall
from index.gallery import VersionedGallery
from qshift.terminal.sheet import Head, Sheet

PLACES = (10, 100)
"""Of which recall is told: the share of them with an item as near as the exact search has there."""


def compare(folder: Path, base: Path, effort: int | None, console: Console) -> None:
    """Asks a gallery the clean queries of its base by each kind of index, and prints recall and time.

    Raises:
        GalleryError: fewer items than an index looks at anyway.
    """
    model = load_base(base)
    flat = VersionedGallery.load(folder, base_version=model.version, threads=1)
    if len(flat) < FEWEST:
        raise GalleryError(
            f"{shown(folder)} holds {len(flat):,} items: below {FEWEST:,} all are looked at anyway"
        )
    kind, reference = sorted(model.reference.items())[0]
    queries = model.head.codes(torch.from_numpy(np.array(reference.features)), kind)
    sheet = Sheet(
        f"{len(flat):,} items, {len(queries)} clean {kind} queries",
        [Head("index", left=True), Head("effort"), Head("recall@10"), Head("recall@100"), Head("ms a query")],
    )
    exact, took = _searched(flat, queries)
    sheet.add("flat", "", "1.000", "1.000", f"{took:.3f}")
    with console.status("building") as status:
        for name in KINDS:
            status.update(f"building {name}")
            other = VersionedGallery.load(folder, threads=1, kind=name, effort=effort)
            found, took = _searched(other, queries)
            shares = [f"{recall(found, exact, k):.3f}" for k in PLACES]
            sheet.add(name, str(effort or EFFORT[name]), *shares, f"{took:.3f}")
    sheet.print(console)


def _searched(gallery: VersionedGallery, queries: Codes) -> tuple[Distances, float]:
    """Distances of the nearest, and CPU milliseconds a query."""
    began = time.process_time()
    found = gallery.search(queries, PLACES[-1]).distances
    return found, 1e3 * (time.process_time() - began) / len(queries)
