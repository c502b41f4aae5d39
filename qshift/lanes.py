"""Configuration -> what a lane owns: its adapter, under the guards that are on, and its alignment.

Beside `qshift/build.py` the only module that names concrete classes.
"""

from __future__ import annotations

from collections.abc import Callable

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
from adapters.online.own import Own
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
from core.config import OWN_METHOD, ClusterConfig, Config
from core.errors import ConfigError
from core.protocols import Adapter, Aligner
from core.types import Modality
from encoders.base_model import Base
from encoders.source_memory import source_memory

PEERS: dict[str, Callable[..., Adapter]] = {
    "tent": Tent, "eata": Eata, "sar": Sar, "read": Read, "deyo": Deyo, "shot": Shot,
    "uca": Uca, "cliptta": Cliptta, "uatta": Uatta,
}  # fmt: skip
DRAWS = 64
"""Gradients of source pairs that the subspace of reference D3 is spanned by."""


class Known:
    """What a base says of its source, made once and shared by all lanes, which only read it.

    A service may have lanes for each of thousands of tenants: a copy for each took a millisecond to make.
    """

    def __init__(self, base: Base, where: str) -> None:
        self.base, self.where = base, where
        self._clean: dict[Modality, Tensor] = {}
        self._source: dict[Modality, dict[str, Tensor]] = {}

    def clean(self, modality: Modality) -> Tensor:
        """Clean source queries [n, D] as the frozen encoder sees them."""
        if modality not in self._clean:
            features = np.array(self.base.reference[modality].features, dtype=np.float32)
            self._clean[modality] = torch.from_numpy(features).to(self.where)
        return self._clean[modality]

    def source(self, modality: Modality) -> dict[str, Tensor]:
        """The adaptable tensors at their source values."""
        if modality not in self._source:
            self._source[modality] = self.base.encoders[modality].adaptable()
        return self._source[modality]


def adapter(
    config: Config, base: Base, modality: Modality, where: str, known: Known | None = None
) -> Adapter:
    """A lane's method, under the guards that are on; `known` saves what was made for other lanes."""
    adapt, known = config.adapt, known or Known(base, where)
    if modality not in base.constants:
        return Frozen()
    centred, method = _centred(config, base, modality), method_of(config, base, modality)
    if method == "frozen":
        return Centring(known.clean(modality).mean(0), config.batch.floor) if centred else Frozen()
    made = _method(method, config, known, modality)
    guard = adapt.guard
    guarded = guard.reset_every or guard.reset_below or guard.restore
    if guarded and made.parameters():
        made = Guarded(made, known.source(modality), guard, config.seed)
    if not centred or not made.parameters():
        return made
    return Centred(made, known.clean(modality).mean(0), config.batch.floor)


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


def _method(method: str, config: Config, known: Known, modality: Modality) -> Adapter:
    base = known.base
    adapt, floor, constants = config.adapt, config.batch.floor, base.constants[modality]
    clean = known.clean(modality)
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
    source = known.source(modality)
    if method in PEERS:
        return PEERS[method](source, constants, adapt, floor)
    if OWN_METHOD.fullmatch(method):  # nobody knows what a stranger's class writes to
        return Own(method, base.encoders[modality].adaptable(), constants, adapt, floor)
    if method == "tcr":
        return Tcr(source, constants, adapt, floor)
    if method != "rest":
        raise ConfigError(f"nothing here makes the method {method!r}: give it a line in qshift/lanes.py")
    reference = adapt.decouple.reference
    drawn = reference in ("memory", "subspace")
    memory = source_memory(base, modality, adapt.decouple.rows, config.seed) if drawn else None
    directions = None
    if reference == "subspace" and memory is not None:
        directions = source_directions(source, memory, DRAWS, constants.temperature, adapt.decouple.rank)
    weights = FlowReliability(base.reference[modality].features) if adapt.reliability == "flow" else None
    return Rest(source, constants, adapt, floor, memory=memory, subspace=directions, reliability=weights)


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
        asked, held = self._config.adapt.align.clusters, len(self._base.calibration[modality].widths)
        # A small tower without the default's layers goes without clusters; a layer that was named is meant.
        if asked.enabled and asked.layers != ClusterConfig().layers and asked.layers[-1] >= held:
            raise ConfigError(
                f"adapt.align.clusters.layers names layer {asked.layers[-1]}, but the {modality} tower of "
                f"this base has the layers 0 to {held - 1}: name some of those"
            )
