"""The seams. Each has at least two implementations and one battery of contract tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from core.checkpoints import Checkpoint, JournalEntry, LaneStore
from core.filters import Filter
from core.hooks import HookPoints
from core.records import Judgement, Partition, Record, Refusal
from core.types import AdaptationStep, Codes, Distances, Encoded, Floats, Hits, Keys, Modality, Outcome, Twin

if TYPE_CHECKING:
    from torch import Tensor

    Params = Mapping[str, Tensor]
    Affine = tuple[Tensor, Tensor]
    """Scale > 0 and shift, [C] or [B, C] each: what a layer normalises becomes scale x + shift."""
    Hook = Callable[[int, Tensor], Affine | None]
    """Called with the index and the input [B, C, ...] of each normalisation; None leaves it as it is."""
    Hash = Callable[[Tensor, Modality], Codes]
    """Unit features [B, D] of a modality -> packed codes [B, L/8]; frozen on-line."""

Channel = Literal["answers", "dead-letters", "labels", "queries", "control", "audit"]


class Source(Protocol):
    """Records in log order. Nothing is decoded here."""

    def poll(self, budget_seconds: float) -> list[Record]:
        """Returns what is there, waiting at most the budget; [] when nothing came."""

    def assignment(self) -> frozenset[Partition]:
        """Query partitions this source reads now; may change only inside `poll`."""

    def seek(self, partition: Partition, offset: int) -> None:
        """Continues a partition at an offset. Raises OffsetGoneError when the log starts later."""

    def pause(self, paused: bool) -> None:
        """While paused, `poll` keeps the source alive and brings no queries."""

    def commit(self, offsets: Mapping[Partition, int], metadata: str = "") -> None:
        """Tells the log how far this reader is. Only after the state that covers it is durable.

        Raises:
            PartitionsLost, NameTaken: as `confirm`. A commit that cannot be made now is left to the next one.
        """

    def confirm(self, offsets: Mapping[Partition, int | None], metadata: str = "") -> None:
        """Returns when the group has just said that this reader still owns the partitions.

        A commit does that, so it says once more what is committed (None: nothing was read yet).

        Raises:
            PartitionsLost: they are, or may be, another's: nothing more may be sent for them.
            DeliveryError: the group does not answer.
            NameTaken: another reader goes by our name.
        """

    def committed(self, partition: Partition) -> tuple[int, str] | None:
        """Offset and metadata of the group's last commit. Raises DeliveryError when nobody answers."""

    def lag(self) -> Mapping[Partition, int]:
        """Records known to be in the log and not yet polled, without asking; {} where nobody else writes."""

    def log_id(self) -> str:
        """What tells the log of the queries from another of its name; "" where nothing does."""

    def generation(self) -> int:
        """Number of the group's assignment; a state of a lower one than was seen is void. 0 off line."""

    @property
    def exhausted(self) -> bool:
        """True when no record will ever come again (replay, memory); always False for a live log."""

    def close(self) -> None: ...


class Sink(Protocol):
    """Where records go."""

    def send(
        self, channel: Channel, value: bytes, key: bytes | None, headers: Sequence[tuple[str, bytes]] = ()
    ) -> None:
        """Takes one record; may block while too many bytes are not acknowledged.

        Raises Refused when its topic does not take so large a record, which is never said of a dead letter.
        """

    def flush(self, budget_seconds: float) -> None:
        """Returns when every record so far is durable; raises DeliveryError otherwise."""

    def close(self) -> None: ...


class StateStore(LaneStore, Protocol):
    """Checkpoints, states of single lanes, and the journal of batch boundaries."""

    @property
    def place(self) -> str:
        """Where the checkpoints lie, in words: a topic or a folder."""

    def save(self, checkpoint: Checkpoint) -> None:
        """Makes the checkpoint durable. A torn write never hides the previous one."""

    def load(self, partition: Partition) -> Checkpoint | None:
        """The newest whole checkpoint, or None. Raises ArtifactError when some are there, none whole."""

    def journal(self, entry: JournalEntry) -> None:
        """Makes a boundary durable before the batch is answered."""

    def journalled(self, partition: Partition, since: Mapping[str, int]) -> list[JournalEntry]:
        """Entries with seq >= since[lane] (0 for lanes not named), oldest first, one per (lane, seq)."""

    def close(self) -> None: ...


class Encoder(Protocol):
    """Raw queries of one modality -> unit features. Stateless: parameters come with the call."""

    @property
    def modality(self) -> Modality: ...

    @property
    def width(self) -> int: ...

    def prepare(self, content: Any) -> Any:
        """Decodes and validates one content. Raises Refused; what it returns can be collated."""

    def collate(self, prepared: Sequence[Any], rows: int) -> Any:
        """One input of `rows` >= len(prepared) rows; the rows added are harmless padding."""

    def encode(self, inputs: Any, params: Params | None = None, hook: Hook | None = None) -> Tensor:
        """Unit float32 features [rows, D]; `params` replaces adaptable tensors, None = source values."""

    def adaptable(self) -> dict[str, Tensor]:
        """Source values of the adaptable tensors (norm affine), by full parameter name, float32, detached."""

    def hook_points(self) -> HookPoints:
        """Where `encode` calls a hook."""


class Gallery(Protocol):
    """One version of a searchable gallery. Keys are stable int64; positions are 0..N-1."""

    @property
    def version(self) -> str: ...

    @property
    def bits(self) -> int: ...

    def __len__(self) -> int: ...

    def search(self, codes: Codes, k: int, allowed: Keys | None = None) -> Hits:
        """K nearest by Hamming distance, ties by key. Raises GalleryError on a wrong code width."""

    def allowed(self, wanted: Filter) -> Keys:
        """Keys [n] of the items that a filter lets through, ascending: what `search` may be limited to."""

    def distances(self, codes: Codes) -> Distances:
        """Distances [B, N] to every item, in position order: for judging and for small galleries."""

    def features(self, keys: Keys) -> Floats:
        """Unit features of keys [...] -> [..., D]; rows of key -1 are zero."""

    def carriers(self, label: str) -> NDArray[np.int64]:
        """Positions of the items that carry the label, ascending."""

    def codes_of(self, keys: Keys) -> Codes:
        """Codes of keys [...] -> [..., L/8]; rows of key -1 are zero."""

    def identifier(self, key: int) -> str: ...
    def labels_of(self, key: int) -> tuple[str, ...]: ...

    def keys(self) -> Keys:
        """[N] in position order."""


class Fusion(Protocol):
    """What is answered from the shortlists of both twins."""

    def twin(
        self, gallery: Gallery, seen: Encoded, hits: Hits, among: Hits | None = None, top: int | None = None
    ) -> Twin:
        """A twin, and what it answers by itself: from `among` or all its `hits`, `top` items or as usual."""

    def together(
        self, gallery: Gallery, modality: Modality, frozen: Twin, adapted: Twin, repaired: NDArray[np.bool_],
        correct: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None = None,
    ) -> tuple[Hits, Floats]:  # fmt: skip
        """What is served, as wide as theirs; the adapted one's weights [B], `correct`ed; `repaired` [B]."""

    def quiet(self, gallery: Gallery, modality: Modality, frozen: Twin, repaired: NDArray[np.bool_]) -> bool:
        """Whether the frozen side shows so little of a shift that the adapted twin's weight will be 0."""


class Pass(Protocol):
    """What an adapter sees of a batch. Rows are padded. What a method does not call costs nothing."""

    @property
    def mask(self) -> Tensor:
        """[B] True where a row is a query."""

    @property
    def source(self) -> Tensor:
        """[B, D] features by the frozen encoder, no grad."""

    @property
    def ids(self) -> tuple[str, ...]:
        """Coordinates of the real rows as text, in row order: keys of seeded draws and of memory slots."""

    def encode(self, params: Params, /) -> Tensor:
        """Adapted features [B, D] under given parameters, alignment included, with grad if they need it."""

    def neighbours(self, features: Tensor, /) -> Tensor:
        """[B, D] -> the 16 nearest gallery features [B, 16, D], by code then float, best first, no grad."""

    def shortlist(self, features: Tensor, /) -> Tensor:
        """[B, D] -> all features [B, K, D] of the shortlist by code, unordered; places of -1 are zero."""

    def gallery(self) -> Tensor:
        """Unit features [N, D] of the whole gallery."""

    def scrambled(self, params: Params, /) -> Tensor | None:
        """As `encode`, of pictures cut into 4 x 4 patches and shuffled (DeYO); None for other modalities."""


class Adapter(Protocol):
    """Owns what a lane has learned. One per lane."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> int:
        """Number of updates that changed the state."""

    @property
    def learns_first(self) -> bool:
        """True for `answer_from = "paper"`: update before the answer leaves."""

    def parameters(self) -> Params:
        """Tensors to encode with."""

    def transform(self, features: Tensor, batch: Pass) -> Tensor:
        """Features [B, D] to retrieve with; identity for methods that adapt parameters. Changes nothing."""

    def update(self, batch: Pass) -> tuple[AdaptationStep, Tensor | None]:
        """Learns. Also returns the features of the last inner forward (None if there was none)."""

    def snapshot(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """All state: tensors by name and JSON-able meta (parameters, moments, queue, generator)."""

    def restore(self, tensors: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        """Exactly undoes to a snapshot of the same method and configuration."""


class Aligner(Protocol):
    """Statistics alignment: a stage under any adapter. One per lane whose tower calls hooks."""

    @property
    def early(self) -> tuple[int, ...]:
        """The layers whose inputs in the frozen forward `begin` wants to see."""

    def begin(self, source: Tensor, mask: Tensor, early: Sequence[Tensor] = ()) -> Hook:
        """The hook to encode a batch with, from its frozen features [B, D], NaN: unknown. Changes nothing."""

    def again(self, done: Hook, moved: Tensor, mask: Tensor) -> Hook:
        """Starts it anew from the features [B, D] that the first pass gave (two-pass alignment)."""

    def styles(self) -> int:
        """How many kinds of query have statistics of their own."""

    def commit(self, done: Hook) -> bool:
        """Remembers a batch; False (and unchanged) when its statistics are not finite."""

    def snapshot(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]: ...

    def restore(self, tensors: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None: ...


class Observer(Protocol):
    """Sees outcomes; never touches the path."""

    def observe(self, outcome: Outcome) -> None: ...

    def judge(self, judgement: Judgement) -> None: ...

    def refuse(self, refusal: Refusal) -> None: ...
