"""How good the confidence of single answers is: the table of "A single answer" in docs/methods/expected.md.

python tests/qshift/measure_confidence.py DATA CACHE [TASK ...]
"""

import sys
from pathlib import Path

import numpy as np

from core.config import Config
from core.types import Outcome
from index.versions import GalleryVersions
from qshift.benchmarks.suite.judge import Judge
from qshift.benchmarks.suite.runs import log_of
from qshift.benchmarks.suite.work import KnownTasks
from qshift.benchmarks.suites import SUITES
from qshift.benchmarks.suites.plan import Plan
from qshift.build import assemble, ranked
from qshift.methods import with_method
from qshift.offline import run_offline

TASKS = ("emoji/openmoji-noto", "office/amazon-webcam", "digits/usps-mnist")
SHARES = (1.0, 0.75, 0.5, 0.25)


class Confident(Judge):
    """Keeps the confidence of each judged answer, too."""

    def __init__(self, engine, labels):
        super().__init__(labels, ranked(engine), {})
        self.decisions, self.sure = engine.codec.decisions, {}

    def observe(self, outcome: Outcome) -> None:
        super().observe(outcome)
        said = self.decisions(outcome).confidence
        self.sure |= {query.at.offset: value for query, value in zip(outcome.batch.queries, said)}


def pairs(tasks, name):
    """(confidence, average precision of what was served) [n, 2] over the streams of "develop"."""
    ready = tasks.ready(tasks.load(name))
    task, found = ready.task, []
    domains = tuple(pool for pool in task.pools if pool != "clean")
    plan = Plan(task.name, task.modality, domains, task.retaken, task.split)
    config = with_method(Config(device="cpu"), "default")
    for stream in SUITES["develop"].streams(plan, True):
        engine = assemble(config, ready.base, GalleryVersions(ready.gallery))
        log = log_of(task, stream, 100, config)
        judge = Confident(engine, log.labels)
        run_offline(engine, log.records, [judge])
        rows = [(judge.sure[offset], served[0]) for offset, served in judge.served.items()]
        found += rows
        sure, right = np.array(rows, float).T
        print(
            f"  {stream.name:24} expected {100 * sure.mean():5.1f}  true {100 * right.mean():5.1f}",
            flush=True,
        )
    return np.array(found, float)


def main(data: Path, cache: Path, *names: str) -> None:
    tasks = KnownTasks(data, cache)
    for name in names or TASKS:
        print(name)
        sure, right = pairs(tasks, name).T
        order = np.argsort(-sure, kind="stable")
        bins = np.array_split(order, 10)
        off = sum(len(part) * abs(sure[part].mean() - right[part].mean()) for part in bins) / len(sure)
        kept = [100 * right[order[: round(share * len(order))]].mean() for share in SHARES]
        best = [100 * np.sort(right)[::-1][: round(share * len(right))].mean() for share in SHARES]
        print(
            f"  n {len(sure)}  r {np.corrcoef(sure, right)[0, 1]:.2f}  error of tenths {100 * off:.1f} points"
        )
        print("  mAP of the surest", *(f"{share:.0%}: {m:.1f}" for share, m in zip(SHARES, kept)), sep="  ")
        print("  of the best      ", *(f"{share:.0%}: {m:.1f}" for share, m in zip(SHARES, best)), sep="  ")
        rows = (f"{100 * sure[part].mean():.0f}/{100 * right[part].mean():.0f}" for part in bins)
        print("  expected/true of tenths", *rows)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]), *sys.argv[3:])
