"""Labels that steer, through the whole path: their order is the journal's, whatever comes between.

The labeller here is a hostile one: it calls right whatever the frozen twin finds first.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from source_world import ITEMS, SIZE, WIDTH, source_world, unit

from core.checkpoints import JournalEntry
from core.config import Config
from core.errors import ArtifactError, DeliveryError
from core.records import Coordinates, Record
from core.types import Outcome
from encoders.base_model import Base
from index.fusion import WEIGHTS
from index.gallery import VersionedGallery
from index.versions import GalleryVersions
from qshift.build import Engine, assemble
from stream.codec import decode_answer, label, vector_query
from stream.command_messages import command
from stream.memory import Crash, MemorySink, MemorySource
from stream.memory_store import MemoryStore
from stream.runner import run
from stream.session import Session

BATCHES = 8
TOPIC, LABELS = "qshift.queries", "qshift.labels"


@pytest.fixture(scope="module")
def world() -> tuple[Base, VersionedGallery]:
    return source_world()


def engine(world: tuple[Base, VersionedGallery], steer: bool = True, pending: int = 4096) -> Engine:
    document = {
        "batch": {"size": SIZE, "floor": 8}, "adapt": {"method": "centring"}, "answer": {"shortlist": 30},
        "state": {"every_batches": 3}, "limits": {"pending_queries": pending},
        "labels": {"rate": 1.0, "steer": steer},
    }  # fmt: skip
    return assemble(Config.model_validate(document), world[0], GalleryVersions(world[1]))


def queries(world: tuple[Base, VersionedGallery], partition: int = 0) -> list[Record]:
    rng, gallery = np.random.default_rng(1), world[1]
    direction = unit(np.random.default_rng(99).normal(size=(1, WIDTH)))
    found = []
    for offset in range(SIZE * BATCHES):
        item = gallery.features(gallery.keys()[rng.integers(ITEMS, size=1)])
        value, headers = vector_query(
            unit(item + 0.4 * rng.normal(size=(1, WIDTH)) / WIDTH**0.5 + 1.6 * direction)[0]
        )
        found.append(Record(Coordinates(TOPIC, partition, offset), value, None, tuple(headers)))
    return found


class Watch:
    def __init__(self) -> None:
        self.outcomes: dict[int, Outcome] = {}

    def observe(self, outcome: Outcome) -> None:
        self.outcomes[outcome.batch.seq] = outcome

    def judge(self, judgement: Any) -> None: ...

    def refuse(self, refusal: Any) -> None: ...

    def weights(self) -> list[float]:
        return [w for seq in sorted(self.outcomes) for w in self.outcomes[seq].weights.tolist()]


def go(built: Engine, events: Iterable[Any], store: Any = None, sink: Any = None, step: int = 8) -> Any:
    """Runs to the end, and again after every crash, as a supervisor would."""
    store, sink, watch = store or MemoryStore(), sink or MemorySink(), Watch()
    source = MemorySource(list(events), [TOPIC], step=step)
    while True:
        try:
            report = run(
                source, built.pipeline, built.codec, sink, store, [watch], built.config, clock=lambda: 0.0,
                backoff_seconds=(0.0, 0.0),
            )  # fmt: skip
            return report, answers(sink), store, watch
        except Crash:
            for number in range(2):
                source.seek((TOPIC, number), 0)
                source.seek((LABELS, number), 0)


def answers(sink: MemorySink) -> dict[str, bytes]:
    """By query; whatever was sent twice was the same."""
    found: dict[str, bytes] = {}
    for record in sink.records["answers"]:
        at = str(decode_answer(record.value or b"").source)
        assert found.setdefault(at, record.value or b"") == record.value, f"{at} was answered in two ways"
    return found


@pytest.fixture(scope="module")
def asked(world: tuple[Base, VersionedGallery]) -> list[Record]:
    return queries(world)


@pytest.fixture(scope="module")
def frozen_first(world: tuple[Base, VersionedGallery], asked: list[Record]) -> dict[int, str]:
    """What the frozen twin finds first, by offset."""
    *_, watch = go(engine(world, steer=False), asked)
    return {
        query.at.offset: world[1].identifier(int(keys[0]))
        for outcome in watch.outcomes.values()
        for query, keys in zip(outcome.batch.queries, outcome.frozen.answer.keys)
    }


def labelled(asked: Sequence[Record], names: dict[int, str], late: int, partitions: int = 1) -> list[Record]:
    """Every query's label so many queries later, spread over the partitions of the label topic."""
    events: list[Record] = []
    written = [0] * partitions

    def write(offset: int) -> None:
        number = (offset * 7) % partitions
        place = Coordinates(LABELS, number, written[number])
        written[number] += 1
        events.append(Record(place, label(Coordinates(TOPIC, 0, offset), names[offset])))

    for offset, record in enumerate(asked):
        if offset >= late:
            write(offset - late)
        events.append(record)
    for offset in range(len(asked) - late, len(asked)):
        write(offset)
    return events


def journal_of(store: MemoryStore) -> MemoryStore:
    """A store that holds the journal alone."""
    again = MemoryStore()
    for partition in range(2):
        for entry in store.journalled((TOPIC, partition), {}):
            again.journal(entry)
    return again


@pytest.mark.parametrize("partitions", [1, 2])
def test_labels_steer_and_a_replay_of_the_journal_gives_the_same_bytes(
    world: tuple[Base, VersionedGallery], asked: list[Record], frozen_first: dict[int, str], partitions: int
) -> None:
    plain = go(engine(world), asked)[3].weights()
    assert max(plain) > 0, "nothing is steered where nothing is mixed"
    live = labelled(asked, frozen_first, 40, partitions)
    report, sent, store, watch = go(engine(world), live)
    steered = watch.weights()
    assert steered[:SIZE] == plain[:SIZE] and steered != plain
    assert (max(plain[-SIZE:]), max(steered[-SIZE:])) == (4.0, 1.0), "two steps towards the frozen twin"
    assert set(steered) <= set(WEIGHTS), "between the twins"
    marks = [record for record in live if record.at.topic == LABELS]
    early = [*marks[:200], *asked[:200], *marks[200:], *asked[200:]]
    for events in ([*marks, *asked], early, [*asked, *marks]):  # in the last one queries wait for labels
        again, same, _, _ = go(engine(world), events, journal_of(store), step=64)
        assert again.state_sha256 == report.state_sha256
        assert same == sent


@pytest.mark.parametrize("seed", range(2))
def test_crashes_are_invisible(
    world: tuple[Base, VersionedGallery], asked: list[Record], frozen_first: dict[int, str], seed: int
) -> None:
    events: list[Any] = labelled(asked, frozen_first, 40, 2)
    rng = np.random.default_rng(seed)
    for place in sorted(rng.choice(len(events), size=4, replace=False).tolist(), reverse=True):
        events.insert(place, Crash())
    report, sent, store, _ = go(engine(world), events, step=8)
    records = [event for event in events if isinstance(event, Record)]
    again, same, _, watch = go(engine(world), records, journal_of(store), step=64)
    assert max(watch.weights()[-SIZE:]) == 1.0, "steered"
    assert len(sent) == len(asked) and same == sent and again.state_sha256 == report.state_sha256


class FailingSink(MemorySink):
    """Some flushes fail: the worker goes back to its newest checkpoint without a restart."""

    def __init__(self, failing: Iterable[int]) -> None:
        super().__init__()
        self.flushes, self.failing = 0, set(failing)

    def flush(self, budget_seconds: float) -> None:
        self.flushes += 1
        if self.flushes in self.failing:
            raise DeliveryError("not acknowledged")


@pytest.mark.parametrize("failing", [(1,), (1, 3)])
def test_failed_deliveries_are_invisible(
    world: tuple[Base, VersionedGallery], asked: list[Record], frozen_first: dict[int, str],
    failing: tuple[int, ...],
) -> None:  # fmt: skip
    events = labelled(asked, frozen_first, 40, 2)
    report, sent, store, _ = go(engine(world), events, sink=FailingSink(failing))
    assert report.recoveries == len(failing)
    again, same, _, _ = go(engine(world), events, journal_of(store), step=64)
    assert same == sent and again.state_sha256 == report.state_sha256


def test_without_labels_what_is_served_is_what_it_was(
    world: tuple[Base, VersionedGallery], asked: list[Record], frozen_first: dict[int, str]
) -> None:
    off = go(engine(world, steer=False), asked)
    measured = go(engine(world, steer=False), labelled(asked, frozen_first, 40))
    assert measured[1] == off[1] and measured[0].state_sha256 == off[0].state_sha256, "labels only measure"
    assert [entry.label_offsets for entry in measured[2].journalled((TOPIC, 0), {})] == [{}] * BATCHES
    on = go(engine(world), asked)
    for seq, outcome in off[3].outcomes.items():
        served = on[3].outcomes[seq]
        assert served.served.keys.tobytes() == outcome.served.keys.tobytes()
        assert served.weights.tobytes() == outcome.weights.tobytes()


@pytest.mark.parametrize("seed", range(2))
def test_labels_that_are_early_double_late_or_of_nothing_stop_nothing(
    world: tuple[Base, VersionedGallery], asked: list[Record], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    abouts = [
        *(Coordinates(TOPIC, 0, int(offset)) for offset in rng.integers(len(asked), size=300)),
        *(Coordinates(TOPIC, 5, 3), Coordinates("other", 0, 3), Coordinates(TOPIC, 0, 10**12)),
    ]
    events: list[Any] = list(asked)
    places = sorted(rng.integers(len(asked), size=len(abouts)).tolist())
    for number, place in reversed(list(enumerate(places))):
        name = f"item-{rng.integers(2 * ITEMS)}"  # half of them name no item
        events.insert(place, Record(Coordinates(LABELS, 0, number), label(abouts[number], name)))
    events.insert(int(rng.integers(len(events))), Crash())
    report, sent, store, watch = go(engine(world), events)
    assert len(sent) == len(asked) and not report.dead_letters
    assert set(watch.weights()) <= set(WEIGHTS)
    events = [event for event in events if isinstance(event, Record)]
    again, same, _, _ = go(engine(world), events, journal_of(store), step=64)
    assert same == sent and again.state_sha256 == report.state_sha256


def test_labels_of_another_partition_do_nothing_here(
    world: tuple[Base, VersionedGallery], asked: list[Record], frozen_first: dict[int, str]
) -> None:
    events = labelled(asked, frozen_first, 40)
    both = []
    for event in events:
        both.append(event)
        if event.at.topic == TOPIC:
            both.append(replace(event, at=replace(event.at, partition=1)))
    _, sent, store, _ = go(engine(world), both)
    _, alone, _, _ = go(engine(world), [replace(e, at=replace(e.at, partition=1)) for e in asked])
    other = {at: value for at, value in sent.items() if at.startswith(f"{TOPIC}/1/")}
    assert [decode_answer(v).results for v in other.values()] == [
        decode_answer(v).results for v in alone.values()
    ]
    assert [entry.label_offsets for entry in store.journalled((TOPIC, 1), {})] == [{}] * BATCHES


@pytest.mark.parametrize("seed", range(2))
def test_crashes_of_a_worker_with_two_partitions_are_invisible(
    world: tuple[Base, VersionedGallery], asked: list[Record], frozen_first: dict[int, str], seed: int
) -> None:
    """Their checkpoints stand at different labels: what one has seen is read again for the other."""
    names, rng = world[1].identifier, np.random.default_rng(seed)
    events: list[Any] = []
    for number, event in enumerate(labelled(asked, frozen_first, 40)):
        if event.at.topic == TOPIC:
            events += [event, replace(event, at=replace(event.at, partition=1))]
            continue
        about = Coordinates(TOPIC, 1, event.at.offset)
        other = frozen_first[event.at.offset] if number % 3 else names(0)
        events += [
            replace(event, at=replace(event.at, offset=2 * event.at.offset)),
            Record(Coordinates(LABELS, 0, 2 * event.at.offset + 1), label(about, other)),
        ]
    records = list(events)
    for place in sorted(rng.choice(len(events), size=4, replace=False).tolist(), reverse=True):
        events.insert(place, Crash())
    report, sent, store, _ = go(engine(world), events, step=8)
    again, same, _, _ = go(engine(world), records, journal_of(store), step=64)
    assert len(sent) == 2 * len(asked) and same == sent and again.state_sha256 == report.state_sha256
    for partition in range(2):
        assert store.journalled((TOPIC, partition), {})[-1].label_offsets != {}


def test_labels_that_are_gone_are_said_and_stop_nothing(
    world: tuple[Base, VersionedGallery], asked: list[Record], frozen_first: dict[int, str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    _, sent, store, _ = go(engine(world), labelled(asked, frozen_first, 40))
    with caplog.at_level(logging.ERROR):
        _, again, _, _ = go(engine(world), asked, journal_of(store))
    assert len(again) == len(sent)
    said = [record for record in caplog.records if "labels that an answered batch" in record.message]
    assert len(said) == 1


def test_labels_behind_more_queries_than_may_wait_are_not_waited_for(
    world: tuple[Base, VersionedGallery], asked: list[Record], frozen_first: dict[int, str]
) -> None:
    live = labelled(asked, frozen_first, 40)
    _, sent, store, _ = go(engine(world), live)
    later = [*asked, *(record for record in live if record.at.topic == LABELS)]
    _, again, _, _ = go(engine(world, pending=64), later, journal_of(store))
    assert again.keys() == sent.keys()


def test_a_boundary_names_only_labels_that_were_about_its_partition(
    world: tuple[Base, VersionedGallery], asked: list[Record], frozen_first: dict[int, str]
) -> None:
    _, _, store, _ = go(engine(world), labelled(asked, frozen_first, 40))
    entries: list[JournalEntry] = store.journalled((TOPIC, 0), {})
    named = [entry.label_offsets.get(f"{LABELS}/0", 0) for entry in entries]
    assert named == sorted(named) and named[0] == 0 < named[-1] <= len(asked)
    assert {place for entry in entries for place in entry.label_offsets} == {f"{LABELS}/0"}


@pytest.mark.parametrize(("bound", "most"), [(0.3, 0.25), (0.1, 0.0), (0.5, 0.5), (1.99, 1.75)])
def test_a_bound_between_two_weights_is_the_one_below(
    world: tuple[Base, VersionedGallery], asked: list[Record], bound: float, most: float
) -> None:
    order = Record(Coordinates("qshift.control", 0, 0), command("w", "ann", weight=bound))
    _, sent, _, watch = go(engine(world, steer=False), [order, *asked])
    assert len(sent) == len(asked) and max(watch.weights()) == most


def test_a_snapshot_of_a_session_without_labels_is_refused(world: tuple[Base, VersionedGallery]) -> None:
    plain, steered = (Session(engine(world, steer).pipeline, "vector") for steer in (False, True))
    assert "steering" not in plain.snapshot()[1], "a state without labels is what it was"
    with pytest.raises(ArtifactError, match="labels' part"):
        steered.restore(*plain.snapshot())
    steered.restore(*steered.snapshot())
    before = steered.state_hash()
    steered.reset()
    assert steered.state_hash() == before
