"""What code a result depends on: cached results of a method are void when the method changes, only then."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Iterable
from pathlib import Path

PACKAGES = frozenset(("core", "stream", "adapters", "encoders", "index", "monitoring", "qshift"))
PATH = (
    "stream.pipeline", "stream.runner", "qshift.offline", "qshift.benchmarks.streams",
    "qshift.benchmarks.suite.judge", "index.fusion", "index.judging", "encoders.tower",
)  # fmt: skip
"""Modules through which every result passes. `qshift.build` wires all methods: raise `RESULTS` with it."""
WIRING = frozenset(("qshift.build",))
"""Never followed: it names every method, and a new one must not void the others."""


class Fingerprints:
    """Hashes of modules and of all of ours that they import; comments and docstrings do not count."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, list[str]] | None] = {}

    def of(self, modules: Iterable[str], path: Iterable[str] = PATH) -> str:
        """Hash over the modules, those on the path of every result, and what they import of ours.

        Of a module that is not ours, a method of the user's own, its own package is followed, too.
        """
        found: dict[str, str] = {}
        waiting = [*modules, *path]
        roots = PACKAGES | {name.split(".")[0] for name in waiting}
        while waiting:
            name = waiting.pop()
            if name in found or name in WIRING or name.split(".")[0] not in roots:
                continue
            module = self._module(name)
            if module is not None:
                found[name] = module[0]
                waiting += module[1]
        return hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()[:16]

    def _module(self, name: str) -> tuple[str, list[str]] | None:
        """(hash, imports) of a module; None for names that are none."""
        if name not in self._known:
            path = _file(name)
            self._known[name] = None
            if path is not None:
                tree = ast.parse(path.read_text())
                imports = _imported(tree)
                self._known[name] = (hashlib.sha256(ast.dump(_bare(tree)).encode()).hexdigest(), imports)
        return self._known[name]


def _imported(tree: ast.Module) -> list[str]:
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            # `from qshift.benchmarks import shifts` imports a module, too.
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


def _file(name: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, AttributeError):
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def _bare(tree: ast.Module) -> ast.Module:
    """Without docstrings and other bare strings."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [  # type: ignore[attr-defined]
                one for one in body if not (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))
            ]
    return tree
