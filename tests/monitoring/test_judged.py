"""Sampling, joins and estimates of late labels."""

import hashlib
import hmac
import math
import subprocess
import sys
import threading

import numpy as np
import pytest

from core.records import Coordinates, Judgement
from monitoring.judged import EMPTY, JudgedQuality, included, steers
from monitoring.quality import Quality
from monitoring.ranking import average_precision, levels, recall_at_1

N = 12
LABELS = np.array(["cat", "dog", "cat", "owl", "dog", "cat", "owl", "owl", "dog", "cat", "dog", "owl"])


def at(offset, topic="qshift.queries"):
    return Coordinates(topic, 0, offset)


def label(offset, name="cat", topic="qshift.queries"):
    return Judgement(Coordinates("qshift.labels", 0, offset), at(offset, topic), name)


def gallery():
    return np.random.default_rng(0).integers(0, 256, (N, 2)).astype(np.uint8)


def hamming(code):
    return np.unpackbits(gallery() ^ code, axis=1).sum(1).astype(np.float64)


def distances(version, kept):
    if version != "v1":
        return None
    frozen, adapted = hamming(kept.frozen_code), hamming(kept.adapted_code)
    return frozen, adapted, (frozen + adapted) / 2


def ranked(version, kept, name):
    rows = distances(version, kept)
    return None if rows is None else tuple(levels(row, name == LABELS) for row in rows)


def quality(**more):
    return JudgedQuality("key", more.pop("rate", 1.0), more.pop("ttl", 1000), ranked, **more)


@pytest.fixture
def batch(outcome):
    def make(offsets, seed=1, **more):
        generator = np.random.default_rng(seed)
        codes = generator.integers(0, 256, (2, len(offsets), 2)).astype(np.uint8)
        return outcome(offsets, frozen_codes=codes[0], adapted_codes=codes[1], **more)

    return make


def expected(outcome, names):
    rows = []
    for row, name in enumerate(names):
        frozen = hamming(outcome.frozen.codes[row])
        adapted = hamming(outcome.adapted.codes[row])
        three = (frozen, adapted, (frozen + adapted) / 2)
        right = name == LABELS
        rows.append([average_precision(d, right) for d in three] + [recall_at_1(d, right) for d in three])
    return 100 * np.array(rows)


def test_the_sample_is_a_keyed_hash_of_the_coordinates():
    for offset in range(50):
        drawn = hmac.new(b"k", f"qshift.queries/0/{offset}".encode(), hashlib.sha256).digest()
        assert included(at(offset), "k", 0.3) == (int.from_bytes(drawn[:8], "big") / 2**64 < 0.3)
    chosen = [offset for offset in range(5000) if included(at(offset), "k", 0.3)]
    assert abs(len(chosen) - 1500) < 4 * math.sqrt(5000 * 0.3 * 0.7)
    assert chosen != [offset for offset in range(5000) if included(at(offset), "other", 0.3)]
    assert all(included(at(offset), "k", 1.0) for offset in range(99))
    assert not any(included(at(offset), "k", 0.0) for offset in range(99))
    # A larger rate keeps what a smaller one had chosen.
    assert all(included(at(offset), "k", 0.5) for offset in chosen)


def test_another_process_draws_the_same_sample():
    code = (
        "from core.types import Coordinates as C; from monitoring.judged import included;"
        "print([o for o in range(100) if included(C('t', 1, o), 'k', .3)], end='')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == str([o for o in range(100) if included(Coordinates("t", 1, o), "k", 0.3)])


def test_scores_come_from_the_logged_codes(batch):
    judged, seen = quality(), batch([0, 1, 2, 3])
    judged.observe(seen)
    names = ["cat", "owl", "dog", "cat"]
    for offset, name in enumerate(names):
        judged.judge(label(offset, name))
    want = expected(seen, names)
    got = judged.summary()
    assert (got.n, got.map_frozen, got.map_adapted, got.map_served) == pytest.approx((4, *want.mean(0)[:3]))
    assert (got.r1_frozen, got.r1_adapted, got.r1_served) == pytest.approx(tuple(want.mean(0)[3:]))
    gain = want[:, 2] - want[:, 0]
    half = 1.959964 * gain.std(ddof=1) / 2
    assert got.diff == pytest.approx(gain.mean())
    assert (got.normal_low, got.normal_high) == pytest.approx((gain.mean() - half, gain.mean() + half))
    assert gain.min() <= got.low <= got.diff <= got.high <= gain.max()
    assert got.diff_adapted == pytest.approx((want[:, 1] - want[:, 0]).mean())
    assert judged.summary() == got  # seeded
    part = judged.summary(lambda where: where.offset >= 2)
    assert (part.n, part.map_served) == pytest.approx((2, want[2:, 2].mean()))
    assert judged.between(2) == part and judged.between(0, 2).n == 2


def test_live_estimates_equal_a_faded_loop(batch):
    judged = quality(alpha=0.9)
    seen = batch(list(range(30)), seed=3)
    judged.observe(seen)
    names = [LABELS[i % N] for i in range(30)]
    for offset, name in enumerate(names):
        judged.judge(label(offset, name))
    want = expected(seen, names) / 100
    weights = 0.9 ** np.arange(29, -1, -1)
    live = judged.live()
    for column, name in enumerate(("frozen", "adapted", "served")):
        assert live.quality[name].value == pytest.approx((weights * want[:, column]).sum() / weights.sum())
    gain = want[:, 2] - want[:, 0]
    assert live.gain["served"].value == pytest.approx((weights * gain).sum() / weights.sum())
    assert live.gain["served"].low < live.gain["served"].value < live.gain["served"].high
    low, high = live.anytime["served"]
    assert -1 <= low <= gain.mean() <= high <= 1
    assert live.block_labels == 30


def test_the_last_label_of_a_query_wins(batch):
    judged, clean = quality(alpha=0.8), quality(alpha=0.8)
    seen = batch([0, 1, 2])
    for one in (judged, clean):
        one.observe(seen)
    for offset, name in ((0, "cat"), (1, "dog"), (1, "dog"), (2, "owl"), (1, "cat")):
        judged.judge(label(offset, name))
    for offset, name in ((0, "cat"), (1, "cat"), (2, "owl")):
        clean.judge(label(offset, name))
    assert judged.summary() == clean.summary()
    for name in ("frozen", "served"):
        assert judged.live().quality[name].value == pytest.approx(clean.live().quality[name].value)
    labels = judged.labels()
    assert (labels.requested, labels.arrived, labels.corrected, labels.pending) == (3, 3, 1, 0)
    assert judged.live().block_labels == 3


def test_where_labels_steer_the_other_half_alone_is_measured(batch):
    judged, every = quality(rate=0.5, report=True), quality(rate=0.5)
    asked = [o for o in range(400) if every.sampled(at(o))]
    steering = [o for o in asked if steers(at(o), "key", 0.5)]
    assert abs(len(steering) / len(asked) - 0.5) < 0.1
    assert [o for o in range(400) if judged.sampled(at(o))] == sorted(set(asked) - set(steering))
    judged.observe(batch(range(400)))
    for offset in range(400):
        judged.judge(label(offset))
    counts = judged.labels()
    assert counts.arrived + counts.ignored["irrelevant"] == counts.requested == len(asked) - len(steering)
    assert counts.ignored["steering"] == len(steering)
    assert counts.ignored["unsampled"] == 400 - len(asked)


def test_unsampled_labels_are_ignored(batch):
    judged = quality(rate=0.5)
    judged.observe(batch(list(range(40))))
    for offset in range(40):
        judged.judge(label(offset))
    chosen = [offset for offset in range(40) if included(at(offset), "key", 0.5)]
    assert judged.summary().n == len(chosen) == judged.labels().requested
    assert judged.labels().ignored["unsampled"] == 40 - len(chosen)


def test_a_label_may_come_before_its_answer(batch):
    judged, plain = quality(), quality()
    judged.judge(label(1, "dog"))
    assert judged.labels().early == 1 and judged.summary().n == 0
    judged.observe(batch([0, 1]))
    plain.observe(batch([0, 1]))
    plain.judge(label(1, "dog"))
    assert judged.summary() == plain.summary()
    assert judged.labels().early == 0


def test_labels_of_unknown_queries_are_bounded_and_counted():
    judged = quality(early=10)
    for offset in range(25):
        judged.judge(label(offset, topic="elsewhere"))
    assert judged.labels().early == 10
    assert judged.labels().ignored["unknown"] == 15


def test_memory_is_bounded_and_late_labels_expire(batch):
    judged = quality(ttl=64)
    for seq in range(40):
        judged.observe(batch(list(range(32 * seq, 32 * seq + 32)), seq=seq))
        judged.judge(label(32 * seq))
    assert len(judged._memory) == 64
    assert len(judged._gone) <= 64 and len(judged._scores) <= 64
    assert judged.labels().expired == 31 * 38
    before = judged.summary()
    judged.judge(label(32 * 40 - 65))
    assert judged.labels().ignored["expired"] == 1
    judged.judge(label(32 * 40 - 64, "owl"))
    assert judged.summary() != before
    assert judged.labels().pending == 64 - 2


def test_answers_given_again_are_remembered_once(batch):
    judged = quality()
    judged.observe(batch([0, 1]))
    judged.judge(label(0))
    judged.observe(batch([0, 1], repeated=True))
    judged.judge(label(0))
    assert judged.labels().requested == 2 and judged.summary().n == 1


def test_gone_galleries_and_labels_without_items_are_counted(batch):
    judged = quality()
    judged.observe(batch([0]))
    judged.observe(batch([1], version="v0"))
    judged.judge(label(0, "unicorn"))
    judged.judge(label(1, "cat"))
    ignored = judged.labels().ignored
    assert (ignored["irrelevant"], ignored["gallery"], judged.summary().n) == (1, 1, 0)
    judged.judge(label(0, "cat"))
    assert judged.summary().n == 1


def test_labels_that_overflowed_are_counted():
    judged = quality()
    judged.overflowed(3)
    judged.overflowed(2)
    assert judged.labels().ignored["overflow"] == 5 and judged.labels().arrived == 0


def test_a_dropped_label_does_not_wait_for_one_that_is_judged(batch):
    judging, may = threading.Event(), threading.Event()

    def slow(version, remembered, name):
        judging.set()
        may.wait(10)
        return ranked(version, remembered, name)

    judged = JudgedQuality("key", 1.0, 1000, slow)
    judged.observe(batch([0]))
    worker = threading.Thread(target=judged.judge, args=(label(0),))
    worker.start()
    assert judging.wait(5)
    loop = threading.Thread(target=judged.overflowed, args=(1,))
    loop.start()
    loop.join(2)
    waited = loop.is_alive()
    may.set()
    worker.join()
    loop.join()
    assert not waited and judged.labels().ignored["overflow"] == 1


def test_features_are_kept_only_when_answers_are_re_ranked(batch):
    kept = []

    def spy(version, remembered, name):
        kept.append(remembered)
        return ranked(version, remembered, name)

    features = np.arange(8, dtype=np.float32).reshape(2, 4)
    for keep in (False, True):
        judged = JudgedQuality("key", 1.0, 10, spy, keep_features=keep)
        judged.observe(batch([0, 1], features=features))
        judged.judge(label(1))
    assert kept[0].frozen_features is EMPTY
    assert kept[1].adapted_features.tolist() == [4.0, 5.0, 6.0, 7.0]
    assert kept[1].frozen_code.base is None  # a copy: the batch's arrays are not held


def test_anytime_intervals_start_again_per_block(batch):
    judged = quality(block_labels=10)
    judged.observe(batch(list(range(25))))
    for offset in range(25):
        judged.judge(label(offset))
    assert (judged.live().block, judged.live().block_labels) == (2, 5)


def test_nothing_yet(batch):
    judged = quality()
    judged.observe(batch([]))
    assert repr(judged.summary()) == repr(Quality())
    assert math.isnan(judged.live().gain["served"].value)
    judged.observe(batch([0]))
    judged.judge(label(0))
    assert judged.summary().n == 1 and math.isnan(judged.summary().low)
