"""Broker, small world and worker processes of the integration tests, for all nightly ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from integration_fixtures import fixtures_of_integration

_integration = fixtures_of_integration()
topics, vector_world, clip_world = (
    _integration.topics, _integration.vector_world, _integration.clip_world,
)  # fmt: skip
broker, own_broker = _integration.broker, _integration.own_broker
nursery, make_site, messages = _integration.nursery, _integration.make_site, _integration.messages

LINGER_SECONDS = 0.1
"""Batches are formed by time-out wherever a burst ends: no two workers would draw the same boundaries."""


@pytest.fixture
def uneven(make_site: Callable[..., Any], vector_world: Path) -> Callable[..., Any]:
    """uneven(broker, partitions=2, **sections): a site whose batches end where a time-out falls."""

    def make(broker: Any, partitions: int = 2, **sections: Any) -> Any:
        given = {
            "batch": {"linger_seconds": LINGER_SECONDS, "floor": 4}, "kafka": {"partitions": partitions},
        }  # fmt: skip
        return make_site(broker, vector_world, **(given | sections))

    return make
