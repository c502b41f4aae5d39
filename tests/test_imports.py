"""The direction of imports: floors, of packages and inside `qshift`, and one owner per heavy library."""

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FIVE = ("stream", "adapters", "encoders", "index", "monitoring")
PACKAGES = ("core", *FIVE, "qshift")
FLOORS = (
    ("neighbours", "data", "shifts", "terminal", "lanes", "methods"),
    ("build",),
    ("recipes", "observers", "offline", "following"),
    ("replay", "benchmarks", "service", "session"),
    ("demo",),
    ("commands",),
    ("cli",),
    ("entry",),
)
"""Rooms of `qshift`, from the ground up: a room imports from lower floors, and from itself."""
OWNERS = {
    "open_clip": "encoders",
    "torchvision": "encoders",
    "timm": "encoders",
    "transformers": "encoders",
    "faiss": "index",
    "pymilvus": "index",
    "prometheus_client": "monitoring",
    "kafka": "stream",
}


def imported(path: Path) -> set[str]:
    """Full names: of modules, and of what is taken from them."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_to_core(package: str) -> None:
    allowed = set(PACKAGES) if package == "qshift" else {package, "core"}
    foreign = {library for library, owner in OWNERS.items() if package != owner}
    assert modules(package)
    for path in modules(package):
        names = {name.split(".")[0] for name in imported(path)}
        assert names & set(PACKAGES) <= allowed, named(path)
        assert not names & foreign, f"{named(path)}: one package owns a library, see OWNERS"


def floor(room: str) -> int:
    found = [number for number, rooms in enumerate(FLOORS) if room in rooms]
    assert len(found) == 1, f"{room} has to be on one of FLOORS"
    return found[0]


def test_inside_imports_point_down() -> None:
    for path in modules("qshift"):
        room = path.relative_to(ROOT / "qshift").parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        for name in imported(path):
            if name.startswith("qshift."):
                other = name.split(".")[1]
                assert other == room or floor(other) < floor(room), f"{named(path)} imports {name}"


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_resolve_to_this_repository(package: str) -> None:
    found = importlib.import_module(package)
    assert found.__file__ is not None
    assert Path(found.__file__).resolve().is_relative_to(ROOT)


@pytest.mark.parametrize("code", ["import qshift; qshift.Session", "from qshift.entry import main; main()"])
def test_a_foreign_package_of_our_name_is_named(tmp_path: Path, code: str) -> None:
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / "__init__.py").write_text("")
    path = os.pathsep.join((str(tmp_path), str(ROOT)))
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert found.returncode != 0
    said = " ".join((found.stdout + found.stderr).split())
    assert "the module 'adapters' is" in said and "give qshift an environment of its own" in said
    if "entry" in code:
        assert "Traceback" not in said
