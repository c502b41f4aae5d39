"""Online test-time adaptation for cross-modal retrieval, with a frozen twin that proves what it gains.

What stands in `__all__` is qshift's face; everything else is internal and may change. Nothing heavy is
imported before it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from qshift.neighbours import check

if TYPE_CHECKING:
    from core.config import Config
    from core.errors import QshiftError
    from core.types import AdaptationStep
    from encoders.base_model import load_base
    from qshift.build import load_gallery
    from qshift.methods import METHODS
    from qshift.recipes.gallery import build_gallery
    from qshift.service import Service
    from qshift.session import Answer, Session

__all__ = [
    "METHODS", "AdaptationStep", "Answer", "Config", "QshiftError", "Service", "Session", "build_gallery",
    "load_base", "load_gallery",
]  # fmt: skip
_HOMES = {
    "METHODS": "qshift.methods",
    "AdaptationStep": "core.types",
    "Answer": "qshift.session",
    "Config": "core.config",
    "QshiftError": "core.errors",
    "Service": "qshift.service",
    "Session": "qshift.session",
    "build_gallery": "qshift.recipes.gallery",
    "load_base": "encoders.base_model",
    "load_gallery": "qshift.build",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'qshift' has no attribute {name!r}")
    check()
    found = globals()[name] = getattr(import_module(_HOMES[name]), name)  # asked once
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
