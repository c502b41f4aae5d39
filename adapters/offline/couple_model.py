"""COUPLE's parameters, and rows through them: by one process, or by several together."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from adapters.diffusion import Indices
from adapters.offline.couple_config import CoupleConfig, Rows
from adapters.offline.couple_losses import FixedCodes, label_codes, label_net, settled
from adapters.offline.parallel import Team

BLOCK = 256  # rows encoded at once where no gradient is needed


@dataclass(frozen=True, slots=True)
class Data:
    """Source rows [n_s, ...] with classes y [n_s], target rows [n_t, ...]."""

    source: Rows
    y: Indices
    target: Rows


class Model(nn.Module):
    """Copies of head and backbone, and the label net."""

    def __init__(
        self, head: nn.Module, backbone: nn.Module | None, classes: int, bits: int, config: CoupleConfig
    ) -> None:
        super().__init__()
        self.head, self.backbone = copy.deepcopy(head), copy.deepcopy(backbone)
        with torch.random.fork_rng(devices=[]):  # layers draw from the global generator
            torch.manual_seed(config.seed)
            net: nn.Module = label_net(classes, config.label_hidden, bits)
        if config.label_codes == "frozen":
            net = FixedCodes(settled(net, classes))
        self.labels = net.to(next(self.head.parameters(), torch.empty(0)).device)

    def features(self, x: Tensor) -> Tensor:
        found: Tensor = x if self.backbone is None else self.backbone(x)
        return found

    def start(self) -> None:
        """Training mode, but for batch statistics."""
        self.train()
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


class Coder:
    """Rows are named by index until they are taken; what is learnt from them is the same for all processes.

    Args:
        model: its parameters say on which device.
        classes: C.
        team: this process among several.
    """

    def __init__(self, model: Model, classes: int, team: Team) -> None:
        self.model, self.team, self._classes = model, team, classes
        self.device = next(model.parameters()).device

    def relaxed(self, x: Rows, index: Indices) -> Tensor:
        """h [B, L] of rows [B], encoded by all processes together."""
        return self.team.gathered(self.model.head(self.model.features(self.taken(x, index))))

    def taken(self, x: Rows, index: Indices) -> Tensor:
        """This process's share of rows."""
        return torch.from_numpy(x[self.team.part(torch.from_numpy(index)).numpy()]).to(self.device)

    def named(self, index: Indices) -> Tensor:
        return torch.from_numpy(index).to(self.device)

    def codes(self) -> Tensor:
        """e [C, L]."""
        return label_codes(self.model.labels, torch.empty(0, device=self.device), self._classes)

    def encoded(self, x: Rows) -> Tensor:
        """z [n, D] on the processor, float32."""
        if self.model.backbone is None:
            return torch.from_numpy(np.array(x))  # a copy: x may not be writable, of which torch warns
        blocks = np.array_split(np.arange(len(x)), math.ceil(len(x) / (BLOCK * self.team.size)))
        found = [self.team.gathered(self.model.features(self.taken(x, index))).cpu() for index in blocks]
        return torch.cat(found).float()

    def coded(self, z: Tensor) -> Tensor:
        """h [n, L] of what `encoded` gave."""
        return torch.cat([self.model.head(part.to(self.device)) for part in torch.split(z, BLOCK)])
