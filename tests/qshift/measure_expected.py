"""How well mAP is expected without labels: tables and picture of docs/methods/expected.md.

python tests/qshift/measure_expected.py DATA CACHE [--svg FILE] [TASK ...]

What is seen of answers is kept in CACHE/expected-TASK.npz, and not asked again.
"""

import sys
from pathlib import Path

import numpy as np

from core.config import Config
from core.expected import _falling, fitted, precision_at
from index.evidence import Evidence
from index.versions import GalleryVersions
from qshift.benchmarks.streams import Look
from qshift.benchmarks.suite.bases import named_pictures
from qshift.benchmarks.suite.judge import Judge
from qshift.benchmarks.suite.picture_base import crops_of
from qshift.benchmarks.suite.runs import log_of, planned
from qshift.benchmarks.suite.work import KnownTasks
from qshift.benchmarks.suites.core import recurrent, severe
from qshift.benchmarks.suites.plan import Plan
from qshift.benchmarks.suites.special import DEVELOP_CORRUPTIONS, choosing
from qshift.build import assemble, ranked
from qshift.methods import with_method
from qshift.offline import run_offline
from qshift.recipes.emoji_base import clean_queries
from qshift.recipes.expected import gallery_of, measured_answers
from qshift.shifts.corruptions import IMAGE_CORRUPTIONS

TASKS = ("office/amazon-webcam", "digits/usps-mnist", "fashion-mnist/develop", "emoji/openmoji-noto")
SEED, SIDE, DOT = 100, 260, 3
HIDDEN = ("covered", "striped")
COLOURS = {"frozen": "#1f77b4", "adapted": "#d62728"}


class Seen(Judge):
    """Keeps drop, share and gathering of each judged answer, of both twins."""

    def __init__(self, engine, labels):
        super().__init__(labels, ranked(engine), {})
        self.engine, base = engine, engine.base
        self.evidence = Evidence(engine.config.answer, base.reference, base.head.codes)
        self.rows = {}

    def observe(self, outcome):
        super().observe(outcome)
        gallery, columns = self.engine.versions.version(outcome.gallery_version), []
        for twin in (outcome.frozen, outcome.adapted):
            columns += [
                self.evidence.drops(gallery, "image", twin),
                self.evidence.agreed(gallery, twin).around,
                self.evidence.gathered(gallery, "image", twin),
            ]
        for query, *row in zip(outcome.batch.queries, *columns):
            self.rows[query.at.offset] = row

    def table(self):
        """[n, 8]: drop, share, gathering and AP of the frozen twin, then of the adapted one."""
        rows = []
        for offset in sorted(self.frozen):
            frozen, adapted = self.rows[offset][:3], self.rows[offset][3:]
            rows.append([*frozen, self.frozen[offset][0], *adapted, self.adapted[offset][0]])
        return np.array(rows)


def streams_of(plan):
    """(kind, stream): of those for development settings may be chosen, of the others nothing was."""
    found = [*choosing(plan, True), recurrent(plan, 1)]
    looks = [Look(corruption=name, severity=5) for name in DEVELOP_CORRUPTIONS]
    found += [plan.single(look, "corruption", 2) for look in looks]
    others = [severe(plan, name, 2) for name in IMAGE_CORRUPTIONS if name not in DEVELOP_CORRUPTIONS]
    return [("develop", one) for one in found] + [("other", one) for one in others]


def asked(data, cache, name):
    """What is seen when the base is fitted [n, 5] with the ways, and on each stream [n, 8], by its name."""
    kept = cache / f"expected-{name.replace('/', '-')}.npz"
    if kept.is_file():
        return dict(np.load(kept))
    tasks = KnownTasks(data, cache)
    ready = tasks.ready(tasks.load(name))
    task, base = ready.task, ready.base
    pictures = clean_queries(named_pictures(task), 0)[0] if task.retaken else crops_of(task.gallery)
    items = ready.gallery.features(ready.gallery.keys())
    own = gallery_of(base, items, [sample.label for sample in task.gallery])
    answers = measured_answers(base, own, pictures)
    columns = [answers.drops, answers.shares, answers.precision, answers.twins, answers.gathered]
    found = {"fit": np.stack(columns, 1), "ways": answers.ways}
    found["classes"] = np.array([answers.classes])
    domains = tuple(pool for pool in task.pools if pool != "clean")
    plan = Plan(task.name, task.modality, domains, task.retaken, task.split)
    config = with_method(Config(device="cpu", seed=SEED), "aligned+fused")
    for kind, stream in streams_of(plan):
        engine = assemble(config, base, GalleryVersions(ready.gallery))
        log = log_of(task, stream, SEED, config)
        seen = Seen(engine, log.labels)
        run_offline(engine, log.records, [seen], planned(log, stream, config, None))
        found[f"{kind}/{stream.name}"] = seen.table()
        print(" ", name, kind, stream.name, flush=True)
    np.savez_compressed(kept, **found)
    return found


def forms(fit, ways):
    """name -> (drops, shares, gathered, of the adapted twin) -> expected precision: what was tried."""
    drops, shares, precision, twins, gathered = fit.T
    twins = twins.astype(int)
    former = np.array([not way.startswith(HIDDEN) for way in ways])
    both, own = fitted(drops, precision, shares), fitted(drops, precision, shares, twins)
    before = fitted(drops[former], precision[former], shares[former], twins[former])
    chosen = fitted(drops, precision, shares, twins, gathered, ways)
    at, level = _falling(-shares, precision)

    def by_share(z, s, g, adapted):
        return np.interp(s, -at[::-1], level[::-1])

    return {
        "drop": lambda z, s, g, adapted: precision_at(both, z),
        "share": by_share,
        "mean of both": lambda z, s, g, adapted: (precision_at(both, z) + by_share(z, s, g, adapted)) / 2,
        "nearest 100": lambda z, s, g, adapted: np.array([_cell(fit, *one) for one in zip(z, s)]),
        "one sum": lambda z, s, g, adapted: precision_at(both, z, s),
        "six kinds": lambda z, s, g, adapted: precision_at(before, z, s, adapted),
        "a sum each": lambda z, s, g, adapted: precision_at(own, z, s, adapted),
        "chosen": lambda z, s, g, adapted: precision_at(chosen, z, s, adapted, g),
    }


def _cell(fit, drop, share):
    """Mean of the hundred answers nearest to it, each column in its own sd."""
    far = ((fit[:, :2] - (drop, share)) / fit[:, :2].std(0)) ** 2
    return fit[np.argpartition(far.sum(1), 100)[:100], 2].mean()


def means(found, kind, form):
    """[streams, 4]: expected and true mAP of the frozen twin, then of the adapted one."""
    rows = []
    for key, table in found.items():
        if key.startswith(f"{kind}/"):
            z, s, g, right, moved, near, together, after = table.T
            asked = (z != moved).any() or (s != near).any()
            found_twins = form(z, s, g, False), form(moved, near, together, bool(asked))
            rows.append([found_twins[0].mean(), right.mean(), found_twins[1].mean(), after.mean()])
    return 100 * np.array(rows)


def said(rows):
    """r of both twins and of their difference; mean error; bias."""
    frozen, true, adapted, after = rows.T
    r = [
        np.corrcoef(*pair)[0, 1]
        for pair in ((frozen, true), (adapted, after), (adapted - frozen, after - true))
    ]
    off = [frozen - true, adapted - after]
    words = [" / ".join(f"{value:5.2f}" for value in r)]
    words += [" / ".join(f"{np.abs(one).mean():4.1f}" for one in off)]
    return " | ".join([*words, " / ".join(f"{one.mean():+5.1f}" for one in off)])


def drawn(panels):
    """One panel a base: expected against true mAP of streams, both twins."""
    parts, side = [], SIDE - 60
    for number, (name, rows) in enumerate(panels):
        left = number * SIDE + 45

        def at(x, y, left=left):
            return f"{left + side * x / 100:.1f}", f"{30 + side * (1 - y / 100):.1f}"

        parts.append(f'<rect x="{left}" y="30" width="{side}" height="{side}" fill="none" stroke="#999"/>')
        parts.append(f'<path d="M{",".join(at(0, 0))} L{",".join(at(100, 100))}" stroke="#999"/>')
        parts.append(f'<text x="{left}" y="20">{name}</text>')
        for tick in (0, 50, 100):
            x, y = at(tick, tick)
            parts.append(f'<text x="{x}" y="{45 + side}" text-anchor="middle">{tick}</text>')
            parts.append(f'<text x="{left - 5}" y="{y}" text-anchor="end">{tick}</text>')
        parts.append(f'<text x="{left + side / 2}" y="{60 + side}" text-anchor="middle">expected mAP</text>')
        for twin, columns in (("frozen", rows[:, :2]), ("adapted", rows[:, 2:])):
            for x, y in (at(*pair) for pair in columns.tolist()):
                parts.append(f'<circle cx="{x}" cy="{y}" r="{DOT}" fill="{COLOURS[twin]}" opacity=".7"/>')
    for row, (twin, colour) in enumerate(COLOURS.items()):
        parts.append(f'<text x="{50}" y="{48 + 14 * row}" fill="{colour}">{twin}, true mAP upwards</text>')
    size = f'width="{SIDE * len(panels)}" height="{SIDE + 10}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="#fff"/>', *parts, "</svg>\n"])


def main(data, cache, *words):
    svg = Path(words[1]) if words[:1] == ("--svg",) else None
    panels = []
    for name in words[2 if svg else 0 :] or TASKS:
        found = asked(Path(data), Path(cache), name)
        print(name, "r frozen / adapted / difference | mean error | bias")
        known = forms(found["fit"], found["ways"])
        for kind in ("develop", "other"):
            for form in known if found["classes"] else ("drop",):
                print(f"  {kind:8}{form:14}", said(means(found, kind, known[form])))
        form = known["chosen" if found["classes"] else "drop"]
        panels.append((name, np.concatenate([means(found, kind, form) for kind in ("develop", "other")])))
    if svg:
        svg.write_text(drawn(panels))


if __name__ == "__main__":
    main(*sys.argv[1:])
