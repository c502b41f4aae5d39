"""Statistics alignment (BN-rel), content-matched: the stream's channel statistics move to the clean domain's.

In front of every BatchNorm (at LayerNorm: z, `encoders.hooks`) the input is moved by a fraction k from the
running statistics of the stream (m_s, s_s) towards statistics of clean-domain pictures of the same content
(m_c, s_c), then normalised with the source statistics as ever:

    x' = (x - m_s) / s_s * ((1 - k) s_s + k s_c) + (1 - k) m_s + k m_c

It is a forward-only stage under any method. Never towards the weights' own (ImageNet) statistics: the clean
domain is itself shifted against them. Content matching keeps it from mistaking a class mix for a shift: the
clean target is weighted towards calibration pictures that look like the queries, but only as far as the
batch's content departs from the calibration mix, because shifted queries gather at a few hubs.

Where users are mixed inside a batch, every kind of query has statistics of its own (clusters.py), and rows
are moved by those of their kind, in one forward.

Ours; method and figures in docs/methods/alignment.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapters.online.clusters import Routing, StyleClusters, StyleSpace
from adapters.online.matching import CleanDomain
from adapters.online.places import places
from core.config import AlignSettings
from core.references import Calibration

if TYPE_CHECKING:
    from core.protocols import Affine

EPS = 1e-5
FOUNDED = 0.25
"""Weight of the clean prior of a founded cluster, in batches: its queries are known not to be clean."""


@dataclass(slots=True)
class _State:
    """Running mean and mean square [2, W] of a kind of query, of its clean target, and their weight."""

    stream: Tensor
    target: Tensor
    total: float


class _Pass:
    """Statistics of one batch; the first encode measures them, later encodes of the batch re-use them.

    Args:
        layers: the part of W that belongs to each layer.
        strength: k.
        kinds: of the G groups of rows, ascending.
        states: of each, before the batch.
        rows: [G, B] one where a row is of the kind.
        targets: [G, 2, W] clean statistics of the content of each.
        decays, shares: what is left of each state's weight, and the weight of its rows.
        routing: where the rows go, by style; None where all are of one kind.
    """

    def __init__(
        self, layers: list[slice], strength: float, kinds: list[int], states: list[_State], rows: Tensor,
        targets: Tensor, decays: list[float], shares: list[float], labels: Tensor, routing: Routing | None,
    ) -> None:  # fmt: skip
        self.kinds, self.labels, self.routing = kinds, labels, routing
        self._layers, self._strength = layers, strength
        kept = [decay * state.total for decay, state in zip(decays, states)]
        self.totals = [old + new for old, new in zip(kept, shares)]

        def column(weights: list[float]) -> Tensor:
            return torch.tensor(weights, dtype=targets.dtype, device=targets.device)[:, None, None]

        whole = column(self.totals)
        self._kept, self._share = column(kept) / whole, column(shares) / whole
        self._before = [state.stream for state in states]
        before = [state.target for state in states]
        self.clean = self._kept * torch.stack(before) + self._share * targets if kinds else targets
        self.stream = torch.empty_like(self.clean)
        self._mean = rows / rows.sum(1, keepdim=True)
        self._place = rows.argmax(0) if len(kinds) > 1 else None
        self._affines: dict[int, Affine] = {}

    def __call__(self, layer: int, inputs: Tensor) -> Affine | None:
        if not self.kinds:
            return None
        if layer not in self._affines:
            self._affines[layer] = self._measure(layer, inputs.detach())
        return self._affines[layer]

    def _measure(self, layer: int, inputs: Tensor) -> Affine:
        """Takes the batch's moments of a layer in; how to move the layer's input."""
        part, k = self._layers[layer], self._strength
        flat = places(inputs).float()
        moments = torch.stack((self._mean @ flat.mean(1), self._mean @ flat.square().mean(1)), 1)
        before = torch.stack([stream[:, part] for stream in self._before])
        self.stream[:, :, part] = now = self._kept * before + self._share * moments
        m_s, s_s = _mean_sd(now)
        m_c, s_c = _mean_sd(self.clean[:, :, part])
        scale = ((1 - k) * s_s + k * s_c) / s_s
        shift = (1 - k) * m_s + k * m_c - scale * m_s
        if self._place is None:
            return scale[0], shift[0]
        return scale.index_select(0, self._place), shift.index_select(0, self._place)


class CleanSide:
    """What is known of the clean domain: the same for every lane of a modality, and never written to.

    Args:
        calibration: clean-domain pictures: features [n, D], channel mean and sd [n, W] per picture.
        config: matching and clusters.
        device: where tensors live.
    """

    def __init__(self, calibration: Calibration, config: AlignSettings, device: str = "cpu") -> None:
        self.device, self.domain = device, CleanDomain(calibration, config, device)
        clusters = config.clusters
        possible = clusters.enabled and max(clusters.layers) < len(calibration.widths)
        self.space = StyleSpace(calibration, clusters) if possible else None


class ContentAlignment:
    """Owns the running moments of one lane.

    Args:
        clean: what all lanes share.
        config: strength k, forgetting per full batch, clusters.
        batch: rows of a full batch, the unit of forgetting.
    """

    def __init__(self, clean: CleanSide, config: AlignSettings, batch: int) -> None:
        self._config, self._batch, self._device = config, batch, clean.device
        self._domain = clean.domain
        self._styles = None if clean.space is None else StyleClusters(clean.space, config.clusters)
        # Both moments start at the clean mean with the weight of one batch: the first batch moves half-way.
        self._states = {0: self._fresh(1.0)}

    @property
    def early(self) -> tuple[int, ...]:
        """The layers whose inputs, in the frozen forward, `begin` wants to see."""
        return () if self._styles is None else self._styles.layers

    def styles(self) -> int:
        """How many kinds of query have statistics of their own."""
        return len(self._states)

    def begin(self, source: Tensor, mask: Tensor, early: Sequence[Tensor] = ()) -> _Pass:
        """Starts a batch from its frozen features [B, D] and that forward's early inputs [B, C, H, W].

        Features are NaN in rows that the frozen twin was not asked for.
        """
        routing, labels = None, torch.zeros(len(mask), dtype=torch.int64, device=mask.device)
        if self._styles is not None and early and bool(mask.any()):
            routing = self._styles.route(self._styles.styles([inputs[mask] for inputs in early]))
            labels[mask] = torch.from_numpy(routing.labels).to(labels.device)
        return self._pass(source, mask, labels, routing)

    def again(self, done: object, moved: Tensor, mask: Tensor) -> _Pass:
        """The second pass: content matched on the features [B, D] that the first one gave."""
        if not isinstance(done, _Pass):
            raise TypeError(f"expected what begin() returned, got {type(done).__name__}")
        return self._pass(moved, mask, done.labels, done.routing)

    def _pass(self, features: Tensor, mask: Tensor, labels: Tensor, routing: Routing | None) -> _Pass:
        kinds = sorted(set(labels[mask].tolist()))
        rows = torch.stack([mask & (labels == kind) for kind in kinds]) if kinds else mask[None][:0]
        known = features.detach()  # but for rows of which the frozen twin was not asked
        shares = [int(count) / self._batch for count in rows.sum(1).tolist()]
        return _Pass(
            self._domain.layers,
            self._config.strength,
            kinds,
            [self._states.get(kind) or self._fresh(FOUNDED) for kind in kinds],
            rows.to(torch.float32),
            self._domain.targets([known[of & ~known[:, 0].isnan()] for of in rows]),
            [float(self._config.forgetting**share) for share in shares],
            shares,
            labels,
            routing,
        )

    def commit(self, done: object) -> bool:
        if not isinstance(done, _Pass):
            raise TypeError(f"expected what begin() returned, got {type(done).__name__}")
        if not bool(torch.isfinite(done.stream).all()):
            return False
        for place, kind in enumerate(done.kinds):
            # Averages with their weight; the weight saturates, which makes it an exponential mean.
            self._states[kind] = _State(done.stream[place], done.clean[place], done.totals[place])
        if self._styles is not None and done.routing is not None:
            for gone in done.routing.retired:
                self._states.pop(gone, None)
            for gone in self._styles.commit(done.routing):
                self._states.pop(gone, None)
        return True

    def _fresh(self, total: float) -> _State:
        return _State(self._domain.prior.clone(), self._domain.prior.clone(), total)

    def snapshot(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        tensors: dict[str, NDArray[Any]] = {}
        for kind, state in self._states.items():
            tensors[f"{kind}/stream"] = state.stream.cpu().numpy().copy()
            tensors[f"{kind}/target"] = state.target.cpu().numpy().copy()
        meta: dict[str, Any] = {"totals": {str(kind): state.total for kind, state in self._states.items()}}
        if self._styles is not None:
            styles, meta["styles"] = self._styles.snapshot()
            tensors |= {f"styles/{name}": array for name, array in styles.items()}
        return tensors, meta

    def restore(self, tensors: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        def moments(name: str) -> Tensor:
            return torch.from_numpy(np.array(tensors[name], dtype=np.float32)).to(self._device)

        self._states = {
            int(kind): _State(moments(f"{kind}/stream"), moments(f"{kind}/target"), float(total))
            for kind, total in meta["totals"].items()
        }
        if self._styles is not None:
            found = {name[7:]: array for name, array in tensors.items() if name.startswith("styles/")}
            self._styles.restore(found, meta["styles"])


def _mean_sd(moments: Tensor) -> tuple[Tensor, Tensor]:
    """[G, 2, C] of mean and mean square -> mean and sd [G, C]."""
    mean, square = moments.unbind(1)
    return mean, ((square - mean.square()).clamp_min(0) + EPS).sqrt()
