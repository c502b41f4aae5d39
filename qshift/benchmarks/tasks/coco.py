"""Captions of COCO: of each picture one caption asks, the other four are to be found."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import ConfigError
from core.readers.lines import content, document, listed, name, word
from core.seeds import generator
from qshift.benchmarks.tasks.types import Sample

PAIRS, TEXTS = "captions.json", "captions_val2017_text_only.jsonl.gz"
EACH = 5  # captions of a picture that are used
PICTURES, CLEAN = 1000, 1000
PURPOSE = "coco captions"


@dataclass(frozen=True, slots=True)
class Captioned:
    """A picture's id and five captions; the first asks, the others are in the gallery."""

    key: str
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Captions:
    """Three parts without a picture in common.

    Args:
        asked: of the task.
        clean: measure what clean captions look like.
        held: for choosing settings: as many as are asked, or what is left.
    """

    asked: tuple[Captioned, ...]
    clean: tuple[Captioned, ...]
    held: tuple[Captioned, ...] = ()


def read_captions(folder: Path, pictures: int = PICTURES, clean: int = CLEAN, seed: int = 0) -> Captions:
    """Reads captions.json and captions_val2017_text_only.jsonl.gz and draws pictures by key.

    Pictures that share a caption with another picture, word for word, are left out: what the caption asks
    for would be ambiguous.

    Raises:
        ConfigError: a file is missing or misses a field, or too few pictures are left.
    """
    found = _captions(folder)
    whole = {key: texts[:EACH] for key, texts in sorted(found.items()) if len(texts) >= EACH}
    seen = Counter(_plain(text) for texts in whole.values() for text in texts)
    usable = [(key, texts) for key, texts in whole.items() if all(seen[_plain(t)] == 1 for t in texts)]
    if len(usable) < pictures + clean:
        raise ConfigError(
            f"{folder} has {len(usable)} pictures with {EACH} captions of their own: expected at least "
            f"{pictures + clean}"
        )
    order = generator(seed, "order", PURPOSE).permutation(len(usable)).tolist()
    drawn = [_captioned(key, texts, seed) for key, texts in (usable[int(i)] for i in order)]
    used = pictures + clean
    return Captions(
        tuple(drawn[:pictures]), tuple(drawn[pictures:used]), tuple(drawn[used : used + pictures])
    )


def queries(captioned: Sequence[Captioned]) -> list[Sample]:
    """The asking caption of each picture; the label is the picture."""
    return [Sample(c.key, c.texts[0], label=c.key, title=c.texts[0]) for c in captioned]


def gallery(captioned: Sequence[Captioned]) -> list[Sample]:
    """The other captions of all pictures."""
    return [
        Sample(f"{c.key}-{i}", text, label=c.key, title=text)
        for c in captioned
        for i, text in enumerate(c.texts[1:], 1)
    ]


def _captioned(key: str, texts: Sequence[str], seed: int) -> Captioned:
    order = generator(seed, key, PURPOSE).permutation(EACH).tolist()
    return Captioned(key, tuple(texts[i] for i in order))


def _captions(folder: Path) -> dict[str, list[str]]:
    """Captions by picture; the few pictures that are in both files take those of the second."""
    found: dict[str, list[str]] = {}
    lines: dict[str, list[str]] = {}
    try:
        for pair in listed(document(content(folder / PAIRS))["pairs"]):
            found[name(pair["image_id"])] = [
                " ".join(word(text).split()) for text in listed(pair["captions"])
            ]
        for line in _lines(folder / TEXTS):
            lines.setdefault(name(line["image_id"]), []).append(" ".join(word(line["caption"]).split()))
    except (ConfigError, OSError) as error:
        raise ConfigError(
            f"cannot read the captions in {folder}: {error}; see docs/reference/data.md"
        ) from error
    except (ValueError, KeyError, TypeError, EOFError) as error:
        raise ConfigError(f"the captions in {folder} are damaged or of another form: {error!r}") from error
    return {**found, **lines}


def _lines(path: Path) -> Iterator[Any]:
    with gzip.open(path) as file:
        yield from (document(line) for line in file if line.strip())


def _plain(text: str) -> str:
    return text.casefold().rstrip(". ")
