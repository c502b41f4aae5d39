"""The whole of COUPLE on small two-domain data: what a fit must be, going on after a stop, and refusals."""

from __future__ import annotations

import inspect
import os
import shutil
from dataclasses import asdict, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adapters.offline.couple import fit
from adapters.offline.couple_config import CoupleConfig, paper, plus
from adapters.offline.couple_results import Couple
from adapters.offline.couple_steps import cycled, stratified
from adapters.offline.parallel import Team
from core.errors import ArtifactError, ConfigError

Array = NDArray[np.float32]
SMALL = CoupleConfig(neighbours=5, epochs=4, pretrain=1, batch=32, label_hidden=16, walks=50, pairs=8)
DATA = Path(os.environ.get("QSHIFT_DATA", Path(__file__).parents[3] / "shared/data"))
DIGITS = DATA / "jda/mnist_usps_256.npz"


def domains(seed: int = 0, width: int = 12, each: int = 20) -> tuple[Array, NDArray[np.int64], Array, Any]:
    """Four Gaussian classes; the target is moved and noisier."""
    draw = np.random.default_rng(seed)
    middle = 2.5 * draw.standard_normal((4, width))
    y = np.arange(4 * each) % 4
    source = middle[y] + draw.standard_normal((len(y), width))
    y_t = draw.permutation(y)[: 4 * each - 7]
    target = middle[y_t] + 1.5 * draw.standard_normal((len(y_t), width)) + 2.5 * draw.standard_normal(width)
    mean = np.concatenate((source, target)).mean(0)
    return (source - mean).astype(np.float32), y, (target - mean).astype(np.float32), y_t


class Unit(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(x, dim=1)


def head(width: int = 12, bits: int = 16, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(width, 32), nn.ReLU(), nn.Dropout(dropout), nn.Linear(32, bits), Unit()
    )  # fmt: skip


def small_backbone() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
    )


def pictures(seed: int = 0) -> tuple[Array, NDArray[np.int64], Array, Any]:
    """Classes are colours; the target is darker and noisier."""
    draw = np.random.default_rng(seed)
    colour, y = draw.standard_normal((3, 3, 1, 1)), np.arange(24) % 3
    source = colour[y] + 0.3 * draw.standard_normal((24, 3, 8, 8))
    y_t = np.arange(18) % 3
    target = 0.6 * colour[y_t] + 0.5 * draw.standard_normal((18, 3, 8, 8)) - 0.2
    return source.astype(np.float32), y, target.astype(np.float32), y_t


def same(a: Couple, b: Couple) -> bool:
    states = [(a.head, b.head), (a.backbone or {}, b.backbone or {})]
    equal = all(x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x) for x, y in states)
    trusts = zip(
        (a.trust.pseudo, a.trust.scores, a.trust.chosen), (b.trust.pseudo, b.trust.scores, b.trust.chosen)
    )
    equal = equal and all(np.array_equal(x, y) for x, y in trusts)
    equal = equal and np.array_equal(a.label_codes, b.label_codes)
    return equal and a.losses == b.losses and a.reports == b.reports


@cache
def plain() -> Couple:
    source, y, target, _ = domains()
    return fit(source, y, target, head(), SMALL)


class Stop(Exception):
    pass


def stopping(after: int) -> Any:
    def progress(done: int, total: int, text: str) -> None:
        if done == after:
            raise Stop

    return progress


# What a fit must be.


def test_a_fit_adapts_and_says_what_it_did() -> None:
    source, y, target, y_t = domains()
    told: list[tuple[int, int, str]] = []
    before = {name: tensor.clone() for name, tensor in head().state_dict().items()}
    given = head()
    config = replace(SMALL, epochs=24, pretrain=8, learning_rate=3e-3)
    fitted = fit(source, y + 3, target, given, config, progress=lambda *v: told.append(v))
    assert all(torch.equal(before[k], v) for k, v in given.state_dict().items()), "the head given stays"
    assert [v[:2] for v in told] == [(e + 1, 24) for e in range(24)]
    assert {one[2] for one in told} == {"training COUPLE"}
    assert fitted.classes.tolist() == [3, 4, 5, 6]
    assert fitted.losses[0].target == 0 < fitted.losses[8].target
    assert fitted.losses[-1].source < 0.2 * fitted.losses[0].source
    assert fitted.losses[-1].pixel == 0 < fitted.losses[-1].manifold
    assert [r.epoch for r in fitted.reports] == [*range(8, 24), 24]
    report = fitted.reports[-1]
    assert report.trusted == fitted.trust.chosen.sum() <= len(target) // 2
    assert 0 < report.residual <= 1e-3 and report.reached >= report.full > 0
    judged = fitted.judged(y_t + 3)
    assert judged.accuracy == (fitted.pseudo_labels == y_t + 3).mean()
    assert judged.precision == (fitted.pseudo_labels == y_t + 3)[fitted.trust.chosen].mean()


def test_it_adapts_better_than_the_source_alone() -> None:
    gained = []
    for seed in range(2):
        source, y, target, y_t = domains(seed)
        config = plus(**{**asdict(SMALL), "rho_start": 0.2, "label_eps": 0.05, "epochs": 24, "pretrain": 8})
        config = replace(config, learning_rate=3e-3)
        alone, both = (fit(source, y, target, head(), c) for c in (replace(config, pretrain=24), config))
        gained.append((both.pseudo_labels == y_t).mean() - (alone.pseudo_labels == y_t).mean())
    assert min(gained) >= 0 and np.mean(gained) > 0.05


def test_the_trained_state_gives_the_codes_and_pseudo_labels_that_are_told() -> None:
    target, fitted, own = domains()[2], plain(), head()
    own.load_state_dict(fitted.head)
    with torch.no_grad():
        h = own(torch.from_numpy(target))
    e = torch.from_numpy(fitted.label_codes)
    nearest = (h @ nn.functional.normalize(e, dim=1).T).argmax(1)
    assert np.array_equal(nearest.numpy(), fitted.trust.pseudo) and e.abs().max() <= 1
    unreached = fitted.trust.scores == 0
    assert not (fitted.trust.chosen & unreached).any()
    assert ((fitted.trust.intra.weights >= 0.5) & (fitted.trust.intra.weights <= 1)).all()
    assert fitted.trust.chosen[fitted.trust.intra.target].all()


def test_the_first_step_is_that_of_its_formulas() -> None:
    """One source-only epoch of one step, by hand with Adam's own first step."""
    source, y, target, _ = domains()
    config = replace(SMALL, epochs=1, pretrain=1, batch=80, weight_decay=0.0)
    fitted = fit(source, y, target, head(), config)
    own = head()
    torch.manual_seed(config.seed)
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.Tanh())
    h, e = own(torch.from_numpy(source)), net(torch.eye(4))
    n = nn.functional.normalize
    logits = 10 * n(h, dim=1) @ n(e, dim=1).T
    between = (n(e, dim=1) @ n(e, dim=1).T).relu().square()
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(y))
    loss = loss + (between.sum() - between.diagonal().sum()) / 4 + 0.01 * ((h.abs() * 4 - 1) ** 2).mean()
    assert fitted.losses[0].source == pytest.approx(float(loss.detach()), rel=1e-5)
    loss.backward()  # type: ignore[no-untyped-call]
    for name, parameter in own.named_parameters():
        assert parameter.grad is not None
        moved = parameter.detach() - 1e-3 * parameter.grad / (parameter.grad.abs() + 1e-8)
        clear = parameter.grad.abs() > 1e-5
        assert torch.allclose(fitted.head[name][clear], moved[clear], atol=1e-5)


def test_equal_input_gives_equal_bits_and_seeds_matter() -> None:
    source, y, target, _ = domains()
    torch.manual_seed(7)
    before, kept = torch.random.get_rng_state(), source.copy()
    phi = head(dropout=0.3)
    torch.random.set_rng_state(before)
    fitted = fit(source, y, target, phi, SMALL)
    assert torch.equal(torch.random.get_rng_state(), before) and np.array_equal(source, kept)
    torch.rand(3)
    assert same(fitted, fit(source, y, target, phi, SMALL))
    assert not same(fitted, fit(source, y, target, phi, replace(SMALL, seed=1)))
    source.flags.writeable = target.flags.writeable = False
    assert same(fitted, fit(source, y, target, phi, SMALL, team=Team()))


@pytest.mark.parametrize(
    "changed",
    [
        {"selection": "confidence"}, {"selection": "all"}, {"target_loss": "ce"}, {"label_codes": "frozen"},
        {"lam": "fixed"}, {"lam": "rank"}, {"source_edges": "none"}, {"source_edges": "all", "sweeps": 50},
        {"quota": 0.5}, {"rho_start": 0.2, "label_eps": 0.05}, {"mix_weight": 0.0}, {"refresh": 2},
        {"selection": "both"}, {"beta": 0.75}, {"batch": 1000}, {"neighbours": 200},
    ],
)  # fmt: skip
def test_every_option_changes_the_fit_and_trains(changed: dict[str, Any]) -> None:
    source, y, target, _ = domains()
    other = fit(source, y, target, head(), replace(SMALL, **changed))
    assert not same(plain(), other)
    assert all(np.isfinite([v.source, v.target, v.manifold]).all() for v in other.losses)
    assert other.losses[-1].source < other.losses[0].source
    if changed.get("selection") == "all":
        assert other.trust.chosen.all()
    if changed.get("label_codes") == "frozen":
        assert set(np.unique(other.label_codes)) == {-1, 1}


def test_nothing_trusted_leaves_the_source_training_as_it_is() -> None:
    source, y, _, _ = domains()
    single = fit(source, y, -source[:1], head(), SMALL)
    assert single.reports[0].trusted == 0 and not single.trust.chosen.any()
    assert all(v.target == 0 for v in single.losses)
    assert np.isfinite([v.manifold for v in single.losses]).all()


def test_growth_of_the_trusted_share() -> None:
    grown = plus(epochs=11, pretrain=1)
    assert [grown.rho_at(e) for e in (1, 10, 11)] == pytest.approx([0.2, 0.9, 0.9])
    assert grown.rho_at(5) == pytest.approx(0.2 + 0.7 * 4 / 9)
    assert paper().rho_at(3) == 0.5 and paper().first == 20 and plus(rho_start=0.3).rho_start == 0.3
    every = replace(SMALL, epochs=9, pretrain=2, refresh=3)
    assert [e for e in range(9) if every.renews(e, 100)] == [2, 5, 8]
    assert [e for e in range(9) if replace(every, refresh=None).renews(e, 30_000)] == [2, 7]
    assert plus(label_eps=1.0, selection="flow") == paper(rho_start=0.2, rho=0.9)


def test_batches_hold_the_classes_in_proportion() -> None:
    y = np.repeat(np.arange(4), [40, 20, 10, 10])
    order = stratified(y, np.random.default_rng(0))
    assert sorted(order) == list(range(80))
    assert not np.array_equal(order, stratified(y, np.random.default_rng(1)))
    for part in np.split(order, 8):
        assert np.abs(np.bincount(y[part], minlength=4) - [5, 2.5, 1.25, 1.25]).max() <= 1.75
    draws = iter([np.array([2, 0, 1]), np.array([1, 2, 0]), np.array([0, 1, 2])])
    assert cycled(lambda: next(draws), 7).tolist() == [2, 0, 1, 1, 2, 0, 0]


# Pictures and a backbone.


def test_a_backbone_trains_with_pixel_mixtures_and_keeps_its_batch_statistics() -> None:
    source, y, target, y_t = pictures()
    config = replace(SMALL, neighbours=3, epochs=6, pretrain=2, backbone_rate=1e-2, learning_rate=1e-2)
    backbone = small_backbone()
    fitted = fit(source, y, target, head(24, 8), config, backbone=backbone)
    assert fitted.backbone is not None
    start = backbone.state_dict()
    assert not torch.equal(fitted.backbone["0.weight"], start["0.weight"])
    for name in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
        assert torch.equal(fitted.backbone[name], start[name])
    assert not torch.equal(fitted.backbone["1.weight"], start["1.weight"]), "scale and shift do learn"
    assert backbone.training
    assert all(v.pixel > 0 and v.manifold > 0 and v.pixel != v.manifold for v in fitted.losses[2:])
    assert fitted.losses[-1].source < 0.5 * fitted.losses[0].source
    assert len({r.edges for r in fitted.reports}) > 1, "the graph follows the features"
    assert (fitted.pseudo_labels == y_t).mean() > 0.6
    assert same(fitted, fit(source, y, target, head(24, 8), config, backbone=backbone))


# Going on.


@pytest.mark.parametrize("after", [1, 2, 3, 4])
def test_a_stopped_fit_goes_on_to_the_same_bits(after: int, tmp_path: Path) -> None:
    source, y, target, _ = domains()
    phi, config = head(dropout=0.2), replace(SMALL, refresh=2, rho_start=0.3)
    whole = fit(source, y, target, phi, config)
    with pytest.raises(Stop):
        fit(source, y, target, phi, config, checkpoint=tmp_path / "state", progress=stopping(after))
    told: list[int] = []
    rest = fit(
        source, y, target, phi, config, checkpoint=tmp_path / "state", progress=lambda d, n, t: told.append(d)
    )
    assert told == list(range(after + 1, 5)) and same(whole, rest)


def test_a_stopped_fit_of_a_backbone_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    source, y, target, _ = pictures()
    arguments = source, y, target, head(24, 8), replace(SMALL, neighbours=3)
    whole = fit(*arguments, backbone=small_backbone())
    with pytest.raises(Stop):
        fit(*arguments, backbone=small_backbone(), checkpoint=tmp_path / "s", progress=stopping(2))
    assert same(whole, fit(*arguments, backbone=small_backbone(), checkpoint=tmp_path / "s"))


def test_a_checkpoint_of_another_fit_is_refused(tmp_path: Path) -> None:
    source, y, target, _ = domains()
    state = tmp_path / "state"
    fit(source, y, target, head(), SMALL, checkpoint=state)
    torch.manual_seed(9)
    other = nn.Sequential(nn.Linear(12, 16), Unit())
    for arguments in (
        (source, y, target, head(), replace(SMALL, epochs=5)),
        (source, y[::-1].copy(), target, head(), SMALL),
        (source, y, target + 1, head(), SMALL),
        (source, y, target, other, SMALL),
    ):
        with pytest.raises(ConfigError, match="delete it to start anew"):
            fit(*arguments, checkpoint=state)
    (state / "state.safetensors").write_bytes(b"torn")
    with pytest.raises(ArtifactError, match="sha256"):
        fit(source, y, target, head(), SMALL, checkpoint=state)
    shutil.rmtree(state)
    fit(source, y, target, head(), SMALL, checkpoint=state)
    assert not [path for path in tmp_path.iterdir() if path != state], "nothing is left beside it"


# Errors.


def test_target_labels_are_not_a_parameter() -> None:
    assert list(inspect.signature(fit).parameters)[:5] == ["source", "labels", "target", "head", "config"]
    assert all("target" not in f.name or f.name.startswith("target_") for f in fields(CoupleConfig))


def test_input_that_does_not_fit_is_refused_before_any_work() -> None:
    source, y, target, _ = domains()
    holed = source.copy()
    holed[2, 1] = np.nan
    shot = np.zeros((80, 3, 8, 8), np.float32)
    cases: list[tuple[tuple[Any, ...], str]] = [
        ((source, y, target[:, :5], head()), r"one shape expected, got \(12,\) and \(5,\)"),
        ((holed, y, target, head()), "source: finite values expected, got NaN or infinity in 1 of 80 rows"),
        ((source, y, target * np.inf, head()), "target: finite"),
        ((source[0], y, target, head()), r"source: features \[n, D\] or pictures"),
        ((source, y[:-1], target, head()), "one label for each of 80 source rows"),
        ((source, np.where(y == 1, -1, y), target, head()), "leave unlabelled rows out"),
        ((source, y * 0, target, head()), "at least two source classes"),
        ((source, y, target[:0], head()), "target: at least one row"),
        ((shot, y, shot, head()), "a backbone expected for pictures"),
        ((source, y, target, head(5)), r"take rows of shape \(12,\) expected"),
        ((source, y, target, nn.Sequential(head(), nn.Unflatten(1, (4, 4)))), r"codes \[B, L\] expected"),
    ]
    for arguments, message in cases:
        with pytest.raises(ConfigError, match=message):
            fit(*arguments, SMALL, progress=stopping(1))


def test_a_loss_that_is_not_finite_is_refused() -> None:
    source, y, target, _ = domains()
    with pytest.raises(ConfigError, match="lower learning_rate"):
        fit(source, y, target, head(), replace(SMALL, learning_rate=1e30))


def test_settings_out_of_range_are_refused() -> None:
    wrong = {
        "neighbours": 0,
        "eps": 0.0,
        "tau": -1.0,
        "epochs": 0,
        "batch": 0,
        "mix_weight": -0.1,
        "rho": 0.0,
    }
    wrong |= {"rho_start": 1.1, "label_eps": 0.0, "quota": 0.0, "beta": 1.0, "slack": 0.0, "lam_fixed": 0.4}
    wrong |= {"refresh": 0, "pretrain": 5, "learning_rate": float("nan"), "weight_decay": np.inf, "seed": -1}
    for name, value in wrong.items():
        with pytest.raises(ConfigError, match=name):
            replace(SMALL, **{name: value})


# Real data.


@pytest.mark.skipif(not DIGITS.exists(), reason="the MNIST-USPS features are not there: set QSHIFT_DATA")
@pytest.mark.parametrize(("own", "other", "least"), [("mnist", "usps", 0.05), ("usps", "mnist", 0.08)])
def test_flow_chooses_pseudo_labels_that_are_better_than_the_average(
    own: str, other: str, least: float
) -> None:
    """Measured after 20 epochs on the source: 8 to 10 points from MNIST to USPS, 15 to 17 back."""
    with np.load(DIGITS) as stored:
        source, y, target, y_t = (stored[f"{d}_{k}"] for d in (own, other) for k in ("x", "y"))
    x = np.concatenate((source, target)).astype(np.float64)
    x /= np.linalg.norm(x, axis=1)[:, None]
    x = (x - x.mean(0)).astype(np.float32)
    torch.manual_seed(0)
    phi = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 32), Unit())
    fitted = fit(x[: len(y)], y, x[len(y) :], phi, paper(epochs=4, pretrain=4))
    judged = fitted.judged(y_t)
    assert judged.precision > judged.accuracy + least
    assert judged.gamma > 1 and fitted.reports[-1].residual <= 1e-3
