"""What a picture file says besides its pixels: which way is up, which colour is clear, what format it is.

Good pixels are taken whatever lies around them. Pillow unpacks a PNG's texts and colour profile when it
opens it and refuses the picture when they are large or damaged; they are left out before.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEAD = 33
"""Bytes of the signature and the first chunk, IHDR."""
TEXTS = frozenset((b"tEXt", b"zTXt", b"iTXt"))
TURNED_BY = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")
"""Keywords of the texts that may say which way is up."""
TEXT_BYTES = 1 << 20
"""Pillow's own limit of one text, unpacked."""
ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
DAMAGE = (
    OSError, SyntaxError, ValueError, LookupError, TypeError, ArithmeticError, AttributeError, RuntimeError,
    EOFError, struct.error,
)  # fmt: skip
"""What Pillow's EXIF raises on damaged bytes, and a little more."""
STARTS: tuple[tuple[int, bytes, str], ...] = (
    (0, SIGNATURE, "PNG"), (0, b"\xff\xd8\xff", "JPEG"), (8, b"WEBP", "WEBP"), (0, b"GIF8", "GIF"),
    (0, b"BM", "BMP"), (0, b"II*\0", "TIFF"), (0, b"MM\0*", "TIFF"), (4, b"ftypavi", "AVIF"),
    (4, b"ftyphei", "HEIC"), (4, b"ftyphev", "HEIC"), (4, b"ftypmif1", "HEIF"), (0, b"%PDF", "PDF"),
    (0, b"8BPS", "PSD"), (0, b"\xff\x0a", "JPEG XL"), (4, b"JXL ", "JPEG XL"), (4, b"jP  ", "JPEG 2000"),
    (0, b"\0\0\1\0", "ICO"), (0, b"qoif", "QOI"), (0, b"PK\3\4", "ZIP archive"),
)  # fmt: skip
"""(place, bytes there, format): enough to tell a person what was sent, not to decode it."""


def format_of(content: bytes) -> str:
    """What the first bytes say; "" where they say nothing."""
    for place, start, name in STARTS:
        if content.startswith(start, place):
            return name
    head = content[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith((b"<!doctype html", b"<html")):
        return "HTML page"
    return "SVG" if head.startswith(b"<") and b"<svg" in head else ""


def upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF says; as it is where that cannot be read."""
    try:
        turn = image.getexif().get(ORIENTATION)
    except DAMAGE:
        turn = None
    how = TURNS.get(turn) if isinstance(turn, int) else None
    return image if how is None else image.transpose(how)


def pixels_only(content: bytes) -> bytes:
    """A PNG without texts, colour profile and other chunks that its pixels do not need; others as they are.

    What stays is transparency, with its colour in the 8 bits that Pillow compares with, and what may say
    which way is up. Nothing is unpacked beyond `TEXT_BYTES`; after damage the rest is left to Pillow.
    """
    if len(content) < HEAD or not content.startswith(SIGNATURE + struct.pack(">I", 13) + b"IHDR"):
        return content
    depth, colour = content[24], content[25]
    kept, told = [SIGNATURE], False
    for kind, whole in _chunks(content):
        if kind == b"tRNS":
            kept.append(_in_eight_bits(whole, depth, colour))
        elif not kind or not kind[0] & 0x20 or (kind == b"eXIf" and _intact(whole)):  # a small letter: extra
            kept.append(whole)
        elif not told and kind in TEXTS and whole[8:].startswith(TURNED_BY):
            told = True  # one is enough, and a thousand would be a thousand MiB to unpack
            if _intact(whole) and _small(kind, whole[8:-4].partition(b"\0")[2]):
                kept.append(whole)
    return b"".join(kept)


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(kind, the whole chunk) in order; what follows the last whole one has no kind."""
    start = len(SIGNATURE)
    while start + 12 <= len(content):
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")
        if end > len(content):
            break
        yield content[start + 4 : start + 8], content[start:end]
        start = end
    yield b"", content[start:]


def _intact(whole: bytes) -> bool:
    return zlib.crc32(whole[4:-4]) == int.from_bytes(whole[-4:], "big")


def _small(kind: bytes, text: bytes) -> bool:
    """Whether what follows a text's keyword unpacks to less than Pillow's limit."""
    if kind == b"tEXt" or (kind == b"iTXt" and text[:1] == b"\0"):
        return True
    packed = text[1:] if kind == b"zTXt" else text[2:].split(b"\0", 2)[-1]
    try:
        return len(zlib.decompressobj().decompress(packed, TEXT_BYTES)) < TEXT_BYTES
    except zlib.error:
        return False


def _in_eight_bits(whole: bytes, depth: int, colour: int) -> bytes:
    """The transparent colour of a grey (0) or RGB (2) picture; Pillow keeps 16-bit greys as they are."""
    data = whole[8:-4]
    if colour not in (0, 2) or len(data) % 2 or not data:
        return whole
    values = struct.unpack(f">{len(data) // 2}H", data)
    if colour == 2 and depth == 16:
        values = tuple(value >> 8 for value in values)
    elif colour == 0 and depth in (2, 4):
        values = tuple(value * 255 // ((1 << depth) - 1) for value in values)
    else:
        return whole
    data = struct.pack(f">{len(values)}H", *values)
    return whole[:8] + data + struct.pack(">I", zlib.crc32(b"tRNS" + data))
