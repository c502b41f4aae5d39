"""PSCA on small two-domain data against loops, its own invariants, and once on real digits."""

from __future__ import annotations

import inspect
import os
import time
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from adapters.offline.prototypes import leading_frame, membership, one_hot, polar
from adapters.offline.psca import align, fit, mean_gap, penalty, quantise, target_term
from adapters.offline.psca_config import PscaConfig
from adapters.offline.psca_map import PscaMap
from adapters.semantics import Reliability, Semantics, squared_distances
from core.errors import ArtifactError, ConfigError

Array = NDArray[np.float64]
SMALL = PscaConfig(bits=8, rounds=6)
DATA = Path(os.environ.get("QSHIFT_DATA", Path(__file__).parents[3] / "shared/data"))
DIGITS = DATA / "jda/mnist_usps_256.npz"


def domains(seed: int = 0, width: int = 12, each: int = 20) -> tuple[Array, NDArray[np.int64], Array, Any]:
    """Four Gaussian classes; the target is moved towards another class and turned a little."""
    draw = np.random.default_rng(seed)
    middle = 3 * draw.standard_normal((4, width))
    y = np.arange(4 * each) % 4
    source = middle[y] + draw.standard_normal((len(y), width))
    y_t = draw.permutation(y)
    turn = np.linalg.qr(np.eye(width) + 0.15 * draw.standard_normal((width, width)))[0]
    turn = turn * np.sign(np.diag(turn))
    target = (middle[y_t] + draw.standard_normal((len(y), width))) @ turn + 4 * draw.standard_normal(width)
    return source, y, target, y_t


def same(a: PscaMap, b: PscaMap) -> bool:
    return np.array_equal(a.hash, b.hash) and np.array_equal(
        a.quantisation.source_codes, b.quantisation.source_codes
    )


# Objectives.


def test_the_joint_and_the_literal_objective_equal_loops() -> None:
    draw = np.random.default_rng(1)
    d, r = draw.uniform(0, 2, (5, 3)), draw.dirichlet(np.ones(3), 5)
    told = Reliability(draw.uniform(0, 1, 5), np.zeros(5, np.int64), draw.integers(0, 3, 5))
    config = replace(SMALL, sigma=1.7, reliability_scale=2.0)
    literal = sum(float(r[i, j]) * float(d[i, j]) for i in range(5) for j in range(3))
    joint = sum(float(r[i, j]) ** 1.7 * float(d[i, j]) for i in range(5) for j in range(3))
    joint -= sum(2 * float(told.weight[i]) * float(np.log(r[i, told.named[i]])) for i in range(5))
    assert target_term(d, r, told, config) == pytest.approx(joint)
    assert target_term(d, r, told, replace(config, weights="literal")) == pytest.approx(literal)
    hard = one_hot(told.named, 3)
    assert np.isfinite(target_term(d, hard, told, replace(config, membership="hard")))
    p, gap = draw.standard_normal((4, 2)), draw.standard_normal(4)
    expected = 10 * sum(sum(float(gap[k] * p[k, c]) for k in range(4)) ** 2 for c in range(2))
    expected += sum((float((p[k] ** 2).sum()) + 1e-6) ** 0.5 for k in range(4))
    assert penalty(p, gap, SMALL) == pytest.approx(expected)


def test_the_mean_gap_is_that_of_its_weights() -> None:
    source, _, target, _ = domains()
    target = target[:30]
    e = np.concatenate((np.full(80, 1 / 80), np.full(30, -1 / 30)))
    x = np.concatenate((source, target))
    assert mean_gap(source, target, unit=False) == pytest.approx(x.T @ e)
    assert mean_gap(source, target, unit=True) == pytest.approx(x.T @ (e / np.linalg.norm(e)))


@pytest.mark.parametrize("width", [12, 200])
@pytest.mark.parametrize("kind", ["soft", "hard", "fcm"])
def test_the_objective_never_rises_within_a_round(width: int, kind: Literal["soft", "hard", "fcm"]) -> None:
    source, y, target, _ = domains(2, width)
    fitted = fit(source, y, target, replace(SMALL, membership=kind, rounds=15, tolerance=0))
    assert len(fitted.alignment.trace) == 15
    for before, after_r, after_p, after_o in fitted.alignment.trace:
        slack = 1e-9 * abs(after_r)
        assert after_r <= before + slack and after_p <= after_r + slack and after_o <= after_p + slack
    stages = np.array(fitted.quantisation.trace)
    assert (np.diff(stages) <= 1e-9 * stages[0]).all()


def test_the_literal_weights_have_no_common_objective_but_run() -> None:
    source, y, target, _ = domains(2)
    fitted = fit(source, y, target, replace(SMALL, weights="literal"))
    trace = np.array(fitted.alignment.trace)
    assert (trace[:, 2] <= trace[:, 1] + 1e-9).all(), "the projection step still lowers what it is scored by"
    assert (trace[:, 1] > trace[:, 0]).any(), "and the membership step does not"


# What a fit must be.


def test_a_fit_is_what_its_formulas_say() -> None:
    source, y, target, _ = domains()
    fitted = fit(source, y, target, SMALL)
    stage, codes = fitted.alignment, fitted.quantisation
    rows = [v / np.linalg.norm(v) for v in np.concatenate((source, target))]
    x = np.array([v - sum(rows) / len(rows) for v in rows])
    assert fitted.features(source) == pytest.approx(x[:80])
    assert stage.prototypes @ stage.prototypes.T == pytest.approx(np.eye(4))
    assert np.allclose(stage.prototypes, np.eye(4), atol=1e-10)
    assert stage.membership.sum(1) == pytest.approx(np.ones(80)) and stage.membership.min() >= 0
    f_s = np.array([[*stage.prototypes[y[i]], *(x[i] @ stage.projection)] for i in range(80)])
    mixed = stage.membership @ stage.prototypes
    f_t = np.array([[*mixed[i], *(x[80 + i] @ stage.projection)] for i in range(80)])
    for f, w, h in ((f_s, codes.source, codes.source_codes), (f_t, codes.target, codes.target_codes)):
        assert w.T @ w == pytest.approx(np.eye(8), abs=1e-9)
        assert np.array_equal(h, np.where(f @ w >= 0, 1, -1))
    learned = np.concatenate((codes.source_codes, codes.target_codes)).astype(float)
    gram = x.T @ x + 0.1 * np.eye(12)
    assert gram @ fitted.hash == pytest.approx(x.T @ learned)
    loss = ((f_s @ codes.source - codes.source_codes) ** 2).sum()
    loss += ((f_t @ codes.target - codes.target_codes) ** 2).sum()
    loss += 100 * ((codes.source - codes.target) ** 2).sum()
    assert codes.trace[-1] == pytest.approx(loss)


def test_codes_out_of_sample() -> None:
    source, y, target, _ = domains()
    fitted = fit(source, y, target, SMALL)
    relaxed = fitted.relaxed(target)
    assert np.array_equal(fitted.bits(target), relaxed >= 0)
    assert np.array_equal(fitted.bits(5 * target), fitted.bits(target)), "rows are scaled to length 1"
    single = np.concatenate([fitted.relaxed(row[None]) for row in target])
    assert single == pytest.approx(relaxed)
    linear = (target / np.linalg.norm(target, axis=1)[:, None]) @ fitted.hash - fitted.mean @ fitted.hash
    assert linear == pytest.approx(relaxed), "one linear layer with a bias on unit rows"
    assert fitted.bits(target[:0]).shape == (0, 8)
    stage = fitted.alignment
    x = fitted.features(target)
    scores = fitted.config.scores(stage.centres, x @ stage.projection, stage.progress)
    d = squared_distances(x @ stage.projection, stage.prototypes)
    told = fitted.config.reliability(scores, d)
    mixed = membership(d, told.named, told.weight) @ stage.prototypes
    rebuilt = np.concatenate((mixed, x @ stage.projection), axis=1)
    assert fitted.relaxed_by_membership(target) == pytest.approx(rebuilt @ fitted.quantisation.target)
    again = fitted.relaxed_by_membership(target) >= 0
    assert (again == (fitted.quantisation.target_codes > 0)).mean() > 0.95
    with pytest.raises(FrozenInstanceError):
        fitted.hash = relaxed  # type: ignore[misc]


def test_it_adapts_better_than_the_nearest_source_mean() -> None:
    gained = []
    for seed in range(5):
        source, y, target, y_t = domains(seed)
        fitted = fit(source, y + 3, target, SMALL)  # labels need not start at 0
        means = np.stack([source[y == c].mean(0) for c in range(4)])
        frozen = (squared_distances(target, means).argmin(1) == y_t).mean()
        reached = (fitted.pseudo_labels(target) == y_t + 3).mean()
        gained.append(reached - frozen)
        assert reached >= max(frozen, 0.9)
    assert np.mean(gained) > 0.1


@pytest.mark.parametrize(
    "changed",
    [
        {"sigma": 1.5}, {"combine": "blend"}, {"squared": False}, {"unit_gap": False},
        {"bits": 5}, {"bits": 64}, {"reliability_cap": 1.0},
    ],
)  # fmt: skip
def test_every_option_fits(changed: dict[str, Any]) -> None:
    source, y, target, y_t = domains()
    fitted = fit(source, y, target, replace(SMALL, **changed))
    assert (fitted.pseudo_labels(target) == y_t).mean() > 0.9
    assert fitted.bits(target).shape == (80, fitted.config.bits)


# Invariants.


def test_equal_input_gives_equal_bits_and_seeds_matter() -> None:
    source, y, target, _ = domains()
    before = source.copy()
    assert same(fit(source, y, target, SMALL), fit(source, y, target, SMALL))
    assert np.array_equal(source, before), "nothing given is written to"
    assert not same(fit(source, y, target, SMALL), fit(source, y, target, replace(SMALL, seed=1)))


def test_the_order_of_samples_and_of_classes_does_not_matter() -> None:
    source, y, target, _ = domains()
    fitted = fit(source, y, target, SMALL)
    draw = np.random.default_rng(3)
    order_s, order_t, order_c = draw.permutation(80), draw.permutation(80), draw.permutation(4)
    other = fit(source[order_s], y[order_s], target[order_t], SMALL)
    assert other.alignment.membership == pytest.approx(fitted.alignment.membership[order_t], abs=1e-6)
    renamed = fit(source, order_c[y], target, SMALL)
    assert renamed.alignment.membership[:, order_c] == pytest.approx(fitted.alignment.membership, abs=1e-6)


def test_the_latent_width_changes_nothing_in_stage_one() -> None:
    source, y, target, _ = domains()
    narrow, wide = (fit(source, y, target, replace(SMALL, width=q)).alignment for q in (4, 30))
    assert wide.membership == pytest.approx(narrow.membership, abs=1e-6)
    turn = np.linalg.qr(np.random.default_rng(4).standard_normal((4, 4)))[0]
    fitted = fit(source, y, target, SMALL)
    x_s, x_t = fitted.features(source), fitted.features(target)
    turned = align(x_s, y, x_t, np.eye(4) @ turn, SMALL)
    assert turned.membership == pytest.approx(narrow.membership, abs=1e-6)
    assert turned.projection == pytest.approx(narrow.projection @ turn, abs=1e-6)


def test_float32_agrees_with_float64() -> None:
    source, y, target, _ = domains()
    double, single = (fit(source, y, target, replace(SMALL, dtype=t)) for t in ("float64", "float32"))
    assert single.hash.dtype == np.float32 and single.alignment.projection.dtype == np.float32
    assert single.relaxed(target).dtype == np.float32
    assert single.alignment.membership == pytest.approx(double.alignment.membership, abs=1e-2)
    assert np.array_equal(single.pseudo_labels(target), double.pseudo_labels(target))
    assert (single.bits(target) == double.bits(target)).mean() > 0.9


@pytest.mark.parametrize("kind", ["soft", "hard", "fcm"])
@pytest.mark.parametrize("width", [12, 200])
def test_tensors_and_arrays_give_the_same_map(width: int, kind: Literal["soft", "hard", "fcm"]) -> None:
    source, y, target, _ = domains(2, width)
    config = replace(SMALL, membership=kind, sigma=1.5 if kind == "soft" else 2.0)
    arrays = fit(source, y, target, config)
    for given in (
        fit(torch.from_numpy(source), torch.from_numpy(y), torch.from_numpy(target), config),
        fit(source, y, target, replace(config, device="cpu")),
        fit(torch.from_numpy(source), y, target, config),
    ):
        assert np.array(given.alignment.trace) == pytest.approx(np.array(arrays.alignment.trace), rel=1e-9)
        assert given.alignment.membership == pytest.approx(arrays.alignment.membership, abs=1e-7)
        assert isinstance(given.hash, np.ndarray) and given.hash.dtype == np.float64
        assert given.relaxed_by_membership(target).shape == (80, 8)
        assert given.trained.gap == pytest.approx(arrays.trained.gap)
        assert np.array_equal(given.bits(target), arrays.bits(torch.from_numpy(target)))
    single = fit(torch.from_numpy(source), y, target, replace(config, dtype="float32"))
    assert single.hash.dtype == np.float32
    assert (single.pseudo_labels(target) == arrays.pseudo_labels(target)).mean() > 0.97


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_gives_the_same_map() -> None:
    source, y, target, _ = domains()
    here, there = fit(source, y, target, SMALL), fit(source, y, target, replace(SMALL, device="cuda"))
    assert there.alignment.membership == pytest.approx(here.alignment.membership, abs=1e-7)
    assert (there.bits(target) == here.bits(target)).mean() > 0.9


@pytest.mark.parametrize("device", ["cuda:99", "abacus", "meta"])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(ConfigError, match=f"device '{device}' cannot be used .*: leave it out"):
        PscaConfig(device=device)


def test_a_class_that_the_target_lacks_is_reported() -> None:
    source, y, target, y_t = domains(each=30)
    fitted = fit(source, y * 10, target[y_t != 2], SMALL)
    assert np.isfinite(fitted.hash).all()
    counts = [(fitted.classes[fitted.alignment.scores.argmax(1)] == c).sum() for c in fitted.classes]
    assert fitted.unnamed == tuple(int(c) for c, n in zip(fitted.classes, counts) if n == 0)
    one = fit(source, y * 10, target[y_t == 1][:1], SMALL)
    assert len(one.unnamed) == 3 and np.isfinite(one.hash).all()
    assert fit(source, y, target, SMALL).unnamed == ()


def test_degenerate_features_do_not_break_it() -> None:
    source, y, target, _ = domains()
    source[3], target[5] = 0, 0
    target[6] = target[7]
    source[:, 4], target[:, 4] = 0, 0
    fitted = fit(source, y, target, SMALL)
    assert np.isfinite(fitted.hash).all()
    assert np.array_equal(fitted.bits(target)[6], fitted.bits(target)[7])


def test_quantise_keeps_both_sides_close() -> None:
    draw = np.random.default_rng(5)
    f_s, f_t = draw.standard_normal((40, 10)), draw.standard_normal((50, 10))
    loose, tight = (quantise(f_s, f_t, replace(SMALL, together=v)) for v in (0.0, 1e4))
    far = [float(((c.source - c.target) ** 2).sum()) for c in (loose, tight)]
    assert far[1] < 1e-2 < far[0]


def test_a_round_of_quantisation_takes_source_then_target_then_codes() -> None:
    draw = np.random.default_rng(7)
    f_s, f_t = draw.standard_normal((40, 8)), draw.standard_normal((50, 8))
    f_s[3] = 0
    one = replace(SMALL, code_rounds=1, together=7.0)
    start = leading_frame(np.concatenate((f_s, f_t)), 8, np.random.default_rng(one.seed))
    h_s, h_t = (np.where(f @ start >= 0, 1, -1) for f in (f_s, f_t))
    w_s = polar(f_s.T @ h_s + 7 * start)
    w_t = polar(f_t.T @ h_t + 7 * w_s)
    codes = quantise(f_s, f_t, one)
    assert codes.source == pytest.approx(w_s) and codes.target == pytest.approx(w_t)
    assert (codes.source_codes[3] == 1).all(), "the sign of 0 is +1"
    twice = quantise(f_s, f_t, replace(one, code_rounds=2, code_tolerance=0))
    assert twice.source == pytest.approx(polar(f_s.T @ codes.source_codes + 7 * w_t))


# Gauges.


def test_gauges_need_no_labels_and_tell_a_shift() -> None:
    source, y, target, _ = domains()
    fitted = fit(source, y, target, SMALL)
    trained = fitted.gauges(target)
    assert trained == fitted.trained
    projected = fitted.features(target) @ fitted.alignment.projection
    scores = fitted.config.scores(fitted.alignment.centres, projected, fitted.alignment.progress)
    near = squared_distances(projected, fitted.alignment.prototypes).argmin(1)
    assert trained.agreement == pytest.approx(np.mean([scores[i].argmax() == near[i] for i in range(80)]))
    there = (fitted.features(source) @ fitted.alignment.projection).mean(0)
    assert trained.gap == pytest.approx(float(np.sqrt(((projected.mean(0) - there) ** 2).sum())))
    noise = np.random.default_rng(6).standard_normal(target.shape)
    moved, blurred = fitted.gauges(target + 8 * noise[0]), fitted.gauges(target + 8 * noise)
    assert moved.gap > 10 * trained.gap
    assert blurred.agreement < trained.agreement
    read = Semantics.read(fitted.semantics.tensors())
    unit = target / np.linalg.norm(target, axis=1, keepdims=True)
    assert read.of(unit) == fitted.semantics.of(unit)
    assert read.of(3 * unit).agreement == trained.agreement
    with pytest.raises(ArtifactError, match="no semantics of a PSCA base"):
        Semantics.read({"mean": unit})


# Errors.


def test_target_labels_are_not_a_parameter() -> None:
    assert list(inspect.signature(fit).parameters) == ["source", "labels", "target", "config"]


def test_input_that_does_not_fit_is_refused_before_any_work() -> None:
    source, y, target, _ = domains()
    holed = source.copy()
    holed[2, 1] = np.nan
    cases: list[tuple[tuple[Any, Any, Any, PscaConfig], str]] = [
        ((source, y, target[:, :5], SMALL), "one width expected, got 12 and 5"),
        ((holed, y, target, SMALL), "source: finite features expected, got NaN or infinity in 1 of 80 rows"),
        ((source, y, target * np.inf, SMALL), "target: finite"),
        ((source[0], y, target, SMALL), r"source: a matrix \[n, D\] expected"),
        (
            (source, y[:-1], target, SMALL),
            "one label for each of 80 source rows expected",
        ),
        ((source, np.where(y == 1, -1, y), target, SMALL), "leave unlabelled rows out"),
        ((source, np.where(y == 1, np.nan, y), target, SMALL), "leave unlabelled rows out"),
        ((source, y * 0, target, SMALL), "at least two source classes"),
        ((source, y, target[:0], SMALL), "nothing to adapt to"),
        ((source, y, target, replace(SMALL, bits=161)), "got 160 for 161 bits: add samples"),
        ((source, y, target, replace(SMALL, width=3)), "width of at least 4 expected for 4 classes"),
        ((source, y, target, replace(SMALL, bits=64, width=31)), "width of at least 32"),
    ]
    for arguments, message in cases:
        with pytest.raises(ConfigError, match=message):
            fit(*arguments)
    fitted = fit(source, y, target, SMALL)
    with pytest.raises(ConfigError, match="features of width 12 expected, got 5"):
        fitted.bits(target[:, :5])
    with pytest.raises(ConfigError, match="at least one row"):
        fitted.gauges(target[:0])


def test_settings_out_of_range_are_refused() -> None:
    wrong = {"bits": 0, "sparse": 0.0, "ridge": -1.0, "align": -1.0, "together": np.inf, "sigma": 1.0}
    wrong |= {"temperature": float("nan"), "rounds": 0, "code_rounds": 0, "tolerance": -1.0}
    for name, value in wrong.items():
        with pytest.raises(ConfigError, match=name):
            replace(SMALL, **{name: value})
    assert {f.name for f in fields(PscaConfig)} >= set(wrong)


# Real data.


@pytest.mark.skipif(not DIGITS.exists(), reason="the MNIST-USPS features are not there: set QSHIFT_DATA")
def test_mnist_to_usps_at_64_bits_reaches_the_band() -> None:
    """Mean of three splits: how a frame is turned is drawn, and one draw is worth 3 points."""
    with np.load(DIGITS) as stored:
        source, y, x, y_x = (stored[k] for k in ("mnist_x", "mnist_y", "usps_x", "usps_y"))
    scores = []
    for split in range(3):
        order = np.random.default_rng(split).permutation(len(x))
        queries, training = order[:180], order[180:]
        began = time.process_time()
        fitted = fit(source, y, x[training], PscaConfig(bits=64))
        assert time.process_time() - began < 20, "measured: a second; far more means a wrong form was taken"
        assert (fitted.alignment.membership.argmax(1) == y_x[training]).mean() > 0.76
        codes = np.where(fitted.bits(x[queries]), 1, -1)
        galleries = (fitted.quantisation.source_codes, np.where(fitted.bits(source), 1, -1))
        scores.append([worst_map(gallery, y, codes, y_x[queries]) for gallery in galleries])
    learned, hashed = np.mean(scores, axis=0)
    assert learned > 0.74 and hashed > 0.64 and learned > hashed


def worst_map(gallery: NDArray[np.int8], labels: Any, codes: NDArray[np.int64], asked: Any) -> float:
    """mAP with the least that any order of ties could give, so no tie rule can lift it."""
    precision = []
    for query, label in zip(codes, asked):
        product, relevant = gallery.astype(np.int64) @ query, labels == label
        ranks = np.flatnonzero(relevant[np.lexsort((relevant, -product))]) + 1
        precision.append((np.arange(1, len(ranks) + 1) / ranks).mean())
    return float(np.mean(precision))


# Rounding.


@pytest.mark.rounding
@pytest.mark.parametrize("kind", ["soft", "hard", "fcm"])
@pytest.mark.parametrize("width", [12, 200])
def test_what_is_rounding_decides_no_bit(width: int, kind: Literal["soft", "hard", "fcm"]) -> None:
    """Another processor is like inputs that differ in their last digits."""
    for seed in range(3):
        source, y, target, _ = domains(seed, width)
        config = replace(SMALL, membership=kind, sigma=1.5 if kind == "soft" else 2.0)
        draw = np.random.default_rng(seed)
        moved = [x + 1e-12 * draw.standard_normal(x.shape) for x in (source, target)]
        one, other = fit(source, y, target, config), fit(moved[0], y, moved[1], config)
        assert np.array_equal(one.bits(target), other.bits(target))
        assert np.array_equal(one.quantisation.target_codes, other.quantisation.target_codes)
        assert np.array_equal(one.pseudo_labels(target), other.pseudo_labels(target))


@pytest.mark.rounding
def test_a_leading_frame_depends_on_no_basis() -> None:
    """Equal eigenvalues at the cut, above it, and none at all: the frame is that of any turned input."""
    draw = np.random.default_rng(4)
    left = np.linalg.qr(draw.standard_normal((50, 10)))[0]
    right = np.linalg.qr(draw.standard_normal((10, 10)))[0]
    for values in ([5, 5, 5, 2, 2, 2, 2, 1, 1, 1], [9, 8, 7, 0, 0, 0, 0, 0, 0, 0], [3] * 10):
        features = left * np.array(values, float) @ right.T
        turned = (
            np.linalg.qr(draw.standard_normal((50, 50)))[0] @ features
        )  # the same gram matrix, rounded anew
        frames = [leading_frame(x, 5, np.random.default_rng(7)) for x in (features, turned, features + 1e-13)]
        for frame in frames:
            np.testing.assert_allclose(frame.T @ frame, np.eye(5), atol=1e-9)
            np.testing.assert_allclose(frame, frames[0], atol=1e-5)
        kept = np.linalg.norm(features @ frames[0]) ** 2
        assert kept == pytest.approx(sum(sorted((v**2 for v in values), reverse=True)[:5]), rel=1e-6)
