"""Pages of docs/reference that come from code are those that the code gives now."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from core.config import METHODS, Config

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["configuration", "metrics", "api", "commands", "messages"])
def test_committed_page_is_the_generated_one(generator: ModuleType, name: str) -> None:
    made = generator.pages()
    assert (REFERENCE / f"{name}.md").read_text() == made[f"{name}.md"], "stale: run `make docs`"


def test_every_generated_page_is_compared(generator: ModuleType) -> None:
    marked = {page.name for page in REFERENCE.glob("*.md") if generator.NOTE in page.read_text()}
    assert marked == set(generator.pages())


def test_no_meaning_of_a_key_that_is_gone(generator: ModuleType) -> None:
    known = {
        f"{name}.{key}".lstrip(".")
        for name, section in generator.sections(Config)
        for key in section.model_fields
    }
    assert set(generator.MEANINGS["configuration"]) <= known


def test_every_method_is_named_where_one_is_chosen(generator: ModuleType) -> None:
    assert set(re.findall(r"`([\w-]+)`", generator.MEANINGS["configuration"]["adapt.method"])) == set(METHODS)


def test_a_key_without_a_meaning_is_refused(generator: ModuleType) -> None:
    with pytest.raises(KeyError, match=r"nothing says what batch\.nope means"):
        generator.meaning("batch", "nope", "")


def test_headers_are_those_of_the_code(generator: ModuleType) -> None:
    text = "\n".join(path.read_text() for path in (ROOT / "stream").glob("*.py"))
    used = set(re.findall(r'"(x-[a-z-]*[a-z])"', text))
    said = set(generator.MEANINGS["headers"])
    assert {name for name in said if name.startswith("x-")} == used
    assert all(f'"{name}"' in text for name in said)


def test_types_and_bounds_are_spelt(generator: ModuleType) -> None:
    batch = Config.model_fields["batch"].annotation
    assert batch is not None
    assert generator.takes(batch.model_fields["size"]) == "whole number 1 to 4096"
    assert generator.spelt(float | None) == "number or nothing"
    assert generator.form({"type": "array", "items": {"type": "number"}, "maxItems": 32}) == (
        "list of number, up to 32 parts"
    )
