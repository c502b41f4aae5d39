"""Every implementation of a seam is in its battery or excluded with a reason; all seams are in one module."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("core", "stream", "adapters", "encoders", "index", "monitoring", "qshift")
SEAMS = "core/protocols.py"
BATTERIES = {
    "Source": ("contracts/test_sources.py", "integration/test_contracts.py"),
    "Sink": ("contracts/test_sinks.py", "integration/test_contracts.py"),
    "StateStore": ("stream/test_stores.py", "integration/test_changelog.py"),
    "Encoder": ("contracts/test_encoders.py",),
    "Gallery": ("contracts/test_galleries.py",),
    "Fusion": ("contracts/test_fusions.py",),
    "Pass": ("contracts/test_passes.py",),
    "Adapter": ("contracts/test_adapters.py",),
    "Aligner": ("contracts/test_aligners.py",),
    "Observer": ("contracts/test_observers.py",),
}
"""Where each contract is tested, in tests/: BATTERY names the classes there, or `opened` makes them."""
EXCLUDED = {
    ("Fusion", "View"): "has methods of these names for one batch: what is asked of a fusion",
    ("Sink", "QueryClient"): "has methods of these names for the other end: queries go out, answers come in",
    (
        "Sink",
        "Transaction",
    ): "shows nothing before a commit, so flush is no proof: tests/stream/test_failing_calls.py",
    ("Adapter", "Descent"): "a template: its subclasses say what an inner step is",
    ("Adapter", "Peer"): "a template: its subclasses say what the objective is",
    ("Adapter", "MeanShift"): "a template: its subclasses say how the mean runs and where it is moved to",
}
LOCAL = {
    "core/checkpoints.py:LaneStore": "the part of a state store that lanes are put away in, in its battery",
    "adapters/offline/tpsnet.py:Network": "what the three networks of one offline method have in common",
    "adapters/online/decouple.py:Reference": "what a gradient is decoupled from: inside gradient methods",
    "adapters/online/descent.py:Seen": "what an inner step tells its template",
    "adapters/online/rest.py:Reliability": "weights of pairs: one method's option",
    "encoders/features.py:Fingerprinted": "an encoder whose features may be kept in files",
    "index/fusion.py:Evidence": "how far the twin fusion trusts a batch: that fusion's own option",
    "qshift/benchmarks/hashing/methods.py:Relaxed": "what an offline baseline returns before signs are taken",
    "qshift/benchmarks/suite/work.py:Tasks": "how a process of the suite gets its tasks",
    "stream/steering.py:Correction": "what labels teach a lane of its weights: the twin fusion's own option",
    "qshift/demo/items_topic.py:Log": "what taking in items asks of Kafka",
    "qshift/replay/recorded.py:Log": "what reading a recording asks of Kafka",
    "stream/history/windows.py:Log": "what checking recorded topics asks of Kafka",
}
"""Protocols that are no seam of the repository: one module's own, and why."""


@dataclass(frozen=True)
class Class:
    """What a class has by its text: methods, and what is assigned in its body or to self."""

    place: str
    name: str
    bases: tuple[str, ...]
    own: frozenset[str]


def _own(node: ast.ClassDef) -> Iterator[str]:
    for part in node.body:
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef):
            yield part.name
        elif isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
            yield part.target.id
        elif isinstance(part, ast.Assign):
            yield from (target.id for target in part.targets if isinstance(target, ast.Name))
    for part in ast.walk(node):
        if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store):
            yield from [part.attr] * (isinstance(part.value, ast.Name) and part.value.id == "self")


def classes_of(text: str, place: str) -> list[Class]:
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef):
            bases = tuple(ast.unparse(base).partition("[")[0].split(".")[-1] for base in node.bases)
            found.append(Class(place, node.name, bases, frozenset(_own(node))))
    return found


@cache
def classes() -> tuple[Class, ...]:
    return tuple(
        one
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        for one in classes_of(path.read_text(), path.relative_to(ROOT).as_posix())
    )


def parts(one: Class, named: dict[str, list[Class]]) -> frozenset[str]:
    """With what it inherits; of several bases of a name the one beside it counts, else all."""
    found = one.own
    for name in one.bases:
        bases = [other for other in named.get(name, ()) if other != one]
        for base in [other for other in bases if other.place == one.place] or bases:
            found |= parts(base, named)
    return found


def protocols() -> dict[str, frozenset[str]]:
    return {one.name: one.own for one in classes() if one.place == SEAMS and "Protocol" in one.bases}


def implementing(wanted: frozenset[str], among: tuple[Class, ...]) -> set[str]:
    named = defaultdict[str, list[Class]](list)
    for one in among:
        named[one.name].append(one)
    return {one.name for one in among if "Protocol" not in one.bases and wanted <= parts(one, named)}


@cache
def covered_by(path: str) -> frozenset[str]:
    """First words of the names in BATTERY; or what the fixture `opened` calls."""
    for node in ast.parse((ROOT / "tests" / path).read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name == "opened":
            calls = [call.func for call in ast.walk(node) if isinstance(call, ast.Call)]
            return frozenset(call.id for call in calls if isinstance(call, ast.Name)) - {"Path"}
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == "BATTERY" for target in targets):
            value = getattr(node, "value", None)
            names = value.keys if isinstance(value, ast.Dict) else getattr(value, "elts", [])
            return frozenset(str(one.value).split()[0] for one in names if isinstance(one, ast.Constant))
    raise AssertionError(f"{path} names no BATTERY")


def test_every_seam_has_a_battery() -> None:
    assert set(protocols()) == set(BATTERIES)


@pytest.mark.parametrize("seam", BATTERIES)
def test_every_implementation_is_in_its_battery_or_excluded(seam: str) -> None:
    found = implementing(protocols()[seam], classes())
    excluded = {name for of, name in EXCLUDED if of == seam}
    covered = frozenset[str]().union(*map(covered_by, BATTERIES[seam]))
    assert found, "nothing implements it: it is no seam"
    assert found - covered - excluded == set(), "put it into its battery, or say here why not"
    assert excluded <= found - covered, "an exclusion that is no longer needed"
    shared = {"KafkaSource", "KafkaSink"}  # of one file
    assert covered - found - shared == set(), "what is tested here is no such thing"


def test_every_protocol_is_a_seam_or_one_modules_own() -> None:
    local = [one for one in classes() if "Protocol" in one.bases and one.place != SEAMS]
    assert {f"{one.place}:{one.name}" for one in local} == set(LOCAL)


@pytest.mark.parametrize("place", LOCAL)
def test_what_is_one_modules_own_is_named_by_no_other_package(place: str) -> None:
    path, _, name = place.partition(":")
    module = path.removesuffix(".py").replace("/", ".")
    for package in PACKAGES:
        for other in (ROOT / package).rglob("*.py"):
            if package != path.partition("/")[0]:
                assert f"from {module} import {name}" not in other.read_text(), other


def test_the_audit_sees_what_is_inherited_assigned_and_nested() -> None:
    text = """
class Half:
    @property
    def a(self): ...
class Whole(Half):
    def __init__(self): self.b = 1
def f():
    class Inside:
        a: int
        b = 2
class Generic(Half[int]):
    def b(self): ...
class Seam(Protocol):
    def a(self): ...
    def b(self): ...
"""
    found = tuple(classes_of(text, "here.py"))
    assert implementing(frozenset("ab"), found) == {"Whole", "Inside", "Generic"}
