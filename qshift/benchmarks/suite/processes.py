"""Processes that work on orders: started fresh, one thread each, ended with their parent."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from threading import current_thread, main_thread
from types import FrameType

from core.config import Config
from core.errors import QshiftError
from qshift.benchmarks.suite.results import ResultFiles
from qshift.benchmarks.suite.work import Order, RunOrder, Tasks, Worker

BYTES_PER_WORKER = 3 << 30
"""Towers, a task's pictures and gradients of a batch; measured with headroom."""
MEMORY = Path("/proc/meminfo")


@dataclass(frozen=True, slots=True)
class Settings:
    """What a worker is built from."""

    tasks: Tasks
    config: Config
    methods: tuple[str, ...]
    results: Path

    def worker(self) -> Worker:
        return Worker(self.tasks, self.config, self.methods, ResultFiles(self.results))


@dataclass(frozen=True, slots=True)
class _Done:
    """The order in hand is finished."""


@dataclass(frozen=True, slots=True)
class _Failed:
    """The order in hand cannot be done. `ours`: an error raised on purpose, one sentence."""

    text: str
    ours: bool


Heard = Callable[[object], Sequence[Order]]
"""Takes what a worker reports; returns orders that follow from it."""


def work(settings: Settings, orders: Sequence[Order], workers: int, heard: Heard) -> None:
    """Does all orders and those that follow from them.

    One worker works in this process; several are processes of their own. `heard` is always called here.

    Raises:
        QshiftError: an order cannot be done; the results that were saved stay.
    """
    waiting = list(orders)
    if workers == 1:
        worker = settings.worker()
        while waiting:
            worker.do(waiting.pop(0), lambda news: waiting.extend(heard(news)))
        return
    before = signal.signal(signal.SIGTERM, _stop) if current_thread() is main_thread() else None
    crew: list[_Member] = []
    try:
        crew += [_Member(settings) for _ in range(workers)]
        _supervise(crew, waiting, heard)
    finally:
        for member in crew:
            member.end()
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _stop(number: int, frame: FrameType | None) -> None:
    """Ends by the usual way out, so that no worker is left behind."""
    raise SystemExit(128 + number)


def usual_workers() -> int:
    """As many as there are cores, and memory for."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not MEMORY.exists():
        return cores
    kilobytes = {
        name: int(rest.split()[0])
        for name, _, rest in (line.partition(":") for line in MEMORY.read_text().splitlines())
    }
    return max(1, min(cores, kilobytes.get("MemAvailable", 0) * 1024 // BYTES_PER_WORKER))


class _Member:
    """One process, from the outside."""

    def __init__(self, settings: Settings) -> None:
        context = get_context("spawn")
        self.ours, theirs = context.Pipe()
        self.process: SpawnProcess = context.Process(
            target=_serve, args=(settings, theirs), name="qshift-replay", daemon=True
        )
        self.process.start()
        theirs.close()
        self.task = ""
        self.busy = False

    def give(self, order: Order) -> None:
        self.busy = True
        self.task = order.task if isinstance(order, RunOrder) else order.names[-1]
        self.ours.send(order)

    def end(self) -> None:
        self.process.terminate()
        self.process.join()
        self.ours.close()


def _supervise(crew: Sequence[_Member], waiting: list[Order], heard: Heard) -> None:
    while True:
        for member in crew:
            if waiting and not member.busy:
                member.give(waiting.pop(_next(waiting, member.task)))
        if not any(member.busy for member in crew):
            return
        ready = wait([member.ours for member in crew if member.busy])
        for member in crew:
            if member.ours not in ready:
                continue
            try:
                news = member.ours.recv()
            except EOFError:
                raise QshiftError(
                    f"a worker process ended unexpectedly at {member.task}, status "
                    f"{member.process.exitcode}: probably out of memory, run again with fewer --workers"
                ) from None
            if isinstance(news, _Failed):
                if news.ours:
                    raise QshiftError(news.text)
                raise RuntimeError(f"a worker failed at {member.task}\n{news.text}")
            if isinstance(news, _Done):
                member.busy = False
            else:
                waiting.extend(heard(news))


def _next(waiting: Sequence[Order], task: str) -> int:
    """Preparations first, then the task that is loaded already, then the oldest."""
    ranks = [0 if not isinstance(order, RunOrder) else 1 if order.task == task else 2 for order in waiting]
    return ranks.index(min(ranks))


def _serve(settings: Settings, orders: Connection) -> None:
    """The loop of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides, and ends us
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    worker = settings.worker()
    while True:
        try:
            order: Order = orders.recv()
        except EOFError:
            return
        try:
            worker.do(order, orders.send)
            orders.send(_Done())
        except QshiftError as error:
            orders.send(_Failed(str(error), True))
        except Exception:  # noqa: BLE001  reported to the parent, which raises it
            orders.send(_Failed(traceback.format_exc(), False))
