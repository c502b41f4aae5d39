"""A batch through the pipeline where texts are repaired: which twin reads what, and what it costs."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from core.hooks import HookPoints
from core.records import Coordinates
from core.types import Encoded, Hits, Outcome, Query, QueryBatch, Twin
from stream.pipeline import Pipeline
from stream.retrieval import Retrieval
from stream.session import Session
from stream.warm_up import warm_up

WIDTH = 24  # of the gallery in conftest.py


class Letters:
    """Texts as counts of their letters; what it prepares is an array, as tokens are."""

    modality = "text"
    width = WIDTH

    def __init__(self) -> None:
        self.read: list[torch.Tensor] = []

    def prepare(self, content: str) -> np.ndarray:
        tokens = np.zeros(WIDTH, np.float32)
        for letter in content:
            tokens[ord(letter) % WIDTH] += 1
        return tokens

    def collate(self, prepared: Sequence[np.ndarray], rows: int) -> torch.Tensor:
        last = prepared[-1] if len(prepared) else self.prepare("")
        block = np.stack([*prepared, *[last] * (rows - len(prepared))])
        return torch.from_numpy(block)

    def encode(self, inputs: torch.Tensor, params: Any = None, hook: Any = None) -> torch.Tensor:
        self.read.append(inputs)
        moved = inputs if not params else inputs * params["affine.weight"] + params["affine.bias"]
        return torch.nn.functional.normalize(moved, dim=1)

    def adaptable(self) -> dict[str, torch.Tensor]:
        return {"affine.weight": torch.ones(WIDTH), "affine.bias": torch.zeros(WIDTH)}

    def hook_points(self) -> HookPoints:
        return HookPoints()


TEXTS = ["a dog", "a hrose", "two cats", "a bycicle", "a car", "a tree", "red", "blue"] * 2
MENDED = {"a hrose": "a horse ran", "a bycicle": "a bicycle path"}


class Texts:
    """The pipeline of conftest.py with the encoder above."""

    def __init__(self, world: Any, repair: Callable[[str], str] | None) -> None:
        self.encoder = Letters()
        self.marks: list[np.ndarray] = []
        own = world.pipeline

        class Adapted:
            """The adapted twin alone is served."""

            def twin(self, gallery: Any, encoded: Encoded, hits: Hits) -> Twin:
                return Twin(encoded, hits, hits)

            def together(
                self, gallery: Any, modality: Any, frozen: Twin, adapted: Twin, repaired: Any, correct: Any
            ) -> Any:
                marks.append(repaired)
                return adapted.answer, np.ones(len(repaired), np.float32)

            def quiet(self, *_: Any) -> bool:
                return False

        marks = self.marks
        self.pipeline = Pipeline(
            world.config, {"text": self.encoder},  # type: ignore[dict-item]
            Retrieval(
                lambda features, _: world.head.codes(features, "vector"), own.retrieval.current, Adapted(),
                world.config.answer.shortlist, "cpu",
            ),
            lambda modality: own.new_adapter("vector"), lambda modality: None,
            lambda modality, q, near, mask: torch.zeros(len(q)), repair=repair,
        )  # fmt: skip

    def through(self, texts: Sequence[str]) -> Outcome:
        queries = [
            self.pipeline.admit(Query(Coordinates("qshift.queries", 0, i), "text", text))
            for i, text in enumerate(texts)
        ]
        session = Session(self.pipeline, "text")
        self.encoder.read.clear()
        batch = QueryBatch("lane", 0, "text", tuple(queries))
        return session.learn(session.answer(batch))

    def features(self, texts: Sequence[str]) -> np.ndarray:
        rows = np.stack([self.encoder.prepare(text) for text in texts])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def mend(text: str) -> str:
    return MENDED.get(text, text)


FROZEN = {"adapt": {"method": "frozen"}}


def test_the_frozen_twin_reads_what_was_asked_and_the_adapted_what_was_meant(make_world: Any) -> None:
    texts = Texts(make_world(**FROZEN), mend)
    outcome = texts.through(TEXTS)
    np.testing.assert_allclose(outcome.frozen.features, texts.features(TEXTS), atol=1e-6)
    np.testing.assert_allclose(outcome.adapted.features, texts.features([mend(t) for t in TEXTS]), atol=1e-6)
    changed = (outcome.frozen.features != outcome.adapted.features).any(1)
    assert changed.tolist() == [text in MENDED for text in TEXTS]
    assert texts.marks[0].tolist() == [text in MENDED for text in TEXTS]
    assert outcome.forwards == len(texts.encoder.read) == 2


def test_a_query_remembers_both_texts(make_world: Any) -> None:
    pipeline = Texts(make_world(**FROZEN), mend).pipeline
    encoder = Letters()
    wrong = pipeline.admit(Query(Coordinates("q", 0, 0), "text", "a hrose"))
    assert (wrong.content, wrong.repaired) == ("a hrose", "a horse ran")
    np.testing.assert_array_equal(wrong.prepared, encoder.prepare("a hrose"))
    np.testing.assert_array_equal(wrong.repaired_prepared, encoder.prepare("a horse ran"))
    right = pipeline.admit(Query(Coordinates("q", 0, 1), "text", "a dog"))
    assert right.repaired == "" and right.repaired_prepared is None


def test_padding_rows_of_a_repaired_batch(make_world: Any) -> None:
    texts = Texts(make_world(**FROZEN), mend)
    outcome = texts.through(["a dog", "a cat", "a hrose"])
    assert [len(inputs) for inputs in texts.encoder.read] == [8, 1]  # only what was mended is read again
    np.testing.assert_allclose(
        outcome.adapted.features, texts.features(["a dog", "a cat", "a horse ran"]), atol=1e-6
    )
    assert texts.marks[0].tolist() == [False, False, True]


@pytest.mark.parametrize("repair", [None, mend, lambda text: text])
def test_nothing_to_repair_costs_nothing(make_world: Any, repair: Any) -> None:
    texts = Texts(make_world(**FROZEN), repair)
    outcome = texts.through([text for text in TEXTS if text not in MENDED])
    assert outcome.forwards == len(texts.encoder.read) == 1
    np.testing.assert_array_equal(outcome.frozen.features, outcome.adapted.features)
    assert not texts.marks[0].any()


@pytest.mark.parametrize("wrong", [0, 1])
def test_every_forward_is_counted_while_learning(make_world: Any, wrong: int) -> None:
    texts = Texts(make_world(), mend)
    outcome = texts.through([text for text in TEXTS if wrong or text not in MENDED])
    assert outcome.step is not None and outcome.step.updated
    assert outcome.forwards == len(texts.encoder.read) >= 2 + wrong
    # What was asked is read once, by the frozen twin, what was mended once more; all else is learned from
    # what was meant.
    meant = texts.encoder.read[1 + wrong :]
    assert all(torch.equal(inputs, meant[0]) for inputs in meant)
    assert torch.equal(texts.encoder.read[0], meant[0]) is not bool(wrong)
    if wrong:
        assert len(texts.encoder.read[1]) == sum(text in MENDED for text in TEXTS)


def test_warming_up_does_the_slow_work_once_and_changes_no_answer(make_world: Any) -> None:
    asked: list[str] = []

    def noted(text: str) -> str:
        asked.append(text)
        return mend(text)

    cold, warm = Texts(make_world(), mend), Texts(make_world(), noted)
    warm_up(warm.pipeline)
    assert [len(rows) for rows in warm.encoder.read] == [16]
    assert len(asked) == 1
    one, other = cold.through(TEXTS), warm.through(TEXTS)
    assert one.state_hash == other.state_hash
    assert np.array_equal(one.served.keys, other.served.keys)
    for side in ("frozen", "adapted"):
        assert np.array_equal(getattr(one, side).answer.keys, getattr(other, side).answer.keys)
