"""Features -> codes -> items: what the pipeline asks of head, gallery and fusion."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from core.protocols import Fusion, Gallery
from core.types import Encoded, Hits, Modality, Twin

if TYPE_CHECKING:
    from core.protocols import Hash

NEAREST = 16  # features per query handed to adapters; TCR needs 1, residual centring 5


class Retrieval:
    """Retrieves from a gallery of which the caller says which version.

    Args:
        hash_: features -> codes.
        current: the version in use (it may be swapped between batches).
        fusion: what is answered from a shortlist.
        shortlist: items compared by float features.
    """

    def __init__(
        self, hash_: Hash, current: Callable[[], Gallery], fusion: Fusion, shortlist: int, device: str
    ) -> None:
        self.current, self.fusion = current, fusion
        self._hash, self._size, self._device = hash_, shortlist, device
        self._whole: tuple[str, Tensor] | None = None

    def twin(self, gallery: Gallery, features: Tensor, count: int, modality: Modality) -> Twin:
        """What an encoder that gave features [B, D] answers alone to the first `count` rows."""
        rows = features[:count].detach().float()
        encoded = Encoded(rows.cpu().numpy(), self._hash(rows, modality))
        hits = gallery.search(encoded.codes, self._size)
        return Twin(encoded, hits, self.fusion.alone(gallery, encoded, hits))

    def shortlist(self, gallery: Gallery, features: Tensor, modality: Modality) -> Tensor:
        """[B, D] -> [B, K, D] by Hamming distance, nearest first; unused places are zero rows."""
        rows = features.detach().float()
        hits = gallery.search(self._hash(rows, modality), self._size)
        return torch.from_numpy(gallery.features(hits.keys)).to(rows.device)

    @torch.no_grad()
    def neighbours(self, gallery: Gallery, features: Tensor, modality: Modality) -> Tensor:
        """[B, D] -> [B, 16, D]: Hamming shortlist, then the best by float cosine, best first."""
        rows = features.detach().float()
        return _best(rows, self.shortlist(gallery, rows, modality), NEAREST)

    @torch.no_grad()
    def nearest(self, gallery: Gallery, features: Tensor, hits: Hits) -> Tensor:
        """[B, D] with the shortlist [n, K] of its first n rows -> their nearest items [B, D], else zeros."""
        count = len(hits.keys)
        candidates = torch.from_numpy(gallery.features(hits.keys)).to(features.device)
        nearest = torch.zeros_like(features)
        nearest[:count] = _best(features[:count].float(), candidates, 1)[:, 0]
        return nearest

    def whole(self, gallery: Gallery) -> Tensor:
        """Unit features [N, D] of a gallery version, loaded once."""
        if self._whole is None or self._whole[0] != gallery.version:
            features = torch.from_numpy(gallery.features(gallery.keys())).to(self._device)
            self._whole = (gallery.version, features)
        return self._whole[1]


def _best(features: Tensor, candidates: Tensor, count: int) -> Tensor:
    """Of candidates [B, K, D] (unused ones zero) the nearest [B, count, D] of features [B, D], best first."""
    cosine = torch.einsum("bd,bkd->bk", features, candidates)
    cosine[(candidates == 0).all(2)] = -2.0
    best = cosine.topk(min(count, cosine.shape[1]), dim=1).indices
    return candidates.gather(1, best[..., None].expand(-1, -1, candidates.shape[2]))
