"""Peak memory of this process and everything it started, sampled."""

from __future__ import annotations

import os
import resource
import threading
from pathlib import Path

PROC = Path("/proc")
PAGE = os.sysconf("SC_PAGE_SIZE")


class PeakMemory:
    """Samples resident memory of the process tree while it is entered.

    Without /proc the figure is the sum of the peaks of the process and of its largest child, which need
    not have been at the same time.
    """

    def __init__(self, every_seconds: float = 0.25) -> None:
        self._every, self._ended, self._peak = every_seconds, threading.Event(), 0
        self._thread = threading.Thread(target=self._work, name="qshift-memory", daemon=True)

    def __enter__(self) -> PeakMemory:
        if PROC.exists():
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def peak_bytes(self) -> int:
        if self._peak:
            return self._peak
        who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        return sum(resource.getrusage(one).ru_maxrss * 1024 for one in who)

    def _work(self) -> None:
        while not self._ended.wait(self._every):
            self._peak = max(self._peak, sum(_resident(pid) for pid in _tree(os.getpid())))


def _tree(pid: int) -> list[int]:
    found = [pid]
    try:
        for task in (PROC / str(pid) / "task").iterdir():
            for child in (task / "children").read_text().split():
                found += _tree(int(child))
    except OSError:  # it ended meanwhile
        return found
    return found


def _resident(pid: int) -> int:
    try:
        return int((PROC / str(pid) / "statm").read_text().split()[1]) * PAGE
    except (OSError, IndexError):
        return 0
