"""The benchmark's tasks by name, each from its data: docs/reference/data.md says what lies where.

Every draw is keyed by the data alone, so that a task's name stands for the same samples everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import permutations
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
from PIL import Image

from core.errors import ConfigError
from core.seeds import generator
from qshift.benchmarks.suite import word_tasks
from qshift.benchmarks.tasks import fashion_mnist, office, pacs
from qshift.benchmarks.tasks.digits import Part, read_mnist, read_usps
from qshift.benchmarks.tasks.emoji_vendors import plain, read_vendor
from qshift.benchmarks.tasks.types import Sample, Task
from qshift.data.emoji import EmojiSet, load_emoji
from qshift.recipes.domains.base import HEADS

Loader = Callable[[Path | None, Path], Task]
"""(data folder, cache) -> task."""
Samples = Sequence[Sample]
DEVELOP = frozenset(
    (
        "distil/openmoji-noto",
        "emoji/openmoji-noto",
        "emoji/text-noto",
        "office/amazon-webcam",
        "digits/usps-mnist",
        "fashion-mnist/develop",
        *word_tasks.DEVELOP,
    )
)
SIDE = 80  # pixels; EfficientNet pools globally, and 112 cost twice the time
DIGIT_SIDE = 48
PHOTOS_PER_CLASS = 100
HELD_OUT = 0.2
DIGIT_GALLERY, DIGIT_QUERIES = 2000, 1000
NOTO_ATTRIBUTION = "Noto Emoji, Google, Apache-2.0; names: Unicode CLDR"


def load_task(name: str, data_root: Path | None, cache: Path) -> Task:
    """A task by its name.

    Args:
        name: one of `TASKS`.
        data_root: the folder that docs/reference/data.md describes; None: only tasks from packages can be
            loaded.
        cache: for what is rendered once.

    Raises:
        ConfigError: an unknown name, or data that are missing or broken.
    """
    if name not in TASKS:
        raise ConfigError(f"no task {name!r}: expected one of {', '.join(TASKS)}")
    return TASKS[name](data_root, cache)


def needed(task: str, data_root: Path | None, *parts: str) -> Path:
    """The data folder, in which all parts (file names) are. Raises ConfigError that names what is missing."""
    missing = [part for part in parts if data_root is None or not (data_root / part).is_file()]
    if data_root is None or missing:
        files = ", ".join(f"DATA/{part}" for part in missing)
        raise ConfigError(f"{task} needs {files}: pass --data, see docs/reference/data.md")
    return data_root


def squares(samples: Samples, side: int) -> list[Sample]:
    """The same pictures stretched to squares, so that shifts meet what the tower sees."""
    found = []
    for sample in samples:
        image = Image.fromarray(np.asarray(sample.content))
        if image.size != (side, side):
            image = image.resize((side, side), Image.Resampling.BICUBIC)
        found.append(replace(sample, content=np.asarray(image, dtype=np.uint8)))
    return found


def drawn(samples: Samples, count: int, purpose: str) -> tuple[list[Sample], list[Sample]]:
    """`count` samples at random, and the rest, both in the order given.

    Raises:
        ConfigError: fewer samples than that.
    """
    if count > len(samples):
        raise ConfigError(f"{purpose}: {count} samples are to be drawn, there are {len(samples)}")
    order = generator(0, "draw", purpose).permutation(len(samples))
    taken = set(order[:count].tolist())
    return (
        [sample for place, sample in enumerate(samples) if place in taken],
        [sample for place, sample in enumerate(samples) if place not in taken],
    )


def balanced(samples: Samples, each: int, purpose: str) -> tuple[list[Sample], list[Sample]]:
    """`each` samples of every label, and the rest. Raises ConfigError when a label has too few."""
    taken, rest = [], []
    for label in sorted({sample.label for sample in samples}):
        own = [sample for sample in samples if sample.label == label]
        parts = drawn(own, each, f"{purpose} {label}")
        taken += parts[0]
        rest += parts[1]
    return taken, rest


def _split(name: str) -> Literal["develop", "report"]:
    return "develop" if name in DEVELOP else "report"


def _picture_task(
    name: str, base: str, gallery: Samples, pools: Mapping[str, Samples], retaken: bool = False
) -> Task:
    return Task(name, "image", "image", gallery, pools, base, retaken, _split(name))


def _openmoji(cache: Path) -> tuple[EmojiSet, list[Sample]]:
    data = load_emoji(cache, SIDE)
    everything = zip(data.hexcodes, data.colour, data.labels, data.groups, data.names, strict=True)
    return data, [Sample(*fields) for fields in everything]


def emoji_picture(data_root: Path | None, cache: Path) -> Task:
    """All OpenMoji pictures taken again, in colour and as line art."""
    return _retaken("emoji/picture-picture", "emoji", cache)


def distil_picture(data_root: Path | None, cache: Path) -> Task:
    """The same pictures with another base: a small model with LayerNorms, distilled from the emoji's."""
    return _retaken("distil/picture-picture", "distil", cache)


def _retaken(name: str, base: str, cache: Path) -> Task:
    data, gallery = _openmoji(cache)
    lines = [replace(sample, content=line) for sample, line in zip(gallery, data.line, strict=True)]
    pools = {"clean": gallery, "sketch": lines}
    return _attributed(_picture_task(name, base, gallery, pools, True), data.attribution)


def emoji_text(data_root: Path | None, cache: Path) -> Task:
    """OpenMoji pictures by their English names. The base knows names and pictures: a fixed catalogue."""
    data, gallery = _openmoji(cache)
    names = [replace(sample, content=data.captions(item)[0]) for item, sample in enumerate(gallery)]
    task = Task("emoji/text-picture", "text", "image", gallery, {"clean": names}, "emoji", True)
    return _attributed(task, data.attribution)


def emoji_vendors(data_root: Path | None, cache: Path) -> Task:
    """Noto's pictures, asked for by themselves and by Twemoji's."""
    name = "emoji/noto-twemoji"
    noto, twemoji = _vendors(name, data_root)
    pools = {"clean": noto, "twemoji": _matched(twemoji, noto)}
    return _attributed(_picture_task(name, "noto", noto, pools, True), NOTO_ATTRIBUTION)


def emoji_text_noto(data_root: Path | None, cache: Path) -> Task:
    """Noto's pictures by their English names, for choosing what texts learn by."""
    name = "emoji/text-noto"
    noto, _ = _vendors(name, data_root)
    names = [replace(sample, content=sample.title) for sample in noto]
    task = Task(name, "text", "image", noto, {"clean": names}, "noto", True, _split(name))
    return _attributed(task, NOTO_ATTRIBUTION)


def emoji_openmoji(name: str, base: str, data_root: Path | None, cache: Path) -> Task:
    """OpenMoji's pictures, asked for by those items that all three vendors draw; of either base."""
    noto, twemoji = _vendors(name, data_root)
    data, gallery = _openmoji(cache)
    pools = {"noto": _matched(noto, gallery), "twemoji": _matched(twemoji, gallery)}
    common = {sample.key for sample in pools["noto"]} & {sample.key for sample in pools["twemoji"]}
    pools = {"clean": gallery, **pools}
    kept = {pool: [sample for sample in found if sample.key in common] for pool, found in pools.items()}
    return _attributed(_picture_task(name, base, gallery, kept, True), data.attribution)


def _vendors(name: str, data_root: Path | None) -> tuple[list[Sample], list[Sample]]:
    folder = needed(name, data_root, "emoji/noto.zip", "emoji/twemoji.zip", "emoji/meta.json") / "emoji"
    archives = (folder / f"{vendor}.zip" for vendor in ("noto", "twemoji"))
    noto, twemoji = (squares(read_vendor(archive, folder / "meta.json"), SIDE) for archive in archives)
    return noto, twemoji


def _matched(queries: Samples, gallery: Samples) -> list[Sample]:
    """Queries whose emoji is in the gallery, under the key, label and group that it has there."""
    known = {plain(sample.key): sample for sample in gallery}
    return [
        replace(found, content=sample.content)
        for sample in queries
        if (found := known.get(plain(sample.key))) is not None
    ]


def _attributed(task: Task, attribution: str) -> Task:
    return replace(task, extra={"attribution": attribution})


def pacs_task(source: pacs.Domain, target: pacs.Domain, data_root: Path | None, cache: Path) -> Task:
    """100 pictures of each class of one domain, asked for by others of it and by the other domain."""
    short = {"photo": "photo", "art_painting": "art"}
    name = f"pacs/{short[source]}-{short[target]}"
    root = needed(name, data_root, f"pacs/{source}.zip", f"pacs/{target}.zip")
    own, other = (squares(pacs.read_pacs(root / "pacs", domain), SIDE) for domain in (source, target))
    gallery, clean = balanced(own, PHOTOS_PER_CLASS, f"pacs {source}")
    base = f"pictures-pacs-{short[source]}"
    return _picture_task(name, base, gallery, {"clean": clean, short[target]: other})


def office_task(source: office.Domain, target: office.Domain, data_root: Path | None, cache: Path) -> Task:
    """80 % of one domain, asked for by its other 20 % and by another domain."""
    name, folder = f"office/{source}-{target}", "office_caltech10"
    root = needed(name, data_root, f"{folder}/{source}.zip", f"{folder}/{target}.zip")
    own, other = (squares(office.read_office(root / folder, domain), SIDE) for domain in (source, target))
    clean, gallery = drawn(own, round(HELD_OUT * len(own)), f"office {source}")
    return _picture_task(name, f"pictures-office-{source}", gallery, {"clean": clean, "shift": other})


def chain_task(method: str, data_root: Path | None, cache: Path) -> Task:
    """Paintings ask for photos, in codes learnt from the photos and from four fifths of the paintings."""
    name = f"chain/{method}"
    root = needed(name, data_root, "pacs/photo.zip", "pacs/art_painting.zip")
    own, other = (squares(pacs.read_pacs(root / "pacs", domain), SIDE) for domain in pacs.DOMAINS)
    clean, target = drawn(other, round(HELD_OUT * len(other)), "chain paintings")
    task = _picture_task(name, f"chain-{method}", own, {"clean": clean})
    return replace(task, extra={"target": [sample.content for sample in target]})


Collection = Literal["mnist", "usps"]
IDX_FILES = tuple(
    f"raw/{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)
DIGIT_FILES: Mapping[Collection, tuple[str, ...]] = MappingProxyType(
    {
        "mnist": tuple(f"MNIST/{file}" for file in IDX_FILES),
        "usps": ("USPS/usps.bz2", "USPS/usps.t.bz2"),
    }
)


def digits_task(source: Collection, target: Collection, data_root: Path | None, cache: Path) -> Task:
    """2,000 training digits of one collection, asked for by 1,000 test digits of either."""
    name = f"digits/{source}-{target}"
    root = needed(name, data_root, *DIGIT_FILES[source], *DIGIT_FILES[target])

    def some(collection: Collection, part: Part, count: int) -> list[Sample]:
        found = (
            read_mnist(root / "MNIST/raw", part) if collection == "mnist" else read_usps(root / "USPS", part)
        )
        return squares(drawn(found, count, f"digits {collection} {part}")[0], DIGIT_SIDE)

    pools = {"clean": some(source, "test", DIGIT_QUERIES), "shift": some(target, "test", DIGIT_QUERIES)}
    return _picture_task(name, f"pictures-{source}", some(source, "train", DIGIT_GALLERY), pools)


def fashion_mnist_task(name: str, data_root: Path | None, cache: Path) -> Task:
    """3,000 training pictures, asked for by the test pictures, or by training pictures that were held out."""
    root = needed(name, data_root, *(f"FashionMNIST/{file}" for file in IDX_FILES)) / "FashionMNIST/raw"
    clothes = fashion_mnist.read_clothes(root)
    held = _split(name) == "develop"
    queries = clothes.held if held else fashion_mnist.read_fashion_mnist(root, "test")
    task = _picture_task(name, "fashion-mnist", clothes.gallery, {"clean": queries})
    return replace(task, extra={"clothes": clothes})


def _tasks() -> dict[str, Loader]:
    found: dict[str, Loader] = {
        "emoji/picture-picture": emoji_picture,
        "emoji/text-picture": emoji_text,
        "emoji/noto-twemoji": emoji_vendors,
        "emoji/openmoji-noto": partial(emoji_openmoji, "emoji/openmoji-noto", "emoji"),
        "emoji/text-noto": emoji_text_noto,
        "pacs/photo-art": partial(pacs_task, "photo", "art_painting"),
        "pacs/art-photo": partial(pacs_task, "art_painting", "photo"),
    }
    for source, target in permutations(office.DOMAINS, 2):
        found[f"office/{source}-{target}"] = partial(office_task, source, target)
    found["digits/mnist-usps"] = partial(digits_task, "mnist", "usps")
    found["digits/usps-mnist"] = partial(digits_task, "usps", "mnist")
    for name in ("fashion-mnist/picture-picture", "fashion-mnist/develop"):
        found[name] = partial(fashion_mnist_task, name)

    found["distil/picture-picture"] = distil_picture
    found["distil/openmoji-noto"] = partial(emoji_openmoji, "distil/openmoji-noto", "distil")
    found.update({f"chain/{method}": partial(chain_task, method) for method in HEADS})
    return found | dict(word_tasks.TASKS)


TASKS: Mapping[str, Loader] = MappingProxyType(_tasks())
"""Every task: name -> loader."""
