"""`qshift control`: what is typed becomes a command, and what is none is said before anything is sent."""

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from core.errors import ConfigError
from qshift.cli import app
from qshift.demo.control import written


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


def test_help_has_an_example_of_each_action() -> None:
    said = CliRunner().invoke(app, ["control", "--help"], terminal_width=200).output
    for example in ("freeze", "unfreeze", "rollback 2", "rollback 3fa9c01b", "method tent", "w 0.5"):
        assert f"control {example}" in said
