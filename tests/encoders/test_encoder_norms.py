import numpy as np
import pytest
import torch
from torch import nn

from core.errors import ArtifactError
from encoders.images import Preprocess
from encoders.norms import affine_tensors, calibrate, to_half
from encoders.vision import ImageTower


class Small(nn.Module):
    """Two convolutions with BatchNorm, then a BatchNorm of vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.bn_one = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.two, self.bn_two = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)
        self.last = nn.BatchNorm1d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn_one(self.one(x)).relu()
        return self.last(self.bn_two(self.two(x)).relu().mean((2, 3)))


@pytest.fixture
def tower() -> ImageTower:
    torch.manual_seed(0)
    module = Small()
    for layer in (module.bn_one, module.bn_two, module.last):
        layer.running_mean.normal_(std=0.2)
        layer.running_var.uniform_(0.5, 2)
    return ImageTower(module, Preprocess((12, 12)))


def inputs(tower: ImageTower, count: int = 5) -> torch.Tensor:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 12, 12, 3), dtype=np.uint8)
    return tower.collate([tower.prepare(p) for p in pixels], count)


def test_calibration_equals_a_loop(tower: ImageTower) -> None:
    batch = inputs(tower)
    found = calibrate(tower, [batch[:3], batch[3:]])
    assert found.widths == (4, 6, 6) == tower.hook_points().widths
    assert found.mean.shape == found.sd.shape == (5, 16)
    np.testing.assert_allclose(found.features, tower.encode(batch).numpy(), atol=1e-6)
    net: Small = tower.raw  # type: ignore[assignment]
    with torch.no_grad():
        for n in range(5):
            first = net.one(batch[n : n + 1])
            second = net.two(net.bn_one(first).relu())
            third = net.bn_two(second).relu().mean((2, 3))
            column = 0
            for layer in (first, second, third):
                for channel in layer[0]:
                    pixels = [float(p) for p in channel.reshape(-1)]
                    mean = sum(pixels) / len(pixels)
                    sd = (sum((p - mean) ** 2 for p in pixels) / len(pixels)) ** 0.5
                    assert found.mean[n, column] == pytest.approx(mean, abs=1e-5)
                    assert found.sd[n, column] == pytest.approx(sd, abs=1e-5)
                    column += 1


def move_of(moves: dict[int, tuple[float, float]]):
    """A hook that moves some layers."""

    def hook(layer: int, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        if layer not in moves:
            return None
        return torch.full((x.shape[1],), moves[layer][0]), torch.full((x.shape[1],), moves[layer][1])

    return hook


def test_a_tap_moves_the_input_of_its_layer(tower: ImageTower) -> None:
    batch, seen = inputs(tower), []

    def hook(layer: int, entering: torch.Tensor) -> None:
        seen.append((layer, entering.shape[1]))

    assert torch.equal(tower.encode(batch, None, hook), tower.encode(batch))
    assert seen == [(0, 4), (1, 6), (2, 6)]
    net: Small = tower.raw  # type: ignore[assignment]
    got = tower.encode(batch, None, move_of({1: (2.0, 0.5)}))
    with torch.no_grad():
        second = 2 * net.two(net.bn_one(net.one(batch)).relu()) + 0.5
        expected = nn.functional.normalize(net.last(net.bn_two(second).relu().mean((2, 3))), dim=1)
    torch.testing.assert_close(got, expected)


def test_a_tap_that_fails_leaves_nothing_behind(tower: ImageTower) -> None:
    batch = inputs(tower)
    before = tower.encode(batch)

    def hook(layer: int, entering: torch.Tensor) -> None:
        if layer == 0:
            return move_of({0: (3.0, 1.0)})(0, entering)
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        tower.encode(batch, None, hook)
    assert torch.equal(tower.encode(batch), before)


def rows_move(layers: tuple[int, ...], seed: int = 0):
    """A hook that moves every row of some layers differently."""

    def hook(layer: int, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        if layer not in layers:
            return None
        generator = torch.Generator().manual_seed(seed + layer)
        scale = 0.5 + torch.rand(x.shape[:2], generator=generator)
        return scale, torch.randn(x.shape[:2], generator=generator)

    return hook


def test_every_row_may_have_a_move_of_its_own(tower: ImageTower) -> None:
    batch, hook = inputs(tower), rows_move((0, 1, 2))
    got = tower.encode(batch, None, hook)
    net: Small = tower.raw  # type: ignore[assignment]

    def moved(layer: int, x: torch.Tensor) -> torch.Tensor:
        move = hook(layer, x)
        assert move is not None
        out = torch.empty_like(x)
        for row in range(x.shape[0]):
            for channel in range(x.shape[1]):
                out[row, channel] = move[0][row, channel] * x[row, channel] + move[1][row, channel]
        return out

    with torch.no_grad():
        x = net.bn_one(moved(0, net.one(batch))).relu()
        x = net.bn_two(moved(1, net.two(x))).relu().mean((2, 3))
        expected = nn.functional.normalize(net.last(moved(2, x)), dim=1)
    torch.testing.assert_close(got, expected)
    assert torch.equal(tower.encode(batch), tower.encode(batch, None, None))


def test_equal_moves_of_all_rows_are_one_move(tower: ImageTower) -> None:
    batch = inputs(tower)
    one = move_of({0: (1.5, 0.1), 2: (0.7, -0.4)})

    def each(layer: int, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        move = one(layer, x)
        return None if move is None else (move[0].expand(len(x), -1), move[1].expand(len(x), -1))

    torch.testing.assert_close(tower.encode(batch, None, each), tower.encode(batch, None, one))


def test_gradients_flow_through_moves_by_row(tower: ImageTower) -> None:
    params = {name: tensor.requires_grad_() for name, tensor in tower.adaptable().items()}
    tower.encode(inputs(tower), params, rows_move((0, 1, 2)))[:, 1].sum().backward()
    assert all(tensor.grad is not None and tensor.grad.abs().max() > 0 for tensor in params.values())


def test_statistics_stay_those_of_the_source(tower: ImageTower) -> None:
    net: Small = tower.raw  # type: ignore[assignment]
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    params = {name: tensor.requires_grad_() for name, tensor in tower.adaptable().items()}
    tower.encode(inputs(tower), params)[:, 0].sum().backward()
    assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())
    # A row does not depend on its batch mates, as it would with batch statistics.
    batch = inputs(tower)
    torch.testing.assert_close(tower.encode(batch[:1]), tower.encode(batch)[:1], atol=1e-6, rtol=0)


def test_gradients_flow_through_a_hook(tower: ImageTower) -> None:
    params = {name: tensor.requires_grad_() for name, tensor in tower.adaptable().items()}
    tower.encode(inputs(tower), params, move_of({0: (1.5, 0.1), 1: (1.5, 0.1), 2: (1.5, 0.1)}))[
        :, 1
    ].sum().backward()
    assert all(tensor.grad is not None and tensor.grad.abs().max() > 0 for tensor in params.values())


def test_bfloat16_body_with_batch_norm(tower: ImageTower) -> None:
    torch.manual_seed(0)
    module = Small().eval()
    to_half(module, torch.bfloat16)
    half = ImageTower(module, Preprocess((12, 12)))
    assert module.one.weight.dtype == torch.bfloat16
    assert module.bn_one.weight.dtype == module.bn_one.running_mean.dtype == torch.float32
    kinds = []
    features = half.encode(inputs(half), None, lambda _, x: kinds.append(x.dtype))
    assert kinds == [torch.float32] * 3
    assert features.dtype == torch.float32
    params = {name: tensor.requires_grad_() for name, tensor in half.adaptable().items()}
    half.encode(inputs(half), params)[:, 0].sum().backward()
    assert all(t.grad.dtype == torch.float32 and t.grad.abs().max() > 0 for t in params.values())


def test_what_cannot_be_calibrated_is_refused(tower: ImageTower) -> None:
    bare = ImageTower(nn.Sequential(nn.Flatten(), nn.Linear(432, 8)), Preprocess((12, 12)))
    with pytest.raises(ArtifactError, match="no normalisation layer"):
        calibrate(bare, [inputs(bare)])
    with pytest.raises(ArtifactError, match="got none"):
        calibrate(tower, [])
    with pytest.raises(ArtifactError, match="not finite"):
        calibrate(tower, [inputs(tower) * float("nan")])


def test_norms_without_affine_are_skipped() -> None:
    module = nn.Sequential(
        nn.LayerNorm(4, elementwise_affine=False), nn.LayerNorm(4, bias=False), nn.GroupNorm(2, 4)
    )
    assert [name for name, _ in affine_tensors(module)] == ["1.weight"]
