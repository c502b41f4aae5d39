"""Shifts against slow loops, and their independence of order."""

import math
import subprocess
import sys

import numpy as np
import pytest

from core.seeds import generator
from qshift.shifts import images, text
from qshift.shifts.images import PICTURE_SHIFTS, Picture


def picture(height: int = 24, width: int = 24, seed: int = 0) -> Picture:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def draw(name: str = "x") -> np.random.Generator:
    return generator(0, name, "test")


def clipped(value: float) -> int:
    return int(min(255.0, max(0.0, round(value))))  # Python and NumPy both round half to even


def loop(picture: Picture, one: object) -> Picture:
    out = np.empty_like(picture)
    for place in np.ndindex(picture.shape):
        out[place] = one(float(picture[place]), place)  # type: ignore[operator]
    return out


def test_generator_does_not_depend_on_the_process() -> None:
    here = generator(3, "seven", "noise", 0.2).integers(0, 2**62, 4).tolist()
    code = (
        "from core.seeds import generator\n"
        "print(generator(3, 'seven', 'noise', .2).integers(0, 2**62, 4).tolist())"
    )
    for salt in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONHASHSEED": salt}
        )
        assert done.stdout.strip() == str(here), done.stderr


def test_generator_separates_every_part_of_the_key() -> None:
    keys = [
        (0, "a", "n", 1.0),
        (1, "a", "n", 1.0),
        (0, "b", "n", 1.0),
        (0, "a", "m", 1.0),
        (0, "a", "n", 2.0),
    ]
    keys += [(0, 7, "n", 1.0), (0, "7", "n", 1.0), (0, "a,n", "", 1.0), (0, "a", ",n", 1.0)]
    drawn = {generator(*key).integers(0, 2**62) for key in keys}
    assert len(drawn) == len(keys)
    assert generator(0, 7, "n", 1).random() == generator(0, 7, "n", 1.0).random()


@pytest.mark.parametrize("name", PICTURE_SHIFTS)
def test_pictures_do_not_depend_on_order_and_stay_whole(name: str) -> None:
    shift = PICTURE_SHIFTS[name]
    pictures = [picture(20, 28, seed) for seed in range(4)]
    before = [p.copy() for p in pictures]

    def one(i: int) -> bytes:
        out = shift.apply(pictures[i], shift.amount, generator(5, i, name, shift.amount))
        assert out.dtype == np.uint8 and out.shape == pictures[i].shape
        return out.tobytes()

    forward = [one(i) for i in range(4)]
    assert list(reversed([one(i) for i in (3, 2, 1, 0)])) == forward
    assert all((a == b).all() for a, b in zip(pictures, before))
    if name != "clean":
        assert all(out != p.tobytes() for out, p in zip(forward, pictures))


def test_noise_equals_a_loop_and_has_its_deviation() -> None:
    grey = np.full((24, 24, 3), 128, np.uint8)
    eps = draw().standard_normal(grey.shape)
    expected = loop(grey, lambda v, place: clipped(v + 255 * 0.1 * eps[place]))
    assert (images.noise(grey, 0.1, draw()) == expected).all()
    assert images.noise(grey, 0.1, draw()).std() / 255 == pytest.approx(0.1, rel=0.05)


def test_contrast_brightness_and_inversion_equal_loops() -> None:
    p = picture(6, 5)
    mean = [sum(int(p[y, x, c]) for y in range(6) for x in range(5)) / 30 for c in range(3)]
    expected = loop(p, lambda v, place: clipped(mean[place[2]] + 0.2 * (v - mean[place[2]])))
    assert (images.contrast(p, 0.2, draw()) == expected).all()
    assert (images.brightness(p, 0.3, draw()) == loop(p, lambda v, _: clipped(v + 76.5))).all()
    assert (images.invert(p, 1.0, draw()) == 255 - p).all()
    assert (images.invert(p, 0.0, draw()) == p).all()


def test_impulse_replaces_its_share() -> None:
    grey = np.full((60, 60, 3), 128, np.uint8)
    out = images.impulse(grey, 0.2, draw())
    assert set(np.unique(out).tolist()) == {0, 128, 255}
    assert (out != 128).mean() == pytest.approx(0.2, abs=0.02)
    assert (out == 0).mean() == pytest.approx(0.1, abs=0.02)


def test_shot_keeps_the_mean_and_leaves_black_black() -> None:
    grey = np.full((60, 60, 3), 100, np.uint8)
    out = images.shot(grey, 60.0, draw())
    assert out.mean() == pytest.approx(100, abs=2)
    assert out.std() == pytest.approx(255 * math.sqrt(100 / 255 / 60), rel=0.1)  # Poisson: var = mean
    assert not images.shot(np.zeros((4, 4, 3), np.uint8), 3.0, draw()).any()


def test_pixelate_averages_blocks() -> None:
    p = picture(8, 8)
    out = images.pixelate(p, 4, draw())
    for y in range(0, 8, 2):
        for x in range(0, 8, 2):
            block = p[y : y + 2, x : x + 2].reshape(4, 3).astype(float).mean(0)
            # Pillow averages across, rounds, then averages along.
            assert np.abs(out[y : y + 2, x : x + 2] - block).max() <= 1.0


def test_blur_keeps_flat_pictures_and_lowers_variance() -> None:
    flat = np.full((16, 16, 3), 77, np.uint8)
    assert (images.blur(flat, 4.0, draw()) == 77).all()
    assert images.blur(picture(), 4.0, draw()).std() < 0.2 * picture().std()


@pytest.mark.parametrize(
    "name", ["noise", "shot", "impulse", "contrast", "brightness", "invert", "blur", "jpeg"]
)
def test_levels_grow_in_mean_distortion(name: str) -> None:
    p = np.linspace(60, 200, 48 * 48 * 3).reshape(48, 48, 3).astype(np.uint8)
    p[10:30, 12:20] = (240, 40, 90)
    shift = PICTURE_SHIFTS[name]
    errors = [np.abs(shift.apply(p, level, draw()).astype(float) - p).mean() for level in shift.levels]
    assert len(errors) == 5
    assert errors == sorted(errors) and errors[0] < errors[-1]


def test_jitter_moves_as_a_plain_loop_does() -> None:
    p = np.full((41, 41, 3), 255, np.uint8)
    p[8:14, 26:33] = (200, 20, 20)
    angle, size, right, down = draw().uniform(-1, 1, 4)
    angle, scale = angle * 0.25, 1 + size * 0.15
    expected = np.full_like(p, 255)
    for y in range(41):
        for x in range(41):
            # Undo, in order: the shift of a tenth of half a side, the scale, the rotation.
            u, v = x + 0.5 - 20.5 * (1 + right * 0.1), y + 0.5 - 20.5 * (1 + down * 0.1)
            u, v = u / scale, v / scale
            u, v = u * math.cos(angle) + v * math.sin(angle), v * math.cos(angle) - u * math.sin(angle)
            i, j = math.floor(v + 20.5), math.floor(u + 20.5)
            if 0 <= i < 41 and 0 <= j < 41:
                expected[y, x] = p[i, j]
    out = images.jitter(p, 1.0, draw())
    assert (out != 255).any(axis=2).sum() > 20
    # Nearest against bilinear: only the rim of the patch may differ.
    differs = (np.abs(out.astype(int) - expected) > 100).any(axis=2).mean()
    assert differs < 0.015
    assert (images.jitter(p, 0.0, draw()) == p).all()
    assert (images.jitter(np.zeros_like(p), 1.0, draw())[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).any()


def test_texts_keep_their_words_and_do_not_depend_on_order() -> None:
    lines = ["grinning face with big eyes", "flag: Côte d'Ivoire", "a", "", "  two  spaces ", "A-1 top!"]
    for name, shift in text.TEXT_SHIFTS.items():
        one = [shift(line, 1.0, generator(0, i, name, 1.0)) for i, line in enumerate(lines)]
        two = [shift(lines[i], 1.0, generator(0, i, name, 1.0)) for i in reversed(range(len(lines)))]
        assert one == list(reversed(two))
        for line, out in zip(lines, one):
            assert len(out.split()) == len(line.split())
            assert len(out.split(" ")) == len(line.split(" "))
            for word, wrong in zip(line.split(), out.split()):
                if sum(c.isalpha() for c in word) < 3 or name == "clean":
                    assert wrong == word
                else:
                    assert wrong != word


def test_rate_is_the_share_of_words_and_zero_changes_nothing() -> None:
    line = " ".join(["elephant"] * 2000)
    assert text.misspell(line, 0.0, draw()) == line
    wrong = sum(word != "elephant" for word in text.misspell(line, 0.3, draw()).split())
    assert wrong / 2000 == pytest.approx(0.3, abs=0.04)


@pytest.mark.parametrize("kind", text.EDITS)
def test_each_edit_is_what_it_says(kind: text.Edit) -> None:
    word = "Plant"
    seen = {text.misspell(word, 1.0, generator(0, i, kind), (kind,)) for i in range(300)}
    letters = text.LETTERS
    swaps = {word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in range(4)}
    deletes = {word[:i] + word[i + 1 :] for i in range(5)}

    def cased(i: int, c: str) -> str:
        return c.upper() if word[i].isupper() else c

    inserts = {word[: i + 1] + cased(i, c) + word[i + 1 :] for i in range(5) for c in letters}
    substitutes = {word[:i] + cased(i, c) + word[i + 1 :] for i in range(5) for c in letters} - {word}
    near = {"p": "ol", "l": "kop", "a": "qwsz", "n": "bhjm", "t": "ryfg"}
    keys = {word[:i] + cased(i, c) + word[i + 1 :] for i in range(5) for c in near[word[i].lower()]}
    allowed = {
        "swap": swaps, "delete": deletes, "insert": inserts, "substitute": substitutes, "keyboard": keys
    }[kind]  # fmt: skip
    assert seen <= allowed
    if kind in ("swap", "delete", "keyboard"):
        assert seen == allowed


def test_keyboard_neighbours_are_mutual() -> None:
    assert all(key in text.KEYBOARD[other] for key, near in text.KEYBOARD.items() for other in near)
    assert set(text.KEYBOARD) == set(text.LETTERS)
