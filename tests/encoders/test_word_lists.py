"""Right words stay: names, rare words, other languages, alone and beside others."""

import itertools
from pathlib import Path

import pytest

from core.config import RepairConfig
from encoders.repair import Repairer, count_words
from encoders.word_lists import english, written_in

KINDS = {
    name: words.split()
    for name, words in (
        line.split(":") for line in Path(__file__).with_name("right_words.txt").read_text().splitlines()
        if not line.startswith("#")
    )
}  # fmt: skip
TITLES = [
    "red line", "a tea cup", "hole in one", "left hand", "right hand", "bread and butter", "smiling face",
    "left ear", "house at dusk", "birthday cake", "male sign", "playing card", "running shoe", "flute",
    "shooting star", "no way out", "anger symbol", "curly loop", "dodo", "rock stone", "fish", "blue book",
    "desk lamp", "hiking boot", "new moon", "last quarter moon", "phone call", "libra", "peru flag",
    "fire engine", "number ten", "black cat", "house with garden", "school bench", "hill and tree",
    "table tennis", "sea wave", "single heart", "old key",
]  # fmt: skip


@pytest.fixture(scope="module")
def repairer() -> Repairer:
    """Words that lie one letter beside right ones, each often enough to be preferred."""
    return Repairer(
        count_words(TITLES * 10), RepairConfig(), english, TITLES, lambda words: bool(written_in(words))
    )


def test_of_five_hundred_right_words_at_most_one_is_changed(repairer: Repairer) -> None:
    words = [word for kind in KINDS.values() for word in kind]
    assert len(words) > 500 and repairer.active
    changed = [change for word in words for change in repairer.repair(word)[1]]
    assert len(changed) <= len(words) / 500, changed
    unprotected = Repairer(count_words(TITLES * 10), RepairConfig(), None, TITLES)
    assert sum(bool(unprotected.repair(word)[1]) for word in words) > 60  # they are near words of the gallery


@pytest.mark.parametrize("kind", ["de", "fr", "es", "it", "pt", "nl", "sv", "pl", "ru", "tr"])
def test_a_text_in_another_language_is_left_alone(repairer: Repairer, kind: str) -> None:
    words = KINDS[kind]
    for one, other in itertools.pairwise(words):
        assert repairer.repair(f"{one} {other}") == (f"{one} {other}", ())


@pytest.mark.parametrize("text", ["der Hund", "teal", "a samovar", "Samovar", "le chat noir"])
def test_words_of_the_reports_stay(repairer: Repairer, text: str) -> None:
    assert repairer.repair(text) == (text, ())


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("reed lien", ""), ("birthday cakke", "birthday cake"), ("smiilng face", "smiling face"),
     ("blakc cat", "black cat"), ("shootnig star", "shooting star")],
)  # fmt: skip
def test_misspelt_words_are_still_mended(repairer: Repairer, wrong: str, right: str) -> None:
    mended = repairer.repair(wrong)[0]
    assert mended == (right or wrong)


def test_languages_need_all_words_and_english_is_none() -> None:
    assert written_in(["der", "hund"]) == "de" and written_in(["petit", "oiseau"]) == "fr"
    assert written_in(["der", "hnud"]) == "" and written_in([]) == ""
    assert written_in(["smiling", "birthday"]) == ""
    assert english("samovar") and english("teal") and not english("recieve") and not english("teh")
