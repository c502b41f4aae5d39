"""What adaptation gains just now: faded estimates, and intervals of a block that may be read at any time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from monitoring.estimates import BettingInterval, Estimate, Fading
from monitoring.harm import Verdict
from monitoring.quality import ANSWERS, GAINS, Score


@dataclass(frozen=True, slots=True)
class Live:
    """Faded estimates (0-1) of mAP per answer and of the gains over frozen; anytime intervals of a block."""

    quality: Mapping[str, Estimate]
    gain: Mapping[str, Estimate]
    anytime: Mapping[str, tuple[float, float]]
    block: int
    block_labels: int
    steady: bool
    """False when no constant difference (served - frozen) fits the block: the stream has changed."""
    verdict: str
    """What was proved last of served - frozen, see `monitoring.harm.Verdict`."""
    harm_evidence: float
    """Of harm, as a share of what it takes to say so."""
    harm_alarms: int
    """How often harm was proved."""


class LiveEstimates:
    """Takes the scores of labelled queries in the order of their labels.

    Args:
        alpha: fade per label.
        block_labels: labels after which the anytime intervals start again.
    """

    def __init__(self, alpha: float, block_labels: int) -> None:
        self._block_size, self._block = block_labels, 0
        self._faded = {name: Fading(alpha) for name in ANSWERS}
        self._gain = {name: Fading(alpha) for name in GAINS}
        self._bets = {name: BettingInterval() for name in GAINS}
        self._verdict = Verdict()

    def enter(self, score: Score) -> None:
        """A first label of a query."""
        for name, ap in zip(ANSWERS, score.ap):
            self._faded[name].add(ap)
        if self._bets["served"].n >= self._block_size:
            self._block += 1
            self._bets = {name: BettingInterval() for name in GAINS}
        for name in GAINS:
            self._gain[name].add(score.gain(name))
            self._bets[name].update((1.0 + score.gain(name)) / 2.0)
        self._verdict.update(score.gain("served"))

    def correct(self, old: Score, new: Score, age: int) -> None:
        """Another label of a query that was entered `age` labels before the newest.

        A bet that was made stays made: anytime intervals and verdict keep the first label.
        """
        for index, name in enumerate(ANSWERS):
            self._faded[name].correct(old.ap[index], new.ap[index], age)
        for name in GAINS:
            self._gain[name].correct(old.gain(name), new.gain(name), age)

    def now(self) -> Live:
        bounds = {name: bet.bounds for name, bet in self._bets.items()}
        return Live(
            {name: faded.estimate(0.0, 1.0) for name, faded in self._faded.items()},
            {name: faded.estimate(-1.0, 1.0) for name, faded in self._gain.items()},
            {name: (2.0 * low - 1.0, 2.0 * high - 1.0) for name, (low, high) in bounds.items()},
            self._block,
            self._bets["served"].n,
            self._bets["served"].steady,
            self._verdict.said,
            self._verdict.evidence,
            self._verdict.alarms,
        )
