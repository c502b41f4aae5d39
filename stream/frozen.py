"""The frozen twin's side of a batch: what was asked, as the source encoder sees it, all of it or a sample.

Its forward serves three ends: it is the baseline that every figure is compared with, the reference of
gradient decoupling, and a voter in the served answer (fusion).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.hooks import Watch
from core.protocols import Encoder
from core.types import Floats, Modality, QueryBatch, Twin
from stream.preparation import read_again
from stream.sampling import padded
from stream.stopwatch import Stopwatch

if TYPE_CHECKING:
    from core.protocols import Hook
    from stream.retrieval import View

Entropy = Callable[[Modality, Tensor, Tensor, Tensor], Tensor]
"""(modality, queries [B, D], neighbours [B, D], mask [B]) -> refined entropy [B]."""


class FrozenSide:
    """Frozen features [B, D] of a batch, padded: `asked` of what was asked, `meant` of what was meant by it.

    Where the frozen twin is asked for a sample, the other rows are NaN until somebody needs them.

    Args:
        encoder, view: what is asked, and where it is looked up.
        batch, rows: for whom, and how many rows that makes, padded.
        wanted: [n] the rows that are asked for at first.
        forward: encodes collated inputs by the source parameters, and counts.
        timed: where the time goes.
    """

    def __init__(
        self, encoder: Encoder, view: View, batch: QueryBatch, rows: int, wanted: NDArray[np.bool_],
        forward: Callable[[Any, None, Hook | None], Tensor], timed: Stopwatch,
    ) -> None:  # fmt: skip
        self._encoder, self._view, self._queries, self._rows = encoder, view, batch.queries, rows
        self._modality = batch.modality
        self._forward, self._timed = forward, timed
        self._watch = Watch(())
        self.paired, self.mended = wanted, np.array([bool(query.repaired) for query in batch.queries])

    def ask(self, layers: tuple[int, ...]) -> bool:
        """The forward, of all rows or of the sample; what enters `layers` on the way is kept.

        Returns whether it shows no shift, which a sample cannot tell.
        """
        queries = self._queries
        with self._timed("collate"):
            self._plain = self.inputs = self._encoder.collate([q.prepared for q in queries], self._rows)
        with self._timed("encode_frozen"):
            if not self.paired.all():
                self.asked = self.meant = torch.full((self._rows, self._encoder.width), torch.nan)
                self._fill(self.paired)
                return False
            self._watch = Watch(layers)
            self.asked = self.meant = self._forward(self._plain, None, self._watch if layers else None)
            if self.mended.any():
                self.inputs, self.meant = read_again(self._encoder, queries, self.asked, self._forward)
        return self._quiet()

    def ask_others(self) -> bool:
        """Asks for the rows that the sample left out; whether there is no shift."""
        others, self.paired = ~self.paired, np.ones_like(self.paired)
        with self._timed("encode_frozen"):
            self._fill(others)
            self.asked[len(others) :] = self.asked[len(others) - 1]  # padding is harmless, as it always is
        return self._quiet()

    def _fill(self, rows: NDArray[np.bool_]) -> None:
        places = np.flatnonzero(rows)
        inputs = self._encoder.collate([self._queries[n].prepared for n in places], padded(len(places)))
        found = self._forward(inputs, None, None)[: len(places)]
        self.asked = self.meant = self.asked.to(found.device)
        self.asked[torch.from_numpy(places).to(found.device)] = found

    def early(self, layers: tuple[int, ...]) -> list[Tensor]:
        """What enters early layers in all rows: seen already, or by a forward that ends there."""
        if self._watch.layers != layers:
            self._watch = Glance(layers)
            with self._timed("encode_frozen"), suppress(Seen):
                self._encoder.encode(self._plain, None, self._watch)
        return self._watch.inputs()

    def _quiet(self) -> bool:
        with self._timed("search"):
            self._twin = self._view.twin(self.asked, len(self._queries))
            return self._view.quiet(self._twin, self.mended)

    def twin(self) -> Twin:
        """The frozen twin of a batch of which all was asked."""
        return self._twin

    def twins(self, adapted: Tensor) -> tuple[Twin, Twin]:
        """Both twins; adapted features [B, D] stand for the frozen ones in rows that were not asked for.

        Who sees the same finds the same: nothing is searched twice. The second is no less a twin of its own.
        """
        count = len(self._queries)
        if not self.paired.all():
            both = torch.where(self.asked.isnan(), adapted, self.asked)
            return self._view.twin(both, count), self._view.twin(adapted, count)
        if torch.equal(adapted, self.asked):
            return self._twin, replace(self._twin)
        return self._twin, self._view.twin(adapted, count)

    @torch.no_grad()
    def entropy(self, refined: Entropy, mask: Tensor) -> Floats:
        """Refined entropy [n]; [0] of a sample, whose entropy is another."""
        if not self.paired.all():
            return np.zeros(0, np.float32)
        nearest = self._view.nearest(self.asked, self._twin)
        found = refined(self._modality, self.asked, nearest, mask)
        return found[: len(self._queries)].cpu().numpy().astype(np.float32)


class Seen(Exception):
    """All that was wanted of a forward was seen."""


class Glance(Watch):
    """Watches a forward that ends with the last of the layers: a fraction of one."""

    def __call__(self, layer: int, inputs: Tensor) -> None:
        super().__call__(layer, inputs)
        if len(self.seen) == len(set(self.layers)):
            raise Seen
