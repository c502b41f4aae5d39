"""Good pixels are taken whatever lies around them, and a refusal names what was sent."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from core.errors import Refused
from encoders.images import decode
from encoders.metadata import format_of, pixels_only

HEAD = 33  # bytes of signature and IHDR
KINDS = np.arange(24 * 32 * 3, dtype=np.uint8).reshape(24, 32, 3)
TURNS = {
    2: lambda p: p[:, ::-1], 3: lambda p: p[::-1, ::-1], 4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1), 6: lambda p: np.rot90(p, -1), 7: lambda p: p[::-1, ::-1].swapaxes(0, 1),
    8: lambda p: np.rot90(p),
}  # fmt: skip


def encoded(form: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(KINDS).save(out, form, **options)
    return out.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunk(added: bytes) -> bytes:
    whole = encoded()
    return whole[:HEAD] + added + whole[HEAD:]


def drawn(depth: int, colour: int, row: bytes, width: int, clear: tuple[int, ...]) -> list[list[int]]:
    """Pixels of a PNG of one row whose transparent colour is `clear`."""
    ihdr = struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0)
    parts = (chunk(b"IHDR", ihdr), chunk(b"tRNS", struct.pack(f">{len(clear)}H", *clear)),
             chunk(b"IDAT", zlib.compress(b"\0" + row)), chunk(b"IEND", b""))  # fmt: skip
    pixels = np.asarray(decode(b"\x89PNG\r\n\x1a\n" + b"".join(parts)))
    return pixels[0].tolist()  # type: ignore[no-any-return]


def packed(text: bytes) -> bytes:
    return zlib.compress(text, 9)


TIFF = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
XMP = b"XML:com.adobe.xmp\0"
BAD_CRC = struct.pack(">I", 4) + b"pHYs" + b"abcd" + b"\0\0\0\0"


@pytest.mark.parametrize(
    "added",
    [
        chunk(b"eXIf", b"\0\x08\0\2\1\x12\0\3junkjunk"),
        chunk(b"eXIf", TIFF)[:-4] + b"\0\0\0\0",
        chunk(b"zTXt", b"Comment\0\0" + packed(b"a" * (3 << 20))),
        chunk(b"iTXt", b"Comment\0\1\0en\0\0" + packed(b"a" * (3 << 20))),
        chunk(b"zTXt", XMP + b"\0" + packed(b"a" * (3 << 20))),
        chunk(b"iTXt", XMP + b"\1\0\0\0" + packed(b'tiff:Orientation="6"' + b" " * (3 << 20))),
        chunk(b"iTXt", XMP + b"\1\0\0\0not packed"),
        chunk(b"iTXt", XMP + b"\1"),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + packed(b"\nexif\n 4\nzzzz\n")),
        chunk(b"iCCP", b"icc\0\0" + packed(b"\0" * (3 << 20))),
        chunk(b"iCCP", b"icc\0\7unknown"),
        chunk(b"tEXt", b"Comment\0" + b"a" * 100_000),
        BAD_CRC,
        chunk(b"gAMA", b""),
    ],
    ids=[
        "exif", "exif-crc", "ztxt", "itxt", "xmp-ztxt", "xmp-itxt", "xmp-damaged", "xmp-short", "profile",
        "icc", "icc-method", "text", "crc", "gamma",
    ],
)  # fmt: skip
def test_large_or_damaged_metadata_costs_nothing(added: bytes) -> None:
    np.testing.assert_array_equal(np.asarray(decode(with_chunk(added))), KINDS)


def test_a_thousand_packed_texts_are_not_unpacked() -> None:
    one = chunk(b"zTXt", XMP + b"\0" + packed(b"a" * ((1 << 20) - 9)))
    content = with_chunk(one * 300)
    assert pixels_only(content).count(b"zTXt") == 1
    np.testing.assert_array_equal(np.asarray(decode(content)), KINDS)


def test_damage_of_pixels_is_not_hidden() -> None:
    whole = bytearray(encoded())
    place = whole.index(b"IDAT") + 8
    whole[place] ^= 0xFF
    with pytest.raises(Refused, match="not a whole"):
        decode(bytes(whole))
    assert pixels_only(encoded()[:-20]) == encoded()[:-20]
    assert pixels_only(b"\xff\xd8\xff") == b"\xff\xd8\xff"


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_all_eight_turns(form: str, turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    lossless = {"PNG": {}, "JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}[form]
    plain = np.asarray(decode(encoded(form, **lossless)))
    found = np.asarray(decode(encoded(form, exif=exif.tobytes(), **lossless)))
    wanted = TURNS.get(turn, lambda p: p)(plain)
    np.testing.assert_array_equal(found, wanted)


def test_texts_that_say_a_turn_are_read() -> None:
    wanted = np.rot90(KINDS, -1)
    hexed = b"\nexif\n%8d\n%s\n" % (len(TIFF) + 6, (b"Exif\0\0" + TIFF).hex().encode())
    for added in (
        chunk(b"eXIf", TIFF),
        chunk(b"iTXt", XMP + b'\0\0\0\0<x tiff:Orientation="6"/>'),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + packed(hexed)),
    ):
        np.testing.assert_array_equal(np.asarray(decode(with_chunk(added))), wanted)


@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0" + b"\xde\xad" * 9, b"Exif\0\0II*\0\x08\0\0\0\5\0"])
def test_damaged_exif_is_upright(form: str, exif: bytes) -> None:
    plain = np.asarray(decode(encoded(form, quality=90)))
    np.testing.assert_array_equal(np.asarray(decode(encoded(form, quality=90, exif=exif))), plain)


def test_no_damage_of_exif_refuses_a_picture() -> None:
    draw = np.random.default_rng(0)
    for _ in range(200):
        data = bytearray(TIFF)
        for place in draw.integers(0, len(data), 4):
            data[place] = int(draw.integers(256))
        assert sorted(decode(with_chunk(chunk(b"eXIf", bytes(data)))).size) == [24, 32]


WHITE = [255, 255, 255]


def test_the_transparent_colour_is_white_at_every_depth() -> None:
    assert drawn(16, 0, struct.pack(">3H", 0x1234, 0x1235, 0x9000), 3, (0x1234,)) == [
        WHITE, [18, 18, 18], [144, 144, 144],
    ]  # fmt: skip
    assert drawn(8, 0, bytes((18, 144)), 2, (18,)) == [WHITE, [144] * 3]
    assert drawn(4, 0, bytes((0x05, 0xAF)), 4, (5,)) == [[0] * 3, WHITE, [170] * 3, WHITE]
    assert drawn(2, 0, bytes((0b00011011,)), 4, (2,)) == [[0] * 3, [85] * 3, WHITE, WHITE]
    assert drawn(1, 0, bytes((0b01000000,)), 2, (0,)) == [WHITE, WHITE]
    assert drawn(8, 2, bytes((18, 0, 0, 3, 4, 5)), 2, (18, 0, 0)) == [WHITE, [3, 4, 5]]
    sixteen = struct.pack(">6H", 0x1234, 0, 0, 0x9000, 0x100, 0x200)
    assert drawn(16, 2, sixteen, 2, (0x1234, 0, 0)) == [WHITE, [144, 1, 2]]


@pytest.mark.parametrize("form", ["GIF", "BMP", "TIFF", "ICO", "PDF", "AVIF", "JPEG2000"])
def test_a_refusal_names_the_format_and_no_address(form: str) -> None:
    content = encoded(form)
    reasons = set()
    for _ in range(2):
        with pytest.raises(Refused) as refused:
            decode(content)
        reasons.add(refused.value.reason)
    named = form.replace("JPEG2000", "JPEG 2000")
    assert len(reasons) == 1 and f" {named}, expected PNG, JPEG or WEBP" in reasons.pop()


def test_what_is_no_picture() -> None:
    for content, named in (
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"), (b"<?xml version='1'?>\n<svg/>", "SVG"),
        (b"\n<!DOCTYPE html><p>403", "HTML page"), (b"\0\0\0\x18ftypheic", "HEIC"), (b"<p>", ""), (b"", ""),
    ):  # fmt: skip
        assert format_of(content) == named
    with pytest.raises(Refused, match="starts as a WEBP, but is not whole"):
        decode(b"RIFF\0\0\0\0WEBPjunk")


def test_no_refusal_holds_an_address() -> None:
    class Bare: ...

    reasons = {Refused("image", f"cannot read {Bare()!r} and {io.BytesIO()!r}").reason for _ in range(2)}
    assert all(" at 0x" not in reason for reason in reasons) and len(reasons) == 1
    assert str(Refused("image", f"{object()}")) == "<object object>"
    assert Refused("decode", "wrong at 0x10").reason == "wrong at 0x10"
