"""`qshift evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from qshift.commands.options import CONSOLE, DATA, check_files, names

EXAMPLES = (
    "Examples:\n\n`qshift evaluate psca --task mnist-usps --data DIR`\n\n"
    "`qshift evaluate psca,itq,lsh,sh --task office-caltech --data DIR --bits 64 --splits 3 --html page.html`"
)


def evaluate(
    methods: Annotated[
        str, typer.Argument(help="psca, couple, tpsnet, itq, lsh, pcah, sh, dsh, sgh, raw, centred; commas.")
    ],
    task: Annotated[
        str,
        typer.Option(
            help="mnist-usps, usps-mnist, digits, pacs, office-caltech or a pair; an unknown one lists all."
        ),
    ] = "mnist-usps",
    data: Annotated[Path, typer.Option(help="The folder that docs/reference/data.md describes.")] = Path(),
    bits: Annotated[str, typer.Option(help="Code lengths, separated by commas.")] = "16,32,64,128",
    splits: Annotated[int, typer.Option(help="How many random splits.", min=1)] = 5,
    scheme: Annotated[
        Literal["target10", "fixed500", "out_of_sample"],
        typer.Option(help="Which rows are fitted to, which ask, which are searched."),
    ] = "target10",
    codes: Annotated[
        Literal["learned", "hash_fn"] | None,
        typer.Option(help="Gallery codes; learned ones without it, where a method learns them."),
    ] = None,
    k: Annotated[int, typer.Option(help="Of map_at_k.", min=1)] = 1000,
    cache: Annotated[Path, typer.Option(help="Features and finished fits are kept here.")] = DATA
    / "evaluate",
    workers: Annotated[int | None, typer.Option(help="Processes; one per core without it.", min=1)] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows here.")] = None,
    markdown_file: Annotated[Path | None, typer.Option("--markdown", help="Write the tables.")] = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", help="Write tables and plots as a page.")
    ] = None,
) -> None:
    """Fit hashing methods to two-domain tasks and report how well their codes retrieve."""
    from qshift.benchmarks.hashing.evaluate import Options
    from qshift.benchmarks.hashing.evaluate import evaluate as run

    check_files(None, (json_file, markdown_file, html_file))
    run(
        Options(
            names(methods), names(task), data, widths(bits), splits, scheme, codes, k, cache, workers,
            json_file, markdown_file, html_file,
        ),
        CONSOLE,
    )  # fmt: skip


def widths(text: str) -> tuple[int, ...]:
    """ "16,32" -> (16, 32). Raises ConfigError for anything else."""
    from core.errors import ConfigError

    try:
        return tuple(dict.fromkeys(int(part) for part in names(text)))
    except ValueError:
        raise ConfigError(f"--bits takes numbers separated by commas, as 16,32,64, got {text!r}") from None
