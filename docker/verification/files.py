"""The files of this directory, by the tools that read them."""

from __future__ import annotations

import itertools
from pathlib import Path

from engine import DOCKER, composition, podman
from tally import Tally

__all__ = ["verify_files"]

_OVERRIDES = ("compose.replicas.yaml", "compose.sentinel.yaml")


def verify_files(tally: Tally, scratch: Path) -> None:
    """Each combination of compose files is merged and valid; promtool and HAProxy accept theirs."""
    combinations = [
        names for count in range(len(_OVERRIDES) + 1) for names in itertools.combinations(_OVERRIDES, count)
    ]
    for names in combinations:
        with composition(scratch, *names, profile="monitoring") as composed:
            merged = scratch / "merged.yaml"
            merged.write_text(composed.compose("config"))
            checked = podman(
                "--builtin-schema", "vendor.compose-spec", str(merged), binary="check-jsonschema", check=False
            )
            tally.check(
                f"merged and valid: {' + '.join(('compose.yaml', *names))}",
                "validation done" in checked,
                checked,
            )
    monitoring = DOCKER / "monitoring"
    checked = podman("check", "config", str(monitoring / "prometheus.yaml"), binary="promtool", check=False)
    tally.check(
        "promtool accepts the configuration and the rules", "FAILED" not in checked and "SUCCESS" in checked
    )
    tested = podman("test", "rules", str(monitoring / "alerts.test.yaml"), binary="promtool", check=False)
    tally.check("the rules pass their tests", "SUCCESS" in tested and "FAILED" not in tested)
    mounted = f"{DOCKER / 'haproxy/haproxy.cfg'}:/haproxy.cfg:ro"
    accepted = podman(
        "run",
        "--rm",
        "--network",
        "none",
        "-v",
        mounted,
        "localhost/haproxy",
        "haproxy",
        "-c",
        "-f",
        "/haproxy.cfg",
        check=False,
    )
    tally.check("HAProxy accepts its own", "alert" not in accepted.lower(), accepted)
