"""Features of a large segment, mapped instead of held: from a copy of the file that has no name.

A file in the folder of a gallery may be written over in place (`cp`): its map would change with it, and end
the process with SIGBUS where it has become shorter. A hard link is the same file. Nobody else can open the
copy, which lies beside the gallery on the same disk, and it ends with the process, whatever ends that.
"""

from __future__ import annotations

import logging
import math
import mmap
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger("qshift.gallery")
MAPPED_BYTES = 32 << 20
"""Features of fewer bytes are held: not worth a file."""
COPIED_BYTES = 8 << 20


def mapped(file: Any, name: str, folder: Path, least_bytes: int = MAPPED_BYTES) -> NDArray[Any]:
    """Rows [n, D] of a file, read-only where they are mapped; held where no copy can be made.

    Args:
        file, name: of safetensors, opened, and the tensor in it.
        folder: where the copy goes: another disk may be memory (`/tmp` often is).
        least_bytes: see `MAPPED_BYTES`.
    """
    stored = file.get_slice(name)
    shape = tuple(stored.get_shape())
    if stored.get_dtype() != "F16" or len(shape) != 2 or 2 * math.prod(shape) < least_bytes:
        return _held(file, name)
    try:
        return _copied(stored, shape, folder)
    except OSError as error:  # a folder that is only read, or a full disk
        log.info("features are held in memory", extra={"error": str(error)})
        return _held(file, name)


def _held(file: Any, name: str) -> NDArray[Any]:
    rows: NDArray[Any] = file.get_tensor(name)
    return rows


def _copied(stored: Any, shape: tuple[int, ...], folder: Path) -> NDArray[np.float16]:
    some = max(1, COPIED_BYTES // (2 * shape[1]))
    with TemporaryFile(dir=folder) as copy:
        for start in range(0, shape[0], some):
            copy.write(np.ascontiguousarray(stored[start : min(start + some, shape[0])]).data)
        copy.flush()
        pages = mmap.mmap(copy.fileno(), 0, access=mmap.ACCESS_READ)  # which keeps the file
    return np.frombuffer(pages, np.float16).reshape(shape)
