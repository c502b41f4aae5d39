"""Names of workers: each has its own, and a living holder's is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from core.errors import NameTaken
from stream import names
from stream.names import check_free, lives, own_name, process_id


def other(machine: str = "elsewhere-1", number: int = 7) -> str:
    return f"qshift-{machine}-{number}-123"


class Group:
    """Members that are forgotten after some looks, and a clock that pauses move."""

    def __init__(self, client_id: str, forgotten_after: int = 1000, name: str = "one") -> None:
        self.now, self.looks = 0.0, 0
        self._left, self._member = forgotten_after, {"client_id": client_id, "group_instance_id": name}

    def members(self) -> list[dict[str, Any]]:
        self.looks += 1
        return [self._member] if self.looks <= self._left else []

    def pause(self, seconds: float) -> None:
        self.now += seconds

    def check(self, worker: str = "one") -> None:
        check_free(worker, "group", self.members, 6.0, self.pause, lambda: self.now)


def test_names_of_processes_differ() -> None:
    code = "from stream.names import own_name, process_id; print(own_name(), process_id())"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    name, process = said.split()
    assert name != own_name() and str(os.getpid()) in own_name()
    assert lives(process_id()) is True
    assert lives(process) is False  # it has ended
    assert lives(process_id() + "0") is False  # another process had our number
    assert lives(other()) is None and lives("kafka-python-3") is None


def test_a_name_of_a_living_process_is_refused_at_once() -> None:
    group = Group(process_id())
    with pytest.raises(NameTaken, match="another worker is called one in group group: give each its own"):
        group.check()
    assert (group.now, group.looks) == (0.0, 1)
    group.check("two")


def test_a_dead_process_holds_no_name() -> None:
    group = Group(process_id() + "0")
    group.check()
    assert group.now == 0.0


def test_another_machines_worker_is_dead_when_the_group_has_forgotten_it() -> None:
    gone = Group(other(), forgotten_after=4)
    gone.check()
    assert gone.now == 2.0
    there = Group(other())
    with pytest.raises(NameTaken):
        there.check()
    assert 8.0 <= there.now < 9.0


def test_a_dead_child_that_nobody_has_asked_for_does_not_live() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    client = f"qshift-{names._machine()}-{child.pid}-{names._began(child.pid)}"
    assert lives(client) is True
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert lives(client) is False
    child.wait()
