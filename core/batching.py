"""How queries become batches."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from core.settings import Section


class BatchConfig(Section):
    """When the queries of a lane become a batch, and which batches are learned from."""

    size: int = Field(64, ge=1, le=4096)  # TCR, all published configurations
    linger_seconds: float = Field(0.25, ge=0, le=3600)
    lone_seconds: float = Field(0.03, ge=0, le=3600)  # log, 2026-11-30
    floor: int = Field(16, ge=1)  # below it answers are given and nothing is learned
    per_tenant_lanes: bool = False
    # None: 1,000, or no bound where labels steer
    live_lanes: int | None = Field(None, ge=0, le=1_000_000)

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.floor > self.size:
            raise ValueError(
                f"no batch of {self.size} reaches the floor of {self.floor}, nothing would be learned: raise "
                "batch.size or lower batch.floor"
            )
        return self
