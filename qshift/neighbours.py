"""Whether the packages beside qshift are its own: other distributions use some of their names, too."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

NAMES = ("core", "stream", "adapters", "encoders", "index", "monitoring")


def check() -> None:
    """Raises ImportError when another module answers to one of our names. Imports nothing."""
    home = Path(__file__).resolve().parents[1]
    for name in NAMES:
        spec = find_spec(name)
        where = spec.origin if spec is not None else None
        if where is None or Path(where).resolve().parents[1] != home:
            raise ImportError(
                f"the module {name!r} is {where or 'missing'}, not of qshift: another package of that "
                "name comes first on the path; give qshift an environment of its own"
            )
