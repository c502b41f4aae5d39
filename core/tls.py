"""`[kafka.security]` -> what Python's ssl needs; every file is tried, and what is wrong with it is said."""

from __future__ import annotations

import os
import ssl
import time
from pathlib import Path

from core.certificates import first_in, validity
from core.errors import ConfigError
from core.readers.places import bytes_of, shown
from core.secrets import key_password
from core.security import SecurityConfig


def tls_context(security: SecurityConfig) -> ssl.SSLContext:
    """A context for connections of a client, from the files as they are now; TLS 1.2 at least.

    Raises:
        ConfigError: a file cannot be read, is none of its kind, is out of date or does not fit another.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = security.check_hostname
    _believe(context, security)
    _prove(context, security)
    if security.ciphers is not None:
        try:
            context.set_ciphers(security.ciphers)
        except ssl.SSLError:
            raise ConfigError(
                f"kafka.security.ciphers: no cipher of OpenSSL matches {shown(security.ciphers)!r}: "
                "`openssl ciphers -v` lists them"
            ) from None
    return context


def _believe(context: ssl.SSLContext, security: SecurityConfig) -> None:
    """Whom we believe: authorities, and what they have revoked."""
    if security.ca_file is None:
        context.load_default_certs()
    else:
        _load(context, security.ca_file, "ca_file")
        ends = [ssl.cert_time_to_seconds(str(one["notAfter"])) for one in context.get_ca_certs()]
        if ends and max(ends) < time.time():
            raise ConfigError(
                f"kafka.security.ca_file: {shown(security.ca_file)} expired on {_day(max(ends))}: name the "
                "authority's present certificate"
            )
    if security.crl_file is not None:
        before = context.cert_store_stats()["crl"]
        _load(context, security.crl_file, "crl_file")
        if context.cert_store_stats()["crl"] == before:
            raise ConfigError(
                f"kafka.security.crl_file: {shown(security.crl_file)} holds no list of revoked certificates"
            )
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF


def _load(context: ssl.SSLContext, path: Path, key: str) -> None:
    _read(path, key)
    try:
        context.load_verify_locations(cafile=os.fspath(path))
    except ssl.SSLError:
        raise ConfigError(
            f"kafka.security.{key}: {shown(path)} cannot be used: expected whole PEM (-----BEGIN ...)"
        ) from None


def _prove(context: ssl.SSLContext, security: SecurityConfig) -> None:
    """Who we are: certificate and private key."""
    if security.cert_file is None:
        return
    certificate, secret, asked = security.cert_file, key_password(security), []
    key = security.key_file or certificate
    found = first_in(_read(certificate, "cert_file"))
    if found is None:
        raise ConfigError(f"kafka.security.cert_file: {shown(certificate)} holds no certificate in PEM")
    _read(key, "key_file")

    def locked() -> str:  # without it OpenSSL would ask on the terminal
        if secret is None:
            raise ConfigError(
                f"the private key in {shown(key)} is locked: name its password in "
                "kafka.security.key_password_file or key_password_env"
            )
        asked.append(True)
        return secret

    try:
        context.load_cert_chain(os.fspath(certificate), os.fspath(key), locked)
    except ssl.SSLError as error:
        raise ConfigError(_misfit(error, certificate, key, bool(asked))) from None
    begins, ends = validity(found)
    if not begins <= time.time() <= ends:
        word = f"expired on {_day(ends)}" if ends < time.time() else f"is not valid before {_day(begins)}"
        raise ConfigError(
            f"kafka.security.cert_file: the certificate in {shown(certificate)} {word}: have a new one made"
        )


def _misfit(error: ssl.SSLError, certificate: Path, key: Path, locked: bool) -> str:
    """What OpenSSL's reason, of which it often has none, means for the two files."""
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"the private key in {shown(key)} is not that of the certificate in {shown(certificate)}"
    if locked:
        return (
            f"the password in kafka.security.key_password_file or key_password_env does not open {shown(key)}"
        )
    if error.reason in ("EE_KEY_TOO_SMALL", "CA_KEY_TOO_SMALL", "CA_MD_TOO_WEAK"):
        return f"the certificate in {shown(certificate)} is too weak for OpenSSL here: {error.reason}"
    return (
        f"{shown(certificate)} and {shown(key)} cannot be used: expected certificate and private key in PEM"
    )


def _read(path: Path, key: str) -> bytes:
    """Whole, so that what cannot be read is said in our words."""
    try:
        return bytes_of(path)
    except ConfigError as error:
        raise ConfigError(f"kafka.security.{key}: {error}") from None


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
