import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 3},
}
PREPROCESS = {"mean": [0.4, 0.5, 0.6], "std": [0.3, 0.25, 0.2], "interpolation": "bilinear"}


def written(folder: Path, model: dict) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    document = {"model_cfg": model, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(document))
    return folder


@pytest.fixture
def small_model() -> dict:
    """model_cfg of the tiny CLIP."""
    return json.loads(json.dumps(TINY))


@pytest.fixture
def write_config():
    return written


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP in local-dir format, saved from the flat class as released checkpoints are."""
    import torch
    from open_clip.model import CLIP
    from safetensors.torch import save_file

    folder = written(tmp_path_factory.mktemp("tiny"), TINY)
    torch.manual_seed(0)
    flat = CLIP(**json.loads(json.dumps(TINY)))
    with torch.no_grad():
        for (
            parameter
        ) in flat.parameters():  # biases and norms start at 0 and 1: tests could not tell them apart
            parameter.add_(0.02 * torch.randn_like(parameter))
    save_file(
        {name: t.contiguous() for name, t in flat.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    return folder


@pytest.fixture(scope="session")
def emoji(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's towers; moved after writing, because the folder must hold no path."""
    from encoders.packages import emoji_towers

    first = tmp_path_factory.mktemp("packages") / "first"
    emoji_towers(first)
    return first.rename(first.with_name("moved"))


@pytest.fixture(scope="session")
def slow_support() -> Callable[[str, list[str], list[list[str]]], float]:
    def slow_support(word: str, around: list[str], titles: list[list[str]]) -> float:
        """Evidence of the words beside, counted title by title: what `Context.support` must equal."""
        total = 0.0
        for beside in around:
            both = sum(word in title and beside in title for title in titles)
            ours = sum(word in title for title in titles)
            chance = sum(beside in title for title in titles) / len(titles)
            if word != beside and ours and chance:
                seen = max(0, both - 1) + 5 * chance
                total += max(0.0, math.log(seen / (max(0, ours - 1) + 5) / chance))
        return total

    return slow_support
