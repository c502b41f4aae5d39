"""`qshift bench`: choose tasks, streams and methods; run what is not cached; print and write."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from core.config import Config
from core.errors import ConfigError
from qshift.benchmarks.streams import Look, Stream, check_corruption
from qshift.benchmarks.suite.processes import Settings, usual_workers, work
from qshift.benchmarks.suite.report import Report, report_of
from qshift.benchmarks.suite.report_html import page
from qshift.benchmarks.suite.report_text import markdown, terminal
from qshift.benchmarks.suite.results import Result, ResultFiles
from qshift.benchmarks.suite.rows import FROZEN, as_json
from qshift.benchmarks.suite.tasks import DEVELOP, TASKS
from qshift.benchmarks.suite.work import (
    Facts,
    Job,
    KnownTasks,
    Missing,
    Order,
    RunOrder,
    Tasks,
    grouped,
    jobs_of,
)
from qshift.benchmarks.suites import SUITES, Plan, Suite
from qshift.methods import METHODS, SUITE_METHODS
from qshift.methods import known as known_method
from qshift.shifts.corruptions import IMAGE_CORRUPTIONS
from qshift.shifts.wording import TEXT_CORRUPTIONS
from qshift.terminal.sheet import Head, Sheet

Value = TypeVar("Value")
AD_HOC_BATCHES = 4


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for on the command line. Empty: the usual. `tasks` and `streams` may hold wildcards."""

    suite: str
    quick: bool = False
    methods: tuple[str, ...] = ()
    seeds: int | None = None
    tasks: tuple[str, ...] = ()
    streams: tuple[str, ...] = ()
    data: Path | None = None
    cache: Path = Path("qshift-data/suite")
    workers: int | None = None
    json_file: Path | None = None
    markdown_file: Path | None = None
    html_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Known:
    """All tasks by name, those kept for choosing settings, where they come from, and the suites."""

    names: Collection[str]
    develop: Collection[str]
    source: Tasks
    suites: Mapping[str, Suite]


@dataclass(slots=True)
class _Found:
    """What the workers have told so far."""

    facts: int = 0
    missing: list[Missing] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)


def run_suite(options: Options, config: Config, console: Console, known: Known | None = None) -> Report:
    """Runs a suite and writes its report.

    Args:
        options: from the command line.
        config: that methods are changes of.
        console: for progress and tables.
        known: the benchmark's own tasks by default.

    Raises:
        ConfigError: an unknown suite, method, task, stream, corruption or severity; no data at all.
        QshiftError: a job cannot be done; what was finished before is kept.
    """
    known = known or Known(tuple(TASKS), DEVELOP, KnownTasks(options.data, options.cache), SUITES)
    suite = one_of("suite", options.suite, known.suites)
    methods = methods_of(options.methods)
    names = _tasks(suite, options, known)
    for pattern in options.streams:
        corruption, _, severity = pattern.rpartition("-")
        if corruption in (*IMAGE_CORRUPTIONS, *TEXT_CORRUPTIONS) and severity.isdigit():
            check_corruption(corruption, int(severity), f"--streams {pattern}")
    count = options.seeds or (suite.quick_seeds if options.quick else suite.seeds)
    seeds = range(suite.first_seed, suite.first_seed + count)
    files = ResultFiles(options.cache / "results")
    settings = Settings(known.source, config, methods, options.cache / "results")
    found = _run(options, suite, methods, names, seeds, files, settings, console)
    if not found.jobs:
        reasons = "; ".join(f"{missing.name}: {missing.reason}" for missing in found.missing)
        raise ConfigError(f"suite {suite.name!r} has nothing to run: {reasons or 'no stream is left'}")
    title = f"qshift bench {suite.name}{' --quick' if options.quick else ''}"
    found.missing.sort(key=lambda missing: names.index(missing.name))  # not in the order of their finding
    report = report_of(title, _results(found.jobs, names, files), found.missing)
    console.print(terminal(report, console.width), crop=False)
    for missing in found.missing:
        console.print(f"left out: {missing.name}: {missing.reason}", highlight=False)
    timings = _timings(report, found.jobs, files)
    time_table(timings).print(console)
    _write(options, report, timings)
    return report


def methods_of(named: Sequence[str]) -> tuple[str, ...]:
    """Methods to run; frozen is always the first. Raises ConfigError for an unknown one."""
    for name in named:
        if not known_method(name):  # a name may carry extras, as in "rest+fused"
            one_of("method", name, METHODS)
    return tuple(dict.fromkeys((FROZEN, *(named or SUITE_METHODS))))


def one_of(what: str, name: str, known: Mapping[str, Value]) -> Value:
    """The value of a name. Raises ConfigError that lists the valid ones."""
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, list(known), 1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise ConfigError(f"no {what} {name!r}{hint}: one of {', '.join(known)}")


def _tasks(suite: Suite, options: Options, known: Known) -> list[str]:
    wanted = suite.tasks(tuple(known.names), known.develop, options.quick)
    if not options.tasks:
        return wanted
    every = suite.tasks(tuple(known.names), known.develop, False)
    chosen: dict[str, None] = {}
    for pattern in options.tasks:
        matching = [name for name in every if fnmatchcase(name, pattern)]
        if not matching:
            raise ConfigError(f"no task {pattern!r} in suite {suite.name!r}: one of {', '.join(every)}")
        chosen.update(dict.fromkeys(matching))
    return [name for name in every if name in chosen]


def streams_of(suite: Suite, plan: Plan, patterns: Sequence[str], quick: bool) -> list[Stream]:
    """The streams of a task that match a pattern, all without patterns.

    `<corruption>-<severity>` may also name one that the suite does not have.
    """
    own = list(suite.streams(plan, quick))
    if not patterns:
        return own
    every = {stream.name: stream for stream in (*suite.streams(plan, False), *own)}
    chosen: dict[str, Stream] = {}
    for pattern in patterns:
        matching = {name: stream for name, stream in every.items() if fnmatchcase(name, pattern)}
        chosen.update(matching or _ad_hoc(plan, pattern))
    return list(chosen.values())


def _ad_hoc(plan: Plan, name: str) -> dict[str, Stream]:
    corruption, _, severity = name.rpartition("-")
    fits = corruption in (IMAGE_CORRUPTIONS if plan.pictures else TEXT_CORRUPTIONS)
    if not fits or not severity.isdigit():
        return {}
    look = Look(corruption=corruption, severity=int(severity))
    return {name: plan.single(look, "corruption" if plan.pictures else "text", AD_HOC_BATCHES)}


def _run(
    options: Options, suite: Suite, methods: tuple[str, ...], names: Sequence[str], seeds: range,
    files: ResultFiles, settings: Settings, console: Console,
) -> _Found:  # fmt: skip
    """Prepares the tasks and does every job whose results are not cached."""
    found, unmatched = _Found(), set(options.streams)
    seen: dict[str, None] = {}
    progress = Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console,
    )  # fmt: skip
    with progress:
        preparing = progress.add_task("base models and galleries", total=len(names))
        running = progress.add_task("method x stream x seed", total=0)

        def heard(news: object) -> Sequence[Order]:
            if isinstance(news, str):
                progress.advance(running)
                return ()
            progress.advance(preparing)
            orders: Sequence[Order] = ()
            if isinstance(news, Missing):
                if news.name in options.tasks:  # asked for by its name: not to be left out in silence
                    raise ConfigError(f"{news.name} cannot be run: {news.reason}")
                found.missing.append(news)
            elif isinstance(news, Facts):
                found.facts += 1
                seen.update(dict.fromkeys(s.name for s in suite.streams(news.plan, False)))
                streams = streams_of(suite, news.plan, options.streams, options.quick)
                unmatched.difference_update(
                    [p for p in unmatched if any(fnmatchcase(stream.name, p) for stream in streams)]
                )
                jobs = list(jobs_of(news, streams, seeds, methods))
                found.jobs += jobs
                orders = [order for job in jobs if (order := job.missing(files)) is not None]
                total = sum(len(order.keys) for order in orders if isinstance(order, RunOrder))
                progress.update(running, total=(progress.tasks[running].total or 0) + total)
            if unmatched and found.facts + len(found.missing) == len(names):
                raise ConfigError(
                    f"no stream {sorted(unmatched)[0]!r} in suite {suite.name!r}: one of {', '.join(seen)}; "
                    "or <corruption>-<severity>"
                )
            return orders

        try:
            work(settings, grouped(names), options.workers or usual_workers(), heard)
        except KeyboardInterrupt:
            console.print("what is finished is kept: the same command goes on from there")
            raise
    return found


def _results(
    jobs: Iterable[Job], names: Sequence[str], files: ResultFiles
) -> list[tuple[Stream, list[dict[str, Result]]]]:
    """Everything from the files, in the order of tasks and streams, whatever order it was done in."""
    place = {name: number for number, name in enumerate(names)}
    by_stream: dict[Stream, list[dict[str, Result]]] = {}
    for job in sorted(jobs, key=lambda job: place[job.stream.task]):
        loaded = {method: files.load(key) for method, key in job.keys.items()}
        gone = [method for method, result in loaded.items() if result is None]
        if gone:
            files.drop(job.keys[gone[0]])
            raise ConfigError(
                f"the result of {gone[0]} on {job.stream.task} {job.stream.name} is damaged or gone: "
                "run the command again"
            )
        found = {method: result for method, result in loaded.items() if result is not None}
        by_stream.setdefault(job.stream, []).append(found)
    return list(by_stream.items())


def _write(options: Options, report: Report, timings: Sequence[Mapping[str, object]]) -> None:
    if options.json_file:
        options.json_file.write_text(_lines(as_json(report.rows)))
        options.json_file.with_suffix(".timings.json").write_text(_lines(timings))
    if options.markdown_file:
        options.markdown_file.write_text(markdown(report))
    if options.html_file:
        options.html_file.write_text(page(report))


def _lines(rows: Sequence[Mapping[str, object]]) -> str:
    """A JSON list with a row per line: differences are readable."""
    return "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"


def _timings(report: Report, jobs: Sequence[Job], files: ResultFiles) -> list[dict[str, object]]:
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
