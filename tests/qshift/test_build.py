"""What only a base model can tell: a setting that asks for more than it has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from core.config import Config
from core.errors import ConfigError
from core.references import Calibration
from qshift.build import Aligners


def base(layers: int) -> Any:
    """A base of which only the calibration is looked at: 40 pictures, `layers` BatchNorms of 4 channels."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 8)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    statistics = rng.uniform(0.5, 1.5, (40, 4 * layers)).astype(np.float32)
    return SimpleNamespace(
        calibration={"image": Calibration(features, statistics, statistics, (4,) * layers)}
    )


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
