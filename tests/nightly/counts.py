"""How often each bar of reliability is tried: `QSHIFT_NIGHTLY=long make nightly` for the whole figures."""

from __future__ import annotations

import os
import time

import numpy as np

COUNTS = {
    "histories": (10_000, 10_000),  # R1
    "worker_kills": (15, 200),  # R2
    "queries_between_kills": (60, 500),  # R2: at least 100,000 in all
    "honest_records": (4_000, 100_000),  # of verify-log, with twenty kills
    "broker_kills": (5, 50),  # R3
    "commit_kills": (2, 10),  # R3, inside a checkpoint's commit
    "membership_changes": (10, 300),  # R4
    "envelopes": (100_000, 1_000_000),  # R5
    "envelopes_served": (2_000, 50_000),  # R5, through a service
    "pictures": (5_000, 100_000),  # R6
    "bombs": (26, 260),  # R6, through a service, of pictures below the caps
    "flips": (2_000, 10_000),  # R7
    "outage_seconds": (20, 600),  # R10
    "long_steps": (1, 10),  # R11, of 20 s each
    "sigterms": (20, 100),  # R12
    "outage_sigterms": (2, 20),  # R12, while Kafka is away
    "soak_minutes": (3, 60),  # R13, after it has warmed up
    "batches_of_partition": (6, 120),  # R15, of 16 queries each, in each of four partitions
    "tenants": (500, 10_000),  # over a hundredth of as many live lanes
    "identity_queries": (200, 4_000),  # R14, for each of three methods and three seeds
}
"""Short and long form."""


def count(name: str) -> int:
    """Of the form that `QSHIFT_NIGHTLY` names: `short` (default) or `long`.

    `QSHIFT_COUNTS=worker_kills=40,outage_seconds=60` sets some to others.

    Raises:
        ValueError: it names another, or a count that is none.
    """
    form = os.environ.get("QSHIFT_NIGHTLY", "short")
    if form not in ("short", "long"):
        raise ValueError(f"QSHIFT_NIGHTLY is 'short' or 'long', not {form!r}")
    own = dict(one.split("=") for one in os.environ.get("QSHIFT_COUNTS", "").split(",") if one)
    if unknown := own.keys() - COUNTS.keys():
        raise ValueError(f"QSHIFT_COUNTS names {sorted(unknown)}: one of {', '.join(COUNTS)}")
    return int(own[name]) if name in own else COUNTS[name][form == "long"]


def drawn(what: str, seed: int) -> np.random.Generator:
    """A generator for all that a test draws. Its seed is printed; `QSHIFT_NIGHTLY_SEED` gives another."""
    seed = int(os.environ.get("QSHIFT_NIGHTLY_SEED", str(seed)))
    say(f"{what}: QSHIFT_NIGHTLY_SEED={seed}")
    return np.random.default_rng(seed)


def say(line: str) -> None:
    """At once, also where output is kept back."""
    print(line, flush=True)


class Told:
    """How far a count is: a line for every tenth of it."""

    def __init__(self, what: str, of: float) -> None:
        self._what, self._of, self._said, self._began = what, of, 0, time.monotonic()

    def __call__(self, done: float) -> None:
        if (tenth := int(10 * done / self._of)) > self._said:
            self._said = tenth
            say(f"{self._what}: {done:.0f} of {self._of:.0f} after {time.monotonic() - self._began:.0f} s")
