"""`qshift fit calibrate`: what a base knows of its clean queries, measured anew; nothing is trained.

For bases that were fitted before something was measured (the reference of clean queries, statistics of the
normalisation layers, the quality to expect), and for catalogues that have changed much since. The measuring
is that of `qshift fit clip`. Towers, head and codes stay, so that a gallery built again has the same codes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from core.errors import ConfigError
from core.expected import PARTS, written
from core.references import DriftReference, SourceConstants
from core.types import Modality
from encoders.base_again import Measured, write_again
from encoders.base_model import Base, load_base
from encoders.text import TextTower
from encoders.vision import ImageTower
from qshift.data.emoji import EmojiSet
from qshift.recipes.brought import PURPOSE, Brought, in_a_file, left_out
from qshift.recipes.brought_base import OwnPictures, contents_of, said_of
from qshift.recipes.captioned import drawn
from qshift.recipes.composed import composed_clean
from qshift.recipes.encode import Count, Progress
from qshift.recipes.finish import Clean
from qshift.recipes.measure import Step, measure

FEWEST = 2
"""Pictures: a neighbour has to be another one."""


def calibrate_base(
    source: Path,
    folder: Path,
    data: EmojiSet,
    cache: Path,
    seed: int = 0,
    progress: Progress | None = None,
    precision: str = "fp32",
) -> list[str]:
    """Measures a base on the user's pictures and writes it again, all or nothing.

    Args:
        source: the base.
        folder: where it goes; `source` itself is replaced.
        data: pictures as the base is asked for, with captions or with classes as their labels.
        cache: folder of the features, where an interrupted measurement goes on.
        seed: of every draw.
        progress: called with (done, total, text).
        precision: of the tower's body, "fp32" or "bf16".

    Returns:
        What the user should know, a sentence each.

    Raises:
        ArtifactError: no whole base in `source`.
        ConfigError: a base that takes no pictures, or too few of them.
    """
    base = load_base(source, precision=precision)
    brought = _brought(source, base)
    asking = len(drawn(len(data), seed, PURPOSE))
    count = Count(OwnPictures.steps(data, asking, brought.text is not None), progress)
    found = in_a_file(brought.image, contents_of(data), cache, count)
    if len(found) < FEWEST:
        raise ConfigError(f"{len(found)} pictures can be read, expected at least {FEWEST}: name more")
    own = OwnPictures(brought, data, found, seed, count)
    statistics, clean, first = own.clean()
    if "composed" in base.encoders and "text" in clean and clean["image"].own is None:
        looks, words = clean["image"].queries, clean["text"].queries
        least = min(len(looks), len(words))
        step = clean["image"].step
        clean["composed"] = composed_clean(looks[:least], words[:least], found.features, step)
    constants, reference = _measured(base, clean)
    measured = Measured(
        constants=constants,
        calibration=statistics,
        reference=reference,
        provenance={"measured_on": {"pictures": data.attribution, "items": len(found), "seed": seed}},
    )
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-measured-", dir=folder.parent) as scratch:
        write_again(source, Path(scratch) / "base", measured)  # as it will be served, because that rounds
        curves = own.expected(load_base(Path(scratch) / "base", precision=precision))
    extras = {PARTS[kind]: written(curve) for kind, curve in curves.items()}
    write_again(source, folder, replace(measured, extras=extras))
    return [*left_out(found, data.hexcodes), *filter(None, [said_of(first, len(found))])]


def _brought(source: Path, base: Base) -> Brought:
    """The towers of a base. Raises ConfigError where there is none for pictures."""
    image, text = base.encoders.get("image"), base.encoders.get("text")
    if not isinstance(image, ImageTower):
        raise ConfigError(
            f"{base.name} takes {', '.join(sorted(base.head.means))} and no pictures: there is nothing to "
            "calibrate; fit it anew with qshift fit vectors, or qshift fit clip TEXTS.txt"
        )
    return Brought(source, image, text if isinstance(text, TextTower) else None)


def _measured(
    base: Base, clean: Mapping[Modality, Clean]
) -> tuple[dict[Modality, SourceConstants], dict[Modality, DriftReference]]:
    """Constants and reference by the base's own head; what an adapter starts from stays what it was."""
    constants: dict[Modality, SourceConstants] = {}
    reference: dict[Modality, DriftReference] = {}
    for kind, asked in clean.items():
        step = _step(base.constants.get(kind), asked.step)
        constants[kind], reference[kind] = measure(
            asked.queries, asked.items, base.head, kind, step, asked.items_are, asked.own
        )
    return constants, reference


def _step(old: SourceConstants | None, new: Step) -> Step:
    if old is None or not old.method:  # before 0.3 a base did not say whether it learns or only aligns
        return (
            new if old is None else replace(new, learning_rate=old.learning_rate, temperature=old.temperature)
        )
    return Step(old.learning_rate, old.temperature, old.method, old.why)
