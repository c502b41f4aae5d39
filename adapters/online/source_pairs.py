"""The bounded queue of source-like pairs from which TCR estimates the source's gap and entropy ceiling.

It is a warm-up on data that may already be shifted, kept for parity with the paper. The service measures
both constants on clean source queries instead.

Reference: TCR (ICLR 2025), estimation of the source constants.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapters.online.objectives import EPS, spread
from core.references import SourceConstants

SIZE, RATIO, UPDATE_BATCHES = 64, 0.3, 10  # TCR code


class SourceQueue:
    """Keeps the `size` pairs with the smallest source indicator SI that were ever offered.

    SI_i = 2 ||q_i - g'_i|| - ||q_i - mean(q)|| - ||g'_i - mean(g')||; small means source-like. No ageing:
    after `update_batches` batches it is frozen. Tensors held are replaced, never written to, so that a
    shallow copy (`copy.copy`) keeps its content.
    """

    def __init__(self, size: int = SIZE, ratio: float = RATIO, update_batches: int = UPDATE_BATCHES) -> None:
        self.size, self.ratio, self.update_batches = size, ratio, update_batches
        self._batches = 0
        self._held: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self._held["indicator"]) if self._held else 0

    @property
    def frozen(self) -> bool:
        """True once it has seen `update_batches` batches: it takes nothing more."""
        return self._batches >= self.update_batches

    @torch.no_grad()
    def offer(self, q: Tensor, gp: Tensor, entropy: Tensor, mask: Tensor) -> None:
        """Takes the most source-like share of a batch: q, g' [B, D], E [B], mask [B]."""
        if self.frozen:
            return
        self._batches += 1
        indicator = 2 * ((q - gp)[mask].square().sum(1) + EPS).sqrt() - spread(q, mask) - spread(gp, mask)
        rows = len(indicator)
        best = indicator.argsort(stable=True)[: int(self.ratio * rows)]
        new = {
            "indicator": indicator[best],
            "query": q[mask][best],
            "item": gp[mask][best],
            "entropy": entropy[mask][best],
            # The entropy of a softmax over B columns goes up to ln B: remember B beside it.
            "rows": torch.full((len(best),), rows, dtype=torch.int64, device=q.device),
        }
        held = {
            name: torch.cat((self._held[name].to(part.device), part)) if self._held else part
            for name, part in new.items()
        }
        keep = held["indicator"].argsort(stable=True)[: self.size]
        self._held = {name: part[keep].detach().clone() for name, part in held.items()} if len(keep) else {}

    def constants(self, rows: int) -> tuple[float, float] | None:
        """(Delta_S, E_m) for a batch of `rows` real rows; None while the queue is empty."""
        if not self._held:
            return None
        difference = self._held["query"].mean(0) - self._held["item"].mean(0)
        pairs = zip(self._held["entropy"].tolist(), self._held["rows"].tolist(), strict=True)
        # Scaled one by one, so that at equal B the largest entropy is the ceiling to the last bit.
        ceiling = max(entropy * entropy_scale(rows, taken) for entropy, taken in pairs)
        return float(difference.norm()), ceiling

    def snapshot(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Held pairs by name and the number of batches offered."""
        tensors = {name: part.cpu().numpy().copy() for name, part in self._held.items()}
        return tensors, {"batches": self._batches}

    def restore(
        self, tensors: Mapping[str, NDArray[Any]], meta: Mapping[str, Any], device: torch.device
    ) -> None:
        """Exactly undoes to a snapshot."""
        self._held = {name: torch.from_numpy(np.array(part)).to(device) for name, part in tensors.items()}
        self._batches = int(meta["batches"])


def source_constants(
    kind: Literal["source", "queue"], known: SourceConstants, queue: SourceQueue, rows: int
) -> tuple[float, float] | None:
    """(Delta_S, E_m) for a batch of `rows` real rows; None while they are to come from an empty queue.

    Args:
        kind: measured on clean source queries, or estimated by the queue.
        known: as measured, the ceiling in batches of `known.batch`.
        queue: as it stands.
        rows: columns of the softmax that the ceiling is scaled to.
    """
    if kind == "queue":
        return queue.constants(rows)
    return known.source_gap, known.entropy_ceiling * entropy_scale(rows, known.batch)


def entropy_scale(rows: int, taken: int) -> float:
    """Factor from an entropy over `taken` columns to one over `rows` columns: ln rows / ln taken."""
    return 1.0 if rows == taken else math.log(max(rows, 1)) / math.log(taken)
