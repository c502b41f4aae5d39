"""UCA, CLIPTTA and UATTA against plain loops in float64: losses over floats, finite differences of them.

What they promise as every peer does is in test_peers.py; NEO and FOA's shifting are in test_mean_shift.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from peer_stage import (
    COLUMNS,
    GALLERY,
    ROWS,
    TAU,
    TOY,
    Array,
    Row,
    batch,
    drawn,
    encoded,
    entropy,
    found,
    inputs,
    made,
    mean,
    norms,
    slopes,
    softmax,
    state,
    theta,
)
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import normalize

from adapters.online.cliptta import Cliptta
from adapters.online.peer import Peer
from adapters.online.uatta import Uatta, uncertainty
from adapters.online.uca import Uca, margins

EVERY = GALLERY.double().tolist()


def dot(a: Row, b: Row) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


@dataclass
class Scene:
    """One batch as a method sees it at its present parameters, in floats."""

    x: Tensor
    start: Array
    columns: list[list[list[float]]]
    near: list[list[list[float]]]
    """The four nearest items of each query, best first."""
    full: bool

    def predicted(self, q: Array) -> list[list[float]]:
        return [softmax(row, own, TAU) for row, own in zip(q.tolist(), self.columns, strict=True)]

    def shared(self) -> list[list[float]]:
        """The columns of the mean prediction: all items, or the nearest ones, each once."""
        union = {tuple(own[0]) for own in self.near}
        return EVERY if self.full else [list(item) for item in union]


def scene(method: Peer, x: Tensor, columns: str) -> Scene:
    with torch.no_grad():
        q = functional_call(TOY, theta(method), (x,))
    order = (q @ GALLERY.T).topk(4, dim=1).indices
    own = [EVERY] * len(x) if columns == "full" else found(q).double().tolist()
    return Scene(x, encoded(x, *norms(method)), own, GALLERY[order].double().tolist(), columns == "full")


Losses = Callable[[Array], dict[str, float]]


def slow_margin(q: Row, near: Sequence[Row]) -> float:
    """Of the best of `near`, best first, over those that mean something else."""
    weights, gaps = [], []
    for item in near[1:]:
        if any(item):
            weights.append(1 - dot(near[0], item))
            gaps.append(dot(q, near[0]) - dot(q, item))
    return dot(weights, gaps) / math.fsum(weights) if math.fsum(weights) > 0 else 0.0


def uca(seen: Scene, reference: float | None) -> tuple[Losses, float, list[float]]:
    """The loss, the reference margin after the batch, and the weights of the rows."""
    found_margins = [slow_margin(q, near) for q, near in zip(seen.start.tolist(), seen.near, strict=True)]
    h = [entropy(p) for p in seen.predicted(seen.start)]
    sure = sorted(range(len(h)), key=lambda i: h[i])[: int(0.3 * len(h))]
    now = mean([found_margins[i] for i in sure])
    after = now if reference is None else 0.9 * reference + 0.1 * now
    weights = [min(1.0, max(-1.0, 1 - margin / after)) for margin in found_margins]

    def losses(q: Array) -> dict[str, float]:
        parts = [w * entropy(p) for w, p in zip(weights, seen.predicted(q), strict=True)]
        return {"entropy": mean(parts)}

    return losses, after, weights


def cliptta(seen: Scene) -> Losses:
    captions = [own[0] for own in seen.near]

    def losses(q: Array) -> dict[str, float]:
        contrast = mean([entropy(softmax(row, captions, TAU)) for row in q.tolist()])
        p = [softmax(row, seen.shared(), TAU) for row in q.tolist()]
        average = [mean([row[c] for row in p]) for c in range(len(p[0]))]
        return {"contrast": contrast, "balance": -entropy(average)}

    return losses


def uatta(seen: Scene) -> tuple[Losses, list[float]]:
    p, q = seen.predicted(seen.start), seen.start.tolist()
    weights = []
    for i, row in enumerate(p):
        best = max(range(len(row)), key=lambda c: row[c])
        returned = softmax(seen.columns[i][best], q, TAU)[i]
        weights.append(math.exp(-(1 - (row[best] + returned) / 2)))

    def losses(q: Array) -> dict[str, float]:
        return {"entropy": mean([w * entropy(p) for w, p in zip(weights, seen.predicted(q), strict=True)])}

    return losses, weights


def expected(method: Peer, seen: Scene, reference: float | None) -> tuple[Losses, float | None]:
    if isinstance(method, Uca):
        losses, reference, _ = uca(seen, reference)
        return losses, reference
    return (cliptta(seen) if isinstance(method, Cliptta) else uatta(seen)[0]), reference


MAKERS: list[type[Peer]] = [Uca, Cliptta, Uatta]


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("columns", COLUMNS)
def test_losses_equal_slow_loops_along_a_stream(maker: type[Peer], columns: str) -> None:
    method, reference = made(maker, columns=columns), None
    for seed in range(3):
        x = inputs(ROWS, seed)
        seen = scene(method, x, columns)
        losses, reference = expected(method, seen, reference)
        step, _ = method.update(batch(x))
        assert step.updated and step.backwards == 1 and step.diagnostics["kept_share"] == 1
        assert step.losses == pytest.approx(losses(seen.start), abs=2e-5)
        if maker is Uca:
            assert step.diagnostics["reference_margin"] == pytest.approx(reference, abs=1e-5)


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("columns", COLUMNS)
def test_gradients_equal_finite_differences(maker: type[Peer], columns: str) -> None:
    method, x = made(maker, columns=columns), inputs(ROWS, 4)
    seen = scene(method, x, columns)
    losses, _ = expected(method, seen, None)
    to_weight, to_bias = slopes(lambda q: math.fsum(losses(q).values()), x, *norms(method))
    method.update(batch(x))
    moments = method.snapshot()[0]
    np.testing.assert_allclose(10 * moments["moment1/norm.weight"], to_weight, atol=1e-4)
    np.testing.assert_allclose(10 * moments["moment1/norm.bias"], to_bias, atol=1e-4)
    assert np.abs(to_weight).max() > 1e-2


# --- UCA ----------------------------------------------------------------------------------------------------


def test_margins_equal_a_loop_and_skip_empty_places() -> None:
    q, near = normalize(drawn(1, 5, 8), dim=1), normalize(drawn(2, 5, 6, 8), dim=2)
    order = torch.einsum("rd,rkd->rk", q, near).argsort(dim=1, descending=True)
    near = near.gather(1, order[..., None].expand_as(near))
    near[1, 4:] = 0
    slow = [slow_margin(a, b) for a, b in zip(q.double().tolist(), near.double().tolist(), strict=True)]
    assert margins(q, near).tolist() == pytest.approx(slow, abs=1e-5) and min(slow) > 0


def test_a_copy_of_the_best_candidate_is_no_rival() -> None:
    best, other = torch.eye(3)[0], torch.eye(3)[1]
    q = normalize(best + 0.2 * other, dim=0)[None]
    alone, copied = torch.stack((best, other))[None], torch.stack((best, best, other))[None]
    expected_margin = (1 - 0.2) / math.sqrt(1.04)
    assert margins(q, alone).item() == pytest.approx(margins(q, copied).item()) == expected_margin
    assert margins(q, torch.stack((best, best))[None]).item() == 0


def test_uca_has_rows_of_both_states() -> None:
    """Else one half of its rule would be tested by nothing above."""
    method = made(Uca)
    _, _, weights = uca(scene(method, inputs(ROWS, 0), "shortlist"), None)
    assert min(weights) < -0.1 and max(weights) > 0.1


def test_uca_learns_nothing_where_no_candidate_differs() -> None:
    method, x = made(Uca), inputs(ROWS, 0)
    same = batch(x, near=lambda q: GALLERY[:1].expand(len(q), 4, -1))
    before = state(method)
    step, _ = method.update(same)
    assert (step.updated, step.reason) == (False, "nothing-sure") and state(method) == before
    assert method.snapshot()[1]["reference"] is None


def test_uca_continues_with_its_reference() -> None:
    method, other = made(Uca), made(Uca)
    method.update(batch(inputs(ROWS, 0)))
    tensors, meta = method.snapshot()
    assert meta["reference"] > 0
    other.restore(tensors, json.loads(json.dumps(meta)))
    for each in (method, other):
        each.update(batch(inputs(ROWS, 1)))
    assert state(method) == state(other) and method.snapshot()[1]["reference"] != meta["reference"]


# --- UATTA --------------------------------------------------------------------------------------------------


def test_uncertainty_by_hand() -> None:
    chosen, returned = torch.tensor([1.0, 0.5, 0.0]), torch.tensor([1.0, 0.1, 0.0])
    found_values = uncertainty(chosen, returned, 2.0).tolist()
    assert found_values == pytest.approx([1.0, math.exp(1.4), math.exp(2.0)])


def test_a_query_that_shares_its_item_counts_less() -> None:
    """A query beside a hundred-fold copy of another: whose item it takes, it is not chosen by."""
    method = made(Uatta)
    x = inputs(ROWS, 0)
    x[1:10] = x[0]
    _, weights = uatta(scene(method, x, "full"))
    _, apart = uatta(scene(method, inputs(ROWS, 0), "full"))
    assert weights[0] < apart[0]


# --- CLIPTTA ------------------------------------------------------------------------------------------------


def test_cliptta_asks_for_a_choice_among_the_batch_alone() -> None:
    """Two batch mates with one nearest item cannot be told apart: their entropy does not reach 0."""
    method, x = made(Cliptta, temperature=0.001), inputs(ROWS, 0)
    x[1] = x[0]
    step, _ = method.update(batch(x))
    assert step.losses["contrast"] >= 2 * math.log(2) / ROWS - 1e-6
