"""How a suite is written: rules that give a task its streams, and the pieces they are made of."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from core.types import Modality
from qshift.benchmarks.streams import FULL, Kind, Look, Order, Pattern, Segment, Stream

CLEAN = Look()


@dataclass(frozen=True, slots=True)
class Plan:
    """What a suite has to know of a task before it is asked anything.

    `domains` are the pools besides "clean"; `retaken` and `split` as in `Task`.
    """

    name: str
    modality: Modality
    domains: tuple[str, ...]
    retaken: bool = False
    split: str = "report"

    @property
    def pictures(self) -> bool:
        """Whether picture corruptions apply."""
        return self.modality in ("image", "composed", "sequence")

    def stream(
        self,
        name: str,
        kind: Kind,
        group: str,
        segments: Sequence[Segment],
        batches: Pattern = "full",
        label_delay: int = 0,
    ) -> Stream:
        return Stream(self.name, name, kind, tuple(segments), group, batches, label_delay)

    def single(self, look: Look, group: str, batches: int, order: Order = "random", name: str = "") -> Stream:
        """One look all the way."""
        kind: Kind = "skewed" if order == "sorted" else "single"
        name = name or (f"{look.name}-sorted" if order == "sorted" else look.name)
        return self.stream(name, kind, group, [Segment(look.name, (look,), FULL * batches, order)])

    def clean(self, batches: int) -> Stream:
        return self.single(CLEAN, "clean", batches)

    def sorted(self, batches: int) -> Stream:
        """Clean, class by class: statistics of a batch then confuse content with shift."""
        return self.single(CLEAN, "sorted", batches, "sorted")

    def shifts(self, batches: int) -> list[Stream]:
        """Every domain shift that the task has."""
        return [self.single(Look(domain), "domain", batches) for domain in self.domains]


Streams = Callable[[Plan, bool], Sequence[Stream]]
"""(task, quick) -> its streams."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Streams of the tasks that match a pattern; in the quick suite only of the first `quick` of them."""

    pattern: str
    streams: Streams
    quick: int = 0
    split: str = "report"


@dataclass(frozen=True, slots=True)
class Suite:
    """Rules, and how many seeds they are run with. The first rule that matches a task is the one."""

    name: str
    rules: tuple[Rule, ...]
    seeds: int = 3
    quick_seeds: int = 1
    first_seed: int = 0

    def tasks(self, known: Sequence[str], develop: Collection[str], quick: bool) -> list[str]:
        """The tasks it wants, in the order of its rules.

        Args:
            known: names of all tasks.
            develop: those kept for choosing settings.
            quick: fewer of each kind.
        """
        chosen: list[str] = []
        for rule in self.rules:
            matching = [
                name
                for name in known
                if self._rule(name) is rule and (name in develop) == (rule.split == "develop")
            ]
            chosen += matching[: rule.quick] if quick else matching
        return chosen

    def _rule(self, name: str) -> Rule | None:
        return next((rule for rule in self.rules if fnmatchcase(name, rule.pattern)), None)

    def streams(self, plan: Plan, quick: bool) -> tuple[Stream, ...]:
        """The streams of one task; none where no rule is meant for it."""
        rule = self._rule(plan.name)
        return tuple(rule.streams(plan, quick)) if rule is not None and rule.split == plan.split else ()
