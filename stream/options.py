"""What every client of Kafka is told of the cluster: where it is, whom to believe, who we are."""

from __future__ import annotations

import ssl
from typing import Any

from kafka.net.sasl.oauth import AbstractTokenProvider

from core.secrets import password, token
from core.security import SecurityConfig
from core.tls import tls_context
from stream.quiet import quiet


def client_options(bootstrap_servers: str, security: SecurityConfig) -> dict[str, Any]:
    """Keyword arguments that each consumer, producer and admin client is made with.

    A password is read when the client is made; certificates, keys and tokens when it connects. From now on
    the client's loggers hold their tongue: what they print at DEBUG are the bytes that it sends.

    Args:
        bootstrap_servers: host:port[,host:port].

    Raises:
        ConfigError: a file or a variable that `security` names cannot be used.
    """
    quiet()
    options: dict[str, Any] = {
        "bootstrap_servers": bootstrap_servers, "security_protocol": security.protocol,
    }  # fmt: skip
    if security.tls:
        options["ssl_context"] = _FreshContext(security)
    if security.sasl:
        options["sasl_mechanism"] = security.mechanism
        if security.mechanism == "OAUTHBEARER":
            token(security)  # what cannot be read is said now
            options["sasl_oauth_token_provider"] = _TokenFile(security)
        else:
            options["sasl_plain_username"] = _user(security)
            options["sasl_plain_password"] = password(security)
    return options


def _user(security: SecurityConfig) -> str:
    """As the mechanism spells it: the client does not escape what SCRAM parts by (RFC 5802, saslname)."""
    name = security.username or ""
    if security.mechanism == "PLAIN":
        return name
    return name.replace("=", "=3D").replace(",", "=2C")


class _FreshContext:
    """Stands where the client takes an `ssl.SSLContext`: the files count as they are at each connection.

    Certificates are renewed while the service runs. The client's own file options read them again, too, but
    cannot choose ciphers, would ask for a locked key's password on the terminal, and fail at a list of
    revoked certificates (kafka-python 3.0 gives ssl an argument that it does not have).
    """

    def __init__(self, security: SecurityConfig) -> None:
        self._security = security
        tls_context(security)  # what cannot be used is said now

    def wrap_socket(self, *arguments: Any, **options: Any) -> ssl.SSLSocket:
        return tls_context(self._security).wrap_socket(*arguments, **options)


class _TokenFile(AbstractTokenProvider):  # type: ignore[misc]
    """The token that stands in a file at each connection; who puts it there keeps it fresh."""

    def __init__(self, security: SecurityConfig) -> None:
        self._security = security

    def token(self) -> str:
        return token(self._security)

    def extensions(self) -> dict[str, str]:
        return dict(pair.split("=", 1) for pair in self._security.extensions)
