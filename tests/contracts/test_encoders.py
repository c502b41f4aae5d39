"""What `core.protocols.Encoder` promises, of every encoder."""

import copy
from collections.abc import Callable, Iterator
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_towers import encoded, looking, pictures, towers

from core.errors import QshiftError, Refused
from core.protocols import Encoder
from core.types import Modality
from encoders.composed import Composed
from encoders.sequence import FrameSequence
from encoders.tensors import TensorTower
from encoders.vector import VectorEncoder
from qshift.benchmarks.suite.shared import SharedEncoder

COUNT = 5
WORDS = ["red", "a bit bluer", "x", "same", "żółw"]
VECTORS = list(np.random.default_rng(0).normal(size=(COUNT, 6)).astype(np.float32))
TENSORS = list(torch.randn(COUNT, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
CLIPS = [tuple(pictures(1 + number % 3, number)) for number in range(COUNT)]
Case = tuple[Callable[[], Encoder], list[Any], list[Any]]

BATTERY: dict[str, Case] = {
    "ImageTower": (lambda: towers()[0], pictures(COUNT), [None, b"", b"no picture", 3]),
    "TextTower": (lambda: towers()[1], WORDS, [None, b"", "", 3]),
    "TensorTower": (
        lambda: TensorTower(looking(), (8, 8)), TENSORS, [None, TENSORS[0] * torch.nan, TENSORS[0][:2]],
    ),
    "VectorEncoder": (
        lambda: VectorEncoder(6), VECTORS, [None, VECTORS[0] * np.nan, VECTORS[0] * 0, VECTORS[0][:5], "a"],
    ),
    "Composed": (
        lambda: Composed(*towers(), 0.4), list(zip(pictures(COUNT), WORDS)),
        [None, (b"", "red"), (pictures(1)[0], ""), "red"],
    ),
    "FrameSequence of pictures": (lambda: FrameSequence(towers()[0]), CLIPS, [None, (), (b"",), "red"]),
    "FrameSequence of vectors": (
        lambda: FrameSequence(VectorEncoder(6)), [np.stack(VECTORS[: n + 1]) for n in range(COUNT)],
        [None, (), (VECTORS[0] * np.nan,)],
    ),
    "SharedEncoder": (lambda: SharedEncoder(towers()[0]), pictures(COUNT), [None, b"no picture"]),
    "SharedEncoder of texts": (lambda: SharedEncoder(towers()[1]), WORDS, [None, ""]),
}  # fmt: skip
"""Class, and what it is made of: how it is made, contents that it takes, contents that it refuses."""


@pytest.fixture(params=BATTERY)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    yield BATTERY[request.param]


@pytest.fixture
def encoder(case: Case, request: pytest.FixtureRequest) -> Encoder:
    made = case[0]()
    assert type(made).__name__ == request.node.callspec.params["case"].split()[0]
    return made


@pytest.fixture
def contents(case: Case) -> list[Any]:
    return case[1]


def same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.view(torch.int32), other.view(torch.int32))


def flat(value: Any) -> list[Tensor]:
    """All tensors of a prepared content or of an input, however nested."""
    if isinstance(value, tuple | list):
        return [tensor for part in value for tensor in flat(part)]
    return [torch.as_tensor(value)]


def unit(features: Tensor) -> bool:
    return bool(torch.allclose(features.norm(dim=1), torch.ones(len(features)), atol=1e-5))


def test_what_it_says_of_itself(encoder: Encoder, contents: list[Any]) -> None:
    assert encoder.modality in get_args(Modality)
    assert encoded(encoder, contents).shape == (COUNT, encoder.width)


def test_what_cannot_be_decoded_is_refused(case: Case) -> None:
    encoder, (_, contents, wrong) = case[0](), case
    for content in wrong:
        with pytest.raises(Refused):
            encoder.prepare(content)
    assert unit(encoded(encoder, contents)), "a refusal leaves nothing behind"


def test_features_are_unit_float32_outside_any_graph(encoder: Encoder, contents: list[Any]) -> None:
    features = encoded(encoder, contents)
    assert features.dtype == torch.float32 and not features.requires_grad and unit(features)
    assert same_bits(features, encoded(encoder, contents))


@pytest.mark.parametrize("rows", [COUNT + 1, 8, 16])
def test_padding_rows_are_harmless(encoder: Encoder, contents: list[Any], rows: int) -> None:
    padded = encoded(encoder, contents, rows)
    assert padded.shape == (rows, encoder.width) and unit(padded)
    torch.testing.assert_close(padded[:COUNT], encoded(encoder, contents), atol=1e-6, rtol=1e-5)


def test_one_query_is_what_it_is_in_company(encoder: Encoder, contents: list[Any]) -> None:
    together = encoded(encoder, contents)
    alone = torch.cat([encoded(encoder, [content]) for content in contents])
    torch.testing.assert_close(alone, together, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-3), "the contents of this case are alike"


def test_no_query_and_too_many(encoder: Encoder, contents: list[Any]) -> None:
    assert encoded(encoder, [], 0).shape == (0, encoder.width)
    padding = encoded(encoder, [], 8)
    assert padding.shape == (8, encoder.width) and bool(torch.isfinite(padding).all())
    with pytest.raises(QshiftError):
        encoder.collate([encoder.prepare(content) for content in contents], COUNT - 1)


def test_neither_prepared_contents_nor_inputs_are_written_to(encoder: Encoder, contents: list[Any]) -> None:
    prepared = [encoder.prepare(content) for content in contents]
    kept = copy.deepcopy(prepared)
    inputs = encoder.collate(prepared, 8)
    entered = copy.deepcopy(inputs)
    encoder.encode(inputs)
    encoder.encode(inputs, encoder.adaptable())
    assert all(map(torch.equal, flat(prepared), flat(kept)))
    assert all(map(torch.equal, flat(inputs), flat(entered)))


def test_adaptable_tensors_are_copies_of_the_source(encoder: Encoder, contents: list[Any]) -> None:
    before, source = encoded(encoder, contents), encoder.adaptable()
    assert source and all(t.dtype == torch.float32 and not t.requires_grad for t in source.values())
    # To the bit, but for vectors: those are at unit length already and are normalised once more.
    torch.testing.assert_close(encoded(encoder, contents, params=source), before, atol=1.2e-7, rtol=0)
    if "affine.weight" not in source:
        assert same_bits(encoded(encoder, contents, params=source), before)
    for tensor in encoder.adaptable().values():
        tensor.fill_(7.0)
    assert all(torch.equal(tensor, source[name]) for name, tensor in encoder.adaptable().items())
    assert same_bits(encoded(encoder, contents), before)


def test_parameters_count_for_one_call_and_each_has_a_gradient(encoder: Encoder, contents: list[Any]) -> None:
    before = encoded(encoder, contents)
    params = {name: (tensor + 0.3).requires_grad_() for name, tensor in encoder.adaptable().items()}
    moved = encoded(encoder, contents, params=params)
    assert unit(moved.detach()) and not torch.allclose(moved, before, atol=1e-3)
    target = torch.randn(moved.shape, generator=torch.Generator().manual_seed(1))
    grads = torch.autograd.grad((moved * target).sum(), list(params.values()))
    assert all(float(grad.abs().max()) > 0 for grad in grads)
    assert same_bits(encoded(encoder, contents), before), "encode has changed the source"


def test_a_hook_is_called_with_each_batch_norm(encoder: Encoder, contents: list[Any]) -> None:
    before, calls = encoded(encoder, contents, 8), list[tuple[int, int, int]]()
    after = encoded(encoder, contents, 8, hook=lambda layer, x: calls.append((layer, len(x), x.shape[1])))
    assert calls == [(layer, 8, width) for layer, width in enumerate(encoder.hook_points().widths)]
    assert same_bits(after, before), "a hook that only watches moves nothing"


def test_what_a_hook_moves_is_moved_for_one_call(encoder: Encoder, contents: list[Any]) -> None:
    before = encoded(encoder, contents, 8)

    def folded(layer: int, inputs: Tensor) -> tuple[Tensor, Tensor]:
        width = encoder.hook_points().widths[layer]
        return torch.full((width,), 2.0), torch.linspace(-1, 1, width)

    def rowed(layer: int, inputs: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = folded(layer, inputs)
        return scale.expand(len(inputs), -1), shift.expand(len(inputs), -1)

    moved = encoded(encoder, contents, 8, hook=folded)
    assert same_bits(moved, before) == (not encoder.hook_points().widths)
    rows = encoded(encoder, contents, 8, hook=rowed)
    torch.testing.assert_close(rows, moved, atol=1e-5, rtol=1e-4)
    assert same_bits(encoded(encoder, contents, 8), before)


def test_a_hook_that_raises_leaves_the_source_as_it_was(encoder: Encoder, contents: list[Any]) -> None:
    before = encoded(encoder, contents)
    if not encoder.hook_points().widths:
        pytest.skip("no BatchNorm: the hook is never called")

    def broken(layer: int, inputs: Tensor) -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        encoded(encoder, contents, hook=broken)
    assert same_bits(encoded(encoder, contents), before)
