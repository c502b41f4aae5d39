"""Pictures as queries: the image tower, and torchvision backbones for image-to-image retrieval."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from core.errors import ArtifactError, ConfigError
from core.types import Modality
from encoders.images import BYTES, PIXELS, Content, Pixels, Preprocess, prepare
from encoders.norms import HALVES, to_half
from encoders.plain_towers import TORCHVISION, is_plain, plain_tower
from encoders.projection import Projection
from encoders.rows import check_rows
from encoders.tower import Tower
from encoders.weights import state_of


class ImageTower(Tower):
    """Encoded pictures -> unit features.

    Args:
        tower: pictures [B, 3, H, W], normalised -> [B, raw width].
        preprocess: input size, resize mode, mean and sd.
        max_bytes, max_pixels: caps of one query picture.
        projection, exclude, device: see `Tower`.
    """

    tokens = True

    def __init__(
        self,
        tower: nn.Module,
        preprocess: Preprocess,
        projection: Projection | None = None,
        exclude: Sequence[str] = (),
        device: str = "cpu",
        max_bytes: int = BYTES,
        max_pixels: int = PIXELS,
    ) -> None:
        self.preprocess = preprocess
        self._max_bytes, self._max_pixels = max_bytes, max_pixels
        self._decode: Callable[[Content, Preprocess, int, int], Pixels] = prepare
        scale = 1 / (255 * torch.tensor(preprocess.std))
        self._scale = scale.view(1, 3, 1, 1).to(device)
        self._shift = (
            (torch.tensor(preprocess.mean) / torch.tensor(preprocess.std)).view(1, 3, 1, 1).to(device)
        )
        super().__init__(tower, torch.zeros(1, 3, *preprocess.size), projection, exclude, device)

    @property
    def modality(self) -> Modality:
        return "image"

    def limit(self, max_bytes: int, max_pixels: int) -> None:
        """Other caps than those of one's own files: what a stranger's picture may have."""
        self._max_bytes, self._max_pixels = max_bytes, max_pixels

    def decode_by(self, decode: Callable[[Content, Preprocess, int, int], Pixels]) -> None:
        """Decodes elsewhere: as `encoders.images.prepare`, see `encoders.decoding`."""
        self._decode = decode

    def prepare(self, content: Any) -> Pixels:
        """Encoded bytes, or pixels uint8 [H, W, 3] -> uint8 [3, height, width]. Raises Refused."""
        return self._decode(content, self.preprocess, self._max_bytes, self._max_pixels)

    def collate(self, prepared: Sequence[Pixels], rows: int) -> Tensor:
        """[rows, 3, H, W] float32, normalised; added rows repeat the last picture."""
        check_rows(len(prepared), rows, "pictures")
        blank = np.zeros((3, *self.preprocess.size), dtype=np.uint8)
        last = prepared[-1] if len(prepared) else blank
        stacked = np.stack([*prepared, *[last] * (rows - len(prepared))]) if rows else blank[None][:0]
        pixels = torch.from_numpy(stacked).to(self.device).float()
        pixels = pixels.mul_(self._scale).sub_(self._shift)
        return pixels.contiguous(memory_format=torch.channels_last) if self.channels_last else pixels

    def settings(self) -> str:
        return json.dumps({"modality": "image", **self.preprocess.document()}, sort_keys=True)


Backbone = str
"""One of `BACKBONES`, of torchvision; or any of torchvision or timm by its whole name (`plain_towers`)."""
BACKBONES = ("resnet34", "vit_b_16", "mobilenet_v2", "alexnet")
IMAGENET = Preprocess(
    mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), interpolation="bilinear", resize_mode="shortest"
)
DESCRIPTION, WEIGHTS = "backbone.json", "backbone.safetensors"


def backbone(name: Backbone, weights: Path | None = None, seed: int = 0) -> nn.Module:
    """A backbone without its classifier: [B, 3, H, W] -> [B, 512 | 768 | 1280 | 4096] of `BACKBONES`.

    AlexNet stands in for the VGG-F of the hashing literature. ViT-B/16 takes 224 pixels only.

    Args:
        name: which.
        weights: a state dict as .safetensors, .npz or .pth (read with weights_only); None for random ones.
        seed: of random weights.

    Raises:
        ConfigError: an unknown name or kind of file.
        ArtifactError: a file that cannot be read or does not fit.
    """
    if not is_plain(name) and name not in BACKBONES:
        raise ConfigError(f"no backbone {name!r}: expected one of {', '.join(BACKBONES)}")
    module, heads = plain_tower(name if is_plain(name) else f"{TORCHVISION}{name}", seed)
    if weights is not None:
        found = state_of(weights)
        above = tuple(f"{head}." for head in heads)
        kept = {key: value for key, value in found.items() if not key.startswith(above)}
        try:
            module.load_state_dict(kept)
        except RuntimeError as error:  # torch lists hundreds of names
            raise ArtifactError(
                f"{weights} does not fit {name}: {_misfit(module.state_dict(), kept)}"
            ) from error
    return module


def _misfit(own: Mapping[str, Tensor], given: Mapping[str, Any]) -> str:
    """In one line, where a state differs from that of a module."""
    wrong = [key for key in own if getattr(given.get(key), "shape", None) != own[key].shape]
    first = (wrong or [key for key in given if key not in own] or ["their types"])[0]
    return (
        f"{len(own) - len(wrong)} of its {len(own)} tensors found among {len(given)} (look at {first}): "
        "take the state of the library's model of that name"
    )


def vision_tower(
    name: Backbone,
    weights: Path | None = None,
    seed: int = 0,
    projection: Projection | None = None,
    preprocess: Preprocess = IMAGENET,
    device: str = "cpu",
    precision: str = "fp32",
) -> ImageTower:
    """A torchvision backbone as an encoder; see `backbone`."""
    return _encoder(backbone(name, weights, seed), preprocess, projection, device, precision)


def write_backbone(
    folder: Path, name: Backbone, module: nn.Module, preprocess: Preprocess = IMAGENET
) -> None:
    """Writes a backbone as a folder that a base model can take as its towers."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in module.state_dict().items()}, folder / WEIGHTS)
    (folder / DESCRIPTION).write_text(
        json.dumps({"name": name, "preprocess": preprocess.document()}, indent=1)
    )


def read_backbone(
    folder: Path,
    projection: Projection | None,
    device: str,
    precision: str,
    preprocess: Preprocess | None = None,
) -> ImageTower:
    """What `write_backbone` wrote; `preprocess` in place of its own. Raises ArtifactError."""
    try:
        document = json.loads((folder / DESCRIPTION).read_text())
        module = backbone(document["name"], folder / WEIGHTS)
        own = Preprocess.of(document["preprocess"])
    except (OSError, ValueError, KeyError) as error:
        raise ArtifactError(
            f"{folder / DESCRIPTION} cannot be read: {error}; build the base again"
        ) from error
    return _encoder(module, (preprocess or own).sized(own.size), projection, device, precision)


def _encoder(
    module: nn.Module, preprocess: Preprocess, projection: Projection | None, device: str, precision: str
) -> ImageTower:
    if precision != "fp32" and precision not in HALVES:
        raise ConfigError(f'precision {precision!r} cannot be used with adaptation: "fp32", "bf16" or "fp16"')
    module = module.eval()
    if precision in HALVES:
        to_half(module, HALVES[precision])
    return ImageTower(module, preprocess, projection, device=device)
