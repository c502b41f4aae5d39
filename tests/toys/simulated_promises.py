"""What must hold after a simulated history, told by its topics alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from core.checkpoints import JournalEntry
from core.commands import STANDING, Command
from core.records import Coordinates, Partition, Record
from stream.changelog import ChangelogStore
from stream.codec import decode_answer
from stream.command_messages import acknowledgements
from stream.commands import decoded
from stream.history.verify import verify
from stream.memory import MemorySink, MemorySource
from stream.memory_store import MemoryStore
from stream.messages import validated
from stream.runner import run
from stream.states import entry_from_bytes, settled
from tests.toys.simulated_cluster import Client, Cluster, Faults, SimulatedTopicLog
from tests.toys.simulated_world import SimulatedWorld

Values = dict[bytes, set[bytes]]


class Promises:
    """The topics of a history that has ended, and the world it was played in."""

    def __init__(self, cluster: Cluster, world: SimulatedWorld) -> None:
        self._cluster, self._world, self._kafka = cluster, world, cluster.kafka
        self._written = {
            number: [
                (entry_from_bytes(record.value or b""), record)
                for record in cluster.topics[self._kafka.journal, number]
            ]
            for number in range(cluster.partitions)
        }
        self._journal = {
            number: settled([entry for entry, _ in written], {}) for number, written in self._written.items()
        }
        self._answers = distinct(cluster.topics[self._kafka.answers, 0])
        self._acks = distinct(cluster.topics[self._kafka.audit, 0])

    def check(self) -> None:
        """Raises AssertionError where one is broken."""
        verdict = verify(self._cluster, self._kafka)
        assert not verdict.violations, verdict.document()
        self.nothing_lost_and_nothing_differs()
        self.one_writer()
        self.galleries()
        self.commands()
        self.undisturbed()

    def nothing_lost_and_nothing_differs(self) -> None:
        """Each query has one answer, however often it was sent, or a dead letter."""
        queries = {str(r.at).encode() for r in self._queries()}
        letters = {
            b"/".join(said[f"x-source-{part}"] for part in ("topic", "partition", "offset"))
            for said in (dict(r.headers) for r in self._cluster.topics[self._kafka.dead_letters, 0])
        }
        assert set(self._answers) | {key for key in letters if key in queries} == queries
        assert not set(self._answers) & letters
        assert {
            key for found in (self._answers, self._acks) for key, v in found.items() if len(v) > 1
        } == set()

    def one_writer(self) -> None:
        """A generation of a partition is one worker's."""
        writers = defaultdict(set)
        for number, written in self._written.items():
            for entry, record in written:
                writers[number, b"%d" % entry.generation].add(dict(record.headers)["writer"])
        for number in self._written:
            for record in self._cluster.topics[self._kafka.state, number]:
                generation = (record.key or b"").split(b"/")[2]
                if generation == b"lane":  # a lane's own record, named by its content: beside all others
                    continue
                if record.value is not None:  # a later generation erases what nobody needs
                    writers[number, generation].add(dict(record.headers)["writer"])
        assert {place: names for place, names in writers.items() if len(names) > 1} == {}

    def galleries(self) -> None:
        """An answer is of the version that the journal names for its batch, and names items of that alone."""
        shelf = self._world.shelf.versions
        named = {(one.lane, one.seq): one.gallery for entries in self._journal.values() for one in entries}
        for value in (value for values in self._answers.values() for value in values):
            answer = decode_answer(value)
            version = answer.gallery_version
            assert version == named[answer.lane, answer.batch_seq], answer
            assert all(shelf[version].holds(item) for item, _ in answer.results), answer

    def commands(self) -> None:
        """Each lane has obeyed what concerns it once, in order, where the journal says, and said so."""
        control = [decoded(record) for record in self._cluster.topics[self._kafka.control, 0]]
        said = [one for one in control if isinstance(one, Command)]
        acks = [validated(acknowledgements, value) for values in self._acks.values() for value in values]
        told = {(ack.lane, ack.command.offset): ack.batch_seq for ack in acks if ack.lane}
        lanes: dict[str, list[JournalEntry]] = defaultdict(list)
        for entries in self._journal.values():
            for entry in entries:
                lanes[entry.lane].append(entry)
        for lane, entries in lanes.items():
            entries.sort(key=lambda entry: entry.seq)
            obeyed = [(one.control_offset - 1, one.seq) for one in entries if not one.offsets]
            due = [one for one in said if one.concerns(lane)]
            assert [offset for offset, _ in obeyed] in possible(due, len(control)), (lane, obeyed)
            assert {told.get((lane, offset)) == seq for offset, seq in obeyed} <= {True}, (lane, obeyed)
            assert len(obeyed) == sum(name == lane for name, _ in told), (lane, obeyed)

    def undisturbed(self) -> None:
        """One worker that obeys the same boundaries says the same and has learned the same."""
        answers, acks, states = self._again()
        assert answers == self._answers
        assert acks == {key: values for key, values in self._acks.items() if of_a_lane(values)}
        assert states == self._states()

    def _queries(self) -> list[Record]:
        numbers = range(self._cluster.partitions)
        return [record for n in numbers for record in self._cluster.topics[self._kafka.queries, n]]

    def _again(self) -> tuple[Values, Values, dict[str, str]]:
        """Answers, what became of commands, and final states of a replay of the log."""
        kafka, store, sink, engine = (
            self._kafka,
            MemoryStore(),
            MemorySink(),
            self._world.engine(bounded=False),
        )
        for number, entries in self._journal.items():
            place: Partition = (kafka.queries, number)
            store._journal[place] = entries
        topics = sorted(place for place in self._cluster.topics if place[0] in (kafka.control, kafka.labels))
        beside = [record for place in topics for record in self._cluster.topics[place]]
        source = MemorySource([*beside, *self._queries()], [kafka.queries])
        report = run(source, engine.pipeline, engine.codec, sink, store, [], engine.config, clock=lambda: 0.0)
        acks = distinct(sink.records["audit"])
        told = {key: values for key, values in acks.items() if of_a_lane(values)}
        return distinct(sink.records["answers"]), told, dict(report.lanes)

    def _states(self) -> dict[str, str]:
        """Hash of each lane in the newest checkpoints."""
        store = ChangelogStore("nowhere:1", self._kafka)
        self._cluster.faults = Faults(0.0, 0.0, 0.0)
        store._log = SimulatedTopicLog(self._cluster, Client(-1))
        found = {}
        for number in range(self._cluster.partitions):
            checkpoint = store.load((self._kafka.queries, number))
            found.update({lane.lane: lane.state_hash for lane in checkpoint.heads} if checkpoint else {})
        return found


def distinct(records: Iterable[Record]) -> Values:
    """Values by key."""
    found: Values = {}
    for record in records:
        found.setdefault(record.key or b"", set()).add(record.value or b"")
    return found


def of_a_lane(values: set[bytes]) -> bool:
    """Whether acknowledgements are of a lane; where there is none for a command, that is a matter of time."""
    return all(validated(acknowledgements, value).lane for value in values)


def possible(due: list[Command], end: int) -> list[list[int]]:
    """Offsets that a lane may have obeyed: from where it began all, and of before that what holds on."""
    found = []
    for since in range(end + 1):
        held: dict[str, Coordinates] = {}
        for one in due:
            if one.at.offset < since and not one.lane and one.action in STANDING:
                held[STANDING[one.action]] = one.at
        found.append(
            [
                *sorted(at.offset for at in held.values()),
                *(one.at.offset for one in due if one.at.offset >= since),
            ]
        )
    return found
