"""`[kafka.security]`: whom a client of Kafka believes, and how it proves who it is.

Secrets stand in files or in the environment. Here are only their names, so that nothing that shows, hashes or
logs a configuration can show a secret.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, model_validator

from core.settings import Location, Name, Section

SECRETS = {
    "password": "password", "key_password": "key_password", "sasl_plain_password": "password",
    "ssl_password": "key_password", "token": "token",
}  # fmt: skip
"""Keys under which somebody might write a secret, and what it is called here."""
TLS = ("ca_file", "crl_file", "ciphers", "cert_file", "key_file", "key_password_file", "key_password_env")
SASL = ("mechanism", "username", "password_file", "password_env", "token_file", "extensions")
OF_PASSWORDS = ("username", "password_file", "password_env")
OF_TOKENS = ("token_file", "extensions")


def variable(name: str) -> str:
    """A name that the environment can hold; raises ValueError for any other."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError(
            "expected the name of a variable of the environment, such as QSHIFT_KAFKA_PASSWORD; the secret "
            "itself must not stand here"
        )
    return name


def extensions(pairs: tuple[str, ...]) -> tuple[str, ...]:
    """name=value, as RFC 7628 takes them; raises ValueError for anything else."""
    for pair in pairs:
        if not re.fullmatch(r"[A-Za-z]+=[\x21-\x7e \t\r\n]+", pair) or pair.startswith("auth="):
            raise ValueError(f"{pair!r} is no extension: expected name=value, the name in letters, not auth")
    return pairs


Variable = Annotated[str, AfterValidator(variable)]
Extensions = Annotated[tuple[str, ...], AfterValidator(extensions)]


class SecurityConfig(Section):
    """Whom a client of Kafka believes, and how it proves who it is: docs/how-to/secured-kafka.md."""

    protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    ca_file: Location | None = None  # PEM; nothing: those that the system trusts
    crl_file: Location | None = None  # PEM
    check_hostname: bool = True
    ciphers: Name | None = None  # as OpenSSL writes them; nothing: the system's
    cert_file: Location | None = None  # PEM
    key_file: Location | None = None  # PEM; nothing: it stands in cert_file
    key_password_file: Location | None = None
    key_password_env: Variable | None = None
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] | None = None
    username: Name | None = None
    password_file: Location | None = None
    password_env: Variable | None = None
    token_file: Location | None = None  # read again at each connection
    extensions: Extensions = ()

    @property
    def tls(self) -> bool:
        """Whether connections are encrypted."""
        return self.protocol in ("SSL", "SASL_SSL")

    @property
    def sasl(self) -> bool:
        """Whether a user or a token says who we are."""
        return self.protocol in ("SASL_PLAINTEXT", "SASL_SSL")

    @model_validator(mode="before")
    @classmethod
    def _no_secret(cls, values: Any) -> Any:
        """What a refusal prints must not hold the secret: it names the key alone."""
        for key, name in SECRETS.items():
            if isinstance(values, dict) and key in values:
                environment = "" if name == "token" else f", or a variable of the environment in {name}_env"
                raise ValueError(
                    f"{key}: a secret does not stand in the configuration: write it into a file and name "
                    f"that in {name}_file{environment}"
                )
        return values

    @model_validator(mode="after")
    def _together(self) -> Self:
        """Each setting has something to do, and nothing is missing."""
        for ours, on, protocols in ((TLS, self.tls, "SSL or SASL_SSL"), (SASL, self.sasl, "SASL_SSL")):
            if not on and (given := self._given(ours)):
                raise ValueError(
                    f"{given[0]} is set, but protocol is {self.protocol}, which has no use for it: set "
                    f"protocol to {protocols}, or leave {given[0]} out"
                )
        if not self.tls and not self.check_hostname:
            raise ValueError(f"check_hostname is set, but protocol {self.protocol} has no certificates")
        if self.cert_file is None and (given := self._given(TLS[4:])):
            raise ValueError(f"{given[0]} is set without cert_file: name the certificate that it belongs to")
        for one, other in (("key_password_file", "key_password_env"), ("password_file", "password_env")):
            if len(self._given((one, other))) == 2:
                raise ValueError(f"{one} and {other} are both set: leave one out")
        if self.sasl:
            self._identified()
        return self

    def _identified(self) -> None:
        """Raises ValueError where the mechanism lacks something, or is given what it does not use."""
        if self.mechanism is None:
            raise ValueError(
                f"protocol {self.protocol} needs a mechanism: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or "
                "OAUTHBEARER, as the broker offers it"
            )
        by_token = self.mechanism == "OAUTHBEARER"
        if given := self._given(OF_PASSWORDS if by_token else OF_TOKENS):
            raise ValueError(f"{given[0]} is set, but mechanism {self.mechanism} does not use it")
        if by_token and self.token_file is None:
            raise ValueError("mechanism OAUTHBEARER needs token_file, which somebody else keeps fresh")
        if not by_token and (self.username is None or not self._given(OF_PASSWORDS[1:])):
            raise ValueError(f"mechanism {self.mechanism} needs username, and password_file or password_env")

    def _given(self, names: tuple[str, ...]) -> list[str]:
        return [name for name in names if getattr(self, name) not in (None, ())]


OPEN = SecurityConfig()
"""Kafka without a lock, as `qshift broker up` starts it."""
