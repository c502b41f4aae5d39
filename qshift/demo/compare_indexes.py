"""What a kind of index finds in a gallery, and how long it takes: `gallery compare`, `build --index`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from rich.console import Console

from core.config import SERVED, IndexKind
from core.errors import ConfigError, GalleryError
from core.readers.places import shown
from core.types import Codes, Distances
from encoders.base_model import Base, load_base
from index.approximate import EFFORT, FEWEST, KINDS, recall
from index.folder import changing, note
from index.gallery import VersionedGallery
from qshift.terminal.sheet import Head, Sheet

PLACES = (10, 100)
"""Of which recall is told: the share of them with an item as near as the exact search has there."""


def compare(folder: Path, base: Path, effort: int | None, console: Console) -> None:
    """Asks a gallery the clean queries of its base by each kind of index, and prints recall and time.

    The folder is read once: kinds share all but the index.

    Raises:
        GalleryError: fewer items than an index looks at anyway.
    """
    model = load_base(base)
    flat = VersionedGallery.load(folder, base_version=model.version, threads=1)
    if len(flat) < FEWEST:
        raise GalleryError(
            f"{shown(folder)} holds {len(flat):,} items: below {FEWEST:,} all are looked at anyway"
        )
    asked, queries = _clean(model)
    sheet = Sheet(
        f"{len(flat):,} items, {len(queries)} clean {asked} queries",
        [Head("index", left=True), Head("effort"), Head("recall@10"), Head("recall@100"), Head("ms a query")],
    )
    exact, took = _searched(flat, queries)
    sheet.add("flat", "", "1.000", "1.000", f"{took:.3f}")
    with console.status("building") as status:
        for name in KINDS:
            status.update(f"building {name}")
            found, took = _searched(flat.by(name, effort, threads=1), queries)
            shares = [f"{recall(found, exact, k):.3f}" for k in PLACES]
            sheet.add(name, str(effort or EFFORT[name]), *shares, f"{took:.3f}")
    sheet.print(console)


def checked_kind(kind: str) -> IndexKind:
    """A kind that can be measured here. Raises ConfigError for any other."""
    ours = [name for name in get_args(IndexKind) if name not in SERVED]
    for name in ours:
        if kind == name:
            return name  # type: ignore[no-any-return]
    served = ": a server searches that, and answer.index sets it" if kind in SERVED else ""
    raise ConfigError(f"no index {shown(kind)} to measure{served}; expected one of {', '.join(ours)}")


def measure(folder: Path, base: Path, kind: IndexKind, effort: int | None, console: Console) -> None:
    """Notes in a gallery's manifest what a kind of index finds of what all items hold, and says it.

    Args:
        folder: of a gallery that was built with the base.
        base: whose clean queries are asked.
        kind, effort: of index.
    """
    model = load_base(base)
    with changing(folder, wait=True):
        flat = VersionedGallery.load(folder, base_version=model.version, threads=1)
        asked, queries = _clean(model)
        began = time.process_time()
        other = flat.by(kind, effort, threads=1)
        seconds = time.process_time() - began
        k = min(PLACES[0], len(flat))
        share = recall(other.search(queries, k).distances, flat.search(queries, k).distances, k)
        found = {
            "index": kind, "effort": None if kind == "flat" else effort or EFFORT[kind],
            "recall_at_10": round(share, 4), "queries": len(queries), "asked": asked,
            "build_seconds": round(seconds, 1),
        }  # fmt: skip
        note(folder, flat.version, found)
    console.print(told(found), highlight=False, markup=False, soft_wrap=True)


def told(found: Mapping[str, Any]) -> str:
    """A line of what `measure` noted."""
    effort = "" if found["effort"] is None else f", effort {found['effort']}"
    return (
        f"index {found['index']}{effort}: recall@10 {found['recall_at_10']:.3f} of the exact search, by "
        f"{found['queries']} clean {found['asked']} queries; built in {found['build_seconds']:.1f} s"
    )


def _clean(model: Base) -> tuple[str, Codes]:
    """Clean queries of a base, and what kind they are."""
    asked, reference = sorted(model.reference.items())[0]
    return asked, model.head.codes(torch.from_numpy(np.array(reference.features)), asked)


def _searched(gallery: VersionedGallery, queries: Codes) -> tuple[Distances, float]:
    """Distances of the nearest, and CPU milliseconds a query."""
    began = time.process_time()
    found = gallery.search(queries, PLACES[-1]).distances
    return found, 1e3 * (time.process_time() - began) / len(queries)
