"""Pictures are decoded in processes that can be ended, and come out as they do in ours."""

from __future__ import annotations

import io
import os
import signal
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from core.errors import Refused
from encoders import decoding
from encoders.decoding import Decoders
from encoders.images import BYTES, Preprocess, prepare

TO = Preprocess(size=(64, 64))
PIXELS = 1 << 24


def picture(side: int = 300, kind: str = "PNG") -> bytes:
    rng, out = np.random.default_rng(side), io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (side, side, 3), dtype=np.uint8)).save(out, kind)
    return out.getvalue()


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    made = Decoders(1, 20.0)
    yield made
    made.close()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_pixels_are_those_of_our_own_process(decoders: Decoders, kind: str) -> None:
    content = picture(kind=kind)
    assert np.array_equal(decoders.prepare(content, TO, BYTES, PIXELS), prepare(content, TO, BYTES, PIXELS))


@pytest.mark.parametrize("content", [b"", b"no picture", picture()[:5000], picture(2000)])
def test_what_is_refused_is_refused_in_the_same_words(decoders: Decoders, content: bytes) -> None:
    with pytest.raises(Refused) as ours:
        prepare(content, TO, BYTES, 1 << 20)
    with pytest.raises(Refused) as theirs:
        decoders.prepare(content, TO, BYTES, 1 << 20)
    assert str(ours.value) == str(theirs.value)


def running(decoders: Decoders) -> decoding._Process:
    process = decoders._idle.queue[-1]
    assert process is not None
    return process


def test_one_that_takes_too_long_is_ended_and_the_next_picture_is_decoded() -> None:
    made = Decoders(1, 20.0)
    made.prepare(picture(), TO, BYTES, PIXELS)
    number, made._seconds = running(made)._child.pid, 0.3
    os.kill(number, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(Refused, match=r"decoding took more than 0\.3 s"):
        made.prepare(picture(), TO, BYTES, PIXELS)
    assert time.monotonic() - began < 5
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)
    made._seconds = 20.0
    assert made.prepare(picture(), TO, BYTES, PIXELS).shape == (3, 64, 64)
    made.close()


def test_one_that_dies_at_a_picture_costs_that_picture() -> None:
    made = Decoders(1, 20.0)
    made.prepare(picture(), TO, BYTES, PIXELS)
    os.kill(running(made)._child.pid, signal.SIGKILL)
    with pytest.raises(Refused, match="decoding ended its process"):
        made.prepare(picture(), TO, BYTES, PIXELS)
    assert made.prepare(picture(), TO, BYTES, PIXELS).shape == (3, 64, 64)
    made.close()


def test_memory_is_bounded() -> None:
    """A decoder bound for small pictures cannot take a large one: it is refused, and nothing ends."""
    out = io.BytesIO()
    Image.new("RGB", (8000, 8000)).save(out, "WEBP", lossless=True)
    made = Decoders(1, 20.0)
    with pytest.raises(Refused, match="300 x 300 pixels"):
        made.prepare(picture(), TO, BYTES, 1)  # bounds it for pictures of one pixel
    number = running(made)._child.pid
    with pytest.raises(Refused, match="not a whole"):
        made.prepare(out.getvalue(), TO, BYTES, 1 << 26)
    assert running(made)._child.pid == number
    assert made.prepare(picture(), TO, BYTES, PIXELS).shape == (3, 64, 64)
    made.close()


def test_threads_share_the_processes_and_the_end_leaves_none() -> None:
    made, found = Decoders(1, 20.0), []
    content = picture()
    threads = [
        threading.Thread(target=lambda: found.append(made.prepare(content, TO, BYTES, PIXELS).sum()))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    number = running(made)._child.pid
    assert found == [found[0]] * 4
    made.close()
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)
