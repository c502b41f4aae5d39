import io
import struct
import time
import zlib
from dataclasses import replace

import numpy as np
import pytest
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from core.errors import Refused
from encoders.images import Preprocess, decode, fit


def encoded(image: Image.Image, form: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def header_of(width: int, height: int) -> bytes:
    """A PNG that announces a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    ihdr = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 10_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", ihdr) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_png_decodes_to_its_pixels() -> None:
    pixels = noise(7, 5)
    np.testing.assert_array_equal(np.asarray(decode(encoded(Image.fromarray(pixels)))), pixels)


@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
def test_lossy_formats_come_close(form: str) -> None:
    pixels = np.full((40, 30, 3), (200, 100, 50), dtype=np.uint8)
    decoded = np.asarray(decode(encoded(Image.fromarray(pixels), form))).astype(int)
    assert np.abs(decoded - pixels).max() < 6


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "none"),
        (b"not a picture at all", "this is no picture, expected PNG, JPEG or WEBP"),
        (encoded(Image.fromarray(noise(8, 8)), "GIF"), "this is a GIF, expected PNG, JPEG or WEBP"),
        (encoded(Image.fromarray(noise(8, 8)), "TIFF"), "this is a TIFF, expected"),
        (encoded(Image.fromarray(noise(64, 64)), "JPEG")[:1500], "truncated"),
        (encoded(Image.fromarray(noise(64, 64)), "PNG")[:1500], "whole"),
        (encoded(Image.fromarray(noise(64, 64)), "WEBP")[:1500], "whole"),
        (header_of(10_000, 10_000), "pixels"),
        (header_of(60_000, 60_000), "whole"),  # Pillow's own bomb error
        (header_of(100, 100), "whole"),
        (b"\0" * (512 * 1024 + 1), "bytes"),
    ],
    ids=["empty", "garbage", "gif", "tiff", "jpeg", "png", "webp", "100MP", "3600MP", "hollow", "large"],
)
def test_what_is_not_a_whole_picture_is_refused(content: bytes, reason: str) -> None:
    with pytest.raises(Refused, match=reason) as refused:
        decode(content)
    assert refused.value.stage == "image"


def test_damage_anywhere_is_a_refusal_or_a_picture() -> None:
    rng = np.random.default_rng(1)
    for form in ("PNG", "JPEG", "WEBP"):
        good = bytearray(encoded(Image.fromarray(noise(24, 24)), form))
        for _ in range(60):
            bad = bytearray(good)
            bad[int(rng.integers(len(bad)))] = int(rng.integers(256))
            try:
                decode(bytes(bad))
            except Refused:
                continue


def test_a_large_real_png_is_refused_before_decoding() -> None:
    content = encoded(Image.new("1", (10_000, 10_000)))
    assert len(content) < 512 * 1024
    with pytest.raises(Refused, match="10000 x 10000"):
        decode(content)


def test_caps_are_exact() -> None:
    content = encoded(Image.fromarray(noise(10, 20)))
    decode(content, max_bytes=len(content), max_pixels=200)
    with pytest.raises(Refused, match="bytes"):
        decode(content, max_bytes=len(content) - 1)
    with pytest.raises(Refused, match="pixels"):
        decode(content, max_pixels=199)


def test_transparency_falls_on_white() -> None:
    rgba = np.zeros((2, 2, 4), dtype=np.uint8)
    rgba[0, 0], rgba[0, 1], rgba[1, 1] = (255, 0, 0, 255), (0, 0, 255, 128), (9, 9, 9, 0)
    got = np.asarray(decode(encoded(Image.fromarray(rgba))))
    assert got[0, 0].tolist() == [255, 0, 0]
    assert np.abs(got[0, 1].astype(int) - [127, 127, 255]).max() <= 1
    assert got[1, 0].tolist() == got[1, 1].tolist() == [255, 255, 255]


def test_palette_with_a_transparent_colour() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 0])
    palette.putdata([0, 1])
    opaque = np.asarray(decode(encoded(palette)))
    np.testing.assert_array_equal(opaque, [[[10, 20, 30], [200, 100, 0]]])
    clear = np.asarray(decode(encoded(palette, transparency=1)))
    np.testing.assert_array_equal(clear, [[[10, 20, 30], [255, 255, 255]]])


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    values = np.array([[0, 256, 32768, 65535]], dtype=np.uint16)
    got = np.asarray(decode(encoded(Image.fromarray(values))))
    assert got[0, :, 0].tolist() == [0, 1, 128, 255]


def test_sixteen_bit_grey_takes_no_longer_than_colours() -> None:
    side = 2048
    grey = encoded(Image.fromarray(np.full((side, side), 40_000, np.uint16)))
    colours = encoded(Image.new("RGB", (side, side), (9, 8, 7)))

    def seconds(content: bytes) -> float:
        began = time.process_time()
        decode(content, 224)
        return time.process_time() - began

    decode(grey, 224)
    assert min(seconds(grey) for _ in range(3)) < 2 * min(seconds(colours) for _ in range(3))


def test_sixteen_bit_grey_that_is_transparent_falls_on_white() -> None:
    grey = np.full((2, 2), 40_000, np.uint16)
    grey[0, 0] = 5_000
    found = np.asarray(decode(encoded(Image.fromarray(grey), transparency=5_000)))
    assert found[0, 0].tolist() == [255] * 3 and found[1, 1].tolist() == [40_000 >> 8] * 3


def test_cmyk_jpeg() -> None:
    rgb = Image.new("RGB", (32, 32), (180, 60, 20))
    got = np.asarray(decode(encoded(rgb.convert("CMYK"), "JPEG"), side=8)).astype(int)
    assert np.abs(got - (180, 60, 20)).max() < 12


def test_exif_orientation_turns_the_picture() -> None:
    pixels = np.zeros((20, 40, 3), dtype=np.uint8)
    pixels[:, :20] = 255  # left half white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    got = np.asarray(decode(encoded(Image.fromarray(pixels), "JPEG", exif=exif)))
    assert got.shape == (40, 20, 3)
    assert got[:18].mean() > 240
    assert got[22:].mean() < 15


def test_one_pixel_and_slivers_fit() -> None:
    to = Preprocess(size=(16, 16))
    assert (fit(decode(encoded(Image.new("RGB", (1, 1), (7, 8, 9)))), to)[:, 3, 4] == [7, 8, 9]).all()
    for mode in ("shortest", "longest", "squash"):
        for size in ((20_000, 1), (1, 20_000)):
            out = fit(Image.new("RGB", size, (5, 5, 5)), replace(to, resize_mode=mode))
            assert out.shape == (3, 16, 16)
            assert out.max() == 5


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(50, 33), (33, 50), (20, 70), (16, 24), (24, 24), (9, 13)])
def test_fit_equals_open_clips_transform(mode: str, interpolation: str, shape: tuple[int, int]) -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    transform = image_transform_v2(
        PreprocessCfg(size=24, mean=mean, std=std, interpolation=interpolation, resize_mode=mode),
        is_train=False,
    )
    image = Image.fromarray(noise(*shape))
    theirs = transform(image).numpy()
    ours = fit(image, Preprocess((24, 24), mean, std, interpolation, mode)) / 255.0  # type: ignore[arg-type]
    ours = (ours - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_jpeg_draft_keeps_the_picture() -> None:
    ramp = np.linspace(0, 255, 800, dtype=np.uint8)
    across = np.tile(ramp, (800, 1))
    pixels = np.stack([across, across.T, 255 - across], axis=2)  # colours must survive, too
    content = encoded(Image.fromarray(pixels), "JPEG", quality=95)
    small = decode(content, side=32)
    assert small.size == (100, 100)
    to = Preprocess((32, 32))
    whole = fit(decode(content), to).astype(int)
    assert np.abs(fit(small, to).astype(int) - whole).max() <= 4


def test_preprocess_reads_open_clips_dictionary() -> None:
    assert Preprocess.of({"size": 32, "mean": [0.1, 0.2, 0.3], "mode": "RGB"}).size == (32, 32)
    assert Preprocess.of({"size": (16, 24), "std": 0.5}).std == (0.5, 0.5, 0.5)
    assert Preprocess.of({"interpolation": "random"}).interpolation == "bicubic"
