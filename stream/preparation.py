"""What is done to a query before it may enter a batch: decoded, checked, a misspelt text mended."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from core.errors import Refused
from core.protocols import Encoder
from core.types import Modality, Query, QueryBatch

Repair = Callable[[str], str]
"""A query text -> the text to encode instead; the same text where nothing is wrong with it."""


class Preparation:
    """Prepares queries, in any thread.

    Args:
        encoders: one per modality served.
        repair: mends misspelt texts; None leaves them.
        most: items that an answer may have; None: any number.
    """

    def __init__(
        self, encoders: Mapping[Modality, Encoder], repair: Repair | None, most: int | None = None
    ) -> None:
        self._encoders, self.repair, self._most = encoders, repair, most

    def __call__(self, query: Query) -> Query:
        """The query with its content decoded and checked. Raises Refused."""
        encoder = self._encoders.get(query.modality)
        if encoder is None:
            served = ", ".join(self._encoders)
            raise Refused("validate", f"the base model serves {served}, not {query.modality} queries")
        check_top(query, self._most)
        query = replace(query, prepared=encoder.prepare(query.content))
        if self.repair is not None and isinstance(query.content, str):
            return self._mended(query, self.repair(query.content))
        return query

    def again(self, batch: QueryBatch) -> QueryBatch:
        """The batch with its texts mended by the words of the gallery that is in use now.

        Which was in use when a query was admitted is a matter of time, and no repetition could know it.
        """
        if self.repair is None or batch.modality != "text":
            return batch
        queries = []
        for query in batch.queries:
            text = self.repair(str(query.content))
            same = text == (query.repaired or query.content)
            queries.append(query if same else self._mended(query, text))
        return replace(batch, queries=tuple(queries))

    def _mended(self, query: Query, text: str) -> Query:
        if text == query.content:
            return replace(query, repaired="", repaired_prepared=None)
        return replace(query, repaired=text, repaired_prepared=self._encoders["text"].prepare(text))


def read_again(
    encoder: Encoder, queries: Sequence[Query], asked: Tensor, forward: Callable[[Any, None, None], Tensor]
) -> tuple[Any, Tensor]:
    """What was meant by the queries of a batch: its inputs, and the source encoder's features [B, D].

    Only mended queries are encoded: what was meant by the others is what was asked.

    Args:
        queries: at least one of them mended.
        asked: features [B, D] of what was asked, padding included.
        forward: encodes collated inputs by the source parameters.
    """
    meant = [query.meant for query in queries]
    mended = [row for row, query in enumerate(queries) if query.repaired]
    features = asked.clone()
    features[mended] = forward(encoder.collate([meant[row] for row in mended], len(mended)), None, None)
    return encoder.collate(meant, len(asked)), features


def check_top(query: Query, most: int | None) -> None:
    """Raises Refused where a query asks for more items than answers are taken from."""
    if most is not None and query.wanted.top > most:
        raise Refused(
            "validate",
            f"top: {query.wanted.top} items, at most {most} are served (answer.shortlist): ask for fewer",
        )
