"""The loss of pictures against captions where a caption may fit several pictures."""

from __future__ import annotations

from torch import Tensor


def multi_positive(logits: Tensor, positive: Tensor) -> Tensor:
    """Symmetric cross-entropy against all true pairs.

    Args:
        logits: [B, U], pictures by captions.
        positive: bool [B, U]; at least one in every row and column.
    """
    truth = positive.float()
    rows = (truth / truth.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1).mean()
    columns = (truth / truth.sum(0, keepdim=True) * logits.log_softmax(0)).sum(0).mean()
    return -(rows + columns) / 2
