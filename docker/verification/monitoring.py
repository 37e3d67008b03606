"""The monitoring profile: its files by promtool, and its queries by a Prometheus that scrapes the running service."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from urllib.parse import quote

from engine import DOCKER, Tally, call, compose_up, podman, until

__all__ = ["verify_monitoring"]

_FILES = DOCKER / "monitoring"


def verify_monitoring(tally: Tally, scratch: Path) -> None:
    """Check the files, then ask Prometheus each query of the dashboard."""
    checked = podman("check", "config", str(_FILES / "prometheus.yaml"), binary="promtool", check=False)
    tally.check(
        "promtool accepts the configuration and the rules", "FAILED" not in checked and "SUCCESS" in checked
    )
    tested = podman("test", "rules", str(_FILES / "alerts.test.yaml"), binary="promtool", check=False)
    tally.check("the rules pass their tests", "SUCCESS" in tested and "FAILED" not in tested)

    with compose_up(scratch, profile="monitoring") as service:
        port = int(service.more["PROMETHEUS_PORT"])
        until("Prometheus", lambda: call(port, "GET", "/-/ready").status == 200)
        until("the scrape", lambda: _value(port, 'up{job="ml-service"}') == 1)
        keys = (f"watched-{number}" for number in itertools.count())

        def asked_and_seen() -> bool:
            key = next(keys)
            for _ in range(3):
                service.predict(key)
            return (_value(port, "sum(rate(ml_service_cache_requests_total[5m]))") or 0) > 0

        until("a rate", asked_and_seen)  # which takes two scrapes that saw different counts
        queries = _queries()
        failed = [query for query in queries if not _answered(port, query)]
        tally.check(
            "Prometheus answers every query of the dashboard", failed == [], f"{len(queries)} queries"
        )
        until("the recorded ratios", lambda: _value(port, "ml_service:cache_hit:ratio_rate5m") is not None)
        kept = _value(port, "ml_service:cache_hit:ratio_rate5m")
        tally.check(
            "two of three requests were repeats, and it says so", kept is not None and 0.4 < kept < 0.9, kept
        )
        _alert(tally, port)


def _alert(tally: Tally, port: int) -> None:
    podman("stop", "-t", "5", "ai-trading-redis")
    firing = 'ALERTS{alertname="MlServiceRedisDown",alertstate="firing"}'
    seconds = until("the alert", lambda: _value(port, firing) == 1, seconds=120)
    tally.check("a Redis that is stopped raises MlServiceRedisDown", True, f"{seconds:.0f} s later")


def _queries() -> list[str]:
    dashboard = json.loads((_FILES / "grafana/dashboards/ml-service.json").read_text())
    return [
        target["expr"].replace("$__rate_interval", "1m")
        for panel in dashboard["panels"]
        for target in panel["targets"]
    ]


def _ask(port: int, query: str) -> dict[str, object]:
    reply: dict[str, object] = json.loads(call(port, "GET", f"/api/v1/query?query={quote(query)}").body)
    return reply


def _answered(port: int, query: str) -> bool:
    return _ask(port, query)["status"] == "success"


def _value(port: int, query: str) -> float | None:
    data = _ask(port, query).get("data")
    result = data["result"] if isinstance(data, dict) else []
    return float(result[0]["value"][1]) if result else None
