"""In processes of their own: what the C library was told holds for the rest of a process."""

import subprocess
import sys

import pytest

from core.allocator import keep_memory

PROGRAM = """
import resource, threading
import numpy as np
from core.allocator import keep_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        np.ones(48 << 20, np.uint8)[0]  # beyond what glibc learns to keep by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def beside():
    found = []
    thread = threading.Thread(target=lambda: found.append(faults()))
    thread.start()
    thread.join()
    return found[0]

if {keep}:
    assert keep_memory()
faults()
beside()
print(faults(), beside())
"""


def measured(keep: bool) -> list[int]:
    program = PROGRAM.format(keep=keep)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return [int(number) for number in done.stdout.split()]


@pytest.mark.skipif(not keep_memory(), reason="not glibc")
def test_what_is_freed_is_not_asked_for_again_in_any_thread() -> None:
    anew, kept = measured(False), measured(True)
    assert min(anew) > 20 * 10  # every block anew, by pages or by huge pages
    assert max(kept) < 20
