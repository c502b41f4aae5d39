"""Handwritten digits from two collections: MNIST (28 x 28) and USPS (16 x 16), white ink on black.

MNIST is read from its gzipped idx files (LeCun et al. 1998), USPS from the libsvm text files (Hull 1994).
"""

from __future__ import annotations

import bz2
import gzip
import math
import struct
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from core.errors import ConfigError
from qshift.benchmarks.tasks.types import Sample

Part = Literal["train", "test"]
Grey = NDArray[np.uint8]
UNSIGNED_BYTES = 0x08  # the idx code of uint8
USPS_SIDE = 16


def read_mnist(raw: Path, part: Part) -> list[Sample]:
    """60,000 or 10,000 digits in file order; key `mnist/<part>/<place>`. Raises ConfigError."""
    return _samples(f"mnist/{part}", *read_labelled(raw, part))


def read_labelled(raw: Path, part: Part) -> tuple[Grey, Grey]:
    """Pictures [n, H, W] and labels [n] of a folder as MNIST's. Raises ConfigError."""
    stem = "t10k" if part == "test" else "train"
    pictures = read_idx(raw / f"{stem}-images-idx3-ubyte.gz")
    labels = read_idx(raw / f"{stem}-labels-idx1-ubyte.gz")
    if pictures.ndim != 3 or labels.shape != (len(pictures),):
        raise ConfigError(
            f"{raw} holds pictures {pictures.shape} and labels {labels.shape}: expected [n, 28, 28] and [n]"
        )
    return pictures, labels


def read_usps(folder: Path, part: Part) -> list[Sample]:
    """7,291 or 2,007 digits in file order; key `usps/<part>/<place>`. Raises ConfigError."""
    path = folder / ("usps.bz2" if part == "train" else "usps.t.bz2")
    pictures, labels = read_libsvm(path)
    return _samples(f"usps/{part}", pictures, labels)


def read_idx(path: Path) -> Grey:
    """A gzipped idx file of unsigned bytes: two zeros, type, rank, big-endian sizes, then the values.

    Raises:
        ConfigError: missing, damaged, cut off, or of another type.
    """
    try:
        with gzip.open(path) as file:
            content = file.read()
    except (OSError, EOFError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): see docs/reference/data.md") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != UNSIGNED_BYTES:
        raise ConfigError(f"{path} is no idx file of bytes: it begins with {content[:4].hex()}")
    start = 4 + 4 * content[3]
    shape = struct.unpack(f">{content[3]}I", content[4:start].ljust(start - 4, b"\0"))
    if len(content) != start + math.prod(shape):
        raise ConfigError(f"{path} announces {shape} values and has {len(content) - start} bytes of them")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def read_libsvm(path: Path) -> tuple[Grey, Grey]:
    """Lines of `<label 1..10> <pixel 1..256>:<value -1..1> ...`; pixels not named are 0, mid-grey.

    Returns:
        Pictures uint8 [n, 16, 16], -1 as 0 and 1 as 255, and digits [n]: label 1 is the digit 0.

    Raises:
        ConfigError: missing, damaged, or values out of range.
    """
    pixels = USPS_SIDE**2
    try:
        lines = bz2.decompress(path.read_bytes()).decode("ascii").splitlines()
        values, labels = np.zeros((len(lines), pixels)), np.empty(len(lines), np.int64)
        for row, line in enumerate(lines):
            label, *fields = line.replace(":", " ").split()
            numbers = np.array(fields, dtype=np.float64).reshape(-1, 2)
            places = numbers[:, 0].astype(np.int64)
            if places.min(initial=1) < 1:
                raise ValueError(f"line {row + 1} names pixel {places.min()}")
            values[row, places - 1], labels[row] = numbers[:, 1], int(label) - 1
        if not (np.abs(values) <= 1).all() or not ((labels >= 0) & (labels < 10)).all():
            raise ValueError("a value leaves -1..1 or a label 1..10")
    except (OSError, ValueError, IndexError) as error:
        raise ConfigError(f"{path} cannot be read as USPS ({error}): see docs/reference/data.md") from error
    grey = np.rint((values + 1) * 127.5).astype(np.uint8).reshape(-1, USPS_SIDE, USPS_SIDE)
    return grey, labels.astype(np.uint8)


def _samples(prefix: str, pictures: Grey, labels: Grey) -> list[Sample]:
    colour = np.broadcast_to(pictures[..., None], (*pictures.shape, 3))
    names = [str(label) for label in labels.tolist()]
    return [
        Sample(f"{prefix}/{place}", picture, name, name, name)
        for place, (picture, name) in enumerate(zip(colour, names, strict=True))
    ]
