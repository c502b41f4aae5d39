"""The methods that can be replayed: each is a name and what it changes in the configuration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from core.config import OWN_METHOD, Config
from core.errors import ConfigError

ALONE: dict[str, object] = {"align": {"enabled": False}}
METHODS: dict[str, dict[str, object]] = {
    "frozen": {"method": "frozen"} | ALONE,
    "centring": {"method": "centring"} | ALONE,
    "residual_centring": {"method": "residual_centring"} | ALONE,
    "training_free": {"method": "training_free"} | ALONE,
    "refinement": {"method": "refinement"} | ALONE,
    "aligned-plain": {"method": "frozen", "align": {"matched": False, "clusters": {"enabled": False}}},
    "aligned-matched": {"method": "frozen", "align": {"clusters": {"enabled": False}}},
    "aligned-two-pass": {"method": "frozen", "align": {"passes": 2, "clusters": {"enabled": False}}},
    "aligned": {"method": "frozen"},
    "tent": {"method": "tent"} | ALONE,
    "eata": {"method": "eata"} | ALONE,
    "sar": {"method": "sar"} | ALONE,
    "read": {"method": "read"} | ALONE,
    "deyo": {"method": "deyo"} | ALONE,
    "shot": {"method": "shot"} | ALONE,
    "neo": {"method": "neo"} | ALONE,
    "foa-shift": {"method": "foa-shift"} | ALONE,
    "uca": {"method": "uca"} | ALONE,
    "cliptta": {"method": "cliptta"} | ALONE,
    "uatta": {"method": "uatta"} | ALONE,
    "tcr-paper": {"method": "tcr", "preset": "tcr-paper"} | ALONE,
    "tcr": {"method": "tcr", "anchor": 1.0} | ALONE,
    "anchored": {"method": "tcr"} | ALONE,
    "rest": {"method": "rest"} | ALONE,
    "rest-none": {"method": "rest", "decouple": {"reference": "none"}} | ALONE,
    "rest-memory": {"method": "rest", "decouple": {"reference": "memory"}} | ALONE,
    "rest-weights": {"method": "rest", "decouple": {"reference": "weights"}} | ALONE,
    "rest-subspace": {"method": "rest", "decouple": {"reference": "subspace"}} | ALONE,
    "rest-tensor": {"method": "rest", "decouple": {"granularity": "tensor"}} | ALONE,
    "rest-step": {"method": "rest", "decouple": {"place": "step"}} | ALONE,
    "rest-bidir": {"method": "rest", "consistency": "bidir"} | ALONE,
    "rest-flow": {"method": "rest", "reliability": "flow"} | ALONE,
    "default": {},
}
"""What `--method` may name: changes of the `adapt` section; see `with_method` for the rest.

All but "default" answer from one encoder alone and leave texts as they are: they are compared as methods, and
what fusion and query repair add is seen in "default". "+fused" behind a name answers from both twins,
"+repair" mends texts first. A method of the user's own, `module:Class`, is compared as these are.
"""

PEERS = ("tent", "eata", "sar", "deyo", "tcr-paper")
"""The published methods that the default is measured against."""

SUITE_METHODS = (
    "frozen", "default", "centring", "residual_centring", "training_free", "refinement",
    "aligned-plain", "aligned-matched", "aligned-two-pass", "aligned",
    "tent", "eata", "sar", "read", "deyo", "shot", "tcr-paper", "anchored", "rest",
)  # fmt: skip
"""What `qshift bench` compares where no `--method` is named."""
EXTRAS = ("fused", "repair")
FACTOR = "*"


def known(name: str) -> bool:
    """Whether a name, with its extras, is a method: one of METHODS, or `module:Class` of the user's own.

    Raises:
        ConfigError: a module:Class that cannot be imported.
    """
    method, *extras = name.split("+")
    return (method in METHODS or _own(method)) and set(extras) <= set(EXTRAS)


def _own(method: str) -> bool:
    if not OWN_METHOD.fullmatch(method):
        return False
    from adapters.online.own import imported  # late: names of ours are known without NumPy

    imported(method)
    return True


def split(name: str) -> tuple[str, float | None]:
    """A method, and the factor of its learning rate as `qshift bench` knows it; None where none is named.

    Raises:
        ConfigError: a factor that is no number above 0.
    """
    method, mark, written = name.partition(FACTOR)
    if not mark:
        return name, None
    try:
        factor = float(written)
    except ValueError:
        factor = 0.0
    if not 0 < factor < float("inf"):
        raise ConfigError(f"method {name!r}: behind {FACTOR} stands a number above 0, as in tent{FACTOR}3")
    return method, factor


def check_known(names: Iterable[str]) -> None:
    """Raises ConfigError for a name that is no method."""
    for name in names:
        if not known(name):
            names = ", ".join(METHODS)
            raise ConfigError(f"method {name!r} is not known: one of {names}, or module:Class of your own")


def with_method(config: Config, name: str) -> Config:
    """The configuration with another method, named as in METHODS or as `module:Class`."""
    method, *extras = name.split("+")
    document = config.model_dump()
    _merge(document["adapt"], METHODS[method] if method in METHODS else {"method": method} | ALONE)
    if method != "default":
        if "fused" not in extras:
            document["answer"]["fuse"] = "none"
        document["repair"]["enabled"] = "repair" in extras
    return Config.model_validate(document)


def _merge(into: dict[str, Any], changes: Mapping[str, object]) -> None:
    for key, value in changes.items():
        if isinstance(value, Mapping):
            _merge(into[key], value)
        else:
            into[key] = value
