"""Configuration -> objects: the only module that names concrete classes."""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from adapters.online.alignment import CleanSide, ContentAlignment
from adapters.online.centred import Centred
from adapters.online.centring import Centring, ResidualCentring
from adapters.online.cliptta import Cliptta
from adapters.online.deyo import Deyo
from adapters.online.eata import Eata
from adapters.online.foa_shift import FoaShift
from adapters.online.frozen import Frozen
from adapters.online.guarded import Guarded
from adapters.online.neo import Neo
from adapters.online.objectives import refined
from adapters.online.own import Own, imported
from adapters.online.read import Read
from adapters.online.refinement import Refinement
from adapters.online.reliability import FlowReliability
from adapters.online.rest import Rest, source_directions
from adapters.online.sar import Sar
from adapters.online.shot import Shot
from adapters.online.tcr import Tcr
from adapters.online.tent import Tent
from adapters.online.training_free import TrainingFree
from adapters.online.uatta import Uatta
from adapters.online.uca import Uca
from core.config import OWN_METHOD, ClusterConfig, Config, LimitConfig
from core.errors import ConfigError
from core.identity import identity
from core.protocols import Adapter, Aligner, Encoder, StateStore
from core.types import Modality
from encoders.base_model import Base, load_base
from encoders.repair import Repairer, count_words, kept_whole
from encoders.text import TextTower
from encoders.vision import ImageTower
from encoders.word_lists import english, english_share, written_in
from index.confidence import Confidence
from index.evidence import Evidence
from index.fusion import TwinFusion
from index.gallery import VersionedGallery
from index.versions import GalleryVersions
from monitoring.judged import included
from stream.changelog import ChangelogStore
from stream.codec import Codec
from stream.decision import Decisions
from stream.directory import DirectoryStore
from stream.pipeline import Pipeline
from stream.preparation import Repair
from stream.retrieval import Retrieval

if TYPE_CHECKING:
    from core.protocols import Params

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
    """Bit-identity holds for one thread count."""
    os.environ["OMP_NUM_THREADS"] = str(config.threads)
    torch.set_num_threads(config.threads)


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
    return assemble(
        config, base, GalleryVersions(load_gallery(config.gallery, base, where, config.threads)), where
    )


def load_gallery(
    folder: Path, base: Base, where: str = "cpu", threads: int | None = None
) -> VersionedGallery:
    """Loads a gallery that was built with a base. Raises ArtifactError, GalleryError."""
    return VersionedGallery.load(
        folder, base_version=base.version, device="auto" if where == "cuda" else "cpu", threads=threads
    )


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
    evidence = Evidence(config.answer, base.reference, base.head.codes)
    fusion = TwinFusion(config.answer, evidence)
    pipeline = Pipeline(
        config,
        base.encoders if encoders is None else encoders,
        Retrieval(
            base.head.codes, versions.current, fusion, config.answer.shortlist, where, config.answer.top
        ),
        lambda modality: adapter(config, base, modality, where),
        Aligners(config, base, where),
        lambda modality, q, near, mask: entropy(base, modality, q, near, mask),
        where,
        repair(config, base, versions),
    )
    labels, sure = config.labels, Confidence(evidence, base.extras, versions.version)
    codec = Codec(
        config.limits,
        config.kafka,
        versions.identifier,
        lambda at: included(at, labels.key, labels.rate),
        decisions=Decisions(sure, config.answer.fuse != "none"),
    )
    return Engine(config, base, versions, pipeline, codec, fusion)


def limit_pictures(base: Base, limits: LimitConfig) -> None:
    """Queries may hold less than one's own pictures; composed queries and clips have the same tower."""
    image = base.encoders.get("image")
    if isinstance(image, ImageTower):
        image.limit(limits.image_bytes, limits.image_pixels)


PEERS: dict[str, Callable[..., Adapter]] = {
    "tent": Tent, "eata": Eata, "sar": Sar, "read": Read, "deyo": Deyo, "shot": Shot,
    "uca": Uca, "cliptta": Cliptta, "uatta": Uatta,
}  # fmt: skip
DRAWS = 64
"""Gradients of source pairs that the subspace of reference D3 is spanned by."""


def adapter(config: Config, base: Base, modality: Modality, where: str) -> Adapter:
    """A lane's method, under the guards that are on."""
    adapt = config.adapt
    if modality not in base.constants:
        return Frozen()
    centred, method = _centred(config, base, modality), method_of(config, base, modality)
    if method == "frozen":
        return Centring(_clean(base, modality, where).mean(0), config.batch.floor) if centred else Frozen()
    made = _method(method, config, base, modality, where)
    guard = adapt.guard
    guarded = guard.reset_every or guard.reset_below or guard.restore
    if guarded and made.parameters():
        made = Guarded(made, base.encoders[modality].adaptable(), guard, config.seed)
    if not centred or not made.parameters():
        return made
    return Centred(made, _clean(base, modality, where).mean(0), config.batch.floor)


def method_of(config: Config, base: Base, modality: Modality) -> str:
    """The method of a modality: what is set, else what its base says, else by what its base has."""
    adapt = config.adapt
    if adapt.method is not None:
        return adapt.method
    if adapt.preset == "tcr-paper":
        return "rest"
    return base.constants[modality].method or ("frozen" if modality in base.calibration else "rest")


def _centred(config: Config, base: Base, modality: Modality) -> bool:
    """Whether alignment means centring: without clean statistics. Misspelt texts share no shift."""
    return _aligned(config) and modality != "text" and modality not in base.calibration


def _aligned(config: Config) -> bool:
    """The paper's preset has no alignment of any kind."""
    return config.adapt.align.enabled and config.adapt.preset != "tcr-paper"


def _clean(base: Base, modality: Modality, where: str) -> Tensor:
    """Clean source queries [n, D] as the frozen encoder sees them."""
    return torch.from_numpy(np.array(base.reference[modality].features, dtype=np.float32)).to(where)


def _method(method: str, config: Config, base: Base, modality: Modality, where: str) -> Adapter:
    adapt, floor, constants = config.adapt, config.batch.floor, base.constants[modality]
    clean = _clean(base, modality, where)
    match method:
        case "centring":
            return Centring(clean.mean(0), floor)
        case "residual_centring":
            return ResidualCentring(clean, floor)
        case "neo":
            return Neo(floor)
        case "foa-shift":
            return FoaShift(clean.mean(0), floor)
        case "training_free":
            return TrainingFree(constants, adapt, floor)
        case "refinement":
            return Refinement()
    source = base.encoders[modality].adaptable()
    if method in PEERS:
        return PEERS[method](source, constants, adapt, floor)
    if OWN_METHOD.fullmatch(method):
        return Own(method, source, constants, adapt, floor)
    if method == "tcr":
        return Tcr(source, constants, adapt, floor)
    if method != "rest":
        raise ConfigError(f"nothing here makes the method {method!r}: give it a line in qshift/build.py")
    reference = adapt.decouple.reference
    memory = source_memory(config, base, modality) if reference in ("memory", "subspace") else None
    directions = None
    if reference == "subspace" and memory is not None:
        directions = source_directions(source, memory, DRAWS, constants.temperature, adapt.decouple.rank)
    weights = FlowReliability(base.reference[modality].features) if adapt.reliability == "flow" else None
    return Rest(source, constants, adapt, floor, memory=memory, subspace=directions, reliability=weights)


def source_memory(
    config: Config, base: Base, modality: Modality
) -> Callable[[Params, int], tuple[Tensor, Tensor]] | None:
    """Draws source pairs that the base kept; None where it kept none for this modality."""
    kept, encoder = base.memory.get(modality), base.encoders[modality]
    if kept is None:
        return None
    prepared = [encoder.prepare(content) for content in kept.contents]
    targets = torch.from_numpy(np.array(kept.targets, dtype=np.float32))
    rows = min(config.adapt.decouple.rows, len(prepared))

    def draw(params: Params, step: int) -> tuple[Tensor, Tensor]:
        chosen = np.random.default_rng((config.seed, step)).permutation(len(prepared))[:rows]
        inputs = encoder.collate([prepared[row] for row in chosen.tolist()], rows)
        features = encoder.encode(inputs, params)
        return features, targets[torch.from_numpy(chosen)].to(features.device)

    return draw


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


class Aligners:
    """Makes the alignment of a lane; what is known of the clean domain is made once and shared by all."""

    def __init__(self, config: Config, base: Base, where: str) -> None:
        self._config, self._base, self._where = config, base, where
        self._clean: dict[Modality, CleanSide] = {}

    def __call__(self, modality: Modality) -> Aligner | None:
        """None without clean statistics, and where the paper's preset is asked for."""
        if not _aligned(self._config) or modality not in self._base.calibration:
            return None
        layer_norm = self._base.encoders[modality].hook_points().layer_norm
        align = self._config.adapt.align.settled(layer_norm)
        if modality not in self._clean:
            self._check_layers(modality)
            self._clean[modality] = CleanSide(self._base.calibration[modality], align, self._where)
        return ContentAlignment(self._clean[modality], align, self._config.batch.size)

    def _check_layers(self, modality: Modality) -> None:
        asked = self._config.adapt.align.clusters
        held = len(self._base.calibration[modality].widths)
        # A small tower without the default's layers goes without clusters; a layer that was named is meant.
        if asked.enabled and asked.layers != ClusterConfig().layers and asked.layers[-1] >= held:
            raise ConfigError(
                f"adapt.align.clusters.layers names layer {asked.layers[-1]}, but the {modality} tower of "
                f"this base has the layers 0 to {held - 1}: name some of those"
            )


def entropy(base: Base, modality: Modality, q: Tensor, near: Tensor, mask: Tensor) -> Tensor:
    """Refined entropy at the base model's temperature; zeros where it has none."""
    if modality not in base.constants:
        return torch.zeros(len(q))
    return refined(q, near, base.constants[modality].temperature, mask)[1]


def state_store(config: Config, bootstrap_servers: str, hurry: threading.Event | None = None) -> StateStore:
    """Where checkpoints and journal go. Once `hurry` is set, no call waits long for Kafka."""
    if config.state.store == "directory":
        return DirectoryStore(Path(config.state.directory))
    store = ChangelogStore(bootstrap_servers, config.kafka, hurry=hurry)
    store.warm_up()
    return store
