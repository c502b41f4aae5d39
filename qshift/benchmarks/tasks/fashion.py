"""Fashion products: photos of 60 x 80 pixels and their titles, of which every title here has one product.

A quarter of the products share their title with others ("lucera women silver ring" stands for 39), so that
"the product of this title" would have no answer: of each title one product is kept, chosen by a keyed draw.
"""

from __future__ import annotations

import io
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from core.errors import ConfigError
from core.readers.table import rows
from core.seeds import generator
from qshift.benchmarks.tasks.types import Picture, Sample

COLUMNS = ("file", "text", "articleType")
ARCHIVE, TABLE = "images.zip", "pairs.csv"
FIT_SHARE = 0.6
GALLERY, QUERIES = 1500, 1000
SIDE = 80  # pixels: the pictures' own longer side
FEWEST = 5  # gallery items of an article type, for it to be asked for
PURPOSE = "fashion products"


@dataclass(frozen=True, slots=True)
class Product:
    """One product: `key` is its id, `kind` its article type."""

    key: str
    text: str
    kind: str


@dataclass(frozen=True, slots=True)
class Products:
    """Four parts without a product or a title in common, and more pictures for the first.

    Args:
        archive: the zip of pictures, `<key>.jpg`.
        fit: 60 %, for training heads.
        again: other products with a title of `fit`, for training too.
        gallery: 1,500 to be searched.
        queries: 1,000 whose pictures ask.
        clean: what is left, never trained on and never asked for: measures what clean queries look like.
    """

    archive: Path
    fit: tuple[Product, ...]
    again: tuple[Product, ...]
    gallery: tuple[Product, ...]
    queries: tuple[Product, ...]
    clean: tuple[Product, ...]

    def pictures(self, products: Sequence[Product]) -> list[Picture]:
        """As the files are, [80, 60, 3] with few exceptions: the base's preparation makes squares of them.

        Raises:
            ConfigError: the archive or a picture in it is missing or broken.
        """
        try:
            with zipfile.ZipFile(self.archive) as archive:
                return [_decode(archive.read(f"{product.key}.jpg")) for product in products]
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise ConfigError(
                f"{self.archive} cannot be read: {error}; see docs/reference/data.md"
            ) from error


def read_products(
    folder: Path, gallery: int = GALLERY, queries: int = QUERIES, fit_share: float = FIT_SHARE, seed: int = 0
) -> Products:
    """Reads pairs.csv (columns file, text, articleType) and splits its products by a keyed draw.

    Raises:
        ConfigError: the table is missing, lacks a column, or has too few titles for the parts.
    """
    everything = _rows(folder / TABLE)
    order = generator(seed, "order", PURPOSE).permutation(len(everything)).tolist()
    kept: dict[str, Product] = {}
    for row in (everything[i] for i in order):
        kept.setdefault(_title(row), row)
    products = list(kept.values())
    fit = int(fit_share * len(products))
    ends = (fit, fit + gallery, fit + gallery + queries)
    if ends[2] >= len(products) or fit < 1:
        raise ConfigError(
            f"{folder / TABLE} has {len(products)} distinct titles: expected more than {ends[2]} for "
            f"{gallery} gallery items, {queries} queries and {fit_share:.0%} to fit on"
        )
    parts = [tuple(products[start:end]) for start, end in zip((0, *ends), (*ends, len(products)))]
    taught = {_title(product): product.key for product in parts[0]}
    again = tuple(row for row in everything if taught.get(_title(row), row.key) != row.key)
    return Products(folder / ARCHIVE, parts[0], again, parts[1], parts[2], parts[3])


def texts(products: Sequence[Product]) -> list[Sample]:
    """Titles as samples; the label is the product."""
    return [Sample(p.key, p.text, label=p.key, group=p.kind, title=p.text) for p in products]


def pictures(data: Products, products: Sequence[Product], by_kind: bool = False) -> list[Sample]:
    """Pictures as samples; the label is the product, or its article type."""
    return [
        Sample(p.key, picture, label=p.kind if by_kind else p.key, group=p.kind, title=p.text)
        for p, picture in zip(products, data.pictures(products), strict=True)
    ]


def answerable(products: Sequence[Product], gallery: Sequence[Product]) -> list[Product]:
    """Products of article types that the gallery has at least five of."""
    present = Counter(p.kind for p in gallery)
    return [p for p in products if present[p.kind] >= FEWEST]


def _title(product: Product) -> str:
    return " ".join(product.text.casefold().split())


def _rows(path: Path) -> list[Product]:
    """Sorted by id, so that the order of the file does not matter."""
    try:
        found = [
            Product(Path(row["file"]).stem, row["text"].strip(), row["articleType"])
            for _, row in rows(path, COLUMNS)
        ]
    except ConfigError as error:
        raise ConfigError(f"{error}; see docs/reference/data.md") from error
    return sorted((row for row in found if row.text), key=lambda row: row.key)


def _decode(content: bytes) -> Picture:
    with Image.open(io.BytesIO(content)) as opened:
        image = opened.convert("RGB")
    if max(image.size) != SIDE:
        scale = SIDE / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.uint8)
