"""Training a small open_clip model from nothing: its parts against loops, the whole on coloured shapes."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from core.errors import ArtifactError, ConfigError
from encoders.augment import moved, shaken
from encoders.clip import open_clip_towers
from encoders.contrast import multi_positive
from encoders.scratch import ScratchConfig, train_clip
from encoders.threads import one_thread

COLOURS = {"red": (220, 30, 30), "green": (20, 150, 40), "blue": (40, 60, 220), "black": (0, 0, 0)}
SHAPES = ("square", "disc", "cross")
PLACES = {"top left": (9, 9), "top right": (9, 23), "bottom left": (23, 9), "bottom right": (23, 23)}
KINDS = [(colour, shape, place) for colour in COLOURS for shape in SHAPES for place in PLACES]
TINY = ScratchConfig(
    image_size=16, patch=8, width=16, heads=2, image_layers=1, text_layers=1, embed=16, context=12, steps=8,
    batch=16, warm_up=2,
)  # fmt: skip


def drawing(kind: tuple[str, str, str], draw: np.random.Generator) -> NDArray[np.uint8]:
    """uint8 [32, 32, 3]: one coloured shape on white, of a random size, moved a little."""
    colour, shape, place = kind
    y, x = (centre + draw.uniform(-1.5, 1.5) for centre in PLACES[place])
    down, across = np.abs(np.arange(32)[:, None] - y), np.abs(np.arange(32)[None] - x)
    size = draw.uniform(4.0, 6.0)
    inside = {
        "square": np.maximum(down, across) < size,
        "disc": down**2 + across**2 < size**2,
        "cross": (np.minimum(down, across) < 1.5) & (np.maximum(down, across) < size),
    }[shape]
    picture = np.full((32, 32, 3), 255, np.uint8)
    picture[inside] = COLOURS[colour]
    return picture


def phrases(kind: tuple[str, str, str]) -> tuple[str, ...]:
    colour, shape, place = kind
    return (f"a {colour} {shape} in the {place}", f"the {place} shows a {colour} {shape}")


def drawings(kinds: Sequence[tuple[str, str, str]], seed: int) -> NDArray[np.uint8]:
    draw = np.random.default_rng(seed)
    return np.stack([drawing(kind, draw) for kind in kinds])


def test_loss_equals_a_loop() -> None:
    draw = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4, 3, generator=draw)
    positive = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 1, 1], [0, 0, 1]]).bool()

    def one_way(values: list[list[float]], truth: list[list[bool]]) -> float:
        total = 0.0
        for row, true in zip(values, truth):
            normaliser = math.log(sum(math.exp(v) for v in row))
            total -= sum((v - normaliser) / sum(true) for v, t in zip(row, true) if t)
        return total / len(values)

    expected = one_way(logits.tolist(), positive.tolist()) + one_way(logits.T.tolist(), positive.T.tolist())
    assert float(multi_positive(logits, positive)) == pytest.approx(expected / 2, rel=1e-5)
    assert float(multi_positive(logits[:1, :1], positive[:1, :1])) == 0.0


def test_pictures_move_as_named_and_onto_white() -> None:
    pictures = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    zero, one, still = torch.zeros(5), torch.ones(5), torch.zeros(5, 2)
    assert torch.allclose(moved(pictures, zero, one, still), pictures, atol=1e-6)
    turned = moved(pictures, zero + math.pi / 2, one, still)
    assert torch.allclose(turned, torch.rot90(pictures, -1, (2, 3)), atol=1e-5)
    # Half a side is 4 pixels: one to the right, two down.
    pushed = moved(pictures, zero, one, torch.tensor([[0.25, 0.5]]).repeat(5, 1))
    expected = torch.ones_like(pictures)
    expected[:, :, 2:, 1:] = pictures[:, :, :-2, :-1]
    assert torch.allclose(pushed, expected, atol=1e-5)
    # A shift is what is seen, also of turned and enlarged pictures.
    turned_and_pushed = moved(pictures, zero + math.pi / 2, one, torch.tensor([[0.25, 0.0]]).repeat(5, 1))
    expected = torch.ones_like(pictures)
    expected[:, :, :, 1:] = torch.rot90(pictures, -1, (2, 3))[:, :, :, :-1]
    assert torch.allclose(turned_and_pushed, expected, atol=1e-5)
    square = torch.ones(1, 3, 16, 16)
    square[:, :, 6:10, 6:10] = 0
    larger = moved(square, torch.zeros(1), torch.full((1,), 2.0), torch.zeros(1, 2))
    assert float((1 - larger).sum()) == pytest.approx(4 * float((1 - square).sum()), rel=0.05)
    drawn = [shaken(pictures, 0.3, 0.1, 0.1, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert (drawn[0] == drawn[1]).all() and not torch.allclose(drawn[0], drawn[2])
    assert torch.allclose(shaken(pictures, 0, 0, 0, torch.Generator()), pictures, atol=1e-6)


def test_loss_falls_and_one_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    kinds = KINDS[:40]
    pictures, captions = drawings(kinds, 0), [phrases(kind) for kind in kinds]
    calls: list[tuple[int, int, str]] = []
    config = replace(TINY, steps=40)
    before = torch.random.get_rng_state()
    losses = train_clip(tmp_path / "a", pictures, captions, config, 3, lambda *call: calls.append(call))
    assert (torch.random.get_rng_state() == before).all()
    assert len(losses) == 40 and [call[:2] for call in calls] == [(i + 1, 40) for i in range(40)]
    assert np.mean(losses[:5]) == pytest.approx(math.log(16), rel=0.25)  # nothing known of 16 pairs
    assert np.mean(losses[-5:]) < 0.85 * np.mean(losses[:5])
    for folder, seed in (("b", 3), ("c", 4)):
        train_clip(tmp_path / folder, pictures, captions, TINY, seed)
    train_clip(tmp_path / "d", pictures, captions, TINY, 3)
    weights = {name: (tmp_path / name / "open_clip_model.safetensors").read_bytes() for name in "bcd"}
    assert weights["b"] == weights["d"] and weights["b"] != weights["c"]


def test_towers_load_and_adapt_by_layer_norms_only(tmp_path: Path) -> None:
    kinds = KINDS[::5]
    train_clip(tmp_path, drawings(kinds, 0), [phrases(kind) for kind in kinds], TINY)
    document = json.loads((tmp_path / "open_clip_config.json").read_text())
    assert str(tmp_path) not in json.dumps(document)
    pixels = drawings(kinds, 0).reshape(-1, 3) / 255
    assert document["preprocess_cfg"]["mean"] == pytest.approx(pixels.mean(0), abs=1e-3)
    assert document["preprocess_cfg"]["std"] == pytest.approx(pixels.std(0), abs=1e-3)
    towers = open_clip_towers(f"local-dir:{tmp_path}")
    assert towers.image.width == towers.text.width == 16
    points = towers.image.hook_points()
    assert points.layer_norm and len(points.widths) == 8  # two groups of tokens at each of four LayerNorms
    assert towers.text.hook_points().widths == ()
    # Closed form: 2n + 2 LayerNorms in the image tower, 2n + 1 in the text tower, two tensors each.
    image, text = towers.image.adaptable(), towers.text.adaptable()
    assert (len(image), len(text)) == (8, 6)
    assert all("ln_" in name for name in (*image, *text))
    # Pictures that are no squares are set on white, as the galleries' own are.
    wide = np.zeros((10, 20, 3), np.uint8)
    prepared = towers.image.prepare(wide)
    assert (prepared[:, 0] == 255).all() and (prepared[:, 8] == 0).all()


@pytest.mark.parametrize(
    ("pictures", "captions", "message"),
    [
        (np.zeros((1, 8, 8, 3), np.uint8), [("a",)], "at least two pictures"),
        (np.zeros((2, 8, 8, 3), np.float32), [("a",), ("b",)], "float32"),
        (np.zeros((2, 8, 8, 4), np.uint8), [("a",), ("b",)], r"\(8, 8, 4\)"),
        (np.zeros((2, 8, 8, 3), np.uint8), [("a",)], "2 pictures have 1 sets"),
        (np.zeros((2, 8, 8, 3), np.uint8), [("a",), (" ", "")], "picture 1 has no caption"),
        (np.zeros((2, 8, 8, 3), np.uint8), [("a",), ()], "picture 1 has no caption"),
    ],
)
def test_what_cannot_be_learned_is_said(
    tmp_path: Path, pictures: NDArray[np.uint8], captions: list[tuple[str, ...]], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train_clip(tmp_path / "model", pictures, captions, TINY)
    assert not (tmp_path / "model").exists()


def test_odd_sets_and_sizes(tmp_path: Path) -> None:
    """Equal pictures of one colour, shared and blank captions, more than the batch holds."""
    pictures = np.full((20, 8, 12, 3), 255, np.uint8)
    losses = train_clip(tmp_path, pictures, [("same", "", "same")] * 20, TINY)
    assert losses == pytest.approx([math.log(16) / 2] * 8, rel=1e-4)  # one caption, 16 pictures, all true
    with pytest.raises(ConfigError, match="patch 7"):
        ScratchConfig(patch=7)
    with pytest.raises(ConfigError, match="at least 1"):
        ScratchConfig(steps=0)


def test_divergence_is_said(tmp_path: Path) -> None:
    config = replace(TINY, learning_rate=math.inf)
    kinds = KINDS[:20]
    with pytest.raises(ArtifactError, match="lower the learning rate"):
        train_clip(tmp_path / "m", drawings(kinds, 0), [phrases(kind) for kind in kinds], config)
    assert not (tmp_path / "m").exists()


def test_threads_come_back() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ValueError), one_thread():
        assert torch.get_num_threads() == 1
        raise ValueError
    assert torch.get_num_threads() == before


@pytest.mark.slow
def test_new_pictures_are_found_by_their_texts(tmp_path: Path) -> None:
    kinds = KINDS * 6
    config = ScratchConfig(
        image_size=32, patch=8, image_layers=2, text_layers=1, context=16, steps=300, batch=96, rotation=0.1
    )
    train_clip(tmp_path, drawings(kinds, 0), [phrases(kind) for kind in kinds], config)
    towers = open_clip_towers(f"local-dir:{tmp_path}")
    looks = [towers.image.prepare(picture) for picture in drawings(KINDS, 99)]
    words = [towers.text.prepare(phrases(kind)[0]) for kind in KINDS]
    seen = towers.image.encode(towers.image.collate(looks, len(looks)))
    read = towers.text.encode(towers.text.collate(words, len(words)))
    right = sum(
        int(max(range(len(KINDS)), key=(row @ seen.T).tolist().__getitem__) == i)
        for i, row in enumerate(read)
    )
    assert right / len(KINDS) > 0.9  # chance is 1 in 48
