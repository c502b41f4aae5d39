"""A student that follows a teacher: its loss against loops, the whole on coloured squares."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from core.errors import ArtifactError, ConfigError
from encoders.clip import open_clip_towers
from encoders.distil import DistilConfig, Taught, distance, distil_clip, relational
from encoders.scratch import ScratchConfig

WIDTH = 16
TINY = DistilConfig(
    ScratchConfig(
        image_size=16, patch=8, width=16, heads=2, image_layers=1, text_layers=1, embed=WIDTH, context=8,
        steps=8, batch=8, warm_up=2, rotation=0.05, scale=0.05, shift=0.05,
    )
)  # fmt: skip
WORDS = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "mu", "nu")


def unit(n: int, seed: int, width: int = WIDTH) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).standard_normal((n, width)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def squares(n: int) -> NDArray[np.uint8]:
    """uint8 [n, 16, 16, 3]: on white a block in one of four colours, at one of n / 4 heights."""
    colours = ((220, 30, 30), (20, 150, 40), (40, 60, 220), (0, 0, 0))
    found = np.full((n, 16, 16, 3), 255, np.uint8)
    for item in range(n):
        top = 1 + 3 * (item // 4)
        found[item, top : top + 4, 3:13] = colours[item % 4]
    return found


def taught(n: int, seed: int = 0) -> Taught:
    phrases = [list(WORDS[:n]), [f"the letter {word}" for word in WORDS[:n]]]
    return Taught(unit(n, seed), phrases, [unit(n, seed + 1), unit(n, seed + 2)])


def test_loss_equals_a_loop() -> None:
    student, teacher, bank, temperature = unit(3, 0, 4), unit(3, 1, 4), unit(5, 2, 4), 0.3

    def shares(row: NDArray[np.float32]) -> list[float]:
        powers = [
            math.exp(sum(float(a) * float(b) for a, b in zip(row, item)) / temperature) for item in bank
        ]
        return [power / sum(powers) for power in powers]

    apart = divergence = 0.0
    for ours, theirs in zip(student, teacher):
        apart += 1 - sum(float(a) * float(b) for a, b in zip(ours, theirs))
        divergence += sum(p * math.log(p / q) for p, q in zip(shares(theirs), shares(ours)))
    rows = [torch.from_numpy(values) for values in (student, teacher, bank)]
    assert float(distance(rows[0], rows[1])) == pytest.approx(apart / 3, abs=1e-6)
    assert float(relational(*rows, temperature)) == pytest.approx(divergence / 3, rel=1e-5)
    assert float(relational(rows[1], rows[1], rows[2], temperature)) == pytest.approx(0, abs=1e-7)


def test_the_student_stands_where_the_teacher_says(tmp_path: Path) -> None:
    """Features that no picture and no word suggests: only the teacher can have told them."""
    n, calls = 12, list[tuple[int, int, str]]()
    lesson = taught(n, 7)
    config = replace(TINY, student=replace(TINY.student, steps=180, batch=12, learning_rate=5e-3))
    before = torch.random.get_rng_state()
    losses = distil_clip(tmp_path, squares(n), lesson, config, 3, lambda *call: calls.append(call))
    assert (torch.random.get_rng_state() == before).all()
    assert [call[:2] for call in calls] == [(step + 1, 180) for step in range(180)]
    assert np.mean(losses[-5:]) < 0.1 * np.mean(losses[:5])
    towers = open_clip_towers(f"local-dir:{tmp_path}")
    assert towers.image.hook_points().layer_norm and towers.image.width == towers.text.width == WIDTH
    looks = [towers.image.prepare(picture) for picture in squares(n)]
    seen = towers.image.encode(towers.image.collate(looks, n)).numpy()
    assert ((seen @ lesson.images.T).argmax(1) == np.arange(n)).all()
    for phrasing, targets in zip(lesson.phrases, lesson.texts):
        words = [towers.text.prepare(text) for text in phrasing]
        read = towers.text.encode(towers.text.collate(words, n)).numpy()
        assert ((read @ targets.T).argmax(1) == np.arange(n)).mean() > 0.6  # chance is 1 in 12


def test_one_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for folder, seed in (("a", 3), ("b", 3), ("c", 4)):
        distil_clip(tmp_path / folder, squares(12), taught(12), TINY, seed)
    a, b, c = ((tmp_path / name / "open_clip_model.safetensors").read_bytes() for name in "abc")
    assert a == b != c


def test_the_relational_term_counts(tmp_path: Path) -> None:
    plain, whole = (
        distil_clip(tmp_path, squares(12), taught(12), replace(TINY, relation=weight), 3)
        for weight in (0.0, 1.0)
    )
    assert 0 < plain[0] < 4 and whole[0] > plain[0] + 0.1  # cosines lie between -1 and 1


@pytest.mark.parametrize(
    ("n", "lesson", "message"),
    [
        (1, taught(1), "at least two pictures"),
        (12, taught(11), r"of the pictures are \[11, 16\], expected \[12, 16\]"),
        (
            12,
            replace(taught(12), images=unit(12, 0, 8)),
            r"\[12, 8\], expected \[12, 16\]: .* as the student's",
        ),
        (12, replace(taught(12), texts=[unit(12, 0), unit(3, 0)]), r"of the texts are \[3, 16\]"),
        (12, replace(taught(12), texts=[unit(12, 0)]), "2 phrasings have 1 sets"),
        (12, replace(taught(12), phrases=[], texts=[]), "0 phrasings have 0 sets"),
        (12, replace(taught(12), phrases=[["a"] * 12, ["a"] * 5]), r"\[5, 12\] texts for 12 pictures"),
    ],
)
def test_what_cannot_be_taught_is_said(tmp_path: Path, n: int, lesson: Taught, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        distil_clip(tmp_path / "model", squares(n), lesson, TINY)
    assert not (tmp_path / "model").exists()


def test_settings_and_divergence(tmp_path: Path) -> None:
    for wrong in ({"temperature": 0.0}, {"relation": -1.0}):
        with pytest.raises(ConfigError, match="expected a temperature above 0"):
            replace(TINY, **wrong)
    config = replace(TINY, student=replace(TINY.student, learning_rate=math.inf))
    with pytest.raises(ArtifactError, match="lower the learning rate"):
        distil_clip(tmp_path / "m", squares(12), taught(12), config)
    assert not (tmp_path / "m").exists()
