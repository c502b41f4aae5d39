"""A linear map behind each of two frozen towers, learnt from captioned pictures by contrast.

    z = normalise(x + A x + b)            x a unit feature of a frozen tower; A, b start at 0
    loss = multi_positive(z_img Z_txt^T / temperature)          pictures of one caption are true pairs

Both maps start as the identity, so the start is the model as it is, and what is kept is the epoch that ranks
pictures kept aside best; the start is one of the epochs. Adapters on frozen CLIP features: Gao et al., IJCV
2024 (CLIP-Adapter), theirs are of two layers and of the classes; linear ones by contrast, and their start,
are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import normalize

from core.artifacts import MANIFEST, read_manifest, writing
from core.errors import ArtifactError
from core.types import Floats
from encoders.contrast import multi_positive
from encoders.projection import Projection

KIND, TENSORS = "heads in training", "state.safetensors"
Places = NDArray[np.int64]
Done = Callable[[], None]


@dataclass(frozen=True, slots=True)
class HeadsConfig:
    """How the maps are trained."""

    epochs: int = 20
    most_steps: int = 4000
    """Steps in all: with many pictures an epoch is a part of them, drawn anew."""
    batch: int = 256
    learning_rate: float = 1e-4
    """Of AdamW, half a cosine down to 0."""
    weight_decay: float = 0.1
    """Pulls A to 0, so the map to the identity."""
    temperature: float = 0.02
    """That of adaptation on these towers."""
    seed: int = 0

    def steps(self, pictures: int) -> int:
        """Of one epoch."""
        return max(1, min(pictures // self.batch, self.most_steps // self.epochs))


@dataclass(frozen=True, slots=True)
class Pairs:
    """Captioned pictures as frozen towers see them; nothing of it has to lie in memory.

    Args:
        images: unit features [n, D].
        texts: unit features [m, D] of captions.
        picture: [m] places of the pictures that the captions are of, ascending.
        same: [m]: equal captions have one number.
    """

    images: Floats
    texts: Floats
    picture: Places
    same: Places


@dataclass(frozen=True, slots=True)
class Heads:
    """What was learnt: the maps, and the epoch they are of; 0 is the model as it is."""

    image: Projection
    text: Projection
    epoch: int


class _Maps(nn.Module):
    """A and b of both modalities."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(width, width), nn.Linear(width, width)
        for layer in (self.image, self.text):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def unit(self, layer: nn.Linear, rows: Tensor) -> Tensor:
        return normalize(rows + layer(rows), dim=1)


def fit_heads(
    pairs: Pairs, train: Places, choose: Places, config: HeadsConfig, folder: Path, identity: str, done: Done
) -> Heads:
    """Trains the maps; the same inputs and thread count give the same bits, stopped in between or not.

    Args:
        pairs: see there.
        train, choose: captions to learn from and to choose the epoch by, as places.
        config: see there.
        folder: every epoch is kept there; a later call of the same identity goes on.
        identity: of features, captions and split.
        done: called after every epoch.

    Raises:
        ArtifactError: the loss left the finite numbers.
    """
    run = _Run(pairs, config, folder, f"{identity} {sorted(asdict(config).items())}")
    start = run.restored(choose)
    for epoch in range(config.epochs):
        if epoch >= start:
            run.epoch(epoch, train)
            run.keep(epoch + 1, choose)
        done()
    return run.best()


def reciprocal_rank(
    texts: Tensor, images: Tensor, wanted: Places, of_images: Places, block: int = 256
) -> float:
    """Mean of 1 / rank of the first right picture, ties counted as lost; texts [t, D] ask images [n, D].

    Args:
        wanted: [t], right pictures have that number in `of_images`.
        of_images: [n].
    """
    total = 0.0
    for start in range(0, len(texts), block):
        likeness = texts[start : start + block] @ images.T
        right = torch.from_numpy(wanted[start : start + block, None] == of_images[None])
        best = likeness.masked_fill(~right, -math.inf).amax(1, keepdim=True)
        rank = ((likeness >= best) & ~right).sum(1) + 1
        total += float((1 / rank).sum())
    return total / len(texts)


class _Run:
    """Maps, their optimiser, the best so far, and the folder that holds them."""

    def __init__(self, pairs: Pairs, config: HeadsConfig, folder: Path, identity: str) -> None:
        self._pairs, self._config, self._folder, self._identity = pairs, config, folder, identity
        self._maps = _Maps(pairs.images.shape[1])
        self._adam = torch.optim.AdamW(
            self._maps.parameters(), config.learning_rate, weight_decay=config.weight_decay
        )
        self._best, self._best_epoch, self._score = self._state(), 0, -1.0

    def epoch(self, number: int, train: Places) -> None:
        """Draws depend on seed and epoch alone: whoever goes on draws the same."""
        config, draw = self._config, np.random.default_rng((self._config.seed, number))
        steps = config.steps(len(train))
        order = draw.permutation(len(train))[: steps * config.batch]
        for step, part in enumerate(np.array_split(order, steps)):
            at = (number * steps + step) / (config.epochs * steps)
            self._adam.param_groups[0]["lr"] = config.learning_rate * (0.5 + 0.5 * math.cos(math.pi * at))
            loss = self._loss(np.sort(train[part]))
            if not bool(loss.isfinite()):
                raise ArtifactError(
                    f"the loss of the heads is {loss.item()}: look for features without length"
                )
            self._adam.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            self._adam.step()

    def keep(self, epochs: int, choose: Places) -> None:
        """Chooses, and writes all of it."""
        score = self._rank(choose)
        if score > self._score:
            self._best, self._best_epoch, self._score = self._state(), epochs, score
        tensors = {f"now/{name}": tensor for name, tensor in self._state().items()}
        tensors |= {f"best/{name}": tensor for name, tensor in self._best.items()}
        for index, state in self._adam.state_dict()["state"].items():
            tensors |= {f"adam/{index}/{name}": torch.as_tensor(v).clone() for name, v in state.items()}
        told = {"identity": self._identity, "epochs": epochs}
        told |= {"best": self._best_epoch, "score": self._score}
        with writing(self._folder, KIND, told) as draft:
            save_file({name: v.detach().clone().contiguous() for name, v in tensors.items()}, draft / TENSORS)

    def restored(self, choose: Places) -> int:
        """How many epochs an earlier call of the same identity has done; what cannot be read is none."""
        try:
            manifest = read_manifest(self._folder, KIND, MANIFEST)
            if manifest["identity"] != self._identity:
                raise ArtifactError("of another fit")
            parts: dict[str, dict[str, Tensor]] = {"now": {}, "best": {}, "adam": {}}
            for name, tensor in load_file(self._folder / TENSORS).items():
                kind, rest = name.split("/", 1)
                parts[kind][rest] = tensor
        except ArtifactError:
            self._score = self._rank(choose)  # of the start
            return 0
        self._maps.load_state_dict(parts["now"])
        adam: dict[int, dict[str, Tensor]] = {}
        for name, tensor in parts["adam"].items():
            index, key = name.split("/")
            adam.setdefault(int(index), {})[key] = tensor
        self._adam.load_state_dict({**self._adam.state_dict(), "state": adam})
        self._best, self._best_epoch, self._score = parts["best"], manifest["best"], manifest["score"]
        return int(manifest["epochs"])

    def best(self) -> Heads:
        self._maps.load_state_dict(self._best)
        return Heads(_projection(self._maps.image), _projection(self._maps.text), self._best_epoch)

    def _state(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self._maps.state_dict().items()}

    def _loss(self, rows: Places) -> Tensor:
        pairs, maps = self._pairs, self._maps
        pictures, own = np.unique(pairs.picture[rows], return_inverse=True)
        images = maps.unit(maps.image, torch.from_numpy(np.asarray(pairs.images[pictures])))
        texts = maps.unit(maps.text, torch.from_numpy(np.asarray(pairs.texts[rows])))
        # A caption is right for its picture, and for pictures of this batch that have the same one.
        alike = pairs.same[rows][:, None] == pairs.same[rows][None]
        positive = np.zeros((len(pictures), len(rows)), bool)
        np.logical_or.at(positive, own, alike)
        return multi_positive(images @ texts.T / self._config.temperature, torch.from_numpy(positive))

    def _rank(self, choose: Places) -> float:
        pairs, maps = self._pairs, self._maps
        pictures, own = np.unique(pairs.picture[choose], return_inverse=True)
        with torch.no_grad():
            images = maps.unit(maps.image, torch.from_numpy(np.asarray(pairs.images[pictures])))
            texts = maps.unit(maps.text, torch.from_numpy(np.asarray(pairs.texts[choose])))
        numbers = np.arange(len(pictures), dtype=np.int64)
        own = own.astype(np.int64)
        return reciprocal_rank(texts, images, own, numbers) + reciprocal_rank(images, texts, numbers, own)


def _projection(layer: nn.Linear) -> Projection:
    width = layer.in_features
    weight = torch.eye(width) + layer.weight.detach()
    tensors = {
        "layers.weight": weight,
        "layers.bias": layer.bias.detach().clone(),
        "mean": torch.zeros(width),
    }
    return Projection.from_tensors(tensors).eval()
