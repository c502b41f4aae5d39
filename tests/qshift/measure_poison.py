"""What hostile queries take from the others of their batches: the tables of 2026-11-30 in docs/lab/log.md.

python tests/qshift/measure_poison.py DATA CACHE TASK [QUERIES SHARES HOSTS POISONS]

Honest queries are the same ones, in the same batches, with and without poison among them.
"""

import sys
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np

from core.checkpoints import JournalEntry
from core.config import Config
from index.versions import GalleryVersions
from qshift.benchmarks.streams import FULL, Look, Poison, Segment, Stream
from qshift.benchmarks.suite.judge import Judge
from qshift.benchmarks.suite.runs import log_of
from qshift.benchmarks.suite.shared import SharedEncoder
from qshift.benchmarks.suite.work import KnownTasks
from qshift.build import assemble, ranked
from qshift.offline import run_offline

SEED = 100
TRICKS = ("noise", "grey", "colour", "checks", "same")
POISONS = {trick: (Look(trick=trick),) for trick in TRICKS} | {"all": tuple(Look(trick=t) for t in TRICKS)}
HOSTS = {name: Look(corruption=name, severity=3) for name in ("impulse_noise", "pixelate", "motion_blur")}


class Run:
    """One task, its base and gallery, and what frozen forwards have said."""

    def __init__(self, data: Path, cache: Path, task: str) -> None:
        tasks = KnownTasks(data, cache)
        self.task = tasks.load(task)
        self.ready = tasks.ready(self.task)
        self.encoders = {kind: SharedEncoder(one) for kind, one in self.ready.base.encoders.items()}
        self.config = Config(seed=SEED)

    def log(self, host: Look, queries: int, poison: Poison | None):
        segment = Segment("all", (host,), queries, poison=poison)
        stream = Stream(self.task.name, host.name or "clean", "hostile", (segment,), "safety")
        return log_of(self.task, stream, SEED, self.config)

    def mean(self, log, sizes: list[int]) -> tuple[float, float, float]:
        """mAP of the frozen twin, the adapted twin and what was served, of the labelled queries."""
        engine = assemble(
            self.config, self.ready.base, GalleryVersions(self.ready.gallery), encoders=self.encoders
        )
        judge, topic = Judge(log.labels, ranked(engine), {}), self.config.kafka.queries
        lane, ends = f"0:{self.task.modality}", [0, *accumulate(sizes)]
        plan = [
            JournalEntry(topic, 0, lane, number, tuple(range(*part)), "", 0)
            for number, part in enumerate(pairwise(ends))
        ]
        run_offline(engine, log.records, [judge], plan)
        twins = (judge.frozen, judge.adapted, judge.served)
        return tuple(100 * float(np.mean([found[0] for found in twin.values()])) for twin in twins)


def main(data: str, cache: str, task: str, queries="256", shares=".01,.1,.5", hosts="", poisons="") -> None:
    run = Run(Path(data), Path(cache), task)
    for host in (hosts or ",".join(("clean", *HOSTS))).split(","):
        look = HOSTS.get(host) or Look(host)
        for share in map(float, shares.split(",")):
            plain = None
            for name in (poisons or ",".join(POISONS)).split(","):
                log = run.log(look, int(queries), Poison(POISONS[name], share))
                count = len(log.labels)
                cuts = [range(at, min(at + FULL, count)) for at in range(0, count, FULL)]
                honest = [sum(bool(log.labels[at]) for at in cut) for cut in cuts]
                if plain is None:
                    plain = run.mean(run.log(look, int(queries), None), [n for n in honest if n])
                found = run.mean(log, [len(cut) for cut in cuts])
                alone, served = (found[n] - found[0] for n in (1, 2))
                before = plain[2] - plain[0]
                kept = f"{served / before:.0%}" if before > 1 else "-"
                print(
                    f"{host:14s} {share:4.0%} {name:7s} frozen {found[0]:5.1f}; without poison "
                    f"{plain[1] - plain[0]:+5.1f} served {before:+5.1f}; with {alone:+5.1f} "
                    f"served {served:+5.1f}; kept {kept}",
                    flush=True,
                )


if __name__ == "__main__":
    main(*sys.argv[1:])
