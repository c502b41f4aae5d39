"""Reports: figures without clocks, the same text for the same results, links between parts that agree."""

import dataclasses
import io
import json
import re
from collections.abc import Callable, Iterable

import numpy as np
import pytest
from rich.console import Console

from core.errors import QshiftError
from qshift.benchmarks.streams import Look, Segment, Stream
from qshift.benchmarks.suite.fingerprint import Fingerprints
from qshift.benchmarks.suite.grids import Grid, cell_text, grids
from qshift.benchmarks.suite.report import Report, report_of
from qshift.benchmarks.suite.report_html import page
from qshift.benchmarks.suite.report_text import markdown, terminal
from qshift.benchmarks.suite.results import Result, ResultFiles
from qshift.benchmarks.suite.rows import as_json, curve
from qshift.benchmarks.suite.timings import time_table

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


GAINS = {"frozen": 0.0, "good": 0.3, "bad": -0.2}
SEEDS = (0, 1, 2)


def report() -> Report:
    results = [
        (stream, [{name: result(stream, name, seed, gain) for name, gain in GAINS.items()} for seed in SEEDS])
        for stream in (STREAM, PLAIN)
    ]
    return report_of("title <b>", results, [])


def over_seeds(
    stream: Stream, method: str, of: Callable[[Result, int], float], queries: Iterable[int]
) -> float:
    """A mean over seeds of a mean over queries, in points, worked out one by one."""
    total, queries = 0.0, list(queries)
    for seed in SEEDS:
        one = result(stream, method, seed, GAINS[method])
        total += sum(of(one, query) for query in queries) / len(queries)
    return 100 * total / len(SEEDS)


def gain(one: Result, query: int) -> float:
    return one.served[query][0] - one.frozen[query][0]


def score(measure: int) -> Callable[[Result, int], float]:
    return lambda one, query: one.served[query][measure]


def grid(title: str) -> Grid:
    return next(grid for grid in grids(report()) if grid.title == title)


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


@pytest.mark.parametrize("method", ["frozen", "good", "bad"])
def test_recalls_are_those_of_a_slow_loop(method: str) -> None:
    def expected(stream: Stream, queries: Iterable[int]) -> list[str]:
        return [f"{over_seeds(stream, method, score(k), queries):.1f}" for k in (1, 2, 3)]

    def shown(found: Grid, number: int) -> list[str]:
        entry = found.lines[number].entries[list(found.heads).index(method)]
        return [entry.text, *entry.more.split()]

    whole, parts = (
        grid("R@1, R@5, R@10 of the served answers"),
        grid("Segments: R@1, R@5, R@10 of the served answers"),
    )
    for number, stream in enumerate((STREAM, PLAIN)):
        count = sum(segment.queries for segment in stream.segments)
        assert shown(whole, number) == expected(stream, range(count))
    assert [line.names[2] for line in parts.lines] == ["a 1", "b", "a 2"]
    for number in range(3):
        assert shown(parts, number) == expected(STREAM, range(80 * number, 80 * number + 80))


@pytest.mark.parametrize("method", ["good", "bad"])
def test_forgetting_on_return_is_that_of_a_slow_loop(method: str) -> None:
    def mean(start: int, end: int) -> float:
        return over_seeds(STREAM, method, gain, range(start, end))

    found = grid("Forgetting on return")
    [line] = found.lines
    assert list(line.names) == ["emoji/picture-picture", "there-and-back", "a 1 → a 2"]
    entry = line.entries[list(found.heads).index(method)]
    assert float(entry.text) == pytest.approx(mean(160, 240) - mean(0, 80), abs=0.051)
    before, after = (float(value) for value in entry.more.strip("()").split(" → "))
    assert before == pytest.approx(mean(16, 80), abs=0.051)
    assert after == pytest.approx(mean(160, 224), abs=0.051)


def test_harm_counts_only_clean_streams() -> None:
    found = grid("Harm on clean queries")
    entries = {line.names[0]: dict(zip(found.heads, line.entries)) for line in found.lines}
    for method in ("good", "bad"):
        expected = over_seeds(PLAIN, method, gain, range(64))
        for measure in ("mean gain", "worst stream"):
            assert float(entries[measure][method].text) == pytest.approx(expected, abs=0.051)
        assert entries["which"][method][:2] == (PLAIN.task, PLAIN.name)
    lost = entries["streams with a significant loss"]
    assert [lost[name].text for name in ("streams", "good", "bad")] == ["1", "0", "1"]


def test_markdown_and_the_page_show_the_same_tables() -> None:
    found = report()
    text, html = markdown(found), page(found)
    titles = [grid.title for grid in grids(found)]
    assert re.findall(r"^## (.*)$", text, re.M) == titles
    assert re.findall(r'<h2 id="part-\d+">(.*?)</h2>', html)[: len(titles)] == titles
    for grid in grids(found):
        for line in grid.lines:
            for entry in line.entries:
                assert f"{entry.text} {entry.more}".strip().replace("*", "\\*") in text
                assert entry.text + (f"<small>{entry.more}</small>" if entry.more else "") in html
    assert any(line.names == ["worst single stream"] for line in grids(found)[0].lines)


def test_the_page_marks_resets_on_the_curve_of_their_method() -> None:
    curves = re.findall(r"Plotly\.newPlot\('plot-2', (\[.*?\]), \{", page(report()))
    lines, marks = (
        [trace for trace in json.loads(curves[0]) if trace["mode"] == mode] for mode in ("lines", "markers")
    )
    assert [trace["legendgroup"] for trace in marks] == [trace["name"] for trace in lines] == ["good", "bad"]
    assert all(trace["x"] == [128, 192] for trace in marks)
    on = lines[0]["y"][lines[0]["x"].index(128)]
    assert marks[0]["y"][0] == pytest.approx(on, abs=0.001)


def test_methods_beyond_the_colours_still_differ_in_the_plots() -> None:
    names = ["frozen", *(f"m-{number}" for number in range(18))]
    seeds = [{name: result(STREAM, name, 0, 0.01 * at) for at, name in enumerate(names)}]
    curves = re.findall(
        r"Plotly\.newPlot\('plot-2', (\[.*?\]), \{", page(report_of("t", [(STREAM, seeds)], []))
    )
    looks = [
        (trace["line"]["color"], trace["line"]["dash"])
        for trace in json.loads(curves[0])
        if trace["mode"] == "lines"
    ]
    assert len(set(looks)) == len(looks) == 18


def test_times_are_printed_as_means_and_as_multiples_of_frozen() -> None:
    times = {"frozen": [1.0, 3.0], "good": [5.0, float("nan")], "bad": [float("nan")]}
    rows = [{"method": method, "ms_per_query": ms} for method, own in times.items() for ms in own]
    console = Console(width=80, record=True, file=io.StringIO())
    time_table(rows).print(console)
    text = console.export_text()
    assert re.search(r"frozen +2\.00 +1\.0 *\n", text)
    assert re.search(r"good +5\.00 +2\.5 *\n", text) and re.search(r"bad +n/a +n/a *\n", text)
    assert "while other workers ran" in " ".join(text.split())


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
    assert prints.of(["encoders.repair"]) != prints.of([])
    assert {"encoders.nearest_words", "encoders.words", "encoders.context"} <= prints._known.keys()


@pytest.mark.parametrize("width", [80, 200])
def test_a_narrow_terminal_gets_more_tables_not_broken_cells(width: int) -> None:
    found = report()
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(terminal(found, width))
    text = console.export_text()
    assert text.count("averages") == (2 if width == 80 else 1)
    for name in ("good", "bad"):
        assert cell_text(found.lines[0][name]) in text


def test_results_that_are_frozen_by_construction_are_marked_and_in_no_average() -> None:
    """Composed queries have nothing to adapt: their 0.0 is no finding."""
    composed = Stream("composition/composed-picture", "noise", "single", STREAM.segments[:1], "corruption")
    moving = Stream("composition/text-picture", "noise", "single", STREAM.segments[:1], "corruption")

    def found(stream: Stream, adapts: bool) -> list[dict[str, Result]]:
        gains = {"frozen": 0.0, "good": 0.3 if adapts else 0.0}
        return [
            {name: dataclasses.replace(result(stream, name, 0, gain), adapts=adapts and name != "frozen")
             for name, gain in gains.items()}
        ]  # fmt: skip

    both = report_of("t", [(composed, found(composed, False)), (moving, found(moving, True))], [])
    alone = report_of("t", [(moving, found(moving, True))], [])
    assert [average[0].streams for average in both.averages] == [1]
    assert both.averages == alone.averages
    assert not report_of("t", [(composed, found(composed, False))], []).averages
    assert cell_text(both.lines[0]["good"]) == "= frozen" and "[" in cell_text(both.lines[1]["good"])
    assert [row.adapts for row in both.rows if row.method == "good"] == [False, True]
    line = next(
        text for text in markdown(both).splitlines() if "composed-picture" in text and "= frozen" in text
    )
    assert "+0.0" not in line
    assert "by construction" in markdown(both)
