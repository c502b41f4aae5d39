"""Angles between the objective's gradient and each decoupling reference, without removing anything.

`python -m qshift.benchmarks.angles --data DIR --cache DIR`: what REST publishes as a figure (111 to 135
degrees, its definition is not given), measured here on plain TCR's own trajectory, for D1, D2 and D3.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import typer

from core.config import Config
from core.records import Judgement, Refusal
from core.types import Outcome
from encoders.base_model import load_base
from index.gallery import VersionedGallery
from index.versions import GalleryVersions
from qshift import build
from qshift.benchmarks.streams import Look
from qshift.benchmarks.suite.bases import prepare
from qshift.benchmarks.suite.runs import log_of
from qshift.benchmarks.suite.tasks import load_task
from qshift.benchmarks.suites.plan import Plan
from qshift.offline import run_offline
from qshift.terminal.sheet import Head, Sheet, console

TASKS = ("emoji/picture-picture", "fashion/picture-picture", "pacs/photo-art", "digits/mnist-usps")
REFERENCES = ("source_kl", "memory", "weights")
KEEP = 1e-9
"""Strength of a decoupling that logs its angles and removes nothing."""


class Angles:
    """Observer: conflict and realised degrees of every update."""

    def __init__(self) -> None:
        self.conflict: list[float] = []
        self.realised: list[float] = []

    def observe(self, outcome: Outcome) -> None:
        if outcome.step is not None and outcome.step.updated:
            self.conflict.append(outcome.step.diagnostics["conflict_degrees"])
            self.realised.append(outcome.step.diagnostics["realised_degrees"])

    def judge(self, judgement: Judgement) -> None: ...

    def refuse(self, refusal: Refusal) -> None: ...


def measured(task_name: str, data: Path | None, cache: Path, reference: str, batches: int) -> Angles:
    """Plain TCR (no anchor, no decoupling) over a noisy stream of a task."""
    prepared = prepare(load_task(task_name, data, cache), cache)
    task, base = prepared.task, load_base(prepared.base)
    gallery = VersionedGallery.load(prepared.gallery, base_version=base.version)
    adapt = {
        "method": "rest", "anchor": 1.0, "align": {"enabled": False},
        "decouple": {"reference": reference, "strength": KEEP},
    }  # fmt: skip
    config = Config.model_validate({"adapt": adapt})
    plan = Plan(task.name, task.modality, (), task.retaken, task.split)
    stream = plan.single(Look(corruption="gaussian_noise", severity=4), "corruption", batches)
    log, seen = log_of(task, stream, 0, config), Angles()
    run_offline(build.assemble(config, base, GalleryVersions(gallery)), log.records, [seen])
    return seen


def main(
    data: Annotated[Path, typer.Option(help="Where data sets lie.")],
    cache: Annotated[Path, typer.Option(help="Base models and galleries.")] = Path("qshift-data/suite"),
    batches: Annotated[int, typer.Option(min=2)] = 10,
) -> None:
    """Prints one row per task and reference."""
    build.pin_threads(Config())
    sheet = Sheet(
        "degrees, mean over batches",
        [
            Head("task", left=True), Head("reference", left=True), Head("angle of g and r"),
            Head("share above 90"), Head("angle of the step and r"),
        ],
    )  # fmt: skip
    for name in TASKS:
        for reference in REFERENCES:
            seen = measured(name, data, cache, reference, batches)
            angles = np.array(seen.conflict)
            known = angles[np.isfinite(angles)]
            share = float((known > 90).mean()) if len(known) else float("nan")
            mean = float(known.mean()) if len(known) else float("nan")
            realised = float(np.nanmean(seen.realised)) if len(known) else float("nan")
            sheet.add(name, reference, f"{mean:.0f}", f"{share:.0%}", f"{realised:.0f}")
    sheet.print(console())


if __name__ == "__main__":
    typer.run(main)
