"""The methods that `qshift evaluate` compares, behind one function: training rows in, codes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapters.offline import couple, density, graph_hash, psca, spectral
from adapters.offline.couple_config import CoupleConfig, paper, plus
from adapters.offline.psca_config import PscaConfig
from adapters.offline.tpsnet_config import TpsConfig
from adapters.semantics import unit_rows
from core.errors import ConfigError
from core.types import Floats
from encoders.head import itq
from encoders.projection import Projection
from index.linear_hash import lsh, pcah
from qshift.benchmarks.hashing.domains import packaged_towers
from qshift.recipes.domains.couple import projection_head
from qshift.recipes.domains.tpsnet import fitted_tpsnet, fused_features, phases_of

Domain = Literal["source", "target"]


@dataclass(frozen=True, slots=True)
class Rows:
    """Samples of a domain: unit features [n, D], and the pictures they are of where the task has pictures."""

    features: Floats
    pictures: tuple[Any, ...] = ()

    def __len__(self) -> int:
        return len(self.features)

    def take(self, rows: NDArray[np.int64]) -> Rows:
        return Rows(self.features[rows], tuple(self.pictures[i] for i in rows) if self.pictures else ())


@dataclass(frozen=True, slots=True)
class Training:
    """What a fit may see: a labelled source [n_s] and an unlabelled target. No query, no target label."""

    source: Rows
    labels: NDArray[np.int64]
    target: Rows
    bits: int
    seed: int


class Relaxed(Protocol):
    """Rows of a domain -> [B, L]; a bit is 1 where the value is at least 0."""

    def __call__(self, rows: Rows, domain: Domain) -> NDArray[Any]: ...


@dataclass(frozen=True, slots=True)
class Fitted:
    """A fitted method.

    Args:
        relaxed: its out-of-sample function.
        learned: [n_s, L] codes that the fit gave to the source rows; they hold the source's labels.
        exact: True where no code is made: rows are compared by their cosine.
        gauges: what the fit can say without labels.
    """

    relaxed: Relaxed
    learned: NDArray[Any] | None = None
    exact: bool = False
    gauges: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Method:
    """How a method is fitted.

    Args:
        fit: see there.
        learns: whether it gives codes to the source rows.
        exact: whether it makes no codes.
        pictures: whether it needs pictures.
    """

    fit: Callable[[Training], Fitted]
    learns: bool = False
    exact: bool = False
    pictures: bool = False


def fit_psca(training: Training, by_membership: bool = False, **settings: Any) -> Fitted:
    """PSCA; queries are coded by its ridge map, or as training samples are, by their membership (ours)."""
    config = PscaConfig(bits=training.bits, seed=training.seed, **settings)
    found = psca.fit(training.source.features, training.labels, training.target.features, config)
    gauges = {name: float(getattr(found.trained, name)) for name in ("agreement", "reliability", "gap")}
    coded = found.relaxed_by_membership if by_membership else found.relaxed
    return Fitted(lambda rows, domain: coded(rows.features), found.quantisation.source_codes, gauges=gauges)


def fit_couple(training: Training, preset: Callable[..., CoupleConfig], **changes: Any) -> Fitted:
    """COUPLE on features; its head is the projection that the service would load."""
    both = [training.source.features, training.target.features]
    mean = np.concatenate(both).mean(0)
    config = preset(seed=training.seed, **changes)
    head = projection_head(both[0].shape[1], training.bits, training.seed)
    found = couple.fit(both[0] - mean, training.labels, both[1] - mean, head, config)
    projection = Projection.from_tensors(found.head)

    def relaxed(rows: Rows, domain: Domain) -> Floats:
        with torch.no_grad():
            unit: Floats = projection(torch.from_numpy(rows.features - mean)).numpy()
        return unit

    last = found.reports[-1]
    return Fitted(relaxed, gauges={"trusted": float(last.trusted), "reached": last.reached})


def fit_tpsnet(training: Training, codes: bool = False, phase: bool = True, **settings: Any) -> Fitted:
    """TPSNet behind the packaged tower: features minus the mean of their domain, or ITQ codes of both."""
    towers = packaged_towers()

    def phases(rows: Rows) -> Tensor | None:
        prepared = [towers.image.prepare(picture) for picture in rows.pictures]
        return phases_of(towers.image, prepared) if phase else None

    sides = (training.source, training.target)
    inner = [phases(rows) for rows in sides]
    kept = [p for p in inner if p is not None]
    config = TpsConfig(classes=int(training.labels.max()) + 1, seed=training.seed, **settings)
    raw = (training.source.features, training.target.features)
    network, found = fitted_tpsnet(
        towers.image, towers.text, raw, kept or None, config, "class_queries", lambda *_: None
    )
    means = {"source": found.means[0].numpy(), "target": found.means[1].numpy()}

    def features(rows: Rows, domain: Domain) -> Floats:
        fused: Floats = fused_features(network, rows.features, phases(rows))
        return np.asarray(fused - means[domain], np.float32)

    if not codes:
        return Fitted(lambda rows, domain: unit_rows(features(rows, domain)), exact=True)
    both = [fused_features(network, v, p) - m.numpy() for v, p, m in zip(raw, inner, found.means)]
    weight = itq(
        np.concatenate(both), np.zeros(both[0].shape[1], np.float32), training.bits, seed=training.seed
    )
    return Fitted(lambda rows, domain: features(rows, domain) @ weight.T)


def fit_raw(training: Training) -> Fitted:
    """The features as they are: the ceiling of what codes of them can find."""
    return Fitted(lambda rows, domain: rows.features, exact=True)


def fit_centred(training: Training) -> Fitted:
    """Each domain minus its own mean."""
    means = {
        "source": training.source.features.mean(0),
        "target": training.target.features.mean(0),
    }
    return Fitted(lambda rows, domain: unit_rows(rows.features - means[domain]), exact=True)


def _baseline(fit: Callable[[Floats, int, int], Any]) -> Callable[[Training], Fitted]:
    """Unsupervised codes of all training rows minus their mean."""

    def fitted(training: Training) -> Fitted:
        rows = np.concatenate((training.source.features, training.target.features))
        mean = rows.mean(0)
        found = fit(rows - mean, training.bits, training.seed)
        return Fitted(lambda asked, domain: found.relaxed(asked.features - mean))

    return fitted


def _itq(rows: Floats, bits: int, seed: int) -> Any:
    return _Linear(itq(rows, rows.mean(0), bits, seed=seed))


@dataclass(frozen=True, slots=True)
class _Linear:
    """W [L, D] as codes of rows that are centred already."""

    weight: Floats

    def relaxed(self, rows: Floats) -> Floats:
        return rows @ self.weight.T


def _methods() -> dict[str, Method]:
    found = {"psca": Method(fit_psca, learns=True)}
    variants: dict[str, dict[str, Any]] = {
        "hard": {"membership": "hard"},
        "fcm": {"membership": "fcm"},
        "literal": {"weights": "literal"},
        "membership": {"by_membership": True},
    }
    for name, settings in variants.items():  # its ablations, Eq. 6 as printed, other query codes
        found[f"psca-{name}"] = replace(found["psca"], fit=partial(fit_psca, **settings))
    flows: dict[str, tuple[Callable[..., CoupleConfig], dict[str, Any]]] = {
        "couple": (paper, {}),
        "couple-plus": (plus, {}),
        "couple-flow": (paper, {"mix_weight": 0.0}),  # the paper's V2
        "couple-all": (paper, {"mix_weight": 0.0, "selection": "all"}),  # V1
    }
    for name, (preset, changes) in flows.items():
        found[name] = Method(partial(fit_couple, preset=preset, **changes))
    parts: dict[str, dict[str, Any]] = {
        "tpsnet": {"codes": True},
        "tpsnet-features": {},
        "tpsnet-text": {"phase": False},  # ablations, on features
        "tpsnet-phase": {"text": False},
        "tpsnet-tie": {"text": False, "phase": False},
        # Pseudo-labels alone, at the rate that is better for them.
        "tpsnet-none": {"text": False, "phase": False, "tie": "none", "rate": 3e-4},
    }
    for name, chosen in parts.items():
        found[name] = Method(partial(fit_tpsnet, **chosen), exact="codes" not in chosen, pictures=True)
    for name, fit in (
        ("itq", _itq),
        ("lsh", lsh),
        ("pcah", pcah),
        ("sh", spectral.fit),
        ("dsh", density.fit),
        ("sgh", graph_hash.fit),
    ):
        found[name] = Method(_baseline(fit))
    found["raw"] = Method(fit_raw, exact=True)
    found["centred"] = Method(fit_centred, exact=True)
    return found


METHODS: Mapping[str, Method] = MappingProxyType(_methods())
"""What `qshift evaluate` may be asked for."""


def methods_of(names: tuple[str, ...]) -> tuple[str, ...]:
    """Raises ConfigError for an unknown one."""
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names:
        given = f"no method {unknown[0]!r}" if unknown else "no method was named"
        raise ConfigError(f"{given}: expected some of {', '.join(METHODS)}")
    return tuple(dict.fromkeys(names))
