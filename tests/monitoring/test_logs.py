"""Logs are one JSON object per line, whatever is logged."""

import io
import json
import logging

import pytest

from monitoring.logs import set_up


@pytest.fixture
def stream():
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    text = io.StringIO()
    set_up("INFO", text)
    yield text
    root.handlers[:] = before
    root.setLevel(level)


def test_lines_carry_extras_and_exceptions(stream):
    log = logging.getLogger("qshift.test")
    log.info("answered %d", 3, extra={"offset": 7, "partition": ("q", 0)})
    try:
        raise ValueError("bröken")
    except ValueError:
        log.exception("failed")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert (first["message"], first["level"], first["offset"]) == ("answered 3", "info", 7)
    assert first["logger"] == "qshift.test" and first["time"].endswith("+00:00")
    assert "bröken" in second["exception"] and second["level"] == "error"


def test_odd_values_do_not_break_a_line(stream):
    logging.getLogger("qshift.test").warning("line\nbreak", extra={"what": object(), "text": b"\xff"})
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line)["message"] == "line\nbreak"


def test_setting_up_again_replaces_the_handler(stream):
    again = io.StringIO()
    set_up("DEBUG", again)
    logging.getLogger("qshift.test").debug("once")
    logging.getLogger("kafka.conn").debug("keys and values")
    assert stream.getvalue() == "" and len(again.getvalue().splitlines()) == 1
