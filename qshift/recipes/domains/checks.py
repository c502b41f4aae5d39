"""What cannot be fitted, said before any work."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from core.errors import ConfigError
from encoders.prompting import PromptTower
from encoders.text import TextTower
from qshift.recipes.domains.material import SIDE, FitOptions
from qshift.recipes.encode import BATCH


def check_fit(
    method: str,
    methods: Collection[str],
    source: Sequence[Any],
    labels: Sequence[str],
    target: Sequence[Any],
    options: FitOptions,
) -> None:
    """Raises ConfigError for an unknown method, options of another one, or too few pictures or classes."""
    if method not in methods:
        raise ConfigError(f"no method {method!r}: expected one of {', '.join(methods)}")
    _check_options(method, options)
    if len(labels) != len(source):
        raise ConfigError(f"expected a class for each of {len(source)} source pictures, got {len(labels)}")
    if len(set(labels)) < 2:
        raise ConfigError(
            f"the source has {len(set(labels))} class: sort its pictures into a folder for each "
            "class, two or more"
        )
    if len(target) < BATCH:
        raise ConfigError(f"the target has {len(target)} pictures: at least {BATCH} are needed to measure it")
    if len(source) + len(target) < options.bits:
        raise ConfigError(
            f"{len(source) + len(target)} pictures are fewer than {options.bits} bits: add pictures, or take "
            "fewer bits"
        )


def _check_options(method: str, options: FitOptions) -> None:
    bits = options.bits
    if options.tower_rate and method == "psca":
        raise ConfigError("psca trains no tower: leave the tower's rate out, or take couple or tpsnet")
    if options.epochs is not None and (method == "psca" or options.epochs < 1):
        raise ConfigError("epochs of couple or tpsnet, at least 1, expected: leave them out")
    if options.backbone is None and options.weights is not None:
        raise ConfigError(f"{options.weights} are weights of a backbone: say which with --backbone")
    if options.model is not None and (options.backbone, options.side) != (None, SIDE):
        raise ConfigError(
            "a model of your own says tower and size of pictures: leave --backbone and --side out"
        )
    if bits < 8 or bits % 8:
        raise ConfigError(f"bits must be a multiple of 8, at least 8, got {bits}")


def check_towers(method: str, text: TextTower | None, options: FitOptions) -> None:
    """Before anything is encoded. Raises ConfigError for prompts without a text tower that takes them."""
    if method != "tpsnet" or options.preset == "plus":
        return
    if text is None:
        raise ConfigError(
            "tpsnet learns prompts and needs a text tower beside the image tower: take an open_clip model, "
            "or --preset plus, which leaves prompts and phase images out"
        )
    PromptTower(text)
