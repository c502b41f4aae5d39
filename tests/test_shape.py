"""The house stays one that can be read: sizes of modules and functions, and no circles inside `qshift`."""

from __future__ import annotations

import ast
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
PACKAGES = ("core", "stream", "adapters", "encoders", "index", "monitoring", "qshift", "deploy", "examples")
MODULES = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
ONE_BATCH = ("core/types.py", "core/protocols.py", "stream/runner.py", "stream/pipeline.py")
ARROWS = 48
"""Half of those that there were between the 38 rooms of the composition root before it was a package."""


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def test_one_batch_is_explained_by_900_lines() -> None:
    assert sum(lines(ROOT / name) for name in ONE_BATCH) <= 900


def test_modules_are_short() -> None:
    assert [named(path) for path in MODULES if lines(path) > 350] == []


def test_functions_are_short() -> None:
    long = []
    for path in MODULES:
        if path.relative_to(ROOT).parts[:2] == ("qshift", "commands"):
            continue  # a command's parameters, each with its help, are no code
        for node in ast.walk(ast.parse(path.read_text())):
            function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            if function and (node.end_lineno or node.lineno) - node.lineno >= 60:
                long.append(f"{named(path)}: {node.name}")
    assert long == []


def test_the_middle_module_is_short() -> None:
    assert median(map(lines, MODULES)) < 120


def arrows() -> set[tuple[str, str]]:
    """(room, room it imports) inside `qshift`."""
    found = set()
    for path in (ROOT / "qshift").rglob("*.py"):
        room = path.relative_to(ROOT / "qshift").parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            others = {name.split(".")[1] for name in names if name.startswith("qshift.")}
            found |= {(room, other) for other in others if other != room and room != "__init__"}
    return found


def test_rooms_have_few_arrows_and_no_circle() -> None:
    left = arrows()
    assert len(left) <= ARROWS, sorted(left)
    while left:
        ends = {other for _, other in left} - {room for room, _ in left}
        assert ends, f"a circle among {sorted(left)}"
        left = {(room, other) for room, other in left if other not in ends}
