"""Hooks at LayerNorm: what they are shown, and that a move is what its formula says."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import timm.layers
import torch
import torchvision.models.convnext as torchvision
from torch import Tensor, nn

from encoders.clip import open_clip_towers
from encoders.images import Preprocess
from encoders.norms import calibrate
from encoders.text import TextTower
from encoders.vision import ImageTower

WIDTH, SIDE, PATCH = 6, 12, 4
TOKENS = (SIDE // PATCH) ** 2 + 1


class Small(nn.Module):
    """A ViT of one block: patches and a class token, a norm of all tokens, a norm of the class token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.norm, self.mix = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)
        self.last = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.cat((self.token.expand(len(x), -1, -1), self.patches(x).flatten(2).transpose(1, 2)), 1)
        tokens = tokens + self.mix(self.norm(tokens)).relu().mean(1, keepdim=True)
        return self.last(tokens[:, 0])


@pytest.fixture
def tower() -> ImageTower:
    torch.manual_seed(0)
    module = Small()
    for layer in (module.norm, module.last):
        nn.init.normal_(layer.weight, 1, 0.3)
        nn.init.normal_(layer.bias, 0, 0.3)
    return ImageTower(module, Preprocess((SIDE, SIDE)))


def inputs(tower: ImageTower, count: int = 4) -> Tensor:
    pixels = np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)
    return tower.collate([tower.prepare(p) for p in pixels], count)


def z_of(rows: Tensor, eps: float) -> Tensor:
    """Vectors less their mean, over their sd."""
    out = torch.empty_like(rows)
    for place in np.ndindex(*rows.shape[:-1]):
        values = rows[place].tolist()
        mean = sum(values) / len(values)
        sd = (sum((value - mean) ** 2 for value in values) / len(values) + eps) ** 0.5
        out[place] = torch.tensor([(value - mean) / sd for value in values])
    return out


def by_hand(net: Small, x: Tensor, move: Callable[[int, int], tuple[Tensor, Tensor]]) -> Tensor:
    """The tower with moves (layer, row) -> scale, shift, one token after the other."""
    tokens = torch.cat((net.token.expand(len(x), -1, -1), net.patches(x).flatten(2).transpose(1, 2)), 1)
    z, moved = z_of(tokens, net.norm.eps), torch.empty_like(tokens)
    for row in range(len(x)):
        for token in range(TOKENS):
            scale, shift = move(1 if token == 0 else 0, row)
            moved[row, token] = (scale * z[row, token] + shift) * net.norm.weight + net.norm.bias
    tokens = tokens + net.mix(moved).relu().mean(1, keepdim=True)
    z = z_of(tokens[:, 0], net.last.eps)
    out = torch.stack([move(2, row)[0] * z[row] + move(2, row)[1] for row in range(len(x))])
    return nn.functional.normalize(out * net.last.weight + net.last.bias, dim=1)


def test_hooks_see_other_tokens_and_the_first_apart(tower: ImageTower) -> None:
    seen: dict[int, Tensor] = {}
    batch = inputs(tower)
    plain = tower.encode(batch)
    watched = tower.encode(batch, None, lambda layer, z: seen.update({layer: z}))
    assert torch.equal(plain, watched) and tower.hook_points().widths == (WIDTH, WIDTH, WIDTH)
    net: Any = tower.raw
    with torch.no_grad():
        patches = net.patches(batch).flatten(2).transpose(1, 2)
    assert [tuple(z.shape) for z in seen.values()] == [(4, WIDTH, TOKENS - 1), (4, WIDTH), (4, WIDTH)]
    torch.testing.assert_close(seen[0].transpose(1, 2), z_of(patches, 1e-5), atol=1e-5, rtol=0)


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("layers", [(0, 1, 2), (0,), (1,), (2,)])
def test_moves_equal_the_loop(tower: ImageTower, layers: tuple[int, ...], per_row: bool) -> None:
    torch.manual_seed(1)
    shape = (4, WIDTH) if per_row else (WIDTH,)
    moves = {layer: (torch.rand(shape) + 0.5, torch.randn(shape)) for layer in layers}
    batch = inputs(tower)
    got = tower.encode(batch, None, lambda layer, z: moves.get(layer))

    def move(layer: int, row: int) -> tuple[Tensor, Tensor]:
        if layer not in moves:
            return torch.ones(WIDTH), torch.zeros(WIDTH)
        scale, shift = moves[layer]
        return (scale[row], shift[row]) if per_row else (scale, shift)

    with torch.no_grad():
        expected = by_hand(tower.raw, batch, move)  # type: ignore[arg-type]
    torch.testing.assert_close(got, expected, atol=2e-6, rtol=0)
    assert not torch.allclose(got, tower.encode(batch), atol=1e-3)
    assert torch.equal(tower.encode(batch), tower.encode(batch)), "a hook leaves nothing behind"


def test_gradients_flow_to_adapted_scales_through_a_move(tower: ImageTower) -> None:
    batch, params = inputs(tower), {name: t.requires_grad_() for name, t in tower.adaptable().items()}
    move = (torch.full((WIDTH,), 2.0), torch.ones(WIDTH))
    source = tower.encode(batch, None, lambda layer, z: move)
    adapted = tower.encode(batch, params, lambda layer, z: move)
    torch.testing.assert_close(adapted.detach(), source)
    adapted[:, 0].sum().backward()
    assert all(t.grad is not None and t.grad.abs().max() > 0 for t in params.values())


def test_clean_statistics_are_those_of_the_groups(tower: ImageTower) -> None:
    batch, seen = inputs(tower), dict[int, Tensor]()
    tower.encode(batch, None, lambda layer, z: seen.update({layer: z}))
    found = calibrate(tower, [batch])
    assert found.widths == tower.hook_points().widths
    np.testing.assert_allclose(found.mean[:, :WIDTH], seen[0].mean(2), atol=1e-6)
    np.testing.assert_allclose(found.sd[:, :WIDTH], seen[0].std(2, correction=0), atol=1e-6)
    np.testing.assert_allclose(found.mean[:, WIDTH : 2 * WIDTH], seen[1], atol=1e-6)
    assert not found.sd[:, WIDTH:].any(), "one token has no spread of its own"


class Grid(nn.Module):
    """A norm over the channels of a grid, as in ConvNeXt; then one layer that stands in two places."""

    def __init__(self, norm: type[nn.LayerNorm] = nn.LayerNorm, patch: int = PATCH) -> None:
        super().__init__()
        self.patches, self.norm, self.twice = (
            nn.Conv2d(3, WIDTH, patch, patch),
            norm(WIDTH, eps=1e-5),
            nn.LayerNorm(WIDTH),
        )

    def forward(self, x: Tensor) -> Tensor:
        grid = self.patches(x)
        if isinstance(
            self.norm, timm.layers.LayerNorm2d | torchvision.LayerNorm2d
        ):  # they take channels first
            pooled: Tensor = self.norm(grid).mean((2, 3))
        else:
            pooled = self.norm(grid.permute(0, 2, 3, 1)).mean((1, 2))
        twice: Tensor = self.twice(self.twice(pooled) + 1)
        return twice


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize(
    ("norm", "patch"),
    [
        (norm, patch)
        for norm in (nn.LayerNorm, timm.layers.LayerNorm, timm.layers.LayerNorm2d, torchvision.LayerNorm2d)
        for patch in (PATCH, SIDE // WIDTH)
    ],
    ids=str,
)
def test_grids_are_one_group_and_shared_layers_none(
    norm: type[nn.LayerNorm], patch: int, per_row: bool
) -> None:
    """Also where a grid is as wide as it has channels, so that its shape does not say which axis it is."""
    torch.manual_seed(2)
    tower = ImageTower(Grid(norm, patch), Preprocess((SIDE, SIDE)))
    assert tower.hook_points().widths == (WIDTH,)
    shape = (4, WIDTH) if per_row else (WIDTH,)
    scale, shift = torch.rand(shape) + 0.5, torch.randn(shape)
    batch, shapes = inputs(tower), list[torch.Size]()

    def hook(layer: int, z: Tensor) -> tuple[Tensor, Tensor]:
        shapes.append(z.shape)
        return scale, shift

    got = tower.encode(batch, None, hook)
    assert shapes == [(4, WIDTH, SIDE // patch, SIDE // patch)]
    net: Any = tower.raw
    with torch.no_grad():
        z = z_of(net.patches(batch).permute(0, 2, 3, 1), 1e-5)
        place = (slice(None), None, None) if per_row else ()
        pooled = (z * scale[place] + shift[place]).mean((1, 2))
        expected = nn.functional.normalize(net.twice(net.twice(pooled) + 1), dim=1)
    torch.testing.assert_close(got, expected, atol=2e-6, rtol=0)


def test_open_clip_towers_have_hooks_for_pictures_alone(tiny: Path) -> None:
    towers = open_clip_towers(f"local-dir:{tiny}")
    widths = towers.image.hook_points().widths
    assert len(widths) > 4 and len(set(widths)) == 1
    assert isinstance(towers.text, TextTower) and towers.text.hook_points().widths == ()
    called: list[int] = []
    blank = towers.image.collate([], 2)
    features = towers.image.encode(blank, None, lambda layer, z: called.append(layer))
    assert called == list(range(len(widths))) and torch.equal(features, towers.image.encode(blank))


def of_batch_norm() -> tuple[ImageTower, nn.BatchNorm2d]:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3)
    nn.init.uniform_(norm.weight, 0.5, 2)
    nn.init.normal_(norm.bias)
    norm.running_mean, norm.running_var = torch.randn(3), torch.rand(3) + 0.5
    module = nn.Sequential(norm, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return ImageTower(module, Preprocess((SIDE, SIDE))), norm


@pytest.mark.parametrize("by_row", [False, True])
def test_a_move_at_batch_norm_is_a_move_of_its_input(by_row: bool) -> None:
    tower, norm = of_batch_norm()
    pixels, shape = inputs(tower), (4, 3) if by_row else (3,)
    scale, shift = torch.rand(shape) + 0.5, torch.randn(shape)
    mean, var, weight, bias = (
        side.detach().double() for side in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    spread = [side.double().expand(4, 3)[:, :, None, None] for side in (scale, shift)]
    moved = pixels.double() * spread[0] + spread[1]
    expected = (moved - mean[:, None, None]) / (var[:, None, None] + norm.eps).sqrt() * weight[:, None, None]
    expected = (expected + bias[:, None, None]).mean((2, 3))
    found = tower.encode(pixels, None, lambda *_: (scale, shift))
    assert torch.allclose(found.double(), nn.functional.normalize(expected, dim=1), atol=1e-6)
    assert torch.equal(norm.running_mean.double(), mean) and torch.equal(norm.running_var.double(), var)


@pytest.mark.parametrize("by_row", [False, True])
def test_an_activation_inside_a_batch_norm_stays(by_row: bool) -> None:
    """As in timm's EfficientNets, the packaged tower among them."""
    torch.manual_seed(0)
    norm = timm.layers.BatchNormAct2d(3, act_layer=nn.ReLU6)
    norm.running_mean, norm.running_var = torch.randn(3), torch.rand(3) + 0.5
    tower = ImageTower(nn.Sequential(norm, nn.AdaptiveAvgPool2d(1), nn.Flatten()), Preprocess((SIDE, SIDE)))
    pixels, shape = inputs(tower), (4, 3) if by_row else (3,)
    still = (torch.ones(shape), torch.zeros(shape))
    torch.testing.assert_close(tower.encode(pixels, None, lambda *_: still), tower.encode(pixels))
    scale, shift = torch.rand(shape) + 0.5, torch.randn(shape)
    scales, shifts = (side.expand(4, 3)[:, :, None, None] for side in (scale, shift))
    expected = tower.encode(pixels * scales + shifts)
    found = tower.encode(pixels, None, lambda *_: (scale, shift))
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, tower.encode(pixels), atol=1e-3)


def test_moves_by_row_have_gradients_at_batch_norm() -> None:
    tower, _ = of_batch_norm()
    params = {name: tensor.requires_grad_() for name, tensor in tower.adaptable().items()}
    move = (torch.ones(4, 3), torch.zeros(4, 3))
    plain, moved = (
        torch.autograd.grad(tower.encode(inputs(tower), params, hook).sum(), [*params.values()])
        for hook in (None, lambda *_: move)
    )
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(plain, moved, strict=True))
    assert any(bool(one.abs().sum() > 0) for one in plain)


def test_a_copy_of_a_hooked_tower_normalises_by_itself() -> None:
    """Off-line adapters train copies of the tower."""
    tower, norm = of_batch_norm()
    twin = copy.deepcopy(tower.raw)
    layer = next(layer for layer in twin.modules() if isinstance(layer, nn.BatchNorm2d))
    nn.init.constant_(layer.weight, 0)
    nn.init.constant_(layer.bias, 7)
    assert torch.equal(twin(inputs(tower)), torch.full((4, 3), 7.0))
    assert not torch.equal(tower.raw(inputs(tower)), torch.full((4, 3), 7.0))
    twin.train()(inputs(tower))
    assert layer.num_batches_tracked == 1 and norm.num_batches_tracked == 0


class Halved(nn.BatchNorm2d):
    """Of a kind that nobody here knows: something follows the normalisation."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clamp_min(0) / 2


@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18", "halved"])
def test_a_move_that_moves_nothing_changes_nothing(name: str, by_row: bool) -> None:
    """Whole towers of others, with all that they do beside normalising."""
    torch.manual_seed(0)
    module = nn.Sequential(Halved(3), nn.Conv2d(3, 4, 3), Halved(4), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    if name != "halved":
        module = timm.create_model(name, num_classes=0)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.2, 0.2)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    tower = ImageTower(module, Preprocess((32, 32)))
    pixels = torch.randn(4, 3, 32, 32)

    def still(_: int, entering: Tensor) -> tuple[Tensor, Tensor]:
        shape = (4, entering.shape[1]) if by_row else (entering.shape[1],)
        return torch.ones(shape), torch.zeros(shape)

    assert len(tower.hook_points().widths) > 1
    torch.testing.assert_close(tower.encode(pixels, None, still), tower.encode(pixels), atol=1e-4, rtol=1e-4)
