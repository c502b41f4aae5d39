"""One embedded Kafka for all integration tests of a run, and a small service to run on it."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.config import Config, KafkaConfig
from core.records import Coordinates, Record
from core.references import DriftReference, SourceConstants
from core.types import Floats, Modality
from stream.broker import Broker
from stream.client import QueryClient, read_all
from stream.cluster import ensure_topics
from stream.codec import Answer, decode_answer, vector_query
from stream.topics import topic_settings

WIDTH, BITS, ITEMS, CLASSES, SIZE = 32, 64, 200, 20, 16
CLIP = {
    "model_cfg": {
        "embed_dim": WIDTH,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    },
    "preprocess_cfg": {"mean": [0.4, 0.5, 0.6], "std": [0.3, 0.25, 0.2], "interpolation": "bilinear"},
}


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A real broker, ready; it dies with the test process. A test that hurts it leaves it ready again."""
    yield from _running(tmp_path_factory.mktemp("kafka") / "data")


@pytest.fixture
def own_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """One of the test's own, which may be killed."""
    yield from _running(tmp_path_factory.mktemp("fragile") / "data")


def _running(folder: Path) -> Iterator[Broker]:
    one = Broker(folder, parent_bound=True)
    one.start()
    one.ready()
    yield one
    one.stop()


@pytest.fixture(scope="session")
def topics() -> Callable[[str], str]:
    """Names that no other test of the run uses: topics("queries") -> "test-1234-7-queries"."""
    numbers = itertools.count()
    return lambda name: f"test-{os.getpid()}-{next(numbers)}-{name}"


# -- a small service ------------------------------------------------------------------------------------


def items() -> Floats:
    """Gallery features [ITEMS, WIDTH]: CLASSES directions, each with its own scatter."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(CLASSES, WIDTH))
    rows = centres[np.arange(ITEMS) % CLASSES] + 0.5 * rng.normal(size=(ITEMS, WIDTH))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def label_of(item: int) -> str:
    return f"class-{item % CLASSES}"


def query_messages(
    count: int, seed: int = 1
) -> tuple[list[tuple[bytes, list[tuple[str, bytes]]]], list[str]]:
    """Shifted vectors as messages, and the class of each."""
    rng, gallery = np.random.default_rng(seed), items()
    chosen = rng.integers(ITEMS, size=count)
    rows = gallery[chosen] + 0.4 * rng.normal(size=(count, WIDTH)) / WIDTH**0.5 + 0.1
    messages = [vector_query(row, f"q{number}") for number, row in enumerate(rows.astype(np.float32))]
    return messages, [label_of(int(item)) for item in chosen]


def write_world(folder: Path, modalities: tuple[Modality, ...], towers: Path | None) -> Path:
    """A base model and a gallery, as `qshift fit` and `qshift gallery build` would leave them."""
    import torch

    from encoders.base_model import Parts, load_base, write_base
    from encoders.head import HashHead
    from index.gallery import VersionedGallery

    rng, features = np.random.default_rng(3), items()
    mean = features.mean(0)
    weight = rng.normal(size=(BITS, WIDTH)).astype(np.float32)
    head = HashHead(weight, np.zeros(BITS, np.float32), dict.fromkeys(modalities, mean))
    clean = features[:128] + 0.05 * rng.normal(size=(128, WIDTH)).astype(np.float32)
    clean /= np.linalg.norm(clean, axis=1, keepdims=True)
    entropy, nearest = rng.uniform(0.5, 1.5, 128), rng.integers(0, 12, 128)
    drift = DriftReference(clean, entropy.astype(np.float32), nearest.astype(np.float32), SIZE)
    parts = Parts(
        name="small", towers=towers, head=head, provenance={},
        constants={modality: SourceConstants(0.1, 2.0, 0.05, 1e-2, SIZE) for modality in modalities},
        reference=dict.fromkeys(modalities, drift),
    )  # fmt: skip
    write_base(folder / "base", parts)
    version = load_base(folder / "base").version
    VersionedGallery(
        BITS, [f"item-{i}" for i in range(ITEMS)], head.codes(torch.from_numpy(features), modalities[0]),
        [label_of(i) for i in range(ITEMS)], features, backend="exact", base_version=version,
    ).save(folder / "gallery")  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def vector_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base and gallery that serve vectors only; loads without open_clip."""
    return write_world(tmp_path_factory.mktemp("vectors"), ("vector",), None)


@pytest.fixture(scope="session")
def clip_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base and gallery that serve pictures, text and vectors with a tiny random CLIP."""
    import torch
    from open_clip.model import CLIP as FlatClip
    from safetensors.torch import save_file

    towers = tmp_path_factory.mktemp("towers")
    (towers / "open_clip_config.json").write_text(json.dumps(CLIP))
    torch.manual_seed(0)
    flat = FlatClip(**json.loads(json.dumps(CLIP["model_cfg"])))
    tensors = {name: tensor.contiguous() for name, tensor in flat.state_dict().items()}
    save_file(tensors, towers / "open_clip_model.safetensors")
    return write_world(tmp_path_factory.mktemp("clip"), ("image", "text", "vector"), towers)


@dataclass
class Site:
    """One service on one broker: its configuration, and what tests see of it from outside."""

    servers: str
    config: Config
    file: Path
    nursery: Nursery
    started: list[Worker] = field(default_factory=list)

    @property
    def kafka(self) -> KafkaConfig:
        return self.config.kafka

    def create(self) -> None:
        ensure_topics(self.servers, topic_settings(self.kafka))

    def client(self) -> QueryClient:
        return QueryClient(self.servers, self.kafka)

    def send(self, messages: list[tuple[bytes, list[tuple[str, bytes]]]]) -> list[Coordinates]:
        """Sends queries in order and waits until all are stored."""
        client = self.client()
        try:
            sent = [client.send(value, headers) for value, headers in messages]
            return [one.coordinates() for one in sent]
        finally:
            client.close()

    def answers(self) -> list[Record]:
        return read_all(self.servers, self.kafka.answers)

    def dead_letters(self) -> list[Record]:
        return read_all(self.servers, self.kafka.dead_letters)

    def distinct(self) -> dict[bytes, set[bytes]]:
        """Key -> distinct values of its answers."""
        found: dict[bytes, set[bytes]] = {}
        for record in self.answers():
            assert record.key is not None and record.value is not None
            found.setdefault(record.key, set()).add(record.value)
        return found

    def decoded(self) -> dict[Coordinates, Answer]:
        found = [decode_answer(record.value or b"") for record in self.answers()]
        return {answer.source: answer for answer in found}

    def wait(self, done: Callable[[], bool], seconds: float = 60.0) -> None:
        """Polls until `done`, watching that the newest worker lives."""
        deadline = time.monotonic() + seconds
        while not done():
            if self.started and self.started[-1].code is not None:
                raise AssertionError("the worker ended by itself:\n" + self.started[-1].output())
            if time.monotonic() > deadline:
                last = self.started[-1].output() if self.started else ""
                raise AssertionError(f"not done within {seconds:.0f} s\n{last}")
            time.sleep(0.02)

    def worker(self, name: str = "worker-0") -> Worker:
        """Starts `qshift serve` as a process of its own."""
        made = Worker(self.nursery, self.file, self.file.with_name(f"worker-{len(self.started)}.log"), name)
        self.started.append(made)
        return made


class Worker:
    """`qshift serve` in a process of its own, forked from one that has done the slow imports."""

    def __init__(self, nursery: Nursery, config: Path, log: Path, name: str) -> None:
        self._nursery, self._log = nursery, log
        self._code: int | None = None
        self.pid = int(nursery.ask(f"start\t{config}\t{log}\t{name}"))

    def output(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    @property
    def code(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        if self._code is None:
            said = self._nursery.ask(f"poll\t{self.pid}")
            self._code = None if said == "runs" else int(said)
        return self._code

    def kill(self) -> None:
        """SIGKILL, and waits for the end. The process is ours until `code` has been asked for."""
        os.kill(self.pid, signal.SIGKILL)
        assert self._ended(10) == -signal.SIGKILL, self.output()

    def terminate(self, seconds: float = 30.0) -> float:
        """SIGTERM; returns how long it took to end. Its exit code must be 0."""
        began = time.monotonic()
        os.kill(self.pid, signal.SIGTERM)
        assert self._ended(seconds) == 0, self.output()
        return time.monotonic() - began

    def _ended(self, seconds: float) -> int | None:
        deadline = time.monotonic() + seconds
        while self.code is None and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.code

    def state(self) -> str:
        """The first 16 digits of the state's sha256, from the last line of a stopped worker."""
        return self._stopped()[4]

    def counts(self) -> tuple[int, int, int]:
        """Queries, dead letters and checkpoints of the stopped worker."""
        found = self._stopped()
        return int(found[1]), int(found[2]), int(found[3])

    def _stopped(self) -> re.Match[str]:
        assert not re.search(r"\b1 (queries|dead letters|checkpoints)\b", self.output()), self.output()
        found = re.search(
            r"stopped after (\d+) quer(?:y|ies), (\d+) dead letters?, (\d+) checkpoints?; "
            r"state ([0-9a-f]{16})",
            " ".join(self.output().split()),
        )
        assert found is not None, self.output()
        return found


NURSERY = """
import os, sys
import torch._dynamo  # what the first optimizer imports: seconds that every worker would wait for
import qshift.commands.serve, qshift.service
from qshift.cli import main

children = set()
for line in sys.stdin:
    order, *rest = line.rstrip("\\n").split("\\t")
    if order == "start":
        pid = os.fork()
        if pid == 0:
            try:
                out = os.open(rest[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
                for handle in (1, 2):
                    os.dup2(out, handle)
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                sys.argv = ["qshift", "serve", "--config", rest[0], "--worker", rest[2]]
                code = 1
                try:
                    main()
                except SystemExit as ended:
                    code = int(ended.code or 0)
            finally:
                sys.stdout.flush()
                os._exit(code)
        children.add(pid)
        print(pid, flush=True)
    else:
        pid, status = os.waitpid(int(rest[0]), os.WNOHANG)
        children.discard(pid)
        print(os.waitstatus_to_exitcode(status) if pid else "runs", flush=True)
for pid in children:
    os.kill(pid, 9)
"""


class Nursery:
    """A process that has imported torch and faiss, once, and forks workers."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "300", "PYTHONWARNINGS": "ignore"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", NURSERY], cwd=Path(__file__).parents[2], env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ask(self, order: str) -> str:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(order + "\n")
        self._process.stdin.flush()
        said = self._process.stdout.readline().strip()
        assert said, "the process that forks workers has ended"
        return said

    def close(self) -> None:
        """Ends it, and whatever it has forked and nobody has ended."""
        self._process.communicate(timeout=30)


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    one = Nursery()
    yield one
    one.close()


@pytest.fixture(scope="module")
def make_site(
    tmp_path_factory: pytest.TempPathFactory, topics: Callable[[str], str], nursery: Nursery
) -> Iterator[Callable[..., Site]]:
    """make_site(broker, world, queries=..., **sections): topics of its own, but for a given query topic."""
    made: list[Site] = []

    def make(broker: Broker, world: Path, queries: str | None = None, **sections: Any) -> Site:
        names = {
            name: topics(name)
            for name in ("answers", "labels", "state", "journal", "dead_letters", "control", "audit", "group")
        }
        document: dict[str, Any] = {
            "base": str(world / "base"),
            "gallery": str(world / "gallery"),
            "device": "cpu",
            # Batches are always full: a time-out would form other batches in an uninterrupted run.
            "batch": {"size": SIZE, "floor": 8, "linger_seconds": 60.0},
            "state": {"store": "changelog", "every_batches": 3},
            "http": {"enabled": False},
            "labels": {"key": "of the tests"},
            "kafka": {
                "bootstrap_servers": broker.bootstrap_servers,
                "queries": queries or topics("queries"),
                **names,
            },
        }
        for name, section in sections.items():
            document[name] = {**document.get(name, {}), **section} if isinstance(section, dict) else section
        config = Config.model_validate(document)
        folder = tmp_path_factory.mktemp("site")
        (folder / "qshift.toml").write_text(_toml(document))
        made.append(Site(broker.bootstrap_servers, config, folder / "qshift.toml", nursery))
        made[-1].create()
        return made[-1]

    yield make
    for site in made:
        for worker in site.started:
            if worker.code is None:
                worker.kill()


@pytest.fixture(scope="session")
def messages() -> Callable[..., Any]:
    """messages(count, seed=1) -> ([(value, headers)], [class of each])."""
    return query_messages


def _toml(document: dict[str, Any]) -> str:
    """Scalars first, then a table per section; JSON spells strings, numbers and booleans as TOML does."""

    def lines(values: dict[str, Any], name: str) -> list[str]:
        plain = [
            f"{key} = {json.dumps(value)}" for key, value in values.items() if not isinstance(value, dict)
        ]
        inner = {
            f"{name}.{key}".lstrip("."): value for key, value in values.items() if isinstance(value, dict)
        }
        tables = [line for key, value in inner.items() for line in ("", f"[{key}]", *lines(value, key))]
        return plain + tables

    return "\n".join(lines(document, "")) + "\n"


@pytest.fixture
def serving() -> Iterator[Callable[[Any], Any]]:
    """serving(site): the service in this process; what ended it shows in the test."""
    from qshift.service import Service  # late: workers of other tests do without

    running: list[Service] = []

    def start(site: Any) -> Service:
        running.append(Service(site.config))
        running[-1].start()
        return running[-1]

    yield start
    for service in running:
        service.stop()
