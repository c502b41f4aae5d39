"""`qshift`: one command for the service, the benchmarks and what they need."""

from __future__ import annotations

import io
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.text import Text

from qshift.terminal.sheet import console

STARTED = time.monotonic()
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Before torch is loaded: one thread is robust where cores are shared, and bit-identity is promised per count.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

CONSOLE = console()
ERRORS = console(stderr=True)
DATA = Path("qshift-data")

app = typer.Typer(
    help="Online test-time adaptation for retrieval, on Apache Kafka, judged against a frozen twin.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
broker = typer.Typer(help="A single-node Apache Kafka without Docker.", no_args_is_help=True)
gallery = typer.Typer(help="Galleries: what is searched.", no_args_is_help=True)
app.add_typer(broker, name="broker")
app.add_typer(gallery, name="gallery")

ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", help="TOML file; defaults without it.")]
KafkaDir = Annotated[Path, typer.Option("--dir", help="Data directory of the embedded Kafka.")]


@app.command(
    epilog="Examples:\n\n`qshift demo`\n\n`qshift demo --short --verify --json result.json`\n\n"
    "`qshift demo --data my-pictures --keep`"
)
def demo(
    data: Annotated[Path | None, typer.Option(help="A folder of captioned pictures of your own.")] = None,
    short: Annotated[bool, typer.Option("--short", help="128 queries a phase instead of 640.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything running until Ctrl-C.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Replay without Kafka and compare bytes.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the table here.")] = None,
    queries: Annotated[int | None, typer.Option(help="Queries a phase.", min=64)] = None,
    seed: Annotated[int, typer.Option(help="Of the query stream.")] = 0,
    port: Annotated[int, typer.Option(help="Of the live page; 0 takes a free one.")] = 8765,
    cache: Annotated[Path, typer.Option(help="Pictures, base model and gallery are kept here.")] = DATA
    / "demo",
) -> None:
    """Search 1,900 emoji by text, sketch and bad photo through a real Kafka, and see what adapting gains."""
    from qshift.demo.live import DemoOptions, demo

    options = DemoOptions(data, cache, short, keep, verify, json_file, seed, port, queries)
    raise typer.Exit(demo(options, CONSOLE, STARTED))


@app.command(epilog="Example:\n\n`qshift serve --config qshift.toml`")
def serve(
    config: ConfigFile = None,
    worker: Annotated[str, typer.Option(help="Name of this worker in the consumer group.")] = "worker-0",
    log_level: Annotated[str, typer.Option(help="DEBUG, INFO, WARNING or ERROR.")] = "INFO",
) -> None:
    """Answer queries from Kafka and adapt, until SIGTERM or Ctrl-C."""
    from qshift.commands.serve import serve

    raise typer.Exit(serve(config, worker, log_level, CONSOLE))


SUITE, OWN, TOPIC, DEMO = "A benchmark suite", "Your own queries", "A recorded topic", "The demo's schedule"


@app.command(
    epilog="Examples:\n\n`qshift replay`\n\n`qshift replay --method rest --order sorted --queries 128`\n\n"
    "`qshift replay --suite core --quick --data DIR --html report.html`\n\n"
    "`qshift replay --suite core --methods default,tcr-paper --tasks 'emoji/*' --seeds 3 --json r.json`\n\n"
    "`qshift replay --queries my-queries.jsonl --base qshift-data/base --gallery qshift-data/gallery`\n\n"
    "`qshift replay --queries my-pictures --base B --gallery G --methods default,rest+fused`\n\n"
    "`qshift replay --topic qshift.queries --from 2026-11-22T08:00 --to 2026-11-22T12:00 -c qshift.toml`\n\n"
    "`qshift replay --topic qshift.queries --partition 0 --from 1200 --to 5000 --config qshift.toml`"
)
def replay(
    context: typer.Context,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="frozen, default, rest, aligned, anchored, centring, refinement, tcr, tcr-paper, tent, "
            "eata, sar, deyo, ...; an unknown one lists all. +fused behind a name answers from both twins, "
            "+repair mends texts first. May be repeated."
        ),
    ] = None,
    methods: Annotated[str, typer.Option(help="The same, separated by commas.")] = "",
    config: ConfigFile = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the tables here.")] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="A folder of captioned pictures of your own; with --suite, where data sets lie."),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Base models, galleries and results; by default in qshift-data.")
    ] = None,
    queries: Annotated[
        str,
        typer.Option(
            metavar="N|PATH",
            help="Digits: queries a phase of the demo, 64 or more. Else a folder of pictures or a JSONL file "
            "of your own queries.",
        ),
    ] = "640",
    order: Annotated[
        Literal["demo", "sorted", "training"],
        typer.Option(
            help="The demo's phases; clean queries sorted by group; shifts to choose settings on.",
            rich_help_panel=DEMO,
        ),
    ] = "demo",
    seed: Annotated[int, typer.Option(help="Of the query stream.", rich_help_panel=DEMO)] = 0,
    journal: Annotated[
        Path | None,
        typer.Option(help="Batch boundaries of a live run (JSON lines).", rich_help_panel=DEMO),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(help="The base model; with --topic too.", rich_help_panel=OWN),
    ] = None,
    gallery: Annotated[
        Path | None,
        typer.Option(help="The gallery, built with this base; with --topic too.", rich_help_panel=OWN),
    ] = None,
    topic: Annotated[
        str | None,
        typer.Option(
            help="Of queries; Kafka, base and gallery are those of --config.", rich_help_panel=TOPIC
        ),
    ] = None,
    start: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="OFFSET|TIME",
            help="Included: 1200, 2026-11-22T08:00:00Z or milliseconds since 1970.",
            rich_help_panel=TOPIC,
        ),
    ] = "",
    end: Annotated[
        str, typer.Option("--to", metavar="OFFSET|TIME", help="Excluded.", rich_help_panel=TOPIC)
    ] = "",
    partition: Annotated[
        list[int] | None,
        typer.Option(
            help="All without it; offsets need exactly one. May be repeated.", rich_help_panel=TOPIC
        ),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            help="core, develop, decoupling, safety or chain: the benchmark of all tasks.",
            rich_help_panel=SUITE,
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="One seed, fewer streams.", rich_help_panel=SUITE)
    ] = False,
    seeds: Annotated[int | None, typer.Option(help="How many.", min=1, rich_help_panel=SUITE)] = None,
    tasks: Annotated[
        str, typer.Option(help="Only these, commas and * may be used.", rich_help_panel=SUITE)
    ] = "",
    streams: Annotated[
        str,
        typer.Option(help="Only these, or CORRUPTION-SEVERITY; commas and *.", rich_help_panel=SUITE),
    ] = "",
    workers: Annotated[
        int | None,
        typer.Option(help="Processes; one per core, as memory allows.", min=1, rich_help_panel=SUITE),
    ] = None,
    html_file: Annotated[
        Path | None,
        typer.Option("--html", help="Write the report as one page.", rich_help_panel=SUITE),
    ] = None,
    markdown_file: Annotated[
        Path | None,
        typer.Option("--markdown", help="Write the report as Markdown.", rich_help_panel=SUITE),
    ] = None,
) -> None:
    """Run query shifts through the production path without Kafka: a schedule, a suite or your queries."""
    from core.config import load, load_connected
    from qshift.commands import replay_options as asked

    run = asked.run_of(given(context), queries)
    asked.check_files(journal, (json_file, html_file, markdown_file))
    chosen = tuple(name for text in (methods, *(method or ())) for name in names(text))
    if run == asked.SUITE:
        from qshift.commands.bench import Options, replay_suite

        options = Options(
            suite or "", quick, chosen, seeds, names(tasks), names(streams), data, cache or DATA / "suite",
            workers, json_file, markdown_file, html_file,
        )  # fmt: skip
        replay_suite(options, load(config), CONSOLE)
    elif run == asked.OWN:
        path = asked.queries_at(queries)
        settings = asked.with_parts(load(config), base, gallery, named=config is not None)
        from qshift.commands.own_replay import replay_own

        replay_own(path, settings.gallery, settings.base, settings, chosen, CONSOLE, json_file)
    elif run == asked.TOPIC:
        settings = asked.with_parts(load_connected(config), base, gallery, named=True)
        from qshift.commands.own_replay import replay_topic

        replay_topic(topic or "", start, end, partition or (), settings, chosen, CONSOLE, json_file)
    else:
        count = asked.count_of(queries)
        from qshift.commands.schedule_replay import tables as schedule_tables

        raise typer.Exit(
            schedule_tables(
                chosen, order, data, config, count, seed, journal, json_file, cache or DATA / "demo", CONSOLE
            )
        )


def given(context: typer.Context) -> list[str]:
    """The options that stand on the command line, by their long names."""
    return [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name
        and (source := context.get_parameter_source(parameter.name)) is not None
        and source.name == "COMMANDLINE"
    ]


def names(text: str) -> tuple[str, ...]:
    """ "a, b" -> ("a", "b")."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


@app.command(
    epilog="Examples:\n\n`qshift fit`\n\n`qshift fit my-pictures --base qshift-data/base`\n\n"
    "`qshift fit psca photos --target paintings --base qshift-data/paintings`\n\n"
    "`qshift fit couple photos --target paintings --backbone mobilenet_v2 --weights w.pth --tower-rate 1e-4`"
)
def fit(
    method: Annotated[
        str,
        typer.Argument(
            help="two-tower: heads on packaged towers; may be left out. open_clip: from scratch, 7-10 "
            "minutes. psca, couple, tpsnet: from a labelled and an unlabelled domain."
        ),
    ] = "two-tower",
    data: Annotated[
        Path | None,
        typer.Argument(
            help="Captioned pictures, the emoji without it; for two domains the source, a folder per class."
        ),
    ] = None,
    target: Annotated[
        Path | None, typer.Option(help="Pictures of the other domain; their classes are not looked at.")
    ] = None,
    base: Annotated[Path, typer.Option(help="Where the base model goes.")] = DATA / "base",
    bits: Annotated[int, typer.Option(help="Code width, a multiple of 8.")] = 64,
    seed: Annotated[int, typer.Option()] = 0,
    backbone: Annotated[
        str | None,
        typer.Option(help="psca, couple: resnet34, vit_b_16, mobilenet_v2 or alexnet as the image tower."),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Of the backbone: .safetensors, .npz or .pth; random without it.")
    ] = None,
    side: Annotated[int, typer.Option(help="Of the pictures that the tower takes, in pixels.", min=16)] = 112,
    tower_rate: Annotated[
        float,
        typer.Option(
            help="couple, tpsnet: learning rate of the image tower, such as 1e-4; 0 keeps it frozen.", min=0.0
        ),
    ] = 0.0,
    epochs: Annotated[int | None, typer.Option(help="couple, tpsnet: their own without it.", min=1)] = None,
) -> None:
    """Train a base model on captioned pictures, or on two domains."""
    from core.readers.places import is_folder
    from qshift.commands.fit import fit
    from qshift.recipes.domains.material import FitOptions

    if data is None and is_folder(Path(method)):  # `qshift fit my-pictures`
        method, data = "two-tower", Path(method)
    options = FitOptions(
        bits=bits,
        seed=seed,
        side=side,
        backbone=backbone,
        weights=weights,
        tower_rate=tower_rate,
        epochs=epochs,
    )
    fit(method, data, target, base, options, CONSOLE)


@app.command(
    epilog="Examples:\n\n`qshift evaluate psca --task mnist-usps --data DIR`\n\n"
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
    data: Annotated[Path, typer.Option(help="The folder that docs/data.md describes.")] = Path(),
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
    from qshift.commands.evaluate import Options
    from qshift.commands.evaluate import evaluate as run
    from qshift.commands.replay_options import check_files

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


@gallery.command("build", epilog="Example:\n\n`qshift gallery build my-pictures --base qshift-data/base`")
def gallery_build(
    data: Annotated[Path | None, typer.Argument(help="Captioned pictures; the emoji without it.")] = None,
    base: Annotated[Path, typer.Option(help="The base model that encodes them.")] = DATA / "base",
    out: Annotated[Path, typer.Option(help="Where the gallery goes.")] = DATA / "gallery",
) -> None:
    """Encode pictures into binary codes with a base model."""
    from qshift.commands.fit import build

    build(data, base, out, CONSOLE)


@app.command(
    epilog="Examples:\n\n`qshift produce --shift noise --queries 500`\n\n"
    "`qshift produce my-pictures --shift contrast --rate 20`\n\n`qshift produce queries.jsonl`"
)
def produce(
    context: typer.Context,
    source: Annotated[
        Path | None,
        typer.Argument(help="A folder of pictures or a file of JSON lines; the emoji without it."),
    ] = None,
    shift: Annotated[list[str] | None, typer.Option(help="Several are mixed, one per query.")] = None,
    modality: Annotated[Literal["image", "text"], typer.Option()] = "image",
    queries: Annotated[
        int | None, typer.Option(help="How many to send; 640 without it, or all of a file.", min=1)
    ] = None,
    rate: Annotated[float, typer.Option(help="Queries per second; 0 = as fast as they are answered.")] = 0.0,
    labels: Annotated[bool, typer.Option(help="Send the labels that are asked for, late.")] = True,
    seed: Annotated[int, typer.Option()] = 0,
    config: ConfigFile = None,
) -> None:
    """Stream queries with a shift, a rate and late labels to a running service."""
    from qshift.commands.produce import produce

    raise typer.Exit(
        produce(
            source, tuple(shift or ["clean"]), modality, queries, rate, labels, seed, config, CONSOLE,
            given(context),
        )
    )  # fmt: skip


@app.command(epilog="Example:\n\n`qshift labels labels.jsonl`")
def labels(
    file: Annotated[Path, typer.Argument(help='Lines {"topic", "partition", "offset", "label"}.')],
    config: ConfigFile = None,
) -> None:
    """Send late labels for queries that were answered."""
    from qshift.commands.produce import send_labels

    raise typer.Exit(send_labels(file, config, CONSOLE))


@app.command(epilog="Example:\n\n`qshift profile --json profile.json`")
def profile(
    batches: Annotated[int, typer.Option(help="Batches to measure.", min=1)] = 12,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    cache: Annotated[Path, typer.Option(help="Where the demo keeps base model and gallery.")] = DATA / "demo",
) -> None:
    """Show where the time of a batch goes, and what the service costs on top of the bare loop."""
    from qshift.demo.profile import profile

    raise typer.Exit(profile(batches, cache, json_file, CONSOLE))


@broker.command("up", epilog="Example:\n\n`qshift broker up --port 9092`")
def broker_up(
    directory: KafkaDir = DATA / "kafka", port: Annotated[int | None, typer.Option()] = None
) -> None:
    """Start Kafka in the background; it stays up until `qshift broker down`."""
    from stream import embedded

    with CONSOLE.status("Apache Kafka"):
        found = embedded.up(directory, port)
    CONSOLE.print(f"Kafka is ready at {found.bootstrap_servers} (process {found.pid})")


@broker.command("down")
def broker_down(directory: KafkaDir = DATA / "kafka") -> None:
    """Stop it cleanly; its data stay."""
    from stream import embedded

    embedded.down(directory)
    CONSOLE.print("Kafka is down")


@broker.command("status")
def broker_status(directory: KafkaDir = DATA / "kafka") -> None:
    """Say whether it runs and where."""
    from stream import embedded

    found = embedded.status(directory)
    CONSOLE.print(
        f"running at {found.bootstrap_servers} (process {found.pid})" if found.running else "not running"
    )
    raise typer.Exit(0 if found.running else 1)


@broker.command("logs")
def broker_logs(directory: KafkaDir = DATA / "kafka", lines: Annotated[int, typer.Option("-n")] = 50) -> None:
    """Print the end of its log."""
    from stream import embedded

    for line in embedded.logs(directory, lines):
        CONSOLE.print(line, markup=False, highlight=False)


def main() -> None:
    """Entry point: our own errors and those of a disk are one clear line, Ctrl-C is no traceback."""
    from core.errors import QshiftError

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a path need not be text
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except QshiftError as error:
        _say(str(error))
        sys.exit(2)
    except OSError as error:
        if error.filename is None or error.strerror is None:
            raise
        from core.readers.places import shown

        _say(
            f"{shown(os.fsdecode(error.filename))}: {error.strerror}; name another place, or make room there"
        )
        sys.exit(2)
    except KeyboardInterrupt:
        ERRORS.print("interrupted")
        sys.exit(130)


def _say(error: str) -> None:
    # As text: a path may hold what rich would read as markup, and one line stays one line.
    ERRORS.print(Text.assemble(("error", "red"), f": {error}"), highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
