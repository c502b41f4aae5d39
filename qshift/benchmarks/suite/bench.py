"""`qshift bench`: run what is not cached; print and write."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

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
from qshift.benchmarks.streams import Stream
from qshift.benchmarks.suite.chosen import (
    Known,
    Options,
    check_patterns,
    methods_of,
    one_of,
    seeds_of,
    streams_of,
    tasks_of,
)
from qshift.benchmarks.suite.processes import Settings, usual_workers, work
from qshift.benchmarks.suite.report import Report, report_of
from qshift.benchmarks.suite.report_html import page
from qshift.benchmarks.suite.report_text import markdown, terminal
from qshift.benchmarks.suite.results import Result, ResultFiles
from qshift.benchmarks.suite.rows import as_json
from qshift.benchmarks.suite.tasks import DEVELOP, TASKS
from qshift.benchmarks.suite.timings import time_table, timings_of
from qshift.benchmarks.suite.work import (
    Facts,
    Job,
    KnownTasks,
    Missing,
    Order,
    RunOrder,
    grouped,
    jobs_of,
)
from qshift.benchmarks.suites import SUITES, Suite


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
    methods = methods_of(options.methods, options.late)
    if options.labels is not None:
        labels = config.labels.model_copy(update={"rate": options.labels})
        config = config.model_copy(update={"labels": labels})
    names = tasks_of(suite, options, known)
    check_patterns(options.streams)
    settings = Settings(known.source, config, methods, options.cache / "results")
    with _progress(console) as progress:
        found = _Found(options, suite, names, settings, progress)
        try:
            work(settings, grouped(names), options.workers or usual_workers(), found.heard)
        except KeyboardInterrupt:
            console.print("what is finished is kept: the same command goes on from there")
            raise
    if not found.jobs:
        reasons = "; ".join(f"{missing.name}: {missing.reason}" for missing in found.missing)
        raise ConfigError(f"suite {suite.name!r} has nothing to run: {reasons or 'no stream is left'}")
    return _reported(options, suite, names, found, console)


def _reported(
    options: Options, suite: Suite, names: Sequence[str], found: _Found, console: Console
) -> Report:
    """Prints and writes everything from the files of results."""
    title = f"qshift bench {suite.name}{' --quick' if options.quick else ''}"
    found.missing.sort(key=lambda missing: names.index(missing.name))  # not in the order of their finding
    report = report_of(title, _results(found.jobs, names, found.files), found.missing)
    console.print(terminal(report, console.width), crop=False)
    for missing in found.missing:
        console.print(f"left out: {missing.name}: {missing.reason}", highlight=False)
    timings = timings_of(report, found.jobs, found.files)
    time_table(timings).print(console)
    _write(options, report, timings)
    return report


class _Found:
    """What the workers have told so far, and the orders that follow: only what is not cached."""

    def __init__(
        self, options: Options, suite: Suite, names: Sequence[str], settings: Settings, progress: Progress
    ) -> None:
        self.missing: list[Missing] = []
        self.jobs: list[Job] = []
        self.files = ResultFiles(settings.results)
        self._options, self._suite, self._methods = options, suite, settings.methods
        self._waited_for = len(names)
        self._unmatched = set(options.streams)
        self._streams: dict[str, None] = {}
        self._progress = progress
        self._preparing = progress.add_task("base models and galleries", total=len(names))
        self._running = progress.add_task("method x stream x seed", total=0)

    def heard(self, news: object) -> Sequence[Order]:
        """Takes what a worker reports: that a run is done, or a task is prepared, or cannot be."""
        if isinstance(news, str):
            self._progress.advance(self._running)
            return ()
        self._progress.advance(self._preparing)
        orders: Sequence[Order] = ()
        self._waited_for -= 1
        if isinstance(news, Missing):
            self._leave_out(news)
        elif isinstance(news, Facts):
            orders = self._prepared(news)
        if self._unmatched and not self._waited_for:
            raise ConfigError(
                f"no stream {sorted(self._unmatched)[0]!r} in suite {self._suite.name!r}: "
                f"one of {', '.join(self._streams)}; or <corruption>-<severity>"
            )
        return orders

    def _leave_out(self, missing: Missing) -> None:
        if missing.name in self._options.tasks:  # asked for by its name: not to be left out in silence
            raise ConfigError(f"{missing.name} cannot be run: {missing.reason}")
        self.missing.append(missing)

    def _prepared(self, facts: Facts) -> Sequence[Order]:
        suite, options = self._suite, self._options
        self._streams.update(dict.fromkeys(s.name for s in suite.streams(facts.plan, False)))
        streams = streams_of(suite, facts.plan, options.streams, options.quick)
        self._unmatched.difference_update(
            [p for p in self._unmatched if any(fnmatchcase(stream.name, p) for stream in streams)]
        )
        jobs = list(jobs_of(facts, streams, seeds_of(suite, options), self._methods))
        self.jobs += jobs
        orders = [order for job in jobs if (order := job.missing(self.files)) is not None]
        total = sum(len(order.keys) for order in orders if isinstance(order, RunOrder))
        known = self._progress.tasks[self._running].total or 0
        self._progress.update(self._running, total=known + total)
        return orders


def _progress(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console,
    )  # fmt: skip


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
        # One file serves two names that mean the same, as tent and tent*1 do.
        found = {name: replace(result, method=name) for name, result in loaded.items() if result is not None}
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
