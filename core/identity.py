"""What answers and states depend on besides the records, as one line that says which part differs.

The gallery is not in it: galleries change under a running service by design, and a
state keeps nothing of one.
"""

from __future__ import annotations

from core.config import Config

DIGITS = 16
"""Of the base model's version."""


def identity(config: Config, base_version: str) -> str:
    """`base=... adapt=... answer=...`: the base model, and a short hash of each part of the configuration."""
    parts = {"base": base_version[:DIGITS], **config.decisions()}
    return " ".join(f"{name}={value}" for name, value in parts.items())


def difference(saved: str, now: str) -> str:
    """In words what another identity differs in; "" where they are equal."""
    if saved == now:
        return ""
    was, is_ = _parts(saved), _parts(now)
    if "base" not in was:
        return "by qshift 0.2.0 or older, which did not note base model and label settings"
    differing = [name for name in {**was, **is_} if was.get(name) != is_.get(name)]
    settings = ", ".join(sorted(name for name in differing if name != "base"))
    words = []
    if "base" in differing:
        words.append(f"with another base model ({was['base']}, now {is_.get('base')})")
    if settings:
        words.append(f"under another configuration of {settings}")
    return " and ".join(words)


def _parts(text: str) -> dict[str, str]:
    pairs = (part.partition("=") for part in text.split(" "))
    return {name: value for name, equals, value in pairs if equals}
