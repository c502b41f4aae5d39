"""The 16 picture corruptions of COCO-C and Flickr-C, five severities each.

Constants are those of the published generators (Qiu et al., Benchmarking Robustness of Multimodal
Image-Text Models under Distribution Shift, DMLR 2024; most of them from Hendrycks and Dietterich,
Benchmarking Neural Network Robustness to Common Corruptions and Perturbations, ICLR 2019). The code is ours.
docs/reference/shifts.md says where it differs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import index
from types import MappingProxyType
from typing import Literal, get_args

import numpy as np

from core.errors import ConfigError
from core.seeds import generator
from qshift.shifts.corruptions import blur, digital, noise, weather
from qshift.shifts.images import Draw, Picture

Variant = Literal["correct", "mmr"]
SEVERITIES = (1, 2, 3, 4, 5)


@dataclass(frozen=True, slots=True)
class ImageCorruption:
    """One corruption.

    Args:
        family: noise, blur, weather or digital.
        effect: (picture, generator, *constants) -> picture.
        constants: of the effect, by severity.
        substitute: what stands in for what of the published generator; "" where nothing does.
        published: what the published generator of COCO-C really does, where that is a mistake.
    """

    name: str
    family: Literal["noise", "blur", "weather", "digital"]
    effect: Callable[..., Picture]
    constants: tuple[tuple[float, ...], ...]
    substitute: str = ""
    published: Callable[..., Picture] | None = None

    def apply(
        self, picture: Picture, severity: int, generator: Draw, variant: Variant = "correct"
    ) -> Picture:
        """A corrupted copy.

        Args:
            picture: uint8 [H, W, 3], RGB, of any size.
            severity: 1 to 5.
            generator: of this sample; draws depend on nothing else.
            variant: "mmr" gives the published generator's behaviour where it is a mistake: glass_blur hardly
                shuffles, pixelate ignores the size and exchanges height and width. Others do not differ.

        Raises:
            ConfigError: another severity or variant, or no such picture.
        """
        constants = self.constants[_checked(self.name, severity) - 1]
        if variant not in get_args(Variant):
            raise ConfigError(f"variant of {self.name} is {variant!r}: choose correct or mmr")
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or picture.size == 0:
            raise ConfigError(
                f"{self.name} expects a picture uint8 [H, W, 3], got {picture.dtype} {list(picture.shape)}: "
                "decode it to RGB first"
            )
        effect = self.published if variant == "mmr" and self.published else self.effect
        return effect(picture, generator, *constants)


LINE = "a line kernel instead of ImageMagick's motion blur"


def _table() -> Mapping[str, ImageCorruption]:
    listed = (
        ImageCorruption("gaussian_noise", "noise", noise.gaussian_noise, _each(0.08, 0.12, 0.18, 0.26, 0.38)),
        ImageCorruption("shot_noise", "noise", noise.shot_noise, _each(60, 25, 12, 5, 3)),
        ImageCorruption("impulse_noise", "noise", noise.impulse_noise, _each(0.03, 0.06, 0.09, 0.17, 0.27)),
        ImageCorruption("speckle_noise", "noise", noise.speckle_noise, _each(0.15, 0.2, 0.35, 0.45, 0.6)),
        ImageCorruption(
            "defocus_blur", "blur", blur.defocus_blur, ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))
        ),
        ImageCorruption(
            "glass_blur", "blur", blur.glass_blur,
            ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)), published=blur.glass_blur_mmr,
        ),
        ImageCorruption(
            "motion_blur", "blur", blur.motion_blur,
            ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)), substitute=LINE,
        ),
        ImageCorruption(
            "zoom_blur", "blur", blur.zoom_blur,
            ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.33, 0.03)),
        ),
        ImageCorruption(
            "snow", "weather", weather.snow,
            (
                (0.1, 0.3, 3, 0.5, 10, 4, 0.8), (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
                (0.55, 0.3, 4, 0.9, 12, 8, 0.7), (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
                (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
            ),
            substitute=LINE,
        ),
        ImageCorruption(
            "frost", "weather", weather.frost,
            ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
            substitute="a procedural texture instead of five photographs",
        ),
        ImageCorruption("fog", "weather", weather.fog, ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))),
        ImageCorruption("brightness", "digital", digital.brightness, _each(0.1, 0.2, 0.3, 0.4, 0.5)),
        ImageCorruption("contrast", "digital", digital.contrast, _each(0.4, 0.3, 0.2, 0.1, 0.05)),
        ImageCorruption(
            "elastic", "digital", digital.elastic,
            ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)),
        ),
        ImageCorruption(
            "pixelate", "digital", digital.pixelate, _each(0.6, 0.5, 0.4, 0.3, 0.25),
            published=digital.pixelate_mmr,
        ),
        ImageCorruption("jpeg", "digital", digital.jpeg, _each(25, 18, 15, 10, 7)),
    )  # fmt: skip
    return MappingProxyType({corruption.name: corruption for corruption in listed})


def _each(*amounts: float) -> tuple[tuple[float, ...], ...]:
    return tuple((amount,) for amount in amounts)


IMAGE_CORRUPTIONS: Mapping[str, ImageCorruption] = _table()


def corrupt(
    picture: Picture,
    name: str,
    severity: int,
    seed: int,
    sample_id: str | int,
    variant: Variant = "correct",
) -> Picture:
    """A corrupted copy whose draws depend on (seed, sample_id, name, severity) only.

    Raises:
        ConfigError: unknown name, severity or variant, or no picture; says which are valid.
    """
    if name not in IMAGE_CORRUPTIONS:
        raise ConfigError(
            f"unknown picture corruption {name!r}: choose one of {', '.join(IMAGE_CORRUPTIONS)}"
        )
    number = _checked(name, severity)
    draw = generator(seed, sample_id, name, number)
    return IMAGE_CORRUPTIONS[name].apply(picture, number, draw, variant)


def _checked(name: str, severity: int) -> int:
    try:
        number = index(severity)
    except TypeError:
        number = 0
    if number not in SEVERITIES or isinstance(severity, bool):
        raise ConfigError(f"severity of {name} is {severity!r}: choose one of 1, 2, 3, 4, 5")
    return number
