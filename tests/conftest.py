"""How tests are spread over processes: a file stays together, and whatever starts servers is one group.

Servers and browsers are timed against the clock: two of them side by side on two cores would wait for each
other. Without pytest-xdist's `-n` none of this has an effect. Not by its marks for groups: under pytest 9.2
pytest-xdist 3.8 leaves them out silently.
"""

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
ALONE = re.compile(r"pytest\.mark\.(kafka|browser|nightly)\b")


@cache
def group(path: str) -> str:
    """What runs in one process: a file, or all files with servers."""
    return "servers" if ALONE.search((ROOT / path).read_text()) else path


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group(nodeid.partition("::")[0])

    return Together(config, log)
