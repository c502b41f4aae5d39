"""What recipes around towers of somebody else share: the towers, features in a file, texts that are taken."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.errors import Refused
from core.types import Modality
from encoders.projection import Projection
from encoders.stored import Stored, stored
from encoders.text import TextTower
from encoders.vision import ImageTower
from qshift.recipes.encode import Count, batches_of
from qshift.recipes.measure import MENDED, Step, forward_only
from qshift.terminal.counts import counted

PURPOSE = "brought base"
"""Part of the key of every draw: query streams use other purposes, so no draw is shared."""
STEPS: Mapping[Modality, Step] = {
    "image": forward_only(1e-3, 0.02),
    "text": forward_only(3e-4, 0.02, MENDED),
}
"""Starting values, not chosen on the user's data; the temperature is that of TCR for CLIP."""
PLAIN = Step(3e-3, 0.05)
"""Of pictures by a tower without normalisation layers, which nothing aligns."""
SHOWN = 3


@dataclass(frozen=True, slots=True)
class Brought:
    """Towers, and what is to be known of them.

    Args:
        folder: which the base copies; it needs nothing else.
        image, text: read from it.
        about: for the manifest: names, no places.
        projections: behind the towers, where something was learnt.
    """

    folder: Path
    image: ImageTower
    text: TextTower | None
    about: Mapping[str, Any] = field(default_factory=dict)
    projections: Mapping[Modality, Projection] = field(default_factory=dict)


def in_a_file(
    tower: ImageTower | TextTower, contents: Iterable[Callable[[], Any]], cache: Path, count: Count
) -> Stored:
    """Features of all contents, where an interrupted fit goes on; each batch of 64 is a step of the count."""
    path = cache / f"{tower.modality}-{tower.fingerprint[:16]}.f32"
    noun = "encoding pictures" if tower.modality == "image" else "encoding texts"

    def done(contents: int) -> None:
        for _ in range(batches_of(contents)):
            count.step(noun)

    return stored(contents, tower, path, tower.fingerprint, done)


def left_out(found: Stored, names: Sequence[str]) -> list[str]:
    """A sentence on what was refused; none where nothing was."""
    if not found.left:
        return []
    some = "; ".join(f"{names[item]}: {reason}" for item, reason in found.left[:SHOWN])
    return [f"{counted(len(found.left), 'item')} left out: {some}"]


def taken(tower: TextTower, texts: Sequence[str]) -> str | None:
    """The first text that the tower takes."""
    for text in texts:
        try:
            tower.prepare(text)
        except Refused:
            continue
        return text
    return None
