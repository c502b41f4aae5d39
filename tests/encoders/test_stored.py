"""Features in a file: an interrupted run goes on, changed contents are encoded again, memory stays small."""

import io
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from toy_towers import towers

from core.errors import Refused
from encoders.stored import CHUNK, Stored, stored

WIDTH = 3


class Words:
    """An encoder of texts: their letters, counted. Refuses "no"; may break off."""

    def __init__(self, breaks_after: int | None = None) -> None:
        self.prepared, self.encoded, self.most, self._breaks = 0, 0, 0, breaks_after

    @property
    def width(self) -> int:
        return WIDTH

    def prepare(self, content: str) -> NDArray[np.float32]:
        if self.prepared == self._breaks:
            raise KeyboardInterrupt
        if content == "no":
            raise Refused("validate", "it says no")
        self.prepared += 1
        self.most = max(self.most, self.prepared - self.encoded)
        return np.array([len(content), content.count("a"), hash(content[-1:]) % 7 + 1], np.float32)

    def collate(self, prepared: list[Any], rows: int) -> torch.Tensor:
        return torch.from_numpy(np.stack([*prepared, *[prepared[-1]] * (rows - len(prepared))]))

    def encode(self, inputs: torch.Tensor) -> torch.Tensor:
        self.encoded += len(inputs)
        return torch.nn.functional.normalize(inputs, dim=1)


def texts(count: int) -> list[str]:
    return ["no" if number % 100 == 7 else f"{'a' * (number % 13)} {number}" for number in range(count)]


def contents(words: list[str]) -> Iterator[Callable[[], str]]:
    return (partial(str, one) for one in words)


def run(words: list[str], encoder: Words, folder: Path, fingerprint: str = "one") -> Stored:
    done: list[int] = []
    found = stored(contents(words), encoder, folder / "rows.f32", fingerprint, done.append)  # type: ignore[arg-type]
    assert sum(done) == len(words)
    return found


def plain(words: list[str]) -> tuple[NDArray[np.float32], list[int]]:
    encoder, kept = Words(), [number for number, one in enumerate(words) if one != "no"]
    rows = [encoder.encode(encoder.collate([encoder.prepare(words[item])], 1))[0].numpy() for item in kept]
    return np.array(rows, np.float32).reshape(-1, WIDTH), kept


@pytest.mark.parametrize("count", [0, 1, CHUNK - 1, CHUNK, 3 * CHUNK + 5])
def test_rows_are_those_of_the_encoder(tmp_path: Path, count: int) -> None:
    words = texts(count)
    found, (rows, kept) = run(words, Words(), tmp_path), plain(words)
    np.testing.assert_allclose(found.features, rows, atol=1e-7)
    assert found.items.tolist() == kept and len(found) == len(kept)
    assert found.left == [(item, "it says no") for item in range(count) if words[item] == "no"]


@pytest.mark.parametrize("after", [0, 10, CHUNK, 2 * CHUNK + 100])
def test_an_interrupted_run_goes_on(tmp_path: Path, after: int) -> None:
    words = texts(4 * CHUNK)
    with pytest.raises(KeyboardInterrupt):
        run(words, Words(breaks_after=after), tmp_path)
    encoder = Words()
    found = run(words, encoder, tmp_path)
    np.testing.assert_allclose(found.features, plain(words)[0], atol=1e-7)
    whole = sum(word != "no" for word in words)
    assert encoder.encoded <= whole - after + CHUNK
    again = Words()
    np.testing.assert_array_equal(run(words, again, tmp_path).features, found.features)
    assert again.prepared == 0


@pytest.mark.parametrize(
    ("change", "anew"),
    [
        (lambda words: [*words[:300], "other", *words[301:]], 3),
        (lambda words: words[1:], 4),
        (lambda words: words[: CHUNK + 10], 1),
        (lambda words: [*words, "more"], 1),
        (lambda words: words[:CHUNK], 0),
        (lambda words: [], 0),
    ],
)
def test_what_has_changed_is_encoded_again(
    tmp_path: Path, change: Callable[[list[str]], list[str]], anew: int
) -> None:
    words = texts(4 * CHUNK)
    run(words, Words(), tmp_path)
    changed, encoder = change(words), Words()
    found = run(changed, encoder, tmp_path)
    rows, kept = plain(changed)
    np.testing.assert_allclose(found.features, rows, atol=1e-7)
    assert found.items.tolist() == kept and len(found) == len(kept)
    assert (anew - 1) * (CHUNK - 3) < encoder.encoded <= anew * CHUNK
    assert (tmp_path / "rows.f32").stat().st_size == rows.nbytes
    last = Words()
    run(changed, last, tmp_path)
    assert last.prepared == 0


@pytest.mark.parametrize("damage", ["encoder", "rows cut", "lines torn", "lines gone", "rows gone"])
def test_nothing_is_taken_up_that_does_not_hold(tmp_path: Path, damage: str) -> None:
    words = texts(2 * CHUNK)
    run(words, Words(), tmp_path)
    rows, lines = tmp_path / "rows.f32", tmp_path / "rows.jsonl"
    match damage:
        case "rows cut":
            rows.write_bytes(rows.read_bytes()[:-1])
        case "lines torn":
            lines.write_text(lines.read_text()[:-20])
        case "lines gone":
            lines.unlink()
        case "rows gone":
            rows.unlink()
    encoder = Words()
    found = run(words, encoder, tmp_path, "other" if damage == "encoder" else "one")
    np.testing.assert_allclose(found.features, plain(words)[0], atol=1e-7)
    assert encoder.encoded > 0


@pytest.mark.slow
def test_memory_is_flat_over_20_000_pictures(tmp_path: Path) -> None:
    """Through a tower, from bytes of files; rows lie in a file, whose pages are not the process's own."""
    resident: list[int] = []
    tower = towers()[0]

    def picture(number: int) -> bytes:
        held = io.BytesIO()
        Image.new("RGB", (8, 8), (number % 256, number // 256, 7)).save(held, "png")
        return held.getvalue()

    def done(count: int) -> None:
        status = Path("/proc/self/status").read_text().splitlines()
        resident.append(next(int(line.split()[1]) for line in status if line.startswith("RssAnon")))

    contents = (partial(picture, number) for number in range(20_000))
    found = stored(contents, tower, tmp_path / "rows.f32", "one", done)
    assert len(found) == 20_000 and isinstance(found.features, np.memmap)
    assert resident[-1] - resident[4] < 8 * 1024, "KiB after all and after 1,280 pictures"


def test_no_more_than_a_chunk_is_held(tmp_path: Path) -> None:
    encoder, read = Words(), [0]

    def counted(word: str) -> str:
        read[0] += 1
        assert read[0] <= encoder.encoded + CHUNK, "contents are read ahead of the encoder"
        return word

    words = (partial(counted, f"{number}") for number in range(20 * CHUNK))
    stored(words, encoder, tmp_path / "rows.f32", "one", lambda count: None)  # type: ignore[arg-type]
    assert encoder.most <= CHUNK and encoder.encoded == 20 * CHUNK


def test_a_content_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    def gone() -> str:
        raise Refused("image", "it is gone")

    found = stored(
        [partial(str, "a"), gone, partial(str, "b")],
        Words(),  # type: ignore[arg-type]
        tmp_path / "rows.f32", "one", lambda count: None,
    )  # fmt: skip
    assert (found.items.tolist(), found.left) == ([0, 2], [(1, "it is gone")])
