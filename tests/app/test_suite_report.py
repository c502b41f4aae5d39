"""Reports: figures without clocks, the same text for the same results, links between parts that agree."""

import dataclasses
import io
import json
import re

import numpy as np
import pytest
from rich.console import Console

from app.suite.fingerprint import Fingerprints
from app.suite.report import Report, report_of
from app.suite.report_html import page
from app.suite.report_text import cell_text, markdown, terminal
from app.suite.results import Result, ResultFiles
from app.suite.rows import as_json, curve
from benchmarks.streams import Look, Segment, Stream
from core.errors import QshiftError

NOISY = Look(corruption="contrast", severity=4)
STREAM = Stream(
    "emoji/picture-picture",
    "there-and-back",
    "recurrent",
    (Segment("a 1", (Look(),), 80), Segment("b", (NOISY,), 80), Segment("a 2", (Look(),), 80)),
    "recurrent",
)
PLAIN = Stream("fashion/text-picture", "clean", "single", (Segment("clean", (Look(),), 64),), "clean")


def result(stream: Stream, method: str, seed: int, gain: float) -> Result:
    sizes = [segment.queries for segment in stream.segments]
    count = sum(sizes)
    draw = np.random.default_rng([seed, count])
    frozen = draw.random((count, 4)) * 0.5
    served = frozen + gain * draw.random((count, 4))
    rows = [tuple(tuple(float(v) for v in row) for row in part) for part in (frozen, served, served)]
    return Result(
        stream.task, stream.name, method, seed, tuple(s.name for s in stream.segments), tuple(range(count)),
        tuple(np.repeat(range(len(sizes)), sizes).tolist()), *rows, (64,) * (count // 64),
        (2,) * (count // 64), (1,) * (count // 64), (True,) * (count // 64), tuple(range(count // 64)),
    )  # fmt: skip


def report() -> Report:
    gains = {"frozen": 0.0, "good": 0.3, "bad": -0.2}
    results = [
        (
            stream,
            [{name: result(stream, name, seed, gain) for name, gain in gains.items()} for seed in (0, 1, 2)],
        )
        for stream in (STREAM, PLAIN)
    ]
    return report_of("title <b>", results, [])


def test_a_report_says_the_same_twice_in_every_form() -> None:
    one, two = report(), report()
    assert markdown(one) == markdown(two) and page(one) == page(two)
    assert as_json(one.rows) == as_json(two.rows)


def test_good_is_green_and_significant_and_bad_is_the_worst() -> None:
    found = report()
    line = found.lines[0]
    assert line["good"].low > 0 > line["bad"].high
    assert line["good"].p == pytest.approx(2 / 10001) and cell_text(line["good"]).endswith("***")
    assert line["frozen"].p == 1.0 and found.worst[1].method == "bad"
    titles = [average[0].title for average in found.averages]
    assert titles == ["recurrent and sequential", "clean"]


def test_segments_and_returns_are_told_apart() -> None:
    found = report()
    text = markdown(found)
    assert "a 1 → a 2" in text and found.returns(found.lines[0]["good"]) == [(0, 2)]
    assert found.lines[1]["good"].parts == ()
    parts = found.lines[0]["good"].parts
    assert np.mean([part.gain for part in parts]) == pytest.approx(found.lines[0]["good"].gain)


def test_the_curve_is_a_moving_mean_and_resets_are_marked_where_they_happen() -> None:
    one = result(STREAM, "good", 0, 0.3)
    gains = 100 * (np.array(one.served)[:, 0] - np.array(one.frozen)[:, 0])
    points = curve([one])
    assert points[0][0] == 64 and points[0][1] == pytest.approx(gains[:64].mean())
    assert points[1][0] == 80 and points[1][1] == pytest.approx(gains[16:80].mean())
    assert report().lines[0]["good"].resets == (128.0, 192.0)


def test_the_page_needs_nothing_else_and_holds_what_it_draws() -> None:
    text = page(report())
    assert "title &lt;b&gt;" in text and not re.search(r"<(script|link)[^>]+(src|href)=", text)
    assert text.count("Plotly.newPlot") >= 3
    for number in range(3):
        assert f'id="plot-{number}"' in text
    drawn = re.findall(r"Plotly\.newPlot\('plot-\d+', (\[.*?\]), \{", text)
    assert all(json.loads(data) for data in drawn)


def test_methods_that_disagree_about_frozen_are_refused() -> None:
    odd = result(PLAIN, "good", 0, 0.1)
    odd = dataclasses.replace(odd, frozen=odd.served)
    with pytest.raises(QshiftError, match="frozen twin of good"):
        report_of("t", [(PLAIN, [{"frozen": result(PLAIN, "frozen", 0, 0.0), "good": odd}])], [])


def test_results_come_back_as_they_were_and_half_of_one_does_not(tmp_path) -> None:  # type: ignore[no-untyped-def]
    files, one = ResultFiles(tmp_path / "results"), result(PLAIN, "good", 0, 0.1)
    assert files.load("k") is None and not files.holds("k") and np.isnan(files.milliseconds("k"))
    files.save("k", one, 12.5)
    assert files.load("k") == one and files.milliseconds("k") == 12.5
    path = tmp_path / "results" / "k.json"
    path.write_text(path.read_text()[:-10])
    assert files.load("k") is None
    files.drop("k")
    assert not files.holds("k")


def test_the_code_of_a_method_is_its_modules_and_what_they_import() -> None:
    prints = Fingerprints()
    rest, tcr = prints.of(["adapters.online.rest"]), prints.of(["adapters.online.tcr"])
    assert rest != tcr and rest == Fingerprints().of(["adapters.online.rest"])
    assert prints.of(["no.such.module"]) == prints.of([])


@pytest.mark.parametrize("width", [80, 200])
def test_a_narrow_terminal_gets_more_tables_not_broken_cells(width: int) -> None:
    found = report()
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(terminal(found, width))
    text = console.export_text()
    assert text.count("averages") == (2 if width == 80 else 1)
    for name in ("good", "bad"):
        assert cell_text(found.lines[0][name]) in text
