"""The image tower that a base of two domains starts from, and how it is served once it has been trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from core.artifacts import digest
from core.errors import ConfigError
from encoders.clip import open_clip_towers
from encoders.clip_source import ClipSource
from encoders.packages import replace_image_tower
from encoders.plain_towers import is_plain
from encoders.projection import Projection
from encoders.text import TextTower
from encoders.vision import IMAGENET, Backbone, ImageTower, read_backbone, vision_tower, write_backbone
from qshift.recipes.brought_towers import bring
from qshift.recipes.domains.material import FitOptions
from qshift.recipes.packaged import IMAGE_TOWER, packaged_towers


@dataclass(frozen=True, slots=True)
class Start:
    """A tower before any training.

    Args:
        folder: what a base model will take as its towers.
        image: the tower.
        text: of the same model, if it has one.
        name: where it is from.
        backbone: its name in torchvision or timm; None for a pair of open_clip.
    """

    folder: Path
    image: ImageTower
    text: TextTower | None
    name: str
    backbone: Backbone | None = None

    def served(self, state: Mapping[str, Tensor] | None, projection: Projection | None) -> ImageTower:
        """The tower as the base model will load it, with `state` where it was trained along."""
        if self.backbone is None:
            if state is not None:
                replace_image_tower(self.folder, state)
            return open_clip_towers(f"local-dir:{self.folder}", projections={"image": projection}).image
        if state is not None:
            self.image.raw.load_state_dict(dict(state))
            write_backbone(self.folder, self.backbone, self.image.raw, self.image.preprocess)
        return read_backbone(self.folder, projection, "cpu", "fp32")


def start(folder: Path, options: FitOptions) -> Start:
    """The packaged tower, or a torchvision backbone, for pictures of `options.side` pixels; or a user's own.

    Raises:
        ConfigError: no such backbone or model, or one that does not take pictures of this size.
        ArtifactError: weights that do not fit, or the packages of the demo extra are missing.
    """
    if options.model is not None:
        return _own(folder, options.model, options)
    if options.backbone is None:
        pair = packaged_towers(folder, options.side)
        return Start(folder, pair.image, pair.text, IMAGE_TOWER)
    name = options.backbone  # `vision_tower` refuses what is none
    preprocess = replace(IMAGENET, size=(options.side, options.side), resize_mode="squash")
    try:
        tower = vision_tower(name, options.weights, options.seed, preprocess=preprocess)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"{name} does not take pictures of {options.side} pixels ({str(error).splitlines()[0]}): "
            "try --side 224"
        ) from error
    write_backbone(folder, name, tower.raw, preprocess)
    if options.weights is None:
        origin = f"random, seed {options.seed}"
    else:
        origin = f"weights from {options.weights.name} ({digest(options.weights)[:16]})"
    return Start(folder, tower, None, f"torchvision {name}, {origin}", name)


def _own(folder: Path, source: ClipSource, options: FitOptions) -> Start:
    brought = bring(folder, source, seed=options.seed)
    plain = is_plain(source.model or "")
    if options.tower_rate and not plain:
        replace_image_tower(folder, brought.image.raw.state_dict())  # refused now, and not after the fit
    where = {key: brought.about[key] for key in ("model", "weights")}
    name = f"{where['model']}, weights {where['weights']}"
    return Start(folder, brought.image, brought.text, name, source.model if plain else None)
