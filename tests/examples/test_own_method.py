"""A method in 40 lines of the user's own, named `module:Class` wherever a method is named."""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from toy_vectors import shifted

import qshift
from core.config import AdaptConfig, Config
from core.config_file import load
from core.errors import ArtifactError, ConfigError
from core.identity import difference, identity
from qshift.benchmarks.suite.fingerprint import Fingerprints
from qshift.benchmarks.suite.runs import code_of
from qshift.methods import known, with_method
from qshift.replay.own_queries import own_parts, own_queries
from qshift.replay.own_run import run_records

EXAMPLES = Path(__file__).parents[2] / "examples"
METHOD = "own_method:RunningMean"
QUERIES = 256
Mine = Callable[[str], object]


@pytest.fixture(autouse=True)
def beside(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As for a reader who stands in the folder of examples."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield
    for name in set(sys.modules) - before:
        if name in ("own_method", "mine"):
            del sys.modules[name]


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mine:
    """mine(text): a module `mine` of the user's, or a new text of it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return (tmp_path / "mine.py").write_text


@pytest.fixture
def queries(tmp_path: Path) -> Path:
    path = tmp_path / "queries.jsonl"
    rows, chosen = shifted(QUERIES)
    lines = [json.dumps({"vector": row.tolist(), "label": f"item-{i}"}) for row, i in zip(rows, chosen)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_it_is_forty_lines() -> None:
    tree = ast.parse((EXAMPLES / "own_method.py").read_text())
    (made,) = (node for node in tree.body if isinstance(node, ast.ClassDef))
    assert (made.end_lineno or 0) - made.lineno < 40


@pytest.mark.slow
def test_it_runs_as_written(example: Callable[..., str], vectors: Path, queries: Path) -> None:
    said = example("own_method.py", vectors / "base", vectors / "gallery", queries)
    offsets = [float(found) for found in re.findall(r"'offset': ([0-9.]+)", said)]
    assert len(offsets) == QUERIES / 64 and offsets == sorted(offsets) and offsets[0] > 0


def test_a_loop_and_a_replay_are_alike(vectors: Path, queries: Path) -> None:
    rows, chosen = shifted(QUERIES)
    session = qshift.Session(vectors / "base", vectors / "gallery", METHOD, Config(device="cpu"))
    same = right = plain = 0
    for start in range(0, QUERIES, 64):
        answer = session.answer(list(rows[start : start + 64]))
        assert session.learn(answer).updated
        for number, (served, frozen) in enumerate(zip(answer.served.items, answer.frozen.items)):
            wanted = f"item-{chosen[start + number]}"
            same, right = same + (served[0] == frozen[0]), right + (served[0] == wanted)
            plain += frozen[0] == wanted
    config = Config(device="cpu", base=vectors / "base", gallery=vectors / "gallery")
    own = own_queries(queries, *own_parts(config.gallery, config.base), config)
    frozen, row = run_records(own.records, own.labels, config, ["frozen", METHOD])
    assert (row.method, row.queries, row.labels) == (METHOD, QUERIES, QUERIES)
    assert row.same_first == pytest.approx(100 * same / QUERIES)
    assert (row.r1, frozen.r1) == (
        pytest.approx(100 * right / QUERIES), pytest.approx(100 * plain / QUERIES)
    )  # fmt: skip
    assert row.r1 > frozen.r1


def test_state_and_identity_say_whose_they_are(vectors: Path, mine: Mine) -> None:
    mine((EXAMPLES / "own_method.py").read_text())
    one, other = (
        qshift.Session(vectors / "base", vectors / "gallery", name, Config(device="cpu"))
        for name in (METHOD, "mine:RunningMean")
    )
    rows = list(shifted(64)[0])
    start = one.state_hash("vector")
    assert start != other.state_hash("vector")
    one.learn(one.answer(rows))
    kept, learned = one.snapshot(), one.state_hash("vector")
    one.learn(one.answer(rows))
    assert len({start, learned, one.state_hash("vector")}) == 3
    one.restore(kept)
    assert one.state_hash("vector") == learned
    with pytest.raises(ArtifactError, match="expected a state of method 'mine:RunningMean'"):
        other.restore(kept)
    assert "adapt" in difference(identity(one.config, "b"), identity(other.config, "b"))


def test_one_with_gradients_learns_as_ours(vectors: Path, mine: Mine) -> None:
    """A class that is Tent in all but its name, against Tent."""
    mine("from adapters.online.tent import Tent\nclass Mine(Tent): ...\n")
    rows = list(shifted(128)[0])
    learned = []
    for method in ("tent", "mine:Mine"):
        session = qshift.Session(vectors / "base", vectors / "gallery", method, Config(device="cpu"))
        steps = [session.learn(session.answer(rows[at : at + 64])) for at in (0, 64)]
        tensors, _ = session.snapshot()["vector"]
        learned.append((steps, {name: array.tobytes() for name, array in tensors.items()}))
    assert learned[0] == learned[1] and learned[0][0][-1].updated


def test_cached_results_follow_its_code(vectors: Path, mine: Mine) -> None:
    text = (EXAMPLES / "own_method.py").read_text()
    mine(text)
    base = qshift.load_base(vectors / "base")
    modules = code_of(with_method(Config(), "mine:RunningMean"), base, "vector")
    before = Fingerprints().of(modules)
    mine(text.replace("0.9 *", "0.8 *"))
    assert "mine" in modules and Fingerprints().of(modules) != before


def test_a_file_of_settings_names_it_too(tmp_path: Path) -> None:
    (tmp_path / "q.toml").write_text(f'[adapt]\nmethod = "{METHOD}"')
    assert load(tmp_path / "q.toml").adapt.method == METHOD
    (tmp_path / "q.toml").write_text('[adapt]\nmethod = "tenet"')
    with pytest.raises(
        ConfigError, match=r"adapt\.method: there is no method 'tenet': choose one of frozen, "
    ):
        load(tmp_path / "q.toml")


BROKEN = {
    "absent:Method": "cannot import absent.*ModuleNotFoundError",
    "mine:Nothing": "there is no class Nothing in .*mine.py",
    "mine:Number": "there is no class Number",
    "mine:Bare": r"cannot be made from \(source, constants, config, floor\)",
    "mine:Half": "lacks version, learns_first, transform, update, snapshot, restore: a method has name, ",
    "mine.deeper:Method": "cannot import mine.deeper",
}


@pytest.mark.parametrize(("name", "words"), BROKEN.items())
def test_what_is_no_method_is_one_sentence(name: str, words: str, vectors: Path, mine: Mine) -> None:
    mine(
        "Number = 3\nclass Bare: ...\n"
        "class Half:\n    name = 'half'\n    def __init__(self, *given): ...\n"
        "    def parameters(self): return {}\n"
    )
    config = Config(device="cpu", adapt=AdaptConfig(method=name))
    for method in (name, "default"):  # named on the command line, or in the settings
        with pytest.raises(ConfigError, match=words) as error:
            qshift.Session(vectors / "base", vectors / "gallery", method, config)
        assert "\n" not in str(error.value) and repr(name) in str(error.value)


@pytest.mark.parametrize("name", ["own_method:", ":RunningMean", "own method:X", "a:b:c", "own_method/x:Y"])
def test_what_names_none(name: str) -> None:
    assert not known(name)
    assert known(METHOD) and known(f"{METHOD}+fused+repair") and not known(f"{METHOD}+more")


def test_features_of_another_shape_stop(vectors: Path, mine: Mine) -> None:
    mine((EXAMPLES / "own_method.py").read_text().replace("dim=1)", "dim=1)[: batch.mask.sum()]"))
    session = qshift.Session(vectors / "base", vectors / "gallery", "mine:RunningMean", Config(device="cpu"))
    with pytest.raises(ConfigError, match=r"emits \[3, 32\], expected \[8, 32\]"):
        session.answer(list(shifted(3)[0]))


STEP = 'return qshift.AdaptationStep(True, diagnostics={"offset": float(self.offset.norm())}), None'


@pytest.mark.parametrize(
    ("text", "other", "words"),
    [
        (STEP, "pass", "update returns NoneType, expected a pair"),
        (STEP, "return True, None", "update returns tuple, expected a pair"),
        ("self.offset.cpu().numpy()", "self.offset.requires_grad_()", "snapshot gives tensors that are no"),
    ],
)
def test_what_breaks_the_contract_is_one_sentence_with_its_name(
    text: str, other: str, words: str, vectors: Path, mine: Mine
) -> None:
    source = (EXAMPLES / "own_method.py").read_text()
    assert text in source
    mine(source.replace(text, other))
    session = qshift.Session(vectors / "base", vectors / "gallery", "mine:RunningMean", Config(device="cpu"))
    with pytest.raises(ConfigError, match=f"method 'mine:RunningMean': {words}") as error:
        session.learn(session.answer(list(shifted(64)[0])))
    assert "\n" not in str(error.value)
