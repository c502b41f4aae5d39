"""Means of bounded values with intervals: faded, betting, normal and bootstrap. Pure arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Z95 = 1.959963984540054
NAN = float("nan")


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95 % interval and the number of values it is worth; NaN where nothing is known."""

    value: float = NAN
    low: float = NAN
    high: float = NAN
    n_eff: float = 0.0


class Fading:
    """Mean that forgets: each value weighs `alpha` times less with every later one.

    S <- w x + a S, B <- w + a B, Q <- w^2 + a^2 Q; the mean is S / B and is worth n_eff = B^2 / Q values,
    (1 + a) / (1 - a) in the long run.

    Args:
        alpha: in (0, 1]; 1 forgets nothing.

    Reference: Gama, Sebastiao, Rodrigues, "On evaluating stream learning algorithms", 2013.
    """

    def __init__(self, alpha: float = 0.99) -> None:
        self.alpha = alpha
        self._sum = self._square = self._weight = self._weight2 = 0.0

    def add(self, x: float, w: float = 1.0) -> None:
        a = self.alpha
        self._sum = w * x + a * self._sum
        self._square = w * x * x + a * self._square
        self._weight = w + a * self._weight
        self._weight2 = w * w + a * a * self._weight2

    def correct(self, old: float, new: float, age: int) -> None:
        """Puts another value in the place of one that was added `age` additions ago with weight 1."""
        kept = self.alpha**age
        self._sum += kept * (new - old)
        self._square += kept * (new * new - old * old)

    @property
    def value(self) -> float:
        return self._sum / self._weight if self._weight else NAN

    @property
    def n_eff(self) -> float:
        return self._weight**2 / self._weight2 if self._weight2 else 0.0

    @property
    def variance(self) -> float:
        """Unbiased variance of one value; NaN for fewer than two."""
        n = self.n_eff
        if n <= 1.0 + 1e-9:
            return NAN
        return max(0.0, self._square / self._weight - self.value**2) * n / (n - 1.0)

    def estimate(self, low: float, high: float) -> Estimate:
        """Normal interval, cut to the range a mean can have."""
        value, variance = self.value, self.variance
        if math.isnan(variance):
            return Estimate(value, n_eff=self.n_eff)
        half = Z95 * math.sqrt(variance / self.n_eff)
        return Estimate(value, max(low, value - half), min(high, value + half), self.n_eff)


class BettingInterval:
    """Confidence sequence for the mean of values in [0, 1]: may be read after every value.

    For each candidate m of a grid two gamblers bet that the mean is above and below; where they grow rich
    together, m is left out. It covers a constant mean: when every candidate was left out at some time,
    the mean has moved (`steady` is False). Restart it per epoch.

    Args:
        alpha: chance that the true mean is ever outside.
        grid: number of candidates; the bounds are one step wider on each side.

    Reference: Waudby-Smith, Ramdas, "Estimating means of bounded random variables by betting", 2024.
    """

    LIMIT = 0.5
    """Largest share of the capital at stake, c."""

    def __init__(self, alpha: float = 0.05, grid: int = 1000) -> None:
        self.alpha = alpha
        self.n = 0
        self._m = np.linspace(0.0, 1.0, grid + 1)
        tiny = np.finfo(np.float64).tiny
        self._most_up = self.LIMIT / np.maximum(self._m, tiny)
        self._most_down = self.LIMIT / np.maximum(1.0 - self._m, tiny)
        self._up = np.zeros(grid + 1)
        self._down = np.zeros(grid + 1)
        self._ever_out = np.zeros(grid + 1, dtype=bool)
        # One pseudo-value of variance 1/4, so that the first bets are careful.
        self._mean, self._spread = 0.5, 0.25

    def update(self, x: float) -> None:
        """Bets with what was known before `x`, then learns from it."""
        x = min(1.0, max(0.0, x))
        s = self.n + 1
        variance = self._spread / s
        bet = math.sqrt(2.0 * math.log(2.0 / self.alpha) / (variance * s * math.log(1.0 + s)))
        self._up += np.log1p(np.minimum(bet, self._most_up) * (x - self._m))
        self._down += np.log1p(-np.minimum(bet, self._most_down) * (x - self._m))
        self._ever_out |= ~self._inside()
        self.n = s
        new_mean = self._mean + (x - self._mean) / (s + 1)
        self._spread += (x - self._mean) * (x - new_mean)
        self._mean = new_mean

    @property
    def bounds(self) -> tuple[float, float]:
        """(low, high) now; (nan, nan) should no candidate be left."""
        inside = np.flatnonzero(self._inside())
        if not len(inside):
            return NAN, NAN
        step = float(self._m[1])
        return max(0.0, float(self._m[inside[0]]) - step), min(1.0, float(self._m[inside[-1]]) + step)

    @property
    def steady(self) -> bool:
        """Whether one mean fits the whole sequence: False is an alarm, wrong with chance alpha at most."""
        return not bool(self._ever_out.all())

    def _inside(self) -> NDArray[np.bool_]:
        return np.asarray(np.logaddexp(self._up, self._down) < math.log(2.0 / self.alpha))


def normal_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """95 % interval of the mean of [n] values; NaN for n < 2."""
    n = len(values)
    if n < 2:
        return NAN, NAN
    mean, half = float(values.mean()), Z95 * float(values.std(ddof=1)) / math.sqrt(n)
    return mean - half, mean + half


def bootstrap_interval(
    values: NDArray[np.float64], generator: np.random.Generator, resamples: int = 2000
) -> tuple[float, float]:
    """95 % percentile interval of the mean of [n] values; NaN for n < 2.

    Give it paired differences and it is the paired bootstrap.
    """
    n = len(values)
    if n < 2:
        return NAN, NAN
    means: list[NDArray[np.float64]] = []
    rows = max(1, 1_000_000 // n)  # at most 8 MB of indices at a time
    for start in range(0, resamples, rows):
        picks = generator.integers(0, n, (min(rows, resamples - start), n))
        means.append(values[picks].mean(axis=1))
    low, high = np.percentile(np.concatenate(means), (2.5, 97.5))
    return float(low), float(high)
