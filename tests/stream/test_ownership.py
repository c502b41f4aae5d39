"""Who answers: a state that fits, a worker that still owns what it answers, a broker that takes it."""

import threading
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from core.checkpoints import Checkpoint, JournalEntry
from core.errors import ArtifactError, DeliveryError, NameTaken, PartitionsLost
from core.identity import difference, identity
from core.records import Coordinates, Partition, Record
from stream.events import Delivering, Event, LanesChanged
from stream.memory import MemorySink, MemorySource
from stream.memory_store import MemoryStore
from stream.ownership import Ownership
from stream.patience import Backoff, Patience
from stream.runner import run

TOPIC = "qshift.queries"
PLACE = (TOPIC, 0)


def go(world: Any, source: Any, store: Any = None, sink: Any = None, **kw: Any) -> Any:
    store, sink = store or MemoryStore(), sink or MemorySink()
    kw.setdefault("backoff_seconds", (0.001, 0.004))
    report = run(
        source, world.pipeline, world.codec, sink, store, kw.pop("observers", []), world.config, **kw
    )
    return report, sink, store


def memory(records: list[Record], step: int = 7) -> MemorySource:
    return MemorySource(records, [TOPIC], step)


class Pauses(threading.Event):
    """A stop that nobody sets, and that notes the waits instead of waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds.append(timeout or 0.0)
        return self.is_set()


class Troubles:
    """Notes when deliveries begin to fail, and when they succeed again."""

    def __init__(self) -> None:
        self.seen: list[bool] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, Delivering):
            self.seen.append(not event.succeeds)


# -- a state that fits ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "sections", "words"),
    [
        ("c4d5e6", {}, "made with another base model (a1b2c3, now c4d5e6): go back to that, or name another"),
        (
            "a1b2c3",
            {"adapt": {"method": "rest", "anchor": 0.5}},
            "made under another configuration of adapt: go back",
        ),
        ("a1b2c3", {"labels": {"rate": 0.9}}, "made under another configuration of labels: go back"),
        ("a1b2c3", {"labels": {"key": "a secret"}}, "made under another configuration of labels: go back"),
        (
            "c4d5e6",
            {"seed": 7, "threads": 2},
            "(a1b2c3, now c4d5e6) and under another configuration of seed,",
        ),
    ],
)
def test_a_state_that_does_not_fit_is_refused(
    make_world: Any, base: str, sections: dict[str, Any], words: str
) -> None:
    world = make_world()
    _, _, store = go(world, memory(world.queries(48)), base_version="a1b2c3")
    other = make_world(**sections)
    with pytest.raises(ArtifactError) as refused:
        go(other, memory(other.queries(48)), store, base_version=base)
    assert words in str(refused.value) and str(refused.value).startswith(
        "the saved state of qshift.queries/0"
    )
    assert "secret" not in str(refused.value) and "\n" not in str(refused.value)


def test_a_state_that_fits_is_used(make_world: Any) -> None:
    world = make_world()
    expected, _, _ = go(world, memory(world.queries(96)), base_version="a1b2c3")
    _, _, store = go(world, memory(world.queries(48)), base_version="a1b2c3")
    elsewhere = make_world(kafka={"group": "other"}, limits={"pending_queries": 64})  # decides no answer
    report, _, _ = go(elsewhere, memory(elsewhere.queries(96)), store, base_version="a1b2c3")
    assert report.queries == 48 and report.state_sha256 == expected.state_sha256


def test_identity_names_what_differs_and_never_the_key(make_world: Any) -> None:
    config = make_world(labels={"key": "a secret"}).config
    text = identity(config, "f" * 64)
    assert "secret" not in text and text.startswith("base=ffffffffffffffff ")
    assert difference(text, text) == ""
    assert "0.2.0 or older" in difference("0123456789abcdef", text)


# -- a state that is gone -------------------------------------------------------------------------------


class Elsewhere(MemoryStore):
    place = "another topic"


def test_a_lost_state_is_not_replaced_by_the_source(make_world: Any) -> None:
    """The group remembers a checkpoint where there is none now."""
    world = make_world()
    live = memory(world.queries(96))
    go(world, live)
    assert live.committed(PLACE) is not None
    again = memory(world.queries(96))
    again.commits = live.commits
    with pytest.raises(
        ArtifactError, match=r"qshift\.queries/0 is gone.*offset 96.*holds none now: restore it"
    ):
        go(world, again, MemoryStore())
    # Who names another place wishes to begin anew, where the group stands.
    again = memory(world.queries(96))
    again.commits = live.commits
    report, _, _ = go(world, again, Elsewhere())
    assert report.queries == 96


def entries(store: MemoryStore) -> list[JournalEntry]:
    return store.journalled(PLACE, {})


def test_a_journal_without_its_beginning_needs_a_checkpoint(make_world: Any) -> None:
    world = make_world()
    _, _, store = go(world, memory(world.queries(96)))
    cut_off = MemoryStore()
    for entry in entries(store)[3:]:
        cut_off.journal(entry)
    with pytest.raises(ArtifactError, match="journal of lane 0:vector begins at batch 3"):
        go(world, memory(world.queries(96)), cut_off)


@pytest.mark.parametrize("joined_late", [False, True])
def test_reading_may_not_begin_behind_the_journal(make_world: Any, joined_late: bool) -> None:
    class Late(MemorySource):
        """Shows its partition before there is a record."""

        polls = 0

        def poll(self, budget_seconds: float) -> list[Record]:
            self.polls += 1
            return [] if joined_late and self.polls == 1 else super().poll(budget_seconds)

        @property
        def exhausted(self) -> bool:
            return self.polls > 1 and super().exhausted

    world = make_world()
    _, _, store = go(world, memory(world.queries(96)))
    only_journal = MemoryStore()
    for entry in entries(store):
        only_journal.journal(entry)
    sink = MemorySink()
    with pytest.raises(ArtifactError, match=r"batches from offset 0 on.*reading goes on at 40"):
        go(world, Late(world.queries(96)[40:], [TOPIC], 7), only_journal, sink)
    assert sink.records["answers"] == []


def test_a_crash_before_the_first_cut_is_no_contradiction(make_world: Any, answers_of: Any) -> None:
    world = make_world()
    expected, sink, store = go(world, memory(world.queries(96)))
    only_journal = MemoryStore()
    for entry in entries(store):
        only_journal.journal(entry)
    report, again, _ = go(world, memory(world.queries(96)), only_journal)
    assert report.state_sha256 == expected.state_sha256
    assert answers_of(again) == answers_of(sink)


# -- a worker that still owns what it answers -----------------------------------------------------------


class Sleeper(MemorySource):
    """A member until `lost`: then whoever asks is told, and has no partitions any more."""

    def __init__(self, records: list[Record]) -> None:
        super().__init__(records, [TOPIC], 7)
        self.lost = False

    def confirm(self, offsets: Mapping[Partition, int | None], metadata: str = "") -> None:
        if self.lost:
            raise PartitionsLost("no member")

    def commit(self, offsets: Mapping[Partition, int], metadata: str = "") -> None:
        assert not self.lost

    def assignment(self) -> frozenset[Partition]:
        return frozenset() if self.lost else super().assignment()

    @property
    def exhausted(self) -> bool:
        return self.lost or super().exhausted


class Sleepy(MemoryStore):
    """Its caller sleeps before or after its `nth` boundary is written, while another takes over."""

    def __init__(self, nth: int, before: bool, meanwhile: Any) -> None:
        super().__init__()
        self._nth, self._before, self._meanwhile = nth, before, meanwhile

    def journal(self, entry: JournalEntry) -> None:
        self._nth -= 1
        due, before = self._nth == 0, self._before
        if due and before:
            self._meanwhile()
        super().journal(entry)
        if due and not before:
            self._meanwhile()


class Later(MemorySource):
    """A reader of the generation after."""

    def generation(self) -> int:
        return 1


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("nth", range(1, 6))
def test_a_worker_that_slept_answers_nothing_else(
    make_world: Any, answers_of: Any, nth: int, before: bool
) -> None:
    """Its successor draws boundaries elsewhere, by time-out."""
    world, hasty, sink, now, done = make_world(), make_world(), MemorySink(), [0.0], list[int]()
    source = Sleeper(world.queries(96))

    def clock() -> float:
        now[0] += 20.0
        return now[0]

    def successor() -> None:
        source.lost = True
        done.append(go(hasty, Later(hasty.queries(96), [TOPIC], 3), store, sink, clock=clock)[0].queries)

    store = Sleepy(nth, before, successor)
    go(world, source, store, sink)
    assert done and done[0] > 0, "nobody took over: the test shows nothing"
    found = answers_of(sink)
    assert len(found) == 96
    assert {len(values) for values in found.values()} == {1}
    short = [entry for entry in entries(store) if entry.generation == 1 and len(entry.offsets) < 16]
    assert len(short) > 1, "the successor drew the same boundaries: the test shows nothing"


def test_partitions_that_come_back_are_loaded_again(make_world: Any, answers_of: Any) -> None:
    class Shaky(MemorySource):
        """In the middle of a change every fourth time it is asked."""

        asked = 0

        def confirm(self, offsets: Mapping[Partition, int | None], metadata: str = "") -> None:
            self.asked += 1
            if self.asked % 4 == 0:
                raise PartitionsLost("rebalancing")

    world = make_world()
    expected, sink, _ = go(world, memory(world.queries(150)))
    shaky = Shaky(world.queries(150), [TOPIC], 7)
    report, again, _ = go(world, shaky)
    assert shaky.asked > 12
    assert report.state_sha256 == expected.state_sha256 and report.recoveries == 0
    assert answers_of(again) == answers_of(sink)


class Joined(MemorySource):
    """Each partition has a place of its own, as in Kafka; the second is assigned when both have records."""

    def __init__(self, records: list[Record]) -> None:
        super().__init__(records, [TOPIC])
        self._records, self._polls = records, 0
        self._places = {0: 0, 1: 0}

    def poll(self, budget_seconds: float) -> list[Record]:
        self._polls += 1
        if self._polls == 1:  # nothing is there yet
            return []
        numbers = {number for _, number in self.assignment()}
        found = [r for r in self._records if r.at.partition in numbers]
        found = [r for r in found if r.at.offset >= self._places[r.at.partition]]
        self._places |= {r.at.partition: r.at.offset + 1 for r in found}
        return found

    def assignment(self) -> frozenset[Partition]:
        return frozenset({(TOPIC, 1)} if self._polls < 2 else {(TOPIC, 0), (TOPIC, 1)})

    def seek(self, partition: Partition, offset: int) -> None:
        self._places[partition[1]] = offset

    @property
    def exhausted(self) -> bool:
        return self._polls > 4


class FailsOnce(MemoryStore):
    """Cannot be read when the first partition is loaded for the first time."""

    failed = False

    def load(self, partition: Partition) -> Checkpoint | None:
        if partition[1] == 0 and not self.failed:
            self.failed = True
            raise DeliveryError("Kafka is away")
        return super().load(partition)


def test_first_records_that_came_with_another_partition_that_failed_come_again(make_world: Any) -> None:
    """What was polled is thrown away then; of a partition that was never read nobody knew where it began."""
    world = make_world()
    records = [
        replace(record, at=Coordinates(TOPIC, number, record.at.offset))
        for number in (0, 1)
        for record in world.queries(20)
    ]
    sink = MemorySink()
    run(
        Joined(records), world.pipeline, world.codec, sink, FailsOnce(), [], world.config,
        backoff_seconds=(0.0, 0.0),
    )  # fmt: skip
    assert {record.key for record in sink.records["answers"]} == {str(r.at).encode() for r in records}


def test_a_refused_commit_drops_the_partition_before_the_next_answer(make_world: Any) -> None:
    class Refusing(MemorySource):
        refused = False

        def commit(self, offsets: Mapping[Partition, int], metadata: str = "") -> None:
            self.refused = True
            raise PartitionsLost("of another generation")

        def assignment(self) -> frozenset[Partition]:
            return frozenset() if self.refused else super().assignment()

    world = make_world()
    _, sink, _ = go(world, Refusing(world.queries(96), [TOPIC], 96))
    assert len(sink.records["answers"]) == 48  # three batches to the checkpoint, and then nothing


def test_a_taken_name_ends_the_run(make_world: Any) -> None:
    class Fenced(MemorySource):
        def confirm(self, offsets: Mapping[Partition, int | None], metadata: str = "") -> None:
            raise NameTaken("another worker is called worker-0")

    world, sink = make_world(), MemorySink()
    with pytest.raises(NameTaken):
        go(world, Fenced(world.queries(96), [TOPIC]), None, sink)
    assert sink.records["answers"] == []


def test_an_idle_worker_asks_now_and_then(make_world: Any) -> None:
    class Idle(MemorySource):
        polls, asked = 0, 0

        def poll(self, budget_seconds: float) -> list[Record]:
            self.polls += 1
            return super().poll(budget_seconds)

        def confirm(self, offsets: Mapping[Partition, int | None], metadata: str = "") -> None:
            self.asked += 1

        @property
        def exhausted(self) -> bool:
            return self.polls > 100

    world, now = make_world(), [0.0]

    def clock() -> float:
        now[0] += 0.1
        return now[0]

    source = Idle(world.queries(1), [TOPIC])
    go(world, source, clock=clock)
    assert 3 <= source.asked <= 30


def test_answers_name_their_generation(make_world: Any) -> None:
    world = make_world()
    _, sink, _ = go(world, Later(world.queries(16), [TOPIC]))
    assert {dict(record.headers)["x-generation"] for record in sink.records["answers"]} == {b"1"}


# -- a broker that takes it -----------------------------------------------------------------------------


class FullStore(MemoryStore):
    """A broker that takes no state for the first times it is asked."""

    def __init__(self, failures: int) -> None:
        super().__init__()
        self.failures = failures

    def save(self, checkpoint: Checkpoint) -> None:
        if self.failures:
            self.failures -= 1
            raise DeliveryError("KafkaStorageError: the disk is full")
        super().save(checkpoint)


def test_a_full_disk_does_not_flood_the_answers(make_world: Any, answers_of: Any) -> None:
    world, pauses, trouble, failures = make_world(), Pauses(), Troubles(), 12
    expected, sink, _ = go(world, memory(world.queries(240)))
    report, full, _ = go(
        world, memory(world.queries(240)), FullStore(failures), stop=pauses,
        backoff_seconds=(0.5, 30.0), tell=trouble,
    )  # fmt: skip
    assert report.recoveries == failures
    assert pauses.seconds == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0, 30.0, 30.0, 30.0]
    assert trouble.seen == [True, False]
    assert answers_of(full) == answers_of(sink) and report.state_sha256 == expected.state_sha256
    # The first attempt repeats what is not covered by a checkpoint, every later one a batch: 48 + 11 x 16.
    assert len(full.records["answers"]) - 240 == 48 + 11 * 16


def test_pauses_start_anew_after_a_success(make_world: Any) -> None:
    class Twice(FullStore):
        def save(self, checkpoint: Checkpoint) -> None:
            super().save(checkpoint)
            if checkpoint.seq == 1 and not again:
                again.append(True)
                self.failures = 2

    again: list[bool] = []
    world, pauses, trouble = make_world(), Pauses(), Troubles()
    go(world, memory(world.queries(240)), Twice(3), stop=pauses,
       backoff_seconds=(0.5, 30.0), tell=trouble)  # fmt: skip
    assert pauses.seconds == [0.5, 1.0, 2.0, 0.5, 1.0]
    assert trouble.seen == [True, False, True, False]


class Away(MemoryStore):
    """A broker that is away when it is asked for the state, `failures` times."""

    def __init__(self, failures: int) -> None:
        super().__init__()
        self.failures = failures

    def load(self, partition: Partition) -> Checkpoint | None:
        if self.failures:
            self.failures -= 1
            raise DeliveryError("could not be read within 60 s")
        return super().load(partition)


def test_an_outage_is_waited_out(make_world: Any) -> None:
    world = make_world()
    expected, _, _ = go(world, memory(world.queries(96)))
    report, sink, _ = go(world, memory(world.queries(96)), Away(50))
    assert report.recoveries == 50
    assert report.state_sha256 == expected.state_sha256 and len(sink.records["answers"]) == 96


def test_what_an_attempt_has_waited_counts_as_a_pause(make_world: Any) -> None:
    """Else Kafka comes back in a pause of 30 s, and nobody looks."""

    class Waiting(Away):
        def load(self, partition: Partition) -> Checkpoint | None:
            now[0] += 60.0 if self.failures else 0.0
            return super().load(partition)

    world, pauses, now = make_world(), Pauses(), [0.0]
    go(world, memory(world.queries(16)), Waiting(10), stop=pauses, backoff_seconds=(0.5, 30.0),
       clock=lambda: now[0])  # fmt: skip
    assert pauses.seconds == [0.5] + [0.0] * 9


def test_a_stop_during_an_outage_ends_it(make_world: Any) -> None:
    class Stopped(Pauses):
        def wait(self, timeout: float | None = None) -> bool:
            self.set()
            return super().wait(timeout)

    world = make_world()
    report, _, store = go(world, memory(world.queries(96)), Away(50), stop=Stopped())
    assert report.recoveries == 1 and "within 60 s" in report.unsaved
    assert store.failures == 49


def test_a_stop_whose_last_cut_fails_loses_nothing(make_world: Any, answers_of: Any) -> None:
    world, stop = make_world(), threading.Event()
    expected, whole, _ = go(world, memory(world.queries(100)))

    class Stopper:
        def observe(self, outcome: Any) -> None:
            if outcome.batch.seq == 3:
                stop.set()

        def judge(self, judgement: Any) -> None: ...

        def refuse(self, refusal: Any) -> None: ...

    class Brittle(MemoryStore):
        def save(self, checkpoint: Checkpoint) -> None:
            if stop.is_set():
                raise DeliveryError("away")
            super().save(checkpoint)

    store, sink = Brittle(), MemorySink()
    report, _, _ = go(world, memory(world.queries(100)), store, sink, stop=stop, observers=[Stopper()])
    assert report.unsaved == "away" and report.batches == 4 and report.checkpoints == 1
    stop.clear()
    rest, _, _ = go(world, memory(world.queries(100)), store, sink)
    assert rest.state_sha256 == expected.state_sha256 and answers_of(sink) == answers_of(whole)


def test_trouble_ends_where_nothing_is_left_to_deliver(make_world: Any) -> None:
    """Only dead letters were sent: no batch will ever make a checkpoint that shows that all is well again."""

    class Known(MemorySource):
        polls = 0

        def poll(self, budget_seconds: float) -> list[Record]:
            self.polls += 1
            return super().poll(budget_seconds)

        def lag(self) -> Mapping[Partition, int]:
            return {PLACE: len(self._events) - self._next}

        @property
        def exhausted(self) -> bool:
            return self.polls > 6 and super().exhausted

    world, trouble = make_world(), Troubles()
    bad = [replace(record, value=b"{") for record in world.queries(3)]
    report, _, _ = go(world, Known(bad, [TOPIC]), Away(1), tell=trouble)
    assert trouble.seen == [True, False] and report.dead_letters == 3


class Named(MemorySource):
    """A log that has an id."""

    def __init__(self, records: list[Record], name: str) -> None:
        super().__init__(records, [TOPIC])
        self.name = name

    def log_id(self) -> str:
        return self.name


@pytest.mark.parametrize(("then", "refused"), [("one", False), ("two", True), ("", False)])
def test_a_state_of_another_log_of_the_same_name_is_refused(
    make_world: Any, then: str, refused: bool
) -> None:
    """Also where the new log is longer: its first queries would go unanswered, without a word."""
    world = make_world()
    _, _, store = go(world, Named(world.queries(50), "one"))
    sink = MemorySink()
    if refused:
        with pytest.raises(ArtifactError, match=r"was made anew since its state was saved.*kafka\.state"):
            go(world, Named(world.queries(90, seed=5), then), store, sink)
        assert not sink.records["answers"]
    else:
        go(world, Named(world.queries(90), then), store, sink)
        assert len(sink.records["answers"]) == 40


def test_what_is_refused_alone_is_cut_after_a_while(make_world: Any) -> None:
    """Else a restart would go back behind all of it, perhaps to what retention has removed."""
    world, now = make_world(), [0.0]

    class Slow(MemorySource):
        def poll(self, budget_seconds: float) -> list[Record]:
            now[0] += 10.0
            return super().poll(budget_seconds)

    saved: list[int] = []

    class Kept(MemoryStore):
        def save(self, checkpoint: Checkpoint) -> None:
            saved.append(checkpoint.next_offset)
            super().save(checkpoint)

    store = Kept()
    bad = [replace(record, value=b"{") for record in world.queries(70)]
    report, _, _ = go(world, Slow(bad, [TOPIC], 7), store, clock=lambda: now[0])
    assert report.batches == 0 and report.dead_letters == 70
    assert saved[0] < 40 and len(saved) >= 3 and saved[-1] == 70


def test_lanes_are_met_in_one_order_in_every_process() -> None:
    """Not in that of a set, which each process has of its own."""
    met: list[str] = []
    ours: Any = SimpleNamespace(
        _pipeline=SimpleNamespace(encoders={"vector": None}), _met=lambda owned, name, _: met.append(name)
    )
    names = [f"0:vector:tenant-{number}" for number in range(20)]
    owned: Any = SimpleNamespace(
        states=dict.fromkeys(names[1::2]), planned=dict.fromkeys(names[::2]), lanes={}
    )
    Ownership.meet(ours, owned)
    assert met == sorted(names)


def test_what_is_not_served_makes_no_lane(make_world: Any) -> None:
    world, seen = make_world(), list[list[str]]()

    def told(event: Event) -> None:
        if isinstance(event, LanesChanged):
            seen.append([lane.name for lane in event.lanes])

    records = [*world.queries(3), world.text(3, "a cat")]
    report, _, _ = go(
        world, memory(records),
        tell=told,
    )  # fmt: skip
    assert report.dead_letters == 1 and seen[-1] == ["0:vector"]


# -- time -----------------------------------------------------------------------------------------------


def test_backoff_doubles_up_to_the_longest() -> None:
    backoff = Backoff(1.0, 5.0)
    assert [backoff.next() for _ in range(5)] == [1.0, 2.0, 4.0, 5.0, 5.0]
    backoff.reset()
    assert backoff.next() == 1.0


def test_patience_is_short_once_there_is_a_hurry() -> None:
    hurry = threading.Event()
    patience = Patience(60.0, hurry)
    assert 59 < patience.left() <= 60
    hurry.set()
    assert 2 < patience.left() <= 3
    patience.pause(60.0)
    assert patience.left() < 0.2 and Patience(0.5, hurry).left() <= 0.5
