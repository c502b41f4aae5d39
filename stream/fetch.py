"""The picture behind a reference: a file inside `limits.reference_root`, and nothing else."""

from __future__ import annotations

import hashlib
import os
import stat
from urllib.parse import unquote, urlsplit

from core.config import LimitConfig
from core.errors import Refused
from stream.messages import ReferenceQuery


def fetched(message: ReferenceQuery, limits: LimitConfig) -> bytes:
    """The bytes behind a reference: inside the root, a plain file, of the size and sha256 it names."""
    if limits.reference_root is None:
        raise Refused("fetch", "references are not taken: limits.reference_root is not set")
    if message.size > limits.image_bytes:
        raise Refused(
            "fetch", f"the reference names {message.size} bytes, at most {limits.image_bytes} are read"
        )
    try:
        address = urlsplit(message.uri)
        if address.scheme != "file" or address.netloc or address.query or address.fragment:
            raise Refused("fetch", "a reference is file: and a path, without host, query or fragment")
        root = limits.reference_root.resolve()
        path = (root / unquote(address.path)).resolve()
        if not path.is_relative_to(root):
            raise Refused("fetch", "the reference leads out of limits.reference_root")
        # Resolved once, so a link put there since must not be followed; a FIFO must not block.
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as file:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise Refused("fetch", "the reference is not a plain file")
            content = file.read(message.size + 1)
    except (OSError, ValueError, RuntimeError) as error:
        raise Refused("fetch", f"the reference cannot be read: {type(error).__name__}") from error
    if len(content) != message.size or hashlib.sha256(content).hexdigest() != message.sha256:
        raise Refused("fetch", "size or sha256 of the file is not what the reference names")
    return content
