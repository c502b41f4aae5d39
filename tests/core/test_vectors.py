"""Files of vectors: what is read, what is left out row by row, and what is refused in a sentence."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.errors import ConfigError
from core.readers import vectors
from core.readers.vectors import VectorFile, holds_vectors, read_vectors

N, D = 12, 4
Rows = np.ndarray[Any, np.dtype[Any]]


def rows(dtype: str = "float32") -> Rows:
    found = np.random.default_rng(0).standard_normal((N, D))
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), dtype=dtype)


def npy(folder: Path, array: Any, name: str = "v.npy") -> Path:
    np.save(folder / name, array, allow_pickle=True)
    return folder / name


def npz(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "v.npz", **arrays)
    return folder / "v.npz"


def whole(file: VectorFile) -> Rows:
    return np.concatenate([block for _, block in file.blocks()])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
def test_numbers_of_every_size_are_read(tmp_path: Path, dtype: str) -> None:
    file = read_vectors(npy(tmp_path, rows(dtype)))
    assert (len(file), file.count, file.width, file.rescaled, file.notes()) == (N, N, D, 0, [])
    assert whole(file).dtype == np.float32
    assert (whole(file) == rows(dtype).astype(np.float32)).all()
    assert file.ids() == tuple(map(str, range(N))) and file.column("labels") is None


def test_columns_in_fortran_order_are_rows_all_the_same(tmp_path: Path) -> None:
    assert (whole(read_vectors(npy(tmp_path, np.asfortranarray(rows())))) == rows()).all()


def test_rows_without_a_direction_cost_no_other_row(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(vectors, "BLOCK_BYTES", 4 * D * 5)  # three blocks
    array = rows("float64")
    array[1, 2], array[6], array[7, 0], array[11, 3] = np.nan, 0.0, -np.inf, 1e300
    array[3] *= 5.0
    names = [f"name {row}" for row in range(N)]
    (tmp_path / "v.ids.txt").write_text("\n".join(names) + "\n")
    file = read_vectors(npy(tmp_path, array))
    kept = [row for row in range(N) if row not in (1, 6, 7, 11)]
    assert file.rows.tolist() == kept and list(file.left_out) == [1, 6, 7, 11] and file.rescaled == 1
    assert (whole(file) == array[kept].astype(np.float32)).all()
    assert [len(block) for _, block in file.blocks()] == [5, 3]
    assert (file.at(np.array([10, 0, 10, 5])) == array[[10, 0, 10, 5]].astype(np.float32)).all()
    assert file.ids() == tuple(names[row] for row in kept)
    left, unit = file.notes()
    assert "4 of 12 rows left out: row 1 holds NaN, infinity" in left and "row 6 holds only zeros" in left
    assert "1 of 8 vectors are not of unit length: normalised" in unit


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (rows()[0], r"shape \[4\], expected \[N, D\]: give a single vector as \[1, D\]"),
        (rows()[None], r"shape \[1, 12, 4\], expected \[N, D\]"),
        (np.empty((0, D), np.float32), r"is empty, of shape \[0, 4\]"),
        (np.empty((N, 0), np.float32), r"is empty, of shape \[12, 0\]"),
        (np.ones((N, D), np.int64), "holds int64: expected float16, float32 or float64"),
        (np.ones((N, D), np.complex64), "holds complex64"),
        (np.ones((N, D), bool), "holds bool"),
        (np.array([["a"] * D] * N), "holds <U1"),
        (np.array([[None] * D] * N), "Python objects, which are never unpickled"),
        (np.array([{"a": 1}]), "Python objects"),
        (np.zeros((N, D), [("x", "f4")]), r"holds \[\('x'"),
        (np.full((N, D), np.nan), "no vector that can be used: row 0 holds NaN"),
    ],
)
def test_what_is_no_table_of_vectors_is_a_sentence(tmp_path: Path, array: Any, said: str) -> None:
    for path in (npy(tmp_path, array), npz(tmp_path, vectors=array)):
        _refused(lambda path=path: read_vectors(path), said)


def _refused(reading: Callable[[], object], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        reading()
    assert "\n" not in str(error.value) and len(str(error.value)) < 700


def test_damaged_files_are_a_sentence(tmp_path: Path) -> None:
    good = npy(tmp_path, rows()).read_bytes()
    archive = npz(tmp_path, vectors=rows()).read_bytes()
    (tmp_path / "short.npy").write_bytes(good[:-4])
    (tmp_path / "short.npz").write_bytes(archive[:-40])
    (tmp_path / "turned.npz").write_bytes(archive[:200] + b"\xff" * 20 + archive[220:])
    for name in ("junk.npy", "junk.npz"):
        (tmp_path / name).write_bytes(b"x" * 100)
    (tmp_path / "none.npy").write_bytes(b"")
    (tmp_path / "zip.npy").write_bytes(archive)
    with zipfile.ZipFile(tmp_path / "strange.npz", "w") as strange:
        strange.writestr("vectors.npy", b"no array")
    os.mkfifo(tmp_path / "pipe.npy")
    for path in sorted(tmp_path.iterdir()):
        if path.name not in ("v.npy", "v.npz"):
            _refused(lambda path=path: read_vectors(path), "cut off|cannot be read|no file")  # type: ignore[misc]
    _refused(lambda: read_vectors(tmp_path / "missing.npy"), "no file .*missing.npy")
    _refused(lambda: read_vectors(tmp_path / "v.txt"), "no file of vectors: expected .npy, .npz, .parquet")
    assert "cut off: it announces 192 bytes of numbers and holds 188" in _said(tmp_path / "short.npy")


def test_altered_bytes_raise_nothing_else(tmp_path: Path) -> None:
    """A sentence, or numbers: never a traceback, and no memory for what is only announced."""
    names = np.array([f"n{row}" for row in range(N)])
    draw, outcomes = np.random.default_rng(0), set()
    for good in (npy(tmp_path, rows()), npz(tmp_path, vectors=rows(), ids=names)):
        content = good.read_bytes()
        for _ in range(150):
            altered = bytearray(content)
            for place in draw.integers(0, min(len(content), 400), 3):
                altered[place] = draw.choice([*b"\x00\xff9(-,'", int(draw.integers(256))])
            path = tmp_path / f"altered{good.suffix}"
            path.write_bytes(altered)
            try:
                outcomes.add(len(read_vectors(path)) > 0)
            except ConfigError as error:
                outcomes.add("sentence")
                assert "\n" not in str(error) and len(str(error)) < 700
    assert outcomes == {True, "sentence"}
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (%s), }"
    for shape in (b"4611686018427387904, 4", b"-3, 4", b"True, 4", b"3.0, 4", b"(" * 900):
        text = (header % shape).ljust(2000) + b"\n"
        path.with_suffix(".npy").write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)
        _refused(lambda: read_vectors(path.with_suffix(".npy")), "cannot be read|cut off|is empty")


def _said(path: Path) -> str:
    with pytest.raises(ConfigError) as error:
        read_vectors(path)
    return str(error.value)


def test_the_names_of_an_archive(tmp_path: Path) -> None:
    names = np.array([f"n{row}" for row in range(N)])
    columns = {"ids": np.arange(N), "labels": names, "titles": names, "modality": np.array(["image"] * N)}
    file = read_vectors(npz(tmp_path, embeddings=rows(), other=np.ones(3), **columns))
    assert (whole(file) == rows()).all() and file.ids() == tuple(map(str, range(N)))
    assert file.column("labels") == tuple(names) and file.column("modality") == ("image",) * N
    both = {"vectors": rows()[:, :2], "others": rows()}
    assert read_vectors(npz(tmp_path, **both)).width == 2  # the name decides
    _refused(lambda: read_vectors(npz(tmp_path, a=rows(), b=rows())), "holds a, b: expected the vectors")
    _refused(lambda: read_vectors(npz(tmp_path, a=np.ones(3))), "holds a: expected the vectors")


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"ids": np.arange(N - 1)}, r"ids has shape \[11\], there are 12 vectors"),
        ({"labels": np.zeros(N)}, "labels holds float64: expected texts or whole numbers"),
        ({"ids": np.array(["a", None] * 6, object)}, r"'ids' cannot be read.* np.array\(ids, dtype=str\)"),
        ({"ids": np.array(["a", "b", "c"] * 4)}, "rows 0 and 3 are both called a"),
        ({"ids": np.array([*"abcdefghijk", ""])}, "row 11: the identifier is no text"),
    ],
)
def test_columns_that_do_not_fit_are_a_sentence(
    tmp_path: Path, columns: Mapping[str, Any], said: str
) -> None:
    _refused(lambda: read_vectors(npz(tmp_path, vectors=rows(), **columns)), said)


def test_lines_beside_an_array(tmp_path: Path) -> None:
    path, other = npy(tmp_path, rows()), tmp_path / "other.txt"
    (tmp_path / "v.labels.txt").write_text("".join(f"c{row % 3}\r\n" for row in range(N)))
    (tmp_path / "v.titles.txt").write_text("\n" * N)
    other.write_text("".join(f"o{row}\n" for row in range(N)))
    file = read_vectors(path, {"ids": other, "titles": None})
    assert file.ids()[-1] == "o11" and file.columns["labels"][:4] == ("c0", "c1", "c2", "c0")
    assert file.columns["titles"] == ("",) * N
    other.write_text("a\nb\n")
    _refused(lambda: read_vectors(path, {"ids": other}), r"other.txt has 2 lines, .*v.npy has 12 rows")
    _refused(lambda: read_vectors(path, {"ids": tmp_path / "no"}), "cannot be read")


def test_names_of_files_of_vectors(tmp_path: Path) -> None:
    (tmp_path / "folder.npy").mkdir()
    assert holds_vectors(tmp_path / "a.NPY") and holds_vectors(Path("a.parquet"))
    assert not holds_vectors(tmp_path / "folder.npy") and not holds_vectors(Path("a.jsonl"))


# -- parquet --------------------------------------------------------------------------------------------


def test_parquet_without_its_package_is_a_sentence(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "v.parquet").write_bytes(b"PAR1")
    _refused(lambda: read_vectors(tmp_path / "v.parquet"), "needs pyarrow: `pip install 'qshift")


@pytest.mark.parametrize("kind", ["list", "fixed", "large"])
def test_parquet_is_read(tmp_path: Path, kind: str) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    typed = {
        "list": arrow.list_(arrow.float32()),
        "fixed": arrow.list_(arrow.float32(), D),
        "large": arrow.large_list(arrow.float64()),
    }[kind]
    path = tmp_path / "v.parquet"
    numbers = arrow.array(rows().tolist(), typed)
    table = {"embedding": numbers, "ids": [f"n{row}" for row in range(N)], "size": list(range(N))}
    parquet.write_table(arrow.table(table), path, row_group_size=5)
    file = read_vectors(path)
    assert np.allclose(whole(file), rows(), atol=1e-7) and file.ids()[3] == "n3"
    for bad, said in (
        ([*rows().tolist()[:-1], [1.0]], "row 11: column 'embedding' has 1 numbers, row 0 has 4"),
        ([*rows().tolist()[:-1], None], "row 11: column 'embedding' is empty"),
        ([[1.0, None, 1.0, 1.0]] * N, "row 0: column 'embedding' lacks a number"),
        ([1.0] * N, "holds embedding, ids: expected the vectors"),
    ):
        values = arrow.array(bad)
        parquet.write_table(arrow.table({"embedding": values, "ids": table["ids"]}), path)
        _refused(lambda: read_vectors(path), said)
    labels = ["a", None] * 6
    parquet.write_table(arrow.table({"embedding": numbers, "labels": labels}), path)
    assert read_vectors(path).column("labels") == ("a", "") * 6
    table["ids"][4] = None
    parquet.write_table(arrow.table({"embedding": numbers, "ids": table["ids"]}), path)
    _refused(lambda: read_vectors(path), "row 4: column 'ids' is empty: fill it")
    path.write_bytes(path.read_bytes()[:-60])
    _refused(lambda: read_vectors(path), "cannot be read")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_archive_is_read_in_bounded_memory(tmp_path: Path, save: Callable[..., None]) -> None:
    """Less than half of the vectors, whichever way they lie."""
    drawn = np.random.default_rng(0).normal(size=(60_000, 256)).astype(np.float32)
    for order in "CF":
        save(tmp_path / "v.npz", vectors=np.array(drawn, order=order), ids=np.arange(60_000))
        tracemalloc.start()
        file = read_vectors(tmp_path / "v.npz")
        last = file.at(np.array([59_999, 3]))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert np.array_equal(last, drawn[[59_999, 3]]) and file.ids()[3] == "3"
        assert most < drawn.nbytes / 2, f"{most:,} bytes for {drawn.nbytes:,}"


PROBE = """
import sys
from pathlib import Path
from core.readers.vectors import read_vectors
found = sum(len(rows) for _, rows in read_vectors(Path(sys.argv[1])).blocks())
(peak,) = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(found, peak)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_a_parquet_is_read_in_bounded_memory(tmp_path: Path) -> None:
    """All rows are one group: what pyarrow allocates shows in the process alone."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    drawn = np.random.default_rng(0).standard_normal((60_000, 256), np.float32)
    peaks = []
    for count in (256, len(drawn)):
        numbers = arrow.FixedSizeListArray.from_arrays(arrow.array(drawn[:count].ravel()), 256)
        parquet.write_table(arrow.table({"vectors": numbers}), tmp_path / "v.parquet", row_group_size=count)
        said = subprocess.run(
            [sys.executable, "-c", PROBE, str(tmp_path / "v.parquet")], check=True, capture_output=True,
            text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        found, peak = map(int, said.stdout.split())
        assert found == count
        peaks.append(peak << 10)
    assert peaks[1] - peaks[0] < drawn.nbytes, f"{peaks} bytes for {drawn.nbytes:,}"
