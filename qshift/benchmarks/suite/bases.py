"""Base model and gallery of a task: made once, kept in the cache, all or nothing."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from core.artifacts import MANIFEST, digest, read_manifest
from core.errors import ArtifactError, ConfigError
from encoders.base_model import KIND, load_base
from index.gallery import VersionedGallery
from qshift.benchmarks.suite import word_tasks
from qshift.benchmarks.suite.fashion_mnist_base import fit_fashion_mnist_base
from qshift.benchmarks.suite.fingerprint import Fingerprints
from qshift.benchmarks.suite.picture_base import fit_picture_base
from qshift.benchmarks.tasks import office
from qshift.benchmarks.tasks.types import Task
from qshift.data.emoji import EmojiSet
from qshift.recipes.distil_base import fit_distil_base
from qshift.recipes.domains.base import HEADS, fit_domain_base
from qshift.recipes.domains.material import FitOptions
from qshift.recipes.emoji_base import fit_emoji_base
from qshift.recipes.encode import Progress
from qshift.recipes.gallery import build_gallery

log = logging.getLogger("qshift.suite")

Recipe = Callable[[Task, Path, int, Progress | None], None]
"""(task, folder, bits, progress): writes the base of a task into a folder.

Tasks that name the same base must give it the same data: whichever comes first is fitted.
"""
BITS = 64
RECIPE = "1"
"""Part of the names of cached artifacts: raise it when a recipe, a task's draw or the gallery changes."""

RAISED: Mapping[str, str] = MappingProxyType(
    {
        **{word_tasks.BASE_OF_FASHION: "4", "composition": "4", "captions": "2"},
        **{"emoji": "3", "noto": "3", "distil": "3"},
        **dict.fromkeys(("pictures-office-dslr", "pictures-office-webcam"), "2"),
    }
)
"""Bases whose own recipe has changed since, by their names. Fashion 2: pictures without a margin.
Composition 2: with clean statistics of its LayerNorms. The last but one of each: with clean composed queries
(of the composition with clean clips, too). The last: nothing is learned from texts. Small galleries of
Office 2: crops do not find their own picture."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A task with the folders of its base model and its gallery."""

    task: Task
    base: Path
    gallery: Path


def fit_named_pictures(task: Task, folder: Path, bits: int, progress: Progress | None) -> None:
    """Two heads on packaged towers, trained on all pictures of the gallery and on their titles."""
    fit_emoji_base(folder, named_pictures(task), bits, progress=progress, name=task.base)


def fit_distilled(task: Task, folder: Path, bits: int, progress: Progress | None) -> None:
    """A small model with LayerNorms that learns what those towers and heads say of the same pictures."""
    fit_distil_base(folder, named_pictures(task), bits, progress=progress, name=task.base)


def named_pictures(task: Task) -> EmojiSet:
    """Gallery pictures and their titles as a set; its line art, which no recipe looks at, is the same."""
    names, groups, keys, labels = (
        tuple(str(getattr(sample, part)) for sample in task.gallery)
        for part in ("title", "group", "key", "label")
    )
    colour = np.stack([sample.content for sample in task.gallery])
    return EmojiSet(colour, colour, names, groups, keys, labels, str(task.extra["attribution"]))


def fit_domains(task: Task, folder: Path, bits: int, progress: Progress | None) -> None:
    """An off-line adapter, fitted to the gallery with its labels and to pictures like the queries."""
    contents, labels = ([getattr(sample, part) for sample in task.gallery] for part in ("content", "label"))
    side = contents[0].shape[0]
    method = task.base.removeprefix("chain-")
    fit_domain_base(
        method,
        contents,
        labels,
        task.extra["target"],
        folder,
        FitOptions(bits=bits, side=side, name=task.base),
        progress,
    )


CHAIN = frozenset(f"chain-{method}" for method in HEADS)


def _recipes() -> dict[str, Recipe]:
    found: dict[str, Recipe] = {"emoji": fit_named_pictures, "noto": fit_named_pictures}
    found["distil"] = fit_distilled
    sources = ["pacs-photo", "pacs-art", *(f"office-{domain}" for domain in office.DOMAINS), "mnist", "usps"]
    found.update({f"pictures-{source}": fit_picture_base for source in sources})
    found.update(dict.fromkeys(CHAIN, fit_domains))
    found["fashion-mnist"] = fit_fashion_mnist_base
    return found | dict(word_tasks.RECIPES)


RECIPES: Mapping[str, Recipe] = MappingProxyType(_recipes())
"""Name of a base -> how it is made."""


def prepare(
    task: Task,
    cache: Path,
    progress: Progress | None = None,
    bits: int = BITS,
    recipes: Mapping[str, Recipe] = RECIPES,
) -> Prepared:
    """Fits and builds what is not in the cache yet.

    Raises:
        ConfigError: a task whose base has no recipe, or too little data for it.
        ArtifactError: packages with weights are missing.
    """
    if task.base not in recipes:
        raise ConfigError(
            f"{task.name} asks for base {task.base!r}: expected one of {', '.join(sorted(recipes))}"
        )
    base = cache / f"base-{task.base}-{bits}-{stamp(task.base)}"
    try:
        read_manifest(base, KIND)
    except ArtifactError as error:
        if base.exists():
            log.warning("the base of %s is made again: %s", task.name, error)
        recipes[task.base](task, base, bits, progress)
    version = digest(base / MANIFEST)
    gallery = cache / f"gallery-{task.name.replace('/', '-')}-{contents_hash(task)}-{bits}-v{RECIPE}"
    try:
        VersionedGallery.load(gallery, base_version=version)
    except ArtifactError as error:
        if gallery.exists():
            log.warning("the gallery of %s is built again: %s", task.name, error)
        _build(task, base, progress).save(gallery)
    return Prepared(task, base, gallery)


def stamp(base: str) -> str:
    """What a cached base is of: off-line adapters change, and are made again when their code does."""
    if base in CHAIN:
        return Fingerprints().of((fit_domain_base.__module__,), ())[:8]
    return f"v{RAISED.get(base, RECIPE)}"


def _build(task: Task, base: Path, progress: Progress | None) -> VersionedGallery:
    contents, keys, labels, titles = (
        [getattr(sample, part) for sample in task.gallery] for part in ("content", "key", "label", "title")
    )
    modality = task.gallery_modality
    return build_gallery(load_base(base), contents, keys, labels, titles, progress, modality)


def contents_hash(task: Task) -> str:
    """Short hash of the gallery's contents and labels: other data, another gallery."""
    sha = hashlib.sha256()
    for sample in task.gallery:
        sha.update(json.dumps([sample.key, sample.label, sample.title]).encode())
        parts = sample.content if isinstance(sample.content, tuple) else (sample.content,)
        for part in parts:
            sha.update(part.encode() if isinstance(part, str) else np.ascontiguousarray(part).tobytes())
    return sha.hexdigest()[:8]
