"""`qshift fit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from core.errors import ConfigError
from core.readers.places import shown
from qshift.commands.options import CONSOLE, DATA, given

EXAMPLES = (
    "Examples:\n\n`qshift fit`\n\n`qshift fit my-pictures --base qshift-data/base`\n\n"
    "`qshift fit distil my-pictures --base qshift-data/distilled --steps 2000`\n\n"
    "`qshift fit psca photos --target paintings --base qshift-data/paintings`\n\n"
    "`qshift fit couple photos --target paintings --backbone mobilenet_v2 --weights w.pth --tower-rate 1e-4`"
    "\n\n`qshift fit vectors pictures.npy --queries texts.npy --base qshift-data/base`"
)


def fit(
    context: typer.Context,
    method: Annotated[
        str,
        typer.Argument(
            help="two-tower: heads on packaged towers; may be left out. distil: a small open_clip model that "
            "learns the features of two-tower, 5 minutes. open_clip: the same from scratch, 7-10 minutes. "
            "psca, couple, tpsnet: from a labelled and an unlabelled domain. vectors: of any model or API."
        ),
    ] = "two-tower",
    data: Annotated[
        Path | None,
        typer.Argument(
            help="Captioned pictures, the emoji without it; for two domains the source, a folder per class; "
            "for vectors a .npy, .npz or .parquet file."
        ),
    ] = None,
    target: Annotated[
        Path | None, typer.Option(help="Pictures of the other domain; their classes are not looked at.")
    ] = None,
    base: Annotated[Path, typer.Option(help="Where the base model goes.")] = DATA / "base",
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
) -> None:
    """Train a base model on captioned pictures, or on two domains."""
    from core.readers.places import is_folder

    if data is None and is_folder(Path(method)):  # `qshift fit my-pictures`
        method, data = "two-tower", Path(method)
    elif data is None and Path(method).suffix:  # `qshift fit items.npy`
        from core.readers.vectors import holds_vectors

        if holds_vectors(Path(method)):
            method, data = "vectors", Path(method)
    if method == "vectors":
        from qshift.demo.vectors import fit_vectors

        return fit_vectors(data, queries, base, bits, seed, CONSOLE, given(context))
    if queries is not None:
        raise ConfigError(f"--queries is of vectors: leave it out with {shown(method)}")
    from qshift.demo.fit import fit
    from qshift.recipes.domains.material import FitOptions

    options = FitOptions(
        bits=64 if bits is None else bits,
        seed=seed,
        side=side,
        backbone=backbone,
        weights=weights,
        tower_rate=tower_rate,
        epochs=epochs,
    )
    fit(method, data, target, base, options, CONSOLE, steps)
