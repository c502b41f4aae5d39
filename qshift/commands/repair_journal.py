"""`qshift repair-journal`."""

from __future__ import annotations

from typing import Annotated

import typer

from qshift.commands.options import CONSOLE, ConfigFile
from qshift.terminal.counts import counted

EXAMPLES = "Example:\n\n`qshift repair-journal --config qshift.toml`"


def repair_journal(
    config: ConfigFile = None,
    write: Annotated[
        bool, typer.Option("--write", help="Mend; without it nothing is changed. Stop all workers before.")
    ] = False,
) -> None:
    """Show what is wrong in the journal of batch boundaries, and mend it."""
    from core.config_file import load_connected

    settings = load_connected(config)
    from stream.repair import repair

    wrong = False
    for found in repair(settings, write):
        place = f"{found.partition[0]}/{found.partition[1]}"
        said = "mended" if write else "to mend"
        CONSOLE.print(
            f"{place}: {counted(len(found.entries), 'batch', 'batches')} in order, "
            f"{counted(len(found.notes), 'fault')}{f' {said}' if found.notes else ''}",
            soft_wrap=True, highlight=False,
        )  # fmt: skip
        for note in found.notes:
            CONSOLE.print(f"  {note}", soft_wrap=True, highlight=False, markup=False)
        wrong = wrong or bool(found.notes)
    if wrong and not write:
        CONSOLE.print("nothing was changed: stop all workers, and run it again with --write")
        raise typer.Exit(1)
