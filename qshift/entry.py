"""Where the command starts: before anything of ours is imported it is sure that it is ours."""

from __future__ import annotations

import sys

from qshift.neighbours import check


def main() -> None:
    """Entry point of `qshift`."""
    try:
        check()
    except ImportError as error:
        sys.exit(f"error: {error}")
    from qshift.cli import main

    main()
