"""Compositional digits: "a photo of a red seven in the top left", 10 digits x 6 colours x 4 places.

A digit is a scan of 8 x 8 pixels (the handwritten digits that come with scikit-learn), enlarged to 16 and
laid in colour on one quarter of a white picture of 32 x 32, off by up to one pixel. The scans of training,
clean measurements, gallery and queries are different ones.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from core.errors import ConfigError
from core.seeds import generator
from qshift.benchmarks.tasks.types import Picture, Sample
from qshift.shifts.images import jitter

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {
        "red": (225, 25, 25),
        "green": (20, 145, 45),
        "blue": (30, 70, 225),
        "orange": (245, 140, 0),
        "purple": (145, 40, 180),
        "black": (0, 0, 0),
    }
)
PLACES: Mapping[str, tuple[int, int]] = MappingProxyType(
    {"top left": (0, 0), "top right": (0, 1), "bottom left": (1, 0), "bottom right": (1, 1)}
)
TEMPLATES = (
    "a photo of a {colour} {word} in the {place}",
    "a {colour} digit {word} at the {place}",
    "the {place} shows a {colour} {word}",
)
SIDE, DIGIT, SCAN, INK = 32, 16, 8, 16.0
PARTS: Mapping[str, tuple[float, int]] = MappingProxyType(
    {"fit": (0.5, 20), "clean": (0.1, 4), "gallery": (0.2, 6), "queries": (0.2, 6)}
)
"""Share of the scans, and pictures of each caption."""
FRAMES = 4
CLIPS = 4  # of each caption
PURPOSE = "composition"
Scans = Sequence[NDArray[np.uint8]]
"""Of each digit, [n, 8, 8] with ink from 0 to 16."""


@dataclass(frozen=True, slots=True, order=True)
class Scene:
    """What a picture shows."""

    digit: int
    colour: str
    place: str

    @property
    def label(self) -> str:
        return f"{self.colour} {WORDS[self.digit]} {self.place}"

    def captions(self) -> tuple[str, ...]:
        """The same in all templates."""
        names = {"colour": self.colour, "word": WORDS[self.digit], "place": self.place}
        return tuple(template.format(**names) for template in TEMPLATES)

    def phrases(self) -> tuple[str, str, str]:
        """Each attribute alone, as the text of a composed query says it."""
        return (f"as a {WORDS[self.digit]}", f"in {self.colour}", f"in the {self.place}")

    def changed(self, attribute: int, draw: np.random.Generator) -> Scene:
        """Another value of attribute 0 (digit), 1 (colour) or 2 (place)."""
        digits = [d for d in range(len(WORDS)) if d != self.digit]
        colours = [c for c in COLOURS if c != self.colour]
        places = [p for p in PLACES if p != self.place]
        if attribute == 0:
            return Scene(digits[int(draw.integers(len(digits)))], self.colour, self.place)
        if attribute == 1:
            return Scene(self.digit, colours[int(draw.integers(len(colours)))], self.place)
        return Scene(self.digit, self.colour, places[int(draw.integers(len(places)))])


SCENES = tuple(Scene(*values) for values in product(range(len(WORDS)), COLOURS, PLACES))


@dataclass(frozen=True, slots=True)
class Shown:
    """A scene and one picture of it."""

    key: str
    scene: Scene
    picture: Picture


@dataclass(frozen=True, slots=True)
class Composition:
    """Pictures of all 240 scenes in four parts, made from different scans."""

    fit: tuple[Shown, ...]
    clean: tuple[Shown, ...]
    gallery: tuple[Shown, ...]
    queries: tuple[Shown, ...]


def read_scans() -> Scans:
    """The scans by digit, from the file inside scikit-learn, which itself is not imported.

    Raises:
        ConfigError: scikit-learn is not installed or its file has another form.
    """
    spec = find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("the digits come with scikit-learn, which is missing: pip install 'qshift[demo]'")
    path = Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    try:
        with gzip.open(path, "rt") as file:
            rows = np.loadtxt(file, delimiter=",").astype(np.uint8)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the digits of scikit-learn cannot be read: {error}") from error
    if rows.ndim != 2 or rows.shape[1] != SCAN * SCAN + 1:
        raise ConfigError(f"{path.name} has shape {rows.shape}, expected [n, 65]: another scikit-learn?")
    ink = rows[:, :-1].reshape(-1, SCAN, SCAN)
    return [ink[rows[:, -1] == digit] for digit in range(len(WORDS))]


def make_composition(scans: Scans | None = None, seed: int = 0) -> Composition:
    """Draws all pictures; one seed gives the same pixels."""
    found = read_scans() if scans is None else scans
    parts = {part: tuple(_pictures(found, part, seed)) for part in PARTS}
    return Composition(parts["fit"], parts["clean"], parts["gallery"], parts["queries"])


def paint(scan: NDArray[np.uint8], scene: Scene, draw: np.random.Generator) -> Picture:
    """One picture [32, 32, 3]: the scan's ink in the scene's colour, on white."""
    ink = np.rint(scan * (255.0 / INK)).astype(np.uint8)
    large = np.asarray(Image.fromarray(ink).resize((DIGIT, DIGIT), Image.Resampling.BILINEAR)) / 255.0
    cover = np.zeros((SIDE, SIDE, 1))
    rows, columns = PLACES[scene.place]
    down, right = draw.integers(-1, 2, 2)
    top = int(np.clip(rows * DIGIT + down, 0, SIDE - DIGIT))
    left = int(np.clip(columns * DIGIT + right, 0, SIDE - DIGIT))
    cover[top : top + DIGIT, left : left + DIGIT, 0] = large
    colour = np.array(COLOURS[scene.colour], dtype=np.float64)
    picture: Picture = np.rint(255.0 * (1.0 - cover) + colour * cover).astype(np.uint8)
    return picture


def _pictures(scans: Scans, part: str, seed: int) -> Iterator[Shown]:
    shares = [share for share, _ in PARTS.values()]
    before = sum(shares[: list(PARTS).index(part)])
    share, each = PARTS[part]
    for scene in SCENES:
        own = scans[scene.digit]
        order = generator(seed, scene.digit, f"{PURPOSE} scans").permutation(len(own))
        kept = order[round(before * len(own)) : round((before + share) * len(own))]
        draw = generator(seed, scene.label, f"{PURPOSE} {part}")
        # As many different scans as there are, then again.
        chosen = np.resize(draw.permutation(kept), each).tolist()
        for copy, scan in enumerate(chosen):
            yield Shown(f"{scene.label} {part} {copy}", scene, paint(own[scan], scene, draw))


def pictures(shown: Sequence[Shown]) -> list[Sample]:
    """Pictures as samples; the label is the scene, the group its digit."""
    return [
        Sample(s.key, s.picture, s.scene.label, WORDS[s.scene.digit], s.scene.captions()[0]) for s in shown
    ]


def captions(templates: int = len(TEMPLATES)) -> list[Sample]:
    """All scenes in words, in the first templates."""
    return [
        Sample(f"{scene.label} {i}", text, scene.label, WORDS[scene.digit], text)
        for scene in SCENES
        for i, text in enumerate(scene.captions()[:templates])
    ]


def composed(shown: Sequence[Shown], seed: int = 0) -> list[Sample]:
    """A picture and a change of one attribute: the digit, the colour and the place of each scene in turn.

    Label and group are those of the scene after the change.
    """
    first: dict[Scene, Shown] = {}
    for item in shown:
        first.setdefault(item.scene, item)
    asked = []
    for scene, item in sorted(first.items()):
        for attribute in range(3):
            draw = generator(seed, scene.label, f"{PURPOSE} change {attribute}")
            target = scene.changed(attribute, draw)
            text = target.phrases()[attribute]
            key, title = f"{scene.label} change {attribute}", f"{scene.label}, {text}"
            asked.append(Sample(key, (item.picture, text), target.label, WORDS[target.digit], title))
    return asked


def sequences(shown: Sequence[Shown], seed: int = 0) -> list[Sample]:
    """Clips of four frames: one picture, each time turned, scaled and shifted by a fresh draw."""
    clips: dict[Scene, list[Sample]] = {}
    for item in shown:
        own = clips.setdefault(item.scene, [])
        if len(own) < CLIPS:
            frames = tuple(
                jitter(item.picture, 1.0, generator(seed, item.key, f"{PURPOSE} frame {i}"))
                for i in range(FRAMES)
            )
            own.append(
                Sample(
                    f"{item.key} clip", frames, item.scene.label, WORDS[item.scene.digit], item.scene.label
                )
            )
    return [sample for own in clips.values() for sample in own]
