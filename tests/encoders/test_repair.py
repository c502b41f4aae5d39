import logging
import math
import unicodedata
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from core.config import RepairConfig
from encoders.repair import Repairer, count_words, kept_whole
from encoders.text import TextTower
from encoders.words import WORD, fold

Support = Callable[[str, list[str], list[list[str]]], float]

LETTERS = "abcdefghijklmnopqrstuvwxyz"
FILLER = {
    f"qx{a}{b}qx": 1 for a in "abcdefgh" for b in "abcdefgh"
}  # near nothing: makes the vocabulary large
SHIRTS = {
    "shirt": 40, "shorts": 30, "skirt": 20, "black": 90, "white": 80, "and": 300, "with": 200, "dress": 50,
    "photo": 25, "photograph": 9, "backpack": 12, "smart": 10, "phone": 15, "iphone": 6, "café": 7, 
    "straße": 8, "t-shirt": 5, "book": 4, "look": 9, "took": 9, "сумка": 6, "men": 99,
}  # fmt: skip


def made(vocabulary: dict[str, int] | None = None, whole=None, **config: int) -> Repairer:
    return Repairer(FILLER | (SHIRTS if vocabulary is None else vocabulary), RepairConfig(**config), whole)


@cache
def osa(a: str, b: str) -> int:
    """Optimal string alignment by its recurrence."""
    rows = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i in range(len(a) + 1):
        for j in range(len(b) + 1):
            if not i or not j:
                rows[i][j] = i + j
                continue
            best = min(rows[i - 1][j] + 1, rows[i][j - 1] + 1, rows[i - 1][j - 1] + (a[i - 1] != b[j - 1]))
            if i > 1 and j > 1 and a[i - 1] == b[j - 2] and a[i - 2] == b[j - 1]:
                best = min(best, rows[i - 2][j - 2] + 1)
            rows[i][j] = best
    return rows[-1][-1]


def weight(word: str, candidate: str, counts: dict[str, int]) -> int:
    """Count, times 4 for the same first letter, times 25 where a letter was lost or two were swapped."""
    same_first = 4 if candidate[0] == word[0] else 1
    near = osa(word, candidate) == 1 and (len(word) < len(candidate) or sorted(word) == sorted(candidate))
    return counts[candidate] * same_first * (25 if near else 1)


def slow(word: str, counts: dict[str, int], shortest: int, distance: int) -> str:
    """The rules of docs/methods/repair.md for a word of small letters, one candidate at a time."""
    if word in counts or len(word) < shortest:
        return word
    most = min(distance, 1 + (len(word) >= 7) + (len(word) >= 14))
    found = []
    for candidate, count in counts.items():
        if abs(len(candidate) - len(word)) > most:  # as many edits at least
            continue
        edits = osa(word, candidate)
        if edits <= most and (edits == 1 or count >= 5):
            found.append((5.0 * edits - math.log(weight(word, candidate, counts)), edits, candidate))
    best = min(found, default=None)
    if best is not None and best[1] == 1:
        return best[2]
    halves = []
    for cut in range(2, len(word) - 1):
        rarer = min(counts.get(word[:cut], 0), counts.get(word[cut:], 0))
        if rarer >= 5:
            halves.append((-rarer, f"{word[:cut]} {word[cut:]}"))
    return min(halves)[1] if halves else best[2] if best is not None else word


@pytest.mark.parametrize(("shortest", "distance"), [(4, 2), (3, 1), (1, 3)])
def test_words_equal_the_slow_rules(shortest: int, distance: int) -> None:
    draw = np.random.default_rng(distance)
    alphabet = "abcdeбвгд"  # few letters: many candidates and ties; some share a bit of the letter set

    def word(least: int, most: int) -> str:
        return "".join(draw.choice(list(alphabet), int(draw.integers(least, most))))

    counts = {word(2, 9): int(draw.integers(1, 9)) for _ in range(120)}
    counts |= {word(12, 18): 6 for _ in range(20)}
    repairer = Repairer(counts, RepairConfig(shortest=shortest, distance=distance))
    typed = [word(1, 10) for _ in range(60)] + [
        left + right for left, right in zip(counts, list(counts)[1:40])
    ]
    for known in list(counts):
        for _ in range(int(draw.integers(1, 4))):
            place = int(draw.integers(len(known)))
            known = known[:place] + word(0, 3) + known[place + int(draw.integers(2)) :]
        typed.append(known or "a")
    changed = 0
    for one in typed:
        expected = slow(one, counts, shortest, distance)
        assert repairer.repair(one)[0] == expected, one
        changed += expected != one
    assert changed > 40


def slow_beside(
    word: str, around: list[str], counts: dict[str, int], titles: list[list[str]], slow_support: Support
) -> str:
    """The rules with context, for a word that no tower knows and that is no two words."""
    plain = min(2, 1 + (len(word) >= 7) + (len(word) >= 14))
    wide = max(plain, min(3, 1 + (len(word) >= 4) + (len(word) >= 8)))
    found = []
    for candidate, count in counts.items():
        edits = osa(word, candidate)
        if edits > wide or (edits > 1 and count < 5):
            continue
        support = slow_support(candidate, around, titles)
        if edits > plain and (count < 20 or support < 1):
            continue
        cost = 5.0 * edits - math.log(weight(word, candidate, counts)) - 0.7 * support
        found.append((cost, edits, candidate))
    return min(found, default=(0.0, 0, word))[2]


def test_words_beside_equal_the_slow_rules(slow_support: Support) -> None:
    draw = np.random.default_rng(5)
    topics = [
        ["".join(draw.choice(list("abcde"), int(draw.integers(5, 10)))) for _ in range(12)] for _ in "xyz"
    ]
    titles = [list(draw.choice(topics[int(draw.integers(3))], 4, replace=False)) for _ in range(240)]
    counts = count_words([" ".join(title) for title in titles])
    vocabulary = counts | {f"qx{a}{b}qx": 1 for a in "abcd" for b in "abcdef"}
    repairer = Repairer(vocabulary, RepairConfig(), None, [" ".join(title) for title in titles])
    changed = by_context = compared = 0
    for title in titles[:150]:
        wrong = list(title[0])
        for _ in range(int(draw.integers(1, 4))):
            wrong[int(draw.integers(len(wrong)))] = str(draw.choice(list("abcde")))
        typed = "".join(wrong)
        if typed in vocabulary:
            continue
        # The second pass sees the repair of the first, too.
        around = sorted(set(title[1:]))
        expected = slow_beside(typed, around, vocabulary, titles, slow_support)
        if expected in counts:
            expected = slow_beside(typed, sorted({*around, expected}), vocabulary, titles, slow_support)
        assert repairer.repair(" ".join([typed, *title[1:]]))[0].split()[0] == expected
        compared += 1
        changed += expected != typed
        by_context += expected != slow(typed, vocabulary, 3, 2)
    assert compared > 80 and changed > 40 and by_context > 10


def test_words_beside_decide_between_candidates() -> None:
    titles = ["men shirt"] * 20 + ["women skirt"] * 20 + ["kids shoes"] * 20 + ["plain thing"] * 40
    counts = FILLER | count_words(titles) | {"skirt": 25}
    repairer = Repairer(counts, RepairConfig(), None, titles)
    assert repairer.repair("men shirt women skirt") == ("men shirt women skirt", ())
    assert repairer.repair("men sairt")[0] == "men shirt"
    assert repairer.repair("women sairt")[0] == "women skirt"
    assert repairer.repair("sairt")[0] == "skirt"  # nothing beside it: the more frequent
    assert repairer.repair("sohes")[0] == "shoes"
    # Two edits in a short word need the context, and so does a word that the tower knows.
    assert repairer.repair("kids shxxs")[0] == "kids shoes"
    assert repairer.repair("shxxs")[0] == "shxxs"
    assert Repairer(counts, RepairConfig()).repair("kids shxxs")[0] == "kids shxxs"


def test_strong_context_speaks_against_a_word_that_only_the_tower_knows() -> None:
    titles = ["blue cotton shoes"] * 20 + [f"{letter}{letter} plain thing" for letter in LETTERS] * 8
    counts = FILLER | count_words(titles)
    repairer = Repairer(counts, RepairConfig(), {"hoes", "shoo"}.__contains__, titles)
    assert repairer.repair("blue cotton hoes")[0] == "blue cotton shoes"
    assert repairer.repair("hoes") == ("hoes", ())
    assert repairer.repair("plain thing shod") == ("plain thing shod", ())  # nothing speaks for "shoes"
    assert repairer.repair("blue cotton shoo") == ("blue cotton shoo", ())  # two edits are too many
    known = Repairer(counts | {"hoes": 1}, RepairConfig(), None, titles)
    assert known.repair("blue cotton hoes") == ("blue cotton hoes", ())  # a word of the vocabulary stays


def test_context_is_deterministic() -> None:
    draw = np.random.default_rng(9)
    words = ["".join(draw.choice(list("abcd"), 6)) for _ in range(80)]
    titles = [" ".join(draw.choice(words, 4)) for _ in range(200)]
    texts = [" ".join("".join(draw.choice(list("abcd"), 6)) for _ in range(5)) for _ in range(40)]
    first, second = (
        Repairer(count_words(titles), RepairConfig(), None, some) for some in (titles, titles[::-1])
    )
    forward = [first.repair(text) for text in texts]
    assert forward == [second.repair(text) for text in reversed(texts)][::-1]
    assert any(changes for _, changes in forward)


def test_typos_are_repaired_and_reported() -> None:
    repairer = made()
    text, changes = repairer.repair("Blakc shrit,  wiht (phtoo) and 'dess'!")
    assert text == "Black shirt,  with (photo) and 'dress'!"
    assert changes == (
        ("Blakc", "Black"),
        ("shrit", "shirt"),
        ("wiht", "with"),
        ("phtoo", "photo"),
        ("dess", "dress"),
    )
    assert repairer.repair(text) == (text, ())


def test_known_words_never_change() -> None:
    repairer = made()
    known = "Black WHITE shirt's «dress» t-shirt T-SHIRT phone. (iPhone) men_and_shorts Straße Сумка café"
    assert repairer.repair(known) == (known, ())
    # "skirt" is one edit from the far more frequent "shirt", "took" and "book" are neighbours of "look"
    for text in ("skirt", "book", "took look"):
        assert repairer.repair(text) == (text, ())


def test_ties() -> None:
    assert made({"bold": 9, "cold": 30, "xold": 5}).repair("zold")[0] == "cold"  # more frequent
    assert made({"bold": 9, "cold": 30}).repair("bokd")[0] == "bold"  # fewer edits, whatever the counts
    assert made({"hold": 9, "cold": 30}).repair("hxold")[0] == "hold"  # fewer edits
    assert (
        made({"board": 2, "bowl": 40}).repair("bord")[0] == "board"
    )  # a lost letter is no choice: 25 * 2 > 40
    assert made({"bald": 10, "gold": 30}).repair("bold")[0] == "bald"  # 4 * 10 > 30
    assert made({"bald": 7, "gold": 30}).repair("bold")[0] == "gold"  # 4 * 7 < 30
    assert made({"gold": 7, "cold": 7, "fold": 7}).repair("zold")[0] == "cold"  # the alphabet
    assert made({"abcd": 3}).repair("badc")[0] == "badc"  # two transpositions in a short word are too many
    assert made({"abcdefgh": 4}).repair("bacdefhg")[0] == "bacdefhg"  # two edits need a frequent word
    assert made({"abcdefgh": 5}).repair("bacdefhg")[0] == "abcdefgh"
    assert made({"abcdefgh": 5}, distance=1).repair("bacdefhg")[0] == "bacdefhg"


def test_order_of_the_vocabulary_does_not_matter() -> None:
    draw = np.random.default_rng(0)
    words = ["".join(draw.choice(list("abc"), 5)) for _ in range(90)]
    texts = [" ".join("".join(draw.choice(list("abc"), 6)) for _ in range(5)) for _ in range(20)]
    one, two = dict.fromkeys(sorted(words), 5), dict.fromkeys(sorted(words, reverse=True), 5)
    first, second = made(one), made(two)
    forward = [first.repair(text) for text in texts]
    assert forward == [second.repair(text) for text in reversed(texts)][::-1]  # nor does what came before
    assert any(changes for _, changes in forward)
    assert made({"Shirt": 3, "SHIRT": 4}).repair("shitr")[0] == "shirt"


def test_short_words_numbers_and_codes_are_left_alone() -> None:
    repairer = made()
    for text in ("dn", "2010", "12 3", "3.5", "iphone5", "2phone", "ah64x1", "1234s", "xkcd", "A-4"):
        assert repairer.repair(text) == (text, ())
    assert made(shortest=3).repair("adn mne")[0] == "and men"
    assert made(shortest=4).repair("adn mne") == ("adn mne", ())
    assert made({"123": 50}).repair("12 3")[0] == "12 3"
    long = "s" * 5000 + "hirt"
    assert repairer.repair(long) == (long, ())


def test_digits_that_look_like_letters() -> None:
    repairer = made()
    typed = ["ph0to", "5h1rt", "b1ack", "B1ackpacj", "dre55", "8lack", "wh1t3"]
    expected = ["photo", "shirt", "black", "Backpack", "dress", "black", "white"]
    for wrong, right in zip(typed, expected):
        assert repairer.repair(wrong)[0] == right


def test_slips_of_the_shift_key() -> None:
    repairer = made()
    for typed, right in (
        ("sh!rt", "shirt"), ("b@ckp@ck", "backpack"), ("pho%to", "photo"), ("Ph(to!", "Photo!"),
        ("dre_ss", "dress"), ("shir$", "shirt$"),
    ):  # fmt: skip
        assert repairer.repair(typed)[0] == right
    assert repairer.repair("black&wihte")[0] == "black&white"  # two words, one of them wrong
    for text in ("black&white", "b&w", "R&B!", "a@b", "(dress)black", "x+y=z", "mail@qzzq.org"):
        assert repairer.repair(text) == (text, ())


def test_lost_and_added_spaces() -> None:
    repairer = made()
    assert repairer.repair("sh irt, Bac kpack and ph one") == (
        "shirt, Backpack and phone",
        (("sh irt", "shirt"), ("Bac kpack", "Backpack"), ("ph one", "phone")),
    )
    assert repairer.repair("blackdress, Smartphone")[0] == "black dress, Smart phone"
    # Both known, more than one space between, or a rare whole: no fragments.
    for text in ("smart phone", "sh  irt", "sh\nirt"):
        assert "shirt" not in repairer.repair(text)[0]
    assert made({"bookcase": 1}).repair("book case")[0] == "book case"
    assert made({"blackdress": 1, "black": 9, "dress": 9}).repair("blackdress")[0] == "blackdress"
    assert made({"blackdresss": 1, "black": 9, "dress": 9}).repair("blackdress")[0] == "blackdresss"


def test_case_follows_the_typed_word() -> None:
    repairer = made()
    for typed, right in (("SHRIT", "SHIRT"), ("Shrit", "Shirt"), ("shRIT", "shirt"), ("shrit", "shirt")):
        assert repairer.repair(typed)[0] == right


def test_any_text_is_survived() -> None:
    repairer = made()
    for text in (
        "",
        " ",
        "\n\t",
        "\ud800",
        "🐕 🐈‍⬛",
        "黑色的连衣裙很好看呢",
        "กระเป๋าสีดำ",
        "हिन्दी शब्द",
        "\u0301",
        "ß",
        "²³",
        "____",
    ):
        assert repairer.repair(text) == (text, ())
    assert repairer.repair("🐕shrit🐕")[0] == "🐕shirt🐕"
    assert repairer.repair("сумкаа")[0] == "сумка"
    decomposed = unicodedata.normalize("NFD", "café")
    assert repairer.repair(decomposed) == (decomposed, ())
    assert repairer.repair("cafés".replace("f", "v"))[0] == "cavés"
    letters = np.random.default_rng(0).integers(32, 0x2FFF, (200, 30))
    for row in letters:
        text = "".join(map(chr, row))
        new, changes = repairer.repair(text)
        assert (new == text) == (not changes)
    # Scripts without case are left alone even next to a vocabulary of that script.
    assert made({"黑色的连衣裙": 50}).repair("红色的连衣裙")[1] == ()


def test_changes_tell_the_whole_difference() -> None:
    repairer = made()
    text = "A blck shrit wihte dress, 2 sh irt phoot; blackdress"
    new, changes = repairer.repair(text)
    for before, after in changes:
        assert before in text
        text = text.replace(before, after, 1)
    assert text == new


def test_few_words_or_switched_off(caplog: pytest.LogCaptureFixture) -> None:
    few = {f"word{letter}": 9 for letter in LETTERS}
    with caplog.at_level(logging.WARNING, "qshift.repair"):
        repairer = Repairer(few, RepairConfig())
    assert "26 words are known" in caplog.text
    assert not repairer.active
    assert repairer.repair("wordaa") == ("wordaa", ())
    caplog.clear()
    off = Repairer(FILLER | SHIRTS, RepairConfig(enabled=False))
    assert off.repair("shrit") == ("shrit", ())
    assert Repairer({}, RepairConfig(enabled=False)).repair("shrit") == ("shrit", ())
    assert not caplog.text


def test_words_the_tower_knows_stay_and_are_no_targets() -> None:
    asked: list[str] = []

    def whole(word: str) -> bool:
        asked.append(word)
        return word in {"shift", "sh", "irt", "photos"}

    repairer = made(whole=whole)
    assert repairer.repair("Shift shrit photos shift photoz")[0] == "Shift shirt photos shift photo"
    assert asked.count("shift") == 1  # cached
    assert "black" not in asked
    assert repairer.repair("sh irt")[0] == "shirt"  # two pieces are no words
    assert repairer.repair("iphone5 shift5")[0] == "iphone5 shift5"


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.table(ids).mean(1)


def test_kept_whole_counts_the_pieces() -> None:
    pieces = {"a": 1, "dog": 2, "do": 3, "##gs": 4}

    def tokenize(texts: list[str]) -> torch.Tensor:
        rows = torch.zeros(len(texts), 8, dtype=torch.int64)
        for row, text in zip(rows, texts):
            ids = [pieces[text]] if text in pieces else [pieces["do"], pieces["##gs"]] if text else []
            row[: len(ids) + 2] = torch.tensor([30, *ids, 31])
        return rows

    whole = kept_whole(TextTower(Toy(), tokenize))
    assert whole("dog") and whole("do") and whole("a")
    assert not whole("dogs")


def test_count_words() -> None:
    counts = count_words(["A dog's t-shirt, a DOG", "Cafe\u0301 café 12", ""])
    assert counts == {"12": 1, "a": 2, "café": 2, "dog": 2, "s": 1, "shirt": 1, "t": 1}
    assert list(counts) == sorted(counts)
    assert all(type(count) is int for count in counts.values())
    assert count_words([]) == {}
    assert [fold(word) for word in WORD.findall("x_y z")] == ["x", "y", "z"]


def test_the_caches_are_bounded() -> None:
    repairer = made()
    words = repairer._words
    for cached in (words._known, words.candidates, repairer._context._lift):
        assert 0 < cached.cache_info().maxsize <= 1 << 16  # type: ignore[attr-defined]


WEARS = [f"{colour} {kind}" for colour in ("red", "blue", "green") for kind in ("flag", "dress", "shoes")] * 4
THINGS = WEARS + [f"{a}{b}{a} thing" for a in LETTERS for b in "xyz"] * 8


def mended(text: str, right: str = "", **texts_have: float) -> str:
    """A repairer of `THINGS` for which `right` is a right word and English texts have the others so often."""
    shares = {"flag": 1e-5, "thing": 1e-4, **texts_have}
    repairer = Repairer(
        count_words(THINGS), RepairConfig(), right.split().__contains__, THINGS, None,
        lambda word: shares.get(word, 0.0),
    )  # fmt: skip
    return repairer.repair(text)[0]


def test_a_right_word_is_doubted_by_frequency_edit_and_words_beside() -> None:
    assert mended("red flay", "flay") == "red flag"
    assert mended("flay", "flay") == "flay"  # nothing beside it
    assert mended("thing flay", "flay") == "thing flay"  # something that never stands beside flags
    assert mended("thing falg", "falg") == "thing flag"  # few right words are a swap away from a frequent one
    assert mended("red flay", "flay", flay=1e-3) == "red flay"  # frequent in English, so it is meant
    assert mended("red falx", "falx") == "red falx"  # two edits are too many, whatever stands beside


def test_a_word_that_texts_have_is_misspelt_or_a_name() -> None:
    assert mended("flay") == mended("flay", flay=1e-8) == "flag"  # misspelt, as corpora have it at times
    assert mended("flay", flay=1e-4) == "flay"  # more frequent than what it would be a slip of
    assert mended("redblue") == mended("redblue", redblue=1e-8) == "red blue"
    assert mended("redblue", redblue=1e-5) == "redblue"  # a name
    rare = Repairer(
        {"photo": 1, "thing": 10**6} | FILLER,
        RepairConfig(),
        None,
        (),
        None,
        lambda word: 1e-4 * (word == "photo"),
    )
    assert rare.repair("ph0to")[0] == "photo"  # what was typed is no word, though what it reads as is one


def test_numbers_are_not_asked_of_the_tower() -> None:
    def whole(word: str) -> bool:
        assert word, "a tower refuses texts without letters"
        return False

    repairer = Repairer(count_words(THINGS), RepairConfig(), whole, THINGS)
    assert repairer.repair("red 12 2010") == ("red 12 2010", ())
