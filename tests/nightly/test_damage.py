"""Damaged envelopes and journals, as many as the bars R5 and R7 ask for."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from resident import resident_mib

from core.errors import ArtifactError
from stream.directory import DirectoryStore
from stream.states import checkpoint_from_bytes, checkpoint_to_bytes
from tests.nightly.counts import count
from tests.stream import test_codec, test_stores

pytestmark = [pytest.mark.slow, pytest.mark.nightly]

root = test_codec.root
GROWTH_MIB = 150


def test_envelopes_never_raise_and_hold_no_memory(root: Path) -> None:
    """R5. Each is a query, a label, or a dead letter with the right coordinates."""
    test_codec.mutants_never_raise(root, 20_000)
    before = resident_mib()
    test_codec.mutants_never_raise(root, count("envelopes"), seed=5)
    growth = resident_mib() - before
    print(f"{count('envelopes')} envelopes, memory {growth:+.1f} MiB")
    assert growth <= GROWTH_MIB


def test_flipped_cuts_are_refused() -> None:
    """R7. One to four bytes of a cut are other bytes."""
    whole, draw = checkpoint_to_bytes(test_stores.small()), random.Random(7)
    for _ in range(count("flips")):
        bad = bytearray(whole)
        for at in draw.sample(range(len(bad)), draw.randrange(1, 5)):
            bad[at] ^= draw.randrange(1, 256)
        with pytest.raises(ArtifactError):
            checkpoint_from_bytes(bytes(bad))
    print(f"{count('flips')} damaged cuts, 0 accepted")


def test_flipped_journals_are_never_accepted(tmp_path: Path) -> None:
    """R7. What is read is a beginning of what was written, never all of it and nothing else."""
    store = DirectoryStore(tmp_path)
    written = [test_stores.entry(seq) for seq in range(4)]
    for one in written:
        store.journal(one)
    store.close()
    (path,) = tmp_path.rglob("journal.jsonl")
    whole, draw, refused = path.read_bytes(), random.Random(8), 0
    for _ in range(count("flips")):
        bad = bytearray(whole)
        bad[draw.randrange(len(bad))] ^= 1 << draw.randrange(8)
        path.write_bytes(bytes(bad))
        try:
            found = DirectoryStore(tmp_path).journalled(test_stores.HERE, {})
        except ArtifactError:
            refused += 1
        else:
            assert found == written[: len(found)] and len(found) < len(written)
    print(f"{count('flips')} damaged journals: {refused} refused, the others cut at their torn end")
