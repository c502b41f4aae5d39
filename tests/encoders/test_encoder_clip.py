import json
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transformer import TextTransformer
from PIL import Image
from safetensors.torch import load_file
from torch.nn.functional import normalize
from torch.nn.modules.batchnorm import _BatchNorm

from core.errors import ArtifactError, ConfigError, QshiftError, Refused
from encoders.clip import _padding, load_open_clip, open_clip_towers, tokenizer_of
from encoders.norms import affine_tensors
from encoders.projection import Projection
from encoders.text import visible

TEXTS = ["a photo of a dog", "two red birds on a wire", "x", "the quick brown fox jumps over a lazy dog"]


def pictures(count: int, seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, 40, 32, 3), dtype=np.uint8))


def meta(name: str, **options) -> torch.nn.Module:
    """Shapes and classes of a stock config, without its weights."""
    from open_clip.model import CustomTextCLIP

    with torch.device("meta"):
        return CustomTextCLIP(**{**open_clip.get_model_config(name), **options})


def flat(tiny: Path) -> torch.nn.Module:
    """The released class, text tower flattened: the oracle."""
    model = open_clip.create_model(f"local-dir:{tiny}")
    assert type(model) is open_clip.CLIP
    assert model.training  # the trap: open_clip returns models in train mode
    return model.eval()


@pytest.fixture(scope="module")
def towers(tiny: Path):
    return open_clip_towers(f"local-dir:{tiny}")


def test_loaded_models_are_frozen_and_in_eval_mode(tiny: Path) -> None:
    state = torch.get_rng_state()
    model = load_open_clip(f"local-dir:{tiny}")
    assert torch.equal(state, torch.get_rng_state())
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_features_equal_the_flat_model(tiny: Path, towers) -> None:
    oracle = flat(tiny)
    transform = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(**oracle.visual.preprocess_cfg), is_train=False
    )
    shots = pictures(3)
    with torch.no_grad():
        images = oracle.encode_image(
            torch.stack([transform(Image.fromarray(p)) for p in shots]), normalize=True
        )
        texts = oracle.encode_text(open_clip.get_tokenizer(f"local-dir:{tiny}")(TEXTS), normalize=True)
    image, text = towers.image, towers.text
    got = image.encode(image.collate([image.prepare(p) for p in shots], 8))
    assert got.dtype == torch.float32
    assert got.shape == (8, 32) == (8, image.width)
    torch.testing.assert_close(got[:3], images, atol=2e-6, rtol=0)
    torch.testing.assert_close(got.norm(dim=1), torch.ones(8))
    # Padding repeats the last row; some kernels add the rows at the edge of a block in another order.
    torch.testing.assert_close(got[3:], got[2:3].expand(5, -1), atol=2e-6, rtol=0)
    got = text.encode(text.collate([text.prepare(t) for t in TEXTS], 4))
    torch.testing.assert_close(got, texts, atol=2e-6, rtol=0)


def test_a_text_does_not_depend_on_its_batch_mates(towers) -> None:
    text = towers.text
    rows = [text.prepare(t) for t in TEXTS]
    together = text.encode(text.collate(rows, 4))
    for index, row in enumerate(rows):
        alone = text.encode(text.collate([row], 4))[0]
        torch.testing.assert_close(alone, together[index], atol=1e-6, rtol=0)


def test_padding_behind_the_longest_text_is_cut_off_and_features_stay(towers) -> None:
    text = towers.text
    whole = torch.from_numpy(np.stack([text.prepare(t) for t in (*TEXTS, "one " * 60)]))
    for count in (1, 2, 4, 5):
        ids = text.collate(list(whole[:count].numpy()), count)
        longest = int((whole[:count] != 0).sum(1).max())
        assert ids.shape[1] == min(-(-longest // 8) * 8, whole.shape[1])
        with torch.no_grad():
            expected = text.module(whole[:count])  # all at once, with all padding
        torch.testing.assert_close(text.encode(ids), expected, atol=2e-6, rtol=0)
    seen: list[tuple[int, ...]] = []
    handle = text.raw.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    text.encode(whole[[4, 0, 2, 3]])
    handle.remove()
    assert sorted(seen) == [(2, 8), (2, 16)]  # the context length is 16


def test_towers_that_read_their_padding_keep_it() -> None:
    tokenize = open_clip.get_tokenizer("ViT-B-32")
    sizes = {"context_length": 16, "width": 32, "heads": 2, "layers": 1}
    with torch.device("meta"):
        clip, siglip, last = (
            TextTransformer(**sizes, **more)
            for more in ({}, {"no_causal_mask": True, "pool_type": "last"}, {"pool_type": "last"})
        )
    assert _padding(clip, tokenize) == 0
    assert _padding(clip, len) is None  # what pads with something else
    assert _padding(siglip, tokenize) is _padding(last, tokenize) is None


def test_a_later_token_does_not_change_an_earlier_state(towers) -> None:
    seen = []
    handle = towers.text.raw.ln_final.register_forward_hook(lambda *parts: seen.append(parts[-1]))
    ids = torch.from_numpy(towers.text.prepare(TEXTS[3]))[None]
    other = ids.clone()
    other[0, 6] = 320
    towers.text.encode(ids)
    towers.text.encode(other)
    handle.remove()
    torch.testing.assert_close(seen[0][0, :6], seen[1][0, :6])
    assert (seen[0][0, 6:] - seen[1][0, 6:]).abs().max() > 1e-3


def test_source_parameters_give_the_frozen_features_bit_by_bit(towers) -> None:
    for tower, rows in ((towers.image, pictures(4)), (towers.text, TEXTS)):
        inputs = tower.collate([tower.prepare(row) for row in rows], 4)
        source = tower.adaptable()
        assert torch.equal(tower.encode(inputs), tower.encode(inputs, source))
        assert not tower.encode(inputs).requires_grad
        trainable = {name: tensor.requires_grad_() for name, tensor in source.items()}
        assert tower.encode(inputs, trainable).requires_grad
        with torch.no_grad():
            assert not tower.encode(inputs, trainable).requires_grad
        assert torch.is_grad_enabled()


def test_every_adaptable_tensor_matters_and_only_through_the_call(towers) -> None:
    for tower, rows in ((towers.image, pictures(2)), (towers.text, TEXTS[:2])):
        inputs = tower.collate([tower.prepare(row) for row in rows], 2)
        before = tower.encode(inputs)
        for name, tensor in tower.adaptable().items():
            step = 0.3 * torch.linspace(-1, 1, tensor.numel()).view(
                tensor.shape
            )  # LayerNorm ignores constants
            assert (tower.encode(inputs, {name: tensor + step}) - before).abs().max() > 1e-5, name
        assert torch.equal(tower.encode(inputs), before)


def test_gradients_equal_those_of_the_plain_module(tiny: Path, towers) -> None:
    for modality, rows in (("image", pictures(3)), ("text", TEXTS[:3])):
        tower = towers.by_modality()[modality]
        inputs = tower.collate([tower.prepare(row) for row in rows], 3)
        target = torch.arange(96.0).view(3, 32).cos()
        params = {name: tensor.requires_grad_() for name, tensor in tower.adaptable().items()}
        got = torch.autograd.grad((tower.encode(inputs, params) * target).sum(), list(params.values()))
        model = load_open_clip(f"local-dir:{tiny}")
        plain = model.visual if modality == "image" else model.text
        tensors = [tensor.requires_grad_() for _, tensor in affine_tensors(plain)]
        whole = inputs
        if modality == "text":  # the plain tower takes exactly its context length
            whole = torch.from_numpy(np.stack([tower.prepare(row) for row in rows]))
            assert whole.shape[1] > inputs.shape[1]
        expected = torch.autograd.grad((normalize(plain(whole), dim=1) * target).sum(), tensors)
        for ours, theirs in zip(got, expected):
            torch.testing.assert_close(ours, theirs)


def test_parameters_of_another_tower_are_refused(towers) -> None:
    inputs = towers.image.collate([towers.image.prepare(pictures(1)[0])], 1)
    name, tensor = next(iter(towers.image.adaptable().items()))
    for wrong in ({"tower.nothing.weight": tensor}, {name: tensor[:3]}):
        with pytest.raises(ArtifactError, match="does not belong"):
            towers.image.encode(inputs, wrong)


def test_adaptable_tensors_of_vit_b_32() -> None:
    model = meta("ViT-B-32")
    image = dict(affine_tensors(model.visual))
    text = dict(affine_tensors(model.text))
    assert (len(image), sum(t.numel() for t in image.values())) == (52, 39_936)
    assert (len(text), sum(t.numel() for t in text.values())) == (50, 25_600)


@pytest.mark.parametrize(("layers", "width"), [(1, 32), (3, 64)])
def test_adaptable_tensors_follow_the_closed_form(small_model: dict, layers: int, width: int) -> None:
    vision = {**small_model["vision_cfg"], "layers": layers, "width": width}
    text = {**small_model["text_cfg"], "layers": layers, "width": width}
    model = meta("ViT-B-32", embed_dim=16, vision_cfg=vision, text_cfg=text)
    for tower, norms in ((model.visual, 2 * layers + 2), (model.text, 2 * layers + 1)):
        tensors = dict(affine_tensors(tower))
        assert len(tensors) == 2 * norms
        assert sum(t.numel() for t in tensors.values()) == norms * 2 * width


def test_resnet_towers_adapt_their_batch_norms() -> None:
    names = dict(affine_tensors(meta("RN50").visual))
    assert (
        len(names) == 2 * sum(isinstance(layer, _BatchNorm) for layer in meta("RN50").visual.modules()) > 100
    )


def test_ln_final_can_be_left_out(tiny: Path, towers) -> None:
    less = open_clip_towers(f"local-dir:{tiny}", exclude=("ln_final",))
    gone = set(towers.text.adaptable()) - set(less.text.adaptable())
    assert gone == {"tower.ln_final.weight", "tower.ln_final.bias"}
    assert set(towers.image.adaptable()) == set(less.image.adaptable())


@pytest.mark.parametrize(("precision", "kind"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_a_half_precision_body_keeps_float32_norms_and_gradients(
    tiny: Path, towers, precision: str, kind: torch.dtype
) -> None:
    """Features within .999 of those in float32 by cosine; gradients, however small, point as theirs."""
    half = open_clip_towers(f"local-dir:{tiny}", precision=precision)
    for modality, rows in (("image", pictures(4)), ("text", TEXTS)):
        tower, whole = half.by_modality()[modality], towers.by_modality()[modality]
        assert any(p.dtype == kind for p in tower.raw.parameters())
        inputs = tower.collate([tower.prepare(row) for row in rows], 4)
        params = {name: tensor.requires_grad_() for name, tensor in tower.adaptable().items()}
        got = tower.encode(inputs, params)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.norm(dim=1), torch.ones(4))
        assert float((got * whole.encode(inputs)).sum(1).min().detach()) > 0.999
        torch.autograd.backward(1e-5 * got[:, 0].sum())
        exact = {name: tensor.requires_grad_() for name, tensor in whole.adaptable().items()}
        torch.autograd.backward(1e-5 * whole.encode(inputs, exact)[:, 0].sum())
        for name, tensor in params.items():
            assert tensor.grad is not None and exact[name].grad is not None
            assert tensor.dtype == tensor.grad.dtype == torch.float32
            assert float(tensor.grad.abs().max()) > 0, name
        found, wanted = (torch.cat([one.grad.flatten() for one in side.values()]) for side in (params, exact))
        assert float(torch.cosine_similarity(found, wanted, dim=0)) > 0.99
        assert float(found.norm() / wanted.norm()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("precision", ["int8", "pure_bf16", "pure_fp16", "amp", "nonsense"])
def test_precisions_that_cannot_adapt_are_refused(tiny: Path, precision: str) -> None:
    with pytest.raises(ConfigError, match="precision"):
        load_open_clip(f"local-dir:{tiny}", precision=precision)


def test_projections_lead_into_the_shared_space(tiny: Path, towers) -> None:
    torch.manual_seed(1)
    projection = Projection(32, 24, 12)
    tower = open_clip_towers(f"local-dir:{tiny}", projections={"image": projection}).image
    inputs = tower.collate([tower.prepare(p) for p in pictures(2)], 2)
    with torch.no_grad():
        expected = projection(tower.raw(inputs))
    assert tower.width == 12
    assert torch.equal(tower.encode(inputs), expected)
    assert set(tower.adaptable()) == set(towers.image.adaptable())  # the projection's own norms stay
    with pytest.raises(ArtifactError, match="takes 31"):
        open_clip_towers(f"local-dir:{tiny}", projections={"image": Projection(31, 8, 8)})


@pytest.mark.parametrize("lost", ["text_cfg", "vision_cfg", "embed_dim"])
def test_an_incomplete_config_is_refused(tmp_path: Path, small_model, write_config, lost: str) -> None:
    folder = write_config(
        tmp_path / "broken", {key: value for key, value in small_model.items() if key != lost}
    )
    with pytest.raises(ArtifactError, match=lost):
        load_open_clip(f"local-dir:{folder}")


def test_broken_folders_are_refused(tiny: Path, tmp_path: Path, small_model, write_config) -> None:
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_open_clip(f"local-dir:{tmp_path / 'nowhere'}")
    bare = write_config(tmp_path / "bare", small_model)
    with pytest.raises(ArtifactError, match=r"no \.safetensors"):
        load_open_clip(f"local-dir:{bare}")
    other = tmp_path / "other"
    shutil.copytree(tiny, other)
    write_config(other, {**small_model, "embed_dim": 16})
    with pytest.raises(ArtifactError, match="size mismatch"):
        load_open_clip(f"local-dir:{other}")
    (other / "open_clip_config.json").write_text("{")
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_open_clip(f"local-dir:{other}")


def test_captioning_models_are_refused() -> None:
    with pytest.raises(ConfigError, match="CoCa"):
        load_open_clip("coca_ViT-B-32", weights="random")


def test_names_and_weights_must_be_said(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no config"):
        load_open_clip("ViT-B-33", weights="random")
    with pytest.raises(ConfigError, match="needs weights"):
        load_open_clip("ViT-B-32")
    with pytest.raises(ConfigError, match="its own weights"):
        load_open_clip(f"local-dir:{tiny}", weights="openai")
    with pytest.raises(ArtifactError, match="cannot load"):
        load_open_clip("RN50x4", weights="no-such-tag")


def test_a_weight_file_must_say_its_activation(tiny: Path) -> None:
    file = str(tiny / "open_clip_model.safetensors")
    with pytest.raises(ConfigError, match="activation"):
        load_open_clip("ViT-B-32", weights=file)
    with pytest.raises(ConfigError, match="drop the suffix"):
        load_open_clip("ViT-B-32-quickgelu", weights=file, quick_gelu=False)


def test_weights_from_a_file_and_a_registered_config(tiny: Path, tmp_path: Path, small_model) -> None:
    config = tmp_path / "qshift-tiny.json"
    config.write_text(json.dumps(small_model))
    open_clip.add_model_config(config)
    model = load_open_clip("qshift-tiny", weights=str(tiny / "open_clip_model.safetensors"))
    stored = load_file(tiny / "open_clip_model.safetensors")
    assert torch.equal(model.visual.conv1.weight, stored["visual.conv1.weight"])
    assert torch.equal(model.text.ln_final.weight, stored["ln_final.weight"])
    torch.manual_seed(4)
    first = load_open_clip("qshift-tiny", weights="random").visual.conv1.weight
    torch.manual_seed(4)
    assert torch.equal(first, load_open_clip("qshift-tiny", weights="random").visual.conv1.weight)
    assert tokenizer_of("qshift-tiny")(["a"]).shape == (1, 16)


def test_an_unknown_tokenizer_is_refused() -> None:
    assert open_clip.get_tokenizer("no-such-model")(["a"]).shape == (1, 77)  # the trap
    with pytest.raises(ConfigError, match="no config"):
        tokenizer_of("no-such-model")


@pytest.mark.parametrize("content", [None, 3, b"bytes", "", " \n", "x" * 2001, "half \ud800 pair"])
def test_texts_that_cannot_be_encoded_are_refused(towers, content: object) -> None:
    with pytest.raises(Refused):
        towers.text.prepare(content)


@pytest.mark.parametrize(
    "content", [b"", b"junk", "text", None, np.zeros((4, 4)), np.zeros((0, 4, 3), np.uint8)], ids=str
)
def test_pictures_that_cannot_be_encoded_are_refused(towers, content: object) -> None:
    with pytest.raises(Refused) as refused:
        towers.image.prepare(content)
    assert refused.value.stage == "image"


def test_empty_batches_and_too_few_rows(towers) -> None:
    for tower, row in ((towers.image, pictures(1)[0]), (towers.text, TEXTS[0])):
        assert tower.encode(tower.collate([], 0)).shape == (0, 32)
        assert tower.encode(tower.collate([], 2)).shape == (2, 32)
        with pytest.raises(QshiftError, match="do not fit"):
            tower.collate([tower.prepare(row)] * 3, 2)


def test_fingerprints_tell_weights_and_preprocessing_apart(tiny: Path, tmp_path: Path, towers) -> None:
    again = open_clip_towers(f"local-dir:{tiny}")
    assert again.image.fingerprint == towers.image.fingerprint != towers.text.fingerprint
    other = tmp_path / "other"
    shutil.copytree(tiny, other)
    document = json.loads((other / "open_clip_config.json").read_text())
    document["preprocess_cfg"]["mean"] = [0.1, 0.1, 0.1]
    (other / "open_clip_config.json").write_text(json.dumps(document))
    moved = open_clip_towers(f"local-dir:{other}")
    assert moved.image.fingerprint != towers.image.fingerprint
    assert moved.text.fingerprint == towers.text.fingerprint


UNSEEN = [
    "\u200b\u200b", "\ufeff", "\0\0", "\u202e\u202c", "\ufe0f", "\u00ad \u2060", "\U000e0101", "\u3164",
    "\u2800", "\u115f\u1160", "\uffa0", "\u034f", "\U000e0020", "\u2065", "\u00a0\u3000\n",
]  # fmt: skip
SEEN = [
    "\U0001fae8",  # an emoji of Unicode 15, "Cn" to Python 3.11
    "\U0001fadf",  # of Unicode 16
    "\U000378ff",  # of none yet
    "\ue000",  # private use: a font's icon
    "\u0600",  # Arabic number sign, of category "Cf"
    "\u200b\U0001f6d9\ufe0f", "?", "\u0301", "\u5929",
]  # fmt: skip


@pytest.mark.parametrize("text", SEEN)
def test_what_is_newer_than_pythons_tables_can_be_seen(text: str) -> None:
    assert visible(text) and visible(f" \u200b{text}")
    assert not any(visible(unseen) for unseen in ("", *UNSEEN))


@pytest.mark.parametrize("text", UNSEEN)
def test_a_text_that_cannot_be_seen_is_empty(towers, text: str) -> None:
    with pytest.raises(Refused, match="empty"):
        towers.text.prepare(text)
    assert len(towers.text.prepare(f"cat{text}"))


def test_a_text_longer_than_the_tower_reads_is_said_once(
    tiny: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tower = open_clip_towers(f"local-dir:{tiny}").text
    tower.prepare("a cat")
    assert not caplog.records
    for _ in range(2):
        tower.prepare("a cat on a mat " * 20)
    assert [record.getMessage() for record in caplog.records] == [
        "a text fills what the tower reads: its end may be cut"
    ]
