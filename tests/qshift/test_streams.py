"""Streams: pure functions of task, stream and seed; schedules by their definition; suites by name."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from core.errors import ConfigError
from core.seeds import generator
from qshift.benchmarks.streams import Asked, Look, Poison, Segment, Stream, boundaries, queries
from qshift.benchmarks.suites import SUITES, Plan
from qshift.benchmarks.suites.core import CLEAN, CORE, MIDDLE, NOISE, everything, texts
from qshift.benchmarks.tasks.types import Sample, Task
from qshift.shifts.corruptions import IMAGE_CORRUPTIONS, corrupt
from qshift.shifts.images import jitter
from qshift.shifts.wording import corrupt_text

SIDE = 32


def samples(count: int, purpose: str = "clean") -> list[Sample]:
    return [
        Sample(
            f"s{i}",
            generator(0, i, purpose).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8),
            f"label {i}",
            "abc"[i % 3],
        )
        for i in range(count)
    ]


def task(count: int = 30, retaken: bool = False) -> Task:
    pools = {"clean": samples(count), "sketch": samples(count, "sketch")}
    return Task("toy/picture-picture", "image", "image", samples(count), pools, "toy", retaken)


def stream(*segments: Segment, **more: object) -> Stream:
    return Stream("toy/picture-picture", "s", "single", segments, "clean", **more)  # type: ignore[arg-type]


def asked(*segments: Segment, seed: int = 0, of: Task | None = None) -> list[Asked]:
    return list(queries(of or task(), stream(*segments), seed))


def test_a_stream_is_a_pure_function_of_task_stream_and_seed() -> None:
    segment = Segment("a", (CLEAN, NOISE, Look("sketch")), 20)
    one, two, other = asked(segment), asked(segment), asked(segment, seed=1)
    assert [a.sample for a in one] == [a.sample for a in two] != [a.sample for a in other]
    assert all(np.array_equal(a.content, b.content) for a, b in zip(one, two, strict=True))


def test_each_query_is_seen_once_and_a_small_pool_shortens_the_stream() -> None:
    found = asked(Segment("a", (CLEAN,), 100))
    assert len(found) == 30 and len({a.sample for a in found}) == 30
    again = asked(Segment("a", (CLEAN,), 100), of=task(retaken=True))
    assert len(again) == 100 and len({a.sample for a in again}) == 100
    assert Counter(a.label for a in again).most_common(1)[0][1] == 4  # rounds of 30


def test_segments_share_the_order_of_a_pool() -> None:
    found = asked(Segment("a", (CLEAN,), 10), Segment("b", (NOISE,), 10), Segment("c", (CLEAN,), 10))
    assert len({a.sample for a in found}) == 30
    assert [a.segment for a in found] == ["a"] * 10 + ["b"] * 10 + ["c"] * 10


def test_pictures_are_taken_again_and_corrupted_by_the_name_of_their_take() -> None:
    (first, *_) = asked(Segment("a", (NOISE,), 1), of=task(retaken=True), seed=5)
    pool, key, _ = first.sample.split("/")
    original = next(s for s in task().pools[pool] if s.key == key)
    retaken = jitter(original.content, 1.0, generator(5, first.sample, "jitter"))
    expected = corrupt(retaken, "gaussian_noise", 4, 5, first.sample)
    assert np.array_equal(first.content, expected) and not np.array_equal(first.content, original.content)


def test_sorted_streams_go_by_group() -> None:
    groups = {s.label: s.group for s in task().pools["clean"]}
    order = [groups[a.label] for a in asked(Segment("a", (CLEAN,), 30, "sorted"))]
    assert order == sorted(order) and len(set(order)) == 3


def test_shares_are_equal_and_shuffled() -> None:
    looks = tuple(Look(corruption="gaussian_noise", severity=level) for level in range(1, 6))
    found = [a.look for a in asked(Segment("a", looks, 30, "shares"))]
    assert set(Counter(found).values()) == {6} and found != sorted(found)


def test_mixed_users_meet_in_every_batch() -> None:
    found = [a.look for a in asked(Segment("a", (CLEAN, NOISE, Look("sketch")), 60))]
    assert set(found[:16]) == {"clean", "gaussian_noise-4", "sketch"}


def test_identical_queries_are_identical_to_the_byte() -> None:
    found = asked(Segment("a", (Look(trick="same"),), 70), of=task(retaken=True))
    assert len(found) == 70 and len({a.content.tobytes() for a in found}) == 1 and found[0].label


def test_hostile_queries_are_noise_without_an_answer_and_one_item_of_the_gallery() -> None:
    looks = (Look(trick="noise"), Look(trick="repeated"))
    found = asked(Segment("a", looks, 40), of=task(retaken=True))
    noise = [a for a in found if not a.label]
    repeated = [a for a in found if a.label]
    assert noise and repeated and len({a.content.tobytes() for a in noise}) == len(noise)
    assert {a.content.shape for a in noise} == {(SIDE, SIDE, 3)}
    assert abs(np.mean([a.content.mean() for a in noise]) - 127.5) < 3
    (item,) = {a.content.tobytes() for a in repeated}
    assert item in {s.content.tobytes() for s in task().gallery}


def test_poison_comes_on_top_of_queries_that_stay_the_same() -> None:
    tricks = ("noise", "grey", "colour", "checks", "same")
    poison = Poison(tuple(Look(trick=trick) for trick in tricks), 0.25)
    plain, found = asked(Segment("a", (NOISE,), 30)), asked(Segment("a", (NOISE,), 30, poison=poison))
    honest, hostile = [a for a in found if a.label], [a for a in found if not a.label]
    assert len(hostile) == 10 and Counter(a.look for a in hostile) == dict.fromkeys(tricks, 2)
    assert all(np.array_equal(one.content, other.content) for one, other in zip(plain, honest, strict=True))
    colours = {a.look: len(np.unique(a.content.reshape(-1, 3), axis=0)) for a in hostile}
    assert (colours["grey"], colours["colour"], colours["checks"]) == (1, 1, 2)


def test_texts_composed_queries_and_sequences_are_shifted_part_by_part() -> None:
    def of(modality: str, content: object) -> Task:
        pool = {"clean": [Sample("k", content, "l")]}
        return Task("toy/x", modality, "image", samples(3), pool, "toy")  # type: ignore[arg-type]

    def first(of: Task, look: Look) -> Asked:
        one = Stream("toy/x", "s", "single", (Segment("a", (look,), 1),), "text")
        return next(iter(queries(of, one, 3)))

    typo = Look(corruption="char_swap", severity=7)
    text = "several words about something"
    at = "clean/k/0"
    assert first(of("text", text), typo).content == corrupt_text(text, "char_swap", 7, 3, at)
    picture = samples(1)[0].content
    composed = first(of("composed", (picture, text)), typo).content
    assert composed[0] is picture and composed[1] == corrupt_text(text, "char_swap", 7, 3, at)
    clip = first(of("sequence", (picture, picture)), NOISE).content
    assert np.array_equal(clip[1], corrupt(picture, "gaussian_noise", 4, 3, f"{at}/1"))
    assert not np.array_equal(clip[0], clip[1])  # every picture of a clip has noise of its own
    noise = first(of("text", text), Look(trick="noise")).content
    assert len(noise.split()) == 8 and noise.replace(" ", "").isalpha()


def test_tiny_batches_and_bursts() -> None:
    assert boundaries(stream(), 100, 0) is None
    tiny = boundaries(stream(batches="tiny"), 100, 0)
    assert tiny is not None and sum(tiny) == 100 and set(tiny) <= set(range(1, 9)) and len(set(tiny)) > 4
    assert tiny == boundaries(stream(batches="tiny"), 100, 0) != boundaries(stream(batches="tiny"), 100, 1)
    bursts = boundaries(stream(batches="bursts"), 200, 0)
    assert bursts is not None and sum(bursts) == 200 and bursts[0] == bursts[4] == 64
    assert max(bursts[1:4]) <= 8


@pytest.mark.parametrize(
    ("look", "match"),
    [
        (Look("night"), "clean, sketch"),
        (Look(corruption="gauss", severity=3), "gaussian_noise"),
        (Look(corruption="gaussian_noise", severity=6), "1, 2, 3, 4, 5"),
        (Look(corruption="char_swap", severity=8), "1 to 7|1, 2"),
    ],
)
def test_what_is_not_there_is_named_with_the_valid_choices(look: Look, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        asked(Segment("a", (look,), 1))


def test_segments_need_names_of_their_own_and_the_right_task() -> None:
    with pytest.raises(ConfigError, match="name of its own"):
        asked(Segment("a", (CLEAN,), 1), Segment("a", (NOISE,), 1))
    with pytest.raises(ConfigError, match="toy/other"):
        list(queries(task(), Stream("toy/other", "s", "single", (), "clean"), 0))


# -- suites --------------------------------------------------------------------------------------------

EMOJI = Plan("emoji/picture-picture", "image", ("sketch",), True)


def test_core_holds_all_corruptions_at_the_two_highest_severities_and_its_schedules() -> None:
    found = everything(EMOJI, False)
    names = {s.name for s in found}
    severe = {s.name: s.segments for s in found if s.kind == "mixed-severity"}
    assert set(severe) == set(IMAGE_CORRUPTIONS)
    for name, (segment,) in severe.items():
        assert {(look.corruption, look.severity) for look in segment.looks} == {(name, 4), (name, 5)}
        assert segment.order == "shares"
    assert {s.kind for s in found} == {
        "single", "gradual", "mixed-severity", "diverse", "sequential", "recurrent", "skewed", "tiny",
        "identical", "hostile",
    }  # fmt: skip
    assert len(names) == len(found)
    assert all(f"{kind}-{MIDDLE}" in {s.name for s in texts(Plan("coco/x", "text", ()), False)}
               for kind in ("char_swap", "ocr", "char_delete"))  # fmt: skip


@pytest.mark.parametrize("name", list(SUITES))
@pytest.mark.parametrize("quick", [False, True])
def test_every_stream_of_every_suite_can_be_drawn(name: str, quick: bool) -> None:
    small = task(retaken=True)
    plans = [
        Plan("emoji/picture-picture", "image", ("sketch",), True),
        Plan("fashion/picture-text", "image", ()),
        Plan("office/a-b", "image", ("sketch",), split="develop"),
        Plan("pacs/photo-art", "image", ("sketch",)),
        Plan("chain/psca", "image", ()),
        Plan("fashion-mnist/picture-picture", "image", ()),
        Plan("fashion-mnist/develop", "image", (), split="develop"),
        Plan("coco/develop", "text", (), split="develop"),
    ]
    drawn = 0
    for plan in plans:
        pools = small.pools if plan.pictures else {"clean": [Sample("k", "a cat sat on a red mat", "l")]}
        own = Task(plan.name, plan.modality, "image", small.gallery, pools, "toy", True, plan.split)  # type: ignore[arg-type]
        streams = SUITES[name].streams(plan, quick)
        assert len({s.name for s in streams}) == len(streams)
        for one in streams:
            next(iter(queries(own, one, 0)))
            drawn += 1
            names = [segment.name for segment in one.segments]
            assert all(a != b for a, b in pairwise(names))
    assert drawn


def test_tasks_kept_for_choosing_settings_are_not_reported() -> None:
    known = ("office/a-b", "office/b-a", "emoji/picture-picture")
    assert CORE.tasks(known, {"office/a-b"}, False) == ["emoji/picture-picture", "office/b-a"]
    assert CORE.tasks(known, {"office/a-b"}, True) == ["emoji/picture-picture"]
    assert SUITES["develop"].tasks(known, {"office/a-b"}, False) == ["emoji/picture-picture", "office/a-b"]
    assert CORE.streams(Plan("office/a-b", "image", ("shift",), split="develop"), False) == ()


def test_texts_are_chosen_for_on_other_shifts_than_those_reported() -> None:
    develop, report = Plan("coco/develop", "text", (), split="develop"), Plan("coco/text-text", "text", ())
    found = {s.name for s in SUITES["develop"].streams(develop, False)}
    assert {"clean", "typos-2", "typos-6", "char_delete-6", "word_swap-6"} < found
    assert found & {s.name for s in CORE.streams(report, False)} == {"clean", "clean-sorted"}
    assert CORE.streams(develop, False) == () == SUITES["develop"].streams(report, False)
    for name in ("emoji/text-noto", "fashion/develop", "composition/develop"):
        plan = Plan(name, "text", (), split="develop")
        assert {s.name for s in SUITES["develop"].streams(plan, False)} == found
    # The quick suite takes none of those whose base takes minutes.
    known = ("coco/develop", "fashion/develop")
    assert SUITES["develop"].tasks(known, set(known), True) == ["coco/develop"]


def test_fashion_mnist_is_asked_everything_and_a_part_of_it_for_choosing() -> None:
    report = Plan("fashion-mnist/picture-picture", "image", ())
    develop = Plan("fashion-mnist/develop", "image", (), split="develop")
    asked = {s.name: s for s in CORE.streams(report, False)}
    assert set(IMAGE_CORRUPTIONS) < set(asked) and {"clean", "clean-sorted", "tiny-batches"} < set(asked)
    assert CORE.streams(develop, False) == () == SUITES["develop"].streams(report, False)
    for one in SUITES["develop"].streams(develop, False):  # the same shifts, of other pictures
        assert one.segments == asked[one.name].segments
    names = {s.name for s in SUITES["develop"].streams(develop, False)}
    assert names == {
        "clean", "clean-sorted", "gaussian_noise", "contrast", "brightness", "mixed-users",
        "recurrent-noise-contrast",
    }  # fmt: skip
    assert CORE.tasks([report.name], (), True) == []


def test_clean_queries_of_a_source_domain_are_asked_once() -> None:
    groups = {
        name: {s.group for s in CORE.streams(Plan(f"office/{name}", "image", ("shift",)), False)}
        for name in ("dslr-amazon", "dslr-webcam")
    }
    assert groups == {"dslr-amazon": {"domain", "clean", "sorted"}, "dslr-webcam": {"domain"}}
