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
    "`qshift bench core --method default,tcr-paper --tasks 'emoji/*' --seeds 3 --json r.json`\n\n"
    "`qshift bench labels --method default --labels .3 --late 1,4 --data DIR`"
)


def bench(
    suite: Annotated[
        Literal["core", "develop", "decoupling", "safety", "chain", "labels"],
        typer.Argument(
            help="core: what is reported. develop: for choosing settings. decoupling: gain and forgetting. "
            "safety: what must do no harm. chain: a base from two domains. labels: long streams, for --late."
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
    labels: Annotated[
        float | None,
        typer.Option(help="Share of the queries that get a label; labels.rate without it.", min=0, max=1),
    ] = None,
    late: Annotated[
        str,
        typer.Option(
            help="Batches that labels come late, commas: methods that answer from both twins run once more "
            "for each, as name@N, and half of the labels correct their weights."
        ),
    ] = "",
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

    settings, chosen = load(config), methods_named(method, factors=True)
    check_files(None, (json_file, markdown_file, html_file))
    from qshift.benchmarks.suite.bench import run_suite
    from qshift.benchmarks.suite.chosen import Options

    options = Options(
        suite, quick, chosen, seeds, names(tasks), names(streams), data, cache, workers, json_file,
        markdown_file, html_file, batches_late(late), labels,
    )  # fmt: skip
    run_suite(options, settings, CONSOLE)


def batches_late(text: str) -> tuple[int, ...]:
    """ "1,4" -> (1, 4). Raises ConfigError."""
    from core.errors import ConfigError

    found = names(text)
    wrong = [one for one in found if not one.isascii() or not one.isdecimal() or not 0 < int(one) <= 1000]
    if wrong:
        raise ConfigError(f"--late {wrong[0]!r} is no number of batches: expected whole numbers such as 1,4")
    return tuple(dict.fromkeys(map(int, found)))
