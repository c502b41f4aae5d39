"""What cannot work is refused when it is read, in words that name the setting; what can is taken as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from core.config import ROLES, Config
from core.config_file import load
from core.errors import ConfigError
from qshift.commands.serve import check_key

TOPIC = "[kafka]\n{} = "


def refused(tmp_path: Path, text: str) -> str:
    path = tmp_path / "q.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load(path)
    return str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        # Orders the wrong way round, and what can never be reached.
        ("[batch]\nsize = 8", ["batch: ", "batch of 8", "floor of 16"]),
        ("[batch]\nfloor = 65", ["batch of 64", "floor of 65"]),
        ("[answer]\nevidence = [0.75, 0.15]", ["answer.evidence", "ascending", "0.75 and 0.15"]),
        ("[answer]\nevidence = [0.5, 0.5]", ["answer.evidence", "ascending"]),
        ("[adapt.align]\nshrink = [0.9, 0.1]", ["adapt.align.shrink", "ascending"]),
        ("[answer]\ntop = 1000\nshortlist = 10", ["answer: ", "answers of 1000", "shortlist of 10"]),
        ("[answer]\ntop = 101", ["answers of 101", "shortlist of 100"]),
        ("[limits]\npending_queries = 64\n[batch]\nsize = 65", ["64 waiting", "batch of 65"]),
        ("[adapt.align.clusters]\nlayers = []", ["clusters.layers", "ascending numbers of layers"]),
        ("[adapt.align.clusters]\nlayers = [-1]", ["clusters.layers", "[-1]"]),
        ("[adapt.align.clusters]\nlayers = [2, 0]", ["clusters.layers", "[2, 0]"]),
        ("[adapt.align.clusters]\nlayers = [2, 2]", ["clusters.layers", "[2, 2]"]),
        # Keys that there are not.
        ("[adapt]\nstepz = 1", ["adapt.stepz", "no such key", "did you mean steps?"]),
        ("[adapt]\nzzzzzz = 1", ["adapt.zzzzzz: there is no such key"]),
        ("[adapt.align]\nstrenght = 1", ["adapt.align.strenght", "did you mean strength?"]),
        ('[adapt]\nemit = "paper"', ["adapt.emit", "is called adapt.answer_from since version 0.3"]),
        # Numbers that mean nothing.
        ("[adapt]\nlearning_rate = -5.0", ["adapt.learning_rate", "greater than 0"]),
        ("[adapt]\nlearning_rate = 0.0", ["adapt.learning_rate"]),
        ("[adapt]\ntemperature = 0", ["adapt.temperature", "greater than 0"]),
        ("[adapt]\ntemperature = -0.1", ["adapt.temperature"]),
        ("[adapt]\nuniformity_scale = -1", ["adapt.uniformity_scale"]),
        ("[kafka]\ndelivery_timeout_seconds = 0", ["kafka.delivery_timeout_seconds", "equal to 1"]),
        ("[kafka]\ndelivery_timeout_seconds = -30", ["kafka.delivery_timeout_seconds"]),
        ('[kafka]\ntransactions = true\n[state]\nstore = "directory"', ["kafka.transactions", "state.store"]),
        ("seed = -1", ["seed"]),
        *((f"[limits]\n{name} = {n}", [f"limits.{name}"])
          for name in ("text_characters", "image_bytes", "image_pixels", "message_bytes") for n in (0, -1)),
        ("[limits]\nmessage_bytes = 4294967296", ["limits.message_bytes"]),
        # Names.
        ('[kafka]\ngroup = ""', ["kafka.group"]),
        ('[kafka]\ngroup = "  "', ["kafka.group"]),
        ('[labels]\nkey = ""', ["labels.key"]),
        ("[adapt]\nlearning_rate = 1e-3", ["adapt.learning_rate is set", "adapt.method"]),
        ("[adapt.guard]\nreset_every = 9", ["adapt.guard is set", "adapt.method"]),
        ('[http]\nhost = ""', ["http.host"]),
        ('base = ""', ["base: ", "path"]),
        ('[state]\ndirectory = ""', ["state.directory"]),
        ('[limits]\nreference_root = ""', ["limits.reference_root"]),
        *((TOPIC.format(role) + f'"{name}"', [f"kafka.{role}", "is no topic"])
          for role in ROLES for name in ("", "my queries!", ".", "..", "a/b", "ä", "x" * 250)),
        *((TOPIC.format(role) + f'"{other}"', ["kafka: ", role, "each needs its own"])
          for role in ROLES[1:] for other in ("qshift.queries", "qshift_queries")),
        ('[kafka]\ndead_letters = "qs"\nqueries = "qs"', ["queries and dead_letters are both the topic"]),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(tmp_path: Path, text: str, words: list[str]) -> None:
    said = refused(tmp_path, text)
    assert all(word in said for word in words), said
    assert said.count("\n") == 1 and "Value error" not in said  # one sentence under the file's name


def floats(model: type[BaseModel], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every field of the tree that can hold a float."""
    found = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found += floats(kind, (*path, name))
        elif "float" in str(kind):
            found.append((*path, name))
    return found


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("path", floats(Config), ids=".".join)
def test_no_number_is_nan_or_infinite(tmp_path: Path, path: tuple[str, ...], number: str) -> None:
    pair = path[-1] in ("evidence", "shrink")
    for value in (f"[{number}, 1.0]", f"[0.1, {number}]") if pair else (number,):
        said = refused(tmp_path, f"[{'.'.join(path[:-1])}]\n{path[-1]} = {value}")
        assert ".".join(path) in said


def test_every_float_is_among_those_tried() -> None:
    assert len(floats(Config)) >= 19 and ("adapt", "align", "clusters", "quantile") in floats(Config)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:29092/", "http://127.0.0.1:9092", "127.0.0.1", "kafka", "kafka:", ":9092", "kafka:0",
        "kafka:65536", "kafka:9o92", "ka fka:9092", "kafka:9092;other:9092", "kafka:9092,",
        "kafka:9092,,other:9092", "PLAINTEXT://kafka:9092", "::1:9092", "[::1]", " ",
        "kafka:9092 other:9092", "kafka:-1",
    ],
)  # fmt: skip
def test_an_address_that_is_none_is_one_sentence(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = refused(tmp_path, f'[kafka]\nbootstrap_servers = "{address}"')
    assert "kafka.bootstrap_servers" in said and "expected host:port" in said and said.count("\n") == 1
    monkeypatch.setenv("QSHIFT_BOOTSTRAP_SERVERS", address)
    with pytest.raises(ConfigError, match=r"^QSHIFT_BOOTSTRAP_SERVERS: .* expected host:port"):
        load(None)


@pytest.mark.parametrize(
    ("address", "kept"),
    [
        ("127.0.0.1:9092", "127.0.0.1:9092"), ("kafka-1.example.org:65535", "kafka-1.example.org:65535"),
        ("a_b:1, c:2", "a_b:1,c:2"), ("[::1]:9092", "[::1]:9092"), ("", ""),
    ],
)  # fmt: skip
def test_addresses_that_are_some_are_taken(
    tmp_path: Path, address: str, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "q.toml"
    path.write_text(f'[kafka]\nbootstrap_servers = "{address}"')
    assert load(path).kafka.bootstrap_servers == kept
    monkeypatch.setenv("QSHIFT_BOOTSTRAP_SERVERS", address)
    assert load(None).kafka.bootstrap_servers == kept


@pytest.mark.parametrize(
    "document",
    [
        {}, {"batch": {"size": 16, "floor": 16}}, {"answer": {"top": 100, "shortlist": 100}},
        {"answer": {"evidence": None}}, {"answer": {"evidence": [-100, -99]}},
        {"adapt": {"method": "rest", "learning_rate": 1e-6, "temperature": None}},
        {"adapt": {"align": {"shrink": [0, 1]}}},
        {"adapt": {"align": {"clusters": {"layers": [7]}}}}, {"limits": {"pending_queries": 64}},
        {"kafka": {"queries": "a.b-c_D9", "group": "any group, even Ünï"}}, {"kafka": {"queries": "x" * 249}},
    ],
)  # fmt: skip
def test_what_can_work_is_taken(document: dict[str, Any]) -> None:
    config = Config.model_validate(document)
    assert Config.model_validate(config.model_dump()) == config


def test_files_as_other_systems_write_them(tmp_path: Path) -> None:
    path = tmp_path / "q.toml"
    path.write_bytes(b"\xef\xbb\xbfseed = 3\r\n")
    assert load(path).seed == 3
    path.write_bytes("# Größe\nseed = 3".encode("latin-1"))
    with pytest.raises(ConfigError, match="line 1 cannot be read: not UTF-8"):
        load(path)
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        load(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        "threads = 100000", "threads = true", "seed = 99999999999999999999", "[kafka]\npartitions = 100000",
        "[kafka]\ndelivery_timeout_seconds = 1e9", '[kafka]\ngroup = "a\\nb"',
        "[batch]\nlinger_seconds = 1e308",
        "[adapt]\nlearning_rate = 1e30", "[adapt]\nlearning_rate = true",
        "[state]\nevery_batches = 1000000000",
    ],
)  # fmt: skip
def test_what_could_never_work_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "q.toml").write_text(line)
    with pytest.raises(ConfigError, match=line.split()[-3].split("]")[-1].strip() or "refused"):
        load(tmp_path / "q.toml")


def test_the_key_that_everybody_knows_is_refused_by_the_service() -> None:
    """Who knows it can choose the queries that are measured; the demo and replays have nothing to hide."""
    check_key(Config.model_validate({"labels": {"key": "own"}}))
    check_key(Config.model_validate({"labels": {"rate": 0.0}}))
    for key in ("qshift", "change-me", "a secret of your own"):
        with pytest.raises(ConfigError, match=r"labels\.key is the default or an example.*to a secret"):
            check_key(Config.model_validate({"labels": {"key": key}}))


def test_the_key_of_labels_comes_from_a_file_or_a_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it decides is the same wherever it stands; none is no default that everybody knows."""
    (tmp_path / "key").write_text("mine\n")
    monkeypatch.setenv("OF_LABELS", "mine")
    toml = tmp_path / "q.toml"
    toml.write_text('[labels]\nkey = "mine"')
    plain = load(toml)
    for line in (f'key_file = "{tmp_path}/key"', 'key_env = "OF_LABELS"'):
        toml.write_text(f"[labels]\n{line}")
        assert load(toml) == plain
    monkeypatch.delenv("OF_LABELS")
    with pytest.raises(ConfigError, match=r"labels\.key_env: the variable is not set or empty"):
        load(toml)
    toml.write_text('[labels]\nkey = "mine"\nkey_env = "OF_LABELS"')
    with pytest.raises(ConfigError, match="the key comes from one of key, key_file"):
        load(toml)
