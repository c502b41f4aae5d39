"""What one lane has learned, and the conversation with it: answer, learn, snapshot, restore, reset.

The live service, off-line runs, the profiler and users of the library all drive this one object.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from core.artifacts import part, tensors_hash
from core.types import Modality, Outcome, Query, QueryBatch
from stream.pipeline import BatchPass, Pipeline
from stream.retrieval import View
from stream.steering import Steering

Tensors = Mapping[str, NDArray[Any]]


class Session:
    """One lane's adapter, its alignment where its tower calls hooks, and what labels say of its weights.

    Starts from the source.

    Args:
        pipeline: shared by all sessions of a run.
        modality: of the queries that will be answered.
    """

    def __init__(self, pipeline: Pipeline, modality: Modality) -> None:
        self.modality: Modality = modality
        self._pipeline = pipeline
        self.adapter, self.aligner = pipeline.new_adapter(modality), pipeline.new_aligner(modality)
        self.steering = _steering(pipeline)
        """None where labels only measure."""
        self.expects_shift = False
        """Whether the last batch showed one. Saves a forward where it is right and decides nothing else."""
        self.lasting = 0
        """For how many batches a shift has been strong, see `stream.sampling`."""
        self._hash: str | None = None
        self.gallery = ""
        """Version that a batch is to be repeated with, as the journal has it; "" for the one in use."""

    def answer(self, batch: QueryBatch, repeated: bool = False) -> BatchPass:
        """Answers by what was learned so far; see `Pipeline.answer`."""
        retrieval = self._pipeline.retrieval
        if repeated and self.gallery:
            retrieval.use(self.gallery)
        if retrieval.turn is not None:
            batch = self._pipeline.admit.again(batch)
        return self._pipeline.answer(self, batch, repeated)

    def view(self, queries: Sequence[Query] = ()) -> View:
        """The gallery in use now, as the lane's next batch, of these queries, sees it."""
        correct = None if self.steering is None else self.steering.correction.correct
        return self._pipeline.retrieval.view(self.modality, queries, correct)

    def learn(self, answered: BatchPass) -> Outcome:
        """Learns from a batch that was answered; see `Pipeline.learn`."""
        outcome = self._pipeline.learn(self, answered)
        if self.steering is not None and self.steering.correction.observe(outcome):
            self.changed()
        return outcome

    def steer(self, planned: Mapping[str, int] | None = None) -> None:
        """Takes in the labels that came before the next batch; see `Steering.apply`."""
        if self.steering is not None and self.steering.apply(planned):
            self.changed()

    def snapshot(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """All state: tensors by name, and a small JSON-able dictionary."""
        tensors, meta = self.adapter.snapshot()
        out = {f"adapter.{name}": array for name, array in tensors.items()}
        state: dict[str, Any] = {"modality": self.modality, "method": self.adapter.name, "adapter": meta}
        if self.aligner is not None:
            tensors, state["aligner"] = self.aligner.snapshot()
            out.update({f"aligner.{name}": array for name, array in tensors.items()})
        if self.steering is not None:
            tensors, state["steering"] = self.steering.snapshot()
            out.update({f"steering.{name}": array for name, array in tensors.items()})
        if self.lasting:
            state["lasting"] = self.lasting
        return out, state

    def restore(self, tensors: Tensors, meta: Mapping[str, Any]) -> None:
        """Returns to a snapshot of a session of the same method and configuration."""
        self.adapter.restore(part(tensors, "adapter."), meta["adapter"])
        if self.aligner is not None:
            self.aligner.restore(part(tensors, "aligner."), meta["aligner"])
        if self.steering is not None:
            self.steering.restore(part(tensors, "steering."), meta.get("steering", {}))
        self.lasting = int(meta.get("lasting", 0))
        self.changed()

    def reset(self) -> None:
        """Forgets everything that was learned: back to the source."""
        self.adapter = self._pipeline.new_adapter(self.modality)
        self.aligner = self._pipeline.new_aligner(self.modality)
        self.steering = _steering(self._pipeline)
        self.expects_shift = False
        self.lasting = 0
        self.changed()

    def lasted(self, batches: int) -> None:
        """Notes for how many batches a shift has been strong, the newest included."""
        if batches != self.lasting:
            self.lasting = batches
            self.changed()

    def changed(self) -> None:
        """Forgets the cached hash after the state was written to."""
        self._hash = None

    def state_hash(self) -> str:
        """sha256 over all tensors and meta; names the state in answers and journal."""
        if self._hash is None:
            self._hash = tensors_hash(*self.snapshot())
        return self._hash


def _steering(pipeline: Pipeline) -> Steering | None:
    made = pipeline.retrieval.correction
    return None if made is None else Steering(made())
