"""Several processes train as one does: identities for one, and two real ones over gloo."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing, nn

from adapters.offline.couple import fit
from adapters.offline.couple_config import CoupleConfig
from adapters.offline.parallel import Team
from adapters.offline.tpsnet import cluster
from adapters.offline.tpsnet import fit as fit_tpsnet
from adapters.offline.tpsnet_config import TpsConfig
from core.errors import ConfigError

CONFIG = CoupleConfig(neighbours=4, epochs=4, pretrain=1, batch=15, label_hidden=8, walks=30, pairs=5)


def test_one_process_changes_nothing() -> None:
    team, rows = Team(), torch.arange(6.0).reshape(3, 2).requires_grad_()
    assert torch.equal(team.part(rows), rows) and team.gathered(rows) is rows
    rows.grad = torch.ones(3, 2)
    team.averaged([rows])
    team.agreed([rows])
    assert torch.equal(rows.grad, torch.ones(3, 2)) and rows[2, 1] == 5


@pytest.mark.parametrize("count", [0, 1, 2, 7, 12])
def test_parts_make_the_whole(count: int) -> None:
    rows = torch.arange(count)
    parts = [Team(rank, 5).part(rows) for rank in range(5)]
    assert torch.equal(torch.cat(parts), rows)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert Team.of_environment() == Team(0, 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_PORT", "1")
    with pytest.raises(ConfigError, match="RANK, MASTER_ADDR not set: start with torchrun"):
        Team.of_environment()
    with pytest.raises(ConfigError, match=r"rank in 0\.\.1 expected, got 2"):
        Team(2, 2)


# Two processes.


def contrast(rows: Tensor, scale: Tensor) -> Tensor:
    """A loss that no share of the rows can compute."""
    unit = nn.functional.normalize(rows, dim=1)
    return (scale * unit @ unit.T).logsumexp(1).mean() + (rows**2).mean()


def layer() -> tuple[nn.Linear, Tensor]:
    torch.manual_seed(0)
    return nn.Linear(4, 3), torch.tensor(2.0, requires_grad=True)


def gradients(team: Team, count: int) -> list[list[float]]:
    linear, scale = layer()
    if team.rank == 1:
        with torch.no_grad():
            linear.weight.add_(1)
    team.agreed(linear.parameters())
    rows = torch.randn(7, 4, generator=torch.Generator().manual_seed(1))[:count]
    contrast(team.gathered(linear(team.part(rows))), scale).backward()  # type: ignore[no-untyped-call]
    team.averaged([*linear.parameters(), scale])
    return [v.grad.reshape(-1).tolist() for v in (*linear.parameters(), scale) if v.grad is not None]


def fitted(team: Team, pictured: bool, checkpoint: Path | None = None) -> dict[str, object]:
    draw = np.random.default_rng(0)
    y = np.arange(40) % 3
    shape = (3, 6, 6) if pictured else (8,)
    middle = 2 * draw.standard_normal((3, *shape))
    source = middle[y] + draw.standard_normal((40, *shape))
    target = middle[np.arange(33) % 3] + draw.standard_normal((33, *shape)) + 0.5
    torch.manual_seed(3)
    backbone = (
        nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten()) if pictured else None
    )
    head = nn.Sequential(nn.Linear(32 if pictured else 8, 12), nn.Tanh(), nn.Linear(12, 8))
    found = fit(source, y, target, head, CONFIG, backbone=backbone, team=team, checkpoint=checkpoint)
    weights = found.head["0.weight"].tolist()
    return {
        "losses": [asdict(v) for v in found.losses],
        "weights": weights,
        "chosen": found.trust.chosen.tolist(),
    }


class Fused(nn.Module):
    """A tower and one more layer, as TPSNet trains them."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.tower, self.last = nn.Linear(8, 8), nn.Linear(8, 8)

    def fuse(self, raw: Tensor, phases: Tensor | None) -> Tensor:
        return nn.functional.normalize(raw + self.last(raw), dim=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fuse(self.tower(x), None)


def fused(team: Team) -> dict[str, object]:
    """Stage 2 with a tower that trains along; processes start from different layers."""
    draw = torch.Generator().manual_seed(5)
    kinds = 3 * torch.randn(3, 8, generator=draw)
    x = [kinds[torch.arange(n) % 3] + 0.5 * torch.randn(n, 8, generator=draw) for n in (31, 26)]
    config = TpsConfig(classes=3, text=False, epochs=4, batch=14, rate=3e-3, tower_rate=1e-3)
    network = Fused(team.rank)
    told = cluster(x, None, config, lambda *_: None)
    found = fit_tpsnet(x, None, told, network, config, pictures=x, team=team)
    return {"losses": found.losses, "weights": network.tower.weight.tolist()}


def worker(rank: int, folder: str, port: int) -> None:
    torch.set_num_threads(1)
    os.environ.update(WORLD_SIZE="2", RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    team = Team.of_environment("gloo")
    told = {
        "gradients": [gradients(team, count) for count in (7, 1)],
        "features": fitted(team, False, Path(folder) / "checkpoint"),
        "again": fitted(team, False, Path(folder) / "checkpoint"),
        "pictures": fitted(team, True),
        "fused": fused(team),
    }
    (Path(folder) / f"{rank}.json").write_text(json.dumps(told))
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(worker, (str(tmp_path), port), nprocs=2)
    both = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert both[0] == both[1], "processes agree to the last bit"
    for place, count in enumerate((7, 1)):
        for found, expected in zip(both[0]["gradients"][place], gradients(Team(), count), strict=True):
            assert found == pytest.approx(expected, abs=1e-6)
    for name, pictured in (("features", False), ("pictures", True)):
        one, two = fitted(Team(), pictured), both[0][name]
        assert len(two["losses"]) == 4
        for a, b in zip(one["losses"], two["losses"], strict=True):  # type: ignore[call-overload]
            assert b == pytest.approx(a, abs=1e-5)
        assert np.allclose(np.array(two["weights"]), np.array(one["weights"]), atol=1e-4)
        assert two["chosen"] == one["chosen"]
    alone, two = fused(Team()), both[0]["fused"]
    assert two["losses"] == pytest.approx(alone["losses"], abs=1e-5) and len(two["losses"]) == 4
    assert np.allclose(np.array(two["weights"]), np.array(alone["weights"]), atol=1e-4)
    assert both[0]["again"] == both[0]["features"], "a finished fit is read from its checkpoint"
