"""Peak memory of decoding one-colour pictures of 4096 x 4096 pixels, in MiB by kind of file, as JSON.

    python tests/encoders/measure_memory.py

One process forks once per picture, so that each peak is its own; Linux only.
"""

from __future__ import annotations

import io
import json
import os
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))
from encoders.images import Preprocess, decode, fit

SIDE = 4096


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(depth: int, kind: int, channels: int, extra: bytes = b"") -> bytes:
    """All zero, of any depth and kind: Pillow itself does not write them all."""
    packed, row = zlib.compressobj(9), bytes(1 + SIDE * depth * channels // 8)
    data = [packed.compress(row) for _ in range(SIDE)] + [packed.flush()]
    header = struct.pack(">IIBBBBB", SIDE, SIDE, depth, kind, 0, 0, 0)
    parts = [chunk(b"IHDR", header), extra, chunk(b"IDAT", b"".join(data)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def saved(mode: str, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (SIDE, SIDE)).save(buffer, form, **options)
    return buffer.getvalue()


MAKE: dict[str, Callable[[], bytes]] = {
    "grey": lambda: png(8, 0, 1),
    "grey, one clear": lambda: png(8, 0, 1, chunk(b"tRNS", b"\0\0")),
    "grey of 16 bits": lambda: png(16, 0, 1),
    "palette": lambda: png(8, 3, 1, chunk(b"PLTE", bytes(768)) + chunk(b"tRNS", b"\0")),
    "RGB": lambda: png(8, 2, 3),
    "RGBA of 16 bits": lambda: png(16, 6, 4),
    "WEBP": lambda: saved("RGB", "WEBP", lossless=True),
    "WEBP with alpha": lambda: saved("RGBA", "WEBP", lossless=True),
    "JPEG": lambda: saved("RGB", "JPEG"),
    "progressive JPEG": lambda: saved("RGB", "JPEG", progressive=True, subsampling=0),
}


def forked(work: Callable[[], bytes]) -> bytes:
    """What `work` gives, done in a process of its own."""
    end, start = os.pipe()
    if not os.fork():
        with os.fdopen(start, "wb") as pipe:
            pipe.write(work())
        os._exit(0)
    os.close(start)
    with os.fdopen(end, "rb") as pipe:
        found = pipe.read()
    os.wait()
    return found


def peak_kib() -> int:
    with Path("/proc/self/status").open() as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def cost(content: bytes) -> bytes:
    before = peak_kib()
    fit(decode(content, 224), Preprocess())
    return str((peak_kib() - before) / 1024).encode()


if __name__ == "__main__":
    found = {}
    for name, make in MAKE.items():
        content = forked(make)
        found[name] = float(forked(lambda: cost(content)))  # noqa: B023
    print(json.dumps(found))
