"""What query repair does to right words and to misspelt texts; no test. Figures: docs/methods/repair.md.

    python tests/encoders/measure_right_words.py DATA [SEED ...]

DATA as for measure_repair.py. Each seed draws gallery, titles and misspellings anew; the rules were chosen on
100 to 102.
"""

import itertools
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from measure_repair import at_rate, coco, fashion, words

from core.config import RepairConfig
from encoders.clip import open_clip_towers
from encoders.packages import emoji_towers
from encoders.repair import Repairer, count_words, kept_whole
from encoders.word_lists import english, english_share, written_in
from encoders.words import fold
from qshift.data.emoji import TEMPLATES, catalogue

LISTS = ("right_words.txt", "right_words_held_out.txt")
OF_TITLES = ("people", "places", "brands", "rare")
"""Kinds that take the place of a word in a title; words of a language stand beside each other."""
TIMES = 2
RATE = 0.5
Kinds = dict[str, list[str]]
Drawn = tuple[dict[str, int], list[str], list[str]]


def read(name: str) -> Kinds:
    lines = Path(__file__).with_name(name).read_text().splitlines()
    return {kind: row.split() for kind, row in (line.split(":") for line in lines if line[0] != "#")}


def emoji(data: Path, seed: int) -> Drawn:
    """Vocabulary as the demo's base and gallery have it, titles, and some of them as queries."""
    names = [entry.name for entry in catalogue()]
    captions = [template.format(name=name) for name in names for template in TEMPLATES]
    order = np.random.default_rng(seed).permutation(len(names))[:600]
    return dict(Counter(count_words(captions + names))), names, [names[i] for i in order]


def drawn(load: Callable[[Path, int], tuple[list[str], list[str]]]) -> Callable[[Path, int], Drawn]:
    def draw(data: Path, seed: int) -> Drawn:
        gallery, queries = load(data, seed)
        return count_words(gallery), gallery, queries

    return draw


def inside(kinds: Kinds, titles: list[str], draw: np.random.Generator) -> list[tuple[str, list[str]]]:
    """Texts with right words in them, and those words."""
    texts = []
    for word in (word for kind in OF_TITLES for word in kinds[kind]):
        done = 0
        while done < TIMES:
            title = titles[int(draw.integers(len(titles)))].split()
            places = [i for i, other in enumerate(title) if other.isalpha() and len(other) > 2]
            if len(title) > 1 and places:
                title[places[int(draw.integers(len(places)))]] = word
                texts.append((" ".join(title), [word]))
                done += 1
    for kind in kinds.keys() - {*OF_TITLES}:
        texts += [(f"{one} {other}", [one, other]) for one, other in itertools.pairwise(kinds[kind])]
    return texts


def main() -> None:
    data, seeds = Path(sys.argv[1]), [int(seed) for seed in sys.argv[2:]] or [100, 101, 102]
    with tempfile.TemporaryDirectory() as folder:
        emoji_towers(Path(folder))
        whole = kept_whole(open_clip_towers(f"local-dir:{folder}").text)
    for name, load in (("emoji", emoji), ("coco", drawn(coco)), ("fashion", drawn(fashion))):
        score: Counter[str] = Counter()
        for seed in seeds:
            vocabulary, titles, queries = load(data, seed)
            made = Repairer(
                vocabulary, RepairConfig(), lambda word: whole(word) or english(word), titles,
                lambda all_words: bool(written_in(all_words)), english_share,
            )  # fmt: skip
            for part in LISTS:
                kinds = read(part)
                for kind, word in ((kind, word) for kind, row in kinds.items() for word in row):
                    group = "rarest foreign" if kind.endswith("-rarest") else "other"
                    score[f"{part} alone, {group}"] += bool(made.repair(word)[1])
                    score[f"{part} alone, {group}, asked"] += 1
                for text, right in inside(kinds, titles, np.random.default_rng([seed, 99])):
                    changed = {fold(piece) for old, _ in made.repair(text)[1] for piece in old.split()}
                    score[f"{part} inside"] += not changed.isdisjoint(map(fold, right))
                    score[f"{part} inside, asked"] += 1
            for place, text in enumerate(queries):
                wrong = at_rate("misspelt", RATE)(text, np.random.default_rng([seed, place]))
                score["misspelt texts restored"] += words(made.repair(wrong)[0]) == words(text)
                score["clean texts changed"] += bool(made.repair(text)[1])
                score["texts"] += 1
        print(name, seeds, *(f"\n  {what}: {count}" for what, count in score.items()))


if __name__ == "__main__":
    main()
