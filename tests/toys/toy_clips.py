"""Tiny CLIPs with random weights in open_clip's own format, one of each family; and pictures for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file

PREPROCESS = {
    "mean": [0.4, 0.5, 0.6], "std": [0.3, 0.25, 0.2], "interpolation": "bilinear", "resize_mode": "shortest",
}  # fmt: skip
VIT = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16}
RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8}
CONVNEXT = {
    "timm_model_name": "test_convnext", "timm_model_pretrained": False, "timm_pool": "", "image_size": 64,
    "timm_proj": "linear",
}  # fmt: skip
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "picture", "of", "blocks", "a", "red", "bird")
BERT = {
    "hf_model_name": ".", "hf_tokenizer_name": ".", "hf_proj_type": "mlp", "hf_pooler_type": "mean_pooler",
    "context_length": 16,
}  # fmt: skip
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "ViT": (VIT, TEXT, {}),
    "squashed ViT": (VIT, TEXT, {"resize_mode": "squash", "interpolation": "bicubic"}),
    "letterboxed ViT": (VIT, TEXT, {"resize_mode": "longest", "interpolation": "bicubic"}),
    "ResNet": (RESNET, TEXT, {}),
    "ConvNeXt": (CONVNEXT, TEXT, {"mean": [0.5] * 3, "std": [0.5] * 3}),
    "BERT": (VIT, BERT, {}),
}


def write_words(folder: Path) -> None:
    """A tokenizer and a text transformer in transformers' formats."""
    from transformers import BertConfig, BertTokenizerFast

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + list("0123456789")
    vocabulary = list(dict.fromkeys([*WORDS, *letters, *(f"##{letter}" for letter in letters)]))
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=32,
    ).save_pretrained(folder)  # fmt: skip


def write_clip(folder: Path, family: str = "ViT", **changes: Any) -> Path:
    """A folder as open_clip writes them: flat names where the text tower is open_clip's own."""
    vision, text, preprocess = FAMILIES[family]
    folder.mkdir(parents=True, exist_ok=True)
    own = "hf_model_name" in text
    if own:
        write_words(folder)
        # open_clip takes the name of a text tower from where it is started.
        text = {**text, "hf_model_name": str(folder)}
    model = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text, **changes}
    document = {"model_cfg": model, "preprocess_cfg": {**PREPROCESS, **preprocess}}
    (folder / "open_clip_config.json").write_text(json.dumps(document))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(len(family))
        built = open_clip.create_model(
            f"local-dir:{folder}", load_weights=False, pretrained_text=False, pretrained_image=False
        )
        for parameter in built.parameters():  # biases and norms start at 0 and 1: none could be told apart
            parameter.add_(0.05 * torch.randn_like(parameter))
    state = {name: tensor.clone().contiguous() for name, tensor in built.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return folder


SIZES = ((96, 96), (150, 100), (100, 150), (70, 250), (48, 40))


def drawn(folder: Path, count: int = 70, start: int = 0) -> Path:
    """Blocks of colour, each picture another one, at several shapes; a name that is a caption."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(start, start + count):
        blocks = np.random.default_rng(number).integers(0, 256, (6, 6, 3), np.uint8)
        picture = Image.fromarray(blocks).resize(SIZES[number % len(SIZES)], Image.Resampling.NEAREST)
        picture.save(folder / f"picture {number} of blocks.png")
    return folder
