"""`[kafka.security]`: what goes together, where secrets stand, and which files can be used."""

from __future__ import annotations

import ssl
import time
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority, needs_openssl
from pydantic import ValidationError

from core.certificates import first_in, validity
from core.config import Config
from core.config_file import load, load_connected
from core.errors import ConfigError
from core.identity import identity
from core.secrets import key_password, password, token
from core.security import SecurityConfig
from core.tls import tls_context

SCRAM = {"protocol": "SASL_SSL", "mechanism": "SCRAM-SHA-512", "username": "u", "password_file": "p"}
GOOD: list[dict[str, Any]] = [
    {},
    {"protocol": "SSL"},
    {"protocol": "SSL", "ca_file": "a", "crl_file": "b", "check_hostname": False, "ciphers": "HIGH"},
    {"protocol": "SSL", "cert_file": "c", "key_file": "k", "key_password_env": "K"},
    {"protocol": "SSL", "cert_file": "c", "key_password_file": "k"},
    SCRAM,
    {**SCRAM, "mechanism": "SCRAM-SHA-256", "cert_file": "c"},
    {"protocol": "SASL_PLAINTEXT", "mechanism": "PLAIN", "username": "u", "password_env": "P"},
    {"protocol": "SASL_SSL", "mechanism": "OAUTHBEARER", "token_file": "t", "extensions": ["a=1", "b=x y"]},
]
BAD: list[tuple[dict[str, Any], str]] = [
    ({"ca_file": "a"}, "ca_file is set, but protocol is PLAINTEXT"),
    ({"username": "u"}, "username is set, but protocol is PLAINTEXT"),
    ({"check_hostname": False}, "check_hostname is set, but protocol PLAINTEXT has no certificates"),
    ({"protocol": "SSL", "mechanism": "PLAIN"}, "mechanism is set, but protocol is SSL"),
    ({"protocol": "SSL", "extensions": ["a=1"]}, "extensions is set, but protocol is SSL"),
    (
        {**SCRAM, "protocol": "SASL_PLAINTEXT", "ca_file": "a"},
        "ca_file is set, but protocol is SASL_PLAINTEXT",
    ),
    ({"protocol": "SSL", "key_file": "k"}, "key_file is set without cert_file"),
    ({"protocol": "SSL", "key_password_env": "K"}, "key_password_env is set without cert_file"),
    (
        {"protocol": "SSL", "cert_file": "c", "key_password_env": "K", "key_password_file": "k"},
        "key_password_file and key_password_env are both set",
    ),
    ({**SCRAM, "password_env": "P"}, "password_file and password_env are both set"),
    ({"protocol": "SASL_SSL"}, "protocol SASL_SSL needs a mechanism"),
    ({**SCRAM, "mechanism": "GSSAPI"}, "Input should be 'PLAIN'"),
    ({**SCRAM, "username": None}, "needs username, and password_file or password_env"),
    ({**SCRAM, "password_file": None}, "needs username, and password_file or password_env"),
    ({**SCRAM, "token_file": "t"}, "token_file is set, but mechanism SCRAM-SHA-512 does not use it"),
    ({"protocol": "SASL_SSL", "mechanism": "OAUTHBEARER"}, "OAUTHBEARER needs token_file"),
    ({**SCRAM, "mechanism": "OAUTHBEARER", "token_file": "t"}, "username is set, but mechanism OAUTHBEARER"),
    ({**SCRAM, "password_file": ""}, "expected a path"),
    ({**SCRAM, "password_file": None, "password_env": "s3cret!"}, "expected the name of a variable"),
    ({**SCRAM, "mechanism": "OAUTHBEARER", "extensions": ["auth=x"]}, "is no extension"),
    ({**SCRAM, "mechanism": "OAUTHBEARER", "extensions": ["a\x01b"]}, "is no extension"),
    ({"protocol": "TLS"}, "Input should be 'PLAINTEXT'"),
]


def test_what_goes_together_is_taken() -> None:
    for settings in GOOD:
        assert Config.model_validate({"kafka": {"security": settings}}), settings


def test_what_does_not_is_one_sentence() -> None:
    for settings, words in BAD:
        with pytest.raises(ValidationError) as refused:
            SecurityConfig.model_validate(settings)
        assert words in str(refused.value), settings
        assert len(refused.value.errors()) == 1, settings


@pytest.mark.parametrize("key", ["password", "key_password", "token", "sasl_plain_password", "ssl_password"])
def test_a_secret_in_the_toml_is_refused_and_not_repeated(tmp_path: Path, key: str) -> None:
    path = tmp_path / "q.toml"
    path.write_text(f'[kafka.security]\nprotocol = "SASL_SSL"\n{key} = "hunter2"\n')
    with pytest.raises(ConfigError, match=rf"kafka\.security: {key}: a secret does not stand") as refused:
        load(path)
    assert "hunter2" not in str(refused.value)
    with pytest.raises(ValidationError) as raised:
        Config.model_validate({"kafka": {"security": {key: "hunter2"}}})
    assert "hunter2" not in str(raised.value)


def test_a_wrong_key_is_refused_without_its_value(tmp_path: Path) -> None:
    path = tmp_path / "q.toml"
    path.write_text('[kafka.security]\npassword_fil = "hunter2"\n')
    with pytest.raises(ConfigError, match="did you mean password_file") as refused:
        load(path)
    assert "hunter2" not in str(refused.value)
    with pytest.raises(ValidationError) as raised:
        Config.model_validate({"kafka": {"security": {"pass": "hunter2"}}})
    assert "hunter2" not in str(raised.value)


def test_state_and_identity_do_not_depend_on_it() -> None:
    plain = Config()
    for settings in GOOD:
        secured = Config.model_validate({"kafka": {"security": settings}})
        assert secured.decision_hash() == plain.decision_hash()
        assert identity(secured, "0" * 64) == identity(plain, "0" * 64)


# -- secrets --------------------------------------------------------------------------------------------


def by_file(path: Path) -> SecurityConfig:
    return SecurityConfig.model_validate({**SCRAM, "password_file": str(path)})


def test_a_password_stands_in_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p"
    for text, found in (("geheim", "geheim"), ("geheim\n", "geheim"), ("a b \r\n", "a b "), ("é\n", "é")):
        path.write_bytes(text.encode())
        assert password(by_file(path)) == found
        assert found not in repr(by_file(path)) + by_file(path).model_dump_json()
    monkeypatch.setenv("QSHIFT_TEST_PASSWORD", "geheim")
    named = {**SCRAM, "password_file": None, "password_env": "QSHIFT_TEST_PASSWORD"}
    assert password(SecurityConfig.model_validate(named)) == "geheim"
    assert password(SecurityConfig()) is None and key_password(SecurityConfig()) is None


def test_a_secret_that_cannot_be_used_is_said_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p"
    for content, words in (
        (b"", "is not set or empty"),
        (b"\n", "is not set or empty"),
        (b"geheim\nmore\n", "more than one line"),
        (b"geheim\0", "more than one line"),
        (b"geheim\xff", "is not UTF-8"),
        (b"g" * (1 << 17), "at most 65536 are taken"),
    ):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=words) as refused:
            password(by_file(path))
        assert "kafka.security.password_file: " in str(refused.value)
        assert "geheim" not in str(refused.value) and refused.value.__cause__ is None
    with pytest.raises(ConfigError, match="No such file"):
        password(by_file(tmp_path / "none"))
    monkeypatch.delenv("hunter2", raising=False)
    named = SecurityConfig.model_validate({**SCRAM, "password_file": None, "password_env": "hunter2"})
    with pytest.raises(ConfigError, match=r"password_env: the variable is not set") as refused:
        password(named)
    assert "hunter2" not in str(refused.value)  # somebody's password, where its name belongs


def test_a_token_is_one_line_of_ascii(tmp_path: Path) -> None:
    path = tmp_path / "t"
    settings = {"protocol": "SASL_SSL", "mechanism": "OAUTHBEARER", "token_file": str(path)}
    security = SecurityConfig.model_validate(settings)
    path.write_text(" abc.def. \n")
    assert token(security) == "abc.def."
    for text in ("", "a b", "a\nb", "é"):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"token_file: .* holds no token"):
            token(security)


def test_commands_read_it_before_anything_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "q.toml"
    kafka = '[kafka]\nbootstrap_servers = "k:1"\n[kafka.security]\nprotocol = '
    for rest, words in (
        ('"SSL"\nca_file = "nowhere.pem"', "kafka.security.ca_file: nowhere.pem cannot be read"),
        (
            '"SASL_PLAINTEXT"\nmechanism = "PLAIN"\nusername = "u"\npassword_file = "nowhere"',
            "password_file: now",
        ),
        ('"SASL_SSL"\nmechanism = "OAUTHBEARER"\ntoken_file = "nowhere"', "token_file: nowhere cannot"),
    ):
        path.write_text(kafka + rest + "\n")
        load(path)  # a replay without Kafka needs none of it
        with pytest.raises(ConfigError, match=words):
            load_connected(path)


# -- certificates ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.made(tmp_path_factory.mktemp("tls") / "ca")


def tls(**settings: Any) -> Any:
    return tls_context(SecurityConfig.model_validate({"protocol": "SSL", **settings}))


@needs_openssl
def test_files_that_can_be_used(authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.sign("one")
    (tmp_path / "p").write_text("sesame\n")
    locked = authority.locked("one", "sesame")
    context = tls(ca_file=authority.file, cert_file=certificate, key_file=key, crl_file=authority.revoked())
    assert context.check_hostname and len(context.get_ca_certs()) == 1
    assert context.verify_flags & ssl.VERIFY_CRL_CHECK_LEAF
    assert context.verify_mode == ssl.CERT_REQUIRED and context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert not tls(ca_file=authority.file, check_hostname=False).check_hostname
    assert tls(cert_file=authority.store("one"))
    assert tls(cert_file=certificate, key_file=locked, key_password_file=tmp_path / "p")
    names = {cipher["name"] for cipher in tls(ciphers="ECDHE-RSA-AES256-GCM-SHA384").get_ciphers()}
    assert {name for name in names if not name.startswith("TLS_")} == {"ECDHE-RSA-AES256-GCM-SHA384"}


@needs_openssl
def test_files_that_cannot_be_used_are_one_sentence(authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.sign("two")
    old, old_key = authority.sign("old", days=-2)
    locked, wrong = authority.locked("two", "sesame"), tmp_path / "wrong"
    wrong.write_text("geheim\n")
    cut = tmp_path / "cut.pem"
    cut.write_text(authority.file.read_text()[:200])
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"ca_file": tmp_path / "none"}, "kafka.security.ca_file: "),
        ({"ca_file": tmp_path}, "Is a directory"),
        ({"ca_file": cut}, "expected whole PEM"),
        ({"ca_file": old, "crl_file": cut}, "crl_file: "),
        ({"crl_file": authority.file}, "holds no list of revoked certificates"),
        ({"ciphers": "NONE-SUCH"}, "no cipher of OpenSSL matches"),
        ({"cert_file": key}, "holds no certificate in PEM"),
        ({"cert_file": certificate}, "expected certificate and private key in PEM"),
        ({"cert_file": certificate, "key_file": old_key}, "is not that of the certificate in"),
        ({"cert_file": old, "key_file": old_key}, "expired on 20"),
        ({"cert_file": certificate, "key_file": locked}, "is locked: name its password"),
        ({"cert_file": certificate, "key_file": locked, "key_password_file": wrong}, "does not open"),
    ]
    for settings, words in mistakes:
        with pytest.raises(ConfigError) as refused:
            tls(**settings)
        assert words in str(refused.value), settings
        assert "\n" not in str(refused.value) and "geheim" not in str(refused.value)


@needs_openssl
def test_dates_are_those_of_the_certificate(authority: Authority) -> None:
    """Against what OpenSSL itself was told, in both spellings of a time (RFC 5280, 4.1.2.5)."""
    for name, days in (("near", 30), ("far", 365 * 40)):
        certificate, _ = authority.sign(name, days=days)
        der = first_in(b"text before\n" + certificate.read_bytes())
        assert der is not None
        begins, ends = validity(der)
        assert abs(begins - (time.time() - 86400)) < 60
        assert abs(ends - (time.time() + 86400 * days)) < 60
    assert first_in(b"nothing") is None
