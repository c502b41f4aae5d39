"""Pictures within the caps of bytes and pixels that cost their decoder as much as they can."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

SIDE = 4096
"""Its square is the default cap, `limits.image_pixels`."""
MOST_BYTES = 512 << 10
FRAMES = 240
SCANS = 64
"""Most scans of a JPEG that are taken."""


def bombs() -> Iterator[tuple[str, bytes]]:
    """(name, file) of each, one after the other: not all are held at once."""
    flat = Image.new("RGB", (SIDE, SIDE), (9, 8, 7))
    yield "flat WEBP, lossless", saved(flat, "WEBP", lossless=True)
    yield "flat WEBP", saved(flat, "WEBP")
    yield "flat PNG", saved(flat, "PNG")
    yield "flat GIF", saved(Image.new("P", (SIDE, SIDE)), "GIF")
    yield "flat JPEG, progressive", saved(flat, "JPEG", progressive=True)
    yield "sliver", saved(Image.new("RGB", (SIDE * 1024, SIDE // 1024)), "PNG")
    clear = flat.convert("RGBA")
    clear.putalpha(128)
    yield "half transparent PNG", saved(clear, "PNG")
    yield "half transparent WEBP", saved(clear, "WEBP", lossless=True)
    yield "16 bits", saved(Image.fromarray(np.full((SIDE, SIDE), 40_000, np.uint16)), "PNG")
    yield "one bit", saved(flat.convert("1"), "PNG")
    palette = flat.quantize(256)
    palette.putpalette(list(range(256)) * 3)
    yield "256 colours, all half transparent", saved(palette, "PNG", transparency=b"\x80" * 256)
    yield "CMYK JPEG", saved(flat.convert("CMYK"), "JPEG", optimize=True)
    coarse = np.random.default_rng(0).integers(0, 256, (SIDE // 64, SIDE // 64, 3), dtype=np.uint8)
    busy = Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.NEAREST)
    yield "squares WEBP", saved(busy, "WEBP", quality=1, method=0)
    yield "squares JPEG, progressive", (progressive := saved(busy, "JPEG", quality=1, progressive=True))
    yield f"JPEG of {SCANS} scans", rescanned(progressive, SCANS)
    frames = [Image.new("RGB", (512, 512), (n % 256, n // 2, 7)) for n in range(FRAMES)]
    for form in ("PNG", "WEBP", "GIF"):
        yield f"{FRAMES} frames, {form}", saved(frames[0], form, save_all=True, append_images=frames[1:])


def saved(picture: Image.Image, form: str, **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, form, **options)
    return out.getvalue()


def rescanned(jpeg: bytes, scans: int) -> bytes:
    """The last scan again and again, as far as the caps allow."""
    last, body = jpeg.rindex(b"\xff\xda"), jpeg[:-2]
    scan, found = body[last:], body.count(b"\xff\xda")
    more = min(scans - found, (MOST_BYTES - len(jpeg)) // len(scan))
    return body + max(0, more) * scan + jpeg[-2:]
