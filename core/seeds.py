"""One generator per random choice, keyed by what the choice is about, never by when it is made."""

from __future__ import annotations

import hashlib
import json

import numpy as np


def generator(seed: int, sample: str | int, purpose: str, severity: float = 0.0) -> np.random.Generator:
    """Generator of one random choice.

    The key is hashed with blake2b (Python's own `hash` differs between processes), so what is drawn for a
    sample does not depend on batch size, order or process.

    Args:
        seed: of the run.
        sample: identity of the sample; 7 and "7" are different samples.
        purpose: what is drawn, for example "noise" or "jitter".
        severity: amount of the shift; 1 and 1.0 are the same.
    """
    key = json.dumps([int(seed), sample, purpose, float(severity)])
    return np.random.default_rng(
        int.from_bytes(hashlib.blake2b(key.encode(), digest_size=16).digest(), "big")
    )
