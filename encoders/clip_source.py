"""Where a user's open_clip model comes from: a tag, a weight file, or a folder in open_clip's format.

What open_clip would guess in silence is settled here or refused: the activation of a weight file, mean and sd
of its pictures, which of several files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import open_clip
from open_clip.transform import PreprocessCfg

from core.errors import ArtifactError, ConfigError
from core.readers.places import is_file, is_folder, names_in, shown
from encoders.clip import HUB, LOCAL, model_config
from encoders.near_names import near
from encoders.weights import PICKLED

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
PREFERRED = (
    WEIGHTS, "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors",
    "pytorch_model.bin",
)  # fmt: skip
"""As open_clip looks for weights in a folder."""
PREPARED = ("mean", "std", "interpolation", "resize_mode", "fill_color")
OFFLINE = "nothing is downloaded unless HF_HUB_OFFLINE=0 is set and there is a network"


@dataclass(frozen=True, slots=True)
class ClipSource:
    """Which model.

    Args:
        model: a configuration of open_clip by name; None for a folder that holds its own.
        pretrained: a tag, a weight file, or a folder in open_clip's format.
        tag: whose weights a file holds: it says activation and preprocessing.
        quick_gelu: the activation that a file was trained with, where no tag says it.
        text_files: a folder with the tokenizer's files, and config.json of a transformers text tower.
    """

    model: str | None
    pretrained: str
    tag: str | None = None
    quick_gelu: bool | None = None
    text_files: Path | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """A model's configuration and preprocessing, and where its files lie; `beside` may hold a tokenizer's."""

    config: dict[str, Any]
    preprocess: dict[str, Any]
    weights: Path
    beside: Path | None


def found(source: ClipSource) -> Found:
    """Raises ConfigError, ArtifactError: see `clip_folder`."""
    if source.model is not None and source.model.startswith(HUB):
        raise ConfigError(
            f"{source.model} would be downloaded: download it and give its folder as --pretrained DIR"
        )
    place = Path(source.pretrained.removeprefix(LOCAL))
    if is_folder(place):
        return _of_folder(place, source)
    if source.model is None:
        raise ConfigError(
            f"no folder {shown(place)}: --pretrained DIR needs one with {CONFIG}, else name the --model"
        )
    config = model_config(source.model)
    if is_file(place):
        return _of_file(source.model, config, place, source)
    return _of_tag(source.model, config, source.pretrained)


# -- a folder -------------------------------------------------------------------------------------------


def _of_folder(place: Path, source: ClipSource) -> Found:
    """Its own configuration, which a name must not contradict; or weights beside a name."""
    path = place / CONFIG
    if not is_file(path):
        if source.model is None:
            raise ArtifactError(
                f"{shown(place)} holds no {CONFIG}: give a folder that open_clip has written, or the --model"
            )
        found = _of_file(source.model, model_config(source.model), _weights_in(place), source)
        return Found(found.config, found.preprocess, found.weights, place)
    if source.tag is not None or source.quick_gelu is not None:
        raise ConfigError(
            f"{shown(path)} says activation and preprocessing: leave --tag and --quick-gelu out"
        )
    config = _two_towers(model_config(f"{LOCAL}{place}"), shown(path))
    if source.model is not None and model_config(source.model) != config:
        raise ConfigError(f"{shown(path)} is of another configuration than {source.model}: leave --model out")
    try:
        said = json.loads(path.read_text()).get("preprocess_cfg") or {}
        preprocess = _prepared(dict(said))
    except (ValueError, TypeError) as error:
        raise ArtifactError(f"{shown(path)}: preprocess_cfg cannot be read: {error}") from error
    return Found(config, preprocess, _weights_in(place), place)


def _weights_in(place: Path) -> Path:
    files = [name for name in names_in(place) if Path(name).suffix in (".safetensors", *PICKLED)]
    known = [name for name in PREFERRED if name in files]
    if not known and len(files) != 1:
        what = f"several: {', '.join(map(shown, files[:5]))}" if files else "none"
        raise ArtifactError(
            f"{shown(place)} should hold one file of weights and holds {what}; name the right one {WEIGHTS}"
        )
    return place / (known or files)[0]


# -- a name and a file, or a tag ------------------------------------------------------------------------


def _of_file(model: str, config: dict[str, Any], file: Path, source: ClipSource) -> Found:
    if source.tag is not None:
        told = _tag(model, source.tag)
        if source.quick_gelu is not None:
            raise ConfigError(f"the tag {source.tag} says the activation: leave --quick-gelu out")
        _check_activation(model, config, source.tag, told)
        return Found(config, _prepared(told), file, None)
    name = _clean(model)
    both = name.endswith("-quickgelu") or f"{name}-quickgelu" in open_clip.list_models()
    if both and source.quick_gelu is None:
        raise ConfigError(
            f"{shown(file.name)} does not say its activation, and a wrong one is silent: give --tag TAG, "
            "whose weights they are, --quick-gelu (those of OpenAI, DFN, MetaCLIP) or --no-quick-gelu"
        )
    if source.quick_gelu is False and config.get("quick_gelu"):
        raise ConfigError(f"{model} is a QuickGELU configuration: drop its suffix, or --no-quick-gelu")
    if source.quick_gelu:
        config["quick_gelu"] = True
    tags = [_prepared(_tag(model, tag)) for tag in open_clip.list_pretrained_tags_by_model(name)]
    same = tags and all(one == tags[0] for one in tags)
    return Found(config, tags[0] if same else _prepared({}), file, None)


def _of_tag(model: str, config: dict[str, Any], tag: str) -> Found:
    told = _tag(model, tag)
    _check_activation(model, config, tag, told)
    try:
        file = Path(open_clip.download_pretrained(told, prefer_hf_hub=True))
    except Exception as error:  # the hub raises a zoo of its own
        raise ArtifactError(
            f"the weights {tag!r} of {model} are not on this machine and cannot be downloaded "
            f"({type(error).__name__}): {OFFLINE}; or give the file, --pretrained FILE --tag {tag}"
        ) from error
    return Found(config, _prepared(told), file, None)


def _tag(model: str, tag: str) -> dict[str, Any]:
    found: dict[str, Any] = open_clip.get_pretrained_cfg(_clean(model), tag)
    if not found:
        tags = open_clip.list_pretrained_tags_by_model(_clean(model))
        there = near(tag, tags) if tags else "open_clip knows none of this model"
        raise ConfigError(f"{tag!r} is no file, no folder and no tag of {model}: {there}")
    return found


def _check_activation(model: str, config: Mapping[str, Any], tag: str, told: Mapping[str, Any]) -> None:
    trained, built = bool(told.get("quick_gelu")), bool(config.get("quick_gelu"))
    if trained != built:
        name = _clean(model)
        other = name.removesuffix("-quickgelu") if built else f"{name}-quickgelu"
        raise ConfigError(
            f"{tag} was trained {'with' if trained else 'without'} QuickGELU and {model} is built "
            f"{'with' if built else 'without'}: take --model {other}"
        )


def _clean(model: str) -> str:
    return model.replace("/", "-")


def _prepared(said: Mapping[str, Any]) -> dict[str, Any]:
    """open_clip's preprocess_cfg without the size, which the model has; what is not said is its default."""
    whole = {**asdict(PreprocessCfg()), **{key: value for key, value in said.items() if value is not None}}
    found: dict[str, Any] = json.loads(json.dumps({key: whole[key] for key in PREPARED}))
    return found


def _two_towers(config: dict[str, Any], where: str) -> dict[str, Any]:
    for key in ("vision_cfg", "text_cfg"):
        if not isinstance(config[key], dict) or not config[key]:
            side = "pictures" if key == "vision_cfg" else "texts"
            raise ArtifactError(f"{where} has no tower for {side}: {key} should say what it is made of")
    return config
