"""Models of others: what is read of weight files, and what is refused in one sentence."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_clips import WORDS, write_clip

from core.errors import ArtifactError, ConfigError, QshiftError
from encoders.clip import open_clip_towers
from encoders.clip_folder import clip_folder
from encoders.clip_source import ClipSource
from encoders.weights import misfit, state_of, write_float32

CONFIG = "open_clip_config.json"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "model")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("bert") / "model", "BERT")


@pytest.fixture(scope="module")
def named(model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny model as a configuration by name, as a file of weights has one."""
    path = tmp_path_factory.mktemp("configs") / "qshift-toy.json"
    path.write_text(json.dumps(json.loads((model / CONFIG).read_text())["model_cfg"]))
    open_clip.add_model_config(path)
    return path.stem


def state(model: Path) -> dict[str, torch.Tensor]:
    return load_file(model / "open_clip_model.safetensors")


def copied(model: Path, folder: Path, *without: str) -> Path:
    shutil.copytree(model, folder, ignore=lambda place, names: set(without))
    return folder


def edited(folder: Path, **changes: object) -> Path:
    """Other values in its model_cfg; None takes one out; `text` and `preprocess` change inside."""
    path = folder / CONFIG
    document = json.loads(path.read_text())
    for part, key in (("text", "text_cfg"), ("vision", "vision_cfg")):
        document["model_cfg"][key] |= changes.pop(part, {})  # type: ignore[operator]
    document["preprocess_cfg"] |= changes.pop("preprocess", {})  # type: ignore[operator]
    document["model_cfg"] = {
        key: value for key, value in {**document["model_cfg"], **changes}.items() if value is not None
    }
    path.write_text(json.dumps(document))
    return folder


# -- weight files ---------------------------------------------------------------------------------------


def save_zip(given: object, path: Path) -> Path:
    torch.save(given, path)
    return path


def test_states_come_out_of_whatever_they_are_wrapped_in(tmp_path: Path) -> None:
    plain = {"a.weight": torch.randn(3, 2), "b": torch.ones(2)}
    wrapped = {
        "plain": plain,
        "loop": {"epoch": 3, "optimizer": {"state": {}}, "state_dict": plain},
        "model": {"model": plain, "step": 5},
        "ddp": {f"module.{name}": value for name, value in plain.items()},
        "both": {"state_dict": {f"module._orig_mod.{name}": value for name, value in plain.items()}},
        "openai": {**plain, "input_resolution": torch.tensor(224), "vocab_size": torch.tensor(9)},
    }
    for name, given in wrapped.items():
        for ending in (".pt", ".bin"):
            found = state_of(save_zip(given, tmp_path / f"{name}{ending}"))
            assert list(found) == list(plain) and torch.equal(found["a.weight"], plain["a.weight"]), name
    torch.save(plain, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    np.savez(tmp_path / "w.npz", **{name: value.numpy() for name, value in plain.items()})
    for path in (tmp_path / "old.pth", tmp_path / "w.npz"):
        assert torch.equal(state_of(path)["b"], plain["b"])


def test_all_floats_are_written_as_float32(tmp_path: Path) -> None:
    given = {
        "whole": torch.arange(6.0).view(2, 3), "half": torch.randn(3).half(),
        "brain": torch.randn(3).bfloat16(), "double": torch.randn(2).double(),
        "long": torch.tensor([3, 4]), "one": torch.tensor(2.5),
        "turned": torch.randn(4, 3).t(), "empty": torch.zeros(0, 2), "yes": torch.tensor([True]),
    }  # fmt: skip
    write_float32(given, tmp_path / "w.safetensors")
    found = load_file(tmp_path / "w.safetensors")
    assert set(found) == set(given)
    for name, tensor in given.items():
        wanted = tensor.float() if tensor.is_floating_point() else tensor
        assert torch.equal(found[name], wanted) and found[name].dtype == wanted.dtype, name
    with pytest.raises(ArtifactError, match="complex"):
        write_float32({"c": torch.zeros(2, dtype=torch.complex64)}, tmp_path / "no.safetensors")


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return sys.exit, ("executed",)


def test_weights_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("no weights")
    (tmp_path / "text.safetensors").write_text("no weights")
    (tmp_path / "trap.pt").write_bytes(pickle.dumps({"state_dict": Trap()}))
    save_zip({"state_dict": Trap()}, tmp_path / "trap zip.pt")
    save_zip({"epoch": 3}, tmp_path / "none.pt")
    save_zip([torch.ones(2)], tmp_path / "list.pt")
    (tmp_path / "w.onnx").write_bytes(b"")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would rather not have it
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "script.pt")
    for name, message in (
        ("text.pt", "cannot be read"), ("text.safetensors", "cannot be read"),
        ("trap.pt", "would have to be executed"), ("trap zip.pt", "would have to be executed"),
        ("none.pt", "hold no tensors by name"), ("list.pt", "hold no tensors by name"),
        ("w.onnx", "expected .safetensors, .npz or .pth"), ("script.pt", "TorchScript archive"),
        ("gone.pt", "cannot be read"),
    ):  # fmt: skip
        with pytest.raises(QshiftError, match=message) as raised:
            state_of(tmp_path / name)
        assert "\n" not in str(raised.value) and len(str(raised.value)) < 500, name


def test_a_misfit_is_one_line() -> None:
    layer = torch.nn.Sequential(*[torch.nn.Linear(2, 2) for _ in range(6)])
    given = {
        **layer.state_dict(),
        "0.weight": torch.ones(3, 2),
        "1.bias": torch.ones(5),
        "new": torch.ones(1),
    }
    for name in ("2.weight", "3.weight", "4.weight", "5.weight"):
        del given[name]
    with pytest.raises(RuntimeError) as raised:
        layer.load_state_dict(given)
    assert misfit(raised.value) == (
        "4 of the names are missing (2.weight, 3.weight, 4.weight, ...); "
        "1 of the names are not of this model (new); "
        "size mismatch for 0.weight: [3, 2] in the weights, [2, 2] in the model, and of 1 more"
    )


# -- folders, files and tags ----------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".pt", ".safetensors", ".half.pt"])
def test_a_file_and_a_name_give_the_model_of_the_folder(
    model: Path, named: str, tmp_path: Path, ending: str
) -> None:
    weights = {name: value.half() if "half" in ending else value for name, value in state(model).items()}
    path = tmp_path / f"w{ending}"
    if ending.endswith(".pt"):
        torch.save({"state_dict": weights}, path)
    else:
        save_file(weights, path)
    about = clip_folder(tmp_path / "brought", ClipSource(named, str(path)))
    assert about == {"model": named, "weights": path.name}
    found, own = (open_clip_towers(f"local-dir:{place}") for place in (tmp_path / "brought", model))
    for name, tensor in own.image.raw.state_dict().items():
        got = found.image.raw.state_dict()[name]
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, tensor.half().float() if "half" in ending else tensor, rtol=0, atol=0)
    assert torch.equal(*(torch.from_numpy(pair.text.prepare("a red bird")) for pair in (found, own)))
    # What no tag says is open_clip's default.
    assert found.image.preprocess.mean == pytest.approx(open_clip.OPENAI_DATASET_MEAN)


def test_a_folder_needs_nothing_else(bert: Path, tmp_path: Path) -> None:
    clip_folder(tmp_path / "brought", ClipSource(None, f"local-dir:{bert}"))
    (tmp_path / "brought").rename(tmp_path / "moved")
    assert str(bert) not in (tmp_path / "moved" / CONFIG).read_text()
    found = open_clip_towers(f"local-dir:{tmp_path / 'moved'}")
    assert WORDS.index("red") in found.text.prepare("a red bird").tolist()


def test_a_tag_says_how_pictures_are_prepared(tmp_path: Path) -> None:
    """Without its weights, which are large: everything but them."""
    from encoders.clip_source import found

    (tmp_path / "w.pt").write_bytes(b"")
    for name, tag, mode, mean in (
        ("ViT-B-16-SigLIP", None, "squash", 0.5),  # all its tags are prepared alike
        ("ViT-L-14", "laion2b_s32b_b82k", "shortest", 0.5),  # this one is not as the others
        ("ViT-L-14", None, "shortest", open_clip.OPENAI_DATASET_MEAN[0]),
        ("ViT-H-14-quickgelu", "dfn5b", "squash", open_clip.OPENAI_DATASET_MEAN[0]),
    ):
        told = None if tag or name != "ViT-L-14" else False
        got = found(ClipSource(name, str(tmp_path / "w.pt"), tag, told)).preprocess
        assert (got["resize_mode"], got["mean"][0]) == (mode, mean), name
    config = found(ClipSource("ViT-B-32", str(tmp_path / "w.pt"), None, True)).config
    assert config["quick_gelu"] is True


def test_choices_that_contradict_are_refused(model: Path, bert: Path, named: str, tmp_path: Path) -> None:
    file, base = str(tmp_path / "w.pt"), tmp_path / "out"
    torch.save(state(model), file)
    lacking = copied(bert, tmp_path / "lacking", "vocab.txt", "tokenizer.json")
    several = copied(model, tmp_path / "several", "open_clip_model.safetensors")
    for name in ("a.safetensors", "b.pt"):
        (several / name).write_bytes(b"")
    for source, kind, message in (
        (ClipSource(None, str(tmp_path / "nowhere")), ConfigError, "no folder .*nowhere"),
        (ClipSource("ViT-B-33", file), ConfigError, "no config 'ViT-B-33'; near it are ViT-B-32"),
        (ClipSource("hf-hub:a/b", file), ConfigError, "download it and give its folder"),
        (ClipSource("ViT-B-32", file), ConfigError, "w.pt does not say its activation.*--tag TAG"),
        (ClipSource("ViT-B-32-quickgelu", file, quick_gelu=False), ConfigError, "drop its suffix"),
        (ClipSource("ViT-B-32", file, tag="openai"), ConfigError, "take --model ViT-B-32-quickgelu"),
        (ClipSource("ViT-B-32", "openai"), ConfigError, "take --model ViT-B-32-quickgelu"),
        (ClipSource("ViT-B-32", "openay"), ConfigError, "no file, no folder and no tag of ViT-B-32.*openai"),
        (ClipSource("ViT-B-32", "laion2b_e16"), ArtifactError, "HF_HUB_OFFLINE=0"),
        (ClipSource("ViT-B-32", file, "openai", True), ConfigError, "leave --quick-gelu out"),
        (ClipSource("roberta-ViT-B-32", file), ArtifactError, "tokenizer roberta-base is not on this mach"),
        (ClipSource(named, file, text_files=model), ConfigError, "brings its files: leave them out"),
        (ClipSource(None, str(tmp_path)), ArtifactError, "holds no open_clip_config.json"),
        (ClipSource(None, str(model), tag="openai"), ConfigError, "leave --tag and --quick-gelu out"),
        (ClipSource("ViT-B-32", str(model)), ConfigError, "another configuration than ViT-B-32"),
        (ClipSource(None, str(lacking)), ArtifactError, "no files of a tokenizer.*--text-files"),
        (ClipSource(None, str(several)), ArtifactError, "holds several: a.safetensors, b.pt"),
    ):  # fmt: skip
        with pytest.raises(kind, match=message) as raised:
            clip_folder(base, source)
        assert "\n" not in str(raised.value) and len(str(raised.value)) < 500
    clip_folder(tmp_path / "mended", ClipSource(None, str(lacking), text_files=bert))
    clip_folder(tmp_path / "same", ClipSource(named, str(model)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": {"context_length": 20}}, "texts of 16 tokens, the configuration says 20"),
        ({"vision": {"image_size": 48}}, "pictures as 17 tokens, the configuration as 37 of 48 pixels"),
        ({"vision": {"patch_size": 16}}, "pictures as 17 tokens, the configuration as 5 of 32 pixels"),
        ({"embed_dim": 16}, "size mismatch for .*: .* in the weights, .* in the model"),
        ({"text": {"layers": 3}}, "12 of the names are missing"),
        ({"text": {"vocab_size": 32000}}, "49,408 tokens, the text tower knows 32,000|size mismatch"),
        ({"text_cfg": None}, "lacks text_cfg: .*--model timm:NAME or torchvision:NAME"),
    ],
)
def test_models_that_do_not_fit_are_one_sentence(
    model: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    folder = edited(copied(model, tmp_path / "changed"), **changes)
    with pytest.raises(ArtifactError, match=message) as raised:
        clip_folder(tmp_path / "out", ClipSource(None, str(folder)))
        open_clip_towers(f"local-dir:{tmp_path / 'out'}")
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 600


def test_a_tokenizer_of_another_model_is_refused(model: Path, bert: Path, tmp_path: Path) -> None:
    """A wrong one gives wrong words without an error, or reads beyond the embedding."""
    large = copied(bert, tmp_path / "large")
    (large / "vocab.txt").write_text((bert / "vocab.txt").read_text() + "\nmore\nwords")
    from transformers import BertTokenizerFast

    BertTokenizerFast(vocab=str(large / "vocab.txt")).save_pretrained(large)
    own = write_clip(tmp_path / "own", text_cfg={"context_length": 16, "vocab_size": 50000, "width": 32,
                                                 "heads": 2, "layers": 2})  # fmt: skip
    for folder, message in ((large, "its tokenizer has"), (own, "open_clip's own tokenizer has 49,408")):
        with pytest.raises(ArtifactError, match=message):
            open_clip_towers(f"local-dir:{folder}")


@pytest.mark.slow
def test_bringing_a_model_takes_twice_its_bytes() -> None:
    """600 MB as .pt and as .safetensors, each in a process of its own."""
    script = Path(__file__).with_name("measure_clip_loading.py")
    place = {**os.environ, "PYTHONPATH": str(script.parents[2])}
    done = subprocess.run(
        [sys.executable, script, "ViT-B-32"], env=place, check=True, capture_output=True, text=True
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith(".")]
    assert [line.split(":")[0] for line in lines] == [".pt", ".safetensors"]
    for line in lines:
        seconds, sizes = (float(found) for found in re.findall(r"\d+\.\d+", line))
        assert seconds < 20 and sizes < 2, line
