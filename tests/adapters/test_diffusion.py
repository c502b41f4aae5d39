"""Flow diffusion against an active-set solver, its optimality conditions and dense matrices."""

import numpy as np
import pytest
from numpy.typing import NDArray

from adapters.diffusion import Flow, Graph, cap, components, flow_diffuse, mutual, nearest, scores
from core.errors import ConfigError

Matrix = NDArray[np.float64]


def drawn(seed: int, nodes: int = 60, chance: float = 0.1) -> tuple[Graph, Matrix]:
    """A random graph as a table and as a dense matrix W; some nodes may have no edges."""
    generator = np.random.default_rng(seed)
    first, second = np.triu_indices(nodes, 1)
    kept = generator.random(len(first)) < chance
    first, second = first[kept].astype(np.int64), second[kept].astype(np.int64)
    weights = generator.uniform(0.1, 1, len(first))
    dense = np.zeros((nodes, nodes))
    dense[first, second] = dense[second, first] = weights
    return Graph.of_edges(first, second, weights, nodes), dense


def poured(graph: Graph, beta: float, seed: int) -> Matrix:
    """beta * n mass on the first half of the nodes, so that T = 1 has room; capped per component."""
    delta = np.zeros(len(graph))
    half = len(graph) // 2
    delta[:half] = np.random.default_rng(seed).random(half)
    delta *= beta * len(graph) / delta.sum()
    return np.asarray(cap(delta, components(graph), 1.0), np.float64)


def laplacian(dense: Matrix) -> Matrix:
    return np.diag(dense.sum(1)) - dense


def active_set(dense: Matrix, delta: Matrix) -> Matrix:
    """Full nodes by trial: solve for equality on them, drop negative potentials, add overfull nodes."""
    lap, full = laplacian(dense), delta > 1
    for _ in range(200):
        x = np.zeros(len(delta))
        inside = np.flatnonzero(full)
        x[inside] = np.linalg.solve(lap[np.ix_(inside, inside)], (delta - 1)[inside])
        after = (x > 0) | (~full & (delta - lap @ x > 1 + 1e-12))
        if (after == full).all():
            return x
        full = after
    raise AssertionError("the active set did not settle")


def violation(dense: Matrix, delta: Matrix, x: Matrix) -> float:
    excess = delta - laplacian(dense) @ x - 1
    return float(max(excess.max(), np.abs(x * excess).max(), -x.min()))


@pytest.mark.parametrize("beta", [0.5, 0.75, 0.9])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_agrees_with_an_active_set_and_is_optimal(seed: int, beta: float) -> None:
    graph, dense = drawn(seed)
    delta = poured(graph, beta, seed)
    expected = active_set(dense, delta)
    flow = flow_diffuse(graph, delta, 1.0, sweeps=50000, eps=1e-11)
    assert np.abs(flow.potentials - expected).max() < 1e-6
    assert violation(dense, delta, np.asarray(flow.potentials, np.float64)) < 1e-6
    assert violation(dense, delta, expected) < 1e-9
    assert (expected > 0).any()
    # Strong duality: the energy of the flow is minus the minimum of the dual.
    energy = 0.5 * flow.potentials @ laplacian(dense) @ flow.potentials
    assert energy == pytest.approx(-(energy + flow.potentials @ (1 - delta)), abs=1e-6)


def test_single_precision_is_within_its_own() -> None:
    graph, dense = drawn(3)
    delta = poured(graph, 0.75, 3)
    single = Graph(graph.neighbours, graph.weights.astype(np.float32))
    flow = flow_diffuse(single, delta.astype(np.float32), 1.0, eps=1e-5)
    assert flow.potentials.dtype == flow.mass.dtype == np.float32
    assert violation(dense, delta, flow.potentials.astype(np.float64)) < 1e-4


def test_mass_is_kept_and_potentials_rise_from_zero() -> None:
    graph, dense = drawn(4)
    delta = poured(graph, 0.9, 4)
    before = np.zeros(len(graph))
    for sweeps in range(12):
        flow = flow_diffuse(graph, delta, 1.0, sweeps=sweeps, eps=0.0)
        assert flow.sweeps == sweeps
        assert flow.mass.sum() == pytest.approx(delta.sum(), rel=1e-12)
        assert np.abs(flow.mass - (delta - laplacian(dense) @ flow.potentials)).max() < 1e-12
        assert (flow.potentials >= before).all()
        assert (flow.mass[flow.potentials > 0] >= 1 - 1e-12).all()
        before = np.asarray(flow.potentials, np.float64)


@pytest.mark.parametrize("seed", [5, 6])
def test_any_start_reaches_the_same_end(seed: int) -> None:
    graph, dense = drawn(seed)
    delta = poured(graph, 0.75, seed)
    start = 5 * np.random.default_rng(seed).random(len(graph))
    warm = flow_diffuse(graph, delta, 1.0, sweeps=50000, eps=1e-11, start=start)
    assert np.abs(warm.potentials - active_set(dense, delta)).max() < 1e-6


def test_a_bipartite_graph_does_not_oscillate() -> None:
    ring = np.arange(8, dtype=np.int64)
    graph = Graph.of_edges(ring, (ring + 1) % 8, np.ones(8), 8)
    delta = np.array([5.0, 0, 0, 0, 0, 0, 0, 0])
    flow = flow_diffuse(graph, delta, 1.0, eps=1e-10, start=np.array([9.0, 0] * 4))
    assert flow.residual <= 1e-10
    # By symmetry the five nodes around the source fill: x = 3, 1, 0, ... solves the chain.
    assert flow.potentials == pytest.approx([3, 1, 0, 0, 0, 0, 0, 1], abs=1e-8)
    assert flow.mass == pytest.approx([1, 1, 1, 0, 0, 0, 1, 1], abs=1e-8)


def test_scale_and_order() -> None:
    graph, _ = drawn(7)
    delta = poured(graph, 0.75, 7)
    x = flow_diffuse(graph, delta, 1.0, eps=1e-10).potentials
    third = flow_diffuse(Graph(graph.neighbours, 3 * graph.weights), delta, 1.0, eps=1e-10).potentials
    double = flow_diffuse(graph, 2 * delta, 2.0, eps=1e-10).potentials
    assert np.abs(3 * third - x).max() < 1e-8 and np.abs(double - 2 * x).max() < 1e-8

    order = np.random.default_rng(7).permutation(len(graph))
    places = np.argsort(order)
    moved = Graph(places[graph.neighbours[order]], graph.weights[order])
    assert np.abs(flow_diffuse(moved, delta[order], 1.0, eps=1e-10).potentials - x[order]).max() < 1e-8

    more = flow_diffuse(graph, delta * 1.02, 1.0, eps=1e-10).potentials
    assert (more >= x - 1e-8).all() and (more > x + 1e-6).any()


def test_components_and_cap() -> None:
    edges = np.array([[5, 3], [3, 1], [1, 7], [2, 6], [8, 9]], np.int64).T
    graph = Graph.of_edges(edges[0], edges[1], np.ones(5), 10)
    labels = components(graph)
    assert labels.tolist() == [0, 1, 2, 1, 4, 1, 2, 1, 8, 8]
    delta = np.array([3.0, 1, 9, 0.5, 0, 0, 1, 0.5, 0, 0])
    capped = cap(delta, labels, 1.0)
    assert capped.tolist() == pytest.approx([0.95, 1, 1.71, 0.5, 0, 0, 0.19, 0.5, 0, 0])
    flow = flow_diffuse(graph, capped, 1.0, eps=1e-9)
    assert flow.residual <= 1e-9
    assert flow.mass[[8, 9]].tolist() == flow.potentials[[8, 9]].tolist() == [0, 0]
    assert flow.mass[0] == 0.95 and flow.potentials[0] == 0


def test_what_does_not_fit_is_reported_and_does_not_spin() -> None:
    pair = Graph.of_edges(np.array([0]), np.array([1]), np.ones(1), 2)
    flow = flow_diffuse(pair, np.array([3.0, 0]), 1.0, sweeps=50)
    assert flow.sweeps == 50 and flow.residual >= 0.5 and np.isfinite(flow.potentials).all()
    with pytest.raises(ConfigError, match="capacity"):
        flow_diffuse(pair, np.zeros(2), 0.0)


def test_nothing_and_no_edges() -> None:
    empty = Graph.of_edges(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), 0)
    assert flow_diffuse(empty, np.zeros(0), 1.0).residual == 0 and not len(components(empty))
    loose = Graph.of_edges(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), 3)
    flow = flow_diffuse(loose, np.array([0.5, 0, 0]), 1.0, start=np.ones(3))
    assert flow.mass.tolist() == [0.5, 0, 0] and flow.potentials.tolist() == [0, 0, 0]
    assert components(loose).tolist() == [0, 1, 2]


@pytest.mark.parametrize("k", [1, 3, 20])
def test_mutual_neighbours_against_a_loop(k: int) -> None:
    similarity = np.random.default_rng(k).uniform(-1, 1, (9, 12))
    similarity[2] = -np.inf
    out, back = nearest(similarity, k), nearest(similarity.T, k)
    weights = mutual(out, back, similarity)
    assert out.shape == weights.shape == (9, k)
    for row in range(9):
        expected = {}
        for column in range(12):
            value = similarity[row, column]
            first = (similarity[row] > value).sum() < k
            second = (similarity[:, column] > value).sum() < k
            if value > -np.inf and first and second:
                expected[column] = min(max(value, 1e-3), 1.0)
        found = {int(c): float(w) for c, w in zip(out[row], weights[row], strict=True) if w > 0}
        assert found == expected


def test_ties_never_give_more_than_k() -> None:
    similarity = np.ones((6, 6))
    np.fill_diagonal(similarity, -np.inf)
    lists = nearest(similarity, 2)
    assert all(len(set(row)) == 2 and place not in row for place, row in enumerate(lists.tolist()))


def test_scores_rank_full_nodes_above_others() -> None:
    flow = Flow(np.array([0, 0, 0.5, 2, 4]), np.array([0, 0.25, 1, 1, 1]), 0.0, 1)
    assert scores(flow, 1.0, 2.0).tolist() == [0, 0.25, 1.25, 2, 2]
    assert scores(Flow(np.zeros(2), np.array([0, 1.5]), 0.5, 0), 1.0, 0.0).tolist() == [0, 1]
