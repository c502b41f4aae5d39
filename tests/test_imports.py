"""The direction of imports: everyone imports core, only app imports everyone, one owner per heavy library."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("core", "stream", "adapters", "encoders", "index", "monitoring", "app", "benchmarks")
OWNERS = {
    "open_clip": "encoders",
    "torchvision": "encoders",
    "timm": "encoders",
    "transformers": "encoders",
    "faiss": "index",
    "prometheus_client": "monitoring",
    "kafka": "stream",
}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def modules() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_to_core(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    names = imported(path)
    allowed = set(PACKAGES) if package == "app" else {package, "core"}
    if package == "core":
        allowed = {"core"}
    assert names & set(PACKAGES) <= allowed
    for library, owner in OWNERS.items():
        assert library not in names or package == owner, f"{library} belongs to {owner}"


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_resolve_to_this_repository(package: str) -> None:
    found = importlib.import_module(package)
    assert found.__file__ is not None
    assert Path(found.__file__).resolve().is_relative_to(ROOT)
