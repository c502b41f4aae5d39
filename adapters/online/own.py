"""A method of the user's own: a class of theirs, named `module:Class`, in the place of ours.

It is made as methods with gradients are, Class(source, constants, config, floor), and has the parts of
`core.protocols.Adapter`. Inside it goes by the name it was asked for by, so that no state of one class is
ever taken for that of another.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from adapters.online.wrapped import Wrapped
from core.errors import ConfigError
from core.protocols import Adapter, Pass
from core.types import AdaptationStep

if TYPE_CHECKING:
    from torch import Tensor


PARTS = tuple(part for part in vars(Adapter) if not part.startswith("_"))
CALL = "(source, constants, config, floor)"


def imported(name: str) -> Callable[..., Adapter]:
    """The class behind `module:Class`. Where Python looks for modules, the working directory comes last.

    Raises:
        ConfigError: no such module, one that cannot be imported, or nothing of that name in it.
    """
    module, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if not {"", here} & set(sys.path):  # an installed command does not look there by itself
        sys.path.append(here)
    try:
        found = import_module(module)
    except Exception as error:  # whatever a module of others raises when it is read
        raise ConfigError(
            f"method {name!r}: cannot import {module} ({type(error).__name__}: {error}); "
            "expected a module that Python finds from here, or in PYTHONPATH"
        ) from error
    made = getattr(found, attribute, None)
    if not callable(made):
        raise ConfigError(f"method {name!r}: there is no class {attribute} in {found.__file__}")
    return made  # type: ignore[no-any-return]


class Own(Wrapped):
    """One lane of a user's method.

    Args:
        name: `module:Class`.
        given: what the class is called with, see `CALL`.

    Raises:
        ConfigError: it cannot be imported, is not made so, or lacks a part of the protocol.
    """

    def __init__(self, name: str, *given: object) -> None:
        self._name = name
        try:
            super().__init__(imported(name)(*given))
        except TypeError as error:
            raise ConfigError(f"method {name!r} cannot be made from {CALL}: {error}") from error
        lacking = [part for part in PARTS if not hasattr(self._inner, part)]
        if lacking:
            raise ConfigError(
                f"method {name!r} lacks {', '.join(lacking)}: a method has {', '.join(PARTS)}, see "
                "core/protocols.py"
            )

    @property
    def name(self) -> str:
        return self._name

    def transform(self, features: Tensor, batch: Pass) -> Tensor:
        """Raises ConfigError for features of another shape: answers would go to the wrong queries."""
        transformed = super().transform(features, batch)
        if transformed.shape != features.shape:
            raise ConfigError(
                f"method {self.name!r} emits {list(transformed.shape)}, expected {list(features.shape)}: a "
                "row for each row, padding included"
            )
        return transformed

    def update(self, batch: Pass) -> tuple[AdaptationStep, Tensor | None]:
        """Raises ConfigError for anything but a pair that begins with a step."""
        found: Any = self._inner.update(batch)
        if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[0], AdaptationStep):
            raise ConfigError(
                f"method {self.name!r}: update returns {type(found).__name__}, expected a pair: an "
                "AdaptationStep, and the features of its last inner forward or None"
            )
        return found

    def snapshot(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Copies: a class may well return what it goes on writing to.

        Raises:
            ConfigError: a tensor that is no array of NumPy.
        """
        tensors, meta = self._inner.snapshot()
        wrong = [key for key, array in tensors.items() if not isinstance(array, np.ndarray | np.generic)]
        if wrong:
            raise ConfigError(
                f"method {self.name!r}: snapshot gives tensors that are no NumPy arrays: {', '.join(wrong)}; "
                "use .detach().cpu().numpy()"
            )
        copies = {key: np.array(array) for key, array in tensors.items()}
        return copies, {"method": self.name, "own": meta}

    def restore(self, tensors: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        """Raises ArtifactError when the snapshot is of another method."""
        from adapters.online.gradient import check_method  # late: to look a name up needs no torch

        check_method(meta, self.name)
        self._inner.restore({key: np.array(array) for key, array in tensors.items()}, meta["own"])
