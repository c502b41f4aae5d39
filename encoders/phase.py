"""TPSNet's image encoder: features of a tower fused with features of the picture's phase, and with prompts.

    r = tower(x)    p = phase encoder(phase image(x))
    Z = LN([r; p] + MHSA([r; p]))    I_f = mean of Z over its tokens    I' = norm(I_f that asked the prompts)

The phase image keeps where edges are and forgets how strong: a picture a y + b, a > 0, has the same one.

Reference: TPSNet, arXiv 2603.12711, of which only the abstract was read: the wiring is reconstructed
(docs/methods/tpsnet.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from core.errors import ArtifactError, ConfigError
from encoders.vision import ImageTower

Ask = Literal["none", "class_queries", "image_query", "best_class"]
GREY = (0.299, 0.587, 0.114)
FLOOR = 1e-6  # of a picture's deviation: a blank one becomes rounding noise, but finite
CHANNELS, POOLED = 16, 8


def phase_image(
    x: Tensor, *, amplitude: float | None = None, clip: bool = False, eps: float = 0.0, lowpass: float = 0.0
) -> Tensor:
    """Re IFFT2 of the unit spectrum of the grey picture, without its mean.

    Args:
        x: [B, 3, H, W].
        amplitude: R, of every frequency; None scales each picture to deviation 1.
        clip: to 0..255, as DG-UCDIR does with R = 50,000: half of the signal is lost.
        eps: F / (|F| + eps): frequencies that are only noise keep small.
        lowpass: s > 0 weighs frequencies k, in cycles per pixel, by exp(-|k|^2 / (2 s^2)).

    Returns:
        [B, 1, H, W].
    """
    grey = (x * x.new_tensor(GREY).view(1, 3, 1, 1)).sum(1, keepdim=True)
    spectrum = torch.fft.fft2(grey)
    size = spectrum.abs()
    unit = spectrum / (size + eps) if eps > 0 else torch.polar(torch.ones_like(size), spectrum.angle())
    if lowpass > 0:
        rows, columns = (torch.fft.fftfreq(n, device=x.device, dtype=grey.dtype) for n in x.shape[2:])
        unit = unit * torch.exp(-(rows[:, None] ** 2 + columns**2) / (2 * lowpass**2))
    unit = unit * (torch.arange(size[0].numel(), device=x.device) > 0).view(size.shape[1:])  # no mean
    found = torch.fft.ifft2(unit).real
    if amplitude is None:
        found = found / found.std((2, 3), correction=0, keepdim=True).clamp_min(FLOOR)
    else:
        found = found * amplitude
    clipped: Tensor = found.clamp(0, 255) if clip else found
    return clipped


class Reduced(nn.Module):
    """Features of a tower in fewer numbers: (norm(tower(x)) - mean) axes, [B, D].

    Args:
        tower: pictures -> [B, raw width].
        mean: [raw width].
        axes: [raw width, D].
    """

    mean: Tensor
    axes: Tensor

    def __init__(self, tower: nn.Module, mean: Tensor, axes: Tensor) -> None:
        super().__init__()
        self.tower = tower
        self.register_buffer("mean", mean)
        self.register_buffer("axes", axes)

    def forward(self, x: Tensor) -> Tensor:
        return self.reduced(self.tower(x))

    def reduced(self, raw: Tensor) -> Tensor:
        """Of the tower's raw features [B, raw width]."""
        found: Tensor = (normalize(raw, dim=1) - self.mean) @ self.axes
        return found


class PhaseEncoder(nn.Module):
    """Convolution, BatchNorm, ReLU, pooling, Linear: [B, 1, H, W] -> [B, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, CHANNELS, 3, stride=2, padding=1),
            nn.BatchNorm2d(CHANNELS),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(POOLED),
            nn.Flatten(),
            nn.Linear(CHANNELS * POOLED**2, width),
        )

    def forward(self, phase: Tensor) -> Tensor:
        found: Tensor = self.layers(phase)
        return found


class PhaseFusion(nn.Module):
    """Pictures [B, 3, H, W] as a tower takes them -> unit features [B, D].

    At the start it is close to the tower: attention adds nothing, and the phase has no say (`gate` is 0).
    With the first steps the layer norm brings its token to full size.

    Args:
        tower: pictures -> [B, D].
        text: [T, D] unit features of the prompts.
        width: D.
        ask: how the picture asks the prompts. "none": not at all. "class_queries": every prompt attends to
            the two tokens, and the answers count as their prompts fit the picture. "image_query": the
            picture attends to the prompts. "best_class": the prompt that fits best attends to the tokens.
        lowpass: of the phase image.
        phase: False leaves the phase out.
        temperature: of the fit of prompts to pictures.
        heads: of attention.

    Raises:
        ConfigError: an unknown way to ask, or a text of another width.
    """

    text: Tensor

    def __init__(
        self,
        tower: nn.Module,
        text: Tensor,
        width: int,
        ask: Ask = "class_queries",
        lowpass: float = 0.0,
        phase: bool = True,
        temperature: float = 0.07,
        heads: int = 4,
    ) -> None:
        super().__init__()
        if ask not in get_args(Ask):
            raise ConfigError(f"no way to ask {ask!r}: expected one of {', '.join(get_args(Ask))}")
        if text.ndim != 2 or text.shape[1] != width:
            raise ConfigError(f"prompts [T, {width}] expected, got {tuple(text.shape)}")
        self.ask: Ask = ask
        self.width, self.lowpass, self.temperature, self.heads = width, lowpass, temperature, heads
        self.tower = tower
        self.register_buffer("text", text)
        self.phase = PhaseEncoder(width) if phase else None
        self.gate = nn.Parameter(torch.zeros(()))
        self.among = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.asking = None if ask == "none" else nn.MultiheadAttention(width, heads, batch_first=True)
        self.last = None if ask == "none" else nn.LayerNorm(width)
        for attention in (self.among, self.asking):
            if attention is not None:
                nn.init.zeros_(attention.out_proj.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.fuse(self.tower(x), self.phases(x))

    def phases(self, x: Tensor) -> Tensor | None:
        """Phase images [B, 1, H, W] of pictures; None where the phase is left out."""
        return None if self.phase is None else phase_image(x.float(), lowpass=self.lowpass)

    def fuse(self, raw: Tensor, phases: Tensor | None) -> Tensor:
        """Features [B, D] of the tower and phase images -> unit features [B, D]."""
        r = normalize(raw, dim=1) * self.width**0.5
        tokens = [r]
        if self.phase is not None and phases is not None:
            p = normalize(self.phase(phases), dim=1) * self.width**0.5
            tokens.append(self.gate * p)
        stacked = torch.stack(tokens, 1)
        mixed = stacked + self.among(stacked, stacked, stacked, need_weights=False)[0]
        # One token alone is no first of several: a layer that is aligned takes that apart.
        z = self.norm(mixed) if len(tokens) > 1 else self.norm(mixed[:, 0])[:, None]
        return normalize(self._asked(raw, z), dim=1)

    def _asked(self, raw: Tensor, z: Tensor) -> Tensor:
        """The mean of the tokens z [B, 2, D], and what the prompts add to it."""
        mean = z.mean(1)
        if self.asking is None or self.last is None:
            return mean
        scaled = self.text * self.width**0.5
        if self.ask == "image_query":
            prompts = scaled.expand(len(z), -1, -1)
            found: Tensor = self.asking(mean[:, None], prompts, prompts, need_weights=False)[0][:, 0]
            return self._normal(mean + found)
        fit = normalize(raw, dim=1) @ self.text.T / self.temperature
        if self.ask == "best_class":
            best = scaled[fit.argmax(1)]
            found = self.asking(best[:, None], z, z, need_weights=False)[0][:, 0]
            return self._normal(best + mean + found)
        answers = self.asking(scaled.expand(len(z), -1, -1), z, z, need_weights=False)[0]
        return self._normal(mean + torch.einsum("bt,btd->bd", fit.softmax(1), answers))

    def _normal(self, x: Tensor) -> Tensor:
        assert self.last is not None  # there is one wherever prompts are asked
        normal: Tensor = self.last(x)
        return normal

    def settings(self) -> dict[str, object]:
        """What `__init__` needs besides tower and prompts."""
        return {
            "width": self.width, "ask": self.ask, "lowpass": self.lowpass, "phase": self.phase is not None,
            "temperature": self.temperature, "heads": self.heads,
        }  # fmt: skip


TOWER = "tower.tower."
"""Names of the image tower inside a fused encoder: its weights stand elsewhere in a base model."""


def own_state(network: nn.Module) -> dict[str, Tensor]:
    """Everything that a fused encoder holds besides the image tower."""
    return {name: tensor for name, tensor in network.state_dict().items() if not name.startswith(TOWER)}


def fused(image: ImageTower, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> ImageTower:
    """An image encoder whose features go through a trained fusion.

    Args:
        image: the encoder with the tower that the fusion was trained behind.
        tensors: `own_state` of the trained fusion.
        settings: its `settings()`.

    Raises:
        ArtifactError: tensors or settings of something else.
    """
    try:
        tower = Reduced(image.raw, tensors["tower.mean"], tensors["tower.axes"])
        network = PhaseFusion(tower, tensors["text"], **settings)
        missing, strange = network.load_state_dict(dict(tensors), strict=False)
    except (KeyError, TypeError, RuntimeError, ConfigError) as error:
        raise ArtifactError(f"not the tensors of a fused encoder: {error}; build the base again") from error
    if strange or any(not name.startswith(TOWER) for name in missing):
        raise ArtifactError(f"not the tensors of a fused encoder: {[*strange, *missing][:3]}; build it again")
    return ImageTower(network, image.preprocess, device=image.device)
