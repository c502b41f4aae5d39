"""What methods with gradients own: resolved settings, the lane's tensors, AdamW and its moments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapters.online.decouple import Gradient, norm
from adapters.online.guard import anchor, finite
from core.config import AdaptConfig
from core.errors import ArtifactError, ConfigError
from core.types import SourceConstants

if TYPE_CHECKING:
    from core.protocols import Params

State = tuple[dict[str, NDArray[Any]], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Settings:
    """What a gradient method runs with, after presets and the base model's own choices."""

    learning_rate: float
    temperature: float
    uniformity_scale: float
    steps: int
    emit: Literal["before", "after", "paper"]
    constants: Literal["source", "queue"]
    anchor: float
    clip: float | None
    weight_decay: float

    @classmethod
    def resolve(cls, config: AdaptConfig, constants: SourceConstants) -> Settings:
        """The preset `tcr-paper` wins over every key; rate and temperature fall back to the base model's."""
        if config.preset == "tcr-paper":  # TCR code, all published configurations (BLIP t2i: rate 3e-5)
            return cls(3e-4, 0.02, 0.1, 3, "paper", "queue", 1.0, None, 1e-4)
        rate, temperature = config.learning_rate, config.temperature
        return cls(
            learning_rate=constants.learning_rate if rate is None else rate,
            temperature=constants.temperature if temperature is None else temperature,
            uniformity_scale=config.uniformity_scale,
            steps=config.steps,
            emit=config.emit,
            constants=config.constants,
            anchor=config.anchor,
            clip=config.clip,
            weight_decay=config.weight_decay,
        )


class Trainable:
    """The adapted tensors theta of one lane, their source values theta_s and the optimizer.

    The leaf tensors, and the dictionary that holds them, stay the same objects for ever; `step` and
    `restore` write in place.

    Args:
        source: source values by name, copied.
        settings: rate, decay, anchor.

    Raises:
        ConfigError: there is nothing to adapt.
    """

    def __init__(self, source: Params, settings: Settings) -> None:
        if not source:
            raise ConfigError(
                "expected an encoder with adaptable tensors, got none: choose method frozen or centring"
            )
        self._settings = settings
        self._source = {name: tensor.detach().clone() for name, tensor in source.items()}
        self.tensors = {name: tensor.clone().requires_grad_() for name, tensor in self._source.items()}
        self._adam = torch.optim.AdamW(
            list(self.tensors.values()),
            lr=settings.learning_rate,
            betas=(0.9, 0.999),
            weight_decay=settings.weight_decay,
            foreach=False,
        )

    @property
    def device(self) -> torch.device:
        return next(iter(self.tensors.values())).device

    def gradient(self, loss: Tensor, keep_graph: bool = False) -> Gradient:
        """Gradient by name; tensors that the loss does not reach are left out."""
        leaves = list(self.tensors.values())
        parts = torch.autograd.grad(loss, leaves, retain_graph=keep_graph, allow_unused=True)
        return {name: part for name, part in zip(self.tensors, parts, strict=True) if part is not None}

    @torch.no_grad()
    def step(self, gradient: Gradient) -> Gradient:
        """One AdamW step and the anchoring after it; returns theta before minus theta after, by name."""
        before = {name: tensor.detach().clone() for name, tensor in self.tensors.items()}
        for name, tensor in self.tensors.items():
            tensor.grad = gradient.get(name)
        self._adam.step()
        for tensor in self.tensors.values():
            tensor.grad = None
        anchor(self.tensors, self._source, self._settings.anchor)
        return {name: before[name] - tensor.detach() for name, tensor in self.tensors.items()}

    def finite(self) -> bool:
        """True when parameters and moments are finite; squares overflow in the moments first."""
        moments = [state[key] for state in self._states() if state for key in ("exp_avg", "exp_avg_sq")]
        return finite([*self.tensors.values(), *moments])

    @torch.no_grad()
    def distance(self) -> float:
        """||theta - theta_s||."""
        return norm({name: tensor - self._source[name] for name, tensor in self.tensors.items()})

    def snapshot(self) -> dict[str, NDArray[Any]]:
        """Copies of parameters, both moments (once there are some) and Adam's step counts [P] int64."""
        out = {f"theta/{name}": _copy(tensor) for name, tensor in self.tensors.items()}
        states = self._states()
        for name, state in zip(self.tensors, states, strict=True):
            if state:
                out[f"moment1/{name}"] = _copy(state["exp_avg"])
                out[f"moment2/{name}"] = _copy(state["exp_avg_sq"])
        out["adam_steps"] = np.array([int(state["step"]) if state else 0 for state in states], dtype=np.int64)
        return out

    @torch.no_grad()
    def restore(self, saved: Mapping[str, NDArray[Any]]) -> None:
        """Exactly undoes to a snapshot, in place.

        Raises:
            ArtifactError: the snapshot is of other tensors.
        """
        self._check(saved)
        self._adam.state.clear()
        for (name, tensor), steps in zip(self.tensors.items(), saved["adam_steps"].tolist(), strict=True):
            tensor.copy_(torch.from_numpy(np.array(saved[f"theta/{name}"])))
            if steps:
                self._adam.state[tensor] = {
                    "step": torch.tensor(float(steps), dtype=torch.float32),
                    "exp_avg": torch.from_numpy(np.array(saved[f"moment1/{name}"])).to(tensor),
                    "exp_avg_sq": torch.from_numpy(np.array(saved[f"moment2/{name}"])).to(tensor),
                }

    def _states(self) -> list[dict[str, Tensor]]:
        # .get: indexing the optimizer's defaultdict would create an empty state and change what it saves.
        return [self._adam.state.get(tensor, {}) for tensor in self.tensors.values()]

    def _check(self, saved: Mapping[str, NDArray[Any]]) -> None:
        expected = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        got = {key[6:]: array.shape for key, array in saved.items() if key.startswith("theta/")}
        if got != expected or len(saved.get("adam_steps", ())) != len(expected):
            raise ArtifactError(
                f"expected a state of {len(expected)} tensors {sorted(expected)[:3]}..., got {len(got)} "
                f"{sorted(got)[:3]}...: it belongs to another base model, reset the lane"
            )


def _copy(tensor: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.detach().cpu().numpy().copy()
    return array


def part(tensors: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    """The entries whose name starts with the prefix, without it."""
    return {name[len(prefix) :]: array for name, array in tensors.items() if name.startswith(prefix)}


def check_method(meta: Mapping[str, Any], method: str) -> None:
    """Raises ArtifactError when a snapshot was taken by another method."""
    if meta.get("method") != method:
        raise ArtifactError(
            f"expected a state of method {method!r}, got {meta.get('method')!r}: "
            "set adapt.method back or reset the lane"
        )
