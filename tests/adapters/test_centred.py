"""Centring of what a method emits: the method itself must not notice, and the mean is the slow loop's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from toy_pass import ToyPass

from adapters.online.centred import Centred
from adapters.online.tcr import Tcr
from core.config import AdaptConfig
from core.errors import ArtifactError
from core.references import SourceConstants

WIDTH, ITEMS, ROWS = 6, 30, 20
CONSTANTS = SourceConstants(0.15, 1.6, temperature=0.1, learning_rate=1e-2, batch=32)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


GALLERY = normalize(drawn(0, ITEMS, WIDTH), dim=1)
SOURCE = {"scale": torch.ones(WIDTH)}
MEAN = normalize(GALLERY + 0.1, dim=1).mean(0)


def batch(seed: int, rows: int = ROWS, broken: bool = False) -> ToyPass:
    inputs = GALLERY[:rows] + 0.2 * drawn(seed, rows, WIDTH) + 0.5
    if broken:
        inputs[0, 0] = torch.nan
    mask = torch.arange(rows) < rows - 1  # the last row is padding

    def encode(params: Any) -> Tensor:
        return normalize(inputs * params["scale"], dim=1)

    def neighbours(q: Tensor) -> Tensor:
        return GALLERY[(q @ GALLERY.T).topk(3, dim=1).indices]

    return ToyPass(mask, encode(SOURCE), encode, neighbours)


def tcr(**changes: Any) -> Tcr:
    return Tcr(SOURCE, CONSTANTS, AdaptConfig.model_validate(changes), floor=16)


@pytest.mark.parametrize("answer_from", ["before", "after"])
def test_the_method_does_not_notice_and_the_mean_is_that_of_a_loop(answer_from: str) -> None:
    alone, centred = tcr(answer_from=answer_from), Centred(tcr(answer_from=answer_from), MEAN, 16)
    mean, total = MEAN.double().numpy(), 64.0
    for seed in range(4):
        view = batch(seed)
        before = {name: tensor.detach().clone() for name, tensor in alone.parameters().items()}
        alone.update(view)
        step, _ = centred.update(view)
        assert step.updated
        assert torch.equal(centred.parameters()["scale"], alone.parameters()["scale"])
        seen = view.encode(before if answer_from == "before" else alone.parameters())[: ROWS - 1].detach()
        decayed = 0.9 ** ((ROWS - 1) / 64) * total
        mean = (mean * decayed + seen.double().numpy().sum(0)) / (decayed + ROWS - 1)
        total = decayed + ROWS - 1
    few = batch(9, 4)  # below the floor: corrected by what is known
    features = few.encode(centred.parameters()).detach()
    expected = features.double().numpy() - (mean - MEAN.double().numpy())
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(centred.transform(features, few).numpy(), expected, atol=1e-6)
    assert np.abs(mean - MEAN.numpy()).max() > 0.05  # or there was nothing to centre


@pytest.mark.parametrize("view", [lambda: batch(1, 8), lambda: batch(1, broken=True)])
def test_a_refused_batch_changes_nothing(view: Callable[[], ToyPass]) -> None:
    centred = Centred(tcr(), MEAN, 16)
    centred.update(batch(0))
    tensors, meta = centred.snapshot()
    step, _ = centred.update(view())
    assert not step.updated
    after, known = centred.snapshot()
    assert known == meta and all(np.array_equal(after[name], tensors[name]) for name in tensors)


def test_a_snapshot_continues_to_the_last_bit_and_others_are_refused() -> None:
    first, second = Centred(tcr(), MEAN, 16), Centred(tcr(), MEAN, 16)
    for seed in range(3):
        first.update(batch(seed))
    second.restore(*first.snapshot())
    for seed in range(3, 5):
        first.update(batch(seed))
        second.update(batch(seed))
    left, right = first.snapshot(), second.snapshot()
    assert left[1] == right[1] and all(np.array_equal(left[0][name], right[0][name]) for name in left[0])
    assert first.version == 5 and first.name == "tcr" and not first.learns_first
    with pytest.raises(ArtifactError, match="centred"):
        second.restore(*tcr().snapshot())
