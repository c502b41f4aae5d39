"""Learning rates of compared methods: `name*3` takes three times the usual one, tuned ones by themselves.

A base brings the rate that was chosen for our own objective, which need not be the best of another one. So
each peer runs with the factor that gained most on the development task of the same data
(`qshift bench develop`); docs/methods/peers.md has the table.
"""

from __future__ import annotations

from collections.abc import Mapping

from adapters.online.gradient import Settings
from core.config import Config
from core.types import Modality
from encoders.base_model import Base
from qshift.methods import split

TUNED: Mapping[str, Mapping[str, float]] = {
    "digits": dict.fromkeys(("tent", "eata", "sar", "deyo", "shot", "uca", "uatta"), 0.1),
    "emoji": {"tent": 0.1, "sar": 10.0, "tcr-paper": 10.0},
    "fashion-mnist": {
        **dict.fromkeys(("tent", "eata", "sar", "read", "deyo", "shot", "cliptta", "uatta"), 10.0),
        "tcr-paper": 30.0, "uca": 0.1,
    },
    "office": {**dict.fromkeys(("tent", "read", "deyo", "uca"), 0.1), "tcr-paper": 10.0},
}  # fmt: skip
"""Data of a task (`emoji` of `emoji/picture-noto`) -> method -> factor. Not named: 1, and so where that
data has no pictures for choosing (PACS, fashion products, composed digits, distilled emoji)."""


def factor_of(name: str, task: str) -> float:
    """What the usual learning rate, the base's or a preset's, is multiplied with for a method on a task."""
    method, factor = split(name)
    if factor is not None:
        return factor
    return TUNED.get(task.partition("/")[0], {}).get(method.partition("+")[0], 1.0)


def rated(config: Config, name: str, task: str, base: Base, modality: Modality) -> Config:
    """The configuration of a method on a task; a rate that is set already stays."""
    factor, constants = factor_of(name, task), base.constants.get(modality)
    if factor == 1 or constants is None or config.adapt.learning_rate is not None:
        return config
    rate = min(1.0, factor * Settings.resolve(config.adapt, constants).learning_rate)
    return config.model_copy(update={"adapt": config.adapt.model_copy(update={"learning_rate": rate})})
