"""`qshift control`: what is typed becomes a command, and what is none is said before anything is sent."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from toy_vectors import write_vectors
from typer.testing import CliRunner

from core.errors import ArtifactError, ConfigError
from qshift.cli import app
from qshift.demo.control import control, written


@pytest.mark.parametrize(
    ("action", "value", "said"),
    [
        ("freeze", None, {}),
        ("rollback", None, {}),
        ("rollback", "2", {"steps": 2}),
        ("rollback", "12345678", {"state": "12345678"}),
        ("method", "tent", {"method": "tent"}),
        ("w", "0.5", {"weight": 0.5}),
        ("w", "free", {"weight": None}),
        ("swap-gallery", "newest", {"gallery": ""}),
        ("swap-gallery", "abc-1", {"gallery": "abc-1"}),
    ],
)
def test_what_is_typed_becomes_a_command(action: Any, value: str | None, said: dict[str, object]) -> None:
    document = json.loads(written(action, value, "0:text", "", "", "ann"))
    head = {"schema_version": 1, "action": action, "author": "ann", "lane": "0:text"}
    assert document == head | said


@pytest.mark.parametrize(
    ("action", "value", "tenant", "why"),
    [
        ("freeze", "now", "", "takes no argument"),
        ("method", None, "", "method what"),
        ("rollback", "XY", "", "expected how many"),
        ("rollback", "0", "", "steps"),
        ("w", "much", "", "expected a number"),
        ("w", "-1", "", "weight"),
        ("w", "nan", "", "weight"),
        ("freeze", None, "acme", "name one of them"),
    ],
)
def test_what_is_no_command_is_said(action: Any, value: str | None, tenant: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        written(action, value, "0:text", tenant, "", "ann")


@pytest.mark.parametrize(
    ("value", "lane", "why"),
    [
        ("no/such/folder", "", "no gallery in no/such/folder|no/such/folder"),
        (".", "0:text", "for all lanes"),
    ],
)
def test_a_gallery_that_cannot_be_put_in_place_sends_nothing(
    tmp_path: Path, value: str, lane: str, why: str
) -> None:
    """There is no Kafka at the address: what is refused, is refused before it is asked."""
    write_vectors(tmp_path)
    file = tmp_path / "qshift.toml"
    file.write_text(f'gallery = "{tmp_path / "gallery"}"\n[kafka]\nbootstrap_servers = "127.0.0.1:1"\n')
    before = (tmp_path / "gallery" / "manifest.json").read_bytes()
    with pytest.raises((ArtifactError, ConfigError), match=why):
        control("swap-gallery", value, lane, "", "", "ann", 1.0, file, Console())
    assert (tmp_path / "gallery" / "manifest.json").read_bytes() == before


def test_help_has_an_example_of_each_action() -> None:
    said = CliRunner().invoke(app, ["control", "--help"], terminal_width=200).output
    for example in ("freeze", "unfreeze", "rollback 2", "rollback 3fa9c01b", "method tent", "w 0.5"):
        assert f"control {example}" in said
