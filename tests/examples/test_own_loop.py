"""A torch model in a loop of one's own: `qshift.Session.of`, without folders."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qshift
from core.config import Config
from core.errors import ConfigError, GalleryError, Refused
from qshift.session import Session

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_loop.py"
ITEMS, SIDE, WIDTH = 96, 16, 24
NAMES = [f"item {number}" for number in range(ITEMS)]


def pictures() -> Tensor:
    return torch.randn(ITEMS, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def normed() -> nn.Module:
    torch.manual_seed(1)
    layers = [nn.Conv2d(3, 16, 3, 2), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(144, WIDTH)).eval()


def clip_visual() -> nn.Module:
    import open_clip

    torch.manual_seed(1)
    vision = {"image_size": SIDE, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16}
    text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
    model: Any = open_clip.CLIP(WIDTH, vision, text)
    return model.visual  # type: ignore[no-any-return]


def made(model: nn.Module, **changes: Any) -> Session:
    with torch.no_grad():
        features = model(pictures())
    parts = {"gallery": features, "names": NAMES, "clean": pictures() + 0.1, "config": Config(device="cpu")}
    return Session.of(model, **{**parts, **changes})


@pytest.mark.slow
def test_it_runs_as_written(example: Callable[..., str]) -> None:
    said = example("own_loop.py")
    rows = re.findall(r"(white|yellow)  right of 64: frozen +(\d+), served +(\d+)", said)
    assert [light for light, *_ in rows] == ["white"] * 2 + ["yellow"] * 4
    for light, frozen, served in rows:
        assert frozen == served if light == "white" else int(served) > int(frozen)


@pytest.mark.slow
def test_labels_are_taken_as_written(example: Callable[..., str]) -> None:
    """Half of the sample of six batches is measured, and what is served gains by the shift."""
    said = example("own_labels.py")
    ((count, frozen, served),) = re.findall(r"(\d+) labels: mAP ([\d.]+) frozen, ([\d.]+) served", said)
    assert 60 < int(count) < 140 and float(served) > float(frozen)


def test_its_loop_is_short() -> None:
    text = EXAMPLE.read_text()
    loop = text[text.index("    session = ") : text.index("    return gained")]
    assert 0 < len(loop.splitlines()) < 15


@pytest.mark.parametrize("model", [normed, clip_visual])
def test_items_find_themselves_and_shifts_are_learned_from(model: Callable[[], nn.Module]) -> None:
    session = made(model())
    answer = session.answer(pictures()[:32])
    assert [row[0] for row in answer.frozen.items] == NAMES[:32]
    assert not answer.frozen.distances[:, 0].any()
    answer = session.answer(0.3 * pictures()[:32] + 1.5)
    assert not answer.quiet
    start, step = session.state_hash("image"), session.learn(answer)
    assert step.updated and session.state_hash("image") != start
    session.reset()
    assert session.state_hash("image") == start


def test_two_sessions_learn_the_same_to_the_bit() -> None:
    hashes = []
    for _ in range(2):
        session = made(normed())
        session.learn(session.answer(list(0.3 * pictures()[:32] + 1.5)))
        hashes.append(session.state_hash("image"))
    assert hashes[0] == hashes[1]


def test_the_model_of_the_user_stays_as_it_is() -> None:
    model = normed().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        features = normed()(pictures())
    session = Session.of(model, features, NAMES, pictures(), config=Config(device="cpu"))
    session.learn(session.answer(0.3 * pictures()[:32] + 1.5))
    assert model.training and all(tensor.requires_grad for tensor in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.modules())


def test_a_model_in_halves_adapts_in_float32() -> None:
    model = normed()
    with torch.no_grad():
        features = model(pictures())
    half = Session.of(
        model.half(), gallery=features, names=NAMES, clean=pictures().half(), config=Config(device="cpu")
    )
    assert half.learn(half.answer(0.3 * pictures()[:32] + 1.5)).updated
    assert next(model.parameters()).dtype == torch.float16
    assert [row[0] for row in half.answer(pictures()[:32].half()).frozen.items] == NAMES[:32]


def test_a_gallery_of_fewer_items_than_bits() -> None:
    model = normed()
    with torch.no_grad():
        features = model(pictures())[:12]
    for bits in (16, 128):
        session = made(model, gallery=features, names=NAMES[:12], bits=bits)
        assert [row[0] for row in session.answer(pictures()[:12]).frozen.items] == NAMES[:12]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"clean": pictures()[:63]}, "63 clean pictures: expected 64 or more"),
        ({"clean": pictures().numpy()}, r"clean pictures as tensors \[3, H, W\]"),
        ({"clean": pictures() * torch.nan}, "a clean picture cannot be used: .* NaN"),
        ({"clean": [*pictures()[:70], torch.zeros(3, 8, 8)]}, r"expected a tensor \[3, 16, 16\]"),
        ({"clean": torch.zeros(64, 3, 2, 2)}, r"the model does not take pictures \[B, 3, 2, 2\]"),
        ({"gallery": torch.ones(ITEMS, 8)}, "features have width 8, the model gives 24"),
        ({"gallery": torch.zeros(ITEMS, WIDTH)}, "a row of zeros"),
        ({"gallery": torch.ones(WIDTH)}, r"expected gallery features \[N, D\]"),
        ({"names": NAMES[:-1]}, "expected 95 of everything"),
        ({"names": [*NAMES[:-1], NAMES[0]]}, "each identifier once"),
        ({"bits": 12}, "divisible by 8, got 12"),
        ({"method": "tenet"}, "no method 'tenet'"),
        ({"config": Config(precision="bf16")}, "precision 'bf16' is for bases in folders"),
    ],
)
def test_parts_that_do_not_fit(changes: dict[str, Any], words: str) -> None:
    with pytest.raises((ConfigError, GalleryError), match=words):
        made(normed(), **changes)


def test_models_that_give_no_rows() -> None:
    class Pair(nn.Module):
        def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
            return rows, rows

    features = torch.randn(ITEMS, WIDTH, generator=torch.Generator().manual_seed(2))
    for model, words in ((Pair(), "gives tuple for one picture"), (nn.Identity(), r"gives \[1, 3, 16, 16\]")):
        with pytest.raises(ConfigError, match=words):
            made_of = {
                "gallery": features,
                "names": NAMES,
                "clean": pictures(),
                "config": Config(device="cpu"),
            }
            Session.of(model, **made_of)


def test_queries_that_are_no_such_pictures() -> None:
    session = made(normed())
    for wrong, words in (
        (
            torch.zeros(3, 8, 8),
            r"query 1: expected a tensor \[3, 16, 16\] as the clean ones, got \[3, 8, 8\]",
        ),
        (torch.zeros(3, SIDE, SIDE, dtype=torch.uint8), "expected floats"),
        (torch.full((3, SIDE, SIDE), torch.inf), "NaN or infinity"),
        (b"\x89PNG", "got bytes"),
    ):
        with pytest.raises(Refused, match=words):
            session.answer([pictures()[0], wrong])
    assert "Session" in qshift.__all__
