"""Real drawings, a handful of them."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.errors import ArtifactError
from qshift.data.emoji import Entry, catalogue, group, line_art, open_emoji, png, render, write_emoji

DRAWING = (
    '<svg viewBox="0 0 8 8" xmlns="http://www.w3.org/2000/svg">'
    '<g id="color"><rect width="8" height="8" fill="#FF0000"/></g>'
    '<g id="skin-shadow"><rect width="8" height="4" fill="#00FF00"/></g><g id="hair"/>'
    '<g id="line"><g id="color-foreground"><rect width="1" height="1" fill="#0000FF"/></g>'
    '<rect x="4" y="4" width="4" height="4" fill="#000000"/></g></svg>'
)


@pytest.fixture(scope="module")
def entries() -> list[Entry]:
    return catalogue()


def test_catalogue_is_whole_and_has_no_skin_tones(entries: list[Entry]) -> None:
    names = {entry.hexcode: entry.name for entry in entries}
    assert len(entries) == len(set(names.values())) == 1918
    assert names["1F600"] == "grinning face"
    assert names["2764"] == "red heart"
    assert names["1F1EB-1F1F7"] == "flag of France"
    assert names["1F3F4-E0067-E0062-E0073-E0063-E0074-E007F"] == "flag of Scotland"
    assert not any(f"1F3F{digit}" in names for digit in "BCDEF")
    assert not any("skin tone" in name for name in names.values())
    assert [entry.hexcode for entry in entries] == sorted(names)


def test_groups(entries: list[Entry]) -> None:
    groups = {entry.name: entry.group for entry in entries}
    for name, kind in {
        "grinning face": "faces",
        "woman running": "people",
        "flag of France": "flags",
        "tiger face": "animals",
        "pizza": "food",
        "ambulance": "transport",
        "keycap #": "symbols",
        "biting lip": "faces",
    }.items():
        assert groups[name] == kind, name
    assert len(set(groups.values())) == 14
    assert group(0x1FAFF, "the last") == "body"


def test_line_art_leaves_out_the_filled_layers() -> None:
    colour, line = render(DRAWING, 8), render(line_art(DRAWING), 8)
    expected = np.full((8, 8, 3), 255, np.uint8)
    expected[4:, 4:] = 0
    assert (line == expected).all()
    expected[:] = (255, 0, 0)
    expected[:4] = (0, 255, 0)
    expected[0, 0] = (0, 0, 255)
    expected[4:, 4:] = 0
    assert (colour == expected).all()


def test_write_and_open(tmp_path: Path, entries: list[Entry]) -> None:
    chosen = [entries[i] for i in (0, 30, 500, 900, 1200)]
    island = next(entry for entry in entries if entry.name == "flag of Clipperton Island")
    france = next(entry for entry in entries if entry.name == "flag of France")
    chosen += [island, france]
    calls: list[tuple[int, int, str]] = []
    write_emoji(tmp_path / "a", chosen, 40, lambda *call: calls.append(call))
    data = open_emoji(tmp_path / "a")
    assert len(data) == 7 and calls[-1][:2] == (7, 7)
    assert data.colour.shape == data.line.shape == (7, 40, 40, 3)
    assert not data.colour.flags.writeable
    assert data.names == tuple(entry.name for entry in chosen)
    assert data.labels[:6] == data.hexcodes[:6] and data.labels[6] == data.labels[5]
    assert "OpenMoji" in data.attribution and "CC BY-SA 4.0" in data.attribution
    assert data.captions(0) == ("keycap #", "an emoji of keycap #", "a picture of keycap #")
    drawn = data.picture(chosen[2].hexcode)
    assert drawn is not None
    assert (np.asarray(Image.open(io.BytesIO(drawn))) == data.colour[2]).all()
    assert data.picture("none") is None
    assert (np.asarray(Image.open(io.BytesIO(png(data.line[1])))) == data.line[1]).all()
    # The line art is the colour picture without its fills: some ink, less colour.
    for colour, line in zip(data.colour, data.line):
        assert (line < 128).any()
        assert np.ptp(line, 2).mean() <= np.ptp(colour, 2).mean()
    with pytest.raises(ArtifactError):
        open_emoji(tmp_path / "b")


def test_a_torn_cache_is_told_and_written_again(tmp_path: Path, entries: list[Entry]) -> None:
    write_emoji(tmp_path / "a", entries[:2], 16)
    line = np.array(open_emoji(tmp_path / "a").line)
    (tmp_path / "a" / "line.npy").write_bytes(b"torn")
    with pytest.raises(ArtifactError, match=r"line\.npy"):
        open_emoji(tmp_path / "a")
    write_emoji(tmp_path / "a", entries[:2], 16)
    assert (open_emoji(tmp_path / "a").line == line).all()
