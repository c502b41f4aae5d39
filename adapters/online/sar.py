"""SAR: sharpness-aware entropy minimisation on sure rows, with recovery to the source before a collapse.

The gradient is taken where the loss is worst within a small ball, so that the step leads to flat minima; rows
that are no longer sure there are left out.

Reference: SAR (ICLR 2023), as run in TCR's benchmark; SAM (ICLR 2021); docs/methods/peers.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from adapters.online.decouple import Gradient, norm
from adapters.online.gradient import State
from adapters.online.guard import require_finite
from adapters.online.peer import SURE_SHARE, Inner, Objective, Peer, Seen, lowest, mean_over, predict
from core.config import AdaptConfig
from core.protocols import Pass
from core.references import SourceConstants

if TYPE_CHECKING:
    from core.protocols import Params

RHO = 0.05  # SAM radius, SAR and TCR benchmark
MOMENTUM = 0.9  # of the running loss, SAR and TCR benchmark
RECOVER_BELOW = 0.2  # SAR and TCR benchmark; on the scale of its own entropies


class Sar(Peer):
    """One lane's SAR. Arguments as for Peer. Two forwards and two backwards per inner step."""

    name = "sar"

    def __init__(
        self, source: Params, constants: SourceConstants, config: AdaptConfig, floor: int = 16
    ) -> None:
        super().__init__(source, constants, config, floor)
        self._start = self._weights.snapshot()
        self._loss: float | None = None

    def _inner(self, batch: Pass, first: bool) -> Inner:
        seen = self._look(batch)
        kept, threshold = lowest(seen.prediction.entropy, SURE_SHARE)
        ascent = self._gradient(self._objective(batch, seen))

        q = batch.encode(self._perturbed(ascent))[batch.mask]
        require_finite([q], "non-finite-features")
        entropy = predict(
            q, seen.columns, self._settings.temperature
        ).entropy  # the columns the threshold is of
        kept = kept & (entropy.detach() < threshold)
        second = mean_over(kept, entropy)
        self._descend(self._gradient(second))
        inner = self._seen(seen, second)
        self._recover(inner.losses["entropy"])
        return inner

    def _objective(self, batch: Pass, seen: Seen) -> Objective:
        """The ascent's: mean entropy of the sure rows."""
        kept, _ = lowest(seen.prediction.entropy, SURE_SHARE)
        return mean_over(kept, seen.prediction.entropy)

    def _perturbed(self, gradient: Gradient) -> Params:
        """theta + rho g / |g|, still a function of theta: gradients there are gradients by theta."""
        length = norm(gradient)
        if length == 0:
            return dict(self.parameters())
        return {
            name: tensor + (RHO / length) * gradient[name] if name in gradient else tensor
            for name, tensor in self.parameters().items()
        }

    def _recover(self, loss: float) -> None:
        self._loss = loss if self._loss is None else MOMENTUM * self._loss + (1 - MOMENTUM) * loss
        if self._loss < RECOVER_BELOW:
            self._weights.restore(self._start)
            self._loss = None
            self._resets += 1

    def snapshot(self) -> State:
        tensors, meta = super().snapshot()
        return tensors, meta | {"loss": self._loss}

    def restore(self, tensors: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        """Raises ArtifactError when the snapshot is of another method or other tensors."""
        super().restore(tensors, meta)
        self._loss = meta["loss"]
