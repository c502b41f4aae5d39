"""A TOML file -> a `Config`. One environment variable counts, QSHIFT_BOOTSTRAP_SERVERS, for addresses."""

from __future__ import annotations

import os
import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from core.config import Config
from core.errors import ConfigError
from core.readers.lines import text
from core.readers.places import shown
from core.security import SecurityConfig
from core.settings import addresses

RENAMED = {"adapt.emit": "adapt.answer_from"}
"""Keys of version 0.2."""


def load(path: Path | None) -> Config:
    """Reads a TOML file; None gives the defaults.

    Raises:
        ConfigError: no such file, not TOML, an unknown key, a value out of range, or a file or variable of
            `labels` that holds no key.
    """
    values: dict[str, object] = {}
    if path is not None:
        try:
            values = tomllib.loads(text(path).replace("\r\n", "\n"))
        except ConfigError as error:
            raise ConfigError(f"cannot read the configuration: {error}") from error
        except RecursionError:
            raise ConfigError(f"{shown(path)} is not TOML: nested too deeply") from None
        except ValueError as error:  # TOMLDecodeError, or a number of more than 4,300 digits
            raise ConfigError(f"{shown(path)} is not TOML: {error}") from error
    config = _keyed(_validated(values, shown(path) if path else "configuration"))
    address = os.environ.get("QSHIFT_BOOTSTRAP_SERVERS")
    if not address:
        return config
    try:
        kafka = config.kafka.model_copy(update={"bootstrap_servers": addresses(address)})
    except ValueError as error:
        raise ConfigError(f"QSHIFT_BOOTSTRAP_SERVERS: {error}") from error
    return config.model_copy(update={"kafka": kafka})


def _keyed(config: Config) -> Config:
    """With the key of labels itself: answers, states and figures depend on it, as on any setting."""
    labels = config.labels
    if labels.key_file is None and labels.key_env is None:
        return config
    from core.secrets import label_key

    changes = {"key": label_key(labels), "key_file": None, "key_env": None}
    return config.model_copy(update={"labels": labels.model_copy(update=changes)})


def _validated(values: dict[str, object], name: str) -> Config:
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        lines = []
        for fault in error.errors():
            where, message = ".".join(map(str, fault["loc"])), fault["msg"].removeprefix("Value error, ")
            if fault["type"] == "extra_forbidden":
                message = _unknown(where)
            lines.append("  " + ": ".join(filter(None, (where, message))))
        raise ConfigError(f"{name}: refused\n" + "\n".join(lines)) from error


def _unknown(key: str) -> str:
    """What to do about a key that there is not."""
    if key in RENAMED:
        return f"is called {RENAMED[key]} since version 0.3"
    *section, last = key.split(".")
    model: Any = Config
    for part in section:
        model = model.model_fields[part].annotation
    near = get_close_matches(last, model.model_fields, 1)
    return f"there is no such key{f', did you mean {near[0]}?' if near else ''}"


def load_connected(path: Path | None) -> Config:
    """As `load`, for commands that talk to a running Kafka.

    Raises:
        ConfigError: also when no Kafka is named, or a file or variable of `kafka.security` cannot be used.
    """
    config = load(path)
    if not config.kafka.bootstrap_servers:
        raise ConfigError(
            "no Kafka named: set kafka.bootstrap_servers or QSHIFT_BOOTSTRAP_SERVERS; "
            "`qshift broker up` starts one and prints its address"
        )
    _try(config.kafka.security)
    if config.http.token_file or config.http.token_env:
        from core.secrets import http_token

        http_token(config.http)
    return config


def _try(security: SecurityConfig) -> None:
    """Reads what it names: a command that waits for Kafka, or loads for minutes, must not find out later."""
    from core import secrets, tls  # ssl takes as long to import as all of --help

    if security.tls:
        tls.tls_context(security)
    if security.mechanism == "OAUTHBEARER":
        secrets.token(security)
    elif security.sasl:
        secrets.password(security)
