"""`[http]`: the process that shows metrics and the live page, and who may look."""

from __future__ import annotations

from pydantic import Field

from core.settings import Location, Name, Section


class HttpConfig(Section):
    """The process that shows metrics and the live page."""

    enabled: bool = True
    host: Name = "127.0.0.1"
    port: int = Field(8765, ge=0, le=65535)
    token_file: Location | None = None  # whoever looks has to show what stands there; probes are open
    token_env: Name | None = None  # or what this variable of the environment holds
    hosts: tuple[Name, ...] = ()  # served besides this machine's local names; "*": every name
