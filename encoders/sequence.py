"""Queries of a short clip: the mean of the frames' unit features, at unit length.

Mean pooling over frames is the parameter-free baseline of video retrieval (CLIP4Clip, arXiv 2104.08860,
section 3.3). A clip of one frame is a picture query.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from core.errors import ConfigError, Refused
from core.hooks import HookPoints
from core.protocols import Encoder
from core.types import Modality
from encoders.composed import united
from encoders.rows import check_rows

if TYPE_CHECKING:
    from core.protocols import Affine, Hook, Params

FRAMES = 32
"""Longest clip; the message takes no more either."""


class Frames(NamedTuple):
    """One input of R rows: the frames of all clips in one flat batch [F], and whose they are."""

    inputs: Any
    frame: Tensor
    """[P] index into the flat batch, and in `row` [P] the row it counts for."""
    row: Tensor
    shown: Tensor
    """[R] the frame of each row that a hook is shown."""

    def owner(self, frames: int) -> Tensor:
        """[F] the row of each frame in the flat batch; padding, which repeats a frame, owns none."""
        found = torch.zeros(frames, dtype=torch.long)
        found[self.frame.cpu().flip(0)] = self.row.cpu().flip(0)
        return found


MOST = 8
"""Frames of a clip that are looked at unless told otherwise."""


class FrameSequence:
    """Clips of different length -> unit features; adapts what the encoder of the frames adapts.

    A hook is called with **one frame per row**, [R, C, ...] and not [F, C, ...]: rows, masks and styles mean
    the same as for pictures, and alignment needs to know nothing about clips. The frame shown of row r is
    r modulo the clip's length, so that a batch shows all positions; what is moved are all frames.

    Args:
        frames: encoder of one frame, pictures or vectors.
        most: frames encoded of a clip; of a longer one the middles of so many equal stretches are taken, and
            the rest is not looked at. A batch holds up to `most` times as many pictures as queries, forward
            and backward: take all 32 with a smaller batch.

    Raises:
        ConfigError: `most` out of range.
    """

    def __init__(self, frames: Encoder, most: int = MOST) -> None:
        if not 1 <= most <= FRAMES:
            raise ConfigError(f"{most} frames of a clip: expected 1 to {FRAMES}")
        self._frames, self._most = frames, most

    @property
    def modality(self) -> Modality:
        return "sequence"

    @property
    def width(self) -> int:
        return self._frames.width

    def prepare(self, content: Any) -> tuple[Any, ...]:
        """1 to 32 frames, each as its own encoder takes it. Raises Refused, naming the frame."""
        if isinstance(content, str | bytes) or not hasattr(content, "__len__"):
            raise Refused("validate", f"expected a sequence of frames, got {type(content).__name__}")
        count = len(content)
        if not 1 <= count <= FRAMES:
            raise Refused("validate", f"expected 1 to {FRAMES} frames, got {count}")
        return tuple(self._prepared(content[number], number, count) for number in spread(count, self._most))

    def _prepared(self, frame: Any, number: int, count: int) -> Any:
        try:
            return self._frames.prepare(frame)
        except Refused as refused:
            raise Refused(refused.stage, f"frame {number + 1} of {count}: {refused.reason}") from refused

    def collate(self, prepared: Sequence[tuple[Any, ...]], rows: int) -> Frames:
        """All frames behind each other; added rows repeat the last frame without encoding it again."""
        check_rows(len(prepared), rows, "clips")
        flat = [frame for clip in prepared for frame in clip]
        frame = list(range(len(flat)))
        row: list[int] = []
        shown: list[int] = []
        for number, clip in enumerate(prepared):
            shown.append(len(row) + number % len(clip))
            row += [number] * len(clip)
        padding = range(len(prepared), rows)
        last = max(len(flat) - 1, 0)
        frame += [last] * len(padding)
        row += padding
        shown += [last] * len(padding)
        inputs = self._frames.collate(flat, max(len(flat), 1) if rows else 0)
        return Frames(inputs, *(torch.tensor(part, dtype=torch.long) for part in (frame, row, shown)))

    def encode(self, inputs: Frames, params: Params | None = None, hook: Hook | None = None) -> Tensor:
        """Unit float32 features [rows, D]; parameters and their errors are those of the frames' encoder."""
        shown = inputs.shown

        def one_a_row(layer: int, entering: Tensor) -> Affine | None:
            move = None if hook is None else hook(layer, entering[shown.to(entering.device)])
            if move is None or move[0].ndim == 1:
                return move
            owner = inputs.owner(len(entering)).to(entering.device)  # every frame moves as its row does
            return move[0][owner], move[1][owner]

        features = self._frames.encode(inputs.inputs, params, None if hook is None else one_a_row)
        frame, row = inputs.frame.to(features.device), inputs.row.to(features.device)
        rows = len(shown)
        summed = features.new_zeros((rows, self.width)).index_add(0, row, features[frame])
        lengths = torch.bincount(row, minlength=rows)
        first = frame[lengths.cumsum(0) - lengths]
        return united(summed / lengths[:, None], features[first])

    def adaptable(self) -> dict[str, Tensor]:
        return self._frames.adaptable()

    def hook_points(self) -> HookPoints:
        """Of the frames' tower."""
        return self._frames.hook_points()


def spread(count: int, most: int) -> list[int]:
    """Which frames of a clip are taken: all, or the middles of `most` equal stretches."""
    if count <= most:
        return list(range(count))
    return [(2 * number + 1) * count // (2 * most) for number in range(most)]
