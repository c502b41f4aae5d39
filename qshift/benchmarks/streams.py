"""Query streams: which samples of a task are asked in which order, under which shift, in which batches.

A stream is a pure function of (task, stream, seed): every draw comes from a generator keyed by what it is
about. What is asked carries no bytes yet; the app writes the messages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Literal

import numpy as np

from core.errors import ConfigError
from core.seeds import generator
from core.types import Modality
from qshift.benchmarks.tasks.types import Sample, Task
from qshift.shifts.corruptions import IMAGE_CORRUPTIONS, corrupt
from qshift.shifts.images import jitter
from qshift.shifts.wording import TEXT_CORRUPTIONS, corrupt_text

Kind = Literal[
    "single", "gradual", "mixed-severity", "diverse", "sequential", "recurrent", "skewed", "tiny", "bursts",
    "label-delay", "identical", "hostile",
]  # fmt: skip
Trick = Literal["", "same", "repeated", "noise", "grey", "colour", "checks"]
"""same: one query of the pool over and over; repeated: one gallery item over and over; noise: pictures of
maximum entropy, or random words, that have no answer. Of pictures alone, without an answer too: grey, all of
one grey; colour, each of one pure colour; checks, black and white from pixel to pixel."""
Order = Literal["random", "shares", "sorted"]
"""random: the look is drawn per query; shares: looks have equal shares, shuffled; sorted: by group."""
Pattern = Literal["full", "tiny", "bursts"]

FULL = 64
"""Queries of a full batch: TCR, all published configurations."""
TINY = 8
"""Most queries of a tiny batch."""
MEANINGLESS: tuple[Trick, ...] = ("noise", "grey", "colour", "checks")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
NOISE_WORDS = 8
NOISE_SIDE = 64  # pixels, where a task has no picture to take the size from


@dataclass(frozen=True, slots=True)
class Look:
    """One kind of query: a pool of the task, and what is done to its samples."""

    pool: str = "clean"
    corruption: str = ""
    severity: int = 0
    trick: Trick = ""

    @property
    def name(self) -> str:
        shifted = f"{self.corruption}-{self.severity}" if self.corruption else ""
        pool = "" if self.pool == "clean" and (shifted or self.trick) else self.pool
        return "+".join(part for part in (pool, shifted, self.trick) if part)


@dataclass(frozen=True, slots=True)
class Poison:
    """Hostile queries among the others, which stay the same ones; no label is known of any.

    `share` of all queries, below 1; the looks take turns.
    """

    looks: tuple[Look, ...]
    share: float


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a stream: `queries` of the looks given, fewer where the pool is smaller.

    Poison comes on top of them.
    """

    name: str
    looks: tuple[Look, ...]
    queries: int
    order: Order = "random"
    poison: Poison | None = None


@dataclass(frozen=True, slots=True)
class Stream:
    """One permanent scenario of a task.

    Args:
        task: its id.
        name: permanent id within the task.
        kind: what the scenario is about.
        segments: one after the other, nothing is reset in between.
        group: the average that it enters: "clean", "sorted", "corruption", "domain", "text", "mixed",
            "recurrent", "schedule" or "safety".
        batches: where the batches end.
        label_delay: queries after which a label arrives.
    """

    task: str
    name: str
    kind: Kind
    segments: tuple[Segment, ...]
    group: str
    batches: Pattern = "full"
    label_delay: int = 0


@dataclass(frozen=True, slots=True)
class Asked:
    """One query: what is sent, its label ("" where nothing is right) and its segment."""

    sample: str
    modality: Modality
    content: Any
    label: str
    segment: str
    look: str


def queries(task: Task, stream: Stream, seed: int) -> Iterator[Asked]:
    """The queries of a stream, in order.

    A sample is asked again only when its pool is exhausted; it is then shifted anew.

    Raises:
        ConfigError: the task has no such pool; the corruption or its severity is not known.
    """
    _check(task, stream)
    dealer = _Dealer(task, stream, seed)
    for number, segment in enumerate(stream.segments):
        looks = _looks(segment, _length(task, segment), generator(seed, f"{stream.name}/{number}", "looks"))
        drawn = [(look, *dealer.draw(look)) for look in looks]
        if segment.order == "sorted":
            drawn.sort(key=lambda one: (one[1].group or one[1].label, one[1].label, one[1].key))
        hostile = _poisoned(segment, len(drawn), generator(seed, f"{stream.name}/{number}", "poison"))
        honest = iter(drawn)
        for position, poison in enumerate(hostile):
            look, sample, take = next(honest) if poison is None else (poison, *dealer.draw(poison))
            place = f"{stream.name}/{number}/{position}"
            if look.trick in MEANINGLESS:
                content, label = _meaningless(task, look.trick, seed, place), ""
            else:
                content, label = _shifted(task, sample, look, seed, take), sample.label
            take = place if look.trick in MEANINGLESS else take
            label = label if poison is None else ""
            yield Asked(take, task.modality, content, label, segment.name, look.name)


def _poisoned(segment: Segment, honest: int, draw: np.random.Generator) -> list[Look | None]:
    """What stands at each place of a segment: poison, or None for the next of the honest queries."""
    if segment.poison is None:
        return [None] * honest
    looks, share = segment.poison.looks, segment.poison.share
    count = round(honest * share / (1 - share))
    places = set(draw.permutation(honest + count)[:count].tolist())
    turns = cycle(looks)
    return [next(turns) if place in places else None for place in range(honest + count)]


def boundaries(stream: Stream, count: int, seed: int) -> list[int] | None:
    """Sizes of the batches, in order; None: full batches, as the service cuts them itself."""
    if stream.batches == "full":
        return None
    draw = generator(seed, stream.name, "batches")
    sizes: list[int] = []
    while (left := count - sum(sizes)) > 0:
        full = stream.batches == "bursts" and len(sizes) % 4 == 0
        sizes.append(min(left, FULL if full else int(draw.integers(1, TINY + 1))))
    return sizes


def _check(task: Task, stream: Stream) -> None:
    where = f"stream {stream.name!r} of {task.name}"
    if stream.task != task.name:
        raise ConfigError(f"{where}: expected a stream of this task, got one of {stream.task!r}")
    names = [segment.name for segment in stream.segments]
    if len(set(names)) < len(names):
        raise ConfigError(
            f"{where}: expected every segment to have a name of its own, got {', '.join(names)}"
        )
    for look in (look for segment in stream.segments for look in segment.looks):
        if look.pool not in task.pools:
            raise ConfigError(f"{where}: no domain {look.pool!r}, expected one of {', '.join(task.pools)}")
        if look.corruption:
            check_corruption(look.corruption, look.severity, where)


def check_corruption(name: str, severity: int, where: str) -> None:
    """Raises ConfigError for a corruption that is not known, or has no such severity."""
    known = (*IMAGE_CORRUPTIONS, *TEXT_CORRUPTIONS)
    if name not in known:
        raise ConfigError(f"{where}: no corruption {name!r}, expected one of {', '.join(known)}")
    try:
        if name in TEXT_CORRUPTIONS:
            corrupt_text("some words", name, severity, 0, where)
        else:
            corrupt(np.zeros((32, 32, 3), np.uint8), name, severity, 0, where)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _length(task: Task, segment: Segment) -> int:
    """Queries that are new: a small pool shortens the segment, unless pictures are taken again."""
    if task.retaken or any(look.trick for look in segment.looks):
        return segment.queries
    return min(segment.queries, sum(len(task.pools[pool]) for pool in {look.pool for look in segment.looks}))


def _looks(segment: Segment, count: int, draw: np.random.Generator) -> list[Look]:
    """The look of every query; equal shares where a share is what the scenario prescribes."""
    if segment.order == "shares":
        chosen = draw.permutation(np.arange(count) * len(segment.looks) // max(count, 1))
    else:
        chosen = draw.integers(len(segment.looks), size=count)
    return [segment.looks[int(i)] for i in chosen]


class _Dealer:
    """Deals the samples of each pool in an order of its own, round after round."""

    def __init__(self, task: Task, stream: Stream, seed: int) -> None:
        self._task, self._stream, self._seed = task, stream, seed
        self._order: dict[str, Sequence[int]] = {}
        self._dealt: dict[str, int] = {}
        self._kept: dict[Look, Sample] = {}

    def draw(self, look: Look) -> tuple[Sample, str]:
        """A sample and the name of its take: the same picture taken twice is drawn twice."""
        if look.trick:
            if look not in self._kept:
                self._kept[look] = self._one(look)
            return self._kept[look], f"{look.trick}/{self._kept[look].key}"
        pool = self._task.pools[look.pool]
        if look.pool not in self._order:
            draw = generator(self._seed, f"{self._task.name}/{self._stream.name}/{look.pool}", "order")
            self._order[look.pool] = draw.permutation(len(pool)).tolist()
        number = self._dealt.get(look.pool, 0)
        self._dealt[look.pool] = number + 1
        sample = pool[self._order[look.pool][number % len(pool)]]
        return sample, f"{look.pool}/{sample.key}/{number // len(pool)}"

    def _one(self, look: Look) -> Sample:
        task = self._task
        own = task.modality == task.gallery_modality
        pool = task.gallery if look.trick == "repeated" and own else task.pools[look.pool]
        draw = generator(self._seed, f"{task.name}/{self._stream.name}", look.trick)
        return pool[int(draw.integers(len(pool)))]


def _shifted(task: Task, sample: Sample, look: Look, seed: int, take: str) -> Any:
    content = sample.content
    # What repeats a gallery item sends the item itself.
    if task.retaken and look.trick != "repeated":
        content = _each_picture(
            content, lambda one, at: jitter(one, 1.0, generator(seed, at, "jitter")), take
        )
    if not look.corruption:
        return content
    if look.corruption in TEXT_CORRUPTIONS:
        if isinstance(content, tuple):  # composed: a picture and a text
            return content[0], corrupt_text(content[1], look.corruption, look.severity, seed, take)
        return corrupt_text(content, look.corruption, look.severity, seed, take)
    return _each_picture(
        content, lambda picture, at: corrupt(picture, look.corruption, look.severity, seed, at), take
    )


def _each_picture(content: Any, change: Any, take: str) -> Any:
    """Changes a picture, the picture of a composed query, or every picture of a sequence."""
    if isinstance(content, tuple):
        parts = [
            part if isinstance(part, str) else change(part, f"{take}/{number}")
            for number, part in enumerate(content)
        ]
        return tuple(parts)
    return content if isinstance(content, str) else change(content, take)


def _meaningless(task: Task, trick: Trick, seed: int, place: str) -> Any:
    """A query of the task's form that means nothing."""
    draw = generator(seed, place, trick)
    form = task.pools["clean"][0].content

    def part(like: Any) -> Any:
        if isinstance(like, str):
            return " ".join(
                "".join(draw.choice(list(LETTERS), int(draw.integers(3, 9)))) for _ in range(NOISE_WORDS)
            )
        shape = np.shape(like) or (NOISE_SIDE, NOISE_SIDE, 3)
        if len(shape) == 1:
            return draw.standard_normal(shape).astype(np.float32)
        if trick == "grey":
            return np.full(shape, 128, np.uint8)
        if trick == "colour":
            return np.broadcast_to(draw.choice(np.array([0, 255], np.uint8), shape[2:]), shape).copy()
        if trick == "checks":
            black = np.indices(shape[:2]).sum(0) % 2 == 0
            return np.where(black[..., None], np.uint8(0), np.uint8(255)).repeat(shape[2], 2)
        return draw.integers(0, 256, shape, dtype=np.uint8)

    return tuple(part(like) for like in form) if isinstance(form, tuple) else part(form)
