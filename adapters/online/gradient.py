"""What methods with gradients own: resolved settings, the lane's tensors, AdamW and its moments."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
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
from core.references import SourceConstants

if TYPE_CHECKING:
    from core.protocols import Params

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # AdamW's own defaults, and TCR's code
State = tuple[dict[str, NDArray[Any]], dict[str, Any]]
StepRule = Callable[[Gradient], tuple[Gradient, float]]
"""A step -> the step to take instead, and the share of its energy that was removed."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a gradient method runs with, after presets and the base model's own choices."""

    learning_rate: float
    temperature: float
    uniformity_scale: float
    steps: int
    answer_from: Literal["before", "after", "paper"]
    constants: Literal["source", "queue"]
    anchor: float
    clip: float | None
    weight_decay: float

    @classmethod
    def resolve(cls, config: AdaptConfig, constants: SourceConstants) -> Settings:
        """The preset `tcr-paper` leaves only the rate to choose; else the base has rate and temperature."""
        rate, temperature = config.learning_rate, config.temperature
        if config.preset == "tcr-paper":  # TCR code, all published configurations (BLIP t2i: rate 3e-5)
            return cls(3e-4 if rate is None else rate, 0.02, 0.1, 3, "paper", "queue", 1.0, None, 1e-4)
        return cls(
            learning_rate=constants.learning_rate if rate is None else rate,
            temperature=constants.temperature if temperature is None else temperature,
            uniformity_scale=config.uniformity_scale,
            steps=config.steps,
            answer_from=config.answer_from,
            constants=config.constants,
            anchor=config.anchor,
            clip=config.clip,
            weight_decay=config.weight_decay,
        )

    def check(self, constants: SourceConstants) -> None:
        """Raises ConfigError when Delta_S and E_m are to come from the base model and cannot be used."""
        usable = math.isfinite(constants.source_gap + constants.entropy_ceiling) and constants.batch > 1
        if self.constants == "source" and not usable:
            raise ConfigError(
                f"expected finite source constants of batches above 1, got {constants}: "
                'build the base model again or set adapt.constants = "queue"'
            )


@dataclass(frozen=True, slots=True)
class Moments:
    """Running means of a tensor's gradient and of its square, and how many steps they hold."""

    first: Tensor
    second: Tensor
    steps: int

    def after(self, gradient: Tensor) -> Moments:
        """With one more gradient; the tensors held before are not written to."""
        second = (self.second * BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        return Moments(self.first.lerp(gradient, 1 - BETA1), second, self.steps + 1)


def adamw(tensor: Tensor, moments: Moments, rate: float, decay: float) -> None:
    """In place: decay towards zero, then the bias-corrected step, in float32 as torch.optim.AdamW does it.

    Written out because torch.optim imports the compiler, which takes seconds at a cold start.

    Reference: Loshchilov and Hutter, decoupled weight decay regularization (ICLR 2019), algorithm 2.
    """
    first_bias, second_bias = 1 - BETA1**moments.steps, 1 - BETA2**moments.steps
    if decay:
        tensor.mul_(1 - rate * decay)
    scale = (moments.second.sqrt() / math.sqrt(second_bias)).add_(EPS)
    tensor.addcdiv_(moments.first, scale, value=-rate / first_bias)


@dataclass(frozen=True, slots=True)
class Moved:
    """Theta before a step minus theta after it, and what a rule took out of the step."""

    by: Gradient
    removed_energy: float = 0.0


class Trainable:
    """The adapted tensors theta of one lane, their source values theta_s, and AdamW's moments.

    The leaf tensors, and the dictionary that holds them, stay the same objects for ever; `step`, `undo` and
    `restore` write in place.

    Args:
        source: source values by name; shared with other lanes, and never written to.
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
        self._source = {name: tensor.detach() for name, tensor in source.items()}
        self.tensors = {name: tensor.clone().requires_grad_() for name, tensor in self._source.items()}
        self._moments: dict[str, Moments] = {}
        self._marked: tuple[Gradient, dict[str, Moments]] | None = None
        self.backwards = 0
        """Backward passes through the encoder since `mark`."""

    @property
    def device(self) -> torch.device:
        return next(iter(self.tensors.values())).device

    @property
    def steps(self) -> int:
        """Steps taken so far; part of the state, so it keys draws."""
        return max((moments.steps for moments in self._moments.values()), default=0)

    def gradient(self, loss: Tensor, keep_graph: bool = False) -> Gradient:
        """Gradient by name; tensors that the loss does not reach are left out."""
        self.backwards += 1
        leaves = list(self.tensors.values())
        parts = torch.autograd.grad(loss, leaves, retain_graph=keep_graph, allow_unused=True)
        return {name: part for name, part in zip(self.tensors, parts, strict=True) if part is not None}

    def mark(self) -> None:
        """From here on `undo` undoes, and backward passes are counted. Copies nothing."""
        self._marked, self.backwards = None, 0

    @torch.no_grad()
    def undo(self) -> None:
        """Takes back all steps since `mark`, to the last bit."""
        if self._marked is None:
            return
        theta, self._moments = self._marked
        for name, tensor in self.tensors.items():
            tensor.copy_(theta[name])
        self._marked = None

    @torch.no_grad()
    def step(self, gradient: Gradient, rule: StepRule | None = None) -> Moved:
        """One AdamW step, what a rule makes of it, and the anchoring after it.

        Args:
            gradient: by name; a tensor without one is not touched, not even by decay.
            rule: sees theta before minus theta after AdamW. A step it leaves alone stays as it is to the
                last bit.
        """
        before = {name: tensor.detach().clone() for name, tensor in self.tensors.items()}
        if self._marked is None:
            self._marked = (before, dict(self._moments))
        for name, part in gradient.items():
            tensor = self.tensors[name]
            held = self._moments.get(name) or Moments(torch.zeros_like(part), torch.zeros_like(part), 0)
            self._moments[name] = held.after(part)
            adamw(tensor, self._moments[name], self._settings.learning_rate, self._settings.weight_decay)
        removed = 0.0
        if rule is not None:
            removed = self._correct(before, gradient, rule)
        anchor(self.tensors, self._source, self._settings.anchor)
        by = {name: before[name] - tensor.detach() for name, tensor in self.tensors.items()}
        return Moved(by, removed)

    def _correct(self, before: Gradient, names: Iterable[str], rule: StepRule) -> float:
        taken = {name: before[name] - self.tensors[name] for name in names}
        if not finite(taken.values()):
            return 0.0  # nothing can be measured on it, and the caller will undo it
        kept, removed = rule(taken)
        for name in taken:
            if kept[name] is not taken[name]:
                self.tensors[name].copy_(before[name] - kept[name])
        return removed

    def finite(self) -> bool:
        """True when parameters and moments are finite; squares overflow in the moments first."""
        moments = [part for held in self._moments.values() for part in (held.first, held.second)]
        return finite([*self.tensors.values(), *moments])

    @torch.no_grad()
    def displacement(self) -> Gradient:
        """Theta - theta_s by name."""
        return {name: tensor.detach() - self._source[name] for name, tensor in self.tensors.items()}

    def distance(self) -> float:
        """||theta - theta_s||."""
        return norm(self.displacement())

    def snapshot(self) -> dict[str, NDArray[Any]]:
        """Copies of parameters, both moments (once there are some) and AdamW's step counts [P] int64."""
        out = {f"theta/{name}": _copy(tensor) for name, tensor in self.tensors.items()}
        for name in self.tensors:
            if name in self._moments:
                out[f"moment1/{name}"] = _copy(self._moments[name].first)
                out[f"moment2/{name}"] = _copy(self._moments[name].second)
        counts = [self._moments[name].steps if name in self._moments else 0 for name in self.tensors]
        out["adam_steps"] = np.array(counts, dtype=np.int64)
        return out

    @torch.no_grad()
    def restore(self, saved: Mapping[str, NDArray[Any]]) -> None:
        """Exactly undoes to a snapshot, in place.

        Raises:
            ArtifactError: the snapshot is of other tensors.
        """
        self._check(saved)
        self._moments, self._marked = {}, None
        for (name, tensor), steps in zip(self.tensors.items(), saved["adam_steps"].tolist(), strict=True):
            tensor.copy_(torch.from_numpy(np.array(saved[f"theta/{name}"])))
            if steps:
                first, second = (
                    torch.from_numpy(np.array(saved[f"{moment}/{name}"])).to(tensor)
                    for moment in ("moment1", "moment2")
                )
                self._moments[name] = Moments(first, second, int(steps))

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


def check_method(meta: Mapping[str, Any], method: str) -> None:
    """Raises ArtifactError when a snapshot was taken by another method."""
    if meta.get("method") != method:
        raise ArtifactError(
            f"expected a state of method {method!r}, got {meta.get('method')!r}: "
            "set adapt.method back or reset the lane"
        )
