"""One stream with one seed through the production path, once per method, from the same bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from core.checkpoints import JournalEntry
from core.config import OWN_METHOD, Config, DecoupleConfig
from core.errors import QshiftError
from core.records import Coordinates, Record
from core.types import Modality, Outcome, Twin
from encoders.base_model import Base
from index.gallery import VersionedGallery
from index.versions import GalleryVersions
from qshift import build
from qshift.benchmarks.streams import Stream, boundaries, queries
from qshift.benchmarks.suite.judge import Judge, Score
from qshift.benchmarks.suite.late import lateness
from qshift.benchmarks.suite.messages import message
from qshift.benchmarks.suite.results import Result, rounded
from qshift.benchmarks.suite.shared import SharedEncoder
from qshift.benchmarks.tasks.types import Sample, Task
from qshift.build import Engine, ranked
from qshift.offline import run_offline
from stream import codec
from stream.pipeline import Pipeline

Save = Callable[[str, Result, float], None]
"""(method, result, milliseconds per query)"""


@dataclass(frozen=True, slots=True)
class Log:
    """The records of a stream, labels among them, and what is known about its queries by offset."""

    records: tuple[Record, ...]
    labels: Mapping[int, str]
    segments: Mapping[int, int]
    segment_names: tuple[str, ...]
    modality: Modality


def log_of(task: Task, stream: Stream, seed: int, config: Config) -> Log:
    """Draws a stream and writes its messages. Labels lie in their own topic, as late as the stream says."""
    names = [segment.name for segment in stream.segments]
    records: list[Record] = []
    late: list[tuple[int, Record]] = []
    labels: dict[int, str] = {}
    segments: dict[int, int] = {}
    number = 0
    for offset, asked in enumerate(queries(task, stream, seed)):
        while late and late[0][0] <= offset:
            records.append(late.pop(0)[1])
        at = Coordinates(config.kafka.queries, 0, offset)
        value, headers = message(asked)
        records.append(Record(at, value, None, tuple(headers)))
        while names[number] != asked.segment:
            number += 1
        labels[offset], segments[offset] = asked.label, number
        if asked.label:
            place = Coordinates(config.kafka.labels, 0, len(labels) - 1)
            late.append((offset + 1 + stream.label_delay, Record(place, codec.label(at, asked.label))))
    records += [record for _, record in late]
    return Log(tuple(records), labels, segments, tuple(names), task.modality)


def run_stream(
    task: Task,
    base: Base,
    gallery: VersionedGallery,
    stream: Stream,
    seed: int,
    methods: Mapping[str, Config],
    save: Save,
) -> None:
    """Runs every method on fresh state; each result is saved as soon as it is there.

    Raises:
        QshiftError: a query of the stream was refused, or the frozen twins of two methods differ.
    """
    shared = {modality: SharedEncoder(encoder) for modality, encoder in base.encoders.items()}
    known: dict[tuple[int, bytes], Score] = {}
    log: Log | None = None
    for name, config in methods.items():
        own = config.model_copy(update={"seed": seed})
        log = log or log_of(task, stream, seed, own)
        encoder = shared[task.modality]
        encoder.saved_seconds = 0.0
        engine = build.assemble(own, base, GalleryVersions(gallery), encoders=shared)
        adapts = _adapts(engine.pipeline, task.modality)
        judge = _one(engine, log, planned(log, stream, own, lateness(name)), known, encoder)
        if judge.refused:
            first = judge.refused[0]
            raise QshiftError(
                f"{task.name} {stream.name}, {name}: query {first.record.at.offset} was refused "
                f"({first.reason}); a benchmark answers every query"
            )
        seconds = sum(batch.seconds for batch in judge.batches) + encoder.saved_seconds
        result = _result(task, stream, name, seed, log, judge, adapts)
        save(name, result, 1000.0 * seconds / max(1, len(log.labels)))


def _adapts(pipeline: Pipeline, modality: Modality) -> bool:
    """Whether answers to such queries can ever differ from the frozen twin's."""
    aligns = pipeline.new_aligner(modality) is not None
    mends = modality == "text" and pipeline.admit.repair is not None
    return aligns or mends or pipeline.new_adapter(modality).name != "frozen"


def planned(log: Log, stream: Stream, config: Config, late: int | None) -> list[JournalEntry]:
    """Batch boundaries, where the service would not cut so by itself, or labels have to come at a time.

    Args:
        config: its seed is the stream's.
        late: batches that labels come late; None: they do nothing.
    """
    count, topics = len(log.labels), config.kafka
    sizes = boundaries(stream, count, config.seed)
    if sizes is None and late is not None:
        size = config.batch.size
        sizes = [min(size, count - start) for start in range(0, count, size)]
    ends = [0, *accumulate(sizes or ())]
    entries = []
    for number, (start, end) in enumerate(pairwise(ends)):
        known = 0 if late is None else ends[max(0, number - late + 1)]
        known = max((offset + 1 for offset in range(known) if log.labels[offset]), default=0)
        steered = {f"{topics.labels}/0": known} if known else {}
        lane, rows = f"0:{log.modality}", tuple(range(start, end))
        entry = JournalEntry(topics.queries, 0, lane, number, rows, "", known, label_offsets=steered)
        entries.append(entry)
    return entries


def _one(
    engine: Engine, log: Log, journal: Sequence[JournalEntry], known: dict[tuple[int, bytes], Score],
    encoder: SharedEncoder,
) -> Judge:  # fmt: skip
    def whole(outcome: Outcome) -> Twin:
        batch, saved = outcome.batch, encoder.saved_seconds
        prepared = [query.prepared for query in batch.queries]
        features = encoder.encode(encoder.collate(prepared, engine.pipeline.rows(len(batch))))
        encoder.saved_seconds = saved  # the service does not ask for these
        return engine.pipeline.retrieval.view(batch.modality, batch.queries).twin(features, len(batch))

    judge = Judge(log.labels, ranked(engine), known, whole)
    run_offline(engine, log.records, [judge], journal)
    return judge


def _result(
    task: Task, stream: Stream, method: str, seed: int, log: Log, judge: Judge, adapts: bool
) -> Result:
    offsets = tuple(sorted(judge.served))
    batches = judge.batches
    return Result(
        task=task.name,
        stream=stream.name,
        method=method,
        seed=seed,
        segment_names=log.segment_names,
        offsets=offsets,
        segments=tuple(log.segments[offset] for offset in offsets),
        frozen=rounded(judge.frozen, offsets),
        adapted=rounded(judge.adapted, offsets),
        served=rounded(judge.served, offsets),
        batch_queries=tuple(batch.queries for batch in batches),
        batch_forwards=tuple(batch.forwards for batch in batches),
        batch_backwards=tuple(batch.backwards for batch in batches),
        batch_updated=tuple(batch.updated for batch in batches),
        batch_resets=tuple(batch.resets for batch in batches),
        adapts=adapts,
    )


def code_of(config: Config, base: Base, modality: Modality) -> tuple[str, ...]:
    """Modules of the adapter, of what it wraps, of the aligner, of repair and fusion where they are on."""
    # The references of decoupling are parts of one module; drawing their gradients would take long.
    adapt = config.adapt.model_copy(update={"decouple": DecoupleConfig()})
    plain = config.model_copy(update={"adapt": adapt})
    made: list[Any] = [
        build.adapter(plain, base, modality, "cpu"),
        build.Aligners(plain, base, "cpu")(modality),
    ]
    inside = [part for outer in made for part in getattr(outer, "__dict__", {}).values()]
    names = {type(part).__module__ for part in (*made, *inside)}
    names |= {"encoders.repair"} if config.repair.enabled else set()
    names |= {"index.evidence"} if config.answer.fuse != "none" else set()
    names |= {"index.correction"} if config.labels.steer else set()
    ours = {name for name in names if name.startswith(("adapters.", "encoders.", "index.", "qshift."))}
    named = adapt.method or ""
    own = {named.partition(":")[0]} if OWN_METHOD.fullmatch(named) else set()
    return tuple(sorted(ours | own))


def data_hash(task: Task) -> str:
    """Identity of the queries that a task may ask: every pool, its order included."""
    sha = hashlib.sha256(f"{task.modality}|{task.gallery_modality}|{task.retaken}".encode())

    def feed(content: Any) -> None:
        if isinstance(content, tuple):
            for part in content:
                feed(part)
        elif isinstance(content, str):
            sha.update(content.encode())
        else:
            array = np.ascontiguousarray(content)
            sha.update(f"{array.dtype}{array.shape}".encode())
            sha.update(array.tobytes())

    def pool(samples: Any) -> None:
        sample: Sample
        for sample in samples:
            sha.update(f"|{sample.key}|{sample.label}|{sample.group}|".encode())
            feed(sample.content)

    for name, samples in task.pools.items():
        sha.update(f"#{name}".encode())
        pool(samples)
    pool(task.gallery)
    return sha.hexdigest()[:32]
