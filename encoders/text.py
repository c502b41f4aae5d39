"""Texts as queries."""

from __future__ import annotations

import json
import logging
import threading
import unicodedata
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from core.errors import Refused
from core.readers.places import broken
from core.types import Modality
from encoders.projection import Projection
from encoders.rows import check_rows
from encoders.tower import Tower

if TYPE_CHECKING:
    from core.protocols import Hook

log = logging.getLogger("qshift.encoders")

Tokens = NDArray[np.int64]
CHARACTERS = 2000
STEP = 8  # trimmed lengths are multiples of this, so that shapes are few
_IGNORED = (
    (0x00AD, 0x00AD), (0x034F, 0x034F), (0x061C, 0x061C), (0x115F, 0x1160), (0x17B4, 0x17B5),
    (0x180B, 0x180F), (0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0x2800, 0x2800),
    (0x3164, 0x3164), (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF), (0xFFA0, 0xFFA0), (0xFFF0, 0xFFFB),
    (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF),
)  # fmt: skip
"""Joiners, direction and format marks, tags, variation selectors and fillers: Unicode's default ignorable
code points (DerivedCoreProperties), which are set aside for good, the blank of Braille, and annotation marks.

Not Python's category "C": letters newer than its tables, such as this year's emoji, are "Cn" there.
"""


def visible(text: str) -> bool:
    """Whether anything of a text can be seen: more than spaces, controls, marks and fillers."""
    return any(
        unicodedata.category(letter) not in ("Zs", "Zl", "Zp", "Cc")
        and not any(first <= ord(letter) <= last for first, last in _IGNORED)
        for letter in text
    )


class TextTower(Tower):
    """Texts -> unit features.

    Args:
        tower: token ids [B, S] -> [B, raw width].
        tokenize: texts -> ids [n, S], padded to the context length.
        pad: the padding id where columns of padding may be cut off, as nothing that counts reads them; None
            keeps all, as towers that take exactly their context length need.
        characters: longer texts are refused.
        projection, exclude, device: see `Tower`.
    """

    def __init__(
        self,
        tower: nn.Module,
        tokenize: Callable[[list[str]], Tensor],
        pad: int | None = None,
        projection: Projection | None = None,
        exclude: Sequence[str] = (),
        device: str = "cpu",
        characters: int = CHARACTERS,
    ) -> None:
        self._tokenize, self._pad, self._characters = tokenize, pad, characters
        self._tokenizing = threading.Lock()  # transformers' tokenizers raise when two threads meet in one
        self._blank: Tokens = tokenize(["a"])[0].numpy()
        self._empty: Tokens = tokenize([""])[0].numpy()
        self._cut = False
        super().__init__(tower, torch.from_numpy(self._blank)[None], projection, exclude, device)

    @property
    def modality(self) -> Modality:
        return "text"

    def prepare(self, content: Any) -> Tokens:
        """One text -> token ids [S]. Raises Refused."""
        if not isinstance(content, str):
            raise Refused("validate", f"expected a text, got {type(content).__name__}")
        if not visible(content):
            raise Refused("validate", "the text is empty: no letter of it can be seen")
        if len(content) > self._characters:
            raise Refused("validate", f"{len(content)} characters, at most {self._characters} are accepted")
        if broken(content):
            raise Refused("validate", "the text holds half of a surrogate pair: send valid Unicode")
        with self._tokenizing:
            ids: Tokens = self._tokenize([content])[0].numpy()
        if np.array_equal(ids, self._empty):
            raise Refused("validate", "the text is empty: the tower knows nothing of what it holds")
        if ids[-1] != self._empty[-1] and not self._cut:
            self._cut = True
            log.warning("a text fills what the tower reads: its end may be cut", extra={"tokens": len(ids)})
        return ids

    def collate(self, prepared: Sequence[Tokens], rows: int) -> Tensor:
        """Ids [rows, S]; added rows repeat the last text."""
        check_rows(len(prepared), rows, "texts")
        last = prepared[-1] if len(prepared) else self._blank
        ids = np.stack([*prepared, *[last] * (rows - len(prepared))]) if rows else self._blank[None][:0]
        found = torch.from_numpy(ids)
        if self._pad is not None and rows:
            found = found[:, : int(self._lengths(found).max())]
        return found.contiguous().to(self.device)

    def _run(self, inputs: Tensor, params: dict[str, Tensor], hook: Hook | None) -> Tensor:
        """Texts of one length together: a long one costs the others nothing, and they do not depend on it."""
        if self._pad is None or inputs.shape[1] <= STEP:
            return super()._run(inputs, params, hook)
        lengths = self._lengths(inputs)
        places, features = [], []
        for length in sorted(set(lengths.tolist())):
            rows = torch.nonzero(lengths == length)[:, 0]
            places.append(rows)
            features.append(super()._run(inputs[rows, :length], params, hook))
        return torch.cat(features)[torch.cat(places).argsort()]

    def _lengths(self, ids: Tensor) -> Tensor:
        """[B, S] -> tokens [B] that are read of each text, a multiple of `STEP` or all."""
        places = torch.arange(1, ids.shape[1] + 1, device=ids.device)
        longest = ((ids != self._pad) * places).amax(1).clamp(min=1)
        return (-(-longest // STEP) * STEP).clamp(max=ids.shape[1])

    def settings(self) -> str:
        # The blank row stands for the tokenizer: special tokens, vocabulary, context length.
        probe = self._tokenize(["The quick brown fox, 12 jumps"])[0].tolist()
        return json.dumps({"modality": "text", "pad": self._pad, "probe": probe}, sort_keys=True)
