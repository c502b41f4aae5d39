"""What is done to a query before it may enter a batch: decoded, checked, a misspelt text mended."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from core.errors import Refused
from core.protocols import Encoder
from core.types import Modality, Query

Repair = Callable[[str], str]
"""A query text -> the text to encode instead; the same text where nothing is wrong with it."""


class Preparation:
    """Prepares queries, in any thread.

    Args:
        encoders: one per modality served.
        repair: mends misspelt texts; None leaves them.
    """

    def __init__(self, encoders: Mapping[Modality, Encoder], repair: Repair | None) -> None:
        self._encoders, self.repair = encoders, repair

    def __call__(self, query: Query) -> Query:
        """The query with its content decoded and checked. Raises Refused."""
        encoder = self._encoders.get(query.modality)
        if encoder is None:
            served = ", ".join(self._encoders)
            raise Refused("validate", f"the base model serves {served}, not {query.modality} queries")
        query = replace(query, prepared=encoder.prepare(query.content))
        if self.repair is not None and isinstance(query.content, str):
            text = self.repair(query.content)
            if text != query.content:
                query = replace(query, repaired=text, repaired_prepared=encoder.prepare(text))
        return query
