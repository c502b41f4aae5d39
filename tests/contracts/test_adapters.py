"""What `core.protocols.Adapter` promises, of every method: made as a run makes it, for vectors."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from toy_pass import ToyPass
from toy_vectors import ITEMS, WIDTH, gallery_features, shifted, write_vectors

from core.artifacts import tensors_hash
from core.config import Config
from core.protocols import Adapter
from core.references import SourcePairs
from encoders.base_model import Base, load_base
from qshift.lanes import adapter
from qshift.methods import METHODS, with_method

ROWS, FLOOR = 64, 16
GUARDS = {"guard": {"reset_every": 2, "restore": 0.1}}
OWN = "adapters.online.tent:Tent"

BATTERY: dict[str, tuple[str, ...]] = {
    "Frozen": ("frozen",),
    "Centring": ("centring", "aligned", "aligned-plain", "aligned-matched", "aligned-two-pass"),
    "ResidualCentring": ("residual_centring",),
    "TrainingFree": ("training_free", "training_free queue"),
    "Refinement": ("refinement",),
    "Tent": ("tent", "tent answers first learns"),
    "Eata": ("eata",),
    "Sar": ("sar",),
    "Read": ("read",),
    "Deyo": ("deyo",),
    "Shot": ("shot",),
    "Neo": ("neo",),
    "FoaShift": ("foa-shift",),
    "Uca": ("uca",),
    "Cliptta": ("cliptta",),
    "Uatta": ("uatta",),
    "Tcr": ("tcr", "tcr-paper", "anchored", "tcr in steps"),
    "Rest": (
        "rest", "rest-none", "rest-memory", "rest-weights", "rest-subspace", "rest-tensor", "rest-step",
        "rest-bidir", "rest-flow",
    ),
    "Centred": ("default", "tcr centred", "tcr guarded and centred"),
    "Guarded": ("tcr guarded", "eata guarded"),
    "Own": (OWN,),
}  # fmt: skip
"""Class, and the names of what it is made by: of METHODS, or of MORE."""
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "training_free queue": ("training_free", {"constants": "queue"}),
    "tent answers first learns": ("tent", {"answer_from": "paper"}),
    "tcr in steps": ("tcr", {"steps": 3, "constants": "queue"}),
    "tcr centred": ("tcr", {"align": {"enabled": True}}),
    "tcr guarded": ("tcr", GUARDS),
    "tcr guarded and centred": ("tcr", {"align": {"enabled": True}, **GUARDS}),
    "eata guarded": ("eata", GUARDS),
}
OFTEN = {names[0] for names in BATTERY.values()} | {"training_free queue", "tcr in steps", "rest-memory"}
"""One of each class, and what has a state of its own kind; the others are no part of the quick suite."""
CASES = [
    pytest.param((kind, name), id=name, marks=() if name in OFTEN else pytest.mark.slow)
    for kind, names in BATTERY.items()
    for name in names
]
Make = Callable[[], Adapter]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """With a memory of source pairs, which one reference of decoupling asks for."""
    folder = write_vectors(tmp_path_factory.mktemp("base"))
    pairs = SourcePairs(tuple(shifted(32)[0]), gallery_features()[shifted(32)[1]])
    return replace(load_base(folder / "base"), memory={"vector": pairs})


@pytest.fixture(params=CASES)
def make(request: pytest.FixtureRequest, base: Base) -> Iterator[Make]:
    kind, name = request.param
    method, changes = MORE.get(name, (name, {}))
    config = with_method(Config(base=Path("base"), gallery=Path("gallery"), device="cpu"), method)
    document = config.model_dump()
    document["adapt"] |= {key: changes[key] for key in changes if key != "align"}
    document["adapt"]["align"] |= changes.get("align", {})
    changed = Config.model_validate(document)

    def fresh() -> Adapter:
        made = adapter(changed, base, "vector", "cpu")
        assert type(made).__name__ == kind
        return made

    yield fresh


def batch(
    base: Base, seed: int, rows: int = ROWS, padding: int = 0, change: Callable[[Tensor], None] | None = None
) -> ToyPass:
    """Shifted vectors near items, and rows of padding; `change` spoils what is encoded."""
    rng = np.random.default_rng(seed)
    chosen = rng.integers(ITEMS, size=rows)
    moved = gallery_features()[chosen] + 0.1 * rng.normal(size=(rows, WIDTH)) + 0.3 * np.eye(WIDTH)[0]
    filled = np.concatenate([moved, np.repeat(moved[-1:], padding, axis=0)]) if padding else moved
    inputs = normalize(torch.from_numpy(filled.astype(np.float32)), dim=1)
    if change is not None:
        change(inputs)
    items, encoder = torch.from_numpy(gallery_features()), base.encoders["vector"]

    def best(features: Tensor, count: int) -> Tensor:
        return items[(features.detach() @ items.T).nan_to_num(-2.0).topk(count, dim=1).indices]

    return ToyPass(
        torch.arange(rows + padding) < rows, inputs, lambda params: encoder.encode(inputs, params),
        lambda features: best(features, 16), lambda features: best(features, 32), lambda: items,
        ids=tuple(f"queries/0/{seed * 1000 + row}" for row in range(rows)),
    )  # fmt: skip


def state(method: Adapter) -> str:
    return tensors_hash(*method.snapshot())


def learned(make: Make, base: Base, batches: int = 3) -> Adapter:
    method = make()
    for seed in range(batches):
        method.update(batch(base, seed))
    return method


def answered(method: Adapter, seen: ToyPass) -> Tensor:
    with torch.no_grad():
        return method.transform(seen.encode(method.parameters()).detach(), seen)


def test_every_method_that_can_be_named_is_here() -> None:
    named = [name for names in BATTERY.values() for name in names]
    assert set(METHODS) <= set(named) and len(named) == len(set(named))


def test_it_starts_at_the_source(make: Make, base: Base) -> None:
    method, source = make(), base.encoders["vector"].adaptable()
    assert method.name and method.version == 0 and isinstance(method.learns_first, bool)
    assert all(torch.equal(tensor, source[name]) for name, tensor in method.parameters().items())
    assert state(method) == state(make())


def test_answering_changes_nothing(make: Make, base: Base) -> None:
    method, seen = learned(make, base, 2), batch(base, 7)
    features = seen.encode(method.parameters()).detach()
    before, version, kept = state(method), method.version, features.clone()
    first, second = method.transform(features, seen), method.transform(features, seen)
    assert torch.equal(first, second) and torch.equal(features, kept) and state(method) == before
    assert first.shape == features.shape and first.dtype == torch.float32 and method.version == version
    torch.testing.assert_close(first.detach().norm(dim=1), torch.ones(ROWS), atol=1e-5, rtol=0)


def test_a_broken_row_stays_alone(make: Make, base: Base) -> None:
    method, seen = learned(make, base, 1), batch(base, 7)
    features = seen.encode(method.parameters()).detach().clone()
    features[3] = torch.nan
    others = torch.arange(ROWS) != 3
    assert bool(torch.isfinite(method.transform(features, seen)[others]).all())


def test_an_update_says_what_it_did(make: Make, base: Base) -> None:
    method = make()
    for seed in range(3):
        before, version, seen = state(method), method.version, batch(base, seed)
        step, features = method.update(seen)
        assert step.updated == (not step.reason) == (method.version == version + 1)
        assert (state(method) != before) == step.updated and method.version - version in (0, 1)
        assert all(isinstance(v, float) for v in (*step.losses.values(), *step.diagnostics.values()))
        assert step.updated or method.name in ("frozen", "refinement", "training_free")
        assert features is None or (features.shape == seen.source.shape and not features.requires_grad)


def never(_: Tensor) -> None: ...


def one_nan(inputs: Tensor) -> None:
    inputs[5, 2] = torch.nan


def one_infinite(inputs: Tensor) -> None:
    inputs[5, 2] = torch.inf


@pytest.mark.parametrize(
    ("rows", "padding", "change"),
    [(FLOOR - 1, 1, never), (1, 7, never), (0, 8, never), (ROWS, 0, one_nan), (ROWS, 0, one_infinite)],
    ids=["below the floor", "one", "none", "NaN", "infinity"],
)
def test_a_refused_batch_leaves_the_state_to_the_bit(
    make: Make, base: Base, rows: int, padding: int, change: Callable[[Tensor], None]
) -> None:
    method = learned(make, base, 2)
    seen = batch(base, 5, max(rows, 1), padding, change)
    seen = replace(seen, mask=torch.arange(len(seen.mask)) < rows, ids=seen.ids[:rows])
    before, version = state(method), method.version
    step, _ = method.update(seen)
    assert not step.updated and step.reason and state(method) == before and method.version == version


def test_an_error_from_outside_leaves_no_half_batch(make: Make, base: Base) -> None:
    method, seen = learned(make, base, 2), batch(base, 5)
    before, asked = state(method), list[object]()

    def broken(*_: object) -> Tensor:
        asked.append(_)
        raise MemoryError

    for seen_by_it in (replace(seen, encode=broken), replace(seen, neighbours=broken)):
        asked.clear()
        try:
            method.update(seen_by_it)
        except MemoryError:
            assert state(method) == before
        else:
            assert not asked, "an error was swallowed"
            method.restore(*json_like(*learned(make, base, 2).snapshot()))


def test_a_batch_that_breaks_on_the_way_is_undone(make: Make, base: Base) -> None:
    """The first forward is sound; what later ones give, of the parameters that it moved, is no number."""
    method, seen = learned(make, base, 2), batch(base, 5)
    before, version, calls = state(method), method.version, list[int]()

    def worse(params: Any) -> Tensor:
        calls.append(len(calls))
        return seen.encode(params) * (torch.nan if len(calls) > 1 else 1.0)

    step, _ = method.update(replace(seen, encode=worse))
    if len(calls) > 1:
        assert not step.updated and step.reason
    if not step.updated:
        assert state(method) == before and method.version == version


def test_equal_queries_are_refused_or_learned_finitely(make: Make, base: Base) -> None:
    def equal(inputs: Tensor) -> None:
        inputs[:] = inputs[0].clone()

    method, seen = make(), batch(base, 1, change=equal)
    method.update(seen)
    tensors, _ = method.snapshot()
    assert all(np.isfinite(array).all() for array in tensors.values() if array.dtype.kind == "f")
    assert bool(torch.isfinite(answered(method, batch(base, 2))).all())


def test_padding_is_harmless(make: Make, base: Base) -> None:
    plain, padded = make(), make()
    for seed in range(2):
        plain.update(batch(base, seed, 40))
        padded.update(batch(base, seed, 40, 24))
    one, other = plain.snapshot()[0], padded.snapshot()[0]
    assert one.keys() == other.keys() and plain.version == padded.version
    for name, array in one.items():
        np.testing.assert_allclose(other[name], array, atol=2e-4, err_msg=name)
    seen = batch(base, 9, 40), batch(base, 9, 40, 24)
    torch.testing.assert_close(answered(plain, seen[0]), answered(padded, seen[1])[:40], atol=1e-3, rtol=0)


def json_like(
    tensors: dict[str, np.ndarray], meta: dict[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """As a state comes back from a file: read-only arrays, and meta through JSON."""
    kept = {name: np.array(array) for name, array in tensors.items()}
    for array in kept.values():
        array.flags.writeable = False
    return kept, json.loads(json.dumps(meta))


@pytest.mark.parametrize("batches", [0, 1, 3])
def test_a_restored_one_continues_like_the_original(make: Make, base: Base, batches: int) -> None:
    method, other = learned(make, base, batches), learned(make, base, 1)
    other.restore(*json_like(*method.snapshot()))
    assert state(other) == state(method) and other.version == method.version
    for seed in range(10, 13):
        seen = batch(base, seed)
        assert torch.equal(answered(other, seen), answered(method, seen))
        assert method.update(seen)[0] == other.update(seen)[0]
        assert state(other) == state(method)


def test_a_snapshot_is_a_copy(make: Make, base: Base) -> None:
    method = learned(make, base, 2)
    tensors, meta = method.snapshot()
    before = tensors_hash(tensors, meta)
    method.update(batch(base, 5))
    assert tensors_hash(tensors, meta) == before, "learning has written into a snapshot"
    method.restore(tensors, meta)
    for array in tensors.values():
        array.fill(1)
    assert state(method) == before, "a state lives on in the arrays that it was restored from"
    for array in method.snapshot()[0].values():
        array.fill(1)
    assert state(method) == before


def test_back_to_the_source_to_the_bit(make: Make, base: Base) -> None:
    method = make()
    start, begun = method.snapshot(), state(method)
    first = answered(method, batch(base, 9))
    for seed in range(3):
        method.update(batch(base, seed))
    method.restore(*start)
    assert state(method) == begun and method.version == 0
    assert torch.equal(answered(method, batch(base, 9)), first)


def test_no_hidden_seed(make: Make, base: Base) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    before, one = torch.get_rng_state(), state(learned(make, base))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    np.random.seed(2)
    assert state(learned(make, base)) == one
