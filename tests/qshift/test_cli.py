"""The command line: help with examples, one clear line for errors, strict configuration."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from toy_world import QUERIES, small_world
from typer.testing import CliRunner

from core.config import Config, load
from core.errors import ConfigError
from qshift.cli import app, main
from qshift.commands.replay_options import COUNT, EVERYWHERE, OWN, RUNS, SCHEDULE, SUITE, TOPIC, run_of
from qshift.methods import EXTRAS, known

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
        [sys.executable, "-m", "qshift.cli", *arguments],
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


# -- qshift replay: four runs, each with its options ----------------------------------------------------


def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What `qshift replay` says on standard error; one line, exit status 2, nothing on standard output."""
    monkeypatch.setattr(sys, "argv", ["qshift", "replay", *arguments])
    monkeypatch.delenv("QSHIFT_BOOTSTRAP_SERVERS", raising=False)
    with pytest.raises(SystemExit) as stopped:
        main()
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1, err
    return err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--suite core --topic t", "--suite and --topic are different runs: name one of them"),
        ("--suite core --queries {here}", "--suite and --queries PATH are different runs"),
        ("--topic t --queries {here}", "--topic and --queries PATH are different runs"),
        ("--suite core --queries 640", "--queries N does not go with --suite: it is for the demo's schedule"),
        ("--topic t --queries 640", "--queries N does not go with --topic: it is for the demo's schedule"),
        ("--suite core --order demo", "--order does not go with --suite: it is for the demo's schedule"),
        ("--queries {here} --order demo", "--order does not go with --queries PATH"),
        ("--queries {here} --from 3", "--from does not go with --queries PATH: it is for --topic"),
        ("--topic t --seed 0", "--seed does not go with --topic"),
        ("--quick", "--quick does not go with the demo's schedule: it is for --suite"),
        ("--partition 0", "--partition does not go with the demo's schedule: it is for --topic"),
        ("--base b", "--base does not go with the demo's schedule: it is for --queries PATH and --topic"),
        ("--queries 63", "at least 64 a phase, or a path, got 63"),
        ("--queries -5", "got -5"),
        ("--queries {here}/gone.jsonl", "no folder or file"),
        ("--queries {here}/[/bold]", "[/bold]"),
        ("--queries {long}", "no folder or file"),
        ("--queries {here}", "needs --base and --gallery or a --config: `qshift fit` trains"),
        ("--queries {here} --base {here}", "needs --gallery or"),
        ("--queries {here} --gallery {here}", "`qshift gallery build`"),
        ("--queries {here} --base {here}/b --gallery {here}", "`qshift fit DATA --base {here}/b`"),
        ("--queries {here} --base {here} --gallery {here}/g", "--base {here} --out {here}/g`"),
        ("--queries {here} --base {here} --gallery {here}", "manifest.json is missing"),
        ("--queries {here} --base {here} --gallery {here} --method magic", "method 'magic' is not known"),
        ("--queries {here} --base {here} --gallery {here} --methods frozen,rest+magic", "'rest+magic'"),
        ("--queries {here} --config {here}/gone.toml", "cannot read the configuration"),
        ("--queries {here} --json {here}/gone/rows.json", "there is no folder {here}/gone"),
        ("--json {here}", "it is a folder"),
        ("--suite core --html {here}/gone/report.html", "there is no folder"),
        ("--journal {here}/gone.jsonl", "no file {here}/gone.jsonl"),
        ("--topic t", "no Kafka named"),
        ("--topic t --config {kafka} --base {here}/b", "no base model in {here}/b"),
        (
            "--topic t --config {kafka} --base {here} --gallery {here} --from soon --to later",
            "'soon' is no place",
        ),
        ("--topic t --config {kafka} --base {here} --gallery {here} --to 10:00pm", "'10:00pm' is no place"),
        ("--topic= --config {kafka} --base {here} --gallery {here}", "expected the name of a topic"),
        ("--topic t --config {kafka} --base {here} --gallery {here} --method magic", "'magic' is not known"),
        ("--methods frozen,magic", "method 'magic' is not known"),
    ],
)
def test_what_replay_refuses(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    words: str,
) -> None:
    kafka = tmp_path / "kafka.toml"
    kafka.write_text("[kafka]\nbootstrap_servers = '127.0.0.1:1'\n")
    places = {"here": str(tmp_path), "kafka": str(kafka), "long": "n" * 5000}
    said = refusal(monkeypatch, capsys, *(part.format(**places) for part in arguments.split()))
    assert words.format(**places) in said


def test_every_option_of_replay_belongs_to_a_run() -> None:
    command = typer.main.get_command(app).commands["replay"]  # type: ignore[attr-defined]
    flags = {parameter.opts[0] for parameter in command.params} - {"--queries", "--help"}
    placed = EVERYWHERE.union(*RUNS.values()) - {OWN, COUNT}
    assert flags == placed


def test_runs_are_told_apart() -> None:
    assert run_of([], "640") == SCHEDULE == run_of(["--queries", "--order", "--json"], "64")
    assert run_of(["--queries", "--base"], "./640") == OWN == run_of(["--queries"], "")
    assert run_of(["--topic", "--from", "--gallery"], "640") == TOPIC
    assert run_of(["--suite", "--data", "--methods"], "640") == SUITE


def test_methods_in_the_help_are_known() -> None:
    command = typer.main.get_command(app).commands["replay"]  # type: ignore[attr-defined]
    (text,) = [parameter.help for parameter in command.params if parameter.opts[0] == "--method"]
    listed, _, rest = text.partition(", ...")
    assert all(known(name) for name in listed.split(", ")) and len(listed.split(", ")) > 5
    assert all(f"+{extra} " in rest for extra in EXTRAS)


def test_own_queries_from_the_command_line(tmp_path: Path) -> None:
    small_world(tmp_path)
    config = tmp_path / "q.toml"
    config.write_text("seed = 5\n[batch]\nsize = 16\nfloor = 8\n")
    rows = tmp_path / "rows.json"
    arguments = ["replay", "--queries", str(tmp_path / "queries.jsonl"), "--config", str(config)]
    parts = ["--base", str(tmp_path / "base"), "--gallery", str(tmp_path / "gallery")]
    names = ["--methods", "centring, frozen", "--method", "rest", "--method", "centring"]
    result = CliRunner().invoke(app, [*arguments, *parts, *names, "--json", str(rows)])
    assert result.exit_code == 0, result.output
    found = json.loads(rows.read_text())
    assert [row["method"] for row in found] == ["frozen", "centring", "rest"]
    assert {(row["queries"], row["labels"], row["seed"]) for row in found} == {(QUERIES, QUERIES, 5)}
    assert "queries.jsonl" in result.output and "mAP" in result.output
    # The configuration may name base and gallery, and without names frozen meets default.
    config.write_text(
        f"base = {str(tmp_path / 'base')!r}\ngallery = {str(tmp_path / 'gallery')!r}\n" + config.read_text()
    )
    result = CliRunner().invoke(app, [*arguments, "--json", str(rows)])
    assert result.exit_code == 0, result.output
    assert [row["method"] for row in json.loads(rows.read_text())] == ["frozen", "default"]
