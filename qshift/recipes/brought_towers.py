"""Towers of a user's own, by their source: open_clip's, or an image tower of torchvision or timm."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from core.errors import ConfigError
from core.readers.places import is_file, shown
from core.types import Modality
from encoders.clip import RANDOM, Towers, open_clip_towers
from encoders.clip_folder import clip_folder
from encoders.clip_source import ClipSource
from encoders.plain_towers import is_plain, plain_preprocess
from encoders.projection import Projection
from encoders.vision import backbone, read_backbone, write_backbone
from qshift.recipes.brought import Brought


def bring(
    folder: Path, source: ClipSource, device: str = "cpu", precision: str = "fp32", seed: int = 0
) -> Brought:
    """Writes the towers into a folder that a base copies, and loads them.

    Args:
        folder: empty, or not there.
        source: of an open_clip model, or `torchvision:NAME` or `timm:NAME` and a file, or "random".
        device: where they go.
        precision: of their bodies.
        seed: of random weights.

    Raises:
        ConfigError: choices that cannot be used.
        ArtifactError: a model that cannot be loaded.
    """
    if is_plain(source.model or ""):
        return _plain(folder, source, device, precision, seed)
    about = clip_folder(folder, source)
    towers = open_clip_towers(f"local-dir:{folder}", device, precision)
    return Brought(folder, towers.image, towers.text, {**about, "precision": precision})


def behind(brought: Brought, projections: Mapping[Modality, Projection | None]) -> Towers:
    """The towers of an open_clip model once more, with projections behind them."""
    return open_clip_towers(
        f"local-dir:{brought.folder}",
        brought.image.device,
        str(brought.about["precision"]),
        projections=projections,
    )


def _plain(folder: Path, source: ClipSource, device: str, precision: str, seed: int) -> Brought:
    """An image tower of torchvision or timm."""
    if (source.tag, source.quick_gelu, source.text_files) != (None, None, None):
        raise ConfigError(f"{source.model} has no text side: leave --tag, --quick-gelu and --text-files out")
    weights = None if source.pretrained == RANDOM else Path(source.pretrained)
    if weights is not None and not is_file(weights):
        raise ConfigError(
            f"no file {shown(weights)}: {source.model} takes --pretrained FILE with the state of the "
            f'library\'s model, or "{RANDOM}"'
        )
    name = source.model or ""
    write_backbone(folder, name, backbone(name, weights, seed), plain_preprocess(name))
    image = read_backbone(folder, None, device, precision)
    about = {"model": name, "weights": RANDOM if weights is None else weights.name}
    return Brought(folder, image, None, {**about, "precision": precision})
