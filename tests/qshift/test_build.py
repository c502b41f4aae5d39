"""What only a base model can tell: a setting that asks for more than it has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from core.config import AlignConfig, Config
from core.errors import ConfigError
from core.hooks import HookPoints
from core.references import Calibration, SourceConstants
from qshift.lanes import Aligners, adapter, method_of
from qshift.recipes.emoji_base import choose_step


def base(layers: int) -> Any:
    """A base of which only the calibration is looked at: 40 pictures, `layers` BatchNorms of 4 channels."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 8)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    statistics = rng.uniform(0.5, 1.5, (40, 4 * layers)).astype(np.float32)
    found = Calibration(features, statistics, statistics, (4,) * layers)
    tower = SimpleNamespace(hook_points=lambda: HookPoints(found.widths))
    return SimpleNamespace(calibration={"image": found}, encoders={"image": tower})


def config(layers: list[int], enabled: bool = True) -> Config:
    clusters = {"layers": layers, "enabled": enabled}
    return Config.model_validate({"adapt": {"align": {"clusters": clusters}}})


def test_a_layer_that_the_tower_has_not_is_one_sentence() -> None:
    with pytest.raises(ConfigError) as error:
        Aligners(config([0, 99]), base(5), "cpu")("image")
    assert (
        "layer 99" in str(error.value)
        and "layers 0 to 4" in str(error.value)
        and "\n" not in str(error.value)
    )
    with pytest.raises(ConfigError, match="layer 5"):
        Aligners(config([5]), base(5), "cpu")("image")


def test_a_layer_that_it_has_is_taken_and_the_default_never_stops_a_small_tower() -> None:
    for settings, layers in ((config([4]), 5), (config([0, 2]), 2), (config([99], enabled=False), 5)):
        assert Aligners(settings, base(layers), "cpu")("image") is not None


def test_what_is_left_open_is_settled_by_the_kind_of_norm() -> None:
    open_, chosen = AlignConfig(), AlignConfig(strength=0.3, matched=True)
    at_batch, at_layer = open_.settled(False), open_.settled(True)
    assert (at_batch.strength, at_batch.forgetting, at_batch.matched) == (0.5, 0.8, True)
    assert (at_layer.strength, at_layer.forgetting, at_layer.matched) == (1.0, 0.3, False)
    settled = chosen.settled(True)
    assert (settled.strength, settled.forgetting, settled.matched) == (0.3, 0.3, True)


@pytest.mark.parametrize(
    ("adapt", "said", "measured", "expected"),
    [
        ({}, "frozen", True, "frozen"),
        ({}, "rest", True, "rest"),
        ({}, "", True, "frozen"),  # a base of 0.2 does not say: what can be aligned is
        ({}, "", False, "rest"),
        ({"method": "tent"}, "frozen", True, "tent"),
        ({"method": "rest"}, "frozen", True, "rest"),
        ({"preset": "tcr-paper"}, "frozen", True, "rest"),
    ],
)
def test_the_base_says_what_adapts_where_nobody_else_does(
    adapt: dict[str, str], said: str, measured: bool, expected: str
) -> None:
    known = base(5)
    known.constants = {"image": SourceConstants(0.1, 0.2, 0.05, 1e-3, method=said)}
    known.calibration = known.calibration if measured else {}
    assert method_of(Config.model_validate({"adapt": adapt}), known, "image") == expected


@pytest.mark.parametrize(
    ("adapt", "said", "expected"),
    [
        ({}, choose_step("text").method, "frozen"),
        ({"method": "rest"}, choose_step("text").method, "rest"),
        ({}, "rest", "rest"),  # bases of before
        ({}, "", "rest"),
    ],
)
def test_texts_learn_where_somebody_says_so(adapt: dict[str, str], said: str, expected: str) -> None:
    known, chosen = base(5), Config.model_validate({"adapt": adapt})
    known.constants = {"text": SourceConstants(0.1, 0.2, 0.05, 1e-3, method=said)}
    assert method_of(chosen, known, "text") == expected
    if expected == "frozen":
        made = adapter(chosen, known, "text", "cpu")
        assert made.name == "frozen" and made.parameters() == {}
