"""What one lane has learned, and the conversation with it: answer, learn, snapshot, restore, reset.

The live service, off-line runs, the profiler and users of the library all drive this one object.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from core.artifacts import part, tensors_hash
from core.errors import ConfigError
from core.protocols import Adapter, Aligner
from core.types import Modality, Outcome, Query, QueryBatch
from stream.orders import Orders
from stream.pipeline import BatchPass, Pipeline
from stream.retrieval import Correct, View
from stream.steering import Steering

Tensors = Mapping[str, NDArray[Any]]
Other = Callable[[str, Modality], tuple[Adapter, Aligner | None, int]]
"""(method, modality) -> a fresh adapter, alignment and its passes. Raises ConfigError for no such method."""


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
        self.orders = Orders()
        """What commands have set."""
        self.passes: int = pipeline.config.adapt.align.passes
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
        self.learns = True
        """Whether a gradient may be taken of the next batch, as its boundary in the journal has it."""

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
        return self._pipeline.retrieval.view(self.modality, queries, self._correct())

    def _correct(self) -> Correct | None:
        """What has the last word on weights: what labels have taught, within the bound of commands."""
        correct = None if self.steering is None else self.steering.correction.correct
        if self.orders.weight is None and not self.orders.frozen:
            return correct
        bound = self.orders.bound
        return bound if correct is None else lambda weights: bound(correct(weights))

    @property
    def mixes(self) -> bool:
        """Whether answers come from both twins, by a weight."""
        return self._pipeline.config.answer.fuse != "none"

    @property
    def skips(self) -> bool:
        """Whether a batch is not learned from while another full one waits: of methods with gradients."""
        wanted = self._pipeline.config.adapt.when_behind == "skip" and not self.adapter.learns_first
        return wanted and bool(self.adapter.parameters())

    def refusal(self, count: int) -> str:
        """Why nothing is learned from a batch of so many queries; "" where something is."""
        if count < self._pipeline.config.batch.floor:
            return "too-small"
        return "" if self.learns else "behind"

    def learn(self, answered: BatchPass) -> Outcome:
        """Learns from a batch that was answered; see `Pipeline.learn`."""
        outcome = self._pipeline.learn(self, answered)
        steering = None if self.orders.frozen else self.steering
        if steering is not None and steering.correction.observe(outcome):
            self.changed()
        return outcome

    def steer(self, planned: Mapping[str, int] | None = None) -> None:
        """Takes in the labels that came before the next batch; see `Steering.apply`."""
        if self.steering is not None and self.steering.apply(planned, not self.orders.frozen):
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
        if orders := self.orders.snapshot():
            state["orders"] = orders
        if self.lasting:
            state["lasting"] = self.lasting
        return out, state

    def restore(self, tensors: Tensors, meta: Mapping[str, Any]) -> None:
        """Returns to a snapshot of a session of the same configuration."""
        orders = Orders.restored(meta.get("orders", {}))
        if orders.method != self.orders.method:
            self._begin(orders.method)
        self.orders = orders
        self.adapter.restore(part(tensors, "adapter."), meta["adapter"])
        if self.aligner is not None:
            self.aligner.restore(part(tensors, "aligner."), meta["aligner"])
        if self.steering is not None:
            self.steering.restore(part(tensors, "steering."), meta.get("steering", {}))
        self.lasting = int(meta.get("lasting", 0))
        self.changed()

    def go_back(self, tensors: Tensors, meta: Mapping[str, Any]) -> None:
        """Unlearns down to an earlier snapshot. What commands have set stays, but for the method.

        Labels go on where they are: what came meanwhile does not come again, and a query that waits for its
        label no longer does not wait again.
        """
        self._begin(meta.get("orders", {}).get("method", ""))
        self.adapter.restore(part(tensors, "adapter."), meta["adapter"])
        if self.aligner is not None:
            self.aligner.restore(part(tensors, "aligner."), meta["aligner"])
        if self.steering is not None:
            self.steering.correction.go_back(part(tensors, "steering."), meta["steering"])
        self.lasting = int(meta.get("lasting", 0))
        self.changed()

    def forget(self) -> None:
        """As `reset`, in a log: labels go on where they are, and what commands have set stays."""
        self._begin(self.orders.method)
        made = self._pipeline.retrieval.correction
        if self.steering is not None and made is not None:
            self.steering.correction = made()
        self.changed()

    def switch(self, method: str) -> None:
        """Learns by another method from here on, from the source; "" for that of the configuration.

        Raises:
            ConfigError: there is no such method here; nothing was changed.
        """
        self._begin(method)
        self.forget()

    def _begin(self, method: str) -> None:
        """A fresh adapter and alignment of a method."""
        pipeline = self._pipeline
        if not method:
            adapter, aligner = pipeline.new_adapter(self.modality), pipeline.new_aligner(self.modality)
            passes: int = pipeline.config.adapt.align.passes
        elif pipeline.other is None:
            raise ConfigError("methods cannot be changed here: start again with another adapt.method")
        else:
            adapter, aligner, passes = pipeline.other(method, self.modality)
        self.adapter, self.aligner, self.passes, self.orders.method = adapter, aligner, passes, method
        self.expects_shift = False
        self.lasting = 0

    def reset(self) -> None:
        """Forgets everything that was learned: back to the source."""
        self._begin(self.orders.method)
        self.steering = _steering(self._pipeline)
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
