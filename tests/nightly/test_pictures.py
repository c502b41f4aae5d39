"""Damaged pictures, as many as the bar R6 asks for, with headers of bombs above the cap among them."""

from __future__ import annotations

import random
import time

import pytest
from PIL import Image

from core.errors import Refused
from encoders.images import decode
from tests.encoders import test_encoder_images as pictures
from tests.nightly.counts import count
from tests.nightly.test_damage import resident_mib

pytestmark = [pytest.mark.slow, pytest.mark.nightly]

GROWTH_MIB, SLOWEST_SECONDS = 150, 2.0
BOMBS = [(50_000, 50_000), (2**31 - 1, 1), (9_000, 9_000)]
"""Sizes that headers announce, width and height: far above what may be decoded."""


def test_pictures_never_raise_and_hold_no_memory() -> None:
    """Each mutant is a picture or a refusal; every thousandth is a bomb, which is always refused."""
    draw, refused, slowest = random.Random(6), 0, 0.0
    good = [
        pictures.encoded(Image.fromarray(pictures.noise(24, 24)), form) for form in ("PNG", "JPEG", "WEBP")
    ]
    before = resident_mib()
    for number in range(count("pictures")):
        bomb = number % 1000 == 999
        bad = bytearray(pictures.header_of(*draw.choice(BOMBS)) if bomb else draw.choice(good))
        for _ in range(0 if bomb else draw.choice((1, 1, 2, 8))):
            bad[draw.randrange(len(bad))] = draw.randrange(256)
        if not bomb and draw.random() < 0.2:
            del bad[draw.randrange(len(bad)) :]
        began = time.perf_counter()
        try:
            decode(bytes(bad))
        except Refused:
            refused += 1
        else:
            assert not bomb, "a bomb was decoded"
        slowest = max(slowest, time.perf_counter() - began)
    growth = resident_mib() - before
    print(
        f"{count('pictures')} pictures, {refused} refused, slowest {slowest:.2f} s, memory {growth:+.1f} MiB"
    )
    assert growth <= GROWTH_MIB and slowest <= SLOWEST_SECONDS
    assert 0.1 < refused / count("pictures") < 0.99
