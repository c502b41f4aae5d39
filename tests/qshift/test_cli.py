"""The command line: help with examples, one clear line for errors, strict configuration."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from toy_world import QUERIES, small_world
from typer.testing import CliRunner

from core.checkpoints import JournalEntry
from core.config import Config
from core.config_file import load
from core.errors import ConfigError
from qshift.benchmarks.suites import SUITES
from qshift.cli import app, main
from qshift.commands.bench import bench
from qshift.methods import EXTRAS, known
from stream.states import entry_to_bytes

COMMANDS = [
    "demo", "serve", "replay demo", "replay queries", "replay topic", "bench", "fit", "evaluate", "produce",
    "labels", "profile", "gallery build", "gallery add", "gallery remove",
    "gallery info", "gallery export", "gallery follow", "broker up",
]  # fmt: skip


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
        (("replay", "demo", "--method", "magic"), "magic"),
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
    assert (
        Config.model_validate({"adapt": {"method": "rest", "anchor": 0.5}}).decision_hash()
        != plain.decision_hash()
    )
    assert Config.model_validate({"adapt": {"method": "rest"}}).decision_hash() != plain.decision_hash()
    assert Config.model_validate({"kafka": {"group": "other"}}).decision_hash() == plain.decision_hash()
    steered = Config.model_validate({"labels": {"steer": True}}).decisions()
    assert {name for name, part in plain.decisions().items() if steered[name] != part} == {"labels"}


# -- qshift replay and qshift bench -----------------------------------------------------------------------


def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What `qshift` says on standard error; one line, exit status 2, nothing on standard output."""
    monkeypatch.setattr(sys, "argv", ["qshift", *arguments])
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
        ("queries {here}/gone.jsonl", "no folder or file {here}/gone.jsonl"),
        ("queries {here}/[/bold]", "[/bold]"),
        ("queries {long}", "no folder or file"),
        ("queries {here}", "need --base and --gallery or a --config: `qshift fit` trains"),
        ("queries {here} --base {here}", "need --gallery or"),
        ("queries {here} --gallery {here}", "`qshift gallery build`"),
        ("queries {here} --base {here}/b --gallery {here}", "`qshift fit DATA --base {here}/b`"),
        ("queries {here} --base {here} --gallery {here}/g", "--base {here} --out {here}/g`"),
        ("queries {here} --base {here} --gallery {here}", "manifest.json is missing"),
        ("queries {here} --base {here} --gallery {here} --method magic", "method 'magic' is not known"),
        ("queries {here} --base {here} --gallery {here} --method frozen,rest+magic", "'rest+magic'"),
        ("queries {here} --config {here}/gone.toml", "cannot read the configuration"),
        ("queries {here} --json {here}/gone/rows.json", "there is no folder {here}/gone"),
        ("queries {here} --journal {here}/gone.jsonl", "no file {here}/gone.jsonl"),
        ("queries {here} --batch 8", "no batch of --batch 8 reaches the floor of 16"),
        ("demo --json {here}", "it is a folder"),
        ("demo --journal {here}/gone.jsonl", "no file {here}/gone.jsonl"),
        ("demo --method frozen,magic", "method 'magic' is not known"),
        ("demo --batch 8", "reaches the floor"),
        ("topic t", "no Kafka named"),
        ("topic t --config {kafka} --base {here}/b", "no base model in {here}/b"),
        (
            "topic t --config {kafka} --base {here} --gallery {here} --from soon --to later",
            "'soon' is no place",
        ),
        ("topic t --config {kafka} --base {here} --gallery {here} --to 10:00pm", "'10:00pm' is no place"),
        ("topic {nothing} --config {kafka} --base {here} --gallery {here}", "expected the name of a topic"),
        ("topic t --config {kafka} --base {here} --gallery {here} --method magic", "'magic' is not known"),
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
    places = {"here": str(tmp_path), "kafka": str(kafka), "long": "n" * 5000, "nothing": ""}
    parts = (part.format(**places) for part in arguments.split())
    said = refusal(monkeypatch, capsys, "replay", *parts)
    assert words.format(**places) in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("replay", "`qshift replay demo`"),
        ("replay --method rest", "`qshift replay queries PATH`"),
        ("replay --queries 128", "`qshift replay demo`"),
        ("replay --quick --suite core --methods frozen", "`qshift bench core`"),
        ("replay --suite=core", "`qshift bench core`"),
        ("replay --queries my.jsonl --base b", "`qshift replay queries my.jsonl`"),
        ("replay --topic t --from 3", "`qshift replay topic t`"),
        ("replay demo --methods rest", "--methods is now --method"),
        ("bench core --methods=rest", "--methods is now --method"),
    ],
)
def test_old_spellings_are_answered_with_the_new(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: str, words: str
) -> None:
    assert words in refusal(monkeypatch, capsys, *arguments.split())


def test_bench_names_every_suite() -> None:
    assert get_args(get_type_hints(bench)["suite"]) == tuple(SUITES)


def test_bench_checks_its_files_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = str(tmp_path / "gone" / "report.html")
    assert "there is no folder" in refusal(monkeypatch, capsys, "bench", "core", "--html", page)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--late soon", "--late 'soon' is no number of batches"),
        ("--late 1,0", "--late '0' is no number"),
        ("--late 1 --method tent,rest", "none of tent, rest answers from both twins"),
    ],
)
def test_what_bench_refuses_of_late_labels(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: str, words: str
) -> None:
    assert words in refusal(monkeypatch, capsys, "bench", "labels", *arguments.split())


def test_methods_in_the_help_are_known() -> None:
    text = get_args(get_type_hints(bench, include_extras=True)["method"])[1].help
    listed, _, rest = text.partition(", ...")
    assert all(known(name) for name in listed.split(", ")) and len(listed.split(", ")) > 5
    assert all(f"+{extra} " in rest for extra in EXTRAS)


def test_own_queries_from_the_command_line(tmp_path: Path) -> None:
    small_world(tmp_path)
    config = tmp_path / "q.toml"
    config.write_text("seed = 5\n[batch]\nsize = 16\nfloor = 8\n")
    rows = tmp_path / "rows.json"
    arguments = ["replay", "queries", str(tmp_path / "queries.jsonl"), "--config", str(config)]
    parts = ["--base", str(tmp_path / "base"), "--gallery", str(tmp_path / "gallery")]
    names = ["--method", "centring, frozen", "--method", "rest", "--method", "centring"]
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


def test_own_queries_in_other_batches(tmp_path: Path) -> None:
    small_world(tmp_path)
    rows = tmp_path / "rows.json"
    start = ["replay", "queries", str(tmp_path / "queries.jsonl"), "--json", str(rows)]
    start += ["--base", str(tmp_path / "base"), "--gallery", str(tmp_path / "gallery"), "--method", "rest"]

    def found(*more: str) -> bytes:
        result = CliRunner().invoke(app, [*start, *more])
        assert result.exit_code == 0, result.output
        return rows.read_bytes()

    whole = found()
    halves = [(0, 16), (16, QUERIES)]
    entries = [
        JournalEntry("qshift.queries", 0, "0:vector", n, tuple(range(a, b)), "", 0, 0)
        for n, (a, b) in enumerate(halves)
    ]
    journal = tmp_path / "journal.jsonl"
    journal.write_bytes(b"\n".join(map(entry_to_bytes, entries)))
    assert found("--batch", "16") == found("--journal", str(journal)) != whole
    (frozen, rest) = json.loads(found("--queries", "20"))
    assert (frozen["queries"], frozen["labels"], rest["queries"]) == (20, 20, 20)
    assert rest["map_adapted"] is not None and "milliseconds" not in rest
    times = json.loads(rows.with_suffix(".timings.json").read_text())
    assert [time["method"] for time in times] == ["frozen", "rest"]
    assert all(time["ms_per_query"] > 0 for time in times)
    gap = replace(entries[1], offsets=tuple(range(18, QUERIES)))
    journal.write_bytes(b"\n".join(map(entry_to_bytes, (entries[0], gap))))
    result = CliRunner().invoke(app, [*start, "--journal", str(journal)])
    assert "2 queries in no batch of the journal" in result.output
    other = JournalEntry("other.queries", 0, "0:vector", 0, (0,), "", 0, 0)
    journal.write_bytes(entry_to_bytes(other))
    result = CliRunner().invoke(app, [*start, "--journal", str(journal)])
    assert isinstance(result.exception, ConfigError) and "other.queries/0" in str(result.exception)
