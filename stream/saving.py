"""Checkpoints: each partition's by itself, or those of all partitions in one transaction."""

from __future__ import annotations

from core.checkpoints import Checkpoint
from core.protocols import Sink, Source, StateStore
from stream.contradictions import note
from stream.events import Saved
from stream.ownership import Owned, Ownership
from stream.report import Report
from stream.transaction import Transaction
from stream.trouble import Trouble

FLUSH_SECONDS = 60.0
CHECKPOINT_SECONDS = 30.0
"""After so long a checkpoint is made of fewer than `state.every_batches` batches."""


class Saving:
    """Saves what was done.

    Args:
        transaction: what sink and store write to and the offsets go with; None: each is durable by itself.
    """

    def __init__(
        self, source: Source, sink: Sink, store: StateStore, ours: Ownership, trouble: Trouble,
        report: Report, transaction: Transaction | None = None,
    ) -> None:  # fmt: skip
        self._source, self._sink, self._store, self._ours = source, sink, store, ours
        self._trouble, self._report, self._transaction = trouble, report, transaction

    def checkpoint(self, owned: Owned) -> None:
        """1 answers flushed, 2 state saved, 3 offsets committed; in a transaction all three at once."""
        if self._transaction is not None:
            self._commit(self._transaction, owned)
            return
        self._sink.flush(FLUSH_SECONDS)
        made = self._save(owned)
        self._source.commit({owned.partition: made.next_offset}, owned.note)
        self._made(owned, made)

    def idle(self) -> None:
        """What was done stays unsaved for a while at most, also where it was to refuse, or fewer batches.

        In a transaction nobody sees it before: it is saved when nothing more is to be done at once.
        """
        if self._transaction is not None:
            self._transaction.ready()
            if self._transaction.open or self._changed():
                self._commit(self._transaction)
            return
        for owned in list(self._ours.owned.values()):
            if self._ours.clock() - owned.checkpoint_at >= CHECKPOINT_SECONDS and owned.changed():
                self.checkpoint(owned)

    def finish(self) -> None:
        """The last checkpoints."""
        if self._transaction is not None:
            self.idle()
            return
        for owned in self._changed():
            self.checkpoint(owned)
        self._sink.flush(FLUSH_SECONDS)

    def drop(self) -> None:
        """Forgets what is in memory and what nobody sees yet: all is loaded again from what is committed."""
        if self._transaction is not None:
            self._transaction.drop()
        self._ours.drop()

    def _changed(self) -> list[Owned]:
        return [owned for owned in self._ours.owned.values() if owned.changed()]

    def _commit(self, transaction: Transaction, *due: Owned) -> None:
        """Of all partitions: an answer is committed with the state that it left, whichever was due."""
        all_due = [owned for owned in self._ours.owned.values() if owned in due or owned.changed()]
        made = {owned: self._save(owned) for owned in all_due}
        transaction.commit({owned.partition: (one.next_offset, owned.note) for owned, one in made.items()})
        for owned, one in made.items():
            self._made(owned, one)

    def _save(self, owned: Owned) -> Checkpoint:
        made = self._ours.checkpoint(owned)
        self._store.save(made)
        owned.note = note(made, self._store.place)
        return made

    def _made(self, owned: Owned, checkpoint: Checkpoint) -> None:
        owned.checkpoint_made(checkpoint, self._ours.clock())
        self._trouble.delivered(owned.partition)
        self._report.checkpoints += 1
        self._ours.tell(Saved(checkpoint.nbytes))
