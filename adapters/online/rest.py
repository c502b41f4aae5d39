"""REST-style adaptation: the objective of TCR, with the part of its gradient removed that fights the source.

The decoupling formula is reconstructed from a published summary, not read in the paper; hence "REST-style".
What stands for general knowledge is a choice: the frozen encoder's predictions (D1), a memory of source pairs
(D2), the source weights or the subspace of source gradients (D3).

Symbols, constants and what is reconstructed: docs/methods/rest.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapters.online.decouple import EPS_REL, Against, Gradient, Subspace, inner, leading_directions
from adapters.online.gradient import State
from adapters.online.guard import require_finite
from adapters.online.objectives import bidirectional, loss_gen, loss_pairs, weighted
from adapters.online.tcr import Direction, Tcr
from core.artifacts import part
from core.config import AdaptConfig
from core.errors import ArtifactError, ConfigError
from core.protocols import Pass
from core.references import SourceConstants

if TYPE_CHECKING:
    from core.protocols import Params

    Memory = Callable[[Params, int], tuple[Tensor, Tensor]]
    """(parameters, step number) -> source queries [M, D] encoded with them, graph attached, and the unit
    gallery features [M, D] that belong to them. The step number keys the draw."""


class Reliability(Protocol):
    """How far each query of a batch may be trusted; learns from the batches it is shown."""

    def weights(self, source: Tensor, ids: tuple[str, ...], mask: Tensor) -> Tensor:
        """[B] in [0, 1] without gradient, from frozen features [B, D] and the ids of the real rows."""

    def commit(self) -> None:
        """Keeps what the last call of `weights` learned."""

    def snapshot(self) -> State: ...

    def restore(self, tensors: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None: ...


class Rest(Tcr):
    """One lane's REST-style method: TCR with decoupling.

    With `decouple.reference = "none"` it is TCR to the last bit.

    Args:
        source, constants, config, floor: as for Tcr.
        memory: source pairs for reference "memory" (D2).
        subspace: orthonormal directions [R, P] for reference "subspace" (D3), over the adaptable tensors
            flattened in their order; `source_directions` collects them.
        reliability: weights of the rows in the entropy term, instead of the threshold E_m; its state is part
            of the lane's.

    Raises:
        ConfigError: as for Tcr; a reference without what it needs, or directions of another base model.
    """

    name = "rest"

    def __init__(
        self,
        source: Params,
        constants: SourceConstants,
        config: AdaptConfig,
        floor: int = 16,
        memory: Memory | None = None,
        subspace: Tensor | NDArray[Any] | None = None,
        reliability: Reliability | None = None,
    ) -> None:
        super().__init__(source, constants, config, floor)
        self._decouple, self._kind = config.decouple, config.consistency
        self._memory, self._reliability = memory, reliability
        if self._decouple.reference == "memory" and memory is None:
            raise ConfigError(
                'expected a memory of source pairs for decouple.reference = "memory", got none: '
                "build the base model with its training pairs kept, or choose source_kl or weights"
            )
        self._subspace = self._outside(subspace) if self._decouple.reference == "subspace" else None
        self._columns: Tensor | None = None
        self._trust: Tensor | None = None

    def _outside(self, directions: Tensor | NDArray[Any] | None) -> Subspace:
        if directions is None:
            raise ConfigError(
                'expected source directions for decouple.reference = "subspace", got none: '
                "collect them from the base model's training pairs, or choose source_kl or weights"
            )
        basis = directions if isinstance(directions, Tensor) else torch.from_numpy(np.array(directions))
        return Subspace.of(basis, self._weights.tensors, self._decouple.strength, self._decouple.granularity)

    def _consistency(
        self, batch: Pass, q: Tensor, nearest: Tensor, entropy: Tensor, e_m: float
    ) -> dict[str, Tensor]:
        if self._kind == "rem" and self._reliability is None:
            return super()._consistency(batch, q, nearest, entropy, e_m)
        if self._kind == "rem":
            name, rows = "entropy", entropy
        else:
            name, rows = "consistency", bidirectional(q, nearest, self._settings.temperature, batch.mask)
        mean = weighted(rows, self._weights_of_rows(batch), batch.mask)
        return {} if mean is None else {name: mean}

    def _weights_of_rows(self, batch: Pass) -> Tensor:
        if self._reliability is None:
            return torch.ones(len(batch.mask), device=batch.mask.device)
        if self._trust is None:  # asked once a batch: a second answer would count its queries twice
            with torch.no_grad():
                self._trust = self._reliability.weights(batch.source, batch.ids, batch.mask)
        return self._trust

    def _direction(self, batch: Pass, objective: Tensor, q: Tensor) -> Direction:
        """One forward serves both gradients of D1; D2 takes a forward and D3 none of its own."""
        reference = self._decouple.reference
        if reference == "none":
            return super()._direction(batch, objective, q)
        if reference == "source_kl":
            general = self._divergence(batch, q)
            require_finite([general], "non-finite-loss")
            g = self._weights.gradient(objective, keep_graph=True)
            return self._against(g, self._weights.gradient(general), float(general.detach()))
        g = self._weights.gradient(objective)
        require_finite(g.values(), "non-finite-gradient")
        if self._subspace is not None:
            return self._decoupled(g, self._subspace, {})
        if reference == "memory" and self._memory is not None:
            q_known, targets = self._memory(self.parameters(), self._weights.steps)
            general = loss_pairs(q_known, targets, self._settings.temperature)
            require_finite([general], "non-finite-loss")
            return self._against(g, self._weights.gradient(general), float(general.detach()))
        r = self._weights.displacement()
        # In units of the parameters, not of a gradient: only an r of zero is no reference.
        return self._against(g, r, inner(r, r) / 2, eps_rel=0.0)

    def _divergence(self, batch: Pass, q: Tensor) -> Tensor:
        if self._columns is None:  # found at the first inner step: refused batches cost no search
            self._columns = batch.neighbours(batch.source)[:, 0]
        return loss_gen(q, batch.source, self._columns, self._settings.temperature, batch.mask)

    def _against(self, g: Gradient, r: Gradient, general: float, eps_rel: float = EPS_REL) -> Direction:
        require_finite([*g.values(), *r.values()], "non-finite-gradient")
        rule = Against.of(g, r, self._decouple.strength, self._decouple.granularity, eps_rel=eps_rel)
        return self._decoupled(g, rule, {"general": general})

    def _decoupled(self, g: Gradient, rule: Against | Subspace, losses: dict[str, float]) -> Direction:
        angle = rule.degrees(g)
        if self._decouple.place == "step":
            return Direction(g, rule, angle, losses=losses, on_step=True)
        descent, removed = rule.remove(g)
        return Direction(descent, rule, angle, removed, losses)

    def _mark(self) -> Callable[[], None]:
        undo = super()._mark()
        self._columns = self._trust = None
        reliability = self._reliability
        if reliability is None:
            return undo
        held = reliability.snapshot()

        def undo_both() -> None:
            undo()
            reliability.restore(*held)

        return undo_both

    def _commit(self) -> None:
        if self._reliability is not None and self._trust is not None:
            self._reliability.commit()

    def snapshot(self) -> State:
        tensors, meta = super().snapshot()
        if self._reliability is None:
            return tensors, meta
        held, own = self._reliability.snapshot()
        tensors |= {f"reliability/{name}": array for name, array in held.items()}
        return tensors, meta | {"reliability": own}

    def restore(self, tensors: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        """Raises ArtifactError also when only one of lane and snapshot has reliability weights."""
        if meta.get("method") == self.name and ("reliability" in meta) != (self._reliability is not None):
            raise ArtifactError(
                f"expected a state {'without' if self._reliability is None else 'with'} reliability weights, "
                "got the other: set adapt.reliability back or reset the lane"
            )
        super().restore(tensors, meta)
        if self._reliability is not None:
            self._reliability.restore(part(tensors, "reliability/"), meta["reliability"])


@torch.enable_grad()
def source_gradients(source: Params, memory: Memory, draws: int, temperature: float) -> Tensor:
    """Gradients of the pair loss at the source parameters, one a draw.

    Args:
        source: adaptable tensors at their source values.
        memory: source pairs; called with the numbers 0 .. draws - 1.
        draws: how many gradients.
        temperature: of the pair loss.

    Returns:
        [draws, P] float32 on the CPU: all tensors flattened side by side, 0 where the loss does not reach.
    """
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in source.items()}
    rows = []
    for number in range(draws):
        loss = loss_pairs(*memory(leaves, number), temperature)
        parts = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([piece.flatten() for piece in parts]).float().cpu())
    return torch.stack(rows)


def source_directions(source: Params, memory: Memory, draws: int, temperature: float, rank: int) -> Tensor:
    """The subspace for reference "subspace": [R, P] orthonormal float64. Raises ConfigError as its parts."""
    return leading_directions(source_gradients(source, memory, draws, temperature), rank)
