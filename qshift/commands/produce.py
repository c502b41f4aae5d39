"""`qshift produce`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from qshift.commands.options import CONSOLE, ConfigFile, Filter, Threshold, Top, given, wants

EXAMPLES = (
    "Examples:\n\n`qshift produce --shift noise --queries 500`\n\n"
    "`qshift produce my-pictures --shift contrast --rate 20`\n\n`qshift produce queries.jsonl`\n\n"
    '`qshift produce queries.jsonl --top 3 --filter \'{"colour": "red"}\' --threshold 0.2`'
)


def produce(
    context: typer.Context,
    source: Annotated[
        Path | None,
        typer.Argument(
            help="A folder of pictures, a file of JSON lines, or one of vectors (.npy, .npz, .parquet); "
            "the emoji without it."
        ),
    ] = None,
    shift: Annotated[list[str] | None, typer.Option(help="Several are mixed, one per query.")] = None,
    modality: Annotated[Literal["image", "text"], typer.Option()] = "image",
    queries: Annotated[
        int | None, typer.Option(help="How many to send; 640 without it, or all of a file.", min=1)
    ] = None,
    rate: Annotated[float, typer.Option(help="Queries per second; 0 = as fast as they are answered.")] = 0.0,
    labels: Annotated[bool, typer.Option(help="Send the labels that are asked for, late.")] = True,
    seed: Annotated[int, typer.Option()] = 0,
    top: Top = None,
    filter_: Filter = "",
    threshold: Threshold = None,
    config: ConfigFile = None,
) -> None:
    """Stream queries with a shift, a rate and late labels to a running service."""
    from core.config_file import load

    want = wants(top, filter_, threshold)
    load(config)  # a wrong key is said before anything heavy is loaded
    from qshift.demo.produce import produce

    raise typer.Exit(
        produce(
            source, tuple(shift or ["clean"]), modality, queries, rate, labels, seed, config, CONSOLE,
            given(context), want,
        )
    )  # fmt: skip
