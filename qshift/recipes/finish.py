"""The second half of every recipe: a hash head, what clean queries look like to it, and the folder.

A recipe says which towers there are, what they give for its data and what asks them; `finish_base` does the
rest. `tests/qshift/test_own_recipe.py` holds one of a user's own.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from core.expected import PARTS, written
from core.types import Codes, Floats, Modality
from encoders.base_model import Base, Parts, load_base, write_base
from encoders.head import HashHead, itq
from qshift.recipes.expected import Curve
from qshift.recipes.measure import Step, measure


@dataclass(frozen=True, slots=True)
class Clean:
    """Queries as they will come, but without any shift, and the items that they ask.

    Args:
        queries: unit features [n, D], n a multiple of 64, in random order.
        items: unit features [N, D], N at least 2.
        step: what the adapter of their modality starts from.
        items_are: modality of the items.
        own: [n] positions of the items that the queries are copies of, where those that will come are none.
        codes: [N, L/8] of the items, where they are not those of the head.
    """

    queries: Floats
    items: Floats
    step: Step
    items_are: Modality = "image"
    own: NDArray[np.int64] | None = None
    codes: Codes | None = None


def hash_head(
    features: Mapping[Modality, Floats], bits: int, seed: int = 0, items: Modality = "image"
) -> HashHead:
    """A head by iterative quantisation.

    Args:
        features: unit features [n, D] of each modality that is served; their means are told apart.
        bits: L, a multiple of 8.
        seed: of the first rotation.
        items: modality of the items, from whose features the bits are learnt.

    Raises:
        ArtifactError: fewer items than bits, or bits that are no multiple of 8.
    """
    means = {modality: rows.mean(0) for modality, rows in features.items()}
    weight = itq(features[items], means[items], bits, seed=seed)
    return HashHead(weight, np.zeros(bits, np.float32), means)


def finish_base(
    folder: Path, parts: Parts, clean: Mapping[Modality, Clean], curve: Curve | None = None
) -> None:
    """Measures clean queries of each modality, and writes the base model, all or nothing.

    Args:
        folder: where; an older base there is replaced.
        parts: all but constants and reference, which are measured here.
        clean: by modality of the queries. A modality without is answered, and not learned from. Where the
            head has no mean of a modality it takes that of these queries.
        curve: measures the quality to expect; without it the base has none.

    Raises:
        ArtifactError: parts that do not fit each other.
    """
    head = _with_means(parts.head, clean)
    found = {
        kind: measure(
            asked.queries, asked.items, head, kind, asked.step, asked.items_are, asked.own, asked.codes
        )
        for kind, asked in clean.items()
    }
    constants = {kind: constants for kind, (constants, _) in found.items()}
    reference = {kind: reference for kind, (_, reference) in found.items()}
    whole = replace(parts, head=head, constants=constants, reference=reference)
    write_base(folder, whole if curve is None else with_curves(whole, curve))


def with_curves(parts: Parts, curve: Curve) -> Parts:
    """A base that is whole, and the quality to expect of it."""
    curves = {PARTS[kind]: written(one) for kind, one in curve(_loaded(parts)).items()}
    return replace(parts, extras={**parts.extras, **curves})


def _with_means(head: HashHead, clean: Mapping[Modality, Clean]) -> HashHead:
    """A head that serves every modality that is measured."""
    means = {kind: torch.from_numpy(asked.queries.mean(0)) for kind, asked in clean.items()}
    return HashHead(head.weight, head.bias, {**means, **head.means})


def _loaded(parts: Parts) -> Base:
    """The base as it will be served: written and read, because that rounds; its towers are not copied."""
    with tempfile.TemporaryDirectory() as scratch:
        write_base(Path(scratch) / "base", parts, os.symlink)
        return load_base(Path(scratch) / "base")
