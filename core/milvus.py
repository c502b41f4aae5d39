"""`[milvus]`: where a Milvus server is that searches the codes, and how we prove who we are."""

from __future__ import annotations

import re
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from core.security import Variable
from core.settings import Location, Name, Section

SERVER = re.compile(r"https?://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")
EMBEDDED = ".db"
"""How the file of an embedded Milvus (milvus-lite) ends."""


def place(text: str) -> str:
    """A server, or the file of an embedded one; raises ValueError for anything else, without quoting it."""
    if text and not SERVER.fullmatch(text) and (not text.endswith(EMBEDDED) or "://" in text):
        raise ValueError(
            "expected http://host:port of a Milvus server, without user and password, or a path that ends "
            "in .db of an embedded one"
        )
    return text


class MilvusConfig(Section):
    """Where `answer.index = "milvus"` finds its server: docs/how-to/large-galleries.md."""

    address: Annotated[str, AfterValidator(place)] = ""  # empty: none; no other index asks for it
    database: Name = "default"
    token_file: Location | None = None
    token_env: Variable | None = None
    timeout_seconds: float = Field(5.0, gt=0, le=300)  # of one search; then the host searches

    @model_validator(mode="before")
    @classmethod
    def _no_secret(cls, values: Any) -> Any:
        """What a refusal prints must not hold the secret: it names the key alone."""
        for key in ("token", "user", "password"):
            if isinstance(values, dict) and key in values:
                raise ValueError(
                    f"{key}: a secret does not stand in the configuration: name a file in token_file, or a "
                    "variable of the environment in token_env, that holds the token (user:password)"
                )
        return values

    @model_validator(mode="after")
    def _one_token(self) -> Self:
        if self.token_file is not None and self.token_env is not None:
            raise ValueError("token_file and token_env are both set: leave one out")
        return self

    @property
    def embedded(self) -> bool:
        """Whether it is a file, opened by this process alone."""
        return self.address.endswith(EMBEDDED) and "://" not in self.address
