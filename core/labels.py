"""`[labels]`: which queries a label is asked for, and what labels may do."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from core.security import Variable
from core.settings import Location, Name, Section


class LabelConfig(Section):
    """Which queries a label is asked for, how long it may take to come, and what it may do."""

    rate: float = Field(0.3, ge=0, le=1)
    key: Name = "qshift"  # keyed hash: clients cannot choose what is measured; set your own
    key_file: Location | None = None  # or what stands in a file
    key_env: Variable | None = None  # or what this variable of the environment holds
    ttl_queries: int = Field(20000, ge=1)
    steer: bool = False  # who may write labels is the operator's to say; docs/lab/log.md 2026-11-30

    @model_validator(mode="after")
    def _one_key(self) -> Self:
        named = [self.key != "qshift", self.key_file is not None, self.key_env is not None]
        if sum(named) > 1:
            raise ValueError("the key comes from one of key, key_file and key_env: leave the others out")
        return self
