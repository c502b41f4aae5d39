"""The two-tower trainer against loops, on features small enough to train at once."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from adapters.offline.two_tower import Projection, TwoTowerConfig, contrast, fit_two_tower
from core.errors import ConfigError

SMALL = TwoTowerConfig(width=16, hidden=64, epochs=60, batch=16, seed=1)


def views(n: int = 50) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]]:
    """Pictures and texts are two random linear looks at the same hidden content."""
    draw = np.random.default_rng(0)
    content = draw.standard_normal((n, 10))
    look, read = draw.standard_normal((10, 24)), draw.standard_normal((10, 12))

    def noisy(clean: NDArray[np.float64]) -> NDArray[np.float32]:
        return (clean + 0.1 * draw.standard_normal(clean.shape)).astype(np.float32)

    return [noisy(content @ look) for _ in range(3)], [noisy(content @ read) for _ in range(2)]


def test_contrast_equals_a_loop() -> None:
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.nn.functional.normalize(torch.randn(5, 4, generator=draw), dim=1) for _ in range(2))
    total = 0.0
    for left, right in ((a, b), (b, a)):
        for i in range(5):
            logits = [float(left[i] @ right[j]) / 0.2 for j in range(5)]
            total -= logits[i] - math.log(sum(math.exp(v) for v in logits))
    assert float(contrast(a, b, 0.2)) == pytest.approx(total / 10, rel=1e-5)
    assert float(contrast(a[:1], b[:1], 0.2)) == 0.0


def test_projection_equals_its_formula() -> None:
    torch.manual_seed(0)
    head = Projection(6, 5, 4)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn_like(parameter))
    x = torch.randn(3, 6)

    def norm(row: list[float], name: str) -> list[float]:
        mean = sum(row) / len(row)
        deviation = math.sqrt(sum((v - mean) ** 2 for v in row) / len(row) + 1e-5)
        w, b = state[f"{name}.weight"].tolist(), state[f"{name}.bias"].tolist()
        return [(v - mean) / deviation * w[i] + b[i] for i, v in enumerate(row)]

    def linear(row: list[float], name: str) -> list[float]:
        w, b = state[f"{name}.weight"].tolist(), state[f"{name}.bias"].tolist()
        return [sum(p * q for p, q in zip(line, row)) + b[i] for i, line in enumerate(w)]

    state = head.state_dict()
    for row, got in zip(x.tolist(), head(x).tolist()):
        hidden = norm(linear(norm(row, "layers.0"), "layers.1"), "layers.2")
        hidden = [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in hidden]
        out = linear(hidden, "layers.4")
        length = math.sqrt(sum(v * v for v in out))
        assert got == pytest.approx([v / length for v in out], abs=1e-5)


def test_tensors_are_named_as_the_encoders_load_them() -> None:
    names = [f"layers.{layer}.{part}" for layer in (0, 1, 2, 4) for part in ("weight", "bias")]
    assert list(Projection(4, 3, 2).state_dict()) == names


def test_training_matches_items_it_could_not_match_before() -> None:
    images, texts = views()
    calls: list[tuple[int, int]] = []
    heads = fit_two_tower(images, texts, SMALL, lambda done, total, text: calls.append((done, total)))
    assert calls == [(epoch + 1, 60) for epoch in range(60)]
    assert heads.losses[-1] < 0.3 * heads.losses[0]
    assert not heads.image.training and not heads.text.training

    def first_rank(heads_image: Projection, heads_text: Projection) -> float:
        with torch.no_grad():
            score = heads_text(torch.from_numpy(texts[0])) @ heads_image(torch.from_numpy(images[0])).T
        return float((score.argmax(1) == torch.arange(50)).float().mean())

    torch.manual_seed(0)
    assert first_rank(Projection(24, 32, 16), Projection(12, 32, 16)) < 0.2
    assert first_rank(heads.image, heads.text) > 0.9


def test_same_seed_same_bits_and_the_global_generator_is_untouched() -> None:
    images, texts = views(20)
    few = TwoTowerConfig(width=8, hidden=8, epochs=2, batch=8, seed=3)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one = fit_two_tower(images, texts, few)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(7)
    two = fit_two_tower(images, texts, few)
    other = fit_two_tower(images, texts, TwoTowerConfig(width=8, hidden=8, epochs=2, batch=8, seed=4))
    for name, value in one.image.state_dict().items():
        assert torch.equal(value, two.image.state_dict()[name])
    assert one.losses == two.losses != other.losses
    name = "layers.4.weight"
    assert not torch.equal(one.text.state_dict()[name], other.text.state_dict()[name])


def test_a_rest_of_one_item_is_spread() -> None:
    images, texts = views(17)
    heads = fit_two_tower(images, texts, TwoTowerConfig(width=4, hidden=4, epochs=1, batch=16))
    assert heads.losses[0] > 0.5 and math.isfinite(heads.losses[0])


def test_views_that_do_not_fit_are_refused() -> None:
    images, texts = views(10)
    for bad_images, bad_texts in (
        (images[:1], texts),
        (images, []),
        ([], texts),
        (images, [texts[0][:9]]),
        ([images[0], images[1][:, :5]], texts),
        ([images[0][:1], images[1][:1]], [texts[0][:1]]),
        ([images[0][0], images[1][0]], texts),
    ):
        with pytest.raises(ConfigError, match="expected"):
            fit_two_tower(bad_images, bad_texts, SMALL)
