"""CSV with a header: every row has every column and no more.

Rows of empty cells, as Excel leaves them, are none.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from core.errors import ConfigError
from core.readers.lines import text
from core.readers.places import shown

Row = tuple[int, dict[str, str]]
"""(line, cell by column)."""


def rows(path: Path, columns: Sequence[str]) -> list[Row]:
    """The rows of a file that has at least these columns.

    Raises:
        ConfigError: a column is missing, no row at all, or a row that does not fit the header, by its line.
    """
    reader = csv.reader(io.StringIO(text(path), newline=""), strict=True)
    wanted = " and ".join(columns)
    found: list[Row] = []
    heads: list[str] | None = None
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if heads is None:
                heads = [cell.strip() for cell in cells]
                if set(columns) - set(heads) or len(set(heads)) < len(heads):
                    raise ConfigError(
                        f"{shown(path)} has the columns {', '.join(heads)}: "
                        f"expected the columns {wanted}, each once"
                    )
                continue
            if len(cells) != len(heads):
                more = "quote a text that holds a comma" if len(cells) > len(heads) else "fill it"
                raise ConfigError(
                    f"{shown(path)}, line {reader.line_num}: {len(cells)} cells, expected {len(heads)}: "
                    f"{more}"
                )
            found.append((reader.line_num, dict(zip(heads, cells))))
    except csv.Error as error:
        raise ConfigError(
            f"{shown(path)}, line {reader.line_num}: {error}; is a double quote left open?"
        ) from error
    if heads is None:
        raise ConfigError(f"{shown(path)} is empty: expected the columns {wanted} in its first line")
    if not found:
        raise ConfigError(f"{shown(path)} names nothing: expected rows below the columns {wanted}")
    return found
