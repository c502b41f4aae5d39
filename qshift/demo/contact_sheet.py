"""Every picture corruption at every severity on one emoji: `python -m qshift.demo.contact_sheet OUT.png`.

The emoji is OpenMoji's (demo extra); the sheet carries its attribution.
"""

from __future__ import annotations

import tempfile
import textwrap
from itertools import product
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image, ImageDraw, ImageFont

from core.errors import ConfigError
from qshift.data.emoji import catalogue, open_emoji, write_emoji
from qshift.shifts.corruptions import IMAGE_CORRUPTIONS, SEVERITIES, corrupt
from qshift.shifts.images import Picture

SIDE = 96
GAP = 4
LABELS = 112
"""Width of the column of names."""
LINE, SMALL, NOTE = 20, 15, 112
"""Heights of a line in pixels; characters in a line of the notes."""
FITTED = 192
"""Colours of the sheet's palette that are fitted to the rows without noise; 64 more cover the rest."""
PAPER, INK = (255, 255, 255), (30, 30, 30)
SUNSET = "1F307"
"""A city at dusk: colours, edges, and light and dark areas."""


def contact_sheet(picture: Picture, attribution: str, seed: int = 0) -> Image.Image:
    """One row per corruption: name, the clean picture, severities 1 to 5."""
    height, width = picture.shape[:2]
    columns = 1 + len(SEVERITIES)
    size = (
        LABELS + columns * (width + GAP),
        LINE + len(IMAGE_CORRUPTIONS) * (height + GAP) + 3 * LINE,
    )
    sheet = Image.new("RGB", size, PAPER)
    pen, font, small = ImageDraw.Draw(sheet), ImageFont.load_default(13), ImageFont.load_default(11)
    for column, title in enumerate(("clean", *(f"severity {severity}" for severity in SEVERITIES))):
        pen.text((LABELS + column * (width + GAP), 2), title, INK, font)
    for row, (name, corruption) in enumerate(IMAGE_CORRUPTIONS.items()):
        top = LINE + row * (height + GAP)
        pen.text((4, top + height // 2 - 8), name + ("*" if corruption.substitute else ""), INK, font)
        cells = [picture, *(corrupt(picture, name, severity, seed, "sheet") for severity in SEVERITIES)]
        for column, cell in enumerate(cells):
            sheet.paste(Image.fromarray(cell), (LABELS + column * (width + GAP), top))
    bottom = LINE + len(IMAGE_CORRUPTIONS) * (height + GAP)
    notes = f"* substitutes: {substitutes()}.\nChanged from: {attribution}"
    for row, text in enumerate(part for note in notes.split("\n") for part in textwrap.wrap(note, NOTE)):
        # The built-in font has no dash.
        pen.text((4, bottom + row * SMALL), text.replace("–", "-"), INK, small)
    return sheet


def in_palette(sheet: Image.Image) -> Image.Image:
    """The sheet in 256 colours: a third of the bytes. Noise would use up a palette fitted to all rows."""
    noisy = sum(corruption.family == "noise" for corruption in IMAGE_CORRUPTIONS.values())
    top = LINE + noisy * (sheet.height - LINE) // len(IMAGE_CORRUPTIONS)
    fitted = sheet.crop((0, top, sheet.width, sheet.height)).quantize(FITTED, Image.Quantize.MEDIANCUT)
    cube = [value for colour in product((0, 85, 170, 255), repeat=3) for value in colour]
    palette = Image.new("P", (1, 1))
    palette.putpalette([*(fitted.getpalette() or [])[: 3 * FITTED], *cube])
    return sheet.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)


def substitutes() -> str:
    """Which corruptions stand on a substitute, in one line."""
    named: dict[str, list[str]] = {}
    for corruption in IMAGE_CORRUPTIONS.values():
        if corruption.substitute:
            named.setdefault(corruption.substitute, []).append(corruption.name)
    return "; ".join(f"{', '.join(names)}: {what}" for what, names in named.items())


def emoji_picture(hexcode: str, side: int = SIDE) -> tuple[Picture, str]:
    """One emoji on white and its attribution.

    Raises:
        ConfigError: no such emoji, or the demo extra is missing.
    """
    entries = [entry for entry in catalogue() if entry.hexcode == hexcode.upper()]
    if not entries:
        raise ConfigError(f"no emoji {hexcode!r} in OpenMoji: give its code points, for example {SUNSET}")
    with tempfile.TemporaryDirectory() as folder:
        write_emoji(Path(folder) / "emoji", entries, side)
        drawn = open_emoji(Path(folder) / "emoji")
        return np.array(drawn.colour[0]), drawn.attribution


def main(
    out: Annotated[Path, typer.Argument(help="PNG to write")],
    emoji: Annotated[str, typer.Option(help="code points in hexadecimal")] = SUNSET,
    seed: Annotated[int, typer.Option(help="of the corruptions")] = 0,
) -> None:
    """Writes the contact sheet."""
    picture, attribution = emoji_picture(emoji)
    sheet = contact_sheet(picture, attribution, seed)
    in_palette(sheet).save(out, optimize=True)
    print(f"{out}: {sheet.width} x {sheet.height}, {out.stat().st_size // 1000} kB")


if __name__ == "__main__":
    typer.run(main)
