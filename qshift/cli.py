"""`qshift`: one command for all; each of its commands is a file in `qshift/commands/`."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable

import typer
from rich.text import Text

from core.allocator import keep_memory
from core.errors import QshiftError
from core.readers.places import shown
from qshift.commands import (
    bench,
    broker,
    control,
    demo,
    evaluate,
    fit,
    gallery,
    labels,
    produce,
    profile,
    redrive,
    repair_journal,
    replay,
    serve,
    verify_log,
)
from qshift.commands.renamed import refuse_old
from qshift.terminal.sheet import console

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Before torch is loaded: one thread is robust where cores are shared, and bit-identity is promised per count.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ERRORS = console(stderr=True)
COMMANDS: tuple[tuple[Callable[..., None], str], ...] = (
    (demo.demo, demo.EXAMPLES),
    (serve.serve, serve.EXAMPLES),
    (bench.bench, bench.EXAMPLES),
    (fit.fit, fit.EXAMPLES),
    (evaluate.evaluate, evaluate.EXAMPLES),
    (produce.produce, produce.EXAMPLES),
    (labels.labels, labels.EXAMPLES),
    (verify_log.verify_log, verify_log.EXAMPLES),
    (redrive.redrive, redrive.EXAMPLES),
    (control.control, control.EXAMPLES),
    (profile.profile, profile.EXAMPLES),
    (repair_journal.repair_journal, repair_journal.EXAMPLES),
)

app = typer.Typer(
    help="Online test-time adaptation for retrieval, on Apache Kafka, judged against a frozen twin.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for function, examples in COMMANDS:
    app.command(epilog=examples)(function)
for name, group in (("replay", replay.app), ("gallery", gallery.app), ("broker", broker.app)):
    app.add_typer(group, name=name)


def main() -> None:
    """Entry point: our own errors and those of a disk are one clear line, Ctrl-C is no traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a path need not be text
            stream.reconfigure(errors="backslashreplace")
    keep_memory()  # for what trains and encodes, too
    try:
        refuse_old(sys.argv[1:])
        app()
    except QshiftError as error:
        _say(str(error))
        sys.exit(2)
    except OSError as error:
        if error.filename is None or error.strerror is None:
            raise
        _say(
            f"{shown(os.fsdecode(error.filename))}: {error.strerror}; name another place, or make room there"
        )
        sys.exit(2)
    except KeyboardInterrupt as stop:
        _interrupted(stop)
        sys.exit(130)
    except SystemExit as end:  # typer makes one of Ctrl-C, and says nothing
        if end.code == 130:
            _interrupted(end)
        raise


def _interrupted(end: BaseException | None) -> None:
    """Says so, and how to go on where the command has said that with the KeyboardInterrupt."""
    while end is not None and not isinstance(end, KeyboardInterrupt):
        end = end.__cause__ or end.__context__
    said = f"interrupted: {end.args[0]}" if end is not None and end.args else "interrupted"
    ERRORS.print(Text(said), highlight=False, soft_wrap=True)


def _say(error: str) -> None:
    # As text: a path may hold what rich would read as markup, and one line stays one line.
    ERRORS.print(Text.assemble(("error", "red"), f": {error}"), highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
