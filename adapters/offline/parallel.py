"""Training in several processes whose loss is that of one: rows are shared out, the loss sees all of them.

    part      this process encodes its share of a batch's rows
    gathered  every process receives the encoded rows of all, in their order, and computes the whole loss
    averaged  gradients are averaged over the processes before the optimiser steps

A loss that compares rows with each other (supervised contrast) cannot be computed from shares. Every process
computes it in full, so the gradient that comes back through `gathered` is the sum of `size` equal ones, and
the average over the processes is exactly the gradient of one process. Parameters that every process uses in
full (label codes) have equal gradients everywhere, which the average leaves alone.

All is the identity for one process. Start several with torchrun; they must run on machines of one kind.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Team:
    """One process among `size`."""

    rank: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ConfigError(f"rank in 0..{self.size - 1} expected, got {self.rank}")

    @classmethod
    def of_environment(cls, backend: str | None = None) -> Team:
        """Joins the processes that torchrun started; alone where it did not.

        Args:
            backend: gloo or nccl; None takes nccl where a GPU is there, one for each local process.

        Raises:
            ConfigError: a part of torchrun's environment is missing.
        """
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            raise ConfigError(f"WORLD_SIZE is {size} but {', '.join(missing)} not set: start with torchrun")
        backend = backend or ("nccl" if torch.cuda.is_available() else "gloo")
        if backend == "nccl":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", os.environ["RANK"])))
        if not dist.is_initialized():
            dist.init_process_group(backend)
            atexit.register(dist.destroy_process_group)  # else its threads may abort the process that ends
        return cls(dist.get_rank(), dist.get_world_size())

    def part(self, rows: Tensor) -> Tensor:
        """This process's rows of [B, ...]: neighbouring ones, as many as others have or one more or less."""
        return rows.tensor_split(self.size)[self.rank]

    def gathered(self, rows: Tensor) -> Tensor:
        """All parts [b, ...] of one batch as [B, ...], in order of rank; differentiable."""
        if self.size == 1:
            return rows
        whole: Tensor = _Gather.apply(rows, self)
        return whole

    def averaged(self, parameters: Iterable[Tensor]) -> None:
        """Replaces gradients by their mean over the processes; all must have one for the same parameters."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in gradients])
        dist.all_reduce(flat)
        for own, mean in zip(gradients, torch.split(flat / self.size, [g.numel() for g in gradients])):
            own.copy_(mean.view_as(own))

    def agreed(self, tensors: Iterable[Tensor]) -> None:
        """Overwrites tensors by those of process 0."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), 0)


class _Gather(torch.autograd.Function):
    """Concatenation over processes. Back: the sum of their gradients, of which each keeps its own rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, team: Team) -> Tensor:
        count = torch.tensor([len(rows)], device=rows.device)
        counts = [torch.empty_like(count) for _ in range(team.size)]
        dist.all_gather(counts, count)
        ctx.rank, ctx.sizes = team.rank, [int(c) for c in counts]
        padded = rows.new_zeros((max(ctx.sizes), *rows.shape[1:]))
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(team.size)]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, ctx.sizes)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        whole = gradients[0].contiguous().clone()
        dist.all_reduce(whole)
        return torch.split(whole, ctx.sizes)[ctx.rank], None
