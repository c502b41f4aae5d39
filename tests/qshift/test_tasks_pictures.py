"""Readers of picture data, on made-up archives of the published layouts."""

import bz2
import gzip
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from core.errors import ConfigError
from qshift.benchmarks.tasks import digits, fashion_mnist, office, pacs
from qshift.benchmarks.tasks.class_zips import decoded, read_class_zip
from qshift.benchmarks.tasks.emoji_vendors import plain, read_vendor


def encoded(picture: NDArray[np.uint8], form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, form)
    return buffer.getvalue()


def solid(*colour: int, side: int = 4) -> NDArray[np.uint8]:
    return np.full((side, side, len(colour)), colour, np.uint8)


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as opened:
        for name, content in members.items():
            opened.writestr(name, content)
    return path


def idx(path: Path, values: NDArray[np.uint8], kind: int = 8, cut: int = 0) -> None:
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    content = bytes((0, 0, kind, values.ndim)) + sizes + values.tobytes()
    path.write_bytes(gzip.compress(content[: len(content) - cut]))


class TestClassZips:
    def test_samples_carry_their_class(self, tmp_path: Path) -> None:
        members = {
            "mug/b.jpg": encoded(solid(0, 0, 255)), "mug/a.png": encoded(solid(0, 255, 0)), "mug/": b"",
            "bike/a.jpg": encoded(solid(255, 0, 0)), "readme.txt": b"no picture", "top.jpg": b"no class",
        }  # fmt: skip
        found = read_class_zip(archive(tmp_path / "shop.zip", members))
        assert [sample.key for sample in found] == ["shop/bike/a.jpg", "shop/mug/a.png", "shop/mug/b.jpg"]
        assert [sample.label for sample in found] == ["bike", "mug", "mug"]
        assert all(sample.group == sample.title == sample.label for sample in found)
        assert [sample.content[0, 0].tolist() for sample in found] == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]

    def test_transparency_lies_on_white_and_grey_becomes_colour(self) -> None:
        half = decoded(encoded(solid(200, 0, 0, 128)))
        share = 128 / 255
        assert half[0, 0].tolist() == pytest.approx(
            [200 * share + 255 * (1 - share), *[255 * (1 - share)] * 2], abs=1
        )
        assert decoded(encoded(np.full((2, 3), 7, np.uint8))).tolist() == [[[7] * 3] * 3] * 2

    @pytest.mark.parametrize("content", [None, b"no zip at all", b"empty", b"broken picture"])
    def test_what_cannot_be_read_is_one_clear_error(self, tmp_path: Path, content: bytes | None) -> None:
        path = tmp_path / "photo.zip"
        if content == b"empty":
            archive(path, {})
        elif content == b"broken picture":
            archive(path, {"dog/a.jpg": encoded(solid(9, 9, 9), "JPEG")[:40]})
        elif content is not None:
            path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"photo.zip .*<class>/<name>.jpg, see docs/reference/data.md"):
            read_class_zip(path)

    def test_domains_are_files(self, tmp_path: Path) -> None:
        for domain in (*pacs.DOMAINS, *office.DOMAINS):
            archive(tmp_path / f"{domain}.zip", {"a/1.png": encoded(solid(1, 2, 3))})
        assert [pacs.read_pacs(tmp_path, domain)[0].key for domain in pacs.DOMAINS] == [
            "photo/a/1.png", "art_painting/a/1.png",
        ]  # fmt: skip
        assert [office.read_office(tmp_path, domain)[0].key.split("/")[0] for domain in office.DOMAINS] == [
            "amazon", "caltech10", "dslr", "webcam",
        ]  # fmt: skip


class TestVendors:
    def meta(self, folder: Path) -> Path:
        path = folder / "meta.json"
        entries = {
            code: {"name": f"name {code}", "group": "flags"} for code in ("1F600", "2764-FE0F", "2B50")
        }
        path.write_text(json.dumps(entries))
        return path

    def test_equal_pictures_share_the_label_of_the_first(self, tmp_path: Path) -> None:
        same, other = encoded(solid(1, 1, 1)), encoded(solid(2, 2, 2))
        members = {
            "2B50.png": same,
            "1F600.png": same,
            "2764-FE0F.png": other,
            "1F4A9.png": other,
            "1F600": b"",
        }
        found = read_vendor(archive(tmp_path / "noto.zip", members), self.meta(tmp_path))
        assert [(s.key, s.label, s.group, s.title) for s in found] == [
            ("1F600", "1F600", "flags", "name 1F600"),
            ("2764-FE0F", "2764-FE0F", "flags", "name 2764-FE0F"),
            ("2B50", "1F600", "flags", "name 2B50"),
        ]

    def test_variation_selectors_do_not_tell_emoji_apart(self) -> None:
        assert plain("0023-FE0F-20E3") == plain("0023-20e3") == "0023-20E3"
        assert plain("1F3F3-FE0F-200D-1F308") == "1F3F3-200D-1F308"

    def test_bad_files(self, tmp_path: Path) -> None:
        meta = self.meta(tmp_path)
        with pytest.raises(ConfigError, match=r"<hexcode>.png, see docs/reference/data.md"):
            read_vendor(tmp_path / "none.zip", meta)
        strangers = archive(tmp_path / "strangers.zip", {"1F4A9.png": encoded(solid(1, 1, 1))})
        with pytest.raises(ConfigError, match=r"no emoji that meta.json names"):
            read_vendor(strangers, meta)
        for text in ("{", "[]", '{"1F600": {"name": "x"}}', '{"1F600": 3}'):
            meta.write_text(text)
            with pytest.raises(ConfigError, match="expected hexcode -> name and group"):
                read_vendor(strangers, meta)


class TestDigits:
    def test_mnist(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        pictures = rng.integers(0, 256, (3, 28, 28), np.uint8)
        idx(tmp_path / "t10k-images-idx3-ubyte.gz", pictures)
        idx(tmp_path / "t10k-labels-idx1-ubyte.gz", np.array([7, 0, 9], np.uint8))
        found = digits.read_mnist(tmp_path, "test")
        assert [(s.key, s.label) for s in found] == [
            ("mnist/test/0", "7"), ("mnist/test/1", "0"), ("mnist/test/2", "9"),
        ]  # fmt: skip
        for sample, picture in zip(found, pictures):
            assert sample.content.shape == (28, 28, 3)
            assert all((sample.content[..., channel] == picture).all() for channel in range(3))

    def test_labels_must_match_pictures(self, tmp_path: Path) -> None:
        idx(tmp_path / "train-images-idx3-ubyte.gz", np.zeros((2, 28, 28), np.uint8))
        idx(tmp_path / "train-labels-idx1-ubyte.gz", np.zeros(3, np.uint8))
        with pytest.raises(ConfigError, match=r"\(2, 28, 28\) and labels \(3,\)"):
            digits.read_mnist(tmp_path, "train")

    def test_broken_idx_files(self, tmp_path: Path) -> None:
        path, values = tmp_path / "x.gz", np.zeros((2, 5), np.uint8)
        for kind, cut, match in ((9, 0, "no idx file"), (8, 1, "has 9 bytes"), (8, 12, "has -2 bytes")):
            idx(path, values, kind, cut)
            with pytest.raises(ConfigError, match=match):
                digits.read_idx(path)
        path.write_bytes(gzip.compress(bytes(50))[:-9])
        with pytest.raises(ConfigError, match=r"see docs/reference/data.md"):
            digits.read_idx(path)
        with pytest.raises(ConfigError, match=r"see docs/reference/data.md"):
            digits.read_idx(tmp_path / "none.gz")

    def test_usps_against_a_loop(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(1)
        rows = [[round(float(v), 3) for v in rng.uniform(-1, 1, 256)] for _ in range(4)]
        lines = []
        for label, row in zip((10, 1, 5, 5), rows):
            row[17] = 0.0  # libsvm files may leave zeros out
            fields = (f"{place + 1}:{value}" for place, value in enumerate(row) if place != 17)
            lines.append(f"{label} {' '.join(fields)} \n")
        (tmp_path / "usps.t.bz2").write_bytes(bz2.compress("".join(lines).encode()))
        found = digits.read_usps(tmp_path, "test")
        assert [(s.key, s.label) for s in found] == [
            ("usps/test/0", "9"), ("usps/test/1", "0"), ("usps/test/2", "4"), ("usps/test/3", "4"),
        ]  # fmt: skip
        for sample, row in zip(found, rows):
            for place, value in enumerate(row):
                expected = (value + 1) / 2 * 255
                pixel = sample.content[place // 16, place % 16]
                assert len(set(pixel.tolist())) == 1 and abs(int(pixel[0]) - expected) <= 0.5 + 1e-9

    @pytest.mark.parametrize(
        "text", ["1 1:2", "11 1:0", "0 1:0", "1 257:0", "1 0:0.5", "1 1:", "one 1:0", "1 1:nan"]
    )
    def test_bad_usps(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "usps.bz2"
        path.write_bytes(bz2.compress(text.encode()))
        with pytest.raises(ConfigError, match="as USPS"):
            digits.read_usps(tmp_path, "train")
        path.write_bytes(b"no bz2")
        with pytest.raises(ConfigError, match="as USPS"):
            digits.read_usps(tmp_path, "train")


class TestFashionMnist:
    def write(self, folder: Path, n: int = 40, side: int = 28, kinds: int = 10, part: str = "train") -> None:
        """Picture i is of one grey, i, and of kind i modulo `kinds`."""
        grey = np.arange(n, dtype=np.uint8)
        idx(folder / f"{part}-images-idx3-ubyte.gz", np.broadcast_to(grey[:, None, None], (n, side, side)))
        idx(folder / f"{part}-labels-idx1-ubyte.gz", grey % kinds)

    def test_kinds_have_names(self, tmp_path: Path) -> None:
        self.write(tmp_path, 12, part="t10k")
        found = fashion_mnist.read_fashion_mnist(tmp_path, "test")
        assert [sample.key for sample in found[::11]] == ["fashion-mnist/test/0", "fashion-mnist/test/11"]
        assert [sample.label for sample in found] == [*fashion_mnist.NAMES, "T-shirt/top", "Trouser"]
        for place, sample in enumerate(found):
            assert sample.group == sample.title == sample.label
            assert sample.content.shape == (28, 28, 3) and (sample.content == place).all()

    def test_parts_share_no_picture_but_the_gallery_s(self, tmp_path: Path) -> None:
        self.write(tmp_path)
        data = fashion_mnist.read_clothes(tmp_path, gallery=10, clean=3)
        fit, gallery, clean, held = ([s.key for s in part] for part in
                                     (data.fit, data.gallery, data.clean, data.held))  # fmt: skip
        assert [len(part) for part in (fit, gallery, clean, held)] == [36, 10, 3, 1]
        assert len({*fit, *clean, *held}) == 40 and set(gallery) < set(fit)
        for sample in (*data.fit, *data.clean, *data.held):
            place = int(sample.key.rpartition("/")[2])
            assert (sample.content == place).all() and sample.label == fashion_mnist.NAMES[place % 10]
        again = fashion_mnist.read_clothes(tmp_path, gallery=20, clean=2)
        assert [s.key for s in again.fit] == fit != sorted(fit)
        assert [s.key for s in (*again.clean, *again.held)] == [*clean, *held]

    def test_what_does_not_fit_is_named(self, tmp_path: Path) -> None:
        for wrong, match in (
            ({"kinds": 11}, "labels up to 10: expected"),
            ({"side": 27}, r"pictures \[40, 27, 27\]"),
            ({"n": 20}, "20 training pictures, too few for a gallery of 18 and 1"),
            ({"n": 21}, "21 training pictures, too few for a gallery of 18 and 2"),
        ):
            self.write(tmp_path, **wrong)  # type: ignore[arg-type]
            with pytest.raises(ConfigError, match=match):
                fashion_mnist.read_clothes(tmp_path, gallery=18, clean=2 if wrong == {"n": 21} else 1)
