"""What a base model knows of its own clean training data, beside its towers: measured once, at its fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from core.types import Floats


@dataclass(frozen=True, slots=True)
class SourceConstants:
    """What the on-line objectives take from the base model's own training data, per modality.

    `source_gap` and `entropy_ceiling` are Delta_S and E_m of TCR, measured on clean source queries at
    batch size `batch`; `temperature` and `learning_rate` were chosen there too (docs/methods/rest.md).
    """

    source_gap: float
    entropy_ceiling: float
    temperature: float
    learning_rate: float
    batch: int = 64
    method: str = ""
    """What such queries are adapted by where the configuration names no method: "frozen" for alignment alone,
    or "rest"; "" in bases of version 0.2, which do not say."""
    why: str = ""
    """Why that one, in a sentence."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Clean-domain pictures for statistics alignment: n pictures, W = sum of the widths of `HookPoints`.

    `mean` and `sd` [n, W] are each picture's channel statistics wherever the frozen encoder
    calls a hook, layers side by side; `widths` says where one layer ends. `features` [n, D] are unit.
    """

    features: Floats
    mean: Floats
    sd: Floats
    widths: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DriftReference:
    """Clean source queries as the frozen encoder sees them: features [n, D], entropies [n], nearest [n].

    `entropy` is the refined entropy E_i within batches of `batch`; `nearest` the distance (bits) to the
    nearest gallery code. `own` [n, D], where queries were made of items (crops, pictures taken again) and
    those that will come are not: the features of these items, which are nobody's neighbour then.
    """

    features: Floats
    entropy: Floats
    nearest: Floats
    batch: int = 64
    own: Floats | None = None


@dataclass(frozen=True, slots=True)
class SourcePairs:
    """A bounded memory of the base model's own training pairs, for decoupling reference D2.

    `contents` are what `Encoder.prepare` takes (texts, or uint8 pictures [H, W, 3]); `targets` [m, D] are
    the unit features of the items that belong to them.
    """

    contents: tuple[Any, ...]
    targets: Floats


@dataclass(frozen=True, slots=True)
class AgreedQuality:
    """Average precision to expect where a gallery has classes: a term of the drop plus a term of the share.

    `drops` [k] ascend and `by_drop` [k] descends; `shares` [j], of the nearest items those that carry a label
    of the first, ascend and so does `by_share` [j]. All are linear between their knots and level beyond;
    their sum is held to 0 to 1. `gathered` [m], how far the answers of its batch have gathered on few labels,
    ascend and `by_gathered` [m] descends; None: no such term was fitted, or it foretold no better.
    """

    drops: Floats
    by_drop: Floats
    shares: Floats
    by_share: Floats
    gathered: Floats | None = None
    by_gathered: Floats | None = None


@dataclass(frozen=True, slots=True)
class ExpectedQuality:
    """Average precision to expect of a query by its drop: k knots, linear between them, level beyond.

    `drops` [k] ascend: how far the cosine to the nearest gallery item lies below that of clean queries, in
    their sd. `precision` [k] descends, 0 to 1. `queries`: how many labelled answers it rests on. `agreed` is
    what stands for it where a gallery has classes, of the frozen and of the adapted twin; None: the base was
    fitted to none, or before there was any.
    """

    drops: Floats
    precision: Floats
    queries: int
    agreed: tuple[AgreedQuality, AgreedQuality] | None = None
