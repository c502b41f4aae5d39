"""A broker with TLS, SCRAM, tokens and ACLs: a service and its clients with the rights of the page alone."""

from __future__ import annotations

import base64
import io
import json
import socket
import ssl
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority, needs_openssl
from how_to import blocks, page_rights
from kafka.admin import (
    ACL,
    ACLOperation,
    ACLPermissionType,
    KafkaAdminClient,
    ResourcePattern,
    ResourceType,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from rich.console import Console

from core.config import Config, KafkaConfig, StateConfig
from core.errors import BrokerError, DeliveryError, QshiftError
from core.security import SecurityConfig
from qshift.demo.control import control
from qshift.demo.labels import send_labels
from qshift.demo.produce import produce
from qshift.replay.recorded import recorded
from stream.broker import Broker
from stream.client import QueryClient, read_all
from stream.cluster import ensure_topics
from stream.handshake import introduce
from stream.rights import topic_rights
from stream.topics import prepared_topics

pytestmark = [pytest.mark.kafka, pytest.mark.slow, needs_openssl]
USERS = ("service", "asks", "labels", "replays", "commands")
SECONDS = 15.0
"""The longest that a mistake may take to be said."""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@dataclass
class Secured:
    """A broker with four doors: one without a lock, for administrators and tests alone."""

    broker: Broker
    authority: Authority
    folder: Path
    scram: str
    mutual: str
    tokens: str

    @property
    def bootstrap_servers(self) -> str:
        """The door without a lock, where everybody may do everything."""
        return self.broker.bootstrap_servers

    def security(self, user: str, **others: Any) -> dict[str, Any]:
        """`[kafka.security]` of the page, with files of our own, for a user."""
        page = tomllib.loads(blocks("secured-kafka", "toml")[0])["kafka"]["security"]
        files = {
            "ca_file": str(self.authority.file), "password_file": str(self.secret(f"secret of {user}")),
        }  # fmt: skip
        assert page["username"] == "service" and files.keys() < page.keys()
        return {**page, **files, "username": user, **others}

    def secret(self, text: str) -> Path:
        path = self.folder / f"{abs(hash(text))}.secret"
        path.write_text(text + "\n")
        return path

    def admin(self) -> KafkaAdminClient:
        return KafkaAdminClient(bootstrap_servers=self.bootstrap_servers)

    def grant(self, user: str, right: str, kind: str, name: str) -> None:
        rules = [_acl(user, right, kind, name)]
        admin = self.admin()
        assert not admin.create_acls(rules)["failed"]
        admin.close()

    def revoke(self, user: str, right: str, kind: str, name: str) -> None:
        admin = self.admin()
        admin.delete_acls([_acl(user, right, kind, name)])
        admin.close()


def _acl(user: str, right: str, kind: str, name: str) -> ACL:
    return ACL(
        f"User:{user}", "*", ACLOperation[right.upper()], ACLPermissionType.ALLOW,
        ResourcePattern(ResourceType[kind.upper()], name),
    )  # fmt: skip


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    authority = Authority.made(folder / "ca")
    authority.sign("broker")
    doors = {name: free_port() for name in ("SCRAM", "MUTUAL", "TOKENS")}
    places = "".join(f",{name}://{{host}}:{port}" for name, port in doors.items())
    module = "org.apache.kafka.common.security"
    properties = {
        "listeners": "PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller}" + places,
        "advertised.listeners": "PLAINTEXT://{host}:{port}" + places,
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SCRAM:SASL_SSL,"
        "MUTUAL:SSL,TOKENS:SASL_SSL",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(authority.store("broker")),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(authority.file),
        "listener.name.mutual.ssl.client.auth": "required",
        "listener.name.scram.sasl.enabled.mechanisms": "SCRAM-SHA-256,SCRAM-SHA-512,PLAIN",
        "listener.name.scram.scram-sha-256.sasl.jaas.config": f"{module}.scram.ScramLoginModule required;",
        "listener.name.scram.scram-sha-512.sasl.jaas.config": f"{module}.scram.ScramLoginModule required;",
        "listener.name.scram.plain.sasl.jaas.config": f"{module}.plain.PlainLoginModule required "
        'user_plain="secret of plain";',
        "listener.name.tokens.sasl.enabled.mechanisms": "OAUTHBEARER",
        "listener.name.tokens.oauthbearer.sasl.jaas.config": f"{module}.oauthbearer.OAuthBearerLoginModule "
        "required;",
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
    }
    broker = Broker(folder / "kafka", parent_bound=True, properties=properties)
    broker.start()
    broker.ready()
    addresses = {name.lower(): f"127.0.0.1:{port}" for name, port in doors.items()}
    one = Secured(broker, authority, folder, **addresses)
    admin = one.admin()
    for mechanism in (ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512):
        users = [
            UserScramCredentialUpsertion(user, mechanism, f"secret of {user}")
            for user in (*USERS, "nobody", "a=b,c")
        ]
        assert set(admin.alter_user_scram_credentials(users).values()) == {None}
    admin.close()
    yield one
    broker.stop()


@pytest.fixture
def site(secured: Secured, make_site: Callable[..., Any], vector_world: Path) -> Any:
    """A service of the user `service`, its topics made, and the rights of the page granted on them."""
    made = make_site(
        secured,
        vector_world,
        kafka={"bootstrap_servers": secured.scram, "security": secured.security("service")},
    )
    named = {f"qshift.{role.replace('_', '-')}": getattr(made.kafka, role) for role in _roles(made.kafka)}
    named["qshift"] = made.kafka.group
    for user, right, kind, name in page_rights():
        secured.grant(user, right, kind, named[name])
    return made


def _roles(kafka: KafkaConfig) -> list[str]:
    return ["queries", "answers", "labels", "dead_letters", "state", "journal", "control", "audit"]


def of(secured: Secured, site: Any, user: str) -> Path:
    """The same configuration as another user, with its own security, as a file."""
    path = site.file.with_name(f"{user}.toml")
    path.write_text(site.file.read_text().replace('"service"', f'"{user}"').replace(
        site.kafka.security.password_file.name, secured.secret(f"secret of {user}").name))  # fmt: skip
    return path


def kafka_of(secured: Secured, site: Any, user: str, **others: Any) -> KafkaConfig:
    security = SecurityConfig.model_validate(secured.security(user, **others))
    kafka: KafkaConfig = site.kafka.model_copy(update={"security": security})
    return kafka


def silent() -> Console:
    return Console(file=io.StringIO(), width=300)


def test_queries_answers_and_labels_with_the_rights_of_the_page(
    secured: Secured, site: Any, serving: Any, messages: Any, tmp_path: Path
) -> None:
    service = serving(site)
    service.wait_until_ready(30)
    lines = [json.loads(value) for value, _ in messages(32)[0]]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps({"vector": one["vector"]}) + "\n" for one in lines))
    out = silent()
    produce(tmp_path / "q.jsonl", ("clean",), "image", None, 0.0, True, 0, of(secured, site, "asks"), out)
    assert "32 of 32 queries answered" in out.file.getvalue()  # type: ignore[attr-defined]
    assert len(site.answers()) == 32
    wanted = [answer.source.offset for answer in site.decoded().values() if answer.label_wanted]
    assert wanted
    (tmp_path / "l.jsonl").write_text("".join(f'{{"offset": {n}, "label": "class-1"}}\n' for n in wanted))
    send_labels(tmp_path / "l.jsonl", of(secured, site, "labels"), silent())
    service.wait_for_labels(20)
    assert not service.observers.judged.labels().pending
    assert control("freeze", None, "", "", "", "ann", 30.0, of(secured, site, "commands"), silent()) == 0
    with pytest.raises(DeliveryError, match=f"the user labels: Write on the topic {site.kafka.control};"):
        control("freeze", None, "", "", "", "ann", 0.0, of(secured, site, "labels"), silent())
    kafka = kafka_of(secured, site, "replays")
    found = recorded(secured.scram, kafka, site.config.limits, site.kafka.queries)
    assert len(found.records) == 32 and len(found.labels) == len(wanted) and len(found.journal) == 3
    assert service.stop().checkpoints


def test_a_process_of_its_own_serves_and_shows_no_secret(secured: Secured, site: Any, messages: Any) -> None:
    client = QueryClient(secured.scram, kafka_of(secured, site, "asks"))
    for value, headers in messages(16)[0]:
        client.send(value, headers)
    client.flush()
    client.close()
    worker = site.worker()
    site.wait(lambda: len(site.answers()) == 16)
    worker.terminate()
    assert "secret of" not in worker.output() + site.file.read_text()
    for topic in (site.kafka.state, site.kafka.journal):
        assert all(b"secret of" not in (record.value or b"") for record in read_all(site.servers, topic))


@pytest.mark.parametrize(
    ("role", "right", "kind"),
    [("answers", "Write", "topic"), ("labels", "Read", "topic"), ("journal", "Write", "topic"),
     ("group", "Read", "group")],
)  # fmt: skip
def test_a_missing_right_is_named_at_the_start(
    secured: Secured, site: Any, serving: Any, role: str, right: str, kind: str
) -> None:
    name = getattr(site.kafka, role)
    secured.revoke("service", right, kind, name)
    began = time.monotonic()
    with pytest.raises(BrokerError) as refused:
        serving(site)
    said = str(refused.value)
    assert time.monotonic() - began < SECONDS
    assert f"does not allow the user service: {right} on the {kind} {name};" in said
    assert f"--allow-principal User:service --operation {right} --{kind} {name}" in said
    assert "\n" not in said


def test_topics_that_are_hidden_are_named(secured: Secured, site: Any) -> None:
    kafka = kafka_of(secured, site, "nobody")
    with pytest.raises(BrokerError, match=f"no topic {kafka.queries}, and does not allow to make it"):
        ensure_topics(secured.scram, {kafka.queries: (1, {})}, security=kafka.security)


def test_topics_are_made_by_a_service_that_may(secured: Secured, topics: Callable[[str], str]) -> None:
    """With Create on the names and nothing on the cluster; for state in a folder Describe is enough."""
    names = {role: topics(role) for role in (*_roles(KafkaConfig()), "group")}
    settings = {"kafka": {**names, "security": secured.security("service")}, "state": {"store": "directory"}}
    config = Config.model_validate(settings)
    for name, rights in topic_rights(config.kafka, changelog=False).items():
        for right in rights:
            secured.grant("service", right, "topic", name)
    secured.grant("service", "Read", "group", names["group"])
    with pytest.raises(BrokerError, match=f"no topic {names['queries']}, and does not allow to make it"):
        prepared_topics(secured.scram, config)
    for role in _roles(config.kafka):
        secured.grant("service", "Create", "topic", names[role])
    assert prepared_topics(secured.scram, config) is None
    with pytest.raises(BrokerError, match=f"Read on the topic {names['state']}, Write on the topic"):
        prepared_topics(secured.scram, config.model_copy(update={"state": StateConfig(store="changelog")}))


@pytest.mark.parametrize("user", ["labels", "nobody"])
def test_a_client_without_a_right_is_told_so(secured: Secured, site: Any, messages: Any, user: str) -> None:
    client, began = QueryClient(secured.scram, kafka_of(secured, site, user)), time.monotonic()
    with pytest.raises(DeliveryError, match=f"the user {user}: Write on the topic {site.kafka.queries};"):
        client.send(*messages(1)[0][0])
        client.flush()
    with pytest.raises(DeliveryError, match=f"the user {user}: Read on the topic {site.kafka.answers};"):
        while time.monotonic() < began + SECONDS:
            client.answers(0.5)
    client.close()
    kafka = kafka_of(secured, site, user)
    with pytest.raises(BrokerError, match=f"the user {user}: Read on the topic {site.kafka.queries};"):
        recorded(secured.scram, kafka, site.config.limits, site.kafka.queries)
    assert time.monotonic() - began < SECONDS


def test_a_wrong_password_ends_a_service_with_one_sentence(secured: Secured, site: Any) -> None:
    path = site.file
    path.write_text(path.read_text().replace(
        site.kafka.security.password_file.name, secured.secret("another one").name))  # fmt: skip
    began, worker = time.monotonic(), site.worker()
    while worker.code is None and time.monotonic() < began + 60:
        time.sleep(0.05)
    said = worker.output()
    assert worker.code == 2 and time.monotonic() - began < SECONDS, said
    assert "does not let the user service in" in said and "invalid credentials" in said
    assert "kafka.security.username, or the password that password_file names" in said
    assert "another one" not in said and "Traceback" not in said
    assert said.count("error") == 1, said


def test_other_ways_in(secured: Secured) -> None:
    """Each mechanism and mutual TLS, as a client and in the handshake that looks first."""
    certificate, key = secured.authority.sign("somebody")
    locked = {
        "key_file": str(secured.authority.locked("somebody", "sesame")),
        "key_password_file": str(secured.secret("sesame")),
    }
    ca = str(secured.authority.file)
    mutual: dict[str, Any] = {"protocol": "SSL", "ca_file": ca, "cert_file": str(certificate)}
    token = secured.folder / "token"
    token.write_text(bearer("somebody", 3600) + "\n")
    ways = [
        (secured.scram, secured.security("asks", mechanism="SCRAM-SHA-256")),
        (secured.scram, secured.security("plain", mechanism="PLAIN")),
        (secured.scram, secured.security("a=b,c")),
        (secured.scram, secured.security("asks", ciphers="ECDHE+AESGCM")),
        (secured.mutual, {**mutual, "key_file": str(key)}),
        (secured.mutual, mutual | locked),
        (secured.tokens, {"protocol": "SASL_SSL", "ca_file": ca, "mechanism": "OAUTHBEARER",
                          "token_file": str(token), "extensions": ["traceId=1"]}),
    ]  # fmt: skip
    for number, (servers, settings) in enumerate(ways):
        security = SecurityConfig.model_validate(settings)
        introduce(servers, security)
        with pytest.raises(BrokerError, match="no topic nothing"):  # let in, and not allowed to make it
            ensure_topics(servers, {"nothing": (1, {})}, security=security), number


def bearer(subject: str, seconds: float) -> str:
    """A token without a signature, which a broker for tests takes (RFC 7515, appendix A.5)."""
    now = time.time()
    parts = ({"alg": "none"}, {"sub": subject, "iat": now - 60, "exp": now + seconds})
    return (
        ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts)
        + "."
    )


def test_a_token_is_renewed_while_a_client_lives(secured: Secured, topics: Callable[[str], str]) -> None:
    """A broker ends what proved itself by a token that is over; the client proves itself anew before."""
    topic, path = topics("queries"), secured.folder / "short-lived"
    ensure_topics(secured.bootstrap_servers, {topic: (1, {})})
    secured.grant("somebody", "Write", "topic", topic)
    security = secured.security("asks", mechanism="OAUTHBEARER", username=None, password_file=None)
    path.write_text(bearer("somebody", 4))
    kafka = KafkaConfig.model_validate({"queries": topic, "security": {**security, "token_file": str(path)}})
    client, began = QueryClient(secured.tokens, kafka), time.monotonic()
    while time.monotonic() < began + 8:
        client.send(b"x").coordinates(10)
        path.write_text(bearer("somebody", 4))
        time.sleep(0.5)
    client.close()


def test_every_mistake_is_one_sentence(secured: Secured, tmp_path: Path) -> None:
    authority, ca = secured.authority, str(secured.authority.file)
    other = Authority.made(tmp_path / "other")
    tls: dict[str, Any] = {"protocol": "SSL", "ca_file": ca}
    foreign = other.sign("stranger")
    stranger = {"cert_file": str(foreign[0]), "key_file": str(foreign[1])}
    (tmp_path / "old").write_text(bearer("somebody", -10))
    tokens = {"protocol": "SASL_SSL", "ca_file": ca, "mechanism": "OAUTHBEARER"}
    revoked = tmp_path / "crl.pem"
    revoked.write_bytes(authority.revoked("broker").read_bytes())
    plain = secured.bootstrap_servers
    localhost = secured.scram.replace("127.0.0.1", "localhost")
    mistakes = [
        (secured.scram, secured.security("asks", ca_file=str(other.file)), "in kafka.security.ca_file"),
        (secured.scram, secured.security("asks", crl_file=str(revoked)), "certificate revoked"),
        (localhost, secured.security("asks", crl_file=str(revoked)), "certificate revoked"),
        (secured.scram, secured.security("who"), "does not let the user who in"),
        (secured.scram, secured.security("who", mechanism="PLAIN"), "Invalid username or password"),
        (secured.tokens, secured.security("asks"), "set kafka.security.mechanism to OAUTHBEARER"),
        (secured.tokens, {**tokens, "token_file": str(tmp_path / "old")}, "put a fresh token"),
        (secured.scram, tls, "its listener has another protocol"),
        (secured.scram, {}, "its listener has another protocol"),
        (plain, tls, "does not speak TLS"),
        (plain, secured.security("asks"), "does not speak TLS"),
        (secured.mutual, tls, "name one in kafka.security.cert_file"),
        (secured.mutual, tls | stranger, "refuses our certificate"),
    ]  # fmt: skip
    for servers, settings, words in mistakes:
        began = time.monotonic()
        with pytest.raises(BrokerError) as refused:
            QueryClient(servers, KafkaConfig(security=SecurityConfig.model_validate(settings)))
        assert words in str(refused.value) and "\n" not in str(refused.value)
        assert time.monotonic() - began < SECONDS, words


def test_the_host_has_to_be_that_of_the_certificate(secured: Secured) -> None:
    """A broker at an address that its certificate does not name; the same, where that is not asked."""
    pem, key = secured.authority.sign("elsewhere", hosts="DNS:kafka.example")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, key)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            for _ in range(2):
                line, _address = server.accept()
                try:
                    with context.wrap_socket(line, server_side=True):
                        pass
                except OSError:
                    line.close()

        thread = threading.Thread(target=greet, daemon=True)
        thread.start()
        servers = f"127.0.0.1:{server.getsockname()[1]}"
        tls = {"protocol": "SSL", "ca_file": str(secured.authority.file)}
        with pytest.raises(BrokerError, match=r"IP address mismatch.*use a name that it is made for"):
            introduce(servers, SecurityConfig.model_validate(tls))
        with pytest.raises(BrokerError, match="hangs up"):  # believed, and then it says nothing of Kafka
            introduce(servers, SecurityConfig.model_validate(tls | {"check_hostname": False}))
        thread.join(10)


def test_a_right_taken_away_from_writing_is_waited_for(
    secured: Secured, site: Any, serving: Any, messages: Any, caplog: pytest.LogCaptureFixture
) -> None:
    service, right = serving(site), ("service", "Write", "topic", site.kafka.answers)
    service.wait_until_ready(30)
    client = QueryClient(secured.scram, kafka_of(secured, site, "asks"))
    secured.revoke(*right)
    for value, headers in messages(16)[0]:
        client.send(value, headers)
    client.flush()
    _until(lambda: not service.ready()["delivering"], service)
    said = f"does not allow the user service: Write on the topic {site.kafka.answers};"
    assert any(said in str(vars(record).get("error")) for record in caplog.records)
    secured.grant(*right)
    _until(lambda: len(site.answers()) >= 16 and service.ready()["delivering"], service)
    client.close()


def test_a_right_taken_away_from_reading_ends_the_service_and_from_labels_nothing(
    secured: Secured, site: Any, serving: Any, messages: Any
) -> None:
    service = serving(site)
    service.wait_until_ready(30)
    client = QueryClient(secured.scram, kafka_of(secured, site, "asks"))
    secured.revoke("service", "Read", "topic", site.kafka.labels)
    for value, headers in messages(16)[0]:
        client.send(value, headers)
    client.flush()
    client.close()
    _until(lambda: len(site.answers()) == 16, service)
    secured.revoke("service", "Read", "topic", site.kafka.queries)
    with pytest.raises(QshiftError, match=f"Read on the topic {site.kafka.queries};"):
        _until(lambda: False, service)
    service._failure = None  # what ended it was looked at


def test_an_outage_and_a_password_that_is_away_for_a_while_are_waited_out(
    secured: Secured, site: Any, serving: Any, messages: Any
) -> None:
    service, password = serving(site), site.kafka.security.password_file
    service.wait_until_ready(30)
    client = QueryClient(secured.scram, kafka_of(secured, site, "asks"))
    for value, headers in messages(16)[0]:
        client.send(value, headers)
    client.flush()
    _until(lambda: len(site.answers()) == 16, service)
    secured.broker.kill()
    text = password.read_text()
    password.unlink()
    service._sink._discard(
        service._sink._epoch
    )  # as after a delivery that failed: the next one connects anew
    secured.broker.start()
    secured.broker.ready()
    for value, headers in messages(16, seed=2)[0]:
        client.send(value, headers)
    client.flush()
    _until(lambda: not service.ready()["delivering"], service)
    password.write_text(text)
    _until(lambda: len(site.distinct()) == 32 and service.ready()["delivering"], service, 90)
    client.close()


def _until(done: Callable[[], bool], service: Any, seconds: float = 45.0) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        service.check()
        assert time.monotonic() < deadline
        time.sleep(0.1)
