"""Measures query repair; no test. Figures and command: docs/methods/repair.md.

    python tests/encoders/measure_repair.py DATA [words|context|sweep|retrieval|speed ...]

DATA holds coco_mini/captions_val2017_text_only.jsonl.gz and fashion_product/pairs.csv.
"""

import csv
import gzip
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from core.config import RepairConfig
from encoders import nearest_words
from encoders.clip import open_clip_towers
from encoders.packages import emoji_towers
from encoders.repair import Repairer, count_words, kept_whole
from encoders.text import TextTower
from encoders.words import WORD, fold
from qshift.shifts.text import TEXT_SHIFTS
from qshift.shifts.wording.characters import TYPOS, Typo, hit_words, typos

GALLERY, QUERIES = 3000, 600
Shift = Callable[[str, np.random.Generator], str]
SWEEP = {
    "LONG": (5, 6, 7, 8, 99),
    "FREQUENT": (1, 2, 5, 20),
    "SAME_FIRST": (1, 4, 10**6),
    "HALF": (1, 2, 3, 4, 99),
}


def coco(data: Path, seed: int) -> tuple[list[str], list[str]]:
    """Captions of the gallery, one per picture, and other captions of its first pictures as queries."""
    captions: dict[int, list[str]] = {}
    with gzip.open(data / "coco_mini" / "captions_val2017_text_only.jsonl.gz", "rt") as file:
        for line in file:
            if line.strip():
                row = json.loads(line)
                captions.setdefault(row["image_id"], []).append(row["caption"].strip())
    order = np.random.default_rng(seed).permutation(sorted(captions))
    return [captions[i][0] for i in order[:GALLERY]], [captions[i][1] for i in order[:QUERIES]]


def fashion(data: Path, seed: int) -> tuple[list[str], list[str]]:
    """Titles of one half of the products, and some titles of the other half."""
    with (data / "fashion_product" / "pairs.csv").open(newline="") as file:
        titles = [row["text"] for row in csv.DictReader(file)]
    order = np.random.default_rng(seed).permutation(len(titles))
    half = len(titles) // 2
    return [titles[i] for i in order[:half]], [titles[i] for i in order[half : half + QUERIES]]


def lose_spaces(text: str, draw: np.random.Generator) -> str:
    """One space in ten."""
    return "".join("" if c == " " and draw.random() < 0.1 else c for c in text)


def add_spaces(text: str, draw: np.random.Generator) -> str:
    """One word of at least 5 letters in five comes in two."""

    def cut(word: str) -> str:
        if len(word) < 5 or draw.random() >= 0.2:
            return word
        place = int(draw.integers(1, len(word)))
        return f"{word[:place]} {word[place:]}"

    return " ".join(cut(word) for word in text.split(" "))


def shifted(texts: list[str], shift: Shift) -> list[str]:
    return [shift(text, np.random.default_rng([7, i])) for i, text in enumerate(texts)]


def at_rate(name: str, rate: float) -> Shift:
    return lambda text, draw: TEXT_SHIFTS[name](text, rate, draw)


def coco_c(kind: Typo, level: int) -> Shift:
    """A character-level shift as published: one edit in a short word, two from 7 letters, three from 10."""
    return lambda text, draw: hit_words(text, 0.05 * level, draw, kind)


def words(text: str) -> list[str]:
    return [fold(word) for word in WORD.findall(text)]


def word_score(repairer: Repairer, clean: list[str], wrong: list[str]) -> str:
    """Shares of the words that the shift hit, or a share of the clean words where there is no shift."""
    hit = restored = left = false = total = 0
    for ours, theirs in zip(clean, wrong):
        pairs = list(zip(ours.split(), theirs.split()))
        for right, typed in pairs:
            new = repairer.repair(typed)[0]
            total += 1
            if words(right) == words(typed):  # not hit, or only beside the word
                false += words(new) != words(right)
                continue
            hit += 1
            restored += words(new) == words(right)
            left += new == typed
    if not hit:
        return f"clean words changed {false / total:6.2%} of {total}"
    wrongly = hit - restored - left
    return f"hit {hit:5d}: restored {restored / hit:6.1%}, left {left / hit:6.1%}, else {wrongly / hit:6.1%}"


def text_score(repairer: Repairer, clean: list[str], wrong: list[str]) -> str:
    """For shifts that move spaces: queries that read as before."""
    same = [words(one) == words(two) for one, two in zip(clean, wrong)]
    after = [words(one) == words(repairer.repair(two)[0]) for one, two in zip(clean, wrong)]
    return f"queries that read as before: {np.mean(same):.1%}, repaired {np.mean(after):.1%}"


def print_words(data: Path, tower: TextTower, seed: int = 1) -> None:
    for name, load in (("coco", coco), ("fashion", fashion)):
        gallery, queries = load(data, seed)
        vocabulary = count_words(gallery)
        every = [word for text in queries for word in words(text)]
        unknown = np.mean([word not in vocabulary for word in every])
        print(f"{name}: {len(vocabulary)} words known, {unknown:.2%} of the queries' words unknown")
        for shortest in (4, 3):
            for whole in (None, kept_whole(tower)):
                made = Repairer(vocabulary, RepairConfig(shortest=shortest), whole)
                print(f" shortest {shortest}, {'tower asked' if whole else 'tower not asked'}")
                print(f"  {'clean':16s}", word_score(made, queries, queries))
                for shift in sorted(set(TEXT_SHIFTS) - {"clean"}):
                    for rate in (0.3, 0.6) if shift == "misspelt" else (0.6,):
                        wrong = shifted(queries, at_rate(shift, rate))
                        if [len(t.split()) for t in wrong] == [len(t.split()) for t in queries]:
                            print(f"  {shift:12s} {rate:.1f}", word_score(made, queries, wrong))
                for kind in TYPOS:
                    wrong = shifted(queries, coco_c(kind, 7))
                    print(f"  COCO-C {kind:9s}", word_score(made, queries, wrong))
                for moved in (lose_spaces, add_spaces):
                    print(f"  {moved.__name__:16s}", text_score(made, queries, shifted(queries, moved)))


def print_context(data: Path, tower: TextTower, seed: int = 1) -> None:
    """With and without the gallery's titles; texts are mended whole, as words beside each other matter."""
    for name, load in (("coco", coco), ("fashion", fashion)):
        gallery, queries = load(data, seed)
        wrong = shifted(queries, lambda text, draw: typos(text, 0.6, TYPOS, draw))
        for titles in ([], gallery):
            made = Repairer(count_words(gallery), RepairConfig(), kept_whole(tower), titles)
            begun = time.process_time()
            mended = [made.repair(text)[0] for text in wrong]
            took = 1e3 * (time.process_time() - begun) * 64 / len(wrong)
            clean = sum(len(text.split()) for text in queries)
            changed = sum(len(made.repair(text)[1]) for text in queries) / clean
            hit = []
            for right, typed, new in zip(queries, wrong, mended):
                row = right.split()
                moved = len(new.split()) != len(
                    row
                )  # a space came or went: no word of it is counted restored
                for one, two, three in zip(row, typed.split(), row if moved else new.split()):
                    if words(one) != words(two):
                        hit.append(not moved and words(one) == words(three))
            label = f"{name}, {'titles' if titles else 'no titles'}"
            print(
                f"{label}: typos restored {np.mean(hit):.1%} of {len(hit)},"
                f" clean words changed {changed:.2%}, {took:.0f} CPU ms per 64 texts"
            )


def print_sweep(data: Path, tower: TextTower) -> None:
    """The constants, on other draws than the reported ones (seed 0)."""
    for name, load in (("coco", coco), ("fashion", fashion)):
        gallery, queries = load(data, 0)
        wrong = shifted(queries, at_rate("misspelt", 0.6))
        for constant, values in SWEEP.items():
            kept = getattr(nearest_words, constant)
            for value in values:
                setattr(nearest_words, constant, value)
                made = Repairer(count_words(gallery), RepairConfig(), kept_whole(tower))
                clean = word_score(made, queries, queries)
                spaces = text_score(made, queries, shifted(queries, lose_spaces))
                print(f"{name} {constant}={value}: {clean}; {word_score(made, queries, wrong)}; {spaces}")
            setattr(nearest_words, constant, kept)


def features(tower: TextTower, texts: list[str]) -> np.ndarray:
    """Unit features [n, D], encoded 64 at a time, short texts together."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    rows: dict[int, np.ndarray] = {}
    for start in range(0, len(order), 64):
        part = order[start : start + 64]
        inputs = tower.collate([tower.prepare(texts[i]) for i in part], len(part))
        rows.update(zip(part, tower.encode(inputs).detach().numpy()))
    return np.stack([rows[i] for i in range(len(texts))])


def print_retrieval(data: Path, tower: TextTower, seed: int = 1) -> None:
    gallery, queries = coco(data, seed)
    vocabulary = count_words(gallery)
    items = features(tower, gallery)
    found = {}
    for name, shift in [
        ("clean", at_rate("clean", 0)),
        *((f"misspelt {rate}", at_rate("misspelt", rate)) for rate in (0.3, 0.6)),
        *((f"COCO-C {kind}", coco_c(kind, 7)) for kind in TYPOS),
    ]:
        wrong = shifted(queries, shift)
        variants = {"as typed": wrong}
        for shortest in (4, 3):
            for whole in (None, kept_whole(tower)):
                made = Repairer(vocabulary, RepairConfig(shortest=shortest), whole)
                label = f"shortest {shortest}, {'tower asked' if whole else 'tower not asked'}"
                variants[label] = [made.repair(text)[0] for text in wrong]
        for label, texts in variants.items():
            scores = features(tower, texts) @ items.T
            own = scores[np.arange(len(texts)), np.arange(len(texts))]
            rank = (scores > own[:, None]).sum(1)
            found[name, label] = rank < 1
            gain = found[name, label].astype(float) - found[name, "as typed"]
            draw = np.random.default_rng(0).integers(0, len(gain), (1000, len(gain)))
            low, high = np.percentile(gain[draw].mean(1), (2.5, 97.5))
            print(
                f"{name:17s} {label:28s} R@1 {np.mean(rank < 1):.1%} R@10 {np.mean(rank < 10):.1%}"
                f" gain {gain.mean():+.1%} [{low:+.1%}, {high:+.1%}]",
                flush=True,
            )


def print_speed(data: Path, tower: TextTower, seed: int = 1) -> None:
    gallery, queries = coco(data, seed)
    small = count_words(gallery)
    letters = np.random.default_rng(0).integers(97, 123, (100_000, 12), dtype=np.uint8)
    lengths = np.random.default_rng(1).integers(4, 13, len(letters))
    made_up = {bytes(row[:n]).decode(): 9 for row, n in zip(letters, lengths)}
    for vocabulary in (small, made_up | small):
        for rate in (0.0, 0.3, 0.6):
            texts = shifted(queries[:512], at_rate("misspelt", rate))
            begun = time.process_time()
            made = Repairer(vocabulary, RepairConfig(), kept_whole(tower))
            built = time.process_time() - begun
            took = []
            for _ in range(2):
                for start in range(0, len(texts), 64):
                    begun = time.process_time()
                    for text in texts[start : start + 64]:
                        made.repair(text)
                    took.append(1e3 * (time.process_time() - begun))
            half = len(took) // 2
            print(f"{len(vocabulary)} words, rate {rate}, CPU ms: built in {1e3 * built:.0f};", end=" ")
            print(f"64 captions: first {took[0]:.1f}, next seven {np.mean(took[1:half]):.1f}", end="")
            print(f", all again {np.mean(took[half:]):.2f}", flush=True)


def main() -> None:
    data, *parts = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        emoji_towers(Path(folder))
        tower = open_clip_towers(f"local-dir:{folder}").text
        for part in parts or ("words", "context", "sweep", "retrieval", "speed"):
            {
                "words": print_words,
                "context": print_context,
                "sweep": print_sweep,
                "retrieval": print_retrieval,
                "speed": print_speed,
            }[part](Path(data), tower)


if __name__ == "__main__":
    main()
