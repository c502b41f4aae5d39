"""k-means from given centres: Lloyd's loop, for arrays of NumPy and of torch. Samples are rows.

What is near, and what the mean of nothing is, each caller says for itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from numpy.typing import NDArray
from torch import Tensor

Array = TypeVar("Array", NDArray[Any], Tensor)


def lloyd(
    centres: Array, nearest: Callable[[Array], Array], means: Callable[[Array, Array], Array], rounds: int
) -> tuple[Array, Array]:
    """Moves centres until no sample changes to another one.

    Args:
        centres: [C, D] to start from.
        nearest: centres -> [n] the number of the one that is nearest to each sample.
        means: (these numbers, centres) -> centres in the middle of their samples.
        rounds: most moves.

    Returns:
        Numbers [n] by the last centres, and these.
    """
    labels = nearest(centres)
    for _ in range(rounds):
        centres = means(labels, centres)
        before, labels = labels, nearest(centres)
        if bool((labels == before).all()):
            break
    return labels, centres
