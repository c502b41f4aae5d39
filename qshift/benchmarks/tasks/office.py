"""Office-Caltech-10: ten kinds of office things from a shop's pages, two cameras and the web.

Longest side 160 pixels.

Reference: Gong et al., Geodesic Flow Kernel for Unsupervised Domain Adaptation, CVPR 2012.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from qshift.benchmarks.tasks.class_zips import read_class_zip
from qshift.benchmarks.tasks.types import Sample

Domain = Literal["amazon", "caltech10", "dslr", "webcam"]
DOMAINS: tuple[Domain, ...] = ("amazon", "caltech10", "dslr", "webcam")


def read_office(folder: Path, domain: Domain) -> list[Sample]:
    """All pictures of a domain: 958, 1,123, 157 or 295. Raises ConfigError."""
    return read_class_zip(folder / f"{domain}.zip")
