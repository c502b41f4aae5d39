"""What every method with gradients does with a batch: learn from all of it, or from none.

A method says what one inner step is and what it reports; mark, undo and commit keep what it owns besides the
tensors of the lane.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

from adapters.online.gradient import Settings, State, Trainable, check_method
from adapters.online.guard import Unlearnable
from core.config import AdaptConfig
from core.protocols import Pass
from core.references import SourceConstants
from core.types import AdaptationStep

if TYPE_CHECKING:
    from core.protocols import Params


class Seen(Protocol):
    """What one inner step saw."""

    @property
    def q(self) -> Tensor:
        """Queries [B, D] before it."""

    @property
    def losses(self) -> dict[str, float]: ...


S = TypeVar("S", bound=Seen)


class Descent(ABC, Generic[S]):
    """One lane of one method.

    A batch is learned from completely or not at all: when any inner step is refused, all state returns to the
    last bit to what it was before the batch.

    Args:
        source: adaptable tensors of the encoder at their source values.
        constants: temperature and rate of the base model, and for some methods Delta_S and E_m.
        config: the `adapt` section.
        floor: batches with fewer real rows are not learned from.

    Raises:
        ConfigError: nothing to adapt.
    """

    name: str

    def __init__(
        self, source: Params, constants: SourceConstants, config: AdaptConfig, floor: int = 16
    ) -> None:
        self._settings = Settings.resolve(config, constants)
        self._floor = floor
        self._weights = Trainable(source, self._settings)
        self._version = self._resets = 0

    @property
    def version(self) -> int:
        return self._version

    @property
    def learns_first(self) -> bool:
        return self._settings.answer_from != "before"

    def parameters(self) -> Params:
        return self._weights.tensors

    def transform(self, features: Tensor, batch: Pass) -> Tensor:
        return features

    @torch.enable_grad()
    def update(self, batch: Pass) -> tuple[AdaptationStep, Tensor | None]:
        """Learns from a batch; the features returned are those of the last inner forward."""
        undo = self._mark()
        if int(batch.mask.sum()) < self._floor:
            return self._refused("too-small"), None
        steps: list[S] = []
        try:
            for _ in range(self._settings.steps):
                steps.append(self._inner(batch, first=not steps))
            self._commit()
        except Unlearnable as refused:
            undo()
            return self._refused(refused.reason, bool(steps) or refused.reason == "rolled-back"), None
        except BaseException:  # out of memory, a stop signal: half a batch must not stay behind
            undo()
            raise
        self._version += 1
        diagnostics = {**self._report(steps), "source_distance": self._weights.distance()}
        step = AdaptationStep(
            True, "", steps[-1].losses, diagnostics,
            backwards=self._weights.backwards, resets=self._resets,
        )  # fmt: skip
        return step, None if self._settings.answer_from == "after" else steps[-1].q.detach()

    @abstractmethod
    def _inner(self, batch: Pass, first: bool) -> S:
        """One inner step. Raises Unlearnable where nothing may be learned."""

    @abstractmethod
    def _report(self, steps: Sequence[S]) -> Mapping[str, float]:
        """The method's own figures of a batch that was learned from."""

    def _mark(self) -> Callable[[], None]:
        """Starts a batch; what it returns undoes everything since."""
        self._weights.mark()
        return self._weights.undo

    def _commit(self) -> None:
        """Called when the whole batch has been learned."""

    def _refused(self, reason: str, rolled_back: bool = False) -> AdaptationStep:
        return AdaptationStep(
            False, reason, diagnostics={"source_distance": self._weights.distance()},
            rolled_back=rolled_back, backwards=self._weights.backwards, resets=self._resets,
        )  # fmt: skip

    def snapshot(self) -> State:
        return self._weights.snapshot(), {"method": self.name, "version": self._version}

    def restore(self, tensors: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        """Raises ArtifactError when the snapshot is of another method or other tensors."""
        check_method(meta, self.name)
        self._weights.restore(tensors)
        self._version = int(meta["version"])
