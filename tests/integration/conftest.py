"""One embedded Kafka for all integration tests of a run."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator

import pytest

from stream.broker import Broker


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A real broker, ready; it dies with the test process. A test that hurts it leaves it ready again."""
    one = Broker(tmp_path_factory.mktemp("kafka") / "data", parent_bound=True)
    one.start()
    one.ready()
    yield one
    one.stop()


@pytest.fixture(scope="session")
def topics() -> Callable[[str], str]:
    """Names that no other test of the run uses: topics("queries") -> "test-1234-7-queries"."""
    numbers = itertools.count()
    return lambda name: f"test-{os.getpid()}-{next(numbers)}-{name}"
