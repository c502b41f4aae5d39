"""The window of reliability weights against dense graphs, cold solutions and a stream told twice."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapters.diffusion import components
from adapters.online.reliability import FlowReliability, exact
from core.errors import ArtifactError, ConfigError

WIDTH, KINDS = 16, 6
ANCHORS, WINDOW, K = 40, 24, 4


def unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def known(count: int, seed: int) -> NDArray[np.float32]:
    """Rows around fixed centres, the same ones for every seed."""
    generator = np.random.default_rng(seed)
    centres = unit(np.random.default_rng(99).standard_normal((KINDS, WIDTH)))
    noise = 0.12 * generator.standard_normal((count, WIDTH))
    return unit(centres[generator.integers(0, KINDS, count)] + noise)


def far(count: int, seed: int) -> NDArray[np.float32]:
    return unit(np.random.default_rng(seed).standard_normal((count, WIDTH)))


def made(**values: float) -> FlowReliability:
    settings = {"window": WINDOW, "neighbours": K, "sweeps": 60} | values
    return FlowReliability(known(ANCHORS, 0), **settings)  # type: ignore[arg-type]


def names(batch: int, count: int) -> tuple[str, ...]:
    return tuple(f"queries/0/{batch}-{row}" for row in range(count))


def asked(flow: FlowReliability, rows: NDArray[np.float32], ids: tuple[str, ...]) -> Tensor:
    return flow.weights(torch.from_numpy(rows), ids, torch.ones(len(rows), dtype=torch.bool))


def fed(flow: FlowReliability, batches: int, size: int = 8) -> FlowReliability:
    for batch in range(batches):
        rows = np.vstack((known(size // 2, 10 + batch), far(size - size // 2, 50 + batch)))
        asked(flow, rows, names(batch, size))
        flow.commit()
    return flow


def bytes_of(flow: FlowReliability) -> tuple[dict[str, bytes], str]:
    tensors, meta = flow.snapshot()
    return {name: array.tobytes() for name, array in tensors.items()}, json.dumps(meta)


def dense_of(flow: FlowReliability) -> NDArray[np.float64]:
    """Mutual neighbours restated by sorting, from features alone."""
    window = flow._window
    rows = np.vstack((flow._anchors, window.features))
    there = np.array([True] * ANCHORS + [name is not None for name in window.ids])
    side = np.arange(len(rows)) >= ANCHORS
    cosines = rows @ rows.T
    chosen = np.zeros(cosines.shape, bool)
    for row in np.flatnonzero(there):
        for of in (False, True):
            others = [j for j in np.flatnonzero(there & (side == of)) if j != row]
            chosen[row, sorted(others, key=lambda j, row=row: -cosines[row, j])[:K]] = True
    return np.where(chosen & chosen.T, cosines.clip(1e-3, 1), 0)


def test_the_graph_and_the_invariant_hold_under_a_random_script() -> None:
    generator, flow = np.random.default_rng(1), made(sweeps=7)
    for batch in range(25):
        size = int(generator.integers(1, 12))
        rows = np.vstack((known(size, 100 + batch), far(size, 200 + batch)))[generator.permutation(2 * size)]
        ids = tuple(f"{generator.integers(0, 120)}" for _ in rows)  # repeats, old and within the batch
        asked(flow, rows, ids)
        if generator.random() < 0.8:
            flow.commit()
        window = flow._window
        graph, dense = flow._graph(window), np.zeros((ANCHORS + WINDOW,) * 2)
        np.add.at(dense, (np.arange(len(graph))[:, None], graph.neighbours), graph.weights)
        assert np.abs(dense - dense_of(flow)).max() < 1e-12
        assert graph.degree.max() <= 2 * K

        judged = flow._judged(window, 0)
        x, delta = judged.potentials, judged.mass + (np.diag(dense.sum(1)) - dense) @ judged.potentials
        assert x.tobytes() == window.potentials.tobytes()
        assert np.abs(delta[ANCHORS:]).max() < 1e-10  # m = Delta - Lap x: queries bring no mass
        degree = graph.degree[:ANCHORS].astype(float)
        total = 0.75 * (ANCHORS + sum(name is not None for name in window.ids))
        shares, labels = degree / degree.sum() * total, components(graph)
        for label in set(labels.tolist()):
            inside = labels[:ANCHORS] == label
            room = min(1, 0.95 * (labels == label).sum() / max(shares[inside].sum(), 1e-300))
            assert np.abs(delta[:ANCHORS][inside] - room * shares[inside]).max(initial=0) < 1e-10


def test_warm_equals_cold_and_turning_over_leaves_nothing() -> None:
    flow, late = fed(made(sweeps=20000), 9), made(sweeps=20000)
    cold = flow._judged(replace(flow._window, potentials=np.zeros(ANCHORS + WINDOW)), 20000)
    assert cold.residual <= 1e-3 and flow.report.residual <= 1e-3
    assert (cold.potentials > 0).any()
    assert np.abs(cold.potentials - flow._window.potentials).max() < 2e-2  # both stop at eps
    # Nine batches of 8 turn a window of 24 over three times: what is left is that of the last three.
    for batch in range(6, 9):
        asked(late, np.vstack((known(4, 10 + batch), far(4, 50 + batch))), names(batch, 8))
        late.commit()
    assert late._window.features.tobytes() == flow._window.features.tobytes()
    assert late._window.similarity.tobytes() == flow._window.similarity.tobytes()
    assert np.abs(late._window.potentials - flow._window.potentials).max() < 2e-2


def test_evicting_everything_leaves_the_anchors() -> None:
    flow = fed(made(), 6)
    window = flow._window
    empty = flow._filled(np.zeros_like(window.features), (None,) * WINDOW, 0, np.zeros(64), 0.0)
    fresh = made()
    one, two = flow._graph(empty), fresh._graph(fresh._window)
    assert one.weights.tobytes() == two.weights.tobytes() and not one.degree[ANCHORS:].any()
    assert dense_of(fresh)[:ANCHORS, :ANCHORS].sum() == pytest.approx(one.weights.sum())
    settled = flow._judged(empty, 20000)
    assert settled.residual <= 1e-3 and not settled.mass[ANCHORS:].any()


def test_asking_changes_nothing_and_redelivery_neither() -> None:
    flow = fed(made(), 4)
    before, rows, ids = bytes_of(flow), known(8, 77), names(77, 8)
    first = asked(flow, rows, ids)
    assert bytes_of(flow) == before
    assert asked(flow, rows, ids).equal(first)
    flow.commit()
    after = bytes_of(flow)
    assert after != before
    flow.commit()
    again = asked(flow, rows, ids)
    flow.commit()
    assert bytes_of(flow) == after and again.equal(first)
    # Also when a repeated query comes with new ones: it keeps its slot, and is not taken twice.
    mixed = np.vstack((rows[:2], known(3, 78)))
    asked(flow, mixed, (*ids[:2], *names(78, 3)))
    flow.commit()
    meta = flow.snapshot()[1]
    assert meta["taken"] == 4 * 8 + 8 + 3
    assert sum(name is not None for name in meta["ids"]) == len(set(meta["ids"])) == WINDOW


def test_snapshot_continues_byte_for_byte() -> None:
    flow, other = fed(made(), 5), made()
    tensors, meta = flow.snapshot()
    other.restore(tensors, json.loads(json.dumps(meta)))
    assert bytes_of(other) == bytes_of(flow)
    assert other._window.similarity.tobytes() == flow._window.similarity.tobytes()
    for batch in range(5, 9):
        rows = np.vstack((known(5, batch), far(2, batch)))
        assert asked(flow, rows, names(batch, 7)).equal(asked(other, rows, names(batch, 7)))
        flow.commit()
        other.commit()
        assert bytes_of(other) == bytes_of(flow)
    asked(flow, known(4, 1), names(90, 4))
    flow.restore(tensors, meta)
    held = bytes_of(flow)
    flow.commit()  # what was asked before the return is forgotten
    assert bytes_of(flow) == held
    with pytest.raises(ArtifactError, match="reset the lane"):
        made(window=WINDOW + 1).restore(tensors, meta)


def test_no_sweeps_still_weigh() -> None:
    flow = fed(made(sweeps=0), 3)
    found = asked(flow, known(8, 3), names(30, 8))
    assert found.isfinite().all() and ((found >= 0) & (found <= 1)).all()
    assert flow.report.sweeps == 0


def test_permuted_rows_permute_weights() -> None:
    flow = fed(made(), 4)
    rows, ids = np.vstack((known(6, 5), far(4, 5))), names(40, 10)
    order = np.random.default_rng(0).permutation(10)
    straight = asked(flow, rows, ids)
    moved = asked(flow, rows[order], tuple(ids[row] for row in order))
    assert straight.unique().numel() > 3
    torch.testing.assert_close(moved, straight[order], rtol=0, atol=1e-6)


def test_known_queries_weigh_more_than_far_ones() -> None:
    flow, near, away = made(), [], []
    for batch in range(8):
        found = asked(flow, np.vstack((known(6, 10 + batch), far(4, 50 + batch))), names(batch, 10))
        flow.commit()
        near.append(float(found[:6].mean()))
        away.append(float(found[6:].mean()))
    assert np.mean(near[3:]) > 2 * np.mean(away[3:])
    assert max(near) > 0.3


def test_padding_and_rows_that_are_not_numbers() -> None:
    flow, plain = fed(made(), 2), fed(made(), 2)
    rows = known(8, 6)
    expected = asked(plain, rows[[0, 3, 5]], ("a", "b", "c"))
    rows[[1, 2]] = np.nan
    rows[4] = 0
    mask = torch.tensor([True, False, True, True, True, True, False, False])
    found = flow.weights(torch.from_numpy(rows), ("a", "nan", "b", "zero", "c"), mask)
    assert found[[0, 3, 5]].equal(expected) and not found[[1, 2, 4, 6, 7]].any()
    assert found.dtype == torch.float32 and not found.requires_grad
    flow.commit()
    plain.commit()
    assert bytes_of(flow) == bytes_of(plain)


def test_nobody_one_and_more_than_the_window() -> None:
    flow = made()
    assert flow.weights(torch.zeros(4, WIDTH), (), torch.zeros(4, dtype=torch.bool)).tolist() == [0] * 4
    assert asked(flow, known(1, 1), ("one",)).shape == (1,)
    many = asked(flow, known(2 * WINDOW + 5, 2), names(0, 2 * WINDOW + 5))
    flow.commit()
    assert many.isfinite().all() and flow.snapshot()[1]["taken"] == 2 * WINDOW + 5
    # One anchor, more neighbours wished than there are nodes, and the same content under many ids.
    tiny = FlowReliability(known(1, 0), window=3, neighbours=9)
    for batch in range(3):
        same = asked(tiny, np.repeat(known(1, 0), 2, axis=0), names(batch, 2))
        tiny.commit()
        assert same.isfinite().all() and (same > 0).all()


def test_what_cannot_be_used_is_refused() -> None:
    for values in ({"window": 0}, {"neighbours": 0}, {"sweeps": -1}, {"beta": 1.0}):
        with pytest.raises(ConfigError, match="beta"):
            made(**values)
    for anchors in (np.zeros((0, 4), np.float32), np.full((3, 4), np.nan, np.float32)):
        with pytest.raises(ConfigError, match="anchors"):
            FlowReliability(anchors)
    with pytest.raises(ConfigError, match="ids"):
        asked(made(), known(3, 1), ("a", "b"))
    with pytest.raises(ConfigError, match="width"):
        asked(made(), np.ones((2, 3), np.float32), ("a", "b"))


def test_cosines_on_the_grid_are_exact_in_any_shape() -> None:
    rows = exact(far(32, 0))
    whole = np.rint(far(32, 0).astype(np.float64) * 2**20).astype(np.int64)
    assert (rows @ rows.T).tolist() == ((whole @ whole.T) / 2**40).tolist()
    assert rows.astype(np.float32).astype(np.float64).tobytes() == rows.tobytes()
    assert np.abs(rows - far(32, 0)).max() <= 2.0**-21


def test_a_new_query_starts_without_the_potential_of_the_old() -> None:
    settled, still = fed(made(), 6), made(sweeps=0)
    still.restore(*settled.snapshot())
    high = still._window.potentials[ANCHORS:]
    assert (high > 0).any()
    asked(still, known(WINDOW, 8), names(60, WINDOW))
    still.commit()
    assert (still._window.potentials[:ANCHORS] > 0).any()
    assert not still._window.potentials[ANCHORS:].any()


def test_components_that_overflow_are_capped() -> None:
    flow = fed(made(neighbours=1, sweeps=20000), 5)
    labels = components(flow._graph(flow._window))
    assert len(set(labels.tolist())) > 10
    assert flow.report.residual <= 1e-3
    mass = np.bincount(labels, weights=flow._judged(flow._window, 0).mass)
    share = mass / np.maximum(1, np.bincount(labels))
    assert share.max() == pytest.approx(0.95)
