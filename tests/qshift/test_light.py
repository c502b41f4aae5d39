"""What needs no model loads none: help and mistakes answer at once."""

import json
import subprocess
import sys
from dataclasses import dataclass

import pytest

HEAVY = ("torch", "numpy", "faiss", "scipy", "kafka")
PROBE = f"""
import json, os, sys, qshift.cli
ended = []
for number, arguments in enumerate(json.loads(sys.argv[1])):
    child = os.fork()
    if not child:
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{{number}}.{{name}}", os.O_WRONLY | os.O_CREAT), stream)
        sys.argv = ["qshift", *arguments]
        try:
            qshift.cli.main()
        finally:
            print("loaded:", *(name for name in {HEAVY!r} if name in sys.modules), file=sys.stderr)
        sys.exit(0)
    ended.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(ended))
"""
"""Each command in a process of its own; what all of them import is imported once."""
COMMANDS = [
    ("--help", 0, "replay"),
    ("replay --help", 0, "topic"),
    ("replay demo --help", 0, "--method"),
    ("bench --help", 0, "core"),
    ("--nope", 2, "--nope"),
    ("replya", 2, "replya"),
    ("replay demo --nope", 2, "--nope"),
    ("serve --config {bad}", 2, "adapt.metod"),
    ("replay demo --config {bad}", 2, "adapt.metod"),
    ("replay queries x.jsonl --config {bad}", 2, "adapt.metod"),
    ("replay topic t --config {bad}", 2, "adapt.metod"),
    ("bench core --config {bad}", 2, "adapt.metod"),
    ("produce --config {bad}", 2, "adapt.metod"),
    ("labels x.jsonl --config {bad}", 2, "adapt.metod"),
    ("gallery follow --config {bad}", 2, "adapt.metod"),
    ("gallery add --help", 0, "--replace"),
    ("replay demo --method magic", 2, "'magic' is not known"),
    ("bench core --method magic", 2, "magic"),
]


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Done]:
    """What each of COMMANDS has said."""
    folder = tmp_path_factory.mktemp("light")
    bad = folder / "bad.toml"
    bad.write_text("[adapt]\nmetod = 'rest'\n")
    asked = [arguments for arguments, _, _ in COMMANDS]
    given = json.dumps([[part.format(bad=bad) for part in one.split()] for one in asked])
    found = subprocess.run(
        [sys.executable, "-c", PROBE, given], cwd=folder,
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return {
        one: Done(status, *((folder / f"{number}.{name}").read_text() for name in ("out", "err")))
        for number, (one, status) in enumerate(zip(asked, json.loads(found.stdout), strict=True))
    }


@pytest.mark.parametrize(("arguments", "status", "words"), COMMANDS)
def test_nothing_heavy_is_loaded(done: dict[str, Done], arguments: str, status: int, words: str) -> None:
    found = done[arguments]
    assert found.status == status and words in found.out + found.err
    assert "Traceback" not in found.err
    assert found.err.splitlines()[-1].strip() == "loaded:"
