"""Checks of docker/ without a container engine: schemas, pins, limits, and queries against the metrics."""

from __future__ import annotations

import json
import re
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
from kubernetes_validate import validate
from pycep import BicepParser

from ml_api.app import document_of
from ml_api.observability.metrics import Metrics
from ml_api.settings import Settings, load_settings

ROOT = Path(__file__).resolve().parent.parent
DOCKER = ROOT / "docker"
SCRIPTS = Path(sysconfig.get_path("scripts"))

COMPOSE_FILES = sorted(DOCKER.glob("compose*.yaml"))
VARIABLE = re.compile(r"\bML_SERVICE_[A-Z][A-Z_]+\b")


class ComposeLoader(yaml.SafeLoader):
    """YAML with Compose's `!reset`, which removes a value in an override file."""


ComposeLoader.add_constructor("!reset", lambda loader, node: None)


def compose(name: str) -> Any:
    return yaml.load((DOCKER / name).read_text(), ComposeLoader)


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("file", COMPOSE_FILES, ids=lambda file: file.name)
def test_compose_file_matches_the_specification(file: Path, tmp_path: Path) -> None:
    plain = tmp_path / file.name  # the schema does not know `!reset`
    plain.write_text("\n".join(line for line in file.read_text().splitlines() if "!reset" not in line))
    checked = run(SCRIPTS / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", plain)
    assert checked.returncode == 0, checked.stdout


def test_dockerfile_has_no_lint() -> None:
    linted = run(SCRIPTS / "hadolint", DOCKER / "Dockerfile")
    assert linted.returncode == 0, linted.stdout


@pytest.mark.parametrize("file", COMPOSE_FILES, ids=lambda file: file.name)
def test_every_container_is_hardened(file: Path) -> None:
    base = compose("compose.yaml")["services"]
    for name, service in compose(file.name)["services"].items():
        whole = {**base.get(name, {}), **service}
        assert whole["read_only"] is True, name
        assert whole["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in whole["security_opt"], name
        assert "mem_limit" in whole, name


def test_every_third_party_image_is_pinned_by_version_and_digest() -> None:
    base = re.search(r"^ARG BASE_IMAGE=(\S+)$", (DOCKER / "Dockerfile").read_text(), re.MULTILINE)
    assert base is not None
    named = {base[1]}
    for file in COMPOSE_FILES:
        named |= set(re.findall(r"\$\{(?!ML_)\w+_IMAGE:-([^}]+)\}", file.read_text()))
    assert len(named) == 5
    for image in named:
        assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+\.\d+[a-z0-9.-]*@sha256:[0-9a-f]{64}", image), image


@pytest.mark.parametrize("file", ["docker/tools", "docker/verification/tools", ".ci/tools"])
def test_tools_are_pinned_and_installed_with_hashes(file: str) -> None:
    wanted = [line for line in (ROOT / f"{file}.in").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[\d.]+", line) for line in wanted)
    blocks = (ROOT / f"{file}.txt").read_text().replace("\\\n", " ").splitlines()
    assert set(wanted) <= {block.split()[0] for block in blocks}
    assert all("--hash=sha256:" in block for block in blocks)
    users = [ROOT / name for name in ("docker/Dockerfile", "docker/verify", ".ci/run")]
    installs = [
        line
        for user in users
        for line in user.read_text().splitlines()
        if "pip" in line and "install" in line
    ]
    assert len(installs) == 3
    assert all("--require-hashes" in line for line in installs), installs


def test_ports_are_published_on_the_loopback_address_only() -> None:
    services = compose("compose.yaml")["services"]
    for name in ("prometheus", "grafana"):
        (port,) = services[name]["ports"]
        assert port.startswith("${MONITORING_ADDRESS:-127.0.0.1}:"), name
    (port,) = services["ml-service"]["ports"]
    assert port.startswith("${PUBLISH_ADDRESS:-127.0.0.1}:")
    assert (
        "path,url_dec -m beg /metrics /docs /openapi.json /admin"
        in (DOCKER / "haproxy/haproxy.cfg").read_text()
    )


def test_the_load_balancer_tells_the_replicas_who_asks() -> None:
    """Else one stranger's wrong API keys count for every caller behind it, and all get 429."""
    assert "http-request set-header X-Forwarded-For %[src]" in (DOCKER / "haproxy/haproxy.cfg").read_text()
    replica = compose("compose.replicas.yaml")["services"]["ml-service"]
    assert replica["environment"] == {"FORWARDED_ALLOW_IPS": "*"}


def test_origins_and_external_ingress_are_closed_by_default() -> None:
    assert compose("compose.yaml")["services"]["ml-service"]["environment"]["ML_SERVICE_ALLOWED_ORIGIN"] == (
        "${ML_SERVICE_ALLOWED_ORIGIN:-}"
    )
    template = (DOCKER / "azure/main.bicep").read_text()
    assert "param external bool = false" in template
    assert re.search(r"ingress: \{\s+external: external\b", template)
    assert "param allowedOrigin string = ''" in template


def test_only_the_service_shares_a_network_with_redis() -> None:
    file = compose("compose.yaml")
    assert file["networks"]["store"]["internal"] is True
    assert list(file["services"]["redis"]["networks"]) == ["store"]
    assert "ports" not in file["services"]["redis"]
    assert {name for name, one in file["services"].items() if "store" in one["networks"]} == {
        "redis",
        "ml-service",
    }


def test_redis_evicts_nothing_and_syncs_every_write() -> None:
    settings = dict(
        line.split(maxsplit=1)
        for line in (DOCKER / "redis/redis.conf").read_text().splitlines()
        if line and not line.startswith("#")
    )
    assert settings["maxmemory-policy"] == "noeviction"
    assert (settings["appendonly"], settings["appendfsync"]) == ("yes", "always")


def test_stop_grace_periods_exceed_the_shutdown_timeout() -> None:
    service = compose("compose.yaml")["services"]["ml-service"]
    shutdown = int(service["environment"]["ML_SERVICE_SHUTDOWN_TIMEOUT"])
    assert int(service["stop_grace_period"].removesuffix("s")) > shutdown
    pod = next(part for part in kubernetes() if part["kind"] == "Deployment")["spec"]["template"]["spec"]
    sleep = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > shutdown + sleep


def test_every_setting_named_in_docker_files_exists() -> None:
    known = {f"ML_SERVICE_{name.upper()}" for name in Settings.model_fields}
    for file in [path for path in DOCKER.rglob("*") if path.is_file() and path.suffix != ".pyc"]:
        unknown = set(VARIABLE.findall(file.read_text())) - known
        assert not unknown, f"{file.relative_to(ROOT)}: {unknown}"


def kubernetes() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DOCKER / "kubernetes/ml-service.yaml").read_text()))


def test_kubernetes_manifest_matches_the_schemas() -> None:
    for part in kubernetes():
        validate(part, "1.37", strict=True)


def test_probes_use_existing_paths() -> None:
    pod = next(part for part in kubernetes() if part["kind"] == "Deployment")["spec"]["template"]["spec"]
    paths = {
        pod["containers"][0][f"{kind}Probe"]["httpGet"]["path"]
        for kind in ("startup", "liveness", "readiness")
    }
    assert paths <= set(document_of(load_settings(api_key="not-used-by-this-test"))["paths"])


def test_bicep_template_parses_and_holds_no_secret() -> None:
    resources = BicepParser().parse(text=(DOCKER / "azure/main.bicep").read_text())["resources"]
    database = resources["database"]["config"]["config"]["properties"]
    assert (database["evictionPolicy"], database["clientProtocol"]) == ("NoEviction", "Encrypted")
    configuration = resources["service"]["config"]["properties"]["configuration"]
    assert all({"keyVaultUrl", "identity"} <= set(secret) for secret in configuration["secrets"])
    (container,) = resources["service"]["config"]["properties"]["template"]["containers"]
    by_name = {variable["name"]: variable for variable in container["env"]}
    assert {name for name, variable in by_name.items() if "secretRef" in variable} == {
        "ML_SERVICE_API_KEY",
        "ML_SERVICE_REDIS_URL",
    }


def dashboard_queries() -> Iterator[str]:
    dashboard = json.loads((DOCKER / "monitoring/grafana/dashboards/ml-service.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield target["expr"].replace("$__rate_interval", "1m")


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((DOCKER / "monitoring/alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def exported() -> set[str]:
    """The names of all series that the service exports, with the suffixes of histograms and counters."""
    names = set()
    for line in Metrics().render().decode().splitlines():
        if line.startswith("# TYPE "):
            name, kind = line.split()[2:]
            names |= (
                {f"{name}_{part}" for part in ("bucket", "sum", "count")} if kind == "histogram" else {name}
            )
    return names


def named_in(query: str) -> set[str]:
    """The series that *query* selects; raises if it is not valid PromQL."""
    promql_parser.parse(query)
    return set(
        re.findall(r"\b(?:ml_service[a-z_]*:[a-z0-9_:]+|ml_service_[a-z_]+|process_[a-z_]+|up)\b", query)
    )


def test_every_query_selects_exported_or_recorded_series() -> None:
    known = exported() | {rule["record"] for rule in rules() if "record" in rule} | {"up"}
    queries = [*dashboard_queries(), *(rule["expr"] for rule in rules())]
    assert len(queries) > 20
    for query in queries:
        named = named_in(query)
        assert named, query
        assert named <= known, query


def test_labelled_counters_of_alert_rules_exist_before_the_first_event() -> None:
    # increase() sees only changes: it misses the first event of a series that starts at 1.
    fresh = Metrics().render().decode()
    counted = {
        found for rule in rules() for found in re.findall(r'(\w+_total)\{(\w+="\w+")\}\[', rule["expr"])
    }
    assert len(counted) >= 3
    for name, label in counted:
        assert re.search(rf"^{name}\{{[^}}]*{label}[^}}]*\}} 0.0$", fresh, re.MULTILINE), f"{name}{{{label}}}"


def test_every_alert_has_a_summary_an_action_and_a_test() -> None:
    tested = (DOCKER / "monitoring/alerts.test.yaml").read_text()
    alerts = [rule for rule in rules() if "alert" in rule]
    for alert in alerts:
        assert alert["annotations"]["summary"], alert["alert"]
        assert alert["annotations"]["action"], alert["alert"]
        assert tested.count(f"alertname: {alert['alert']}}}") == 1, alert["alert"]
        assert f'alertname="{alert["alert"]}"' in tested, alert["alert"]


def unknown_to_grafana(written: Any, understood: Any, place: str = "dashboard") -> Iterator[str]:
    """Yield each place where *understood*, as read by the models of Grafana, differs from *written*."""
    match written, understood:
        case dict(), dict():
            for name, value in written.items():
                yield from unknown_to_grafana(value, understood.get(name, ...), f"{place}.{name}")
        case list(), list() if len(written) == len(understood):
            for number, (one, other) in enumerate(zip(written, understood, strict=True)):
                yield from unknown_to_grafana(one, other, f"{place}[{number}]")
        case _ if written != understood:
            yield place


def test_every_dashboard_member_is_known_to_grafana() -> None:
    written = json.loads((DOCKER / "monitoring/grafana/dashboards/ml-service.json").read_text())
    assert list(unknown_to_grafana(written, as_grafana_reads(written))) == []
    misspelt = {**written, "refesh": "10s", "panels": [{**written["panels"][0], "titel": "x"}]}
    assert list(unknown_to_grafana(misspelt, as_grafana_reads(misspelt))) == [
        "dashboard.panels[0].titel",
        "dashboard.refesh",
    ]


def as_grafana_reads(dashboard: dict[str, Any]) -> Any:
    return json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard)))


def test_dashboard_uses_the_provisioned_data_source() -> None:
    source = yaml.safe_load(
        (DOCKER / "monitoring/grafana/provisioning/datasources/prometheus.yaml").read_text()
    )
    text = (DOCKER / "monitoring/grafana/dashboards/ml-service.json").read_text()
    assert set(re.findall(r'"uid": "(\w+)"', text)) == {source["datasources"][0]["uid"]}
