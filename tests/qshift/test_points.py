"""No figure is better than "nan": one label has a gain and no interval, none has neither."""

import json
import math

import pytest

from qshift.replay.own_run import OwnRow, own_table
from qshift.replay.table import PhaseRow, as_json, render
from qshift.terminal.points import gain_text, plain, signed
from qshift.terminal.sheet import WIDE

NAN = math.nan


@pytest.mark.parametrize(
    ("gain", "low", "high", "text"),
    [
        (3.21, 1.0, 5.44, "+3.2 [+1.0, +5.4]"),
        (-0.04, -0.04, 0.0, "+0.0 [+0.0, +0.0]"),
        (100.0, NAN, NAN, "+100.0"),
        (NAN, NAN, NAN, "n/a"),
    ],
)
def test_gains(gain: float, low: float, high: float, text: str) -> None:
    assert gain_text(gain, low, high) == text


def test_signed_and_plain() -> None:
    assert [signed(NAN), plain(NAN), signed(2.0), plain(2.0)] == ["n/a", "n/a", "+2.0", "2.0"]


def test_no_table_and_no_json_says_nan() -> None:
    none = PhaseRow("a", "image", 64, 0, *[NAN] * 11)
    one = PhaseRow("b", "image", 64, 1, 50.0, 50.0, 100.0, 50.0, NAN, NAN, 0.0, 100.0, NAN, NAN, NAN)
    own = [OwnRow("m", 5, 0, labels, 1.0, 1.0, 2.0, NAN, NAN, 1.0, 0.0, 100.0, 100.0) for labels in (1, 0)]
    sheets = [render([none, one], "t"), render([none, one], "t", timing=False), own_table(own, "own")]
    for sheet in sheets:
        texts = " ".join(str(value) for row in sheet.rows for value in row)
        assert "nan" not in texts.lower() and sheet.table(WIDE)
    rows = json.loads(json.dumps(as_json([none, one]), allow_nan=False))
    assert rows[0]["diff"] is None and rows[1]["diff"] == 50.0 and rows[1]["diff_low"] is None
