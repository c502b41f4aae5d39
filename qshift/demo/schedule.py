"""`qshift replay demo`: one schedule, several methods, one table each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from core.config import Config
from qshift.demo.catalogue import prepare_catalogue
from qshift.methods import with_method
from qshift.replay.journal import read_journal
from qshift.replay.offline import Replayed, replay
from qshift.replay.schedule import Phase, demo_phases
from qshift.replay.table import as_json, render
from qshift.terminal.bars import bars, reporter
from qshift.terminal.counts import counted

USUAL = ("frozen", "rest+fused", "aligned+fused", "default")


def tables(
    methods: Sequence[str],
    order: str,
    data: Path | None,
    config: Config,
    queries: int,
    seed: int,
    journal: Path | None,
    json_file: Path | None,
    cache: Path,
    console: Console,
) -> int:
    """Replays and prints; returns the exit status.

    Raises:
        ConfigError: the journal is none.
    """
    methods = list(methods or USUAL)
    boundaries = read_journal(journal) if journal else []  # a wrong file costs no fit
    with bars(console) as progress:
        catalogue = prepare_catalogue(data, cache, reporter(progress))
    phases = {"demo": demo_phases, "sorted": sorted_phases, "training": training_phases}[order](queries)
    schedule = catalogue.schedule(queries, seed, phases)
    document = config.model_dump()
    document |= {"base": catalogue.base, "gallery": catalogue.gallery_folder, "seed": seed}
    found: dict[str, object] = {}
    for name in methods:
        own = with_method(Config.model_validate(document), name)
        result = replay(own, schedule, boundaries, console, name)
        render(result.rows, name, timing=False).print(console)
        console.print(_below(result), style="dim")
        found[name] = {
            "phases": as_json(result.rows),
            "answers_sha256": result.answers_sha256,
            "state_sha256": result.state_sha256,
        }
    if json_file:
        json_file.write_text(json.dumps(found, indent=1))
    return 0


def _below(result: Replayed) -> str:
    """Both hashes; how many batches were learned from, and why others were not, the most frequent first."""
    reasons = sorted(result.refused.items(), key=lambda one: -one[1])
    why = "".join(f"; {count} {reason}" for reason, count in reasons if reason)
    batches = counted(result.report.batches, "batch", "batches")
    return (
        f"answers {result.answers_sha256[:16]}  state {result.state_sha256[:16]}  {result.seconds:.0f} s\n"
        f"learned from {result.learned} of {batches}{why}"
    )


def sorted_phases(queries: int) -> tuple[Phase, ...]:
    """Clean queries that arrive sorted by group: statistics of a batch then confuse content with shift."""
    return (Phase("clean sorted by group", "image", ("clean",), queries, "sorted"),)


def training_phases(queries: int) -> tuple[Phase, ...]:
    """For choosing step size and temperature: shifts that no reported stream contains."""
    return tuple(
        Phase(f"training {shift}", "image", (shift,), queries)
        for shift in ("blur", "brightness", "impulse", "pixelate", "clean")
    )
