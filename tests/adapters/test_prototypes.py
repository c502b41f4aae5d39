"""The closed forms of PSCA against loops over floats and independent searches."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from adapters.offline.prototypes import (
    leading_frame,
    membership,
    one_hot,
    polar,
    power_iteration,
    project,
    project_dual,
    project_primal,
    prototypes,
    ridge,
    row_weights,
)
from adapters.offline.pseudo_labels import centres, clusters
from adapters.semantics import reliability, squared_distances, unit_rows

Array = NDArray[np.float64]


def drawn(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_distances_and_unit_rows_equal_loops() -> None:
    x, o = drawn().standard_normal((4, 3)), drawn(1).standard_normal((2, 3))
    d = squared_distances(x, o)
    for i in range(4):
        for j in range(2):
            assert d[i, j] == pytest.approx(sum((float(x[i, k]) - float(o[j, k])) ** 2 for k in range(3)))
    assert squared_distances(x, x).min() >= 0
    x[1] = 0
    length = [math.sqrt(sum(float(v) ** 2 for v in row)) for row in unit_rows(x)]
    assert length == pytest.approx([1, 0, 1, 1])
    assert squared_distances(x[:0], o).shape == (0, 2)


# Membership.


def cost(r: Array, d: Array, named: int, alpha: float, sigma: float) -> float:
    total = sum(float(r[j]) ** sigma * float(d[j]) for j in range(len(d)))
    return total - (alpha * math.log(r[named]) if alpha else 0)


def searched(d: Array, named: int, alpha: float, sigma: float) -> Array:
    """Mirror descent with halving steps: shares no line of thought with the closed form."""
    r, step = np.full(len(d), 1 / len(d)), 0.5
    best = cost(r, d, named, alpha, sigma)
    for _ in range(5_000):
        slope = sigma * d * r ** (sigma - 1)
        slope[named] -= alpha / r[named]
        moved = r * np.exp(-step * (slope - slope.min()))
        moved = np.maximum(moved / moved.sum(), 1e-300)
        now = cost(moved, d, named, alpha, sigma)
        if now <= best:
            r, best, step = moved, now, min(step * 1.1, 10)
        else:
            step /= 2
    return r


@pytest.mark.parametrize("sigma", [2.0, 1.5, 3.0])
def test_membership_equals_a_search_over_the_simplex(sigma: float) -> None:
    draw = drawn(3)
    d = draw.uniform(0.1, 2, (6, 4))
    named, alpha = draw.integers(0, 4, 6), np.array([0, 0.01, 0.1, 0.5, 1, 20])
    r = membership(d, named, alpha, sigma)
    assert r.min() >= 0 and r.sum(1) == pytest.approx(np.ones(6))
    for i in range(6):
        found = searched(d[i], int(named[i]), float(alpha[i]), sigma)
        assert r[i] == pytest.approx(found, abs=1e-4)
        mine, theirs = (cost(v, d[i], int(named[i]), float(alpha[i]), sigma) for v in (r[i], found))
        assert mine <= theirs + 1e-9


def test_bisection_agrees_with_the_closed_form() -> None:
    draw = drawn(4)
    d, named, alpha = draw.uniform(0, 2, (200, 5)), draw.integers(0, 5, 200), draw.exponential(1, 200)
    near_two = membership(d, named, alpha, 2 + 1e-12)
    assert membership(d, named, alpha) == pytest.approx(near_two, abs=1e-8)


@pytest.mark.parametrize("sigma", [2.0, 2.5])
def test_membership_is_one_hot_exactly_where_reliability_reaches_the_distance(sigma: float) -> None:
    d = np.array([[0.5, 1.0, 2.0]] * 3)
    named = np.array([1, 1, 1])
    r = membership(d, named, np.array([sigma - 1e-6, sigma, np.inf]), sigma)
    assert r[0, 1] < 1 and r[0, 0] > 0
    assert np.array_equal(r[1:], one_hot(named[1:], 3))


def test_without_reliability_membership_is_fuzzy_c_means() -> None:
    d = drawn(5).uniform(0.1, 2, (7, 3))
    for sigma in (2.0, 3.0):
        r = membership(d, np.zeros(7, np.int64), np.zeros(7), sigma)
        for i in range(7):
            for j in range(3):
                ratio = sum((float(d[i, j]) / float(d[i, k])) ** (1 / (sigma - 1)) for k in range(3))
                assert r[i, j] == pytest.approx(1 / ratio)
    on_it = membership(np.array([[0.0, 1.0]]), np.array([1]), np.zeros(1))
    assert on_it == pytest.approx(np.array([[1.0, 0.0]])), "a sample on a prototype belongs to it"
    assert membership(d[:0], np.zeros(0, np.int64), np.zeros(0)).shape == (0, 3)


# Reliability and scores.


def test_reliability_by_hand_and_against_a_loop() -> None:
    scores = np.array([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.4, 0.4, 0.2]])
    d = np.array([[0.1, 0.6, 0.9], [0.8, 0.2, 0.9], [0.3, 0.3, 0.3]])
    told = reliability(scores, d, eps=1e-8)
    assert told.nearest.tolist() == [0, 1, 0] and told.named.tolist() == [0, 0, 0]
    assert told.weight == pytest.approx([0.5 / (0.5 + 1e-8), 0.5 * (1 - 0.2), 0.0])
    tie = reliability(np.array([[0.9, 0.1]]), np.array([[0.5, 0.5]]), 1e-8)
    assert tie.weight == pytest.approx([0.8e8])
    assert reliability(np.array([[0.9, 0.1]]), np.array([[0.5, 0.5]]), 1e-8, cap=3.0).weight[0] == 3
    draw = drawn(6)
    scores, d = draw.uniform(0, 1, (30, 4)), draw.uniform(0, 2, (30, 4))
    weight = reliability(scores, d).weight
    for i in range(30):
        p, near = [float(v) for v in scores[i]], int(d[i].argmin())
        first, second = sorted(p)[::-1][:2]
        close, next_close = sorted(float(v) for v in d[i])[:2]
        agree = p.index(first) == near
        apart, conflict = next_close - close + 1e-8, first * (1 - abs(p[near] - first))
        assert weight[i] == pytest.approx((first - second) / apart if agree else conflict)


def test_scores_equal_loops() -> None:
    draw = drawn(7)
    source, target, labels = draw.standard_normal((9, 3)), draw.standard_normal((8, 3)), np.arange(9) % 3
    found = centres(source, labels, target, 3)
    mean = [sum(float(v) for v in np.concatenate((source, target))[:, k]) / 17 for k in range(3)]

    def unit(row: Array) -> list[float]:
        moved = [float(row[k]) - mean[k] for k in range(3)]
        length = math.sqrt(sum(v * v for v in moved))
        return [v / length for v in moved]

    for c in range(3):
        members = [unit(source[i]) for i in range(9) if labels[i] == c]
        mid = [sum(m[k] for m in members) / len(members) for k in range(3)]
        length = math.sqrt(sum(v * v for v in mid))
        assert found.source[c] == pytest.approx([v / length for v in mid])
    for squared, share in ((True, None), (False, None), (True, 0.25)):
        pi = found.scores(target, 0.7, squared, share)
        for i in range(8):
            sides = []
            for centre in (found.source, found.target):
                d = [sum((unit(target[i])[k] - float(centre[c, k])) ** 2 for k in range(3)) for c in range(3)]
                e = [math.exp(-(v if squared else math.sqrt(v)) / 0.7) for v in d]
                sides.append([v / sum(e) for v in e])
            for c in range(3):
                a, b = sides[0][c], sides[1][c]
                assert pi[i, c] == pytest.approx(max(a, b) if share is None else 0.75 * a + 0.25 * b)


def test_clusters_are_lloyds_and_keep_an_empty_centre() -> None:
    points = np.array([[0.0, 0.0], [0.0, 1.0], [5.0, 0.0], [5.0, 2.0]])
    start = np.array([[1.0, 0.0], [4.0, 0.0], [50.0, 50.0]])
    assert clusters(points, start) == pytest.approx(np.array([[0, 0.5], [5, 1], [50, 50]]))
    many, start = drawn(8).standard_normal((60, 2)), drawn(9).standard_normal((4, 2))
    centre = [list(map(float, row)) for row in start]
    for _ in range(100):
        near = [min(range(4), key=lambda c: sum((p[k] - centre[c][k]) ** 2 for k in range(2))) for p in many]
        for c in range(4):
            members = [many[i] for i in range(60) if near[i] == c]
            if members:
                centre[c] = [sum(float(m[k]) for m in members) / len(members) for k in range(2)]
    assert clusters(many, start) == pytest.approx(np.array(centre))


# Projection.


def problem(n: int, width: int) -> tuple[Array, Array, Array, Array, Array]:
    draw = drawn(n)
    x, gap = draw.standard_normal((n, width)), draw.standard_normal(width)
    weights = draw.uniform(0, 1, (n, 3))
    rows = row_weights(draw.standard_normal((width, 4)))
    return x, weights, np.eye(3, 4), gap, rows


def projection_cost(p: Array, x: Array, w: Array, o: Array, gap: Array, rows: Array) -> float:
    total = 0.0
    for i in range(len(x)):
        for j in range(len(o)):
            total += float(w[i, j]) * float(((x[i] @ p - o[j]) ** 2).sum())
    total += 10 * float(((gap @ p) ** 2).sum())
    return total + sum(0.3 * float(rows[k]) * float((p[k] ** 2).sum()) for k in range(len(p)))


@pytest.mark.parametrize(("n", "width"), [(20, 5), (5, 20)])
def test_the_projection_is_where_the_cost_stands_still(n: int, width: int) -> None:
    x, w, o, gap, rows = problem(n, width)
    p = project(x, w, o, gap, rows, 10, 0.3)
    other = (project_primal, project_dual)[n > width](x, w, o, gap, rows, 10, 0.3)
    assert p == pytest.approx(other, abs=1e-10)
    step = 1e-5
    for k in range(width):
        for c in range(4):
            up, down = p.copy(), p.copy()
            up[k, c] += step
            down[k, c] -= step
            slope = projection_cost(up, x, w, o, gap, rows) - projection_cost(down, x, w, o, gap, rows)
            assert abs(slope / (2 * step)) < 1e-6


def test_reweighting_touches_the_row_norm_and_lies_above_it() -> None:
    draw = drawn(10)
    p, other = draw.standard_normal((6, 3)), draw.standard_normal((6, 3))
    g = row_weights(p)

    def norm(matrix: Array) -> float:
        return sum(math.sqrt(sum(float(v) ** 2 for v in row) + 1e-6) for row in matrix)

    def tangent(matrix: Array) -> float:
        longer = [float((matrix[i] ** 2).sum() - (p[i] ** 2).sum()) for i in range(6)]
        return norm(p) + sum(float(g[i]) * longer[i] for i in range(6))

    assert tangent(other) >= norm(other) and tangent(p) == norm(p)


def test_ridge_solves_its_normal_equations_in_both_forms() -> None:
    for n, width in ((30, 6), (6, 30)):
        x, h = drawn(n).standard_normal((n, width)), np.sign(drawn(1).standard_normal((n, 4)))
        phi = ridge(x, h, 0.1)
        assert x.T @ (x @ phi - h) + 0.1 * phi == pytest.approx(np.zeros((width, 4)), abs=1e-10)


# Orthonormal frames.


def test_no_rotation_beats_the_polar_factor() -> None:
    draw = drawn(11)
    m = draw.standard_normal((5, 3))
    best = polar(m)
    assert best.T @ best == pytest.approx(np.eye(3))
    reached = float((best * m).sum())
    assert reached == pytest.approx(float(np.sqrt(np.linalg.eigvalsh(m.T @ m)).sum()))
    for _ in range(300):
        assert float((np.linalg.qr(draw.standard_normal((5, 3)))[0] * m).sum()) <= reached


def test_prototypes_stay_after_a_projection_and_where_rank_leaves_them_open() -> None:
    x, w, o, gap, rows = problem(40, 6)
    turn = np.linalg.qr(drawn(12).standard_normal((4, 4)))[0]
    for frame in (o, o @ turn):
        moments = w.T @ x @ project(x, w, frame, gap, rows, 10, 0.3)
        assert prototypes(moments, frame) == pytest.approx(frame, abs=1e-10)
    p = project(x, w, o, gap, rows, 10, 0.3)
    turned = project(x, w, o @ turn, gap, rows, 10, 0.3)
    assert turned == pytest.approx(p @ turn)
    assert squared_distances(x @ turned, o @ turn) == pytest.approx(squared_distances(x @ p, o))
    assert prototypes(np.zeros((3, 4)), o) is o
    moved = prototypes(drawn(13).standard_normal((3, 4)), o)
    assert moved @ moved.T == pytest.approx(np.eye(3)) and not np.allclose(moved, o)


def test_power_iteration_never_rises_and_ends_where_no_small_turn_helps() -> None:
    draw = drawn(14)
    f, moments = draw.standard_normal((30, 6)), draw.standard_normal((6, 3)) * 10
    gram = f.T @ f
    frame = polar(draw.standard_normal((6, 3)))

    def loss(w: Array) -> float:
        return float(np.trace(w.T @ gram @ w) - 2 * np.trace(w.T @ moments))

    values = [loss(frame)]
    for _ in range(500):
        frame = power_iteration(gram, moments, frame, 1)
        values.append(loss(frame))
    assert max(np.diff(values)) <= 1e-9 and values[-1] < values[0]
    assert frame.T @ frame == pytest.approx(np.eye(3))
    for _ in range(200):
        near = polar(frame + 1e-3 * draw.standard_normal((6, 3)))
        assert loss(near) >= values[-1] - 1e-9


def test_a_square_frame_is_procrustes() -> None:
    draw = drawn(15)
    gram, moments = np.diag(draw.uniform(0, 3, 4)), draw.standard_normal((4, 4))
    assert np.array_equal(power_iteration(gram, moments, np.eye(4), 20), polar(moments))


def test_the_leading_frame_spans_what_the_features_hold() -> None:
    f = drawn(16).standard_normal((40, 3)) @ drawn(17).standard_normal((3, 8))
    frame = leading_frame(f, 5, drawn(0))
    assert frame.T @ frame == pytest.approx(np.eye(5))
    assert f @ frame @ frame.T == pytest.approx(f)
    assert np.array_equal(frame, leading_frame(f, 5, drawn(0)))
