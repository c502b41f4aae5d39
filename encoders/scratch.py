"""A small open_clip model from nothing but captioned pictures: two transformers, full BPE vocabulary.

    logits = s F_img F_txt^T                                         [B, U]
    T_ij = 1 if caption j is one of picture i's, rows (columns) summing to 1
    loss = -1/2 (mean_i sum_j T_ij log_softmax(logits)_ij + the same with logits^T)

A batch has one caption a picture; equal captions are encoded once. With captions that pictures share, plain
InfoNCE would push true pairs apart; where none is shared this is InfoNCE (CLIP, Radford et al. 2021).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip import SimpleTokenizer
from open_clip.model import CustomTextCLIP
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from core.errors import ArtifactError, ConfigError, Refused
from encoders.augment import shaken
from encoders.contrast import multi_positive
from encoders.images import Content, Preprocess, opened, prepare
from encoders.threads import one_thread

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


def train_clip(
    folder: Path,
    pictures: Sequence[Content],
    captions: Sequence[tuple[str, ...]],
    config: ScratchConfig | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[float, ...]:
    """Trains a model and writes it in open_clip's `local-dir:` format; one seed gives the same bytes.

    Args:
        folder: created if missing; gets open_clip_config.json and open_clip_model.safetensors.
        pictures: n files, or RGB [H, W, 3], on white where they are no full frames.
        captions: of each picture, at least one; pictures may share captions.
        config: sizes and training.
        seed: of weights, batches, captions and augmentation.
        progress: called with (done, total, text) after every step.

    Returns:
        The loss of every step.

    Raises:
        ConfigError: fewer than two pictures, or pictures and captions that do not fit each other.
        ArtifactError: the loss left the finite numbers.
    """
    config = config or ScratchConfig()
    _check(pictures, captions)
    try:
        preprocess = _preprocess(pictures, config)
        squares = np.stack([prepare(picture, preprocess) for picture in pictures])
    except Refused as refused:
        raise ConfigError(f"a picture cannot be learned from: {refused.reason}") from refused
    with one_thread():
        with torch.random.fork_rng(devices=[]):  # layers are initialised from the global generator
            torch.manual_seed(seed)
            sizes = config.model()
            model: nn.Module = CustomTextCLIP(sizes["embed_dim"], sizes["vision_cfg"], sizes["text_cfg"])
        losses = _train(model, torch.from_numpy(squares), captions, preprocess, config, seed, progress)
    folder.mkdir(parents=True, exist_ok=True)
    document = {"model_cfg": config.model(), "preprocess_cfg": _preprocess_config(preprocess)}
    (folder / "open_clip_config.json").write_text(json.dumps(document, indent=1, sort_keys=True))
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return losses


def _train(
    model: Any,
    squares: Tensor,
    captions: Sequence[tuple[str, ...]],
    preprocess: Preprocess,
    config: ScratchConfig,
    seed: int,
    progress: Progress | None,
) -> tuple[float, ...]:
    draw = torch.Generator().manual_seed(seed)
    ids, owned = _caption_ids(captions)
    tokens = SimpleTokenizer(context_length=config.context)(list(ids))
    mean, sd = (torch.tensor(values).view(1, 3, 1, 1) for values in (preprocess.mean, preprocess.std))
    optimizer, schedule = _optimizer(model, config)
    losses: list[float] = []
    for items in _batches(len(squares), config, draw):
        own = owned[items]
        # Rows are filled up by repetition: only the first places of a row are distinct captions.
        counts = torch.tensor([len(set(row)) for row in own.tolist()])
        place = (torch.rand(len(items), generator=draw) * counts).long()
        drawn = torch.from_numpy(np.unique(own.gather(1, place[:, None]).numpy()))
        positive = (own[:, :, None] == drawn).any(1)
        looks = shaken(squares[items].float() / WHITE, config.rotation, config.scale, config.shift, draw)
        seen = F.normalize(model.visual((looks - mean) / sd), dim=-1)
        read = F.normalize(model.text(tokens[drawn]), dim=-1)
        loss = multi_positive(model.logit_scale.exp() * seen @ read.T, positive)
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


def _batches(n: int, config: ScratchConfig, draw: torch.Generator) -> Iterator[Tensor]:
    """One shuffled pass after the other, cut into batches of one size."""
    size = min(config.batch, n)
    left = torch.empty(0, dtype=torch.long)
    for _ in range(config.steps):
        if len(left) < size:
            left = torch.cat((left, torch.randperm(n, generator=draw)))
        yield left[:size]
        left = left[size:]


def _caption_ids(captions: Sequence[tuple[str, ...]]) -> tuple[dict[str, int], Tensor]:
    """Every caption once with its number, and the numbers of each picture's own [n, M], repeated to fill."""
    ids: dict[str, int] = {}
    own = [
        [ids.setdefault(text, len(ids)) for text in dict.fromkeys(texts) if text.strip()]
        for texts in captions
    ]
    widest = max(map(len, own))
    return ids, torch.tensor([(row * widest)[:widest] for row in own])


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
    values = asdict(preprocess)
    del values["size"]  # open_clip takes it from the model
    return values


def _check(pictures: Sequence[Content], captions: Sequence[tuple[str, ...]]) -> None:
    if len(pictures) < 2:
        raise ConfigError(f"expected at least two pictures, got {len(pictures)}")
    if len(captions) != len(pictures):
        raise ConfigError(f"{len(pictures)} pictures have {len(captions)} sets of captions: expected equal")
    bare = next((i for i, texts in enumerate(captions) if not any(text.strip() for text in texts)), None)
    if bare is not None:
        raise ConfigError(f"picture {bare} has no caption: expected at least one text that is not empty")
