"""Prompts of which some tokens are learnt: the text tower from token embeddings on.

Two traps of writing this by hand are silent: a causal mask of the wrong length, and a pooled token that is
looked up in ids which no longer match the embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from open_clip.hf_model import HFTextEncoder
from torch import Tensor, nn

from core.errors import ConfigError
from encoders.text import TextTower


class PromptTower:
    """The text tower of an encoder, entered behind its token embeddings.

    Args:
        text: its encoder; the module is shared, not copied.

    Raises:
        ConfigError: a kind of tower whose pooling is not known here.
    """

    def __init__(self, text: TextTower) -> None:
        self._text = text
        tower: Any = text.raw
        self._tower = tower
        self._bert = isinstance(tower, HFTextEncoder)
        known = self._bert or (
            getattr(tower, "pool_type", "") == "argmax"
            and getattr(tower, "cls_emb", None) is None
            and not getattr(tower, "use_pad_mask", False)
        )
        if not known:
            raise ConfigError(
                f"prompts for a CLIP or a Hugging Face text tower expected, got {type(tower).__name__}: "
                "take another model"
            )

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Ids [n, S], trimmed to the longest where the tower allows it."""
        return self._text.collate([self._text.prepare(text) for text in texts], len(texts))

    @property
    def embedding(self) -> nn.Module:
        """Ids -> embeddings [.., E]."""
        if self._bert:
            found: nn.Module = self._tower.transformer.get_input_embeddings()
        else:
            found = self._tower.token_embedding
        return found

    def encode(self, embeds: Tensor, ids: Tensor) -> Tensor:
        """Embeddings [n, S, E] of tokens -> raw features [n, width].

        Args:
            embeds: of the tokens; learnt ones stand where `ids` hold any word.
            ids: [n, S]: they say where a text ends and what is padding.
        """
        if self._bert:
            mask = (ids != self._tower.config.pad_token_id).long()
            out = self._tower.transformer(inputs_embeds=embeds, attention_mask=mask)
            features: Tensor = self._tower.proj(self._tower.pooler(out, mask))
            return features
        length = ids.shape[1]
        causal = self._tower.attn_mask
        x = embeds + self._tower.positional_embedding[:length]
        x = self._tower.transformer(x, attn_mask=None if causal is None else causal[:length, :length])
        x = self._tower.ln_final(x)[torch.arange(len(ids)), ids.argmax(1)]
        projection = self._tower.text_projection
        if projection is not None:
            x = projection(x) if isinstance(projection, nn.Module) else x @ projection
        found: Tensor = x
        return found


def template(
    tower: PromptTower, before: str, learnt: int, after: str, word: str = "x"
) -> tuple[Tensor, slice]:
    """Ids [S] of "<before> x x x x<after>", and where the `learnt` words stand.

    Raises:
        ConfigError: the tokenizer makes something else of the repeated word than one token each time.
    """
    ids = tower.tokens([f"{before}{f' {word}' * learnt}{after}"])[0]
    own = tower.tokens([word])[0][1]
    places = torch.nonzero(ids == own).flatten()
    if len(places) != learnt or int(places[-1] - places[0]) != learnt - 1:
        raise ConfigError(f"{learnt} tokens {word!r} in a row expected, got {len(places)}: take another word")
    return ids, slice(int(places[0]), int(places[-1]) + 1)
