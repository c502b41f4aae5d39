"""What is deployed: compose file, configuration, alerts and dashboard agree with the code and each other."""

import base64
import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from core.config import KafkaConfig
from core.config_file import load
from core.errors import ConfigError
from monitoring.metrics import Metrics
from monitoring.registry import fresh_registry
from monitoring.series import SERIES
from qshift.commands.serve import check_key
from stream.topics import topic_settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KEY = "QSHIFT_LABELS_KEY"
promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed: apt-get install prometheus"
)


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


def run(*command: str, stdin: str | None = None) -> None:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "of the tests")


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = read("docker-compose.yml")["services"]
    return found


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("deploy_dashboard", DEPLOY / "dashboard.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DEPLOY))  # as for the script itself: its sibling is found
        spec.loader.exec_module(module)
    return module


def rules() -> list[dict[str, Any]]:
    return [rule for group in read("deploy/rules.yml")["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    document = json.loads((DEPLOY / "grafana/dashboards/qshift.json").read_text())
    return [panel for panel in document["panels"] if panel["type"] != "row"]


def exported() -> set[str]:
    """Names as a scrape shows them."""
    names = {"up", "process_start_time_seconds"}
    for series in SERIES:
        suffixes = ("_bucket", "_sum", "_count") if series.kind == "histogram" else ("",)
        names |= {series.name + suffix for suffix in suffixes}
    return names


def metric_names(expression: str) -> set[str]:
    """What is named in PromQL once label matchers, groupings, strings and functions are taken away."""
    bare = re.sub(r'"[^"]*"', "", expression)
    bare = re.sub(r"\{[^}]*\}", " ", bare)
    bare = re.sub(r"\[[^\]]*\]", " ", bare)
    bare = re.sub(r"\b(by|on|without|ignoring)\s*\([^)]*\)", " ", bare)
    words = re.findall(r"[a-zA-Z_:][\w:]*(?!\w)(?!\s*\()", bare)
    return {w for w in words if w not in {"and", "or", "unless", "sum", "max"}}


def label_names(expression: str) -> dict[str, set[str]]:
    """Metric -> labels its matchers name."""
    found: dict[str, set[str]] = {}
    for name, matchers in re.findall(r"([a-zA-Z_]\w*)\{([^}]*)\}", expression):
        found.setdefault(name, set()).update(re.findall(r"(\w+)\s*=", matchers))
    return found


def expressions() -> list[str]:
    return [r["expr"] for r in rules()] + [t["expr"] for p in panels() for t in p["targets"]]


# -- docker-compose.yml ---------------------------------------------------------------------------------


def test_images_are_pinned_and_kafka_is_the_locked_one(services: dict[str, Any]) -> None:
    for name, service in services.items():
        tag = service["image"].rpartition(":")[2]
        assert re.fullmatch(r"v?\d+\.\d+\.\d+", tag), f"{name}: {service['image']}"
    locked = json.loads((ROOT / "stream/kafka.lock.json").read_text())["kafka"]
    assert services["kafka"]["image"] == f"apache/kafka:{locked}"


def test_ports_are_bound_to_this_machine(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert "network_mode" not in service
        for port in service.get("ports", []):
            assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port), f"{name}: {port}"


def test_containers_have_no_rights_that_they_do_not_need(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"] and "cap_add" not in service, name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.get("privileged") and "user" not in service, name
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    uid = re.findall(r"--uid (\d+)", dockerfile)[0]
    assert services["qshift"]["read_only"] is True and "USER qshift" in dockerfile
    assert services["qshift"]["tmpfs"] == ["/tmp", f"/var/lib/qshift/.cache:uid={uid}"]


def test_mounted_files_and_volumes_exist(services: dict[str, Any]) -> None:
    named = set(read("docker-compose.yml")["volumes"])
    for name, service in services.items():
        for mount in service.get("volumes", []):
            source, _, rest = mount.partition(":")
            if source.startswith("."):
                assert (ROOT / source).exists() and rest.endswith(":ro"), f"{name}: {mount}"
            else:
                assert source in named, f"{name}: {mount}"
        for other in service.get("depends_on", {}):
            assert other in services


def test_every_lasting_service_has_a_health_check(services: dict[str, Any]) -> None:
    assert {name for name, service in services.items() if "healthcheck" not in service} == {"prepare"}


def test_listeners_lead_containers_and_host_to_the_broker(services: dict[str, Any]) -> None:
    environment = services["kafka"]["environment"]
    advertised = dict(part.split("://") for part in environment["KAFKA_ADVERTISED_LISTENERS"].split(","))
    listening = dict(part.split("://") for part in environment["KAFKA_LISTENERS"].split(","))
    protocols = dict(p.split(":") for p in environment["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].split(","))
    assert set(listening) == set(protocols) == {*advertised, "CONTROLLER"}
    assert advertised["INTERNAL"] == load(DEPLOY / "qshift.toml").kafka.bootstrap_servers
    assert advertised["INTERNAL"].partition(":")[0] in services
    host, _, port = advertised["HOST"].partition(":")
    assert host == "localhost" and services["kafka"]["ports"] == [f"127.0.0.1:{port}:{port}"]
    for name, address in advertised.items():
        assert listening[name].rpartition(":")[2] == address.rpartition(":")[2]
    voter = environment["KAFKA_CONTROLLER_QUORUM_VOTERS"]
    assert voter == f"{environment['KAFKA_NODE_ID']}@{listening['CONTROLLER']}"
    assert (
        len(base64.urlsafe_b64decode(environment["CLUSTER_ID"] + "==")) == 16
    )  # else Kafka refuses to format


def test_configuration_loads_and_fits_the_compose_file(
    services: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("QSHIFT_BOOTSTRAP_SERVERS", raising=False)
    service = services["qshift"]
    with monkeypatch.context() as patch:
        patch.delenv(KEY)
        with pytest.raises(ConfigError, match=r"labels\.key_env"):
            load(DEPLOY / "qshift.toml")
    # Without a default: compose ends, and says what to do, where the secret is not set.
    assert re.fullmatch(rf"\$\{{{KEY}:\?[^}}]+\}}", service["environment"][KEY])
    config = load(DEPLOY / "qshift.toml")
    check_key(config)
    path = service["command"][-1]
    assert service["command"][:3] == ["qshift", "serve", "--config"]
    assert f"./deploy/qshift.toml:{path}:ro" in service["volumes"]
    # 0.0.0.0 is right only because the port is published on 127.0.0.1.
    assert config.http.host == "0.0.0.0"
    assert service["ports"] == [f"127.0.0.1:{config.http.port}:{config.http.port}"]
    assert f":{config.http.port}/healthz" in service["healthcheck"]["test"][-1]
    folder = next(v.split(":")[1] for v in service["volumes"] if v.startswith("artefacts:"))
    prepared = services["prepare"]["command"][-1]
    for artefact in (config.base, config.gallery):
        assert artefact.parent == Path(folder)
        assert f"{Path(folder).name}/{artefact.name}/manifest.json" in prepared
    assert any(v.startswith("artefacts:") for v in services["prepare"]["volumes"])


def test_prepare_uses_options_that_exist(services: dict[str, Any]) -> None:
    from typer.main import get_command

    from qshift.cli import app

    for line in services["prepare"]["command"][-1].splitlines():
        words = line.partition("|| qshift ")[2].split()
        command: Any = get_command(app)
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        options = {option for parameter in command.params for option in parameter.opts}
        used = {word for word in words if word.startswith("--")}
        assert command.name in {"fit", "build"} and used and used <= options, line


def test_pages_name_the_topics_ports_and_alerts(services: dict[str, Any]) -> None:
    page = (ROOT / "docs/reference/operations.md").read_text()
    watch = (ROOT / "docs/how-to/watch.md").read_text()
    config = load(DEPLOY / "qshift.toml")
    assert config.kafka.model_dump(exclude={"bootstrap_servers"}) == KafkaConfig().model_dump(
        exclude={"bootstrap_servers"}
    )
    for topic in topic_settings(config.kafka):
        assert f"`{topic}`" in page
    for service in services.values():
        for port in service.get("ports", []):
            assert port.split(":")[1] in page
    for rule in rules():
        assert f"`{rule['alert']}`" in watch


def test_docker_reads_the_compose_file() -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        pytest.skip("no docker client with the compose plugin")
    run(docker, "compose", "--file", "docker-compose.yml", "config", "--quiet")


def test_image_gets_every_package() -> None:
    import tomllib

    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = document["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    kept = {line[1:] for line in lines if line.startswith("!")}
    assert kept == {*packages, "pyproject.toml", "requirements.lock", document["project"]["readme"]}


# -- Alerts and dashboard -------------------------------------------------------------------------------


def test_every_metric_named_exists() -> None:
    known = exported()
    for expression in expressions():
        names = metric_names(expression)
        assert names, expression
        assert names <= known, f"{sorted(names - known)} in {expression}"


def test_every_label_named_exists() -> None:
    labels = {series.name: set(series.labels) | {"instance", "job"} for series in SERIES}
    for expression in expressions():
        for name, used in label_names(expression).items():
            if name in labels:
                assert used <= labels[name], expression


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ("sum by (le, stage) (rate(a_bucket[5m]))", {"a_bucket"}),
        ('a{b="c d"} == 1 and on (instance) rate(e_total[10m]) > 0', {"a", "e_total"}),
        ("x unless sum(y) / z > 0.1", {"x", "y", "z"}),
    ],
)
def test_reading_of_names(expression: str, names: set[str]) -> None:
    assert metric_names(expression) == names


def test_every_alert_has_a_firing_and_a_silent_test() -> None:
    fires: set[str] = set()
    silent: set[str] = set()
    for case in read("deploy/rules_test.yml")["tests"]:
        for check in case["alert_rule_test"]:
            (fires if check["exp_alerts"] else silent).add(check["alertname"])
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    assert fires == silent == set(names)
    for rule in rules():
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert {"summary", "description"} <= set(rule["annotations"])


def test_committed_dashboard_is_the_generated_one(generator: ModuleType) -> None:
    committed = (DEPLOY / "grafana/dashboards/qshift.json").read_text(encoding="utf-8")
    assert committed == generator.render(), "run: python deploy/dashboard.py"


def test_every_panel_has_unit_description_place_and_queries() -> None:
    found = panels()
    assert len({panel["id"] for panel in found}) == len(found)
    assert len({panel["title"] for panel in found}) == len(found)
    cells: set[tuple[int, int]] = set()
    for panel in found:
        assert panel["description"] and panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["targets"] and all(target["legendFormat"] for target in panel["targets"])
        at = panel["gridPos"]
        own = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24 and not own & cells, panel["title"]
        cells |= own


def test_grafana_finds_datasource_and_dashboard(services: dict[str, Any]) -> None:
    source = read("deploy/grafana/provisioning/datasources/prometheus.yml")["datasources"][0]
    assert {panel["datasource"]["uid"] for panel in panels()} == {source["uid"]}
    host, _, port = source["url"].removeprefix("http://").partition(":")
    assert services[host]["ports"] == [f"127.0.0.1:{port}:{port}"]
    folder = read("deploy/grafana/provisioning/dashboards/qshift.yml")["providers"][0]["options"]["path"]
    assert f"./deploy/grafana/dashboards:{folder}:ro" in services["grafana"]["volumes"]
    environment = services["grafana"]["environment"]
    assert environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == f"{folder}/qshift.json"
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"


def test_prometheus_scrapes_the_service(services: dict[str, Any]) -> None:
    scrape = read("deploy/prometheus.yml")["scrape_configs"][0]
    assert scrape["job_name"] == "qshift"  # the rules and the dashboard select it by this name
    host, _, port = scrape["static_configs"][0]["targets"][0].partition(":")
    assert services[host]["ports"] == [f"127.0.0.1:{port}:{port}"]


# -- promtool -------------------------------------------------------------------------------------------


@promtool
def test_promtool_accepts_configuration_and_rules() -> None:
    run("promtool", "check", "config", "deploy/prometheus.yml")
    run("promtool", "check", "rules", "deploy/rules.yml")


@promtool
def test_alerts_fire_and_stay_silent() -> None:
    run("promtool", "test", "rules", "deploy/rules_test.yml")


@promtool
def test_every_expression_of_the_dashboard_parses(tmp_path: Path) -> None:
    recorded = [
        {"record": f"panel:{i}", "expr": target["expr"]}
        for i, target in enumerate(target for panel in panels() for target in panel["targets"])
    ]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": recorded}]}))
    run("promtool", "check", "rules", str(file))


@promtool
def test_promtool_has_no_findings_on_a_scrape() -> None:
    from prometheus_client import generate_latest

    registry = fresh_registry()
    Metrics(registry, method="rest")
    run("promtool", "check", "metrics", stdin=generate_latest(registry).decode())
