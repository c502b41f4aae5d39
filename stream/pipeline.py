"""What happens to one micro-batch: answer(batch), then learn(answer). Knows protocols only.

The frozen twin's forward serves three ends: it is the baseline that every figure is compared with, the
reference of gradient decoupling, and a voter in the served answer (twin fusion).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.artifacts import tensors_hash
from core.config import Config
from core.errors import Refused
from core.protocols import Adapter, AlignedPass, Aligner, Batch, Encoder, Gallery, Head
from core.types import AdaptationStep, Answers, Encoded, Hits, Modality, Outcome, Query, QueryBatch
from stream.patches import shuffle_patches

if TYPE_CHECKING:
    from core.protocols import Params, Tap

Answering = Callable[[Gallery, Modality, Encoded, Hits, Encoded, Hits, NDArray[np.bool_]], Answers]
"""(gallery, modality, adapted, its hits, frozen, its hits, repaired rows [B]) -> answers."""
Repair = Callable[[str], str]
"""A query text -> the text to encode instead; the same text where nothing is wrong with it."""
Entropy = Callable[[Modality, Tensor, Tensor, Tensor], Tensor]
"""(modality, queries [B, D], neighbours [B, D], mask [B]) -> refined entropy [B]."""
Quiet = Callable[[Gallery, Modality, Encoded, Hits, NDArray[np.bool_]], bool]
"""(gallery, modality, frozen, its hits, repaired rows [B]) -> whether the frozen answer is served anyway."""
UNKNOWN_WORD = "qzxqzxqzx"
"""Nobody's word: to look it up, query repair has to read all of its lists."""
NEAREST = 16  # features per query handed to adapters; TCR needs 1, residual centring 5


class Learner:
    """What one lane has learned: its adapter and, where the tower has BatchNorm, its alignment."""

    def __init__(self, modality: Modality, adapter: Adapter, aligner: Aligner | None) -> None:
        self.modality, self.adapter, self.aligner = modality, adapter, aligner
        self.expects_shift = False
        """Whether the last batch showed one. Saves a forward where it is right and decides nothing else."""
        self._hash: str | None = None

    def snapshot(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        tensors, meta = self.adapter.snapshot()
        out = {f"adapter.{name}": array for name, array in tensors.items()}
        state: dict[str, Any] = {"modality": self.modality, "method": self.adapter.name, "adapter": meta}
        if self.aligner is not None:
            tensors, state["aligner"] = self.aligner.snapshot()
            out.update({f"aligner.{name}": array for name, array in tensors.items()})
        return out, state

    def restore(self, tensors: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        self.adapter.restore(_part(tensors, "adapter."), meta["adapter"])
        if self.aligner is not None:
            self.aligner.restore(_part(tensors, "aligner."), meta["aligner"])
        self._hash = None

    def changed(self) -> None:
        """Forgets the cached hash after the state was written to."""
        self._hash = None

    def state_hash(self) -> str:
        """sha256 over all tensors and meta; names the state in answers and journal."""
        if self._hash is None:
            self._hash = tensors_hash(*self.snapshot())
        return self._hash


@dataclass
class _Work:
    """One batch between answer and learn."""

    outcome: Outcome
    view: Batch
    aligned: AlignedPass | None
    forwards: list[int]
    step: AdaptationStep | None = None
    seconds: dict[str, float] = field(default_factory=dict)


class Pipeline:
    """Stateless apart from what it was built with; lanes bring their own state.

    Args:
        encoders: one per modality served.
        head: features -> codes, frozen on-line.
        gallery: the current version, asked once per batch (it may be swapped between batches).
        new_adapter, new_aligner: fresh state for a lane of a modality.
        answering: what is answered from the two shortlists, fused and by each twin alone.
        entropy: the refined entropy of the objectives, for drift.
        repair: mends misspelt texts; None leaves them.
        quiet: whether a batch shows so little of a shift that the adapted twin will have no say: then it is
            not asked, and nothing is learned. None: it is always asked.
    """

    def __init__(
        self,
        config: Config,
        encoders: Mapping[Modality, Encoder],
        head: Head,
        gallery: Callable[[], Gallery],
        new_adapter: Callable[[Modality], Adapter],
        new_aligner: Callable[[Modality], Aligner | None],
        answering: Answering,
        entropy: Entropy,
        device: str = "cpu",
        repair: Repair | None = None,
        quiet: Quiet | None = None,
    ) -> None:
        self._repair, self._quiet = repair, quiet
        self.config, self.encoders, self.head, self.gallery = config, encoders, head, gallery
        self._new_adapter, self._new_aligner = new_adapter, new_aligner
        self._answering, self._entropy, self._device = answering, entropy, device
        self._held: tuple[str, Tensor] | None = None

    def learner(self, modality: Modality) -> Learner:
        """Fresh state: source parameters, clean statistics."""
        return Learner(modality, self._new_adapter(modality), self._new_aligner(modality))

    def adapts(self, modality: Modality) -> bool:
        """Whether answers to such queries can ever differ from the frozen twin's."""
        learner = self.learner(modality)
        moves = learner.aligner is not None or learner.adapter.name != "frozen"
        return moves or (modality == "text" and self._repair is not None)

    @torch.no_grad()
    def warm_up(self) -> None:
        """Does once what the first query of each modality would wait for; answers do not depend on it."""
        gallery = self.gallery()
        for modality, encoder in self.encoders.items():
            self.learner(modality)  # the first optimizer imports torch._dynamo, which takes seconds
            features = encoder.encode(encoder.collate([], self.config.batch.size))
            self._neighbours(gallery, features, modality)
            if self._quiet is not None:  # looks at all clean queries, once
                encoded = self._encoded(features, 1, modality)
                hits = gallery.search(encoded.codes, self.config.answer.shortlist)
                self._quiet(gallery, modality, encoded, hits, np.zeros(1, np.bool_))
        if self._repair is not None:
            self._repair(UNKNOWN_WORD)

    def admit(self, query: Query) -> Query:
        """Decodes and checks the content before it may enter a batch. Raises Refused."""
        encoder = self.encoders.get(query.modality)
        if encoder is None:
            raise Refused(
                "validate", f"the base model serves {', '.join(self.encoders)}, not {query.modality} queries"
            )
        query = replace(query, prepared=encoder.prepare(query.content))
        if self._repair is not None and isinstance(query.content, str):
            text = self._repair(query.content)
            if text != query.content:
                query = replace(query, repaired=text, repaired_prepared=encoder.prepare(text))
        return query

    def rows(self, count: int) -> int:
        """Padded rows of a batch: a power of two from 8 up to the batch size, so that shapes are few."""
        rows = 8
        while rows < count:
            rows *= 2
        return max(count, min(rows, self.config.batch.size))

    def answer(self, learner: Learner, batch: QueryBatch, repeated: bool = False) -> _Work:
        """Encodes, searches, fuses. Changes nothing, except where `emit` says learn first.

        A batch without evidence of a shift is answered by the frozen twin, which is what fusion would serve
        anyway: the adapted twin is not asked, and texts that were mended are read by the source parameters.
        """
        clock, seconds = _Stopwatch(), {}
        encoder, gallery = self.encoders[batch.modality], self.gallery()
        count = len(batch)
        rows = self.rows(count)
        inputs = encoder.collate([query.prepared for query in batch.queries], rows)
        mask = torch.arange(rows, device=self._device) < count
        mended = np.array([bool(query.repaired) for query in batch.queries])
        seconds["collate"] = clock.lap()

        aligner = learner.aligner
        early = () if aligner is None else aligner.early
        # To keep what enters early layers costs a twentieth of a forward: not on clean traffic.
        watch = _Watch(early) if early and (self._quiet is None or learner.expects_shift) else None
        asked = inputs
        plain = source = encoder.encode(inputs, None, watch)
        forwards = [1]
        if mended.any():
            # The frozen twin answers what was asked; all else works with what was meant.
            inputs = encoder.collate([_meant(query) for query in batch.queries], rows)
            source = encoder.encode(inputs)
            forwards[0] += 1
        seconds["encode_frozen"] = clock.lap()
        frozen = self._encoded(plain, count, batch.modality)
        frozen_hits = gallery.search(frozen.codes, self.config.answer.shortlist)
        quiet = self._quiet is not None and self._quiet(gallery, batch.modality, frozen, frozen_hits, mended)
        learner.expects_shift = not quiet
        seconds["search"] = clock.lap()
        if early and watch is None and not quiet:  # the onset of a shift
            watch = _Watch(early)
            encoder.encode(asked, None, watch)
            forwards[0] += 1
            seconds["encode_frozen"] += clock.lap()

        aligned: AlignedPass | None = None
        moved: Tensor | None = None
        adapter = learner.adapter
        params = adapter.parameters()
        trainable = any(tensor.requires_grad for tensor in params.values())
        if aligner is not None and not quiet:
            aligned = aligner.begin(source, mask, () if watch is None else watch.inputs())
            if self.config.adapt.align.passes == 2:
                with torch.no_grad():
                    first_pass = encoder.encode(inputs, params, aligned.tap)
                forwards[0] += 1
                aligned = aligner.again(aligned, first_pass, mask)
        tap = aligned.tap if aligned is not None else None
        if (aligned is not None or params) and not quiet:
            with _grad(trainable and count >= self.config.batch.floor):
                moved = encoder.encode(inputs, params, tap)
            forwards[0] += 1
        seconds["encode_adapted"] = clock.lap()

        first: list[Tensor | None] = [source if moved is None else moved]

        def encode(with_params: Params) -> Tensor:
            # The answering forward serves the first inner step, as long as the parameters are the same; a
            # graph serves once, features without one for ever.
            ready = first[0] if with_params is params else None
            if ready is not None and ready.requires_grad:
                first[0] = None
            if ready is not None and (ready.requires_grad or not trainable):
                return ready
            forwards[0] += 1
            return encoder.encode(inputs, with_params, tap)

        view = Batch(
            mask, source, encode, lambda q: self._neighbours(gallery, q, batch.modality),
            shortlist=lambda q: self._shortlist(gallery, q, batch.modality),
            gallery=lambda: self._whole(gallery),
            scrambled=self._scrambled(encoder, inputs, batch, tap, forwards),
            ids=tuple(str(query.at) for query in batch.queries),
        )  # fmt: skip
        state_hash = learner.state_hash()
        step = AdaptationStep(False, "no-shift") if quiet else None
        seconds["learn"] = 0.0
        if adapter.learns_first and not quiet:
            step, moved = adapter.update(view)
            learner.changed()
            seconds["learn"] = clock.lap()
            if moved is None:
                with torch.no_grad():
                    moved = encoder.encode(inputs, adapter.parameters(), tap)
                forwards[0] += 1
                seconds["encode_adapted"] += clock.lap()

        adapted, adapted_hits = frozen, frozen_hits
        if not quiet or mended.any():
            features = (source if moved is None else moved).detach()
            emitted = features if quiet else adapter.emit(features, view)
            adapted = self._encoded(emitted, count, batch.modality)
            adapted_hits = gallery.search(adapted.codes, self.config.answer.shortlist)
        answers = self._answering(gallery, batch.modality, adapted, adapted_hits, frozen, frozen_hits, mended)
        entropy = self._frozen_entropy(gallery, batch.modality, plain, frozen_hits, mask)
        seconds["search"] += clock.lap()
        outcome = Outcome(
            batch, frozen, adapted, frozen_hits, adapted_hits,
            answers.frozen, answers.adapted, answers.served, answers.weights,
            gallery.version, state_hash, entropy, quiet=quiet, repeated=repeated,
        )  # fmt: skip
        return _Work(outcome, view, aligned, forwards, step, seconds)

    def learn(self, learner: Learner, work: _Work) -> Outcome:
        """Updates the lane from an answered batch and completes the outcome."""
        clock = _Stopwatch()
        if not work.outcome.quiet:
            adapter = learner.adapter
            if not adapter.learns_first:
                if len(work.outcome.batch) < self.config.batch.floor:
                    work.step = AdaptationStep(False, "too-small")
                else:
                    work.step, _ = adapter.update(work.view)
            if work.aligned is not None and learner.aligner is not None:
                learner.aligner.commit(work.aligned)
            learner.changed()
        work.seconds["learn"] += clock.lap()
        return replace(work.outcome, step=work.step, seconds=dict(work.seconds), forwards=work.forwards[0])

    def _encoded(self, features: Tensor, count: int, modality: Modality) -> Encoded:
        rows = features[:count].detach().float()
        return Encoded(rows.cpu().numpy(), self.head.codes(rows, modality))

    def _shortlist(self, gallery: Gallery, features: Tensor, modality: Modality) -> Tensor:
        """[B, D] -> [B, K, D] by Hamming distance, nearest first; unused places are zero rows."""
        rows = features.detach().float()
        hits = gallery.search(self.head.codes(rows, modality), self.config.answer.shortlist)
        return torch.from_numpy(gallery.features(hits.keys)).to(rows.device)

    def _whole(self, gallery: Gallery) -> Tensor:
        """Unit features [N, D] of a gallery version, loaded once."""
        if self._held is None or self._held[0] != gallery.version:
            features = torch.from_numpy(gallery.features(gallery.keys())).to(self._device)
            self._held = (gallery.version, features)
        return self._held[1]

    def _scrambled(
        self, encoder: Encoder, inputs: Any, batch: QueryBatch, tap: Tap | None, forwards: list[int]
    ) -> Callable[[Params], Tensor] | None:
        """How to encode the batch's pictures cut into patches and shuffled; None for other inputs."""
        if batch.modality != "image":
            return None

        def encode(params: Params) -> Tensor:
            forwards[0] += 1
            keys = [f"{query.at}" for query in batch.queries]
            return encoder.encode(shuffle_patches(inputs, keys, self.config.seed), params, tap)

        return encode

    @torch.no_grad()
    def _neighbours(self, gallery: Gallery, features: Tensor, modality: Modality) -> Tensor:
        """[B, D] -> [B, 16, D]: Hamming shortlist, then the best by float cosine, best first."""
        rows = features.detach().float()
        return _best(rows, self._shortlist(gallery, rows, modality), NEAREST)

    @torch.no_grad()
    def _frozen_entropy(
        self, gallery: Gallery, modality: Modality, features: Tensor, hits: Hits, mask: Tensor
    ) -> NDArray[np.float32]:
        """Refined entropy [n] of the real rows of frozen features [B, D] with their hits [n, K]."""
        candidates = torch.from_numpy(gallery.features(hits.keys)).to(features.device)
        nearest = torch.zeros_like(features)
        nearest[: len(hits.keys)] = _best(features[: len(hits.keys)].float(), candidates, 1)[:, 0]
        entropy = self._entropy(modality, features, nearest, mask)[: len(hits.keys)]
        return entropy.cpu().numpy().astype(np.float32)


def _best(features: Tensor, candidates: Tensor, count: int) -> Tensor:
    """Of candidates [B, K, D] (unused ones zero) the nearest [B, count, D] of features [B, D], best first."""
    cosine = torch.einsum("bd,bkd->bk", features, candidates)
    cosine[(candidates == 0).all(2)] = -2.0
    best = cosine.topk(min(count, cosine.shape[1]), dim=1).indices
    return candidates.gather(1, best[..., None].expand(-1, -1, candidates.shape[2]))


def _meant(query: Query) -> Any:
    """What the encoder of a text that was mended takes."""
    return query.prepared if query.repaired_prepared is None else query.repaired_prepared


class _Watch:
    """Keeps the inputs of some BatchNorms of a forward."""

    def __init__(self, layers: Sequence[int]) -> None:
        self.layers = tuple(layers)  # says that this tap only watches: such a forward may be remembered
        self._seen: dict[int, Tensor | None] = dict.fromkeys(layers)

    def __call__(self, layer: int, inputs: Tensor) -> None:
        if layer in self._seen:
            self._seen[layer] = inputs

    def inputs(self) -> list[Tensor]:
        return [inputs for inputs in self._seen.values() if inputs is not None]


class _Stopwatch:
    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        lap, self._last = now - self._last, now
        return lap


def _grad(wanted: bool) -> AbstractContextManager[Any]:
    return nullcontext() if wanted else torch.no_grad()


def _part(tensors: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {name[len(prefix) :]: array for name, array in tensors.items() if name.startswith(prefix)}
