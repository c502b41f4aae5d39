"""Linear maps behind frozen towers: what they learn, what they leave alone, and how a stopped fit goes on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from encoders.linear_heads import Heads, HeadsConfig, Pairs, fit_heads, reciprocal_rank
from encoders.projection import Projection

WIDTH, PICTURES = 16, 400
CONFIG = HeadsConfig(epochs=6, batch=64, learning_rate=1e-2, temperature=0.1)
TRAIN, CHOOSE, HELD = (np.arange(*ends) for ends in ((0, 300), (300, 350), (350, 400)))


def rows(turned: float, seed: int = 0) -> Pairs:
    """A caption a picture; texts lie as pictures do, `turned` by one map for all and by noise of each."""
    draw = torch.Generator().manual_seed(seed)
    images = normalize(torch.randn(PICTURES, WIDTH, generator=draw), dim=1)
    turn = torch.eye(WIDTH) + turned * torch.randn(WIDTH, WIDTH, generator=draw)
    texts = normalize(images @ turn.T + 0.1 * turned * torch.randn(images.shape, generator=draw), dim=1)
    places = np.arange(PICTURES)
    return Pairs(images.numpy(), texts.numpy(), places, places)


def found(pairs: Pairs, heads: Heads | None = None) -> float:
    images, texts = (torch.from_numpy(side[HELD]) for side in (pairs.images, pairs.texts))
    if heads is not None:
        with torch.no_grad():
            images, texts = heads.image(images), heads.text(texts)
    return reciprocal_rank(texts, images, HELD, HELD)


def fitted(pairs: Pairs, folder: Path, config: HeadsConfig = CONFIG, stop: int = -1) -> Heads:
    epochs: list[int] = []

    def done() -> None:
        epochs.append(1)
        if len(epochs) == stop:
            raise KeyboardInterrupt

    return fit_heads(pairs, TRAIN, CHOOSE, config, folder, "these", done)


def test_a_map_that_all_pairs_share_is_learnt(tmp_path: Path) -> None:
    pairs = rows(0.5)
    before, heads = found(pairs), fitted(pairs, tmp_path / "heads")
    assert found(pairs, heads) > before + 0.1 and heads.epoch > 0


def test_what_nothing_makes_better_stays_as_it_is(tmp_path: Path) -> None:
    pairs = rows(0.0)
    heads = fitted(pairs, tmp_path / "heads")
    assert heads.epoch == 0
    unit = torch.from_numpy(pairs.images)
    torch.testing.assert_close(heads.image(unit), unit, atol=1e-6, rtol=0)


def test_a_stopped_fit_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    pairs = rows(0.5)
    whole = fitted(pairs, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fitted(pairs, tmp_path / "heads", stop=3)
    trained: list[int] = []
    heads = fit_heads(
        pairs, TRAIN, CHOOSE, CONFIG, tmp_path / "heads", "these", lambda: trained.append(len(trained))
    )
    assert len(trained) == CONFIG.epochs and heads.epoch == whole.epoch
    for mine, other in ((heads.image, whole.image), (heads.text, whole.text)):
        for name, tensor in mine.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[name]), name


def test_a_fit_of_something_else_is_not_taken_up(tmp_path: Path) -> None:
    fitted(rows(0.5, seed=1), tmp_path / "heads")
    here = fit_heads(rows(0.5), TRAIN, CHOOSE, CONFIG, tmp_path / "heads", "those", lambda: None)
    fresh = fit_heads(rows(0.5), TRAIN, CHOOSE, CONFIG, tmp_path / "fresh", "those", lambda: None)
    assert torch.equal(here.text.state_dict()["layers.weight"], fresh.text.state_dict()["layers.weight"])


def test_pictures_of_one_caption_do_not_repel_each_other(tmp_path: Path) -> None:
    """Two captions in all: told that equal ones are equal, a batch of them has no loss to take down."""
    draw = torch.Generator().manual_seed(2)
    two = normalize(torch.randn(2, WIDTH, generator=draw), dim=1)
    which = np.arange(PICTURES) % 2
    pairs = Pairs(two[which].numpy(), two[which].numpy(), np.arange(PICTURES), which)
    config = replace(CONFIG, epochs=1, temperature=0.02)
    moved: list[float] = []
    for same in (which, np.arange(PICTURES)):
        # The state of the last epoch, kept beside the best: the start ties with it and wins.
        folder = tmp_path / str(len(moved))
        fit_heads(replace(pairs, same=same), TRAIN, CHOOSE, config, folder, "these", lambda: None)
        from safetensors.torch import load_file

        moved.append(float(load_file(folder / "state.safetensors")["now/image.weight"].norm()))
    assert moved[0] < 0.5 * moved[1]


def test_reciprocal_rank_is_that_of_a_slow_loop() -> None:
    draw = torch.Generator().manual_seed(0)
    texts, images = (normalize(torch.randn(n, 4, generator=draw), dim=1) for n in (30, 20))
    images[7] = images[3]  # a tie
    wanted, numbers = np.arange(30) % 10, np.arange(20) % 10
    total = 0.0
    for text, want in zip(texts, wanted):
        cosines = [float(text @ image) for image in images]
        best = max(cosine for cosine, number in zip(cosines, numbers) if number == want)
        total += 1 / (1 + sum(c >= best and n != want for c, n in zip(cosines, numbers)))
    assert reciprocal_rank(texts, images, wanted, numbers, block=7) == pytest.approx(total / 30, abs=1e-6)


def test_a_linear_projection_is_read_back() -> None:
    made = Projection(6, None, 4, torch.zeros(6))
    again = Projection.from_tensors(made.state_dict())
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(made(x), again(x)) and (again.inputs, again.hidden, again.width) == (6, None, 4)
