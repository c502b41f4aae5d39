"""What a command does to a lane: applied at a boundary of its own, between two batches."""

from __future__ import annotations

from core.commands import Command
from core.errors import ConfigError
from core.identity import DIGITS
from stream.lanes import Lane


def obey(lane: Lane, command: Command, base: str, gallery: str) -> str:
    """Applies a command.

    Args:
        base: version of the base model that is in use, its beginning.
        gallery: the version in use once the command's was asked for.

    Returns:
        Why it was refused, and nothing changed; "" where it was applied.
    """
    session, orders = lane.session, lane.session.orders
    if command.base and not base.startswith(command.base[:DIGITS]):
        return f"it is meant for the base model {command.base}, and this is {base}"
    match command.action:
        case "freeze" | "unfreeze":
            orders.frozen = command.action == "freeze"
        case "checkpoint":
            lane.keep()
        case "reset":
            lane.keep()
            session.forget()
        case "rollback":
            return _back(lane, command)
        case "method":
            return _method(lane, command.method)
        case "w":
            if not session.mixes:
                return "no weight decides here: answer.fuse is none"
            orders.weight = command.weight
        case "swap-gallery":
            if command.gallery not in ("", gallery):
                return (
                    f"the gallery's folder holds no version {command.gallery} that fits: it keeps older ones "
                    "for an hour"
                )
            orders.gallery = command.gallery
    session.changed()
    return ""


def _back(lane: Lane, command: Command) -> str:
    state = lane.kept.back(command.steps, command.state, lane.session.state_hash())
    if state is None:
        held = ", ".join(f"{one.state_hash[:16]} (batch {one.seq})" for one in lane.kept.states)
        wanted = command.state or f"{command.steps} back"
        return f"no checkpoint {wanted} is kept: there are {held or 'none'}"
    lane.session.go_back({name: array.copy() for name, array in state.tensors.items()}, state.meta)
    return ""


def _method(lane: Lane, method: str) -> str:
    if lane.session.orders.method == ("" if method == "default" else method):
        return ""
    before = lane.kept.states
    lane.keep()
    try:
        lane.session.switch("" if method == "default" else method)
    except ConfigError as error:
        lane.kept.restore(before)
        return str(error)
    return ""
