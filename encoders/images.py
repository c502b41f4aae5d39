"""Safe decoding of pictures from strangers, and their way to a tower's input size.

Pillow opens pictures of 80 megapixels without complaint and raises at least four kinds of exception on
damaged files. Here the caps hold before anything is decoded, and every failure is one `Refused`.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from core.errors import ArtifactError, Refused
from encoders.metadata import format_of, pixels_only, upright

Pixels = NDArray[np.uint8]
Content = bytes | Pixels
"""A picture: the file as it is, or RGB [H, W, 3]."""
ResizeMode = Literal["shortest", "longest", "squash"]
FORMATS = ("PNG", "JPEG", "WEBP")
BYTES = 512 << 10
PIXELS = 40_000_000
SLIM = 4.0  # aspect ratio from which a picture is cropped before it is resized
GAP = 3  # a picture is averaged down to this many times its later size: Pillow calls 3 not to be told apart
BAND = 1 << 20  # pixels of a band: what is done to a picture band by band needs no second large one
SCANS = 64
"""Scans of one JPEG. Encoders write about ten; each one visits every pixel, and 13,000 fit into 512 KiB."""


@dataclass(frozen=True, slots=True)
class Preprocess:
    """From a picture to a tower's input: size (height, width), resize mode, mean and sd of [0, 1] pixels.

    `resize` is the shorter side before the centre is cut out, in mode "shortest" of squares; None: as long as
    the size.
    """

    size: tuple[int, int] = (224, 224)
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize_mode: ResizeMode = "shortest"
    fill_color: int = 0
    resize: int | None = None

    def document(self) -> dict[str, Any]:
        """As JSON, without what came later where it is not used: bases keep their digests."""
        return {key: value for key, value in asdict(self).items() if key != "resize" or value is not None}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Preprocess:
        """From an open_clip preprocess_cfg, which writes a square size as one number."""
        known = {key: values[key] for key in asdict(cls()) if values.get(key) is not None}
        size = known.get("size", 224)
        known["size"] = (size, size) if isinstance(size, int) else tuple(size)
        for key in ("mean", "std"):
            value = known.get(key, getattr(cls(), key))
            known[key] = (value,) * 3 if isinstance(value, float) else tuple(value)
        if known.get("interpolation") == "random":  # a training option; open_clip's inference takes bicubic
            known["interpolation"] = "bicubic"
        return cls(**known)

    @classmethod
    def written(cls, values: object) -> Preprocess:
        """What a base's manifest holds: `document` of one, with nothing left to defaults.

        Raises:
            ArtifactError: anything else; pictures prepared in another way would find other items.
        """
        try:
            known = isinstance(values, dict) and set(values) | {"resize"} == set(asdict(cls()))
            found = cls.of(values) if isinstance(values, dict) and known else None
        except (TypeError, ValueError):
            found = None
        wrong = found is None or not (
            found.resize_mode in get_args(ResizeMode)
            and found.interpolation in ("bicubic", "bilinear")
            and [len(part) for part in (found.size, found.mean, found.std)] == [2, 3, 3]
            and all(isinstance(side, int) and side > 0 for side in found.size)
            and (found.resize is None or (isinstance(found.resize, int) and found.resize >= max(found.size)))
        )
        if found is None or wrong:
            raise ArtifactError(
                f"the base says {values!r:.300} of how pictures are prepared, which this version cannot do: "
                "build the base again"
            )
        return found

    def sized(self, size: tuple[int, int]) -> Preprocess:
        """Itself, where it is for a tower of this size. Raises ArtifactError."""
        if self.size != size:
            raise ArtifactError(
                f"the base prepares pictures of {self.size}, its tower takes {size}: build the base again"
            )
        return self


def prepare(content: Content, to: Preprocess, max_bytes: int = BYTES, max_pixels: int = PIXELS) -> Pixels:
    """The one way from a picture to a tower's input, uint8 [3, height, width].

    Gallery items, queries, and what a base is fitted to and measured with all come through here: pictures
    prepared in two ways do not find themselves.

    Args:
        content: see there.
        to: of the base.
        max_bytes, max_pixels: see `decode`.

    Raises:
        Refused: stage "image", for what is no whole picture.
    """
    return fit(opened(content, max(*to.size, to.resize or 0), max_bytes, max_pixels), to)


def opened(content: Content, side: int = 0, max_bytes: int = BYTES, max_pixels: int = PIXELS) -> Image.Image:
    """RGB, whether it comes as a file (see `decode`) or as pixels. Raises Refused."""
    if isinstance(content, np.ndarray):
        if content.dtype != np.uint8 or content.ndim != 3 or content.shape[2] != 3 or not content.size:
            raise Refused("image", f"expected uint8 [H, W, 3], got {content.dtype} {content.shape}")
        return Image.fromarray(np.ascontiguousarray(content))
    return decode(content, side, max_bytes, max_pixels)


def decode(content: bytes, side: int = 0, max_bytes: int = BYTES, max_pixels: int = PIXELS) -> Image.Image:
    """Decodes one PNG, JPEG or WEBP to RGB: upright, transparency on white, 16 bits scaled to 8.

    A decoder cannot be interrupted: what it may cost is settled here, before it starts, by the caps of bytes,
    pixels and scans. Memory stays near what the format's own decoder needs, docs/reference/operations.md.

    Args:
        content: the encoded picture.
        side: may come smaller, down to twice (JPEG) or three times this many pixels a side; 0 for full size.
        max_bytes: refused above, before anything else.
        max_pixels: width times height as the header says; refused above, before decoding.

    Raises:
        Refused: stage "image", for every picture that is not decoded whole.
    """
    if not isinstance(content, bytes | bytearray) or not content:
        raise Refused("image", "expected the bytes of a picture, got none")
    if len(content) > max_bytes:
        raise Refused("image", f"the picture has {len(content)} bytes, at most {max_bytes} are accepted")
    try:
        return _decode(bytes(content), side, max_pixels)
    except Refused:
        raise
    except UnidentifiedImageError:  # its own text names the address of a buffer
        raise Refused("image", _unidentified(bytes(content))) from None
    except Exception as error:  # Pillow's plugins raise OSError, ValueError, SyntaxError, struct.error, ...
        reason = f"{type(error).__name__}: {error}".replace("\n", " ")[:200]
        raise Refused("image", f"not a whole {', '.join(FORMATS)} picture ({reason})") from error


def _decode(content: bytes, side: int, max_pixels: int) -> Image.Image:
    # Pillow only warns about large pictures where our own cap refuses them, and about odd EXIF. Not
    # catch_warnings: pictures are decoded in several threads, and what it restores is everybody's.
    warnings.filterwarnings("ignore", module="PIL")
    with Image.open(io.BytesIO(pixels_only(content)), formats=FORMATS) as opened:
        width, height = opened.size
        if width * height > max_pixels:
            raise Refused(
                "image", f"the picture has {width} x {height} pixels, at most {max_pixels} are accepted"
            )
        if isinstance(opened, JpegImageFile):  # phones write a second picture behind: Pillow calls that MPO
            _check_scans(content)
            if side:
                opened.draft(None, (2 * side, 2 * side))
        opened.load()
        small = _small(opened, side)
        small.info = opened.info  # which way is up
        turned = upright(small)
        turned.info = {}  # turned once, and not again by the next who looks
        return turned


def _check_scans(content: bytes) -> None:
    scans = content.count(b"\xff\xda")  # a JPEG's data never spells this marker
    if scans > SCANS:
        raise Refused("image", f"the JPEG has {scans} scans, at most {SCANS} are accepted: save it again")


def _small(image: Image.Image, side: int) -> Image.Image:
    """RGB, averaged down by a whole number that keeps `GAP * side` pixels; band by band where it is large."""
    width, height = image.size
    factor = max(1, min(width, height) // (GAP * side)) if side else 1
    rows = factor * max(1, BAND // (width * factor))
    if factor == 1 and rows >= height:
        return _rgb(image)
    small = Image.new("RGB", (-(-width // factor), -(-height // factor)))
    for top in range(0, height, rows):
        band = _rgb(image.crop((0, top, width, min(top + rows, height))))
        small.paste(band.reduce(factor) if factor > 1 else band, (0, top // factor))
    return small


def _unidentified(content: bytes) -> str:
    found, wanted = format_of(content), f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
    if found in FORMATS:
        return f"this starts as a {found}, but is not whole: send it again"
    named = f"{'an' if found[0] in 'AHIS' else 'a'} {found}" if found else "no picture"
    return f"this is {named}, expected {wanted}" + (": convert it" if found else "")


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # convert("RGB") clips 16-bit greys at 255 instead of scaling them: nearly all white.
        values = np.asarray(image)
        grey = np.clip(values >> 8, 0, 255).astype(np.uint8)
        if (clear := image.info.get("transparency")) is not None:  # NumPy compares with None one by one
            grey[values == clear] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def fit(image: Image.Image, to: Preprocess) -> Pixels:
    """Resizes an RGB picture to a tower's input, uint8 [3, H, W]; as open_clip's inference transform does."""
    height, width = to.size
    how = Image.Resampling.BILINEAR if to.interpolation == "bilinear" else Image.Resampling.BICUBIC
    match to.resize_mode:
        case "squash":
            done = image.resize((width, height), how)
        case "longest":
            done = _longest(image, to, how)
        case _:
            done = _shortest(image, to, how)
    return np.ascontiguousarray(np.asarray(done, dtype=np.uint8).transpose(2, 0, 1))


def _shortest(image: Image.Image, to: Preprocess, how: Image.Resampling) -> Image.Image:
    height, width = to.size
    across, down = image.size
    ratio = max(across, down) / min(across, down)
    if ratio > SLIM:
        # A picture of 40,000 x 1 would be resized to half a gigapixel before its centre is cut out.
        keep_w, keep_h = min(across, int(SLIM * down)), min(down, int(SLIM * across))
        left, top = (across - keep_w) // 2, (down - keep_h) // 2
        image = image.crop((left, top, left + keep_w, top + keep_h))
        across, down = image.size
    if height == width:  # torchvision's Resize: the longer side is cut off, not rounded
        short, side = min(across, down), to.resize or height
        size = (int(side * across / short), int(side * down / short))
    else:
        scale = max(width / across, height / down)
        size = (round(across * scale), round(down * scale))
    resized = image if size == image.size else image.resize(size, how)
    left, top = round((size[0] - width) / 2.0), round((size[1] - height) / 2.0)
    return resized.crop((left, top, left + width, top + height))


def _longest(image: Image.Image, to: Preprocess, how: Image.Resampling) -> Image.Image:
    height, width = to.size
    scale = min(width / image.width, height / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    ground = Image.new("RGB", (width, height), (to.fill_color,) * 3)
    ground.paste(image.resize(size, how), ((width - size[0]) // 2, (height - size[1]) // 2))
    return ground
