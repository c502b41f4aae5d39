"""`qshift fit clip --train heads`: from captioned pictures to a base whose towers have maps behind them."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from toy_clips import drawn, write_clip
from typer.testing import CliRunner

from core.errors import ConfigError
from encoders.base_model import load_base
from encoders.clip_source import ClipSource
from encoders.linear_heads import Pairs
from qshift.cli import app
from qshift.demo.fit_clip import ClipOptions, fit_clip
from qshift.recipes.brought_heads import split

COLOURS = {
    "red": (230, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 230), "black": (0, 0, 0),
    "white": (250, 250, 250), "grey": (128, 128, 128), "yellow": (240, 240, 10), "pink": (250, 150, 200),
    "brown": (110, 60, 20), "purple": (120, 10, 160), "orange": (250, 140, 0), "olive": (110, 110, 10),
}  # fmt: skip


def flags(folder: Path) -> Path:
    """Two colours each, named in the caption: 144 pictures."""
    folder.mkdir(parents=True)
    for top, above in COLOURS.items():
        for bottom, below in COLOURS.items():
            pixels = np.array([[above] * 8] * 4 + [[below] * 8] * 4, np.uint8)
            picture = Image.fromarray(pixels).resize((64, 64), Image.Resampling.NEAREST)
            picture.save(folder / f"{top} above and {bottom} below.png")
    return folder


def fitted(place: Path, base: Path, model: Path) -> str:
    out = io.StringIO()
    options = ClipOptions(ClipSource(None, str(model)), bits=32, heads=True)
    fit_clip(place, base, options, Console(file=out, width=300))
    return out.getvalue()


@pytest.mark.slow
def test_heads_are_learnt_served_and_said(tmp_path: Path) -> None:
    model, place = write_clip(tmp_path / "model"), flags(tmp_path / "flags")
    said = fitted(place, tmp_path / "base", model)
    base = load_base(tmp_path / "base")
    told = base.provenance["towers"]["heads"]
    assert told["epoch"] > 0, "a random CLIP is easily made better"
    assert "heads, R@1 among 14 pictures that were held out" in said
    before, after = told["held_out_before"], told["held_out_after"]
    assert set(before) == {"text_to_image_r1", "image_to_text_r1"}
    assert sum(after.values()) >= sum(before.values())
    # What the base gives is what the maps make of the towers as they are; the towers did not move.
    fit_clip(
        place, tmp_path / "plain", ClipOptions(ClipSource(None, str(model)), bits=32), Console(quiet=True)
    )
    plain = load_base(tmp_path / "plain")
    for modality in ("image", "text"):
        content = next(iter(sorted(place.iterdir()))).read_bytes() if modality == "image" else "red above"
        mine, other = base.encoders[modality], plain.encoders[modality]  # type: ignore[index]
        inputs = mine.collate([mine.prepare(content)], 1)
        with torch.no_grad():
            expected = mine.module.projection(other.encode(inputs))  # type: ignore[attr-defined]
        torch.testing.assert_close(mine.encode(inputs), expected, atol=1e-5, rtol=0)
        assert not torch.allclose(expected, other.encode(inputs), atol=1e-3)
    # Once more from what is kept: the same bytes.
    assert fitted(place, tmp_path / "base", model) and load_base(tmp_path / "base").version == base.version


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["TEXTS", "--pretrained", "MODEL"], "--train heads learns from captioned pictures"),
        (
            ["DATA", "--model", "timm:test_vit", "--pretrained", "random"],
            "towers for pictures and texts that",
        ),
        (["CLASSES", "--pretrained", "MODEL"], "captions that tell pictures apart: 2 different ones found"),
    ],
)
def test_what_there_is_nothing_to_learn_from_is_one_sentence(
    options: list[str], message: str, tmp_path: Path
) -> None:
    (tmp_path / "texts.txt").write_text("a\nb\n")
    if "CLASSES" in options:
        for start, name in ((0, "bird"), (20, "boat")):
            drawn(tmp_path / "sorted" / name, 20, start)
    places = {
        "TEXTS": tmp_path / "texts.txt", "CLASSES": tmp_path / "sorted", "DATA": tmp_path / "data",
        "MODEL": tmp_path / "model",
    }  # fmt: skip
    if "DATA" in options:
        drawn(tmp_path / "data", 40)
    if "MODEL" in options:
        write_clip(tmp_path / "model")
    named = [str(places.get(one, one)) for one in options]
    asked = ["fit", "clip", *named, "--train", "heads", "--bits", "16", "--base", str(tmp_path / "base")]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code != 0 and message in str(result.exception)
    assert not (tmp_path / "base").exists()


def test_no_caption_is_learnt_and_reported() -> None:
    """Two captions a picture; every third picture shares its second with the next."""
    picture = np.repeat(np.arange(300), 2)
    same = np.arange(600)
    same[3::6] = same[1::6]
    rows = np.zeros((600, 4), np.float32)
    pairs = Pairs(rows[:300], rows, picture, same)
    parts = split(pairs, seed=0)
    assert [len(set(picture[part].tolist())) > 20 for part in parts] == [True] * 3
    said = [set(same[part].tolist()) for part in parts]
    assert not (said[0] & said[1] or said[0] & said[2] or said[1] & said[2])
    seen = [set(picture[part].tolist()) for part in parts]
    assert not (seen[1] & seen[2])
    assert not (seen[0] & seen[1] or seen[0] & seen[2]), "no picture is learnt from and judged"
    with pytest.raises(ConfigError, match="99 different ones"):
        split(Pairs(rows[:99], rows[:99], np.arange(99), np.arange(99)), seed=0)
