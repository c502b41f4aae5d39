"""What `core.protocols.Observer` promises, of every observer: it sees all there is and touches nothing."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry
from rich.console import Console
from toy_vectors import shifted, write_vectors

from core.config import Config
from core.protocols import Observer
from core.records import Coordinates, Judgement, Record, Refusal
from core.types import AdaptationStep, Encoded, Hits, Outcome, Query, QueryBatch, Twin
from index.evidence import Evidence
from monitoring.aside import Aside, Errors
from monitoring.drift import DriftMonitor
from monitoring.expected import ExpectedMonitor
from monitoring.history import History
from monitoring.judged import JudgedQuality
from monitoring.metrics import Metrics
from qshift.benchmarks.angles import Angles
from qshift.benchmarks.suite.judge import Judge
from qshift.build import Engine, engine, judged, ranked
from qshift.demo.profile_service import _Ends
from qshift.methods import with_method
from qshift.replay.offline import _Ticker
from qshift.replay.own_run import _Watch
from qshift.terminal.bars import bars
from stream.session import Session

SIZE, BATCHES = 64, 4
TOPIC = "qshift.queries"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = write_vectors(tmp_path_factory.mktemp("vectors"))
    named = Config(base=folder / "base", gallery=folder / "gallery", device="cpu")
    everything = named.model_copy(update={"labels": named.labels.model_copy(update={"rate": 1.0})})
    return engine(with_method(everything, "rest+fused"))


@pytest.fixture(scope="module")
def outcomes(built: Engine) -> list[Outcome]:
    """Of a real run that learns; then batches that are repeated, quiet, small, empty or broken."""
    session, found = Session(built.pipeline, "vector"), []
    for number, rows in enumerate(np.split(shifted(SIZE * BATCHES)[0], BATCHES)):
        queries = tuple(
            built.pipeline.admit(Query(Coordinates(TOPIC, 0, SIZE * number + row), "vector", content))
            for row, content in enumerate(rows)
        )
        found.append(session.learn(session.answer(QueryBatch("0:vector", number, "vector", queries))))
    assert all(outcome.step is not None and outcome.step.updated for outcome in found)
    refused = AdaptationStep(False, "too-small")
    last = found[-1]
    odd = [
        replace(found[0], repeated=True),
        replace(last, quiet=True, adapted=last.frozen, served=last.frozen.answer, step=refused),
        replace(last, step=None, seconds={}),
        replace(last, asked=np.arange(SIZE) % 3 == 0, frozen_entropy=last.frozen_entropy[:0]),
        replace(last, asked=np.zeros(SIZE, np.bool_), frozen_entropy=last.frozen_entropy[:0]),
        first_rows(last, 1),
        first_rows(last, 0),
        broken(last),
    ]
    return found + odd


def first_rows(outcome: Outcome, count: int) -> Outcome:
    """The outcome of a batch of fewer queries."""

    def hits(all_rows: Hits) -> Hits:
        return Hits(all_rows.keys[:count], all_rows.distances[:count])

    def twin(seen: Twin) -> Twin:
        encoded = Encoded(seen.features[:count], seen.codes[:count])
        return Twin(encoded, hits(seen.hits), hits(seen.answer))

    return replace(
        outcome, batch=replace(outcome.batch, queries=outcome.batch.queries[:count]),
        frozen=twin(outcome.frozen), adapted=twin(outcome.adapted), served=hits(outcome.served),
        weights=outcome.weights[:count], frozen_entropy=outcome.frozen_entropy[:count],
        asked=outcome.paired[:count],
    )  # fmt: skip


def broken(outcome: Outcome) -> Outcome:
    """Features and figures that are no numbers, answers without items, extreme weights."""
    features = outcome.adapted.features.copy()
    features[0] = np.nan
    adapted = replace(outcome.adapted, encoded=Encoded(features, outcome.adapted.codes))
    none = Hits(np.full_like(outcome.served.keys, -1), np.full_like(outcome.served.distances, 2147483647))
    weights, entropy = outcome.weights.copy(), outcome.frozen_entropy.copy()
    weights[:3], entropy[0] = (0.0, np.inf, 1.0), np.nan
    assert outcome.step is not None
    figures = {name: float("nan") for name in outcome.step.diagnostics}
    step = replace(outcome.step, diagnostics=figures, losses={"total": float("nan")})
    return replace(outcome, adapted=adapted, served=none, weights=weights, frozen_entropy=entropy, step=step)


def quality(built: Engine) -> JudgedQuality:
    return judged(built)


def to_expect(built: Engine) -> ExpectedMonitor:
    """Of vectors, too: what a base brings a curve for is the app's to say."""
    evidence = Evidence(built.config.answer, built.base.reference, built.base.head.codes)

    def expected(outcome: Outcome) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        gallery = built.versions.current()
        found = [evidence.drops(gallery, "vector", twin) for twin in (outcome.frozen, outcome.adapted)]
        assert found[0] is not None and found[1] is not None
        return 1 - found[0] / 3, 1 - found[1] / 3

    return ExpectedMonitor(expected)


def suite_judge(built: Engine) -> Judge:
    labels = {offset: f"item-{offset % 200}" if offset % 3 else "" for offset in range(SIZE * BATCHES)}
    return Judge(labels, ranked(built), {})


def ticking() -> _Ticker:
    progress = bars(Console(quiet=True))
    return _Ticker(progress, progress.add_task("answered", total=SIZE * BATCHES))


BATTERY: dict[str, Callable[[Engine], Observer]] = {
    "JudgedQuality": quality,
    "DriftMonitor": lambda built: DriftMonitor(built.base.reference, null_windows=500),
    "ExpectedMonitor": to_expect,
    "Metrics": lambda built: Metrics(CollectorRegistry(), quality(built)),
    "History": lambda built: History(quality(built)),
    "Judge": suite_judge,
    "Angles": lambda built: Angles(),
    "_Watch": lambda built: _Watch(),
    "_Ends": lambda built: _Ends(2),
    "_Ticker": lambda built: ticking(),
    "Aside": lambda built: Aside([quality(built), History()], Errors()),
}


@pytest.fixture(params=BATTERY)
def observer(request: pytest.FixtureRequest, built: Engine) -> Iterator[Observer]:
    made = BATTERY[request.param](built)
    assert type(made).__name__ == request.param
    yield made
    if isinstance(made, Aside):
        made.close()


def settle(observer: Observer) -> None:
    if isinstance(observer, Aside):
        assert observer.drain(20) and not observer._errors.counts, observer._errors.counts


def frozen_bytes(value: Any) -> Any:
    """All of a value, arrays as bytes."""
    if is_dataclass(value) and not isinstance(value, type):
        return [frozen_bytes(getattr(value, field.name)) for field in fields(value)]
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, dict):
        return {name: frozen_bytes(part) for name, part in value.items()}
    return [frozen_bytes(part) for part in value] if isinstance(value, tuple | list) else repr(value)


def late_labels() -> list[Judgement]:
    """Of queries that were answered, twice with another word, of unknown items, and of strangers."""
    words = [(3, "item-3"), (3, "item-4"), (70, "no such label"), (10_000, "item-1"), (4, "")]
    return [
        Judgement(Coordinates("labels", 0, number), Coordinates(TOPIC, 0, offset), word)
        for number, (offset, word) in enumerate(words)
    ]


def refusals() -> list[Refusal]:
    at = Coordinates(TOPIC, 0, 9_999)
    return [
        Refusal(Record(at, b"\xff\x00", b"key", (("h", b"\xff"),)), "decode", "Refused", "no JSON"),
        Refusal(Record(at, None), "validate", "Refused", "a tombstone"),
    ]


def test_it_sees_everything_and_touches_nothing(observer: Observer, outcomes: list[Outcome]) -> None:
    kept = frozen_bytes(outcomes)
    for outcome in outcomes:
        assert observer.observe(outcome) is None
        for label in late_labels():
            assert observer.judge(label) is None
        for refusal in refusals():
            assert observer.refuse(refusal) is None
    settle(observer)
    assert frozen_bytes(outcomes) == kept


def test_labels_and_refusals_may_come_before_any_outcome(observer: Observer, outcomes: list[Outcome]) -> None:
    for label in late_labels():
        observer.judge(label)
    for refusal in refusals():
        observer.refuse(refusal)
    observer.observe(outcomes[0])
    settle(observer)


def test_an_outcome_can_be_read_only(observer: Observer, outcomes: list[Outcome]) -> None:
    for outcome in outcomes:
        for twin in (outcome.frozen, outcome.adapted):
            for array in (twin.features, twin.codes, twin.hits.keys, twin.answer.keys):
                array.flags.writeable = False
        observer.observe(outcome)
    settle(observer)


def test_it_takes_part_in_no_draw_of_the_process(observer: Observer, outcomes: list[Outcome]) -> None:
    np.random.seed(3)
    for outcome in outcomes:
        observer.observe(outcome)
    settle(observer)
    drawn = np.random.random()
    np.random.seed(3)
    assert drawn == np.random.random()


def test_only_the_one_beside_the_loop_starts_a_thread(observer: Observer, outcomes: list[Outcome]) -> None:
    before = threading.active_count()
    observer.observe(outcomes[0])
    assert threading.active_count() == before
