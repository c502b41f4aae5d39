"""Phase images by their closed forms, and the fused encoder by what it must not change."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from core.errors import ConfigError
from encoders.phase import Ask, PhaseFusion, phase_image

ASKS: tuple[Ask, ...] = ("none", "class_queries", "image_query", "best_class")


def textured(count: int = 2, height: int = 12, width: int = 10) -> Tensor:
    draw = torch.Generator().manual_seed(3)
    return torch.rand(count, 3, height, width, generator=draw, dtype=torch.float64)


def test_amplitude_is_the_same_at_every_frequency() -> None:
    found = phase_image(textured(), amplitude=5.0)
    size = torch.fft.fft2(found).abs()[:, 0]
    assert size[:, 0, 0] == pytest.approx(torch.zeros(2), abs=1e-9)
    others = size.flatten(1)[:, 1:]
    assert others.numpy() == pytest.approx(torch.full_like(others, 5.0).numpy())
    rms = found.square().mean((1, 2, 3)).sqrt()
    expected = 5.0 * math.sqrt(12 * 10 - 1) / (12 * 10)
    assert rms.tolist() == pytest.approx([expected] * 2, rel=1e-9)


def test_phases_are_those_of_the_grey_picture() -> None:
    x = textured()
    grey = 0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2]
    ours, theirs = (torch.fft.fft2(v)[:, 1:, 1:].angle() for v in (phase_image(x)[:, 0], grey))
    turned = torch.polar(torch.ones_like(ours), ours - theirs)
    assert turned.real.numpy() == pytest.approx(torch.ones_like(turned.real).numpy())


def test_contrast_and_brightness_change_nothing_and_inversion_the_sign() -> None:
    x = textured()
    own = phase_image(x)
    for factor, moved in ((0.4, 0.3), (3.0, -1.0)):
        assert phase_image(factor * x + moved).numpy() == pytest.approx(own.numpy(), abs=1e-9)
    assert phase_image(1 - x).numpy() == pytest.approx(-own.numpy(), abs=1e-9)
    assert own.std((2, 3), correction=0).flatten().tolist() == pytest.approx([1, 1])
    rolled = phase_image(x.roll((2, 3), (2, 3)))
    assert rolled.numpy() == pytest.approx(own.roll((2, 3), (2, 3)).numpy(), abs=1e-9)


def test_blank_pictures_lowpass_eps_and_clip() -> None:
    blank = phase_image(torch.full((1, 3, 8, 8), 0.4, dtype=torch.float64))
    assert blank.isfinite().all()
    x = textured()
    coarse = torch.fft.fft2(phase_image(x, amplitude=1.0, lowpass=0.1))[:, 0].abs()
    k = (torch.fft.fftfreq(12)[:, None] ** 2 + torch.fft.fftfreq(10) ** 2).double()
    expected = torch.exp(-k / (2 * 0.1**2))
    expected[0, 0] = 0
    assert coarse[0].numpy() == pytest.approx(expected.numpy(), abs=1e-6)
    soft = torch.fft.fft2(phase_image(x, amplitude=1.0, eps=2.0))[0, 0].abs()
    grey = torch.fft.fft2(0.299 * x[0, 0] + 0.587 * x[0, 1] + 0.114 * x[0, 2]).abs()
    assert soft[1, 2] == pytest.approx(float(grey[1, 2] / (grey[1, 2] + 2)))
    assert phase_image(x, amplitude=50_000.0, clip=True).min() == 0


def network(ask: Ask, phase: bool = True) -> PhaseFusion:
    torch.manual_seed(0)
    tower = nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 10, 16))
    text = normalize(torch.randn(6, 16), dim=1)
    return PhaseFusion(tower, text, 16, ask=ask, phase=phase).eval()


@pytest.mark.parametrize("ask", ASKS)
def test_a_picture_does_not_change_with_its_batch_mates(ask: Ask) -> None:
    net, x = network(ask), textured(5).float()
    with torch.no_grad():
        net.gate.fill_(0.7)
        for attention in (net.among, net.asking):
            if attention is not None:
                attention.out_proj.weight.normal_(std=0.1)
        whole = net(x)
        alone = torch.cat([net(row[None]) for row in x])
    assert whole.numpy() == pytest.approx(alone.numpy(), abs=1e-5)
    assert whole.norm(dim=1).tolist() == pytest.approx([1] * 5)


@pytest.mark.parametrize("ask", ["none", "class_queries", "image_query"])
def test_at_the_start_it_is_the_tower(ask: Ask) -> None:
    net, x = network(ask), textured(40).float()
    with torch.no_grad():
        ours, theirs = net(x), normalize(net.tower(x), dim=1)
        blind = PhaseFusion(net.tower, net.text, 16, ask="none", phase=False).eval()(x)
    near = [
        torch.corrcoef(torch.stack(((v @ v.T).flatten(), (theirs @ theirs.T).flatten())))[0, 1]
        for v in (ours, blind)
    ]
    assert min(near) > 0.85, "similarities are those of the tower, but for the layer norm"


def test_one_token_without_a_residual_ignores_its_query() -> None:
    """Why prompts are not simply the query of attention to one fused feature: it would be constant."""
    torch.manual_seed(1)
    attention = nn.MultiheadAttention(16, 4, batch_first=True)
    token = torch.randn(1, 1, 16)
    with torch.no_grad():
        answers = [attention(torch.randn(1, 1, 16), token, token)[0] for _ in range(3)]
    assert torch.allclose(answers[0], answers[1]) and torch.allclose(answers[1], answers[2])


def test_what_cannot_be_built_is_refused() -> None:
    with pytest.raises(ConfigError, match="no way to ask 'batch'"):
        PhaseFusion(nn.Identity(), torch.zeros(2, 4), 4, ask="batch")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"prompts \[T, 4\] expected, got \(2, 5\)"):
        PhaseFusion(nn.Identity(), torch.zeros(2, 5), 4)
