"""`qshift fit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from core.errors import ConfigError
from core.readers.places import shown
from qshift.commands.options import CONSOLE, DATA, given

EXAMPLES = (
    "Examples:\n\n`qshift fit`\n\n`qshift fit my-pictures --base qshift-data/base`\n\n"
    "`qshift fit distil my-pictures --base qshift-data/distilled --steps 2000`\n\n"
    "`qshift fit clip my-pictures --model ViT-B-32 --pretrained weights.pt --tag laion2b_s34b_b79k`\n\n"
    "`qshift fit clip my-pictures --pretrained my-open-clip-folder --base qshift-data/mine`\n\n"
    "`qshift fit psca photos --target paintings --base qshift-data/paintings`\n\n"
    "`qshift fit couple photos --target paintings --backbone mobilenet_v2 --weights w.pth --tower-rate 1e-4`"
    "\n\n"
    "`qshift fit couple photos --target paintings --pretrained my-open-clip-folder --preset paper`"
    "\n\n`qshift fit calibrate my-pictures --base qshift-data/old --out qshift-data/base`"
    "\n\n`qshift fit vectors pictures.npy --queries texts.npy --base qshift-data/base`"
)


TOWERS = ("--model", "--pretrained", "--tag", "--quick-gelu", "--text-files")
OF_CLIP = (*TOWERS, "--precision", "--train")
DOMAINS = ("psca", "couple", "tpsnet")
EVERYWHERE = ("--base", "--bits", "--seed")


def fit(
    context: typer.Context,
    method: Annotated[
        str,
        typer.Argument(
            help="two-tower: heads on packaged towers; may be left out. distil: a small open_clip model that "
            "learns the features of two-tower, 5 minutes. open_clip: the same from scratch, 7-10 minutes. "
            "clip: an open_clip model of your own, as it is. vectors: of any model or API. "
            "psca, couple, tpsnet: from a labelled and an unlabelled domain. calibrate: trains nothing, "
            "measures what clean queries look like to the base in --base: for one fitted by an older version."
        ),
    ] = "two-tower",
    data: Annotated[
        Path | None,
        typer.Argument(
            help="Captioned pictures, the emoji without it; for two domains the source, a folder per class; "
            "for clip and calibrate pictures with captions or by class, for clip a .txt file with a text a "
            "line, too; for vectors a .npy, .npz or .parquet file."
        ),
    ] = None,
    target: Annotated[
        Path | None, typer.Option(help="Pictures of the other domain; their classes are not looked at.")
    ] = None,
    base: Annotated[Path, typer.Option(help="Where the base model goes.")] = DATA / "base",
    out: Annotated[
        Path | None, typer.Option(help="calibrate: where the measured base goes; replaces it without.")
    ] = None,
    queries: Annotated[
        Path | None,
        typer.Option(help="vectors: clean queries, where they are of another kind than what is searched."),
    ] = None,
    bits: Annotated[
        int | None, typer.Option(help="Code width, a multiple of 8; 64 without it, of vectors 128.")
    ] = None,
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
    steps: Annotated[
        int | None, typer.Option(help="distil, open_clip: of the training; their own without it.", min=1)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="clip, psca, couple, tpsnet: a configuration of open_clip, such as ViT-B-32; or "
            "torchvision:NAME, timm:NAME, for pictures alone."
        ),
    ] = None,
    pretrained: Annotated[
        str | None,
        typer.Option(
            metavar="TAG|FILE|DIR",
            help="Of the model: a weight file (.safetensors, .pt), a folder in open_clip's format, which "
            "needs no --model, or a tag, which is downloaded with HF_HUB_OFFLINE=0.",
        ),
    ] = None,
    tag: Annotated[
        str | None,
        typer.Option(help="Of the model: whose weights a file holds: says activation and preprocessing."),
    ] = None,
    quick_gelu: Annotated[
        bool | None,
        typer.Option(
            "--quick-gelu/--no-quick-gelu", help="Of the model: what a file was trained with, without --tag."
        ),
    ] = None,
    text_files: Annotated[
        Path | None,
        typer.Option(
            help="Of the model: folder with the files of tokenizer and text tower, where a model has its own."
        ),
    ] = None,
    precision: Annotated[
        Literal["fp32", "bf16", "fp16"],
        typer.Option(help="clip, calibrate: of the body; normalisation stays fp32."),
    ] = "fp32",
    train: Annotated[
        Literal["heads"] | None,
        typer.Option(
            help="clip: nothing without it; heads: a linear map behind each frozen tower, from captions."
        ),
    ] = None,
    preset: Annotated[
        Literal["paper", "plus"] | None,
        typer.Option(
            help="psca, couple, tpsnet: as published, or with our changes; without it plus, of tpsnet paper."
        ),
    ] = None,
) -> None:
    """Train a base model on captioned pictures or on two domains, or bring an open_clip model."""
    from core.readers.places import is_folder

    if data is None and is_folder(Path(method)):  # `qshift fit my-pictures`
        method, data = "two-tower", Path(method)
    elif data is None and Path(method).suffix:  # `qshift fit items.npy`
        from core.readers.vectors import holds_vectors

        if holds_vectors(Path(method)):
            method, data = "vectors", Path(method)
    if method == "calibrate":
        from qshift.demo.fit_calibrate import fit_calibrate

        return fit_calibrate(data, base, out, seed, precision, CONSOLE, given(context))
    if out is not None:
        raise ConfigError(f"--out is of calibrate: {shown(method)} writes --base")
    if method == "vectors":
        from qshift.demo.vectors import fit_vectors

        return fit_vectors(data, queries, base, bits, seed, CONSOLE, given(context))
    if queries is not None:
        raise ConfigError(f"--queries is of vectors: leave it out with {shown(method)}")
    if method == "clip":
        from encoders.clip_source import ClipSource
        from qshift.demo.fit_clip import ClipOptions, fit_clip

        named = [name for name in given(context) if name.startswith("--")]
        wrong = [name for name in named if name not in (*OF_CLIP, *EVERYWHERE)]
        if wrong:
            raise ConfigError(f"clip takes towers as they are: leave {', '.join(wrong)} out")
        if data is None or pretrained is None:
            raise ConfigError(
                "clip needs data and weights: qshift fit clip DATA --model NAME --pretrained FILE, or "
                "--pretrained DIR alone"
            )
        source = ClipSource(model, pretrained, tag, quick_gelu, text_files)
        fit_clip(data, base, ClipOptions(source, precision, bits or 64, seed, train == "heads"), CONSOLE)
        return
    domains = method in DOMAINS
    wrong = [name for name in given(context) if name in OF_CLIP and not (domains and name in TOWERS)]
    if wrong:
        raise ConfigError(
            f"{', '.join(wrong)} is of clip: qshift fit clip DATA --model NAME --pretrained FILE"
        )
    if preset is not None and not domains:
        raise ConfigError(f"--preset is of {', '.join(DOMAINS)}: leave it out with {shown(method)}")
    if pretrained is None and (wrong := [name for name in given(context) if name in TOWERS]):
        raise ConfigError(f"{', '.join(wrong)} needs weights: add --pretrained FILE, TAG or DIR")
    from encoders.clip_source import ClipSource
    from qshift.demo.fit import fit
    from qshift.recipes.domains.material import FitOptions

    own = None if pretrained is None else ClipSource(model, pretrained, tag, quick_gelu, text_files)

    options = FitOptions(
        bits=64 if bits is None else bits,
        seed=seed,
        side=side,
        backbone=backbone,
        weights=weights,
        model=own,
        preset=preset,
        tower_rate=tower_rate,
        epochs=epochs,
    )
    fit(method, data, target, base, options, CONSOLE, steps)
