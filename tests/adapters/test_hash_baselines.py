"""SH, DSH and SGH against loops that restate their formulas, and what holds for all three."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from adapters.offline import density, graph_hash, spectral
from core.errors import ConfigError

Array = NDArray[np.float64]
Fit = Callable[[Any, int, int], Any]
FITS: dict[str, Fit] = {"sh": spectral.fit, "dsh": density.fit, "sgh": graph_hash.fit}
every = pytest.mark.parametrize("fit", FITS.values(), ids=FITS)


def features(seed: int = 0, count: int = 120, width: int = 6) -> Array:
    draw = np.random.default_rng(seed)
    return draw.standard_normal((count, width)) * 1.4 ** -np.arange(width) + 2


def clumps(seed: int = 0, each: int = 20) -> tuple[Array, NDArray[np.int64]]:
    """Five tight groups."""
    draw = np.random.default_rng(seed)
    middle = draw.standard_normal((5, 8))
    y = np.arange(5 * each) % 5
    return middle[y] + 0.03 * draw.standard_normal((len(y), 8)), y


# All three.


@every
def test_what_holds_for_every_one(fit: Fit) -> None:
    x = features()
    before = x.copy()
    found = fit(x, 16, 3)  # more bits than features
    relaxed = found.relaxed(x)
    assert relaxed.shape == (120, 16) and np.isfinite(relaxed).all()
    assert np.array_equal(x, before), "nothing given is written to"
    np.random.seed(0)
    assert np.array_equal(fit(x, 16, 3).relaxed(x), relaxed)
    seedless = np.array_equal(fit(x, 16, 4).relaxed(x), relaxed)
    assert seedless == (fit is spectral.fit), "seeds matter, but to SH"
    assert np.concatenate([found.relaxed(row[None]) for row in x]) == pytest.approx(relaxed, abs=1e-9)
    assert found.relaxed(x[:0]).shape == (0, 16)
    assert found.relaxed(x.astype(np.float32)) == pytest.approx(relaxed, abs=1e-3)
    shares = (relaxed >= 0).mean(0)
    assert ((shares > 0) & (shares < 1)).all(), "every bit tells something"


@every
def test_neighbours_share_bits_and_strangers_do_not(fit: Fit) -> None:
    x, y = clumps()
    bits = fit(x - x.mean(0), 24, 0).relaxed(x - x.mean(0)) >= 0
    apart = (bits[:, None] != bits).mean(2)
    same = y[:, None] == y
    assert apart[same].mean() < 0.15 < 0.3 < apart[~same].mean()


@every
def test_input_that_does_not_fit_is_refused(fit: Fit) -> None:
    x = features()
    holed = x.copy()
    holed[2, 1] = np.inf
    for given, told in (
        ((holed, 8, 0), "features: finite features expected, got NaN or infinity in 1 of 120 rows"),
        ((x[0], 8, 0), r"a matrix \[n, D\] expected"),
        ((x, 0, 0), "at least one bit expected, got 0"),
        ((x[:0], 8, 0), "rows that differ expected, got 0 equal ones"),
        ((np.full((30, 4), 0.1), 8, 0), "rows that differ expected, got 30 equal ones"),
    ):
        with pytest.raises(ConfigError, match=told):
            fit(*given)
    found = fit(x, 8, 0)
    with pytest.raises(ConfigError, match="width 6 expected, got 5"):
        found.relaxed(x[:, :5])
    with pytest.raises(ConfigError, match="finite features expected"):
        found.relaxed(holed)


# Spectral hashing.


@pytest.mark.parametrize("lengths", [(4.0, 2.0, 1.0), (3.0, 3.0), (1.0,), (5.0, 0.0, 0.7, 1e-9)])
def test_modes_are_the_smoothest_eigenfunctions(lengths: tuple[float, ...]) -> None:
    bits, eps = 7, 0.3
    table = [
        (1 - math.exp(-(eps**2) / 2 * (k * math.pi / length) ** 2), component, k)
        for component, length in enumerate(lengths)
        if length > 1e-6
        for k in range(1, bits + 1)
    ]
    component, mode = spectral.modes(np.array(lengths), bits)
    chosen = sorted(zip(component.tolist(), mode.tolist()))
    assert len(set(chosen)) == bits
    of = {(c, k): value for value, c, k in table}
    assert sorted(of[one] for one in chosen) == pytest.approx(sorted(of.values())[:bits])
    assert all((c, k - 1) in chosen for c, k in chosen if k > 1)


@pytest.mark.parametrize("bits", [3, 9])
def test_bits_of_sh_are_the_signs_of_the_papers_sines(bits: int) -> None:
    x = features(4)
    values, vectors = np.linalg.eigh(np.cov(x.T))
    z = (x - x.mean(0)) @ vectors[:, np.argsort(-values)][:, :bits]
    found = spectral.fit(x, bits, 0)
    component, mode = spectral.modes(np.ptp(z, axis=0), bits)
    for bit, (c, k) in enumerate(zip(component, mode)):
        told = []
        for along in (z[:, c], -z[:, c]):  # an axis has no sign of its own
            share = (along - along.min()) / (along.max() - along.min())
            told.append(np.array([math.sin(math.pi / 2 + k * math.pi * s) for s in share]))
        assert min(np.abs(found.relaxed(x)[:, bit] - one).max() for one in told) < 1e-9
    if bits == 9:
        assert len(set(component)) < 6 and mode.max() > 1, "long components several times, short ones not"


def test_a_mode_of_sh_changes_its_sign_as_often_as_it_says() -> None:
    line = np.linspace(-1, 3, 1001)[:, None] * np.array([0.6, 0.8])
    found = spectral.fit(line, 5, 0)
    changes = np.count_nonzero(np.diff(found.relaxed(line) >= 0, axis=0), axis=0)
    assert changes.tolist() == [1, 2, 3, 4, 5], "all bits from the only component there is"


# Density sensitive hashing.


def slow_groups(rows: Array, count: int, seed: int) -> tuple[Array, Array]:
    start = np.random.default_rng(seed).choice(len(rows), count, replace=False)
    centres = [rows[i] for i in start]
    members: list[list[int]] = []
    for _ in range(3):
        members = [[] for _ in centres]
        for i, row in enumerate(rows):
            distance = [float(((row - centre) ** 2).sum()) for centre in centres]
            members[distance.index(min(distance))].append(i)
        members = [group for group in members if group]
        centres = [sum(rows[i] for i in group) / len(group) for group in members]
    return np.array(centres), np.array([len(group) / len(rows) for group in members])


def test_groups_are_those_of_three_rounds_of_k_means() -> None:
    x = features(1)
    for got, expected in zip(density.groups(x, 15, np.random.default_rng(2)), slow_groups(x, 15, 2)):
        assert got == pytest.approx(expected)
    doubled = np.repeat(x[:6], 20, axis=0)
    centres, share = density.groups(doubled, 30, np.random.default_rng(0))
    assert len(centres) <= 6 and share.min() > 0 and share.sum() == pytest.approx(1)


def test_groups_are_adjacent_if_either_is_near_to_the_other() -> None:
    centres = features(2, 12)
    expected = set()
    for i in range(12):
        order = sorted((float(((centres[i] - centres[j]) ** 2).sum()), j) for j in range(12) if j != i)
        expected |= {(min(i, j), max(i, j)) for _, j in order[:3]}
    one, other = density.adjacent(centres, 3)
    assert sorted(zip(one.tolist(), other.tolist())) == sorted(expected)
    assert [pair.tolist() for pair in density.adjacent(centres[:2], 3)] == [[0], [1]]


def test_entropy_is_that_of_a_coin() -> None:
    share = np.array([0.0, 0.1, 0.5, 0.9, 1.0])
    expected = [-sum(p * math.log(p) for p in (s, 1 - s) if p > 0) for s in share.tolist()]
    assert density.entropy(share) == pytest.approx(expected)


def test_planes_lie_midway_between_groups_and_the_most_even_ones_are_taken() -> None:
    x, bits = features(3), 6
    centres, share = slow_groups(x, 9, 1)
    planes = []
    for i, j in zip(*density.adjacent(centres, 3)):
        w = centres[i] - centres[j]
        t = float(w @ (centres[i] + centres[j])) / 2
        above = sum(float(p) for c, p in zip(centres, share) if c @ w >= t)
        planes.append((min(above, 1 - above), w, t))
    found = density.fit(x, bits, 1)
    evenness = []
    for weight, threshold in zip(found.weight.T, found.threshold):
        match = [p for p, w, t in planes if np.allclose(w, weight) and np.isclose(t, threshold)]
        assert len(match) == 1, "a plane midway between two adjacent groups"
        evenness += match
    assert evenness == pytest.approx(sorted((p for p, _, _ in planes), reverse=True)[:bits])
    assert found.relaxed(x) == pytest.approx(x @ found.weight - found.threshold)


def test_dsh_needs_rows_and_groups_for_its_planes() -> None:
    x = features()
    with pytest.raises(ConfigError, match="at least 24 rows for 16 bits expected, got 23"):
        density.fit(x[:23], 16, 0)
    assert density.fit(x[:24], 16, 0).weight.shape == (6, 16)
    with pytest.raises(ConfigError, match="16 planes between groups expected, got 3: many rows are equal"):
        density.fit(np.repeat(x[:3], 20, axis=0), 16, 0)


# Scalable graph hashing.


def test_the_transformed_features_stand_for_the_similarity() -> None:
    x = features(5, 40) - 2
    p, q = graph_hash.transformed(x)
    rho = 2 * max(float(row @ row) for row in x)
    z = np.linspace(-1, 1, 2001)
    slope, level = (math.e**2 - 1) / (2 * math.e), (math.e**2 + 1) / (2 * math.e)
    worst = float(np.abs(np.exp(z) - slope * z - level).max())
    for i in range(40):
        for j in range(40):
            faded = math.exp(-(float(x[i] @ x[i]) + float(x[j] @ x[j])) / rho)
            straight = 2 * faded * (slope * 2 * float(x[i] @ x[j]) / rho + level) - 1
            assert float(p[i] @ q[j]) == pytest.approx(straight, abs=1e-12)
            true = 2 * math.exp(-float(((x[i] - x[j]) ** 2).sum()) / rho) - 1
            assert abs(straight - true) <= 2 * faded * worst + 1e-5


def test_every_bit_of_sgh_is_a_leading_eigenvector_of_what_is_left() -> None:
    draw = np.random.default_rng(6)
    kernel, x = draw.standard_normal((50, 7)), features(6, 50) - 2
    p, q = graph_hash.transformed(x)
    w = graph_hash.sequential(kernel, p, q, 10)
    z = kernel.T @ kernel + 1e-6 * np.eye(7)
    left = 10 * kernel.T @ p @ q.T @ kernel
    for bit in range(10):
        largest = float(np.linalg.eigvals(np.linalg.solve(z, left)).real.max())
        assert left @ w[:, bit] == pytest.approx(largest * z @ w[:, bit], abs=1e-6 * np.abs(left).max())
        assert float(w[:, bit] @ z @ w[:, bit]) == pytest.approx(1)
        told = kernel.T @ np.where(kernel @ w[:, bit] >= 0, 1, -1)
        left = left - np.outer(told, told)


def test_kernel_values_of_sgh_are_those_of_a_loop() -> None:
    x = features(7, 400)
    found = graph_hash.fit(x, 8, 2)
    assert found.bases.shape == (300, 6)
    assert all((x == base).all(1).any() for base in found.bases)
    assert len(np.unique(found.bases, axis=0)) == 300
    squares = np.array([((found.bases - row) ** 2).sum(1) for row in x])
    assert found.spread == pytest.approx(squares.mean())
    values = np.exp(-squares / (2 * squares.mean()))
    centred = values - values.mean(0)
    assert found.kernel(x) == pytest.approx(centred)
    assert found.relaxed(x) == pytest.approx(centred @ found.weight)
    p, q = graph_hash.transformed(x)
    similar, z = 8 * centred.T @ p @ q.T @ centred, centred.T @ centred + 1e-6 * np.eye(300)
    largest = float(np.linalg.eigvals(np.linalg.solve(z, similar)).real.max())
    assert float(found.weight[:, 0] @ similar @ found.weight[:, 0]) == pytest.approx(largest)


def test_codes_of_sgh_follow_the_similarity_of_all_pairs() -> None:
    x = features(8, 200) - 2
    p, q = graph_hash.transformed(x)
    away = ~np.eye(200, dtype=bool)

    def follows(relaxed: Array) -> float:
        codes = np.where(relaxed >= 0, 1.0, -1.0)
        return float(np.corrcoef((codes @ codes.T)[away], (p @ q.T)[away])[0, 1])

    random = follows(x @ np.random.default_rng(0).standard_normal((6, 32)))
    assert follows(graph_hash.fit(x, 32, 0).relaxed(x)) > random + 0.03


def test_sgh_has_no_more_bits_than_bases() -> None:
    x = features(0, 40)
    with pytest.raises(ConfigError, match="at most 40 bits for 40 rows expected, got 41: LSH gives more"):
        graph_hash.fit(x, 41, 0)
    with pytest.raises(ConfigError, match="at most 300 bits"):
        graph_hash.fit(features(0, 500), 301, 0)
    assert graph_hash.fit(x, 40, 0).weight.shape == (40, 40)
