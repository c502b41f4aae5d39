"""For what becomes so in another thread or process."""

import time
from collections.abc import Callable


def eventually(true: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Whether something becomes so in time."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
