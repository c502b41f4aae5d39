"""The harness on made-up domains: rows against counting by hand, resuming, and what it refuses."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from adapters.semantics import unit_rows
from core.errors import ConfigError
from monitoring.ranking import average_precision
from qshift.benchmarks.hashing.domains import DIGITS, TASKS, Domains
from qshift.benchmarks.hashing.evaluate import Options, cells_of, evaluate
from qshift.benchmarks.hashing.methods import METHODS, Fitted, Method, Training
from qshift.benchmarks.hashing.run import PLACES, Cell, evaluated
from qshift.benchmarks.hashing.splits import make_splits

KEYS = {"method", "task", "direction", "bits", "split", "map_all", "map_at_k", "pooled_pr_area", "seconds"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two collections of three kinds of 24 numbers; the second is turned a little and noisier."""
    draw = np.random.default_rng(0)
    kinds = draw.standard_normal((3, 24)) + 2
    turn = -np.linalg.qr(np.eye(24) + 0.02 * draw.standard_normal((24, 24)))[0]  # near the identity
    y_s, y_t = draw.integers(0, 3, 90), draw.integers(0, 3, 120)
    (tmp_path / "jda").mkdir()
    np.savez(
        tmp_path / DIGITS,
        mnist_x=kinds[y_s] + 0.4 * draw.standard_normal((90, 24)), mnist_y=y_s,
        usps_x=(kinds[y_t] + 0.8 * draw.standard_normal((120, 24))) @ turn, usps_y=y_t,
    )  # fmt: skip
    return tmp_path


def options(data: Path, *methods: str, **changes: Any) -> Options:
    usual = Options(methods, ("mnist-usps",), data, (8, 16), 2, cache=data / "cache", workers=1)
    return replace(usual, **changes)


def quiet() -> Console:
    return Console(file=io.StringIO(), width=100)


def loaded(data: Path) -> Domains:
    return TASKS["mnist-usps"](data, data, None)


def cell(method: str, **changes: Any) -> Cell:
    return replace(Cell(method, "mnist-usps", 16, 0, "target10", "hash_fn", 1000), **changes)


def test_rows_have_the_promised_keys_and_means_are_means(data: Path) -> None:
    files = {name: data / f"out.{name}" for name in ("json", "md", "html")}
    asked = options(
        data,
        "psca",
        "itq",
        "raw",
        json_file=files["json"],
        markdown_file=files["md"],
        html_file=files["html"],
    )
    evaluate(asked, quiet())
    rows = json.loads(files["json"].read_text())
    assert all(row.keys() >= KEYS for row in rows)
    of = [r for r in rows if (r["method"], r["direction"], r["bits"]) == ("psca", "cross", 16)]
    assert [row["split"] for row in of] == [0, 1, "mean"]
    for name in ("map_all", "map_at_k", "pooled_pr_area"):
        assert of[2][name] == pytest.approx((of[0][name] + of[1][name]) / 2, abs=0.002)
    assert {row["codes"] for row in of} == {"learned"}
    assert [row["bits"] for row in rows if row["method"] == "raw" and row["split"] == "mean"] == [0, 0]
    assert of[2]["map_all"] > 60, "chance is a third"
    text = files["md"].read_text()
    assert f"{of[2]['map_all']:.1f} ± {of[2]['spread']:.1f}" in text and "| psca | learned |" in text
    page = files["html"].read_text()
    assert page.count("Plotly.newPlot(") == 8 and "http://" not in page.split("<body>")[1]


def test_scores_equal_counting_by_hand(data: Path) -> None:
    domains, asked = loaded(data), cell("itq", k=7)
    done = evaluated(METHODS["itq"], asked, domains)
    splits = make_splits(90, 120, 0, "target10")
    source, target = unit_rows(domains.source), unit_rows(domains.target)
    rows = np.concatenate((source, target[splits.target_train]))
    from encoders.head import itq

    centred = rows - rows.mean(0)
    weight = itq(centred, centred.mean(0), 16, seed=0)

    def bits(x: NDArray[Any]) -> NDArray[Any]:
        return (x - rows.mean(0)) @ weight.T >= 0

    for score, items, labels in (
        (done.scores[0], source, domains.source_labels),
        (done.scores[1], target[splits.target_train], domains.target_labels[splits.target_train]),
    ):
        values = []
        for query in splits.query:
            distance = (bits(target[query]) != bits(items)).sum(1)
            values.append(average_precision(distance, labels == domains.target_labels[query]))
        assert score.map_all == pytest.approx(float(np.mean(values)))
        assert score.recall[-1] == pytest.approx(1)
        assert len(score.precision) == len(PLACES)


def test_rankings_without_codes_use_cosines(data: Path) -> None:
    domains = loaded(data)
    done = evaluated(METHODS["raw"], cell("raw", bits=0), domains)
    splits = make_splits(90, 120, 0, "target10")
    hits, values = 0, []
    for query in splits.query:
        x = domains.target[query].astype(np.float64)
        cosine = [float(x @ row / np.linalg.norm(x) / np.linalg.norm(row)) for row in domains.source]
        relevant = domains.source_labels == domains.target_labels[query]
        hits += relevant[int(np.argmax(cosine))]
        values.append(average_precision(-np.array(cosine), relevant))
    assert done.scores[0].precision[0] == pytest.approx(hits / len(splits.query))
    assert done.scores[0].map_all == pytest.approx(float(np.mean(values)), abs=1e-3)
    assert np.isnan(done.scores[0].pooled_pr_area)


def test_a_fit_sees_no_query_and_no_target_label(data: Path) -> None:
    domains = loaded(data)
    seen: list[Training] = []

    def watched(training: Training) -> Fitted:
        seen.append(training)
        return METHODS["itq"].fit(training)

    evaluated(Method(watched), cell("itq"), domains)
    assert len(seen[0].target) == 108 and len(seen[0].labels) == 90
    queries = unit_rows(domains.target)[make_splits(90, 120, 0, "target10").query]
    assert not (seen[0].target.features[:, None] == queries).all(2).any()


def test_an_interrupted_evaluation_goes_on(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = METHODS["itq"].fit

    def stops(training: Training) -> Fitted:
        calls.append(training.bits)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(training)

    patched = {**METHODS, "itq": replace(METHODS["itq"], fit=stops)}
    monkeypatch.setattr("qshift.benchmarks.hashing.evaluate.METHODS", patched)
    with pytest.raises(KeyboardInterrupt):
        evaluate(options(data, "itq"), quiet())
    found = evaluate(options(data, "itq"), quiet())
    assert calls == [8, 8, 16, 16, 16], "two of four were done, the third was begun twice"
    assert len(found) == 4
    assert evaluate(options(data, "itq"), quiet()) == found and len(calls) == 5
    evaluate(options(data, "itq", k=5), quiet())
    assert len(calls) == 9, "another question is another cell"


@pytest.mark.slow
def test_workers_give_the_same(data: Path) -> None:
    alone = evaluate(options(data, "itq", "psca", bits=(8,)), quiet())
    together = evaluate(options(data, "itq", "psca", bits=(8,), workers=2, cache=data / "other"), quiet())
    assert list(alone) == list(together)
    assert [done.scores for done in alone.values()] == [done.scores for done in together.values()]


def test_learned_codes_are_the_usual_ones_where_they_can_be(data: Path) -> None:
    kinds = {
        scheme: {c.codes for c in cells_of(options(data, scheme=scheme), ("psca",), ("mnist-usps",))}
        for scheme in ("target10", "out_of_sample")
    }
    assert kinds == {"target10": {"learned"}, "out_of_sample": {"hash_fn"}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("tree",)}, "no method 'tree': expected some of psca"),
        ({"tasks": ("tree",)}, "no task 'tree': expected one of digits, pacs, office-caltech, mnist-usps"),
        ({"bits": (12,)}, "bits must be a multiple of 8, at least 8, got 12"),
        ({"codes": "learned"}, "itq learns no gallery codes"),
        ({"methods": ("psca",), "codes": "learned", "scheme": "out_of_sample"}, "take --codes hash_fn"),
        ({"data": Path("nowhere")}, "cannot be read .* pass --data"),
    ],
)
def test_what_cannot_be_evaluated_is_said_first(data: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate(replace(options(data, "itq"), **changes), quiet())
