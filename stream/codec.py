"""Bytes <-> values: the service's serde. Whatever comes in, `Codec.decode` gives a value and never raises.

In: `stream.decoder`. Out: answers here, dead letters in `stream.letters`.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from core.config import KafkaConfig, LimitConfig
from core.records import Coordinates, Judgement, Record, Refusal
from core.types import Hits, Outcome, Query
from stream import letters, messages
from stream.answer import Answer as Answer
from stream.answer import decode_answer as decode_answer
from stream.decision import Decision, Decisions, withheld
from stream.decoder import Decoder
from stream.letters import HEADER_BYTES
from stream.messages import composed_query as composed_query
from stream.messages import image_query as image_query
from stream.messages import label as label
from stream.messages import reference_query as reference_query
from stream.messages import sequence_query as sequence_query
from stream.messages import text_query as text_query
from stream.messages import vector_query as vector_query
from stream.states import canonical
from stream.wanting import wanting as wanting

if TYPE_CHECKING:
    from stream.pipeline import BatchPass

Headers = list[tuple[str, bytes]]
SCORE_DIGITS = 6
"""Beliefs in a mixture are spread over the shortlist: the last places are small."""


def _number(_version: str, key: int) -> str:
    return str(key)


def rounded(score: float | None) -> float | None:
    """A score as answers say it; one that is no number is none."""
    return None if score is None or not math.isfinite(score) else round(score, SCORE_DIGITS)


def _never(_query: Coordinates) -> bool:
    return False


class Codec:
    """Reads and writes every message of the service.

    Args:
        limits: what is refused.
        kafka: names of the topics; a record is decoded by the topic it came from.
        identify: (gallery version, key) -> the user's name of an item; the key itself by default.
        label_wanted: whether a label of this query is asked for; must not depend on anything but the
            coordinates, or duplicates would differ.
        decisions: says who decided an answer, and how sure it is.
        now_ms: clock of the `x-answered-at-ms` header, which is not part of the compared bytes.
    """

    def __init__(
        self,
        limits: LimitConfig,
        kafka: KafkaConfig,
        identify: Callable[[str, int], str] = _number,
        label_wanted: Callable[[Coordinates], bool] = _never,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        decisions: Decisions | None = None,
    ) -> None:
        self._limits, self._decoder = limits, Decoder(limits, kafka)
        self._identify, self._label_wanted, self._now_ms = identify, label_wanted, now_ms
        self.decisions = decisions or Decisions()
        # `Query` carries no headers: traces of waiting queries are kept here until they are answered.
        self._traces: OrderedDict[Coordinates, bytes] = OrderedDict()

    def decode(self, record: Record) -> Query | Judgement | Refusal:
        """Decodes one record of the query or label topic. Never raises."""
        event = self._decoder.decode(record)
        if isinstance(event, Query):
            self._keep_trace(record)
        return event

    def _keep_trace(self, record: Record) -> None:
        trace = next((v for name, v in record.headers if name == "traceparent" and v), None)
        if trace is not None and len(trace) <= HEADER_BYTES:
            self._traces[record.at] = trace
            while len(self._traces) > 4 * self._limits.pending_queries:
                self._traces.popitem(last=False)

    def answers(self, answered: BatchPass | Outcome) -> list[tuple[bytes, bytes, Headers]]:
        """(value, key, headers) of every query of a batch, in its order."""
        decision = self.decisions(answered)
        served = withheld(answered.served, decision.abstained)
        return [
            (
                canonical(self._answer(answered, served, decision, row)),
                str(query.at).encode(),
                self.answer_headers(query),
            )
            for row, query in enumerate(answered.batch.queries)
        ]

    def _answer(
        self, answered: BatchPass | Outcome, served: Hits, decision: Decision, row: int
    ) -> dict[str, object]:
        """One answer without clocks or host names: a duplicate is byte-identical."""
        batch, version = answered.batch, answered.gallery_version
        query, weight = batch.queries[row], float(answered.weights[row])
        scores = [None] * served.keys.shape[1] if served.scores is None else served.scores[row].tolist()
        found = zip(served.keys[row].tolist(), served.distances[row].tolist(), scores)
        results = [
            {"id": self._identify(version, key), "distance": distance, "score": rounded(score)}
            for key, distance, score in found
            if key >= 0
        ]
        return {
            "schema_version": 2,
            "source": messages.place(query.at),
            "query_id": query.query_id,
            "lane": batch.lane,
            "batch_seq": batch.seq,
            "state": answered.state_hash,
            "gallery_version": version,
            "label_wanted": self._label_wanted(query.at),
            "weight": weight if math.isfinite(weight) else None,
            "decided_by": decision.by[row],
            "confidence": decision.confidence[row],
            "abstained": bool(decision.abstained[row]),
            "results": results,
        }

    def answer_headers(self, query: Query) -> Headers:
        """What may differ between duplicates, and the trace of the query."""
        headers = [("x-answered-at-ms", b"%d" % self._now_ms())]
        trace = self._traces.pop(query.at, None)
        return headers if trace is None else [*headers, ("traceparent", trace)]

    def dead_letter(self, refusal: Refusal) -> tuple[bytes, bytes | None, Headers]:
        """(value, key, headers): the original bytes, and what went wrong where."""
        self._traces.pop(refusal.record.at, None)
        return letters.dead_letter(refusal, self._limits.message_bytes)
