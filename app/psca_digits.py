"""PSCA from MNIST to USPS: cross-domain retrieval with learned and with out-of-sample gallery codes.

`python -m app.psca_digits --data DIR`: `DIR/jda/mnist_usps_256.npz` holds `mnist_x`, `mnist_y`, `usps_x`
and `usps_y`, pixels [n, 256]. A split takes 10 % of USPS as queries; the other 90 % and all of MNIST are
fitted to, and MNIST is the gallery. Learned gallery codes hold MNIST's labels, out-of-sample codes do not:
the two columns answer different questions.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import Annotated, Any, Literal

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from adapters.offline.psca import fit
from adapters.offline.psca_config import PscaConfig
from core.errors import ArtifactError
from core.types import Codes
from index.codes import hamming, pack
from monitoring.ranking import average_precision

FILE = "jda/mnist_usps_256.npz"
QUERIES = 0.1
"""Share of the target that is held out and asked with."""


@dataclass(frozen=True, slots=True)
class Digits:
    source: NDArray[Any]
    source_labels: NDArray[Any]
    target: NDArray[Any]
    target_labels: NDArray[Any]


@dataclass(frozen=True, slots=True)
class Scored:
    """One split, in percent and processor seconds."""

    learned: float
    """Tie-aware mAP over learned source codes."""
    hashed: float
    """Over out-of-sample source codes."""
    by_membership: float
    """Queries coded by membership, over learned source codes."""
    named: float
    """Target training samples whose largest membership is their class."""
    agreement: float
    seconds: float


def load(data: Path) -> Digits:
    """Raises ArtifactError when the file is not there."""
    path = data / FILE
    if not path.exists():
        raise ArtifactError(f"{FILE} expected in the data folder, found none: give another one with --data")
    with np.load(path) as stored:
        return Digits(*(stored[name] for name in ("mnist_x", "mnist_y", "usps_x", "usps_y")))


def scored(digits: Digits, config: PscaConfig, split: int) -> Scored:
    """Fits to one split and asks with its queries."""
    order = np.random.default_rng(split).permutation(len(digits.target))
    asked = int(QUERIES * len(order))
    queries, training = digits.target[order[:asked]], digits.target[order[asked:]]
    labels, truth = digits.target_labels[order[:asked]], digits.target_labels[order[asked:]]
    began = process_time()
    fitted = fit(digits.source, digits.source_labels, training, config)
    seconds = process_time() - began
    relevant = labels[:, None] == digits.source_labels
    codes, learned = pack(fitted.relaxed(queries)), pack(fitted.quantisation.source_codes)
    named = fitted.classes[fitted.alignment.membership.argmax(1)]
    return Scored(
        mean_precision(codes, learned, relevant),
        mean_precision(codes, pack(fitted.relaxed(digits.source)), relevant),
        mean_precision(pack(fitted.relaxed_by_membership(queries)), learned, relevant),
        100 * float((named == truth).mean()),
        100 * fitted.trained.agreement,
        seconds,
    )


def mean_precision(queries: Codes, gallery: Codes, relevant: NDArray[np.bool_]) -> float:
    """Tie-aware mAP in percent; queries without a relevant item are left out."""
    values = [average_precision(d, r) for d, r in zip(hamming(queries, gallery), relevant)]
    return 100 * float(np.nanmean(values))


def main(
    data: Annotated[Path, typer.Option(help="Folder that holds jda/.")],
    bits: Annotated[list[int], typer.Option(help="Code lengths.")] = [16, 32, 64, 128],  # noqa: B006
    splits: Annotated[int, typer.Option(min=1)] = 5,
    membership: Annotated[Literal["soft", "hard", "fcm"], typer.Option()] = "soft",
    weights: Annotated[Literal["joint", "literal"], typer.Option()] = "joint",
) -> None:
    """Prints one row per code length: mean and standard deviation over the splits."""
    digits = load(data)
    table = Table(
        "bits", "mAP, learned codes", "mAP, out-of-sample codes", "mAP, membership codes", "pseudo-labels",
        "agreement", "seconds of a fit",
        title=f"MNIST -> USPS, cross-domain, {splits} splits, membership {membership}, weights {weights}",
    )  # fmt: skip
    for length in bits:
        config = PscaConfig(bits=length, membership=membership, weights=weights)
        runs = [scored(digits, config, split) for split in range(splits)]
        means = np.array([(r.learned, r.hashed, r.by_membership, r.named, r.agreement) for r in runs])
        cells = [f"{m:.1f} ± {s:.1f}" for m, s in zip(means.mean(0), means.std(0))]
        table.add_row(str(length), *cells, f"{np.mean([r.seconds for r in runs]):.2f}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
