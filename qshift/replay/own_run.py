"""Records of the user's own through the production path, once per method; every label given is used."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from statistics import median

from rich.console import Console

from core.checkpoints import JournalEntry
from core.config import Config
from core.errors import ConfigError
from core.records import Coordinates, Judgement, Record, Refusal
from core.types import Outcome
from qshift.build import Engine, engine, judged
from qshift.methods import check_known, with_method
from qshift.offline import run_offline
from qshift.terminal.bars import bars
from qshift.terminal.points import gain_text, plain
from qshift.terminal.sheet import Head, Sheet
from stream.codec import decode_answer


@dataclass(frozen=True, slots=True)
class OwnRow:
    """One method; mAP, R@1 and differences in points (0-100), NaN without labels.

    `labels` are the queries that could be judged; `same_first` and `same_items` say in percent how often the
    first answer, and how much of the whole answer, is what the frozen twin would have answered.
    `forwards` and `backwards` are passes of a query through the encoder, the frozen one included.
    `map_adapted` is what the adapted twin would have earned alone; `weight` its weight in the mixture, the
    median over the queries that were answered from both, NaN where none was. `repaired` texts were mended.
    `milliseconds` a query are a clock's: they make no two rows differ. `abstained` are the answers that named
    nothing, because their confidence is below what the query wants.
    """

    method: str
    queries: int
    refused: int
    labels: int
    map: float
    r1: float
    map_minus_frozen: float
    low: float
    high: float
    forwards: float
    backwards: float
    same_first: float
    same_items: float
    map_adapted: float = math.nan
    weight: float = math.nan
    repaired: int = 0
    milliseconds: float = field(default=math.nan, compare=False)
    abstained: int = 0


class _Watch:
    """Agreement with the frozen twin, and what it cost; moves the bar."""

    def __init__(self, advance: Callable[[int], None] = lambda _: None) -> None:
        self._advance = advance
        self.queries = self.compared = self.first = self.forwards = self.backwards = self.repaired = 0
        self.items = self.seconds = 0.0
        self.weights: list[float] = []

    def observe(self, outcome: Outcome) -> None:
        count = len(outcome.batch)
        self.queries += count
        self.forwards += count * outcome.forwards
        self.backwards += count * (outcome.step.backwards if outcome.step is not None else 0)
        self.repaired += sum(bool(query.repaired) for query in outcome.batch.queries)
        self.seconds += sum(outcome.seconds.values())
        self.weights += [weight for weight in outcome.weights.tolist() if 0 < weight < math.inf]
        paired = outcome.paired
        self.compared += int(paired.sum())
        for served, frozen in zip(outcome.served.keys[paired], outcome.frozen.answer.keys[paired]):
            wanted = {int(key) for key in frozen[: len(served)] if key >= 0}
            self.first += int(served[0] == frozen[0])
            self.items += len(wanted & set(served.tolist())) / len(wanted) if wanted else 1.0
        self._advance(count)

    def judge(self, judgement: Judgement) -> None: ...

    def refuse(self, refusal: Refusal) -> None: ...

    def share(self, count: float) -> float:
        return count / self.queries if self.queries else math.nan

    def agreed(self, count: float) -> float:
        return count / self.compared if self.compared else math.nan


def run_records(
    records: Sequence[Record],
    labels: Mapping[Coordinates, str],
    config: Config,
    methods: Sequence[str],
    journal: Sequence[JournalEntry] = (),
    console: Console | None = None,
    late: Sequence[Record] = (),
    attach: Callable[[Engine], None] = lambda _: None,
) -> list[OwnRow]:
    """One row per method, each from fresh state.

    Args:
        records: queries of one topic, in order.
        labels: by coordinates; all are used, whatever share `labels.rate` would ask for. Labels that no item
            of the gallery carries are not.
        config: base, gallery and everything else.
        methods: names of `qshift.methods.METHODS`.
        journal: batch boundaries; without them batches are cut by size, never by time.
        late: records of the label topic, which steer the batches whose boundaries name them, and of the
            control topic, which are obeyed where the journal says.
        attach: is given each method's engine before it answers: may turn it to versions of the gallery.

    Raises:
        ConfigError: an unknown method, no records, or records of several topics.
        ArtifactError: base or gallery missing, or not of one another.
    """
    check_known(methods)
    topics = {record.at.topic for record in records}
    if len(topics) != 1:
        raise ConfigError(f"expected queries of one topic, got {sorted(topics) or 'none'}")
    kafka = config.kafka.model_copy(update={"queries": topics.pop()})
    config = config.model_copy(update={"kafka": kafka})
    with bars(console or Console(quiet=True)) as progress:
        rows = []
        for name in methods:
            task = progress.add_task(name, total=len(records))
            watch = _Watch(partial(progress.advance, task))
            rows.append(_row(records, labels, with_method(config, name), name, journal, watch, late, attach))
    return rows


def _row(
    records: Sequence[Record],
    labels: Mapping[Coordinates, str],
    config: Config,
    name: str,
    journal: Sequence[JournalEntry],
    watch: _Watch,
    late: Sequence[Record] = (),
    attach: Callable[[Engine], None] = lambda _: None,
) -> OwnRow:
    built = engine(config)
    attach(built)
    # Only the judge sees these settings: the answers still say what the live service would have asked for.
    every = config.labels.model_copy(update={"rate": 1.0, "ttl_queries": len(records), "steer": False})
    quality = judged(replace(built, config=config.model_copy(update={"labels": every})))
    late = [one for one in late if config.labels.steer or one.at.topic == config.kafka.control]
    report, sink = run_offline(built, [*late, *records], [quality, watch], _from_the_start(journal))
    for at, label in labels.items():
        quality.judge(Judgement(at, at, label))
    found = quality.summary()
    fused = config.answer.fuse != "none"
    return OwnRow(
        name, report.queries, report.dead_letters, found.n, found.map_served, found.r1_served, found.diff,
        found.low, found.high, watch.share(watch.forwards), watch.share(watch.backwards),
        100.0 * watch.agreed(watch.first), 100.0 * watch.agreed(watch.items), found.map_adapted,
        median(watch.weights) if fused and watch.weights else math.nan, watch.repaired,
        1000.0 * watch.share(watch.seconds),
        sum(decode_answer(record.value or b"").abstained for record in sink.records["answers"]),
    )  # fmt: skip


def _from_the_start(journal: Sequence[JournalEntry]) -> Iterator[JournalEntry]:
    """A replay starts from the source: the first batch of its stretch is a lane's first."""
    seqs: Counter[tuple[int, str]] = Counter()
    for entry in journal:
        lane = (entry.partition, entry.lane)
        yield replace(entry, seq=seqs[lane])
        seqs[lane] += 1


def own_json(rows: Sequence[OwnRow], task: str, stream: str, seed: int) -> list[dict[str, object]]:
    """Rows for `--json`, rounded, with the keys of the suite's; null for what cannot be known."""
    head = {"task": task, "stream": stream}
    return [
        {**head, "seed": seed}
        | {key: _plain(value) for key, value in asdict(row).items() if key != "milliseconds"}
        for row in rows
    ]


def own_times(rows: Sequence[OwnRow], task: str, stream: str, seed: int) -> list[dict[str, object]]:
    """Milliseconds a query, for a file beside the rows: those are free of clocks."""
    return [
        {"task": task, "stream": stream, "method": row.method, "seed": seed}
        | {"ms_per_query": _plain(row.milliseconds)}
        for row in rows
    ]


def _plain(value: object) -> object:
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 3)
    return value


def own_table(rows: Sequence[OwnRow], title: str) -> Sheet:
    """mAP and R@1 where there are labels, else agreement with the frozen twin; what else there is any of."""
    judged_rows = any(row.labels for row in rows)
    scores = [
        Head("labels", 5), Head("mAP:\nserved"), Head("\nadapted", 3), Head("R@1", 1),
        Head("served - frozen\n[95 % interval]"),
    ]  # fmt: skip
    fused, mended = any(not math.isnan(row.weight) for row in rows), any(row.repaired for row in rows)
    silent = any(row.abstained for row in rows)
    extra = [Head("weight of\nadapted", 4)] * fused + [Head("texts\nrepaired", 6)] * mended
    extra += [Head("abstained", 6)] * silent
    agreement = Head("as frozen, %\nfirst, items", 2 if judged_rows else 0)
    sheet = Sheet(
        title,
        [Head("method", left=True), Head("queries", 7), *(scores if judged_rows else []), *extra, agreement],
    )
    for row in rows:
        gain = gain_text(row.map_minus_frozen, row.low, row.high)
        maps = map(plain, (row.map, row.map_adapted, row.r1))
        cells = [str(row.labels), *maps, gain] if judged_rows else []
        weight = "n/a" if math.isnan(row.weight) else f"{row.weight:.2f}"
        cells += [weight] * fused + [str(row.repaired)] * mended
        cells += [str(row.abstained)] * silent
        sheet.add(row.method, str(row.queries), *cells, f"{plain(row.same_first)}, {plain(row.same_items)}")
    return sheet
