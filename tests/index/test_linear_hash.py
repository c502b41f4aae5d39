"""LSH and PCAH against NumPy and faiss, and once on real digits."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from core.errors import ConfigError
from index.codes import pack
from index.linear_hash import LinearHash, lsh, pcah
from monitoring.hashing import map_all, radius_counts
from qshift.benchmarks.hashing.splits import make_splits

Array = NDArray[np.float32]
Fit = Callable[[Any, int, int], LinearHash]
FITS: tuple[Fit, ...] = (lsh, pcah)
DATA = Path(os.environ.get("QSHIFT_DATA", Path(__file__).parents[3] / "shared/data"))
DIGITS = DATA / "jda/mnist_usps_256.npz"


def features(seed: int = 0, count: int = 200, width: int = 12) -> Array:
    """Rows off the origin whose directions have clearly different variances."""
    draw = np.random.default_rng(seed)
    turn = np.linalg.qr(draw.standard_normal((width, width)))[0]
    spread = 1.3 ** -np.arange(width)
    rows = (draw.standard_normal((count, width)) * spread) @ turn + 3 * draw.standard_normal(width)
    return rows.astype(np.float32)


def loss(relaxed: NDArray[Any]) -> float:
    return float(((np.where(relaxed >= 0, 1, -1) - relaxed) ** 2).sum())


def test_pcah_takes_the_leading_principal_components() -> None:
    x = features()
    centred = x.astype(float) - x.mean(0, dtype=float)
    axes = np.linalg.svd(centred)[2][:5].T
    found = pcah(x, 5, 0)
    sign = np.sign((found.weight * axes).sum(0))
    assert found.weight == pytest.approx(axes * sign, abs=1e-4)
    assert found.relaxed(x) == pytest.approx(centred @ axes * sign, abs=1e-4)


@pytest.mark.parametrize("bits", [8, 16, 40])
def test_lsh_is_that_of_faiss_on_centred_rows(bits: int) -> None:
    x = features()
    theirs = faiss.IndexLSH(12, bits, True, False)  # its rotation has the seed 5
    theirs.train(x - x.mean(0))
    found = lsh(x, bits, 5)
    assert np.array_equal(pack(found.relaxed(x)), theirs.sa_encode(x - x.mean(0)))
    short = found.weight.T @ found.weight if bits <= 12 else found.weight @ found.weight.T
    assert short == pytest.approx(np.eye(len(short)), abs=1e-5)


def test_lsh_distances_are_angles() -> None:
    x = features(3)
    centred = x - x.mean(0)
    bits = lsh(x, 1024, 1).relaxed(x) >= 0
    for i, j in ((0, 1), (2, 3), (4, 90)):
        cosine = centred[i] @ centred[j] / np.linalg.norm(centred[i]) / np.linalg.norm(centred[j])
        assert (bits[i] != bits[j]).mean() == pytest.approx(np.arccos(cosine) / np.pi, abs=0.06)


@pytest.mark.parametrize("fit", FITS)
def test_what_holds_for_every_one(fit: Fit) -> None:
    x = features()
    before = x.copy()
    found = fit(x, 8, 3)
    relaxed = found.relaxed(x)
    assert relaxed.shape == (200, 8) and relaxed.dtype == np.float32
    assert np.array_equal(x, before), "nothing given is written to"
    assert np.array_equal(fit(x, 8, 3).relaxed(x), relaxed)
    assert np.array_equal(fit(x, 8, 4).relaxed(x), relaxed) == (fit is pcah), "seeds matter, but to PCAH"
    assert np.concatenate([found.relaxed(row[None]) for row in x]) == pytest.approx(relaxed, abs=1e-5)
    assert found.relaxed(x.mean(0)[None]) == pytest.approx(np.zeros((1, 8)), abs=1e-4)
    assert found.relaxed(x[:0]).shape == (0, 8)
    moved = fit(x + 7, 8, 3).relaxed(x + 7)
    assert ((moved >= 0) == (relaxed >= 0)).mean() > 0.99, "planes go through the mean"


@pytest.mark.parametrize("fit", FITS)
def test_input_that_does_not_fit_is_refused(fit: Fit) -> None:
    x = features()
    holed = x.copy()
    holed[2, 1] = np.nan
    for given, told in (
        ((holed, 8, 0), "finite values expected"),
        ((x[0], 8, 0), r"a matrix \[n, D\] expected, got shape \(12,\)"),
        ((x, 0, 0), "at least one bit and one row expected, got 0 bits and 200 rows"),
        ((x[:0], 8, 0), "got 8 bits and 0 rows"),
    ):
        with pytest.raises(ConfigError, match=told):
            fit(*given)
    with pytest.raises(ConfigError, match="width 12 expected, got 5"):
        fit(x, 8, 0).relaxed(x[:, :5])


def test_more_bits_than_features_or_rows_are_refused_where_they_cannot_be() -> None:
    x = features()
    with pytest.raises(ConfigError, match=r"PCAH: at most 12 bits .* got 13: LSH, SH, DSH and SGH"):
        pcah(x, 13, 0)
    with pytest.raises(ConfigError, match="PCAH: at least 9 rows expected, got 8"):
        pcah(x[:8], 9, 0)
    assert np.isfinite(pcah(x, 12, 0).relaxed(x)).all()
    assert np.isfinite(pcah(x[:9], 9, 0).relaxed(x)).all(), "as many rows as bits are enough"
    assert lsh(x[:2], 300, 0).relaxed(x).shape == (200, 300)


@pytest.mark.skipif(not DIGITS.exists(), reason="the digits of JDA are not there")
def test_digits_give_the_published_order_of_magnitude() -> None:
    with np.load(DIGITS) as stored:
        source, y_s, target, y_t = (stored[n] for n in ("mnist_x", "mnist_y", "usps_x", "usps_y"))
    source, target = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (source, target))
    values: dict[str, list[float]] = {"lsh": [], "pcah": []}
    for seed in range(3):
        splits = make_splits(len(source), len(target), seed, "target10")
        rows = np.concatenate((source, target[splits.target_train]))
        for name, fit in (("lsh", lsh), ("pcah", pcah)):
            found = fit(rows, 32, seed)
            codes = (pack(found.relaxed(x)) for x in (target[splits.query], source))
            counts = radius_counts(*codes, y_t[splits.query], y_s, 32)
            values[name].append(100 * map_all(counts)[0])
    means = {name: float(np.mean(found)) for name, found in values.items()}
    assert means["pcah"] < means["lsh"] < 30, "ITQ gives 34"
