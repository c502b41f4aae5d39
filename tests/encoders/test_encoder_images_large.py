"""Small files that unpack large: what a picture at the cap costs, and that it still is the same picture."""

import io
import json
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from core.errors import Refused
from encoders import images
from encoders.images import BAND, SCANS, Preprocess, fit

MEASURE = Path(__file__).with_name("measure_memory.py")
QUICK = {"PNG": {"compress_level": 1}, "WEBP": {"method": 0}}
"""Writing is no part of what is tested."""


def decode(content: bytes, side: int = 0) -> Image.Image:
    """Of any number of bytes: those are not what this is about."""
    return images.decode(content, side, max_bytes=1 << 30)


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **QUICK.get(form, {}), **options)
    return out.getvalue()


def scene(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth shapes with some grain: what photographs are made of."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    pixels += rng.integers(-20, 21, pixels.shape, dtype=np.int16)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def on_white(image: Image.Image) -> np.ndarray:
    """The rule, restated for a whole picture in floats."""
    pixels = np.asarray(image.convert("RGBA")).astype(float)
    alpha = pixels[..., 3:] / 255
    return pixels[..., :3] * alpha + 255 * (1 - alpha)


def wide(mode: str) -> Image.Image:
    """Over one band, in a mode of Pillow's."""
    picture = scene(1100, 1000)
    assert picture.width * picture.height > BAND
    if mode == "I;16":
        return Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    if mode in ("LA", "RGBA"):
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    return picture.convert(mode)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "I;16", "P", "RGB", "RGBA"])
def test_bands_leave_no_trace(mode: str) -> None:
    image = wide(mode)
    got = np.asarray(decode(encoded(image))).astype(float)
    expected = on_white(wide("L") if mode == "I;16" else image)
    assert np.abs(got - expected).max() <= 1


def test_a_clear_colour_is_clear_in_every_band() -> None:
    image = wide("L").point(lambda value: 7 if value < 128 else value)
    got = np.asarray(decode(encoded(image, transparency=7)))
    grey = np.asarray(image)
    np.testing.assert_array_equal(got[..., 0], np.where(grey == 7, 255, grey))


@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_picture_averaged_down_is_the_same_to_a_tower(form: str, mode: str) -> None:
    if (form, mode) == ("JPEG", "RGBA"):
        pytest.skip("JPEGs have no transparency")
    image = scene(1400, 1120)
    if mode == "RGBA":
        image.putalpha(Image.radial_gradient("L").resize(image.size))
    content = encoded(image, form, **({} if form == "PNG" else {"quality": 95}))
    small, whole = decode(content, side=64), decode(content)
    assert min(small.size) < 500 and min(whole.size) == 1120 and image.width * image.height > BAND
    to = Preprocess((64, 64))
    difference = np.abs(fit(small, to).astype(int) - fit(whole, to).astype(int))
    assert difference.max() <= 3 and difference.mean() < 0.5


@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG"])
def test_a_large_picture_stands_upright(form: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = scene(1500, 1000)
    got = decode(encoded(image, form, exif=exif), side=32)
    upright = image.transpose(Image.Transpose.ROTATE_270)
    assert got.size[0] < got.size[1]
    small = np.asarray(got.resize((20, 30), Image.Resampling.BOX)).astype(int)
    assert np.abs(small - np.asarray(upright.resize((20, 30), Image.Resampling.BOX))).max() < 20
    turned = ImageOps.exif_transpose(decode(encoded(image, form, exif=exif)))
    assert turned.size == (1000, 1500)  # turned once, and not again by the next who looks


def test_slivers_are_averaged_no_smaller_than_their_short_side() -> None:
    for size in ((4_000_000, 1), (1, 4_000_000), (200_000, 20)):
        got = decode(encoded(Image.new("L", size, 9)), side=16)
        assert got.size == size and got.getpixel((0, 0)) == (9, 9, 9)


def many_scans(count: int, side: int = 2048) -> bytes:
    """A progressive JPEG whose last scan, which changes nothing, is repeated."""
    content = encoded(Image.new("L", (side, side), 128), "JPEG", progressive=True)
    last = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + last * (count - content.count(b"\xff\xda")) + b"\xff\xd9"


def test_a_jpeg_of_many_scans_is_refused_before_it_is_decoded() -> None:
    decode(many_scans(SCANS, 64))
    bomb = many_scans(8000)
    assert len(bomb) < 512 << 10
    began = time.process_time()
    with pytest.raises(Refused, match=r"8000 scans, at most 64"):
        decode(bomb, side=224)
    assert time.process_time() - began < 0.5  # all of them take 35 s


def test_every_kind_of_jpeg_is_decoded_small() -> None:
    """With a second picture behind the first, as phones write it, Pillow opens another class."""
    first, second = scene(1600, 1600), scene(64, 64)
    content = encoded(first, "MPO", save_all=True, append_images=[second])
    with Image.open(io.BytesIO(content), formats=("PNG", "JPEG", "WEBP")) as opened:
        assert opened.format == "MPO"
    assert decode(content, side=32).size == (100, 100)  # by the decoder to 200, then averaged


def test_decoding_in_threads_leaves_the_warnings_of_others_alone() -> None:
    content = encoded(scene(300, 300))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        threads = [threading.Thread(target=lambda: [decode(content) for _ in range(20)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with pytest.raises(RuntimeWarning):
            warnings.warn("of another library", RuntimeWarning, stacklevel=1)


# MiB of 4096 x 4096 pixels as Pillow's decoder holds them, and how often the decoder does so by itself.
DECODED = {
    "grey": 16, "grey, one clear": 16, "grey of 16 bits": 32, "palette": 16, "RGB": 64, "RGBA of 16 bits": 64,
    "WEBP": 4 * 64, "WEBP with alpha": 4 * 64, "JPEG": 0, "progressive JPEG": 96,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peaks are read from /proc")
def test_the_peak_stays_near_one_decoded_picture() -> None:
    done = subprocess.run(
        [sys.executable, MEASURE],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
        cwd=MEASURE.parents[2],
    )
    found = json.loads(done.stdout)
    assert found.keys() == DECODED.keys()
    over = {name: peak - DECODED[name] for name, peak in found.items()}
    assert max(over.values()) < 40, over  # MiB: one band in its steps, and the picture averaged down
