"""Right words stay: names, rare words, other languages, alone and beside others."""

import itertools
from pathlib import Path

import pytest

from core.config import RepairConfig
from encoders.repair import Repairer, count_words
from encoders.word_lists import RAREST, SHORT, _shares, english, english_share, written_in

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
    return made(TITLES * 10)


def made(titles: list[str]) -> Repairer:
    return Repairer(
        count_words(titles),
        RepairConfig(),
        english,
        titles,
        lambda words: bool(written_in(words)),
        english_share,
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


FLAGS = [f"flag of {country}" for country in ("Peru", "Samoa", "Mali", "France", "Chad", "Spain")]
FACES = [f"{mood} face" for mood in ("smiling", "angry", "sad", "tired", "happy", "pleading")]
MANY = (FLAGS + FACES) * 12 + TITLES * 4 + ["memo pad", "tear drop", "sandal", "next button", "male sign"]


@pytest.mark.parametrize("text", [
    "teal face", "flag of samovar", "Nemo face", "angry Gandalf", "face of Zofia", "kale of Peru",
    "tern of Chad", "house with scone", "loom of France", "flag of Kyoto", "happy Fanta",
])  # fmt: skip
def test_a_right_word_in_a_title_stays(text: str) -> None:
    assert made(MANY).repair(text) == (text, ())


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("flay of Peru", "flag of Peru"), ("smiling ace", "smiling face"), ("lag of Samoa", "flag of Samoa"),
     ("pleading fade", "pleading face")],
)  # fmt: skip
def test_a_slip_that_is_another_word_is_mended_beside_its_own(wrong: str, right: str) -> None:
    assert english(next(word for word in wrong.split() if word not in right.split()))
    assert made(MANY).repair(wrong)[0] == right


@pytest.mark.parametrize("text", ["flay", "ace", "Fade"])
def test_alone_it_stays(text: str) -> None:
    assert made(MANY).repair(text) == (text, ())


@pytest.mark.parametrize(
    "kind",
    [
        "people", "places", "brands", "rare", "de", "fr", "es", "it", "pt", "nl", "sv",
        "de-rarest", "fr-rarest", "es-rarest", "it-rarest", "pt-rarest", "nl-rarest", "sv-rarest",
        "pl-rarest",
    ],
)  # fmt: skip
def test_right_words_held_out_stay(kind: str) -> None:
    rows = Path(__file__).with_name("right_words_held_out.txt").read_text().splitlines()
    words = next(row for row in rows if row.startswith(f"{kind}:")).split()[1:]
    repairer = made(MANY)
    changed = [change for word in words for change in repairer.repair(word)[1]]
    assert len(words) >= 15 and not changed


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
    assert written_in(["smiling", "brithday"]) == "" and written_in(["samovar", "qzxqzxqzx"]) == ""
    assert english_share("the") > english_share("teh") > 0 == english_share("smiel")
    assert english("samovar") and english("teal") and not english("recieve") and not english("teh")


def test_one_short_word_alone_must_be_a_common_one() -> None:
    """Letters of a misspelt short word are often a rare word of some language."""
    from wordfreq import get_frequency_dict

    listed = get_frequency_dict("nl", wordlist="best")
    rare = [word for word, share in listed.items() if len(word) <= SHORT and 2e-7 < share < 9e-7][:200]
    assert len(rare) == 200
    assert not any(written_in([word]) == "nl" for word in rare)
    assert all(written_in([word, "fietsenstalling"]) == "nl" for word in rare)


def test_shares_are_those_of_the_lists() -> None:
    from wordfreq import get_frequency_dict

    for language in ("da", "tr"):
        listed = get_frequency_dict(language, wordlist="best")
        shares = _shares(language, RAREST)
        kept = [word for word, share in listed.items() if share >= RAREST * 0.999]
        assert len(kept) == len(shares.hashes)
        assert all(abs(shares.of(word) / listed[word] - 1) < 1e-6 for word in kept[::50])
