"""The command line: help with examples, one clear line for errors, strict configuration."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli import app
from core.config import Config, load
from core.errors import ConfigError

COMMANDS = ["demo", "serve", "replay", "fit", "produce", "labels", "profile", "gallery build", "broker up"]


def quiet_environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("QSHIFT_")} | {"COLUMNS": "100"}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str) -> None:
    result = CliRunner().invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0
    assert "Example" in result.output and f"qshift {command}" in result.output


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app.cli", *arguments],
        capture_output=True, text=True, timeout=120, env=quiet_environment(), check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_errors_are_one_line_and_exit_with_2(tmp_path: Path) -> None:
    config = tmp_path / "bad.toml"
    config.write_text("[adapt]\nmetod = 'rest'\n")
    for arguments, expected in (
        (("serve", "--config", str(config)), "adapt.metod"),
        (("serve",), "broker up"),
        (("produce",), "bootstrap_servers"),
        (("replay", "--method", "magic"), "magic"),
    ):
        result = run(*arguments)
        assert result.returncode == 2, result.stderr
        assert "error" in result.stderr and expected in result.stderr
        assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[adapt]\nmetod = 'rest'", "adapt.metod"),
        ("[batch]\nsize = 0", "batch.size"),
        ("x = [", "not TOML"),
        ("[answer]\nfuse = 'product'", "answer.fuse"),
    ],
)
def test_configuration_is_strict(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "q.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=match):
        load(path)


def test_addresses_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QSHIFT_BOOTSTRAP_SERVERS", "somewhere:9092")
    assert load(None).kafka.bootstrap_servers == "somewhere:9092"


def test_what_decides_answers_is_in_the_hash_and_addresses_are_not() -> None:
    plain = Config()
    assert Config.model_validate({"adapt": {"anchor": 0.5}}).decision_hash() != plain.decision_hash()
    assert Config.model_validate({"kafka": {"group": "other"}}).decision_hash() == plain.decision_hash()
