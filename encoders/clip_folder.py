"""Any open_clip model as one folder that needs nothing else: open_clip's own `local-dir:` format.

Configuration, preprocessing, weights in float32, and the files of tokenizer and text tower, wherever they
come from.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoConfig, AutoTokenizer

from core.errors import ArtifactError, ConfigError
from core.readers.places import is_file, shown
from encoders.clip_source import CONFIG, OFFLINE, WEIGHTS, ClipSource, found
from encoders.weights import state_of, write_float32

TEXT_CONFIG = "config.json"
TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")
TOKENIZER_FILES = (
    *TOKENIZERS, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt",
)  # fmt: skip


def clip_folder(folder: Path, source: ClipSource) -> dict[str, Any]:
    """Writes the model into an empty folder, for `open_clip_towers("local-dir:...")`.

    Returns:
        What a base's manifest says of it: names, no places.

    Raises:
        ConfigError: an unknown name or tag, choices that are missing or contradict each other.
        ArtifactError: files missing or damaged, or a download without a network.
    """
    model = found(source)
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads(json.dumps(model.config))
    _text_side(folder, config["text_cfg"], source.text_files or model.beside, source.text_files is not None)
    if "timm_model_name" in config["vision_cfg"]:
        config["vision_cfg"]["timm_model_pretrained"] = False
    document = {"model_cfg": config, "preprocess_cfg": model.preprocess}
    (folder / CONFIG).write_text(json.dumps(document, indent=1, sort_keys=True))
    state = state_of(model.weights)
    _check_positions(config, state)
    write_float32(state, folder / WEIGHTS)
    return {"model": source.model or "of its folder", "weights": source.tag or model.weights.name}


def _check_positions(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Raises ArtifactError for weights of another length or size: open_clip would stretch them in silence."""
    text, vision = config["text_cfg"], config["vision_cfg"]
    read = state.get("positional_embedding", state.get("text.positional_embedding"))
    if read is not None and "hf_model_name" not in text:
        tokens = int(text.get("context_length", 77))
        if len(read) != tokens:
            raise ArtifactError(
                f"the weights read texts of {len(read)} tokens, the configuration says {tokens}: take the "
                "one that they were trained with"
            )
    seen = state.get("visual.positional_embedding")
    size, patch = vision.get("image_size", 224), vision.get("patch_size", 16)
    if seen is not None and isinstance(size, int) and isinstance(patch, int):
        patches = (size // patch) ** 2
        if len(seen) not in (patches, patches + 1):  # with a token of its own for the class, or without
            raise ArtifactError(
                f"the weights see pictures as {len(seen)} tokens, the configuration as {patches + 1} of "
                f"{size} pixels: take the one that they were trained with, such as one named NAME-336"
            )


def _text_side(folder: Path, config: dict[str, Any], place: Path | None, named: bool) -> None:
    """Puts the files of tokenizer and text tower into the folder, and says in the config that they are there.

    Args:
        folder: where the model goes.
        config: its text_cfg, changed.
        place: where the files lie; None takes them from the hub's cache.
        named: whether the user said so: then they have to be of use.
    """
    tower, tokenizer = config.get("hf_model_name"), config.get("hf_tokenizer_name")
    if not tower and not tokenizer:
        if named:
            raise ConfigError(
                "the model has open_clip's own tokenizer, which brings its files: leave them out"
            )
        return
    if tokenizer:
        if place is None:
            _fetch(AutoTokenizer, tokenizer, folder, "tokenizer")
        else:
            _copy_tokenizer(place, folder)
        config["hf_tokenizer_name"] = "."
    if tower:
        inner = place / tower if place is not None and tower.startswith(".") else place
        if inner is None or not is_file(inner / TEXT_CONFIG):
            if tower.startswith("."):
                raise ArtifactError(f"{TEXT_CONFIG} of the text tower is missing: copy it beside {CONFIG}")
            _fetch(AutoConfig, tower, folder, "configuration of the text tower")
        else:
            shutil.copyfile(inner / TEXT_CONFIG, folder / TEXT_CONFIG)
        config |= {"hf_model_name": ".", "hf_model_pretrained": False}


def _copy_tokenizer(place: Path, folder: Path) -> None:
    there = [name for name in TOKENIZER_FILES if is_file(place / name)]
    if not set(there) & set(TOKENIZERS):
        raise ArtifactError(
            f"{shown(place)} holds no files of a tokenizer ({', '.join(TOKENIZERS[:3])}, ...): copy those of "
            "the model there, or name their folder with --text-files"
        )
    for name in there:
        shutil.copyfile(place / name, folder / name)


def _fetch(kind: Any, name: str, folder: Path, what: str) -> None:
    """From the hub's cache, or the hub."""
    try:
        kind.from_pretrained(name).save_pretrained(folder)
    except Exception as error:  # the hub raises a zoo of its own
        raise ArtifactError(
            f"the {what} {name} is not on this machine ({type(error).__name__}): {OFFLINE}; or give its "
            "files, --text-files DIR"
        ) from error
