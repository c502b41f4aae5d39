"""Pictures sorted into folders by class inside one zip: the form of Office-Caltech-10 and PACS."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from core.errors import ConfigError
from core.readers.places import leftover
from qshift.benchmarks.tasks.types import Picture, Sample

ENDINGS = (".jpg", ".jpeg", ".png")


def read_class_zip(path: Path) -> list[Sample]:
    """Every picture of a zip with members `<class>/<name>.jpg`, sorted by member name.

    Label, group and title are the class; the key is `<file stem of the zip>/<class>/<name>.jpg`.

    Raises:
        ConfigError: the zip is missing or damaged, or holds no picture.
    """
    samples = []
    try:
        with zipfile.ZipFile(path) as archive:
            for member in sorted(archive.namelist()):
                kind, parts = PurePosixPath(member).parent.name, PurePosixPath(member).parts
                if any(leftover(part) for part in parts):  # a zip made on macOS holds them
                    continue
                if kind and member.lower().endswith(ENDINGS):
                    content = decoded(archive.read(member))
                    samples.append(Sample(f"{path.stem}/{member}", content, kind, kind, kind))
    except (OSError, SyntaxError, zlib.error, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}): expected a zip of <class>/<name>.jpg, see "
            "docs/reference/data.md"
        ) from error
    if not samples:
        raise ConfigError(
            f"{path} holds no pictures: expected members <class>/<name>.jpg, see docs/reference/data.md"
        )
    return samples


def decoded(content: bytes) -> Picture:
    """An encoded picture as uint8 [H, W, 3]; transparency on white."""
    with Image.open(io.BytesIO(content)) as opened:
        if not opened.has_transparency_data:
            return np.asarray(opened.convert("RGB"), dtype=np.uint8)
        rgba = opened.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    return np.asarray(Image.alpha_composite(white, rgba).convert("RGB"), dtype=np.uint8)
