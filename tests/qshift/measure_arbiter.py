"""A table of queries by which rules for the weight of the adapted twin can be compared off line.

python tests/qshift/measure_arbiter.py DATA CACHE OUT TASK STREAMS [BATCHES [SEED ...]]

STREAMS, with commas: CORRUPTION-SEVERITY, clean, sorted, mixed, turn, or a domain of the task. Alignment
answers alone, so that no batch is quiet. OUT/TASK.npz holds a row for each query, see `COLUMNS`: the evidence
of its batch and its own, and the AP of every weight. What was compared: docs/lab/log.md, 2026-11-30.
"""

import sys
from pathlib import Path

import numpy as np

from core.config import Config
from core.types import Encoded
from index.evidence import Evidence, together
from index.fusion import WEIGHTS, TwinFusion
from index.judging import Judge as Weighed
from index.versions import GalleryVersions
from monitoring.ranking import ap_and_first, counted_levels
from qshift.benchmarks.streams import FULL, Look, Segment
from qshift.benchmarks.suite.judge import Judge
from qshift.benchmarks.suite.runs import log_of, planned
from qshift.benchmarks.suite.work import KnownTasks
from qshift.benchmarks.suites.plan import CLEAN, Plan
from qshift.build import assemble, ranked
from qshift.methods import with_method
from qshift.offline import run_offline

COLUMNS = (
    *(
        "stream",
        "seed",
        "batch",
        "offset",
        "lost",
        "left",
        "before",
        "after",
        "clean",
        "near",
        "moved",
        "classes",
    ),
    *(f"ap{w}" for w in WEIGHTS),
    *("first", "other", "top", "top2", "same", "distinct"),
)
"""lost, left: drops; before, after, clean: mean cosine of two queries of the batch; near, moved: share of
neighbours that agree; first, other: number of the first label of either twin; top: entropy of a belief;
same: share of the ten nearest items that both twins have; distinct: of the code, first of its batch."""


class Seen(Judge):
    """Keeps the evidence and the AP of every weight of each query."""

    def __init__(self, engine, labels, modality):
        super().__init__(labels, ranked(engine), {})
        self.engine, self.modality, base = engine, modality, engine.base
        answer = engine.config.answer.model_copy(update={"fuse": "mixture"})
        self.evidence = Evidence(answer, base.reference, base.head.codes)
        self.weighed = Weighed(answer, TwinFusion(answer, self.evidence))
        self.rows, self.batch, self.numbers = [], 0, {}

    def observe(self, outcome):
        gallery, ev = self.engine.versions.version(outcome.gallery_version), self.evidence
        clean, own = ev._clean_together(self.modality), ev.agreement_of_clean(gallery, self.modality)
        twins = (outcome.frozen, outcome.adapted)
        drops = [ev.drops(gallery, self.modality, twin) for twin in twins]
        codes = outcome.frozen.codes
        firsts = np.zeros(len(codes), bool)
        firsts[np.unique(codes, axis=0, return_index=True)[1]] = True
        close = [together(twin.features[firsts]) for twin in twins]
        shares = [ev.agreed(gallery, twin).near for twin in twins]
        order = [np.argsort(-twin.cosines, axis=1, kind="stable")[:, :10] for twin in twins]
        tens = [np.take_along_axis(twin.hits.keys, at, 1) for twin, at in zip(twins, order)]
        names = [[(*gallery.labels_of(int(row[0])), "")[0] for row in ten] for ten in tens]
        numbers = [[self.numbers.setdefault(name, len(self.numbers)) for name in one] for one in names]
        entropy = []
        for twin in twins:
            belief = np.exp((twin.cosines - twin.cosines.max(1, keepdims=True)) / 0.1)
            belief /= belief.sum(1, keepdims=True)
            entropy.append(-(belief * np.log(belief + 1e-12)).sum(1))
        for row, query in enumerate(outcome.batch.queries):
            label = self._labels[query.at.offset]
            frozen, adapted = (Encoded(t.features[row : row + 1], t.codes[row : row + 1]) for t in twins)
            found = self.weighed.weighed(gallery, frozen, adapted, WEIGHTS, label)
            aps = [ap_and_first(counted_levels(*one))[0] for one in found]
            same = len(set(tens[0][row]) & set(tens[1][row])) / 10
            self.rows.append(
                [self.batch, query.at.offset, drops[0][row], drops[1][row], *close, clean, shares[0][row],
                 shares[1][row], own, *aps, numbers[0][row], numbers[1][row], entropy[0][row],
                 entropy[1][row], same, firsts[row]]
            )  # fmt: skip
        self.batch += 1


def stream_of(plan, name, batches):
    """A stream by its name: of "develop", of a look, clean or sorted."""
    corruption, _, severity = name.rpartition("-")
    if severity.isdigit():
        return plan.single(Look(corruption=corruption, severity=int(severity)), "corruption", batches)
    if name == "clean":
        return plan.clean(batches)
    if name == "sorted":
        return plan.sorted(batches)
    if name in plan.domains:
        return plan.single(Look(name), "domain", batches)
    if name == "mixed":
        looks = tuple(
            Look(corruption=one, severity=3) for one in ("impulse_noise", "motion_blur", "brightness")
        )
        return plan.stream(name, "diverse", "mixed", [Segment("mixed", (CLEAN, *looks), FULL * batches)])
    if name == "turn":
        looks = [Look(corruption=one, severity=4) for one in ("impulse_noise", "pixelate")]
        looks = [Look(plan.domains[0]), looks[0]] if plan.domains else looks
        parts = [Segment(str(n), (look,), FULL * batches // 2) for n, look in enumerate(looks)]
        return plan.stream(name, "sequential", "recurrent", parts)
    raise SystemExit(f"no stream {name!r}")


def main(data, cache, out, name, streams, batches="3", *seeds):
    tasks = KnownTasks(Path(data), Path(cache))
    ready = tasks.ready(tasks.load(name))
    task, base, table, names = ready.task, ready.base, [], streams.split(",")
    domains = tuple(pool for pool in task.pools if pool != "clean")
    plan = Plan(task.name, task.modality, domains, task.retaken, task.split)
    for number, one in enumerate(names):
        for seed in map(int, seeds or ("100",)):
            config = with_method(Config(device="cpu", seed=seed), "aligned")
            answer = config.answer.model_copy(update={"frozen_share": 1.0})
            config = config.model_copy(update={"answer": answer})
            stream = stream_of(plan, one, int(batches))
            engine = assemble(config, base, GalleryVersions(ready.gallery))
            log = log_of(task, stream, seed, config)
            seen = Seen(engine, log.labels, task.modality)
            run_offline(engine, log.records, [seen], planned(log, stream, config, None))
            table += [[number, seed, *row] for row in seen.rows]
            rows = np.array(seen.rows)
            frozen, adapted = 100 * rows[:, [10, 16]].mean(0)
            print(f"{name} {one} {seed}: frozen {frozen:.1f} adapted {adapted:.1f}", flush=True)
    kept = Path(out) / f"{name.replace('/', '-')}.npz"
    np.savez_compressed(kept, names=np.array(names), rows=np.array(table), columns=np.array(COLUMNS))


if __name__ == "__main__":
    main(*sys.argv[1:])
