"""Draws the held-out right words; no test. Rule and command: the head of right_words_held_out.txt.

    python tests/encoders/draw_right_words.py > held_out.txt

The names stand in the file itself: they were written down from general knowledge, before any result.
"""

from pathlib import Path

import numpy as np
from spellchecker import SpellChecker
from wordfreq import get_frequency_dict

LANGUAGES = ("de", "fr", "es", "it", "pt", "nl", "sv", "pl", "ru", "tr")
BANDS = ((1e-5, 1.0, 15), (1e-6, 1e-5, 20), (1e-7, 1e-6, 15))
"""Least and greatest share of the language, and how many words; the last are too rare for word_lists.py."""
RARE = (10**-7.5, 10**-5.5, 200)
SHORTEST = 3
SEED = 2026
NAMES = ("people", "places", "brands")


def read(name: str) -> dict[str, list[str]]:
    lines = Path(__file__).with_name(name).read_text().splitlines()
    return {kind: row.split() for kind, row in (line.split(":") for line in lines if line[0] != "#")}


def drawn(words: list[str], count: int, draw: np.random.Generator) -> list[str]:
    return [words[i] for i in sorted(draw.choice(len(words), count, replace=False))]


def main() -> None:
    draw = np.random.default_rng(SEED)
    taken = {word.lower() for row in read("right_words.txt").values() for word in row}
    english = get_frequency_dict("en", wordlist="best")
    dictionary = set(SpellChecker(language="en").word_frequency.dictionary)
    own = Path(__file__).with_name("right_words_held_out.txt").read_text().splitlines()
    print(*(line for line in own if line.startswith(("#", *NAMES))), sep="\n")

    def free(word: str) -> bool:
        return word.isalpha() and len(word) >= SHORTEST and word not in taken

    low, high, count = RARE
    rare = sorted(w for w, share in english.items() if low <= share < high and w in dictionary and free(w))
    print("rare:", *drawn(rare, count, draw))
    for language in LANGUAGES:
        shares = get_frequency_dict(language, wordlist="best")
        rows: list[list[str]] = []
        for low, high, count in BANDS:
            # Ten times as frequent as in English: what is left out is mostly English in other texts.
            band = [w for w, s in shares.items() if low <= s < high and s >= 10 * english.get(w, 0.0)]
            words = sorted(word for word in band if free(word))
            rows.append(drawn(words, min(count, len(words)), draw))
        print(f"{language}:", *rows[0], *rows[1])
        if rows[2]:
            print(f"{language}-rarest:", *rows[2])


if __name__ == "__main__":
    main()
