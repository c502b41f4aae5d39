"""The suite "core": what every method is judged by, on real data.

Lengths are chosen for the budget of two cores: an adapted batch of 64 pictures takes about half a second
per inner step, and the suite runs some twenty methods with three seeds.
"""

from __future__ import annotations

from collections.abc import Sequence

from qshift.benchmarks.streams import FULL, Look, Segment, Stream
from qshift.benchmarks.suites.plan import CLEAN, Plan, Rule, Suite
from qshift.shifts.corruptions import IMAGE_CORRUPTIONS

NOISE, CONTRAST, BLUR = (
    Look(corruption=name, severity=4) for name in ("gaussian_noise", "contrast", "defocus_blur")
)
TYPOS = ("typos", "char_swap", "ocr", "char_delete")
MIDDLE = 4
"""The middle severity of the character shifts, which have seven."""
HIGHEST = (4, 5)
QUICK_CORRUPTIONS = ("gaussian_noise", "contrast", "defocus_blur")
ONCE = frozenset(
    ("office/amazon-caltech10", "office/caltech10-amazon", "office/dslr-amazon", "office/webcam-amazon")
)
"""Pairs that ask the clean queries of their source domain, which are the same in its other pairs."""


def everything(plan: Plan, quick: bool) -> Sequence[Stream]:
    """Picture to picture: all corruptions, the domain shifts, and every schedule."""
    names = QUICK_CORRUPTIONS if quick else tuple(IMAGE_CORRUPTIONS)
    batches = 2 if quick else 3
    found = [severe(plan, name, batches) for name in names]
    found += plan.shifts(batches)
    found += [plan.clean(batches), plan.sorted(batches), mixed_users(plan, 2 if quick else 6)]
    found += [recurrent(plan, 1 if quick else 2), tiny(plan, 48 if quick else 96)]
    found += [identical(plan, 1), hostile(plan, 1)]
    return found if quick else [*found, gradual(plan), sequential(plan)]


def distilled(plan: Plan, quick: bool) -> Sequence[Stream]:
    """The same pictures asked of another base: as `emoji_pictures`, fewer and shorter streams."""
    names = QUICK_CORRUPTIONS if quick else tuple(IMAGE_CORRUPTIONS)
    found = [severe(plan, name, 2) for name in names]
    return [*found, *plan.shifts(2), plan.clean(2), plan.sorted(2), mixed_users(plan, 3), recurrent(plan, 1)]


def severe(plan: Plan, name: str, batches: int) -> Stream:
    """A corruption at its two highest severities, in equal shares, shuffled."""
    looks = tuple(Look(corruption=name, severity=severity) for severity in HIGHEST)
    return plan.stream(name, "mixed-severity", "corruption", [Segment(name, looks, FULL * batches, "shares")])


def pictures(plan: Plan, quick: bool) -> Sequence[Stream]:
    """Picture queries of any other task: clean, sorted, three corruptions, its domain shifts."""
    batches = 2
    found = [plan.clean(batches), *plan.shifts(batches)]
    found += [
        plan.single(look, "corruption", batches) for look in ((NOISE,) if quick else (NOISE, CONTRAST, BLUR))
    ]
    return found if quick else [*found, plan.sorted(batches)]


def texts(plan: Plan, quick: bool) -> Sequence[Stream]:
    """Text queries: clean, sorted, and typos at the middle severity."""
    batches = 2
    kinds = TYPOS[:1] if quick else TYPOS
    typos = [plan.single(Look(corruption=kind, severity=MIDDLE), "text", batches) for kind in kinds]
    return [plan.clean(batches), *typos, *([] if quick else [plan.sorted(batches)])]


def queries(plan: Plan, quick: bool) -> Sequence[Stream]:
    """By what is asked."""
    return texts(plan, quick) if plan.modality == "text" else pictures(plan, quick)


def shift_only(plan: Plan, quick: bool) -> Sequence[Stream]:
    """A pair of domains: the shift, clean, and clean sorted; short, there are many."""
    batches = 2
    return [*plan.shifts(batches), plan.clean(batches), *([] if quick else [plan.sorted(batches)])]


def office(plan: Plan, quick: bool) -> Sequence[Stream]:
    """As `shift_only`, with clean queries once for each source domain."""
    return shift_only(plan, quick) if plan.name in ONCE else plan.shifts(2)


# -- schedules -----------------------------------------------------------------------------------------


def mixed_users(plan: Plan, batches: int) -> Stream:
    """Every query is shifted in a way of its own: clean, noise, contrast, or the first domain shift."""
    looks = (CLEAN, NOISE, CONTRAST, *(Look(domain) for domain in plan.domains[:1]))
    return plan.stream("mixed-users", "diverse", "mixed", [Segment("mixed", looks, FULL * batches)])


def recurrent(plan: Plan, batches: int) -> Stream:
    """A B A B: does the second A start where the first ended?"""
    looks = (("noise", NOISE), ("contrast", CONTRAST))
    segments = [
        Segment(f"{name} {visit}", (look,), FULL * batches) for visit in (1, 2) for name, look in looks
    ]
    return plan.stream("recurrent-noise-contrast", "recurrent", "recurrent", segments)


def gradual(plan: Plan) -> Stream:
    """Noise from severity 1 to 5, a batch each."""
    segments = [
        Segment(f"severity {level}", (Look(corruption="gaussian_noise", severity=level),), FULL)
        for level in range(1, 6)
    ]
    return plan.stream("gradual-noise", "gradual", "schedule", segments)


def sequential(plan: Plan) -> Stream:
    """One shift after the other without a reset, and clean again at the end."""
    looks = (("noise", NOISE), ("contrast", CONTRAST), *((d, Look(d)) for d in plan.domains[:1]))
    parts = (("clean before", CLEAN), *looks, ("clean again", CLEAN))
    segments = [Segment(name, (look,), FULL) for name, look in parts]
    return plan.stream("sequential", "sequential", "recurrent", segments)


def tiny(plan: Plan, count: int) -> Stream:
    """Clean queries in batches of 1 to 8."""
    return plan.stream("tiny-batches", "tiny", "safety", [Segment("clean", (CLEAN,), count)], "tiny")


def bursts(plan: Plan, count: int) -> Stream:
    """A full batch, then a few tiny ones, over and over; half the queries are noisy."""
    return plan.stream("bursts", "bursts", "schedule", [Segment("mixed", (CLEAN, NOISE), count)], "bursts")


def identical(plan: Plan, batches: int) -> Stream:
    """One query over and over, then honest ones."""
    segments = [
        Segment("identical", (Look(trick="same"),), FULL * batches),
        Segment("clean after", (CLEAN,), FULL),
    ]
    return plan.stream("identical-queries", "identical", "safety", segments)


def hostile(plan: Plan, batches: int) -> Stream:
    """Half of the queries carry nothing or repeat one gallery item, among honest ones; then honest ones."""
    looks = (CLEAN, CLEAN, Look(trick="noise"), Look(trick="repeated"))
    segments = [Segment("hostile", looks, FULL * batches), Segment("clean after", (CLEAN,), FULL)]
    return plan.stream("hostile-queries", "hostile", "safety", segments)


CORE = Suite(
    "core",
    (
        Rule("emoji/picture-picture", everything, quick=1),
        Rule("emoji/text-picture", texts, quick=1),
        Rule("emoji/*", shift_only),
        Rule("fashion/*", queries, quick=1),
        Rule("coco/*", texts, quick=1),
        Rule("pacs/*", shift_only, quick=1),
        Rule("office/*", office),
        Rule("digits/*", shift_only, quick=1),
        Rule("composition/*", queries, quick=1),
        Rule("fashion-mnist/*", everything),  # not in the quick suite: its base takes minutes
        Rule("distil/picture-picture", distilled),
    ),
)
