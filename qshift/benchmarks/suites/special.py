"""Suites for one question each: choosing settings, gradient decoupling, and doing no harm."""

from __future__ import annotations

from collections.abc import Sequence

from qshift.benchmarks.streams import FULL, MEANINGLESS, Look, Poison, Segment, Stream
from qshift.benchmarks.suites.core import (
    BLUR,
    CONTRAST,
    NOISE,
    TYPOS,
    bursts,
    hostile,
    identical,
    mixed_users,
    recurrent,
    sequential,
    severe,
    tiny,
)
from qshift.benchmarks.suites.plan import CLEAN, Plan, Rule, Suite

DEVELOP_CORRUPTIONS = ("impulse_noise", "motion_blur", "brightness", "pixelate")
DEVELOP_SEVERE = ("gaussian_noise", "contrast", "brightness")
DEVELOP_SEVERITY = 3
"""Not reported by "core", which takes the two highest of all corruptions."""
DEVELOP_TYPED = (2, 6)
"""Of seven; "core" reports the middle one."""
POISON = (0.01, 0.1, 0.5)
DEVELOP_WORDS = ("synonym", "word_swap", "word_delete")


def choosing(plan: Plan, quick: bool) -> Sequence[Stream]:
    """Milder shifts than those reported, clean and sorted queries, and a mix."""
    batches = 2 if quick else 4
    found = [plan.clean(batches), plan.sorted(batches)]
    looks = tuple(Look(corruption=name, severity=DEVELOP_SEVERITY) for name in DEVELOP_CORRUPTIONS)
    found += [plan.single(look, "corruption", batches) for look in looks]
    mix = Segment("mixed", (CLEAN, *looks[:3]), FULL * batches)
    return [*found, *plan.shifts(batches), plan.stream("mixed-users", "diverse", "mixed", [mix])]


def worded(plan: Plan, quick: bool) -> Sequence[Stream]:
    """Texts: milder and harder misspelling than is reported, and changes that no repair can mend."""
    batches = 2 if quick else 4
    looks = [Look(corruption=kind, severity=level) for level in DEVELOP_TYPED for kind in TYPOS]
    looks += [Look(corruption=kind, severity=DEVELOP_TYPED[-1]) for kind in DEVELOP_WORDS]
    found = [plan.clean(batches), plan.sorted(batches)]
    return [*found, *(plan.single(look, "text", batches) for look in (looks[:1] if quick else looks))]


def kinds_apart(plan: Plan, quick: bool) -> Sequence[Stream]:
    """As `choosing`, with what parts kinds of query in another way: low contrast, and drawings of others."""
    batches = 2 if quick else 4
    strange = [Look(corruption=name, severity=DEVELOP_SEVERITY) for name in ("impulse_noise", "contrast")]
    looks = (CLEAN, *strange, *(Look(domain) for domain in plan.domains[:1]))
    mix = Segment("mixed", looks, FULL * batches)
    found = [*choosing(plan, quick), plan.single(strange[1], "corruption", batches)]
    return [*found, plan.stream("mixed-kinds", "diverse", "mixed", [mix])]


def severely(plan: Plan, quick: bool) -> Sequence[Stream]:
    """Where other pictures than those reported are held out: a few of the same shifts."""
    batches = 2 if quick else 3
    found = [plan.clean(batches), plan.sorted(batches)]
    found += [severe(plan, name, batches) for name in DEVELOP_SEVERE]
    return [*found, mixed_users(plan, 2 * batches), recurrent(plan, 1 if quick else 2)]


def forgetting(plan: Plan, quick: bool) -> Sequence[Stream]:
    """There and back: what a shift has taught, and what of the source it has cost."""
    batches = 2 if quick else 5
    if plan.modality == "text":
        looks = [Look(corruption=kind, severity=4) for kind in TYPOS[:1]]
    else:
        looks = [NOISE, CONTRAST, *(Look(domain) for domain in plan.domains)]
    found = []
    for look in looks:
        segments = [
            Segment(look.name, (look,), FULL * batches),
            Segment("clean again", (CLEAN,), FULL * 2),
        ]
        found.append(plan.stream(f"{look.name}-and-back", "sequential", "recurrent", segments))
    return [*found, *([recurrent(plan, batches)] if plan.pictures else []), plan.clean(batches)]


def poisoned(plan: Plan, share: float, batches: int) -> Stream:
    """Hostile queries of all kinds among clean and among shifted ones."""
    poison = Poison(tuple(Look(trick=trick) for trick in (*MEANINGLESS, "same")), share)
    segments = [
        Segment(name, (look,), FULL * batches, poison=poison)
        for name, look in (("clean", CLEAN), ("noise", NOISE))
    ]
    return plan.stream(f"poison-{share:.0%}".removesuffix("%"), "hostile", "safety", segments)


def harm(plan: Plan, quick: bool) -> Sequence[Stream]:
    """Everything that is not a shift, or is one only in part."""
    batches = 2 if quick else 4
    found = [plan.clean(batches), plan.sorted(batches), tiny(plan, 48 if quick else 96)]
    found += [identical(plan, batches), hostile(plan, batches)]
    if plan.pictures:
        found += [mixed_users(plan, batches), recurrent(plan, 2), sequential(plan), bursts(plan, 128)]
        found += [poisoned(plan, share, batches) for share in POISON]
        late = [Segment(NOISE.name, (NOISE,), FULL * batches)]
        found += [plan.stream("late-labels", "label-delay", "schedule", late, label_delay=FULL * 2)]
    return found


TEXTS = ("emoji/text-noto", "fashion/develop", "composition/develop")
DEVELOP = Suite(
    "develop",
    (
        Rule("emoji/picture-picture", choosing, quick=1),
        Rule("fashion-mnist/*", severely, split="develop"),
        Rule("distil/*", kinds_apart, split="develop"),
        Rule("coco/*", worded, quick=1, split="develop"),  # its base takes seconds
        *(Rule(task, worded, split="develop") for task in TEXTS),
        Rule("*", choosing, quick=2, split="develop"),
    ),
    first_seed=100,
)
DECOUPLING = Suite(
    "decoupling",
    (
        Rule("emoji/picture-picture", forgetting, quick=1),
        Rule("fashion/*", forgetting, quick=1),
        Rule("pacs/*", forgetting, quick=1),
        Rule("digits/*", forgetting, quick=1),
    ),
)


def chained(plan: Plan, quick: bool) -> Sequence[Stream]:
    """What an off-line adapter's base makes of queries that shift further."""
    batches = 2 if quick else 4
    looks = (NOISE,) if quick else (NOISE, CONTRAST, BLUR)
    found = [plan.clean(batches), *(plan.single(look, "corruption", batches) for look in looks)]
    return found if quick else [*found, plan.sorted(batches), mixed_users(plan, batches)]


def steered(plan: Plan, quick: bool) -> Sequence[Stream]:
    """Long enough for labels to come: each shift by itself, one after another, mixed, and none."""
    batches = 4 if quick else 10
    shift = [Look(domain) for domain in plan.domains[:1]] or [BLUR]
    parts = (("shift", shift[0]), ("noise", NOISE))
    turn = [Segment(name, (look,), FULL * batches // 2) for name, look in parts]
    found = [*plan.shifts(batches), plan.single(NOISE, "corruption", batches)]
    found += [plan.clean(batches // 2), mixed_users(plan, batches)]
    return [*found, plan.stream("shift-and-noise", "sequential", "recurrent", turn)]


CHAIN = Suite("chain", (Rule("chain/*", chained, quick=3),))
SAFETY = Suite("safety", (Rule("*", harm, quick=3),))
STEERED = Suite(
    "labels",
    (
        *(Rule(task, steered, split="develop") for task in ("emoji/openmoji-noto", "fashion-mnist/develop")),
        *(Rule(task, steered, split="develop") for task in ("office/amazon-webcam", "digits/usps-mnist")),
        *(
            Rule(pattern, steered, quick=1)
            for pattern in ("emoji/picture-picture", "office/*", "pacs/*", "digits/*", "fashion-mnist/*")
        ),
    ),
)
