"""A suite from end to end on vectors: real base, gallery, pipeline and methods; tiny and quick."""

import dataclasses
import json
import math
import os
import signal
from collections.abc import Callable
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

import qshift.benchmarks.suites
from core.config import Config
from core.errors import ConfigError, QshiftError
from core.hooks import Watch
from core.references import DriftReference, SourceConstants
from encoders.base_model import Parts, load_base, write_base
from encoders.head import HashHead
from encoders.vector import VectorEncoder
from index.gallery import VersionedGallery
from qshift.benchmarks.streams import Look, Segment, Stream
from qshift.benchmarks.suite.bench import run_suite
from qshift.benchmarks.suite.chosen import Known, Options, methods_of, streams_of
from qshift.benchmarks.suite.processes import Settings, work
from qshift.benchmarks.suite.rates import TUNED, factor_of
from qshift.benchmarks.suite.report import Report
from qshift.benchmarks.suite.results import ResultFiles
from qshift.benchmarks.suite.runs import log_of, planned, run_stream
from qshift.benchmarks.suite.shared import SharedEncoder
from qshift.benchmarks.suite.work import Facts, Missing, PrepareOrder, Ready, jobs_of
from qshift.benchmarks.suites.plan import CLEAN, Plan, Rule, Suite
from qshift.benchmarks.tasks.types import Sample, Task
from qshift.methods import METHODS as KNOWN_METHODS
from qshift.methods import with_method

WIDTH, BITS, ITEMS, QUERIES = 12, 32, 30, 96
NAMES = ("toy/vector-vector", "toy/other", "gone/vector-vector")
METHODS = ("frozen", "rest", "centring")
Toy = tuple[Task, Path, VersionedGallery]


def unit(rows: Any) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def make(folder: Path, name: str) -> Ready:
    """Items are random directions; clean queries lie near one, shifted ones are pushed all the same way."""
    rng = np.random.default_rng(len(name))
    items = unit(rng.normal(size=(ITEMS, WIDTH)))
    picks = rng.integers(ITEMS, size=QUERIES)
    clean = unit(items[picks] + 0.25 * rng.normal(size=(QUERIES, WIDTH)))
    shifted = unit(clean + 0.8 * unit(rng.normal(size=(1, WIDTH))))
    head = HashHead(
        rng.normal(size=(BITS, WIDTH)).astype(np.float32), np.zeros(BITS, np.float32),
        {"vector": np.zeros(WIDTH, np.float32)},
    )  # fmt: skip
    parts = Parts(
        name=name, towers=None, head=head, provenance={},
        constants={"vector": SourceConstants(0.1, 2.0, 0.05, 1e-2, 64)},
        reference={"vector": DriftReference(clean, *np.ones((2, QUERIES), np.float32))},
    )  # fmt: skip
    write_base(folder, parts)
    base = load_base(folder)
    codes = head.codes(torch.from_numpy(items), "vector")
    labels = [f"item {i}" for i in range(ITEMS)]
    gallery = VersionedGallery(BITS, labels, codes, labels, items, backend="exact", base_version=base.version)

    def pool(vectors: np.ndarray) -> list[Sample]:
        return [
            Sample(f"q{i}", vector, labels[pick], str(pick % 3))
            for i, (vector, pick) in enumerate(zip(vectors, picks, strict=True))
        ]

    own = [Sample(label, item, label) for label, item in zip(labels, items, strict=True)]
    pools = {"clean": pool(clean), "shift": pool(shifted)}
    return Ready(Task(name, "vector", "vector", own, pools, "toy"), base, gallery)


class ToyTasks:
    """Tasks from a folder; one of them has no data."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: dict[str, Ready] = {}
        self.loads = 0

    def load(self, name: str) -> Task:
        if name.startswith("gone/"):
            raise ConfigError("gone needs DATA/gone.zip")
        self.loads += 1
        if name not in self.made:
            self.made[name] = make(self.folder / name, name)
        return self.made[name].task

    def ready(self, task: Task) -> Ready:
        return self.made[task.name]


def streams(plan: Plan, quick: bool) -> list[Stream]:
    back = [Segment("shift 1", (Look("shift"),), 40), Segment("clean 1", (CLEAN,), 20)]
    back += [Segment("shift 2", (Look("shift"),), 40), Segment("clean 2", (CLEAN,), 20)]
    if plan.name == "toy/other":
        return [plan.single(CLEAN, "clean", 1)]
    odd = [Segment("odd", (CLEAN, Look(trick="noise")), 40)]
    return [
        plan.single(CLEAN, "clean", 1),
        plan.single(Look("shift"), "domain", 1),
        plan.stream("there-and-back", "recurrent", "recurrent", back),
        plan.stream("tiny", "tiny", "safety", [Segment("clean", (CLEAN,), 30)], "tiny"),
        plan.stream("hostile", "hostile", "safety", odd),
        plan.stream("late", "label-delay", "schedule", [Segment("s", (Look("shift"),), 50)], label_delay=7),
    ]


TOY = Suite("core", (Rule("toy/*", streams, quick=1), Rule("gone/*", streams)), seeds=2)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Known:
    torch.set_num_threads(1)
    return Known(NAMES, (), ToyTasks(tmp_path_factory.mktemp("tasks")), {"core": TOY})


@pytest.fixture(scope="module")
def replayed(toy: Known, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Report]:
    """Runs the toy suite; what the tests of this module have run before is cached."""
    cache = tmp_path_factory.mktemp("cache")

    def run(**more: Any) -> Report:
        options = Options("core", methods=("rest", "centring"), workers=1, cache=cache)
        return run_suite(dataclasses.replace(options, **more), Config(), Console(quiet=True), toy)

    return run


def test_rows_have_exactly_the_fields_of_the_contract_and_two_runs_are_equal(
    replayed: Callable[..., Report], tmp_path: Path
) -> None:
    texts = []
    for more in ({}, {"cache": tmp_path / "empty"}):  # the second computes everything again
        files = {f"{kind}_file": tmp_path / f"{kind}-{len(more)}" for kind in ("json", "markdown", "html")}
        replayed(**files, **more)
        texts.append([path.read_text() for path in files.values()])
    assert texts[0] == texts[1]
    rows = json.loads(texts[0][0])
    fields = "task stream method seed queries map r1 map_minus_frozen low high forwards backwards adapts"
    assert all(list(row) == fields.split() for row in rows)
    assert len(rows) == (6 + 1) * 2 * 3  # streams of two tasks, seeds, methods
    assert all(
        0 <= row["map"] <= 100 and row["low"] <= row["map_minus_frozen"] <= row["high"] for row in rows
    )
    assert "<script>" in texts[0][2] and len(texts[0][2]) < 6 << 20
    assert "there-and-back" in texts[0][1] and "seconds" not in texts[0][1]


def test_frozen_is_the_measure_of_itself(replayed: Callable[..., Report]) -> None:
    report = replayed()
    frozen = {(row.task, row.stream, row.seed): row for row in report.rows if row.method == "frozen"}
    assert all(row.map_minus_frozen == row.low == row.high == 0.0 for row in frozen.values())
    for row in report.rows:
        twin = frozen[row.task, row.stream, row.seed]
        assert row.map - twin.map == pytest.approx(row.map_minus_frozen)
        assert row.queries == twin.queries
    assert any(row.map_minus_frozen != 0.0 for row in report.rows)


def test_a_cell_is_the_mean_over_seeds_of_the_means_over_queries(replayed: Callable[..., Report]) -> None:
    report = replayed()
    for line in report.lines:
        for method, cell in line.items():
            own = [
                r
                for r in report.rows
                if (r.task, r.stream, r.method) == (cell.task, cell.stream.name, method)
            ]
            assert cell.gain == pytest.approx(np.mean([row.map_minus_frozen for row in own]))
            assert cell.served.map == pytest.approx(np.mean([row.map for row in own]))
            assert cell.low <= cell.gain <= cell.high and cell.seeds == 2


def test_averages_worst_streams_and_returns(replayed: Callable[..., Report]) -> None:
    report = replayed()
    clean = next(average for average in report.averages if average[0].title == "clean")
    for one in clean:
        own = [line[one.method] for line in report.lines if line[one.method].stream.group == "clean"]
        assert one.streams == len(own) == 2
        assert one.gain == pytest.approx(np.mean([cell.gain for cell in own]))
    for cell in report.worst:
        assert cell.gain == min(line[cell.method].gain for line in report.lines)
    back = next(line["rest"] for line in report.lines if line["rest"].stream.name == "there-and-back")
    assert report.returns(back) == [(0, 2), (1, 3)]
    assert [part.name for part in back.parts] == ["shift 1", "clean 1", "shift 2", "clean 2"]


def test_a_second_run_computes_nothing_and_a_new_method_only_itself(
    toy: Known, replayed: Callable[..., Report], tmp_path: Path
) -> None:
    few = {"cache": tmp_path, "streams": ("clean", "tiny"), "tasks": NAMES[:1]}
    first = replayed(methods=("rest",), **few)
    results = tmp_path / "results"
    before = {path.name: path.stat().st_mtime_ns for path in results.iterdir()}
    assert replayed(methods=("rest",), **few).digest == first.digest
    assert {path.name: path.stat().st_mtime_ns for path in results.iterdir()} == before
    replayed(methods=("rest", "centring"), **few)
    after = {path.name: path.stat().st_mtime_ns for path in results.iterdir()}
    assert before.items() < after.items()
    assert len(after) == len(before) * 3 // 2  # frozen and rest were there


def test_an_interrupted_run_keeps_what_is_done(toy: Known, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    done = 0

    def heard(news: object) -> list[Any]:
        nonlocal done
        if isinstance(news, Facts):
            files = ResultFiles(tmp_path / "results")
            jobs = jobs_of(news, streams(news.plan, False), [0], METHODS)
            return [order for job in jobs if (order := job.missing(files))]
        done += 1
        if done == 4:
            raise Stop
        return []

    settings = Settings(toy.source, Config(), METHODS, tmp_path / "results")
    with pytest.raises(Stop):
        work(settings, [PrepareOrder(NAMES[:1])], 1, heard)
    assert len(list((tmp_path / "results").glob("*.ms.json"))) == 4
    kept = [path for path in (tmp_path / "results").iterdir() if ".ms" not in path.name]
    assert len(kept) == 4 and all(json.loads(path.read_text())["served"] for path in kept)


@pytest.mark.slow
def test_a_stop_signal_leaves_no_worker_behind(toy: Known, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def heard(news: object) -> list[Any]:
        os.kill(os.getpid(), signal.SIGTERM)
        return []

    settings = Settings(toy.source, Config(), METHODS, tmp_path / "results")
    with pytest.raises(SystemExit) as stopped:
        work(settings, [PrepareOrder(NAMES[:1])], 2, heard)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert not [child for child in active_children() if child.name == "qshift-replay"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_tasks_without_data_are_left_out_with_the_reason_unless_named(
    replayed: Callable[..., Report],
) -> None:
    report = replayed(methods=("frozen",), streams=("clean",))
    assert report.left_out == (Missing("gone/vector-vector", "gone needs DATA/gone.zip"),)
    assert replayed(methods=("frozen",), tasks=("toy/*",), streams=("clean",)).left_out == ()
    with pytest.raises(ConfigError, match=r"gone/vector-vector cannot be run: gone needs DATA/gone\.zip"):
        replayed(tasks=("gone/vector-vector",))
    with pytest.raises(ConfigError, match=r"nothing to run.*DATA/gone\.zip"):
        replayed(tasks=("gone/*",))


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"suite": "cor"}, r"no suite 'cor' \(did you mean core\?\): one of core"),
        ({"methods": ("rest", "magic")}, "no method 'magic': one of frozen, .*rest"),
        ({"methods": ("rest+glued",)}, r"no method 'rest\+glued'"),
        ({"tasks": ("toys/*",)}, "no task 'toys/.'.*toy/vector-vector"),
        ({"streams": ("night",)}, "no stream 'night'.*there-and-back"),
        ({"streams": ("contrast-9",)}, r"contrast.*9.*1, 2, 3, 4, 5"),
    ],
)
def test_what_is_not_known_is_answered_with_the_valid_choices(
    replayed: Callable[..., Report], more: dict[str, Any], match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        replayed(**more)


def test_streams_can_be_picked_and_corruptions_added() -> None:
    plan = Plan("toy/x", "image", ("shift",))
    picked = streams_of(TOY, plan, ("th*", "contrast-2"), False)
    assert [s.name for s in picked] == ["there-and-back", "contrast-2"]


# -- the path ------------------------------------------------------------------------------------------


def test_batches_end_where_the_stream_says(toy: Known) -> None:
    task = toy.source.load(NAMES[0])
    ready = toy.source.ready(task)
    sizes = {}
    for stream in streams(Plan(task.name, "vector", ("shift",)), False):
        run_stream(
            task, ready.base, ready.gallery, stream, 0, {"frozen": Config()},
            lambda method, result, ms, name=stream.name: sizes.update({name: result.batch_queries}),  # type: ignore[misc]
        )  # fmt: skip
    assert sizes["clean"] == (64,) and sizes["there-and-back"] == (64, 56) and sizes["late"] == (50,)
    assert sum(sizes["tiny"]) == 30 and max(sizes["tiny"]) <= 8 and len(sizes["tiny"]) > 3


def test_labels_lie_in_the_log_as_late_as_the_stream_says(toy: Known) -> None:
    task, config = toy.source.load(NAMES[0]), Config()
    late = streams(Plan(task.name, "vector", ("shift",)), False)[-1]
    log = log_of(task, late, 0, config)
    places = {r.at: n for n, r in enumerate(log.records)}
    topics = [r.at.topic for r in log.records]
    assert topics.count(config.kafka.labels) == topics.count(config.kafka.queries) == 50
    first = next(n for n, topic in enumerate(topics) if topic == config.kafka.labels)
    assert first == 8 and len(places) == 100


@pytest.mark.parametrize("late", [1, 3])
def test_labels_steer_as_many_batches_late_as_asked(toy: Known, late: int) -> None:
    task, config = toy.source.load(NAMES[0]), Config()
    for stream in streams(Plan(task.name, "vector", ("shift",)), False):
        log = log_of(task, stream, 0, config)
        plain, steered = (planned(log, stream, config, one) for one in (None, late))
        if plain:
            assert [entry.offsets for entry in plain] == [entry.offsets for entry in steered]
        assert [row for entry in steered for row in entry.offsets] == list(range(len(log.labels)))
        for seq, entry in enumerate(steered):
            ends = 0 if seq < late else steered[seq - late].offsets[-1] + 1
            last = [offset for offset in range(ends) if log.labels[offset]][-1:]
            named = entry.label_offsets.get(f"{config.kafka.labels}/0", 0)
            assert named == (last[0] + 1 if last else 0)


def test_late_labels_are_methods_of_their_own(replayed: Callable[..., Report]) -> None:
    report = replayed(
        methods=("default", "rest"), late=(1, 4), labels=1.0, streams=("there-and-back", "tiny")
    )
    found = list(dict.fromkeys(row.method for row in report.rows))
    assert found == ["frozen", "default", "default@1", "default@4", "rest"]
    assert methods_of(("rest+fused",), (2,)) == ("frozen", "rest+fused", "rest+fused@2")


def test_results_do_not_depend_on_what_else_is_run(toy: Known) -> None:
    task = toy.source.load(NAMES[0])
    ready, config = toy.source.ready(task), Config()
    stream = streams(Plan(task.name, "vector", ("shift",)), False)[2]
    found: dict[str, Any] = {}
    alone: dict[str, Any] = {}
    run_stream(
        task, ready.base, ready.gallery, stream, 0, {name: with_method(config, name) for name in METHODS},
        lambda method, result, ms: found.update({method: result}),
    )  # fmt: skip
    for name in reversed(METHODS):
        run_stream(
            task, ready.base, ready.gallery, stream, 0, {name: with_method(config, name)},
            lambda method, result, ms: alone.update({method: result}),
        )  # fmt: skip
    assert found == alone and found["rest"].served != found["frozen"].served


def test_a_refused_query_is_an_error_not_a_gap(toy: Known) -> None:
    task = toy.source.load(NAMES[0])
    ready = toy.source.ready(task)
    broken = dataclasses.replace(
        task, pools={"clean": [dataclasses.replace(task.pools["clean"][0], content=np.zeros(3, np.float32))]}
    )
    stream = Stream(task.name, "s", "single", (Segment("a", (CLEAN,), 1),), "clean")
    with pytest.raises(QshiftError, match=r"query 0 was refused.*12 numbers"):
        run_stream(broken, ready.base, ready.gallery, stream, 0, {"frozen": Config()}, lambda *_: None)


# -- sharing -------------------------------------------------------------------------------------------


class Counting(VectorEncoder):
    """Counts the forwards that are really made; shows one layer to its hook."""

    forwards = 0

    def encode(self, inputs: Any, params: Any = None, hook: Any = None) -> Tensor:
        self.forwards += 1
        if hook is not None:
            hook(0, inputs + 1)
            hook(1, inputs + 2)
        return super().encode(inputs, params)


def test_frozen_forwards_are_made_once_and_stay_the_same() -> None:
    own = Counting(4)
    shared = SharedEncoder(own)
    inputs = torch.eye(4)
    first, second = shared.encode(inputs), shared.encode(inputs.clone())
    assert (
        own.forwards == 1
        and torch.equal(first, second)
        and torch.equal(first, VectorEncoder(4).encode(inputs))
    )
    second.zero_()
    assert torch.equal(shared.encode(inputs), first), "what was handed out must not be shared"
    shared.encode(torch.eye(4)[:3])  # another shape
    shared.encode(inputs + 1e-6)  # other values
    assert own.forwards == 3
    params = own.adaptable()
    shared.encode(inputs, params)
    shared.encode(inputs, params)
    shared.encode(inputs, {})
    assert own.forwards == 6, "adapted forwards are never shared"


def test_what_a_watch_sees_is_remembered_and_others_are_not_shared() -> None:
    own = Counting(4)
    shared = SharedEncoder(own)
    inputs = torch.eye(4)
    shared.encode(inputs)
    one, two, both = Watch([1]), Watch([1]), Watch([0, 1])
    shared.encode(inputs, None, one)
    shared.encode(inputs, None, two)
    assert own.forwards == 2
    assert torch.equal(one.seen[1], inputs + 2) and torch.equal(two.seen[1], inputs + 2)
    shared.encode(inputs, None, both)
    assert own.forwards == 3 and both.seen.keys() == {0, 1}
    shared.encode(inputs)
    assert own.forwards == 3
    shared.encode(inputs, None, lambda layer, x: None)
    shared.encode(inputs, None, lambda layer, x: None)
    assert own.forwards == 5


def test_passes_per_query_weigh_batches_by_their_size(replayed: Callable[..., Report]) -> None:
    report = replayed()
    frozen = [row for row in report.rows if row.method == "frozen"]
    assert all(row.forwards == 1.0 and row.backwards == 0.0 for row in frozen)
    rest = [row for row in report.rows if row.method == "rest" and row.stream == "shift"]
    assert all(row.forwards > 1.0 and math.isfinite(row.backwards) for row in rest)


def test_suites_are_those_of_the_command_line() -> None:
    assert set(qshift.benchmarks.suites.SUITES) == {
        "core", "develop", "decoupling", "safety", "chain", "labels"
    }  # fmt: skip


def test_a_factor_multiplies_the_learning_rate_of_a_method(replayed: Callable[..., Report]) -> None:
    """`rest*1` is rest; steps a hundred times as long answer otherwise."""
    named = ("rest", "rest*1", "rest*100")
    report = replayed(methods=named, seeds=1, streams=("there-and-back",))
    found = {name: [row.map for row in report.rows if row.method == name] for name in named}
    assert found["rest"] == found["rest*1"] != found["rest*100"]


def test_peers_run_at_rates_tuned_for_the_data() -> None:
    assert (
        factor_of("sar", "emoji/picture-picture") == 10 and factor_of("sar*1", "emoji/picture-picture") == 1
    )
    assert factor_of("sar+fused", "emoji/noto-twemoji") == 10
    assert factor_of("default", "emoji/picture-picture") == factor_of("sar", "pacs/photo-art") == 1
    assert {name for rates in TUNED.values() for name in rates} <= {*KNOWN_METHODS} - {
        "rest",
        "default",
        "frozen",
    }


@pytest.mark.parametrize("written", ["rest*", "rest*-1", "rest*0", "rest*much", "rest*inf"])
def test_a_factor_that_is_none_is_said(written: str) -> None:
    with pytest.raises(ConfigError, match=r"a number above 0, as in tent\*3"):
        methods_of((written,))
