"""One TOML, validated once. Unknown keys are refused; each default names its origin.

What cannot work is refused here, when it is read, and not when a query waits: numbers that are none, limits
of nothing, orders that are the wrong way round, two topics of one name.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    Field,
    model_validator,
)

from core.batching import BatchConfig as BatchConfig
from core.http import HttpConfig
from core.labels import LabelConfig
from core.milvus import MilvusConfig
from core.security import SecurityConfig
from core.settings import Layers, Location, Name, Section, Span, Topic, addresses

Role = Literal[
    "queries", "answers", "labels", "state", "journal", "dead_letters", "items", "control", "audit"
]  # fmt: skip
ROLES: tuple[Role, ...] = get_args(Role)
"""The topics of a service: each needs a name of its own."""


class KafkaConfig(Section):
    """Where Kafka is, what the topics are called, and how long a delivery may take."""

    bootstrap_servers: Annotated[str, AfterValidator(addresses)] = ""  # empty: none; the demo starts its own
    group: Name = "qshift"
    queries: Topic = "qshift.queries"
    answers: Topic = "qshift.answers"
    labels: Topic = "qshift.labels"
    state: Topic = "qshift.state"
    journal: Topic = "qshift.journal"
    dead_letters: Topic = "qshift.dead-letters"
    items: Topic = "qshift.items"
    control: Topic = "qshift.control"
    audit: Topic = "qshift.audit"
    partitions: int = Field(1, ge=1, le=10_000)
    replication_factor: int | None = Field(None, ge=1, le=100)  # None: the broker's default
    topic_settings: dict[Role, dict[str, str]] = Field({})  # beside and over ours, for topics that are made
    reset: Literal["earliest"] = "earliest"  # never a silent "latest"
    max_inflight_bytes: int = Field(32 << 20, ge=1 << 20)  # kafka-python has no bound of its own
    delivery_timeout_seconds: float = Field(30.0, ge=1, le=3600)  # a request within it has half of it
    transactions: bool = False
    security: SecurityConfig = SecurityConfig()

    @model_validator(mode="after")
    def _own_names(self) -> Self:
        """What is written to one role must not be read by another. Kafka takes a.b and a_b for one name."""
        seen: dict[str, str] = {}
        for role in ROLES:
            name = str(getattr(self, role))
            other = seen.setdefault(name.replace(".", "_"), role)
            if other != role:
                raise ValueError(f"{other} and {role} are both the topic {name!r}: each needs its own")
        return self


class ClusterConfig(Section):
    """One alignment state per kind of query, one adapted state for all: docs/methods/clusters.md."""

    enabled: bool = True
    most: int = Field(6, ge=1, le=32)  # clusters a lane may hold
    founding: int = Field(8, ge=2)  # far queries in one batch that found a new one
    quantile: float = Field(0.95, gt=0, lt=1)  # of clean distances; farther than this from all is far
    layers: Layers = (0, 2)  # the calls of a hook whose inputs tell the style


class AlignConfig(Section):
    """Alignment of channel statistics, a stage under any method: docs/methods/alignment.md."""

    enabled: bool = True
    # None: .5 at BatchNorm, 1 at LayerNorm; k of BN-rel, docs/methods/alignment.md
    strength: float | None = Field(None, ge=0, le=1)
    # None: .8 at BatchNorm, .3 at LayerNorm, where a batch has tokens enough: docs/methods/layernorm.md
    forgetting: float | None = Field(None, ge=0, lt=1)
    neighbours: int = Field(5, ge=1)
    temperature: float = Field(0.05, gt=0)
    shrink: Span = (0.35, 0.6)  # total variation where content matching starts and is full
    matched: bool | None = None  # None: at BatchNorm alone, where shifted content still looks like itself
    passes: Literal[1, 2] = 1  # 2: content is matched again on the aligned features
    clusters: ClusterConfig = ClusterConfig()

    def settled(self, layer_norm: bool) -> AlignSettings:
        """With what is left open decided by the kind of the tower's normalisation layers."""
        chosen = {name: value for name, value in self if value is not None}
        return AlignSettings(**{**(LAYER_NORM if layer_norm else {}), **chosen})


class AlignSettings(AlignConfig):
    """Nothing is left open. The defaults are those at BatchNorm."""

    strength: float = Field(0.5, ge=0, le=1)
    forgetting: float = Field(0.8, ge=0, lt=1)
    matched: bool = True


LAYER_NORM: dict[str, Any] = {"strength": 1.0, "forgetting": 0.3, "matched": False}


class DecoupleConfig(Section):
    """What the gradient of `rest` must not undo, and how it is kept from it."""

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


METHODS = (
    "frozen", "centring", "residual_centring", "training_free", "refinement", "tent", "eata", "sar",
    "read", "deyo", "shot", "neo", "foa-shift", "uca", "cliptta", "uatta", "tcr", "rest",
)  # fmt: skip
OWN_METHOD = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
"""module:Class, a method of the user's own; see `adapters.online.own`."""


def method(name: str) -> str:
    """One of ours, or a class of the user's; raises ValueError for anything else."""
    if name not in METHODS and not OWN_METHOD.fullmatch(name):
        raise ValueError(f"there is no method {name!r}: choose one of {', '.join(METHODS)}, or module:Class")
    return name


Method = Annotated[str, AfterValidator(method)]
LEARNING = (
    "steps", "answer_from", "learning_rate", "temperature", "uniformity_scale", "constants", "anchor", "clip",
    "weight_decay", "columns", "consistency", "reliability", "decouple", "guard", "when_behind",
)  # fmt: skip
"""Settings of `adapt` that only methods with gradients hear."""


class AdaptConfig(Section):
    """The method, and what it learns by."""

    method: Method | None = None  # None: as the base model says, by modality
    preset: Literal["service", "tcr-paper"] = "service"
    steps: int = Field(1, ge=1, le=10)
    answer_from: Literal["before", "after", "paper"] = "before"
    when_behind: Literal["learn", "skip"] = "learn"
    # None: the base model's manifest, chosen on its training data; the same for the temperature
    learning_rate: float | None = Field(None, gt=0, le=1)
    temperature: float | None = Field(None, gt=0)
    uniformity_scale: float = Field(0.1, gt=0)  # TCR code: exp(-t d), t = .1 multiplied
    constants: Literal["source", "queue"] = "source"
    anchor: float = Field(0.99, gt=0, le=1)  # ROID weight ensembling
    clip: float = Field(1.0, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    columns: Literal["shortlist", "full"] = "shortlist"  # softmax of the peers of TCR
    consistency: Literal["rem", "bidir"] = "rem"  # bidir is reconstructed, low confidence
    reliability: Literal["entropy", "flow"] = "entropy"  # weights of the queries in `rest`
    decouple: DecoupleConfig = DecoupleConfig()
    guard: GuardConfig = GuardConfig()
    align: AlignConfig = AlignConfig()


IndexKind = Literal["flat", "ivf", "hnsw", "multi-hash", "milvus", "milvus-ivf"]

SERVED: tuple[IndexKind, ...] = ("milvus", "milvus-ivf")
"""Kinds that a server searches: exactly (BIN_FLAT), or in the nearest groups (BIN_IVF_FLAT)."""


class AnswerConfig(Section):
    """How many items are compared and served, and how the twins are fused."""

    top: int = Field(10, ge=1, le=1000)
    shortlist: int = Field(100, ge=1, le=10000)
    fuse: Literal["none", "max", "sum", "mixture"] = "mixture"  # docs/lab/log.md 2026-11-24
    fuse_temperature: float = Field(0.1, gt=0)  # of each twin's belief over the candidates, the same entry
    # Drop of the nearest cosine, in sd of clean ones (lower bound), where the adapted twin begins to count,
    # and counts fully; None: always. Chosen on the development suite.
    evidence: Span | None = (0.15, 0.75)
    rerank: bool = True
    index: IndexKind = "flat"  # most others look at a part of 10,000 items or more
    effort: int | None = Field(None, ge=1, le=1 << 20)  # None: what `index` does by default
    # Share of the queries that the frozen twin is still asked for under a strong shift that has lasted, never
    # less than labels.rate; 1: all. docs/lab/log.md 2026-11-30
    frozen_share: float = Field(0.3, ge=0, le=1)

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.top > self.shortlist:
            raise ValueError(
                f"answers of {self.top} are taken from a shortlist of {self.shortlist}: raise "
                "answer.shortlist or lower answer.top"
            )
        return self


class RepairConfig(Section):
    """Misspelt words of text queries -> the gallery's vocabulary, docs/methods/repair.md."""

    enabled: bool = True
    shortest: int = Field(3, ge=1)  # shorter words are left alone
    distance: int = Field(2, ge=1, le=3)  # edits at most; one more where the words beside speak for it


class StateConfig(Section):
    """Where checkpoints go, and how many batches apart they are."""

    store: Literal["directory", "changelog"] = "changelog"
    directory: Location = Path("qshift-data/state")
    every_batches: int = Field(4, ge=1, le=100_000)
    accept_loss: bool = False  # `--accept-loss`, for one start: what contradicts itself is given up


class CheckpointConfig(Section):
    """Which states of a lane a command can go back to: docs/how-to/control.md."""

    keep: int = Field(3, ge=0, le=64)  # each as large as a lane's state, and part of every checkpoint
    every_batches: int = Field(64, ge=1, le=1_000_000)  # of a lane; also before a reset, and on command


class LimitConfig(Section):
    """What a stranger's query may cost in bytes, pixels and memory."""

    text_characters: int = Field(2000, ge=1)
    image_bytes: int = Field(512 << 10, ge=1)
    image_pixels: int = Field(1 << 24, ge=1)  # 4096 x 4096; towers see a few hundred a side
    decoders: int = Field(1, ge=1, le=64)  # processes that decode pictures, each with up to 4 such in memory
    decode_seconds: float = Field(10.0, gt=0, le=600)  # the largest picture taken needs half of one
    message_bytes: int = Field(1 << 20, ge=1, le=1 << 30)  # Kafka counts bytes in 32 bits
    reference_root: Location | None = None  # references are refused unless a root is given
    pending_queries: int = Field(4096, ge=64)  # bounded memory: polling pauses above it


class Config(Section):
    """Everything that can be set, a section for each part; unknown keys are refused."""

    base: Location = Path("qshift-data/base")
    gallery: Location = Path("qshift-data/gallery")
    seed: int = Field(0, ge=0, lt=1 << 63)
    threads: int = Field(1, ge=1, le=1024)  # pinned: bit-identity holds for one thread count
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    kafka: KafkaConfig = KafkaConfig()
    batch: BatchConfig = BatchConfig()
    adapt: AdaptConfig = AdaptConfig()
    answer: AnswerConfig = AnswerConfig()
    milvus: MilvusConfig = MilvusConfig()
    repair: RepairConfig = RepairConfig()
    state: StateConfig = StateConfig()
    checkpoints: CheckpointConfig = CheckpointConfig()
    labels: LabelConfig = LabelConfig()
    limits: LimitConfig = LimitConfig()
    http: HttpConfig = HttpConfig()

    @model_validator(mode="after")
    def _room(self) -> Self:
        if self.limits.pending_queries < self.batch.size:
            raise ValueError(
                f"polling pauses at {self.limits.pending_queries} waiting queries, before a batch of "
                f"{self.batch.size} is full: raise limits.pending_queries or lower batch.size"
            )
        return self

    @model_validator(mode="after")
    def _present(self) -> Self:
        if self.labels.steer and self.batch.live_lanes:
            raise ValueError(
                "labels.steer holds each label against every lane of its partition, so that none may be put "
                "away: leave batch.live_lanes out (no bound then), or set labels.steer to false"
            )
        return self

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.kafka.transactions and self.state.store != "changelog":
            raise ValueError(
                "kafka.transactions commits answers and state together, and a folder takes no part in that: "
                'set state.store to "changelog", or kafka.transactions to false'
            )
        return self

    @model_validator(mode="after")
    def _served(self) -> Self:
        index = self.answer.index
        if index in SERVED and not self.milvus.address:
            raise ValueError(f'answer.index is "{index}", and milvus.address names no server: set it')
        if index == "milvus-ivf" and self.milvus.embedded:
            raise ValueError(
                'an embedded Milvus has no BIN_IVF_FLAT: set answer.index to "milvus", or milvus.address to '
                "a server"
            )
        return self

    @model_validator(mode="after")
    def _heard(self) -> Self:
        """Where the base decides, nothing may learn: no setting of learning is passed over in silence."""
        adapt, usual = self.adapt, AdaptConfig()
        if adapt.method is None and adapt.preset == "service":
            for name in LEARNING:
                if getattr(adapt, name) != getattr(usual, name):
                    raise ValueError(
                        f"adapt.{name} is set and adapt.method is not, so that the base decides whether "
                        'anything learns: set adapt.method ("rest" was the default of 0.2)'
                    )
        return self

    def decisions(self) -> dict[str, str]:
        """A short hash of each part that changes answers or states, by name.

        Label settings are among them: they decide `label_wanted` in the answers. The key goes in hashed only.
        """
        names = ("seed", "batch", "adapt", "answer", "repair", "precision", "threads")
        # What is off by default stays what it was before there was a setting; what the journal says of each
        # batch, and where a state lies, decides nothing that is repeated.
        unset = {"adapt": {"when_behind"}, "batch": {"live_lanes", "lone_seconds"}}
        if self.answer.frozen_share == 1:
            unset["answer"] = {"frozen_share"}
        texts = {name: self.model_dump_json(include={name}, exclude=unset) for name in names}
        steer = " steer" if self.labels.steer else ""  # what labels do by default stays what it was
        texts["labels"] = f"{self.labels.rate!r} {_digest(self.labels.key, 64)}{steer}"
        return {name: _digest(text, 8) for name, text in texts.items()}

    def decision_hash(self) -> str:
        """One hash of all `decisions`."""
        return _digest(" ".join(f"{name}={value}" for name, value in self.decisions().items()), 16)


def _digest(text: str, digits: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:digits]
