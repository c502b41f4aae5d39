"""The 10 published text corruptions and ours: word-count rules, rates and what each edit may do."""

import json
import string
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from core.errors import ConfigError
from core.seeds import generator
from qshift.shifts.wording import (
    LEVELS,
    TEXT_CORRUPTIONS,
    TYPOS,
    Typo,
    corrupt_text,
    load_rewrites,
    rewritten,
    typos,
)
from qshift.shifts.wording.characters import LONG_ENOUGH, LOOKALIKES, WORD
from qshift.shifts.wording.synonyms import SENSES, SYNONYMS
from qshift.shifts.wording.words import reduced

PUBLISHED = {name: c for name, c in TEXT_CORRUPTIONS.items() if name != "typos"}
CHARACTER = {name: c for name, c in PUBLISHED.items() if c.family == "character"}
KIND: dict[str, Typo] = dict(zip(CHARACTER, TYPOS))
LINE = "A young man rides a brown horse along the sandy beach while several children watch his dog swim"
TEXTS = [
    LINE, "", "   ", "a", "cat", "Côte d'Ivoire", "two  spaces\tand a tab ", "12345 67 !!! ...", 
    "面 emoji 🙂 here", "word " * 60,
]  # fmt: skip


def draw(key: object = "x") -> np.random.Generator:
    return generator(0, str(key), "test")


# What holds for all


def test_names_levels_and_families() -> None:
    assert [c.paper for c in PUBLISHED.values()] == [
        "OCR", "CI", "CR", "CS", "CD", "SR", "RI", "RS", "RD", "IP"
    ]  # fmt: skip
    assert all(c.levels == tuple(range(1, 8)) for c in CHARACTER.values())
    assert all(c.levels == (6, 7) for c in PUBLISHED.values() if c.family == "word")
    assert {n for n, c in PUBLISHED.items() if c.substitute} == {"synonym", "word_insert"}
    ours = TEXT_CORRUPTIONS["typos"]
    assert list(TEXT_CORRUPTIONS) == [*PUBLISHED, "typos"]
    assert (ours.paper, ours.family, ours.levels) == ("-", "character", LEVELS)
    assert "not published" in ours.substitute


@pytest.mark.parametrize("name", TEXT_CORRUPTIONS)
def test_same_sample_same_text_in_any_order(name: str) -> None:
    forward = [corrupt_text(text, name, 7, 3, i) for i, text in enumerate(TEXTS)]
    backward = [corrupt_text(TEXTS[i], name, 7, 3, i) for i in reversed(range(len(TEXTS)))]
    assert forward == backward[::-1]
    assert len({corrupt_text(LINE, name, 7, 3, i) for i in range(20)}) > 5


@pytest.mark.parametrize("name", TEXT_CORRUPTIONS)
def test_wrong_input_says_what_is_valid(name: str) -> None:
    for level in (0, 8, -1, 1.0, "1", True, None):
        with pytest.raises(ConfigError, match="1, 2, 3, 4, 5, 6, 7"):
            corrupt_text(LINE, name, level, 0, "a")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"mumble.*ocr.*punctuation"):
        corrupt_text(LINE, "mumble", 1, 0, "a")


# Characters


@pytest.mark.parametrize("name", CHARACTER)
@pytest.mark.parametrize("level", LEVELS)
def test_characters_keep_words_and_hit_the_published_number(name: str, level: int) -> None:
    for sample, text in enumerate(TEXTS):
        out = corrupt_text(text, name, level, 0, sample)
        assert len(out.split()) == len(text.split())
        assert "".join(c for c in out if c.isspace()) == "".join(c for c in text if c.isspace())
    words = LINE.split()
    most = max(1, int(0.05 * level * len(words)))
    for sample in range(60):
        wrong = [(a, b) for a, b in zip(words, corrupt_text(LINE, name, level, 0, sample).split()) if a != b]
        assert len(wrong) <= most
        if name in ("char_insert", "char_delete"):
            assert len(wrong) == most  # these cannot leave a word as it was
        assert all(len(a) >= 4 for a, _ in wrong) or name == "ocr"


def test_no_more_than_ten_words_and_ten_characters() -> None:
    out = corrupt_text("word " * 60, "char_delete", 7, 0, "a").split()
    assert Counter(map(len, out)) == {4: 50, 3: 10}
    assert len(corrupt_text("x" * 100, "char_delete", 7, 0, "a")) == 90


@pytest.mark.parametrize("name", CHARACTER)
def test_each_edit_is_what_it_says(name: str) -> None:
    word = "Gracious"  # int(.3 * 8) = 2 characters
    typed = string.ascii_letters + string.digits + "!@#$%^&*()_+"
    for sample in range(300):
        out = corrupt_text(word, name, 1, 0, sample)
        if name == "char_insert":
            assert len(out) == 10 and set(out) <= set(word + typed)
            rest = iter(out)
            assert all(c in rest for c in word)  # the word is still there, in order
        elif name == "char_delete":
            rest = iter(word)
            assert len(out) == 6 and all(c in rest for c in out)
        elif name == "char_swap":
            assert sorted(out.lower()) == sorted(word.lower())
            assert [c.isupper() for c in out] == [c.isupper() for c in word]
        else:
            changed = [(a, b) for a, b in zip(word, out) if a != b]
            assert len(out) == 8 and len(changed) <= 2
            if name == "ocr":
                assert len(changed) == 2 and all(b in LOOKALIKES[a] for a, b in changed)
            else:
                assert all(b in typed for _, b in changed)


def test_lookalikes_are_mutual() -> None:
    assert all(one in LOOKALIKES[other] for one, others in LOOKALIKES.items() for other in others)
    assert sorted(LOOKALIKES["8"]) == sorted("sS@&05") and sorted(LOOKALIKES["O"]) == sorted("DU0")


@pytest.mark.parametrize("kind", TYPOS)
def test_typos_hit_the_chosen_share(kind: Typo) -> None:
    text = " ".join(["Parkour"] * 40)
    for share in (0.0, 0.25, 0.5, 1.0):
        out = typos(text, share, (kind,), draw()).split()
        assert sum(word != "Parkour" for word in out) == 40 * share and len(out) == 40
    short = "a red Parkour"
    hits = sum(typos(short, 0.3, (kind,), draw(i)) != short for i in range(1500))
    # One word of three can be hit, or two by OCR errors ("red" has an r).
    expected = 0.6 if kind == "ocr" else 0.3
    assert hits / 1500 == pytest.approx(expected, abs=0.04)


@pytest.mark.parametrize(("level", "share"), [(1, 0.15), (4, 0.6), (7, 1.0)])
def test_our_typos_hit_three_times_the_rate_of_the_words(level: int, share: float) -> None:
    words = LINE.split()
    open_to = [any(c in LOOKALIKES for c in word) or len(word) >= LONG_ENOUGH for word in words]
    assert words == WORD.findall(LINE) and 10 < sum(open_to) < len(words)
    hits, samples = np.zeros(len(words)), 600
    for sample in range(samples):
        out = corrupt_text(LINE, "typos", level, 0, sample)
        assert len(out.split()) == len(words)
        hits += [a != b for a, b in zip(words, out.split())]
    assert not hits[~np.array(open_to)].any()
    assert hits.sum() / samples / sum(open_to) == pytest.approx(share, abs=0.01)
    # Of a short text too: there the published ones hit one word at any level.
    short = np.mean(
        [corrupt_text("a brown horse", "typos", level, 0, i) != "a brown horse" for i in range(600)]
    )
    assert short > 0.95 if share > 0.5 else short == pytest.approx(0.3, abs=0.06)


def test_our_typos_are_of_all_five_kinds_and_keyed() -> None:
    word, seen = "Gracious", set()
    for sample in range(300):
        out = corrupt_text(word, "typos", 7, 0, sample)
        assert out != word and out == corrupt_text(word, "typos", 7, 0, sample)
        if len(out) != len(word):
            seen.add("insert" if len(out) > len(word) else "delete")
        elif sorted(out.lower()) == sorted(word.lower()):
            seen.add("swap")
        elif all(a == b or b in LOOKALIKES.get(a, "") for a, b in zip(word, out)):
            seen.add("ocr")
        else:
            seen.add("substitute")
    assert seen == set(TYPOS)
    first = [corrupt_text(LINE, "typos", 4, 0, i) for i in range(20)]
    assert len(set(first)) > 15
    assert first != [corrupt_text(LINE, "typos", 4, 1, i) for i in range(20)]


def test_typos_mix_kinds_and_leave_what_cannot_change() -> None:
    seen = {typos("Plaster", 1.0, TYPOS, draw(i)) for i in range(400)}
    assert "Plaster" not in seen and {5, 9} <= {len(word) for word in seen} | {5}
    assert {len(word) for word in seen} == {5, 7, 9}
    assert typos("aaaa bbbb", 1.0, ("swap",), draw()) == "aaaa bbbb"
    assert typos("", 1.0, TYPOS, draw()) == "" and typos("a b ! c", 1.0, ("insert",), draw()) == "a b ! c"
    with pytest.raises(ConfigError, match="0 to 1"):
        typos("x", 1.5, TYPOS, draw())
    with pytest.raises(ConfigError, match="0 to 1"):
        typos("x", float("nan"), TYPOS, draw())
    for wrong in ((), ("keyboard",)):
        with pytest.raises(ConfigError, match="ocr, insert"):
            typos("x", 0.5, wrong, draw())  # type: ignore[arg-type]


# Words


def test_reduction_is_edas() -> None:
    assert reduced("Don't STOP—it's co-op №5, naïve!") == ["dont", "stop", "its", "co", "op", "na", "ve"]
    for name in ("synonym", "word_insert", "word_swap", "word_delete"):
        assert corrupt_text("123 !", name, 7, 0, "a") == "123 !"
        assert corrupt_text("", name, 7, 0, "a") == ""


@pytest.mark.parametrize("level", LEVELS)
def test_word_counts_follow_the_rules(level: int) -> None:
    words = reduced(LINE)
    changes = max(1, int(0.05 * level * len(words)))
    for sample in range(60):
        swapped = corrupt_text(LINE, "word_swap", level, 0, sample).split()
        assert Counter(swapped) == Counter(words)
        assert sum(a != b for a, b in zip(words, swapped)) <= 2 * changes
        replaced = corrupt_text(LINE, "synonym", level, 0, sample).split()
        different = [(a, b) for a, b in zip(words, replaced) if a != b]
        assert len(replaced) == len(words) and all(b in SYNONYMS[a] for a, b in different)
        assert len(different) == changes  # every word of the line that is replaced stands there once
        inserted = corrupt_text(LINE, "word_insert", level, 0, sample).split()
        assert len(words) <= len(inserted) <= len(words) + changes
        rest = iter(inserted)
        assert all(word in rest for word in words)
        marked = corrupt_text(LINE, "punctuation", level, 0, sample).split()
        assert [word for word in marked if word not in ".,!?;:"] == LINE.split()
        assert 1 <= len(marked) - len(words) <= int(0.05 * level * len(words) + 1)


def test_one_synonym_replaces_every_occurrence() -> None:
    out = corrupt_text("dog dog dog", "synonym", 1, 0, "a")
    assert len(set(out.split())) == 1 and out.split()[0] in SYNONYMS["dog"]


def test_deletion_removes_its_rate_and_never_everything() -> None:
    text = " ".join(["word"] * 200)
    for level in (1, 4, 7):
        left = np.mean([len(corrupt_text(text, "word_delete", level, 0, i).split()) for i in range(60)])
        assert 1 - left / 200 == pytest.approx(0.05 * level, abs=0.015)
    assert all(corrupt_text("two words", "word_delete", 7, 0, i) for i in range(200))
    assert all(corrupt_text("one", "word_delete", 7, 0, i) == "one" for i in range(50))


def test_insertion_adds_its_number_where_synonyms_are() -> None:
    text = " ".join(["dog"] * 20)
    for level in LEVELS:
        out = corrupt_text(text, "word_insert", level, 0, "a").split()
        assert len(out) == 20 + max(1, int(0.05 * level * 20))
        assert set(out) - {"dog"} <= {*SYNONYMS["dog"]}


def test_insertion_gives_up_where_no_word_has_a_synonym() -> None:
    assert corrupt_text("zyzzyva quux", "word_insert", 7, 0, "a") == "zyzzyva quux"
    assert corrupt_text("zyzzyva quux", "synonym", 7, 0, "a") == "zyzzyva quux"


def test_synonym_table_is_sound() -> None:
    words = SENSES.split()
    assert len(words) == len(set(words)) == len(SYNONYMS) >= 150
    assert all(word.isascii() and word.isalpha() and word.islower() for word in words)
    assert all(word in SYNONYMS[other] for word, others in SYNONYMS.items() for other in others)
    assert all(SYNONYMS.values())


def test_similarity_draws_word_shifts_again() -> None:
    asked: list[str] = []

    def third_time(text: str, corrupted: str) -> float:
        asked.append(corrupted)
        return 0.95 if len(asked) >= 3 else 0.5

    out = corrupt_text(LINE, "word_delete", 7, 0, "a", third_time)
    assert len(asked) == 3 and out == asked[2] and asked[0] == corrupt_text(LINE, "word_delete", 7, 0, "a")
    calls: list[str] = []
    corrupt_text(LINE, "word_swap", 7, 0, "a", lambda a, b: calls.append(b) or 0.0)  # type: ignore[func-returns-value]
    assert len(calls) == 99
    corrupt_text(LINE, "char_swap", 7, 0, "a", lambda a, b: pytest.fail("only word-level shifts"))


# Rewrites


def write(folder: Path, *rows: object) -> Path:
    path = folder / "formal.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), "utf-8")
    return path


def test_rewrites_are_read_by_key(tmp_path: Path) -> None:
    path = write(tmp_path, {"key": "a", "text": "Ein schöner Tag."}, "", {"key": "b", "text": "two", "id": 3})
    rewrites = load_rewrites(path)
    assert dict(rewrites) == {"a": "Ein schöner Tag.", "b": "two"}
    assert rewritten(rewrites, "b") == "two"
    with pytest.raises(ConfigError, match="'c' among 2"):
        rewritten(rewrites, "c")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (("{'key': 1}",), ":1: not JSON"),
        (({"key": "a", "text": "x"}, ["a", "x"]), ":2: expected an object.*got list"),
        (({"key": "a"},), ":1: key and text must be strings"),
        (({"key": 7, "text": "x"},), ":1: key and text must be strings"),
        (({"key": "a", "text": " "},), ":1: key and text must be strings"),
        (({"key": "a", "text": "x"}, {"key": "a", "text": "y"}), ":2: key 'a' was given before"),
        (("", ""), "hold no line"),
    ],
)
def test_broken_rewrites_name_the_line(tmp_path: Path, rows: tuple[object, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_rewrites(write(tmp_path, *rows))


def test_unreadable_rewrites_say_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_rewrites(tmp_path / "none.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_rewrites(tmp_path / "latin.jsonl")
