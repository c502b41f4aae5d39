"""`qshift fit vectors` and `qshift gallery build FILE` on the command line."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from rich.console import Console

from core.errors import ConfigError
from core.readers.vectors import SUFFIXES, VectorFile, read_vectors
from encoders.base_model import load_base
from qshift.data.attributes import item_attributes, say_attributes
from qshift.recipes.vectors import BITS, build_vector_gallery, fit_vector_base
from qshift.terminal.bars import bars, reporter

OPTIONS = ("--base", "--queries", "--bits", "--seed")


def fit_vectors(
    items: Path | None,
    queries: Path | None,
    base: Path,
    bits: int | None,
    seed: int,
    console: Console,
    given: Collection[str] = (),
) -> None:
    """Makes a base of vectors.

    Args:
        items: file of what is searched.
        queries: file of clean queries, where they are of another kind than the items.
        base: where the base model goes.
        bits: width of the codes; None for the usual one.
        seed: of the hash head and of the clean queries.
        console: for progress, what is left out and what to do next.
        given: options on the command line, such as "--target".

    Raises:
        ConfigError: no such file, one that holds no vectors, too few, or of two widths; options of others.
    """
    if strange := [flag for flag in given if flag.startswith("-") and flag not in OPTIONS]:
        raise ConfigError(f"vectors takes {', '.join(OPTIONS)} only: leave {strange[0]} out")
    if items is None:
        raise ConfigError(f"vectors needs a file ({', '.join(SUFFIXES)}): qshift fit vectors FILE.npy")
    found = _read(items, {}, console)
    asking = None if queries is None else _read(queries, {}, console)
    with bars(console) as progress:
        fit_vector_base(base, found, asking, bits or BITS, seed, reporter(progress), items.stem)
    console.print(f"base model in {base}; next: qshift gallery build {items} --base {base}")


def build_vectors(
    items: Path, beside: Mapping[str, Path | None], base: Path, out: Path, console: Console,
    attributes: Path | None = None,
) -> None:  # fmt: skip
    """Builds a gallery of the vectors of a file. Raises ConfigError, ArtifactError, GalleryError."""
    model, found = load_base(base), _read(items, beside, console)
    said = item_attributes(items, attributes, found.ids())
    with bars(console) as progress:
        gallery = build_vector_gallery(model, found, reporter(progress), said)
    gallery.save(out)
    say_attributes(said, console)
    console.print(f"{len(gallery):,} items with {gallery.bits}-bit codes in {out}, version {gallery.version}")


def _read(path: Path, beside: Mapping[str, Path | None], console: Console) -> VectorFile:
    found = read_vectors(path, beside)
    for note in found.notes():
        console.print(note, style="yellow", markup=False, highlight=False)
    return found
