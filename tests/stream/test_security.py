"""What clients of Kafka are told of a secured one, that each is told, and what refusals mean."""

from __future__ import annotations

import ast
import logging
import socket
import threading
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority, needs_openssl
from kafka import errors as kafka_errors
from kafka.protocol.parser import KafkaProtocol
from kafka.protocol.sasl import SaslAuthenticateRequest

from core.config import KafkaConfig
from core.errors import BrokerError, ConfigError
from core.security import OPEN, SecurityConfig
from stream.handshake import introduce
from stream.options import client_options
from stream.rights import WRITE, check_rights, said, topic_rights

ROOT = Path(__file__).parents[2]
CLIENTS = {"KafkaConsumer", "KafkaProducer", "KafkaAdminClient", "KafkaNetClient"}
OWN = {"ensure_topics", "message_limits", "read_all", "KafkaLog", "TopicLog", "granted"}
"""Ours that take a `SecurityConfig` beside an address."""
EMBEDDED = "stream/broker.py"
"""Asks the broker that it has started, by the door that is open to its own machine."""
FORWARDED = {"shared", "config", "options"}
"""What `**` may stand before besides `client_options(...)`: it came from there."""


@cache
def calls() -> list[tuple[str, ast.Call]]:
    paths = [path for name in ("stream", "qshift") for path in sorted((ROOT / name).rglob("*.py"))]
    return [
        (str(path.relative_to(ROOT)), node)
        for path in paths
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
    ]


def test_no_client_is_made_without_the_options() -> None:
    seen = set()
    for path, call in calls():
        first = [argument.id for argument in call.args if isinstance(argument, ast.Name)]
        made = CLIENTS & {ast.unparse(call.func), *first}
        if not made or path == EMBEDDED:
            continue
        seen |= made
        spread = [ast.unparse(one.value) for one in call.keywords if one.arg is None]
        assert any(one.startswith("client_options(") or one in FORWARDED for one in spread), (
            path,
            call.lineno,
        )
    assert seen == CLIENTS


def test_nothing_of_ours_that_connects_is_called_without_security() -> None:
    seen = set()
    for path, call in calls():
        name = ast.unparse(call.func)
        if name in OWN:
            seen.add(name)
            given = [*call.args, *(one.value for one in call.keywords)]
            assert any("security" in ast.unparse(one) for one in given), (path, call.lineno, name)
    assert seen == OWN


# -- options --------------------------------------------------------------------------------------------


def secured(**settings: Any) -> SecurityConfig:
    return SecurityConfig.model_validate(settings)


def test_without_a_lock_the_address_is_all() -> None:
    assert client_options("k:1", OPEN) == {"bootstrap_servers": "k:1", "security_protocol": "PLAINTEXT"}


def test_users_are_spelt_as_their_mechanism_wants(tmp_path: Path) -> None:
    (tmp_path / "p").write_text("geheim\n")
    for mechanism, user in (("PLAIN", "a=b,c"), ("SCRAM-SHA-256", "a=3Db=2Cc")):
        found = client_options("k:1", secured(
            protocol="SASL_PLAINTEXT", mechanism=mechanism, username="a=b,c", password_file=tmp_path / "p"
        ))  # fmt: skip
        assert found == {
            "bootstrap_servers": "k:1", "security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": mechanism,
            "sasl_plain_username": user, "sasl_plain_password": "geheim",
        }  # fmt: skip


def test_a_token_is_read_at_each_connection(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_text("first")
    provider = client_options("k:1", secured(
        protocol="SASL_PLAINTEXT", mechanism="OAUTHBEARER", token_file=path, extensions=["a=1", "b=x=y"]
    ))["sasl_oauth_token_provider"]  # fmt: skip
    assert provider.token() == "first" and provider.extensions() == {"a": "1", "b": "x=y"}
    path.write_text("second")
    assert provider.token() == "second"
    assert "second" not in repr(provider)


@needs_openssl
def test_certificates_are_read_at_each_connection(tmp_path: Path) -> None:
    authority = Authority.made(tmp_path / "ca")
    own = tmp_path / "own.pem"
    authority.sign("one")
    own.write_bytes(authority.store("one").read_bytes())
    context = client_options("k:1", secured(protocol="SSL", ca_file=authority.file, cert_file=own))[
        "ssl_context"
    ]
    left, right = socket.socketpair()
    with left, right:
        context.wrap_socket(left, server_hostname="k", do_handshake_on_connect=False).close()
    own.write_text("renewed halfway")
    left, right = socket.socketpair()
    with left, right, pytest.raises(ConfigError, match="holds no certificate"):
        context.wrap_socket(left, server_hostname="k", do_handshake_on_connect=False)


# -- handshake ------------------------------------------------------------------------------------------


def test_nobody_there_is_waited_for_by_the_client(tmp_path: Path) -> None:
    (tmp_path / "p").write_text("geheim")
    security = secured(
        protocol="SASL_PLAINTEXT", mechanism="PLAIN", username="u", password_file=tmp_path / "p"
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = f"127.0.0.1:{server.getsockname()[1]}"
    introduce(closed, security)
    introduce("127.0.0.1:1,[::1]:1", OPEN)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n", b"\0\0\0\x05\0\0\0\x01\0"])
def test_who_speaks_otherwise_is_named(tmp_path: Path, answer: bytes) -> None:
    """Hangs up, is no Kafka, or is cut off; a second address, where nobody is, changes nothing."""
    (tmp_path / "p").write_text("geheim")
    security = secured(
        protocol="SASL_PLAINTEXT", mechanism="PLAIN", username="u", password_file=tmp_path / "p"
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def hang_up() -> None:
            line, _ = server.accept()
            line.recv(1000)
            line.sendall(answer)
            line.close()

        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        began = time.monotonic()
        with pytest.raises(BrokerError, match=f"Kafka at 127.0.0.1:{port} hangs up") as refused:
            introduce(f"127.0.0.1:{port},127.0.0.1:1", security)
        assert time.monotonic() - began < 5 and "geheim" not in str(refused.value)
        thread.join(5)


# -- rights ---------------------------------------------------------------------------------------------


def described(kafka: KafkaConfig, changelog: bool) -> list[dict[str, Any]]:
    """Topics as Kafka describes them to one who may do exactly what is needed."""
    return [
        {
            "name": name,
            "error_code": 0,
            "authorized_operations": sorted({"DESCRIBE", *map(str.upper, rights)}),
        }
        for name, rights in topic_rights(kafka, changelog).items()
    ]


MAY_READ = {"error": None, "authorized_operations": ["READ", "DESCRIBE"]}


def test_what_is_needed_is_enough_and_nothing_less() -> None:
    kafka = KafkaConfig(security=OPEN)
    for changelog in (True, False):
        check_rights(described(kafka, changelog), MAY_READ, kafka, changelog)
        for number, (name, rights) in enumerate(topic_rights(kafka, changelog).items()):
            for right in rights:
                less = described(kafka, changelog)
                less[number]["authorized_operations"].remove(right.upper())
                with pytest.raises(BrokerError, match=f": {right} on the topic {name};"):
                    check_rights(less, MAY_READ, kafka, changelog)
    less = described(kafka, True)
    less[0] |= {"error_code": 29, "authorized_operations": None}
    less[2]["authorized_operations"] = []
    with pytest.raises(BrokerError) as refused:
        check_rights(less, None, kafka, True)
    assert "this client: Read on the topic qshift.queries, Write on the topic qshift.answers, Read on the " \
        "group qshift; let" in str(refused.value)  # fmt: skip


def test_what_kafka_does_not_say_counts_as_allowed() -> None:
    kafka = KafkaConfig()
    silent = [{**topic, "authorized_operations": None} for topic in described(kafka, True)]
    absent = {"error": "[Error 69] GroupIdNotFoundError", "authorized_operations": []}
    check_rights(silent, {}, kafka, True)
    check_rights(silent, absent, kafka, True)


def test_a_refusal_names_topic_and_right_and_another_error_stays_as_it_is() -> None:
    for named in ({"t"}, "t"):
        error = kafka_errors.TopicAuthorizationFailedError(named)
        assert "the user u: Write on the topic t; let" in said(error, WRITE, "u")
    assert "Read on the group" in said(kafka_errors.GroupAuthorizationFailedError("g"), WRITE)
    assert said(kafka_errors.KafkaTimeoutError("x"), WRITE) == repr(kafka_errors.KafkaTimeoutError("x"))


# -- what is logged -------------------------------------------------------------------------------------


def test_whoever_has_a_password_has_a_quiet_client(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client prints what it sends at DEBUG: PLAIN sends the password itself."""
    monkeypatch.setattr(logging.getLogger("kafka"), "level", logging.DEBUG)
    caplog.set_level(logging.DEBUG)
    (tmp_path / "p").write_text("geheim")
    client_options("k:1", secured(
        protocol="SASL_SSL", mechanism="PLAIN", username="u", password_file=tmp_path / "p"
    ))  # fmt: skip
    protocol = KafkaProtocol(client_id="t")
    protocol.send_request(SaslAuthenticateRequest(b"\0u\0geheim", version=0))
    assert b"geheim" in protocol.send_bytes()
    assert "geheim" not in caplog.text
