"""Queries that never stop coming to a service of several processes, and what became of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from core.config import LimitConfig
from qshift.build import engine
from qshift.offline import run_offline
from qshift.replay.recorded import recorded
from stream.changelog import ChangelogStore
from stream.client import read_all
from stream.codec import label
from stream.history.verify import verify
from stream.recording import KafkaLog

READ_SECONDS = 300.0


class Traffic:
    """What is sent to one site, and the answers as they arrive.

    Args:
        site, messages: as the integration tests' fixtures make them.
        pause_seconds: between two bursts, at most.
        labels: whether the label of each query follows it.
    """

    def __init__(
        self, site: Any, messages: Callable[..., Any], pause_seconds: float = 0.2, labels: bool = False
    ) -> None:
        self.site, self._messages, self._pause, self._seed = site, messages, pause_seconds, 0
        self._labels = labels
        self.sent: set[bytes] = set()
        self.values: dict[bytes, set[bytes]] = {}
        """Key -> distinct answers."""
        self.first_ms: dict[bytes, int] = {}
        """Key -> when its first answer was sent."""
        self._client: Any = None

    def send(self, count: int, bursts: int = 6) -> None:
        """In uneven bursts, so that batches end where a time-out falls."""
        rng = np.random.default_rng(self._seed)
        for size in np.diff([0, *sorted(rng.integers(1, count, bursts - 1)), count]).tolist():
            if size:
                self._seed += 1
                messages, names = self._messages(size, seed=self._seed)
                waiting = [self._open().send(value, headers) for value, headers in messages]
                places = [one.coordinates() for one in waiting]
                self.sent.update(str(at).encode() for at in places)
                for at, name in zip(places, names, strict=True) if self._labels else ():
                    self._open().label(label(at, name), str(at).encode())
                time.sleep(rng.uniform(0.0, self._pause))

    def answered(self) -> int:
        """Queries that have an answer by now."""
        for record in self._open().answers(0.01):
            key = record.key or b""
            self.values.setdefault(key, set()).add(record.value or b"")
            self.first_ms.setdefault(key, record.timestamp_ms)
        return len(self.values)

    def settle(self, seconds: float = 180.0) -> None:
        """Waits until all that was sent is answered, for so long without any progress."""
        known, heard = self.answered(), time.monotonic()
        while known < len(self.sent):
            last = self.site.started[-1]
            assert last.code is None, "the worker ended by itself:\n" + last.output()
            wait = f"{len(self.sent) - known} of {len(self.sent)} queries wait"
            assert time.monotonic() - heard < seconds, f"{wait}, for {seconds:.0f} s\n{last.output()[-4000:]}"
            before, known = known, self.answered()
            heard = time.monotonic() if known > before else heard

    def _open(self) -> Any:
        if self._client is None:
            self._client = self.site.client()
        return self._client

    def lost_touch(self) -> None:
        """Kafka has gone: the next call connects anew, and reads all answers again."""
        if self._client is not None:
            self._client.close()
        self._client = None

    def figures(self, what: str, states: bool = True) -> int:
        """Prints them, and fails unless nothing is lost and nothing differs; returns how many were repeated.

        Args:
            what: was done to the service.
            states: whether answers and state are also compared with those of one run of all that was
                recorded, in this process, which nothing has disturbed. The one worker that is left must have
                been stopped in order: of several, each that ends moves partitions of the others, who then
                forget what they have not saved.
        """
        records, self.values = read_all(self.site.servers, self.site.kafka.answers, READ_SECONDS), {}
        for record in records:
            self.values.setdefault(record.key or b"", set()).add(record.value or b"")
        lost = len(self.sent - set(self.values))
        differing = sum(len(values) > 1 for values in self.values.values())
        repeated = len(records) - len(self.values)
        print(
            f"{what}: {len(self.sent)} queries, {lost} lost, {differing} differing, {repeated} repeated",
            flush=True,
        )
        assert (lost, differing) == (0, 0)
        assert set(self.values) == self.sent
        assert self.site.dead_letters() == []
        self.lost_touch()
        if self.site.config.state.store == "changelog":
            with KafkaLog(self.site.servers) as log:
                verdict = verify(log, self.site.kafka)
            notices = dict(verdict.notices)
            print(f"verify-log: {verdict.document()['read']}, notices {notices}", flush=True)
            assert verdict.status == 0, verdict.document()
        if states:
            answers, lanes = undisturbed(self.site)
            assert answers == {key: next(iter(values)) for key, values in self.values.items()}
            assert saved_lanes(self.site) == lanes
            print(f"as one undisturbed run: {len(answers)} answers, {len(lanes)} lanes", flush=True)
        return repeated


def undisturbed(site: Any) -> tuple[dict[bytes, bytes], dict[str, str]]:
    """Answers, and the hashes of all lanes, of one run of all that was recorded at the same boundaries."""
    found = recorded(site.servers, site.kafka, LimitConfig(), site.kafka.queries)
    report, sink = run_offline(engine(site.config), found.records, [], found.journal)
    return {r.key or b"": r.value or b"" for r in sink.records["answers"]}, dict(report.lanes)


def saved_to(site: Any) -> list[int]:
    """First offset of each partition that its newest checkpoint does not cover; 0 where there is none."""
    store = ChangelogStore(site.servers, site.kafka)
    try:
        found = [store.load((site.kafka.queries, number)) for number in range(site.kafka.partitions)]
    finally:
        store.close()
    return [0 if one is None else one.next_offset for one in found]


def saved_lanes(site: Any) -> dict[str, str]:
    """The hashes of all lanes in the newest checkpoints."""
    store, found = ChangelogStore(site.servers, site.kafka), dict[str, str]()
    try:
        for number in range(site.kafka.partitions):
            checkpoint = store.load((site.kafka.queries, number))
            found.update({lane.lane: lane.state_hash for lane in (checkpoint.lanes if checkpoint else ())})
    finally:
        store.close()
    return found
