"""Emoji as other vendors draw them: Noto and Twemoji, 64 x 64 pixels, by their code points."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from core.errors import ConfigError
from core.readers.lines import BadLine, content, document, word
from qshift.benchmarks.tasks.class_zips import decoded
from qshift.benchmarks.tasks.types import Sample


def read_vendor(archive: Path, meta: Path) -> list[Sample]:
    """The pictures of one vendor that meta.json knows, sorted by code points.

    Key is the hexcode as in the archive (`1F1EB-1F1EF`), title the name, group Unicode's. Items whose
    pictures are equal to the last byte share the label of the first: flags of far islands, mostly.

    Args:
        archive: a zip of `<hexcode>.png`.
        meta: hexcode -> at least {"name", "group"}, as JSON.

    Raises:
        ConfigError: a file is missing, damaged or of another form, or no picture is known to meta.json.
    """
    known = _known(meta)
    samples: list[Sample] = []
    seen: dict[bytes, str] = {}
    try:
        with zipfile.ZipFile(archive) as opened:
            for member in sorted(opened.namelist()):
                hexcode = member.removesuffix(".png")
                if hexcode in known and hexcode != member:
                    picture = decoded(opened.read(member))
                    label = seen.setdefault(picture.tobytes(), hexcode)
                    name, kind = known[hexcode]
                    samples.append(Sample(hexcode, picture, label, kind, name))
    except (OSError, SyntaxError, zlib.error, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"{archive} cannot be read ({error}): expected a zip of <hexcode>.png, see docs/reference/data.md"
        ) from error
    if not samples:
        raise ConfigError(f"{archive} holds no emoji that {meta.name} names: expected <hexcode>.png")
    return samples


def plain(hexcode: str) -> str:
    """A hexcode without variation selectors: vendors and packages disagree on where they belong."""
    return "-".join(point for point in hexcode.upper().split("-") if point != "FE0F")


def _known(meta: Path) -> Mapping[str, tuple[str, str]]:
    try:
        found = document(content(meta)).items()
        return {hexcode: (word(entry["name"]), word(entry["group"])) for hexcode, entry in found}
    except (ConfigError, BadLine, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{meta} cannot be read ({error}): expected hexcode -> name and group, see docs/reference/data.md"
        ) from error
