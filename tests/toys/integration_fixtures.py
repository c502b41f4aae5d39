"""Broker, small world and worker processes of the integration tests, for tests that lie elsewhere."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def fixtures_of_integration() -> ModuleType:
    """The integration tests' conftest as a module, the same one for all who ask."""
    name = "qshift_integration_fixtures"
    if name not in sys.modules:
        path = Path(__file__).parents[1] / "integration" / "conftest.py"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]
