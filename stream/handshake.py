"""Says at the start, in one sentence, why a secured Kafka does not let us in.

The client would try again for ever: it takes a refused certificate for a broken line, and loses what a broker
says before it hangs up, which is why it refuses a user. So each address is asked once, in plain blocking
steps: TLS, versions, then mechanism and proof.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Callable
from typing import Any

from kafka.errors import KafkaError, for_code
from kafka.net.sasl import get_sasl_mechanism
from kafka.protocol.metadata import ApiVersionsRequest, MetadataRequest
from kafka.protocol.parser import KafkaProtocol
from kafka.protocol.sasl import SaslAuthenticateRequest, SaslHandshakeRequest

from core.errors import BrokerError
from core.security import SecurityConfig
from core.settings import ADDRESS
from core.tls import tls_context
from stream.options import client_options

STEP_SECONDS = 4.0
"""How long one address may take for one step."""
ANONYMOUS = (18, 19, 20, 21)
"""OpenSSL's codes of certificates that nobody whom we believe has signed (X509_V_ERR_*)."""
HOST = (62, 64)
NO_CRL, CRL_OLD, REVOKED = 3, 12, 23


class Away(Exception):
    """Nobody is there, or somebody says nothing: the client may wait for that."""


def introduce(bootstrap_servers: str, security: SecurityConfig) -> None:
    """Returns when one of the addresses lets us in, or none can be asked now.

    Raises:
        BrokerError: an address refuses us, or we do not believe it, and no other lets us in.
        ConfigError: a file or a variable that `security` names cannot be used.
    """
    if refused := refusal(bootstrap_servers, security):
        raise BrokerError(refused)


def refusal(bootstrap_servers: str, security: SecurityConfig) -> str:
    """Why the first address that does not let us in does not; "" where one does, or none can be asked now.

    Raises:
        ConfigError: as `introduce`.
    """
    options, refused = client_options(bootstrap_servers, security), ""
    for found in ADDRESS.finditer(bootstrap_servers):
        try:
            _introduce(found[1].strip("[]"), int(found[2]), security, options)
            return ""
        except BrokerError as error:
            refused = refused or str(error)
        except Away:
            continue
    return refused


def _introduce(host: str, port: int, security: SecurityConfig, options: dict[str, Any]) -> None:
    where = f"Kafka at {host}:{port}"
    try:
        line = socket.create_connection((host, port), STEP_SECONDS)
    except OSError as error:
        raise Away from error
    with line:
        if security.tls:
            line = _encrypted(line, host, where, security)
        with line:
            ask = _asker(line, where, security)
            ask(ApiVersionsRequest(version=0))
            if security.sasl:
                _proved(ask, host, where, security, options)
            else:
                ask(MetadataRequest(version=1, topics=[]))


def _encrypted(line: socket.socket, host: str, where: str, security: SecurityConfig) -> ssl.SSLSocket:
    """The line under TLS. Raises BrokerError."""
    try:
        return tls_context(security).wrap_socket(line, server_hostname=host.rstrip("."))
    except ssl.SSLCertVerificationError as error:
        raise BrokerError(f"the certificate of {where} is not accepted: {_unbelieved(error)}") from error
    except TimeoutError as error:
        raise Away from error
    except OSError as error:
        raise BrokerError(_unencrypted(error, where, security)) from error


def _unbelieved(error: ssl.SSLCertVerificationError) -> str:
    """What is wrong with the broker's certificate, and what to do."""
    said, code = error.verify_message.rstrip("."), error.verify_code
    if code in ANONYMOUS:
        return f"{said}: name the certificate of its authority in kafka.security.ca_file"
    if code in HOST:
        return f"{said}: use a name that it is made for in kafka.bootstrap_servers, or have it made anew"
    if code in (NO_CRL, CRL_OLD):
        return f"{said}: kafka.security.crl_file needs its authority's present list"
    return f"{said}: its owner has to {'replace' if code == REVOKED else 'renew'} it"


def _unencrypted(error: Exception, where: str, security: SecurityConfig) -> str:
    """Why there is no encrypted line."""
    reason = getattr(error, "reason", None) or ""
    if "CERTIFICATE_REQUIRED" in reason or ("ALERT" in reason and security.cert_file is None):
        return (
            f"{where} refuses a connection without a certificate of ours ({reason}): name one in "
            "kafka.security.cert_file and key_file, or ask for a cipher and version that it speaks"
        )
    if "ALERT" in reason:
        return (
            f"{where} refuses our certificate or our ciphers ({reason}): the certificate in "
            "kafka.security.cert_file has to be in date and signed by an authority that it believes"
        )
    return f"{where} does not speak TLS ({reason or error}): correct its port, or kafka.security.protocol"


def _asker(line: socket.socket, where: str, security: SecurityConfig) -> Callable[[Any], Any]:
    """A function that sends one request and returns its answer."""
    protocol = KafkaProtocol(client_id="qshift", receive_message_max_bytes=16 << 20)

    def ask(request: Any) -> Any:
        protocol.send_request(request)
        try:
            line.sendall(protocol.send_bytes())
            while heard := line.recv(1 << 16):
                for _, answer in protocol.receive_bytes(heard):
                    return answer
        except TimeoutError as error:
            raise Away from error
        except (OSError, KafkaError, ValueError, struct.error) as error:
            alert = isinstance(error, ssl.SSLError) and "ALERT" in (error.reason or "")
            # TLS 1.3 refuses a client's certificate only now.
            said = _unencrypted(error, where, security) if alert else _hung_up(where, security)
            raise BrokerError(said) from error
        raise BrokerError(_hung_up(where, security))

    return ask


def _hung_up(where: str, security: SecurityConfig) -> str:
    return (
        f"{where} hangs up when it is spoken to by {security.protocol}: its listener has another protocol, "
        "set kafka.security.protocol to that, or correct the port"
    )


def _proved(
    ask: Callable[[Any], Any], host: str, where: str, security: SecurityConfig, options: dict[str, Any]
) -> None:
    """Mechanism and proof. Raises BrokerError when the broker does not take them."""
    offered = ask(SaslHandshakeRequest(security.mechanism, version=1))
    if offered.error_code:
        others = ", ".join(sorted(offered.mechanisms))
        raise BrokerError(
            f"{where} does not take {security.mechanism} at this port: set kafka.security.mechanism to "
            f"{others}" if others else f"{where} takes no SASL at this port: correct kafka.security.protocol"
        )  # fmt: skip
    mechanism = get_sasl_mechanism(security.mechanism)(host=host, **options)
    while not mechanism.is_done():
        answer = ask(SaslAuthenticateRequest(mechanism.auth_bytes(), version=0))
        if answer.error_code:
            said = answer.error_message or for_code(answer.error_code).__name__
            raise BrokerError(f"{where} does not let {_who(security)} in ({said}): {_what_to_do(security)}")
        try:
            mechanism.receive(answer.auth_bytes)
        except (ValueError, KeyError) as error:
            raise BrokerError(
                f"{where} does not prove that it knows {_who(security)} ({error}): do not trust it, or "
                f"{_what_to_do(security)}"
            ) from error
    if not mechanism.is_authenticated():
        raise BrokerError(f"{where} does not let {_who(security)} in: {_what_to_do(security)}")


def _who(security: SecurityConfig) -> str:
    return "this token" if security.username is None else f"the user {security.username}"


def _what_to_do(security: SecurityConfig) -> str:
    if security.mechanism == "OAUTHBEARER":
        return "put a fresh token for this Kafka into kafka.security.token_file"
    key = "password_file" if security.password_file is not None else "password_env"
    return f"correct kafka.security.username, or the password that {key} names"
