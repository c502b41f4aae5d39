"""What needs no model loads none: help and mistakes answer at once."""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "numpy", "faiss", "scipy", "kafka")
PROBE = f"""
import sys, qshift.cli
sys.argv = ["qshift", *sys.argv[1:]]
try:
    qshift.cli.main()
finally:
    print("loaded:", *(name for name in {HEAVY!r} if name in sys.modules), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
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
        ("replay demo --method magic", 2, "'magic' is not known"),
        ("bench core --method magic", 2, "magic"),
    ],
)
def test_nothing_heavy_is_loaded(tmp_path: Path, arguments: str, status: int, words: str) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text("[adapt]\nmetod = 'rest'\n")
    found = subprocess.run(
        [sys.executable, "-c", PROBE, *(part.format(bad=bad) for part in arguments.split())],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert found.returncode == status and words in found.stdout + found.stderr
    assert "Traceback" not in found.stderr
    assert found.stderr.splitlines()[-1].strip() == "loaded:"
