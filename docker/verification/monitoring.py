"""The monitoring profile: a Prometheus that scrapes the running service, asked what the dashboard asks."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from urllib.parse import quote

from engine import BODY, DOCKER, Service, call, compose_up, podman, until
from tally import Tally

__all__ = ["verify_monitoring"]

# Of a healthy service this is 0, and a record that cannot be written, but could be claimed, is hard to arrange.
_ALWAYS_ZERO = {"ml_service:cache_write_failed:ratio_rate5m"}


def verify_monitoring(tally: Tally, scratch: Path) -> None:
    """Prometheus scrapes the service under load and without Redis: every query of the dashboard has data."""
    with compose_up(scratch, profile="monitoring") as service:
        port = int(service.settings["PROMETHEUS_PORT"])
        until("Prometheus", lambda: call(port, "GET", "/-/ready").status == 200)
        until("the scrape", lambda: _values(port, 'up{job="ml-service"}') == [1.0])
        queries = _queries()
        waiting = set(queries)
        numbers = itertools.count()

        def asked() -> None:
            _mixed_traffic(service, next(numbers))
            waiting.difference_update([query for query in waiting if _has_data(port, query)])

        ratio = "ml_service:cache_hit:ratio_rate5m"

        def watched() -> bool:
            asked()
            return ratio not in waiting and len(_values(port, "ml_service:response_seconds:p99_rate5m")) >= 2

        until("recorded ratios", watched)
        (kept,) = _values(port, ratio)
        tally.check(
            "two of three keyed requests are repeats, and the hit rate says so",
            0.5 < kept < 0.8,
            f"{kept:.2f}",
        )

        podman("stop", "-t", "5", "ai-trading-redis")
        firing = 'ALERTS{alertname="MlServiceRedisDown",alertstate="firing"}'

        def alerted() -> bool:
            asked()
            return _values(port, firing) == [1.0]

        seconds = until("the alert", alerted)
        tally.check("a Redis that is stopped raises MlServiceRedisDown", True, f"{seconds:.0f} s later")
        tally.check(
            "every query of the dashboard returned data, other than 0 but for one",
            not waiting,
            f"{len(queries)} queries" + "".join(f"; not: {query}" for query in sorted(waiting)),
        )


def _mixed_traffic(service: Service, number: int) -> None:
    """One of everything that a panel shows."""
    key = f"watched-{number}"
    for _ in range(3):
        service.predict(key)
    service.predict()
    service.predict(key, body=_changed(agentId="somebody-else"))  # another decision under the same key
    service.predict(body=_changed(candles=_wild()))
    service.predict(body=_changed(candles=json.loads(BODY)["candles"][:1]))  # too few to decide
    Service(service.port, "wrong").predict()


def _changed(**members: object) -> bytes:
    return json.dumps({**json.loads(BODY), **members}).encode()


def _wild() -> list[dict[str, object]]:
    """The example's candles with prices that no market has seen: features far outside the training range."""
    candles: list[dict[str, object]] = json.loads(BODY)["candles"]
    for number, candle in enumerate(candles):
        low = 1.0 if number % 4 < 2 else 1_000_000.0
        candle.update(open=low, high=low * 3, low=low / 2, close=low * 2)
    return candles


def _queries() -> list[str]:
    dashboard = json.loads((DOCKER / "monitoring/grafana/dashboards/ml-service.json").read_text())
    return [
        target["expr"].replace("$__rate_interval", "1m")
        for panel in dashboard["panels"]
        for target in panel["targets"]
    ]


def _values(port: int, query: str) -> list[float]:
    """What Prometheus answers to an instant query; raises where it does not answer."""
    reply = json.loads(call(port, "GET", f"/api/v1/query?query={quote(query)}").body)
    if reply["status"] != "success":
        raise RuntimeError(f"Prometheus refuses {query}: {reply}")
    return [float(one["value"][1]) for one in reply["data"]["result"]]


def _has_data(port: int, query: str) -> bool:
    values = [value for value in _values(port, query) if not math.isnan(value)]
    return any(values) or (query in _ALWAYS_ZERO and bool(values))
