"""What a fit of COUPLE tells on its way, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from adapters.diffusion import Graph, Indices, Reals
from adapters.offline.couple_config import CoupleConfig, Rows
from adapters.offline.relation_pairs import Pairs
from adapters.offline.relation_selection import Mask, SelectionReport, selection_report


@dataclass(frozen=True, slots=True)
class Losses:
    """Means over the steps of an epoch, before weights; 0 for what an epoch does not have."""

    source: float
    target: float = 0.0
    pixel: float = 0.0
    manifold: float = 0.0


@dataclass(frozen=True, slots=True)
class Report:
    """One renewal of trust."""

    epoch: int
    rho: float
    edges: int
    load: float
    """Mass over capacity before it was made to fit; 1 and above would have no solution."""
    components: int
    capped: int
    dry: int
    """Components without a source that has edges: never reached."""
    reached: float
    """Share of targets with any mass."""
    full: float
    """Share of targets with a potential."""
    trusted: int
    sweeps: int
    residual: float
    """In capacities; above `eps` the flow did not come to rest within `sweeps`."""


@dataclass(frozen=True, slots=True, eq=False)
class Trust:
    """What is believed of the target, and the pairs to mix."""

    pseudo: Indices
    """[n_t] index of the most probable class."""
    scores: Reals
    """[n_t] what they are ranked by."""
    chosen: Mask
    """[n_t] Sel."""
    intra: Pairs
    """Cross edges into Sel; weights are the source's share lam."""
    inter: Pairs
    """Steps of random walks that cross between the domains; likewise."""


@dataclass(frozen=True, slots=True, eq=False)
class Couple:
    """A fitted COUPLE: load the states into modules built like those that were handed in."""

    config: CoupleConfig
    classes: NDArray[Any]
    """[C] labels as they were given; every other class number here is an index into it."""
    head: Mapping[str, Tensor]
    backbone: Mapping[str, Tensor] | None
    label_codes: Rows
    """e [C, L], relaxed."""
    trust: Trust
    """By the final parameters."""
    graph: Graph
    """Of the same moment: sources first."""
    losses: tuple[Losses, ...]
    """Per epoch."""
    reports: tuple[Report, ...]
    """Per renewal, the last by the final parameters."""

    @property
    def pseudo_labels(self) -> NDArray[Any]:
        """[n_t] in the source's labels."""
        return np.asarray(self.classes[self.trust.pseudo])

    def judged(self, labels: ArrayLike) -> SelectionReport:
        """How good the selection is, for a target whose labels [n_t] are known after all."""
        correct = np.asarray(labels) == self.pseudo_labels
        return selection_report(self.graph, len(self.graph) - len(correct), self.trust.chosen, correct)
