"""Tasks with words, and the recipes of their base models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from core.errors import ConfigError
from core.types import Modality
from qshift.benchmarks.suite.composition_base import fit_composition_base
from qshift.benchmarks.suite.pair_base import fit_pair_base
from qshift.benchmarks.suite.text_base import fit_text_base
from qshift.benchmarks.tasks import coco, composition, fashion
from qshift.benchmarks.tasks.types import Sample, Task
from qshift.recipes.encode import Progress

Loader = Callable[[Path | None, Path], Task]
Recipe = Callable[[Task, Path, int, Progress | None], None]
DEVELOP = frozenset(("composition/picture-text", "composition/develop", "fashion/develop", "coco/develop"))
BASE_OF_FASHION = "fashion-128"
"""With the side of its pictures: a base of another side in the cache is not taken for it."""


def fashion_text_picture(data_root: Path | None, cache: Path) -> Task:
    """Titles ask for the pictures of 1,500 products that the heads have not seen."""
    data = _products("fashion/text-picture", data_root)
    gallery = fashion.pictures(data, data.gallery)
    return _fashion("fashion/text-picture", "text", "image", gallery, fashion.texts(data.gallery), data)


def fashion_picture_text(data_root: Path | None, cache: Path) -> Task:
    """The same the other way round."""
    data = _products("fashion/picture-text", data_root)
    queries = fashion.pictures(data, data.gallery)
    return _fashion("fashion/picture-text", "image", "text", fashion.texts(data.gallery), queries, data)


def fashion_picture_picture(data_root: Path | None, cache: Path) -> Task:
    """Pictures of 1,000 other products ask for products of their article type."""
    data = _products("fashion/picture-picture", data_root)
    asked = fashion.answerable(data.queries, data.gallery)
    gallery, queries = (fashion.pictures(data, part, by_kind=True) for part in (data.gallery, asked))
    return _fashion("fashion/picture-picture", "image", "image", gallery, queries, data)


def fashion_develop(data_root: Path | None, cache: Path) -> Task:
    """Titles of those 1,000 products ask for their pictures, for choosing what texts learn by."""
    data = _products("fashion/develop", data_root)
    gallery = fashion.pictures(data, data.queries)
    return _fashion("fashion/develop", "text", "image", gallery, fashion.texts(data.queries), data)


def coco_text_text(data_root: Path | None, cache: Path) -> Task:
    """One caption of each of 1,000 pictures asks for its other four."""
    data = _captions("coco/text-text", data_root)
    return _coco("coco/text-text", data.asked, data)


def coco_develop(data_root: Path | None, cache: Path) -> Task:
    """Captions of 1,000 other pictures, for choosing what texts learn by."""
    data = _captions("coco/develop", data_root)
    return _coco("coco/develop", data.held, data)


def composition_text_picture(data_root: Path | None, cache: Path) -> Task:
    """240 scenes in three templates ask for their pictures."""
    data = composition.make_composition()
    gallery = composition.pictures(data.gallery)
    return _composition("text-picture", "text", "image", gallery, composition.captions(), data)


def composition_develop(data_root: Path | None, cache: Path) -> Task:
    """The same scenes ask for pictures of other scans, for choosing what texts learn by."""
    data = composition.make_composition()
    gallery = composition.pictures(data.queries)
    return _composition("develop", "text", "image", gallery, composition.captions(), data)


def composition_picture_text(data_root: Path | None, cache: Path) -> Task:
    """Pictures ask for the caption of their scene, among 240."""
    data = composition.make_composition()
    gallery, queries = composition.captions(templates=1), composition.pictures(data.queries)
    return _composition("picture-text", "image", "text", gallery, queries, data)


def composition_composed_picture(data_root: Path | None, cache: Path) -> Task:
    """A picture and a change ("in blue") ask for pictures of the changed scene."""
    data = composition.make_composition()
    gallery, queries = composition.pictures(data.gallery), composition.composed(data.queries)
    return _composition("composed-picture", "composed", "image", gallery, queries, data)


def composition_sequence_picture(data_root: Path | None, cache: Path) -> Task:
    """Clips of four frames ask for pictures of their scene."""
    data = composition.make_composition()
    gallery, queries = composition.pictures(data.gallery), composition.sequences(data.queries)
    return _composition("sequence-picture", "sequence", "image", gallery, queries, data)


def _fashion(
    name: str,
    modality: Modality,
    gallery_modality: Modality,
    gallery: Sequence[Sample],
    queries: Sequence[Sample],
    data: fashion.Products,
) -> Task:
    return Task(
        name,
        modality,
        gallery_modality,
        gallery,
        {"clean": queries},
        BASE_OF_FASHION,
        split=_split(name),
        extra={"products": data},
    )


def _composition(
    kind: str,
    modality: Modality,
    gallery_modality: Modality,
    gallery: Sequence[Sample],
    queries: Sequence[Sample],
    data: composition.Composition,
) -> Task:
    name = f"composition/{kind}"
    return Task(
        name,
        modality,
        gallery_modality,
        gallery,
        {"clean": queries},
        "composition",
        split=_split(name),
        extra={"composition": data},
    )


def _coco(name: str, captioned: Sequence[coco.Captioned], data: coco.Captions) -> Task:
    queries = {"clean": coco.queries(captioned)}
    return Task(
        name,
        "text",
        "text",
        coco.gallery(captioned),
        queries,
        "captions",
        split=_split(name),
        extra={"captions": data},
    )


def _split(name: str) -> Literal["develop", "report"]:
    return "develop" if name in DEVELOP else "report"


def _captions(name: str, data_root: Path | None) -> coco.Captions:
    root = _needed(name, data_root, f"coco_mini/{coco.PAIRS}", f"coco_mini/{coco.TEXTS}")
    return coco.read_captions(root / "coco_mini")


def _products(name: str, data_root: Path | None) -> fashion.Products:
    files = [f"fashion_product/{file}" for file in (fashion.ARCHIVE, fashion.TABLE)]
    return fashion.read_products(_needed(name, data_root, *files) / "fashion_product")


def _needed(name: str, data_root: Path | None, *files: str) -> Path:
    missing = [file for file in files if data_root is None or not (data_root / file).is_file()]
    if data_root is None or missing:
        lacking = ", ".join(f"DATA/{file}" for file in missing)
        raise ConfigError(f"{name} needs {lacking}: pass --data, see docs/reference/data.md")
    return data_root


TASKS: Mapping[str, Loader] = MappingProxyType(
    {
        "fashion/text-picture": fashion_text_picture,
        "fashion/picture-text": fashion_picture_text,
        "fashion/picture-picture": fashion_picture_picture,
        "fashion/develop": fashion_develop,
        "coco/text-text": coco_text_text,
        "coco/develop": coco_develop,
        "composition/text-picture": composition_text_picture,
        "composition/develop": composition_develop,
        "composition/picture-text": composition_picture_text,
        "composition/composed-picture": composition_composed_picture,
        "composition/sequence-picture": composition_sequence_picture,
    }
)
RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {BASE_OF_FASHION: fit_pair_base, "captions": fit_text_base, "composition": fit_composition_base}
)
