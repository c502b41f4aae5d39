"""Secrets that sections of the configuration name, read from files or variables when needed."""

from __future__ import annotations

import os
import re
from pathlib import Path

from core.errors import ConfigError
from core.http import HttpConfig
from core.labels import LabelConfig
from core.milvus import MilvusConfig
from core.readers.places import bytes_of, shown
from core.security import SecurityConfig

KAFKA = "kafka.security"
MOST_BYTES = 64 << 10
"""Of a secret, or of a token; certificates may be a bundle."""


def password(security: SecurityConfig) -> str | None:
    """The user's; None where the configuration names none. Raises ConfigError."""
    return _secret(security.password_file, security.password_env, "password")


def key_password(security: SecurityConfig) -> str | None:
    """Of the private key; None where the configuration names none. Raises ConfigError."""
    return _secret(security.key_password_file, security.key_password_env, "key_password")


def token(security: SecurityConfig) -> str:
    """The bearer token that stands in its file now. Raises ConfigError."""
    assert security.token_file is not None  # as validated
    name = shown(security.token_file)
    found = _text(security.token_file, "token_file").strip()
    if not re.fullmatch(r"[\x21-\x7e]+", found):
        raise ConfigError(f"kafka.security.token_file: {name} holds no token: expected one line of ASCII")
    return found


def http_token(http: HttpConfig) -> str | None:
    """What HTTP clients have to show; None where the configuration names none. Raises ConfigError."""
    return _secret(http.token_file, http.token_env, "token", "http")


def milvus_token(milvus: MilvusConfig) -> str:
    """user:password, or an API key; "" where the configuration names none. Raises ConfigError."""
    return _secret(milvus.token_file, milvus.token_env, "token", "milvus") or ""


def label_key(labels: LabelConfig) -> str | None:
    """What decides which queries are measured; None where `labels.key` says it. Raises ConfigError."""
    return _secret(labels.key_file, labels.key_env, "key", "labels")


def _secret(file: Path | None, variable: str | None, key: str, of: str = KAFKA) -> str | None:
    if file is not None:
        where, found = f"{of}.{key}_file: {shown(file)}", _text(file, f"{key}_file", of)
        found = found.removesuffix("\n").removesuffix("\r")  # as an editor ends a line
    elif variable is not None:
        where = f"{of}.{key}_env: the variable"  # not its name: it may be the secret, by mistake
        found = os.environ.get(variable, "")
    else:
        return None
    if not found:
        raise ConfigError(f"{where} is not set or empty: expected the secret and nothing else")
    if "\0" in found or "\n" in found:
        raise ConfigError(f"{where} holds more than one line: expected the secret and nothing else")
    return found


def _text(file: Path, key: str, of: str = KAFKA) -> str:
    try:
        return bytes_of(file, MOST_BYTES).decode()
    except ConfigError as error:
        raise ConfigError(f"{of}.{key}: {error}") from None
    except UnicodeDecodeError:  # without its text, which quotes the secret
        raise ConfigError(f"{of}.{key}: {shown(file)} is not UTF-8") from None
