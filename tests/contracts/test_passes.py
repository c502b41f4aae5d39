"""What `core.protocols.Pass` promises a method, of every pass: vectors, and pictures under alignment."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor
from toy_towers import looking
from toy_vectors import shifted, write_vectors

from core.config import Config
from core.protocols import Pass
from core.records import Coordinates
from core.types import Modality, Query, QueryBatch
from index.versions import GalleryVersions
from qshift.build import Engine, assemble, engine
from qshift.methods import with_method
from qshift.recipes.in_memory import base_in_memory, gallery_in_memory, unit_rows
from stream.session import Session

COUNT, PADDED = 20, 32
TRAINED = "tcr"


def vectors(folder: Path, method: str) -> Engine:
    write_vectors(folder)
    named = Config(base=folder / "base", gallery=folder / "gallery", device="cpu")
    return engine(with_method(named, method))


def tensors(folder: Path, method: str) -> Engine:
    """Pictures; the tower has BatchNorm, so that its lane aligns."""
    pictures, config = _pictures(96, 0), with_method(Config(device="cpu"), method)
    with torch.no_grad():
        rows = unit_rows(looking()(pictures))
    base = base_in_memory(looking(), rows, list(pictures + 0.05), 32, 0, "cpu")
    names = [f"item {number}" for number in range(len(rows))]
    return assemble(config, base, GalleryVersions(gallery_in_memory(base, rows, names, "cpu", 1)))


def _pictures(count: int, seed: int) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def dark() -> list[Tensor]:
    return list(0.4 * _pictures(COUNT, 1) + 1)


@dataclass(frozen=True)
class World:
    """One batch on its way, and whom it belongs to."""

    engine: Engine
    session: Session
    seen: Pass


def world(made: Engine, modality: Modality, contents: list[object]) -> World:
    queries = tuple(
        made.pipeline.admit(Query(Coordinates("queries", 0, number), modality, content))  # type: ignore[arg-type]
        for number, content in enumerate(contents)
    )
    session = Session(made.pipeline, modality)
    return World(made, session, session.answer(QueryBatch("0", 0, modality, queries)))


Case = Callable[[Path], World]
BATTERY: dict[str, Case] = {
    "BatchPass of vectors": lambda f: world(vectors(f, TRAINED), "vector", list(shifted(COUNT)[0])),
    "BatchPass of vectors, nothing trained": lambda f: world(
        vectors(f, "frozen"), "vector", list(shifted(COUNT)[0])
    ),
    "BatchPass of pictures": lambda f: world(tensors(f, TRAINED), "image", dark()),
    "BatchPass of pictures, aligned": lambda f: world(
        tensors(f, "default"), "image", dark()
    ),
}  # fmt: skip
"""Class, and whose batch it is."""


@pytest.fixture(params=BATTERY)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    found = BATTERY[request.param](tmp_path)
    assert type(found.seen).__name__ == request.param.split()[0]
    return found


@pytest.fixture
def seen(made: World) -> Pass:
    return made.seen


def items(made: World) -> Tensor:
    gallery = made.engine.versions.current()
    return torch.from_numpy(gallery.features(gallery.keys()))


def test_rows_are_padded_and_real_ones_come_first(seen: Pass) -> None:
    assert seen.mask.tolist() == [row < COUNT for row in range(PADDED)] and seen.mask.dtype == torch.bool
    assert len(seen.ids) == COUNT == len(set(seen.ids))
    assert seen.ids[3] == "queries/0/3"


def test_source_is_frozen(made: World, seen: Pass) -> None:
    assert seen.source.shape[0] == PADDED and not seen.source.requires_grad
    torch.testing.assert_close(seen.source.norm(dim=1), torch.ones(PADDED), atol=1e-5, rtol=0)


def test_encoding_by_the_lanes_parameters(made: World, seen: Pass) -> None:
    params = made.session.adapter.parameters()
    features = seen.encode(params)
    assert features.shape == seen.source.shape
    assert features.requires_grad == any(tensor.requires_grad for tensor in params.values())
    again = seen.encode(params)
    torch.testing.assert_close(again.detach(), features.detach(), atol=1e-6, rtol=0)
    if made.session.aligner is None:  # nothing was learned yet: only alignment moves
        torch.testing.assert_close(features.detach(), seen.source, atol=1e-6, rtol=0)
    else:
        assert not torch.allclose(features.detach(), seen.source, atol=1e-3)


def test_each_encode_has_a_graph_of_its_own(made: World, seen: Pass) -> None:
    """Three inner steps: each goes backward."""
    params = made.session.adapter.parameters()
    trained = [tensor for tensor in params.values() if tensor.requires_grad]
    for _ in range(3 if trained else 0):
        grads = torch.autograd.grad(seen.encode(params)[seen.mask].sum(), trained)
        assert any(float(grad.abs().max()) > 0 for grad in grads)


def test_encoding_by_other_parameters(made: World, seen: Pass) -> None:
    source = made.engine.base.encoders[made.session.modality].adaptable()
    moved = seen.encode({name: tensor + 0.3 for name, tensor in source.items()})
    assert not torch.allclose(moved, seen.encode(made.session.adapter.parameters()), atol=1e-3)


def test_neighbours_are_the_nearest_of_the_shortlist_best_first(made: World, seen: Pass) -> None:
    features = seen.source
    near, short = seen.neighbours(features), seen.shortlist(features)
    width = features.shape[1]
    assert (
        near.shape == (PADDED, 16, width) and not near.requires_grad and short.shape[::2] == (PADDED, width)
    )
    for row in range(COUNT):
        cosines = [float(item @ features[row]) for item in short[row] if item.any()]
        expected = sorted(cosines, reverse=True)[:16]
        found = (near[row] @ features[row]).tolist()
        assert found == pytest.approx(expected, abs=1e-5)


def test_places_without_an_item_are_zero(made: World, seen: Pass) -> None:
    short, count = seen.shortlist(seen.source), len(items(made))
    used = (short != 0).any(dim=2).sum(dim=1)
    assert used.tolist() == [min(count, short.shape[1])] * PADDED


def test_the_whole_gallery(made: World, seen: Pass) -> None:
    assert torch.equal(seen.gallery(), items(made))


def test_scrambled_pictures_and_nothing_else(made: World, seen: Pass) -> None:
    scrambled = seen.scrambled(made.session.adapter.parameters())
    if made.session.modality != "image":
        assert scrambled is None
        return
    assert scrambled is not None and scrambled.shape == seen.source.shape
    torch.testing.assert_close(scrambled.detach().norm(dim=1), torch.ones(PADDED), atol=1e-5, rtol=0)
    assert not torch.allclose(scrambled.detach(), seen.encode(made.session.adapter.parameters()).detach())


def test_asking_changes_nothing(made: World, seen: Pass) -> None:
    params, before = made.session.adapter.parameters(), made.session.state_hash()
    source = seen.source.clone()
    for _ in range(2):
        seen.encode(params), seen.neighbours(source), seen.shortlist(source), seen.gallery()
        seen.scrambled(params)
    made.session.changed()
    assert made.session.state_hash() == before and torch.equal(seen.source, source)
