"""The 16 picture corruptions against slow restatements of their formulas, and what holds for all of them."""

import colorsys
import hashlib
import io
import itertools
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from core.errors import ConfigError
from core.seeds import generator
from qshift.shifts.corruptions import IMAGE_CORRUPTIONS, SEVERITIES, blur, corrupt, digital, weather
from qshift.shifts.corruptions.textures import frost_texture, plasma
from qshift.shifts.images import Picture

NAMES = tuple(IMAGE_CORRUPTIONS)
NOT_MONOTONE = {"elastic", "frost", "snow"}


def draw(name: object = "x") -> np.random.Generator:
    return generator(0, str(name), "test")


def speckled(height: int, width: int, seed: int = 0) -> Picture:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def scene(side: int = 112) -> Picture:
    """Shapes with sharp edges on a ground of many colours, dark to white."""
    y, x = np.mgrid[0:side, 0:side] / side
    picture = np.stack([60 + 140 * x, 200 - 120 * y, 90 + 60 * x * y], -1)
    picture[(x - 0.35) ** 2 + (y - 0.4) ** 2 < 0.04] = (235, 40, 60)
    picture[(np.abs(x - 0.7) < 0.12) & (np.abs(y - 0.6) < 0.25)] = (255, 255, 255)
    picture[(np.abs((x * 13.3) % 1 - 0.5) < 0.2) & (y > 0.8)] = (15, 15, 30)
    return picture.astype(np.uint8)


def mean_distortion(name: str, severity: int, picture: Picture, samples: int) -> float:
    outs = [corrupt(picture, name, severity, 0, sample) for sample in range(samples)]
    return float(np.mean([np.abs(out.astype(float) - picture).mean() for out in outs]))


# What holds for all


def test_names_and_order_are_those_of_the_benchmark() -> None:
    assert NAMES == (
        "gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "defocus_blur", "glass_blur",
        "motion_blur", "zoom_blur", "snow", "frost", "fog", "brightness", "contrast", "elastic", "pixelate",
        "jpeg",
    )  # fmt: skip
    assert all(len(corruption.constants) == 5 for corruption in IMAGE_CORRUPTIONS.values())
    named = {name for name, corruption in IMAGE_CORRUPTIONS.items() if corruption.substitute}
    assert named == {"motion_blur", "snow", "frost"}


@pytest.mark.parametrize("name", NAMES)
def test_same_sample_same_bytes_in_any_order(name: str) -> None:
    pictures = [scene(40), speckled(30, 44), speckled(44, 30, 1)]
    before = [picture.copy() for picture in pictures]
    for picture in pictures:
        picture.flags.writeable = False

    def one(i: int) -> bytes:
        out = corrupt(pictures[i], name, 3, 7, f"sample-{i}")
        assert out.dtype == np.uint8 and out.shape == pictures[i].shape
        assert not np.shares_memory(out, pictures[i])
        return out.tobytes()

    forward = [one(i) for i in (0, 1, 2)]
    assert [one(i) for i in (2, 1, 0)][::-1] == forward
    assert all((a == b).all() for a, b in zip(pictures, before))
    assert all(out != picture.tobytes() for out, picture in zip(forward, pictures))


def test_bytes_do_not_depend_on_the_process() -> None:
    code = (
        "import hashlib, numpy as np\n"
        "from qshift.shifts.corruptions import IMAGE_CORRUPTIONS, corrupt\n"
        "from qshift.shifts.wording import TEXT_CORRUPTIONS, corrupt_text\n"
        "p = np.arange(2700, dtype=np.uint32).reshape(30, 30, 3).astype(np.uint8)\n"
        "t = 'The young children are playing with a large red ball near the house'\n"
        "sha = hashlib.sha256()\n"
        "for n in IMAGE_CORRUPTIONS: sha.update(corrupt(p, n, 4, 1, 'a').tobytes())\n"
        "for n in TEXT_CORRUPTIONS: sha.update(corrupt_text(t, n, 7, 1, 'a').encode())\n"
        "print(sha.hexdigest())"
    )
    here = io.StringIO()
    exec(code, {"print": lambda text: here.write(text)})
    for salt in ("1", "2"):
        environment = {"PYTHONHASHSEED": salt, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        assert done.stdout.strip() == here.getvalue(), done.stderr
    assert len(here.getvalue()) == len(hashlib.sha256().hexdigest())


@pytest.mark.parametrize("name", [n for n in NAMES if n not in NOT_MONOTONE | {"fog"}])
@pytest.mark.parametrize("side", [112, 224])
def test_severity_raises_mean_distortion(name: str, side: int) -> None:
    # Motion draws an angle; blocks of pixelate may happen to match the shapes of one place.
    places = {"motion_blur": 4, "pixelate": 16}.get(name, 1)
    moved = [np.roll(scene(side), (7 * i, 5 * i), (0, 1)) for i in range(places)]
    errors = [
        np.mean(
            [np.abs(corrupt(p, name, severity, 0, i).astype(float) - p).mean() for i, p in enumerate(moved)]
        )
        for severity in SEVERITIES
    ]
    assert all(low < high for low, high in itertools.pairwise(errors)), errors


def test_fog_grows_and_gets_rougher() -> None:
    errors = [mean_distortion("fog", severity, scene(32), 150) for severity in SEVERITIES]
    # Severities 3 and 4 have the same strength: only the decay falls.
    assert errors[0] < errors[1] < min(errors[2:4]) and max(errors[2:4]) < errors[4], errors
    white = np.full((48, 48, 3), 255, np.uint8)
    steps = [
        np.mean(
            [np.abs(np.diff(corrupt(white, "fog", s, 0, i)[..., 0].astype(float))).mean() for i in range(20)]
        )
        for s in SEVERITIES
    ]
    assert steps[1] < steps[2] < steps[3] < steps[4]


@pytest.mark.parametrize("name", sorted(NOT_MONOTONE))
def test_the_other_three_follow_their_constants(name: str) -> None:
    constants = np.array(IMAGE_CORRUPTIONS[name].constants)
    if name == "elastic":  # two large affine maps, then small waves that grow
        assert (constants[2:, 0] == [0.05, 0.07, 0.12]).all() and (constants[:2, 2] == [0.1, 0.2]).all()
    else:  # less and less of the picture is left
        shares = constants[:, -1 if name == "snow" else 0]
        assert (np.diff(shares) <= 0).all() and shares[-1] < shares[0]
        assert mean_distortion(name, 5, scene(), 6) > 0.5 * mean_distortion(name, 1, scene(), 6) > 5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 2), (9, 120), (33, 32)])
def test_any_size_works(name: str, shape: tuple[int, int]) -> None:
    grey = np.repeat(speckled(*shape)[..., :1], 3, axis=2)
    for picture in (speckled(*shape), grey, np.zeros((*shape, 3), np.uint8)):
        for severity in (1, 5):
            out = corrupt(picture, name, severity, 0, "a")
            assert out.shape == picture.shape and out.dtype == np.uint8


@pytest.mark.parametrize("name", NAMES)
def test_wrong_input_says_what_is_valid(name: str) -> None:
    picture = speckled(8, 8)
    for severity in (0, 6, -1, 2.0, "3", True, None):
        with pytest.raises(ConfigError, match="1, 2, 3, 4, 5"):
            corrupt(picture, name, severity, 0, "a")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="correct or mmr"):
        corrupt(picture, name, 1, 0, "a", "other")  # type: ignore[arg-type]
    for wrong in (picture[..., :2], picture[..., 0], picture.astype(np.float32), picture[:0]):
        with pytest.raises(ConfigError, match=r"uint8 \[H, W, 3\]"):
            corrupt(wrong, name, 1, 0, "a")
    with pytest.raises(ConfigError, match=r"sunshine.*gaussian_noise.*jpeg"):
        corrupt(picture, "sunshine", 1, 0, "a")
    assert (corrupt(picture, name, np.int64(2), 0, "a") == corrupt(picture, name, 2, 0, "a")).all()


# Noise


@pytest.mark.parametrize("severity", SEVERITIES)
def test_noise_has_its_moments(severity: int) -> None:
    grey = np.full((90, 90, 3), 120, np.uint8)

    def of(name: str) -> np.ndarray:  # type: ignore[type-arg]
        return corrupt(grey, name, severity, 0, "a").astype(float) / 255

    clipped = np.clip(120 / 255 + np.random.default_rng(1).normal(size=100_000)[:, None] * [
        [0.08, 0.12, 0.18, 0.26, 0.38][severity - 1],
        120 / 255 * [0.15, 0.2, 0.35, 0.45, 0.6][severity - 1],
    ], 0, 1)  # fmt: skip
    for column, name in enumerate(("gaussian_noise", "speckle_noise")):
        assert of(name).mean() == pytest.approx(clipped[:, column].mean(), abs=0.01)
        assert of(name).std() == pytest.approx(clipped[:, column].std(), rel=0.03)
    count = [60, 25, 12, 5, 3][severity - 1]
    counts = np.arange(60)
    log = counts * math.log(120 / 255 * count) - 120 / 255 * count - [math.lgamma(k + 1) for k in counts]
    mean = (np.exp(log) * np.minimum(counts / count, 1)).sum()
    assert of("shot_noise").mean() == pytest.approx(mean, abs=0.01)
    share = [0.03, 0.06, 0.09, 0.17, 0.27][severity - 1]
    assert (of("impulse_noise") != 120 / 255).mean() == pytest.approx(share, abs=0.01)


def test_multiplied_noises_leave_black_black() -> None:
    black = np.zeros((12, 12, 3), np.uint8)
    assert not corrupt(black, "speckle_noise", 5, 0, "a").any()
    assert not corrupt(black, "shot_noise", 5, 0, "a").any()


# Blur


def test_glass_is_the_published_walk_at_full_scale() -> None:
    picture, (deviation, delta, iterations) = scene(224), (0.9, 2, 2)
    twin, chance = draw(), draw()
    out = blur.glass_blur(picture, chance, deviation, delta, iterations)
    soft = blur._soft(picture, deviation).copy()
    for _ in range(iterations):
        rows = [(h, w) for h in range(224 - delta, delta, -1) for w in range(224 - delta, delta, -1)]
        offsets = twin.integers(-delta, delta, (2, len(rows)))
        twin.random((2, len(rows)))
        for (h, w), dy, dx in zip(rows, *offsets.tolist()):
            soft[h, w], soft[h + dy, w + dx] = soft[h + dy, w + dx].copy(), soft[h, w].copy()
    assert (out == blur._soft(soft, deviation)).all()


def test_glass_keeps_every_pixel_and_moves_it_near() -> None:
    picture = np.zeros((56, 56, 3), np.uint8)
    picture[..., 0], picture[..., 1] = np.mgrid[0:56, 0:56]
    out = blur.glass_blur(picture, draw(), 1e-3, 4, 2)  # so small a Gaussian changes nothing
    assert sorted(map(tuple, out.reshape(-1, 3).tolist())) == sorted(
        map(tuple, picture.reshape(-1, 3).tolist())
    )
    moved = np.abs(out.astype(int) - picture)[..., :2]
    assert 0 < np.median(moved.max(axis=2)) <= 2  # 4 px of 224 are one of 56


def test_glass_offsets_keep_their_mean_square() -> None:
    lengths = np.repeat([-2.0, -1.3, -0.4, 0.0, 0.25, 1.0, 2.7], 40_000)
    rounded = blur._rounded(lengths, np.random.default_rng(0).random(lengths.size)).reshape(7, -1)
    assert (np.abs(rounded.T - lengths.reshape(7, -1).T) < 1).all()
    assert (rounded**2).mean(1) == pytest.approx(lengths.reshape(7, -1)[:, 0] ** 2, abs=0.03)
    assert (rounded[[0, 3, 5]] == [[-2], [0], [1]]).all()


def test_published_glass_copies_one_row_only() -> None:
    picture, delta = speckled(300, 280), 3
    soft, chance = blur._soft(picture, 1.1).copy(), draw()
    height, width, rows = 300, 280, set()
    for _ in range(2):
        for h in range(min(height, 224) - delta, delta, -1):
            height = h  # its loops run over the very variables that bound them
            for w in range(min(width, 224) - delta, delta, -1):
                width = w
                dx, dy = chance.integers(-delta, delta, 2)
                soft[h, w] = soft[h + dy, w + dx]
                rows.add(h)
    assert rows == {221}
    out = IMAGE_CORRUPTIONS["glass_blur"].apply(picture, 4, draw(), "mmr")
    assert (out == blur._soft(soft, 1.1)).all()
    mild = np.abs(out.astype(int) - blur._soft(blur._soft(picture, 1.1), 1.1)).mean()
    assert 0 < mild < 0.5


def test_blurs_keep_flat_pictures_and_the_light_of_a_dot() -> None:
    flat = np.full((40, 50, 3), 77, np.uint8)
    dot = np.zeros((81, 81, 3), np.uint8)
    dot[38:43, 38:43] = 250
    for name in ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"):
        for severity in SEVERITIES:
            assert (corrupt(flat, name, severity, 0, "a") == 77).all()
            # A zoom of z shows an object z² times as large; the others move light about.
            least, most = (1.0, 1.4) if name == "zoom_blur" else (0.9, 1.1)
            light = corrupt(dot, name, severity, 0, "a").sum() / dot.sum()
            assert least <= light <= most, (name, severity, light)


def test_motion_smears_along_its_angle() -> None:
    dot = np.zeros((224, 224, 3), np.uint8)
    dot[110:114, 110:114] = 255
    for sample in range(4):
        angle = math.radians(draw(sample).uniform(-45, 45))
        out = blur.motion_blur(dot, draw(sample), 20, 15)[..., 0].astype(float)
        y, x = np.mgrid[0:224, 0:224] - 111.5
        spread = np.cov(np.stack([x.ravel(), y.ravel()]), aweights=out.ravel())
        direction = np.linalg.eigh(spread)[1][:, 1]
        assert abs(math.atan(direction[1] / direction[0]) - angle) < 0.05
        # Half a Gaussian: the light moves ahead by its mean, about .8 sigma.
        ahead = (out * (x * math.cos(angle) + y * math.sin(angle))).sum() / out.sum()
        assert ahead == pytest.approx(15 * math.sqrt(2 / math.pi), rel=0.1)


def test_zoom_blur_is_a_mean_of_zoomed_centres() -> None:
    picture, zooms = speckled(12, 12), np.arange(1, 1.21, 0.02)
    total = picture.astype(float)
    for zoom in zooms:
        for row in range(12):
            for column in range(12):
                y, x = (row + 0.5 - 6) / zoom + 6 - 0.5, (column + 0.5 - 6) / zoom + 6 - 0.5
                top, left = math.floor(y), math.floor(x)
                for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
                    share = (1 - abs(y - top - dy)) * (1 - abs(x - left - dx))
                    total[row, column] += (
                        share * picture[min(max(top + dy, 0), 11), min(max(left + dx, 0), 11)]
                    )
    out = corrupt(picture, "zoom_blur", 3, 0, "a")
    assert np.abs(out - total / (len(zooms) + 1)).max() < 2  # Pillow rounds each zoom to bytes


# Weather


def test_plasma_equals_a_plain_diamond_square() -> None:
    side, decay, chance = 8, 1.7, draw()
    field, step, wobble = np.zeros((side, side)), side, 100.0

    def wobbles(cells: int) -> np.ndarray:  # type: ignore[type-arg]
        drawn = chance.random((cells, cells), dtype=np.float32).astype(float)
        return wobble * wobble * (2 * drawn - 1)

    while step >= 2:
        half, cells = step // 2, side // step
        for to_y, to_x, around in (
            (half, half, [(-half, -half), (-half, half), (half, -half), (half, half)]),
            (0, half, [(-half, 0), (half, 0), (0, -half), (0, half)]),
            (half, 0, [(-half, 0), (half, 0), (0, -half), (0, half)]),
        ):
            drawn, old = wobbles(cells), field.copy()
            for i in range(cells):
                for j in range(cells):
                    y, x = to_y + i * step, to_x + j * step
                    near = [old[(y + dy) % side, (x + dx) % side] for dy, dx in around]
                    field[y, x] = sum(near) / 4 + drawn[i, j]
        step, wobble = half, wobble / decay
    field = (field - field.min()) / (field.max() - field.min())
    assert plasma(side, decay, draw()) == pytest.approx(field, abs=1e-4)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_fog_is_its_formula(severity: int) -> None:
    strength = [1.5, 2, 2.5, 2.5, 3][severity - 1]
    decay = [2, 2, 1.7, 1.5, 1.4][severity - 1]
    picture = scene(80)
    p = plasma(128, decay, generator(0, "a", "fog", severity))[:80, :80, None].astype(float)
    x = picture / 255.0
    expected = np.clip((x + strength * p) * x.max() / (x.max() + strength), 0, 1) * 255
    assert np.abs(corrupt(picture, "fog", severity, 0, "a") - expected).max() <= 1
    assert not corrupt(np.zeros_like(picture), "fog", severity, 0, "a").any()


@pytest.mark.parametrize("severity", SEVERITIES)
def test_snow_whitens_and_adds_flakes_both_ways(severity: int) -> None:
    mix = [0.8, 0.7, 0.7, 0.65, 0.55][severity - 1]
    black, white = np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 255, np.uint8)
    out = corrupt(black, "snow", severity, 0, "a").astype(int)
    assert out.min() >= round(255 * (1 - mix) * 0.5)
    assert out.max() > out.min() + 20
    assert np.abs(out - out[::-1, ::-1]).max() <= 1
    assert (corrupt(white, "snow", severity, 0, "a") == 255).all()
    # Without flakes only the whitening is left: grey = .299 R + .587 G + .114 B.
    picture = scene(30)
    dry = weather.snow(picture, draw(), 0.0, 0.01, 3, 0.5, 10, 4, mix)
    x = picture / 255.0
    grey = (0.299 * x[..., 0] + 0.587 * x[..., 1] + 0.114 * x[..., 2])[..., None]
    expected = np.clip(mix * x + (1 - mix) * np.maximum(x, grey * 1.5 + 0.5), 0, 1) * 255
    assert np.abs(dry - expected).max() <= 1


def test_frost_is_a_weighted_sum_with_an_icy_texture() -> None:
    picture = scene(112)
    texture = frost_texture(112, 112, generator(0, "a", "frost", 4)).astype(float)
    expected = np.clip(0.65 * picture + 0.7 * 255 * texture, 0, 255)
    assert np.abs(corrupt(picture, "frost", 4, 0, "a") - expected).max() <= 1
    assert texture.min() >= 0 and texture.max() <= 1 and texture.std() > 0.1
    red, green, blue = texture.mean((0, 1))
    assert red < green < blue
    assert (frost_texture(64, 64, draw(1)) != frost_texture(64, 64, draw(2))).any()


# Digital


@pytest.mark.parametrize("severity", SEVERITIES)
def test_brightness_adds_to_the_value_of_hsv(severity: int) -> None:
    picture = speckled(5, 6)
    picture[0, 0] = 0
    out = corrupt(picture, "brightness", severity, 0, "a")
    for place in np.ndindex(5, 6):
        hue, saturation, value = colorsys.rgb_to_hsv(*(picture[place] / 255.0))
        expected = colorsys.hsv_to_rgb(hue, saturation, min(1.0, value + severity / 10))
        assert np.abs(out[place] - 255 * np.array(expected)).max() <= 0.51


def test_contrast_and_jpeg_are_their_formulas() -> None:
    picture = scene(48)
    for severity, factor, quality in zip(SEVERITIES, (0.4, 0.3, 0.2, 0.1, 0.05), (25, 18, 15, 10, 7)):
        mean = picture.reshape(-1, 3).astype(float).mean(0)
        expected = mean + factor * (picture - mean)
        assert np.abs(corrupt(picture, "contrast", severity, 0, "a") - expected).max() <= 0.51
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
        assert (corrupt(picture, "jpeg", severity, 0, "a") == np.asarray(Image.open(buffer))).all()


@pytest.mark.parametrize(("severity", "block"), [(2, 2), (5, 4)])
def test_pixelate_averages_blocks_of_the_pictures_own_size(severity: int, block: int) -> None:
    picture = speckled(16, 24)
    out = corrupt(picture, "pixelate", severity, 0, "a")
    for y in range(0, 16, block):
        for x in range(0, 24, block):
            mean = picture[y : y + block, x : x + block].reshape(-1, 3).astype(float).mean(0)
            assert np.abs(out[y : y + block, x : x + block] - mean).max() <= 1


def test_published_pixelate_ignores_the_size_and_turns_the_sides() -> None:
    small = speckled(50, 40)
    out = IMAGE_CORRUPTIONS["pixelate"].apply(small, 5, draw(), "mmr")
    assert out.shape == (40, 50, 3)
    square = scene(56)  # 224 * .25: nothing is lost
    assert (IMAGE_CORRUPTIONS["pixelate"].apply(square, 5, draw(), "mmr") == square).all()
    assert (corrupt(square, "pixelate", 5, 0, "a") != square).any()


def test_elastic_with_nothing_to_do_changes_nothing() -> None:
    picture = speckled(20, 26)
    assert (digital.elastic(picture, draw(), 0.0, 0.01, 0.0) == picture).all()


def test_elastic_samples_a_mirrored_picture_bilinearly() -> None:
    picture = speckled(6, 5)
    places = np.random.default_rng(0).uniform(-14, 17, (6, 5, 2)).astype(np.float32)
    out = digital._sampled(picture, places)
    for row in range(6):
        for column in range(5):
            x, y = map(float, places[row, column])
            value = np.zeros(3)
            for dy in (0, 1):
                for dx in (0, 1):
                    i, j = math.floor(y) + dy, math.floor(x) + dx
                    share = (1 - abs(y - i)) * (1 - abs(x - j))
                    i, j = i % 12, j % 10  # a mirrored axis repeats after twice its length
                    value += share * picture[i if i < 6 else 11 - i, j if j < 5 else 9 - j]
            assert np.abs(out[row, column] - value).max() <= 0.52


@pytest.mark.parametrize("side", [112, 224])
def test_elastic_waves_are_the_same_share_of_any_picture(side: int) -> None:
    # The picture shows its own coordinates, so that the result shows where each pixel came from.
    y, x = np.mgrid[0:side, 0:side]
    picture = np.stack([x, y, x], -1).astype(np.uint8)
    moves = []
    for sample in range(4):
        out = digital.elastic(picture, draw(sample), 0.12, 0.01, 0.0).astype(float)
        moves.append((out - picture)[8:-8, 8:-8, :2].std() / side)
    # Smoothing by sigma lowers the deviation of uniform noise, 1/sqrt(3), by 2 sqrt(pi) sigma.
    expected = 0.12 * 244 / (math.sqrt(3) * 2 * math.sqrt(math.pi) * 2.44) / 224
    assert np.mean(moves) == pytest.approx(expected, rel=0.15)
