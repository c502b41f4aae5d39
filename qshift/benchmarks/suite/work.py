"""The work of a suite: prepare tasks, run what is not cached yet, on several processes, resumable.

Every process loads a task once and keeps it; a result is a file as soon as it is there, so an interruption
loses at most what was in hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from core.config import Config
from core.errors import QshiftError
from encoders.base_model import Base, load_base
from index.gallery import VersionedGallery
from qshift.benchmarks.streams import Stream
from qshift.benchmarks.suite.bases import prepare
from qshift.benchmarks.suite.fingerprint import Fingerprints
from qshift.benchmarks.suite.late import config_of, lateness
from qshift.benchmarks.suite.rates import rated
from qshift.benchmarks.suite.results import Identity, Result, ResultFiles
from qshift.benchmarks.suite.runs import code_of, data_hash, run_stream
from qshift.benchmarks.suite.tasks import load_task
from qshift.benchmarks.suites import Plan
from qshift.benchmarks.tasks.types import Task


@dataclass(frozen=True, slots=True)
class Ready:
    """A task with its base and its gallery, in memory."""

    task: Task
    base: Base
    gallery: VersionedGallery


class Tasks(Protocol):
    """Where tasks come from. Goes to other processes: it must pickle."""

    def load(self, name: str) -> Task:
        """Raises QshiftError when the data are not there."""

    def ready(self, task: Task) -> Ready:
        """Fits and builds what is not in the cache yet, and loads it."""


@dataclass(frozen=True, slots=True)
class KnownTasks:
    """The benchmark's own tasks. `data`: see docs/reference/data.md; None: only those from packages."""

    data: Path | None
    cache: Path

    def load(self, name: str) -> Task:
        return load_task(name, self.data, self.cache)

    def ready(self, task: Task) -> Ready:
        made = prepare(task, self.cache)
        base = load_base(made.base)
        return Ready(task, base, VersionedGallery.load(made.gallery, base_version=base.version, threads=1))


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a task once it is prepared. `methods`: (hash of configuration, hash of code)."""

    plan: Plan
    data: str
    base: str
    gallery: str
    methods: Mapping[str, tuple[str, str]]

    def key(self, stream: Stream, seed: int, method: str) -> str:
        """Name of the cached result."""
        config, code = self.methods[method]
        return Identity(stream, seed, self.data, self.base, self.gallery, config, code).key()


@dataclass(frozen=True, slots=True)
class Missing:
    """A task whose data are not there."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class PrepareOrder:
    """Prepare these tasks, one after the other: they may share a base model."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RunOrder:
    """Run one stream with one seed; `keys` are the methods that are wanted and names of their results."""

    task: str
    stream: Stream
    seed: int
    keys: Mapping[str, str]


Order = PrepareOrder | RunOrder
Report = Callable[[object], None]
"""Given Facts, Missing, or the name of a method whose result is saved."""


class Worker:
    """Does orders. One per process; keeps the task it worked on last.

    Args:
        tasks: where they come from.
        config: that methods are changes of.
        methods: names.
        files: where results go.
    """

    def __init__(self, tasks: Tasks, config: Config, methods: Sequence[str], files: ResultFiles) -> None:
        self._tasks, self._files = tasks, files
        self._configs = {name: config_of(config, name) for name in methods}
        self._fingerprints = Fingerprints()
        self._held: Ready | None = None

    def do(self, order: Order, report: Report) -> None:
        match order:
            case PrepareOrder():
                for name in order.names:
                    report(self._facts(name))
            case RunOrder():
                self._run(order, report)

    def _facts(self, name: str) -> Facts | Missing:
        try:
            task = self._tasks.load(name)
        except QshiftError as error:
            return Missing(name, str(error))
        ready = self._tasks.ready(task)
        self._held = ready
        base = ready.base
        domains = tuple(pool for pool in task.pools if pool != "clean")
        return Facts(
            Plan(task.name, task.modality, domains, task.retaken, task.split),
            data_hash(task),
            base.version,
            ready.gallery.version,
            {
                method: (
                    config.decision_hash() + ("" if (late := lateness(method)) is None else f"@{late}"),
                    self._fingerprints.of(code_of(config, base, task.modality)),
                )
                for method, config in self._rated(ready).items()
            },
        )

    def _rated(self, ready: Ready) -> Mapping[str, Config]:
        task = ready.task
        return {
            method: rated(config, method, task.name, ready.base, task.modality)
            for method, config in self._configs.items()
        }

    def _run(self, order: RunOrder, report: Report) -> None:
        if self._held is None or self._held.task.name != order.task:
            self._held = None  # let go before the next one is loaded
            self._held = self._tasks.ready(self._tasks.load(order.task))
        ready = self._held
        configs = self._rated(ready)

        def save(method: str, result: Result, milliseconds: float) -> None:
            self._files.save(order.keys[method], result, milliseconds)
            report(method)

        run_stream(
            ready.task, ready.base, ready.gallery, order.stream, order.seed,
            {method: configs[method] for method in order.keys}, save,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Job:
    """One stream with one seed, and the keys of all its results."""

    stream: Stream
    seed: int
    keys: Mapping[str, str]

    def missing(self, files: ResultFiles) -> RunOrder | None:
        """What is not cached yet; None: nothing."""
        wanted = {method: key for method, key in self.keys.items() if not files.holds(key)}
        return RunOrder(self.stream.task, self.stream, self.seed, wanted) if wanted else None


def jobs_of(
    facts: Facts, streams: Sequence[Stream], seeds: Sequence[int], methods: Sequence[str]
) -> Iterator[Job]:
    """All jobs of a task, seed by seed within a stream."""
    for stream in streams:
        for seed in seeds:
            yield Job(stream, seed, {name: facts.key(stream, seed, name) for name in methods})


def grouped(names: Sequence[str]) -> list[PrepareOrder]:
    """Tasks of the same data go together: what they share is fitted once."""
    by_data: dict[str, list[str]] = {}
    for name in names:
        by_data.setdefault(name.partition("/")[0], []).append(name)
    return [PrepareOrder(tuple(together)) for together in by_data.values()]
