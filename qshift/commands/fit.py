"""`qshift fit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qshift.commands.options import CONSOLE, DATA

EXAMPLES = (
    "Examples:\n\n`qshift fit`\n\n`qshift fit my-pictures --base qshift-data/base`\n\n"
    "`qshift fit distil my-pictures --base qshift-data/distilled --steps 2000`\n\n"
    "`qshift fit psca photos --target paintings --base qshift-data/paintings`\n\n"
    "`qshift fit couple photos --target paintings --backbone mobilenet_v2 --weights w.pth --tower-rate 1e-4`"
)


def fit(
    method: Annotated[
        str,
        typer.Argument(
            help="two-tower: heads on packaged towers; may be left out. distil: a small open_clip model that "
            "learns the features of two-tower, 5 minutes. open_clip: the same from scratch, 7-10 minutes. "
            "psca, couple, tpsnet: from a labelled and an unlabelled domain."
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
    steps: Annotated[
        int | None, typer.Option(help="distil, open_clip: of the training; their own without it.", min=1)
    ] = None,
) -> None:
    """Train a base model on captioned pictures, or on two domains."""
    from core.readers.places import is_folder
    from qshift.demo.fit import fit
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
    fit(method, data, target, base, options, CONSOLE, steps)
