"""What a process holds now: memory, threads, open files."""

import os
from pathlib import Path


def resident_mib(process: int | str = "self") -> float:
    """Its peak would hide all that grows below it."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def anonymous_mib(process: int | str = "self") -> float:
    """Without pages of files, which the kernel takes and gives as it likes."""
    said = Path(f"/proc/{process}/status").read_text()
    return next(int(line.split()[1]) for line in said.splitlines() if line.startswith("RssAnon")) / 1024


def threads(process: int) -> int:
    return len(list(Path(f"/proc/{process}/task").iterdir()))


def descriptors(process: int) -> int:
    return len(list(Path(f"/proc/{process}/fd").iterdir()))
