"""What happens to one micro-batch: answer(batch), then learn(answered). Knows protocols only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from core.config import Config
from core.protocols import Adapter, Aligner, Encoder
from core.types import AdaptationStep, Modality, Outcome, QueryBatch
from stream.frozen import Entropy, FrozenSide
from stream.patches import shuffle_patches
from stream.preparation import Preparation, Repair
from stream.retrieval import Retrieval
from stream.sampling import EVERY, Sampling, strong
from stream.stopwatch import Stopwatch

if TYPE_CHECKING:
    from core.protocols import Hook, Params
    from stream.session import Other, Session


class Pipeline:
    """Stateless apart from what it was built with; sessions bring what was learned.

    Args:
        encoders: one per modality served.
        retrieval: looks at the gallery once per batch; it may be swapped between batches.
        new_adapter, new_aligner: fresh state for a session of a modality.
        entropy: the refined entropy of the objectives, for drift.
        repair: mends misspelt texts; None leaves them.
        sampling: which rows the frozen twin is asked for.
    """

    def __init__(
        self, config: Config, encoders: Mapping[Modality, Encoder], retrieval: Retrieval,
        new_adapter: Callable[[Modality], Adapter], new_aligner: Callable[[Modality], Aligner | None],
        entropy: Entropy, device: str = "cpu", repair: Repair | None = None, sampling: Sampling = EVERY,
    ) -> None:  # fmt: skip
        self.config, self.encoders, self.entropy = config, encoders, entropy
        self.new_adapter, self.new_aligner = new_adapter, new_aligner
        self.device, self.sampling = device, sampling
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
        if not answered.strong and answered.ask_others():  # a sample does not speak for the others
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
            session.lasted(self.sampling.lasted(session, answered.strong))
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
        self._params = session.adapter.parameters()
        self._early = () if session.aligner is None else session.aligner.early
        self._trainable = any(tensor.requires_grad for tensor in self._params.values())
        self.aligned: Hook | None = None
        self._moved: Tensor | None = None
        self._ready: Tensor | None = None
        wanted = pipeline.sampling.rows(session, batch)
        self.side = FrozenSide(self._encoder, view, batch, self._rows, wanted, self._forward, self.timed)
        self._step: AdaptationStep | None = None

    def ask_frozen(self) -> None:
        """The frozen twin answers what was asked, or a sample of it."""
        # To keep what enters early layers costs a twentieth of a forward: not on clean traffic.
        quiet = self.side.ask(self._early if self._session.expects_shift else ())
        self.quiet = quiet or self._session.orders.frozen
        self._session.expects_shift = not self.quiet

    def ask_others(self) -> bool:
        """What a sample has left out; False where there was no sample."""
        if self.side.paired.all():
            return False
        self.quiet = self.side.ask_others()
        self._session.expects_shift = not self.quiet
        return True

    def align(self) -> None:
        """Alignment for this batch, from what was meant; changes nothing that is remembered."""
        aligner, side = self._session.aligner, self.side
        if aligner is None:
            return
        seen = side.early(self._early) if self._early else ()
        with self.timed("encode_adapted"):
            self.aligned = aligner.begin(side.meant, self.mask, seen)
            if self._session.passes == 2:
                with torch.no_grad():
                    first = self._forward(side.inputs, self._params, self.aligned)
                self.aligned = aligner.again(self.aligned, first, self.mask)

    def encode_adapted(self) -> None:
        """The forward that answers; its graph serves the first step of learning."""
        learns = self._trainable and not self._session.refusal(len(self.batch))
        if self.aligned is not None or self._params:
            with self.timed("encode_adapted"), nullcontext() if learns else torch.no_grad():
                self._moved = self._forward(self.side.inputs, self._params, self.aligned)
        self._ready = self.side.meant if self._moved is None else self._moved

    def learn_first(self) -> None:
        """`answer_from = "paper"`: the answer comes from the parameters after the update."""
        adapter = self._session.adapter
        with self.timed("learn"):
            self._step, self._moved = adapter.update(self)
            self._session.changed()
        if self._moved is None:
            with self.timed("encode_adapted"), torch.no_grad():
                self._moved = self._forward(self.side.inputs, adapter.parameters(), self.aligned)

    def ask_adapted(self) -> None:
        """The adapted twin, where it was asked; else the frozen one stands for it."""
        if self.quiet and not self.side.mended.any():
            self.frozen = self.adapted = self.side.twin()
            return
        features = (self.source if self._moved is None else self._moved).detach()
        with self.timed("search"):
            if not self.quiet:
                features = self._session.adapter.transform(features, self)
            self.frozen, self.adapted = self.side.twins(features)

    def fuse(self) -> None:
        """What is served, by the evidence of the rows that both twins read; and the frozen twin's entropy."""
        with self.timed("search"):
            alone = self.side.mended | ~self.side.paired
            self.served, self.weights = self._view.together(self.frozen, self.adapted, alone)
            self._frozen_entropy = self.side.entropy(self._pipeline.entropy, self.mask)
        alike = (self.served.keys[:, :1] == self.adapted.answer.keys[:, :1]).all(1)
        self.strong = strong(self.weights[~alone], alike[~alone])

    def update(self) -> None:
        """One update of the adapter, unless the batch is too small for any, or another one waits."""
        refused, update = self._session.refusal(len(self.batch)), self._session.adapter.update
        self._step = AdaptationStep(False, refused) if refused else update(self)[0]

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
            step, dict(self.timed.seconds), self._forwards, self.quiet, self._repeated, self.side.paired,
        )  # fmt: skip

    @property
    def source(self) -> Tensor:
        """[B, D] by the frozen encoder; whoever looks at it has all rows asked for."""
        self.ask_others()
        return self.side.meant

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
        return self._forward(self.side.inputs, params, self.aligned)

    def scrambled(self, params: Params) -> Tensor | None:
        if self.batch.modality != "image":
            return None
        shuffled = shuffle_patches(self.side.inputs, self.ids, self._pipeline.config.seed)
        return self._forward(shuffled, params, self.aligned)

    def _forward(self, inputs: Any, params: Params | None, hook: Hook | None = None) -> Tensor:
        self._forwards += 1
        return self._encoder.encode(inputs, params, hook)
