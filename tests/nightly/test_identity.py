"""R14: answers and states are a function of the log: not of kills, of polls, or of the process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from how_to import environment
from identity import METHODS, SEEDS, VARIANTS, hashes

from tests.nightly.counts import Told, count, drawn, say

pytestmark = [pytest.mark.slow, pytest.mark.nightly]


def test_replays_are_identical(vector_world: Path) -> None:
    queries, rng, expected = count("identity_queries"), drawn("identity", 14), dict[str, tuple[str, str]]()
    told = Told("runs", len(METHODS) * len(SEEDS) * (1 + len(VARIANTS)))
    done = 0
    for method in METHODS:
        for seed in SEEDS:
            straight = hashes(vector_world, method, seed, queries)
            expected[f"{method}/{seed}"] = straight
            done += 1
            for variant in VARIANTS:
                steps, kills = chosen(variant, queries, rng)
                found = hashes(vector_world, method, seed, queries, steps, kills)
                assert found == straight, f"{method}, seed {seed}, {variant}: polls {steps}, kills {kills}"
                done += 1
                told(done)
    assert len(set(expected.values())) == len(expected), (
        "methods or seeds that differ in nothing show nothing"
    )
    assert elsewhere(vector_world, queries) == {name: list(pair) for name, pair in expected.items()}
    say(
        f"{len(METHODS)} methods x {len(SEEDS)} seeds x straight, {', '.join(VARIANTS)}, another process; "
        f"{queries} queries each: equal answers and states"
    )


def chosen(variant: str, queries: int, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """Sizes of polls, taken in turn, and before which queries the process dies."""
    steps = rng.integers(1, 98, 7).tolist() if variant in ("polls", "both") else [256]
    kills = sorted(rng.choice(queries, 8, replace=False).tolist()) if variant in ("kills", "both") else []
    return steps, kills


def elsewhere(world: Path, queries: int) -> Any:
    """The same runs in a new process."""
    code = f"import identity; identity.main({str(world)!r}, {queries})"
    toys = str(Path(__file__).parents[1] / "toys")
    done = subprocess.run(
        [sys.executable, "-c", code], env={**environment(), "OMP_NUM_THREADS": "1"}, cwd=toys,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
