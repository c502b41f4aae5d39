"""PSCA for the service."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from adapters.offline.psca import fit
from adapters.offline.psca_config import paper, plus
from encoders.head import HashHead
from index.codes import pack
from qshift.recipes.domains.material import Learnt, Material, unit_features


def psca_head(material: Material) -> Learnt:
    """PSCA's out-of-sample map is linear: it is the hash head, in front of which the online stage adapts.

    The source keeps the codes that were learned with it.
    """
    preset = paper if material.options.preset == "paper" else plus
    config = preset(bits=material.options.bits, seed=material.options.seed)
    material.progress(0, 1, "fitting PSCA")
    unit = unit_features(None, material.source), unit_features(None, material.target)
    found = fit(unit[0], material.labels, unit[1], config)
    material.progress(1, 1, "fitting PSCA")
    head = HashHead(
        np.ascontiguousarray(found.hash.T, np.float32),
        np.zeros(material.options.bits, np.float32),
        {"image": found.mean.astype(np.float32)},
    )
    gauges = {name: float(getattr(found.trained, name)) for name in ("agreement", "reliability", "gap")}
    settings = {**asdict(config), "reliability_cap": str(config.reliability_cap)}  # JSON has no infinity
    extras = {"semantics": found.semantics.tensors()}
    codes = pack(found.quantisation.source_codes)
    return Learnt(head, unit[0], gauges=gauges, config=settings, extras=extras, codes=codes)
