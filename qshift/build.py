"""Configuration -> objects. Beside `qshift/lanes.py` the only module that names concrete classes."""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from adapters.online.objectives import refined
from adapters.online.own import imported
from core.allocator import keep_memory
from core.config import OWN_METHOD, SERVED, AnswerConfig, Config, LimitConfig
from core.errors import ConfigError
from core.identity import identity
from core.protocols import Adapter, Aligner, Encoder, StateStore
from core.readers.places import shown
from core.types import Encoded, Modality
from encoders.base_model import Base, load_base
from encoders.decoding import Decoders
from encoders.repair import Repairer, count_words, kept_whole
from encoders.text import TextTower
from encoders.vision import ImageTower
from encoders.word_lists import english, english_share, written_in
from index.confidence import Confidence
from index.correction import Corrections
from index.evidence import Evidence
from index.folder import changing
from index.fusion import TwinFusion
from index.gallery import VersionedGallery
from index.judging import Judge
from index.versions import GalleryVersions
from monitoring.judged import JudgedQuality, Ranked, Remembered, included, steers
from monitoring.ranking import Levels, ap_and_first, counted_levels
from qshift.lanes import Aligners as Aligners
from qshift.lanes import Known
from qshift.lanes import adapter as adapter
from qshift.methods import METHODS
from qshift.methods import with_method as with_method
from stream.changelog import ChangelogStore
from stream.codec import Codec
from stream.decision import Decisions
from stream.directory import DirectoryStore
from stream.pipeline import Pipeline
from stream.preparation import Repair
from stream.retrieval import Retrieval
from stream.sampling import Sampling
from stream.transaction import Transaction

if TYPE_CHECKING:
    from index.milvus import Milvus

log = logging.getLogger("qshift.build")


@dataclass(slots=True)
class Engine:
    """What a run needs besides its source, sink and store."""

    config: Config
    base: Base
    versions: GalleryVersions
    pipeline: Pipeline
    codec: Codec
    fusion: TwinFusion

    @property
    def identity(self) -> str:
        """What a state has to be made by to be used here."""
        return identity(self.config, self.base.version)


def pin_threads(config: Config) -> None:
    """Bit-identity holds for one thread count. What the forwards of a run free stays with the process."""
    os.environ["OMP_NUM_THREADS"] = str(config.threads)
    torch.set_num_threads(config.threads)
    keep_memory()


def device(config: Config) -> str:
    """Where tensors live: "auto" takes a GPU where torch sees one. Raises ConfigError where it sees none."""
    if config.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError('device = "cuda", but torch sees no GPU: use "auto" or "cpu"')
    return config.device


def engine(config: Config) -> Engine:
    """Loads base and gallery and wires the pipeline."""
    pin_threads(config)
    where = device(config)
    if OWN_METHOD.fullmatch(config.adapt.method or ""):
        imported(config.adapt.method or "")  # before a large base is loaded
    base = load_base(config.base, where, config.precision)
    gallery = load_gallery(
        config.gallery, base, where, config.threads, config.answer, server=server(config, reached=True)
    )
    return assemble(config, base, GalleryVersions(gallery), where)


def load_gallery(
    folder: Path, base: Base, where: str = "cpu", threads: int | None = None,
    answer: AnswerConfig = AnswerConfig(), version: str = "", beside: VersionedGallery | None = None,
    server: Milvus | None = None,
) -> VersionedGallery:  # fmt: skip
    """Loads a gallery that was built with a base; `version`, `beside`, `server`: see `VersionedGallery.load`.

    Raises:
        ArtifactError, ConfigError, GalleryError: it cannot be read, or does not fit.
    """
    return VersionedGallery.load(
        folder, base.version, device="auto" if where == "cuda" else "cpu", threads=threads,
        version=version, beside=beside, kind=answer.index, effort=answer.effort, server=server,
    )  # fmt: skip


def server(config: Config, reached: bool = False) -> Milvus | None:
    """What searches the gallery beside us, where the configuration says so; None where we do it ourselves.

    Args:
        reached: whether it has to be there now. Later it may be away: then we search.

    Raises:
        ConfigError: it is not there, in one sentence that says what to do; or pymilvus is not.
    """
    if config.answer.index not in SERVED:
        return None
    from index.milvus import Milvus  # half a second that nobody else waits for

    made = Milvus(config.milvus)
    if reached:
        made.reach()
    return made


def put_in_place(source: Path, folder: Path, base_version: str | None = None) -> VersionedGallery:
    """Puts a whole gallery into the folder of another one, in one step: who follows it, answers from it.

    The items topic is taken in from its beginning into what is there then, as into one that was built anew.

    Args:
        source: the folder of the new gallery, which stays as it is.
        folder: the one that is followed; what it holds now is kept there for an hour.
        base_version: of the base model that both were built with; None: that of `folder`.

    Raises:
        ArtifactError, ConfigError: either cannot be read, or is of another base: nothing is changed.
        GalleryError: codes or features of another width.
    """
    with changing(folder, wait=True):
        if source.is_dir() and source.samefile(folder):
            raise ConfigError(f"{shown(source)} is the gallery itself: name the folder of another one")
        before = VersionedGallery.load(folder, base_version, backend="exact")
        new = VersionedGallery.load(source, before.base_version, backend="exact")
        GalleryVersions(before).check(new)
        new.save(folder)
    return new


def assemble(
    config: Config,
    base: Base,
    versions: GalleryVersions,
    where: str = "cpu",
    encoders: Mapping[Modality, Encoder] | None = None,
) -> Engine:
    """Wires a pipeline around a base and a gallery that are loaded already.

    Args:
        encoders: to ask instead of the base's own: the same ones with a memory.
    """
    limit_pictures(base, config.limits)
    if OWN_METHOD.fullmatch(config.adapt.method or ""):
        for modality in base.constants:  # what a class of others lacks is said before a query waits
            adapter(config, base, modality, where)
    evidence = Evidence(config.answer, base.reference, base.head.codes, base.missed)
    fusion, known = TwinFusion(config.answer, evidence), Known(base, where)
    pipeline = Pipeline(
        config,
        base.encoders if encoders is None else encoders,
        Retrieval(
            base.head.codes,
            versions.current,
            fusion,
            config.answer.shortlist,
            where,
            config.answer.top,
            correction=corrections(config, versions, fusion),
        ),
        lambda modality: adapter(config, base, modality, where, known),
        Aligners(config, base, where),
        lambda modality, q, near, mask: entropy(base, modality, q, near, mask),
        where,
        repair(config, base, versions),
        sampling(config),
    )
    pipeline.other = Others(config, base, where)
    labels, sure = config.labels, Confidence(evidence, base.extras, versions.version)
    codec = Codec(
        config.limits,
        config.kafka,
        versions.identifier,
        lambda at: included(at, labels.key, labels.rate),
        decisions=Decisions(sure, config.answer.fuse != "none"),
    )
    return Engine(config, base, versions, pipeline, codec, fusion)


class Others:
    """Makes what a lane learns by where a command names another method than the configuration's."""

    def __init__(self, config: Config, base: Base, where: str) -> None:
        self._config, self._base, self._where = config, base, where
        self._aligners: dict[str, Aligners] = {}

    def __call__(self, method: str, modality: Modality) -> tuple[Adapter, Aligner | None, int]:
        """As `stream.session.Other`."""
        # No class of one's own but the configuration's: a command must not make anybody import code.
        if method not in METHODS:
            raise ConfigError(f"method {method!r} is not known: one of {', '.join(METHODS)}")
        adapt = with_method(self._config, method).adapt
        config = self._config.model_copy(update={"adapt": adapt})
        aligners = self._aligners.setdefault(method, Aligners(config, self._base, self._where))
        return adapter(config, self._base, modality, self._where), aligners(modality), adapt.align.passes


def sampling(config: Config) -> Sampling:
    """Which queries the frozen twin is asked for where a sample is enough: all whose label is asked for."""
    key, share = config.labels.key, max(config.labels.rate, config.answer.frozen_share)
    # Without evidence a weight says nothing, and one of the adapted twin alone is 1.
    if share == 1.0 or config.answer.fuse != "mixture" or config.answer.evidence is None:
        return Sampling()
    return Sampling(lambda at: included(at, key, share))


def corrections(config: Config, versions: GalleryVersions, fusion: TwinFusion) -> Corrections | None:
    """What makes the correction of a lane; None where labels may not, or there is nothing to weigh."""
    labels, answer = config.labels, config.answer
    if not labels.steer or answer.fuse != "mixture" or answer.evidence is None:
        return None
    return Corrections(
        Judge(answer, fusion),
        versions.version,
        lambda at: steers(at, labels.key, labels.rate),
        lambda counts: ap_and_first(counted_levels(*counts))[0],
        answer.rerank,
    )


def ranked(engine: Engine) -> Ranked:
    """Rankings of a remembered query by the gallery version that answered it."""
    judge = Judge(engine.config.answer, engine.fusion)

    def levels(version: str, kept: Remembered, label: str) -> tuple[Levels, ...] | None:
        gallery = engine.versions.version(version)
        if gallery is None:
            return None
        frozen = Encoded(kept.frozen_features[None], kept.frozen_code[None])
        adapted = Encoded(kept.adapted_features[None], kept.adapted_code[None])
        found = judge.rankings(gallery, frozen, adapted, kept.weight, label)
        return tuple(counted_levels(*counts) for counts in found)

    return levels


def judged(engine: Engine) -> JudgedQuality:
    """Sampled quality against the galleries that are kept."""
    config, labels = engine.config, engine.config.labels
    return JudgedQuality(
        labels.key, labels.rate, labels.ttl_queries, ranked(engine), keep_features=config.answer.rerank,
        seed=config.seed, report=labels.steer,
    )  # fmt: skip


def limit_pictures(base: Base, limits: LimitConfig) -> None:
    """Queries may hold less than one's own pictures; composed queries and clips have the same tower."""
    image = base.encoders.get("image")
    if isinstance(image, ImageTower):
        image.limit(limits.image_bytes, limits.image_pixels)


def decoding(engine: Engine) -> Decoders:
    """Has pictures decoded in processes of their own; whoever has called it closes them."""
    limits, image = engine.config.limits, engine.base.encoders.get("image")
    made = Decoders(limits.decoders, limits.decode_seconds)
    if isinstance(image, ImageTower):
        image.decode_by(made.prepare)
    return made


def repair(config: Config, base: Base, versions: GalleryVersions) -> Repair | None:
    """Mends texts with the words of the base's training texts and of the current gallery's titles."""
    tower = base.encoders.get("text")
    if not config.repair.enabled or not isinstance(tower, TextTower):
        return None
    whole = kept_whole(tower)

    def known(word: str) -> bool:
        return whole(word) or english(word)

    def foreign(words: Sequence[str]) -> bool:
        return bool(written_in(words))

    made: dict[str, Repairer] = {}

    def mend(text: str) -> str:
        gallery = versions.current()
        if gallery.version not in made:
            titles = gallery.titles()
            words = Counter(base.vocabulary) + Counter(count_words(titles))
            made.clear()
            made[gallery.version] = Repairer(words, config.repair, known, titles, foreign, english_share)
        mended, changes = made[gallery.version].repair(text)
        if changes:
            log.debug("query repaired", extra={"changes": changes})
        return mended

    return mend


def entropy(base: Base, modality: Modality, q: Tensor, near: Tensor, mask: Tensor) -> Tensor:
    """Refined entropy at the base model's temperature; zeros where it has none."""
    if modality not in base.constants:
        return torch.zeros(len(q))
    return refined(q, near, base.constants[modality].temperature, mask)[1]


def state_store(
    config: Config, bootstrap_servers: str, hurry: threading.Event | None = None,
    transaction: Transaction | None = None,
) -> StateStore:  # fmt: skip
    """Where checkpoints and journal go. Once `hurry` is set, no call waits long for Kafka."""
    if config.state.store == "directory":
        kept = DirectoryStore(Path(config.state.directory))
        kept.check()
        return kept
    store = ChangelogStore(bootstrap_servers, config.kafka, hurry=hurry, transaction=transaction)
    store.warm_up()
    return store
