"""A small open_clip model that is trained here: its sizes, its fresh weights, the loop, the folder.

What a step teaches is its recipe's: `scratch` contrasts pictures with captions, `distil` follows a teacher.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip.model import CustomTextCLIP
from safetensors.torch import save_file
from torch import Tensor, nn

from core.errors import ArtifactError, ConfigError, Refused
from encoders.augment import shaken
from encoders.images import Content, Preprocess, opened, prepare

Progress = Callable[[int, int, str], None]
VOCABULARY = 49408  # of open_clip's BPE
WHITE = 255
FLAT = 0.05  # least sd of a channel: pictures of one colour must not divide by zero
SCALE_CEILING = math.log(100)  # CLIP clamps the logit scale at 100


@dataclass(frozen=True, slots=True)
class ScratchConfig:
    """Sizes and training.

    `rotation` is in radians, `scale` a share, `shift` in units of half a side: the jitter of the demo.
    On the 1,918 emoji (seed 0) 1,000 steps find .68 of the pictures by their names first, 2,000 steps .79.
    """

    image_size: int = 64
    patch: int = 16  # 8 takes twice the time a step
    width: int = 64
    heads: int = 4
    image_layers: int = 4
    text_layers: int = 2
    embed: int = 64
    context: int = 32
    steps: int = 2000
    batch: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    warm_up: int = 50
    rotation: float = 0.25
    scale: float = 0.15
    shift: float = 0.1

    def __post_init__(self) -> None:
        if self.image_size % self.patch or self.width % self.heads:
            raise ConfigError(
                f"image size {self.image_size} and width {self.width} must be multiples of patch "
                f"{self.patch} and heads {self.heads}"
            )
        if min(self.steps, self.batch, self.context - 2, self.image_layers, self.text_layers) < 1:
            raise ConfigError("steps, batch and layers must be at least 1, the context at least 3 tokens")

    def model(self) -> dict[str, Any]:
        """The model_cfg of open_clip."""
        return {
            "embed_dim": self.embed,
            "custom_text": True,
            "vision_cfg": {
                "image_size": self.image_size,
                "patch_size": self.patch,
                "width": self.width,
                "layers": self.image_layers,
                "head_width": self.width // self.heads,
            },
            "text_cfg": {
                "context_length": self.context,
                "vocab_size": VOCABULARY,
                "width": self.width,
                "heads": self.heads,
                "layers": self.text_layers,
            },
        }


def fresh(config: ScratchConfig, seed: int) -> CustomTextCLIP:
    """A model of random weights, which depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):  # layers are initialised from the global generator
        torch.manual_seed(seed)
        sizes = config.model()
        return CustomTextCLIP(sizes["embed_dim"], sizes["vision_cfg"], sizes["text_cfg"])


class Looks:
    """Training pictures as the model takes them, each time moved anew.

    Args:
        pictures: n files, or RGB [H, W, 3], on white where they are no full frames.
        config: sizes and the strength of the moves.
        device: where the model is.

    Raises:
        ConfigError: a picture that cannot be read.
    """

    def __init__(self, pictures: Sequence[Content], config: ScratchConfig, device: str = "cpu") -> None:
        try:
            self.preprocess = _preprocess(pictures, config)
            squares = np.stack([prepare(picture, self.preprocess) for picture in pictures])
        except Refused as refused:
            raise ConfigError(f"a picture cannot be learned from: {refused.reason}") from refused
        values = (self.preprocess.mean, self.preprocess.std)
        self._mean, self._sd = (torch.tensor(value, device=device).view(1, 3, 1, 1) for value in values)
        self._squares, self._moves = (
            torch.from_numpy(squares).to(device),
            (config.rotation, config.scale, config.shift),
        )

    def __len__(self) -> int:
        return len(self._squares)

    def drawn(self, items: Tensor, draw: torch.Generator) -> Tensor:
        """[B, 3, S, S], normalised, of the items [B]."""
        squares = self._squares[items.to(self._squares.device)]
        looks = shaken(squares.float() / WHITE, *self._moves, draw)
        return (looks - self._mean) / self._sd


def optimised(
    model: Any,
    n: int,
    loss_of: Callable[[Tensor], Tensor],
    config: ScratchConfig,
    draw: torch.Generator,
    progress: Progress | None,
) -> tuple[float, ...]:
    """Takes the steps of a training.

    Args:
        model: an open_clip model, trained in place.
        n: how many items there are to draw batches from.
        loss_of: numbers of a batch's items [B] -> loss.
        config: steps, batch, rates.
        draw: of the batches; `loss_of` may draw from it, too.
        progress: called with (done, total, text) after every step.

    Returns:
        The loss of every step.

    Raises:
        ArtifactError: the loss left the finite numbers.
    """
    optimizer, schedule = _optimizer(model, config)
    losses: list[float] = []
    for items in _batches(n, config, draw):
        loss = loss_of(items)
        if not bool(loss.isfinite()):
            raise ArtifactError(f"the loss is {loss.item()} at step {len(losses)}: lower the learning rate")
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0.0, SCALE_CEILING)
        losses.append(float(loss.detach()))
        if progress is not None:
            progress(len(losses), config.steps, "training the model")
    return tuple(losses)


def write_clip(folder: Path, model: nn.Module, config: ScratchConfig, preprocess: Preprocess) -> None:
    """Writes a model in open_clip's `local-dir:` format; equal weights give equal bytes.

    Args:
        folder: created if missing; gets open_clip_config.json and open_clip_model.safetensors.
        model: as `fresh` makes it, trained or not.
        config: of its sizes.
        preprocess: of its pictures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    document = {"model_cfg": config.model(), "preprocess_cfg": _preprocess_config(preprocess)}
    (folder / "open_clip_config.json").write_text(json.dumps(document, indent=1, sort_keys=True))
    weights = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")


def _batches(n: int, config: ScratchConfig, draw: torch.Generator) -> Iterator[Tensor]:
    """One shuffled pass after the other, cut into batches of one size."""
    size = min(config.batch, n)
    left = torch.empty(0, dtype=torch.long)
    for _ in range(config.steps):
        if len(left) < size:
            left = torch.cat((left, torch.randperm(n, generator=draw)))
        yield left[:size]
        left = left[size:]


def _optimizer(
    model: nn.Module, config: ScratchConfig
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW, decay on tensors of two or more dimensions; linear warm-up, then half a cosine down to 0."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(
        groups, config.learning_rate, betas=(0.9, 0.98), weight_decay=config.weight_decay
    )
    warm_up = min(config.warm_up, config.steps // 4)

    def rate(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 + 0.5 * math.cos(math.pi * (step - warm_up) / (config.steps - warm_up))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, rate)


def _preprocess(pictures: Sequence[Content], config: ScratchConfig) -> Preprocess:
    """Channel statistics of these pictures; other shapes than square are set on white."""
    total, square, count = np.zeros(3), np.zeros(3), 0
    for i in range(0, len(pictures), max(1, len(pictures) // 1024)):
        image = opened(pictures[i], config.image_size)
        pixels = np.asarray(image).reshape(-1, 3).astype(np.float64) / WHITE
        total, square, count = total + pixels.sum(0), square + (pixels**2).sum(0), count + len(pixels)
    mean = total / count
    red, green, blue = (round(float(v), 4) for v in mean)
    sds = [round(max(float(v), FLAT), 4) for v in np.sqrt(np.maximum(square / count - mean**2, 0.0))]
    size = (config.image_size, config.image_size)
    return Preprocess(size, (red, green, blue), (sds[0], sds[1], sds[2]), "bicubic", "longest", WHITE)


def _preprocess_config(preprocess: Preprocess) -> dict[str, Any]:
    values = preprocess.document()
    del values["size"]  # open_clip takes it from the model
    return values
