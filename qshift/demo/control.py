"""`qshift control`: a command to the lanes of a running service, and what became of it."""

from __future__ import annotations

import getpass
import math
import os
import re
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from core.commands import Action
from core.config_file import load_connected
from core.errors import ConfigError, DeliveryError, Refused
from core.readers.places import is_folder, shown
from core.records import Coordinates
from index.folder import VERSION
from qshift.demo.galleries import swap
from stream.command_messages import Acknowledgement, command
from stream.control_client import ControlClient

LATE = 3
"""Exit status where not all have acknowledged in time."""


def control(
    action: Action, value: str | None, lane: str, tenant: str, base: str, author: str, wait: float,
    config_file: Path | None, console: Console,
) -> int:  # fmt: skip
    """Sends a command.

    Args:
        value: the argument of the action, where it has one; of swap-gallery also the folder of a whole new
            gallery, which is put in place first.
        wait: seconds to wait for acknowledgements; 0 does not.

    Returns:
        0: sent, or applied everywhere; 1: refused by a lane; 3: not acknowledged in time.

    Raises:
        ConfigError: no Kafka named, or no command.
        ArtifactError, GalleryError: a gallery that cannot be put in place: nothing is sent.
    """
    config = load_connected(config_file)
    values: list[str | None] = [value]
    if action == "swap-gallery" and value is not None and _is_source(value):
        if lane or tenant:
            raise ConfigError("a whole new gallery is for all lanes: leave --lane and --tenant out")
        # The version makes the boundary, "newest" has the lanes follow the folder from there.
        values = [swap(Path(value), config.gallery, console), "newest"]
    messages = [written(action, one, lane, tenant, base, author or _user()) for one in values]
    with ControlClient(config.kafka.bootstrap_servers, config.kafka) as client:
        sent = [client.send(message, lane) for message in messages]
        for at in sent:
            console.print(f"sent: {at}", highlight=False, soft_wrap=True)
        return max(_acknowledged(client, at, lane, wait, console) for at in sent) if wait else 0


def _acknowledged(client: ControlClient, at: Coordinates, lane: str, wait: float, console: Console) -> int:
    """Prints what lanes say of a command; returns the exit status."""
    refused = 0
    try:
        for one in client.acknowledgements(at, lane, wait):
            refused += one.result == "refused"
            console.print(line(one), highlight=False, soft_wrap=True)
    except DeliveryError as error:
        console.print(escape(str(error)), highlight=False, soft_wrap=True)
        return LATE
    return int(refused > 0)


def _is_source(value: str) -> bool:
    """Whether a folder is meant and no version."""
    return not VERSION.fullmatch(value) and (os.sep in value or is_folder(Path(value)))


def written(action: Action, value: str | None, lane: str, tenant: str, base: str, author: str) -> bytes:
    """The value of a command. Raises ConfigError for an argument that the action does not take."""
    if lane and tenant:
        raise ConfigError("--lane names one lane and --tenant all of a tenant: name one of them")
    try:
        return command(action, author, lane=lane, tenant=tenant, base=base, **_argument(action, value))
    except Refused as refused:
        raise ConfigError(f"no command: {refused.reason}") from None


def _argument(action: Action, value: str | None) -> dict[str, Any]:
    if value is None:
        if action in ("method", "w", "swap-gallery"):
            raise ConfigError(f"{action} what? `qshift control --help` has an example of each")
        return {}
    match action:
        case "rollback":
            return _place(value)
        case "method":
            return {"method": value}
        case "w":
            return {"weight": None if value == "free" else _number(value)}
        case "swap-gallery":
            return {"gallery": "" if value == "newest" else value}
    raise ConfigError(f"{action} takes no argument")


def _place(value: str) -> dict[str, Any]:
    if value.isdecimal() and len(value) < 3:
        return {"steps": int(value)}
    if re.fullmatch("[0-9a-f]{8,64}", value):
        return {"state": value}
    raise ConfigError(
        f"rollback {shown(value)}: expected how many kept states back (2), or the first 8 or more digits of "
        "a state's hash"
    )


def _number(value: str) -> float:
    try:
        weight = float(value)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise ConfigError(f'w {shown(value)}: expected a number such as 0.5 as weight, or "free"')
    return weight


def line(one: Acknowledgement) -> str:
    """An acknowledgement for people."""
    where = one.lane or f"{one.topic}/{one.partition}"
    what = f"{one.result} at batch {one.batch_seq}, state {one.state[:16]}" if one.lane else one.result
    return escape(f"{where}: {what}" + (f": {one.reason}" if one.reason else ""))


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        raise ConfigError("who are you? --author names who gives the command") from None
