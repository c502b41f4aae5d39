"""PACS: seven kinds of things as photos and as paintings; two of its four domains, 112 x 112 pixels.

Reference: Li et al., Deeper, Broader and Artier Domain Generalization, ICCV 2017.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from qshift.benchmarks.tasks.class_zips import read_class_zip
from qshift.benchmarks.tasks.types import Sample

Domain = Literal["photo", "art_painting"]
DOMAINS: tuple[Domain, ...] = ("photo", "art_painting")


def read_pacs(folder: Path, domain: Domain) -> list[Sample]:
    """All pictures of a domain: 1,670 photos or 2,048 paintings. Raises ConfigError."""
    return read_class_zip(folder / f"{domain}.zip")
