"""The measuring script of PSCA on two small made-up domains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from adapters.offline.psca_config import PscaConfig
from app.psca_digits import load, main, mean_precision, scored
from core.errors import ArtifactError
from index.codes import pack


@pytest.fixture
def data(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    middle, y = 3 * draw.standard_normal((4, 10)), np.arange(80) % 4
    source, target = (middle[y] + draw.standard_normal((80, 10)) for _ in range(2))
    (tmp_path / "jda").mkdir()
    np.savez(tmp_path / "jda/mnist_usps_256.npz", mnist_x=source, mnist_y=y, usps_x=target + 1, usps_y=y)
    return tmp_path


def test_a_split_is_scored_and_repeats(data: Path) -> None:
    digits, config = load(data), PscaConfig(bits=8)
    one, again = (scored(digits, config, 3) for _ in range(2))
    assert (one.learned, one.hashed, one.by_membership) == (again.learned, again.hashed, again.by_membership)
    assert 80 < one.learned <= 100 + 1e-9 and 80 < one.hashed <= 100 + 1e-9 and one.named > 90


def test_mean_precision_by_hand() -> None:
    gallery = pack(np.array([[1.0] * 8, [1.0] * 7 + [-1.0], [-1.0] * 8]))
    relevant = np.array([[True, False, True], [False, False, False]])
    assert mean_precision(gallery[:2], gallery, relevant) == pytest.approx(100 * (1 + 2 / 3) / 2)


def test_the_table_is_printed(data: Path) -> None:
    app = typer.Typer()
    app.command()(main)
    shown = CliRunner().invoke(app, ["--data", str(data), "--bits", "8", "--bits", "16", "--splits", "2"])
    assert shown.exit_code == 0, shown.output
    assert "2 splits" in shown.output


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="give another one with --data"):
        load(tmp_path)
