"""The graph of two domains against loops, its flow against another solver, and what is chosen by it."""

from __future__ import annotations

import math
from dataclasses import asdict
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

from adapters.diffusion import FLOOR, Graph, cap, components, flow_diffuse
from adapters.offline.relation_flow import SparseGraph, diffuse, masses
from adapters.offline.relation_graph import Edges, SourceEdges, mutual_pairs, nearest_rows, relation_edges
from adapters.offline.relation_pairs import Pairs, cross_pairs, walk_pairs
from adapters.offline.relation_selection import agreement, ranked_together, select, selection_report

Array = NDArray[np.float64]
Whole = NDArray[np.int64]


def domains(
    seed: int, n_s: int = 30, n_t: int = 25, width: int = 5
) -> tuple[torch.Tensor, Whole, torch.Tensor]:
    """Three noisy classes; rows of any length, two of them alike and one of them zero."""
    draw = np.random.default_rng(seed)
    middle = 2 * draw.standard_normal((3, width))
    y = np.arange(n_s, dtype=np.int64) % 3
    source = middle[y] + draw.standard_normal((n_s, width))
    target = middle[draw.integers(3, size=n_t)] + draw.standard_normal((n_t, width)) + 0.5
    target[3], target[4] = target[2], 0
    return torch.from_numpy(source.astype(np.float32)), y, torch.from_numpy(target.astype(np.float32))


def dense(graph: Graph) -> Array:
    weights = np.zeros((len(graph), len(graph)))
    for row in range(len(graph)):
        for column, weight in zip(graph.neighbours[row], graph.weights[row]):
            if weight > 0:
                assert weights[row, column] == 0, "an edge is in the table once"
                weights[row, column] = weight
    return weights


def random_graph(seed: int, nodes: int, chance: float = 0.1) -> Graph:
    draw = np.random.default_rng(seed)
    first, second = (v.astype(np.int64) for v in np.triu_indices(nodes, 1))
    kept = draw.random(len(first)) < chance
    return Graph.of_edges(first[kept], second[kept], draw.uniform(0.1, 1, kept.sum()), nodes)


def pairs_of(pairs: Pairs) -> list[tuple[int, int, float]]:
    return sorted(zip(pairs.source.tolist(), pairs.target.tolist(), pairs.weights.tolist()))


# Edges.


@pytest.mark.parametrize("source_edges", ["topk", "all", "none"])
@pytest.mark.parametrize("k", [1, 4, 40])
def test_edges_equal_loops(k: int, source_edges: SourceEdges) -> None:
    source, y, target = domains(k)
    target = target[[0, 1, 2, *range(5, 25)]]  # without ties, of which any choice is right
    z = [v / v.norm() for v in torch.cat((source, target))]
    n_s, n = len(source), len(z)
    cosine = np.array([[float(a @ b) for b in z] for a in z])

    def near(i: int, others: list[int]) -> list[int]:
        return sorted((j for j in others if j != i), key=lambda j: -cosine[i, j])[:k]

    own, other = list(range(n_s)), list(range(n_s, n))
    expected = {}
    for i in range(n):
        for j in range(i + 1, n):
            if i < n_s <= j:
                joined = j in near(i, other) and i in near(j, own)
            elif i >= n_s:
                joined = j in near(i, other) and i in near(j, other)
            else:
                same = [m for m in own if y[m] == y[i]]
                joined = {
                    "topk": y[i] == y[j] and j in near(i, same) and i in near(j, same),
                    "all": bool(y[i] == y[j]),
                    "none": False,
                }[source_edges]
            if joined:
                expected[i, j] = min(max(cosine[i, j], FLOOR), 1)
    edges = relation_edges(source, y, target, k, source_edges)
    assert (edges.sources, edges.nodes) == (n_s, n)
    found = {}
    for i, j, w in zip(edges.first.tolist(), edges.second.tolist(), edges.cosines.tolist()):
        assert (min(i, j), max(i, j)) not in found, "once"
        found[min(i, j), max(i, j)] = min(max(w, FLOOR), 1)
    assert found.keys() == expected.keys()
    assert [found[e] for e in sorted(found)] == pytest.approx([expected[e] for e in sorted(found)], abs=1e-6)
    weights = dense(edges.graph())
    assert np.array_equal(weights, weights.T) and not weights.diagonal().any()
    assert weights[weights > 0].min() >= FLOOR and weights.max() <= 1
    if source_edges == "topk":
        assert edges.graph().degree.max() <= 2 * k


def test_duplicates_zero_rows_and_tiny_sets_do_no_harm() -> None:
    source, y, target = domains(0)
    edges = relation_edges(source, y, target, 3)
    graph = edges.graph()
    assert graph.degree.max() <= 6 and np.isfinite(graph.weights).all()
    dense(graph)
    alike = relation_edges(torch.ones(6, 4), np.zeros(6, np.int64), torch.ones(5, 4), 2).graph()
    assert alike.degree.max() <= 4 and not dense(alike).diagonal().any()
    single = relation_edges(source[:1], y[:1], target[:1], 10)
    assert (single.first.tolist(), single.second.tolist()) == ([0], [1])


def test_blocks_change_nothing() -> None:
    draw = torch.Generator().manual_seed(0)
    query, base = torch.randn(23, 6, generator=draw), torch.randn(40, 6, generator=draw)
    whole, cosines = nearest_rows(query, base, 5)
    parts, again = nearest_rows(query, base, 5, block=7)
    assert np.array_equal(np.sort(whole), np.sort(parts)) and np.allclose(np.sort(cosines), np.sort(again))
    for i in range(23):
        values = query[i] @ base.T
        assert set(whole[i].tolist()) == set(values.topk(5).indices.tolist())
    own, _ = nearest_rows(query, query, 30, skip_self=True, block=7)
    assert all(sorted(row[row >= 0]) == [j for j in range(23) if j != i] for i, row in enumerate(own))
    assert (nearest_rows(query, base[:0], 2)[0] == -1).all()


def test_only_returned_choices_are_mutual() -> None:
    lists, back = np.array([[0, 2], [1, -1]]), np.array([[0, 1], [-1, 0], [1, 0]])
    first, second, weight = mutual_pairs(lists, np.array([[0.1, 0.2], [0.3, 0.9]]), back)
    assert sorted(zip(first.tolist(), second.tolist(), weight.tolist())) == [(0, 0, 0.1), (0, 2, 0.2)]


def test_label_aware_weights() -> None:
    source, y, target = domains(1)
    edges = relation_edges(source, y, target, 4)
    labels = np.concatenate((y, np.arange(25) % 3))
    plain, aware = dense(edges.graph()), dense(edges.graph(labels, 0.05))
    differ = labels[:, None] != labels
    assert (plain[differ] > 0).any() and np.array_equal(aware, np.where(differ, 0.05 * plain, plain))


# Mass and flow.


def test_a_sparse_graph_pulls_as_its_matrix_does() -> None:
    graph = random_graph(8, 40, 0.05)
    x = np.random.default_rng(8).random(40)
    assert (graph.degree == 0).any() and SparseGraph.of(graph).pulled(x) == pytest.approx(dense(graph) @ x)
    lonely = Graph.of_edges(*np.zeros((2, 0), np.int64), np.zeros(0), 3)
    assert not SparseGraph.of(lonely).pulled(x[:3]).any()


def test_mass_by_hand() -> None:
    graph = Graph.of_edges(np.array([0, 0, 1, 2]), np.array([1, 2, 2, 3]), np.ones(4), 5)
    delta, capacity, load = masses(graph, 2, 0.5)
    # Degrees 2 2 3 1 0; half their mean is .8, so 4 were poured on a capacity of 4.
    assert capacity == pytest.approx(0.8) and load == pytest.approx(1.0)
    assert delta.tolist() == pytest.approx([1.4, 1.4, 0, 0, 0]), "beta = (2 + .5 * 3) / 5"
    assert masses(graph, 2, 0.5, 0.6)[0].sum() == pytest.approx(0.6 * 5 * capacity)
    lonely = Graph.of_edges(*np.zeros((2, 0), np.int64), np.zeros(0), 3)
    assert not masses(lonely, 1, 0.5)[0].any() and not diffuse(lonely, 1, 0.5).scores.any()


@pytest.mark.parametrize("beta", [0.5, 0.75, 0.95])
@pytest.mark.parametrize("nodes", [60, 200])
def test_the_flow_is_optimal_and_equals_that_of_a_quasi_newton_solver(nodes: int, beta: float) -> None:
    graph = random_graph(nodes, nodes, 6 / nodes)
    weights = dense(graph)
    lap = np.diag(weights.sum(1)) - weights
    found = diffuse(graph, nodes // 2, 0.5, beta=beta, eps=1e-10, sweeps=200_000)
    delta, capacity, _ = masses(graph, nodes // 2, 0.5, beta)
    labels = components(graph)
    delta = np.asarray(cap(delta, labels, capacity), np.float64)
    x, excess = found.flow.potentials, delta - lap @ found.flow.potentials - capacity
    assert max(-x.min(), excess.max(), np.abs(x * excess).max()) < 1e-6 and (x > 0).any()
    slope = capacity - delta

    def dual(v: Array) -> tuple[float, Array]:
        return 0.5 * v @ lap @ v + v @ slope, lap @ v + slope

    other = minimize(
        dual, np.zeros(nodes), jac=True, method="L-BFGS-B", bounds=[(0, None)] * nodes,
        options={"maxiter": 100_000, "maxfun": 200_000, "ftol": 1e-16, "gtol": 1e-10, "maxcor": 30},
    )  # fmt: skip
    assert dual(x)[0] <= other.fun + 1e-9
    assert np.abs(x - other.x).max() < 1e-4 * max(1, x.max())
    assert 0.5 * x @ lap @ x == pytest.approx(-dual(x)[0], abs=1e-6), "strong duality"
    full = np.abs(found.flow.mass - capacity) < 1e-8
    assert np.array_equal(full, x > 0)


def test_raising_mass_never_lowers_a_potential() -> None:
    graph = random_graph(5, 80)
    flows = [diffuse(graph, 40, 0.5, beta=beta, eps=1e-9, sweeps=50_000).flow for beta in (0.6, 0.7, 0.8)]
    for less, more in pairwise(flows):
        assert (more.potentials >= less.potentials - 1e-7).all()
        assert (more.potentials > 1e-7).sum() >= (less.potentials > 1e-7).sum()


def test_components_are_capped_one_by_one_and_dry_ones_are_never_chosen() -> None:
    def clique(nodes: list[int]) -> list[tuple[int, int]]:
        return [(a, b) for a in nodes for b in nodes if a < b]

    # Sources 0-3. Over-full: 0, 1, 2 with target 4; room: 3 with 5-8; dry: targets 9, 10, 11; 12 has no edge.
    pairs = np.array(clique([0, 1, 2, 4]) + clique([3, 5, 6, 7, 8]) + clique([9, 10, 11])).T
    graph = Graph.of_edges(pairs[0], pairs[1], np.ones(pairs.shape[1]), 13)
    found = diffuse(graph, 4, 0.5, eps=1e-9, sweeps=10_000)
    assert (found.components, found.capped, found.dry) == (4, 1, 2)
    delta, capacity, _ = masses(graph, 4, 0.5)
    assert found.flow.mass[[0, 1, 2, 4]].sum() == pytest.approx(0.95 * 4 * capacity)
    assert found.flow.mass[[3, 5, 6, 7, 8]].sum() == pytest.approx(delta[3])
    assert found.flow.residual <= 1e-9 * capacity
    assert found.scores[5:].tolist() == [0, 0, 0, 0]
    assert not select(found.scores, 1.0)[5:].any() and select(found.scores, 1.0)[:5].all()


def test_all_pairs_as_printed_do_not_fit_and_say_so() -> None:
    source, y, target = domains(2)
    graph = relation_edges(source, y, target, 4, "all").graph()
    delta, capacity, load = masses(graph, len(source), 0.5)
    assert load > 1
    as_printed = flow_diffuse(
        graph, delta * load / (delta.sum() / (capacity * len(graph))), capacity, sweeps=300
    )
    assert as_printed.sweeps == 300 and as_printed.residual > 0.01 * capacity
    scaled = diffuse(graph, len(source), 0.5, sweeps=50_000)
    assert scaled.load == load and scaled.flow.residual <= 1e-3 * capacity


def test_permuting_targets_permutes_scores() -> None:
    source, y, target = domains(3)
    target = target[[0, 1, 2, *range(5, 25)]]
    order = np.random.default_rng(0).permutation(len(target))
    plain, moved = (
        diffuse(relation_edges(source, y, t, 4).graph(), len(source), 0.5, eps=1e-9, sweeps=50_000).scores
        for t in (target, target[torch.from_numpy(order)])
    )
    assert moved == pytest.approx(plain[order], abs=1e-6) and np.unique(plain).size > 10


# Selection.


def test_selection_by_hand() -> None:
    score = np.array([0, 0.5, 2, 0.5, 1.5, 0, 0.5, 0.1])
    assert np.flatnonzero(select(score, 0.5)).tolist() == [1, 2, 3, 4], "ties in order of index"
    assert np.flatnonzero(select(score, 0.49)).tolist() == [1, 2, 4], "floor"
    assert np.flatnonzero(select(score, 1.0)).tolist() == [1, 2, 3, 4, 6, 7], "no more than were reached"
    assert not select(score[:0], 0.5).any() and not select(np.zeros(4), 0.5).any()
    assert select(np.ones(100), 0.29).sum() == 29, "0.29 * 100 is a float below 29"


@pytest.mark.parametrize("quota", [0.25, 0.5, 1.0])
def test_the_quota_holds_in_every_class(quota: float) -> None:
    draw = np.random.default_rng(4)
    score, pseudo = draw.random(60), draw.integers(4, size=60)
    score[pseudo == 1] += 1
    chosen = select(score, 0.5, pseudo, quota)
    expected: list[int] = []
    for place in np.argsort(-score, kind="stable").tolist():
        named = sum(pseudo[j] == pseudo[place] for j in expected)
        if len(expected) < 30 and named < math.floor(quota * (pseudo == pseudo[place]).sum()):
            expected.append(place)
    assert np.flatnonzero(chosen).tolist() == sorted(expected)
    assert np.array_equal(select(score, 0.5, pseudo, 1.0), select(score, 0.5))


def test_the_report_equals_a_loop() -> None:
    draw = np.random.default_rng(5)
    graph, chosen, correct = random_graph(6, 30, 0.2), draw.random(20) < 0.5, draw.random(20) < 0.6
    weights = dense(graph)
    told = selection_report(graph, 10, chosen, correct)
    right = [j for j in range(20) if correct[j]]
    hit = [j for j in right if chosen[j]]
    assert told.accuracy == len(right) / 20 and told.precision == len(hit) / chosen.sum()
    assert told.a1 == len(hit) / len(right)
    assert told.a0 == sum(not c and not r for c, r in zip(chosen, correct)) / (20 - len(right))
    assert told.f1 == pytest.approx(2 / (1 / told.precision + 1 / told.a1))
    good = sum(weights[10 + i, 10 + j] for i in right for j in right)
    bad = sum(weights[10 + i, 10 + j] for i in right for j in range(20) if j not in right)
    assert told.gamma == pytest.approx(good / bad)
    empty = asdict(selection_report(graph, 10, np.zeros(20, bool), np.ones(20, bool)))
    assert math.isnan(empty["precision"]) and math.isnan(empty["a0"]) and empty["gamma"] == math.inf


# Pairs.


def test_cross_pairs_are_edges_into_chosen_targets() -> None:
    source, y, target = domains(6)
    graph = relation_edges(source, y, target, 5).graph()
    chosen = np.arange(25) % 2 == 0
    weights = dense(graph)
    expected = [
        (i, j, weights[i, 30 + j]) for i in range(30) for j in range(25) if weights[i, 30 + j] and chosen[j]
    ]
    assert pairs_of(cross_pairs(graph, 30, chosen)) == sorted(expected) != []
    assert len(cross_pairs(graph, 30, np.zeros(25, bool))) == 0


def test_walks_straddle_the_domains_along_edges() -> None:
    source, y, target = domains(7)
    graph = relation_edges(source, y, target, 5).graph()
    weights = dense(graph)
    draw = np.random.default_rng(0)
    pairs = walk_pairs(graph, 30, np.arange(30), 4, 200, draw)
    assert len(pairs) > 50
    assert all(i < 30 and j < 25 and w == weights[i, 30 + j] > 0 for i, j, w in pairs_of(pairs))
    again = walk_pairs(graph, 30, np.arange(30), 4, 200, np.random.default_rng(0))
    assert pairs_of(again) == pairs_of(pairs)
    assert len(walk_pairs(graph, 30, np.zeros(0, np.int64), 4, 5, draw)) == 0


def test_a_walk_steps_in_proportion_to_weights() -> None:
    graph = Graph.of_edges(np.array([0, 0, 0]), np.array([1, 2, 3]), np.array([0.1, 0.3, 0.6]), 4)
    pairs = walk_pairs(graph, 1, np.array([0]), 1, 20_000, np.random.default_rng(1))
    assert np.bincount(pairs.target) / 20_000 == pytest.approx([0.1, 0.3, 0.6], abs=0.015)
    back = walk_pairs(graph, 1, np.array([0]), 2, 500, np.random.default_rng(1))
    assert len(back) == 1000, "the way back is a pair of both domains, too"
    lonely = Graph.of_edges(*np.zeros((2, 0), np.int64), np.zeros(0), 3)
    assert len(walk_pairs(lonely, 1, np.arange(3), 3, 10, np.random.default_rng(2))) == 0


def test_agreement_is_the_share_of_weight_to_the_own_label() -> None:
    first, second = np.array([0, 0, 1, 2, 3]), np.array([2, 3, 3, 3, 4])
    edges = Edges(first, second, np.array([0.5, 0.2, 0.4, 0.9, -1.0]), 2, 6)
    labels = np.array([0, 1, 0, 1, 1, 0])
    found = agreement(edges, labels)
    assert found.tolist() == pytest.approx([0.5 / 1.4, (0.4 + FLOOR) / (0.2 + 0.4 + 0.9 + FLOOR), 1.0, 0.0])


def test_ranks_together_leave_out_what_was_not_reached() -> None:
    flow, belief = np.array([0.0, 0.4, 1.5, 0.4]), np.array([0.9, 0.1, 0.3, 0.2])
    assert ranked_together(flow, belief).tolist() == [0, 2.5 + 1, 4 + 3, 2.5 + 2]
