"""qshift in a loop of your own: answer, learn, snapshot, restore, reset; without Kafka.

    session = qshift.Session("qshift-data/base", "qshift-data/gallery")
    answer = session.answer(["a red seven", "a green two"])
    answer.served.items          # names, best first, of each query
    session.learn(answer)        # answer first, learn second

Around a torch model of one's own, without folders: `Session.of`.

The same `stream.session.Session` that the live service drives does the work, one for each modality.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from core.config import Config
from core.contents import Content, Ranking, Said, modality_of
from core.errors import ConfigError, QshiftError, Refused
from core.filters import wanted
from core.records import Coordinates, Judgement
from core.types import AdaptationStep, Floats, Hits, Modality, Outcome, Query, QueryBatch
from index.gallery import Display, Label, VersionedGallery
from index.merging import tidied
from index.versions import GalleryVersions
from monitoring.judged import included
from monitoring.quality import Quality
from qshift.build import Engine, assemble, device, engine, judged, load_gallery, pin_threads
from qshift.methods import METHODS, known, with_method
from qshift.recipes.gallery import encoded_items
from qshift.recipes.in_memory import base_in_memory, gallery_in_memory, unit_rows
from stream import session as lanes
from stream.answer import DecidedBy
from stream.decision import withheld
from stream.pipeline import BatchPass

if TYPE_CHECKING:
    from torch import Tensor, nn

LABELS = "session-labels"
"""Where labels stand: the topic of their own that a service reads them from."""
State = Mapping[Modality, tuple[dict[str, NDArray[Any]], dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a batch is answered: served, and what either twin would answer alone."""

    served: Ranking
    frozen: Ranking
    adapted: Ranking
    weights: Floats
    """[B] of the adapted twin in what is served: 0 is the frozen answer, inf the adapted one."""
    quiet: bool
    """Whether nothing showed a shift: then the frozen twin alone was asked, and there is nothing to learn."""
    decided_by: tuple[DecidedBy, ...]
    """Of each query: "frozen", "adapted" or "mixture"."""
    confidence: tuple[float | None, ...]
    """The average precision to expect of each served answer, 0 to 1; None where the base cannot say."""
    abstained: NDArray[np.bool_]
    """[B] whose confidence is below the threshold: nothing is served to them."""
    paired: NDArray[np.bool_]
    """[B] True where `frozen` was asked for; elsewhere the adapted answer stands for it."""
    label_wanted: NDArray[np.bool_]
    """[B] True where a label of the query counts: the sample of `labels.rate`."""
    _pass: BatchPass


class Session:
    """Answers and adapts. Not safe for use by several threads.

    Args:
        base, gallery: folders, as `qshift fit` and `qshift gallery build` write them.
        method: a name of `qshift.METHODS`, or `module:Class` of your own (docs/how-to/own-loop.md), with
            "+fused" and "+repair" behind it where wanted.
        config: settings besides; its own base and gallery do not count.

    Raises:
        ConfigError: no such method, or settings that cannot work.
        ArtifactError, GalleryError: a folder that cannot be read, or a gallery of another base.
    """

    def __init__(
        self, base: str | Path, gallery: str | Path, method: str = "default", config: Config | None = None
    ) -> None:
        places = {"base": Path(base), "gallery": Path(gallery)}
        self._start(engine(_named(method, (config or Config()).model_copy(update=places))))

    @classmethod
    def of(
        cls,
        model: nn.Module,
        gallery: ArrayLike | Tensor,
        names: Sequence[str],
        clean: Sequence[Tensor] | Tensor,
        method: str = "default",
        config: Config | None = None,
        bits: int = 128,
        attributes: Sequence[Mapping[str, Any]] | None = None,
    ) -> Self:
        """A session around an image model in memory; its queries are pictures as tensors [3, H, W].

        Args:
            model: pictures [B, 3, H, W] -> features [B, D], such as `model.visual` of open_clip, or a
                torchvision model without its classifier. It is copied, in float32: yours stays as it is.
            gallery: features [N, D] of the items, pictures too, by this model.
            names: [N] of the items, each once.
            clean: pictures of the kind that will ask, without any shift, 64 or more, as your preprocessing
                gives them: [n, 3, H, W], or a sequence of [3, H, W].
            method, config: see the class.
            bits: of the binary codes; what they find is ordered by the features.
            attributes: [N] of the items, by name: texts, numbers or lists of texts, for filters.

        Raises:
            ConfigError: parts that do not fit each other.
            GalleryError: a name twice, or not one for each item.
        """
        config = _named(method, config or Config())
        if config.precision != "fp32":
            raise ConfigError(f'precision {config.precision!r} is for bases in folders: take "fp32"')
        pin_threads(config)
        where, rows = device(config), unit_rows(gallery)
        base = base_in_memory(model, rows, clean, bits, config.seed, where)
        versions = GalleryVersions(gallery_in_memory(base, rows, names, where, config.threads, attributes))
        made = cls.__new__(cls)
        made._start(assemble(config, base, versions, where))
        return made

    def _start(self, engine: Engine) -> None:
        self.config, self._engine = engine.config, engine
        self._lanes: dict[Modality, lanes.Session] = {}
        self._seq = self._asked = self._told = 0
        self._judged = judged(engine)

    def answer(
        self,
        queries: Sequence[Content] | Tensor,
        top: int | None = None,
        filter: Said | Sequence[Said | None] | None = None,
        threshold: float | None = None,
    ) -> Answer:
        """Answers a batch of one modality by what was learned so far. Changes nothing.

        Args:
            queries: B of them.
            top: items of each answer, at most `answer.shortlist`; None: `answer.top`.
            filter: which items may be found, by their attributes, as in messages (docs/reference/queries.md):
                for all queries, or for each its own.
            threshold: the confidence, 0 to 1, below which nothing is served.

        Raises:
            Refused: a query cannot be read, or wants what it cannot have; it is named by its place. Nothing
                is answered then.
            ConfigError: no query, queries of several modalities, or of one that the base does not serve.
        """
        modality = modality_of(queries)
        several = filter is not None and not isinstance(filter, Mapping)
        filters = list(filter) if several and filter is not None else [filter] * len(queries)
        if len(filters) != len(queries):
            raise ConfigError(f"{len(filters)} filters for {len(queries)} queries: one each, or one for all")
        admitted = tuple(
            self._admitted(number, modality, query, (top, of, threshold))
            for number, (query, of) in enumerate(zip(queries, filters))
        )
        batch = QueryBatch(modality, self._seq, modality, admitted)
        self._asked += len(admitted)
        self._seq += 1
        found = self._lane(modality).answer(batch)
        said = self._engine.codec.decisions(found)
        served, frozen, adapted = (
            self._ranking(hits)
            for hits in (withheld(found.served, said.abstained), found.frozen.answer, found.adapted.answer)
        )
        return Answer(
            served, frozen, adapted, found.weights, found.quiet, said.by, said.confidence, said.abstained,
            found.side.paired, self._wanted(found.batch), found,
        )  # fmt: skip

    def learn(self, answer: Answer) -> AdaptationStep:
        """Learns from a batch that was answered: completely, or not at all; `reason` says why not.

        Raises:
            QshiftError: something was learned since the answer, or the state was changed: answer it again.
        """
        return self.outcome(answer).step or AdaptationStep(False, "nothing")

    def outcome(self, answer: Answer) -> Outcome:
        """As `learn`, and returns all that is known about the batch, as observers see it."""
        lane = self._lane(answer._pass.batch.modality)
        if lane.state_hash() != answer._pass.state_hash:
            raise QshiftError("this answer was given by another state: answer the batch again, then learn")
        found = lane.learn(answer._pass)
        self._judged.observe(found)
        return found

    def label(self, answer: Answer, labels: Sequence[str | None]) -> int:
        """Says what was relevant to queries of a batch that was learned from, now or many batches later.

        Answers are scored as they were given (`quality`), of the gallery version that gave them while it is
        one of the four newest. With `labels.steer` half of the labels are not scored and correct the weight
        of the adapted twin instead, from the next batch on: say them between `learn` and `answer`.

        Args:
            labels: [B] a label that relevant items carry, None where it is not known. Those outside of
                `label_wanted` are passed over; of labels that steer the first one of a query counts.

        Returns:
            How many were not passed over.

        Raises:
            ConfigError: not one for each query.
        """
        batch = answer._pass.batch
        if len(labels) != len(batch.queries):
            raise ConfigError(f"{len(labels)} labels for {len(batch.queries)} queries: None where unknown")
        lane, wanted = self._lane(batch.modality), answer.label_wanted.tolist()
        said = [(query.at, label) for query, label, of in zip(batch.queries, labels, wanted) if of]
        told = [(at, label) for at, label in said if label is not None]
        for number, (at, label) in enumerate(told, self._told):
            judgement = Judgement(Coordinates(LABELS, 0, number), at, label)
            self._judged.judge(judgement)
            if lane.steering is not None:
                lane.steering.take(judgement)
        self._told += len(told)
        lane.steer()
        return len(told)

    def quality(self) -> Quality:
        """mAP and R@1 of what labelled queries were served, and of either twin, in points, with intervals."""
        return self._judged.summary()

    @property
    def gallery(self) -> VersionedGallery:
        """What the next batch is answered from; a version never changes."""
        return self._engine.versions.current()

    def swap(self, gallery: VersionedGallery | str | Path) -> None:
        """Answers from another gallery of the same base from the next batch on: a version, or a folder.

        What was learned stays, and a batch that was answered is learned from as it was answered.

        Raises:
            ArtifactError, GalleryError: it cannot be read, or is of another base; nothing is changed.
        """
        engine = self._engine
        if isinstance(gallery, str | Path):
            config, here = engine.config, engine.versions.current().searched
            gallery = load_gallery(
                Path(gallery), engine.base, device(config), config.threads, config.answer, server=here.server
            )
        engine.versions.swap(gallery)
        if (server := gallery.searched.server) is not None:
            server.sweep()

    def upsert(
        self,
        names: Sequence[str],
        contents: Sequence[Content] | Tensor,
        labels: Sequence[Label] | None = None,
        titles: Sequence[str] | None = None,
        attributes: Sequence[Said] | None = None,
    ) -> None:
        """Puts items into the gallery, in the place of those of the same names; see `swap`.

        Args:
            names, contents: of items of one modality, which the frozen tower encodes.
            labels: of each; its name without.
            titles: what pages call each; its name without.
            attributes: of each, for filters; nothing is said without.

        Raises:
            GalleryError: an item cannot be read, or a name stands there twice; nothing is changed.
        """
        modality = modality_of(contents)
        codes, features = encoded_items(self._engine.base, contents, names, modality=modality)
        displays = [Display(title) for title in titles or names]
        more = self.gallery.upsert(names, codes, labels or list(names), features, displays, attributes)
        self.swap(tidied(more))

    def remove(self, names: Sequence[str]) -> None:
        """Takes items out of the gallery; see `swap`. Raises GalleryError for a name that is not there."""
        self.swap(tidied(self.gallery.remove(names)))

    def snapshot(self) -> State:
        """All that was learned, by modality: copies that nothing changes later."""
        return {modality: lane.snapshot() for modality, lane in self._lanes.items()}

    def restore(self, state: State) -> None:
        """Returns to a snapshot of this session, or of one with the same base and settings.

        Raises:
            ArtifactError: it is of another method or other tensors.
        """
        self.reset()
        for modality, (tensors, meta) in state.items():
            lane = self._lane(modality)
            lane.restore(tensors, meta)
            if lane.steering is not None:  # what it has seen of labels is not seen again
                self._told = max(self._told, *lane.steering.offsets.values(), 0)

    def reset(self) -> None:
        """Forgets all that was learned."""
        for lane in self._lanes.values():
            lane.reset()

    def state_hash(self, modality: Modality) -> str:
        """sha256 of what was learned for a modality: equal states answer alike, to the bit."""
        return self._lane(modality).state_hash()

    def _lane(self, modality: Modality) -> lanes.Session:
        if modality not in self._lanes:
            self._lanes[modality] = lanes.Session(self._engine.pipeline, modality)
        return self._lanes[modality]

    def _admitted(self, number: int, modality: Modality, content: Any, want: tuple[Any, Any, Any]) -> Query:
        query = Query(Coordinates("session", 0, self._asked + number), modality, content)
        try:
            return self._engine.pipeline.admit(replace(query, wanted=wanted(*want)))
        except Refused as refused:
            raise Refused(refused.stage, f"query {number}: {refused.reason}") from refused
        except ValueError as error:
            raise Refused("validate", f"query {number}: {error}") from None

    def _wanted(self, batch: QueryBatch) -> NDArray[np.bool_]:
        labels = self.config.labels
        return np.array([included(query.at, labels.key, labels.rate) for query in batch.queries])

    def _ranking(self, hits: Hits) -> Ranking:
        gallery = self._engine.versions.current()
        names = tuple(
            tuple(gallery.identifier(key) if key >= 0 else "" for key in row) for row in hits.keys.tolist()
        )
        return Ranking(names, hits.keys, hits.distances, hits.scores)


def _named(method: str, config: Config) -> Config:
    if not known(method):
        names = ", ".join(METHODS)
        raise ConfigError(f"there is no method {method!r}: choose one of {names}, or module:Class")
    return with_method(config, method)
