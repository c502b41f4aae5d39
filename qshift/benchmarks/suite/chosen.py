"""What `qshift bench` is asked for, and the tasks, streams and methods that this means."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

from core.errors import ConfigError
from qshift.benchmarks.streams import Look, Stream, check_corruption
from qshift.benchmarks.suite.late import with_late
from qshift.benchmarks.suite.rows import FROZEN
from qshift.benchmarks.suite.work import Tasks
from qshift.benchmarks.suites import Plan, Suite
from qshift.methods import METHODS, SUITE_METHODS, split
from qshift.methods import known as known_method
from qshift.shifts.corruptions import IMAGE_CORRUPTIONS
from qshift.shifts.wording import TEXT_CORRUPTIONS

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
    late: tuple[int, ...] = ()
    labels: float | None = None


@dataclass(frozen=True, slots=True)
class Known:
    """All tasks by name, those kept for choosing settings, where they come from, and the suites."""

    names: Collection[str]
    develop: Collection[str]
    source: Tasks
    suites: Mapping[str, Suite]


def methods_of(named: Sequence[str], late: Sequence[int] = ()) -> tuple[str, ...]:
    """Methods to run; frozen is always the first. Raises ConfigError for an unknown one.

    Args:
        late: batches that labels come late; each method that answers from both twins is run with them, too.
    """
    for name in (split(name)[0] for name in named):
        if not known_method(name):  # a name may carry extras, as in "rest+fused"
            one_of("method", name, METHODS)
    chosen = named or SUITE_METHODS
    found = with_late(chosen, late)
    if late and found == list(chosen):
        raise ConfigError(
            f"none of {', '.join(chosen)} answers from both twins: late labels have nothing to weigh; "
            "name default, or +fused behind a method"
        )
    return tuple(dict.fromkeys((FROZEN, *found)))


def one_of(what: str, name: str, known: Mapping[str, Value]) -> Value:
    """The value of a name. Raises ConfigError that lists the valid ones."""
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, list(known), 1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise ConfigError(f"no {what} {name!r}{hint}: one of {', '.join(known)}")


def tasks_of(suite: Suite, options: Options, known: Known) -> list[str]:
    """Names of the tasks that match a pattern, in the suite's order. Raises ConfigError where none does."""
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


def check_patterns(patterns: Sequence[str]) -> None:
    """Raises ConfigError where a stream is named by a corruption and a severity that it does not have."""
    for pattern in patterns:
        corruption, _, severity = pattern.rpartition("-")
        if corruption in (*IMAGE_CORRUPTIONS, *TEXT_CORRUPTIONS) and severity.isdigit():
            check_corruption(corruption, int(severity), f"--streams {pattern}")


def seeds_of(suite: Suite, options: Options) -> range:
    """Seeds of a suite: as many as were asked for, else as many as it has, fewer of a quick one."""
    count = options.seeds or (suite.quick_seeds if options.quick else suite.seeds)
    return range(suite.first_seed, suite.first_seed + count)
