"""Hash heads: unit features -> codes, frozen on-line. The bit convention: h >= 0 is bit 1, little-endian.

z = v - mean of the modality;  h = W z + bias;  code = [h >= 0].  Never `torch.sign`: it is 0 at 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.errors import ArtifactError
from core.types import Codes, Floats, Modality

Doubles = NDArray[np.float64]


class HashHead:
    """A linear head with one mean per modality (the modality gap).

    Args:
        weight: [L, D] float32, L a multiple of 8.
        bias: [L].
        means: by modality, the mean [D] of its clean unit features.
        device: where it computes.

    Raises:
        ArtifactError: shapes that do not fit each other, or values that are not finite.
    """

    def __init__(
        self,
        weight: Tensor | Floats,
        bias: Tensor | Floats,
        means: Mapping[Modality, Tensor | Floats],
        device: str = "cpu",
    ) -> None:
        self.weight, self.bias = _tensor(weight, device), _tensor(bias, device)
        self.means: dict[Modality, Tensor] = {name: _tensor(mean, device) for name, mean in means.items()}
        if self.weight.ndim != 2 or self.weight.shape[0] % 8 or not self.weight.shape[0]:
            raise ArtifactError(
                f"expected a head [bits, width] with bits a multiple of 8, got {list(self.weight.shape)}"
            )
        bits, width = self.weight.shape
        if self.bias.shape != (bits,) or any(mean.shape != (width,) for mean in self.means.values()):
            raise ArtifactError(f"bias or means do not fit a head of {bits} bits and width {width}")
        if not all(bool(t.isfinite().all()) for t in (self.weight, self.bias, *self.means.values())):
            raise ArtifactError("the head holds NaN or infinity: fit it again")

    @property
    def bits(self) -> int:
        return int(self.weight.shape[0])

    @property
    def width(self) -> int:
        """D, the width of the features it takes."""
        return int(self.weight.shape[1])

    def to(self, device: str) -> HashHead:
        return HashHead(self.weight, self.bias, self.means, device)

    def relaxed(self, features: Tensor, modality: Modality, mean: Tensor | None = None) -> Tensor:
        """[B, D] -> h [B, L]; `mean` replaces the stored one (re-centring).

        Raises:
            ArtifactError: a modality without a mean, or features of another width.
        """
        if features.shape[-1] != self.width:
            raise ArtifactError(f"features have width {features.shape[-1]}, the head takes {self.width}")
        if mean is None:
            if modality not in self.means:
                raise ArtifactError(f"the head has no mean for {modality!r}, only for {sorted(self.means)}")
            mean = self.means[modality]
        return (features.float() - mean) @ self.weight.T + self.bias

    def codes(self, features: Tensor, modality: Modality) -> Codes:
        """[B, D] -> packed [B, L/8]."""
        with torch.no_grad():
            ones = (self.relaxed(features, modality) >= 0).cpu().numpy()
        packed: Codes = np.packbits(ones, axis=1, bitorder="little")
        return packed


def _tensor(values: Tensor | Floats, device: str) -> Tensor:
    tensor = values if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
    return tensor.detach().to(device, torch.float32)


def random_rotation(size: int, seed: int) -> Doubles:
    """A rotation [size, size] drawn evenly from the orthogonal group."""
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))
    return np.asarray(q * np.where(np.diag(r) < 0, -1.0, 1.0), dtype=np.float64)


def itq_rotations(projected: Doubles, iterations: int, seed: int) -> Iterator[Doubles]:
    """Yields R [L, L] after each iteration: codes for fixed R, then the best R for fixed codes."""
    rotation = random_rotation(projected.shape[1], seed)
    yield rotation
    for _ in range(iterations):
        codes = np.where(projected @ rotation >= 0, 1.0, -1.0)
        u, _, vh = np.linalg.svd(codes.T @ projected)
        rotation = (u @ vh).T
        yield rotation


def itq(features: Floats, mean: Floats, bits: int, iterations: int = 50, seed: int = 0) -> Floats:
    """Weight [L, D] of a head by iterative quantisation; more bits than width are a random rotation.

    Args:
        features: gallery features [N, D], unit.
        mean: their mean [D].
        bits: L, a multiple of 8.
        iterations: 50 in the paper and in its code.
        seed: of the first rotation.

    Raises:
        ArtifactError: fewer features than bits, bits not a multiple of 8, or NaN.

    Reference: Gong and Lazebnik, Iterative Quantization, CVPR 2011, section 3.
    """
    count, width = features.shape
    _check_bits(bits)
    if bits > width:
        return random_rotation(bits, seed)[:, :width].astype(np.float32)
    if count < bits:
        raise ArtifactError(f"{bits} bits need at least as many gallery features, got {count}")
    centred = np.asarray(features, dtype=np.float64) - mean
    if not np.isfinite(centred).all():
        raise ArtifactError("gallery features hold NaN or infinity: encode them again")
    # The first right singular vectors, from the [D, D] scatter: N may be large.
    _, vectors = np.linalg.eigh(centred.T @ centred)
    axes = vectors[:, ::-1][:, :bits]
    *_, rotation = itq_rotations(centred @ axes, iterations, seed)
    weight: Floats = (axes @ rotation).T.astype(np.float32)
    return weight


def _check_bits(bits: int) -> None:
    if bits <= 0 or bits % 8:
        raise ArtifactError(f"expected a number of bits divisible by 8, got {bits}")
