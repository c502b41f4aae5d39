import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from core.artifacts import MANIFEST, digest
from core.errors import ArtifactError, ConfigError
from core.references import DriftReference, SourceConstants, SourcePairs
from encoders.base_model import Parts, load_base, write_base
from encoders.head import HashHead
from encoders.images import Preprocess
from encoders.norms import calibrate
from encoders.projection import Projection
from encoders.vision import backbone, vision_tower, write_backbone

SMALL = Preprocess((32, 32))


def head(width: int, *modalities: str) -> HashHead:
    rng = np.random.default_rng(0)
    means = {modality: rng.standard_normal(width).astype(np.float32) / 9 for modality in modalities}
    weight = (
        rng.standard_normal((width, 16)).astype(np.float32).T
    )  # a transposed view: memory order must not matter
    return HashHead(weight, rng.standard_normal(16).astype(np.float32), means)  # type: ignore[arg-type]


def reference(width: int) -> DriftReference:
    rng = np.random.default_rng(1)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    return DriftReference(draw(6, width), draw(6), draw(6), batch=3)


def bare(width: int = 8, **changes) -> dict:
    parts = {
        "name": "vectors", "towers": None, "head": head(width, "vector"), "provenance": {"data": "none"},
    }  # fmt: skip
    return {**parts, **changes}


def same_head(one: HashHead, two: HashHead) -> bool:
    same = torch.equal(one.weight, two.weight) and torch.equal(one.bias, two.bias)
    return same and all(torch.equal(mean, two.means[name]) for name, mean in one.means.items())


def test_vectors_only_round_trip(tmp_path: Path) -> None:
    constants = SourceConstants(0.037, 1.61, 0.02, 1e-3, batch=32)
    made = bare(constants={"vector": constants}, reference={"vector": reference(8)})
    write_base(tmp_path / "base", Parts(**made))
    base = load_base(tmp_path / "base")
    assert (base.name, base.bits, base.width) == ("vectors", 16, 8)
    assert list(base.encoders) == ["vector"]
    assert same_head(base.head, made["head"])
    assert base.constants == {"vector": constants}
    assert base.provenance == {"data": "none"}
    assert base.version == digest(tmp_path / "base" / MANIFEST)
    for part in ("features", "entropy", "nearest"):
        np.testing.assert_array_equal(getattr(base.reference["vector"], part), getattr(reference(8), part))
    assert base.reference["vector"].batch == 3


def test_equal_parts_give_an_equal_version(tmp_path: Path) -> None:
    versions = []
    for name, made in (("a", bare()), ("b", bare()), ("c", bare(provenance={"data": "other"}))):
        write_base(tmp_path / name, Parts(**made))
        versions.append(load_base(tmp_path / name).version)
    assert versions[0] == versions[1] != versions[2]


def test_open_clip_towers_and_projections_round_trip(tmp_path: Path, tiny: Path) -> None:
    from encoders.clip import open_clip_towers

    torch.manual_seed(0)
    projections = {"image": Projection(32, 20, 12), "text": Projection(32, 20, 12)}
    write_base(
        tmp_path / "base",
        Parts(**bare(12, towers=tiny, projections=projections, head=head(12, "image", "text", "vector"))),
    )
    base = load_base(tmp_path / "base")
    assert set(base.encoders) == {"image", "text", "vector", "sequence", "composed"}
    expected = open_clip_towers(f"local-dir:{tiny}", projections=projections).by_modality()
    for modality, content in (("image", np.full((32, 32, 3), 77, np.uint8)), ("text", "a dog")):
        ours, theirs = base.encoders[modality], expected[modality]
        inputs = ours.collate([ours.prepare(content)], 2)
        assert torch.equal(ours.encode(inputs), theirs.encode(inputs))
        assert ours.width == 12
    half = load_base(tmp_path / "base", precision="bf16").encoders["text"]
    assert half.encode(half.collate([half.prepare("a dog")], 1)).dtype == torch.float32
    with pytest.raises(ConfigError, match="precision"):
        load_base(tmp_path / "base", precision="int8")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory):
    """A torchvision tower with its calibration, as parts of a base."""
    folder = tmp_path_factory.mktemp("photos") / "towers"
    write_backbone(folder, "mobilenet_v2", backbone("mobilenet_v2"), SMALL)
    tower = vision_tower("mobilenet_v2", preprocess=SMALL)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    found = calibrate(tower, [tower.collate([tower.prepare(p) for p in pixels], 3)])
    return bare(towers=folder, head=head(1280, "image"), calibration={"image": found}), tower


def test_a_backbone_and_its_calibration_round_trip(tmp_path: Path, photos) -> None:
    made, tower = photos
    write_base(tmp_path / "base", Parts(**made))
    base = load_base(tmp_path / "base")
    inputs = tower.collate([tower.prepare(np.full((40, 40, 3), 9, np.uint8))], 2)
    assert torch.equal(base.encoders["image"].encode(inputs), tower.encode(inputs))
    found, clean = base.calibration["image"], made["calibration"]["image"]
    assert found.widths == clean.widths == tower.hook_points().widths
    np.testing.assert_array_equal(found.features, clean.features)
    for part in ("mean", "sd"):
        assert getattr(found, part).dtype == np.float32
        np.testing.assert_allclose(getattr(found, part), getattr(clean, part), rtol=2**-11, atol=2**-25)
    stored = load_file(tmp_path / "base" / "calibration-image.safetensors")
    assert stored["sd"].dtype == stored["mean"].dtype == np.float16


def test_parts_that_do_not_fit_are_refused_when_written(tmp_path: Path, photos) -> None:
    made, _ = photos
    clean = made["calibration"]["image"]
    broken = clean.mean.copy()
    broken[0, 0] = 1e5
    for calibration in (
        replace(clean, features=clean.features[:, :5]),
        replace(clean, mean=clean.mean[:, :-1]),
        replace(clean, sd=clean.sd[:-1]),
        replace(clean, mean=broken),
        replace(clean, sd=clean.sd * np.nan),
    ):
        with pytest.raises(ArtifactError):
            write_base(tmp_path / "base", Parts(**{**made, "calibration": {"image": calibration}}))
    with pytest.raises(ArtifactError, match="reference"):
        write_base(tmp_path / "base", Parts(**bare(reference={"vector": reference(9)})))
    assert list(tmp_path.iterdir()) == []


def test_parts_that_do_not_fit_are_refused_when_loaded(tmp_path: Path, photos) -> None:
    made, _ = photos
    clean = made["calibration"]["image"]
    other = replace(clean, widths=(*clean.widths[1:], clean.widths[0]))
    cases = {
        "widths": ({**made, "calibration": {"image": other}}, "normalisation layers are not those"),
        "head": (bare(towers=made["towers"], head=head(64, "image")), "fit a projection"),
        "text": (bare(towers=made["towers"], head=head(1280, "image", "text")), "towers only for"),
        "none": (bare(head=head(8, "image")), "towers only for"),
        "projection": (
            bare(towers=made["towers"], projections={"image": Projection(12, 8, 16)}, head=head(16, "image")),
            "takes 12",
        ),
    }
    for name, (parts, message) in cases.items():
        write_base(tmp_path / name, Parts(**parts))
        with pytest.raises(ArtifactError, match=message):
            load_base(tmp_path / name)


def test_damage_is_an_artifact_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no base"):
        load_base(tmp_path / "none")
    write_base(tmp_path / "base", Parts(**bare()))
    head_file = tmp_path / "base" / "head.safetensors"
    content = head_file.read_bytes()
    head_file.write_bytes(content[:-1])
    with pytest.raises(ArtifactError, match="sha256"):
        load_base(tmp_path / "base")
    head_file.write_bytes(content)
    manifest = tmp_path / "base" / MANIFEST
    document = json.loads(manifest.read_text())
    for change, message in (({"bits": 64}, "announces"), ({"kind": "gallery"}, "expected a 'base'")):
        manifest.write_text(json.dumps({**document, **change}))
        with pytest.raises(ArtifactError, match=message):
            load_base(tmp_path / "base")
    for lost in ("bits", "bn_widths", "provenance"):
        manifest.write_text(json.dumps({key: value for key, value in document.items() if key != lost}))
        with pytest.raises(ArtifactError, match=lost):
            load_base(tmp_path / "base")
    manifest.write_text(json.dumps({**document, "constants": {"vector": {"unknown": 1}}}))
    with pytest.raises(ArtifactError, match="unknown"):
        load_base(tmp_path / "base")


def test_projection_equals_its_formula() -> None:
    torch.manual_seed(0)
    made = Projection(5, 7, 3)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_()
        x = torch.randn(4, 5)
        w = [made.layers[i] for i in range(5)]
        h = (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        h = (h * w[0].weight + w[0].bias) @ w[1].weight.T + w[1].bias
        h = (h - h.mean(1, keepdim=True)) / (h.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        h = h * w[2].weight + w[2].bias
        h = h * 0.5 * (1 + torch.erf(h / 2**0.5))
        y = h @ w[4].weight.T + w[4].bias
        torch.testing.assert_close(made(x), y / (y * y).sum(1, keepdim=True).sqrt())
    again = Projection.from_tensors(made.state_dict())
    assert torch.equal(again(x), made(x))
    with pytest.raises(ArtifactError, match="projection"):
        Projection.from_tensors({"weight": torch.zeros(2, 2)})


def targets(count: int, width: int = 8) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, width)).astype(np.float32)


def pictures(count: int, size: int = 5) -> tuple[np.ndarray, ...]:
    drawn = np.random.default_rng(count).integers(0, 256, (count, size, 7, 3), dtype=np.uint8)
    return tuple(np.asfortranarray(picture) for picture in drawn)  # memory order must not matter


def test_memory_and_vocabulary_round_trip(tmp_path: Path, tiny: Path) -> None:
    memory = {
        "image": SourcePairs(pictures(4), targets(4, 32)),
        "text": SourcePairs(("a dog", "ein H\u00fcndchen \U0001f415", "a dog"), targets(3, 32)),
        "vector": SourcePairs(tuple(targets(2, 32)), targets(2, 32)[::-1]),
    }
    vocabulary = {"zebra": 1, "dog": 3, "caf\u00e9": 2}
    parts = bare(32, towers=tiny, head=head(32, "image", "text", "vector"))
    versions = []
    for name, words in (("a", vocabulary), ("b", dict(sorted(vocabulary.items())))):
        write_base(tmp_path / name, Parts(**parts, memory=memory, vocabulary=words))
        versions.append(load_base(tmp_path / name).version)
    assert versions[0] == versions[1]  # the order of the words does not matter
    base = load_base(tmp_path / "a")
    assert base.vocabulary == vocabulary
    assert list(base.vocabulary) == sorted(vocabulary)
    assert set(base.memory) == set(memory)
    for modality, pairs in memory.items():
        found = base.memory[modality]  # type: ignore[index]
        np.testing.assert_array_equal(found.targets, pairs.targets)
        assert len(found.contents) == len(pairs.contents)
        for ours, theirs in zip(found.contents, pairs.contents):
            np.testing.assert_array_equal(ours, theirs)
            assert type(ours) is type(theirs)
    encoder = base.encoders["image"]
    encoder.prepare(base.memory["image"].contents[0])
    for name in ("memory-image.safetensors", "memory-text.json", "vocabulary.json"):
        file = tmp_path / "a" / name
        content = file.read_bytes()
        file.write_bytes(content + b" ")
        with pytest.raises(ArtifactError, match="sha256"):
            load_base(tmp_path / "a")
        file.write_bytes(content)


def test_a_base_without_memory_and_vocabulary_loads(tmp_path: Path) -> None:
    versions = []
    for name, more in (("old", {}), ("empty", {"memory": {}, "vocabulary": {}})):
        write_base(tmp_path / name, Parts(**bare(), **more))
        base = load_base(tmp_path / name)
        assert (base.memory, base.vocabulary) == ({}, {})
        versions.append(base.version)
    assert versions[0] == versions[1]
    assert {path.name for path in (tmp_path / "empty").iterdir()} == {MANIFEST, "head.safetensors"}
    (tmp_path / "old" / "vocabulary.json").write_text('{"stray": 1}')  # not listed, so not checked: not read
    assert load_base(tmp_path / "old").vocabulary == {}


def test_a_memory_or_vocabulary_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    served = bare(head=head(8, "image", "text", "vector"))
    memories = {
        "width": {"text": SourcePairs(("a",), targets(1, 9))},
        "one target for each": {"text": SourcePairs(("a", "b"), targets(1))},
        "at least one": {"image": SourcePairs((), targets(0))},
        "no text": {"text": SourcePairs((b"a",), targets(1))},
        "one size": {"image": SourcePairs((*pictures(1, 5), *pictures(1, 6)), targets(2))},
        "uint8": {"image": SourcePairs((pictures(1)[0] / 255,), targets(1))},
        "pictures": {"image": SourcePairs((pictures(1)[0][..., 0],), targets(1))},
        "vectors": {"vector": SourcePairs(("a",), targets(1))},
        "serves": {"composed": SourcePairs(("a",), targets(1))},
    }
    for message, memory in memories.items():
        match = r"expected \[n, 8\]" if message == "width" else message
        with pytest.raises(ArtifactError, match=match):
            write_base(tmp_path / "base", Parts(**served, memory=memory))
    for vocabulary in ({"": 1}, {"dog": 0}, {"dog": 1.5}, {"dog": True}, {1: 1}):
        with pytest.raises(ArtifactError, match="vocabulary"):
            write_base(tmp_path / "base", Parts(**served, vocabulary=vocabulary))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
