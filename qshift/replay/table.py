"""The table per phase: printed by the demo and by replay, and written as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.text import Text

from qshift.terminal.points import gain_text, plain
from qshift.terminal.sheet import Head, Sheet, Value


@dataclass(frozen=True, slots=True)
class PhaseRow:
    """One phase; mAP, R@1 and differences in points (0-100), latency in milliseconds."""

    phase: str
    modality: str
    queries: int
    labels: int
    map_frozen: float
    map_adapted: float
    map_served: float
    diff: float
    diff_low: float
    diff_high: float
    r1_frozen: float
    r1_served: float
    p50_ms: float
    p95_ms: float
    qps: float


def as_json(rows: Sequence[PhaseRow]) -> list[dict[str, object]]:
    """Rows for `--json`, rounded to 3 digits; null for what cannot be known."""
    return [{key: _rounded(value) for key, value in asdict(row).items()} for row in rows]


def _rounded(value: object) -> object:
    if not isinstance(value, float):
        return value
    return None if math.isnan(value) else round(value, 3)


def render(rows: Sequence[PhaseRow], title: str, timing: bool = True) -> Sheet:
    """The table; the difference is green where its interval lies above zero, red below."""
    times = [Head("latency ms\np50, p95", 5), Head("queries\nper s", 3)] if timing else []
    sheet = Sheet(
        title,
        [
            Head("phase", left=True), Head("queries\nlabels", 2), Head("mAP:\nfrozen"), Head("\nadapted", 4),
            Head("\nserved"), Head("served - frozen\n[95 % interval]"), Head("R@1:\nfrozen\nserved", 1),
            *times,
        ],
    )  # fmt: skip
    for row in rows:
        colour = "green" if row.diff_low > 0 else "red" if row.diff_high < 0 else "default"
        cells: list[Value] = [
            row.phase, f"{row.queries} {row.labels}",
            *map(plain, (row.map_frozen, row.map_adapted, row.map_served)),
            Text(gain_text(row.diff, row.diff_low, row.diff_high), style=colour),
            f"{plain(row.r1_frozen)} {plain(row.r1_served)}",
        ]  # fmt: skip
        if timing:
            cells += [", ".join(plain(ms, 0) for ms in (row.p50_ms, row.p95_ms)), plain(row.qps)]
        sheet.add(*cells)
    return sheet
