"""`qshift bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from qshift.commands.options import (
    CONSOLE,
    DATA,
    ConfigFile,
    JsonFile,
    Method,
    check_files,
    methods_named,
    names,
)

EXAMPLES = (
    "Examples:\n\n`qshift bench core --quick --data DIR --html report.html`\n\n"
    "`qshift bench core --method default,tcr-paper --tasks 'emoji/*' --seeds 3 --json r.json`"
)


def bench(
    suite: Annotated[
        Literal["core", "develop", "decoupling", "safety", "chain"],
        typer.Argument(
            help="core: what is reported. develop: for choosing settings. decoupling: gain and forgetting. "
            "safety: what must do no harm. chain: a base from two domains."
        ),
    ],
    method: Method = None,
    quick: Annotated[bool, typer.Option("--quick", help="One seed, fewer streams.")] = False,
    seeds: Annotated[int | None, typer.Option(help="How many.", min=1)] = None,
    tasks: Annotated[str, typer.Option(help="Only these, commas and * may be used.")] = "",
    streams: Annotated[str, typer.Option(help="Only these, or CORRUPTION-SEVERITY; commas and *.")] = "",
    data: Annotated[
        Path | None, typer.Option(help="Where data sets lie; see docs/reference/data.md.")
    ] = None,
    cache: Annotated[Path, typer.Option(help="Base models, galleries and finished results.")] = DATA
    / "suite",
    workers: Annotated[
        int | None, typer.Option(help="Processes; one per core, as memory allows.", min=1)
    ] = None,
    config: ConfigFile = None,
    json_file: JsonFile = None,
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", help="Write the report as Markdown.")
    ] = None,
    html_file: Annotated[Path | None, typer.Option("--html", help="Write the report as one page.")] = None,
) -> None:
    """Compare methods on suites of shifted queries, each judged against its frozen twin."""
    from core.config_file import load

    settings, chosen = load(config), methods_named(method)
    check_files(None, (json_file, markdown_file, html_file))
    from qshift.benchmarks.suite.bench import run_suite
    from qshift.benchmarks.suite.chosen import Options

    options = Options(
        suite, quick, chosen, seeds, names(tasks), names(streams), data, cache, workers, json_file,
        markdown_file, html_file,
    )  # fmt: skip
    run_suite(options, settings, CONSOLE)
