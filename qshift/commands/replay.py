"""`qshift replay`: the demo's schedule, one's own queries, or a recorded topic, without Kafka in between."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from qshift.commands.options import (
    CONSOLE,
    DATA,
    Base,
    Batch,
    ConfigFile,
    Filter,
    Gallery,
    Journal,
    JsonFile,
    Method,
    Threshold,
    Top,
    check_files,
    methods_named,
    queries_at,
    wants,
    with_batch,
    with_parts,
)

app = typer.Typer(
    help="Run queries through the production path without Kafka, by any method.", no_args_is_help=True
)


@app.command(
    "demo",
    epilog="Examples:\n\n`qshift replay demo`\n\n"
    "`qshift replay demo --method rest --order sorted --queries 128`",
)
def demo(
    method: Method = None,
    order: Annotated[
        Literal["demo", "sorted", "training"],
        typer.Option(help="The demo's phases; clean queries sorted by group; shifts to choose settings on."),
    ] = "demo",
    queries: Annotated[int, typer.Option(help="Queries a phase.", min=64)] = 640,
    seed: Annotated[int, typer.Option(help="Of the query stream.")] = 0,
    journal: Journal = None,
    batch: Batch = None,
    data: Annotated[Path | None, typer.Option(help="A folder of captioned pictures of your own.")] = None,
    cache: Annotated[Path, typer.Option(help="Pictures, base model and gallery are kept here.")] = DATA
    / "demo",
    config: ConfigFile = None,
    json_file: JsonFile = None,
) -> None:
    """The demo's schedule: frozen, rest+fused, aligned+fused and default, or the methods named."""
    from core.config_file import load

    settings, chosen = with_batch(load(config), batch), methods_named(method)
    check_files(journal, (json_file,))
    from qshift.demo.schedule import tables

    raise typer.Exit(tables(chosen, order, data, settings, queries, seed, journal, json_file, cache, CONSOLE))


@app.command(
    "queries",
    epilog="Examples:\n\n"
    "`qshift replay queries my.jsonl --base qshift-data/base --gallery qshift-data/gallery`"
    "\n\n`qshift replay queries my-pictures --base B --gallery G --method default,rest+fused --batch 32`"
    '\n\n`qshift replay queries my.jsonl --base B --gallery G --filter \'{"year": {"from": 2019}}\' --top 5`',
)
def queries(
    path: Annotated[
        Path,
        typer.Argument(
            help="A folder of pictures, a JSONL file, or a file of vectors (.npy, .npz, .parquet)."
        ),
    ],
    base: Base = None,
    gallery: Gallery = None,
    method: Method = None,
    count: Annotated[
        int | None, typer.Option("--queries", help="How many, from the first; all without it.", min=1)
    ] = None,
    journal: Journal = None,
    batch: Batch = None,
    top: Top = None,
    filter_: Filter = "",
    threshold: Threshold = None,
    config: ConfigFile = None,
    json_file: JsonFile = None,
) -> None:
    """Your own queries: frozen and default, or the methods named."""
    from core.config_file import load

    want = wants(top, filter_, threshold)
    settings, chosen = with_batch(load(config), batch), methods_named(method)
    check_files(journal, (json_file,))
    queries_at(path)
    settings = with_parts(settings, base, gallery, named=config is not None)
    from qshift.replay.own import replay_own

    replay_own(
        path, settings.gallery, settings.base, settings, chosen, CONSOLE, json_file, journal, count, want
    )


@app.command(
    "topic",
    epilog="Examples:\n\n"
    "`qshift replay topic qshift.queries --from 2026-11-22T08:00 --to 2026-11-22T12:00 -c qshift.toml`\n\n"
    "`qshift replay topic qshift.queries --partition 0 --from 1200 --to 5000 --config qshift.toml`",
)
def topic(
    name: Annotated[str, typer.Argument(help="Of queries; Kafka, base and gallery are those of --config.")],
    start: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="OFFSET|TIME",
            help="Included: 1200, 2026-11-22T08:00:00Z or milliseconds since 1970.",
        ),
    ] = "",
    end: Annotated[str, typer.Option("--to", metavar="OFFSET|TIME", help="Excluded.")] = "",
    partition: Annotated[
        list[int] | None, typer.Option(help="All without it; offsets need exactly one. May be repeated.")
    ] = None,
    base: Base = None,
    gallery: Gallery = None,
    former: Annotated[
        list[Path] | None,
        typer.Option(
            help="A folder of another gallery that answered meanwhile, as it was built. May be repeated."
        ),
    ] = None,
    method: Method = None,
    config: ConfigFile = None,
    json_file: JsonFile = None,
) -> None:
    """A stretch of a recorded topic in the batches of its journal: frozen and default, or those named."""
    from core.config_file import load_connected

    settings, chosen = load_connected(config), methods_named(method)
    check_files(None, (json_file,))
    settings = with_parts(settings, base, gallery, named=True)
    from qshift.demo.versions import of_topic
    from qshift.replay.own import replay_topic

    versions = of_topic(settings, CONSOLE, former or ())
    replay_topic(name, start, end, partition or (), settings, chosen, CONSOLE, json_file, versions)
