"""`qshift control`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from qshift.commands.options import CONSOLE, ConfigFile

EXAMPLES = (
    "Examples:\n\n`qshift control freeze --wait`\n\n`qshift control unfreeze --lane 0:image`\n\n"
    "`qshift control rollback 2 --tenant acme --wait`\n\n`qshift control rollback 3fa9c01b`\n\n"
    "`qshift control method tent --lane 0:text`\n\n`qshift control w 0.5`, `qshift control w free`\n\n"
    "`qshift control swap-gallery newest`\n\n`qshift control swap-gallery new-gallery --wait`"
)


def control(
    action: Annotated[
        Literal["freeze", "unfreeze", "reset", "rollback", "checkpoint", "method", "w", "swap-gallery"],
        typer.Argument(help="What the lanes are to do, from their next batch on."),
    ],
    value: Annotated[
        str | None,
        typer.Argument(
            help="rollback: how many kept states back, or the beginning of a state's hash; method: its name, "
            '"default" for that of the configuration; w: the most that the adapted twin may weigh, "free" '
            'for no bound; swap-gallery: a version, "newest" to follow the folder again, or the folder of '
            "a whole new gallery, which is put in place first."
        ),
    ] = None,
    lane: Annotated[str, typer.Option(help="One lane, as answers name it; all without it.")] = "",
    tenant: Annotated[str, typer.Option(help="The lanes of one tenant.")] = "",
    base: Annotated[
        str, typer.Option(help="Refuse unless the base model's version begins so (8 digits or more).")
    ] = "",
    author: Annotated[
        str, typer.Option(help="Who asks, for the audit topic; your user name without it.")
    ] = "",
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for the acknowledgements and print them.")
    ] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait at most.", min=1)] = 60.0,
    config: ConfigFile = None,
) -> None:
    """Tell the lanes of a running service to freeze, reset, roll back, switch.

    With --wait the status is 0 where all lanes obeyed, 1 where one refused, 3 where not all answered in time.
    """
    from qshift.demo.control import control

    raise typer.Exit(
        control(action, value, lane, tenant, base, author, timeout if wait else 0.0, config, CONSOLE)
    )
