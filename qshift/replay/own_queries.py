"""A user's own queries, from a folder or a JSONL file, as records for the production path.

Every query is written as a client would send it, decoded and prepared once, so that what the service would
refuse is refused here, with its line, and costs nothing else.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from core.config import Config, LimitConfig
from core.errors import ConfigError, GalleryError, Refused
from core.filters import ANYTHING, Wanted, document_of
from core.readers.lines import BadLine as Unusable
from core.readers.places import is_file, is_folder, shown
from core.readers.table import rows
from core.readers.vectors import holds_vectors
from core.records import Coordinates, Record
from core.seeds import generator
from encoders.base_model import Base, load_base
from index.gallery import VersionedGallery
from qshift.data.pictures import composed, load_pictures
from qshift.replay.admitted import admitted
from qshift.replay.own_message import EXPECTED, Strangers, own_message, query_lines, word_of
from qshift.replay.vector_rows import vector_rows
from qshift.terminal.counts import counted
from stream.codec import Codec
from stream.preparation import check_top

LABELS = "labels.csv"
SHOWN = 3


@dataclass(frozen=True, slots=True)
class BadLine:
    """What was left out, and why; `where` is a line or a file."""

    where: str
    reason: str


@dataclass(frozen=True, slots=True)
class OwnQueries:
    """Queries that the service would take. Offsets count the queries from 0, refused ones too.

    `labels` are those that the gallery knows; `unknown` counts the others by label.
    """

    records: tuple[Record, ...]
    labels: dict[Coordinates, str]
    refused: tuple[BadLine, ...] = ()
    unknown: Mapping[str, int] = field(default_factory=dict)
    example: str = ""
    """A label of the gallery."""
    strangers: str = ""
    """A sentence on fields that are not known."""
    nothing: Mapping[str, int] = field(default_factory=dict)
    """Filters that no item of the gallery passes, and how many queries have each."""

    def notes(self) -> list[str]:
        """What a user should know, a sentence each."""
        found = []
        if self.refused:
            first = "; ".join(f"{bad.where}: {bad.reason}" for bad in self.refused[:SHOWN])
            found.append(f"{counted(len(self.refused), 'query', 'queries')} refused: {first}")
        if self.strangers:
            found.append(self.strangers)
        if self.nothing:
            first = ", ".join(shown(text) for text in list(self.nothing)[:SHOWN])
            queries = counted(sum(self.nothing.values()), "query", "queries")
            found.append(f"{queries} can find nothing, no item of the gallery passes the filter: {first}")
        if self.unknown:
            some = ", ".join(shown(name) for name in list(self.unknown)[:SHOWN])
            count = counted(sum(self.unknown.values()), "label")
            found.append(
                f"{count} of no item in the gallery, not used: {some}; "
                f"labels there look like {self.example!r}"
            )
        if not self.labels:
            found.append("no query has a usable label: the table shows agreement with the frozen twin")
        return found


def own_parts(gallery: Path, base: Path) -> tuple[VersionedGallery, Base]:
    """Loads both. Raises ArtifactError when the gallery was not built with the base."""
    model = load_base(base)
    return VersionedGallery.load(gallery, base_version=model.version, backend="exact"), model


def own_queries(
    path: Path, gallery: VersionedGallery, base: Base, config: Config, count: int | None = None,
    usual: Wanted = ANYTHING,
) -> OwnQueries:  # fmt: skip
    """Reads a folder, a JSONL file or a file of vectors.

    A folder gives a picture query per file, in the order of their names; a folder sorted by class gives them
    shuffled, for no one asks class by class. Labels come from `labels.csv` (columns file, label), else from
    the pictures' captions or classes (`qshift.data.pictures`) where the gallery knows them.
    A JSONL file gives a query per line; paths are relative to it. A file of vectors gives a query per row.

    Args:
        gallery, base: of one another; see `own_parts`.
        config: its limits and the name of the query topic.
        count: rows that are read of a file of vectors, from the first; None for all.
        usual: what a query wants that does not say so itself.

    Raises:
        GalleryError: the gallery was built with another base.
        ConfigError: nothing there, an unreadable file, or not one query that could be used.
    """
    if gallery.base_version is not None and gallery.base_version != base.version:
        raise GalleryError(
            f"the gallery was built with base model {gallery.base_version!r}, in use is {base.version!r}: "
            "rebuild the gallery, or name its own base"
        )
    codec, kafka = Codec(config.limits, config.kafka), config.kafka
    folder, strangers = is_folder(path), Strangers()
    records, labels, refused, unknown, nothing = [], {}, [], Counter[str](), Counter[str]()
    for offset, (where, entry) in enumerate(_entries(path, gallery, count)):
        at = Coordinates(kafka.queries, 0, offset)
        try:
            if isinstance(entry, BadLine):
                raise Refused("decode", entry.reason)
            strangers.look(entry, where)
            label = word_of(entry, "label")
            record = _record(at, entry, path if folder else path.parent, config.limits, usual)
            want = _checked(codec, base, record, config.answer.shortlist)
        except Refused as error:
            refused.append(BadLine(where, error.reason))
            continue
        records.append(record)
        if want.filter and not len(gallery.allowed(want.filter)):
            nothing[json.dumps(document_of(want.filter), ensure_ascii=False)] += 1
        if label and gallery.relevant(label).any():
            labels[at] = label
        elif label:
            unknown[label] += 1
    if not records:
        reasons = "; ".join(f"{bad.where}: {bad.reason}" for bad in refused[:SHOWN])
        raise ConfigError(
            f"no query in {shown(path)} can be used: {reasons or 'it is empty'}; expected {EXPECTED}"
        )
    example = gallery.labels_of(int(gallery.keys()[0]))[0] if unknown else ""
    return OwnQueries(
        tuple(records), labels, tuple(refused), dict(unknown), example, strangers.note(), dict(nothing)
    )


Entry = tuple[str, dict[str, Any] | BadLine]


def _entries(path: Path, gallery: VersionedGallery, count: int | None) -> Iterator[Entry]:
    if holds_vectors(path):
        return _vectors(path, count)
    return _folder(path, gallery) if is_folder(path) else _lines(path)


def _folder(folder: Path, gallery: VersionedGallery) -> Iterator[Entry]:
    pictures = load_pictures(folder, (LABELS,))
    listed = _labels_csv(folder)
    names = [pictures.identifier(item) for item in range(len(pictures))]
    order = generator(0, "order", "own queries").permutation(len(names)) if pictures.classes else None
    for item in range(len(names)) if order is None else order.tolist():
        name = names[item]
        label = _known(pictures.captions[item], gallery) if listed is None else listed.get(name, (0, ""))[1]
        # The path as the file system writes it, the name as everybody does.
        place = str(pictures.paths[item].relative_to(folder))
        yield name, {"image": place, "id": name, "label": label}
    for name, (line, _) in (listed or {}).items():
        if name not in names:
            yield f"{LABELS}, line {line}", BadLine("", f"no picture {shown(name)} in {shown(folder)}")


def _known(captions: tuple[str, ...], gallery: VersionedGallery) -> str:
    """The first caption that is a label of the gallery; captions that are none were never meant as labels."""
    return next((caption for caption in captions if gallery.relevant(caption).any()), "")


def _labels_csv(folder: Path) -> dict[str, tuple[int, str]] | None:
    """File name -> (line, label)."""
    path = folder / LABELS
    if not is_file(path):  # what else is called so is said with what is left out
        return None
    found: dict[str, tuple[int, str]] = {}
    for line, row in rows(path, ("file", "label")):
        name = composed(row["file"].strip())
        first, label = found.setdefault(name, (line, row["label"]))
        if label != row["label"]:
            raise ConfigError(
                f"{shown(path)}, line {line}: {shown(name)} has another label in line {first}: keep one"
            )
    return found


def _lines(path: Path) -> Iterator[Entry]:
    for number, entry in query_lines(path):
        yield f"line {number}", BadLine("", str(entry)) if isinstance(entry, Unusable) else entry


def _vectors(path: Path, count: int | None) -> Iterator[Entry]:
    for row, entry in islice(vector_rows(path), count):
        yield f"row {row}", BadLine("", str(entry)) if isinstance(entry, Unusable) else entry


def _record(
    at: Coordinates, entry: dict[str, Any], folder: Path, limits: LimitConfig, usual: Wanted
) -> Record:
    value, headers = own_message(entry, word_of(entry, "id"), folder, limits, usual)
    return Record(at, value, None, tuple(headers))


def _checked(codec: Codec, base: Base, record: Record, most: int) -> Wanted:
    """As the service would see it; returns what it wants. Raises Refused."""
    event = admitted(codec, record)
    encoder = base.encoders.get(event.modality)
    if encoder is None:
        served = ", ".join(base.encoders)
        raise Refused("validate", f"the base model serves {served}, not {event.modality} queries")
    check_top(event, most)
    encoder.prepare(event.content)
    return event.wanted
