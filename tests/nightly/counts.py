"""How often each bar of reliability is tried: `QSHIFT_NIGHTLY=long make nightly` for the whole figures."""

from __future__ import annotations

import os

COUNTS = {
    "histories": (10_000, 10_000),  # R1
    "worker_kills": (15, 200),  # R2
    "queries_between_kills": (60, 500),  # R2: at least 100,000 in all
    "broker_kills": (5, 50),  # R3
    "envelopes": (100_000, 1_000_000),  # R5
    "pictures": (5_000, 100_000),  # R6
    "flips": (2_000, 10_000),  # R7
    "sigterms": (20, 100),  # R12
    "tenants": (500, 10_000),  # over a hundredth of as many live lanes
}
"""Short and long form."""


def count(name: str) -> int:
    """Of the form that `QSHIFT_NIGHTLY` names: `short` (default) or `long`.

    Raises:
        ValueError: it names another.
    """
    form = os.environ.get("QSHIFT_NIGHTLY", "short")
    if form not in ("short", "long"):
        raise ValueError(f"QSHIFT_NIGHTLY is 'short' or 'long', not {form!r}")
    return COUNTS[name][form == "long"]
