"""Arrays in .npy, .npz and .parquet files: opened without pickle, and judged by their headers first.

A .npy file is mapped, never read whole, and so are the vectors of a .npz or a .parquet, from a copy that has
no name; what stands beside the vectors is read into memory.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shutil import copyfileobj
from tempfile import TemporaryFile
from tokenize import TokenError
from typing import IO, Any, Literal
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from core.errors import ConfigError
from core.readers.places import is_file, shown

SUFFIXES = (".npy", ".npz", ".parquet")
VECTORS = "vectors"
COLUMNS = ("ids", "labels", "titles", "modality")
"""What may stand beside the vectors in .npz and .parquet files, a value a row."""
UNREADABLE = (
    OSError, ValueError, EOFError, KeyError, TypeError, RuntimeError, ArithmeticError, MemoryError,
    SyntaxError, TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What the readers of NumPy, zipfile and pyarrow raise for files that are damaged, or made to look so."""
COPIED_BYTES = 1 << 20
STREAMED_ROWS = 1024
"""Of a .parquet file, in memory at once: 4 MiB of float32 where vectors have 1,024 numbers."""
PICKLED = "it holds Python objects, which are never unpickled"


@dataclass(frozen=True, slots=True)
class Arrays:
    """The vectors of a file, and what else it says of each.

    `vectors` opens them [N, D] in the file's own type: a map is made anew each time, so that pages that were
    read need not stay in memory. `columns` are arrays [N] of texts or whole numbers by name.
    """

    vectors: Callable[[], NDArray[Any]]
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)


def opened(path: Path) -> Arrays:
    """Opens a file by its ending. Raises ConfigError for what cannot be read, in one sentence."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ConfigError(f"{shown(path)} is no file of vectors: expected {', '.join(SUFFIXES)}")
    if not is_file(path):  # a named pipe cannot be mapped, either
        raise ConfigError(f"no file {shown(path)}: name one of {', '.join(SUFFIXES)}")
    try:
        return {".npy": _npy, ".npz": _npz, ".parquet": _parquet}[suffix](path)
    except UNREADABLE as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ConfigError(f"{shown(path)} cannot be read: {reason}; write it again") from error


def _npy(path: Path) -> Arrays:
    with path.open("rb") as file:
        shape, dtype = _header(file, path)
        begins = file.tell()
    _check(path, "", shape, dtype)
    _check_whole(path, path.stat().st_size - begins, shape, dtype)
    return Arrays(lambda: np.load(path, mmap_mode="r", allow_pickle=False))


def _npz(path: Path) -> Arrays:
    headers: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
    sizes: dict[str, int] = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            if member.endswith(".npy"):
                with archive.open(member) as file:
                    name = member.removesuffix(".npy")
                    headers[name] = _header(file, path)
                    sizes[name] = archive.getinfo(member).file_size - file.tell()
    chosen = _one(path, [name for name, (shape, _) in headers.items() if len(shape) == 2], list(headers))
    _check(path, f"array {chosen!r}", *headers[chosen])
    for name in set(headers) & set(COLUMNS):
        if headers[name][1].hasobject:
            raise ConfigError(
                f"{shown(path)}: array {name!r} cannot be read, {PICKLED}: save np.array({name}, dtype=str)"
            )
    for name in {chosen, *headers} & {chosen, *COLUMNS}:
        _check_whole(path, sizes[name], *headers[name])
    vectors = _unpacked(path, chosen)
    with np.load(path, allow_pickle=False) as found:
        columns = {name: found[name] for name in COLUMNS if name in headers and name != chosen}
    return Arrays(vectors, columns)


def _unpacked(path: Path, member: str) -> Callable[[], NDArray[Any]]:
    """Opens a member of an archive as a map, of a file without a name that ends with the process."""
    copy = TemporaryFile()  # noqa: SIM115 - it is open as long as vectors are read
    with zipfile.ZipFile(path) as archive, archive.open(f"{member}.npy") as file:
        copyfileobj(file, copy, COPIED_BYTES)  # to its end, where the sum of the archive is checked
    copy.flush()
    copy.seek(0)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, by_columns, dtype = read[np.lib.format.read_magic(copy)](copy)  # as judged before
    return _mapped(copy, dtype, copy.tell(), shape, "F" if by_columns else "C")


def _mapped(
    copy: IO[bytes], dtype: np.dtype[Any], begins: int, shape: tuple[int, ...], order: Literal["C", "F"]
) -> Callable[[], NDArray[Any]]:
    """Opens an array in a file without a name, which is closed when nobody can open it any more."""

    def vectors() -> NDArray[Any]:
        return np.memmap(copy, dtype, "r", begins, shape, order)

    finalize(vectors, copy.close)
    return vectors


def _parquet(path: Path) -> Arrays:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise ConfigError(
            f"{shown(path)} needs pyarrow: `pip install 'qshift[parquet]'`, or save the vectors as .npy"
        ) from None
    # Without a buffer pyarrow would hold a whole column of a group of rows, which may be all there are.
    with parquet.ParquetFile(path, buffer_size=COPIED_BYTES, pre_buffer=False) as file:
        schema = file.schema_arrow
        lists = [f.name for f in schema if pyarrow.types.is_list(f.type) or _other_list(pyarrow, f.type)]
        chosen = _one(path, lists, schema.names)
        if chosen not in lists:
            raise ConfigError(f"{shown(path)}: column {chosen!r} holds no lists of numbers")
        names = [name for name in COLUMNS if name in schema.names and name != chosen]
        count = file.metadata.num_rows
        parts = (part.column(0) for part in file.iter_batches(STREAMED_ROWS, columns=[chosen]))
        vectors = _streamed(path, chosen, parts, count)
        table = file.read(columns=names)
    columns = {name: np.array(_whole(path, name, table.column(name).to_pylist())) for name in names}
    return Arrays(vectors, columns)


def _streamed(path: Path, name: str, parts: Iterable[Any], count: int) -> Callable[[], NDArray[Any]]:
    """Lists of one width, some rows at a time, as a map [N, D] of a file without a name."""
    copy, shape, dtype = TemporaryFile(), (0, 0), np.dtype(np.float32)  # noqa: SIM115 - read from later
    try:
        for part in filter(len, parts):
            rows = _stacked(path, name, part, *shape)
            _check(path, f"column {name!r}", (count, rows.shape[1]), rows.dtype)
            copy.write(np.ascontiguousarray(rows).tobytes())
            shape, dtype = (shape[0] + len(rows), rows.shape[1]), rows.dtype
        _check(path, f"column {name!r}", shape, dtype)
        copy.flush()
    except BaseException:
        copy.close()
        raise
    return _mapped(copy, dtype, 0, shape, "C")


def _other_list(pyarrow: Any, kind: Any) -> bool:
    return bool(pyarrow.types.is_fixed_size_list(kind) or pyarrow.types.is_large_list(kind))


def _stacked(path: Path, name: str, numbers: Any, first: int, width: int) -> NDArray[Any]:
    """Lists of one width as [n, D].

    Args:
        first: row of the file that they begin with.
        width: D of the rows before.
    """
    widths = np.array([-1 if found is None else found for found in numbers.value_lengths().to_pylist()])
    width = width if first else int(widths[0])
    odd = np.flatnonzero((widths != width) | (widths < 0))
    if len(odd):
        row = int(odd[0])
        said = "is empty" if widths[row] < 0 else f"has {widths[row]} numbers, row 0 has {width}"
        raise ConfigError(f"{shown(path)}, row {first + row}: column {name!r} {said}: give each row as many")
    flat = numbers.flatten()
    if flat.null_count:
        row = int(np.argmax(flat.is_null().to_numpy(zero_copy_only=False))) // max(width, 1)
        raise ConfigError(
            f"{shown(path)}, row {first + row}: column {name!r} lacks a number: give each row as many"
        )
    rows: NDArray[Any] = flat.to_numpy(zero_copy_only=False).reshape(len(widths), width)
    return rows


def _whole(path: Path, name: str, values: list[Any]) -> list[Any]:
    """A column; a label or a title may be missing."""
    if name in ("labels", "titles"):
        return ["" if value is None else value for value in values]
    if None in values:
        raise ConfigError(f"{shown(path)}, row {values.index(None)}: column {name!r} is empty: fill it")
    return values


def _one(path: Path, fitting: list[str], names: list[str]) -> str:
    """The name of what holds the vectors."""
    if VECTORS in names:
        return VECTORS
    if len(fitting) != 1:
        some = ", ".join(shown(name) for name in names[:8]) or "nothing"
        raise ConfigError(
            f"{shown(path)} holds {some}: expected the vectors [N, D] under the name {VECTORS!r}"
        )
    return fitting[0]


def _header(file: IO[bytes], path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise ConfigError(f"{shown(path)} is written in format {version}: save plain numbers")
    return shape, dtype


def _check(path: Path, what: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Raises ConfigError for what can be no vectors."""
    where = f"{shown(path)}: {what} " if what else f"{shown(path)} "
    if dtype.hasobject:
        raise ConfigError(f"{where}cannot be read, {PICKLED}: save float32 [N, D]")
    if dtype.kind != "f" or dtype.itemsize not in (2, 4, 8):
        raise ConfigError(f"{where}holds {dtype}: expected float16, float32 or float64")
    if len(shape) != 2:
        hint = "give a single vector as [1, D]" if len(shape) == 1 else "give a vector a row"
        raise ConfigError(f"{where}has shape {list(shape)}, expected [N, D]: {hint}")
    if min(shape) < 1:
        raise ConfigError(f"{where}is empty, of shape {list(shape)}: expected at least one vector")


def _check_whole(path: Path, have: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Before memory is asked for. Raises ConfigError where so many bytes cannot hold what is announced."""
    need = math.prod(shape) * dtype.itemsize
    if have < need:
        raise ConfigError(
            f"{shown(path)} is cut off: it announces {need} bytes of numbers and holds {have}; write it again"
        )
