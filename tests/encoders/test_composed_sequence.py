"""Composed and sequence queries against hand-computed sums; both towers learn; company does not show."""

import threading
import time

import numpy as np
import pytest
import torch
import toy_towers
from torch import Tensor, nn
from toy_towers import WIDTH, Read, encoded, pictures, tokenize

from core.errors import ArtifactError, ConfigError, QshiftError, Refused
from core.references import Calibration
from encoders.composed import Composed, composed_calibration, composed_mean, united
from encoders.norms import calibrate
from encoders.sequence import FrameSequence, spread
from encoders.text import TextTower
from encoders.vector import VectorEncoder
from encoders.vision import ImageTower


@pytest.fixture(scope="module")
def towers() -> tuple[ImageTower, TextTower]:
    return toy_towers.towers()


def by_hand(rows: list[list[float]]) -> list[float]:
    """Sum of vectors at unit length, in plain Python."""
    total = [sum(column) for column in zip(*rows)]
    length = sum(x * x for x in total) ** 0.5
    return [x / length for x in total]


# -- composed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.5, 1.0])
def test_composed_is_the_normalised_sum(towers: tuple[ImageTower, TextTower], weight: float) -> None:
    image, text = towers
    seen, words = pictures(5), ["red", "a bit bluer", "x", "same", "żółw"]
    found = encoded(Composed(image, text, weight), list(zip(seen, words)), 8)
    looks, reads = encoded(image, seen).double().tolist(), encoded(text, words).double().tolist()
    assert found.shape == (8, WIDTH) and found.dtype == torch.float32
    for row in range(5):
        expected = by_hand([[weight * x for x in looks[row]], [(1 - weight) * x for x in reads[row]]])
        np.testing.assert_allclose(found[row].tolist(), expected, atol=2e-6)
    np.testing.assert_allclose(found.norm(dim=1), 1, atol=1e-6)


def test_composed_adapts_both_towers_and_nothing_is_kept(towers: tuple[ImageTower, TextTower]) -> None:
    image, text = towers
    both = Composed(image, text, 0.4)
    source = both.adaptable()
    names = {f"image.{n}" for n in image.adaptable()} | {f"text.{n}" for n in text.adaptable()}
    assert set(source) == names and len(names) == 4
    contents = list(zip(pictures(3), ["a", "bc", "def"]))
    before = encoded(both, contents)
    params = {name: tensor.clone().requires_grad_() for name, tensor in source.items()}
    same = encoded(both, contents, params=params)
    assert torch.equal(same, before)
    target = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1))
    grads = torch.autograd.grad((same * target).sum(), list(params.values()))
    assert all(float(grad.abs().max()) > 1e-4 for grad in grads)
    moved = {name: tensor + 0.5 for name, tensor in source.items()}
    looks = encoded(
        image, [c[0] for c in contents], params={n: t + 0.5 for n, t in image.adaptable().items()}
    )
    reads = encoded(text, [c[1] for c in contents], params={n: t + 0.5 for n, t in text.adaptable().items()})
    expected = nn.functional.normalize(0.4 * looks + 0.6 * reads, dim=1)
    torch.testing.assert_close(encoded(both, contents, params=moved), expected)
    assert torch.equal(encoded(both, contents), before), "encode has changed the source"
    half = {name: tensor for name, tensor in moved.items() if name.startswith("text.")}
    still = nn.functional.normalize(0.4 * encoded(image, [c[0] for c in contents]) + 0.6 * reads, dim=1)
    torch.testing.assert_close(encoded(both, contents, params=half), still)


def test_composed_refuses_what_either_part_refuses(towers: tuple[ImageTower, TextTower]) -> None:
    image, text = towers
    both, picture = Composed(image, text), pictures(1)[0]
    for content, word in [
        ((b"no picture", "a"), "picture"),
        ((picture, ""), "empty"),
        ((picture, 7), "text"),
        ((picture,), "tuple"),
        ("ab", "str"),
        (None, "NoneType"),
    ]:
        with pytest.raises(Refused, match=word):
            both.prepare(content)
    inputs = both.collate([both.prepare((picture, "a"))], 1)
    with pytest.raises(ArtifactError, match="neither"):
        both.encode(inputs, {"tower.norm.weight": torch.ones(4)})
    with pytest.raises(ArtifactError, match="does not belong"):
        both.encode(inputs, {"image.tower.other": torch.ones(4)})
    with pytest.raises(ArtifactError, match="one space"):
        Composed(image, VectorEncoder(WIDTH + 1))
    with pytest.raises(ConfigError, match="0 to 1"):
        Composed(image, text, 1.5)


def test_composed_empty_and_padding_only(towers: tuple[ImageTower, TextTower]) -> None:
    both = Composed(*towers)
    assert both.encode(both.collate([], 0)).shape == (0, WIDTH)
    assert both.encode(both.collate([], 3)).isfinite().all()
    with pytest.raises(QshiftError, match="do not fit"):
        both.collate([both.prepare((pictures(1)[0], "a"))] * 2, 1)


def test_tap_of_composed_is_the_image_towers(towers: tuple[ImageTower, TextTower]) -> None:
    both, seen = Composed(*towers), []
    assert both.hook_points().widths == (4,) and both.width == WIDTH

    def hook(layer: int, entering: Tensor) -> tuple[Tensor, Tensor]:
        seen.append((layer, tuple(entering.shape)))
        return torch.full((4,), 2.0), torch.full((4,), 0.5)

    contents = list(zip(pictures(3), ["a", "b", "c"]))
    moved = encoded(both, contents, 4, hook=hook)
    assert seen == [(0, (4, 4, 2, 2))]
    looks = encoded(towers[0], [c[0] for c in contents], hook=hook)
    reads = encoded(towers[1], [c[1] for c in contents])
    torch.testing.assert_close(moved[:3], nn.functional.normalize(looks + reads, dim=1))
    assert not torch.allclose(moved[:3], encoded(both, contents))


def test_parts_that_cancel_out_leave_the_first_and_finite_gradients() -> None:
    both = Composed(VectorEncoder(2), VectorEncoder(2))
    params = {name: tensor.requires_grad_() for name, tensor in both.adaptable().items()}
    found = encoded(both, [([1, 0], [-1, 0]), ([1, 0], [0, 1])], params=params)
    np.testing.assert_allclose(found.detach(), [[1, 0], [0.5**0.5, 0.5**0.5]], atol=1e-6)
    grads = torch.autograd.grad(found[:, 1].sum(), list(params.values()))
    assert all(float(grad.abs().max()) < 10 for grad in grads)
    assert united(torch.zeros(0, 2), torch.zeros(0, 2)).shape == (0, 2)


def test_estimated_mean_and_calibration() -> None:
    rng = np.random.default_rng(0)

    def around(centre: np.ndarray) -> np.ndarray:
        rows = centre + rng.normal(size=(4000, 64)) / 8
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    looks, reads = around(rng.normal(size=64) / 12), around(rng.normal(size=64) / 12)
    composed = 0.3 * looks + 0.7 * reads
    composed /= np.linalg.norm(composed, axis=1, keepdims=True)
    means = looks.mean(0), reads.mean(0)
    estimate, naive = composed_mean(*means, 0.3), 0.3 * means[0] + 0.7 * means[1]
    error = np.linalg.norm(estimate - composed.mean(0))
    assert error < 0.02 < 0.1 < np.linalg.norm(naive - composed.mean(0))
    clean = Calibration(looks[:50], np.zeros((50, 4), np.float32), np.ones((50, 4), np.float32), (4,))
    moved = composed_calibration(clean, means[1], 0.3)
    expected = 0.3 * looks[7] + 0.7 * means[1]
    np.testing.assert_allclose(moved.features[7], expected / np.linalg.norm(expected), atol=1e-6)
    assert moved.mean is clean.mean and moved.widths == (4,)


# -- sequences ------------------------------------------------------------------------------------------


def test_sequence_is_the_mean_direction_of_its_frames(towers: tuple[ImageTower, TextTower]) -> None:
    image = towers[0]
    clips = [pictures(length, seed) for seed, length in enumerate((1, 5, 32, 2))]
    found = encoded(FrameSequence(image, most=32), clips, 8)
    assert found.shape == (8, WIDTH)
    for row, clip in enumerate(clips):
        features = [encoded(image, [frame])[0].double().tolist() for frame in clip]
        np.testing.assert_allclose(found[row].tolist(), by_hand(features), atol=2e-6)
    np.testing.assert_allclose(found.norm(dim=1), 1, atol=1e-6)


def test_one_frame_is_a_picture_query(towers: tuple[ImageTower, TextTower]) -> None:
    seen = pictures(6)
    found = encoded(FrameSequence(towers[0]), [[picture] for picture in seen])
    torch.testing.assert_close(found, encoded(towers[0], seen), atol=1e-6, rtol=0)


def test_company_and_padding_do_not_show(towers: tuple[ImageTower, TextTower]) -> None:
    clips = FrameSequence(towers[0])
    one, other = pictures(3, 1), pictures(7, 2)
    alone = encoded(clips, [one])
    torch.testing.assert_close(encoded(clips, [other, one], 8)[1:2], alone, atol=1e-6, rtol=0)
    inputs = clips.collate([clips.prepare(one)], 8)
    assert len(inputs.inputs) == 3, "padding rows must not cost a forward"
    assert clips.encode(clips.collate([], 0)).shape == (0, WIDTH)
    assert clips.encode(clips.collate([], 4)).shape == (4, WIDTH)
    with pytest.raises(QshiftError, match="do not fit"):
        clips.collate([clips.prepare(one)] * 2, 1)


def test_long_clips_are_thinned_evenly(towers: tuple[ImageTower, TextTower]) -> None:
    assert spread(3, 8) == [0, 1, 2] and spread(8, 8) == list(range(8))
    assert spread(32, 8) == [2, 6, 10, 14, 18, 22, 26, 30]
    assert spread(9, 8) == [0, 1, 2, 3, 5, 6, 7, 8]
    assert spread(32, 1) == [16]
    clip = pictures(32)
    kept = [clip[n] for n in (4, 12, 20, 28)]
    assert torch.equal(
        encoded(FrameSequence(towers[0], 4), [clip]), encoded(FrameSequence(towers[0], 4), [kept])
    )
    for most in (0, 33):
        with pytest.raises(ConfigError, match="1 to 32"):
            FrameSequence(towers[0], most)


def test_sequence_refuses_by_frame(towers: tuple[ImageTower, TextTower]) -> None:
    clips, good = FrameSequence(towers[0]), pictures(1)[0]
    for content, word in [
        ([], "got 0"),
        ([good] * 33, "got 33"),
        (b"bytes", "bytes"),
        ("text", "str"),
        (7, "int"),
        ([good, b"broken"], "frame 2 of 2"),
    ]:
        with pytest.raises(Refused, match=word):
            clips.prepare(content)


def test_frames_may_be_vectors() -> None:
    clips = FrameSequence(VectorEncoder(2))
    found = encoded(clips, [np.array([[3.0, 0], [0, 0.1]]), [[0, 2], [0, -2]]])
    np.testing.assert_allclose(found, [[0.5**0.5] * 2, [0, 1]], atol=1e-6)
    assert set(clips.adaptable()) == {"affine.weight", "affine.bias"}
    assert clips.hook_points().widths == () and clips.modality == "sequence"
    with pytest.raises(Refused, match="frame 1 of 1: expected a vector of 2"):
        clips.prepare([[1, 2, 3]])


def test_sequence_learns_through_every_frame(towers: tuple[ImageTower, TextTower]) -> None:
    image = towers[0]
    clips, contents = FrameSequence(image), [pictures(2, 3), pictures(4, 4)]
    params = {name: tensor.requires_grad_() for name, tensor in clips.adaptable().items()}
    target = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(1))
    ours = torch.autograd.grad(
        (encoded(clips, contents, params=params) * target).sum(), list(params.values())
    )
    rows = [encoded(image, clip, params=params).mean(0) for clip in contents]
    slow = (nn.functional.normalize(torch.stack(rows), dim=1) * target).sum()
    for found, expected in zip(ours, torch.autograd.grad(slow, list(params.values()))):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(ArtifactError, match="does not belong"):
        encoded(clips, contents, params={"tower.other": torch.ones(4)})


def test_tap_of_a_sequence_sees_one_frame_a_row_and_moves_all(towers: tuple[ImageTower, TextTower]) -> None:
    image = towers[0]
    clips, contents = FrameSequence(image), [pictures(3, 5), pictures(3, 6), pictures(2, 7)]
    entered: list[Tensor] = []
    shown: list[Tensor] = []

    def watch(_: int, inputs: Tensor) -> None:
        entered.append(inputs.clone())

    def move(_: int, inputs: Tensor) -> tuple[Tensor, Tensor]:
        shown.append(inputs.clone())
        return torch.full((4,), 2.0), torch.full((4,), 0.5)

    encoded(image, [frame for clip in contents for frame in clip], hook=watch)
    moved = encoded(clips, contents, 4, hook=move)
    # Rows 0, 1 and 2 show their frames 0, 1 and 2 % 2 = 0; the padding row shows the last frame of all.
    torch.testing.assert_close(shown[0], entered[0][[0, 4, 6, 7]])
    for row, clip in enumerate(contents):
        features = encoded(image, clip, hook=move).double().tolist()
        np.testing.assert_allclose(moved[row].tolist(), by_hand(features), atol=2e-6)

    def row_by_row(_: int, inputs: Tensor) -> tuple[Tensor, Tensor]:
        scale = 1.0 + torch.arange(len(inputs))
        return scale[:, None].expand(-1, 4), torch.zeros(len(inputs), 4)

    moved = encoded(clips, contents, 4, hook=row_by_row)
    for row, clip in enumerate(contents):
        own = (torch.full((4,), 1.0 + row), torch.zeros(4))
        features = encoded(image, clip, hook=lambda *_, own=own: own).double().tolist()
        np.testing.assert_allclose(moved[row].tolist(), by_hand(features), atol=2e-6)
    calls: list[object] = []
    encoded(clips, contents, hook=lambda *_: calls.append(_))
    assert len(calls) == 1, "a hook that only watches changes nothing and is called once"
    measured = calibrate(clips, [clips.collate([clips.prepare(clip) for clip in contents], 3)])
    assert measured.mean.shape == (3, 4)


def test_a_tokenizer_never_meets_two_threads() -> None:
    """Composed queries are prepared beside the loop, texts in it; transformers' tokenizers raise then."""
    busy, met = threading.Lock(), []

    def lonely(texts: list[str]) -> Tensor:
        if not busy.acquire(blocking=False):
            met.append(texts)
            return tokenize(texts)
        time.sleep(0.001)
        busy.release()
        return tokenize(texts)

    tower = TextTower(Read(), lonely)
    threads = [threading.Thread(target=lambda: [tower.prepare("a b") for _ in range(20)]) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not met
