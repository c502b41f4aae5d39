"""What lies at a path, asked so that no path can raise or block.

`Path.exists`, `is_dir` and `is_file` raise for a name that is too long; to open a named pipe waits until
somebody writes.
"""

from __future__ import annotations

import os
import stat
import unicodedata
from pathlib import Path

from core.errors import ConfigError

UNSHOWN = frozenset(("Cc", "Cs", "Zl", "Zp"))
"""Categories of letters that would break a line or cannot be written: controls, halves, separators."""


GIVEN = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")
LEFTOVERS = frozenset(
    ("__MACOSX", "$RECYCLE.BIN", "System Volume Information", "Thumbs.db", "desktop.ini", ".DS_Store")
)


def leftover(name: str) -> bool:
    """Whether other systems leave such a name beside pictures; `._x` is macOS's (AppleDouble)."""
    return name in LEFTOVERS or name.startswith("._")


def shown(path: Path | str) -> str:
    """A path in a sentence: one line, letters that are no text escaped, a name of any length cut."""
    text = "".join(
        letter.encode("unicode_escape").decode() if unicodedata.category(letter) in UNSHOWN else letter
        for letter in str(path)
    )
    return text if len(text) <= 300 else f"{text[:150]}...{text[-100:]}"


def broken(text: str) -> bool:
    """Whether a text holds half of a surrogate pair, which no UTF-8 can say."""
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def there(path: Path) -> bool:
    """Whether anything is there, links followed."""
    return os.path.exists(path)  # noqa: PTH110


def is_folder(path: Path) -> bool:
    """Whether a folder is there, links followed."""
    return os.path.isdir(path)  # noqa: PTH112


def is_file(path: Path) -> bool:
    """Whether a plain file is there, links followed."""
    return os.path.isfile(path)  # noqa: PTH113


def bytes_of(path: Path, most: int | None = None) -> bytes:
    """A plain file as it is.

    Args:
        path: of the file.
        most: bytes; a longer file is not read.

    Raises:
        ConfigError: not there, not to be read, no plain file (a named pipe is not waited for, unless the
            shell has handed it over: `/dev/stdin`, `<(...)`), or too long.
    """
    try:
        # What a name stands for may change between two looks: the open file is asked, not the path.
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as file:
            found = os.fstat(handle)
            if stat.S_ISFIFO(found.st_mode) and str(path).startswith(GIVEN):
                os.set_blocking(handle, True)
                return file.read()
            if not stat.S_ISREG(found.st_mode):
                raise ConfigError(f"{shown(path)} cannot be read: {_kind(found.st_mode)}; name a plain file")
            if most is not None and found.st_size > most:
                raise ConfigError(
                    f"{shown(path)} cannot be read: {found.st_size} bytes, at most {most} are taken"
                )
            return file.read()
    except (OSError, ValueError) as error:  # ValueError: NUL or half a surrogate pair in the name
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(f"{shown(path)} cannot be read: {reason}; name a file that is there") from error


def names_in(folder: Path) -> list[str]:
    """Names in a folder, sorted. Raises ConfigError when it cannot be listed."""
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(f"{shown(folder)} cannot be listed: {reason}") from error


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "it is a folder"
    return "it is a named pipe" if stat.S_ISFIFO(mode) else "it is no plain file"
