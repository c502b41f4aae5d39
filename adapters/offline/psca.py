"""PSCA: a linear hash for a labelled source and an unlabelled target that share C classes.

    1  align      one projection P pulls both domains to orthonormal prototypes O and their means together;
                  target samples get memberships R, corrected by pseudo-labels as far as these are reliable
    2  rebuild    F_s = [Y_s O ; X_s P]     F_t = [R O ; X_t P]
    3  quantise   codes H = sgn(F W), one orthonormal W per domain, both kept close
    4  hash       Phi = (X'X + beta I)^-1 X' [H_s ; H_t],  code of any x: sgn(x Phi)

Reference: PSCA, AAAI-26 (arXiv 2512.04524). `docs/methods/psca.md` holds symbols, origins and results.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from array_api_compat import array_namespace, device
from numpy.typing import ArrayLike
from torch import Tensor

from adapters.offline.prototypes import (
    leading_frame,
    membership,
    one_hot,
    power_iteration,
    project,
    prototypes,
    ridge,
    row_weights,
)
from adapters.offline.psca_config import PscaConfig, checked_width, host, indexed, matrix
from adapters.offline.psca_map import Alignment, PscaMap, Quantisation, Values
from adapters.offline.pseudo_labels import centres
from adapters.semantics import Agreement, Floats, Labels, Reliability, squared_distances, unit_rows


def fit(
    source: ArrayLike | Tensor,
    labels: ArrayLike,
    target: ArrayLike | Tensor,
    config: PscaConfig | None = None,
) -> PscaMap:
    """Fits the map; the same inputs, configuration and thread count give the same bits.

    Arrays are fitted in NumPy, tensors in torch where they are (`config.device`); the map is NumPy's.

    Args:
        source: features [n_s, D], finite.
        labels: [n_s] integers >= 0, at least two classes.
        target: features [n_t, D], finite. Their labels are not asked for.
        config: see there.

    Raises:
        ConfigError: features, labels and configuration do not fit together.
    """
    config = config or PscaConfig()
    tensors = (str(x.device) for x in (source, target) if isinstance(x, Tensor))
    where = config.device or next(tensors, None)
    x_s, x_t = (matrix(x, name, config.dtype, where) for x, name in ((source, "source"), (target, "target")))
    xp = array_namespace(x_s)
    classes, named = indexed(host(labels), len(x_s))
    width = checked_width(x_s, x_t, len(classes), config)
    y = xp.asarray(named, device=device(x_s))
    unit = unit_rows(xp.concat((x_s, x_t)))
    mean = unit.mean(0)
    x = unit - mean
    x_s, x_t = x[: len(x_s)], x[len(x_s) :]
    frame = xp.eye(len(classes), width, dtype=x.dtype, device=device(x))
    stage = align(x_s, y, x_t, frame, config)
    target_side = stage.membership @ stage.prototypes
    rebuilt_s = xp.concat((stage.prototypes[y], x_s @ stage.projection), axis=1)
    rebuilt_t = xp.concat((target_side, x_t @ stage.projection), axis=1)
    codes = quantise(rebuilt_s, rebuilt_t, config)
    learned = xp.astype(xp.concat((codes.source_codes, codes.target_codes)), x.dtype)
    counts = np.bincount(host(stage.scores.argmax(1)), minlength=len(classes))
    fitted = PscaMap(
        config, classes, host(mean), host((x_s @ stage.projection).mean(0)), stage.hosted(), codes.hosted(),
        host(ridge(x, learned, config.ridge)), tuple(classes[counts == 0].tolist()), Agreement(0, 0, 0),
    )  # fmt: skip
    return replace(fitted, trained=fitted.semantics.of_rows(host(x_t)))


def align(source: Floats, y: Labels, target: Floats, frame: Floats, config: PscaConfig) -> Alignment:
    """Stage 1 on normalised rows: R, P and O in turn, each exact, then fresh pseudo-labels.

    Within a round the objective never rises (joint weights). Between rounds reliability changes, and with it
    the objective. P multiplies O by a symmetric matrix, so O stays the frame [C, q] it was started from.
    """
    xp = array_namespace(source)
    x, count = xp.concat((source, target)), len(frame)
    gap, y_s = mean_gap(source, target, config.unit_gap), one_hot(y, count, x.dtype)

    def weighed(r: Floats) -> Floats:
        both: Floats = xp.concat((y_s, r**config.sigma if config.weights == "joint" else r))
        return both

    def projection(r: Floats, rows: Floats) -> Floats:
        return project(x, weighed(r), frame, gap, rows, config.align, config.sparse)

    def value(p: Floats, r: Floats, told: Reliability) -> float:
        total = float(((source @ p - frame[y]) ** 2).sum()) + penalty(p, gap, config)
        return total + target_term(squared_distances(target @ p, frame), r, told, config)

    found = centres(source, y, target, count)
    scores = config.scores(found, target, 0.0)
    r = one_hot(scores.argmax(1), count, x.dtype)
    p = projection(r, xp.ones_like(x[0]))
    trace: list[Values] = []
    for step in range(1, config.rounds + 1):
        d = squared_distances(target @ p, frame)
        told = config.reliability(scores, d)
        values = [value(p, r, told)]
        r = membership(d, told.named, config.trust(told), config.sigma)
        values.append(value(p, r, told))
        p = projection(r, row_weights(p, config.sparse_eps))
        values.append(value(p, r, told))
        frame = prototypes(weighed(r).T @ (x @ p), frame)
        values.append(value(p, r, told))
        trace.append(tuple(values))
        found = centres(source @ p, y, target @ p, count)
        scores = config.scores(found, target @ p, step / config.rounds)
        if step > 1 and abs(trace[-1][-1] - trace[-2][-1]) <= config.tolerance * abs(trace[-2][-1]):
            break
    return Alignment(p, frame, r, scores, found, len(trace) / config.rounds, tuple(trace))


def target_term(d: Floats, r: Floats, told: Reliability, config: PscaConfig) -> float:
    """Target's share of the objective; infinite where a trusted class has membership 0.

    Joint: sum r^sigma d - alpha log r_named. Literal (Eq. 6): sum r d, which the R step does not minimise.
    """
    if config.weights == "literal":
        return float((r * d).sum())
    xp = array_namespace(r)
    trust, own = config.trust(told), r[xp.arange(len(r), device=device(r)), told.named]
    counts = (trust > 0) & (own < 1)  # 0 log 0 = 0, and inf log 1 = 0
    with np.errstate(divide="ignore"):
        return float((r**config.sigma * d).sum() - (trust[counts] * xp.log(own[counts])).sum())


def penalty(p: Floats, gap: Floats, config: PscaConfig) -> float:
    """lambda1 ||v P||^2 + lambda2 sum_i sqrt(||p_i||^2 + eps)."""
    sparse = array_namespace(p).sqrt((p**2).sum(1) + config.sparse_eps).sum()
    return float(config.align * ((gap @ p) ** 2).sum() + config.sparse * sparse)


def mean_gap(source: Floats, target: Floats, unit: bool) -> Floats:
    """v [D] = X'e, e = 1/n_s on the source and -1/n_t on the target, scaled to length 1 if asked for."""
    gap: Floats = source.mean(0) - target.mean(0)
    return gap / (1 / len(source) + 1 / len(target)) ** 0.5 if unit else gap


def quantise(source: Floats, target: Floats, config: PscaConfig) -> Quantisation:
    """Stage 2 on rebuilt rows F: W_s, W_t, then H, until the objective stands still."""
    xp = array_namespace(source)
    frame = leading_frame(xp.concat((source, target)), config.bits, np.random.default_rng(config.seed))
    w_s = w_t = frame
    h_s, h_t = _signs(source @ w_s), _signs(target @ w_t)
    a_s, a_t = source.T @ source, target.T @ target

    def value() -> float:
        loss = ((source @ w_s - h_s) ** 2).sum() + ((target @ w_t - h_t) ** 2).sum()
        return float(loss + config.together * ((w_s - w_t) ** 2).sum())

    trace = [value()]
    for _ in range(config.code_rounds):
        w_s = power_iteration(a_s, source.T @ h_s + config.together * w_t, w_s, config.inner_steps)
        w_t = power_iteration(a_t, target.T @ h_t + config.together * w_s, w_t, config.inner_steps)
        h_s, h_t = _signs(source @ w_s), _signs(target @ w_t)
        trace.append(value())
        if abs(trace[-1] - trace[-2]) <= config.code_tolerance * abs(trace[-2]):
            break
    return Quantisation(w_s, w_t, xp.astype(h_s, xp.int8), xp.astype(h_t, xp.int8), tuple(trace))


def _signs(relaxed: Floats) -> Floats:
    """+1 where >= 0, else -1; what is 0 but for rounding is +1."""
    xp = array_namespace(relaxed)
    ones = xp.ones_like(relaxed)
    zero = float(xp.finfo(relaxed.dtype).eps) ** 0.5 / 10 * xp.max(xp.abs(relaxed))
    found: Floats = xp.where(relaxed >= -zero, ones, -ones)
    return found
