"""open_clip models of any config as a pair of encoders.

Several traps of open_clip are silent; here each is an error: models in train mode, an unknown tokenizer
name that gets a 77-token tokenizer, weight files with another activation than the config, folders without
weights, precisions whose gradients are wrong or too coarse.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transformer import TextTransformer
from torch import nn

from core.errors import ArtifactError, ConfigError
from core.types import Modality
from encoders.images import Preprocess
from encoders.near_names import near
from encoders.norms import HALVES, to_half
from encoders.projection import Projection
from encoders.text import TextTower
from encoders.vision import ImageTower
from encoders.weights import misfit

__all__ = ["ImageTower", "TextTower", "Towers", "load_open_clip", "open_clip_towers", "tokenizer_of"]

LOCAL = "local-dir:"
HUB = "hf-hub:"
RANDOM = "random"
COARSE = {
    "int8": "its backward pass runs without an error and gives wrong gradients",
    "pure_bf16": "normalisation layers in bfloat16 are too coarse for the steps of adaptation",
    "pure_fp16": "normalisation layers in float16 are too coarse for the steps of adaptation",
    "amp": "autocast on CPU is slower than float32",
}


def load_open_clip(
    source: str,
    device: str = "cpu",
    precision: str = "fp32",
    *,
    weights: str | None = None,
    quick_gelu: bool | None = None,
) -> nn.Module:
    """Loads a CustomTextCLIP (`.visual`, `.text`) in eval mode, without gradients on any weight.

    Args:
        source: a config name, `local-dir:<folder>` or `hf-hub:<repository>`.
        device: where the model goes.
        precision: "fp32", "bf16" or "fp16" (normalisation layers stay float32).
        weights: for a config name: a tag, a file, or "random"; must be None with the other sources.
        quick_gelu: which activation a weight file was trained with; must be said for files of
            architectures that exist with both.

    Raises:
        ConfigError: a precision that cannot adapt, an unknown name, a missing or contradicting choice.
        ArtifactError: weights or folder missing, or not those of the config.
    """
    if precision != "fp32" and precision not in HALVES:
        why = COARSE.get(precision, "it is not known")
        raise ConfigError(
            f'precision {precision!r} cannot be used with adaptation, {why}: "fp32", "bf16" or "fp16"'
        )
    config = model_config(source)
    if not source.startswith((LOCAL, HUB)):
        options = _named_options(source, config, weights, quick_gelu)
    elif weights is None:
        options = _local_options(source, config)
    else:
        raise ConfigError(
            f"{source} brings its own weights, open_clip would ignore {weights!r}: leave it out"
        )
    model = _created(source, weights, options)
    if precision in HALVES:
        for tower in (model.visual, model.text):
            assert isinstance(tower, nn.Module)
            to_half(tower, HALVES[precision])
    return model.to(device).eval().requires_grad_(False)


def _created(source: str, weights: str | None, options: Mapping[str, Any]) -> nn.Module:
    try:
        # Loading draws throw-away initial values: the caller's generator notices only "random".
        forked = torch.random.fork_rng(devices=[], enabled=weights != RANDOM)
        with warnings.catch_warnings(), forked:
            # A tag trained with the other activation is only warned of.
            warnings.filterwarnings("error", message="QuickGELU mismatch")
            model: nn.Module = open_clip.create_model(
                source, precision="fp32", device="cpu", force_custom_text=True, **options
            )
            return model
    except UserWarning as error:
        raise ConfigError(f"{error}; use the -quickgelu config or quick_gelu=True") from error
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        said = misfit(error) if isinstance(error, RuntimeError) else error
        raise ArtifactError(f"cannot load {source} ({weights or 'own weights'}): {said}") from error


def model_config(source: str) -> dict[str, Any]:
    """The model_cfg behind a source. Raises ConfigError or ArtifactError when it cannot be used."""
    folder = _folder(source)
    if folder is not None:
        path = folder / "open_clip_config.json"
        try:
            config = json.loads(path.read_text()).get("model_cfg")
        except (OSError, ValueError, AttributeError) as error:
            raise ArtifactError(
                f"{path} cannot be read: {error}; give a folder in local-dir format"
            ) from error
    else:
        name = source if source.startswith(HUB) else source.replace("/", "-")
        try:
            config = open_clip.get_model_config(name)
        except Exception as error:  # the hub raises a zoo of its own
            raise ArtifactError(f"cannot reach {source}: {error}") from error
        if config is None:
            raise ConfigError(f"open_clip has no config {name!r}; {near(name, open_clip.list_models())}")
    missing = {"embed_dim", "vision_cfg", "text_cfg"} - set(config or {})
    if missing:
        raise ArtifactError(
            f"the config of {source} lacks {', '.join(sorted(missing))}: open_clip has a tower for pictures "
            "and one for texts; for pictures alone --model timm:NAME or torchvision:NAME"
        )
    if "multimodal_cfg" in config:
        raise ConfigError(f"{source} is a captioning model (CoCa): give a plain two-tower config")
    return dict(config)


def _folder(source: str) -> Path | None:
    return Path(source[len(LOCAL) :]) if source.startswith(LOCAL) else None


def _local_options(source: str, config: Mapping[str, Any]) -> dict[str, Any]:
    folder = _folder(source)
    if folder is None:
        return {"require_pretrained": True}
    if not any(folder.glob("*.safetensors")):
        # open_clip would start from random weights with a line in the log.
        raise ArtifactError(f"{folder} holds no .safetensors: copy open_clip_model.safetensors into it")
    text = dict(config["text_cfg"])
    if str(text.get("hf_model_name", "")).startswith("."):
        # Relative to the folder, so that it can be moved; transformers needs the place of config.json.
        text["hf_model_name"] = str((folder / text["hf_model_name"]).resolve())
        text["hf_model_pretrained"] = False
        return {"text_cfg": text, "require_pretrained": True}
    return {"require_pretrained": True}


def _named_options(
    source: str, config: Mapping[str, Any], weights: str | None, quick_gelu: bool | None
) -> dict[str, Any]:
    if weights is None:
        raise ConfigError(f'{source} needs weights: a tag, a file, or "random" for tests')
    if weights == RANDOM:
        return {"pretrained_text": False, "force_quick_gelu": bool(quick_gelu)}
    name = source.replace("/", "-")
    both = f"{name}-quickgelu" in open_clip.list_models() or name.endswith("-quickgelu")
    if Path(weights).is_file() and both and quick_gelu is None:
        raise ConfigError(
            f"{weights} does not say its activation, and a wrong one is silent: give quick_gelu=True for "
            "OpenAI's and DFN's weights, else False"
        )
    if quick_gelu is False and config.get("quick_gelu"):
        raise ConfigError(f"{source} is a QuickGELU config: drop the suffix or quick_gelu=False")
    return {"pretrained": weights, "force_quick_gelu": bool(quick_gelu)}


def tokenizer_of(source: str) -> Any:
    """The tokenizer of a source: texts -> ids [n, S]. Raises ConfigError for an unknown name."""
    model_config(source)  # open_clip answers an unknown name with a 77-token tokenizer
    name = source if source.startswith((LOCAL, HUB)) else source.replace("/", "-")
    try:
        return open_clip.get_tokenizer(name)
    except (OSError, ValueError, ImportError) as error:
        raise ArtifactError(f"the tokenizer of {source} cannot be loaded: {error}") from error


def _check_vocabulary(source: str, text: Any, tokenize: Any) -> None:
    """Raises ArtifactError for a tokenizer of another model: wrong ids find wrong words, without an error."""
    rows = int(text.vocab_size)
    own = isinstance(tokenize, SimpleTokenizer)
    tokens = int(tokenize.vocab_size) if own else len(tokenize.tokenizer)
    if tokens > rows or (own and tokens != rows):
        whose = "open_clip's own tokenizer" if own else "its tokenizer"
        raise ArtifactError(
            f"{source}: {whose} has {tokens:,} tokens, the text tower knows {rows:,}: the model needs the "
            "tokenizer it was trained with, by its files and hf_tokenizer_name in text_cfg"
        )


def _padding(text: Any, tokenize: Any) -> int | None:
    """The id whose columns behind the longest text may be cut off: where what is pooled never reads them.

    Towers of Hugging Face mask their padding. In open_clip's own, each token reads those before it, and the
    end of the text, which is pooled, stands before the padding; SigLIP's and others read all of it.
    """
    if isinstance(text, HFTextEncoder):
        return int(text.config.pad_token_id)
    causal = isinstance(text, TextTransformer) and text.attn_mask is not None and text.cls_emb is None
    if not causal or text.pool_type not in ("argmax", "eos") or not isinstance(tokenize, SimpleTokenizer):
        return None
    text.transformer.register_forward_pre_hook(_shorter_mask, with_kwargs=True)
    return 0


def _shorter_mask(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The causal mask as long as the texts are: open_clip hands on that of the whole context."""
    mask, length = kwargs.get("attn_mask"), args[0].shape[1]
    return args, kwargs if mask is None else {**kwargs, "attn_mask": mask[..., :length, :length]}


@dataclass(frozen=True, slots=True)
class Towers:
    """Both encoders of one open_clip model."""

    image: ImageTower
    text: TextTower

    def by_modality(self) -> dict[Modality, ImageTower | TextTower]:
        return {"image": self.image, "text": self.text}


def open_clip_towers(
    source: str,
    device: str = "cpu",
    precision: str = "fp32",
    *,
    weights: str | None = None,
    quick_gelu: bool | None = None,
    projections: Mapping[Modality, Projection | None] | None = None,
    exclude: Sequence[str] = (),
    preprocess: Preprocess | None = None,
) -> Towers:
    """Loads a model once and gives its two encoders.

    Args:
        source, device, precision, weights, quick_gelu: see `load_open_clip`.
        projections: by modality, into the shared space.
        exclude: norm layers that do not adapt (TCR's code leaves `ln_final` out).
        preprocess: of pictures, in place of the model's own.
    """
    model: Any = load_open_clip(source, device, precision, weights=weights, quick_gelu=quick_gelu)
    tokenize, wanted = tokenizer_of(source), projections or {}
    _check_vocabulary(source, model.text, tokenize)
    pad = _padding(model.text, tokenize)
    own = Preprocess.of(model.visual.preprocess_cfg)
    preprocess = (preprocess or own).sized(own.size)
    with torch.no_grad():
        image = ImageTower(model.visual, preprocess, wanted.get("image"), exclude, device)
        text = TextTower(model.text, tokenize, pad, wanted.get("text"), exclude, device)
    return Towers(image, text)
