"""What commands have set of one lane, and the states that it can go back to.

What is set decides answers, so it is part of the lane's state and of its hash; where nothing is set, neither
shows it. Kept states are a function of the log alone: before every so many batches, before a reset or another
method, and on command. So a replay keeps the same ones, wherever checkpoints fell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.checkpoints import KeptState


@dataclass(slots=True)
class Orders:
    """What holds for a lane until it is taken back.

    `weight` bounds the adapted twin's weight in the mixture, `method` is "" for that of the configuration,
    `gallery` a version, "" for the newest.
    """

    frozen: bool = False
    weight: float | None = None
    method: str = ""
    gallery: str = ""

    def bound(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Weights [B] within the bound."""
        most = 0.0 if self.frozen else self.weight
        return weights if most is None else np.minimum(weights, most)

    def snapshot(self) -> dict[str, Any]:
        """What differs from an untouched lane; {} of one."""
        usual = asdict(Orders())
        return {name: value for name, value in asdict(self).items() if value != usual[name]}

    @classmethod
    def restored(cls, said: Mapping[str, Any]) -> Orders:
        """From a snapshot."""
        return cls(**said)


class KeptStates:
    """The newest states of a lane that were kept, oldest first.

    Args:
        most: how many; 0 keeps none.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.states: tuple[KeptState, ...] = ()

    def keep(self, state: KeptState) -> None:
        """Keeps a state, unless it is the newest already; the oldest goes first."""
        if self._most and (not self.states or self.states[-1].state_hash != state.state_hash):
            self.states = (*self.states, state)[-self._most :]

    def restore(self, states: tuple[KeptState, ...]) -> None:
        """Takes what a checkpoint has kept, as far as it is still wanted."""
        self.states = states[-self._most :] if self._most else ()

    def back(self, steps: int, state: str, now: str) -> KeptState | None:
        """The state that a rollback asks for.

        Args:
            steps: how many kept states back; the present one is none of them.
            state: the beginning of its hash instead, if not "".
            now: hash of the present state.
        """
        if state:
            return next((one for one in reversed(self.states) if one.state_hash.startswith(state)), None)
        others = [number for number, one in enumerate(self.states) if one.state_hash == now]
        before = self.states[: others[-1]] if others else self.states
        return before[-steps] if steps <= len(before) else None
