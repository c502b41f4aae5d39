"""Tables that never cut a value: full width without a terminal, fewer columns on a narrow one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

WIDE = 10_000
"""Columns of an output that is no terminal: a file or a pipe has no right edge."""
Value = str | Text


def console(stderr: bool = False) -> Console:
    """A console on standard output, or on standard error, that wraps and fits on terminals only."""
    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, width=None if terminal else WIDE)


@dataclass(frozen=True, slots=True)
class Head:
    """A column. `drop` says how early it goes where room is short: 0 never, then the largest first."""

    text: str
    drop: int = 0
    left: bool = False


@dataclass(slots=True)
class Sheet:
    """A table before its width is known."""

    title: str
    heads: Sequence[Head]
    rows: list[Sequence[Value]] = field(default_factory=list)
    dim: set[int] = field(default_factory=set)
    """Rows that matter less."""
    rules: set[int] = field(default_factory=set)
    """Rows with a line below."""
    caption: str = ""

    def add(self, *values: Value, dim: bool = False) -> None:
        if dim:
            self.dim.add(len(self.rows))
        self.rows.append(values)

    def rule(self) -> None:
        """Draws a line below the last row."""
        self.rules.add(len(self.rows) - 1)

    def table(self, width: int) -> Table:
        """The table with as many columns as fit into `width`; what was left out stands below."""
        kept = list(range(len(self.heads)))
        while _needs(self._drawn(kept)) > width:
            droppable = [place for place in kept if self.heads[place].drop]
            if not droppable:
                break
            kept.remove(max(droppable, key=lambda place: (self.heads[place].drop, place)))
        found = self._drawn(kept)
        # Rather lines that the terminal has to break than values without their end.
        found.width = needed if (needed := _needs(found)) > width else None
        return found

    def print(self, to: Console) -> None:
        to.print(self.table(to.width), crop=False)

    def _drawn(self, kept: Sequence[int]) -> Table:
        found = Table(
            title=self.title, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD,
            pad_edge=False, collapse_padding=True,
        )  # fmt: skip
        for place in kept:
            head = self.heads[place]
            # Names may go over several lines; numbers stand on one.
            values = [] if head.left else [head.text, *(str(row[place]) for row in self.rows)]
            least = max((cell_len(line) for value in values for line in value.split("\n")), default=None)
            found.add_column(
                head.text, justify="left" if head.left else "right", no_wrap=not head.left, overflow="fold",
                min_width=least,
            )  # fmt: skip
        for number, row in enumerate(self.rows):
            style = "dim" if number in self.dim else None
            found.add_row(*(row[place] for place in kept), style=style, end_section=number in self.rules)
        gone = [" ".join(head.text.split()) for place, head in enumerate(self.heads) if place not in kept]
        left_out = f"no room for: {', '.join(gone)}; a wider terminal, or a pipe, shows all" if gone else ""
        found.caption = "\n".join(filter(None, (self.caption, left_out))) or None
        return found


def _needs(table: Table) -> int:
    """Characters below which a value of the table would be cut."""
    wide = Console(width=WIDE)
    table.caption, kept = None, table.caption
    needed = Measurement.get(wide, wide.options, table).minimum
    table.caption = kept
    return needed
