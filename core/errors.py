"""Our exceptions.

QshiftError
├── ConfigError        the configuration cannot be used as written
│   └── NameTaken      another worker of the group goes by our name
├── ArtifactError      a base model, gallery or checkpoint is missing, corrupt or does not fit
├── GalleryError       a search or a change of the gallery was asked for with the wrong shape
├── Refused            one input cannot be processed: becomes one dead letter, nothing else is lost
├── DeliveryError      a record was not acknowledged: nothing after it may be committed
├── PartitionsLost     the group has given our partitions away, or may have: nothing more may be sent for them
├── OffsetGoneError    the log no longer holds what a saved state needs
└── BrokerError        the embedded Kafka did not start, answer or stop

A message says what was expected, what came, and what to do.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pydantic import ValidationError

Stage = Literal["decode", "validate", "fetch", "image", "encode", "adapt", "search"]


def plain(text: object) -> str:
    """An error's text without addresses in memory: the same fault must read the same everywhere."""
    return re.sub(r" at 0x[0-9a-fA-F]+(?=>)", "", str(text))


def first_fault(error: ValidationError) -> tuple[str, str]:
    """What is wrong with the first wrong field, and pydantic's name for the kind of fault.

    Without what stands there: it may be a megabyte.
    """
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else first["msg"], first["type"]


class QshiftError(Exception):
    """Root of everything raised on purpose."""


class ConfigError(QshiftError):
    """The configuration cannot be used as written."""


class NameTaken(ConfigError):
    """Another worker of the group goes by our name, and is the one that counts."""


class ArtifactError(QshiftError):
    """A base model, gallery or checkpoint is missing, corrupt or does not fit."""


class GalleryError(QshiftError):
    """A search or a change of the gallery was asked for with the wrong shape or identifiers."""


class DeliveryError(QshiftError):
    """A record was not acknowledged by the sink."""


class PartitionsLost(QshiftError):
    """The group does not know us as the owner of our partitions: another worker may be answering them."""


class OffsetGoneError(QshiftError):
    """The log no longer holds the offset at which a saved state continues."""


class BrokerError(QshiftError):
    """The embedded Kafka did not start, answer or stop."""


class Refused(QshiftError):
    """One input cannot be processed.

    Args:
        stage: where it failed; goes into the header `x-error-stage` of the dead letter.
        reason: one sentence for a person; it becomes part of a dead letter, so that addresses are taken out.
    """

    def __init__(self, stage: Stage, reason: str) -> None:
        self.stage: Stage = stage
        self.reason = plain(reason)
        super().__init__(self.reason)
