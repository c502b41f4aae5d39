"""Spellings that older pages show: each is answered with the one that took its place."""

from __future__ import annotations

from collections.abc import Sequence

from core.errors import ConfigError
from core.readers.places import shown

PLACES = {
    "--suite": "qshift bench {}",
    "--topic": "qshift replay topic {}",
    "--queries": "qshift replay queries {}",
}


def refuse_old(arguments: Sequence[str]) -> None:
    """Raises ConfigError, with what to write instead, for an old spelling of `replay` or `bench`."""
    command, *rest = arguments or ("",)
    if command not in ("replay", "bench"):
        return
    helped = bool({"-h", "--help"} & set(rest))
    if command == "replay" and not helped and (not rest or rest[0].startswith("-")):
        _refuse_replay(rest)
    if any(word.split("=")[0] == "--methods" for word in rest):
        raise ConfigError(
            "--methods is now --method: it takes names separated by commas, and may be repeated"
        )


def _refuse_replay(words: Sequence[str]) -> None:
    for place, word in enumerate(words):
        flag, equals, value = word.partition("=")
        value = value if equals else next(iter(words[place + 1 :]), "")
        if flag in PLACES and not (flag == "--queries" and value.isdecimal()):
            raise ConfigError(f"`qshift replay {flag}` is now `{PLACES[flag].format(shown(value))}`")
    raise ConfigError(
        "`qshift replay` names what is run: `qshift replay demo` (the demo's schedule), `qshift replay "
        "queries PATH` or `qshift replay topic NAME`; suites are `qshift bench SUITE`"
    )
