"""100,000 vectors of 512 numbers from a file: base and gallery in a minute, in memory of twice the file.

`make nightly`. Prints its figures: processor time of each command, and its peak over one of 512 vectors.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from how_to import environment

pytestmark = [pytest.mark.slow, pytest.mark.nightly]
ROWS, FEW, WIDTH, SECONDS, TIMES = 100_000, 512, 512, 60.0, 2.0
FILE_MIB = ROWS * WIDTH * 4 / 2**20
FORMS = [
    ".npy",
    pytest.param(
        ".parquet",
        marks=pytest.mark.skipif(
            find_spec("pyarrow") is None, reason="no pyarrow: pip install 'qshift[parquet]'"
        ),
    ),
]


class Cost(NamedTuple):
    """Of a process: processor time, and most memory."""

    seconds: float
    mib: float


def written(folder: Path, form: str, rows: int) -> Path:
    draw = np.random.default_rng(rows)
    vectors = draw.standard_normal((rows, WIDTH), np.float32)
    vectors += 2 * draw.standard_normal((200, WIDTH), np.float32)[draw.integers(0, 200, rows)]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    path = folder / f"{rows}{form}"
    if form == ".npy":
        np.save(path, vectors)
    else:
        import pyarrow
        import pyarrow.parquet as parquet

        lists = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.ravel()), WIDTH)
        parquet.write_table(pyarrow.table({"vectors": lists}), path)
    return path


def cost(*words: str | Path) -> Cost:
    """Runs a command of qshift."""
    process = subprocess.Popen(
        [sys.executable, "-c", "from qshift.entry import main; main()", *map(str, words)],
        env={**environment(), "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return Cost(used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


@pytest.mark.parametrize("form", FORMS)
def test_a_large_file_takes_a_minute_and_twice_its_size(tmp_path: Path, form: str) -> None:
    found: dict[int, list[Cost]] = {}
    for rows in (FEW, ROWS):
        file, base = written(tmp_path, form, rows), tmp_path / f"base-{rows}"
        found[rows] = [
            cost("fit", "vectors", file, "--base", base),
            cost("gallery", "build", file, "--base", base, "--out", tmp_path / f"gallery-{rows}"),
        ]
    more = [large.mib - small.mib for large, small in zip(found[ROWS], found[FEW], strict=True)]
    seconds = [one.seconds for one in found[ROWS]]
    print(f"\n{form}: fit and build {seconds[0]:.0f} + {seconds[1]:.0f} s of processor time; ", end="")
    print(f"{more[0]:.0f} and {more[1]:.0f} MiB over {FEW} vectors, file {FILE_MIB:.0f} MiB")
    assert sum(seconds) < SECONDS
    assert max(more) < TIMES * FILE_MIB
