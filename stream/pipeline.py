"""What happens to one micro-batch: answer(batch), then learn(answered). Knows protocols only.

The frozen twin's forward serves three ends: it is the baseline that every figure is compared with, the
reference of gradient decoupling, and a voter in the served answer (fusion).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.config import Config
from core.hooks import Watch
from core.protocols import Adapter, Aligner, Encoder
from core.types import AdaptationStep, Modality, Outcome, QueryBatch
from stream.patches import shuffle_patches
from stream.preparation import Preparation, Repair, read_again
from stream.retrieval import Retrieval
from stream.stopwatch import Stopwatch

if TYPE_CHECKING:
    from core.protocols import Hook, Params
    from stream.session import Other, Session

Entropy = Callable[[Modality, Tensor, Tensor, Tensor], Tensor]
"""(modality, queries [B, D], neighbours [B, D], mask [B]) -> refined entropy [B]."""


class Pipeline:
    """Stateless apart from what it was built with; sessions bring what was learned.

    Args:
        encoders: one per modality served.
        retrieval: looks at the gallery once per batch; it may be swapped between batches.
        new_adapter, new_aligner: fresh state for a session of a modality.
        entropy: the refined entropy of the objectives, for drift.
        repair: mends misspelt texts; None leaves them.
    """

    def __init__(
        self, config: Config, encoders: Mapping[Modality, Encoder], retrieval: Retrieval,
        new_adapter: Callable[[Modality], Adapter], new_aligner: Callable[[Modality], Aligner | None],
        entropy: Entropy, device: str = "cpu", repair: Repair | None = None,
    ) -> None:  # fmt: skip
        self.config, self.encoders, self.entropy = config, encoders, entropy
        self.new_adapter, self.new_aligner, self.device = new_adapter, new_aligner, device
        self.retrieval, self.admit = retrieval, Preparation(encoders, repair, config.answer.shortlist)
        self.other: Other | None = None

    def rows(self, count: int) -> int:
        """Padded rows of a batch: a power of two from 8 up to the batch size, so that shapes are few."""
        rows = max(8, 1 << max(count - 1, 0).bit_length())
        return max(count, min(rows, self.config.batch.size))

    def answer(self, session: Session, batch: QueryBatch, repeated: bool = False) -> BatchPass:
        """Answers a batch. Changes nothing, except where `answer_from` says learn first.

        A batch without evidence of a shift is answered by the frozen twin, which is what fusion would serve
        anyway: the adapted twin is not asked, and texts that were mended are read by the source parameters.
        """
        answered = BatchPass(self, session, batch, repeated)
        answered.ask_frozen()
        if not answered.quiet:
            answered.align()
            answered.encode_adapted()
            if session.adapter.learns_first:
                answered.learn_first()
        answered.ask_adapted()
        answered.fuse()
        return answered

    def learn(self, session: Session, answered: BatchPass) -> Outcome:
        """Updates the session and says all that is known of the batch; a quiet one teaches nothing."""
        with answered.timed("learn"):
            if not answered.quiet:
                if not session.adapter.learns_first:
                    answered.update()
                answered.take_in()
                session.changed()
        return answered.outcome()


class BatchPass:
    """One batch on its way through the pipeline: a `core.protocols.Pass` for adapters, then an `Outcome`."""

    def __init__(self, pipeline: Pipeline, session: Session, batch: QueryBatch, repeated: bool) -> None:
        self._pipeline, self._session, self.batch, self._repeated = pipeline, session, batch, repeated
        self._encoder, self.timed = pipeline.encoders[batch.modality], Stopwatch()
        self._view = view = session.view(batch.queries)
        self.neighbours, self.shortlist, self.gallery = view.neighbours, view.shortlist, view.whole
        self._rows, self._forwards = pipeline.rows(len(batch)), 0
        self.mask = torch.arange(self._rows, device=pipeline.device) < len(batch)
        self.ids = tuple(str(query.at) for query in batch.queries)
        self.gallery_version, self.state_hash = self._view.version, session.state_hash()
        self._mended = np.array([bool(query.repaired) for query in batch.queries])
        self._params = session.adapter.parameters()
        self._early = () if session.aligner is None else session.aligner.early
        self._trainable = any(tensor.requires_grad for tensor in self._params.values())
        self._watch: Watch | None = None
        self.aligned: Hook | None = None
        self._moved: Tensor | None = None
        self._ready: Tensor | None = None
        self._step: AdaptationStep | None = None

    # -- steps, in order --------------------------------------------------------------------------------

    def ask_frozen(self) -> None:
        """The frozen twin answers what was asked; all else starts from what was meant (`source`)."""
        queries, early, session = self.batch.queries, self._early, self._session
        # To keep what enters early layers costs a twentieth of a forward: not on clean traffic.
        self._watch = Watch(early) if early and session.expects_shift else None
        with self.timed("collate"):
            self._asked = self._inputs = self._encoder.collate([q.prepared for q in queries], self._rows)
        with self.timed("encode_frozen"):
            self._plain = self.source = self._forward(self._asked, None, self._watch)
            if self._mended.any():
                self._inputs, self.source = read_again(self._encoder, queries, self._plain)
                self._forwards += 1
        with self.timed("search"):
            self.frozen = self._view.twin(self._plain, len(queries))
            self.quiet = session.orders.frozen or self._view.quiet(self.frozen, self._mended)
        session.expects_shift = not self.quiet

    def align(self) -> None:
        """Alignment for this batch; changes nothing that is remembered."""
        aligner, early = self._session.aligner, self._early
        if aligner is None:
            return
        if early and self._watch is None:  # the onset of a shift
            self._watch = Watch(early)
            with self.timed("encode_frozen"):
                self._forward(self._asked, None, self._watch)
        with self.timed("encode_adapted"):
            seen = () if self._watch is None else self._watch.inputs()
            self.aligned = aligner.begin(self.source, self.mask, seen)
            if self._session.passes == 2:
                with torch.no_grad():
                    first = self._forward(self._inputs, self._params, self.aligned)
                self.aligned = aligner.again(self.aligned, first, self.mask)

    def encode_adapted(self) -> None:
        """The forward that answers; its graph serves the first step of learning."""
        learns = self._trainable and len(self.batch) >= self._pipeline.config.batch.floor
        if self.aligned is not None or self._params:
            with self.timed("encode_adapted"), nullcontext() if learns else torch.no_grad():
                self._moved = self._forward(self._inputs, self._params, self.aligned)
        self._ready = self.source if self._moved is None else self._moved

    def learn_first(self) -> None:
        """`answer_from = "paper"`: the answer comes from the parameters after the update."""
        adapter = self._session.adapter
        with self.timed("learn"):
            self._step, self._moved = adapter.update(self)
            self._session.changed()
        if self._moved is None:
            with self.timed("encode_adapted"), torch.no_grad():
                self._moved = self._forward(self._inputs, adapter.parameters(), self.aligned)

    def ask_adapted(self) -> None:
        """The adapted twin, where it was asked; else the frozen one stands for it."""
        self.adapted = self.frozen
        if not self.quiet or self._mended.any():
            with self.timed("search"):
                features = (self.source if self._moved is None else self._moved).detach()
                if not self.quiet:
                    features = self._session.adapter.transform(features, self)
                self.adapted = self._view.twin(features, len(self.batch))

    def fuse(self) -> None:
        """What is served; and the entropy of the frozen twin, for drift."""
        with self.timed("search"):
            self.served, self.weights = self._view.together(self.frozen, self.adapted, self._mended)
            self._frozen_entropy = self._entropy()

    def update(self) -> None:
        """One update of the adapter, unless the batch is too small for any."""
        if len(self.batch) < self._pipeline.config.batch.floor:
            self._step = AdaptationStep(False, "too-small")
        else:
            self._step, _ = self._session.adapter.update(self)

    def take_in(self) -> None:
        """Alignment remembers the batch: all there is to learn in a lane without parameters."""
        aligner = self._session.aligner
        taken = aligner is not None and self.aligned is not None and aligner.commit(self.aligned)
        if taken and not self._params and self._step is not None and not self._step.updated:
            self._step = AdaptationStep(True)

    def outcome(self) -> Outcome:
        """All that is known, once learning is over."""
        why = "frozen" if self._session.orders.frozen else "no-shift"
        step = AdaptationStep(False, why) if self.quiet else self._step
        return Outcome(
            self.batch, self.frozen, self.adapted, self.served, self.weights,
            self.gallery_version, self.state_hash, self._frozen_entropy,
            step, dict(self.timed.seconds), self._forwards, self.quiet, self._repeated,
        )  # fmt: skip

    # -- what adapters see ------------------------------------------------------------------------------

    def encode(self, params: Params) -> Tensor:
        """Features [B, D] under given parameters, alignment included.

        The answering forward serves the first inner step, as long as the parameters are the same; a graph
        serves once, features without one for ever.
        """
        ready = self._ready if params is self._params else None
        if ready is not None and ready.requires_grad:
            self._ready = None
        if ready is not None and (ready.requires_grad or not self._trainable):
            return ready
        return self._forward(self._inputs, params, self.aligned)

    def scrambled(self, params: Params) -> Tensor | None:
        if self.batch.modality != "image":
            return None
        shuffled = shuffle_patches(self._inputs, self.ids, self._pipeline.config.seed)
        return self._forward(shuffled, params, self.aligned)

    def _forward(self, inputs: Any, params: Params | None, hook: Hook | None = None) -> Tensor:
        self._forwards += 1
        return self._encoder.encode(inputs, params, hook)

    @torch.no_grad()
    def _entropy(self) -> NDArray[np.float32]:
        """Refined entropy [n] of the frozen features of the real rows."""
        nearest = self._view.nearest(self._plain, self.frozen.hits)
        entropy = self._pipeline.entropy(self.batch.modality, self._plain, nearest, self.mask)
        return entropy[: len(self.batch)].cpu().numpy().astype(np.float32)
