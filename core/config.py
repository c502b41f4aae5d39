"""One TOML, validated once. Unknown keys are refused; each default names its origin.

Environment variables stand for addresses only: QSHIFT_BOOTSTRAP_SERVERS.
"""

from __future__ import annotations

import hashlib
import os
import tomllib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from core.errors import ConfigError


class Section(BaseModel):
    """A frozen part of the tree."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class KafkaConfig(Section):
    bootstrap_servers: str = ""  # empty: the embedded broker
    group: str = "qshift"
    queries: str = "qshift.queries"
    answers: str = "qshift.answers"
    labels: str = "qshift.labels"
    state: str = "qshift.state"
    journal: str = "qshift.journal"
    dead_letters: str = "qshift.dead-letters"
    partitions: int = Field(1, ge=1)
    reset: Literal["earliest"] = "earliest"  # never a silent "latest"
    max_inflight_bytes: int = Field(32 << 20, ge=1 << 20)  # kafka-python has no bound of its own
    delivery_timeout_seconds: float = 30.0


class BatchConfig(Section):
    size: int = Field(64, ge=1, le=4096)  # TCR, all published configurations
    linger_seconds: float = Field(0.25, ge=0)
    floor: int = Field(16, ge=1)  # below it answers are given and nothing is learned
    per_tenant_lanes: bool = False


class ClusterConfig(Section):
    """One alignment state per kind of query, one adapted state for all: docs/methods/clusters.md."""

    enabled: bool = True
    most: int = Field(6, ge=1, le=32)  # clusters a lane may hold
    founding: int = Field(8, ge=2)  # far queries in one batch that found a new one
    quantile: float = Field(0.95, gt=0, lt=1)  # of clean distances; farther than this from all is far
    layers: tuple[int, ...] = (0, 2)  # the BatchNorms whose inputs tell the style


class AlignConfig(Section):
    enabled: bool = True
    strength: float = Field(0.5, ge=0, le=1)  # k of BN-rel, docs/methods/alignment.md
    forgetting: float = Field(0.8, ge=0, lt=1)
    neighbours: int = Field(5, ge=1)
    temperature: float = Field(0.05, gt=0)
    shrink: tuple[float, float] = (0.35, 0.6)  # total variation where content matching starts and is full
    matched: bool = True
    passes: Literal[1, 2] = 1  # 2: content is matched again on the aligned features
    clusters: ClusterConfig = ClusterConfig()


class DecoupleConfig(Section):
    # D1 source_kl, D2 memory, D3 weights or subspace: docs/methods/rest.md
    reference: Literal["none", "source_kl", "memory", "weights", "subspace"] = "source_kl"
    strength: float = Field(1.0, gt=0, le=1)
    granularity: Literal["global", "tensor"] = "global"
    place: Literal["gradient", "step"] = "gradient"  # before or after the optimizer's preconditioning
    rows: int = Field(32, ge=2)  # D2: source pairs drawn for a step
    rank: int = Field(8, ge=1)  # D3 subspace: directions kept


class GuardConfig(Section):
    """Guards of any gradient method, all off by default: anchoring and fusion do better."""

    reset_every: int = Field(0, ge=0)  # updates; RDumb uses 1000
    reset_below: float = Field(0.0, ge=0)  # EMA(.9) of the loss; SAR uses .2 on its own entropy scale
    restore: float = Field(0.0, ge=0, lt=1)  # stochastic restore: CoTTA uses .01


Method = Literal[
    "frozen", "centring", "residual_centring", "training_free", "refinement", "tent", "eata", "sar",
    "read", "deyo", "shot", "tcr", "rest",
]  # fmt: skip


class AdaptConfig(Section):
    method: Method = "rest"
    preset: Literal["service", "tcr-paper"] = "service"
    steps: int = Field(1, ge=1, le=10)
    emit: Literal["before", "after", "paper"] = "before"
    learning_rate: float | None = None  # None: the base model's manifest, chosen on its training data
    temperature: float | None = None  # the same
    uniformity_scale: float = 0.1  # TCR code: exp(-t d), t = .1 multiplied
    constants: Literal["source", "queue"] = "source"
    anchor: float = Field(0.99, gt=0, le=1)  # ROID weight ensembling
    clip: float = Field(1.0, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    columns: Literal["shortlist", "full"] = "shortlist"  # softmax of tent, eata, sar, read, deyo, shot
    consistency: Literal["rem", "bidir"] = "rem"  # bidir is reconstructed, low confidence
    reliability: Literal["entropy", "flow"] = "entropy"  # weights of the queries in `rest`
    decouple: DecoupleConfig = DecoupleConfig()
    guard: GuardConfig = GuardConfig()
    align: AlignConfig = AlignConfig()


class AnswerConfig(Section):
    top: int = Field(10, ge=1, le=1000)
    shortlist: int = Field(100, ge=1, le=10000)
    fuse: Literal["none", "max", "sum", "mixture"] = "mixture"  # docs/log.md 2026-11-24
    fuse_temperature: float = Field(0.1, gt=0)  # of each twin's belief over the candidates, the same entry
    # Drop of the nearest cosine, in sd of clean ones (lower bound), where the adapted twin begins to count,
    # and counts fully; None: always. Chosen on the development suite.
    evidence: tuple[float, float] | None = (0.15, 0.75)
    rerank: bool = True


class RepairConfig(Section):
    """Misspelt words of text queries -> the gallery's vocabulary, docs/methods/repair.md."""

    enabled: bool = True
    shortest: int = Field(3, ge=1)  # shorter words are left alone
    distance: int = Field(2, ge=1, le=3)  # edits at most; one more where the words beside speak for it


class StateConfig(Section):
    store: Literal["directory", "changelog"] = "changelog"
    directory: Path = Path("qshift-data/state")
    every_batches: int = Field(4, ge=1)


class LabelConfig(Section):
    rate: float = Field(0.3, ge=0, le=1)
    key: str = "qshift"  # keyed hash: clients cannot choose what is measured; set your own
    ttl_queries: int = Field(20000, ge=1)


class LimitConfig(Section):
    text_characters: int = 2000
    image_bytes: int = 512 << 10
    image_pixels: int = 40_000_000
    message_bytes: int = 1 << 20
    reference_root: Path | None = None  # references are refused unless a root is given
    pending_queries: int = Field(4096, ge=64)  # bounded memory: polling pauses above it


class HttpConfig(Section):
    enabled: bool = True
    host: str = "127.0.0.1"
    port: int = Field(8765, ge=0, le=65535)


class Config(Section):
    base: Path = Path("qshift-data/base")
    gallery: Path = Path("qshift-data/gallery")
    seed: int = 0
    threads: int = Field(1, ge=1)  # pinned: bit-identity holds for one thread count
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    kafka: KafkaConfig = KafkaConfig()
    batch: BatchConfig = BatchConfig()
    adapt: AdaptConfig = AdaptConfig()
    answer: AnswerConfig = AnswerConfig()
    repair: RepairConfig = RepairConfig()
    state: StateConfig = StateConfig()
    labels: LabelConfig = LabelConfig()
    limits: LimitConfig = LimitConfig()
    http: HttpConfig = HttpConfig()

    def decisions(self) -> dict[str, str]:
        """A short hash of each part that changes answers or states, by name.

        Label settings are among them: they decide `label_wanted` in the answers. The key goes in hashed only.
        """
        names = ("seed", "batch", "adapt", "answer", "repair", "precision", "threads")
        texts = {name: self.model_dump_json(include={name}) for name in names}
        texts["labels"] = f"{self.labels.rate!r} {_digest(self.labels.key, 64)}"
        return {name: _digest(text, 8) for name, text in texts.items()}

    def decision_hash(self) -> str:
        """One hash of all `decisions`."""
        return _digest(" ".join(f"{name}={value}" for name, value in self.decisions().items()), 16)


def _digest(text: str, digits: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def load(path: Path | None) -> Config:
    """Reads a TOML file; None gives the defaults.

    Raises:
        ConfigError: no such file, not TOML, an unknown key or a value out of range.
    """
    values: dict[str, object] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.read_text())
        except OSError as error:
            raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path} is not TOML: {error}") from error
    address = os.environ.get("QSHIFT_BOOTSTRAP_SERVERS")
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise ConfigError(f"{path or 'configuration'}: refused\n" + "\n".join(lines)) from error
    if address:
        config = config.model_copy(
            update={"kafka": config.kafka.model_copy(update={"bootstrap_servers": address})}
        )
    return config


def load_connected(path: Path | None) -> Config:
    """As `load`, for commands that talk to a running Kafka.

    Raises:
        ConfigError: also when no Kafka is named.
    """
    config = load(path)
    if not config.kafka.bootstrap_servers:
        raise ConfigError(
            "no Kafka named: set kafka.bootstrap_servers or QSHIFT_BOOTSTRAP_SERVERS; "
            "`qshift broker up` starts one and prints its address"
        )
    return config
