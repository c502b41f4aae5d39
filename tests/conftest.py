"""How tests are spread over processes: a file stays together, and whatever starts servers is one group.

Servers and browsers are timed against the clock: two of them side by side on two cores would wait for each
other. Without pytest-xdist's `-n` none of this has an effect.
"""

import pytest

ALONE = ("kafka", "browser", "nightly")


@pytest.hookimpl(tryfirst=True)  # else pytest-xdist looks for groups before there are any
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        served = any(item.get_closest_marker(name) for name in ALONE)
        item.add_marker(pytest.mark.xdist_group("servers" if served else str(item.path)))
