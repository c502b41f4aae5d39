"""Tasks of hashing between two domains: features of a source and of a target with the same classes."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from itertools import permutations
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from core.errors import ConfigError
from core.types import Floats
from encoders.features import features
from qshift.benchmarks.tasks import office, pacs
from qshift.benchmarks.tasks.types import Sample
from qshift.recipes.encode import Progress

if TYPE_CHECKING:
    from encoders.clip import Towers

SIDE = 112  # pixels: the packaged tower's own
DIGITS = "jda/mnist_usps_256.npz"
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Domains:
    """Two domains of one task.

    Args:
        name: of the task.
        source, target: features [n_s, D] and [n_t, D].
        source_labels, target_labels: [n_s] and [n_t], indices into the classes. Those of the target are for
            scoring only.
        source_pictures, target_pictures: uint8 [H, W, 3] in the order of the features; none where only
            features are at hand.
    """

    name: str
    source: Floats
    source_labels: Labels
    target: Floats
    target_labels: Labels
    source_pictures: tuple[Any, ...] = ()
    target_pictures: tuple[Any, ...] = ()

    @cached_property
    def data_hash(self) -> str:
        """Of features and labels: other data, other results."""
        sha = hashlib.sha256()
        for array in (self.source, self.source_labels, self.target, self.target_labels):
            sha.update(f"{array.dtype.str}{array.shape}".encode())
            sha.update(np.ascontiguousarray(array).tobytes())
        return sha.hexdigest()[:16]


Loader = Callable[[Path, Path, Progress | None], Domains]
"""(data folder, cache, progress) -> domains."""


def digits(source: str, target: str, data: Path, cache: Path, progress: Progress | None) -> Domains:
    """2,000 MNIST and 1,800 USPS digits of 16 x 16 raw pixels: the files of JDA (Long et al., ICCV 2013)."""
    path = data / DIGITS
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {domain: (arrays[f"{domain}_x"], arrays[f"{domain}_y"]) for domain in (source, target)}
    except (OSError, KeyError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{path} cannot be read ({reason}): pass --data, see docs/reference/data.md"
        ) from error
    (x_s, y_s), (x_t, y_t) = found[source], found[target]
    return Domains(
        f"{source}-{target}",
        x_s.astype(np.float32), y_s.astype(np.int64), x_t.astype(np.float32), y_t.astype(np.int64),
    )  # fmt: skip


def office_pair(
    source: office.Domain, target: office.Domain, data: Path, cache: Path, progress: Progress | None
) -> Domains:
    """Office-Caltech-10 pictures by the packaged tower."""
    own, other = (office.read_office(data / "office_caltech10", domain) for domain in (source, target))
    return _of_pictures(f"office-{source}-{target}", own, other, cache, progress)


def pacs_pair(
    source: pacs.Domain, target: pacs.Domain, data: Path, cache: Path, progress: Progress | None
) -> Domains:
    """PACS pictures by the packaged tower."""
    own, other = (pacs.read_pacs(data / "pacs", domain) for domain in (source, target))
    return _of_pictures(f"pacs-{_short(source)}-{_short(target)}", own, other, cache, progress)


def _short(domain: str) -> str:
    return domain.removesuffix("_painting")


def _of_pictures(
    name: str, source: Sequence[Sample], target: Sequence[Sample], cache: Path, progress: Progress | None
) -> Domains:
    classes = sorted({sample.label for sample in source})
    strange = {sample.label for sample in target} - set(classes)
    if strange:
        raise ConfigError(
            f"{name}: target classes {sorted(strange)} are not in the source: expected the same classes"
        )
    encoded = [encode([sample.content for sample in side], cache, progress) for side in (source, target)]
    labels = [np.array([classes.index(s.label) for s in side], np.int64) for side in (source, target)]
    pictures = [tuple(sample.content for sample in side) for side in (source, target)]
    return Domains(name, encoded[0], labels[0], encoded[1], labels[1], pictures[0], pictures[1])


@cache
def packaged_towers(side: int = SIDE) -> Towers:
    """EfficientNet-Lite0 and MiniLM from their packages, for pictures of a side in pixels; frozen."""
    from qshift.recipes import packaged

    with tempfile.TemporaryDirectory() as scratch:
        return packaged.packaged_towers(Path(scratch), side)


def encode(contents: Sequence[Any], cache: Path, progress: Progress | None) -> Floats:
    """Unit features [n, 1280] of pictures by the packaged image tower, from the cache if they are there."""

    def told(done: int, total: int) -> None:
        if progress is not None:
            progress(done, total, "encoding pictures")

    return np.array(features(list(contents), packaged_towers().image, cache / "features", progress=told))


def _tasks() -> dict[str, Loader]:
    found: dict[str, Loader] = {
        "mnist-usps": partial(digits, "mnist", "usps"),
        "usps-mnist": partial(digits, "usps", "mnist"),
        "pacs-photo-art": partial(pacs_pair, "photo", "art_painting"),
        "pacs-art-photo": partial(pacs_pair, "art_painting", "photo"),
    }
    for source, target in permutations(office.DOMAINS, 2):
        found[f"office-{source}-{target}"] = partial(office_pair, source, target)
    return found


TASKS: Mapping[str, Loader] = MappingProxyType(_tasks())
GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "digits": ("mnist-usps", "usps-mnist"),
        "pacs": ("pacs-photo-art", "pacs-art-photo"),
        "office-caltech": tuple(name for name in TASKS if name.startswith("office-")),
    }
)
"""Names that stand for several tasks."""


def tasks_of(names: Sequence[str]) -> tuple[str, ...]:
    """Tasks by name, groups spelt out. Raises ConfigError for an unknown one."""
    unknown = [name for name in names if name not in TASKS and name not in GROUPS]
    if unknown or not names:
        given = f"no task {unknown[0]!r}" if unknown else "no task was named"
        raise ConfigError(f"{given}: expected one of {', '.join((*GROUPS, *TASKS))}")
    return tuple(dict.fromkeys(task for name in names for task in GROUPS.get(name, (name,))))
