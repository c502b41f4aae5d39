"""Features -> codes -> items: what the pipeline asks of head, gallery and fusion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.protocols import Fusion, Gallery
from core.types import Encoded, Floats, Hits, Modality, Query, Twin
from stream.limits import Limits

if TYPE_CHECKING:
    from core.protocols import Hash
    from stream.steering import Correction

Correct = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Weights [B] of the adapted twin by its evidence -> those to serve with."""

NEAREST = 16  # features per query handed to adapters; TCR needs 1, residual centring 5


class Retrieval:
    """Retrieves from the gallery in use.

    Args:
        hash_: features -> codes.
        current: the gallery version in use (it may be swapped between batches).
        fusion: what is answered from a shortlist.
        shortlist: items compared by float features.
        top: items of an answer whose query does not say how many.
        turn: puts a gallery version in use before a batch, "" for the newest there is, and names what is in
            use then; None where the gallery does not follow anything.
        correction: a new one for each lane whose weights late labels correct; None: they correct nothing.
    """

    def __init__(
        self, hash_: Hash, current: Callable[[], Gallery], fusion: Fusion, shortlist: int, device: str,
        top: int = 10,
        turn: Callable[[str], str] | None = None, correction: Callable[[], Correction] | None = None,
    ) -> None:  # fmt: skip
        self.current, self.fusion, self.turn, self.correction = current, fusion, turn, correction
        self.hash, self.size, self.top, self._device = hash_, shortlist, top, device
        self._whole: tuple[str, Tensor] | None = None

    def use(self, version: str = "") -> str:
        """Takes the turn; "" where there is none to take."""
        return "" if self.turn is None else self.turn(version)

    def view(
        self, modality: Modality, queries: Sequence[Query] = (), correct: Correct | None = None,
        gallery: Gallery | None = None,
    ) -> View:  # fmt: skip
        """The gallery in use now, or another one, for queries of a modality.

        Args:
            queries: whose own wants limit what they are answered; () where none is asked for.
            correct: has the last word on weights.
        """
        return View(self, self.current() if gallery is None else gallery, modality, queries, correct)

    def whole(self, gallery: Gallery) -> Tensor:
        """Unit features [N, D] of a gallery version, loaded once."""
        if self._whole is None or self._whole[0] != gallery.version:
            features = torch.from_numpy(gallery.features(gallery.keys())).to(self._device)
            self._whole = (gallery.version, features)
        return self._whole[1]


class View:
    """One gallery version, asked by queries of one modality: what one batch sees.

    What queries want decides what they are answered. All else, that there is a shift, how far the adapted
    twin is to be trusted and what is learned, comes from the whole gallery: a batch teaches the same whatever
    its queries want of their answers.
    """

    def __init__(
        self, retrieval: Retrieval, gallery: Gallery, modality: Modality, queries: Sequence[Query],
        correct: Correct | None,
    ) -> None:  # fmt: skip
        self._retrieval, self._gallery = retrieval, gallery
        self._modality, self._correct = modality, correct
        self.version = gallery.version
        self._limits = Limits.of(queries, gallery, retrieval.top)

    def twin(self, features: Tensor, count: int) -> Twin:
        """What an encoder that gave features [B, D] answers alone to the first `count` rows."""
        rows = features[:count].detach().float()
        encoded = Encoded(rows.cpu().numpy(), self._retrieval.hash(rows, self._modality))
        gallery, fusion, limits = self._gallery, self._retrieval.fusion, self._limits
        hits = gallery.search(encoded.codes, self._retrieval.size)
        if limits is None:
            return fusion.twin(gallery, encoded, hits)
        among = limits.shortlist(gallery, encoded.codes, hits)
        twin = fusion.twin(gallery, encoded, hits, among, limits.widest)
        return replace(twin, answer=limits.cut(twin.answer))

    def quiet(self, frozen: Twin, mended: NDArray[np.bool_]) -> bool:
        """Whether the frozen side shows no shift."""
        return self._retrieval.fusion.quiet(self._gallery, self._modality, frozen, mended)

    def together(self, frozen: Twin, adapted: Twin, mended: NDArray[np.bool_]) -> tuple[Hits, Floats]:
        """What is served of both twins, and the adapted one's weights [n]."""
        served, weights = self._retrieval.fusion.together(
            self._gallery, self._modality, frozen, adapted, mended, self._correct
        )
        return served if self._limits is None else self._limits.cut(served), weights

    def shortlist(self, features: Tensor) -> Tensor:
        """[B, D] -> [B, K, D] by Hamming distance, nearest first; unused places are zero rows."""
        rows = features.detach().float()
        hits = self._gallery.search(self._retrieval.hash(rows, self._modality), self._retrieval.size)
        return torch.from_numpy(self._gallery.features(hits.keys)).to(rows.device)

    @torch.no_grad()
    def neighbours(self, features: Tensor) -> Tensor:
        """[B, D] -> [B, 16, D]: Hamming shortlist, then the best by float cosine, best first."""
        rows = features.detach().float()
        return _best(rows, self.shortlist(rows), NEAREST)

    @torch.no_grad()
    def nearest(self, features: Tensor, twin: Twin) -> Tensor:
        """[B, D] with the twin of its first n rows -> their nearest items [B, D], else zeros."""
        keys, nearest = twin.hits.keys, torch.zeros_like(features)
        if twin.cosines is not None:  # one item of each row is looked up instead of its whole shortlist
            keys = np.take_along_axis(keys, twin.cosines.argmax(1)[:, None], 1)
        candidates = torch.from_numpy(self._gallery.features(keys)).to(features.device)
        nearest[: len(keys)] = _best(features[: len(keys)].float(), candidates, 1)[:, 0]
        return nearest

    def whole(self) -> Tensor:
        """Unit features [N, D] of the gallery."""
        return self._retrieval.whole(self._gallery)


def _best(features: Tensor, candidates: Tensor, count: int) -> Tensor:
    """Of candidates [B, K, D] (unused ones zero) the nearest [B, count, D] of features [B, D], best first."""
    cosine = torch.einsum("bd,bkd->bk", features, candidates)
    cosine[(candidates == 0).all(2)] = -2.0
    best = cosine.topk(min(count, cosine.shape[1]), dim=1).indices
    return candidates.gather(1, best[..., None].expand(-1, -1, candidates.shape[2]))
