"""Late labels in a suite: `name@N` is a method whose weights labels correct that come N batches late."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from core.config import Config
from qshift.methods import split, with_method

MARK = "@"


def with_late(names: Iterable[str], late: Sequence[int]) -> list[str]:
    """The methods, and those that answer from both twins once more for every lateness."""
    found: list[str] = []
    for name in names:
        method, *extras = split(name)[0].split("+")
        both = method == "default" or "fused" in extras
        found += [name, *(f"{name}{MARK}{one}" for one in late if both)]
    return found


def lateness(name: str) -> int | None:
    """Batches between a query's and the first one that its label may steer; None: labels do nothing."""
    _, mark, late = name.partition(MARK)
    return int(late) if mark else None


def config_of(config: Config, name: str) -> Config:
    """The configuration of a method of the suite, but for the learning rate, which is the base's."""
    labels = config.labels.model_copy(update={"steer": lateness(name) is not None})
    method, _ = split(name.partition(MARK)[0])
    return with_method(config, method).model_copy(update={"labels": labels})
