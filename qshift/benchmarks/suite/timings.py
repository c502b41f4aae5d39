"""Milliseconds per query of each method: beside the results, never among them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from qshift.benchmarks.suite.report import Report
from qshift.benchmarks.suite.results import ResultFiles
from qshift.benchmarks.suite.rows import FROZEN
from qshift.benchmarks.suite.work import Job
from qshift.terminal.sheet import Head, Sheet


def timings_of(report: Report, jobs: Sequence[Job], files: ResultFiles) -> list[dict[str, object]]:
    """Milliseconds per query, as measured when the result was made; beside the rows, never among them."""
    keys = {
        (job.stream.task, job.stream.name, method, job.seed): key
        for job in jobs
        for method, key in job.keys.items()
    }
    return [
        {
            "task": row.task,
            "stream": row.stream,
            "method": row.method,
            "seed": row.seed,
            "ms_per_query": files.milliseconds(keys[row.task, row.stream, row.method, row.seed]),
        }
        for row in report.rows
    ]


def time_table(timings: Sequence[Mapping[str, object]]) -> Sheet:
    """Mean milliseconds per query of every method, for the terminal alone: files are free of clocks.

    Args:
        timings: rows with `method` and `ms_per_query`; NaN where the time is not known.
    """
    by_method: dict[str, list[float]] = {}
    for row in timings:
        own, time = by_method.setdefault(str(row["method"]), []), row["ms_per_query"]
        if isinstance(time, float) and not math.isnan(time):
            own.append(time)
    means = {method: sum(own) / len(own) if own else math.nan for method, own in by_method.items()}
    sheet = Sheet(
        "milliseconds per query", [Head("method", left=True), Head("ms"), Head("× frozen")],
        caption="measured while other workers ran: compare within this run only",
    )  # fmt: skip
    for method, mean in means.items():
        ratio = mean / means[FROZEN] if means.get(FROZEN) else math.nan
        sheet.add(method, *("n/a" if math.isnan(v) else f"{v:.{d}f}" for v, d in ((mean, 2), (ratio, 1))))
    return sheet
