"""Statistics alignment against a slow loop, and what it must never do."""

import copy
import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from adapters.online import clusters
from adapters.online.alignment import EPS, FOUNDED, CleanSide, ContentAlignment
from adapters.online.matching import CleanDomain
from adapters.online.places import GRID, places
from core.config import AlignSettings, ClusterConfig
from core.references import Calibration

WIDTHS = (3, 2)
BATCH = 8


def calibration(seed: int = 0, n: int = 40) -> Calibration:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, 6)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    mean = rng.normal(size=(n, 5)).astype(np.float32)
    sd = rng.uniform(0.5, 2.0, size=(n, 5)).astype(np.float32)
    return Calibration(features, mean, sd, WIDTHS)


def aligning(clean: Calibration, config: AlignSettings) -> ContentAlignment:
    return ContentAlignment(CleanSide(clean, config), config, BATCH)


def queries(seed: int = 1, rows: int = BATCH) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(rows, 6)).astype(np.float32)
    return torch.from_numpy(features / np.linalg.norm(features, axis=1, keepdims=True))


def inputs(layer: int, seed: int = 2, rows: int = BATCH) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + layer)
    return 3 + 2 * torch.randn(rows, WIDTHS[layer], 4, 5, generator=generator)


ALL = torch.ones(BATCH, dtype=torch.bool)


def apply(done: Any, layer: int, x: torch.Tensor) -> torch.Tensor:
    """What a layer would be given."""
    move = done(layer, x)
    assert move is not None
    shape = (1, -1) + (1,) * (x.ndim - 2)
    return x * move[0].view(shape) + move[1].view(shape)


def slow(
    x: torch.Tensor, rows: list[int], clean: np.ndarray, prior: np.ndarray, k: float, f: float
) -> np.ndarray:
    """The page's formula for a first batch, element by element, in float64."""
    values = x.double().numpy()
    out = np.empty_like(values)
    for channel in range(values.shape[1]):
        seen = [float(v) for row in rows for v in values[row, channel].ravel()]
        m, q = sum(seen) / len(seen), sum(v * v for v in seen) / len(seen)
        share = len(rows) / BATCH
        decay = f**share
        total = decay * 1.0 + share
        stream_m = (decay * prior[0, channel] + share * m) / total
        stream_q = (decay * prior[1, channel] + share * q) / total
        target_m = (decay * prior[0, channel] + share * clean[0, channel]) / total
        target_q = (decay * prior[1, channel] + share * clean[1, channel]) / total
        s_s = math.sqrt(max(stream_q - stream_m**2, 0) + EPS)
        s_c = math.sqrt(max(target_q - target_m**2, 0) + EPS)
        moved = (values[:, channel] - stream_m) / s_s * ((1 - k) * s_s + k * s_c)
        out[:, channel] = moved + (1 - k) * stream_m + k * target_m
    return out


@pytest.mark.parametrize("rows", [BATCH, 5])
@pytest.mark.parametrize("k", [0.25, 0.5, 1.0])
def test_first_batch_equals_the_slow_loop(rows: int, k: float) -> None:
    source = calibration()
    config = AlignSettings(strength=k, matched=False)
    aligned = aligning(source, config)
    mask = torch.arange(BATCH) < rows
    done = aligned.begin(queries(), mask)
    moments = np.stack((source.mean, source.mean**2 + source.sd**2)).astype(np.float64).mean(1)
    for layer, part in enumerate((slice(0, 3), slice(3, 5))):
        x = inputs(layer)
        expected = slow(x, list(range(rows)), moments[:, part], moments[:, part], k, 0.8)
        np.testing.assert_allclose(apply(done, layer, x).double().numpy(), expected, rtol=2e-4, atol=2e-4)


def test_strength_zero_is_the_identity() -> None:
    aligned = aligning(calibration(), AlignSettings(strength=0.0))
    x = inputs(0)
    torch.testing.assert_close(apply(aligned.begin(queries(), ALL), 0, x), x, rtol=1e-5, atol=1e-5)


def test_padding_does_not_count() -> None:
    aligned = aligning(calibration(), AlignSettings())
    mask = torch.arange(BATCH) < 6
    x, other = inputs(0), inputs(0)
    other[6:] = 1e6
    q, padded = queries(), queries()
    padded[6:] = padded[0]
    first, second = apply(aligned.begin(q, mask), 0, x), apply(aligned.begin(padded, mask), 0, other)
    torch.testing.assert_close(first[:6], second[:6])


def test_answering_changes_nothing_and_later_encodes_use_the_same_statistics() -> None:
    aligned = aligning(calibration(), AlignSettings())
    before = aligned.snapshot()
    done = aligned.begin(queries(), ALL)
    x = inputs(0)
    once = apply(done, 0, x)
    again = apply(done, 0, 2 * x)
    scale = (once - apply(done, 0, torch.zeros_like(x))) / x
    torch.testing.assert_close(again - once, scale * x, rtol=1e-3, atol=1e-4)
    for name, array in aligned.snapshot()[0].items():
        np.testing.assert_array_equal(array, before[0][name])


def test_statistics_carry_no_gradient() -> None:
    aligned = aligning(calibration(), AlignSettings())
    x = inputs(0).requires_grad_()
    out = apply(aligned.begin(queries(), ALL), 0, x)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    # With detached statistics the map is affine: one slope per channel.
    assert float((gradient - gradient[:1, :, :1, :1]).abs().max()) < 1e-6


def run(aligned: ContentAlignment, seeds: list[int]) -> list[torch.Tensor]:
    outs = []
    for seed in seeds:
        done = aligned.begin(queries(seed), ALL)
        outs += [apply(done, layer, inputs(layer, seed)) for layer in (0, 1)]
        assert aligned.commit(done)
    return outs


def test_restoring_continues_to_the_last_bit() -> None:
    one = aligning(calibration(), AlignSettings())
    run(one, [1, 2, 3])
    tensors, meta = one.snapshot()
    other = aligning(calibration(), AlignSettings())
    other.restore(tensors, meta)
    for a, b in zip(run(one, [4, 5]), run(other, [4, 5])):
        assert torch.equal(a, b)


def test_non_finite_statistics_are_not_remembered() -> None:
    aligned = aligning(calibration(), AlignSettings())
    before = aligned.snapshot()
    done = aligned.begin(queries(), ALL)
    bad = inputs(0)
    bad[0, 0, 0, 0] = float("nan")
    apply(done, 0, bad)
    apply(done, 1, inputs(1))
    assert not aligned.commit(done)
    np.testing.assert_array_equal(aligned.snapshot()[0]["0/stream"], before[0]["0/stream"])


def test_matching_follows_a_skewed_batch_and_ignores_a_balanced_one() -> None:
    rng = np.random.default_rng(0)
    centres = np.eye(16, 20)
    features = np.repeat(centres, 24, axis=0) + 0.05 * rng.normal(size=(384, 20))
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    source = Calibration(features, np.zeros((384, 5), np.float32), np.ones((384, 5), np.float32), WIDTHS)
    domain = CleanDomain(source, AlignSettings())
    balanced = domain.weights(torch.from_numpy(features[::6]))
    assert float((balanced - 1 / 384).abs().max()) < 1e-6
    skewed = domain.weights(torch.from_numpy(features[:24].repeat(3, axis=0)[:64]))
    assert float(skewed.sum()) == pytest.approx(1.0, abs=1e-5)
    assert float(skewed[:24].sum()) > 0.95


def test_a_stream_of_clean_statistics_stays_where_it_is() -> None:
    """Inputs that have the clean moments are moved by next to nothing."""
    source = calibration()
    moments = np.stack((source.mean, source.mean**2 + source.sd**2)).astype(np.float64).mean(1)
    sd = np.sqrt(moments[1] - moments[0] ** 2)
    aligned = aligning(source, AlignSettings(matched=False))
    x = torch.randn(BATCH, 3, 13, 13, generator=torch.Generator().manual_seed(0))
    x = (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True, unbiased=False)
    x = x * torch.tensor(sd[:3]).float()[:, None, None] + torch.tensor(moments[0, :3]).float()[:, None, None]
    torch.testing.assert_close(apply(aligned.begin(queries(), ALL), 0, x), x, rtol=1e-3, atol=2e-3)


def test_a_calibration_that_does_not_fit_is_refused() -> None:
    source = calibration()
    with pytest.raises(ValueError, match="channels"):
        aligning(Calibration(source.features, source.mean, source.sd, (3, 3)), AlignSettings())


# Running moments over several batches and kinds, against a loop in float64


MATCHED = (0.0, 0.01)  # content matching at full strength even for few rows
KINDS = ClusterConfig(layers=(0,), founding=3)


class Running:
    """The running statistics of one kind, element by element in float64."""

    def __init__(self, prior: np.ndarray, total: float) -> None:
        self.stream, self.target, self.total = prior.copy(), prior.copy(), total

    def take(self, values: np.ndarray, part: slice, target: np.ndarray, decay: float, share: float) -> None:
        """One layer's [rows, C, ...] in; `settle` once after all layers."""
        for channel in range(values.shape[1]):
            seen = [float(v) for v in values[:, channel].ravel()]
            column = part.start + channel
            for moment, of in enumerate((lambda v: v, lambda v: v * v)):
                now = sum(map(of, seen)) / len(seen)
                for kept, fresh in ((self.stream, now), (self.target, target[moment, column])):
                    old = kept[moment, column]
                    kept[moment, column] = (decay * self.total * old + share * fresh) / (
                        decay * self.total + share
                    )

    def settle(self, decay: float, share: float) -> None:
        self.total = decay * self.total + share

    def moved(self, values: np.ndarray, part: slice, k: float) -> np.ndarray:
        out = np.empty_like(values)
        for channel in range(values.shape[1]):
            column = part.start + channel
            m_s, m_c = self.stream[0, column], self.target[0, column]
            s_s = math.sqrt(max(self.stream[1, column] - m_s**2, 0) + EPS)
            s_c = math.sqrt(max(self.target[1, column] - m_c**2, 0) + EPS)
            out[:, channel] = (values[:, channel] - m_s) / s_s * ((1 - k) * s_s + k * s_c)
            out[:, channel] += (1 - k) * m_s + k * m_c
        return out


PARTS = (slice(0, 3), slice(3, 5))


def prior_of(source: Calibration) -> np.ndarray:
    return np.stack((source.mean, source.mean**2 + source.sd**2)).astype(np.float64).mean(1)


@pytest.mark.parametrize("sizes", [(8, 8, 8, 8), (8, 5, 3, 8), (2, 8, 1, 4)])
@pytest.mark.parametrize("k", [0.5, 1.0])
def test_later_batches_equal_the_slow_loop(sizes: tuple[int, ...], k: float) -> None:
    """The weight of what was seen before is decayed, never forgotten: total = decay total + share."""
    source = calibration()
    config = AlignSettings(strength=k, forgetting=0.7, shrink=MATCHED, clusters=ClusterConfig(enabled=False))
    aligned, domain = aligning(source, config), CleanDomain(source, config)
    running = Running(prior_of(source), 1.0)
    for seed, size in enumerate(sizes):
        mask, asked, share = torch.arange(BATCH) < size, queries(seed), size / BATCH
        decay = 0.7**share
        done = aligned.begin(asked, mask)
        target = domain.targets([asked[mask]])[0].double().numpy()
        for layer, part in enumerate(PARTS):
            # Every batch has statistics of its own, so that forgetting the earlier ones would show.
            x = (1 + seed) * inputs(layer, 10 * seed) + seed
            running.take(x[:size].double().numpy(), part, target, decay, share)
            expected = running.moved(x.double().numpy(), part, k)
            np.testing.assert_allclose(apply(done, layer, x).double().numpy(), expected, rtol=1e-3, atol=2e-3)
        running.settle(decay, share)
        assert aligned.commit(done)
        assert aligned.snapshot()[1]["totals"]["0"] == pytest.approx(running.total, rel=1e-9)
    tensors = aligned.snapshot()[0]
    np.testing.assert_allclose(tensors["0/stream"], running.stream, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(tensors["0/target"], running.target, rtol=1e-4, atol=1e-4)


def test_the_weight_saturates() -> None:
    aligned = aligning(calibration(), AlignSettings(forgetting=0.8))
    for seed in range(60):
        run(aligned, [seed])
    assert aligned.snapshot()[1]["totals"]["0"] == pytest.approx(1 / (1 - 0.8), rel=1e-4)


def kinds_of(source: Calibration, labels: list[int], seed: int = 0) -> list[torch.Tensor]:
    """Inputs [b, 3, 4, 5] of layer 0: kind 0 a clean picture's statistics, kinds 1 and 2 far from them."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(len(labels), 3, 20))
    noise -= noise.mean(2, keepdims=True)
    noise /= noise.std(2, keepdims=True)
    mean = 0.2 * rng.normal(size=(len(labels), 3)) + source.mean[:, :3].mean(0)
    sd = np.exp(0.05 * rng.normal(size=(len(labels), 3)) + np.log(source.sd[:, :3]).mean(0))
    kind = np.array(labels)
    mean[kind == 1] += 12.0
    sd[kind == 2] *= 20.0
    x = (mean[..., None] + sd[..., None] * noise).reshape(len(labels), 3, 4, 5)
    return [torch.from_numpy(x.astype(np.float32))]


MIX = [0, 1, 0, 1, 1, 0, 1, 0]


@pytest.mark.parametrize("rows", [BATCH, 7])
def test_every_kind_is_moved_by_its_own_statistics(rows: int) -> None:
    source = calibration()
    config = AlignSettings(strength=0.5, shrink=MATCHED, clusters=KINDS)
    aligned, domain = aligning(source, config), CleanDomain(source, config)
    assert aligned.early == (0,) and aligned.styles() == 1
    mask = torch.arange(BATCH) < rows
    running = {0: Running(prior_of(source), 1.0), 1: Running(prior_of(source), FOUNDED)}
    for seed in range(3):
        early, asked = kinds_of(source, MIX, seed), queries(seed)
        done = aligned.begin(asked, mask, early)
        for layer, part in enumerate(PARTS):
            x = early[0] if layer == 0 else inputs(1, seed) + 4 * torch.tensor(MIX)[:, None, None, None]
            move = done(layer, x)
            assert move is not None and move[0].shape == move[1].shape == (BATCH, WIDTHS[layer])
            shown = (x * move[0][..., None, None] + move[1][..., None, None]).double().numpy()
            for kind, state in running.items():
                members = [row for row in range(rows) if MIX[row] == kind]
                share = len(members) / BATCH
                target = domain.targets([asked[members]])[0].double().numpy()
                values = x[members].double().numpy()
                state.take(values, part, target, 0.8**share, share)
                expected = state.moved(values, part, 0.5)
                np.testing.assert_allclose(shown[members], expected, rtol=2e-3, atol=5e-3)
        for kind, state in running.items():
            share = sum(MIX[row] == kind for row in range(rows)) / BATCH
            state.settle(0.8**share, share)
        assert aligned.commit(done) and aligned.styles() == 2
    totals = aligned.snapshot()[1]["totals"]
    assert totals == pytest.approx({str(kind): state.total for kind, state in running.items()})


def test_one_kind_alone_is_moved_by_channel() -> None:
    aligned = aligning(calibration(), AlignSettings(clusters=KINDS))
    early = kinds_of(calibration(), [0] * BATCH)
    move = aligned.begin(queries(), ALL, early)(0, early[0])
    assert move is not None and move[0].shape == (3,)


def test_without_early_inputs_all_rows_are_of_the_clean_kind() -> None:
    aligned = aligning(calibration(), AlignSettings(clusters=KINDS))
    done = aligned.begin(queries(), ALL)
    assert set(done.labels.tolist()) == {0} and done.routing is None


def test_a_tower_with_too_few_layers_has_one_kind() -> None:
    aligned = aligning(calibration(), AlignSettings(clusters=ClusterConfig(layers=(0, 2))))
    assert aligned.early == ()
    off = AlignSettings(clusters=ClusterConfig(enabled=False, layers=(0,)))
    assert aligning(calibration(), off).early == ()


def test_the_second_pass_matches_content_anew_and_keeps_the_kinds() -> None:
    source = calibration()
    config = AlignSettings(shrink=MATCHED, clusters=KINDS)
    aligned, domain = aligning(source, config), CleanDomain(source, config)
    early, moved = kinds_of(source, MIX), queries(9)
    first = aligned.begin(queries(), ALL, early)
    first(0, early[0])
    before = aligned.snapshot()
    second = aligned.again(first, moved, ALL)
    assert second.labels.tolist() == first.labels.tolist() == MIX and second.routing is first.routing
    for layer in (0, 1):
        second(layer, early[0] if layer == 0 else inputs(1))
    for name, array in aligned.snapshot()[0].items():
        np.testing.assert_array_equal(array, before[0][name])
    assert aligned.commit(second)
    members = [row for row, kind in enumerate(MIX) if kind == 1]
    share = 0.5
    kept = 0.8**share * FOUNDED
    expected = (kept * prior_of(source) + share * domain.targets([moved[members]])[0].double().numpy()) / (
        kept + share
    )
    tensors, meta = aligned.snapshot()
    np.testing.assert_allclose(tensors["1/target"], expected, rtol=1e-4, atol=1e-5)
    assert meta["totals"]["1"] == pytest.approx(kept + share)  # the batch counts once
    with pytest.raises(TypeError, match="begin"):
        aligned.again("nothing", moved, ALL)
    with pytest.raises(TypeError, match="begin"):
        aligned.commit(None)


def served(aligned: ContentAlignment, labels: list[int], seed: int = 0) -> list[torch.Tensor]:
    early = kinds_of(calibration(), labels, seed)
    done = aligned.begin(queries(seed), ALL, early)
    shown = []
    for layer in (0, 1):
        move = done(layer, early[0] if layer == 0 else inputs(1, seed))
        assert move is not None
        shown += list(move)
    assert aligned.commit(done)
    return shown


def test_a_retired_kind_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "PATIENCE", 2)
    few = ClusterConfig(layers=(0,), founding=3, most=2)
    aligned = aligning(calibration(), AlignSettings(clusters=few))
    served(aligned, MIX)
    assert set(aligned.snapshot()[1]["totals"]) == {"0", "1"}
    served(aligned, [0] * BATCH)
    served(aligned, [2 * kind for kind in MIX])
    assert set(aligned.snapshot()[1]["totals"]) == {"0", "2"}
    assert {name for name in aligned.snapshot()[0] if name.startswith("1/")} == set()


def test_a_merged_kind_leaves_nothing_behind() -> None:
    aligned = aligning(calibration(), AlignSettings(clusters=KINDS))
    served(aligned, MIX)
    served(aligned, [2 * kind for kind in MIX])
    tensors, meta = copy.deepcopy(aligned.snapshot())
    assert meta["styles"]["ids"] == [0, 1, 2] and aligned.styles() == 3
    tensors["styles/centroids"][2] = tensors["styles/centroids"][1] + 0.01
    aligned.restore(tensors, meta)
    served(aligned, [0] * BATCH)
    assert aligned.styles() == 2
    assert set(aligned.snapshot()[1]["totals"]) == {"0", "1"}


def test_statistics_that_are_not_finite_found_no_kind() -> None:
    aligned = aligning(calibration(), AlignSettings(clusters=KINDS))
    early = kinds_of(calibration(), MIX)
    done = aligned.begin(queries(), ALL, early)
    broken = early[0].clone()
    broken[1] = float("nan")
    done(0, broken)
    done(1, inputs(1))
    assert not aligned.commit(done)
    assert aligned.styles() == 1 and aligned.snapshot()[1]["styles"]["ids"] == [0]


def test_restoring_with_kinds_continues_to_the_last_bit() -> None:
    one = aligning(calibration(), AlignSettings(clusters=KINDS))
    served(one, MIX)
    tensors, meta = one.snapshot()
    other = aligning(calibration(), AlignSettings(clusters=KINDS))
    other.restore(tensors, json.loads(json.dumps(meta)))
    for seed, labels in enumerate(
        (MIX, [2 * kind for kind in MIX], [2 * kind for kind in MIX], MIX), start=1
    ):
        for a, b in zip(served(one, labels, seed), served(other, labels, seed)):
            assert torch.equal(a, b)
    ours, theirs = one.snapshot(), other.snapshot()
    assert ours[1] == theirs[1] and one.styles() == 3
    for name, array in ours[0].items():
        np.testing.assert_array_equal(array, theirs[0][name])


@pytest.mark.parametrize("last", [False, True])
def test_a_grid_of_a_large_map_is_looked_at(last: bool) -> None:
    aligned = aligning(calibration(), AlignSettings())
    small = torch.randn(BATCH, 3, GRID, GRID, generator=torch.Generator().manual_seed(0))
    patches = small.repeat_interleave(4, 2).repeat_interleave(4, 3)
    if last:
        patches = patches.contiguous(memory_format=torch.channels_last)
    expected = aligned.begin(queries(), ALL)(0, small)
    got = aligned.begin(queries(), ALL)(0, patches)
    assert expected is not None and got is not None
    for ours, theirs in zip(got, expected):
        torch.testing.assert_close(ours, theirs)
    patches[:, :, ::4] += 50  # no place of the grid
    again = aligned.begin(queries(), ALL)(0, patches)
    assert again is not None and torch.equal(again[1], got[1])
    patches[:, :, 2::4] += 50
    moved = aligned.begin(queries(), ALL)(0, patches)
    assert moved is not None and float((moved[1] - got[1]).abs().min()) > 0.1


def test_places_of_small_maps_tokens_and_vectors() -> None:
    small = torch.arange(2 * 3 * 13 * 9.0).view(2, 3, 13, 9)
    assert torch.equal(places(small), small.flatten(2).transpose(1, 2)), "below two grids all places count"
    wide = torch.arange(16 * 40.0).view(1, 1, 16, 40)
    rows, columns = torch.meshgrid(torch.arange(1, 16, 2), torch.arange(1, 40, 2), indexing="ij")
    assert torch.equal(places(wide)[0, :, 0], wide[0, 0, rows, columns].flatten())
    tokens = torch.arange(2 * 3 * 196.0).view(2, 3, 196)
    assert torch.equal(places(tokens), tokens[:, :, 2::4].transpose(1, 2))
    assert torch.equal(places(tokens[..., 0]), tokens[..., 0][:, None])


def test_lanes_share_the_clean_side_and_nothing_else() -> None:
    """Ten thousand lanes must not hold ten thousand copies of the calibration."""
    config = AlignSettings(clusters=KINDS)
    clean = CleanSide(calibration(), config)
    lanes = [ContentAlignment(clean, config, BATCH) for _ in range(3)]
    fresh = lanes[1].snapshot()[0]
    run(lanes[0], [1, 2])
    for name, array in lanes[1].snapshot()[0].items():
        np.testing.assert_array_equal(array, fresh[name])
    assert lanes[0]._domain is lanes[1]._domain is clean.domain
    alone = ContentAlignment(CleanSide(calibration(), config), config, BATCH)
    run(alone, [1, 2])
    for name, array in alone.snapshot()[0].items():
        np.testing.assert_array_equal(array, lanes[0].snapshot()[0][name])
