"""Misspell texts with a keyed shift, mend them with the words of a gallery, count what reads as before.

Run: python examples/shift_and_repair.py
"""

from itertools import product

from core.config import RepairConfig
from encoders.repair import Repairer, count_words
from qshift.shifts.wording import corrupt_text

COLOURS = ("black", "white", "yellow", "purple", "orange", "silver", "golden", "crimson")
THINGS = (
    "umbrella", "bicycle", "elephant", "guitar", "lantern", "kitchen", "penguin", "rocket", "sandals",
    "teapot", "violin", "waterfall", "pumpkin", "mountain", "hammock", "feather", "dolphin", "compass",
    "blanket", "airplane", "candle", "giraffe",
)  # fmt: skip
PLACES = (
    "beach", "forest", "garden", "harbour", "library", "market", "meadow", "museum", "palace", "station",
    "street", "temple", "village", "window", "workshop", "bridge", "castle", "desert", "island", "stadium",
)  # fmt: skip


def main() -> float:
    titles = [
        f"{colour} {thing} near the {place}" for colour, thing, place in product(COLOURS, THINGS, PLACES)
    ]
    repairer = Repairer(count_words(titles), RepairConfig())
    asked = titles[::37]

    # The same (seed, sample, shift, level) gives the same bytes, in any order and process.
    typed = [corrupt_text(text, "typos", 4, seed=0, sample_id=i) for i, text in enumerate(asked)]
    mended = [repairer.repair(text)[0] for text in typed]

    for row in range(3):
        print(f"{typed[row]!r} -> {mended[row]!r}")
    as_typed = sum(a == b for a, b in zip(asked, typed)) / len(asked)
    repaired = sum(a == b for a, b in zip(asked, mended)) / len(asked)
    print(f"texts that read as asked: {100 * as_typed:.0f} % as typed, {100 * repaired:.0f} % repaired")
    return repaired - as_typed


if __name__ == "__main__":
    main()
