"""Where a partition goes on whose state, journal and place in the group contradict each other.

Only on request (`qshift serve --accept-loss`). What fits is kept: a checkpoint that this configuration made
keeps its lanes. What follows it in the journal is given up: its queries are answered again, in other batches,
so that a second answer may differ from the first. Without such a checkpoint everything that was learned is
lost, and lanes start from the base model.
"""

from __future__ import annotations

from core.checkpoints import Checkpoint
from core.errors import ArtifactError
from core.identity import difference
from core.protocols import Source, StateStore
from core.records import Partition
from stream.owned import Owned


def accepted(
    source: Source, store: StateStore, partition: Partition, identity: str, first: int | None, now: float
) -> tuple[Owned, Checkpoint | None, int]:
    """The partition as it can go on, the checkpoint that it has its lanes from, and the generation to write.

    The generation is above all that were written before, which makes their checkpoints and boundaries void.

    Args:
        identity: of base model and configuration.
        first: where reading began in this run, where it has.
        now: seconds.
    """
    checkpoint = _checkpoint(store, partition)
    log_id = source.log_id()
    same_log = checkpoint is None or not (checkpoint.log_id and log_id) or checkpoint.log_id == log_id
    fits = checkpoint is not None and same_log and not difference(checkpoint.identity, identity)
    committed = source.committed(partition)
    start = committed[0] if committed is not None else first
    if checkpoint is not None:
        start = checkpoint.next_offset if same_log else None
    written = [source.generation() - 1, *_generations(store, partition)]
    if checkpoint is not None:
        written.append(checkpoint.generation)
    kept = checkpoint if fits else None
    return Owned(partition, kept, start, now), kept, max(written) + 1


def _checkpoint(store: StateStore, partition: Partition) -> Checkpoint | None:
    try:
        return store.load(partition)
    except ArtifactError:  # there are some, and none is whole
        return None


def _generations(store: StateStore, partition: Partition) -> list[int]:
    try:
        return [entry.generation for entry in store.journalled(partition, {})]
    except ArtifactError:
        return []
